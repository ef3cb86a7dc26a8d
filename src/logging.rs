//! The log: one line an event, in UTC, on stderr; the level can change while running.
//!
//! Invariant: libraries are held to their errors, because the AMQP client logs its login below that level (AMQP
//! rail 9); all that they would say is said by us.

use log::LevelFilter;
use simple_logger::SimpleLogger;

/// Starts the log at `level`. To be called once, before anything is logged.
pub fn start(level: LevelFilter) {
    let (client, client_level) = crate::amqp::CLIENT_LOG;
    // A second call, as in a test that starts twice in one process, leaves the first logger in place.
    let _already_started = SimpleLogger::new()
        .with_level(LevelFilter::Error)
        .with_module_level("blackhole", LevelFilter::Debug)
        .with_module_level(client, client_level)
        .with_utc_timestamps()
        .init();
    set_level(level);
}

/// Logs from now on what is at least as grave as `level`.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}
