//! Bindings that nobody wants any more and that the broker still has. They are kept for a while, because page reloads
//! ask for the same ones again, and then unbound. Pure: the time is a parameter.
//!
//! Invariants: at most [`LINGERING_MAX`] are kept, and of one account at most [`LINGERING_OF_ACCOUNT_MAX`]; beyond that
//! the oldest are due at once, so no client fills the broker by coming and going. A binding that is wanted again leaves
//! at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::room::GiveBackRoom;
use crate::routing::account_load::AccountTag;
use crate::routing::amqp_binding::AmqpBinding;

/// How long a binding that is no longer wanted is kept.
pub(super) const LINGER: Duration = Duration::from_secs(3);
/// Bindings that are kept, at most.
pub(super) const LINGERING_MAX: usize = 4096;
/// Bindings of one account that are kept, at most.
pub(super) const LINGERING_OF_ACCOUNT_MAX: usize = 256;

/// Names one binding here. Lower numbers came earlier.
pub(super) type Place = u64;

#[derive(Debug)]
struct Kept {
    until: Instant,
    account: AccountTag,
    binding: AmqpBinding,
}

/// The bindings that are kept, and those that are due. All methods cost O(log n) a binding.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    kept: BTreeMap<Place, Kept>,
    of_account: HashMap<AccountTag, BTreeSet<Place>>,
    due: BTreeMap<Place, AmqpBinding>,
    next_place: Place,
}

impl Lingering {
    /// `binding`, which counts for `account`, is unwanted from `now` on.
    pub(super) fn push(
        &mut self,
        account: AccountTag,
        binding: AmqpBinding,
        now: Instant,
    ) -> Place {
        let place = self.next_place;
        self.next_place += 1;
        let kept = Kept {
            until: now + LINGER,
            account,
            binding,
        };
        self.kept.insert(place, kept);
        let places = self.of_account.entry(account).or_default();
        places.insert(place);
        if places.len() > LINGERING_OF_ACCOUNT_MAX
            && let Some(oldest) = places.first().copied()
        {
            self.expire(oldest);
        }
        if self.kept.len() > LINGERING_MAX
            && let Some((oldest, _)) = self.kept.first_key_value()
        {
            self.expire(*oldest);
        }
        place
    }

    /// The binding at `place` is wanted again.
    pub(super) fn remove(&mut self, place: Place) {
        if self.due.remove(&place).is_none() {
            self.take_kept(place);
        }
    }

    /// Forgets and returns the first binding that is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<AmqpBinding> {
        while let Some((place, kept)) = self.kept.first_key_value()
            && kept.until <= now
        {
            self.expire(*place);
        }
        self.due.pop_first().map(|(_, binding)| binding)
    }

    /// When [`Lingering::take_due`] may next return a binding: at once (`Some(None)`), or at that time. `None`: never.
    pub(super) fn next_due(&self) -> Option<Option<Instant>> {
        if self.due.is_empty() {
            let (_, first) = self.kept.first_key_value()?;
            Some(Some(first.until))
        } else {
            Some(None)
        }
    }

    /// How many bindings are due.
    pub(super) fn due(&self) -> usize {
        self.due.len()
    }

    fn expire(&mut self, place: Place) {
        if let Some(kept) = self.take_kept(place) {
            self.due.insert(place, kept.binding);
        }
    }

    fn take_kept(&mut self, place: Place) -> Option<Kept> {
        let kept = self.kept.remove(&place)?;
        if let Some(places) = self.of_account.get_mut(&kept.account) {
            places.remove(&place);
            if places.is_empty() {
                self.of_account.remove(&kept.account);
                self.of_account.give_back_room();
            }
        }
        Some(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(number: usize) -> AmqpBinding {
        AmqpBinding {
            exchange: "callevt".into(),
            key: number.to_string().into(),
        }
    }

    #[test]
    fn no_account_keeps_more_than_its_share_nor_all_together_more_than_theirs() {
        let (mut lingering, now) = (Lingering::default(), Instant::now());
        for number in 0..1000 {
            lingering.push(AccountTag::from_number(1), binding(number), now);
        }
        assert_eq!(lingering.kept.len(), LINGERING_OF_ACCOUNT_MAX);
        assert_eq!(
            lingering.take_due(now),
            Some(binding(0)),
            "the oldest first"
        );
        for number in 0..20_000 {
            let account =
                AccountTag::from_number(u32::try_from(number).expect("a small number") / 100 + 2);
            lingering.push(account, binding(1000 + number), now);
        }
        assert_eq!(lingering.kept.len(), LINGERING_MAX);
        let due = std::iter::from_fn(|| lingering.take_due(now)).count();
        assert_eq!(due + 1 + LINGERING_MAX, 21_000);
        assert_eq!(lingering.next_due(), Some(Some(now + LINGER)));
        let rest = std::iter::from_fn(|| lingering.take_due(now + LINGER)).count();
        assert_eq!((rest, lingering.due()), (LINGERING_MAX, 0));
        assert!(lingering.of_account.is_empty());
    }

    #[test]
    fn what_is_wanted_again_is_not_due_kept_or_not() {
        let (mut lingering, now) = (Lingering::default(), Instant::now());
        let places: Vec<_> = (0..=LINGERING_OF_ACCOUNT_MAX)
            .map(|number| lingering.push(AccountTag::NOBODY, binding(number), now))
            .collect();
        assert_eq!((lingering.due(), lingering.next_due()), (1, Some(None)));
        places.into_iter().for_each(|place| lingering.remove(place));
        assert_eq!((lingering.due(), lingering.next_due()), (0, None));
        assert_eq!(lingering.take_due(now + LINGER), None);
    }
}
