//! Who waits for which binding: for each binding a list, oldest first, whose members leave from anywhere at O(1).
//!
//! Invariant: a list has a member or is not there; a node is in exactly one list. Memory goes back with the nodes.

use std::collections::HashMap;

use super::arena::{Arena, NONE, Place};
use super::broker_bindings::WaiterToken;
use crate::room::GiveBackRoom;

/// Names one wait until it is over. A wait that is over may be stopped again without harm, for a place is compared
/// with what it should hold before it is vacated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitId(u32);

#[derive(Debug)]
struct Node {
    token: WaiterToken,
    /// [`NONE`]: the place is vacant, and `next` is the next vacant one.
    binding: u32,
    next: u32,
    previous: u32,
}

impl Place for Node {
    fn vacant(next: u32) -> Self {
        Self {
            token: 0,
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

/// The lists, by the binding's number. All operations cost O(1) but where they say otherwise.
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

    /// Puts `token` at the end of the list of `binding`.
    pub(super) fn push(&mut self, binding: u32, token: WaiterToken) -> WaitId {
        let previous = self.lists.get(&binding).map_or(NONE, |list| list.last);
        let id = self.nodes.insert(Node {
            token,
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

    /// Takes one out of its list, if the wait is not over.
    pub(super) fn stop(&mut self, wait: WaitId, binding: u32, token: WaiterToken) {
        let is_it = |node: &Node| node.binding == binding && node.token == token;
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
    pub(super) fn remove(&mut self, binding: &u32) -> Option<Vec<WaiterToken>> {
        let list = self.lists.remove(binding)?;
        self.lists.give_back_room();
        let mut tokens = Vec::new();
        let mut id = list.first;
        while id != NONE {
            let node = self.nodes.remove(id);
            tokens.push(node.token);
            id = node.next;
        }
        Some(tokens)
    }

    /// Bindings that somebody waits for. Linear in them.
    pub(super) fn bindings(&self) -> Vec<u32> {
        self.lists.keys().copied().collect()
    }

    /// How many wait, once for each binding.
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
            let mut model: HashMap<u32, Vec<WaiterToken>> = HashMap::new();
            let mut waits = Vec::new();
            for (step, binding, at) in steps {
                match step {
                    0..4 => {
                        let token = waits.len() as WaiterToken;
                        waits.push((waiters.push(binding, token), binding, token));
                        model.entry(binding).or_default().push(token);
                    }
                    4..7 => {
                        let Some((wait, binding, token)) = waits.get(at).copied() else { continue };
                        waiters.stop(wait, binding, token);
                        model.entry(binding).or_default().retain(|one| *one != token);
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
        let waits: Vec<WaitId> = (0..100_000).map(|token| waiters.push(7, token)).collect();
        for (token, wait) in waits.into_iter().enumerate() {
            waiters.stop(wait, 7, token as WaiterToken);
        }
        assert!(waiters.lists.is_empty());
        assert_eq!(waiters.nodes.heap_bytes(), 0);
        for binding in 0..100_000 {
            waiters.push(binding, 0);
        }
        for binding in 0..100_000 {
            waiters.remove(&binding);
        }
        let kept = waiters.lists.capacity();
        assert!(kept <= 2 * crate::room::ROOM_KEPT, "room for {kept} lists");
    }
}
