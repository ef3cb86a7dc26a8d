//! A bucket that refills steadily, kept as one moment: the rate limit of a session's commands (PROTOCOL 3), and of a
//! listener's connections.
//!
//! Invariant: `full_at` is when the bucket will be full again if nothing more is taken; a bucket that is full
//! needs no upkeep, so an idle session costs no work.

use std::num::NonZeroU32;
use std::time::Duration;

/// Size and refill of a bucket.
#[derive(Clone, Copy, Debug)]
pub struct BucketRule {
    /// Nanoseconds that one command, or connection, costs.
    cost: u64,
    /// Nanoseconds that a full bucket is worth.
    size: u64,
}

impl BucketRule {
    /// `burst` at once, `per_second` more each second. `None`: a limit of 0 means no limit.
    #[must_use]
    pub fn new(burst: u32, per_second: u32) -> Option<Self> {
        let burst = NonZeroU32::new(burst)?;
        let per_second = NonZeroU32::new(per_second)?;
        let cost = 1_000_000_000 / u64::from(per_second.get());
        Some(Self {
            cost,
            size: cost * u64::from(burst.get()),
        })
    }
}

/// A bucket: 8 bytes. The default is full.
///
/// ```
/// use std::time::Duration;
///
/// use blackhole::session::bucket::{Bucket, BucketRule};
///
/// let rule = BucketRule::new(2, 10).expect("a limit");
/// let mut bucket = Bucket::default();
/// assert!(bucket.take(rule, Duration::ZERO) && bucket.take(rule, Duration::ZERO));
/// assert!(!bucket.take(rule, Duration::ZERO), "a burst is two");
/// assert!(bucket.take(rule, Duration::from_millis(100)), "ten more each second");
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// Nanoseconds of the loop's clock.
    full_at: u64,
}

impl Bucket {
    /// Takes one out at `now`, the time since the loop's start; false when the bucket is empty.
    pub fn take(&mut self, rule: BucketRule, now: Duration) -> bool {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let full_at = self.full_at.max(now).saturating_add(rule.cost);
        let fits = full_at - now <= rule.size;
        if fits {
            self.full_at = full_at;
        }
        fits
    }

    /// The first moment at which [`Bucket::take`] gives something; it may be past.
    #[must_use]
    pub fn ready_at(&self, rule: BucketRule) -> Duration {
        Duration::from_nanos(
            self.full_at
                .saturating_add(rule.cost)
                .saturating_sub(rule.size),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_holds_its_burst_and_refills_at_its_rate() {
        let rule = BucketRule::new(100, 10).expect("not zero");
        let mut bucket = Bucket::default();
        let at = |millis: u64| Duration::from_millis(3_000_000_000 + millis);
        assert_eq!((0..150).filter(|_| bucket.take(rule, at(0))).count(), 100);
        assert!(!bucket.take(rule, at(99)));
        assert!(bucket.take(rule, at(100)));
        assert!(!bucket.take(rule, at(100)));
        assert_eq!((0..150).filter(|_| bucket.take(rule, at(1100))).count(), 10);
        assert_eq!(
            (0..150)
                .filter(|_| bucket.take(rule, at(1_000_000)))
                .count(),
            100
        );
    }

    #[test]
    fn an_empty_bucket_gives_again_at_the_moment_that_it_tells() {
        for (burst, per_second) in [(1, 1), (3, 3), (100, 10), (7, 999_999_999)] {
            let rule = BucketRule::new(burst, per_second).expect("not zero");
            let mut bucket = Bucket::default();
            let mut now = Duration::from_secs(5);
            for _ in 0..burst {
                assert!(bucket.ready_at(rule) <= now && bucket.take(rule, now));
            }
            for _ in 0..3 {
                let ready_at = bucket.ready_at(rule);
                assert!(ready_at > now && !bucket.take(rule, now));
                assert!(!bucket.take(rule, ready_at - Duration::from_nanos(1)));
                assert!(bucket.take(rule, ready_at));
                now = ready_at;
            }
        }
    }

    #[test]
    fn zero_means_no_limit() {
        assert!(BucketRule::new(0, 10).is_none());
        assert!(BucketRule::new(100, 0).is_none());
    }
}
