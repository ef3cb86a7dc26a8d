//! What a subscription and an event are found by: the hash of a rule, a shape, a qualifier and words.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::routing::families::{Rule, RuleId, VARIABLES_MAX};
use crate::routing::words::WORDS_MAX;

/// The bit of a shape that says: any account. The bits below are the variables that are `*`.
pub(super) const ANY_SCOPE: u8 = 1 << VARIABLES_MAX;

/// Hashes of an event's words, each made when first needed.
pub(super) struct WordHashes<'s> {
    pub(super) seed: &'s RandomState,
    /// Bit `n`: the hash of word `n` is there.
    pub(super) known: u16,
    pub(super) hashes: [u64; WORDS_MAX],
}

impl WordHashes<'_> {
    pub(super) fn of(&mut self, words: &[&str], at: usize) -> u64 {
        const { assert!(WORDS_MAX <= u16::BITS as usize) };
        if self.known & 1 << at == 0 {
            self.known |= 1 << at;
            self.hashes[at] = self.seed.hash_one(words[at]);
        }
        self.hashes[at]
    }
}

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
    (hash ^ hash >> 32) as u32
}

/// What is mixed in is a keyed hash already where a client chooses it; this only has to keep the order.
pub(super) fn mix(hash: u64, next: u64) -> u64 {
    (hash.rotate_left(23) ^ next).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

pub(super) fn halves(bytes: &[u8; 16]) -> [u64; 2] {
    let number = u128::from_le_bytes(*bytes);
    [number as u64, (number >> 64) as u64]
}
