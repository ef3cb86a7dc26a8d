//! Delivery to event, event to frames (PROTOCOL 5).
//!
//! Input: one byte, of which bits 0 and 1 choose the content encoding (0 none, 1 gzip as it stands, 2 gzip made here,
//! 3 utf-8), bit 2 whether the name is suffixed by the type and bit 3 whether there is a request id; then a line that
//! stands for the keys of a frame; then the body.
//!
//! Invariants: a body is taken exactly when it is one JSON object; the head is what a plain reading of the tree gives;
//! a frame is one JSON object with the keys of its style; in style piston `args` is the body byte for byte; in style
//! kazoo `data` is what normalising the tree gives; a frame does not depend on the frames encoded before it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;

use blackhole::account::AccountId;
use blackhole::event::{BODY_BYTES_MAX, Event, EventError, EventHead, Style};
use blackhole::protocol::event_frame::{EventScratch, GroupFields, Stamp};
use blackhole::protocol::tail::Tail;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// Dropped at the top level in style kazoo, as PROTOCOL 5 lists them.
const PRIVATE_HEADERS: &str = "Access-Group, Defer-Response, Destination-Server, Geo-Location, \
    System-Log-ID, Node, Server-Queue-ID, Raw-Headers, Server-ID, Request-From-PID, Reply-To-PID, \
    AMQP-Broker, AMQP-Broker-Zone, Deliver-To-PID";

/// See the module's page.
pub fn check(data: &[u8]) -> String {
    let Some((&choice, rest)) = data.split_first() else {
        return "nothing".to_owned();
    };
    let mut parts = rest.splitn(2, |byte| *byte == b'\n');
    let line = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let body = parts.next().unwrap_or_default();
    let decode = |body: Vec<u8>, encoding| {
        Event::decode("callevt".into(), line.as_str().into(), body, encoding)
    };
    let decoded = match choice & 3 {
        0 => decode(body.to_vec(), None),
        1 => decode(body.to_vec(), Some("gzip")),
        2 => decode(gzip(body), Some("GZip")),
        _ => decode(body.to_vec(), Some("utf-8")),
    };
    if choice & 3 != 1 {
        let is_object = is_one_object(body);
        assert_eq!(
            decoded.is_ok(),
            is_object,
            "of {:?}",
            String::from_utf8_lossy(body)
        );
    }
    let event = match decoded {
        Ok(event) => event,
        Err(error) => {
            let is_text = std::str::from_utf8(body).is_ok();
            assert!(error != EventError::NotUtf8 || !is_text || choice & 3 == 1);
            return format!("{error:?}");
        }
    };
    assert!(event.body.len() <= BODY_BYTES_MAX);
    assert_eq!(&*event.body, event.body.trim_ascii());
    if let Ok(tree) = serde_json::from_str::<Value>(&event.body) {
        check_head(&event.head, &tree);
    }
    let fields = GroupFields {
        routing_key: &line,
        name_suffixed_by_type: choice & 4 != 0,
        subscribed_key: &line,
        subscription_key: "call.\"*\".\\",
    };
    check_frames(&event, fields, (choice & 8 != 0).then_some(&*line));
    let is_deep = serde_json::from_str::<Tree>(&event.body).is_err();
    match &event.head {
        _ if is_deep => "no tree".to_owned(),
        EventHead { account: None, .. } => "event of no account".to_owned(),
        EventHead {
            doc_type: Some(_), ..
        } => "document event".to_owned(),
        EventHead { .. } => "event".to_owned(),
    }
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).expect("a Vec takes every write");
    encoder.finish().expect("a Vec takes every write")
}

fn is_one_object(body: &[u8]) -> bool {
    let is_json = std::str::from_utf8(body).is_ok_and(|body| {
        // Not a tree: a body may nest deeper and hold larger numbers than one can.
        serde_json::from_str::<IgnoredAny>(body).is_ok()
    });
    is_json && body.trim_ascii().starts_with(b"{")
}

fn check_head(head: &EventHead, tree: &Value) {
    let text = |value: &Value| {
        value
            .as_str()
            .filter(|text| !text.is_empty())
            .map(Box::from)
    };
    let account = text(&tree["Account-ID"]).or(text(&tree["Custom-Channel-Vars"]["Account-ID"]));
    let expected = EventHead {
        name: text(&tree["Event-Name"]),
        doc_type: text(&tree["Type"]),
        event: text(&tree["Event"]),
        account: account.and_then(|account: Box<str>| AccountId::parse(&account)),
    };
    assert_eq!(*head, expected);
}

