//! What an event finds, in which order, and what subscriptions cost. `tests/integration/routing.rs` compares the index
//! with a reference matcher.

use super::matching::wants;
use super::*;
use crate::account::AccountId;
use crate::routing::families::{FamilyOptions, FormedEvent, Rights};
use crate::routing::words::{self, WORDS_MAX};

const NOVEMBER: u64 = 1_795_425_948; // 2026-11
const REALM: &str = "sip.example.com";

fn account(number: u128) -> AccountId {
    AccountId::from_bytes(number.to_be_bytes())
}

struct Bench {
    families: Families,
    index: SubscriptionIndex,
    months: ActiveMonths,
}

/// What a test wants to know of a match.
#[derive(Debug, PartialEq)]
struct Found {
    subscribed_key: String,
    subscription_key: String,
    routing_key: String,
    request_ids: Vec<Option<String>>,
    slots: Vec<u32>,
}

impl Bench {
    fn new() -> Self {
        let families = Families::new(&FamilyOptions::default()).expect("the platform's families");
        Self {
            families,
            index: SubscriptionIndex::new(),
            months: ActiveMonths::at(NOVEMBER),
        }
    }

    fn subscribe(
        &mut self,
        list: &mut SubscriptionList,
        slot: u32,
        scope: Scope,
        binding: &str,
    ) -> Subscribed {
        self.subscribe_as(list, slot, scope, binding, Style::Piston, None)
    }

    fn subscribe_as(
        &mut self,
        list: &mut SubscriptionList,
        slot: u32,
        scope: Scope,
        binding: &str,
        style: Style,
        request_id: Option<&str>,
    ) -> Subscribed {
        let rights = Rights {
            superduper: scope == Scope::Any,
            realm: Some(REALM),
        };
        let resolved = self
            .families
            .resolve(binding, scope, rights)
            .expect(binding);
        self.index
            .subscribe(&self.families, list, slot, resolved, style, request_id)
    }

    fn find(&mut self, exchange: &str, key: &str, head: &EventHead) -> Vec<Found> {
        let mut groups = Vec::new();
        let mut found = Vec::new();
        self.index.match_event(
            &self.families,
            exchange,
            key,
            head,
            self.months,
            &mut |matched| {
                groups.push(matched.group);
                found.push(Found {
                    subscribed_key: matched.subscribed_key.to_owned(),
                    subscription_key: matched.subscription_key.to_owned(),
                    routing_key: matched.routing_key.to_owned(),
                    request_ids: Vec::new(),
                    slots: Vec::new(),
                });
            },
        );
        for (group, found) in groups.into_iter().zip(&mut found) {
            let members = self.index.members(group);
            assert_eq!(members.len(), members.clone().count());
            (found.slots, found.request_ids) = members
                .map(|member| (member.slot, member.request_id.map(str::to_owned)))
                .unzip();
        }
        found
    }

    fn slots(&mut self, exchange: &str, key: &str, head: &EventHead) -> Vec<u32> {
        self.find(exchange, key, head)
            .into_iter()
            .flat_map(|found| found.slots)
            .collect()
    }
}

fn of(account: AccountId) -> EventHead {
    EventHead {
        account: Some(account),
        ..EventHead::default()
    }
}

