//! Sessions that resume (PROTOCOL 10), on scripted sockets and a virtual clock: what they are sent, in which order, and
//! what that costs the others, counted in turns of the loop.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blackhole::config::{Config, read_keys, read_tokens};
use blackhole::event::{Event, EventId};
use blackhole::handoff::{FromSource, Return, SourceEnd};
use blackhole::history::{Cursor, History, HistoryOptions, Mark, Why};
use blackhole::limits::{
    EVENT_SLICE_BYTES_MAX, LAP_EVENTS_PER_TURN_MAX, LAP_FLUSHES_MAX, LAP_FRAMES_PER_TURN_MAX,
    LAP_OUTBOX_BYTES_MAX, RESUMING_MAX,
};
use blackhole::reactor::{Reactor, Ready};
use blackhole::routing::index::IndexCounts;
use blackhole::session::ListenerKind;
use blackhole::session::id::{ConnId, Peer};
use blackhole::session::outbox::SlowConsumerPolicy;
use serde_json::{Value, json};

use support::client::{ANY_TOKEN, Client, ping};
use support::events::{ACCOUNT, OTHER_ACCOUNT, call_event};
use support::scripted::{Scripted, Wire, asked, config, now, reactor};
use support::server::{Fed, Scratch};
use support::wire::{UPGRADE_REQUEST, client_text, server_frames};

const CREATE: &str = "call.CHANNEL_CREATE.*";
const ANSWER: &str = "call.CHANNEL_ANSWER.*";

/// Longer than the history remembers when a binding came into force, and what was lost before.
const LATER: Duration = Duration::from_secs(120);

const OPTIONS: HistoryOptions = HistoryOptions {
    bytes_max: 16 << 20,
    keep: Duration::from_secs(60),
    overlap: Duration::from_secs(2),
};

/// A loop with a history, and the source's end of its hand-off.
struct Stage {
    reactor: Reactor<Scripted>,
    source: SourceEnd,
    next_port: u16,
    clock: Duration,
}

#[derive(Clone)]
struct One {
    id: ConnId,
    wire: Rc<RefCell<Wire>>,
}

impl One {
    fn send(&self, command: &Value) {
        let text = client_text(&command.to_string());
        self.wire.borrow_mut().send(&text);
    }

    /// The texts that came since the last call.
    fn texts(&self) -> Vec<Value> {
        let bytes = std::mem::take(&mut self.wire.borrow_mut().to_client);
        let (frames, used) = server_frames(&bytes);
        assert_eq!(used, bytes.len(), "whole frames");
        let texts = frames.iter().filter(|(opcode, _)| *opcode == 1);
        let texts = texts.map(|(_, payload)| serde_json::from_slice(payload).unwrap());
        texts.collect()
    }

    /// What came since the last call, a word each: `n` a live event, `-n` a replayed one, and so on.
    fn told(&self) -> Vec<String> {
        self.texts().iter().map(word).collect()
    }
}

/// What a frame says, in short.
fn word(text: &Value) -> String {
    let data = &text["data"];
    match text["action"].as_str() {
        Some("event") => {
            let number = &text["args"]["Number"];
            match text["replayed"].as_bool() {
                Some(true) => format!("-{number}"),
                _ => number.to_string(),
            }
        }
        Some("notice") => {
            let name = text["name"].as_str().unwrap();
            match data["why"].as_str() {
                Some(why) => format!("{name} {why}"),
                None => format!("{name} {}", data["events"]),
            }
        }
        Some("reply") if text["status"] == "success" => match data["resumed"].as_bool() {
            Some(resumed) => format!("resumed: {resumed}"),
            None => "ok".to_owned(),
        },
        _ => text.to_string(),
    }
}

fn subscribe_with(account: &str, bindings: &[&str], resume: Value) -> Value {
    json!({"action": "subscribe", "auth_token": ANY_TOKEN,
        "data": {"account_id": account, "bindings": bindings, "resume": resume}})
}

fn cursor_of(text: &Value) -> String {
    let text = text["data"]["cursor"].as_str().or(text["cursor"].as_str());
    text.expect("a cursor").to_owned()
}

impl Stage {
    fn new() -> Self {
        Self::with(OPTIONS, |_| {})
    }

    fn with(options: HistoryOptions, choose: impl FnOnce(&mut Config)) -> Self {
        Self::of(&["--auth=insecure"], ANY_TOKEN, options, choose)
    }

    /// A loop with these options, and one session of the token, which may see all, that keeps every binding in force.
    fn of(
        args: &[&str],
        token: &str,
        options: HistoryOptions,
        choose: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Config {
            rate_limit_burst: u32::MAX,
            rate_limit_per_second: u32::MAX,
            ..config(args)
        };
        choose(&mut config);
        let (source, mut reactor) = reactor(&config, 4096, 1);
        let mark = Mark::from_random(7);
        reactor.hub.history = History::new(options, mark, now(Duration::ZERO));
        source.send(FromSource::Up(Return::Anew)).unwrap();
        let mut stage = Self {
            reactor,
            source,
            next_port: 1000,
            clock: Duration::ZERO,
        };
        stage.turn(&[]);
        // Every binding is in force, by one that stays.
        let keeper = stage.session();
        for (account, binding) in [
            (ACCOUNT, CREATE),
            (ACCOUNT, ANSWER),
            (OTHER_ACCOUNT, CREATE),
        ] {
            let command = subscribe_with(account, &[binding], json!(false));
            stage.ask(&keeper, &with_token(token, command));
        }
        stage.clock += LATER;
        stage.turn(&[]);
        stage
    }

