//! How far a session has come in the stream of events, and which of the latest it has had (PROTOCOL 10). Pure.
//!
//! A cursor is `ID.TIME.MARK`. Events that a server replays to its own cursor (the same MARK) are exactly those that were
//! missed. Another process begins its replay a little before the cursor, and may be a little behind the first, so events may
//! come again that were had before, replayed or live: they are known by their id.
//!
//! What is replayed out of the stream of the history names no process. Where such a replay goes on to the process's own
//! history, events may come from both.
//!
//! While a second session takes over from the first, an event may come on both: it is told as often as it has come on the one
//! on which it has come more often.
//!
//! Invariant: of two events with the same id, which are two equal publishes, the second is dropped only if two were had, and
//! only if it was taken in within [`SUB_DOUBLE_WITHIN`] ([`SUB_BEHIND_MAX`] if it is live) of one that was had. What is in
//! doubt is printed twice, not lost.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::limits::{SUB_BEHIND_MAX, SUB_DOUBLE_WITHIN, SUB_HAD_MAX};

/// The MARK of what comes out of the stream.
const MARK_OF_STREAM: u64 = 0;

/// The position of one session.
#[derive(Debug, Default)]
pub(super) struct Position {
    /// The last cursor, as the server wrote it.
    cursor: Option<String>,
    /// The latest events that were had, in their order: those within [`SUB_DOUBLE_WITHIN`], at most [`SUB_HAD_MAX`].
    had: VecDeque<Had>,
    again: Option<Again>,
    /// While a second session takes over: of each event, how often it has come on the first and on the second; of
    /// [`SUB_HAD_MAX`] events at most.
    both: Option<HashMap<u64, [u32; 2]>>,
}

/// On which session an event comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The one that is left, or the only one.
    First,
    /// The one that takes over.
    Second,
}

/// The parts of a cursor with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Had {
    id: u64,
    /// Unix milliseconds.
    time: u64,
    /// Names the process that took the event in.
    mark: u64,
}

/// A new connection, on which events may come again.
#[derive(Debug)]
struct Again {
    /// The process that gave the cursor, if it named itself. Nothing of it comes again.
    from: Option<u64>,
    /// Events that were had before, by id, and have not come again.
    had: HashMap<u64, Vec<Had>>,
    /// Events that came out of the stream on this connection, by id, and have not come again.
    of_stream: HashMap<u64, Vec<Had>>,
    doubles: u64,
    is_replaying: bool,
    /// Of live events those may come again that were taken in until then; `None`: no live event has come.
    live_until: Option<u64>,
}

impl Had {
    /// `None`: it is a position without an event, or nothing that is known here.
    fn parse(cursor: &str) -> Option<Self> {
        let mut parts = cursor.split('.');
        let (id, time, mark) = (parts.next()?, parts.next()?, parts.next()?);
        let is_event = id.len() == 16 && parts.next().is_none();
        is_event.then_some(())?;
        Some(Self {
            id: u64::from_str_radix(id, 16).ok()?,
            time: u64::from_str_radix(time, 36).ok()?,
            mark: mark_of(mark)?,
        })
    }

    /// Whether it may be the same delivery as `other`, seen by another process, or out of the stream, within this time.
    fn may_be(&self, other: &Self, within: Duration) -> bool {
        let apart = u128::from(self.time.abs_diff(other.time));
        let is_of_another = self.mark != other.mark || self.mark == MARK_OF_STREAM;
        self.id == other.id && is_of_another && apart <= within.as_millis()
    }
}

/// The process that gave a cursor; its MARK is the last part.
fn mark_of(cursor: &str) -> Option<u64> {
    let mark = cursor.rsplit('.').next()?;
    u64::from_str_radix(mark, 36).ok()
}

impl Position {
    /// The cursor to resume from, if the server has given one.
    pub(super) fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// A reply came, with a cursor or without.
    pub(super) fn stand_at(&mut self, cursor: Option<&str>) {
        self.cursor = cursor.map(str::to_owned);
    }

