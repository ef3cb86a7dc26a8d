//! `blackhole sub` as people and scripts meet it: the real program against the real server.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use support::certificates::{Ca, Certified, LOCAL};
use support::client::ANY_TOKEN;
use support::events::{ACCOUNT, CALL_ID, OTHER_ACCOUNT, call_event, fixtures};
use support::server::{
    DEMO, Fed, PATIENCE, Scratch, Server, blackhole, dead_address, lines, own_address, unix_now,
    wait_for,
};
use support::tls::{self, plain_only};

const DEMO_ACCOUNT: &str = "00000000000000000000000000000001";

/// A running `blackhole sub`; killed on drop.
pub(crate) struct Sub {
    child: Child,
    events: Receiver<String>,
    said: Receiver<String>,
    /// Of [`Sub::said`], what was taken.
    log: Vec<String>,
}

impl Sub {
    fn start(args: &[&str]) -> Self {
        let mut child = blackhole()
            .arg("sub")
            .args(args)
            .args(trust_of(args))
            .env_remove("BLACKHOLE_TOKEN")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            events: lines(child.stdout.take().unwrap()),
            said: lines(child.stderr.take().unwrap()),
            log: Vec::new(),
            child,
        }
    }

    /// As the account of the test's events, with any token.
    pub(crate) fn at(address: SocketAddr, args: &[&str]) -> Self {
        let url = tls::url(address);
        let own = ["--url", &url, "--token", ANY_TOKEN, "--account", ACCOUNT];
        Self::start(&[&own[..], args].concat())
    }

    /// The next line on stdout.
    pub(crate) fn event(&mut self) -> String {
        self.events.recv_timeout(PATIENCE).unwrap_or_else(|error| {
            self.log.extend(self.said.try_iter());
            panic!("no event: {error}; said {:#?}", self.log)
        })
    }

    /// The next line on stderr that has `needle`.
    pub(crate) fn hears(&mut self, needle: &str) -> String {
        loop {
            let line = self.said.recv_timeout(PATIENCE);
            let line =
                line.unwrap_or_else(|error| panic!("not {needle:?}: {error}; {:#?}", self.log));
            self.log.push(line.clone());
            if line.contains(needle) {
                return line;
            }
        }
    }

    /// What was taken of stderr.
    pub(crate) fn log(&self) -> &[String] {
        &self.log
    }

    /// What is left on stdout, everything on stderr, and the exit code, once it ends by itself.
    fn end(mut self) -> (Vec<String>, Vec<String>, Option<i32>) {
        let mut events = Vec::new();
        loop {
            match self.events.recv_timeout(PATIENCE) {
                Ok(line) => events.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it did not end: {:#?}", self.log),
            }
        }
        let code = self.wait().code();
        let more = std::iter::from_fn(|| self.said.recv_timeout(PATIENCE).ok());
        let log = std::mem::take(&mut self.log);
        (events, log.into_iter().chain(more).collect(), code)
    }

    fn wait(&mut self) -> ExitStatus {
        wait_for("the end of blackhole sub", || {
            self.child.try_wait().unwrap()
        })
    }
}

impl Drop for Sub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn publish_fixtures(fed: &mut Fed) {
    for (key, body) in fixtures() {
        fed.publish("callevt", &key, &body);
    }
}

const NAMES: [&str; 3] = ["CHANNEL_CREATE", "CHANNEL_ANSWER", "CHANNEL_DESTROY"];

