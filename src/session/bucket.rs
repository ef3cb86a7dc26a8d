//! The rate limit of a session's commands (PROTOCOL 3): a bucket that refills steadily, kept as one moment.
//!
//! Invariant: `full_at` is when the bucket will be full again if nothing more is taken; a bucket that is full
//! needs no upkeep, so an idle session costs no work.

use std::num::NonZeroU32;
use std::time::Duration;

/// Size and refill of every session's bucket.
#[derive(Clone, Copy, Debug)]
pub struct BucketRule {
    /// Nanoseconds that one command costs.
    cost: u64,
    /// Nanoseconds that a full bucket is worth.
    size: u64,
}

impl BucketRule {
    /// `burst` commands at once, `per_second` more each second. `None`: a limit of 0 means no limit.
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

/// One session's bucket: 8 bytes. The default is full.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// Nanoseconds of the loop's clock.
    full_at: u64,
}

impl Bucket {
    /// Takes one command out at `now`, the time since the loop's start; false when the bucket is empty.
    pub fn take(&mut self, rule: BucketRule, now: Duration) -> bool {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let full_at = self.full_at.max(now).saturating_add(rule.cost);
        let fits = full_at - now <= rule.size;
        if fits {
            self.full_at = full_at;
        }
        fits
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
    fn zero_means_no_limit() {
        assert!(BucketRule::new(0, 10).is_none());
        assert!(BucketRule::new(100, 0).is_none());
    }
}
