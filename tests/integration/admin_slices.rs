//! Listings and orders of the admin address as the loop does them, on scripted sockets and a virtual clock: thousands of
//! sessions in slices, jobs in turns, askers that go.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blackhole::event::Event;
use blackhole::handoff::FromSource;
use blackhole::limits::{ADMIN_JOBS_MAX, ADMIN_PAGE_BYTES_MAX};
use blackhole::reactor::modules::KeepModule;
use blackhole::session::ListenerKind;
use serde_json::{Value, json};
use support::client::{subscribe, subscribe_to_all};
use support::events::call_event;

use crate::switching::{World, module, slowest};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const SESSIONS: usize = 19_000;

/// Sessions that a turn looks at, where one whose socket the kernel is asked about counts for five.
const LOOKED_AT_MAX: usize = 1024;

/// Bytes that a turn writes, and some room for one session.
const WRITTEN_MAX: usize = (64 << 10) + 4096;

fn with_sessions(sessions: usize) -> World {
    let mut world = World::new(None);
    for number in 0..sessions {
        let account = if number % 50 == 0 { B } else { A };
        world.connect(&[subscribe("any", account, "call.CHANNEL_CREATE.*")]);
    }
    world.settle();
    world.forget_texts();
    world
}

/// An asker that has sent this request.
fn ask(world: &mut World, method: &str, path: &str) -> usize {
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    world.take(&request, ListenerKind::Admin)
}

