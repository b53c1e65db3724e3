//! `dmq services …`. Nothing here needs NATS.

mod check;
mod show;

use std::path::PathBuf;

use clap::Subcommand;

use super::Outcome;
use super::global::GlobalArgs;
use super::output::Output;

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Say everything that is wrong with a services.json; exit status 1 if anything is
    Check(FileArgs),
    /// Show a services.json with every subject that it leaves to the defaults
    Show(FileArgs),
}

#[derive(clap::Args, Debug)]
pub struct FileArgs {
    /// The file [default: that of --services, then services.json]
    file: Option<PathBuf>,
}

impl FileArgs {
    fn path(self, global: &GlobalArgs) -> PathBuf {
        let from_env = || std::env::var_os("DMQ_SERVICES").map(PathBuf::from);
        self.file.or_else(|| global.services.clone()).or_else(from_env).unwrap_or_else(|| "services.json".into())
    }
}

impl Command {
    pub fn run(self, global: &GlobalArgs, out: &mut Output) -> anyhow::Result<Outcome> {
        match self {
            Self::Check(args) => check::run(&args.path(global), out),
            Self::Show(args) => show::run(&args.path(global), out),
        }
    }
}
