//! The rate of lines about one kind of fault: a fault that repeats must not fill the disk.
//!
//! Invariants: after its first few lines a fault is logged at most once in [`LOG_INTERVAL`]; a line that was left out
//! is counted, and the next one tells how many there were. Pure: the time is a parameter.

use std::fmt;
use std::time::Instant;

use crate::limits::LOG_INTERVAL;

/// The limit of one kind of fault.
#[derive(Debug)]
pub(crate) struct LogLimit {
    /// Lines that may still be logged without a pause before them.
    credit: u32,
    last: Option<Instant>,
    left_out: u64,
}

impl LogLimit {
    /// A limit that lets the first `credit` lines pass without a pause.
    pub(crate) fn with_credit(credit: u32) -> Self {
        Self {
            credit,
            last: None,
            left_out: 0,
        }
    }

    /// Whether a line may be logged now; then, what is to stand at its end. `None`: the line is left out.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<LeftOut> {
        let is_due = self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= LOG_INTERVAL);
        if self.credit == 0 && !is_due {
            self.left_out += 1;
            return None;
        }
        self.credit = self.credit.saturating_sub(1);
        self.last = Some(now);
        Some(LeftOut(std::mem::take(&mut self.left_out)))
    }
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::with_credit(1)
    }
}

/// The end of a line: how many lines were left out since the last one. Displayed as nothing when there were none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct LeftOut(u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str("; 1 more such line was left out since the last one"),
            count => write!(
                f,
                "; {count} more such lines were left out since the last one"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// The seconds at which a line is logged, with its end, of a fault that comes at each of `seconds`.
    fn logged(credit: u32, seconds: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
        let (mut limit, start) = (LogLimit::with_credit(credit), Instant::now());
        seconds
            .into_iter()
            .filter_map(|second| {
                let left_out = limit.pass(start + Duration::from_secs(second))?;
                Some((second, left_out.0))
            })
            .collect()
    }

    #[test]
    fn after_its_credit_a_fault_is_logged_once_a_minute_with_the_number_left_out() {
        assert_eq!(logged(2, 0..180), [(0, 0), (1, 0), (61, 59), (121, 59)]);
    }

    #[test]
    fn without_a_credit_given_the_first_line_passes_and_then_one_a_minute() {
        assert_eq!(LogLimit::default().credit, 1);
        assert_eq!(
            logged(1, [0, 1, 59, 60, 61, 121, 200]),
            [(0, 0), (60, 2), (121, 1), (200, 0)]
        );
    }

    #[test]
    fn the_end_of_a_line_tells_what_was_left_out_and_nothing_when_nothing_was() {
        for (count, text) in [
            (0, ""),
            (1, "; 1 more such line was left out since the last one"),
            (59, "; 59 more such lines were left out since the last one"),
        ] {
            assert_eq!(LeftOut(count).to_string(), text);
        }
    }
}
