//! The command line: every key of [`Options`] with dashes, `--config`, `--check-config`, `--help` and `--version`; and
//! the wording of what is wrong with it.
//!
//! Invariant: no message repeats a value that may be secret.

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser};
use serde_json::{Map, Value};

use super::error::ConfigError;
use super::exit::Exit;
use super::options::Options;

/// Bridges platform events from RabbitMQ to websocket clients, each client seeing its own accounts' events.
#[derive(Debug, Parser)]
#[command(name = "blackhole", version, args_override_self = false, override_usage = USAGE, after_help = EXAMPLES)]
struct OwnOptions {
    /// JSON file of the keys below, with underscores: {"max_connections_per_ip": 5}; the command line wins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check everything, print the configuration in force as JSON with passwords masked, and exit
    #[arg(long)]
    check_config: bool,
}

const USAGE: &str = "blackhole [OPTIONS]
       blackhole <COMMAND> …";

const EXAMPLES: &str = "\
Commands:
  ctl          Look at running processes and steer them, over their admin addresses
  sub          Subscribe at a server, and print events as they come
  completions  Print completions of the command line for a shell
  man-pages    Write the manual pages of all commands into a folder
  Each tells more with --help. Without a command the server is started.

Examples:
  Try it without a broker, then connect a websocket client to ws://127.0.0.1:5555/:
    blackhole --ip 127.0.0.1 --source demo --auth insecure
  On a platform:
    blackhole --ip 127.0.0.1 --port 5555 --amqp amqp://guest:guest@127.0.0.1:5672/%2f \\
              --auth tokens:/etc/blackhole/tokens.json --admin 127.0.0.1:5559
  With the platform's own tokens, and its accounts:
    blackhole --auth jwt:/etc/blackhole/system_key.pem --accounts /etc/blackhole/accounts.json
  Two brokers, tried in turn; everything else in a file:
    blackhole --amqp amqp://user:password@mq1 --amqp amqp://user:password@mq2 --config FILE
  Check a file before a restart:
    blackhole --config FILE --check-config

The token file (--auth tokens:FILE), reread on SIGHUP:
    {\"TOKEN\": {\"account_id\": \"32 hex characters\", \"descendants\": [\"32 hex characters\"],
               \"realm\": \"sip.example.com\", \"superduper_admin\": false, \"expires\": 1893456000}}

The account tree (--accounts FILE), reread on SIGHUP:
    {\"ACCOUNT\": {\"parent\": \"ACCOUNT\", \"realm\": \"sip.example.com\", \"superduper_admin\": false}}

For any --max-… option 0 means no limit. Exit code 2: the configuration was refused.
SIGTERM and SIGINT close all sessions over the drain time and exit 0.
SIGHUP rereads the token file, the keys, the account tree and the log level.";

/// The command line, read.
pub(super) struct CommandLine {
    /// `--config`.
    pub(super) config: Option<PathBuf>,
    /// `--check-config`.
    pub(super) check_config: bool,
    matches: ArgMatches,
}

/// `--help` or `--version` was asked for, or the command line is wrong.
pub(super) enum NoCommandLine {
    Asked(Exit),
    Wrong(ConfigError),
}

impl CommandLine {
    /// Reads `args`, the program's name first.
    pub(super) fn read(args: impl Iterator<Item = OsString>) -> Result<Self, NoCommandLine> {
        let matches = command()
            .try_get_matches_from(args)
            .map_err(|error| match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                    NoCommandLine::Asked(Exit::done(error.render().to_string()))
                }
                _ => NoCommandLine::Wrong(wrong(&error)),
            })?;
        let own = OwnOptions::from_arg_matches(&matches)
            .map_err(|error| NoCommandLine::Wrong(wrong(&error)))?;
        Ok(Self {
            config: own.config,
            check_config: own.check_config,
            matches,
        })
    }

    /// Overwrites `options` with the options that were given; a list replaces the whole list.
    pub(super) fn lay_over(&self, options: &mut Options) -> Result<(), ConfigError> {
        options
            .update_from_arg_matches(&self.matches)
            .map_err(|error| wrong(&error))
    }

    /// Whether `key` was given as an option.
    pub(super) fn has(&self, key: &str) -> bool {
        self.matches.value_source(key) == Some(ValueSource::CommandLine)
    }
}

