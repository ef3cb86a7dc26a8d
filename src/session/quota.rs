//! How many connections of one kind, an IP or an account, there may be, and how many there are.
//!
//! Invariants: without a bound nothing is counted and nothing is kept. A kind of which there is none is not kept either,
//! so the map is never longer than the table of connections. What was taken is given back exactly once.

use std::collections::HashMap;
use std::hash::Hash;

/// A bound for each kind, and how much of it is taken.
///
/// ```
/// use blackhole::session::quota::Quota;
///
/// let mut quota = Quota::new(Some(1));
/// assert_eq!(quota.full(&"one"), None);
/// quota.take("one");
/// assert_eq!((quota.full(&"one"), quota.full(&"another")), (Some(1), None));
/// quota.give_back(&"one");
/// assert_eq!(quota.full(&"one"), None);
/// ```
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

    /// The bound, if there are as many of `key` as there may be, or more; `None`: there is room.
    #[must_use]
    pub fn full(&self, key: &K) -> Option<usize> {
        self.max.filter(|max| self.taken(key) >= *max)
    }

    /// Counts one more of `key`, even beyond the bound: to refuse is up to the caller.
    pub fn take(&mut self, key: K) {
        if self.max.is_some() {
            *self.taken.entry(key).or_insert(0) += 1;
        }
    }

    /// Counts one less of `key`, which was [taken](Quota::take) before.
    pub fn give_back(&mut self, key: &K) {
        if let Some(count) = self.taken.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.taken.remove(key);
            }
        }
    }

    /// How many of `key` are taken; 0 also where nothing is counted.
    #[must_use]
    pub fn taken(&self, key: &K) -> usize {
        self.taken.get(key).copied().unwrap_or(0)
    }

    /// How many kinds something is counted for.
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
