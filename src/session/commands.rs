//! What a command does (PROTOCOL 3): authenticate, authorise, subscribe, unsubscribe, ping, and the reply.
//!
//! Order of the checks, as on the platform: rate limit, JSON, token, the command's own keys, account, bindings.
//! A subscribe whose AMQP bindings are not all in force waits, holding a lease on each of them; it is answered
//! when they are, or when `request_timeout_ms` is over, and then nothing of it is kept.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use crate::auth::{Identity, Verdict};
use crate::handoff::AmqpBinding;
use crate::metrics::Metrics;
use crate::protocol::command::{
    self, Action, Command, CommandError, CommandLimits, Label, Unsubscribe,
};
use crate::protocol::frame::Frame;
use crate::routing::account::{AccountId, Scope};
use crate::routing::broker_bindings::BindingId;
use crate::routing::families::{BindingError, Families, Resolved, Rights};
use crate::routing::index::Subscribed;
use crate::routing::month::ActiveMonths;

use super::binding_quota;
use super::hub::{Hub, Now};
use super::id::ConnId;
use super::roll_over::Moves;
use super::{Phase, Session};

/// A subscribe that waits for the broker.
#[derive(Debug)]
pub(super) struct Waiting {
    /// That of the reply.
    reply_id: Box<str>,
    /// That of the events: only when the client gave one.
    request_id: Option<Box<str>>,
    wanted: Wanted,
    /// Those that the leases are for; `None`: there is no lease yet.
    months: Option<ActiveMonths>,
    /// AMQP bindings acquired on its behalf, so that they stay wanted.
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
}

/// Client bindings that an identity may have for an account.
#[derive(Debug)]
struct Wanted {
    scope: Scope,
    superduper: bool,
    realm: Option<Rc<str>>,
    /// Whom the AMQP bindings count for.
    account: Option<AccountId>,
    /// Each once; each resolves.
    bindings: Vec<Box<str>>,
}

impl Wanted {
    fn rights(&self) -> Rights<'_> {
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

/// Everything that refuses a command.
enum Refusals {
    Command(CommandError),
    Bindings(Vec<BindingError>),
}

impl Refusals {
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
    Reply(Frame),
    Waits(Waiting),
}

impl Session {
    /// Runs one command and queues its reply, unless it has to wait.
    pub(super) fn run(
        &mut self,
        text: &str,
        is_allowed: bool,
        id: ConnId,
        hub: &mut Hub,
        now: Now,
    ) {
        let limits = CommandLimits {
            metadata_bytes_max: hub.limits.metadata_bytes_max,
        };
        let (request_id, result) = if is_allowed {
            match command::parse(text, &limits) {
                Err(error) => (None, Err(error.into())),
                Ok(command) => {
                    let request_id = command.request_id.as_deref();
                    let reply_id = reply_id(request_id, hub);
                    let result = self.execute(command, &reply_id, id, hub, now);
                    (Some(reply_id), result)
                }
            }
        } else {
            let request_id = command::first_request_id(text);
            let refused = self.rate_limited(hub);
            (request_id.as_deref().map(Box::from), Err(refused))
        };
        let reply = match result {
            Ok(Outcome::Reply(reply)) => reply,
            Ok(Outcome::Waits(waiting)) => {
                hub.metrics.subscribes_waited_total += 1;
                hub.deadlines.command.begin(now.clock, id);
                if let Some(extra) = self.extra_mut() {
                    extra.waiting = Some(waiting);
                }
                return;
            }
            Err(refusals) => {
                hub.metrics.commands_failed_total += 1;
                refusals.count(&mut hub.metrics);
                let reply_id = request_id.unwrap_or_else(|| reply_id(None, hub));
                match refusals {
                    Refusals::Command(error) => {
                        command::errors(&mut hub.builder, &reply_id, [error])
                    }
                    Refusals::Bindings(errors) => {
                        command::errors(&mut hub.builder, &reply_id, errors)
                    }
                }
            }
        };
        self.push(reply, id, hub, now);
    }

