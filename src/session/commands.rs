//! What a command does (PROTOCOL 3): authenticate, authorise, subscribe, unsubscribe, ping, and the reply.
//!
//! Order of the checks, as on the platform: rate limit, JSON, token, the command's own keys, account, bindings.
//! A subscribe whose AMQP bindings are not all in force waits, holding a lease on each of them; it is answered
//! when they are, or refused when the broker refuses one, or when `request_timeout_ms` is over, and then nothing of
//! it is kept. Commands behind it run when they arrive: subscribes wait beside it, an unsubscribe takes from it what
//! it had asked for, another identity changes its rights. Only their replies wait, but for a ping's.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arcstr::ArcStr;

use crate::account::{AccountId, Scope};
use crate::auth::{Identity, Verdict};
use crate::limits::HELD_TOTAL_BYTES_MAX;
use crate::metrics::Metrics;
use crate::protocol::command::{
    self, Action, Command, CommandError, CommandLimits, EndReason, Label, Unsubscribe,
};
use crate::protocol::frame::{Frame, FrameBuilder};
use crate::routing::amqp_binding::AmqpBinding;
use crate::routing::broker_bindings::BindingId;
use crate::routing::families::{BindingError, Families, Resolved, Rights};
use crate::routing::month::ActiveMonths;
use crate::routing::waiters::WaitId;

use super::Session;
use super::binding_quota;
use super::hub::{Context, Hub};
use super::replies::{self, Reply};
use super::roll_over::Moves;

/// A subscribe that waits for the broker.
#[derive(Debug)]
pub(super) struct Waiting {
    /// That of the reply.
    reply_id: Box<str>,
    /// That of the events: only when the client gave one.
    request_id: Option<Box<str>>,
    pub(super) wanted: Wanted,
    /// Those that the leases are for; `None`: there is no lease yet.
    months: Option<ActiveMonths>,
    /// AMQP bindings acquired on its behalf, so that they stay wanted: each once, sorted.
    leases: Vec<Lease>,
    /// Leases that were not in force when last looked at.
    outstanding: usize,
    /// When the wait is over.
    pub(super) due: Duration,
}

#[derive(Debug)]
struct Lease {
    binding: AmqpBinding,
    id: BindingId,
    /// Its wait, over or not.
    wait: Option<WaitId>,
}

/// Client bindings that an identity may have for an account.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) scope: Scope,
    pub(super) superduper: bool,
    pub(super) realm: Option<Arc<str>>,
    /// Whom the AMQP bindings count for.
    pub(super) account: Option<AccountId>,
    /// Each once; each resolves.
    pub(super) bindings: Vec<Box<str>>,
}

impl Wanted {
    pub(super) fn rights(&self) -> Rights<'_> {
        Rights {
            superduper: self.superduper,
            realm: self.realm.as_deref(),
        }
    }

    /// What the bindings mean. They resolved before, and the families do not change, so none is left out.
    fn resolved<'a>(
        &'a self,
        families: &'a Families,
    ) -> impl Iterator<Item = Resolved<'a>> + Clone {
        self.bindings
            .iter()
            .filter_map(|binding| families.resolve(binding, self.scope, self.rights()).ok())
    }
}

impl Waiting {
    /// Heap bytes of it, but for what the table of AMQP bindings has all the same. Linear in what it asks for.
    pub(super) fn bytes(&self) -> usize {
        let request_id = self.request_id.as_ref().map_or(0, |id| id.len());
        let texts = self.wanted.bindings.iter().map(|text| text.len());
        size_of::<Self>()
            + self.reply_id.len()
            + request_id
            + texts.sum::<usize>()
            + self.wanted.bindings.capacity() * size_of::<Box<str>>()
            + self.leases.capacity() * size_of::<Lease>()
    }

    /// Client bindings it asks for.
    pub(super) fn wanted(&self) -> usize {
        self.wanted.bindings.len()
    }

    /// AMQP bindings it holds.
    pub(super) fn leases(&self) -> usize {
        self.leases.len()
    }

    /// Text of the lease on this AMQP binding. O(log leases).
    fn key(&self, exchange: &str, key: &str) -> Option<&ArcStr> {
        let place = |lease: &Lease| lease_order(&lease.binding).cmp(&(exchange, key));
        let at = self.leases.binary_search_by(place).ok()?;
        Some(&self.leases.get(at)?.binding.key)
    }
}

