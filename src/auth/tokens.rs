//! The token file (PROTOCOL 7, `tokens`): `{TOKEN: {"account_id", "descendants", "realm", "superduper_admin",
//! "expires"}}`.
//!
//! Invariants: an error holds positions and the names of the known keys, and nothing else of the file's content, because
//! a misplaced brace can make any text of the file a token. A table is complete, or it is not made.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::accounts::AccountsError;
use super::entry::{ACCOUNT_ID, SharedRealm, account_id, read, realm as sip_realm, shared_realms};
use super::identity::{Identity, Realms};
use super::jwt::KeysError;
use crate::account::AccountId;
use crate::json::{self, Members};

const KEYS: &str = "account_id, descendants, realm, superduper_admin, expires";

/// Why a file is not taken. Holds no token.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// It is not one JSON object.
    #[error("{file}: {problem}", file = file.display())]
    NotTokens {
        /// The token file.
        file: PathBuf,
        /// Line, column and expectation.
        problem: String,
    },
    /// One entry is wrong.
    #[error("{file}: entry {entry}: {problem}", file = file.display())]
    Entry {
        /// The token file.
        file: PathBuf,
        /// Position in the file, from 1: the entry's own name is the token.
        entry: usize,
        /// Key and expectation.
        problem: String,
    },
    /// The keys of JWTs.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The account tree.
    #[error(transparent)]
    Accounts(#[from] AccountsError),
}

/// A token file, read.
#[derive(Debug)]
pub(super) struct TokenFile {
    file: PathBuf,
    table: Arc<Table>,
}

/// What a token file said at one reading.
#[derive(Debug, Default)]
pub(super) struct Table {
    identities: HashSet<ByToken>,
    realms: Arc<Realms>,
    shared_realms: Vec<SharedRealm>,
    /// Readings are numbered from 1.
    reading: u64,
}

/// An identity that is found by its token, which it holds: the table does not store tokens a second time. A wrong
/// token is compared with another only when their keyed hashes collide, so timing tells nothing.
#[derive(Debug)]
struct ByToken(Arc<Identity>);

impl Borrow<str> for ByToken {
    fn borrow(&self) -> &str {
        self.0.token().unwrap_or_default()
    }
}

impl PartialEq for ByToken {
    fn eq(&self, other: &Self) -> bool {
        Borrow::<str>::borrow(self) == Borrow::<str>::borrow(other)
    }
}

impl Eq for ByToken {}

impl Hash for ByToken {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Borrow::<str>::borrow(self).hash(state);
    }
}

impl TokenFile {
    /// Parses `text`, the content of `file`. Linear in it.
    pub(super) fn parse(file: PathBuf, text: &str) -> Result<Self, AuthError> {
        let table = Arc::new(Table::parse(&file, text, &Table::default())?);
        Ok(Self { file, table })
    }

    /// The job of reading the file again, for any thread.
    pub(super) fn reread(&self) -> (PathBuf, Arc<Table>) {
        (self.file.clone(), self.table.clone())
    }

    /// Puts `table` in force and returns the table before it, whose drop takes time.
    pub(super) fn replace(&mut self, table: Arc<Table>) -> Arc<Table> {
        std::mem::replace(&mut self.table, table)
    }

    /// Accounts that share a realm.
    pub(super) fn shared_realms(&self) -> &[SharedRealm] {
        &self.table.shared_realms
    }

    /// The identity of `token`, expired or not.
    pub(super) fn find(&self, token: &str) -> Option<&Arc<Identity>> {
        self.table.identities.get(token).map(|by_token| &by_token.0)
    }

    /// Tokens on file.
    pub(super) fn len(&self) -> usize {
        self.table.identities.len()
    }
}

