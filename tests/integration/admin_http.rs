//! The HTTP of the admin address on the real process (PROTOCOL 8): who may ask, how requests follow each other, and that
//! nothing that an asker does is felt by clients or by the next asker.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use tempfile::TempDir;

use blackhole::limits::ADMIN_CONNECTIONS_MAX;
use blackhole::protocol::http::{BODY_BYTES_MAX, HEAD_BYTES_MAX};
use support::client::{ANY_TOKEN, Client, ping_as, success};
use support::server::{DEMO, PATIENCE, Server, blackhole, run_to_end, wait_for};
use support::tls::Stream;

/// A connection on which one request may follow another.
pub(super) struct Asker<S> {
    stream: S,
    bytes: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Asker<Stream> {
    pub(super) fn of(server: &Server) -> Self {
        Self::at(server.admin())
    }

    fn at(address: SocketAddr) -> Self {
        let stream = Stream::connect(address).unwrap();
        stream.tcp().set_read_timeout(Some(PATIENCE)).unwrap();
        stream.tcp().set_nodelay(true).unwrap();
        Self::over(stream)
    }
}

impl Asker<UnixStream> {
    fn local(path: &PathBuf) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::over(stream)
    }
}

impl<S: Read + Write> Asker<S> {
    fn over(stream: S) -> Self {
        Self {
            stream,
            bytes: Vec::new(),
        }
    }

    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// More bytes; false: the connection has ended.
    fn more(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.bytes.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("{error}: {}", self.bytes.escape_ascii()),
        }
    }

    /// The next answer; `None`: the connection has ended without one.
    pub(super) fn answer(&mut self, has_body: bool) -> Option<Answer> {
        let end = loop {
            match self.bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None if self.more() => {}
                None => return None,
            }
        };
        let head = String::from_utf8(self.bytes.drain(..end).collect()).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .expect("a length");
        let length = if has_body { length.parse().unwrap() } else { 0 };
        while self.bytes.len() < length {
            assert!(self.more(), "cut off");
        }
        let body = String::from_utf8(self.bytes.drain(..length).collect()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Some(Answer { status, head, body })
    }

    pub(super) fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.send(request);
        self.answer(true).expect("an answer")
    }

    /// The connection ends, and nothing more comes before.
    fn assert_ends(&mut self) {
        while self.more() {}
        assert_eq!(self.bytes.escape_ascii().to_string(), "");
    }
}

pub(super) fn request(line: &str, fields: &[&str]) -> String {
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
}

pub(super) fn get(path: &str) -> String {
    request(&format!("GET {path}"), &[])
}

