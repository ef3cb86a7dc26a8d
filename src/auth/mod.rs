//! Who may do what (PROTOCOL 4 and 7): a token stands for an [`Identity`], and an identity may see accounts.
//!
//! | module | owns |
//! |---|---|
//! | `identity` | what a token gives the right to; pure |
//! | `question` | what is asked elsewhere, because the loop must not wait, and the answers |
//! | `tokens` | the token file: parsing, checking, reloading |
//! | `jwt` | the platform's signed tokens, and the keys that they are checked with |
//! | `accounts` | the account tree: who is below whom |
//! | `entry` | what the JSON files of this folder have in common |
//!
//! Sessions hold an `Arc<Identity>`: one allocation for each token, however many sessions use it.
//!
//! No file is read here: the caller hands in a function that does. A reload has three steps, so that the loop neither
//! reads nor parses a file: [`Authenticator::reread`] says what is to be read, [`Reread::parse`] has it read and parses
//! it on a thread of its own, [`Authenticator::take`] puts it in force.
//!
//! Two authenticators are still to come. `jwt` will be one more `Kind`: it decides from the token and the time, as
//! `tokens` does. `crossbar` must ask over the network, so it will not decide here: [`Verdict`] will get a third variant
//! that suspends the commands of the session until a thread has asked, and the loop's waker tells of its answer.
//!
//! Invariants: a token is in no log line, no error and no `Debug` output; a reload that fails changes nothing.
//!
//! ```
//! use blackhole::auth::{AuthConfig, AuthError, Authenticator, Verdict};
//!
//! let account = "4b8c6fec4b2597882c0390202d195419";
//! let text = format!(r#"{{"a-token": {{"account_id": "{account}"}}}}"#);
//! let config = AuthConfig::Tokens("tokens.json".into());
//! let mut authenticator = Authenticator::new(&config, |_file| Ok::<_, AuthError>(text))?;
//!
//! let now = 1_700_000_000;
//! let Verdict::Accepted(identity) = authenticator.authenticate("a-token", now) else {
//!     panic!("the token is in the file")
//! };
//! assert_eq!(identity.account_id().map(|id| id.to_string()).as_deref(), Some(account));
//! assert!(matches!(authenticator.authenticate("another", now), Verdict::Refused));
//! # Ok::<(), AuthError>(())
//! ```

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::wildcard_enum_match_arm
    )
)]

pub mod accounts;
mod entry;
mod identity;
pub mod jwt;
mod question;
mod tokens;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use entry::SharedRealm;
pub use identity::{Identity, REALM_PLACEHOLDER};
pub use question::{AccountAnswer, Answer, KeyAnswer, Question};
pub use tokens::AuthError;

use tokens::{Table, TokenFile};

/// Which authenticator there is to be: the key `auth`.
#[derive(Clone, Debug, PartialEq)]
pub enum AuthConfig {
    /// `tokens:FILE`.
    Tokens(PathBuf),
    /// `insecure`: any token for any account. Development only.
    Insecure {
        /// `insecure_realm`: the SIP realm of an account, with [`REALM_PLACEHOLDER`] where its id goes.
        realm_template: String,
    },
}

/// Decides who a token belongs to.
#[derive(Debug)]
pub struct Authenticator(Kind);

#[derive(Debug)]
enum Kind {
    Tokens(TokenFile),
    Insecure(Arc<Identity>),
}

/// What an authenticator says of a token. An authenticator that must ask elsewhere will add a variant that
/// suspends the command until the answer is there.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// The token is good now; it may still [expire](Identity::expires).
    Accepted(Arc<Identity>),
    /// Unknown or expired; the two are not told apart, for the client would learn which tokens once existed.
    Refused,
}

/// What can change while running, to be read again; where to, and what was known before.
#[derive(Debug)]
pub struct Reread(Option<(PathBuf, Arc<Table>)>);

/// What was read again and is not in force yet.
#[derive(Debug)]
pub struct Fresh(Option<Arc<Table>>);

impl Reread {
    /// Parses the token file, if there is one, which `read` reads: on a thread that may wait. Linear in the file.
    ///
    /// # Errors
    /// That of `read`, or [`AuthError`]: the file holds something else than it should.
    pub fn parse<E: From<AuthError>>(
        self,
        read: impl FnOnce(&Path) -> Result<String, E>,
    ) -> Result<Fresh, E> {
        let Some((file, old)) = self.0 else {
            return Ok(Fresh(None));
        };
        let text = read(&file)?;
        let table = Table::parse(&file, &text, &old)?;
        Ok(Fresh(Some(Arc::new(table))))
    }
}

