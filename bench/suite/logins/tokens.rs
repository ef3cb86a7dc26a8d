//! Tokens such as the platform signs, RS256 with 2,048 bits, each another; in a folder that is removed in the end, the
//! private key too.

use std::fs;
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::json;

/// Id of the key.
const KEY_ID: &str = "2a9b0dbd1b1a1e0cfa1f2f2c6e4b2c1d";

/// How long the tokens are good.
const GOOD_SECONDS: u64 = 24 * 3600;

/// Files of tokens, one a line, and of the key that they are verified with.
pub(crate) struct Tokens {
    /// PEM, `PUBLIC KEY`.
    pub(crate) key: PathBuf,
    /// A token for each session.
    pub(crate) each: PathBuf,
    /// The first of them alone.
    pub(crate) one: PathBuf,
    _dir: tempfile::TempDir,
}

impl Tokens {
    /// Makes a key and `count` tokens of account 1, on all cores: some 0.7 ms of one for each.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`]: there is no `openssl`, which makes the key.
    pub(crate) fn make(count: u32) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let file = |name: &str| dir.path().join(name);
        let (private, der, key) = (file("key.pem"), file("key.der"), file("public.pem"));
        openssl(&["genpkey", "-algorithm", "RSA", "-out"], &private)?;
        let private = private.display().to_string();
        let to_der = ["pkcs8", "-topk8", "-nocrypt", "-outform", "DER", "-in"];
        openssl(&[&to_der[..], &[&private, "-out"]].concat(), &der)?;
        openssl(&["pkey", "-pubout", "-in", &private, "-out"], &key)?;
        let pair = RsaKeyPair::from_pkcs8(&fs::read(&der)?)
            .map_err(|error| io::Error::other(format!("the key of openssl: {error}")))?;
        let tokens = sign_all(&pair, count, unix_now())?;
        let (each, one) = (file("each"), file("one"));
        fs::write(&each, tokens.join("\n"))?;
        fs::write(&one, &tokens[0])?;
        Ok(Self {
            key,
            each,
            one,
            _dir: dir,
        })
    }
}

/// Runs `openssl` with `arguments` and `file`. Its keys have 2,048 bits when nothing else is asked for.
fn openssl(arguments: &[&str], file: &Path) -> io::Result<()> {
    let output = Command::new("openssl").args(arguments).arg(file).output();
    let output =
        output.map_err(|error| io::Error::new(error.kind(), format!("openssl: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "openssl {arguments:?}: {complaint}"
    )))
}

fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Tokens 1 to `count`, at least one.
fn sign_all(pair: &RsaKeyPair, count: u32, now: u64) -> io::Result<Vec<String>> {
    let numbers: Vec<u32> = (1..=count.max(1)).collect();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let part = numbers.len().div_ceil(cores);
    thread::scope(|scope| {
        let sign_part = |part: &[u32]| -> io::Result<Vec<String>> {
            part.iter().map(|&n| token(pair, n, now)).collect()
        };
        let parts = numbers.chunks(part);
        let threads: Vec<_> = parts
            .map(|part| scope.spawn(move || sign_part(part)))
            .collect();
        let mut tokens = Vec::new();
        for thread in threads {
            let signed = thread.join();
            tokens.extend(signed.map_err(|_| io::Error::other("signing panicked"))??);
        }
        Ok(tokens)
    })
}

/// Token number `n`, with the claims that the platform's have.
fn token(pair: &RsaKeyPair, n: u32, now: u64) -> io::Result<String> {
    let header = json!({"alg": "RS256", "typ": "JWT", "kid": KEY_ID});
    let claims = json!({
        "iss": "kazoo",
        "identity_sig": format!("{n:043}"),
        "account_id": format!("{:032x}", 1),
        "owner_id": format!("{n:032x}"),
        "method": "cb_user_auth",
        "iat": now,
        "exp": now + GOOD_SECONDS,
    });
    let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    let signed = format!(
        "{}.{}",
        encode(header.to_string().as_bytes()),
        encode(claims.to_string().as_bytes())
    );
    let mut signature = vec![0; pair.public().modulus_len()];
    let random = SystemRandom::new();
    pair.sign(
        &RSA_PKCS1_SHA256,
        &random,
        signed.as_bytes(),
        &mut signature,
    )
    .map_err(|_| io::Error::other("a token cannot be signed"))?;
    Ok(format!("{signed}.{}", encode(&signature)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blackhole::auth::jwt::{self, KeyText, Keys, Rules};
    use std::collections::BTreeSet;

    #[test]
    fn every_token_is_another_and_the_server_takes_it() {
        let tokens = match Tokens::make(5) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return support::left_out::leave_out(&error);
            }
            tokens => tokens.expect("openssl works"),
        };
        let read = |file: &Path| fs::read_to_string(file).expect("written");
        let keys = Keys::parse(&tokens.key, &KeyText::File(read(&tokens.key))).expect("a key");
        let each = read(&tokens.each);
        let rules = Rules::new("kazoo", true);
        let good = each.lines().filter(|token| {
            let claims = jwt::verify(token, &keys, &rules, unix_now()).expect("a good token");
            claims.account.to_string() == format!("{:032x}", 1)
        });
        assert_eq!(good.collect::<BTreeSet<_>>().len(), 5);
        assert_eq!(each.lines().next(), Some(&*read(&tokens.one)));
    }
}