#[test]
fn one_connection_asks_for_one_thing_after_another() {
    let server = Server::demo(&[]);
    server.until_ready();
    let mut asker = Asker::of(&server);
    for (line, status, text) in [
        ("GET /healthz", 200, "ok\n"),
        ("GET /nothing", 404, "not found\n"),
        ("POST /healthz", 405, "method is not allowed\n"),
        ("PATCH /drain", 405, "method is not allowed\n"),
        (
            "GET /readyz?x=1",
            400,
            "unknown query key x; expected none\n",
        ),
        ("DELETE /v2/sessions", 400, r#""error":"400""#),
        ("GET /v2/nothing", 404, r#""message":"not found""#),
        ("GET /metrics", 200, "blackhole_admin_connections 1\n"),
        ("GET /readyz", 200, "ready\n"),
    ] {
        let answer = asker.ask(request(line, &[]));
        assert_eq!(answer.status, status, "{line}");
        assert!(answer.body.contains(text), "{line}: {}", answer.body);
        assert!(!answer.head.contains("Connection: close"), "{line}");
        assert!(answer.head.contains("Cache-Control: no-store\r\n"));
        if line.contains("/v2/") {
            let body: Value = serde_json::from_str(&answer.body).unwrap();
            assert_eq!(body["status"], "error", "{line}");
        }
    }
    asker.send(request("HEAD /metrics", &[]));
    assert_eq!(asker.answer(false).map(|answer| answer.status), Some(200));
    let last = asker.ask(request("GET /healthz", &["Connection: close"]));
    assert!(last.head.contains("Connection: close\r\n"));
    asker.assert_ends();

    let mut old = Asker::of(&server);
    assert_eq!(old.ask("GET /healthz HTTP/1.0\r\n\r\n").status, 200);
    old.assert_ends();
    assert_eq!(server.metric("admin_requests_refused_total"), 6);
}

#[test]
fn requests_that_come_together_or_in_pieces_are_answered_in_their_order() {
    let server = Server::demo(&[]);
    server.until_ready();
    let post = request("POST /healthz", &["Content-Length: 3"]) + "abc";
    let round = [get("/healthz"), get("/x"), post, get("/readyz")].concat();
    let expected = [200, 404, 405, 200].repeat(50);
    let mut whole = Asker::of(&server);
    whole.send(round.repeat(50));
    for status in &expected {
        assert_eq!(whole.answer(true).unwrap().status, *status);
    }
    let mut dripping = Asker::of(&server);
    for byte in round.bytes() {
        dripping.send([byte]);
    }
    for status in &expected[..4] {
        assert_eq!(dripping.answer(true).unwrap().status, *status);
    }
    // Who closes its side behind its requests gets all answers.
    let mut closing = Asker::of(&server);
    closing.send(round.repeat(20));
    closing.stream.shutdown_write().unwrap();
    for status in &expected[..80] {
        assert_eq!(closing.answer(true).unwrap().status, *status);
    }
    closing.assert_ends();
}

#[test]
fn what_is_no_request_ends_the_connection_and_nothing_behind_it_is_a_request() {
    let server = Server::demo(&[]);
    let smuggled = get("/healthz");
    let drain = |fields: &[&str]| request("POST /healthz", fields) + &smuggled;
    let long = |bytes: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(bytes));
    for (what, status) in [
        (drain(&["Transfer-Encoding: chunked"]), 411),
        (
            drain(&["Transfer-Encoding: chunked", "Content-Length: 5"]),
            411,
        ),
        (drain(&["Content-Length: 1", "Content-Length: 2"]), 400),
        (drain(&["Content-Length: 1, 1"]), 400),
        (drain(&["Content-Length: +1"]), 400),
        (
            drain(&[&format!("Content-Length: {}", BODY_BYTES_MAX + 1)]),
            413,
        ),
        (drain(&["Content-Length: 99999999999999999999"]), 413),
        (drain(&["Content-Length: 5", "Expect: 100-continue"]), 417),
        (long(HEAD_BYTES_MAX), 431),
        (long(1 << 20), 431),
        (format!("{}\r\n", "X: y\r\n".repeat(100)), 400),
        (request("GET /", &["X: y"; 100]), 431),
        ("\u{16}\u{3}\u{1}".to_owned(), 400),
        ("nonsense\r\n\r\n".to_owned() + &smuggled, 400),
    ] {
        let mut asker = Asker::of(&server);
        // It may end while the rest is still being sent.
        let _ = asker.stream.write_all(what.as_bytes());
        let answer = asker.answer(true).expect("an answer");
        assert_eq!(answer.status, status, "{}", &what[..what.len().min(200)]);
        assert!(answer.head.contains("Connection: close\r\n"));
        asker.assert_ends();
    }
    // Refused, but it can be told where they end: the next one is answered.
    for (what, status) in [
        ("GET /healthz HTTP/1.1\r\n\r\n".to_owned(), 400),
        (request("GET /healthz", &["Host: localhost"]), 400),
        (
            drain(&["Content-Length: 2", "Content-Length: 2"])
                .replace("\r\n\r\nGET", "\r\n\r\nabGET"),
            405,
        ),
    ] {
        let mut asker = Asker::of(&server);
        assert_eq!(asker.ask(&what).status, status, "{what}");
        if !what.starts_with("POST") {
            asker.send(&smuggled);
        }
        assert_eq!(asker.answer(true).unwrap().status, 200, "{what}");
    }
}

#[test]
fn with_a_token_only_health_and_readiness_are_told_without_it() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("admin-token");
    fs::write(&file, "  hunter2-first \nnot this line\n").unwrap();
    let option = file.display().to_string();
    let server = Server::demo(&["--admin-token", &option, "--log-level", "debug"]);
    let mut asker = Asker::of(&server);
    let mut ask = |line: &str, token: &str| {
        let field = format!("Authorization: Bearer {token}");
        asker.ask(request(line, &[&field]))
    };
    for (line, token, status) in [
        ("GET /metrics", "hunter2-first", 200),
        ("GET /metrics", "hunter2-firs", 401),
        ("GET /nothing", "x", 401),
        ("POST /drain", "x", 401),
        ("DELETE /v2/sessions", "x", 401),
        ("GET /healthz", "x", 200),
        ("DELETE /v2/sessions", "hunter2-first", 400),
        ("GET /metrics", "hunter2-first", 200),
    ] {
        let answer = ask(line, token);
        assert_eq!(answer.status, status, "{line} {token}");
        let asks = answer.head.contains("WWW-Authenticate: Bearer\r\n");
        assert_eq!(asks, status == 401, "{line}");
    }
    // Another token, and then a file that is none.
    fs::write(&file, "second\n").unwrap();
    server.signal(Signal::HUP);
    wait_for("the new token", || {
        (ask("GET /metrics", "second").status == 200).then_some(())
    });
    assert_eq!(ask("GET /metrics", "hunter2-first").status, 401);
    fs::write(&file, "\nhunter2-third\n").unwrap();
    server.signal(Signal::HUP);
    let line = server.wait_for_log("admin token not reread");
    assert!(line.contains("expected a token"), "{line}");
    assert_eq!(ask("GET /metrics", "second").status, 200);
    assert!(!server.log().contains("hunter2"), "{}", server.log());

    let unusable = [
        DEMO.as_slice(),
        &["--admin", "127.0.0.1:0", "--admin-token"],
    ]
    .concat();
    for content in ["", "\n", "two words\n", &"x".repeat(20 << 10)] {
        fs::write(&file, content).unwrap();
        let refused = run_to_end(&[&unusable[..], &[&option]].concat());
        assert_eq!(refused.status.code(), Some(2), "{content}");
        let told = String::from_utf8(refused.stderr).unwrap();
        assert!(
            told.contains(&option) && !told.contains("two words"),
            "{told}"
        );
    }
}

