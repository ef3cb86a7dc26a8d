//! The bounds of a broker's frames and deliveries, and the breaches of them, each of which ends the connection.

/// Largest frame, header and end included. We ask the broker for it, and hold the broker to it. It is its own default.
pub(in crate::amqp) const FRAME_BYTES_MAX: u32 = 131_072;
/// Seconds between heartbeats; a broker that is silent for twice as long is gone.
pub(in crate::amqp) const HEARTBEAT_SECONDS: u16 = 5;
/// Largest payload of a method frame. The longest that a broker sends a consumer has some 800 bytes, and
/// `connection.start` about 600.
pub(super) const METHOD_BYTES_MAX: usize = 16 << 10;
/// Largest body of one delivery; a larger one is swallowed, and its delivery dropped by the consumer.
pub(super) const BODY_BYTES_MAX: u64 = 64 << 20;
/// Bytes of bodies read but not yet taken by the consumer. The prefetch bounds their number, not their size. A body
/// that would go beyond it is swallowed if it is too large for an event anyway ([`crate::event::BODY_BYTES_MAX`]);
/// otherwise the connection is given up, which tells every session of a gap.
pub(super) const BACKLOG_BYTES_MAX: u64 = 256 << 20;
/// Channels in the middle of a delivery, at most: one of ours consumes. Beyond it the connection is given up.
pub(super) const CONTENTS_MAX: usize = 16;
/// Deliveries with a swallowed body that the consumer has not taken yet: the largest prefetch. Beyond it the connection
/// is given up.
pub(super) const SWALLOWED_MAX: usize = u16::MAX as usize;
/// Type, channel and size.
pub(super) const FRAME_HEADER_BYTES: usize = 7;
pub(super) const FRAME_END_BYTES: usize = 1;

/// What a broker must not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::amqp) enum Violation {
    #[error("what answers on this port speaks TLS: amqps:// in the URL, or another port")]
    Tls,
    #[error("the peer does not speak AMQP 0-9-1 (octet {0} where a frame begins)")]
    NotAFrame(u8),
    #[error("a frame of {0} bytes, above the negotiated {FRAME_BYTES_MAX}")]
    FrameTooLarge(u32),
    #[error("a method frame of {0} bytes, above {METHOD_BYTES_MAX}")]
    MethodTooLarge(usize),
    #[error("a body of {0} bytes that belongs to no delivery")]
    BodyTooLarge(u64),
    #[error("a swallowed body that goes on for {0} bytes beyond its announced size")]
    BodyTooLong(u64),
    #[error("deliveries on more than {CONTENTS_MAX} channels at once")]
    TooManyContents,
    #[error("more than {SWALLOWED_MAX} deliveries with a swallowed body wait to be taken")]
    TooManySwallowed,
    #[error("{0} bytes of deliveries wait to be taken, above {BACKLOG_BYTES_MAX}")]
    BacklogTooLarge(u64),
    #[error("method {0}.{1}, which only clients send")]
    ClientMethod(u16, u16),
    #[error("a frame that ends before its fields do")]
    Truncated,
}
