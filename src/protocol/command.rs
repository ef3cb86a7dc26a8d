//! Client text to [`Command`] (PROTOCOL 3).
//!
//! This module owns the shape of the JSON and the texts of the errors. The session decides what a command means: whether
//! the client is authenticated, what it may see, what it subscribes to. So a command with a bad `action` is still a
//! [`Command`], with the error in place of the action. The session can then reply `failed to authenticate token` first,
//! as the platform does.
//!
//! Every text that is one JSON object is a command. Its fields are read one by one (`envelope`): of duplicate keys the
//! last counts, unknown keys are skipped, and `null` counts as absent. In the table, a value is *of the wrong kind* also
//! when a text or a list of texts is expected and the value is no text (half of a surrogate pair), is a number beyond
//! the range of a float, or nests deeper than 127.
//!
//! | wrong | what happens |
//! |---|---|
//! | not JSON, not an object | `invalid JSON: …` with line and column, never with the content, which may be a token |
//! | `request_id` | a number counts as its text, an empty string as absent; of the wrong kind, or more than [`REQUEST_ID_BYTES_MAX`]: `invalid request_id` |
//! | `auth_token` of the wrong kind | `failed to authenticate token`; an empty one is absent |
//! | `action` | absent or empty: `missing action`; of the wrong kind: `invalid action`; `unknown action X` echoes at most [`ACTION_ECHO_BYTES_MAX`] |
//! | `data` | subscribe: absent, empty or no object: `missing required keys in data object`; unsubscribe: absent or empty means all |
//! | `account_id`, `binding`, `bindings` | empty: as if absent; of the wrong kind: `invalid account_id` and so on; `bindings` also when one of its elements is empty or no text |
//! | no binding at all | subscribe: the session answers, which knows whether the account is missing too; unsubscribe, unless `account_id` is all there is: `missing required keys : binding` |
//! | `resume` | `false`: as if absent; neither a bool nor the text of a cursor: `invalid resume` |
//! | `name` | of the wrong kind, or more than [`NAME_BYTES_MAX`]: `invalid name` |
//! | `metadata` | too long: `metadata too large (max N bytes)`; nested deeper than [`METADATA_DEPTH_MAX`], or with a string or number in it that cannot be read: `invalid metadata` |
//!
//! ```
//! use blackhole::protocol::command::{Action, CommandError, CommandLimits, parse};
//! use blackhole::protocol::frame::FrameBuilder;
//! use blackhole::protocol::reply;
//!
//! let limits = CommandLimits { metadata_bytes_max: 4096 };
//! let command = parse(r#"{"action": "ping", "request_id": "r1"}"#, &limits)?;
//! assert!(matches!(command.action, Ok((Action::Ping, _))));
//!
//! let frame = reply::pong(&mut FrameBuilder::new(), &command.request_id.unwrap_or_default(), None);
//! let expected = r#"{"action":"reply","request_id":"r1","status":"success","data":{"response":"pong"}}"#;
//! assert_eq!(&frame.bytes()[2..], expected.as_bytes(), "behind a header of two bytes");
//!
//! let nameless = parse("{}", &limits)?;
//! assert_eq!(nameless.action.err(), Some(CommandError::MissingAction));
//! # Ok::<(), CommandError>(())
//! ```

use std::borrow::Cow;
use std::fmt;

use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::history::Cursor;
use crate::metrics::commands::CommandAction;

use super::envelope::{self, Data, Envelope, RawLabel, Value};

/// Longest `request_id`, in bytes of its text. Every event of the subscription carries it.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// Longest `name`, in bytes of its text.
pub const NAME_BYTES_MAX: usize = 256;

/// Most bytes of an unknown action that its error repeats.
pub const ACTION_ECHO_BYTES_MAX: usize = 64;

/// Deepest nesting of `metadata`, so that every reader of a session listing can parse it.
pub const METADATA_DEPTH_MAX: usize = 32;

/// The bounds that are configured.
#[derive(Clone, Copy, Debug)]
pub struct CommandLimits {
    /// Bytes of the JSON text of `metadata` (`max_metadata_bytes`); `usize::MAX`: no limit.
    pub metadata_bytes_max: usize,
}

