//! The events that are kept: a queue of them by number, and the number of each id.
//!
//! Invariants: numbers have no holes; times and clocks never fall from one event to the next; `bytes` is the sum over
//! the events. An id names the earliest event that has it since the last one with that id was dropped, so that however
//! many equal publishes there are, each costs one look-up.

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
    /// The time of its cursor.
    pub cursor_time: u64,
    /// When it was taken in, on the loop's clock.
    pub at: Duration,
    /// The same in Unix seconds: which months were in force.
    pub unix: u64,
}

/// Bytes that an event counts for beside its own: its places in the queue and in the table of ids, each of which may be
/// half empty.
const PLACES_BYTES: usize = 2 * (size_of::<Kept>() + size_of::<(EventId, u64)>());

#[derive(Debug)]
pub(super) struct Ring {
    kept: VecDeque<Kept>,
    by_id: HashTable<(EventId, u64)>,
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
        let Seq(number) = self.next();
        let (id, seed) = (kept.event.id, self.seed);
        self.by_id
            .entry(
                place_of(id, seed),
                |(of, _)| *of == id,
                |(of, _)| place_of(*of, seed),
            )
            .or_insert((id, number));
        self.kept.push_back(kept);
    }

    /// Drops the first event. O(1), amortised.
    pub(super) fn pop(&mut self) -> Option<Kept> {
        let kept = self.kept.pop_front()?;
        self.bytes -= bytes_of(&kept);
        let (named, seed) = ((kept.event.id, self.first), self.seed);
        if let Ok(entry) = self
            .by_id
            .find_entry(place_of(named.0, seed), |one| *one == named)
        {
            entry.remove();
            if let Some(room) = room_wanted(self.by_id.len(), self.by_id.capacity()) {
                self.by_id.shrink_to(room, |(of, _)| place_of(*of, seed));
            }
        }
        self.kept.give_back_room();
        self.first += 1;
        Some(kept)
    }

    /// Reads the first `count` events, which are about to be dropped and have not been read for long: all at once, so that
    /// the processor fetches them side by side, which makes an event a quarter cheaper.
    pub(super) fn fetch(&self, count: usize) {
        let read = |kept: &Kept| {
            let (body, key) = (
                kept.event.body.as_bytes(),
                kept.event.routing_key.as_bytes(),
            );
            body.first().copied().unwrap_or_default() ^ key.first().copied().unwrap_or_default()
        };
        let all = self.kept.iter().take(count).map(read);
        std::hint::black_box(all.fold(0, |one, other| one ^ other));
    }

    pub(super) fn get(&self, seq: Seq) -> Option<&Kept> {
        let place = seq.0.checked_sub(self.first)?;
        self.kept.get(usize::try_from(place).ok()?)
    }

    pub(super) fn oldest(&self) -> Option<&Kept> {
        self.kept.front()
    }

    pub(super) fn newest(&self) -> Option<&Kept> {
        self.kept.back()
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

    /// An event with this id; none that has become the first since. O(1).
    pub(super) fn find(&self, id: EventId) -> Option<&Kept> {
        let place = place_of(id, self.seed);
        let (_, number) = self.by_id.find(place, |(of, _)| *of == id)?;
        self.get(Seq(*number))
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

/// The hash of an id, which is one already: mixed with the seed, so that ids that are alike in a few bits are not.
fn place_of(id: EventId, seed: u64) -> u64 {
    (id.number() ^ seed)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .rotate_left(32)
}