impl Table {
    /// Parses `text`, the content of `file`; `old` is the table of the reading before. An identity that did not change
    /// stays the same `Arc`, so that sessions and table go on sharing it. One whose rights did not change
    /// [says so](Identity::has_rights_of). Linear in the text.
    pub(super) fn parse(file: &Path, text: &str, old: &Self) -> Result<Self, AuthError> {
        let members: Members<&RawValue> =
            serde_json::from_str(text).map_err(|error| AuthError::NotTokens {
                file: file.to_owned(),
                problem: json::problem(&error, "a JSON object {TOKEN: {\"account_id\": …}, …}"),
            })?;
        let wrong = |index: usize, problem: String| AuthError::Entry {
            file: file.to_owned(),
            entry: index + 1,
            problem,
        };
        if let Some(index) = members.repeated() {
            return Err(wrong(
                index,
                "the same token as an earlier entry".to_owned(),
            ));
        }
        let mut entries = Vec::with_capacity(members.0.len());
        for (index, (token, entry)) in members.0.iter().enumerate() {
            if token.is_empty() {
                return Err(wrong(index, "an empty token".to_owned()));
            }
            entries.push((
                token,
                Entry::parse(entry).map_err(|problem| wrong(index, problem))?,
            ));
        }
        let mut realms = Realms::new();
        for (index, (_, entry)) in entries.iter().enumerate() {
            if let Some(realm) = &entry.realm
                && realms
                    .insert(entry.account, realm.clone())
                    .is_some_and(|other| other != *realm)
            {
                return Err(wrong(
                    index,
                    "realm: another than an earlier entry of the same account has".to_owned(),
                ));
            }
        }
        let shared_realms = shared_realms(realms.iter().map(|(id, realm)| (*id, &**realm)));
        let is_realms_same = realms == *old.realms;
        let realms = if is_realms_same {
            old.realms.clone()
        } else {
            Arc::new(realms)
        };
        let reading = old.reading + 1;
        let identity = |(token, entry): (&String, Entry)| {
            let mut new = Identity::new(
                token,
                entry.account,
                entry.descendants,
                entry.superduper,
                entry.expires,
                realms.clone(),
                reading,
            );
            let Some(ByToken(old)) = old.identities.get(token.as_str()) else {
                return ByToken(Arc::new(new));
            };
            new.join_rights_of(old, is_realms_same);
            if is_realms_same && new == **old {
                ByToken(old.clone())
            } else {
                ByToken(Arc::new(new))
            }
        };
        let identities = entries.into_iter().map(identity).collect();
        Ok(Self {
            identities,
            realms,
            shared_realms,
            reading,
        })
    }
}

/// What the file says of one token.
struct Entry {
    account: AccountId,
    descendants: Vec<AccountId>,
    realm: Option<Arc<str>>,
    superduper: bool,
    expires: Option<u64>,
}

