//! The pace of a drain (PROTOCOL 3 and 10): first every session is told to move, then those that are left are closed. Both
//! are spread evenly over time, so that their reconnects are spread too.
//!
//! ```text
//! begun --told, one after another--> half of going_away --the rest of it: time to move--> first close
//! first close --closed, one after another--> last close --farewell--> over
//! ```
//!
//! The slots are gone through once to tell. A session that opens later in a slot that is behind that walk is told when it
//! opens ([`Drain::told_below`]), so nobody is told twice. To close, the slots are visited again and again until the time is
//! over, because a session that was in its handshake at the visit of its slot must be closed later.
//!
//! Invariants: no more sessions are told, or closed, than are due; nobody is closed before `first_close`.

use std::time::Duration;

use crate::limits::{DRAIN_ROUND_PAUSE, GOING_AWAY_TOLD_PER_TURN_MAX};

/// How long a drain takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct DrainTimes {
    /// The part of the whole in which sessions are told and nobody is closed; zero: nobody is told.
    pub going_away: Duration,
    /// From the begin of the drain to its end.
    pub whole: Duration,
}

/// A drain under way.
#[derive(Debug)]
pub struct Drain {
    started: Duration,
    /// When the first session is closed.
    first_close: Duration,
    /// When the last session is due to be closed.
    last_close: Duration,
    /// When the process ends, whatever is left.
    over: Duration,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Telling(Telling),
    Closing(Closing),
}

#[derive(Debug)]
struct Telling {
    /// How many connections there were.
    total: usize,
    told: usize,
    /// How many were told in this turn.
    told_in_turn: usize,
    next_slot: u32,
    /// The slots that there were; the walk ends there.
    slots: u32,
}

#[derive(Debug)]
struct Closing {
    /// How many connections there were when it began.
    total: usize,
    closed: usize,
    next_slot: u32,
    /// How many slots were visited since the last one with a session to close.
    in_vain: u32,
    /// When the next round begins after a round that found no session to close.
    next_round: Duration,
}

/// The part of the time that is kept for the last session to close in good order: a fifth, at most this.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

impl Drain {
    /// A drain of `total` connections in so many slots, from `now` on.
    #[must_use]
    pub fn new(total: usize, slots: u32, times: DrainTimes, now: Duration) -> Self {
        let farewell = FAREWELL_MAX.min(times.whole / 5);
        let last_close = now + (times.whole - farewell);
        let first_close = (now + times.going_away).min(last_close);
        let stage = if first_close > now {
            Stage::Telling(Telling {
                total,
                told: 0,
                told_in_turn: 0,
                next_slot: 0,
                slots,
            })
        } else {
            Stage::Closing(Closing::new(total, now))
        };
        Self {
            started: now,
            first_close,
            last_close,
            over: now + times.whole,
            stage,
        }
    }

    /// When the first session is closed; `None`: that time has come.
    #[must_use]
    pub fn first_close(&self) -> Option<Duration> {
        matches!(self.stage, Stage::Telling(_)).then_some(self.first_close)
    }

    /// The next slot whose session is to be told. `None`: enough are told for now, or all were.
    pub fn next_slot_to_tell(&mut self, now: Duration) -> Option<u32> {
        let due = self.due_of_next_told()?;
        let Stage::Telling(telling) = &mut self.stage else {
            return None;
        };
        if now < due || telling.told_in_turn >= GOING_AWAY_TOLD_PER_TURN_MAX {
            telling.told_in_turn = 0;
            return None;
        }
        let slot = telling.next_slot;
        telling.next_slot += 1;
        Some(slot)
    }

    /// The session in the slot that was visited last was told.
    pub fn told_one(&mut self) {
        if let Stage::Telling(telling) = &mut self.stage {
            telling.told += 1;
            telling.told_in_turn += 1;
        }
    }

    /// Sessions in slots below were told. Whoever opens there from now on has not been.
    #[must_use]
    pub fn told_below(&self) -> u32 {
        match &self.stage {
            Stage::Telling(telling) if telling.next_slot < telling.slots => telling.next_slot,
            Stage::Telling(_) | Stage::Closing(_) => u32::MAX,
        }
    }