/// What an asker has been answered: status and JSON.
fn answered(world: &World, asker: usize) -> Option<(u16, Value)> {
    let wire = world.clients[asker].wire.borrow();
    let text = String::from_utf8(wire.to_client.clone()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().unwrap();
    Some((status, serde_json::from_str(body).unwrap_or(json!(body))))
}

/// How often the kernel was asked about sockets, ever.
fn asked(world: &World) -> u64 {
    world
        .clients
        .iter()
        .map(|one| one.wire.borrow().asked)
        .sum()
}

/// Turns until the asker is answered, each of which must be within its bounds.
fn turns_to_answer(world: &mut World, asker: usize) -> (u16, Value, Vec<Duration>) {
    let (mut turns, mut before) = (Vec::new(), asked(world));
    loop {
        turns.push(world.turn_once());
        let now = asked(world);
        assert!(
            (now - before) as usize <= LOOKED_AT_MAX / 4,
            "{}",
            now - before
        );
        before = now;
        if let Some((status, json)) = answered(world, asker) {
            return (status, json, turns);
        }
        assert!(turns.len() < 100_000, "no answer");
        let patience = world.reactor.patience(support::scripted::now(world.clock));
        assert_eq!(patience, Duration::ZERO, "the job goes on at once");
    }
}

#[test]
fn nineteen_thousand_sessions_are_listed_and_closed_in_slices() {
    let mut world = with_sessions(SESSIONS);
    for (query, cost) in [
        ("limit=1000", 0),
        ("limit=1000&sort=age", 1),
        ("limit=1000&sort=frames", 1),
        ("limit=1000&sort=bytes", 5),
        ("limit=1&sort=bytes", 5),
    ] {
        let asker = ask(&mut world, "GET", &format!("/v2/sessions?{query}"));
        let (status, page, turns) = turns_to_answer(&mut world, asker);
        println!("{query}: {}", slowest(&turns));
        let bytes = page.to_string().len();
        assert_eq!(status, 200);
        assert!(page["next_start_key"].is_string());
        let looked_at = SESSIONS * cost / LOOKED_AT_MAX;
        let least = looked_at + bytes / WRITTEN_MAX;
        assert!(
            turns.len() >= least,
            "{query}: {} turns, {least} at least",
            turns.len()
        );
        let listed = page["data"].as_array().unwrap().len();
        assert_eq!(
            listed,
            if query.starts_with("limit=1&") {
                1
            } else {
                1000
            }
        );
    }
    let of_one = format!("/v2/accounts/{B}/websockets/10.255.255.255:1");
    let asker = ask(&mut world, "GET", &of_one);
    let (status, _, turns) = turns_to_answer(&mut world, asker);
    assert_eq!(status, 404);
    assert!(turns.len() >= SESSIONS / LOOKED_AT_MAX);

    let asker = ask(&mut world, "DELETE", &format!("/v2/sessions?account={A}"));
    let (status, answer, turns) = turns_to_answer(&mut world, asker);
    println!("closed: {}", slowest(&turns));
    assert_eq!(
        (status, &answer["data"]),
        (200, &json!({"closed": SESSIONS - SESSIONS / 50}))
    );
    // Each close counts for 32 sessions that are looked at.
    assert!(turns.len() >= SESSIONS / 40, "{}", turns.len());
    let left = world
        .reactor
        .hub
        .subscriptions
        .index()
        .counts()
        .subscriptions;
    assert_eq!(left, SESSIONS / 50);
}

#[test]
fn more_frames_than_16_bits_count_are_told_and_forgotten_with_the_session() {
    let mut world = World::new(None);
    let many = world.connect(&[subscribe("any", A, "call.CHANNEL_CREATE.*")]);
    world.connect(&[subscribe("any", B, "call.CHANNEL_CREATE.*")]);
    world.settle();
    const EVENTS: usize = 70_000;
    let body = call_event(A, "CHANNEL_CREATE", 0).to_string();
    for number in 0..EVENTS {
        let event = Event::decode(
            "callevt".into(),
            "call.CHANNEL_CREATE.x".into(),
            body.clone().into_bytes(),
            None,
        );
        let event = FromSource::Event(Arc::new(event.unwrap()));
        world.source.send(event).unwrap();
        if number % 1000 == 0 {
            world.settle();
            world.forget_texts();
        }
    }
    world.settle();
    let asker = ask(&mut world, "GET", "/v2/sessions?sort=frames");
    let (_, page, _) = turns_to_answer(&mut world, asker);
    // Behind the reply to its subscribe.
    assert_eq!(page["data"][0]["frames"], EVENTS + 1);
    assert_eq!(page["data"][1]["frames"], 1);
    assert_eq!(world.reactor.hub.figures.len(), 1);
    abandon(&mut world, many);
    world.settle();
    assert!(world.reactor.hub.figures.is_empty());
}

#[test]
fn a_page_ends_at_its_bytes_and_the_next_goes_on_there() {
    let mut world = World::new(None);
    let name = "n".repeat(250);
    let bindings: Vec<String> = (0..20)
        .map(|call| format!("call.CHANNEL_CREATE.{call}"))
        .collect();
    let bindings: Vec<&str> = bindings.iter().map(String::as_str).collect();
    const NAMED: usize = 1000;
    for _ in 0..NAMED {
        let mut command = subscribe_to_all("any", A, &bindings);
        command["data"]["name"] = json!(name);
        world.connect(&[command]);
    }
    world.settle();
    for sort in ["", "&sort=age"] {
        let (mut ids, mut next, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let path = format!("/v2/sessions?limit=1000{sort}{next}");
            let asker = ask(&mut world, "GET", &path);
            let (_, page, _) = turns_to_answer(&mut world, asker);
            assert!(page.to_string().len() < ADMIN_PAGE_BYTES_MAX + 4096);
            let rows = page["data"].as_array().unwrap();
            ids.extend(
                rows.iter()
                    .map(|row| row["id"].as_str().unwrap().to_owned()),
            );
            pages += 1;
            match page["next_start_key"].as_str() {
                Some(key) => next = format!("&start_key={key}"),
                None => break,
            }
        }
        assert_eq!((ids.len(), pages), (NAMED, 2), "{sort}");
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), NAMED, "{sort}");
    }
}

#[test]
fn jobs_take_turns_and_one_too_many_is_told_so() {
    let mut world = with_sessions(3000);
    let path = "/v2/sessions?sort=bytes&limit=1000";
    let askers: Vec<usize> = (0..=ADMIN_JOBS_MAX)
        .map(|_| ask(&mut world, "GET", path))
        .collect();
    let (last, first) = askers.split_last().unwrap();
    // A turn begins only some of what is asked.
    let refused = (0..ADMIN_JOBS_MAX).find_map(|_| {
        world.turn_once();
        answered(&world, *last)
    });
    let (status, body) = refused.expect("as soon as it is begun");
    assert_eq!(status, 503);
    let message = body["data"]["message"].as_str();
    assert!(
        message.is_some_and(|text| text.starts_with("busy")),
        "{body}"
    );
    // All are done within the turns of two rounds: the last were begun some turns after the first.
    let mut done = Vec::new();
    for turn in 0..10_000 {
        world.turn_once();
        let before = done.len();
        done.extend(
            first
                .iter()
                .filter(|one| answered(&world, **one).is_some())
                .map(|_| turn)
                .skip(before),
        );
        if done.len() == first.len() {
            break;
        }
    }
    assert_eq!(done.len(), ADMIN_JOBS_MAX);
    assert!(
        done[ADMIN_JOBS_MAX - 1] - done[0] <= 2 * ADMIN_JOBS_MAX,
        "{done:?}"
    );
    assert_eq!(world.reactor.hub.metrics.admin_jobs_refused_total, 1);
}