    fn rate_limited(&self, hub: &Hub) -> Refusals {
        CommandError::RateLimited(self.peer(hub).to_string().into()).into()
    }

    fn execute(
        &mut self,
        command: Command<'_>,
        reply_id: &str,
        id: ConnId,
        hub: &mut Hub,
        now: Now,
    ) -> Result<Outcome, Refusals> {
        let identity = self.authenticate(command.auth_token?.as_deref(), hub, now)?;
        let (action, label) = command.action?;
        self.keep_label(&label, identity.account_id(), hub);
        match action {
            Action::Ping => Ok(Outcome::Reply(command::pong(&mut hub.builder, reply_id))),
            Action::Unsubscribe(what) => Ok(Outcome::Reply(self.unsubscribe(&what, reply_id, hub))),
            Action::Subscribe {
                account_id,
                bindings,
            } => {
                let wanted = self.authorise(&account_id, &bindings, &identity, hub)?;
                let request_id = command.request_id.as_deref();
                self.subscribe(wanted, request_id, reply_id, id, hub, now)
            }
        }
    }

    /// The identity that the command runs as: the session's, or that of the token it carries.
    fn authenticate(
        &mut self,
        auth_token: Option<&str>,
        hub: &mut Hub,
        now: Now,
    ) -> Result<Rc<Identity>, CommandError> {
        let current = self
            .identity
            .as_ref()
            .filter(|identity| !identity.has_expired(now.unix));
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
        match hub.authenticator.authenticate(token, now.unix) {
            Verdict::Accepted(identity) => {
                let account = identity.account_id();
                let is_new = account != self.identity.as_ref().and_then(|own| own.account_id());
                if let Some(account) = account.filter(|_| is_new)
                    && let Some(max) = hub.accounts.full(&account)
                {
                    return Err(CommandError::TooManySessions(max));
                }
                self.become_identity(identity.clone(), hub);
                Ok(identity)
            }
            Verdict::Refused => {
                hub.metrics.authentications_failed_total += 1;
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
        let scope = match account_id {
            "*" if superduper => Scope::Any,
            "*" => return Err(CommandError::UnauthorizedWildcard.into()),
            account_id => match AccountId::parse(account_id) {
                Some(account) if identity.may_see(account) => Scope::One(account),
                _ => return Err(CommandError::UnauthorizedAccount.into()),
            },
        };
        let realm = match scope {
            Scope::One(account) => identity.realm_of(account),
            Scope::Any => None,
        };
        let mut wanted = Wanted {
            scope,
            superduper,
            realm,
            account: binding_quota::account_of(identity, scope),
            bindings: Vec::new(),
        };
        let max = hub.limits.subscriptions_max;
        let (mut errors, mut new) = (Vec::new(), 0);
        for binding in bindings {
            if wanted.bindings.iter().any(|known| **known == **binding) {
                continue;
            }
            // The bound ends a long list early: each entry costs a look at those before it.
            if wanted.bindings.len() >= max {
                return Err(CommandError::TooManySubscriptions(max).into());
            }
            if let Err(error) = hub.families.resolve(binding, scope, wanted.rights()) {
                errors.push(error);
            }
            new += usize::from(!hub.index.contains(&self.subscriptions, scope, binding));
            wanted.bindings.push(binding.as_ref().into());
        }
        if !errors.is_empty() {
            return Err(Refusals::Bindings(errors));
        }
        if hub.index.len(&self.subscriptions) + new > max {
            return Err(CommandError::TooManySubscriptions(max).into());
        }
        Ok(wanted)
    }

    /// Subscribes at once when every AMQP binding is in force; else waits. What the session has already is asked
    /// for again, so that success means live for it too.
    fn subscribe(
        &mut self,
        wanted: Wanted,
        request_id: Option<&str>,
        reply_id: &str,
        id: ConnId,
        hub: &mut Hub,
        now: Now,
    ) -> Result<Outcome, Refusals> {
        let quota = hub.limits.bindings;
        let new = wanted.resolved(&hub.families);
        quota.check(&self.subscriptions, new, wanted.account, hub)?;
        let due = hub.deadlines.command.due(now.clock);
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
        lease_months(&mut waiting, hub);
        waiting.outstanding = wait_for_missing(&waiting.leases, id, hub);
        Ok(if waiting.outstanding == 0 {
            Outcome::Reply(self.finish_subscribe(waiting, id, hub))
        } else {
            Outcome::Waits(waiting)
        })
    }

    /// Makes the subscriptions, each with its own hold on its AMQP bindings, and gives the leases back.
    fn finish_subscribe(&mut self, waiting: Waiting, id: ConnId, hub: &mut Hub) -> Frame {
        let (mut held, mut moves) = (Vec::new(), Moves::default());
        let Hub {
            families,
            index,
            months,
            ..
        } = hub;
        for resolved in waiting.wanted.resolved(families) {
            let resolved = resolved.sharing(waiting.leases.iter().map(|lease| &lease.binding));
            let request_id = waiting.request_id.as_deref();
            match index.subscribe(
                families,
                &mut self.subscriptions,
                id.slot,
                resolved,
                self.style,
                request_id,
            ) {
                Subscribed::New => families.amqp_bindings(&resolved, months.now(), &mut held),
                Subscribed::Overtook(others) => {
                    families.amqp_bindings(&resolved, months.now(), &mut held);
                    moves.note(families, *months, &resolved, others);
                }
                Subscribed::AlreadySubscribed => {}
            }
        }
        hub.carry_out(&moves);
        for binding in &held {
            hub.acquire(binding, waiting.wanted.account);
        }
        for lease in &waiting.leases {
            hub.release(&lease.binding);
        }
        let Hub { builder, index, .. } = hub;
        command::subscribed(
            builder,
            &waiting.reply_id,
            index
                .subscriptions(&self.subscriptions)
                .map(|one| one.binding()),
        )
    }

    fn unsubscribe(&mut self, what: &Unsubscribe<'_>, reply_id: &str, hub: &mut Hub) -> Frame {
        let mut removed = Vec::new();
        match what {
            Unsubscribe::All => self.remove(None, None, hub, &mut removed),
            Unsubscribe::Account(account_id) => {
                if let Some(scope) = scope_of(account_id) {
                    self.remove(Some(scope), None, hub, &mut removed);
                }
            }
            Unsubscribe::Bindings {
                account_id,
                bindings,
            } => {
                let scope = match account_id {
                    None => Some(None),
                    Some(account_id) => scope_of(account_id).map(Some),
                };
                if let Some(scope) = scope {
                    for binding in bindings {
                        self.remove(scope, Some(binding), hub, &mut removed);
                    }
                }
            }
        }
        let Hub { builder, index, .. } = hub;
        let left = index
            .subscriptions(&self.subscriptions)
            .map(|one| one.binding());
        command::unsubscribed(builder, reply_id, removed.iter().map(AsRef::as_ref), left)
    }

    /// Removes the subscriptions of this scope and binding (`None`: any) and notes their client bindings.
    pub(super) fn remove(
        &mut self,
        scope: Option<Scope>,
        binding: Option<&str>,
        hub: &mut Hub,
        removed: &mut Vec<Box<str>>,
    ) {
        let mut freed = Vec::new();
        let Hub {
            index,
            families,
            months,
            ..
        } = hub;
        index.unsubscribe(
            &mut self.subscriptions,
            scope,
            binding,
            &mut |subscription| {
                families.amqp_bindings(&subscription, subscription.held(*months), &mut freed);
                removed.push(subscription.binding().into());
            },
        );
        for binding in &freed {
            hub.release(binding);
        }
    }

    /// Removes all subscriptions. Cost: what the session had.
    pub(super) fn drop_subscriptions(&mut self, hub: &mut Hub) {
        if !self.subscriptions.is_empty() {
            self.remove(None, None, hub, &mut Vec::new());
        }
    }

    /// Takes the waiting subscribe back, its leases included. Its reply is not sent here.
    pub(super) fn stop_waiting(&mut self, id: ConnId, hub: &mut Hub) -> Option<Waiting> {
        let Phase::Open {
            extra: Some(extra), ..
        } = &mut self.phase
        else {
            return None;
        };
        let waiting = extra.waiting.take()?;
        for lease in &waiting.leases {
            hub.broker.stop_waiting(lease.id, id.slot);
            hub.release(&lease.binding);
        }
        Some(waiting)
    }

    /// One AMQP binding that the session waits for is in force: answers when it was the last, and goes on with
    /// the held commands.
    pub fn on_bound(&mut self, id: ConnId, hub: &mut Hub, now: Now) {
        let Phase::Open {
            extra: Some(extra), ..
        } = &mut self.phase
        else {
            return;
        };
        let Some(waiting) = &mut extra.waiting else {
            return;
        };
        waiting.outstanding = waiting.outstanding.saturating_sub(1);
        if waiting.outstanding > 0 {
            return;
        }
        // The months may have changed since the wait began, and what was in force may have been lost.
        lease_months(waiting, hub);
        waiting.outstanding = wait_for_missing(&waiting.leases, id, hub);
        if waiting.outstanding > 0 {
            return;
        }
        let scope = waiting.wanted.scope;
        if !self
            .identity
            .as_ref()
            .is_some_and(|identity| identity.may_have(scope))
        {
            // Its rights were reread and are less than when it asked.
            return self.give_up_waiting(CommandError::UnauthorizedAccount, id, hub, now);
        }
        if let Some(waiting) = extra.waiting.take() {
            let reply = self.finish_subscribe(waiting, id, hub);
            self.push(reply, id, hub, now);
            self.run_held(id, hub, now);
        }
    }

    /// The broker did not confirm in time.
    pub fn on_command_timeout(&mut self, id: ConnId, hub: &mut Hub, now: Now) {
        hub.metrics.subscribes_timed_out_total += 1;
        self.give_up_waiting(CommandError::EventSourceUnavailable, id, hub, now);
    }

    /// Answers the waiting subscribe with an error, keeps nothing of it, and goes on with the held commands.
    fn give_up_waiting(&mut self, error: CommandError, id: ConnId, hub: &mut Hub, now: Now) {
        if let Some(waiting) = self.stop_waiting(id, hub) {
            hub.metrics.commands_failed_total += 1;
            let reply = command::errors(&mut hub.builder, &waiting.reply_id, [error]);
            self.push(reply, id, hub, now);
            self.run_held(id, hub, now);
        }
    }

    /// Runs held commands until one waits.
    fn run_held(&mut self, id: ConnId, hub: &mut Hub, now: Now) {
        loop {
            let Phase::Open {
                extra: Some(extra), ..
            } = &mut self.phase
            else {
                return;
            };
            if extra.waiting.is_some() {
                return;
            }
            let Some(held) = extra.held.pop_front() else {
                extra.is_paused = false;
                return self.drop_needless_extra();
            };
            extra.held_bytes -= held.bytes();
            self.run(&held.text, held.is_allowed, id, hub, now);
        }
    }
}

/// Leases what `waiting` needs in the months of now and has no lease of.
fn lease_months(waiting: &mut Waiting, hub: &mut Hub) {
    let months = hub.months.now();
    if waiting.months.replace(months) == Some(months) {
        return;
    }
    let mut bindings = Vec::new();
    for resolved in waiting.wanted.resolved(&hub.families) {
        hub.families.amqp_bindings(&resolved, months, &mut bindings);
    }
    let before = waiting.leases.len();
    for binding in bindings {
        let leased = waiting.leases.get(..before).unwrap_or_default();
        if !leased.iter().any(|lease| lease.binding == binding) {
            let id = hub.acquire(&binding, waiting.wanted.account).id;
            waiting.leases.push(Lease { id, binding });
        }
    }
}

/// Makes the session wait for those of `leases` that are not in force; returns how many.
fn wait_for_missing(leases: &[Lease], id: ConnId, hub: &mut Hub) -> usize {
    let mut missing = 0;
    for lease in leases {
        if !hub.broker.is_in_force(lease.id) {
            hub.broker.wait(lease.id, id.slot);
            missing += 1;
        }
    }
    missing
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
