//! The platform's requests as the loop answers them (PROTOCOL 8), on scripted sockets and a virtual clock: thousands of
//! sessions in slices, and families stopped under sessions that wait. The test is the AMQP side, and the broker.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use blackhole::config::Config;
use blackhole::handoff::ask::{AskEnd, ask_channels};
use blackhole::handoff::{FromSource, LoopWaker, Return, SourceEnd, ToSource};
use blackhole::limits::CONTROL_ANSWER_BYTES_MAX;
use blackhole::protocol::control::{self, Answer, Reply, Request};
use blackhole::reactor::modules::{HostParts, KeepModule};
use blackhole::reactor::{Reactor, Ready};
use blackhole::routing::amqp_binding::{AmqpBinding, Asked};
use blackhole::session::ListenerKind;
use blackhole::session::id::{ConnId, Peer};
use serde_json::{Value, json};
use support::client::subscribe;
use support::scripted::{Scripted, Wire, config, now, reactor};
use support::wire::{UPGRADE_REQUEST, client_text, server_frames};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// A loop that takes any token, between scripted clients and a platform that the test plays.
pub(crate) struct World {
    pub(crate) reactor: Reactor<Scripted>,
    pub(crate) source: SourceEnd,
    asker: AskEnd<Request, Answer>,
    pub(crate) clients: Vec<One>,
    pub(crate) clock: Duration,
    /// The source confirms what it is asked for.
    confirms: bool,
    /// What the source is asked to have bound.
    pub(crate) bound: HashSet<AmqpBinding>,
}

pub(crate) struct One {
    pub(crate) id: ConnId,
    pub(crate) wire: Rc<RefCell<Wire>>,
}

impl World {
    pub(crate) fn new(keep: Option<KeepModule>) -> Self {
        let config = Config {
            rate_limit_burst: u32::MAX,
            rate_limit_per_second: u32::MAX,
            max_connections: None,
            ping_interval: None,
            ..config(&["--auth=insecure"])
        };
        let (source, mut reactor) = reactor(&config, 4096, 1);
        source.send(FromSource::Up(Return::Anew)).unwrap();
        let (asker, requests) = ask_channels(LoopWaker::new(|| Ok(())), 64, 4);
        reactor.take_control(requests);
        let host = HostParts {
            name: "host".to_owned(),
            keep,
        };
        reactor.take_host(host, Arc::new(|| Ok(())));
        Self {
            reactor,
            source,
            asker,
            clients: Vec::new(),
            clock: Duration::ZERO,
            confirms: true,
            bound: HashSet::new(),
        }
    }

    /// A session that has said this.
    pub(crate) fn connect(&mut self, commands: &[Value]) -> usize {
        let client = self.take(UPGRADE_REQUEST, ListenerKind::Clients);
        commands
            .iter()
            .for_each(|command| self.send(client, command));
        client
    }

    /// A connection that has sent this request.
    pub(crate) fn take(&mut self, request: &str, listener: ListenerKind) -> usize {
        let wire = Wire::new(usize::MAX, usize::MAX);
        wire.borrow_mut().send(request.as_bytes());
        let number = u32::try_from(self.clients.len()).unwrap();
        let [_, high, middle, low] = number.to_be_bytes();
        let peer = Peer::from(SocketAddr::from(([10, high, middle, low], 1000)));
        let socket = Scripted(wire.clone());
        let accepted = self.reactor.accept(socket, peer, listener, now(self.clock));
        self.clients.push(One {
            id: accepted.unwrap(),
            wire,
        });
        self.clients.len() - 1
    }

    pub(crate) fn send(&mut self, client: usize, command: &Value) {
        let frame = client_text(&command.to_string());
        self.clients[client].wire.borrow_mut().send(&frame);
    }

    /// One turn. Returns how long it took.
    pub(crate) fn turn_once(&mut self) -> Duration {
        let ready = |client: &One| {
            std::mem::take(&mut client.wire.borrow_mut().edge_readable).then_some(Ready {
                id: client.id,
                readable: true,
                writable: true,
                read_closed: false,
            })
        };
        let ready: Vec<Ready> = self.clients.iter().filter_map(ready).collect();
        let began = Instant::now();
        self.reactor.turn(&ready, now(self.clock));
        let took = began.elapsed();
        let commands: Vec<ToSource> = self.source.commands.try_iter().flatten().collect();
        let mut bound = Vec::new();
        for command in commands {
            match command {
                ToSource::Bind {
                    binding, ticket, ..
                } => {
                    assert!(self.bound.insert(binding.clone()), "{binding:?} twice");
                    bound.push(Asked { binding, ticket });
                }
                ToSource::Unbind(binding) => {
                    assert!(self.bound.remove(&binding), "{binding:?} is not bound");
                    bound.retain(|asked| asked.binding != binding);
                }
                ToSource::Join { .. } | ToSource::Stop => {}
            }
        }
        if self.confirms && !bound.is_empty() {
            self.source.send(FromSource::Bound(bound)).unwrap();
        }
        took
    }

