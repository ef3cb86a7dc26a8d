//! What is wrong with TLS to a broker, in one line for an operator. What a broker says is in it in names only; the line
//! is cut to its length where it is logged.

use std::io;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, Error};

use super::files::TlsFileError;

/// Why there is no TLS, or none any more.
#[derive(Debug, thiserror::Error)]
pub(in crate::amqp) enum Fault {
    /// A file does not serve.
    #[error(transparent)]
    File(#[from] TlsFileError),
    /// The socket's own.
    #[error("{0}")]
    Socket(io::Error),
    #[error("the TLS handshake did not end within {} s", .0.as_secs())]
    Slow(Duration),
    #[error("the connection was closed within the TLS handshake")]
    Closed,
    #[error(
        "what answers on this port speaks AMQP without TLS: amqp:// in the URL, or another port"
    )]
    PlainAmqp,
    #[error("what answers on this port does not speak TLS")]
    NotTls,
    /// The broker's certificate, or its word about ours.
    #[error("{0}")]
    Refused(String),
}

impl Fault {
    /// The fault in the error of a stream, if one is.
    pub(in crate::amqp) fn within(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Puts `error` into words. `name`: the broker's in its URL. `shows`: the broker was shown a certificate, if it asked
    /// for one.
    pub(super) fn of(error: &Error, name: &ServerName<'_>, shows: bool) -> Self {
        let text = match error {
            Error::InvalidCertificate(error) => certificate(error, &name.to_str()),
            Error::AlertReceived(alert) => refusal(*alert, shows),
            Error::PeerIncompatible(why) => format!("the broker's TLS is not ours: {why:?}"),
            error => format!("TLS: {error}"),
        };
        Self::Refused(text)
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::new(io::ErrorKind::InvalidData, fault)
    }
}

/// What is wrong with the broker's certificate.
fn certificate(error: &CertificateError, name: &str) -> String {
    use CertificateError as E;
    match error {
        // A CA may have been made anew under its old name.
        E::UnknownIssuer | E::BadSignature => {
            "the broker's certificate comes from a CA that is not trusted; amqp_ca_cert names one's own".into()
        }
        E::NotValidForName => format!("the broker's certificate is not for {name:?}"),
        E::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            format!("the broker's certificate is not for {name:?}: it names nobody (no subjectAltName)")
        }
        E::NotValidForNameContext { presented, .. } => {
            let names = presented.join(", ");
            format!("the broker's certificate is not for {name:?} but for {names}")
        }
        E::Expired | E::ExpiredContext { .. } => "the broker's certificate has expired".into(),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "the broker's certificate is not valid yet, or the clock of this machine is behind".into()
        }
        E::Revoked => "the broker's certificate is revoked".into(),
        error => format!("the broker's certificate is refused: {error}"),
    }
}

/// What the broker says of us.
fn refusal(alert: AlertDescription, shows: bool) -> String {
    use AlertDescription as A;
    match alert {
        // Before TLS 1.3 there was no word of its own for it.
        A::CertificateRequired | A::HandshakeFailure if !shows => {
            format!(
                "the broker wants a client certificate (amqp_client_cert, amqp_client_key); it says {alert:?}"
            )
        }
        A::CertificateRequired
        | A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::UnknownCA
        | A::AccessDenied
            if shows =>
        {
            format!("the broker refuses our certificate (amqp_client_cert); it says {alert:?}")
        }
        _ => format!("the broker ended TLS; it says {alert:?}"),
    }
}
