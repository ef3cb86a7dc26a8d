//! A right that moves, and subscribes that wait side by side (PROTOCOL 3 and 4), on scripted sockets and a virtual
//! clock: the test is the broker, and decides what it confirms, what it refuses, and when.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blackhole::config::Config;
use blackhole::event::Event;
use blackhole::handoff::{FromSource, Return, SourceEnd, ToSource};
use blackhole::limits::{HELD_BYTES_MAX, HELD_TOTAL_BYTES_MAX};
use blackhole::metrics::commands::CommandResult;
use blackhole::reactor::{Reactor, Ready};
use blackhole::routing::amqp_binding::{AmqpBinding, Asked, Ticket};
use blackhole::routing::broker_bindings::BindingCounts;
use blackhole::session::ListenerKind;
use blackhole::session::id::{ConnId, Peer};
use blackhole::session::replies::HeldTotals;
use fastrand::Rng;
use serde_json::{Value, json};
use support::scripted::{Scripted, Wire, config, now, reactor, under_seeds};
use support::server::TokenFile;
use support::wire::{UPGRADE_REQUEST, client_frame, client_text, server_frames};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const SECOND: Duration = Duration::from_secs(1);

/// A loop between scripted clients and a broker that the test plays.
struct World {
    reactor: Reactor<Scripted>,
    source: SourceEnd,
    tokens: TokenFile,
    clients: Vec<Client>,
    clock: Duration,
    /// Bindings that the loop asks for; whether they were confirmed.
    bindings: BTreeMap<AmqpBinding, bool>,
    tickets: HashMap<AmqpBinding, Ticket>,
}

struct Client {
    id: ConnId,
    wire: Rc<RefCell<Wire>>,
    /// What it was sent and the test has not looked at.
    frames: VecDeque<Value>,
    pongs: usize,
}

impl World {
    fn new(tokens: &Value, change: impl FnOnce(&mut Config)) -> Self {
        let tokens = TokenFile::new(tokens);
        let mut config = config(&["--auth", &tokens.option(), "--history-bytes=0"]);
        change(&mut config);
        let (source, reactor) = reactor(&config, 100_000, 1);
        source.send(FromSource::Up(Return::Anew)).unwrap();
        Self {
            reactor,
            source,
            tokens,
            clients: Vec::new(),
            clock: Duration::ZERO,
            bindings: BTreeMap::new(),
            tickets: HashMap::new(),
        }
    }

    /// A session, and its index.
    fn connect(&mut self) -> usize {
        let wire = Wire::new(usize::MAX, usize::MAX);
        wire.borrow_mut().send(UPGRADE_REQUEST.as_bytes());
        let port = 1000 + u16::try_from(self.clients.len()).unwrap();
        let peer = Peer::from(SocketAddr::from(([127, 0, 0, 1], port)));
        let socket = Scripted(wire.clone());
        let id = self
            .reactor
            .accept(socket, peer, ListenerKind::Clients, now(self.clock))
            .unwrap();
        self.clients.push(Client {
            id,
            wire,
            frames: VecDeque::new(),
            pongs: 0,
        });
        self.turn();
        self.clients.len() - 1
    }

    /// Turns until nothing is left to be done now, and takes what came of it. The broker says nothing by itself.
    fn turn(&mut self) {
        for _ in 0..10_000 {
            let ready = |client: &Client| {
                std::mem::take(&mut client.wire.borrow_mut().edge_readable).then_some(Ready {
                    id: client.id,
                    readable: true,
                    writable: true,
                    read_closed: false,
                })
            };
            let ready: Vec<Ready> = self.clients.iter().filter_map(ready).collect();
            self.reactor.turn(&ready, now(self.clock));
            let is_at_rest = self.reactor.patience(now(self.clock)) > Duration::ZERO;
            // A source that takes commands is given those that were kept behind them.
            if ready.is_empty() && is_at_rest && !self.look() {
                return;
            }
        }
        panic!("does not come to rest");
    }

