//! Time as sessions see it: the moment of a turn ([`Now`]), and a clock that stands still while the process does
//! ([`WakingClock`]).

use std::time::Duration;

use crate::limits::{STALL_COUNTED_MAX, SWEEP_INTERVAL};

pub use crate::now::Now;

/// A moment on the loop's clock in the four bytes that a handshake has to spare: microseconds, which wrap after 71 minutes.
/// A longer handshake, which `request_timeout_ms` would have to allow, is told as so much shorter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp([u8; 4]);

impl Stamp {
    /// The moment `clock`.
    pub(super) fn of(clock: Duration) -> Self {
        Self(((clock.as_micros() & 0xFFFF_FFFF) as u32).to_ne_bytes())
    }

    /// How long it has been at `clock`.
    pub(super) fn elapsed(self, clock: Duration) -> Duration {
        let now = u32::from_ne_bytes(Self::of(clock).0);
        Duration::from_micros(now.wrapping_sub(u32::from_ne_bytes(self.0)).into())
    }
}

/// Length of a [`Tick`].
pub(super) const TICK: Duration = SWEEP_INTERVAL;

/// A moment on the loop's [`WakingClock`], in tenths of a second. Wraps after 13 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tick(u32);

impl Tick {
    /// Ticks that have passed since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// The tick as a bare number, for code that knows no clock.
    #[must_use]
    pub fn to_mark(self) -> u32 {
        self.0
    }

    /// The tick of which [`Tick::to_mark`] made this number.
    #[must_use]
    pub fn from_mark(mark: u32) -> Self {
        Self(mark)
    }

    /// The lower 16 bits.
    pub(super) fn short(self) -> u16 {
        (self.0 & 0xFFFF) as u16
    }
}

/// The loop's clock without its stalls: however long the process was stopped, or its machine suspended, the time between
/// two turns counts for [`STALL_COUNTED_MAX`] at most. A healthy loop turns more often while the sweep is under way.
#[derive(Debug, Default)]
pub struct WakingClock {
    seen: Duration,
    awake: Duration,
    tick: Tick,
}

impl WakingClock {
    /// Advances to `now` on the loop's clock, which never runs backwards. Called at the beginning of every turn.
    pub fn advance(&mut self, now: Duration) {
        self.awake += now.saturating_sub(self.seen).min(STALL_COUNTED_MAX);
        self.seen = now;
        self.tick = Tick(((self.awake.as_millis() / TICK.as_millis()) & 0xFFFF_FFFF) as u32);
    }

    /// The moment of the turn.
    #[must_use]
    pub fn tick(&self) -> Tick {
        self.tick
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_tells_how_long_it_has_been_over_a_wrap_too() {
        for seconds in [0, 1, 4_294, 4_295, 1_000_000] {
            let came = Duration::from_secs(seconds);
            for took in [
                Duration::ZERO,
                Duration::from_micros(1),
                Duration::from_secs(4_200),
            ] {
                assert_eq!(Stamp::of(came).elapsed(came + took), took, "{seconds}");
            }
        }
    }

    #[test]
    fn a_stall_counts_little_and_a_loop_that_turns_counts_in_full() {
        let mut clock = WakingClock::default();
        let mut now = Duration::ZERO;
        let mut go = |step: Duration, clock: &mut WakingClock| {
            now += step;
            clock.advance(now);
            clock.tick()
        };
        for _ in 0..1000 {
            go(Duration::from_millis(70), &mut clock);
        }
        let before = clock.tick();
        assert_eq!(before, Tick(700));
        let after = go(Duration::from_secs(3600), &mut clock);
        assert_eq!(after.since(before), 2);
        assert_eq!(go(Duration::from_millis(100), &mut clock).since(after), 1);
    }
}
