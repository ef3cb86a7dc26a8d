//! Memory after a burst: the allocator keeps what was freed resident until it is told to give it back (DESIGN, The
//! turn, 6), which is done once, in the quiet that follows. Sessions that come are a burst too: the tables grow, and
//! what they grow out of is freed.

use std::time::Duration;

use super::Reactor;
use super::socket::Socket;
use crate::limits;
use crate::session::hub::Now;

/// When to give memory back to the system.
#[derive(Debug, Default)]
pub(super) struct Trim {
    /// [`Reactor::freed`] at the last trim.
    freed: u64,
    /// What was done until the last turn: a turn that does more of it is not quiet. Pings and their answers, which
    /// never end and leave nothing behind, are not in it.
    done: u64,
    due: Option<Duration>,
}

impl Trim {
    /// When the quiet will have lasted long enough.
    pub(super) fn due(&self) -> Option<Duration> {
        self.due
    }
}

impl<S: Socket> Reactor<S> {
    /// Gives memory back to the system in the quiet after a burst (DESIGN, The turn, 6).
    pub(super) fn trim(&mut self, now: Now) {
        let freed = self.freed();
        let metrics = &self.hub.metrics;
        let done = freed + metrics.frames_delivered_total + metrics.commands_total;
        let is_worth_it =
            freed - self.trim.freed >= limits::TRIM_MIN_FREED || self.flush.has_grown();
        if !is_worth_it || done != self.trim.done || !self.flush.is_empty() {
            self.trim.done = done;
            self.trim.due = is_worth_it.then(|| now.clock + limits::TRIM_AFTER);
        } else if self.trim.due.is_some_and(|due| due <= now.clock) {
            self.trim.freed = freed;
            self.trim.due = None;
            self.flush.shrink();
            self.reread.shrink_to(self.reread.len());
            self.connections.shrink_if_empty();
            self.hub.peers.shrink();
            (self.trim_heap)();
            self.hub.metrics.heap_trims_total += 1;
        }
    }

    /// How often memory was freed, about: outbox queues, and sessions that came or went.
    fn freed(&self) -> u64 {
        let metrics = &self.hub.metrics;
        self.hub.totals.queues_freed + metrics.sessions_opened_total + metrics.sessions_closed_total
    }
}