#[test]
fn events_come_in_each_form_and_the_count_ends_it() {
    let mut fed = Fed::insecure(&[]);
    let address = fed.server.address();
    let keys = NAMES.map(|name| format!("call.{ACCOUNT}.{name}.{CALL_ID}"));
    let mut printed = |args: &[&str]| {
        let mut sub = Sub::at(address, &[args, &["--count", "3", "call.*.*"]].concat());
        sub.hears("subscribed: call.*.*");
        publish_fixtures(&mut fed);
        let (events, log, code) = sub.end();
        assert_eq!(code, Some(0));
        let last = log.last().unwrap();
        assert!(last.starts_with("blackhole sub: 3 events in "), "{log:?}");
        assert!(last.ends_with(" s, 0 gaps"), "{log:?}");
        events
    };

    for (line, (name, key)) in printed(&[]).iter().zip(NAMES.iter().zip(&keys)) {
        // The time, and then these.
        let (time, rest) = line.split_at(13);
        assert!(time.ends_with('Z'), "{line}");
        assert!(rest.starts_with(&format!(" {name} {key}  ")), "{line}");
        assert!(!line.contains('\x1b'), "no terminal, no colours: {line}");
    }

    assert_eq!(printed(&["--keys"]), keys);

    let events = printed(&["--json"]);
    assert_eq!(events.len(), 3);
    for (line, (_, body)) in events.iter().zip(fixtures()) {
        let frame: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&frame["action"], &frame["args"]), (&json!("event"), &body));
    }

    let events = printed(&["--json", "--style", "kazoo"]);
    let frame: Value = serde_json::from_str(&events[0]).unwrap();
    assert_eq!(frame["data"]["call_id"], CALL_ID);
}

#[test]
fn what_an_event_holds_steers_no_terminal() {
    let mut fed = Fed::insecure(&[]);
    let mut sub = Sub::at(fed.server.address(), &["call.*.*"]);
    sub.hears("subscribed");
    let mut body = call_event(ACCOUNT, "CHANNEL_CREATE", 1);
    body["To"] = json!("\u{1b}]0;title\u{7}\r\n\u{202e}");
    fed.publish("callevt", "call.CHANNEL_CREATE.c", &body);
    let line = sub.event();
    assert!(
        line.ends_with("To=\\u{1b}]0;title\\u{7}\\r\\n\\u{202e}"),
        "{line}"
    );
}

#[test]
fn a_token_may_come_from_a_file_or_the_environment_and_is_never_told() {
    let tokens = json!({"hunter2": {"account_id": ACCOUNT}});
    let mut fed = Fed::with_tokens(&tokens, &[]);
    let url = tls::url(fed.server.address());
    let file = Scratch::file("token", "\nhunter2\n");
    let file = file.path().display().to_string();
    // The account is the token's own.
    let mut sub = Sub::start(&[
        "--url",
        &url,
        "--token-file",
        &file,
        "--count",
        "3",
        "call.*.*",
    ]);
    sub.hears("subscribed");
    publish_fixtures(&mut fed);
    assert_eq!(sub.end().2, Some(0));

    let output = blackhole()
        .args(["sub", "--url", &url, "--for", "1", "call.*.*"])
        .args(trust_of(&[&url]))
        .env("BLACKHOLE_TOKEN", "hunter2")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && said.contains("subscribed"),
        "{said}"
    );
    assert!(!said.contains("hunter2"));

    // Each is refused once, and not tried again.
    let before = fed.server.metric("sessions_opened_total");
    for wrong in ["hunter3", "x.y.z"] {
        let sub = Sub::start(&["--url", &url, "--token", wrong, "call.*.*"]);
        let (_, log, code) = sub.end();
        assert_eq!(code, Some(1));
        assert_eq!(log[0], "blackhole sub: failed to authenticate token");
        assert!(!log.concat().contains(wrong), "{log:?}");
    }
    assert_eq!(fed.server.metric("sessions_opened_total"), before + 2);
}

#[test]
fn a_token_that_expires_is_final() {
    let tokens = json!({"brief": {"account_id": ACCOUNT, "expires": unix_now() + 2}});
    let fed = Fed::with_tokens(&tokens, &[]);
    let url = tls::url(fed.server.address());
    let mut sub = Sub::start(&["--url", &url, "--token", "brief", "call.*.*"]);
    sub.hears("subscribed");
    sub.hears("4401");
    assert_eq!(sub.end().2, Some(1));
}

