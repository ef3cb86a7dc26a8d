//! No token and no password comes out of the program, whatever door it is said at: everything that the process writes
//! and answers is searched for every secret and for every piece of one.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Output;
use std::thread;

use amiquip::ExchangeType;
use rustix::process::Signal;
use serde_json::{Value, json};

use support::broker::Broker;
use support::client::{Raw, ping_as, subscribe};
use support::events::{ACCOUNT, OTHER_ACCOUNT};
use support::publisher::Publisher;
use support::server::{
    Fed, Scratch, Server, TokenFile, dead_address, run_to_end, unix_now, wait_for,
};
use support::wire::{UPGRADE_REQUEST, client_frame, client_text};

/// Bytes of a secret in a row that must not be found anywhere. Fewer may be chance.
const PIECE_BYTES: usize = 8;

/// Secrets of random letters, so that no piece of one is anything else.
struct Secrets {
    random: fastrand::Rng,
    /// Every piece, and what it is a piece of.
    pieces: HashMap<[u8; PIECE_BYTES], String>,
}

impl Secrets {
    fn new() -> Self {
        Self {
            random: fastrand::Rng::new(),
            pieces: HashMap::new(),
        }
    }

    /// A new secret of so many letters and digits.
    fn letters(&mut self, name: &str, count: usize) -> String {
        let text: String = (0..count).map(|_| self.random.alphanumeric()).collect();
        self.keep(name, &text);
        text
    }

    /// A new secret of a usual length.
    fn new_one(&mut self, name: &str) -> String {
        self.letters(name, 24)
    }

    /// A new secret with `middle` in it.
    fn around(&mut self, name: &str, middle: &str) -> String {
        let (before, behind) = (self.letters(name, 16), self.letters(name, 16));
        let text = format!("{before}{middle}{behind}");
        self.keep(name, &text);
        text
    }

    fn keep(&mut self, name: &str, text: &str) {
        for piece in text.as_bytes().windows(PIECE_BYTES) {
            self.pieces
                .insert(piece.try_into().unwrap(), name.to_owned());
        }
    }

    /// The first secret that a piece of is in `heard`.
    fn find(&self, heard: &[u8]) -> Option<(&str, String)> {
        heard.windows(PIECE_BYTES).find_map(|window| {
            let name = self.pieces.get(window)?;
            let at = window.as_ptr().addr() - heard.as_ptr().addr();
            let around = at.saturating_sub(80)..heard.len().min(at + 80);
            Some((&**name, heard[around].escape_ascii().to_string()))
        })
    }

    /// Panics if a piece of a secret is in `heard`.
    fn are_not_in(&self, origin: &str, heard: &[u8]) {
        if let Some((name, around)) = self.find(heard) {
            panic!("the secret `{name}` comes out in {origin}: {around}");
        }
    }
}

/// Sends all this on a connection of its own and returns all that comes back, up to the end.
fn say(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut raw = Raw::connect(server.address());
    raw.try_send(bytes);
    raw.rest_as_bytes()
}

/// As [`say`], to the admin address.
fn say_to_admin(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut raw = Raw::connect(server.admin());
    raw.try_send(bytes);
    raw.shutdown_write();
    raw.rest_as_bytes()
}

/// Sends these texts as messages of a session, each when the one before is answered, and returns all that comes back.
fn say_in_session(server: &Server, texts: &[String]) -> Vec<u8> {
    let mut raw = Raw::upgraded(server.address());
    let mut heard = Vec::new();
    for text in texts {
        raw.send_text(text);
        let mut is_answered = false;
        while !is_answered {
            let (opcode, payload) = raw.frame();
            assert_eq!(opcode, 1, "{}", payload.escape_ascii());
            is_answered = has(&payload, br#""action":"reply""#);
            heard.extend(payload);
        }
    }
    raw.send_frame(0x88, &1000_u16.to_be_bytes());
    heard.extend(raw.rest_as_bytes());
    heard
}

fn has(heard: &[u8], needle: &[u8]) -> bool {
    heard.windows(needle.len()).any(|window| window == needle)
}

/// A request's head with more lines.
fn head(first: &str, lines: &[String]) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let rest = UPGRADE_REQUEST.split_once("\r\n").unwrap().1;
    format!("{first}\r\n{lines}{rest}")
}