#[test]
fn an_address_that_others_reach_needs_a_token() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:5559"] {
        let refused = run_to_end(&[&DEMO[..], &["--admin", address]].concat());
        assert_eq!(refused.status.code(), Some(2), "{address}");
        let told = String::from_utf8(refused.stderr).unwrap();
        let expected = "--admin: expected admin_token beside it";
        assert!(told.contains(expected), "{told}");
    }
    for address in ["127.9.9.9:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
        let checked = [&DEMO[..], &["--check-config", "--admin", address]].concat();
        assert_eq!(run_to_end(&checked).status.code(), Some(0), "{address}");
    }
}

#[test]
fn who_calls_it_by_another_name_or_from_another_page_is_refused() {
    let server = Server::demo(&["--admin-hosts", "bridge.example"]);
    let mut asker = Asker::of(&server);
    let address = server.admin();
    for (line, host, field, status) in [
        ("GET /healthz", "evil.example", "X: y", 421),
        ("GET /metrics", "evil.example:80", "X: y", 421),
        ("POST /drain", "evil.example", "X: y", 421),
        ("GET /healthz", "bridge.example:1234", "X: y", 200),
        ("GET /healthz", &address.to_string(), "X: y", 200),
        (
            "GET /healthz",
            "localhost",
            "Origin: https://evil.example",
            200,
        ),
        (
            "POST /drain",
            "localhost",
            "Origin: https://evil.example",
            403,
        ),
        ("POST /drain", "localhost", "Origin: null", 403),
        (
            "POST /drain",
            "localhost",
            "Sec-Fetch-Site: cross-site",
            403,
        ),
        ("POST /drain", "localhost", "Sec-Fetch-Site: same-site", 403),
        (
            "DELETE /v2/sessions?ip=127.0.0.1",
            "localhost",
            "Origin: http://localhost:1",
            403,
        ),
        (
            "DELETE /v2/sessions",
            "localhost",
            "Origin: http://localhost",
            400,
        ),
        (
            "POST /log-level",
            "bridge.example",
            "Origin: https://bridge.example",
            400,
        ),
    ] {
        let text = format!("{line} HTTP/1.1\r\nHost: {host}\r\n{field}\r\n\r\n");
        assert_eq!(asker.ask(&text).status, status, "{text}");
    }
}

