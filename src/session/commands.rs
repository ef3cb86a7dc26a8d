//! What a command does (PROTOCOL 3): authenticate, authorise, subscribe, unsubscribe, ping, and the reply.
//!
//! Order of the checks, as on the platform: rate limit, JSON, token, the command's own keys, account, bindings.
//! A subscribe whose AMQP bindings are not all in force waits ([`super::held`]) and holds a lease on each of them. It
//! succeeds when all are in force. When the broker refuses one, or `request_timeout_ms` is over, it is refused and
//! nothing of it is kept. A command that the authenticator cannot judge yet waits as a whole ([`super::suspending`]). The
//! commands behind a subscribe that waits for the broker run when they arrive: a subscribe waits beside it, an unsubscribe
//! takes from it what it asked for, another identity changes its rights. Only their replies wait, except the reply to a ping.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::account::{AccountId, Scope};
use crate::auth::{Identity, Verdict};
use crate::limits::HELD_TOTAL_BYTES_MAX;
use crate::metrics::commands::{CommandAction, CommandResult};
use crate::protocol::command::{
    self, Action, Command, CommandError, CommandLimits, Label, MissingKeys, Unsubscribe,
};
use crate::protocol::frame::Frame;
use crate::protocol::reply::{self, EndReason};
use crate::routing::families::Families;
use crate::routing::waiters::Waiter;

use super::Session;
use super::binding_quota;
use super::clock::Now;
use super::errors::{CommandErrors, SourceTrouble};
use super::hub::{Context, Hub};
use super::replies::Reply;
use super::rights::authorised;
use super::waiting::{AskedOfStream, Progress, Waiting, Wanted};

/// The result of a command that is not refused.
pub(super) enum Outcome {
    /// A reply that is sent in its turn.
    Reply(Reply),
    /// A reply that is sent at once, whatever waits.
    Pong(Frame),
    /// A subscribe that waits for the broker.
    Waits(Waiting),
    /// The command waits for the authenticator; nothing of it is done but what its token alone brings.
    Suspended,
    /// The command closed the session.
    Closed,
}

/// What became of a command.
pub(super) struct Judged {
    /// The id of its reply.
    pub(super) reply_id: Box<str>,
    /// What it asks for.
    pub(super) verb: CommandAction,
    /// The reply, or the wait for it, or why it is refused.
    pub(super) result: Result<Outcome, CommandErrors>,
}

/// Where the reply of a command stands, and the command's time.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The number among the replies.
    pub(super) number: u32,
    /// When the command is given up, if it must wait.
    pub(super) due: Duration,
}

impl Session {
    /// Runs one command and sends its reply, unless the reply has to wait.
    pub(super) fn run(&mut self, text: &str, is_allowed: bool, cx: &mut Context<'_>) {
        let place = Place {
            number: self.replies().map_or(0, |replies| replies.next_number()),
            due: cx.hub.deadlines.command.due(cx.now.clock),
        };
        let judged = if is_allowed {
            self.judge(text, place, self.is_suspended(), cx)
        } else {
            let request_id = command::first_request_id(text);
            Judged {
                reply_id: reply_id(request_id.as_deref(), cx.hub),
                verb: CommandAction::Unknown,
                result: Err(self.rate_limited(cx.hub)),
            }
        };
        let Judged {
            reply_id,
            verb,
            mut result,
        } = judged;
        if let Ok(Outcome::Suspended) = result {
            match self.suspend(text, verb, place.due, cx) {
                Ok(()) => {}
                Err(refusals) => result = Err(refusals),
            }
        }
        if cx.hub.trace.is_on() {
            self.tell_command(text, &result, cx);
        }
        count_judged(verb, &result, place.due, cx);
        match result {
            Ok(Outcome::Reply(reply)) => self.tell(reply, cx),
            Ok(Outcome::Pong(frame)) => self.push(frame, cx),
            Ok(Outcome::Waits(waiting)) => {
                cx.hub.metrics.subscribes_waited_total += 1;
                cx.hub.deadlines.command.begin(cx.now.clock, cx.id);
                if let Some(rare) = self.rare_mut() {
                    rare.replies.push_waiting(waiting, &mut cx.hub.held);
                }
                self.shorten_replies(cx);
            }
            Ok(Outcome::Closed | Outcome::Suspended) => {}
            Err(refusals) => {
                let reply = refusals.reply(&reply_id, cx.hub);
                self.tell(reply, cx);
            }
        }
    }

