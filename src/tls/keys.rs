//! The keys of one direction of a connection: what they seal and open, and how one secret follows from another
//! (RFC 8446, 5.2, 5.3, 7.2, 7.3; RFC 5288 and RFC 7905 for TLS 1.2).
//!
//! Invariant: `ring`'s expanded key, some 550 bytes, lives for one call only; what is kept is the key as it was
//! negotiated. No `Debug` shows any of it, and it is overwritten when it is dropped.

use std::fmt;
use std::ops::Range;

use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use zeroize::Zeroize;

/// Longest key of a cipher.
const KEY_BYTES_MAX: usize = 32;
/// Longest traffic secret: that of SHA-384.
const SECRET_BYTES_MAX: usize = 48;
const IV_BYTES: usize = 12;
/// Bytes of a nonce that TLS 1.2 sends along with AES-GCM.
const EXPLICIT_BYTES: usize = 8;
pub(super) const TAG_BYTES: usize = 16;

/// Records that one key of AES-GCM seals: 2^24, as in rustls; the limit of RFC 8446, 5.5, is 2^24.5, which leaves room
/// for what a call seals that began below it.
const AES_GCM_RECORDS_MAX: u64 = 1 << 24;

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// RFC 5246, with extended master secret or not.
    Tls12,
    /// RFC 8446.
    Tls13,
}

impl Version {
    /// Its number, as an operator reads it.
    #[must_use]
    pub fn number(self) -> &'static str {
        match self {
            Self::Tls12 => "1.2",
            Self::Tls13 => "1.3",
        }
    }
}

/// The cipher of a connection; with TLS 1.3 also the hash of its key schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// AES-128-GCM, SHA-256.
    Aes128Gcm,
    /// AES-256-GCM, SHA-384.
    Aes256Gcm,
    /// ChaCha20-Poly1305, SHA-256.
    ChaCha20Poly1305,
}

impl Cipher {
    fn algorithm(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128Gcm => &aead::AES_128_GCM,
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }

    fn hash(self) -> hkdf::Algorithm {
        match self {
            Self::Aes128Gcm | Self::ChaCha20Poly1305 => hkdf::HKDF_SHA256,
            Self::Aes256Gcm => hkdf::HKDF_SHA384,
        }
    }

    /// Bytes of a traffic secret of TLS 1.3.
    fn secret_bytes(self) -> usize {
        match self {
            Self::Aes128Gcm | Self::ChaCha20Poly1305 => 32,
            Self::Aes256Gcm => SECRET_BYTES_MAX,
        }
    }

    fn records_max(self) -> u64 {
        match self {
            Self::Aes128Gcm | Self::Aes256Gcm => AES_GCM_RECORDS_MAX,
            // Not to be reached: 2^62 records.
            Self::ChaCha20Poly1305 => u64::MAX >> 2,
        }
    }
}

/// Keys do not have the length of their cipher's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("keys of a length that is not their cipher's")]
pub struct KeysError;

/// The keys of a TLS 1.2 connection have sealed as much as they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the keys of the connection are used up")]
pub struct Exhausted;

/// A record's tag did not fit.
pub(super) struct Forged;

/// How a record is protected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Protection {
    pub(super) version: Version,
    pub(super) cipher: Cipher,
}

impl Protection {
    /// Bytes between a record's header and its ciphertext.
    pub(super) fn explicit_bytes(self) -> usize {
        match (self.version, self.cipher) {
            (Version::Tls12, Cipher::Aes128Gcm | Cipher::Aes256Gcm) => EXPLICIT_BYTES,
            (Version::Tls12, Cipher::ChaCha20Poly1305) | (Version::Tls13, _) => 0,
        }
    }
}

/// The keys of one direction.
pub struct Keys {
    sequence: u64,
    key: [u8; KEY_BYTES_MAX],
    iv: [u8; IV_BYTES],
    /// Of TLS 1.3; else zeros.
    secret: [u8; SECRET_BYTES_MAX],
}

impl Keys {
    /// The keys of a direction of a TLS 1.2 connection. `iv`: 12 bytes; with AES-GCM the 4 that were negotiated, and 8
    /// with which the first explicit nonce begins. `sequence`: of the next record.
    ///
    /// # Errors
    /// A length is wrong.
    pub fn tls12(cipher: Cipher, key: &[u8], iv: &[u8], sequence: u64) -> Result<Self, KeysError> {
        let mut keys = Self {
            sequence,
            key: [0; KEY_BYTES_MAX],
            iv: iv.try_into().map_err(|_| KeysError)?,
            secret: [0; SECRET_BYTES_MAX],
        };
        if key.len() != cipher.algorithm().key_len() {
            return Err(KeysError);
        }
        keys.key[..key.len()].copy_from_slice(key);
        Ok(keys)
    }

