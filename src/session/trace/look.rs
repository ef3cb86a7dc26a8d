//! One look: what it looks at, the lines that wait for its looker, and how many were left out.
//!
//! Invariants: the lines that wait are at most [`TRACE_LINES_BYTES_MAX`] bytes, and one line; what is beyond is counted and
//! told. Nothing is told after the last line.

use std::time::Duration;

use super::filter::Filter;
use super::line::{Line, Word};
use crate::limits::{TRACE_COMMENT_INTERVAL, TRACE_LINE_COST, TRACE_LINES_BYTES_MAX};
use crate::routing::amqp_binding::AmqpBinding;
use crate::session::id::ConnId;

/// A comment of the stream, by which a looker that is gone is noticed.
const COMMENT: &[u8] = b": still here\n\n";

/// What one looker looks at.
#[derive(Debug)]
pub struct Look {
    /// The connection of the looker.
    pub(super) id: ConnId,
    pub(super) filter: Filter,
    /// The connection of the session that is looked at, while it is there.
    pub(super) session: Option<ConnId>,
    /// The AMQP bindings that the look holds; those behind `bound` are not known to be in force.
    keys: Vec<AmqpBinding>,
    bound: usize,
    lines: Vec<u8>,
    /// Left of its share of the turn.
    steps: usize,
    /// Lines and events for which there was no room since that was last told.
    left_out: LeftOut,
    /// How many lines may still be told; `None`: any number.
    left: Option<u64>,
    ended: Option<Ended>,
    comment_due: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LeftOut {
    lines: u64,
    events: u64,
}

/// Why a look ends, beside the end of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It has told as many lines as it was asked for.
    Limit,
    /// The process has drained, and ends.
    Drain,
}

impl Ended {
    fn text(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Drain => "drain",
        }
    }
}

/// What there is to send to a looker.
#[derive(Debug, PartialEq, Eq)]
pub struct Lines {
    /// Whole server-sent events; may be empty.
    pub bytes: Vec<u8>,
    /// How many lines and events they tell were left out.
    pub left_out: u64,
    /// They are the last.
    pub is_last: bool,
}

impl Look {
    /// A look of the connection `id` that ends after `limit` lines. `session`: the connection of the session that it looks
    /// at, if that is there. `keys`: the AMQP bindings that are held for it. `now`: on the loop's clock.
    #[must_use]
    pub fn new(
        id: ConnId,
        filter: Filter,
        session: Option<ConnId>,
        keys: Vec<AmqpBinding>,
        limit: Option<u64>,
        now: Duration,
    ) -> Self {
        Self {
            id,
            filter,
            session,
            keys,
            bound: 0,
            lines: Vec::new(),
            steps: 0,
            left_out: LeftOut::default(),
            left: limit,
            ended: (limit == Some(0)).then_some(Ended::Limit),
            comment_due: now + TRACE_COMMENT_INTERVAL,
        }
    }

    /// The AMQP bindings that it holds, to be given back when it has ended.
    #[must_use]
    pub fn into_keys(self) -> Vec<AmqpBinding> {
        self.keys
    }

    pub(super) fn keys(&self) -> &[AmqpBinding] {
        &self.keys
    }

    /// What is left of its share of the turn.
    pub(super) fn steps(&mut self) -> &mut usize {
        &mut self.steps
    }

    /// Whether its share of the turn allows another line, which then is taken from it. If not, the line is left out.
    pub(super) fn may_tell(&mut self) -> bool {
        match self.steps.checked_sub(TRACE_LINE_COST) {
            Some(left) => {
                self.steps = left;
                true
            }
            None => {
                self.leave_line_out();
                false
            }
        }
    }

    /// Tells something that has happened, if there is room for it.
    pub(super) fn tell(&mut self, line: &[u8]) {
        if self.ended.is_some() {
            return;
        }
        if self.lines.len() + line.len() > TRACE_LINES_BYTES_MAX {
            self.left_out.lines += 1;
            return;
        }
        self.lines.extend_from_slice(line);
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.ended = Some(Ended::Limit);
            }
        }
    }

    /// Tells something about the look itself, which is never left out and does not count.
    pub(super) fn tell_of_itself(&mut self, line: &[u8]) {
        self.lines.extend_from_slice(line);
    }

    pub(super) fn leave_line_out(&mut self) {
        self.left_out.lines += u64::from(self.ended.is_none());
    }

    pub(super) fn leave_event_out(&mut self) {
        self.left_out.events += u64::from(self.ended.is_none());
    }

    /// Ends it, unless it has ended.
    pub(super) fn end(&mut self, why: Ended) {
        self.ended.get_or_insert(why);
    }

    /// Tells which of its keys have come into force since the last call. Linear in those that were not.
    pub(super) fn tell_bound(&mut self, at: u64, is_bound: impl Fn(&AmqpBinding) -> bool) {
        for place in self.bound..self.keys.len() {
            let Some(key) = self.keys.get(place).filter(|key| is_bound(key)) else {
                continue;
            };
            let line = Line::new(Word::Bound, at)
                .text("exchange", &key.exchange)
                .text("key", &key.key);
            self.lines.extend_from_slice(&line.end());
            self.keys.swap(place, self.bound);
            self.bound += 1;
        }
    }

    /// When a comment is due, on the loop's clock.
    pub(super) fn due(&self) -> Duration {
        self.comment_due
    }

    /// Puts the next comment off.
    pub(super) fn put_off(&mut self, now: Duration) {
        self.comment_due = now + TRACE_COMMENT_INTERVAL;
    }

    /// Takes what there is to send, now that there is room. `None`: nothing.
    pub(super) fn take(&mut self, at: u64, now: Duration) -> Option<Lines> {
        let mut bytes = std::mem::take(&mut self.lines);
        let LeftOut { lines, events } = std::mem::take(&mut self.left_out);
        let left_out = lines + events;
        if left_out > 0 {
            let line = Line::new(Word::LeftOut, at)
                .value("lines", lines)
                .value("events", events);
            bytes.extend_from_slice(&line.end());
        }
        if let Some(ended) = self.ended {
            let line = Line::new(Word::Ended, at).text("why", ended.text());
            bytes.extend_from_slice(&line.end());
        } else if now >= self.comment_due {
            bytes.extend_from_slice(COMMENT);
        }
        if bytes.is_empty() {
            return None;
        }
        self.put_off(now);
        Some(Lines {
            bytes,
            left_out,
            is_last: self.ended.is_some(),
        })
    }
}