    fn turn(&mut self, heard: &[&One]) {
        self.clock += Duration::from_millis(1);
        let ready: Vec<Ready> = heard
            .iter()
            .map(|one| Ready {
                id: one.id,
                readable: true,
                writable: true,
                read_closed: false,
            })
            .collect();
        self.reactor.turn(&ready, now(self.clock));
        self.confirm();
    }

    /// Puts every binding that was asked for in force.
    fn confirm(&mut self) {
        let asked = asked(&self.source);
        if !asked.is_empty() {
            self.source.send(FromSource::Bound(asked)).unwrap();
            self.reactor.turn(&[], now(self.clock));
        }
    }

    /// Turns until nothing is left to do.
    fn settle(&mut self) -> usize {
        for turns in 0..100_000 {
            if self.reactor.patience(now(self.clock)) > Duration::ZERO {
                return turns;
            }
            self.turn(&[]);
        }
        panic!("the loop does not come to rest");
    }

    /// A session to which some of many past events have been sent.
    fn amid_a_replay(&mut self) -> One {
        let cursor = self.here();
        self.publish_some(ACCOUNT, 0..2_000);
        let one = self.session();
        one.send(&subscribe_with(ACCOUNT, &[CREATE], json!(cursor)));
        self.turn(&[&one]);
        self.turn(&[]);
        one
    }

    fn session(&mut self) -> One {
        let wire = Wire::new(usize::MAX, usize::MAX);
        wire.borrow_mut().send(UPGRADE_REQUEST.as_bytes());
        self.next_port += 1;
        let peer = Peer::from(SocketAddr::from(([203, 0, 113, 1], self.next_port)));
        let socket = Scripted(wire.clone());
        let id = (self.reactor).accept(socket, peer, ListenerKind::Clients, now(self.clock));
        self.turn(&[]);
        let answer = std::mem::take(&mut wire.borrow_mut().to_client);
        assert!(answer.starts_with(b"HTTP/1.1 101 "));
        One {
            id: id.unwrap(),
            wire,
        }
    }

    /// Sends a command, and turns once, or twice when the source is asked.
    fn ask(&mut self, one: &One, command: &Value) -> Value {
        one.send(command);
        self.turn(&[one]);
        one.texts().swap_remove(0)
    }

    fn publish(&mut self, account: &str, event: &str, number: u64) {
        self.publish_padded(account, event, number, 0);
    }

    fn publish_padded(&mut self, account: &str, event: &str, number: u64, bytes: usize) {
        let body = json!({"Event-Name": event, "Account-ID": account, "Number": number,
            "Padding": "x".repeat(bytes)});
        let event = Event::decode(
            "callevt".into(),
            format!("call.{event}.x").into(),
            body.to_string().into_bytes(),
            None,
        );
        let event = FromSource::Event(Arc::new(event.unwrap()));
        self.source.send(event).unwrap();
        self.turn(&[]);
    }

    /// So many events of an account, from this number on.
    fn publish_some(&mut self, account: &str, numbers: std::ops::Range<u64>) {
        numbers.for_each(|number| self.publish(account, "CHANNEL_CREATE", number));
    }

    /// The place behind all that was published.
    fn here(&mut self) -> String {
        self.here_of(ANY_TOKEN)
    }

    fn here_of(&mut self, token: &str) -> String {
        let one = self.session();
        let text = with_token(token, subscribe_with(ACCOUNT, &[CREATE], json!(true)));
        let cursor = cursor_of(&self.ask(&one, &text));
        self.end(&one);
        cursor
    }

    fn end(&mut self, one: &One) {
        one.wire.borrow_mut().client_closed = true;
        let ready = Ready {
            id: one.id,
            readable: true,
            writable: false,
            read_closed: true,
        };
        self.reactor.turn(&[ready], now(self.clock));
    }

    /// SIGHUP, but for the thread.
    fn reread(&mut self) {
        let authenticator = &mut self.reactor.hub.authenticator;
        let read = authenticator.reload(read_tokens, read_keys);
        read.unwrap();
        self.reactor.renew_identities();
    }

    fn resumers(&self) -> usize {
        self.reactor.hub.resumers.len()
    }
}

fn replayed(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|number| format!("-{number}")).collect()
}

fn after(before: &[&str], numbers: std::ops::Range<u64>, then: &[&str]) -> Vec<String> {
    let own = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    [own(before), replayed(numbers), own(then)].concat()
}

