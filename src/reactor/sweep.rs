//! How far the slow walk over all sessions is ([`super::watch`]).
//!
//! Invariant: one step visits [`limits::SWEEP_SESSIONS_MIN`] slots or a fiftieth of them, until the pass is through.

use std::time::Duration;

use crate::limits;

/// The slow walk over all sessions.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    due: Duration,
    next_slot: u32,
    /// A pass has begun and is not through.
    is_under_way: bool,
}

impl Sweep {
    /// When the next step is due, if there is one.
    pub(super) fn due(&self) -> Duration {
        self.due
    }

    /// Whether a pass has begun and is not through.
    pub(super) fn is_under_way(&self) -> bool {
        self.is_under_way
    }

    /// Begins a step, of a new pass if none is under way. Returns how many of the `slots` it visits.
    pub(super) fn begin_step(&mut self, slots: u32, now: Duration) -> usize {
        self.is_under_way = true;
        self.due = now + limits::SWEEP_INTERVAL;
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