/// `--max-connections` for `max_connections`.
pub(super) fn option(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

/// A key as `--help` and the table in `scripts/README.md` show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// With underscores, as in the file.
    pub name: String,
    /// Its default as JSON; `None` when it has none.
    pub default: Option<String>,
    /// One line on what it does.
    pub help: String,
}

/// Every key, in the order of `--help`.
#[must_use]
pub fn keys() -> Vec<Key> {
    let defaults = defaults();
    let command = Options::augment_args_for_update(Command::new("keys"));
    let key = |arg: &clap::Arg| {
        let name = arg.get_id().to_string();
        let default = defaults
            .get(&name)
            .filter(|value| !value.is_null())
            .map(Value::to_string);
        Key {
            name,
            default,
            help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
        }
    };
    command.get_arguments().map(key).collect()
}

/// The default of each key that the file may hold.
pub(super) fn defaults() -> Map<String, Value> {
    match serde_json::to_value(Options::default()) {
        Ok(Value::Object(defaults)) => defaults,
        _ => Map::new(),
    }
}

/// The command line of the server, with every key's default in its help. The other commands are no part of it: they are
/// told apart before it is read.
#[must_use]
pub fn command() -> Command {
    let defaults = defaults();
    let own = OwnOptions::command();
    let about = own.get_about().cloned().unwrap_or_default();
    // Adding the keys replaces the program's description by that of their struct.
    Options::augment_args_for_update(own)
        .about(about)
        .mut_args(|arg| {
            let default = match defaults.get(arg.get_id().as_str()) {
                None | Some(Value::Null) => return arg,
                Some(Value::String(text)) => text.clone(),
                Some(Value::Array(items)) if items.is_empty() => return arg,
                Some(Value::Array(items)) => items
                    .iter()
                    .filter_map(Value::as_str)
                    .collect::<Vec<_>>()
                    .join(","),
                Some(value) => value.to_string(),
            };
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            arg.help(format!("{help} [default: {default}]"))
        })
}

/// Returns clap's error in the wording of the file's errors, without a value that may be secret.
fn wrong(error: &clap::Error) -> ConfigError {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    };
    let name = |argument: String| {
        let is_of_a_name =
            |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_');
        argument
            .split(|character| !is_of_a_name(character))
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    match (error.kind(), error.source()) {
        (ErrorKind::ValueValidation, Some(problem)) => ConfigError::Value {
            place: name(text(ContextKind::InvalidArg)),
            problem: problem.to_string(),
        },
        (ErrorKind::UnknownArgument, _) => {
            let argument = name(text(ContextKind::InvalidArg));
            let suggested = text(ContextKind::SuggestedArg);
            let problem = if !argument.starts_with('-') {
                "a value that belongs to no option; repeat the option for each value".to_owned()
            } else if suggested.is_empty() {
                format!("unknown option {argument}; --help lists them")
            } else {
                format!(
                    "unknown option {argument}; did you mean {}?",
                    name(suggested)
                )
            };
            ConfigError::CommandLine(problem)
        }
        (ErrorKind::ArgumentConflict, _) => ConfigError::CommandLine(format!(
            "{} was given twice",
            name(text(ContextKind::InvalidArg))
        )),
        (ErrorKind::TooManyValues, _) => ConfigError::CommandLine(format!(
            "{} takes no value",
            name(text(ContextKind::InvalidArg))
        )),
        (ErrorKind::InvalidValue | ErrorKind::NoEquals, _) => {
            ConfigError::CommandLine(format!("{} needs a value", text(ContextKind::InvalidArg)))
        }
        _ => {
            let rendered = error.render().to_string();
            let first = rendered.lines().next().unwrap_or_default();
            ConfigError::CommandLine(first.trim_start_matches("error: ").to_owned())
        }
    }
}
