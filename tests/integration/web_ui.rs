//! The web UI of the platform, as its socket client behaves (PROTOCOL 3 and 5): a browser's upgrade, all listeners of a
//! page in one burst, a GUID for each command, and a reconnect that waits for nobody. It has two lives:
//!
//! | | of Kazoo 4 | of Kazoo 5 |
//! |---|---|---|
//! | a listener for a binding that is live | shares it, nothing is sent | subscribes too |
//! | token of a command | the one that the listener was made with | the one of now |
//! | what is subscribed, it reads from | `subscribed` | `subscriptions` |
//! | presence bindings | with their prefix | without |
//! | `account_id` of the own account | there | left out |
//!
//! In both, a listener is live when its subscribe has succeeded, and gets `data` of every event whose `subscribed_key` is
//! its binding; an event of another binding, or a reply that nobody asked for, is a fault here. The last listener of a
//! binding unsubscribes it. When the connection ends, the client connects at once; then 250 ms after a refusal, 500 ms
//! after the next, and so on, without jitter; then every listener subscribes again.
//!
//! Only the address is the test's: no query asks for a style.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::bridge::Host;
use support::client::{Client, errors, success};
use support::events::{
    ACCOUNT, CALL_ID, FIXTURES, OTHER_ACCOUNT, PARENT_ACCOUNT, call_event, database, fixture_key,
    kazoo_data,
};
use support::server::{BROKER_PATIENCE, Fed, PATIENCE, Server, TokenFile, unix_now, wait_for};
use support::tcp_proxy::{Mode, TcpProxy};

const ORIGIN: &str = "https://ui.example.com";

/// What a browser sends beside what every client must.
const BROWSER: [(&str, &str); 8] = [
    ("Pragma", "no-cache"),
    ("Cache-Control", "no-cache"),
    (
        "User-Agent",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    ),
    ("Origin", ORIGIN),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Accept-Language", "en-GB,en;q=0.9,de;q=0.8"),
    ("Cookie", "monster-auth=%7B%22language%22%3A%22en-US%22%7D"),
    (
        "Sec-WebSocket-Extensions",
        "permessage-deflate; client_max_window_bits",
    ),
];

/// The server's options, and nothing of the client's.
const OPTIONS: [&str; 4] = ["--style", "kazoo", "--allowed-origins", ORIGIN];

/// Before the second attempt to connect; each later wait is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Kazoo4,
    Kazoo5,
}

const LIVES: [Life; 2] = [Life::Kazoo4, Life::Kazoo5];

/// One place of the page that listens.
#[derive(Clone, Debug)]
struct Listener {
    binding: String,
    /// `None`: the page does not say, and means its own.
    account: Option<&'static str>,
    token: &'static str,
    /// The app of the page that it is of.
    source: &'static str,
    /// What it has been called with.
    heard: Rc<Cell<usize>>,
}

/// What a reply is waited for.
enum Asked {
    Subscribe(Listener),
    Unsubscribe,
}

/// A page, and its one socket.
struct Page {
    life: Life,
    client: Client,
    /// Live: a binding, and who listens.
    bindings: HashMap<String, Vec<Listener>>,
    /// Commands that no reply came to yet, in their order.
    asked: Vec<(String, Asked)>,
    /// The token that the page has now.
    token: &'static str,
    /// Every event so far, in order.
    events: Vec<Value>,
    /// The GUID of the first subscribe of each binding.
    first: HashMap<String, String>,
    /// Error texts of replies so far.
    errors: Vec<String>,
    guids: fastrand::Rng,
}

impl Page {
    fn open(life: Life, address: SocketAddr, token: &'static str) -> Self {
        Self {
            life,
            client: Client::connect_with(address, "/", &BROWSER),
            bindings: HashMap::new(),
            asked: Vec::new(),
            token,
            events: Vec::new(),
            first: HashMap::new(),
            errors: Vec::new(),
            guids: fastrand::Rng::with_seed(u64::from(address.port())),
        }
    }

    /// Presence as this life names it.
    fn presence(&self, binding: &str) -> String {
        match self.life {
            Life::Kazoo4 => format!("presence.{binding}"),
            Life::Kazoo5 => binding.to_owned(),
        }
    }

    /// A new listener with the page's token; it need not be live yet.
    fn listen(&mut self, source: &'static str, account: &'static str, binding: &str) -> Listener {
        let may_be_left_out = self.life == Life::Kazoo5 && account == ACCOUNT;
        let listener = Listener {
            binding: binding.to_owned(),
            account: (!may_be_left_out).then_some(account),
            token: self.token,
            source,
            heard: Rc::default(),
        };
        self.add(listener.clone());
        listener
    }

