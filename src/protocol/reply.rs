//! Replies and notices to frames (PROTOCOL 3 and 5).
//!
//! This module owns the keys of replies and notices and their order. Every function first empties the builder that it is
//! given, and leaves its payload there: the builder is the loop's scratch memory.

use std::fmt;
use std::time::Duration;

use super::frame::{Frame, FrameBuilder, Opcode};
use crate::history::{Cursor, Why};
use crate::json::write_text;

/// Returns a request id for a command without one: `random` as 32 hex characters.
#[must_use]
pub fn generated_request_id(random: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(random))
}

/// The reply to a subscribe: all client bindings of the session, in the order of their subscription, under both of their
/// names.
pub fn subscribed<'a>(
    builder: &mut FrameBuilder,
    request_id: &str,
    subscribed: impl IntoIterator<Item = &'a str>,
    resume: Option<&Resumption>,
) -> Frame {
    reply(builder, request_id, "success", |out| {
        write_subscribed(out, subscribed);
        if let Some(Resumption { cursor, resumed }) = resume {
            write_cursor(out, *cursor);
            if let Some(resumed) = resumed {
                out.extend_from_slice(format!(",\"resumed\":{resumed}").as_bytes());
            }
        }
    })
}

/// What the reply to a subscribe with `data.resume` says of it (PROTOCOL 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumption {
    /// The position behind which live or replayed events begin; `None`: there is no history.
    pub cursor: Option<Cursor>,
    /// Whether what came after the cursor that was asked for follows; `None`: none was asked for.
    pub resumed: Option<bool>,
}

