//! What sessions were sent and have lost, for the listings (PROTOCOL 8), without memory of an idle session.
//!
//! A session counts its frames in 16 bits of its own, which would be padding. Each time that they are full, and each event
//! that the policy `drop` leaves out, is counted in a table.
//!
//! Invariants: only a session that is open is in the table, and only while it has something there; at most one entry a
//! session. A slot is given back ([`Figures::forget`]) before another session has it.

use std::collections::HashMap;

use crate::room::GiveBackRoom;

/// The frames of one session, modulo 65,536.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LowFrames(u16);

/// What does not fit in the sessions themselves.
#[derive(Debug, Default)]
pub struct Figures(HashMap<u32, Kept>);

#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    /// How often 65,536 frames were full.
    carries: u32,
    dropped: u64,
}

impl LowFrames {
    /// Counts frames of the session in `slot`. O(1); the table is touched once for each 65,536 of them.
    #[inline]
    pub(super) fn count(&mut self, frames: u64, slot: u32, figures: &mut Figures) {
        let sum = u64::from(self.0) + frames;
        self.0 = (sum & 0xFFFF) as u16;
        if sum > 0xFFFF {
            figures.carry(slot, sum >> 16);
        }
    }
}

impl Figures {
    #[cold]
    fn carry(&mut self, slot: u32, carries: u64) {
        let kept = self.0.entry(slot).or_default();
        let carries = u32::try_from(carries).unwrap_or(u32::MAX);
        kept.carries = kept.carries.saturating_add(carries);
    }

    /// Counts events that were dropped for the session in `slot`. O(1).
    pub(super) fn count_dropped(&mut self, dropped: u64, slot: u32) {
        if dropped > 0 {
            self.0.entry(slot).or_default().dropped += dropped;
        }
    }

    /// Frames that were queued for the session in `slot`, whose own count is `low`: up to 2^48.
    pub(super) fn frames(&self, low: LowFrames, slot: u32) -> u64 {
        let carries = self.0.get(&slot).map_or(0, |kept| kept.carries);
        u64::from(carries) << 16 | u64::from(low.0)
    }

    /// Events that were dropped for the session in `slot`.
    pub(super) fn dropped(&self, slot: u32) -> u64 {
        self.0.get(&slot).map_or(0, |kept| kept.dropped)
    }

    /// The session in `slot` is no longer open. O(1) amortised.
    pub(super) fn forget(&mut self, slot: u32) {
        if !self.0.is_empty() && self.0.remove(&slot).is_some() {
            self.0.give_back_room();
        }
    }

    /// How many sessions have something in the table (a gauge).
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_past_16_bits_and_only_those_who_have_as_many_are_in_the_table() {
        let (mut figures, mut low, mut quiet) = (Figures::default(), LowFrames(0), LowFrames(0));
        quiet.count(65_535, 8, &mut figures);
        let mut expected = 0;
        for frames in [1, 65_534, 1, 0, 300_000, 64, 65_536 * 3] {
            assert_eq!(figures.is_empty(), expected < 65_536);
            low.count(frames, 7, &mut figures);
            expected += frames;
            assert_eq!(figures.frames(low, 7), expected);
        }
        assert_eq!((figures.frames(quiet, 8), figures.len()), (65_535, 1));
    }

    #[test]
    fn what_a_session_lost_is_kept_until_it_ends_and_not_handed_to_the_next_in_its_slot() {
        let (mut figures, mut low) = (Figures::default(), LowFrames(0));
        figures.count_dropped(0, 7);
        assert!(figures.is_empty(), "nothing was lost");
        for _ in 0..3 {
            figures.count_dropped(5, 7);
        }
        low.count(65_536, 7, &mut figures);
        let told = (figures.dropped(7), figures.frames(low, 7));
        assert_eq!(
            (told, figures.dropped(8), figures.len()),
            ((15, 65_536), 0, 1)
        );
        figures.forget(8);
        figures.forget(7);
        let next = (figures.dropped(7), figures.frames(LowFrames(0), 7));
        assert_eq!((next, figures.len()), ((0, 0), 0));
    }

    #[test]
    fn a_table_that_was_large_gives_its_room_back() {
        let mut figures = Figures::default();
        (0..20_000).for_each(|slot| figures.count_dropped(1, slot));
        (0..20_000).for_each(|slot| figures.forget(slot));
        assert!(figures.0.capacity() <= 128, "{}", figures.0.capacity());
    }
}
