//! The fan-out of an event that somebody looks at (PROTOCOL 8): handed out by itself, and what became of it is told.
//!
//! Invariants: whether somebody looks changes neither who gets an event nor in which order; that an event was matched is
//! told from what the index found and the outboxes took, never from anything else.

use super::Reactor;
use super::run::Sliced;
use super::socket::Socket;
use crate::event::Event;
use crate::limits::TRACE_GROUPS_TOLD_MAX;
use crate::protocol::event_frame::Stamp;
use crate::protocol::frame::Frame;
use crate::routing::index::{GroupId, Match};
use crate::routing::nearness::{EventKey, Nearness};
use crate::session::clock::Now;
use crate::session::delivery::Delivered;
use crate::session::hub::Hub;
use crate::session::trace::{
    ConcernedLook, EventFacts, MatchedSubscription, TracedSession, WhyNotMatched,
};
use std::sync::Arc;

/// What became of an event in one group.
struct HandedOut {
    group: GroupId,
    sessions: usize,
    queued: u64,
    dropped: u64,
    /// At the sessions that are looked at, once for each subscription: the place of the concern.
    at: Vec<(usize, Delivered)>,
}

impl<S: Socket> Reactor<S> {
    /// The looks that an event concerns; none while nobody looks. Linear in the subscriptions of the sessions that are
    /// looked at, within the turn's share.
    pub(super) fn concerns(&mut self, event: &Event) -> Vec<ConcernedLook> {
        let mut concerns = Vec::new();
        if !self.hub.trace.may_judge() {
            return concerns;
        }
        let Some(key) = EventKey::new(&event.exchange, &event.routing_key, &event.head) else {
            return concerns;
        };
        let Self {
            hub, connections, ..
        } = self;
        let Hub {
            trace,
            subscriptions,
            ..
        } = hub;
        let months = subscriptions.months().now();
        let owner = subscriptions.families().owner(&key, months);
        let ids = trace.sessions();
        let session = |look: usize| {
            let id = (*ids.get(look)?)?;
            let session = &connections.get(id)?.session;
            Some(TracedSession {
                id,
                list: session.subscriptions(),
                account: session.account(),
            })
        };
        trace.concerns(&key, owner, subscriptions, session, &mut concerns);
        concerns
    }

    /// As [`Reactor::fan_out`], for an event that `concerns` looks.
    pub(super) fn fan_out_traced(
        &mut self,
        event: Arc<Event>,
        stamp: Stamp,
        concerns: &[ConcernedLook],
        now: Now,
    ) {
        self.end_run(now);
        let mut matched = std::mem::take(&mut self.fan_out.matched);
        let owed = self.match_event(&event, stamp, None, &mut matched);
        if matched.is_empty() {
            self.hub.metrics.events_unmatched_total += 1;
        } else {
            self.note_age(&event, now);
        }
        self.hand_out_traced(&event, &matched, concerns, true, now);
        self.keep_matched(matched);
        if !owed.is_empty() {
            self.hub.metrics.events_sliced_total += 1;
            self.keep_sliced(Sliced { event, stamp, owed });
        }
    }

    /// Hands out the frames of an event, and tells the looks what became of them. `is_first`: it is the first slice.
    pub(super) fn hand_out_traced(
        &mut self,
        event: &Event,
        matched: &[(GroupId, Frame)],
        concerns: &[ConcernedLook],
        is_first: bool,
        now: Now,
    ) {
        let mut encoded = 0;
        let mut handed_out = Vec::with_capacity(matched.len());
        for (group, frame) in matched {
            encoded += frame.len() as u64;
            let (mut sessions, mut at) = (0, Vec::new());
            let (queued, dropped) =
                self.hand_out(*group, std::slice::from_ref(frame), |id, delivered| {
                    sessions += 1;
                    let is_its =
                        |concern: &ConcernedLook| matches!(concern.nearest, Some((of, _)) if of == id);
                    let places = concerns.iter().enumerate();
                    let places = places.filter(|(_, concern)| is_its(concern));
                    at.extend(places.map(|(place, _)| (place, delivered)));
                });
            handed_out.push(HandedOut {
                group: *group,
                sessions,
                queued,
                dropped,
                at,
            });
        }
        // Before a session that was too slow leaves its groups.
        self.tell(event, &handed_out, concerns, is_first, now);
        if !matched.is_empty() {
            self.flush.event_done(encoded, now.clock);
        }
        self.close_too_slow(now);
    }

    /// Tells the looks what became of an event. The index is as it was when the event was matched.
    fn tell(
        &mut self,
        event: &Event,
        handed_out: &[HandedOut],
        concerns: &[ConcernedLook],
        is_first: bool,
        now: Now,
    ) {
        let Some(key) = EventKey::new(&event.exchange, &event.routing_key, &event.head) else {
            return;
        };
        let Hub {
            trace,
            subscriptions,
            ..
        } = &mut self.hub;
        let (families, months) = (subscriptions.families(), subscriptions.months().now());
        let owner = families.owner(&key, months);
        let told = EventFacts { event: &key, owner };
        let mut is_delivered = vec![false; concerns.len()];
        let mut groups_told = 0;
        let mut tell_group = |found: &Match<'_>, handed_out: &HandedOut| {
            let went = |queued, dropped| MatchedSubscription {
                subscribed_key: found.subscribed_key,
                subscription_key: found.subscription_key,
                scope: found.scope,
                queued,
                dropped,
            };
            for (place, concern) in concerns.iter().enumerate() {
                if !concern.is_of_session {
                    if groups_told < TRACE_GROUPS_TOLD_MAX {
                        let went = went(handed_out.queued, handed_out.dropped);
                        trace.matched(concern.look, told, &went, Some(handed_out.sessions), now);
                    } else {
                        trace.leave_group_out(concern.look);
                    }
                }
                let own = handed_out.at.iter().filter(|(of, _)| *of == place);
                for (_, delivered) in own {
                    if let Some(is_delivered) = is_delivered.get_mut(place) {
                        *is_delivered = true;
                    }
                    if delivered.queued == 0 {
                        let key = Some(found.subscribed_key);
                        trace.not_matched(concern.look, told, WhyNotMatched::SlowDropped, key, now);
                    } else {
                        let went = went(delivered.queued, delivered.dropped);
                        trace.matched(concern.look, told, &went, None, now);
                    }
                }
            }
            groups_told += 1;
        };
        let mut handed = handed_out.iter().peekable();
        subscriptions.match_event(event, &mut |found: Match<'_>| {
            // Both matches go through the groups in the same order; a slice has some of them.
            if let Some(handed_out) = handed.next_if(|one| one.group == found.group) {
                tell_group(&found, handed_out);
            }
        });
        if !is_first {
            return;
        }
        let families = subscriptions.families();
        let standing = families.standing(&key);
        for (concern, is_delivered) in concerns.iter().zip(is_delivered) {
            let nearest = concern
                .nearest
                .map_or(Nearness::Far, |(_, nearest)| nearest);
            // What fits and has not gone out is of a later slice.
            let is_told = match concern.is_of_session {
                true => is_delivered || nearest == Nearness::Fits,
                false => !handed_out.is_empty(),
            };
            if !is_told {
                let why = WhyNotMatched::of(standing, nearest, !handed_out.is_empty());
                trace.not_matched(concern.look, told, why, None, now);
            }
        }
    }
}
