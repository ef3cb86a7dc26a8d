//! The keys that tokens are checked with: one for every key id, or one for each.
//!
//! Invariants: at most [`JWT_KEYS_MAX`] keys; an error holds no text of a file but names of files and positions, for a
//! private key may lie where a public one was meant.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::algorithm::Algorithm;
use super::key::{Fingerprint, Key};
use crate::json::{self, Members};
use crate::limits::{JWT_KEYS_MAX, JWT_KID_BYTES_MAX};

/// Why keys are not taken. Holds nothing that stands in a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {problem}", file = file.display())]
pub struct KeysError {
    /// The file, or the folder.
    pub file: PathBuf,
    /// Position and expectation.
    pub problem: String,
}

/// What was found where `jwt:` points, unparsed.
#[derive(Clone)]
pub enum KeyText {
    /// The content of a file: PEM or JWKS.
    File(String),
    /// Name and content of each file of a folder.
    Folder(Vec<(String, String)>),
}

impl fmt::Debug for KeyText {
    /// No content: a private key may be among it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(_) => f.write_str("File(…)"),
            Self::Folder(files) => write!(f, "Folder({} files)", files.len()),
        }
    }
}

/// Public keys, found by the key id (`kid`) of a token's header. `Debug` shows how many.
#[derive(Clone, PartialEq)]
pub struct Keys {
    found: Found,
    /// Sorted.
    fingerprints: Vec<Fingerprint>,
}

#[derive(Clone, PartialEq)]
enum Found {
    /// A PEM file: its key, whatever id a token names, or none.
    ByAnyId(Arc<Key>),
    /// A folder, or a JWKS file.
    ById(HashMap<Box<str>, Arc<Key>>),
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.len())
    }
}

impl Keys {
    /// Reads the keys of `path` from what was found there: a PEM file, a JWKS file (RFC 7517 section 5), or a folder
    /// whose files `KEY_ID.pem` are read; others in it are passed over. Linear in the text.
    ///
    /// # Errors
    /// There is no key in it, or more than [`JWT_KEYS_MAX`]; a file holds something else than an RSA public key; two
    /// keys of a JWKS have one id.
    pub fn parse(path: &Path, text: &KeyText) -> Result<Self, KeysError> {
        let wrong = |problem: String| KeysError {
            file: path.to_owned(),
            problem,
        };
        match text {
            KeyText::File(text) if text.trim_ascii_start().starts_with('{') => {
                jwks(text).map(Self::by_id).map_err(wrong)
            }
            KeyText::File(text) => {
                let key = Arc::new(Key::from_pem(text).map_err(wrong)?);
                Ok(Self {
                    fingerprints: vec![key.fingerprint()],
                    found: Found::ByAnyId(key),
                })
            }
            KeyText::Folder(files) => {
                let mut keys = HashMap::new();
                for (name, text) in files {
                    let Some(kid) = kid_of_file(name) else {
                        continue;
                    };
                    let wrong = |problem| KeysError {
                        file: path.join(name),
                        problem,
                    };
                    let key = Key::from_pem(text).map_err(wrong)?;
                    insert(&mut keys, kid, key).map_err(wrong)?;
                }
                if keys.is_empty() {
                    return Err(wrong("no file KEY_ID.pem in it".to_owned()));
                }
                Ok(Self::by_id(keys))
            }
        }
    }

    fn by_id(keys: HashMap<Box<str>, Arc<Key>>) -> Self {
        let mut fingerprints: Vec<_> = keys.values().map(|key| key.fingerprint()).collect();
        fingerprints.sort_unstable();
        fingerprints.dedup();
        Self {
            found: Found::ById(keys),
            fingerprints,
        }
    }

