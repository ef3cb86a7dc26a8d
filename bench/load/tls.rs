//! TLS of the clients: rustls without buffers of its own, because the engine has one of each kind for all sessions.
//!
//! Nothing that the server shows is checked, neither its certificate nor its signature, so that the clients hold a server
//! up as little as they can. With [`Tickets`] a session resumes with a ticket that any session has been given before.
//!
//! Invariant: of a connection nothing is kept here but rustls's own state and the beginning of a record whose end has
//! not arrived.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientConfig, ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
    UnbufferedClientConnection,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{
    CipherSuite, DigitallySignedStruct, Error, HandshakeKind, NamedGroup, SignatureScheme,
};

use shared::reader::Reader;

/// Room for a record of the handshake before rustls says how much it wants.
const RECORD_ROOM: usize = 1024;

/// What all clients have in common.
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    tickets: Arc<Tickets>,
}

impl Tls {
    /// For the server called `host`, or at that IP address; the clients keep `tickets_max` tickets together.
    ///
    /// # Errors
    /// `host` is no name.
    pub(crate) fn new(host: &str, tickets_max: usize) -> Result<Self, String> {
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let name = match address {
            Ok(ip) => ServerName::from(ip),
            Err(_) => ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?,
        };
        let tickets = Arc::new(Tickets::new(tickets_max));
        let mut provider = ring::default_provider();
        // AES-128 first, as browsers have it and rustls has not.
        provider
            .cipher_suites
            .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        let provider = Arc::new(provider);
        let verifier = Arc::new(Unchecked(provider.clone()));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::store(tickets.clone());
        Ok(Self {
            config: Arc::new(config),
            name,
            tickets,
        })
    }

    /// Whether connections that begin from now on use tickets.
    pub(crate) fn use_tickets(&self, is_on: bool) {
        self.tickets.is_on.store(is_on, Ordering::Relaxed);
    }

    /// A connection that has not begun: [`Client::receive`] of no bytes begins it.
    ///
    /// # Errors
    /// rustls refuses.
    pub(crate) fn client(&self) -> Result<Client, Error> {
        Ok(Client {
            connection: UnbufferedClientConnection::new(self.config.clone(), self.name.clone())?,
            records: Reader::default(),
        })
    }
}

/// TLS of one connection.
pub(crate) struct Client {
    connection: UnbufferedClientConnection,
    records: Reader,
}

/// Whether more can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    GoesOn,
    /// The server has said that it sends no more.
    Ended,
}

impl Client {
    /// Keeps what a read has cut off a record: what is read next goes behind it.
    pub(crate) fn records(&mut self) -> &mut Reader {
        &mut self.records
    }

    /// Takes `incoming`, which begins with what [`Client::records`] kept; puts plaintext into `plain` from `filled` on,
    /// which it moves, and appends to `outgoing` what is to be sent. `plain` has as much room as `incoming` is long.
    ///
    /// # Errors
    /// What the server sent is no TLS, or not such as was agreed on; or it has given up.
    pub(crate) fn receive(
        &mut self,
        incoming: &mut [u8],
        plain: &mut [u8],
        filled: &mut usize,
        outgoing: &mut Vec<u8>,
    ) -> Result<Course, Error> {
        let mut used = 0;
        let course = loop {
            let UnbufferedStatus { discard, state, .. } =
                self.connection.process_tls_records(&mut incoming[used..]);
            let mut more = 0;
            let course = match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        more += record.discard;
                        let end = *filled + record.payload.len();
                        plain[*filled..end].copy_from_slice(record.payload);
                        *filled = end;
                    }
                    None
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    append(outgoing, RECORD_ROOM, |room| match data.encode(room) {
                        Err(EncodeError::InsufficientSize(needed)) => Ok(Err(needed)),
                        Err(EncodeError::AlreadyEncoded) => Err(Error::HandshakeNotComplete),
                        Ok(length) => Ok(Ok(length)),
                    })?;
                    None
                }
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    None
                }
                ConnectionState::PeerClosed | ConnectionState::Closed => Some(Course::Ended),
                // Of what may come in later versions nothing is expected of a client.
                _ => Some(Course::GoesOn),
            };
            used += discard + more;
            if let Some(course) = course {
                break course;
            }
        };
        self.records.stash(&incoming[used..]);
        Ok(course)
    }

    /// Appends `plain` as records to `outgoing`; only when [`Client::is_secured`].
    ///
    /// # Errors
    /// The handshake is not over, or the connection is.
    pub(crate) fn seal(&mut self, plain: &[u8], outgoing: &mut Vec<u8>) -> Result<(), Error> {
        let UnbufferedStatus { state, .. } = self.connection.process_tls_records(&mut []);
        let ConnectionState::WriteTraffic(mut traffic) = state? else {
            return Err(Error::HandshakeNotComplete);
        };
        append(outgoing, plain.len() + RECORD_ROOM, |room| {
            match traffic.encrypt(plain, room) {
                Err(EncryptError::InsufficientSize(needed)) => Ok(Err(needed)),
                Err(EncryptError::EncryptExhausted) => Err(Error::EncryptError),
                Ok(length) => Ok(Ok(length)),
            }
        })
    }

    /// Whether the handshake is over.
    #[must_use]
    pub(crate) fn is_secured(&self) -> bool {
        !self.connection.is_handshaking()
    }

    /// Whether a ticket was taken.
    #[must_use]
    pub(crate) fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

/// Appends to `outgoing` what `encode` puts into the room it is given: `room` bytes, or as many as it then says it needs.
fn append(
    outgoing: &mut Vec<u8>,
    mut room: usize,
    mut encode: impl FnMut(&mut [u8]) -> Result<Result<usize, InsufficientSizeError>, Error>,
) -> Result<(), Error> {
    let start = outgoing.len();
    loop {
        outgoing.resize(start + room, 0);
        match encode(&mut outgoing[start..])? {
            Ok(length) => {
                outgoing.truncate(start + length);
                return Ok(());
            }
            Err(needed) => room = needed.required_size,
        }
    }
}

/// Tickets that servers gave to sessions of TLS 1.3, for whichever session connects next. Each is used once.
#[derive(Debug)]
struct Tickets {
    is_on: AtomicBool,
    /// The oldest first; that goes when there are too many.
    kept: Mutex<VecDeque<Tls13ClientSessionValue>>,
    max: usize,
}

impl Tickets {
    fn new(max: usize) -> Self {
        Self {
            is_on: AtomicBool::new(false),
            kept: Mutex::default(),
            max,
        }
    }

    fn with<T>(&self, what: impl FnOnce(&mut VecDeque<Tls13ClientSessionValue>) -> T) -> T {
        what(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.with(|kept| {
            if kept.len() >= self.max {
                kept.pop_front();
            }
            kept.push_back(ticket);
        });
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        // The newest: a server may forget the old ones.
        let is_on = self.is_on.load(Ordering::Relaxed);
        is_on.then(|| self.with(VecDeque::pop_back)).flatten()
    }
}

/// Takes whatever the server shows.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.0.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
