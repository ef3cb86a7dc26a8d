//! The rights that a token gives (PROTOCOL 4). Pure: an identity is made by the authenticators only.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq;

use crate::account::{AccountId, Scope};

/// Stands for an account's 32 hex characters in `insecure_realm`.
pub const REALM_PLACEHOLDER: &str = "{account_id}";

/// The SIP realms of accounts; one table, shared by all identities of one token file.
pub(super) type Realms = HashMap<AccountId, Arc<str>>;

/// For whom a session speaks, and which events that identity may see. `Debug` shows everything except the token.
#[derive(PartialEq, Eq)]
pub struct Identity(Rights);

#[derive(PartialEq, Eq)]
enum Rights {
    /// An entry of the token file.
    Token {
        token: Box<str>,
        account: AccountId,
        /// Sorted, without duplicates and without `account`. 16 bytes each: a hash set would take twice that.
        descendants: Box<[AccountId]>,
        superduper: bool,
        expires: Option<u64>,
        realms: Arc<Realms>,
        /// The reading of the file that gave it what it may see; see [`Identity::has_rights_of`].
        reading: u64,
    },
    /// Anything at all.
    Insecure { realm_template: Box<str> },
}

impl Identity {
    /// The identity of `token`, as the file says at the reading of this number.
    pub(super) fn new(
        token: &str,
        account: AccountId,
        mut descendants: Vec<AccountId>,
        superduper: bool,
        expires: Option<u64>,
        realms: Arc<Realms>,
        reading: u64,
    ) -> Self {
        descendants.retain(|descendant| *descendant != account);
        descendants.sort_unstable();
        descendants.dedup();
        let (token, descendants) = (token.into(), descendants.into());
        Self(Rights::Token {
            token,
            account,
            descendants,
            superduper,
            expires,
            realms,
            reading,
        })
    }

    /// Compares the rights with those of `old`, the identity of the same token at an earlier reading, and notes when they
    /// are equal. `is_realms_same`: both readings have the same realms. Linear in the descendants.
    pub(super) fn join_rights_of(&mut self, old: &Self, is_realms_same: bool) {
        if let Rights::Token {
            account,
            descendants,
            superduper,
            realms,
            reading,
            ..
        } = &mut self.0
            && let Rights::Token {
                account: old_account,
                descendants: old_descendants,
                superduper: old_superduper,
                realms: old_realms,
                reading: old_reading,
                ..
            } = &old.0
            && (account == old_account && descendants == old_descendants)
            && superduper == old_superduper
        {
            let mut seen = descendants.iter().chain([&*account]);
            let is_same = |account| realms.get(account) == old_realms.get(account);
            if is_realms_same || (!*superduper && seen.all(is_same)) {
                *reading = *old_reading;
            }
        }
    }

