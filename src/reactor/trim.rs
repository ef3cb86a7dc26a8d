//! When memory is given back after a burst. The allocator keeps freed memory resident until it is told to give it back
//! (DESIGN, The turn, 6). That is done once, in the quiet after the burst, or [`limits::TRIM_WITHIN`] after the first
//! memory was freed if traffic leaves no quiet. New sessions are a burst too: the tables grow, and their old places are
//! freed.
//!
//! Invariant: as long as there is memory worth giving back, a time is set by which that happens.

use std::time::Duration;

use crate::limits;

/// When memory is given back to the system.
#[derive(Debug, Default)]
pub(super) struct Trim {
    /// [`TurnDone::freed`] at the last trim.
    freed: u64,
    /// The same after the last turn.
    freed_before: u64,
    due: Option<Due>,
}

/// What one turn did, as far as it concerns memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct TurnDone {
    /// About how often memory has been freed, ever.
    pub(super) freed: u64,
    /// It ran a command or delivered a frame, or something waits to be written. Pings and their answers do not count: they
    /// never end, and leave nothing behind.
    pub(super) is_busy: bool,
    /// A list has grown that could shrink.
    pub(super) has_grown: bool,
}

/// The time by which memory is given back.
#[derive(Clone, Copy, Debug)]
struct Due {
    /// If it is quiet until then.
    quiet: Duration,
    /// In any case.
    latest: Duration,
}

impl Trim {
    /// When the loop has to look again.
    pub(super) fn due(&self) -> Option<Duration> {
        self.due.map(|due| due.quiet.min(due.latest))
    }

    /// Whether memory is to be given back now, after a turn. O(1).
    pub(super) fn is_due(&mut self, turn: TurnDone, now: Duration) -> bool {
        let is_quiet = !turn.is_busy && turn.freed == self.freed_before;
        self.freed_before = turn.freed;
        if turn.freed - self.freed < limits::TRIM_FREED_MIN && !turn.has_grown {
            self.due = None;
            return false;
        }
        let due = self.due.get_or_insert(Due {
            quiet: now + limits::TRIM_AFTER,
            latest: now + limits::TRIM_WITHIN,
        });
        if !is_quiet {
            due.quiet = now + limits::TRIM_AFTER;
        }
        if due.quiet.min(due.latest) > now {
            return false;
        }
        self.freed = turn.freed;
        self.due = None;
        true
    }
}