#[test]
fn a_binding_with_a_slip_is_refused_with_the_nearest_and_the_others_are_subscribed() {
    let mut fed = Fed::insecure(&[]);
    let address = fed.server.address();
    let mut sub = Sub::at(
        address,
        &[
            "--count",
            "1",
            "call.CHANNEL_CRATE.*",
            "call.CHANNEL_ANSWER.*",
            "weather.today",
        ],
    );
    assert_eq!(
        sub.hears("CHANNEL_CRATE"),
        "blackhole sub: refused: call.CHANNEL_CRATE.*: event CHANNEL_CRATE not supported; did you mean call.CHANNEL_CREATE.*?"
    );
    assert_eq!(
        sub.hears("weather"),
        "blackhole sub: refused: weather.today: no available subscriptions to requested binding"
    );
    assert_eq!(
        sub.hears("subscribed"),
        "blackhole sub: subscribed: call.CHANNEL_ANSWER.*"
    );
    publish_fixtures(&mut fed);
    let (events, _, code) = sub.end();
    assert!(events[0].contains("CHANNEL_ANSWER"), "{events:?}");
    assert_eq!(code, Some(0));

    for bindings in [&["cal.*.*"][..], &["cal.*.*", "call.x.*"]] {
        let (_, log, code) = Sub::at(address, bindings).end();
        assert_eq!(code, Some(1), "{log:?}");
        assert!(log[0].ends_with("; did you mean call.*.*?"), "{log:?}");
        assert!(
            log.contains(&"blackhole sub: nothing is subscribed".to_owned()),
            "{log:?}"
        );
    }
}

#[test]
fn an_account_that_is_not_the_tokens_is_refused() {
    let tokens = json!({"mine": {"account_id": ACCOUNT}});
    let fed = Fed::with_tokens(&tokens, &[]);
    let url = tls::url(fed.server.address());
    let args = ["--url", &url, "--token", "mine", "--account", OTHER_ACCOUNT];
    let (_, log, code) = Sub::start(&[&args[..], &["call.*.*"]].concat()).end();
    assert_eq!(
        (&*log[0], code),
        ("blackhole sub: unauthorized account id", Some(1))
    );
}

/// A server of the demo at this address.
fn demo_at(address: SocketAddr) -> Server {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let mut command = blackhole();
    command.args(["--ip", &ip, "--port", &port, "--admin", "127.0.0.1:0"]);
    command.args(DEMO).args(["--demo-rate", "50"]);
    // A second command would be refused.
    command.args(["--rate-limit-burst", "1", "--rate-limit-per-second", "1"]);
    Server::spawn(command)
}

#[test]
fn a_server_that_comes_back_is_found_and_subscribed_again() {
    let address = own_address();
    let server = demo_at(address);
    let url = format!("ws://{address}");
    let args = [
        "--url",
        &url,
        "--token",
        ANY_TOKEN,
        "--account",
        DEMO_ACCOUNT,
    ];
    let bindings = ["call.CHANNEL_CREATE.*", "call.CHANNEL_ANSWER.*"];
    let mut sub = Sub::start(&[&args[..], &["--json"], &bindings].concat());
    sub.hears("subscribed: call.CHANNEL_CREATE.* call.CHANNEL_ANSWER.*");
    assert!(sub.event().contains("\"event\""));
    drop(server);
    sub.hears("next try in ");
    let _server = demo_at(address);
    sub.hears("subscribed again: call.CHANNEL_CREATE.* call.CHANNEL_ANSWER.*");
    sub.hears("may be missing");
    let frames = std::iter::repeat_with(|| serde_json::from_str::<Value>(&sub.event()).unwrap());
    let mut behind = frames.skip_while(|frame| frame["name"] != "gap");
    let gap = behind.next().unwrap();
    assert_eq!(
        gap["data"],
        json!({"reason": "resume", "why": "expired"}),
        "the new process knows nothing of then"
    );
    assert_eq!(behind.next().unwrap()["action"], "event");
}

