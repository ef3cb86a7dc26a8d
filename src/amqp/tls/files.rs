//! The files that TLS to a broker needs, and what is made of them.
//!
//! Invariant: no error contains a piece of a file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::limits::TLS_FILE_BYTES_MAX;

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

/// Why a file does not serve. Nothing that is in the file is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {problem}", file = file.display())]
pub struct TlsFileError {
    /// Which.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problem: String,
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
            None => system_roots()?,
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(Path::new("TLS"), error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &self.client {
            None => builder.with_no_client_auth(),
            Some(ClientFiles { cert, key }) => {
                let chain = certificates(cert)?;
                let private = PrivateKeyDer::from_pem_slice(&content(key)?)
                    .map_err(|error| wrong(key, pem_problem(&error, "private key")))?;
                builder
                    .with_client_auth_cert(chain, private)
                    .map_err(|error| match error {
                        rustls::Error::InconsistentKeys(_) => wrong(
                            key,
                            format!("is not the key of the certificate in {}", cert.display()),
                        ),
                        _ => wrong(key, "holds a private key of a kind that is not supported"),
                    })?
            }
        };
        // Connections are few, and each is made with what the files say now.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn wrong(file: &Path, problem: impl Into<String>) -> TlsFileError {
    TlsFileError {
        file: file.to_owned(),
        problem: problem.into(),
    }
}

fn roots_of(file: &Path) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots
            .add(certificate)
            .map_err(|_| wrong(file, "holds a certificate that cannot be a CA's"))?;
    }
    Ok(roots)
}

/// A certificate of the system's that cannot be read is left out, as OpenSSL does.
fn system_roots() -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let problem = "has no CA certificate; amqp_ca_cert names a CA of one's own";
        return Err(wrong(Path::new("the system's store"), problem));
    }
    Ok(roots)
}

/// The certificates in a file, at least one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let content = content(file)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&content)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(file, pem_problem(&error, "certificate")))?;
    if certificates.is_empty() {
        return Err(wrong(
            file,
            pem_problem(&pem::Error::NoItemsFound, "certificate"),
        ));
    }
    Ok(certificates)
}

fn pem_problem(error: &pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("holds no {wanted} in PEM form"),
        _ => "is broken PEM".to_owned(),
    }
}

fn content(file: &Path) -> Result<Vec<u8>, TlsFileError> {
    let mut content = Vec::new();
    File::open(file)
        .and_then(|opened| {
            opened
                .take(TLS_FILE_BYTES_MAX + 1)
                .read_to_end(&mut content)
        })
        .map_err(|error| wrong(file, format!("cannot be read: {error}")))?;
    if content.len() as u64 > TLS_FILE_BYTES_MAX {
        let problem = format!("is longer than {TLS_FILE_BYTES_MAX} bytes");
        return Err(wrong(file, problem));
    }
    Ok(content)
}