#[test]
fn a_session_gets_what_came_after_its_cursor_once_and_in_order_and_then_live_events() {
    let mut stage = Stage::new();
    let first = stage.session();
    stage.ask(&first, &subscribe_with(ACCOUNT, &[CREATE], json!(true)));
    stage.publish_some(ACCOUNT, 0..3);
    let got = first.texts();
    let cursor = cursor_of(&got[0]);
    stage.end(&first);
    stage.publish_some(ACCOUNT, 3..10);
    stage.publish(OTHER_ACCOUNT, "CHANNEL_CREATE", 99);

    let second = stage.session();
    let command = subscribe_with(ACCOUNT, &[CREATE], json!(cursor));
    second.send(&command);
    stage.turn(&[&second]);
    stage.settle();
    stage.publish_some(ACCOUNT, 10..12);
    let texts = second.texts();
    assert_eq!(
        texts[0]["data"]["cursor"],
        json!(cursor),
        "the one asked for"
    );
    let told: Vec<String> = texts.iter().map(word).collect();
    let expected = after(&["resumed: true"], 1..10, &["resumed 9", "10", "11"]);
    assert_eq!(told, expected);
    let cursors = texts.iter().filter(|text| text["action"] == "event");
    let live: Vec<_> = got.iter().map(cursor_of).collect();
    let cursors: Vec<String> = cursors.map(cursor_of).collect();
    assert_eq!(cursors[..2], live[1..], "the cursors that they had live");
    assert_eq!(
        (stage.resumers(), stage.reactor.hub.metrics.laps_total),
        (0, 1)
    );
}

#[test]
fn each_binding_may_have_a_subscribe_of_its_own_with_one_cursor() {
    let mut stage = Stage::new();
    let cursor = stage.here();
    for number in 0..200 {
        let event = ["CHANNEL_CREATE", "CHANNEL_ANSWER"][number as usize % 2];
        stage.publish(ACCOUNT, event, number);
    }
    // At once; and the second when a part has been replayed for the first.
    for turns_between in [0, 1, 2, 3, 5] {
        let one = stage.session();
        one.send(&subscribe_with(ACCOUNT, &[CREATE], json!(cursor)));
        stage.turn(&[&one]);
        (0..turns_between).for_each(|_| stage.turn(&[]));
        one.send(&subscribe_with(ACCOUNT, &[ANSWER], json!(cursor)));
        stage.turn(&[&one]);
        stage.settle();
        let texts = one.texts();
        let told: Vec<String> = texts.iter().map(word).collect();
        assert_eq!(told.iter().filter(|it| *it == "resumed: true").count(), 2);
        let events: Vec<&Value> = texts.iter().filter(|it| it["action"] == "event").collect();
        for (rest, name) in ["CHANNEL_CREATE", "CHANNEL_ANSWER"].into_iter().enumerate() {
            let of = events.iter().filter(|it| it["name"] == name);
            let numbers: Vec<u64> = of
                .map(|it| it["args"]["Number"].as_u64().unwrap())
                .collect();
            let expected: Vec<u64> = (0..200).filter(|it| it % 2 == rest as u64).collect();
            assert_eq!(numbers, expected, "{name}, {turns_between} turns between");
        }
        let ends = told.iter().filter(|it| it.starts_with("resumed 2")).count();
        assert!(ends == 1 || turns_between > 2, "{ends} ends of the replay");
        stage.end(&one);
    }
}

#[test]
fn what_a_session_had_before_it_resumes_comes_neither_twice_nor_late() {
    let mut stage = Stage::new();
    let cursor = stage.here();
    let one = stage.session();
    stage.ask(&one, &subscribe_with(ACCOUNT, &[CREATE], json!(false)));
    stage.publish_some(ACCOUNT, 0..3);
    stage.publish(ACCOUNT, "CHANNEL_ANSWER", 3);
    assert_eq!(one.told(), ["0", "1", "2"]);
    one.send(&subscribe_with(ACCOUNT, &[ANSWER], json!(cursor)));
    stage.turn(&[&one]);
    stage.publish_some(ACCOUNT, 4..6);
    // On the lap: from now on.
    one.send(&subscribe_with(OTHER_ACCOUNT, &[CREATE], json!(false)));
    stage.turn(&[&one]);
    stage.publish(OTHER_ACCOUNT, "CHANNEL_CREATE", 6);
    stage.settle();
    stage.publish_some(ACCOUNT, 7..8);
    let told = one.told();
    let events: Vec<u64> = told
        .iter()
        .filter_map(|word| word.trim_start_matches('-').parse().ok())
        .collect();
    assert_eq!(events, [3, 4, 5, 6, 7], "{told:?}");
    assert_eq!(told[..2], ["resumed: true", "-3"]);
}

#[test]
fn a_cursor_of_a_tenant_gives_another_nothing_of_it() {
    let mut stage = Stage::new();
    let cursor = stage.here();
    stage.publish_some(ACCOUNT, 0..50);
    stage.publish_some(OTHER_ACCOUNT, 50..52);
    let (own, other) = (stage.session(), stage.session());
    own.send(&subscribe_with(ACCOUNT, &[CREATE], json!(cursor)));
    other.send(&subscribe_with(OTHER_ACCOUNT, &[CREATE], json!(cursor)));
    stage.turn(&[&own, &other]);
    stage.settle();
    assert_eq!(
        own.told(),
        after(&["resumed: true"], 0..50, &["resumed 50"])
    );
    assert_eq!(
        other.told(),
        after(&["resumed: true"], 50..52, &["resumed 2"])
    );
}