    /// Whether the source was told anything.
    fn look(&mut self) -> bool {
        let mut was_told = false;
        for command in self.source.commands.try_iter().flatten() {
            was_told = true;
            match command {
                ToSource::Bind {
                    binding, ticket, ..
                } => {
                    self.bindings.insert(binding.clone(), false);
                    self.tickets.insert(binding, ticket);
                }
                ToSource::Unbind(binding) => drop(self.bindings.remove(&binding)),
                ToSource::Join { .. } | ToSource::Stop => {}
            }
        }
        for client in &mut self.clients {
            let bytes = std::mem::take(&mut client.wire.borrow_mut().to_client);
            let head = bytes.windows(4).position(|end| end == b"\r\n\r\n");
            let head = head.filter(|_| bytes.starts_with(b"HTTP/1.1 101"));
            let frames = &bytes[head.map_or(0, |end| end + 4)..];
            for (opcode, payload) in server_frames(frames).0 {
                match opcode {
                    1 => client
                        .frames
                        .push_back(serde_json::from_slice(&payload).unwrap()),
                    10 => client.pongs += 1,
                    8 => client.frames.push_back(json!({"close":
                        u16::from_be_bytes([payload[0], payload[1]])})),
                    _ => {}
                }
            }
        }
        was_told
    }

    fn wait(&mut self, time: Duration) {
        self.clock += time;
        self.turn();
    }

    fn send(&mut self, client: usize, command: &Value) {
        let frame = client_text(&command.to_string());
        self.clients[client].wire.borrow_mut().send(&frame);
    }

    /// A subscribe under this request id; nothing is done yet.
    fn subscribe(&mut self, client: usize, token: &str, account: &str, binding: &str, id: &str) {
        self.send(
            client,
            &json!({"action": "subscribe", "auth_token": token, "request_id": id,
                "data": {"account_id": account, "binding": binding}}),
        );
    }

    /// All that came since the test last looked, in short.
    fn told(&mut self, client: usize) -> Vec<String> {
        self.turn();
        let frames = std::mem::take(&mut self.clients[client].frames);
        frames.iter().map(short).collect()
    }

    /// What the broker is asked for and has not confirmed, by its key.
    fn asked(&self) -> Vec<&str> {
        let unanswered = self.bindings.iter().filter(|(_, is_bound)| !**is_bound);
        unanswered.map(|(binding, _)| &*binding.key).collect()
    }

    fn known(&self, is: impl Fn(&str) -> bool) -> Vec<Asked> {
        let known = self.bindings.keys().filter(|binding| is(&binding.key));
        let asked = known.cloned().map(|binding| Asked {
            ticket: self.tickets[&binding],
            binding,
        });
        asked.collect()
    }

    /// The broker confirms the bindings of these keys.
    fn bind(&mut self, is: impl Fn(&str) -> bool) {
        let bound = self.known(is);
        assert!(!bound.is_empty());
        for bound in &bound {
            self.bindings.insert(bound.binding.clone(), true);
        }
        self.source.send(FromSource::Bound(bound)).unwrap();
        self.turn();
    }

    fn bind_all(&mut self) {
        if !self.asked().is_empty() {
            self.bind(|_| true);
        }
    }

    /// The broker refuses them.
    fn refuse(&mut self, is: impl Fn(&str) -> bool) {
        let lost = self.known(is);
        assert!(!lost.is_empty());
        self.source.send(FromSource::Lost(lost)).unwrap();
        self.turn();
    }

    /// An event, if the broker has a binding in force for it.
    fn publish(&mut self, exchange: &str, key: &str, body: &Value) {
        let routes = |pattern: &str| {
            let (want, is): (Vec<_>, Vec<_>) =
                (pattern.split('.').collect(), key.split('.').collect());
            want.len() == is.len()
                && want
                    .iter()
                    .zip(&is)
                    .all(|(want, is)| *want == "*" || want == is)
        };
        if !self.bindings.iter().any(|(binding, is_bound)| {
            *is_bound && *binding.exchange == *exchange && routes(&binding.key)
        }) {
            return;
        }
        let body = body.to_string().into_bytes();
        let event = Event::decode(exchange.into(), key.into(), body, None).unwrap();
        self.source
            .send(FromSource::Event(Arc::new(event)))
            .unwrap();
    }

    fn publish_presence(&mut self, realm: &str, number: usize) {
        let key = format!("dialog.{}.c1", realm.replace('.', "%2E"));
        let body = json!({"Event-Name": "dialog", "Realm": realm, "Number": number});
        self.publish("presence", &key, &body);
    }

    /// SIGHUP with this token file, but for the thread.
    fn reread(&mut self, tokens: &Value) {
        self.tokens.write(&tokens.to_string());
        self.reactor
            .hub
            .authenticator
            .reload(blackhole::config::read_tokens, blackhole::config::read_keys)
            .unwrap();
        self.reactor.renew_identities();
    }

