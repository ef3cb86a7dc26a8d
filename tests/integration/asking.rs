//! Sessions whose tokens and rights a thread must be asked about (PROTOCOL 3 and 7), on scripted sockets and a virtual
//! clock: the test is the thread that verifies and the platform, and decides what they answer, and when.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blackhole::account::AccountId;
use blackhole::auth::{
    AccountAnswer, Answer, AuthConfig, AuthError, Authenticator, CacheTimes, JwtConfig, KeyAnswer,
    Question, jwt,
};
use blackhole::event::Event;
use blackhole::handoff::{FromSource, Return, SourceEnd, ToSource};
use blackhole::inquiry::Answering;
use blackhole::limits::{GRANTS_OF_TOKEN_MAX, PLATFORM_QUESTIONS_MAX, SUSPENDED_BYTES_MAX};
use blackhole::reactor::{Reactor, Ready};
use blackhole::routing::amqp_binding::Asked;
use blackhole::session::ListenerKind;
use blackhole::session::id::{ConnId, Peer};
use serde_json::{Value, json};
use support::scripted::{Scripted, Wire, config, now, reactor_that_asks, under_seeds};
use support::wire::{UPGRADE_REQUEST, client_text, server_frames};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const C: &str = "cccccccccccccccccccccccccccccccc";
const SECOND: Duration = Duration::from_secs(1);
const YES: Duration = Duration::from_secs(60);
const CALLS: &str = "call.CHANNEL_CREATE.*";
const DIALOGS: &str = "presence.dialog.*";

struct World {
    reactor: Reactor<Scripted>,
    source: SourceEnd,
    threads: Answering,
    clients: Vec<Client>,
    clock: Duration,
}

struct Client {
    id: ConnId,
    wire: Rc<RefCell<Wire>>,
    /// The status line of the answer to its request.
    status: String,
    frames: VecDeque<Value>,
}

/// The platform decides on all tokens.
fn crossbar() -> AuthConfig {
    AuthConfig {
        platform: Some(CacheTimes {
            yes: YES,
            no: 5 * SECOND,
        }),
        ..AuthConfig::default()
    }
}

fn account(hex: &str) -> AccountId {
    AccountId::parse(hex).unwrap()
}

fn yes() -> AccountAnswer {
    yes_in("a.example")
}

fn yes_in(realm: &str) -> AccountAnswer {
    AccountAnswer::Yes {
        realm: Some(realm.into()),
        superduper: false,
    }
}

impl World {
    fn new(auth: &AuthConfig, texts: &[(&str, String)]) -> Self {
        let read = |file: &Path| -> Result<String, AuthError> {
            let (_, text) = texts
                .iter()
                .find(|(name, _)| Path::new(name) == file)
                .expect("a file of the test");
            Ok(text.clone())
        };
        let read_keys = |path: &Path| {
            let text = read(path)?;
            Ok(match path.extension() {
                Some(_) => jwt::KeyText::File(text),
                None => jwt::KeyText::Folder(vec![("k0.pem".to_owned(), text)]),
            })
        };
        let authenticator = Authenticator::new(auth, read, read_keys).unwrap();
        let config = config(&["--auth", "insecure", "--ping-interval-ms", "0"]);
        let (source, threads, reactor) = reactor_that_asks(&config, authenticator, 10_000, 1);
        source.send(FromSource::Up(Return::Anew)).unwrap();
        Self {
            reactor,
            source,
            threads,
            clients: Vec::new(),
            clock: Duration::ZERO,
        }
    }

    fn connect(&mut self) -> usize {
        self.connect_from([127, 0, 0, 1], None)
    }

    fn connect_from(&mut self, ip: [u8; 4], bearer: Option<&str>) -> usize {
        let wire = Wire::new(usize::MAX, usize::MAX);
        let bearer = bearer.map(|token| format!("Authorization: Bearer {token}\r\n\r\n"));
        let request = match bearer {
            Some(bearer) => UPGRADE_REQUEST.trim_end().to_owned() + "\r\n" + &bearer,
            None => UPGRADE_REQUEST.to_owned(),
        };
        wire.borrow_mut().send(request.as_bytes());
        let port = 1000 + u16::try_from(self.clients.len()).unwrap();
        let peer = Peer::from(SocketAddr::from((ip, port)));
        let socket = Scripted(wire.clone());
        let now = now(self.clock);
        let id = self
            .reactor
            .accept(socket, peer, ListenerKind::Clients, now)
            .unwrap();
        self.clients.push(Client {
            id,
            wire,
            status: String::new(),
            frames: VecDeque::new(),
        });
        self.turn();
        self.clients.len() - 1
    }

    /// Turns until nothing is left to be done now. The broker confirms at once.
    fn turn(&mut self) {
        for _ in 0..20_000 {
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
            if ready.is_empty() && is_at_rest && !self.look() {
                return;
            }
        }
        panic!("does not come to rest");
    }

