//! Answers that are no, or trouble, kept for seconds: so that a client that asks again at once costs no question, and a
//! platform that is in trouble is not asked ever faster.
//!
//! Invariants: at most [`DENIALS_MAX`] are kept, and the oldest go first. No token is kept.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::digest::Digest;
use crate::limits::DENIALS_MAX;

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// The token is no good.
    Token,
    /// The token may not see this account; there is no such key.
    Account,
    /// Nobody could say.
    Trouble,
}

/// The denials of late.
#[derive(Debug, Default)]
pub(super) struct Denials {
    known: HashMap<Digest, (Denial, Duration)>,
    /// In the order in which they were noted; one that was noted again is here twice.
    order: VecDeque<Digest>,
}

impl Denials {
    /// Keeps a denial until `until`, in the place of an earlier one.
    pub(super) fn note(&mut self, digest: Digest, denial: Denial, until: Duration) {
        self.known.insert(digest, (denial, until));
        self.order.push_back(digest);
        if self.order.len() > DENIALS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// The denial of this question, if it is still good at `now`.
    pub(super) fn get(&self, digest: &Digest, now: Duration) -> Option<Denial> {
        let (denial, until) = self.known.get(digest)?;
        (*until > now).then_some(*denial)
    }

    /// Forgets a denial, because there is a better answer.
    pub(super) fn forget(&mut self, digest: &Digest) {
        self.known.remove(digest);
    }

    /// Forgets all, because other keys are in force.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Denials that are kept, those that are over included.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_holds_for_its_time_and_the_oldest_make_room() {
        let mut denials = Denials::default();
        let digest = |number: usize| Digest::of_token(&number.to_string());
        denials.note(digest(0), Denial::Trouble, Duration::from_secs(1));
        assert_eq!(
            denials.get(&digest(0), Duration::ZERO),
            Some(Denial::Trouble)
        );
        assert_eq!(denials.get(&digest(0), Duration::from_secs(1)), None);
        denials.note(digest(0), Denial::Token, Duration::from_secs(9));
        assert_eq!(
            denials.get(&digest(0), Duration::from_secs(1)),
            Some(Denial::Token)
        );
        for number in 1..=DENIALS_MAX {
            denials.note(digest(number), Denial::Account, Duration::from_secs(9));
        }
        assert_eq!(denials.get(&digest(0), Duration::ZERO), None);
        assert_eq!(denials.len(), DENIALS_MAX);
        denials.forget(&digest(1));
        assert_eq!(denials.get(&digest(1), Duration::ZERO), None);
    }
}
