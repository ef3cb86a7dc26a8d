//! Step 3 of the turn: past events for the sessions that resume (PROTOCOL 10), in laps.
//!
//! A *lap* goes from the oldest place of those that are ready to the present, in *steps* of some events. Each event is
//! matched in the replay index, for all who resume at once. A session gets on when its place is among the events of the
//! step; one whose place the lap has passed waits for the next lap, so however many come, a lap ends. A session whose outbox
//! took no more leaves the lap at that event. Where the lap meets the present, those aboard are told so and become live.
//!
//! A turn does a *slice*: bounded events, sessions, frames and bytes ([`Budget`]), and only as many sessions as the flush
//! list has room for, so live events and replies do not wait behind a storm. While live events keep the list long, laps
//! go on slowly, but go on. A session gets all events of a step at once, and so one write for all of them. The index may
//! change between two turns, so each slice matches the events of its step anew.
//!
//! Invariants: no run is under way, so nothing comes between; no session becomes live while an event is being handed out
//! in slices, so it gets that event once. What a lap costs the others is bounded for each turn, however many sessions
//! resume, and however often.

use std::ops::Range;
use std::slice;
use std::time::Duration;

use super::Reactor;
use super::connections::Listed;
use super::lap::{Budget, Lap, Laps, PastEvent, Slice};
use super::socket::Socket;
use crate::history::{Cursor, STORED_END, Seq, Why};
use crate::limits::{
    LAP_ENDS_PER_TURN_MAX, LAP_OUTBOX_BYTES_MAX, RESUMING_LOOK_INTERVAL, RESUMING_MAX,
};
use crate::protocol::frame::Frame;
use crate::routing::index::SubscriptionList;
use crate::session::clock::Now;
use crate::session::delivery::{Batch, DeliveryShared};
use crate::session::hub::Hub;
use crate::session::id::ConnId;
use crate::session::resuming::{ReplayEnd, Resumer};
use crate::session::stored::Next;
use crate::session::subscriptions::Subscriptions;

impl<S: Socket> Reactor<S> {
    /// A slice of the lap under way, or of the next one.
    pub(super) fn go_on_with_laps(&mut self, now: Now) {
        self.hub.resumers.is_sliced = self.fan_out.is_sliced();
        if self.hub.resumers.is_empty() {
            self.laps = Laps::default();
            return self.hub.resumers.looked_at();
        }
        self.look_for_late(now);
        if self.renewal.is_some() {
            // Some sessions may still have what they have lost the right to.
            return;
        }
        self.hub.resumers.end_holds(&self.hub.history, now.clock);
        if self.laps.lap.is_none() && !self.hub.resumers.has_news() {
            return;
        }
        let mut budget = Budget::new(self.flush.len());
        if !self.end_failed(&mut budget, now) {
            return;
        }
        self.hub.metrics.lap_slices_total += 1;
        let listed = self.flush.len();
        while let Some(lap) = self.laps.lap.take().or_else(|| self.begin_lap()) {
            self.laps.lap = self.go_on_with(lap, &mut budget, now);
            // What was sent is written first: then it is known who takes more.
            if self.laps.lap.is_none() || budget.is_over() || self.flush.len() > listed {
                return;
            }
        }
    }

    /// Whether laps have something to do that does not wait for a socket or a moment.
    pub(super) fn has_laps(&self) -> bool {
        self.laps.lap.is_some() || self.hub.resumers.has_news()
    }

    /// When those who resume are looked at again, on the loop's clock.
    pub(super) fn laps_due(&self) -> Option<Duration> {
        let due = self.laps.looked_at + RESUMING_LOOK_INTERVAL;
        let held_until = self.hub.resumers.held_until().unwrap_or(due);
        (!self.hub.resumers.is_empty()).then_some(due.min(held_until))
    }

    /// A session that resumes may be ready for the next lap.
    pub(super) fn note_ready(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get(id)
            && connection.session.is_ready_to_resume()
        {
            self.hub.resumers.become_ready(id.slot);
            // What it waits for may be loaded, though others came to the end of that.
            self.laps.is_dry = false;
        }
    }

