//! Subscriptions, and which of them are the members of a group.
//!
//! A lone member needs nothing but its id in the group; two or more have a list of their ids.
//!
//! Invariants: the members of a group stay in the order in which they subscribed; fewer than half of a list's places
//! are vacant.

use std::slice;

use crate::routing::arena::{Arena, NONE, Place};

/// One subscription, in 16 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subscription {
    /// [`NONE`]: the place is vacant, and `next` is the next vacant one.
    pub(super) group: u32,
    /// Its place in the group's member list; 0 for a lone member.
    position: u32,
    pub(super) slot: u32,
    /// The session's next subscription.
    pub(super) next: u32,
}

impl Place for Subscription {
    fn vacant(next: u32) -> Self {
        Self {
            group: NONE,
            position: 0,
            slot: 0,
            next,
        }
    }

    fn next_vacant(&self) -> Option<u32> {
        (self.group == NONE).then_some(self.next)
    }
}

/// [`MembersOf`] in 4 bytes: the lowest bit tells which, the others the id.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupMembers(u32);

enum MembersOf {
    /// A lone subscription.
    One(u32),
    /// A member list.
    Many(u32),
}

impl GroupMembers {
    pub(super) const NOBODY: Self = Self(NONE);

    pub(super) fn one(subscription: u32) -> Self {
        Self(doubled(subscription))
    }

    fn many(list: u32) -> Self {
        Self(doubled(list) | 1)
    }

    fn get(self) -> MembersOf {
        match self.0 & 1 {
            0 => MembersOf::One(self.0 >> 1),
            _ => MembersOf::Many(self.0 >> 1),
        }
    }
}

fn doubled(id: u32) -> u32 {
    id.checked_mul(2)
        .expect("memory ends before 2^31 subscriptions do")
}

/// Two members or more; or, without places, a vacant list whose `live` is the next vacant one.
#[derive(Debug)]
struct MemberList {
    /// Subscriptions in the order in which they were made; [`NONE`] where one has gone.
    places: Vec<u32>,
    live: u32,
}

impl Place for MemberList {
    fn vacant(next: u32) -> Self {
        Self {
            places: Vec::new(),
            live: next,
        }
    }

    fn next_vacant(&self) -> Option<u32> {
        self.places.is_empty().then_some(self.live)
    }
}

/// All subscriptions, and the member lists of all groups.
#[derive(Debug)]
pub(super) struct Memberships {
    pub(super) subscriptions: Arena<Subscription>,
    lists: Arena<MemberList>,
}

impl Memberships {
    pub(super) fn new() -> Self {
        Self {
            subscriptions: Arena::new(),
            lists: Arena::new(),
        }
    }

    /// A new subscription of the session in `slot`, which has yet to become a member of a group.
    pub(super) fn add(&mut self, slot: u32) -> u32 {
        self.subscriptions.insert(Subscription {
            group: 0,
            position: 0,
            slot,
            next: NONE,
        })
    }

    /// What `members` becomes with the subscription `id` as its last member.
    pub(super) fn join(&mut self, members: GroupMembers, id: u32) -> GroupMembers {
        let list_id = match members.get() {
            MembersOf::Many(list) => list,
            MembersOf::One(first) => self.lists.insert(MemberList {
                places: vec![first],
                live: 1,
            }),
        };
        let list = &mut self.lists[list_id];
        self.subscriptions[id].position = to_u32(list.places.len());
        list.places.push(id);
        list.live += 1;
        GroupMembers::many(list_id)
    }

    /// What `members` becomes without the subscription `id`; `None`: nobody is left. Amortised O(1).
    pub(super) fn leave(&mut self, members: GroupMembers, id: u32) -> Option<GroupMembers> {
        let MembersOf::Many(list_id) = members.get() else {
            return None;
        };
        let subscription = &mut self.subscriptions[id];
        let position = std::mem::take(&mut subscription.position);
        let list = &mut self.lists[list_id];
        let place = list.places.get_mut(position as usize);
        *place.expect("a member is in its group's list") = NONE;
        list.live -= 1;
        if list.live == 1 {
            let live = list.places.iter().copied().find(|id| *id != NONE);
            let last = live.expect("one is live");
            self.lists.remove(list_id);
            self.subscriptions[last].position = 0;
            return Some(GroupMembers::one(last));
        }
        if (list.live as usize) * 2 < list.places.len() {
            list.places.retain(|id| *id != NONE);
            list.places.shrink_to(list.places.len() * 5 / 4);
            for (at, id) in list.places.iter().enumerate() {
                self.subscriptions[*id].position = to_u32(at);
            }
        }
        Some(members)
    }

    /// How many members there are.
    pub(super) fn count(&self, members: GroupMembers) -> u32 {
        match members.get() {
            MembersOf::One(_) => 1,
            MembersOf::Many(list) => self.lists[list].live,
        }
    }

    pub(super) fn iter(&self, members: GroupMembers) -> Members<'_> {
        let (one, places, left) = match members.get() {
            MembersOf::One(id) => (Some(id), &[][..], 1),
            MembersOf::Many(list) => {
                let list = &self.lists[list];
                (None, &*list.places, list.live as usize)
            }
        };
        Members {
            one,
            places: places.iter(),
            subscriptions: &self.subscriptions,
            left,
        }
    }

    /// Bytes allocated; each list counts as the allocator's smallest piece that holds it. Linear in the lists.
    pub(super) fn heap_bytes(&self) -> usize {
        let places = self
            .lists
            .iter()
            .map(|list| list.places.capacity() * size_of::<u32>() + 16);
        self.subscriptions.heap_bytes() + self.lists.heap_bytes() + places.sum::<usize>()
    }
}

/// The slots of a group's sessions, in the order in which they subscribed.
#[derive(Clone, Debug)]
pub struct Members<'m> {
    /// A lone member.
    one: Option<u32>,
    /// The members, if there are more.
    places: slice::Iter<'m, u32>,
    subscriptions: &'m Arena<Subscription>,
    left: usize,
}

impl Iterator for Members<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let next = || self.places.by_ref().copied().find(|id| *id != NONE);
        let id = self.one.take().or_else(next)?;
        self.left -= 1;
        Some(self.subscriptions[id].slot)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Members<'_> {}

/// A number of places.
fn to_u32(number: usize) -> u32 {
    u32::try_from(number)
        .expect("fewer than twice as many places as subscriptions, which have ids of 32 bits")
}

const _: () = assert!(size_of::<Subscription>() == 16);
