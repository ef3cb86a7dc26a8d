//! The log: one line an event, in UTC, on stderr; the level can change while running. `lines` owns the two forms of a
//! line.
//!
//! The thread that logs makes the text of a line and queues it; the thread "log" writes it, because a write to a pipe
//! that nobody reads blocks.
//!
//! Invariants: a thread that logs never waits. Lines that wait to be written have at most [`LOG_QUEUE_BYTES_MAX`]; a
//! line beyond that is lost and counted, and the log says where it is missing. So is a line that cannot be written,
//! because the disk is full or the reader is gone. Lines keep their order and the time at which they were logged.
//! Libraries may log errors only, because the AMQP client logs its login below that level (AMQP rail 9); what they
//! would say, we log ourselves. A broker chooses the errors of that client: it is a [`GuardedLibrary`].
//!
//! A log line is one line and shows what is in it: characters that are not printable (control characters, line ends of
//! any kind, marks of direction, combining marks) are escaped in the one place where all lines are made.

mod lines;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::io;
use std::panic::{self, PanicHookInfo};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use log::{Level, LevelFilter, Log, Metadata, Record};
use simple_logger::SimpleLogger;

pub use lines::LogFormat;

use lines::{Line, LineWriter};

use crate::limits::{LOG_FLUSH_MAX, LOG_QUEUE_BYTES_MAX};
use crate::metrics::page::write_metric;

static TALLY: Tally = Tally {
    queued_bytes: AtomicUsize::new(0),
    lost: AtomicU64::new(0),
    lost_untold: AtomicU64::new(0),
};

static IS_FOR_PROGRAMS: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Set on the thread "log": its panic means that a line cannot be written, and must not become another line.
    static WRITES_THE_LOG: Cell<bool> = const { Cell::new(false) };
}

/// A library whose lines are not ours to trust: a peer chooses what is in them and how many there are.
#[derive(Clone, Copy, Debug)]
pub struct GuardedLibrary {
    /// The first part of its targets.
    pub target: &'static str,
    /// The level that it is held to, whatever the operator's level is.
    pub level: LevelFilter,
    /// Returns the line that is written in place of one of its lines; `None`: no line is.
    pub line: fn(&str) -> Option<String>,
    /// Returns a text that its code may have made, such as that of a panic, without the secrets in it.
    pub without_secrets: fn(&str) -> String,
}

/// Starts the log at `level`, in this format, and makes every panic a line of it. To be called once, before anything is
/// logged.
///
/// # Errors
/// The system refused the thread.
pub fn start(level: LevelFilter, format: LogFormat, library: GuardedLibrary) -> io::Result<()> {
    let printer = SimpleLogger::new()
        .with_level(LevelFilter::Error)
        .with_module_level("blackhole", LevelFilter::Debug)
        .with_module_level(library.target, library.level)
        .without_timestamps();
    let writer = Arc::new(LineWriter::new(printer, format));
    IS_FOR_PROGRAMS.store(writer.is_for_programs(), Ordering::Relaxed);
    let (queue, entries) = unbounded();
    let logger = QueueingLogger {
        writer: writer.clone(),
        library,
        queue,
    };
    // A second call, as in a test that starts twice in one process, leaves the first logger in place.
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(&entries, &writer))?;
        panic::set_hook(Box::new(move |panic| {
            log_panic(panic, library.without_secrets);
        }));
    }
    set_level(level);
    Ok(())
}

/// Whether each line on stderr must be one of the log's, because a program reads them: they are JSON, or go to the
/// journal. False before [`start`].
#[must_use]
pub fn is_for_programs() -> bool {
    IS_FOR_PROGRAMS.load(Ordering::Relaxed)
}

/// From now on lines are logged that are at least as grave as `level`.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Waits until every line logged before is written, for [`LOG_FLUSH_MAX`] at most. Returns false when some are not:
/// writing to stderr would wait too.
#[must_use]
pub fn flush() -> bool {
    log::logger().flush();
    TALLY.queued_bytes.load(Ordering::Relaxed) == 0
}

/// Appends what the log counts to `out`, in Prometheus' text format.
pub fn write_metrics(out: &mut String) {
    write_metric(
        out,
        "log_lines_dropped_total",
        "counter",
        "Lines of the log that were lost: stderr was not read fast enough, or could not be written.",
        TALLY.lost.load(Ordering::Relaxed),
    );
}

/// Figures that the threads that log share with the one that writes.
struct Tally {
    /// Bytes of lines that wait or are being written, at most [`LOG_QUEUE_BYTES_MAX`].
    queued_bytes: AtomicUsize,
    /// Lines lost since the start.
    lost: AtomicU64,
    /// Those of them that the log has not told of yet.
    lost_untold: AtomicU64,
}

