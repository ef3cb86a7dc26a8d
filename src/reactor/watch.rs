//! The slow walk over all sessions, a part of them each tenth of a second. It finds what has no deadline of its own, so
//! an idle session needs no timer: tokens that have expired, peers that are silent, dead or idle, and messages that
//! were begun and are not finished.
//!
//! Invariants: while there is anything that only a walk can find, a pass is under way or the next is due; else there is
//! no walk. One step sends at most as many pings as it visits sessions. A session is closed for missing bytes only after
//! one last read found none.

use std::time::Duration;

use super::Reactor;
use super::read::ReadBudget;
use super::socket::Socket;
use crate::session::Session;
use crate::session::clock::Now;
use crate::session::close::CloseReason;
use crate::session::id::ConnId;
use crate::session::liveness::Health;
use crate::session::outbox::SlowConsumerPolicy;

impl<S: Socket> Reactor<S> {
    /// Visits a part of all sessions. A pass that finds nothing to check again is the last one until there is something.
    pub(super) fn sweep(&mut self, now: Now) {
        if !self.is_sweeping() {
            return self.sweep.rest();
        }
        let Some(late) = self.sweep.late_for(now.clock) else {
            return;
        };
        self.hub.metrics.timings.lag.record(late);
        if !self.sweep.is_under_way() {
            self.hub.tokens_expire = false;
        }
        let slots = self.connections.slots();
        for _ in 0..self.sweep.begin_step(slots, now.clock) {
            let Some(slot) = self.sweep.next_slot(slots) else {
                return;
            };
            self.visit(slot, now);
        }
    }

    fn visit(&mut self, slot: u32, now: Now) {
        let Some((id, connection)) = self.connections.at_slot(slot) else {
            return;
        };
        let session = &mut connection.session;
        if let Some(expires) = session.expires()
            && session.is_open()
        {
            // The next pass must check it again.
            self.hub.tokens_expire = true;
            if expires <= now.unix() {
                return self.close(id, CloseReason::Expired, now);
            }
        }
        let mut health = session.examine(&self.hub.context(id, now));
        if health.is_fatal() {
            // The bytes that would save it may be in the kernel, for the polls and reads of a turn are bounded.
            let mut budget = ReadBudget::of_one_read();
            self.read(id, &mut budget, now);
            health = self.examine(id, now);
        }
        match health {
            Health::Fine => {}
            Health::Silent => self.act(id, now, Session::ping),
            Health::Dead if self.spare(id) => {}
            Health::Dead => self.close(id, CloseReason::Dead, now),
            Health::Idle => self.close(id, CloseReason::Idle, now),
            Health::MessageLate => self.close(id, CloseReason::MessageTimeout, now),
        }
    }

    fn examine(&mut self, id: ConnId, now: Now) -> Health {
        let Some(connection) = self.connections.get_mut(id) else {
            return Health::Fine;
        };
        connection.session.examine(&self.hub.context(id, now))
    }

    /// Under the policy `drop` a peer that takes nothing is not dead as long as its kernel answers (PROTOCOL 5): its session
    /// is kept until the next check. True: it is kept.
    fn spare(&mut self, id: ConnId) -> bool {
        let Some(connection) = self.connections.get_mut(id) else {
            return false;
        };
        let is_spared = self.hub.limits.slow_consumer == SlowConsumerPolicy::Drop
            && connection.session.outbox.is_blocked()
            && connection.socket.is_peer_answering();
        if is_spared {
            self.hub.metrics.silent_spared_total += 1;
            connection.session.spare(&self.hub);
        }
        is_spared
    }

    /// When the next step of the sweep is due; `None`: there is nothing that it could find.
    pub(super) fn sweep_due(&self) -> Option<Duration> {
        self.is_sweeping().then_some(self.sweep.due())
    }

    fn is_sweeping(&self) -> bool {
        self.sweep.is_under_way()
            || self.hub.tokens_expire
            || self.hub.partials.bytes() > 0
            || (self.hub.limits.liveness.concern_every_session() && !self.connections.is_empty())
    }
}
