//! `dmq completions`: a script that completes commands and flags in a shell.

use clap::CommandFactory;

use super::output::Output;
use super::{Cli, Outcome, global};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell to write them for
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut global::with_config_flag(Cli::command()), "dmq", &mut script);
    out.raw(&script)?;
    Ok(Outcome::Fine)
}
