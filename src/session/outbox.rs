//! The frames that wait for one peer. Nothing else is ever written to its socket, and they leave in the order in which
//! they were pushed.
//!
//! Invariants: an empty outbox owns no memory. Frames are shared, never copied. Only a prefix of the first frame may have
//! been written, and `bytes` is the sum of the frames' lengths without that prefix. [`OutboxTotals`] are the sums over all
//! *blocked* outboxes, whose last write would have blocked. A blocked outbox holds no merged frame: it is split into its
//! parts when the socket does not take it, so that the limits count messages.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::Duration;

use crate::limits::WRITE_SLICES_MAX;
use crate::protocol::frame::Frame;

/// What happens to a session that reads too slowly (PROTOCOL 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowConsumerPolicy {
    /// Closed with 4408.
    Close,
    /// New events are dropped and counted.
    Drop,
}

/// How many frames a new queue has room for: a burst of as many costs one allocation a session.
const MERGED_FRAMES_USUAL: usize = 8;

/// Frames waiting for one peer: one word.
///
/// An idle session has none. A lone event is one node that all its sessions share: one frame, of which nothing is written,
/// for a socket that is believed to take it. Anything else is a queue, in a node of this session alone.
#[derive(Debug, Default)]
pub struct Outbox(Option<Rc<Node>>);

/// One frame for many outboxes. To clone it costs one reference count.
#[derive(Clone, Debug)]
pub struct Parcel(Rc<Node>);

#[derive(Debug)]
enum Node {
    One(Frame),
    Many(Queue),
}

impl From<Frame> for Parcel {
    fn from(frame: Frame) -> Self {
        Self(Rc::new(Node::One(frame)))
    }
}

