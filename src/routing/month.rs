//! The months whose databases a subscription follows (PROTOCOL 6, `MODB`). Pure: the time is a parameter.
//!
//! For an hour on either side of midnight UTC at a month's end, both months are in force. The next month begins early,
//! because every process must have bound everything of it by midnight, and the broker bears that only when it is spread
//! over time (`session::roll_over`). The old month ends late, because what began in it may end in its database: the
//! recording of a call that was up at midnight.

use std::fmt;

use time::OffsetDateTime;
use time::macros::datetime;

/// The time before its beginning, and after its end, in which a month is in force too.
const OVERLAP_SECONDS: u64 = 3600;

/// Stands for every time from the year 10000 on, because a year is written with four digits.
const LAST: OffsetDateTime = datetime!(9999-12-31 0:00 UTC);

/// A calendar month in UTC, written `YYYYMM`.
///
/// ```
/// use blackhole::routing::month::Month;
///
/// assert_eq!(Month::at(1_795_425_948).to_string(), "202611");
/// assert_eq!(Month::at(u64::MAX).to_string(), "999912");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month(u32);

impl Month {
    /// The month of a time in Unix seconds. Never panics: a year beyond 9999 counts as the last month of 9999.
    #[must_use]
    pub fn at(unix_seconds: u64) -> Self {
        let moment = i64::try_from(unix_seconds)
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .unwrap_or(LAST);
        let (year, month) = (moment.year().unsigned_abs(), u8::from(moment.month()));
        Self(year * 100 + u32::from(month))
    }

    /// Reads a month of exactly six digits; `None` for anything else.
    #[must_use]
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() != 6 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let number: u32 = text.parse().ok()?;
        (1..=12).contains(&(number % 100)).then_some(Self(number))
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

/// The one or two months that are in force at a time.
///
/// ```
/// use blackhole::routing::month::ActiveMonths;
///
/// let midnight = 1_798_761_600; // 2027-01-01T00:00:00Z
/// let names = |months: ActiveMonths| months.iter().map(|month| month.to_string()).collect::<Vec<_>>();
/// let (evening, late) = (ActiveMonths::at(midnight - 7200), ActiveMonths::at(midnight - 60));
/// assert_eq!(names(evening), ["202612"]);
/// assert_eq!(names(late), ["202612", "202701"]);
///
/// // What a roll-over has to bind.
/// let new: Vec<String> = late.without(evening).map(|month| month.to_string()).collect();
/// assert_eq!(new, ["202701"]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveMonths {
    first: Month,
    /// The same as `first`, except around a month's end.
    last: Month,
}

impl ActiveMonths {
    /// The months in force at a time in Unix seconds.
    #[must_use]
    pub fn at(unix_seconds: u64) -> Self {
        Self {
            first: Month::at(unix_seconds.saturating_sub(OVERLAP_SECONDS)),
            last: Month::at(unix_seconds.saturating_add(OVERLAP_SECONDS)),
        }
    }

    /// Whether `month` is in force.
    #[must_use]
    pub fn contains(self, month: Month) -> bool {
        month == self.first || month == self.last
    }

    /// The months in force, the older one first.
    pub fn iter(self) -> impl Iterator<Item = Month> {
        [
            Some(self.first),
            (self.last != self.first).then_some(self.last),
        ]
        .into_iter()
        .flatten()
    }

    /// The months in force here that are not in force in `before`: what a roll-over has to bind.
    pub fn without(self, before: Self) -> impl Iterator<Item = Month> {
        self.iter().filter(move |month| !before.contains(*month))
    }
}

/// The months that subscriptions follow during a roll-over, in which a few at a time move on.
///
/// The AMQP bindings of a subscription are of `before` while its group is behind ([`super::families::Resolved::held`]),
/// and of `now` otherwise. When no group is behind, both are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowedMonths {
    before: ActiveMonths,
    now: ActiveMonths,
}

