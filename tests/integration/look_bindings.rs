//! What looks hold at the broker (PROTOCOL 8), beside what sessions need: on scripted sockets and a virtual clock, under
//! random comings and goings of both, outages, months and families switched.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blackhole::event::Event;
use blackhole::handoff::{FromSource, Return};
use blackhole::session::ListenerKind;
use serde_json::json;
use support::client::subscribe;
use support::events::call_event;
use support::scripted::now;

use crate::switching::World;

const ACCOUNTS: [&str; 2] = [
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
];
const BINDINGS: [&str; 4] = [
    "call.CHANNEL_CREATE.*",
    "call.*.*",
    "object.doc_created.fax",
    "fax.status.*",
];
const KEYS: [&str; 3] = ["call.CHANNEL_CREATE.*", "call.*.*", "fax.status.*"];

fn ask(world: &mut World, method: &str, path: &str) -> usize {
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    world.take(&request, ListenerKind::Admin)
}

fn publish(world: &mut World, account: &str) {
    let body = call_event(account, "CHANNEL_CREATE", 0).to_string();
    let key = "call.CHANNEL_CREATE.x".into();
    let event = Event::decode("callevt".into(), key, body.into_bytes(), None);
    let event = FromSource::Event(Arc::new(event.unwrap()));
    world.source.send(event).unwrap();
}

fn query(random: &mut fastrand::Rng, sessions: usize) -> String {
    let account = ACCOUNTS[random.usize(..2)];
    let limit = match random.bool() {
        true => format!("&limit={}", random.u32(1..4)),
        false => String::new(),
    };
    let key = KEYS[random.usize(..KEYS.len())];
    match random.u32(..4) {
        0 => format!("/trace?account={account}{limit}"),
        1 => format!("/trace?key={key}{limit}"),
        2 => format!("/trace?key={key}&account={account}{limit}"),
        _ => {
            let number = random.usize(..sessions.max(1)) as u32;
            let [_, high, middle, low] = number.to_be_bytes();
            format!("/trace?session=10.{high}.{middle}.{low}:1000{limit}")
        }
    }
}

fn come_and_go(seed: u64) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut world = World::new(None);
    let (mut sessions, mut lookers) = (Vec::new(), Vec::new());
    for _ in 0..400 {
        let account = ACCOUNTS[random.usize(..2)];
        let binding = BINDINGS[random.usize(..BINDINGS.len())];
        match random.u32(..20) {
            0..4 => sessions.push(world.connect(&[subscribe("any", account, binding)])),
            4..7 if !sessions.is_empty() => {
                let session = sessions[random.usize(..sessions.len())];
                let unsubscribe = json!({"action": "unsubscribe", "auth_token": "any",
                    "data": {"account_id": account, "binding": binding}});
                let command = match random.bool() {
                    true => unsubscribe,
                    false => subscribe("any", account, binding),
                };
                world.send(session, &command);
            }
            7..9 if !sessions.is_empty() => {
                let gone = sessions.swap_remove(random.usize(..sessions.len()));
                let (id, clock) = (world.clients[gone].id, world.clock);
                world.reactor.abandon(id, now(clock));
            }
            9..13 => {
                let clients = world.clients.len();
                let method = if random.u32(..5) == 0 { "HEAD" } else { "GET" };
                lookers.push(ask(&mut world, method, &query(&mut random, clients)));
            }
            13..15 if !lookers.is_empty() => {
                let gone = lookers.swap_remove(random.usize(..lookers.len()));
                let (id, clock) = (world.clients[gone].id, world.clock);
                world.reactor.abandon(id, now(clock));
            }
            15 => {
                let since = Instant::now();
                world.source.send(FromSource::Down { since }).unwrap();
            }
            16 => world.source.send(FromSource::Up(Return::Anew)).unwrap(),
            17 => {
                let action = if random.bool() { "stop" } else { "start" };
                let module = ["bh_call", "bh_fax"][random.usize(..2)];
                let path = format!("/modules/{module}?action={action}&persist=0");
                ask(&mut world, "POST", &path);
            }
            18 => {
                ask(
                    &mut world,
                    "DELETE",
                    &format!("/v2/sessions?account={account}"),
                );
            }
            _ => world.clock += Duration::from_secs(random.u64(..4 * 86_400)),
        }
        publish(&mut world, account);
        for _ in 0..random.u32(1..4) {
            world.turn_once();
        }
        world.forget_texts();
        let wanted = world.reactor.hub.subscriptions.broker().counts().wanted;
        assert_eq!(wanted, world.bound.len(), "seed {seed}");
    }
    for client in sessions.into_iter().chain(lookers) {
        let (id, clock) = (world.clients[client].id, world.clock);
        world.reactor.abandon(id, now(clock));
    }
    world.source.send(FromSource::Up(Return::Anew)).unwrap();
    for _ in 0..100 {
        world.turn_once();
        world.clock += Duration::from_secs(1);
    }
    let hub = &world.reactor.hub;
    let wanted = hub.subscriptions.broker().counts().wanted;
    assert_eq!(
        (wanted, hub.trace.looks(), hub.metrics.sessions_open()),
        (0, 0, 0),
        "seed {seed}"
    );
    assert!(world.bound.is_empty(), "seed {seed}: {:?}", world.bound);
    hub.metrics.trace_looks_total
}

#[test]
fn however_sessions_and_looks_end_nothing_stays_bound() {
    let looks: u64 = (0..30).map(come_and_go).sum();
    assert!(looks > 500, "{looks} looks");
}