    /// A new connection is subscribed. `is_replaying`: the server replays what was missed.
    pub(super) fn begin_again(&mut self, is_replaying: bool) {
        let from = self.cursor.as_deref().and_then(mark_of);
        let had = &self.had;
        let again = self.again.get_or_insert_with(|| {
            let mut by_id = HashMap::<u64, Vec<Had>>::new();
            for one in had {
                by_id.entry(one.id).or_default().push(*one);
            }
            Again {
                from,
                had: by_id,
                of_stream: HashMap::new(),
                doubles: 0,
                is_replaying,
                live_until: None,
            }
        });
        again.is_replaying |= is_replaying;
    }

    /// Whether a replay is under way.
    pub(super) fn is_replaying(&self) -> bool {
        self.again.as_ref().is_some_and(|again| again.is_replaying)
    }

    /// The replay is over. Returns how many doubles were dropped in it.
    pub(super) fn end_replay(&mut self) -> u64 {
        let Some(again) = &mut self.again else {
            return 0;
        };
        again.is_replaying = false;
        again.doubles
    }

    /// The connection is over.
    pub(super) fn end_connection(&mut self) {
        self.again = None;
        self.both = None;
    }

    /// A second session is to take over.
    pub(super) fn begin_both(&mut self) {
        self.both = Some(HashMap::new());
    }

    /// There is one session again. Returns how many events came on both.
    pub(super) fn end_both(&mut self) -> u64 {
        let both = self.both.take().unwrap_or_default();
        let twice = |[first, second]: &[u32; 2]| u64::from(*first.min(second));
        both.values().map(twice).sum()
    }

    /// An event came, with this cursor, from which the session would resume. True: it is new; false: it was had before.
    pub(super) fn take(&mut self, cursor: &str, is_replayed: bool, side: Side) -> bool {
        self.cursor = Some(cursor.to_owned());
        let Some(event) = Had::parse(cursor) else {
            return true;
        };
        if self.has_come_before(event, is_replayed) {
            return false;
        }
        self.note(event);
        self.is_first_of_both(event.id, side)
    }

    /// Whether the event was had on an earlier connection, of another process.
    fn has_come_before(&mut self, event: Had, is_replayed: bool) -> bool {
        let Some(again) = &mut self.again else {
            return false;
        };
        let behind = u64::try_from(SUB_BEHIND_MAX.as_millis()).unwrap_or(u64::MAX);
        if !is_replayed
            && event.time
                > *again
                    .live_until
                    .get_or_insert(event.time.saturating_add(behind))
        {
            self.again = None;
            return false;
        }
        let is_of_stream = event.mark == MARK_OF_STREAM;
        if again.from == Some(event.mark) && !is_of_stream {
            return false;
        }
        let within = if is_replayed {
            SUB_DOUBLE_WITHIN
        } else {
            SUB_BEHIND_MAX
        };
        // What comes twice out of the stream was published twice.
        let is_double = take_one(&mut again.had, &event, within)
            || !is_of_stream && take_one(&mut again.of_stream, &event, within);
        if is_double {
            again.doubles += 1;
        }
        if is_of_stream && again.of_stream.len() < SUB_HAD_MAX {
            again.of_stream.entry(event.id).or_default().push(event);
        }
        is_double
    }

    /// An event came on the first session, which is read beside the second. True: it is new.
    pub(super) fn take_beside(&mut self, cursor: &str) -> bool {
        let Some(event) = Had::parse(cursor) else {
            return true;
        };
        let is_new = self.is_first_of_both(event.id, Side::First);
        // It is still to come on the second, maybe when the first is closed.
        if is_new && let Some(again) = &mut self.again {
            again.had.entry(event.id).or_default().push(event);
        }
        is_new
    }

