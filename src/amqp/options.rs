//! What the AMQP thread is told at its start.

use std::time::Duration;

use crate::routing::families::Exchange;

/// What the AMQP thread is told at its start.
#[derive(Clone)]
pub struct AmqpOptions {
    /// Brokers, tried in turn. Contain passwords: never logged, and there is no `Debug`.
    pub urls: Vec<String>,
    /// Unacknowledged deliveries, at least 1: how many events may be under way from the broker to the loop.
    pub prefetch: u16,
    /// `x-max-length` of our queue; above it the broker drops the oldest. None: the broker's memory is the limit.
    pub max_queue_length: Option<u32>,
    /// Exchanges that are not topic and non-durable, or simply all; declared when a binding first names them.
    pub exchanges: Vec<Exchange>,
    /// Longest wait for one answer of a broker, heartbeats or not; then the next one is tried.
    pub answer_max: Duration,
}
