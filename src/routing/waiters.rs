//! Who waits for which binding: each binding has a list of waiters, oldest first, and one may leave from anywhere at O(1).
//!
//! Invariants: a list has a member or is not there; a node is in exactly one list; memory goes back with the nodes.

use std::collections::HashMap;

use super::arena::{Arena, NONE, Place};
use crate::room::GiveBackRoom;

/// One that waits until a binding is in force: a subscribe, by the slot of its session and its number there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiter {
    /// The session's slot.
    pub slot: u32,
    /// The subscribe's number among those of the session.
    pub number: u32,
}

impl Waiter {
    /// The subscribe of this number in the session of this slot.
    #[must_use]
    pub fn new(slot: u32, number: u32) -> Self {
        Self { slot, number }
    }
}

/// Names one wait until it is over. To stop a wait that is over does nothing, because a place is compared with what it
/// should hold before it is vacated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitId(u32);

#[derive(Debug)]
struct Node {
    waiter: Waiter,
    /// [`NONE`]: the place is vacant, and `next` is the next vacant one.
    binding: u32,
    next: u32,
    previous: u32,
}

impl Place for Node {
    fn vacant(next: u32) -> Self {
        Self {
            waiter: Waiter::default(),
            binding: NONE,
            next,
            previous: NONE,
        }
    }

    fn next_vacant(&self) -> Option<u32> {
        (self.binding == NONE).then_some(self.next)
    }
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
}

/// The lists, by the binding's id. Every operation costs O(1) unless it says otherwise.
#[derive(Debug)]
pub(super) struct Waiters {
    nodes: Arena<Node>,
    lists: HashMap<u32, List>,
}

impl Waiters {
    pub(super) fn new() -> Self {
        Self {
            nodes: Arena::new(),
            lists: HashMap::new(),
        }
    }

    /// Puts `waiter` at the end of the list of `binding`.
    pub(super) fn push(&mut self, binding: u32, waiter: Waiter) -> WaitId {
        let previous = self.lists.get(&binding).map_or(NONE, |list| list.last);
        let id = self.nodes.insert(Node {
            waiter,
            binding,
            next: NONE,
            previous,
        });
        match previous {
            NONE => {
                self.lists.insert(
                    binding,
                    List {
                        first: id,
                        last: id,
                    },
                );
            }
            previous => {
                self.nodes[previous].next = id;
                if let Some(list) = self.lists.get_mut(&binding) {
                    list.last = id;
                }
            }
        }
        WaitId(id)
    }

    /// Takes a waiter out of its list, if the wait is not over.
    pub(super) fn stop(&mut self, wait: WaitId, binding: u32, waiter: Waiter) {
        let is_it = |node: &Node| node.binding == binding && node.waiter == waiter;
        if !self.nodes.place(wait.0).is_some_and(is_it) {
            return;
        }
        let Node { next, previous, .. } = self.nodes.remove(wait.0);
        if previous != NONE {
            self.nodes[previous].next = next;
        }
        if next != NONE {
            self.nodes[next].previous = previous;
        }
        let Some(list) = self.lists.get_mut(&binding) else {
            return;
        };
        if previous == NONE {
            list.first = next;
        }
        if next == NONE {
            list.last = previous;
        }
        if list.first == NONE {
            self.lists.remove(&binding);
            self.lists.give_back_room();
        }
    }

    /// Takes the whole list of `binding` out, oldest first. Linear in it.
    pub(super) fn remove(&mut self, binding: &u32) -> Option<Vec<Waiter>> {
        let list = self.lists.remove(binding)?;
        self.lists.give_back_room();
        let mut waiters = Vec::new();
        let mut id = list.first;
        while id != NONE {
            let node = self.nodes.remove(id);
            waiters.push(node.waiter);
            id = node.next;
        }
        Some(waiters)
    }

    /// The bindings that are waited for. Linear in them.
    pub(super) fn bindings(&self) -> Vec<u32> {
        self.lists.keys().copied().collect()
    }

    /// The number of waits. Who waits for two bindings counts twice.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a list a binding, with waits stopped twice and too late.
        #[test]
        fn lists_keep_their_order_whoever_leaves(
            steps in prop::collection::vec((0..8_u8, 0..3_u32, 0..40_usize), 0..200),
        ) {
            let mut waiters = Waiters::new();
            let mut model: HashMap<u32, Vec<Waiter>> = HashMap::new();
            let mut waits = Vec::new();
            for (step, binding, at) in steps {
                match step {
                    0..4 => {
                        let waiter = Waiter::new(0, waits.len() as u32);
                        waits.push((waiters.push(binding, waiter), binding, waiter));
                        model.entry(binding).or_default().push(waiter);
                    }
                    4..7 => {
                        let Some((wait, binding, waiter)) = waits.get(at).copied() else { continue };
                        waiters.stop(wait, binding, waiter);
                        model.entry(binding).or_default().retain(|one| *one != waiter);
                    }
                    _ => {
                        let list = waiters.remove(&binding).unwrap_or_default();
                        prop_assert_eq!(list, model.remove(&binding).unwrap_or_default());
                    }
                }
                let left = model.values().map(Vec::len).sum::<usize>();
                prop_assert_eq!((waiters.len(), waiters.lists.is_empty()), (left, left == 0));
            }
            for binding in 0..3 {
                let list = waiters.remove(&binding).unwrap_or_default();
                prop_assert_eq!(list, model.remove(&binding).unwrap_or_default());
            }
        }
    }

    #[test]
    fn a_storm_of_waits_that_all_give_up_leaves_no_memory_behind() {
        let mut waiters = Waiters::new();
        let all = (0..100_000).map(|number| Waiter::new(0, number));
        let waits: Vec<(WaitId, Waiter)> = all.map(|it| (waiters.push(7, it), it)).collect();
        for (wait, waiter) in waits {
            waiters.stop(wait, 7, waiter);
        }
        assert!(waiters.lists.is_empty());
        assert_eq!(waiters.nodes.heap_bytes(), 0);
        for binding in 0..100_000 {
            waiters.push(binding, Waiter::default());
        }
        for binding in 0..100_000 {
            waiters.remove(&binding);
        }
        let kept = waiters.lists.capacity();
        assert!(kept <= 2 * crate::room::ROOM_KEPT, "room for {kept} lists");
    }
}
