//! Why a session ends: close code, reason text, word of the log and counter, in one list (PROTOCOL 3).

use crate::metrics::Metrics;

/// Why a session is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer closed. It gets its own code back, or none when it sent none.
    Peer,
    /// 1000, as the platform's own server does: the client has sent no frame of its own for `idle_timeout_ms`.
    Idle,
    /// 1001: the process drains.
    Drain,
    /// 1001: a ping was not answered in `pong_timeout_ms`. The close frame is for a client that lives and does not answer
    /// pings: it connects again, and its author learns why. The connection ends without waiting for it.
    Dead,
    /// 1002: the client broke RFC 6455.
    Protocol,
    /// 1003: a binary message.
    Binary,
    /// 1007: text that is not UTF-8.
    InvalidText,
    /// 1007: a deflated message that does not inflate.
    Corrupt,
    /// 1008: the rate limit refused too many commands in a row.
    RateLimit,
    /// 1008: the client never authenticated.
    NeverAuthenticated,
    /// 1008: the client began a message and did not finish it in `message_timeout_ms`.
    MessageTimeout,
    /// 1008, or no close frame in a handshake: what had arrived in part, in all or of one address, was over its bound, and
    /// this connection had most of it.
    PartialsFull,
    /// 1008, or what the operator chose: closed on the admin address.
    Operator,
    /// 1009: a message over the size limit.
    TooBig,
    /// 4401: the token expired, or is no longer valid.
    Expired,
    /// 4408: frames wait and the peer does not read.
    SlowConsumer,
    /// 4408: all outboxes together were over their limit, and this one was the largest.
    OutboxesFull,
    /// No websocket: the connection ended with an HTTP response.
    Http,
    /// No close frame: the address has as many connections as it may, and the request was not whole.
    NoPlace,
    /// 503 and no close frame: the process is full, and this was the oldest unfinished handshake of the address with most of
    /// them.
    Evicted,
    /// No close frame: a connection of the admin address that waited for a request made room for another.
    AdminEvicted,
    /// No close frame: an asker of the admin address does not read its answer.
    AdminSlow,
    /// No close frame: the handshake took too long.
    HandshakeTimeout,
    /// No close frame: a PROXY header must come first, and something else came.
    NoProxyHeader,
    /// No close frame: the PROXY header was malformed.
    BadProxyHeader,
    /// No close frame: the connection broke, or ended without one.
    Lost,
}

