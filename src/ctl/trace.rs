//! `trace`: what happens to a session, an account or a key, as it happens, on all processes.
//!
//! ```text
//! a thread a process: lines -> server-sent events -> bounded channel -> this thread prints
//! ```
//!
//! A full channel stops the reading, and the process then tells what it leaves out.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use anstyle::Style;
use clap::{ArgGroup, Args};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::macros::format_description;

use super::Context;
use super::http::{Client, Lines, Trouble};
use super::output::{Failure, Outcome, Screen, complain};
use super::query::Query;
use super::sessions::{parse_account, parse_session};
use super::table::{BAD, DOUBTFUL};
use crate::account::AccountId;
use crate::limits::{CTL_LINE_BYTES_MAX, CTL_LINES_MAX};
use crate::printable::printable;

/// Follow what happens to a session, an account or a routing key, and why events do not arrive, until Ctrl-C
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("what").required(true).multiple(true).args(["session", "account", "key"]),
    after_help = "\
Examples:
  blackhole ctl trace --session 192.0.2.7:41234
  blackhole ctl trace --account 4b8c6fec4b2597882c0390202d195419
  blackhole ctl trace --session 192.0.2.7:41234 --event CHANNEL_CREATE
  blackhole ctl trace --key 'call.CHANNEL_CREATE.*' --limit 10 --json

Times are in UTC."
)]
pub(super) struct TraceArgs {
    /// What happens to this session, IP:PORT as `blackhole ctl sessions` lists it
    #[arg(long, value_name = "ID", value_parser = parse_session)]
    session: Option<SocketAddr>,
    /// What happens to this account's sessions and events
    #[arg(long, value_parser = parse_account)]
    account: Option<AccountId>,
    /// What happens to events of this routing key
    #[arg(long)]
    key: Option<String>,
    /// Events of this name only, such as CHANNEL_CREATE
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
    /// End after so many lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// What comes from one process.
enum Heard {
    Event(Event),
    Ended(Result<(), Trouble>),
}

/// A server-sent event.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    word: String,
    data: String,
}

impl TraceArgs {
    pub(super) fn run(&self, cx: &mut Context<'_>) -> Result<Outcome, Failure> {
        let query = Query::new("/trace")
            .with("session", self.session)
            .with("account", self.account)
            .with("key", self.key.as_ref())
            .with("event", self.event.as_ref())
            .with("limit", self.limit);
        let processes = Arc::new(cx.processes()?);
        let several = processes.all.len() > 1;
        let (sender, heard) = sync_channel(CTL_LINES_MAX);
        for index in 0..processes.all.len() {
            let (path, sender) = (query.as_str().to_owned(), sender.clone());
            let processes = processes.clone();
            // They end with this process.
            thread::Builder::new()
                .spawn(move || follow(&processes.all[index].client, &path, index, &sender))
                .map_err(|error| Failure::Failed(format!("a thread: {error}")))?;
        }
        drop(sender);
        let mut left = self.limit.unwrap_or(u64::MAX);
        let (mut outcome, mut gone) = (Outcome::Well, 0);
        for (index, heard) in heard {
            let process = &processes.all[index];
            match heard {
                Heard::Event(event) => {
                    let prefix = several.then_some(&*process.name);
                    event.write(&mut cx.screen, prefix, cx.is_json)?;
                    left -= u64::from(event.counts());
                    if left == 0 {
                        break;
                    }
                }
                Heard::Ended(Ok(())) => {}
                Heard::Ended(Err(trouble)) if process.note_if_gone(&trouble) => gone += 1,
                Heard::Ended(Err(trouble)) => {
                    complain(&format!("{}: {trouble}", process.name));
                    outcome = Outcome::Failed;
                }
            }
        }
        if gone == processes.all.len() {
            return Err(processes.nobody());
        }
        Ok(outcome)
    }
}

/// Hands on what one process tells, until it ends or nobody listens any more.
fn follow(client: &Client, path: &str, index: usize, sender: &SyncSender<(usize, Heard)>) {
    let mut hand_on = |event| sender.send((index, Heard::Event(event))).is_ok();
    let ended = client
        .stream(path)
        .and_then(|mut lines| read_events(client, &mut lines, &mut hand_on));
    let _nobody_listens = sender.send((index, Heard::Ended(ended)));
}

