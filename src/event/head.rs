//! The head of an event: the members of its body that matching and framing need, read without a document tree.
//!
//! A body is read in one pass, which takes texts as they come. Where that fails, because the body is no JSON or because
//! a key or a value that is looked at is JSON but no text, a second, dearer reading decides. Invariant: where the first
//! reading succeeds, the second would say the same.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
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
        let texts = json.deserialize_map(Texts::default());
        match texts.and_then(|texts| json.end().map(|()| texts)) {
            Ok(texts) => Ok(texts.head()),
            Err(_) => Self::read_raw(body),
        }
    }

    /// The second reading, which knows what is JSON but no text.
    pub(super) fn read_raw(body: &str) -> Result<Self, EventError> {
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

/// The texts that make a head, of the first reading; a value that is no text is `None`.
#[derive(Default)]
struct Texts<'b> {
    name: Option<Cow<'b, str>>,
    doc_type: Option<Cow<'b, str>>,
    event: Option<Cow<'b, str>>,
    account: Option<Cow<'b, str>>,
    channel_account: Option<Cow<'b, str>>,
}

impl Texts<'_> {
    fn head(self) -> EventHead {
        fn full(text: Option<Cow<'_, str>>) -> Option<Cow<'_, str>> {
            text.filter(|text| !text.is_empty())
        }
        let boxed = |text| full(text).map(|text| text.into());
        let account = full(self.account).or_else(|| full(self.channel_account));
        EventHead {
            name: boxed(self.name),
            doc_type: boxed(self.doc_type),
            event: boxed(self.event),
            account: account.and_then(|text| AccountId::parse(&text)),
        }
    }
}

impl<'de> Visitor<'de> for Texts<'de> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some(key) = map.next_key_seed(KeySeed)? {
            let text = match key {
                Key::EventName => &mut self.name,
                Key::Type => &mut self.doc_type,
                Key::Event => &mut self.event,
                Key::AccountId => &mut self.account,
                Key::CustomChannelVars => {
                    self.channel_account = map.next_value_seed(AccountSeed)?;
                    continue;
                }
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *text = map.next_value_seed(TextSeed)?;
        }
        Ok(self)
    }
}

/// Reads a key.
struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Key;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Key, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Key, E> {
        Ok(Key::named(key))
    }
}

/// Defines the visits of the values that are looked at and are no text.
macro_rules! visit_no_text {
    () => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any JSON")
        }

        fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            Ok(None)
        }
    };
}

/// Reads a value as its text, if it is one.
struct TextSeed;

impl<'de> DeserializeSeed<'de> for TextSeed {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TextSeed {
    type Value = Option<Cow<'de, str>>;

    visit_no_text!();

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(text.to_owned())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// Reads `Custom-Channel-Vars` as the text of its `Account-ID`, if it is an object with one.
struct AccountSeed;

impl<'de> DeserializeSeed<'de> for AccountSeed {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AccountSeed {
    type Value = Option<Cow<'de, str>>;

    visit_no_text!();

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut account = None;
        while let Some(key) = map.next_key_seed(KeySeed)? {
            match key {
                Key::AccountId => account = map.next_value_seed(TextSeed)?,
                Key::EventName | Key::Type | Key::Event | Key::CustomChannelVars | Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(account)
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
        Self::named(&text)
    }

    fn named(key: &str) -> Self {
        match key {
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