fn lease_order(binding: &AmqpBinding) -> (&str, &str) {
    #[cfg(test)]
    crate::steps::step();
    (&binding.exchange, binding.key.as_str())
}

/// How far the broker is with what a subscribe needs.
enum Progress {
    InForce,
    /// Some bindings are not in force yet.
    Waits,
    /// It refuses one.
    Refused,
}

/// Everything that refuses a command.
pub(super) enum Refusals {
    Command(CommandError),
    Bindings(Vec<BindingError>),
}

impl Refusals {
    /// The error reply.
    pub(super) fn reply(self, builder: &mut FrameBuilder, reply_id: &str) -> Reply {
        Reply::Frame(match self {
            Self::Command(error) => command::errors(builder, reply_id, [error]),
            Self::Bindings(errors) => command::errors(builder, reply_id, errors),
        })
    }

    /// Counts one more refusal of the limit that was met, where it was one.
    fn count(&self, metrics: &mut Metrics) {
        let counter = match self {
            Self::Command(CommandError::TooManySubscriptions(_)) => {
                &mut metrics.commands_refused_subscriptions_total
            }
            Self::Command(CommandError::MetadataTooLarge(_)) => {
                &mut metrics.commands_refused_metadata_total
            }
            Self::Command(CommandError::TooManySessions(_)) => {
                &mut metrics.commands_refused_account_total
            }
            Self::Command(CommandError::TooManyBindings(_)) => {
                &mut metrics.commands_refused_bindings_total
            }
            Self::Command(CommandError::TooManyBindingsOfAccount(_)) => {
                &mut metrics.commands_refused_account_bindings_total
            }
            Self::Command(_) | Self::Bindings(_) => return,
        };
        *counter += 1;
    }
}

impl From<CommandError> for Refusals {
    fn from(error: CommandError) -> Self {
        Self::Command(error)
    }
}

/// The result of a command: a reply, or none yet.
enum Outcome {
    /// To be sent in its turn.
    Reply(Reply),
    /// To be sent at once, whatever waits.
    Pong(Frame),
    Waits(Waiting),
    /// The session was closed meanwhile.
    Closed,
}

impl Session {
    /// Runs one command and sends its reply, unless that has to wait.
    pub(super) fn run(&mut self, text: &str, is_allowed: bool, cx: &mut Context<'_>) {
        let limits = CommandLimits {
            metadata_bytes_max: cx.hub.limits.metadata_bytes_max,
        };
        let (request_id, result) = if is_allowed {
            match command::parse(text, &limits) {
                Err(error) => (None, Err(error.into())),
                Ok(command) => {
                    let request_id = command.request_id.as_deref();
                    let reply_id = reply_id(request_id, cx.hub);
                    let result = self.execute(command, &reply_id, cx);
                    (Some(reply_id), result)
                }
            }
        } else {
            let request_id = command::first_request_id(text);
            let refused = self.rate_limited(cx.hub);
            (request_id.as_deref().map(Box::from), Err(refused))
        };
        match result {
            Ok(Outcome::Reply(reply)) => self.answer(reply, cx),
            Ok(Outcome::Pong(frame)) => self.push(frame, cx),
            Ok(Outcome::Waits(waiting)) => {
                cx.hub.metrics.subscribes_waited_total += 1;
                cx.hub.deadlines.command.begin(cx.now.clock, cx.id);
                if let Some(extra) = self.extra_mut() {
                    extra.replies.push_waiting(waiting, &mut cx.hub.held);
                }
                self.shorten_replies(cx);
            }
            Ok(Outcome::Closed) => {}
            Err(refusals) => {
                refusals.count(&mut cx.hub.metrics);
                cx.hub.metrics.commands_failed_total += 1;
                let reply_id = request_id.unwrap_or_else(|| reply_id(None, cx.hub));
                let reply = refusals.reply(&mut cx.hub.builder, &reply_id);
                self.answer(reply, cx);
            }
        }
    }

