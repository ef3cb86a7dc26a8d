//! How a session ends: with a close frame, by the peer, or without a word; and what it gives back.
//!
//! Invariant: a session leaves everything that is shared when it stops being open. Only the totals of its outbox, and what
//! it counts for, stay until it is taken from the table.

use crate::protocol::frame::Frame;

use super::close::CloseReason;
use super::hub::{Context, Hub};
use super::{PeerSide, Phase, Session};

impl Session {
    /// Closes an open session with the close frame of `reason`, and any other without a word. What is in
    /// the outbox is sent first. If the socket is full, it is dropped, unless the process drains: then the peer has time as
    /// long as it takes bytes and the process lasts. The loop does not wait for a dead peer.
    pub fn close(&mut self, reason: CloseReason, cx: &mut Context<'_>) {
        let frame = reason.frame().map(|(code, text)| Frame::close(code, text));
        let peer = if reason == CloseReason::Dead {
            PeerSide::Done
        } else {
            PeerSide::Open
        };
        self.begin_closing(reason, frame, peer, cx);
    }

    /// Closes an open session as the operator says it: with this code and this reason, at most 123 bytes (RFC 6455 section
    /// 5.5).
    pub fn close_for_operator(&mut self, code: u16, reason: &str, cx: &mut Context<'_>) {
        if self.is_open() {
            let frame = Frame::close(code, reason);
            self.begin_closing(CloseReason::Operator, Some(frame), PeerSide::Open, cx);
        }
    }

    pub(super) fn begin_closing(
        &mut self,
        reason: CloseReason,
        frame: Option<Frame>,
        peer: PeerSide,
        cx: &mut Context<'_>,
    ) {
        match &self.phase {
            Phase::Handshake { .. } | Phase::Admin(_) => {
                self.phase = Phase::Gone {
                    reason,
                    was_open: false,
                };
                self.note_partial(cx);
            }
            Phase::Closing { .. } | Phase::Gone { .. } => {}
            Phase::Open { .. } => {
                if cx.hub.trace.is_on() {
                    self.tell_closed(reason, frame.as_ref(), cx);
                }
                self.leave(cx);
                if reason == CloseReason::Drain {
                    while let Some(notice) = self.take_gap_notice(&mut cx.hub.builder) {
                        cx.hub.metrics.gap_notices_total += 1;
                        self.outbox.push(notice, &mut cx.hub.outboxes);
                    }
                } else if self.outbox.is_blocked() {
                    self.outbox.forget_unbegun(&mut cx.hub.outboxes);
                }
                if let Some(frame) = frame {
                    self.outbox.push(frame, &mut cx.hub.outboxes);
                }
                self.phase = Phase::Closing {
                    reason,
                    was_open: true,
                    peer,
                };
                self.note_partial(cx);
                cx.hub.deadlines.close.begin(cx.now.clock, cx.id);
            }
        }
    }

    /// The peer closed its side of the stream, or the connection broke (`is_broken`).
    pub fn on_end(&mut self, is_broken: bool, cx: &mut Context<'_>) {
        match &mut self.phase {
            Phase::Closing { peer, .. } if !is_broken && !self.outbox.is_empty() => {
                *peer = PeerSide::Done
            }
            Phase::Closing {
                reason, was_open, ..
            } => {
                self.phase = Phase::Gone {
                    reason: *reason,
                    was_open: *was_open,
                };
            }
            Phase::Admin(_) => self.on_admin_end(is_broken),
            Phase::Handshake { .. } => {
                self.phase = Phase::Gone {
                    reason: CloseReason::Lost,
                    was_open: false,
                };
                self.note_partial(cx);
            }
            Phase::Open { .. } => {
                if cx.hub.trace.is_on() {
                    self.tell_closed(CloseReason::Lost, None, cx);
                }
                self.leave(cx);
                self.phase = Phase::Gone {
                    reason: CloseReason::Lost,
                    was_open: true,
                };
                self.note_partial(cx);
            }
            Phase::Gone { .. } => {}
        }
    }

    /// Ends an unfinished handshake, or a connection of the admin address, to make room for another connection.
    pub fn evict(&mut self, cx: &mut Context<'_>) {
        match self.phase {
            Phase::Admin(_) => {
                self.phase = Phase::Gone {
                    reason: CloseReason::AdminEvicted,
                    was_open: false,
                };
            }
            Phase::Handshake { .. } => {
                self.phase = Phase::Gone {
                    reason: CloseReason::Evicted,
                    was_open: false,
                };
                self.note_partial(cx);
            }
            Phase::Open { .. } | Phase::Closing { .. } | Phase::Gone { .. } => self.abandon(cx),
        }
    }

    /// Ends a session at once: its time to close in good order is over.
    pub fn abandon(&mut self, cx: &mut Context<'_>) {
        match self.phase {
            Phase::Closing {
                reason, was_open, ..
            } => self.phase = Phase::Gone { reason, was_open },
            Phase::Handshake { .. } | Phase::Admin(_) | Phase::Open { .. } => {
                self.on_end(true, cx);
            }
            Phase::Gone { .. } => {}
        }
    }

    /// Takes the session out of what is shared, except the totals of its outbox and what it counts for. Linear in what it
    /// had.
    fn leave(&mut self, cx: &mut Context<'_>) {
        if let Phase::Open {
            rare: Some(rare), ..
        } = &mut self.phase
        {
            cx.hub.labels.drop_label(&mut rare.label);
        }
        cx.hub.figures.forget(cx.id.slot);
        self.stop_waiting(cx);
        self.drop_replay(cx);
        if !self.subscriptions.is_empty() {
            let list = &mut self.subscriptions;
            cx.hub
                .subscriptions
                .unsubscribe(list, None, None, &mut Vec::new());
        }
    }

    /// Gives back the rest of what a session that has ended has of what is shared.
    pub fn dissolve(mut self, hub: &mut Hub) {
        self.outbox.clear(&mut hub.outboxes);
        if self.shape.is_deflated() {
            hub.compression.leave();
        }
        self.give_account_back(hub);
        let network = self.peer(hub).network();
        hub.occupancy.leave(self.place, &network);
        hub.peers.forget(self.peer);
    }
}