    /// Turns until nothing is left to be done now.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            self.turn_once();
            let is_told = self
                .clients
                .iter()
                .any(|client| client.wire.borrow().edge_readable);
            let is_at_rest = self.reactor.patience(now(self.clock)) > Duration::ZERO;
            if is_at_rest && !is_told && self.reactor.hub.held.replies == 0 {
                return;
            }
            if is_at_rest && !is_told && !self.confirms {
                return;
            }
        }
        panic!("does not come to rest");
    }

    /// The texts that a client got since the last call.
    fn texts(&self, client: usize) -> Vec<Value> {
        let bytes = std::mem::take(&mut self.clients[client].wire.borrow_mut().to_client);
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n");
        let head = head.filter(|_| bytes.starts_with(b"HTTP/1.1 101"));
        let (frames, _) = server_frames(&bytes[head.map_or(0, |end| end + 4)..]);
        let texts = frames.iter().filter(|(opcode, _)| *opcode == 1);
        texts
            .map(|(_, payload)| serde_json::from_slice(payload).unwrap())
            .collect()
    }

    pub(crate) fn forget_texts(&self) {
        for client in &self.clients {
            client.wire.borrow_mut().to_client = Vec::new();
        }
    }

    fn ask(&self, address: (&str, &str), message: &Value) {
        let body = message.to_string();
        let request = control::read(address.0, address.1, body.as_bytes()).unwrap();
        self.asker.try_ask(request).unwrap();
    }

    fn ask_for_sessions(&self, account: &str) {
        let message = json!({"Account-ID": account, "Server-ID": "q"});
        self.ask(control::SESSIONS_ADDRESS, &message);
    }

    pub(crate) fn ask_for_module(&self, module: &str, action: &str, persist: bool) {
        let message =
            json!({"Module": module, "Action": action, "Persist": persist, "Server-ID": "q"});
        self.ask(control::MODULE_ADDRESS, &message);
    }

    pub(crate) fn answered(&self) -> Option<Answer> {
        let answer = self.asker.answers.try_recv().ok()?;
        self.asker.took_answer();
        Some(answer)
    }

    /// Turns until the answer is there. Returns it and how long each turn took.
    fn turns_to_answer(&mut self) -> (Answer, Vec<Duration>) {
        let mut turns = Vec::new();
        loop {
            turns.push(self.turn_once());
            if let Some(answer) = self.answered() {
                return (answer, turns);
            }
            assert!(turns.len() < 100_000, "no answer");
        }
    }
}

fn data(answer: &Answer) -> Vec<Value> {
    let json: Value = serde_json::from_slice(&answer.to_json("n@h")).unwrap();
    json["Data"].as_array().unwrap().clone()
}

pub(crate) fn module(answer: &Answer) -> (bool, bool, Option<&str>) {
    match &answer.reply {
        Reply::Module(reply) => (reply.persisted, reply.started, reply.error.as_deref()),
        Reply::Sessions(_) => panic!("no answer to that: {answer:?}"),
    }
}

/// What the slowest of these turns, and one in a hundred of them, took.
pub(crate) fn slowest(turns: &[Duration]) -> String {
    let mut sorted = turns.to_vec();
    sorted.sort_unstable();
    let at = |part: usize| sorted[(sorted.len() * part / 100).min(sorted.len() - 1)];
    format!(
        "{} turns, p50 {:?}, p99 {:?}, slowest {:?}",
        turns.len(),
        at(50),
        at(99),
        at(100)
    )
}

