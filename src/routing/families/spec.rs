//! Binding families as data: the platform's rows of the table (PROTOCOL 6), and operators' own in the same grammar.
//!
//! A row maps one form of client binding to AMQP. Its templates are words joined by dots:
//!
//! | word of a template | in `binding` | in `keys` and `subscription_key` |
//! |---|---|---|
//! | `text` | that word | that word |
//! | `*` | the client must send `*` | not allowed: give it a name |
//! | `{name}` | any word, called `name` | the word of that name, escaped unless `unescaped` lists it; a name that `binding` does not have is a free word: `*` in a key that is bound, whatever the publisher wrote in one that is matched |
//! | `{name...}`, last | the rest, dots included | |
//! | `{account}` | | the account id |
//! | `{db}`, `{modb}` | | the account's database, its database of the current month |
//! | `{realm}` | | the account's SIP realm, escaped |
//!
//! A free word `{event}` that a key does not have is taken from the body's `Event`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Rows that an operator may add. A configuration with more is refused.
pub(super) const FAMILIES_MAX: usize = 256;

/// Modules of the platform's own families (PROTOCOL 6); `autoload_modules` names those that are switched on.
pub(super) const MODULES: [&str; 6] = [
    "bh_call",
    "bh_conference",
    "bh_fax",
    "bh_object",
    "bh_presence",
    "bh_registration",
];

const CHANNEL_EVENTS: [&str; 9] = [
    "CHANNEL_CREATE",
    "CHANNEL_ANSWER",
    "CHANNEL_DESTROY",
    "CHANNEL_HOLD",
    "CHANNEL_UNHOLD",
    "CHANNEL_BRIDGE",
    "PARK_PARKED",
    "PARK_RETRIEVED",
    "PARK_ABANDONED",
];

const ACTIONS: [&str; 3] = ["doc_created", "doc_edited", "doc_deleted"];

const DOC_TYPES: [&str; 10] = [
    "account",
    "callflow",
    "device",
    "faxbox",
    "media",
    "user",
    "vmbox",
    "fax",
    "mailbox_message",
    "call_recording",
];

/// Document types that are in the database of a month.
const MONTHLY_DOC_TYPES: [&str; 2] = ["fax", "mailbox_message"];

/// What an operator can change about the families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyOptions {
    /// `autoload_modules`: the platform's families that are on; default: all of them. An operator's module may be
    /// named too. Bindings of a family that is off get `no available subscriptions to requested binding`.
    pub autoload_modules: Vec<String>,
    /// `channel_events`: the events of the call family; `call.*.…` means exactly these.
    pub channel_events: Vec<String>,
    /// `extra_doc_types`: document types beside the platform's.
    pub extra_doc_types: Vec<String>,
    /// `families`: the operator's own rows. They are on, unless their `module` is one of the platform's that is
    /// off. Where two rows take the same client binding the platform's comes first.
    pub families: Vec<FamilySpec>,
}

impl Default for FamilyOptions {
    fn default() -> Self {
        Self {
            autoload_modules: strings(MODULES),
            channel_events: strings(CHANNEL_EVENTS),
            extra_doc_types: Vec::new(),
            families: Vec::new(),
        }
    }
}

/// One row: a form of client binding, and how it maps to AMQP. The module's page has the grammar.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FamilySpec {
    /// The family's name.
    pub name: String,
    /// What switches it; its name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Template of the client binding. Its first word is literal, or a variable with a list in `words`.
    pub binding: String,
    /// The exchange its events are published to, at most 255 bytes.
    pub exchange: String,
    /// The exchange's type.
    #[serde(default)]
    pub exchange_type: ExchangeKind,
    /// Whether the exchange is durable.
    #[serde(default)]
    pub exchange_durable: bool,
    /// Templates of the AMQP binding keys, at least one; each holds every variable of `binding`.
    pub keys: Vec<String>,
    /// Template of the subscription key and of an event's canonical routing key. When absent, both are those of
    /// the AMQP key that the event came by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription_key: Option<String>,
    /// Where the account is when a key does not hold it.
    #[serde(default)]
    pub account: AccountSource,
    /// The words that a variable may be. Its `*` means exactly these, and takes one AMQP binding for each; but if `*`
    /// itself is in the list, it means any word.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub words: BTreeMap<String, Vec<String>>,
    /// Variables that must not be `*`, and the error text for a client that sends it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub required: BTreeMap<String, String>,
    /// Variables whose word publishers write as it is, where they escape the others. The word of a client holds no dot,
    /// and a wildcard of AMQP is one only when it is the whole word: `*`, which `required` may refuse, and `#`, which
    /// is always refused. Not for a `{name...}`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unescaped: Vec<String>,
    /// Whether a superduper admin may use `*` for the variables in `required`.
    #[serde(default)]
    pub superduper_wildcard: bool,
    /// One variable, and those of its words whose documents are in the database of a month: for these the keys
    /// with `{modb}` apply, for the others the keys without, for `*` all of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub monthly: BTreeMap<String, Vec<String>>,
    /// Whether, in style piston, the event's name is `Event-Name`, `_` and `Type` (PROTOCOL 5).
    #[serde(default)]
    pub name_with_type: bool,
}

