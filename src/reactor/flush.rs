//! Step 5 of the turn: the sessions of the flush list are written to, one by one or all with one call of io_uring.
//!
//! Invariant: each session that is taken off the flush list gives its hold on the window back, or is listed again with it.

use std::io::{self, IoSlice};

use super::Reactor;
use super::connections::{Connection, Listed};
use super::flush_list::Hold;
use super::socket::Socket;
use super::tls_port::SealedOffer;
use crate::limits;
use crate::session::clock::Now;
use crate::session::close::CloseReason;
use crate::session::delivery::AfterFlush;
use crate::session::gather::{Gather, Offer};
use crate::session::id::ConnId;
use crate::session::outbox::{FlushReport, Flushed};
use crate::sys::ring::{RingWrite, WRITES_MAX};
use crate::tls::Alert;

const _: () = assert!(
    limits::FLUSHES_PER_TURN_MAX <= WRITES_MAX,
    "all flushes of a turn fit in one system call"
);

/// What one write offers to a socket.
enum Offered {
    Plain(Offer),
    Sealed(SealedOffer),
}

impl Offered {
    fn is_empty(&self) -> bool {
        match self {
            Self::Plain(offer) => offer.bytes == 0,
            Self::Sealed(sealed) => sealed.is_empty(),
        }
    }
}

impl<S: Socket> Reactor<S> {
    /// Sessions that have just been read, and sessions to which events go, take turns.
    pub(super) fn flush_some(&mut self, now: Now) {
        let mut listed = Vec::with_capacity(self.flush.len().min(limits::FLUSHES_PER_TURN_MAX));
        let mut sealed = 0;
        while listed.len() < limits::FLUSHES_PER_TURN_MAX
            && sealed < limits::SEALED_BYTES_PER_TURN_MAX
            && let Some((id, hold)) = self.flush.pop(listed.len().is_multiple_of(2))
        {
            let is_secured = self.is_secured(id);
            match self.connections.get_mut(id) {
                Some(connection) => {
                    connection.listed.remove(Listed::FLUSH);
                    listed.push((id, hold));
                    if is_secured {
                        sealed += connection
                            .session
                            .outbox
                            .bytes()
                            .min(limits::SEALED_BYTES_MAX);
                    }
                }
                None => self.flush.give_back(hold),
            }
        }
        if listed.len() >= limits::RING_WRITES_MIN {
            listed = self.flush_through_ring(listed, now);
        }
        for (id, hold) in listed {
            self.flush_one(id, hold, now);
        }
        if self.flush.is_empty() {
            self.scratch.forget();
        }
    }

