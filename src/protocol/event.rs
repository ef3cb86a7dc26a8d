//! Deliveries and events (PROTOCOL 5): a delivery's body is checked and its head read on the source's thread;
//! the loop turns an event into frames, the body encoded once a style, the tail once a group.
//!
//! Invariant: [`Event::body`] is one valid JSON object, so it can stand inside a frame as it is, and
//! `normalise` may walk it without re-checking it.

use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::sync::Arc;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::account::AccountId;
use crate::config::Style;
use crate::protocol::frame::{Frame, FrameBuilder, Opcode};

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
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
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
    /// More than [`BODY_BYTES_MAX`], before or after inflation, or than [`GZIP_MEMBERS_MAX`].
    #[error(
        "the body has more than {BODY_BYTES_MAX} bytes, or more than {GZIP_MEMBERS_MAX} gzip members"
    )]
    TooLarge,
    /// `content_encoding` names what is neither gzip, nor nothing, nor UTF-8 or a part of it.
    #[error("the content encoding is not supported")]
    UnknownEncoding,
}

/// Largest body, after gzip inflation (PROTOCOL 5). A larger one is dropped and counted.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// Members of a gzip body, each of which costs a decompressor of its own, however little is in it. A body of more is
/// dropped and counted as one that is too large.
pub const GZIP_MEMBERS_MAX: usize = 1024;

impl Event {
    /// Memory that it holds, as good as.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.routing_key.len() + self.body.len()
    }

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
        let mut body = match Encoding::of(content_encoding.unwrap_or_default())? {
            Encoding::Plain => body,
            Encoding::Gzip => inflate(&body)?,
        };
        if body.len() > BODY_BYTES_MAX {
            return Err(EventError::TooLarge);
        }
        let trailing = body
            .iter()
            .rev()
            .take_while(|byte| is_white(**byte))
            .count();
        body.truncate(body.len() - trailing);
        let leading = skip_white(&body, 0);
        body.drain(..leading);
        let text = simdutf8::basic::from_utf8(&body).map_err(|_| EventError::NotUtf8)?;
        let head = EventHead::read(text)?;
        let body = text.into();
        Ok(Self {
            exchange,
            routing_key,
            head,
            body,
        })
    }
}

/// What a `content_encoding` says of a body (PROTOCOL 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Plain,
    Gzip,
}

impl Encoding {
    /// Reads names that `,` or `:` separates, whatever their case, spaces around them and order. Each is that of a
    /// compression, once at most, or of a character set that is UTF-8 or a part of it.
    fn of(names: &str) -> Result<Self, EventError> {
        const PLAIN: [&str; 6] = ["", "identity", "utf-8", "utf8", "us-ascii", "ascii"];
        const GZIP: [&str; 2] = ["gzip", "x-gzip"];
        let mut encoding = Self::Plain;
        for name in names.split([',', ':']) {
            let is_one_of = |known: &[&str]| {
                let name = name.trim_ascii();
                known.iter().any(|known| name.eq_ignore_ascii_case(known))
            };
            if is_one_of(&GZIP) && encoding == Self::Plain {
                encoding = Self::Gzip;
            } else if !is_one_of(&PLAIN) {
                return Err(EventError::UnknownEncoding);
            }
        }
        Ok(encoding)
    }
}

/// Inflates all members of a gzip body (RFC 1952 section 2.2), up to one byte more than [`BODY_BYTES_MAX`].
fn inflate(mut body: &[u8]) -> Result<Vec<u8>, EventError> {
    // What is larger than its content may be costs more to inflate than it is worth: members without content.
    if body.len() > BODY_BYTES_MAX {
        return Err(EventError::TooLarge);
    }
    let mut inflated = Vec::new();
    for _ in 0..GZIP_MEMBERS_MAX {
        let limit = (BODY_BYTES_MAX + 1 - inflated.len()) as u64;
        flate2::bufread::GzDecoder::new(&mut body)
            .take(limit)
            .read_to_end(&mut inflated)
            .map_err(|_| EventError::BrokenGzip)?;
        if body.is_empty() || inflated.len() > BODY_BYTES_MAX {
            return Ok(inflated);
        }
    }
    Err(EventError::TooLarge)
}

