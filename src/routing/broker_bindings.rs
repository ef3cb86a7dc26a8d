//! How many subscriptions need each AMQP binding, and whether it is in force.
//!
//! ```text
//!            acquire (first): tell Bind        bound                 lost
//! (not here) ------------------------> Pending -----> Confirmed <---------> Lost
//!            <------------------------                   |           bound    |
//!              release (last): tell Unbind <-------------+--------------------+
//! ```
//!
//! A binding is *in force* when it is confirmed and the source is up. Invariants: `Bind` is told exactly when a
//! binding enters, `Unbind` exactly when it leaves; while the source is up, a binding whose `Bind` is not answered
//! does not leave (it waits, without users, for its answer), so at most one `Bind` and one `Unbind` of a binding
//! are under way and no answer can be taken for a later one's. Waiting tokens exist while a binding is not in
//! force, and never without a user.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use arcstr::ArcStr;
use hashbrown::HashTable;

use super::arena::{Arena, NONE, Place};
use super::shrink_table;
use super::waiters::{WaitId, Waiters};
use crate::handoff::AmqpBinding;

/// Room for bindings waited for that is kept when none is.
const KEPT_WAITING: usize = 64;

/// Names a binding for as long as its acquirer has not released it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BindingId(u32);

/// Names one that waits until a binding is in force; the caller's own number.
pub type WaiterToken = u64;

/// What acquiring a binding comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acquired {
    /// The binding.
    pub id: BindingId,
    /// Whether events for it are delivered already.
    pub is_in_force: bool,
    /// It is new: the source must be told to bind it.
    pub must_bind: bool,
}

/// What the source's answer comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// Those that waited for it, in the order in which they began to.
    pub waiters: Vec<WaiterToken>,
    /// Nobody needs it any more: the source must be told to unbind it.
    pub must_unbind: bool,
}

/// Gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BindingCounts {
    /// Bindings that some subscription needs.
    pub wanted: usize,
    /// Of these, confirmed, and in force while the source is up.
    pub confirmed: usize,
    /// Of these, refused by the broker for now.
    pub lost: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `Bind` told, not answered.
    Pending,
    Confirmed,
    Lost,
}

#[derive(Debug)]
struct Entry {
    key: ArcStr,
    /// Subscriptions that need it; the next vacant place when this one is.
    users: u32,
    exchange: u16,
    /// `None`: a vacant place.
    state: Option<State>,
}

impl Place for Entry {
    fn vacant(next: u32) -> Self {
        Self {
            key: ArcStr::new(),
            users: next,
            exchange: 0,
            state: None,
        }
    }

    fn next_vacant(&self) -> Option<u32> {
        self.state.is_none().then_some(self.users)
    }
}

/// The AMQP bindings of all subscriptions. All operations cost O(1) but where they say otherwise.
#[derive(Debug)]
pub struct BrokerBindings {
    entries: Arena<Entry>,
    by_key: HashTable<u32>,
    seed: RandomState,
    /// As many as the families name; never freed.
    exchanges: Vec<Arc<str>>,
    waiting: Waiters,
    is_source_up: bool,
    counts: BindingCounts,
}

impl Default for BrokerBindings {
    fn default() -> Self {
        Self::new()
    }
}

