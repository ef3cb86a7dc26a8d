//! The pace of a drain: every session is closed, spread evenly over time, so that their reconnects are spread too
//! (PROTOCOL 3, 1001).
//!
//! The slots are visited again and again until the time is over, because a session that was in its handshake at the visit
//! of its slot must be closed later. Invariant: no more sessions are closed than are due.

use std::time::Duration;

use crate::limits::DRAIN_ROUND_PAUSE;

/// A drain under way.
#[derive(Debug)]
pub struct Drain {
    started: Duration,
    /// The time over which the closes are spread.
    spread: Duration,
    /// When the process ends, whatever is left.
    over: Duration,
    /// How many connections there were.
    total: usize,
    closed: usize,
    next_slot: u32,
    /// How many slots were visited since the last one with a session to close.
    in_vain: u32,
    /// When the next round begins after a round that found no session to close.
    next_round: Duration,
}

/// The part of the time that is kept for the last session to close in good order: a fifth, at most this.
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
            in_vain: 0,
            next_round: now,
        }
    }

    /// The next slot to visit, of so many. `None`: enough are closed for now, or there is none to close.
    pub fn next_slot(&mut self, slots: u32, now: Duration) -> Option<u32> {
        if now < self.due_of_next() {
            return None;
        }
        if self.in_vain >= slots {
            self.in_vain = 0;
            self.next_round = now + DRAIN_ROUND_PAUSE;
            return None;
        }
        self.in_vain += 1;
        let slot = self.next_slot % slots;
        self.next_slot = slot + 1;
        Some(slot)
    }

    /// The session in the slot that was visited last was closed.
    pub fn closed_one(&mut self) {
        self.closed += 1;
        self.in_vain = 0;
    }

    fn due_of_next(&self) -> Duration {
        let share = self.closed as f64 / self.total.max(1) as f64;
        let due = self.started + self.spread.mul_f64(share.min(1.0));
        due.max(self.next_round)
    }

    /// When there is something to do next.
    #[must_use]
    pub fn next_due(&self) -> Duration {
        self.due_of_next().min(self.over)
    }

    /// Whether the time of the closes is over, and only the time to end them in good order is left.
    #[must_use]
    pub fn is_spread(&self, now: Duration) -> bool {
        now >= self.started + self.spread
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

    const SECOND: Duration = Duration::from_secs(1);

    /// Closes what is due of 200 slots; `open` tells, slot by slot, whether there is a session to close.
    fn step(drain: &mut Drain, open: &mut [bool], now: Duration) {
        while let Some(slot) = drain.next_slot(200, now) {
            if let Some(open) = open.get_mut(slot as usize)
                && std::mem::take(open)
            {
                drain.closed_one();
            }
        }
    }

    #[test]
    fn closes_are_spread_evenly_and_end_before_the_time_does() {
        let mut drain = Drain::new(90, 10 * SECOND, SECOND);
        let mut open = [true; 90];
        for tenth in 0..=100_u32 {
            let now = SECOND + SECOND * tenth / 10;
            step(&mut drain, &mut open, now);
            let expected = (tenth as usize + 1).min(90);
            assert!(
                drain.closed.abs_diff(expected) <= 1,
                "{tenth}: {}",
                drain.closed
            );
            assert_eq!(drain.is_spread(now), tenth >= 90);
            assert_eq!(drain.is_over(now), tenth == 100);
        }
        assert_eq!(drain.closed, 90);
    }

    #[test]
    fn a_session_that_opens_behind_the_walk_is_closed_before_the_time_is_over() {
        let mut drain = Drain::new(90, 10 * SECOND, SECOND);
        let mut open = [true; 90];
        open[3] = false;
        for tenth in 0..=100_u32 {
            step(&mut drain, &mut open, SECOND + SECOND * tenth / 10);
            if tenth == 50 {
                open[3] = true;
            }
        }
        assert_eq!(open, [false; 90]);
    }

    #[test]
    fn with_nobody_to_close_the_slots_are_not_gone_through_without_a_pause() {
        let mut drain = Drain::new(1, 10 * SECOND, SECOND);
        let mut looks = 0;
        let mut now = SECOND;
        while !drain.is_over(now) {
            while drain.next_slot(200, now).is_some() {
                looks += 1;
            }
            assert!(drain.next_due() > now);
            now = drain.next_due();
        }
        assert_eq!(looks, 100 * 200);
    }
}
