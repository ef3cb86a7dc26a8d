//! The keys about clients with TLS, and what an operator is told of their files.
//!
//! Invariant: a [`TlsClientsConfig`] has at least one certificate, each with its key.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::macros::format_description;

use super::error::ConfigError;
use super::exit::Note;
use super::options::Options;
use super::values::{FileName, Setting};
use crate::amqp::TlsFileError;
use crate::tls::{CertificateFacts, CertificateFiles, ServerTls, TlsOptions};
use crate::tls_files;

/// How clients with TLS are served (`use_ssl`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsClientsConfig {
    /// `ssl_port`: 5556; 0 takes a free one.
    pub port: u16,
    /// `ssl_cert`, `ssl_key`, `ssl_ca_cert`, `ssl_client_required` and `tls_ticket_key_file`. What the files hold can change
    /// while running, and which files they are.
    pub options: TlsOptions,
}

/// The keys, each checked by itself.
pub(super) struct TlsClientKeys {
    pub(super) port: Option<u16>,
    pub(super) use_ssl: bool,
    pub(super) ssl_port: u16,
    pub(super) cert: Vec<Setting<FileName>>,
    pub(super) key: Vec<Setting<FileName>>,
    pub(super) ca_cert: Option<Setting<FileName>>,
    pub(super) client_required: bool,
    pub(super) ticket_key_file: Option<Setting<FileName>>,
}

impl TlsClientKeys {
    /// Checks them together; `None`: clients are not served with TLS, and the other keys say nothing. `place` names a key as
    /// the operator wrote it.
    pub(super) fn read(
        self,
        place: &dyn Fn(&str) -> String,
    ) -> Result<Option<TlsClientsConfig>, ConfigError> {
        let wrong = |key: &str, problem: String| {
            Err(ConfigError::Value {
                place: place(key),
                problem,
            })
        };
        if !self.use_ssl {
            return match self.port {
                Some(_) => Ok(None),
                None => wrong(
                    "port",
                    "no port would be open to clients: expected use_ssl beside it".to_owned(),
                ),
            };
        }
        let beside = |other: &str| format!("expected {other} beside it");
        match (self.cert.len(), self.key.len()) {
            (0, 0) => return wrong("use_ssl", beside("ssl_cert and ssl_key")),
            (_, 0) => return wrong("ssl_cert", beside("ssl_key")),
            (0, _) => return wrong("ssl_key", beside("ssl_cert")),
            (certs, keys) if certs != keys => {
                let problem =
                    format!("expected {certs} files, one for each of ssl_cert, found {keys}");
                return wrong("ssl_key", problem);
            }
            _ => {}
        }
        if self.port == Some(self.ssl_port) && self.ssl_port != 0 {
            let problem = "expected another port than port, which is for clients without TLS";
            return wrong("ssl_port", problem.to_owned());
        }
        if self.client_required && self.ca_cert.is_none() {
            return wrong("ssl_client_required", beside("ssl_ca_cert"));
        }
        let files = |(cert, key): (Setting<FileName>, Setting<FileName>)| CertificateFiles {
            cert: cert.0.0,
            key: key.0.0,
        };
        let file = |file: Setting<FileName>| -> PathBuf { file.0.0 };
        Ok(Some(TlsClientsConfig {
            port: self.ssl_port,
            options: TlsOptions {
                certificates: self.cert.into_iter().zip(self.key).map(files).collect(),
                client_ca: self.ca_cert.map(file),
                client_required: self.client_required,
                ticket_key_file: self.ticket_key_file.map(file),
            },
        }))
    }
}

/// Reads the files of TLS with clients. Blocks for as long as the disk does.
///
/// # Errors
/// A file cannot be read or holds something else than it should.
pub fn load_tls(options: &TlsOptions) -> Result<ServerTls, ConfigError> {
    ServerTls::load(options, unix_now())
        .map_err(|TlsFileError { file, problem }| ConfigError::File { file, problem })
}

/// Certificates that are told one by one, of more only the number; and files that cannot be read, of more nothing.
const TOLD_MAX: usize = 20;

/// Names of one certificate that a note repeats; of more only the number is told.
const NAMED_MAX: usize = 8;

/// The keys that say nothing without `use_ssl`.
const OF_USE_SSL: [&str; 6] = [
    "ssl_port",
    "ssl_cert",
    "ssl_key",
    "ssl_ca_cert",
    "ssl_client_required",
    "tls_ticket_key_file",
];

