//! The choice of a source, and why an embedded one cannot start.

use std::io;
use std::path::PathBuf;

/// Where events come from: the key `source`.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceConfig {
    /// RabbitMQ, which is not embedded.
    Amqp,
    /// Made-up call events, round-robin over the accounts.
    Demo {
        /// Events a second, above 0.
        rate: f64,
        /// Accounts that they are spread over, at least 1.
        accounts: u32,
    },
    /// JSON lines from a file or a named pipe.
    Replay {
        /// The file.
        file: PathBuf,
    },
}

/// Why an embedded source cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// [`SourceConfig::Amqp`], whose events the AMQP thread brings.
    #[error("source `amqp` is not an embedded source")]
    NotEmbedded,
    /// The rate is not a positive finite number.
    #[error("demo_rate: {0} is not a positive number of events a second")]
    Rate(f64),
    /// No account to make events up for.
    #[error("demo_accounts: at least 1 is needed")]
    NoAccounts,
    /// The file of `replay:FILE` cannot be opened.
    #[error("source replay:{file}: {error}")]
    Open {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The system refused a thread.
    #[error("cannot start the source's thread: {0}")]
    Thread(io::Error),
}
