//! The fan-out: the frames of an event are put into the outboxes of all sessions that want it.
//!
//! Consecutive events that one and the same group wants, and no other, are a *run*. Its frames are handed out together, as
//! one [merged](Frame::merged) frame where that pays: each session is touched once for all of them, and the kernel takes
//! one piece instead of many slices (13 % less CPU at 32 events in flight).
//!
//! An event whose frames are too many bytes is handed out in *slices*, one a turn: the next frames are made when the ones
//! before are written. No other event comes between, so a session gets its events in order. The index may change between
//! two slices, so each slice matches the event anew, and goes to the groups that want it then and have not got it.
//!
//! Invariants: while a run holds frames, nothing else is put into an outbox, so frames leave in the order of the events;
//! and the index does not change. A run ends within the turn in which it began.

use std::collections::HashSet;
use std::sync::Arc;

use super::Reactor;
use super::connections::Listed;
use super::run::{Run, Sliced};
use super::socket::Socket;
use crate::event::Event;
use crate::limits::{EVENT_SLICE_BYTES_MAX, MATCHED_KEPT_MAX, MERGE_MEMBERS_MIN};
use crate::protocol::event_frame::{GroupFields, Stamp};
use crate::protocol::frame::Frame;
use crate::routing::index::{GroupId, Match};
use crate::session::clock::Now;
use crate::session::close::CloseReason;
use crate::session::delivery::{Batch, Delivered, DeliveryShared};
use crate::session::id::ConnId;
use crate::session::outbox::Parcel;

impl<S: Socket> Reactor<S> {
    /// Matches one event, and hands its frames out: now, together with those that follow, or in slices. Linear in its groups
    /// and their members.
    pub(super) fn fan_out(&mut self, event: Arc<Event>, now: Now) {
        self.hub.metrics.events_total += 1;
        let cursor = self.hub.history.take_in(&event, now);
        let stamp = cursor.map_or(Stamp::None, Stamp::Live);
        if self.hub.trace.is_on() {
            let concerns = self.concerns(&event);
            if !concerns.is_empty() {
                return self.fan_out_traced(event, stamp, &concerns, now);
            }
        }
        let mut matched = std::mem::take(&mut self.fan_out.matched);
        let mut owed = self.match_event(&event, stamp, None, &mut matched);
        let run = self.fan_out.run.as_ref();
        let goes_on = match &*matched {
            [] => true,
            [(group, frame)] if owed.is_empty() => run.is_some_and(|run| run.takes(*group, frame)),
            _ => false,
        };
        if !goes_on && self.end_run(now) {
            // A session that was closed has left its groups.
            matched.clear();
            owed = self.match_event(&event, stamp, None, &mut matched);
        }
        match &*matched {
            // There is nothing to write, so it does not count in the window.
            [] => self.hub.metrics.events_unmatched_total += 1,
            [(group, frame)] if owed.is_empty() => self.extend_run(*group, frame.clone()),
            _ => self.hand_out_all(&matched, now),
        }
        if !matched.is_empty() {
            self.note_age(&event, now);
        }
        self.keep_matched(matched);
        if !owed.is_empty() {
            self.hub.metrics.events_sliced_total += 1;
            self.keep_sliced(Sliced { event, stamp, owed });
        }
    }

    /// Records how old an event is whose frames are put into outboxes.
    pub(super) fn note_age(&mut self, event: &Event, now: Now) {
        if let Some(arrival) = event.arrival {
            let age = arrival.age_at(self.epoch + now.clock);
            self.hub.metrics.timings.event_age.record(age);
        }
    }

    /// Hands out the next slice of the event that is handed out in slices. Linear in its groups, and in the members of those
    /// of the slice.
    pub(super) fn fan_out_slice(&mut self, now: Now) {
        let Some(Sliced { event, stamp, owed }) = self.fan_out.sliced.take() else {
            return;
        };
        let mut matched = std::mem::take(&mut self.fan_out.matched);
        let owed = self.match_event(&event, stamp, Some(&owed), &mut matched);
        if !matched.is_empty() {
            let concerns = self.concerns(&event);
            if concerns.is_empty() {
                self.hand_out_all(&matched, now);
            } else {
                self.hand_out_traced(&event, &matched, &concerns, false, now);
            }
        }
        self.keep_matched(matched);
        if owed.is_empty() {
            self.hub.history.set_partial(false);
        } else {
            self.keep_sliced(Sliced { event, stamp, owed });
        }
    }

    /// Goes on with an event in the next slice.
    pub(super) fn keep_sliced(&mut self, sliced: Sliced) {
        self.hub.history.set_partial(true);
        self.fan_out.sliced = Some(sliced);
    }

    fn hand_out_all(&mut self, matched: &[(GroupId, Frame)], now: Now) {
        let mut encoded = 0;
        for (group, frame) in matched {
            encoded += frame.len() as u64;
            self.hand_out(*group, std::slice::from_ref(frame), |_, _| {});
        }
        self.flush.event_done(encoded, now.clock);
        self.close_too_slow(now);
    }

    pub(super) fn keep_matched(&mut self, mut matched: Vec<(GroupId, Frame)>) {
        matched.clear();
        matched.shrink_to(MATCHED_KEPT_MAX);
        self.fan_out.matched = matched;
    }