#[test]
fn nothing_missed_is_told_at_once_and_a_cursor_that_is_not_good_too() {
    let mut stage = Stage::new();
    stage.publish_some(ACCOUNT, 0..3);
    let here = stage.here();
    for (resume, expected) in [
        (json!(here), ["resumed: true", "resumed 0"]),
        (
            json!("0.zzzzzzzzz.000000"),
            ["resumed: false", "gap unknown"],
        ),
        (json!("0.1.000000"), ["resumed: false", "gap expired"]),
    ] {
        let one = stage.session();
        one.send(&subscribe_with(ACCOUNT, &[CREATE], resume.clone()));
        stage.turn(&[&one]);
        stage.publish(ACCOUNT, "CHANNEL_CREATE", 7);
        let told = one.told();
        assert_eq!(told, [&expected[..], &["7"]].concat(), "{resume}");
        assert_eq!(stage.resumers(), 0);
        // Once more, what it has: nobody can say since when.
        one.send(&subscribe_with(ACCOUNT, &[CREATE], json!(here)));
        stage.turn(&[&one]);
        assert_eq!(one.told(), ["resumed: false", "gap unknown"]);
        stage.end(&one);
    }
}

#[test]
fn sessions_at_several_places_share_a_lap() {
    let mut stage = Stage::new();
    let mut cursors = Vec::new();
    for number in 0..100 {
        if number % 10 == 0 {
            cursors.push((number, stage.here()));
        }
        stage.publish(ACCOUNT, "CHANNEL_CREATE", number);
    }
    let laps = stage.reactor.hub.metrics.laps_total;
    let sessions: Vec<(u64, One)> = cursors
        .iter()
        .map(|(number, cursor)| {
            let one = stage.session();
            one.send(&subscribe_with(ACCOUNT, &[CREATE], json!(cursor)));
            (*number, one)
        })
        .collect();
    let heard: Vec<&One> = sessions.iter().map(|(_, one)| one).collect();
    stage.turn(&heard);
    stage.settle();
    for (number, one) in &sessions {
        let end = format!("resumed {}", 100 - number);
        let expected = after(&["resumed: true"], *number..100, &[&end]);
        assert_eq!(one.told(), expected);
    }
    assert_eq!(stage.reactor.hub.metrics.laps_total - laps, 1);
}

#[test]
fn a_replay_ends_with_what_ends_in_the_middle_of_it() {
    type Act = fn(&mut Stage, &One);
    let acts: [(&str, Act); 3] = [
        ("unsubscribe", |stage, one| {
            one.send(&json!({"action": "unsubscribe"}));
            stage.turn(&[one]);
        }),
        ("a family is stopped", |stage, _| {
            let hub = &mut stage.reactor.hub;
            hub.subscriptions.switch_module("bh_call", false);
            hub.is_ending_families = true;
        }),
        ("the session ends", |stage, one| stage.end(one)),
    ];
    for (what, act) in acts {
        let mut stage = Stage::new();
        let one = stage.amid_a_replay();
        let before = one.told().len();
        assert!((2..2_000).contains(&before), "{what}: {before} frames");
        act(&mut stage, &one);
        if what == "a family is stopped" {
            // As the loop does before the session acts again.
            one.send(&ping("p"));
            stage.turn(&[&one]);
        }
        one.texts();
        stage.settle();
        let told = one.told();
        let events = told.iter().filter(|word| word.starts_with('-')).count();
        if what == "a family is stopped" {
            assert!(events < 200, "{what}: {events} events");
        } else {
            assert_eq!(events, 0, "{what}: {told:?}");
        }
        assert_eq!(stage.resumers(), 0, "{what}");
    }
}

#[test]
fn a_session_that_does_not_read_is_passed_and_gets_the_rest_later() {
    let mut stage = Stage::with(OPTIONS, |config| {
        config.slow_consumer = SlowConsumerPolicy::Drop;
    });
    let cursor = stage.here();
    for number in 0..200 {
        stage.publish_padded(ACCOUNT, "CHANNEL_CREATE", number, 2_000);
    }
    let (slow, healthy) = (stage.session(), stage.session());
    slow.wire.borrow_mut().room = 10_000;
    for one in [&slow, &healthy] {
        one.send(&subscribe_with(ACCOUNT, &[CREATE], json!(cursor)));
    }
    stage.turn(&[&slow, &healthy]);
    stage.settle();
    let expected = after(&["resumed: true"], 0..200, &["resumed 200"]);
    assert_eq!(healthy.told(), expected);
    assert_eq!(stage.resumers(), 1);
    let waiting = stage.reactor.hub.outboxes.blocked_bytes;
    assert!(
        waiting < LAP_OUTBOX_BYTES_MAX + 4_000,
        "{waiting} bytes wait"
    );
    // It reads a little at a time.
    let mut bytes = Vec::new();
    for _ in 0..200 {
        bytes.append(&mut slow.wire.borrow_mut().to_client);
        slow.wire.borrow_mut().make_room(7_000);
        stage.turn(&[&slow]);
        stage.settle();
    }
    bytes.append(&mut slow.wire.borrow_mut().to_client);
    slow.wire.borrow_mut().to_client = bytes;
    assert_eq!(slow.told(), expected);
    assert_eq!(stage.resumers(), 0);
}