    fn begin_lap(&mut self) -> Option<Lap> {
        let present = self.hub.history.next();
        let stored_end = self.hub.resumers.stored_end();
        let from = if self.laps.is_dry { stored_end } else { Seq(0) };
        match self.hub.resumers.earliest(from, present) {
            Some(seq) => {
                self.hub.metrics.laps_total += 1;
                Some(Lap::from(seq))
            }
            None => {
                self.hub.resumers.looked_at();
                None
            }
        }
    }

    /// Lets those fail who resume for too long, or wait for events that are not kept any more.
    fn look_for_late(&mut self, now: Now) {
        let due = self.laps.looked_at + RESUMING_LOOK_INTERVAL;
        if now.clock >= due {
            self.laps.looked_at = now.clock;
            let first = self.hub.history.first();
            let begun = now.clock.checked_sub(RESUMING_MAX);
            self.hub.resumers.fail_late(first, begun);
        }
    }

    /// Tells those who have failed, some a turn. False: the others are told in the next turn.
    fn end_failed(&mut self, budget: &mut Budget, now: Now) -> bool {
        let failed = self.hub.resumers.failed();
        let holds_replies = |id: ConnId| {
            let session = self.connections.get(id).map(|it| &it.session);
            session.is_some_and(|session| session.holds_replies())
        };
        // A reply that says that events follow must not come behind the notice that they do not.
        let failed = failed.filter(|(id, _)| !holds_replies(*id));
        let failed: Vec<_> = failed.take(LAP_ENDS_PER_TURN_MAX).collect();
        self.end_replays(failed, budget, now)
    }

    /// Ends replays, as many as the bound of a turn allows: what it costs to move their subscriptions counts. False: not all.
    fn end_replays(
        &mut self,
        ends: Vec<(ConnId, ReplayEnd)>,
        budget: &mut Budget,
        now: Now,
    ) -> bool {
        let mut cost = 0;
        let is_full = ends.len() >= LAP_ENDS_PER_TURN_MAX;
        for (id, end) in ends {
            if cost >= LAP_ENDS_PER_TURN_MAX || budget.flushes == 0 {
                return false;
            }
            if let Some(connection) = self.connections.get(id) {
                let list = connection.session.subscriptions();
                cost += self.hub.subscriptions.index().len(list).max(1);
                budget.flushes -= 1;
                self.act(id, now, |session, cx| session.end_replay(end, cx));
            }
        }
        !is_full
    }

    /// A step of the lap, or a part of one. `None`: the lap is over.
    fn go_on_with(&mut self, mut lap: Lap, budget: &mut Budget, now: Now) -> Option<Lap> {
        if !lap.is_step_done() {
            let mut slice = self.match_past(lap.step.clone(), budget);
            self.hand_out_past(&mut lap, &mut slice, budget);
            return Some(lap);
        }
        let (from, present) = (lap.step.end, self.hub.history.next());
        // Those who have not come this far were passed, or fell back: the next lap is for them.
        let from = from.max(self.hub.resumers.earliest(from, present)?);
        if from >= present {
            lap.step = from..from;
            // What is left to do here is for the next turn.
            budget.visits = 0;
            let is_done = !self.fan_out.is_sliced() && self.arrive(present, budget, now);
            return (!is_done).then_some(lap);
        }
        if from < self.hub.resumers.stored_end() {
            return self.go_on_in_stream(lap, from, budget, now);
        }
        if from < self.hub.history.first() {
            // Overtaken by what was dropped: the lap is over, and they are told.
            let first = self.hub.history.first();
            self.hub.resumers.fail_late(first, None);
            return None;
        }
        let slice = self.match_past(from..present, budget);
        self.begin_step(&mut lap, from, slice, budget);
        Some(lap)
    }

