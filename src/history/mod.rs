//! The events of the last minute, and the cursors that name a place among them (PROTOCOL 10).
//!
//! | module | owns |
//! |---|---|
//! | [`cursor`] | a cursor and its text |
//! | `ring` | the events that are kept, by number and by id |
//! | [`stored`] | what is loaded of the stream, and what that proves |
//! | this | the times of cursors; the bounds of what is kept; which cursors are good |
//!
//! # Times
//!
//! The time of a cursor follows the wall clock forward and never steps back with it: then it goes on at the pace of the
//! loop's clock, so it never runs slower than that. Every event gets the time of now, or the next one that is free, but
//! none that is more than [`TIME_AHEAD_MAX`] ahead of now. Beyond that, which takes more than 1,000 events a second for
//! a while, several events share a time, and are told apart by their ids and their order. Otherwise times would run away
//! from the clock, and a cursor that is taken to another process would lie. (PROTOCOL 10 says "never twice the same".)
//!
//! A *position*, which is a cursor without an id, is behind every event with its time or an earlier one. So the next
//! event must get a later one; where the bound above forbids that, the position is a millisecond earlier, and some events
//! come twice.
//!
//! # Which cursors are good
//!
//! What came behind a cursor must be here to the last event. Whatever may have been missed is behind a [`Boundary`], of
//! which it is certain on which side a cursor is: the start of the process, the last event that was dropped, the end of
//! the last outage; and outside of this folder the moment when an AMQP binding came into force ([`Place::is_behind`]).
//! Where that is not certain, the cursor is not good.
//!
//! While the source is away and its queue goes on, and until what waited there is taken in, times stand nearly still
//! ([`Behind`]): other processes had those events when they were published, and a position of now would lie there.
//!
//! A cursor of this process is exact. One of another process is taken for its time, or for the moment at which the event
//! that it names came here, if that is earlier; from that moment `overlap` is subtracted. So the clocks of
//! two hosts may differ by half of `overlap`: the other half is for [`TIME_AHEAD_MAX`].

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::wildcard_enum_match_arm
    )
)]

pub mod cursor;
mod ring;
pub mod stored;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::event::{Event, EventId};
use crate::limits::{BACKLOG_QUIET, EVICTIONS_AT_ONCE_MAX, OUTAGE_SETTLES_AFTER, TIME_AHEAD_MAX};
use crate::now::{Boundary, Now};

use self::ring::Ring;
pub use cursor::{Cursor, Mark};
pub use ring::{Kept, Seq};

/// How much is kept, and how far two processes may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryOptions {
    /// `history_bytes`; 0: no history at all.
    pub bytes_max: usize,
    /// `history_seconds`.
    pub keep: Duration,
    /// `history_overlap_ms`.
    pub overlap: Duration,
}

/// Where the numbers of a history begin that stands behind a stream: those below it are places in the stream.
pub const STORED_END: Seq = Seq(1 << 62);

/// Why there is no replay from a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its time is before the history.
    Expired,
    /// It is of the future, or never was given, or a binding is not covered since then.
    Unknown,
    /// More events than may be replayed.
    TooMany,
    /// Events may have been lost since then.
    Outage,
}

impl Why {
    /// The word of `data.why`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Unknown => "unknown",
            Self::TooMany => "too_many",
            Self::Outage => "outage",
        }
    }
}

/// The place behind a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first event behind it.
    pub seq: Seq,
    since: Since,
}

/// What is asked for is all that came since then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Since {
    /// Behind a cursor of this process with this time, or from about this time on.
    time: u64,
    /// From this moment of the loop's clock on too.
    clock: Option<Duration>,
}

impl Place {
    /// Whether nothing of what is behind the place came before `boundary`.
    #[must_use]
    pub fn is_behind(&self, boundary: Boundary) -> bool {
        self.since.is_behind(boundary)
    }
}

impl Since {
    fn is_behind(self, boundary: Boundary) -> bool {
        boundary.time <= self.time && self.clock.is_none_or(|clock| boundary.clock < clock)
    }
}

