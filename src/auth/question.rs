//! What the authenticator asks of threads, because the loop must not wait, and what they answer (PROTOCOL 7).
//!
//! A question carries all that its thread needs, so a thread shares no state with the loop. An answer repeats what was
//! asked, by which the authenticator finds who waits for it.
//!
//! Invariant: a token is in no `Debug` output.

use std::fmt;
use std::sync::Arc;

use crate::account::AccountId;

/// What a thread is asked.
#[derive(Clone, PartialEq, Eq)]
pub enum Question {
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

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
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