fn check_frames(event: &Event, fields: GroupFields<'_>, request_id: Option<&str>) {
    let mut used = EventScratch::default();
    let other = GroupFields {
        routing_key: "another",
        ..fields
    };
    let quoted = request_id.map(|id| Value::from(id).to_string());
    let quoted = quoted.as_deref().map(|text| &text[1..text.len() - 1]);
    let tail = quoted.map(Tail);
    for style in [Style::Piston, Style::Kazoo] {
        used.frame(event, style, other);
        let frame = used.frame(event, style, fields);
        let mut fresh = EventScratch::default();
        fresh.begin(Stamp::None);
        assert_eq!(
            frame,
            fresh.frame(event, style, fields),
            "whatever came before"
        );
        let mut bytes = Vec::new();
        match &tail {
            Some(tail) => tail.write(&frame, &mut bytes),
            None => bytes.extend_from_slice(frame.bytes()),
        }
        let members: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(super::payload_of(&bytes)).expect("a JSON object");
        check_members(event, style, fields, request_id, &members);
    }
}

fn check_members(
    event: &Event,
    style: Style,
    fields: GroupFields<'_>,
    request_id: Option<&str>,
    members: &BTreeMap<String, Box<RawValue>>,
) {
    let (is_piston, body_key) = match style {
        Style::Piston => (true, "args"),
        Style::Kazoo => (false, "data"),
    };
    let name = event
        .head
        .name
        .as_deref()
        .map(|name| match &event.head.doc_type {
            Some(doc_type) if is_piston && fields.name_suffixed_by_type => {
                format!("{name}_{doc_type}")
            }
            _ => name.to_owned(),
        });
    let mut known = 1;
    for (key, expected) in [
        ("action", Some("event")),
        ("name", name.as_deref()),
        ("routing_key", Some(fields.routing_key)),
        ("subscribed_key", Some(fields.subscribed_key)),
        ("subscription_key", Some(fields.subscription_key)),
        ("request_id", request_id),
    ] {
        let found = members
            .get(key)
            .map(|raw| serde_json::from_str::<String>(raw.get()).expect("a text"));
        assert_eq!(found.as_deref(), expected, "{key}");
        known += usize::from(found.is_some());
    }
    assert_eq!(
        members.len(),
        known,
        "no other members than {:?}",
        members.keys()
    );
    let body = members[body_key].get();
    if is_piston {
        assert_eq!(body, &*event.body);
    } else if let Ok(tree) = serde_json::from_str::<Tree>(&event.body) {
        let normalised: Tree = serde_json::from_str(body).expect("as deep as the body");
        assert_eq!(normalised, tree.normalised(0));
    }
}

/// A JSON value with all its members, duplicates too, in their order.
#[derive(PartialEq)]
enum Tree {
    Object(Vec<(String, Tree)>),
    Array(Vec<Tree>),
    Scalar(Value),
}

impl Tree {
    /// As PROTOCOL 5 describes style kazoo.
    fn normalised(self, depth: usize) -> Self {
        match self {
            Self::Object(members) => Self::Object(
                members
                    .into_iter()
                    .filter(|(key, value)| {
                        let is_private =
                            depth == 0 && PRIVATE_HEADERS.split(", ").any(|header| header == key);
                        *value != Self::Scalar(Value::Null) && !is_private
                    })
                    .map(|(key, value)| {
                        (
                            key.to_ascii_lowercase().replace('-', "_"),
                            value.normalised(depth + 1),
                        )
                    })
                    .collect(),
            ),
            Self::Array(elements) => Self::Array(
                elements
                    .into_iter()
                    .map(|element| element.normalised(depth + 1))
                    .collect(),
            ),
            scalar @ Self::Scalar(_) => scalar,
        }
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(members) => f
                .debug_map()
                .entries(members.iter().map(|(key, value)| (key, value)))
                .finish(),
            Self::Array(elements) => f.debug_list().entries(elements).finish(),
            Self::Scalar(value) => write!(f, "{value}"),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TreeVisitor;
        impl<'de> Visitor<'de> for TreeVisitor {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Scalar(Value::Null))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
                Ok(Tree::Scalar(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
                Ok(Tree::Scalar(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
                Ok(Tree::Scalar(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
                Ok(Tree::Scalar(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
                Ok(Tree::Scalar(value.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Tree, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = from.next_element()? {
                    elements.push(element);
                }
                Ok(Tree::Array(elements))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Tree, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = from.next_entry()? {
                    members.push(member);
                }
                Ok(Tree::Object(members))
            }
        }
        deserializer.deserialize_any(TreeVisitor)
    }
}
