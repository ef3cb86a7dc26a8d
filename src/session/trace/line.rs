//! A line of a trace: one server-sent event, `event: WORD` and `data:` with one JSON object.
//!
//! | word | when, and what it tells beside `at` |
//! |---|---|
//! | `looking` | first: what is looked at (`session`, `account_id`, `realm`, `key`, `event`, `limit`); whether the session is `there`, whose it is (`session_account_id`), its `bindings`; the AMQP `keys` bound for the look and how many there was no room for (`keys_without_room`); the modules that are `stopped`; the `source`: `up` or `down` |
//! | `bound` | an AMQP key of the look is in force: its events come from now on (`exchange`, `key`) |
//! | `opened` | a session was upgraded (`session`, `account_id`, `style`) |
//! | `command` | a session sent a command (`session`, `account_id`, `action`, `request_id`, `for_account_id`, `bindings`), and what came of it: `outcome` is `ok`, `error` with `errors`, or `waits` for the `broker` or the `authenticator` (`waits_for`); one that waited is told again when that is over |
//! | `subscriptions_ended` | subscriptions of a session were ended (`session`, `account_id`, `bindings`, `reason`: `identity`, `rights`, `module`) |
//! | `matched` | an event goes to a subscription: `exchange`, `routing_key`, `account_id`, `name`, `subscribed_key`, `subscription_key`, `for_account_id`, and how many frames were `queued` and `dropped`; the `session` that is looked at, or how many `sessions` share the subscription |
//! | `not_matched` | an event did not reach the session that is looked at, or nobody (`exchange`, `routing_key`, `account_id`, `name`), and `why` |
//! | `written` | bytes went out to the session that is looked at (`session`, `bytes`), and how many still wait (`waiting_bytes`) |
//! | `going_away` | a session was told that the process is going away (`session`, `account_id`, `within_ms` to the first close) |
//! | `closed` | a session is being closed (`session`, `account_id`, `reason`, `code` if a close frame is sent) |
//! | `source` | the source of events is `up` or `down` (`state`) |
//! | `left_out` | `lines` for which there was no room, and `events` that were not judged, because the share of the turn was used up |
//! | `ended` | last: the look ends (`why`: `limit`, `drain`) |
//!
//! No line holds a token, a metadata or any member of a command that is not named here. A text is cut after
//! [`TRACE_TEXT_BYTES_MAX`] bytes, a list after [`TRACE_LISTED_MAX`] entries.

use std::fmt::Display;
use std::io::Write as _;

use crate::account::AccountId;
use crate::json;
use crate::limits::{TRACE_LISTED_MAX, TRACE_TEXT_BYTES_MAX};

/// The word of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Looking,
    Bound,
    Opened,
    Command,
    SubscriptionsEnded,
    Matched,
    NotMatched,
    Written,
    GoingAway,
    Closed,
    Source,
    LeftOut,
    Ended,
}

impl Word {
    fn as_str(self) -> &'static str {
        match self {
            Self::Looking => "looking",
            Self::Bound => "bound",
            Self::Opened => "opened",
            Self::Command => "command",
            Self::SubscriptionsEnded => "subscriptions_ended",
            Self::Matched => "matched",
            Self::NotMatched => "not_matched",
            Self::Written => "written",
            Self::GoingAway => "going_away",
            Self::Closed => "closed",
            Self::Source => "source",
            Self::LeftOut => "left_out",
            Self::Ended => "ended",
        }
    }
}

/// A line that is being written.
#[derive(Debug)]
pub(super) struct Line(Vec<u8>);

impl Line {
    /// `at`: Unix milliseconds.
    pub(super) fn new(word: Word, at: u64) -> Self {
        let mut out = Vec::with_capacity(256);
        let begun = write!(out, "event: {}\ndata: {{\"at\":{at}", word.as_str());
        begun.expect("a Vec takes every write");
        Self(out)
    }

    /// Adds a text.
    pub(super) fn text(mut self, name: &str, text: &str) -> Self {
        self.name(name);
        self.write(text);
        self
    }

    /// Adds a text, if there is one.
    pub(super) fn text_if(self, name: &str, text: Option<impl AsRef<str>>) -> Self {
        match text {
            Some(text) => self.text(name, text.as_ref()),
            None => self,
        }
    }

