//! A token as it comes: three base64url parts with dots between them (RFC 7515 section 3.1), and the header in the first.

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::algorithm::Algorithm;
use super::refusal::Refusal;
use crate::json::Members;
use crate::limits::{JWT_KID_BYTES_MAX, TOKEN_BYTES_MAX};

/// A token in its parts.
pub(super) struct Compact<'t> {
    /// Header, dot and claims, as they were signed.
    pub(super) signed: &'t str,
    header: &'t str,
    claims: &'t str,
    signature: &'t str,
}

/// What a header says.
pub(super) struct Header {
    pub(super) algorithm: Algorithm,
    /// The key's id: 1 to [`JWT_KID_BYTES_MAX`] bytes.
    pub(super) kid: Option<String>,
}

impl<'t> Compact<'t> {
    /// Splits a token. A signature of no characters is one, so that `"alg":"none"` is refused for what it is.
    pub(super) fn split(token: &'t str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        (!header.is_empty() && !claims.is_empty() && !claims.contains('.')).then_some(Self {
            signed,
            header,
            claims,
            signature,
        })
    }

    /// Whether all parts consist of the characters of base64url.
    pub(super) fn is_base64url(&self) -> bool {
        let is_of_it = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        [self.header, self.claims, self.signature]
            .iter()
            .all(|part| part.bytes().all(is_of_it))
    }

    /// Reads the header. What it says is not signed yet.
    pub(super) fn header(&self) -> Result<Header, Refusal> {
        let json = decode(self.header).ok_or(Refusal::Malformed)?;
        let members = members(&json).ok_or(Refusal::Malformed)?;
        let (mut algorithm, mut kid) = (None, None);
        for (name, value) in &members.0 {
            match name.as_str() {
                "alg" => algorithm = Some(text(value).ok_or(Refusal::Malformed)?),
                "kid" => kid = Some(text(value).ok_or(Refusal::Malformed)?),
                "typ" if text(value).is_some_and(|typ| typ.eq_ignore_ascii_case("JWT")) => {}
                // `crit` lists what must be understood (RFC 7515 section 4.1.11), and we understand none of it.
                "typ" | "crit" => return Err(Refusal::Malformed),
                _ => {}
            }
        }
        let algorithm = algorithm.ok_or(Refusal::Malformed)?;
        let algorithm = Algorithm::read(&algorithm).ok_or(Refusal::Algorithm)?;
        if kid
            .as_ref()
            .is_some_and(|kid| kid.is_empty() || kid.len() > JWT_KID_BYTES_MAX)
        {
            return Err(Refusal::Malformed);
        }
        Ok(Header { algorithm, kid })
    }

    /// The signature's bytes.
    pub(super) fn signature(&self) -> Result<Vec<u8>, Refusal> {
        decode(self.signature).ok_or(Refusal::Malformed)
    }

    /// The claims' bytes, which mean nothing until the signature was checked.
    pub(super) fn claims(&self) -> Result<Vec<u8>, Refusal> {
        decode(self.claims).ok_or(Refusal::Malformed)
    }
}

/// Whether `token` has the shape of a JWT: three base64url parts with dots between them, the first two not empty. Says
/// nothing of what is in them. O(n) in the token.
#[must_use]
pub fn has_shape(token: &str) -> bool {
    Compact::split(token).is_some_and(|compact| compact.is_base64url())
}

/// Decodes one part. Padding, and bits that a second spelling could have, are refused.
fn decode(part: &str) -> Option<Vec<u8>> {
    debug_assert!(part.len() <= TOKEN_BYTES_MAX);
    BASE64URL_NOPAD.decode(part.as_bytes()).ok()
}

/// The members of a JSON object in which none is there twice.
pub(super) fn members(json: &[u8]) -> Option<Members<&RawValue>> {
    let members: Members<&RawValue> = serde_json::from_slice(json).ok()?;
    members.repeated().is_none().then_some(members)
}

