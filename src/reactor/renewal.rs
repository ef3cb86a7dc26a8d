//! All sessions are renewed after the tokens were reread (SIGHUP), or the platform has taken rights away, a part of them in
//! each turn.
//!
//! Invariant: until a pass is through, no event is taken from the hand-off. So no session sees an event by a right that it
//! has lost, and no event goes to its new owner while the old one may still see it. A session that sends a command
//! meanwhile is renewed first.

use super::Reactor;
use super::socket::Socket;
use crate::limits::{RENEWAL_SUBSCRIPTION_COST, RENEWALS_PER_TURN_MAX};
use crate::session::clock::Now;

impl<S: Socket> Reactor<S> {
    /// Begins a pass after a reread: the coming turns ask the authenticator again for every session, by the tokens that are in
    /// force now. `config_reloads_total` counts the end of the pass. O(1).
    pub fn renew_identities(&mut self) {
        self.is_rereading = true;
        self.begin_renewal();
    }

    /// Whether a pass after a reread is under way.
    #[must_use]
    pub fn is_rereading(&self) -> bool {
        self.is_rereading
    }

    /// Begins a pass, or begins it again.
    pub(super) fn begin_renewal(&mut self) {
        self.renewal = Some(0);
        self.hub.is_renewing = true;
        self.hub.authenticator.on_renewal();
    }

    /// Renews sessions until the share of the turn is done. A session that came or authenticated since the pass began has
    /// the new rights already.
    pub(super) fn renew_some(&mut self, now: Now) {
        let Some(mut slot) = self.renewal else {
            return;
        };
        let mut cost = 0;
        while slot < self.connections.slots() && cost < RENEWALS_PER_TURN_MAX {
            if let Some((id, connection)) = self.connections.at_slot(slot) {
                let session = &mut connection.session;
                let checked = session.renew_identity(&mut self.hub.context(id, now));
                cost += RENEWAL_SUBSCRIPTION_COST * checked;
                self.settle(id);
            }
            cost += 1;
            slot += 1;
        }
        let is_through = slot >= self.connections.slots();
        self.renewal = (!is_through).then_some(slot);
        if is_through {
            self.hub.is_renewing = false;
            self.hub.authenticator.on_renewed();
            if self.is_rereading {
                self.is_rereading = false;
                self.hub.metrics.config_reloads_total += 1;
            }
        }
    }
}