impl Entry {
    fn parse(entry: &RawValue) -> Result<Self, String> {
        let members: Members<&RawValue> = serde_json::from_str(entry.get())
            .map_err(|_| format!("expected an object with the keys {KEYS}"))?;
        if let Some(index) = members.repeated() {
            return Err(format!("key {} is given twice", index + 1));
        }
        let (mut account, mut descendants, mut realm, mut superduper, mut expires) =
            (None, vec![], None, false, None);
        for (index, (key, value)) in members.0.iter().enumerate() {
            match key.as_str() {
                "account_id" => {
                    account = Some(account_id(
                        &read::<String>(value, "account_id", ACCOUNT_ID)?,
                        "account_id",
                    )?)
                }
                "descendants" => {
                    let list: Vec<String> = read(value, "descendants", "a list of account ids")?;
                    descendants = list
                        .iter()
                        .map(|id| account_id(id, "descendants"))
                        .collect::<Result<_, _>>()?;
                }
                "realm" => realm = Some(sip_realm(value)?),
                "superduper_admin" => {
                    superduper = read(value, "superduper_admin", "true or false")?
                }
                "expires" => {
                    expires = Some(read(value, "expires", "Unix seconds, a whole number")?)
                }
                _ => return Err(format!("key {} is none of {KEYS}", index + 1)),
            }
        }
        let account =
            account.ok_or_else(|| format!("account_id: missing, expected {ACCOUNT_ID}"))?;
        Ok(Self {
            account,
            descendants,
            realm,
            superduper,
            expires,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Asker, AuthConfig, Authenticator, Moment, Renewal, Verdict, jwt};
    use super::*;

    const ONE: &str = "11111111111111111111111111111111";
    const TWO: &str = "22222222222222222222222222222222";

    fn account(hex: &str) -> AccountId {
        AccountId::parse(hex).expect("an account id")
    }

    fn accepted(
        authenticator: &mut Authenticator,
        token: &str,
        unix_now: u64,
    ) -> Option<Arc<Identity>> {
        let asker = Asker {
            connection: 1,
            network: [127, 0, 0, 1].into(),
        };
        let now = Moment {
            unix: unix_now,
            clock: std::time::Duration::ZERO,
        };
        match authenticator.identify(token, asker, now) {
            Verdict::Accepted(identity) => Some(identity),
            Verdict::Refused => None,
            Verdict::Asks | Verdict::Unavailable => panic!("nobody is to be asked"),
        }
    }

    /// An authenticator on a file of this content.
    fn on_file(text: &str) -> Authenticator {
        let config = AuthConfig {
            tokens: Some("tokens.json".into()),
            ..AuthConfig::default()
        };
        Authenticator::new(&config, says(text), no_keys).expect(text)
    }

    /// Reads a file of this content.
    fn says(text: &str) -> impl Fn(&Path) -> Result<String, AuthError> {
        move |_| Ok(text.to_owned())
    }

    fn no_keys(path: &Path) -> Result<jwt::KeyText, AuthError> {
        panic!("{} is not to be read", path.display())
    }

    #[test]
    fn a_token_gets_what_its_entry_says() {
        let mut authenticator = on_file(&format!(
            r#"{{"alpha": {{"account_id": "{ONE}", "descendants": ["{TWO}"], "realm": "one.example", "expires": 1000}},
                "beta": {{"account_id": "{TWO}", "realm": "two.example"}},
                "root": {{"account_id": "{TWO}", "superduper_admin": true}}}}"#
        ));
        assert_eq!(authenticator.sizes().tokens, 3);
        let alpha = accepted(&mut authenticator, "alpha", 999).expect("on file");
        assert_eq!(alpha.account_id(), Some(account(ONE)));
        assert!(alpha.may_see(account(TWO)) && !alpha.is_superduper());
        assert_eq!(alpha.realm_of(account(ONE)).as_deref(), Some("one.example"));
        assert_eq!(
            alpha.realm_of(account(TWO)).as_deref(),
            Some("two.example"),
            "from the descendant's own entry"
        );
        assert!(
            accepted(&mut authenticator, "alpha", 1000).is_none(),
            "expired"
        );
        let beta = accepted(&mut authenticator, "beta", u64::MAX).expect("never expires");
        let sight = authenticator.sight(&beta);
        assert!(!sight.may_see(account(ONE)) && sight.realm_of(account(ONE)).is_none());
        assert!(
            accepted(&mut authenticator, "root", 0)
                .expect("on file")
                .may_see(account(ONE))
        );
        for unknown in ["", "gamma", "Alpha", "alpha "] {
            assert!(
                accepted(&mut authenticator, unknown, 0).is_none(),
                "{unknown}"
            );
        }
        assert!(
            accepted(&mut authenticator, "alpha", 0)
                .is_some_and(|again| Arc::ptr_eq(&again, &alpha)),
            "shared"
        );
    }

