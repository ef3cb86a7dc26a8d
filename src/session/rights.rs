//! What another identity, or other rights of the same, change (PROTOCOL 3 and 4): what the session has and waits for
//! is resolved again, and what it may no longer have ends, which it is told.
//!
//! A subscription whose account has another realm now goes on with that realm's events: at once in the index, so that
//! nothing of the old realm comes any more; and as soon as the broker confirms the new AMQP binding, until when events
//! may be missed, which the session is told as of any lost binding (notice `gap`, reason `event_source`).

use std::sync::Arc;

use crate::account::Scope;
use crate::auth::{Identity, Verdict};
use crate::protocol::command::CommandError;
use crate::protocol::reply::{self, EndReason};
use crate::routing::families::{Families, Resolved, Rights};
use crate::routing::index::Revision;

use super::Session;
use super::binding_quota;
use super::close::CloseReason;
use super::hub::{Context, Hub, SourceState};

impl Session {
    /// Runs as `identity` from now on, and counts for its account.
    pub(super) fn take_identity(&mut self, identity: Arc<Identity>, hub: &mut Hub) {
        hub.tokens_expire |= identity.expires().is_some();
        self.give_account_back(hub);
        if let Some(account) = identity.account_id() {
            hub.occupancy.accounts.take(account);
        }
        self.identity = Some(identity);
    }

    /// The session has no identity any more, and counts for no account.
    pub(super) fn give_account_back(&mut self, hub: &mut Hub) {
        if let Some(account) = self
            .identity
            .take()
            .and_then(|identity| identity.account_id())
        {
            hub.occupancy.accounts.give_back(&account);
        }
    }

    /// As [`Session::take_identity`], for a session that may have subscriptions; it may be closed after this. Returns
    /// how many subscriptions were looked at: none where the two are known to see the same.
    pub(super) fn become_identity(
        &mut self,
        identity: Arc<Identity>,
        reason: EndReason,
        cx: &mut Context<'_>,
    ) -> usize {
        let before = self.identity.clone();
        self.take_identity(identity.clone(), cx.hub);
        let Some(before) = before.filter(|before| !identity.has_rights_of(before)) else {
            return 0;
        };
        let waits_for = self.replies().map_or(0, |replies| replies.wanted());
        let looked_at = cx.hub.subscriptions.index().len(&self.subscriptions) + waits_for;
        if looked_at == 0 {
            return 0;
        }
        let ended = self.revise_subscriptions(&before, &identity, cx.hub);
        self.revise_waiting(&identity, cx);
        if !ended.is_empty() {
            cx.hub.metrics.subscriptions_ended_total += ended.len() as u64;
            let ended = ended.iter().map(AsRef::as_ref);
            let notice = reply::subscriptions_ended(&mut cx.hub.builder, reason, ended);
            self.push(notice, cx);
        }
        self.send_ready(cx);
        looked_at
    }

    /// Ends or moves what `identity` may not have as it is, and returns the client bindings of what ended. Linear in
    /// the session's own subscriptions.
    fn revise_subscriptions(
        &mut self,
        before: &Identity,
        identity: &Identity,
        hub: &mut Hub,
    ) -> Vec<Box<str>> {
        let is_less = before.is_superduper() && !identity.is_superduper();
        let revisions = hub.subscriptions.revise(
            &mut self.subscriptions,
            |families, resolved| judge(families, resolved, identity, is_less),
            |scope| binding_quota::account_of(identity, scope),
            hub.source == SourceState::Up,
        );
        hub.metrics.subscriptions_moved_total += revisions.moved;
        revisions.ended
    }

    /// Asks the authenticator again, after it has reread what it decides by: a token that is no longer good closes
    /// the session with 4401. One that now belongs to another account takes the session there, be it full or not:
    /// `max_connections_per_account` refuses those who come. Returns how many subscriptions were looked at.
    pub fn renew_identity(&mut self, cx: &mut Context<'_>) -> usize {
        let Some(identity) = self.identity.as_ref().filter(|_| self.is_open()) else {
            return 0;
        };
        match cx.hub.authenticator.renew(identity, cx.now.unix) {
            Verdict::Accepted(renewed) if Arc::ptr_eq(&renewed, identity) => 0,
            Verdict::Accepted(renewed) => {
                let looked_at = self.become_identity(renewed, EndReason::Rights, cx);
                self.drop_needless_extra();
                looked_at
            }
            Verdict::Refused => {
                let had = cx.hub.subscriptions.index().len(&self.subscriptions);
                self.close(CloseReason::Expired, cx);
                had
            }
        }
    }
}

/// The realm by which `identity` has subscriptions for `scope`, if it may have them.
pub(super) fn authorised(
    scope: Scope,
    identity: &Identity,
) -> Result<Option<Arc<str>>, CommandError> {
    match scope {
        Scope::Any if identity.is_superduper() => Ok(None),
        Scope::Any => Err(CommandError::UnauthorizedWildcard),
        Scope::One(account) if identity.may_see(account) => Ok(identity.realm_of(account)),
        Scope::One(_) => Err(CommandError::UnauthorizedAccount),
    }
}

/// What becomes of a subscription of a session that runs as `identity` now. `is_less`: it was superduper before, and is
/// not any more.
fn judge(
    families: &Families,
    resolved: Resolved<'_>,
    identity: &Identity,
    is_less: bool,
) -> Revision {
    if !identity.may_have(resolved.scope()) {
        return Revision::End;
    }
    let realm = match resolved.scope() {
        Scope::One(account) if resolved.realm().is_some() => identity.realm_of(account),
        Scope::One(_) | Scope::Any => None,
    };
    if !is_less && realm.as_deref() == resolved.realm() {
        return Revision::Keep;
    }
    let rights = Rights {
        superduper: identity.is_superduper(),
        realm: realm.as_deref(),
    };
    let again = families.resolve(resolved.binding(), resolved.scope(), rights);
    match again.map(|again| again.realm() == resolved.realm()) {
        Err(_) => Revision::End,
        Ok(true) => Revision::Keep,
        Ok(false) => realm.map_or(Revision::End, Revision::Move),
    }
}
