//! Why a configuration is refused.

use std::path::PathBuf;

use crate::auth::AuthError;

/// Why a configuration is refused: [`Display`](std::fmt::Display) names file and key, or option, and what was
/// expected; it holds no password and no token.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The config file, or one that it names, as a whole.
    #[error("{file}: {problem}", file = file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A value.
    #[error("{place}: {problem}")]
    Value {
        /// `config.json: port` or `--port`.
        place: String,
        /// Unknown, or what was expected and what was found.
        problem: String,
    },
    /// The command line, where no known option is to blame.
    #[error("{0}")]
    CommandLine(String),
    /// `auth` is not set.
    #[error("{place}: not set, and without it nobody could be let in. {AUTH_CHOICES}")]
    NoAuth {
        /// As of [`ConfigError::Value`].
        place: String,
    },
    /// A file that an authenticator is made from.
    #[error(transparent)]
    Auth(#[from] AuthError),
}

const AUTH_CHOICES: &str = "\
Choose one, as \"auth\": \"tokens:FILE\" in the config file, or as --auth tokens:FILE:
  tokens:FILE   clients that know a token of this JSON file:
                {\"TOKEN\": {\"account_id\": \"32 hex characters\"}}
  jwt:FILE      clients with a token that the platform has signed; FILE is the public key
                as PEM, or a JWKS file, or a folder of KEY_ID.pem
  crossbar:URL  clients with a token that the platform's REST API knows
  insecure      for development only: any token, any account";
