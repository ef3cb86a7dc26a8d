//! Step 2 of the turn: a connection is taken in, or refused because there is no room.
//!
//! In a full process the oldest unfinished handshake, of the address that has most of them, makes room for a newcomer
//! ([`super::unfinished`]). If there is none, a newcomer beyond `max_connections` is told so (503) and closed.
//!
//! If its whole request is there, as `TCP_DEFER_ACCEPT` makes usual, it is answered and closed at once. Nothing is
//! allocated, kept or registered for it, so every such connection gets its answer, however many come. Its request was
//! read to its end, so the kernel delivers the answer; to close a socket with unread bytes is a reset, which may destroy
//! the answer.
//!
//! If its request is not whole, it is kept just long enough to be read to its end. There are at most
//! [`limits::REFUSALS_MAX`] of these; more are closed without a word. Connections of the admin address are none of these,
//! and have a bound of their own ([`super::admin`]).

use std::io::{self, IoSlice};

use super::Reactor;
use super::connections::Listed;
use super::read::ReadBudget;
use super::socket::Socket;
use crate::limits;
use crate::protocol::proxy::Preamble;
use crate::session::clock::Now;
use crate::session::close::CloseReason;
use crate::session::id::{ConnId, Peer};
use crate::session::{ListenerKind, Session};

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// There is room.
    Free,
    /// It is taken in, told 503 and read to its end.
    Refuse,
    /// It has been told already, or there is no room even for that.
    Close,
}

impl<S: Socket> Reactor<S> {
    /// Takes a connection in, to be read in the coming turn. `None`: it is closed already. That happens without a word to
    /// one that had to come from a trusted proxy and does not; with 503 beyond `max_connections`, if no unfinished handshake
    /// makes room; and with 429 to one too many of its address. The last two are kept if their requests are not whole.
    pub fn accept(
        &mut self,
        mut socket: S,
        peer: Peer,
        listener: ListenerKind,
        now: Now,
    ) -> Option<ConnId> {
        self.hub.metrics.connections_accepted_total += 1;
        if !listener.is_of_clients() {
            return self.accept_admin(socket, peer, listener, now);
        }
        let Some(preamble) = self.hub.limits.proxies.preamble(peer.address().ip()) else {
            self.hub.metrics.proxy_peers_refused_total += 1;
            if let Some(left_out) = self.proxy_log.pass(self.epoch + now.clock) {
                log::warn!("connection from {peer} closed: not one of trusted_proxies{left_out}");
            }
            return None;
        };
        let is_tls = listener == ListenerKind::TlsClients;
        let room = if is_tls {
            self.room_for_tls(now)
        } else {
            self.room_for(&mut socket, preamble, now)
        };
        if room == Room::Close {
            return None;
        }
        let session = Session::new(preamble, peer, now.clock, &mut self.hub);
        let is_surplus = session.is_surplus();
        let id = self.connections.insert(socket, session);
        self.hub.arrivals.note(now.unix());
        if is_tls {
            if !self.secure(id, now) {
                return None;
            }
        } else if is_surplus && room == Room::Free && !self.take_surplus(id, now) {
            return None;
        }
        let connection = self.connections.get_mut(id)?;
        if room == Room::Refuse {
            connection
                .session
                .refuse_full(&mut self.hub.context(id, now));
        } else {
            self.hub.deadlines.handshake.begin(now.clock, id);
        }
        connection.listed.insert(Listed::REREAD);
        self.reread.push_back(id);
        self.settle(id);
        Some(id)
    }

    /// Connections of the websocket port.
    pub(super) fn clients(&self) -> usize {
        self.connections.len() - self.admin.len()
    }

    /// Decides on a connection of the websocket port that was just accepted.
    fn room_for(&mut self, socket: &mut S, preamble: Preamble, now: Now) -> Room {
        let Some(beyond) = self.clients().checked_sub(self.connections_max) else {
            return Room::Free;
        };
        if self.evict_unfinished(now) {
            return Room::Free;
        }
        let is_answered = self.answer_at_once(socket, preamble);
        if is_answered || beyond < limits::REFUSALS_MAX {
            self.hub.metrics.handshakes_refused_full_total += 1;
            return if is_answered {
                Room::Close
            } else {
                Room::Refuse
            };
        }
        self.hub.metrics.connections_dropped_full_total += 1;
        Room::Close
    }

    /// As [`Reactor::room_for`], of the TLS port: a connection for which there is no room is closed without a word, because
    /// an answer would cost a whole handshake.
    fn room_for_tls(&mut self, now: Now) -> Room {
        if self.clients() < self.connections_max || self.evict_unfinished(now) {
            return Room::Free;
        }
        self.hub.metrics.connections_dropped_full_total += 1;
        Room::Close
    }

    /// Ends the unfinished handshake that is first to go; false: there is none.
    fn evict_unfinished(&mut self, now: Now) -> bool {
        let Some(id) = self.unfinished.first_to_go() else {
            return false;
        };
        if !self.is_secured(id)
            && let Some(connection) = self.connections.get_mut(id)
        {
            // The peer may not speak HTTP, and may not be listening.
            let _untold = connection
                .socket
                .write(&[IoSlice::new(self.full_answer.whole())]);
        }
        self.evict(id, now);
        true
    }

    /// Reads a new connection that is one too many of its address at once, and tells it so. It is kept only if its request
    /// is not whole, and there are few of its kind. False: it is closed.
    fn take_surplus(&mut self, id: ConnId, now: Now) -> bool {
        let mut budget = ReadBudget::of_one_read();
        self.read(id, &mut budget, now);
        let Some(connection) = self.connections.get_mut(id) else {
            return false;
        };
        if connection.session.is_beyond_surplus(&self.hub) {
            connection
                .session
                .close(CloseReason::NoPlace, &mut self.hub.context(id, now));
        } else if connection.session.is_in_handshake() {
            return true;
        }
        let (socket, outbox) = (&mut connection.socket, &mut connection.session.outbox);
        if !outbox.is_empty() {
            let write = |slices: &[IoSlice<'_>]| socket.write(slices);
            // A new socket has room for the answer; a peer that is gone needs none.
            let report = outbox.flush(write, &mut self.scratch, now.clock, &mut self.hub.outboxes);
            self.hub.metrics.writes_total += 1;
            self.hub.metrics.written_bytes_total += report.written as u64;
        }
        connection.session.abandon(&mut self.hub.context(id, now));
        self.remove(id);
        false
    }

    /// Reads once, and answers if that is a whole request and nothing more. False: more of the request is to come.
    fn answer_at_once(&mut self, socket: &mut S, preamble: Preamble) -> bool {
        let metrics = &mut self.hub.metrics;
        metrics.reads_total += 1;
        let count = match socket.read(&mut self.read_buffer) {
            Ok(count) => count,
            Err(error) => {
                use io::ErrorKind::{Interrupted, WouldBlock};
                return !matches!(error.kind(), WouldBlock | Interrupted);
            }
        };
        metrics.read_bytes_total += count as u64;
        if count == 0 {
            return true;
        }
        let input = self.read_buffer.get(..count).unwrap_or_default();
        let Some(answer) = self.full_answer.to(input, preamble) else {
            return false;
        };
        metrics.writes_total += 1;
        // A new socket has room for the answer; a peer that is gone needs none.
        if let Ok(written) = socket.write(&[IoSlice::new(answer)]) {
            metrics.written_bytes_total += written as u64;
        }
        true
    }
}