    /// Whether the event has come less often on the other session.
    fn is_first_of_both(&mut self, id: u64, side: Side) -> bool {
        let Some(both) = &mut self.both else {
            return true;
        };
        if both.len() >= SUB_HAD_MAX && !both.contains_key(&id) {
            return true;
        }
        let [first, second] = both.entry(id).or_default();
        let (mine, others) = match side {
            Side::First => (first, second),
            Side::Second => (second, first),
        };
        *mine += 1;
        *mine > *others
    }

    fn note(&mut self, event: Had) {
        let window = SUB_DOUBLE_WITHIN.as_millis();
        let is_old = |one: &Had| u128::from(event.time.saturating_sub(one.time)) > window;
        while self.had.len() >= SUB_HAD_MAX || self.had.front().is_some_and(is_old) {
            self.had.pop_front();
        }
        self.had.push_back(event);
    }
}

/// Takes out one that may be this event. False: there is none.
fn take_one(had: &mut HashMap<u64, Vec<Had>>, event: &Had, within: Duration) -> bool {
    let Some(alike) = had.get_mut(&event.id) else {
        return false;
    };
    let place = alike.iter().position(|one| one.may_be(event, within));
    place.map(|place| alike.swap_remove(place)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(id: u64, time: u32, mark: &str) -> String {
        // In base 36 a number of one digit.
        let time = char::from_digit(time, 36).expect("a small time");
        format!("{id:016x}.{time}.{mark}")
    }

    #[test]
    fn what_another_process_replays_again_is_dropped_and_what_is_new_is_not() {
        let mut position = Position::default();
        position.stand_at(Some("0.1.aaaaaa"));
        assert_eq!(position.cursor(), Some("0.1.aaaaaa"));
        for (id, time) in [(1, 2), (2, 3), (3, 4)] {
            assert!(position.take(&cursor(id, time, "aaaaaa"), false, Side::First));
        }
        position.begin_again(true);
        let came: Vec<bool> = [1, 2, 3, 4, 5]
            .map(|id| position.take(&cursor(id, 5, "bbbbbb"), true, Side::First))
            .into();
        assert_eq!(came, [false, false, false, true, true]);
        assert_eq!(position.cursor(), Some(&*cursor(5, 5, "bbbbbb")));
        assert_eq!((position.end_replay(), position.is_replaying()), (3, false));
        assert!(position.take(&cursor(5, 6, "bbbbbb"), false, Side::First));
    }

    #[test]
    fn what_comes_out_of_the_stream_and_out_of_the_history_too_is_told_once() {
        let mut position = Position::default();
        for id in [1, 2] {
            position.take(&cursor(id, 2, "aaaaaa"), false, Side::First);
        }
        position.begin_again(true);
        let mut take = |id, mark| position.take(&cursor(id, 3, mark), true, Side::First);
        // Had before, and missed: an event that was published twice.
        let of_stream = [2, 3, 3].map(|id| take(id, "000000"));
        assert_eq!(of_stream, [false, true, true]);
        let of_history = [2, 3, 3, 3, 4].map(|id| take(id, "bbbbbb"));
        assert_eq!(of_history, [false, false, false, true, true]);
        assert_eq!(position.end_replay(), 4);
        // Lost again before the first live event, and resumed out of the stream once more.
        position.end_connection();
        position.begin_again(true);
        let again =
            [3, 3, 3, 4, 5].map(|id| position.take(&cursor(id, 3, "000000"), true, Side::First));
        assert_eq!(again, [false, false, false, false, true]);
    }

    #[test]
    fn equal_publishes_are_told_as_often_as_they_were_published() {
        let mut position = Position::default();
        position.take(&cursor(7, 1, "aaaaaa"), false, Side::First);
        position.begin_again(true);
        // The one that was had, and an equal one that was missed.
        assert!(!position.take(&cursor(7, 1, "bbbbbb"), true, Side::First));
        assert!(position.take(&cursor(7, 2, "bbbbbb"), true, Side::First));
        position.end_replay();
        // The process that gave the cursor replays only what was missed.
        position.begin_again(true);
        assert!(position.take(&cursor(7, 3, "bbbbbb"), true, Side::First));
        assert!(position.take(&cursor(7, 4, "bbbbbb"), true, Side::First));
    }

    #[test]
    fn a_live_event_of_a_process_that_is_behind_is_dropped_and_only_in_the_first_seconds() {
        let at = |id: u64, time: u64, mark: &str| format!("{id:016x}.{}.{mark}", base36(time));
        let behind = SUB_BEHIND_MAX.as_millis() as u64;
        let mut position = Position::default();
        for id in [1, 2, 3] {
            position.take(&at(id, 1000, "aaaaaa"), false, Side::First);
        }
        position.begin_again(false);
        for (id, time, is_new) in [
            (1, 1000 + behind, false),
            (1, 1000 + behind, true),
            (2, 1001 + behind, true),
            (9, 2000 + 2 * behind, true),
            (3, 1000 + behind, true),
        ] {
            let came = position.take(&at(id, time, "bbbbbb"), false, Side::First);
            assert_eq!(came, is_new, "{id} at {time}");
        }
    }

    #[test]
    fn while_two_sessions_are_read_an_event_is_told_as_often_as_it_came_on_one() {
        let mut position = Position::default();
        position.take(&cursor(1, 1, "aaaaaa"), false, Side::First);
        position.begin_both();
        for (id, on_first, is_new) in [
            (2, true, true),
            (3, false, true),
            (3, true, false),
            (4, true, true),
            (4, true, true),
            (4, false, false),
            (4, false, false),
            (4, false, true),
            (5, true, true),
        ] {
            let came = if on_first {
                position.take_beside(&cursor(id, 2, "aaaaaa"))
            } else {
                position.take(&cursor(id, 2, "bbbbbb"), false, Side::Second)
            };
            assert_eq!(came, is_new, "{id}, on the first: {on_first}");
        }
        let second = cursor(4, 2, "bbbbbb");
        assert_eq!(position.cursor(), Some(&*second));
        assert_eq!(position.end_both(), 3);
        assert!(position.take(&second, false, Side::First));
    }

    #[test]
    fn an_equal_publish_of_long_ago_drops_nothing() {
        let at = |time: u64| format!("{:016x}.{}.{}", 7, base36(time), "aaaaaa");
        let within = SUB_DOUBLE_WITHIN.as_millis() as u64;
        for (later, is_new) in [(within, false), (within + 1, true)] {
            let mut position = Position::default();
            position.take(&at(1000), false, Side::First);
            position.begin_again(true);
            let again = at(1000 + later).replace("aaaaaa", "bbbbbb");
            assert_eq!(position.take(&again, true, Side::First), is_new, "{later}");
        }
    }

    fn base36(mut number: u64) -> String {
        let mut digits = Vec::new();
        while number > 0 {
            digits.push(char::from_digit((number % 36) as u32, 36).expect("a digit"));
            number /= 36;
        }
        digits.iter().rev().collect()
    }

    #[test]
    fn what_was_had_is_kept_within_its_bounds() {
        let mut position = Position::default();
        for number in 0..(SUB_HAD_MAX as u64 + 10) {
            position.take(&format!("{number:016x}.1.aaaaaa"), false, Side::First);
        }
        assert_eq!(position.had.len(), SUB_HAD_MAX);
        position.take(&format!("{:016x}.zzzzzz.aaaaaa", 1), false, Side::First);
        assert_eq!(position.had.len(), 1);
    }

    #[test]
    fn a_cursor_of_another_shape_is_kept_whole_and_drops_nothing() {
        let mut position = Position::default();
        for odd in [
            "",
            "x",
            "0.1.aaaaaa",
            "1.2.3.4",
            "00000000000000ZZ.1.a",
            "…",
        ] {
            position.begin_again(true);
            assert!(position.take(odd, true, Side::First), "{odd}");
            assert_eq!(position.cursor(), Some(odd));
        }
        assert!(position.had.is_empty());
    }
}
