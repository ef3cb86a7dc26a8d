//! The process as an operator and a service manager meet it (PROTOCOL 2, 3 and 9).

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use support::client::{ANY_TOKEN, Client, Python, Raw, errors, ping, ping_as};
use support::events::{ACCOUNT, fixtures};
use support::server::{
    DEMO, Fed, PATIENCE, Scratch, Server, TokenFile, dead_address, lines, run_to_end, wait_for,
};
use support::tls;
use support::wire::UPGRADE_REQUEST;

#[test]
fn a_configuration_that_is_refused_ends_with_exit_code_2_and_says_where_and_what() {
    let config = Scratch::file("blackhole.json", r#"{"port": "many"}"#);
    let unknown = Scratch::file("unknown.json", r#"{"prot": 1}"#);
    let tokens = Scratch::file("tokens.json", r#"{"secret": {"account_id": "short"}}"#);
    let auth = format!("tokens:{}", tokens.path().display());
    let path = |file: &Scratch| file.path().display().to_string();
    for (args, expected) in [
        (
            vec!["--config", &path(&config)],
            format!("{}: port: expected a whole number", path(&config)),
        ),
        (
            vec!["--config", &path(&unknown)],
            format!("{}: prot: unknown key", path(&unknown)),
        ),
        (
            vec!["--port", "70000", "--auth", "insecure"],
            "--port: expected a whole number".to_owned(),
        ),
        (vec!["--source", "demo"], "auth: not set".to_owned()),
        (
            vec!["--source", "demo", "--auth", &auth],
            format!("{}: entry 1: account_id: expected 32", path(&tokens)),
        ),
        (
            vec!["--config", "/nonexistent/b.json"],
            "/nonexistent/b.json: cannot be read".to_owned(),
        ),
    ] {
        let output = run_to_end(&args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(&expected), "{args:?}: {stderr}");
        assert!(
            output.stdout.is_empty(),
            "nothing listens, so nothing is announced"
        );
        assert!(!stderr.contains("secret"), "{stderr}");
    }
    let output = run_to_end(&["--check-config", "--auth", "insecure", "--port", "7"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["port"],
        7
    );
}

#[test]
fn whoever_connects_straight_after_the_listening_line_finds_an_embedded_source_up() {
    for round in 0..50 {
        let server = Server::demo(&["--drain-seconds", "0"]);
        assert_eq!(server.probe(), 200, "round {round}");
    }
}

#[test]
fn a_port_in_use_ends_with_exit_code_1_and_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run_to_end(&[&["--ip", "127.0.0.1", "--port", &port], &DEMO[..]].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains(&format!("cannot listen on 127.0.0.1:{port}: ")),
        "{stderr}"
    );
    assert!(output.stdout.is_empty());
}

#[test]
fn the_only_line_on_stdout_tells_the_address_that_was_taken() {
    let mut server = Server::demo(&[]);
    assert!(server.address().ip().is_loopback() && server.address().port() != 0);
    Client::connect(server.address()).must_subscribe(ANY_TOKEN, ACCOUNT, "call.*.*");
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(server.more_stdout(), Vec::<String>::new());
    assert!(
        server
            .log()
            .lines()
            .all(|line| line.len() > 24 && line.as_bytes()[23] == b'Z'),
        "UTC, one line an event"
    );
}

/// Ends a server with 40 sessions by this signal: all must be closed with 1001, spread over the drain time.
fn drains(signal: Signal) {
    const SESSIONS: usize = 40;
    let mut server = Server::demo(&["--drain-seconds", "2", "--going-away-ms", "0"]);
    let clients: Vec<Client> = (0..SESSIONS)
        .map(|_| {
            let mut client = Client::connect(server.address());
            client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.PARK_PARKED.*");
            client
        })
        .collect();
    let begun = Instant::now();
    server.signal(signal);
    let mut closed_at: Vec<Duration> = Vec::new();
    for mut client in clients {
        // Slots are drained in order, so each waits for its own close here.
        assert_eq!(client.expect_close(), (1001, "going away".to_owned()));
        closed_at.push(begun.elapsed());
    }
    let status = server.wait();
    let all = begun.elapsed();
    assert_eq!(status.code(), Some(0));
    assert!(all < Duration::from_millis(2500), "over after {all:?}");
    let in_first_quarter = closed_at
        .iter()
        .filter(|at| **at < Duration::from_millis(500))
        .count();
    assert!(in_first_quarter < SESSIONS / 2, "{closed_at:?}");
    assert!(
        closed_at[SESSIONS - 1] > Duration::from_millis(1000),
        "{closed_at:?}"
    );
    assert!(server.log().contains("drained"));
}

#[test]
fn sigterm_closes_every_session_with_1001_spread_over_the_drain_time_and_exits_0() {
    drains(Signal::TERM);
}

#[test]
fn sigint_drains_like_sigterm() {
    drains(Signal::INT);
}

#[test]
fn without_sessions_sigterm_ends_at_once() {
    let begun = Instant::now();
    assert_eq!(
        Server::demo(&["--drain-seconds", "30"]).stop().code(),
        Some(0)
    );
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_second_signal_ends_the_drain_at_once() {
    let mut server = Server::demo(&["--drain-seconds", "60", "--going-away-ms", "0"]);
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(server.address())).collect();
    server.signal(Signal::INT);
    assert_eq!(clients[0].expect_close().0, 1001);
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.log().contains("closing at once"));
}

#[test]
fn peers_that_ignore_their_close_do_not_hold_up_the_end() {
    let mut server = Server::demo(&["--drain-seconds", "1", "--going-away-ms", "0"]);
    let silent: Vec<Raw> = (0..5).map(|_| Raw::upgraded(server.address())).collect();
    let mut half = Raw::connect(server.address());
    half.send(b"GET / HTTP/1.1\r\nHos");
    server.wait_for_metric("sessions", 5);
    let begun = Instant::now();
    assert_eq!(server.stop().code(), Some(0));
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    for mut raw in silent {
        assert_eq!(raw.expect_close(), (Some(1001), "going away".to_owned()));
    }
}

#[test]
fn sighup_rereads_tokens_and_log_level_and_a_broken_file_changes_nothing() {
    let tokens = TokenFile::new(&json!({"old": {"account_id": ACCOUNT}}));
    let config = Scratch::file("blackhole.json", r#"{"log_level": "info"}"#);
    let path = config.path().to_str().unwrap();
    let mut server = Server::start(&[
        "--config",
        path,
        "--source",
        "demo",
        "--auth",
        &tokens.option(),
    ]);
    let ask = |server: &Server, token| {
        Client::connect(server.address()).ask(&ping_as(token, "1"))["status"].clone()
    };
    assert_eq!(
        (ask(&server, "old"), ask(&server, "new")),
        (json!("success"), json!("error"))
    );
    assert!(!server.log().contains("DEBUG"));

    tokens.write(&json!({"new": {"account_id": ACCOUNT}}).to_string());
    config.write(r#"{"log_level": "debug"}"#);
    server.signal(Signal::HUP);
    server.wait_for_log("tokens on file: 1");
    assert_eq!(
        (ask(&server, "old"), ask(&server, "new")),
        (json!("error"), json!("success"))
    );
    server.wait_for_log("DEBUG");

    tokens.write(r#"{"newest": {"account_id": "#);
    config.write("{");
    server.signal(Signal::HUP);
    assert!(
        server
            .wait_for_log("tokens not reread")
            .contains("tokens.json")
    );
    assert!(
        server
            .wait_for_log("configuration not reread")
            .contains("blackhole.json")
    );
    assert_eq!(
        (ask(&server, "newest"), ask(&server, "new")),
        (json!("error"), json!("success"))
    );
    assert_eq!(server.metric("config_reloads_total"), 2);
    assert!(server.stop().success());
}

#[test]
fn two_processes_share_a_port_with_reuse_port() {
    let one = Server::demo(&["--reuse-port"]);
    let port = one.address().port().to_string();
    let two = Server::demo(&["--reuse-port", "--port", &port]);
    assert_eq!(one.address(), two.address());
    let mut clients = Vec::new();
    // The kernel spreads them by a hash of their ports: a hundred on one side is a bug, not bad luck.
    for _ in 0..100 {
        let mut client = Client::connect(one.address());
        assert_eq!(client.ask(&ping_as(ANY_TOKEN, "1"))["status"], "success");
        clients.push(client);
    }
    let sessions = [one.metric("sessions"), two.metric("sessions")];
    assert_eq!(sessions.iter().sum::<u64>(), 100);
    assert!(
        sessions.iter().all(|sessions| *sessions > 10),
        "{sessions:?}"
    );
}

#[test]
fn the_log_names_a_session_by_its_id() {
    let server = Server::demo(&["--log-level", "debug"]);
    let client = Client::connect(server.address());
    let id = client.session_id();
    client.close();
    assert!(
        server
            .wait_for_log(&id)
            .contains(&format!("session {id} ended: closed by the peer"))
    );
    assert!(
        server.log().contains("--auth insecure: ANY token"),
        "warned at every start"
    );
}

#[test]
fn the_admin_pages_tell_health_readiness_and_metrics() {
    let server = Server::demo(&[]);
    assert_eq!(server.page("/healthz"), (200, "ok\n".to_owned()));
    wait_for("readiness", || {
        (server.page("/readyz") == (200, "ready\n".to_owned())).then_some(())
    });
    let (status, metrics) = server.page("/metrics");
    assert_eq!(status, 200);
    let (mut described, mut families) = ("", HashSet::new());
    for line in metrics.lines() {
        match line.strip_prefix("# TYPE ") {
            Some(kind) => {
                described = kind.split(' ').next().unwrap();
                assert!(families.insert(described), "{described} is described twice");
            }
            None if line.starts_with('#') => {}
            None => assert!(
                line.starts_with(described),
                "each value behind its own type: {line}"
            ),
        }
    }
    assert_eq!(server.page("/nothing").0, 404);
    let mut post = Raw::connect(server.admin());
    post.send(b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(post.last_response().status, 405);
    let mut upgrade = Raw::connect(server.admin());
    upgrade.send(UPGRADE_REQUEST.as_bytes());
    upgrade.shutdown_write();
    assert_eq!(
        upgrade.last_response().status,
        200,
        "a page, and no websocket behind this door"
    );
    let mut probe = Raw::connect(server.address());
    probe.send(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(
        probe.last_response().status,
        404,
        "and no page in front of the other"
    );

    let (_socket, dead) = dead_address();
    let mut away = Server::start(&[
        "--amqp",
        &format!("amqp://guest:guest@{dead}/%2f"),
        "--auth",
        "insecure",
    ]);
    assert_eq!(
        away.page("/readyz"),
        (503, "event source unavailable\n".to_owned())
    );
    assert_eq!(away.page("/healthz").0, 200, "alive all the same");
    assert_eq!((away.metric("ready"), away.metric("source_up")), (0, 0));
    assert!(
        away.stop().success(),
        "a broker that is away does not hold up the end"
    );
}

#[test]
fn the_demo_source_plays_whole_calls_to_every_account() {
    let server = Server::demo(&["--demo-rate", "200", "--demo-accounts", "2"]);
    for account in [
        "00000000000000000000000000000001",
        "00000000000000000000000000000002",
    ] {
        let mut client = Client::connect(server.address());
        client.must_subscribe(ANY_TOKEN, account, "call.*.*");
        let first = wait_for("a call's beginning", || {
            Some(client.event()).filter(|event| event["name"] == "CHANNEL_CREATE")
        });
        for name in ["CHANNEL_ANSWER", "CHANNEL_DESTROY"] {
            let event = client.event();
            assert_eq!(
                (&event["name"], &event["args"]["Call-ID"]),
                (&json!(name), &first["args"]["Call-ID"])
            );
            assert_eq!(event["args"]["Custom-Channel-Vars"]["Account-ID"], account);
        }
    }
}

/// A client from another hand: Python's `websockets`, in its two implementations. Prints a line of JSON for each
/// step, so that the test knows when to publish.
const PYTHON_CLIENTS: &str = r#"
import asyncio, json, sys
kind, url, account = sys.argv[1:]
uri = f"{url}/socket"

def tell(value):
    print(json.dumps(value), flush=True)

subscribe = json.dumps({"action": "subscribe", "auth_token": "t", "request_id": kind,
    "data": {"account_id": account, "bindings": ["call.*.*"]}})

async def with_asyncio():
    from websockets.asyncio.client import connect
    async with connect(uri) as socket:
        await socket.send(subscribe)
        tell(json.loads(await socket.recv()))
        for _ in range(3):
            tell(json.loads(await socket.recv()))
        await asyncio.wait_for(await socket.ping(b"are you there"), 10)
        await socket.send(json.dumps({"action": "ping"}))
        tell(json.loads(await socket.recv()))
        await socket.close(1000, "done")
        tell([socket.close_code, socket.close_reason])

def with_threads():
    from websockets.sync.client import connect
    with connect(uri) as socket:
        socket.send(subscribe)
        for _ in range(4):
            tell(json.loads(socket.recv(10)))
        if not socket.ping(b"are you there").wait(10):
            raise TimeoutError("no pong")
        socket.send([json.dumps({"action": "ping"})[:5], json.dumps({"action": "ping"})[5:]])
        tell(json.loads(socket.recv(10)))
        socket.close(1000, "done")
        tell([socket.protocol.close_code, socket.protocol.close_reason])

asyncio.run(with_asyncio()) if kind == "asyncio" else with_threads()
"#;

#[test]
fn clients_from_another_hand_subscribe_get_events_ping_and_close_cleanly() {
    let mut fed = Fed::insecure(&[]);
    let address = fed.server.address();
    clients_from_another_hand(&mut fed, address);
    assert_eq!(
        errors(&Client::connect(address).ask(&ping("1"))),
        ["authentication token required"]
    );
}

/// Python's clients of this address of the server, as it is spoken there; nothing where they are missing.
pub(crate) fn clients_from_another_hand(fed: &mut Fed, address: SocketAddr) {
    let Some(python) = Python::installed() else {
        return;
    };
    let mut clients: Vec<_> = ["asyncio", "threads"]
        .map(|kind| {
            let mut child = python
                .command()
                .args(["-c", PYTHON_CLIENTS, kind, &tls::url(address), ACCOUNT])
                .envs(tls::peer_at(address).map(|peer| ("SSL_CERT_FILE", peer.ca)))
                .spawn()
                .unwrap();
            let told = lines(child.stdout.take().unwrap());
            (kind, child, told)
        })
        .into();
    let next = |told: &std::sync::mpsc::Receiver<String>| -> Value {
        let line = told
            .recv_timeout(PATIENCE)
            .expect("the next step within the patience");
        serde_json::from_str(&line).unwrap()
    };
    for (kind, _, told) in &clients {
        let reply = next(told);
        assert_eq!(reply["request_id"], *kind);
        assert_eq!(reply["data"]["subscribed"], json!(["call.*.*"]));
    }
    for (key, body) in fixtures() {
        fed.publish("callevt", &key, &body);
    }
    for (kind, child, told) in &mut clients {
        for (_, body) in fixtures() {
            let event = next(told);
            assert_eq!(
                (&event["args"], &event["request_id"]),
                (&body, &json!(kind))
            );
        }
        assert_eq!(next(told)["data"]["response"], "pong", "{kind}");
        assert_eq!(
            next(told)[0],
            1000,
            "{kind}: closed with the client's own code"
        );
        assert!(child.wait().unwrap().success(), "{kind}");
    }
    fed.server
        .wait_for_metric(r#"closes_total{reason="peer"}"#, 2);
    assert_eq!(fed.server.metric(r#"closes_total{reason="lost"}"#), 0);
}
