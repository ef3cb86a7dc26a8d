//! What changes with another identity, or with other rights of the same one (PROTOCOL 3 and 4): what the session has and
//! waits for is resolved again. What it may no longer have ends, and the session is told so.
//!
//! A subscription whose account has another realm now goes on with the events of that realm. The index changes at once,
//! so nothing of the old realm comes any more. Until the broker confirms the new AMQP binding events may be missed, and
//! the session is told of them as of those of any lost binding (notice `gap`, reason `event_source`).

use std::sync::Arc;

use crate::account::Scope;
use crate::auth::{Authenticator, Identity, Renewal, Sight};
use crate::protocol::command::CommandError;
use crate::protocol::reply::{self, EndReason};
use crate::routing::families::{Families, Resolved, Rights};
use crate::routing::index::Revision;

use super::Session;
use super::binding_quota;
use super::close::CloseReason;
use super::hub::{Context, Hub};

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

    /// Takes the identity away; the session counts for no account any more.
    pub(super) fn give_account_back(&mut self, hub: &mut Hub) {
        if let Some(account) = self
            .identity
            .take()
            .and_then(|identity| identity.account_id())
        {
            hub.occupancy.accounts.give_back(&account);
        }
    }

    /// As [`Session::take_identity`], for a session that may have subscriptions. The session may be closed afterwards.
    /// `by_others`: the tree or the platform may have changed what an equal token gives. Returns how many subscriptions were
    /// checked: none if both identities are known to see the same.
    pub(super) fn become_identity(
        &mut self,
        identity: Arc<Identity>,
        reason: EndReason,
        by_others: bool,
        cx: &mut Context<'_>,
    ) -> usize {
        let before = self.identity.clone();
        self.take_identity(identity.clone(), cx.hub);
        let is_other = |before: &Arc<Identity>| by_others || !identity.has_rights_of(before);
        let Some(before) = before.filter(is_other) else {
            return 0;
        };
        let waits_for = self.replies().map_or(0, |replies| replies.wanted());
        let checked = cx.hub.subscriptions.index().len(&self.subscriptions) + waits_for;
        if checked == 0 {
            return 0;
        }
        let ended = self.revise_subscriptions(&before, &identity, by_others, cx.hub);
        self.revise_waiting(&identity, cx);
        if !ended.is_empty() {
            cx.hub.metrics.subscriptions_ended_total += ended.len() as u64;
            if cx.hub.trace.is_on() {
                self.tell_ended(&ended, reason.word(), cx);
            }
            let ended = ended.iter().map(AsRef::as_ref);
            let notice = reply::subscriptions_ended(&mut cx.hub.builder, reason, ended);
            self.push(notice, cx);
        }
        self.send_ready(cx);
        checked
    }

    /// Ends or moves the subscriptions that `identity` may not have as they are, and returns the client bindings of those
    /// that ended. Linear in the subscriptions of the session.
    fn revise_subscriptions(
        &mut self,
        before: &Identity,
        identity: &Identity,
        by_others: bool,
        hub: &mut Hub,
    ) -> Vec<Box<str>> {
        let authenticator: &Authenticator = &hub.authenticator;
        let sight = authenticator.sight(identity);
        let was_superduper = by_others || authenticator.sight(before).is_superduper();
        let is_less = was_superduper && !sight.is_superduper();
        let revisions = hub.subscriptions.revise(
            &mut self.subscriptions,
            |families, resolved| judge(families, resolved, &sight, is_less),
            |scope| binding_quota::account_of(identity, scope),
            hub.readiness.is_source_up(),
        );
        hub.metrics.subscriptions_moved_total += revisions.moved;
        revisions.ended
    }

    /// Asks the authenticator again after it has reread its files, or the platform has taken rights away. A token that is no
    /// longer valid closes the session with 4401. A token that now belongs to another account takes the session there, even
    /// if that account is full, for `max_connections_per_account` refuses newcomers only. Returns how many subscriptions
    /// were checked.
    pub fn renew_identity(&mut self, cx: &mut Context<'_>) -> usize {
        let Some(identity) = self.identity.as_ref().filter(|_| self.is_open()) else {
            return 0;
        };
        match cx.hub.authenticator.renew(identity, cx.now.unix()) {
            Renewal::Same => 0,
            Renewal::Changed {
                identity,
                by_others,
            } => {
                let checked = self.become_identity(identity, EndReason::Rights, by_others, cx);
                self.drop_empty_rare();
                checked
            }
            Renewal::Refused => {
                let had = cx.hub.subscriptions.index().len(&self.subscriptions);
                self.close(CloseReason::Expired, cx);
                had
            }
        }
    }
}

/// The realm by which an identity has subscriptions for `scope`.
///
/// # Errors
/// It may not have any.
pub(super) fn authorised(
    scope: Scope,
    sight: &Sight<'_>,
) -> Result<Option<Arc<str>>, CommandError> {
    match scope {
        Scope::Any if sight.is_superduper() => Ok(None),
        Scope::Any => Err(CommandError::UnauthorizedWildcard),
        Scope::One(account) if sight.may_see(account) => Ok(sight.realm_of(account)),
        Scope::One(_) => Err(CommandError::UnauthorizedAccount),
    }
}

/// What becomes of a subscription of a session that runs as an identity that sees this now. `is_less`: the session was superduper before
/// and is not any more.
fn judge(
    families: &Families,
    resolved: Resolved<'_>,
    sight: &Sight<'_>,
    is_less: bool,
) -> Revision {
    if !sight.may_have(resolved.scope()) {
        return Revision::End;
    }
    let realm = match resolved.scope() {
        Scope::One(account) if resolved.realm().is_some() => sight.realm_of(account),
        Scope::One(_) | Scope::Any => None,
    };
    if !is_less && realm.as_deref() == resolved.realm() {
        return Revision::Keep;
    }
    let rights = Rights {
        superduper: sight.is_superduper(),
        realm: realm.as_deref(),
    };
    let again = families.resolve(resolved.binding(), resolved.scope(), rights);
    match again.map(|again| again.realm() == resolved.realm()) {
        Err(_) => Revision::End,
        Ok(true) => Revision::Keep,
        Ok(false) => realm.map_or(Revision::End, Revision::Move),
    }
}
