//! The bindings the loop wants, where each stands on the broker, and what the loop is still to be told of them.
//! Pure: no socket, clock, thread or log. It outlives every connection (AMQP rail 8).
//!
//! ```text
//!             bind                  take_batch            bound                    unbind
//! (absent) ---------> Queued ---------------------> Binding -----> InForce ----------------> Lingering
//!             ^          |                             |              ^      bind (answered)     |
//!             |          '-- unbind: absent            | refuse       '--------------------------|
//!             |                                        v                                         | due
//!             '--------- retry_refused ----------- Refused                                    (absent)
//! ```
//!
//! When an exchange vanishes, what of it was in force is queued again and what lingered is absent.
//!
//! Invariants: every `Queued` binding is in `queue` (which may also hold ones that moved on); every `Lingering` one
//! is in `lingering` with its own deadline; `in_force` counts `InForce` and `Lingering`, `wanted` all but
//! `Lingering`, `refused` the `Refused`. Tables that a storm of bindings made large give their memory back as they
//! empty.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::handoff::AmqpBinding;

/// Longest exchange name and binding key: the client library cuts a longer length short, and the broker then
/// closes the whole connection (AMQP rail 2).
pub(super) const NAME_BYTES_MAX: usize = 255;
/// How long a binding that is no longer wanted is kept: unbinding is slow, and page reloads ask for the same again.
pub(super) const LINGER: Duration = Duration::from_secs(3);

/// Room that a table keeps however empty it is.
const ROOM_KEPT: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    Binding,
    InForce,
    Lingering { until: Instant },
    Refused,
}

#[derive(Debug)]
struct Entry {
    state: State,
    /// The loop heard `Bound` of it, and no `Lost` since.
    confirmed: bool,
    /// The loop heard `Lost` of it, and no `Bound` since.
    lost: bool,
}

/// The table of bindings. All methods are O(1) a binding they name but where said.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    entries: HashMap<AmqpBinding, Entry>,
    queue: VecDeque<AmqpBinding>,
    lingering: VecDeque<(Instant, AmqpBinding)>,
    bound: Vec<AmqpBinding>,
    lost: Vec<AmqpBinding>,
    in_force: usize,
    wanted: usize,
    refused: usize,
}

impl Bindings {
    /// The loop wants it. Too long a name is told `Lost` and not kept; the answer is then false.
    pub(super) fn bind(&mut self, binding: AmqpBinding) -> bool {
        if binding.exchange.len() > NAME_BYTES_MAX || binding.key.len() > NAME_BYTES_MAX {
            self.lost.push(binding);
            return false;
        }
        match self.entries.get(&binding).map(|entry| entry.state) {
            None => {
                let entry = Entry {
                    state: State::Queued,
                    confirmed: false,
                    lost: false,
                };
                self.entries.insert(binding.clone(), entry);
                self.wanted += 1;
                self.queue.push_back(binding);
            }
            Some(State::InForce | State::Lingering { .. }) => {
                self.set(&binding, State::InForce);
                self.confirm(binding, true);
            }
            Some(State::Queued | State::Binding) => {}
            Some(State::Refused) => self.lost.push(binding),
        }
        true
    }

    /// The loop no longer wants it.
    pub(super) fn unbind(&mut self, binding: &AmqpBinding, now: Instant) {
        match self.entries.get(binding).map(|entry| entry.state) {
            Some(State::InForce | State::Binding) => {
                let until = now + LINGER;
                self.set(binding, State::Lingering { until });
                self.lingering.push_back((until, binding.clone()));
            }
            Some(State::Queued | State::Refused) => self.remove(binding),
            Some(State::Lingering { .. }) | None => {}
        }
    }

    /// Bindings that wait to be bound; an upper limit.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Takes at most `max` off the queue. Each must come back by [`Bindings::bound`], [`Bindings::requeue`] or
    /// [`Bindings::refuse`].
    pub(super) fn take_batch(&mut self, max: usize) -> Vec<AmqpBinding> {
        let mut batch = Vec::new();
        while batch.len() < max
            && let Some(binding) = self.queue.pop_front()
        {
            if self
                .entries
                .get(&binding)
                .is_some_and(|entry| entry.state == State::Queued)
            {
                self.set(&binding, State::Binding);
                batch.push(binding);
            }
        }
        shrink_queue(&mut self.queue);
        batch
    }

    /// The broker has put it in force.
    pub(super) fn bound(&mut self, binding: AmqpBinding) {
        if self
            .entries
            .get(&binding)
            .is_some_and(|entry| entry.state == State::Binding)
        {
            self.set(&binding, State::InForce);
            self.confirm(binding, false);
        }
    }