/// The source is away and its queue goes on, or what came into that queue meanwhile is not all taken in. The times of cursors
/// stand nearly still then: what is taken in, and every position, is told as of the moment at which the process fell behind,
/// because that is all that another process may conclude from them.
#[derive(Clone, Copy, Debug)]
struct Behind {
    /// The time of that moment.
    time: u64,
    /// The source is back.
    is_back: bool,
    /// Since when nothing came, on the loop's clock.
    quiet_since: Option<Duration>,
    /// At most so many events to come are from before its return; `None`: nobody knows.
    left: Option<usize>,
}

/// The events of the last minute. The default is off: nothing is kept, and there are no cursors.
#[derive(Debug, Default)]
pub struct History {
    /// `None`: off, and then nothing costs anything.
    on: Option<Box<On>>,
}

#[derive(Debug)]
struct On {
    options: HistoryOptions,
    mark: Mark,
    ring: Ring,
    /// Milliseconds that the wall clock is ahead of the loop's, at most so far.
    ahead: u64,
    /// The latest time that was given.
    last: u64,
    /// A boundary was drawn at `last`, and no cursor was given since.
    is_drawn: bool,
    /// Events may wait that other processes took in long ago.
    behind: Option<Behind>,
    /// What was published before this moment of the loop's clock has come; `None`: the source does not say.
    caught_up: Option<Duration>,
    /// The start, or the latest event that was dropped.
    horizon: Boundary,
    /// The end of the last outage.
    outage: Boundary,
    /// Events to come that may be from before it, and when that was told, on the loop's clock.
    tainted: usize,
    tainted_since: Duration,
    /// The time of the newest event.
    newest: u64,
    /// Some sessions do not have that event yet.
    is_partial: bool,
    dropped_early: u64,
}

impl History {
    /// An empty history of a process that begins now; off with `bytes_max` 0.
    #[must_use]
    pub fn new(options: HistoryOptions, mark: Mark, now: Now) -> Self {
        let on = || {
            let mut on = On {
                options,
                mark,
                ring: Ring::default(),
                ahead: 0,
                last: 0,
                is_drawn: false,
                behind: None,
                caught_up: None,
                horizon: Boundary::default(),
                outage: Boundary::default(),
                tainted: 0,
                tainted_since: Duration::ZERO,
                newest: 0,
                is_partial: false,
                dropped_early: 0,
            };
            on.horizon = on.draw(now);
            Box::new(on)
        };
        Self {
            on: (options.bytes_max > 0).then(on),
        }
    }