/// One command of a client.
pub struct Command<'a> {
    /// The id that the reply carries, and for a subscribe every event. `None`: the reply gets a generated id.
    pub request_id: Option<Cow<'a, str>>,
    /// The token, not yet verified and never empty. The error: there is a token that cannot be verified.
    pub auth_token: Result<Option<Cow<'a, str>>, CommandError>,
    /// The word of `action`, as metrics name it.
    pub verb: CommandAction,
    /// What to do, and the label for the session; or why the command cannot be run.
    pub action: Result<(Action<'a>, Label<'a>), CommandError>,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Subscribe to all of these or to none.
    Subscribe {
        /// Account id or `*`, as sent: not checked, not empty. `None`: the identity's own account, if it has one.
        account_id: Option<Cow<'a, str>>,
        /// Client bindings, as sent: not checked, none empty. None at all is an error, whose text depends on the
        /// identity: [`MissingKeys`].
        bindings: Vec<Cow<'a, str>>,
        /// `data.resume`.
        resume: Option<Resume>,
    },
    /// Unsubscribe.
    Unsubscribe(Unsubscribe<'a>),
    /// Reply `pong`.
    Ping,
}

/// From where a subscribe wants events (PROTOCOL 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// From now on, and the cursor of now.
    FromNow,
    /// What came after this.
    After(Cursor),
}

/// The subscriptions that an unsubscribe ends.
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
        /// Client bindings, at least one.
        bindings: Vec<Cow<'a, str>>,
    },
}

/// How a client labels its session. The keys of `data` count before those of the top level.
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
    /// The token was not accepted, or is no string.
    #[error("failed to authenticate token")]
    AuthenticationFailed,
    /// Nobody can say whether the token is good, or may see the account: what must be asked does not answer.
    #[error("authentication unavailable")]
    AuthenticationUnavailable,
    /// No `data`, or nothing in it.
    #[error("missing required keys in data object")]
    MissingData,
    /// Required keys of `data` are missing.
    #[error("missing required keys : {0}")]
    MissingKeys(MissingKeys),
    /// The session's identity may not see this account.
    #[error("unauthorized account id")]
    UnauthorizedAccount,
    /// `*` as the account, from a session that is no superduper admin.
    #[error("unauthorized wildcard account id")]
    UnauthorizedWildcard,
    /// The bucket of the session with this id is empty.
    #[error("rate limiting threshold hit for {0}!")]
    RateLimited(Box<str>),
    /// Not one JSON object: what is wrong, and where.
    #[error("invalid JSON: {0}")]
    InvalidJson(Box<str>),
    /// No `action`.
    #[error("missing action")]
    MissingAction,
    /// An `action` that does not exist: its first [`ACTION_ECHO_BYTES_MAX`] bytes. It is the client's text, to be
    /// escaped before it is logged.
    #[error("unknown action {0}")]
    UnknownAction(Box<str>),
    /// The session would have more subscriptions than this.
    #[error("too many subscriptions (max {0})")]
    TooManySubscriptions(usize),
    /// The session, or the process, would have more AMQP bindings than this.
    #[error("too many bindings (max {0})")]
    TooManyBindings(usize),
    /// The account would have more AMQP bindings than this.
    #[error("too many bindings of this account (max {0})")]
    TooManyBindingsOfAccount(usize),
    /// The token's account already has this many sessions. The session stays as it was.
    #[error("too many sessions of this account (max {0})")]
    TooManySessions(usize),
    /// The event source did not confirm in time, or is not connected.
    #[error("event source unavailable")]
    EventSourceUnavailable,
    /// A field of the wrong kind, or beyond its bound.
    #[error("invalid {0}")]
    Invalid(Field),
    /// `metadata` above this limit.
    #[error("metadata too large (max {0} bytes)")]
    MetadataTooLarge(usize),
}

/// A field that can be invalid; `Display` is its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// No string.
    Action,
    /// No string.
    AccountId,
    /// No string.
    Binding,
    /// No list, or an element is no string, or an empty one.
    Bindings,
    /// Nested deeper than [`METADATA_DEPTH_MAX`], or with a string or a number that some readers cannot read.
    Metadata,
    /// No string, or longer than [`NAME_BYTES_MAX`].
    Name,
    /// Neither a bool nor a cursor.
    Resume,
    /// Neither string nor number, or longer than [`REQUEST_ID_BYTES_MAX`].
    RequestId,
}

/// Which keys of `data` are missing. At least one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingKeys {
    /// `account_id`, which only an identity without an account of its own must give.
    pub account_id: bool,
    /// `binding`, and `bindings` in its place.
    pub binding: bool,
}

