//! The platform's requests over AMQP (PROTOCOL 8), and how far the one under way is ([`super::requests`]).
//!
//! Invariant: one request is under way at a time, and the next is taken only when there is room for its answer.

use std::time::Duration;

use super::modules::{KeepModule, Keeper, Switch, WakeLoop};
use crate::handoff::ask::AnswerEnd;
use crate::limits;
use crate::log_limit::LogLimit;
use crate::protocol::control::{Answer, Reply, ReplyTo, Request};
use crate::session::bucket::{Bucket, BucketRule};
use crate::session::clock::Now;
use crate::session::listing::Wanted;

/// What the platform is answered with.
pub struct ControlParts {
    /// Its requests, and the way of the answers.
    pub requests: AnswerEnd<Request, Answer>,
    /// The name of this host.
    pub host: String,
    /// Keeps changes over a restart; `None`: they are not kept.
    pub keep: Option<KeepModule>,
}

/// The requests, and the one under way.
pub(super) struct Control {
    pub(super) requests: AnswerEnd<Request, Answer>,
    pub(super) host: String,
    pub(super) keeper: Keeper,
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
    Switching(Switch),
    /// Nothing is left to do but to answer.
    Done(Reply),
}

/// An answer that is being made.
pub(super) struct Listing {
    pub(super) wanted: Wanted,
    pub(super) next_slot: u32,
    pub(super) data: Vec<u8>,
    pub(super) listed: u64,
    pub(super) left_out: u64,
}

impl Control {
    pub(super) fn new(parts: ControlParts, wake: WakeLoop) -> Self {
        let per_second = limits::CONTROL_REQUESTS_PER_SECOND_MAX;
        Self {
            requests: parts.requests,
            host: parts.host,
            keeper: Keeper {
                keep: parts.keep,
                wake,
            },
            rate: BucketRule::new(per_second, per_second),
            bucket: Bucket::default(),
            job: None,
            left_out_log: LogLimit::default(),
        }
    }

    /// When there is something to do; `None`: when the loop is woken.
    pub(super) fn due(&self) -> Option<Duration> {
        match &self.job {
            Some(job) => match &job.work {
                Work::Switching(switch) if switch.is_waiting() => None,
                Work::Switching(_) | Work::Listing(_) | Work::Done(_) => Some(Duration::ZERO),
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
