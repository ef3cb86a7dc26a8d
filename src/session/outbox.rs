//! The frames that wait for one peer. Nothing else is ever written to its socket, and they leave in the order in which
//! they were pushed.
//!
//! A *piece* is a shared frame, and the request id that the session has of its own in it, if it has one. The two become
//! bytes in a row only for the time of a write ([`Gather`]).
//!
//! Invariants: an empty outbox owns no memory. Frames are shared, never copied. Only a prefix of the first piece may have
//! been written, and `bytes` is the sum of the pieces' lengths without that prefix, and of the sealed records. [`OutboxTotals`] are the sums over all
//! *blocked* outboxes, whose last write would have blocked. A blocked outbox holds no merged frame: it is split into its
//! parts when the socket does not take it, so that the limits count messages.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::Duration;

use arcstr::ArcStr;
use arrayvec::ArrayString;

use super::gather::{Full, Gather, Offer};
use super::scratch::Scratch;
use crate::protocol::frame::Frame;
use crate::protocol::tail::Tail;

/// What happens to a session that reads too slowly (PROTOCOL 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowConsumerPolicy {
    /// Closed with 4408.
    Close,
    /// New events are dropped and counted.
    Drop,
}

/// A request id of at most the usual length, which needs no memory of its own.
type ShortId = ArrayString<SHORT_ID_BYTES_MAX>;

/// No longer than what makes the node of a lone frame as large as that of a queue.
const SHORT_ID_BYTES_MAX: usize = 68;

/// How many frames a new queue has room for: a burst of as many costs one allocation a session.
const MERGED_FRAMES_USUAL: usize = 8;

/// Frames waiting for one peer: one word.
///
/// An idle session has none. A lone frame, of which nothing is written, for a socket that is believed to take it, is one
/// node, which all its sessions share if they have no request id. Anything else is a queue, in a node of this session
/// alone.
#[derive(Debug, Default)]
pub struct Outbox(Option<Rc<Node>>);

/// One frame for many outboxes. To clone it costs one reference count.
#[derive(Clone, Debug)]
pub struct Parcel(Rc<Node>);

#[derive(Debug)]
enum Node {
    /// For several sessions.
    Shared(Frame),
    /// For one session, with its request id.
    Own(Frame, ShortId),
    Many(Queue),
}

impl From<Frame> for Parcel {
    fn from(frame: Frame) -> Self {
        Self(Rc::new(Node::Shared(frame)))
    }
}

impl Parcel {
    /// The frame.
    #[must_use]
    pub fn frame(&self) -> Option<&Frame> {
        match &*self.0 {
            Node::Shared(frame) => Some(frame),
            Node::Own(..) | Node::Many(_) => None,
        }
    }
}

/// A frame, or a merged one, for one session.
#[derive(Clone, Debug)]
struct Piece {
    frame: Frame,
    request_id: Option<ArcStr>,
}

impl From<Frame> for Piece {
    fn from(frame: Frame) -> Self {
        Self {
            frame,
            request_id: None,
        }
    }
}

impl Piece {
    fn new(frame: &Frame, request_id: Option<&str>) -> Self {
        Self {
            frame: frame.clone(),
            request_id: request_id.map(ArcStr::from),
        }
    }

    fn tail(&self) -> Option<Tail<'_>> {
        self.request_id.as_deref().map(Tail)
    }

    /// Bytes on the wire. O(1) without a request id; otherwise linear in the frames that were merged.
    fn len(&self) -> usize {
        let plain = self.frame.len();
        self.tail().map_or(plain, |tail| tail.len_of(&self.frame))
    }
}

/// Frames that merged, or that a socket did not take.
#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are written.
    begun: usize,
    /// Bytes that are not written.
    bytes: usize,
    state: QueueState,
    /// What must be announced before the next event.
    owed: Option<Box<Owed>>,
    /// What goes before the pieces, as it is.
    sealed: Option<Box<Sealed>>,
}

/// What the policy `drop` has left out.
#[derive(Debug, Default)]
struct Owed {
    /// Events dropped since the last notice of a gap.
    dropped: u64,
    /// The latest notice of an outage for which there was no room.
    outage: Option<Frame>,
}

/// TLS records that the socket has not taken. Their plain bytes have left the outbox, and their keys have moved on, so they
/// must be sent, before anything else.
#[derive(Debug, Default)]
struct Sealed(Vec<u8>);

/// Whether the socket takes frames, as far as we know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum QueueState {
    /// The socket is not known to be full: a write is due.
    #[default]
    Ready,
    /// The last write would have blocked. `progress_at`: when the socket last took a byte, or first refused one, or when
    /// fewer bytes were `unacknowledged` by the peer than at the check before (`usize::MAX`: not checked yet).
    Blocked {
        progress_at: Duration,
        unacknowledged: usize,
    },
}

/// The sums over all blocked outboxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxTotals {
    /// Bytes that wait; a shared frame counts once for each session.
    pub blocked_bytes: usize,
    /// How many outboxes are blocked.
    pub blocked_sessions: usize,
    /// How many queues were freed, ever: by it the loop decides when to trim the heap.
    pub queues_freed: u64,
}

/// The outcome of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Everything was written.
    Drained,
    /// The socket took all of one vectored write, and more frames wait: list the session again.
    More,
    /// The socket is full; the flush goes on when it is writable.
    Blocked,
    /// The connection is broken.
    Broken,
}

