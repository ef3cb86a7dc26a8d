//! `blackhole ctl`: looks at running processes and steers them, as a client of their admin addresses (PROTOCOL 8).

use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, Parser};

/// Look at running processes and steer them, over their admin addresses
#[derive(Debug, Parser)]
#[command(name = "ctl")]
struct Ctl {}

/// The command line of `blackhole ctl`.
#[must_use]
pub fn command() -> clap::Command {
    Ctl::command()
}

/// Does what the command line says.
#[must_use]
pub fn run(_matches: &ArgMatches) -> ExitCode {
    ExitCode::SUCCESS
}
