//! Sessions with frames that their sockets may take, in the order in which they got the first of them; before them those
//! who have just spoken, so that an answer waits for no fan-out.
//!
//! Invariant: a session is named at most once (`Listed::FLUSH`). The window holds what was fanned out since the
//! oldest session on the list was put there, and nothing is fanned out while a session has more than one write takes;
//! so bounding the window bounds what frames the unflushed hold.

use std::collections::VecDeque;

use crate::limits::{FLUSH_LIST_KEPT, MERGED_BYTES_MAX, MERGED_EVENTS_MAX};
use crate::session::id::ConnId;

/// The list, and the window of events that merge into it.
#[derive(Debug, Default)]
pub struct FlushList {
    /// Those who have just spoken: what waits for them is an answer, most likely.
    spoke: VecDeque<Entry>,
    queue: VecDeque<Entry>,
    /// Number of the event that is fanned out next; wraps.
    event: u32,
    /// Bytes encoded for each event since the oldest entry's.
    window: VecDeque<u64>,
    window_bytes: u64,
    /// Entries that had more than one write takes.
    again: usize,
}

#[derive(Debug)]
struct Entry {
    id: ConnId,
    has_more: bool,
    /// [`FlushList::event`] when it was put on the list.
    event: u32,
}

impl FlushList {
    /// Puts a session on the list; the caller has seen that it is not there.
    pub fn push(&mut self, id: ConnId) {
        let entry = self.entry(id, false);
        self.queue.push_back(entry);
    }

    /// Puts a session that has just spoken before those that have not; the caller has seen that it is not on the list.
    pub fn push_spoke(&mut self, id: ConnId) {
        let entry = self.entry(id, false);
        self.spoke.push_back(entry);
    }

    /// Puts a session back that has more than one write took.
    pub fn push_again(&mut self, id: ConnId) {
        self.again += 1;
        let entry = self.entry(id, true);
        self.queue.push_back(entry);
    }

    fn entry(&self, id: ConnId, has_more: bool) -> Entry {
        Entry {
            id,
            has_more,
            event: self.event,
        }
    }

    /// Takes the first session off the list, of those who have just spoken as long as `spoke_first`, and of them last
    /// otherwise.
    pub fn pop(&mut self, spoke_first: bool) -> Option<ConnId> {
        let (first, then) = if spoke_first {
            (&mut self.spoke, &mut self.queue)
        } else {
            (&mut self.queue, &mut self.spoke)
        };
        let entry = first.pop_front().or_else(|| then.pop_front())?;
        self.again -= usize::from(entry.has_more);
        let fronts = [self.spoke.front(), self.queue.front()];
        let kept = fronts
            .into_iter()
            .flatten()
            .map(|first| self.event.wrapping_sub(first.event) as usize)
            .max()
            .unwrap_or(0);
        while self.window.len() > kept {
            self.window_bytes -= self.window.pop_front().unwrap_or_default();
        }
        Some(entry.id)
    }

    /// Ends the fan-out of one event, for which `encoded` bytes of frames were made.
    pub fn event_done(&mut self, encoded: u64) {
        self.event = self.event.wrapping_add(1);
        if !self.is_empty() {
            self.window.push_back(encoded);
            self.window_bytes += encoded;
        }
    }

    /// Whether another event may be fanned out before the list has moved, beyond those `held`: so many events, of so
    /// many bytes of frames, of which nobody is on the list yet.
    #[must_use]
    pub fn takes_another_event(&self, held: (u64, u64)) -> bool {
        self.again == 0
            && (self.window.len() as u64) + held.0 < MERGED_EVENTS_MAX
            && self.window_bytes + held.1 < MERGED_BYTES_MAX
    }

    /// Sessions listed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spoke.len() + self.queue.len()
    }

    /// Whether none is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spoke.is_empty() && self.queue.is_empty()
    }

    /// Whether there is memory that is worth giving back.
    #[must_use]
    pub fn has_grown(&self) -> bool {
        self.spoke.capacity().max(self.queue.capacity()) > FLUSH_LIST_KEPT
    }

    /// Gives memory back.
    pub fn shrink(&mut self) {
        self.spoke.shrink_to(self.spoke.len());
        self.queue.shrink_to(self.queue.len());
        self.window.shrink_to(self.window.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32) -> ConnId {
        ConnId {
            slot,
            generation: 0,
        }
    }

    #[test]
    fn the_window_is_what_came_since_the_first_on_the_list() {
        let mut list = FlushList::default();
        list.event_done(1 << 40);
        assert!(
            list.takes_another_event((0, 0)),
            "nobody waits for what nobody got"
        );
        list.push(id(1));
        list.event_done(10);
        list.push(id(2));
        list.event_done(MERGED_BYTES_MAX - 10);
        assert!(!list.takes_another_event((0, 0)));
        assert_eq!(list.pop(true), Some(id(1)));
        assert!(list.takes_another_event((0, 0)));
        for _ in 1..MERGED_EVENTS_MAX {
            assert!(list.takes_another_event((0, 0)));
            list.event_done(0);
        }
        assert!(!list.takes_another_event((0, 0)));
        assert_eq!(list.pop(true), Some(id(2)));
        assert!(list.takes_another_event((0, 0)));
        assert_eq!(list.window_bytes, 0);
    }

    #[test]
    fn a_list_that_was_long_is_worth_shrinking() {
        let mut list = FlushList::default();
        (0..=FLUSH_LIST_KEPT as u32).for_each(|slot| list.push(id(slot)));
        while list.pop(true).is_some() {}
        assert!(list.has_grown());
        list.shrink();
        assert!(!list.has_grown());
    }

    #[test]
    fn no_event_is_taken_while_a_session_has_more_than_one_write_takes() {
        let mut list = FlushList::default();
        list.push_again(id(1));
        list.push(id(2));
        assert!(!list.takes_another_event((0, 0)));
        assert_eq!(list.pop(true), Some(id(1)));
        assert!(list.takes_another_event((0, 0)));
    }

    #[test]
    fn who_has_just_spoken_comes_first_for_a_share_of_the_flushes_and_holds_the_window_open() {
        let mut list = FlushList::default();
        list.push(id(1));
        list.push(id(2));
        list.push_spoke(id(3));
        list.push_spoke(id(4));
        assert_eq!(list.len(), 4);
        assert_eq!(list.pop(true), Some(id(3)));
        assert_eq!(list.pop(false), Some(id(1)));
        assert_eq!(list.pop(false), Some(id(2)));
        list.event_done(MERGED_BYTES_MAX);
        assert!(
            !list.takes_another_event((0, 0)),
            "the fourth got that event too"
        );
        list.push(id(5));
        assert_eq!(list.pop(true), Some(id(4)));
        assert!(list.takes_another_event((0, 0)));
        list.push_spoke(id(6));
        assert_eq!(list.pop(false), Some(id(5)));
        assert_eq!(list.pop(false), Some(id(6)), "rather than nobody");
        assert!(list.is_empty());
    }
}