    fn add(&mut self, listener: Listener) {
        let live = self.bindings.get_mut(&listener.binding);
        match live {
            Some(listeners) if self.life == Life::Kazoo4 => listeners.push(listener),
            _ => self.command("subscribe", Asked::Subscribe(listener.clone()), &listener),
        }
    }

    /// Ends a listener; the last one of a binding takes that along.
    fn stop(&mut self, listener: &Listener) {
        let Some(listeners) = self.bindings.get_mut(&listener.binding) else {
            return self.command("unsubscribe", Asked::Unsubscribe, listener);
        };
        listeners.retain(|one| !(one.account == listener.account && one.source == listener.source));
        if listeners.is_empty() {
            self.bindings.remove(&listener.binding);
            self.command("unsubscribe", Asked::Unsubscribe, listener);
        }
    }

    fn command(&mut self, action: &str, asked: Asked, listener: &Listener) {
        let guid = self.guid();
        let token = match self.life {
            Life::Kazoo4 => listener.token,
            Life::Kazoo5 => self.token,
        };
        let mut data = json!({"binding": listener.binding});
        if let Some(account) = listener.account {
            data["account_id"] = json!(account);
        }
        self.client.send(
            &json!({"action": action, "auth_token": token, "request_id": guid, "data": data}),
        );
        if matches!(asked, Asked::Subscribe(_)) {
            let first = self.first.entry(listener.binding.clone());
            first.or_insert_with(|| guid.clone());
        }
        self.asked.push((guid, asked));
    }

    /// 8-4-4-4-12 hex digits, as the page's own makes them.
    fn guid(&mut self) -> String {
        let digits = format!("{:032x}", self.guids.u128(..));
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| digits[part].to_owned());
        parts.join("-")
    }

    /// Takes one message, as the page's handler does.
    fn take(&mut self) {
        let message = self.client.recv();
        match message["action"].as_str() {
            Some("reply") => self.take_reply(&message),
            Some("event") => self.take_event(message),
            _ => panic!("a page does not know what this is: {message}"),
        }
    }

    fn take_reply(&mut self, reply: &Value) {
        assert!(!self.asked.is_empty(), "nobody asked: {reply}");
        let (guid, asked) = self.asked.remove(0);
        assert_eq!(reply["request_id"], guid, "replies keep their order");
        if reply["status"] == "error" {
            let texts = errors(reply).into_iter().map(str::to_owned);
            return self.errors.extend(texts);
        }
        let list = match self.life {
            Life::Kazoo4 => "subscribed",
            Life::Kazoo5 => "subscriptions",
        };
        let listed = success(reply)[list].as_array().expect("a list");
        if let Asked::Subscribe(listener) = asked {
            assert!(listed.contains(&json!(listener.binding)), "{reply}");
            let listeners = self.bindings.entry(listener.binding.clone()).or_default();
            listeners.push(listener);
        }
    }

    fn take_event(&mut self, event: Value) {
        let key = event["subscribed_key"].as_str().expect("a text");
        let listeners = self.bindings.get(key);
        let listeners = listeners.unwrap_or_else(|| panic!("nobody listens: {event}"));
        assert!(
            event["data"].is_object(),
            "the page puts the binding into it: {event}"
        );
        for listener in listeners {
            listener.heard.set(listener.heard.get() + 1);
        }
        self.events.push(event);
    }

    /// Takes messages until every command has its reply.
    fn settle(&mut self) {
        while !self.asked.is_empty() {
            self.take();
        }
    }

    /// Takes so many events, and asserts that no more came: the client bindings that they are for, in order.
    fn hears(&mut self, count: usize) -> Vec<String> {
        let before = self.events.len();
        while self.events.len() < before + count {
            self.take();
        }
        self.client.assert_nothing_came(self.token);
        let key = |event: &Value| event["subscribed_key"].as_str().unwrap().to_owned();
        self.events[before..].iter().map(key).collect()
    }

    /// What the page does when its connection has ended. `before` is told the number of each attempt, from 0.
    fn reconnect(&mut self, address: SocketAddr, mut before: impl FnMut(usize)) {
        let begun = Instant::now();
        let mut wait = FIRST_WAIT;
        let mut attempts = 0..;
        self.client = loop {
            assert!(begun.elapsed() < PATIENCE, "not connected");
            before(attempts.next().unwrap());
            if let Some(client) = Client::try_connect_with(address, "/", &BROWSER) {
                break client;
            }
            // The page's own timer.
            let next = Instant::now() + wait;
            while let Some(left) = next.checked_duration_since(Instant::now()) {
                thread::park_timeout(left);
            }
            wait *= 2;
        };
        // What no reply came to is forgotten, and every listener that was live begins anew.
        self.asked.clear();
        for listener in std::mem::take(&mut self.bindings).into_values().flatten() {
            self.add(listener);
        }
    }
}

