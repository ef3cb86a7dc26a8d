//! Why a token is refused.

/// Why a token is refused. Holds no word of the token but the key id, which `Display` leaves out. In the order in which
/// the checks are made: nothing after a refusal was looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Longer than [`crate::limits::TOKEN_BYTES_MAX`].
    #[error("the token is too long")]
    TooLong,
    /// Not three base64url parts, or the header is not what a header should be.
    #[error("the token is malformed")]
    Malformed,
    /// The header names another algorithm than RS256, RS384 and RS512, or another than its key is for.
    #[error("the algorithm is not taken")]
    Algorithm,
    /// Keys have ids, and the header names none.
    #[error("the token names no key")]
    KeyIdMissing,
    /// There is no key of this id; it may be one that can be fetched.
    #[error("the key is not known")]
    UnknownKey {
        /// As the header has it: 1 to [`crate::limits::JWT_KID_BYTES_MAX`] bytes of any text, which nobody has signed.
        kid: Box<str>,
    },
    /// The signature is not the key's.
    #[error("the signature is wrong")]
    Signature,
    /// Signed, but the claims are not JSON as it should be: a claim that is there twice, or of the wrong type.
    #[error("the claims are malformed")]
    Claims,
    /// Another issuer, or none.
    #[error("the issuer is another")]
    Issuer,
    /// No account, or not an account id.
    #[error("the token names no account")]
    Account,
    /// No expiry, where one is required.
    #[error("the token has no expiry")]
    NoExpiry,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
}

impl Refusal {
    /// One word for a counter's label, in snake case.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::KeyIdMissing => "key_id_missing",
            Self::UnknownKey { .. } => "unknown_key",
            Self::Signature => "signature",
            Self::Claims => "claims",
            Self::Issuer => "issuer",
            Self::Account => "account",
            Self::NoExpiry => "no_expiry",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
        }
    }
}