    /// Whether events are kept.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.is_some()
    }

    /// Keeps an event and returns its cursor; `None`: off. O(1), amortised.
    pub fn take_in(&mut self, event: &Arc<Event>, now: Now) -> Option<Cursor> {
        let on = self.on.as_mut()?;
        if let Some(behind) = &mut on.behind {
            behind.quiet_since = None;
        }
        let time = on.give(now);
        on.newest = time;
        if let Some(Behind {
            left: Some(left), ..
        }) = &mut on.behind
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                on.behind = None;
            }
        }
        on.ring.push(Kept {
            event: event.clone(),
            id: event.id,
            cursor_time: time,
            at: now.clock,
            unix: now.unix(),
        });
        if on.tainted > 0 {
            on.tainted -= 1;
            on.outage = Boundary {
                time: time + 1,
                clock: now.clock,
            };
        }
        on.evict(now);
        Some(Cursor {
            id: Some(event.id),
            time,
            mark: on.mark,
        })
    }

    /// The position behind all events that every session has been given, and before all to come; `None`: off. O(1).
    pub fn here(&mut self, now: Now) -> Option<Cursor> {
        let on = self.on.as_mut()?;
        Some(Cursor {
            id: None,
            time: on.here(now),
            mark: on.mark,
        })
    }

    /// Whether there are sessions that do not have the newest event yet.
    pub fn set_partial(&mut self, is_partial: bool) {
        if let Some(on) = &mut self.on {
            on.is_partial = is_partial;
        }
    }

    /// The place behind a cursor. O(log n), and linear in the events that share its time.
    ///
    /// # Errors
    /// Why it cannot be told, or what is behind it is not all here.
    pub fn locate(&self, cursor: &Cursor, now: Now) -> Result<Place, Why> {
        let on = self.on.as_ref().ok_or(Why::Unknown)?;
        if cursor.mark == on.mark {
            on.locate_own(cursor, now)
        } else {
            on.locate_foreign(cursor, now)
        }
    }

    /// Draws a boundary; `None`: off.
    pub fn draw(&mut self, now: Now) -> Option<Boundary> {
        Some(self.on.as_mut()?.draw(now))
    }

    /// Draws the boundary from which on a binding is covered that has just come into force; `None`: off. What waits in the
    /// queue of a source that was away was routed without that binding, so then it is behind all of that.
    pub fn draw_coverage(&mut self, now: Now) -> Option<Boundary> {
        let on = self.on.as_mut()?;
        let Some(behind) = on.behind else {
            return Some(on.draw(now));
        };
        let latest = behind.time + millis(TIME_AHEAD_MAX);
        Some(Boundary {
            time: latest.max(on.last) + 1,
            clock: now.clock,
        })
    }

    /// What was published before `clock`, a moment of the loop's clock, has come; `None`: the source does not say. Positions are
    /// told as of then, or of the newest event: of what was published later nothing is known, if the broker is silent and
    /// nobody has noticed yet.
    pub fn know_caught_up(&mut self, clock: Option<Duration>) {
        if let Some(on) = &mut self.on {
            on.caught_up = clock;
        }
    }

    /// The source is away since this moment of the loop's clock.
    pub fn fall_behind(&mut self, since: Duration) {
        if let Some(on) = &mut self.on
            && on.behind.is_none_or(|behind| behind.is_back)
        {
            let time = millis(since) + on.ahead;
            let before = on.behind.map(|behind| behind.time);
            on.behind = Some(Behind {
                time: before.unwrap_or(time),
                is_back: false,
                quiet_since: None,
                left: None,
            });
        }
    }

    /// The source is back. `is_unbroken`: what came into its queue meanwhile is still to come.
    pub fn come_back(&mut self, is_unbroken: bool) {
        if let Some(on) = &mut self.on {
            match &mut on.behind {
                Some(behind) if is_unbroken => behind.is_back = true,
                _ => on.behind = None,
            }
        }
    }

    /// Of the events that waited for a source which is back, at most `left` are still to come. Without this a process to which
    /// events come all the time would never know that it is not behind any more.
    pub fn catch_up(&mut self, left: usize) {
        if let Some(on) = &mut self.on
            && let Some(behind) = &mut on.behind
            && behind.is_back
        {
            behind.left = Some(left);
            if left == 0 {
                on.behind = None;
            }
        }
    }

    /// The event with this number, if it is still kept. O(1).
    #[must_use]
    pub fn get(&self, seq: Seq) -> Option<&Kept> {
        self.on.as_ref()?.ring.get(seq)
    }

    /// The oldest event that is kept, or the event to come.
    #[must_use]
    pub fn first(&self) -> Seq {
        self.on.as_ref().map_or(Seq(0), |on| on.ring.first())
    }

    /// The event to come.
    #[must_use]
    pub fn next(&self) -> Seq {
        self.on.as_ref().map_or(Seq(0), |on| on.ring.next())
    }

    /// The cursor behind an event that is kept; `None`: off.
    #[must_use]
    pub fn cursor_of(&self, kept: &Kept) -> Option<Cursor> {
        Some(Cursor {
            id: Some(kept.event.id),
            time: kept.cursor_time,
            mark: self.on.as_ref()?.mark,
        })
    }

    /// What came before may have holes: cursors of before this moment are [`Why::Outage`], and so are those of the next
    /// `waiting` events, which had come before the source told it.
    pub fn outage(&mut self, waiting: usize, now: Now) {
        if let Some(on) = &mut self.on {
            on.outage = on.draw(now);
            on.tainted = on.tainted.max(waiting);
            on.tainted_since = now.clock;
        }
    }

    /// Numbers the events from [`STORED_END`] on. To be called before any has come.
    pub fn stand_behind_the_stream(&mut self) {
        if let Some(on) = &mut self.on {
            on.ring.number_from(STORED_END);
        }
    }

    /// The first event that came after this moment, in ms since 1970; `None`: something behind it may be missing, or is gone.
    /// By when events came: while the process is behind, the times of their cursors are earlier. O(log n).
    #[must_use]
    pub fn from_time(&self, unix_ms: u64, now: Now) -> Option<Seq> {
        let on = self.on.as_ref()?;
        let clock = on.clock_at(unix_ms)?;
        let since = Since {
            time: unix_ms,
            clock: Some(clock),
        };
        on.check(since, now).ok()?;
        Some(on.ring.first_not(|kept| kept.at <= clock))
    }

    /// No event waits. Some time after an outage was told, those to come are then from behind it, however many were said
    /// to be from before; and after [`BACKLOG_QUIET`] without an event the process is not behind any more. O(1).
    pub fn nothing_waits(&mut self, now: Now) {
        let Some(on) = &mut self.on else { return };
        if on.tainted > 0 && now.clock.saturating_sub(on.tainted_since) >= OUTAGE_SETTLES_AFTER {
            on.tainted = 0;
        }
        if let Some(behind) = &mut on.behind
            && behind.is_back
        {
            let since = *behind.quiet_since.get_or_insert(now.clock);
            if now.clock.saturating_sub(since) >= BACKLOG_QUIET {
                on.behind = None;
            }
        }
    }

    /// Drops what is too old, at most [`EVICTIONS_AT_ONCE_MAX`] events.
    pub fn evict(&mut self, now: Now) {
        if let Some(on) = &mut self.on {
            on.evict(now);
        }
    }

    /// When [`History::evict`] has something to do, on the loop's clock.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let on = self.on.as_ref()?;
        let oldest = on.ring.oldest()?;
        Some(oldest.at + on.options.keep + Duration::from_millis(1))
    }

    /// Whether the cursor is of this process.
    #[must_use]
    pub fn is_own(&self, cursor: &Cursor) -> bool {
        (self.on.as_ref()).is_some_and(|on| on.mark == cursor.mark)
    }

    /// Whether an event with this id is kept. O(1).
    #[must_use]
    pub fn holds(&self, id: EventId) -> bool {
        (self.on.as_ref()).is_some_and(|on| on.ring.find(id).is_some())
    }

    /// A gauge: the events that are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.on.as_ref().map_or(0, |on| on.ring.len())
    }

    /// Whether no event is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A gauge: the bytes of the events that are kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.on.as_ref().map_or(0, |on| on.ring.bytes())
    }

    /// A counter: events that were dropped before their time, because there were too many bytes.
    #[must_use]
    pub fn dropped_early(&self) -> u64 {
        self.on.as_ref().map_or(0, |on| on.dropped_early)
    }
}

