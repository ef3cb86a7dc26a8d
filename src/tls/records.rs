//! The records of one connection after its handshake (RFC 8446, 5; RFC 5246, 6.2): opened in place, sealed into a buffer
//! of the caller's.
//!
//! Invariants: after an error of [`Records::open`] the connection ends, so nothing is opened any more; a sequence number
//! seals one record at most; every record that is opened moves its sender's number on. No buffer, no socket, no clock.

use std::ops::Range;

use super::alert::Alert;
use super::keys::{APPLICATION_DATA, Cipher, Exhausted, HEADER_BYTES, Keys, Protection, Version};
use crate::limits::{TLS_EMPTY_RECORDS_MAX, TLS_KEY_UPDATES_MAX};

/// Longest plaintext of a record (RFC 8446, 5.1).
const PLAIN_BYTES_MAX: usize = 1 << 14;
/// What encryption may add to it (RFC 8446, 5.2).
const EXPANSION_BYTES_MAX: usize = 256;
/// Longest record, its header included.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + PLAIN_BYTES_MAX + EXPANSION_BYTES_MAX;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

const KEY_UPDATE: u8 = 24;
/// A KeyUpdate that asks for no other (RFC 8446, 4.6.3).
const KEY_UPDATE_MESSAGE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];

/// Why the records of a connection end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A record of a type that there is not, or of another version.
    #[error("not a record of TLS")]
    NotTls,
    /// A record longer than [`RECORD_BYTES_MAX`], or with more in it than may be.
    #[error("a record that is too long")]
    TooLong,
    /// A record without content that must have some.
    #[error("a record without content")]
    NoContent,
    /// A record that was not sealed with the keys of this connection, or not as its next one.
    #[error("a record that does not open")]
    Forged,
    /// A record or message that has no place after the handshake: renegotiation, for example.
    #[error("a record or message out of place")]
    OutOfPlace,
    /// A message with a value that there is not.
    #[error("a malformed message")]
    Malformed,
    /// More than `TLS_KEY_UPDATES_MAX` KeyUpdates, or more than `TLS_EMPTY_RECORDS_MAX` records in a row that bring nothing.
    #[error("too many records without data")]
    Idling,
    /// The peer ends the connection with this alert.
    #[error("the peer's alert {}", .0.word())]
    Alerted(Alert),
}

impl RecordError {
    /// What the peer is told.
    #[must_use]
    pub fn alert(&self) -> Alert {
        match self {
            Self::NotTls | Self::OutOfPlace | Self::Idling => Alert::UNEXPECTED_MESSAGE,
            Self::TooLong => Alert::RECORD_OVERFLOW,
            Self::NoContent => Alert::DECODE_ERROR,
            Self::Forged => Alert::BAD_RECORD_MAC,
            Self::Malformed => Alert::ILLEGAL_PARAMETER,
            Self::Alerted(_) => Alert::CLOSE_NOTIFY,
        }
    }

    /// The error in one word, for counters and logs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::TooLong => "too_long",
            Self::NoContent => "no_content",
            Self::Forged => "forged",
            Self::OutOfPlace => "out_of_place",
            Self::Malformed => "malformed",
            Self::Idling => "idling",
            Self::Alerted(_) => "alerted",
        }
    }
}

/// What was in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Data: where in the record.
    Data(Range<usize>),
    /// Nothing for the session: a KeyUpdate, a warning, no data.
    Nothing,
    /// The peer sends no more (close_notify).
    End,
}

/// Both directions of a connection after its handshake.
///
/// Invariant: no key seals more records than its cipher allows.
#[derive(Debug)]
pub struct Records {
    receive: Keys,
    send: Keys,
    version: Version,
    cipher: Cipher,
    /// Whether the peer wants new keys of us, which go before the next data (RFC 8446, 4.6.3).
    owes_update: bool,
    /// KeyUpdates that the peer has sent.
    updates: u8,
    /// Records that brought nothing, in a row.
    empty: u8,
}

