//! Closing every session, spread evenly over time, so that their reconnects are spread too (PROTOCOL 3, 1001).

use std::time::Duration;

/// A drain under way.
#[derive(Debug)]
pub struct Drain {
    started: Duration,
    /// Over which the closes are spread.
    spread: Duration,
    /// When the process ends whatever is left.
    over: Duration,
    /// Sessions there were.
    total: usize,
    closed: usize,
    next_slot: u32,
    /// Every slot was looked at.
    is_complete: bool,
}

/// Part of the drain time that is kept for the last session's goodbye: a fifth, at most a second.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

impl Drain {
    /// A drain of `total` connections within `time`, from `now` on.
    #[must_use]
    pub fn new(total: usize, time: Duration, now: Duration) -> Self {
        let farewell = FAREWELL_MAX.min(time / 5);
        Self {
            started: now,
            spread: time - farewell,
            over: now + time,
            total,
            closed: 0,
            next_slot: 0,
            is_complete: false,
        }
    }

    /// The next slot to look at, of `slots`, unless enough are closed for now.
    pub fn next_slot(&mut self, slots: u32, now: Duration) -> Option<u32> {
        self.is_complete |= self.next_slot >= slots;
        if self.is_complete || now < self.due_of_next() {
            return None;
        }
        self.next_slot += 1;
        Some(self.next_slot - 1)
    }

    /// Counts one more closed.
    pub fn closed_one(&mut self) {
        self.closed += 1;
    }

    fn due_of_next(&self) -> Duration {
        let share = self.closed as f64 / self.total.max(1) as f64;
        self.started + self.spread.mul_f64(share.min(1.0))
    }

    /// When there is something to do next.
    #[must_use]
    pub fn next_due(&self) -> Duration {
        if self.is_complete {
            self.over
        } else {
            self.due_of_next().min(self.over)
        }
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_over(&self, now: Duration) -> bool {
        now >= self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_are_spread_evenly_and_end_before_the_time_does() {
        let second = Duration::from_secs(1);
        let mut drain = Drain::new(90, 10 * second, second);
        let mut closed_by = Vec::new();
        for tenth in 0..=100 {
            let now = second + second * tenth / 10;
            while drain.next_slot(200, now).is_some_and(|slot| slot < 90) {
                drain.closed_one();
            }
            closed_by.push(drain.closed);
            assert_eq!(drain.is_over(now), tenth == 100);
        }
        for tenth in 0..90 {
            let expected = tenth + 1;
            assert!(
                closed_by[tenth].abs_diff(expected) <= 1,
                "{tenth}: {closed_by:?}"
            );
        }
        assert_eq!(closed_by[90], 90);
    }
}
