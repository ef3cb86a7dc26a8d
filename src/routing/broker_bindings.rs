//! How many subscriptions need each AMQP binding, and whether it is in force.
//!
//! ```text
//!            acquire (first): tell Bind        bound                 lost
//! (not here) ------------------------> Pending -----> Confirmed <---------> Lost
//!            <---------------------------|---------------+----------bound-----|
//!              release (last): tell Unbind, whatever the state
//! ```
//!
//! A binding is *in force* when it is confirmed and the source is up.
//!
//! Invariants: the source is told `Bind` when a binding enters, and `Unbind` when its last user leaves, even before the
//! `Bind` is answered. Each time that a binding enters it gets a new [ticket](Ticket), which the `Bind` carries and the
//! answer brings back: while a binding waits for its answer, answers with older tickets are ignored, so none is taken
//! for a later one. After the answer nothing older can come, because a source answers in order. Subscribes wait only
//! for bindings that are not in force, and only for those that have a user. A binding counts for the account that it
//! entered for, until it leaves.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use arcstr::ArcStr;
use hashbrown::HashTable;

use super::account_load::{AccountLoads, AccountTag};
use super::arena::{Arena, Place};
use super::table::shrink_table;
use super::waiters::{WaitId, Waiter, Waiters};
use super::young::Young;
use crate::account::AccountId;
use crate::now::Boundary;
use crate::room::GiveBackRoom;
use crate::routing::amqp_binding::{AmqpBinding, Asked, Ticket};

/// Names a binding until its acquirer releases it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BindingId(u32);

/// The result of acquiring a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acquired {
    /// The binding.
    pub id: BindingId,
    /// Whether events for it are delivered already.
    pub is_in_force: bool,
    /// What the source must be told, if anything.
    pub ask: Option<Ask>,
}

/// What the source must be told of a binding that was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To bind the binding, which is new, for this account.
    Bind(Ticket, AccountTag),
    /// That this account waits too, beside the one that the binding, which is not answered yet, entered for.
    Join(AccountTag),
}

/// The gauges of bindings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BindingCounts {
    /// Bindings that some subscription needs.
    pub wanted: usize,
    /// Those of them that are confirmed, which are in force while the source is up.
    pub confirmed: usize,
    /// Those of them that the broker refuses for now.
    pub lost: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The `Bind` is not answered yet.
    Pending,
    Confirmed,
    Lost,
}

#[derive(Debug)]
struct Entry {
    key: ArcStr,
    /// Subscriptions that need it. In a vacant place: the next vacant place.
    users: u32,
    /// The account that it counts for.
    owner: AccountTag,
    /// `None`: the place is vacant.
    state: Option<State>,
}

impl Place for Entry {
    fn vacant(next: u32) -> Self {
        Self {
            key: ArcStr::new(),
            users: next,
            owner: AccountTag::NOBODY,
            state: None,
        }
    }

    fn next_vacant(&self) -> Option<u32> {
        self.state.is_none().then_some(self.users)
    }
}

/// The bindings of one exchange.
#[derive(Debug)]
struct Exchange {
    name: Arc<str>,
    by_key: HashTable<u32>,
}

/// The AMQP bindings of all subscriptions. Every operation costs O(1) unless it says otherwise.
#[derive(Debug)]
pub struct BrokerBindings {
    entries: Arena<Entry>,
    seed: RandomState,
    /// As many as the families name; never freed.
    exchanges: Vec<Exchange>,
    /// The tickets of the bindings that wait for their answer.
    tickets: HashMap<u32, Ticket>,
    next_ticket: Ticket,
    loads: AccountLoads,
    waiting: Waiters,
    is_source_up: bool,
    counts: BindingCounts,
    young: Young,
}

impl Default for BrokerBindings {
    fn default() -> Self {
        Self::new()
    }
}

