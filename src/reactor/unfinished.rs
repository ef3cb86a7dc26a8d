//! The connections whose requests are not whole, counted by address. When the process is full, one of the address that has
//! most of them makes room, so an address that holds places with requests that never end loses its own.
//!
//! A connection is here if it has been read and is still in its handshake (`Listed::UNFINISHED`). Usually the whole request
//! comes with the first read, and the connection never is. Invariant: the count of an address is the number of its
//! connections here.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use crate::session::id::ConnId;

/// The unfinished handshakes. All operations cost O(log n) in their number.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// By address, and of each the oldest first, because generations count connections. When they wrap, after 2^24, a young
    /// connection is taken for an old one once.
    by_age: BTreeSet<(IpAddr, u32, u32)>,
    counts: HashMap<IpAddr, usize>,
    by_count: BTreeSet<(usize, IpAddr)>,
}

impl Unfinished {
    /// Adds a connection of `address`; it must not be here.
    pub(super) fn insert(&mut self, address: IpAddr, id: ConnId) {
        self.by_age.insert((address, id.generation, id.slot));
        let count = self.counts.entry(address).or_insert(0);
        *count += 1;
        self.by_count.remove(&(*count - 1, address));
        self.by_count.insert((*count, address));
    }

    /// Removes a connection that was added with `address`.
    pub(super) fn remove(&mut self, address: IpAddr, id: ConnId) {
        if !self.by_age.remove(&(address, id.generation, id.slot)) {
            return;
        }
        let Some(count) = self.counts.get_mut(&address) else {
            return;
        };
        self.by_count.remove(&(*count, address));
        *count -= 1;
        if *count > 0 {
            self.by_count.insert((*count, address));
        } else {
            self.counts.remove(&address);
        }
    }

    /// The oldest connection of the address that has most.
    pub(super) fn first_to_go(&self) -> Option<ConnId> {
        let (_, address) = self.by_count.last()?;
        let of_address = (*address, 0, 0)..=(*address, u32::MAX, u32::MAX);
        let (_, generation, slot) = *self.by_age.range(of_address).next()?;
        Some(ConnId { slot, generation })
    }

    /// How many connections are here.
    pub(super) fn len(&self) -> usize {
        self.by_age.len()
    }

    /// Gives back memory that is not in use.
    pub(super) fn shrink(&mut self) {
        self.counts.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_the_address_that_has_most_goes_first() {
        let mut unfinished = Unfinished::default();
        let address = |last| IpAddr::from([203, 0, 113, last]);
        let id = |generation| ConnId {
            slot: 100 - generation,
            generation,
        };
        let came = [1, 2, 2, 1, 2, 3, 1, 1];
        for (generation, last) in came.into_iter().enumerate() {
            unfinished.insert(address(last), id(generation as u32));
        }
        unfinished.remove(address(3), id(4));
        assert_eq!(unfinished.len(), came.len(), "it is not named so");
        let mut gone = Vec::new();
        while let Some(first) = unfinished.first_to_go() {
            let last = came[first.generation as usize];
            unfinished.remove(address(last), first);
            gone.push(first.generation);
        }
        // Four of the first, three of the second, one of the third; of equals the highest address goes first.
        assert_eq!(gone, [0, 1, 3, 2, 6, 5, 4, 7]);
        assert!(unfinished.counts.is_empty() && unfinished.by_count.is_empty());
    }
}
