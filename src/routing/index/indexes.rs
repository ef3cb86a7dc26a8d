//! The two indexes of a process. Sessions that are up to date are in the live one, which live events are matched in.
//! Sessions that resume are in the replay one, which past events are matched in: the same kind of index, so a past event
//! reaches the groups of its own account and no others, too.
//!
//! Invariants: all subscriptions of a session are in the index that a bit of its [`SubscriptionList`] names, and this
//! file alone picks an index by it. Both are on the same side of a roll-over of the months, and one walk brings both on.

use std::ops::{Index, IndexMut};

use super::members::Members;
use super::{
    GroupId, IndexCounts, Match, Membership, Revised, Revision, SubscriptionId, SubscriptionIndex,
    SubscriptionList,
};
use crate::account::Scope;
use crate::event::{EventHead, Style};
use crate::routing::arena::NONE;
use crate::routing::families::{Families, Resolved};
use crate::routing::month::ActiveMonths;

/// One of the two indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Of the sessions that get events as they come.
    Live,
    /// Of the sessions that resume, and get past events first.
    Replay,
}

/// A subscription that has moved to the other index.
#[derive(Clone, Copy, Debug)]
pub struct Moved<'a> {
    /// Its name now.
    pub id: SubscriptionId,
    /// What it was there: [behind](Resolved) or not. Here it follows the current months.
    pub was: Resolved<'a>,
    /// It was behind: the bindings of a roll-over are to be acquired and released for it.
    pub was_behind: bool,
    /// How many other subscriptions of its group come with it to the current months
    /// ([`Subscribed::Overtook`](super::Subscribed::Overtook)).
    pub overtaken: Option<u32>,
}

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
    /// [`SubscriptionIndex::subscribe_all`].
    #[expect(clippy::too_many_arguments, reason = "what a subscription is made of")]
    pub fn subscribe_all<'a>(
        &mut self,
        families: &Families,
        list: &mut SubscriptionList,
        slot: u32,
        wanted: impl IntoIterator<Item = Resolved<'a>>,
        style: Style,
        request_id: Option<&str>,
        added: &mut impl FnMut(Resolved<'a>, SubscriptionId, Option<u32>),
    ) {
        let index = &mut self[list.which()];
        index.subscribe_all(families, list, slot, wanted, style, request_id, added);
    }

    /// [`SubscriptionIndex::unsubscribe`].
    pub fn unsubscribe(
        &mut self,
        list: &mut SubscriptionList,
        scope: Option<Scope>,
        binding: Option<&str>,
        removed: &mut impl FnMut(Resolved<'_>),
    ) -> usize {
        self[list.which()].unsubscribe(list, scope, binding, removed)
    }

    /// [`SubscriptionIndex::unsubscribe_all`].
    pub fn unsubscribe_all<'a>(
        &mut self,
        list: &mut SubscriptionList,
        scope: Option<Scope>,
        bindings: impl IntoIterator<Item = &'a str>,
        removed: &mut impl FnMut(Resolved<'_>),
    ) -> usize {
        self[list.which()].unsubscribe_all(list, scope, bindings, removed)
    }

    /// [`SubscriptionIndex::revise`].
    pub fn revise(
        &mut self,
        families: &Families,
        list: &mut SubscriptionList,
        judge: impl Fn(Resolved<'_>) -> Revision,
        revised: &mut impl FnMut(Revised<'_>),
    ) {
        self[list.which()].revise(families, list, judge, revised);
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
        self.subscriptions(list).count()
    }

    /// Moves all subscriptions of the session in `slot` to the index `to`, in their order; each is the youngest member of
    /// its group there, and follows the current months. `moved` gets each of them, under its new name. Nothing happens to
    /// a session that is there. Linear in the session's own subscriptions.
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
        let mut left = std::mem::take(list);
        list.set_which(to);
        let mut last = NONE;
        while !left.is_empty() {
            let id = left.first();
            let (group_id, members) = {
                let group = from.members.subscriptions[id].group;
                (group, from.groups[group].members)
            };
            let group = from.groups[group_id];
            let was = from.resolved(&group);
            let request_id = from.members.request_id(members, id);
            let request_id = (to_index.request_ids).intern_text(from.request_ids.text(request_id));
            let style = group.traits.style();
            let (new, overtaken) =
                to_index.append_member(families, list, last, slot, was, style, request_id);
            last = new;
            moved(Moved {
                id: SubscriptionId(new),
                was,
                was_behind: was.is_behind && families.follows_the_month(&was),
                overtaken,
            });
            from.unlink(&mut left, NONE, id);
        }
    }

    /// [`SubscriptionIndex::match_event`] in one of the two.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "what an event is matched by")]
    pub fn match_event(
        &mut self,
        which: Which,
        families: &Families,
        exchange: &str,
        routing_key: &str,
        head: &EventHead,
        months: ActiveMonths,
        visit: &mut impl FnMut(Match<'_>),
    ) {
        self[which].match_event(families, exchange, routing_key, head, months, visit);
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