/// Every way to say a token in a request.
fn requests_with(token: &str) -> Vec<String> {
    let get = "GET / HTTP/1.1";
    let mut requests: Vec<String> = [
        vec![format!("Authorization: Bearer {token}")],
        vec![format!("authorization:bearer {token}")],
        vec![format!("Authorization: Bearer {token} {token}")],
        vec![format!("Authorization: Bearer\t{token}")],
        vec![format!("Authorization: Bearer,{token}")],
        vec![format!("Authorization: {token}")],
        vec![format!("Authorization: Basic {token}")],
        vec![format!("Authorization: Digest username=\"{token}\"")],
        vec![format!("Authorization : Bearer {token}")],
        vec![format!("Authorization: Bearer\r\n {token}")],
        vec![
            format!("Authorization: Bearer {token}"),
            format!("Authorization: Bearer {token}"),
        ],
        vec![
            format!("Authorization: Basic {token}"),
            format!("Authorization: Bearer {token}"),
        ],
        vec![format!("X-Auth-Token: {token}")],
        vec![format!("Cookie: token={token}")],
        vec![format!("Origin: https://{token}")],
        vec![format!("Sec-WebSocket-Protocol: {token}")],
        vec![format!("Sec-WebSocket-Key: {token}")],
        vec![format!("Sec-WebSocket-Version: {token}")],
        vec![format!("Sec-WebSocket-Extensions: {token}")],
        vec![format!("X-Forwarded-For: {token}")],
        vec![format!("Forwarded: for=\"{token}\";by={token}")],
        vec![format!("Forwarded: {token}")],
        vec![format!("{token}: {token}")],
        vec![token.to_owned()],
    ]
    .iter()
    .map(|lines| head(get, lines))
    .collect();
    let bearer = || vec![format!("Authorization: Bearer {token}")];
    for first in [
        format!("GET /?auth_token={token} HTTP/1.1"),
        format!("GET /?style={token}&token={token} HTTP/1.1"),
        format!("GET /{token} HTTP/1.1"),
        format!("GET https://{token}@host/{token} HTTP/1.1"),
        format!("{token} / HTTP/1.1"),
        format!("GET / {token}"),
        "POST / HTTP/1.1".to_owned(),
        "GET / HTTP/1.0".to_owned(),
        "GET / HTTP/2.0".to_owned(),
    ] {
        requests.push(head(&first, &bearer()));
    }
    for path in ["/", "/metrics", "/nowhere", &format!("/?token={token}")] {
        requests.push(format!(
            "GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n\r\n"
        ));
    }
    requests.push(format!(
        "PROXY TCP4 {token} 1.2.3.4 1 2\r\n{UPGRADE_REQUEST}"
    ));
    requests.push(format!("PROXY UNKNOWN {token}\r\n{UPGRADE_REQUEST}"));
    requests.push(head(
        get,
        &[
            format!("Authorization: Bearer {token}"),
            "X: y\r\n".repeat(4000),
        ],
    ));
    requests
}