const _: () = assert!(size_of::<Records>() <= 216);

impl Records {
    /// The records of a connection whose handshake is done.
    #[must_use]
    pub fn new(version: Version, cipher: Cipher, receive: Keys, send: Keys) -> Self {
        Self {
            receive,
            send,
            version,
            cipher,
            owes_update: false,
            updates: 0,
            empty: 0,
        }
    }

    /// The version that was negotiated.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Bytes of the first record of `input`, its header included; `None`: its header is not whole.
    ///
    /// # Errors
    /// The header is not one of TLS.
    pub fn record_len(input: &[u8]) -> Result<Option<usize>, RecordError> {
        // What is there of a header is judged, so that nobody waits for the rest of what is no TLS.
        match *input {
            [kind, ..] if !(CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&kind) => {
                Err(RecordError::NotTls)
            }
            [_, major, ..] if major != 3 => Err(RecordError::NotTls),
            [kind, _, _, high, low, ..] => {
                let body = usize::from(u16::from_be_bytes([high, low]));
                match body {
                    0 if kind != APPLICATION_DATA => Err(RecordError::NoContent),
                    _ if body > RECORD_BYTES_MAX - HEADER_BYTES => Err(RecordError::TooLong),
                    _ => Ok(Some(HEADER_BYTES + body)),
                }
            }
            _ => Ok(None),
        }
    }

    /// Opens one whole record in place, which [`Records::record_len`] has measured.
    ///
    /// # Errors
    /// The connection is to be ended.
    pub fn open(&mut self, record: &mut [u8]) -> Result<Opened, RecordError> {
        if Self::record_len(record)? != Some(record.len()) {
            return Err(RecordError::Malformed);
        }
        let outer = record.first().copied().unwrap_or_default();
        if self.version == Version::Tls13 && outer != APPLICATION_DATA {
            return Err(RecordError::OutOfPlace);
        }
        let inner = self
            .receive
            .open(self.protection(), record)
            .map_err(|_| RecordError::Forged)?;
        let (kind, content) = match self.version {
            Version::Tls12 => (outer, inner),
            Version::Tls13 => inner_plaintext(record, inner)?,
        };
        if content.len() > PLAIN_BYTES_MAX {
            return Err(RecordError::TooLong);
        }
        let opened = match (kind, record.get(content.clone())) {
            (APPLICATION_DATA, Some([])) => Opened::Nothing,
            (APPLICATION_DATA, Some(_)) => Opened::Data(content),
            (ALERT, Some(alert)) => self.alerted(alert)?,
            (HANDSHAKE, Some(message)) => self.updated(message)?,
            _ => return Err(RecordError::OutOfPlace),
        };
        match opened {
            Opened::Nothing if self.empty >= TLS_EMPTY_RECORDS_MAX => Err(RecordError::Idling),
            Opened::Nothing => {
                self.empty += 1;
                Ok(opened)
            }
            Opened::Data(_) | Opened::End => {
                self.empty = 0;
                Ok(opened)
            }
        }
    }

    /// RFC 8446, 6; RFC 5246, 7.2.
    fn alerted(&self, alert: &[u8]) -> Result<Opened, RecordError> {
        const WARNING: u8 = 1;
        let &[level, description] = alert else {
            return Err(RecordError::Malformed);
        };
        match (self.version, Alert(description)) {
            (_, Alert::CLOSE_NOTIFY) => Ok(Opened::End),
            (_, Alert::USER_CANCELED) => Ok(Opened::Nothing),
            (Version::Tls12, _) if level == WARNING => Ok(Opened::Nothing),
            (_, alert) => Err(RecordError::Alerted(alert)),
        }
    }

