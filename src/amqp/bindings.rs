//! The table of the bindings that the loop wants: where each stands on the broker, and what the loop has not yet been
//! told of it. The table outlives every connection (AMQP rail 8), and so does the queue on the broker, as a rule. Pure:
//! no socket, clock, thread or log.
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
//! When an exchange vanishes, its bindings that were in force are queued again, and those that lingered become absent.
//! When the connection is lost, all that is wanted is queued again: on a queue that is still there a second bind of the
//! same changes nothing, and proves that it is in force. What was bound once and is wanted no more lingers then too,
//! until it is unbound at last, or the queue is found gone with all its bindings.
//!
//! Invariants: whatever may be bound on the broker's queue has an entry that says so; every `Queued` binding has the
//! places in the queue that its entry names, one for each account that asked for it, and nothing else is in the queue;
//! every `Lingering` one has its place there; `in_force` counts `InForce` and
//! `Lingering`, `wanted` all but `Lingering`, `refused` the `Refused`, `queued` the `Queued`. The loop is told of a
//! binding with the ticket of its latest `Bind`. Tables that a storm of bindings made large give their room back as
//! they empty.

use std::collections::HashMap;
use std::time::Instant;

use super::bind_queue::{self, BindQueue};
use super::lingering::{self, Lingering};
use crate::room::GiveBackRoom;
use crate::routing::account_load::AccountTag;
use crate::routing::amqp_binding::{AmqpBinding, Asked, Ticket};

/// Longest exchange name and longest binding key. The client library would truncate a larger length, and the broker
/// would then close the whole connection (AMQP rail 2).
pub(super) const NAME_BYTES_MAX: usize = 255;

/// The places of a binding in the queue: one for each account that asked for it.
type Places = Vec<(AccountTag, bind_queue::Place)>;

#[derive(Debug, PartialEq, Eq)]
enum State {
    Queued(Places),
    /// Handed to the broker. These are the places that it had.
    Binding(Places),
    InForce,
    Lingering(lingering::Place),
    Refused,
}

#[derive(Debug)]
struct Entry {
    state: State,
    /// The ticket of the latest `Bind`.
    ticket: Ticket,
    /// The account that asked for it then.
    account: AccountTag,
    /// The loop heard `Bound` of this ticket, and no `Lost` since.
    confirmed: bool,
    /// The loop heard `Lost` of this ticket, and no `Bound` since.
    lost: bool,
    there: There,
}

/// Whether the broker's queue has a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    No,
    /// It was, or may have been, when the last connection ended, and that queue may be there still.
    Perhaps,
    /// The broker said so on this connection.
    Yes,
}

impl Entry {
    fn asked(&self, binding: AmqpBinding) -> Asked {
        Asked {
            binding,
            ticket: self.ticket,
        }
    }
}

/// The table of bindings. All methods are O(log n) a binding they name but where said.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    entries: HashMap<AmqpBinding, Entry>,
    queue: BindQueue,
    /// Bindings asked for while those wanted before are restored; they come after those.
    later: BindQueue,
    is_restoring: bool,
    next_place: bind_queue::Place,
    lingering: Lingering,
    bound: Vec<Asked>,
    lost: Vec<Asked>,
    /// Bindings that this pass of rechecks has not come to; some may be in force no more.
    rechecks: Vec<AmqpBinding>,
    in_force: usize,
    wanted: usize,
    refused: usize,
    queued: usize,
}

impl Bindings {
    /// The loop wants `binding`. Returns false when a name of it is too long: then it is told `Lost` and not kept.
    pub(super) fn bind(
        &mut self,
        binding: AmqpBinding,
        ticket: Ticket,
        account: AccountTag,
    ) -> bool {
        if binding.exchange.len() > NAME_BYTES_MAX || binding.key.len() > NAME_BYTES_MAX {
            self.lost.push(Asked { binding, ticket });
            return false;
        }
        let Some(entry) = self.entries.get_mut(&binding) else {
            let entry = Entry {
                state: State::Queued(Places::new()),
                ticket,
                account,
                confirmed: false,
                lost: false,
                there: There::No,
            };
            self.count(Tally::of(&entry.state));
            self.entries.insert(binding.clone(), entry);
            self.join(&binding, account);
            return true;
        };
        (entry.ticket, entry.account) = (ticket, account);
        (entry.confirmed, entry.lost) = (false, false);
        match entry.state {
            State::InForce => self.confirm(&binding),
            State::Lingering(place) => {
                let is_in_force = entry.there == There::Yes;
                self.lingering.remove(place);
                if is_in_force {
                    self.set(&binding, State::InForce);
                    self.confirm(&binding);
                } else {
                    self.enqueue(&binding);
                }
            }
            State::Queued(_) => {
                self.leave_queue(&binding);
                self.join(&binding, account);
            }
            State::Binding(_) => {}
            State::Refused => self.lose(&binding),
        }
        true
    }

