//! What a plant publishes: calls of all accounts, documents and presence of those whose sessions are here, in an order
//! that never changes.
//!
//! Of a hundred events 80 are of calls, 10 of documents and 10 of presence. Every tenth call is *wanted*: it is of one
//! of the accounts whose sessions are here. So are all documents and all presence, because their routing keys name the
//! account or its realm, and the broker keeps away those of others.
//!
//! Invariant: wanted events go to the accounts in turns. So after every whole number of turns every account has had
//! equally many, and so has every session, whatever the kinds.

use blackhole::routing::words::escape_into;
use serde_json::Value;
use support::events::{ACCOUNT, CALL_ID, FIXTURES, database};

/// Accounts whose calls nobody wants, for each account whose sessions are here.
const OTHERS_EACH: u32 = 9;

/// Events of one cycle, and the wanted ones among them.
const CYCLE: u64 = 100;
pub(crate) const WANTED_IN_CYCLE: u64 = 28;

/// Steps through the accounts, so that neighbours in the order of accept are no neighbours in time; prime, so that all
/// have their turn.
const STRIDE: u64 = 7_919;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Call,
    Document,
    Presence,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Call, Self::Document, Self::Presence];

    /// The exchange it is published to.
    pub(crate) fn exchange(self) -> &'static str {
        match self {
            Self::Call => "callevt",
            Self::Document => "configuration",
            Self::Presence => "presence",
        }
    }

    /// The client binding that wants it.
    pub(crate) fn binding(self) -> &'static str {
        match self {
            Self::Call => "call.*.*",
            Self::Document => "object.doc_edited.user",
            Self::Presence => "presence.dialog.*",
        }
    }

    /// The NATS subject of those of one account.
    pub(crate) fn subject(self, account: &str) -> String {
        format!("{}.{account}", self.exchange())
    }
}

/// One event.
pub(crate) struct Event {
    pub(crate) kind: Kind,
    /// The account that it is of, 32 hex digits.
    pub(crate) account: String,
    /// Its routing key.
    pub(crate) key: String,
    /// A JSON object.
    pub(crate) body: String,
}

/// Makes the events.
pub(crate) struct Mix {
    accounts: u32,
    calls: [(&'static str, Body); 3],
    document: Body,
    presence: Body,
    /// Events made, and wanted ones among them.
    made: u64,
    wanted: u64,
}

impl Mix {
    /// `accounts` have sessions.
    pub(crate) fn new(accounts: u32) -> Self {
        Self {
            accounts,
            calls: FIXTURES.map(|(name, text)| (name, Body::new(text))),
            document: Body::new(include_str!("doc_edited.json")),
            presence: Body::new(include_str!("dialog.json")),
            made: 0,
            wanted: 0,
        }
    }

    /// Wanted events made so far.
    pub(crate) fn wanted(&self) -> u64 {
        self.wanted
    }

    /// The next event, published at `micros` since 1970.
    pub(crate) fn next(&mut self, micros: u64) -> Event {
        let n = self.made;
        self.made += 1;
        let at = n % CYCLE;
        let (kind, is_wanted) = match at % 10 {
            4 => (Kind::Document, true),
            9 => (Kind::Presence, true),
            // Eight calls of ten events: those at 0, 13, 25, 38, 50, 63, 75 and 88 are the tenths.
            _ => (
                Kind::Call,
                matches!(at, 0 | 13 | 25 | 38 | 50 | 63 | 75 | 88),
            ),
        };
        let accounts = u64::from(self.accounts);
        let number = if is_wanted {
            self.wanted += 1;
            self.wanted * STRIDE % accounts + 1
        } else {
            accounts + 1 + n % (accounts * u64::from(OTHERS_EACH))
        };
        let account = format!("{number:032x}");
        let id = format!("{n:020x}");
        let (key, body) = match kind {
            Kind::Call => {
                let (name, body) = &self.calls[(n % 3) as usize];
                (format!("call.{name}.{id}"), body)
            }
            Kind::Document => {
                let database = database(&account);
                (format!("doc_edited.{database}.user.{id}"), &self.document)
            }
            Kind::Presence => {
                let mut key = String::from("dialog.");
                escape_into(&format!("{account}.localhost"), &mut key);
                (format!("{key}.{id}"), &self.presence)
            }
        };
        Event {
            kind,
            key,
            body: body.fill(&account, &id, micros),
            account,
        }
    }
}

/// A body with places for account, id and time.
struct Body(Vec<Piece>);

enum Piece {
    Text(String),
    Account,
    Database,
    Id,
    Micros,
}

impl Body {
    /// From an event's text, without its white space; every place where the example's account, call and time stand is
    /// one to be filled.
    fn new(text: &str) -> Self {
        let mut json: Value = serde_json::from_str(text).expect("a fixture is JSON");
        json["Msg-ID"] = "MICROS".into();
        let mut rest = json.to_string();
        let database = database(ACCOUNT);
        let mut pieces = Vec::new();
        while let Some((at, place, piece)) = [
            (ACCOUNT, Piece::Account),
            (&database, Piece::Database),
            (CALL_ID, Piece::Id),
            ("MICROS", Piece::Micros),
        ]
        .into_iter()
        .filter_map(|(place, piece)| Some((rest.find(place)?, place, piece)))
        .min_by_key(|(at, ..)| *at)
        {
            pieces.push(Piece::Text(rest[..at].to_owned()));
            pieces.push(piece);
            rest.drain(..at + place.len());
        }
        pieces.push(Piece::Text(rest));
        Self(pieces)
    }

    fn fill(&self, account: &str, id: &str, micros: u64) -> String {
        let mut text = String::with_capacity(4096);
        for piece in &self.0 {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Account => text.push_str(account),
                Piece::Database => text.push_str(&database(account)),
                Piece::Id => text.push_str(id),
                Piece::Micros => text.push_str(&micros.to_string()),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn every_account_has_its_turn_and_a_cycle_has_its_wanted_events() {
        let mut mix = Mix::new(200);
        let mut events: HashMap<String, u64> = HashMap::new();
        let mut others = 0;
        while mix.wanted() < 3 * 200 {
            let event = mix.next(1_443_672_756_993_309);
            let number = u64::from_str_radix(&event.account, 16).expect("hex digits");
            if number <= 200 {
                *events.entry(event.account.clone()).or_default() += 1;
            } else {
                assert!((event.kind, number <= 2_000) == (Kind::Call, true));
                others += 1;
            }
            let body: Value = serde_json::from_str(&event.body).expect("JSON");
            assert_eq!(body["Msg-ID"], "1443672756993309");
            let account = match event.kind {
                Kind::Call => &body["Custom-Channel-Vars"]["Account-ID"],
                Kind::Document => &body["Account-ID"],
                Kind::Presence => &body["From-Realm"],
            };
            let account = account.as_str().expect("a text");
            assert_eq!(
                account.strip_suffix(".localhost").unwrap_or(account),
                event.account
            );
            let words = event.key.split('.').count();
            assert_eq!(words, if event.kind == Kind::Document { 4 } else { 3 });
            assert!(!event.body.contains(CALL_ID) && !event.body.contains(ACCOUNT));
        }
        assert_eq!(events.len(), 200);
        assert!(events.values().all(|&count| count == 3), "{events:?}");
        let made = mix.made;
        assert_eq!(others, made - 600);
        assert!(made.abs_diff(600 * CYCLE / WANTED_IN_CYCLE) < 5, "{made}");
    }
}
