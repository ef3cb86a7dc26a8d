//! The forms of a line, and the one place that writes it.
//!
//! | to | [`LogFormat::Text`] | [`LogFormat::Json`] |
//! |---|---|---|
//! | anything | `2026-11-26T12:00:00.123Z INFO  [TARGET] MESSAGE` | `{"time":"2026-11-26T12:00:00.123Z","level":"info","target":"TARGET","message":"MESSAGE"}` |
//! | the journal | `<6>INFO  [TARGET] MESSAGE` | `<6>` and the same object |
//!
//! The message is the same text in both forms. The journal reads the number as syslog's priority (sd-daemon(3)), and
//! has a time of its own.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use log::{Level, Log, Record};
use serde::Serialize;
use simple_logger::SimpleLogger;
use time::OffsetDateTime;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;

/// The format of [`SimpleLogger`], which itself would write the time of the writing.
const TIMESTAMP: StaticFormatDescription =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// Whom the log is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// People.
    #[default]
    Text,
    /// Programs: one JSON object a line.
    Json,
}

/// A line to be written.
pub(super) struct Line<'a> {
    /// When it was logged.
    pub(super) at: SystemTime,
    pub(super) level: Level,
    pub(super) target: &'a str,
    /// Printable characters only.
    pub(super) message: &'a str,
}

/// The names of this object's members are the contract of `--log-format json`.
#[derive(Serialize)]
struct JsonLine<'a> {
    time: &'a str,
    level: &'static str,
    target: &'a str,
    message: &'a str,
}

/// Writes lines to stderr.
pub(super) struct LineWriter {
    printer: SimpleLogger,
    format: LogFormat,
    /// Whether the journal reads stderr.
    is_journal: bool,
}

impl LineWriter {
    /// `printer` writes the part behind the time of lines for people.
    pub(super) fn new(printer: SimpleLogger, format: LogFormat) -> Self {
        let stream = std::env::var("JOURNAL_STREAM").ok();
        let is_journal = stream.is_some_and(|stream| is_stream(&stream, io::stderr().as_fd()));
        Self {
            printer,
            format,
            is_journal,
        }
    }

    /// Whether a line that is none of these would be taken for something else.
    pub(super) fn is_for_programs(&self) -> bool {
        self.is_journal || self.format == LogFormat::Json
    }

    /// What the log takes.
    pub(super) fn filter(&self) -> &impl Log {
        &self.printer
    }

    /// Writes the line. Returns whether it could be written.
    pub(super) fn write(&self, line: &Line<'_>) -> bool {
        let Ok(time) = OffsetDateTime::from(line.at).format(TIMESTAMP) else {
            return false;
        };
        let mut text = String::new();
        if self.is_journal {
            text += priority(line.level);
        }
        match self.format {
            LogFormat::Json => {
                let object = JsonLine {
                    time: &time,
                    level: level_name(line.level),
                    target: line.target,
                    message: line.message,
                };
                let Ok(object) = serde_json::to_string(&object) else {
                    return false;
                };
                text += &object;
                text.push('\n');
                io::stderr().write_all(text.as_bytes()).is_ok()
            }
            LogFormat::Text => {
                if !self.is_journal {
                    text += &time;
                    text.push(' ');
                }
                io::stderr().write_all(text.as_bytes()).is_ok() && self.print(line)
            }
        }
    }

    /// The printer's macro panics when stderr cannot be written to.
    fn print(&self, line: &Line<'_>) -> bool {
        let print = || {
            self.printer.log(
                &Record::builder()
                    .level(line.level)
                    .target(line.target)
                    .args(format_args!("{}", line.message))
                    .build(),
            );
        };
        catch_unwind(AssertUnwindSafe(print)).is_ok()
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// syslog's numbers for err, warning, info and debug.
fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// Whether `journal_stream`, `DEVICE:INODE` in decimal (systemd.exec(5)), names this descriptor. A service may have its
/// stderr elsewhere than systemd had put it, and children inherit the variable.
fn is_stream(journal_stream: &str, descriptor: BorrowedFd<'_>) -> bool {
    let metadata = descriptor
        .try_clone_to_owned()
        .and_then(|descriptor| File::from(descriptor).metadata());
    let numbers = journal_stream
        .split_once(':')
        .and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    match (metadata, numbers) {
        (Ok(found), Some(named)) => (found.dev(), found.ino()) == named,
        (Err(_), _) | (_, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_device_and_inode_together() {
        let (pipe, other) = io::pipe().expect("a pipe");
        let (elsewhere, _end) = io::pipe().expect("a pipe");
        let metadata = File::from(pipe.as_fd().try_clone_to_owned().expect("a descriptor"))
            .metadata()
            .expect("it is open");
        let (device, inode) = (metadata.dev(), metadata.ino());
        let name = format!("{device}:{inode}");
        for (journal_stream, descriptor, expected) in [
            (&*name, pipe.as_fd(), true),
            (&name, other.as_fd(), true),
            (&name, elsewhere.as_fd(), false),
            (&format!("{}:{inode}", device + 1), pipe.as_fd(), false),
            (&format!("{device}:{}", inode + 1), pipe.as_fd(), false),
            (&format!("{device}"), pipe.as_fd(), false),
            (&format!("{name}:1"), pipe.as_fd(), false),
            ("", pipe.as_fd(), false),
            ("a:b", pipe.as_fd(), false),
        ] {
            assert_eq!(
                is_stream(journal_stream, descriptor),
                expected,
                "{journal_stream}"
            );
        }
    }
}