#[test]
fn a_match_names_its_keys_in_every_family() {
    let a = account(0xa1);
    let hex = a.to_string();
    let db = "account%2F00%2F00%2F00000000000000000000000000a1";
    let conference = EventHead {
        event: Some("add member".into()),
        ..of(a)
    };
    let none = EventHead::default();
    let rows: Vec<(&str, &str, String, &EventHead, String, String)> = vec![
        (
            "call.*.c@1",
            "callevt",
            "call.PARK_PARKED.c%401".into(),
            &conference,
            format!("call.{hex}.*.c%401"),
            format!("call.{hex}.PARK_PARKED.c%401"),
        ),
        (
            "conference.event.C1.*",
            "conference",
            format!("conference.event.del.{hex}.C1.leg"),
            &none,
            format!("conference.event.*.{hex}.C1.*"),
            format!("conference.event.del.{hex}.C1.leg"),
        ),
        (
            "conference.event.C1.*",
            "conference",
            "conference.event.C1.leg".into(),
            &conference,
            format!("conference.event.*.{hex}.C1.*"),
            format!("conference.event.add+member.{hex}.C1.leg"),
        ),
        (
            "conference.event.del.C1.*",
            "conference",
            format!("conference.event.del.{hex}.C1.leg"),
            &none,
            format!("conference.event.del.{hex}.C1.*"),
            format!("conference.event.del.{hex}.C1.leg"),
        ),
        (
            "conference.command.C1",
            "conference",
            "conference.command.C1".into(),
            &none,
            "conference.command.C1".into(),
            "conference.command.C1".into(),
        ),
        (
            "fax.status.*",
            "faxes",
            format!("fax.status.{hex}.f1"),
            &none,
            format!("fax.status.{hex}.*"),
            format!("fax.status.{hex}.f1"),
        ),
        (
            "fax.object.*",
            "configuration",
            format!("doc_created.{db}-202611.fax.id"),
            &none,
            format!("*.{db}-202611.fax.*"),
            format!("doc_created.{db}-202611.fax.id"),
        ),
        (
            "object.*.user",
            "configuration",
            format!("doc_created.{db}.user.id"),
            &none,
            format!("*.{db}.user.*"),
            format!("doc_created.{db}.user.id"),
        ),
        (
            "object.doc_created.*",
            "configuration",
            format!("doc_created.{db}-202611.user.id"),
            &none,
            format!("doc_created.{db}-202611.*.*"),
            format!("doc_created.{db}-202611.user.id"),
        ),
        (
            "doc_created.*.user.id",
            "configuration",
            format!("doc_created.{db}.user.id"),
            &none,
            format!("doc_created.{db}.user.id"),
            format!("doc_created.{db}.user.id"),
        ),
        (
            "presence.dialog.c",
            "presence",
            "dialog.sip%2Eexample%2Ecom.c".into(),
            &none,
            "dialog.sip%2Eexample%2Ecom.c".into(),
            "dialog.sip%2Eexample%2Ecom.c".into(),
        ),
        (
            "registration.success",
            "registrar",
            "registration.success.sip%2Eexample%2Ecom.1001".into(),
            &none,
            "registration.success.sip%2Eexample%2Ecom.*".into(),
            "registration.success.sip%2Eexample%2Ecom.1001".into(),
        ),
    ];
    for (binding, exchange, key, head, subscription_key, routing_key) in rows {
        let mut bench = Bench::new();
        let mut list = SubscriptionList::default();
        bench.subscribe(&mut list, 7, Scope::One(a), binding);
        let expected = Found {
            subscribed_key: binding.into(),
            subscription_key,
            routing_key,
            request_ids: vec![None],
            slots: vec![7],
        };
        assert_eq!(
            bench.find(exchange, &key, head),
            [expected],
            "{binding} {key}"
        );
        assert_eq!(
            bench.find("elsewhere", &key, head),
            [],
            "{binding}: another exchange"
        );
        bench.index.remove_all(&mut list, &mut |_| {});
        assert_eq!(bench.find(exchange, &key, head), [], "{binding}: removed");
    }
}

