//! Client text to [`Command`]; replies and notices to frames (PROTOCOL 3 and 5).
//!
//! Owns the shape of the JSON and the texts of the errors. What a command means for a session (is it
//! authenticated, may it, what does it subscribe to) is the session's: so a command whose `action` part is bad is
//! still a [`Command`], with the error in place of the action, and the session can answer
//! `failed to authenticate token` first, as the platform does.
//!
//! The text is read once, without a document tree; strings without escapes are borrowed from it. Of duplicate
//! keys the last counts, unknown keys are skipped, `null` is as good as absent. What is skipped costs no stack,
//! however deep it nests; lists where a text belongs may nest as deep as serde_json allows (127). Memory is
//! bounded by the message: at most one [`Cow`] for four bytes of text.
//!
//! | wrong | what happens |
//! |---|---|
//! | not JSON, not an object | `invalid JSON: …` with line and column, never with what stands there: it may be a token |
//! | `request_id` | a number counts as its text, an empty string as absent; other types, or more than [`REQUEST_ID_BYTES_MAX`]: `invalid request_id` |
//! | `auth_token` is no string | `failed to authenticate token`; an empty one is absent |
//! | `action` | absent, empty or no string: `missing action`; `unknown action X` echoes at most [`ACTION_ECHO_BYTES_MAX`] |
//! | `data` | subscribe: absent, empty or no object: `missing required keys in data object`; unsubscribe: absent or empty means all |
//! | `account_id`, `binding`, `bindings` | empty, or of the wrong type: as if absent; `bindings` also when one of its elements is |
//! | `name` | no string, or more than [`NAME_BYTES_MAX`]: `invalid name` |
//! | `metadata` | too long: `metadata too large (max N bytes)`; nested deeper than [`METADATA_DEPTH_MAX`]: `invalid metadata` |

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::frame::{Frame, FrameBuilder, Opcode};

/// Longest `request_id`, in bytes of its text: every event of the subscription carries it.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// Longest `name`, in bytes of its text.
pub const NAME_BYTES_MAX: usize = 256;

/// How much of an unknown action its error repeats.
pub const ACTION_ECHO_BYTES_MAX: usize = 64;

/// Deepest nesting of `metadata`, so that whoever reads a session listing can parse it.
pub const METADATA_DEPTH_MAX: usize = 32;

/// Bounds that are configured.
#[derive(Clone, Copy, Debug)]
pub struct CommandLimits {
    /// Bytes of the JSON text of `metadata` (`max_metadata_bytes`); `usize::MAX`: no limit.
    pub metadata_bytes_max: usize,
}

/// One command of a client.
pub struct Command<'a> {
    /// What the reply, and for a subscribe every event, carries. `None`: the reply gets a generated one.
    pub request_id: Option<Cow<'a, str>>,
    /// The token, not verified, never empty; or that there was one that cannot be verified.
    pub auth_token: Result<Option<Cow<'a, str>>, CommandError>,
    /// What to do, and what the session is to be labelled with; or why it cannot be done.
    pub action: Result<(Action<'a>, Label<'a>), CommandError>,
}

/// What a client wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Subscribe to all of these or to none.
    Subscribe {
        /// Account id or `*`, as sent: not checked, not empty.
        account_id: Cow<'a, str>,
        /// Client bindings, as sent: not checked, at least one, none empty.
        bindings: Vec<Cow<'a, str>>,
    },
    /// Unsubscribe.
    Unsubscribe(Unsubscribe<'a>),
    /// Answer with `pong`.
    Ping,
}

/// What an unsubscribe is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsubscribe<'a> {
    /// Every subscription of the session.
    All,
    /// Every subscription for this account (id or `*`, as sent).
    Account(Cow<'a, str>),
    /// These client bindings, as in [`Action::Subscribe`].
    Bindings {
        /// Account id or `*`; `None`: of every account.
        account_id: Option<Cow<'a, str>>,
        /// Client bindings.
        bindings: Vec<Cow<'a, str>>,
    },
}

/// What a client calls its session; `data`'s count before those of the top level.
#[derive(Clone, Debug, Default)]
pub struct Label<'a> {
    /// At most [`NAME_BYTES_MAX`], not empty.
    pub name: Option<Cow<'a, str>>,
    /// Valid JSON, as sent, within its limits; not `null`.
    pub metadata: Option<&'a RawValue>,
}