    /// Sends a reply in its turn.
    fn answer(&mut self, reply: Reply, cx: &mut Context<'_>) {
        if !self.is_open() {
            return;
        }
        match self.replies_mut().filter(|replies| !replies.is_empty()) {
            Some(replies) => {
                cx.hub.metrics.replies_held_total += 1;
                replies.push_ready(reply, &mut cx.hub.held);
                self.send_ready(cx);
                self.shorten_replies(cx);
            }
            None => self.send(reply, cx),
        }
    }

    fn send(&mut self, reply: Reply, cx: &mut Context<'_>) {
        let frame = {
            let Hub { builder, index, .. } = &mut *cx.hub;
            let subscribed = index
                .subscriptions(&self.subscriptions)
                .map(|one| one.binding());
            match reply {
                Reply::Subscribed { id } => command::subscribed(builder, &id, subscribed),
                Reply::Unsubscribed { id, removed } => {
                    let removed = removed.iter().map(AsRef::as_ref);
                    command::unsubscribed(builder, &id, removed, subscribed)
                }
                Reply::Frame(frame) => frame,
            }
        };
        self.push(frame, cx);
    }

    /// Sends the replies that wait for nobody any more.
    pub(super) fn send_ready(&mut self, cx: &mut Context<'_>) {
        while let Some(replies) = self.replies_mut()
            && let Some(reply) = replies.pop_ready(&mut cx.hub.held)
        {
            self.send(reply, cx);
        }
    }

    /// Gives up the subscribes that have waited longest while the session holds more than it may.
    fn shorten_replies(&mut self, cx: &mut Context<'_>) {
        while let Some(replies) = self.replies().filter(|replies| replies.is_over())
            && let Some((number, _)) = replies.first_due()
        {
            cx.hub.metrics.subscribes_given_up_total += 1;
            self.give_up(number, CommandError::EventSourceUnavailable, cx);
        }
    }

    fn rate_limited(&self, hub: &Hub) -> Refusals {
        CommandError::RateLimited(self.peer(hub).to_string().into()).into()
    }

