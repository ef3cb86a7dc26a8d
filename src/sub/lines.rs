//! What is printed of a frame, in each form of output. Pure.
//!
//! Invariants: a line is one line. For people, and in routing keys, what a terminal would act upon is escaped, so
//! that nothing that an event holds steers a terminal; with `--json` a frame means what it meant, and is spelt so that
//! nothing in it steers one either.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;

use crate::printable::{printable, printable_json};

const TIME: StaticFormatDescription =
    format_description!("[hour]:[minute]:[second].[subsecond digits:3]Z");
const DATE_AND_TIME: StaticFormatDescription =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// Characters of a text of somebody else's that a line for people shows.
const SHOWN_CHARS_MAX: usize = 200;
/// Characters of one field of an event.
const FIELD_CHARS_MAX: usize = 40;
/// Fields of one event.
const FIELDS_MAX: usize = 5;

/// The fields that tell most about an event, the first ones most; as style `kazoo` spells them.
const TELLING: [&str; 14] = [
    "caller_id_number",
    "callee_id_number",
    "from",
    "to",
    "call_direction",
    "hangup_cause",
    "event",
    "conference_id",
    "participant_id",
    "type",
    "id",
    "username",
    "presence_id",
    "state",
];

/// How events are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One line an event, with a few fields of it.
    People {
        /// Whether a terminal shows it.
        is_coloured: bool,
    },
    /// The frame as it came.
    Json,
    /// The routing key alone.
    Keys,
}

/// A frame of the server's, as far as it is looked at.
#[derive(Debug, Deserialize)]
pub(super) struct Frame<'a> {
    /// `event`, `notice` or `reply`.
    #[serde(borrow)]
    pub(super) action: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) name: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) routing_key: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) request_id: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) status: Cow<'a, str>,
    /// Of an event.
    #[serde(borrow, default)]
    pub(super) cursor: Option<Cow<'a, str>>,
    /// The event was missed, and comes late.
    #[serde(default)]
    pub(super) replayed: bool,
    /// The body in style `piston`.
    #[serde(borrow, default)]
    pub(super) args: Option<&'a RawValue>,
    /// The body in style `kazoo`; of a notice or reply, what it tells.
    #[serde(borrow, default)]
    pub(super) data: Option<&'a RawValue>,
}

/// The members of `data` that are about a resume (PROTOCOL 10).
#[derive(Debug, Default, Deserialize)]
pub(super) struct Resumption {
    /// Of a reply: the position of the session.
    #[serde(default)]
    pub(super) cursor: Option<String>,
    /// Of a reply to a subscribe with a cursor: whether what was missed comes now.
    #[serde(default)]
    pub(super) resumed: Option<bool>,
    /// Of the notice `resumed`: the events that came.
    #[serde(default)]
    pub(super) events: Option<u64>,
    /// Of a gap: its cause.
    #[serde(default)]
    pub(super) reason: Option<String>,
    /// Of a gap with the reason `resume`.
    #[serde(default)]
    pub(super) why: Option<String>,
    /// Of the notice `going_away`: milliseconds until the first session is closed.
    #[serde(default)]
    pub(super) within_ms: Option<u64>,
}

impl<'a> Frame<'a> {
    /// Reads a frame; `None`: it is none that the protocol has.
    pub(super) fn read(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// The members of its body or data.
    fn members(&self) -> Map<String, Value> {
        let raw = self.args.or(self.data);
        raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
            .unwrap_or_default()
    }

    /// What a reply or notice tells of a resume.
    pub(super) fn resumption(&self) -> Resumption {
        self.data
            .and_then(|data| serde_json::from_str(data.get()).ok())
            .unwrap_or_default()
    }

    /// The errors of a reply.
    pub(super) fn errors(&self) -> Vec<String> {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<String>,
        }
        self.data
            .and_then(|data| serde_json::from_str::<Errors>(data.get()).ok())
            .map(|data| data.errors)
            .unwrap_or_default()
    }
}

