//! Connections of the TLS port: step 2, their reading; step 3, their handshakes, which threads do; step 5, their writes.
//!
//! A session knows nothing of this: it is given plain bytes, and its frames are sealed as they are written, into memory
//! that all sessions share. What stands in clear before TLS, a PROXY header, is the session's.
//!
//! Invariants: no read gives a session more than a read of a plain connection does, whatever the size of its peer's records.
//! A socket is read on after what was kept of it was taken, because the poll does not tell twice.

use std::io::{self, IoSlice};

use super::Reactor;
use super::connections::{Connection, Listed};
use super::flush_list::{FlushList, Hold};
use super::read::ReadBudget;
use super::secured::{Live, Secure, Shake};
use super::socket::Socket;
use super::tls_port::{SealedOffer, TlsPort};
use super::unsealing::{First, Unsealing};
use crate::limits;
use crate::metrics::Metrics;
use crate::session::clock::Now;
use crate::session::close::CloseReason;
use crate::session::gather::Gather;
use crate::session::id::ConnId;
use crate::tls::{Alert, HandshakeFault, HandshakeLane, ServerTls, Stepped, Version, Work, Worked};

impl<S: Socket> Reactor<S> {
    /// There is a TLS port: `lane` leads to the threads that do its handshakes, with `served`. To be called before the
    /// first turn.
    pub fn take_tls(&mut self, lane: HandshakeLane, served: ServerTls) {
        self.tls = Some(TlsPort::new(lane, served));
    }

    /// Serves handshakes that begin from now on with this, if there is a TLS port.
    pub fn renew_tls(&mut self, served: ServerTls) {
        if let Some(tls) = &mut self.tls {
            tls.served = served;
        }
    }

    /// What handshakes are served with; `None`: there is no TLS port.
    #[must_use]
    pub fn served_tls(&self) -> Option<&ServerTls> {
        Some(&self.tls.as_ref()?.served)
    }

