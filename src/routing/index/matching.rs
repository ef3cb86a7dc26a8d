//! The way from an event to the groups that want it.
//!
//! ```text
//! event -> rules of its exchange -> key forms it fits -> wildcard shapes in use -> one probe each -> ring
//! ```
//!
//! Invariant: a probe's hit is compared exactly, the bytes of the account and the words, so a collision of hashes
//! delivers nothing to a stranger.

use super::group::Group;
use super::groups::{Groups, Shape};
use super::pattern::{ANY_SCOPE, named_variables, pattern_hash};
use crate::account::{AccountId, Scope};
use crate::event::EventHead;
use crate::event::Style;
use crate::routing::families::{Families, FormedEvent, Rule, RuleId};
use crate::routing::month::ActiveMonths;
use crate::routing::words::{self, WORDS_MAX};

/// Names a group until the next change of the index. After that, a match has to name it anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupId(pub(super) u32);

/// One group that wants an event.
#[derive(Clone, Debug)]
pub struct Match<'m> {
    /// The group's name, for [`SubscriptionIndex::members`](super::SubscriptionIndex::members).
    pub group: GroupId,
    /// The family's row.
    pub rule: RuleId,
    /// The account that the members subscribed for.
    pub scope: Scope,
    /// The members' event style.
    pub style: Style,
    /// The client binding.
    pub subscribed_key: &'m str,
    /// The canonical, account-qualified pattern that the event was found by.
    pub subscription_key: &'m str,
    /// The event's canonical routing key.
    pub routing_key: &'m str,
    /// In style piston the event's name is `Event-Name`, `_` and `Type` (PROTOCOL 5).
    pub name_suffixed_by_type: bool,
}

/// Buffers that matching uses again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    routing_key: String,
    subscription_key: String,
    /// The rings of the current rule that the event has found.
    found: Vec<u32>,
}

/// Finds the groups that want an event.
pub(super) struct Matcher<'i> {
    pub(super) groups: &'i Groups,
    pub(super) scratch: &'i mut Scratch,
}

impl Matcher<'_> {
    /// [`SubscriptionIndex::match_event`](super::SubscriptionIndex::match_event).
    pub(super) fn match_event(
        &mut self,
        families: &Families,
        exchange: &str,
        routing_key: &str,
        head: &EventHead,
        months: ActiveMonths,
        visit: &mut impl FnMut(Match<'_>),
    ) {
        let Self { groups, scratch } = self;
        let mut key_words = [""; WORDS_MAX];
        let Some(key_words) = words::split(routing_key, &mut key_words) else {
            return;
        };
        let mut hashes = groups.hasher.words(key_words);
        for id in families.rules_on(exchange) {
            let shapes = groups.shapes(*id);
            if shapes.is_empty() {
                continue;
            }
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
                let qualifier_hash = qualifier.map(|qualifier| groups.hasher.qualifier(&qualifier));
                let must_be_wild = rule
                    .unprescribed(&event)
                    .map_or(0, |variable| 1u8 << variable);
                scratch.routing_key.clear();
                for Shape { bits, .. } in shapes {
                    let is_any = bits & ANY_SCOPE != 0;
                    if (qualifier.is_none() && !is_any) || must_be_wild & !bits != 0 {
                        continue;
                    }
                    let words = named_variables(rule, *bits)
                        .map(|variable| hashes.of(form.variable_position(variable)));
                    let hash = pattern_hash(*id, *bits, qualifier_hash, words);
                    let is_it = |group: &Group| {
                        group.hash == hash
                            && group.rule == id.0
                            && group.shape == *bits
                            && wants(groups, group, rule, &event)
                    };
                    let Some(ring) = groups.ring(hash, is_it) else {
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
                    visit_ring(groups, ring, rule, scratch, visit);
                }
            }
        }
    }
}

fn visit_ring(
    groups: &Groups,
    ring: u32,
    rule: &Rule,
    scratch: &Scratch,
    visit: &mut impl FnMut(Match<'_>),
) {
    let mut id = ring;
    loop {
        let group = &groups[id];
        visit(Match {
            group: GroupId(id),
            rule: RuleId(group.rule),
            scope: group.scope(),
            style: group.traits.style(),
            subscribed_key: groups.texts.text(group.binding),
            subscription_key: &scratch.subscription_key,
            routing_key: &scratch.routing_key,
            name_suffixed_by_type: rule.name_with_type,
        });
        id = group.next;
        if id == ring {
            return;
        }
    }
}

/// Whether the pattern of a group, whose shape was probed for, wants the event: the exact comparison behind a probe.
pub(super) fn wants(groups: &Groups, group: &Group, rule: &Rule, event: &FormedEvent<'_>) -> bool {
    let account = AccountId::from_bytes(group.account);
    let is_qualified = group.shape & ANY_SCOPE != 0
        || event
            .qualifier
            .is_some_and(|qualifier| qualifier.admits(account, || groups.text(group.realm)));
    let mut named = named_variables(rule, group.shape).peekable();
    if !is_qualified || named.peek().is_none() {
        return is_qualified;
    }
    let variables = rule
        .variables(groups.texts.text(group.binding))
        .expect("it was resolved under this rule");
    named.all(|variable| rule.is_key_word(variable, variables[variable], event.variable(variable)))
}
