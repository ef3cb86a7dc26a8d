//! All groups, and the tables that find them.
//!
//! Groups have one *pattern* when they differ in style or (where no account is needed) scope only. They
//! form a ring; the oldest is its head. Two hash tables of 4-byte ids find them: `patterns` has the heads, by their
//! pattern; `others` has the rest, by all of the group. So a group that is alone in its ring, as most are, takes one
//! entry.
//!
//! Invariants: a head is in `patterns`, every other group in `others`; a hit in a table is compared exactly, so a
//! collision of hashes crosses no account.

use std::collections::hash_map::RandomState;
use std::ops::{Index, IndexMut};

use hashbrown::HashTable;

use super::group::{Group, Traits};
use super::members::GroupMembers;
use super::pattern::PatternHasher;
use crate::account::Scope;
use crate::routing::arena::{Arena, NONE};
use crate::routing::families::{Families, Qualification, Resolved, RuleId};
use crate::routing::interner::Interner;
use crate::routing::table::{shrink_table, spread};

/// A set of wildcards that patterns of a rule have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) bits: u8,
    /// Never 0.
    patterns: u32,
}

/// All groups.
#[derive(Debug)]
pub(super) struct Groups {
    groups: Arena<Group>,
    /// Client bindings and realms of the groups.
    pub(super) texts: Interner,
    pub(super) hasher: PatternHasher,
    /// The head of each pattern's ring, by the pattern's hash.
    patterns: HashTable<u32>,
    /// The groups that are not heads, by their full hash.
    others: HashTable<u32>,
    /// The shapes in use, by rule; sorted, so that named words come before wildcards.
    shapes: Vec<Vec<Shape>>,
}

impl Groups {
    pub(super) fn new(seed: RandomState) -> Self {
        Self {
            groups: Arena::new(),
            texts: Interner::new(seed.clone()),
            hasher: PatternHasher::new(seed),
            patterns: HashTable::new(),
            others: HashTable::new(),
            shapes: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// Places of groups, those in use and the vacant ones.
    pub(super) fn places(&self) -> usize {
        self.groups.places()
    }

    /// Distinct patterns.
    pub(super) fn patterns(&self) -> usize {
        self.patterns.len()
    }

    /// The shapes in use among a rule's patterns; sorted, so that named words come before wildcards.
    pub(super) fn shapes(&self, rule: RuleId) -> &[Shape] {
        self.shapes
            .get(usize::from(rule.0))
            .map_or(&[], Vec::as_slice)
    }

    /// The head of the ring whose pattern has this hash, if `is_it` is true of it.
    pub(super) fn ring(&self, hash: u32, mut is_it: impl FnMut(&Group) -> bool) -> Option<u32> {
        self.patterns
            .find(spread(hash), |id| is_it(&self.groups[*id]))
            .copied()
    }

    /// A group's text; `None` for [`NONE`].
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        (id != NONE).then(|| self.texts.text(id))
    }

    /// What the members of a group are subscribed to. `side` is the side of the groups that follow the current months.
    pub(super) fn resolved(&self, group: &Group, side: bool) -> Resolved<'_> {
        Resolved {
            rule: RuleId(group.rule),
            scope: group.scope(),
            binding: self.texts.text(group.binding),
            realm: self.text(group.realm),
            shared: None,
            is_behind: group.traits.side() != side,
        }
    }

    /// The group of a subscription, each of its texts with one more user. If [`Groups::find`] does not find the same,
    /// it is to be [added](Self::add); otherwise its texts are to be [released](Self::release_texts).
    pub(super) fn describe(
        &mut self,
        families: &Families,
        resolved: &Resolved<'_>,
        traits: Traits,
        members: GroupMembers,
    ) -> Group {
        let (hash, shape) = self.hasher.subscription(families, resolved);
        let mut intern =
            |text: Option<&str>| text.map_or(NONE, |text| self.texts.intern(text, None));
        Group {
            hash,
            account: match resolved.scope {
                Scope::One(account) => *account.bytes(),
                Scope::Any => [0; 16],
            },
            realm: intern(resolved.realm),
            binding: self.texts.intern(resolved.binding, resolved.shared),
            next: NONE,
            previous: NONE,
            members,
            rule: resolved.rule.0,
            shape,
            traits,
        }
    }