#[test]
fn a_session_that_never_reads_is_closed_or_told() {
    for policy in [SlowConsumerPolicy::Close, SlowConsumerPolicy::Drop] {
        let mut stage = Stage::with(OPTIONS, |config| config.slow_consumer = policy);
        let cursor = stage.here();
        for number in 0..100 {
            stage.publish_padded(ACCOUNT, "CHANNEL_CREATE", number, 2_000);
        }
        let one = stage.session();
        one.wire.borrow_mut().room = 10_000;
        one.send(&subscribe_with(ACCOUNT, &[CREATE], json!(cursor)));
        stage.turn(&[&one]);
        stage.settle();
        for _ in 0..80 {
            stage.clock += Duration::from_secs(1);
            stage.turn(&[]);
        }
        one.wire.borrow_mut().make_room(usize::MAX >> 1);
        stage.turn(&[&one]);
        stage.settle();
        match policy {
            SlowConsumerPolicy::Close => {
                let metrics = &stage.reactor.hub.metrics;
                assert_eq!(metrics.closes_slow_consumer_total, 1);
                assert_eq!(metrics.replays_closed_total, 1);
            }
            SlowConsumerPolicy::Drop => {
                let told = one.told();
                assert_eq!(told.last().unwrap(), "gap expired", "{told:?}");
                assert!(!told.iter().any(|word| word.starts_with("resumed ")));
                stage.publish(ACCOUNT, "CHANNEL_CREATE", 500);
                assert_eq!(one.told(), ["500"]);
            }
        }
        assert_eq!(stage.resumers(), 0);
    }
}

#[test]
fn an_outage_in_the_middle_of_a_replay_is_told_and_no_end_of_it() {
    let mut stage = Stage::new();
    let one = stage.amid_a_replay();
    let since = std::time::Instant::now();
    stage.source.send(FromSource::Down { since }).unwrap();
    stage.source.send(FromSource::Up(Return::Anew)).unwrap();
    stage.turn(&[]);
    stage.settle();
    stage.publish(ACCOUNT, "CHANNEL_CREATE", 5_000);
    let told = one.told();
    let end = told.iter().position(|word| word == "gap outage").unwrap();
    assert_eq!(told.last().unwrap(), "5000");
    assert!(told[end..].iter().all(|word| !word.starts_with('-')));
    assert!(!told.iter().any(|word| word.starts_with("resumed ")));
}

#[test]
fn a_large_event_is_replayed_to_many_in_slices() {
    let mut stage = Stage::new();
    let cursor = stage.here();
    for number in 0..3 {
        stage.publish_padded(ACCOUNT, "CHANNEL_CREATE", number, 1 << 20);
    }
    let many: Vec<One> = (0..40).map(|_| stage.session()).collect();
    for one in &many {
        one.send(&subscribe_with(ACCOUNT, &[CREATE], json!(cursor)));
    }
    stage.turn(&many.iter().collect::<Vec<_>>());
    let turns = stage.settle();
    for one in &many {
        assert_eq!(one.told(), after(&["resumed: true"], 0..3, &["resumed 3"]));
    }
    assert!(turns > 3 * 40 / 5, "all at once, in {turns} turns");
}

#[test]
fn a_storm_delays_no_live_event_and_comes_to_an_end() {
    let mut stage = Stage::new();
    let cursor = stage.here();
    stage.publish_some(ACCOUNT, 0..300);
    let live = stage.session();
    stage.ask(
        &live,
        &subscribe_with(OTHER_ACCOUNT, &[CREATE], json!(false)),
    );
    let many: Vec<One> = (0..1_000).map(|_| stage.session()).collect();
    for one in &many {
        one.send(&subscribe_with(ACCOUNT, &[CREATE], json!(cursor)));
    }
    stage.turn(&many.iter().collect::<Vec<_>>());
    let mut number = 1_000;
    for _ in 0..2_000 {
        if stage.resumers() == 0 {
            break;
        }
        // An event for another each turn, and one for all that resume now and then.
        stage.publish(OTHER_ACCOUNT, "CHANNEL_CREATE", number);
        assert_eq!(
            live.told(),
            [number.to_string()],
            "written in the turn in which it came"
        );
        number += 1;
        if number % 100 == 0 {
            stage.publish(ACCOUNT, "CHANNEL_CREATE", 300 + number / 100);
        }
    }
    assert_eq!(stage.resumers(), 0, "the storm ends");
    stage.settle();
    for one in &many {
        let told = one.told();
        assert_eq!(told[0], "resumed: true");
        let events: Vec<u64> = told
            .iter()
            .filter_map(|word| word.trim_start_matches('-').parse().ok())
            .collect();
        assert_eq!(events[..300], (0..300).collect::<Vec<u64>>());
        let mut sorted = events.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(events, sorted, "each once and in order");
        assert_eq!(
            told.iter().filter(|it| it.starts_with("resumed ")).count(),
            1
        );
    }
}