/// Reads one command. Cost linear in `text`.
///
/// # Errors
/// [`CommandError::InvalidJson`], and [`CommandError::Invalid`] for [`Field::RequestId`]: there is nothing to run, and
/// the reply gets a generated request id. All other errors are inside the [`Command`].
pub fn parse<'a>(text: &'a str, limits: &CommandLimits) -> Result<Command<'a>, CommandError> {
    let envelope = Envelope::read(text).map_err(|error| invalid_json(&error))?;
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
    let (verb, action) = action(envelope.action, envelope.data, envelope.label, limits);
    Ok(Command {
        request_id,
        auth_token,
        verb,
        action,
    })
}

/// Returns the first usable request id in the text of a command that is refused without being parsed ([`parse`] takes
/// the last). The text behind it is not read, so it need not be JSON. Cost: linear in the text before the id.
#[must_use]
pub fn first_request_id(text: &str) -> Option<Cow<'_, str>> {
    envelope::first_request_id(text).and_then(|raw| request_id(raw).ok().flatten())
}

impl fmt::Debug for Command<'_> {
    /// Shows everything but the token.
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

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Action => "action",
            Self::AccountId => "account_id",
            Self::Binding => "binding",
            Self::Bindings => "bindings",
            Self::Metadata => "metadata",
            Self::Name => "name",
            Self::Resume => "resume",
            Self::RequestId => "request_id",
        })
    }
}

impl CommandError {
    /// The account is missing, and nothing else.
    pub(crate) fn missing_account() -> Self {
        Self::MissingKeys(MissingKeys {
            account_id: true,
            binding: false,
        })
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

fn invalid_json(error: &serde_json::Error) -> CommandError {
    let (line, column) = (error.line(), error.column());
    let text = match error.classify() {
        // These have fixed texts. The text of a data error would contain a value of the client.
        Category::Syntax | Category::Eof => error.to_string(),
        Category::Data | Category::Io => format!("not an object at line {line} column {column}"),
    };
    CommandError::InvalidJson(text.into())
}

fn request_id(raw: &RawValue) -> Result<Option<Cow<'_, str>>, CommandError> {
    let invalid = CommandError::Invalid(Field::RequestId);
    let id = match raw.get().as_bytes() {
        [b'n', ..] => return Ok(None),
        [b'"', ..] => envelope::text_of(raw).ok_or(invalid)?,
        [b'-' | b'0'..=b'9', ..] => Cow::Borrowed(raw.get()),
        _ => return Err(invalid),
    };
    if id.len() > REQUEST_ID_BYTES_MAX {
        return Err(CommandError::Invalid(Field::RequestId));
    }
    Ok((!id.is_empty()).then_some(id))
}

fn action<'a>(
    name: Value<'a>,
    data: Data<'a>,
    label: RawLabel<'a>,
    limits: &CommandLimits,
) -> (CommandAction, Result<(Action<'a>, Label<'a>), CommandError>) {
    let name = match text(name, Field::Action) {
        Ok(Some(name)) => name,
        Ok(None) => return (CommandAction::Unknown, Err(CommandError::MissingAction)),
        Err(error) => return (CommandAction::Unknown, Err(error)),
    };
    let verb = match &*name {
        "subscribe" => CommandAction::Subscribe,
        "unsubscribe" => CommandAction::Unsubscribe,
        "ping" => CommandAction::Ping,
        _ => CommandAction::Unknown,
    };
    (verb, labelled_action(verb, &name, data, label, limits))
}

fn labelled_action<'a>(
    verb: CommandAction,
    name: &str,
    mut data: Data<'a>,
    label: RawLabel<'a>,
    limits: &CommandLimits,
) -> Result<(Action<'a>, Label<'a>), CommandError> {
    let data_label = match &mut data {
        Data::Object(fields) => std::mem::take(&mut fields.label),
        Data::Empty | Data::NotAnObject => RawLabel::default(),
    };
    let action = match verb {
        CommandAction::Subscribe => subscribe(data)?,
        CommandAction::Unsubscribe => Action::Unsubscribe(unsubscribe(data)?),
        CommandAction::Ping => Action::Ping,
        CommandAction::Unknown => {
            let (echo, _) = name.split_at(name.floor_char_boundary(ACTION_ECHO_BYTES_MAX));
            return Err(CommandError::UnknownAction(echo.into()));
        }
    };
    Ok((action, data_label.or(label).checked(limits)?))
}

