//! Ids and cursors on the wire, `data.resume`, and AMQP bindings that outlive their users (PROTOCOL 10): on scripted sockets
//! and a virtual clock, and between two processes.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blackhole::config::Config;
use blackhole::event::{Event, EventId};
use blackhole::handoff::{FromSource, Return, SourceEnd, ToSource};
use blackhole::history::Cursor;
use blackhole::limits::{EVENT_SLICE_BYTES_MAX, TRIM_AFTER, TRIM_HISTORY_BYTES_MIN};
use blackhole::reactor::{Reactor, Ready};
use blackhole::routing::amqp_binding::{AmqpBinding, Asked};
use blackhole::session::ListenerKind;
use blackhole::session::id::{ConnId, Peer};
use serde_json::{Value, json};

use support::client::{ANY_TOKEN, Client, ping_as};
use support::events::{ACCOUNT, OTHER_ACCOUNT};
use support::scripted::{Scripted, Wire, config, now, reactor};
use support::server::{Scratch, Server};
use support::wire::{UPGRADE_REQUEST, client_text, server_frames};

/// A loop that takes any token, and a source that puts in force what it is asked for.
struct Stage {
    reactor: Reactor<Scripted>,
    source: SourceEnd,
    clock: Duration,
    next_port: u16,
    /// The bindings that the source has been asked for and not to give up, in order.
    bound: Vec<AmqpBinding>,
}

struct One {
    id: ConnId,
    wire: Rc<RefCell<Wire>>,
}

impl One {
    fn texts(&self) -> Vec<Value> {
        let bytes = std::mem::take(&mut self.wire.borrow_mut().to_client);
        let (frames, used) = server_frames(&bytes);
        assert_eq!(used, bytes.len(), "whole frames");
        let texts = frames.iter().filter(|(opcode, _)| *opcode == 1);
        let value = |payload| serde_json::from_slice(payload).unwrap();
        texts.map(|(_, payload)| value(payload)).collect()
    }

    fn numbers(&self) -> Vec<u64> {
        let texts = self.texts();
        let number = |text: &Value| text["args"]["Number"].as_u64();
        texts.iter().filter_map(number).collect()
    }
}

impl Stage {
    fn new(options: &[&str]) -> Self {
        let args: Vec<&str> = ["--auth=insecure"].iter().chain(options).copied().collect();
        let config = Config {
            rate_limit_burst: u32::MAX,
            rate_limit_per_second: u32::MAX,
            ..config(&args)
        };
        let (source, reactor) = reactor(&config, 4096, 1);
        source.send(FromSource::Up(Return::Anew)).unwrap();
        let mut stage = Self {
            reactor,
            source,
            clock: Duration::from_secs(10),
            next_port: 1000,
            bound: Vec::new(),
        };
        stage.turn(&[]);
        stage
    }

    fn turn(&mut self, heard: &[&One]) {
        let ready: Vec<Ready> = heard
            .iter()
            .map(|one| Ready {
                id: one.id,
                readable: true,
                writable: true,
                read_closed: one.wire.borrow().client_closed,
            })
            .collect();
        self.reactor.turn(&ready, now(self.clock));
        let mut asked = Vec::new();
        for command in self.source.commands.try_iter().flatten() {
            match command {
                ToSource::Bind {
                    binding, ticket, ..
                } => {
                    self.bound.push(binding.clone());
                    asked.push(Asked { binding, ticket });
                }
                ToSource::Unbind(binding) => self.bound.retain(|one| *one != binding),
                ToSource::Join { .. } | ToSource::Stop => {}
            }
        }
        if !asked.is_empty() {
            self.source.send(FromSource::Bound(asked)).unwrap();
            self.reactor.turn(&[], now(self.clock));
        }
    }

    fn pass(&mut self, time: Duration) {
        self.clock += time;
        self.turn(&[]);
    }

    fn session_at(&mut self, path: &str) -> One {
        let wire = Wire::new(usize::MAX, usize::MAX);
        let request = UPGRADE_REQUEST.replacen("GET / ", &format!("GET {path} "), 1);
        wire.borrow_mut().send(request.as_bytes());
        self.next_port += 1;
        let peer = Peer::from(SocketAddr::from(([203, 0, 113, 1], self.next_port)));
        let socket = Scripted(wire.clone());
        let at = now(self.clock);
        let id = self.reactor.accept(socket, peer, ListenerKind::Clients, at);
        self.turn(&[]);
        let answer = std::mem::take(&mut wire.borrow_mut().to_client);
        assert!(answer.starts_with(b"HTTP/1.1 101 "));
        One {
            id: id.unwrap(),
            wire,
        }
    }

