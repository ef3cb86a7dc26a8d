//! The bytes of one flush: for each session, what one vectored write is to take.
//!
//! Frames that are ready are borrowed. A frame with a [`Tail`] is put together in [scratch memory](Scratch), so that the
//! kernel gets one piece and no session owns one. Of a large frame only the header and the end are put there; its body
//! stays where it is and is shared.
//!
//! Invariants: the spans of a session are its frames' bytes in order, from the first that is not written; neighbours in
//! the scratch memory are one span.

use std::io::IoSlice;
use std::ops::Range;

use crate::limits::{GATHERED_BYTES_MAX, LARGE_FRAME_BYTES_MIN, WRITE_SLICES_MAX};
use crate::protocol::frame::Frame;
use crate::protocol::tail::Tail;

use super::scratch::Scratch;

/// The bytes for one session or several, under construction. `'o` is the life of the outboxes.
#[derive(Debug)]
pub struct Gather<'o> {
    scratch: Scratch,
    spans: Vec<Span<'o>>,
    /// Where the spans of the present session begin.
    begin: usize,
    /// Where its bytes in the scratch memory begin.
    scratch_begin: usize,
    /// Bytes of the present session.
    bytes: usize,
    /// From so many on nothing is added to the present session.
    bytes_max: usize,
}

/// Bytes in a row.
#[derive(Clone, Debug)]
enum Span<'o> {
    Shared(&'o [u8]),
    Scratch(Range<usize>),
}

/// What was gathered of one outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Where its spans are among all.
    spans: Range<usize>,
    /// How many bytes these are.
    pub bytes: usize,
    /// Whether that is all that waits.
    pub is_all: bool,
}

impl Offer {
    /// All of one frame, which was not gathered.
    pub(super) fn all_of(frame: &Frame) -> Self {
        Self {
            spans: 0..0,
            bytes: frame.len(),
            is_all: true,
        }
    }

    /// The first `bytes_max` bytes of it.
    pub(super) fn cut(self, bytes_max: usize) -> Self {
        Self {
            bytes: self.bytes.min(bytes_max),
            is_all: self.is_all && self.bytes <= bytes_max,
            ..self
        }
    }
}

/// The present session's write has no room for more.
#[derive(Debug)]
pub(super) struct Full;

impl<'o> Gather<'o> {
    /// Nothing gathered.
    #[must_use]
    pub fn new(mut scratch: Scratch) -> Self {
        scratch.rewind();
        Self {
            scratch,
            spans: Vec::new(),
            begin: 0,
            scratch_begin: 0,
            bytes: 0,
            bytes_max: usize::MAX,
        }
    }

    /// Adds no frame to the present session once it has so many bytes.
    pub(super) fn limit(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// Bytes put together so far.
    #[must_use]
    pub fn scratch_len(&self) -> usize {
        self.scratch.len()
    }

    /// The slices of all sessions. Linear in the spans.
    #[must_use]
    pub fn slices(&self) -> Vec<IoSlice<'_>> {
        self.spans.iter().map(|span| self.slice(span)).collect()
    }

