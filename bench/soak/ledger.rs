//! The books of one numbered stream of events as one session sees it: what came, what did not, and whether that was
//! announced. Pure: the publisher's record is asked through a closure, time is microseconds since the soak began.
//!
//! A number that did not come is *announced* when a gap notice came before the next event and it was published within
//! the time that this notice names; *unconfirmed* when the broker never said that it had it; else it is *missing*.
//! The event before it may have come behind the notice: while bindings are put in force again, one by one, some events
//! find their way to the queue and others do not.

/// Events published so long before the gap that a notice names may belong to it: they were on their way through the
/// publisher and the broker when the broker was last heard.
pub(crate) const ON_THE_WAY_MICROS: u64 = 5_000_000;

/// A gap notice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notice {
    /// When it was read.
    pub(crate) at: u64,
    /// The length of the gap, in microseconds; it ended at `at`, or a little earlier.
    pub(crate) micros: u64,
}

/// What the publisher knows of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    /// When it was given to the AMQP client.
    pub(crate) at: u64,
    /// The publisher's connection ended before the broker said that it had it.
    pub(crate) is_unconfirmed: bool,
}

/// What an event, or the end of waiting for more, tells about the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Events lost and announced.
    pub(crate) announced: u64,
    /// Events that the broker may never have had.
    pub(crate) unconfirmed: u64,
    /// Numbers of events lost in silence.
    pub(crate) missing: Vec<u64>,
    /// The event has come before, or one behind it has.
    pub(crate) is_out_of_order: bool,
}

/// One session's stream: of one subscription and one lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    /// The first number that must come and has not been accounted for.
    due: u64,
    /// The last number that came.
    last: u64,
}

impl Stream {
    /// A stream that begins when `published` events had been published: those may come or not, all others must.
    #[must_use]
    pub(crate) fn new(published: u64) -> Self {
        Self {
            due: published + 1,
            last: 0,
        }
    }

    /// Takes event `number`. `notices`: all that the session has had so far. Linear in what did not come.
    pub(crate) fn take(
        &mut self,
        number: u64,
        notices: &[Notice],
        record: impl Fn(u64) -> Option<Published>,
    ) -> Entry {
        if number <= self.last {
            return Entry {
                is_out_of_order: true,
                ..Entry::default()
            };
        }
        self.last = number;
        let mut entry = Entry::default();
        self.account(number, notices, record, &mut entry);
        self.due = self.due.max(number + 1);
        entry
    }

    /// Nothing more will come of the first `published` events.
    pub(crate) fn close(
        &mut self,
        published: u64,
        notices: &[Notice],
        record: impl Fn(u64) -> Option<Published>,
    ) -> Entry {
        let mut entry = Entry::default();
        self.account(published + 1, notices, record, &mut entry);
        self.due = self.due.max(published + 1);
        entry
    }

    /// The last number that came.
    #[must_use]
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Whether all of the first `published` events have come, or had begun to be lost before a notice that covers
    /// them: nothing more needs to be waited for. Linear in what did not come.
    #[must_use]
    pub(crate) fn is_complete(
        &self,
        published: u64,
        notices: &[Notice],
        record: impl Fn(u64) -> Option<Published>,
    ) -> bool {
        let mut at_rest = *self;
        at_rest.close(published, notices, record).missing.is_empty()
    }

    /// Accounts for the numbers from `due` to before `end`.
    fn account(
        &self,
        end: u64,
        notices: &[Notice],
        record: impl Fn(u64) -> Option<Published>,
        entry: &mut Entry,
    ) {
        for number in self.due..end {
            match record(number) {
                Some(event) if notices.iter().any(|notice| covers(*notice, event.at)) => {
                    entry.announced += 1;
                }
                Some(event) if event.is_unconfirmed => entry.unconfirmed += 1,
                _ => entry.missing.push(number),
            }
        }
    }
}

fn covers(notice: Notice, published: u64) -> bool {
    let begin = notice.at.saturating_sub(notice.micros + ON_THE_WAY_MICROS);
    (begin..=notice.at).contains(&published)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Event `n` is published at second `n`.
    fn record(number: u64) -> Option<Published> {
        Some(Published {
            at: number * 1_000_000,
            is_unconfirmed: number == 50,
        })
    }

    fn gap(at_second: u64, seconds: u64) -> Notice {
        Notice {
            at: at_second * 1_000_000,
            micros: seconds * 1_000_000,
        }
    }

    #[test]
    fn what_comes_in_order_is_fine_from_whichever_number_it_begins() {
        for first in [1, 4, 10, 11] {
            let mut stream = Stream::new(10);
            for number in first..20 {
                assert_eq!(stream.take(number, &[], record), Entry::default());
            }
            assert!(stream.is_complete(19, &[], record));
            assert!(!stream.is_complete(20, &[], record));
        }
    }

    #[test]
    fn a_repeated_or_late_event_is_out_of_order() {
        let mut stream = Stream::new(0);
        stream.take(1, &[], record);
        stream.take(3, &[], record);
        for number in [1, 2, 3] {
            assert!(stream.take(number, &[], record).is_out_of_order);
        }
        assert_eq!(stream.take(4, &[], record), Entry::default());
    }

    #[test]
    fn a_hole_is_missing_unless_a_notice_covers_it() {
        let hole = |notices: &[Notice]| {
            let mut stream = Stream::new(0);
            for number in 1..=20 {
                stream.take(number, &[], record);
            }
            stream.take(24, notices, record)
        };
        assert_eq!(hole(&[]).missing, [21, 22, 23]);
        assert_eq!(hole(&[gap(24, 4)]).announced, 3);
        // It ended before the last of them was published.
        let partly = hole(&[gap(22, 4)]);
        assert_eq!((partly.announced, partly.missing), (2, vec![23]));
        // They were published long before it began.
        assert_eq!(hole(&[gap(60, 20)]).missing, [21, 22, 23]);
        // Two that touch each other.
        assert_eq!(hole(&[gap(22, 1), gap(24, 1)]).announced, 3);
    }

    #[test]
    fn a_notice_that_comes_after_the_next_event_is_too_late() {
        let mut stream = Stream::new(0);
        assert_eq!(stream.take(3, &[], record).missing, [1, 2]);
        assert_eq!(stream.take(4, &[gap(4, 4)], record), Entry::default());
    }

    #[test]
    fn what_the_broker_never_confirmed_is_told_apart() {
        let mut stream = Stream::new(48);
        let entry = stream.take(51, &[], record);
        assert_eq!((entry.unconfirmed, entry.missing), (1, vec![49]));
    }

    #[test]
    fn at_the_end_of_waiting_the_rest_is_accounted_for_once() {
        let mut stream = Stream::new(0);
        stream.take(1, &[], record);
        assert_eq!(stream.close(3, &[], record).missing, [2, 3]);
        assert_eq!(stream.close(3, &[], record), Entry::default());
        // What a notice covers may still come.
        let notices = [gap(6, 2)];
        assert_eq!(stream.close(6, &notices, record).announced, 3);
        assert_eq!(stream.take(6, &notices, record), Entry::default());
        assert_eq!(stream.take(8, &notices, record).missing, [7]);
    }

    #[test]
    fn a_number_that_is_on_no_record_is_missing() {
        let mut stream = Stream::new(0);
        assert_eq!(stream.take(2, &[gap(2, 2)], |_| None).missing, [1]);
    }
}
