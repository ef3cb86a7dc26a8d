//! Events to frames (PROTOCOL 5).
//!
//! All subscribers of one group share a frame. Its largest part, the body, is encoded once for each style and canonical
//! key; only its end, which names the subscription, is written for each group. A request id is put in later, as a
//! [tail](super::tail).

use super::frame::{Frame, FrameBuilder, Opcode};
use super::kazoo::normalise;
use crate::event::{Event, Style};
use crate::history::Cursor;
use crate::json::write_text;

/// What one group has of its own in a frame.
#[derive(Clone, Copy, Debug)]
pub struct GroupFields<'a> {
    /// The event's canonical routing key under the group's rule.
    pub routing_key: &'a str,
    /// Whether the rule appends `_` and `Type` to the name in style piston (document events).
    pub name_suffixed_by_type: bool,
    /// The client binding.
    pub subscribed_key: &'a str,
    /// The canonical, account-qualified pattern.
    pub subscription_key: &'a str,
}

/// What a frame says of its place among the events of the process (PROTOCOL 10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stamp {
    /// Nothing: there is no history.
    #[default]
    None,
    /// The cursor of an event that has just come.
    Live(Cursor),
    /// The cursor of an event that is sent again.
    Replayed(Cursor),
}

/// Scratch memory for the frames of one event after the other.
#[derive(Debug, Default)]
pub struct EventScratch {
    stamp: Stamp,
    piston: Encoded,
    kazoo: Encoded,
}

/// The frame of one style, under construction.
#[derive(Debug, Default)]
struct Encoded {
    builder: FrameBuilder,
    /// The key for which the first `shared_len` bytes of the payload were encoded.
    routing_key: String,
    name_suffixed_by_type: bool,
    /// 0: nothing of the present event is encoded yet.
    shared_len: usize,
}

/// Most scratch memory that each style keeps between events. The memory of a larger event is given back.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

impl EventScratch {
    /// Begins the next event and forgets what was encoded of the last one.
    pub fn begin(&mut self, stamp: Stamp) {
        self.stamp = stamp;
        for encoded in [&mut self.piston, &mut self.kazoo] {
            encoded.shared_len = 0;
            encoded.builder.clear();
            encoded.builder.shrink_to(SCRATCH_BYTES_MAX);
        }
    }

    /// Returns the frame of `event` for one group (PROTOCOL 5). The first call for a style and a canonical key encodes
    /// the body. Cost of every call: two allocations and one copy of the frame.
    pub fn frame(&mut self, event: &Event, style: Style, fields: GroupFields<'_>) -> Frame {
        let encoded = match style {
            Style::Piston => &mut self.piston,
            Style::Kazoo => &mut self.kazoo,
        };
        if encoded.shared_len == 0
            || encoded.routing_key != fields.routing_key
            || encoded.name_suffixed_by_type != fields.name_suffixed_by_type
        {
            encoded.encode_shared(event, style, fields, self.stamp);
        }
        encoded.builder.truncate(encoded.shared_len);
        let payload = encoded.builder.payload_mut();
        payload.extend_from_slice(b",\"subscribed_key\":");
        write_text(payload, fields.subscribed_key);
        payload.extend_from_slice(b",\"subscription_key\":");
        write_text(payload, fields.subscription_key);
        payload.push(b'}');
        encoded.builder.frame(Opcode::Text)
    }
}

impl Stamp {
    fn write(self, payload: &mut Vec<u8>) {
        let cursor = match self {
            Self::None => return,
            Self::Live(cursor) => cursor,
            Self::Replayed(cursor) => {
                payload.extend_from_slice(b",\"replayed\":true");
                cursor
            }
        };
        payload.extend_from_slice(b",\"cursor\":\"");
        cursor.write(payload);
        payload.push(b'"');
    }
}

impl Encoded {
    fn encode_shared(
        &mut self,
        event: &Event,
        style: Style,
        fields: GroupFields<'_>,
        stamp: Stamp,
    ) {
        self.builder.clear();
        let payload = self.builder.payload_mut();
        payload.extend_from_slice(b"{\"action\":\"event\"");
        if let Some(name) = &event.head.name {
            payload.extend_from_slice(b",\"name\":");
            match (&event.head.doc_type, style) {
                (Some(doc_type), Style::Piston) if fields.name_suffixed_by_type => {
                    write_text(payload, &format!("{name}_{doc_type}"));
                }
                _ => write_text(payload, name),
            }
        }
        payload.extend_from_slice(b",\"routing_key\":");
        write_text(payload, fields.routing_key);
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
        stamp.write(payload);
        self.routing_key.clear();
        self.routing_key.push_str(fields.routing_key);
        self.name_suffixed_by_type = fields.name_suffixed_by_type;
        self.shared_len = self.builder.payload_len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(body: &str) -> Event {
        Event::decode(
            "callevt".into(),
            "call.CHANNEL_CREATE.x".into(),
            body.as_bytes().to_vec(),
            None,
        )
        .expect(body)
    }

    fn fields(subscribed_key: &str) -> GroupFields<'_> {
        GroupFields {
            routing_key: "call.acc.CHANNEL_CREATE.x",
            name_suffixed_by_type: false,
            subscribed_key,
            subscription_key: "call.acc.CHANNEL_CREATE.*",
        }
    }

    fn text(frame: &Frame) -> serde_json::Value {
        let bytes = frame.bytes();
        let header = if bytes[1] == 126 { 4 } else { 2 };
        serde_json::from_slice(&bytes[header..]).expect("a frame's payload is JSON")
    }

    #[test]
    fn frames_of_both_styles_and_several_groups_come_from_one_event() {
        let event = decode(r#"{"Event-Name":"CHANNEL_CREATE", "Call-ID":"x", "Node":"n"}"#);
        let mut scratch = EventScratch::default();
        for _ in 0..2 {
            scratch.begin(Stamp::None);
            let one = text(&scratch.frame(&event, Style::Piston, fields("call.CHANNEL_CREATE.*")));
            let kazoo = text(&scratch.frame(&event, Style::Kazoo, fields("call.*.*")));
            let two = text(&scratch.frame(&event, Style::Piston, fields("call.*.*")));
            assert_eq!(
                one,
                serde_json::json!({"action":"event","name":"CHANNEL_CREATE","routing_key":"call.acc.CHANNEL_CREATE.x",
                    "args":{"Event-Name":"CHANNEL_CREATE","Call-ID":"x","Node":"n"},"subscribed_key":"call.CHANNEL_CREATE.*",
                    "subscription_key":"call.acc.CHANNEL_CREATE.*"})
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
        let event = decode(r#"{"Event-Name":"doc_created","Type":"user"}"#);
        let mut scratch = EventScratch::default();
        scratch.begin(Stamp::None);
        let document = GroupFields {
            name_suffixed_by_type: true,
            ..fields("object.doc_created.user")
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
        let event = decode(&format!(" \r\n{body}\n"));
        let mut scratch = EventScratch::default();
        scratch.begin(Stamp::None);
        let frame = scratch.frame(&event, Style::Piston, fields("x"));
        let payload = String::from_utf8(frame.bytes().to_vec()).ok();
        let frame_text = String::from_utf8_lossy(&frame.bytes()[4..]).into_owned();
        assert!(
            frame_text.contains(&format!("\"args\":{body},\"subscribed_key\"")),
            "{frame_text} {payload:?}"
        );
    }
}