#[test]
fn nineteen_thousand_sessions_are_told_and_ended_in_slices() {
    let mut world = World::new(None);
    const SESSIONS: usize = 19_000;
    for number in 0..SESSIONS {
        let account = if number % 50 == 0 { B } else { A };
        let subscribe = subscribe("any", account, "call.CHANNEL_CREATE.*");
        world.connect(&[subscribe, subscribe_to_fax(account)]);
    }
    world.settle();
    world.forget_texts();
    assert_eq!(
        world
            .reactor
            .hub
            .subscriptions
            .index()
            .counts()
            .subscriptions,
        2 * SESSIONS
    );

    world.ask_for_sessions(B);
    let (answer, turns) = world.turns_to_answer();
    println!("hundreds among {SESSIONS} told of: {}", slowest(&turns));
    assert_eq!(data(&answer).len(), SESSIONS / 50);
    // Each turn looks at a thousand.
    assert!(turns.len() >= SESSIONS / 1024, "{}", turns.len());

    world.ask_for_sessions(A);
    let (answer, turns) = world.turns_to_answer();
    println!("all told of: {}", slowest(&turns));
    let told = data(&answer).len();
    let left_out = world.reactor.hub.metrics.control_sessions_left_out_total;
    assert_eq!(
        told + usize::try_from(left_out).unwrap(),
        SESSIONS - SESSIONS / 50
    );

    world.ask_for_module("bh_call", "stop", false);
    let (answer, turns) = world.turns_to_answer();
    println!("a family of all stopped: {}", slowest(&turns));
    assert_eq!(module(&answer), (false, false, None));
    assert!(turns.len() >= SESSIONS / 64, "{}", turns.len());
    assert_eq!(
        world
            .reactor
            .hub
            .subscriptions
            .index()
            .counts()
            .subscriptions,
        SESSIONS
    );
    assert_eq!(
        world.reactor.hub.metrics.subscriptions_ended_total,
        SESSIONS as u64
    );
    world.settle();
    for client in [0, 1, SESSIONS / 2, SESSIONS - 1] {
        let expected = json!([{
            "action": "notice", "name": "subscriptions_ended",
            "data": {"reason": "module", "bindings": ["call.CHANNEL_CREATE.*"]}
        }]);
        assert_eq!(json!(world.texts(client)), expected);
    }
    world.ask_for_sessions(B);
    let (answer, _) = world.turns_to_answer();
    assert!(
        data(&answer)
            .iter()
            .all(|one| one["bindings"] == json!(["fax.status.*"]))
    );
}

fn subscribe_to_fax(account: &str) -> Value {
    subscribe("any", account, "fax.status.*")
}

#[test]
fn an_answer_is_bounded_and_what_is_left_out_is_counted() {
    let mut world = World::new(None);
    let metadata = "m".repeat(4000);
    const SESSIONS: u64 = 1500;
    for _ in 0..SESSIONS {
        world.connect(&[json!({
            "action": "subscribe", "auth_token": "any",
            "data": {"account_id": A, "binding": "fax.status.*", "metadata": metadata}
        })]);
    }
    world.settle();
    world.ask_for_sessions(A);
    let (answer, turns) = world.turns_to_answer();
    println!("{}", slowest(&turns));
    let Reply::Sessions(bytes) = &answer.reply else {
        panic!("{answer:?}")
    };
    assert!((CONTROL_ANSWER_BYTES_MAX..CONTROL_ANSWER_BYTES_MAX + 8192).contains(&bytes.len()));
    // A turn writes some 64 KiB.
    assert!(turns.len() >= bytes.len() / (70 << 10), "{}", turns.len());
    let metrics = &world.reactor.hub.metrics;
    let (told, left_out) = (
        metrics.control_sessions_listed_total,
        metrics.control_sessions_left_out_total,
    );
    assert_eq!(
        (data(&answer).len() as u64, told + left_out),
        (told, SESSIONS)
    );
    assert!(left_out > 0);
}

#[test]
fn a_subscribe_that_waits_for_a_family_that_is_stopped_is_refused_and_no_other() {
    let mut world = World::new(None);
    world.confirms = false;
    let command = |binding: &str| subscribe("any", A, binding);
    let both = json!({
        "action": "subscribe", "auth_token": "any",
        "data": {"account_id": A, "bindings": ["fax.status.1", "call.CHANNEL_CREATE.1"]}
    });
    let waiting = world.connect(&[
        command("call.CHANNEL_CREATE.*"),
        command("fax.status.*"),
        both,
    ]);
    world.settle();
    assert_eq!(world.reactor.hub.held.replies, 3);
    world.texts(waiting);
    world.ask_for_module("bh_call", "stop", false);
    world.turns_to_answer();
    world.settle();
    let refused = json!(["no available subscriptions to requested binding"]);
    let texts = world.texts(waiting);
    assert_eq!(
        (texts.len(), &texts[0]["data"]["errors"]),
        (1, &refused),
        "{texts:?}"
    );
    // The other one still waits, and the reply behind it.
    let wanted = world.reactor.hub.subscriptions.broker().counts().wanted;
    assert_eq!((world.reactor.hub.held.replies, wanted), (2, 1));
}