/// The reply to an unsubscribe: the client bindings that were removed, and those that are left, under both of their
/// names.
pub fn unsubscribed<'a>(
    builder: &mut FrameBuilder,
    request_id: &str,
    unsubscribed: impl IntoIterator<Item = &'a str>,
    subscribed: impl IntoIterator<Item = &'a str>,
) -> Frame {
    reply(builder, request_id, "success", |out| {
        out.extend_from_slice(br#""unsubscribed":"#);
        write_list(out, unsubscribed);
        out.push(b',');
        write_subscribed(out, subscribed);
    })
}

/// The reply to a ping, with the session's place among the events (PROTOCOL 10).
pub fn pong(builder: &mut FrameBuilder, request_id: &str, cursor: Option<Cursor>) -> Frame {
    reply(builder, request_id, "success", |out| {
        out.extend_from_slice(br#""response":"pong""#);
        write_cursor(out, cursor);
    })
}

/// The error reply, with the `Display` text of every error, escaped.
pub fn errors<E: fmt::Display>(
    builder: &mut FrameBuilder,
    request_id: &str,
    errors: impl IntoIterator<Item = E>,
) -> Frame {
    reply(builder, request_id, "error", |out| {
        out.extend_from_slice(br#""errors":"#);
        write_list(out, errors.into_iter().map(|error| error.to_string()));
    })
}

/// The gap notice (PROTOCOL 5) of a session that read too slowly: how many events were dropped.
pub fn gap_slow_consumer(builder: &mut FrameBuilder, dropped: u64) -> Frame {
    gap(
        builder,
        format_args!(r#""reason":"slow_consumer","dropped":{dropped}"#),
    )
}

/// The gap notice (PROTOCOL 5) after the event source was `away`, in seconds with one decimal: events may have been
/// lost.
pub fn gap_event_source(builder: &mut FrameBuilder, away: Duration) -> Frame {
    gap(
        builder,
        format_args!(
            r#""reason":"event_source","seconds":{:.1}"#,
            away.as_secs_f64()
        ),
    )
}

/// The gap notice (PROTOCOL 10) of a session that asked for what came after a cursor and does not get it.
pub fn gap_resume(builder: &mut FrameBuilder, why: Why) -> Frame {
    let why = why.word();
    gap(builder, format_args!(r#""reason":"resume","why":"{why}""#))
}

/// The notice (PROTOCOL 10) that all missed events, so many of them, have been sent: live ones follow.
pub fn resumed(builder: &mut FrameBuilder, events: u64) -> Frame {
    builder.clear();
    let notice = format!(r#"{{"action":"notice","name":"resumed","data":{{"events":{events}}}}}"#);
    builder.extend(notice.as_bytes());
    builder.frame(Opcode::Text)
}

/// Why subscriptions ended without an unsubscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The token of a command gave the session another identity.
    Identity,
    /// The rights of the session's identity were reread, and are fewer.
    Rights,
    /// Their family was stopped.
    Module,
}

impl EndReason {
    /// The word of `data.reason`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Rights => "rights",
            Self::Module => "module",
        }
    }
}

/// The notice that these subscriptions have ended (PROTOCOL 3).
pub fn subscriptions_ended<'a>(
    builder: &mut FrameBuilder,
    reason: EndReason,
    bindings: impl IntoIterator<Item = &'a str>,
) -> Frame {
    builder.clear();
    let out = builder.payload_mut();
    out.extend_from_slice(br#"{"action":"notice","name":"subscriptions_ended","data":{"reason":"#);
    let reason = reason.word();
    write_text(out, reason);
    out.extend_from_slice(br#","bindings":"#);
    write_list(out, bindings);
    out.extend_from_slice(b"}}");
    builder.frame(Opcode::Text)
}

/// The notice that the process is going away, and in what time it closes the first of its sessions (PROTOCOL 10): whole
/// milliseconds, rounded down.
pub fn going_away(builder: &mut FrameBuilder, within: Duration) -> Frame {
    builder.clear();
    let within_ms = within.as_millis();
    let text =
        format!(r#"{{"action":"notice","name":"going_away","data":{{"within_ms":{within_ms}}}}}"#);
    builder.extend(text.as_bytes());
    builder.frame(Opcode::Text)
}

/// Writes one reply, its keys in the order of PROTOCOL 3. `write_data` writes the members of `data`.
fn reply(
    builder: &mut FrameBuilder,
    request_id: &str,
    status: &str,
    write_data: impl FnOnce(&mut Vec<u8>),
) -> Frame {
    builder.clear();
    let out = builder.payload_mut();
    out.extend_from_slice(br#"{"action":"reply","request_id":"#);
    write_text(out, request_id);
    out.extend_from_slice(br#","status":"#);
    write_text(out, status);
    out.extend_from_slice(br#","data":{"#);
    write_data(out);
    out.extend_from_slice(b"}}");
    builder.frame(Opcode::Text)
}

/// Writes one gap notice. `data`: the members of its `data`.
fn gap(builder: &mut FrameBuilder, data: fmt::Arguments<'_>) -> Frame {
    builder.clear();
    builder.extend(format!(r#"{{"action":"notice","name":"gap","data":{{{data}}}}}"#).as_bytes());
    builder.frame(Opcode::Text)
}

/// Writes the client bindings of a session as `subscribed`, and once more as `subscriptions`, which clients of Kazoo 5
/// read.
fn write_subscribed<'a>(out: &mut Vec<u8>, bindings: impl IntoIterator<Item = &'a str>) {
    out.extend_from_slice(br#""subscribed":"#);
    let begin = out.len();
    write_list(out, bindings);
    let end = out.len();
    out.extend_from_slice(br#","subscriptions":"#);
    out.extend_from_within(begin..end);
}

/// Writes `data.cursor`, behind other members.
fn write_cursor(out: &mut Vec<u8>, cursor: Option<Cursor>) {
    if let Some(cursor) = cursor {
        out.extend_from_slice(br#","cursor":""#);
        cursor.write(out);
        out.push(b'"');
    }
}

fn write_list(out: &mut Vec<u8>, texts: impl IntoIterator<Item = impl AsRef<str>>) {
    out.push(b'[');
    for (index, text) in texts.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(out, text.as_ref());
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(frame: &Frame) -> &str {
        let bytes = frame.bytes();
        let header = if bytes[1] < 126 { 2 } else { 4 };
        std::str::from_utf8(&bytes[header..]).expect("UTF-8")
    }

    #[test]
    fn replies_and_notices_are_json_with_the_keys_of_the_protocol_in_their_order() {
        let builder = &mut FrameBuilder::default();
        builder.extend(b"left behind by an earlier frame");
        for (frame, expected) in [
            (
                subscribed(builder, "r\"1", ["call.CHANNEL_CREATE.*", "a\\b"], None),
                r#"{"action":"reply","request_id":"r\"1","status":"success","data":{"subscribed":["call.CHANNEL_CREATE.*","a\\b"],"subscriptions":["call.CHANNEL_CREATE.*","a\\b"]}}"#,
            ),
            (
                subscribed(builder, "r", [], None),
                r#"{"action":"reply","request_id":"r","status":"success","data":{"subscribed":[],"subscriptions":[]}}"#,
            ),
            (
                unsubscribed(builder, "r", ["x", "y"], ["z"]),
                r#"{"action":"reply","request_id":"r","status":"success","data":{"unsubscribed":["x","y"],"subscribed":["z"],"subscriptions":["z"]}}"#,
            ),
            (
                pong(builder, "r", None),
                r#"{"action":"reply","request_id":"r","status":"success","data":{"response":"pong"}}"#,
            ),
            (
                errors(builder, "r", ["unknown action \"}\0"]),
                r#"{"action":"reply","request_id":"r","status":"error","data":{"errors":["unknown action \"}\u0000"]}}"#,
            ),
            (
                errors(builder, "r", ["unauthorized account id", "two"]),
                r#"{"action":"reply","request_id":"r","status":"error","data":{"errors":["unauthorized account id","two"]}}"#,
            ),
            (
                subscriptions_ended(builder, EndReason::Identity, ["a\\b", "c"]),
                r#"{"action":"notice","name":"subscriptions_ended","data":{"reason":"identity","bindings":["a\\b","c"]}}"#,
            ),
            (
                subscriptions_ended(builder, EndReason::Rights, ["x"]),
                r#"{"action":"notice","name":"subscriptions_ended","data":{"reason":"rights","bindings":["x"]}}"#,
            ),
            (
                subscriptions_ended(builder, EndReason::Module, ["x"]),
                r#"{"action":"notice","name":"subscriptions_ended","data":{"reason":"module","bindings":["x"]}}"#,
            ),
            (
                gap_slow_consumer(builder, 12),
                r#"{"action":"notice","name":"gap","data":{"reason":"slow_consumer","dropped":12}}"#,
            ),
            (
                gap_event_source(builder, Duration::from_millis(3249)),
                r#"{"action":"notice","name":"gap","data":{"reason":"event_source","seconds":3.2}}"#,
            ),
            (
                gap_event_source(builder, Duration::ZERO),
                r#"{"action":"notice","name":"gap","data":{"reason":"event_source","seconds":0.0}}"#,
            ),
            (
                going_away(builder, Duration::from_micros(4_999_999)),
                r#"{"action":"notice","name":"going_away","data":{"within_ms":4999}}"#,
            ),
        ] {
            assert_eq!(payload(&frame), expected);
            assert!(serde_json::from_str::<serde_json::Value>(expected).is_ok());
        }
    }

    #[test]
    fn a_generated_request_id_is_32_hex_characters() {
        let mut random = [0; 16];
        random[15] = 0xAB;
        assert_eq!(
            generated_request_id(random),
            "000000000000000000000000000000ab"
        );
        assert_eq!(generated_request_id([0xFF; 16]), "f".repeat(32));
    }
}
