//! Pauses between tries to connect: exponential, with full jitter, so that all the clients that lost one server come
//! back spread over the whole pause. Pure: the random number is a parameter.

use std::time::Duration;

use crate::limits::SUB_PAUSE_MAX;

/// The most that the first pause can be; each further one may be twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(500);

/// The pauses of one session.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The last connection was a good one.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause after one more failure: anything from nothing to its step, by `random`.
    pub(super) fn next(&mut self, random: u32) -> Duration {
        let step = PAUSE_FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(SUB_PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        step.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_double_up_to_the_longest_pause_and_begin_anew_after_a_good_connection() {
        let mut backoff = Backoff::default();
        let mut steps = || backoff.next(u32::MAX).as_millis();
        let seen: Vec<_> = (0..9).map(|_| steps()).collect();
        assert_eq!(
            seen,
            [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]
        );
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX), PAUSE_FIRST);
    }

    #[test]
    fn jitter_is_full_and_stays_within_its_step() {
        let mut random = fastrand::Rng::with_seed(7);
        for failures in [0, 1, 5, 6, 40, u32::MAX] {
            let (mut low, mut high) = (0, 0);
            let step = Backoff { failures }.next(u32::MAX);
            assert!(step <= SUB_PAUSE_MAX);
            assert_eq!(Backoff { failures }.next(0), Duration::ZERO);
            for _ in 0..1000 {
                let pause = Backoff { failures }.next(random.u32(..));
                assert!(pause <= step);
                low += u32::from(pause < step / 4);
                high += u32::from(pause > step / 4 * 3);
            }
            // A quarter of them each, if all pauses are equally likely.
            assert!((200..300).contains(&low), "{low}");
            assert!((200..300).contains(&high), "{high}");
        }
    }
}
