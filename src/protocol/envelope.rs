//! The JSON of a command, field by field (PROTOCOL 3). This module knows the types of the fields, not their meaning.
//!
//! A text is read once, without a document tree, and strings without escapes are borrowed from it. `serde_json` stops
//! this reading at a string that is no valid text (half a surrogate pair), at a number that no float can hold (`1e400`)
//! and at a list that nests deeper than 127. The text is then read a second time, each field by itself
//! ([`Reading::Apart`]): the reader first skips the value of a field, which decodes nothing and uses no stack, and then
//! reads that value alone. So a bad value makes only its own field bad ([`Value::Other`]). A text that is not JSON, or
//! not an object, fails both readings.
//!
//! The last of duplicate keys counts; unknown keys are skipped. The cost is linear: both readings together cost at most
//! some four times the first. Memory is bounded by the text: at most one [`Cow`] for four bytes of it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

/// The top level of a command.
#[derive(Default)]
pub(super) struct Envelope<'a> {
    pub(super) action: Value<'a>,
    pub(super) auth_token: Value<'a>,
    pub(super) request_id: Option<&'a RawValue>,
    pub(super) label: RawLabel<'a>,
    pub(super) data: Data<'a>,
}

/// `data`.
#[derive(Default)]
pub(super) enum Data<'a> {
    /// Absent, `null` or without a key.
    #[default]
    Empty,
    NotAnObject,
    Object(Box<DataFields<'a>>),
}

#[derive(Default)]
pub(super) struct DataFields<'a> {
    pub(super) account_id: Value<'a>,
    pub(super) binding: Value<'a>,
    pub(super) bindings: Value<'a>,
    /// Not `null`; skipped, not read.
    pub(super) resume: Option<&'a RawValue>,
    pub(super) label: RawLabel<'a>,
}

#[derive(Default)]
pub(super) struct RawLabel<'a> {
    pub(super) name: Value<'a>,
    /// Not `null`. Its strings and numbers were skipped, not read: see [`is_readable`].
    pub(super) metadata: Option<&'a RawValue>,
}

/// A value of any type. Only texts and lists of texts are kept.
#[derive(Default)]
pub(super) enum Value<'a> {
    /// `null` or absent.
    #[default]
    Null,
    Text(Cow<'a, str>),
    /// A list of texts, none of them empty.
    Texts(Vec<Cow<'a, str>>),
    /// A value of another type, or one that cannot be read.
    Other,
}

impl<'a> Value<'a> {
    /// The text, unless it is empty or there is none.
    fn into_text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) if !text.is_empty() => Some(text),
            Self::Null | Self::Text(_) | Self::Texts(_) | Self::Other => None,
        }
    }
}

impl<'a> Envelope<'a> {
    /// Reads the text of a command.
    ///
    /// # Errors
    /// It is not one JSON object. Of its content the error shows nothing unless it is of category `Data`.
    pub(super) fn read(text: &'a str) -> Result<Self, serde_json::Error> {
        read_as(text, EnvelopeSeed(Reading::Whole))
            .or_else(|_| read_as(text, EnvelopeSeed(Reading::Apart)))
    }
}

/// The first `request_id` of a command that is refused without being read. Reading ends behind it. The cost is linear in
/// the text before it, without an allocation.
pub(super) fn first_request_id(text: &str) -> Option<&RawValue> {
    let mut found = None;
    // The reader stops with an error behind the request id, which is no error of the command.
    let _ = read_as(text, FirstRequestId(&mut found));
    found
}

/// The text of a JSON string; `None` when it is none, or holds half a surrogate pair.
pub(super) fn text_of(raw: &RawValue) -> Option<Cow<'_, str>> {
    let text: Text<'_> = serde_json::from_str(raw.get()).ok()?;
    Some(text.0)
}

/// Whether every string in `json` is a text, every number a finite float, and lists and objects nest no deeper than
/// `depth`: whether any reader can read it. Uses `depth` calls of stack.
pub(super) fn is_readable(json: &RawValue, depth: usize) -> bool {
    read_as(json.get(), Readable { depth }).is_ok()
}

/// How the fields of an object are read.
#[derive(Clone, Copy)]
enum Reading {
    /// One after the other: a value that cannot be read ends the reading.
    Whole,
    /// Each value is skipped first, and then read by itself.
    Apart,
}

impl Reading {
    fn key<'de, A: MapAccess<'de>>(
        self,
        entries: &mut A,
    ) -> Result<Option<Cow<'de, str>>, A::Error> {
        match self {
            Self::Whole => Ok(entries.next_key::<Text<'de>>()?.map(|key| key.0)),
            // A key that is no valid text names no field, and neither does the empty key.
            Self::Apart => Ok(entries
                .next_key::<&'de RawValue>()?
                .map(|key| text_of(key).unwrap_or_default())),
        }
    }

