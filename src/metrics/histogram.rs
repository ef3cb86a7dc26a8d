//! A histogram of times: how many were at most so long, and all of them together.
//!
//! Pure: plain integers, because the loop alone owns them; the times are given. Recording costs a comparison for each
//! bucket that the time is beyond, and three additions.

use std::fmt;
use std::time::Duration;

use super::page::{Name, write_head, write_sample};

/// Most buckets of a histogram, the last one, which takes every time, not counted.
pub const BUCKETS_MAX: usize = 15;

/// Times, counted in buckets.
///
/// Invariant: `bounds` are increasing, and at most [`BUCKETS_MAX`].
///
/// ```
/// use std::time::Duration;
///
/// use blackhole::metrics::histogram::Histogram;
///
/// const BOUNDS: [Duration; 2] = [Duration::from_millis(1), Duration::from_secs(1)];
/// let mut histogram = Histogram::new(&BOUNDS);
/// histogram.record(Duration::from_millis(1));
/// histogram.record_many(Duration::from_millis(2), 3);
/// assert_eq!(histogram.count(), 4);
/// assert_eq!(histogram.sum(), Duration::from_millis(7));
/// ```
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [Duration],
    /// How many times fell between the bound before and this one, the bound included; the last is beyond all bounds.
    counts: [u64; BUCKETS_MAX + 1],
    sum: Duration,
}

impl Histogram {
    /// An empty histogram with buckets up to these bounds. Those beyond [`BUCKETS_MAX`] are left out.
    #[must_use]
    pub fn new(bounds: &'static [Duration]) -> Self {
        Self {
            bounds: bounds.get(..BUCKETS_MAX).unwrap_or(bounds),
            counts: [0; BUCKETS_MAX + 1],
            sum: Duration::ZERO,
        }
    }

    /// Records one time.
    pub fn record(&mut self, time: Duration) {
        self.record_many(time, 1);
    }

    /// Records the same time so often.
    pub fn record_many(&mut self, time: Duration, times: u32) {
        let bucket = self.bounds.iter().position(|bound| time <= *bound);
        if let Some(count) = self.counts.get_mut(bucket.unwrap_or(BUCKETS_MAX)) {
            *count += u64::from(times);
        }
        self.sum = self.sum.saturating_add(time.saturating_mul(times));
    }

    /// How many times were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All times together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Appends it to `out` as `blackhole_<name>`, in seconds.
    pub(crate) fn write(&self, name: &str, help: &str, out: &mut String) {
        let name = Name::ours(name);
        write_head(out, name, "histogram", help);
        let mut below = 0;
        for (bound, count) in self.bounds.iter().zip(self.counts) {
            below += count;
            write_sample(out, name, "_bucket", &[("le", &Seconds(*bound))], below);
        }
        write_sample(out, name, "_bucket", &[("le", &"+Inf")], self.count());
        write_sample(out, name, "_sum", &[], Seconds(self.sum));
        write_sample(out, name, "_count", &[], self.count());
    }
}

/// A time as a decimal number of seconds, exactly and without zeros at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seconds(pub(crate) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, mut fraction) = (self.0.as_secs(), self.0.subsec_nanos());
        if fraction == 0 {
            return write!(f, "{seconds}");
        }
        let mut digits = 9;
        while fraction % 10 == 0 {
            fraction /= 10;
            digits -= 1;
        }
        write!(f, "{seconds}.{fraction:0digits$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: [Duration; 3] = [
        Duration::from_micros(500),
        Duration::from_millis(10),
        Duration::from_secs(2),
    ];

    #[test]
    fn a_time_falls_into_the_first_bucket_that_it_is_not_beyond() {
        for (micros, expected) in [
            (0, [1, 0, 0, 0]),
            (500, [1, 0, 0, 0]),
            (501, [0, 1, 0, 0]),
            (10_000, [0, 1, 0, 0]),
            (2_000_000, [0, 0, 1, 0]),
            (2_000_001, [0, 0, 0, 1]),
        ] {
            let mut histogram = Histogram::new(&BOUNDS);
            histogram.record(Duration::from_micros(micros));
            let [first, second, third, .., last] = histogram.counts;
            assert_eq!([first, second, third, last], expected, "{micros}");
        }
        let mut longest = Histogram::new(&BOUNDS);
        longest.record_many(Duration::MAX, 2);
        longest.record(Duration::from_secs(1));
        assert_eq!((longest.count(), longest.sum()), (3, Duration::MAX));
    }

    #[test]
    fn the_page_has_buckets_that_add_up_and_seconds() {
        let mut histogram = Histogram::new(&BOUNDS);
        histogram.record(Duration::from_micros(250));
        histogram.record_many(Duration::from_millis(1), 3);
        histogram.record(Duration::from_secs(60));
        let mut out = String::new();
        histogram.write("turn_seconds", "Turns.", &mut out);
        assert_eq!(
            out,
            "# HELP blackhole_turn_seconds Turns.\n\
             # TYPE blackhole_turn_seconds histogram\n\
             blackhole_turn_seconds_bucket{le=\"0.0005\"} 1\n\
             blackhole_turn_seconds_bucket{le=\"0.01\"} 4\n\
             blackhole_turn_seconds_bucket{le=\"2\"} 4\n\
             blackhole_turn_seconds_bucket{le=\"+Inf\"} 5\n\
             blackhole_turn_seconds_sum 60.00325\n\
             blackhole_turn_seconds_count 5\n"
        );
    }

    #[test]
    fn seconds_are_exact_and_short() {
        for (nanos, expected) in [
            (0, "0"),
            (1, "0.000000001"),
            (100_000, "0.0001"),
            (1_000_000_000, "1"),
            (1_500_000_000, "1.5"),
            (61_020_000_000, "61.02"),
        ] {
            assert_eq!(Seconds(Duration::from_nanos(nanos)).to_string(), expected);
        }
    }
}
