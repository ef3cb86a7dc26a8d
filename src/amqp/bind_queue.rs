//! Bindings that wait to be bound. Each account has a queue of its own, first in first out, and the accounts take turns
//! of one binding. So a binding waits only for the earlier ones of its own account and for as many of each other
//! account. Pure.
//!
//! Invariants: an account is here exactly while its queue is not empty; a binding that is taken back leaves at once.

use std::collections::{BTreeMap, HashMap};

use crate::room::GiveBackRoom;
use crate::routing::account_load::AccountTag;
use crate::routing::amqp_binding::AmqpBinding;

/// Where a binding stands in its account's queue. Lower numbers came earlier.
pub(super) type Place = u64;

#[derive(Debug)]
struct AccountQueue {
    turn: u64,
    places: BTreeMap<Place, AmqpBinding>,
}

/// The queues. All methods cost O(log n).
#[derive(Debug, Default)]
pub(super) struct BindQueue {
    queues: HashMap<AccountTag, AccountQueue>,
    turns: BTreeMap<u64, AccountTag>,
    next_turn: u64,
}

impl BindQueue {
    /// `binding` waits at `place` of the account's queue, which must be free.
    pub(super) fn insert(&mut self, account: AccountTag, place: Place, binding: AmqpBinding) {
        let queue = self.queues.entry(account).or_insert_with(|| {
            let turn = self.next_turn;
            self.next_turn += 1;
            self.turns.insert(turn, account);
            AccountQueue {
                turn,
                places: BTreeMap::new(),
            }
        });
        queue.places.insert(place, binding);
    }

    /// Takes the binding at `place` off the account's queue, if one is there.
    pub(super) fn remove(&mut self, account: AccountTag, place: Place) {
        if let Some(queue) = self.queues.get_mut(&account) {
            queue.places.remove(&place);
            if queue.places.is_empty() {
                self.turns.remove(&queue.turn);
                self.queues.remove(&account);
                self.queues.give_back_room();
            }
        }
    }

    /// Returns the first binding of the account whose turn it is. The binding stays; the account's next turn comes
    /// after those of all others.
    pub(super) fn next(&mut self) -> Option<&AmqpBinding> {
        let (_, account) = self.turns.pop_first()?;
        self.turns.insert(self.next_turn, account);
        let queue = self.queues.get_mut(&account)?;
        queue.turn = self.next_turn;
        self.next_turn += 1;
        queue.places.first_key_value().map(|(_, binding)| binding)
    }

    /// Moves every binding to `other`. Linear.
    pub(super) fn drain_into(self, other: &mut Self) {
        for (account, queue) in self.queues {
            for (place, binding) in queue.places {
                other.insert(account, place, binding);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_take_turns_each_in_its_own_order() {
        let mut queue = BindQueue::default();
        let named = |account: u32, place: u64| AmqpBinding {
            exchange: account.to_string().into(),
            key: place.to_string().into(),
        };
        let account = AccountTag::from_number;
        for (number, places) in [(1, 0..1000_u64), (2, 1000..1002), (3, 1002..1003)] {
            places.for_each(|place| queue.insert(account(number), place, named(number, place)));
        }
        queue.remove(account(1), 0);
        queue.remove(account(1), 5000);
        let mut taken = Vec::new();
        while taken.len() < 6 {
            let next: AmqpBinding = queue.next().expect("more waits").clone();
            let number = next.exchange.parse().expect("a number");
            queue.remove(account(number), next.key.parse().expect("a number"));
            taken.push((number, next.key.to_string()));
        }
        let expected = [(1, 1), (2, 1000), (3, 1002), (1, 2), (2, 1001), (1, 3)];
        assert_eq!(
            taken,
            expected.map(|(number, key)| (number, key.to_string()))
        );
        (4..1000).for_each(|place| queue.remove(account(1), place));
        assert!(queue.is_empty() && queue.next().is_none() && queue.turns.is_empty());
    }
}