    /// Adds an account id, if there is one.
    pub(super) fn account(self, name: &str, account: Option<AccountId>) -> Self {
        self.text_if(name, account.map(|account| account.to_string()))
    }

    /// Adds a number or a truth value.
    pub(super) fn value(mut self, name: &str, value: impl Display) -> Self {
        self.name(name);
        write!(self.0, "{value}").expect("a Vec takes every write");
        self
    }

    /// Adds a list of texts.
    pub(super) fn texts<'t>(self, name: &str, texts: impl IntoIterator<Item = &'t str>) -> Self {
        self.list(name, texts, |line, text| line.write(text))
    }

    /// Adds a list of objects of texts.
    pub(super) fn objects<'t, const N: usize>(
        self,
        name: &str,
        members: [&str; N],
        objects: impl IntoIterator<Item = [Option<&'t str>; N]>,
    ) -> Self {
        self.list(name, objects, |line, object| {
            let mut separator = b'{';
            for (member, text) in members.iter().zip(object) {
                if let Some(text) = text {
                    line.0.push(separator);
                    json::write_text(&mut line.0, member);
                    line.0.push(b':');
                    line.write(text);
                    separator = b',';
                }
            }
            if separator == b'{' {
                line.0.push(b'{');
            }
            line.0.push(b'}');
        })
    }

    /// The whole line.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"}\n\n");
        self.0
    }

    fn list<T>(
        mut self,
        name: &str,
        entries: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) -> Self {
        self.name(name);
        self.0.push(b'[');
        let mut entries = entries.into_iter();
        for (at, entry) in entries.by_ref().take(TRACE_LISTED_MAX).enumerate() {
            if at > 0 {
                self.0.push(b',');
            }
            write(&mut self, entry);
        }
        self.0.push(b']');
        match entries.count() {
            0 => self,
            left_out => self.value(&format!("{name}_left_out"), left_out),
        }
    }

    fn name(&mut self, name: &str) {
        self.0.push(b',');
        json::write_text(&mut self.0, name);
        self.0.push(b':');
    }

    fn write(&mut self, text: &str) {
        json::write_text(&mut self.0, cut(text));
    }
}

/// The beginning of a text that lines show.
pub(super) fn cut(text: &str) -> &str {
    let end = text.floor_char_boundary(TRACE_TEXT_BYTES_MAX);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_server_sent_event_whatever_its_texts_hold() {
        let line = Line::new(Word::Closed, 17)
            .text("session", "a\"b\r\n\ndata: x")
            .text_if("none", None::<&str>)
            .value("code", 1001)
            .texts("bindings", ["a", "b"])
            .objects(
                "keys",
                ["exchange", "key"],
                [[Some("e"), Some("k")], [None, None]],
            )
            .end();
        let line = String::from_utf8(line).expect("UTF-8");
        let expected = "event: closed\ndata: {\"at\":17,\"session\":\"a\\\"b\\r\\n\\ndata: x\",\"code\":1001,\
            \"bindings\":[\"a\",\"b\"],\"keys\":[{\"exchange\":\"e\",\"key\":\"k\"},{}]}\n\n";
        assert_eq!(line, expected);
    }

    #[test]
    fn what_is_too_long_is_cut_and_what_is_too_many_is_counted() {
        let long = "é".repeat(TRACE_TEXT_BYTES_MAX);
        let many = vec!["x"; TRACE_LISTED_MAX + 3];
        let line = Line::new(Word::Command, 0)
            .text("a", &long)
            .texts("b", many)
            .end();
        let json = line
            .strip_prefix(b"event: command\ndata: ")
            .expect("the word");
        let json: serde_json::Value = serde_json::from_slice(json).expect("an object");
        let text = json["a"].as_str().expect("a text");
        assert_eq!(text, &long[..TRACE_TEXT_BYTES_MAX / 2 * 2]);
        let listed = json["b"].as_array().expect("a list");
        assert_eq!(
            (listed.len(), &json["b_left_out"]),
            (TRACE_LISTED_MAX, &3.into())
        );
    }
}
