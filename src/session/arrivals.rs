//! When each connection came, without a byte a session: connections are numbered in the order of their coming
//! ([`ConnId::generation`]), so a few marks of which number came when tell it for all.
//!
//! Invariant: the marks rise in number; not always in time, for a clock can be set. A connection is dated by the last mark
//! that is not behind it: exactly, to the second, while connections came in at most [`ARRIVAL_MARKS_MAX`] different seconds;
//! beyond that the older ones too early, by less than the time to the next mark.

use super::id::ConnId;
use crate::limits::ARRIVAL_MARKS_MAX;

/// How many numbers there are before they begin again.
const GENERATIONS: u64 = 1 << 24;

/// When connections came.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// Connections that have come, ever.
    came: u64,
    /// Of some connections, their number counted from 0 and the Unix second.
    marks: Vec<(u64, u64)>,
}

impl Arrivals {
    /// Notes a connection, the next in number. O(1) amortised.
    pub fn note(&mut self, unix: u64) {
        let is_new = self.marks.last().is_none_or(|(_, marked)| *marked != unix);
        if is_new {
            if self.marks.len() >= ARRIVAL_MARKS_MAX {
                self.thin();
            }
            self.marks.push((self.came, unix));
        }
        self.came += 1;
    }

    /// Drops every second mark of the older half.
    fn thin(&mut self) {
        let half = self.marks.len() / 2;
        let mut place = 0;
        self.marks.retain(|_| {
            place += 1;
            place > half || place % 2 == 1
        });
    }

    /// The Unix second in which the connection came. Of one that came 2^24 connections ago or earlier, a later one. O(log
    /// marks).
    #[must_use]
    pub fn unix(&self, id: ConnId) -> u64 {
        let last = self.came.saturating_sub(1);
        let behind = (last.wrapping_sub(u64::from(id.generation))) % GENERATIONS;
        let number = last.saturating_sub(behind);
        let after = self.marks.partition_point(|(marked, _)| *marked <= number);
        let mark = after.checked_sub(1).and_then(|at| self.marks.get(at));
        mark.map_or(0, |(_, unix)| *unix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> ConnId {
        ConnId {
            slot: 0,
            generation: (number % GENERATIONS) as u32,
        }
    }

    #[test]
    fn a_connection_is_dated_to_the_second() {
        let mut arrivals = Arrivals::default();
        let came = [100, 100, 101, 105, 105, 104, 106];
        came.iter().for_each(|unix| arrivals.note(*unix));
        for (number, unix) in came.into_iter().enumerate() {
            assert_eq!(arrivals.unix(id(number as u64)), unix, "{number}");
        }
    }

    #[test]
    fn the_marks_are_bounded_and_the_youngest_stay_exact() {
        let mut arrivals = Arrivals::default();
        let seconds = 100_000;
        (0..seconds).for_each(|unix| arrivals.note(unix));
        assert!(arrivals.marks.len() <= ARRIVAL_MARKS_MAX);
        for number in 0..seconds {
            let unix = arrivals.unix(id(number));
            let age = seconds - number;
            let is_near = if age < ARRIVAL_MARKS_MAX as u64 / 2 {
                unix == number
            } else {
                unix <= number
            };
            assert!(is_near, "{number} is dated {unix}");
        }
    }

    #[test]
    fn numbers_that_begin_again_are_told_apart() {
        let mut arrivals = Arrivals {
            came: GENERATIONS - 1,
            marks: vec![(0, 7), (GENERATIONS - 10, 8)],
        };
        arrivals.note(20);
        arrivals.note(21);
        for (number, unix) in [
            (GENERATIONS, 21),
            (GENERATIONS - 1, 20),
            (GENERATIONS - 2, 8),
            (1, 7),
        ] {
            assert_eq!(arrivals.unix(id(number)), unix, "{number}");
        }
    }
}