/// What one tenant can cost the others by resuming over and over: in each turn no more than the share of laps, whatever
/// the number of sessions.
#[test]
fn a_tenant_that_resumes_over_and_over_costs_the_others_a_bounded_share_of_each_turn() {
    let mut stage = Stage::new();
    let cursor = stage.here();
    stage.publish_some(ACCOUNT, 0..1_000);
    let attackers: Vec<One> = (0..300).map(|_| stage.session()).collect();
    let live = stage.session();
    stage.ask(
        &live,
        &subscribe_with(OTHER_ACCOUNT, &[CREATE], json!(false)),
    );
    let mut most = 0;
    for number in 0..100 {
        for one in &attackers {
            one.texts();
            one.send(&json!({"action": "unsubscribe"}));
            one.send(&subscribe_with(ACCOUNT, &[CREATE], json!(cursor)));
        }
        let heard: Vec<&One> = attackers.iter().collect();
        stage.turn(&heard);
        let before = stage.reactor.hub.metrics.clone();
        let (events, flushed) = (before.lap_events_total, before.writes_total);
        stage.publish(OTHER_ACCOUNT, "CHANNEL_CREATE", number);
        let metrics = &stage.reactor.hub.metrics;
        assert!(metrics.lap_events_total - events <= LAP_EVENTS_PER_TURN_MAX as u64);
        // No more than one turn writes to, and laps have half of that.
        assert!(metrics.writes_total - flushed <= 250);
        let frames = metrics.frames_replayed_total - before.frames_replayed_total;
        assert!(frames <= (LAP_FRAMES_PER_TURN_MAX + LAP_EVENTS_PER_TURN_MAX) as u64);
        most = most.max(metrics.writes_total - flushed);
        // It may stand behind what one turn flushes.
        let mut told = live.told();
        if told.is_empty() {
            stage.turn(&[]);
            told = live.told();
        }
        assert_eq!(told, [number.to_string()]);
    }
    assert!(most as usize > LAP_FLUSHES_MAX / 2, "{most}: no storm");
}

#[test]
fn a_replay_that_takes_no_end_is_ended() {
    let mut stage = Stage::with(OPTIONS, |config| {
        config.slow_consumer = SlowConsumerPolicy::Drop;
    });
    let cursor = stage.here();
    let one = stage.session();
    stage.publish_padded(ACCOUNT, "CHANNEL_CREATE", 0, 2_000);
    one.wire.borrow_mut().room = 1_000;
    one.send(&subscribe_with(ACCOUNT, &[CREATE], json!(cursor)));
    stage.turn(&[&one]);
    // It takes each event just before it is too old, and there is always another.
    let mut told = Vec::new();
    for second in 1..=RESUMING_MAX.as_secs() + 2 {
        stage.publish_padded(ACCOUNT, "CHANNEL_CREATE", second, 2_000);
        stage.clock += Duration::from_secs(1);
        one.wire.borrow_mut().make_room(2_300);
        stage.turn(&[&one]);
        stage.settle();
        let whole = {
            let wire = one.wire.borrow();
            server_frames(&wire.to_client).1 == wire.to_client.len()
        };
        if whole {
            told.append(&mut one.told());
        }
    }
    one.wire.borrow_mut().make_room(usize::MAX >> 1);
    stage.turn(&[&one]);
    stage.settle();
    told.append(&mut one.told());
    assert_eq!(stage.resumers(), 0);
    let ends: HashMap<&str, usize> = HashMap::from([
        (
            "gap too_many",
            told.iter().filter(|it| *it == "gap too_many").count(),
        ),
        (
            "resumed",
            told.iter().filter(|it| it.starts_with("resumed ")).count(),
        ),
    ]);
    assert!(ends["gap too_many"] + ends["resumed"] >= 1, "{ends:?}");
}

#[test]
fn nothing_is_left_of_a_replay() {
    let mut stage = Stage::new();
    let cursor = stage.here();
    stage.publish_some(ACCOUNT, 0..500);
    let before = stage.reactor.hub.subscriptions.index().counts();
    let many: Vec<One> = (0..20).map(|_| stage.session()).collect();
    for one in &many {
        one.send(&subscribe_with(ACCOUNT, &[CREATE, ANSWER], json!(cursor)));
    }
    stage.turn(&many.iter().collect::<Vec<_>>());
    stage.settle();
    many.iter().for_each(|one| stage.end(one));
    let after = stage.reactor.hub.subscriptions.index().counts();
    assert_eq!(before, after);
    assert_ne!(before, IndexCounts::default());
    assert_eq!(stage.resumers(), 0);
}

#[test]
fn a_ping_names_the_last_place_that_was_sent() {
    let mut stage = Stage::new();
    let cursor = stage.here();
    stage.publish_some(ACCOUNT, 0..2_000);
    let one = stage.session();
    one.send(&subscribe_with(ACCOUNT, &[CREATE], json!(cursor)));
    stage.turn(&[&one]);
    stage.turn(&[]);
    one.send(&ping("p"));
    stage.turn(&[&one]);
    stage.settle();
    let texts = one.texts();
    let at = texts
        .iter()
        .position(|text| text["data"]["response"] == "pong")
        .unwrap();
    let sent = texts[..at].iter().rfind(|text| text["action"] == "event");
    assert_eq!(cursor_of(&texts[at]), sent.map_or(cursor, cursor_of));
    let place = Cursor::parse(&cursor_of(&texts[at])).unwrap();
    assert!(place.time > 0);
    assert_eq!(Why::TooMany.word(), "too_many");
}

