//! Step 3 of the turn: the platform's requests over AMQP ([`super::control`]), answered from the table of connections a slice
//! a turn.
//!
//! Invariants: a slice looks at [`limits::CONTROL_SESSIONS_PER_TURN_MAX`] sessions and writes
//! [`limits::CONTROL_BYTES_PER_TURN_MAX`], give or take one session. While sessions are renewed ([`super::renewal`]) nothing
//! is answered.
//!
//! A session that comes or goes while an answer is made may be in it or not.

use super::Reactor;
use super::control::{Control, Job, Listing, Work};
use super::socket::Socket;
use super::walk::{Visit, Walk, Walked};
use crate::handoff::ask::AnswerEnd;
use crate::limits;
use crate::protocol::control::{Answer, ModuleChange, Question, Reply, Request, Whose};
use crate::session::clock::Now;
use crate::session::listing::Wanted;

impl<S: Socket> Reactor<S> {
    /// Answers the platform's requests from now on.
    pub fn take_control(&mut self, requests: AnswerEnd<Request, Answer>) {
        self.control = Some(Control::new(requests));
    }

    /// A slice of the request under way, or of the next.
    pub(super) fn answer_platform(&mut self, now: Now) {
        if self.renewal.is_some() {
            return;
        }
        let Some(mut control) = self.control.take() else {
            return;
        };
        if control.job.is_none() {
            control.job = control.take(now).map(|request| self.begin(request));
        }
        if let Some(mut job) = control.job.take() {
            match self.go_on(&mut job.work, &mut control, now) {
                None => control.job = Some(job),
                Some(reply) => {
                    self.hub.metrics.control_requests_total += 1;
                    control.requests.answer(Answer {
                        reply_to: job.reply_to,
                        msg_id: job.msg_id,
                        reply,
                    });
                }
            }
        }
        self.control = Some(control);
    }

    fn begin(&mut self, request: Request) -> Job {
        let work = match request.question {
            Question::Sessions(whose) => begin_listing(&whose),
            Question::Module(change) => Work::Waiting(change),
        };
        Job {
            reply_to: request.reply_to,
            msg_id: request.msg_id,
            work,
        }
    }

    fn begin_change(&mut self, change: ModuleChange) -> Work {
        match self.begin_switch(change) {
            Ok(switch) => Work::Switching(switch),
            Err(reply) => Work::Done(Reply::Module(reply)),
        }
    }

    /// A slice. Returns the answer once it is whole.
    fn go_on(&mut self, work: &mut Work, control: &mut Control, now: Now) -> Option<Reply> {
        match work {
            Work::Done(reply) => Some(reply.clone()),
            Work::Waiting(_) if self.is_switching => None,
            Work::Waiting(change) => {
                let change = change.clone();
                *work = self.begin_change(change);
                None
            }
            Work::Switching(switch) => self.go_on_switch(switch, now).map(Reply::Module),
            Work::Listing(listing) => {
                let is_whole = self.list_some(listing);
                is_whole.then(|| {
                    let metrics = &mut self.hub.metrics;
                    metrics.control_sessions_listed_total += listing.listed;
                    metrics.control_sessions_left_out_total += listing.left_out;
                    if listing.left_out > 0
                        && let Some(others) = control.left_out_log.pass(self.epoch + now.clock)
                    {
                        log::warn!(
                            "control: {} sessions told of and {} left out of an answer, which may have {} bytes of them{others}",
                            listing.listed,
                            listing.left_out,
                            limits::CONTROL_ANSWER_BYTES_MAX
                        );
                    }
                    Reply::Sessions(std::mem::take(&mut listing.data))
                })
            }
        }
    }

    /// Writes sessions as far as the share of the turn goes. True: the answer is whole.
    fn list_some(&mut self, listing: &mut Listing) -> bool {
        let Listing {
            walk,
            data,
            listed,
            left_out,
        } = listing;
        let bytes_max = data.len() + limits::CONTROL_BYTES_PER_TURN_MAX;
        let walked = self.walk_on(walk, |found| {
            if data.len() >= limits::CONTROL_ANSWER_BYTES_MAX {
                *left_out += 1;
                return Visit::GoOn(0);
            }
            *listed += 1;
            if !data.is_empty() {
                data.push(b',');
            }
            found.shown.write_object(&self.host, data);
            if data.len() >= bytes_max {
                Visit::Pause
            } else {
                Visit::GoOn(0)
            }
        });
        walked == Walked::Ended
    }
}

fn begin_listing(whose: &Whose) -> Work {
    match Wanted::of(whose) {
        None => Work::Done(Reply::Sessions(Vec::new())),
        Some(wanted) => Work::Listing(Listing {
            walk: Walk::new(wanted),
            data: Vec::new(),
            listed: 0,
            left_out: 0,
        }),
    }
}