/// The line of an event. `text` is its frame; `label` names the session where there are several.
pub(super) fn event(
    form: Form,
    label: Option<&str>,
    text: &str,
    frame: &Frame<'_>,
    at: SystemTime,
) -> String {
    let (key, name) = (printable(&frame.routing_key), printable(&frame.name));
    match form {
        Form::Json => as_json(label, text),
        Form::Keys => match label {
            Some(label) => format!("{label} {key}"),
            None => key.into_owned(),
        },
        Form::People { is_coloured } => {
            let (faint, bold, plain) = if is_coloured {
                ("\x1b[2m", "\x1b[1;36m", "\x1b[0m")
            } else {
                ("", "", "")
            };
            let mut line = format!("{faint}{}{plain} ", time_of_day(at));
            if let Some(label) = label {
                let _infallible = write!(line, "{label} ");
            }
            let _infallible = write!(line, "{bold}{name}{plain} {key}");
            for (field, value) in telling(&frame.members()) {
                let _infallible = write!(line, "  {faint}{field}={plain}{value}");
            }
            line
        }
    }
}

/// A frame on one line, with the session's label as its first member where there are several sessions. In JSON a line end or
/// a tab outside of a text is white space, and inside of one it is escaped.
pub(super) fn as_json(label: Option<&str>, frame: &str) -> String {
    let frame = frame.trim().replace(['\n', '\r', '\t'], " ");
    let frame = printable_json(&frame).into_owned();
    match (label, frame.strip_prefix('{')) {
        (Some(label), Some(members)) => {
            let comma = if members.trim_start().starts_with('}') {
                ""
            } else {
                ","
            };
            format!("{{\"session\":{}{comma}{members}", json!(label))
        }
        _ => frame,
    }
}

/// The notice by which `--json` tells that events may be missing, in the server's own form.
pub(super) fn gap_notice(from: SystemTime, to: SystemTime) -> String {
    json!({
        "action": "notice",
        "name": "gap",
        "data": {"reason": "reconnect", "from": date_and_time(from), "to": date_and_time(to)},
    })
    .to_string()
}

/// A notice for people: its name, and what it tells.
pub(super) fn notice(frame: &Frame<'_>) -> String {
    let mut line = format!("{}:", cut(&frame.name));
    for (name, value) in frame.members() {
        let value = match value {
            Value::String(text) => text,
            value => value.to_string(),
        };
        let _infallible = write!(line, " {}={}", cut(&name), cut(&value));
    }
    line
}

/// The most telling fields of a body in either style, in the spelling of the body.
fn telling(members: &Map<String, Value>) -> Vec<(String, String)> {
    let normalised = |name: &str| name.to_ascii_lowercase().replace('-', "_");
    let shown = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::String(text) if text.is_empty() => return None,
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(_) | Value::Null | Value::Array(_) | Value::Object(_) => return None,
        };
        Some((cut(name), shortened(&value, FIELD_CHARS_MAX)))
    };
    TELLING
        .iter()
        .filter_map(|wanted| {
            let is_it = |(name, _): &(&String, &Value)| normalised(name) == *wanted;
            members.iter().find(is_it).and_then(shown)
        })
        .take(FIELDS_MAX)
        .collect()
}

/// A text of somebody else's, for people: printable, and not too long.
pub(super) fn cut(text: &str) -> String {
    shortened(text, SHOWN_CHARS_MAX)
}

fn shortened(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", printable(&text[..end])),
        None => printable(text).into_owned(),
    }
}

/// `12:00:00.123Z`
pub(super) fn time_of_day(at: SystemTime) -> String {
    // The calendar has every time that a clock can show.
    OffsetDateTime::from(at).format(TIME).unwrap_or_default()
}