/// Two accounts with a token each.
fn two_tenants() -> (Scratch, Stage) {
    let tokens = json!({"A": {"account_id": ACCOUNT}, "B": {"account_id": OTHER_ACCOUNT},
        "both": {"account_id": ACCOUNT, "superduper_admin": true}});
    let scratch = Scratch::file("tokens.json", &tokens.to_string());
    let option = format!("--auth=tokens:{}", scratch.path().display());
    let stage = Stage::of(&[&option], "both", OPTIONS, |_| {});
    (scratch, stage)
}

fn with_token(token: &str, mut command: Value) -> Value {
    command["auth_token"] = json!(token);
    command
}

#[test]
fn who_becomes_another_in_the_middle_of_a_replay_is_sent_nothing_more_of_before() {
    let (_scratch, mut stage) = two_tenants();
    let cursor = stage.here_of("A");
    stage.publish_some(ACCOUNT, 0..2_000);
    stage.publish_some(OTHER_ACCOUNT, 2_000..2_003);
    let one = stage.session();
    let resume =
        |token, account| with_token(token, subscribe_with(account, &[CREATE], json!(cursor)));
    one.send(&resume("A", ACCOUNT));
    stage.turn(&[&one]);
    stage.turn(&[]);
    assert!(one.told().len() < 2_000, "in the middle");
    one.send(&resume("B", OTHER_ACCOUNT));
    stage.turn(&[&one]);
    let texts = one.texts();
    let at = texts
        .iter()
        .position(|text| text["name"] == "subscriptions_ended")
        .unwrap();
    stage.settle();
    let words = |texts: &[Value]| texts.iter().map(word).collect::<Vec<_>>();
    let told = [words(&texts[at + 1..]), one.told()].concat();
    assert_eq!(told[..4], after(&["resumed: true"], 2_000..2_003, &[])[..]);
    assert!(told[4].starts_with("resumed "), "{told:?}");
    assert_eq!((told.len(), stage.resumers()), (5, 0));
}

#[test]
fn a_right_that_is_taken_away_in_the_middle_of_a_replay_is_gone() {
    let (scratch, mut stage) = two_tenants();
    let cursor = stage.here_of("A");
    stage.publish_some(ACCOUNT, 0..2_000);
    let one = stage.session();
    one.send(&with_token(
        "both",
        subscribe_with(ACCOUNT, &[CREATE], json!(cursor)),
    ));
    stage.turn(&[&one]);
    stage.turn(&[]);
    one.texts();
    scratch.write(&json!({"both": {"account_id": OTHER_ACCOUNT}}).to_string());
    stage.reread();
    stage.settle();
    let told = one.texts();
    assert_eq!(told[0]["name"], "subscriptions_ended");
    let told: Vec<String> = told[1..].iter().map(word).collect();
    assert!(
        told.len() == 1 && told[0].starts_with("resumed "),
        "{told:?}"
    );
}

/// A live event that is still being handed out in slices is neither lost to a session that resumes meanwhile, nor to one
/// whose replay would end meanwhile.
#[test]
fn an_event_in_slices_is_lost_to_nobody() {
    let mut stage = Stage::new();
    let large = EVENT_SLICE_BYTES_MAX as usize / 3;
    // Groups of their own: each has other bindings.
    let live: Vec<One> = (0..8).map(|_| stage.session()).collect();
    for (number, one) in live.iter().enumerate() {
        let bindings = [
            ["call.CHANNEL_CREATE.*"],
            ["call.*.*"],
            ["call.CHANNEL_CREATE.x"],
            ["call.*.x"],
        ];
        let mut command = subscribe_with(ACCOUNT, &bindings[number % 4], json!(true));
        if number >= 4 {
            command["data"]["account_id"] = json!("*");
        }
        let reply = stage.ask(one, &command);
        assert_eq!(reply["status"], "success", "{reply}");
    }
    stage.clock += LATER;
    stage.turn(&[]);
    stage.settle();
    let cursor = stage.here();
    stage.publish(ACCOUNT, "CHANNEL_CREATE", 0);
    stage.settle();
    let resuming = stage.session();
    resuming.send(&subscribe_with(ACCOUNT, &[CREATE], json!(cursor)));
    stage.turn(&[&resuming]);
    stage.publish_padded(ACCOUNT, "CHANNEL_CREATE", 1, large);
    assert!(stage.reactor.hub.resumers.is_sliced, "in slices");
    // The last groups do not have it yet; one of them resumes for something else.
    let late = &live[7];
    late.send(&subscribe_with(OTHER_ACCOUNT, &[ANSWER], json!(cursor)));
    stage.turn(&[late]);
    stage.settle();
    stage.publish(ACCOUNT, "CHANNEL_CREATE", 2);
    stage.settle();
    for one in live.iter().chain([&resuming]) {
        let told = one.told();
        let mut events: Vec<u64> = told
            .iter()
            .filter_map(|word| word.trim_start_matches('-').parse().ok())
            .collect();
        events.dedup();
        assert_eq!(events, [0, 1, 2], "{told:?}");
    }
    let metrics = &stage.reactor.hub.metrics;
    assert!(metrics.events_sliced_total > 0);
    assert_eq!(stage.resumers(), 0);
}