    /// Another account waits for `binding`, which gets a place in that account's queue too. Linear in the accounts that
    /// wait for it.
    pub(super) fn join(&mut self, binding: &AmqpBinding, account: AccountTag) {
        let place = self.next_place;
        let queue = if self.is_restoring {
            &mut self.later
        } else {
            &mut self.queue
        };
        if let Some(entry) = self.entries.get_mut(binding)
            && let State::Queued(places) = &mut entry.state
            && !places.iter().any(|(known, _)| *known == account)
        {
            self.next_place += 1;
            places.push((account, place));
            queue.insert(account, place, binding.clone());
        }
    }

    /// The loop no longer wants `binding`.
    pub(super) fn unbind(&mut self, binding: &AmqpBinding, now: Instant) {
        let Some(entry) = self.entries.get(binding) else {
            return;
        };
        match entry.state {
            State::Lingering(_) => {}
            State::Queued(_) | State::Refused if entry.there == There::No => self.remove(binding),
            State::InForce | State::Binding(_) | State::Queued(_) | State::Refused => {
                self.linger(binding, now);
            }
        }
    }

    /// Bindings that wait to be bound.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Bindings that wait to be unbound.
    pub(super) fn unbinds_queued(&self) -> usize {
        self.lingering.due()
    }

    /// From now on bindings that the loop asks for wait behind those that it asked for before.
    pub(super) fn begin_restoring(&mut self) {
        self.is_restoring = true;
    }

