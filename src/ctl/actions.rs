//! `drain`, `log-level` and `metrics`: what takes one request and no table.

use std::io::Write;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::Context;
use super::http::{Client, Method, Trouble};
use super::output::{Failure, Outcome, confirm};
use super::processes::Answer;
use super::text::count;
use crate::printable::printable;

/// Close all sessions over the drain time, and end the processes, as SIGTERM does
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  blackhole ctl drain
  blackhole ctl --admin-dir /run/blackhole drain --yes")]
pub(super) struct DrainArgs {
    /// Do not ask at the terminal
    #[arg(long)]
    yes: bool,
}

impl DrainArgs {
    pub(super) fn run(&self, cx: &mut Context<'_>) -> Result<Outcome, Failure> {
        let processes = cx.processes()?;
        let names: Vec<&str> = processes.all.iter().map(|process| &*process.name).collect();
        confirm(&format!("Drain and end {}?", names.join(", ")), self.yes)?;
        let answers = processes.ask(|client| ordered(client, "/drain"))?;
        told(
            cx,
            answers,
            |_| true,
            |reply| {
                let state = reply["drain"].as_str().unwrap_or("begun");
                let sessions = reply["sessions"].as_u64();
                let sessions = match sessions {
                    None => String::new(),
                    Some(1) => ", 1 session".to_owned(),
                    Some(sessions) => format!(", {} sessions", count(sessions)),
                };
                format!("drain {state}{sessions}")
            },
        )
    }
}

/// Log more or less, until the configuration is read again
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  blackhole ctl log-level debug
  blackhole ctl log-level info")]
pub(super) struct LogLevelArgs {
    /// The least level that is logged
    #[arg(value_enum)]
    level: Level,
}

/// The levels of `--log-level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

impl LogLevelArgs {
    pub(super) fn run(&self, cx: &mut Context<'_>) -> Result<Outcome, Failure> {
        let level = match self.level {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
        };
        let path = format!("/log-level?level={level}");
        let answers = cx.processes()?.ask(|client| ordered(client, &path))?;
        told(
            cx,
            answers,
            |_| true,
            |reply| {
                let old = reply["old"].as_str();
                let old = old.map_or(String::new(), |old| format!(", was {old}"));
                format!("log level {level}{old}")
            },
        )
    }
}

/// What a process says of an order that it carries out.
pub(super) fn ordered(client: &Client, path: &str) -> Result<Value, Trouble> {
    let mut envelope = client.json(Method::Post, path)?;
    Ok(envelope["data"].take())
}

/// A line for each process, or a document. `is_done`: whether all of an order that was carried out is done.
pub(super) fn told(
    cx: &mut Context<'_>,
    answers: Vec<Answer<Value>>,
    is_done: impl Fn(&Value) -> bool,
    say: impl Fn(&Value) -> String,
) -> Result<Outcome, Failure> {
    let mut replies = answers.iter().map(|answer| answer.result.as_ref());
    let is_well = replies.all(|reply| reply.is_ok_and(&is_done));
    if cx.is_json {
        let of_each = answers.iter().map(|answer| answer.to_json(Value::clone));
        let document = json!({"processes": of_each.collect::<Vec<_>>()});
        cx.screen.document(&document)?;
        return Ok(Outcome::of(is_well));
    }
    for (process, reply) in answers.into_iter().filter_map(Answer::told) {
        let line = format!("{process}: {}", say(&reply));
        writeln!(cx.screen.out, "{}", printable(&line))?;
    }
    cx.screen.out.flush()?;
    Ok(Outcome::of(is_well))
}

/// Print the pages of metrics, in Prometheus' text format
#[derive(Debug, Args)]
#[command(after_help = "Example: blackhole ctl metrics | grep blackhole_sessions")]
pub(super) struct MetricsArgs {}

impl MetricsArgs {
    pub(super) fn run(&self, cx: &mut Context<'_>) -> Result<Outcome, Failure> {
        let answers = cx
            .processes()?
            .ask(|client| client.text("/metrics", None))?;
        let is_well = answers.iter().all(|answer| answer.result.is_ok());
        if cx.is_json {
            return Err(Failure::Usage(
                "metrics has a format of its own; `status --json` tells the main ones".to_owned(),
            ));
        }
        let several = answers.len() > 1;
        for (process, page) in answers.into_iter().filter_map(Answer::told) {
            if several {
                writeln!(cx.screen.out, "# {}", printable(&process))?;
            }
            for line in page.lines() {
                writeln!(cx.screen.out, "{}", printable(line))?;
            }
        }
        cx.screen.out.flush()?;
        Ok(Outcome::of(is_well))
    }
}
