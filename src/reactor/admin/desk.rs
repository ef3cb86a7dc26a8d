//! The connections of the admin address. They take no place of a client, and no client takes theirs: an operator gets in
//! when the process is full. A flood of one listener takes no place of the other.

use std::io::IoSlice;

use crate::limits::ADMIN_CONNECTIONS_MAX;
use crate::reactor::Reactor;
use crate::reactor::connections::Listed;
use crate::reactor::socket::Socket;
use crate::session::admin::busy_answer;
use crate::session::clock::Now;
use crate::session::id::{ConnId, Peer};
use crate::session::{ListenerKind, Session};

/// Which connections are those of the admin address. Invariant: of each listener at most [`ADMIN_CONNECTIONS_MAX`], the
/// oldest first; a connection is here from its accept until it leaves the table.
#[derive(Debug, Default)]
pub(in crate::reactor) struct Desk {
    connections: Vec<(ListenerKind, ConnId)>,
}

impl Desk {
    /// How many connections there are.
    pub(in crate::reactor) fn len(&self) -> usize {
        self.connections.len()
    }

    /// A connection has left the table. O(n) in their number, which is small.
    pub(in crate::reactor) fn remove(&mut self, id: ConnId) {
        self.connections.retain(|(_, other)| *other != id);
    }

    fn of(&self, listener: ListenerKind) -> impl Iterator<Item = ConnId> {
        let is_of_it = move |(kind, _): &&(ListenerKind, ConnId)| *kind == listener;
        self.connections.iter().filter(is_of_it).map(|(_, id)| *id)
    }
}

impl<S: Socket> Reactor<S> {
    /// Takes a connection of the admin address in, to be read in the coming turn. If there are as many as there may be, one
    /// that waits for a request makes room. `None`: there is none, and the newcomer is told so (503) and closed.
    pub(in crate::reactor) fn accept_admin(
        &mut self,
        mut socket: S,
        peer: Peer,
        listener: ListenerKind,
        now: Now,
    ) -> Option<ConnId> {
        if self.desk.of(listener).count() >= ADMIN_CONNECTIONS_MAX && !self.evict(listener, now) {
            self.hub.metrics.admin_connections_refused_total += 1;
            // A request that is there is read, because a socket that is closed with unread bytes resets the answer.
            let _unread = socket.read(&mut self.read_buffer);
            let _untold = socket.write(&[IoSlice::new(&busy_answer())]);
            return None;
        }
        let session = Session::of_admin(listener, peer, now.clock, &mut self.hub);
        let id = self.connections.insert(socket, session);
        self.desk.connections.push((listener, id));
        self.hub.arrivals.note(now.unix);
        self.hub.deadlines.admin.begin(now.clock, id);
        let connection = self.connections.get_mut(id)?;
        connection.listed.insert(Listed::REREAD | Listed::ADMIN);
        self.reread.push_back(id);
        Some(id)
    }

    /// Ends the oldest connection of a listener that waits for a request; false: there is none.
    fn evict(&mut self, listener: ListenerKind, now: Now) -> bool {
        let is_at_rest = |id: &ConnId| {
            let connection = self.connections.get(*id);
            connection.is_some_and(|one| one.session.is_admin_at_rest() || !one.session.is_admin())
        };
        let Some(id) = self.desk.of(listener).find(is_at_rest) else {
            return false;
        };
        if let Some(connection) = self.connections.get_mut(id) {
            connection.session.evict(&mut self.hub.context(id, now));
        }
        self.remove(id);
        true
    }

    /// Looks whether a connection has waited too long for a request.
    pub(in crate::reactor) fn check_admin(&mut self, id: ConnId, now: Now) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let cx = &mut self.hub.context(id, now);
        if connection.session.check_admin(cx) {
            self.hub.deadlines.admin.begin(now.clock, id);
        }
        self.settle(id);
    }
}
