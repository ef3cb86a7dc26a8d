//! The answer to a connection for which the process has no room (503).
//!
//! One whose whole request is there, as `TCP_DEFER_ACCEPT` makes usual, is answered from its first bytes, without a
//! session. One that has more to say needs a session, which is told by [`Session::refuse_full`](super::Session).

use crate::protocol::handshake::{self, Request};
use crate::protocol::http::{HttpError, Method, Parsed};
use crate::protocol::proxy::{self, Preamble};

/// The 503, made once.
#[derive(Debug)]
pub struct FullAnswer {
    whole: Vec<u8>,
    /// Bytes of it without the body, for a `HEAD`.
    head_bytes: usize,
}

impl Default for FullAnswer {
    fn default() -> Self {
        Self {
            whole: HttpError::Full.response(false),
            head_bytes: HttpError::Full.response(true).len(),
        }
    }
}

impl FullAnswer {
    /// The answer to `input`, if that is a whole request and nothing more. `None`: the peer has more to say, or 503 is
    /// no answer to what it says.
    #[must_use]
    pub fn to(&self, input: &[u8], preamble: Preamble) -> Option<&[u8]> {
        match whole_request(input, preamble)? {
            Method::Head => self.whole.get(..self.head_bytes),
            Method::Get | Method::Post | Method::Delete | Method::Other => Some(&self.whole),
        }
    }

    /// The answer to one whose request is not whole.
    #[must_use]
    pub fn whole(&self) -> &[u8] {
        &self.whole
    }
}

/// The method of the request that `input` is, if it is one, with its PROXY header and to its last byte, for which 503
/// is an answer. What is malformed, or has a body, is not.
fn whole_request(input: &[u8], preamble: Preamble) -> Option<Method> {
    let behind = match preamble {
        Preamble::Done | Preamble::Nameless => 0,
        Preamble::Optional | Preamble::Required => match proxy::parse(input) {
            proxy::Header::Complete { consumed, .. } => consumed,
            proxy::Header::Absent => 0,
            proxy::Header::Incomplete | proxy::Header::Malformed => return None,
        },
    };
    let head = input.get(behind..)?;
    let Parsed::Complete { consumed, request } = handshake::parse(head) else {
        return None;
    };
    let method = match request {
        Request::Upgrade(_) => Method::Get,
        Request::Probe(method) => method,
        Request::Refuse(_) => return None,
    };
    (consumed == head.len()).then_some(method)
}
