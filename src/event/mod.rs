//! An event: one delivery of the broker, decoded once and then shared by all that handle it.
//!
//! This folder owns what an event is, how a delivery becomes one, and the names of the two styles in which clients get
//! it. `protocol::event_frame` writes the frames, `routing` finds the subscribers. Pure: no socket, clock, thread or
//! log.
//!
//! | module | owns |
//! |---|---|
//! | [`age`] | when it came, and how old it was then |
//! | `body` | the body of a delivery: its encoding, its bounds, the reasons to drop it |
//! | `id` | the id that an event has in every process |
//! | `head` | the few members of the body that matching and framing need |
//!
//! Invariant: [`Event::body`] is one valid JSON object. So a frame contains it without another check, and the
//! normaliser of style kazoo reads it without checks of its own.
//!
//! ```
//! use blackhole::event::{Event, EventError};
//!
//! let decode = |body: &str| {
//!     let key = "call.CHANNEL_CREATE.9f3a";
//!     Event::decode("callevt".into(), key.into(), body.as_bytes().to_vec(), None)
//! };
//! let event = decode(r#" {"Event-Name": "CHANNEL_CREATE", "Call-ID": "9f3a"} "#)?;
//! assert_eq!(event.head.name.as_deref(), Some("CHANNEL_CREATE"));
//! assert_eq!(event.head.account, None, "the body names no account");
//! assert_eq!(&*event.body, r#"{"Event-Name": "CHANNEL_CREATE", "Call-ID": "9f3a"}"#);
//!
//! assert_eq!(decode("[]").err(), Some(EventError::NotJsonObject));
//! # Ok::<(), EventError>(())
//! ```

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::wildcard_enum_match_arm
    )
)]

pub mod age;
mod body;
mod head;
mod id;

use std::sync::Arc;

pub use age::Arrival;
pub use body::{BODY_BYTES_MAX, EventError};
pub use head::EventHead;
pub use id::EventId;

/// The shape of an event frame (PROTOCOL 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Style {
    /// `args`: the body as published.
    Piston,
    /// `data`: the body normalised as Kazoo 4 does.
    Kazoo,
}

impl Style {
    /// What it is called in the configuration, in the query of a websocket's address, and in answers.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Piston => "piston",
            Self::Kazoo => "kazoo",
        }
    }
}

/// A decoded delivery (PROTOCOL 1). The loop matches it and encodes it.
#[derive(Debug)]
pub struct Event {
    /// The same in every process, and on every delivery of it.
    pub id: EventId,
    /// The exchange it was published to.
    pub exchange: Arc<str>,
    /// Its routing key, as published.
    pub routing_key: Box<str>,
    /// The members of the body that matching and framing need.
    pub head: EventHead,
    /// One JSON object: checked, and as it was published, without the white space around it.
    pub body: Box<str>,
    /// When it came into this process; `None`: whoever made it did not say.
    pub arrival: Option<Arrival>,
}

