//! The order of a sorted listing, largest first, and one page of it without the others.
//!
//! A page ends at the place of its last session; the next begins behind that place. So a session whose value has not
//! changed meanwhile is on exactly one of the pages, whoever came and went.
//!
//! Invariant: a [`Page`] holds the first of all that it was shown, and never more than its limit.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fmt;

use super::id::ConnId;

/// The place of a session in a sorted listing: the larger value first, of equal ones the lower slot. The smaller place
/// comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// What the listing is sorted by.
    pub value: u64,
    /// The slot of the session.
    pub slot: u32,
}

impl Rank {
    /// Reads what a page gave as its end: `VALUE-SLOT`, as [`Rank`] is displayed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (value, slot) = text.split_once('-')?;
        Some(Self {
            value: number(value)?,
            slot: self::slot(slot)?,
        })
    }
}

/// Reads a slot by which an unsorted page gave its end.
#[must_use]
pub fn slot(text: &str) -> Option<u32> {
    u32::try_from(number(text)?).ok()
}

/// Digits only: `parse` would take a sign.
fn number(text: &str) -> Option<u64> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.value, self.slot)
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_value = other.value.cmp(&self.value);
        by_value.then(self.slot.cmp(&other.slot))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// One page of a sorted listing, while all sessions are looked at.
#[derive(Debug, Default)]
pub struct Page {
    limit: usize,
    behind: Option<Rank>,
    /// The last of the page is on top.
    best: BinaryHeap<(Rank, ConnId)>,
    /// There were sessions for which the page has no room.
    has_more: bool,
}

impl Page {
    /// Of at most `limit` sessions, those behind that place.
    #[must_use]
    pub fn new(limit: usize, behind: Option<Rank>) -> Self {
        Self {
            limit,
            behind,
            best: BinaryHeap::new(),
            has_more: false,
        }
    }

    /// Looks at a session. O(log limit).
    pub fn look(&mut self, value: u64, id: ConnId) {
        let rank = Rank {
            value,
            slot: id.slot,
        };
        if self.behind.is_some_and(|behind| rank <= behind) {
            return;
        }
        if self.best.len() < self.limit {
            return self.best.push((rank, id));
        }
        self.has_more = true;
        if let Some(mut last) = self.best.peek_mut()
            && rank < last.0
        {
            *last = (rank, id);
        }
    }

    /// Its sessions in order, and whether others are behind it. O(limit log limit).
    #[must_use]
    pub fn finish(self) -> (Vec<(Rank, ConnId)>, bool) {
        (self.best.into_sorted_vec(), self.has_more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(slot: u32) -> ConnId {
        ConnId {
            slot,
            generation: slot % 3,
        }
    }

    #[test]
    fn a_place_survives_its_text_and_nothing_else_is_one() {
        for (value, slot) in [(0, 0), (u64::MAX, u32::MAX), (12, 7)] {
            let rank = Rank { value, slot };
            assert_eq!(Rank::parse(&rank.to_string()), Some(rank));
        }
        for text in [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "+1-2",
            "1-+2",
            "1-2-3",
            " 1-2",
            "1-4294967296",
            "18446744073709551616-1",
        ] {
            assert_eq!(Rank::parse(text), None, "{text:?}");
        }
    }

    /// All pages, one after the other, of sessions with these values.
    fn pages(values: &[u64], limit: usize) -> Vec<Vec<u32>> {
        let (mut pages, mut behind) = (Vec::new(), None);
        loop {
            let mut page = Page::new(limit, behind);
            for (slot, value) in (0..).zip(values) {
                page.look(*value, id(slot));
                assert!(page.best.len() <= limit);
            }
            let (listed, has_more) = page.finish();
            assert!(listed.iter().all(|(rank, one)| *one == id(rank.slot)));
            pages.push(listed.iter().map(|(rank, _)| rank.slot).collect());
            behind = listed.last().map(|(rank, _)| *rank);
            if !has_more {
                return pages;
            }
        }
    }

    proptest! {
        #[test]
        fn the_pages_together_are_the_sorted_whole(
            values in proptest::collection::vec(0_u64..8, 0..60),
            limit in 1_usize..20,
        ) {
            let mut expected: Vec<u32> = (0..values.len() as u32).collect();
            expected.sort_by_key(|slot| std::cmp::Reverse(values[*slot as usize]));
            let pages = pages(&values, limit);
            prop_assert_eq!(pages.len(), values.len().div_ceil(limit).max(1));
            prop_assert_eq!(pages.concat(), expected);
        }

        #[test]
        fn a_session_that_stays_as_it_is_is_on_one_page_while_the_others_change(
            before in proptest::collection::vec(0_u64..8, 1..60),
            change in proptest::collection::vec(proptest::option::of(0_u64..8), 60),
            limit in 1_usize..20,
        ) {
            let (mut seen, mut behind, mut values) = (Vec::new(), None, before.clone());
            loop {
                let mut page = Page::new(limit, behind);
                (0..).zip(&values).for_each(|(slot, value)| page.look(*value, id(slot)));
                let (listed, has_more) = page.finish();
                seen.extend(listed.iter().map(|(rank, _)| rank.slot));
                behind = listed.last().map(|(rank, _)| *rank);
                for (value, change) in values.iter_mut().zip(&change) {
                    *value = change.unwrap_or(*value);
                }
                if !has_more {
                    break;
                }
            }
            for (slot, (value, change)) in (0..).zip(before.iter().zip(&change)) {
                if change.is_none_or(|change| change == *value) {
                    prop_assert_eq!(seen.iter().filter(|one| **one == slot).count(), 1, "{}", slot);
                }
            }
        }
    }
}
