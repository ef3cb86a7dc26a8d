//! The subscriptions of all sessions, and which of them want an event.
//!
//! | file | owns |
//! |---|---|
//! | `members` | the subscriptions, 16 bytes each, and the members of each group in their order |
//! | `group` | what a group is: all subscriptions whose frames are equal but for the request id |
//! | `groups` | all groups, and the tables that find them |
//! | `pattern` | the hashes that subscriptions and events are found by |
//! | `matching` | the way from an event to the groups that want it |
//! | `list` | what a session keeps of it |
//!
//! A *group* is what shares a frame: equal (rule, scope, realm, client binding, style). A request id is not part of it: a
//! member brings its own, which is put into the frame when the frame is written. A session holds 4 bytes, the first of a
//! chain of its subscriptions, and its removal costs what it had.
//!
//! Invariants: an event reaches the groups of its own account and no others, because the account is compared as a part
//! of the key; a group has a member or is not there; what a match costs does not depend on the number of subscriptions.

mod group;
mod groups;
mod list;
mod matching;
mod members;
mod pattern;

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::sync::Arc;

use self::group::{Group, Traits};
use self::groups::Groups;
pub use self::list::{SubscriptionId, SubscriptionList, Which};
pub use self::matching::{GroupId, Match};
use self::matching::{Matcher, Scratch};
use self::members::{GroupMember, GroupMembers, Memberships, Subscription};
pub use self::members::{Member, Members};
use super::arena::{NONE, Place, id_of};
use super::families::{Families, Resolved, RuleId};
use super::month::ActiveMonths;
use super::request_ids::{RequestId, RequestIds};
use crate::account::Scope;
use crate::event::EventHead;
use crate::event::Style;

/// One subscription of a session, as a member of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership<'i> {
    /// Its name.
    pub id: SubscriptionId,
    /// The group that it is a member of, until the next change of the index.
    pub group: GroupId,
    /// The request id of its subscribe, as it stands between the quotes of a JSON string.
    pub request_id: Option<&'i str>,
}

/// The result of a subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscribed {
    /// The subscription is new: its AMQP bindings are to be acquired.
    New,
    /// The subscription is new, and its group, which still followed the months before, follows the current ones from
    /// now on. So many other subscriptions of the group come with it: the bindings of a roll-over are to be acquired
    /// and released for these, too.
    Overtook(u32),
    /// The session had the subscription already, under whatever request id: nothing has changed.
    AlreadySubscribed,
}

/// What becomes of a subscription whose session's rights have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revision {
    /// The subscription stays as it is.
    Keep,
    /// The subscription stays, and gets the events of this realm instead of those of its own.
    Move(Arc<str>),
    /// The subscription ends.
    End,
}

/// What a revision did to a subscription.
#[derive(Clone, Copy, Debug)]
pub enum Revised<'a> {
    /// The subscription ends: its AMQP bindings are to be released.
    Ended(Resolved<'a>),
    /// The subscription moves, and was this until now: the AMQP bindings of this are to be released.
    Left(Resolved<'a>),
    /// The subscription has moved, and is this now: the AMQP bindings of this are to be acquired.
    Joined(Resolved<'a>),
}

/// A subscription that has moved here from another index.
#[derive(Clone, Copy, Debug)]
pub struct Moved<'a> {
    /// Its name here.
    pub id: SubscriptionId,
    /// What it was there. Here it follows the current months.
    pub was: Resolved<'a>,
    /// It did not do so there: the bindings of a roll-over are to be acquired and released for it.
    pub was_behind: bool,
    /// How many other subscriptions of its group come with it to the current months ([`Subscribed::Overtook`]).
    pub overtaken: Option<u32>,
}

/// The index's gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexCounts {
    /// Subscriptions.
    pub subscriptions: usize,
    /// Groups: as many distinct frames, request ids aside, as one event for all of them would take.
    pub groups: usize,
    /// Distinct patterns.
    pub patterns: usize,
    /// Interned texts: client bindings and realms.
    pub texts: usize,
    /// Subscriptions with a request id.
    pub request_ids: usize,
}