#[test]
fn what_a_subscriptions_own_amqp_keys_do_not_bring_it_does_not_get() {
    let (a, b) = (account(0xa1), account(0xb2));
    let (hex, other) = (a.to_string(), b.to_string());
    let db = "account%2F00%2F00%2F00000000000000000000000000a1";
    let other_db = "account%2F00%2F00%2F00000000000000000000000000b2";
    let none = EventHead::default();
    let rows: Vec<(&str, &str, String, EventHead)> = vec![
        ("call.*.*", "callevt", "call.NOT_LISTED.c".into(), of(a)),
        ("call.*.*", "callevt", "call.PARK_PARKED.c".into(), of(b)),
        (
            "call.*.*",
            "callevt",
            "call.PARK_PARKED.c".into(),
            none.clone(),
        ),
        ("call.*.*", "callevt", "call.PARK_PARKED.c.d".into(), of(a)),
        (
            "call.*.c@1",
            "callevt",
            "call.PARK_PARKED.c@1".into(),
            of(a),
        ),
        (
            "conference.event.C1.*",
            "conference",
            "conference.event.C1.leg".into(),
            none.clone(),
        ),
        (
            "conference.event.C1.*",
            "conference",
            "conference.event.C1.leg".into(),
            of(b),
        ),
        (
            "conference.event.*.C1.*",
            "conference",
            "conference.event.C1.leg".into(),
            of(a),
        ),
        (
            "conference.event.C1.*",
            "conference",
            format!("conference.event.del.{other}.C1.leg"),
            of(a),
        ),
        (
            "fax.status.*",
            "faxes",
            format!("fax.status.{other}.f"),
            of(a),
        ),
        (
            "fax.status.*",
            "faxes",
            format!("fax.status.{}.f", hex.to_uppercase()),
            of(a),
        ),
        (
            "object.*.user",
            "configuration",
            format!("doc_created.{db}-202611.user.id"),
            of(a),
        ),
        (
            "object.*.user",
            "configuration",
            format!("doc_created.{other_db}.user.id"),
            of(a),
        ),
        (
            "object.*.fax",
            "configuration",
            format!("doc_created.{db}.fax.id"),
            of(a),
        ),
        (
            "object.*.fax",
            "configuration",
            format!("doc_created.{db}-202610.fax.id"),
            of(a),
        ),
        (
            "object.*.*",
            "configuration",
            format!("doc_created.{db}-202612.fax.id"),
            of(a),
        ),
        (
            "fax.object.*",
            "configuration",
            format!("doc_created.{db}.fax.id"),
            of(a),
        ),
        (
            "presence.dialog.*",
            "presence",
            "dialog.other.c".into(),
            of(a),
        ),
        (
            "presence.dialog.*",
            "presence",
            "update.sip%2Eexample%2Ecom.c".into(),
            of(a),
        ),
    ];
    for (binding, exchange, key, head) in rows {
        let mut bench = Bench::new();
        let mut list = SubscriptionList::default();
        bench.subscribe(&mut list, 7, Scope::One(a), binding);
        // Another's subscription brings the event, and must not spill it.
        let mut admin = SubscriptionList::default();
        let everywhere = binding.replace("conference.event.*.C1", "conference.event.C1");
        bench.subscribe(&mut admin, 8, Scope::Any, &everywhere);
        assert!(
            !bench.slots(exchange, &key, &head).contains(&7),
            "{binding} {key}"
        );
    }
}

#[test]
fn an_event_without_an_account_goes_to_those_who_see_every_account() {
    let mut bench = Bench::new();
    let (mut mine, mut all) = (SubscriptionList::default(), SubscriptionList::default());
    bench.subscribe(&mut mine, 1, Scope::One(account(1)), "call.PARK_PARKED.*");
    bench.subscribe(&mut all, 2, Scope::Any, "call.PARK_PARKED.*");
    let found = bench.find("callevt", "call.PARK_PARKED.c", &EventHead::default());
    assert_eq!(found.len(), 1);
    assert_eq!(
        (
            &*found[0].subscription_key,
            &*found[0].routing_key,
            &*found[0].slots
        ),
        ("call.*.PARK_PARKED.*", "call.*.PARK_PARKED.c", &[2][..])
    );
    assert_eq!(
        bench.slots("callevt", "call.PARK_PARKED.c", &of(account(1))),
        [1, 2]
    );
}

