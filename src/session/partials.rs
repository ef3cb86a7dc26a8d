//! How many bytes each connection keeps of a message, or of a request before the upgrade, that has arrived in part. When
//! all together are over their bound, or those of one address who have not authenticated are over theirs, the largest
//! goes first.
//!
//! Invariants: a connection is here while it keeps something; `bytes` is the sum over all of them, and that of an address
//! the sum over those that count for it. Memory: a few words for each.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use super::id::ConnId;
use crate::limits::{PARTIAL_MESSAGES_PER_ADDRESS_MAX, PARTIAL_OVERHEAD_BYTES_MAX};

/// What has arrived in part, by connection. All operations cost O(log n) in the number of connections that keep something.
#[derive(Debug)]
pub struct Partials {
    bytes_max: usize,
    address_bytes_max: usize,
    kept: HashMap<ConnId, Kept>,
    all: Sizes,
    addresses: HashMap<IpAddr, Sizes>,
    /// Addresses that went over their bound. Some may be within it again.
    over: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    /// What the session keeps.
    own: usize,
    /// What is kept beneath it, of a TLS record.
    beneath: usize,
    /// The address of a connection that has not authenticated, if it is known.
    address: Option<IpAddr>,
}

impl Kept {
    fn bytes(&self) -> usize {
        self.own + self.beneath
    }
}

/// Sizes and their sum.
#[derive(Debug, Default)]
struct Sizes {
    bytes: usize,
    by_size: BTreeSet<(usize, ConnId)>,
}

impl Sizes {
    fn insert(&mut self, bytes: usize, id: ConnId) {
        self.by_size.insert((bytes, id));
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize, id: ConnId) {
        if self.by_size.remove(&(bytes, id)) {
            self.bytes -= bytes;
        }
    }

    fn largest(&self) -> Option<ConnId> {
        self.by_size.last().map(|(_, id)| *id)
    }
}

impl Partials {
    /// Nothing. `bytes_max`: the bound of all together. An address has room for some messages of the largest size,
    /// whatever that is.
    #[must_use]
    pub fn new(bytes_max: usize, message_bytes_max: usize) -> Self {
        let of_one = message_bytes_max.saturating_add(PARTIAL_OVERHEAD_BYTES_MAX);
        let of_address = of_one.saturating_mul(PARTIAL_MESSAGES_PER_ADDRESS_MAX);
        Self::with_bounds(bytes_max, of_address)
    }

    /// The bounds: of all together, and of those of one address who have not authenticated.
    fn with_bounds(bytes_max: usize, address_bytes_max: usize) -> Self {
        Self {
            bytes_max,
            address_bytes_max,
            kept: HashMap::new(),
            all: Sizes::default(),
            addresses: HashMap::new(),
            over: Vec::new(),
        }
    }

    /// The session of a connection keeps so many bytes now. `address`: that of a connection that has not authenticated.
    pub fn set(&mut self, id: ConnId, bytes: usize, address: Option<IpAddr>) {
        let beneath = self.kept.get(&id).map_or(0, |kept| kept.beneath);
        self.put(
            id,
            Kept {
                own: bytes,
                beneath,
                address,
            },
        );
    }

    /// So many bytes are kept beneath the session of a connection; as [`Partials::set`].
    pub fn set_beneath(&mut self, id: ConnId, bytes: usize, address: Option<IpAddr>) {
        let own = self.kept.get(&id).map_or(0, |kept| kept.own);
        self.put(
            id,
            Kept {
                own,
                beneath: bytes,
                address,
            },
        );
    }

    fn put(&mut self, id: ConnId, kept: Kept) {
        self.remove(id);
        let (bytes, address) = (kept.bytes(), kept.address);
        if bytes == 0 {
            return;
        }
        self.kept.insert(id, kept);
        self.all.insert(bytes, id);
        if let Some(address) = address {
            let sizes = self.addresses.entry(address).or_default();
            sizes.insert(bytes, id);
            if sizes.bytes > self.address_bytes_max && !self.over.contains(&address) {
                self.over.push(address);
            }
        }
    }

    /// A connection keeps nothing any more.
    pub fn remove(&mut self, id: ConnId) {
        if self.kept.is_empty() {
            return;
        }
        let Some(kept) = self.kept.remove(&id) else {
            return;
        };
        let (bytes, address) = (kept.bytes(), kept.address);
        self.all.remove(bytes, id);
        if let Some(address) = address
            && let Some(sizes) = self.addresses.get_mut(&address)
        {
            sizes.remove(bytes, id);
            if sizes.by_size.is_empty() {
                self.addresses.remove(&address);
            }
        }
    }

    /// The connection that keeps most, while all together are over their bound, or of an address that is over its own. The
    /// caller closes it and [removes](Partials::remove) it.
    pub fn first_to_go(&mut self) -> Option<ConnId> {
        if self.all.bytes > self.bytes_max {
            return self.all.largest();
        }
        while let Some(address) = self.over.last() {
            let sizes = self.addresses.get(address);
            match sizes.filter(|sizes| sizes.bytes > self.address_bytes_max) {
                Some(sizes) => return sizes.largest(),
                None => self.over.pop(),
            };
        }
        None
    }

    /// Bytes kept by all together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.all.bytes
    }

    /// Gives back memory that is not in use.
    pub fn shrink(&mut self) {
        self.kept.shrink_to_fit();
        self.addresses.shrink_to_fit();
        self.over.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32) -> ConnId {
        ConnId {
            slot,
            generation: 7,
        }
    }

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 2));

    /// Who goes, until nobody has to.
    fn gone(partials: &mut Partials) -> Vec<u32> {
        let first = || {
            let id = partials.first_to_go()?;
            partials.remove(id);
            Some(id.slot)
        };
        std::iter::from_fn(first).collect()
    }

    #[test]
    fn the_largest_go_first_of_all_or_of_the_address_that_is_over_its_bound() {
        let mut partials = Partials::with_bounds(100, 30);
        for (slot, bytes, address) in [
            (1, 10, Some(ONE)),
            (2, 15, Some(ONE)),
            (3, 29, Some(OTHER)),
            (4, 40, None),
        ] {
            partials.set(id(slot), bytes, address);
            assert_eq!(gone(&mut partials), [0; 0], "{slot}");
        }
        assert_eq!(partials.bytes(), 94);
        // One more of the first address: its largest goes, and the others stay.
        partials.set(id(1), 16, Some(ONE));
        assert_eq!(gone(&mut partials), [1]);
        // Who authenticates counts for its address no more.
        partials.set(id(3), 29, None);
        partials.set(id(5), 30, Some(OTHER));
        assert_eq!(gone(&mut partials), [4], "all together");
        partials.set(id(5), 31, Some(OTHER));
        partials.set(id(6), 1, Some(OTHER));
        assert_eq!(gone(&mut partials), [5]);
        for slot in 1..=6 {
            partials.set(id(slot), 0, None);
        }
        assert_eq!(partials.bytes(), 0);
        assert!(partials.kept.is_empty() && partials.addresses.is_empty());
        assert!(partials.all.by_size.is_empty());
    }
}