    /// Whether the connection is one of the TLS port.
    pub(super) fn is_secured(&self, id: ConnId) -> bool {
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.secured.get(id.slot).is_some())
    }

    /// The connection's version of TLS; `None`: it has none, or its handshake is not done.
    pub(super) fn tls_version(&self, id: ConnId) -> Option<Version> {
        self.tls.as_ref()?.secured.version(id.slot)
    }

    /// Whether nothing may be read of the connection because its handshake is at a thread, or waits for one.
    pub(super) fn is_in_thread(&self, id: ConnId) -> bool {
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.secured.is_busy(id.slot))
    }

    /// Whether handshakes can go on without a wait.
    pub(super) fn has_handshakes(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| {
            tls.has_more
                || (tls.secured.waiting_to_begin() > 0 && tls.lane.has_room_to_begin())
                || (tls.secured.waiting_to_go_on() > 0 && tls.lane.has_room_to_go_on())
        })
    }

    /// Takes what the threads have done, and gives them what waits.
    pub(super) fn go_on_with_handshakes(&mut self, now: Now) {
        let Some(tls) = &mut self.tls else {
            return;
        };
        tls.has_more = true;
        for _ in 0..limits::HANDSHAKES_PER_TURN_MAX {
            let Some(tls) = &mut self.tls else {
                return;
            };
            let Some(worked) = tls.lane.take() else {
                tls.has_more = false;
                break;
            };
            self.take_handshake(worked, now);
        }
        self.evict_handshakes(now);
        let Some(TlsPort {
            lane,
            served,
            secured,
            ..
        }) = &mut self.tls
        else {
            return;
        };
        // Those under way first: each has had its turn between the networks, and is nearly done.
        for begins in [false, true] {
            while has_room(lane, begins)
                && let Some((id, handshake, input)) = secured.next_waiting(begins)
            {
                let work = Work {
                    word: id.to_word(),
                    handshake,
                    input,
                };
                // There was room, and nobody else gives.
                if lane.give(work, served).is_err() {
                    break;
                }
            }
        }
    }

    /// While handshakes hold too much, ends the oldest of the network that has most.
    fn evict_handshakes(&mut self, now: Now) {
        for _ in 0..limits::HANDSHAKES_PER_TURN_MAX {
            let Some(tls) = &self.tls else {
                return;
            };
            if tls.secured.handshake_bytes() <= limits::HANDSHAKES_BYTES_MAX {
                return;
            }
            let Some(id) = tls.secured.first_to_go() else {
                return;
            };
            self.evict(id, now);
        }
    }

    /// Goes on with a connection whose handshake a thread has had.
    fn take_handshake(&mut self, worked: Worked, now: Now) {
        let Worked { word, out, stepped } = worked;
        let id = ConnId::from_word(word);
        let (Some(connection), Some(tls)) = (self.connections.get_mut(id), &mut self.tls) else {
            return;
        };
        let metrics = &mut self.hub.metrics;
        // A ticket waits for the first answer, and leaves with it in one write.
        let is_ticket = matches!(&stepped, Stepped::Done(done) if done.version == Version::Tls13);
        let next = match stepped {
            Stepped::GoesOn(handshake) => Secure::Handshake(Shake::Listening(handshake)),
            Stepped::Done(done) => {
                let counter = if done.is_resumed {
                    &mut metrics.tls_handshakes_resumed_total
                } else {
                    &mut metrics.tls_handshakes_full_total
                };
                *counter += 1;
                Secure::Live(Live::new(done.records, done.rest))
            }
            Stepped::Failed(fault) => {
                count_fault(fault, metrics);
                let peer = connection.session.peer(&self.hub);
                log::debug!("TLS handshake of {peer} failed: {fault}");
                if connection.session.outbox.is_empty() {
                    // A new socket has room for the alert; a peer that is gone needs none.
                    let _untold = connection.socket.write(&[IoSlice::new(&out)]);
                }
                return self.act(id, now, |session, cx| session.on_end(true, cx));
            }
        };
        let network = connection.session.peer(&self.hub).network();
        if !tls.secured.come_back(id, network, next) || connection.session.ended().is_some() {
            return;
        }
        let outbox = &mut connection.session.outbox;
        outbox.push_sealed(&out, &mut self.hub.outboxes);
        let has_rest = tls
            .secured
            .live_mut(id.slot)
            .is_some_and(|live| live.kept_len() > 0);
        if has_rest || connection.listed.contains(Listed::PARKED) {
            connection.listed.remove(Listed::PARKED);
            self.list_reread(id);
        }
        if !is_ticket {
            self.settle_listing(id, FlushList::push_spoke);
        }
    }

    /// As [`Reactor::read`], of a connection of the TLS port.
    pub(super) fn read_secured(&mut self, id: ConnId, budget: &mut ReadBudget, now: Now) {
        let is_in_thread = self.is_in_thread(id);
        let is_spent = self.is_spent(budget);
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if is_in_thread || !connection.session.wants_bytes() {
            connection.listed.insert(Listed::PARKED);
            let has_ended = connection.listed.contains(Listed::HAS_ENDED);
            let tls = self.tls.as_ref();
            if has_ended && tls.is_some_and(|tls| tls.secured.is_to_begin(id.slot)) {
                // Its peer cannot finish it, so no thread needs to begin it.
                self.act(id, now, |session, cx| session.on_end(false, cx));
            }
            return;
        }
        if connection.session.is_closing() {
            self.forget_kept(id, now);
        }
        if is_spent {
            return self.list_reread(id);
        }
        self.read_secured_once(id, budget, now);
        self.note_unfinished(id);
        self.settle_listing(id, FlushList::push_spoke);
    }

    /// Drops what was read of a connection and not taken: nothing of it is wanted any more.
    pub(super) fn forget_kept(&mut self, id: ConnId, now: Now) {
        let (Some(connection), Some(tls)) = (self.connections.get_mut(id), &mut self.tls) else {
            return;
        };
        if let Some(live) = tls.secured.live_mut(id.slot)
            && live.kept_len() > 0
        {
            live.take_kept();
            let mut cx = self.hub.context(id, now);
            connection.session.note_beneath(0, &mut cx);
        }
    }

    fn read_secured_once(&mut self, id: ConnId, budget: &mut ReadBudget, now: Now) {
        let Self {
            connections,
            hub,
            tls: Some(tls),
            read_buffer,
            ..
        } = self
        else {
            return;
        };
        let (Some(connection), live) = (connections.get_mut(id), tls.secured.live_mut(id.slot))
        else {
            return;
        };
        let wanted = connection.session.read_bytes_max();
        let (kept, missing) = match &live {
            Some(live) => (live.kept_len(), live.missing()),
            None => (0, None),
        };
        // What is kept is taken first; whether the socket has more is not known then.
        let is_kept_enough = missing == Some(0);
        let mut has_more = connection.listed.contains(Listed::HAS_ENDED) || is_kept_enough;
        let mut count = 0;
        if !is_kept_enough {
            let overhead = if live.is_some() {
                limits::RECORD_OVERHEAD_BYTES_MAX
            } else {
                0
            };
            let most = wanted.saturating_add(overhead).max(missing.unwrap_or(0));
            let room = read_buffer.get_mut(kept..).unwrap_or_default();
            let most = most.min(room.len());
            hub.metrics.reads_total += 1;
            match connection
                .socket
                .read(room.get_mut(..most).unwrap_or_default())
            {
                Ok(0) => {
                    hub.metrics.tls_truncated_total += u64::from(connection.session.is_open());
                    return connection.session.on_end(false, &mut hub.context(id, now));
                }
                Ok(read) => count = read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    return self.list_reread(id);
                }
                Err(_) => return connection.session.on_end(true, &mut hub.context(id, now)),
            }
            has_more |= count == most;
            budget.take(count);
            hub.metrics.read_bytes_total += count as u64;
        }
        hub.work.frames_read += 1;
        if connection.listed.contains(Listed::UNFINISHED) {
            connection.listed.remove(Listed::UNFINISHED);
            let network = connection.session.peer(hub).network();
            self.unfinished.remove(network, id);
        }
        match live {
            None => {
                let input = read_buffer.get(..count).unwrap_or_default().to_vec();
                self.take_clear(id, input, now);
                if has_more {
                    self.list_reread(id);
                }
            }
            // What comes now is thrown away, sealed as it is.
            Some(_) if connection.session.is_closing() => {
                if has_more {
                    self.list_reread(id);
                }
            }
            Some(live) => {
                let before = live.take_kept();
                if let Some(front) = read_buffer.get_mut(..kept) {
                    front.copy_from_slice(&before.bytes);
                }
                let input = read_buffer.get_mut(..kept + count).unwrap_or_default();
                let unsealing = Unsealing {
                    input,
                    plain: before.plain,
                    left: wanted,
                };
                let mut records = 0;
                let opened = unsealing.deliver(live, &mut records, |plain| {
                    connection
                        .session
                        .on_bytes(plain, &mut hub.context(id, now));
                    let session = &connection.session;
                    session.wants_bytes() && !session.is_closing() && session.ended().is_none()
                });
                // However little a record holds, it costs as much as a frame.
                hub.work.frames_read += records;
                if kept > 0 || live.kept_len() > 0 {
                    connection
                        .session
                        .note_beneath(live.kept_len(), &mut hub.context(id, now));
                }
                has_more |= live.missing() == Some(0);
                match opened {
                    Ok(false) => {
                        if has_more {
                            self.list_reread(id);
                        }
                    }
                    // The peer sends nothing more: as the end of its side of the stream.
                    Ok(true) => connection.session.on_end(false, &mut hub.context(id, now)),
                    Err(alert) => {
                        // An alert of the peer's is answered with that.
                        let is_refused = alert != Alert::CLOSE_NOTIFY;
                        hub.metrics.tls_records_refused_total += u64::from(is_refused);
                        self.refuse_record(id, alert, now);
                    }
                }
            }
        }
    }

    /// Takes bytes of a connection whose handshake is not done.
    fn take_clear(&mut self, id: ConnId, mut input: Vec<u8>, now: Now) {
        let (Some(connection), Some(tls)) = (self.connections.get_mut(id), &mut self.tls) else {
            return;
        };
        let session = &mut connection.session;
        if let Some(Secure::Clear) = tls.secured.get(id.slot) {
            let mut cx = self.hub.context(id, now);
            let Some(behind) = session.on_clear_bytes(&input, &mut cx) else {
                return;
            };
            if session.is_beyond_surplus(&self.hub) {
                return session.close(CloseReason::NoPlace, &mut self.hub.context(id, now));
            }
            match First::of(&behind) {
                None => return,
                Some(First::Handshake) => input = behind,
                Some(first @ (First::Http | First::ProxyHeader)) => {
                    let metrics = &mut self.hub.metrics;
                    let (counter, problem) = match first {
                        First::ProxyHeader => (
                            &mut metrics.proxy_headers_untrusted_total,
                            "no PROXY header is taken from this address",
                        ),
                        _ => (
                            &mut metrics.tls_clear_http_total,
                            "plain HTTP on the TLS port: use wss or https",
                        ),
                    };
                    *counter += 1;
                    let network = session.peer(&self.hub).network();
                    tls.secured.remove(id, network);
                    return session.refuse_clear(problem, &mut self.hub.context(id, now));
                }
                Some(First::Other) => {
                    count_fault(HandshakeFault::Malformed, &mut self.hub.metrics);
                    return session.on_end(true, &mut self.hub.context(id, now));
                }
            }
        }
        let network = session.peer(&self.hub).network();
        tls.secured.wait(id, network, input);
    }

    /// Ends a connection that sent a wrong record, with an alert where that can be told.
    fn refuse_record(&mut self, id: ConnId, alert: Alert, now: Now) {
        self.end_secured(id, alert);
        self.act(id, now, |session, cx| session.on_end(true, cx));
    }

    /// Tells the peer of a live connection that nothing follows (RFC 8446 section 6.1), unless it was told, or frames wait
    /// that it does not take.
    pub(super) fn end_secured(&mut self, id: ConnId, alert: Alert) {
        let (Some(connection), Some(tls)) = (self.connections.get_mut(id), &mut self.tls) else {
            return;
        };
        let Some(live) = tls.secured.live_mut(id.slot) else {
            return;
        };
        let outbox = &mut connection.session.outbox;
        let has_only_sealed = outbox.bytes() == outbox.sealed().len();
        if has_only_sealed && !outbox.is_blocked() {
            let mut out = outbox.sealed().to_vec();
            outbox.clear(&mut self.hub.outboxes);
            live.end(alert, &mut out);
            if !out.is_empty() {
                // A peer that does not take it sees the end of the stream.
                let _untold = connection.socket.write(&[IoSlice::new(&out)]);
            }
        }
    }

    /// As [`Reactor::flush_one`], of a connection of the TLS port.
    pub(super) fn flush_secured(&mut self, id: ConnId, hold: Hold, now: Now) {
        let (Some(connection), Some(tls)) = (self.connections.get_mut(id), &mut self.tls) else {
            return self.flush.give_back(hold);
        };
        let Connection {
            socket, session, ..
        } = connection;
        tls.rewind();
        let mut gather = Gather::new(std::mem::take(&mut self.scratch));
        let offer = tls.gather(id.slot, session, &mut gather);
        let sealed = tls.seal(id.slot, session, &gather.slices(), offer);
        self.scratch = gather.into_scratch();
        let outcome =
            (!sealed.is_empty()).then(|| socket.write(&[IoSlice::new(tls.records_of(&sealed))]));
        self.after_sealed_write(id, hold, &sealed, outcome, now);
    }

    /// Goes on after a write of `sealed`. `outcome`: of the write; `None`: there was nothing to write.
    pub(super) fn after_sealed_write(
        &mut self,
        id: ConnId,
        hold: Hold,
        sealed: &SealedOffer,
        outcome: Option<io::Result<usize>>,
        now: Now,
    ) {
        let (Some(connection), Some(tls)) = (self.connections.get_mut(id), &self.tls) else {
            return self.flush.give_back(hold);
        };
        if sealed.is_spent() {
            self.flush.give_back(hold);
            return self.act(id, now, |session, cx| session.on_end(true, cx));
        }
        let report = outcome.map(|outcome| {
            connection.session.outbox.after_sealed_write(
                outcome,
                sealed.plain(),
                tls.records_of(sealed),
                now.clock,
                &mut self.hub.outboxes,
            )
        });
        self.after_flush(id, hold, report, now);
    }

    /// Takes a connection of the TLS port in, whose session has been made. False: it is one too many of its address, and
    /// there are too many such to keep it until it can be told.
    pub(super) fn secure(&mut self, id: ConnId, now: Now) -> bool {
        let (Some(connection), Some(tls)) = (self.connections.get_mut(id), &mut self.tls) else {
            return false;
        };
        if connection.session.is_beyond_surplus(&self.hub) {
            let mut cx = self.hub.context(id, now);
            connection.session.close(CloseReason::NoPlace, &mut cx);
            self.remove(id);
            return false;
        }
        tls.secured.insert(id.slot);
        true
    }
}