    /// These keys and one more, which was fetched; a key that there is of this id is replaced. Where one key serves
    /// every id there is nothing to add. Linear in the keys.
    ///
    /// # Errors
    /// What is wrong with the PEM or the id, or that there are [`JWT_KEYS_MAX`] keys; it holds no text of either.
    pub fn with(&self, kid: &str, pem: &str) -> Result<Self, String> {
        let key = Key::from_pem(pem)?;
        match &self.found {
            Found::ByAnyId(_) => Ok(self.clone()),
            Found::ById(keys) => {
                let mut keys = keys.clone();
                keys.remove(kid);
                insert(&mut keys, kid, key)?;
                Ok(Self::by_id(keys))
            }
        }
    }

    /// Whether there is a key of this id, or one that serves every id. O(log keys).
    #[must_use]
    pub fn has_id(&self, kid: &str) -> bool {
        matches!(self.find(Some(kid)), Search::Found(_))
    }

    /// Whether a key with this fingerprint is still among them. O(log keys).
    #[must_use]
    pub fn has(&self, fingerprint: Fingerprint) -> bool {
        self.fingerprints.binary_search(&fingerprint).is_ok()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.found {
            Found::ByAnyId(_) => 1,
            Found::ById(keys) => keys.len(),
        }
    }

    /// Whether there are none; never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key for tokens whose header has this `kid`.
    pub(super) fn find<'k>(&'k self, kid: Option<&'k str>) -> Search<'k> {
        match (&self.found, kid) {
            (Found::ByAnyId(key), _) => Search::Found(key),
            (Found::ById(_), None) => Search::IdNeeded,
            (Found::ById(keys), Some(kid)) => keys
                .get(kid)
                .map_or(Search::Unknown(kid), |key| Search::Found(key)),
        }
    }
}

/// What comes of looking for a key.
pub(super) enum Search<'k> {
    Found(&'k Key),
    /// There is none of this id.
    Unknown(&'k str),
    /// Keys have ids, and the token names none.
    IdNeeded,
}

/// The key id of a file of the folder: its name without `.pem`. `None` for other files and for hidden ones.
fn kid_of_file(name: &str) -> Option<&str> {
    name.strip_suffix(".pem")
        .filter(|kid| !kid.is_empty() && !kid.starts_with('.'))
}

fn insert(keys: &mut HashMap<Box<str>, Arc<Key>>, kid: &str, key: Key) -> Result<(), String> {
    if kid.is_empty() || kid.len() > JWT_KID_BYTES_MAX {
        return Err(format!(
            "expected a key id of 1 to {JWT_KID_BYTES_MAX} bytes"
        ));
    }
    if keys.len() >= JWT_KEYS_MAX {
        return Err(format!("more than {JWT_KEYS_MAX} keys"));
    }
    match keys.insert(kid.into(), Arc::new(key)) {
        Some(_) => Err("the key id of an earlier key".to_owned()),
        None => Ok(()),
    }
}

/// Reads a JWK set. Keys of other types, uses and algorithms are passed over, as RFC 7517 section 5 asks.
fn jwks(text: &str) -> Result<HashMap<Box<str>, Arc<Key>>, String> {
    let expected = "a JWK set, {\"keys\": [{\"kty\": \"RSA\", …}, …]}";
    let set: Members<&RawValue> =
        serde_json::from_str(text).map_err(|error| json::problem(&error, expected))?;
    let list = only(&set, "keys")?.ok_or_else(|| format!("expected {expected}"))?;
    let list: Vec<&RawValue> =
        serde_json::from_str(list.get()).map_err(|_| format!("expected {expected}"))?;
    if list.len() > JWT_KEYS_MAX {
        return Err(format!("more than {JWT_KEYS_MAX} keys"));
    }
    let mut keys = HashMap::new();
    for (index, jwk) in list.into_iter().enumerate() {
        let wrong = |problem: String| format!("key {}: {problem}", index + 1);
        if let Some((kid, key)) = read_jwk(jwk).map_err(wrong)? {
            insert(&mut keys, &kid, key).map_err(wrong)?;
        }
    }
    if keys.is_empty() {
        return Err("no RSA key for RS256, RS384 or RS512 in it".to_owned());
    }
    Ok(keys)
}

/// Reads one JWK; `None` for one that checks no signature of ours.
fn read_jwk(jwk: &RawValue) -> Result<Option<(String, Key)>, String> {
    let members: Members<&RawValue> =
        serde_json::from_str(jwk.get()).map_err(|_| "expected an object".to_owned())?;
    if text(&members, "kty")?.as_deref() != Some("RSA")
        || text(&members, "use")?.is_some_and(|used_for| used_for != "sig")
    {
        return Ok(None);
    }
    let algorithm = match text(&members, "alg")?.as_deref().map(Algorithm::read) {
        None => None,
        Some(Some(algorithm)) => Some(algorithm),
        Some(None) => return Ok(None),
    };
    if only(&members, "d")?.is_some() {
        return Err(
            "a PRIVATE key, which is not needed here and should not be on this machine".to_owned(),
        );
    }
    let number = |name: &str| {
        let text = text(&members, name)?.ok_or_else(|| format!("{name}: missing"))?;
        BASE64URL_NOPAD
            .decode(text.as_bytes())
            .map_err(|_| format!("{name}: expected base64url without padding"))
    };
    let key = Key::new(&number("n")?, &number("e")?, algorithm)?;
    let kid = text(&members, "kid")?.ok_or_else(|| "kid: missing".to_owned())?;
    Ok(Some((kid, key)))
}

/// The value of a member that is there once or not at all.
fn only<'a>(members: &Members<&'a RawValue>, name: &str) -> Result<Option<&'a RawValue>, String> {
    let mut found = members.0.iter().filter(|(key, _)| key == name);
    let first = found.next().map(|(_, value)| *value);
    match found.next() {
        Some(_) => Err(format!("{name}: given twice")),
        None => Ok(first),
    }
}

