//! The flags that every command takes: how to answer, and how to reach the cluster.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgMatches, Args, Command};

use super::output::Format;

#[derive(Args, Clone, Debug, Default)]
pub struct GlobalArgs {
    /// How to answer: a table for people, JSON for programs
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// How long a command may take, all its tries together [default: 8s]
    #[arg(long, global = true, value_name = "TIME", value_parser = deadline)]
    pub timeout: Option<Duration>,
    /// services.json: who is there, on which subjects
    #[arg(long, global = true, value_name = "FILE")]
    pub services: Option<PathBuf>,
    /// A TOML file of settings; `--config` wherever a topic has no `--config` of its own
    #[arg(skip)]
    pub config: Option<PathBuf>,
    /// NATS servers [default: nats://127.0.0.1:4222]
    #[arg(long, global = true, value_name = "URL", value_delimiter = ',', help_heading = "NATS")]
    pub nats_url: Vec<String>,
    /// A context of the `nats` CLI
    #[arg(long, global = true, value_name = "NAME", help_heading = "NATS")]
    pub context: Option<String>,
    /// A file of NATS credentials
    #[arg(long, global = true, value_name = "FILE", help_heading = "NATS")]
    pub creds: Option<PathBuf>,
    /// A file with an nkey's seed
    #[arg(long, global = true, value_name = "FILE", help_heading = "NATS")]
    pub nkey: Option<PathBuf>,
    /// A NATS user; the password comes from DMQ_NATS_PASSWORD, so that it is in no list of processes
    #[arg(long, global = true, value_name = "NAME", help_heading = "NATS")]
    pub nats_user: Option<String>,
    /// The authority that signed the servers' certificates, as PEM
    #[arg(long, global = true, value_name = "FILE", help_heading = "NATS")]
    pub tls_ca: Option<PathBuf>,
    /// Our own certificate, as PEM
    #[arg(long, global = true, value_name = "FILE", help_heading = "NATS")]
    pub tls_cert: Option<PathBuf>,
    /// The key of our own certificate, as PEM
    #[arg(long, global = true, value_name = "FILE", help_heading = "NATS")]
    pub tls_key: Option<PathBuf>,
}

impl GlobalArgs {
    /// How long connecting and asking may take together. Below the time at which a command is ended from outside.
    pub fn deadline(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(8))
    }
}

const LONGEST: Duration = Duration::from_secs(9);

fn deadline(text: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 500ms or 8s"))?;
    if span.is_zero() || span > LONGEST {
        return Err(format!("it is more than 0 and at most {}", humantime::format_duration(LONGEST)));
    }
    Ok(span)
}

const CONFIG_FLAG: &str = "settings-file";

/// Adds `--config FILE` to every command but those whose own `--config` is something else, which clap's global flags cannot.
pub fn with_config_flag(command: Command) -> Command {
    let has_own = command.get_arguments().any(|arg| arg.get_long() == Some("config"));
    let is_leaf = !command.has_subcommands();
    let command = command.mut_subcommands(with_config_flag);
    if has_own {
        return command;
    }
    let flag = clap::Arg::new(CONFIG_FLAG)
        .long("config")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help("A TOML file of settings")
        .hide(!is_leaf && command.get_name() != "dmq");
    command.arg(flag)
}

/// What `--config FILE` said, the innermost one counting.
pub fn config_flag(matches: &ArgMatches) -> Option<PathBuf> {
    let inner = matches.subcommand().and_then(|(_, matches)| config_flag(matches));
    inner.or_else(|| matches.try_get_one::<PathBuf>(CONFIG_FLAG).ok().flatten().cloned())
}
