//! Subscriptions, and which of them are a group's members, in the order in which they subscribed.

use std::slice;

use crate::routing::arena::{Arena, NONE, Place};

#[derive(Clone, Copy, Debug)]
pub(super) struct Subscription {
    /// [`NONE`]: the place is vacant, and `next` is the next vacant one.
    pub(super) group: u32,
    /// Index in the group's member list; 0 for a lone member.
    pub(super) position: u32,
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

pub(super) enum MembersOf {
    /// One subscription.
    One(u32),
    /// A member list.
    Many(u32),
}

impl GroupMembers {
    pub(super) const NOBODY: Self = Self(NONE);

    pub(super) fn one(subscription: u32) -> Self {
        Self(doubled(subscription))
    }

    pub(super) fn many(list: u32) -> Self {
        Self(doubled(list) | 1)
    }

    pub(super) fn get(self) -> MembersOf {
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
pub(super) struct MemberList {
    /// Subscriptions in the order in which they were made; [`NONE`] where one has gone.
    pub(super) places: Vec<u32>,
    pub(super) live: u32,
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

/// The slots of a group's sessions.
#[derive(Clone, Debug)]
pub struct Members<'m> {
    /// A lone member.
    pub(super) one: Option<u32>,
    /// The members, if there are more.
    pub(super) places: slice::Iter<'m, u32>,
    pub(super) subscriptions: &'m Arena<Subscription>,
    pub(super) left: usize,
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

/// A number of places or members.
pub(super) fn to_u32(number: usize) -> u32 {
    u32::try_from(number)
        .expect("fewer than twice as many places as subscriptions, which have ids of 32 bits")
}