    /// The keys of a direction of a TLS 1.3 connection, from its traffic secret. `sequence`: of the next record.
    ///
    /// # Errors
    /// The secret's length is wrong.
    pub fn tls13(cipher: Cipher, secret: &[u8], sequence: u64) -> Result<Self, KeysError> {
        if secret.len() != cipher.secret_bytes() {
            return Err(KeysError);
        }
        let mut keys = Self {
            sequence,
            key: [0; KEY_BYTES_MAX],
            iv: [0; IV_BYTES],
            secret: [0; SECRET_BYTES_MAX],
        };
        keys.secret[..secret.len()].copy_from_slice(secret);
        keys.derive(cipher);
        Ok(keys)
    }

    /// Whether these are that key and that IV.
    pub(super) fn is(&self, cipher: Cipher, key: &[u8], iv: &[u8]) -> bool {
        self.key[..cipher.algorithm().key_len()] == *key && self.iv == *iv
    }

    /// The keys that follow these (RFC 8446, 7.2).
    pub(super) fn step(&mut self, cipher: Cipher) {
        let mut next = [0; SECRET_BYTES_MAX];
        let bytes = cipher.secret_bytes();
        expand_label(cipher, &self.secret, b"traffic upd", &mut next[..bytes]);
        self.secret = next;
        next.zeroize();
        self.sequence = 0;
        self.derive(cipher);
    }

    /// Key and IV from the secret (RFC 8446, 7.3).
    fn derive(&mut self, cipher: Cipher) {
        let key_bytes = cipher.algorithm().key_len();
        expand_label(cipher, &self.secret, b"key", &mut self.key[..key_bytes]);
        expand_label(cipher, &self.secret, b"iv", &mut self.iv);
    }

    /// Whether another record may be sealed, but for the last few, which an alert or an update of the keys needs.
    pub(super) fn is_used_up(&self, cipher: Cipher) -> bool {
        self.sequence >= cipher.records_max()
    }

    /// Keys that have sealed so many records.
    #[cfg(test)]
    pub(super) fn set_sequence(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    fn expand(&self, cipher: Cipher) -> LessSafeKey {
        let algorithm = cipher.algorithm();
        let key = UnboundKey::new(algorithm, &self.key[..algorithm.key_len()]);
        LessSafeKey::new(key.expect("the key has its cipher's length"))
    }

    /// The keys, ready to seal.
    pub(super) fn sealer(&mut self, protection: Protection) -> Sealer<'_> {
        Sealer {
            key: self.expand(protection.cipher),
            protection,
            iv: &self.iv,
            sequence: &mut self.sequence,
        }
    }

    /// Opens a record in place. Returns where its plaintext is; with TLS 1.3 its inner plaintext.
    pub(super) fn open(
        &mut self,
        protection: Protection,
        record: &mut [u8],
    ) -> Result<Range<usize>, Forged> {
        let Some((header, body)) = record.split_first_chunk_mut::<HEADER_BYTES>() else {
            return Err(Forged);
        };
        let explicit_bytes = protection.explicit_bytes();
        let Some(plain_bytes) = body.len().checked_sub(explicit_bytes + TAG_BYTES) else {
            return Err(Forged);
        };
        let (explicit, sealed) = body.split_at_mut(explicit_bytes);
        let nonce = match <[u8; EXPLICIT_BYTES]>::try_from(&*explicit) {
            Ok(explicit) => explicit_nonce(&self.iv, explicit),
            Err(_) => nonce(&self.iv, self.sequence),
        };
        let nonce = Nonce::assume_unique_for_key(nonce);
        let key = self.expand(protection.cipher);
        let opened = match protection.version {
            Version::Tls13 => key.open_in_place(nonce, Aad::from(*header), sealed),
            Version::Tls12 => {
                let length = u16::try_from(plain_bytes).map_err(|_| Forged)?;
                let [kind, major, minor, ..] = *header;
                let aad = tls12_aad(self.sequence, [kind, major, minor], length);
                key.open_in_place(nonce, Aad::from(aad), sealed)
            }
        };
        opened.map_err(|_| Forged)?;
        self.sequence += 1;
        let begin = HEADER_BYTES + explicit_bytes;
        Ok(begin..begin + plain_bytes)
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.key.zeroize();
        self.iv.zeroize();
        self.secret.zeroize();
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

/// Bytes of a record's header: its type, version and length.
pub(super) const HEADER_BYTES: usize = 5;

/// Expanded keys of a direction, for the records of one call.
pub(super) struct Sealer<'k> {
    key: LessSafeKey,
    protection: Protection,
    iv: &'k [u8; IV_BYTES],
    sequence: &'k mut u64,
}

impl Sealer<'_> {
    /// Begins a record at the end of `out`. What is appended then, at most 16,384 bytes, is its content.
    pub(super) fn begin(&self, out: &mut Vec<u8>) -> Begun {
        let at = out.len();
        out.extend([0, 3, 3, 0, 0]);
        let explicit_bytes = self.protection.explicit_bytes();
        if explicit_bytes > 0 {
            let nonce = nonce(self.iv, *self.sequence);
            out.extend(&nonce[IV_BYTES - explicit_bytes..]);
        }
        Begun {
            at,
            content: out.len(),
        }
    }

