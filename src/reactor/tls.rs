//! Connections of the TLS port: step 2, their reading; step 3, their handshakes, which threads do; step 5, their records.
//!
//! A session knows nothing of this: it is given plain bytes, and its frames are sealed as they are written, into memory
//! that all sessions share. What stands in clear before TLS, a PROXY header, is the session's.
//!
//! Invariants: no read takes more of a connection than a read of a plain one gives its session, whatever the size of the
//! peer's records; what is left of a record waits here. Records are sealed in the order in which they are written, each
//! once: those that a socket does not take stay in the outbox, and go first. At most [`limits::SEALED_BYTES_MAX`] are sealed
//! for one write.

use std::io::{self, IoSlice};
use std::ops::Range;

use super::Reactor;
use super::connections::{Connection, Listed};
use super::flush_list::{FlushList, Hold};
use super::read::ReadBudget;
use super::secured::{Live, Secure, Secured, Shake};
use super::socket::Socket;
use crate::limits;
use crate::session::Session;
use crate::session::clock::Now;
use crate::session::close::CloseReason;
use crate::session::gather::{Gather, Offer};
use crate::session::id::ConnId;
use crate::session::outbox::FlushReport;
use crate::tls::{Alert, HandshakeLane, Opened, Records, ServerTls, Stepped, Work, Worked};

/// What the loop has for the TLS port.
pub(super) struct Tls {
    /// The way to the threads that do handshakes.
    lane: HandshakeLane,
    /// What new handshakes are served with.
    served: ServerTls,
    pub(super) secured: Secured,
    /// The records of one system call.
    records: Vec<u8>,
    /// The threads may have done more than the last look took.
    has_more: bool,
}

/// What one write offers to the socket of a connection of the TLS port.
#[derive(Debug)]
pub(super) struct SealedOffer {
    /// The plain bytes that the records were made of.
    offer: Offer,
    /// Where the records stand; empty: there is nothing to write.
    place: Range<usize>,
    /// The connection's keys are used up.
    is_spent: bool,
}

impl SealedOffer {
    pub(super) fn is_empty(&self) -> bool {
        self.place.is_empty()
    }

    pub(super) fn is_spent(&self) -> bool {
        self.is_spent
    }
}

impl Tls {
    pub(super) fn new(lane: HandshakeLane, served: ServerTls) -> Self {
        Self {
            lane,
            served,
            secured: Secured::default(),
            records: Vec::new(),
            has_more: false,
        }
    }

    /// Handshakes that begin from now on are served with this; returns what was before.
    pub(super) fn replace(&mut self, served: ServerTls) -> ServerTls {
        std::mem::replace(&mut self.served, served)
    }

    /// What is served now.
    pub(super) fn served(&self) -> &ServerTls {
        &self.served
    }

    /// Forgets the records of the last system call, and keeps the memory.
    pub(super) fn rewind(&mut self) {
        self.records.clear();
    }

    /// Bytes of memory for records.
    pub(super) fn capacity(&self) -> usize {
        self.records.capacity()
    }

    /// Gives back memory that is not in use.
    pub(super) fn shrink(&mut self) {
        self.records = Vec::new();
        self.secured.shrink_if_empty();
    }

    /// What is to be written next to the session's socket: the records that it has not taken, or else those of `offer`.
    pub(super) fn seal(
        &mut self,
        slot: u32,
        session: &Session,
        slices: &[IoSlice<'_>],
        offer: Offer,
    ) -> SealedOffer {
        let begin = self.records.len();
        self.records.extend_from_slice(session.outbox.sealed());
        let is_last = session.is_closing() && offer.is_all;
        let plain = Gather::bytes_of(slices, &offer);
        let live = self.secured.live_mut(slot);
        let is_spent =
            live.is_some_and(|live| live.seal(plain, is_last, &mut self.records).is_err());
        SealedOffer {
            offer,
            place: begin..self.records.len(),
            is_spent,
        }
    }

    /// The bytes of an offer.
    pub(super) fn records_of(&self, sealed: &SealedOffer) -> &[u8] {
        self.records.get(sealed.place.clone()).unwrap_or_default()
    }

    /// Adds the plain bytes that the next write to a session is made of: none before its handshake is done.
    pub(super) fn gather<'o>(
        &self,
        slot: u32,
        session: &'o Session,
        gather: &mut Gather<'o>,
    ) -> Offer {
        match self.secured.get(slot) {
            Some(Secure::Live(_)) => session
                .outbox
                .gather_plain(gather, limits::SEALED_BYTES_MAX),
            Some(Secure::Clear | Secure::Handshake(_)) | None => gather.offer(false),
        }
    }
}