/// A JSON string.
pub(super) fn text(value: &RawValue) -> Option<String> {
    String::deserialize(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a token with this header, and its key id.
    fn header(json: &[u8]) -> Result<Option<String>, Refusal> {
        let token = format!("{}.e30.", BASE64URL_NOPAD.encode(json));
        let header = Compact::split(&token).expect("two dots").header();
        header.map(|header| header.kid)
    }

    #[test]
    fn a_header_names_one_of_three_algorithms() {
        for (json, kid) in [
            (r#"{"alg":"RS256"}"#, None),
            (r#"{"alg":"RS384","typ":"jwt","kid":"a"}"#, Some("a")),
            (
                r#" {"kid":"\u0061","typ":"JWT","alg":"RS512","x5t":[{}]} "#,
                Some("a"),
            ),
        ] {
            assert_eq!(
                header(json.as_bytes()),
                Ok(kid.map(str::to_owned)),
                "{json}"
            );
        }
        for other in [
            "none", "None", "HS256", "HS384", "HS512", "PS256", "ES256", "EdDSA", "RS1", "rs256",
            "RS256 ", "",
        ] {
            let json = format!(r#"{{"alg":"{other}","kid":"a"}}"#);
            assert_eq!(header(json.as_bytes()), Err(Refusal::Algorithm), "{json}");
        }
        let long = format!(
            r#"{{"alg":"RS256","kid":"{}"}}"#,
            "x".repeat(JWT_KID_BYTES_MAX + 1)
        );
        for json in [
            " ",
            "{}",
            "[]",
            "null",
            r#""RS256""#,
            r#"{"alg":"RS256""#,
            r#"{"alg":"RS256"}{}"#,
            r#"{"alg":null}"#,
            r#"{"alg":["RS256"]}"#,
            r#"{"alg":"RS256","alg":"RS256"}"#,
            r#"{"alg":"RS256","\u0061lg":"none"}"#,
            r#"{"alg":"RS256","kid":1}"#,
            r#"{"alg":"RS256","kid":""}"#,
            r#"{"alg":"RS256","kid":"\ud800"}"#,
            r#"{"alg":"RS256","typ":"at+jwt"}"#,
            r#"{"alg":"RS256","typ":1}"#,
            r#"{"alg":"RS256","crit":["exp"],"exp":1}"#,
            r#"{"alg":"RS256","b64":false,"crit":["b64"]}"#,
            &long,
        ] {
            assert_eq!(header(json.as_bytes()), Err(Refusal::Malformed), "{json}");
        }
        assert_eq!(
            header(b"{\"alg\":\"RS256\",\"x\":\"\xff\"}"),
            Err(Refusal::Malformed)
        );
        let deep = format!(
            r#"{{"alg":"RS256","x":{}1{}}}"#,
            "[".repeat(3000),
            "]".repeat(3000)
        );
        assert_eq!(
            header(deep.as_bytes()),
            Ok(None),
            "what is passed over is not read"
        );
    }

    #[test]
    fn a_jwt_has_three_parts_of_base64url() {
        for token in ["a.b.c", "eyJ.eyJ.", "A-_9.A-_9.A-_9", "alpha.beta.gamma"] {
            assert!(has_shape(token), "{token}");
        }
        for token in [
            "", ".", "..", "a", "a.b", "a..", ".b.", "..c", "a.b.c.d", "a.b.c=", "a.b. c",
            "a.b+.c", "a/.b.c", "a.é.c", "a.b.c\n",
        ] {
            assert!(!has_shape(token), "{token}");
        }
    }

    #[test]
    fn a_part_has_one_spelling() {
        for wrong in ["YQ==", "YR", "Y", "YQ\n", "Y Q", "/w", "ÿÿ"] {
            let token = format!("{wrong}.{wrong}.{wrong}");
            let compact = Compact::split(&token).expect("two dots");
            assert_eq!(compact.header().err(), Some(Refusal::Malformed), "{wrong}");
            assert_eq!(compact.signature(), Err(Refusal::Malformed), "{wrong}");
            assert_eq!(compact.claims(), Err(Refusal::Malformed), "{wrong}");
        }
        let compact = Compact::split("_w.YQ.YWI").expect("two dots");
        assert_eq!(compact.claims(), Ok(b"a".to_vec()));
        assert_eq!(compact.signature(), Ok(b"ab".to_vec()));
        assert_eq!(compact.signed, "_w.YQ");
    }
}
