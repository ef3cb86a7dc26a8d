//! AMQP bindings that nobody needs any more and that stay in force for a while, so that a client that comes back finds
//! their events in the history (PROTOCOL 10).
//!
//! A binding that was in force for [`LINGERING_AFTER`] gets a *hold* from this table when its last user goes: it counts as
//! one user. Whoever acquires it again takes the hold over.
//!
//! Invariants: a binding that is here has this one user and no other. The bounds, of an account and of all, are never
//! passed: the oldest go first, of the account and then of all. So an account that comes and goes with ever new bindings
//! pushes out its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::limits::LINGERING_AFTER;
use crate::now::Boundary;
use crate::room::GiveBackRoom;
use crate::routing::account_load::AccountTag;
use crate::routing::amqp_binding::AmqpBinding;

/// How many bindings stay, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LingeringRules {
    /// `max_lingering_bindings`; `usize::MAX`: no bound.
    pub total_max: usize,
    /// `max_lingering_bindings_per_account`; as that.
    pub account_max: usize,
    /// `history_seconds`.
    pub keep: Duration,
}

/// The bindings that linger. All operations cost O(log n) unless they say otherwise.
#[derive(Debug)]
pub(super) struct Lingering {
    rules: LingeringRules,
    /// When the turn under way began.
    clock: Duration,
    by_binding: HashMap<AmqpBinding, u64>,
    /// By number: the oldest first.
    entries: BTreeMap<u64, Entry>,
    by_account: HashMap<AccountTag, BTreeSet<u64>>,
    next: u64,
    let_go_early: u64,
}

#[derive(Debug)]
struct Entry {
    binding: AmqpBinding,
    account: AccountTag,
    due: Duration,
}

impl Lingering {
    pub(super) fn new(rules: LingeringRules) -> Self {
        Self {
            rules,
            clock: Duration::ZERO,
            by_binding: HashMap::new(),
            entries: BTreeMap::new(),
            by_account: HashMap::new(),
            next: 0,
            let_go_early: 0,
        }
    }

    /// A turn begins.
    pub(super) fn advance(&mut self, clock: Duration) {
        self.clock = clock;
    }

    pub(super) fn rules(&self) -> LingeringRules {
        self.rules
    }

    /// Whether a binding that is in force `since` then is to stay.
    pub(super) fn is_ripe(&self, since: Boundary) -> bool {
        self.clock.saturating_sub(since.clock) >= LINGERING_AFTER
    }

    /// Takes a hold on a binding of `account`, and returns what must be let go for that, which may be this very binding.
    pub(super) fn keep(&mut self, binding: AmqpBinding, account: AccountTag) -> Vec<AmqpBinding> {
        let number = self.next;
        self.next += 1;
        self.by_binding.insert(binding.clone(), number);
        self.by_account.entry(account).or_default().insert(number);
        let due = self.clock + self.rules.keep;
        self.entries.insert(
            number,
            Entry {
                binding,
                account,
                due,
            },
        );
        let mut let_go = Vec::new();
        while self.of_account(account) > self.rules.account_max {
            let_go.extend(self.let_go_of(account));
        }
        while self.entries.len() > self.rules.total_max {
            let_go.extend(self.let_go_oldest());
        }
        let_go
    }

    /// Gives the hold on a binding over to the caller, if there is one.
    pub(super) fn take(&mut self, binding: &AmqpBinding) -> bool {
        let Some(number) = self.by_binding.get(binding) else {
            return false;
        };
        self.remove(*number).is_some()
    }

    /// Lets the oldest binding of an account go before its time. The hold is the caller's.
    pub(super) fn let_go_of(&mut self, account: AccountTag) -> Option<AmqpBinding> {
        let oldest = *self.by_account.get(&account)?.first()?;
        self.let_go_early += 1;
        self.remove(oldest)
    }

