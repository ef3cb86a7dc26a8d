//! What goes to the peer: replies, events and notices, under the policy for slow consumers (PROTOCOL 5); and what follows
//! a flush.
//!
//! Invariant: a notice of a gap is sent before the next event behind the gap.

use std::collections::HashSet;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use crate::protocol::frame::{Frame, FrameBuilder};
use crate::protocol::reply;
use crate::protocol::tail::Tail;
use crate::routing::amqp_binding::AmqpBinding;

use super::close::CloseReason;
use super::figures::Figures;
use super::hub::{Context, Hub};
use super::id::ConnId;
use super::limits::SessionLimits;
use super::outbox::{OutboxTotals, Parcel, SlowConsumerPolicy};
use super::{PeerSide, Phase, Session};

/// Frames for the members of one group, one for each of several events in a row.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// In the order of the events.
    pub frames: &'a [Frame],
    /// All frames as one parcel, if that has been made.
    pub parcel: Option<&'a Parcel>,
}

/// What became of the frames of a [`Batch`]. The session was closed, or too slow, for those that are not counted here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Frames put into the outbox.
    pub queued: u64,
    /// Frames dropped and counted (policy `drop`).
    pub dropped: u64,
    /// The outbox is over its limit: the session must be closed as a slow consumer.
    pub is_too_slow: bool,
}

/// What the loop has to do after a flush that emptied the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFlush {
    /// Nothing.
    Idle,
    /// List the session again: more was queued.
    More,
    /// End our side of the stream.
    ShutdownWrite,
    /// Let the asker's next request begin ([`Session::next_request`]).
    NextRequest,
}

/// What a fan-out lends to [`Session::deliver`].
#[derive(Debug)]
pub struct DeliveryShared<'a> {
    /// The operator's bounds.
    pub limits: &'a SessionLimits,
    /// The sums over all blocked outboxes.
    pub totals: &'a mut OutboxTotals,
    /// Scratch memory for notices.
    pub builder: &'a mut FrameBuilder,
    /// What sessions were sent and have lost.
    pub figures: &'a mut Figures,
    /// The counter of notices.
    pub gap_notices_total: &'a mut u64,
}

impl Session {
    /// Queues a frame that is not an event, and so is never dropped. Under the policy `close` a session whose peer takes
    /// none of them is closed. Under `drop` its socket is not read any more ([`Session::wants_bytes`]), which bounds what
    /// it can ask for. The session must be open.
    pub fn push(&mut self, frame: Frame, cx: &mut Context<'_>) {
        let (_, blocked_bytes) = self.outbox.blocked();
        if cx.hub.limits.slow_consumer == SlowConsumerPolicy::Close
            && blocked_bytes > 0
            && blocked_bytes + frame.len() > cx.hub.limits.outbox_bytes_max
        {
            self.close(CloseReason::SlowConsumer, cx);
        } else {
            self.frames.count(1, cx.id.slot, &mut cx.hub.figures);
            self.outbox.push(frame, &mut cx.hub.outboxes);
        }
    }

    /// Queues frames of events, under the policy for slow consumers (PROTOCOL 5). `request_id`: the one of the
    /// subscribe, as it stands between the quotes of a JSON string. O(1) for a parcel that the socket is believed to
    /// take; otherwise linear in the frames.
    #[inline]
    pub fn deliver(
        &mut self,
        id: ConnId,
        batch: Batch<'_>,
        request_id: Option<&str>,
        shared: &mut DeliveryShared<'_>,
    ) -> Delivered {
        if !self.is_open() {
            return Delivered::default();
        }
        if self.outbox.is_blocked() || self.outbox.owes_notice() {
            return self.deliver_late(id, batch.frames, request_id, shared);
        }
        let queued = batch.frames.len() as u64;
        self.frames.count(queued, id.slot, shared.figures);
        match (batch.parcel, request_id) {
            (Some(parcel), None) => self.outbox.push_parcel(parcel, shared.totals),
            (parcel, request_id) => {
                let one = parcel.and_then(Parcel::frame).map(slice::from_ref);
                for frame in one.unwrap_or(batch.frames) {
                    self.push_event(frame, request_id, shared.totals);
                }
            }
        }
        Delivered {
            queued,
            ..Delivered::default()
        }
    }

    fn push_event(&mut self, frame: &Frame, request_id: Option<&str>, totals: &mut OutboxTotals) {
        match request_id {
            Some(id) => self.outbox.push_with_id(frame, id, totals),
            None => self.outbox.push(frame.clone(), totals),
        }
    }