impl Event {
    /// The memory that the event holds, approximately.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.routing_key.len() + self.body.len()
    }

    /// Decodes one delivery ([`Event::read`]); when it came is for the caller to say.
    ///
    /// # Errors
    /// [`EventError`].
    pub fn decode(
        exchange: Arc<str>,
        routing_key: Box<str>,
        body: Vec<u8>,
        content_encoding: Option<&str>,
    ) -> Result<Self, EventError> {
        let id = EventId::of(&exchange, &routing_key, &body);
        let (head, body) = Self::read(body, content_encoding)?;
        Ok(Self {
            id,
            exchange,
            routing_key,
            head,
            body,
            arrival: None,
        })
    }

    /// Returns head and body of an event: inflates `gzip`, checks UTF-8 and JSON, and reads the head without building
    /// a document tree. Cost: linear in the body.
    ///
    /// # Errors
    /// [`EventError`]. The caller drops and counts the delivery, and logs its routing key at most once a minute.
    pub fn read(
        body: Vec<u8>,
        content_encoding: Option<&str>,
    ) -> Result<(EventHead, Box<str>), EventError> {
        let body = body::plain(body, content_encoding.unwrap_or_default())?;
        let text = body::text(&body)?;
        Ok((EventHead::read(text)?, text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::body::GZIP_MEMBERS_MAX;
    use super::*;
    use crate::account::AccountId;
    use proptest::prelude::*;
    use std::io::Write;

    const ACCOUNT: &str = "4b8c6fec4b2597882c0390202d195419";

    fn decode(body: &str) -> Result<Event, EventError> {
        Event::decode(
            "callevt".into(),
            "call.CHANNEL_CREATE.x".into(),
            body.as_bytes().to_vec(),
            None,
        )
    }

    fn gzip(body: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(body).expect("a Vec takes every write");
        encoder.finish().expect("a Vec takes every write")
    }

    fn head(body: &str) -> EventHead {
        decode(body).expect(body).head
    }

    #[test]
    fn the_account_is_the_top_level_one_else_that_of_the_channel_vars_and_of_duplicates_the_last() {
        let account = AccountId::parse(ACCOUNT);
        let other = "f".repeat(32);
        for (body, expected) in [
            (format!(r#"{{"Account-ID":"{ACCOUNT}"}}"#), account),
            (
                format!(r#"{{"Custom-Channel-Vars":{{"Account-ID":"{ACCOUNT}"}}}}"#),
                account,
            ),
            (
                format!(
                    r#"{{"Account-ID":"{ACCOUNT}","Custom-Channel-Vars":{{"Account-ID":"{other}"}}}}"#
                ),
                account,
            ),
            (
                format!(
                    r#"{{"Custom-Channel-Vars":{{"Account-ID":"{other}"}},"Account-ID":"{ACCOUNT}"}}"#
                ),
                account,
            ),
            (
                format!(r#"{{"Account-ID":"{other}","Account-ID":"{ACCOUNT}"}}"#),
                account,
            ),
            (format!(r#"{{"Account\u002dID":"{ACCOUNT}"}}"#), account),
            (
                format!(
                    r#"{{"Account-ID":null,"Custom-Channel-Vars":{{"Account-ID":"{ACCOUNT}"}}}}"#
                ),
                account,
            ),
            (
                format!(
                    r#"{{"Account-ID":"*","Custom-Channel-Vars":{{"Account-ID":"{ACCOUNT}"}}}}"#
                ),
                None,
            ),
            (
                format!(r#"{{"Nested":{{"Account-ID":"{ACCOUNT}"}}}}"#),
                None,
            ),
            (
                format!(r#"{{"Custom-Channel-Vars":[{{"Account-ID":"{ACCOUNT}"}}]}}"#),
                None,
            ),
            (
                r#"{"Account-ID":[1,{"a":2}],"Custom-Channel-Vars":7}"#.into(),
                None,
            ),
        ] {
            assert_eq!(head(&body).account, expected, "{body}");
        }
    }

    #[test]
    fn the_head_holds_the_strings_and_nothing_else() {
        let head = head(
            r#" {"Event-Name":"doc_created","Type":"user","Event":"add-member","Account-ID":1} "#,
        );
        assert_eq!(head.name.as_deref(), Some("doc_created"));
        assert_eq!(head.doc_type.as_deref(), Some("user"));
        assert_eq!(head.event.as_deref(), Some("add-member"));
        assert_eq!(
            EventHead::read(r#"{"Event-Name":5,"Type":{"a":[1.5e9,true,null]},"Event":false}"#),
            Ok(EventHead::default())
        );
    }

    /// Values and keys that the two readings of the head may take differently, as they are written.
    const VALUES: [&str; 18] = [
        r#""""#,
        r#""x""#,
        r#""a\u002db""#,
        r#""\ud800""#,
        r#""\uDEAD\uD83D\uDE00""#,
        r#""\q""#,
        "\"\u{1}\"",
        "null",
        "true",
        "-0",
        "1.5e9",
        "1e999",
        "99999999999999999999",
        "01",
        "[]",
        r#"[1,{"a":["\ud800"]}]"#,
        r#"{"Account-ID":7,"\ud800":1}"#,
        "{",
    ];
    const KEYS: [&str; 10] = [
        "Event-Name",
        "Type",
        "Event",
        "Account-ID",
        "Custom-Channel-Vars",
        r"Account\u002dID",
        r"Account-ID\ud800",
        "Other",
        r"\ud800",
        "",
    ];

    fn member() -> impl Strategy<Value = String> {
        let account = format!("\"{ACCOUNT}\"");
        let value = prop_oneof![
            4 => proptest::sample::select(&VALUES[..]).prop_map(str::to_owned),
            1 => Just(account.clone()),
        ];
        let inner = (proptest::sample::select(&KEYS[..]), value.clone());
        let inner = inner.prop_map(|(key, value)| format!("\"{key}\":{value}"));
        let object = proptest::collection::vec(inner, 0..4)
            .prop_map(|members| format!("{{{}}}", members.join(", ")));
        let value = prop_oneof![2 => value, 1 => object, 1 => Just(account)];
        (proptest::sample::select(&KEYS[..]), value)
            .prop_map(|(key, value)| format!("\"{key}\" : {value}"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn both_readings_of_a_head_say_the_same(
            members in proptest::collection::vec(member(), 0..6),
            end in proptest::sample::select(&["}", "}", "} ", "", ",}", "}}", "]"][..]),
        ) {
            let body = format!("{{{}{end}", members.join(","));
            prop_assert_eq!(EventHead::read(&body), EventHead::read_raw(&body));
        }
    }

    #[test]
    fn a_body_that_is_not_one_json_object_is_refused() {
        for body in [
            "",
            "null",
            "[]",
            "\"x\"",
            "{",
            "{}x",
            "{\"a\":}",
            "{\"a\":1,}",
            "{} {}",
            "{\"a\":\"\u{1}\"}",
            "{\"a\":01}",
        ] {
            assert_eq!(
                decode(body).err(),
                Some(EventError::NotJsonObject),
                "{body}"
            );
        }
        let decode = |body: &[u8], encoding| {
            Event::decode("x".into(), "y".into(), body.to_vec(), encoding).err()
        };
        assert_eq!(decode(b"{\"a\":\"\xff\"}", None), Some(EventError::NotUtf8));
        assert_eq!(
            decode(b"{}", Some("deflate")),
            Some(EventError::UnknownEncoding)
        );
        assert_eq!(decode(b"{}", Some("gzip")), Some(EventError::BrokenGzip));
        assert_eq!(decode(b"{}", Some("UTF-8")), None);
    }

    #[test]
    fn content_encodings_are_understood_in_any_case_and_as_lists() {
        const BODY: &[u8] = b"{}";
        let decode = |body: &[u8], encoding| {
            Event::decode("x".into(), "y".into(), body.to_vec(), Some(encoding)).err()
        };
        for (encoding, is_gzip) in [
            ("", false),
            ("identity", false),
            ("UTF-8", false),
            ("utf8", false),
            ("US-ASCII", false),
            (" utf-8 , identity", false),
            ("GZip", true),
            ("x-gzip", true),
            ("X-GZIP", true),
            ("gzip,utf-8", true),
            ("gzip:UTF-8", true),
            ("utf-8, gzip", true),
            ("gzip ,, utf-8", true),
        ] {
            let body = if is_gzip { gzip(BODY) } else { BODY.to_vec() };
            assert_eq!(decode(&body, encoding), None, "{encoding}");
        }
        for encoding in [
            "deflate",
            "br",
            "gzip;q=1",
            "gzip utf-8",
            "gzip,gzip",
            "gzip,deflate",
            "utf-16",
            "latin1",
            "utf-8gzip",
        ] {
            for body in [BODY.to_vec(), gzip(BODY)] {
                assert_eq!(
                    decode(&body, encoding),
                    Some(EventError::UnknownEncoding),
                    "{encoding}"
                );
            }
        }
    }

    #[test]
    fn the_members_of_a_gzip_body_are_one_text_under_one_limit() {
        let decode = |body: Vec<u8>| Event::decode("x".into(), "y".into(), body, Some("gzip"));
        let members =
            |texts: &[&[u8]]| texts.iter().flat_map(|text| gzip(text)).collect::<Vec<_>>();
        let body = members(&[b"{\"Event-", b"", b"Name\":\"X\"", b"}"]);
        assert_eq!(
            &*decode(body.clone()).expect("valid").body,
            "{\"Event-Name\":\"X\"}"
        );
        let half = vec![b' '; BODY_BYTES_MAX / 2];
        let fits = members(&[&half, &half[4..], b"{}"]);
        assert!(decode(fits).is_ok());
        let too_much = members(&[&half, &half, b"{}"]);
        assert_eq!(decode(too_much).err(), Some(EventError::TooLarge));
        for broken in [
            [&*body, b"x"].concat(),
            [&*body, &gzip(b"")[..10]].concat(),
            body[..body.len() - 1].to_vec(),
        ] {
            assert_eq!(decode(broken).err(), Some(EventError::BrokenGzip));
        }
        let empty = gzip(b"");
        let many = |count: usize| [empty.repeat(count), gzip(b"{}")].concat();
        assert!(decode(many(GZIP_MEMBERS_MAX - 1)).is_ok());
        assert_eq!(
            decode(many(GZIP_MEMBERS_MAX)).err(),
            Some(EventError::TooLarge)
        );
        let large = empty.repeat(BODY_BYTES_MAX / empty.len() + 1);
        assert_eq!(decode(large).err(), Some(EventError::TooLarge));
    }

    #[test]
    fn gzip_is_inflated_and_a_bomb_is_refused_at_the_limit() {
        let body = gzip(b"{\"Event-Name\":\"X\"}");
        let event = Event::decode("x".into(), "y".into(), body, Some("gzip")).expect("valid");
        assert_eq!(&*event.body, "{\"Event-Name\":\"X\"}");
        let padded = |padding: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(padding)).into_bytes();
        let fits = gzip(&padded(BODY_BYTES_MAX - 8));
        assert!(Event::decode("x".into(), "y".into(), fits, Some("gzip")).is_ok());
        let bomb = gzip(&padded(BODY_BYTES_MAX - 7));
        assert_eq!(
            Event::decode("x".into(), "y".into(), bomb, Some("gzip")).err(),
            Some(EventError::TooLarge)
        );
        assert_eq!(
            Event::decode("x".into(), "y".into(), padded(BODY_BYTES_MAX), None).err(),
            Some(EventError::TooLarge)
        );
    }
}
