//! What a group is: the subscriptions that share a frame. Invariant: a group takes 48 bytes.

use super::members::GroupMembers;
use super::pattern::{ANY_SCOPE, mix};
use crate::account::{AccountId, Scope};
use crate::event::Style;
use crate::routing::arena::{NONE, Place};
use crate::routing::table::spread;

/// Equal (rule, scope, realm, client binding, style).
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    /// The pattern's hash; tables get it [`spread`] over 64 bits.
    pub(super) hash: u32,
    /// All zeros for scope `*`.
    pub(super) account: [u8; 16],
    /// The interned client binding. `realm` is interned too, or [`NONE`].
    pub(super) binding: u32,
    pub(super) realm: u32,
    /// The next younger group in the pattern's ring, or the head after the youngest. In a vacant place: the next vacant
    /// place.
    pub(super) next: u32,
    pub(super) previous: u32,
    pub(super) members: GroupMembers,
    /// [`Group::VACANT`] for a vacant place.
    pub(super) rule: u16,
    pub(super) shape: u8,
    pub(super) traits: Traits,
}

/// A group's event style, and its side of a roll-over of the months, in one byte.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traits(u8);

impl Traits {
    const KAZOO: u8 = 1;
    const SIDE: u8 = 2;

    pub(super) fn new(style: Style, side: bool) -> Self {
        let kazoo = if style == Style::Kazoo {
            Self::KAZOO
        } else {
            0
        };
        Self(kazoo).on(side)
    }

    pub(super) fn on(self, side: bool) -> Self {
        Self(self.0 & !Self::SIDE | if side { Self::SIDE } else { 0 })
    }

    pub(super) fn style(self) -> Style {
        if self.0 & Self::KAZOO == 0 {
            Style::Piston
        } else {
            Style::Kazoo
        }
    }

    pub(super) fn side(self) -> bool {
        self.0 & Self::SIDE != 0
    }
}

impl Group {
    const VACANT: u16 = u16::MAX;

    pub(super) fn scope(&self) -> Scope {
        if self.shape & ANY_SCOPE == 0 {
            Scope::One(AccountId::from_bytes(self.account))
        } else {
            Scope::Any
        }
    }

    /// The hash of all that makes the group.
    pub(super) fn full_hash(&self) -> u64 {
        let [low, high] = halves(&self.account);
        let own = u64::from(self.traits.style() == Style::Kazoo);
        [low, high, own].into_iter().fold(spread(self.hash), mix)
    }

    /// Whether `other` has the same frame for every event.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.has_pattern_of(other)
            && self.account == other.account
            && self.traits.style() == other.traits.style()
    }

    /// Whether both groups have one pattern, their accounts aside. Client bindings of one rule and one pattern have the
    /// same text.
    pub(super) fn has_pattern_of(&self, other: &Self) -> bool {
        self.hash == other.hash
            && self.rule == other.rule
            && self.shape == other.shape
            && self.binding == other.binding
            && self.realm == other.realm
    }
}

impl Place for Group {
    fn vacant(next: u32) -> Self {
        Self {
            hash: 0,
            account: [0; 16],
            binding: NONE,
            realm: NONE,
            next,
            previous: NONE,
            members: GroupMembers::NOBODY,
            rule: Self::VACANT,
            shape: 0,
            traits: Traits::default(),
        }
    }

    fn next_vacant(&self) -> Option<u32> {
        (self.rule == Self::VACANT).then_some(self.next)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "each half has 64 of the 128 bits"
)]
fn halves(bytes: &[u8; 16]) -> [u64; 2] {
    let number = u128::from_le_bytes(*bytes);
    [number as u64, (number >> 64) as u64]
}

const _: () = assert!(size_of::<Group>() == 48);
