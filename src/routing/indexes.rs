//! The two indexes of a process. Sessions that are up to date are in the live one, which live events are matched in.
//! Sessions that resume are in the replay one, which past events are matched in: the same kind of index, so a past event
//! reaches the groups of its own account and no others, too.
//!
//! Invariants: all subscriptions of a session are in the index that a bit of its [`SubscriptionList`] names, and this
//! file alone picks an index by it. Both are on the same side of a roll-over of the months, and one walk brings both on.

use std::ops::{Index, IndexMut};

use super::families::{Families, Resolved};
use super::index::{
    GroupId, IndexCounts, Members, Membership, Moved, SubscriptionIndex, SubscriptionList, Which,
};

/// Both indexes. Every call must pass the same [`Families`].
#[derive(Debug, Default)]
pub struct SubscriptionIndexes {
    live: SubscriptionIndex,
    replay: SubscriptionIndex,
}

impl Index<Which> for SubscriptionIndexes {
    type Output = SubscriptionIndex;

    fn index(&self, which: Which) -> &SubscriptionIndex {
        match which {
            Which::Live => &self.live,
            Which::Replay => &self.replay,
        }
    }
}

impl IndexMut<Which> for SubscriptionIndexes {
    fn index_mut(&mut self, which: Which) -> &mut SubscriptionIndex {
        match which {
            Which::Live => &mut self.live,
            Which::Replay => &mut self.replay,
        }
    }
}

impl SubscriptionIndexes {
    /// The index that a session's subscriptions are in.
    pub fn of_mut(&mut self, list: &SubscriptionList) -> &mut SubscriptionIndex {
        &mut self[list.which()]
    }

