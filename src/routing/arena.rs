//! A growable array whose places have 4-byte ids and are used again.
//!
//! An arena grows by a sixteenth, not by doubling: with a million entries, the unused half of an array would cost more
//! than some of the entries' own fields. It gives memory back after a storm: when fewer than a quarter of the places
//! are in use, and at each halving from there, the vacant places at the end are freed, and the lowest vacant places are
//! used first from then on. Both cost amortised O(1) a change.
//!
//! Invariants: a place in use never moves, so one at the very end keeps all before it; the vacant places form a list.

use std::ops::{Index, IndexMut};

/// No id.
pub(super) const NONE: u32 = u32::MAX;

/// An arena with at most this many places gives none back.
const PLACES_KEPT_MAX: usize = 64;

/// What an [`Arena`] holds: one value of it says that the place is vacant.
pub(super) trait Place {
    /// A vacant place that remembers the next vacant one.
    fn vacant(next: u32) -> Self;
    /// What [`Place::vacant`] was given, or `None` for a place in use.
    fn next_vacant(&self) -> Option<u32>;
}

/// The array.
#[derive(Debug)]
pub(super) struct Arena<T> {
    places: Vec<T>,
    first_vacant: u32,
    live: usize,
    /// Places are given back when fewer than this are in use.
    shrink_below: usize,
}

impl<T: Place> Arena<T> {
    pub(super) fn new() -> Self {
        Self {
            places: Vec::new(),
            first_vacant: NONE,
            live: 0,
            shrink_below: 0,
        }
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        self.live += 1;
        let id = self.first_vacant;
        if id != NONE {
            let place = &mut self[id];
            let next = place
                .next_vacant()
                .expect("the list of vacant places holds vacant places");
            *place = value;
            self.first_vacant = next;
            return id;
        }
        if self.places.len() == self.places.capacity() {
            self.places.reserve_exact(self.places.len() / 16 + 4);
        }
        let id = u32::try_from(self.places.len())
            .ok()
            .filter(|id| *id != NONE);
        self.places.push(value);
        self.shrink_below = if self.places.len() > PLACES_KEPT_MAX {
            self.places.len() / 4
        } else {
            0
        };
        id.expect("memory ends before 2^32 places do")
    }

    /// Vacates a place in use, and returns what was in it.
    pub(super) fn remove(&mut self, id: u32) -> T {
        let vacant = T::vacant(self.first_vacant);
        let value = std::mem::replace(&mut self[id], vacant);
        debug_assert!(value.next_vacant().is_none(), "place {id} was vacant");
        self.first_vacant = id;
        self.live -= 1;
        if self.live < self.shrink_below || self.live == 0 {
            self.give_back();
        }
        value
    }

    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// The number of places, in use or vacant. Every id is below it.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// What is in a place, vacant or not; `None` when there is no such place any more.
    pub(super) fn place(&self, id: u32) -> Option<&T> {
        self.places.get(id as usize)
    }

    /// What is in the places in use, in the order of their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.places
            .iter()
            .filter(|place| place.next_vacant().is_none())
    }

    /// Bytes allocated by the arena itself, not by what is in it.
    pub(super) fn heap_bytes(&self) -> usize {
        self.places.capacity() * size_of::<T>()
    }

    /// Frees the vacant places at the end. Linear in the places; the next time comes after half as many removals at
    /// least.
    fn give_back(&mut self) {
        self.shrink_below = self.live / 2;
        while self
            .places
            .last()
            .is_some_and(|place| place.next_vacant().is_some())
        {
            self.places.pop();
        }
        self.places
            .shrink_to(self.places.len() + self.places.len() / 16);
        self.first_vacant = NONE;
        for (at, place) in self.places.iter_mut().enumerate().rev() {
            if place.next_vacant().is_some() {
                *place = T::vacant(self.first_vacant);
                self.first_vacant = id_of(at);
            }
        }
    }
}

/// The id of a place.
pub(super) fn id_of(place: usize) -> u32 {
    u32::try_from(place).expect("places have ids of 32 bits")
}

#[expect(
    clippy::indexing_slicing,
    reason = "a place in use stays, so whoever holds its id may name it"
)]
impl<T> Index<u32> for Arena<T> {
    type Output = T;

    fn index(&self, id: u32) -> &T {
        #[cfg(test)]
        crate::steps::step();
        &self.places[id as usize]
    }
}

#[expect(
    clippy::indexing_slicing,
    reason = "a place in use stays, so whoever holds its id may name it"
)]
impl<T> IndexMut<u32> for Arena<T> {
    fn index_mut(&mut self, id: u32) -> &mut T {
        #[cfg(test)]
        crate::steps::step();
        &mut self.places[id as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Number(u64, Option<u32>);

    impl Place for Number {
        fn vacant(next: u32) -> Self {
            Self(0, Some(next))
        }

        fn next_vacant(&self) -> Option<u32> {
            self.1
        }
    }

    #[test]
    fn places_are_used_again_and_keep_what_others_hold() {
        let mut arena = Arena::new();
        let ids: Vec<u32> = (0..100)
            .map(|number| arena.insert(Number(number, None)))
            .collect();
        for id in ids.iter().step_by(2) {
            arena.remove(*id);
        }
        for number in 1000..1050 {
            assert!(
                arena.insert(Number(number, None)) < 100,
                "a vacant place is used first"
            );
        }
        assert_eq!(arena.len(), 100);
        assert!(
            (0..100)
                .filter(|number| number % 2 == 1)
                .all(|number| arena[ids[number]].0 == number as u64)
        );
        assert_eq!(arena.iter().filter(|number| number.0 >= 1000).count(), 50);
    }

    #[test]
    fn memory_is_given_back_after_a_storm_and_the_survivors_stay() {
        let mut arena = Arena::new();
        let ids: Vec<u32> = (0..100_000)
            .map(|number| arena.insert(Number(number, None)))
            .collect();
        let full = arena.heap_bytes();
        assert!(full <= 100_000 * size_of::<Number>() * 17 / 16 + 100);
        for id in &ids[10..] {
            arena.remove(*id);
        }
        assert_eq!(arena.len(), 10);
        assert!(
            arena.heap_bytes() < full / 100,
            "{} of {full}",
            arena.heap_bytes()
        );
        assert!(ids[..10].iter().all(|id| arena[*id].0 == u64::from(*id)));
        assert_eq!(arena.insert(Number(7, None)), 10, "the lowest vacant place");
        for id in 0..=10 {
            arena.remove(id);
        }
        assert_eq!(
            arena.heap_bytes(),
            0,
            "whatever the order in which they went"
        );
    }
}