impl BrokerBindings {
    /// An empty table, and a source that is not up yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            entries: Arena::new(),
            seed: RandomState::new(),
            exchanges: Vec::new(),
            tickets: HashMap::new(),
            next_ticket: Ticket::default(),
            loads: AccountLoads::new(),
            waiting: Waiters::new(),
            is_source_up: false,
            counts: BindingCounts::default(),
            young: Young::default(),
        }
    }

    /// Adds `users` subscriptions of `account` that need `binding`. The bindings of nobody (`None`) count for no
    /// account, and take turns as if they were of one. Linear in the number of exchanges.
    pub fn acquire(
        &mut self,
        binding: &AmqpBinding,
        users: u32,
        account: Option<AccountId>,
    ) -> Acquired {
        debug_assert!(users > 0);
        let tag = self.loads.tag(account);
        if let Some(id) = self.find(binding) {
            let entry = &mut self.entries[id];
            entry.users += users;
            let joins = entry.owner != tag && self.tickets.contains_key(&id);
            return Acquired {
                id: BindingId(id),
                is_in_force: self.is_source_up && entry.state == Some(State::Confirmed),
                ask: joins.then_some(Ask::Join(tag)),
            };
        }
        let hash = self.seed.hash_one(&*binding.key);
        let entry = Entry {
            key: binding.key.clone(),
            users,
            owner: tag,
            state: Some(State::Pending),
        };
        let id = self.entries.insert(entry);
        let ticket = self.next_ticket;
        self.next_ticket = ticket.next();
        self.tickets.insert(id, ticket);
        self.loads.add(tag);
        let (entries, seed) = (&self.entries, &self.seed);
        exchange_of(&mut self.exchanges, &binding.exchange)
            .by_key
            .insert_unique(hash, id, |id| seed.hash_one(&*entries[*id].key));
        self.counts.wanted += 1;
        Acquired {
            id: BindingId(id),
            is_in_force: false,
            ask: Some(Ask::Bind(ticket, tag)),
        }
    }

    /// Takes back `users` subscriptions that have acquired `binding`, and returns whether the source must be told to
    /// unbind it. Whatever still waits for the binding is forgotten with its last user.
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
        entry.users = entry.users.saturating_sub(users);
        if entry.users > 0 {
            return false;
        }
        self.counts.wanted -= 1;
        self.waiting.remove(&id);
        match entry.state {
            Some(State::Confirmed) => self.counts.confirmed -= 1,
            Some(State::Lost) => self.counts.lost -= 1,
            Some(State::Pending) | None => self.answered(id),
        }
        self.remove(&binding.exchange, id);
        true
    }

    /// How many of `bindings`, each named once, no subscription needs yet. Linear in them.
    #[must_use]
    pub fn new_among<'b>(&self, bindings: impl IntoIterator<Item = &'b AmqpBinding>) -> usize {
        let is_new = |binding: &&AmqpBinding| self.find(binding).is_none();
        bindings.into_iter().filter(is_new).count()
    }

    /// How many bindings count for `account`, or a little more ([`account_load`](super::account_load)).
    #[must_use]
    pub fn load(&self, account: AccountId) -> usize {
        self.loads.of(self.loads.tag(Some(account)))
    }

    /// Whether events for a binding that the caller has acquired are delivered.
    #[must_use]
    pub fn is_in_force(&self, id: BindingId) -> bool {
        self.is_source_up && self.entries[id.0].state == Some(State::Confirmed)
    }

    /// Whether the latest that the source has said of `binding` is that it is in force.
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

    /// Whether some subscription needs `binding`, and the source has not said that it is in force, or since then that
    /// it is lost.
    #[must_use]
    pub fn is_awaited(&self, binding: &AmqpBinding) -> bool {
        self.find(binding).is_some_and(|id| {
            let entry = &self.entries[id];
            entry.users > 0 && entry.state != Some(State::Confirmed)
        })
    }

    /// Remembers `waiter` until the binding, which the caller has acquired, is in force.
    pub fn wait(&mut self, id: BindingId, waiter: Waiter) -> WaitId {
        debug_assert!(!self.is_in_force(id));
        self.waiting.push(id.0, waiter)
    }

    /// Forgets a waiter that gives up, before it releases the binding; does nothing when its wait is over. `waiter` is
    /// the one that [`BrokerBindings::wait`] was given. O(1), however many wait.
    pub fn stop_waiting(&mut self, id: BindingId, wait: WaitId, waiter: Waiter) {
        self.waiting.stop(wait, id.0, waiter);
    }

    /// Notes, before [`BrokerBindings::on_bound`], that a binding which was not in force is so from `boundary` on.
    pub fn begin_coverage(&mut self, bound: &Asked, boundary: Boundary) {
        if let Some(id) = self.find_asked(bound)
            && self.entries[id].state != Some(State::Confirmed)
        {
            self.young.note(id, boundary);
        }
    }

    /// Since when a binding, which the caller has acquired and which is in force, has been so, or a later moment. An
    /// outage of the whole source is not in that.
    #[must_use]
    pub fn covered_since(&self, id: BindingId) -> Boundary {
        self.young.since(id.0)
    }

    /// Forgets the exact moments of the bindings that came into force before this moment of the loop's clock.
    pub fn forget_coverage_before(&mut self, clock: Duration) {
        self.young.forget_before(clock);
    }

    /// A gauge: the bindings of which the exact moment is known.
    #[must_use]
    pub fn young(&self) -> usize {
        self.young.len()
    }

    /// Of a binding that is in force and has so many users: whom it counts for, and since when it is in force, or a later
    /// moment. `None`: it has others too, or is not in force.
    #[must_use]
    pub fn last_use(&self, binding: &AmqpBinding, users: u32) -> Option<(AccountTag, Boundary)> {
        let id = self.find(binding)?;
        let entry = &self.entries[id];
        let is_last = entry.users == users && self.is_in_force(BindingId(id));
        is_last.then(|| (entry.owner, self.young.since(id)))
    }

    /// The tag by which `account` is known here.
    #[must_use]
    pub fn tag(&self, account: Option<AccountId>) -> AccountTag {
        self.loads.tag(account)
    }

    /// The source says that a binding is in force. Returns who waited for it, in the order in which they began to,
    /// unless the source is away. An answer that is not the one waited for is ignored. Linear in those that waited.
    pub fn on_bound(&mut self, bound: &Asked) -> Vec<Waiter> {
        let Some(id) = self.find_asked(bound) else {
            return Vec::new();
        };
        match self.entries[id].state.replace(State::Confirmed) {
            Some(State::Confirmed) => {}
            Some(State::Lost) => {
                self.counts.lost -= 1;
                self.counts.confirmed += 1;
            }
            Some(State::Pending) | None => {
                self.answered(id);
                self.counts.confirmed += 1;
            }
        }
        if self.is_source_up {
            self.waiting.remove(&id).unwrap_or_default()
        } else {
            Vec::new()
        }
    }

    /// The source says that a binding is wanted and not in force. Returns who waited for it, in the order in which they
    /// began to. An answer that is not the one waited for is ignored. Linear in those that waited.
    pub fn on_lost(&mut self, lost: &Asked) -> Vec<Waiter> {
        let Some(id) = self.find_asked(lost) else {
            return Vec::new();
        };
        match self.entries[id].state.replace(State::Lost) {
            Some(State::Lost) => {}
            Some(State::Confirmed) => {
                self.counts.confirmed -= 1;
                self.counts.lost += 1;
            }
            Some(State::Pending) | None => {
                self.answered(id);
                self.counts.lost += 1;
            }
        }
        self.waiting.remove(&id).unwrap_or_default()
    }

    /// The source is connected: bindings that were confirmed before are in force again, and the others still wait for
    /// their own answer. Returns who waited for a confirmed binding. Linear in the bindings waited for.
    pub fn on_up(&mut self) -> Vec<Waiter> {
        self.is_source_up = true;
        let mut ready = Vec::new();
        for id in self.waiting.bindings() {
            if self.entries[id].state == Some(State::Confirmed) {
                ready.append(&mut self.waiting.remove(&id).unwrap_or_default());
            }
        }
        ready
    }

    /// The source is away: no binding is in force.
    pub fn on_down(&mut self) {
        self.is_source_up = false;
    }

    /// The gauges of bindings.
    #[must_use]
    pub fn counts(&self) -> BindingCounts {
        self.counts
    }

    /// A gauge: the bindings that are in force.
    #[must_use]
    pub fn in_force(&self) -> usize {
        if self.is_source_up {
            self.counts.confirmed
        } else {
            0
        }
    }

    /// A gauge: the waits for a binding. A subscribe that waits for two counts twice.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.waiting.len()
    }

    fn find(&self, binding: &AmqpBinding) -> Option<u32> {
        let mut exchanges = self.exchanges.iter();
        let exchange = exchanges.find(|known| known.name == binding.exchange)?;
        let is_it = |id: &u32| self.entries[*id].key == binding.key;
        exchange
            .by_key
            .find(self.seed.hash_one(&*binding.key), is_it)
            .copied()
    }

    /// Whether the source answers for a binding that some subscription needs, and to its latest `Bind`.
    #[must_use]
    pub fn is_answer(&self, asked: &Asked) -> bool {
        self.find_asked(asked).is_some()
    }

    /// The binding that an answer is about, unless it waits for another answer.
    fn find_asked(&self, asked: &Asked) -> Option<u32> {
        let id = self.find(&asked.binding)?;
        let ticket = self.tickets.get(&id);
        ticket
            .is_none_or(|ticket| *ticket == asked.ticket)
            .then_some(id)
    }

    /// The binding no longer waits for its answer.
    fn answered(&mut self, id: u32) {
        self.tickets.remove(&id);
        self.tickets.give_back_room();
    }

    fn remove(&mut self, exchange: &Arc<str>, id: u32) {
        let by_key = &mut exchange_of(&mut self.exchanges, exchange).by_key;
        let hash = self.seed.hash_one(&*self.entries[id].key);
        let entry = by_key.find_entry(hash, |other| *other == id);
        entry.expect("every entry is in the table").remove();
        self.loads.take(self.entries.remove(id).owner);
        self.young.leave(id);
        let (entries, seed) = (&self.entries, &self.seed);
        shrink_table(by_key, |id| seed.hash_one(&*entries[*id].key));
    }
}

