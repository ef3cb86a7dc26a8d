//! The three signature algorithms of the platform's tokens (RFC 7518 section 3.3).

use ring::signature::{self, RsaParameters};

/// RSA with PKCS #1 v1.5 padding and one of three hashes. There is no other: `none`, the symmetric ones and RSA-PSS have
/// no value here that a header could choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
}

impl Algorithm {
    /// Reads the `alg` of a header or a JWK; the names are case-sensitive.
    pub(super) fn read(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "RS384" => Some(Self::Rs384),
            "RS512" => Some(Self::Rs512),
            _ => None,
        }
    }

    /// How a signature is checked: with keys of 2048 to 8192 bits.
    pub(super) fn parameters(self) -> &'static RsaParameters {
        match self {
            Self::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        }
    }
}
