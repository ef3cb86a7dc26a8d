//! The sessions with frames that their sockets may take, in the order in which they got the first of them. Sessions that
//! have just been read have a list of their own, and the two lists take turns: no answer waits for a fan-out, and no event
//! waits for the answers to a flood.
//!
//! The *window* is all that was fanned out since the oldest event of which a session on the list may still have frames.
//! Its bound is the bound of the frames that wait for a flush, and nothing else holds further events back. A session with
//! more frames than one write takes keeps its hold on the window if it has subscriptions, because its frames may be
//! events. A session without subscriptions has only replies and holds nothing: it is not read until they are few.
//!
//! Invariants: a session is listed at most once (`Listed::FLUSH`). Each event of the window is held by a session, or stands
//! behind one that is. A session that is taken off the list gives its [`Hold`] back, or is listed again with it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::{FLUSH_LIST_KEPT_MAX, MERGED_BYTES_MAX, MERGED_EVENTS_MAX};
use crate::session::id::ConnId;

/// The list, and the window of events that merge into it.
#[derive(Debug, Default)]
pub struct FlushList {
    /// Sessions that have just been read: what waits for them is most likely an answer.
    spoke: VecDeque<Entry>,
    queue: VecDeque<Entry>,
    /// The number of the event that is fanned out next; wraps.
    event: u32,
    /// How many sessions hold the window from that event on.
    holders: u32,
    /// The events before it, down to the oldest that is held.
    window: VecDeque<Fanned>,
    window_bytes: u64,
    /// When the events that have left the window since the last [`FlushList::take_done`] were fanned out, and how many at
    /// each moment.
    done: Vec<(Duration, u32)>,
}

/// An event of the window.
#[derive(Debug)]
struct Fanned {
    /// Bytes of the frames that were made of it.
    bytes: u64,
    /// How many sessions hold the window from it on.
    holders: u32,
    /// When it was fanned out.
    at: Duration,
}

/// The event from which on a session holds the window; `None`: it holds nothing.
#[derive(Debug)]
#[must_use = "the window stays where it is until it is given back"]
pub struct Hold(Option<u32>);

#[derive(Debug)]
struct Entry {
    id: ConnId,
    hold: Hold,
}

impl FlushList {
    /// Puts a session on the list; it must not be there.
    pub fn push(&mut self, id: ConnId) {
        let hold = self.hold();
        self.queue.push_back(Entry { id, hold });
    }

    /// Puts a session that has just been read on the list of its own; it must not be on either.
    pub fn push_spoke(&mut self, id: ConnId) {
        let hold = self.hold();
        self.spoke.push_back(Entry { id, hold });
    }

    /// Puts a session back that has more frames than one write took, with the hold that it had. `has_events`: some of its
    /// frames may be events.
    pub fn push_again(&mut self, id: ConnId, hold: Hold, has_events: bool) {
        let hold = if has_events {
            hold
        } else {
            self.give_back(hold);
            Hold(None)
        };
        self.queue.push_back(Entry { id, hold });
    }

    fn hold(&mut self) -> Hold {
        self.holders += 1;
        Hold(Some(self.event))
    }

    /// Takes the first session off the list. `spoke_first`: of those that have just been read, if there is one; otherwise of
    /// the others, if there is one.
    pub fn pop(&mut self, spoke_first: bool) -> Option<(ConnId, Hold)> {
        let (first, then) = if spoke_first {
            (&mut self.spoke, &mut self.queue)
        } else {
            (&mut self.queue, &mut self.spoke)
        };
        let entry = first.pop_front().or_else(|| then.pop_front())?;
        Some((entry.id, entry.hold))
    }

    /// Takes back the hold of a session of which no frame waits, or whose socket is full: the frames of a full socket have
    /// bounds of their own. O(1) amortised.
    pub fn give_back(&mut self, hold: Hold) {
        let Hold(Some(event)) = hold else {
            return;
        };
        let distance = self.event.wrapping_sub(event) as usize;
        let holders = match self.window.len().checked_sub(distance) {
            Some(at) if distance > 0 => self.window.get_mut(at).map(|fanned| &mut fanned.holders),
            _ => Some(&mut self.holders),
        };
        if let Some(holders) = holders {
            *holders -= 1;
        }
        while let Some(&Fanned {
            bytes,
            holders: 0,
            at,
        }) = self.window.front()
        {
            self.window_bytes -= bytes;
            self.window.pop_front();
            match self.done.last_mut() {
                Some((last, events)) if *last == at => *events += 1,
                _ => self.done.push((at, 1)),
            }
        }
    }

    /// Ends the fan-out of one event, of which `encoded` bytes of frames were made, at the moment `at`.
    pub fn event_done(&mut self, encoded: u64, at: Duration) {
        self.event = self.event.wrapping_add(1);
        let holders = std::mem::take(&mut self.holders);
        if holders > 0 || !self.window.is_empty() {
            self.window_bytes += encoded;
            self.window.push_back(Fanned {
                bytes: encoded,
                holders,
                at,
            });
        }
    }

    /// The events whose last session has been written to since the last call: when they were fanned out, and how many at
    /// each such moment. A session whose socket is full is not waited for. What the events of a turn cost is one entry.
    pub fn take_done(&mut self) -> impl Iterator<Item = (Duration, u32)> {
        self.done.drain(..)
    }

    /// Whether another event may be fanned out before the list has moved. `held`: how many events, and bytes of their frames,
    /// the run holds, of which no session is listed yet.
    #[must_use]
    pub fn takes_another_event(&self, held: (u64, u64)) -> bool {
        (self.window.len() as u64) + held.0 < MERGED_EVENTS_MAX
            && self.window_bytes + held.1 < MERGED_BYTES_MAX
    }