/// Type of an exchange. Keys with a wildcard are of use on a topic exchange only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExchangeKind {
    /// Binding keys with wildcards.
    #[default]
    Topic,
    /// Binding keys that equal the routing key.
    Direct,
    /// Binding keys are ignored by the broker, not by the matching here.
    Fanout,
}

impl ExchangeKind {
    /// The name that AMQP has for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Direct => "direct",
            Self::Fanout => "fanout",
        }
    }
}

/// Where the account of an event is, when its key holds none of `{account}`, `{db}`, `{modb}`, `{realm}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AccountSource {
    /// In the body (PROTOCOL 4). An event without an account is for subscriptions of account `*` only.
    #[default]
    Payload,
    /// Nowhere, and none is needed: whoever knows the id may see its events. For unguessable ids only.
    None,
}

/// Why the table of families cannot be made: a key of the configuration, and what is wrong with it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct FamilyError {
    /// The key's path, such as `families[0].keys[1]`.
    pub path: String,
    /// What is wrong with it.
    pub problem: FamilyProblem,
}

/// What is wrong with a key of the configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FamilyProblem {
    /// A text or list without content.
    #[error("must not be empty")]
    Empty,
    /// More than a bound allows.
    #[error("has {found}, at most {max} are possible")]
    TooMany {
        /// How many there are.
        found: usize,
        /// The bound.
        max: usize,
    },
    /// `autoload_modules` names a module that is not there.
    #[error("no module is called {0}; known: {known}", known = MODULES.join(", "))]
    UnknownModule(String),
    /// A word that is not written as it is in a key.
    #[error("`{0}` is not a word of letters, digits, `-`, `~` and `_`")]
    NotAWord(String),
    /// A template's word that cannot be read.
    #[error("`{0}` is neither a literal word nor a placeholder `{{name}}` that can stand here")]
    NotATemplateWord(String),
    /// A name that a template has twice.
    #[error("{{{0}}} stands here twice")]
    Repeated(String),
    /// A key without a variable of the binding, which would deliver more than was asked for.
    #[error("lacks {{{0}}}")]
    Lacks(String),
    /// `unescaped` names the variable that takes the rest of the words, dots included.
    #[error("{{{0}...}} may hold dots, which are escaped")]
    RestUnescaped(String),
    /// A name of no variable of the binding.
    #[error("the binding has no variable {{{0}}}")]
    NoSuchVariable(String),
    /// A family whose first word could be anything.
    #[error("the first word must be a literal, or a variable with a list in `words`")]
    OpenFirstWord,
    /// A key with two qualifiers, or keys that a subscription cannot be looked up by together.
    #[error(
        "every key has at most one of {{account}}, {{db}}, {{modb}}; or every key has {{realm}}"
    )]
    Qualifiers,
    /// A client binding that would have no key at all.
    #[error("a word that is not in `monthly` has no key without {{modb}}")]
    OnlyMonthly,
    /// `account: none` beside a key that holds the account.
    #[error("`none` beside keys that hold the account")]
    AccountIsThere,
    /// The exchange was described otherwise before.
    #[error("the exchange {0} is of another type or durability in another family")]
    ExchangeConflict(String),
}

pub(crate) fn family_error(path: impl fmt::Display, problem: FamilyProblem) -> FamilyError {
    FamilyError {
        path: path.to_string(),
        problem,
    }
}

