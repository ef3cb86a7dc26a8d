//! How many AMQP bindings a session, an account and the process may have (PROTOCOL 3). They are the dearest resource of
//! the broker, and one client binding may stand for nine of them.
//!
//! The bindings of a session are counted once for each subscription that needs them; those of an account and of the
//! process are counted once each. Invariant: what is refused here has acquired nothing. A roll-over of the months does
//! not check the quota, so around the end of a month there may be more.

use std::collections::HashSet;

use crate::account::{AccountId, Scope};
use crate::auth::Identity;
use crate::protocol::command::CommandError;
use crate::routing::families::Resolved;

use super::subscriptions::Subscriptions;
use super::waiting::Wanted;

/// The bounds; `usize::MAX`: none.
#[derive(Clone, Copy, Debug)]
pub struct BindingQuota {
    /// `max_bindings_per_session`.
    pub session_max: usize,
    /// `max_bindings_per_account`.
    pub account_max: usize,
    /// `max_bindings`.
    pub process_max: usize,
}

impl BindingQuota {
    /// Whether `asks` more client bindings cannot meet any bound, for a session that `has` so many subscriptions, those
    /// that it waits for included. This is the usual case, and it is decided without a look at any of them.
    pub(super) fn is_far(
        &self,
        has: usize,
        asks: usize,
        account: Option<AccountId>,
        subscriptions: &Subscriptions,
    ) -> bool {
        let broker = subscriptions.broker();
        let most = |count: usize| count.saturating_mul(subscriptions.bindings_of_one_max());
        let of_account = account.map_or(0, |account| broker.load(account));
        most(has + asks) <= self.session_max
            && of_account.saturating_add(most(asks)) <= self.account_max
            && broker.counts().wanted.saturating_add(most(asks)) <= self.process_max
    }

    /// Lets lingering bindings go that may be what a check of `wanted` failed on: of the account, if that is at its bound;
    /// of all, if the process is. False: there is none. Linear in `wanted`.
    pub(super) fn make_room(&self, wanted: &Wanted, subscriptions: &mut Subscriptions) -> bool {
        if subscriptions.lingering().0 == 0 {
            return false;
        }
        let months = subscriptions.months().now();
        let families = subscriptions.families();
        let count = |resolved: Resolved<'_>| families.amqp_binding_count(&resolved, months);
        let asks: usize = wanted.resolved(families).map(count).sum();
        let broker = subscriptions.broker();
        let of_account = wanted.account.map_or(0, |account| broker.load(account));
        let is_account_full = of_account.saturating_add(asks) > self.account_max;
        let of_process = broker.counts().wanted;
        let is_process_full = of_process.saturating_add(asks) > self.process_max;
        let whose = is_account_full.then(|| broker.tag(wanted.account));
        (is_account_full || is_process_full) && subscriptions.let_linger_no_more(whose, asks) > 0
    }

    /// Whether a session that has `live`, and waits for `waiting` with so many leases, may have `wanted` for `account`
    /// too.
    ///
    /// Cost: linear in `live` and `wanted`; it looks at `waiting`, and renders the AMQP bindings of `wanted`, only when
    /// a bound may be met.
    ///
    /// # Errors
    /// The bound that would be passed.
    pub(super) fn check<'h, 'w, I, J>(
        &self,
        live: impl Fn() -> I,
        (leases, waiting): (usize, impl Fn() -> J),
        wanted: impl Iterator<Item = Resolved<'w>> + Clone,
        account: Option<AccountId>,
        subscriptions: &Subscriptions,
    ) -> Result<(), CommandError>
    where
        I: Iterator<Item = Resolved<'h>>,
        J: Iterator<Item = Resolved<'h>>,
    {
        let (families, broker) = (subscriptions.families(), subscriptions.broker());
        let months = subscriptions.months().now();
        let count = |resolved: Resolved<'_>| families.amqp_binding_count(&resolved, months);
        let has = live().map(count).sum::<usize>();
        let asks: usize = wanted.clone().map(count).sum();
        if has.saturating_add(leases).saturating_add(asks) > self.session_max {
            let mine = || live().chain(waiting());
            let has = mine().map(count).sum::<usize>();
            let known: HashSet<_> = mine()
                .map(|resolved| (resolved.scope(), resolved.binding()))
                .collect();
            let is_new = |one: &Resolved<'_>| !known.contains(&(one.scope(), one.binding()));
            let new: usize = wanted.clone().filter(is_new).map(count).sum();
            if new > 0 && has.saturating_add(new) > self.session_max {
                return Err(CommandError::TooManyBindings(self.session_max));
            }
        }
        let of_account = account.map_or(0, |account| broker.load(account));
        let of_process = broker.counts().wanted;
        let may_pass =
            |has: usize, asks: usize, max: usize| asks > 0 && has.saturating_add(asks) > max;
        if !may_pass(of_account, asks, self.account_max)
            && !may_pass(of_process, asks, self.process_max)
        {
            return Ok(());
        }
        let mut bindings = Vec::new();
        wanted.for_each(|resolved| families.amqp_bindings(&resolved, months, &mut bindings));
        let distinct: HashSet<_> = bindings.iter().collect();
        let new = broker.new_among(distinct);
        if account.is_some() && may_pass(of_account, new, self.account_max) {
            return Err(CommandError::TooManyBindingsOfAccount(self.account_max));
        }
        if may_pass(of_process, new, self.process_max) {
            return Err(CommandError::TooManyBindings(self.process_max));
        }
        Ok(())
    }
}

/// The account that AMQP bindings count for, and whose turn they take: the identity's own, so that a token counts for one
/// account whatever accounts it may see. An identity without an account counts for the account that the bindings are
/// for.
pub(super) fn account_of(identity: &Identity, scope: Scope) -> Option<AccountId> {
    identity.account_id().or(scope.account())
}
