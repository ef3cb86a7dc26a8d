//! What a session tells those who look (PROTOCOL 8). Called only while somebody does.
//!
//! Invariant: of a command nothing is told but what [`CommandFacts`] names, and where that holds the command's token, it is
//! masked.

use std::borrow::Cow;
use std::sync::Arc;

use crate::account::AccountId;
use crate::protocol::command::{self, Action, Command, CommandLimits, Unsubscribe};
use crate::protocol::frame::Frame;

use super::Session;
use super::close::CloseReason;
use super::commands::Outcome;
use super::errors::CommandErrors;
use super::hub::{Context, Hub};
use super::id::ConnId;
use super::trace::{CommandFacts, CommandOutcome, Who};
use super::waiting::Waiting;

/// Stands for a token.
const MASK: &str = "(token)";

impl Session {
    /// Who the session is, for those who look.
    #[must_use]
    pub fn who(&self, id: ConnId, hub: &Hub) -> Who {
        let own = self.identity.as_ref().and_then(|own| own.account_id());
        let first = || {
            let index = hub.subscriptions.index();
            let mut subscriptions = index.subscriptions(&self.subscriptions);
            subscriptions.find_map(|one| one.scope().account())
        };
        Who {
            id,
            peer: self.peer(hub),
            account: own.or_else(first),
        }
    }

    /// The SIP realm of `account`, if the session's identity may see that account and the realm is known.
    #[must_use]
    pub fn realm_of(&self, account: AccountId, hub: &Hub) -> Option<Arc<str>> {
        let identity = self.identity.as_ref()?;
        hub.authenticator.sight(identity).realm_of(account)
    }

    pub(super) fn tell_opened(&self, cx: &mut Context<'_>) {
        let who = self.who(cx.id, cx.hub);
        cx.hub.trace.opened(&who, self.shape.style(), cx.now);
    }

    /// To be called while the session still has its subscriptions. `frame`: the close frame that it is sent.
    pub(super) fn tell_closed(
        &self,
        reason: CloseReason,
        frame: Option<&Frame>,
        cx: &mut Context<'_>,
    ) {
        let who = self.who(cx.id, cx.hub);
        // A close frame without a body echoes one without a code (RFC 6455 section 7.1.5).
        let code = frame.and_then(|frame| frame.payload().first_chunk());
        let code = code.map(|code| u16::from_be_bytes(*code));
        cx.hub.trace.closed(&who, reason, code, cx.now);
    }

    pub(super) fn tell_ended(&self, bindings: &[Box<str>], reason: &str, cx: &mut Context<'_>) {
        let who = self.who(cx.id, cx.hub);
        cx.hub
            .trace
            .subscriptions_ended(&who, bindings, reason, cx.now);
    }

    /// Tells what came of a command. One that has closed the session is told by its close.
    pub(super) fn tell_command(
        &self,
        text: &str,
        result: &Result<Outcome, CommandErrors>,
        cx: &mut Context<'_>,
    ) {
        let limits = CommandLimits {
            metadata_bytes_max: cx.hub.limits.metadata_bytes_max,
        };
        let command = command::parse(text, &limits).ok();
        let token = command.as_ref().and_then(|command| {
            let token = command.auth_token.as_ref().ok()?;
            token.as_deref()
        });
        let named = command.as_ref().map(Named::of).unwrap_or_default();
        let mask = |text| self.masked(text, token);
        let (request_id, account) = (named.request_id.map(mask), named.account.map(mask));
        let bindings: Vec<Cow<'_, str>> = named.bindings.into_iter().map(mask).collect();
        let asked = CommandFacts {
            action: named.action,
            request_id: request_id.as_deref(),
            account: account.as_deref(),
            bindings: bindings.iter().map(AsRef::as_ref).collect(),
        };
        let mut errors = Vec::new();
        let came = match result {
            Ok(Outcome::Reply(_) | Outcome::Pong(_)) => CommandOutcome::Ok,
            Ok(Outcome::Waits(_)) => CommandOutcome::Waits("broker"),
            Ok(Outcome::Suspended) => CommandOutcome::Waits("authenticator"),
            Ok(Outcome::Closed) => return,
            Err(refusals) => {
                let texts = refusals.texts().into_iter();
                errors.extend(texts.map(|text| self.masked(&text, token).into_owned()));
                CommandOutcome::Errors(&errors)
            }
        };
        let who = self.who(cx.id, cx.hub);
        cx.hub.trace.command(&who, &asked, came, cx.now);
    }

