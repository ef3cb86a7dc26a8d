//! Step 4 of the turn: the deadlines of sessions, and the drain.
//!
//! Invariant: a deadline that was taken out is checked against its session, because it may be stale.

use std::time::Duration;

use super::Reactor;
use super::connections::Listed;
use super::drain::{Drain, DrainTimes};
use super::socket::Socket;
use crate::protocol::reply;
use crate::session::Session;
use crate::session::clock::Now;
use crate::session::close::CloseReason;
use crate::session::deadlines::{DeadlineQueue, Deadlines};
use crate::session::id::ConnId;
use crate::session::outbox::SlowConsumerPolicy;

/// Whether a deadline of one kind still matters to its session.
type Matters = fn(&Session) -> bool;

impl<S: Socket> Reactor<S> {
    pub(super) fn fire_deadlines(&mut self, now: Now) {
        self.prune_deadlines();
        while let Some(id) = self.due(|all| &mut all.handshake, Session::is_in_handshake, now) {
            self.close(id, CloseReason::HandshakeTimeout, now);
        }
        while let Some(id) = self.due(|all| &mut all.auth, Session::awaits_authentication, now) {
            self.close(id, CloseReason::NeverAuthenticated, now);
        }
        while let Some(id) = self.due(|all| &mut all.command, Session::is_waiting, now) {
            self.act(id, now, Session::on_command_timeout);
        }
        while let Some(id) = self.due(|all| &mut all.close, Session::is_closing, now) {
            if self.is_taking_leave(id, now) {
                self.hub.deadlines.close.begin(now.clock, id);
            } else {
                self.abandon(id, now);
            }
        }
        while let Some(id) = self.due(|all| &mut all.answered, Session::is_closing, now) {
            self.abandon(id, now);
        }
        while let Some(id) = self.due(|all| &mut all.admin, Session::is_admin, now) {
            self.check_admin(id, now);
        }
        while let Some(id) = self.hub.deadlines.send.pop_due(now.clock) {
            self.check_full_socket(id, now);
        }
        self.hub.roll_months(now);
        self.sweep(now);
        self.drain_step(now);
    }

    /// Takes stale deadlines off the heads of the queues, so that they do not end a poll.
    fn prune_deadlines(&mut self) {
        let connections = &self.connections;
        let session = |id| connections.get(id).map(|connection| &connection.session);
        let all = &mut self.hub.deadlines;
        let queues: [(&mut DeadlineQueue, Matters); 6] = [
            (&mut all.handshake, Session::is_in_handshake),
            (&mut all.auth, Session::awaits_authentication),
            (&mut all.command, Session::is_waiting),
            (&mut all.close, Session::is_closing),
            (&mut all.answered, Session::is_closing),
            (&mut all.admin, Session::is_admin),
        ];
        for (queue, matters) in queues {
            queue.prune(|id| session(id).is_some_and(matters));
        }
    }

    /// Takes the first deadline that is due, and matters to its session, out of a queue.
    fn due(
        &mut self,
        queue: fn(&mut Deadlines) -> &mut DeadlineQueue,
        matters: Matters,
        now: Now,
    ) -> Option<ConnId> {
        let queue = queue(&mut self.hub.deadlines);
        let connections = &self.connections;
        let session = |id| connections.get(id).map(|connection| &connection.session);
        std::iter::from_fn(|| queue.pop_due(now.clock)).find(|id| session(*id).is_some_and(matters))
    }

    fn is_taking_leave(&self, id: ConnId, now: Now) -> bool {
        let patience = self.hub.limits.send_timeout;
        let connection = self.connections.get(id);
        connection.is_some_and(|one| one.session.is_taking_leave(patience, now))
    }

    fn check_full_socket(&mut self, id: ConnId, now: Now) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.listed.remove(Listed::SEND_TIMER);
        // The poll reports a full socket as writable only once a third of it is free. A peer that takes some seconds for a
        // megabyte does read, and does not get there in time.
        if let Some(descriptor) = connection.socket.descriptor()
            && let Ok(bytes) = crate::sys::unacknowledged_bytes(descriptor)
        {
            connection
                .session
                .outbox
                .note_unacknowledged(bytes, now.clock);
        }
        let Some(progress_at) = connection.session.outbox.progress_at() else {
            return;
        };
        let is_late = now.clock.saturating_sub(progress_at) >= self.hub.limits.send_timeout;
        let is_closed = self.hub.limits.slow_consumer == SlowConsumerPolicy::Close
            && connection.session.is_open();
        if is_late && connection.session.is_admin() {
            self.close(id, CloseReason::AdminSlow, now);
        } else if is_late && is_closed {
            self.close(id, CloseReason::SlowConsumer, now);
        } else {
            connection.listed.insert(Listed::SEND_TIMER);
            self.hub.deadlines.send.begin(now.clock, id);
        }
    }

    /// From now on probes and `/readyz` say that the process is about to end; nothing else changes.
    pub fn announce_drain(&mut self) {
        self.hub.readiness.announce_end();
    }

    /// Whether the operator has ordered a drain since the last call. The drain is announced already.
    pub fn take_drain_order(&mut self) -> bool {
        std::mem::take(&mut self.drain_ordered)
    }

    /// Begins to tell all sessions that the process is going away, and then to close them, spread evenly. No more connections
    /// may come by then, so that whoever moves finds another process. Those that are here may still finish their handshake;
    /// they are told then, and closed in their turn.
    pub fn begin_drain(&mut self, times: DrainTimes, now: Now) {
        if self.drain.is_none() {
            self.hub.readiness.announce_end();
            let slots = self.connections.slots();
            self.drain = Some(Drain::new(self.clients(), slots, times, now.clock));
        }
    }

    /// Whether the drain is over: no client is left, or its time is over. Connections of the admin address are not waited
    /// for.
    #[must_use]
    pub fn is_drained(&self, now: Now) -> bool {
        self.drain
            .as_ref()
            .is_some_and(|drain| drain.is_over(now.clock) || self.clients() == 0)
    }

    fn drain_step(&mut self, now: Now) {
        let Some(mut drain) = self.drain.take() else {
            return;
        };
        if let Some(first_close) = drain.first_close() {
            self.tell_going_away(&mut drain, first_close, now);
            drain.begin_to_close(self.clients(), now.clock);
            let told_below = drain.told_below();
            self.hub.readiness.going_away(first_close, told_below);
        }
        let slots = self.connections.slots();
        while let Some(slot) = drain.next_slot_to_close(slots, now.clock) {
            if let Some((id, connection)) = self.connections.at_slot(slot)
                && connection.session.is_open()
            {
                drain.closed_one();
                self.close(id, CloseReason::Drain, now);
            }
        }
        if drain.is_spread(now.clock) {
            self.hub.readiness.refuse_newcomers();
        }
        self.drain = Some(drain);
    }

    /// Tells the sessions whose turn it is.
    fn tell_going_away(&mut self, drain: &mut Drain, first_close: Duration, now: Now) {
        let within = first_close.saturating_sub(now.clock);
        let mut notice = None;
        while let Some(slot) = drain.next_slot_to_tell(now.clock) {
            if let Some((id, connection)) = self.connections.at_slot(slot)
                && connection.session.is_open()
            {
                drain.told_one();
                let builder = &mut self.hub.builder;
                let notice = notice.get_or_insert_with(|| reply::going_away(builder, within));
                let notice = notice.clone();
                self.act(id, now, |session, cx| {
                    session.tell_going_away(notice, within, cx);
                });
            }
        }
    }
}
