//! Which connections are those of the admin address, and which of their requests wait for a turn.

use std::collections::VecDeque;

use crate::limits::ADMIN_REQUESTS_PER_TURN_MAX;
use crate::protocol::admin::AdminRequest;
use crate::session::ListenerKind;
use crate::session::id::ConnId;

/// The connections of the admin address, the oldest first, and their requests that wait. Invariant: of each listener at
/// most [`ADMIN_CONNECTIONS_MAX`](crate::limits::ADMIN_CONNECTIONS_MAX) ask and
/// [`ADMIN_LEAVING_MAX`](crate::limits::ADMIN_LEAVING_MAX) are closing when another is accepted; a connection is here from
/// its accept until it leaves the table.
#[derive(Debug, Default)]
pub(in crate::reactor) struct AdminConnections {
    connections: Vec<(ListenerKind, ConnId)>,
    /// Requests that a later turn begins, the oldest first: of each connection at most one.
    waiting: VecDeque<(ConnId, AdminRequest)>,
    /// How many were begun in this turn.
    begun: usize,
}

impl AdminConnections {
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

    /// A request has come. It is given back if it may be begun in this turn; else it waits.
    pub(super) fn take(&mut self, id: ConnId, request: AdminRequest) -> Option<AdminRequest> {
        if self.begun < ADMIN_REQUESTS_PER_TURN_MAX {
            self.begun += 1;
            return Some(request);
        }
        self.waiting.push_back((id, request));
        None
    }

    /// A turn begins. Takes out the requests that have waited for it.
    pub(super) fn begin_turn(&mut self) -> Vec<(ConnId, AdminRequest)> {
        self.begun = self.waiting.len().min(ADMIN_REQUESTS_PER_TURN_MAX);
        let due = self.waiting.drain(..self.begun).collect();
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
        due
    }

    /// Whether a request waits for the next turn.
    pub(in crate::reactor) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The connections of this listener, the oldest first.
    pub(super) fn of(&self, listener: ListenerKind) -> impl Iterator<Item = ConnId> {
        let is_of_it = move |(kind, _): &&(ListenerKind, ConnId)| *kind == listener;
        self.connections.iter().filter(is_of_it).map(|(_, id)| *id)
    }
}
