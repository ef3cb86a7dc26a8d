//! What an operator configures of TLS to clients, loaded.
//!
//! Invariants: what is loaded does not change; new files are a new [`ServerTls`], and handshakes under way go on with the
//! old one. No error or warning contains a piece of a key.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::ring::cipher_suite;
use rustls::crypto::{CryptoProvider, ring as ring_provider};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier};
use rustls::{ServerConfig, SupportedCipherSuite, version};
use time::OffsetDateTime;
use time::macros::format_description;
use zeroize::Zeroizing;

use super::certificates::{self, ByName, CertificateFacts, CertificateFiles, Certified};
use super::secrets::ToThread;
use super::tickets::{Clock, SECRET_BYTES_MIN, Tickets};
use crate::limits::{TLS_CERTIFICATES_MAX, TLS_EXPIRY_WARNED};
use crate::tls_files::{self, TlsFileError};

/// The one application protocol (ALPN).
const HTTP: &[u8] = b"http/1.1";

/// The suites in the order in which we choose, whatever the client's: AES-128 with SHA-256 first, which takes 10 to 18 us less
/// of a handshake than what most clients put first, AES-256 with SHA-384, because `ring` computes that hash slowly.
const SUITES: [SupportedCipherSuite; 9] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// What an operator configures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// At least one; the first is for clients that name no server, or one that none of them is for.
    pub certificates: Vec<CertificateFiles>,
    /// The CAs of clients' certificates, as PEM. `None`: clients are asked for none.
    pub client_ca: Option<PathBuf>,
    /// Whether a client without a certificate is refused.
    pub client_required: bool,
    /// A secret of at least 32 bytes, from which the keys of tickets are made. `None`: a random one of this process.
    pub ticket_key_file: Option<PathBuf>,
}

/// What the TLS port serves with. A clone is the same.
#[derive(Clone)]
pub struct ServerTls(Arc<Loaded>);

struct Loaded {
    config: Arc<ServerConfig>,
    certificates: Vec<CertificateFacts>,
    /// Files with a secret that others than owner and group may read.
    exposed: Vec<PathBuf>,
}

impl ServerTls {
    /// Loads the files of `options`. Blocks for as long as the disk does. `unix`: now, in seconds. A certificate that is
    /// not valid now is no error: whoever must serve has the choice between a bad certificate and none.
    ///
    /// # Errors
    /// A file does not serve.
    pub fn load(options: &TlsOptions, unix: u64) -> Result<Self, TlsFileError> {
        let clock: Clock = Arc::new(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.unwrap_or_default().as_secs()
        });
        Self::load_at(options, unix, clock)
    }

    /// As [`ServerTls::load`]; tickets go by `clock`.
    pub(super) fn load_at(
        options: &TlsOptions,
        unix: u64,
        clock: Clock,
    ) -> Result<Self, TlsFileError> {
        let trouble = |problem: String| TlsFileError::new(Path::new("TLS"), problem);
        let provider = Arc::new(CryptoProvider {
            cipher_suites: SUITES.to_vec(),
            ..ring_provider::default_provider()
        });
        let certified = load_certificates(&options.certificates, &provider)?;
        let verifier = client_verifier(options, &provider)?;
        let secret = ticket_secret(options.ticket_key_file.as_deref())?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .map_err(|error| trouble(error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(ByName::new(&certified, unix)));
        config.alpn_protocols = vec![HTTP.to_vec()];
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(ToThread);
        config.ignore_client_order = true;
        config.max_early_data_size = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if options.client_ca.is_none() {
            config.send_tls13_tickets = 1;
            config.ticketer = Arc::new(Tickets::new(&secret, clock));
        } else {
            // A handshake that is resumed does not look at the client's certificate again, which may have expired.
            config.send_tls13_tickets = 0;
        }
        let secret_files = (options.certificates.iter().map(|files| &files.key))
            .chain(&options.ticket_key_file)
            .filter(|file| is_exposed(file));
        Ok(Self(Arc::new(Loaded {
            config: Arc::new(config),
            certificates: certified.into_iter().map(|one| one.facts).collect(),
            exposed: secret_files.cloned().collect(),
        })))
    }

    /// Unix seconds at which the first of the certificates expires.
    #[must_use]
    pub fn expires(&self) -> u64 {
        let ends = self.certificates().iter().map(|facts| facts.not_after);
        ends.min().unwrap_or_default()
    }

    /// The certificates, in the order in which they are configured.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateFacts] {
        &self.0.certificates
    }

    /// What an operator should know about these files at `unix`, in seconds: a line each, which names the file.
    #[must_use]
    pub fn warnings(&self, unix: u64) -> Vec<String> {
        let of_certificates = self.certificates().iter().flat_map(|facts| {
            let nameless = facts.names.is_empty().then(|| {
                "the certificate names nobody (no subjectAltName), so browsers refuse it".to_owned()
            });
            [validity(facts, unix), nameless]
                .into_iter()
                .flatten()
                .map(|warning| format!("{}: {warning}", facts.file.display()))
        });
        let of_files = self.0.exposed.iter().map(|file| {
            format!(
                "{}: holds a secret and can be read by all users",
                file.display()
            )
        });
        of_certificates.chain(of_files).collect()
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.0.config.clone()
    }
}