impl FollowedMonths {
    /// Every subscription follows `months`.
    #[must_use]
    pub fn new(months: ActiveMonths) -> Self {
        Self {
            before: months,
            now: months,
        }
    }

    /// The months of groups that are not behind, and of new subscriptions.
    #[must_use]
    pub fn now(self) -> ActiveMonths {
        self.now
    }

    /// The months of groups that are behind.
    #[must_use]
    pub fn before(self) -> ActiveMonths {
        self.before
    }

    /// From now on every group is behind `months`. No group may be behind already.
    #[must_use]
    pub fn moving_to(self, months: ActiveMonths) -> Self {
        debug_assert_eq!(self.before, self.now, "somebody is behind");
        Self {
            before: self.now,
            now: months,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS_A_DAY: u64 = 86_400;

    fn months(unix_seconds: u64) -> Vec<String> {
        ActiveMonths::at(unix_seconds)
            .iter()
            .map(|month| month.to_string())
            .collect()
    }

    #[test]
    fn every_day_of_five_centuries_has_the_month_that_counting_days_gives() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for number in 0..500 * 366 {
            let expected = format!("{year:04}{month:02}");
            assert_eq!(
                Month::at(number * SECONDS_A_DAY).to_string(),
                expected,
                "day {number}"
            );
            assert_eq!(
                Month::at(number * SECONDS_A_DAY + 86_399).to_string(),
                expected,
                "day {number}"
            );
            let leap = if year % 100 == 0 {
                year % 400 == 0
            } else {
                year % 4 == 0
            };
            let length = match month {
                2 => 28 + u32::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    #[test]
    fn known_moments_have_their_month() {
        for (unix_seconds, expected) in [
            (0, "197001"),
            (951_782_399, "200002"),
            (951_868_800, "200003"),
            (1_709_251_199, "202402"),
            (1_709_251_200, "202403"),
            (1_795_425_948, "202611"),
            (253_402_300_799, "999912"),
            (253_402_300_800, "999912"),
            (i64::MAX.unsigned_abs() + 1, "999912"),
            (u64::MAX, "999912"),
        ] {
            assert_eq!(
                Month::at(unix_seconds).to_string(),
                expected,
                "{unix_seconds}"
            );
        }
    }

    #[test]
    fn both_months_are_in_force_for_an_hour_on_either_side_of_the_years_end() {
        let midnight = 1_767_225_600; // 2026-01-01T00:00:00Z
        for (at, expected) in [
            (midnight - 7200, vec!["202512"]),
            (midnight - 3601, vec!["202512"]),
            (midnight - 3600, vec!["202512", "202601"]),
            (midnight, vec!["202512", "202601"]),
            (midnight + 3599, vec!["202512", "202601"]),
            (midnight + 3600, vec!["202601"]),
            (midnight + 3601, vec!["202601"]),
        ] {
            assert_eq!(months(at), expected, "{}", at as i64 - midnight as i64);
        }
    }

    #[test]
    fn a_roll_over_names_what_to_bind_and_what_to_release() {
        let midnight = 1_767_225_600;
        let (before, during, after) = (
            ActiveMonths::at(midnight - 4000),
            ActiveMonths::at(midnight),
            ActiveMonths::at(midnight + 4000),
        );
        let names = |months: &mut dyn Iterator<Item = Month>| {
            months.map(|month| month.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&mut during.without(before)), ["202601"]);
        assert_eq!(names(&mut before.without(during)), [""; 0]);
        assert_eq!(names(&mut during.without(after)), ["202512"]);
        assert_eq!(names(&mut after.without(before)), ["202601"]);
    }

    #[test]
    fn a_month_is_read_back_and_nothing_else_is_a_month() {
        for text in ["197001", "202512", "999912"] {
            assert_eq!(Month::parse(text).expect("a month").to_string(), text);
        }
        for text in [
            "",
            "2025",
            "202500",
            "202513",
            "2025120",
            "+02512",
            "20251é",
            "２０２５",
        ] {
            assert_eq!(Month::parse(text), None, "{text}");
        }
    }
}
