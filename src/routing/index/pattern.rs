//! What subscriptions and events are found by: the hash of a pattern, which is a rule, a shape, a qualifier and words.
//!
//! A *shape* is the set of a pattern's wildcards. Invariant: the pattern of a subscription and the one that an event is
//! looked up by have the same hash when the subscription wants the event under that shape. Hashes are seeded, because
//! clients choose the words.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::account::Scope;
use crate::routing::families::{
    Families, Qualification, Qualifier, Resolved, Rule, RuleId, VARIABLES_MAX,
};
use crate::routing::table::low_half;
use crate::routing::words::{self, WORDS_MAX};

/// The bit of a shape that means any account. The bits below are the variables that are `*`.
pub(super) const ANY_SCOPE: u8 = 1 << VARIABLES_MAX;

/// Hashes patterns.
#[derive(Debug)]
pub(super) struct PatternHasher {
    seed: RandomState,
}

impl PatternHasher {
    pub(super) fn new(seed: RandomState) -> Self {
        Self { seed }
    }

    /// The hash and the shape of a subscription's pattern.
    pub(super) fn subscription(&self, families: &Families, resolved: &Resolved<'_>) -> (u32, u8) {
        let rule = families.rule(resolved.rule);
        let variables = families.variables(resolved);
        let escaped_hash = |word: &str| {
            let mut escaped = String::with_capacity(word.len());
            words::escape_into(word, &mut escaped);
            self.seed.hash_one(&*escaped)
        };
        let any = if resolved.scope == Scope::Any {
            ANY_SCOPE
        } else {
            0
        };
        let shape = rule.wildcards(&variables) | any;
        let qualifier_hash = match (rule.qualification, resolved.scope) {
            (_, Scope::Any) => None,
            (Qualification::Account, Scope::One(account)) => {
                Some(self.qualifier(&Qualifier::Account(account)))
            }
            (Qualification::Realm, Scope::One(_)) => resolved.realm.map(escaped_hash),
            (Qualification::None, Scope::One(_)) => Some(self.qualifier(&Qualifier::None)),
        };
        let words = named_variables(rule, shape).map(|variable| {
            let mut word = String::with_capacity(variables[variable].len());
            rule.push_key_word(variable, variables[variable], &mut word);
            self.seed.hash_one(&*word)
        });
        (
            pattern_hash(resolved.rule, shape, qualifier_hash, words),
            shape,
        )
    }

    /// The hash of what qualifies an event.
    pub(super) fn qualifier(&self, qualifier: &Qualifier<'_>) -> u64 {
        match qualifier {
            Qualifier::Account(account) => self.seed.hash_one(account.bytes()),
            Qualifier::Realm(word) => self.seed.hash_one(word),
            Qualifier::None => 0,
        }
    }

    /// The hashes of an event's words.
    pub(super) fn words<'s>(&'s self, words: &'s [&'s str]) -> WordHashes<'s> {
        WordHashes {
            seed: &self.seed,
            words,
            known: 0,
            hashes: [0; WORDS_MAX],
        }
    }
}

/// The hashes of an event's words, each made when it is first needed.
pub(super) struct WordHashes<'s> {
    seed: &'s RandomState,
    words: &'s [&'s str],
    /// Bit `n`: the hash of word `n` is there.
    known: u16,
    hashes: [u64; WORDS_MAX],
}

impl WordHashes<'_> {
    #[expect(
        clippy::indexing_slicing,
        reason = "the event fits the form that `at` is of, so it has as many words"
    )]
    pub(super) fn of(&mut self, at: usize) -> u64 {
        const { assert!(WORDS_MAX <= u16::BITS as usize) };
        if self.known & 1 << at == 0 {
            self.known |= 1 << at;
            self.hashes[at] = self.seed.hash_one(self.words[at]);
        }
        self.hashes[at]
    }
}

/// The variables that are not `*` in a shape.
pub(super) fn named_variables(rule: &Rule, shape: u8) -> impl Iterator<Item = usize> + use<> {
    (0..rule.variable_count()).filter(move |variable| shape & 1 << variable == 0)
}

/// `qualifier_hash` counts for shapes of one account only; `words` are the hashes of the named words.
pub(super) fn pattern_hash(
    rule: RuleId,
    shape: u8,
    qualifier_hash: Option<u64>,
    words: impl Iterator<Item = u64>,
) -> u32 {
    let start = mix(u64::from(rule.0) << 8 | u64::from(shape), 0);
    let qualifier = qualifier_hash.filter(|_| shape & ANY_SCOPE == 0);
    let hash = qualifier.into_iter().chain(words).fold(start, mix);
    low_half(hash ^ hash >> 32)
}

/// Mixes a word's hash into that of what came before it. Where a client chooses the word, its hash is keyed already:
/// only the order of the words must count here.
pub(super) fn mix(hash: u64, next: u64) -> u64 {
    (hash.rotate_left(23) ^ next).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
