//! Trouble: a question without an answer, by cause; counted, and logged at most once a minute for each cause.
//!
//! Invariants: no text here holds a token, and none is longer than [`CROSSBAR_LOGGED_BYTES_MAX`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::counters::{InquiryCounters, increment};
use crate::limits::CROSSBAR_LOGGED_BYTES_MAX;
use crate::log_limit::LogLimit;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The answer was not whole in time.
    Timeout,
    /// No connection, or it broke before the answer's head was there.
    Connect,
    /// A status that says neither yes nor no.
    Status,
    /// What came was no answer.
    Body,
    /// TLS failed.
    Tls,
    /// The question waited too long for a thread.
    Late,
}

const CAUSES: usize = 6;

/// A question without an answer.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) cause: Cause,
    /// For an operator.
    text: String,
}

impl Trouble {
    /// Cuts `text`, because the peer chooses some of it.
    pub(super) fn new(cause: Cause, text: &str) -> Self {
        let end = text.floor_char_boundary(CROSSBAR_LOGGED_BYTES_MAX);
        let text = match text.get(..end) {
            Some(start) if end < text.len() => format!("{start}…"),
            _ => text.to_owned(),
        };
        Self { cause, text }
    }
}

/// Counts trouble and logs it; shared by all threads.
#[derive(Debug)]
pub(super) struct TroubleLog {
    counters: Arc<InquiryCounters>,
    limits: [Mutex<LogLimit>; CAUSES],
}

impl TroubleLog {
    pub(super) fn new(counters: Arc<InquiryCounters>) -> Self {
        Self {
            counters,
            limits: Default::default(),
        }
    }

    pub(super) fn take(&self, trouble: &Trouble) {
        increment(match trouble.cause {
            Cause::Timeout => &self.counters.trouble_timeout,
            Cause::Connect => &self.counters.trouble_connect,
            Cause::Status => &self.counters.trouble_status,
            Cause::Body => &self.counters.trouble_body,
            Cause::Tls => &self.counters.trouble_tls,
            Cause::Late => &self.counters.trouble_late,
        });
        let passed = self.limits.get(trouble.cause as usize).and_then(|limit| {
            let mut limit = limit.lock().unwrap_or_else(PoisonError::into_inner);
            limit.pass(Instant::now())
        });
        if let Some(left_out) = passed {
            log::warn!("crossbar: no answer: {}{left_out}", trouble.text);
        }
    }
}