    /// Whether a binding that was asked for before [`Bindings::begin_restoring`] still waits.
    pub(super) fn has_to_restore(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Every binding that was wanted before was bound or refused: those asked for since are next.
    pub(super) fn end_restoring(&mut self) {
        debug_assert!(!self.has_to_restore());
        self.is_restoring = false;
        std::mem::swap(&mut self.queue, &mut self.later);
    }

    /// Takes at most `max` off the queue, in turns between accounts. Each must come back by [`Bindings::bound`],
    /// [`Bindings::requeue`] or [`Bindings::refuse`].
    pub(super) fn take_batch(&mut self, max: usize) -> Vec<AmqpBinding> {
        let mut batch = Vec::new();
        while batch.len() < max
            && let Some(binding) = self.queue.next().cloned()
        {
            let places = self.leave_queue(&binding);
            self.set(&binding, State::Binding(places));
            batch.push(binding);
        }
        batch
    }

    /// The broker has put `binding` in force.
    pub(super) fn bound(&mut self, binding: &AmqpBinding) {
        if self.is_binding(binding) {
            self.set(binding, State::InForce);
            self.confirm(binding);
        }
        if let Some(entry) = self.entries.get_mut(binding) {
            entry.there = There::Yes;
        }
    }

    /// `binding` was not tried after all; it keeps its places.
    pub(super) fn requeue(&mut self, binding: &AmqpBinding) {
        if let Some(entry) = self.entries.get_mut(binding)
            && let State::Binding(places) = &mut entry.state
        {
            let places = std::mem::take(places);
            for (account, place) in &places {
                self.queue.insert(*account, *place, binding.clone());
            }
            self.set(binding, State::Queued(places));
        }
    }

    /// The broker refused `binding` or its exchange.
    pub(super) fn refuse(&mut self, binding: &AmqpBinding) {
        if self.is_binding(binding) {
            self.set(binding, State::Refused);
            self.lose(binding);
        }
    }

    /// Returns at most `max` bindings in force that are to be bound again, in passes over all of them: somebody may
    /// have deleted and declared an exchange again, and the broker does not say so. Linear in `max`, and once a pass in
    /// all bindings.
    pub(super) fn take_rechecks(&mut self, max: usize) -> Vec<AmqpBinding> {
        if self.rechecks.is_empty() {
            self.rechecks = (self.entries.iter())
                .filter(|(_, entry)| entry.state == State::InForce)
                .map(|(binding, _)| binding.clone())
                .collect();
        }
        let from = self.rechecks.len().saturating_sub(max);
        let mut taken = self.rechecks.split_off(from);
        taken.retain(|binding| {
            let entry = self.entries.get(binding);
            entry.is_some_and(|entry| entry.state == State::InForce)
        });
        taken
    }

    /// The exchange is not there, so none of its bindings is: those that the loop believes in force are told `Lost` and
    /// are queued. Linear in all bindings.
    pub(super) fn exchange_vanished(&mut self, exchange: &str) {
        self.bound
            .retain(|asked| *asked.binding.exchange != *exchange);
        let (mut in_force, mut lingering, mut believed) = (Vec::new(), Vec::new(), Vec::new());
        for (binding, entry) in &mut self.entries {
            if *binding.exchange != *exchange {
                continue;
            }
            entry.there = There::No;
            match entry.state {
                State::InForce => in_force.push(binding.clone()),
                State::Lingering(_) => lingering.push(binding.clone()),
                // After a reconnect they wait to be bound again, which the loop need not know.
                State::Queued(_) | State::Binding(_) if entry.confirmed => {
                    believed.push(binding.clone());
                }
                State::Queued(_) | State::Binding(_) | State::Refused => {}
            }
        }
        for binding in &in_force {
            self.enqueue(binding);
        }
        for binding in in_force.iter().chain(&believed) {
            self.lose(binding);
        }
        for binding in &lingering {
            self.remove(binding);
        }
    }

    /// Every refused binding is to be tried again. Linear in all bindings, when there are refused ones.
    pub(super) fn retry_refused(&mut self) {
        if self.refused == 0 {
            return;
        }
        let refused: Vec<_> = (self.entries.iter())
            .filter(|(_, entry)| entry.state == State::Refused)
            .map(|(binding, _)| binding.clone())
            .collect();
        for binding in refused {
            self.enqueue(&binding);
        }
    }

    /// Forgets and returns the oldest unwanted binding whose time has come; the caller unbinds it, or gives it back
    /// ([`Bindings::not_unbound`]).
    pub(super) fn take_unwanted(&mut self, now: Instant) -> Option<AmqpBinding> {
        let binding = self.lingering.take_due(now)?;
        self.remove(&binding);
        Some(binding)
    }

    /// When [`Bindings::take_unwanted`] may next return a binding: at once (`Some(None)`), or at that time. `None`:
    /// never.
    pub(super) fn next_unwanted(&self) -> Option<Option<Instant>> {
        self.lingering.next_due()
    }

    /// The broker may or may not have taken back `binding`, which [`Bindings::take_unwanted`] returned.
    pub(super) fn not_unbound(&mut self, binding: AmqpBinding, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&binding) {
            entry.there = There::Perhaps;
            return;
        }
        let account = AccountTag::NOBODY;
        let entry = Entry {
            state: State::Lingering(self.lingering.push(account, binding.clone(), now)),
            ticket: Ticket::default(),
            account,
            confirmed: false,
            lost: false,
            there: There::Perhaps,
        };
        self.count(Tally::of(&entry.state));
        self.entries.insert(binding, entry);
    }

    /// The queue has no bindings, because it is a new one. To be called after [`Bindings::connection_lost`]. Linear.
    pub(super) fn queue_is_new(&mut self) {
        let mut unwanted = Vec::new();
        for (binding, entry) in &mut self.entries {
            entry.there = There::No;
            if matches!(entry.state, State::Lingering(_)) {
                unwanted.push(binding.clone());
            }
        }
        for binding in unwanted {
            self.remove(&binding);
        }
    }

