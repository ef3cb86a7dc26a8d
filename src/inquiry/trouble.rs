//! Trouble: a question without an answer, by cause; counted, and logged at most once a minute for each cause.
//!
//! Invariants: no text here holds a token, and none is longer than [`CROSSBAR_LOGGED_BYTES_MAX`].

use std::sync::atomic::AtomicU64;
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

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Account,
    Key,
}

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

    pub(super) fn take(&self, subject: Subject, trouble: &Trouble) {
        increment(self.counter(subject, trouble.cause));
        let passed = self.limits.get(trouble.cause as usize).and_then(|limit| {
            let mut limit = limit.lock().unwrap_or_else(PoisonError::into_inner);
            limit.pass(Instant::now())
        });
        if let Some(left_out) = passed {
            log::warn!("crossbar: no answer: {}{left_out}", trouble.text);
        }
    }

    fn counter(&self, subject: Subject, cause: Cause) -> &AtomicU64 {
        let of = &self.counters;
        match (subject, cause) {
            (Subject::Account, Cause::Timeout) => &of.trouble_timeout,
            (Subject::Account, Cause::Connect) => &of.trouble_connect,
            (Subject::Account, Cause::Status) => &of.trouble_status,
            (Subject::Account, Cause::Body) => &of.trouble_body,
            (Subject::Account, Cause::Tls) => &of.trouble_tls,
            (Subject::Account, Cause::Late) => &of.trouble_late,
            (Subject::Key, Cause::Timeout) => &of.key_timeout,
            (Subject::Key, Cause::Connect) => &of.key_connect,
            (Subject::Key, Cause::Status) => &of.key_status,
            (Subject::Key, Cause::Body) => &of.key_body,
            (Subject::Key, Cause::Tls) => &of.key_tls,
            (Subject::Key, Cause::Late) => &of.key_late,
        }
    }
}
