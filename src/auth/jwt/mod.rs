//! The platform's own tokens (PROTOCOL 7, `jwt`): JWTs (RFC 7519) signed with RSA, as JWS in its compact form (RFC 7515).
//!
//! | module | owns |
//! |---|---|
//! | `compact` | a token as it comes: its three parts, its header |
//! | `algorithm` | the three algorithms |
//! | `key`, `keys` | public keys: PEM, JWKS, a folder; which one a token names |
//! | `claims` | what a token says, and what it must say |
//! | `refusal` | why it is refused |
//!
//! Checked in this order, and nothing after what fails is looked at: the length, the three parts, the header's algorithm,
//! the key, the signature, the claims. So an unsigned byte reaches nothing but base64, the header's JSON and RSA.
//!
//! Invariants: no bytes of a token make it panic; a key is only ever used for RSA, whatever the header says (RFC 8725
//! section 3.1); what is refused is told without a word of the token. There is no clock: time comes in as `unix_now`.
//!
//! Not here: the cache of tokens that were verified, and the threads that verify them; `identity_sig`, which needs the
//! platform's database; `aud`, `sub`, `iat` and `jti`, by which the platform decides nothing.

mod algorithm;
mod claims;
mod compact;
mod key;
mod keys;
mod refusal;

pub use claims::{Claims, Rules};
pub use compact::has_shape;
pub use key::Fingerprint;
pub use keys::{KeyText, Keys, KeysError};
pub use refusal::Refusal;

use compact::Compact;
use keys::Search;

use crate::limits::TOKEN_BYTES_MAX;

/// Decides on `token` at `unix_now` (Unix seconds). CPU only: some tens of µs with a key of 2048 bits, nearly all of it for
/// the signature; a few µs for what is refused before that.
///
/// # Errors
/// The token is [refused](Refusal).
pub fn verify(token: &str, keys: &Keys, rules: &Rules, unix_now: u64) -> Result<Claims, Refusal> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Refusal::TooLong);
    }
    let compact = Compact::split(token).ok_or(Refusal::Malformed)?;
    let header = compact.header()?;
    let key = match keys.find(header.kid.as_deref()) {
        Search::Found(key) => key,
        Search::IdNeeded => return Err(Refusal::KeyIdMissing),
        Search::Unknown(kid) => return Err(Refusal::UnknownKey { kid: kid.into() }),
    };
    if !key.is_for(header.algorithm) {
        return Err(Refusal::Algorithm);
    }
    let signature = compact.signature()?;
    if !key.has_signed(header.algorithm, compact.signed.as_bytes(), &signature) {
        return Err(Refusal::Signature);
    }
    Claims::read(&compact.claims()?, key.fingerprint(), rules, unix_now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::BASE64URL_NOPAD;
    use proptest::prelude::*;
    use std::path::Path;

    fn keys() -> Keys {
        let text = include_str!("../../../tests/fixtures/system_key.pem").to_owned();
        Keys::parse(Path::new("system_key.pem"), &KeyText::File(text)).expect("a key")
    }

    /// Of that key, as the platform writes them; signed by OpenSSL.
    fn token() -> &'static str {
        include_str!("../../../tests/fixtures/system_token.jwt").trim_ascii_end()
    }

    #[test]
    fn a_token_of_the_platform_is_taken_and_no_byte_of_it_may_be_another() {
        let (keys, rules) = (keys(), Rules::new("kazoo", true));
        let claims = verify(token(), &keys, &rules, 1_700_000_000).expect("a good token");
        assert_eq!(
            claims.account.to_string(),
            "4b8c6fec4b2597882c0390202d195419"
        );
        assert_eq!(claims.expires, Some(2_000_000_030));
        assert!(keys.has(claims.key));
        for index in 0..token().len() {
            let mut bytes = token().as_bytes().to_vec();
            bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
            let other = String::from_utf8(bytes).expect("ASCII");
            assert!(verify(&other, &keys, &rules, 0).is_err(), "byte {index}");
            let cut = &token()[..index];
            assert!(verify(cut, &keys, &rules, 0).is_err(), "{index} bytes");
        }
    }

    #[test]
    #[ignore = "figures, to be read: cargo test --release --lib jwt::tests::the_cost -- --ignored --nocapture"]
    fn the_cost_of_a_verification() {
        const TIMES: u32 = 20_000;
        let (keys, rules) = (keys(), Rules::new("kazoo", true));
        let forged = token().replace(".eyJpc3M", ".eyJpc3N");
        let unknown = format!("{}.e30.AAAA", BASE64URL_NOPAD.encode(br#"{"alg":"none"}"#));
        for (what, token) in [("good", token()), ("forged", &forged), ("none", &unknown)] {
            let start = std::time::Instant::now();
            for _ in 0..TIMES {
                let verdict = verify(std::hint::black_box(token), &keys, &rules, 0);
                assert_eq!(verdict.is_ok(), what == "good");
            }
            println!("{what}: {:?} each", start.elapsed() / TIMES);
        }
    }

    #[test]
    fn the_length_is_looked_at_before_all_else_and_the_signature_before_the_claims() {
        let (keys, rules) = (keys(), Rules::new("kazoo", false));
        let part = |json: &str| BASE64URL_NOPAD.encode(json.as_bytes());
        let header = part(r#"{"alg":"RS256"}"#);
        let claims = part(r#"{"iss":"another"}"#);
        let of_length = |length: usize| "x".repeat(length);
        let none = format!("{}.{claims}.", part(r#"{"alg":"none"}"#));
        for (token, expected) in [
            (of_length(TOKEN_BYTES_MAX + 1), Refusal::TooLong),
            (of_length(TOKEN_BYTES_MAX), Refusal::Malformed),
            (String::new(), Refusal::Malformed),
            ("..".to_owned(), Refusal::Malformed),
            (none, Refusal::Algorithm),
            (format!("{header}.{claims}."), Refusal::Signature),
            (format!("{header}.{claims}.!"), Refusal::Malformed),
            (format!("{header}.!.AAAA"), Refusal::Signature),
            (
                format!("{header}.{claims}.{}", "A".repeat(342)),
                Refusal::Signature,
            ),
        ] {
            assert_eq!(verify(&token, &keys, &rules, 0), Err(expected), "{token}");
        }
    }

    proptest! {
        #[test]
        fn no_token_makes_it_panic_and_none_is_taken_unsigned(
            header in "(\\{\"alg\":\"(RS256|RS384|RS512|none)\",\"kid\":\".{0,4}\"\\})|\\PC{0,40}",
            claims in "\\PC{0,60}",
            signature in prop::collection::vec(any::<u8>(), 0..300),
            raw in ".{0,80}",
            cut in 0_usize..400,
        ) {
            let (keys, rules) = (keys(), Rules::new("kazoo", false));
            let token = format!(
                "{}.{}.{}",
                BASE64URL_NOPAD.encode(header.as_bytes()),
                BASE64URL_NOPAD.encode(claims.as_bytes()),
                BASE64URL_NOPAD.encode(&signature)
            );
            prop_assert_eq!(has_shape(&token), !header.is_empty() && !claims.is_empty());
            for token in [&*token, &*raw, token.get(..cut).unwrap_or_default()] {
                prop_assert!(verify(token, &keys, &rules, 0).is_err());
            }
        }
    }
}
