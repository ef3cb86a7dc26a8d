//! What a session loses when a family is stopped (PROTOCOL 6 and 8): its subscriptions of it end, with a notice, and a
//! subscribe to it that waits is refused.
//!
//! The table of families changes at once, so nothing of the family comes any more and no new subscribe finds it. The
//! sessions follow in a walk of the loop, and each before it acts
//! ([`Hub::is_ending_families`](super::hub::Hub::is_ending_families)).

use std::cell::Cell;

use crate::limits;
use crate::protocol::reply::{self, EndReason};
use crate::routing::index::Revision;

use super::Session;
use super::hub::Context;

/// What [`Session::end_switched_off`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// A measure of the work: 1 for each subscription that was looked at, and [`limits::ENDING_COST`] for each that ended.
    pub cost: usize,
    /// Nothing is left of families that are off.
    pub is_all: bool,
}

impl Session {
    /// Ends what the session has and waits for of families that are off, but no more than `at_most` subscriptions; each call
    /// that ends some tells the client which. Linear in all that it has and waits for.
    pub fn end_switched_off(&mut self, at_most: usize, cx: &mut Context<'_>) -> Ended {
        let none = Ended {
            cost: 0,
            is_all: true,
        };
        let Some(identity) = self.identity.clone().filter(|_| self.is_open()) else {
            return none;
        };
        let waits_for = self.replies().map_or(0, |replies| replies.wanted());
        let looked_at = cx.hub.subscriptions.index().len(&self.subscriptions) + waits_for;
        if looked_at == 0 {
            return none;
        }
        let (room, is_all) = (Cell::new(at_most), Cell::new(true));
        let revisions = cx.hub.subscriptions.revise(
            &mut self.subscriptions,
            |families, resolved| match room.get().checked_sub(1) {
                _ if families.is_on(&resolved) => Revision::Keep,
                Some(left) => {
                    room.set(left);
                    Revision::End
                }
                None => {
                    is_all.set(false);
                    Revision::Keep
                }
            },
            |_| None,
            cx.hub.readiness.is_source_up(),
        );
        if is_all.get() {
            self.revise_waiting(&identity, cx);
        }
        let ended = revisions.ended;
        if !ended.is_empty() {
            cx.hub.metrics.subscriptions_ended_total += ended.len() as u64;
            if cx.hub.trace.is_on() {
                self.tell_ended(&ended, EndReason::Module.word(), cx);
            }
            let bindings = ended.iter().map(AsRef::as_ref);
            let notice =
                reply::subscriptions_ended(&mut cx.hub.builder, EndReason::Module, bindings);
            self.push(notice, cx);
        }
        self.send_ready(cx);
        self.drop_empty_rare();
        Ended {
            cost: looked_at + ended.len() * limits::ENDING_COST,
            is_all: is_all.get() || !self.is_open(),
        }
    }
}