fn text(members: &Members<&RawValue>, name: &str) -> Result<Option<String>, String> {
    only(members, name)?
        .map(|value| String::deserialize(value).map_err(|_| format!("{name}: expected a text")))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made by OpenSSL 3.0.
    /// An RSA key of 2048 bits with the exponent 2049, as the platform makes them.
    const PKCS1: &str = "\
-----BEGIN RSA PUBLIC KEY-----
MIIBCQKCAQEA0anY0pVVpJovCXNrfPK4JWF4DyofycqThgegxq1y8VVZpr6GpRP8
eejQBs94lDXwjcRhQVnSPNHzbajb6Sn14td0/edQt35lp+obgyetbxJoUC6SgKOE
ql95DCikPCi/0bKbUbQO6TPnue2AnwPUfxqFzTUQIX/2yo9hFbpnTLtL3RwLl7tL
ECXB6m8X5v+verG6YQIc6t8OXTM5FbNvqhMWlKGck0OtdWJ8Zx78dJSQEUyOM6aR
AKMXIYDNbtCOZjV9KcotxRej0/wE/yNOEgbQG11EHvTkAiFLRCeutgSYsRGhNjwH
Fsb32xieELvYI8kcV7j3xLMKjlUJxMCDTQICCAE=
-----END RSA PUBLIC KEY-----";
    /// The same key.
    const SPKI: &str = "\
-----BEGIN PUBLIC KEY-----
MIIBITANBgkqhkiG9w0BAQEFAAOCAQ4AMIIBCQKCAQEA0anY0pVVpJovCXNrfPK4
JWF4DyofycqThgegxq1y8VVZpr6GpRP8eejQBs94lDXwjcRhQVnSPNHzbajb6Sn1
4td0/edQt35lp+obgyetbxJoUC6SgKOEql95DCikPCi/0bKbUbQO6TPnue2AnwPU
fxqFzTUQIX/2yo9hFbpnTLtL3RwLl7tLECXB6m8X5v+verG6YQIc6t8OXTM5FbNv
qhMWlKGck0OtdWJ8Zx78dJSQEUyOM6aRAKMXIYDNbtCOZjV9KcotxRej0/wE/yNO
EgbQG11EHvTkAiFLRCeutgSYsRGhNjwHFsb32xieELvYI8kcV7j3xLMKjlUJxMCD
TQICCAE=
-----END PUBLIC KEY-----";
    /// An RSA key of 1024 bits.
    const SMALL: &str = "\
-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDS26JwNuyiuBCkAg9LCEBMw2fd
1gVMGrHNlHAhkZTjBcs3m0dDTrP9r9JaIMgwDjVEX/En/tP7RDPVzR1NMo7BY+/B
s790XnAvMVmfHN1VQYZK8FWZm4OufgrdC3S3enwH/9FJOGsY86c/5HSV/hZnixtj
VwMotAKppk2nb0hBaQIDAQAB
-----END PUBLIC KEY-----";
    /// A key of the curve P-256.
    const ELLIPTIC: &str = "\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEyFsz5XbXhtX+TdNUe0sXXEu1z6bY
88Hn8QCtvCgid5CFhlow7RfdfKLnd0tNRsQ5NsgiKDK7kgfcB2PuooIXNg==
-----END PUBLIC KEY-----";

    fn keys(text: KeyText) -> Keys {
        Keys::parse(Path::new("keys"), &text).expect("good keys")
    }

    fn file(text: &str) -> Keys {
        keys(KeyText::File(text.to_owned()))
    }

    fn problem(text: KeyText) -> String {
        let error = Keys::parse(Path::new("keys"), &text).err();
        error.map(|error| error.to_string()).unwrap_or_default()
    }

    fn folder(files: &[(&str, &str)]) -> KeyText {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        KeyText::Folder(files.iter().map(owned).collect())
    }

    fn only_key() -> Arc<Key> {
        match file(SPKI).found {
            Found::ByAnyId(key) => key,
            Found::ById(_) => panic!("a PEM file serves every id"),
        }
    }

    /// The key of [`SPKI`] as a JWK, with `more` members.
    fn jwk(more: &str) -> String {
        let key = only_key();
        let [n, e] = key.numbers().map(|number| BASE64URL_NOPAD.encode(number));
        format!(r#"{{"kty": "RSA", "n": "{n}", "e": "{e}"{more}}}"#)
    }

    fn is_found(keys: &Keys, kid: Option<&str>) -> bool {
        matches!(keys.find(kid), Search::Found(_))
    }

    #[test]
    fn one_key_is_the_same_from_every_form() {
        let print = only_key().fingerprint();
        let set = format!(r#"{{"keys": [{}]}}"#, jwk(r#", "kid": "a""#));
        let windows = PKCS1.replace('\n', "\r\n");
        let one_line = {
            let lines: Vec<_> = SPKI.lines().collect();
            let (ends, body) = (
                [lines[0], lines[lines.len() - 1]],
                &lines[1..lines.len() - 1],
            );
            format!("{}\n{}\n{}", ends[0], body.concat(), ends[1])
        };
        for text in [
            PKCS1,
            SPKI,
            &set,
            &windows,
            &one_line,
            &format!("\n{PKCS1}\n\n"),
            &format!("the system key\n{SPKI}\n"),
        ] {
            let keys = file(text);
            assert!(
                keys.has(print) && keys.len() == 1 && !keys.is_empty(),
                "{text}"
            );
            assert!(is_found(&keys, Some("a")), "{text}");
        }
        let of_folder = keys(folder(&[("a.pem", PKCS1), ("b.pem", SPKI)]));
        assert!(of_folder.has(print) && of_folder.len() == 2);
        assert!(!of_folder.has(Fingerprint::of(b"another", b"key")));
        assert_eq!(format!("{of_folder:?}"), "2 keys");
    }

    #[test]
    fn a_key_is_chosen_by_its_id_except_where_one_serves_all() {
        let one = file(PKCS1);
        assert!(is_found(&one, None) && is_found(&one, Some("anything")));
        let files = [
            ("a.pem", PKCS1),
            ("README", "no key"),
            (".b.pem", "no key"),
            (".pem", "no key"),
        ];
        let set = format!(
            r#"{{"keys": [{}, {{"kty": "EC"}}, {}, {}], "more": 1}}"#,
            jwk(r#", "kid": "a", "use": "sig", "alg": "RS256""#),
            jwk(r#", "kid": "e", "use": "enc""#),
            jwk(r#", "kid": "p", "alg": "PS256""#)
        );
        for keys in [keys(folder(&files)), file(&set)] {
            assert!(is_found(&keys, Some("a")) && keys.len() == 1, "{keys:?}");
            assert!(matches!(keys.find(None), Search::IdNeeded));
            for unknown in ["", "b", "e", "p", "A", ".b"] {
                assert!(matches!(keys.find(Some(unknown)), Search::Unknown(kid) if kid == unknown));
            }
        }
        let set = file(&set);
        let Search::Found(of_one_algorithm) = set.find(Some("a")) else {
            panic!("there");
        };
        assert!(of_one_algorithm.is_for(Algorithm::Rs256));
        assert!(!of_one_algorithm.is_for(Algorithm::Rs512));
    }

    #[test]
    fn a_key_that_was_fetched_joins_the_others() {
        let before = keys(folder(&[("a.pem", PKCS1)]));
        let after = before.with("b", SPKI).expect("a good key");
        assert!(is_found(&after, Some("a")) && is_found(&after, Some("b")));
        assert!(!is_found(&before, Some("b")));
        let again = after.with("b", PKCS1).expect("replaced");
        assert!(again == after && again.len() == 2);
        let one = file(PKCS1);
        assert!(one.with("b", SPKI).is_ok_and(|same| same == one));
        for (kid, pem) in [
            ("b", "secret"),
            ("", SPKI),
            (&*"x".repeat(257), SPKI),
            ("b", SMALL),
        ] {
            let problem = before.with(kid, pem).err().unwrap_or_default();
            assert!(
                !problem.is_empty() && !problem.contains("secret"),
                "{problem}"
            );
        }
        let mut full = HashMap::new();
        for number in 0..JWT_KEYS_MAX {
            full.insert(number.to_string().into(), only_key());
        }
        let full = Keys::by_id(full);
        assert_eq!(
            full.with("b", SPKI).err().as_deref(),
            Some("more than 1000 keys")
        );
        assert!(full.with("1", SPKI).is_ok(), "in place of another");
    }

    #[test]
    fn what_is_no_public_rsa_key_is_refused_and_not_repeated() {
        let private = SPKI.replace("PUBLIC", "PRIVATE");
        let broken = SPKI.replace("MIIB", "M!IB");
        let other = SPKI.replace("MIIBITAN", "MIIBITAO");
        let certificate = SPKI.replace("PUBLIC KEY", "CERTIFICATE");
        let request = SPKI.replace("PUBLIC KEY", "CERTIFICATE REQUEST");
        let two = format!("{SPKI}\n{SPKI}");
        let with_kid = jwk(r#", "kid": "secret""#);
        let set = |keys: &str| format!(r#"{{"keys": [{keys}]}}"#);
        for (text, expected) in [
            ("", "expected one PEM block, RSA PUBLIC KEY or PUBLIC KEY"),
            ("secret", "expected one PEM block"),
            (&two, "expected one PEM block, RSA PUBLIC KEY or PUBLIC KEY"),
            (&broken, "the base64 of the PUBLIC KEY is broken"),
            (&other, "the PEM block holds no RSA public key"),
            (
                &private,
                "a PRIVATE key, which is not needed here and should not be on this machine",
            ),
            (&certificate, "a certificate; expected one PEM block"),
            (
                &request,
                "expected one PEM block, RSA PUBLIC KEY or PUBLIC KEY, found another kind",
            ),
            (
                SMALL,
                "expected an RSA key of 2048 to 8192 bits, found 1024 bits",
            ),
            (ELLIPTIC, "expected an RSA key, found one of another kind"),
            (
                "{",
                "not JSON: EOF while parsing an object at line 1 column 1",
            ),
            ("{}", "expected a JWK set"),
            (r#"{"keys": {"secret": 1}}"#, "expected a JWK set"),
            (r#"{"keys": [], "keys": []}"#, "keys: given twice"),
            (&set(""), "no RSA key for RS256, RS384 or RS512 in it"),
            (&set("1"), "key 1: expected an object"),
            (&set(&jwk("")), "key 1: kid: missing"),
            (&set(&jwk(r#", "kid": 1"#)), "key 1: kid: expected a text"),
            (
                &set(&jwk(r#", "kid": """#)),
                "key 1: expected a key id of 1 to 256 bytes",
            ),
            (
                &set(&jwk(r#", "kid": "a", "kid": "secret""#)),
                "key 1: kid: given twice",
            ),
            (
                &set(&jwk(r#", "kid": "a", "d": "secret""#)),
                "key 1: a PRIVATE key",
            ),
            (
                &set(&format!("{with_kid}, {with_kid}")),
                "key 2: the key id of an earlier key",
            ),
            (
                &set(&with_kid.replace(r#""e": ""#, r#""e": "="#)),
                "key 1: e: expected base64url",
            ),
            (
                &set(&with_kid.replace(r#""n": ""#, r#""n": "AA"#)),
                "key 1: ",
            ),
            (
                r#"{"keys": [{"kty": "RSA", "n": "AQ", "kid": "a"}]}"#,
                "key 1: e: missing",
            ),
            (
                r#"{"keys": [{"kty": "RSA", "n": "AQ", "e": "AQ", "kid": "a"}]}"#,
                "key 1: expected an RSA key of",
            ),
        ] {
            let problem = problem(KeyText::File(text.to_owned()));
            assert!(
                problem.starts_with(&format!("keys: {expected}")),
                "{problem}\n{text}"
            );
            assert!(!problem.contains("secret"), "{problem}");
        }
        assert_eq!(problem(folder(&[])), "keys: no file KEY_ID.pem in it");
        assert!(
            problem(folder(&[("a.pem", PKCS1), ("b.pem", "secret")]))
                .starts_with("keys/b.pem: expected")
        );
        let many: Vec<_> = (0..=JWT_KEYS_MAX)
            .map(|number| (format!("{number}.pem"), PKCS1.to_owned()))
            .collect();
        assert!(problem(KeyText::Folder(many)).ends_with("more than 1000 keys"));
        let hidden = format!("{:?}", KeyText::File("secret".to_owned()));
        assert!(!hidden.contains("secret"));
    }

    #[test]
    fn exponents_that_rsa_does_not_have_are_refused() {
        let key = only_key();
        let [modulus, _] = key.numbers();
        for exponent in [
            &[][..],
            &[0],
            &[1],
            &[2],
            &[4],
            &[2, 0, 0, 0, 1],
            &[1; 9],
            &[0xff; 300],
        ] {
            assert!(Key::new(modulus, exponent, None).is_err(), "{exponent:?}");
        }
        for exponent in [
            &[3][..],
            &[1, 0, 1],
            &[0, 0, 0, 0, 0, 0, 8, 1],
            &[1, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert!(Key::new(modulus, exponent, None).is_ok(), "{exponent:?}");
        }
        let mut even = modulus.to_vec();
        *even.last_mut().expect("2048 bits") &= 0xfe;
        assert!(Key::new(&even, &[3], None).is_err());
    }
}
