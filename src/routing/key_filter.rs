//! The keys that somebody who looks may name, which events they mean, and the AMQP bindings that bring those events.
//!
//! A key is a client binding (`call.CHANNEL_CREATE.*`), an AMQP key (`fax.status.ACCOUNT.*`), or may be read as both: then
//! it means both. In either `*` is one word. A key that no family knows is refused with the nearest binding's name.

use std::sync::Arc;

use super::amqp_binding::AmqpBinding;
use super::families::{ECHO_BYTES_MAX, Families, KEY_BYTES_MAX, Resolved, RuleId};
use super::month::ActiveMonths;
use super::nearness::{EventKey, Nearness};
use super::words::{self, WILDCARD, WILDCARD_REST, WORDS_MAX};
use crate::account::{AccountId, Scope};
use crate::printable::printable;

/// A key that a family knows.
#[derive(Clone, Debug)]
pub struct KeyFilter {
    key: Box<str>,
    /// As a client binding.
    client: Option<Client>,
    /// As an AMQP key: the exchanges that it is of, each once, and a rule there.
    amqp: Vec<(Arc<str>, RuleId)>,
}

#[derive(Clone, Debug)]
struct Client {
    rule: RuleId,
    scope: Scope,
    realm: Option<Box<str>>,
}

/// A key that no family knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no family knows the key `{}`; the nearest is `{nearest}`", printable(.key))]
pub struct UnknownKey {
    /// The key, cut to [`ECHO_BYTES_MAX`].
    pub key: Box<str>,
    /// The client binding that is written most alike.
    pub nearest: Box<str>,
}

impl KeyFilter {
    /// Reads a key. `account`: the events of this account only, whose SIP realm is `realm` if that is known. Linear in the
    /// rules; for a key that is refused, in all client bindings.
    ///
    /// # Errors
    /// No family knows it, whether on or off.
    pub fn new(
        families: &Families,
        key: &str,
        account: Option<AccountId>,
        realm: Option<&str>,
    ) -> Result<Self, UnknownKey> {
        let scope = account.map_or(Scope::Any, Scope::One);
        let resolved = families
            .resolve_for_a_look(key, scope, realm)
            .or_else(|_| families.resolve_for_a_look(key, Scope::Any, realm));
        let client = resolved.ok().map(|resolved| Client {
            rule: resolved.rule,
            scope: resolved.scope,
            realm: resolved.realm.map(Box::from),
        });
        let mut amqp: Vec<(Arc<str>, RuleId)> = Vec::new();
        for (id, exchange) in rules_with_key(families, key) {
            // Of several rules of an exchange, one that is on speaks for all.
            match amqp.iter_mut().find(|(known, _)| *known == exchange) {
                None => amqp.push((exchange, id)),
                Some((_, known)) if !families.rule(*known).is_on => *known = id,
                Some(_) => {}
            }
        }
        if client.is_none() && amqp.is_empty() {
            return Err(UnknownKey {
                key: key
                    .get(..key.floor_char_boundary(ECHO_BYTES_MAX))
                    .unwrap_or_default()
                    .into(),
                nearest: nearest(families, key),
            });
        }
        Ok(Self {
            key: key.into(),
            client,
            amqp,
        })
    }

    /// The key as it was given.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether an event is meant, whether its family is on or off. Linear in the forms of the rule, and in the words.
    #[must_use]
    pub fn fits(&self, families: &Families, event: &EventKey<'_>, months: ActiveMonths) -> bool {
        let is_client = self.resolved().is_some_and(|resolved| {
            families.nearness_on_or_off(&resolved, event, months) == Nearness::Fits
        });
        is_client
            || self
                .amqp
                .iter()
                .any(|(exchange, _)| **exchange == *event.exchange())
                && is_like(&self.key, event.words())
    }

    /// Appends the AMQP bindings that bring the events meant, each once: those of families that are on.
    pub fn amqp_bindings(
        &self,
        families: &Families,
        months: ActiveMonths,
        out: &mut Vec<AmqpBinding>,
    ) {
        if let Some(resolved) = self.resolved().filter(|resolved| families.is_on(resolved)) {
            families.amqp_bindings(&resolved, months, out);
        }
        for (exchange, rule) in &self.amqp {
            let is_there =
                |known: &AmqpBinding| known.exchange == *exchange && *known.key == *self.key;
            if families.rule(*rule).is_on && !out.iter().any(is_there) {
                out.push(AmqpBinding {
                    exchange: exchange.clone(),
                    key: (&*self.key).into(),
                });
            }
        }
    }

    fn resolved(&self) -> Option<Resolved<'_>> {
        let Client { rule, scope, realm } = self.client.as_ref()?;
        Some(Resolved {
            rule: *rule,
            scope: *scope,
            binding: &self.key,
            realm: realm.as_deref(),
            shared: None,
            is_behind: false,
        })
    }
}

