//! How far the slow walk over all sessions is ([`super::watch`]).
//!
//! Invariant: one step visits [`limits::SWEEP_SESSIONS_MIN`] slots or a fiftieth of them, until the pass is through.

use std::time::Duration;

use crate::limits;

/// The slow walk over all sessions.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// `None`: nothing is to be walked for, so no step is due.
    due: Option<Duration>,
    next_slot: u32,
    /// A pass has begun and is not through.
    is_under_way: bool,
}

impl Sweep {
    /// When the next step is due: at once, where none was.
    pub(super) fn due(&self) -> Duration {
        self.due.unwrap_or_default()
    }

    /// There is nothing to walk for.
    pub(super) fn rest(&mut self) {
        self.due = None;
    }

    /// How late the next step is at `now`; `None`: it is not due yet. One that nobody waited for is due just now.
    pub(super) fn late_for(&mut self, now: Duration) -> Option<Duration> {
        now.checked_sub(*self.due.get_or_insert(now))
    }

    /// Whether a pass has begun and is not through.
    pub(super) fn is_under_way(&self) -> bool {
        self.is_under_way
    }

    /// Begins a step, of a new pass if none is under way. Returns how many of the `slots` it visits.
    pub(super) fn begin_step(&mut self, slots: u32, now: Duration) -> usize {
        self.is_under_way = true;
        self.due = Some(now + limits::SWEEP_INTERVAL);
        (slots as usize / limits::SWEEP_STEPS_MAX).max(limits::SWEEP_SESSIONS_MIN)
    }

    /// The next of the `slots`; `None`: the pass is through.
    pub(super) fn next_slot(&mut self, slots: u32) -> Option<u32> {
        let slot = self.next_slot;
        self.is_under_way = slot < slots;
        self.next_slot = if self.is_under_way { slot + 1 } else { 0 };
        self.is_under_way.then_some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_late_by_what_the_loop_missed_and_never_by_a_rest() {
        let at = Duration::from_millis;
        let mut sweep = Sweep::default();
        assert_eq!(
            sweep.late_for(at(5_000)),
            Some(Duration::ZERO),
            "due just now"
        );
        sweep.begin_step(0, at(5_000));
        assert_eq!(sweep.late_for(at(5_099)), None);
        assert_eq!(sweep.late_for(at(5_350)), Some(at(250)));
        sweep.begin_step(0, at(5_350));
        // An hour without sessions.
        sweep.rest();
        assert_eq!(sweep.late_for(at(3_605_000)), Some(Duration::ZERO));
    }
}