impl Authenticator {
    /// Makes the authenticator that is configured, for `tokens` from the text that `read` returns for its file.
    ///
    /// # Errors
    /// That of `read`, or [`AuthError`]: the token file holds something else than it should.
    pub fn new<E: From<AuthError>>(
        config: &AuthConfig,
        read: impl FnOnce(&Path) -> Result<String, E>,
    ) -> Result<Self, E> {
        Ok(Self(match config {
            AuthConfig::Tokens(file) => Kind::Tokens(TokenFile::parse(file.clone(), &read(file)?)?),
            AuthConfig::Insecure { realm_template } => {
                Kind::Insecure(Arc::new(Identity::insecure(realm_template)))
            }
        }))
    }

    /// Decides on `token` at `unix_now` (Unix seconds). One hash lookup. `&mut`, because authenticators with a
    /// cache change by being asked.
    pub fn authenticate(&mut self, token: &str, unix_now: u64) -> Verdict {
        let identity = match &self.0 {
            Kind::Tokens(file) => file.find(token),
            Kind::Insecure(identity) => Some(identity),
        };
        match identity {
            Some(identity) if !identity.has_expired(unix_now) => {
                Verdict::Accepted(identity.clone())
            }
            _ => Verdict::Refused,
        }
    }

    /// Decides anew on a session's identity, for the loop to ask after a [reload](Self::reload): refused when its
    /// token was taken out of the file, the same `Arc` when nothing changed for it.
    pub fn renew(&mut self, identity: &Arc<Identity>, unix_now: u64) -> Verdict {
        match identity.token() {
            Some(token) => self.authenticate(token, unix_now),
            None => Verdict::Accepted(identity.clone()),
        }
    }

    /// What is to be read again (SIGHUP). O(1).
    #[must_use]
    pub fn reread(&self) -> Reread {
        Reread(match &self.0 {
            Kind::Tokens(file) => Some(file.reread()),
            Kind::Insecure(_) => None,
        })
    }

    /// Puts in force what was read again. Sessions keep the identities they hold until they are
    /// [renewed](Self::renew), which is to be done before any of them sees another event. O(1). What it returns is
    /// what was in force before, and takes time to be dropped.
    pub fn take(&mut self, fresh: Fresh) -> Fresh {
        match (&mut self.0, fresh.0) {
            (Kind::Tokens(file), Some(table)) => Fresh(Some(file.replace(table))),
            (Kind::Tokens(_) | Kind::Insecure(_), fresh) => Fresh(fresh),
        }
    }

    /// All steps of a reload at once, on the calling thread.
    ///
    /// # Errors
    /// That of [`Reread::parse`], and the old table stays in force.
    pub fn reload<E: From<AuthError>>(
        &mut self,
        read: impl FnOnce(&Path) -> Result<String, E>,
    ) -> Result<(), E> {
        let fresh = self.reread().parse(read)?;
        self.take(fresh);
        Ok(())
    }

    /// Accounts that share a realm, and so see each other's events where only the realm tells accounts apart: to be
    /// warned of.
    #[must_use]
    pub fn shared_realms(&self) -> &[SharedRealm] {
        match &self.0 {
            Kind::Tokens(file) => file.shared_realms(),
            Kind::Insecure(_) => &[],
        }
    }

    /// Whether anybody may do anything: to be warned of at every start (PROTOCOL 7).
    #[must_use]
    pub fn is_insecure(&self) -> bool {
        matches!(self.0, Kind::Insecure(_))
    }

    /// Tokens on file (a gauge); 0 where there is no file.
    #[must_use]
    pub fn tokens(&self) -> usize {
        match &self.0 {
            Kind::Tokens(file) => file.len(),
            Kind::Insecure(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::AccountId;

    fn nothing_to_read(file: &Path) -> Result<String, AuthError> {
        panic!("{} is not to be read", file.display())
    }

    #[test]
    fn insecure_takes_any_token_for_any_account_with_the_templates_realm() {
        let config = AuthConfig::Insecure {
            realm_template: "{account_id}.sip.example".to_owned(),
        };
        let mut authenticator =
            Authenticator::new(&config, nothing_to_read).expect("reads nothing");
        let Verdict::Accepted(identity) = authenticator.authenticate("anything", u64::MAX) else {
            panic!("refused");
        };
        let account = AccountId::parse("00112233445566778899aabbccddeeff").expect("an account id");
        assert!(
            identity.may_see(account) && identity.is_superduper() && identity.is_token("another")
        );
        assert_eq!(identity.account_id(), None);
        assert_eq!(identity.expires(), None);
        assert_eq!(
            identity.realm_of(account).as_deref(),
            Some("00112233445566778899aabbccddeeff.sip.example")
        );
        assert!(authenticator.is_insecure());
        assert!(
            matches!(authenticator.renew(&identity, 0), Verdict::Accepted(same) if Arc::ptr_eq(&same, &identity))
        );
    }
}
