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
use crate::routing::month::{ActiveMonths, FollowedMonths, Month};

use super::clock::Now;
use super::hub::Hub;

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

/// The AMQP bindings that groups acquire and release as they are brought on.
#[derive(Debug, Default)]
pub(super) struct Moves {
    acquired: Vec<(AmqpBinding, u32, Option<AccountId>)>,
    released: Vec<(AmqpBinding, u32, Option<AccountId>)>,
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

impl Hub {
    /// Acquires, then releases.
    pub(super) fn carry_out(&mut self, moves: &Moves) {
        for (binding, users, account) in &moves.acquired {
            self.acquire_for(binding, *users, *account);
        }
        for (binding, users, _) in &moves.released {
            self.release_for(binding, *users);
        }
    }

    /// Follows the months: begins a walk when other months are in force, and takes a step of it when that is due.
    pub fn roll_months(&mut self, now: Now) {
        let in_force = ActiveMonths::at(now.unix);
        if self.roll_over.is_none() && in_force != self.months.now() {
            self.begin_roll_over(in_force, now);
        }
        let Some(walk) = &mut self.roll_over else {
            return;
        };
        let is_late =
            in_force != self.months.now() || !self.months.before().contains(Month::at(now.unix));
        if !is_late && now.clock < walk.due {
            return;
        }
        let mut moves = Moves::default();
        let Self {
            index,
            families,
            months,
            metrics,
            ..
        } = self;
        let next = index.roll_over(
            families,
            walk.next,
            limits::ROLL_OVER_GROUPS_PER_TURN,
            &mut |resolved, users| {
                metrics.months_groups_total += 1;
                moves.note(families, *months, &resolved, users);
            },
        );
        match next {
            Some(next) => {
                walk.next = next;
                walk.due = if is_late {
                    now.clock
                } else {
                    walk.begins + share(limits::ROLL_OVER_SPREAD, next, index.group_places())
                };
            }
            None => {
                self.months = FollowedMonths::new(self.months.now());
                self.roll_over = None;
            }
        }
        self.carry_out(&moves);
    }

    /// When the next step of a walk is due, on the loop's clock.
    #[must_use]
    pub fn months_due(&self) -> Option<Duration> {
        self.roll_over.as_ref().map(|walk| walk.due)
    }

    fn begin_roll_over(&mut self, in_force: ActiveMonths, now: Now) {
        self.metrics.months_rolled_total += 1;
        self.months = self.months.moving_to(in_force);
        self.index.begin_roll_over();
        let [random, ..] = self.generate_request_id();
        let begins = now.clock
            + share(
                limits::ROLL_OVER_START_WITHIN,
                random.into(),
                u8::MAX.into(),
            );
        self.roll_over = Some(RollOver {
            begins,
            next: 0,
            due: begins,
        });
    }
}

/// `part` of `whole` parts of `time`.
fn share(time: Duration, part: usize, whole: usize) -> Duration {
    time.mul_f64(part as f64 / whole.max(1) as f64)
}
