//! The effective configuration: one typed value, made once from defaults, `--config FILE` and the command line.
//!
//! Key names are the platform's (PROTOCOL 9). `Option` means "no limit" where the file says `0`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Everything an operator can set.
#[derive(Clone, Debug)]
pub struct Config {
    /// `ip`: address of the websocket listener. Default `0.0.0.0`.
    pub ip: IpAddr,
    /// `port`: 5555; 0 takes a free one.
    pub port: u16,
    /// `reuse_port`: several processes share the port.
    pub reuse_port: bool,
    /// `admin`: address of the admin listener; none by default.
    pub admin: Option<SocketAddr>,
    /// `amqp`: broker URLs, tried in turn. Contain passwords: never logged.
    pub amqp: Vec<String>,
    /// `source`: where events come from.
    pub source: SourceConfig,
    /// `auth`: who decides who may do what. None: the server refuses to start.
    pub auth: AuthConfig,
    /// `style`: event style of sessions that do not choose one.
    pub style: Style,
    /// `log_level`: error, warn, info, debug.
    pub log_level: log::LevelFilter,
    /// `max_connections`: sessions in all. Default: from RLIMIT_NOFILE.
    pub max_connections: Option<usize>,
    /// `max_connections_per_ip`.
    pub max_connections_per_ip: Option<usize>,
    /// `max_subscriptions`: of one session, 256.
    pub max_subscriptions: Option<usize>,
    /// `max_message_bytes`: of one command, 65536; above it the session is closed with 1009.
    pub max_message_bytes: Option<usize>,
    /// `max_metadata_bytes`: of `data.metadata`, 4096.
    pub max_metadata_bytes: Option<usize>,
    /// `max_queued_messages`: events waiting for one session under policy `drop`, 50.
    pub max_queued_messages: Option<usize>,
    /// `max_outbox_bytes`: waiting for one session under policy `close`, 1 MiB.
    pub max_outbox_bytes: Option<usize>,
    /// `max_outboxes_bytes`: waiting for all sessions, 256 MiB.
    pub max_outboxes_bytes: Option<usize>,
    /// `slow_consumer`: `close` or `drop`.
    pub slow_consumer: SlowConsumerPolicy,
    /// `gap_notices`: whether losses are announced to the sessions. Default true.
    pub gap_notices: bool,
    /// `request_timeout_ms`: for a handshake, and for the broker's answer to a subscribe. 10,000.
    pub request_timeout: Duration,
    /// `send_timeout_ms`: without progress while frames wait. 5,000.
    pub send_timeout: Duration,
    /// `auth_timeout_ms`: until a session must have authenticated. 30,000.
    pub auth_timeout: Duration,
    /// `rate_limit_burst`: commands a session may send at once, 100.
    pub rate_limit_burst: u32,
    /// `rate_limit_per_second`: commands a session gets back each second, 10.
    pub rate_limit_per_second: u32,
    /// `drain_seconds`: over which the sessions are closed at SIGTERM, 10.
    pub drain: Duration,
    /// `allowed_origins`: `Origin` values that may connect; empty: all.
    pub allowed_origins: Vec<String>,
    /// `families` and what switches them: see [`crate::routing::families`].
    pub families: crate::routing::families::FamilyOptions,
    /// `prefetch`: unacknowledged deliveries, 2048.
    pub prefetch: u16,
    /// `max_queue_length`: `x-max-length` of our queue on the broker, 100,000.
    pub max_queue_length: Option<u32>,
}

/// `source`.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceConfig {
    /// RabbitMQ.
    Amqp,
    /// Made-up call events: `demo_rate` events a second (default 2.0) round-robin over `demo_accounts` accounts (default 1).
    Demo {
        /// Events a second.
        rate: f64,
        /// Accounts they are spread over.
        accounts: u32,
    },
    /// JSON lines from a file.
    Replay {
        /// The file.
        file: PathBuf,
    },
}

/// `auth`.
#[derive(Clone, Debug, PartialEq)]
pub enum AuthConfig {
    /// `tokens:FILE`.
    Tokens(PathBuf),
    /// `insecure`: any token for any account. Development only.
    Insecure,
}

/// The shape of an event frame (PROTOCOL 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Style {
    /// `args`: the body as published.
    Piston,
    /// `data`: the body normalised as Kazoo 4 does.
    Kazoo,
}

/// What happens to a session that reads too slowly (PROTOCOL 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowConsumerPolicy {
    /// Closed with 4408.
    Close,
    /// New events are dropped and counted.
    Drop,
}