    fn execute(
        &mut self,
        command: Command<'_>,
        reply_id: &str,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Refusals> {
        let identity = self.authenticate(command.auth_token?.as_deref(), cx)?;
        if !self.is_open() {
            return Ok(Outcome::Closed);
        }
        let (action, label) = command.action?;
        self.keep_label(&label, identity.account_id(), cx.hub);
        match action {
            Action::Ping => Ok(Outcome::Pong(command::pong(&mut cx.hub.builder, reply_id))),
            Action::Unsubscribe(what) => Ok(Outcome::Reply(Reply::Unsubscribed {
                id: reply_id.into(),
                removed: self.unsubscribe(&what, cx),
            })),
            Action::Subscribe {
                account_id,
                bindings,
            } => {
                let wanted = self.authorise(&account_id, &bindings, &identity, cx.hub)?;
                let request_id = command.request_id.as_deref();
                self.subscribe(wanted, request_id, reply_id, cx)
            }
        }
    }

    /// The identity that the command runs as: the session's, or that of the token it carries.
    fn authenticate(
        &mut self,
        auth_token: Option<&str>,
        cx: &mut Context<'_>,
    ) -> Result<Arc<Identity>, CommandError> {
        let current = self
            .identity
            .as_ref()
            .filter(|identity| !identity.has_expired(cx.now.unix));
        let token = match (auth_token, current) {
            (None, Some(identity)) => return Ok(identity.clone()),
            (Some(token), Some(identity)) if identity.is_token(token) => {
                return Ok(identity.clone());
            }
            (None, None) if self.identity.is_none() => {
                return Err(CommandError::AuthenticationRequired);
            }
            (None, None) => return Err(CommandError::AuthenticationFailed),
            (Some(token), _) => token,
        };
        match cx.hub.authenticator.authenticate(token, cx.now.unix) {
            Verdict::Accepted(identity) => {
                let account = identity.account_id();
                let is_new = account != self.identity.as_ref().and_then(|own| own.account_id());
                if let Some(account) = account.filter(|_| is_new)
                    && let Some(max) = cx.hub.accounts.full(&account)
                {
                    return Err(CommandError::TooManySessions(max));
                }
                self.become_identity(identity.clone(), EndReason::Identity, cx);
                Ok(identity)
            }
            Verdict::Refused => {
                cx.hub.metrics.authentications_failed_total += 1;
                Err(CommandError::AuthenticationFailed)
            }
        }
    }

    fn keep_label(&mut self, label: &Label<'_>, account: Option<AccountId>, hub: &mut Hub) {
        if label.name.is_none() && label.metadata.is_none() {
            return;
        }
        if let Some(extra) = self.extra_mut()
            && !hub.labels.keep(&mut extra.label, label, account)
        {
            hub.metrics.labels_left_out_total += 1;
        }
    }

    /// The client bindings if the identity may have all of them, or every reason against it.
    fn authorise(
        &self,
        account_id: &str,
        bindings: &[Cow<'_, str>],
        identity: &Identity,
        hub: &Hub,
    ) -> Result<Wanted, Refusals> {
        let superduper = identity.is_superduper();
        let scope = scope_of(account_id).ok_or(CommandError::UnauthorizedAccount)?;
        let realm = authorised(scope, identity)?;
        let mut wanted = Wanted {
            scope,
            superduper,
            realm,
            account: binding_quota::account_of(identity, scope),
            bindings: Vec::new(),
        };
        let max = hub.limits.subscriptions_max;
        let mut errors = Vec::new();
        let mut known = HashSet::new();
        for binding in bindings {
            if bindings.len() > 1 && !known.insert(&**binding) {
                continue;
            }
            if wanted.bindings.len() >= max {
                return Err(CommandError::TooManySubscriptions(max).into());
            }
            if let Err(error) = hub.families.resolve(binding, scope, wanted.rights()) {
                errors.push(error);
            }
            wanted.bindings.push(binding.as_ref().into());
        }
        if !errors.is_empty() {
            return Err(Refusals::Bindings(errors));
        }
        if self.would_have_more_than(max, &wanted, hub) {
            return Err(CommandError::TooManySubscriptions(max).into());
        }
        Ok(wanted)
    }

    /// Whether the session would have more subscriptions than `max` with those that it waits for and these. Linear in
    /// the session's own subscriptions, and near the limit in all that it waits for.
    fn would_have_more_than(&self, max: usize, wanted: &Wanted, hub: &Hub) -> bool {
        let live = || hub.index.subscriptions(&self.subscriptions);
        let waited_for = self.replies().map_or(0, |replies| replies.wanted());
        let at_most = waited_for + wanted.bindings.len();
        if max == usize::MAX || live().count() + at_most <= max {
            return false;
        }
        let live = live().map(|one| (one.scope(), one.binding()));
        let waiting = self.replies().into_iter().flat_map(|all| all.waiting());
        let waiting = waiting.map(|(_, waiting)| &waiting.wanted).chain([wanted]);
        let waiting = waiting.flat_map(|wanted| {
            let bindings = wanted.bindings.iter();
            bindings.map(|binding| (wanted.scope, &**binding))
        });
        live.chain(waiting).collect::<HashSet<_>>().len() > max
    }

    /// Subscribes at once when every AMQP binding is in force; else waits. What the session has already is asked
    /// for again, so that success means live for it too.
    fn subscribe(
        &mut self,
        wanted: Wanted,
        request_id: Option<&str>,
        reply_id: &str,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Refusals> {
        let quota = cx.hub.limits.bindings;
        let waits_for = self.replies().map_or(0, |replies| replies.wanted());
        let has = cx.hub.index.len(&self.subscriptions) + waits_for;
        let is_far = quota.is_far(has, wanted.bindings.len(), wanted.account, cx.hub);
        let live = || cx.hub.index.subscriptions(&self.subscriptions);
        let waiting = || {
            let waiting = self.replies().into_iter().flat_map(|all| all.waiting());
            waiting.flat_map(|(_, one)| one.wanted.resolved(&cx.hub.families))
        };
        let leases = self.replies().map_or(0, |replies| replies.leases());
        if !is_far {
            let new = wanted.resolved(&cx.hub.families);
            quota.check(live, (leases, waiting), new, wanted.account, cx.hub)?;
        }
        let due = cx.hub.deadlines.command.due(cx.now.clock);
        let request_id = request_id.map(Box::from);
        let mut waiting = Waiting {
            reply_id: reply_id.into(),
            request_id,
            wanted,
            months: None,
            leases: Vec::new(),
            outstanding: 0,
            due,
        };
        lease_months(&mut waiting, cx.hub);
        let number = self.replies().map_or(0, |replies| replies.next_number());
        let token = replies::token(cx.id.slot, number);
        match look_at_leases(&mut waiting, token, cx.hub) {
            Progress::InForce => Ok(Outcome::Reply(self.finish_subscribe(waiting, cx))),
            Progress::Waits if cx.hub.held.bytes <= HELD_TOTAL_BYTES_MAX => {
                Ok(Outcome::Waits(waiting))
            }
            Progress::Waits => {
                cx.hub.metrics.subscribes_given_up_total += 1;
                release_leases(&mut waiting, token, cx.hub);
                Err(CommandError::EventSourceUnavailable.into())
            }
            Progress::Refused => {
                cx.hub.metrics.subscribes_refused_total += 1;
                release_leases(&mut waiting, token, cx.hub);
                Err(CommandError::EventSourceUnavailable.into())
            }
        }
    }

    /// Makes the subscriptions, each with its own hold on its AMQP bindings, and gives the leases back. Linear in what
    /// the session has and asks for, but for looking leases up.
    fn finish_subscribe(&mut self, mut waiting: Waiting, cx: &mut Context<'_>) -> Reply {
        let (mut held, mut moves) = (Vec::new(), Moves::default());
        let Hub {
            families,
            index,
            months,
            ..
        } = &mut *cx.hub;
        let wanted = waiting.wanted.resolved(families).map(|resolved| {
            let key = waiting.key(families.exchange(&resolved), resolved.binding());
            resolved.sharing(key)
        });
        index.subscribe_all(
            families,
            &mut self.subscriptions,
            cx.id.slot,
            wanted,
            self.style,
            waiting.request_id.as_deref(),
            &mut |added, overtaken| {
                families.amqp_bindings(&added, months.now(), &mut held);
                if let Some(others) = overtaken {
                    moves.note(families, *months, &added, others);
                }
            },
        );
        cx.hub.carry_out(&moves);
        for binding in &held {
            cx.hub.acquire(binding, waiting.wanted.account);
        }
        for lease in waiting.leases.drain(..) {
            cx.hub.release(&lease.binding);
        }
        Reply::Subscribed {
            id: waiting.reply_id,
        }
    }

    /// Ends subscriptions, live ones and those that are waited for, and returns the client bindings removed. Linear in
    /// what the session has, waits for and names.
    fn unsubscribe(&mut self, what: &Unsubscribe<'_>, cx: &mut Context<'_>) -> Vec<Box<str>> {
        let (account_id, bindings) = match what {
            Unsubscribe::All => (None, None),
            Unsubscribe::Account(account_id) => (Some(account_id), None),
            Unsubscribe::Bindings {
                account_id,
                bindings,
            } => (account_id.as_ref(), Some(bindings)),
        };
        let scope = match account_id.map(|account_id| scope_of(account_id)) {
            // It names no account that there could be subscriptions for.
            Some(None) => return Vec::new(),
            Some(scope) => scope,
            None => None,
        };
        let mut removed = Vec::new();
        let Some(bindings) = bindings else {
            self.remove(scope, None, cx.hub, &mut removed);
            let is_meant = |one: Scope, _: &str| scope.is_none_or(|scope| one == scope);
            self.withdraw(is_meant, cx, &mut removed);
            return removed.into_iter().map(|(_, binding)| binding).collect();
        };
        // As they are named, not as they were made.
        let mut order: HashMap<&str, usize> = HashMap::new();
        for binding in bindings {
            let next = order.len();
            order.entry(binding).or_insert(next);
        }
        self.remove(scope, Some(bindings), cx.hub, &mut removed);
        let is_meant = |one: Scope, binding: &str| {
            scope.is_none_or(|scope| one == scope) && order.contains_key(binding)
        };
        self.withdraw(is_meant, cx, &mut removed);
        removed.sort_by_key(|(_, binding)| order.get(&**binding));
        removed.into_iter().map(|(_, binding)| binding).collect()
    }

    /// Removes the subscriptions of this scope (`None`: any) and these bindings (`None`: all) and notes them.
    fn remove(
        &mut self,
        scope: Option<Scope>,
        bindings: Option<&Vec<Cow<'_, str>>>,
        hub: &mut Hub,
        removed: &mut Vec<(Scope, Box<str>)>,
    ) {
        let mut freed = Vec::new();
        let Hub {
            index,
            families,
            months,
            ..
        } = hub;
        let list = &mut self.subscriptions;
        let mut note = |subscription: Resolved<'_>| {
            families.amqp_bindings(&subscription, subscription.held(*months), &mut freed);
            removed.push((subscription.scope(), subscription.binding().into()));
        };
        match bindings.map(Vec::as_slice) {
            None => index.unsubscribe(list, scope, None, &mut note),
            Some([binding]) => index.unsubscribe(list, scope, Some(binding), &mut note),
            Some(bindings) => {
                let bindings = bindings.iter().map(AsRef::as_ref);
                index.unsubscribe_all(list, scope, bindings, &mut note)
            }
        };
        for binding in &freed {
            hub.release(binding);
        }
    }

    /// Takes from the subscribes that wait what an unsubscribe means, and notes what is not noted yet. One that is
    /// left with nothing to wait for has done what it was to do.
    fn withdraw(
        &mut self,
        is_meant: impl Fn(Scope, &str) -> bool,
        cx: &mut Context<'_>,
        removed: &mut Vec<(Scope, Box<str>)>,
    ) {
        let Some(replies) = self.replies().filter(|replies| !replies.is_empty()) else {
            return;
        };
        let mut noted: HashSet<(Scope, Box<str>)> = removed.iter().cloned().collect();
        let concerned = replies.waiting().filter_map(|(number, waiting)| {
            let Wanted {
                scope, bindings, ..
            } = &waiting.wanted;
            let mut bindings = bindings.iter();
            let is_concerned = bindings.any(|binding| is_meant(*scope, binding));
            is_concerned.then_some(number)
        });
        for number in concerned.collect::<Vec<u32>>() {
            let Some(mut waiting) = self.take_waiting(number, cx.hub) else {
                continue;
            };
            let scope = waiting.wanted.scope;
            waiting.wanted.bindings.retain(|binding| {
                let stays = !is_meant(scope, binding);
                if !stays && noted.insert((scope, binding.clone())) {
                    removed.push((scope, binding.clone()));
                }
                stays
            });
            if waiting.wanted.bindings.is_empty() {
                release_leases(&mut waiting, replies::token(cx.id.slot, number), cx.hub);
                let reply = Reply::Subscribed {
                    id: waiting.reply_id,
                };
                self.settle(number, reply, cx.hub);
            } else {
                self.put_back(number, waiting, cx.hub);
            }
        }
    }

    /// Removes all subscriptions. Cost: what the session had.
    pub(super) fn drop_subscriptions(&mut self, hub: &mut Hub) {
        if !self.subscriptions.is_empty() {
            self.remove(None, None, hub, &mut Vec::new());
        }
    }

    /// Takes the subscribes that wait back, their leases included. No reply is sent.
    pub(super) fn stop_waiting(&mut self, cx: &mut Context<'_>) {
        let Some(replies) = self.replies_mut() else {
            return;
        };
        for (number, mut waiting) in replies.clear(&mut cx.hub.held) {
            release_leases(&mut waiting, replies::token(cx.id.slot, number), cx.hub);
        }
    }

    fn take_waiting(&mut self, number: u32, hub: &mut Hub) -> Option<Box<Waiting>> {
        self.replies_mut()?.take(number, &mut hub.held)
    }

    fn put_back(&mut self, number: u32, waiting: Box<Waiting>, hub: &mut Hub) {
        if let Some(replies) = self.replies_mut() {
            replies.put_back(number, waiting, &mut hub.held);
        }
    }

    fn settle(&mut self, number: u32, reply: Reply, hub: &mut Hub) {
        if let Some(replies) = self.replies_mut() {
            replies.settle(number, reply, &mut hub.held);
        }
    }

    /// One AMQP binding that the subscribe of this number waits for is in force: answers when it was the last.
    pub fn on_bound(&mut self, number: u32, cx: &mut Context<'_>) {
        let Some(waiting) = self
            .replies_mut()
            .and_then(|replies| replies.waiting_mut(number))
        else {
            return;
        };
        waiting.outstanding = waiting.outstanding.saturating_sub(1);
        if waiting.outstanding == 0 {
            self.go_on_waiting(number, cx);
            self.send_ready(cx);
            self.drop_needless_extra();
        }
    }

    /// The broker refuses an AMQP binding that the subscribe of this number waits for.
    pub fn on_refused(&mut self, number: u32, cx: &mut Context<'_>) {
        let is_waiting =
            |session: &mut Self| session.replies_mut()?.waiting_mut(number).map(|_| ());
        if is_waiting(self).is_some() {
            cx.hub.metrics.subscribes_refused_total += 1;
            self.give_up(number, CommandError::EventSourceUnavailable, cx);
            self.drop_needless_extra();
        }
    }

    /// The broker did not confirm in time what one subscribe, or several, waited for.
    pub fn on_command_timeout(&mut self, cx: &mut Context<'_>) {
        while let Some((number, due)) = self.replies().and_then(|replies| replies.first_due())
            && due <= cx.now.clock
        {
            cx.hub.metrics.subscribes_timed_out_total += 1;
            self.give_up(number, CommandError::EventSourceUnavailable, cx);
        }
        self.drop_needless_extra();
    }

    /// Looks again at a subscribe for which nothing is outstanding as far as it knows, and finishes it if that is so:
    /// the months may have changed since the wait began, and what was in force may have been lost.
    fn go_on_waiting(&mut self, number: u32, cx: &mut Context<'_>) {
        if let Some(mut waiting) = self.take_waiting(number, cx.hub) {
            lease_months(&mut waiting, cx.hub);
            self.look_at(number, waiting, cx);
        }
    }

    /// Settles a subscribe that was taken out, or puts it back.
    fn look_at(&mut self, number: u32, mut waiting: Box<Waiting>, cx: &mut Context<'_>) {
        match look_at_leases(&mut waiting, replies::token(cx.id.slot, number), cx.hub) {
            Progress::InForce => {
                let reply = self.finish_subscribe(*waiting, cx);
                self.settle(number, reply, cx.hub);
            }
            Progress::Waits => self.put_back(number, waiting, cx.hub),
            Progress::Refused => {
                cx.hub.metrics.subscribes_refused_total += 1;
                let error = CommandError::EventSourceUnavailable.into();
                self.refuse_waiting(number, waiting, error, cx);
            }
        }
    }

    /// Answers a subscribe that was taken out with errors, and keeps nothing of it.
    fn refuse_waiting(
        &mut self,
        number: u32,
        mut waiting: Box<Waiting>,
        refusals: Refusals,
        cx: &mut Context<'_>,
    ) {
        cx.hub.metrics.commands_failed_total += 1;
        release_leases(&mut waiting, replies::token(cx.id.slot, number), cx.hub);
        let reply = refusals.reply(&mut cx.hub.builder, &waiting.reply_id);
        self.settle(number, reply, cx.hub);
    }

    /// As [`Session::refuse_waiting`] for one that is in its place, and sends what now can be.
    fn give_up(&mut self, number: u32, error: CommandError, cx: &mut Context<'_>) {
        if let Some(waiting) = self.take_waiting(number, cx.hub) {
            self.refuse_waiting(number, waiting, error.into(), cx);
        }
        self.send_ready(cx);
    }

    /// Decides anew on the subscribes that wait, by the rights of `identity`: one that it may not have is refused, one
    /// whose realm is another waits for that realm's AMQP bindings. Each keeps its time. Linear in what they ask for.
    pub(super) fn revise_waiting(&mut self, identity: &Identity, cx: &mut Context<'_>) {
        let numbers = self.replies().into_iter().flat_map(|all| all.waiting());
        for number in numbers.map(|(number, _)| number).collect::<Vec<u32>>() {
            let Some(mut waiting) = self.take_waiting(number, cx.hub) else {
                continue;
            };
            let wanted = &mut waiting.wanted;
            let refusals = match authorised(wanted.scope, identity) {
                Err(error) => Some(error.into()),
                Ok(realm) => {
                    wanted.account = binding_quota::account_of(identity, wanted.scope);
                    wanted.superduper = identity.is_superduper();
                    let is_moved = wanted.realm != realm;
                    wanted.realm = realm;
                    let errors = wanted.bindings.iter().filter_map(|binding| {
                        let rights = wanted.rights();
                        cx.hub.families.resolve(binding, wanted.scope, rights).err()
                    });
                    let errors: Vec<_> = errors.collect();
                    if is_moved && errors.is_empty() {
                        lease_anew(&mut waiting, replies::token(cx.id.slot, number), cx.hub);
                        self.look_at(number, waiting, cx);
                        continue;
                    }
                    (!errors.is_empty()).then_some(Refusals::Bindings(errors))
                }
            };
            match refusals {
                Some(refusals) => self.refuse_waiting(number, waiting, refusals, cx),
                None => self.put_back(number, waiting, cx.hub),
            }
        }
    }
}

/// The realm by which `identity` has subscriptions for `scope`, if it may have them.
fn authorised(scope: Scope, identity: &Identity) -> Result<Option<Arc<str>>, CommandError> {
    match scope {
        Scope::Any if identity.is_superduper() => Ok(None),
        Scope::Any => Err(CommandError::UnauthorizedWildcard),
        Scope::One(account) if identity.may_see(account) => Ok(identity.realm_of(account)),
        Scope::One(_) => Err(CommandError::UnauthorizedAccount),
    }
}

/// Leases what `waiting` needs in the months of now and has no lease of. O(n log n).
fn lease_months(waiting: &mut Waiting, hub: &mut Hub) {
    let months = hub.months.now();
    if waiting.months.replace(months) == Some(months) {
        return;
    }
    let mut bindings = Vec::new();
    for resolved in waiting.wanted.resolved(&hub.families) {
        hub.families.amqp_bindings(&resolved, months, &mut bindings);
    }
    bindings.sort_unstable_by(|one, other| lease_order(one).cmp(&lease_order(other)));
    bindings.dedup();
    bindings.retain(|binding| waiting.key(&binding.exchange, &binding.key).is_none());
    waiting.leases.reserve_exact(bindings.len());
    for binding in bindings {
        let id = hub.acquire(&binding, waiting.wanted.account).id;
        waiting.leases.push(Lease {
            binding,
            id,
            wait: None,
        });
    }
    waiting
        .leases
        .sort_unstable_by(|one, other| lease_order(&one.binding).cmp(&lease_order(&other.binding)));
}

/// Leases what `waiting` needs now in place of what it has. What it needs still stays wanted throughout.
fn lease_anew(waiting: &mut Waiting, token: u64, hub: &mut Hub) {
    let before = std::mem::take(&mut waiting.leases);
    waiting.months = None;
    lease_months(waiting, hub);
    release(before, token, hub);
}

fn release_leases(waiting: &mut Waiting, token: u64, hub: &mut Hub) {
    release(std::mem::take(&mut waiting.leases), token, hub);
}

fn release(leases: Vec<Lease>, token: u64, hub: &mut Hub) {
    for lease in leases {
        if let Some(wait) = lease.wait {
            hub.broker.stop_waiting(lease.id, wait, token);
        }
        hub.release(&lease.binding);
    }
}

/// Makes the subscribe named by `token` wait for those of its leases that are not in force. None of them has a wait
/// that is not over.
fn look_at_leases(waiting: &mut Waiting, token: u64, hub: &mut Hub) -> Progress {
    let is_refused = |lease: &Lease| hub.broker.is_refused(lease.id);
    if waiting.leases.iter().any(is_refused) {
        return Progress::Refused;
    }
    waiting.outstanding = 0;
    for lease in &mut waiting.leases {
        if !hub.broker.is_in_force(lease.id) {
            lease.wait = Some(hub.broker.wait(lease.id, token));
            waiting.outstanding += 1;
        }
    }
    match waiting.outstanding {
        0 => Progress::InForce,
        _ => Progress::Waits,
    }
}

fn reply_id(request_id: Option<&str>, hub: &mut Hub) -> Box<str> {
    match request_id {
        Some(request_id) => request_id.into(),
        None => command::generated_request_id(hub.generate_request_id()).into(),
    }
}

fn scope_of(account_id: &str) -> Option<Scope> {
    match account_id {
        "*" => Some(Scope::Any),
        account_id => AccountId::parse(account_id).map(Scope::One),
    }
}