/// The index. Every call must pass the same [`Families`].
///
/// ```
/// use blackhole::account::{AccountId, Scope};
/// use blackhole::event::{EventHead, Style};
/// use blackhole::routing::families::{Families, FamilyOptions, Rights};
/// use blackhole::routing::index::{SubscriptionIndex, SubscriptionList};
/// use blackhole::routing::month::ActiveMonths;
///
/// let families = Families::new(&FamilyOptions::default())?;
/// let mut index = SubscriptionIndex::new();
/// let [mine, other] = [1, 2].map(|number| AccountId::from_bytes([number; 16]));
///
/// // The session in slot 7 subscribes to all new calls of its account.
/// let mut list = SubscriptionList::default();
/// let binding = families.resolve("call.CHANNEL_CREATE.*", Scope::One(mine), Rights::default())?;
/// index.subscribe(&families, &mut list, 7, binding, Style::Piston, Some("r1"));
///
/// // Of two equal events of two accounts, it gets that of its own.
/// let mut sessions_of = |account: AccountId| -> Vec<u32> {
///     let head = EventHead { account: Some(account), ..EventHead::default() };
///     let mut groups = Vec::new();
///     index.match_event(
///         &families,
///         "callevt",
///         "call.CHANNEL_CREATE.1234",
///         &head,
///         ActiveMonths::at(0),
///         &mut |found| groups.push(found.group),
///     );
///     let members = groups.into_iter().flat_map(|group| index.members(group));
///     members
///         .inspect(|member| assert_eq!(member.request_id, Some("r1")))
///         .map(|member| member.slot)
///         .collect()
/// };
/// assert_eq!(sessions_of(mine), [7]);
/// assert!(sessions_of(other).is_empty());
///
/// index.remove_all(&mut list, &mut |_| {});
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SubscriptionIndex {
    members: Memberships,
    request_ids: RequestIds,
    groups: Groups,
    /// The side of the groups that follow the current months; those of the other side are behind.
    side: bool,
    scratch: Scratch,
}

impl Default for SubscriptionIndex {
    fn default() -> Self {
        Self::new()
    }
}

impl SubscriptionIndex {
    /// An empty index with hash seeds of its own.
    #[must_use]
    pub fn new() -> Self {
        let seed = RandomState::new();
        Self {
            members: Memberships::new(),
            request_ids: RequestIds::new(seed.clone()),
            groups: Groups::new(seed),
            side: false,
            scratch: Scratch::default(),
        }
    }

    /// Adds a subscription at the end of a session's `list`. Linear in the session's own subscriptions.
    pub fn subscribe(
        &mut self,
        families: &Families,
        list: &mut SubscriptionList,
        slot: u32,
        resolved: Resolved<'_>,
        style: Style,
        request_id: Option<&str>,
    ) -> Subscribed {
        let mut last = NONE;
        let binding = self.groups.texts.find(resolved.binding);
        let mut id = list.first();
        while id != NONE {
            let Subscription { group, next, .. } = self.members.subscriptions[id];
            let group = &self.groups[group];
            if Some(group.binding) == binding && group.scope() == resolved.scope {
                return Subscribed::AlreadySubscribed;
            }
            (last, id) = (id, next);
        }
        let (_, subscribed) = self.append(families, list, last, slot, resolved, style, request_id);
        subscribed
    }

