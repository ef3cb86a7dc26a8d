//! Step 3 of the turn: what was asked for on the admin address and takes more than one turn, a slice of one job a turn.
//!
//! ```text
//! begin_admin -> queue of jobs -> the first does a slice -> not done: to the end of the queue
//!                                                        -> done: its asker is answered
//! ```
//!
//! Invariants: at most [`ADMIN_JOBS_MAX`](crate::limits::ADMIN_JOBS_MAX) jobs; a request beyond is refused at once. A slice
//! costs as much as one of an answer to the platform, whatever is asked. A listing ends when its connection has left the
//! table; an order is carried out all the same. A job goes on when the peer has closed its side, because some clients do so
//! and wait for the answer. While sessions are renewed ([`renewal`](crate::reactor::renewal)) no job goes on, because the
//! identities of sessions may be out of date.

use super::actions;
use super::job::{Job, Work};
use crate::protocol::admin::AdminRefusal;
use crate::protocol::http::Status;
use crate::reactor::Reactor;
use crate::reactor::socket::Socket;
use crate::session::admin::AdminAnswer;
use crate::session::clock::Now;
use crate::session::id::ConnId;

impl<S: Socket> Reactor<S> {
    /// Takes a job in, or tells its asker that there are too many.
    pub(super) fn begin_job(&mut self, work: Work, asker: ConnId, now: Now) {
        if self.jobs.has_room() {
            self.jobs.push(Job { asker, work });
        } else {
            self.refuse_job(asker, now);
        }
    }

    /// Tells an asker that there are too many jobs.
    pub(super) fn refuse_job(&mut self, asker: ConnId, now: Now) {
        self.hub.metrics.admin_jobs_refused_total += 1;
        let text = "busy: too many listings and orders are under way; ask again";
        let refusal = AdminRefusal::new(Status::Unavailable, text);
        self.answer_admin(asker, &AdminAnswer::Refused(refusal), now);
    }

    /// A slice of the first job that need not wait.
    pub(in crate::reactor) fn go_on_with_jobs(&mut self, now: Now) {
        if self.renewal.is_some() {
            return;
        }
        for _ in 0..self.jobs.len() {
            let Some(mut job) = self.jobs.pop() else {
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
            self.jobs.push(job);
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