fn subscribe(data: Data<'_>) -> Result<Action<'_>, CommandError> {
    let Data::Object(fields) = data else {
        return Err(CommandError::MissingData);
    };
    Ok(Action::Subscribe {
        account_id: text(fields.account_id, Field::AccountId)?,
        bindings: bindings(fields.binding, fields.bindings)?.unwrap_or_default(),
        resume: fields.resume.map_or(Ok(None), resume)?,
    })
}

fn unsubscribe(data: Data<'_>) -> Result<Unsubscribe<'_>, CommandError> {
    let fields = match data {
        Data::Empty => return Ok(Unsubscribe::All),
        Data::NotAnObject => return Err(CommandError::MissingData),
        Data::Object(fields) => fields,
    };
    // An empty binding must not end every subscription of the account.
    let names_bindings = !matches!(
        (&fields.binding, &fields.bindings),
        (Value::Null, Value::Null)
    );
    match (
        text(fields.account_id, Field::AccountId)?,
        bindings(fields.binding, fields.bindings)?,
    ) {
        (account_id, Some(bindings)) => Ok(Unsubscribe::Bindings {
            account_id,
            bindings,
        }),
        (Some(account_id), None) if !names_bindings => Ok(Unsubscribe::Account(account_id)),
        (_, None) => Err(CommandError::MissingKeys(MissingKeys {
            account_id: false,
            binding: true,
        })),
    }
}

/// Returns the text of `field`, or `None` when it is absent or empty.
fn text<'a>(value: Value<'a>, field: Field) -> Result<Option<Cow<'a, str>>, CommandError> {
    match value {
        Value::Null => Ok(None),
        Value::Text(text) => Ok((!text.is_empty()).then_some(text)),
        Value::Texts(_) | Value::Other => Err(CommandError::Invalid(field)),
    }
}

/// Returns `data.resume`: `false` counts as absent.
fn resume(raw: &RawValue) -> Result<Option<Resume>, CommandError> {
    let invalid = CommandError::Invalid(Field::Resume);
    match raw.get() {
        "false" => Ok(None),
        "true" => Ok(Some(Resume::FromNow)),
        _ => {
            let text = envelope::text_of(raw).ok_or_else(|| invalid.clone())?;
            let cursor = Cursor::parse(&text).ok_or(invalid)?;
            Ok(Some(Resume::After(cursor)))
        }
    }
}

/// Returns `binding`, else `bindings`: at least one, none of them empty; or `None` when both are absent or empty.
fn bindings<'a>(
    binding: Value<'a>,
    bindings: Value<'a>,
) -> Result<Option<Vec<Cow<'a, str>>>, CommandError> {
    if let Some(binding) = text(binding, Field::Binding)? {
        return Ok(Some(vec![binding]));
    }
    match bindings {
        Value::Null => Ok(None),
        Value::Texts(bindings) => Ok((!bindings.is_empty()).then_some(bindings)),
        Value::Text(_) | Value::Other => Err(CommandError::Invalid(Field::Bindings)),
    }
}