impl Families {
    /// Appends the AMQP bindings that bring all events of an account, each once: of every family that is on, its widest
    /// keys that name the account or its realm; where no key can, its widest keys, which bring the events of other accounts
    /// too. Families whose events are for whoever knows an id are left out. Linear in the rules.
    pub fn account_bindings(
        &self,
        account: AccountId,
        realm: Option<&str>,
        months: ActiveMonths,
        out: &mut Vec<AmqpBinding>,
    ) {
        for rule in self.rules().iter().filter(|rule| rule.is_on) {
            for month in months.iter() {
                rule.widest_keys(account, realm, month, |key| {
                    let is_there =
                        |known: &AmqpBinding| known.exchange == rule.exchange && *known.key == *key;
                    if key.len() <= KEY_BYTES_MAX && !out.iter().any(is_there) {
                        out.push(AmqpBinding {
                            exchange: rule.exchange.clone(),
                            key: key.into(),
                        });
                    }
                });
            }
        }
    }

    /// The modules whose families are off, each once, in the order of their rows.
    #[must_use]
    pub fn stopped(&self) -> Vec<&str> {
        let mut stopped = Vec::new();
        for rule in self.rules().iter().filter(|rule| !rule.is_on) {
            if !stopped.contains(&&*rule.module) {
                stopped.push(&*rule.module);
            }
        }
        stopped
    }
}

/// The rules that have a form of which the AMQP key is, with their exchanges.
fn rules_with_key(families: &Families, key: &str) -> Vec<(RuleId, Arc<str>)> {
    let mut key_words = [""; WORDS_MAX];
    let Some(key_words) = words::split(key, &mut key_words) else {
        return Vec::new();
    };
    if key.len() > KEY_BYTES_MAX
        || key_words
            .iter()
            .any(|word| matches!(*word, "" | WILDCARD_REST))
    {
        return Vec::new();
    }
    let rules = families.rules().iter().enumerate();
    rules
        .filter(|(_, rule)| rule.forms.iter().any(|form| rule.has_key(form, key_words)))
        .map(|(row, rule)| (RuleId::of(row), rule.exchange.clone()))
        .collect()
}

/// Whether the words are those of the key, in which `*` is any word.
fn is_like(key: &str, words: &[&str]) -> bool {
    let mut key_words = key.split('.');
    let are_alike = words.iter().all(|word| {
        let key_word = key_words.next();
        key_word.is_some_and(|key_word| key_word == WILDCARD || key_word == *word)
    });
    are_alike && key_words.next().is_none()
}