/// Reads events until the stream ends, well if the process said that it would, or `take` wants no more.
fn read_events(
    client: &Client,
    lines: &mut Lines,
    take: &mut impl FnMut(Event) -> bool,
) -> Result<(), Trouble> {
    let mut event = Event::default();
    let mut has_said_end = false;
    while let Some(line) = lines.next().map_err(|error| client.broken(error))? {
        if !event.add(&line) {
            continue;
        }
        let whole = std::mem::take(&mut event);
        has_said_end |= whole.word == "ended";
        if !take(whole) {
            return Ok(());
        }
    }
    if has_said_end {
        Ok(())
    } else {
        Err(Trouble::Broken("the process ended it".to_owned()))
    }
}

impl Event {
    /// Takes a line of the stream; true: it ends the event, which is not empty.
    fn add(&mut self, line: &str) -> bool {
        if line.is_empty() {
            return !self.data.is_empty();
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.word),
            "data" if self.data.len() + value.len() <= CTL_LINE_BYTES_MAX => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            // A comment, or what is of no use here.
            _ => {}
        }
        false
    }

    /// Whether it tells something that happened, and not of the look itself.
    fn counts(&self) -> bool {
        !matches!(&*self.word, "looking" | "bound" | "left_out" | "ended")
    }

    /// Prints it in one line. `process`: which one told it, if there are several.
    fn write(
        &self,
        screen: &mut Screen,
        process: Option<&str>,
        is_json: bool,
    ) -> Result<(), Failure> {
        let members: Map<String, Value> = serde_json::from_str(&self.data).unwrap_or_else(|_| {
            // Not of this version: shown as it is.
            Map::from_iter([("text".to_owned(), self.data.clone().into())])
        });
        if is_json {
            let mut line = Map::from_iter([("what".to_owned(), self.word.clone().into())]);
            line.extend(process.map(|process| ("process".to_owned(), process.into())));
            line.extend(members);
            return Ok(screen.json_line(&Value::Object(line))?);
        }
        let style = match &*self.word {
            "not_matched" | "left_out" | "subscriptions_ended" | "going_away" => DOUBTFUL,
            "closed" => BAD,
            _ => Style::new(),
        };
        let process = process.map_or(String::new(), |process| format!("{process}  "));
        let line = format!("{process}{}", self.text(&members));
        let line = printable(&line);
        let line = match screen.width {
            Some(width) if self.is_long() => super::table::cut(&line, width),
            Some(_) | None => line.into_owned(),
        };
        writeln!(screen.out, "{style}{line}{style:#}")?;
        Ok(screen.out.flush()?)
    }

    /// Whether the line is cut to the terminal's width: the first of a look tells what was asked for, and may be very long.
    fn is_long(&self) -> bool {
        self.word == "looking"
    }

    /// `TIME  SESSION  WHAT  DETAILS`. What the rest of the line says already is left to `--json`.
    fn text(&self, members: &Map<String, Value>) -> String {
        let mut left = members.clone();
        let mut take = |name: &str| match left.remove(name) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text),
            Some(other) => Some(other.to_string()),
        };
        let at = take("at").and_then(|at| time_of_day(at.parse().ok()?));
        let session = take("session");
        let what = self.word.replace('_', " ");
        let details = match &*self.word {
            "matched" => {
                let key = take("routing_key").unwrap_or_default();
                let subscribed = take("subscribed_key").unwrap_or_default();
                let queued = take("queued").unwrap_or_default();
                let dropped = take("dropped").filter(|dropped| dropped != "0");
                let dropped =
                    dropped.map_or(String::new(), |dropped| format!(", {dropped} dropped"));
                let whose = members.get("account_id");
                if whose.is_some() && members.get("for_account_id") == whose {
                    take("for_account_id");
                }
                for of_key in ["exchange", "name", "subscription_key"] {
                    take(of_key);
                }
                format!("{key} -> {subscribed}: {queued} queued{dropped}")
            }
            "not_matched" => {
                let key = take("routing_key").unwrap_or_default();
                let why = take("why").unwrap_or_default();
                for of_key in ["exchange", "name"] {
                    take(of_key);
                }
                format!("{key}: {why}")
            }
            "bound" => {
                let exchange = take("exchange").unwrap_or_default();
                format!("{exchange} {}", take("key").unwrap_or_default())
            }
            "closed" => {
                let code = take("code").map_or(String::new(), |code| format!(" ({code})"));
                format!("{}{code}", take("reason").unwrap_or_default())
            }
            // Each is told again once it is in force.
            "looking" => match members
                .get("keys")
                .and_then(Value::as_array)
                .map(Vec::as_slice)
            {
                Some([_]) if take("keys").is_some() => "1 key to bind".to_owned(),
                Some(keys) if take("keys").is_some() => format!("{} keys to bind", keys.len()),
                Some(_) | None => String::new(),
            },
            _ => String::new(),
        };
        let mut parts: Vec<String> = at.into_iter().chain(session).collect();
        parts.push(what);
        parts.push(details);
        let shown = left.iter().map(|(name, value)| (name, plain(value)));
        let shown = shown.filter(|(_, value)| !value.is_empty());
        parts.extend(shown.map(|(name, value)| format!("{name}={value}")));
        parts.retain(|part| !part.is_empty());
        parts.join("  ")
    }
}

