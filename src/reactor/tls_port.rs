//! What the loop keeps for the TLS port ([`super::tls`]): the way to the threads that do handshakes, what handshakes are
//! served with, the connections, and the records of one system call.
//!
//! Invariants: records are sealed in the order in which they are written, each once: those that a socket does not take stay in
//! the outbox, and go first. At most [`limits::SEALED_BYTES_MAX`] plain bytes are sealed for one write.

use std::io::IoSlice;
use std::ops::Range;

use super::secured::{Secure, Secured};
use crate::limits;
use crate::session::Session;
use crate::session::gather::{Gather, Offer};
use crate::tls::{HandshakeLane, ServerTls};

/// What the loop has for the TLS port.
pub(super) struct TlsPort {
    /// The way to the threads that do handshakes.
    pub(super) lane: HandshakeLane,
    /// What new handshakes are served with.
    pub(super) served: ServerTls,
    /// The connections.
    pub(super) secured: Secured,
    /// The records of one system call.
    records: Vec<u8>,
    /// The threads may have done more than the last look took.
    pub(super) has_more: bool,
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

    /// The plain bytes that the records were made of.
    pub(super) fn plain(&self) -> &Offer {
        &self.offer
    }

    pub(super) fn is_spent(&self) -> bool {
        self.is_spent
    }
}

impl TlsPort {
    pub(super) fn new(lane: HandshakeLane, served: ServerTls) -> Self {
        Self {
            lane,
            served,
            secured: Secured::default(),
            records: Vec::new(),
            has_more: false,
        }
    }

    /// How many handshakes wait for a thread, in the loop or in its lane.
    pub(super) fn waiting(&self) -> usize {
        self.secured.waiting() + self.lane.waiting()
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
