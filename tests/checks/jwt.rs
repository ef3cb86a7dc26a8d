//! The platform's signed tokens, and the files that they are checked by (PROTOCOL 7): the keys, and the account tree.
//!
//! Input: the text of a token, of a key file, or of an account tree; it is taken as each of them. Bytes that are no UTF-8
//! are replaced.
//!
//! Invariants: no token but the one that was signed is taken, and that one always with the same claims; what is taken has
//! the shape of a JWT; keys that are taken are the same with white space around them; every account of a tree is within
//! itself, and no two accounts are within each other.

use std::path::Path;

use blackhole::account::AccountId;
use blackhole::auth::accounts::{Accounts, AccountsError};
use blackhole::auth::jwt::{KeyText, Keys, Refusal, Rules, has_shape, verify};

const KEY: &str = include_str!("../fixtures/system_key.pem");
/// Signed with that key.
const SIGNED: &str = include_str!("../fixtures/system_token.jwt");
/// Before the token expires.
const NOW: u64 = 1_700_000_000;

/// See the module's page.
pub fn check(data: &[u8]) -> String {
    let text = String::from_utf8_lossy(data);
    let token = check_token(&text);
    let others: Vec<String> = check_keys(&text)
        .into_iter()
        .chain(check_tree(&text))
        .collect();
    if others.is_empty() {
        token
    } else {
        others.concat()
    }
}

fn keys(text: &str) -> Result<Keys, String> {
    Keys::parse(Path::new("file"), &KeyText::File(text.to_owned())).map_err(|error| error.problem)
}

fn check_token(token: &str) -> String {
    let keys = keys(KEY).expect("a good key");
    let token = token.trim_ascii_end();
    match verify(token, &keys, &Rules::new("kazoo", true), NOW) {
        Ok(claims) => {
            assert_eq!(token, SIGNED.trim_ascii_end(), "only this is signed");
            assert!(has_shape(token) && keys.has(claims.key));
            assert_eq!(claims.expires, Some(2_000_000_030));
            "taken".to_owned()
        }
        Err(refusal) => {
            assert_ne!(token, SIGNED.trim_ascii_end());
            assert!(
                !matches!(refusal, Refusal::UnknownKey { .. }),
                "one key serves every id"
            );
            refusal.label().to_owned()
        }
    }
}

/// `None`: no keys.
fn check_keys(text: &str) -> Option<String> {
    let read = keys(text).ok()?;
    assert!(!read.is_empty());
    let same = keys(&format!("\n{text}\n")).expect("white space around it");
    assert_eq!(read, same);
    Some("keys".to_owned())
}

/// `None`: no object of accounts.
fn check_tree(text: &str) -> Option<String> {
    let names = || {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
        object
            .keys()
            .map(|name| AccountId::parse(name))
            .collect::<Option<Vec<_>>>()
    };
    match Accounts::parse(Path::new("file"), text) {
        Ok(tree) => {
            let names = names().expect("an object whose names are accounts");
            assert_eq!(tree.len(), names.len(), "no account is there twice");
            assert!(
                names
                    .iter()
                    .all(|account| tree.is_within(*account, *account))
            );
            for one in names.iter().take(10) {
                for other in names.iter().take(10).filter(|other| *other != one) {
                    assert!(!(tree.is_within(*one, *other) && tree.is_within(*other, *one)));
                }
            }
            Some("tree".to_owned())
        }
        Err(AccountsError::Account { line, .. }) => {
            assert!(line <= 1 + text.matches('\n').count());
            Some("account refused".to_owned())
        }
        Err(AccountsError::File { .. } | AccountsError::Entry { .. }) => None,
    }
}