/// The bindings of an exchange, which is added when it is not there.
fn exchange_of<'e>(exchanges: &'e mut Vec<Exchange>, name: &Arc<str>) -> &'e mut Exchange {
    let known = exchanges.iter().position(|known| known.name == *name);
    let at = known.unwrap_or_else(|| {
        exchanges.push(Exchange {
            name: name.clone(),
            by_key: HashTable::new(),
        });
        exchanges.len() - 1
    });
    exchanges.get_mut(at).expect("it was found or added")
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

    /// The answer to the latest `Bind` of a binding that is here; to any, when it is answered already.
    fn asked(bindings: &BrokerBindings, binding: &AmqpBinding) -> Asked {
        let id = bindings.find(binding).expect("it was acquired");
        Asked {
            binding: binding.clone(),
            ticket: bindings.tickets.get(&id).copied().unwrap_or_default(),
        }
    }

    fn bound(bindings: &mut BrokerBindings, binding: &AmqpBinding) -> Vec<Waiter> {
        let asked = asked(bindings, binding);
        bindings.on_bound(&asked)
    }

    fn lost(bindings: &mut BrokerBindings, binding: &AmqpBinding) {
        let asked = asked(bindings, binding);
        bindings.on_lost(&asked);
    }

    fn account(number: u32) -> Option<AccountId> {
        AccountId::parse(&format!("{number:032x}"))
    }

    fn waiter(number: u32) -> Waiter {
        Waiter::new(0, number)
    }

    fn up() -> BrokerBindings {
        let mut bindings = BrokerBindings::new();
        assert!(bindings.on_up().is_empty());
        bindings
    }

    #[test]
    fn the_source_is_told_at_the_first_user_and_at_the_last() {
        let (mut bindings, key) = (up(), binding("call.*.*"));
        let first = bindings.acquire(&key, 1, None);
        assert!(first.ask.is_some() && !first.is_in_force);
        assert_eq!(
            bindings.acquire(&key, 1, None),
            Acquired {
                id: first.id,
                is_in_force: false,
                ask: None
            }
        );
        assert!(bound(&mut bindings, &key).is_empty());
        assert_eq!(
            bindings.acquire(&key, 3, None),
            Acquired {
                id: first.id,
                is_in_force: true,
                ask: None
            }
        );
        assert!(!bindings.release(&key, 4));
        assert!(bindings.is_in_force(first.id));
        assert!(bindings.release(&key, 1));
        assert_eq!(bindings.counts(), BindingCounts::default());
        assert!(bindings.acquire(&key, 1, None).ask.is_some());
    }

    #[test]
    fn equal_keys_of_two_exchanges_are_two_bindings() {
        let mut bindings = up();
        let other = AmqpBinding {
            exchange: "other".into(),
            key: "a.b".into(),
        };
        assert!(bindings.acquire(&binding("a.b"), 1, None).ask.is_some());
        assert!(bindings.acquire(&other, 1, None).ask.is_some());
        bound(&mut bindings, &other);
        assert!(!bindings.acquire(&binding("a.b"), 1, None).is_in_force);
    }

    #[test]
    fn a_binding_without_an_answer_leaves_at_once_and_the_answer_is_for_nobody() {
        let (mut bindings, key) = (up(), binding("call.*.*"));
        bindings.acquire(&key, 1, None);
        let first = asked(&bindings, &key);
        assert!(bindings.release(&key, 1));
        bindings.on_lost(&first);
        assert!(bindings.on_bound(&first).is_empty());
        assert_eq!(bindings.counts(), BindingCounts::default());
        let id = bindings.acquire(&key, 1, None).id;
        bindings.wait(id, waiter(7));
        let second = asked(&bindings, &key);
        assert!(bindings.is_answer(&second) && !bindings.is_answer(&first));
        assert!(bindings.on_bound(&first).is_empty() && !bindings.is_in_force(id));
        bindings.on_lost(&first);
        assert_eq!(bindings.counts().lost, 0);
        assert_eq!(bindings.on_bound(&second), [waiter(7)]);
        assert!(bindings.is_in_force(id) && bindings.tickets.is_empty());
    }

    #[test]
    fn another_account_joins_what_waits_and_nothing_else() {
        let (mut bindings, key) = (up(), binding("call.*.*"));
        let tags = [1, 2].map(|number| bindings.loads.tag(account(number)));
        let mut ask = |number| bindings.acquire(&key, 1, account(number)).ask;
        assert!(matches!(ask(1), Some(Ask::Bind(_, tag)) if tag == tags[0]));
        assert_eq!(ask(1), None);
        assert_eq!(ask(2), Some(Ask::Join(tags[1])));
        assert_eq!(ask(2), Some(Ask::Join(tags[1])));
        bound(&mut bindings, &key);
        assert_eq!(bindings.acquire(&key, 1, account(2)).ask, None);
    }

    #[test]
    fn each_binding_counts_for_the_account_that_it_entered_for_until_it_leaves() {
        let mut bindings = up();
        let load = |bindings: &BrokerBindings| {
            [1, 2].map(|number| bindings.load(account(number).expect("an id")))
        };
        for key in ["a", "b"] {
            bindings.acquire(&binding(key), 1, account(1));
            bindings.acquire(&binding(key), 2, account(2));
        }
        bindings.acquire(&binding("c"), 1, account(2));
        bindings.acquire(&binding("d"), 1, None);
        assert_eq!(load(&bindings), [2, 1]);
        let keys = ["a", "b", "c", "d", "e"].map(binding);
        assert_eq!(bindings.new_among(&keys), 1);
        bindings.release(&binding("a"), 1);
        assert_eq!(load(&bindings), [2, 1]);
        bindings.release(&binding("a"), 2);
        bindings.release(&binding("c"), 1);
        bindings.release(&binding("d"), 1);
        assert_eq!(load(&bindings), [1, 0]);
    }

    #[test]
    fn waiters_are_told_once_in_their_order_and_not_after_giving_up() {
        let (mut bindings, key) = (up(), binding("call.*.*"));
        let id = bindings.acquire(&key, 4, None).id;
        let waits = [3, 1, 2, 9].map(|number| bindings.wait(id, waiter(number)));
        bindings.stop_waiting(id, waits[1], waiter(1));
        assert!(!bindings.release(&key, 1));
        assert_eq!(bound(&mut bindings, &key), [3, 2, 9].map(waiter));
        assert_eq!(bound(&mut bindings, &key), Vec::<Waiter>::new());
        assert_eq!(bindings.waiters(), 0);
    }

    #[test]
    fn waiters_go_with_the_last_user() {
        let (mut bindings, key) = (up(), binding("call.*.*"));
        let id = bindings.acquire(&key, 1, None).id;
        bindings.wait(id, waiter(1));
        bindings.release(&key, 1);
        assert_eq!(bindings.waiters(), 0);
        let id = bindings.acquire(&key, 1, None).id;
        bindings.wait(id, waiter(2));
        assert_eq!(bound(&mut bindings, &key), [waiter(2)]);
    }

    #[test]
    fn nothing_is_in_force_while_the_source_is_away_and_what_was_confirmed_returns_with_it() {
        let (mut bindings, old, new) = (up(), binding("old"), binding("new"));
        let id = bindings.acquire(&old, 1, None).id;
        bound(&mut bindings, &old);
        bindings.on_down();
        assert_eq!((bindings.in_force(), bindings.is_in_force(id)), (0, false));
        assert!(!bindings.acquire(&old, 1, None).is_in_force);
        bindings.wait(id, waiter(1));
        let new_id = bindings.acquire(&new, 1, None).id;
        bindings.wait(new_id, waiter(2));
        assert_eq!(bindings.on_up(), [waiter(1)]);
        assert!(bindings.is_in_force(id) && !bindings.is_in_force(new_id));
        assert_eq!(bound(&mut bindings, &new), [waiter(2)]);
    }

    #[test]
    fn an_answer_before_up_leaves_its_waiters_to_up() {
        let (mut bindings, key) = (BrokerBindings::new(), binding("call.*.*"));
        let id = bindings.acquire(&key, 1, None).id;
        bindings.wait(id, waiter(5));
        assert_eq!(bound(&mut bindings, &key), Vec::<Waiter>::new());
        assert_eq!(bindings.on_up(), [waiter(5)]);
    }

    #[test]
    fn a_lost_binding_is_not_in_force_until_it_is_bound_again() {
        let (mut bindings, key) = (up(), binding("call.*.*"));
        let id = bindings.acquire(&key, 1, None).id;
        bound(&mut bindings, &key);
        lost(&mut bindings, &key);
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
        bound(&mut bindings, &key);
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
