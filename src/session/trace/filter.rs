//! What a look looks at (PROTOCOL 8): the parts of its question, all of which must hold.

use std::sync::Arc;

use super::who::Who;
use crate::account::AccountId;
use crate::routing::families::Families;
use crate::routing::key_filter::KeyFilter;
use crate::routing::month::ActiveMonths;
use crate::routing::nearness::{EventKey, Owner};
use crate::routing::words::is_escaped_form;
use crate::session::id::Peer;

/// What is looked at; at least one of the first three is there.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The session with this peer.
    pub session: Option<Peer>,
    /// Sessions and events of this account.
    pub account: Option<AccountId>,
    /// Its SIP realm, unescaped, if that is known.
    pub realm: Option<Arc<str>>,
    /// Events of this key.
    pub key: Option<KeyFilter>,
    /// Events of this name, or with this event word.
    pub event: Option<Box<str>>,
}

impl Filter {
    /// Whether what happens to a session is told. A command that names the account or the key is told too: `account` and
    /// `bindings` are what it names.
    pub(super) fn is_for<'b>(
        &self,
        who: &Who,
        account: Option<AccountId>,
        mut bindings: impl Iterator<Item = &'b str>,
    ) -> bool {
        if let Some(session) = &self.session {
            return *session == who.peer;
        }
        if let Some(own) = self.account {
            return who.account == Some(own) || account == Some(own);
        }
        let key = self.key.as_ref().map(KeyFilter::key);
        key.is_some_and(|key| bindings.any(|binding| binding == key))
    }

    /// Whether `session` alone is given, and decides which events are looked at.
    pub(super) fn is_of_session_only(&self) -> bool {
        self.account.is_none() && self.key.is_none()
    }

    /// Whether an event, whose owner this is, is one of the account, the key and the name that are given. Linear in the
    /// words.
    pub(super) fn admits(
        &self,
        families: &Families,
        event: &EventKey<'_>,
        owner: Owner<'_>,
        months: ActiveMonths,
    ) -> bool {
        self.account
            .is_none_or(|account| self.is_own(account, owner))
            && self
                .event
                .as_ref()
                .is_none_or(|name| is_called(event, name))
            && self
                .key
                .as_ref()
                .is_none_or(|key| key.fits(families, event, months))
    }

    fn is_own(&self, account: AccountId, owner: Owner<'_>) -> bool {
        match owner {
            Owner::Account(owner) => owner == account,
            Owner::Realm(word) => {
                let realm = self.realm.as_ref();
                realm.is_some_and(|realm| is_escaped_form(realm, word))
            }
            Owner::Nobody => false,
        }
    }
}

/// Whether an event has this name, or this word in its body or its key. No allocation.
fn is_called(event: &EventKey<'_>, name: &str) -> bool {
    let head = event.head();
    [&head.name, &head.event]
        .into_iter()
        .any(|known| known.as_deref() == Some(name))
        || event.words().iter().any(|word| is_escaped_form(name, word))
}