impl EventHead {
    /// Reads the head of a body and checks that the whole of it is one JSON object. Linear, no tree.
    fn read(body: &str) -> Result<Self, EventError> {
        let mut json = serde_json::Deserializer::from_str(body);
        let members = json
            .deserialize_map(MembersVisitor)
            .and_then(|members| json.end().map(|()| members))
            .map_err(|_| EventError::NotJsonObject)?;
        let account = members
            .account
            .and_then(text)
            .or_else(|| channel_account(members.channel_vars?));
        Ok(Self {
            name: members.name.and_then(text),
            doc_type: members.doc_type.and_then(text),
            event: members.event.and_then(text),
            account: account.and_then(|text| AccountId::parse(&text)),
        })
    }
}

/// The members of an object that a head is made of, as they stand in the body: read only once the whole is known to
/// be JSON, so that a value that is JSON but no text (half a surrogate pair, a number beyond any range) is as good as
/// absent and no reason to drop the event.
#[derive(Default)]
struct Members<'b> {
    name: Option<&'b RawValue>,
    doc_type: Option<&'b RawValue>,
    event: Option<&'b RawValue>,
    account: Option<&'b RawValue>,
    channel_vars: Option<&'b RawValue>,
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut members = Members::default();
        while let Some(key) = map.next_key()? {
            let member = match Key::of(key) {
                Key::EventName => &mut members.name,
                Key::Type => &mut members.doc_type,
                Key::Event => &mut members.event,
                Key::AccountId => &mut members.account,
                Key::CustomChannelVars => &mut members.channel_vars,
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *member = Some(map.next_value()?);
        }
        Ok(members)
    }
}

enum Key {
    EventName,
    Type,
    Event,
    AccountId,
    CustomChannelVars,
    Other,
}

impl Key {
    /// Reads a member's key as it stands in the body; it allocates only where that has escapes. One with half a
    /// surrogate pair is JSON, no text, and none of ours.
    fn of(key: &RawValue) -> Self {
        let text = match key
            .get()
            .strip_prefix('"')
            .and_then(|key| key.strip_suffix('"'))
        {
            Some(plain) if !plain.contains('\\') => Cow::Borrowed(plain),
            _ => Cow::Owned(serde_json::from_str(key.get()).unwrap_or_default()),
        };
        match &*text {
            "Event-Name" => Self::EventName,
            "Type" => Self::Type,
            "Event" => Self::Event,
            "Account-ID" => Self::AccountId,
            "Custom-Channel-Vars" => Self::CustomChannelVars,
            _ => Self::Other,
        }
    }
}

/// The content of a string that is text and not empty.
fn text(value: &RawValue) -> Option<Box<str>> {
    let text: Box<str> = serde_json::from_str(value.get()).ok()?;
    (!text.is_empty()).then_some(text)
}

/// `Account-ID` of `Custom-Channel-Vars`, if that is an object.
fn channel_account(channel_vars: &RawValue) -> Option<Box<str>> {
    let mut json = serde_json::Deserializer::from_str(channel_vars.get());
    text(json.deserialize_map(MembersVisitor).ok()?.account?)
}

/// What a group contributes to a frame.
#[derive(Clone, Copy, Debug)]
pub struct EventTail<'a> {
    /// The event's canonical routing key under the group's rule.
    pub routing_key: &'a str,
    /// Whether the rule appends `_` and `Type` to the name in style piston (document events).
    pub name_suffixed_by_type: bool,
    /// The client binding.
    pub subscribed_key: &'a str,
    /// The canonical, account-qualified pattern.
    pub subscription_key: &'a str,
    /// The request id of the subscribe, when it had one.
    pub request_id: Option<&'a str>,
}

/// Scratch memory for event frames, kept between events.
#[derive(Debug, Default)]
pub struct EventScratch {
    piston: Encoded,
    kazoo: Encoded,
}

/// One style's frame under construction.
#[derive(Debug, Default)]
struct Encoded {
    builder: FrameBuilder,
    /// What the payload's first `shared_len` bytes were encoded for.
    routing_key: String,
    name_suffixed_by_type: bool,
    /// 0: nothing is encoded of the present event.
    shared_len: usize,
}

/// Scratch memory kept between events; what a larger event needed is given back.
const SCRATCH_BYTES_KEPT: usize = 64 << 10;

impl EventScratch {
    /// Begins an event; frames of the last one are forgotten.
    pub fn begin(&mut self) {
        for encoded in [&mut self.piston, &mut self.kazoo] {
            encoded.shared_len = 0;
            encoded.builder.clear();
            encoded.builder.shrink_to(SCRATCH_BYTES_KEPT);
        }
    }

