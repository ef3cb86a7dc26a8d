//! What must be asked elsewhere, because the loop does not wait: questions to threads, and their answers.
//!
//! Invariant: a token is in no `Debug` output.

use std::fmt;
use std::sync::Arc;

use super::jwt;
use crate::account::AccountId;

/// What a thread is asked.
#[derive(Clone)]
pub enum Question {
    /// Whether the signature and the claims of a JWT hold. Takes CPU only.
    Verify {
        /// The JWT.
        token: Arc<str>,
        /// The keys that are in force.
        keys: Arc<jwt::Keys>,
        /// What the claims must say.
        rules: Arc<jwt::Rules>,
        /// The time, in Unix seconds.
        unix_now: u64,
    },
    /// `GET {url}/accounts/{account_id}`: whether the token may see the account.
    Account {
        /// The token.
        token: Arc<str>,
        /// The account.
        account: AccountId,
    },
    /// `GET {url}/auth/keys/{kid}` with the service token: the public key of this id.
    Key {
        /// The id.
        kid: Box<str>,
    },
}

/// Who answers a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// A thread that computes.
    Verify,
    /// Threads that ask the platform's REST API and wait for it.
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
            Self::Verify { .. } => f.write_str("Verify"),
            Self::Account { account, .. } => f.debug_tuple("Account").field(account).finish(),
            Self::Key { kid } => f.debug_tuple("Key").field(kid).finish(),
        }
    }
}

/// The answer to the question of the same name.
#[derive(Clone)]
pub enum Answer {
    /// What the JWT says, if it holds.
    Verify {
        /// The JWT.
        token: Arc<str>,
        /// Its claims, or why it is refused.
        verdict: Result<jwt::Claims, jwt::Refusal>,
    },
    /// What the platform says of a token and an account.
    Account {
        /// The token.
        token: Arc<str>,
        /// The account.
        account: AccountId,
        /// The answer.
        answer: AccountAnswer,
    },
    /// The key, if the platform has it.
    Key {
        /// Its id.
        kid: Box<str>,
        /// The answer.
        answer: KeyAnswer,
    },
}

/// What the platform says of a token and an account (PROTOCOL 7, `crossbar`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountAnswer {
    /// 200: the token may see the account.
    Yes {
        /// `data.realm`.
        realm: Option<Arc<str>>,
        /// `data.superduper_admin`.
        superduper: bool,
    },
    /// 401: the token is no good.
    TokenRefused,
    /// 403 or 404: not this account.
    AccountRefused,
    /// Anything else, a timeout included: never a yes.
    Trouble,
}

/// What the platform says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyAnswer {
    /// The key, as PEM.
    Pem(String),
    /// It has none of this id.
    Unknown,
    /// Anything else, a timeout included.
    Trouble,
}
