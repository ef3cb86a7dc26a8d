//! The files of TLS clients, and whom they trust.
//!
//! Invariant: no error contains a piece of a file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::limits::TLS_FILE_BYTES_MAX;

/// Why a file does not serve. Nothing that is in the file is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {problem}", file = file.display())]
pub struct TlsFileError {
    /// Which.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

impl TlsFileError {
    pub(crate) fn new(file: &Path, problem: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            problem: problem.into(),
        }
    }

    /// Of a file that is not the PEM that is wanted.
    pub(crate) fn of_pem(file: &Path, error: &pem::Error, wanted: &str) -> Self {
        let problem = match error {
            pem::Error::NoItemsFound => format!("holds no {wanted} in PEM form"),
            _ => "is broken PEM".to_owned(),
        };
        Self::new(file, problem)
    }
}

/// A client's own certificate. Both files are PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// The certificate, and behind it those that link it to its CA.
    pub cert: PathBuf,
    /// Its private key: PKCS#8, PKCS#1 or SEC1, not encrypted.
    pub key: PathBuf,
}

/// The configuration of a client that trusts `roots`, and shows a server that asks who it is `own`. Blocks for as long as
/// the disk does.
pub(crate) fn client_config(
    roots: RootCertStore,
    own: Option<&ClientFiles>,
) -> Result<ClientConfig, TlsFileError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsFileError::new(Path::new("TLS"), error.to_string()))?;
    let builder = builder.with_root_certificates(roots);
    let Some(ClientFiles { cert, key }) = own else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(cert)?;
    let private = PrivateKeyDer::from_pem_slice(&content(key)?)
        .map_err(|error| TlsFileError::of_pem(key, &error, "private key"))?;
    builder
        .with_client_auth_cert(chain, private)
        .map_err(|error| {
            let problem = match error {
                rustls::Error::InconsistentKeys(_) => {
                    format!("is not the key of the certificate in {}", cert.display())
                }
                _ => "holds a private key of a kind that is not supported".to_owned(),
            };
            TlsFileError::new(key, problem)
        })
}

/// The CAs in a file, at least one. Blocks for as long as the disk does.
pub(crate) fn roots_of(file: &Path) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots
            .add(certificate)
            .map_err(|_| TlsFileError::new(file, "holds a certificate that cannot be a CA's"))?;
    }
    Ok(roots)
}

/// The CAs that the system trusts; may be none. One that cannot be read is left out, as OpenSSL does. Blocks for as long as
/// the disk does.
pub(crate) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// The certificates in a file, at least one. Blocks for as long as the disk does.
pub(crate) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let wrong = |error: &pem::Error| TlsFileError::of_pem(file, error, "certificate");
    let content = content(file)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&content)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(&error))?;
    if certificates.is_empty() {
        return Err(wrong(&pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

/// A file of at most [`TLS_FILE_BYTES_MAX`] bytes. Blocks for as long as the disk does.
pub(crate) fn content(file: &Path) -> Result<Vec<u8>, TlsFileError> {
    let mut content = Vec::new();
    File::open(file)
        .and_then(|opened| {
            opened
                .take(TLS_FILE_BYTES_MAX + 1)
                .read_to_end(&mut content)
        })
        .map_err(|error| TlsFileError::new(file, format!("cannot be read: {error}")))?;
    if content.len() as u64 > TLS_FILE_BYTES_MAX {
        let problem = format!("is longer than {TLS_FILE_BYTES_MAX} bytes");
        return Err(TlsFileError::new(file, problem));
    }
    Ok(content)
}