    /// The one message that a client may send after its handshake, whole and the last of its record (RFC 8446, 4.6.3 and
    /// 5.1). One that is cut in two is refused, which the RFC would allow and nobody does.
    fn updated(&mut self, message: &[u8]) -> Result<Opened, RecordError> {
        if self.version == Version::Tls12 {
            return Err(RecordError::OutOfPlace);
        }
        let is_asked_back = match *message {
            [KEY_UPDATE, 0, 0, 1, 0] => false,
            [KEY_UPDATE, 0, 0, 1, 1] => true,
            [KEY_UPDATE, 0, 0, 1, _] => return Err(RecordError::Malformed),
            _ => return Err(RecordError::OutOfPlace),
        };
        if self.updates >= TLS_KEY_UPDATES_MAX {
            return Err(RecordError::Idling);
        }
        self.updates += 1;
        self.receive.step(self.cipher);
        self.owes_update |= is_asked_back;
        Ok(Opened::Nothing)
    }

    /// Appends records to `out` with `plain`, slices in a row, as few records as it fits in. A KeyUpdate that is owed, or
    /// due, goes first. Without any `plain` nothing else is appended.
    ///
    /// # Errors
    /// The keys of a TLS 1.2 connection are used up; nothing was appended.
    pub fn seal<'a>(
        &mut self,
        plain: impl Iterator<Item = &'a [u8]>,
        out: &mut Vec<u8>,
    ) -> Result<(), Exhausted> {
        let is_used_up = self.send.is_used_up(self.cipher);
        match self.version {
            Version::Tls12 if is_used_up => return Err(Exhausted),
            Version::Tls13 if is_used_up || self.owes_update => self.update(out),
            Version::Tls12 | Version::Tls13 => {}
        }
        let mut sealer = self.send.sealer(self.protection());
        let mut begun = None;
        let mut room = PLAIN_BYTES_MAX;
        for mut slice in plain {
            while !slice.is_empty() {
                let record = begun.get_or_insert_with(|| sealer.begin(out));
                let (now, later) = slice.split_at(slice.len().min(room));
                out.extend_from_slice(now);
                room -= now.len();
                slice = later;
                if room == 0 {
                    sealer.end(record, APPLICATION_DATA, out);
                    begun = None;
                    room = PLAIN_BYTES_MAX;
                }
            }
        }
        if let Some(record) = begun {
            sealer.end(&record, APPLICATION_DATA, out);
        }
        Ok(())
    }

    /// Whether the next [`Records::seal`] has something to say without any data.
    #[must_use]
    pub fn owes_update(&self) -> bool {
        self.owes_update
    }

    /// Appends a record with `alert` to `out`. Nothing is to be sealed after it.
    pub fn seal_alert(&mut self, alert: Alert, out: &mut Vec<u8>) {
        self.seal_one(ALERT, &alert.bytes(), out);
    }

    fn update(&mut self, out: &mut Vec<u8>) {
        self.seal_one(HANDSHAKE, &KEY_UPDATE_MESSAGE, out);
        self.send.step(self.cipher);
        self.owes_update = false;
    }

    fn seal_one(&mut self, kind: u8, content: &[u8], out: &mut Vec<u8>) {
        let mut sealer = self.send.sealer(self.protection());
        let begun = sealer.begin(out);
        out.extend_from_slice(content);
        sealer.end(&begun, kind, out);
    }

    fn protection(&self) -> Protection {
        Protection {
            version: self.version,
            cipher: self.cipher,
        }
    }
}

/// The type and the content of a TLSInnerPlaintext: the last byte that is not 0, and what stands before it (RFC 8446,
/// 5.4).
fn inner_plaintext(record: &[u8], inner: Range<usize>) -> Result<(u8, Range<usize>), RecordError> {
    // One byte more than the content is the type's.
    if inner.len() > PLAIN_BYTES_MAX + 1 {
        return Err(RecordError::TooLong);
    }
    let bytes = record.get(inner.clone()).unwrap_or_default();
    let last = bytes.iter().rposition(|byte| *byte != 0);
    match last.map(|last| (bytes.get(last), last)) {
        Some((Some(kind), last)) => Ok((*kind, inner.start..inner.start + last)),
        _ => Err(RecordError::OutOfPlace),
    }
}
