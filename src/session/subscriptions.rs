//! What all sessions are subscribed to, and what that takes at the broker.
//!
//! Two tables of subscriptions ([`SubscriptionIndexes`]), for sessions that are up to date and for those that resume, one
//! of the AMQP bindings that they need ([`BrokerBindings`]), and the months whose databases they follow. What the source
//! must do is left in a list that the loop hands over at the end of the turn.
//!
//! Invariants: an AMQP binding is acquired once for each subscription that needs it and once for each lease of a
//! subscribe that waits, so the end of one session takes nothing from another; and once while it lingers, when nobody else
//! has it. A binding is *lost* from the moment when
//! its events may be missed until it is in force again, or until no session needs it.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::account::{AccountId, Scope};
use crate::event::Event;
use crate::event::Style;
use crate::handoff::ToSource;
use crate::limits;
use crate::metrics::Metrics;
use crate::now::Boundary;
use crate::routing::account_load::AccountTag;
use crate::routing::amqp_binding::{AmqpBinding, Asked};
use crate::routing::broker_bindings::{Acquired, Ask, BrokerBindings};
use crate::routing::families::{Families, Resolved};
use crate::routing::index::{Match, Revised, Revision, SubscriptionId, SubscriptionList, Which};
use crate::routing::indexes::SubscriptionIndexes;
use crate::routing::month::{ActiveMonths, FollowedMonths, Month};
use crate::routing::waiters::Waiter;

use super::clock::Now;
use super::lingering::{Lingering, LingeringRules};
use super::roll_over::{Moves, RollOver};
use super::waiting::{Lease, Progress, Waiting, lease_order};

/// The subscriptions of all sessions.
#[derive(Debug)]
pub struct Subscriptions {
    families: Families,
    /// AMQP bindings that one subscription can have, at most.
    bindings_of_one_max: usize,
    index: SubscriptionIndexes,
    broker: BrokerBindings,
    months: FollowedMonths,
    /// The way from the months before to those of now; `None`: no group is behind.
    roll_over: Option<RollOver>,
    /// Commands for the source, in order.
    to_source: Vec<ToSource>,
    /// Bindings of subscriptions that go on under another realm and were not in force when they were acquired. They are
    /// lost from the end of the turn on, unless they are confirmed or released before.
    unconfirmed: Vec<AmqpBinding>,
    /// The lost bindings, and since when they are.
    lost: HashMap<AmqpBinding, Duration>,
    /// Bindings that stay in force for a while without a user; `None`: there is no history.
    lingering: Option<Box<Lingering>>,
}

/// What became of the subscriptions of a session whose rights changed.
#[derive(Debug, Default)]
pub(super) struct Revisions {
    /// The client bindings of those that ended.
    pub(super) ended: Vec<Box<str>>,
    /// How many go on under another realm.
    pub(super) moved: u64,
}

/// A binding that the source has put in force.
#[derive(Debug)]
pub struct InForce {
    /// The subscribes that waited for it.
    pub waiters: Vec<Waiter>,
    /// Since when it was lost, if it was.
    pub lost_since: Option<Duration>,
}

impl Subscriptions {
    /// No subscriptions, at the time `unix`, in Unix seconds. `lingering`: how AMQP bindings outlive their users, if they
    /// do.
    #[must_use]
    pub fn new(families: Families, unix: u64, lingering: Option<LingeringRules>) -> Self {
        Self {
            bindings_of_one_max: families.amqp_binding_count_max(),
            families,
            index: SubscriptionIndexes::default(),
            broker: BrokerBindings::new(),
            months: FollowedMonths::new(ActiveMonths::at(unix)),
            roll_over: None,
            to_source: Vec::new(),
            unconfirmed: Vec::new(),
            lost: HashMap::new(),
            lingering: lingering.map(|rules| Box::new(Lingering::new(rules))),
        }
    }

    /// What client bindings mean.
    #[must_use]
    pub fn families(&self) -> &Families {
        &self.families
    }

    /// Starts or stops the families of a module ([`Families::switch_module`]).
    pub fn switch_module(&mut self, module: &str, is_on: bool) -> Option<bool> {
        self.families.switch_module(module, is_on)
    }

    /// Who wants what.
    #[must_use]
    pub fn index(&self) -> &SubscriptionIndexes {
        &self.index
    }

    /// What the broker has been asked for.
    #[must_use]
    pub fn broker(&self) -> &BrokerBindings {
        &self.broker
    }

