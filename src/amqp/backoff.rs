//! Pauses between tries to connect (AMQP rail 9). Pure: the random number is a parameter.

use std::time::Duration;

/// Longest pause between tries to connect, but for tests.
pub const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(3);
/// The pause before the second try; it doubles from there.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// The next broker of the list is tried soon. After each round of the list the pause is twice as long as before, with
/// jitter, so that all the processes that lost one broker do not come back in the same moment.
pub(super) struct Backoff {
    endpoints: usize,
    failures: usize,
    pause_max: Duration,
}

impl Backoff {
    /// A back-off without failures, for so many brokers; at least one.
    pub(super) fn new(endpoints: usize, pause_max: Duration) -> Self {
        Self {
            endpoints,
            failures: 0,
            pause_max,
        }
    }

    /// The last connection was a good one.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause after one more failure: 50 to 100 % of its step, by `random`.
    pub(super) fn next(&mut self, random: u32) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let rounds = if self.failures.is_multiple_of(self.endpoints) {
            self.failures / self.endpoints
        } else {
            0
        };
        let step = PAUSE_FIRST
            .saturating_mul(1 << rounds.min(16))
            .min(self.pause_max);
        step / 2 + (step / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_each_round_of_the_brokers_up_to_three_seconds() {
        let mut backoff = Backoff::new(2, RECONNECT_PAUSE_MAX);
        let pauses: Vec<_> = (0..14)
            .map(|_| backoff.next(u32::MAX).as_millis())
            .collect();
        assert_eq!(
            pauses,
            [
                100, 200, 100, 400, 100, 800, 100, 1600, 100, 3000, 100, 3000, 100, 3000
            ]
        );
        let mut least = Backoff {
            endpoints: 1,
            failures: 9,
            pause_max: RECONNECT_PAUSE_MAX,
        };
        assert_eq!(least.next(0), RECONNECT_PAUSE_MAX / 2);
    }
}
