//! The agreement on compression (RFC 7692 section 7.1): permessage-deflate is the only extension that is spoken here.
//!
//! Neither side is to keep anything between two messages: the answer always has `server_no_context_takeover`, so that one
//! deflated message serves all sessions, and `client_no_context_takeover`, so that one inflater does. Both may stand in the
//! answer to any offer (sections 7.1.1.1 and 7.1.1.2).
//!
//! `server_max_window_bits` of an offer is echoed, because a client that asks for less memory gets it: such a session is
//! sent only messages that are no longer than its window deflated. `client_max_window_bits` needs no answer: our inflater
//! takes every window.
//!
//! ```
//! use blackhole::protocol::extension::{Offer, read};
//!
//! let fields = [&b"permessage-deflate; client_max_window_bits, x-other"[..]];
//! let Offer::Good(deflate) = read(fields) else { panic!("a browser's offer") };
//! assert_eq!(deflate.answer(), "permessage-deflate; server_no_context_takeover; client_no_context_takeover");
//! assert_eq!(read([&b"permessage-deflate; server_max_window_bits=16"[..]]), Offer::Declined);
//! assert_eq!(read([&b"x-other"[..]]), Offer::Absent);
//! ```

use std::ops::RangeInclusive;

const NAME: &[u8] = b"permessage-deflate";

/// Base-2 logarithms of the sizes of windows that there are (section 7.1.2).
const WINDOW_BITS: RangeInclusive<u8> = WINDOW_BITS_MIN..=WINDOW_BITS_MAX;
const WINDOW_BITS_MIN: u8 = 8;
const WINDOW_BITS_MAX: u8 = 15;

/// What a request offers in its fields `Sec-WebSocket-Extensions`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offer {
    /// No permessage-deflate.
    #[default]
    Absent,
    /// Permessage-deflate, and every offer of it has a parameter that is unknown, twice there, or has a bad value.
    Declined,
    /// The first offer that can be taken: offers stand in the order in which the client wants them (RFC 6455 section 9.1).
    Good(Deflate),
}

/// Permessage-deflate as it is agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deflate {
    /// `server_max_window_bits` of the offer.
    server_max_window_bits: Option<u8>,
}

impl Deflate {
    /// Base-2 logarithm of the client's window: how far back references in what it is sent may reach.
    #[must_use]
    pub fn window_bits(self) -> u8 {
        self.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX)
    }

    /// The value of `Sec-WebSocket-Extensions` in the response.
    #[must_use]
    pub fn answer(self) -> String {
        let bits = self.server_max_window_bits;
        let window = bits.map_or(String::new(), |bits| {
            format!("; server_max_window_bits={bits}")
        });
        format!(
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover{window}"
        )
    }
}

/// Reads the fields of a request, in their order. What is no list of extensions at all (RFC 6455 section 9.1) is skipped up
/// to the next comma. Linear in the bytes.
pub fn read<'f>(fields: impl IntoIterator<Item = &'f [u8]>) -> Offer {
    let elements = fields.into_iter().flat_map(|field| split(field, b','));
    let offers = elements.filter_map(|element| {
        let mut parts = split(element, b';');
        let name = parts.next()?.trim_ascii();
        (name == NAME).then(|| judge(parts))
    });
    let mut is_offered = false;
    for offer in offers {
        is_offered = true;
        if let Some(deflate) = offer {
            return Offer::Good(deflate);
        }
    }
    if is_offered {
        Offer::Declined
    } else {
        Offer::Absent
    }
}

/// The parameters of an offer; `None`: it must be declined (section 7.1).
fn judge<'f>(parameters: impl Iterator<Item = &'f [u8]>) -> Option<Deflate> {
    let (mut server_takeover, mut client_takeover, mut client_bits) = (false, false, false);
    let mut server_max_window_bits = None;
    for parameter in parameters {
        let at = parameter.iter().position(|byte| *byte == b'=');
        let (name, value) = match at.and_then(|at| parameter.split_at_checked(at)) {
            Some((name, value)) => (name, Some(unquoted(value.get(1..)?.trim_ascii())?)),
            None => (parameter, None),
        };
        let is_twice = match (name.trim_ascii(), value) {
            (b"server_no_context_takeover", None) => std::mem::replace(&mut server_takeover, true),
            (b"client_no_context_takeover", None) => std::mem::replace(&mut client_takeover, true),
            (b"client_max_window_bits", None) => std::mem::replace(&mut client_bits, true),
            (b"client_max_window_bits", Some(value)) => {
                window_bits(value)?;
                std::mem::replace(&mut client_bits, true)
            }
            (b"server_max_window_bits", Some(value)) => {
                let bits = window_bits(value)?;
                server_max_window_bits.replace(bits).is_some()
            }
            _ => return None,
        };
        if is_twice {
            return None;
        }
    }
    Some(Deflate {
        server_max_window_bits,
    })
}

