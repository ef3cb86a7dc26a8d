//! `blackhole ctl`: looks at running processes and steers them, as a client of their admin addresses (PROTOCOL 8).
//!
//! ```text
//! command line -> processes: who is asked, side by side -> http (over TCP or unix): one request -> status, sessions, …
//!              -> table for people, or one JSON document -> output: stdout, exit code
//! ```
//!
//! | module | owns |
//! |---|---|
//! | this | the command line, and which command does what |
//! | `processes` | who is asked, and all of them asked at once |
//! | `http`, `unix`, `query` | one request: the client, its unix sockets, paths and queries |
//! | `status`, `exposition` | the command `status`; the page of metrics read |
//! | `sessions`, `groups` | the commands `sessions` and `session`; sessions added up |
//! | `kick`, `trace`, `modules`, `actions` | the other commands |
//! | `table`, `text` | tables; figures and documents for people |
//! | `output` | stdout, stderr and exit codes |
//!
//! | exit code | means |
//! |---|---|
//! | 0 | what was asked for is shown or done |
//! | 1 | something failed: a process that gave no answer or refused, or nothing is there where one thing was asked for; what the others answered is shown |
//! | 2 | the command line cannot be right |
//!
//! Invariants: what processes and their clients send is never printed raw (`crate::printable`), nor read without bound
//! (`CTL_…` of [`crate::limits`]); the token is never printed, nor taken from the command line itself.

mod actions;
mod exposition;
mod groups;
mod http;
mod kick;
mod modules;
mod output;
mod processes;
mod query;
#[cfg(test)]
mod scripted;
mod sessions;
mod status;
mod table;
mod text;
mod trace;
mod unix;

use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use self::output::{Failure, Outcome, Screen};
use self::processes::{Given, ProcessArgs};

/// Look at running processes and steer them, over their admin addresses
#[derive(Debug, Parser)]
#[command(name = "ctl", arg_required_else_help = true, after_help = EXAMPLES)]
struct Ctl {
    /// Print JSON for scripts: one document; of a trace, and with --watch, one a line
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    processes: ProcessArgs,
    #[command(subcommand)]
    command: Do,
}

const EXAMPLES: &str = "\
Examples:
  blackhole ctl status
  blackhole ctl sessions --account 4b8c6fec4b2597882c0390202d195419
  blackhole ctl --admin-dir /run/blackhole sessions --slow --sort outbox
  blackhole ctl --admin 127.0.0.1:5559 --admin 127.0.0.1:5560 status --watch 2
  blackhole ctl trace --session 192.0.2.7:41234

Exit code 0: done. 1: a process gave no answer or refused, or what was asked for is
not there; what the others answered is shown. 2: the command line is wrong.";

#[derive(Debug, Subcommand)]
enum Do {
    Status(status::StatusArgs),
    Sessions(sessions::SessionsArgs),
    Session(sessions::SessionArgs),
    Kick(kick::KickArgs),
    Trace(trace::TraceArgs),
    Modules(modules::ModulesArgs),
    Drain(actions::DrainArgs),
    LogLevel(actions::LogLevelArgs),
    Metrics(actions::MetricsArgs),
}

/// What every command has at hand.
struct Context<'a> {
    processes: &'a ProcessArgs,
    given: Given,
    is_json: bool,
    screen: Screen,
}

impl Context<'_> {
    /// Who is asked, as of now.
    fn processes(&self) -> Result<processes::Processes, Failure> {
        self.processes.processes(self.given)
    }
}

/// The command line of `blackhole ctl`.
#[must_use]
pub fn command() -> clap::Command {
    Ctl::command()
}

/// Does what the command line says, and returns when that is done: a trace and a status that is watched may never end.
#[must_use]
pub fn run(matches: &ArgMatches) -> ExitCode {
    match carry_out(matches) {
        Ok(outcome) => outcome.code(),
        Err(failure) => failure.end(),
    }
}

fn carry_out(matches: &ArgMatches) -> Result<Outcome, Failure> {
    let ctl = Ctl::from_arg_matches(matches).map_err(|error| Failure::Usage(error.to_string()))?;
    let is_given = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
    let mut cx = Context {
        processes: &ctl.processes,
        given: Given {
            admin: is_given("admin"),
            admin_dir: is_given("admin_dir"),
        },
        is_json: ctl.json,
        screen: Screen::new(),
    };
    match &ctl.command {
        Do::Status(args) => args.run(&mut cx),
        Do::Sessions(args) => args.run(&mut cx),
        Do::Session(args) => args.run(&mut cx),
        Do::Kick(args) => args.run(&mut cx),
        Do::Trace(args) => args.run(&mut cx),
        Do::Modules(args) => args.run(&mut cx),
        Do::Drain(args) => args.run(&mut cx),
        Do::LogLevel(args) => args.run(&mut cx),
        Do::Metrics(args) => args.run(&mut cx),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together_and_every_command_has_an_example() {
        command().debug_assert();
        let mut all = vec![command()];
        while let Some(command) = all.pop() {
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            assert!(help.contains("blackhole ctl"), "{}", command.get_name());
            assert!(command.get_about().is_some(), "{}", command.get_name());
            all.extend(command.get_subcommands().cloned());
        }
    }
}
