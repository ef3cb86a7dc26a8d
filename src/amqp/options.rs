//! What the AMQP thread is told at its start.

use std::time::Duration;

use super::tls::TlsFiles;
use crate::routing::families::Exchange;

/// What the AMQP thread is told at its start.
#[derive(Clone)]
pub struct AmqpOptions {
    /// Brokers, tried in turn. The URLs contain passwords: they are never logged, and the struct has no `Debug`.
    pub urls: Vec<String>,
    /// For those of them with TLS. Read again for each connection.
    pub tls: TlsFiles,
    /// Unacknowledged deliveries, at least 1: how many events may be under way from the broker to the loop.
    pub prefetch: u16,
    /// `x-max-length` of our queue; above it the broker drops the oldest events. `None`: the broker's memory is the
    /// limit.
    pub max_queue_length: Option<u32>,
    /// `x-expires` of our queue, at least 1 ms: so long it outlives its connection, and a crash.
    pub queue_expires: Duration,
    /// Our queue is a durable one, for brokers that allow no other (PROTOCOL 10).
    pub durable_queue: bool,
    /// Exchanges whose kind or durability is known; any other is declared as topic and non-durable. Each is declared
    /// when a binding first names it.
    pub exchanges: Vec<Exchange>,
    /// Longest pause between tries to connect.
    pub pause_max: Duration,
    /// Longest wait for one answer of a broker, whether it sends heartbeats or not; then the next broker is tried.
    pub answer_max: Duration,
}