impl On {
    /// The time of now.
    fn time(&self, now: Now) -> u64 {
        let clock = millis(now.clock);
        clock + self.ahead.max(now.unix_ms.saturating_sub(clock))
    }

    /// As [`On::time`], from which it never falls again.
    fn advance(&mut self, now: Now) -> u64 {
        let time = self.time(now);
        self.ahead = time.saturating_sub(millis(now.clock));
        time
    }

    /// The time that cursors of now are given, which stands still while the process is behind.
    fn stamp(&mut self, now: Now) -> u64 {
        let time = self.advance(now);
        self.behind.map_or(time, |behind| behind.time.min(time))
    }

    /// The moment on the loop's clock at which the time was this.
    fn clock_at(&self, time: u64) -> Option<Duration> {
        Some(Duration::from_millis(time.checked_sub(self.ahead)?))
    }

    /// The time of an event that comes now.
    fn give(&mut self, now: Now) -> u64 {
        let time = self.stamp(now);
        if self.last < time + millis(TIME_AHEAD_MAX) {
            self.last = time.max(self.last + 1);
        }
        self.is_drawn = false;
        self.last
    }

    fn here(&mut self, now: Now) -> u64 {
        if self.is_partial {
            // It may have been dropped already, for its size.
            return self.newest.saturating_sub(1);
        }
        self.is_drawn = false;
        let time = self.stamp(now);
        if self.last < time + millis(TIME_AHEAD_MAX) {
            let caught_up = self.caught_up.map(|clock| millis(clock) + self.ahead);
            self.last = caught_up.unwrap_or(time).min(time).max(self.last);
            self.last
        } else {
            self.last - 1
        }
    }