    /// It was not tried after all; it is the next to be taken.
    pub(super) fn requeue(&mut self, binding: AmqpBinding) {
        if self
            .entries
            .get(&binding)
            .is_some_and(|entry| entry.state == State::Binding)
        {
            self.set(&binding, State::Queued);
            self.queue.push_front(binding);
        }
    }

    /// The broker refused it or its exchange.
    pub(super) fn refuse(&mut self, binding: AmqpBinding) {
        if self
            .entries
            .get(&binding)
            .is_some_and(|entry| entry.state == State::Binding)
        {
            self.set(&binding, State::Refused);
            self.lose(binding);
        }
    }

    /// The exchange is not there, so neither is any of its bindings: those that were in force are told `Lost` and
    /// queued again. Linear in all bindings.
    pub(super) fn exchange_vanished(&mut self, exchange: &str) {
        self.bound.retain(|binding| *binding.exchange != *exchange);
        let gone: Vec<_> = self
            .entries
            .iter()
            .filter(|(binding, _)| *binding.exchange == *exchange)
            .map(|(binding, entry)| (binding.clone(), entry.state))
            .collect();
        for (binding, state) in gone {
            match state {
                State::InForce => {
                    self.set(&binding, State::Queued);
                    self.queue.push_back(binding.clone());
                    self.lose(binding);
                }
                State::Lingering { .. } => self.remove(&binding),
                State::Queued | State::Binding | State::Refused => {}
            }
        }
    }

    /// Every refused binding is to be tried again. Linear in all bindings, when there are refused ones.
    pub(super) fn retry_refused(&mut self) {
        if self.refused == 0 {
            return;
        }
        for (binding, entry) in &mut self.entries {
            if entry.state == State::Refused {
                entry.state = State::Queued;
                self.queue.push_back(binding.clone());
            }
        }
        self.refused = 0;
    }

    /// The oldest unwanted binding whose time has come; it is forgotten, and the caller unbinds it.
    pub(super) fn take_unwanted(&mut self, now: Instant) -> Option<AmqpBinding> {
        while self
            .lingering
            .front()
            .is_some_and(|(until, _)| *until <= now)
        {
            let (due, binding) = self.lingering.pop_front()?;
            shrink_queue(&mut self.lingering);
            let is_unwanted =
                |entry: &Entry| matches!(entry.state, State::Lingering { until } if until == due);
            if self.entries.get(&binding).is_some_and(is_unwanted) {
                self.remove(&binding);
                return Some(binding);
            }
        }
        None
    }

    /// When [`Bindings::take_unwanted`] may next have an answer.
    pub(super) fn next_unwanted(&self) -> Option<Instant> {
        self.lingering.front().map(|(until, _)| *until)
    }

    /// Nothing is in force any more: the queue died with its connection. All that is wanted is queued. Linear.
    pub(super) fn connection_lost(&mut self) {
        self.lingering.clear();
        self.queue.clear();
        // In force no more, and the loop was not told that they were: it is told when they are again.
        for binding in self.bound.drain(..) {
            if let Some(entry) = self.entries.get_mut(&binding) {
                entry.confirmed = false;
            }
        }
        self.entries.retain(|binding, entry| {
            let wanted = !matches!(entry.state, State::Lingering { .. });
            if wanted {
                entry.state = State::Queued;
                self.queue.push_back(binding.clone());
            }
            wanted
        });
        (self.in_force, self.wanted, self.refused) = (0, self.entries.len(), 0);
    }

    /// What the loop is to be told `Bound` of.
    pub(super) fn take_bound(&mut self) -> Vec<AmqpBinding> {
        std::mem::take(&mut self.bound)
    }

    /// What the loop is to be told `Lost` of.
    pub(super) fn take_lost(&mut self) -> Vec<AmqpBinding> {
        std::mem::take(&mut self.lost)
    }