#[test]
fn both_database_forms_of_a_key_find_a_group_once() {
    let mut bench = Bench::new();
    let mut list = SubscriptionList::default();
    bench.subscribe(&mut list, 1, Scope::Any, "object.*.*");
    bench.subscribe(&mut list, 1, Scope::Any, "object.doc_created.user");
    let key = "doc_created.account%2F00%2F00%2F00000000000000000000000000a1.user.id";
    let found = bench.find("configuration", key, &EventHead::default());
    let keys: Vec<&str> = found.iter().map(|found| &*found.subscribed_key).collect();
    assert_eq!(keys, ["object.doc_created.user", "object.*.*"]);
}

#[test]
fn a_conference_without_an_account_is_seen_by_whoever_names_it() {
    let mut bench = Bench::new();
    let mut lists = [
        SubscriptionList::default(),
        SubscriptionList::default(),
        SubscriptionList::default(),
    ];
    for (slot, list) in (0..).zip(&mut lists[..2]) {
        bench.subscribe(
            list,
            slot,
            Scope::One(account(u128::from(slot))),
            "conference.command.C1",
        );
    }
    bench.subscribe(&mut lists[2], 2, Scope::Any, "conference.command.C1");
    assert_eq!(
        bench.slots("conference", "conference.command.C1", &EventHead::default()),
        [0, 1, 2]
    );
    bench.index.remove_all(&mut lists[0], &mut |_| {});
    assert_eq!(
        bench.slots("conference", "conference.command.C1", &EventHead::default()),
        [1, 2]
    );
}

#[test]
fn members_stay_in_the_order_of_subscription_through_removals() {
    let mut bench = Bench::new();
    let mut lists: Vec<SubscriptionList> = (0..1000).map(|_| SubscriptionList::default()).collect();
    for (slot, list) in (0..).zip(&mut lists) {
        bench.subscribe(list, slot, Scope::One(account(1)), "call.*.*");
    }
    let mut expected: Vec<u32> = (0..1000).collect();
    for step in [2, 3, 5, 7, 997] {
        for (slot, list) in (0u32..)
            .zip(&mut lists)
            .filter(|(slot, _)| slot % 11 != 1 && slot % step == 0)
        {
            bench.index.remove_all(list, &mut |_| {});
            expected.retain(|kept| *kept != slot);
        }
        assert_eq!(
            bench.slots("callevt", "call.PARK_PARKED.c", &of(account(1))),
            expected
        );
    }
}

#[test]
fn subscribing_again_changes_nothing_whatever_the_request_id() {
    let mut bench = Bench::new();
    let mut list = SubscriptionList::default();
    let one = Scope::One(account(1));
    let subscribe = |bench: &mut Bench, list: &mut _, request_id| {
        bench.subscribe_as(list, 0, one, "call.*.*", Style::Piston, request_id)
    };
    assert_eq!(
        subscribe(&mut bench, &mut list, Some("first")),
        Subscribed::New
    );
    assert_eq!(
        subscribe(&mut bench, &mut list, Some("second")),
        Subscribed::AlreadySubscribed
    );
    assert_eq!(
        subscribe(&mut bench, &mut list, None),
        Subscribed::AlreadySubscribed
    );
    let found = bench.find("callevt", "call.PARK_PARKED.c", &of(account(1)));
    assert_eq!(
        found
            .iter()
            .map(|found| &*found.request_ids)
            .collect::<Vec<_>>(),
        [[Some("first".to_owned())]]
    );
    assert_eq!(
        bench.subscribe(&mut list, 0, Scope::One(account(2)), "call.*.*"),
        Subscribed::New
    );
    assert_eq!(bench.index.len(&list), 2);
}