    /// Whether it is known to have exactly the rights of `other`, so that nothing has to be resolved again. O(1).
    #[must_use]
    pub fn has_rights_of(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (
                Rights::Token { token, reading, .. },
                Rights::Token {
                    token: other_token,
                    reading: other_reading,
                    ..
                },
            ) => reading == other_reading && token == other_token,
            (Rights::Insecure { .. }, Rights::Insecure { .. }) => true,
            (Rights::Token { .. }, Rights::Insecure { .. })
            | (Rights::Insecure { .. }, Rights::Token { .. }) => false,
        }
    }

    /// The one identity of `--auth insecure`.
    pub(super) fn insecure(realm_template: &str) -> Self {
        Self(Rights::Insecure {
            realm_template: realm_template.into(),
        })
    }

    /// Whether events of `account` may be shown to this identity (PROTOCOL 4): its own account, a descendant, or any
    /// for a superduper admin. O(log descendants).
    #[must_use]
    pub fn may_see(&self, account: AccountId) -> bool {
        match &self.0 {
            Rights::Token {
                account: own,
                descendants,
                superduper,
                ..
            } => *superduper || *own == account || descendants.binary_search(&account).is_ok(),
            Rights::Insecure { .. } => true,
        }
    }

    /// Whether it may subscribe for `scope`: an account it [may see](Self::may_see), or all for a superduper admin.
    #[must_use]
    pub fn may_have(&self, scope: Scope) -> bool {
        match scope {
            Scope::One(account) => self.may_see(account),
            Scope::Any => self.is_superduper(),
        }
    }

    /// Whether it may ask for `*` as the account.
    #[must_use]
    pub fn is_superduper(&self) -> bool {
        match &self.0 {
            Rights::Token { superduper, .. } => *superduper,
            Rights::Insecure { .. } => true,
        }
    }

    /// The Unix second at which the token expires: its sessions are then closed with 4401.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        match &self.0 {
            Rights::Token { expires, .. } => *expires,
            Rights::Insecure { .. } => None,
        }
    }

    /// Whether the token has expired at `unix_now` (Unix seconds).
    #[must_use]
    pub fn has_expired(&self, unix_now: u64) -> bool {
        self.expires().is_some_and(|expires| expires <= unix_now)
    }

    /// The account to which the token belongs, and for which its sessions count (`max_connections_per_account`); sessions
    /// of a superduper admin count too. `None` under `--auth insecure`, where a token belongs to no account: such sessions
    /// count for none.
    #[must_use]
    pub fn account_id(&self) -> Option<AccountId> {
        match &self.0 {
            Rights::Token { account, .. } => Some(*account),
            Rights::Insecure { .. } => None,
        }
    }

    /// Whether `token` is the token of this identity, so that a command with it needs no new authentication (PROTOCOL 3).
    /// Takes the same time for every wrong token of the right length.
    #[must_use]
    pub fn is_token(&self, token: &str) -> bool {
        match &self.0 {
            Rights::Token { token: own, .. } => own.as_bytes().ct_eq(token.as_bytes()).into(),
            Rights::Insecure { .. } => true,
        }
    }

    /// The SIP realm of `account` (PROTOCOL 6, REALM), unescaped. `None` when the account may not be
    /// [seen](Self::may_see) or no realm is known for it.
    #[must_use]
    pub fn realm_of(&self, account: AccountId) -> Option<Arc<str>> {
        match &self.0 {
            Rights::Token { realms, .. } => {
                if self.may_see(account) {
                    realms.get(&account).cloned()
                } else {
                    None
                }
            }
            Rights::Insecure { realm_template } => Some(
                realm_template
                    .replace(REALM_PLACEHOLDER, &account.to_string())
                    .into(),
            ),
        }
    }

    /// For the table that finds identities by token; `None` under `--auth insecure`.
    pub(super) fn token(&self) -> Option<&str> {
        match &self.0 {
            Rights::Token { token, .. } => Some(token),
            Rights::Insecure { .. } => None,
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Rights::Token {
                account,
                descendants,
                superduper,
                expires,
                ..
            } => f
                .debug_struct("Identity")
                .field("account", account)
                .field("descendants", &descendants.len())
                .field("superduper", superduper)
                .field("expires", expires)
                .finish_non_exhaustive(),
            Rights::Insecure { .. } => f.write_str("Identity(insecure)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(number: u8) -> AccountId {
        AccountId::parse(&format!("{number:032x}")).expect("32 hex characters")
    }

    fn identity(descendants: &[u8], superduper: bool, expires: Option<u64>) -> Identity {
        let realms = (1..=9)
            .map(|number| (account(number), Arc::from(format!("realm{number}"))))
            .collect();
        let descendants = descendants.iter().map(|number| account(*number)).collect();
        Identity::new(
            "hunter2",
            account(1),
            descendants,
            superduper,
            expires,
            Arc::new(realms),
            1,
        )
    }

    #[test]
    fn an_identity_sees_its_own_account_its_descendants_and_nothing_else() {
        let identity = identity(&[7, 3, 5, 3, 1], false, None);
        for number in 0..=9 {
            let may = [1, 3, 5, 7].contains(&number);
            assert_eq!(identity.may_see(account(number)), may, "{number}");
            let realm = may.then(|| format!("realm{number}"));
            assert_eq!(
                identity.realm_of(account(number)).as_deref(),
                realm.as_deref(),
                "{number}"
            );
        }
        assert!(!identity.is_superduper());
        assert_eq!(identity.account_id(), Some(account(1)));
    }

    #[test]
    fn a_superduper_admin_sees_every_account() {
        let identity = identity(&[], true, None);
        assert!(
            identity.is_superduper()
                && identity.may_see(account(8))
                && identity.may_see(account(200))
        );
        assert_eq!(identity.realm_of(account(8)).as_deref(), Some("realm8"));
        assert_eq!(identity.realm_of(account(200)), None, "unknown realm");
    }

    #[test]
    fn a_token_expires_at_its_second() {
        assert!(!identity(&[], false, None).has_expired(u64::MAX));
        let identity = identity(&[], false, Some(1000));
        assert_eq!(identity.expires(), Some(1000));
        assert!(
            !identity.has_expired(999) && identity.has_expired(1000) && identity.has_expired(1001)
        );
    }

    #[test]
    fn only_the_very_token_is_the_token_and_debug_does_not_show_it() {
        let identity = identity(&[2], true, Some(5));
        assert!(identity.is_token("hunter2"));
        for other in ["", "hunter", "hunter22", "Hunter2"] {
            assert!(!identity.is_token(other), "{other}");
        }
        assert!(!format!("{identity:#?}").contains("hunter2"));
    }
}