    fn deliver_late(
        &mut self,
        id: ConnId,
        batch: &[Frame],
        request_id: Option<&str>,
        shared: &mut DeliveryShared<'_>,
    ) -> Delivered {
        let limits = shared.limits;
        let (mut delivered, mut notices) = (Delivered::default(), 0);
        for frame in batch {
            let (frames, bytes) = self.outbox.blocked();
            let length = request_id.map_or(frame.len(), |id| Tail(id).len_of(frame));
            match limits.slow_consumer {
                SlowConsumerPolicy::Close if bytes + length > limits.outbox_bytes_max => {
                    delivered.is_too_slow = true;
                    break;
                }
                SlowConsumerPolicy::Drop
                    if frames >= limits.queued_messages_max
                        || (bytes > 0 && bytes + length > limits.outbox_bytes_max) =>
                {
                    if limits.gap_notices {
                        self.outbox.count_dropped();
                    }
                    delivered.dropped += 1;
                    continue;
                }
                SlowConsumerPolicy::Close | SlowConsumerPolicy::Drop => {}
            }
            while let Some(notice) = self.take_gap_notice(shared.builder) {
                self.outbox.push(notice, shared.totals);
                notices += 1;
            }
            self.push_event(frame, request_id, shared.totals);
            delivered.queued += 1;
        }
        *shared.gap_notices_total += notices;
        let figures = &mut *shared.figures;
        self.frames
            .count(delivered.queued + notices, id.slot, figures);
        figures.count_dropped(delivered.dropped, id.slot);
        delivered
    }

    /// Takes a notice of what the policy `drop` left out, if there is one to send: first of an outage, then of events.
    pub(super) fn take_gap_notice(&mut self, builder: &mut FrameBuilder) -> Option<Frame> {
        if let Some(outage) = self.outbox.take_outage() {
            return Some(outage);
        }
        match self.outbox.take_dropped() {
            0 => None,
            dropped => Some(reply::gap_slow_consumer(builder, dropped)),
        }
    }

    /// Whether a subscription of the session needs one of `bindings`, which are of these exchanges. Linear in its
    /// subscriptions.
    #[must_use]
    pub fn needs_any(
        &self,
        bindings: &HashSet<AmqpBinding>,
        exchanges: &HashSet<Arc<str>>,
        hub: &Hub,
    ) -> bool {
        hub.subscriptions
            .any_needs(&self.subscriptions, bindings, exchanges)
    }

    /// Tells a session with subscriptions that events may have been lost while the source was away. When the policy `drop`
    /// has no room for an event, the latest such notice is kept until there is room, so no number of outages makes a
    /// queue grow.
    pub fn announce_outage(&mut self, notice: &Frame, cx: &mut Context<'_>) {
        let (frames, _) = self.outbox.blocked();
        let is_dropped = cx.hub.limits.slow_consumer == SlowConsumerPolicy::Drop
            && frames >= cx.hub.limits.queued_messages_max;
        if self.is_open() && !self.subscriptions.is_empty() {
            if is_dropped {
                return self.outbox.keep_outage(notice.clone());
            }
            cx.hub.metrics.gap_notices_total += 1;
            self.push(notice.clone(), cx);
        }
    }

    /// Tells an open session that the process is going away, and how long it is to the first close (PROTOCOL 10). `notice`:
    /// [`reply::going_away`] of the same time, which all that are told in one turn share.
    pub fn tell_going_away(&mut self, notice: Frame, within: Duration, cx: &mut Context<'_>) {
        if cx.hub.trace.is_on() {
            let who = self.who(cx.id, cx.hub);
            cx.hub.trace.going_away(&who, within, cx.now);
        }
        cx.hub.metrics.going_away_notices_total += 1;
        self.push(notice, cx);
    }

    /// Goes on after a flush that emptied the outbox.
    pub fn after_flush(&mut self, cx: &mut Context<'_>) -> AfterFlush {
        let hub = &mut *cx.hub;
        match &mut self.phase {
            Phase::Admin(_) => self.after_admin_flush(cx),
            Phase::Open { .. } => {
                let mut after = AfterFlush::Idle;
                while let Some(notice) = self.take_gap_notice(&mut hub.builder) {
                    hub.metrics.gap_notices_total += 1;
                    self.frames.count(1, cx.id.slot, &mut hub.figures);
                    self.outbox.push(notice, &mut hub.outboxes);
                    after = AfterFlush::More;
                }
                after
            }
            Phase::Closing {
                reason,
                was_open,
                peer,
            } => match peer {
                PeerSide::Open => {
                    *peer = PeerSide::Told;
                    AfterFlush::ShutdownWrite
                }
                PeerSide::Told => AfterFlush::Idle,
                PeerSide::Done => {
                    self.phase = Phase::Gone {
                        reason: *reason,
                        was_open: *was_open,
                    };
                    AfterFlush::Idle
                }
            },
            Phase::Handshake { .. } | Phase::Gone { .. } => AfterFlush::Idle,
        }
    }
}