    /// Nothing is surely in force any more. Every wanted binding is queued. Linear.
    pub(super) fn connection_lost(&mut self) {
        self.rechecks.clear();
        // They are in force no more, and the loop was not told that they were. It is told when they are again.
        for asked in self.bound.drain(..) {
            if let Some(entry) = self.entries.get_mut(&asked.binding) {
                entry.confirmed = false;
            }
        }
        self.is_restoring = false;
        let mut unplaced = Vec::new();
        for (binding, entry) in &mut self.entries {
            let was_handed_over = matches!(entry.state, State::Binding(_));
            if was_handed_over || entry.there == There::Yes {
                entry.there = There::Perhaps;
            }
            match &entry.state {
                State::Lingering(_) | State::Queued(_) => {}
                State::Binding(_) | State::InForce | State::Refused => {
                    unplaced.push(binding.clone())
                }
            }
        }
        let later = std::mem::take(&mut self.later);
        later.drain_into(&mut self.queue);
        for binding in unplaced {
            self.enqueue(&binding);
        }
    }

    /// The bindings that the loop is to be told `Bound` of.
    pub(super) fn take_bound(&mut self) -> Vec<Asked> {
        std::mem::take(&mut self.bound)
    }

    /// The bindings that the loop is to be told `Lost` of.
    pub(super) fn take_lost(&mut self) -> Vec<Asked> {
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

    fn is_binding(&self, binding: &AmqpBinding) -> bool {
        let entry = self.entries.get(binding);
        entry.is_some_and(|entry| matches!(entry.state, State::Binding(_)))
    }

    /// Puts `binding` at the end of the queue of the account that asked for it last.
    fn enqueue(&mut self, binding: &AmqpBinding) {
        self.set(binding, State::Queued(Vec::new()));
        if let Some(account) = self.entries.get(binding).map(|entry| entry.account) {
            self.join(binding, account);
        }
    }

    /// Nobody wants `binding` any more, and the broker's queue has it or may have it.
    fn linger(&mut self, binding: &AmqpBinding, now: Instant) {
        self.leave_queue(binding);
        if let Some(account) = self.entries.get(binding).map(|entry| entry.account) {
            let place = self.lingering.push(account, binding.clone(), now);
            self.set(binding, State::Lingering(place));
        }
    }

    /// Takes a queued binding off the queue. Returns the places that it had.
    fn leave_queue(&mut self, binding: &AmqpBinding) -> Places {
        let Some(entry) = self.entries.get_mut(binding) else {
            return Places::new();
        };
        let State::Queued(places) = &mut entry.state else {
            return Places::new();
        };
        let places = std::mem::take(places);
        for (account, place) in &places {
            self.queue.remove(*account, *place);
            self.later.remove(*account, *place);
        }
        places
    }

    fn confirm(&mut self, binding: &AmqpBinding) {
        if let Some(entry) = self.entries.get_mut(binding) {
            entry.lost = false;
            if !std::mem::replace(&mut entry.confirmed, true) {
                self.bound.push(entry.asked(binding.clone()));
            }
        }
    }

    fn lose(&mut self, binding: &AmqpBinding) {
        if let Some(entry) = self.entries.get_mut(binding) {
            entry.confirmed = false;
            if !std::mem::replace(&mut entry.lost, true) {
                self.lost.push(entry.asked(binding.clone()));
            }
        }
    }

    fn set(&mut self, binding: &AmqpBinding, to: State) {
        if let Some(entry) = self.entries.get_mut(binding) {
            let counted = Tally::of(&to);
            let from = std::mem::replace(&mut entry.state, to);
            self.count(counted);
            self.uncount(Tally::of(&from));
        }
    }

    fn remove(&mut self, binding: &AmqpBinding) {
        self.leave_queue(binding);
        if let Some(entry) = self.entries.remove(binding) {
            self.uncount(Tally::of(&entry.state));
            if let State::Lingering(place) = entry.state {
                self.lingering.remove(place);
            }
        }
        self.entries.give_back_room();
    }

    fn count(&mut self, one: Tally) {
        self.in_force += usize::from(one.in_force);
        self.wanted += usize::from(one.wanted);
        self.refused += usize::from(one.refused);
        self.queued += usize::from(one.queued);
    }

    fn uncount(&mut self, one: Tally) {
        self.in_force -= usize::from(one.in_force);
        self.wanted -= usize::from(one.wanted);
        self.refused -= usize::from(one.refused);
        self.queued -= usize::from(one.queued);
    }
}

/// The counts that a binding is part of.
#[derive(Clone, Copy)]
struct Tally {
    in_force: bool,
    wanted: bool,
    refused: bool,
    queued: bool,
}

impl Tally {
    fn of(state: &State) -> Self {
        Self {
            in_force: matches!(state, State::InForce | State::Lingering(_)),
            wanted: !matches!(state, State::Lingering(_)),
            refused: matches!(state, State::Refused),
            queued: matches!(state, State::Queued(_)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use crate::amqp::lingering::LINGER;
    use std::time::Duration;

    /// Asks for it under the ticket 0, for one account that all share.
    fn ask(bindings: &mut Bindings, binding: AmqpBinding) -> bool {
        bindings.bind(binding, Ticket::default(), AccountTag::NOBODY)
    }

    fn named(asked: Vec<Asked>) -> Vec<AmqpBinding> {
        asked.into_iter().map(|asked| asked.binding).collect()
    }

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
            ask(&mut bindings, binding(&number.to_string()));
        }
        force(&mut bindings);
        bindings.take_bound();
        for number in 10..10_000 {
            bindings.unbind(&binding(&number.to_string()), now);
        }
        while bindings.take_unwanted(now + LINGER).is_some() {}
        let room = bindings.entries.capacity();
        assert!(room <= 2 * crate::room::ROOM_KEPT, "{room}");
        assert_eq!((bindings.wanted(), bindings.in_force()), (10, 10));
    }

    fn force(bindings: &mut Bindings) {
        for taken in bindings.take_batch(usize::MAX) {
            bindings.bound(&taken);
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
            ask(&mut bindings, wanted.clone());
            force(&mut bindings);
            if wanted != binding("untold") && wanted != other {
                assert_eq!(named(bindings.take_bound()), [wanted]);
            }
        }
        bindings.unbind(&binding("lingers"), Instant::now());
        bindings.exchange_vanished("callevt");
        let mut lost = named(bindings.take_lost());
        lost.sort();
        assert_eq!(lost, [binding("told"), binding("untold")]);
        assert_eq!(
            named(bindings.take_bound()),
            [other],
            "what is gone again is not told as bound"
        );
        assert_eq!((bindings.wanted(), bindings.in_force()), (3, 1));
        force(&mut bindings);
        let mut bound = named(bindings.take_bound());
        bound.sort();
        assert_eq!(bound, [binding("told"), binding("untold")]);
        assert_eq!((bindings.wanted(), bindings.in_force()), (3, 3));
    }

    #[test]
    fn a_binding_is_told_once_it_is_in_force_and_at_once_when_it_already_is() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        ask(&mut bindings, binding("a"));
        assert!(named(bindings.take_bound()).is_empty());
        force(&mut bindings);
        assert_eq!(named(bindings.take_bound()), [binding("a")]);
        bindings.unbind(&binding("a"), now);
        assert_eq!((bindings.wanted(), bindings.in_force()), (0, 1));
        ask(&mut bindings, binding("a"));
        assert_eq!(named(bindings.take_bound()), [binding("a")]);
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
        ask(&mut bindings, binding("a"));
        force(&mut bindings);
        bindings.unbind(&binding("a"), now);
        ask(&mut bindings, binding("a"));
        let later = now + Duration::from_secs(1);
        bindings.unbind(&binding("a"), later);
        assert_eq!(bindings.take_unwanted(now + LINGER), None);
        assert_eq!(bindings.next_unwanted(), Some(Some(later + LINGER)));
        assert_eq!(bindings.take_unwanted(later + LINGER), Some(binding("a")));
        assert_eq!((bindings.in_force(), bindings.next_unwanted()), (0, None));
    }