#[test]
fn unsubscribing_takes_what_was_named_in_order_and_leaves_the_rest() {
    let (one, two) = (Scope::One(account(1)), Scope::One(account(2)));
    let mut bench = Bench::new();
    let mut list = SubscriptionList::default();
    for (scope, binding) in [
        (one, "call.*.*"),
        (two, "call.*.*"),
        (one, "fax.status.*"),
        (two, "object.*.*"),
    ] {
        bench.subscribe(&mut list, 0, scope, binding);
    }
    let taken = |bench: &mut Bench, list: &mut _, scope, binding: Option<&str>| {
        let mut removed = Vec::new();
        let count = bench.index.unsubscribe(list, scope, binding, &mut |it| {
            removed.push(it.binding().to_owned())
        });
        assert_eq!(count, removed.len());
        removed
    };
    assert_eq!(
        taken(&mut bench, &mut list, Some(one), Some("call.PARK_PARKED.*")),
        [""; 0]
    );
    assert_eq!(
        taken(&mut bench, &mut list, Some(one), Some("call.*.*")),
        ["call.*.*"]
    );
    let left = bench.index.subscriptions(&list);
    let scopes: Vec<Scope> = left
        .filter(|resolved| resolved.binding == "call.*.*")
        .map(|resolved| resolved.scope)
        .collect();
    assert_eq!(scopes, [two]);
    assert_eq!(
        taken(&mut bench, &mut list, Some(two), None),
        ["call.*.*", "object.*.*"]
    );
    assert_eq!(
        bench
            .index
            .subscriptions(&list)
            .map(|it| it.binding())
            .collect::<Vec<_>>(),
        ["fax.status.*"]
    );
    bench.subscribe(&mut list, 0, two, "call.*.*");
    assert_eq!(
        taken(&mut bench, &mut list, None, None),
        ["fax.status.*", "call.*.*"]
    );
    assert!(list.is_empty());
    assert_eq!(bench.index.counts(), IndexCounts::default());
}

#[test]
fn many_groups_of_one_pattern_come_and_go_in_their_order() {
    let mut bench = Bench::new();
    let mut lists: Vec<SubscriptionList> = (0..5000).map(|_| SubscriptionList::default()).collect();
    for (slot, list) in (0u32..).zip(&mut lists) {
        let style = [Style::Piston, Style::Kazoo][slot as usize % 2];
        // Nothing in its key tells the account, so the groups of all accounts have one pattern.
        let scope = Scope::One(account(u128::from(slot / 4)));
        bench.subscribe_as(list, slot, scope, "conference.command.c", style, None);
    }
    assert_eq!(
        bench.index.counts(),
        IndexCounts {
            subscriptions: 5000,
            groups: 2500,
            patterns: 1,
            texts: 1,
            request_ids: 0,
        }
    );
    for list in lists.iter_mut().take(4990) {
        bench.index.remove_all(list, &mut |_| {});
    }
    let slots = bench.slots("conference", "conference.command.c", &EventHead::default());
    assert_eq!(
        slots,
        [4990, 4991, 4992, 4994, 4993, 4995, 4996, 4998, 4997, 4999]
    );
    for list in &mut lists {
        bench.index.remove_all(list, &mut |_| {});
    }
    assert_eq!(bench.index.counts(), IndexCounts::default());
}

#[test]
fn members_with_and_without_request_ids_share_a_group_and_keep_their_order_as_they_come_and_go() {
    let mut bench = Bench::new();
    let mut lists: Vec<SubscriptionList> = (0..1000).map(|_| SubscriptionList::default()).collect();
    let id_of = |slot: u32| (!slot.is_multiple_of(3)).then(|| format!("\"{}", slot / 2));
    let one = Scope::One(account(1));
    let subscribe = |bench: &mut Bench, lists: &mut [SubscriptionList], slot: u32| {
        let (list, id) = (&mut lists[slot as usize], id_of(slot));
        bench.subscribe_as(list, slot, one, "call.*.*", Style::Piston, id.as_deref())
    };
    let mut rng = fastrand::Rng::with_seed(7);
    let mut expected: Vec<u32> = Vec::new();
    for step in 0..4000 {
        // It grows to many, shrinks to few, and grows again.
        let slot = rng.u32(..1000);
        if let Some(at) = expected.iter().position(|other| *other == slot) {
            if (step / 1000) % 2 == 1 {
                expected.remove(at);
                bench
                    .index
                    .remove_all(&mut lists[slot as usize], &mut |_| {});
            }
        } else if (step / 1000) % 2 == 0 {
            expected.push(slot);
            subscribe(&mut bench, &mut lists, slot);
        }
        let found = bench.find("callevt", "call.PARK_PARKED.c", &of(account(1)));
        assert_eq!(found.len(), usize::from(!expected.is_empty()));
        let Some(found) = found.first().filter(|_| step % 10 == 0) else {
            continue;
        };
        assert_eq!(found.slots, expected, "step {step}");
        let as_json = |id: String| id.replace('"', "\\\"");
        let ids = expected.iter().map(|slot| id_of(*slot).map(as_json));
        assert_eq!(found.request_ids, ids.collect::<Vec<_>>(), "step {step}");
    }
    for list in &mut lists {
        bench.index.remove_all(list, &mut |_| {});
    }
    assert_eq!(bench.index.counts(), IndexCounts::default());
}

