//! Permessage-deflate for all sessions (RFC 7692): the one deflater and the one inflater, and what they may cost.
//!
//! Frames of events are deflated once for all members of a group that agreed on it, when these are many enough and the turn
//! has its share left; otherwise they are sent as they are, which the extension allows for each message. Everything else
//! that is sent is never deflated.
//!
//! Invariants: no state between two messages, so none of a session but the byte of its [shape](super::shape); without a
//! session that agreed on it nothing is done and nothing kept.

use crate::limits::{
    DEFLATE_FRAME_COST_BYTES, DEFLATE_MEMBERS_MIN, DEFLATED_BYTES_PER_TURN_MAX,
    DEFLATED_FRAME_BYTES_MAX, DEFLATED_FRAME_BYTES_MIN,
};
use crate::metrics::Metrics;
use crate::protocol::deflate::{Deflater, Inflater};
use crate::protocol::frame::Frame;

/// See the module's page.
#[derive(Debug, Default)]
pub struct Compression {
    /// How many agreed on it.
    sessions: usize,
    /// Bytes that may still be deflated in this turn.
    left: usize,
    /// For frames of events.
    pub deflater: Deflater,
    /// For messages of clients.
    pub(super) inflater: Inflater,
}

/// Frames for those who agreed on permessage-deflate.
#[derive(Clone, Debug)]
pub struct DeflatedFrames {
    /// In the order of the plain ones. Those that were not worth it, or had no share of the turn left, are the plain ones.
    pub frames: Vec<Frame>,
    /// How many of them are deflated: at least one.
    pub count: u64,
    /// Length of the longest that is deflated, before it was.
    pub bytes_max: usize,
    /// Bytes that all together are shorter for it.
    pub saved_bytes: u64,
}

impl Compression {
    /// Sessions that agreed on permessage-deflate, up to now.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions
    }

    pub(super) fn join(&mut self) {
        self.sessions += 1;
    }

    pub(super) fn leave(&mut self) {
        self.sessions -= 1;
    }

    /// A turn begins, with a share of its own.
    pub fn begin_turn(&mut self) {
        self.left = DEFLATED_BYTES_PER_TURN_MAX;
    }

    /// Frees what is not in use for the moment: the next message costs a little more.
    pub fn shrink(&mut self) {
        (self.deflater, self.inflater) = Default::default();
    }

    /// Deflates the frames of a run for a group. `takes`: of each member, whether it may be sent so many bytes deflated.
    /// `None`: too few may be sent the longest of the frames, or no frame is worth it. Cost: a walk over the members until
    /// enough are found, none where too few sessions agreed on it at all; and the deflating.
    pub fn deflate<Takes: Iterator<Item = bool>>(
        &mut self,
        frames: &[Frame],
        takes: impl FnOnce(usize) -> Takes,
        metrics: &mut Metrics,
    ) -> Option<DeflatedFrames> {
        if self.sessions < DEFLATE_MEMBERS_MIN {
            return None;
        }
        let worth_it = frames.iter().filter(|frame| has_length(frame));
        let longest = worth_it.map(Frame::len).max()?;
        let takers = takes(longest).filter(|takes| *takes);
        if takers.take(DEFLATE_MEMBERS_MIN).count() < DEFLATE_MEMBERS_MIN {
            return None;
        }
        let (mut count, mut bytes_max, mut saved_bytes) = (0, 0, 0);
        let deflated = frames.iter().map(|plain| {
            let Some(deflated) = self.deflate_one(plain, metrics) else {
                return plain.clone();
            };
            count += 1;
            bytes_max = bytes_max.max(plain.len());
            saved_bytes += (plain.len() - deflated.len()) as u64;
            deflated
        });
        let frames = deflated.collect();
        (count > 0).then_some(DeflatedFrames {
            frames,
            count,
            bytes_max,
            saved_bytes,
        })
    }

    fn deflate_one(&mut self, plain: &Frame, metrics: &mut Metrics) -> Option<Frame> {
        if !has_length(plain) {
            return None;
        }
        let cost = plain.len() + DEFLATE_FRAME_COST_BYTES;
        let Some(left) = self.left.checked_sub(cost) else {
            metrics.deflate_postponed_total += 1;
            return None;
        };
        self.left = left;
        let deflated = self.deflater.deflate(plain);
        let len = deflated.as_ref().map_or(plain.len(), Frame::len);
        metrics.deflated_frames_total += 1;
        metrics.deflated_bytes_before_total += plain.len() as u64;
        metrics.deflated_bytes_after_total += len as u64;
        deflated
    }
}

