//! How far a walk over all sessions is, for those that somebody asks for, the platform or the operator. The loop goes on
//! with it in [`super::walking`], a slice a turn.
//!
//! Invariant: a session keeps its slot, and a walk visits each slot once. So a session that is there all the time, and is
//! wanted when it is visited, is found exactly once; one that comes or goes meanwhile is found or not.

use crate::session::listing::Wanted;

/// How far a walk is.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) wanted: Wanted,
    pub(super) next_slot: u32,
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