    #[test]
    fn after_a_reconnect_only_the_never_confirmed_are_told_and_the_unwanted_are_unbound_where_the_queue_is_there()
     {
        for is_new in [false, true] {
            after_a_reconnect(is_new);
        }
    }

    fn after_a_reconnect(is_new: bool) {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        ask(&mut bindings, binding("confirmed"));
        ask(&mut bindings, binding("unwanted"));
        force(&mut bindings);
        bindings.unbind(&binding("unwanted"), now);
        bindings.take_bound();
        ask(&mut bindings, binding("new"));
        ask(&mut bindings, binding("leaves"));
        bindings.take_batch(1);
        bindings.connection_lost();
        if is_new {
            bindings.queue_is_new();
        }
        assert_eq!(
            (bindings.wanted(), bindings.in_force(), bindings.queued()),
            (3, usize::from(!is_new), 3)
        );
        bindings.unbind(&binding("confirmed"), now);
        ask(&mut bindings, binding("confirmed"));
        bindings.unbind(&binding("leaves"), now);
        force(&mut bindings);
        let mut bound = named(bindings.take_bound());
        bound.sort();
        assert_eq!(bound, [binding("confirmed"), binding("new")]);
        let unbound = std::iter::from_fn(|| bindings.take_unwanted(now + LINGER));
        let expected = if is_new {
            vec![]
        } else {
            vec![binding("unwanted")]
        };
        assert_eq!(unbound.collect::<Vec<_>>(), expected);
        assert_eq!((bindings.wanted(), bindings.in_force()), (2, 2));
    }