    fn value<'de, A: MapAccess<'de>>(self, entries: &mut A) -> Result<Value<'de>, A::Error> {
        match self {
            Self::Whole => entries.next_value(),
            Self::Apart => {
                let raw: &'de RawValue = entries.next_value()?;
                Ok(serde_json::from_str(raw.get()).unwrap_or(Value::Other))
            }
        }
    }

    fn data<'de, A: MapAccess<'de>>(self, entries: &mut A) -> Result<Data<'de>, A::Error> {
        match self {
            Self::Whole => entries.next_value_seed(DataSeed(self)),
            Self::Apart => {
                let raw: &'de RawValue = entries.next_value()?;
                Ok(read_as(raw.get(), DataSeed(self)).unwrap_or(Data::NotAnObject))
            }
        }
    }
}

/// A value that is skipped, not read; `null` is as good as absent.
fn unread<'de, A: MapAccess<'de>>(entries: &mut A) -> Result<Option<&'de RawValue>, A::Error> {
    let raw: &'de RawValue = entries.next_value()?;
    Ok((raw.get() != "null").then_some(raw))
}

fn read_as<'a, S: DeserializeSeed<'a>>(
    json: &'a str,
    seed: S,
) -> Result<S::Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// A string, borrowed when it has no escapes: `Cow`'s own deserializer always copies.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// The visitor's methods for scalars that are neither text nor `null`.
macro_rules! other_scalars_are {
    ($other:expr) => {
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok($other)
        }
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok($other)
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok($other)
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok($other)
        }
    };
}

impl<'de: 'a, 'a> Deserialize<'de> for Value<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueVisitor;
        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = Value<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            other_scalars_are!(Value::Other);
            fn visit_unit<E>(self) -> Result<Value<'de>, E> {
                Ok(Value::Null)
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
                Ok(Value::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
                Ok(Value::Text(Cow::Owned(text.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value<'de>, A::Error> {
                let mut texts = Vec::new();
                while let Some(element) = elements.next_element::<Value<'de>>()? {
                    let Some(text) = element.into_text() else {
                        while elements.next_element::<IgnoredAny>()?.is_some() {}
                        return Ok(Value::Other);
                    };
                    texts.push(text);
                }
                Ok(Value::Texts(texts))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value<'de>, A::Error> {
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::Other)
            }
        }
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct DataSeed(Reading);

impl<'de> DeserializeSeed<'de> for DataSeed {
    type Value = Data<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Data<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for DataSeed {
    type Value = Data<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    other_scalars_are!(Data::NotAnObject);
    fn visit_unit<E>(self) -> Result<Data<'de>, E> {
        Ok(Data::Empty)
    }
    fn visit_str<E>(self, _: &str) -> Result<Data<'de>, E> {
        Ok(Data::NotAnObject)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Data<'de>, A::Error> {
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Data::NotAnObject)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Data<'de>, A::Error> {
        let reading = self.0;
        let mut fields = DataFields::default();
        let mut is_empty = true;
        while let Some(key) = reading.key(&mut entries)? {
            is_empty = false;
            match &*key {
                "account_id" => fields.account_id = reading.value(&mut entries)?,
                "binding" => fields.binding = reading.value(&mut entries)?,
                "bindings" => fields.bindings = reading.value(&mut entries)?,
                "name" => fields.label.name = reading.value(&mut entries)?,
                "metadata" => fields.label.metadata = unread(&mut entries)?,
                "resume" => fields.resume = unread(&mut entries)?,
                _ => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(if is_empty {
            Data::Empty
        } else {
            Data::Object(Box::new(fields))
        })
    }
}

struct EnvelopeSeed(Reading);

impl<'de> DeserializeSeed<'de> for EnvelopeSeed {
    type Value = Envelope<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Envelope<'de>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EnvelopeSeed {
    type Value = Envelope<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Envelope<'de>, A::Error> {
        let reading = self.0;
        let mut envelope = Envelope::default();
        while let Some(key) = reading.key(&mut entries)? {
            match &*key {
                "action" => envelope.action = reading.value(&mut entries)?,
                "auth_token" => envelope.auth_token = reading.value(&mut entries)?,
                "request_id" => envelope.request_id = Some(entries.next_value()?),
                "data" => envelope.data = reading.data(&mut entries)?,
                "name" => envelope.label.name = reading.value(&mut entries)?,
                "metadata" => envelope.label.metadata = unread(&mut entries)?,
                _ => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(envelope)
    }
}

/// Puts the first `request_id` here.
struct FirstRequestId<'f, 'a>(&'f mut Option<&'a RawValue>);

impl<'de> DeserializeSeed<'de> for FirstRequestId<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FirstRequestId<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(key) = Reading::Apart.key(&mut entries)? {
            if &*key == "request_id" {
                *self.0 = Some(entries.next_value()?);
                return Ok(());
            }
            entries.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// A value in which everything can be read; lists and objects may nest `depth` deep.
struct Readable {
    depth: usize,
}

impl Readable {
    fn inner<E: Error>(&self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1);
        let depth = depth.ok_or_else(|| E::custom("too deep"))?;
        Ok(Self { depth })
    }
}

impl<'de> DeserializeSeed<'de> for Readable {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Readable {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    other_scalars_are!(());
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let depth = self.inner()?.depth;
        while elements.next_element_seed(Self { depth })?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let depth = self.inner()?.depth;
        while entries.next_key::<Text<'de>>()?.is_some() {
            entries.next_value_seed(Self { depth })?;
        }
        Ok(())
    }
}