#[test]
fn a_session_that_acts_before_its_turn_in_the_walk_has_lost_the_family_already() {
    let mut world = World::new(None);
    for _ in 0..300 {
        world.connect(&[
            subscribe("any", A, "call.CHANNEL_CREATE.*"),
            subscribe_to_fax(A),
        ]);
    }
    world.settle();
    world.forget_texts();
    let last = world.clients.len() - 1;
    world.ask_for_module("bh_call", "stop", false);
    world.turn_once();
    assert!(
        world.reactor.hub.is_ending_families,
        "the walk is under way"
    );
    world.send(last, &subscribe("any", A, "fax.status.7"));
    world.turn_once();
    let texts = world.texts(last);
    assert_eq!(texts[0]["data"]["reason"], "module", "{texts:?}");
    let (_, turns) = world.turns_to_answer();
    assert!(!turns.is_empty() && !world.reactor.hub.is_ending_families);
    world.settle();
    let texts = world.texts(last);
    let subscribed = json!(["fax.status.*", "fax.status.7"]);
    assert_eq!(
        (texts.len(), &texts[0]["data"]["subscribed"]),
        (1, &subscribed)
    );
}

#[test]
fn while_a_change_is_written_down_the_loop_goes_on_and_the_next_request_waits() {
    let (write, written): (Sender<Result<(), String>>, Receiver<_>) = channel();
    let written = Mutex::new(written);
    let kept = Arc::new(AtomicUsize::new(0));
    let counted = kept.clone();
    let keep: KeepModule = Arc::new(move |module, is_on| {
        assert_eq!((module, is_on), ("bh_call", false));
        counted.fetch_add(1, Ordering::SeqCst);
        written.lock().unwrap().recv().unwrap()
    });
    let mut world = World::new(Some(keep));
    let one = world.connect(&[subscribe_to_fax(A)]);
    world.settle();
    for expected in [
        (true, false, None),
        (false, false, Some("not kept: its file cannot be written")),
    ] {
        world.ask_for_module("bh_call", "stop", true);
        world.ask_for_sessions(A);
        world.settle();
        assert!(world.answered().is_none(), "nothing is written yet");
        world.texts(one);
        world.send(one, &subscribe("any", A, "fax.status.2"));
        world.settle();
        assert_eq!(world.texts(one).len(), 1, "the loop goes on");
        write
            .send(if expected.0 {
                Ok(())
            } else {
                Err("disk full".to_owned())
            })
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let answer = loop {
            world.turn_once();
            if let Some(answer) = world.answered() {
                break answer;
            }
            assert!(Instant::now() < deadline, "never written");
        };
        assert_eq!(module(&answer), expected);
        let (answer, _) = world.turns_to_answer();
        assert_eq!(data(&answer).len(), 1);
    }
    assert_eq!(kept.load(Ordering::SeqCst), 2);
}

#[test]
fn requests_beyond_the_rate_wait_for_the_next_second_and_for_room_for_their_answers() {
    let mut world = World::new(None);
    world.connect(&[subscribe_to_fax(A)]);
    world.settle();
    let mut answered = 0;
    // Room for four answers, which nobody takes.
    for _ in 0..60 {
        world.ask_for_sessions(A);
    }
    world.settle();
    assert_eq!(world.reactor.hub.metrics.control_requests_total, 4);
    for _ in 0..500 {
        answered += usize::from(world.answered().is_some());
        world.turn_once();
    }
    assert_eq!(
        (answered, world.reactor.hub.metrics.control_requests_total),
        (50, 50)
    );
    assert!(world.reactor.patience(now(world.clock)) <= Duration::from_millis(20));
    world.clock += Duration::from_secs(1);
    for _ in 0..100 {
        answered += usize::from(world.answered().is_some());
        world.turn_once();
    }
    assert_eq!(answered, 60);
}

#[test]
fn sessions_with_as_much_as_they_may_have_are_ended_a_part_a_turn() {
    let mut world = World::new(None);
    // One account may have no more.
    const SESSIONS: usize = 7;
    for session in 0..SESSIONS {
        let bindings: Vec<String> = (0..256)
            .map(|call| format!("call.*.{session}-{call}"))
            .collect();
        world.connect(&[json!({
            "action": "subscribe", "auth_token": "any", "data": {"account_id": A, "bindings": bindings}
        })]);
    }
    world.settle();
    let wanted = |world: &World| world.reactor.hub.subscriptions.broker().counts().wanted;
    assert_eq!(wanted(&world), SESSIONS * 256 * 9);
    world.ask_for_sessions(A);
    let (answer, turns) = world.turns_to_answer();
    println!("told of: {}", slowest(&turns));
    assert_eq!(data(&answer).len(), SESSIONS);
    world.ask_for_module("bh_call", "stop", false);
    let (_, turns) = world.turns_to_answer();
    println!("ended: {}", slowest(&turns));
    assert!(turns.len() >= 4 * SESSIONS, "{}", turns.len());
    assert_eq!(wanted(&world), 0);
    world.settle();
    let ended = |text: &Value| text["data"]["bindings"].as_array().map_or(0, Vec::len);
    let texts = world.texts(0);
    assert_eq!(
        texts.iter().map(ended).collect::<Vec<_>>(),
        [0, 64, 64, 64, 64]
    );
}