impl<'a> RawLabel<'a> {
    /// Takes name and metadata from `self` where it has them, else from `other`.
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
        let name = text(self.name, Field::Name)?;
        if name
            .as_ref()
            .is_some_and(|name| name.len() > NAME_BYTES_MAX)
        {
            return Err(CommandError::Invalid(Field::Name));
        }
        if let Some(metadata) = self.metadata {
            if metadata.get().len() > limits.metadata_bytes_max {
                return Err(CommandError::MetadataTooLarge(limits.metadata_bytes_max));
            }
            if !envelope::is_readable(metadata, METADATA_DEPTH_MAX) {
                return Err(CommandError::Invalid(Field::Metadata));
            }
        }
        Ok(Label {
            name,
            metadata: self.metadata,
        })
    }
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
        if let Err(error) = command.auth_token {
            return error.to_string();
        }
        let (action, label) = match command.action {
            Ok(understood) => understood,
            Err(error) => return error.to_string(),
        };
        let action = match action {
            Action::Subscribe {
                account_id,
                bindings,
                ..
            } => {
                let account_id = account_id.as_deref().unwrap_or("own account");
                format!("subscribe {account_id} {bindings:?}")
            }
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
        let missing_binding = "missing required keys : binding";
        let names_nothing = "subscribe own account []";
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
            (r#"{"action":"subscribe","data":{"x":1}}"#, names_nothing),
            (
                r#"{"action":"subscribe","data":{"account_id":7,"binding":{"a":1}}}"#,
                "invalid account_id",
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"","binding":""}}"#,
                names_nothing,
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":null,"binding":"b"}}"#,
                r#"subscribe own account ["b"]"#,
            ),
            (
                r#"{"action":"subscribe","data":{"bindings":["b"],"account_id":""}}"#,
                r#"subscribe own account ["b"]"#,
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a"}}"#,
                "subscribe a []",
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a","bindings":[]}}"#,
                "subscribe a []",
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a","bindings":["x",1,"y"]}}"#,
                "invalid bindings",
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a","bindings":["x",""]}}"#,
                "invalid bindings",
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a","bindings":[["x"]]}}"#,
                "invalid bindings",
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a","bindings":"x"}}"#,
                "invalid bindings",
            ),
            (
                r#"{"action":"subscribe","data":{"account_id":"a","binding":["x"]}}"#,
                "invalid binding",
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
                "invalid binding",
            ),
            (
                r#"{"action":"unsubscribe","data":{"account_id":5}}"#,
                "invalid account_id",
            ),
            (
                r#"{"action":"unsubscribe","data":{"bindngs":["typo"]}}"#,
                missing_binding,
            ),
            (
                r#"{"action":"unsubscribe","data":{"binding":""}}"#,
                missing_binding,
            ),
            (
                r#"{"action":"unsubscribe","data":{"account_id":"a","binding":""}}"#,
                missing_binding,
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
            (r#"{"action":1}"#, "invalid action"),
            (r#"{"action":["ping"]}"#, "invalid action"),
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
                "subscribe b []",
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
        assert_eq!(understood(&known), "failed to authenticate token");
        let metadata = |depth| format!(r#"{{"action":"ping","metadata":{}}}"#, deep(depth));
        assert!(understood(&metadata(METADATA_DEPTH_MAX)).starts_with("ping metadata=[["));
        assert_eq!(
            understood(&metadata(METADATA_DEPTH_MAX + 1)),
            "invalid metadata"
        );
        let text_is_flat = format!(r#"{{"action":"ping","metadata":"\"{}"}}"#, "[{".repeat(100));
        assert!(understood(&text_is_flat).starts_with("ping metadata="));
    }

    /// Values that a strict reader of JSON cannot read, though they are JSON.
    fn unreadable() -> Vec<String> {
        let deep = |open: &str, close: &str| open.repeat(200) + "1" + &close.repeat(200);
        vec![
            r#""\ud800""#.to_owned(),
            r#""x\udc00y""#.to_owned(),
            "1e400".to_owned(),
            "-1e400".to_owned(),
            deep("[", "]"),
            deep(r#"{"x":"#, "}"),
            r#"["x","\ud800"]"#.to_owned(),
            "[1e400]".to_owned(),
        ]
    }

    #[test]
    fn a_field_that_cannot_be_read_is_its_own_fault_and_of_no_other() {
        let missing_data = "missing required keys in data object";
        for (with_field, fault) in [
            (r#""action":V"#, "invalid action"),
            (
                r#""action":"ping","auth_token":V"#,
                "failed to authenticate token",
            ),
            (r#""action":"ping","name":V"#, "invalid name"),
            (r#""action":"ping","metadata":V"#, "invalid metadata"),
            (r#""action":"ping","data":{"name":V}"#, "invalid name"),
            (
                r#""action":"ping","data":{"metadata":V}"#,
                "invalid metadata",
            ),
            (r#""action":"ping","data":V"#, "ping"),
            (r#""action":"ping","unknown":V"#, "ping"),
            (r#""action":"ping","data":{"unknown":V}"#, "ping"),
            (r#""action":"ping","name":V,"name":"n""#, "ping name=n"),
            (
                r#""action":"ping","data":V,"data":{"name":V},"data":{"name":"n"}"#,
                "ping name=n",
            ),
            (
                r#""action":"subscribe","data":{"account_id":V,"binding":"x"}"#,
                "invalid account_id",
            ),
            (
                r#""action":"subscribe","data":{"account_id":"a","binding":V}"#,
                "invalid binding",
            ),
            (
                r#""action":"subscribe","data":{"account_id":"a","bindings":V}"#,
                "invalid bindings",
            ),
            (
                r#""action":"subscribe","data":{"account_id":"a","bindings":["x",V]}"#,
                "invalid bindings",
            ),
            (
                r#""action":"subscribe","data":{"account_id":"a","binding":"b","bindings":V,"x":V}"#,
                r#"subscribe a ["b"]"#,
            ),
            (
                r#""action":"unsubscribe","data":{"account_id":V}"#,
                "invalid account_id",
            ),
        ] {
            for value in unreadable() {
                let fields = with_field.replace('V', &value);
                for text in [
                    format!(r#"{{"request_id":"mine",{fields}}}"#),
                    format!(r#"{{{fields},"request_id":"mine"}}"#),
                ] {
                    assert_eq!(understood(&text), fault, "{text}");
                    let id = parse(&text, &LIMITS).map(|command| command.request_id);
                    assert_eq!(id, Ok(Some(Cow::Borrowed("mine"))), "{text}");
                }
            }
        }
        for value in ["1e400", r#""\ud800""#] {
            for action in ["subscribe", "unsubscribe"] {
                let text = format!(r#"{{"action":"{action}","data":{value}}}"#);
                assert_eq!(understood(&text), missing_data, "{text}");
            }
        }
        for text in [
            r#"{"action":"ping","\ud800":1}"#,
            r#"{"action":"ping","data":{"\ud800":1}}"#,
        ] {
            assert_eq!(understood(text), "ping", "a key that is no text: {text}");
        }
    }

    #[test]
    fn a_request_id_that_cannot_be_read_is_invalid_and_a_number_is_its_digits() {
        for value in unreadable() {
            let text = format!(r#"{{"action":"ping","request_id":{value}}}"#);
            let id = parse(&text, &LIMITS).map(|command| command.request_id);
            let expected = if value.ends_with("1e400") {
                Ok(Some(Cow::Borrowed(&*value)))
            } else {
                Err(CommandError::Invalid(Field::RequestId))
            };
            assert_eq!(id, expected, "{text}");
        }
    }

    #[test]
    fn metadata_that_is_kept_can_be_read_by_whoever_reads_the_listings() {
        for metadata in [
            r#""\ud83d\ude00""#,
            r#"{"a":[1.5e300,-0,null,true,"\u0000"]}"#,
            r#"{"":{}}"#,
        ] {
            let text = format!(r#"{{"action":"ping","metadata":{metadata}}}"#);
            assert_eq!(understood(&text), format!("ping metadata={metadata}"));
        }
        for metadata in [
            r#"{"a":["\ud800"]}"#,
            r#"{"\ud800":1}"#,
            r#"[[{"a":1e999}]]"#,
        ] {
            let text = format!(r#"{{"action":"ping","metadata":{metadata}}}"#);
            assert_eq!(understood(&text), "invalid metadata", "{text}");
        }
    }

    #[test]
    fn of_a_refused_command_the_first_usable_request_id_is_found_without_reading_what_is_behind() {
        let deep = "[".repeat(30_000) + &"]".repeat(30_000);
        let behind_deep = format!(r#"{{"x":{deep},"request_id":"r"}}"#);
        for (text, expected) in [
            (r#"{"action":"ping","request_id":"r"}"#, Some("r")),
            (r#"{"request\u005fid":"\u0072"}"#, Some("r")),
            (r#"{"request_id":-1.5e3,"x":1}"#, Some("-1.5e3")),
            (
                r#"{"data":{"request_id":"not this","x":"\ud800"},"\ud800":1e400,"request_id":"r"}"#,
                Some("r"),
            ),
            (behind_deep.as_str(), Some("r")),
            (r#"{"request_id":"r","request_id":"s"}"#, Some("r")),
            (r#"{"request_id":"r" no JSON"#, Some("r")),
            (r#"{"request_id":""}"#, None),
            (r#"{"request_id":null}"#, None),
            (r#"{"request_id":["r"]}"#, None),
            (r#"{"request_id":"\ud800"}"#, None),
            (r#"{"request_id":"r"#, None),
            (r#"["request_id","r"]"#, None),
            (r#""request_id""#, None),
            (r#"{}"#, None),
            ("", None),
        ] {
            assert_eq!(first_request_id(text).as_deref(), expected, "{text}");
        }
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
                resume: None,
            },
            _,
        )) = command.action
        else {
            panic!("a subscribe")
        };
        assert!(matches!(account_id, Some(Cow::Borrowed("a"))));
        assert!(matches!(&bindings[..], [Cow::Borrowed("b")]));
    }

    #[test]
    fn a_request_id_is_a_text_or_a_number_within_its_limit() {
        let invalid = Err(CommandError::Invalid(Field::RequestId));
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
    fn an_unknown_action_is_repeated_in_part() {
        let long = format!(r#"{{"action":"x{}"}}"#, "é".repeat(1000));
        let expected = format!("unknown action x{}", "é".repeat(31));
        assert_eq!(understood(&long), expected, "cut at a character");
        assert_eq!(
            understood(r#"{"action":"\"}\u0000"}"#),
            "unknown action \"}\0"
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
}