    fn session(&mut self) -> One {
        self.session_at("/")
    }

    /// What comes to `one` after this command.
    fn ask(&mut self, one: &One, command: &Value) -> Vec<Value> {
        let text = client_text(&command.to_string());
        one.wire.borrow_mut().send(&text);
        self.turn(&[one]);
        one.texts()
    }

    fn subscribe(&mut self, one: &One, account: &str, data: Value) -> Vec<Value> {
        let mut all = json!({"account_id": account, "binding": "call.CHANNEL_CREATE.*"});
        for (key, value) in data.as_object().unwrap() {
            all[key] = value.clone();
        }
        let command =
            json!({"action": "subscribe", "auth_token": ANY_TOKEN, "request_id": "r", "data": all});
        self.ask(one, &command)
    }

    fn leave(&mut self, one: One) {
        one.wire.borrow_mut().client_closed = true;
        self.turn(&[&one]);
    }

    fn publish(&mut self, account: &str, number: u64) {
        let body = json!({"Event-Name": "CHANNEL_CREATE", "Account-ID": account, "Number": number});
        self.publish_on("callevt", KEY, &body);
    }

    fn publish_on(&mut self, exchange: &str, key: &str, body: &Value) {
        let body = body.to_string().into_bytes();
        let event = Event::decode(exchange.into(), key.into(), body, None).unwrap();
        self.source
            .send(FromSource::Event(Arc::new(event)))
            .unwrap();
    }

    fn ping(&mut self, one: &One) -> Value {
        let replies = self.ask(one, &ping_as(ANY_TOKEN, "p"));
        replies.last().unwrap()["data"].clone()
    }

    fn metric(&self, name: &str) -> u64 {
        let lingering = self.reactor.hub.subscriptions.lingering();
        match name {
            "lingering" => lingering.0 as u64,
            "let go early" => lingering.1,
            "wanted" => self.reactor.hub.subscriptions.broker().counts().wanted as u64,
            "bytes" => self.reactor.hub.history.bytes() as u64,
            "trims" => self.reactor.hub.metrics.heap_trims_total,
            _ => unreachable!(),
        }
    }
}

const KEY: &str = "call.CHANNEL_CREATE.x";

fn cursor(value: &Value) -> Cursor {
    let text = value
        .as_str()
        .unwrap_or_else(|| panic!("no cursor: {value}"));
    let cursor = Cursor::parse(text).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(cursor.to_string(), text);
    cursor
}

#[test]
fn every_event_carries_its_id_and_cursors_rise_however_many_come_in_a_millisecond() {
    let mut stage = Stage::new(&[]);
    let (piston, kazoo) = (stage.session(), stage.session_at("/?style=kazoo"));
    let reply = stage.subscribe(&piston, ACCOUNT, json!({"resume": true}));
    let position = cursor(&reply[0]["data"]["cursor"]);
    assert_eq!((position.id, reply[0]["data"].get("resumed")), (None, None));
    let reply = stage.subscribe(&kazoo, ACCOUNT, json!({}));
    assert_eq!(reply[0]["data"].get("cursor"), None, "it was not asked for");
    let mut last = position;
    for round in 0..20 {
        for number in 0..100 {
            stage.publish(ACCOUNT, 100 * round + number);
        }
        stage.turn(&[]);
        while stage.reactor.patience(now(stage.clock)).is_zero() {
            stage.turn(&[]);
        }
        let (events, other) = (piston.texts(), kazoo.texts());
        assert_eq!((events.len(), other.len()), (100, 100));
        for (event, other) in events.iter().zip(&other) {
            let place = cursor(&event["cursor"]);
            let body = event["args"].to_string();
            assert_eq!(place.id, Some(EventId::of("callevt", KEY, body.as_bytes())));
            assert_eq!(place.mark, position.mark);
            assert_eq!(
                (&event["cursor"], event.get("replayed")),
                (&other["cursor"], None)
            );
            assert!(place.time >= last.time, "{place} after {last}");
            let keys: Vec<&String> = event.as_object().unwrap().keys().collect();
            assert!(
                keys.ends_with(&[&"request_id".to_owned()]) || keys.len() == 8,
                "{keys:?}"
            );
            last = place;
        }
        if round % 5 == 4 {
            let here = cursor(&stage.ping(&piston)["cursor"]);
            assert_eq!(here.id, None);
            last = here;
            stage.pass(Duration::from_millis(200));
        }
    }
}