    #[test]
    fn what_a_lost_connection_may_have_bound_or_not_unbound_is_unbound_on_the_next() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        for key in ["handed over", "in force", "not unbound"] {
            ask(&mut bindings, binding(key));
        }
        let taken = bindings.take_batch(usize::MAX);
        for bound in taken.iter().filter(|one| *one.key != *"handed over") {
            bindings.bound(bound);
        }
        bindings.unbind(&binding("not unbound"), now);
        assert!(bindings.take_unwanted(now + LINGER).is_some());
        bindings.not_unbound(binding("not unbound"), now + LINGER);
        bindings.connection_lost();
        for key in ["handed over", "in force"] {
            bindings.unbind(&binding(key), now);
        }
        assert_eq!((bindings.wanted(), bindings.queued()), (0, 0));
        let unbound = std::iter::from_fn(|| bindings.take_unwanted(now + 2 * LINGER));
        let mut unbound: Vec<_> = unbound.collect();
        unbound.sort();
        assert_eq!(
            unbound,
            ["handed over", "in force", "not unbound"].map(binding)
        );
        assert!(bindings.entries.is_empty());
    }

    #[test]
    fn an_exchange_that_is_gone_after_a_reconnect_is_lost_to_those_who_believe_in_its_bindings() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        for key in ["believed", "lingers"] {
            ask(&mut bindings, binding(key));
        }
        force(&mut bindings);
        bindings.take_bound();
        ask(&mut bindings, binding("new"));
        bindings.unbind(&binding("lingers"), now);
        bindings.connection_lost();
        let batch = bindings.take_batch(1);
        bindings.exchange_vanished("callevt");
        batch.iter().for_each(|one| bindings.requeue(one));
        assert_eq!(named(bindings.take_lost()), [binding("believed")]);
        force(&mut bindings);
        let mut bound = named(bindings.take_bound());
        bound.sort();
        assert_eq!(bound, [binding("believed"), binding("new")]);
        assert_eq!(bindings.take_unwanted(now + LINGER), None);
    }

    #[test]
    fn a_binding_whose_connection_died_before_it_was_told_is_told_after_the_next() {
        let mut bindings = Bindings::default();
        ask(&mut bindings, binding("a"));
        force(&mut bindings);
        bindings.connection_lost();
        assert!(
            named(bindings.take_bound()).is_empty(),
            "it is not in force"
        );
        force(&mut bindings);
        assert_eq!(named(bindings.take_bound()), [binding("a")]);
    }

    #[test]
    fn a_refused_binding_is_told_lost_once_and_bound_when_a_retry_succeeds() {
        let mut bindings = Bindings::default();
        ask(&mut bindings, binding("a"));
        for round in 0..3 {
            for taken in bindings.take_batch(9) {
                bindings.refuse(&taken);
            }
            assert_eq!(named(bindings.take_lost()).len(), usize::from(round == 0));
            assert_eq!((bindings.wanted(), bindings.refused()), (1, 1));
            bindings.retry_refused();
        }
        force(&mut bindings);
        assert_eq!(named(bindings.take_bound()), [binding("a")]);
        assert_eq!(bindings.refused(), 0);
    }

    #[test]
    fn rechecks_come_to_every_binding_in_force_once_a_pass() {
        let mut bindings = Bindings::default();
        for key in ["a", "b", "c", "leaves"] {
            ask(&mut bindings, binding(key));
        }
        force(&mut bindings);
        ask(&mut bindings, binding("queued"));
        let mut pass = bindings.take_rechecks(2);
        let left = ["a", "b", "c", "leaves"]
            .map(binding)
            .into_iter()
            .find(|left| !pass.contains(left));
        let left = left.expect("two are left");
        bindings.unbind(&left, Instant::now());
        pass.extend(bindings.take_rechecks(2));
        assert_eq!(pass.len(), 3);
        pass.push(left);
        pass.sort();
        assert_eq!(pass, ["a", "b", "c", "leaves"].map(binding));
        assert_eq!(bindings.take_rechecks(9).len(), 3, "the next pass");
    }

    #[test]
    fn bindings_that_come_and_go_without_a_connection_leave_nothing_behind() {
        let mut bindings = Bindings::default();
        ask(&mut bindings, binding("stays"));
        for number in 0..20_000 {
            let passing = binding(&number.to_string());
            ask(&mut bindings, passing.clone());
            bindings.unbind(&passing, Instant::now());
            ask(&mut bindings, binding("returns"));
            bindings.unbind(&binding("returns"), Instant::now());
            assert_eq!((bindings.queued(), bindings.entries.len()), (1, 1));
        }
        assert_eq!(bindings.take_batch(usize::MAX), [binding("stays")]);
    }

    #[test]
    fn a_name_of_256_bytes_is_lost_and_one_of_255_is_bound() {
        let mut bindings = Bindings::default();
        assert!(ask(&mut bindings, binding(&"k".repeat(255))));
        assert!(!ask(&mut bindings, binding(&"k".repeat(256))));
        assert!(!ask(
            &mut bindings,
            AmqpBinding {
                exchange: "e".repeat(256).into(),
                key: "k".into()
            }
        ));
        assert_eq!(
            (bindings.wanted(), named(bindings.take_lost()).len()),
            (1, 2)
        );
    }

    proptest! {
        /// Whatever the loop asks and the broker answers, the last word counts and no counter drifts.
        #[test]
        fn after_any_history_exactly_the_wanted_end_up_in_force(steps in proptest::collection::vec((0..10_u8, 0..5_u8), 0..200)) {
            let (mut bindings, mut now) = (Bindings::default(), Instant::now());
            let mut wanted = std::collections::BTreeSet::new();
            let mut on_broker = std::collections::BTreeSet::new();
            for (step, name) in steps {
                let named = binding(&name.to_string());
                now += Duration::from_millis(700);
                match step {
                    0 | 1 => if wanted.insert(named.clone()) { ask(&mut bindings, named); },
                    2 => if wanted.remove(&named) { bindings.unbind(&named, now); },
                    3 => for taken in bindings.take_batch(3) { on_broker.insert(taken.clone()); bindings.bound(&taken); },
                    4 => for taken in bindings.take_batch(3) { bindings.refuse(&taken); },
                    5 => while let Some(unwanted) = bindings.take_unwanted(now) { on_broker.remove(&unwanted); },
                    6 => { on_broker.clear(); bindings.connection_lost(); bindings.queue_is_new(); }
                    // The connection ends before the broker has answered; what it had read it has done, or not.
                    7 => {
                        let taken = bindings.take_batch(3);
                        on_broker.extend(taken.into_iter().filter(|_| name % 2 == 0));
                        bindings.connection_lost();
                    }
                    8 => {
                        if let Some(unwanted) = bindings.take_unwanted(now) {
                            if name % 2 == 0 { on_broker.remove(&unwanted); }
                            bindings.not_unbound(unwanted, now);
                        }
                        bindings.connection_lost();
                    }
                    _ => bindings.retry_refused(),
                }
                prop_assert_eq!(bindings.wanted(), wanted.len());
                let may_be_there = bindings.entries.values().filter(|e| e.there != There::No).count();
                prop_assert!(bindings.in_force() <= may_be_there && on_broker.len() <= may_be_there);
                prop_assert!(bindings.entries.values().filter(|e| e.state == State::Refused).count() == bindings.refused());
            }
            bindings.retry_refused();
            for taken in bindings.take_batch(usize::MAX) { on_broker.insert(taken.clone()); bindings.bound(&taken); }
            while let Some(unwanted) = bindings.take_unwanted(now + LINGER) { on_broker.remove(&unwanted); }
            prop_assert_eq!(bindings.in_force(), wanted.len());
            prop_assert_eq!(on_broker, wanted);
        }
    }
}