/// Of an account with a descendant, twice, and of a stranger.
fn tokens() -> Value {
    let mine =
        json!({"account_id": ACCOUNT, "descendants": [OTHER_ACCOUNT], "realm": "one.example.com"});
    json!({"mine": mine, "renewed": mine, "theirs": {"account_id": PARENT_ACCOUNT}})
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

/// A call event through a server that is fed.
fn publish(fed: &mut Fed, account: &str, event: &str, number: usize) {
    let body = call_event(account, event, number);
    fed.publish("callevt", &format!("call.{event}.c"), &body);
}

#[test]
fn a_page_binds_all_its_listeners_in_one_burst_and_each_hears_every_event_once() {
    let tokens = TokenFile::new(&tokens());
    for life in LIVES {
        let Some(host) = Host::take() else {
            return;
        };
        let server = Server::authorised(&host.url, &tokens.option(), &OPTIONS);
        let publisher = host.publisher();
        let mut page = Page::open(life, server.address(), "mine");
        page.client.set_patience(BROKER_PATIENCE);
        let (dialog, mwi) = (page.presence("dialog.*"), page.presence("mwi_updates.1001"));
        let all = [
            ("voip", "call.CHANNEL_CREATE.*"),
            ("voip", "call.CHANNEL_ANSWER.*"),
            ("voip", "call.CHANNEL_DESTROY.*"),
            ("callcenter", "call.CHANNEL_CREATE.*"),
            ("operator", "call.*.*"),
            ("accounts", "object.doc_edited.user"),
            ("fax", "fax.status.*"),
            ("operator", &dialog),
            ("voicemails", &mwi),
        ];
        let listeners = all.map(|(source, binding)| page.listen(source, ACCOUNT, binding));
        page.settle();
        assert_eq!(page.errors, [""; 0]);
        assert_eq!(page.bindings.len(), 8);
        assert_eq!(server.metric("subscriptions"), 8);

        let realm = "one%2Eexample%2Ecom";
        let more = json!({"Event-Name": "an_event", "Account-ID": ACCOUNT});
        for account in [PARENT_ACCOUNT, ACCOUNT] {
            for (name, body) in FIXTURES {
                let body = body.replace(ACCOUNT, account);
                publisher.publish("callevt", &fixture_key(name), body.as_bytes());
            }
            let (database, is_mine) = (database(account), account == ACCOUNT);
            let realm = if is_mine { realm } else { "other%2Eexample" };
            for (exchange, key) in [
                ("configuration", format!("doc_edited.{database}.user.u1")),
                ("faxes", format!("fax.status.{account}.f1")),
                ("presence", format!("dialog.{realm}.{CALL_ID}")),
                ("presence", format!("mwi_updates.{realm}.1001")),
                ("presence", format!("mwi_updates.{realm}.1002")),
            ] {
                publisher.publish(exchange, &key, more.to_string().as_bytes());
            }
        }
        let expected = [
            "call.*.*",
            "call.*.*",
            "call.*.*",
            "call.CHANNEL_ANSWER.*",
            "call.CHANNEL_CREATE.*",
            "call.CHANNEL_DESTROY.*",
            &dialog,
            "fax.status.*",
            &mwi,
            "object.doc_edited.user",
        ];
        let expected: Vec<String> = expected.map(str::to_owned).into();
        assert_eq!(sorted(page.hears(10)), sorted(expected), "{life:?}");
        let heard = listeners.each_ref().map(|listener| listener.heard.get());
        assert_eq!(heard, [1, 1, 1, 1, 3, 1, 1, 1, 1], "{life:?}");
        for event in &page.events {
            let first = &page.first[event["subscribed_key"].as_str().unwrap()];
            assert_eq!(event["request_id"], **first, "{life:?}: {event}");
        }
        for (name, body) in FIXTURES {
            let body: Value = serde_json::from_str(body).unwrap();
            let of_it = page.events.iter().filter(|event| event["name"] == name);
            let data: Vec<&Value> = of_it.map(|event| &event["data"]).collect();
            assert_eq!(data, [&kazoo_data(&body); 2], "{life:?}: {name}");
        }

        // Another listener of a binding that is live; then one after the other ends.
        let late = page.listen("switchboard", ACCOUNT, "call.CHANNEL_CREATE.*");
        let [voip, .., callcenter] = [&listeners[0], &listeners[1], &listeners[3]];
        let create = |number: usize| {
            let body = call_event(ACCOUNT, "CHANNEL_CREATE", number).to_string();
            publisher.publish("callevt", "call.CHANNEL_CREATE.c", body.as_bytes());
        };
        let both = ["call.*.*", "call.CHANNEL_CREATE.*"];
        for (number, (ends, expected)) in [
            (None, &both[..]),
            (Some(voip), &both),
            (Some(callcenter), &both),
            (Some(&late), &both[..1]),
        ]
        .into_iter()
        .enumerate()
        {
            ends.into_iter().for_each(|listener| page.stop(listener));
            page.settle();
            create(number);
            assert_eq!(sorted(page.hears(expected.len())), expected, "{life:?}");
        }
        let heard = [voip, callcenter, &late].map(|listener| listener.heard.get());
        assert_eq!(heard, [2, 3, 3], "{life:?}");
        assert_eq!(page.errors, [""; 0]);
        assert_eq!(server.metric("subscriptions"), 7);
    }
}

/// How a thread with a page takes its steps together with the test's own: it says that it has done one, and goes on when
/// it is told to. A thread that fails ends the others'.
struct Together {
    done: Sender<()>,
    go: Receiver<()>,
}

impl Together {
    fn wait(&self) {
        self.done.send(()).unwrap();
        let told = self.go.recv_timeout(BROKER_PATIENCE);
        told.expect("every page does its step");
    }
}

#[test]
fn pages_that_all_come_back_at_the_same_instants_have_everything_they_had() {
    const PAGES: usize = 24;
    const BINDINGS: [&str; 5] = [
        "call.CHANNEL_CREATE.*",
        "call.CHANNEL_ANSWER.*",
        "call.*.*",
        "fax.status.*",
        "call.CHANNEL_CREATE.*",
    ];
    for life in LIVES {
        let mut fed = Fed::with_tokens(&tokens(), &OPTIONS);
        let proxy = TcpProxy::start(fed.server.address());
        let (done, is_done) = channel();
        let (go, pages): (Vec<_>, Vec<_>) = (0..PAGES)
            .map(|_| {
                let (tell, go) = channel();
                (
                    tell,
                    Together {
                        done: done.clone(),
                        go,
                    },
                )
            })
            .unzip();
        drop(done);
        let all_done = || {
            for _ in 0..PAGES {
                let is_done = is_done.recv_timeout(BROKER_PATIENCE);
                is_done.expect("every page does its step");
            }
        };
        let all_go = || go.iter().for_each(|go| go.send(()).unwrap());
        let proxy = &proxy;
        let page = move |number: usize, together: Together| {
            let mut page = Page::open(life, proxy.address(), "mine");
            let listeners = BINDINGS.map(|binding| page.listen("voip", ACCOUNT, binding));
            page.settle();
            together.wait();
            // One event, and the end of the connection.
            let both = ["call.*.*", "call.CHANNEL_CREATE.*"];
            assert_eq!(sorted(page.hears(2)), both);
            together.wait();
            page.reconnect(proxy.address(), |attempt| {
                if number == 0 && attempt == 2 {
                    proxy.set(Mode::Pass);
                }
            });
            page.settle();
            assert_eq!(page.errors, [""; 0]);
            together.wait();
            assert_eq!(sorted(page.hears(2)), both);
            assert_eq!(page.events[2]["data"]["number"], 1, "nothing of before");
            let heard = listeners.map(|listener| listener.heard.get());
            assert_eq!(heard, [2, 0, 2, 0, 2], "{life:?}");
        };
        thread::scope(|scope| {
            for (number, together) in pages.into_iter().enumerate() {
                scope.spawn(move || page(number, together));
            }
            all_done();
            publish(&mut fed, ACCOUNT, "CHANNEL_CREATE", 0);
            all_go();
            all_done();
            proxy.set(Mode::Refuse);
            proxy.cut();
            all_go();
            all_done();
            fed.server.wait_for_metric("sessions", PAGES as u64);
            assert_eq!(fed.server.metric("subscriptions"), 4 * PAGES as u64);
            publish(&mut fed, ACCOUNT, "CHANNEL_CREATE", 1);
            all_go();
        });
    }
}

#[test]
fn a_page_with_a_renewed_token_outlives_the_old_one() {
    let expires = unix_now() + 3;
    let mut tokens = tokens();
    tokens["mine"]["expires"] = json!(expires);
    let mut pages = LIVES.map(|life| {
        let fed = Fed::with_tokens(&tokens, &OPTIONS);
        let mut page = Page::open(life, fed.server.address(), "mine");
        let old = page.listen("voip", ACCOUNT, "call.CHANNEL_CREATE.*");
        page.settle();
        page.token = "renewed";
        page.listen("voip", ACCOUNT, "call.CHANNEL_DESTROY.*");
        page.settle();
        assert_eq!(page.errors, [""; 0]);
        (life, fed, page, old)
    });
    wait_for("the end of the old token", || {
        (unix_now() > expires).then_some(())
    });
    for (life, fed, page, old) in &mut pages {
        publish(fed, ACCOUNT, "CHANNEL_CREATE", 0);
        publish(fed, ACCOUNT, "CHANNEL_DESTROY", 1);
        assert_eq!(
            page.hears(2),
            ["call.CHANNEL_CREATE.*", "call.CHANNEL_DESTROY.*"]
        );
        // Everything again, each listener with the token that it has in this life.
        page.reconnect(fed.server.address(), |_| ());
        page.settle();
        let refused: &[&str] = match life {
            Life::Kazoo4 => &["failed to authenticate token"],
            Life::Kazoo5 => &[],
        };
        assert_eq!(page.errors, refused, "{life:?}");
        assert_eq!(page.bindings.len(), 2 - refused.len());
        // A command with the old token is answered and changes nothing.
        page.stop(old);
        page.listen("again", ACCOUNT, "call.CHANNEL_CREATE.*");
        page.settle();
        assert_eq!(page.errors, refused.repeat(2), "{life:?}");
        publish(fed, ACCOUNT, "CHANNEL_CREATE", 2);
        publish(fed, ACCOUNT, "CHANNEL_DESTROY", 3);
        assert_eq!(
            page.hears(2),
            ["call.CHANNEL_CREATE.*", "call.CHANNEL_DESTROY.*"]
        );
        assert_eq!(old.heard.get(), 1, "{life:?}");
    }
}

#[test]
fn a_page_that_masquerades_as_a_descendant_hears_that_one_alone() {
    const BINDING: &str = "call.CHANNEL_CREATE.*";
    for life in LIVES {
        let mut fed = Fed::with_tokens(&tokens(), &OPTIONS);
        let mut page = Page::open(life, fed.server.address(), "mine");
        let mut number = 0;
        let mut hears_of = |page: &mut Page, accounts: &[&str]| {
            for account in [PARENT_ACCOUNT, ACCOUNT, OTHER_ACCOUNT] {
                publish(&mut fed, account, "CHANNEL_CREATE", number);
                number += 1;
            }
            let before = page.events.len();
            page.hears(accounts.len());
            let account =
                |event: &Value| event["data"]["custom_channel_vars"]["account_id"].clone();
            let of: Vec<Value> = page.events[before..].iter().map(account).collect();
            assert_eq!(of, accounts, "{life:?}");
        };
        let own = page.listen("voip", ACCOUNT, BINDING);
        page.settle();
        hears_of(&mut page, &[ACCOUNT]);
        // Into the descendant, in one burst, and back.
        page.stop(&own);
        let theirs = page.listen("voip", OTHER_ACCOUNT, BINDING);
        page.settle();
        hears_of(&mut page, &[OTHER_ACCOUNT]);
        page.stop(&theirs);
        page.listen("voip", ACCOUNT, BINDING);
        page.settle();
        hears_of(&mut page, &[ACCOUNT]);
        // Of a page that listens to both at once, only this life tells the server.
        page.listen("accounts", OTHER_ACCOUNT, BINDING);
        page.settle();
        match life {
            Life::Kazoo4 => hears_of(&mut page, &[ACCOUNT]),
            Life::Kazoo5 => hears_of(&mut page, &[ACCOUNT, OTHER_ACCOUNT]),
        }
        assert_eq!(page.errors, [""; 0]);
        // Nobody's descendant.
        page.listen("voip", PARENT_ACCOUNT, "call.CHANNEL_ANSWER.*");
        page.settle();
        assert_eq!(page.errors, ["unauthorized account id"]);
    }
}
