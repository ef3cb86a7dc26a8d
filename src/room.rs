//! The room that a table gives back as it empties: a storm makes a table large, and an allocator never makes it
//! smaller.
//!
//! One policy for all tables that nothing else shrinks: a table gives room back when it holds less than an eighth of
//! what it has room for, and then keeps room for twice of what it holds. So a removal costs amortised O(1), and a table
//! that shrank takes as many entries again before it grows. Where the density itself is the point, the storage has
//! factors of its own (`routing::arena`, `routing::index`, `session::outbox`).

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Entries that a table keeps room for however empty it is.
pub(crate) const ROOM_KEPT: usize = 64;

/// The room that a table of `len` entries, with room for `capacity`, is to shrink to; `None`: it keeps what it has.
pub(crate) fn room_wanted(len: usize, capacity: usize) -> Option<usize> {
    (capacity > ROOM_KEPT && len < capacity / 8).then_some(2 * len)
}

/// A table that gives room back.
pub(crate) trait GiveBackRoom {
    /// To be called after a removal. Amortised O(1).
    fn give_back_room(&mut self);
}

impl<K: Eq + Hash, V> GiveBackRoom for HashMap<K, V> {
    fn give_back_room(&mut self) {
        if let Some(room) = room_wanted(self.len(), self.capacity()) {
            self.shrink_to(room);
        }
    }
}

impl<T> GiveBackRoom for VecDeque<T> {
    fn give_back_room(&mut self) {
        if let Some(room) = room_wanted(self.len(), self.capacity()) {
            self.shrink_to(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_below_an_eighth_and_never_below_what_is_kept() {
        for (len, capacity, expected) in [
            (0, ROOM_KEPT, None),
            (0, ROOM_KEPT + 1, Some(0)),
            (100, 800, None),
            (99, 800, Some(198)),
        ] {
            assert_eq!(room_wanted(len, capacity), expected, "{len} of {capacity}");
        }
    }

    #[test]
    fn a_table_that_empties_shrinks_seldom_and_ends_small() {
        let mut table: HashMap<u32, u32> = (0..100_000).map(|number| (number, 0)).collect();
        let mut queue: VecDeque<u32> = (0..100_000).collect();
        let mut shrinks = [0, 0];
        for number in 0..100_000 {
            let before = [table.capacity(), queue.capacity()];
            table.remove(&number);
            table.give_back_room();
            queue.pop_front();
            queue.give_back_room();
            let now = [table.capacity(), queue.capacity()];
            for (shrinks, (before, now)) in shrinks.iter_mut().zip(before.iter().zip(now)) {
                // A hash map's capacity also moves by its tombstones, but never to a half.
                *shrinks += usize::from(now <= before / 2);
            }
        }
        assert!(
            shrinks.iter().all(|shrinks| (1..=10).contains(shrinks)),
            "{shrinks:?}"
        );
        assert!(table.capacity() <= 2 * ROOM_KEPT, "{}", table.capacity());
        assert!(queue.capacity() <= 2 * ROOM_KEPT, "{}", queue.capacity());
    }
}