    /// Everybody goes, and nothing may be left.
    fn end(mut self) {
        for client in &self.clients {
            let mut wire = client.wire.borrow_mut();
            wire.is_reset = true;
            wire.edge_readable = true;
        }
        self.turn();
        let hub = &self.reactor.hub;
        // A bind that is under way is waited for.
        assert_eq!(
            hub.subscriptions.broker().counts(),
            BindingCounts::default()
        );
        assert_eq!(
            (
                hub.subscriptions.broker().waiters(),
                hub.subscriptions.index().counts().subscriptions
            ),
            (0, 0)
        );
        assert_eq!(hub.held, HeldTotals::default());
        assert_eq!(hub.occupancy.accounts().kinds(), 0);
        self.bind_all();
        self.wait(60 * SECOND);
        assert!(self.bindings.is_empty(), "{:?}", self.bindings);
        assert_eq!(self.reactor.hub.deadlines.next_due(), None);
    }
}

/// A frame in a few words.
fn short(frame: &Value) -> String {
    let id = frame["request_id"].as_str().unwrap_or_default();
    let data = &frame["data"];
    match frame["action"].as_str() {
        Some("reply") if frame["status"] == "error" => format!("{id} {}", data["errors"]),
        Some("reply") if data["response"] == "pong" => format!("{id} pong"),
        Some("reply") if !data["unsubscribed"].is_null() => {
            format!("{id} -{} {}", data["unsubscribed"], data["subscribed"])
        }
        Some("reply") => format!("{id} {}", data["subscribed"]),
        Some("notice") => format!("{} {data}", frame["name"].as_str().unwrap()),
        Some("event") => format!(
            "event {} {}",
            frame["subscription_key"], frame["args"]["Number"]
        ),
        _ => frame.to_string(),
    }
}

fn realms(a: Option<&str>, b: Option<&str>) -> Value {
    let with_realm = |account: &str, realm: Option<&str>| match realm {
        Some(realm) => json!({"account_id": account, "realm": realm}),
        None => json!({"account_id": account}),
    };
    json!({"a": with_realm(A, a), "b": with_realm(B, b)})
}

const UNAVAILABLE: &str = r#"["event source unavailable"]"#;
const DIALOG: &str = "presence.dialog.*";

// Subscribes that wait (item: waits side by side).