    /// Adds subscriptions at the end of a session's `list`, in their order. `added` gets each that the session did not
    /// have, whose AMQP bindings are to be acquired, its name, and how many others it [overtook](Subscribed::Overtook).
    /// Linear in the session's own subscriptions and in `wanted` together.
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
        let mut known = HashSet::new();
        let (mut last, mut id) = (NONE, list.first());
        while id != NONE {
            let Subscription { group, next, .. } = self.members.subscriptions[id];
            let group = &self.groups[group];
            known.insert((group.binding, group.scope()));
            (last, id) = (id, next);
        }
        for resolved in wanted {
            let binding = self.groups.texts.find(resolved.binding);
            if binding.is_some_and(|binding| known.contains(&(binding, resolved.scope))) {
                continue;
            }
            let (id, subscribed) =
                self.append(families, list, last, slot, resolved, style, request_id);
            last = id;
            let group = self.members.subscriptions[id].group;
            known.insert((self.groups[group].binding, resolved.scope));
            let overtaken = match subscribed {
                Subscribed::Overtook(others) => Some(others),
                Subscribed::New | Subscribed::AlreadySubscribed => None,
            };
            added(resolved, SubscriptionId::new(id), overtaken);
        }
    }

    /// Adds a subscription behind `last`, the last of `list`. Returns its id, and the result of the subscribe.
    #[expect(clippy::too_many_arguments, reason = "what a subscription is made of")]
    fn append(
        &mut self,
        families: &Families,
        list: &mut SubscriptionList,
        last: u32,
        slot: u32,
        resolved: Resolved<'_>,
        style: Style,
        request_id: Option<&str>,
    ) -> (u32, Subscribed) {
        let request_id = self.request_ids.intern(request_id);
        let (id, overtaken) =
            self.append_member(families, list, last, slot, resolved, style, request_id);
        let subscribed = overtaken.map_or(Subscribed::New, Subscribed::Overtook);
        (id, subscribed)
    }

    /// As [`SubscriptionIndex::append`], with a request id that is interned. Returns the id of the subscription, and how
    /// many others it overtook.
    #[expect(clippy::too_many_arguments, reason = "what a subscription is made of")]
    fn append_member(
        &mut self,
        families: &Families,
        list: &mut SubscriptionList,
        last: u32,
        slot: u32,
        resolved: Resolved<'_>,
        style: Style,
        request_id: RequestId,
    ) -> (u32, Option<u32>) {
        let id = self.members.add(slot);
        let member = GroupMember {
            subscription: id,
            request_id,
        };
        let overtaken = self.join_group(families, member, resolved, style);
        match last {
            NONE => list.set_first(id),
            last => self.members.subscriptions[last].next = id,
        }
        (id, overtaken)
    }

    /// Removes a session's subscriptions to `binding` (`None`: to any) for `scope` (`None`: for any account), and
    /// returns how many these were. `removed` gets each of them, in the order of subscription, just before it goes: its
    /// AMQP bindings are to be released. Linear in the session's own subscriptions.
    pub fn unsubscribe(
        &mut self,
        list: &mut SubscriptionList,
        scope: Option<Scope>,
        binding: Option<&str>,
        removed: &mut impl FnMut(Resolved<'_>),
    ) -> usize {
        let binding = match binding.map(|text| self.groups.texts.find(text)) {
            Some(None) => return 0,
            Some(found) => found,
            None => None,
        };
        let is_meant = |group: &Group| {
            binding.is_none_or(|binding| group.binding == binding)
                && scope.is_none_or(|scope| group.scope() == scope)
        };
        self.remove_where(list, is_meant, removed)
    }

    /// As [`SubscriptionIndex::unsubscribe`] for each of `bindings`, in one walk: linear in the session's own
    /// subscriptions and in `bindings` together.
    pub fn unsubscribe_all<'a>(
        &mut self,
        list: &mut SubscriptionList,
        scope: Option<Scope>,
        bindings: impl IntoIterator<Item = &'a str>,
        removed: &mut impl FnMut(Resolved<'_>),
    ) -> usize {
        let bindings = bindings.into_iter();
        let bindings: HashSet<u32> = bindings
            .filter_map(|text| self.groups.texts.find(text))
            .collect();
        let is_meant = |group: &Group| {
            bindings.contains(&group.binding) && scope.is_none_or(|scope| group.scope() == scope)
        };
        self.remove_where(list, is_meant, removed)
    }

    fn remove_where(
        &mut self,
        list: &mut SubscriptionList,
        is_meant: impl Fn(&Group) -> bool,
        removed: &mut impl FnMut(Resolved<'_>),
    ) -> usize {
        let mut count = 0;
        let mut kept = NONE;
        let mut id = list.first();
        while id != NONE {
            let Subscription {
                group: group_id,
                next,
                ..
            } = self.members.subscriptions[id];
            let group = &self.groups[group_id];
            if is_meant(group) {
                removed(self.resolved(group));
                self.unlink(list, kept, id);
                count += 1;
            } else {
                kept = id;
            }
            id = next;
        }
        count
    }

    /// Removes the subscription `id`, which comes after `kept` in `list` ([`NONE`]: it is the first).
    fn unlink(&mut self, list: &mut SubscriptionList, kept: u32, id: u32) {
        let next = self.members.subscriptions[id].next;
        match kept {
            NONE => list.set_first(next),
            kept => self.members.subscriptions[kept].next = next,
        }
        let request_id = self.leave_group(id);
        self.request_ids.release(request_id);
        self.members.subscriptions.remove(id);
    }

    /// Asks `judge` what becomes of each of a session's subscriptions, and does that; `revised` gets those that are not
    /// kept. A subscription that moves keeps its place in the session's list and its request id, and is the youngest
    /// member of its new group. Linear in the session's own subscriptions.
    pub fn revise(
        &mut self,
        families: &Families,
        list: &mut SubscriptionList,
        judge: impl Fn(Resolved<'_>) -> Revision,
        revised: &mut impl FnMut(Revised<'_>),
    ) {
        let mut kept = NONE;
        let mut id = list.first();
        while id != NONE {
            let next = self.members.subscriptions[id].next;
            let group = self.groups[self.members.subscriptions[id].group];
            let resolved = self.resolved(&group);
            match judge(resolved) {
                Revision::Keep => kept = id,
                Revision::End => {
                    revised(Revised::Ended(resolved));
                    self.unlink(list, kept, id);
                }
                Revision::Move(realm) => {
                    revised(Revised::Left(resolved));
                    let binding = self.groups.texts.share(group.binding);
                    let moved = Resolved {
                        rule: RuleId(group.rule),
                        scope: group.scope(),
                        binding: &binding,
                        realm: Some(&realm),
                        shared: Some(&binding),
                        is_behind: false,
                    };
                    let member = GroupMember {
                        subscription: id,
                        request_id: self.leave_group(id),
                    };
                    let style = group.traits.style();
                    let overtaken = self.join_group(families, member, moved, style);
                    debug_assert_eq!(overtaken, None, "no key holds a realm and a month");
                    revised(Revised::Joined(moved));
                    kept = id;
                }
            }
            id = next;
        }
    }

    /// Removes all of a session's subscriptions, and returns how many these were; `removed` is as for
    /// [`SubscriptionIndex::unsubscribe`].
    pub fn remove_all(
        &mut self,
        list: &mut SubscriptionList,
        removed: &mut impl FnMut(Resolved<'_>),
    ) -> usize {
        self.unsubscribe(list, None, None, removed)
    }

    /// A session's subscriptions, in the order in which they were made. A client binding for two accounts comes twice.
    pub fn subscriptions<'i>(
        &'i self,
        list: &SubscriptionList,
    ) -> impl Iterator<Item = Resolved<'i>> + use<'i> {
        let groups = self.chain(list).map(|(_, group)| &self.groups[group]);
        groups.map(|group| self.resolved(group))
    }

    /// A session's subscriptions as members of their groups, in the order in which they were made.
    pub fn memberships<'i>(
        &'i self,
        list: &SubscriptionList,
    ) -> impl Iterator<Item = Membership<'i>> + use<'i> {
        self.chain(list).map(|(id, group)| {
            let members = self.groups[group].members;
            let request_id = self.members.request_id(members, id);
            Membership {
                id: SubscriptionId::new(id),
                group: GroupId(group),
                request_id: self.request_ids.text(request_id),
            }
        })
    }

    /// The ids of a session's subscriptions and of their groups, in the order in which they were made.
    fn chain<'i>(&'i self, list: &SubscriptionList) -> impl Iterator<Item = (u32, u32)> + use<'i> {
        let mut id = list.first();
        std::iter::from_fn(move || {
            (id != NONE).then(|| {
                let Subscription { group, next, .. } = self.members.subscriptions[id];
                (std::mem::replace(&mut id, next), group)
            })
        })
    }

    /// How many subscriptions a session has. Linear in them.
    #[must_use]
    pub fn len(&self, list: &SubscriptionList) -> usize {
        self.subscriptions(list).count()
    }

    /// Takes all subscriptions of the session in `slot` over from another index, in their order; each is the youngest member
    /// of its group here, and follows the current months. `moved` gets each of them. `list` is of use with this index from
    /// now on. Linear in the session's own subscriptions.
    pub fn take_over(
        &mut self,
        from: &mut Self,
        families: &Families,
        list: &mut SubscriptionList,
        slot: u32,
        moved: &mut impl FnMut(Moved<'_>),
    ) {
        let mut left = list.take();
        let mut last = NONE;
        while !left.is_empty() {
            let id = left.first();
            let group = from.groups[from.members.subscriptions[id].group];
            let was = from.resolved(&group);
            let request_id = from.members.request_id(group.members, id);
            let request_id = self
                .request_ids
                .intern_text(from.request_ids.text(request_id));
            let style = group.traits.style();
            let (new, overtaken) =
                self.append_member(families, list, last, slot, was, style, request_id);
            last = new;
            moved(Moved {
                id: SubscriptionId::new(new),
                was,
                was_behind: was.is_behind && families.follows_the_month(&was),
                overtaken,
            });
            from.unlink(&mut left, NONE, id);
        }
    }

    /// Calls `visit` once for each group that wants the event. The order is that of the families' rows, then of their
    /// key forms, then named words before wildcards, then older groups before younger ones.
    ///
    /// Cost: the rows of the event's exchange, and one probe for each set of wildcards in use among the subscriptions
    /// of a row. The number of subscriptions does not count.
    pub fn match_event(
        &mut self,
        families: &Families,
        exchange: &str,
        routing_key: &str,
        head: &EventHead,
        months: ActiveMonths,
        visit: &mut impl FnMut(Match<'_>),
    ) {
        let mut matcher = Matcher {
            groups: &self.groups,
            scratch: &mut self.scratch,
        };
        matcher.match_event(families, exchange, routing_key, head, months, visit);
    }

    /// Begins a roll-over of the months: every group is behind from now on. No group may be behind before, so the walk
    /// of an earlier roll-over must be over.
    pub fn begin_roll_over(&mut self) {
        self.side = !self.side;
    }

    /// Moves the groups in the `count` places from place `from` on to the current months. For each of them that was
    /// behind and whose AMQP bindings change with the month, `visit` gets one subscription and how many members the
    /// group has: for all of these, [`Families::monthly_bindings`] are to be acquired and released. Returns the place
    /// to go on at, or `None` when no group is behind any more. The walk begins at place 0; subscriptions may come and
    /// go between its steps. Linear in `count`.
    pub fn roll_over(
        &mut self,
        families: &Families,
        from: usize,
        count: usize,
        visit: &mut impl FnMut(Resolved<'_>, u32),
    ) -> Option<usize> {
        let to = from.saturating_add(count).min(self.groups.places());
        for id in from..to {
            let id = id_of(id);
            let group = self.groups[id];
            if group.next_vacant().is_some() || group.traits.side() == self.side {
                continue;
            }
            let resolved = self.resolved(&group);
            if families.follows_the_month(&resolved) {
                visit(resolved, self.members.count(group.members));
            }
            self.groups[id].traits = group.traits.on(self.side);
        }
        (to < self.groups.places()).then_some(to)
    }

    /// The number of places that a walk over all groups goes through: at most the largest number of groups so far.
    #[must_use]
    pub fn group_places(&self) -> usize {
        self.groups.places()
    }

    /// The gauges.
    #[must_use]
    pub fn counts(&self) -> IndexCounts {
        IndexCounts {
            subscriptions: self.members.subscriptions.len(),
            groups: self.groups.len(),
            patterns: self.groups.patterns(),
            texts: self.groups.texts.len(),
            request_ids: self.request_ids.users(),
        }
    }

    /// Bytes allocated. Linear in the groups that have several members.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.members.heap_bytes() + self.request_ids.heap_bytes() + self.groups.heap_bytes()
    }

    fn resolved(&self, group: &Group) -> Resolved<'_> {
        self.groups.resolved(group, self.side)
    }

    /// The members of a group that a match has named since the last change of the index.
    #[must_use]
    pub fn members(&self, group: GroupId) -> Members<'_> {
        let members = self.groups[group.0].members;
        self.members.iter(members, &self.request_ids)
    }

    /// Makes `member` the last of its group, which is added when it is not there. If the group was behind, it is so no
    /// longer, and the number of its other members is returned.
    fn join_group(
        &mut self,
        families: &Families,
        member: GroupMember,
        resolved: Resolved<'_>,
        style: Style,
    ) -> Option<u32> {
        let traits = Traits::new(style, self.side);
        let alone = GroupMembers::one(member);
        let wanted = self.groups.describe(families, &resolved, traits, alone);
        let mut overtaken = None;
        let group = match self.groups.find(families, &wanted) {
            (_, Some(same)) => {
                self.groups.release_texts(&wanted);
                let group = &mut self.groups[same];
                if group.traits.side() != self.side && families.follows_the_month(&resolved) {
                    overtaken = Some(self.members.count(group.members));
                    group.traits = traits;
                }
                group.members = self.members.join(group.members, member);
                same
            }
            (ring, None) => self.groups.add(wanted, ring),
        };
        self.members.subscriptions[member.subscription].group = group;
        overtaken
    }

    /// Takes the subscription `id` out of its group, which is removed with its last member. Returns the subscription's
    /// request id.
    fn leave_group(&mut self, id: u32) -> RequestId {
        let group_id = self.members.subscriptions[id].group;
        let group = &mut self.groups[group_id];
        let (left, request_id) = self.members.leave(group.members, id);
        match left {
            Some(members) => group.members = members,
            None => self.groups.remove(group_id),
        }
        request_id
    }
}

#[cfg(test)]
mod tests;