/// What one flush did, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushReport {
    /// The outcome.
    pub outcome: Flushed,
    /// Bytes the socket took.
    pub written: usize,
}

impl FlushReport {
    const NOTHING: Self = Self {
        outcome: Flushed::Drained,
        written: 0,
    };
}

impl Outbox {
    /// Appends a frame. O(1).
    pub fn push(&mut self, frame: Frame, totals: &mut OutboxTotals) {
        match &self.0 {
            None => self.0 = Some(Parcel::from(frame).0),
            Some(_) => self.push_behind(Piece::from(frame), totals),
        }
    }

    /// Appends the frame of a parcel. O(1), without an allocation when nothing waits.
    #[inline]
    pub fn push_parcel(&mut self, parcel: &Parcel, totals: &mut OutboxTotals) {
        match (&self.0, parcel.frame()) {
            (None, _) => self.0 = Some(parcel.0.clone()),
            (Some(_), Some(frame)) => self.push_behind(Piece::from(frame.clone()), totals),
            (Some(_), None) => {}
        }
    }

    /// Appends a frame of an event, or several merged, in which the session has a request id of its own; it is given as
    /// it stands between the quotes of a JSON string. O(1) when nothing waits; otherwise linear in the frames that were
    /// merged.
    pub fn push_with_id(&mut self, frame: &Frame, request_id: &str, totals: &mut OutboxTotals) {
        match (&self.0, ShortId::from(request_id)) {
            (None, Ok(id)) => self.0 = Some(Rc::new(Node::Own(frame.clone(), id))),
            (None, Err(_)) => {
                let mut queue = Queue::default();
                queue.push(Piece::new(frame, Some(request_id)));
                self.0 = Some(Rc::new(Node::Many(queue)));
            }
            (Some(_), _) => self.push_behind(Piece::new(frame, Some(request_id)), totals),
        }
    }

    fn push_behind(&mut self, piece: Piece, totals: &mut OutboxTotals) {
        if let Some(queue) = self.queue_of_all() {
            let bytes = queue.push(piece);
            if queue.is_blocked() {
                totals.blocked_bytes += bytes;
            }
        }
    }

    fn node(&self) -> Option<&Node> {
        self.0.as_deref()
    }

    fn queue(&self) -> Option<&Queue> {
        match self.node() {
            Some(Node::Many(queue)) => Some(queue),
            Some(Node::Shared(_) | Node::Own(..)) | None => None,
        }
    }

    fn queue_mut(&mut self) -> Option<&mut Queue> {
        match self.0.as_mut().and_then(Rc::get_mut) {
            Some(Node::Many(queue)) => Some(queue),
            Some(Node::Shared(_) | Node::Own(..)) | None => None,
        }
    }

    /// The queue; a lone frame becomes one. `None`: nothing waits.
    fn queue_of_all(&mut self) -> Option<&mut Queue> {
        let lone = match self.node() {
            Some(Node::Shared(frame)) => Some(Piece::from(frame.clone())),
            Some(Node::Own(frame, id)) => Some(Piece::new(frame, Some(id))),
            Some(Node::Many(_)) | None => None,
        };
        if let Some(piece) = lone {
            let mut queue = Queue::default();
            queue.pieces.reserve_exact(MERGED_FRAMES_USUAL);
            queue.push(piece);
            self.0 = Some(Rc::new(Node::Many(queue)));
        }
        self.queue_mut()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames() == 0
    }

    /// How many frames wait, whether the socket is full or not.
    #[must_use]
    pub fn frames(&self) -> usize {
        match self.node() {
            None => 0,
            Some(Node::Shared(_) | Node::Own(..)) => 1,
            Some(Node::Many(queue)) => queue.pieces.len() + usize::from(queue.sealed.is_some()),
        }
    }