impl BrokerBindings {
    /// No bindings, and a source that is not up yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            entries: Arena::new(),
            by_key: HashTable::new(),
            seed: RandomState::new(),
            exchanges: Vec::new(),
            waiting: Waiters::new(),
            is_source_up: false,
            counts: BindingCounts::default(),
        }
    }

    /// Adds `users` subscriptions that need `binding`. Linear in the number of exchanges.
    pub fn acquire(&mut self, binding: &AmqpBinding, users: u32) -> Acquired {
        debug_assert!(users > 0);
        if let Some(id) = self.find(binding) {
            let entry = &mut self.entries[id];
            let state = entry.state;
            if entry.users == 0 {
                self.counts.wanted += 1;
            }
            entry.users += users;
            let is_in_force = self.is_source_up && state == Some(State::Confirmed);
            return Acquired {
                id: BindingId(id),
                is_in_force,
                must_bind: false,
            };
        }
        let exchange = self.exchange_number(&binding.exchange);
        let hash = self.hash(exchange, &binding.key);
        let entry = Entry {
            key: binding.key.clone(),
            users,
            exchange,
            state: Some(State::Pending),
        };
        let id = self.entries.insert(entry);
        let Self {
            by_key,
            entries,
            seed,
            ..
        } = self;
        by_key.insert_unique(hash, id, |id| {
            seed.hash_one((entries[*id].exchange, &*entries[*id].key))
        });
        self.counts.wanted += 1;
        Acquired {
            id: BindingId(id),
            is_in_force: false,
            must_bind: true,
        }
    }

    /// Takes `users` subscriptions back, each of which had acquired `binding`; true: the source must be told to
    /// unbind it. Tokens still waiting go with the last user.
    pub fn release(&mut self, binding: &AmqpBinding, users: u32) -> bool {
        let Some(id) = self.find(binding) else {
            debug_assert!(false, "{binding:?} was never acquired");
            return false;
        };
        let entry = &mut self.entries[id];
        debug_assert!(
            entry.users >= users,
            "{binding:?} was released more often than acquired"
        );
        let was_wanted = entry.users > 0;
        entry.users = entry.users.saturating_sub(users);
        if entry.users > 0 || !was_wanted {
            return false;
        }
        self.counts.wanted -= 1;
        self.waiting.remove(&id);
        match self.entries[id].state {
            Some(State::Pending) if self.is_source_up => return false,
            Some(State::Confirmed) => self.counts.confirmed -= 1,
            Some(State::Lost) => self.counts.lost -= 1,
            Some(State::Pending) | None => {}
        }
        self.remove(id);
        true
    }

    /// Whether events for a binding that the caller has acquired are delivered.
    #[must_use]
    pub fn is_in_force(&self, id: BindingId) -> bool {
        self.is_source_up && self.entries[id.0].state == Some(State::Confirmed)
    }

    /// Whether the source has said that `binding` is in force, and not since that it is lost.
    #[must_use]
    pub fn is_confirmed(&self, binding: &AmqpBinding) -> bool {
        self.find(binding)
            .is_some_and(|id| self.entries[id].state == Some(State::Confirmed))
    }

    /// Whether the source is up and has said that the broker refuses a binding that the caller has acquired.
    #[must_use]
    pub fn is_refused(&self, id: BindingId) -> bool {
        self.is_source_up && self.entries[id.0].state == Some(State::Lost)
    }

    /// Whether some subscription needs `binding` and the source has yet to say that it is in force.
    #[must_use]
    pub fn is_awaited(&self, binding: &AmqpBinding) -> bool {
        self.find(binding).is_some_and(|id| {
            let entry = &self.entries[id];
            entry.users > 0 && entry.state != Some(State::Confirmed)
        })
    }

    /// Remembers `token` until the binding, which the caller has acquired, is in force.
    pub fn wait(&mut self, id: BindingId, token: WaiterToken) -> WaitId {
        debug_assert!(!self.is_in_force(id));
        self.waiting.push(id.0, token)
    }

    /// Forgets one that gave up, before it releases the binding; nothing when the wait is over. `token` is the one
    /// that [`BrokerBindings::wait`] was given. O(1), however many wait.
    pub fn stop_waiting(&mut self, id: BindingId, wait: WaitId, token: WaiterToken) {
        self.waiting.stop(wait, id.0, token);
    }

    /// The source says that the broker refuses `binding`: takes out those that waited for it, in the order in which
    /// they began to. To be called before [`BrokerBindings::on_lost`]. Linear in them.
    pub fn take_refused(&mut self, binding: &AmqpBinding) -> Vec<WaiterToken> {
        let id = self.find(binding);
        id.and_then(|id| self.waiting.remove(&id))
            .unwrap_or_default()
    }

    /// The source says that `binding` is in force. One that is not here (its `Unbind` is under way) is ignored.
    pub fn on_bound(&mut self, binding: &AmqpBinding) -> Bound {
        let Some(id) = self.find(binding) else {
            return Bound::default();
        };
        let entry = &mut self.entries[id];
        if entry.users == 0 {
            self.remove(id);
            return Bound {
                waiters: Vec::new(),
                must_unbind: true,
            };
        }
        match entry.state.replace(State::Confirmed) {
            Some(State::Confirmed) => {}
            Some(State::Lost) => {
                self.counts.lost -= 1;
                self.counts.confirmed += 1;
            }
            Some(State::Pending) | None => self.counts.confirmed += 1,
        }
        let waiters = if self.is_source_up {
            self.waiting.remove(&id).unwrap_or_default()
        } else {
            Vec::new()
        };
        if self.waiting.is_empty() {
            self.waiting.shrink_to(KEPT_WAITING);
        }
        Bound {
            waiters,
            must_unbind: false,
        }
    }

    /// The source says that `binding` is wanted and not in force; true: nobody needs it any more, and the source
    /// must be told to unbind it.
    pub fn on_lost(&mut self, binding: &AmqpBinding) -> bool {
        let Some(id) = self.find(binding) else {
            return false;
        };
        let entry = &mut self.entries[id];
        if entry.users == 0 {
            self.remove(id);
            return true;
        }
        match entry.state.replace(State::Lost) {
            Some(State::Lost) => {}
            Some(State::Confirmed) => {
                self.counts.confirmed -= 1;
                self.counts.lost += 1;
            }
            Some(State::Pending) | None => self.counts.lost += 1,
        }
        false
    }

    /// The source is connected, and what was confirmed before is in force again; what was not still waits for its
    /// own answer. Returns those that waited for confirmed bindings. Linear in the bindings waited for.
    pub fn on_up(&mut self) -> Vec<WaiterToken> {
        self.is_source_up = true;
        let mut ready = Vec::new();
        for id in self.waiting.bindings() {
            if self.entries[id].state == Some(State::Confirmed) {
                ready.append(&mut self.waiting.remove(&id).unwrap_or_default());
            }
        }
        ready
    }

    /// The source is away: nothing is in force.
    pub fn on_down(&mut self) {
        self.is_source_up = false;
    }

    /// Gauges.
    #[must_use]
    pub fn counts(&self) -> BindingCounts {
        self.counts
    }

    /// Gauge: bindings in force.
    #[must_use]
    pub fn in_force(&self) -> usize {
        if self.is_source_up {
            self.counts.confirmed
        } else {
            0
        }
    }

    /// Gauge: tokens that wait, once for each binding.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.waiting.len()
    }

    fn exchange_number(&mut self, name: &Arc<str>) -> u16 {
        let known = self.exchanges.iter().position(|known| known == name);
        let number = known.unwrap_or_else(|| {
            self.exchanges.push(name.clone());
            self.exchanges.len() - 1
        });
        u16::try_from(number).expect("families name few exchanges")
    }

    fn find(&self, binding: &AmqpBinding) -> Option<u32> {
        let exchange = self
            .exchanges
            .iter()
            .position(|known| *known == binding.exchange)?;
        let exchange = u16::try_from(exchange).ok()?;
        let is_it = |id: &u32| {
            let entry = &self.entries[*id];
            entry.exchange == exchange && entry.key == binding.key
        };
        self.by_key
            .find(self.hash(exchange, &binding.key), is_it)
            .copied()
    }

    fn remove(&mut self, id: u32) {
        debug_assert_ne!(id, NONE);
        let hash = self.hash(self.entries[id].exchange, &self.entries[id].key);
        let entry = self.by_key.find_entry(hash, |other| *other == id);
        entry.expect("every entry is in the table").remove();
        self.entries.remove(id);
        let Self {
            by_key,
            entries,
            seed,
            ..
        } = self;
        shrink_table(by_key, |id| {
            seed.hash_one((entries[*id].exchange, &*entries[*id].key))
        });
    }

    fn hash(&self, exchange: u16, key: &str) -> u64 {
        self.seed.hash_one((exchange, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(key: &str) -> AmqpBinding {
        AmqpBinding {
            exchange: "callevt".into(),
            key: key.into(),
        }
    }

    fn up() -> BrokerBindings {
        let mut bindings = BrokerBindings::new();
        assert!(bindings.on_up().is_empty());
        bindings
    }

    #[test]
    fn the_source_is_told_at_the_first_user_and_at_the_last() {
        let (mut bindings, key) = (up(), binding("call.*.*"));
        let first = bindings.acquire(&key, 1);
        assert!(first.must_bind && !first.is_in_force);
        assert_eq!(
            bindings.acquire(&key, 1),
            Acquired {
                id: first.id,
                is_in_force: false,
                must_bind: false
            }
        );
        assert_eq!(bindings.on_bound(&key), Bound::default());
        assert_eq!(
            bindings.acquire(&key, 3),
            Acquired {
                id: first.id,
                is_in_force: true,
                must_bind: false
            }
        );
        assert!(!bindings.release(&key, 4));
        assert!(bindings.is_in_force(first.id));
        assert!(bindings.release(&key, 1));
        assert_eq!(bindings.counts(), BindingCounts::default());
        assert!(bindings.acquire(&key, 1).must_bind);
    }

    #[test]
    fn equal_keys_of_two_exchanges_are_two_bindings() {
        let mut bindings = up();
        let other = AmqpBinding {
            exchange: "other".into(),
            key: "a.b".into(),
        };
        assert!(bindings.acquire(&binding("a.b"), 1).must_bind);
        assert!(bindings.acquire(&other, 1).must_bind);
        bindings.on_bound(&other);
        assert!(!bindings.acquire(&binding("a.b"), 1).is_in_force);
    }

    #[test]
    fn a_binding_without_an_answer_leaves_only_when_the_answer_is_there() {
        let (mut bindings, key) = (up(), binding("call.*.*"));
        bindings.acquire(&key, 1);
        assert!(!bindings.release(&key, 1), "its Bind is under way");
        assert!(
            !bindings.acquire(&key, 1).must_bind,
            "its Bind is under way"
        );
        assert!(!bindings.release(&key, 1));
        assert_eq!(
            bindings.on_bound(&key),
            Bound {
                waiters: vec![],
                must_unbind: true
            }
        );
        assert_eq!(bindings.on_bound(&key), Bound::default());
        assert!(bindings.acquire(&key, 1).must_bind);

        assert!(!bindings.release(&key, 1));
        assert!(bindings.on_lost(&key), "refused, and not needed");
        bindings.on_down();
        bindings.acquire(&key, 1);
        assert!(
            bindings.release(&key, 1),
            "nothing is kept for a source that is away"
        );
    }

    #[test]
    fn waiters_are_told_once_in_their_order_and_not_after_giving_up() {
        let (mut bindings, key) = (up(), binding("call.*.*"));
        let id = bindings.acquire(&key, 4).id;
        let waits = [3, 1, 2, 9].map(|token| bindings.wait(id, token));
        bindings.stop_waiting(id, waits[1], 1);
        assert!(!bindings.release(&key, 1));
        assert_eq!(bindings.on_bound(&key).waiters, [3, 2, 9]);
        assert_eq!(bindings.on_bound(&key).waiters, Vec::<WaiterToken>::new());
        assert_eq!(bindings.waiters(), 0);
    }

    #[test]
    fn waiters_go_with_the_last_user() {
        let (mut bindings, key) = (up(), binding("call.*.*"));
        let id = bindings.acquire(&key, 1).id;
        bindings.wait(id, 1);
        bindings.release(&key, 1);
        assert_eq!(bindings.waiters(), 0);
        let id = bindings.acquire(&key, 1).id;
        bindings.wait(id, 2);
        assert_eq!(bindings.on_bound(&key).waiters, [2]);
    }

    #[test]
    fn nothing_is_in_force_while_the_source_is_away_and_what_was_confirmed_returns_with_it() {
        let (mut bindings, old, new) = (up(), binding("old"), binding("new"));
        let id = bindings.acquire(&old, 1).id;
        bindings.on_bound(&old);
        bindings.on_down();
        assert_eq!((bindings.in_force(), bindings.is_in_force(id)), (0, false));
        assert!(!bindings.acquire(&old, 1).is_in_force);
        bindings.wait(id, 1);
        let new_id = bindings.acquire(&new, 1).id;
        bindings.wait(new_id, 2);
        assert_eq!(bindings.on_up(), [1]);
        assert!(bindings.is_in_force(id) && !bindings.is_in_force(new_id));
        assert_eq!(bindings.on_bound(&new).waiters, [2]);
    }

    #[test]
    fn an_answer_before_up_leaves_its_waiters_to_up() {
        let (mut bindings, key) = (BrokerBindings::new(), binding("call.*.*"));
        let id = bindings.acquire(&key, 1).id;
        bindings.wait(id, 5);
        assert_eq!(bindings.on_bound(&key).waiters, Vec::<WaiterToken>::new());
        assert_eq!(bindings.on_up(), [5]);
    }

    #[test]
    fn a_lost_binding_is_not_in_force_until_it_is_bound_again() {
        let (mut bindings, key) = (up(), binding("call.*.*"));
        let id = bindings.acquire(&key, 1).id;
        bindings.on_bound(&key);
        assert!(!bindings.on_lost(&key));
        assert_eq!(
            bindings.counts(),
            BindingCounts {
                wanted: 1,
                confirmed: 0,
                lost: 1
            }
        );
        assert!(!bindings.is_in_force(id));
        bindings.on_down();
        bindings.on_up();
        assert!(!bindings.is_in_force(id), "Up does not speak for the lost");
        bindings.on_bound(&key);
        assert_eq!(
            bindings.counts(),
            BindingCounts {
                wanted: 1,
                confirmed: 1,
                lost: 0
            }
        );
        assert!(bindings.release(&key, 1));
    }

    #[test]
    fn an_entry_takes_16_bytes_beside_its_key() {
        assert_eq!(size_of::<Entry>(), 16);
    }
}
