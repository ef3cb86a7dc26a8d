//! Since when the AMQP bindings that came into force of late have been so.
//!
//! Invariant: a binding that is not named here has been in force since [`Young::floor`] at least. So the table may forget
//! its oldest entries at any time, and only raises the floor by that.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::limits::YOUNG_BINDINGS_MAX;
use crate::now::Boundary;
use crate::room::GiveBackRoom;

/// The bindings that came into force of late, by their numbers. All operations cost O(1), amortised.
#[derive(Debug, Default)]
pub(super) struct Young {
    by_number: HashMap<u32, Boundary>,
    /// In the order in which they came; an entry may be of a binding that has left or come again.
    order: VecDeque<(u32, Boundary)>,
    floor: Boundary,
}

impl Young {
    /// A binding is in force from `boundary` on.
    pub(super) fn note(&mut self, number: u32, boundary: Boundary) {
        self.by_number.insert(number, boundary);
        self.order.push_back((number, boundary));
        if self.order.len() > YOUNG_BINDINGS_MAX {
            self.forget_oldest();
        }
    }

    /// A binding has left.
    pub(super) fn leave(&mut self, number: u32) {
        if self.by_number.remove(&number).is_some() {
            self.by_number.give_back_room();
        }
    }

    /// Since when a binding that is in force has been so, or a later moment.
    pub(super) fn since(&self, number: u32) -> Boundary {
        self.by_number.get(&number).copied().unwrap_or(self.floor)
    }

    /// Forgets those that came into force before this moment of the loop's clock. Linear in them.
    pub(super) fn forget_before(&mut self, clock: Duration) {
        while self
            .order
            .front()
            .is_some_and(|(_, oldest)| oldest.clock < clock)
        {
            self.forget_oldest();
        }
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    fn forget_oldest(&mut self) {
        if let Some((number, boundary)) = self.order.pop_front() {
            self.order.give_back_room();
            if self.by_number.get(&number) == Some(&boundary) {
                self.leave(number);
            }
            self.floor = boundary;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boundary(at: u64) -> Boundary {
        Boundary {
            time: 1_000_000 + at,
            clock: Duration::from_millis(at),
        }
    }

    #[test]
    fn what_is_forgotten_raises_the_floor_and_never_makes_a_binding_older() {
        let mut young = Young::default();
        for (number, at) in [(1, 10), (2, 20), (1, 30), (3, 40)] {
            young.note(number, boundary(at));
        }
        young.forget_before(Duration::from_millis(30));
        let since = |young: &Young, number| young.since(number).clock.as_millis();
        assert_eq!(
            [1, 2, 3, 4].map(|number| since(&young, number)),
            [30, 20, 40, 20]
        );
        young.leave(3);
        young.note(3, boundary(50));
        young.forget_before(Duration::from_millis(50));
        assert_eq!([1, 2, 3].map(|number| since(&young, number)), [40, 40, 50]);
        assert_eq!(young.len(), 1);
    }

    #[test]
    fn however_many_come_the_table_is_bounded() {
        let mut young = Young::default();
        let many = u32::try_from(YOUNG_BINDINGS_MAX).expect("a small number") + 10;
        for number in 0..many {
            young.note(number, boundary(number.into()));
        }
        assert_eq!(
            (young.len(), young.by_number.len()),
            (YOUNG_BINDINGS_MAX, YOUNG_BINDINGS_MAX)
        );
        assert_eq!(young.since(0), boundary(9));
    }
}
