//! How many connections there may be of one kind, an IP or an account, and how many there are: each from the moment when
//! its kind is known to its very end, so that neither those that do not finish their handshake nor those that do not
//! finish their close are beside the count.
//!
//! Invariants: without a bound nothing is counted, so nothing is kept; a kind without sessions is not kept either,
//! so the map is never longer than the table of connections. A place that was taken is given back exactly once.

use std::collections::HashMap;
use std::hash::Hash;

/// Sessions counted by what they have in common.
#[derive(Debug)]
pub struct Quota<K> {
    max: Option<usize>,
    taken: HashMap<K, usize>,
}

impl<K: Eq + Hash> Quota<K> {
    /// None taken. `max` of each kind; `None`: no bound.
    #[must_use]
    pub fn new(max: Option<usize>) -> Self {
        Self {
            max,
            taken: HashMap::new(),
        }
    }

    /// The bound, when there are as many of `key` as there may be, or more.
    #[must_use]
    pub fn full(&self, key: &K) -> Option<usize> {
        self.max.filter(|max| self.taken(key) >= *max)
    }

    /// Counts one more of `key`, also beyond the bound: who may not is for the caller to refuse.
    pub fn take(&mut self, key: K) {
        if self.max.is_some() {
            *self.taken.entry(key).or_insert(0) += 1;
        }
    }

    /// Counts one less of `key`, which was [taken](Quota::take).
    pub fn give_back(&mut self, key: &K) {
        if let Some(count) = self.taken.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.taken.remove(key);
            }
        }
    }

    /// How many there are of `key`; 0 also where nothing is counted.
    #[must_use]
    pub fn taken(&self, key: &K) -> usize {
        self.taken.get(key).copied().unwrap_or(0)
    }

    /// Kinds that something is counted for.
    #[must_use]
    pub fn kinds(&self) -> usize {
        self.taken.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_full_at_its_bound_and_forgotten_without_sessions() {
        let mut quota = Quota::new(Some(2));
        for (taken, full) in [(0, None), (1, None), (2, Some(2)), (3, Some(2))] {
            assert_eq!((quota.taken(&'a'), quota.full(&'a')), (taken, full));
            quota.take('a');
        }
        quota.take('b');
        assert_eq!((quota.full(&'b'), quota.kinds()), (None, 2));
        (0..4).for_each(|_| quota.give_back(&'a'));
        assert_eq!((quota.taken(&'a'), quota.kinds()), (0, 1));
    }

    #[test]
    fn without_a_bound_nothing_is_kept() {
        let mut quota = Quota::new(None);
        quota.take('a');
        assert_eq!((quota.full(&'a'), quota.kinds()), (None, 0));
        quota.give_back(&'a');
    }
}