    /// Makes the frames of an event for the groups that want it, if `only` is given for those of them, up to
    /// [`EVENT_SLICE_BYTES_MAX`]. Returns the groups for which no frame was made.
    pub(super) fn match_event(
        &mut self,
        event: &Event,
        stamp: Stamp,
        only: Option<&HashSet<GroupId>>,
        matched: &mut Vec<(GroupId, Frame)>,
    ) -> HashSet<GroupId> {
        let scratch = &mut self.fan_out.scratch;
        let (mut owed, mut encoded) = (HashSet::new(), 0);
        scratch.begin(stamp);
        self.hub
            .subscriptions
            .match_event(event, &mut |found: Match<'_>| {
                if only.is_some_and(|only| !only.contains(&found.group)) {
                    return;
                }
                if encoded >= EVENT_SLICE_BYTES_MAX {
                    owed.insert(found.group);
                    return;
                }
                let fields = GroupFields {
                    routing_key: found.routing_key,
                    name_suffixed_by_type: found.name_suffixed_by_type,
                    subscribed_key: found.subscribed_key,
                    subscription_key: found.subscription_key,
                };
                let frame = scratch.frame(event, found.style, fields);
                encoded += frame.len() as u64;
                matched.push((found.group, frame));
            });
        owed
    }

    fn extend_run(&mut self, group: GroupId, frame: Frame) {
        let run = self.fan_out.run.get_or_insert_with(|| Run {
            group,
            frames: Vec::new(),
            bytes: 0,
        });
        run.bytes += frame.len() as u64;
        run.frames.push(frame);
    }

    /// How many sessions wait for the frames of the run.
    pub(super) fn waiting_for_run(&self) -> usize {
        let members = |run: &Run| self.hub.subscriptions.index().members(run.group).len();
        self.fan_out.run.as_ref().map_or(0, members)
    }

    /// Hands out the frames of the run. Must be called before anything else is put into an outbox or changes the index, and
    /// before the flush. True: that has closed sessions.
    pub(super) fn end_run(&mut self, now: Now) -> bool {
        let Some(run) = self.fan_out.run.take() else {
            return false;
        };
        self.hand_out(run.group, &run.frames, |_, _| {});
        for frame in &run.frames {
            self.flush.event_done(frame.len() as u64, now.clock);
        }
        self.close_too_slow(now)
    }

    /// Puts `frames`, one for each event, into the outboxes of all members of `group`. `each` gets what became of them at
    /// each member. Returns how many were queued and dropped.
    pub(super) fn hand_out(
        &mut self,
        group: GroupId,
        frames: &[Frame],
        mut each: impl FnMut(ConnId, Delivered),
    ) -> (u64, u64) {
        let Self {
            hub,
            connections,
            flush,
            fan_out,
            ..
        } = self;
        let members = hub.subscriptions.index().members(group);
        let is_merged = frames.len() > 1 && members.len() >= MERGE_MEMBERS_MIN;
        hub.metrics.runs_merged_total += u64::from(is_merged);
        let parcel = parcel_of(frames, is_merged);
        let plain = Batch {
            frames,
            parcel: parcel.as_ref(),
        };
        let seats = &mut *connections;
        let takes = |bytes| {
            members.clone().map(move |member| {
                let session = seats.at_slot(member.slot);
                session.is_some_and(|(_, it)| it.session.takes_deflated(bytes))
            })
        };
        let deflated = hub.compression.deflate(frames, takes, &mut hub.metrics);
        let deflated_parcel = deflated
            .as_ref()
            .and_then(|it| parcel_of(&it.frames, is_merged));
        let deflated = deflated.as_ref().map(|it| {
            let batch = Batch {
                frames: &it.frames,
                parcel: deflated_parcel.as_ref(),
            };
            (it, batch)
        });
        let mut shared = DeliveryShared {
            limits: &hub.limits,
            totals: &mut hub.outboxes,
            builder: &mut hub.builder,
            figures: &mut hub.figures,
            gap_notices_total: &mut hub.metrics.gap_notices_total,
        };
        let (mut queued, mut dropped, mut takers) = (0, 0, 0);
        for member in members {
            let Some((id, connection)) = connections.at_slot(member.slot) else {
                continue;
            };
            let session = &mut connection.session;
            let (batch, is_deflated) = match deflated {
                Some((it, batch)) if session.takes_deflated(it.bytes_max) => (batch, true),
                Some(_) | None => (plain, false),
            };
            let delivered = session.deliver(id, batch, member.request_id, &mut shared);
            takers += u64::from(is_deflated && delivered.queued == frames.len() as u64);
            queued += delivered.queued;
            dropped += delivered.dropped;
            each(id, delivered);
            if delivered.is_too_slow {
                fan_out.too_slow.push(id);
            }
            if delivered.queued > 0
                && !connection.session.outbox.is_blocked()
                && connection.listed.enter(Listed::FLUSH)
            {
                flush.push(id);
            }
        }
        hub.metrics.frames_delivered_total += queued;
        if let Some((it, _)) = deflated {
            hub.metrics.frames_delivered_deflated_total += takers * it.count;
            hub.metrics.frames_delivered_saved_bytes_total += takers * it.saved_bytes;
        }
        hub.work.is_busy |= queued > 0;
        hub.metrics.frames_dropped_total += dropped;
        (queued, dropped)
    }

    /// Closes the sessions that were too slow for their frames. True: there were some.
    pub(super) fn close_too_slow(&mut self, now: Now) -> bool {
        let too_slow = std::mem::take(&mut self.fan_out.too_slow);
        for id in &too_slow {
            self.close(*id, CloseReason::SlowConsumer, now);
        }
        !too_slow.is_empty()
    }
}

/// The frames of a run as one parcel. `None`: they are several, and putting them together is not worth it.
fn parcel_of(frames: &[Frame], is_merged: bool) -> Option<Parcel> {
    match frames {
        [frame] => Some(Parcel::from(frame.clone())),
        _ if is_merged => Some(Parcel::from(Frame::merged(frames))),
        _ => None,
    }
}
