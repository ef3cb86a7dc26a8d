//! Commands that wait for the authenticator: a thread checks a token, or asks the platform (PROTOCOL 7).
//!
//! A command that cannot be judged yet is kept as its text, and runs again from its beginning when the answer is there. The
//! commands behind it are kept too, because they run as the identity that it may bring; what they will ask is asked
//! ahead, so that their answers come side by side. A ping of an authenticated session does not wait.
//!
//! Invariants: a command is kept with its place among the replies ([`super::replies`]) and with its own time. The commands
//! go on in their order.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::account::AccountId;
use crate::auth::{Asker, Identity, Moment, Right};
use crate::limits::{
    FIRST_TOTAL_BYTES_MAX, HELD_TOTAL_BYTES_MAX, RESUMED_COMMANDS_OF_SESSION_MAX,
    SUSPENDED_BYTES_MAX,
};
use crate::metrics::commands::CommandAction;
use crate::protocol::command::{self, Action, Command, CommandError};
use crate::routing::families::Families;

use super::Session;
use super::clock::Now;
use super::commands::{Judged, Outcome, Place, count_judged, reply_id};
use super::errors::CommandErrors;
use super::hub::{Context, Hub};
use super::replies::Reply;
use super::suspended::{Resumed, Suspended};

impl From<Now> for Moment {
    fn from(now: Now) -> Self {
        Self {
            unix: now.unix(),
            clock: now.clock,
        }
    }
}

impl Session {
    /// Whether a command waits for the authenticator.
    pub(super) fn is_suspended(&self) -> bool {
        self.replies().is_some_and(|replies| replies.is_suspended())
    }

    /// Who asks, for the authenticator.
    pub(super) fn asker(&self, cx: &Context<'_>) -> Asker {
        Asker {
            connection: cx.id.to_word(),
            network: self.peer(cx.hub).network(),
        }
    }

    /// Keeps a command until the authenticator has its answer.
    ///
    /// # Errors
    /// Too much is kept already, of all sessions, or of this one, whose token nobody has verified yet.
    pub(super) fn suspend(
        &mut self,
        text: &str,
        verb: CommandAction,
        due: Duration,
        cx: &mut Context<'_>,
    ) -> Result<(), CommandErrors> {
        let bytes = self.replies().map_or(0, |replies| replies.bytes());
        let (is_over, total_max) = match bytes {
            0 => (false, FIRST_TOTAL_BYTES_MAX),
            _ => (
                bytes + text.len() > SUSPENDED_BYTES_MAX,
                HELD_TOTAL_BYTES_MAX,
            ),
        };
        if self.has_no_proof() && is_over || cx.hub.held.bytes > total_max {
            return Err(CommandError::AuthenticationUnavailable.into());
        }
        cx.hub.metrics.commands_suspended_total += 1;
        cx.hub.deadlines.command.begin(cx.now.clock, cx.id);
        let suspended = Suspended {
            text: text.into(),
            verb,
            due,
        };
        if let Some(rare) = self.rare_mut() {
            rare.replies.push_suspended(suspended, &mut cx.hub.held);
        }
        self.shorten_replies(cx);
        Ok(())
    }

    /// Whether a command is answered although others wait before it: a ping that needs no other identity.
    pub(super) fn is_answered_at_once(&self, command: &Command<'_>, cx: &Context<'_>) -> bool {
        let is_same = |identity: &Arc<Identity>| match &command.auth_token {
            Ok(None) => true,
            Ok(Some(token)) => identity.is_token(token),
            Err(_) => false,
        };
        matches!(&command.action, Ok((Action::Ping, _)))
            && self.authenticated(cx.now).is_some_and(is_same)
    }

    /// Asks what a command behind others will have to know, as far as that can be told.
    pub(super) fn ask_ahead(&self, command: &Command<'_>, cx: &mut Context<'_>) {
        let Ok((Action::Subscribe { account_id, .. }, _)) = &command.action else {
            return;
        };
        let identity = match &command.auth_token {
            Ok(None) => self.identity.clone(),
            Ok(Some(token)) => match &self.identity {
                Some(identity) if identity.is_token(token) => Some(identity.clone()),
                Some(_) | None => cx.hub.authenticator.known(token, cx.now.into()),
            },
            Err(_) => None,
        };
        if let Some(identity) = identity
            && let Some(account) = match account_id {
                Some(account_id) => AccountId::parse(account_id),
                None => identity.account_id(),
            }
        {
            // Whatever it is, the command will be told when it runs.
            let _answer = self.may_see(&identity, account, |_| false, cx);
        }
    }

    /// Whether the identity may see an account; `None`: the platform is asked, and the session is told when to look again.
    /// `needs_realm`: whether the account's realm must be known too; called only where it is not.
    ///
    /// # Errors
    /// The platform does not take the token, or nobody can say.
    pub(super) fn may_see(
        &self,
        identity: &Arc<Identity>,
        account: AccountId,
        needs_realm: impl FnOnce(&Families) -> bool,
        cx: &mut Context<'_>,
    ) -> Result<Option<bool>, CommandError> {
        let asker = self.asker(cx);
        let Hub {
            authenticator,
            subscriptions,
            ..
        } = &mut *cx.hub;
        let needs_realm = || needs_realm(subscriptions.families());
        match authenticator.authorise(identity, account, needs_realm, asker, cx.now.into()) {
            Right::Yes => Ok(Some(true)),
            Right::No => Ok(Some(false)),
            Right::Asks => Ok(None),
            Right::TokenRefused => Err(CommandError::AuthenticationFailed),
            Right::Unavailable => Err(CommandError::AuthenticationUnavailable),
        }
    }