    /// Bindings the loop wants.
    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }

    /// Bindings on the broker's queue.
    pub(super) fn in_force(&self) -> usize {
        self.in_force
    }

    /// Bindings wanted but refused.
    pub(super) fn refused(&self) -> usize {
        self.refused
    }

    fn confirm(&mut self, binding: AmqpBinding, again: bool) {
        if let Some(entry) = self.entries.get_mut(&binding) {
            entry.lost = false;
            if !std::mem::replace(&mut entry.confirmed, true) || again {
                self.bound.push(binding);
            }
        }
    }

    fn lose(&mut self, binding: AmqpBinding) {
        if let Some(entry) = self.entries.get_mut(&binding) {
            entry.confirmed = false;
            if !std::mem::replace(&mut entry.lost, true) {
                self.lost.push(binding);
            }
        }
    }

    fn set(&mut self, binding: &AmqpBinding, to: State) {
        if let Some(entry) = self.entries.get_mut(binding) {
            let from = std::mem::replace(&mut entry.state, to);
            self.count(Some(from), Some(to));
        }
    }

    fn remove(&mut self, binding: &AmqpBinding) {
        let from = self.entries.remove(binding).map(|entry| entry.state);
        self.count(from, None);
        let (length, room) = (self.entries.len(), self.entries.capacity());
        if is_roomy(length, room) {
            self.entries.shrink_to(length * 2);
        }
    }

    fn count(&mut self, from: Option<State>, to: Option<State>) {
        let in_force = |state| {
            usize::from(matches!(
                state,
                Some(State::InForce | State::Lingering { .. })
            ))
        };
        let wanted = |state: Option<State>| {
            usize::from(state.is_some_and(|s| !matches!(s, State::Lingering { .. })))
        };
        let refused = |state| usize::from(matches!(state, Some(State::Refused)));
        self.in_force = self.in_force + in_force(to) - in_force(from);
        self.wanted = self.wanted + wanted(to) - wanted(from);
        self.refused = self.refused + refused(to) - refused(from);
    }
}

/// Whether a table of this length has so much room that it is worth giving back: amortised O(1) a removal.
fn is_roomy(length: usize, room: usize) -> bool {
    room > ROOM_KEPT && length < room / 8
}

