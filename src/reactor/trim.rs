//! Memory after a burst: the allocator keeps what was freed resident until it is told to give it back (DESIGN, The
//! turn, 6). That is done once, in the quiet that follows, or [`limits::TRIM_WITHIN`] after the first was freed where
//! traffic leaves no quiet. Sessions that come are a burst too: the tables grow, and what they grow out of is freed.
//!
//! Invariant: as long as there is memory worth giving back, a time is set by which it is.

use std::time::Duration;

use super::Reactor;
use super::socket::Socket;
use crate::limits;
use crate::session::clock::Now;

/// When to give memory back to the system.
#[derive(Debug, Default)]
pub(super) struct Trim {
    /// [`Reactor::freed`] at the last trim.
    freed: u64,
    /// What was done until the last turn: a turn that does more of it is not quiet. Pings and their answers, which
    /// never end and leave nothing behind, are not in it.
    done: u64,
    due: Option<Due>,
}

/// When memory is given back that is worth it.
#[derive(Clone, Copy, Debug)]
struct Due {
    /// If it is quiet until then.
    quiet: Duration,
    /// Whatever goes on.
    latest: Duration,
}

impl Trim {
    /// When the loop has to look again.
    pub(super) fn due(&self) -> Option<Duration> {
        self.due.map(|due| due.quiet.min(due.latest))
    }
}

impl<S: Socket> Reactor<S> {
    /// Gives memory back to the system when it is time. O(1) but then.
    pub(super) fn trim(&mut self, now: Now) {
        let freed = self.freed();
        let metrics = &self.hub.metrics;
        let done = freed + metrics.frames_delivered_total + metrics.commands_total;
        let is_quiet = done == self.trim.done && self.flush.is_empty();
        self.trim.done = done;
        let is_worth_it =
            freed - self.trim.freed >= limits::TRIM_MIN_FREED || self.flush.has_grown();
        if !is_worth_it {
            self.trim.due = None;
            return;
        }
        let due = self.trim.due.get_or_insert(Due {
            quiet: now.clock + limits::TRIM_AFTER,
            latest: now.clock + limits::TRIM_WITHIN,
        });
        if !is_quiet {
            due.quiet = now.clock + limits::TRIM_AFTER;
        }
        if due.quiet.min(due.latest) > now.clock {
            return;
        }
        self.trim.freed = freed;
        self.trim.due = None;
        self.flush.shrink();
        self.reread.shrink_to(self.reread.len());
        self.connections.shrink_if_empty();
        self.hub.peers.shrink();
        self.unfinished.shrink();
        self.hub.partials.shrink();
        (self.trim_heap)();
        self.hub.metrics.heap_trims_total += 1;
    }

    /// How often memory was freed, about: outbox queues, and sessions that came or went.
    fn freed(&self) -> u64 {
        let metrics = &self.hub.metrics;
        self.hub.outboxes.queues_freed
            + metrics.sessions_opened_total
            + metrics.sessions_closed_total
    }
}