#[test]
fn it_takes_its_leave_as_websockets_do() {
    let server = Server::demo(&["--log-level", "debug", "--demo-rate", "20"]);
    let url = tls::url(server.address());
    let args = ["--url", &url, "--token", ANY_TOKEN, "--account"];
    let run = |more: &[&str]| Sub::start(&[&args[..], more].concat()).end();
    // With an event, and while it waits for one.
    run(&[DEMO_ACCOUNT, "--count", "1", "call.*.*"]);
    server.wait_for_log("ended: closed by the peer");
    run(&[OTHER_ACCOUNT, "--for", "1", "call.*.*"]);
    let said = || server.log().matches("ended: closed by the peer").count() == 2;
    wait_for("the second close", || said().then_some(()));
}

#[test]
fn a_lost_connection_ends_it_if_it_is_to() {
    let server = Server::demo(&["--drain-seconds", "1"]);
    let mut sub = Sub::at(server.address(), &["--no-reconnect", "call.*.*"]);
    sub.hears("subscribed");
    server.signal(Signal::TERM);
    sub.hears("closed by the server with 1001");
    assert_eq!(sub.end().2, Some(1));
}

#[test]
fn a_full_server_is_tried_again_when_it_says_so() {
    if plain_only(&"beyond max_connections nothing is answered over TLS") {
        return;
    }
    let server = Server::demo(&["--max-connections", "1"]);
    let only = server.client();
    let mut sub = Sub::at(server.address(), &["call.*.*"]);
    let told = sub.hears("HTTP 503");
    let (_, pause) = told.split_once("next try in ").unwrap();
    let seconds: f64 = pause.trim_end_matches(" s").parse().unwrap();
    assert!(seconds >= 5.0, "{told}");
    only.close();
    sub.hears("subscribed");
}

#[test]
fn several_servers_and_tokens_are_told_apart() {
    let (one, two) = (
        Server::demo(&["--demo-rate", "20"]),
        Server::demo(&["--demo-rate", "20"]),
    );
    let urls = [one.address(), two.address()].map(tls::url);
    let labels = |tokens: &[&str], form: &str, expected: &[String]| {
        let mut args = vec![
            "--url",
            &urls[0],
            "--url",
            &urls[1],
            "--account",
            DEMO_ACCOUNT,
        ];
        args.extend(tokens.iter().flat_map(|token| ["--token", token]));
        let mut sub = Sub::start(&[&args[..], &[form, "call.*.*"]].concat());
        let mut missing: Vec<&String> = expected.iter().collect();
        while !missing.is_empty() {
            let line = sub.event();
            let label = match serde_json::from_str::<Value>(&line) {
                Ok(frame) => frame["session"].as_str().unwrap().to_owned(),
                Err(_) => line.split(' ').next().unwrap().to_owned(),
            };
            assert!(expected.contains(&label), "{line}");
            missing.retain(|wanted| **wanted != label);
        }
    };
    let names = [one.address(), two.address()].map(|address| address.to_string());
    labels(&["a"], "--keys", &names);
    labels(&["a"], "--json", &names);
    let of_tokens: Vec<String> = names
        .iter()
        .flat_map(|name| [format!("{name}#1"), format!("{name}#2")])
        .collect();
    labels(&["a", "b"], "--keys", &of_tokens);
}

