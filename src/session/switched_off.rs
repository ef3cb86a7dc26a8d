//! What a session loses when a family is stopped (PROTOCOL 6 and 8): its subscriptions of it end, with a notice, and a
//! subscribe to it that waits is refused.
//!
//! The table of families changes at once, so nothing of the family comes any more and no new subscribe finds it. The
//! sessions follow in a walk of the loop, and each before it acts
//! ([`Hub::is_ending_families`](super::hub::Hub::is_ending_families)).

use crate::protocol::reply::{self, EndReason};
use crate::routing::index::Revision;

use super::Session;
use super::hub::Context;

impl Session {
    /// Ends what the session has and waits for of families that are off. Returns how many subscriptions it had or waited
    /// for, as a measure of the work, and of the ended ones each for [`limits::ENDING_COST`](crate::limits::ENDING_COST)
    /// of them. Linear in them.
    pub fn end_switched_off(&mut self, cx: &mut Context<'_>) -> usize {
        let Some(identity) = self.identity.clone().filter(|_| self.is_open()) else {
            return 0;
        };
        let waits_for = self.replies().map_or(0, |replies| replies.wanted());
        let looked_at = cx.hub.subscriptions.index().len(&self.subscriptions) + waits_for;
        if looked_at == 0 {
            return 0;
        }
        let revisions = cx.hub.subscriptions.revise(
            &mut self.subscriptions,
            |families, resolved| {
                if families.is_on(&resolved) {
                    Revision::Keep
                } else {
                    Revision::End
                }
            },
            |_| None,
            cx.hub.readiness.is_source_up(),
        );
        self.revise_waiting(&identity, cx);
        let ended = revisions.ended;
        if !ended.is_empty() {
            cx.hub.metrics.subscriptions_ended_total += ended.len() as u64;
            let bindings = ended.iter().map(AsRef::as_ref);
            let notice =
                reply::subscriptions_ended(&mut cx.hub.builder, EndReason::Module, bindings);
            self.push(notice, cx);
        }
        self.send_ready(cx);
        self.drop_empty_rare();
        looked_at + ended.len() * crate::limits::ENDING_COST
    }
}
