//! Step 4 of the turn: the deadlines of sessions, and the drain.
//!
//! Invariant: a deadline that was taken out is checked against its session, because it may be stale.

use std::time::Duration;

use super::Reactor;
use super::connections::Listed;
use super::drain::Drain;
use super::socket::Socket;
use crate::session::Session;
use crate::session::clock::Now;
use crate::session::close::CloseReason;
use crate::session::hub::Admission;
use crate::session::id::ConnId;
use crate::session::outbox::SlowConsumerPolicy;

impl<S: Socket> Reactor<S> {
    pub(super) fn fire_deadlines(&mut self, now: Now) {
        let connections = &self.connections;
        let session = |id| connections.get(id).map(|connection| &connection.session);
        let deadlines = &mut self.hub.deadlines;
        deadlines
            .handshake
            .prune(|id| session(id).is_some_and(Session::is_in_handshake));
        deadlines
            .auth
            .prune(|id| session(id).is_some_and(Session::awaits_authentication));
        deadlines
            .command
            .prune(|id| session(id).is_some_and(Session::is_waiting));
        deadlines
            .close
            .prune(|id| session(id).is_some_and(Session::is_closing));
        deadlines
            .answered
            .prune(|id| session(id).is_some_and(Session::is_closing));

        while let Some(id) = self.hub.deadlines.handshake.pop_due(now.clock) {
            if self
                .connections
                .get(id)
                .is_some_and(|connection| connection.session.is_in_handshake())
            {
                self.close(id, CloseReason::HandshakeTimeout, now);
            }
        }
        while let Some(id) = self.hub.deadlines.auth.pop_due(now.clock) {
            if self
                .connections
                .get(id)
                .is_some_and(|connection| connection.session.awaits_authentication())
            {
                self.close(id, CloseReason::NeverAuthenticated, now);
            }
        }
        while let Some(id) = self.hub.deadlines.command.pop_due(now.clock) {
            let due = self
                .connections
                .get(id)
                .and_then(|connection| connection.session.waits_until());
            if due.is_some_and(|due| due <= now.clock) {
                self.act(id, now, Session::on_command_timeout);
            }
        }
        let patience = self.hub.limits.send_timeout;
        while let Some(id) = self.hub.deadlines.close.pop_due(now.clock) {
            let Some(connection) = self.connections.get(id) else {
                continue;
            };
            if connection.session.is_taking_leave(patience, now) {
                self.hub.deadlines.close.begin(now.clock, id);
            } else if connection.session.is_closing() {
                self.abandon(id, now);
            }
        }
        while let Some(id) = self.hub.deadlines.answered.pop_due(now.clock) {
            if self
                .connections
                .get(id)
                .is_some_and(|connection| connection.session.is_closing())
            {
                self.abandon(id, now);
            }
        }
        while let Some(id) = self.hub.deadlines.send.pop_due(now.clock) {
            self.check_full_socket(id, now);
        }
        self.hub.roll_months(now);
        self.sweep(now);
        self.drain_step(now);
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
        if self.hub.limits.slow_consumer == SlowConsumerPolicy::Close
            && connection.session.is_open()
            && now.clock.saturating_sub(progress_at) >= self.hub.limits.send_timeout
        {
            self.close(id, CloseReason::SlowConsumer, now);
        } else {
            connection.listed.insert(Listed::SEND_TIMER);
            self.hub.deadlines.send.begin(now.clock, id);
        }
    }

    /// From now on probes and `/readyz` say that the process is about to end; nothing else changes.
    pub fn announce_drain(&mut self) {
        self.hub.admission = Admission::Leaving;
    }

    /// Begins to close all sessions, spread evenly over `drain`. No more connections may come by then. Those that are here
    /// may still finish their handshake, and are closed in their turn.
    pub fn begin_drain(&mut self, drain: Duration, now: Now) {
        if self.drain.is_none() {
            self.hub.admission = Admission::Leaving;
            self.drain = Some(Drain::new(self.connections.len(), drain, now.clock));
        }
    }

    /// Whether the drain is over: no connection is left, or its time is over.
    #[must_use]
    pub fn is_drained(&self, now: Now) -> bool {
        self.drain
            .as_ref()
            .is_some_and(|drain| drain.is_over(now.clock) || self.connections.is_empty())
    }

    fn drain_step(&mut self, now: Now) {
        let Some(mut drain) = self.drain.take() else {
            return;
        };
        let slots = self.connections.slots();
        while let Some(slot) = drain.next_slot(slots, now.clock) {
            if let Some((id, connection)) = self.connections.at_slot(slot)
                && connection.session.is_open()
            {
                drain.closed_one();
                self.close(id, CloseReason::Drain, now);
            }
        }
        if drain.is_spread(now.clock) {
            self.hub.admission = Admission::Draining;
        }
        self.drain = Some(drain);
    }
}