impl CloseReason {
    /// The code and the reason text of the close frame; `None`: no frame is sent, or the peer's own is echoed.
    #[must_use]
    pub fn frame(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Idle => Some((1000, "idle timeout")),
            Self::Drain => Some((1001, "going away")),
            Self::Dead => Some((1001, "ping timeout")),
            Self::Protocol => Some((1002, "protocol violation")),
            Self::Binary => Some((1003, "binary messages are not supported")),
            Self::InvalidText => Some((1007, "invalid UTF-8")),
            Self::Corrupt => Some((1007, "invalid compressed data")),
            Self::RateLimit => Some((1008, "rate limit exceeded")),
            Self::NeverAuthenticated => Some((1008, "authentication timeout")),
            Self::MessageTimeout => Some((1008, "message timeout")),
            Self::PartialsFull => Some((1008, "too many unfinished messages")),
            Self::Operator => Some((1008, "closed by the operator")),
            Self::TooBig => Some((1009, "message too big")),
            Self::Expired => Some((4401, "token expired")),
            Self::SlowConsumer | Self::OutboxesFull => Some((4408, "slow consumer")),
            Self::Peer
            | Self::Http
            | Self::NoPlace
            | Self::Evicted
            | Self::AdminEvicted
            | Self::AdminSlow
            | Self::HandshakeTimeout
            | Self::NoProxyHeader
            | Self::BadProxyHeader
            | Self::Lost => None,
        }
    }

    /// The word for this reason in the log.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Peer => "closed by the peer",
            Self::Idle => "idle timeout",
            Self::Drain => "drain",
            Self::Dead => "ping timeout",
            Self::Protocol => "protocol violation",
            Self::Binary => "binary message",
            Self::InvalidText => "invalid UTF-8",
            Self::Corrupt => "invalid compressed data",
            Self::RateLimit => "rate limit",
            Self::NeverAuthenticated => "never authenticated",
            Self::MessageTimeout => "message timeout",
            Self::PartialsFull => "unfinished messages, largest of all",
            Self::Operator => "closed by the operator",
            Self::TooBig => "message too big",
            Self::Expired => "token expired",
            Self::SlowConsumer => "slow consumer",
            Self::OutboxesFull => "slow consumer, largest of all outboxes",
            Self::Http => "HTTP response sent",
            Self::NoPlace => "too many connections from this address",
            Self::Evicted | Self::AdminEvicted => "its place went to another",
            Self::AdminSlow => "asker that does not read",
            Self::HandshakeTimeout => "handshake timeout",
            Self::NoProxyHeader => "no PROXY header",
            Self::BadProxyHeader => "malformed PROXY header",
            Self::Lost => "connection lost",
        }
    }

    /// Counts one more end for this reason. `was_open`: of a session, not of a connection that never became one.
    pub fn count(self, was_open: bool, metrics: &mut Metrics) {
        if was_open {
            *self.counter_of_session(metrics) += 1;
        } else if let Some(counter) = self.counter_of_handshake(metrics) {
            *counter += 1;
        }
    }

    fn counter_of_session(self, metrics: &mut Metrics) -> &mut u64 {
        match self {
            Self::Peer => &mut metrics.closes_normal_total,
            Self::Idle => &mut metrics.closes_idle_total,
            Self::Drain => &mut metrics.closes_drain_total,
            Self::Dead => &mut metrics.closes_dead_total,
            Self::Protocol => &mut metrics.closes_protocol_total,
            Self::Binary => &mut metrics.closes_binary_total,
            Self::InvalidText => &mut metrics.closes_invalid_text_total,
            Self::Corrupt => &mut metrics.closes_corrupt_total,
            Self::RateLimit => &mut metrics.closes_rate_limit_total,
            Self::NeverAuthenticated => &mut metrics.closes_never_authenticated_total,
            Self::MessageTimeout => &mut metrics.closes_message_timeout_total,
            Self::PartialsFull => &mut metrics.closes_partials_full_total,
            Self::Operator => &mut metrics.closes_operator_total,
            Self::TooBig => &mut metrics.closes_too_big_total,
            Self::Expired => &mut metrics.closes_expired_total,
            Self::SlowConsumer => &mut metrics.closes_slow_consumer_total,
            Self::OutboxesFull => &mut metrics.closes_outboxes_full_total,
            // The others end no session.
            Self::Lost
            | Self::Http
            | Self::NoPlace
            | Self::Evicted
            | Self::AdminEvicted
            | Self::AdminSlow
            | Self::HandshakeTimeout
            | Self::NoProxyHeader
            | Self::BadProxyHeader => &mut metrics.closes_lost_total,
        }
    }

    fn counter_of_handshake(self, metrics: &mut Metrics) -> Option<&mut u64> {
        Some(match self {
            // Answered, and counted then.
            Self::Http => return None,
            Self::NoPlace => &mut metrics.connections_dropped_ip_total,
            Self::Evicted => &mut metrics.handshakes_evicted_total,
            Self::AdminEvicted => &mut metrics.admin_connections_evicted_total,
            Self::AdminSlow => &mut metrics.admin_slow_total,
            Self::HandshakeTimeout => &mut metrics.handshake_timeouts_total,
            Self::NoProxyHeader => &mut metrics.proxy_headers_missing_total,
            Self::BadProxyHeader => &mut metrics.proxy_headers_malformed_total,
            Self::PartialsFull => &mut metrics.handshakes_partials_full_total,
            Self::Drain => &mut metrics.handshakes_drained_total,
            // The others end no handshake.
            Self::Lost
            | Self::Peer
            | Self::Idle
            | Self::Dead
            | Self::Protocol
            | Self::Binary
            | Self::InvalidText
            | Self::Corrupt
            | Self::RateLimit
            | Self::NeverAuthenticated
            | Self::MessageTimeout
            | Self::Operator
            | Self::TooBig
            | Self::Expired
            | Self::SlowConsumer
            | Self::OutboxesFull => &mut metrics.handshakes_lost_total,
        })
    }
}