/// Errors of a command; the `Display` text is what the client gets (PROTOCOL 3). The errors of a single binding
/// are those of `routing::families`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// A command on a session that is not authenticated, without a token.
    #[error("authentication token required")]
    AuthenticationRequired,
    /// The token did not verify, or is no string.
    #[error("failed to authenticate token")]
    AuthenticationFailed,
    /// No `data`, or nothing in it.
    #[error("missing required keys in data object")]
    MissingData,
    /// Keys of `data` that must be there and are not.
    #[error("missing required keys : {0}")]
    MissingKeys(MissingKeys),
    /// The session's identity may not see this account.
    #[error("unauthorized account id")]
    UnauthorizedAccount,
    /// `*` as the account, from somebody who is no superduper admin.
    #[error("unauthorized wildcard account id")]
    UnauthorizedWildcard,
    /// The bucket of the session with this id is empty.
    #[error("rate limiting threshold hit for {0}!")]
    RateLimited(Box<str>),
    /// Not one JSON object; what and where.
    #[error("invalid JSON: {0}")]
    InvalidJson(Box<str>),
    /// No `action`.
    #[error("missing action")]
    MissingAction,
    /// An `action` that does not exist; at most [`ACTION_ECHO_BYTES_MAX`] of it. The client's text: escape it
    /// before it is logged.
    #[error("unknown action {0}")]
    UnknownAction(Box<str>),
    /// The session would have more subscriptions than this.
    #[error("too many subscriptions (max {0})")]
    TooManySubscriptions(usize),
    /// The token's account has so many sessions already. The session stays what it was.
    #[error("too many sessions of this account (max {0})")]
    TooManySessions(usize),
    /// The event source did not confirm in time, or is away.
    #[error("event source unavailable")]
    EventSourceUnavailable,
    /// A `request_id` that is neither string nor number, or too long.
    #[error("invalid request_id")]
    InvalidRequestId,
    /// A `name` that is no string, or too long.
    #[error("invalid name")]
    InvalidName,
    /// `metadata` above this limit.
    #[error("metadata too large (max {0} bytes)")]
    MetadataTooLarge(usize),
    /// `metadata` nested deeper than [`METADATA_DEPTH_MAX`].
    #[error("invalid metadata")]
    InvalidMetadata,
}

/// Which keys of `data` are missing. At least one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingKeys {
    /// `account_id`.
    pub account_id: bool,
    /// `binding`, and `bindings` in its place.
    pub binding: bool,
}

/// Reads one command. Cost linear in `text`.
///
/// # Errors
/// [`CommandError::InvalidJson`] and [`CommandError::InvalidRequestId`]: there is nothing to run and the reply
/// gets a generated request id. All other errors are inside the [`Command`].
pub fn parse<'a>(text: &'a str, limits: &CommandLimits) -> Result<Command<'a>, CommandError> {
    let envelope: Envelope<'a> =
        serde_json::from_str(text).map_err(|error| invalid_json(&error))?;
    let request_id = match envelope.request_id {
        Some(raw) => request_id(raw)?,
        None => None,
    };
    let auth_token = match envelope.auth_token {
        Value::Text(token) if token.is_empty() => Ok(None),
        Value::Text(token) => Ok(Some(token)),
        Value::Null => Ok(None),
        Value::Texts(_) | Value::Other => Err(CommandError::AuthenticationFailed),
    };
    let action = action(envelope.action, envelope.data, envelope.label, limits);
    Ok(Command {
        request_id,
        auth_token,
        action,
    })
}

/// A request id for a command that had none: 32 hex characters of these random bytes.
#[must_use]
pub fn generated_request_id(random: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(random))
}

