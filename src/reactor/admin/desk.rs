//! Which connections are those of the admin address.

use crate::session::ListenerKind;
use crate::session::id::ConnId;

/// Which connections are those of the admin address, the oldest first. Invariant: of each listener at most
/// [`ADMIN_CONNECTIONS_MAX`](crate::limits::ADMIN_CONNECTIONS_MAX) that ask and [`ADMIN_LEAVING_MAX`](crate::limits::ADMIN_LEAVING_MAX) that are closing when another is accepted; a connection is
/// here from its accept until it leaves the table.
#[derive(Debug, Default)]
pub(in crate::reactor) struct Desk {
    connections: Vec<(ListenerKind, ConnId)>,
}

impl Desk {
    /// How many connections there are.
    pub(in crate::reactor) fn len(&self) -> usize {
        self.connections.len()
    }

    /// A connection of this listener was taken in.
    pub(super) fn insert(&mut self, listener: ListenerKind, id: ConnId) {
        self.connections.push((listener, id));
    }

    /// A connection has left the table. O(n) in their number, which is small.
    pub(in crate::reactor) fn remove(&mut self, id: ConnId) {
        self.connections.retain(|(_, other)| *other != id);
    }

    /// The connections of this listener, the oldest first.
    pub(super) fn of(&self, listener: ListenerKind) -> impl Iterator<Item = ConnId> {
        let is_of_it = move |(kind, _): &&(ListenerKind, ConnId)| *kind == listener;
        self.connections.iter().filter(is_of_it).map(|(_, id)| *id)
    }
}