impl<S: Socket> Reactor<S> {
    /// There is a TLS port: `lane` leads to the threads that do its handshakes, with `served`. To be called before the
    /// first turn.
    pub fn take_tls(&mut self, lane: HandshakeLane, served: ServerTls) {
        self.tls = Some(Tls::new(lane, served));
    }

    /// Serves handshakes that begin from now on with this. Returns what was before; `None`: there is no TLS port.
    pub fn renew_tls(&mut self, served: ServerTls) -> Option<ServerTls> {
        Some(self.tls.as_mut()?.replace(served))
    }

    /// What handshakes are served with; `None`: there is no TLS port.
    #[must_use]
    pub fn served_tls(&self) -> Option<&ServerTls> {
        Some(self.tls.as_ref()?.served())
    }

    /// Whether the connection is one of the TLS port.
    pub(super) fn is_secured(&self, id: ConnId) -> bool {
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.secured.get(id.slot).is_some())
    }

    /// Whether nothing may be read of the connection because its handshake is at a thread, or waits for one.
    pub(super) fn is_in_thread(&self, id: ConnId) -> bool {
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.secured.is_busy(id.slot))
    }

    /// Whether handshakes can go on without a wait.
    pub(super) fn has_handshakes(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.has_more || (tls.secured.waiting() > 0 && tls.lane.has_room()))
    }

    /// Takes what the threads have done, and gives them what waits.
    pub(super) fn go_on_with_handshakes(&mut self, now: Now) {
        let Some(tls) = &mut self.tls else {
            return;
        };
        if tls.secured.is_empty() {
            tls.has_more = false;
            return;
        }
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
        while self
            .tls
            .as_ref()
            .is_some_and(|tls| tls.secured.handshake_bytes() > limits::HANDSHAKES_BYTES_MAX)
            && self.evict_unfinished(now)
        {}
        let Some(Tls {
            lane,
            served,
            secured,
            ..
        }) = &mut self.tls
        else {
            return;
        };
        while lane.has_room()
            && let Some((id, handshake, input)) = secured.next_waiting()
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

    /// Goes on with a connection whose handshake a thread has had.
    fn take_handshake(&mut self, worked: Worked, now: Now) {
        let Worked { word, out, stepped } = worked;
        let id = ConnId::from_word(word);
        let (Some(connection), Some(tls)) = (self.connections.get_mut(id), &mut self.tls) else {
            return;
        };
        let metrics = &mut self.hub.metrics;
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
                metrics.tls_handshakes_failed_total += 1;
                log::debug!("TLS handshake failed: {}", fault.word());
                if connection.session.outbox.is_empty() {
                    // A new socket has room for the alert; a peer that is gone needs none.
                    let _untold = connection.socket.write(&[IoSlice::new(&out)]);
                }
                return self.act(id, now, |session, cx| session.on_end(true, cx));
            }
        };
        if !tls.secured.come_back(id.slot, next) || connection.session.ended().is_some() {
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
        self.settle_listing(id, FlushList::push_spoke);
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
            return;
        }
        if is_spent {
            return self.list_reread(id);
        }
        self.read_secured_once(id, budget, now);
        self.note_unfinished(id);
        self.settle_listing(id, FlushList::push_spoke);
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
        let mut has_more = connection.listed.contains(Listed::HAS_ENDED);
        let mut count = 0;
        if missing != Some(0) {
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
                    hub.metrics.tls_truncated_total += u64::from(live.is_some());
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
                let opening = Opening {
                    input,
                    plain: before.plain,
                    left: wanted,
                };
                let opened = opening.deliver(live, |plain| {
                    connection
                        .session
                        .on_bytes(plain, &mut hub.context(id, now));
                    connection.session.wants_bytes() && connection.session.ended().is_none()
                });
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
                        hub.metrics.tls_records_refused_total += 1;
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
                Some(First::Http) => {
                    self.hub.metrics.tls_clear_http_total += 1;
                    let network = session.peer(&self.hub).network();
                    tls.secured.remove(id, network);
                    return session.refuse_clear(&mut self.hub.context(id, now));
                }
                Some(First::Other) => {
                    self.hub.metrics.tls_handshakes_failed_total += 1;
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

    /// Tells the peer of a live connection that nothing follows, unless it was told, or the socket is full.
    pub(super) fn end_secured(&mut self, id: ConnId, alert: Alert) {
        let (Some(connection), Some(tls)) = (self.connections.get_mut(id), &mut self.tls) else {
            return;
        };
        let Some(live) = tls.secured.live_mut(id.slot) else {
            return;
        };
        if connection.session.outbox.sealed().is_empty() {
            let mut out = Vec::new();
            live.end(alert, &mut out);
            // A peer that does not take it sees the end of the stream.
            let _untold = connection.socket.write(&[IoSlice::new(&out)]);
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
        let report: Option<FlushReport> = outcome.map(|outcome| {
            connection.session.outbox.after_sealed_write(
                outcome,
                &sealed.offer,
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

/// What the first bytes of a connection of the TLS port are.
enum First {
    /// A record of a handshake (RFC 8446 section 5.1).
    Handshake,
    /// A request of HTTP, in clear.
    Http,
    /// Nothing that is spoken here.
    Other,
}

impl First {
    /// `None`: there are none.
    fn of(bytes: &[u8]) -> Option<Self> {
        Some(match bytes.first()? {
            0x16 => Self::Handshake,
            b'A'..=b'Z' => Self::Http,
            _ => Self::Other,
        })
    }
}

/// Records under way to a session.
struct Opening<'i> {
    /// First plain bytes, then records.
    input: &'i mut [u8],
    /// How many are plain.
    plain: usize,
    /// How many plain bytes the session may still be given.
    left: usize,
}

impl Opening<'_> {
    /// Gives a session plain bytes, as long as it may be given some and `deliver` says that it wants more, and keeps the
    /// rest in `live`. True: the peer has said that nothing follows.
    ///
    /// # Errors
    /// A record was wrong: what the peer is to be told.
    fn deliver(
        mut self,
        live: &mut Live,
        mut deliver: impl FnMut(&mut [u8]) -> bool,
    ) -> Result<bool, Alert> {
        let mut wants_more = self.left > 0;
        // Where the plain bytes begin, and where the records behind them.
        let mut begin = 0;
        let mut behind = self.plain;
        while wants_more {
            if self.plain > 0 {
                let count = self.plain.min(self.left);
                let bytes = self.input.get_mut(begin..begin + count);
                wants_more = deliver(bytes.unwrap_or_default());
                (begin, self.plain, self.left) =
                    (begin + count, self.plain - count, self.left - count);
                wants_more &= self.left > 0;
                continue;
            }
            begin = behind;
            let next = self.input.get_mut(behind..).unwrap_or_default();
            let length = Records::record_len(next).map_err(|error| error.alert())?;
            let Some(record) = length.and_then(|length| next.get_mut(..length)) else {
                break;
            };
            let length = record.len();
            match live.records.open(record).map_err(|error| error.alert())? {
                Opened::Data(place) => {
                    (begin, self.plain) = (behind + place.start, place.len());
                }
                Opened::Nothing => {}
                Opened::End => return Ok(true),
            }
            behind += length;
            if self.plain == 0 {
                begin = behind;
            }
        }
        // The tag of the last record stands between what is plain and the records behind it.
        let plain_end = begin + self.plain;
        self.input.copy_within(behind.., plain_end);
        let end = self.input.len() - (behind - plain_end);
        live.keep(self.input.get(begin..end).unwrap_or_default(), self.plain);
        Ok(false)
    }
}