    /// [`SubscriptionIndex::subscriptions`].
    pub fn subscriptions<'i>(
        &'i self,
        list: &SubscriptionList,
    ) -> impl Iterator<Item = Resolved<'i>> + use<'i> {
        self[list.which()].subscriptions(list)
    }

    /// [`SubscriptionIndex::memberships`].
    pub fn memberships<'i>(
        &'i self,
        list: &SubscriptionList,
    ) -> impl Iterator<Item = Membership<'i>> + use<'i> {
        self[list.which()].memberships(list)
    }

    /// How many subscriptions a session has. Linear in them.
    #[must_use]
    pub fn len(&self, list: &SubscriptionList) -> usize {
        self[list.which()].len(list)
    }

    /// Moves all subscriptions of the session in `slot` to the index `to` ([`SubscriptionIndex::take_over`]), if they are not
    /// there. Linear in the session's own subscriptions.
    pub fn move_to(
        &mut self,
        to: Which,
        families: &Families,
        list: &mut SubscriptionList,
        slot: u32,
        moved: &mut impl FnMut(Moved<'_>),
    ) {
        if list.which() == to {
            return;
        }
        let (from, to_index) = match to {
            Which::Live => (&mut self.replay, &mut self.live),
            Which::Replay => (&mut self.live, &mut self.replay),
        };
        to_index.take_over(from, families, list, slot, moved);
        list.set_which(to);
    }

    /// The members of a group that a match in the live index has named since the last change of it.
    #[must_use]
    pub fn members(&self, group: GroupId) -> Members<'_> {
        self.live.members(group)
    }

    /// [`SubscriptionIndex::begin_roll_over`] of both.
    pub fn begin_roll_over(&mut self) {
        self.live.begin_roll_over();
        self.replay.begin_roll_over();
    }

    /// [`SubscriptionIndex::roll_over`] of both, side by side: half of `count` in each when both have groups.
    pub fn roll_over(
        &mut self,
        families: &Families,
        from: usize,
        count: usize,
        visit: &mut impl FnMut(Resolved<'_>, u32),
    ) -> Option<usize> {
        let has_both = self.live.group_places() > from && self.replay.group_places() > from;
        let count = if has_both { count.div_ceil(2) } else { count };
        let live = self.live.roll_over(families, from, count, visit);
        let replay = self.replay.roll_over(families, from, count, visit);
        live.max(replay)
    }

    /// The places that a walk over all groups goes through, side by side.
    #[must_use]
    pub fn group_places(&self) -> usize {
        self.live.group_places().max(self.replay.group_places())
    }

    /// The gauges, of both.
    #[must_use]
    pub fn counts(&self) -> IndexCounts {
        let (live, replay) = (self.live.counts(), self.replay.counts());
        IndexCounts {
            subscriptions: live.subscriptions + replay.subscriptions,
            groups: live.groups + replay.groups,
            patterns: live.patterns + replay.patterns,
            texts: live.texts + replay.texts,
            request_ids: live.request_ids + replay.request_ids,
        }
    }

    /// Bytes allocated. Linear in the groups that have several members.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.live.heap_bytes() + self.replay.heap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{AccountId, Scope};
    use crate::event::{EventHead, Style};
    use crate::routing::families::{FamilyOptions, Rights};
    use crate::routing::index::SubscriptionId;
    use crate::routing::month::ActiveMonths;

    const BINDINGS: [&str; 3] = ["call.CHANNEL_CREATE.*", "call.*.*", "doc_created.*.fax.*"];

    struct Bench {
        families: Families,
        indexes: SubscriptionIndexes,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                families: Families::new(&FamilyOptions::default()).expect("the platform's"),
                indexes: SubscriptionIndexes::default(),
            }
        }

        fn subscribe(&mut self, list: &mut SubscriptionList, slot: u32, request_id: Option<&str>) {
            let Self { families, indexes } = self;
            let scope = Scope::One(AccountId::from_bytes([7; 16]));
            let wanted = BINDINGS.map(|binding| {
                let rights = Rights::default();
                families.resolve(binding, scope, rights).expect(binding)
            });
            let style = Style::Piston;
            indexes.of_mut(list).subscribe_all(
                families,
                list,
                slot,
                wanted,
                style,
                request_id,
                &mut |_, _, _| {},
            );
        }

        fn move_to(
            &mut self,
            to: Which,
            list: &mut SubscriptionList,
            slot: u32,
        ) -> Vec<SubscriptionId> {
            let mut ids = Vec::new();
            let Self { families, indexes } = self;
            indexes.move_to(to, families, list, slot, &mut |moved| ids.push(moved.id));
            ids
        }

        /// The slots and request ids that a call event finds in one of the indexes.
        fn found(&mut self, which: Which) -> Vec<(u32, Option<String>)> {
            let head = EventHead {
                account: Some(AccountId::from_bytes([7; 16])),
                ..EventHead::default()
            };
            let (mut groups, months) = (Vec::new(), ActiveMonths::at(0));
            let Self { families, indexes } = self;
            let key = "call.CHANNEL_CREATE.x";
            indexes[which].match_event(families, "callevt", key, &head, months, &mut |found| {
                groups.push(found.group);
            });
            let members = groups
                .into_iter()
                .flat_map(|group| indexes[which].members(group));
            members
                .map(|member| (member.slot, member.request_id.map(str::to_owned)))
                .collect()
        }
    }

    #[test]
    fn a_session_moves_with_all_it_has_and_back() {
        let mut bench = Bench::new();
        let (mut stays, mut moves) = (SubscriptionList::default(), SubscriptionList::default());
        bench.subscribe(&mut stays, 1, None);
        bench.subscribe(&mut moves, 2, Some("a \"quoted\" id"));
        let counts = bench.indexes.counts();
        let id = Some("a \\\"quoted\\\" id".to_owned());
        let both = vec![(1, None), (2, id.clone()), (1, None), (2, id.clone())];
        assert_eq!(bench.found(Which::Live), both);
        assert_eq!(bench.found(Which::Replay), []);

        let ids = bench.move_to(Which::Replay, &mut moves, 2);
        assert_eq!(
            bench.move_to(Which::Replay, &mut moves, 2),
            [],
            "it is there"
        );
        assert_eq!((moves.which(), moves.is_empty()), (Which::Replay, false));
        assert_eq!(bench.found(Which::Live), [(1, None), (1, None)]);
        assert_eq!(
            bench.found(Which::Replay),
            [(2, id.clone()), (2, id.clone())]
        );
        let named: Vec<_> = bench.indexes.memberships(&moves).collect();
        assert_eq!(named.iter().map(|one| one.id).collect::<Vec<_>>(), ids);
        assert!(named.iter().all(|one| one.request_id == id.as_deref()));
        let bindings: Vec<_> = bench.indexes.subscriptions(&moves).collect();
        assert_eq!(
            bindings.iter().map(Resolved::binding).collect::<Vec<_>>(),
            BINDINGS
        );

        bench.move_to(Which::Live, &mut moves, 2);
        assert_eq!(bench.found(Which::Live), both);
        assert_eq!(bench.indexes.counts(), counts);
        for list in [&mut stays, &mut moves] {
            bench
                .indexes
                .of_mut(list)
                .unsubscribe(list, None, None, &mut |_| {});
        }
        assert_eq!(bench.indexes.counts(), IndexCounts::default());
    }

    #[test]
    fn an_empty_list_moves_too() {
        let mut bench = Bench::new();
        let mut list = SubscriptionList::default();
        bench.move_to(Which::Replay, &mut list, 3);
        assert_eq!((list.which(), list.is_empty()), (Which::Replay, true));
        bench.subscribe(&mut list, 3, None);
        assert_eq!(bench.found(Which::Replay).len(), 2);
        assert_eq!(bench.found(Which::Live), []);
        let index = bench.indexes.of_mut(&list);
        index.unsubscribe(&mut list, None, None, &mut |_| {});
        assert_eq!((list.which(), list.is_empty()), (Which::Replay, true));
    }

    #[test]
    fn who_moves_in_the_middle_of_a_roll_over_holds_the_bindings_of_the_months_that_it_follows() {
        for is_walked in [false, true] {
            let mut bench = Bench::new();
            let (mut one, mut other) = (SubscriptionList::default(), SubscriptionList::default());
            bench.subscribe(&mut one, 1, None);
            bench.subscribe(&mut other, 2, None);
            bench.move_to(Which::Replay, &mut other, 2);
            bench.indexes.begin_roll_over();
            let mut users = 0;
            let Bench { families, indexes } = &mut bench;
            if is_walked {
                let end =
                    indexes.roll_over(families, 0, usize::MAX >> 1, &mut |_, count| users += count);
                assert_eq!(end, None);
            }
            // The one document subscription that is behind, and the one that it joins.
            indexes.move_to(Which::Live, families, &mut other, 2, &mut |moved| {
                users += u32::from(moved.was_behind) + moved.overtaken.unwrap_or_default();
            });
            let end =
                indexes.roll_over(families, 0, usize::MAX >> 1, &mut |_, count| users += count);
            assert_eq!((end, users), (None, 2), "each is brought on once");
            assert!(indexes.subscriptions(&other).all(|it| !it.is_behind));
        }
    }
}