#[test]
fn a_session_that_cannot_be_leaves_the_others() {
    let server = Server::demo(&["--demo-rate", "20"]);
    let (_socket, dead) = dead_address();
    let (url, wrong) = (tls::url(server.address()), format!("ws://{dead}"));
    let args = ["--url", &wrong, "--url", &url, "--token", ANY_TOKEN];
    let mut sub = Sub::start(&[&args[..], &["--account", DEMO_ACCOUNT, "call.*.*"]].concat());
    sub.hears("nobody listens there");
    sub.event();
    kill_process(Pid::from_child(&sub.child), Signal::INT).unwrap();
    let (_, log, code) = sub.end();
    assert_eq!(code, Some(0), "{log:?}");
    assert!(log.last().unwrap().ends_with(" s, 0 gaps"), "{log:?}");
}

#[test]
fn a_reader_that_goes_away_ends_it_without_a_word() {
    let server = Server::demo(&["--demo-rate", "50"]);
    let (reader, stdout) = io::pipe().unwrap();
    let mut command = blackhole();
    let url = tls::url(server.address());
    command.args(["sub", "--url", &url, "--token", ANY_TOKEN]);
    command.args(trust_of(&[&url]));
    command.args(["--account", DEMO_ACCOUNT, "--quiet", "call.*.*"]);
    let mut child = command
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(command);
    let events = lines(reader.try_clone().unwrap());
    events.recv_timeout(PATIENCE).unwrap();
    drop((events, reader));
    let status = wait_for("the end", || child.try_wait().unwrap());
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!((status.code(), &*said), (Some(0), ""));
}

#[test]
fn what_a_person_does_wrong_is_told_in_one_line() {
    if plain_only(&"one of the slips is wss:// for a plain port") {
        return;
    }
    let server = Server::demo(&[]);
    let good = tls::url(server.address());
    let admin = format!("ws://{}", server.admin());
    let plain_as_tls = format!("wss://{}", server.address());
    let (_socket, dead) = dead_address();
    let dead = format!("ws://{dead}");
    let origin = ["--origin", "https://nobody.example"];
    let with_origins = Server::demo(&["--allowed-origins", "https://here.example"]);
    let strict = tls::url(with_origins.address());
    for (url, more, code, expected) in [
        (
            &*dead,
            &[][..],
            1,
            "nobody listens there (connection refused)",
        ),
        ("ws://no-such-host.invalid", &[], 1, "no such host is known"),
        (&admin, &[], 1, "not a websocket server (HTTP 200)"),
        (&plain_as_tls, &[], 1, "does not speak TLS"),
        (
            &strict,
            &origin,
            1,
            "the server refuses the connection (HTTP 403)",
        ),
        (
            "127.0.0.1:5555",
            &[],
            2,
            "--url: expected a URL such as ws://HOST:PORT",
        ),
        (
            "http://127.0.0.1:5555",
            &[],
            2,
            "--url: expected ws:// or wss://",
        ),
        (
            "ws://u:hunter2@127.0.0.1",
            &[],
            2,
            "--url: a user or password",
        ),
        (
            &good,
            &["--account", "hunter2"],
            2,
            "--account: expected 32 hex characters, or *",
        ),
        (
            &good,
            &["--token", "hunter2\n"],
            2,
            "--token: expected a token",
        ),
        (
            &good,
            &["--token-file", "/no/such/file"],
            2,
            "--token-file: /no/such/file: cannot be read",
        ),
        (
            &good,
            &["--ca-cert", "Cargo.toml"],
            2,
            "holds no certificate",
        ),
        (
            &good,
            &["--ca-cert", "/dev/null"],
            2,
            "is not a regular file",
        ),
    ] {
        let args = ["--url", url, "--token", ANY_TOKEN, "--quiet"];
        let (events, log, status) = Sub::start(&[&args[..], more, &["call.*.*"]].concat()).end();
        assert_eq!(
            (status, events.len(), log.len()),
            (Some(code), 0, 1),
            "{url}: {log:?}"
        );
        assert!(
            log[0].starts_with("blackhole sub: ") && log[0].contains(expected),
            "{log:?}"
        );
        assert!(!log[0].contains("hunter2"), "{log:?}");
    }
    let (_, log, code) = Sub::start(&["--url", &good, "call.*.*"]).end();
    assert!(log[0].contains("no token: ") && code == Some(2), "{log:?}");
    let (_, log, code) = Sub::start(&["--url", &good]).end();
    assert!(
        log.concat().contains("BINDING") && code == Some(2),
        "{log:?}"
    );
}

