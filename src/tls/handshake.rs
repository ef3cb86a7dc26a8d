//! A handshake, step by step: a peer's bytes in, bytes for the peer out, and at the end the keys. The only place that names
//! rustls's unbuffered connections, which its version 0.24 replaces.
//!
//! rustls is shown one more whole record at a time. So it never sees what stands behind the handshake, which stays sealed
//! for [`Records`].
//!
//! Invariant: of a handshake no more is held than `TLS_HANDSHAKE_BYTES_MAX`, of one message no more than
//! `TLS_MESSAGE_BYTES_MAX`.

use std::fmt;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ConnectionTrafficSecrets, Error, HandshakeKind, ProtocolVersion};

use super::alert::Alert;
use super::keys::{Cipher, Keys, Version};
use super::records::{RecordError, Records};
use super::secrets::{Secret, TrafficSecrets};
use super::server::ServerTls;
use crate::limits::{TLS_HANDSHAKE_BYTES_MAX, TLS_MESSAGE_BYTES_MAX};

/// What rustls holds of a handshake, its own struct included: 4.0 KB were measured between two steps, 6.3 KB within one.
const UNDER_WAY_BYTES: usize = 6 << 10;

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeFault {
    /// The peer speaks something else, or its messages are broken.
    Malformed,
    /// More than the bounds of a handshake, a message or a record.
    TooLong,
    /// No version, cipher, group or signature that both have.
    Incompatible,
    /// The peer offers application protocols (ALPN), and `http/1.1` is none of them.
    NoProtocol,
    /// The peer shows no certificate, and must.
    NoCertificate,
    /// The peer's certificate is not one of the CA's, or not valid now.
    BadCertificate,
    /// The peer's answer does not fit what it agreed to.
    Misbehaved,
    /// The peer ends the handshake, with this alert.
    Alerted(Alert),
    /// Our own trouble.
    Internal,
    /// Our own trouble: a panic.
    Panicked,
}

impl HandshakeFault {
    /// The fault in one word, as the counters have it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::Incompatible => "incompatible",
            Self::NoProtocol => "no_protocol",
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate => "bad_certificate",
            Self::Misbehaved => "misbehaved",
            Self::Alerted(_) => "alerted",
            Self::Internal => "internal",
            Self::Panicked => "panicked",
        }
    }

    fn of(error: &Error) -> Self {
        match error {
            Error::InvalidMessage(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. } => Self::Malformed,
            Error::PeerSentOversizedRecord => Self::TooLong,
            Error::PeerIncompatible(_) => Self::Incompatible,
            Error::NoApplicationProtocol => Self::NoProtocol,
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(_) => Self::BadCertificate,
            Error::PeerMisbehaved(_) | Error::DecryptError => Self::Misbehaved,
            Error::AlertReceived(alert) => Self::Alerted(Alert(u8::from(*alert))),
            _ => Self::Internal,
        }
    }
}

impl fmt::Display for HandshakeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alerted(alert) => write!(f, "alerted: {}", alert.word()),
            fault => f.write_str(fault.word()),
        }
    }
}

/// What a thread is to do: the next step of a connection's handshake.
pub struct Work {
    /// Names the connection; a thread hands it back as it is.
    pub word: usize,
    /// The handshake as the last step left it; `None`: a new one.
    pub handshake: Option<Handshake>,
    /// What the peer has sent since.
    pub input: Vec<u8>,
}

/// What a thread did.
pub struct Worked {
    /// As in the [`Work`].
    pub word: usize,
    /// Bytes for the peer, to be sent as they are; may be none.
    pub out: Vec<u8>,
    /// What came of it.
    pub stepped: Stepped,
}

/// What came of a step.
pub enum Stepped {
    /// It waits for more of the peer.
    GoesOn(Handshake),
    /// The handshake is done.
    Done(Box<Done>),
    /// The connection is to be closed once the bytes that came along are sent.
    Failed(HandshakeFault),
}

