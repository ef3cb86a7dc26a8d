//! What the threads of the stream are told at their start.

use std::time::Duration;

use super::super::tls::TlsFiles;
use crate::routing::families::Exchange;

/// What the threads are told at their start.
#[derive(Clone)]
pub struct StreamOptions {
    /// Brokers, tried in turn. The URLs contain passwords: they are never logged, and the struct has no `Debug`.
    pub urls: Vec<String>,
    /// For those of them with TLS.
    pub tls: TlsFiles,
    /// The name of the stream, at most [`NAME_BYTES_MAX`].
    pub name: String,
    /// `x-max-age`, as RabbitMQ writes it: `1h`.
    pub max_age: String,
    /// `x-max-length-bytes`.
    pub max_bytes: u64,
    /// Exchanges whose kind or durability is known.
    pub exchanges: Vec<Exchange>,
    /// Longest wait for one answer of a broker.
    pub answer_max: Duration,
}

/// Longest name of a stream; that of its witness is a little longer.
pub const NAME_BYTES_MAX: usize = 240;
