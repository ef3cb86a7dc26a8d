//! The platform's requests over AMQP (PROTOCOL 8), and how far the one under way is ([`super::requests`]).
//!
//! Invariant: one request is under way at a time, and the next is taken only when there is room for its answer.

use std::time::Duration;

use super::modules::Switch;
use super::walk::Walk;
use crate::handoff::ask::AnswerEnd;
use crate::limits;
use crate::log_limit::LogLimit;
use crate::protocol::control::{Answer, ModuleChange, Reply, ReplyTo, Request};
use crate::session::bucket::{Bucket, BucketRule};
use crate::session::clock::Now;

/// The requests, and the one under way.
pub(super) struct Control {
    pub(super) requests: AnswerEnd<Request, Answer>,
    rate: Option<BucketRule>,
    bucket: Bucket,
    pub(super) job: Option<Job>,
    pub(super) left_out_log: LogLimit,
}

/// A request under way.
pub(super) struct Job {
    pub(super) reply_to: ReplyTo,
    pub(super) msg_id: Option<Box<str>>,
    pub(super) work: Work,
}

/// What is done for it.
pub(super) enum Work {
    Listing(Listing),
    /// A change that begins when no other is under way.
    Waiting(ModuleChange),
    Switching(Switch),
    /// Nothing is left to do but to answer.
    Done(Reply),
}

/// An answer that is being made.
pub(super) struct Listing {
    pub(super) walk: Walk,
    pub(super) data: Vec<u8>,
    pub(super) listed: u64,
    pub(super) left_out: u64,
}

impl Control {
    pub(super) fn new(requests: AnswerEnd<Request, Answer>) -> Self {
        let per_second = limits::CONTROL_REQUESTS_PER_SECOND_MAX;
        Self {
            requests,
            rate: BucketRule::new(per_second, per_second),
            bucket: Bucket::default(),
            job: None,
            left_out_log: LogLimit::default(),
        }
    }

    /// When there is something to do; `None`: when the loop is woken. `is_switching`: a change is under way, whoever asked
    /// for it.
    pub(super) fn due(&self, is_switching: bool) -> Option<Duration> {
        match &self.job {
            Some(job) => match &job.work {
                Work::Switching(switch) if switch.is_waiting() => None,
                Work::Waiting(_) if is_switching => None,
                Work::Waiting(_) | Work::Switching(_) | Work::Listing(_) | Work::Done(_) => {
                    Some(Duration::ZERO)
                }
            },
            None => self.requests.has_question().then(|| {
                let ready_at = |rule| self.bucket.ready_at(rule);
                self.rate.map_or(Duration::ZERO, ready_at)
            }),
        }
    }

    /// The next request, unless there were too many just now.
    pub(super) fn take(&mut self, now: Now) -> Option<Request> {
        if self
            .rate
            .is_some_and(|rule| self.bucket.ready_at(rule) > now.clock)
        {
            return None;
        }
        let request = self.requests.try_take()?;
        if let Some(rule) = self.rate {
            self.bucket.take(rule, now.clock);
        }
        Some(request)
    }

    /// Requests that wait (a gauge).
    pub(super) fn waiting(&self) -> usize {
        self.requests.waiting()
    }
}
