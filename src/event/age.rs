//! When an event was published, by the timestamp that its publisher gave it.
//!
//! AMQP says that a `timestamp` is in seconds (0-9-1, 4.2.5.4), and the broker's own are. Publishers differ: the platform
//! writes microseconds, and some of its programs count from the year 0 instead of 1970. Which it is shows by its size: the
//! same moment in two of these ways is years apart. So at most one way of reading it gives a moment near the present, and
//! a timestamp that gives none is not believed.

use std::time::{Duration, Instant};

/// Seconds from the year 0 to 1970: the platform's clock.
pub(crate) const GREGORIAN_UNIX_SECONDS: u64 = 62_167_219_200;

/// How old an event may be by a timestamp that is believed.
pub const AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How far in the future a timestamp may be that is believed: clocks differ.
pub const AHEAD_MAX: Duration = Duration::from_secs(60);

/// How many of a timestamp's units are one second.
const UNITS: [u64; 4] = [1, 1_000, 1_000_000, 1_000_000_000];

/// When an event came into this process, and how old it was then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When it came.
    pub at: Instant,
    /// How old it was then, by the timestamp of its publisher; `None`: it has none that is believed.
    pub age: Option<Duration>,
}

impl Arrival {
    /// How old the event is at `now`: since it was published, or since it came if that is not known. Never negative.
    #[must_use]
    pub fn age_at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at) + self.age.unwrap_or_default()
    }
}

/// How old an event with this timestamp is when it is so long since 1970; zero if it is from the near future. `None`: it is
/// older than [`AGE_MAX`], or more than [`AHEAD_MAX`] in the future, in whatever way it is read. O(1).
#[must_use]
pub fn age_of(timestamp: u64, since_1970: Duration) -> Option<Duration> {
    let eras = [0, GREGORIAN_UNIX_SECONDS];
    let mut moments = UNITS
        .into_iter()
        .flat_map(|units| eras.map(|era| moment(timestamp, units, era)));
    moments.find_map(|moment| {
        let moment = moment?;
        let age = since_1970.saturating_sub(moment);
        let ahead = moment.saturating_sub(since_1970);
        (age <= AGE_MAX && ahead <= AHEAD_MAX).then_some(age)
    })
}

/// The moment since 1970, if the timestamp counts so many `units` a second since so many seconds before 1970.
fn moment(timestamp: u64, units: u64, era: u64) -> Option<Duration> {
    let seconds = (timestamp / units).checked_sub(era)?;
    let nanos = timestamp % units * (1_000_000_000 / units);
    Some(Duration::new(seconds, u32::try_from(nanos).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Duration = Duration::new(1_795_694_400, 250_000_000);

    #[test]
    fn a_timestamp_is_read_in_the_unit_and_the_era_that_give_a_moment_near_the_present() {
        let seconds = NOW.as_secs();
        let quarter = Some(Duration::from_millis(250));
        for (timestamp, expected) in [
            (seconds, quarter),
            (seconds * 1_000, quarter),
            (seconds * 1_000_000, quarter),
            (seconds * 1_000_000_000, quarter),
            (seconds + GREGORIAN_UNIX_SECONDS, quarter),
            ((seconds + GREGORIAN_UNIX_SECONDS) * 1_000, quarter),
            ((seconds + GREGORIAN_UNIX_SECONDS) * 1_000_000, quarter),
            (seconds * 1_000 + 125, Some(Duration::from_millis(125))),
            (
                (seconds + GREGORIAN_UNIX_SECONDS) * 1_000_000 - 7,
                Some(Duration::from_micros(250_007)),
            ),
            // From the near future: as old as can be told.
            (seconds + 1, Some(Duration::ZERO)),
            (seconds + 60, Some(Duration::ZERO)),
            (seconds + 61, None),
            (seconds - 86_399, Some(Duration::new(86_399, 250_000_000))),
            (seconds - 86_400, None),
            (0, None),
            (1, None),
            (GREGORIAN_UNIX_SECONDS, None),
            (u64::MAX, None),
        ] {
            assert_eq!(age_of(timestamp, NOW), expected, "{timestamp}");
        }
    }

    proptest! {
        #[test]
        fn no_timestamp_is_near_the_present_in_two_ways(
            timestamp in prop_oneof![
                any::<u64>(),
                1_790_000_000..1_800_000_000_u64,
                (1_790_000_000..1_800_000_000_u64).prop_map(|seconds| (seconds + GREGORIAN_UNIX_SECONDS) * 1_000_000),
            ],
            now in 1_000_000_000..4_000_000_000_u64,
        ) {
            let now = Duration::from_secs(now);
            let ways = UNITS.iter().flat_map(|units| [0, GREGORIAN_UNIX_SECONDS].map(|era| (*units, era)));
            let near = ways.filter(|(units, era)| {
                moment(timestamp, *units, *era).is_some_and(|moment| {
                    now.saturating_sub(moment) <= AGE_MAX && moment.saturating_sub(now) <= AHEAD_MAX
                })
            });
            prop_assert_eq!(near.count(), usize::from(age_of(timestamp, now).is_some()));
        }
    }

    #[test]
    fn an_age_goes_on_from_what_it_was_at_the_arrival() {
        let at = Instant::now();
        let later = at + Duration::from_millis(30);
        for (age, expected) in [(None, 30), (Some(Duration::from_millis(5)), 35)] {
            let arrival = Arrival { at, age };
            assert_eq!(arrival.age_at(later), Duration::from_millis(expected));
        }
        let before_it_came = Arrival {
            at: later,
            age: None,
        };
        assert_eq!(before_it_came.age_at(at), Duration::ZERO);
    }
}
