//! The records of a TLS connection after its handshake.
//!
//! Input: one byte that chooses version and cipher; if its highest bit is set, raw bytes for the wire; else a script of
//! what the peer seals. Its lines: a type, a length, so many bytes of content. Types from 0xE0 on: 80 times that many
//! bytes of data. Types from 0xF0 on: data, then the byte of the record that the first byte of the content names is
//! changed.
//!
//! Invariants, against a second, plain implementation: a header is judged alike however much more of the stream is there;
//! raw bytes never open; what was sealed comes out as what it is, and nothing after an error; what we seal in answer opens,
//! after the KeyUpdate that is owed.

use blackhole::tls::{Cipher, Keys, Opened, RECORD_BYTES_MAX, Records, Version};
use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk};

const HEADER_BYTES: usize = 5;
const PLAIN_BYTES_MAX: usize = 16_384;
const DATA: u8 = 23;
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;
const IDLE_RECORDS_MAX: usize = 32;
const UPDATES_MAX: usize = 255;

/// See the module's page.
pub fn check(data: &[u8]) -> String {
    let Some((&first, rest)) = data.split_first() else {
        return "nothing".to_owned();
    };
    let version = [Version::Tls12, Version::Tls13][usize::from(first & 1)];
    let ciphers = [
        Cipher::Aes128Gcm,
        Cipher::Aes256Gcm,
        Cipher::ChaCha20Poly1305,
    ];
    let cipher = ciphers[usize::from(first >> 1) % ciphers.len()];
    let peer = Peer {
        version,
        cipher,
        send: Direction::new(version, cipher, 1),
        receive: Direction::new(version, cipher, 2),
        idle: 0,
        updates: 0,
        is_owed: false,
    };
    let ours = Records::new(
        version,
        cipher,
        our_keys(version, cipher, 1),
        our_keys(version, cipher, 2),
    );
    if first & 0x80 == 0 {
        scripted(peer, ours, rest)
    } else {
        raw(ours, rest)
    }
}

fn raw(mut ours: Records, stream: &[u8]) -> String {
    match judged(stream) {
        Err(word) => word.to_owned(),
        Ok(Some(length)) if length <= stream.len() => {
            let opened = ours.open(&mut stream[..length].to_vec());
            opened.expect_err("nobody sealed it").word().to_owned()
        }
        Ok(_) => "in part".to_owned(),
    }
}

/// What a stream's first header is judged to be, which is the same for every part of the stream that tells.
fn judged(stream: &[u8]) -> Result<Option<usize>, &'static str> {
    let whole = Records::record_len(stream).map_err(|error| error.word());
    for length in 0..stream.len().min(HEADER_BYTES + 1) {
        match Records::record_len(&stream[..length]) {
            Ok(None) => assert!(length < HEADER_BYTES),
            part => assert_eq!(part.map_err(|error| error.word()), whole),
        }
    }
    if let Ok(Some(length)) = whole {
        assert!((HEADER_BYTES..=RECORD_BYTES_MAX).contains(&length));
    }
    whole
}

fn scripted(mut peer: Peer, mut ours: Records, script: &[u8]) -> String {
    let mut outcome = "nothing".to_owned();
    let mut rest = script;
    while let [kind, length, behind @ ..] = rest {
        let (content, behind) = behind.split_at(usize::from(*length).min(behind.len()));
        rest = behind;
        let large = vec![b'x'; usize::from(*length) * 80];
        let (kind, content, changed) = match kind {
            0xf0.. => (DATA, content, content.first()),
            0xe0.. => (DATA, &large[..], None),
            kind => (*kind, content, None),
        };
        let mut record = peer.seal(kind, content);
        let mut expected = peer.expected(kind, content);
        if let Some(at) = changed {
            let at = usize::from(*at) % record.len();
            record[at] ^= 0x04;
            // Header or not, it must not open; which error it is depends on the byte.
            expected = Expected::Error("");
        }
        match judged(&record) {
            Ok(Some(length)) if length == record.len() => {}
            // The header was changed; or it tells a type that there is not, or a length that there may not be.
            Ok(_) | Err(_) => {
                let is_shown = peer.version == Version::Tls12;
                let is_strange = is_shown && !(20..=DATA).contains(&kind);
                assert!(changed.is_some() || is_strange || content.len() > PLAIN_BYTES_MAX);
                return "not a record".to_owned();
            }
        }
        match (ours.open(&mut record), expected) {
            (Ok(Opened::Data(range)), Expected::Data(data)) => {
                assert_eq!(record[range], data);
                outcome = "data".to_owned();
            }
            (Ok(Opened::Nothing), Expected::Nothing) => outcome = "idle".to_owned(),
            (Ok(Opened::End), Expected::End) => return "end".to_owned(),
            (Err(error), Expected::Error(word)) => {
                assert!(
                    word.is_empty() || word == error.word(),
                    "{error} for {word}"
                );
                return error.word().to_owned();
            }
            (opened, expected) => panic!("{opened:?} for {expected:?}"),
        }
        peer.answered(&mut ours);
    }
    outcome
}

