//! When memory is given back after a burst. The allocator keeps freed memory resident until it is told to give it back
//! (DESIGN, The turn, 6). That is done once, in the quiet after the burst, or [`limits::TRIM_WITHIN`] after the first
//! memory was freed if traffic leaves no quiet. New sessions are a burst too: the tables grow, and their old places are
//! freed. A burst of events is freed long after it, when the history forgets them (`history_seconds`).
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
    /// The most of [`TurnDone::history`] since the last trim.
    history_most: usize,
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
    /// Bytes of the events that the history keeps.
    pub(super) history: usize,
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
        self.history_most = self.history_most.max(turn.history);
        let forgotten = self.history_most - turn.history;
        // Under steady traffic as many come as go: only a fall to less than half is memory that nothing takes again.
        let has_forgotten =
            forgotten >= limits::TRIM_HISTORY_BYTES_MIN && forgotten > self.history_most / 2;
        let has_freed = turn.freed - self.freed >= limits::TRIM_FREED_MIN;
        if !has_freed && !turn.has_grown && !has_forgotten {
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
        self.history_most = turn.history;
        self.due = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// How often memory is given back when the history has so many bytes after each of these turns, a second apart.
    fn trims(bytes: impl IntoIterator<Item = usize>, is_busy: bool) -> usize {
        let mut trim = Trim::default();
        let turn = |history| TurnDone {
            freed: 0,
            is_busy,
            has_grown: false,
            history,
        };
        let due = (1..)
            .zip(bytes)
            .filter(|&(second, history)| trim.is_due(turn(history), Duration::from_secs(second)));
        due.count()
    }

    #[test]
    fn a_history_that_falls_to_nothing_is_given_back_in_few_steps() {
        for is_busy in [false, true] {
            let falling = (0..=60).rev().map(|rest| rest * MIB);
            let trims = trims(falling.chain([0; 20]), is_busy);
            assert!((2..=8).contains(&trims), "{trims}, busy: {is_busy}");
        }
    }

    #[test]
    fn while_as_many_events_come_as_go_there_is_nothing_to_give_back() {
        let swaying = (0..1_000).map(|second| (40 + 20 * (second / 30 % 2)) * MIB);
        assert_eq!(trims(swaying, true), 0);
        let small = (0..1_000).map(|second| second % 2 * (MIB - 1));
        assert_eq!(trims(small, false), 0);
    }
}
