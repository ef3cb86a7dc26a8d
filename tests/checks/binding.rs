//! Client bindings and what they mean under the table of families (PROTOCOL 6).
//!
//! Input: one byte, of which bit 0 chooses account `*`, bit 1 a superduper admin, bit 2 the minute in which two months
//! are in force and bit 3 an account without a realm; then the client binding, up to a line end; then the realm.
//!
//! Invariants: an AMQP key has at most 255 bytes and only whole, escaped words, or a literal of its family; an event
//! published under any key of a subscription reaches that subscription, once; none published under the keys of another
//! account with another realm does, unless the family needs no account; an error's text is bounded.

use std::sync::OnceLock;

use blackhole::account::{AccountId, Scope};
use blackhole::event::{EventHead, Style};
use blackhole::routing::amqp_binding::AmqpBinding;
use blackhole::routing::families::{
    AccountSource, BindingError, ECHO_BYTES_MAX, Families, FamilyOptions, FamilySpec,
    KEY_BYTES_MAX, KEYS_MAX, Resolved, Rights,
};
use blackhole::routing::index::{SubscriptionIndex, SubscriptionList};
use blackhole::routing::month::ActiveMonths;
use blackhole::routing::words::{WILDCARD, WILDCARD_REST, WORDS_MAX, is_plain};

const ACCOUNT: [u8; 16] = [0x4b; 16];
const STRANGER: [u8; 16] = [0xe1; 16];
const STRANGERS_REALM: &str = "stranger.example.com";
pub(crate) const DECEMBER: u64 = 1_798_000_000; // 2026-12-23
pub(crate) const NEW_YEAR: u64 = 1_798_761_600; // 2027-01-01T00:00:00Z

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
    let asked = Asked {
        binding,
        realm: (choice & 8 == 0).then_some(realm),
        any_account: choice & 1 != 0,
        superduper: choice & 2 != 0,
        months: ActiveMonths::at(if choice & 4 == 0 { DECEMBER } else { NEW_YEAR }),
    };
    match asked.check(families(), &[]) {
        Err(BindingError::NoSubscriptions) => "no subscriptions".to_owned(),
        Err(BindingError::InvalidFormat { .. }) => "invalid format".to_owned(),
        Err(BindingError::NotSupported(_)) => "not supported".to_owned(),
        Err(BindingError::Required(_)) => "required".to_owned(),
        Ok(Scope::Any) => "for every account".to_owned(),
        Ok(Scope::One(_)) => binding.split('.').next().unwrap_or_default().to_owned(),
    }
}

/// A client binding, and what it is asked for with.
pub(crate) struct Asked<'a> {
    pub(crate) binding: &'a str,
    pub(crate) realm: Option<&'a str>,
    /// For account `*`.
    pub(crate) any_account: bool,
    pub(crate) superduper: bool,
    pub(crate) months: ActiveMonths,
}

impl Asked<'_> {
    /// Checks the binding under a table of which `rows` are the operator's own that may be odd: with literals that no
    /// word of a client's is escaped to, or for no account.
    pub(crate) fn check(
        &self,
        families: &Families,
        rows: &[FamilySpec],
    ) -> Result<Scope, BindingError> {
        let Self {
            binding,
            realm,
            months,
            ..
        } = *self;
        let scope_of = |account| {
            if self.any_account {
                Scope::Any
            } else {
                Scope::One(AccountId::from_bytes(account))
            }
        };
        let rights = Rights {
            superduper: self.superduper,
            realm,
        };
        let resolved = families
            .resolve(binding, scope_of(ACCOUNT), rights)
            .inspect_err(|error| assert!(is_bounded(error, rows), "{error}"))?;
        assert_eq!(resolved.binding(), binding);
        let keys = keys_of(families, &resolved, months);
        check_keys(families, rows, &keys);
        let mut index = SubscriptionIndex::new();
        let mut list = SubscriptionList::default();
        index.subscribe(families, &mut list, 7, resolved, Style::Piston, None);
        let mut reached = |key: &AmqpBinding, account| {
            let head = EventHead {
                account: Some(AccountId::from_bytes(account)),
                ..EventHead::default()
            };
            let mut found = Vec::new();
            index.match_event(
                families,
                &key.exchange,
                &key.key,
                &head,
                months,
                &mut |found_by| {
                    assert_eq!(found_by.subscribed_key, binding);
                    found.push(found_by.group);
                },
            );
            for group in &found {
                let slots = index.members(*group).map(|member| member.slot);
                assert_eq!(slots.collect::<Vec<_>>(), [7]);
            }
            found.len()
        };
        for key in &keys {
            assert_eq!(reached(&published(key), ACCOUNT), 1, "reached by {key:?}");
        }
        let is_open = binding.starts_with("conference.command.")
            || rows.iter().any(|row| row.account == AccountSource::None);
        if resolved.scope() != Scope::Any && realm != Some(STRANGERS_REALM) && !is_open {
            let strangers = Rights {
                realm: Some(STRANGERS_REALM),
                ..rights
            };
            let resolved = families.resolve(binding, scope_of(STRANGER), strangers);
            // Its keys may be too long where ours are not, as its realm is another.
            for key in resolved
                .map(|resolved| keys_of(families, &resolved, months))
                .unwrap_or_default()
            {
                let key = published(&key);
                assert_eq!(reached(&key, STRANGER), 0, "sees a stranger's {key:?}");
            }
        }
        index.remove_all(&mut list, &mut |_| {});
        assert_eq!(
            index.counts(),
            SubscriptionIndex::new().counts(),
            "nothing is left"
        );
        Ok(resolved.scope())
    }
}

/// Whether an error's text is no longer than what it repeats of a client's; an operator's is what it is.
fn is_bounded(error: &BindingError, rows: &[FamilySpec]) -> bool {
    let operators = rows.iter().flat_map(|row| row.required.values());
    error.to_string().len() <= 2 * ECHO_BYTES_MAX + 64
        || operators.into_iter().any(|text| *text == error.to_string())
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

fn keys_of(families: &Families, resolved: &Resolved<'_>, months: ActiveMonths) -> Vec<AmqpBinding> {
    let mut keys = Vec::new();
    families.amqp_bindings(resolved, months, &mut keys);
    keys
}

fn check_keys(families: &Families, rows: &[FamilySpec], keys: &[AmqpBinding]) {
    assert!(!keys.is_empty() && keys.len() <= 2 * KEYS_MAX);
    let literals = rows.iter().flat_map(|row| &row.keys);
    let literals: Vec<&str> = literals.flat_map(|key| key.split('.')).collect();
    for (index, AmqpBinding { exchange, key }) in keys.iter().enumerate() {
        assert!(key.len() <= KEY_BYTES_MAX, "{} bytes: {key}", key.len());
        assert!(families.exchanges().any(|known| known.name == *exchange));
        assert!(
            !keys[..index].iter().any(|other| other.key == *key),
            "{key} comes twice"
        );
        assert!(key.split('.').count() <= WORDS_MAX);
        let may_be_unescaped = key.starts_with("conference.command.")
            || rows.iter().any(|row| !row.unescaped.is_empty());
        for word in key.split('.') {
            if may_be_unescaped {
                assert!(!word.is_empty() && word != WILDCARD_REST, "{key}");
                continue;
            }
            let is_escaped = |byte| is_plain(byte) || matches!(byte, b'+' | b'%');
            let is_whole = !word.is_empty() && word.bytes().all(is_escaped);
            assert!(
                is_whole || word == WILDCARD || literals.contains(&word),
                "the word {word} of {key}"
            );
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