    /// Hands the next events out, from `from` on.
    fn begin_step(&mut self, lap: &mut Lap, from: Seq, mut slice: Slice, budget: &mut Budget) {
        lap.step = from..slice.end;
        budget.visits = budget.visits.saturating_sub(self.hub.resumers.len() / 4);
        lap.aboard = self.hub.resumers.ready_among(&lap.step).collect();
        lap.at = 0;
        self.hand_out_past(lap, &mut slice, budget);
    }

    /// As [`Reactor::go_on_with`], while the lap is in the stream.
    fn go_on_in_stream(
        &mut self,
        mut lap: Lap,
        from: Seq,
        budget: &mut Budget,
        now: Now,
    ) -> Option<Lap> {
        match self.hub.past.next(from) {
            Next::Event(_) => {
                let slice = self.match_past(from..STORED_END, budget);
                self.begin_step(&mut lap, from, slice, budget);
            }
            Next::Marker { behind, joins } => {
                let Hub {
                    resumers,
                    history,
                    limits,
                    ..
                } = &mut self.hub;
                let joins = |in_force_ms| {
                    let time = joins.filter(|time| *time >= in_force_ms)?;
                    history.from_time(time, now)
                };
                let events_max = limits.resume.events_max;
                resumers.pass_marker(&(from..behind), behind, events_max, joins);
                budget.visits = budget.visits.saturating_sub(resumers.len() / 4);
                (lap.step, lap.aboard, lap.at) = (behind..behind, Vec::new(), 0);
            }
            Next::Nothing => {
                // Those in the stream wait for more of it; the lap goes on with the others.
                self.laps.is_dry = true;
                let present = self.hub.history.next();
                self.hub.resumers.earliest(STORED_END, present)?;
                (lap.step, lap.aboard, lap.at) = (STORED_END..STORED_END, Vec::new(), 0);
            }
            Next::Gone => {
                let Hub { resumers, past, .. } = &mut self.hub;
                resumers.fail_stored_if(Why::Expired, |seq| !past.holds(seq));
                return None;
            }
        }
        Some(lap)
    }

    /// Those aboard become live: nothing lies behind the last event that they were sent. False: not all, or not yet.
    fn arrive(&mut self, present: Seq, budget: &mut Budget, now: Now) -> bool {
        let arrived = self.hub.resumers.arrived(present);
        let arrived = arrived.take(LAP_ENDS_PER_TURN_MAX).collect();
        self.end_replays(arrived, budget, now)
    }

    /// Matches past events, as many as one step has room for.
    fn match_past(&mut self, events: Range<Seq>, budget: &mut Budget) -> Slice {
        let mut slice = Slice::new(events.start);
        while slice.end < events.end && slice.has_room() && budget.events > 0 {
            let Some(past) = past_event(&self.hub, slice.end) else {
                // Dropped meanwhile. Those who wait for it are not aboard any more when the lap goes on.
                break;
            };
            let (event, unix) = (&past.event, past.unix);
            (self.hub.subscriptions).match_past_event(event, unix, &mut |found| slice.note(&found));
            slice.add(past);
            budget.events -= 1;
            self.hub.metrics.lap_events_total += 1;
        }
        slice
    }

    /// Puts the events of the slice into the outboxes of those aboard, as far as the turn's share goes.
    fn hand_out_past(&mut self, lap: &mut Lap, slice: &mut Slice, budget: &mut Budget) {
        while let Some(slot) = lap.aboard.get(lap.at)
            && !budget.is_used_up()
        {
            lap.at += 1;
            budget.visits -= 1;
            self.hand_out_to(*slot, lap.step.start, slice, budget);
        }
    }

