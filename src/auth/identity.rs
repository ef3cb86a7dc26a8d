//! What a token itself says (PROTOCOL 4 and 7). An identity is made by the authenticators only. What the account tree and
//! the platform add to it is in [`super::sight`].

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::digest::Digest;
use super::jwt::Fingerprint;
use crate::account::AccountId;

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
    /// A verified JWT.
    Claimed {
        digest: Digest,
        /// Kept only where the platform may have to be asked about it.
        token: Option<Arc<str>>,
        account: AccountId,
        expires: Option<u64>,
        /// The key that verified it.
        key: Fingerprint,
    },
    /// A token that only the platform knows.
    Asked {
        token: Arc<str>,
        /// The account that was authorised first; `None`: none has been.
        account: Option<AccountId>,
        superduper: bool,
        /// What it says of itself, if it is a JWT.
        expires: Option<u64>,
    },
    /// Anything at all.
    Insecure { realm_template: Box<str> },
}

/// The one claim that is read of a token that the platform verifies.
#[derive(Deserialize)]
struct Expiry {
    exp: u64,
}

/// When a token expires by what it says of itself, if it is a JWT and says so. It is not verified: it can only shorten
/// what the platform allows.
fn claimed_expiry(token: &str) -> Option<u64> {
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    let claims = BASE64URL_NOPAD.decode(claims.as_bytes()).ok()?;
    let Expiry { exp } = serde_json::from_slice(&claims).ok()?;
    Some(exp)
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

    /// The identity of a verified JWT. `token`: where the platform may have to be asked about it.
    pub(super) fn claimed(
        digest: Digest,
        token: Option<Arc<str>>,
        account: AccountId,
        expires: Option<u64>,
        key: Fingerprint,
    ) -> Self {
        Self(Rights::Claimed {
            digest,
            token,
            account,
            expires,
            key,
        })
    }

    /// The identity of a token that only the platform knows. `account`: the one that it was authorised for first.
    pub(super) fn asked(token: Arc<str>, account: Option<AccountId>, superduper: bool) -> Self {
        let expires = claimed_expiry(&token);
        Self(Rights::Asked {
            token,
            account,
            superduper,
            expires,
        })
    }

    /// Whether its token is known to give exactly the rights of `other`, so that nothing has to be resolved again, unless the
    /// account tree or the platform gives others. Linear in the token.
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
            (Rights::Claimed { digest, .. }, Rights::Claimed { digest: other, .. }) => {
                digest == other
            }
            (
                Rights::Asked {
                    token, superduper, ..
                },
                Rights::Asked {
                    token: other_token,
                    superduper: other_superduper,
                    ..
                },
            ) => superduper == other_superduper && token == other_token,
            (Rights::Insecure { .. }, Rights::Insecure { .. }) => true,
            (
                Rights::Token { .. }
                | Rights::Claimed { .. }
                | Rights::Asked { .. }
                | Rights::Insecure { .. },
                _,
            ) => false,
        }
    }

    /// The one identity of `--auth insecure`.
    pub(super) fn insecure(realm_template: &str) -> Self {
        Self(Rights::Insecure {
            realm_template: realm_template.into(),
        })
    }

    /// Whether the token itself gives the right to see events of `account` (PROTOCOL 4): its own account, a descendant that
    /// it lists, or any for a superduper admin. O(log descendants).
    pub(super) fn may_see(&self, account: AccountId) -> bool {
        match &self.0 {
            Rights::Token {
                account: own,
                descendants,
                superduper,
                ..
            } => *superduper || *own == account || descendants.binary_search(&account).is_ok(),
            Rights::Claimed { account: own, .. } => *own == account,
            Rights::Asked { .. } => false,
            Rights::Insecure { .. } => true,
        }
    }

    /// Whether the token itself gives the right to ask for `*` as the account.
    pub(super) fn is_superduper(&self) -> bool {
        match &self.0 {
            Rights::Token { superduper, .. } | Rights::Asked { superduper, .. } => *superduper,
            Rights::Claimed { .. } => false,
            Rights::Insecure { .. } => true,
        }
    }

    /// Whether its token has been verified. A token that only the platform knows has not, until it was authorised for an
    /// account (PROTOCOL 7, `crossbar`).
    #[must_use]
    pub fn is_proven(&self) -> bool {
        match &self.0 {
            Rights::Asked { account, .. } => account.is_some(),
            Rights::Token { .. } | Rights::Claimed { .. } | Rights::Insecure { .. } => true,
        }
    }

    /// Whether only the platform knows its token.
    pub(super) fn is_asked(&self) -> bool {
        matches!(&self.0, Rights::Asked { .. })
    }

    /// The key that verified its token.
    pub(super) fn key(&self) -> Option<Fingerprint> {
        match &self.0 {
            Rights::Claimed { key, .. } => Some(*key),
            Rights::Token { .. } | Rights::Asked { .. } | Rights::Insecure { .. } => None,
        }
    }

    /// The digest of a verified JWT.
    pub(super) fn digest(&self) -> Option<&Digest> {
        match &self.0 {
            Rights::Claimed { digest, .. } => Some(digest),
            Rights::Token { .. } | Rights::Asked { .. } | Rights::Insecure { .. } => None,
        }
    }

    /// The Unix second at which the token expires: its sessions are then closed with 4401.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        match &self.0 {
            Rights::Token { expires, .. }
            | Rights::Claimed { expires, .. }
            | Rights::Asked { expires, .. } => *expires,
            Rights::Insecure { .. } => None,
        }
    }

    /// Whether the token has expired at `unix_now` (Unix seconds).
    #[must_use]
    pub fn has_expired(&self, unix_now: u64) -> bool {
        self.expires().is_some_and(|expires| expires <= unix_now)
    }

    /// The account to which the token belongs, and for which its sessions count (`max_connections_per_account`); sessions
    /// of a superduper admin count too. `None` under `--auth insecure`, where a token belongs to no account, and for one that is
    /// not [proven](Self::is_proven): such sessions count for none.
    #[must_use]
    pub fn account_id(&self) -> Option<AccountId> {
        match &self.0 {
            Rights::Token { account, .. } | Rights::Claimed { account, .. } => Some(*account),
            Rights::Asked { account, .. } => *account,
            Rights::Insecure { .. } => None,
        }
    }

    /// Whether `token` is the token of this identity, so that a command with it needs no new authentication (PROTOCOL 3).
    /// Takes the same time for every wrong token of the right length.
    #[must_use]
    pub fn is_token(&self, token: &str) -> bool {
        match &self.0 {
            Rights::Token { token: own, .. } => own.as_bytes().ct_eq(token.as_bytes()).into(),
            Rights::Claimed { digest, .. } => *digest == Digest::of_token(token),
            Rights::Asked { token: own, .. } => own.as_bytes().ct_eq(token.as_bytes()).into(),
            Rights::Insecure { .. } => true,
        }
    }

    /// Whether one token alone is its own; under `insecure` every token is.
    #[must_use]
    pub fn has_own_token(&self) -> bool {
        !matches!(self.0, Rights::Insecure { .. })
    }

    /// The SIP realm of `account` (PROTOCOL 6, REALM), unescaped, if the token's authenticator knows one.
    pub(super) fn realm_of(&self, account: AccountId) -> Option<Arc<str>> {
        match &self.0 {
            Rights::Token { realms, .. } => realms.get(&account).cloned(),
            Rights::Claimed { .. } | Rights::Asked { .. } => None,
            Rights::Insecure { realm_template } => Some(
                realm_template
                    .replace(REALM_PLACEHOLDER, &account.to_string())
                    .into(),
            ),
        }
    }

    /// The token, where it must be found again or the platform be asked about it.
    pub(super) fn token(&self) -> Option<&str> {
        match &self.0 {
            Rights::Token { token, .. } => Some(token),
            Rights::Claimed { token, .. } => token.as_deref(),
            Rights::Asked { token, .. } => Some(token),
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
            Rights::Claimed {
                account, expires, ..
            } => f
                .debug_struct("Identity")
                .field("account", account)
                .field("expires", expires)
                .finish_non_exhaustive(),
            Rights::Asked {
                account,
                superduper,
                ..
            } => f
                .debug_struct("Identity")
                .field("account", account)
                .field("superduper", superduper)
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
