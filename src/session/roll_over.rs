//! Moving subscriptions on from some months to others (PROTOCOL 6, `MODB`).
//!
//! At an end of the overlap ([`ActiveMonths`]) the AMQP bindings of every document subscription change. Bound all at
//! once, by every process in the same moment, they would be a storm at the broker, and rendered all at once a pause of
//! the loop. So the groups of subscriptions are brought on in a walk, a few a turn
//! ([`limits::ROLL_OVER_GROUPS_PER_TURN`]), that begins at a moment of the process's own
//! ([`limits::ROLL_OVER_START_WITHIN`]) and is spread over time ([`limits::ROLL_OVER_SPREAD`]).
//!
//! ```text
//!             the months in force are others            the walk is over
//! (no walk) ----------------------------------> Walk ---------------------> (no walk)
//!            every group is behind              | ^
//!                                               +-+ due: a few groups are brought on
//! ```
//!
//! A walk is late when those behind do not follow the month of now, or when the months in force are others again: the
//! clock was set, or the process slept. Then it goes on every turn, without a pause, and the next one follows it.
//!
//! Invariant: the AMQP bindings acquired for a subscription are at every moment those of the months that
//! [`Resolved::held`] names. Whoever subscribes gets those of now, and takes the group that it joins with it.

use std::time::Duration;

use crate::account::AccountId;
use crate::limits;
use crate::routing::amqp_binding::AmqpBinding;
use crate::routing::families::{Families, Resolved};
use crate::routing::month::FollowedMonths;

/// A walk over the groups that are behind.
#[derive(Debug)]
pub(super) struct RollOver {
    /// When its first step was due, on the loop's clock.
    begins: Duration,
    /// The place of the next step.
    next: usize,
    /// When that is due.
    due: Duration,
}

impl RollOver {
    /// A walk that is decided on at `now` and begins a while later, by a `random` byte.
    pub(super) fn new(random: u8, now: Duration) -> Self {
        let wait = share(
            limits::ROLL_OVER_START_WITHIN,
            random.into(),
            u8::MAX.into(),
        );
        Self {
            begins: now + wait,
            next: 0,
            due: now + wait,
        }
    }

    /// The place of the next step.
    pub(super) fn next(&self) -> usize {
        self.next
    }

    /// When the next step is due, on the loop's clock.
    pub(super) fn due(&self) -> Duration {
        self.due
    }

    /// Goes on at the place `next` of so many, in its time.
    pub(super) fn go_on(&mut self, next: usize, places: usize) {
        self.next = next;
        self.due = self.begins + share(limits::ROLL_OVER_SPREAD, next, places);
    }

    /// Goes on at the place `next` in the next turn: the walk is late.
    pub(super) fn go_on_at_once(&mut self, next: usize, now: Duration) {
        self.next = next;
        self.due = now;
    }
}

/// The AMQP bindings that groups acquire and release as they are brought on.
#[derive(Debug, Default)]
pub(super) struct Moves {
    pub(super) acquired: Vec<(AmqpBinding, u32, Option<AccountId>)>,
    pub(super) released: Vec<(AmqpBinding, u32, Option<AccountId>)>,
}

impl Moves {
    /// Adds those of so many subscriptions like `resolved`.
    pub(super) fn note(
        &mut self,
        families: &Families,
        months: FollowedMonths,
        resolved: &Resolved<'_>,
        users: u32,
    ) {
        let (before, now) = (months.before(), months.now());
        // Who asked is not known here: they count for the account that they are for.
        let account = resolved.scope().account();
        for (months, moved) in [
            (now.without(before), &mut self.acquired),
            (before.without(now), &mut self.released),
        ] {
            let mut bindings = Vec::new();
            families.monthly_bindings(resolved, months, &mut bindings);
            moved.extend(
                bindings
                    .into_iter()
                    .map(|binding| (binding, users, account)),
            );
        }
    }
}

/// `part` of `whole` parts of `time`.
fn share(time: Duration, part: usize, whole: usize) -> Duration {
    time.mul_f64(part as f64 / whole.max(1) as f64)
}