/// Reply to a subscribe: all client bindings of the session, in subscription order. Like all writers here it
/// empties `builder` first and leaves its payload behind.
pub fn subscribed<'a>(
    builder: &mut FrameBuilder,
    request_id: &str,
    subscribed: impl IntoIterator<Item = &'a str>,
) -> Frame {
    reply(builder, request_id, "success", |out| {
        out.extend_from_slice(br#""subscribed":"#);
        write_list(out, subscribed);
    })
}

/// Reply to an unsubscribe: the client bindings removed, and those left.
pub fn unsubscribed<'a>(
    builder: &mut FrameBuilder,
    request_id: &str,
    unsubscribed: impl IntoIterator<Item = &'a str>,
    subscribed: impl IntoIterator<Item = &'a str>,
) -> Frame {
    reply(builder, request_id, "success", |out| {
        out.extend_from_slice(br#""unsubscribed":"#);
        write_list(out, unsubscribed);
        out.extend_from_slice(br#","subscribed":"#);
        write_list(out, subscribed);
    })
}

/// Reply to a ping.
pub fn pong(builder: &mut FrameBuilder, request_id: &str) -> Frame {
    reply(builder, request_id, "success", |out| {
        out.extend_from_slice(br#""response":"pong""#)
    })
}

/// Error reply with every error's `Display` text, escaped.
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

/// Gap notice (PROTOCOL 5): so many events were dropped because the session read too slowly.
pub fn gap_slow_consumer(builder: &mut FrameBuilder, dropped: u64) -> Frame {
    gap(
        builder,
        format_args!(r#""reason":"slow_consumer","dropped":{dropped}"#),
    )
}

/// Gap notice (PROTOCOL 5): events may have been lost while the event source was `away`; told in seconds with
/// one decimal.
pub fn gap_event_source(builder: &mut FrameBuilder, away: Duration) -> Frame {
    gap(
        builder,
        format_args!(
            r#""reason":"event_source","seconds":{:.1}"#,
            away.as_secs_f64()
        ),
    )
}

impl fmt::Debug for Command<'_> {
    /// All but the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("request_id", &self.request_id)
            .field(
                "auth_token",
                &self
                    .auth_token
                    .as_ref()
                    .map(|token| token.as_ref().map(|_| "(masked)")),
            )
            .field("action", &self.action)
            .finish()
    }
}

impl fmt::Display for MissingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.account_id, self.binding) {
            (true, true) => "account_id, binding",
            (true, false) => "account_id",
            (false, _) => "binding",
        })
    }
}

/// The top level of a command.
#[derive(Default)]
struct Envelope<'a> {
    action: Value<'a>,
    auth_token: Value<'a>,
    request_id: Option<&'a RawValue>,
    label: RawLabel<'a>,
    data: Data<'a>,
}

/// `data`.
#[derive(Default)]
enum Data<'a> {
    /// Absent, `null` or without a key.
    #[default]
    Empty,
    NotAnObject,
    Object(Box<DataFields<'a>>),
}

#[derive(Default)]
struct DataFields<'a> {
    account_id: Value<'a>,
    binding: Value<'a>,
    bindings: Value<'a>,
    label: RawLabel<'a>,
}

#[derive(Default)]
struct RawLabel<'a> {
    name: Value<'a>,
    metadata: Option<&'a RawValue>,
}

/// A value of any type, of which only texts are of interest.
#[derive(Default)]
enum Value<'a> {
    /// `null` or absent.
    #[default]
    Null,
    Text(Cow<'a, str>),
    /// A list of texts, none of them empty.
    Texts(Vec<Cow<'a, str>>),
    Other,
}

/// A string, borrowed when it has no escapes: `Cow`'s own deserializer always copies.
struct Text<'a>(Cow<'a, str>);

fn invalid_json(error: &serde_json::Error) -> CommandError {
    let (line, column) = (error.line(), error.column());
    let text = match error.classify() {
        // These have fixed texts; a data error would name the value that it met.
        Category::Syntax | Category::Eof => error.to_string(),
        Category::Data | Category::Io => format!("not an object at line {line} column {column}"),
    };
    CommandError::InvalidJson(text.into())
}

fn request_id(raw: &RawValue) -> Result<Option<Cow<'_, str>>, CommandError> {
    let id = match raw.get().as_bytes() {
        [b'n', ..] => return Ok(None),
        [b'"', ..] => {
            serde_json::from_str::<Text<'_>>(raw.get())
                .map_err(|_| CommandError::InvalidRequestId)?
                .0
        }
        [b'-' | b'0'..=b'9', ..] => Cow::Borrowed(raw.get()),
        _ => return Err(CommandError::InvalidRequestId),
    };
    if id.len() > REQUEST_ID_BYTES_MAX {
        return Err(CommandError::InvalidRequestId);
    }
    Ok((!id.is_empty()).then_some(id))
}

fn action<'a>(
    name: Value<'a>,
    mut data: Data<'a>,
    label: RawLabel<'a>,
    limits: &CommandLimits,
) -> Result<(Action<'a>, Label<'a>), CommandError> {
    let name = name.into_text().ok_or(CommandError::MissingAction)?;
    let data_label = match &mut data {
        Data::Object(fields) => std::mem::take(&mut fields.label),
        Data::Empty | Data::NotAnObject => RawLabel::default(),
    };
    let action = match &*name {
        "subscribe" => subscribe(data)?,
        "unsubscribe" => Action::Unsubscribe(unsubscribe(data)?),
        "ping" => Action::Ping,
        unknown => {
            let mut end = unknown.len().min(ACTION_ECHO_BYTES_MAX);
            while !unknown.is_char_boundary(end) {
                end -= 1;
            }
            return Err(CommandError::UnknownAction(unknown[..end].into()));
        }
    };
    Ok((action, data_label.or(label).checked(limits)?))
}