    /// Puts the events of the slice into the outbox of one session. Linear in its subscriptions and in what it gets.
    fn hand_out_to(&mut self, slot: u32, from: Seq, slice: &mut Slice, budget: &mut Budget) {
        let Self {
            hub,
            connections,
            flush,
            fan_out,
            ..
        } = self;
        let Hub {
            resumers,
            subscriptions,
            limits,
            outboxes,
            builder,
            figures,
            metrics,
            work,
            ..
        } = hub;
        let Some(resumer) = resumers.ready(slot) else {
            return;
        };
        // It may have gone back meanwhile, or be another session by now.
        if resumer.next() < from || resumer.next() > slice.end {
            return;
        }
        let Some((id, connection)) = connections.at_slot(slot) else {
            return;
        };
        let session = &mut connection.session;
        if session.outbox.is_blocked() || session.outbox.bytes() >= LAP_OUTBOX_BYTES_MAX {
            metrics.lap_falls_total += 1;
            return resumer.wait();
        }
        if slice.is_empty() {
            return resumer.advance(slice.end, None);
        }
        let hits = hits(subscriptions, session.subscriptions(), resumer, slice);
        let mut shared = DeliveryShared {
            limits,
            totals: outboxes,
            builder,
            figures,
            gap_notices_total: &mut metrics.gap_notices_total,
        };
        let (mut next, mut queued) = (slice.end, 0);
        let mut last: Option<(Seq, Cursor)> = None;
        for (number, request_id) in hits {
            let Some((seq, cursor)) = slice.event_of(number).map(|it| (it.seq, it.cursor)) else {
                continue;
            };
            if let Some((before, _)) = last
                && before < seq
                && session.outbox.bytes() >= LAP_OUTBOX_BYTES_MAX
            {
                next = Seq(before.0 + 1);
                break;
            }
            let Some(parcel) = slice.parcel(number, &mut fan_out.scratch) else {
                continue;
            };
            let frames = parcel.frame().map_or(&[][..], slice::from_ref);
            let batch = Batch {
                frames,
                parcel: Some(&parcel),
            };
            queued += session.deliver(id, batch, request_id, &mut shared).queued;
            budget.frames = budget.frames.saturating_sub(1);
            let bytes = frames.iter().map(Frame::len).sum();
            budget.bytes = budget.bytes.saturating_sub(bytes);
            last = Some((seq, cursor));
        }
        resumer.advance(next, last.map(|(_, cursor)| (queued, cursor)));
        if next < slice.end {
            metrics.lap_falls_total += 1;
            resumer.wait();
        }
        if queued > 0 && connection.listed.enter(Listed::FLUSH) {
            flush.push(id);
            budget.flushes = budget.flushes.saturating_sub(1);
        }
        metrics.frames_delivered_total += queued;
        metrics.frames_replayed_total += queued;
        work.is_busy |= queued > 0;
    }
}

/// The numbers of what a session gets of the slice, in the order of the events and then of the groups of each, with the
/// request ids of its subscriptions. O(n log n) in them, and linear in all subscriptions of the session.
fn hits<'i>(
    subscriptions: &'i Subscriptions,
    list: &SubscriptionList,
    resumer: &Resumer,
    slice: &Slice,
) -> Vec<(u32, Option<&'i str>)> {
    let mut hits = Vec::new();
    for one in subscriptions.index().memberships(list) {
        let numbers = slice.wanted_by(one.group);
        if !numbers.is_empty() {
            let start = resumer.start(one.id);
            let is_meant = |number: &&u32| {
                let past = slice.event_of(**number);
                past.is_some_and(|past| past.seq >= start)
            };
            let numbers = numbers.iter().filter(is_meant);
            hits.extend(numbers.map(|number| (*number, one.request_id)));
        }
    }
    hits.sort_unstable_by_key(|(number, _)| *number);
    hits
}

/// The event at a place, or the next one behind it: of the stream, or of the history.
fn past_event(hub: &Hub, seq: Seq) -> Option<PastEvent> {
    if seq < hub.resumers.stored_end() {
        return match hub.past.next(seq) {
            Next::Event(stored) => Some(PastEvent {
                event: stored.event,
                unix: stored.unix,
                cursor: stored.cursor,
                seq: stored.seq,
            }),
            Next::Marker { .. } | Next::Nothing | Next::Gone => None,
        };
    }
    let kept = hub.history.get(seq)?;
    Some(PastEvent {
        event: kept.event.clone(),
        unix: kept.unix,
        cursor: hub.history.cursor_of(kept)?,
        seq,
    })
}
