//! A certificate chain and its key: checked, told of, and chosen by name (SNI).
//!
//! Invariant: what is chosen from has at least one certificate.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::asn1::{AnyRef, BitStringRef};
use x509_cert::der::{Decode, Encode, Reader, SliceReader};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use zeroize::Zeroizing;

use crate::limits::TLS_CHAIN_MAX;
use crate::tls_files::{self, TlsFileError};

/// A certificate chain and its key, as files. Both are PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain: the server's own certificate, then each one's issuer; the root may be left out.
    pub cert: PathBuf,
    /// The key of the server's own certificate.
    pub key: PathBuf,
}

/// What an operator is told of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The file of its chain.
    pub file: PathBuf,
    /// The names that it is for: DNS names in small letters, some with `*.` at the front, and addresses.
    pub names: Vec<String>,
    /// Unix seconds from which on it is valid.
    pub not_before: u64,
    /// Unix seconds up to which it is valid.
    pub not_after: u64,
}

impl CertificateFacts {
    pub(super) fn is_valid(&self, unix: u64) -> bool {
        (self.not_before..=self.not_after).contains(&unix)
    }
}

/// A chain with its key.
pub(super) struct Certified {
    pub(super) facts: CertificateFacts,
    pub(super) key: Arc<CertifiedKey>,
}

/// Reads and checks a chain and its key. Blocks for as long as the disk does.
pub(super) fn load(
    files: &CertificateFiles,
    provider: &CryptoProvider,
) -> Result<Certified, TlsFileError> {
    let chain = tls_files::certificates(&files.cert)?;
    let facts = check(&files.cert, &chain, provider)?;
    let key = private_key(&files.key)?;
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            let problem = format!(
                "is not the key of the certificate in {}",
                files.cert.display()
            );
            TlsFileError::new(&files.key, problem)
        }
        _ => TlsFileError::new(
            &files.key,
            "holds a key that cannot be used: ECDSA (P-256, P-384), Ed25519, or RSA of 2048 bits or more can",
        ),
    })?;
    Ok(Certified {
        facts,
        key: Arc::new(key),
    })
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let content = Zeroizing::new(tls_files::content(file)?);
    PrivateKeyDer::from_pem_slice(&content).map_err(|error| {
        const ENCRYPTED: &[u8] = b"ENCRYPTED";
        if content.windows(ENCRYPTED.len()).any(|at| at == ENCRYPTED) {
            let problem = "holds an encrypted private key, which nobody is here to open";
            return TlsFileError::new(file, problem);
        }
        TlsFileError::of_pem(file, &error, "private key")
    })
}

/// A certificate as it stands in a chain.
struct Link<'a> {
    certificate: CertificateInner<Raw>,
    /// What is signed.
    signed: &'a [u8],
    signature_algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Link<'a> {
    fn read(der: &'a [u8]) -> x509_cert::der::Result<Self> {
        let certificate = CertificateInner::from_der(der)?;
        let mut reader = SliceReader::new(der)?;
        reader.sequence(|reader| {
            let signed = reader.tlv_bytes()?;
            let signature_algorithm = AnyRef::decode(reader)?.value();
            let signature = BitStringRef::decode(reader)?.raw_bytes();
            Ok(Self {
                certificate,
                signed,
                signature_algorithm,
                signature,
            })
        })
    }

    /// Whether `issuer` has signed it, as far as we know the algorithm.
    fn is_signed_by(&self, issuer: &Self, provider: &CryptoProvider) -> bool {
        let issued = self.certificate.tbs_certificate();
        let issuing = issuer.certificate.tbs_certificate();
        if issued.issuer() != issuing.subject() {
            return false;
        }
        let key = issuing.subject_public_key_info();
        let key_algorithm = key.algorithm.to_der().unwrap_or_default();
        let key_algorithm = AnyRef::from_der(&key_algorithm).map_or(&[][..], |any| any.value());
        let mut known = (provider.signature_verification_algorithms.all.iter())
            .filter(|algorithm| {
                algorithm.signature_alg_id().as_ref() == self.signature_algorithm
                    && algorithm.public_key_alg_id().as_ref() == key_algorithm
            })
            .peekable();
        let public = key.subject_public_key.raw_bytes();
        known.peek().is_none()
            || known.any(|algorithm| {
                algorithm
                    .verify_signature(public, self.signed, self.signature)
                    .is_ok()
            })
    }
}