/// The platform's own families: the table of PROTOCOL 6, in its order.
pub(crate) fn platform_families(options: &FamilyOptions) -> Vec<FamilySpec> {
    let channel_events = || map("event", options.channel_events.clone());
    let actions = || {
        (
            "action".to_owned(),
            strings(ACTIONS.into_iter().chain(["*"])),
        )
    };
    let types = || {
        let mut types = strings(DOC_TYPES);
        types.extend(options.extra_doc_types.iter().cloned());
        types.push("*".to_owned());
        ("type".to_owned(), types)
    };
    let conference_id = || map("conference", "ConferenceId required".to_owned());
    let monthly = || map("type", strings(MONTHLY_DOC_TYPES));
    vec![
        FamilySpec {
            subscription_key: Some("call.{account}.{event}.{call}".to_owned()),
            words: channel_events(),
            ..row(
                "bh_call",
                "call.{event}.{call...}",
                "callevt",
                &["call.{event}.{call}"],
            )
        },
        FamilySpec {
            subscription_key: Some(
                "conference.event.{event}.{account}.{conference}.{call}".to_owned(),
            ),
            required: conference_id(),
            superduper_wildcard: true,
            ..row(
                "bh_conference",
                "conference.event.{conference}.{call}",
                "conference",
                &[
                    "conference.event.{event}.{account}.{conference}.{call}",
                    "conference.event.{conference}.{call}",
                ],
            )
        },
        FamilySpec {
            required: conference_id(),
            superduper_wildcard: true,
            ..row(
                "bh_conference",
                "conference.event.{event}.{conference}.{call...}",
                "conference",
                &["conference.event.{event}.{account}.{conference}.{call}"],
            )
        },
        FamilySpec {
            account: AccountSource::None,
            required: conference_id(),
            unescaped: strings(["conference"]),
            ..row(
                "bh_conference",
                "conference.command.{conference}",
                "conference",
                &["conference.command.{conference}"],
            )
        },
        row(
            "bh_fax",
            "fax.status.{fax}",
            "faxes",
            &["fax.status.{account}.{fax}"],
        ),
        FamilySpec {
            words: BTreeMap::from([actions()]),
            name_with_type: true,
            ..row(
                "bh_fax",
                "fax.object.{action}",
                "configuration",
                &["{action}.{modb}.fax.{id}"],
            )
        },
        FamilySpec {
            words: BTreeMap::from([actions(), types()]),
            monthly: monthly(),
            name_with_type: true,
            ..row(
                "bh_object",
                "object.{action}.{type}",
                "configuration",
                &["{action}.{db}.{type}.{id}", "{action}.{modb}.{type}.{id}"],
            )
        },
        FamilySpec {
            words: BTreeMap::from([actions(), types()]),
            monthly: monthly(),
            name_with_type: true,
            ..row(
                "bh_object",
                "{action}.*.{type}.{id}",
                "configuration",
                &["{action}.{db}.{type}.{id}", "{action}.{modb}.{type}.{id}"],
            )
        },
        row(
            "bh_presence",
            "presence.dialog.{call...}",
            "presence",
            &["dialog.{realm}.{call}"],
        ),
        row(
            "bh_presence",
            "dialog.{call...}",
            "presence",
            &["dialog.{realm}.{call}"],
        ),
        row(
            "bh_presence",
            "presence.update.{call...}",
            "presence",
            &["update.{realm}.{call}"],
        ),
        row(
            "bh_presence",
            "update.{call...}",
            "presence",
            &["update.{realm}.{call}"],
        ),
        row(
            "bh_presence",
            "presence.mwi_updates.{user...}",
            "presence",
            &["mwi_updates.{realm}.{user}"],
        ),
        row(
            "bh_presence",
            "mwi_updates.{user...}",
            "presence",
            &["mwi_updates.{realm}.{user}"],
        ),
        row(
            "bh_registration",
            "registration.success",
            "registrar",
            &["registration.success.{realm}.{user}"],
        ),
    ]
}

fn row(module: &str, binding: &str, exchange: &str, keys: &[&str]) -> FamilySpec {
    FamilySpec {
        name: module.trim_start_matches("bh_").to_owned(),
        module: Some(module.to_owned()),
        binding: binding.to_owned(),
        exchange: exchange.to_owned(),
        exchange_type: ExchangeKind::Topic,
        exchange_durable: false,
        keys: strings(keys.iter().copied()),
        subscription_key: None,
        account: AccountSource::Payload,
        words: BTreeMap::new(),
        required: BTreeMap::new(),
        unescaped: Vec::new(),
        superduper_wildcard: false,
        monthly: BTreeMap::new(),
        name_with_type: false,
    }
}

fn map<T>(name: &str, value: T) -> BTreeMap<String, T> {
    BTreeMap::from([(name.to_owned(), value)])
}

fn strings<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    words.into_iter().map(str::to_owned).collect()
}