    /// The frame of `event` for one group (PROTOCOL 5). Cost: one allocation and one copy of the frame; the
    /// body is encoded at the first call of a style.
    pub fn frame(&mut self, event: &Event, style: Style, tail: EventTail<'_>) -> Frame {
        let encoded = match style {
            Style::Piston => &mut self.piston,
            Style::Kazoo => &mut self.kazoo,
        };
        if encoded.shared_len == 0
            || encoded.routing_key != tail.routing_key
            || encoded.name_suffixed_by_type != tail.name_suffixed_by_type
        {
            encoded.encode_shared(event, style, tail);
        }
        encoded.builder.truncate(encoded.shared_len);
        let payload = encoded.builder.payload_mut();
        payload.extend_from_slice(b",\"subscribed_key\":");
        write_json_text(payload, tail.subscribed_key);
        payload.extend_from_slice(b",\"subscription_key\":");
        write_json_text(payload, tail.subscription_key);
        if let Some(request_id) = tail.request_id {
            payload.extend_from_slice(b",\"request_id\":");
            write_json_text(payload, request_id);
        }
        payload.push(b'}');
        encoded.builder.frame(Opcode::Text)
    }
}

impl Encoded {
    fn encode_shared(&mut self, event: &Event, style: Style, tail: EventTail<'_>) {
        self.builder.clear();
        let payload = self.builder.payload_mut();
        payload.extend_from_slice(b"{\"action\":\"event\"");
        if let Some(name) = &event.head.name {
            payload.extend_from_slice(b",\"name\":");
            match (&event.head.doc_type, style) {
                (Some(doc_type), Style::Piston) if tail.name_suffixed_by_type => {
                    write_json_text(payload, &format!("{name}_{doc_type}"));
                }
                _ => write_json_text(payload, name),
            }
        }
        payload.extend_from_slice(b",\"routing_key\":");
        write_json_text(payload, tail.routing_key);
        match style {
            Style::Piston => {
                payload.extend_from_slice(b",\"args\":");
                payload.extend_from_slice(event.body.as_bytes());
            }
            Style::Kazoo => {
                payload.extend_from_slice(b",\"data\":");
                normalise(event.body.as_bytes(), payload);
            }
        }
        self.routing_key.clear();
        self.routing_key.push_str(tail.routing_key);
        self.name_suffixed_by_type = tail.name_suffixed_by_type;
        self.shared_len = self.builder.payload_len();
    }
}

fn write_json_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string is always JSON, and a Vec takes every write");
}

/// Headers of the platform's own plumbing, dropped at the top level in style kazoo (PROTOCOL 5).
const PRIVATE_HEADERS: [&[u8]; 14] = [
    b"Access-Group",
    b"Defer-Response",
    b"Destination-Server",
    b"Geo-Location",
    b"System-Log-ID",
    b"Node",
    b"Server-Queue-ID",
    b"Raw-Headers",
    b"Server-ID",
    b"Request-From-PID",
    b"Reply-To-PID",
    b"AMQP-Broker",
    b"AMQP-Broker-Zone",
    b"Deliver-To-PID",
];

/// Appends `body` in style kazoo: private headers dropped at the top level, keys with `null` dropped and every
/// key lower-cased with `-` turned into `_` at every depth, values byte for byte, white space between them gone.
///
/// `body` must be one valid JSON value; anything else gives an unspecified output, never a panic. One pass, no
/// recursion.
fn normalise(body: &[u8], out: &mut Vec<u8>) {
    struct Level {
        is_object: bool,
        has_members: bool,
    }
    let mut levels: Vec<Level> = Vec::new();
    let mut at = skip_white(body, 0);
    loop {
        match body.get(at) {
            Some(&open @ (b'{' | b'[')) => {
                out.push(open);
                levels.push(Level {
                    is_object: open == b'{',
                    has_members: false,
                });
                at += 1;
            }
            _ => {
                let end = scalar_end(body, at);
                out.extend_from_slice(body.get(at..end).unwrap_or_default());
                at = end;
            }
        }
        loop {
            at = skip_white(body, at);
            let depth = levels.len();
            let (Some(&byte), Some(level)) = (body.get(at), levels.last_mut()) else {
                return;
            };
            match byte {
                b',' => at += 1,
                b'}' | b']' => {
                    out.push(byte);
                    at += 1;
                    levels.pop();
                }
                _ => {
                    if level.is_object {
                        let key_end = scalar_end(body, at);
                        let key = body
                            .get(at + 1..key_end.saturating_sub(1))
                            .unwrap_or_default();
                        let value = skip_white(body, skip_white(body, key_end) + 1);
                        if body.get(value) == Some(&b'n') || depth == 1 && is_private_header(key) {
                            at = value_end(body, value);
                            continue;
                        }
                        if level.has_members {
                            out.push(b',');
                        }
                        write_normalised_key(key, out);
                        out.push(b':');
                        at = value;
                    } else if level.has_members {
                        out.push(b',');
                    }
                    level.has_members = true;
                    break;
                }
            }
        }
    }
}