    /// The months whose databases are followed.
    #[must_use]
    pub fn months(&self) -> FollowedMonths {
        self.months
    }

    /// Follows other months from now on, without a walk.
    #[cfg(test)]
    pub(super) fn follow(&mut self, months: ActiveMonths) {
        self.months = FollowedMonths::new(months);
    }

    pub(super) fn bindings_of_one_max(&self) -> usize {
        self.bindings_of_one_max
    }

    /// Calls `visit` once for each live group that wants the event
    /// ([`SubscriptionIndex::match_event`](crate::routing::index::SubscriptionIndex::match_event)).
    #[inline]
    pub fn match_event(&mut self, event: &Event, visit: &mut impl FnMut(Match<'_>)) {
        self.match_in(Which::Live, event, self.months.now(), visit);
    }

    /// Calls `visit` once for each group of sessions that resume that wants the event, which was taken in at the time
    /// `unix`, in Unix seconds: the months of that time count.
    pub fn match_past_event(
        &mut self,
        event: &Event,
        unix: u64,
        visit: &mut impl FnMut(Match<'_>),
    ) {
        self.match_in(Which::Replay, event, ActiveMonths::at(unix), visit);
    }

    #[inline]
    fn match_in(
        &mut self,
        which: Which,
        event: &Event,
        months: ActiveMonths,
        visit: &mut impl FnMut(Match<'_>),
    ) {
        self.index[which].match_event(
            &self.families,
            &event.exchange,
            &event.routing_key,
            &event.head,
            months,
            visit,
        );
    }

    /// Moves all subscriptions of the session in `slot` to one of the indexes, if they are not there. `moved` gets the new
    /// name of each. Linear in the session's own subscriptions.
    pub(super) fn move_to(
        &mut self,
        to: Which,
        list: &mut SubscriptionList,
        slot: u32,
        moved: &mut impl FnMut(SubscriptionId),
    ) {
        let mut moves = Moves::default();
        let (families, months) = (&self.families, self.months);
        self.index.move_to(to, families, list, slot, &mut |one| {
            if one.was_behind {
                moves.note(families, months, &one.was, 1);
            }
            if let Some(others) = one.overtaken {
                moves.note(families, months, &one.was, others);
            }
            moved(one.id);
        });
        self.carry_out(&moves);
    }

    /// Makes the subscriptions that `waiting` asks for, each with its own hold on its AMQP bindings, and gives the
    /// leases back. `added` gets the name of each that the session did not have. Linear in what the session has and asks
    /// for, but for the look-up of leases.
    pub(super) fn subscribe(
        &mut self,
        list: &mut SubscriptionList,
        slot: u32,
        style: Style,
        waiting: &mut Waiting,
        added: &mut impl FnMut(SubscriptionId),
    ) {
        let (mut held, mut moves) = (Vec::new(), Moves::default());
        let (families, months) = (&self.families, self.months);
        let wanted = waiting.wanted.resolved(families).map(|resolved| {
            let key = waiting.key(families.exchange(&resolved), resolved.binding());
            resolved.sharing(key)
        });
        self.index.of_mut(list).subscribe_all(
            families,
            list,
            slot,
            wanted,
            style,
            waiting.request_id.as_deref(),
            &mut |resolved, id, overtaken| {
                families.amqp_bindings(&resolved, months.now(), &mut held);
                if let Some(others) = overtaken {
                    moves.note(families, months, &resolved, others);
                }
                added(id);
            },
        );
        self.carry_out(&moves);
        for binding in &held {
            self.acquire(binding, 1, waiting.wanted.account);
        }
        for lease in waiting.leases.drain(..) {
            self.release(&lease.binding, 1);
        }
    }

    /// Removes the subscriptions of this scope (`None`: any) and these client bindings (`None`: all), and notes them.
    /// Linear in the session's own subscriptions and in `bindings`.
    pub(super) fn unsubscribe(
        &mut self,
        list: &mut SubscriptionList,
        scope: Option<Scope>,
        bindings: Option<&[Cow<'_, str>]>,
        removed: &mut Vec<(Scope, Box<str>)>,
    ) {
        let mut freed = Vec::new();
        let (families, months) = (&self.families, self.months);
        let mut note = |subscription: Resolved<'_>| {
            families.amqp_bindings(&subscription, subscription.held(months), &mut freed);
            removed.push((subscription.scope(), subscription.binding().into()));
        };
        let index = self.index.of_mut(list);
        match bindings {
            None => index.unsubscribe(list, scope, None, &mut note),
            Some([binding]) => index.unsubscribe(list, scope, Some(binding), &mut note),
            Some(bindings) => {
                let bindings = bindings.iter().map(AsRef::as_ref);
                index.unsubscribe_all(list, scope, bindings, &mut note)
            }
        };
        for binding in &freed {
            self.release(binding, 1);
        }
    }

    /// Ends or moves the subscriptions of a session by what `judge` says of each. `account`: whom the AMQP bindings of
    /// a scope count for. While the source is away, its return speaks for all that is missed until then; while it is up,
    /// the events of a binding that is not in force yet may be missed. Linear in the session's own subscriptions.
    pub(super) fn revise(
        &mut self,
        list: &mut SubscriptionList,
        judge: impl Fn(&Families, Resolved<'_>) -> Revision,
        account: impl Fn(Scope) -> Option<AccountId>,
        is_source_up: bool,
    ) -> Revisions {
        let (mut wanted, mut needless) = (Vec::new(), Vec::new());
        let mut revisions = Revisions::default();
        let (families, months) = (&self.families, self.months);
        self.index.of_mut(list).revise(
            families,
            list,
            |resolved| judge(families, resolved),
            &mut |revised| match revised {
                Revised::Ended(resolved) => {
                    families.amqp_bindings(&resolved, resolved.held(months), &mut needless);
                    revisions.ended.push(resolved.binding().into());
                }
                Revised::Left(resolved) => {
                    families.amqp_bindings(&resolved, resolved.held(months), &mut needless);
                    revisions.moved += 1;
                }
                Revised::Joined(resolved) => {
                    let account = account(resolved.scope());
                    let mut bindings = Vec::new();
                    families.amqp_bindings(&resolved, months.now(), &mut bindings);
                    wanted.extend(bindings.into_iter().map(|binding| (binding, account)));
                }
            },
        );
        for (binding, account) in wanted {
            let acquired = self.acquire(&binding, 1, account);
            if !acquired.is_in_force && is_source_up {
                self.unconfirmed.push(binding);
            }
        }
        for binding in &needless {
            self.release(binding, 1);
        }
        revisions
    }

    /// Whether a subscription of a session needs one of `bindings`, which are of these exchanges. Linear in its
    /// subscriptions.
    pub(super) fn any_needs(
        &self,
        list: &SubscriptionList,
        bindings: &HashSet<AmqpBinding>,
        exchanges: &HashSet<Arc<str>>,
    ) -> bool {
        let mut needed = Vec::new();
        self.index.subscriptions(list).any(|subscription| {
            if exchanges.contains(self.families.exchange(&subscription)) {
                self.families.amqp_bindings(
                    &subscription,
                    subscription.held(self.months),
                    &mut needed,
                );
            }
            needed.drain(..).any(|binding| bindings.contains(&binding))
        })
    }

    /// Leases what `waiting` needs in the months of now and has no lease of. O(n log n).
    pub(super) fn lease(&mut self, waiting: &mut Waiting) {
        let months = self.months.now();
        if waiting.months.replace(months) == Some(months) {
            return;
        }
        let mut bindings = Vec::new();
        for resolved in waiting.wanted.resolved(&self.families) {
            self.families
                .amqp_bindings(&resolved, months, &mut bindings);
        }
        bindings.sort_unstable_by(|one, other| lease_order(one).cmp(&lease_order(other)));
        bindings.dedup();
        bindings.retain(|binding| waiting.key(&binding.exchange, &binding.key).is_none());
        waiting.leases.reserve_exact(bindings.len());
        for binding in bindings {
            let id = self.acquire(&binding, 1, waiting.wanted.account).id;
            waiting.leases.push(Lease {
                binding,
                id,
                wait: None,
            });
        }
        waiting.leases.sort_unstable_by(|one, other| {
            lease_order(&one.binding).cmp(&lease_order(&other.binding))
        });
    }

    /// Leases what `waiting` needs now in place of what it has. What it needs still stays wanted throughout.
    pub(super) fn lease_anew(&mut self, waiting: &mut Waiting, waiter: Waiter) {
        let before = std::mem::take(&mut waiting.leases);
        waiting.months = None;
        self.lease(waiting);
        self.give_back(before, waiter);
    }

    /// Gives back all leases of the subscribe that `waiter` names.
    pub(super) fn release_leases(&mut self, waiting: &mut Waiting, waiter: Waiter) {
        self.give_back(std::mem::take(&mut waiting.leases), waiter);
    }

    fn give_back(&mut self, leases: Vec<Lease>, waiter: Waiter) {
        for lease in leases {
            if let Some(wait) = lease.wait {
                self.broker.stop_waiting(lease.id, wait, waiter);
            }
            self.release(&lease.binding, 1);
        }
    }

    /// Makes the subscribe that `waiter` names wait for those of its leases that are not in force. All its earlier waits
    /// must be over.
    pub(super) fn wait_for_leases(&mut self, waiting: &mut Waiting, waiter: Waiter) -> Progress {
        let is_refused = |lease: &Lease| self.broker.is_refused(lease.id);
        if waiting.leases.iter().any(is_refused) {
            return Progress::Refused;
        }
        waiting.outstanding = 0;
        for lease in &mut waiting.leases {
            if !self.broker.is_in_force(lease.id) {
                lease.wait = Some(self.broker.wait(lease.id, waiter));
                waiting.outstanding += 1;
            }
        }
        match waiting.outstanding {
            0 => Progress::InForce,
            _ => Progress::Waits,
        }
    }

    /// Adds so many users of a binding, of `account`, and asks the source for it when they are the first.
    fn acquire(
        &mut self,
        binding: &AmqpBinding,
        users: u32,
        account: Option<AccountId>,
    ) -> Acquired {
        let acquired = self.broker.acquire(binding, users, account);
        if self
            .lingering
            .as_mut()
            .is_some_and(|table| table.take(binding))
        {
            self.broker.release(binding, 1);
        }
        let binding = || binding.clone();
        self.to_source.extend(acquired.ask.map(|ask| match ask {
            Ask::Bind(ticket, account) => ToSource::Bind {
                binding: binding(),
                ticket,
                account,
            },
            Ask::Join(account) => ToSource::Join {
                binding: binding(),
                account,
            },
        }));
        acquired
    }

    /// Takes so many users of a binding back. When they were the last, the binding lingers, or the source is told.
    fn release(&mut self, binding: &AmqpBinding, users: u32) {
        if let Some(table) = &mut self.lingering
            && let Some((account, since)) = self.broker.last_use(binding, users)
            && table.is_ripe(since)
        {
            let let_go = table.keep(binding.clone(), account);
            if users > 1 {
                self.broker.release(binding, users - 1);
            }
            for binding in &let_go {
                self.end(binding, 1);
            }
        } else {
            self.end(binding, users);
        }
    }

    fn end(&mut self, binding: &AmqpBinding, users: u32) {
        if self.broker.release(binding, users) {
            self.to_source.push(ToSource::Unbind(binding.clone()));
        }
    }

    /// Lets lingering bindings go whose time is over, and forgets since when old bindings have been in force. Linear in
    /// what it lets go and forgets.
    pub fn begin_turn(&mut self, now: Now) {
        let Some(table) = &mut self.lingering else {
            return;
        };
        table.advance(now.clock);
        let horizon = now.clock.saturating_sub(table.rules().keep);
        self.broker.forget_coverage_before(horizon);
        for _ in 0..limits::LINGERING_ENDS_PER_TURN_MAX {
            let expired = self.lingering.as_mut().and_then(|table| table.expired());
            let Some(binding) = expired else { break };
            self.end(&binding, 1);
        }
    }

    /// When [`Subscriptions::begin_turn`] has something to do, on the loop's clock.
    #[must_use]
    pub fn lingering_due(&self) -> Option<Duration> {
        self.lingering.as_ref()?.next_due()
    }

    /// A gauge and a counter: the bindings that linger, and those that were let go before their time.
    #[must_use]
    pub fn lingering(&self) -> (usize, u64) {
        let figures = |table: &Lingering| (table.len(), table.let_go_early());
        self.lingering.as_deref().map_or((0, 0), figures)
    }

    /// Lets up to `count` of the oldest lingering bindings of an account go, or of all (`None`), and returns how many.
    /// O(n log m).
    pub(super) fn let_linger_no_more(
        &mut self,
        account: Option<AccountTag>,
        count: usize,
    ) -> usize {
        for let_go in 0..count {
            let binding = self.lingering.as_mut().and_then(|table| match account {
                Some(account) => table.let_go_of(account),
                None => table.let_go_oldest(),
            });
            let Some(binding) = binding else {
                return let_go;
            };
            self.end(&binding, 1);
        }
        count
    }

    /// Holds AMQP bindings for somebody who looks, as a subscription of nobody's account would.
    pub fn hold(&mut self, bindings: &[AmqpBinding]) {
        for binding in bindings {
            self.acquire(binding, 1, None);
        }
    }

    /// Gives back what was [held](Self::hold).
    pub fn let_go(&mut self, bindings: &[AmqpBinding]) {
        for binding in bindings {
            self.release(binding, 1);
        }
    }

    /// Acquires, then releases.
    fn carry_out(&mut self, moves: &Moves) {
        for (binding, users, account) in &moves.acquired {
            self.acquire(binding, *users, *account);
        }
        for (binding, users, _) in &moves.released {
            self.release(binding, *users);
        }
    }

    /// The source is connected. Returns the subscribes that waited for what is in force again.
    pub fn on_up(&mut self) -> Vec<Waiter> {
        self.broker.on_up()
    }

    /// The source is away.
    pub fn on_down(&mut self) {
        self.broker.on_down();
    }

    /// The source says that a binding is in force. `None`: that answers no question that still stands. `boundary`: the
    /// moment for the history, if there is one.
    pub fn on_bound(
        &mut self,
        bound: &Asked,
        boundary: Option<Boundary>,
        now: Now,
    ) -> Option<InForce> {
        self.lose_unconfirmed(now);
        if let Some(boundary) = boundary {
            self.broker.begin_coverage(bound, boundary);
        }
        self.broker.is_answer(bound).then(|| InForce {
            waiters: self.broker.on_bound(bound),
            lost_since: self.lost.remove(&bound.binding),
        })
    }

    /// The source says that a binding is wanted and not in force, `since` when. Returns the subscribes that waited for
    /// it.
    pub fn on_lost(&mut self, lost: &Asked, since: Duration) -> Vec<Waiter> {
        if self.broker.is_confirmed(&lost.binding) {
            self.lost.entry(lost.binding.clone()).or_insert(since);
        }
        let waiters = self.broker.on_lost(lost);
        let lingering = self.lingering.as_mut();
        if lingering.is_some_and(|table| table.take(&lost.binding)) {
            self.end(&lost.binding, 1);
        }
        waiters
    }

    /// Ends the turn: returns the commands for the source, in order.
    pub fn end_turn(&mut self, now: Now) -> Vec<ToSource> {
        let commands = std::mem::take(&mut self.to_source);
        for command in &commands {
            if let ToSource::Unbind(binding) = command {
                // No session is left that could have missed an event.
                self.lost.remove(binding);
            }
        }
        self.lose_unconfirmed(now);
        commands
    }

    fn lose_unconfirmed(&mut self, now: Now) {
        for binding in std::mem::take(&mut self.unconfirmed) {
            // It may have been released again, or confirmed, meanwhile.
            if self.broker.is_awaited(&binding) {
                self.lost.entry(binding).or_insert(now.clock);
            }
        }
    }

    /// Follows the months: begins a walk when other months are in force, and takes a step of it when that is due.
    /// `random`: a byte by which the beginnings of processes differ.
    pub(super) fn roll_months(
        &mut self,
        now: Now,
        random: impl FnOnce() -> u8,
        metrics: &mut Metrics,
    ) {
        let in_force = ActiveMonths::at(now.unix());
        if self.roll_over.is_none() && in_force != self.months.now() {
            metrics.months_rolled_total += 1;
            self.months = self.months.moving_to(in_force);
            self.index.begin_roll_over();
            self.roll_over = Some(RollOver::new(random(), now.clock));
        }
        let Some(walk) = &mut self.roll_over else {
            return;
        };
        let is_late =
            in_force != self.months.now() || !self.months.before().contains(Month::at(now.unix()));
        if !is_late && now.clock < walk.due() {
            return;
        }
        let mut moves = Moves::default();
        let (families, months) = (&self.families, self.months);
        let next = self.index.roll_over(
            families,
            walk.next(),
            limits::ROLL_OVER_GROUPS_PER_TURN_MAX,
            &mut |resolved, users| {
                metrics.months_groups_total += 1;
                moves.note(families, months, &resolved, users);
            },
        );
        match next {
            Some(next) if is_late => walk.go_on_at_once(next, now.clock),
            Some(next) => walk.go_on(next, self.index.group_places()),
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
        self.roll_over.as_ref().map(RollOver::due)
    }
}