/// What a record must come to.
#[derive(Debug)]
enum Expected {
    Data(Vec<u8>),
    Nothing,
    End,
    Error(&'static str),
}

/// The other end.
struct Peer {
    version: Version,
    cipher: Cipher,
    send: Direction,
    receive: Direction,
    /// Records without data, in a row.
    idle: usize,
    updates: usize,
    /// Whether the other end owes new keys.
    is_owed: bool,
}

impl Peer {
    fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        self.send.seal(self.version, self.cipher, kind, content)
    }

    fn expected(&mut self, kind: u8, content: &[u8]) -> Expected {
        let mut inner = content.to_vec();
        let mut kind = kind;
        if self.version == Version::Tls13 {
            inner.push(kind);
            if inner.len() > PLAIN_BYTES_MAX + 1 {
                return Expected::Error("too_long");
            }
            loop {
                match inner.pop() {
                    None => return Expected::Error("out_of_place"),
                    Some(0) => {}
                    Some(last) => break kind = last,
                }
            }
        }
        if inner.len() > PLAIN_BYTES_MAX {
            return Expected::Error("too_long");
        }
        let is_new = self.version == Version::Tls13;
        let expected = match (kind, &inner[..]) {
            (DATA, []) => Expected::Nothing,
            (DATA, _) => Expected::Data(inner),
            (ALERT, [_, 0]) => Expected::End,
            (ALERT, [_, 90]) => Expected::Nothing,
            (ALERT, [1, _]) if !is_new => Expected::Nothing,
            (ALERT, [_, _]) => Expected::Error("alerted"),
            (ALERT, _) => Expected::Error("malformed"),
            (HANDSHAKE, [24, 0, 0, 1, asks @ (0 | 1)]) if is_new => {
                self.updates += 1;
                if self.updates > UPDATES_MAX {
                    return Expected::Error("idling");
                }
                self.send.step(self.cipher);
                self.is_owed |= *asks == 1;
                Expected::Nothing
            }
            (HANDSHAKE, [24, 0, 0, 1, _]) if is_new => Expected::Error("malformed"),
            _ => Expected::Error("out_of_place"),
        };
        match expected {
            Expected::Nothing if self.idle == IDLE_RECORDS_MAX => Expected::Error("idling"),
            Expected::Nothing => {
                self.idle += 1;
                expected
            }
            expected => {
                self.idle = 0;
                expected
            }
        }
    }

    /// Has something sealed, and opens it.
    fn answered(&mut self, ours: &mut Records) {
        let mut out = Vec::new();
        assert_eq!(ours.owes_update(), self.is_owed);
        let answer: [&[u8]; 3] = [b"an ", b"", b"answer"];
        ours.seal(answer.into_iter(), &mut out).expect("fresh keys");
        let mut expected = vec![(DATA, &b"an answer"[..])];
        if std::mem::take(&mut self.is_owed) {
            expected.insert(0, (HANDSHAKE, &[24, 0, 0, 1, 0]));
        }
        for (kind, content) in expected {
            let length = judged(&out).expect("ours").expect("whole");
            let rest = out.split_off(length);
            let opened = self.receive.open(self.version, self.cipher, &out);
            assert_eq!(opened, (kind, content.to_vec()));
            if kind == HANDSHAKE {
                self.receive.step(self.cipher);
            }
            out = rest;
        }
        assert!(out.is_empty());
    }
}

fn key_bytes(cipher: Cipher) -> usize {
    match cipher {
        Cipher::Aes128Gcm => 16,
        Cipher::Aes256Gcm | Cipher::ChaCha20Poly1305 => 32,
    }
}

fn secret_bytes(cipher: Cipher) -> usize {
    match cipher {
        Cipher::Aes256Gcm => 48,
        Cipher::Aes128Gcm | Cipher::ChaCha20Poly1305 => 32,
    }
}

fn our_keys(version: Version, cipher: Cipher, seed: u8) -> Keys {
    let keys = match version {
        Version::Tls12 => Keys::tls12(cipher, &vec![seed; key_bytes(cipher)], &[seed; 12], 0),
        Version::Tls13 => Keys::tls13(cipher, &vec![seed; secret_bytes(cipher)], 0),
    };
    keys.expect("lengths of the cipher")
}

/// One direction's keys.
struct Direction {
    secret: Vec<u8>,
    key: Vec<u8>,
    iv: Vec<u8>,
    sequence: u64,
}