    /// Does what the text of a command asks for, and returns what became of it. `is_behind`: commands
    /// before it wait for the authenticator, so it waits too, unless it is answered at once.
    pub(super) fn judge(
        &mut self,
        text: &str,
        place: Place,
        is_behind: bool,
        cx: &mut Context<'_>,
    ) -> Judged {
        let limits = CommandLimits {
            metadata_bytes_max: cx.hub.limits.metadata_bytes_max,
        };
        let command = match command::parse(text, &limits) {
            Ok(command) => command,
            Err(error) => {
                return Judged {
                    reply_id: reply_id(None, cx.hub),
                    verb: CommandAction::Unknown,
                    result: Err(error.into()),
                };
            }
        };
        let reply_id = reply_id(command.request_id.as_deref(), cx.hub);
        let verb = command.verb;
        let result = if is_behind && !self.is_answered_at_once(&command, cx) {
            self.ask_ahead(&command, cx);
            Ok(Outcome::Suspended)
        } else {
            self.execute(command, &reply_id, place, cx)
        };
        Judged {
            reply_id,
            verb,
            result,
        }
    }

    /// Sends a reply in its turn.
    fn tell(&mut self, reply: Reply, cx: &mut Context<'_>) {
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

    pub(super) fn send(&mut self, mut reply: Reply, cx: &mut Context<'_>) {
        let then = match &mut reply {
            Reply::Subscribed { answer, .. } => answer.as_mut().and_then(|answer| {
                self.bring_up_to_date(answer, cx);
                answer.then
            }),
            Reply::Unsubscribed { .. } | Reply::Frame(_) => None,
        };
        let frame = {
            let Hub {
                builder,
                subscriptions,
                ..
            } = &mut *cx.hub;
            let subscribed = subscriptions
                .index()
                .subscriptions(&self.subscriptions)
                .map(|one| one.binding());
            match reply {
                Reply::Subscribed { id, answer } => {
                    let resumption = answer.as_ref().map(|answer| &answer.resumption);
                    reply::subscribed(builder, &id, subscribed, resumption)
                }
                Reply::Unsubscribed { id, removed } => {
                    let removed = removed.iter().map(AsRef::as_ref);
                    reply::unsubscribed(builder, &id, removed, subscribed)
                }
                Reply::Frame(frame) => frame,
            }
        };
        self.push(frame, cx);
        if let Some(end) = then {
            self.tell_replay_end(end, cx);
        }
    }

    fn rate_limited(&self, hub: &Hub) -> CommandErrors {
        CommandError::RateLimited(self.peer(hub).to_string().into()).into()
    }

    /// Does what a command asks for, or tells that it must wait for the authenticator: then it is run again from its
    /// beginning.
    fn execute(
        &mut self,
        command: Command<'_>,
        reply_id: &str,
        place: Place,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, CommandErrors> {
        let claimed = self.claim(command.auth_token?.as_deref(), cx)?;
        let Some(claimed) = claimed else {
            return Ok(Outcome::Suspended);
        };
        let (identity, action) = if claimed.is_proven() {
            (claimed, command.action)
        } else {
            // Only the platform knows the token, and it answers for an account.
            let action = command.action?;
            match self.prove(&claimed, &action.0, cx)? {
                Some(identity) => (identity, Ok(action)),
                None => return Ok(Outcome::Suspended),
            }
        };
        if !self.is_current(&identity) {
            if !self.is_all_known(&identity, cx)? {
                return Ok(Outcome::Suspended);
            }
            self.authenticate(&identity, cx)?;
            if !self.is_open() {
                return Ok(Outcome::Closed);
            }
        }
        let (action, label) = action?;
        if let Action::Subscribe {
            account_id,
            bindings,
            ..
        } = &action
            && !self.is_known(&identity, account_id.as_deref(), bindings, cx)?
        {
            return Ok(Outcome::Suspended);
        }
        self.keep_label(&label, identity.account_id(), cx.hub);
        match action {
            Action::Ping => {
                let place = self.place(cx);
                let frame = reply::pong(&mut cx.hub.builder, reply_id, place);
                Ok(Outcome::Pong(frame))
            }
            Action::Unsubscribe(what) => Ok(Outcome::Reply(Reply::Unsubscribed {
                id: reply_id.into(),
                removed: self.unsubscribe(&what, cx),
            })),
            Action::Subscribe {
                account_id,
                bindings,
                resume,
            } => {
                let wanted = self.authorise(account_id.as_deref(), &bindings, &identity, cx.hub)?;
                let waiting = Waiting {
                    reply_id: reply_id.into(),
                    request_id: command.request_id.as_deref().map(Box::from),
                    wanted,
                    resume,
                    stream: AskedOfStream::No,
                    months: None,
                    leases: Vec::new(),
                    outstanding: 0,
                    due: place.due,
                };
                self.subscribe(waiting, place, cx)
            }
        }
    }

    /// The identity that the session runs as, if its token has been verified and is good.
    pub(super) fn authenticated(&self, now: Now) -> Option<&Arc<Identity>> {
        let identity = self.identity.as_ref()?;
        (identity.is_proven() && !identity.has_expired(now.unix())).then_some(identity)
    }

    fn is_current(&self, identity: &Arc<Identity>) -> bool {
        let own = self.identity.as_ref();
        own.is_some_and(|own| Arc::ptr_eq(own, identity))
    }

    /// The identity that the command is to run as: that of the session, or that of the token in the command, which may not
    /// be [proven](Identity::is_proven) yet. `None`: a thread is asked.
    fn claim(
        &mut self,
        auth_token: Option<&str>,
        cx: &mut Context<'_>,
    ) -> Result<Option<Arc<Identity>>, CommandError> {
        let current = self
            .identity
            .as_ref()
            .filter(|identity| !identity.has_expired(cx.now.unix()));
        let token = match (auth_token, current) {
            (None, Some(identity)) => return Ok(Some(cx.hub.authenticator.current(identity))),
            (Some(token), Some(identity)) if identity.is_token(token) => {
                return Ok(Some(cx.hub.authenticator.current(identity)));
            }
            (None, None) if self.identity.is_none() => {
                return Err(CommandError::AuthenticationRequired);
            }
            (None, None) => return Err(CommandError::AuthenticationFailed),
            (Some(token), _) => token,
        };
        let asker = self.asker(cx);
        match cx.hub.authenticator.identify(token, asker, cx.now.into()) {
            Verdict::Accepted(identity) => Ok(Some(identity)),
            Verdict::Asks => Ok(None),
            Verdict::Refused => {
                cx.hub.metrics.authentications_failed_total += 1;
                Err(CommandError::AuthenticationFailed)
            }
            Verdict::Unavailable => Err(CommandError::AuthenticationUnavailable),
        }
    }

    /// Proves an identity by the account that the command names (PROTOCOL 7, `crossbar`). `None`: the platform is asked.
    fn prove(
        &self,
        identity: &Arc<Identity>,
        action: &Action<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Option<Arc<Identity>>, CommandError> {
        let named = match action {
            Action::Subscribe {
                account_id,
                bindings,
                ..
            } => {
                let missing = MissingKeys {
                    account_id: account_id.is_none(),
                    binding: bindings.is_empty(),
                };
                if missing.account_id || missing.binding {
                    return Err(CommandError::MissingKeys(missing));
                }
                account_id.as_ref()
            }
            Action::Unsubscribe(Unsubscribe::Account(account_id)) => Some(account_id),
            Action::Unsubscribe(Unsubscribe::Bindings { account_id, .. }) => account_id.as_ref(),
            Action::Unsubscribe(Unsubscribe::All) | Action::Ping => None,
        };
        let named = named.ok_or(CommandError::missing_account())?;
        let account = match scope_of(named) {
            Some(Scope::One(account)) => account,
            Some(Scope::Any) => return Err(CommandError::UnauthorizedWildcard),
            None => return Err(CommandError::UnauthorizedAccount),
        };
        let may_see = self.may_see(identity, account, |_| false, cx);
        if may_see == Err(CommandError::AuthenticationFailed) {
            cx.hub.metrics.authentications_failed_total += 1;
        }
        match may_see? {
            Some(true) => {
                let proven = cx.hub.authenticator.current(identity);
                match proven.is_proven() {
                    true => Ok(Some(proven)),
                    false => Err(CommandError::AuthenticationUnavailable),
                }
            }
            Some(false) => Err(CommandError::UnauthorizedAccount),
            None => Ok(None),
        }
    }

    /// Runs as a proven identity from now on.
    fn authenticate(
        &mut self,
        identity: &Arc<Identity>,
        cx: &mut Context<'_>,
    ) -> Result<(), CommandError> {
        let account = identity.account_id();
        let is_new = account != self.identity.as_ref().and_then(|own| own.account_id());
        if let Some(account) = account.filter(|_| is_new)
            && let Some(max) = cx.hub.occupancy.accounts.full(&account)
        {
            return Err(CommandError::TooManySessions(max));
        }
        self.become_identity(identity.clone(), EndReason::Identity, false, cx);
        Ok(())
    }

    /// Whether it is known if the identity may have these bindings of the account. False: the platform is asked.
    fn is_known(
        &self,
        identity: &Arc<Identity>,
        account_id: Option<&str>,
        bindings: &[Cow<'_, str>],
        cx: &mut Context<'_>,
    ) -> Result<bool, CommandError> {
        if bindings.is_empty() || !cx.hub.authenticator.is_asked_for(identity) {
            return Ok(true);
        }
        let account = match account_id {
            Some(account_id) => AccountId::parse(account_id),
            None => identity.account_id(),
        };
        let Some(account) = account else {
            return Ok(true);
        };
        let needs_realm = |families: &Families| {
            let scope = Scope::One(account);
            bindings.iter().any(|one| families.needs_realm(one, scope))
        };
        let may_see = self.may_see(identity, account, needs_realm, cx)?;
        Ok(may_see.is_some())
    }

    fn keep_label(&mut self, label: &Label<'_>, account: Option<AccountId>, hub: &mut Hub) {
        if label.name.is_none() && label.metadata.is_none() {
            return;
        }
        if let Some(rare) = self.rare_mut()
            && !hub.labels.keep(&mut rare.label, label, account)
        {
            hub.metrics.labels_left_out_total += 1;
        }
    }

    /// The client bindings, if the identity may have all of them; otherwise every reason against it. They are for the
    /// identity's own account unless the command names one.
    fn authorise(
        &self,
        account_id: Option<&str>,
        bindings: &[Cow<'_, str>],
        identity: &Identity,
        hub: &Hub,
    ) -> Result<Wanted, CommandErrors> {
        let sight = hub.authenticator.sight(identity);
        let superduper = sight.is_superduper();
        let own = || identity.account_id().map(Scope::One);
        let missing = MissingKeys {
            account_id: account_id.is_none() && own().is_none(),
            binding: bindings.is_empty(),
        };
        if missing.account_id || missing.binding {
            return Err(CommandError::MissingKeys(missing).into());
        }
        let scope = account_id.map_or_else(own, scope_of);
        let scope = scope.ok_or(CommandError::UnauthorizedAccount)?;
        let realm = authorised(scope, &sight)?;
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
            if let Err(error) =
                hub.subscriptions
                    .families()
                    .resolve(binding, scope, wanted.rights())
            {
                errors.push(error);
            }
            wanted.bindings.push(binding.as_ref().into());
        }
        if !errors.is_empty() {
            return Err(CommandErrors::Bindings(errors));
        }
        if self.would_have_more_than(max, &wanted, hub) {
            return Err(CommandError::TooManySubscriptions(max).into());
        }
        Ok(wanted)
    }

    /// Whether the session would have more subscriptions than `max` together with those that it waits for and these.
    /// Linear in its subscriptions, and near the limit in all that it waits for.
    fn would_have_more_than(&self, max: usize, wanted: &Wanted, hub: &Hub) -> bool {
        let live = || hub.subscriptions.index().subscriptions(&self.subscriptions);
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

    /// Subscribes at once when every AMQP binding is in force, and waits otherwise. What the session has already must be in
    /// force too, so that success always means that events come.
    fn subscribe(
        &mut self,
        mut waiting: Waiting,
        place: Place,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, CommandErrors> {
        let mut within = self.check_quota(&waiting.wanted, cx.hub);
        let quota = cx.hub.limits.bindings;
        while within.is_err() && quota.make_room(&waiting.wanted, &mut cx.hub.subscriptions) {
            within = self.check_quota(&waiting.wanted, cx.hub);
        }
        within?;
        cx.hub.keep_in_stream(&waiting);
        cx.hub.subscriptions.lease(&mut waiting);
        let waiter = Waiter::new(cx.id.slot, place.number);
        match cx.hub.subscriptions.wait_for_leases(&mut waiting, waiter) {
            Progress::InForce
                if cx.hub.held.bytes <= HELD_TOTAL_BYTES_MAX
                    && self.asks_stream(place.number, &mut waiting, cx) =>
            {
                Ok(Outcome::Waits(waiting))
            }
            Progress::InForce => Ok(Outcome::Reply(self.finish_subscribe(waiting, cx))),
            Progress::Waits if cx.hub.held.bytes <= HELD_TOTAL_BYTES_MAX => {
                Ok(Outcome::Waits(waiting))
            }
            Progress::Waits => {
                cx.hub.subscriptions.release_leases(&mut waiting, waiter);
                Err(SourceTrouble::GivenUp.into())
            }
            Progress::Refused => {
                cx.hub.subscriptions.release_leases(&mut waiting, waiter);
                Err(SourceTrouble::Refused.into())
            }
        }
    }

    /// Whether the session may have this too ([`binding_quota`]).
    fn check_quota(&self, wanted: &Wanted, hub: &Hub) -> Result<(), CommandError> {
        let (quota, subscriptions) = (hub.limits.bindings, &hub.subscriptions);
        let waits_for = self.replies().map_or(0, |replies| replies.wanted());
        let has = subscriptions.index().len(&self.subscriptions) + waits_for;
        if quota.is_far(has, wanted.bindings.len(), wanted.account, subscriptions) {
            return Ok(());
        }
        let live = || subscriptions.index().subscriptions(&self.subscriptions);
        let waiting = || {
            let waiting = self.replies().into_iter().flat_map(|all| all.waiting());
            waiting.flat_map(|(_, one)| one.wanted.resolved(subscriptions.families()))
        };
        let leases = self.replies().map_or(0, |replies| replies.leases());
        let new = wanted.resolved(subscriptions.families());
        quota.check(live, (leases, waiting), new, wanted.account, subscriptions)
    }

    /// Ends subscriptions, and those that are waited for, and returns their client bindings. Linear in what the session has,
    /// waits for and names.
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
            // No account has this name, so no subscription is for it.
            Some(None) => return Vec::new(),
            Some(scope) => scope,
            None => None,
        };
        let mut removed = Vec::new();
        let Some(bindings) = bindings else {
            cx.hub
                .subscriptions
                .unsubscribe(&mut self.subscriptions, scope, None, &mut removed);
            let is_meant = |one: Scope, _: &str| scope.is_none_or(|scope| one == scope);
            self.withdraw(is_meant, cx, &mut removed);
            return removed.into_iter().map(|(_, binding)| binding).collect();
        };
        // The reply names them in the order of the command.
        let mut order: HashMap<&str, usize> = HashMap::new();
        for binding in bindings {
            let next = order.len();
            order.entry(binding).or_insert(next);
        }
        cx.hub.subscriptions.unsubscribe(
            &mut self.subscriptions,
            scope,
            Some(bindings),
            &mut removed,
        );
        let is_meant = |one: Scope, binding: &str| {
            scope.is_none_or(|scope| one == scope) && order.contains_key(binding)
        };
        self.withdraw(is_meant, cx, &mut removed);
        removed.sort_by_key(|(_, binding)| order.get(&**binding));
        removed.into_iter().map(|(_, binding)| binding).collect()
    }

    /// Takes what an unsubscribe means from the subscribes that wait, and notes what is not noted yet. A subscribe that has
    /// nothing left to wait for succeeds.
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
                cx.hub
                    .subscriptions
                    .release_leases(&mut waiting, Waiter::new(cx.id.slot, number));
                cx.count_command(CommandAction::Subscribe, CommandResult::Ok, waiting.due);
                let answer = self.answer_withdrawn(waiting.resume, cx);
                let reply = Reply::Subscribed {
                    id: waiting.reply_id,
                    answer,
                };
                self.settle(number, reply, cx.hub);
            } else {
                self.put_back(number, waiting, cx.hub);
            }
        }
    }
}

/// Counts a command, if it is known what became of it. `due`: when it would have been given up.
pub(super) fn count_judged(
    verb: CommandAction,
    result: &Result<Outcome, CommandErrors>,
    due: Duration,
    cx: &mut Context<'_>,
) {
    let result = match result {
        Ok(Outcome::Reply(_) | Outcome::Pong(_)) => CommandResult::Ok,
        Ok(Outcome::Closed) => CommandResult::Abandoned,
        Ok(Outcome::Waits(_) | Outcome::Suspended) => return,
        Err(refusals) => refusals.result(),
    };
    cx.count_command(verb, result, due);
}

pub(super) fn reply_id(request_id: Option<&str>, hub: &mut Hub) -> Box<str> {
    match request_id {
        Some(request_id) => request_id.into(),
        None => reply::generated_request_id(hub.generate_request_id()).into(),
    }
}

fn scope_of(account_id: &str) -> Option<Scope> {
    match account_id {
        "*" => Some(Scope::Any),
        account_id => AccountId::parse(account_id).map(Scope::One),
    }
}
