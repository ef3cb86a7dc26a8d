//! The subscriptions of all sessions, and which of them want an event.
//!
//! A subscription is 16 bytes: its group, its place among the group's members, its session's slot, and the next
//! subscription of the same session, so that a session holds 4 bytes and is removed at the cost of what it had.
//!
//! A *group* is what shares a frame: equal (rule, scope, realm, client binding, style, request id). Groups that
//! differ in style, request id or (where no account is needed) scope only have one *pattern*; they form a ring,
//! whose oldest group is its head. Two hash tables of 4-byte ids find them: `patterns` has the heads by pattern,
//! `others` the rest by all of the group, so that a lone group, the usual one, costs one entry.
//!
//! ```text
//! event -> rules of its exchange -> key forms it fits -> wildcard shapes in use -> one probe each -> ring
//! ```
//!
//! Invariants: a probe's hit is compared exactly (account bytes, words), so a collision of hashes crosses no
//! account; a hash is seeded, as clients choose the words; members stay in the order in which they subscribed;
//! fewer than half of a member list's places are vacant, and a group has a member or is not there.

mod group;
mod members;
mod pattern;

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use arcstr::ArcStr;
use hashbrown::HashTable;

use self::group::{Group, Shape, Traits};
pub use self::members::Members;
use self::members::{GroupMembers, MemberList, MembersOf, Subscription, to_u32};
use self::pattern::{ANY_SCOPE, WordHashes, named_variables, pattern_hash};
use super::arena::{Arena, NONE, Place};
use super::families::{Families, FormedEvent, Qualification, Qualifier, Resolved, Rule, RuleId};
use super::interner::Interner;
use super::month::ActiveMonths;
use super::words::{self, WORDS_MAX};
use super::{shrink_table, spread};
use crate::account::Scope;
use crate::config::Style;
use crate::protocol::event::EventHead;

/// What one session is subscribed to: 4 bytes, to be kept beside the session. It means something to the
/// [`SubscriptionIndex`] that filled it only, and must go through [`SubscriptionIndex::remove_all`] before it is
/// dropped.
#[derive(Debug)]
pub struct SubscriptionList(u32);

impl Default for SubscriptionList {
    fn default() -> Self {
        Self(NONE)
    }
}

impl SubscriptionList {
    /// Whether there is no subscription.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == NONE
    }
}

/// What subscribing comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscribed {
    /// It is there now: its AMQP bindings are to be acquired.
    New,
    /// As [`Subscribed::New`]; and its group, which was behind the months of now and had so many subscriptions, is so
    /// no longer: for these, too, the bindings of a roll-over are to be acquired and released.
    Overtook(u32),
    /// The session had it, under whatever request id: nothing has changed.
    AlreadySubscribed,
}

/// What becomes of a subscription whose session's rights have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revision {
    /// It stays as it is.
    Keep,
    /// It stays, with the events of this realm instead of its own.
    Move(Arc<str>),
    /// It ends.
    End,
}

/// What a revision did to a subscription.
#[derive(Clone, Copy, Debug)]
pub enum Revised<'a> {
    /// It ends: its AMQP bindings are to be released.
    Ended(Resolved<'a>),
    /// It was this until now: these AMQP bindings are to be released.
    Left(Resolved<'a>),
    /// It is this now: these AMQP bindings are to be acquired.
    Joined(Resolved<'a>),
}

/// Names a group, until the next change of the index; after it, a match has to name it again before it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupId(u32);

/// One group that wants an event.
#[derive(Clone, Debug)]
pub struct Match<'m> {
    /// Which, for [`SubscriptionIndex::members`].
    pub group: GroupId,
    /// The family's row.
    pub rule: RuleId,
    /// The account it was subscribed for.
    pub scope: Scope,
    /// Event style of the members.
    pub style: Style,
    /// The client binding.
    pub subscribed_key: &'m str,
    /// The canonical, account-qualified pattern that the event was found by.
    pub subscription_key: &'m str,
    /// The event's canonical routing key.
    pub routing_key: &'m str,
    /// The request id that the subscribes had.
    pub request_id: Option<&'m str>,
    /// In style piston the event's name is `Event-Name`, `_` and `Type`.
    pub name_suffixed_by_type: bool,
}

/// Gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexCounts {
    /// Subscriptions.
    pub subscriptions: usize,
    /// Groups: distinct frames an event of each would need.
    pub groups: usize,
    /// Distinct patterns.
    pub patterns: usize,
    /// Interned texts: client bindings, realms, request ids.
    pub texts: usize,
}