fn abandon(world: &mut World, asker: usize) {
    let (id, clock) = (world.clients[asker].id, world.clock);
    world.reactor.abandon(id, support::scripted::now(clock));
}

#[test]
fn the_listing_of_an_asker_that_has_gone_ends_and_an_order_is_carried_out() {
    let mut world = with_sessions(3000);
    let listing = ask(&mut world, "GET", "/v2/sessions?sort=bytes");
    world.turn_once();
    abandon(&mut world, listing);
    world.settle();
    assert_eq!(answered(&world, listing), None);
    assert!(asked(&world) < 3000, "it has not gone on to the end");

    let order = ask(&mut world, "DELETE", &format!("/v2/sessions?account={B}"));
    world.turn_once();
    abandon(&mut world, order);
    world.settle();
    assert_eq!(answered(&world, order), None);
    let left = world
        .reactor
        .hub
        .subscriptions
        .index()
        .counts()
        .subscriptions;
    assert_eq!(left, 3000 - 3000 / 50);
}

#[test]
fn one_change_of_families_is_under_way_at_a_time_whoever_asks() {
    let mut world = with_sessions(3000);
    world.ask_for_module("bh_call", "stop", false);
    world.turn_once();
    let asker = ask(
        &mut world,
        "POST",
        "/modules/bh_fax?action=stop&persist=false",
    );
    world.turn_once();
    let (status, _) = answered(&world, asker).expect("at once");
    assert_eq!(status, 409);
    world.settle();
    assert_eq!(module(&world.answered().unwrap()), (false, false, None));

    // And the platform waits for the operator.
    let asker = ask(
        &mut world,
        "POST",
        "/modules/bh_call?action=start&persist=false",
    );
    world.settle();
    assert_eq!(answered(&world, asker).unwrap().1["data"]["started"], true);
    for client in 0..3000 {
        world.send(client, &subscribe("any", A, "call.CHANNEL_CREATE.*"));
    }
    world.settle();
    let asker = ask(
        &mut world,
        "POST",
        "/modules/bh_call?action=stop&persist=false",
    );
    world.turn_once();
    world.ask_for_module("bh_fax", "stop", false);
    world.turn_once();
    assert!(world.answered().is_none() && answered(&world, asker).is_none());
    world.settle();
    assert_eq!(answered(&world, asker).unwrap().1["data"]["started"], false);
    assert_eq!(module(&world.answered().unwrap()), (false, false, None));
    let families = world.reactor.hub.subscriptions.families();
    let are_on = ["bh_call", "bh_fax"].map(|name| families.is_module_on(name));
    assert_eq!(are_on, [Some(false), Some(false)]);
}

#[test]
fn while_a_change_is_written_down_listings_go_on_and_the_loop_rests() {
    let (write, written): (Sender<()>, Receiver<()>) = channel();
    let written = Mutex::new(written);
    let keep: KeepModule = Arc::new(move |module, is_on| {
        assert_eq!((module, is_on), ("bh_call", false));
        written.lock().unwrap().recv().unwrap();
        Ok(())
    });
    let mut world = World::new(Some(keep));
    world.connect(&[subscribe("any", A, "fax.status.*")]);
    world.settle();
    let change = ask(&mut world, "POST", "/modules/bh_call?action=stop");
    // At rest: only the thread is waited for.
    world.settle();
    assert_eq!(answered(&world, change), None);
    let listing = ask(&mut world, "GET", "/v2/sessions?sort=age");
    world.settle();
    let (status, page) = answered(&world, listing).expect("it does not wait");
    assert_eq!((status, &page["page_size"]), (200, &json!(1)));
    let other = ask(&mut world, "POST", "/modules/bh_fax?action=stop");
    world.settle();
    assert_eq!(answered(&world, other).expect("at once").0, 409);

    write.send(()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let (status, answer) = loop {
        world.turn_once();
        if let Some(answer) = answered(&world, change) {
            break answer;
        }
        assert!(Instant::now() < deadline, "never written");
    };
    let expected = json!({"module": "bh_call", "started": false, "persisted": true});
    assert_eq!((status, &answer["data"]), (200, &expected));
}
