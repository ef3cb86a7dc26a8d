//! What was asked for on the admin address and takes more than one turn. The loop goes on with it in [`super::jobs`].
//!
//! Invariant: at most [`ADMIN_JOBS_MAX`] jobs are under way.

use std::collections::VecDeque;

use super::listing::{Closing, Listing};
use crate::limits::ADMIN_JOBS_MAX;
use crate::reactor::modules::Switch;
use crate::session::id::ConnId;

/// The jobs under way, the next one first.
#[derive(Default)]
pub(in crate::reactor) struct Jobs(VecDeque<Job>);

/// A job of an asker.
pub(super) struct Job {
    pub(super) asker: ConnId,
    pub(super) work: Work,
}

/// What is done for an asker.
pub(super) enum Work {
    Listing(Listing),
    Closing(Closing),
    Switching(Switch),
}

impl Work {
    /// Whether it is done to an end even if nobody waits for the answer.
    pub(super) fn is_order(&self) -> bool {
        match self {
            Self::Listing(_) => false,
            Self::Closing(_) | Self::Switching(_) => true,
        }
    }

    /// Whether it waits for a thread, and not for a turn.
    pub(super) fn is_waiting(&self) -> bool {
        match self {
            Self::Listing(_) | Self::Closing(_) => false,
            Self::Switching(switch) => switch.is_waiting(),
        }
    }
}

impl Jobs {
    /// Whether the next turn has something to do.
    pub(in crate::reactor) fn is_pressing(&self) -> bool {
        self.0.iter().any(|job| !job.work.is_waiting())
    }

    /// Whether there is room for another.
    pub(super) fn has_room(&self) -> bool {
        self.0.len() < ADMIN_JOBS_MAX
    }

    /// Lets a job wait for its turn, behind the others. There must be room.
    pub(super) fn push(&mut self, job: Job) {
        self.0.push_back(job);
    }

    /// The job whose turn it is.
    pub(super) fn pop(&mut self) -> Option<Job> {
        self.0.pop_front()
    }

    /// How many there are (a gauge).
    pub(in crate::reactor) fn len(&self) -> usize {
        self.0.len()
    }
}