/// A handshake that is done.
pub struct Done {
    /// The keys.
    pub records: Records,
    /// What the peer has sent behind its handshake, still sealed; may be a part of a record.
    pub rest: Vec<u8>,
    /// Whether it took up an older session by a ticket.
    pub is_resumed: bool,
    /// The version that was negotiated.
    pub version: Version,
}

/// A handshake under way.
pub struct Handshake(Box<UnderWay>);

struct UnderWay {
    connection: UnbufferedServerConnection,
    secrets: TrafficSecrets,
    /// What the peer has sent and rustls has not used up.
    input: Vec<u8>,
    /// How much of it are records that rustls has seen.
    seen: usize,
    /// Bytes of all records that rustls has seen.
    taken: usize,
    /// Whether the peer was sent anything.
    has_spoken: bool,
}

/// What rustls wants next.
enum Wants {
    /// To be called again.
    Call,
    /// Another record.
    Record,
    /// Nothing: it is done.
    Nothing,
}

impl Handshake {
    pub(super) fn new(tls: &ServerTls) -> Result<Self, HandshakeFault> {
        let connection = UnbufferedServerConnection::new(tls.config())
            .map_err(|error| HandshakeFault::of(&error))?;
        Ok(Self(Box::new(UnderWay {
            connection,
            secrets: TrafficSecrets::default(),
            input: Vec::new(),
            seen: 0,
            taken: 0,
            has_spoken: false,
        })))
    }

    /// Bytes that it holds, roughly.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        UNDER_WAY_BYTES + self.0.input.capacity()
    }

    /// Takes a step: some 10 to 500 us of CPU. Appends to `out` what the peer is to get.
    pub(super) fn step(mut self, input: Vec<u8>, out: &mut Vec<u8>) -> Stepped {
        let under_way = &mut *self.0;
        if under_way.input.is_empty() {
            under_way.input = input;
        } else {
            under_way.input.extend_from_slice(&input);
        }
        match under_way.advance(out) {
            Ok(true) => match self.0.finish() {
                Ok(done) => Stepped::Done(Box::new(done)),
                Err(fault) => Stepped::Failed(fault),
            },
            Ok(false) => Stepped::GoesOn(self),
            Err(fault) => Stepped::Failed(fault),
        }
    }
}

impl UnderWay {
    /// Shows rustls what there is. Returns whether the handshake is done.
    fn advance(&mut self, out: &mut Vec<u8>) -> Result<bool, HandshakeFault> {
        // What rustls has used up, at the front of the input.
        let mut used = 0;
        let is_done = loop {
            let shown = self.input.get_mut(used..used + self.seen);
            let UnbufferedStatus { discard, state } = self
                .connection
                .process_tls_records(shown.unwrap_or_default());
            let wants = state
                .map_err(|error| HandshakeFault::of(&error))
                .and_then(|state| handle(state, out));
            self.secrets.take_told();
            used += discard;
            self.seen = self.seen.saturating_sub(discard);
            match wants {
                Err(fault) => {
                    self.last_words(out);
                    return Err(fault);
                }
                Ok(Wants::Call) => {}
                Ok(Wants::Nothing) => break true,
                Ok(Wants::Record) => match self.see_record(used) {
                    Ok(true) => {}
                    Ok(false) => break false,
                    Err(error) => {
                        // What is no TLS at all would not understand an alert; and later ones would have to be sealed.
                        if !self.has_spoken && out.is_empty() && error != RecordError::NotTls {
                            out.extend(error.alert().clear_record());
                        }
                        return Err(match error {
                            RecordError::TooLong => HandshakeFault::TooLong,
                            _ => HandshakeFault::Malformed,
                        });
                    }
                },
            }
        };
        self.has_spoken |= !out.is_empty();
        self.input.drain(..used);
        Ok(is_done)
    }

