//! Subscriptions, and which of them are the members of a group.
//!
//! A lone member needs nothing but its id and its request id in the group; two or more have a list. The places of a
//! list are one word each as long as no member has had a request id, and two words, subscription and request id, from
//! then on.
//!
//! Invariants: the members of a group stay in the order in which they subscribed; fewer than half of a list's places
//! are vacant.

use std::slice;

use crate::routing::arena::{Arena, NONE, Place};
use crate::routing::request_ids::{RequestId, RequestIds};

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

/// A subscription as a group knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupMember {
    /// [`NONE`]: the place in the list is vacant.
    pub(super) subscription: u32,
    pub(super) request_id: RequestId,
}

/// [`MembersOf`] in 8 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupMembers {
    /// The lowest bit tells which, the others the id.
    id: u32,
    /// Of a lone member.
    request_id: RequestId,
}

enum MembersOf {
    /// A lone subscription.
    One(GroupMember),
    /// A member list.
    Many(u32),
}

impl GroupMembers {
    pub(super) const NOBODY: Self = Self {
        id: NONE,
        request_id: RequestId::NONE,
    };

    pub(super) fn one(member: GroupMember) -> Self {
        Self {
            id: doubled(member.subscription),
            request_id: member.request_id,
        }
    }

    fn many(list: u32) -> Self {
        Self {
            id: doubled(list) | 1,
            request_id: RequestId::NONE,
        }
    }

    fn get(self) -> MembersOf {
        match self.id & 1 {
            0 => MembersOf::One(GroupMember {
                subscription: self.id >> 1,
                request_id: self.request_id,
            }),
            _ => MembersOf::Many(self.id >> 1),
        }
    }
}

fn doubled(id: u32) -> u32 {
    // The largest id of 31 bits stands for none in a list of subscriptions.
    (id.checked_mul(2).filter(|_| id < NONE >> 1))
        .expect("memory ends before 2^31 subscriptions do")
}

/// Two members or more; or, without words, a vacant list whose `live` is the next vacant one.
#[derive(Debug)]
struct MemberList {
    /// The places: subscriptions in the order in which they were made, [`NONE`] where one has gone.
    words: Vec<u32>,
    live: u32,
    /// Whether a request id stands behind each subscription.
    has_request_ids: bool,
}

impl MemberList {
    fn new(first: GroupMember) -> Self {
        let mut list = Self {
            words: Vec::new(),
            live: 0,
            has_request_ids: false,
        };
        list.push(first);
        list
    }

    fn words_of_a_place(&self) -> usize {
        1 + usize::from(self.has_request_ids)
    }

    /// Places, the vacant ones too.
    fn places(&self) -> usize {
        self.words.len() / self.words_of_a_place()
    }

    fn push(&mut self, member: GroupMember) {
        if !self.has_request_ids && member.request_id != RequestId::NONE {
            let none = RequestId::NONE.bits();
            let pairs = self.words.iter().flat_map(|id| [*id, none]);
            self.words = pairs.collect();
            self.has_request_ids = true;
        }
        self.words.push(member.subscription);
        if self.has_request_ids {
            self.words.push(member.request_id.bits());
        }
        self.live += 1;
    }

    fn request_id(&self, place: usize) -> RequestId {
        if !self.has_request_ids {
            return RequestId::NONE;
        }
        let bits = self.words.get(2 * place + 1);
        RequestId::from_bits(*bits.expect("a member is in its group's list"))
    }

    fn vacate(&mut self, place: usize) {
        let at = place * self.words_of_a_place();
        let word = self.words.get_mut(at);
        *word.expect("a member is in its group's list") = NONE;
        self.live -= 1;
    }

    fn iter(&self) -> ListedMembers<'_> {
        ListedMembers(self.words.chunks_exact(self.words_of_a_place()))
    }

    /// Removes the vacant places.
    fn compact(&mut self) {
        let step = self.words_of_a_place();
        let places = self.words.chunks_exact(step);
        let live = places.filter(|place| place.first() != Some(&NONE));
        let mut words = Vec::with_capacity(self.live as usize * step * 5 / 4);
        words.extend(live.flatten());
        self.words = words;
    }
}

/// The members of a list, without the vacant places.
#[derive(Clone, Debug)]
struct ListedMembers<'m>(slice::ChunksExact<'m, u32>);

impl Iterator for ListedMembers<'_> {
    type Item = GroupMember;

    #[inline]
    fn next(&mut self) -> Option<GroupMember> {
        for place in self.0.by_ref() {
            let (subscription, request_id) = match *place {
                [subscription] => (subscription, RequestId::NONE),
                [subscription, bits, ..] => (subscription, RequestId::from_bits(bits)),
                [] => continue,
            };
            if subscription != NONE {
                return Some(GroupMember {
                    subscription,
                    request_id,
                });
            }
        }
        None
    }
}

