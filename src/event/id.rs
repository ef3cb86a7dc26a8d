//! The id of an event (PROTOCOL 10).

use std::fmt;
use std::hash::Hasher as _;

use twox_hash::xxhash3_64::{RawHasher, SecretBuffer};

/// A 64-bit hash (XXH3, seed 0) over exchange, NUL, routing key, NUL, and the body as published, which is before it is
/// inflated. Two equal publishes have one id and are two events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(u64);

/// Bytes of an id as text.
const EVENT_ID_BYTES: usize = 16;

impl EventId {
    /// The id of what was published so. Linear in the body.
    #[must_use]
    pub fn of(exchange: &str, routing_key: &str, body: &[u8]) -> Self {
        let mut hasher = RawHasher::new(SecretBuffer::default());
        for part in [
            exchange.as_bytes(),
            b"\0",
            routing_key.as_bytes(),
            b"\0",
            body,
        ] {
            hasher.write(part);
        }
        Self(hasher.finish())
    }

    /// The hash.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }

    /// The 16 hex digits.
    #[must_use]
    pub fn digits(self) -> [u8; EVENT_ID_BYTES] {
        std::array::from_fn(|place| {
            let digit = (self.0 >> (60 - 4 * place)) & 0xF;
            b"0123456789abcdef"
                .get(digit as usize)
                .copied()
                .unwrap_or_default()
        })
    }

    /// Reads what [`EventId`]'s `Display` writes: 16 hex digits in lower case. `None`: anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != EVENT_ID_BYTES || !text.bytes().all(is_digit) {
            return None;
        }
        u64::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