/// A value without JSON's marks: of a list its members with commas between, of an object its values with blanks.
fn plain(value: &Value) -> String {
    let join = |parts: Vec<String>, between| parts.join(between);
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(all) => join(all.iter().map(plain).collect(), ","),
        Value::Object(members) => join(members.values().map(plain).collect(), " "),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// The time of day in UTC of Unix milliseconds, if there is such a day.
fn time_of_day(milliseconds: u64) -> Option<String> {
    let nanoseconds = i128::from(milliseconds) * 1_000_000;
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()?;
    let form = format_description!("[hour]:[minute]:[second].[subsecond digits:3]");
    at.format(form).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_put_together_from_lines() {
        let mut event = Event::default();
        for line in [
            ": still here",
            "event: closed",
            "id: 7",
            "data: {\"a\":",
            "data:1}",
        ] {
            assert!(!event.add(line), "{line}");
        }
        assert!(event.add(""));
        assert_eq!((&*event.word, &*event.data), ("closed", "{\"a\":\n1}"));
        assert!(!Event::default().add(""), "nothing is no event");
    }

    #[test]
    fn a_line_tells_when_who_what_and_why() {
        for (word, data, expected) in [
            (
                "not_matched",
                r#"{"at":1700000000123,"session":"192.0.2.7:5","routing_key":"call.a.X.1","why":"account not this session's","name":"X","account_id":"b"}"#,
                "22:13:20.123  192.0.2.7:5  not matched  call.a.X.1: account not this session's  account_id=b",
            ),
            (
                "matched",
                r#"{"at":0,"routing_key":"k","subscribed_key":"call.*.*","queued":1,"dropped":2,"account_id":"a","for_account_id":"a","subscription_key":"s"}"#,
                "00:00:00.000  matched  k -> call.*.*: 1 queued, 2 dropped  account_id=a",
            ),
            (
                "command",
                r#"{"action":"subscribe","bindings":["a","b"],"outcome":"ok","none":null}"#,
                "command  action=subscribe  bindings=a,b  outcome=ok",
            ),
            (
                "looking",
                r#"{"keys":[{"exchange":"callevt","key":"call.X"},{"exchange":"e","key":"k"}],"stopped":[],"there":true}"#,
                "looking  2 keys to bind  there=true",
            ),
            (
                "later",
                r#"{"list":[{"exchange":"e","key":"k"},7],"none":null}"#,
                "later  list=e k,7",
            ),
            (
                "bound",
                r#"{"exchange":"callevt","key":"call.X.*"}"#,
                "bound  callevt call.X.*",
            ),
            ("closed", r#"{"reason":"peer"}"#, "closed  peer"),
            (
                "closed",
                r#"{"reason":"kicked","code":4000,"at":"x"}"#,
                "closed  kicked (4000)",
            ),
            (
                "later",
                "no JSON \u{1b}[2J",
                "later  text=no JSON \u{1b}[2J",
            ),
        ] {
            let event = Event {
                word: word.to_owned(),
                data: data.to_owned(),
            };
            let members = serde_json::from_str(data)
                .unwrap_or_else(|_| Map::from_iter([("text".to_owned(), data.into())]));
            assert_eq!(event.text(&members), expected);
        }
    }
}
