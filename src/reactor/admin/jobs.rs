//! Step 3 of the turn: what was asked for on the admin address and takes more than one turn, a slice of one job a turn.
//!
//! ```text
//! begin_admin -> queue of jobs -> the first does a slice -> not done: to the end of the queue
//!                                                        -> done: its asker is answered
//! ```
//!
//! Invariants: at most [`ADMIN_JOBS_MAX`] jobs; who comes beyond is told so at once. A slice costs as much as one of an answer
//! to the platform, whatever is asked. A listing whose asker has gone ends; an order is carried out all the same. While
//! sessions are renewed ([`renewal`](super::super::renewal)) nothing goes on, because whose session is whose may not be known.

use std::collections::VecDeque;

use super::super::Reactor;
use super::super::modules::Switch;
use super::super::socket::Socket;
use super::actions;
use super::sessions::{Closing, Listing};
use crate::limits::ADMIN_JOBS_MAX;
use crate::protocol::admin::AdminRefusal;
use crate::protocol::http::Status;
use crate::session::admin::AdminAnswer;
use crate::session::clock::Now;
use crate::session::id::ConnId;

/// The jobs under way, the next one first.
#[derive(Default)]
pub(in crate::reactor) struct Jobs(VecDeque<Job>);

struct Job {
    asker: ConnId,
    work: Work,
}

/// What is done for an asker.
pub(super) enum Work {
    Listing(Listing),
    Closing(Closing),
    Switching(Switch),
}

impl Work {
    /// Whether it is done to an end even if nobody waits for the answer.
    fn is_order(&self) -> bool {
        match self {
            Self::Listing(_) => false,
            Self::Closing(_) | Self::Switching(_) => true,
        }
    }

    /// Whether it waits for a thread, and not for a turn.
    fn is_waiting(&self) -> bool {
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

    /// How many there are (a gauge).
    pub(in crate::reactor) fn len(&self) -> usize {
        self.0.len()
    }
}

impl<S: Socket> Reactor<S> {
    /// Takes a job in, or tells its asker that there are too many.
    pub(super) fn begin_job(&mut self, work: Work, asker: ConnId, now: Now) {
        if self.jobs.0.len() < ADMIN_JOBS_MAX {
            self.jobs.0.push_back(Job { asker, work });
        } else {
            self.hub.metrics.admin_jobs_refused_total += 1;
            self.answer_admin(asker, &busy(), now);
        }
    }

    /// Whether there is room for another job.
    pub(super) fn has_room_for_job(&self) -> bool {
        self.jobs.0.len() < ADMIN_JOBS_MAX
    }

    /// A slice of the first job that need not wait.
    pub(in crate::reactor) fn go_on_with_jobs(&mut self, now: Now) {
        if self.renewal.is_some() {
            return;
        }
        for _ in 0..self.jobs.0.len() {
            let Some(mut job) = self.jobs.0.pop_front() else {
                return;
            };
            if !job.work.is_order() && !self.is_asking(job.asker) {
                continue;
            }
            let answer = match &mut job.work {
                Work::Listing(listing) => self.list_slice(listing, now),
                Work::Closing(closing) => self.close_slice(closing, job.asker, now),
                Work::Switching(switch) => {
                    let done = self.go_on_switch(switch, now);
                    done.map(|reply| actions::switched(switch, &reply))
                }
            };
            if let Some(answer) = answer {
                return self.answer_admin(job.asker, &answer, now);
            }
            let is_waiting = job.work.is_waiting();
            self.jobs.0.push_back(job);
            if !is_waiting {
                return;
            }
        }
    }

    /// Whether the connection still waits for the answer to its request.
    fn is_asking(&self, asker: ConnId) -> bool {
        let connection = self.connections.get(asker);
        connection.is_some_and(|one| one.session.is_admin_waiting())
    }
}

pub(super) fn busy() -> AdminAnswer {
    let text = "busy: too many listings and orders are under way; ask again";
    AdminAnswer::Refused(AdminRefusal::new(Status::Unavailable, text))
}
