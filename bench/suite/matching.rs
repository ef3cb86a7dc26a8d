//! What the subscription index costs as it grows: time of a match and of a subscribe, bytes of a subscription.
//!
//! Every subscription is of an account of its own, so an event has exactly one subscriber to be found among all. The
//! accounts are asked for in an order without pattern: a cache helps as little as it can.

use std::hint::black_box;
use std::time::Instant;

use blackhole::account::{AccountId, Scope};
use blackhole::event::{EventHead, Style};
use blackhole::routing::families::{Families, FamilyOptions, Rights};
use blackhole::routing::index::{SubscriptionIndex, SubscriptionList};
use blackhole::routing::month::ActiveMonths;
use serde_json::{Value, json};

use crate::ours::EXCHANGE;
use crate::statistics::median;
use crate::table::{Table, number};

/// Events of one measurement, and measurements of one figure.
const EVENTS: u32 = 100_000;
const REPEATS: usize = 5;

/// 2026-12-23: call bindings have no month, so any time does.
const NOW: u64 = 1_798_000_000;

/// How the subscriptions differ beside their accounts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bindings {
    /// `call.CHANNEL_CREATE.*`, each for its account.
    Wildcard,
    /// A call id of its own.
    Exact,
}

impl Bindings {
    fn title(self) -> &'static str {
        match self {
            Self::Wildcard => "any call of an account",
            Self::Exact => "one call of an account",
        }
    }

    fn binding(self, number: u32) -> String {
        match self {
            Self::Wildcard => "call.CHANNEL_CREATE.*".into(),
            Self::Exact => format!("call.CHANNEL_CREATE.id{number}"),
        }
    }
}

/// Measures each number of subscriptions, with both kinds of bindings.
pub(crate) fn measure(sizes: &[u32]) -> Vec<Value> {
    let mut rows = Vec::new();
    for bindings in [Bindings::Wildcard, Bindings::Exact] {
        rows.extend(sizes.iter().map(|&size| measure_one(bindings, size)));
    }
    rows
}

fn measure_one(bindings: Bindings, size: u32) -> Value {
    let families =
        Families::new(&FamilyOptions::default()).expect("the built-in families are good");
    let months = ActiveMonths::at(NOW);
    let mut index = SubscriptionIndex::new();
    let mut lists = Vec::with_capacity(size as usize);
    let names: Vec<_> = (0..size).map(|number| bindings.binding(number)).collect();
    let started = Instant::now();
    for (number, binding) in (0..size).zip(&names) {
        let resolved = families
            .resolve(binding, Scope::One(account(number)), Rights::default())
            .expect("a good binding");
        let mut list = SubscriptionList::default();
        index.subscribe(&families, &mut list, number, resolved, Style::Piston, None);
        lists.push(list);
    }
    let subscribe_ns = started.elapsed().as_secs_f64() * 1e9 / f64::from(size);
    let bytes = index.heap_bytes() as f64 / f64::from(size) + size_of::<SubscriptionList>() as f64;
    let events: Vec<(String, EventHead)> = (0..EVENTS)
        .map(|turn| {
            let number = turn.wrapping_mul(2_654_435_761) % size;
            let head = EventHead {
                account: Some(account(number)),
                ..EventHead::default()
            };
            (format!("call.CHANNEL_CREATE.id{number}"), head)
        })
        .collect();
    let mut members = 0;
    let mut groups = Vec::new();
    let mut match_ns: Vec<f64> = Vec::new();
    for _ in 0..REPEATS {
        let started = Instant::now();
        for (key, head) in &events {
            index.match_event(&families, EXCHANGE, key, head, months, &mut |matched| {
                groups.push(black_box(matched.group));
            });
            for group in groups.drain(..) {
                members += black_box(index.members(group).len());
            }
        }
        match_ns.push(started.elapsed().as_secs_f64() * 1e9 / f64::from(EVENTS));
    }
    assert_eq!(
        members,
        REPEATS * events.len(),
        "each event has one subscriber"
    );
    let started = Instant::now();
    for list in &mut lists {
        index.remove_all(list, &mut |_| {});
    }
    json!({
        "bindings": bindings.title(),
        "subscriptions": size,
        "match_ns": median(&match_ns),
        "subscribe_ns": subscribe_ns,
        "remove_ns": started.elapsed().as_secs_f64() * 1e9 / f64::from(size),
        "bytes_per_subscription": bytes,
    })
}

/// Ids that differ in their high bytes too, as real ones do.
fn account(number: u32) -> AccountId {
    AccountId::from_bytes((u128::from(number) * 0x9E37_79B9_7F4A_7C15_0000_0001).to_be_bytes())
}

/// Prints the rows.
pub(crate) fn print(rows: &[Value]) {
    let mut table = Table::new(&[
        "match",
        "subscriptions",
        "ns an event",
        "ns a subscribe",
        "ns a removal",
        "bytes each",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        table.row(vec![
            row["bindings"].as_str().unwrap_or("").to_owned(),
            row["subscriptions"].to_string(),
            number(figure("match_ns"), 0),
            number(figure("subscribe_ns"), 0),
            number(figure("remove_ns"), 0),
            number(figure("bytes_per_subscription"), 0),
        ]);
    }
    table.note("One of the subscriptions wants the event; accounts in an order without pattern.");
    table.print();
}
