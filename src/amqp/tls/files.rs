//! The files that TLS to a broker needs, and what is made of them.
//!
//! Invariant: no error contains a piece of a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

pub use crate::tls_files::TlsFileError;
use crate::tls_files::{certificates, client_config, content, roots_of, system_roots};

/// The files that TLS to a broker needs. All are PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The CAs that a broker's certificate may come from; `None`: those that the system trusts.
    pub ca_cert: Option<PathBuf>,
    /// What we show a broker that asks who we are.
    pub client: Option<ClientFiles>,
}

/// Our own certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// The certificate, and behind it those that link it to its CA.
    pub cert: PathBuf,
    /// Its private key: PKCS#8, PKCS#1 or SEC1, not encrypted.
    pub key: PathBuf,
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
        let builder = client_config(roots)?;
        let mut config = match &self.client {
            None => builder.with_no_client_auth(),
            Some(ClientFiles { cert, key }) => {
                let chain = certificates(cert)?;
                let private = PrivateKeyDer::from_pem_slice(&content(key)?)
                    .map_err(|error| TlsFileError::of_pem(key, &error, "private key"))?;
                builder
                    .with_client_auth_cert(chain, private)
                    .map_err(|error| match error {
                        rustls::Error::InconsistentKeys(_) => TlsFileError::new(
                            key,
                            format!("is not the key of the certificate in {}", cert.display()),
                        ),
                        _ => TlsFileError::new(
                            key,
                            "holds a private key of a kind that is not supported",
                        ),
                    })?
            }
        };
        // Connections are few, and each is made with what the files say now.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}