#[test]
fn a_roll_over_sees_every_group_that_follows_the_month_once() {
    let mut bench = Bench::new();
    let mut lists: Vec<SubscriptionList> = (0..6).map(|_| SubscriptionList::default()).collect();
    for (slot, list) in (0..).zip(&mut lists) {
        bench.subscribe(list, slot, Scope::One(account(1)), "object.*.*");
    }
    bench.subscribe(&mut lists[0], 0, Scope::One(account(2)), "fax.object.*");
    bench.subscribe(&mut lists[1], 1, Scope::One(account(2)), "call.*.*");
    bench.subscribe(&mut lists[1], 1, Scope::Any, "fax.object.*");
    bench.index.remove_all(&mut lists[5], &mut |_| {});
    assert_eq!(
        rolled(&mut bench, 0, 100),
        (vec![], None),
        "nobody is behind"
    );
    bench.index.begin_roll_over();
    let expected = [("fax.object.*".to_owned(), 1), ("object.*.*".to_owned(), 5)];
    assert_eq!(rolled(&mut bench, 0, 100), (expected.to_vec(), None));
    assert_eq!(
        rolled(&mut bench, 0, 100),
        (vec![], None),
        "nobody is behind"
    );
}

fn rolled(bench: &mut Bench, from: usize, count: usize) -> (Vec<(String, u32)>, Option<usize>) {
    let mut seen = Vec::new();
    let Bench {
        index, families, ..
    } = bench;
    let next = index.roll_over(families, from, count, &mut |it, users| {
        assert!(it.is_behind);
        seen.push((it.binding().to_owned(), users));
    });
    seen.sort();
    (seen, next)
}

#[test]
fn a_roll_over_walks_in_steps_and_who_subscribes_takes_its_group_along() {
    let mut bench = Bench::new();
    let mut lists: Vec<SubscriptionList> = (0..10).map(|_| SubscriptionList::default()).collect();
    for (slot, list) in (0..9).zip(&mut lists) {
        let binding = format!(
            "object.doc_created.{}",
            ["user", "fax"][usize::from(slot < 5)]
        );
        bench.subscribe(
            list,
            slot,
            Scope::One(account(u128::from(slot % 5))),
            &binding,
        );
    }
    bench.index.begin_roll_over();
    let (first, next) = rolled(&mut bench, 0, 2);
    assert_eq!((first.len(), next), (2, Some(2)));
    let of = |bench: &Bench, list: &SubscriptionList| {
        let behind = bench.index.subscriptions(list).map(|one| one.is_behind);
        behind.collect::<Vec<_>>()
    };
    assert_eq!(
        (of(&bench, &lists[1]), of(&bench, &lists[2])),
        (vec![false], vec![true])
    );
    let join = |bench: &mut Bench, list: &mut SubscriptionList, number| {
        let scope = Scope::One(account(number));
        bench.subscribe(list, 9, scope, "object.doc_created.fax")
    };
    assert_eq!(
        join(&mut bench, &mut lists[9], 1),
        Subscribed::New,
        "not behind"
    );
    assert_eq!(join(&mut bench, &mut lists[9], 2), Subscribed::Overtook(1));
    assert_eq!(
        join(&mut bench, &mut lists[9], 2),
        Subscribed::AlreadySubscribed
    );
    assert_eq!(
        join(&mut bench, &mut lists[9], 7),
        Subscribed::New,
        "a group of its own"
    );
    assert_eq!(of(&bench, &lists[2]), [false]);
    assert_eq!(of(&bench, &lists[9]), [false; 3]);
    let (rest, next) = rolled(&mut bench, 2, 100);
    assert_eq!((rest.len(), next), (6, None), "{rest:?}");
}