#[test]
fn the_port_of_the_clients_shows_none_of_it() {
    let server = Server::demo(&[]);
    for path in [
        "/healthz",
        "/readyz",
        "/metrics",
        "/v2/status",
        "/v2/websockets",
        "/v2/accounts/4b8c6fec4b2597882c0390202d195419/websockets",
        "/v2/accounts/4b8c6fec4b2597882c0390202d195419/websockets/127.0.0.1:1",
        "/v2/sessions",
        "/v2/sessions/127.0.0.1:1",
        "/trace",
        "/drain",
        "/log-level?level=debug",
        "/modules/bh_call?action=stop",
    ] {
        for (method, status, text) in [
            (
                "GET",
                404,
                "not found; for a websocket send an upgrade request\n",
            ),
            ("POST", 405, "method is not allowed\n"),
            ("DELETE", 405, "method is not allowed\n"),
        ] {
            let mut asker = Asker::at(server.address());
            let answer = asker.ask(request(&format!("{method} {path}"), &[]));
            assert_eq!(
                (answer.status, &*answer.body),
                (status, text),
                "{method} {path}"
            );
            asker.assert_ends();
        }
    }
}

/// A server that is asked by a socket in this folder alone.
fn with_socket(folder: &TempDir, args: &[&str]) -> (Server, PathBuf) {
    let mut command = blackhole();
    command
        .args(DEMO)
        .args(["--ip", "127.0.0.1", "--port", "0"]);
    command.arg("--admin-dir").arg(folder.path()).args(args);
    let server = Server::spawn(command);
    let path = folder
        .path()
        .join(format!("blackhole-{}.sock", server.pid()));
    (server, path)
}

#[test]
fn the_socket_in_a_folder_is_asked_by_whoever_may_open_it_and_is_gone_with_its_process() {
    let folder = TempDir::new().unwrap();
    let dead = folder.path().join("blackhole-1.sock");
    drop(UnixListener::bind(&dead).unwrap());
    let token = folder.path().join("token");
    fs::write(&token, "secret").unwrap();
    let token = token.display().to_string();
    let (mut server, path) = with_socket(&folder, &["--admin-token", &token]);
    assert!(!dead.exists(), "a dead process's socket is removed");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let line = server.wait_for_log("admin socket: ");
    assert!(line.ends_with(&path.display().to_string()), "{line}");

    let mut asker = Asker::local(&path);
    for (text, status) in [
        (get("/metrics"), 200),
        (
            "GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned(),
            200,
        ),
        ("GET /metrics HTTP/1.1\r\n\r\n".to_owned(), 200),
        (get("/nothing"), 404),
    ] {
        assert_eq!(asker.ask(&text).status, status, "{text}");
    }
    let (other, other_path) = with_socket(&folder, &[]);
    assert!(path.exists(), "that of a process that lives stays");
    assert_eq!(Asker::local(&other_path).ask(get("/healthz")).status, 200);
    assert_eq!(asker.ask(get("/healthz")).status, 200);

    // Nobody waits for an asker.
    let before = Instant::now();
    assert!(server.stop().success());
    assert!(before.elapsed() < Duration::from_secs(5));
    assert!(!path.exists());
    drop(other);
    assert!(other_path.exists(), "a killed process leaves it");
    let (_third, _) = with_socket(&folder, &[]);
    assert!(!other_path.exists());

    let gone = folder.path().join("gone");
    let refused = run_to_end(
        &[
            &DEMO[..],
            &["--port", "0", "--admin-dir", &gone.display().to_string()],
        ]
        .concat(),
    );
    assert_eq!(refused.status.code(), Some(1));
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(
        told.contains("gone: cannot listen there: No such file"),
        "{told}"
    );
}

