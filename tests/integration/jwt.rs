//! Tokens and keys of another hand (PROTOCOL 7, `jwt`): PyJWT and OpenSSL make them when the test runs.

use std::path::Path;

use blackhole::auth::jwt::{self, Keys, Refusal, Rules, has_shape};
use blackhole::config::read_keys;
use support::tokens::Made;

const ACCOUNT: &str = "4b8c6fec4b2597882c0390202d195419";
const NOW: u64 = 1_700_000_000;

fn read(path: &Path) -> Keys {
    let text = read_keys(path).expect("readable");
    Keys::parse(path, &text).expect("good keys")
}

/// The expiry of a token that is taken, if it has one.
fn verify(token: &str, keys: &Keys, require_exp: bool) -> Result<Option<u64>, Refusal> {
    let claims = jwt::verify(token, keys, &Rules::new("kazoo", require_exp), NOW)?;
    assert_eq!(claims.account.to_string(), ACCOUNT);
    assert!(keys.has(claims.key));
    Ok(claims.expires)
}

#[test]
fn tokens_of_another_hand_are_judged_by_keys_of_another_hand() {
    let Some(made) = Made::as_of(NOW) else {
        return;
    };
    let unknown = |kid: &str| Err(Refusal::UnknownKey { kid: kid.into() });
    let in_time = Ok(Some(NOW + 90));
    // The same by one key and by a set of them; what differs comes after it.
    let judged = [
        ("rs256", in_time.clone()),
        ("rs384", in_time.clone()),
        ("rs512", in_time.clone()),
        ("signed by openssl", Ok(None)),
        ("without exp", Ok(None)),
        ("expired within the leeway", Ok(Some(NOW + 10))),
        ("early within the leeway", in_time.clone()),
        ("long", in_time.clone()),
        ("wrong key", Err(Refusal::Signature)),
        ("none", Err(Refusal::Algorithm)),
        ("rs256 without a signature", Err(Refusal::Signature)),
        ("hs256 by the public key", Err(Refusal::Algorithm)),
        ("hs256 by the public key, pkcs1", Err(Refusal::Algorithm)),
        ("rs256 in name, hmac in truth", Err(Refusal::Signature)),
        ("ps256", Err(Refusal::Algorithm)),
        ("too long", Err(Refusal::TooLong)),
        ("no account", Err(Refusal::Account)),
        ("no account id", Err(Refusal::Account)),
        ("no issuer", Err(Refusal::Issuer)),
        ("another issuer", Err(Refusal::Issuer)),
        ("expired", Err(Refusal::Expired)),
        ("not yet valid", Err(Refusal::NotYetValid)),
        ("a claim twice", Err(Refusal::Claims)),
        ("exp as text", Err(Refusal::Claims)),
        ("exp too large", Err(Refusal::Claims)),
        ("claims are no json", Err(Refusal::Claims)),
        ("critical header", Err(Refusal::Malformed)),
    ];
    let of_one_key = [
        ("no kid", in_time.clone()),
        ("unknown kid", in_time.clone()),
        ("wrong kid", in_time.clone()),
        ("of the other key", Err(Refusal::Signature)),
        ("of the other key, rs512", Err(Refusal::Signature)),
    ];
    let of_a_set = [
        ("no kid", Err(Refusal::KeyIdMissing)),
        ("unknown kid", unknown("unknown")),
        ("wrong kid", Err(Refusal::Signature)),
        ("of the other key", in_time.clone()),
        ("of the other key, rs512", in_time.clone()),
    ];
    assert_eq!(
        judged.len() + of_a_set.len(),
        made.count(),
        "every token is judged"
    );
    for (source, more) in [
        ("pkcs1.pem", &of_one_key),
        ("spki.pem", &of_one_key),
        ("keys", &of_a_set),
        ("jwks.json", &of_a_set),
    ] {
        let keys = read(&made.path(source));
        for (name, expected) in judged.iter().chain(more) {
            let verdict = verify(made.token(name), &keys, false);
            assert_eq!(verdict, *expected, "{name}, by {source}");
            assert!(has_shape(made.token(name)), "{name}");
        }
        assert_eq!(
            verify(made.token("without exp"), &keys, true),
            Err(Refusal::NoExpiry)
        );
        assert_eq!(verify(made.token("rs256"), &keys, true), in_time);
    }
}

#[test]
fn a_token_that_is_cut_or_misspelt_is_refused() {
    let Some(made) = Made::as_of(NOW) else {
        return;
    };
    let keys = read(&made.path("spki.pem"));
    let token = made.token("rs256");
    for length in 0..token.len() {
        assert!(
            verify(&token[..length], &keys, false).is_err(),
            "{length} bytes"
        );
    }
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, signature] = parts[..] else {
        panic!("three parts");
    };
    for wrong in [
        format!("{header}.{claims}.{signature}="),
        format!("{header}.{claims}.{signature}A"),
        format!("{header}.{claims}.{signature}.{signature}"),
        format!("{header}=.{claims}.{signature}"),
        format!("{header}.{claims}.{}", signature.replace(['-', '_'], "+")),
        format!("{header}.{claims}.\u{e9}"),
        format!("{header}.{claims}\n.{signature}"),
        format!(" {token}"),
        format!("{claims}.{header}.{signature}"),
        format!("Bearer {token}"),
    ] {
        assert!(verify(&wrong, &keys, false).is_err(), "{wrong}");
    }
}
