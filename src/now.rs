//! The moment of a turn, as the loop hands it to everything below.

use std::time::Duration;

/// The moment of a turn.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Since the loop's start; never runs backwards.
    pub clock: Duration,
    /// Unix milliseconds by the wall clock, which may be set back: for token expiry, months and the times of cursors.
    pub unix_ms: u64,
}

impl Now {
    /// Unix seconds.
    #[must_use]
    pub fn unix(self) -> u64 {
        self.unix_ms / 1_000
    }
}

/// A line between two moments of one process: every cursor that was given before it has a lower time, and none that is
/// given after it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boundary {
    /// The least time of a cursor behind it.
    pub time: u64,
    /// When it was drawn, on the loop's clock.
    pub clock: Duration,
}
