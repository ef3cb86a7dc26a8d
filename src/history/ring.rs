//! The events that are kept: a queue of them by number, and the number of each id.
//!
//! Invariants: numbers have no holes; times and clocks never fall from one event to the next; `bytes` is the sum over
//! the events. An id names the earliest event that has it since the last one with that id was dropped, so that however
//! many equal publishes there are, each costs one look-up.

use std::collections::{HashMap, VecDeque};

use crate::event::EventId;
use crate::room::GiveBackRoom;

use super::{Kept, Seq};

/// Bytes that an event counts for beside its own: its places in the queue and in the table of ids, each of which may be
/// half empty.
const PLACES_BYTES: usize = 2 * (size_of::<Kept>() + size_of::<(EventId, u64)>());

#[derive(Debug, Default)]
pub(super) struct Ring {
    kept: VecDeque<Kept>,
    by_id: HashMap<EventId, u64>,
    /// The number of the first event.
    first: u64,
    bytes: usize,
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
        self.by_id.entry(kept.event.id).or_insert(number);
        self.kept.push_back(kept);
    }

    /// Drops the first event. O(1), amortised.
    pub(super) fn pop(&mut self) -> Option<Kept> {
        let kept = self.kept.pop_front()?;
        self.bytes -= bytes_of(&kept);
        if self.by_id.get(&kept.event.id) == Some(&self.first) {
            self.by_id.remove(&kept.event.id);
            self.by_id.give_back_room();
        }
        self.kept.give_back_room();
        self.first += 1;
        Some(kept)
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
        self.get(Seq(*self.by_id.get(&id)?))
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