    fn flush_one(&mut self, id: ConnId, hold: Hold, now: Now) {
        if self.is_secured(id) {
            return self.flush_secured(id, hold, now);
        }
        let Some(connection) = self.connections.get_mut(id) else {
            return self.flush.give_back(hold);
        };
        let (socket, outbox) = (&mut connection.socket, &mut connection.session.outbox);
        let report = (!outbox.is_empty()).then(|| {
            let write = |slices: &[IoSlice<'_>]| socket.write(slices);
            let totals = &mut self.hub.outboxes;
            outbox.flush(write, &mut self.scratch, now.clock, totals)
        });
        self.after_flush(id, hold, report, now);
    }

    /// As [`Reactor::flush_one`] for all of `listed`, with one system call for as many as
    /// [`limits::CALL_BYTES_MAX`] allows. Returns those that were left alone because there is no ring any more, or no
    /// descriptors.
    fn flush_through_ring(&mut self, listed: Vec<(ConnId, Hold)>, now: Now) -> Vec<(ConnId, Hold)> {
        let mut listed = listed.into_iter();
        let (mut offers, mut outcomes) = (Vec::with_capacity(listed.len()), Vec::new());
        while listed.len() > 0 && self.write_some(listed.as_slice(), &mut offers, &mut outcomes) {
            let mut outcomes = outcomes.drain(..);
            for (offer, (id, hold)) in offers.drain(..).zip(listed.by_ref()) {
                let outcome = (!offer.is_empty()).then(|| outcomes.next()).flatten();
                let offer = match offer {
                    Offered::Plain(offer) => offer,
                    Offered::Sealed(sealed) => {
                        self.after_sealed_write(id, hold, &sealed, outcome, now);
                        continue;
                    }
                };
                let Some(connection) = self.connections.get_mut(id) else {
                    self.flush.give_back(hold);
                    continue;
                };
                let outbox = &mut connection.session.outbox;
                let totals = &mut self.hub.outboxes;
                let report =
                    outcome.map(|outcome| outbox.after_write(outcome, &offer, now.clock, totals));
                self.after_flush(id, hold, report, now);
            }
        }
        listed.collect()
    }

    /// Writes to the first of `listed`, one at least, with one system call. `offers`: what of each of them was written,
    /// one for each; `outcomes`: the results of those that were not empty. False: it is impossible, and nothing was done.
    fn write_some(
        &mut self,
        listed: &[(ConnId, Hold)],
        offers: &mut Vec<Offered>,
        outcomes: &mut Vec<io::Result<usize>>,
    ) -> bool {
        let Some(ring) = &mut self.ring else {
            return false;
        };
        let mut gather = Gather::new(std::mem::take(&mut self.scratch));
        let mut to_seal = Vec::new();
        for (id, _) in listed {
            let tls = self.tls.as_ref();
            let tls = tls.filter(|tls| tls.secured.get(id.slot).is_some());
            let offer = match (self.connections.get(*id), tls) {
                // Before anything is sealed, which cannot be undone.
                (Some(connection), _) if connection.socket.descriptor().is_none() => return false,
                (Some(connection), None) => connection.session.outbox.gather(&mut gather),
                (Some(Connection { session, .. }), Some(tls)) => {
                    to_seal.push((offers.len(), id.slot, session));
                    tls.gather(id.slot, session, &mut gather)
                }
                (None, _) => gather.offer(true),
            };
            offers.push(Offered::Plain(offer));
            if gather.scratch_len() > limits::CALL_BYTES_MAX {
                break;
            }
        }
        let slices = gather.slices();
        if let Some(tls) = &mut self.tls {
            tls.rewind();
            for (index, slot, session) in to_seal {
                if let Some(offered) = offers.get_mut(index)
                    && let Offered::Plain(offer) = offered
                {
                    let offer = offer.clone();
                    *offered = Offered::Sealed(tls.seal(slot, session, &slices, offer));
                }
            }
        }
        let sealed: Vec<[IoSlice<'_>; 1]> = offers
            .iter()
            .filter_map(|offered| match offered {
                Offered::Plain(_) => None,
                Offered::Sealed(sealed) => {
                    let records = self.tls.as_ref().map(|tls| tls.records_of(sealed));
                    Some([IoSlice::new(records.unwrap_or_default())])
                }
            })
            .collect();
        let mut sealed = sealed.iter();
        let mut writes = Vec::with_capacity(offers.len());
        for ((id, _), offered) in listed.iter().zip(&*offers) {
            let slices = match offered {
                Offered::Plain(offer) => Gather::of(&slices, offer),
                Offered::Sealed(_) => sealed.next().map_or(&[][..], |one| one),
            };
            let has_bytes = !offered.is_empty();
            let connection = self.connections.get(*id).filter(|_| has_bytes);
            let Some(connection) = connection else {
                continue;
            };
            let Some(socket) = connection.socket.descriptor() else {
                return false;
            };
            writes.push(RingWrite { socket, slices });
        }
        self.hub.metrics.ring_calls_total += 1;
        let written = ring.write(&writes, outcomes);
        self.scratch = gather.into_scratch();
        if let Err(error) = written {
            log::error!("io_uring broke, each socket is written to by itself from now on: {error}");
            self.ring = None;
        }
        true
    }

    /// Goes on after the flush of a session. `report`: its result; `None`: there was nothing to write.
    pub(super) fn after_flush(
        &mut self,
        id: ConnId,
        hold: Hold,
        report: Option<FlushReport>,
        now: Now,
    ) {
        let Some(connection) = self.connections.get_mut(id) else {
            return self.flush.give_back(hold);
        };
        let Connection {
            session, listed, ..
        } = connection;
        let hub = &mut self.hub;
        if let Some(report) = report {
            hub.metrics.writes_total += 1;
            hub.metrics.written_bytes_total += report.written as u64;
            if hub.trace.is_on() {
                let (_, waiting_bytes) = session.outbox.blocked();
                hub.trace.written(id, report.written, waiting_bytes, now);
            }
            if report.outcome == Flushed::More {
                let has_events = !session.subscriptions().is_empty();
                listed.insert(Listed::FLUSH);
                self.flush.push_again(id, hold, has_events);
                return self.unpark(id);
            }
        }
        self.flush.give_back(hold);
        match report.map(|report| report.outcome) {
            None | Some(Flushed::Drained | Flushed::More) => {}
            Some(Flushed::Blocked) => {
                if listed.enter(Listed::SEND_TIMER) {
                    hub.deadlines.send.begin(now.clock, id);
                }
                return self.unpark(id);
            }
            Some(Flushed::Broken) => {
                session.on_end(true, &mut hub.context(id, now));
                return self.settle(id);
            }
        }
        match session.after_flush(&mut hub.context(id, now)) {
            AfterFlush::Idle => {
                if session.ended().is_some() {
                    self.settle(id);
                } else {
                    self.unpark(id);
                    self.note_ready(id);
                }
            }
            AfterFlush::More => self.settle(id),
            AfterFlush::NextRequest => self.begin_next(id, now),
            AfterFlush::ShutdownWrite => {
                self.end_secured(id, Alert::CLOSE_NOTIFY);
                let connection = self.connections.get_mut(id);
                if connection.is_some_and(|one| one.socket.shutdown_write().is_err()) {
                    self.act(id, now, |session, cx| session.on_end(true, cx));
                }
                self.settle(id);
            }
        }
    }

    /// Writes all that the sockets take, whatever the time it needs: for the end of the process.
    pub fn flush_all(&mut self, now: Now) {
        while !self.flush.is_empty() {
            self.flush_some(now);
        }
    }

    /// While all blocked outboxes together are over `max_outboxes_bytes`, closes the session with the largest; one that is
    /// closing already ends at once. One pass over all sessions serves [`limits::LARGEST_OUTBOXES_MAX`] closes.
    pub(super) fn close_largest(&mut self, now: Now) {
        let max = self.hub.limits.outboxes_bytes_max;
        while self.hub.outboxes.blocked_bytes > max {
            let mut largest: Vec<(usize, ConnId)> = self
                .connections
                .iter()
                .filter(|(_, connection)| {
                    let session = &connection.session;
                    (session.is_open() || session.is_closing() || session.is_admin())
                        && session.outbox.is_blocked()
                })
                .map(|(id, connection)| (connection.session.outbox.blocked().1, id))
                .collect();
            largest.sort_unstable_by(|one, other| other.cmp(one));
            if largest.is_empty() {
                return;
            }
            for (_, id) in largest.into_iter().take(limits::LARGEST_OUTBOXES_MAX) {
                if self.hub.outboxes.blocked_bytes <= max {
                    return;
                }
                let Some(connection) = self.connections.get_mut(id) else {
                    continue;
                };
                if connection.session.is_open() {
                    self.close(id, CloseReason::OutboxesFull, now);
                } else {
                    connection.session.outbox.clear(&mut self.hub.outboxes);
                    self.abandon(id, now);
                }
            }
        }
    }
}