    /// Tells what came of a subscribe that has waited for the broker.
    pub(super) fn tell_waited(
        &self,
        waiting: &Waiting,
        refusals: Option<&CommandErrors>,
        cx: &mut Context<'_>,
    ) {
        let account = waiting.wanted.scope.account().map(|it| it.to_string());
        let request_id = waiting.request_id.as_deref();
        let request_id = request_id.map(|text| self.masked(text, None));
        let bindings = waiting.wanted.bindings.iter();
        let bindings: Vec<_> = bindings.map(|text| self.masked(text, None)).collect();
        let asked = CommandFacts {
            action: Some("subscribe"),
            request_id: request_id.as_deref(),
            account: account.as_deref(),
            bindings: bindings.iter().map(AsRef::as_ref).collect(),
        };
        let errors = refusals.map(CommandErrors::texts);
        let came = errors
            .as_ref()
            .map_or(CommandOutcome::Ok, |errors| CommandOutcome::Errors(errors));
        let who = self.who(cx.id, cx.hub);
        cx.hub.trace.command(&who, &asked, came, cx.now);
    }

    /// The text, without the token of its command, or of the session at its end, that it may hold by a client's mistake.
    fn masked<'t>(&self, text: &'t str, token: Option<&str>) -> Cow<'t, str> {
        if let Some(token) = token
            && text.contains(token)
        {
            return Cow::Owned(text.replace(token, MASK));
        }
        let is_token = |rest: &str| {
            let own = self.identity.as_ref();
            own.is_some_and(|own| own.has_own_token() && own.is_token(rest))
        };
        let mut starts = text.match_indices('.').map(|(dot, _)| dot + 1);
        let start = std::iter::once(0).chain(&mut starts).find(|start| {
            let rest = text.get(*start..);
            rest.is_some_and(is_token)
        });
        match start {
            Some(start) => Cow::Owned(format!("{}{MASK}", text.get(..start).unwrap_or_default())),
            None => Cow::Borrowed(text),
        }
    }
}

/// What a command names, as the client wrote it.
#[derive(Default)]
struct Named<'c> {
    action: Option<&'static str>,
    request_id: Option<&'c str>,
    account: Option<&'c str>,
    bindings: Vec<&'c str>,
}

impl<'c> Named<'c> {
    fn of(command: &'c Command<'_>) -> Self {
        let (action, account, bindings) = match command.action.as_ref().map(|(action, _)| action) {
            Ok(Action::Subscribe {
                account_id,
                bindings,
                ..
            }) => ("subscribe", account_id.as_deref(), bindings.as_slice()),
            Ok(Action::Unsubscribe(Unsubscribe::Bindings {
                account_id,
                bindings,
            })) => ("unsubscribe", account_id.as_deref(), bindings.as_slice()),
            Ok(Action::Unsubscribe(Unsubscribe::Account(account_id))) => {
                ("unsubscribe", Some(&**account_id), &[][..])
            }
            Ok(Action::Unsubscribe(Unsubscribe::All)) => ("unsubscribe", None, &[][..]),
            Ok(Action::Ping) => ("ping", None, &[][..]),
            Err(_) => {
                return Self {
                    request_id: command.request_id.as_deref(),
                    ..Self::default()
                };
            }
        };
        Self {
            action: Some(action),
            request_id: command.request_id.as_deref(),
            account,
            bindings: bindings.iter().map(AsRef::as_ref).collect(),
        }
    }
}