/// A decimal number of [`WINDOW_BITS`], without leading zeros (section 7.1.2.1).
fn window_bits(value: &[u8]) -> Option<u8> {
    let bits = match *value {
        [one @ b'0'..=b'9'] => one - b'0',
        [b'1', one @ b'0'..=b'9'] => 10 + (one - b'0'),
        _ => return None,
    };
    WINDOW_BITS.contains(&bits).then_some(bits)
}

/// A value that may be a quoted string (RFC 9110 section 5.6.4). No value that means something has a character that would
/// have to be escaped.
fn unquoted(value: &[u8]) -> Option<&[u8]> {
    match value.strip_prefix(b"\"") {
        Some(quoted) => quoted.strip_suffix(b"\""),
        None => Some(value),
    }
}

/// What stands between the separators that are not in a quoted string.
fn split(list: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    list.split(move |byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_quoted,
            b'"' => is_quoted = !is_quoted,
            _ => return !is_quoted && *byte == separator,
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(field: &str) -> Offer {
        read([field.as_bytes()])
    }

    fn bits(field: &str) -> Option<u8> {
        match offer(field) {
            Offer::Good(deflate) => Some(deflate.window_bits()),
            Offer::Absent | Offer::Declined => None,
        }
    }

    #[test]
    fn every_valid_offer_is_taken() {
        for (field, expected) in [
            ("permessage-deflate", 15),
            ("permessage-deflate;client_max_window_bits", 15),
            ("permessage-deflate ; client_max_window_bits = 8", 15),
            ("permessage-deflate; client_max_window_bits=\"10\"", 15),
            ("permessage-deflate; server_no_context_takeover", 15),
            (
                "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
                15,
            ),
            ("permessage-deflate; server_max_window_bits=8", 8),
            ("permessage-deflate; server_max_window_bits=9", 9),
            ("permessage-deflate;\tserver_max_window_bits=\"12\"", 12),
            ("permessage-deflate; server_max_window_bits=15", 15),
            // The first that can be taken, of several.
            (
                "permessage-deflate; server_max_window_bits=10, permessage-deflate",
                10,
            ),
            (
                "permessage-deflate; server_max_window_bits=7, permessage-deflate",
                15,
            ),
            (
                "x-other; y=\"a, permessage-deflate; z\", permessage-deflate; server_max_window_bits=11",
                11,
            ),
            (
                "x-other; y=\"a\\\", b\" , permessage-deflate; server_max_window_bits=13",
                13,
            ),
            (", ,permessage-deflate,", 15),
        ] {
            assert_eq!(bits(field), Some(expected), "{field}");
        }
        let two = [
            &b"permessage-deflate; nonsense"[..],
            b"permessage-deflate; server_max_window_bits=14",
        ];
        let Offer::Good(deflate) = read(two) else {
            panic!("the second field has a good one")
        };
        assert_eq!(deflate.window_bits(), 14);
    }

    #[test]
    fn an_offer_with_a_bad_parameter_is_declined() {
        for parameters in [
            "nonsense",
            "",
            "server_no_context_takeover=1",
            "server_no_context_takeover=",
            "client_no_context_takeover=true",
            "server_no_context_takeover; server_no_context_takeover",
            "client_no_context_takeover; client_no_context_takeover",
            "client_max_window_bits; client_max_window_bits=10",
            "server_max_window_bits=10; server_max_window_bits=10",
            "server_max_window_bits",
            "server_max_window_bits=",
            "server_max_window_bits=7",
            "server_max_window_bits=16",
            "server_max_window_bits=08",
            "server_max_window_bits=+9",
            "server_max_window_bits=9.0",
            "server_max_window_bits=115",
            "server_max_window_bits=\"10",
            "server_max_window_bits=10\"",
            "client_max_window_bits=0",
            "client_max_window_bits=",
            "client_max_window_bits=99999999999999999999",
            "Server_no_context_takeover",
        ] {
            let field = format!("permessage-deflate; {parameters}");
            assert_eq!(offer(&field), Offer::Declined, "{field}");
        }
    }

    #[test]
    fn what_is_no_offer_of_it_is_left_alone() {
        for field in [
            "",
            ",",
            "x-webkit-deflate-frame",
            "permessage-bzip2; permessage-deflate",
            "Permessage-Deflate",
            "\"permessage-deflate\"",
            "x; y=\"permessage-deflate, permessage-deflate",
        ] {
            assert_eq!(offer(field), Offer::Absent, "{field}");
        }
        assert_eq!(read([]), Offer::Absent);
    }

    #[test]
    fn the_answer_keeps_no_context_and_echoes_the_window() {
        let answer = |field| match offer(field) {
            Offer::Good(deflate) => deflate.answer(),
            Offer::Absent | Offer::Declined => panic!("{field}"),
        };
        let base = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        assert_eq!(answer("permessage-deflate; client_max_window_bits=9"), base);
        assert_eq!(
            answer("permessage-deflate; server_max_window_bits=15"),
            format!("{base}; server_max_window_bits=15")
        );
    }
}