    /// The head of the ring that `wanted` belongs to, and the group there that is the same.
    pub(super) fn find(&self, families: &Families, wanted: &Group) -> (Option<u32>, Option<u32>) {
        let rule = families.rule(RuleId(wanted.rule));
        let has_account = rule.qualification == Qualification::Account;
        let ring = self.ring(wanted.hash, |group| {
            group.has_pattern_of(wanted) && (!has_account || group.account == wanted.account)
        });
        let same = ring.and_then(|head| {
            if self.groups[head].is_same(wanted) {
                return Some(head);
            }
            let is_same = |id: &u32| self.groups[*id].is_same(wanted);
            self.others.find(wanted.full_hash(), is_same).copied()
        });
        (ring, same)
    }

    /// Adds a group at the end of the ring with this head, or as the head of a new ring.
    pub(super) fn add(&mut self, group: Group, ring: Option<u32>) -> u32 {
        let id = self.groups.insert(group);
        let groups = &mut self.groups;
        match ring {
            None => {
                (groups[id].next, groups[id].previous) = (id, id);
                self.patterns
                    .insert_unique(spread(group.hash), id, |id| spread(groups[*id].hash));
                self.count_shape(&group);
            }
            Some(head) => {
                let last = groups[head].previous;
                (groups[id].next, groups[id].previous) = (head, last);
                groups[last].next = id;
                groups[head].previous = id;
                self.others
                    .insert_unique(group.full_hash(), id, |id| groups[*id].full_hash());
            }
        }
        id
    }

    /// Removes a group that has no member left.
    pub(super) fn remove(&mut self, id: u32) {
        let group = self.groups.remove(id);
        let Self {
            groups,
            patterns,
            others,
            ..
        } = self;
        let is_alone = group.next == id;
        if !is_alone {
            groups[group.previous].next = group.next;
            groups[group.next].previous = group.previous;
        }
        match patterns.find_entry(spread(group.hash), |head| *head == id) {
            Ok(entry) if is_alone => {
                entry.remove();
                shrink_table(patterns, |id| spread(groups[*id].hash));
                self.uncount_shape(&group);
            }
            Ok(mut entry) => {
                *entry.get_mut() = group.next;
                remove_from(others, groups[group.next].full_hash(), group.next);
            }
            Err(_) => remove_from(others, group.full_hash(), id),
        }
        let Self { groups, others, .. } = self;
        shrink_table(others, |id| groups[*id].full_hash());
        self.release_texts(&group);
    }

    /// Takes one user of each of a group's texts back.
    pub(super) fn release_texts(&mut self, group: &Group) {
        for text in [group.binding, group.realm] {
            if text != NONE {
                self.texts.release(text);
            }
        }
    }

    /// Bytes allocated.
    pub(super) fn heap_bytes(&self) -> usize {
        self.groups.heap_bytes()
            + self.texts.heap_bytes()
            + self.patterns.allocation_size()
            + self.others.allocation_size()
    }

    fn count_shape(&mut self, group: &Group) {
        let rule = usize::from(group.rule);
        if self.shapes.len() <= rule {
            self.shapes.resize_with(rule + 1, Vec::new);
        }
        let Some(shapes) = self.shapes.get_mut(rule) else {
            return;
        };
        let bits = group.shape;
        match shapes.iter_mut().find(|shape| shape.bits == bits) {
            Some(shape) => shape.patterns += 1,
            None => {
                let at = shapes.partition_point(|shape| shape.bits < bits);
                shapes.insert(at, Shape { bits, patterns: 1 });
            }
        }
    }

    fn uncount_shape(&mut self, group: &Group) {
        let counted = self.shapes.get_mut(usize::from(group.rule));
        let shapes = counted.expect("the group's shape was counted");
        for shape in shapes.iter_mut().filter(|shape| shape.bits == group.shape) {
            shape.patterns -= 1;
        }
        shapes.retain(|shape| shape.patterns > 0);
    }
}

impl Index<u32> for Groups {
    type Output = Group;

    fn index(&self, id: u32) -> &Group {
        &self.groups[id]
    }
}

impl IndexMut<u32> for Groups {
    fn index_mut(&mut self, id: u32) -> &mut Group {
        &mut self.groups[id]
    }
}

fn remove_from(table: &mut HashTable<u32>, hash: u64, id: u32) {
    table
        .find_entry(hash, |other| *other == id)
        .expect("every group is in a table")
        .remove();
}
