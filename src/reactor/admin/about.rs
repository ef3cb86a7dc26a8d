//! What a process is: what stays the same while it runs, and what it is called, for `GET /v2/status`.

use std::net::SocketAddr;
use std::time::Duration;

/// What stays the same while the process runs.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// `node_name`.
    pub node: String,
    /// Where websocket clients connect, as it was bound, so it may be `0.0.0.0`; `None`: with TLS only. The server fills it
    /// in.
    pub websocket: Option<SocketAddr>,
    /// Where they connect with TLS; `None`: nowhere. The server fills it in.
    pub websocket_tls: Option<SocketAddr>,
    /// The kinds of `auth`: tokens, jwt, crossbar, insecure.
    pub auth: Vec<&'static str>,
    /// The kind of `source`: amqp, demo, replay.
    pub source: &'static str,
    /// An account for which the source makes up events.
    pub demo_account: Option<String>,
    /// The history is also in a stream of the broker.
    pub has_stream: bool,
    /// How long the sessions are told to move, and closed, at SIGTERM.
    pub drain: Duration,
}