impl Tally {
    /// Takes room for a line in the queue. Returns false when there is none.
    fn take_room(&self, bytes: usize) -> bool {
        let more = |queued: usize| Some(queued + bytes).filter(|sum| *sum <= LOG_QUEUE_BYTES_MAX);
        self.queued_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok()
    }

    fn give_room_back(&self, bytes: usize) {
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn lose_one(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.lost_untold.fetch_add(1, Ordering::Relaxed);
    }
}

enum Entry {
    Line(QueuedLine),
    /// A thread waits until the lines before it are written.
    Flush(Sender<()>),
}

struct QueuedLine {
    at: SystemTime,
    level: Level,
    target: Box<str>,
    text: Box<str>,
    /// Lines that were lost between the one before and this one.
    lost_before: u64,
}

impl QueuedLine {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.target.len() + self.text.len()
    }

    fn as_line(&self) -> Line<'_> {
        Line {
            at: self.at,
            level: self.level,
            target: &self.target,
            message: &self.text,
        }
    }
}

struct QueueingLogger {
    writer: Arc<LineWriter>,
    library: GuardedLibrary,
    /// Bounded by [`Tally::take_room`].
    queue: Sender<Entry>,
}

impl Log for QueueingLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.writer.filter().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut text = record.args().to_string();
        if is_of(self.library.target, record.target()) {
            match (self.library.line)(&text) {
                Some(line) => text = line,
                None => return,
            }
        }
        let mut line = QueuedLine {
            at: SystemTime::now(),
            level: record.level(),
            target: record.target().into(),
            text: escaped(text).into(),
            lost_before: 0,
        };
        if !TALLY.take_room(line.bytes()) {
            return TALLY.lose_one();
        }
        line.lost_before = TALLY.lost_untold.swap(0, Ordering::Relaxed);
        // The writing thread does not end before the process.
        let _written = self.queue.send(Entry::Line(line));
    }

    fn flush(&self) {
        let (done, written) = bounded(1);
        if self.queue.send(Entry::Flush(done)).is_ok() {
            let _in_time = written.recv_timeout(LOG_FLUSH_MAX);
        }
    }
}

/// Whether `target` is that of `library` or of a module in it.
fn is_of(library: &str, target: &str) -> bool {
    target
        .strip_prefix(library)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Returns `text` with the characters that are not printable escaped as in a string literal; quotes and backslashes
/// stay. Linear, and without a copy where there is nothing to escape.
fn escaped(text: String) -> String {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~');
    if text.bytes().all(is_plain) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            ' '..='~' => escaped.push(character),
            _ => escaped.extend(character.escape_debug()),
        }
    }
    escaped
}

/// The thread "log".
fn write_all(entries: &Receiver<Entry>, writer: &LineWriter) {
    WRITES_THE_LOG.set(true);
    for entry in entries {
        match entry {
            Entry::Line(line) => {
                tell_lost(line.lost_before, line.at, writer);
                if !writer.write(&line.as_line()) {
                    TALLY.lose_one();
                }
                TALLY.give_room_back(line.bytes());
            }
            Entry::Flush(done) => {
                let lost = TALLY.lost_untold.swap(0, Ordering::Relaxed);
                tell_lost(lost, SystemTime::now(), writer);
                let _still_waiting = done.send(());
            }
        }
    }
}

fn tell_lost(lost: u64, at: SystemTime, writer: &LineWriter) {
    let message = format!("{lost} lines of the log are missing here: stderr did not take them");
    let line = Line {
        at,
        level: Level::Warn,
        target: module_path!(),
        message: &message,
    };
    if lost > 0 && !writer.write(&line) {
        TALLY.lost_untold.fetch_add(lost, Ordering::Relaxed);
    }
}

/// Logs a panic, with the backtrace that RUST_BACKTRACE asks for, and waits until it is written, because the process
/// may be about to end.
fn log_panic(panic: &PanicHookInfo<'_>, without_secrets: fn(&str) -> String) {
    if WRITES_THE_LOG.get() {
        return;
    }
    let payload = panic.payload();
    let why = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let why = without_secrets(why);
    let thread = thread::current();
    let name = thread.name().unwrap_or("without a name");
    let place = panic.location().map(ToString::to_string);
    let place = place.as_deref().unwrap_or("an unknown place");
    log::error!("the thread {name} panicked at {place}: {why}");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        for line in backtrace.to_string().lines() {
            log::error!("{line}");
        }
    }
    log::logger().flush();
}
