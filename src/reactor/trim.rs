//! Memory after a burst: the allocator keeps what was freed resident until it is told to give it back (DESIGN, The
//! turn, 6). That is done once, in the quiet that follows, or [`limits::TRIM_WITHIN`] after the first was freed where
//! traffic leaves no quiet. Sessions that come are a burst too: the tables grow, and what they grow out of is freed.
//!
//! Invariant: as long as there is memory worth giving back, a time is set by which it is.

use std::time::Duration;

use crate::limits;

/// When to give memory back to the system.
#[derive(Debug, Default)]
pub(super) struct Trim {
    /// How often memory had been freed at the last trim, and at the last turn.
    freed: u64,
    freed_before: u64,
    due: Option<Due>,
}

/// What one turn did, as far as it concerns memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct TurnDone {
    /// How often memory has been freed, about, ever.
    pub(super) freed: u64,
    /// It ran a command or delivered a frame, or something waits to be written. Pings and their answers, which never end
    /// and leave nothing behind, do not count.
    pub(super) is_busy: bool,
    /// Lists have grown that could shrink.
    pub(super) has_grown: bool,
}

/// When memory is given back that is worth it.
#[derive(Clone, Copy, Debug)]
struct Due {
    /// If it is quiet until then.
    quiet: Duration,
    /// Whatever goes on.
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