/// Writes a key, given without its quotes but with its escapes, lower-cased and with `-` turned into `_`.
fn write_normalised_key(key: &[u8], out: &mut Vec<u8>) {
    let normal = |byte: u8| {
        if byte == b'-' {
            b'_'
        } else {
            byte.to_ascii_lowercase()
        }
    };
    if !key.contains(&b'\\') {
        out.push(b'"');
        out.extend(key.iter().copied().map(normal));
        out.push(b'"');
        return;
    }
    match unescaped(key) {
        Some(text) => {
            let text: String = text
                .chars()
                .map(|c| {
                    if c == '-' {
                        '_'
                    } else {
                        c.to_ascii_lowercase()
                    }
                })
                .collect();
            write_json_text(out, &text);
        }
        None => {
            out.push(b'"');
            out.extend_from_slice(key);
            out.push(b'"');
        }
    }
}

fn is_private_header(key: &[u8]) -> bool {
    PRIVATE_HEADERS.contains(&key)
        || key.contains(&b'\\')
            && unescaped(key).is_some_and(|text| PRIVATE_HEADERS.contains(&text.as_bytes()))
}

/// The text of a key that is given with its escapes, or `None` for half a surrogate pair: valid JSON, but no text.
fn unescaped(key: &[u8]) -> Option<String> {
    serde_json::from_slice(&[b"\"", key, b"\""].concat()).ok()
}

/// White space between JSON tokens (RFC 8259 section 2), which has no form feed.
fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn skip_white(body: &[u8], at: usize) -> usize {
    let rest = body.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| is_white(**byte)).count()
}

/// Just behind the string, number or literal that starts at `at`; always beyond `at` unless at the end.
fn scalar_end(body: &[u8], at: usize) -> usize {
    let rest = body.get(at..).unwrap_or_default();
    let Some((b'"', text)) = rest.split_first() else {
        let length = rest
            .iter()
            .skip(1)
            .take_while(|byte| !matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r'))
            .count();
        return at + (1 + length).min(rest.len());
    };
    let mut escaped = false;
    for (index, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + index + 2,
            _ => {}
        }
    }
    body.len()
}

