//! What must happen by when. All deadlines of one kind have the same length, so their queue is always sorted, and no
//! session needs a timer of its own.
//!
//! Invariant: a queue's entries are in the order of their due times. An entry may be stale, because its
//! session went on or ended: whoever takes it out asks the session. Queues shrink after a storm.

use std::collections::VecDeque;
use std::time::Duration;

use super::id::ConnId;
use super::limits::SessionLimits;
use crate::limits::LINGER;
use crate::room::GiveBackRoom;

/// The deadlines of one kind.
///
/// ```
/// use std::time::Duration;
///
/// use blackhole::session::deadlines::DeadlineQueue;
/// use blackhole::session::id::ConnId;
///
/// let mut queue = DeadlineQueue::new(Duration::from_secs(10));
/// let id = ConnId { slot: 0, generation: 7 };
/// queue.begin(Duration::from_secs(1), id);
/// assert_eq!(queue.pop_due(Duration::from_secs(10)), None);
/// assert_eq!(queue.pop_due(Duration::from_secs(11)), Some(id));
/// ```
#[derive(Debug)]
pub struct DeadlineQueue {
    after: Duration,
    queue: VecDeque<(Duration, ConnId)>,
}

impl DeadlineQueue {
    /// An empty queue of deadlines, each of which is due `after` its beginning.
    #[must_use]
    pub fn new(after: Duration) -> Self {
        Self {
            after,
            queue: VecDeque::new(),
        }
    }

    /// Begins a deadline at `now`, which never runs backwards between calls.
    pub fn begin(&mut self, now: Duration, id: ConnId) {
        self.queue.push_back((self.due(now), id));
    }

    /// When a deadline that begins at `now` is due.
    #[must_use]
    pub fn due(&self, now: Duration) -> Duration {
        now + self.after
    }

    /// When the deadline that is due at `due` has begun.
    #[must_use]
    pub fn begun(&self, due: Duration) -> Duration {
        due.saturating_sub(self.after)
    }

    /// When the first deadline is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.queue.front().map(|(due, _)| *due)
    }

    /// Takes out the first deadline, if it is due.
    pub fn pop_due(&mut self, now: Duration) -> Option<ConnId> {
        if self.next_due()? > now {
            return None;
        }
        self.pop()
    }

    /// Takes out the first deadlines as long as they no longer matter, so that a queue is about as long as what is really
    /// under way. Amortised O(1).
    pub fn prune(&mut self, mut matters: impl FnMut(ConnId) -> bool) {
        while let Some((_, id)) = self.queue.front() {
            if matters(*id) {
                return;
            }
            self.pop();
        }
    }

    /// Entries, stale ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn pop(&mut self) -> Option<ConnId> {
        let (_, id) = self.queue.pop_front()?;
        self.queue.give_back_room();
        Some(id)
    }
}

/// The deadlines of all sessions.
#[derive(Debug)]
pub struct Deadlines {
    /// Until the upgrade is done (`request_timeout_ms`).
    pub handshake: DeadlineQueue,
    /// Until the session has authenticated (`auth_timeout_ms`).
    pub auth: DeadlineQueue,
    /// Until the broker has confirmed a subscribe (`request_timeout_ms`).
    pub command: DeadlineQueue,
    /// Until the next check of a full socket (a quarter of `send_timeout_ms`).
    pub send: DeadlineQueue,
    /// Until a session that is being closed is gone (`send_timeout_ms`).
    pub close: DeadlineQueue,
    /// Until a connection that got its HTTP response is gone ([`LINGER`]).
    pub answered: DeadlineQueue,
    /// Until the next check of a connection of the admin address (a quarter of `request_timeout_ms`).
    pub admin: DeadlineQueue,
}

impl Deadlines {
    /// No deadline, and the lengths that the operator has set.
    #[must_use]
    pub(super) fn new(limits: &SessionLimits) -> Self {
        Self {
            handshake: DeadlineQueue::new(limits.request_timeout),
            auth: DeadlineQueue::new(limits.auth_timeout),
            command: DeadlineQueue::new(limits.request_timeout),
            send: DeadlineQueue::new(limits.send_timeout / 4),
            close: DeadlineQueue::new(limits.send_timeout),
            answered: DeadlineQueue::new(LINGER),
            admin: DeadlineQueue::new(limits.request_timeout / 4),
        }
    }

    /// When the first deadline of any kind is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let Self {
            handshake,
            auth,
            command,
            send,
            close,
            answered,
            admin,
        } = self;
        [handshake, auth, command, send, close, answered, admin]
            .into_iter()
            .filter_map(DeadlineQueue::next_due)
            .min()
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
    fn deadlines_fall_due_in_order_and_not_before_their_time() {
        let mut timeouts = DeadlineQueue::new(Duration::from_secs(10));
        for second in 0..5 {
            timeouts.begin(Duration::from_secs(second), id(second as u32));
        }
        assert_eq!(timeouts.next_due(), Some(Duration::from_secs(10)));
        assert_eq!(timeouts.pop_due(Duration::from_millis(9_999)), None);
        assert_eq!(timeouts.pop_due(Duration::from_secs(11)), Some(id(0)));
        assert_eq!(timeouts.pop_due(Duration::from_secs(11)), Some(id(1)));
        assert_eq!(timeouts.pop_due(Duration::from_secs(11)), None);
        timeouts.prune(|id| id.slot == 4);
        assert_eq!(timeouts.next_due(), Some(Duration::from_secs(14)));
    }

    #[test]
    fn a_queue_shrinks_after_a_storm() {
        let mut timeouts = DeadlineQueue::new(Duration::from_secs(10));
        for slot in 0..100_000 {
            timeouts.begin(Duration::ZERO, id(slot));
        }
        timeouts.prune(|id| id.slot >= 99_990);
        assert_eq!(timeouts.len(), 10);
        assert!(
            timeouts.queue.capacity() <= 128,
            "{}",
            timeouts.queue.capacity()
        );
    }
}
