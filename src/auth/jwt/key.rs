//! One RSA public key, from PEM or from the numbers of a JWK.
//!
//! Invariant: a key is one that signatures can be checked with: 2048 to 8192 bits, an odd exponent from 3 to 2^33 - 1.
//! The platform makes its keys with the exponent 2049, so no exponent is taken for granted.

use std::fmt;
use std::ops::RangeInclusive;

use pem_rfc7468::Decoder;
use pkcs1::der::Decode;
use pkcs1::{ALGORITHM_OID, RsaPublicKeyRef};
use ring::digest::{self, SHA256};
use ring::signature::RsaPublicKeyComponents;
use spki::SubjectPublicKeyInfoRef;

use super::algorithm::Algorithm;

const MODULUS_BITS: RangeInclusive<usize> = 2048..=8192;
const EXPONENTS: RangeInclusive<u64> = 3..=((1 << 33) - 1);

/// Names a key by what it is: two keys with one fingerprint are one key, whatever their ids. The first half of a
/// SHA-256 over modulus and exponent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// The length of the modulus goes first, so that no two keys give the same bytes.
    pub(super) fn of(modulus: &[u8], exponent: &[u8]) -> Self {
        let mut hash = digest::Context::new(&SHA256);
        hash.update(&(modulus.len() as u64).to_be_bytes());
        hash.update(modulus);
        hash.update(exponent);
        let mut half = [0; 16];
        for (byte, from) in half.iter_mut().zip(hash.finish().as_ref()) {
            *byte = *from;
        }
        Self(half)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// An RSA public key.
#[derive(PartialEq, Eq)]
pub(super) struct Key {
    /// Big-endian, without leading zeros, as is the exponent.
    modulus: Box<[u8]>,
    exponent: Box<[u8]>,
    /// The one algorithm that the key is for, where its JWK says so (RFC 7517 section 4.4).
    algorithm: Option<Algorithm>,
    fingerprint: Fingerprint,
}

impl Key {
    /// Reads one PEM block: `RSA PUBLIC KEY` (PKCS #1, what the platform hands out) or `PUBLIC KEY` (SPKI). What stands
    /// before the block is passed over.
    pub(super) fn from_pem(text: &str) -> Result<Self, String> {
        let mut pem = Decoder::new_detect_wrap(text.trim_ascii().as_bytes())
            .map_err(|_| format!("expected {EXPECTED}"))?;
        let label = pem.type_label();
        let mut der = Vec::new();
        pem.decode_to_end(&mut der)
            .map_err(|_| format!("the base64 of the {label} is broken"))?;
        match label {
            "RSA PUBLIC KEY" => Self::from_pkcs1(&der),
            "PUBLIC KEY" => {
                let key = SubjectPublicKeyInfoRef::from_der(&der).map_err(|_| NOT_A_KEY)?;
                if key.algorithm.oid != ALGORITHM_OID {
                    return Err("expected an RSA key, found one of another kind".to_owned());
                }
                Self::from_pkcs1(key.subject_public_key.as_bytes().unwrap_or_default())
            }
            "PRIVATE KEY" | "RSA PRIVATE KEY" | "ENCRYPTED PRIVATE KEY" => Err(format!(
                "a PRIVATE key, which is not needed here and should not be on this machine; expected {EXPECTED}"
            )),
            "CERTIFICATE" => Err(format!(
                "a certificate; expected {EXPECTED}, which openssl x509 -pubkey -noout prints"
            )),
            _ => Err(format!("expected {EXPECTED}, found another kind of block")),
        }
    }

    fn from_pkcs1(der: &[u8]) -> Result<Self, String> {
        let key = RsaPublicKeyRef::from_der(der).map_err(|_| NOT_A_KEY)?;
        Self::new(key.modulus.as_bytes(), key.public_exponent.as_bytes(), None)
    }

    /// A key of these big-endian numbers, which may have leading zeros.
    pub(super) fn new(
        modulus: &[u8],
        exponent: &[u8],
        algorithm: Option<Algorithm>,
    ) -> Result<Self, String> {
        let (modulus, exponent) = (without_zeros(modulus), without_zeros(exponent));
        let zeros = modulus.first().map_or(0, |first| first.leading_zeros());
        let bits = (modulus.len() * 8).saturating_sub(zeros as usize);
        let is_odd = modulus.last().is_some_and(|last| last % 2 == 1);
        if !MODULUS_BITS.contains(&bits) || !is_odd {
            return Err(format!(
                "expected an RSA key of {} to {} bits, found {bits} bits",
                MODULUS_BITS.start(),
                MODULUS_BITS.end()
            ));
        }
        let value = exponent.iter().try_fold(0_u64, |value, byte| {
            value.checked_mul(256)?.checked_add((*byte).into())
        });
        if !value.is_some_and(|value| EXPONENTS.contains(&value) && value % 2 == 1) {
            return Err("expected an odd RSA exponent from 3 to 2^33 - 1".to_owned());
        }
        Ok(Self {
            modulus: modulus.into(),
            exponent: exponent.into(),
            algorithm,
            fingerprint: Fingerprint::of(modulus, exponent),
        })
    }

    /// Whether tokens of this algorithm may be signed with it.
    pub(super) fn is_for(&self, algorithm: Algorithm) -> bool {
        self.algorithm.is_none_or(|own| own == algorithm)
    }

    /// Whether `signature` is this key's over `message`. Some tens of µs for a key of 2048 bits.
    pub(super) fn has_signed(
        &self,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        let key = RsaPublicKeyComponents {
            n: &self.modulus,
            e: &self.exponent,
        };
        key.verify(algorithm.parameters(), message, signature)
            .is_ok()
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Modulus and exponent.
    #[cfg(test)]
    pub(super) fn numbers(&self) -> [&[u8]; 2] {
        [&self.modulus, &self.exponent]
    }
}

const EXPECTED: &str = "one PEM block, RSA PUBLIC KEY or PUBLIC KEY";
const NOT_A_KEY: &str = "the PEM block holds no RSA public key";

fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}
