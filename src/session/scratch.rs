//! Memory of the loop in which frames with a request id are put together for a write.
//!
//! One after the other, many sessions get the same frames, each with a request id of its own and all of one length. So
//! the memory remembers what stands where, and where the next session's bytes would be the same but for the request id,
//! only that is written anew: 36 bytes instead of a kilobyte.
//!
//! Invariants: a *mark* says truly what stands in its place; the marks stand in the order of their places. The memory
//! holds frames only until [`Scratch::forget`], which follows when nothing waits for a flush any more.

use std::ops::Range;

use crate::protocol::frame::Frame;
use crate::protocol::tail::Tail;

/// The memory. It is written from its beginning for each system call.
#[derive(Debug, Default)]
pub struct Scratch {
    bytes: Vec<u8>,
    /// What is written for the present system call; behind it stands what an earlier one left.
    len: usize,
    marks: Vec<Mark>,
    /// The first mark that is not behind.
    next: usize,
}

/// A frame, or a merged one, that was put together.
#[derive(Debug)]
struct Mark {
    frame: Frame,
    request_id_len: usize,
    place: Range<usize>,
}

impl Scratch {
    /// Begins at the beginning. What is there may be used again.
    pub(super) fn rewind(&mut self) {
        (self.len, self.next) = (0, 0);
    }

    /// Bytes written since the last [`Scratch::rewind`].
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What was written to a place.
    pub(super) fn get(&self, place: Range<usize>) -> &[u8] {
        self.bytes.get(place).unwrap_or_default()
    }

    /// Writes a frame, or a merged one, with a tail. Returns its place. Cost: one copy, or where the same frame with a
    /// tail of the same length stands there already, one copy of the tail for each event.
    pub(super) fn write(&mut self, frame: &Frame, tail: Tail<'_>) -> Range<usize> {
        if let Some(mark) = self.marks.get(self.next)
            && mark.place.start == self.len
            && mark.request_id_len == tail.0.len()
            && mark.frame.is_same(frame)
        {
            let place = mark.place.clone();
            let written = self.bytes.get_mut(place.clone());
            tail.rewrite(frame, written.unwrap_or_default());
            self.len = place.end;
            self.next += 1;
            return place;
        }
        self.marks.truncate(self.next);
        let place = self.append(|bytes| tail.write(frame, bytes));
        self.marks.push(Mark {
            frame: frame.clone(),
            request_id_len: tail.0.len(),
            place: place.clone(),
        });
        self.next = self.marks.len();
        place
    }

    /// Lets `write` append bytes. Returns their place.
    pub(super) fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
        self.marks.truncate(self.next);
        self.bytes.truncate(self.len);
        write(&mut self.bytes);
        let place = self.len..self.bytes.len();
        self.len = place.end;
        place
    }

    /// Forgets all frames, and keeps the memory.
    pub fn forget(&mut self) {
        self.marks.clear();
        self.next = 0;
    }

    /// Bytes of memory.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::Opcode;

    #[test]
    fn whatever_was_there_before_each_frame_has_its_own_request_id() {
        let frames: Vec<Frame> = (0..4)
            .map(|n| {
                Frame::new(
                    Opcode::Text,
                    format!("{{{}}}", "x".repeat(n * 60)).as_bytes(),
                )
            })
            .collect();
        let merged = Frame::merged(&frames[1..3]);
        let ids = ["a", "b", "long", "also", "", "é"];
        let mut rng = fastrand::Rng::with_seed(3);
        let mut scratch = Scratch::default();
        let mut rewritten = 0;
        for _ in 0..5_000 {
            scratch.rewind();
            let mut expected = Vec::new();
            for _ in 0..rng.usize(0..6) {
                let frame = frames.get(rng.usize(..7)).unwrap_or(&merged);
                let tail = Tail(ids[rng.usize(..ids.len())]);
                let (marks, from) = (scratch.marks.len(), expected.len());
                let place = if rng.u32(..10) == 0 {
                    scratch.append(|bytes| tail.write_end(frame, bytes))
                } else {
                    scratch.write(frame, tail)
                };
                if scratch.next < marks {
                    rewritten += 1;
                }
                match place.len() {
                    len if len == tail.len_of(frame) => tail.write(frame, &mut expected),
                    _ => tail.write_end(frame, &mut expected),
                }
                assert_eq!(place, from..expected.len());
                assert_eq!(scratch.len(), expected.len());
            }
            assert_eq!(scratch.get(0..expected.len()), expected);
            if rng.u32(..20) == 0 {
                scratch.forget();
            }
        }
        assert!(rewritten > 500, "{rewritten}");
    }

    #[test]
    fn the_same_frame_for_the_next_session_is_not_copied() {
        let [frame, equal] = [(), ()].map(|()| Frame::new(Opcode::Text, b"{}"));
        let mut scratch = Scratch::default();
        // A frame that is equal, but not the same, and a request id of another length are written anew.
        for (frame, id, is_rewritten) in [
            (&frame, "one", false),
            (&frame, "two", true),
            (&frame, "four", false),
            (&equal, "five", false),
            (&equal, "six!", true),
        ] {
            scratch.rewind();
            // Seen by the part that is shared.
            if let Some(byte) = scratch.bytes.get_mut(2) {
                *byte = b'#';
            }
            let place = scratch.write(frame, Tail(id));
            let mut whole = Vec::new();
            Tail(id).write(frame, &mut whole);
            whole[2] = if is_rewritten { b'#' } else { whole[2] };
            assert_eq!(scratch.get(place), whole, "{id}");
        }
        scratch.forget();
        assert!(scratch.marks.is_empty());
    }
}
