//! Keeps a fault that repeats from filling the disk: at most one line a minute, which tells how many were held back.

use std::time::{Duration, Instant};

/// The rate of lines about one kind of fault.
const EVERY: Duration = Duration::from_secs(60);

/// One kind of fault.
#[derive(Debug)]
pub(super) struct LogGate {
    /// Lines that may pass without a pause before them.
    credit: u32,
    last: Option<Instant>,
    held_back: u64,
}

impl LogGate {
    /// A gate that lets the first `credit` lines pass freely.
    pub(super) fn with_credit(credit: u32) -> Self {
        Self {
            credit,
            last: None,
            held_back: 0,
        }
    }

    /// Whether a line may be logged now; then, how many were held back since the last one.
    pub(super) fn pass(&mut self, now: Instant) -> Option<u64> {
        let due = self
            .last
            .is_none_or(|last| now.duration_since(last) >= EVERY);
        if self.credit == 0 && !due {
            self.held_back += 1;
            return None;
        }
        self.credit = self.credit.saturating_sub(1);
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

impl Default for LogGate {
    fn default() -> Self {
        Self::with_credit(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_its_credit_a_fault_is_logged_once_a_minute_with_the_number_held_back() {
        let (mut gate, start) = (LogGate::with_credit(2), Instant::now());
        let passed: Vec<_> = (0..180_u64)
            .map(|second| gate.pass(start + Duration::from_secs(second)))
            .collect();
        let logged: Vec<_> = passed
            .iter()
            .enumerate()
            .filter_map(|(at, held)| held.map(|held| (at, held)))
            .collect();
        assert_eq!(logged, [(0, 0), (1, 0), (61, 59), (121, 59)]);
    }
}