    /// Begins to close once the time to move is over. `left`: the connections that are left.
    pub fn begin_to_close(&mut self, left: usize, now: Duration) {
        if matches!(self.stage, Stage::Telling(_)) && now >= self.first_close {
            self.stage = Stage::Closing(Closing::new(left, self.first_close));
        }
    }

    /// The next slot to close, of so many. `None`: enough are closed for now, or there is none to close.
    pub fn next_slot_to_close(&mut self, slots: u32, now: Duration) -> Option<u32> {
        let due = self.due_of_next_close();
        let Stage::Closing(closing) = &mut self.stage else {
            return None;
        };
        if now < due {
            return None;
        }
        if closing.in_vain >= slots {
            closing.in_vain = 0;
            closing.next_round = now + DRAIN_ROUND_PAUSE;
            return None;
        }
        closing.in_vain += 1;
        let slot = closing.next_slot % slots;
        closing.next_slot = slot + 1;
        Some(slot)
    }

    /// The session in the slot that was visited last was closed.
    pub fn closed_one(&mut self) {
        if let Stage::Closing(closing) = &mut self.stage {
            closing.closed += 1;
            closing.in_vain = 0;
        }
    }

    /// `None`: all were told.
    fn due_of_next_told(&self) -> Option<Duration> {
        match &self.stage {
            Stage::Telling(telling) if telling.next_slot < telling.slots => {
                let time = (self.first_close - self.started) / 2;
                Some(self.started + time.mul_f64(share(telling.told, telling.total)))
            }
            Stage::Telling(_) | Stage::Closing(_) => None,
        }
    }

    fn due_of_next_close(&self) -> Duration {
        match &self.stage {
            Stage::Telling(_) => self.first_close,
            Stage::Closing(closing) => {
                let time = self.last_close - self.first_close;
                let due = self.first_close + time.mul_f64(share(closing.closed, closing.total));
                due.max(closing.next_round)
            }
        }
    }

    /// When there is something to do next.
    #[must_use]
    pub fn next_due(&self) -> Duration {
        let close = self.due_of_next_close().min(self.over);
        self.due_of_next_told().map_or(close, |due| due.min(close))
    }