fn has_room(lane: &HandshakeLane, begins: bool) -> bool {
    if begins {
        lane.has_room_to_begin()
    } else {
        lane.has_room_to_go_on()
    }
}

/// Counts a handshake that failed. O(1).
fn count_fault(fault: HandshakeFault, metrics: &mut Metrics) {
    metrics.tls_handshakes_failed_total += 1;
    let counter = match fault {
        HandshakeFault::Malformed => &mut metrics.tls_faults_malformed_total,
        HandshakeFault::TooLong => &mut metrics.tls_faults_too_long_total,
        HandshakeFault::Incompatible => &mut metrics.tls_faults_incompatible_total,
        HandshakeFault::NoProtocol => &mut metrics.tls_faults_no_protocol_total,
        HandshakeFault::NoCertificate => &mut metrics.tls_faults_no_certificate_total,
        HandshakeFault::BadCertificate => &mut metrics.tls_faults_bad_certificate_total,
        HandshakeFault::Misbehaved => &mut metrics.tls_faults_misbehaved_total,
        HandshakeFault::Alerted(_) => &mut metrics.tls_faults_alerted_total,
        HandshakeFault::Internal => &mut metrics.tls_faults_internal_total,
        HandshakeFault::Panicked => &mut metrics.tls_faults_panicked_total,
    };
    *counter += 1;
}