    fn look(&mut self) -> bool {
        let mut bound = Vec::new();
        for command in self.source.commands.try_iter().flatten() {
            if let ToSource::Bind {
                binding, ticket, ..
            } = command
            {
                bound.push(Asked { binding, ticket });
            }
        }
        let was_told = !bound.is_empty();
        if was_told {
            self.source.send(FromSource::Bound(bound)).unwrap();
        }
        for client in &mut self.clients {
            let bytes = std::mem::take(&mut client.wire.borrow_mut().to_client);
            let mut frames = &bytes[..];
            if bytes.starts_with(b"HTTP/1.1 ") {
                let end = bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
                let head = std::str::from_utf8(&bytes[..end]).unwrap();
                client.status = head.lines().next().unwrap()["HTTP/1.1 ".len()..].to_owned();
                frames = if head.contains("101") {
                    &bytes[end..]
                } else {
                    &[]
                };
            }
            for (opcode, payload) in server_frames(frames).0 {
                match opcode {
                    1 => client
                        .frames
                        .push_back(serde_json::from_slice(&payload).unwrap()),
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

    fn subscribe(&mut self, client: usize, token: &str, account: &str, binding: &str, id: &str) {
        self.send(
            client,
            &json!({"action": "subscribe", "auth_token": token, "request_id": id,
                "data": {"account_id": account, "binding": binding}}),
        );
    }

    fn ping(&mut self, client: usize, token: Option<&str>, id: &str) {
        self.send(
            client,
            &json!({"action": "ping", "auth_token": token, "request_id": id}),
        );
    }

    /// All that came since the test last looked, in short.
    fn told(&mut self, client: usize) -> Vec<String> {
        self.turn();
        let frames = std::mem::take(&mut self.clients[client].frames);
        frames.iter().map(short).collect()
    }

    /// The questions that were put since the test last looked. Each lane takes only some at a time.
    fn questions(&mut self) -> Vec<Question> {
        self.turn();
        std::iter::from_fn(|| self.threads.try_question()).collect()
    }

    /// The questions to the platform, in short.
    fn asked(&mut self) -> Vec<(String, AccountId)> {
        let questions = self.questions().into_iter();
        questions
            .map(|question| match question {
                Question::Account { token, account } => (token.to_string(), account),
                Question::Verify { .. } | Question::Key { .. } => panic!("{question:?}"),
            })
            .collect()
    }

    fn answer(&mut self, token: &str, account: &str, answer: AccountAnswer) {
        let account = self::account(account);
        let token = token.into();
        self.threads
            .answer(Answer::Account {
                token,
                account,
                answer,
            })
            .unwrap();
        self.turn();
    }

    fn publish_call(&mut self, account: &str) {
        let body = json!({"Event-Name": "CHANNEL_CREATE", "Event-Category": "call_event", "Call-ID": "c",
            "Custom-Channel-Vars": {"Account-ID": account}});
        self.publish("callevt", "call.CHANNEL_CREATE.c", &body);
    }

    fn publish_dialog(&mut self, realm: &str) {
        let key = format!("dialog.{}.c", realm.replace('.', "%2E"));
        self.publish("presence", &key, &json!({"Event-Name": "dialog"}));
    }

    fn publish(&mut self, exchange: &str, key: &str, body: &Value) {
        let body = body.to_string().into_bytes();
        let event = Event::decode(exchange.into(), key.into(), body, None).unwrap();
        self.source
            .send(FromSource::Event(Arc::new(event)))
            .unwrap();
        self.turn();
    }
}

/// A frame in short: `id: ok`, `id: error`, `event NAME`, `ended REASON BINDINGS`, `close CODE`.
fn short(frame: &Value) -> String {
    let text = |key: &str| frame[key].as_str().unwrap_or_default();
    if let Some(code) = frame["close"].as_u64() {
        return format!("close {code}");
    }
    match (text("action"), text("status")) {
        ("reply", "success") => format!("{}: ok", text("request_id")),
        ("reply", _) => format!(
            "{}: {}",
            text("request_id"),
            frame["data"]["errors"][0].as_str().unwrap_or_default()
        ),
        ("event", _) => format!("event {}", text("name")),
        ("notice", _) => format!(
            "{} {} {}",
            text("name"),
            frame["data"]["reason"],
            frame["data"]["bindings"]
        ),
        _ => frame.to_string(),
    }
}

#[test]
fn the_platform_is_asked_once_for_hundreds_of_equal_questions_and_its_yes_serves_them_all() {
    let mut world = World::new(&crossbar(), &[]);
    let sessions: Vec<usize> = (0..300).map(|_| world.connect()).collect();
    for session in &sessions {
        world.subscribe(*session, "t", A, CALLS, "s");
    }
    assert_eq!(world.asked(), [("t".to_owned(), account(A))]);
    assert!(world.told(0).is_empty());
    world.answer("t", A, yes());
    for session in &sessions {
        assert_eq!(world.told(*session), ["s: ok"]);
    }
    let late = world.connect();
    world.subscribe(late, "t", A, DIALOGS, "s");
    assert_eq!(world.told(late), ["s: ok"]);
    assert!(world.asked().is_empty(), "the answer is kept");
    world.publish_call(A);
    world.publish_call(B);
    world.publish_dialog("a.example");
    world.publish_dialog("b.example");
    assert_eq!(world.told(0), ["event CHANNEL_CREATE"]);
    assert_eq!(world.told(late), ["event dialog"]);
}

#[test]
fn each_answer_that_is_no_yes_has_its_error_and_is_kept_for_its_time() {
    for (answer, error, kept) in [
        (
            AccountAnswer::TokenRefused,
            "failed to authenticate token",
            5,
        ),
        (AccountAnswer::AccountRefused, "unauthorized account id", 5),
        (AccountAnswer::Trouble, "authentication unavailable", 1),
    ] {
        let mut world = World::new(&crossbar(), &[]);
        let session = world.connect();
        world.subscribe(session, "t", A, CALLS, "s");
        assert_eq!(world.asked().len(), 1);
        world.answer("t", A, answer.clone());
        assert_eq!(world.told(session), [format!("s: {error}")]);
        world.subscribe(session, "t", A, CALLS, "again");
        assert_eq!(world.told(session), [format!("again: {error}")]);
        assert!(world.asked().is_empty(), "{answer:?} is kept");
        world.wait(SECOND * kept);
        world.subscribe(session, "t", A, CALLS, "later");
        assert_eq!(world.asked().len(), 1, "{answer:?} is over");
        world.answer("t", A, yes());
        assert_eq!(world.told(session), ["later: ok"]);
    }
}

#[test]
fn a_token_has_no_account_before_one_is_authorised() {
    let mut world = World::new(&crossbar(), &[]);
    let session = world.connect_from([127, 0, 0, 1], Some("t"));
    assert_eq!(world.clients[session].status, "101 Switching Protocols");
    world.ping(session, None, "p");
    world.send(
        session,
        &json!({"action": "unsubscribe", "request_id": "u"}),
    );
    world.subscribe(session, "t", "*", CALLS, "any");
    assert_eq!(
        world.told(session),
        [
            "p: missing required keys : account_id",
            "u: missing required keys : account_id",
            "any: unauthorized wildcard account id"
        ]
    );
    assert!(world.asked().is_empty());
    world.send(
        session,
        &json!({"action": "subscribe", "request_id": "s", "data": {"account_id": A, "binding": CALLS}}),
    );
    assert_eq!(world.asked(), [("t".to_owned(), account(A))]);
    world.answer("t", A, yes());
    world.ping(session, None, "p");
    assert_eq!(world.told(session), ["s: ok", "p: ok"]);

    // One that nobody has authorised is closed in the end, as one without a token is.
    let other = world.connect_from([127, 0, 0, 1], Some("u"));
    world.wait(31 * SECOND);
    assert_eq!(world.told(other), ["close 1008"]);
    assert_eq!(world.told(session), [""; 0]);
}

#[test]
fn commands_behind_one_that_waits_keep_their_order_and_a_ping_of_an_authenticated_session_does_not_wait()
 {
    let mut world = World::new(&crossbar(), &[]);
    let session = world.connect();
    world.subscribe(session, "t", A, CALLS, "a");
    world.ping(session, Some("t"), "waits");
    assert_eq!(world.asked().len(), 1);
    assert!(
        world.told(session).is_empty(),
        "its token is being verified"
    );
    world.answer("t", A, yes());
    assert_eq!(world.told(session), ["a: ok", "waits: ok"]);

    world.subscribe(session, "t", B, CALLS, "b");
    world.subscribe(session, "t", C, CALLS, "c");
    world.subscribe(session, "t", A, DIALOGS, "d");
    world.send(session, &json!({"action": "unsubscribe", "request_id": "u", "data": {"account_id": A, "binding": CALLS}}));
    world.send(session, &json!({"action": "nonsense", "request_id": "n"}));
    world.ping(session, None, "p");
    assert_eq!(world.told(session), ["p: ok"]);
    let asked = world.asked();
    let expected = [B, C].map(|other| ("t".to_owned(), account(other)));
    assert_eq!(asked, expected, "side by side");
    world.answer("t", C, AccountAnswer::AccountRefused);
    assert!(world.told(session).is_empty());
    world.answer("t", B, yes_in("b.example"));
    assert_eq!(
        world.told(session),
        [
            "b: ok",
            "c: unauthorized account id",
            "d: ok",
            "u: ok",
            "n: unknown action nonsense"
        ]
    );
    world.publish_call(A);
    world.publish_call(B);
    world.publish_call(C);
    assert_eq!(world.told(session), ["event CHANNEL_CREATE"]);
}

#[test]
fn commands_that_get_no_answer_are_given_up_at_their_own_time_all_together() {
    let mut world = World::new(&crossbar(), &[]);
    let session = world.connect();
    for number in 0..10 {
        world.subscribe(session, "t", A, CALLS, &number.to_string());
    }
    assert_eq!(world.asked().len(), 1);
    world.wait(9 * SECOND);
    assert!(world.told(session).is_empty());
    world.wait(2 * SECOND);
    let told = world.told(session);
    let unavailable = |number| format!("{number}: authentication unavailable");
    assert_eq!(told, (0..10).map(unavailable).collect::<Vec<_>>());
    assert_eq!(world.reactor.hub.held, Default::default());
    world.answer("t", A, yes());
    assert!(world.told(session).is_empty());
    world.subscribe(session, "t", A, CALLS, "s");
    assert_eq!(world.told(session), ["s: ok"]);
}

#[test]
fn a_right_that_the_platform_takes_away_ends_what_it_gave_and_a_token_that_it_refuses_closes() {
    let mut world = World::new(&crossbar(), &[]);
    let (session, other) = (world.connect(), world.connect());
    for (session, token) in [(session, "t"), (other, "u")] {
        for account in [A, B] {
            world.subscribe(session, token, account, CALLS, account);
            world.questions();
            world.answer(token, account, yes_in("r.example"));
        }
        assert_eq!(world.told(session).len(), 2);
    }
    // Asked again before the answers run out, at different moments.
    let mut asked = Vec::new();
    let mut moments = std::collections::BTreeSet::new();
    for tenth in 0..600 {
        world.wait(SECOND / 10);
        let new = world.asked();
        moments.extend((!new.is_empty()).then_some(tenth));
        asked.extend(new);
    }
    asked.sort();
    assert_eq!(asked.len(), 4);
    assert!(
        moments.len() >= 2 && moments.iter().all(|tenth| *tenth >= 290),
        "{moments:?}"
    );
    world.answer("t", A, yes_in("r.example"));
    world.answer("t", B, AccountAnswer::AccountRefused);
    world.answer("u", A, AccountAnswer::TokenRefused);
    world.answer("u", B, AccountAnswer::Trouble);
    world.wait(SECOND);
    assert_eq!(
        world.told(session),
        [format!("subscriptions_ended \"rights\" [\"{CALLS}\"]")]
    );
    assert_eq!(world.told(other), ["close 4401"]);
    world.publish_call(B);
    assert!(world.told(session).is_empty());
    world.publish_call(A);
    assert_eq!(world.told(session), ["event CHANNEL_CREATE"]);
}

#[test]
fn sessions_outlive_a_platform_that_is_gone_and_nobody_new_gets_a_yes() {
    let mut world = World::new(&crossbar(), &[]);
    let session = world.connect();
    world.subscribe(session, "t", A, CALLS, "s");
    world.questions();
    world.answer("t", A, yes());
    assert_eq!(world.told(session), ["s: ok"]);
    let mut asked = 0;
    for _ in 0..180 {
        world.wait(SECOND);
        for (token, _) in world.asked() {
            asked += 1;
            world.answer(&token, A, AccountAnswer::Trouble);
        }
    }
    assert!(
        (5..=30).contains(&asked),
        "{asked} questions in three minutes"
    );
    let new = world.connect();
    world.subscribe(new, "t", A, CALLS, "new");
    for (token, _) in world.asked() {
        world.answer(&token, A, AccountAnswer::Trouble);
    }
    assert_eq!(world.told(new), ["new: authentication unavailable"]);
    world.publish_call(A);
    world.ping(session, None, "p");
    assert_eq!(world.told(session), ["event CHANNEL_CREATE", "p: ok"]);
}

#[test]
fn a_realm_that_moved_is_followed() {
    let mut world = World::new(&crossbar(), &[]);
    let session = world.connect();
    world.subscribe(session, "t", A, DIALOGS, "s");
    world.questions();
    world.answer("t", A, yes_in("old.example"));
    assert_eq!(world.told(session), ["s: ok"]);
    world.wait(55 * SECOND);
    assert_eq!(world.asked().len(), 1);
    world.answer("t", A, yes_in("new.example"));
    world.wait(SECOND);
    world.publish_dialog("old.example");
    world.publish_dialog("new.example");
    let told = world.told(session);
    assert_eq!(
        told.iter().filter(|frame| *frame == "event dialog").count(),
        1,
        "{told:?}"
    );
}

#[test]
fn another_token_of_the_same_user_keeps_what_the_session_has() {
    let mut world = World::new(&crossbar(), &[]);
    let session = world.connect();
    for account in [A, B] {
        world.subscribe(session, "old", account, CALLS, account);
        world.questions();
        world.answer("old", account, yes());
    }
    world.told(session);
    world.subscribe(session, "new", A, DIALOGS, "s");
    assert_eq!(world.asked(), [("new".to_owned(), account(A))]);
    world.answer("new", A, yes());
    assert!(
        world.told(session).is_empty(),
        "the other account is not known yet"
    );
    assert_eq!(world.asked(), [("new".to_owned(), account(B))]);
    world.answer("new", B, AccountAnswer::Trouble);
    assert_eq!(world.told(session), ["s: authentication unavailable"]);
    world.publish_call(B);
    assert_eq!(world.told(session), ["event CHANNEL_CREATE"], "as before");
    world.wait(2 * SECOND);
    world.subscribe(session, "new", A, DIALOGS, "again");
    assert_eq!(world.asked().len(), 1);
    world.answer("new", B, AccountAnswer::AccountRefused);
    assert_eq!(
        world.told(session),
        [
            format!("subscriptions_ended \"identity\" [\"{CALLS}\"]"),
            "again: ok".to_owned()
        ]
    );
}

#[test]
fn a_flood_of_different_tokens_is_bounded_and_another_address_is_served_in_its_turn() {
    let mut world = World::new(&crossbar(), &[]);
    let flooders: Vec<usize> = (0..60)
        .map(|_| world.connect_from([127, 0, 0, 1], None))
        .collect();
    for (number, flooder) in flooders.iter().enumerate() {
        for command in 0..100 {
            world.subscribe(*flooder, &format!("{number}-{command}"), A, CALLS, "flood");
        }
        world.turn();
    }
    let honest = world.connect_from([127, 0, 0, 2], None);
    world.subscribe(honest, "honest", A, CALLS, "s");
    world.turn();
    let sizes = world.reactor.hub.authenticator.sizes();
    assert!(sizes.questions <= PLATFORM_QUESTIONS_MAX, "{sizes:?}");
    // Each answer makes room for the next; the honest one is among the first.
    let mut place = 0;
    'asked: for round in 0.. {
        for (token, _) in world.asked() {
            place += 1;
            if token == "honest" {
                world.answer(&token, A, yes());
                break 'asked;
            }
            world.answer(&token, A, AccountAnswer::TokenRefused);
        }
        assert!(round < 100, "never asked");
    }
    assert!(place <= 64, "asked as number {place}");
    assert_eq!(world.told(honest), ["s: ok"]);
}

/// A key of RSA that signs nothing here: the test is the thread that verifies.
fn key() -> String {
    include_str!("../fixtures/system_key.pem").to_owned()
}

fn jwt_auth() -> AuthConfig {
    AuthConfig {
        jwt: Some(JwtConfig {
            keys: PathBuf::from("key.pem"),
            rules: jwt::Rules::new("kazoo", false),
        }),
        ..AuthConfig::default()
    }
}

/// Puts the questions to the real function of the thread.
fn verify(world: &mut World) -> usize {
    let questions = world.questions();
    let count = questions.len();
    for question in questions {
        let Question::Verify {
            token,
            keys,
            rules,
            unix_now,
        } = question
        else {
            panic!("{question:?}");
        };
        let verdict = jwt::verify(&token, &keys, &rules, unix_now);
        world
            .threads
            .answer(Answer::Verify { token, verdict })
            .unwrap();
    }
    world.turn();
    count
}

#[test]
fn a_jwt_that_does_not_hold_is_refused_at_the_upgrade_and_in_a_command_and_is_verified_once() {
    let mut world = World::new(&jwt_auth(), &[("key.pem", key())]);
    let forged = "eyJhbGciOiJSUzI1NiJ9.e30.AAAA";
    let session = world.connect_from([127, 0, 0, 1], Some(forged));
    assert_eq!(world.clients[session].status, "", "it waits");
    assert_eq!(verify(&mut world), 1);
    assert_eq!(world.clients[session].status, "403 Forbidden");
    let session = world.connect();
    world.ping(session, Some(forged), "p");
    world.ping(session, Some("no-jwt"), "q");
    assert_eq!(
        world.told(session),
        [
            "p: failed to authenticate token",
            "q: failed to authenticate token"
        ]
    );
    assert_eq!(verify(&mut world), 0, "the refusal is kept");
    let long = format!("{}.{}.AAAA", "a".repeat(9000), "b".repeat(10));
    world.ping(session, Some(&long), "long");
    assert_eq!(world.told(session), ["long: failed to authenticate token"]);
    assert_eq!(verify(&mut world), 0);
}

#[test]
fn an_unknown_key_is_fetched_once_and_what_the_platform_does_not_know_is_refused() {
    let mut auth = jwt_auth();
    auth.platform = crossbar().platform;
    if let Some(jwt) = &mut auth.jwt {
        jwt.keys = PathBuf::from("keys");
    }
    let mut world = World::new(&auth, &[("keys", key())]);
    // {"alg":"RS256","kid":"k1"}
    let token = |tail: &str| format!("eyJhbGciOiJSUzI1NiIsImtpZCI6ImsxIn0.e30.{tail}");
    let sessions: Vec<usize> = (0..3).map(|_| world.connect()).collect();
    for session in &sessions {
        world.ping(*session, Some(&token(&"AAAA".repeat(1 + session))), "p");
    }
    assert_eq!(verify(&mut world), 3);
    let questions = world.questions();
    assert_eq!(questions.len(), 1);
    let Some(Question::Key { kid }) = questions.into_iter().next() else {
        panic!("not asked for the key");
    };
    assert_eq!(&*kid, "k1");
    let answer = KeyAnswer::Pem(key());
    world.threads.answer(Answer::Key { kid, answer }).unwrap();
    assert_eq!(verify(&mut world), 3, "by the key that came");
    for session in &sessions {
        assert_eq!(world.told(*session), ["p: failed to authenticate token"]);
    }

    let session = world.connect();
    // {"alg":"RS256","kid":"k2"}
    world.ping(
        session,
        Some("eyJhbGciOiJSUzI1NiIsImtpZCI6ImsyIn0.e30.AAAA"),
        "p",
    );
    assert_eq!(verify(&mut world), 1);
    let Some(Question::Key { kid }) = world.questions().into_iter().next() else {
        panic!("not asked for the key");
    };
    let answer = KeyAnswer::Unknown;
    world.threads.answer(Answer::Key { kid, answer }).unwrap();
    assert_eq!(verify(&mut world), 1);
    assert_eq!(world.told(session), ["p: failed to authenticate token"]);
}

/// Accounts below one another: A is above B, C stands alone.
fn tree(of_b: &str) -> String {
    json!({A: {"realm": "a.example"}, B: {"realm": "b.example", "parent": of_b}, C: {"realm": "c.example"}})
        .to_string()
}

#[test]
fn a_parent_sees_what_is_below_it_and_a_tree_that_changes_takes_it_away() {
    let auth = AuthConfig {
        tokens: Some(PathBuf::from("tokens.json")),
        accounts: Some(PathBuf::from("accounts.json")),
        platform: crossbar().platform,
        ..AuthConfig::default()
    };
    let tokens = json!({"t": {"account_id": A}, "u": {"account_id": B}}).to_string();
    let texts = [("tokens.json", tokens.clone()), ("accounts.json", tree(A))];
    let mut world = World::new(&auth, &texts);
    let (parent, child) = (world.connect(), world.connect());
    world.subscribe(parent, "t", A, CALLS, "own");
    world.subscribe(parent, "t", B, CALLS, "below");
    world.subscribe(parent, "t", B, DIALOGS, "realm");
    world.subscribe(parent, "t", C, CALLS, "beside");
    assert_eq!(
        world.told(parent),
        [
            "own: ok",
            "below: ok",
            "realm: ok",
            "beside: unauthorized account id"
        ]
    );
    world.subscribe(child, "u", A, CALLS, "above");
    world.subscribe(child, "u", B, CALLS, "own");
    assert_eq!(
        world.told(child),
        ["above: unauthorized account id", "own: ok"]
    );
    assert!(
        world.asked().is_empty(),
        "the tree decides on tokens of the file"
    );
    world.publish_call(B);
    world.publish_dialog("b.example");
    assert_eq!(world.told(parent), ["event CHANNEL_CREATE", "event dialog"]);

    // SIGHUP, but for the thread: the child stands alone now.
    let read = |path: &Path| -> Result<String, AuthError> {
        let is_tree = path == Path::new("accounts.json");
        Ok(if is_tree { tree(C) } else { tokens.clone() })
    };
    let no_keys = |_: &Path| -> Result<jwt::KeyText, AuthError> { panic!("no keys") };
    world
        .reactor
        .hub
        .authenticator
        .reload(read, no_keys)
        .unwrap();
    world.reactor.renew_identities();
    world.publish_call(B);
    world.publish_dialog("b.example");
    world.publish_call(A);
    assert_eq!(
        world.told(parent),
        [
            &*format!("subscriptions_ended \"rights\" [\"{CALLS}\",\"{DIALOGS}\"]"),
            "event CHANNEL_CREATE"
        ]
    );
    assert_eq!(world.told(child), ["event CHANNEL_CREATE"; 2]);
}

#[test]
fn without_a_tree_the_platform_decides_on_accounts_that_a_token_of_the_file_does_not_have() {
    let auth = AuthConfig {
        tokens: Some(PathBuf::from("tokens.json")),
        platform: crossbar().platform,
        ..AuthConfig::default()
    };
    let tokens = json!({"t": {"account_id": A}}).to_string();
    let mut world = World::new(&auth, &[("tokens.json", tokens)]);
    let session = world.connect();
    world.subscribe(session, "t", A, CALLS, "own");
    assert_eq!(world.told(session), ["own: ok"], "nobody is asked");
    world.subscribe(session, "t", B, CALLS, "other");
    assert_eq!(world.asked(), [("t".to_owned(), account(B))]);
    world.answer("t", B, yes_in("b.example"));
    assert_eq!(world.told(session), ["other: ok"]);
    world.publish_call(B);
    assert_eq!(world.told(session), ["event CHANNEL_CREATE"]);
    // Its own realm is not in the file, so the platform is asked for it when it matters.
    world.subscribe(session, "t", A, DIALOGS, "realm");
    assert_eq!(world.asked(), [("t".to_owned(), account(A))]);
    world.answer("t", A, yes_in("a.example"));
    assert_eq!(world.told(session), ["realm: ok"]);
    for _ in 0..2 {
        world.wait(55 * SECOND);
        let mut asked = world.asked();
        asked.sort();
        let expected = [A, B].map(|one| ("t".to_owned(), account(one)));
        assert_eq!(asked, expected, "asked again while the session lives");
        world.answer("t", A, yes_in("a.example"));
        world.answer("t", B, yes_in("b.example"));
    }
    world.wait(55 * SECOND);
    assert_eq!(world.asked().len(), 2);
    world.answer("t", A, AccountAnswer::AccountRefused);
    world.answer("t", B, AccountAnswer::AccountRefused);
    world.wait(SECOND);
    world.publish_call(A);
    world.publish_call(B);
    let told = world.told(session);
    let last = told.len() - 1;
    assert_eq!(told[last], "event CHANNEL_CREATE", "{told:?}");
    assert!(
        told[..last]
            .iter()
            .all(|line| line.starts_with("subscriptions_ended")),
        "{told:?}"
    );
    world.clients[session].wire.borrow_mut().is_reset = true;
    world.clients[session].wire.borrow_mut().edge_readable = true;
    world.wait(61 * SECOND);
    assert_eq!(world.reactor.hub.authenticator.sizes().grants, 0);
}

#[test]
fn a_session_that_lost_its_own_account_can_come_back_by_another() {
    let mut world = World::new(&crossbar(), &[]);
    let session = world.connect();
    world.subscribe(session, "t", A, CALLS, "a");
    world.questions();
    world.answer("t", A, yes());
    world.wait(55 * SECOND);
    assert_eq!(world.asked().len(), 1);
    world.answer("t", A, AccountAnswer::AccountRefused);
    world.wait(6 * SECOND);
    assert_eq!(world.told(session).len(), 2, "the reply, and the notice");
    world.subscribe(session, "t", B, CALLS, "b");
    assert_eq!(world.asked().len(), 1);
    world.answer("t", B, yes());
    assert_eq!(world.told(session), ["b: ok"]);
    for _ in 0..3 {
        world.wait(55 * SECOND);
        assert_eq!(
            world.asked().len(),
            1,
            "it is asked again while the session lives"
        );
        world.answer("t", B, yes());
    }
    world.publish_call(B);
    assert_eq!(world.told(session), ["event CHANNEL_CREATE"]);
}

/// What one client of the random test has sent and not been answered.
#[derive(Default)]
struct Sent {
    /// In the order of the commands; pings apart, which may overtake.
    commands: VecDeque<String>,
    pings: Vec<String>,
}

/// Random commands of several clients, answered by a platform that changes its mind, in any order, late, or not at all:
/// every command is answered once and in its place, nobody gets an event of an account by a token that the platform took
/// back, and nothing is left.
#[test]
fn whatever_is_answered_and_when_each_command_has_its_reply_and_nobody_a_right_that_was_taken_away()
{
    let mut totals = [0; 4];
    for (events, waited, ended, refused) in under_seeds(48, random_platform) {
        for (total, one) in totals.iter_mut().zip([events, waited, ended, refused]) {
            *total += one;
        }
    }
    println!("events, commands that waited, subscriptions ended, commands refused: {totals:?}");
    if std::env::var_os("BLACKHOLE_SEED").is_none() {
        assert!(totals.iter().all(|total| *total > 50), "{totals:?}");
    }
}

#[expect(clippy::too_many_lines, reason = "one script, read from top to bottom")]
fn random_platform(seed: u64) -> (u64, u64, u64, u64) {
    const CLIENTS: usize = 4;
    let accounts = [A, B, C];
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut world = World::new(&crossbar(), &[]);
    let mut sent: Vec<Sent> = (0..CLIENTS).map(|_| Sent::default()).collect();
    let mut is_closed = [false; CLIENTS];
    for _ in 0..CLIENTS {
        world.connect();
    }
    // What the platform would say; what it said last, and when.
    let mut truth = std::collections::HashMap::<(String, &str), bool>::new();
    let mut said = std::collections::HashMap::<(String, &str), (bool, Duration)>::new();
    let mut open: Vec<(String, AccountId)> = Vec::new();
    let mut events = 0;
    for step in 0..400 {
        let client = rng.usize(..CLIENTS);
        let token = format!("{client}-{}", rng.u8(..2));
        let (hex, id) = (accounts[rng.usize(..3)], step.to_string());
        match rng.u8(..20) {
            0..=5 if !is_closed[client] => {
                world.subscribe(client, &token, hex, CALLS, &id);
                sent[client].commands.push_back(id);
            }
            6 if !is_closed[client] => {
                let command = json!({"action": "unsubscribe", "request_id": id, "auth_token": token,
                    "data": {"account_id": hex, "binding": CALLS}});
                world.send(client, &command);
                sent[client].commands.push_back(id);
            }
            7..=8 if !is_closed[client] => {
                world.ping(client, rng.bool().then_some(&*token), &id);
                sent[client].pings.push(id);
            }
            9..=14 if !open.is_empty() => {
                let (token, account) = open.swap_remove(rng.usize(..open.len()));
                let hex = *accounts
                    .iter()
                    .find(|hex| self::account(hex) == account)
                    .unwrap();
                let key = (token.clone(), hex);
                if rng.u8(..6) == 0 {
                    world.answer(&token, hex, AccountAnswer::Trouble);
                } else {
                    let is_yes = *truth.entry(key.clone()).or_insert_with(|| rng.u8(..4) > 0);
                    said.insert(key, (is_yes, world.clock));
                    let no = AccountAnswer::AccountRefused;
                    world.answer(&token, hex, if is_yes { yes() } else { no });
                }
            }
            15 => {
                truth.insert((token, hex), rng.bool());
            }
            16..=17 => world.wait(Duration::from_millis(rng.u64(..20_000))),
            18 => {
                world.publish_call(hex);
                for (receiver, client) in world.clients.iter_mut().enumerate() {
                    let got = |frame: &Value| frame["action"] == "event";
                    let count = client.frames.iter().filter(|frame| got(frame)).count() as u64;
                    client.frames.retain(|frame| !got(frame));
                    events += count;
                    let may = (0..2).any(|number| {
                        let said = said.get(&(format!("{receiver}-{number}"), hex));
                        said.is_some_and(|(is_yes, at)| *is_yes || world.clock < *at + 2 * SECOND)
                    });
                    assert!(count == 0 || may, "client {receiver} got an event of {hex}");
                }
            }
            _ => {}
        }
        open.extend(world.asked());
        take_replies(&mut world, &mut sent, &mut is_closed);
    }
    // The platform is gone: what waits is given up in its time.
    world.wait(11 * SECOND);
    world.wait(11 * SECOND);
    take_replies(&mut world, &mut sent, &mut is_closed);
    for (client, sent) in sent.iter().enumerate() {
        let is_done = sent.commands.is_empty() && sent.pings.is_empty();
        assert!(
            is_done || is_closed[client],
            "client {client} waits: {:?} {:?}",
            sent.commands,
            sent.pings
        );
    }
    assert_eq!(world.reactor.hub.held, Default::default());
    for client in &world.clients {
        let mut wire = client.wire.borrow_mut();
        (wire.is_reset, wire.edge_readable) = (true, true);
    }
    world.turn();
    for _ in 0..3 {
        open.extend(world.asked());
        for (token, account) in std::mem::take(&mut open) {
            world.answer(&token, &account.to_string(), AccountAnswer::Trouble);
        }
        world.wait(2 * YES);
    }
    let sizes = world.reactor.hub.authenticator.sizes();
    assert_eq!((sizes.grants, sizes.askers), (0, 0), "{sizes:?}");
    let metrics = &world.reactor.hub.metrics;
    (
        events,
        metrics.commands_suspended_total,
        metrics.subscriptions_ended_total,
        metrics.commands.refused(),
    )
}

/// Judges the order of the replies.
fn take_replies(world: &mut World, sent: &mut [Sent], is_closed: &mut [bool]) {
    for (index, client) in world.clients.iter_mut().enumerate() {
        for frame in client.frames.drain(..) {
            is_closed[index] |= frame.get("close").is_some();
            if frame["action"] != "reply" {
                continue;
            }
            let id = frame["request_id"].as_str().unwrap();
            let sent = &mut sent[index];
            if let Some(place) = sent.pings.iter().position(|ping| ping == id) {
                sent.pings.remove(place);
            } else {
                assert_eq!(
                    sent.commands.pop_front().as_deref(),
                    Some(id),
                    "in its place"
                );
            }
        }
    }
}

#[test]
fn thousands_of_upgrades_of_one_address_wait_for_their_signatures_and_none_is_closed() {
    let mut world = World::new(&jwt_auth(), &[("key.pem", key())]);
    let count = 2_000;
    // As long as the platform's tokens.
    let token = |number: usize| format!("eyJhbGciOiJSUzI1NiJ9.{number:0700}.AAAA");
    let sessions: Vec<usize> = (0..count)
        .map(|number| world.connect_from([127, 0, 0, 1], Some(&token(number))))
        .collect();
    let mut verified = 0;
    while verified < count {
        let more = verify(&mut world);
        assert!(more > 0, "{verified} of {count} were asked about");
        verified += more;
    }
    for session in sessions {
        assert_eq!(world.clients[session].status, "403 Forbidden");
    }
}

#[test]
fn a_token_has_at_most_its_share_of_grants_and_another_gets_its_own() {
    let mut world = World::new(&crossbar(), &[]);
    let greedy = world.connect();
    let account = |number: usize| format!("{number:032x}");
    let ask = |world: &mut World, number: usize| {
        world.subscribe(greedy, "t", &account(number), CALLS, "s");
        let is_asked = !world.asked().is_empty();
        if is_asked {
            world.answer("t", &account(number), yes());
        }
        let data = json!({"account_id": account(number), "binding": CALLS});
        world.send(
            greedy,
            &json!({"action": "unsubscribe", "request_id": "u", "data": data}),
        );
        let told = world.told(greedy);
        (is_asked, told)
    };
    world.reactor.hub.limits.rate = None;
    for number in 0..GRANTS_OF_TOKEN_MAX {
        let (is_asked, told) = ask(&mut world, number);
        assert!(is_asked && told == ["s: ok", "u: ok"], "{number}: {told:?}");
    }
    let (is_asked, told) = ask(&mut world, GRANTS_OF_TOKEN_MAX);
    assert!(!is_asked);
    assert_eq!(told[0], "s: authentication unavailable");
    let (is_asked, told) = ask(&mut world, 0);
    assert!(!is_asked, "what it has it keeps");
    assert_eq!(told[0], "s: ok");
    let other = world.connect();
    world.subscribe(other, "u", A, CALLS, "s");
    assert_eq!(world.asked().len(), 1);
    world.answer("u", A, yes());
    assert_eq!(world.told(other), ["s: ok"]);
}

#[test]
fn a_session_without_proof_keeps_only_so_much_waiting() {
    let mut world = World::new(&crossbar(), &[]);
    let session = world.connect();
    let large = "x".repeat(60_000);
    for id in ["1", "2", "3"] {
        let command = json!({"action": "subscribe", "auth_token": "t", "request_id": id, "padding": large,
            "data": {"account_id": A, "binding": CALLS}});
        world.send(session, &command);
    }
    assert_eq!(world.asked().len(), 1);
    assert!(world.reactor.hub.held.bytes <= SUSPENDED_BYTES_MAX + 1_000);
    world.answer("t", A, yes());
    assert_eq!(
        world.told(session),
        ["1: ok", "2: ok", "3: authentication unavailable"]
    );
}
