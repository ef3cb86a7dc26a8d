//! To be written.
use std::sync::Arc;

use crate::routing::account::AccountId;

/// A decoded delivery (PROTOCOL 1): what the loop matches and encodes.
#[derive(Debug)]
pub struct Event {
    /// The exchange it was published to.
    pub exchange: Arc<str>,
    /// Its routing key, as published.
    pub routing_key: Box<str>,
    /// What matching needs to know of the body.
    pub head: EventHead,
    /// One JSON object: checked, and otherwise as published (white space around it trimmed).
    pub body: Box<str>,
}

/// What matching and framing need to know of a body. A key that is absent, or not a string, is `None`; of
/// duplicate keys the last counts, as in every JSON parser a client may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventHead {
    /// `Event-Name`.
    pub name: Option<Box<str>>,
    /// `Type`: the document type of document events.
    pub doc_type: Option<Box<str>>,
    /// `Event`: what happened in a conference.
    pub event: Option<Box<str>>,
    /// `Account-ID`, else `Custom-Channel-Vars.Account-ID` (PROTOCOL 4); `None` unless it is an account id.
    pub account: Option<AccountId>,
}

/// Why a delivery is not an event (PROTOCOL 5): it is dropped and counted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EventError {
    /// The body is not UTF-8.
    #[error("the body is not UTF-8")]
    NotUtf8,
    /// The body is not one JSON object.
    #[error("the body is not a JSON object")]
    NotJsonObject,
    /// The gzip stream is broken.
    #[error("the gzip stream is broken")]
    BrokenGzip,
    /// More than [`INFLATED_BYTES_MAX`] after inflation.
    #[error("the body inflates to more than {INFLATED_BYTES_MAX} bytes")]
    InflatesTooFar,
    /// `content_encoding` is neither absent, `identity`, `utf-8`/`UTF-8` nor `gzip`.
    #[error("the content encoding is not supported")]
    UnknownEncoding,
}

/// Largest body after gzip inflation (PROTOCOL 5).
pub const INFLATED_BYTES_MAX: usize = 8 << 20;

impl Event {
    /// Decodes one delivery: inflates `gzip`, checks UTF-8 and JSON, reads the head without building a document
    /// tree. Cost linear in the body.
    ///
    /// # Errors
    /// [`EventError`]: the delivery is to be dropped, counted, and logged once a minute with its routing key.
    pub fn decode(
        exchange: Arc<str>,
        routing_key: Box<str>,
        body: Vec<u8>,
        content_encoding: Option<&str>,
    ) -> Result<Self, EventError> {
        let _ = (exchange, routing_key, body, content_encoding);
        todo!()
    }
}