impl Direction {
    fn new(version: Version, cipher: Cipher, seed: u8) -> Self {
        let mut direction = Self {
            secret: vec![seed; secret_bytes(cipher)],
            key: vec![seed; key_bytes(cipher)],
            iv: vec![seed; 12],
            sequence: 0,
        };
        if version == Version::Tls13 {
            direction.derive(cipher);
        }
        direction
    }

    fn derive(&mut self, cipher: Cipher) {
        self.key = expanded(cipher, &self.secret, "key", key_bytes(cipher));
        self.iv = expanded(cipher, &self.secret, "iv", 12);
        self.sequence = 0;
    }

    fn step(&mut self, cipher: Cipher) {
        self.secret = expanded(cipher, &self.secret, "traffic upd", secret_bytes(cipher));
        self.derive(cipher);
    }

    /// The expanded key and the nonce of the next record.
    fn next(&self, cipher: Cipher) -> (LessSafeKey, [u8; 12]) {
        let algorithm = match cipher {
            Cipher::Aes128Gcm => &aead::AES_128_GCM,
            Cipher::Aes256Gcm => &aead::AES_256_GCM,
            Cipher::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        };
        let key = UnboundKey::new(algorithm, &self.key).expect("the cipher's length");
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.sequence.to_be_bytes());
        for (byte, iv) in nonce.iter_mut().zip(&self.iv) {
            *byte ^= iv;
        }
        (LessSafeKey::new(key), nonce)
    }

    fn seal(&mut self, version: Version, cipher: Cipher, kind: u8, content: &[u8]) -> Vec<u8> {
        let (key, nonce) = self.next(cipher);
        let mut inner = content.to_vec();
        let (outer, explicit) = match (version, cipher) {
            (Version::Tls13, _) => {
                inner.push(kind);
                (DATA, &[][..])
            }
            (Version::Tls12, Cipher::ChaCha20Poly1305) => (kind, &[][..]),
            (Version::Tls12, _) => (kind, &nonce[4..]),
        };
        let body_bytes = explicit.len() + inner.len() + 16;
        let length = u16::try_from(body_bytes).expect("short").to_be_bytes();
        let header = [outer, 3, 3, length[0], length[1]];
        let aad = match version {
            Version::Tls13 => header.to_vec(),
            Version::Tls12 => self.aad(kind, content.len()),
        };
        let unique = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(unique, Aad::from(aad), &mut inner)
            .expect("short");
        self.sequence += 1;
        [&header[..], explicit, &inner[..]].concat()
    }

    fn open(&mut self, version: Version, cipher: Cipher, record: &[u8]) -> (u8, Vec<u8>) {
        let (key, nonce) = self.next(cipher);
        let (header, body) = record.split_at(HEADER_BYTES);
        let explicit = match (version, cipher) {
            (Version::Tls12, Cipher::Aes128Gcm | Cipher::Aes256Gcm) => 8,
            _ => 0,
        };
        let (explicit, body) = body.split_at(explicit);
        assert!(explicit.is_empty() || *explicit == nonce[4..]);
        let aad = match version {
            Version::Tls13 => header.to_vec(),
            Version::Tls12 => self.aad(header[0], body.len() - 16),
        };
        let mut plain = body.to_vec();
        let unique = Nonce::assume_unique_for_key(nonce);
        let opened = key.open_in_place(unique, Aad::from(aad), &mut plain);
        let mut content = opened.expect("they sealed it").to_vec();
        self.sequence += 1;
        match version {
            Version::Tls12 => (header[0], content),
            Version::Tls13 => {
                assert_eq!(header[..3], [DATA, 3, 3]);
                (content.pop().expect("a type"), content)
            }
        }
    }

    fn aad(&self, kind: u8, bytes: usize) -> Vec<u8> {
        let length = u16::try_from(bytes).expect("short").to_be_bytes();
        [&self.sequence.to_be_bytes()[..], &[kind, 3, 3], &length].concat()
    }
}

/// HKDF-Expand-Label without context.
fn expanded(cipher: Cipher, secret: &[u8], label: &str, bytes: usize) -> Vec<u8> {
    struct Bytes(usize);
    impl KeyType for Bytes {
        fn len(&self) -> usize {
            self.0
        }
    }
    let hash: hkdf::Algorithm = match cipher {
        Cipher::Aes256Gcm => HKDF_SHA384,
        Cipher::Aes128Gcm | Cipher::ChaCha20Poly1305 => HKDF_SHA256,
    };
    let label = format!("tls13 {label}");
    let mut info = vec![0, bytes as u8, label.len() as u8];
    info.extend(label.as_bytes());
    info.push(0);
    let mut out = vec![0; bytes];
    Prk::new_less_safe(hash, secret)
        .expand(&[&info], Bytes(bytes))
        .and_then(|expanded| expanded.fill(&mut out))
        .expect("short");
    out
}