impl Place for MemberList {
    fn vacant(next: u32) -> Self {
        Self {
            words: Vec::new(),
            live: next,
            has_request_ids: false,
        }
    }

    fn next_vacant(&self) -> Option<u32> {
        self.words.is_empty().then_some(self.live)
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

    /// What `members` becomes with `member` as its last.
    pub(super) fn join(&mut self, members: GroupMembers, member: GroupMember) -> GroupMembers {
        let list_id = match members.get() {
            MembersOf::Many(list) => list,
            MembersOf::One(first) => self.lists.insert(MemberList::new(first)),
        };
        let list = &mut self.lists[list_id];
        self.subscriptions[member.subscription].position = to_u32(list.places());
        list.push(member);
        GroupMembers::many(list_id)
    }

    /// What `members` becomes without the subscription `id` (`None`: nobody is left), and the subscription's request
    /// id. Amortised O(1).
    pub(super) fn leave(
        &mut self,
        members: GroupMembers,
        id: u32,
    ) -> (Option<GroupMembers>, RequestId) {
        let list_id = match members.get() {
            MembersOf::One(member) => return (None, member.request_id),
            MembersOf::Many(list_id) => list_id,
        };
        let subscription = &mut self.subscriptions[id];
        let position = std::mem::take(&mut subscription.position) as usize;
        let list = &mut self.lists[list_id];
        let request_id = list.request_id(position);
        list.vacate(position);
        if list.live == 1 {
            let last = list.iter().next().expect("one is live");
            self.lists.remove(list_id);
            self.subscriptions[last.subscription].position = 0;
            return (Some(GroupMembers::one(last)), request_id);
        }
        if (list.live as usize) * 2 < list.places() {
            list.compact();
            for (at, member) in list.iter().enumerate() {
                self.subscriptions[member.subscription].position = to_u32(at);
            }
        }
        (Some(members), request_id)
    }

    /// The request id of the subscription `id`, one of `members`.
    pub(super) fn request_id(&self, members: GroupMembers, id: u32) -> RequestId {
        match members.get() {
            MembersOf::One(member) => member.request_id,
            MembersOf::Many(list) => {
                self.lists[list].request_id(self.subscriptions[id].position as usize)
            }
        }
    }

    /// How many members there are.
    pub(super) fn count(&self, members: GroupMembers) -> u32 {
        match members.get() {
            MembersOf::One(_) => 1,
            MembersOf::Many(list) => self.lists[list].live,
        }
    }

    pub(super) fn iter<'m>(
        &'m self,
        members: GroupMembers,
        request_ids: &'m RequestIds,
    ) -> Members<'m> {
        let (one, listed, left) = match members.get() {
            MembersOf::One(member) => (Some(member), [].chunks_exact(1), 1),
            MembersOf::Many(list) => {
                let list = &self.lists[list];
                (None, list.iter().0, list.live as usize)
            }
        };
        Members {
            one,
            listed: ListedMembers(listed),
            subscriptions: &self.subscriptions,
            request_ids,
            left,
        }
    }

    /// Bytes allocated; each list counts as the allocator's smallest piece that holds it. Linear in the lists.
    pub(super) fn heap_bytes(&self) -> usize {
        let places = self
            .lists
            .iter()
            .map(|list| list.words.capacity() * size_of::<u32>() + 16);
        self.subscriptions.heap_bytes() + self.lists.heap_bytes() + places.sum::<usize>()
    }
}

/// A session that is to get an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'m> {
    /// The session's slot.
    pub slot: u32,
    /// The request id of its subscribe, as it stands between the quotes of a JSON string.
    pub request_id: Option<&'m str>,
}

/// A group's members, in the order in which they subscribed.
#[derive(Clone, Debug)]
pub struct Members<'m> {
    /// A lone member.
    one: Option<GroupMember>,
    /// The members, if there are more.
    listed: ListedMembers<'m>,
    subscriptions: &'m Arena<Subscription>,
    request_ids: &'m RequestIds,
    left: usize,
}

impl<'m> Iterator for Members<'m> {
    type Item = Member<'m>;

    #[inline]
    fn next(&mut self) -> Option<Member<'m>> {
        let member = self.one.take().or_else(|| self.listed.next())?;
        self.left -= 1;
        Some(Member {
            slot: self.subscriptions[member.subscription].slot,
            request_id: self.request_ids.text(member.request_id),
        })
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
