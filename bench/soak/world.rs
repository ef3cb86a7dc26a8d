//! What there is to see: accounts, their tokens, and the lanes of events that are published for them.
//!
//! A *lane* is one account's events of one kind. Its events are numbered from 1, and each carries its lane and number,
//! so that whoever gets one can tell whether it is theirs and what came before.

use blackhole::routing::words::escape_into;
use fastrand::Rng;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use support::events::database;

/// The token of a superduper admin.
pub(crate) const SUPERDUPER: &str = "soak-superduper";

/// The token of an account whose descendants all the others are.
pub(crate) const PARENT: &str = "soak-parent";

/// The conference that all conference events are of.
const CONFERENCE: &str = "room";

/// A kind of event: a row of PROTOCOL 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Create,
    Answer,
    Destroy,
    Document,
    Fax,
    Conference,
    Presence,
    Registration,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Create,
        Self::Answer,
        Self::Destroy,
        Self::Document,
        Self::Fax,
        Self::Conference,
        Self::Presence,
        Self::Registration,
    ];

    /// Those of the family `call`.
    pub(crate) const CALLS: [Self; 3] = [Self::Create, Self::Answer, Self::Destroy];

    /// The exchange it is published to.
    pub(crate) fn exchange(self) -> &'static str {
        match self {
            Self::Create | Self::Answer | Self::Destroy => "callevt",
            Self::Document => "configuration",
            Self::Fax => "faxes",
            Self::Conference => "conference",
            Self::Presence => "presence",
            Self::Registration => "registrar",
        }
    }

    /// `Event-Name`.
    fn name(self) -> &'static str {
        match self {
            Self::Create => "CHANNEL_CREATE",
            Self::Answer => "CHANNEL_ANSWER",
            Self::Destroy => "CHANNEL_DESTROY",
            Self::Document => "doc_edited",
            Self::Fax => "status",
            Self::Conference => "participant",
            Self::Presence => "dialog",
            Self::Registration => "success",
        }
    }

    /// The client binding that all events of this kind match.
    pub(crate) fn binding(self) -> String {
        self.binding_of("*")
    }

    /// The client binding of those events of this kind that are about `id`, where the family has that.
    pub(crate) fn binding_of(self, id: &str) -> String {
        let name = self.name();
        match self {
            Self::Create | Self::Answer | Self::Destroy => format!("call.{name}.{id}"),
            Self::Document => format!("{name}.*.user.{id}"),
            Self::Fax => format!("fax.status.{id}"),
            Self::Conference => format!("conference.event.{name}.{CONFERENCE}.{id}"),
            Self::Presence => format!("presence.dialog.{id}"),
            Self::Registration => "registration.success".to_owned(),
        }
    }

    /// The routing key of an event about `id`.
    pub(crate) fn routing_key(self, account: &Account, id: &str) -> String {
        let name = self.name();
        let mut word = String::new();
        escape_into(id, &mut word);
        match self {
            Self::Create | Self::Answer | Self::Destroy => format!("call.{name}.{word}"),
            Self::Document => format!("{name}.{}.user.{word}", database(&account.id)),
            Self::Fax => format!("fax.status.{}.{word}", account.id),
            Self::Conference => {
                format!("conference.event.{name}.{}.{CONFERENCE}.{word}", account.id)
            }
            Self::Presence => format!("dialog.{}.{word}", account.realm_word),
            Self::Registration => format!("registration.success.{}.{word}", account.realm_word),
        }
    }

    /// The body of event `number` of `lane`, published at `at`, with `padding` bytes more.
    pub(crate) fn body(self, account: &Account, numbered: Numbered, padding: usize) -> Vec<u8> {
        let mut body = json!({
            "Event-Name": self.name(), "Type": "user", "Event": self.name(),
            "Lane": numbered.lane, "Number": numbered.number, "At": numbered.at, "Calm": numbered.calm,
            "Padding": "x".repeat(padding),
        });
        match self {
            Self::Create | Self::Answer | Self::Destroy => {
                body["Custom-Channel-Vars"] = json!({"Account-ID": account.id});
            }
            _ => body["Account-ID"] = json!(account.id),
        }
        body.to_string().into_bytes()
    }
}

/// What every event says of itself, in either style.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Numbered {
    #[serde(rename = "Lane", alias = "lane")]
    pub(crate) lane: usize,
    #[serde(rename = "Number", alias = "number")]
    pub(crate) number: u64,
    /// When it was published, in microseconds of the soak.
    #[serde(rename = "At", alias = "at")]
    pub(crate) at: u64,
    /// Whether nothing was being done to the broker then.
    #[serde(rename = "Calm", alias = "calm")]
    pub(crate) calm: bool,
}

/// A tenant.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) id: String,
    /// As the platform's publishers write it in keys.
    realm_word: String,
    realm: String,
    /// The token of its own user.
    pub(crate) token: String,
}

/// All accounts; lane `account * kinds + kind`.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) accounts: Vec<Account>,
}

impl World {
    /// So many accounts.
    pub(crate) fn new(accounts: usize, rng: &mut Rng) -> Self {
        let account = |number: usize, rng: &mut Rng| {
            let realm = format!("a{number}.soak.test");
            let mut realm_word = String::new();
            escape_into(&realm, &mut realm_word);
            Account {
                id: format!("{:032x}", rng.u128(..)),
                realm_word,
                realm,
                token: format!("soak-{number}"),
            }
        };
        Self {
            accounts: (0..accounts).map(|number| account(number, rng)).collect(),
        }
    }

    pub(crate) fn lanes(&self) -> usize {
        self.accounts.len() * Kind::ALL.len()
    }

    /// The lane of an account, by its index, and a kind.
    pub(crate) fn lane(&self, account: usize, kind: Kind) -> usize {
        account * Kind::ALL.len() + kind as usize
    }

    /// Account, by its index, and kind of a lane; nothing for a lane that there is not.
    pub(crate) fn of_lane(&self, lane: usize) -> Option<(usize, Kind)> {
        let account = lane / Kind::ALL.len();
        (account < self.accounts.len()).then(|| (account, Kind::ALL[lane % Kind::ALL.len()]))
    }

    /// The content of the token file.
    pub(crate) fn tokens(&self) -> Value {
        let mut tokens: Map<String, Value> = self
            .accounts
            .iter()
            .map(|account| {
                let may = json!({"account_id": account.id, "realm": account.realm});
                (account.token.clone(), may)
            })
            .collect();
        let ids: Vec<&str> = self.accounts.iter().map(|account| &*account.id).collect();
        let head = "f".repeat(32);
        tokens.insert(
            PARENT.into(),
            json!({"account_id": head, "descendants": ids}),
        );
        tokens.insert(
            SUPERDUPER.into(),
            json!({"account_id": head, "superduper_admin": true}),
        );
        tokens.into()
    }
}
