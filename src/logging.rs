//! The log: one line an event, in UTC, on stderr; the level can change while running.
//!
//! Invariants: libraries are held to their errors, because the AMQP client logs its login below that level (AMQP
//! rail 9); all that they would say is said by us. A log that cannot be written, its disk full or its reader gone,
//! costs the line and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};

use log::{LevelFilter, Log, Metadata, Record};
use simple_logger::SimpleLogger;

/// Starts the log at `level`. To be called once, before anything is logged.
pub fn start(level: LevelFilter) {
    let (client, client_level) = crate::amqp::CLIENT_LOG;
    let logger = SimpleLogger::new()
        .with_level(LevelFilter::Error)
        .with_module_level("blackhole", LevelFilter::Debug)
        .with_module_level(client, client_level)
        .with_utc_timestamps();
    // A second call, as in a test that starts twice in one process, leaves the first logger in place.
    let _already_started = log::set_boxed_logger(Box::new(Unfailing(logger)));
    set_level(level);
}

/// Logs from now on what is at least as grave as `level`.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// A logger whose stderr may be gone: the macro that it prints with panics then.
struct Unfailing(SimpleLogger);

impl Log for Unfailing {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let _lost_line = catch_unwind(AssertUnwindSafe(|| self.0.log(record)));
    }

    fn flush(&self) {
        self.0.flush();
    }
}