#[test]
fn a_client_resumes_over_the_wire() {
    let mut fed = Fed::insecure(&[]);
    let mut first = Client::connect(fed.server.address());
    first.send(&subscribe_with(ACCOUNT, &[CREATE], json!(true)));
    let here = first.reply();
    // The binding must be known to be in force since before the cursor.
    let publish = |fed: &mut Fed, number| {
        let event = call_event(ACCOUNT, "CHANNEL_CREATE", number);
        fed.publish("callevt", "call.CHANNEL_CREATE.x", &event);
    };
    publish(&mut fed, 0);
    let last = first.event();
    assert_eq!(word(&last), "0");
    let mut keeper = Client::connect(fed.server.address());
    keeper.must_subscribe(ANY_TOKEN, ACCOUNT, CREATE);
    first.close();
    (1..4).for_each(|number| publish(&mut fed, number));
    (1..4).for_each(|number| assert_eq!(word(&keeper.event()), number.to_string()));
    for (cursor, from) in [(cursor_of(&last), 1), (cursor_of(&here), 0)] {
        let mut second = Client::connect(fed.server.address());
        second.send(&subscribe_with(ACCOUNT, &[CREATE], json!(cursor)));
        let told: Vec<String> = (from..4 + 2).map(|_| word(&second.recv())).collect();
        let end = format!("resumed {}", 4 - from);
        assert_eq!(told, after(&["resumed: true"], from..4, &[&end]));
        second.close();
    }
    fed.server.wait_for_metric("sessions_resuming", 0);
    assert_eq!(fed.server.metric(r#"resumes_total{result="resumed"}"#), 2);
    assert_eq!(fed.server.metric("frames_replayed_total"), 3 + 4);
}

/// What another process has sent already comes here a little later: it must come as replayed, so that the client knows it
/// for a double.
#[test]
fn who_comes_from_a_process_that_was_ahead_gets_what_is_late_here_as_replayed() {
    let event = |number: u64| {
        let body = json!({"Event-Name": "CHANNEL_CREATE", "Account-ID": ACCOUNT, "Number": number,
            "Padding": ""});
        let body = body.to_string().into_bytes();
        EventId::of("callevt", "call.CHANNEL_CREATE.x", &body)
    };
    for (named, comes_at) in [(Some(1), 2), (None, u64::MAX), (Some(99), u64::MAX)] {
        let mut stage = Stage::new();
        stage.publish_some(ACCOUNT, 0..1);
        let here = Cursor::parse(&stage.here()).unwrap();
        let cursor = Cursor {
            id: named.map(event),
            time: here.time,
            mark: Mark::from_random(8),
        };
        let one = stage.session();
        one.send(&subscribe_with(
            ACCOUNT,
            &[CREATE],
            json!(cursor.to_string()),
        ));
        stage.turn(&[&one]);
        stage.settle();
        assert_eq!(one.told(), ["resumed: true", "-0"]);
        for number in 1..4 {
            stage.publish(ACCOUNT, "CHANNEL_CREATE", number);
            stage.settle();
            let expected = match number {
                _ if number < comes_at => vec![format!("-{number}")],
                _ => vec![number.to_string()],
            };
            let mut told = one.told();
            told.retain(|word| !word.starts_with("resumed "));
            assert_eq!(told, expected, "{named:?}");
        }
        let waits = usize::from(comes_at == u64::MAX);
        assert_eq!(stage.resumers(), waits);
        let patience = stage.reactor.patience(now(stage.clock));
        assert!(patience <= OPTIONS.overlap);
        stage.clock += OPTIONS.overlap;
        stage.turn(&[]);
        stage.settle();
        assert_eq!(stage.resumers(), 0);
        stage.publish(ACCOUNT, "CHANNEL_CREATE", 9);
        assert_eq!(one.told().last().unwrap(), "9");
    }
}

/// Three subscribes with a cursor each on one line: the first waits for the broker, so the replies of the others wait behind
/// it, and must say only what is true when they are sent.
#[test]
fn a_reply_that_waited_names_no_place_that_the_session_has_not_come_to() {
    let mut stage = Stage::new();
    let before = stage.here();
    stage.publish_some(ACCOUNT, 0..3);
    let here = stage.here();
    let one = stage.session();
    // A binding that nobody has yet; it is known since a moment ago only, so this one is refused.
    one.send(&subscribe_with(
        ACCOUNT,
        &["call.PARK_PARKED.*"],
        json!(before),
    ));
    // This one has missed nothing, and this one three events.
    one.send(&subscribe_with(ACCOUNT, &[ANSWER], json!(here)));
    one.send(&subscribe_with(ACCOUNT, &[CREATE], json!(before)));
    stage.turn(&[&one]);
    stage.settle();
    let texts = one.texts();
    let told: Vec<String> = texts.iter().map(word).collect();
    let refused = ["resumed: false", "gap unknown"];
    assert_eq!(told[..2], refused);
    let resumed = after(&["resumed: true", "resumed: true"], 0..3, &["resumed 3"]);
    assert_eq!(told[2..], resumed);
    let at_replay = texts
        .iter()
        .position(|text| text["replayed"] == true)
        .unwrap();
    for reply in texts[..at_replay]
        .iter()
        .filter(|text| text["action"] == "reply")
    {
        assert_eq!(cursor_of(reply), before, "{reply}");
    }
}
