//! Step 2 of the turn: the ready sockets are read, each within a budget and all within another.
//!
//! Invariant: a socket that may have unread bytes when the step ends is on the reread list or parked.

use std::io;

use super::connections::Listed;
use super::flush_list::FlushList;
use super::socket::Socket;
use super::{Reactor, Ready};
use crate::limits;
use crate::session::clock::Now;
use crate::session::close::CloseReason;
use crate::session::id::ConnId;

/// What may still be read, in a turn or by one read.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadBudget {
    bytes: usize,
    /// The value of [`Work::frames_read`](crate::session::hub::Work::frames_read) at which the budget is spent.
    frames_max: usize,
    /// The same, while events wait.
    frames_before_events: usize,
    /// How many sessions that have just been read may wait for their flush.
    spoke_max: usize,
}

impl ReadBudget {
    fn of_a_turn() -> Self {
        Self {
            bytes: limits::READ_BYTES_PER_TURN_MAX,
            frames_max: limits::FRAMES_READ_PER_TURN_MAX,
            frames_before_events: limits::FRAMES_READ_BEFORE_EVENTS_MAX,
            spoke_max: limits::FLUSHES_PER_TURN_MAX,
        }
    }

    /// Bytes were read.
    pub(super) fn take(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// The budget of a read that must happen, whatever was read in the turn.
    pub(super) fn of_one_read() -> Self {
        Self {
            bytes: limits::READ_BUFFER_BYTES,
            frames_max: usize::MAX,
            frames_before_events: usize::MAX,
            spoke_max: usize::MAX,
        }
    }
}

impl<S: Socket> Reactor<S> {
    pub(super) fn read_ready(&mut self, ready: &[Ready], now: Now) {
        self.hub.work.frames_read = 0;
        let mut budget = ReadBudget::of_a_turn();
        // First the sockets that an earlier turn left, so that those with news cannot keep them waiting for ever; and only
        // those listed before this turn, because one that is listed again has had its share.
        for _ in 0..self.reread.len() {
            if self.is_spent(&budget) {
                break;
            }
            let Some(id) = self.reread.pop_front() else {
                break;
            };
            if let Some(connection) = self.connections.get_mut(id) {
                connection.listed.remove(Listed::REREAD);
                self.read(id, &mut budget, now);
            }
        }
        for ready in ready {
            let Some(connection) = self.connections.get_mut(ready.id) else {
                continue;
            };
            if ready.writable
                && connection.session.outbox.is_blocked()
                && connection.listed.enter(Listed::FLUSH)
            {
                self.flush.push(ready.id);
            }
            if ready.read_closed {
                connection.listed.insert(Listed::HAS_ENDED);
            }
            if (ready.readable || ready.read_closed) && !connection.listed.contains(Listed::REREAD)
            {
                self.read(ready.id, &mut budget, now);
            }
        }
    }

    /// Reads one socket once, and lists it again if it may have more: after a full read, or when its peer has closed, which
    /// the poll does not tell twice.
    pub(super) fn read(&mut self, id: ConnId, budget: &mut ReadBudget, now: Now) {
        if self.is_secured(id) {
            return self.read_secured(id, budget, now);
        }
        let is_spent = self.is_spent(budget);
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if !connection.session.wants_bytes() {
            connection.listed.insert(Listed::PARKED);
            return;
        }
        if is_spent {
            return self.list_reread(id);
        }
        self.hub.metrics.reads_total += 1;
        self.hub.work.frames_read += 1;
        let most = connection.session.read_bytes_max();
        let most = most.min(self.read_buffer.len());
        let buffer = self.read_buffer.get_mut(..most).unwrap_or_default();
        match connection.socket.read(buffer) {
            Ok(0) => connection
                .session
                .on_end(false, &mut self.hub.context(id, now)),
            Ok(count) => {
                budget.take(count);
                self.hub.metrics.read_bytes_total += count as u64;
                let has_more = count == most || connection.listed.contains(Listed::HAS_ENDED);
                if connection.listed.contains(Listed::UNFINISHED) {
                    connection.listed.remove(Listed::UNFINISHED);
                    let address = connection.session.peer(&self.hub).network();
                    self.unfinished.remove(address, id);
                }
                let input = self.read_buffer.get_mut(..count).unwrap_or_default();
                let request = connection
                    .session
                    .on_bytes(input, &mut self.hub.context(id, now));
                if let Some(request) = request {
                    self.take_request(request, id, now);
                }
                if has_more {
                    self.list_reread(id);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.list_reread(id),
            Err(_) => connection
                .session
                .on_end(true, &mut self.hub.context(id, now)),
        }
        self.note_unfinished(id);
        self.settle_listing(id, FlushList::push_spoke);
    }

    /// Notes a connection that has been read and is still in its handshake.
    pub(super) fn note_unfinished(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id)
            && connection.session.awaits_request()
            && connection.listed.enter(Listed::UNFINISHED)
        {
            let address = connection.session.peer(&self.hub).network();
            self.unfinished.insert(address, id);
        }
    }

    /// While what has arrived in part is over a bound, closes the connection that keeps most of it.
    pub(super) fn close_unfinished(&mut self, now: Now) {
        while let Some(id) = self.hub.partials.first_to_go() {
            self.close(id, CloseReason::PartialsFull, now);
            // Whatever becomes of the connection, it keeps nothing.
            self.hub.partials.remove(id);
        }
    }

    /// Whether the rest must wait for the next turn.
    pub(super) fn is_spent(&self, budget: &ReadBudget) -> bool {
        let frames = self.hub.work.frames_read;
        budget.bytes == 0
            || frames >= budget.frames_max
            || (frames >= budget.frames_before_events && self.handoff.waiting() > 0)
            || self.flush.spoke_len() >= budget.spoke_max
    }
}