#[test]
fn subscriptions_cost_what_the_design_allows_and_give_it_back() {
    const SESSIONS: u32 = 100_000;
    for (what, is_own, bytes_max) in [("shared", false, 65), ("own", true, 150)] {
        let mut bench = Bench::new();
        let mut lists: Vec<SubscriptionList> =
            (0..SESSIONS).map(|_| SubscriptionList::default()).collect();
        for (slot, list) in (0..).zip(&mut lists) {
            let (scope, binding) = if is_own {
                (
                    Scope::One(account(u128::from(slot))),
                    format!("call.CHANNEL_CREATE.id{slot}"),
                )
            } else {
                (Scope::One(account(1)), "call.CHANNEL_CREATE.*".to_owned())
            };
            bench.subscribe(list, slot, scope, &binding);
        }
        let full = bench.index.heap_bytes();
        let each = full / SESSIONS as usize + size_of::<SubscriptionList>();
        println!("{what}: {each} bytes a subscription");
        assert!(each <= bytes_max, "{what}: {each} bytes a subscription");
        for list in &mut lists {
            bench.index.remove_all(list, &mut |_| {});
        }
        assert!(
            bench.index.heap_bytes() < full / 50,
            "{what}: {} bytes stay",
            bench.index.heap_bytes()
        );
    }
}

/// The hash decides where to look and never whether it matches: the comparison alone keeps accounts, realms and
/// words apart, as it must when two patterns have one hash.
#[test]
fn a_hit_of_equal_hash_is_refused_for_another_account_realm_or_word() {
    for (binding, exchange, own, others) in [
        (
            "call.PARK_PARKED.c@1",
            "callevt",
            ("call.PARK_PARKED.c%401", 1),
            vec![
                ("call.PARK_PARKED.c%401", 2),
                ("call.PARK_PARKED.c%402", 1),
                ("call.CHANNEL_CREATE.c%401", 1),
            ],
        ),
        (
            "presence.dialog.*",
            "presence",
            ("dialog.sip%2Eexample%2Ecom.c", 2),
            vec![("dialog.sip%2Eexample%2Enet.c", 1)],
        ),
    ] {
        let mut bench = Bench::new();
        let mut list = SubscriptionList::default();
        bench.subscribe(&mut list, 0, Scope::One(account(1)), binding);
        let group = bench.index.groups[bench.index.members.subscriptions[list.first()].group];
        let wants = |(key, number): (&str, u128)| {
            let mut key_words = [""; WORDS_MAX];
            let key_words = words::split(key, &mut key_words).expect("few words");
            let head = of(account(number));
            assert!(
                bench
                    .families
                    .rules_on(exchange)
                    .contains(&RuleId(group.rule))
            );
            let rule = bench.families.rule(RuleId(group.rule));
            let form = &rule.forms[0];
            assert!(rule.fits(form, key_words));
            let qualifier = form.qualifier(key_words, &head, bench.months);
            let event = FormedEvent {
                form,
                words: key_words,
                head: &head,
                qualifier,
            };
            wants(&bench.index.groups, &group, rule, &event)
        };
        assert!(wants(own), "{binding}");
        for other in others {
            assert!(!wants(other), "{binding} {other:?}");
        }
    }
}
