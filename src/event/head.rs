//! The head of an event: the members of its body that matching and framing need, read without a document tree.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::body::EventError;
use crate::account::AccountId;

/// What matching and framing need of a body. A key that is absent, or whose value is not a string, is `None`. Of
/// duplicate keys the last counts, as in every JSON parser that a client may use.
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

impl EventHead {
    /// Reads the head of `body`, and checks that all of `body` is one JSON object. Cost: linear.
    pub(super) fn read(body: &str) -> Result<Self, EventError> {
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

/// The members that make a head, as they are written in the body. Their values are read only after the whole body has
/// proved to be JSON: a value that is JSON but no text (half of a surrogate pair, a number beyond any range) then counts
/// as absent, and does not cause the event to be dropped.
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
    /// Reads a key as it is written in the body; allocates only for a key with escapes. A key with half of a surrogate
    /// pair is JSON but no text, so it is [`Key::Other`].
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

/// Returns the text of a JSON string that is not empty.
fn text(value: &RawValue) -> Option<Box<str>> {
    let text: Box<str> = serde_json::from_str(value.get()).ok()?;
    (!text.is_empty()).then_some(text)
}

/// Returns `Account-ID` of `Custom-Channel-Vars`, if that is an object.
fn channel_account(channel_vars: &RawValue) -> Option<Box<str>> {
    let mut json = serde_json::Deserializer::from_str(channel_vars.get());
    text(json.deserialize_map(MembersVisitor).ok()?.account?)
}