fn has_length(frame: &Frame) -> bool {
    (DEFLATED_FRAME_BYTES_MIN..=DEFLATED_FRAME_BYTES_MAX).contains(&frame.len())
}

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice};
    use std::time::Duration;

    use miniz_oxide::inflate::decompress_to_vec;
    use proptest::prelude::*;

    use super::super::outbox::{Outbox, OutboxTotals, Parcel};
    use super::super::scratch::Scratch;
    use super::*;
    use crate::limits::LARGE_FRAME_BYTES_MIN;
    use crate::protocol::frame::Opcode;

    /// Sessions that make it worth it, whatever the length.
    fn crowd(_: usize) -> impl Iterator<Item = bool> {
        (0..2 * DEFLATE_MEMBERS_MIN).map(|number| number % 2 == 0)
    }

    fn compression() -> Compression {
        let mut compression = Compression::default();
        for _ in 0..DEFLATE_MEMBERS_MIN {
            compression.join();
        }
        compression.begin_turn();
        compression
    }

    fn event(length: usize, seed: u64) -> Frame {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut text = String::from("{\"a\":\"");
        while text.len() < length {
            text.push_str(["ab", "Call-ID", "0", "é"][rng.usize(..4)]);
        }
        text.push_str("\"}");
        Frame::new(Opcode::Text, text.as_bytes())
    }

    #[test]
    fn a_frame_is_deflated_if_enough_agreed_it_has_the_length_and_the_turn_has_its_share() {
        let mut metrics = Metrics::default();
        let long = [event(1000, 1)];
        let mut nobody = Compression::default();
        nobody.begin_turn();
        assert!(nobody.deflate(&long, crowd, &mut metrics).is_none());
        let mut compression = compression();
        let few = |bytes| crowd(bytes).take(2 * DEFLATE_MEMBERS_MIN - 2);
        assert!(compression.deflate(&long, few, &mut metrics).is_none());
        // All but one have a window that is too small for the longest of the run.
        let run = [event(1000, 1), event(3000, 1)];
        let small =
            |bytes| (0..2 * DEFLATE_MEMBERS_MIN).map(move |number| number == 0 || bytes <= 2048);
        assert!(compression.deflate(&run, small, &mut metrics).is_none());
        for length in [DEFLATED_FRAME_BYTES_MIN / 2, DEFLATED_FRAME_BYTES_MAX] {
            let other = [event(length, 1)];
            assert!(compression.deflate(&other, crowd, &mut metrics).is_none());
        }
        assert_eq!(metrics.deflated_frames_total, 0);
        // Those that are too long to be deflated are no matter.
        let run = [event(1000, 1), event(DEFLATED_FRAME_BYTES_MAX, 1)];
        let deflated = compression.deflate(&run, small, &mut metrics);
        assert_eq!(
            deflated.map(|it| (it.count, it.bytes_max)),
            Some((1, run[0].len()))
        );
        metrics = Metrics::default();

        let mixed = [event(10, 1), event(1000, 2), event(3000, 3)];
        let deflated = compression
            .deflate(&mixed, crowd, &mut metrics)
            .expect("two are worth it");
        let is_deflated: Vec<bool> = deflated.frames.iter().map(Frame::is_deflated).collect();
        assert_eq!(is_deflated, [false, true, true]);
        let lengths = |frames: &[Frame]| frames.iter().map(Frame::len).sum::<usize>() as u64;
        assert_eq!(
            (deflated.count, deflated.bytes_max, deflated.saved_bytes),
            (
                2,
                mixed[2].len(),
                lengths(&mixed) - lengths(&deflated.frames)
            )
        );
        assert_eq!(metrics.deflated_frames_total, 2);
        assert_eq!(metrics.deflated_bytes_before_total, lengths(&mixed[1..]));
        assert_eq!(
            metrics.deflated_bytes_after_total,
            lengths(&deflated.frames[1..])
        );

        let mut turns = 0;
        while metrics.deflate_postponed_total == 0 {
            compression.deflate(&long, crowd, &mut metrics);
            turns += 1;
            assert!(turns < 1000, "the share of a turn has an end");
        }
        assert!(compression.deflate(&long, crowd, &mut metrics).is_none());
        compression.begin_turn();
        assert!(compression.deflate(&long, crowd, &mut metrics).is_some());
    }

    /// The texts of the frames in `bytes`, and whether each was deflated.
    fn read(mut bytes: &[u8]) -> Vec<(Vec<u8>, bool)> {
        let mut texts = Vec::new();
        while !bytes.is_empty() {
            let (header, length) = match bytes[1] {
                126 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
                127 => {
                    let length = bytes[2..10].iter();
                    let length = length.fold(0, |length, byte| length << 8 | usize::from(*byte));
                    (10, length)
                }
                length => (2, usize::from(length)),
            };
            let payload = &bytes[header..header + length];
            texts.push(match bytes[0] {
                0x81 => (payload.to_vec(), false),
                0xC1 => {
                    let ends = [0x00, 0x00, 0xFF, 0xFF, 0x01, 0x00, 0x00, 0xFF, 0xFF];
                    let whole = [payload, &ends].concat();
                    (decompress_to_vec(&whole).expect("deflated"), true)
                }
                first => panic!("{first:#x}"),
            });
            bytes = &bytes[header + length..];
        }
        texts
    }

    /// Text of an event as a session with this request id is to read it.
    fn meant(frame: &Frame, id: Option<&str>) -> Vec<u8> {
        let text = frame.payload();
        match id {
            None => text.to_vec(),
            Some(id) => {
                let open = &text[..text.len() - 1];
                [open, b",\"request_id\":\"", id.as_bytes(), b"\"}"].concat()
            }
        }
    }

    fn lengths() -> impl Strategy<Value = usize> {
        prop_oneof![
            2 => 0..2_000_usize,
            1 => LARGE_FRAME_BYTES_MIN..LARGE_FRAME_BYTES_MIN + 5_000,
        ]
    }

    fn ids() -> impl Strategy<Value = Option<String>> {
        prop_oneof![
            Just(None),
            "[a-z]{0,5}".prop_map(Some),
            "[a-z]{36}".prop_map(Some),
            "[a-z]{90,128}".prop_map(Some),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Several sessions get the same runs, deflated or not, with request ids or not, merged or not; each of their
        /// sockets takes what it likes of each write.
        #[test]
        fn every_session_reads_what_was_meant_for_it(
            runs in prop::collection::vec(prop::collection::vec((lengths(), any::<u64>()), 1..4), 1..4),
            sessions in prop::collection::vec((ids(), any::<bool>()), 1..4),
            is_merged: bool,
            room in prop_oneof![50..300_usize, 1000..100_000_usize],
        ) {
            let (mut compression, mut metrics) = (compression(), Metrics::default());
            let mut totals = OutboxTotals::default();
            let mut scratch = Scratch::default();
            let mut outboxes: Vec<Outbox> = sessions.iter().map(|_| Outbox::default()).collect();
            let mut expected = vec![Vec::new(); sessions.len()];
            for run in &runs {
                compression.begin_turn();
                let frames: Vec<Frame> = run.iter().map(|(length, seed)| event(*length, *seed)).collect();
                let deflated = compression.deflate(&frames, crowd, &mut metrics);
                for (number, (id, takes)) in sessions.iter().enumerate() {
                    let own = deflated.as_ref().filter(|_| *takes).map_or(&frames, |it| &it.frames);
                    let one = [Frame::merged(own)];
                    for frame in if is_merged { &one[..] } else { own } {
                        match id {
                            Some(id) => outboxes[number].push_with_id(frame, id, &mut totals),
                            None => outboxes[number].push_parcel(&Parcel::from(frame.clone()), &mut totals),
                        }
                    }
                    for (plain, own) in frames.iter().zip(own) {
                        expected[number].push((meant(plain, id.as_deref()), own.is_deflated()));
                    }
                }
            }
            for (outbox, expected) in outboxes.iter_mut().zip(&expected) {
                let mut sink = Vec::new();
                while !outbox.is_empty() {
                    let write = |slices: &[IoSlice<'_>]| -> io::Result<usize> {
                        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                        let taken = room.min(all.len());
                        sink.extend_from_slice(&all[..taken]);
                        Ok(taken)
                    };
                    outbox.flush(write, &mut scratch, Duration::ZERO, &mut totals);
                }
                prop_assert!(read(&sink) == *expected);
            }
            prop_assert_eq!((totals.blocked_bytes, totals.blocked_sessions), (0, 0));
        }
    }
}