/// The client binding that is written most alike.
fn nearest(families: &Families, key: &str) -> Box<str> {
    let key = key
        .get(..key.floor_char_boundary(ECHO_BYTES_MAX))
        .unwrap_or_default();
    let mut best = (usize::MAX, Box::default());
    for rule in families.rules() {
        rule.client_bindings(|binding| {
            let distance = strsim::damerau_levenshtein(key, binding);
            if distance < best.0 {
                best = (distance, binding.into());
            }
        });
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventHead;
    use crate::routing::families::FamilyOptions;

    const NOVEMBER: u64 = 1_795_425_948; // 2026-11
    const HEX: &str = "4b8c6fec4b2597882c0390202d195419";
    const DB: &str = "account%2F4b%2F8c%2F6fec4b2597882c0390202d195419";

    fn families() -> Families {
        Families::new(&FamilyOptions::default()).expect("the platform's families")
    }

    fn bindings(fill: impl FnOnce(ActiveMonths, &mut Vec<AmqpBinding>)) -> Vec<String> {
        let mut out = Vec::new();
        fill(ActiveMonths::at(NOVEMBER), &mut out);
        out.iter()
            .map(|one| format!("{} {}", one.exchange, one.key))
            .collect()
    }

    #[test]
    fn a_key_that_no_family_knows_is_told_in_one_line_that_steers_no_terminal() {
        let key = "a\r\nX: 1\u{1b}[2J\u{9b}";
        let error = KeyFilter::new(&families(), key, None, None).expect_err("no key");
        let told = error.to_string();
        assert!(told.contains("`a\\r\\nX: 1\\u{1b}[2J\\u{9b}`"), "{told}");
    }

    #[test]
    fn a_key_is_a_client_binding_or_an_amqp_key_or_both() {
        let families = families();
        let account = AccountId::parse(HEX);
        let monthly = format!("configuration doc_created.{DB}-202611.fax.*");
        for (key, account, realm, expected) in [
            (
                "call.CHANNEL_CREATE.*",
                None,
                None,
                vec!["callevt call.CHANNEL_CREATE.*"],
            ),
            (
                "call.CHANNEL_CREATE.a@b",
                None,
                None,
                vec![
                    "callevt call.CHANNEL_CREATE.a%40b",
                    "callevt call.CHANNEL_CREATE.a@b",
                ],
            ),
            (
                "fax.status.*",
                account,
                None,
                vec!["faxes fax.status.4b8c6fec4b2597882c0390202d195419.*"],
            ),
            (
                "fax.status.4b8c6fec4b2597882c0390202d195419.*",
                None,
                None,
                vec!["faxes fax.status.4b8c6fec4b2597882c0390202d195419.*"],
            ),
            ("fax.object.doc_created", account, None, vec![&*monthly]),
            (
                "presence.dialog.*",
                account,
                Some("a.b"),
                vec!["presence dialog.a%2Eb.*"],
            ),
            (
                "presence.dialog.*",
                account,
                None,
                vec!["presence dialog.*.*"],
            ),
            (
                "registration.success.a%2Eb.*",
                None,
                None,
                vec!["registrar registration.success.a%2Eb.*"],
            ),
        ] {
            let filter = KeyFilter::new(&families, key, account, realm).expect(key);
            let found = bindings(|months, out| filter.amqp_bindings(&families, months, out));
            assert_eq!(found, expected, "{key}");
        }
    }

    #[test]
    fn a_key_that_no_family_knows_is_refused_with_the_nearest_binding() {
        let families = families();
        for (key, nearest) in [
            ("call.CHANEL_CREATE.*", "call.CHANNEL_CREATE.*"),
            ("cal.CHANNEL_ANSWER.*", "call.CHANNEL_ANSWER.*"),
            ("object.doc_created.usr", "object.doc_created.user"),
            ("presence.dialogs.*", "presence.dialog.*"),
        ] {
            let error = KeyFilter::new(&families, key, None, None).expect_err(key);
            assert_eq!(&*error.nearest, nearest, "{key}");
        }
        for key in [
            "",
            "call.#",
            "*.*.*",
            "call.CHANNEL_CREATE..x",
            "conference.command.*",
        ] {
            let error = KeyFilter::new(&families, key, None, None).err();
            assert_eq!(error.is_some(), key != "conference.command.*", "{key}");
        }
        let long = "é".repeat(100_000);
        let error = KeyFilter::new(&families, &long, None, None).expect_err("no key is so long");
        assert!(error.to_string().len() < 400);
    }

    #[test]
    fn an_account_is_looked_at_by_the_widest_keys_that_name_it() {
        let families = families();
        let account = AccountId::parse(HEX).expect("32 hex characters");
        let found = bindings(|months, out| {
            families.account_bindings(account, Some("a.b"), months, out);
        });
        let of_calls = |one: &&String| one.starts_with("callevt call.");
        assert_eq!(found.iter().filter(of_calls).count(), 9, "{found:?}");
        let mut others: Vec<_> = found.iter().filter(|one| !of_calls(one)).cloned().collect();
        others.sort();
        assert_eq!(
            others,
            [
                format!("conference conference.event.*.{HEX}.*.*"),
                format!("configuration *.{DB}-202611.*.*"),
                format!("configuration *.{DB}-202611.fax.*"),
                format!("configuration *.{DB}.*.*"),
                format!("faxes fax.status.{HEX}.*"),
                "presence dialog.a%2Eb.*".to_owned(),
                "presence mwi_updates.a%2Eb.*".to_owned(),
                "presence update.a%2Eb.*".to_owned(),
                "registrar registration.success.a%2Eb.*".to_owned(),
            ]
        );
        let without = bindings(|months, out| {
            families.account_bindings(account, None, months, out);
        });
        assert!(
            !without
                .iter()
                .any(|one| one.contains("presence") || one.contains("registrar"))
        );
    }

    #[test]
    fn a_family_that_is_off_is_known_and_not_bound() {
        let mut families = families();
        families.switch_module("bh_call", false);
        assert_eq!(families.stopped(), ["bh_call"]);
        let filter = KeyFilter::new(&families, "call.*.*", None, None).expect("it is known");
        let found = bindings(|months, out| filter.amqp_bindings(&families, months, out));
        assert_eq!(found, Vec::<String>::new());
        let head = EventHead::default();
        let event = EventKey::new("callevt", "call.CHANNEL_CREATE.x", &head).expect("few words");
        assert!(filter.fits(&families, &event, ActiveMonths::at(NOVEMBER)));
        let other = EventKey::new("faxes", "call.CHANNEL_CREATE.x", &head).expect("few words");
        assert!(!filter.fits(&families, &other, ActiveMonths::at(NOVEMBER)));
    }
}
