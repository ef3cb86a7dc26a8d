//! What makes a witness one that loses its connection again and again, and comes back with its cursor (PROTOCOL 10): when
//! it goes and returns, and what it was promised.
//!
//! Whoever was told `resumed: true` must get every event that it missed, in order and once; whoever was told a gap must get
//! those that are published from then on. A gap that is told for no reason is a fault too: see [`Returner::is_needless`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;

/// `history_seconds` of the server that is soaked: some absences are longer, and it is forgotten within a rest.
pub(crate) const HISTORY: Duration = Duration::from_secs(10);

/// In calm times a cursor that is not older has no reason for a gap.
const SURE_WITHIN: Duration = Duration::from_secs(6);

/// Calm times begin so long after the last disturbance of the broker: the bindings are in force again, and each returner has
/// had an event since.
const CALM_AFTER: Duration = Duration::from_secs(8);

/// Stays and absences, in milliseconds; of so many absences one is long.
const STAY_MILLIS_MAX: u64 = 8_000;
const AWAY_MILLIS_MAX: u64 = 3_000;
const LONG_AWAY_MILLIS: std::ops::Range<u64> = 5_000..15_000;

/// A cursor of this age is renewed by a ping, and one that is older by as much again is not left with.
const RENEW_AFTER: Duration = Duration::from_secs(1);
const LONG_ONE_IN: u32 = 8;

/// What all returners have met.
#[derive(Clone, Debug, Default)]
pub(crate) struct Returns {
    /// Connections given up, and comings back that were promised all.
    pub(crate) losses: u64,
    pub(crate) resumed: u64,
    /// Events replayed, and those of them that came before and were left out.
    pub(crate) replayed: u64,
    pub(crate) doubles: u64,
    /// Gaps that were told instead, by cause, and the events that did not come for them.
    pub(crate) gaps: BTreeMap<String, u64>,
    pub(crate) told: u64,
}

/// How a connection is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    CloseFrame,
    Fin,
    Reset,
    MidFrame,
}

/// Where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Connected, or about to be; it leaves then.
    Here {
        until: Instant,
    },
    Away {
        until: Instant,
    },
}

/// One returner's own state.
#[derive(Debug)]
pub(crate) struct Returner {
    state: State,
    /// The last cursor, and when it came.
    pub(crate) cursor: Option<String>,
    cursor_at: Instant,
    /// When the cursor had come that it last left with.
    came_with: Instant,
    /// The cursor that it came back with, while the replay lasts.
    pub(crate) resumed_with: Option<String>,
    left_in_calm: bool,
}

impl Returner {
    /// One that is there, and leaves some time.
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let now = Instant::now();
        Self {
            state: State::Here {
                until: now + millis(rng.u64(..STAY_MILLIS_MAX)),
            },
            cursor: None,
            cursor_at: now,
            came_with: now,
            resumed_with: None,
            left_in_calm: false,
        }
    }

    /// It stands there now.
    pub(crate) fn stand_at(&mut self, cursor: Option<String>) {
        self.cursor = cursor;
        self.cursor_at = Instant::now();
    }

    /// Whether its cursor is to be renewed, because no event has come for some time.
    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        self.cursor.is_some() && now.saturating_duration_since(self.cursor_at) > RENEW_AFTER
    }

    /// Whether it is time to go, and how.
    pub(crate) fn goes(&self, now: Instant, rng: &mut Rng) -> Option<Loss> {
        let ways = [Loss::CloseFrame, Loss::Fin, Loss::Reset, Loss::MidFrame];
        let is_fresh = self.cursor.is_none()
            || now.saturating_duration_since(self.cursor_at) < RENEW_AFTER * 2;
        matches!(self.state, State::Here { until } if is_fresh && now >= until)
            .then(|| ways[rng.usize(..ways.len())])
    }

    /// It has gone. `calm_since`: since when nothing is being done to the broker.
    pub(crate) fn gone(&mut self, now: Instant, calm_since: Option<Instant>, rng: &mut Rng) {
        let away = if rng.u32(..LONG_ONE_IN) == 0 {
            rng.u64(LONG_AWAY_MILLIS)
        } else {
            rng.u64(..AWAY_MILLIS_MAX)
        };
        self.state = State::Away {
            until: now + millis(away),
        };
        self.resumed_with = None;
        self.came_with = self.cursor_at;
        self.left_in_calm = is_calm(calm_since, now);
    }

    /// Whether it is away and comes back now, at once if it `must`.
    pub(crate) fn returns(&mut self, now: Instant, must: bool, rng: &mut Rng) -> bool {
        let is_due = matches!(self.state, State::Away { until } if must || now >= until);
        if is_due {
            self.state = State::Here {
                until: now + millis(rng.u64(..STAY_MILLIS_MAX)),
            };
        }
        is_due
    }

    /// Whether a gap that is told now has no reason: nothing was done to the broker, and the cursor is not old.
    pub(crate) fn is_needless(&self, now: Instant, calm_since: Option<Instant>) -> bool {
        self.left_in_calm
            && is_calm(calm_since, now)
            && now.saturating_duration_since(self.came_with) < SURE_WITHIN
    }

    /// Whether a replayed event with this cursor may have come before: another process replays it.
    pub(crate) fn may_be_double(&self, cursor: Option<&str>) -> bool {
        let mark = |cursor: &str| cursor.rsplit('.').next().map(str::to_owned);
        self.resumed_with.as_deref().map(mark) != cursor.map(mark)
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn is_calm(since: Option<Instant>, now: Instant) -> bool {
    since.is_some_and(|since| now.duration_since(since) >= CALM_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_and_returns_and_at_a_rest_it_returns_at_once() {
        let mut rng = Rng::with_seed(1);
        let mut returner = Returner::new(&mut rng);
        let mut now = Instant::now() + millis(STAY_MILLIS_MAX);
        for must in [false, true] {
            assert!(returner.goes(now, &mut rng).is_some());
            returner.gone(now, None, &mut rng);
            assert_eq!(returner.goes(now, &mut rng), None);
            now += if must { Duration::ZERO } else { HISTORY * 2 };
            assert!(returner.returns(now, must, &mut rng));
            assert!(!returner.returns(now, must, &mut rng));
            now += millis(STAY_MILLIS_MAX);
        }
    }

    #[test]
    fn a_gap_is_needless_only_for_a_young_cursor_in_calm_times() {
        let mut rng = Rng::with_seed(1);
        let begun = Instant::now();
        let left = begun + CALM_AFTER;
        for (calm_since, back, expected) in [
            (Some(begun), left, true),
            (Some(begun), left + SURE_WITHIN, false),
            (Some(begun + millis(1)), left, false),
            (None, left, false),
        ] {
            let mut returner = Returner::new(&mut rng);
            returner.cursor_at = left;
            returner.gone(left, calm_since, &mut rng);
            assert_eq!(returner.is_needless(back, calm_since), expected);
        }
    }

    #[test]
    fn only_another_process_replays_what_came_before() {
        let mut returner = Returner::new(&mut Rng::with_seed(1));
        returner.resumed_with = Some("1.2.aaaaaa".into());
        assert!(!returner.may_be_double(Some("9.9.aaaaaa")));
        assert!(returner.may_be_double(Some("9.9.bbbbbb")));
    }
}
