//! What can be subscribed and published, and what matches. Constants and plain data; nothing here acts.

use crate::model::{ACCOUNTS, BINDINGS, Key, PRESENCE, means};
use crate::rights::Rights;

/// Processes that share the broker.
pub(super) const PROCESSES: usize = 3;

/// Publishers: the order of each is kept.
pub(super) const PUBLISHERS: usize = 4;

/// Bindings to documents: those of the databases of a month, and one of the account's own database.
pub(super) const DOCUMENTS: [&str; 3] = [
    "object.doc_created.fax",
    "fax.object.*",
    "object.doc_edited.user",
];

/// Exchanges of the events here.
pub(super) const EXCHANGES: [&str; 3] = ["callevt", "presence", "configuration"];

/// The module of a binding, and what it is called for `ws.module_req`.
pub(super) const MODULES: [&str; 4] = ["bh_call", "bh_presence", "bh_object", "bh_fax"];

/// The module that this binding is of.
pub(super) fn module(binding: &str) -> &'static str {
    match binding.split('.').next() {
        Some("call") => "bh_call",
        Some("presence") => "bh_presence",
        Some("fax") => "bh_fax",
        _ => "bh_object",
    }
}

/// Every client binding.
pub(super) fn bindings() -> Vec<&'static str> {
    let all = BINDINGS.into_iter().chain(PRESENCE).chain(DOCUMENTS);
    all.collect()
}

/// Whose an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Of this account.
    Account(usize),
    /// Of the account that has this realm.
    Realm(usize),
}

impl Whose {
    /// Whether it is of this account under these rights.
    pub(super) fn is_of(self, account: usize, rights: &Rights) -> bool {
        match self {
            Self::Account(own) => own == account,
            Self::Realm(realm) => rights.realm(account) == Some(realm),
        }
    }
}

/// Whether a subscription takes events of this routing key, were they its account's.
pub(super) fn takes(binding: &str, routing_key: &str) -> bool {
    let words: Vec<&str> = routing_key.split('.').collect();
    match binding {
        "object.doc_created.fax" => words[0] == "doc_created" && words.get(2) == Some(&"fax"),
        "fax.object.*" => words[0].starts_with("doc_") && words.get(2) == Some(&"fax"),
        "object.doc_edited.user" => words[0] == "doc_edited" && words.get(2) == Some(&"user"),
        _ => means(binding, routing_key),
    }
}

/// Whether a subscription of the account takes an event.
pub(super) fn is_for(key: Key, routing_key: &str, whose: Whose, rights: &Rights) -> bool {
    whose.is_of(key.0, rights) && takes(key.1, routing_key)
}

/// The word of an account's database in a routing key; with a month, that of the month's.
pub(super) fn database(account: usize, month: Option<&str>) -> String {
    let id = ACCOUNTS[account];
    let month = month.map_or_else(String::new, |month| format!("-{month}"));
    format!(
        "account%2F{}%2F{}%2F{}{month}",
        &id[..2],
        &id[2..4],
        &id[4..]
    )
}