#[test]
fn the_memory_of_forgotten_events_is_given_back() {
    let keep = Duration::from_secs(30);
    let mut stage = Stage::new(&["--history-seconds=30"]);
    let one = stage.session();
    stage.subscribe(&one, ACCOUNT, json!({}));
    let filler = "x".repeat(10_000);
    for round in 0..20 {
        for number in 0..20 {
            let number = 20 * round + number;
            let body = json!({"Event-Name": "CHANNEL_CREATE", "Account-ID": ACCOUNT, "Number": number, "Filler": filler});
            stage.publish_on("callevt", KEY, &body);
        }
        stage.pass(Duration::ZERO);
        assert_eq!(one.numbers().len(), 20);
    }
    // What their delivery has freed is given back at once; they themselves are still there.
    for _ in 0..5 {
        stage.pass(TRIM_AFTER);
    }
    let before = stage.metric("trims");
    assert!(stage.metric("bytes") > 2 * TRIM_HISTORY_BYTES_MIN as u64);
    stage.pass(keep);
    stage.pass(TRIM_AFTER);
    assert_eq!(stage.metric("bytes"), 0);
    for _ in 0..5 {
        stage.pass(TRIM_AFTER);
        assert_eq!(stage.metric("trims"), before + 1);
    }
}

#[test]
fn an_id_is_of_what_was_published_and_equal_in_two_processes() {
    let bodies = [
        r#"{"Event-Name":"CHANNEL_CREATE","Account-ID":"ACC","Call-ID":"1"}"#,
        r#"{ "Event-Name" : "CHANNEL_CREATE", "Account-ID":"ACC", "Call-ID":"2" }"#,
    ];
    let bodies = bodies.map(|body| body.replace("ACC", ACCOUNT));
    let line =
        |body: &String| format!(r#"{{"exchange":"callevt","routing_key":"{KEY}","body":{body}}}"#);
    let file = Scratch::file(
        "ids.jsonl",
        &(bodies.each_ref().map(line).join("\n") + "\n"),
    );
    let source = format!("replay:{}", file.path().display());
    let cursors = [(), ()].map(|()| {
        let server = Server::start(&["--source", &source, "--auth", "insecure"]);
        let mut client = Client::connect(server.address());
        client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
        [(), ()].map(|()| cursor(&client.event()["cursor"]))
    });
    let [one, other] = cursors;
    for (number, (one, other)) in one.iter().zip(&other).enumerate() {
        assert_eq!(one.id, other.id, "{number}");
        assert_ne!(one.mark, other.mark, "each process has its own");
    }
    assert_ne!(one[0].id, one[1].id);
}

#[test]
fn what_is_no_cursor_is_refused_and_false_is_as_if_absent() {
    for options in [&[][..], &["--history-bytes=0"]] {
        let mut stage = Stage::new(options);
        let one = stage.session();
        for bad in [
            json!("x"),
            json!(""),
            json!(1),
            json!({}),
            json!([true]),
            json!("true"),
            json!("0.0.00000"),
            json!("0.0.0000000"),
            json!("0".repeat(100)),
        ] {
            let reply = stage.subscribe(&one, ACCOUNT, json!({"resume": bad}));
            assert_eq!(reply.len(), 1, "{bad}");
            assert_eq!(
                reply[0]["data"]["errors"],
                json!(["invalid resume"]),
                "{bad}"
            );
        }
        assert!(stage.bound.is_empty(), "nothing is kept of it");
        for absent in [json!(false), json!(null)] {
            let reply = stage.subscribe(&one, ACCOUNT, json!({"resume": absent}));
            assert_eq!((reply.len(), reply[0].get("cursor")), (1, None), "{absent}");
            assert_eq!(reply[0]["status"], "success");
        }
    }
}

#[test]
fn a_cursor_that_is_not_good_is_told_twice_and_the_subscribe_succeeds() {
    let mut stage = Stage::new(&[]);
    let first = stage.session();
    let reply = stage.subscribe(&first, ACCOUNT, json!({"resume": true}));
    let here = cursor(&reply[0]["data"]["cursor"]);
    let one = stage.session();
    let future = Cursor {
        time: here.time + 10_000,
        ..here
    };
    stage.pass(Duration::from_secs(1));
    for (cursor_asked, binding, why) in [
        (future, "call.CHANNEL_CREATE.*", "unknown"),
        (here, "call.CHANNEL_ANSWER.*", "unknown"),
    ] {
        let data = json!({"resume": cursor_asked.to_string(), "binding": binding});
        let told = stage.subscribe(&one, ACCOUNT, data);
        assert_eq!(told[0]["status"], "success");
        assert_eq!(told[0]["data"]["resumed"], false, "{cursor_asked}");
        assert!(cursor(&told[0]["data"]["cursor"]).time > here.time);
        let gap = json!({"reason": "resume", "why": why});
        assert_eq!((&told[1]["name"], &told[1]["data"]), (&json!("gap"), &gap));
        assert_eq!(told.len(), 2);
    }
    stage.pass(Duration::from_secs(61));
    let third = stage.session();
    let told = stage.subscribe(&third, ACCOUNT, json!({"resume": here.to_string()}));
    assert_eq!(
        told[1]["data"],
        json!({"reason": "resume", "why": "expired"})
    );
    stage.publish(ACCOUNT, 1);
    stage.turn(&[]);
    assert_eq!(
        (one.numbers(), third.numbers()),
        (vec![1], vec![1]),
        "they are live"
    );
}

#[test]
fn an_outage_is_told_and_an_unbroken_return_is_none() {
    let mut stage = Stage::new(&[]);
    let first = stage.session();
    let reply = stage.subscribe(&first, ACCOUNT, json!({"resume": true}));
    let before = reply[0]["data"]["cursor"].clone();
    for (back, why) in [(Return::Unbroken, None), (Return::Anew, Some("outage"))] {
        let since = std::time::Instant::now();
        stage.source.send(FromSource::Down { since }).unwrap();
        stage.turn(&[]);
        stage.source.send(FromSource::Up(back)).unwrap();
        stage.turn(&[]);
        let notices: Vec<Value> = first.texts();
        assert_eq!(notices.len(), usize::from(why.is_some()), "{notices:?}");
        let again = stage.session();
        let told = stage.subscribe(&again, ACCOUNT, json!({"resume": before}));
        let told_why = told.iter().find_map(|text| text["data"]["why"].as_str());
        assert!(why.is_none() || told_why == why, "{told:?}");
        assert_ne!((back, told_why), (Return::Unbroken, Some("outage")));
    }
}

#[test]
fn without_a_history_there_are_no_cursors_and_nothing_lingers() {
    let mut stage = Stage::new(&["--history-bytes=0"]);
    let one = stage.session();
    let reply = stage.subscribe(&one, ACCOUNT, json!({"resume": true}));
    assert_eq!(reply.len(), 1);
    assert_eq!(
        (
            reply[0]["data"].get("cursor"),
            reply[0]["data"].get("resumed")
        ),
        (None, None)
    );
    assert_eq!(stage.ping(&one), json!({"response": "pong"}));
    stage.publish(ACCOUNT, 1);
    stage.turn(&[]);
    assert_eq!(one.texts()[0].get("cursor"), None);
    let two = stage.session();
    let told = stage.subscribe(&two, ACCOUNT, json!({"resume": "0.loyw3v28.abcdef"}));
    assert_eq!(
        (&told[0]["data"]["resumed"], told[0]["data"].get("cursor")),
        (&json!(false), None)
    );
    assert_eq!(told[1]["data"]["why"], "unknown");
    stage.pass(Duration::from_secs(20));
    stage.leave(one);
    stage.leave(two);
    assert!(stage.bound.is_empty());
    assert!(!stage.reactor.hub.history.is_on() && stage.reactor.hub.history.is_empty());
}

#[test]
fn a_binding_lingers_for_as_long_as_the_history_and_not_before_it_was_in_force_for_five_seconds() {
    let mut stage = Stage::new(&["--history-seconds=30"]);
    let short = stage.session();
    stage.subscribe(&short, ACCOUNT, json!({}));
    stage.pass(Duration::from_millis(4_999));
    stage.leave(short);
    assert_eq!((stage.bound.len(), stage.metric("wanted")), (0, 0));

    let one = stage.session();
    stage.subscribe(&one, ACCOUNT, json!({}));
    let bound = stage.bound.clone();
    assert_eq!(bound.len(), 1);
    stage.pass(Duration::from_secs(5));
    stage.leave(one);
    assert_eq!((stage.metric("lingering"), stage.metric("wanted")), (1, 1));
    stage.pass(Duration::from_secs(29));
    let again = stage.session();
    stage.subscribe(&again, ACCOUNT, json!({}));
    assert_eq!((stage.metric("lingering"), stage.metric("wanted")), (0, 1));
    assert_eq!(stage.bound, bound, "the source was told nothing");
    stage.leave(again);
    stage.pass(Duration::from_secs(29));
    assert_eq!((stage.metric("lingering"), &stage.bound), (1, &bound));
    stage.pass(Duration::from_secs(1));
    assert_eq!(
        (
            stage.metric("lingering"),
            stage.metric("wanted"),
            stage.bound.len()
        ),
        (0, 0, 0)
    );
    assert_eq!(stage.metric("let go early"), 0);
}

#[test]
fn who_comes_and_goes_with_ever_new_bindings_costs_nobody_else_a_lingering_one_or_a_subscribe() {
    let mut stage = Stage::new(&[
        "--max-lingering-bindings=24",
        "--max-lingering-bindings-per-account=8",
        "--max-bindings-per-account=40",
        "--max-bindings=60",
        "--history-seconds=600",
    ]);
    let honest = stage.session();
    stage.subscribe(
        &honest,
        OTHER_ACCOUNT,
        json!({"binding": "fax.status.honest"}),
    );
    stage.pass(Duration::from_secs(5));
    stage.leave(honest);
    let its = stage.bound.clone();
    assert_eq!((its.len(), stage.metric("lingering")), (1, 1));
    for round in 0..60 {
        let attacker = stage.session();
        for number in 0..6 {
            let binding = format!("fax.status.{round}-{number}");
            let reply = stage.subscribe(&attacker, ACCOUNT, json!({"binding": binding}));
            assert_eq!(reply[0]["status"], "success", "{round} {reply:?}");
        }
        stage.pass(Duration::from_secs(5));
        stage.leave(attacker);
        assert!(stage.metric("lingering") <= 9);
    }
    assert!(
        stage.bound.contains(&its[0]),
        "it lingers as long as it may"
    );
    assert!(stage.metric("let go early") > 300);

    // At the bound of the process lingering bindings make room.
    let mut crowd = Vec::new();
    for number in 0..59 {
        let one = stage.session();
        let account = format!("{number:032x}");
        let binding = format!("fax.status.{number}");
        let reply = stage.subscribe(&one, &account, json!({"binding": binding}));
        assert_eq!(reply[0]["status"], "success", "{number} {reply:?}");
        crowd.push(one);
    }
    assert!(stage.metric("wanted") <= 60);
    let honest = stage.session();
    let reply = stage.subscribe(
        &honest,
        OTHER_ACCOUNT,
        json!({"binding": "fax.status.honest"}),
    );
    assert_eq!(reply[0]["status"], "success");
    let one_too_many = stage.session();
    let reply = stage.subscribe(
        &one_too_many,
        ACCOUNT,
        json!({"binding": "fax.status.more"}),
    );
    assert_eq!(
        reply[0]["data"]["errors"],
        json!(["too many bindings (max 60)"])
    );
}

#[test]
fn who_has_not_got_an_event_that_goes_out_in_slices_is_not_told_a_place_behind_it() {
    const BODY: usize = 1 << 20;
    const PER_SLICE: usize = EVENT_SLICE_BYTES_MAX as usize / BODY;
    const CONFERENCE: &str = "conference.command.c";
    let mut stage = Stage::new(&["--history-bytes=67108864"]);
    let mut all = Vec::new();
    for number in 0..3 * PER_SLICE {
        // Of all accounts, each a group of its own.
        let one = stage.session();
        let account = format!("{number:032x}");
        stage.subscribe(&one, &account, json!({"binding": CONFERENCE}));
        all.push(one);
    }
    let body = json!({"Event-Name": "play", "Padding": "x".repeat(BODY)});
    stage.publish_on("conference", CONFERENCE, &body);
    stage.turn(&[]);
    let has_it = |one: &One| one.wire.borrow().to_client.len() > BODY;
    let late = all.iter().find(|one| !has_it(one)).unwrap();
    let mut texts = stage.ask(late, &ping_as(ANY_TOKEN, "p"));
    let place = cursor(&texts[0]["data"]["cursor"]);
    for _ in 0..10 {
        stage.turn(&[]);
        texts.append(&mut late.texts());
    }
    let event = texts.iter().find(|text| text["action"] == "event");
    let event = cursor(&event.unwrap()["cursor"]);
    assert!(place.time < event.time, "{place} {event}");
    let place = cursor(&stage.ping(late)["cursor"]);
    assert!(place.time >= event.time, "{place} {event}");
}