/// Checks that each certificate was signed by the next, and tells of the first.
fn check(
    file: &Path,
    chain: &[CertificateDer<'_>],
    provider: &CryptoProvider,
) -> Result<CertificateFacts, TlsFileError> {
    if chain.len() > TLS_CHAIN_MAX {
        let problem = format!("holds more than {TLS_CHAIN_MAX} certificates");
        return Err(TlsFileError::new(file, problem));
    }
    let read = |(index, der)| {
        Link::read(der).map_err(|_| {
            let problem = format!("certificate {} in it cannot be read", index + 1);
            TlsFileError::new(file, problem)
        })
    };
    let links: Vec<Link<'_>> = chain
        .iter()
        .map(AsRef::as_ref)
        .enumerate()
        .map(read)
        .collect::<Result<_, _>>()?;
    for (index, pair) in links.windows(2).enumerate() {
        if let [issued, issuer] = pair
            && !issued.is_signed_by(issuer, provider)
        {
            let problem = format!(
                "certificate {} in it did not sign certificate {}: the server's own comes first, then each one's issuer",
                index + 2,
                index + 1
            );
            return Err(TlsFileError::new(file, problem));
        }
    }
    let first = links
        .first()
        .ok_or_else(|| TlsFileError::new(file, "holds no certificate in PEM form"))?;
    let own = first.certificate.tbs_certificate();
    let validity = own.validity();
    let names = own
        .get_extension::<SubjectAltName>()
        .map_err(|_| TlsFileError::new(file, "the names of the certificate cannot be read"))?;
    Ok(CertificateFacts {
        file: file.to_owned(),
        names: names.map_or_else(Vec::new, |(_, names)| {
            names.0.iter().filter_map(name).collect()
        }),
        not_before: validity.not_before.to_unix_duration().as_secs(),
        not_after: validity.not_after.to_unix_duration().as_secs(),
    })
}

/// A name that a client can ask for.
fn name(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
        GeneralName::IpAddress(address) => {
            let bytes = address.as_bytes();
            let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
            v4.or_else(|_| v6()).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

/// Chooses a certificate by the name that a client asks for, and by what it can verify: several may be for one name, with
/// keys of several kinds.
#[derive(Debug)]
pub(super) struct ByName {
    /// In the order of the configuration: the first is for those who name none.
    keys: Vec<Arc<CertifiedKey>>,
    /// By name: places in `keys`, the best first.
    exact: HashMap<String, Vec<usize>>,
    /// By what follows `*.`.
    wildcards: HashMap<String, Vec<usize>>,
}

impl ByName {
    /// `unix`: now, in seconds. Of several certificates for a name one that is valid goes before one that is not.
    pub(super) fn new(certified: &[Certified], unix: u64) -> Self {
        let mut places: Vec<(usize, &CertificateFacts)> = certified
            .iter()
            .map(|certified| &certified.facts)
            .enumerate()
            .collect();
        places.sort_by_key(|(_, facts)| !facts.is_valid(unix));
        let mut by_name = Self {
            keys: certified.iter().map(|one| one.key.clone()).collect(),
            exact: HashMap::new(),
            wildcards: HashMap::new(),
        };
        for (place, facts) in places {
            for name in &facts.names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut by_name.wildcards, parent),
                    None => (&mut by_name.exact, name.as_str()),
                };
                names.entry(name.to_owned()).or_default().push(place);
            }
        }
        by_name
    }

    /// Places in `keys` for a name, the best first.
    fn places(&self, name: &str) -> &[usize] {
        let name = name.to_ascii_lowercase();
        let exact = self.exact.get(&name);
        let found = exact.or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.wildcards.get(parent)
        });
        found.map_or(&[], Vec::as_slice)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello
            .server_name()
            .map_or(&[][..], |name| self.places(name));
        let named = named.iter().filter_map(|place| self.keys.get(*place));
        let fits = |key: &&Arc<CertifiedKey>| {
            let scheme = key.key.choose_scheme(hello.signature_schemes());
            scheme.is_some()
        };
        // Without any that the client can verify rustls finds the words for it.
        named
            .chain(&self.keys)
            .find(fits)
            .or_else(|| self.keys.first())
            .cloned()
    }
}