#[test]
fn a_kept_connection_ends_when_nothing_more_is_asked() {
    let server = Server::demo(&["--request-timeout-ms", "300"]);
    let mut asked = Asker::of(&server);
    assert_eq!(asked.ask(get("/healthz")).status, 200);
    let mut half = Asker::of(&server);
    assert_eq!(half.ask(get("/healthz")).status, 200);
    half.send("GET /healthz HTTP/1.1\r\n");
    let mut begun = Asker::of(&server);
    begun.send("G");
    for one in [&mut asked, &mut half, &mut begun] {
        one.assert_ends();
    }
    assert_eq!(
        server.metric(r#"connections_dropped_total{reason="handshake_timeout"}"#),
        2
    );
}

#[test]
fn an_operator_gets_in_however_many_connect_and_ask_nothing() {
    let server = Server::demo(&["--max-connections", "1"]);
    let mut client = Client::connect(server.address());
    success(&client.ask(&ping_as(ANY_TOKEN, "1")));
    let mut kept = Vec::new();
    for number in 0..1000 {
        let stream = TcpStream::connect(server.admin()).unwrap();
        match number % 3 {
            0 => (&stream).write_all(b"G").unwrap(),
            1 => (&stream).write_all(b"GET /metr").unwrap(),
            // A request, and a reset in place of the reading of its answer.
            _ => {
                (&stream).write_all(get("/metrics").as_bytes()).unwrap();
                SockRef::from(&stream)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
                continue;
            }
        }
        kept.push(stream);
        if number % 50 == 0 {
            assert_eq!(server.page("/healthz").0, 200, "{number}");
        }
    }
    success(&client.ask(&ping_as(ANY_TOKEN, "2")));
    let metrics = server.metrics();
    assert!(metrics["admin_connections"] <= ADMIN_CONNECTIONS_MAX as u64);
    assert!(metrics["admin_connections_evicted_total"] > 500);
    assert_eq!(metrics["admin_connections_refused_total"], 0);
    assert_eq!(metrics[r#"handshakes_refused_total{reason="full"}"#], 0);
    assert_eq!(metrics["sessions"], 1);
}

#[test]
fn askers_that_do_not_read_are_ended_and_hold_nobody_up() {
    let server = Server::demo(&[
        "--send-timeout-ms=1000",
        "--slow-consumer=drop",
        "--rate-limit-burst=1000000",
    ]);
    let mut client = Client::connect(server.address());
    success(&client.ask(&ping_as(ANY_TOKEN, "first")));
    let slow: Vec<Socket> = (0..ADMIN_CONNECTIONS_MAX)
        .map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            socket.connect(&server.admin().into()).unwrap();
            // Far more than the buffers of both sides take.
            (&socket)
                .write_all(get("/metrics").repeat(400).as_bytes())
                .unwrap();
            socket
        })
        .collect();
    let mut number = 0;
    // One after another: by the time for sending, or to make room for who looks here.
    let is_alone = |server: &Server| {
        let (status, page) = server.page("/metrics");
        status == 200 && page.contains("blackhole_admin_connections 1\n")
    };
    wait_for("all of them are ended", || {
        number += 1;
        let before = Instant::now();
        success(&client.ask(&ping_as(ANY_TOKEN, &number.to_string())));
        assert!(before.elapsed() < Duration::from_secs(1), "a client waited");
        is_alone(&server).then_some(())
    });
    let metrics = server.metrics();
    let ended = metrics["admin_slow_total"] + metrics["admin_connections_evicted_total"];
    assert_eq!(ended, slow.len() as u64);
    assert_eq!(server.metric(r#"closes_total{reason="slow_consumer"}"#), 0);
    assert_eq!(server.metric("outboxes_blocked_bytes"), 0);
}
