//! TLS of clients' connections: 1.2 and 1.3, the server's side.
//!
//! ```text
//! first bytes -> loop -> HandshakeLane, bounded -> threads "tls-N": rustls -> answers, bounded -> loop and its waker
//!                         ^ bytes in                                 bytes out v
//!                         +---------------- until it is done ----------------+ -> Records
//! afterwards:    loop -> Records::open, Records::seal: nothing of rustls is left, and no thread is asked
//! ```
//!
//! | module | owns |
//! |---|---|
//! | `alert` | alerts, and their records in the clear |
//! | `keys` | a direction's keys: from one secret to the next, and what they seal and open |
//! | `records` | the records of one connection after its handshake; pure |
//! | `handshake` | a handshake, step by step; the only place of rustls's unbuffered connections |
//! | `secrets` | the traffic secrets of a handshake, which rustls tells to key logs only |
//! | `threads` | the lanes of handshakes, and the threads' life |
//! | `server` | what an operator configures, loaded |
//! | `certificates` | a certificate file and its key: checks, facts, the choice by name |
//! | `tickets` | tickets that carry a session to another process that has the same key |
//!
//! Invariants: no key, secret or ticket is in a log, a page or a `Debug`; a peer's bytes make an error, never a panic; a
//! handshake holds no more input than `TLS_HANDSHAKE_BYTES_MAX`; what is kept of a connection after its handshake is
//! [`Records`] alone, which holds no buffer.

mod alert;
mod certificates;
mod handshake;
mod keys;
mod records;
mod secrets;
mod server;
#[cfg(test)]
mod tests;
mod threads;
mod tickets;

pub use self::alert::Alert;
pub use self::certificates::{CertificateFacts, CertificateFiles};
pub use self::handshake::{Done, Handshake, HandshakeFault, Stepped, Work, Worked};
pub use self::keys::{Cipher, Exhausted, Keys, KeysError, Version};
pub use self::records::{Opened, RECORD_BYTES_MAX, RecordError, Records};
pub use self::server::{ServerTls, TlsOptions};
pub use self::threads::{HandshakeLane, HandshakeThreads, channels};
pub use crate::tls_files::TlsFileError;