/// Frames that merged, or that a socket did not take.
#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that are written.
    begun: usize,
    /// Bytes that are not written.
    bytes: usize,
    state: QueueState,
    /// Events dropped since the last notice of a gap (policy `drop`).
    dropped: u64,
    /// The latest notice of an outage for which there was no room (policy `drop`).
    outage: Option<Frame>,
}

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
            None => *self = Self(Some(Parcel::from(frame).0)),
            Some(_) => self.push_behind(frame, totals),
        }
    }

    /// Appends the frame of a parcel. O(1), without an allocation when nothing waits.
    #[inline]
    pub fn push_parcel(&mut self, parcel: &Parcel, totals: &mut OutboxTotals) {
        match &self.0 {
            None => *self = Self(Some(parcel.0.clone())),
            Some(_) => {
                if let Node::One(frame) = &*parcel.0 {
                    self.push_behind(frame.clone(), totals);
                }
            }
        }
    }

    fn push_behind(&mut self, frame: Frame, totals: &mut OutboxTotals) {
        if let Some(queue) = self.queue_of_all() {
            if queue.is_blocked() {
                totals.blocked_bytes += frame.len();
            }
            queue.push(frame);
        }
    }

    fn node(&self) -> Option<&Node> {
        self.0.as_deref()
    }

    fn queue(&self) -> Option<&Queue> {
        match self.node() {
            Some(Node::Many(queue)) => Some(queue),
            Some(Node::One(_)) | None => None,
        }
    }

    fn queue_mut(&mut self) -> Option<&mut Queue> {
        match self.0.as_mut().and_then(Rc::get_mut) {
            Some(Node::Many(queue)) => Some(queue),
            Some(Node::One(_)) | None => None,
        }
    }

    /// The queue; a lone frame becomes one. `None`: nothing waits.
    fn queue_of_all(&mut self) -> Option<&mut Queue> {
        if let Some(Node::One(frame)) = self.node() {
            let mut queue = Queue::default();
            queue.frames.reserve_exact(MERGED_FRAMES_USUAL);
            queue.push(frame.clone());
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
            Some(Node::One(_)) => 1,
            Some(Node::Many(queue)) => queue.frames.len(),
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
            Some(queue) if queue.is_blocked() => (queue.frames.len(), queue.bytes),
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
            queue.dropped += 1;
        }
    }

    /// Takes the number of events dropped since the last call, to be announced before the next event.
    pub fn take_dropped(&mut self) -> u64 {
        let dropped = self.queue_mut().map(|queue| &mut queue.dropped);
        dropped.map_or(0, std::mem::take)
    }

    /// Keeps the notice of an outage for the moment before the next event; a later one replaces it. Only for a blocked
    /// outbox.
    pub fn keep_outage(&mut self, notice: Frame) {
        if let Some(queue) = self.queue_mut() {
            queue.outage = Some(notice);
        }
    }

    /// Takes the notice of an outage that was kept since the last call.
    pub fn take_outage(&mut self) -> Option<Frame> {
        self.queue_mut()?.outage.take()
    }

    /// Whether a notice must be sent before the next event.
    #[must_use]
    pub fn owes_notice(&self) -> bool {
        self.queue().is_some_and(Queue::owes_notice)
    }

    /// How many dropped events are not announced yet.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.queue().map_or(0, |queue| queue.dropped)
    }

    /// Drops every frame except one of which a part is written: its rest must be sent to keep the stream whole.
    pub fn forget_unbegun(&mut self, totals: &mut OutboxTotals) {
        self.leave_totals(totals);
        match self.queue_mut() {
            Some(queue) if queue.begun > 0 => {
                queue.frames.truncate(1);
                queue.frames.shrink_to_fit();
                queue.bytes = queue.frames.front().map_or(0, Frame::len) - queue.begun;
                (queue.dropped, queue.outage) = (0, None);
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

    /// Writes, with ONE call of `write`, what one call takes: at most [`WRITE_SLICES_MAX`] frames. `now`: the time since the
    /// loop's start.
    pub fn flush(
        &mut self,
        write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>,
        now: Duration,
        totals: &mut OutboxTotals,
    ) -> FlushReport {
        let result = match self.node() {
            None => return FlushReport::NOTHING,
            Some(Node::One(frame)) => write(&[IoSlice::new(frame.bytes())]),
            Some(Node::Many(_)) => {
                let mut slices = [IoSlice::new(&[]); WRITE_SLICES_MAX];
                let mut used = 0;
                for (place, slice) in slices.iter_mut().zip(self.slices()) {
                    *place = slice;
                    used += 1;
                }
                match used {
                    0 => return FlushReport::NOTHING,
                    used => write(slices.get(..used).unwrap_or_default()),
                }
            }
        };
        self.after_write(result, now, totals)
    }

    /// What one write takes: at most [`WRITE_SLICES_MAX`] frames, the first without its written part.
    pub fn slices(&self) -> impl Iterator<Item = IoSlice<'_>> {
        let (one, many, mut begun) = match self.node() {
            None => (None, None, 0),
            Some(Node::One(frame)) => (Some(frame), None, 0),
            Some(Node::Many(queue)) => (None, Some(&queue.frames), queue.begun),
        };
        let frames = one.into_iter().chain(many.into_iter().flatten());
        frames.take(WRITE_SLICES_MAX).map(move |frame| {
            let from = std::mem::take(&mut begun);
            IoSlice::new(frame.bytes().get(from..).unwrap_or_default())
        })
    }

    /// Notes the result of one write of all of [`Outbox::slices`]. `now`: the time since the loop's start.
    pub fn after_write(
        &mut self,
        result: io::Result<usize>,
        now: Duration,
        totals: &mut OutboxTotals,
    ) -> FlushReport {
        if let Some(Node::One(frame)) = self.node()
            && let Ok(written) = result
            && written == frame.len()
        {
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
        // The usual outcome, without a walk over the frames.
        if let Ok(written @ 1..) = result
            && written == queue.bytes
            && !queue.owes_notice()
        {
            totals.queues_freed += 1;
            *self = Self::default();
            return FlushReport {
                outcome: Flushed::Drained,
                written,
            };
        }
        let (written, outcome) = queue.after_write(result, now);
        if outcome == Flushed::Drained {
            totals.queues_freed += 1;
            if queue.owes_notice() {
                queue.frames = VecDeque::new();
            } else {
                *self = Self::default();
            }
        }
        self.join_totals(totals);
        FlushReport { outcome, written }
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
        self.dropped > 0 || self.outage.is_some()
    }

    fn push(&mut self, frame: Frame) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    fn is_blocked(&self) -> bool {
        matches!(self.state, QueueState::Blocked { .. })
    }

    /// Notes the result of a write. Returns the bytes written and the outcome.
    fn after_write(&mut self, result: io::Result<usize>, now: Duration) -> (usize, Flushed) {
        let offered = self.frames.iter().take(WRITE_SLICES_MAX);
        let offered = offered.map(Frame::len).sum::<usize>() - self.begun;
        let (written, outcome) = match result {
            Ok(0) => (0, Flushed::Broken),
            Ok(written) => {
                self.advance(written);
                let outcome = match (self.frames.is_empty(), written < offered) {
                    (true, _) => Flushed::Drained,
                    (false, true) => Flushed::Blocked,
                    (false, false) => Flushed::More,
                };
                (written, outcome)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (0, Flushed::Blocked),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (0, Flushed::More),
            Err(_) => (0, Flushed::Broken),
        };
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
        (written, outcome)
    }

    /// Replaces each merged frame by its parts.
    fn split(&mut self) {
        if self.frames.iter().all(|frame| frame.parts().is_empty()) {
            return;
        }
        let merged = std::mem::take(&mut self.frames);
        for frame in merged {
            match frame.parts() {
                [] => self.frames.push_back(frame),
                parts => self.frames.extend(parts.iter().cloned()),
            }
        }
        self.forget_written();
    }

    fn advance(&mut self, written: usize) {
        self.bytes -= written;
        self.begun += written;
        self.forget_written();
    }

    fn forget_written(&mut self) {
        while let Some(first) = self.frames.front()
            && self.begun >= first.len()
        {
            self.begun -= first.len();
            self.frames.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        outbox.flush(takes(0, &mut Vec::new()), T0, &mut totals);
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
        outbox.flush(takes(0, &mut Vec::new()), 9 * T0, &mut totals);
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
                let report = outbox.flush(takes(room, &mut sink), T0, &mut totals);
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
                outbox.flush(takes(room, &mut sink), T0, &mut totals);
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
                outbox.flush(takes(usize::MAX, &mut sink), T0, &mut totals);
                assert_eq!(sink, expected);
                assert_eq!((totals.blocked_bytes, totals.blocked_sessions), (0, 0));
            }
        }
    }

    #[test]
    fn more_frames_than_one_write_takes_is_not_blocked() {
        let (mut outbox, mut totals, mut sink) =
            (Outbox::default(), OutboxTotals::default(), Vec::new());
        for _ in 0..WRITE_SLICES_MAX + 1 {
            outbox.push(frame("x"), &mut totals);
        }
        let report = outbox.flush(takes(usize::MAX, &mut sink), T0, &mut totals);
        assert_eq!(report.outcome, Flushed::More);
        assert!(!outbox.is_blocked());
        assert_eq!(
            outbox
                .flush(takes(usize::MAX, &mut sink), T0, &mut totals)
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
        outbox.flush(takes(0, &mut sink), T0, &mut totals);
        assert_eq!(outbox.progress_at(), Some(T0));
        outbox.flush(takes(0, &mut sink), T0 * 2, &mut totals);
        assert_eq!(outbox.progress_at(), Some(T0));
        outbox.flush(takes(3, &mut sink), T0 * 3, &mut totals);
        assert_eq!(outbox.progress_at(), Some(T0 * 3));
    }

    #[test]
    fn forgetting_keeps_the_stream_whole() {
        let (mut outbox, mut totals, mut sink) =
            (Outbox::default(), OutboxTotals::default(), Vec::new());
        let begun = frame("begun");
        outbox.push(begun.clone(), &mut totals);
        outbox.push(frame("forgotten"), &mut totals);
        outbox.flush(takes(3, &mut sink), T0, &mut totals);
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
        outbox.flush(takes(usize::MAX, &mut sink), T0, &mut totals);
        assert_eq!(sink, [begun.bytes(), last.bytes()].concat());
        assert_eq!((totals.blocked_bytes, totals.blocked_sessions), (0, 0));

        outbox.push(frame("not begun"), &mut totals);
        outbox.forget_unbegun(&mut totals);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_broken_connection_is_told_from_a_full_one() {
        let (mut outbox, mut totals) = (Outbox::default(), OutboxTotals::default());
        outbox.push(frame("x"), &mut totals);
        let report = outbox.flush(
            |_| Err(io::ErrorKind::ConnectionReset.into()),
            T0,
            &mut totals,
        );
        assert_eq!(report.outcome, Flushed::Broken);
        let report = outbox.flush(|_| Err(io::ErrorKind::Interrupted.into()), T0, &mut totals);
        assert_eq!(report.outcome, Flushed::More);
    }

    #[test]
    fn an_outbox_is_one_word() {
        assert_eq!(size_of::<Outbox>(), 8);
    }
}