fn date_and_time(at: SystemTime) -> String {
    OffsetDateTime::from(at)
        .format(DATE_AND_TIME)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PISTON: &str = r#"{"action":"event","name":"CHANNEL_CREATE","routing_key":"call.a.CHANNEL_CREATE.1","args":{"Call-ID":"1","To":"bob@x","Caller-ID-Number":"100","Empty":"","Custom":{"To":"no"}},"subscribed_key":"call.*.*"}"#;

    fn line(form: Form, label: Option<&str>, text: &str) -> String {
        let frame = Frame::read(text).expect("a frame");
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(3_723_004);
        event(form, label, text, &frame, at)
    }

    const PLAIN: Form = Form::People { is_coloured: false };

    #[test]
    fn an_event_is_one_line_in_every_form() {
        assert_eq!(
            line(PLAIN, None, PISTON),
            "01:02:03.004Z CHANNEL_CREATE call.a.CHANNEL_CREATE.1  Caller-ID-Number=100  To=bob@x"
        );
        assert_eq!(
            line(PLAIN, Some("h:1#2"), PISTON),
            "01:02:03.004Z h:1#2 CHANNEL_CREATE call.a.CHANNEL_CREATE.1  Caller-ID-Number=100  To=bob@x"
        );
        assert_eq!(line(Form::Keys, None, PISTON), "call.a.CHANNEL_CREATE.1");
        assert_eq!(
            line(Form::Keys, Some("h:1"), PISTON),
            "h:1 call.a.CHANNEL_CREATE.1"
        );
        assert_eq!(line(Form::Json, None, PISTON), PISTON);
        let labelled = line(Form::Json, Some("h:1"), PISTON);
        assert_eq!(labelled, PISTON.replacen('{', r#"{"session":"h:1","#, 1));
        assert!(Frame::read(&labelled).is_some());
        assert!(
            line(Form::People { is_coloured: true }, None, PISTON)
                .contains("\x1b[1;36mCHANNEL_CREATE\x1b[0m")
        );
    }

    #[test]
    fn style_kazoo_has_its_own_spelling() {
        let text = r#"{"action":"event","name":"x","routing_key":"k","data":{"caller_id_number":"100","hangup_cause":"NORMAL"}}"#;
        assert_eq!(
            line(PLAIN, None, text),
            "01:02:03.004Z x k  caller_id_number=100  hangup_cause=NORMAL"
        );
    }

    #[test]
    fn nothing_that_an_event_holds_steers_a_terminal_or_breaks_a_line() {
        let text = r#"{"action":"event","name":"a\u001b[31m","routing_key":"k\r\n\u202e","args":{"To":"\u009b2J\nx","Id":"é"}}"#;
        assert_eq!(
            line(PLAIN, None, text),
            "01:02:03.004Z a\\u{1b}[31m k\\r\\n\\u{202e}  To=\\u{9b}2J\\nx  Id=é"
        );
        assert_eq!(line(Form::Keys, None, text), "k\\r\\n\\u{202e}");
        let long = format!(
            r#"{{"action":"event","args":{{"To":"{}"}}}}"#,
            "x".repeat(9000)
        );
        assert!(line(PLAIN, None, &long).len() < 100);
    }

    #[test]
    fn json_over_several_lines_comes_out_on_one_and_means_the_same() {
        let text = "{\"action\": \"event\",\r\n \"args\": {\n\"To\": \"a\\nb\"}}\n";
        let printed = line(Form::Json, Some("s"), text);
        assert!(!printed.contains(['\n', '\r']));
        let mut expected: Value = serde_json::from_str(text).expect("JSON");
        expected["session"] = json!("s");
        assert_eq!(
            serde_json::from_str::<Value>(&printed).expect("JSON"),
            expected
        );
        assert_eq!(as_json(Some("s"), "{ }"), r#"{"session":"s" }"#);
        let text = "{\t\"To\":\t\"a\u{9b}2J\u{202e}\u{7f} é\"}";
        let printed = as_json(None, text);
        assert_eq!(printed, "{ \"To\": \"a\\u009b2J\\u202e\\u007f é\"}");
        let value = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        assert_eq!(value(&printed), value(text));
    }

    #[test]
    fn notices_and_gaps_tell_what_they_hold() {
        let text =
            r#"{"action":"notice","name":"gap","data":{"reason":"slow_consumer","dropped":12}}"#;
        let frame = Frame::read(text).expect("a frame");
        assert_eq!(notice(&frame), "gap: dropped=12 reason=slow_consumer");
        let from = SystemTime::UNIX_EPOCH;
        let gap = gap_notice(from, from + Duration::from_millis(1500));
        let gap: Value = serde_json::from_str(&gap).expect("JSON");
        assert_eq!(
            gap["data"],
            json!({"reason": "reconnect", "from": "1970-01-01T00:00:00.000Z", "to": "1970-01-01T00:00:01.500Z"})
        );
    }
}
