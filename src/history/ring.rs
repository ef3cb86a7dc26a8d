//! The events that are kept: a queue of them by number, and the numbers of ids.
//!
//! Invariants: numbers have no holes; times and clocks never fall from one event to the next; `bytes` is the sum over
//! the events.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::event::{Event, EventId};
use crate::room::GiveBackRoom;

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

/// Bytes that an event counts for beside its own: its places in the queue, which may be half empty, and among the ids.
const PLACES_BYTES: usize = 2 * size_of::<Kept>() + PLACES_PER_EVENT_MAX * size_of::<u32>();

#[derive(Debug, Default)]
pub(super) struct Ring {
    kept: VecDeque<Kept>,
    ids: Ids,
    /// The number of the first event.
    first: u64,
    bytes: usize,
}

/// Numbers of ids. An id has one place, which the latest event there has, whatever its id is; so a look-up may be in vain.
/// It costs an event one write to memory, which is a tenth of what a hash table costs.
#[derive(Debug, Default)]
struct Ids {
    /// A power of two of them, or none. Each: the lower 32 bits of a number.
    places: Vec<u32>,
}

/// Places for each event, at least, when there are too few, and at most before there are too many.
const PLACES_PER_EVENT_MIN: usize = 1;
const PLACES_PER_EVENT_MAX: usize = 8;

/// Places that are kept however few the events are.
const PLACES_KEPT: usize = 256;

impl Ids {
    fn place(&mut self, id: EventId) -> Option<&mut u32> {
        let count = self.places.len();
        self.places.get_mut(place_of(id, count))
    }

    /// The lower 32 bits of the number that may be that of this id.
    fn number(&self, id: EventId) -> Option<u32> {
        self.places.get(place_of(id, self.places.len())).copied()
    }

    /// How many places so many events need, if those that there are are too few or too many.
    fn wanted(&self, events: usize) -> Option<usize> {
        let count = self.places.len();
        let is_small = count < PLACES_PER_EVENT_MIN * events;
        let is_large = count > PLACES_KEPT && count > PLACES_PER_EVENT_MAX * events;
        let wanted = || (2 * PLACES_PER_EVENT_MIN * events).next_power_of_two();
        (is_small || is_large).then(|| wanted().max(PLACES_KEPT))
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
        match self.ids.wanted(self.kept.len()) {
            Some(places) => self.place_anew(places),
            None => {
                if let Some(place) = self.ids.place(id) {
                    *place = low(number);
                }
            }
        }
    }

    /// Drops the first event. O(1), amortised.
    pub(super) fn pop(&mut self) -> Option<Kept> {
        let kept = self.kept.pop_front()?;
        self.bytes -= bytes_of(&kept);
        self.first += 1;
        self.kept.give_back_room();
        if let Some(places) = self.ids.wanted(self.kept.len()) {
            self.place_anew(places);
        }
        Some(kept)
    }

    fn place_anew(&mut self, places: usize) {
        self.ids.places = vec![0; places];
        for (number, kept) in (self.first..).zip(&self.kept) {
            if let Some(place) = self.ids.place(kept.id) {
                *place = low(number);
            }
        }
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

    /// The latest event with this id, or, now and then, none. O(1).
    pub(super) fn find(&self, id: EventId) -> Option<&Kept> {
        let place = self.ids.number(id)?.wrapping_sub(low(self.first));
        let named = self.kept.get(usize::try_from(place).ok()?)?;
        (named.id == id).then_some(named)
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

/// The place of an id, which is a hash already, among so many.
fn place_of(id: EventId, count: usize) -> usize {
    usize::try_from(id.number()).unwrap_or(usize::MAX) & count.wrapping_sub(1)
}

/// The lower 32 bits.
fn low(number: u64) -> u32 {
    let [a, b, c, d, ..] = number.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
