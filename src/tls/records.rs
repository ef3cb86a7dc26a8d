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
    updates: u16,
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CIPHERS: [Cipher; 3] = [
        Cipher::Aes128Gcm,
        Cipher::Aes256Gcm,
        Cipher::ChaCha20Poly1305,
    ];
    const VERSIONS: [Version; 2] = [Version::Tls12, Version::Tls13];

    fn keys(version: Version, cipher: Cipher, seed: u8) -> Keys {
        let keys = match (version, cipher) {
            (Version::Tls12, Cipher::Aes128Gcm) => Keys::tls12(cipher, &[seed; 16], &[seed; 12], 1),
            (Version::Tls12, _) => Keys::tls12(cipher, &[seed; 32], &[seed; 12], 1),
            (Version::Tls13, Cipher::Aes256Gcm) => Keys::tls13(cipher, &[seed; 48], 0),
            (Version::Tls13, _) => Keys::tls13(cipher, &[seed; 32], 0),
        };
        keys.expect("lengths of the cipher")
    }

    /// Both ends of a connection.
    fn ends(version: Version, cipher: Cipher) -> (Records, Records) {
        let key = |seed| keys(version, cipher, seed);
        (
            Records::new(version, cipher, key(1), key(2)),
            Records::new(version, cipher, key(2), key(1)),
        )
    }

    fn all() -> impl Iterator<Item = (Version, Cipher)> {
        VERSIONS
            .into_iter()
            .flat_map(|version| CIPHERS.map(|cipher| (version, cipher)))
    }

    fn one(records: &mut Records, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        records.seal_one(kind, content, &mut out);
        out
    }

    fn data(records: &mut Records, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        records
            .seal([plain].into_iter(), &mut out)
            .expect("fresh keys");
        out
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text
            .bytes()
            .filter(u8::is_ascii_hexdigit)
            .map(|digit| (digit as char).to_digit(16).expect("a digit") as u8)
            .collect();
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    }

    /// RFC 8448, 3: the last four records of the connection.
    #[test]
    fn the_rfcs_own_records_open_and_are_sealed_the_same() {
        let client = hex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5");
        let server = hex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643");
        let cipher = Cipher::Aes128Gcm;
        let keys = |secret, sequence| Keys::tls13(cipher, secret, sequence).expect("32 bytes");
        assert!(keys(&server, 0).is(
            cipher,
            &hex("9f02283b6c9c07efc26bb9f2ac92e356"),
            &hex("cf782b88dd83549aadf1e984")
        ));
        // The server's first record was a ticket.
        let mut records = Records::new(Version::Tls13, cipher, keys(&client, 0), keys(&server, 1));
        let plain: Vec<u8> = (0..50).collect();
        let mut from_client = hex(
            "17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f 2b 98 19
             a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb 21 69 49
             15 e4",
        );
        let opened = records.open(&mut from_client).expect("the RFC's");
        assert_eq!(opened, Opened::Data(5..55));
        assert_eq!(from_client[5..55], plain);
        let to_client = hex(
            "17 03 03 00 43 2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82 aa 1b 36 e3 0e fa
             f9 7d 90 e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c 00 47 c2 ab f3 32 54 0d d0 32 e1 67 c2
             95 5d",
        );
        assert_eq!(data(&mut records, &plain), to_client);
        let mut end =
            hex("17 03 03 00 13 c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3");
        assert_eq!(records.open(&mut end), Ok(Opened::End));
        let mut out = Vec::new();
        records.seal_alert(Alert::CLOSE_NOTIFY, &mut out);
        let expected =
            hex("17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9");
        assert_eq!(out, expected);
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_to_the_same_in_as_few_records_as_it_fits_in(
            slices in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9000), 0..8),
            which in 0_usize..6,
        ) {
            let (version, cipher) = all().nth(which).expect("one of six");
            let (mut server, mut client) = ends(version, cipher);
            let whole = slices.concat();
            let mut out = b"before".to_vec();
            server.seal(slices.iter().map(Vec::as_slice), &mut out).expect("fresh keys");
            prop_assert!(out.starts_with(b"before"));
            let (mut at, mut opened, mut records) = (6, Vec::new(), 0);
            while at < out.len() {
                let length = Records::record_len(&out[at..]).expect("ours").expect("whole");
                prop_assert!(length <= RECORD_BYTES_MAX);
                let record = &mut out[at..at + length];
                if let Opened::Data(range) = client.open(record).expect("ours") {
                    opened.extend_from_slice(&record[range]);
                }
                at += length;
                records += 1;
            }
            prop_assert_eq!(opened, whole.clone());
            prop_assert_eq!(records, whole.len().div_ceil(PLAIN_BYTES_MAX));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), which in 0_usize..6) {
            let (version, cipher) = all().nth(which).expect("one of six");
            let (mut server, _) = ends(version, cipher);
            let mut bytes = bytes;
            let _ = Records::record_len(&bytes);
            prop_assert!(server.open(&mut bytes).is_err());
        }
    }

    #[test]
    fn headers_are_judged_as_far_as_they_are_there() {
        for kind in 0..=255_u8 {
            let is_tls = (20..=23).contains(&kind);
            let judged = Records::record_len(&[kind]);
            assert_eq!(judged == Ok(None), is_tls, "{kind}");
            let whole = Records::record_len(&[kind, 3, 1, 0, 5, 9]);
            assert_eq!(whole == Ok(Some(10)), is_tls, "{kind}");
        }
        assert_eq!(Records::record_len(&[]), Ok(None));
        assert_eq!(Records::record_len(&[22, 3, 3, 0]), Ok(None));
        assert_eq!(Records::record_len(&[22, 2]), Err(RecordError::NotTls));
        for length in 0..=u16::MAX {
            let [high, low] = length.to_be_bytes();
            for kind in 20..=23 {
                let expected = match length {
                    0 if kind != 23 => Err(RecordError::NoContent),
                    0..=16640 => Ok(Some(5 + usize::from(length))),
                    _ => Err(RecordError::TooLong),
                };
                assert_eq!(Records::record_len(&[kind, 3, 3, high, low]), expected);
            }
        }
    }

    #[test]
    fn a_record_that_was_changed_cut_repeated_or_left_out_does_not_open() {
        for (version, cipher) in all() {
            let (mut server, _) = ends(version, cipher);
            let first = data(&mut server, b"first");
            let second = data(&mut server, b"second");
            for at in 0..first.len() * 8 {
                let (_, mut client) = ends(version, cipher);
                let mut record = first.clone();
                record[at / 8] ^= 1 << (at % 8);
                assert!(client.open(&mut record).is_err(), "bit {at}");
            }
            for length in 0..first.len() {
                let (_, mut client) = ends(version, cipher);
                let mut record = first[..length].to_vec();
                if length >= 5 {
                    record[4] = (length - 5) as u8;
                }
                assert!(client.open(&mut record).is_err(), "cut at {length}");
            }
            let (_, mut client) = ends(version, cipher);
            assert!(client.open(&mut first.clone()).is_ok());
            assert_eq!(client.open(&mut first.clone()), Err(RecordError::Forged));
            let (_, mut client) = ends(version, cipher);
            assert_eq!(client.open(&mut second.clone()), Err(RecordError::Forged));
        }
    }

    #[test]
    fn messages_after_the_handshake_are_judged() {
        type Row = (Version, u8, &'static [u8], Result<Opened, RecordError>);
        let rows: [Row; 20] = {
            use RecordError as E;
            use Version::{Tls12, Tls13};
            let nothing = Ok(Opened::Nothing);
            [
                // Renegotiation: a ClientHello, a HelloRequest.
                (Tls12, HANDSHAKE, &[1, 0, 0, 2, 3, 3], Err(E::OutOfPlace)),
                (Tls12, HANDSHAKE, &[0, 0, 0, 0], Err(E::OutOfPlace)),
                (Tls13, HANDSHAKE, &[1, 0, 0, 2, 3, 3], Err(E::OutOfPlace)),
                (Tls13, HANDSHAKE, &[24, 0, 0, 1, 0], nothing.clone()),
                (Tls13, HANDSHAKE, &[24, 0, 0, 1, 1], nothing.clone()),
                (Tls13, HANDSHAKE, &[24, 0, 0, 1, 2], Err(E::Malformed)),
                (Tls13, HANDSHAKE, &[24, 0, 0, 1], Err(E::OutOfPlace)),
                (
                    Tls13,
                    HANDSHAKE,
                    &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0],
                    Err(E::OutOfPlace),
                ),
                (Tls13, HANDSHAKE, &[], Err(E::OutOfPlace)),
                (Tls12, HANDSHAKE, &[24, 0, 0, 1, 0], Err(E::OutOfPlace)),
                (Tls12, CHANGE_CIPHER_SPEC, &[1], Err(E::OutOfPlace)),
                (Tls13, CHANGE_CIPHER_SPEC, &[1], Err(E::OutOfPlace)),
                (Tls13, ALERT, &[1, 0], Ok(Opened::End)),
                (Tls13, ALERT, &[2, 0], Ok(Opened::End)),
                (Tls13, ALERT, &[1, 90], nothing.clone()),
                (Tls13, ALERT, &[1, 40], Err(E::Alerted(Alert(40)))),
                (Tls12, ALERT, &[1, 100], nothing.clone()),
                (Tls12, ALERT, &[2, 40], Err(E::Alerted(Alert(40)))),
                (Tls13, ALERT, &[2], Err(E::Malformed)),
                (Tls13, 99, b"what?", Err(E::OutOfPlace)),
            ]
        };
        for (version, kind, content, expected) in rows {
            let (mut server, mut client) = ends(version, Cipher::Aes128Gcm);
            let mut record = one(&mut client, kind, content);
            assert_eq!(
                server.open(&mut record),
                expected,
                "{version:?} {kind} {content:?}"
            );
        }
        // With TLS 1.3 only data has a place on the outside.
        let (mut server, mut client) = ends(Version::Tls13, Cipher::Aes128Gcm);
        let mut record = one(&mut client, APPLICATION_DATA, b"x");
        record[0] = HANDSHAKE;
        assert_eq!(server.open(&mut record), Err(RecordError::OutOfPlace));
        assert_eq!(
            server.open(&mut [20, 3, 3, 0, 1, 1]),
            Err(RecordError::OutOfPlace)
        );
    }

    #[test]
    fn padding_is_taken_off_and_too_much_content_is_refused() {
        for (length, padding, expected) in [
            (5, 0, Ok(Opened::Data(5..10))),
            (5, 100, Ok(Opened::Data(5..10))),
            (PLAIN_BYTES_MAX, 0, Ok(Opened::Data(5..5 + PLAIN_BYTES_MAX))),
            (PLAIN_BYTES_MAX + 1, 0, Err(RecordError::TooLong)),
            (PLAIN_BYTES_MAX, 1, Err(RecordError::TooLong)),
        ] {
            let (mut server, mut client) = ends(Version::Tls13, Cipher::Aes128Gcm);
            let mut content = vec![7; length];
            let mut kind = APPLICATION_DATA;
            if padding > 0 {
                content.push(kind);
                content.resize(length + padding, 0);
                kind = 0;
            }
            let mut record = one(&mut client, kind, &content);
            assert_eq!(server.open(&mut record), expected, "{length} {padding}");
        }
        let (mut server, mut client) = ends(Version::Tls13, Cipher::Aes128Gcm);
        let mut zeros = one(&mut client, 0, &[0; 40]);
        assert_eq!(server.open(&mut zeros), Err(RecordError::OutOfPlace));
        let (mut server, mut client) = ends(Version::Tls12, Cipher::Aes128Gcm);
        let mut long = one(&mut client, APPLICATION_DATA, &[7; PLAIN_BYTES_MAX + 1]);
        assert_eq!(server.open(&mut long), Err(RecordError::TooLong));
    }

    #[test]
    fn a_peer_that_sends_nothing_again_and_again_is_ended() {
        for (version, cipher) in all() {
            let (mut server, mut client) = ends(version, cipher);
            let mut idle =
                |server: &mut Records| server.open(&mut one(&mut client, APPLICATION_DATA, b""));
            for _ in 0..TLS_EMPTY_RECORDS_MAX {
                assert_eq!(idle(&mut server), Ok(Opened::Nothing));
            }
            assert_eq!(idle(&mut server), Err(RecordError::Idling));
            let (mut server, mut client) = ends(version, cipher);
            for at in 0..4 * u32::from(TLS_EMPTY_RECORDS_MAX) {
                let content: &[u8] = if at % 20 == 0 { b"x" } else { b"" };
                let mut record = one(&mut client, APPLICATION_DATA, content);
                assert!(server.open(&mut record).is_ok());
            }
        }
        let (mut server, mut client) = ends(Version::Tls13, Cipher::ChaCha20Poly1305);
        for _ in 0..TLS_KEY_UPDATES_MAX {
            let mut out = Vec::new();
            client.update(&mut out);
            assert_eq!(server.open(&mut out), Ok(Opened::Nothing));
            let mut record = data(&mut client, b"x");
            assert_eq!(server.open(&mut record), Ok(Opened::Data(5..6)));
        }
        let mut out = Vec::new();
        client.update(&mut out);
        assert_eq!(server.open(&mut out), Err(RecordError::Idling));
    }

    #[test]
    fn keys_are_renewed_before_they_are_used_up_and_with_tls_1_2_nothing_is_sealed_any_more() {
        for (version, cipher) in all() {
            let (mut server, mut client) = ends(version, cipher);
            let last = match cipher {
                Cipher::ChaCha20Poly1305 => u64::MAX >> 2,
                Cipher::Aes128Gcm | Cipher::Aes256Gcm => 1 << 24,
            } - 1;
            server.send.set_sequence(last);
            client.receive.set_sequence(last);
            let mut record = data(&mut server, b"last");
            assert!(matches!(client.open(&mut record), Ok(Opened::Data(_))));
            let mut out = b"before".to_vec();
            let sealed = server.seal([&b"next"[..]].into_iter(), &mut out);
            match version {
                Version::Tls12 => {
                    assert_eq!(sealed, Err(Exhausted));
                    assert_eq!(out, b"before");
                    let mut alert = Vec::new();
                    server.seal_alert(Alert::CLOSE_NOTIFY, &mut alert);
                    assert_eq!(client.open(&mut alert), Ok(Opened::End));
                }
                Version::Tls13 => {
                    assert_eq!(sealed, Ok(()));
                    let records = &mut out[6..];
                    let length = Records::record_len(records).expect("ours").expect("whole");
                    let (update, data) = records.split_at_mut(length);
                    assert_eq!(client.open(update), Ok(Opened::Nothing));
                    assert!(
                        !client.owes_update(),
                        "an update for an update would never end"
                    );
                    assert_eq!(client.open(data), Ok(Opened::Data(5..9)));
                }
            }
        }
    }

    #[test]
    fn several_updates_that_are_asked_for_are_answered_once_before_the_next_data() {
        let (mut server, mut client) = ends(Version::Tls13, Cipher::Aes256Gcm);
        for _ in 0..3 {
            let mut record = one(&mut client, HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 1]);
            client.send.step(Cipher::Aes256Gcm);
            assert_eq!(server.open(&mut record), Ok(Opened::Nothing));
        }
        assert!(server.owes_update());
        let mut out = Vec::new();
        assert_eq!(server.seal(std::iter::empty(), &mut out), Ok(()));
        assert_eq!(client.open(&mut out), Ok(Opened::Nothing));
        assert!(!server.owes_update());
        let mut record = data(&mut server, b"x");
        assert_eq!(client.open(&mut record), Ok(Opened::Data(5..6)));
    }

    #[test]
    fn no_key_is_shown() {
        for (version, cipher) in all() {
            let key = |seed| keys(version, cipher, seed);
            let records = Records::new(version, cipher, key(177), key(178));
            let shown = format!("{records:?}");
            assert!(!shown.contains("177") && !shown.contains("178"), "{shown}");
        }
        assert!(Keys::tls13(Cipher::Aes256Gcm, &[0; 32], 0).is_err());
        assert!(Keys::tls12(Cipher::Aes128Gcm, &[0; 32], &[0; 12], 0).is_err());
        assert!(Keys::tls12(Cipher::Aes128Gcm, &[0; 16], &[0; 4], 0).is_err());
    }

    #[test]
    fn every_error_has_a_word_of_its_own_and_an_alert() {
        let errors = [
            (RecordError::NotTls, 10),
            (RecordError::TooLong, 22),
            (RecordError::NoContent, 50),
            (RecordError::Forged, 20),
            (RecordError::OutOfPlace, 10),
            (RecordError::Malformed, 47),
            (RecordError::Idling, 10),
            (RecordError::Alerted(Alert(40)), 0),
        ];
        let mut words: Vec<_> = errors.iter().map(|(error, _)| error.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), errors.len());
        for (error, alert) in errors {
            assert_eq!(error.alert(), Alert(alert));
            let level = if alert == 0 { 1 } else { 2 };
            assert_eq!(error.alert().clear_record(), [21, 3, 3, 0, 2, level, alert]);
        }
    }
}