fn subscribe(data: Data<'_>) -> Result<Action<'_>, CommandError> {
    let Data::Object(fields) = data else {
        return Err(CommandError::MissingData);
    };
    match (
        fields.account_id.into_text(),
        Bindings::of(fields.binding, fields.bindings),
    ) {
        (Some(account_id), Bindings::Given(bindings)) => Ok(Action::Subscribe {
            account_id,
            bindings,
        }),
        (account_id, bindings) => Err(CommandError::MissingKeys(MissingKeys {
            account_id: account_id.is_none(),
            binding: !matches!(bindings, Bindings::Given(_)),
        })),
    }
}

fn unsubscribe(data: Data<'_>) -> Result<Unsubscribe<'_>, CommandError> {
    let fields = match data {
        Data::Empty => return Ok(Unsubscribe::All),
        Data::NotAnObject => return Err(CommandError::MissingData),
        Data::Object(fields) => fields,
    };
    match (
        fields.account_id.into_text(),
        Bindings::of(fields.binding, fields.bindings),
    ) {
        (account_id, Bindings::Given(bindings)) => Ok(Unsubscribe::Bindings {
            account_id,
            bindings,
        }),
        (Some(account_id), Bindings::Absent) => Ok(Unsubscribe::Account(account_id)),
        (account_id, bindings) => Err(CommandError::MissingKeys(MissingKeys {
            account_id: account_id.is_none(),
            binding: !matches!(bindings, Bindings::Given(_)),
        })),
    }
}

/// `binding` and `bindings` together.
enum Bindings<'a> {
    Absent,
    Invalid,
    /// Not empty, nor is one of them.
    Given(Vec<Cow<'a, str>>),
}

impl<'a> Bindings<'a> {
    fn of(binding: Value<'a>, bindings: Value<'a>) -> Self {
        match (binding, bindings) {
            (Value::Text(binding), _) if !binding.is_empty() => Self::Given(vec![binding]),
            (_, Value::Texts(bindings)) if !bindings.is_empty() => Self::Given(bindings),
            (Value::Null, Value::Null) => Self::Absent,
            _ => Self::Invalid,
        }
    }
}

impl<'a> RawLabel<'a> {
    /// Each of the two from `self` where it has it, else from `other`.
    fn or(self, other: Self) -> Self {
        Self {
            name: if matches!(self.name, Value::Null) {
                other.name
            } else {
                self.name
            },
            metadata: self.metadata.or(other.metadata),
        }
    }

    fn checked(self, limits: &CommandLimits) -> Result<Label<'a>, CommandError> {
        let name = match self.name {
            Value::Null => None,
            Value::Text(name) if name.len() <= NAME_BYTES_MAX => (!name.is_empty()).then_some(name),
            Value::Text(_) | Value::Texts(_) | Value::Other => {
                return Err(CommandError::InvalidName);
            }
        };
        if let Some(metadata) = self.metadata {
            if metadata.get().len() > limits.metadata_bytes_max {
                return Err(CommandError::MetadataTooLarge(limits.metadata_bytes_max));
            }
            if nesting(metadata.get()) > METADATA_DEPTH_MAX {
                return Err(CommandError::InvalidMetadata);
            }
        }
        Ok(Label {
            name,
            metadata: self.metadata,
        })
    }
}

/// How deep arrays and objects nest in valid JSON.
fn nesting(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut is_escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
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

/// The value of a `metadata` key; `null` is as good as absent.
fn metadata<'de, A: MapAccess<'de>>(entries: &mut A) -> Result<Option<&'de RawValue>, A::Error> {
    let raw: &'de RawValue = entries.next_value()?;
    Ok((raw.get() != "null").then_some(raw))
}

impl<'de: 'a, 'a> Deserialize<'de> for Data<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DataVisitor;
        impl<'de> Visitor<'de> for DataVisitor {
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
                let mut fields = DataFields::default();
                let mut is_empty = true;
                while let Some(Text(key)) = entries.next_key()? {
                    is_empty = false;
                    match &*key {
                        "account_id" => fields.account_id = entries.next_value()?,
                        "binding" => fields.binding = entries.next_value()?,
                        "bindings" => fields.bindings = entries.next_value()?,
                        "name" => fields.label.name = entries.next_value()?,
                        "metadata" => fields.label.metadata = metadata(&mut entries)?,
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
        deserializer.deserialize_any(DataVisitor)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Envelope<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EnvelopeVisitor;
        impl<'de> Visitor<'de> for EnvelopeVisitor {
            type Value = Envelope<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut entries: A,
            ) -> Result<Envelope<'de>, A::Error> {
                let mut envelope = Envelope::default();
                while let Some(Text(key)) = entries.next_key()? {
                    match &*key {
                        "action" => envelope.action = entries.next_value()?,
                        "auth_token" => envelope.auth_token = entries.next_value()?,
                        "request_id" => envelope.request_id = Some(entries.next_value()?),
                        "data" => envelope.data = entries.next_value()?,
                        "name" => envelope.label.name = entries.next_value()?,
                        "metadata" => envelope.label.metadata = metadata(&mut entries)?,
                        _ => {
                            entries.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(envelope)
            }
        }
        deserializer.deserialize_map(EnvelopeVisitor)
    }
}

/// One reply frame, keys in the order of PROTOCOL 3; `write_data` writes the entries of `data`.
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

/// One gap notice; `data` are the entries of its `data`.
fn gap(builder: &mut FrameBuilder, data: fmt::Arguments<'_>) -> Frame {
    builder.clear();
    builder.extend(format!(r#"{{"action":"notice","name":"gap","data":{{{data}}}}}"#).as_bytes());
    builder.frame(Opcode::Text)
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string can be written to memory");
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

    const LIMITS: CommandLimits = CommandLimits {
        metadata_bytes_max: 4096,
    };

    /// What a command was understood as: `action | label`, or its error.
    fn understood(text: &str) -> String {
        let command = match parse(text, &LIMITS) {
            Ok(command) => command,
            Err(error) => return error.to_string(),
        };
        let (action, label) = match command.action {
            Ok(understood) => understood,
            Err(error) => return error.to_string(),
        };
        let action = match action {
            Action::Subscribe {
                account_id,
                bindings,
            } => format!("subscribe {account_id} {bindings:?}"),
            Action::Unsubscribe(Unsubscribe::All) => "unsubscribe all".to_owned(),
            Action::Unsubscribe(Unsubscribe::Account(account_id)) => {
                format!("unsubscribe {account_id}")
            }
            Action::Unsubscribe(Unsubscribe::Bindings {
                account_id,
                bindings,
            }) => {
                let account_id = account_id.as_deref().unwrap_or("every account");
                format!("unsubscribe {account_id} {bindings:?}")
            }
            Action::Ping => "ping".to_owned(),
        };
        let name = label.name.map(|name| format!(" name={name}"));
        let metadata = label
            .metadata
            .map(|metadata| format!(" metadata={metadata}"));
        action + &name.unwrap_or_default() + &metadata.unwrap_or_default()
    }

    #[test]
    fn every_command_means_what_the_protocol_says() {
        let missing_data = "missing required keys in data object";
        let missing_both = "missing required keys : account_id, binding";
        let missing_account = "missing required keys : account_id";
        let missing_binding = "missing required keys : binding";
        for (text, expected) in [
            // subscribe
            (
                r#"{"action":"subscribe","auth_token":"t","request_id":"r","data":{"account_id":"a","binding":"call.*.*"}}"#,
                r#"subscribe a ["call.*.*"]"#,
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a","bindings":["x","y"]}}"#,
                r#"subscribe a ["x", "y"]"#,
            ),
            (
                r#"{"action":"subscribe","data":{"bindings":["x","y"],"binding":"z","account_id":"*"}}"#,
                r#"subscribe * ["z"]"#,
            ),
            (
                r#"{"action":"subscribe","data":{"bindings":["x"],"binding":"","account_id":"a"}}"#,
                r#"subscribe a ["x"]"#,
            ),
            (
                r#" { "data" : {"account_id":"\u0061","binding":"call.\"x"} , "action" : "subscribe" } "#,
                r#"subscribe a ["call.\"x"]"#,
            ),
            (r#"{"action":"subscribe"}"#, missing_data),
            (r#"{"action":"subscribe","data":null}"#, missing_data),
            (r#"{"action":"subscribe","data":{}}"#, missing_data),
            (r#"{"action":"subscribe","data":[]}"#, missing_data),
            (r#"{"action":"subscribe","data":"call.*.*"}"#, missing_data),
            (r#"{"action":"subscribe","data":"\n"}"#, missing_data),
            (r#"{"action":"subscribe","data":true}"#, missing_data),
            (r#"{"action":"subscribe","data":-1}"#, missing_data),
            (r#"{"action":"subscribe","data":1.5}"#, missing_data),
            (r#"{"action":"subscribe","data":{"x":1}}"#, missing_both),
            (
                r#"{"action":"subscribe","data":{"account_id":7,"binding":{"a":1}}}"#,
                missing_both,
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"","binding":""}}"#,
                missing_both,
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":null,"binding":"b"}}"#,
                missing_account,
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a"}}"#,
                missing_binding,
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a","bindings":[]}}"#,
                missing_binding,
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a","bindings":["x",1,"y"]}}"#,
                missing_binding,
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a","bindings":["x",""]}}"#,
                missing_binding,
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a","bindings":[["x"]]}}"#,
                missing_binding,
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a","bindings":"x"}}"#,
                missing_binding,
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a","binding":["x"]}}"#,
                missing_binding,
            ),
            // unsubscribe
            (r#"{"action":"unsubscribe"}"#, "unsubscribe all"),
            (r#"{"action":"unsubscribe","data":{}}"#, "unsubscribe all"),
            (r#"{"action":"unsubscribe","data":null}"#, "unsubscribe all"),
            (r#"{"action":"unsubscribe","data":"all"}"#, missing_data),
            (
                r#"{"action":"unsubscribe","data":{"account_id":"a"}}"#,
                "unsubscribe a",
            ),
            (
                r#"{"action":"unsubscribe","data":{"account_id":"a","binding":"x"}}"#,
                r#"unsubscribe a ["x"]"#,
            ),
            (
                r#"{"action":"unsubscribe","data":{"account_id":"a","bindings":["x","y"]}}"#,
                r#"unsubscribe a ["x", "y"]"#,
            ),
            (
                r#"{"action":"unsubscribe","data":{"binding":"x"}}"#,
                r#"unsubscribe every account ["x"]"#,
            ),
            (
                r#"{"action":"unsubscribe","data":{"account_id":"a","binding":5}}"#,
                missing_binding,
            ),
            (
                r#"{"action":"unsubscribe","data":{"account_id":5}}"#,
                missing_both,
            ),
            (
                r#"{"action":"unsubscribe","data":{"bindngs":["typo"]}}"#,
                missing_both,
            ),
            (
                r#"{"action":"unsubscribe","data":{"binding":""}}"#,
                missing_both,
            ),
            // ping, labels
            (r#"{"action":"ping"}"#, "ping"),
            (
                r#"{"action":"ping","name":"n","metadata":[1, 2]}"#,
                "ping name=n metadata=[1, 2]",
            ),
            (
                r#"{"action":"ping","name":"top","metadata":1,"data":{"name":"in","metadata":2}}"#,
                "ping name=in metadata=2",
            ),
            (
                r#"{"action":"ping","name":"top","metadata":1,"data":{"name":null,"metadata":null}}"#,
                "ping name=top metadata=1",
            ),
            (r#"{"action":"ping","name":"","metadata":null}"#, "ping"),
            (r#"{"action":"ping","name":5}"#, "invalid name"),
            (r#"{"action":"ping","data":{"name":["n"]}}"#, "invalid name"),
            // action
            ("{}", "missing action"),
            (r#"{"action":null}"#, "missing action"),
            (r#"{"action":""}"#, "missing action"),
            (r#"{"action":1}"#, "missing action"),
            (r#"{"action":["ping"]}"#, "missing action"),
            (r#"{"action":"Ping"}"#, "unknown action Ping"),
            // duplicate and unknown keys
            (
                r#"{"action":"nonsense","action":"ping","x":{"action":"x"}}"#,
                "ping",
            ),
            (
                r#"{"action":"ping","data":1,"data":{},"name":1,"name":"n"}"#,
                "ping name=n",
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":1,"account_id":"a","binding":"x","binding":"y"}}"#,
                r#"subscribe a ["y"]"#,
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a","binding":"x"},"data":{"account_id":"b"}}"#,
                missing_binding,
            ),
        ] {
            assert_eq!(understood(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_json_object_is_refused_with_the_place_and_not_the_content() {
        for (text, expected) in [
            ("", "EOF while parsing a value at line 1 column 0"),
            ("hunter2", "expected value at line 1 column 1"),
            ("\"hunter2\"", "not an object at line 1 column 9"),
            ("[\"hunter2\"]", "not an object at line 1 column 0"),
            ("null", "not an object at line 1 column 4"),
            ("17", "not an object at line 1 column 2"),
            (
                "{\"auth_token\":\n\"hunter2}",
                "EOF while parsing a string at line 2 column 9",
            ),
            (
                r#"{"auth_token":"hunter2" "action":1}"#,
                "expected `,` or `}` at line 1 column 25",
            ),
            (
                r#"{"action":"ping"}{}"#,
                "trailing characters at line 1 column 18",
            ),
            (
                "{\"action\":\"ping\",}",
                "trailing comma at line 1 column 18",
            ),
            ("{action:1}", "key must be a string at line 1 column 2"),
        ] {
            let error = parse(text, &LIMITS).expect_err(text);
            assert_eq!(
                error.to_string(),
                format!("invalid JSON: {expected}"),
                "{text}"
            );
        }
    }

    #[test]
    fn deep_nesting_is_skipped_or_refused_without_using_the_stack() {
        let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let skipped = format!(
            r#"{{"action":"ping","x":{},"data":{{"y":{}}}}}"#,
            deep(30_000),
            deep(30_000)
        );
        assert_eq!(understood(&skipped), "ping");
        let known = format!(r#"{{"action":"ping","auth_token":{}}}"#, deep(30_000));
        assert!(understood(&known).starts_with("invalid JSON: recursion limit exceeded"));
        let metadata = |depth| format!(r#"{{"action":"ping","metadata":{}}}"#, deep(depth));
        assert!(understood(&metadata(METADATA_DEPTH_MAX)).starts_with("ping metadata=[["));
        assert_eq!(
            understood(&metadata(METADATA_DEPTH_MAX + 1)),
            "invalid metadata"
        );
        let text_is_flat = format!(r#"{{"action":"ping","metadata":"\"{}"}}"#, "[{".repeat(100));
        assert!(understood(&text_is_flat).starts_with("ping metadata="));
    }

    #[test]
    fn tokens_are_texts_and_never_shown() {
        for (value, expected) in [
            (r#""t""#, Ok(Some("t"))),
            (r#""t\u0061""#, Ok(Some("ta"))),
            (r#""""#, Ok(None)),
            ("null", Ok(None)),
            ("5", Err(CommandError::AuthenticationFailed)),
            ("true", Err(CommandError::AuthenticationFailed)),
            (r#"["t"]"#, Err(CommandError::AuthenticationFailed)),
            (r#"{"t":1}"#, Err(CommandError::AuthenticationFailed)),
        ] {
            let text = format!(r#"{{"action":"ping","auth_token":{value}}}"#);
            let command = parse(&text, &LIMITS).expect("valid JSON");
            let token = command.auth_token.as_ref().map(|token| token.as_deref());
            assert_eq!(token, expected.as_ref().copied(), "{text}");
        }
        let text = r#"{"action":"ping","auth_token":"hunter2"}"#;
        let shown = format!("{:?}", parse(text, &LIMITS));
        assert!(
            shown.contains("masked") && !shown.contains("hunter2"),
            "{shown}"
        );
    }

    #[test]
    fn a_plain_text_is_borrowed_from_the_message() {
        let text = r#"{"action":"subscribe","auth_token":"t","request_id":"r","data":{"account_id":"a","binding":"b"}}"#;
        let command = parse(text, &LIMITS).expect("valid JSON");
        assert!(matches!(command.auth_token, Ok(Some(Cow::Borrowed("t")))));
        assert!(matches!(command.request_id, Some(Cow::Borrowed("r"))));
        let Ok((
            Action::Subscribe {
                account_id,
                bindings,
            },
            _,
        )) = command.action
        else {
            panic!("a subscribe")
        };
        assert!(matches!(account_id, Cow::Borrowed("a")));
        assert!(matches!(&bindings[..], [Cow::Borrowed("b")]));
    }

    #[test]
    fn a_request_id_is_a_text_or_a_number_within_its_limit() {
        let invalid = Err(CommandError::InvalidRequestId);
        let longest = "é".repeat(REQUEST_ID_BYTES_MAX / 2);
        for (value, expected) in [
            (r#""r-1""#.to_owned(), Ok(Some("r-1"))),
            (r#""\"\u00e9""#.to_owned(), Ok(Some("\"é"))),
            ("17".to_owned(), Ok(Some("17"))),
            ("-1.50e3".to_owned(), Ok(Some("-1.50e3"))),
            (r#""""#.to_owned(), Ok(None)),
            ("null".to_owned(), Ok(None)),
            ("true".to_owned(), invalid.clone()),
            ("[1]".to_owned(), invalid.clone()),
            ("{}".to_owned(), invalid.clone()),
            (format!("\"{longest}\""), Ok(Some(longest.as_str()))),
            (format!("\"{longest}x\""), invalid.clone()),
            ("1".repeat(REQUEST_ID_BYTES_MAX + 1), invalid.clone()),
        ] {
            let text = format!(r#"{{"action":"ping","request_id":{value}}}"#);
            let id = parse(&text, &LIMITS).map(|command| command.request_id.map(Cow::into_owned));
            assert_eq!(id, expected.map(|id| id.map(str::to_owned)), "{text}");
        }
    }

    #[test]
    fn labels_are_taken_up_to_their_limits() {
        let name =
            |length: usize| format!(r#"{{"action":"ping","name":"{}"}}"#, "n".repeat(length));
        assert!(understood(&name(NAME_BYTES_MAX)).starts_with("ping name="));
        assert_eq!(understood(&name(NAME_BYTES_MAX + 1)), "invalid name");
        let metadata = |length: usize| {
            format!(
                r#"{{"action":"ping","data":{{"metadata":"{}"}}}}"#,
                "m".repeat(length - 2)
            )
        };
        assert!(understood(&metadata(4096)).starts_with("ping metadata="));
        assert_eq!(
            understood(&metadata(4097)),
            "metadata too large (max 4096 bytes)"
        );
        let text = metadata(100_000);
        let unlimited = CommandLimits {
            metadata_bytes_max: usize::MAX,
        };
        assert!(parse(&text, &unlimited).is_ok_and(|command| command.action.is_ok()));
    }

    #[test]
    fn an_unknown_action_is_repeated_in_part_and_escaped() {
        let long = format!(r#"{{"action":"x{}"}}"#, "é".repeat(1000));
        let expected = format!("unknown action x{}", "é".repeat(31));
        assert_eq!(understood(&long), expected, "cut at a character");
        let Err(error) = parse(r#"{"action":"\"}\u0000"}"#, &LIMITS)
            .expect("valid JSON")
            .action
        else {
            panic!("unknown")
        };
        let frame = errors(&mut FrameBuilder::new(), "r", [error]);
        assert_eq!(
            payload(&frame),
            r#"{"action":"reply","request_id":"r","status":"error","data":{"errors":["unknown action \"}\u0000"]}}"#
        );
    }

    #[test]
    fn error_texts_are_those_that_clients_match_on() {
        let missing = |account_id, binding| {
            CommandError::MissingKeys(MissingKeys {
                account_id,
                binding,
            })
        };
        for (error, text) in [
            (
                CommandError::AuthenticationRequired,
                "authentication token required",
            ),
            (
                CommandError::AuthenticationFailed,
                "failed to authenticate token",
            ),
            (
                CommandError::MissingData,
                "missing required keys in data object",
            ),
            (
                missing(true, true),
                "missing required keys : account_id, binding",
            ),
            (missing(true, false), "missing required keys : account_id"),
            (missing(false, true), "missing required keys : binding"),
            (CommandError::UnauthorizedAccount, "unauthorized account id"),
            (
                CommandError::UnauthorizedWildcard,
                "unauthorized wildcard account id",
            ),
            (
                CommandError::RateLimited("127.0.0.1:4711".into()),
                "rate limiting threshold hit for 127.0.0.1:4711!",
            ),
            (CommandError::MissingAction, "missing action"),
            (
                CommandError::TooManySubscriptions(256),
                "too many subscriptions (max 256)",
            ),
            (
                CommandError::TooManySessions(5),
                "too many sessions of this account (max 5)",
            ),
            (
                CommandError::EventSourceUnavailable,
                "event source unavailable",
            ),
        ] {
            assert_eq!(error.to_string(), text);
        }
    }

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
                subscribed(builder, "r\"1", ["call.CHANNEL_CREATE.*", "a\\b"]),
                r#"{"action":"reply","request_id":"r\"1","status":"success","data":{"subscribed":["call.CHANNEL_CREATE.*","a\\b"]}}"#,
            ),
            (
                subscribed(builder, "r", []),
                r#"{"action":"reply","request_id":"r","status":"success","data":{"subscribed":[]}}"#,
            ),
            (
                unsubscribed(builder, "r", ["x", "y"], ["z"]),
                r#"{"action":"reply","request_id":"r","status":"success","data":{"unsubscribed":["x","y"],"subscribed":["z"]}}"#,
            ),
            (
                pong(builder, "r"),
                r#"{"action":"reply","request_id":"r","status":"success","data":{"response":"pong"}}"#,
            ),
            (
                errors(builder, "r", ["unauthorized account id", "two"]),
                r#"{"action":"reply","request_id":"r","status":"error","data":{"errors":["unauthorized account id","two"]}}"#,
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