/// Every way to say a token in the texts of a session whose answers must not repeat it.
fn texts_with(token: &str) -> Vec<String> {
    let text = json!(token).to_string();
    let long = token.repeat(1 + 5000 / token.len());
    let data = || json!({"account_id": ACCOUNT, "binding": "call.*.*"});
    let mut texts: Vec<String> = [
        ping_as(token, "1"),
        subscribe(token, ACCOUNT, "call.*.*"),
        subscribe(token, OTHER_ACCOUNT, "call.*.*"),
        subscribe(token, "*", "call.*.*"),
        subscribe(token, ACCOUNT, "call.#"),
        subscribe(token, ACCOUNT, "nothing.of.that.kind"),
        subscribe(token, ACCOUNT, "call.NEVER.*"),
        subscribe(token, token, "call.*.*"),
        json!({"action": "unsubscribe", "auth_token": token}),
        json!({"action": "unsubscribe", "auth_token": token, "data": data()}),
        json!({"action": "unsubscribe", "auth_token": token, "data": 7}),
        json!({"action": "unsubscribe", "auth_token": token, "data": {"account_id": token}}),
        json!({"action": "frobnicate", "auth_token": token}),
        json!({"action": 7, "auth_token": token}),
        json!({"action": [token], "auth_token": token}),
        json!({"auth_token": token}),
        json!({"action": "subscribe", "auth_token": token}),
        json!({"action": "subscribe", "auth_token": token, "data": token}),
        json!({"action": "subscribe", "auth_token": token, "data": {"auth_token": token}}),
        json!({"action": "subscribe", "auth_token": token, "data": {"account_id": 1, "bindings": [[token]]}}),
        json!({"action": "ping", "auth_token": token, "request_id": {"x": token}}),
        json!({"action": "ping", "auth_token": token, "request_id": long}),
        json!({"action": "ping", "auth_token": token, "name": [token], "data": {"metadata": long}}),
        json!({"action": "ping", "auth_token": [token]}),
        json!({"action": "ping", "auth_token": {"token": token}}),
        json!({"action": "ping", "auth_token": {token: token}}),
        json!({"action": "ping", "token": token, "Authorization": token}),
        json!([token]),
        json!(token),
    ]
    .iter()
    .map(Value::to_string)
    .collect();
    texts.extend([
        format!(r#"{{"action":"ping","auth_token":{text}"#),
        format!(r#"{{"action":"ping","auth_token":{text},}}"#),
        format!(r#"{{"action":"ping","auth_token":{text}}} {text}"#),
        format!(r#"{{"action":"ping" "auth_token":{text}}}"#),
        format!(r#"{{"action":"ping","auth_token":{token}}}"#),
        format!(r#"{{"action":"ping","auth_token":"{token}"#),
        format!(r#"{{"action":"ping","auth_token":"{token}\x"}}"#),
        format!(r#"{{"action":"ping","auth_token":"{token}\ud800"}}"#),
        format!("{{\"action\":\"ping\",\"auth_token\":\"{token}\n\"}}"),
        format!(r#"{{{text}:{text},{text}:{text}}}"#),
        format!(r#"{{"action":"ping","auth_token":{text},"auth_token":7}}"#),
        format!("auth_token={token}"),
        token.to_owned(),
        text,
    ]);
    texts
}

/// Texts whose answers repeat what the client said, as PROTOCOL 3 has it: it must be in nobody else's hands.
fn texts_that_echo(token: &str) -> Vec<String> {
    [
        json!({"action": token, "auth_token": token}),
        json!({"action": "ping", "auth_token": token, "request_id": token}),
        subscribe(token, ACCOUNT, token),
        subscribe(token, ACCOUNT, &format!("call.{token}.*")),
        subscribe(token, ACCOUNT, &format!("call.CHANNEL_CREATE.{token}")),
        json!({"action": "ping", "auth_token": token, "name": token, "data": {"metadata": token}}),
    ]
    .iter()
    .map(Value::to_string)
    .collect()
}

/// Bytes behind an upgrade that are no good messages, each the end of its session.
fn broken_frames_with(token: &str) -> Vec<Vec<u8>> {
    let text = ping_as(token, "1").to_string();
    let not_utf8 = [text.as_bytes(), b"\xFF"].concat();
    let mut reason = 1000_u16.to_be_bytes().to_vec();
    reason.extend(token.as_bytes().iter().take(100));
    let mut bad_reason = reason.clone();
    bad_reason.push(0xFF);
    vec![
        client_frame(0x82, text.as_bytes()),
        client_frame(0xC1, text.as_bytes()),
        client_frame(0x83, text.as_bytes()),
        client_frame(0x81, &not_utf8),
        client_frame(0x81, token.repeat(4000).as_bytes()),
        client_frame(0x88, &reason),
        client_frame(0x88, &bad_reason),
        [
            client_frame(0x8A, &reason[2..]),
            client_frame(0x88, &reason),
        ]
        .concat(),
        [
            &client_frame(0x01, text.as_bytes())[..],
            &client_frame(0x81, text.as_bytes()),
        ]
        .concat(),
        text.into_bytes(),
    ]
}

/// Token files that are refused, of these secrets.
fn broken_token_files(one: &str, two: &str) -> Vec<Vec<u8>> {
    let good = format!(r#""{one}": {{"account_id": "{ACCOUNT}"}}"#);
    let deep = "[".repeat(200);
    let mut files: Vec<Vec<u8>> = [
        format!("{{{good}"),
        format!("{{{good}}} {two}"),
        format!("{{{good},}}"),
        format!("{{{good} \"{two}\"}}"),
        format!("{{{good}, {two}: 1}}"),
        format!(r#"{{"{one}": {{"account_id": "{ACCOUNT}" "{two}"}}}}"#),
        format!(r#"{{"{one}": {{"account_id": {two}}}}}"#),
        format!(r#"{{"{one}"#),
        format!(r#"{{"{one}\q": {{"account_id": "{ACCOUNT}"}}}}"#),
        format!("{{\"{one}\n{two}\": {{\"account_id\": \"{ACCOUNT}\"}}}}"),
        format!("\u{feff}{{{good}}}"),
        format!(r#"["{one}"]"#),
        format!(r#""{one}""#),
        one.to_owned(),
        format!("{one}={two}"),
        format!(r#"{{"{one}": "{two}"}}"#),
        format!(r#"{{"{one}": null}}"#),
        format!(r#"{{"{one}": [{{"account_id": "{ACCOUNT}"}}]}}"#),
        format!(r#"{{"{one}": {deep}"{two}"}}"#),
        format!(r#"{{"{one}": 1e999999}}"#),
        format!(r#"{{"{one}": {{"account_id": "{two}"}}}}"#),
        format!(r#"{{"{one}": {{"account_id": ["{two}"]}}}}"#),
        format!(r#"{{"{one}": {{"token": "{two}"}}}}"#),
        format!(r#"{{"{one}": {{"{two}": 1, "account_id": "{ACCOUNT}"}}}}"#),
        format!(r#"{{"{one}": {{"{two}": 1, "{two}": 2}}}}"#),
        format!(r#"{{{good}, {good}}}"#),
        format!(r#"{{{good}, "": {{"account_id": "{two}"}}}}"#),
        format!(r#"{{{good}, "{two}": {{}}}}"#),
        format!(r#"{{"tokens": {{{good}}}}}"#),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect();
    for (key, value) in [
        ("descendants", format!(r#""{two}""#)),
        ("descendants", format!(r#"["{two}"]"#)),
        ("descendants", format!(r#"[["{two}"]]"#)),
        ("realm", format!(r#"["{two}"]"#)),
        ("realm", format!(r#""{two} {one}""#)),
        ("superduper_admin", format!(r#""{two}""#)),
        ("expires", format!(r#""{two}""#)),
        ("expires", "-1".to_owned()),
        (
            "descendants",
            format!(r#"[], "descendants": ["{two}"], "realm": "{two}""#),
        ),
    ] {
        files.push(
            format!(r#"{{"{one}": {{"account_id": "{ACCOUNT}", "{key}": {value}}}}}"#).into_bytes(),
        );
    }
    files.push(
        format!(
            r#"{{"{one}": {{"account_id": "{ACCOUNT}", "realm": "a"}}, "{two}": {{"account_id": "{ACCOUNT}", "realm": "b"}}}}"#
        )
        .into_bytes(),
    );
    files.push([&b"{\""[..], one.as_bytes(), b"\xFF\": {}}"].concat());
    files.push([one.as_bytes(), b"\0", two.as_bytes()].concat());
    files
}

#[test]
fn the_search_finds_a_secret_and_every_piece_of_it() {
    let mut secrets = Secrets::new();
    let text = secrets.around("one", "\u{1b}é");
    secrets.are_not_in("nothing", b"some other text");
    for from in 0..=text.len() - PIECE_BYTES {
        let piece = &text.as_bytes()[from..from + PIECE_BYTES];
        let heard = [b"2026 INFO ", piece, b" and more"].concat();
        assert_eq!(secrets.find(&heard).unwrap().0, "one");
    }
}

#[test]
fn nothing_that_a_client_says_in_confidence_comes_out_of_the_server() {
    let mut secrets = Secrets::new();
    let mut tokens = serde_json::Map::new();
    let mut on_file = |token: &str, more: Value| {
        let mut entry = json!({"account_id": ACCOUNT});
        entry
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        tokens.insert(token.to_owned(), entry);
    };
    let good = secrets.new_one("good");
    let good_with_control = secrets.around("good, with control characters", "\u{7}\u{1b}[31m\n");
    let good_not_ascii = secrets.around("good, not ASCII", "é漢\u{202e}");
    let expired = secrets.new_one("expired");
    let expiring = secrets.new_one("expiring");
    let revoked = secrets.new_one("revoked");
    on_file(&good, json!({}));
    on_file(&good_with_control, json!({"superduper_admin": true}));
    on_file(&good_not_ascii, json!({"realm": "sip.example.com"}));
    on_file(&expired, json!({"expires": 1}));
    on_file(&expiring, json!({"expires": unix_now() + 4}));
    on_file(&revoked, json!({}));
    let said = [
        good.clone(),
        good_with_control,
        good_not_ascii,
        expired,
        secrets.new_one("unknown"),
        secrets.around("malformed", "\" \\ \t{}:,"),
        secrets.around("with a number's form", ".5e3"),
        secrets.letters("overlong", 3000),
    ];
    let file = TokenFile::new(&Value::Object(tokens.clone()));
    let mut server = Server::start(&[
        "--source",
        "demo",
        "--log-level",
        "debug",
        "--auth",
        &file.option(),
        "--trusted-proxies",
        "127.0.0.1",
        "--proxy-protocol",
        "accept",
        "--allowed-origins",
        "https://app.example",
        "--rate-limit-burst",
        "60",
        "--rate-limit-per-second",
        "1",
    ]);
    let mut expiring_session = Raw::upgraded(server.address());
    expiring_session.send_text(&subscribe(&expiring, ACCOUNT, "call.*.*").to_string());
    let mut revoked_session = Raw::upgraded(server.address());
    revoked_session.send_text(&ping_as(&revoked, "1").to_string());

    for token in &said {
        for request in requests_with(token) {
            // A session that it opened is closed by the close frame behind it.
            let close = client_frame(0x88, &1000_u16.to_be_bytes());
            let answer = say(&server, &[request.as_bytes(), &close].concat());
            secrets.are_not_in(&format!("the answer to {request:?}"), &answer);
            let answer = say_to_admin(&server, request.as_bytes());
            secrets.are_not_in("an answer of the admin listener", &answer);
        }
        // Cut off in the middle of the token.
        let mut cut = Raw::connect(server.address());
        let request = &requests_with(token)[0];
        cut.send(&request.as_bytes()[..request.len() - 100]);
        cut.shutdown_write();
        secrets.are_not_in("the answer to half a request", &cut.rest_as_bytes());

        let answer = say_in_session(&server, &texts_with(token));
        assert!(has(&answer, br#""status":"error""#));
        secrets.are_not_in("a reply", &answer);
        for frames in broken_frames_with(token) {
            let answer = say(&server, &[UPGRADE_REQUEST.as_bytes(), &frames].concat());
            secrets.are_not_in("the answer to a broken message", &answer);
        }
        say_in_session(&server, &texts_that_echo(token));
    }
    // Beyond the rate limit, up to the close for it.
    let flood = client_text(&ping_as(&good, "1").to_string()).repeat(1200);
    let answer = say(&server, &[UPGRADE_REQUEST.as_bytes(), &flood].concat());
    assert!(has(&answer, b"rate limiting threshold hit"));
    secrets.are_not_in("an answer beyond the rate limit", &answer);
    assert!(server.metric(r#"commands_total{result="rate_limited"}"#) >= 1000);
    assert_eq!(server.metric(r#"closes_total{reason="rate_limit"}"#), 1);

    let answer = expiring_session.rest_as_bytes();
    assert!(has(&answer, b"token expired"));
    secrets.are_not_in("the close of an expired session", &answer);
    tokens.remove(&revoked).unwrap();
    file.write(&Value::Object(tokens).to_string());
    server.signal(Signal::HUP);
    let answer = revoked_session.rest_as_bytes();
    assert!(has(&answer, b"token expired"));
    secrets.are_not_in("the close of a revoked session", &answer);

    let (one, two) = (
        secrets.new_one("on a broken file"),
        secrets.new_one("on a broken file, second"),
    );
    for (turn, text) in broken_token_files(&one, &two).iter().enumerate() {
        fs::write(file.path(), text).unwrap();
        server.signal(Signal::HUP);
        wait_for(&text.escape_ascii().to_string(), || {
            let refusals = server.log().matches("tokens not reread").count();
            (refusals > turn).then_some(())
        });
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        secrets.are_not_in(path, server.page(path).1.as_bytes());
    }
    server.signal(Signal::TERM);
    server.signal(Signal::TERM);
    assert!(server.wait().success());
    let log = server.log();
    assert!(log.contains("DEBUG"), "the log was on: {log}");
    secrets.are_not_in("the log", log.as_bytes());
    secrets.are_not_in("stdout", server.more_stdout().concat().as_bytes());
}

#[test]
fn no_refusal_of_a_start_tells_a_token_or_a_password() {
    let mut secrets = Secrets::new();
    let (one, two) = (secrets.new_one("a token"), secrets.new_one("another token"));
    let password = secrets.new_one("a broker's password");
    let odd_password = secrets.around("an odd password", "/@:");
    let mut leaks = Vec::new();
    let mut is_silent = |what: &str, output: &Output, code: i32| {
        let all = [&output.stdout[..], &output.stderr].concat();
        if output.status.code() != Some(code) {
            leaks.push(format!(
                "{what}: {:?}: {}",
                output.status,
                all.escape_ascii()
            ));
        }
        leaks.extend(
            secrets
                .find(&all)
                .map(|(name, around)| format!("{what}: {name}: {around}")),
        );
    };
    let demo = ["--source", "demo"];

    for text in broken_token_files(&one, &two) {
        let file = Scratch::file("tokens.json", "");
        fs::write(file.path(), &text).unwrap();
        let auth = format!("tokens:{}", file.path().display());
        for more in [&[][..], &["--check-config"]] {
            let output = run_to_end(&[&demo, &["--auth", &auth][..], more].concat());
            is_silent(&text.escape_ascii().to_string(), &output, 2);
        }
    }

    let url = format!("amqp://user:{password}@broker.example:5672/x");
    let odd = format!("amqp://user:{odd_password}@broker.example:5672/x");
    for text in [
        json!({"amqp": url}).to_string(),
        json!({"amqp": [[url]]}).to_string(),
        json!({"amqp": {"url": url}}).to_string(),
        json!({"amqp": [format!("{url}/y")]}).to_string(),
        json!({"amqp": [format!("{url}?heartbeat=1")]}).to_string(),
        json!({"amqp": [format!("amqpz://user:{password}@broker")]}).to_string(),
        json!({"amqp": [format!("user:{password}@broker")]}).to_string(),
        json!({"amqp": [format!("amqp://user:4711/{password}@broker")]}).to_string(),
        json!({"amqp": [format!("amqp://user:{password}%ZZ%FF@broker")]}).to_string(),
        json!({"amqp": [odd]}).to_string(),
        json!({"source": url}).to_string(),
        json!({"ip": url}).to_string(),
        json!({"admin": url}).to_string(),
        json!({"families": [url]}).to_string(),
        json!({"families": url}).to_string(),
        json!({"port": {"amqp": url}}).to_string(),
        json!({"allowed_origins": url}).to_string(),
        json!({"amqp_url": url}).to_string(),
        json!({"auth": one}).to_string(),
        json!({"auth": {"tokens": {&one: two}}}).to_string(),
        json!({"auth": [&one]}).to_string(),
        json!({"auth": format!("token:{one}")}).to_string(),
        // The token file in the place of the configuration.
        json!({&one: {"account_id": ACCOUNT}}).to_string(),
        format!(r#"{{"{one}": 1, "{one}": 2}}"#),
        json!({&url: 1}).to_string(),
        format!(r#"{{"amqp": ["{url}"}}"#),
        format!(r#"{{"amqp": {url}}}"#),
        format!(r#"{{"amqp": ["{url}"#),
    ] {
        let file = Scratch::file("blackhole.json", &text);
        let path = file.path().to_str().unwrap();
        for more in [&[][..], &["--check-config"]] {
            // `--auth` comes from the file where the file is about it.
            let auth: &[&str] = if text.contains("\"auth\"") {
                &[]
            } else {
                &["--auth", "insecure"]
            };
            let output = run_to_end(&[&["--config", path], auth, more].concat());
            is_silent(&text, &output, 2);
        }
    }

    let beside = |text: &str| format!("{url}{text}");
    for args in [
        vec!["--amqp", &beside("/y")],
        vec!["--amqp", &beside("?x=y")],
        vec!["--amqp", &beside("#y")],
        vec!["--amqp", &odd],
        vec!["--amqp", &format!("amqp://user:4711/{password}@broker")],
        vec!["--amqp", &format!("amqpz://user:{password}@broker")],
        vec!["--amqp", &format!("amqp//user:{password}@broker")],
        vec!["--amqp", &url, &url],
        vec!["--ampq", &url],
        vec![&format!("--ampq={url}")],
        vec![&format!("--amqp:{url}")],
        vec![&url],
        vec!["--source", &url],
        vec!["--ip", &url],
        vec!["--admin", &url],
        vec!["--families", &url],
        vec!["--trusted-proxies", &url],
        vec![&format!("--check-config={url}")],
        vec![&format!("--reuse-port={url}")],
        vec!["--auth", &one],
        vec!["--auth", &format!("token:{one}")],
        vec!["--auth", "insecure", "--auth", &one],
        vec!["--auth", &format!("tokens:{}", "x"), &one],
    ] {
        let mut line = args.clone();
        if !line.contains(&"--auth") {
            line.extend(["--auth", "insecure"]);
        }
        for more in [&[][..], &["--check-config"]] {
            let output = run_to_end(&[&line[..], more].concat());
            is_silent(&args.join(" "), &output, 2);
        }
    }

    let good = TokenFile::new(&json!({&one: {"account_id": ACCOUNT}}));
    let output = run_to_end(&[
        "--check-config",
        "--auth",
        &good.option(),
        "--amqp",
        &url,
        "--amqp",
        &format!("amqp://:{password}@broker"),
    ]);
    is_silent("--check-config", &output, 0);
    assert!(leaks.is_empty(), "{leaks:#?}");
}

#[test]
fn no_password_of_a_broker_and_no_body_that_came_from_one_is_in_the_log() {
    let mut secrets = Secrets::new();
    let right = secrets.new_one("the right password");
    let escaped = secrets.around("the right password, with odd characters", "/@é");
    let wrong = secrets.new_one("a wrong password");
    let body = secrets.new_one("a body");
    let token = secrets.new_one("a token");
    let Some(broker) = Broker::own() else {
        return;
    };
    for (user, password) in [("plain", &right), ("odd", &escaped)] {
        broker.ctl(&["add_user", user, password]);
        broker.ctl(&["set_permissions", user, ".*", ".*", ".*"]);
    }
    broker.ctl(&["add_user", "helpless", &right]);
    broker.ctl(&["add_user", &right, &right]);
    let port = broker.port();
    let encoded = escaped
        .replace('/', "%2F")
        .replace('@', "%40")
        .replace('é', "%C3%A9");
    let (_socket, dead) = dead_address();
    let urls = [
        format!("amqp://plain:{right}@{dead}/%2f"),
        format!("amqp://plain:{wrong}@127.0.0.1:{port}/%2f"),
        format!("amqp://plain:{right}@127.0.0.1:{port}/no-such-host"),
        format!("amqp://helpless:{right}@127.0.0.1:{port}/%2f"),
        format!("amqp://{right}:{right}@127.0.0.1:{port}/%2f"),
        format!("amqp://nobody:{encoded}@no-such-name.invalid/%2f"),
        format!("amqp://odd:{encoded}@127.0.0.1:{port}/%2f"),
    ];
    let tokens = TokenFile::new(&json!({&token: {"account_id": ACCOUNT}}));
    let auth = tokens.option();
    let mut args = vec!["--auth", &auth];
    for url in &urls[1..] {
        args.extend(["--amqp", url]);
    }
    let output = run_to_end(&[&["--amqp", &urls[0], "--check-config"], &args[..]].concat());
    assert_eq!(output.status.code(), Some(0));
    secrets.are_not_in("--check-config", &[output.stdout, output.stderr].concat());

    let mut server = Server::unready(&urls[0], &args);
    server.until_ready();
    let mut client = server.client();
    client.must_subscribe(&token, ACCOUNT, "call.*.*");
    let publisher = Publisher::connect(&broker.url());
    publisher.declare(ExchangeType::Topic, "callevt");
    for text in [
        body.clone(),
        format!(r#"{{"Call-ID": "{body}"#),
        format!(r#"["{body}"]"#),
        format!(r#"{{"Call-ID": "{body}\x"}}"#),
    ] {
        publisher.publish("callevt", "call.CHANNEL_CREATE.x", text.as_bytes());
    }
    publisher.publish_encoded(
        "callevt",
        "call.CHANNEL_CREATE.x",
        body.as_bytes(),
        Some("gzip"),
    );
    publisher.settle();
    server.wait_for_log("call.CHANNEL_CREATE.x");
    server.until("all of them dropped", |server| {
        server.metric("amqp_undecodable_total") == 5
    });
    broker.ctl(&["close_all_connections", "told to"]);
    server.wait_for_metric("amqp_disconnects_total", 1);
    server.until_ready();
    secrets.are_not_in("/metrics", server.page("/metrics").1.as_bytes());
    secrets.are_not_in("/readyz", server.page("/readyz").1.as_bytes());
    assert!(server.stop().success());
    let log = server.log();
    assert!(log.contains("cannot connect"), "{log}");
    secrets.are_not_in("the log", log.as_bytes());
}

/// A broker that asks back, with the password that it was given, which the AMQP client knows nothing to answer: it says so
/// in the log, with what it was asked.
fn parrot(password: &str) -> SocketAddr {
    let method = |arguments: &[u8]| {
        let size = u32::try_from(arguments.len()).unwrap().to_be_bytes();
        [&[1, 0, 0][..], &size, arguments, &[0xCE]].concat()
    };
    let long = |text: &[u8]| {
        let size = u32::try_from(text.len()).unwrap().to_be_bytes();
        [&size[..], text].concat()
    };
    let versions_and_table = [0, 9, 0, 0, 0, 0];
    let ways = [long(b"PLAIN"), long(b"en_US")].concat();
    let start = method(&[&[0, 10, 0, 10][..], &versions_and_table, &ways].concat());
    let asked = format!("{password} \u{202e}{}", password.repeat(20));
    let secure = method(&[&[0, 10, 0, 20][..], &long(asked.as_bytes())].concat());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut heard = [0; 4096];
            for said in [&start, &secure] {
                // The client may leave at any time, and comes again.
                let _ = socket.read(&mut heard);
                let _ = socket.write_all(said);
            }
            let _ = socket.read(&mut heard);
        }
    });
    address
}

#[test]
fn the_amqp_clients_own_lines_are_redacted_and_few() {
    let mut secrets = Secrets::new();
    let plain = secrets.new_one("a password");
    let odd = secrets.around("a password, with odd characters", "\"\\é");
    let encoded = odd
        .replace('"', "%22")
        .replace('\\', "%5C")
        .replace('é', "%C3%A9");
    let urls = [(&plain, &plain), (&odd, &encoded)]
        .map(|(password, written)| format!("amqp://user:{written}@{}", parrot(password)));
    let args = ["--auth", "insecure", "--amqp", &urls[1]];
    let mut server = Server::unready(&urls[0], &args);
    server.until("refused often", |server| {
        server.metric("amqp_connect_failures_total") >= 8
    });
    assert!(server.stop().success());
    let log = server.log();
    secrets.are_not_in("the log", log.as_bytes());
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("[amiquip"))
        .collect();
    assert_eq!(lines.len(), 3, "{log}");
    for line in lines {
        assert!(line.contains("[password]") && line.is_ascii(), "{line}");
        assert!(line.len() < 1000, "{line}");
    }
}

#[test]
fn no_line_of_a_replayed_file_is_in_the_log() {
    let mut secrets = Secrets::new();
    let body = secrets.new_one("a body");
    let mut fed = Fed::insecure(&["--log-level", "debug"]);
    fed.publish_text("callevt", "call.x", &format!(r#""{body}""#));
    fed.publish_text("callevt", "call.x", &body);
    fed.publish_text("callevt", "call.x", &format!(r#"{{"x": "{body}"#));
    fed.server.wait_for_log("replay: ");
    assert!(fed.server.stop().success());
    secrets.are_not_in("the log", fed.server.log().as_bytes());
}
