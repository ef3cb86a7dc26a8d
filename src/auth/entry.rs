//! What the token file and the account tree have in common: how a value of an entry is read, and which accounts share a
//! realm.
//!
//! Invariant: a problem names the key and what was expected, and nothing that stands in the file.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::account::AccountId;

/// Completes the sentence "expected …" for an account id.
pub(super) const ACCOUNT_ID: &str = "32 hex characters";

/// Reads the value of `key`.
pub(super) fn read<'a, T: Deserialize<'a>>(
    value: &'a RawValue,
    key: &str,
    expected: &str,
) -> Result<T, String> {
    serde_json::from_str(value.get()).map_err(|_| format!("{key}: expected {expected}"))
}

/// Reads `text`, which stands under `key`.
pub(super) fn account_id(text: &str, key: &str) -> Result<AccountId, String> {
    AccountId::parse(text).ok_or_else(|| format!("{key}: expected {ACCOUNT_ID}"))
}

/// Reads the value of `realm`.
pub(super) fn realm(value: &RawValue) -> Result<Arc<str>, String> {
    let text: String = read(value, "realm", "a SIP realm")?;
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err("realm: expected a SIP realm".to_owned());
    }
    Ok(text.into())
}

/// Two accounts with the same realm in the file. Each sees the other's events wherever only the realm tells accounts
/// apart (PROTOCOL 6). Holds no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedRealm {
    /// One of them.
    pub one: AccountId,
    /// The other.
    pub other: AccountId,
}

/// Accounts with the same realm: for each realm its first account together with each of the others. O(n log n).
pub(super) fn shared_realms<'r>(
    realms: impl Iterator<Item = (AccountId, &'r str)>,
) -> Vec<SharedRealm> {
    let mut first: BTreeMap<&str, AccountId> = BTreeMap::new();
    let mut accounts: Vec<_> = realms.collect();
    accounts.sort_unstable();
    let mut shared = Vec::new();
    for (account, realm) in accounts {
        let one = *first.entry(realm).or_insert(account);
        if one != account {
            shared.push(SharedRealm {
                one,
                other: account,
            });
        }
    }
    shared
}