impl Note {
    /// What an operator is to be told who has given keys of TLS and no `use_ssl`: that they say nothing, and which of their
    /// files could not be read. Nothing when `use_ssl` was given: it is on, or off on purpose, as in the platform's
    /// document beside its usual keys. Blocks for as long as the disk does.
    pub(super) fn of_idle_tls_keys(
        options: &Options,
        is_given: &dyn Fn(&str) -> bool,
    ) -> Vec<Self> {
        let given: Vec<&str> = OF_USE_SSL.into_iter().filter(|key| is_given(key)).collect();
        if given.is_empty() || is_given("use_ssl") {
            return Vec::new();
        }
        let keys = given.join(", ");
        let text = format!("{keys}: no effect without use_ssl; clients are served without TLS");
        let files = [&options.ssl_cert, &options.ssl_key].into_iter().flatten();
        let files = files
            .chain(&options.ssl_ca_cert)
            .chain(&options.tls_ticket_key_file);
        let unreadable = files.filter_map(|file| tls_files::open(&file.0.0).err());
        let unreadable = unreadable.take(TOLD_MAX).map(|error| error.to_string());
        std::iter::once(text)
            .chain(unreadable)
            .map(Self::warning)
            .collect()
    }

    /// What an operator is to be told of the files of `tls`: of the first certificates their names and their ends, and what
    /// must be looked after.
    #[must_use]
    pub fn of_tls(tls: &ServerTls) -> Vec<Self> {
        let facts = tls.certificates();
        let more = facts.len().checked_sub(TOLD_MAX).filter(|more| *more > 0);
        let more = more.map(|more| Self::info(format!("{more} more certificates")));
        let first = facts.iter().take(TOLD_MAX);
        let told = first.map(|facts| Self::info(told(facts))).chain(more);
        told.chain(tls.warnings(unix_now()).into_iter().map(Self::warning))
            .collect()
    }

    /// A warning if clients must show certificates on one port and nothing on the other.
    #[must_use]
    pub(super) fn of_open_port(port: Option<u16>, tls: Option<&TlsClientsConfig>) -> Option<Self> {
        let port = port.filter(|_| tls.is_some_and(|tls| tls.options.client_required))?;
        let text = format!(
            "ssl_client_required: port {port} is open to clients without certificates; close it with port: null (--port none)"
        );
        Some(Self::warning(text))
    }
}

fn told(facts: &CertificateFacts) -> String {
    let named: Vec<&str> = facts
        .names
        .iter()
        .take(NAMED_MAX)
        .map(String::as_str)
        .collect();
    let more = match facts.names.len().checked_sub(NAMED_MAX) {
        Some(more @ 1..) => format!(" and {more} more"),
        _ => String::new(),
    };
    let names = match named.is_empty() {
        true => "no name".to_owned(),
        false => named.join(", "),
    };
    let file = facts.file.display();
    format!(
        "{file}: a certificate for {names}{more}, good until {}",
        date(facts.not_after)
    )
}

/// The day, in UTC.
fn date(unix: u64) -> String {
    i64::try_from(unix)
        .ok()
        .and_then(|unix| OffsetDateTime::from_unix_timestamp(unix).ok())
        .and_then(|time| {
            time.format(format_description!("[year]-[month]-[day]"))
                .ok()
        })
        .unwrap_or_else(|| "the end of time".to_owned())
}

/// Now, in Unix seconds.
fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_told_with_as_many_names_as_fit_and_its_last_day() {
        let facts = |names: usize, not_after| CertificateFacts {
            file: "a.pem".into(),
            names: (0..names).map(|name| format!("n{name}")).collect(),
            not_before: 0,
            not_after,
        };
        for (names, not_after, expected) in [
            (
                0,
                0,
                "a.pem: a certificate for no name, good until 1970-01-01",
            ),
            (
                2,
                1_798_761_599,
                "a.pem: a certificate for n0, n1, good until 2026-12-31",
            ),
            (
                10,
                u64::MAX,
                "a.pem: a certificate for n0, n1, n2, n3, n4, n5, n6, n7 and 2 more, good until the end of time",
            ),
        ] {
            assert_eq!(told(&facts(names, not_after)), expected);
        }
    }
}
