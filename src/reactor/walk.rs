//! A walk over all sessions for those that are wanted, a slice a turn: for whoever asks, the platform or the operator.
//!
//! Invariant: a session keeps its slot, and a walk visits each slot once. So a session that is there all the time, and is wanted
//! when it is visited, is found exactly once; one that comes or goes meanwhile is found or not.

use super::Reactor;
use super::connections::Connection;
use super::socket::Socket;
use crate::limits::CONTROL_SESSIONS_PER_TURN_MAX;
use crate::session::id::ConnId;
use crate::session::listing::{Shown, Wanted};

/// How far a walk is.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) wanted: Wanted,
    pub(super) next_slot: u32,
}

/// A session that is wanted.
pub(super) struct Found<'f, S> {
    pub(super) id: ConnId,
    pub(super) shown: Shown<'f>,
    pub(super) socket: &'f S,
}

/// What becomes of the walk after a session that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visit {
    /// It goes on. The work that the visit was, where looking at a session is 1.
    GoOn(usize),
    /// The next turn goes on behind this session.
    Pause,
    /// It ends before this session.
    Stop,
}

/// How a slice of a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walked {
    /// The next turn is to go on.
    Paused,
    /// All sessions were looked at, or the only one that can be meant was found.
    Ended,
    /// The visit ended it before the session in [`Walk::next_slot`].
    Stopped,
}

impl Walk {
    /// Over all sessions.
    pub(super) fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            next_slot: 0,
        }
    }
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
            if walk.wanted.is_by_subscriptions() {
                cost += self.hub.subscriptions.index().len(session.subscriptions());
            }
            let Some(shown) = session.shown(id, &walk.wanted, &self.hub) else {
                continue;
            };
            let is_last = walk.wanted.is_of_one();
            match visit(Found { id, shown, socket }) {
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
