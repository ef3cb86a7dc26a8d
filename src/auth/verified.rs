//! JWTs that were verified, so that a session that comes again with one costs no signature.
//!
//! Invariants: at most [`VERIFIED_MAX`] are kept, and the oldest go first. None is good past its expiry. No token is kept
//! here.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::digest::Digest;
use super::identity::Identity;
use crate::limits::VERIFIED_MAX;

/// The identities of verified JWTs.
#[derive(Debug, Default)]
pub(super) struct Verified {
    known: HashMap<Digest, Arc<Identity>>,
    order: VecDeque<Digest>,
}

impl Verified {
    /// The identity of a JWT that is known and has not expired at `unix_now`.
    pub(super) fn get(&self, digest: &Digest, unix_now: u64) -> Option<&Arc<Identity>> {
        let known = self.known.get(digest)?;
        (!known.has_expired(unix_now)).then_some(known)
    }

    /// Keeps an identity. O(1) amortised.
    pub(super) fn keep(&mut self, digest: Digest, identity: Arc<Identity>) {
        match self.known.entry(digest) {
            Entry::Occupied(mut known) => {
                known.insert(identity);
            }
            Entry::Vacant(new) => {
                new.insert(identity);
                self.order.push_back(digest);
            }
        }
        if self.order.len() > VERIFIED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// Keeps only those for which `holds` is true. Linear.
    pub(super) fn retain(&mut self, holds: impl Fn(&Identity) -> bool) {
        self.known.retain(|_, identity| holds(identity));
        self.order.retain(|digest| self.known.contains_key(digest));
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}