    /// Whether it is known if `identity` may have what the session is subscribed to, and waits for, so that it can be judged
    /// by it. False: the platform is asked.
    ///
    /// # Errors
    /// The platform does not take the token, or nobody can say.
    pub(super) fn is_all_known(
        &self,
        identity: &Arc<Identity>,
        cx: &mut Context<'_>,
    ) -> Result<bool, CommandError> {
        if !cx.hub.authenticator.is_asked_for(identity) {
            return Ok(true);
        }
        let live = cx
            .hub
            .subscriptions
            .index()
            .subscriptions(&self.subscriptions);
        let live = live.map(|one| (one.scope(), one.realm().is_some()));
        let waiting = self.replies().into_iter().flat_map(|all| all.waiting());
        let waiting = waiting.map(|(_, one)| (one.wanted.scope, one.wanted.realm.is_some()));
        let all = live.chain(waiting);
        let accounts = all.filter_map(|(scope, has_realm)| Some((scope.account()?, has_realm)));
        let accounts: HashSet<(AccountId, bool)> = accounts.collect();
        let mut is_known = true;
        for (account, needs_realm) in accounts {
            let may_see = self.may_see(identity, account, |_| needs_realm, cx)?;
            is_known &= may_see.is_some();
        }
        Ok(is_known)
    }

    /// The authenticator has an answer that the session, or its handshake, may wait for. Runs at most
    /// [`RESUMED_COMMANDS_OF_SESSION_MAX`] commands.
    pub fn on_answered(&mut self, cx: &mut Context<'_>) -> Resumed {
        let mut resumed = Resumed::default();
        if self.is_in_handshake() {
            self.resume_handshake(cx);
            return resumed;
        }
        while let Some(replies) = self.replies_mut()
            && let Some((number, suspended)) = replies.take_suspended(&mut cx.hub.held)
        {
            resumed.commands += 1;
            if !self.go_on(number, suspended, cx) {
                break;
            }
            if resumed.commands == RESUMED_COMMANDS_OF_SESSION_MAX {
                resumed.has_more = self.is_suspended();
                break;
            }
        }
        cx.hub.metrics.commands_resumed_total += resumed.commands as u64;
        self.send_ready(cx);
        self.drop_empty_rare();
        resumed
    }

    /// Runs a command that was taken out. False: it waits again.
    fn go_on(&mut self, number: u32, suspended: Box<Suspended>, cx: &mut Context<'_>) -> bool {
        let place = Place {
            number,
            due: suspended.due,
        };
        let Judged {
            reply_id,
            verb,
            result,
        } = self.judge(&suspended.text, place, false, cx);
        if cx.hub.trace.is_on() && !matches!(result, Ok(Outcome::Suspended)) {
            self.tell_command(&suspended.text, &result, cx);
        }
        count_judged(verb, &result, place.due, cx);
        match result {
            Ok(Outcome::Suspended) => {
                if let Some(replies) = self.replies_mut() {
                    replies.suspend_again(number, suspended, &mut cx.hub.held);
                }
                return false;
            }
            Ok(Outcome::Reply(reply)) => self.settle(number, reply, cx.hub),
            Ok(Outcome::Pong(frame)) => self.settle(number, Reply::Frame(frame), cx.hub),
            Ok(Outcome::Waits(waiting)) => {
                cx.hub.metrics.subscribes_waited_total += 1;
                self.put_back(number, Box::new(waiting), cx.hub);
            }
            Ok(Outcome::Closed) => {}
            Err(refusals) => {
                let reply = refusals.reply(&reply_id, cx.hub);
                self.settle(number, reply, cx.hub);
            }
        }
        true
    }

    /// Refuses the oldest command that waits for the authenticator, if it has this number. False: it is another.
    pub(super) fn give_up_suspended(&mut self, number: u32, cx: &mut Context<'_>) -> bool {
        let Some(replies) = self.replies_mut() else {
            return false;
        };
        if replies.first_suspended() != Some(number) {
            return false;
        }
        let Some((number, suspended)) = replies.take_suspended(&mut cx.hub.held) else {
            return false;
        };
        let request_id = command::first_request_id(&suspended.text);
        let reply_id = reply_id(request_id.as_deref(), cx.hub);
        let refusals = CommandErrors::from(CommandError::AuthenticationUnavailable);
        cx.count_command(suspended.verb, refusals.result(), suspended.due);
        let result = Err(refusals);
        if cx.hub.trace.is_on() {
            self.tell_command(&suspended.text, &result, cx);
        }
        let Err(refusals) = result else {
            return true;
        };
        let reply = refusals.reply(&reply_id, cx.hub);
        self.settle(number, reply, cx.hub);
        true
    }
}