/// The option by which `sub` trusts the servers of the harness that these options name.
fn trust_of(args: &[&str]) -> Vec<String> {
    let addresses = args.iter().filter_map(|arg| arg.strip_prefix("wss://"));
    let peers = addresses.filter_map(|address| tls::peer_at(address.parse().ok()?));
    let mut ca = peers.map(|peer| peer.ca.display().to_string());
    ca.next()
        .map_or_else(Vec::new, |ca| vec!["--ca-cert".to_owned(), ca])
}

/// A proxy with TLS before this address, for as many connections as come.
fn tls_proxy(certified: &Certified, target: SocketAddr) -> SocketAddr {
    let chain = CertificateDer::pem_file_iter(certified.cert()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            chain.map(Result::unwrap).collect(),
            PrivateKeyDer::from_pem_file(certified.key()).unwrap(),
        )
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let config = config.clone();
            thread::spawn(move || {
                let server = TcpStream::connect(target).unwrap();
                // One TLS state for both ways: each waits shortly in its turn.
                let turn = Some(Duration::from_millis(5));
                client.set_read_timeout(turn).unwrap();
                server.set_read_timeout(turn).unwrap();
                let tls = ServerConnection::new(config).unwrap();
                let mut client = StreamOwned::new(tls, client);
                let mut server = server;
                while pass(&mut client, &mut server) && pass(&mut server, &mut client) {}
            });
        }
    });
    address
}

/// Passes on what comes within a turn; returns whether more may come.
fn pass(from: &mut impl Read, to: &mut impl Write) -> bool {
    let mut bytes = [0; 16 << 10];
    match from.read(&mut bytes) {
        Ok(0) => false,
        Ok(read) => to
            .write_all(&bytes[..read])
            .and_then(|()| to.flush())
            .is_ok(),
        Err(error) => matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
        ),
    }
}

#[test]
fn tls_is_spoken_and_a_certificate_is_believed_only_from_whom_it_should() {
    if plain_only(&"TLS is spoken by a proxy before it") {
        return;
    }
    let server = Server::demo(&["--demo-rate", "20"]);
    let ca = Ca::new();
    let (good, other) = (ca.certify(LOCAL, 9), ca.certify("DNS:else.example", 9));
    let proxy = tls_proxy(&good, server.address());
    let elsewhere = tls_proxy(&other, server.address());
    let pem = ca.pem().display().to_string();
    let run = |url: &str, more: &[&str]| {
        let args = [
            "--url",
            url,
            "--token",
            ANY_TOKEN,
            "--account",
            DEMO_ACCOUNT,
        ];
        Sub::start(&[&args[..], &["--quiet", "--count", "2", "call.*.*"], more].concat()).end()
    };
    let trusting = ["--ca-cert", &*pem];
    for host in ["localhost", "127.0.0.1"] {
        let (events, log, code) = run(&format!("wss://{host}:{}", proxy.port()), &trusting);
        assert_eq!((events.len(), code), (2, Some(0)), "{log:?}");
    }
    for (url, more, expected) in [
        (
            format!("wss://{proxy}"),
            &[][..],
            "its certificate is not trusted",
        ),
        (
            format!("wss://{elsewhere}"),
            &trusting,
            "its certificate is not for 127.0.0.1",
        ),
        (format!("ws://{proxy}"), &[], "wss:// in the URL"),
    ] {
        let (_, log, code) = run(&url, more);
        assert_eq!((log.len(), code), (1, Some(1)), "{log:?}");
        assert!(log[0].contains(expected), "{log:?}");
    }
}