    /// As [`Lingering::let_go_of`], the oldest of all.
    pub(super) fn let_go_oldest(&mut self) -> Option<AmqpBinding> {
        let oldest = *self.entries.first_key_value()?.0;
        self.let_go_early += 1;
        self.remove(oldest)
    }

    /// The next binding whose time is over. The hold is the caller's.
    pub(super) fn expired(&mut self) -> Option<AmqpBinding> {
        let (number, entry) = self.entries.first_key_value()?;
        let (number, is_due) = (*number, entry.due <= self.clock);
        is_due.then(|| self.remove(number)).flatten()
    }

    /// When the next one is due, on the loop's clock.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.entries.first_key_value().map(|(_, entry)| entry.due)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// A counter: bindings let go before their time.
    pub(super) fn let_go_early(&self) -> u64 {
        self.let_go_early
    }

    fn of_account(&self, account: AccountTag) -> usize {
        self.by_account.get(&account).map_or(0, BTreeSet::len)
    }

    fn remove(&mut self, number: u64) -> Option<AmqpBinding> {
        let entry = self.entries.remove(&number)?;
        self.by_binding.remove(&entry.binding);
        self.by_binding.give_back_room();
        if let Some(numbers) = self.by_account.get_mut(&entry.account) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_account.remove(&entry.account);
                self.by_account.give_back_room();
            }
        }
        Some(entry.binding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(number: u32) -> AmqpBinding {
        AmqpBinding {
            exchange: "callevt".into(),
            key: format!("call.*.{number}").as_str().into(),
        }
    }

    fn lingering() -> Lingering {
        Lingering::new(LingeringRules {
            total_max: 4,
            account_max: 2,
            keep: Duration::from_secs(60),
        })
    }

    #[test]
    fn an_account_that_comes_and_goes_pushes_out_its_own() {
        let mut table = lingering();
        let (mine, yours) = (AccountTag::from_number(1), AccountTag::from_number(2));
        assert!(table.keep(binding(1), yours).is_empty());
        for number in 10..100 {
            let let_go = table.keep(binding(number), mine);
            let expected = (number >= 12).then(|| binding(number - 2));
            assert_eq!(let_go, Vec::from_iter(expected), "{number}");
        }
        assert_eq!((table.len(), table.let_go_early()), (3, 88));
        assert!(table.take(&binding(1)) && !table.take(&binding(1)));
        assert!(!table.take(&binding(97)) && table.take(&binding(98)));
    }

    #[test]
    fn beyond_the_bound_of_all_the_oldest_goes_whose_it_may_be() {
        let mut table = lingering();
        for number in 1..=5 {
            let let_go = table.keep(binding(number), AccountTag::from_number(number));
            let expected = (number == 5).then(|| binding(1));
            assert_eq!(let_go, Vec::from_iter(expected), "{number}");
        }
        assert_eq!(table.let_go_oldest(), Some(binding(2)));
        assert_eq!(table.let_go_of(AccountTag::from_number(2)), None);
        assert_eq!(
            table.let_go_of(AccountTag::from_number(4)),
            Some(binding(4))
        );
        assert_eq!(table.by_account.len(), 2);
    }

    #[test]
    fn each_goes_when_its_time_is_over() {
        let mut table = lingering();
        for second in [0, 10, 20] {
            table.advance(Duration::from_secs(second));
            table.keep(binding(second as u32), AccountTag::NOBODY);
        }
        assert_eq!(table.len(), 2, "nobody is an account too");
        table.advance(Duration::from_secs(69));
        assert_eq!(
            (table.expired(), table.next_due()),
            (None, Some(Duration::from_secs(70)))
        );
        table.advance(Duration::from_secs(80));
        assert_eq!(table.expired(), Some(binding(10)));
        assert_eq!(table.expired(), Some(binding(20)));
        assert_eq!(
            (table.expired(), table.len(), table.let_go_early()),
            (None, 0, 1)
        );
    }
}
