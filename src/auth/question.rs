//! What the authenticator asks of threads, because the loop must not wait, and what they answer (PROTOCOL 7).
//!
//! A question carries all that its thread needs, so a thread shares no state with the loop. An answer repeats what was
//! asked, by which the authenticator finds who waits for it.
//!
//! Invariant: a token is in no `Debug` output.

use std::fmt;
use std::sync::Arc;

use super::jwt;
use crate::account::AccountId;

/// What a thread is asked.
#[derive(Clone)]
pub enum Question {
    /// Whether the signature and the claims of a JWT hold. CPU only.
    Verify {
        /// The JWT.
        token: Arc<str>,
        /// Those in force when it was asked.
        keys: Arc<jwt::Keys>,
        /// What is asked of its claims.
        rules: Arc<jwt::Rules>,
        /// Unix seconds.
        unix_now: u64,
    },
    /// `GET {url}/accounts/{account_id}` with the token: whether it may see the account.
    Account {
        /// Sent as `X-Auth-Token`.
        token: Arc<str>,
        /// Whom the token is to see.
        account: AccountId,
    },
    /// `GET {url}/auth/keys/{kid}` with the service token: the key of this id.
    Key {
        /// As the header of a JWT has it: any text.
        kid: Box<str>,
    },
}

/// The answer to a question of the same name.
#[derive(Clone, PartialEq, Eq)]
pub enum Answer {
    /// Whether the JWT is good.
    Verify {
        /// As asked.
        token: Arc<str>,
        /// What it says, or why it is refused.
        verdict: Result<jwt::Claims, jwt::Refusal>,
    },
    /// Whether the token may see the account.
    Account {
        /// As asked.
        token: Arc<str>,
        /// As asked.
        account: AccountId,
        /// What the platform says.
        answer: AccountAnswer,
    },
    /// The key.
    Key {
        /// As asked.
        kid: Box<str>,
        /// What the platform says.
        answer: KeyAnswer,
    },
}

/// What the platform says of a token and an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountAnswer {
    /// The token may see the account.
    Yes {
        /// The account's SIP realm: not empty, without white space.
        realm: Option<Arc<str>>,
        /// Whether the account is the platform's own.
        superduper: bool,
    },
    /// The token is not good, for any account: 401.
    TokenRefused,
    /// Not this account: 403 or 404.
    AccountRefused,
    /// Anything else, a timeout included: never a yes.
    Trouble,
}

/// What the platform says of a key id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyAnswer {
    /// The public key, as PEM; not parsed yet.
    Pem(String),
    /// There is none.
    Unknown,
    /// Nobody knows: not asked, or no answer that makes sense.
    Trouble,
}

/// Who answers a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// A thread that verifies signatures.
    Verify,
    /// Threads that ask the platform's REST API, and wait for it.
    Platform,
}

impl Question {
    /// Who answers it.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self {
            Self::Verify { .. } => Lane::Verify,
            Self::Account { .. } | Self::Key { .. } => Lane::Platform,
        }
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verify {
                token: _,
                keys,
                rules,
                unix_now,
            } => f
                .debug_struct("Verify")
                .field("keys", keys)
                .field("rules", rules)
                .field("unix_now", unix_now)
                .finish_non_exhaustive(),
            Self::Account { token: _, account } => f
                .debug_struct("Account")
                .field("account", account)
                .finish_non_exhaustive(),
            Self::Key { kid } => f.debug_struct("Key").field("kid", kid).finish(),
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verify { token: _, verdict } => f
                .debug_struct("Verify")
                .field("verdict", verdict)
                .finish_non_exhaustive(),
            Self::Account {
                token: _,
                account,
                answer,
            } => f
                .debug_struct("Account")
                .field("account", account)
                .field("answer", answer)
                .finish_non_exhaustive(),
            Self::Key { kid, answer } => f
                .debug_struct("Key")
                .field("kid", kid)
                .field("answer", answer)
                .finish(),
        }
    }
}