    /// The slices of `offer` among [`Gather::slices`].
    #[must_use]
    pub fn of<'s, 'i>(slices: &'s [IoSlice<'i>], offer: &Offer) -> &'s [IoSlice<'i>] {
        slices.get(offer.spans.clone()).unwrap_or_default()
    }

    /// The bytes of `offer`, which may be cut, among [`Gather::slices`].
    pub fn bytes_of<'s>(
        slices: &'s [IoSlice<'_>],
        offer: &Offer,
    ) -> impl Iterator<Item = &'s [u8]> {
        let mut left = offer.bytes;
        Self::of(slices, offer).iter().map_while(move |slice| {
            let bytes = slice.get(..left.min(slice.len())).unwrap_or_default();
            left -= bytes.len();
            (!bytes.is_empty()).then_some(bytes)
        })
    }

    /// Gives the scratch memory back.
    #[must_use]
    pub fn into_scratch(self) -> Scratch {
        self.scratch
    }

    fn slice(&self, span: &Span<'o>) -> IoSlice<'_> {
        IoSlice::new(match span {
            Span::Shared(bytes) => bytes,
            Span::Scratch(place) => self.scratch.get(place.clone()),
        })
    }

    /// Ends the present session: what was gathered since the last call is its own. `is_all`: nothing more of it waits.
    pub fn offer(&mut self, is_all: bool) -> Offer {
        let offer = Offer {
            spans: self.begin..self.spans.len(),
            bytes: self.bytes,
            is_all,
        };
        self.begin = self.spans.len();
        self.scratch_begin = self.scratch.len();
        self.bytes = 0;
        self.bytes_max = usize::MAX;
        offer
    }

    /// Adds a frame, or a merged one, without its first `skip` bytes.
    ///
    /// # Errors
    /// There is no room for all of it. A part of it may have been added.
    #[inline]
    pub(super) fn add(
        &mut self,
        frame: &'o Frame,
        tail: Option<Tail<'_>>,
        mut skip: usize,
    ) -> Result<(), Full> {
        let Some(tail) = tail else {
            self.has_room(1)?;
            self.share(frame.bytes(), &mut skip);
            return Ok(());
        };
        if frame.singles().all(|one| one.len() < LARGE_FRAME_BYTES_MIN) {
            self.has_room(1)?;
            let place = self.scratch.write(frame, tail);
            self.put(place, &mut skip);
            return Ok(());
        }
        for one in frame.singles() {
            self.has_room(3)?;
            let (header, shared) = tail.begin(one);
            let place = self
                .scratch
                .append(|bytes| bytes.extend_from_slice(header.bytes()));
            self.put(place, &mut skip);
            self.share(shared, &mut skip);
            let place = self.scratch.append(|bytes| tail.write_end(one, bytes));
            self.put(place, &mut skip);
        }
        Ok(())
    }

    fn has_room(&self, spans: usize) -> Result<(), Full> {
        let is_full = self.spans.len() - self.begin + spans > WRITE_SLICES_MAX
            || self.scratch.len() - self.scratch_begin > GATHERED_BYTES_MAX
            || self.bytes >= self.bytes_max;
        if is_full { Err(Full) } else { Ok(()) }
    }

    /// Adds shared bytes, of which the first `skip` are left out; `skip` becomes what is still to be left out.
    fn share(&mut self, bytes: &'o [u8], skip: &mut usize) {
        let left_out = bytes.len().min(*skip);
        *skip -= left_out;
        let bytes = bytes.get(left_out..).unwrap_or_default();
        if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.spans.push(Span::Shared(bytes));
        }
    }

    /// Adds what stands in a place of the scratch memory; `skip` as for [`Gather::share`].
    fn put(&mut self, place: Range<usize>, skip: &mut usize) {
        let left_out = place.len().min(*skip);
        *skip -= left_out;
        let place = place.start + left_out..place.end;
        if place.is_empty() {
            return;
        }
        self.bytes += place.len();
        match self.spans.get_mut(self.begin..).and_then(<[_]>::last_mut) {
            Some(Span::Scratch(last)) if last.end == place.start => last.end = place.end,
            _ => self.spans.push(Span::Scratch(place)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::Opcode;

    #[test]
    fn each_session_is_offered_its_own_bytes_one_slice_for_neighbours() {
        let event = |length| {
            Frame::new(
                Opcode::Text,
                format!("{{{}}}", "x".repeat(length)).as_bytes(),
            )
        };
        let (small, large) = (event(50), event(LARGE_FRAME_BYTES_MIN));
        let with = |frame: &Frame, id: &str| {
            let mut bytes = Vec::new();
            Tail(id).write(frame, &mut bytes);
            bytes
        };
        let mut gather = Gather::new(Scratch::default());
        let mut offers = Vec::new();
        for id in ["one", "two"] {
            gather.add(&small, Some(Tail(id)), 0).expect("room");
            gather.add(&small, Some(Tail(id)), 0).expect("room");
            offers.push((
                gather.offer(true),
                [with(&small, id), with(&small, id)].concat(),
                1,
            ));
        }
        offers.push((gather.offer(true), Vec::new(), 0));
        gather.add(&small, Some(Tail("three")), 5).expect("room");
        gather.add(&small, None, 0).expect("room");
        gather.add(&large, Some(Tail("three")), 0).expect("room");
        gather.add(&small, Some(Tail("three")), 0).expect("room");
        let expected = [
            &with(&small, "three")[5..],
            small.bytes(),
            &with(&large, "three"),
            &with(&small, "three"),
        ];
        // The end of the large frame and the small one behind it are neighbours.
        offers.push((gather.offer(true), expected.concat(), 5));
        let slices = gather.slices();
        for (offer, expected, count) in &offers {
            let slices = Gather::of(&slices, offer);
            let bytes: Vec<u8> = slices
                .iter()
                .flat_map(|slice| slice.iter().copied())
                .collect();
            assert!(bytes == *expected, "{offer:?}");
            assert_eq!((offer.bytes, slices.len()), (expected.len(), *count));
        }
    }
}
