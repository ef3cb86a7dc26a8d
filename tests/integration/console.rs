//! The console and what it asks for on the real process (PROTOCOL 8). That the page works is shown in a browser
//! (`tests/web/console`).

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use blackhole::console;
use support::server::Server;
use support::tls::plain_only;

use super::admin_http::{Asker, get, request};

#[test]
fn the_page_is_handed_out_to_anybody_and_what_it_asks_for_is_not() {
    let folder = TempDir::new().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "very-secret").unwrap();
    let server = Server::demo(&["--admin-token", &token.display().to_string()]);
    let mut asker = Asker::of(&server);

    let page = asker.ask(get("/"));
    assert_eq!((page.status, &*page.body), (200, console::PAGE));
    let policy = console::policy();
    for line in [
        "Content-Type: text/html; charset=utf-8",
        &format!("Content-Security-Policy: {policy}"),
        "Cache-Control: no-cache",
        "X-Content-Type-Options: nosniff",
        "Referrer-Policy: no-referrer",
        "Cross-Origin-Opener-Policy: same-origin",
    ] {
        assert!(page.head.contains(&format!("\r\n{line}\r\n")), "{line}");
    }
    for strict in [
        "default-src 'none'; script-src 'sha256-",
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ] {
        assert!(policy.contains(strict), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");

    for path in ["/v2/status", "/v2/websockets", "/v2/sessions", "/metrics"] {
        assert_eq!(asker.ask(get(path)).status, 401, "{path}");
    }
    let bearer = "Authorization: Bearer very-secret";
    let status = asker.ask(request("GET /v2/status", &[bearer]));
    assert_eq!(status.status, 200);
    assert!(!status.body.contains("very-secret"));
}

#[test]
fn a_browser_that_has_the_page_is_told_only_that() {
    let server = Server::demo(&[]);
    let mut asker = Asker::of(&server);
    let page = asker.ask(get("/"));
    let etag = page
        .head
        .lines()
        .find_map(|line| line.strip_prefix("ETag: "))
        .expect("an ETag");
    asker.send(request("GET /", &[&format!("If-None-Match: {etag}")]));
    let unchanged = asker.answer(false).expect("an answer");
    assert_eq!(unchanged.status, 304);
    assert!(unchanged.head.contains(&format!("ETag: {etag}\r\n")));
    asker.send(request("HEAD /", &[]));
    let head = asker.answer(false).expect("an answer");
    assert_eq!(head.status, 200);
    assert!(
        head.head
            .contains(&format!("Content-Length: {}\r\n", console::PAGE.len()))
    );
    for (line, field, status) in [
        ("GET /", "If-None-Match: \"another\"", 200),
        ("GET /?token=x", "X: y", 400),
        ("POST /", "X: y", 405),
        ("DELETE /", "X: y", 405),
        ("GET /index.html", "X: y", 404),
    ] {
        assert_eq!(
            asker.ask(request(line, &[field])).status,
            status,
            "{line} {field}"
        );
    }
    let rebound = "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    assert_eq!(asker.ask(rebound).status, 421);
}

#[test]
fn the_status_says_what_the_process_is_and_how_it_stands() {
    if plain_only(&"there is no plain address to tell") {
        return;
    }
    let server = Server::demo(&[
        "--node-name",
        "blackhole@here",
        "--allowed-origins",
        "http://127.0.0.1:1",
        "--style",
        "kazoo",
        "--history-seconds",
        "7",
        "--drain-delay-seconds",
        "60",
    ]);
    server.until_ready();
    let mut asker = Asker::of(&server);
    let mut status = || {
        let answer = asker.ask(get("/v2/status"));
        assert_eq!(answer.status, 200);
        assert!(answer.head.contains("Content-Type: application/json\r\n"));
        let whole: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(whole["status"], "success");
        whole["data"].clone()
    };
    let data = status();
    for (name, expected) in [
        ("/version", json!(env!("CARGO_PKG_VERSION"))),
        ("/node", json!("blackhole@here")),
        ("/pid", json!(server.pid())),
        ("/websocket/address", json!("127.0.0.1")),
        ("/websocket/port", json!(server.address().port())),
        ("/websocket/allowed_origins", json!(["http://127.0.0.1:1"])),
        ("/websocket/style", json!("kazoo")),
        ("/ready", json!(true)),
        ("/why", Value::Null),
        ("/draining", json!(false)),
        ("/auth", json!(["insecure"])),
        ("/source/kind", json!("demo")),
        ("/source/state", json!("up")),
        (
            "/source/demo_account",
            json!("00000000000000000000000000000001"),
        ),
        ("/history/seconds", json!(7.0)),
        ("/history/stream", json!(false)),
        ("/sessions", json!(0)),
    ] {
        assert_eq!(data.pointer(name), Some(&expected), "{name}: {data}");
    }
    assert!(data["uptime_seconds"].is_u64());

    let mut other = Asker::of(&server);
    assert_eq!(other.ask(request("POST /drain", &[])).status, 202);
    let data = status();
    assert_eq!(
        (&data["ready"], &data["draining"]),
        (&json!(false), &json!(true))
    );
    assert!(data["why"].is_string(), "{data}");
}