/// Just behind the value, of any kind, that starts at `at`.
fn value_end(body: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(byte) = body.get(at) {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => at += 1,
            _ => at = scalar_end(body, at),
        }
        if depth == 0 {
            break;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn normalised(body: &str) -> String {
        let mut out = Vec::new();
        normalise(body.as_bytes(), &mut out);
        String::from_utf8(out).expect("UTF-8 in, UTF-8 out")
    }

    #[test]
    fn kazoo_normalisation_row_by_row() {
        for (body, expected) in [
            ("{}", "{}"),
            (r#"{"Call-ID":"A-B"}"#, r#"{"call_id":"A-B"}"#),
            (
                r#"{"Custom-Channel-Vars":{"Account-ID":"X"}}"#,
                r#"{"custom_channel_vars":{"account_id":"X"}}"#,
            ),
            (r#"{"A":null}"#, "{}"),
            (
                r#"{"A":null,"B":1,"C":null,"D":2,"E":null}"#,
                r#"{"b":1,"d":2}"#,
            ),
            (
                r#"{"A":{"B":null,"C":[null,{"D":null,"E":1}]}}"#,
                r#"{"a":{"c":[null,{"e":1}]}}"#,
            ),
            (
                r#"{"Node":"x","Server-ID":{"a":[1,"}"]},"X":1}"#,
                r#"{"x":1}"#,
            ),
            (
                r#"{"X":{"Node":"kept below the top"}}"#,
                r#"{"x":{"node":"kept below the top"}}"#,
            ),
            (
                "{ \"A\" : [ 1 , 2.50 , -3e+10 ] ,\n\t\"B\" : \"\\\"q\\\\\" }",
                r#"{"a":[1,2.50,-3e+10],"b":"\"q\\"}"#,
            ),
            (
                r#"{"Big":123456789012345678901234567890,"T":true,"F":false}"#,
                r#"{"big":123456789012345678901234567890,"t":true,"f":false}"#,
            ),
            (r#"{"A\u002dB":"\u002d"}"#, r#"{"a_b":"\u002d"}"#),
            (r#"{"Ärger-Ö":1}"#, r#"{"Ärger_Ö":1}"#),
            (
                r#"{"nullish":"null","n":[[],{}]}"#,
                r#"{"nullish":"null","n":[[],{}]}"#,
            ),
        ] {
            assert_eq!(normalised(body), expected, "{body}");
        }
    }

    #[test]
    fn normalisation_survives_anything() {
        let body = r#"{"A":{"B":[1,null,"x\\"],"Node":null},"Node":[{"a":1}]}"#;
        for start in 0..body.len() {
            for end in start..body.len() {
                normalise(&body.as_bytes()[start..end], &mut Vec::new());
            }
        }
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        assert_eq!(normalised(&deep), deep);
    }

    fn tail<'a>(subscribed_key: &'a str, request_id: Option<&'a str>) -> EventTail<'a> {
        EventTail {
            routing_key: "call.acc.CHANNEL_CREATE.x",
            name_suffixed_by_type: false,
            subscribed_key,
            subscription_key: "call.acc.CHANNEL_CREATE.*",
            request_id,
        }
    }

    fn text(frame: &Frame) -> serde_json::Value {
        let bytes = frame.bytes();
        let header = if bytes[1] == 126 { 4 } else { 2 };
        serde_json::from_slice(&bytes[header..]).expect("a frame's payload is JSON")
    }

    #[test]
    fn frames_of_both_styles_and_several_groups_come_from_one_event() {
        let event =
            decode(r#"{"Event-Name":"CHANNEL_CREATE", "Call-ID":"x", "Node":"n"}"#).expect("valid");
        let mut scratch = EventScratch::default();
        for _ in 0..2 {
            scratch.begin();
            let one = text(&scratch.frame(
                &event,
                Style::Piston,
                tail("call.CHANNEL_CREATE.*", Some("r\"1")),
            ));
            let kazoo = text(&scratch.frame(&event, Style::Kazoo, tail("call.*.*", None)));
            let two = text(&scratch.frame(&event, Style::Piston, tail("call.*.*", None)));
            assert_eq!(
                one,
                serde_json::json!({"action":"event","name":"CHANNEL_CREATE","routing_key":"call.acc.CHANNEL_CREATE.x",
                    "args":{"Event-Name":"CHANNEL_CREATE","Call-ID":"x","Node":"n"},"subscribed_key":"call.CHANNEL_CREATE.*",
                    "subscription_key":"call.acc.CHANNEL_CREATE.*","request_id":"r\"1"})
            );
            assert_eq!(
                kazoo,
                serde_json::json!({"action":"event","name":"CHANNEL_CREATE","routing_key":"call.acc.CHANNEL_CREATE.x",
                    "data":{"event_name":"CHANNEL_CREATE","call_id":"x"},"subscribed_key":"call.*.*",
                    "subscription_key":"call.acc.CHANNEL_CREATE.*"})
            );
            assert_eq!(two["subscribed_key"], "call.*.*");
            assert_eq!(two.get("request_id"), None);
        }
    }

    #[test]
    fn a_document_events_name_carries_its_type_in_style_piston_only() {
        let event = decode(r#"{"Event-Name":"doc_created","Type":"user"}"#).expect("valid");
        let mut scratch = EventScratch::default();
        scratch.begin();
        let document = EventTail {
            name_suffixed_by_type: true,
            ..tail("object.doc_created.user", None)
        };
        assert_eq!(
            text(&scratch.frame(&event, Style::Piston, document))["name"],
            "doc_created_user"
        );
        assert_eq!(
            text(&scratch.frame(&event, Style::Kazoo, document))["name"],
            "doc_created"
        );
    }

    #[test]
    fn the_body_is_untouched_in_style_piston() {
        let body = "{\"a\" : 1.0,\n \"b\":1e400, \"a\":\"\\u00e9\"}";
        let event = decode(&format!(" \r\n{body}\n")).expect("valid");
        let mut scratch = EventScratch::default();
        scratch.begin();
        let frame = scratch.frame(&event, Style::Piston, tail("x", None));
        let payload = String::from_utf8(frame.bytes().to_vec()).ok();
        let frame_text = String::from_utf8_lossy(&frame.bytes()[4..]).into_owned();
        assert!(
            frame_text.contains(&format!("\"args\":{body},\"subscribed_key\"")),
            "{frame_text} {payload:?}"
        );
    }
}
