//! Moving subscriptions on from some months to others (PROTOCOL 6, `MODB`).
//!
//! When the months in force change ([`ActiveMonths`](crate::routing::month::ActiveMonths)), so do the AMQP bindings of every
//! document subscription. If every process bound all of them at that moment, the broker would meet a storm, and the loop
//! would pause to render them. So the groups of subscriptions are brought on in a walk, a few a turn
//! ([`limits::ROLL_OVER_GROUPS_PER_TURN_MAX`]). Each process begins it at a moment of its own
//! ([`limits::ROLL_OVER_START_WITHIN`]) and spreads it over time ([`limits::ROLL_OVER_SPREAD`]).
//!
//! ```text
//!             the months in force are others            the walk is over
//! (no walk) ----------------------------------> Walk ---------------------> (no walk)
//!            every group is behind              | ^
//!                                               +-+ due: a few groups are brought on
//! ```
//!
//! A walk is late when the groups behind do not follow the present month, or when other months are in force again: the
//! clock was set, or the process slept. Then it goes on in every turn, without a pause, and the next walk follows it.
//!
//! Invariant: the AMQP bindings acquired for a subscription are at every moment those of the months that
//! [`Resolved::held`] names. A new subscription gets those of now, and brings the group that it joins on with it.

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
    /// A walk that is decided on at `now`. A `random` byte decides how much later it begins.
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

    /// Goes on at the place `next` of so many places, when that is due.
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
    /// Adds the bindings of so many subscriptions like `resolved`.
    pub(super) fn note(
        &mut self,
        families: &Families,
        months: FollowedMonths,
        resolved: &Resolved<'_>,
        users: u32,
    ) {
        let (before, now) = (months.before(), months.now());
        // Nothing tells here which account subscribed: they count for the account that they are for.
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
