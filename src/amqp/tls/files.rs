//! The files that TLS to a broker needs, and what is made of them.
//!
//! Invariant: no error contains a piece of a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;

pub use crate::tls_files::{ClientFiles, TlsFileError};
use crate::tls_files::{client_config, roots_of, system_roots};

/// The files that TLS to a broker needs. All are PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The CAs that a broker's certificate may come from; `None`: those that the system trusts.
    pub ca_cert: Option<PathBuf>,
    /// What we show a broker that asks who we are.
    pub client: Option<ClientFiles>,
}

impl TlsFiles {
    /// Reads the files and makes sure that they serve. Blocks for as long as the disk does.
    ///
    /// # Errors
    /// A file cannot be read or holds something else than it should, or the system trusts no CA.
    pub fn check(&self) -> Result<(), TlsFileError> {
        self.read().map(|_| ())
    }

    /// Reads the files. Blocks for as long as the disk does.
    pub(in crate::amqp) fn read(&self) -> Result<Arc<ClientConfig>, TlsFileError> {
        let roots = match &self.ca_cert {
            Some(file) => roots_of(file)?,
            None => system_roots(),
        };
        if roots.is_empty() {
            let problem = "has no CA certificate; amqp_ca_cert names a CA of one's own";
            return Err(TlsFileError::new(Path::new("the system's store"), problem));
        }
        let mut config = client_config(roots, self.client.as_ref())?;
        // Connections are few, and each is made with what the files say now.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}