/// What is to be said of a certificate's time.
fn validity(facts: &CertificateFacts, unix: u64) -> Option<String> {
    const DAY: u64 = 24 * 60 * 60;
    if unix < facts.not_before {
        let from = day(facts.not_before);
        Some(format!("the certificate is not valid before {from}"))
    } else if unix > facts.not_after {
        let end = day(facts.not_after);
        Some(format!("the certificate has expired on {end}"))
    } else if facts.not_after - unix <= TLS_EXPIRY_WARNED.as_secs() {
        let (end, days) = (day(facts.not_after), (facts.not_after - unix) / DAY);
        Some(format!("the certificate expires on {end}, in {days} days"))
    } else {
        None
    }
}

/// A day in UTC.
fn day(unix: u64) -> String {
    let at = i64::try_from(unix)
        .ok()
        .and_then(|unix| OffsetDateTime::from_unix_timestamp(unix).ok());
    let text = at.and_then(|at| at.format(format_description!("[year]-[month]-[day]")).ok());
    text.unwrap_or_else(|| format!("the day of Unix second {unix}"))
}

fn load_certificates(
    files: &[CertificateFiles],
    provider: &CryptoProvider,
) -> Result<Vec<Certified>, TlsFileError> {
    let Some(first) = files.first() else {
        return Err(TlsFileError::new(
            Path::new("TLS"),
            "no certificate is configured",
        ));
    };
    if files.len() > TLS_CERTIFICATES_MAX {
        let problem = format!("is one of more than {TLS_CERTIFICATES_MAX} certificates");
        return Err(TlsFileError::new(&first.cert, problem));
    }
    files
        .iter()
        .map(|files| certificates::load(files, provider))
        .collect()
}

/// Whom clients' certificates must come from.
fn client_verifier(
    options: &TlsOptions,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsFileError> {
    let Some(file) = &options.client_ca else {
        return Ok(WebPkiClientVerifier::no_client_auth());
    };
    let roots = Arc::new(tls_files::roots_of(file)?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
    let builder = match options.client_required {
        true => builder,
        false => builder.allow_unauthenticated(),
    };
    builder
        .build()
        .map_err(|_| TlsFileError::new(file, "holds no CA that can be used"))
}

/// The secret of tickets.
fn ticket_secret(file: Option<&Path>) -> Result<Zeroizing<Vec<u8>>, TlsFileError> {
    /// Of this process, so that tickets outlive a reread of the files.
    static RANDOM: OnceLock<[u8; SECRET_BYTES_MIN]> = OnceLock::new();
    let Some(file) = file else {
        let mut random = [0; SECRET_BYTES_MIN];
        getrandom::fill(&mut random).map_err(|error| {
            TlsFileError::new(Path::new("TLS"), format!("no random numbers: {error}"))
        })?;
        let secret = RANDOM.get_or_init(|| random);
        return Ok(Zeroizing::new(secret.to_vec()));
    };
    let secret = Zeroizing::new(tls_files::content(file)?);
    if secret.len() < SECRET_BYTES_MIN {
        let problem = format!(
            "is shorter than {SECRET_BYTES_MIN} bytes: `openssl rand -out FILE 48` makes one"
        );
        return Err(TlsFileError::new(file, problem));
    }
    Ok(secret)
}

/// Whether all users may read a file. One that vanished meanwhile is none.
fn is_exposed(file: &Path) -> bool {
    const READ_BY_OTHERS: u32 = 0o004;
    std::fs::metadata(file)
        .is_ok_and(|metadata| metadata.permissions().mode() & READ_BY_OTHERS != 0)
}