fn shrink_queue<T>(queue: &mut VecDeque<T>) {
    if is_roomy(queue.len(), queue.capacity()) {
        queue.shrink_to(queue.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn binding(key: &str) -> AmqpBinding {
        AmqpBinding {
            exchange: "callevt".into(),
            key: key.into(),
        }
    }

    #[test]
    fn a_storm_of_bindings_leaves_no_room_behind() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        for number in 0..10_000 {
            bindings.bind(binding(&number.to_string()));
        }
        force(&mut bindings);
        bindings.take_bound();
        for number in 10..10_000 {
            bindings.unbind(&binding(&number.to_string()), now);
        }
        while bindings.take_unwanted(now + LINGER).is_some() {}
        let rooms = [
            bindings.entries.capacity(),
            bindings.queue.capacity(),
            bindings.lingering.capacity(),
        ];
        assert!(rooms.iter().all(|room| *room <= 2 * ROOM_KEPT), "{rooms:?}");
        assert_eq!((bindings.wanted(), bindings.in_force()), (10, 10));
    }

    fn force(bindings: &mut Bindings) {
        for taken in bindings.take_batch(usize::MAX) {
            bindings.bound(taken);
        }
    }

    #[test]
    fn when_an_exchange_vanishes_its_bindings_are_lost_and_queued_and_no_others() {
        let mut bindings = Bindings::default();
        let other = AmqpBinding {
            exchange: "faxes".into(),
            key: "key".into(),
        };
        for wanted in [
            binding("told"),
            binding("lingers"),
            binding("untold"),
            other.clone(),
        ] {
            bindings.bind(wanted.clone());
            force(&mut bindings);
            if wanted != binding("untold") && wanted != other {
                assert_eq!(bindings.take_bound(), [wanted]);
            }
        }
        bindings.unbind(&binding("lingers"), Instant::now());
        bindings.exchange_vanished("callevt");
        let mut lost = bindings.take_lost();
        lost.sort();
        assert_eq!(lost, [binding("told"), binding("untold")]);
        assert_eq!(
            bindings.take_bound(),
            [other],
            "what is gone again is not told as bound"
        );
        assert_eq!((bindings.wanted(), bindings.in_force()), (3, 1));
        force(&mut bindings);
        let mut bound = bindings.take_bound();
        bound.sort();
        assert_eq!(bound, [binding("told"), binding("untold")]);
        assert_eq!((bindings.wanted(), bindings.in_force()), (3, 3));
    }

    #[test]
    fn a_binding_is_told_once_it_is_in_force_and_at_once_when_it_already_is() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        bindings.bind(binding("a"));
        assert!(bindings.take_bound().is_empty());
        force(&mut bindings);
        assert_eq!(bindings.take_bound(), [binding("a")]);
        bindings.unbind(&binding("a"), now);
        assert_eq!((bindings.wanted(), bindings.in_force()), (0, 1));
        bindings.bind(binding("a"));
        assert_eq!(bindings.take_bound(), [binding("a")]);
        assert_eq!(bindings.queued(), 0);
        assert_eq!(
            bindings.take_unwanted(now + LINGER),
            None,
            "the bind took the unbind back"
        );
    }

    #[test]
    fn an_unwanted_binding_lingers_from_its_last_unbind() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        bindings.bind(binding("a"));
        force(&mut bindings);
        bindings.unbind(&binding("a"), now);
        bindings.bind(binding("a"));
        let later = now + Duration::from_secs(1);
        bindings.unbind(&binding("a"), later);
        assert_eq!(bindings.take_unwanted(now + LINGER), None);
        assert_eq!(bindings.next_unwanted(), Some(later + LINGER));
        assert_eq!(bindings.take_unwanted(later + LINGER), Some(binding("a")));
        assert_eq!((bindings.in_force(), bindings.next_unwanted()), (0, None));
    }

    #[test]
    fn after_a_reconnect_only_the_never_confirmed_are_told_and_the_unwanted_are_gone() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        bindings.bind(binding("confirmed"));
        bindings.bind(binding("unwanted"));
        force(&mut bindings);
        bindings.unbind(&binding("unwanted"), now);
        bindings.take_bound();
        bindings.bind(binding("new"));
        bindings.connection_lost();
        assert_eq!(
            (bindings.wanted(), bindings.in_force(), bindings.queued()),
            (2, 0, 2)
        );
        force(&mut bindings);
        assert_eq!(bindings.take_bound(), [binding("new")]);
        assert_eq!(bindings.take_unwanted(now + LINGER), None);
    }

    #[test]
    fn a_binding_whose_connection_died_before_it_was_told_is_told_after_the_next() {
        let mut bindings = Bindings::default();
        bindings.bind(binding("a"));
        force(&mut bindings);
        bindings.connection_lost();
        assert!(bindings.take_bound().is_empty(), "it is not in force");
        force(&mut bindings);
        assert_eq!(bindings.take_bound(), [binding("a")]);
    }

    #[test]
    fn a_refused_binding_is_told_lost_once_and_bound_when_a_retry_succeeds() {
        let mut bindings = Bindings::default();
        bindings.bind(binding("a"));
        for round in 0..3 {
            for taken in bindings.take_batch(9) {
                bindings.refuse(taken);
            }
            assert_eq!(bindings.take_lost().len(), usize::from(round == 0));
            assert_eq!((bindings.wanted(), bindings.refused()), (1, 1));
            bindings.retry_refused();
        }
        force(&mut bindings);
        assert_eq!(bindings.take_bound(), [binding("a")]);
        assert_eq!(bindings.refused(), 0);
    }

    #[test]
    fn a_name_of_256_bytes_is_lost_and_one_of_255_is_bound() {
        let mut bindings = Bindings::default();
        assert!(bindings.bind(binding(&"k".repeat(255))));
        assert!(!bindings.bind(binding(&"k".repeat(256))));
        assert!(!bindings.bind(AmqpBinding {
            exchange: "e".repeat(256).into(),
            key: "k".into()
        }));
        assert_eq!((bindings.wanted(), bindings.take_lost().len()), (1, 2));
    }

    proptest! {
        /// Whatever the loop asks and the broker answers, the last word counts and no counter drifts.
        #[test]
        fn after_any_history_exactly_the_wanted_end_up_in_force(steps in proptest::collection::vec((0..8_u8, 0..5_u8), 0..200)) {
            let (mut bindings, mut now) = (Bindings::default(), Instant::now());
            let mut wanted = std::collections::BTreeSet::new();
            let mut on_broker = std::collections::BTreeSet::new();
            for (step, name) in steps {
                let named = binding(&name.to_string());
                now += Duration::from_millis(700);
                match step {
                    0 | 1 => if wanted.insert(named.clone()) { bindings.bind(named); },
                    2 => if wanted.remove(&named) { bindings.unbind(&named, now); },
                    3 => for taken in bindings.take_batch(3) { on_broker.insert(taken.clone()); bindings.bound(taken); },
                    4 => for taken in bindings.take_batch(3) { bindings.refuse(taken); },
                    5 => while let Some(unwanted) = bindings.take_unwanted(now) { on_broker.remove(&unwanted); },
                    6 => { on_broker.clear(); bindings.connection_lost(); }
                    _ => bindings.retry_refused(),
                }
                prop_assert_eq!(bindings.wanted(), wanted.len());
                prop_assert_eq!(bindings.in_force(), on_broker.len());
                prop_assert!(bindings.entries.values().filter(|e| e.state == State::Refused).count() == bindings.refused());
            }
            bindings.retry_refused();
            for taken in bindings.take_batch(usize::MAX) { on_broker.insert(taken.clone()); bindings.bound(taken); }
            while let Some(unwanted) = bindings.take_unwanted(now + LINGER) { on_broker.remove(&unwanted); }
            prop_assert_eq!(on_broker, wanted);
        }
    }
}