/// Buffers that matching uses again.
#[derive(Debug, Default)]
struct Scratch {
    routing_key: String,
    subscription_key: String,
    /// Rings of the rule at hand that the event has found.
    found: Vec<u32>,
}

/// The index. All groups are of one [`Families`]: pass the same one every time.
#[derive(Debug)]
pub struct SubscriptionIndex {
    subscriptions: Arena<Subscription>,
    groups: Arena<Group>,
    member_lists: Arena<MemberList>,
    texts: Interner,
    /// Head of each pattern's ring, by the pattern's hash.
    patterns: HashTable<u32>,
    /// The groups that are not heads, by their full hash.
    others: HashTable<u32>,
    /// Shapes in use, by rule, sorted: named words before wildcards.
    shapes: Vec<Vec<Shape>>,
    /// The side of the groups that follow the months of now; those of the other are behind.
    side: bool,
    seed: RandomState,
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
            subscriptions: Arena::new(),
            groups: Arena::new(),
            member_lists: Arena::new(),
            texts: Interner::new(seed.clone()),
            patterns: HashTable::new(),
            others: HashTable::new(),
            shapes: Vec::new(),
            side: false,
            seed,
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
        let binding = self.texts.find(resolved.binding);
        let mut id = list.0;
        while id != NONE {
            let Subscription { group, next, .. } = self.subscriptions[id];
            let group = &self.groups[group];
            if Some(group.binding) == binding && group.scope() == resolved.scope {
                return Subscribed::AlreadySubscribed;
            }
            (last, id) = (id, next);
        }
        let (_, subscribed) = self.append(families, list, last, slot, resolved, style, request_id);
        subscribed
    }

    /// Adds subscriptions at the end of a session's `list`, in their order; `added` sees each that the session had
    /// not: its AMQP bindings are to be acquired; and how many others it [overtook](Subscribed::Overtook). Linear in the session's own subscriptions and in `wanted` together.
    #[expect(clippy::too_many_arguments, reason = "what a subscription is made of")]
    pub fn subscribe_all<'a>(
        &mut self,
        families: &Families,
        list: &mut SubscriptionList,
        slot: u32,
        wanted: impl IntoIterator<Item = Resolved<'a>>,
        style: Style,
        request_id: Option<&str>,
        added: &mut impl FnMut(Resolved<'a>, Option<u32>),
    ) {
        let mut known = HashSet::new();
        let (mut last, mut id) = (NONE, list.0);
        while id != NONE {
            let Subscription { group, next, .. } = self.subscriptions[id];
            let group = &self.groups[group];
            known.insert((group.binding, group.scope()));
            (last, id) = (id, next);
        }
        for resolved in wanted {
            let binding = self.texts.find(resolved.binding);
            if binding.is_some_and(|binding| known.contains(&(binding, resolved.scope))) {
                continue;
            }
            let (id, subscribed) =
                self.append(families, list, last, slot, resolved, style, request_id);
            last = id;
            let group = self.subscriptions[id].group;
            known.insert((self.groups[group].binding, resolved.scope));
            let overtaken = match subscribed {
                Subscribed::Overtook(others) => Some(others),
                Subscribed::New | Subscribed::AlreadySubscribed => None,
            };
            added(resolved, overtaken);
        }
    }

    /// Adds a subscription behind `last`, the last of `list`; returns it, and what that comes to.
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
        let id = self.subscriptions.insert(Subscription {
            group: 0,
            position: 0,
            slot,
            next: NONE,
        });
        let overtaken = self.join_group(families, id, resolved, style, request_id);
        match last {
            NONE => list.0 = id,
            last => self.subscriptions[last].next = id,
        }
        let subscribed = overtaken.map_or(Subscribed::New, Subscribed::Overtook);
        (id, subscribed)
    }

    /// Removes a session's subscriptions to `binding` (all when `None`) for `scope` (every account when `None`),
    /// and returns how many. `removed` sees each, in the order of subscription, just before it goes: its AMQP
    /// bindings are to be released. Linear in the session's own subscriptions.
    pub fn unsubscribe(
        &mut self,
        list: &mut SubscriptionList,
        scope: Option<Scope>,
        binding: Option<&str>,
        removed: &mut impl FnMut(Resolved<'_>),
    ) -> usize {
        let binding = match binding.map(|text| self.texts.find(text)) {
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
        let bindings: HashSet<u32> = bindings.filter_map(|text| self.texts.find(text)).collect();
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
        let mut id = list.0;
        while id != NONE {
            let Subscription {
                group: group_id,
                next,
                ..
            } = self.subscriptions[id];
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

    /// Ends the subscription `id`, which comes after `kept` in `list` ([`NONE`]: it is the first).
    fn unlink(&mut self, list: &mut SubscriptionList, kept: u32, id: u32) {
        let next = self.subscriptions[id].next;
        match kept {
            NONE => list.0 = next,
            kept => self.subscriptions[kept].next = next,
        }
        self.leave_group(id);
        self.subscriptions.remove(id);
    }

    /// Asks `judge` what becomes of each of a session's subscriptions, does that, and tells `revised` of all that was
    /// not kept. One that moves keeps its place in the session's list and its request id, and is the youngest member
    /// of its new group. Linear in the session's own subscriptions.
    pub fn revise(
        &mut self,
        families: &Families,
        list: &mut SubscriptionList,
        judge: impl Fn(Resolved<'_>) -> Revision,
        revised: &mut impl FnMut(Revised<'_>),
    ) {
        let mut kept = NONE;
        let mut id = list.0;
        while id != NONE {
            let next = self.subscriptions[id].next;
            let group = self.groups[self.subscriptions[id].group];
            let resolved = self.resolved(&group);
            match judge(resolved) {
                Revision::Keep => kept = id,
                Revision::End => {
                    revised(Revised::Ended(resolved));
                    self.unlink(list, kept, id);
                }
                Revision::Move(realm) => {
                    revised(Revised::Left(resolved));
                    let binding = self.texts.share(group.binding);
                    let request = (group.request != NONE).then(|| self.texts.share(group.request));
                    let moved = Resolved {
                        rule: RuleId(group.rule),
                        scope: group.scope(),
                        binding: &binding,
                        realm: Some(&realm),
                        shared: Some(&binding),
                        is_behind: false,
                    };
                    self.leave_group(id);
                    self.subscriptions[id].position = 0;
                    let request = request.as_ref().map(ArcStr::as_str);
                    let style = group.traits.style();
                    let overtaken = self.join_group(families, id, moved, style, request);
                    debug_assert_eq!(overtaken, None, "no key holds a realm and a month");
                    revised(Revised::Joined(moved));
                    kept = id;
                }
            }
            id = next;
        }
    }

    /// Removes all of a session's subscriptions; `removed` as in [`SubscriptionIndex::unsubscribe`].
    pub fn remove_all(
        &mut self,
        list: &mut SubscriptionList,
        removed: &mut impl FnMut(Resolved<'_>),
    ) -> usize {
        self.unsubscribe(list, None, None, removed)
    }

    /// A session's subscriptions, in the order in which they were made. The same client binding for two accounts
    /// comes twice.
    pub fn subscriptions<'i>(
        &'i self,
        list: &SubscriptionList,
    ) -> impl Iterator<Item = Resolved<'i>> + use<'i> {
        let mut id = list.0;
        std::iter::from_fn(move || {
            (id != NONE).then(|| {
                let Subscription { group, next, .. } = self.subscriptions[id];
                id = next;
                self.resolved(&self.groups[group])
            })
        })
    }

    /// How many subscriptions a session has. Linear in them.
    #[must_use]
    pub fn len(&self, list: &SubscriptionList) -> usize {
        self.subscriptions(list).count()
    }

    /// Whether a session is subscribed to `binding` for `scope`. Linear in its subscriptions.
    #[must_use]
    pub fn contains(&self, list: &SubscriptionList, scope: Scope, binding: &str) -> bool {
        self.subscriptions(list)
            .any(|resolved| resolved.scope == scope && resolved.binding == binding)
    }

    /// Calls `visit` once for each group that wants the event: in the order of the families' rows, of their key
    /// forms, named words before wildcards, older groups before younger ones.
    ///
    /// Cost: the rows of the event's exchange, and one probe for each set of wildcards in use among a row's
    /// subscriptions; whatever the number of subscriptions.
    pub fn match_event(
        &mut self,
        families: &Families,
        exchange: &str,
        routing_key: &str,
        head: &EventHead,
        months: ActiveMonths,
        visit: &mut impl FnMut(Match<'_>),
    ) {
        let mut key_words = [""; WORDS_MAX];
        let Some(count) = words::split(routing_key, &mut key_words) else {
            return;
        };
        let key_words = &key_words[..count];
        let mut hashes = WordHashes {
            seed: &self.seed,
            known: 0,
            hashes: [0; WORDS_MAX],
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        for id in families.rules_on(exchange) {
            let Some(shapes) = self
                .shapes
                .get(usize::from(id.0))
                .filter(|shapes| !shapes.is_empty())
            else {
                continue;
            };
            let rule = families.rule(*id);
            scratch.found.clear();
            for form in rule.forms.iter().filter(|form| rule.fits(form, key_words)) {
                let qualifier = form.qualifier(key_words, head, months);
                let event = FormedEvent {
                    form,
                    words: key_words,
                    head,
                    qualifier,
                };
                let qualifier_hash = qualifier.map(|qualifier| self.qualifier_hash(&qualifier));
                let must_be_wild = rule
                    .unprescribed(form, key_words)
                    .map_or(0, |variable| 1u8 << variable);
                scratch.routing_key.clear();
                for Shape { bits, .. } in shapes {
                    let is_any = bits & ANY_SCOPE != 0;
                    if (qualifier.is_none() && !is_any) || must_be_wild & !bits != 0 {
                        continue;
                    }
                    let words = named_variables(rule, *bits)
                        .map(|variable| hashes.of(key_words, form.variable_position(variable)));
                    let hash = pattern_hash(*id, *bits, qualifier_hash, words);
                    let is_it = |group: &u32| {
                        let group = &self.groups[*group];
                        group.hash == hash
                            && group.rule == id.0
                            && group.shape == *bits
                            && self.wants(group, rule, &event)
                    };
                    let Some(ring) = self.patterns.find(spread(hash), is_it).copied() else {
                        continue;
                    };
                    if scratch.found.contains(&ring) {
                        continue;
                    }
                    scratch.found.push(ring);
                    if scratch.routing_key.is_empty() {
                        rule.canonical_key(&event, &mut scratch.routing_key);
                    }
                    scratch.subscription_key.clear();
                    rule.matched_key(&event, *bits, is_any, &mut scratch.subscription_key);
                    self.visit_ring(ring, rule, &scratch, visit);
                }
            }
        }
        self.scratch = scratch;
    }

    /// Begins a roll-over of the months: every group there is is behind now. None may be behind already: the walk of
    /// the roll-over before must be over.
    pub fn begin_roll_over(&mut self) {
        self.side = !self.side;
    }

    /// Brings the groups in the next `count` places from place `from` on to the months of now: `visit` sees one
    /// subscription of each whose AMQP bindings change with the month and that was behind, and how many there are of
    /// it; these acquire and release their [`Families::monthly_bindings`]. Returns the place to go on at, or `None`
    /// when nobody is behind any more. The walk begins at place 0; subscriptions may come and go between its steps.
    /// Linear in `count`.
    pub fn roll_over(
        &mut self,
        families: &Families,
        from: usize,
        count: usize,
        visit: &mut impl FnMut(Resolved<'_>, u32),
    ) -> Option<usize> {
        let to = from.saturating_add(count).min(self.groups.places());
        for id in from..to {
            let id = to_u32(id);
            let group = self.groups[id];
            if group.next_vacant().is_some() || group.traits.side() == self.side {
                continue;
            }
            let resolved = self.resolved(&group);
            if families.follows_the_month(&resolved) {
                visit(resolved, to_u32(self.members_of(&group).len()));
            }
            self.groups[id].traits = group.traits.on(self.side);
        }
        (to < self.groups.places()).then_some(to)
    }

    /// Places that a walk over all groups goes through: at most what there once were of them.
    #[must_use]
    pub fn group_places(&self) -> usize {
        self.groups.places()
    }

    /// Gauges.
    #[must_use]
    pub fn counts(&self) -> IndexCounts {
        IndexCounts {
            subscriptions: self.subscriptions.len(),
            groups: self.groups.len(),
            patterns: self.patterns.len(),
            texts: self.texts.len(),
        }
    }

    /// Bytes allocated. Linear in the groups that have several members.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let places = self
            .member_lists
            .iter()
            .map(|list| list.places.capacity() * size_of::<u32>() + 16);
        self.subscriptions.heap_bytes()
            + self.groups.heap_bytes()
            + self.member_lists.heap_bytes()
            + places.sum::<usize>()
            + self.texts.heap_bytes()
            + self.patterns.allocation_size()
            + self.others.allocation_size()
    }

    fn resolved(&self, group: &Group) -> Resolved<'_> {
        Resolved {
            rule: RuleId(group.rule),
            scope: group.scope(),
            binding: self.texts.text(group.binding),
            realm: self.text(group.realm),
            shared: None,
            is_behind: group.traits.side() != self.side,
        }
    }

    fn text(&self, id: u32) -> Option<&str> {
        (id != NONE).then(|| self.texts.text(id))
    }

    /// The members of a group that a match has just named.
    #[must_use]
    pub fn members(&self, group: GroupId) -> Members<'_> {
        self.members_of(&self.groups[group.0])
    }

    fn members_of<'m>(&'m self, group: &'m Group) -> Members<'m> {
        let (one, places, left) = match group.members.get() {
            MembersOf::One(id) => (Some(id), &[][..], 1),
            MembersOf::Many(list) => {
                let list = &self.member_lists[list];
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

    fn visit_ring(
        &self,
        ring: u32,
        rule: &Rule,
        scratch: &Scratch,
        visit: &mut impl FnMut(Match<'_>),
    ) {
        let mut id = ring;
        loop {
            let group = &self.groups[id];
            visit(Match {
                group: GroupId(id),
                rule: RuleId(group.rule),
                scope: group.scope(),
                style: group.traits.style(),
                subscribed_key: self.texts.text(group.binding),
                subscription_key: &scratch.subscription_key,
                routing_key: &scratch.routing_key,
                request_id: self.text(group.request),
                name_suffixed_by_type: rule.name_with_type,
            });
            id = group.next;
            if id == ring {
                return;
            }
        }
    }

    /// The exact comparison behind a probe: does this group's pattern, of the shape that was probed, want the
    /// event?
    fn wants(&self, group: &Group, rule: &Rule, event: &FormedEvent<'_>) -> bool {
        let is_qualified = group.shape & ANY_SCOPE != 0
            || match event.qualifier {
                Some(Qualifier::Account(account)) => group.account == *account.bytes(),
                Some(Qualifier::Realm(word)) => self
                    .text(group.realm)
                    .is_some_and(|realm| words::is_escaped_form(realm, word)),
                Some(Qualifier::None) => true,
                None => false,
            };
        let mut named = named_variables(rule, group.shape).peekable();
        if !is_qualified || named.peek().is_none() {
            return is_qualified;
        }
        let variables = rule
            .variables(self.texts.text(group.binding))
            .expect("it was resolved under this rule");
        named.all(|variable| {
            rule.is_key_word(
                variable,
                variables[variable],
                event.words[event.form.variable_position(variable)],
            )
        })
    }

    fn qualifier_hash(&self, qualifier: &Qualifier<'_>) -> u64 {
        match qualifier {
            Qualifier::Account(account) => self.seed.hash_one(account.bytes()),
            Qualifier::Realm(word) => self.seed.hash_one(word),
            Qualifier::None => 0,
        }
    }

    /// Makes the subscription `id` the last member of its group, which is made when it is not there. Returns how many
    /// others a group has that was behind; it is so no longer.
    fn join_group(
        &mut self,
        families: &Families,
        id: u32,
        resolved: Resolved<'_>,
        style: Style,
        request_id: Option<&str>,
    ) -> Option<u32> {
        let rule = families.rule(resolved.rule);
        let hash_and_shape = self.pattern_of(families, &resolved);
        let mut intern =
            |text: Option<&str>| text.map_or(NONE, |text| self.texts.intern(text, None));
        let wanted = Group {
            hash: hash_and_shape.0,
            account: match resolved.scope {
                Scope::One(account) => *account.bytes(),
                Scope::Any => [0; 16],
            },
            realm: intern(resolved.realm),
            request: intern(request_id),
            binding: self.texts.intern(resolved.binding, resolved.shared),
            next: NONE,
            previous: NONE,
            members: GroupMembers::one(id),
            rule: resolved.rule.0,
            shape: hash_and_shape.1,
            traits: Traits::new(style, self.side),
        };
        let has_account = rule.qualification == Qualification::Account;
        let groups = &self.groups;
        let is_pattern = |id: &u32| {
            let group = &groups[*id];
            group.has_pattern_of(&wanted) && (!has_account || group.account == wanted.account)
        };
        let ring = self.patterns.find(spread(wanted.hash), is_pattern).copied();
        let found = ring.and_then(|head| {
            if groups[head].is_same(&wanted) {
                return Some(head);
            }
            self.others
                .find(wanted.full_hash(), |id| groups[*id].is_same(&wanted))
                .copied()
        });
        let mut overtaken = None;
        let group = match found {
            Some(group) => {
                self.release_texts(&wanted);
                let is_behind = self.groups[group].traits.side() != self.side;
                if is_behind && families.follows_the_month(&resolved) {
                    overtaken = Some(to_u32(self.members_of(&self.groups[group]).len()));
                    self.groups[group].traits = wanted.traits;
                }
                self.push_member(group, id);
                group
            }
            None => self.add_group(wanted, ring),
        };
        self.subscriptions[id].group = group;
        overtaken
    }

    fn pattern_of(&self, families: &Families, resolved: &Resolved<'_>) -> (u32, u8) {
        let rule = families.rule(resolved.rule);
        let variables = families.variables(resolved);
        let escaped_hash = |word: &str| {
            let mut escaped = String::with_capacity(word.len());
            words::escape_into(word, &mut escaped);
            self.seed.hash_one(&*escaped)
        };
        let any = if resolved.scope == Scope::Any {
            ANY_SCOPE
        } else {
            0
        };
        let shape = rule.wildcards(&variables) | any;
        let qualifier_hash = match (rule.qualification, resolved.scope) {
            (_, Scope::Any) => None,
            (Qualification::Account, Scope::One(account)) => {
                Some(self.qualifier_hash(&Qualifier::Account(account)))
            }
            (Qualification::Realm, Scope::One(_)) => resolved.realm.map(escaped_hash),
            (Qualification::None, Scope::One(_)) => Some(self.qualifier_hash(&Qualifier::None)),
        };
        let words = named_variables(rule, shape).map(|variable| {
            let mut word = String::with_capacity(variables[variable].len());
            rule.push_key_word(variable, variables[variable], &mut word);
            self.seed.hash_one(&*word)
        });
        (
            pattern_hash(resolved.rule, shape, qualifier_hash, words),
            shape,
        )
    }

    /// Adds a group at the end of the ring whose head is given, or as the head of a new one.
    fn add_group(&mut self, group: Group, ring: Option<u32>) -> u32 {
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
    fn remove_group(&mut self, id: u32) {
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

    fn release_texts(&mut self, group: &Group) {
        for text in [group.binding, group.realm, group.request] {
            if text != NONE {
                self.texts.release(text);
            }
        }
    }

    fn count_shape(&mut self, group: &Group) {
        let rule = usize::from(group.rule);
        if self.shapes.len() <= rule {
            self.shapes.resize_with(rule + 1, Vec::new);
        }
        let shapes = &mut self.shapes[rule];
        match shapes.binary_search_by_key(&group.shape, |shape| shape.bits) {
            Ok(at) => shapes[at].patterns += 1,
            Err(at) => shapes.insert(
                at,
                Shape {
                    bits: group.shape,
                    patterns: 1,
                },
            ),
        }
    }

    fn uncount_shape(&mut self, group: &Group) {
        let shapes = &mut self.shapes[usize::from(group.rule)];
        let at = shapes
            .binary_search_by_key(&group.shape, |shape| shape.bits)
            .expect("it was counted");
        shapes[at].patterns -= 1;
        if shapes[at].patterns == 0 {
            shapes.remove(at);
        }
    }

    fn push_member(&mut self, group: u32, id: u32) {
        let list = match self.groups[group].members.get() {
            MembersOf::Many(list) => list,
            MembersOf::One(first) => {
                let list = self.member_lists.insert(MemberList {
                    places: vec![first],
                    live: 1,
                });
                self.groups[group].members = GroupMembers::many(list);
                list
            }
        };
        let list = &mut self.member_lists[list];
        self.subscriptions[id].position = to_u32(list.places.len());
        list.places.push(id);
        list.live += 1;
    }

    fn leave_group(&mut self, id: u32) {
        let Subscription {
            group,
            position: at,
            ..
        } = self.subscriptions[id];
        let list_id = match self.groups[group].members.get() {
            MembersOf::One(_) => return self.remove_group(group),
            MembersOf::Many(list) => list,
        };
        let list = &mut self.member_lists[list_id];
        list.places[at as usize] = NONE;
        list.live -= 1;
        if list.live == 1 {
            let last = list
                .places
                .iter()
                .copied()
                .find(|id| *id != NONE)
                .expect("one is live");
            self.member_lists.remove(list_id);
            self.groups[group].members = GroupMembers::one(last);
            self.subscriptions[last].position = 0;
        } else if (list.live as usize) * 2 < list.places.len() {
            list.places.retain(|id| *id != NONE);
            list.places.shrink_to(list.places.len() * 5 / 4);
            for (at, id) in list.places.iter().enumerate() {
                self.subscriptions[*id].position = to_u32(at);
            }
        }
    }
}

fn remove_from(table: &mut HashTable<u32>, hash: u64, id: u32) {
    table
        .find_entry(hash, |other| *other == id)
        .expect("every group is in a table")
        .remove();
}

const _: () = assert!(size_of::<Subscription>() == 16 && size_of::<Group>() == 48);

#[cfg(test)]
mod tests;