    /// How many bytes wait, whether the socket is full or not. O(1), but for a lone frame with a request id.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self.node() {
            None => 0,
            Some(Node::Shared(frame)) => frame.len(),
            Some(Node::Own(frame, id)) => Tail(id).len_of(frame),
            Some(Node::Many(queue)) => queue.bytes,
        }
    }

    /// Whether the last write would have blocked.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.queue().is_some_and(Queue::is_blocked)
    }

    /// The frames and bytes that wait because the socket is full; zeros when it is not known to be full.
    #[must_use]
    pub fn blocked(&self) -> (usize, usize) {
        match self.queue() {
            Some(queue) if queue.is_blocked() => (self.frames(), queue.bytes),
            Some(_) | None => (0, 0),
        }
    }

    /// When the full socket last made progress; `None`: it is not known to be full.
    #[must_use]
    pub fn progress_at(&self) -> Option<Duration> {
        match self.queue()?.state {
            QueueState::Blocked { progress_at, .. } => Some(progress_at),
            QueueState::Ready => None,
        }
    }

    /// Notes how many bytes that the full socket took were not acknowledged by the peer at `now`. Fewer than at the check
    /// before are progress, even if the socket takes no more yet.
    pub fn note_unacknowledged(&mut self, bytes: usize, now: Duration) {
        if let Some(queue) = self.queue_mut()
            && let QueueState::Blocked {
                progress_at,
                unacknowledged,
            } = &mut queue.state
        {
            let before = std::mem::replace(unacknowledged, bytes);
            if bytes < before && before != usize::MAX {
                *progress_at = now;
            }
        }
    }

    /// Counts an event that the policy `drop` left out. Only for a blocked outbox.
    pub fn count_dropped(&mut self) {
        if let Some(queue) = self.queue_mut() {
            queue.owed.get_or_insert_default().dropped += 1;
        }
    }

    /// Takes the number of events dropped since the last call, to be announced before the next event.
    pub fn take_dropped(&mut self) -> u64 {
        let owed = self.queue_mut().and_then(|queue| queue.owed.as_mut());
        owed.map_or(0, |owed| std::mem::take(&mut owed.dropped))
    }

    /// Keeps the notice of an outage for the moment before the next event; a later one replaces it. Only for a blocked
    /// outbox.
    pub fn keep_outage(&mut self, notice: Frame) {
        if let Some(queue) = self.queue_mut() {
            queue.owed.get_or_insert_default().outage = Some(notice);
        }
    }

    /// Takes the notice of an outage that was kept since the last call.
    pub fn take_outage(&mut self) -> Option<Frame> {
        self.queue_mut()?.owed.as_mut()?.outage.take()
    }

    /// Whether a notice must be sent before the next event.
    #[must_use]
    pub fn owes_notice(&self) -> bool {
        self.queue().is_some_and(Queue::owes_notice)
    }

    /// How many dropped events are not announced yet.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let owed = self.queue().and_then(|queue| queue.owed.as_ref());
        owed.map_or(0, |owed| owed.dropped)
    }

    /// Drops every piece except what must be sent to keep the stream whole: the rest of one of which a part is written, and
    /// records that are sealed.
    pub fn forget_unbegun(&mut self, totals: &mut OutboxTotals) {
        self.leave_totals(totals);
        match self.queue_mut() {
            Some(queue) if queue.begun > 0 || queue.sealed.is_some() => {
                queue.pieces.truncate(usize::from(queue.begun > 0));
                queue.pieces.shrink_to_fit();
                let plain = queue.pieces.front().map_or(0, Piece::len) - queue.begun;
                queue.bytes = plain + queue.sealed().len();
                queue.owed = None;
            }
            _ => *self = Self::default(),
        }
        self.join_totals(totals);
    }

    /// Frees the outbox of a session that ends, and takes it out of the totals.
    pub fn clear(&mut self, totals: &mut OutboxTotals) {
        self.leave_totals(totals);
        *self = Self::default();
    }

    /// Writes, with ONE call of `write`, what one call takes. `scratch`: memory to be used again. `now`: the time since the
    /// loop's start.
    pub fn flush(
        &mut self,
        write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>,
        scratch: &mut Scratch,
        now: Duration,
        totals: &mut OutboxTotals,
    ) -> FlushReport {
        if let Some(Node::Shared(frame)) = self.node() {
            let result = write(&[IoSlice::new(frame.bytes())]);
            return self.after_write(result, &Offer::all_of(frame), now, totals);
        }
        let mut gather = Gather::new(std::mem::take(scratch));
        let offer = self.gather(&mut gather);
        let result = (offer.bytes > 0).then(|| write(&gather.slices()));
        *scratch = gather.into_scratch();
        match result {
            None => FlushReport::NOTHING,
            Some(result) => self.after_write(result, &offer, now, totals),
        }
    }

    /// Adds what one write takes, from the first byte that is not written. Linear in the pieces of the write, and in the
    /// bytes of those with a request id.
    pub fn gather<'o>(&'o self, gather: &mut Gather<'o>) -> Offer {
        let is_all = match self.node() {
            None => Ok(()),
            Some(Node::Shared(frame)) => gather.add(frame, None, 0),
            Some(Node::Own(frame, id)) => gather.add(frame, Some(Tail(id)), 0),
            Some(Node::Many(queue)) => queue.gather(gather),
        };
        gather.offer(is_all.is_ok())
    }

    /// Appends TLS records, to be written as they are before any piece.
    pub fn push_sealed(&mut self, records: &[u8], totals: &mut OutboxTotals) {
        if records.is_empty() {
            return;
        }
        self.leave_totals(totals);
        if self.0.is_none() {
            self.0 = Some(Rc::new(Node::Many(Queue::default())));
        }
        if let Some(queue) = self.queue_of_all() {
            queue.bytes += records.len();
            let Sealed(sealed) = &mut **queue.sealed.get_or_insert_default();
            sealed.extend_from_slice(records);
        }
        self.join_totals(totals);
    }

    /// The TLS records that must be written before anything else.
    #[must_use]
    pub fn sealed(&self) -> &[u8] {
        self.queue().map_or(&[], Queue::sealed)
    }

    /// As [`Outbox::gather`], for records: at most `bytes_max` bytes. Nothing while sealed records wait, so that no more than
    /// these bytes of a peer that reads slowly are ever sealed.
    pub fn gather_plain<'o>(&'o self, gather: &mut Gather<'o>, bytes_max: usize) -> Offer {
        if !self.sealed().is_empty() {
            return gather.offer(false);
        }
        gather.limit(bytes_max);
        self.gather(gather).cut(bytes_max)
    }

    /// Notes the result of a write of `records`: those of [`Outbox::sealed`], or all that was made of `offer`. `now`: the time
    /// since the loop's start.
    pub fn after_sealed_write(
        &mut self,
        result: io::Result<usize>,
        offer: &Offer,
        records: &[u8],
        now: Duration,
        totals: &mut OutboxTotals,
    ) -> FlushReport {
        if offer.is_all && matches!(result, Ok(written) if written > 0 && written == records.len())
        {
            let report = self.after_write(Ok(offer.bytes), offer, now, totals);
            return FlushReport {
                written: records.len(),
                ..report
            };
        }
        self.leave_totals(totals);
        let Some(queue) = self.queue_of_all() else {
            return FlushReport::NOTHING;
        };
        let (written, outcome) = queue.after_sealed_write(result, offer.bytes, records, now);
        if queue.pieces.is_empty() && queue.sealed.is_none() && !queue.owes_notice() {
            totals.queues_freed += 1;
            *self = Self::default();
        }
        self.join_totals(totals);
        FlushReport { outcome, written }
    }

    /// Notes the result of a write of all that `offer` stands for. `now`: the time since the loop's start.
    pub fn after_write(
        &mut self,
        result: io::Result<usize>,
        offer: &Offer,
        now: Duration,
        totals: &mut OutboxTotals,
    ) -> FlushReport {
        // The usual outcome, without a walk over the pieces.
        if let Ok(written @ 1..) = result
            && written == offer.bytes
            && offer.is_all
            && !self.owes_notice()
        {
            self.leave_totals(totals);
            totals.queues_freed += u64::from(self.owns_memory());
            *self = Self::default();
            return FlushReport {
                outcome: Flushed::Drained,
                written,
            };
        }
        self.leave_totals(totals);
        let Some(queue) = self.queue_of_all() else {
            return FlushReport::NOTHING;
        };
        let (written, outcome) = queue.after_write(result, offer.bytes, now);
        if outcome == Flushed::Drained {
            totals.queues_freed += 1;
            if queue.owes_notice() {
                queue.pieces = VecDeque::new();
            } else {
                *self = Self::default();
            }
        }
        self.join_totals(totals);
        FlushReport { outcome, written }
    }

    /// Whether something is freed with what waits: not for a frame that is shared with others.
    fn owns_memory(&self) -> bool {
        match self.node() {
            None | Some(Node::Shared(_)) => false,
            Some(Node::Own(..) | Node::Many(_)) => true,
        }
    }

    fn leave_totals(&self, totals: &mut OutboxTotals) {
        if let Some(queue) = self.queue()
            && queue.is_blocked()
        {
            totals.blocked_bytes -= queue.bytes;
            totals.blocked_sessions -= 1;
        }
    }

    fn join_totals(&self, totals: &mut OutboxTotals) {
        if let Some(queue) = self.queue()
            && queue.is_blocked()
        {
            totals.blocked_bytes += queue.bytes;
            totals.blocked_sessions += 1;
        }
    }
}

