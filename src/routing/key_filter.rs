//! The keys that somebody who looks may name, which events they mean, and the AMQP bindings that bring those events.
//!
//! A key is a client binding (`call.CHANNEL_CREATE.*`), an AMQP key (`fax.status.ACCOUNT.*`), or may be read as both: then it
//! means both. In either `*` is one word. A key that no family knows is refused with the nearest binding's name.

use std::sync::Arc;

use super::amqp_binding::AmqpBinding;
use super::families::{ECHO_BYTES_MAX, Families, KEY_BYTES_MAX, Resolved, RuleId};
use super::month::ActiveMonths;
use super::nearness::{EventKey, Nearness};
use super::words::{self, WILDCARD, WILDCARD_REST, WORDS_MAX};
use crate::account::{AccountId, Scope};

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
#[error("no family knows the key `{key}`; the nearest is `{nearest}`")]
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
                key: key.get(..key.floor_char_boundary(ECHO_BYTES_MAX)).unwrap_or_default().into(),
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
            || self.amqp.iter().any(|(exchange, _)| **exchange == *event.exchange())
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
            let is_there = |known: &AmqpBinding| known.exchange == *exchange && *known.key == *self.key;
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
    /// Appends the AMQP bindings that bring all events of an account, each once: of every family that is on, its widest keys
    /// that name the account or its realm; where no key can, its widest keys, which bring the events of other accounts too.
    /// Families whose events are for whoever knows an id are left out. Linear in the rules.
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
fn rules_with_key<'f>(families: &'f Families, key: &str) -> Vec<(RuleId, Arc<str>)> {
    let mut key_words = [""; WORDS_MAX];
    let Some(key_words) = words::split(key, &mut key_words) else {
        return Vec::new();
    };
    if key.len() > KEY_BYTES_MAX || key_words.iter().any(|word| matches!(*word, "" | WILDCARD_REST)) {
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
    let key = key.get(..key.floor_char_boundary(ECHO_BYTES_MAX)).unwrap_or_default();
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