    #[test]
    fn a_wrong_file_is_refused_with_file_entry_and_key_and_without_any_token() {
        let good = format!(r#""secret0": {{"account_id": "{ONE}"}}"#);
        let object = "line 1 column 0: expected a JSON object {TOKEN: {\"account_id\": …}, …}";
        for (text, expected) in [
            (r#"["secret1"]"#.to_owned(), object.to_owned()),
            (
                r#"{"secret1": {}"#.to_owned(),
                "not JSON: EOF while parsing an object at line 1 column 14".to_owned(),
            ),
            (
                format!(r#"{{{good}, "secret1": "secret2"}}"#),
                format!("entry 2: expected an object with the keys {KEYS}"),
            ),
            (
                format!(r#"{{{good}, "secret1": {{}}}}"#),
                "entry 2: account_id: missing, expected 32 hex characters".to_owned(),
            ),
            (
                format!(r#"{{{good}, "secret1": {{"account_id": "secret2"}}}}"#),
                "entry 2: account_id: expected 32 hex characters".to_owned(),
            ),
            (
                format!(r#"{{{good}, "secret1": {{"account_id": 1}}}}"#),
                "entry 2: account_id: expected 32 hex characters".to_owned(),
            ),
            (
                format!(r#"{{"tokens": {{{good}}}}}"#),
                format!("entry 1: key 1 is none of {KEYS}"),
            ),
            (
                format!(r#"{{"secret1": {{"account_id": "{ONE}", "descendants": "{TWO}"}}}}"#),
                "entry 1: descendants: expected a list of account ids".to_owned(),
            ),
            (
                format!(r#"{{"secret1": {{"account_id": "{ONE}", "descendants": ["secret2"]}}}}"#),
                "entry 1: descendants: expected 32 hex characters".to_owned(),
            ),
            (
                format!(r#"{{"secret1": {{"account_id": "{ONE}", "realm": ""}}}}"#),
                "entry 1: realm: expected a SIP realm".to_owned(),
            ),
            (
                format!(r#"{{"secret1": {{"account_id": "{ONE}", "realm": ["secret2"]}}}}"#),
                "entry 1: realm: expected a SIP realm".to_owned(),
            ),
            (
                format!(r#"{{"secret1": {{"account_id": "{ONE}", "superduper_admin": "true"}}}}"#),
                "entry 1: superduper_admin: expected true or false".to_owned(),
            ),
            (
                format!(r#"{{"secret1": {{"account_id": "{ONE}", "expires": "2026"}}}}"#),
                "entry 1: expires: expected Unix seconds, a whole number".to_owned(),
            ),
            (
                format!(r#"{{"secret1": {{"account_id": "{ONE}", "expires": -1}}}}"#),
                "entry 1: expires: expected Unix seconds, a whole number".to_owned(),
            ),
            (
                format!(r#"{{"secret1": {{"account_id": "{ONE}", "account_id": "{TWO}"}}}}"#),
                "entry 1: key 2 is given twice".to_owned(),
            ),
            (
                format!(r#"{{{good}, {good}}}"#),
                "entry 2: the same token as an earlier entry".to_owned(),
            ),
            (
                format!(r#"{{"": {{"account_id": "{ONE}"}}}}"#),
                "entry 1: an empty token".to_owned(),
            ),
            (
                format!(
                    r#"{{"secret1": {{"account_id": "{ONE}", "realm": "a"}}, "secret2": {{"account_id": "{ONE}", "realm": "b"}}}}"#
                ),
                "entry 2: realm: another than an earlier entry of the same account has".to_owned(),
            ),
        ] {
            let error = Table::parse(Path::new("tokens.json"), &text, &Table::default())
                .err()
                .map(|error| error.to_string());
            let error = error.unwrap_or_default();
            assert_eq!(error, format!("tokens.json: {expected}"), "{text}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_reload_takes_the_new_table_and_keeps_identities_that_did_not_change() {
        let entry =
            |token: &str, account: &str| format!(r#""{token}": {{"account_id": "{account}"}}"#);
        let mut authenticator = on_file(&format!(
            "{{{}, {}, {}}}",
            entry("stays", ONE),
            entry("goes", ONE),
            entry("moves", ONE)
        ));
        let mut identity = |token| accepted(&mut authenticator, token, 0).expect("on file");
        let (stays, goes, moves) = (identity("stays"), identity("goes"), identity("moves"));
        let moved = format!(
            "{{{}, {}, {}}}",
            entry("moves", TWO),
            entry("stays", ONE),
            entry("new", TWO)
        );
        authenticator
            .reload(says(&moved), no_keys)
            .expect("a good file");
        assert!(matches!(authenticator.renew(&stays, 0), Renewal::Same));
        assert!(matches!(authenticator.renew(&goes, 0), Renewal::Refused));
        assert!(
            matches!(authenticator.renew(&moves, 0), Renewal::Changed { identity, .. } if identity.account_id() == Some(account(TWO)))
        );
        assert!(accepted(&mut authenticator, "new", 0).is_some());
        assert_eq!(authenticator.sizes().tokens, 3);
    }

    #[test]
    fn a_reload_that_fails_says_why_and_changes_nothing() {
        let mut authenticator = on_file(&format!(r#"{{"secret1": {{"account_id": "{ONE}"}}}}"#));
        for broken in ["", r#"{"secret2": {"account_id": "x"}}"#] {
            let error = authenticator
                .reload(says(broken), no_keys)
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            assert!(
                error.contains("tokens.json: ") && !error.contains("secret"),
                "{error}"
            );
            assert!(accepted(&mut authenticator, "secret1", 0).is_some());
        }
        let unread = authenticator.reload::<Box<dyn std::error::Error>>(
            |_| Err("unread".into()),
            |_| Err("no keys".into()),
        );
        assert_eq!(
            unread.err().map(|error| error.to_string()).as_deref(),
            Some("unread")
        );
        assert!(accepted(&mut authenticator, "secret1", 0).is_some());
    }
}