impl Queue {
    fn owes_notice(&self) -> bool {
        let owed = self.owed.as_ref();
        owed.is_some_and(|owed| owed.dropped > 0 || owed.outage.is_some())
    }

    /// Returns the bytes of the piece.
    fn push(&mut self, piece: Piece) -> usize {
        let bytes = piece.len();
        self.bytes += bytes;
        self.pieces.push_back(piece);
        bytes
    }

    fn sealed(&self) -> &[u8] {
        let sealed = self.sealed.as_deref();
        sealed.map_or(&[], |Sealed(records)| records)
    }

    fn gather<'o>(&'o self, gather: &mut Gather<'o>) -> Result<(), Full> {
        let mut begun = self.begun;
        for piece in &self.pieces {
            gather.add(&piece.frame, piece.tail(), std::mem::take(&mut begun))?;
        }
        Ok(())
    }

    fn is_blocked(&self) -> bool {
        matches!(self.state, QueueState::Blocked { .. })
    }

    /// Notes the result of a write of the first `offered` bytes. Returns the bytes written and the outcome.
    fn after_write(
        &mut self,
        result: io::Result<usize>,
        offered: usize,
        now: Duration,
    ) -> (usize, Flushed) {
        let (written, is_full) = match taken(result) {
            Ok(taken) => taken,
            Err(outcome) => return (0, self.settle(outcome, 0, now)),
        };
        self.advance(written);
        let outcome = self.outcome(is_full || written < offered);
        (written, self.settle(outcome, written, now))
    }

    /// Notes the result of a write of `records`, which were waiting already or were made of the first `offered` bytes.
    /// Returns the bytes written and the outcome.
    fn after_sealed_write(
        &mut self,
        result: io::Result<usize>,
        offered: usize,
        records: &[u8],
        now: Duration,
    ) -> (usize, Flushed) {
        let taken = taken(result);
        let (written, is_full) = taken.unwrap_or((0, false));
        self.advance(offered);
        self.bytes -= self.sealed().len();
        let rest = records.get(written..).unwrap_or_default();
        self.sealed = (!rest.is_empty()).then(|| Box::new(Sealed(rest.to_vec())));
        self.bytes += rest.len();
        let outcome = match taken {
            Ok(_) => self.outcome(is_full || !rest.is_empty()),
            Err(outcome) => outcome,
        };
        (written, self.settle(outcome, written, now))
    }

    fn outcome(&self, is_full: bool) -> Flushed {
        match (self.pieces.is_empty() && self.sealed.is_none(), is_full) {
            (true, _) => Flushed::Drained,
            (false, true) => Flushed::Blocked,
            (false, false) => Flushed::More,
        }
    }

    /// Notes whether the socket is full.
    fn settle(&mut self, outcome: Flushed, written: usize, now: Duration) -> Flushed {
        if outcome == Flushed::Blocked {
            self.split();
        }
        self.state = match (outcome, self.state) {
            (Flushed::Blocked, blocked @ QueueState::Blocked { .. }) if written == 0 => blocked,
            (Flushed::Blocked, _) => QueueState::Blocked {
                progress_at: now,
                unacknowledged: usize::MAX,
            },
            _ => QueueState::Ready,
        };
        outcome
    }

    /// Replaces each merged frame by its parts.
    fn split(&mut self) {
        let is_merged = |piece: &Piece| !piece.frame.parts().is_empty();
        if !self.pieces.iter().any(is_merged) {
            return;
        }
        for Piece { frame, request_id } in std::mem::take(&mut self.pieces) {
            let single = |frame: &Frame| Piece {
                frame: frame.clone(),
                request_id: request_id.clone(),
            };
            self.pieces.extend(frame.singles().map(single));
        }
        self.forget_written();
    }

    fn advance(&mut self, written: usize) {
        self.bytes -= written;
        self.begun += written;
        self.forget_written();
    }

    fn forget_written(&mut self) {
        while let Some(length) = self.pieces.front().map(Piece::len)
            && self.begun >= length
        {
            self.begun -= length;
            self.pieces.pop_front();
        }
    }
}

