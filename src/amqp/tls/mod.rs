//! TLS to the broker (AMQP rail 12): whom we trust, who we say that we are, and the stream in between.
//!
//! | module | owns |
//! |---|---|
//! | `files` | the files, and what is made of them |
//! | `stream` | the handshake, and the decrypted stream |
//! | `fault` | what is wrong, in one line for an operator |
//!
//! Invariants: a broker's certificate is always checked, its name included; no error contains a piece of a file. The
//! files are read again for each connection, so a certificate that was renewed needs no restart.

mod fault;
mod files;
mod stream;

pub(super) use self::fault::Fault;
pub use self::files::{ClientFiles, TlsFileError, TlsFiles};
pub(super) use self::stream::connect;
