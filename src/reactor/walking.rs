//! Step 3 of the turn: a slice of a walk over all sessions ([`super::walk`]).

use super::Reactor;
use super::connections::Connection;
use super::socket::Socket;
use super::walk::{Visit, Walk, Walked};
use crate::limits::CONTROL_SESSIONS_PER_TURN_MAX;
use crate::session::id::ConnId;
use crate::session::listing::Shown;
use crate::tls::Version;

/// A session that is wanted.
pub(super) struct Found<'f, S> {
    pub(super) id: ConnId,
    pub(super) shown: Shown<'f>,
    pub(super) socket: &'f S,
    /// Its version of TLS, if it has any.
    pub(super) tls: Option<Version>,
}

impl<S: Socket> Reactor<S> {
    /// Walks on for a slice of [`CONTROL_SESSIONS_PER_TURN_MAX`], give or take one visit, and visits the sessions that are
    /// wanted.
    pub(super) fn walk_on(
        &self,
        walk: &mut Walk,
        mut visit: impl FnMut(Found<'_, S>) -> Visit,
    ) -> Walked {
        let mut cost = 0;
        while cost < CONTROL_SESSIONS_PER_TURN_MAX {
            let slot = walk.next_slot;
            if slot >= self.connections.slots() {
                return Walked::Ended;
            }
            walk.next_slot += 1;
            cost += 1;
            let Some((
                id,
                Connection {
                    socket, session, ..
                },
            )) = self.connections.peek(slot)
            else {
                continue;
            };
            if session.is_judged_by_subscriptions(&walk.wanted) {
                cost += self.hub.subscriptions.index().len(session.subscriptions());
            }
            let Some(shown) = session.shown(id, &walk.wanted, &self.hub) else {
                continue;
            };
            let is_last = walk.wanted.is_of_one();
            let tls = self.tls_version(id);
            match visit(Found {
                id,
                shown,
                socket,
                tls,
            }) {
                Visit::Stop => {
                    walk.next_slot = slot;
                    return Walked::Stopped;
                }
                Visit::Pause | Visit::GoOn(_) if is_last => return Walked::Ended,
                Visit::Pause => return Walked::Paused,
                Visit::GoOn(more) => cost += more,
            }
        }
        Walked::Paused
    }
}
