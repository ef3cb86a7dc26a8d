//! The events that are kept: a queue of them by number, and the numbers of ids.
//!
//! Invariants: numbers have no holes; times and clocks never fall from one event to the next; `bytes` is the sum over
//! the events. An id names the earliest event that has it since the last one so named was dropped, so that however many
//! equal publishes there are, each costs one look-up.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashTable;

use crate::event::{Event, EventId};
use crate::room::{GiveBackRoom, room_wanted};

/// The number of an event among those that this process took in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// An event that is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Shared with whoever hands it out.
    pub event: Arc<Event>,
    /// Its id, for whoever looks through many.
    pub id: EventId,
    /// The time of its cursor.
    pub cursor_time: u64,
    /// When it was taken in, on the loop's clock.
    pub at: Duration,
    /// The same in Unix seconds: which months were in force.
    pub unix: u64,
}

/// Bytes that an event counts for beside its own: its places in the queue and in the table of ids, each of which may be
/// half empty.
const PLACES_BYTES: usize = 2 * (size_of::<Kept>() + size_of::<u32>() + 1);

#[derive(Debug)]
pub(super) struct Ring {
    kept: VecDeque<Kept>,
    /// The lower 32 bits of numbers, by the ids of their events: small, because what costs is the memory that is touched.
    by_id: HashTable<u32>,
    /// Keeps who chooses what is published from choosing places in that table.
    seed: u64,
    /// The number of the first event.
    first: u64,
    bytes: usize,
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            kept: VecDeque::new(),
            by_id: HashTable::new(),
            seed: RandomState::new().hash_one(0),
            first: 0,
            bytes: 0,
        }
    }
}

impl Ring {
    /// Numbers the events from `first` on; there must be none yet.
    pub(super) fn number_from(&mut self, Seq(first): Seq) {
        if self.kept.is_empty() {
            self.first = first;
        }
    }

    /// Appends an event. O(1), amortised.
    pub(super) fn push(&mut self, kept: Kept) {
        self.bytes += bytes_of(&kept);
        let (id, Seq(number)) = (kept.id, self.next());
        self.kept.push_back(kept);
        let (first, seed) = (low(self.first), self.seed);
        let id_at = |number: &u32| id_of(&self.kept, number.wrapping_sub(first));
        let is_it = |number: &u32| id_at(number) == Some(id);
        self.by_id
            .entry(place_of(Some(id), seed), is_it, |number| {
                place_of(id_at(number), seed)
            })
            .or_insert(low(number));
    }

    /// Drops the first event. O(1), amortised.
    pub(super) fn pop(&mut self) -> Option<Kept> {
        let (id, first, seed) = (self.kept.front()?.id, low(self.first), self.seed);
        if let Ok(entry) = self
            .by_id
            .find_entry(place_of(Some(id), seed), |number| *number == first)
        {
            entry.remove();
            if let Some(room) = room_wanted(self.by_id.len(), self.by_id.capacity()) {
                let id_at = |number: &u32| id_of(&self.kept, number.wrapping_sub(first));
                self.by_id
                    .shrink_to(room, |number| place_of(id_at(number), seed));
            }
        }
        let kept = self.kept.pop_front()?;
        self.bytes -= bytes_of(&kept);
        self.first += 1;
        self.kept.give_back_room();
        Some(kept)
    }

    pub(super) fn get(&self, seq: Seq) -> Option<&Kept> {
        let place = seq.0.checked_sub(self.first)?;
        self.kept.get(usize::try_from(place).ok()?)
    }

    pub(super) fn oldest(&self) -> Option<&Kept> {
        self.kept.front()
    }

    pub(super) fn first(&self) -> Seq {
        Seq(self.first)
    }

    pub(super) fn next(&self) -> Seq {
        Seq(self.first + self.kept.len() as u64)
    }

    /// The first event of which `is_before` is false; it must be true of all events up to some place. O(log n).
    pub(super) fn first_not(&self, is_before: impl Fn(&Kept) -> bool) -> Seq {
        Seq(self.first + self.kept.partition_point(is_before) as u64)
    }

    /// The earliest event with this id; none, if only that has been dropped. O(1).
    pub(super) fn find(&self, id: EventId) -> Option<&Kept> {
        let first = low(self.first);
        let is_it = |number: &u32| id_of(&self.kept, number.wrapping_sub(first)) == Some(id);
        let number = self.by_id.find(place_of(Some(id), self.seed), is_it)?;
        self.kept
            .get(usize::try_from(number.wrapping_sub(first)).ok()?)
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn bytes_of(kept: &Kept) -> usize {
    kept.event.bytes() + PLACES_BYTES
}

/// The id of the event at a place of the queue.
fn id_of(kept: &VecDeque<Kept>, place: u32) -> Option<EventId> {
    Some(kept.get(usize::try_from(place).ok()?)?.id)
}

/// The hash of an id, which is one already: mixed with the seed, so that ids that are alike in a few bits are not.
fn place_of(id: Option<EventId>, seed: u64) -> u64 {
    (id.map_or(0, EventId::number) ^ seed)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .rotate_left(32)
}

/// The lower 32 bits.
fn low(number: u64) -> u32 {
    let [a, b, c, d, ..] = number.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