    /// How many sessions are listed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spoke.len() + self.queue.len()
    }

    /// How many of them have just been read.
    #[must_use]
    pub fn spoke_len(&self) -> usize {
        self.spoke.len()
    }

    /// Whether no session is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spoke.is_empty() && self.queue.is_empty()
    }

    /// Whether there is memory that is worth giving back.
    #[must_use]
    pub fn has_grown(&self) -> bool {
        self.spoke.capacity().max(self.queue.capacity()) > FLUSH_LIST_KEPT_MAX
    }

    /// Gives memory back.
    pub fn shrink(&mut self) {
        self.spoke.shrink_to(self.spoke.len());
        self.queue.shrink_to(self.queue.len());
        self.window.shrink_to(self.window.len());
        self.done.shrink_to(self.done.len());
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

    /// Takes one off the list and gives its hold back.
    fn flushed(list: &mut FlushList, spoke_first: bool) -> Option<ConnId> {
        let (id, hold) = list.pop(spoke_first)?;
        list.give_back(hold);
        Some(id)
    }

    #[test]
    fn the_window_is_what_came_since_the_first_on_the_list() {
        let mut list = FlushList::default();
        list.event_done(1 << 40, Duration::ZERO);
        assert!(
            list.takes_another_event((0, 0)),
            "nobody waits for what nobody got"
        );
        list.push(id(1));
        list.event_done(10, Duration::ZERO);
        list.push(id(2));
        list.event_done(MERGED_BYTES_MAX - 10, Duration::ZERO);
        assert!(!list.takes_another_event((0, 0)));
        assert_eq!(flushed(&mut list, true), Some(id(1)));
        assert!(list.takes_another_event((0, 0)));
        for _ in 1..MERGED_EVENTS_MAX {
            assert!(list.takes_another_event((0, 0)));
            list.event_done(0, Duration::ZERO);
        }
        assert!(!list.takes_another_event((0, 0)));
        assert_eq!(flushed(&mut list, true), Some(id(2)));
        assert!(list.takes_another_event((0, 0)));
        assert_eq!((list.window_bytes, list.window.len()), (0, 0));
    }

    #[test]
    fn a_list_that_was_long_is_worth_shrinking() {
        let mut list = FlushList::default();
        (0..=FLUSH_LIST_KEPT_MAX as u32).for_each(|slot| list.push(id(slot)));
        while flushed(&mut list, true).is_some() {}
        assert!(list.has_grown());
        list.shrink();
        assert!(!list.has_grown());
    }

    #[test]
    fn replies_hold_no_event_however_many_writes_they_need() {
        let mut list = FlushList::default();
        list.push_spoke(id(1));
        for _ in 0..10 * MERGED_EVENTS_MAX {
            let (flooder, hold) = list.pop(true).expect("it is listed again each time");
            list.push_again(flooder, hold, false);
            assert!(list.takes_another_event((0, 0)));
            list.event_done(MERGED_BYTES_MAX, Duration::ZERO);
        }
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn events_that_need_another_write_hold_the_window_from_where_they_did() {
        let mut list = FlushList::default();
        list.push(id(1));
        list.event_done(MERGED_BYTES_MAX - 1, Duration::ZERO);
        list.push(id(2));
        list.event_done(1, Duration::ZERO);
        let (one, hold) = list.pop(true).expect("two are listed");
        list.push_again(one, hold, true);
        assert_eq!(flushed(&mut list, true), Some(id(2)));
        assert!(
            !list.takes_another_event((0, 0)),
            "the first has frames of both"
        );
        assert_eq!(flushed(&mut list, true), Some(id(1)));
        assert!(list.takes_another_event((0, 0)));
        assert_eq!((list.window_bytes, list.window.len()), (0, 0));
    }

    #[test]
    fn who_has_just_spoken_comes_first_for_a_share_of_the_flushes_and_holds_the_window_open() {
        let mut list = FlushList::default();
        list.push(id(1));
        list.push(id(2));
        list.push_spoke(id(3));
        list.push_spoke(id(4));
        assert_eq!((list.len(), list.spoke_len()), (4, 2));
        assert_eq!(flushed(&mut list, true), Some(id(3)));
        assert_eq!(flushed(&mut list, false), Some(id(1)));
        assert_eq!(flushed(&mut list, false), Some(id(2)));
        list.event_done(MERGED_BYTES_MAX, Duration::ZERO);
        assert!(
            !list.takes_another_event((0, 0)),
            "the fourth got that event too"
        );
        list.push(id(5));
        assert_eq!(flushed(&mut list, true), Some(id(4)));
        assert!(list.takes_another_event((0, 0)));
        list.push_spoke(id(6));
        assert_eq!(flushed(&mut list, false), Some(id(5)));
        assert_eq!(flushed(&mut list, false), Some(id(6)), "rather than nobody");
        assert!(list.is_empty());
    }

    #[test]
    fn an_event_is_done_when_the_last_session_that_holds_it_has_been_written_to() {
        let second = Duration::from_secs;
        let mut list = FlushList::default();
        let done = |list: &mut FlushList| list.take_done().collect::<Vec<_>>();
        list.event_done(1, second(1));
        assert_eq!(done(&mut list), [], "nobody was listed for it");
        list.push(id(1));
        list.push(id(2));
        list.event_done(1, second(2));
        // The same sessions get two more; one of them is listed for the first alone.
        list.event_done(1, second(3));
        list.event_done(1, second(3));
        assert_eq!(flushed(&mut list, false), Some(id(1)));
        assert_eq!(done(&mut list), []);
        assert_eq!(flushed(&mut list, false), Some(id(2)));
        assert_eq!(done(&mut list), [(second(2), 1), (second(3), 2)]);
        assert_eq!(done(&mut list), []);
    }
}
