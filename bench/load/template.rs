//! Commands, paths and ends of events that are numbered by session.
//!
//! | in the template | becomes |
//! |---|---|
//! | `{n}` | the session's number, from 1 |
//! | `{hex}` | the same as 12 hex digits: the end of a GUID |
//! | `{account}` | 32 hex digits of `(n - 1) % accounts + 1`: the ids of the demo source's accounts |
//! | `{guid}` | a GUID of the session's own, 36 characters, the same in every run |
//! | `{token}` | the auth token; of several the one of the session's turn |
//!
//! Any other brace stays, so JSON needs no escaping.

use std::fmt::Write;
use std::sync::Arc;

use uuid::Builder;

/// A text with places for the session's number, account, GUID and auth token.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    pieces: Vec<Piece>,
    accounts: u32,
    tokens: Tokens,
}

/// The auth tokens of all sessions.
#[derive(Clone, Debug)]
pub(crate) enum Tokens {
    /// One for all; what looks like a place in it is one.
    Shared(Arc<str>),
    /// The sessions take them in turn, as they are. Not empty.
    Each(Arc<[Box<str>]>),
}

impl Tokens {
    /// The tokens of `text`, one a line; `None` when there is none.
    pub(crate) fn lines(text: &str) -> Option<Self> {
        let tokens = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let tokens: Arc<[Box<str>]> = tokens.map(Box::from).collect();
        (!tokens.is_empty()).then_some(Self::Each(tokens))
    }

    /// That of session number `n`, from 1.
    fn of(&self, n: usize) -> &str {
        match self {
            Self::Shared(token) => token,
            Self::Each(tokens) => &tokens[n.saturating_sub(1) % tokens.len()],
        }
    }
}

impl From<&str> for Tokens {
    fn from(token: &str) -> Self {
        Self::Shared(token.into())
    }
}

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Number,
    Hex,
    Account,
    Guid,
    Token,
}

impl Template {
    /// `text` as above; `accounts`: at least 1.
    #[must_use]
    pub(crate) fn new(text: &str, accounts: u32, tokens: impl Into<Tokens>) -> Self {
        let tokens = tokens.into();
        let text = match &tokens {
            Tokens::Shared(token) => text.replace("{token}", token),
            Tokens::Each(_) => text.to_owned(),
        };
        let mut pieces = Vec::new();
        let mut rest = &text[..];
        while let Some((at, name, piece)) = first_place(rest) {
            pieces.push(Piece::Text(rest[..at].into()));
            pieces.push(piece);
            rest = &rest[at + name.len()..];
        }
        pieces.push(Piece::Text(rest.into()));
        Self {
            pieces,
            accounts: accounts.max(1),
            tokens,
        }
    }

    /// The text of session number `n`, from 1. Linear in the text.
    #[must_use]
    pub(crate) fn fill(&self, n: usize) -> String {
        let mut text = String::new();
        self.fill_into(n, &mut text);
        text
    }

    /// Makes `text` that of session number `n`. Linear in the text.
    pub(crate) fn fill_into(&self, n: usize, text: &mut String) {
        text.clear();
        for piece in &self.pieces {
            // Writing to a text cannot fail.
            let _ = match piece {
                Piece::Text(piece) => text.write_str(piece),
                Piece::Number => write!(text, "{n}"),
                Piece::Hex => write!(text, "{n:012x}"),
                Piece::Account => {
                    let account = n.saturating_sub(1) % self.accounts as usize + 1;
                    write!(text, "{account:032x}")
                }
                Piece::Guid => text.write_str(guid(n).encode_lower(&mut [0; 36])),
                Piece::Token => text.write_str(self.tokens.of(n)),
            };
        }
    }
}

/// Where the first place of `text` is, how it is written, and what it is.
fn first_place(text: &str) -> Option<(usize, &'static str, Piece)> {
    let places = [
        ("{n}", Piece::Number),
        ("{hex}", Piece::Hex),
        ("{account}", Piece::Account),
        ("{guid}", Piece::Guid),
        ("{token}", Piece::Token),
    ];
    let found = places.into_iter();
    found
        .filter_map(|(name, piece)| Some((text.find(name)?, name, piece)))
        .min_by_key(|(at, ..)| *at)
}

/// The GUID of session number `n`: version 4, of random bytes that the number seeds.
fn guid(n: usize) -> uuid::fmt::Hyphenated {
    let bytes = fastrand::Rng::with_seed(n as u64).u128(..).to_be_bytes();
    Builder::from_random_bytes(bytes).into_uuid().hyphenated()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn places_are_filled_and_json_braces_stay() {
        let template = Template::new(
            r#"{"a":{"n":"{n}","t":"{token}","id":"{account}","g":"0-{hex}"}}"#,
            10,
            "secret",
        );
        for (n, account) in [(1, "1"), (10, "a"), (11, "1"), (12, "2")] {
            let expected = format!(
                r#"{{"a":{{"n":"{n}","t":"secret","id":"{account:0>32}","g":"0-{n:012x}"}}}}"#
            );
            assert_eq!(template.fill(n), expected);
        }
    }

    #[test]
    fn sessions_take_tokens_in_turn_and_as_they_are() {
        let tokens = Tokens::lines("one\n\n  {n} \nthree\n").expect("three tokens");
        let template = Template::new(r#"{"t":"{token}","n":"{n}"}"#, 1, tokens);
        for (n, token) in [
            (1, "one"),
            (2, "{n}"),
            (3, "three"),
            (4, "one"),
            (6, "three"),
        ] {
            assert_eq!(template.fill(n), format!(r#"{{"t":"{token}","n":"{n}"}}"#));
        }
        assert!(Tokens::lines(" \n\n").is_none());
    }

    #[test]
    fn every_session_has_a_guid_of_its_own_and_the_same_each_time() {
        let template = Template::new(r#"{"request_id":"{guid}","again":"{guid}"}"#, 1, "");
        let mut guids = BTreeSet::new();
        let mut beginnings = BTreeSet::new();
        for n in 1..=2_000 {
            let text = template.fill(n);
            let command: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            let guid = command["request_id"].as_str().expect("a text").to_owned();
            let parts: Vec<_> = guid.split('-').map(str::len).collect();
            assert_eq!(parts, [8, 4, 4, 4, 12], "{guid}");
            assert_eq!(&guid[14..15], "4", "{guid}: the version");
            assert_eq!(
                (&command["again"], template.fill(n)),
                (&command["request_id"], text)
            );
            beginnings.insert(guid[..2].to_owned());
            guids.insert(guid);
        }
        assert_eq!(guids.len(), 2_000);
        assert_eq!(beginnings.len(), 256, "they begin in every way");
    }
}
