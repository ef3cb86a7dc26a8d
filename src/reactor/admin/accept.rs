//! The connections of the admin address are taken in and looked at. They take no place of a client, and no client takes
//! theirs: an operator gets in when the process is full. A flood of one listener takes no place of the other.

use crate::limits::{ADMIN_CONNECTIONS_MAX, ADMIN_LEAVING_MAX};
use crate::reactor::Reactor;
use crate::reactor::connections::Listed;
use crate::reactor::socket::Socket;
use crate::session::clock::Now;
use crate::session::id::{ConnId, Peer};
use crate::session::{ListenerKind, Session};

impl<S: Socket> Reactor<S> {
    /// Takes a connection of the admin address in, to be read in the coming turn. If there are as many as there may be, the
    /// oldest of those that wait for a request, or have taken longer than `send_timeout_ms` to read their answers, is
    /// ended; if there is none, the newcomer is kept just long enough to be told so (503).
    pub(in crate::reactor) fn accept_admin(
        &mut self,
        socket: S,
        peer: Peer,
        listener: ListenerKind,
        now: Now,
    ) -> Option<ConnId> {
        let (mut asking, mut leaving) = (Vec::new(), Vec::new());
        for id in self.admin.of(listener) {
            let connection = self.connections.get(id);
            let is_asking = connection.is_some_and(|one| one.session.is_admin());
            (if is_asking { &mut asking } else { &mut leaving }).push(id);
        }
        if leaving.len() >= ADMIN_LEAVING_MAX
            && let Some(oldest) = leaving.first()
        {
            self.evict(*oldest, now);
        }
        let mut is_refused = false;
        let send_timeout = self.hub.limits.send_timeout;
        if asking.len() >= ADMIN_CONNECTIONS_MAX {
            let may_go = |id: &&ConnId| {
                let connection = self.connections.get(**id);
                // One that has not been read may have a whole request.
                connection.is_some_and(|one| {
                    !one.listed.contains(Listed::REREAD)
                        && one.session.may_make_room(now, send_timeout)
                })
            };
            match asking.iter().find(may_go) {
                Some(id) => self.evict(*id, now),
                None => is_refused = true,
            }
        }
        let session = Session::of_admin(listener, peer, now.clock, &mut self.hub);
        let id = self.connections.insert(socket, session);
        self.admin.insert(listener, id);
        self.hub.arrivals.note(now.unix());
        let connection = self.connections.get_mut(id)?;
        connection.listed.insert(Listed::REREAD | Listed::ADMIN);
        self.reread.push_back(id);
        if is_refused {
            self.hub.metrics.admin_connections_refused_total += 1;
            self.act(id, now, Session::refuse_full);
        } else {
            self.hub.deadlines.admin.begin(now.clock, id);
        }
        Some(id)
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