/// How many bytes a socket took, and whether it is full.
///
/// # Errors
/// The outcome, if it took none for another reason: it is broken, or was not asked.
fn taken(result: io::Result<usize>) -> Result<(usize, bool), Flushed> {
    match result {
        Ok(0) => Err(Flushed::Broken),
        Ok(written) => Ok((written, false)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok((0, true)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(Flushed::More),
        Err(_) => Err(Flushed::Broken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{GATHERED_BYTES_MAX, LARGE_FRAME_BYTES_MIN, WRITE_SLICES_MAX};
    use crate::protocol::frame::Opcode;

    fn frame(text: &str) -> Frame {
        Frame::new(Opcode::Text, text.as_bytes())
    }

    /// A socket that takes `room` bytes of each write.
    fn takes(room: usize, sink: &mut Vec<u8>) -> impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize> {
        move |slices| {
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
            let taken = room.min(all.len());
            sink.extend_from_slice(&all[..taken]);
            if taken == 0 {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                Ok(taken)
            }
        }
    }

    const T0: Duration = Duration::from_secs(1);

    #[test]
    fn a_full_socket_makes_progress_when_its_peer_acknowledges_bytes() {
        let (mut outbox, mut totals) = (Outbox::default(), OutboxTotals::default());
        outbox.note_unacknowledged(9, T0);
        assert_eq!(outbox.progress_at(), None);
        outbox.push(frame("waits"), &mut totals);
        outbox.flush(
            takes(0, &mut Vec::new()),
            &mut Scratch::default(),
            T0,
            &mut totals,
        );
        for (bytes, seconds, expected) in [
            (500, 1, 0), // The first look has nothing to compare with.
            (500, 2, 0),
            (499, 3, 3),
            (499, 4, 3),
            (700, 5, 3), // A retransmission split in two, or so.
            (0, 6, 6),
        ] {
            outbox.note_unacknowledged(bytes, T0 + Duration::from_secs(seconds));
            let expected = T0 + Duration::from_secs(expected);
            assert_eq!(
                outbox.progress_at(),
                Some(expected),
                "{bytes} bytes at {seconds} s"
            );
        }
        outbox.flush(
            takes(0, &mut Vec::new()),
            &mut Scratch::default(),
            9 * T0,
            &mut totals,
        );
        assert_eq!(outbox.progress_at(), Some(7 * T0), "it took nothing");
    }

    #[test]
    fn frames_go_out_whole_and_in_order_through_any_partial_writes() {
        for room in 1..40 {
            let (mut outbox, mut totals, mut sink) =
                (Outbox::default(), OutboxTotals::default(), Vec::new());
            let mut expected = Vec::new();
            for index in 0..100 {
                let frame = frame(&"x".repeat(index % 7));
                expected.extend_from_slice(frame.bytes());
                outbox.push(frame, &mut totals);
            }
            let mut writes = 0;
            while !outbox.is_empty() {
                let report = outbox.flush(
                    takes(room, &mut sink),
                    &mut Scratch::default(),
                    T0,
                    &mut totals,
                );
                assert_eq!(report.outcome == Flushed::Drained, outbox.is_empty());
                assert_eq!(totals.blocked_sessions, usize::from(outbox.is_blocked()));
                assert_eq!(totals.blocked_bytes, outbox.blocked().1);
                writes += 1;
                assert!(writes < 10_000);
            }
            assert_eq!(sink, expected);
            assert!(outbox.0.is_none(), "a drained outbox owns no memory");
        }
    }

    #[test]
    fn merged_frames_that_a_socket_does_not_take_are_single_frames_again() {
        let parts: Vec<Frame> = (0..4).map(|n| frame(&"x".repeat(n * 3))).collect();
        let merged = Frame::merged(&parts);
        let single = frame("single");
        let expected = [merged.bytes(), single.bytes(), merged.bytes()].concat();
        for pushes in [1, 3] {
            let expected = &expected[..if pushes == 1 {
                merged.len()
            } else {
                expected.len()
            }];
            for room in 0..expected.len() {
                let (mut outbox, mut totals, mut sink) =
                    (Outbox::default(), OutboxTotals::default(), Vec::new());
                for frame in [&merged, &single, &merged].into_iter().take(pushes) {
                    outbox.push(frame.clone(), &mut totals);
                }
                outbox.flush(
                    takes(room, &mut sink),
                    &mut Scratch::default(),
                    T0,
                    &mut totals,
                );
                assert!(outbox.is_blocked());
                let mut whole = 0;
                let ends = parts.iter().chain([&single]).chain(&parts).map(|part| {
                    whole += part.len();
                    whole
                });
                let left = ends.take_while(|end| *end <= expected.len());
                let left = left.filter(|end| *end > room).count();
                assert_eq!(outbox.blocked(), (left, expected.len() - room));
                assert_eq!(totals.blocked_bytes, expected.len() - room);
                outbox.flush(
                    takes(usize::MAX, &mut sink),
                    &mut Scratch::default(),
                    T0,
                    &mut totals,
                );
                assert_eq!(sink, expected);
                assert_eq!((totals.blocked_bytes, totals.blocked_sessions), (0, 0));
            }
        }
    }

    /// What a peer is to read of a frame, or a merged one, with this request id.
    fn with_id(frame: &Frame, id: Option<&str>) -> Vec<u8> {
        let mut bytes = Vec::new();
        match id {
            Some(id) => Tail(id).write(frame, &mut bytes),
            None => bytes.extend_from_slice(frame.bytes()),
        }
        bytes
    }

    #[test]
    fn frames_with_and_without_request_ids_go_out_whole_wherever_a_write_is_cut() {
        let event = |length| {
            Frame::new(
                Opcode::Text,
                format!("{{{}}}", "x".repeat(length)).as_bytes(),
            )
        };
        let run: Vec<Frame> = [5, 70, 120, 40].map(event).into();
        let merged = Frame::merged(&run);
        let long_id = "y".repeat(SHORT_ID_BYTES_MAX + 1);
        let guid = "0b9f4a52-77aa-4f00-9c1e-8a6b2f3d5e71";
        let pieces = [
            (event(30), Some(guid)),
            (merged.clone(), Some(guid)),
            (event(3), None),
            (event(115), Some("")),
            (merged, Some(&long_id)),
        ];
        // Each piece first, and all in a row from there; cut at each byte.
        for first in 0..pieces.len() {
            let pieces = &pieces[first..];
            let expected: Vec<u8> = pieces
                .iter()
                .flat_map(|(frame, id)| with_id(frame, *id))
                .collect();
            let singles: Vec<usize> = pieces
                .iter()
                .flat_map(|(frame, id)| frame.singles().map(|one| with_id(one, *id).len()))
                .collect();
            let mut scratch = Scratch::default();
            for room in 0..expected.len() {
                let (mut outbox, mut totals, mut sink) =
                    (Outbox::default(), OutboxTotals::default(), Vec::new());
                for (frame, id) in pieces {
                    match id {
                        Some(id) => outbox.push_with_id(frame, id, &mut totals),
                        None => outbox.push(frame.clone(), &mut totals),
                    }
                }
                outbox.flush(takes(room, &mut sink), &mut scratch, T0, &mut totals);
                let left = expected.len() - room;
                let mut end = 0;
                let ends = singles.iter().map(|length| {
                    end += length;
                    end
                });
                let frames = ends.filter(|end| *end > room).count();
                assert_eq!(
                    outbox.blocked(),
                    (frames, left),
                    "cut at {room} from {first}"
                );
                assert_eq!(totals.blocked_bytes, left);
                outbox.flush(takes(7, &mut sink), &mut scratch, T0, &mut totals);
                outbox.flush(takes(usize::MAX, &mut sink), &mut scratch, T0, &mut totals);
                assert!(sink == expected, "cut at {room} from {first}");
                assert_eq!((totals.blocked_bytes, totals.blocked_sessions), (0, 0));
                assert!(outbox.0.is_none());
            }
        }
    }

    #[test]
    fn a_large_frame_is_not_copied_for_its_request_id() {
        let large = Frame::new(
            Opcode::Text,
            format!("{{{}}}", "x".repeat(3 * LARGE_FRAME_BYTES_MIN)).as_bytes(),
        );
        let expected = with_id(&large, Some("id"));
        let (mut scratch, mut totals) = (Scratch::default(), OutboxTotals::default());
        for room in [0, 1, 9, 10, 5_000, expected.len() - 20, expected.len() - 1] {
            let (mut outbox, mut sink) = (Outbox::default(), Vec::new());
            outbox.push_with_id(&large, "id", &mut totals);
            outbox.flush(takes(room, &mut sink), &mut scratch, T0, &mut totals);
            assert_eq!(outbox.blocked(), (1, expected.len() - room));
            outbox.flush(takes(usize::MAX, &mut sink), &mut scratch, T0, &mut totals);
            assert!(sink == expected, "cut at {room}");
        }
        assert!(scratch.capacity() < 100, "{}", scratch.capacity());
    }

    #[test]
    fn what_one_write_has_no_room_for_comes_with_the_next_in_order() {
        // Three slices each, and in the second row more bytes than are put together at once.
        for (length, count) in [(LARGE_FRAME_BYTES_MIN, 100), (10_000, 100)] {
            let frames: Vec<Frame> = (0..count)
                .map(|n| Frame::new(Opcode::Text, format!("{{{n:0length$}}}").as_bytes()))
                .collect();
            let merged = Frame::merged(&frames[..20]);
            let mut expected = with_id(&merged, Some("id"));
            let (mut outbox, mut totals, mut sink) =
                (Outbox::default(), OutboxTotals::default(), Vec::new());
            outbox.push_with_id(&merged, "id", &mut totals);
            for frame in &frames[20..] {
                outbox.push_with_id(frame, "id", &mut totals);
                expected.extend(with_id(frame, Some("id")));
            }
            let mut writes = 0;
            let mut scratch = Scratch::default();
            while !outbox.is_empty() {
                let mut slices_max = 0;
                let write = |slices: &[IoSlice<'_>]| {
                    slices_max = slices.len();
                    takes(usize::MAX, &mut sink)(slices)
                };
                let report = outbox.flush(write, &mut scratch, T0, &mut totals);
                let drained = if outbox.is_empty() {
                    Flushed::Drained
                } else {
                    Flushed::More
                };
                assert_eq!(report.outcome, drained);
                assert!(slices_max <= WRITE_SLICES_MAX, "{slices_max}");
                writes += 1;
            }
            assert!(sink == expected);
            assert!((3..20).contains(&writes), "{writes} writes");
            assert!(
                scratch.capacity() < 2 * GATHERED_BYTES_MAX,
                "{}",
                scratch.capacity()
            );
        }
    }

    #[test]
    fn more_frames_than_one_write_takes_is_not_blocked() {
        let (mut outbox, mut totals, mut sink) =
            (Outbox::default(), OutboxTotals::default(), Vec::new());
        for _ in 0..WRITE_SLICES_MAX + 1 {
            outbox.push(frame("x"), &mut totals);
        }
        let report = outbox.flush(
            takes(usize::MAX, &mut sink),
            &mut Scratch::default(),
            T0,
            &mut totals,
        );
        assert_eq!(report.outcome, Flushed::More);
        assert!(!outbox.is_blocked());
        assert_eq!(
            outbox
                .flush(
                    takes(usize::MAX, &mut sink),
                    &mut Scratch::default(),
                    T0,
                    &mut totals
                )
                .outcome,
            Flushed::Drained
        );
    }

    #[test]
    fn progress_is_when_the_socket_last_took_a_byte() {
        let (mut outbox, mut totals, mut sink) =
            (Outbox::default(), OutboxTotals::default(), Vec::new());
        outbox.push(frame("0123456789"), &mut totals);
        assert_eq!(outbox.progress_at(), None);
        outbox.flush(
            takes(0, &mut sink),
            &mut Scratch::default(),
            T0,
            &mut totals,
        );
        assert_eq!(outbox.progress_at(), Some(T0));
        outbox.flush(
            takes(0, &mut sink),
            &mut Scratch::default(),
            T0 * 2,
            &mut totals,
        );
        assert_eq!(outbox.progress_at(), Some(T0));
        outbox.flush(
            takes(3, &mut sink),
            &mut Scratch::default(),
            T0 * 3,
            &mut totals,
        );
        assert_eq!(outbox.progress_at(), Some(T0 * 3));
    }

    #[test]
    fn forgetting_keeps_the_stream_whole() {
        let (mut outbox, mut totals, mut sink) =
            (Outbox::default(), OutboxTotals::default(), Vec::new());
        let begun = frame("begun");
        outbox.push(begun.clone(), &mut totals);
        outbox.push(frame("forgotten"), &mut totals);
        outbox.flush(
            takes(3, &mut sink),
            &mut Scratch::default(),
            T0,
            &mut totals,
        );
        outbox.forget_unbegun(&mut totals);
        assert_eq!(
            totals,
            OutboxTotals {
                blocked_bytes: begun.len() - 3,
                blocked_sessions: 1,
                queues_freed: 0
            }
        );
        let last = frame("last");
        outbox.push(last.clone(), &mut totals);
        outbox.flush(
            takes(usize::MAX, &mut sink),
            &mut Scratch::default(),
            T0,
            &mut totals,
        );
        assert_eq!(sink, [begun.bytes(), last.bytes()].concat());
        assert_eq!((totals.blocked_bytes, totals.blocked_sessions), (0, 0));

        outbox.push(frame("not begun"), &mut totals);
        outbox.forget_unbegun(&mut totals);
        assert!(outbox.is_empty());
    }

    /// Records of a toy: a length, and the plain bytes turned around.
    fn toy_records<'a>(plain: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
        let plain: Vec<u8> = plain.flatten().copied().collect();
        for record in plain.chunks(50) {
            out.push(record.len() as u8);
            out.extend(record.iter().map(|byte| !byte));
        }
    }

    fn plain_of(mut records: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        while let Some((length, rest)) = records.split_first() {
            let (record, behind) = rest.split_at(usize::from(*length));
            plain.extend(record.iter().map(|byte| !byte));
            records = behind;
        }
        plain
    }

    #[test]
    fn records_leave_once_and_in_order_whatever_the_socket_takes() {
        const SEALED_MAX: usize = 300;
        let mut rng = fastrand::Rng::with_seed(7);
        let (mut blocked, mut cut, mut forgotten) = (0, 0, 0);
        for _ in 0..300 {
            let (mut outbox, mut totals) = (Outbox::default(), OutboxTotals::default());
            let (mut sink, mut expected) = (Vec::new(), Vec::new());
            let mut scratch = Scratch::default();
            for step in 0..60 {
                let frame = Frame::new(
                    Opcode::Text,
                    format!("{{{}}}", "x".repeat(rng.usize(..700))).as_bytes(),
                );
                match rng.u32(..8) {
                    0..3 => {
                        outbox.push(frame.clone(), &mut totals);
                        expected.extend_from_slice(frame.bytes());
                    }
                    3 => {
                        outbox.push_with_id(&frame, "id", &mut totals);
                        expected.extend(with_id(&frame, Some("id")));
                    }
                    4 if step % 10 == 0 => {
                        // Only what is sealed or begun is sent still.
                        outbox.forget_unbegun(&mut totals);
                        let sealed = outbox.sealed().len();
                        let begun = plain_of(&[&sink[..], outbox.sealed()].concat()).len();
                        let begun = begun + (outbox.bytes() - sealed);
                        expected.truncate(begun);
                        forgotten += 1;
                    }
                    _ => {}
                }
                if outbox.is_empty() {
                    continue;
                }
                let mut gather = Gather::new(std::mem::take(&mut scratch));
                let offer = outbox.gather_plain(&mut gather, SEALED_MAX);
                assert!(offer.bytes <= SEALED_MAX);
                cut += usize::from(offer.bytes == SEALED_MAX);
                let mut records = outbox.sealed().to_vec();
                assert!(records.is_empty() || offer.bytes == 0);
                toy_records(Gather::bytes_of(&gather.slices(), &offer), &mut records);
                scratch = gather.into_scratch();
                let result = match rng.u32(..4) {
                    0 => Err(io::ErrorKind::WouldBlock.into()),
                    1 => Err(io::ErrorKind::Interrupted.into()),
                    2 => Ok(rng.usize(1..=records.len())),
                    _ => Ok(records.len()),
                };
                sink.extend_from_slice(&records[..*result.as_ref().unwrap_or(&0)]);
                let before = outbox.bytes();
                let report = outbox.after_sealed_write(result, &offer, &records, T0, &mut totals);
                assert_eq!(outbox.is_blocked(), report.outcome == Flushed::Blocked);
                assert_eq!(outbox.is_empty(), report.outcome == Flushed::Drained);
                let waits = if outbox.is_blocked() {
                    outbox.bytes()
                } else {
                    0
                };
                assert_eq!(totals.blocked_bytes, waits);
                assert!(
                    outbox.bytes() <= before + 10,
                    "what is sealed is no longer plain"
                );
                blocked += usize::from(outbox.is_blocked());
            }
            while !outbox.is_empty() {
                let mut gather = Gather::new(std::mem::take(&mut scratch));
                let offer = outbox.gather_plain(&mut gather, SEALED_MAX);
                let mut records = outbox.sealed().to_vec();
                toy_records(Gather::bytes_of(&gather.slices(), &offer), &mut records);
                scratch = gather.into_scratch();
                sink.extend_from_slice(&records);
                outbox.after_sealed_write(Ok(records.len()), &offer, &records, T0, &mut totals);
            }
            assert!(plain_of(&sink) == expected);
            assert_eq!((totals.blocked_bytes, totals.blocked_sessions), (0, 0));
        }
        assert!(
            blocked > 100 && cut > 100 && forgotten > 50,
            "{blocked} {cut} {forgotten}"
        );
    }

    #[test]
    fn records_that_are_ready_go_before_frames() {
        let (mut outbox, mut totals) = (Outbox::default(), OutboxTotals::default());
        outbox.push_sealed(b"", &mut totals);
        assert!(outbox.is_empty());
        outbox.push_sealed(b"one", &mut totals);
        outbox.push(frame("behind"), &mut totals);
        outbox.push_sealed(b"two", &mut totals);
        assert_eq!((outbox.sealed(), outbox.frames()), (&b"onetwo"[..], 2));
        let mut gather = Gather::new(Scratch::default());
        let offer = outbox.gather_plain(&mut gather, usize::MAX);
        assert_eq!((offer.bytes, offer.is_all), (0, false));
        drop(gather);
        let report = outbox.after_sealed_write(Ok(4), &offer, b"onetwo", T0, &mut totals);
        assert_eq!((report.written, report.outcome), (4, Flushed::Blocked));
        assert_eq!(outbox.sealed(), b"wo");
        let report = outbox.after_sealed_write(Ok(2), &offer, b"wo", T0, &mut totals);
        assert_eq!(report.outcome, Flushed::More);
        assert_eq!(outbox.bytes(), frame("behind").len());
    }

    #[test]
    fn a_broken_connection_is_told_from_a_full_one() {
        let (mut outbox, mut totals) = (Outbox::default(), OutboxTotals::default());
        outbox.push(frame("x"), &mut totals);
        let report = outbox.flush(
            |_| Err(io::ErrorKind::ConnectionReset.into()),
            &mut Scratch::default(),
            T0,
            &mut totals,
        );
        assert_eq!(report.outcome, Flushed::Broken);
        let report = outbox.flush(
            |_| Err(io::ErrorKind::Interrupted.into()),
            &mut Scratch::default(),
            T0,
            &mut totals,
        );
        assert_eq!(report.outcome, Flushed::More);
    }

    #[test]
    fn an_outbox_is_one_word() {
        assert_eq!(size_of::<Outbox>(), 8);
    }
}
