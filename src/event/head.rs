//! The head of an event: what is read of its body, without building a document tree.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::body::EventError;
use crate::account::AccountId;

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

impl EventHead {
    /// Reads the head of a body and checks that the whole of it is one JSON object. Linear, no tree.
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