#[test]
fn subscribes_that_cannot_succeed_are_refused_as_soon_as_that_is_known_and_hold_up_nobody() {
    let mut world = World::new(&realms(None, None), |_| {});
    let one = world.connect();
    for id in ["r1", "r2", "r3"] {
        world.subscribe(one, "a", A, &format!("conference.event.{id}.*"), id);
    }
    world.subscribe(one, "a", A, "call.CHANNEL_CREATE.*", "good");
    world.send(one, &json!({"action": "ping", "request_id": "ping"}));
    world.clients[one]
        .wire
        .borrow_mut()
        .send(&client_frame(0x89, b""));
    assert_eq!(world.told(one), ["ping pong"], "whatever waits before it");
    assert_eq!(world.clients[one].pongs, 1);
    // The good one's answer is there first, and waits for its turn; its events do not.
    world.bind(|key| key.starts_with("call."));
    world.publish(
        "callevt",
        "call.CHANNEL_CREATE.c",
        &json!({"Event-Name": "CHANNEL_CREATE", "Number": 1, "Custom-Channel-Vars": {"Account-ID": A}}),
    );
    let key = format!(r#"event "call.{A}.CHANNEL_CREATE.*" 1"#);
    assert_eq!(world.told(one), [key]);
    world.refuse(|key| key.starts_with("conference."));
    assert_eq!(
        world.told(one),
        [
            format!("r1 {UNAVAILABLE}"),
            format!("r2 {UNAVAILABLE}"),
            format!("r3 {UNAVAILABLE}"),
            r#"good ["call.CHANNEL_CREATE.*"]"#.to_owned(),
        ]
    );
    assert_eq!(
        world
            .reactor
            .hub
            .metrics
            .commands
            .of_result(CommandResult::BrokerRefused),
        3
    );
    assert_eq!(
        world
            .reactor
            .hub
            .metrics
            .commands
            .of_result(CommandResult::BrokerTimeout),
        0
    );
    world.end();
}

#[test]
fn what_the_broker_refuses_already_is_refused_on_arrival_until_it_takes_it_again() {
    let mut world = World::new(&realms(None, None), |_| {});
    let (one, two) = (world.connect(), world.connect());
    let ask = |world: &mut World, client, id: &str| {
        world.subscribe(client, "a", A, "fax.status.*", id);
        world.told(client)
    };
    assert_eq!(ask(&mut world, one, "r1"), [""; 0]);
    world.bind_all();
    assert_eq!(world.told(one), [r#"r1 ["fax.status.*"]"#]);
    // Somebody declares the exchange as another type; who is subscribed stays so.
    world.refuse(|_| true);
    for (client, id) in [(two, "r2"), (one, "r3")] {
        assert_eq!(ask(&mut world, client, id), [format!("{id} {UNAVAILABLE}")]);
    }
    // A broker that is away has not refused anything: it may come back otherwise.
    world
        .source
        .send(FromSource::Down {
            since: std::time::Instant::now(),
        })
        .unwrap();
    world.turn();
    assert_eq!(ask(&mut world, two, "r4"), [""; 0]);
    world.bind(|_| true);
    world.source.send(FromSource::Up(Return::Anew)).unwrap();
    assert_eq!(world.told(two), [r#"r4 ["fax.status.*"]"#]);
    world.end();
}

#[test]
fn each_subscribe_has_its_own_time_from_its_arrival() {
    let mut world = World::new(&realms(None, None), |_| {});
    let one = world.connect();
    for second in 0..4 {
        for number in 0..2 {
            let id = format!("{second}.{number}");
            world.subscribe(one, "a", A, &format!("fax.status.{second}-{number}"), &id);
        }
        assert_eq!(world.told(one), [""; 0]);
        world.wait(SECOND);
    }
    world.send(one, &json!({"action": "fly", "request_id": "last"}));
    world.wait(5 * SECOND);
    // The third second's are confirmed, in the wrong order.
    world.bind(|key| key.ends_with("2-1"));
    world.bind(|key| key.ends_with("2-0"));
    assert_eq!(
        world.told(one),
        [""; 0],
        "a second before the first are due"
    );
    let failed = |id: &str| format!("{id} {UNAVAILABLE}");
    world.wait(SECOND);
    assert_eq!(world.told(one), [failed("0.0"), failed("0.1")]);
    world.wait(SECOND);
    let both = r#"["fax.status.2-1","fax.status.2-0"]"#;
    assert_eq!(
        world.told(one),
        [
            failed("1.0"),
            failed("1.1"),
            format!("2.0 {both}"),
            format!("2.1 {both}")
        ]
    );
    world.wait(2 * SECOND);
    assert_eq!(
        world.told(one),
        [
            failed("3.0"),
            failed("3.1"),
            r#"last ["unknown action fly"]"#.to_owned()
        ]
    );
    world.end();
}

#[test]
fn an_unsubscribe_behind_subscribes_that_wait_takes_from_them_what_it_means() {
    let list = |id: &str, action: &str, bindings: &[&str]| {
        json!({"action": action, "request_id": id, "auth_token": "a",
            "data": {"account_id": A, "bindings": bindings}})
    };
    let (x, y, z) = ("fax.status.x", "fax.status.y", "fax.status.z");
    for (what, expected) in [
        // All of what waits: nothing waits any more, the broker is not asked for it.
        (
            json!({"action": "unsubscribe", "request_id": "u"}),
            vec![
                r#"s1 []"#,
                r#"s2 []"#,
                r#"u -["fax.status.z","fax.status.x","fax.status.y"] []"#,
            ],
        ),
        // A part: the rest goes on waiting, and the answer behind it.
        (
            list("u", "unsubscribe", &[y, z, "fax.status.never"]),
            vec![],
        ),
        (list("u", "unsubscribe", &["fax.status.never"]), vec![]),
    ] {
        let mut world = World::new(&realms(None, None), |_| {});
        let one = world.connect();
        world.send(one, &list("live", "subscribe", &[z]));
        world.turn();
        world.bind_all();
        world.told(one);
        world.send(one, &list("s1", "subscribe", &[x, y]));
        world.send(one, &list("s2", "subscribe", &[y]));
        world.turn();
        world.send(one, &what);
        assert_eq!(world.told(one), expected, "{what}");
        if expected.is_empty() {
            let is_part = what["data"]["bindings"][0] == y;
            world.bind_all();
            let (left, removed) = if is_part {
                (r#"["fax.status.x"]"#, r#"["fax.status.y","fax.status.z"]"#)
            } else {
                (r#"["fax.status.z","fax.status.x","fax.status.y"]"#, "[]")
            };
            assert_eq!(
                world.told(one),
                [
                    format!("s1 {left}"),
                    format!("s2 {left}"),
                    format!("u -{removed} {left}")
                ]
            );
        }
        world.end();
    }
}

#[test]
fn subscribes_that_wait_count_as_subscriptions_and_one_asked_for_twice_counts_once() {
    let mut world = World::new(&realms(None, None), |config| {
        config.max_subscriptions = Some(3)
    });
    let one = world.connect();
    for (at, binding) in ["a", "b", "a", "b", "c", "c", "d"].into_iter().enumerate() {
        world.subscribe(
            one,
            "a",
            A,
            &format!("fax.status.{binding}"),
            &at.to_string(),
        );
    }
    world.turn();
    world.bind_all();
    let told = world.told(one);
    assert_eq!(told.len(), 7);
    assert!(
        told[..6].iter().all(|reply| !reply.contains("too many")),
        "{told:?}"
    );
    assert_eq!(told[6], r#"6 ["too many subscriptions (max 3)"]"#);
    world.end();
}

#[test]
fn what_is_held_is_bounded_for_a_session_and_in_all() {
    let mut world = World::new(&realms(None, None), |config| {
        config.rate_limit_burst = 0;
        config.max_subscriptions = None;
        config.max_bindings_per_session = None;
        config.max_message_bytes = None;
        config.max_connections_per_ip = None;
    });
    // Of one session: the oldest is given up.
    let one = world.connect();
    for number in 0..3000 {
        let binding = format!("fax.status.{number}-{}", "x".repeat(100));
        world.subscribe(one, "a", A, &binding, &number.to_string());
    }
    let told = world.told(one);
    let held = world.reactor.hub.held;
    assert!(
        held.bytes <= HELD_BYTES_MAX && held.bytes > HELD_BYTES_MAX / 2,
        "{held:?}"
    );
    assert_eq!(told.len() + held.replies, 3000);
    assert!(
        told.iter()
            .enumerate()
            .all(|(at, reply)| *reply == format!("{at} {UNAVAILABLE}"))
    );
    // One alone may be as large as it is.
    let large = world.connect();
    let list: Vec<String> = (0..5_000).map(|n| format!("fax.status.l{n}")).collect();
    world.send(
        large,
        &json!({"action": "subscribe", "auth_token": "a", "data": {"account_id": A, "bindings": list}}),
    );
    assert_eq!(world.told(large), [""; 0]);
    // In all, as if others had it: who would wait beyond is refused at once.
    world.reactor.hub.held.bytes += HELD_TOTAL_BYTES_MAX;
    let late = world.connect();
    world.subscribe(late, "a", A, "fax.status.late", "late");
    assert_eq!(world.told(late), [format!("late {UNAVAILABLE}")]);
    world.reactor.hub.held.bytes -= HELD_TOTAL_BYTES_MAX;
    world.bind_all();
    world.subscribe(late, "a", A, "fax.status.late", "late");
    world.turn();
    world.bind_all();
    assert_eq!(world.told(late), [r#"late ["fax.status.late"]"#]);
    world.end();
}

// Rights that move.

#[test]
fn a_realm_that_moves_takes_live_and_waiting_subscriptions_away_from_who_had_it() {
    let mut world = World::new(&realms(Some("r.example"), None), |_| {});
    let (a, b) = (world.connect(), world.connect());
    world.subscribe(a, "a", A, DIALOG, "live");
    world.turn();
    world.bind_all();
    world.subscribe(a, "a", A, "presence.update.*", "waits");
    world.subscribe(a, "a", A, "call.CHANNEL_CREATE.*", "other");
    world.subscribe(b, "b", B, DIALOG, "early");
    world.publish_presence("r.example", 1);
    assert_eq!(
        world.told(a),
        [
            r#"live ["presence.dialog.*"]"#,
            r#"event "dialog.r%2Eexample.*" 1"#
        ]
    );
    let none = r#"["no available subscriptions to requested binding"]"#;
    assert_eq!(world.told(b), [format!("early {none}")]);

    world.reread(&realms(None, Some("r.example")));
    // Before the loop has turned: nobody is to see it by the old right.
    world.publish_presence("r.example", 2);
    assert_eq!(
        world.told(a),
        [
            r#"subscriptions_ended {"bindings":["presence.dialog.*"],"reason":"rights"}"#
                .to_owned(),
            format!("waits {none}"),
        ]
    );
    world.subscribe(a, "a", A, DIALOG, "again");
    world.subscribe(b, "b", B, DIALOG, "mine");
    world.turn();
    world.bind_all();
    world.publish_presence("r.example", 3);
    assert_eq!(
        world.told(a),
        [
            r#"other ["call.CHANNEL_CREATE.*"]"#.to_owned(),
            format!("again {none}")
        ]
    );
    assert_eq!(
        world.told(b),
        [
            r#"mine ["presence.dialog.*"]"#,
            r#"event "dialog.r%2Eexample.*" 3"#
        ]
    );
    world.end();
}

#[test]
fn a_subscription_whose_account_gets_another_realm_goes_on_with_that_and_is_told_what_it_may_have_missed()
 {
    let mut world = World::new(&realms(Some("one.example"), Some("two.example")), |_| {});
    let (a, b) = (world.connect(), world.connect());
    for (client, token, account) in [(a, "a", A), (b, "b", B)] {
        world.subscribe(client, token, account, DIALOG, "live");
        world.subscribe(client, token, account, "call.*.c", "call");
    }
    world.turn();
    world.bind(|key| key.starts_with("dialog"));
    world.bind_all();
    world.told(a);
    world.told(b);
    world.subscribe(a, "a", A, "registration.success", "waits");
    world.turn();
    let all = r#"["presence.dialog.*","call.*.c"]"#;

    // B has A's realm now, and A has a new one, which the broker has yet to confirm.
    world.reread(&realms(Some("new.example"), Some("one.example")));
    world.publish_presence("one.example", 1);
    assert_eq!(world.told(a), [""; 0]);
    assert_eq!(
        world.told(b),
        [r#"event "dialog.one%2Eexample.*" 1"#],
        "bound already"
    );
    for key in [
        "dialog.new%2Eexample.*",
        "registration.success.new%2Eexample.*",
    ] {
        assert!(world.asked().contains(&key), "{:?}", world.asked());
    }
    // To subscribe again to what is dark is no success before it is live.
    world.subscribe(a, "a", A, DIALOG, "again");
    assert_eq!(world.told(a), [""; 0]);
    world.wait(SECOND);
    world.bind(|key| key.starts_with("dialog.new"));
    assert_eq!(
        world.told(a),
        [r#"gap {"reason":"event_source","seconds":1.0}"#],
        "told before the next event; `again` waits behind `waits`"
    );
    world.publish_presence("new.example", 2);
    assert_eq!(world.told(a), [r#"event "dialog.new%2Eexample.*" 2"#]);
    world.bind_all();
    let with_last = all.replace(']', r#","registration.success"]"#);
    assert_eq!(
        world.told(a),
        [format!("waits {with_last}"), format!("again {with_last}")],
        "in the order in which they were made"
    );
    assert_eq!(world.reactor.hub.metrics.subscriptions_moved_total, 2);
    assert_eq!(world.reactor.hub.metrics.subscriptions_ended_total, 0);
    world.end();
}

#[test]
fn what_only_a_superduper_admin_may_have_ends_with_that_right() {
    let admin =
        |is| json!({"root": {"account_id": A, "superduper_admin": is, "realm": "r.example"}});
    let mut world = World::new(&admin(true), |_| {});
    let one = world.connect();
    let subscribe = |world: &mut World, account: &str, binding: &str| {
        world.subscribe(one, "root", account, binding, binding);
    };
    for (account, binding) in [
        ("*", "call.CHANNEL_CREATE.*"),
        (A, "conference.event.*.*"),
        (B, "fax.status.*"),
        (A, "fax.status.*"),
        ("*", DIALOG),
        (A, DIALOG),
    ] {
        subscribe(&mut world, account, binding);
    }
    world.turn();
    world.bind_all();
    assert_eq!(world.told(one).len(), 6);
    for (account, binding) in [
        ("*", "call.PARK_PARKED.*"),
        (A, "conference.event.*.x"),
        (A, "call.*.x"),
    ] {
        subscribe(&mut world, account, binding);
    }
    world.turn();
    world.reread(&admin(false));
    assert_eq!(
        world.told(one),
        [
            r#"subscriptions_ended {"bindings":["call.CHANNEL_CREATE.*","conference.event.*.*","fax.status.*","presence.dialog.*"],"reason":"rights"}"#,
            r#"call.PARK_PARKED.* ["unauthorized wildcard account id"]"#,
            r#"conference.event.*.x ["ConferenceId required"]"#,
        ]
    );
    world.bind_all();
    assert_eq!(
        world.told(one),
        [r#"call.*.x ["fax.status.*","presence.dialog.*","call.*.x"]"#],
        "of its own account"
    );
    world.end();
}

#[test]
fn a_token_of_another_account_ends_the_firsts_subscriptions_with_a_notice_and_refuses_what_waits() {
    let mut tokens = realms(Some("one.example"), Some("two.example"));
    tokens["parent"] = json!({"account_id": B, "descendants": [A]});
    for (token, ended) in [("b", true), ("parent", false)] {
        let mut world = World::new(&tokens, |_| {});
        let one = world.connect();
        world.subscribe(one, "a", A, "call.CHANNEL_CREATE.*", "1");
        world.subscribe(one, "a", A, DIALOG, "2");
        world.turn();
        world.bind_all();
        world.told(one);
        world.subscribe(one, "a", A, "fax.status.*", "waits");
        world.send(
            one,
            &json!({"action": "ping", "auth_token": token, "request_id": "ping"}),
        );
        let notice = r#"subscriptions_ended {"bindings":["call.CHANNEL_CREATE.*","presence.dialog.*"],"reason":"identity"}"#;
        let expected = if ended {
            vec![notice, r#"waits ["unauthorized account id"]"#, "ping pong"]
        } else {
            vec!["ping pong"]
        };
        assert_eq!(world.told(one), expected);
        world.bind_all();
        let left = r#"waits ["call.CHANNEL_CREATE.*","presence.dialog.*","fax.status.*"]"#;
        assert_eq!(world.told(one), if ended { vec![] } else { vec![left] });
        world.end();
    }
}

#[test]
fn a_reread_that_gives_everybody_another_realm_is_spread_over_turns_and_leaks_nothing_meanwhile() {
    const SESSIONS: usize = 3000;
    let mut world = World::new(&realms(Some("one.example"), None), |config| {
        config.max_connections_per_ip = None;
        config.max_connections = None;
    });
    for client in 0..SESSIONS {
        let client_index = world.connect();
        assert_eq!(client, client_index);
        world.subscribe(client, "a", A, DIALOG, "live");
    }
    let late = world.connect();
    world.turn();
    world.bind_all();
    world
        .clients
        .iter_mut()
        .for_each(|client| client.frames.clear());
    world.reread(&realms(Some("new.example"), Some("one.example")));
    world.publish_presence("one.example", 1);
    let before = world.reactor.hub.metrics.clone();
    world.reactor.turn(&[], now(world.clock));
    let moved = world.reactor.hub.metrics.subscriptions_moved_total;
    assert!((500..2000).contains(&moved), "{moved} in the first turn");
    // One that speaks before its turn speaks by its new right.
    world.subscribe(SESSIONS - 1, "a", A, DIALOG, "again");
    world.subscribe(late, "b", B, DIALOG, "mine");
    world.turn();
    let metrics = &world.reactor.hub.metrics;
    assert_eq!(metrics.subscriptions_moved_total, SESSIONS as u64);
    assert!(metrics.timings.turn.count() - before.timings.turn.count() >= 3);
    assert_eq!(metrics.events_total, before.events_total + 1);
    // Nobody but the one whose it is now saw the event.
    let frames = metrics.frames_delivered_total - before.frames_delivered_total;
    assert_eq!(frames, 1);
    assert_eq!(
        metrics.config_reloads_total,
        before.config_reloads_total + 1
    );
    let mine = [
        r#"mine ["presence.dialog.*"]"#,
        r#"event "dialog.one%2Eexample.*" 1"#,
    ];
    assert_eq!(world.told(late), mine);
    assert!(world.clients.iter().all(|client| client.frames.is_empty()));
    world.bind_all();
    for client in 0..SESSIONS {
        let told = world.clients[client]
            .frames
            .iter()
            .map(short)
            .collect::<Vec<_>>();
        let again = r#"again ["presence.dialog.*"]"#;
        let expected: &[&str] = if client == SESSIONS - 1 {
            &[again]
        } else {
            &[]
        };
        assert_eq!(
            told.iter()
                .filter(|one| !one.starts_with("gap"))
                .collect::<Vec<_>>(),
            expected
        );
        assert_eq!(told.len(), 1 + expected.len(), "{told:?}");
    }
    world.end();
}

/// Checks that each event that came was of the account that its session saw when it was published; how many came.
fn judge_events(
    world: &mut World,
    sees: impl Fn(usize) -> usize,
    owner_of: &HashMap<usize, Option<usize>>,
) -> usize {
    let mut seen = 0;
    for (client, one) in world.clients.iter_mut().enumerate() {
        for frame in std::mem::take(&mut one.frames) {
            if frame["action"] == "event" {
                let number = frame["args"]["Number"].as_u64().unwrap() as usize;
                assert_eq!(owner_of[&number], Some(sees(client)), "{client}: {frame}");
                seen += 1;
            }
        }
    }
    seen
}

/// Sessions of accounts whose realms move at random among them, while the broker confirms and refuses as it likes.
fn realms_move(seed: u64) -> usize {
    let mut rng = Rng::with_seed(seed);
    const REALMS: [&str; 4] = ["r0", "r1", "r2", "r3"];
    let account = |n: usize| format!("{n:032x}");
    let mut owner: [Option<usize>; 4] = [Some(0), Some(1), Some(2), None];
    let file = |owner: &[Option<usize>; 4]| {
        let realm_of = |n: usize| owner.iter().position(|owner| *owner == Some(n));
        let mut file: serde_json::Map<String, Value> = (0..3)
            .map(|n| {
                let mut entry = json!({"account_id": account(n)});
                if let Some(realm) = realm_of(n) {
                    entry["realm"] = REALMS[realm].into();
                }
                (format!("t{n}"), entry)
            })
            .collect();
        file.insert(
            "parent".to_owned(),
            json!({"account_id": account(9), "descendants": [account(0)]}),
        );
        Value::Object(file)
    };
    let mut world = World::new(&file(&owner), |config| config.rate_limit_burst = 0);
    let tokens = ["t0", "t1", "t2", "parent"];
    let sees = [0, 1, 2, 0];
    let mut runs_as: Vec<usize> = Vec::new();
    let (mut published, mut seen) = (0, 0);
    // What each event's realm was whose when it was published.
    let mut events: HashMap<usize, Option<usize>> = HashMap::new();
    for _ in 0..8 {
        let client = world.connect();
        runs_as.push(rng.usize(0..4));
        world.send(
            client,
            &json!({"action": "ping", "auth_token": tokens[runs_as[client]]}),
        );
    }
    world.turn();
    for _ in 0..300 {
        let client = rng.usize(0..world.clients.len());
        match rng.u32(0..20) {
            0..6 => {
                let who = runs_as[client];
                let binding = [
                    "presence.dialog.*",
                    "presence.dialog.c1",
                    "registration.success",
                ][rng.usize(0..3)];
                world.subscribe(client, tokens[who], &account(sees[who]), binding, "s");
            }
            6 => world.send(client, &json!({"action": "unsubscribe"})),
            7 => {
                // Another token takes effect when the loop reads it.
                world.turn();
                seen += judge_events(&mut world, |client| sees[runs_as[client]], &events);
                runs_as[client] = rng.usize(0..4);
                world.send(
                    client,
                    &json!({"action": "ping", "auth_token": tokens[runs_as[client]]}),
                );
                world.turn();
            }
            8 | 9 => {
                world.turn();
                owner = [None; 4];
                for n in 0..3 {
                    if rng.u32(0..5) > 0 {
                        let free: Vec<usize> =
                            (0..4).filter(|realm| owner[*realm].is_none()).collect();
                        owner[free[rng.usize(0..free.len())]] = Some(n);
                    }
                }
                world.reread(&file(&owner));
            }
            10..13 => {
                world.turn();
                let asked: Vec<String> =
                    world.asked().iter().map(|key| (*key).to_owned()).collect();
                let some: Vec<String> = asked.into_iter().filter(|_| rng.bool()).collect();
                if !some.is_empty() {
                    world.bind(|key| some.iter().any(|one| one == key));
                } else if !world.bindings.is_empty() && rng.u32(0..3) == 0 {
                    world.refuse(|_| true);
                }
            }
            13 => world.wait(Duration::from_millis(rng.u64(0..4000))),
            _ => {
                let realm = rng.usize(0..4);
                published += 1;
                events.insert(published, owner[realm]);
                world.publish_presence(REALMS[realm], published);
                let key = format!("registration.success.{}.u", REALMS[realm]);
                world.publish(
                    "registrar",
                    &key,
                    &json!({"Event-Name": "success", "Number": published}),
                );
            }
        }
        if rng.bool() {
            world.turn();
        }
        seen += judge_events(&mut world, |client| sees[runs_as[client]], &events);
    }
    world.end();
    seen
}

#[test]
fn however_realms_move_nobody_sees_an_event_of_another_account() {
    let seen: usize = under_seeds(200, realms_move).into_iter().sum();
    assert!(
        seen > 1000 || std::env::var("BLACKHOLE_SEED").is_ok(),
        "{seen} events were seen"
    );
}