    fn draw(&mut self, now: Now) -> Boundary {
        let time = self.stamp(now);
        let next = if self.is_drawn {
            self.last
        } else {
            self.last + 1
        };
        self.last = time.max(next);
        self.is_drawn = true;
        Boundary {
            time: self.last,
            clock: now.clock,
        }
    }

    fn evict(&mut self, now: Now) {
        for _ in 0..EVICTIONS_AT_ONCE_MAX {
            let Some(oldest) = self.ring.oldest() else {
                return;
            };
            let is_old = now.clock.saturating_sub(oldest.at) > self.options.keep;
            if !is_old && self.ring.bytes() <= self.options.bytes_max {
                return;
            }
            if let Some(dropped) = self.ring.pop() {
                self.dropped_early += u64::from(!is_old);
                self.horizon = Boundary {
                    time: dropped.cursor_time,
                    clock: dropped.at,
                };
            }
        }
    }

    fn locate_own(&self, cursor: &Cursor, now: Now) -> Result<Place, Why> {
        if cursor.time > self.last {
            return Err(Why::Unknown);
        }
        let since = Since {
            time: cursor.time,
            clock: None,
        };
        self.check(since, now)?;
        let seq = match cursor.id {
            None => self.ring.first_not(|kept| kept.cursor_time <= cursor.time),
            // Of the events that share its time, one that was dropped might be meant.
            Some(_) if cursor.time <= self.horizon.time => return Err(Why::Expired),
            Some(id) => {
                let mut seq = self.ring.first_not(|kept| kept.cursor_time < cursor.time);
                loop {
                    let kept = self.ring.get(seq).ok_or(Why::Unknown)?;
                    if kept.cursor_time != cursor.time {
                        return Err(Why::Unknown);
                    }
                    seq = Seq(seq.0 + 1);
                    if kept.id == id {
                        break seq;
                    }
                }
            }
        };
        Ok(Place { seq, since })
    }

    fn locate_foreign(&self, cursor: &Cursor, now: Now) -> Result<Place, Why> {
        let overlap = millis(self.options.overlap);
        if cursor.time > self.time(now) + overlap {
            return Err(Why::Unknown);
        }
        // By the moments at which events came: while this process is behind, its own times say less.
        let clock = self.clock_at(cursor.time).ok_or(Why::Expired)?;
        let named = cursor.id.and_then(|id| self.ring.find(id));
        // That process may have taken the event in long after this one, when it was behind. But one that came here much
        // later is another that was published alike.
        let is_meant = |kept: &&Kept| kept.at <= clock + self.options.overlap + TIME_AHEAD_MAX;
        let clock = named
            .filter(is_meant)
            .map_or(clock, |named| named.at.min(clock));
        let clock = clock.checked_sub(self.options.overlap);
        let clock = clock.ok_or(Why::Expired)?;
        let seq = self.ring.first_not(|kept| kept.at < clock);
        let since = Since {
            time: cursor.time.saturating_sub(overlap),
            clock: Some(clock),
        };
        self.check(since, now)?;
        Ok(Place { seq, since })
    }

    fn check(&self, since: Since, now: Now) -> Result<(), Why> {
        let age = |clock| now.clock.saturating_sub(clock);
        let is_old = self.time(now).saturating_sub(since.time) > millis(self.options.keep)
            || since
                .clock
                .is_some_and(|clock| age(clock) > self.options.keep);
        if is_old || !since.is_behind(self.horizon) {
            return Err(Why::Expired);
        }
        if !since.is_behind(self.outage) {
            return Err(Why::Outage);
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