    /// Whether the time of the closes is over, and only the time to end them in good order is left.
    #[must_use]
    pub fn is_spread(&self, now: Duration) -> bool {
        now >= self.last_close
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_over(&self, now: Duration) -> bool {
        now >= self.over
    }
}

impl Closing {
    fn new(total: usize, now: Duration) -> Self {
        Self {
            total,
            closed: 0,
            next_slot: 0,
            in_vain: 0,
            next_round: now,
        }
    }
}

/// At most 1.
fn share(done: usize, total: usize) -> f64 {
    (done as f64 / total.max(1) as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A drain that tells nobody.
    fn at_once(seconds: u32) -> DrainTimes {
        DrainTimes {
            going_away: Duration::ZERO,
            whole: SECOND * seconds,
        }
    }

    fn closed(drain: &Drain) -> usize {
        match &drain.stage {
            Stage::Telling(_) => 0,
            Stage::Closing(closing) => closing.closed,
        }
    }

    /// Closes what is due of 200 slots; `open` tells, slot by slot, whether there is a session to close.
    fn step(drain: &mut Drain, open: &mut [bool], now: Duration) {
        while let Some(slot) = drain.next_slot_to_close(200, now) {
            if let Some(open) = open.get_mut(slot as usize)
                && std::mem::take(open)
            {
                drain.closed_one();
            }
        }
    }

    #[test]
    fn closes_are_spread_evenly_and_end_before_the_time_does() {
        let mut drain = Drain::new(90, 200, at_once(10), SECOND);
        let mut open = [true; 90];
        for tenth in 0..=100_u32 {
            let now = SECOND + SECOND * tenth / 10;
            step(&mut drain, &mut open, now);
            let expected = (tenth as usize + 1).min(90);
            assert!(
                closed(&drain).abs_diff(expected) <= 1,
                "{tenth}: {}",
                closed(&drain)
            );
            assert_eq!(drain.is_spread(now), tenth >= 90);
            assert_eq!(drain.is_over(now), tenth == 100);
        }
        assert_eq!(closed(&drain), 90);
    }

    #[test]
    fn a_session_that_opens_behind_the_walk_is_closed_before_the_time_is_over() {
        let mut drain = Drain::new(90, 200, at_once(10), SECOND);
        let mut open = [true; 90];
        open[3] = false;
        for tenth in 0..=100_u32 {
            step(&mut drain, &mut open, SECOND + SECOND * tenth / 10);
            if tenth == 50 {
                open[3] = true;
            }
        }
        assert_eq!(open, [false; 90]);
    }

    #[test]
    fn with_nobody_to_close_the_slots_are_not_gone_through_without_a_pause() {
        let mut drain = Drain::new(1, 200, at_once(10), SECOND);
        let mut looks = 0;
        let mut now = SECOND;
        while !drain.is_over(now) {
            while drain.next_slot_to_close(200, now).is_some() {
                looks += 1;
            }
            assert!(drain.next_due() > now);
            now = drain.next_due();
        }
        assert_eq!(looks, 100 * 200);
    }

    #[test]
    fn all_are_told_once_within_the_first_half_and_the_closes_begin_when_the_time_to_move_is_over()
    {
        let times = DrainTimes {
            going_away: 4 * SECOND,
            whole: 10 * SECOND,
        };
        let mut drain = Drain::new(100, 200, times, SECOND);
        let (mut told, mut open) = ([0; 100], [true; 100]);
        for tenth in 0..=100_u32 {
            let now = SECOND + SECOND * tenth / 10;
            while let Some(slot) = drain.next_slot_to_tell(now) {
                if let Some(count) = told.get_mut(slot as usize) {
                    *count += 1;
                    drain.told_one();
                }
            }
            let so_far = told.iter().sum::<u32>();
            let expected = (tenth * 5 + 1).min(100);
            assert!(so_far.abs_diff(expected) <= 1, "{tenth}: {so_far} are told");
            // Half of them move at once.
            if tenth == 30 {
                open[..50].fill(false);
            }
            drain.begin_to_close(open.iter().filter(|open| **open).count(), now);
            assert_eq!(drain.first_close(), (tenth < 40).then_some(5 * SECOND));
            step(&mut drain, &mut open, now);
            let due = (tenth >= 40).then(|| ((tenth as usize - 40) + 1).min(50));
            assert!(
                closed(&drain).abs_diff(due.unwrap_or(0)) <= 1,
                "{tenth}: {} are closed",
                closed(&drain)
            );
        }
        assert_eq!((told, open), ([1; 100], [false; 100]));
        assert!(drain.is_over(11 * SECOND));
    }

    #[test]
    fn whoever_opens_behind_the_walk_is_told_by_its_place_and_nobody_twice() {
        let times = DrainTimes {
            going_away: 4 * SECOND,
            whole: 10 * SECOND,
        };
        let mut drain = Drain::new(4, 4, times, SECOND);
        assert_eq!(drain.told_below(), 0);
        for told in 1..=4_u32 {
            let now = drain.next_due();
            assert_eq!(drain.next_slot_to_tell(now), Some(told - 1));
            drain.told_one();
            assert_eq!(drain.next_slot_to_tell(now), None);
            let expected = if told == 4 { u32::MAX } else { told };
            assert_eq!(drain.told_below(), expected);
        }
        assert_eq!(drain.next_due(), 5 * SECOND, "nothing to do until then");
    }

    #[test]
    fn a_turn_tells_no_more_than_it_may_however_short_the_time_is() {
        let times = DrainTimes {
            going_away: Duration::from_millis(1),
            whole: SECOND,
        };
        let total = 3 * GOING_AWAY_TOLD_PER_TURN_MAX;
        let mut drain = Drain::new(total, total as u32, times, SECOND);
        let late = 2 * SECOND;
        for _turn in 0..3 {
            let mut told = 0;
            while drain.next_slot_to_tell(late).is_some() {
                drain.told_one();
                told += 1;
            }
            assert_eq!(told, GOING_AWAY_TOLD_PER_TURN_MAX);
        }
        assert_eq!(drain.next_slot_to_tell(late), None);
    }

    #[test]
    fn the_time_to_move_leaves_the_time_to_close_in_good_order() {
        let times = DrainTimes {
            going_away: 10 * SECOND,
            whole: 10 * SECOND,
        };
        let drain = Drain::new(1, 1, times, SECOND);
        assert_eq!(drain.first_close(), Some(10 * SECOND));
        let none = Drain::new(1, 1, DrainTimes::default(), SECOND);
        assert_eq!(none.first_close(), None);
    }
}