    /// Seals the record that was begun, as one of `kind`.
    pub(super) fn end(&mut self, begun: &Begun, kind: u8, out: &mut Vec<u8>) {
        let nonce = Nonce::assume_unique_for_key(nonce(self.iv, *self.sequence));
        let content_bytes = out.len() - begun.content;
        let outer = match self.protection.version {
            Version::Tls12 => kind,
            Version::Tls13 => {
                out.push(kind);
                APPLICATION_DATA
            }
        };
        let body_bytes = out.len() + TAG_BYTES - begun.at - HEADER_BYTES;
        let [high, low] = short(body_bytes).to_be_bytes();
        let header = [outer, 3, 3, high, low];
        out[begun.at..begun.at + HEADER_BYTES].copy_from_slice(&header);
        let content = &mut out[begun.content..];
        let tag = match self.protection.version {
            Version::Tls13 => {
                self.key
                    .seal_in_place_separate_tag(nonce, Aad::from(header), content)
            }
            Version::Tls12 => {
                let aad = tls12_aad(*self.sequence, [kind, 3, 3], short(content_bytes));
                self.key
                    .seal_in_place_separate_tag(nonce, Aad::from(aad), content)
            }
        };
        out.extend(tag.expect("a record is short").as_ref());
        *self.sequence += 1;
    }
}

/// A record that is being written.
pub(super) struct Begun {
    at: usize,
    content: usize,
}

pub(super) const APPLICATION_DATA: u8 = 23;

fn short(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("a record is shorter than 64 KiB")
}

/// RFC 8446, 5.3.
fn nonce(iv: &[u8; IV_BYTES], sequence: u64) -> [u8; IV_BYTES] {
    let mut nonce = *iv;
    let (_, low) = nonce.split_at_mut(IV_BYTES - size_of::<u64>());
    for (byte, number) in low.iter_mut().zip(sequence.to_be_bytes()) {
        *byte ^= number;
    }
    nonce
}

/// RFC 5288, 3.
fn explicit_nonce(iv: &[u8; IV_BYTES], explicit: [u8; EXPLICIT_BYTES]) -> [u8; IV_BYTES] {
    let mut nonce = *iv;
    nonce[IV_BYTES - EXPLICIT_BYTES..].copy_from_slice(&explicit);
    nonce
}

/// RFC 5246, 6.2.3.3.
fn tls12_aad(sequence: u64, kind_and_version: [u8; 3], length: u16) -> [u8; 13] {
    let mut aad = [0; 13];
    aad[..8].copy_from_slice(&sequence.to_be_bytes());
    aad[8..11].copy_from_slice(&kind_and_version);
    aad[11..].copy_from_slice(&length.to_be_bytes());
    aad
}

/// HKDF-Expand-Label with an empty context (RFC 8446, 7.1).
fn expand_label(cipher: Cipher, secret: &[u8; SECRET_BYTES_MAX], label: &[u8], out: &mut [u8]) {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    const PREFIX: &[u8] = b"tls13 ";
    let secret = &secret[..cipher.secret_bytes()];
    let secret = hkdf::Prk::new_less_safe(cipher.hash(), secret);
    // Both are a few bytes: `out` a hash at most, `label` one of the words of this file.
    let [out_bytes, label_bytes] = [out.len(), PREFIX.len() + label.len()].map(|bytes| bytes as u8);
    let info: [&[u8]; 5] = [&[0, out_bytes], &[label_bytes], PREFIX, label, &[0]];
    secret
        .expand(&info, Length(out.len()))
        .and_then(|expanded| expanded.fill(out))
        .expect("shorter than 255 hashes");
}