    /// Lets rustls see one more record, if it is whole.
    fn see_record(&mut self, used: usize) -> Result<bool, RecordError> {
        let next = self.input.get(used + self.seen..).unwrap_or_default();
        let bytes = match Records::record_len(next)? {
            Some(bytes) if bytes <= next.len() => bytes,
            _ => return Ok(false),
        };
        self.seen += bytes;
        self.taken += bytes;
        if self.seen > TLS_MESSAGE_BYTES_MAX || self.taken > TLS_HANDSHAKE_BYTES_MAX {
            return Err(RecordError::TooLong);
        }
        Ok(true)
    }

    /// What rustls has left to say to the peer after an error, an alert in the end. As long as there is something it looks at
    /// no record; beyond that it must not be called, since it would find the same fault again.
    fn last_words(&mut self, out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            let UnbufferedStatus { state, .. } = self.connection.process_tls_records(&mut []);
            let Ok(ConnectionState::EncodeTlsData(mut chunk)) = state else {
                return;
            };
            if encode(&mut chunk, out).is_err() {
                return;
            }
        }
    }

    fn finish(self) -> Result<Done, HandshakeFault> {
        let version = match self.connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => Version::Tls12,
            Some(ProtocolVersion::TLSv1_3) => Version::Tls13,
            _ => return Err(HandshakeFault::Internal),
        };
        let is_resumed = self.connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let (extracted, _) = self
            .connection
            .dangerous_into_kernel_connection()
            .map_err(|_| HandshakeFault::Internal)?;
        let (cipher, receive) = keys(version, &extracted.rx, self.secrets.client)?;
        let (_, send) = keys(version, &extracted.tx, self.secrets.server)?;
        Ok(Done {
            records: Records::new(version, cipher, receive, send),
            rest: self.input,
            is_resumed,
            version,
        })
    }
}

fn handle<D>(
    state: ConnectionState<'_, '_, D>,
    out: &mut Vec<u8>,
) -> Result<Wants, HandshakeFault> {
    match state {
        ConnectionState::EncodeTlsData(mut chunk) => encode(&mut chunk, out).map(|()| Wants::Call),
        ConnectionState::TransmitTlsData(transmit) => {
            transmit.done();
            Ok(Wants::Call)
        }
        ConnectionState::BlockedHandshake => Ok(Wants::Record),
        ConnectionState::WriteTraffic(_) => Ok(Wants::Nothing),
        ConnectionState::PeerClosed | ConnectionState::Closed => {
            Err(HandshakeFault::Alerted(Alert::CLOSE_NOTIFY))
        }
        // Data before the end of a handshake: no early data is allowed, and no later record is shown.
        _ => Err(HandshakeFault::Internal),
    }
}

/// Appends what rustls has to say, of the length that it asks for.
fn encode<D>(chunk: &mut EncodeTlsData<'_, D>, out: &mut Vec<u8>) -> Result<(), HandshakeFault> {
    let begin = out.len();
    let mut encoded = chunk.encode(&mut []);
    if let Err(EncodeError::InsufficientSize(needed)) = &encoded {
        out.resize(begin + needed.required_size, 0);
        encoded = chunk.encode(&mut out[begin..]);
    }
    let bytes = encoded.map_err(|_| HandshakeFault::Internal)?;
    out.truncate(begin + bytes);
    Ok(())
}

fn keys(
    version: Version,
    (sequence, extracted): &(u64, ConnectionTrafficSecrets),
    secret: Option<Secret>,
) -> Result<(Cipher, Keys), HandshakeFault> {
    let (cipher, key, iv) = match extracted {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            (Cipher::ChaCha20Poly1305, key, iv)
        }
        _ => return Err(HandshakeFault::Internal),
    };
    let keys = match (version, secret) {
        (Version::Tls12, _) => Keys::tls12(cipher, key.as_ref(), iv.as_ref(), *sequence),
        (Version::Tls13, Some(secret)) => Keys::tls13(cipher, &secret, *sequence),
        (Version::Tls13, None) => return Err(HandshakeFault::Internal),
    };
    match keys {
        Ok(keys) if keys.is(cipher, key.as_ref(), iv.as_ref()) => Ok((cipher, keys)),
        _ => Err(HandshakeFault::Internal),
    }
}
