//! Client bindings and what they mean under the table of families (PROTOCOL 6).
//!
//! Input: one byte, of which bit 0 chooses account `*`, bit 1 a superduper admin, bit 2 the minute in which two months
//! are in force and bit 3 an account without a realm; then the client binding, up to a line end; then the realm.
//!
//! Invariants: an AMQP key has at most 255 bytes and only whole, escaped words; an event published under any key of a
//! subscription reaches that subscription; none published under the keys of another account with another realm does,
//! unless the family needs no account; an error's text is bounded.

use std::sync::OnceLock;

use blackhole::config::Style;
use blackhole::handoff::AmqpBinding;
use blackhole::protocol::event::EventHead;
use blackhole::routing::account::{AccountId, Scope};
use blackhole::routing::families::{
    BindingError, ECHO_BYTES_MAX, Families, FamilyOptions, FamilySpec, KEY_BYTES_MAX, KEYS_MAX,
    Resolved, Rights,
};
use blackhole::routing::index::{SubscriptionIndex, SubscriptionList};
use blackhole::routing::month::ActiveMonths;
use blackhole::routing::words::{WILDCARD, WORDS_MAX, escape_into, is_plain};

const ACCOUNT: [u8; 16] = [0x4b; 16];
const STRANGER: [u8; 16] = [0xe1; 16];
const STRANGERS_REALM: &str = "stranger.example.com";
const DECEMBER: u64 = 1_798_000_000; // 2026-12-23
const NEW_YEAR: u64 = 1_798_761_600; // 2027-01-01T00:00:00Z

/// An operator's own row with a list of words, beside the platform's.
const OPERATORS_ROW: &str = r#"{
    "name": "queue", "binding": "queue.{what}.{id...}", "exchange": "acdc", "exchange_type": "direct",
    "keys": ["acdc.{what}.{account}.{id}"], "words": {"what": ["joined", "left"]}
}"#;

/// See the module's page.
pub fn check(data: &[u8]) -> String {
    let Some((&choice, rest)) = data.split_first() else {
        return "nothing".to_owned();
    };
    let Ok(text) = std::str::from_utf8(rest) else {
        return "not text".to_owned();
    };
    let (binding, realm) = text.split_once('\n').unwrap_or((text, "r 1.example.com"));
    let scope_of = |account| match choice & 1 {
        0 => Scope::One(AccountId::from_bytes(account)),
        _ => Scope::Any,
    };
    let rights = Rights {
        superduper: choice & 2 != 0,
        realm: (choice & 8 == 0).then_some(realm),
    };
    let months = ActiveMonths::at(if choice & 4 == 0 { DECEMBER } else { NEW_YEAR });
    let families = families();
    let resolved = match families.resolve(binding, scope_of(ACCOUNT), rights) {
        Ok(resolved) => resolved,
        Err(error) => {
            assert!(error.to_string().len() <= 2 * ECHO_BYTES_MAX + 64);
            return match error {
                BindingError::NoSubscriptions => "no subscriptions".to_owned(),
                BindingError::InvalidFormat { .. } => "invalid format".to_owned(),
                BindingError::NotSupported(_) => "not supported".to_owned(),
                BindingError::Required(_) => "required".to_owned(),
            };
        }
    };
    assert_eq!(resolved.binding(), binding);
    let keys = keys_of(&resolved, months);
    check_keys(&keys, realm);
    let mut index = SubscriptionIndex::new();
    let mut list = SubscriptionList::default();
    index.subscribe(families, &mut list, 7, resolved, Style::Piston, None);
    let mut reaches = |key: &AmqpBinding, account| {
        let head = EventHead {
            account: Some(AccountId::from_bytes(account)),
            ..EventHead::default()
        };
        let mut found = 0;
        index.match_event(
            families,
            &key.exchange,
            &key.key,
            &head,
            months,
            &mut |found_by| {
                assert_eq!(found_by.members.collect::<Vec<_>>(), [7]);
                assert_eq!(found_by.subscribed_key, binding);
                found += 1;
            },
        );
        found > 0
    };
    for key in &keys {
        assert!(reaches(&published(key), ACCOUNT), "not reached by {key:?}");
    }
    let is_open = binding.starts_with("conference.command.");
    if resolved.scope() != Scope::Any && realm != STRANGERS_REALM && !is_open {
        let strangers = Rights {
            realm: Some(STRANGERS_REALM),
            ..rights
        };
        let resolved = families.resolve(binding, scope_of(STRANGER), strangers);
        // Its keys may be too long where ours are not, as its realm is another.
        for key in resolved
            .map(|resolved| keys_of(&resolved, months))
            .unwrap_or_default()
        {
            assert!(
                !reaches(&published(&key), STRANGER),
                "sees a stranger's {key:?}"
            );
        }
    }
    index.remove_all(&mut list, &mut |_| {});
    assert_eq!(
        index.counts(),
        SubscriptionIndex::new().counts(),
        "nothing is left"
    );
    match resolved.scope() {
        Scope::Any => "for every account".to_owned(),
        Scope::One(_) => binding.split('.').next().unwrap_or_default().to_owned(),
    }
}

fn families() -> &'static Families {
    static FAMILIES: OnceLock<Families> = OnceLock::new();
    FAMILIES.get_or_init(|| {
        let row: FamilySpec = serde_json::from_str(OPERATORS_ROW).expect("a valid row");
        Families::new(&FamilyOptions {
            families: vec![row],
            ..FamilyOptions::default()
        })
        .expect("a valid table")
    })
}

fn keys_of(resolved: &Resolved<'_>, months: ActiveMonths) -> Vec<AmqpBinding> {
    let mut keys = Vec::new();
    families().amqp_bindings(resolved, months, &mut keys);
    keys
}

fn check_keys(keys: &[AmqpBinding], realm: &str) {
    assert!(!keys.is_empty() && keys.len() <= 2 * KEYS_MAX);
    let mut escaped_realm = String::new();
    escape_into(realm, &mut escaped_realm);
    for (index, AmqpBinding { exchange, key }) in keys.iter().enumerate() {
        assert!(key.len() <= KEY_BYTES_MAX, "{} bytes: {key}", key.len());
        assert!(families().exchanges().any(|known| known.name == *exchange));
        assert!(
            !keys[..index].iter().any(|other| other.key == *key),
            "{key} comes twice"
        );
        assert!(key.split('.').count() <= WORDS_MAX);
        for word in key.split('.') {
            let is_escaped = |byte| is_plain(byte) || matches!(byte, b'+' | b'%');
            let is_whole = !word.is_empty() && word.bytes().all(is_escaped);
            assert!(is_whole || word == WILDCARD, "the word {word} of {key}");
        }
    }
}

/// The key with something in the place of every wildcard, as a publisher would have it.
fn published(binding: &AmqpBinding) -> AmqpBinding {
    let words: Vec<&str> = binding
        .key
        .split('.')
        .map(|word| if word == WILDCARD { "x" } else { word })
        .collect();
    AmqpBinding {
        key: words.join(".").into(),
        ..binding.clone()
    }
}
