//! One binding of the process's own queue on the broker, and the number of a request for it.

use std::sync::Arc;

use arcstr::ArcStr;

/// One (exchange, binding key) pair on the process's own queue (PROTOCOL 1, "AMQP binding").
///
/// Cloning costs two reference counts: the loop's table and the source's table share the text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AmqpBinding {
    /// Exchange name, at most 255 bytes.
    pub exchange: Arc<str>,
    /// Binding key, at most 255 bytes (AMQP rail 2).
    pub key: ArcStr,
}

/// Which request to bind an answer belongs to: each request has a ticket of its own, until the number wraps after 2^32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticket(u32);

impl Ticket {
    /// The next ticket.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// A binding, and the ticket of the latest request for it that the source has received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which.
    pub binding: AmqpBinding,
    /// Of that request.
    pub ticket: Ticket,
}
