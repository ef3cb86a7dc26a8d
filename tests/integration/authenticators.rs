//! Who may do what (PROTOCOL 3, 4 and 7) on the whole server: the real program, its threads and its sockets, tokens that
//! PyJWT made, and a REST API that is a real HTTP server.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::client::{Client, Raw, errors, ping, ping_as, subscribe, success, upgrade_with};
use support::events::{
    ACCOUNT, OTHER_ACCOUNT, PARENT_ACCOUNT, call_event, events_until_marker, subscribe_to_marker,
};
use support::platform_api::{Account, After, HttpServer, PlatformApi, SERVICE_TOKEN, answer};
use support::server::{Fed, Scratch, Server, TokenFile, run_to_end, unix_now, wait_for};
use support::tokens::Made;

const CALLS: &str = "call.CHANNEL_CREATE.*";
const DIALOGS: &str = "presence.dialog.*";

const FAILED: &str = "failed to authenticate token";
const UNAUTHORIZED: &str = "unauthorized account id";
const UNAVAILABLE: &str = "authentication unavailable";

/// An account of this number.
fn account(number: u64) -> String {
    format!("{number:032x}")
}

/// `ok`, or the only error of a reply.
fn verdict(reply: &Value) -> String {
    if reply["status"] == "success" {
        return "ok".to_owned();
    }
    errors(reply).join(", ")
}

/// What a new session is told that subscribes with this token.
fn newcomer(server: &Server, token: &str, account: &str) -> String {
    verdict(&server.client().subscribe(token, account, CALLS))
}

fn assert_alive(client: &mut Client) {
    assert_eq!(success(&client.ask(&ping("alive")))["response"], "pong");
}

/// Publishes an event of calls, numbered.
fn publish_call(fed: &mut Fed, account: &str, number: usize) {
    let body = call_event(account, "CHANNEL_CREATE", number);
    fed.publish("callevt", "call.CHANNEL_CREATE.c", &body);
}

fn publish_dialog(fed: &mut Fed, realm: &str, number: usize) {
    let key = format!("dialog.{}.c", realm.replace('.', "%2E"));
    let body = json!({"Event-Name": "dialog", "Number": number});
    fed.publish("presence", &key, &body);
}

/// The number of the next message, which must be an event.
fn number(client: &mut Client) -> Value {
    let event = client.event();
    assert!(event["args"]["Number"].is_u64(), "{event}");
    event["args"]["Number"].clone()
}

/// The status of an upgrade with this token.
fn status_of_upgrade(server: &Server, token: &str) -> u16 {
    let mut raw = Raw::connect(server.address());
    raw.send(upgrade_with(&[&format!("Authorization: Bearer {token}")]).as_bytes());
    raw.head().status
}

fn reread(server: &Server, rereads: u64) {
    server.signal(Signal::HUP);
    server.wait_for_metric("config_reloads_total", rereads);
}

/// What the notice tells that ends subscriptions: its reason and the bindings.
fn ended(client: &mut Client) -> (String, Value) {
    let notice = client.notice();
    assert_eq!(notice["name"], "subscriptions_ended", "{notice}");
    let reason = notice["data"]["reason"].as_str().unwrap().to_owned();
    (reason, notice["data"]["bindings"].clone())
}

#[test]
fn a_good_jwt_of_every_algorithm_opens_the_server_at_the_upgrade_and_in_a_command() {
    let Some(made) = Made::as_of(unix_now()) else {
        return;
    };
    let good = [
        "rs256",
        "rs384",
        "rs512",
        "signed by openssl",
        "without exp",
        "long",
    ];
    for source in ["pkcs1.pem", "spki.pem", "keys", "jwks.json"] {
        let auth = format!("jwt:{}", made.path(source).display());
        let mut fed = Fed::start(&["--auth", &auth]);
        let address = fed.server.address();
        let mut sessions = Vec::new();
        for name in good {
            let token = made.token(name);
            let mut upgraded = Client::connect_as(address, token);
            assert_alive(&mut upgraded);
            let told = upgraded.ask(&json!({"action": "subscribe",
                "data": {"account_id": ACCOUNT, "binding": CALLS}}));
            assert_eq!(verdict(&told), "ok", "{name}, by {source}");
            let mut later = Client::connect(address);
            let told = later.subscribe(token, ACCOUNT, CALLS);
            assert_eq!(verdict(&told), "ok", "{name}, by {source}");
            for other in [OTHER_ACCOUNT, PARENT_ACCOUNT] {
                let told = later.subscribe(token, other, CALLS);
                assert_eq!(errors(&told), [UNAUTHORIZED], "{name}, by {source}");
            }
            let told = later.subscribe(token, ACCOUNT, DIALOGS);
            assert_eq!(
                errors(&told),
                ["no available subscriptions to requested binding"],
                "a token has no realm"
            );
            sessions.extend([upgraded, later]);
        }
        publish_call(&mut fed, OTHER_ACCOUNT, 1);
        publish_call(&mut fed, ACCOUNT, 2);
        for session in &mut sessions {
            assert_eq!(number(session), 2);
        }
        let verified = fed.server.metric("auth_jwts_verified_total");
        assert_eq!(verified, good.len() as u64, "each is verified once");
    }
}

/// Tokens that no key, claim or clock makes good, as they are said in a command.
fn refused(made: &Made) -> BTreeMap<String, String> {
    let names = [
        "no kid",
        "unknown kid",
        "wrong key",
        "wrong kid",
        "none",
        "rs256 without a signature",
        "hs256 by the public key",
        "hs256 by the public key, pkcs1",
        "rs256 in name, hmac in truth",
        "ps256",
        "too long",
        "no account",
        "no account id",
        "no issuer",
        "another issuer",
        "expired",
        "a claim twice",
        "exp as text",
        "exp too large",
        "claims are no json",
        "critical header",
    ];
    let mut refused: BTreeMap<String, String> = names
        .iter()
        .map(|name| ((*name).to_owned(), made.token(name).to_owned()))
        .collect();
    let good = made.token("rs256");
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let mut more = |name: &str, token: String| drop(refused.insert(name.to_owned(), token));
    more("cut by one byte", good[..good.len() - 1].to_owned());
    more("cut in half", good[..good.len() / 2].to_owned());
    more("without its last part", signed.to_owned());
    more(
        "bad base64",
        format!("{signed}.{}", signature.replace(['-', '_', 'A'], "+")),
    );
    more("padded", format!("{good}=="));
    more("a bit flipped", format!("{}{signed}.{signature}", "x"));
    let of_16_kib = format!("{signed}.{}", "A".repeat((16 << 10) - signed.len() - 1));
    assert_eq!(of_16_kib.len(), 16 << 10);
    more("16 KiB", of_16_kib);
    // That of the same name becomes valid as the test runs.
    let later = made.sign(&json!({"later": {"nbf": unix_now() + 3600}}));
    more("not yet valid", later["later"].clone());
    refused
}

#[test]
fn a_jwt_that_does_not_hold_is_refused_and_the_session_goes_on() {
    let Some(made) = Made::as_of(unix_now()) else {
        return;
    };
    let auth = format!("jwt:{}", made.path("keys").display());
    let server = Server::start(&["--source", "demo", "--auth", &auth]);
    let mut session = server.client();
    let mut authenticated = Client::connect_as(server.address(), made.token("rs256"));
    let refused = refused(&made);
    for (name, token) in &refused {
        for session in [&mut session, &mut authenticated] {
            let told = session.subscribe(token, ACCOUNT, CALLS);
            assert_eq!(errors(&told), [FAILED], "{name}");
        }
        // A longer head than 8 KiB is refused unread.
        let expected = if token.len() < 8000 { 403 } else { 431 };
        assert_eq!(status_of_upgrade(&server, token), expected, "{name}");
    }
    assert_alive(&mut authenticated);
    let told = session.ask(&ping("no token yet"));
    assert_eq!(errors(&told), ["missing required keys : auth_token"]);
    session.must_subscribe(made.token("rs512"), ACCOUNT, CALLS);
    let metrics = server.metrics();
    let at_upgrades = refused.values().filter(|token| token.len() < 8000).count();
    assert_eq!(
        metrics["handshakes_refused_token_total"],
        at_upgrades as u64
    );
    let failed = 2 * refused.len() + at_upgrades;
    assert_eq!(metrics["authentications_failed_total"], failed as u64);
    assert_eq!(metrics["auth_jwts_verified_total"], 2);
    assert_eq!(metrics["closes_expired_total"], 0);
}

#[test]
fn a_session_is_closed_when_its_jwt_has_expired_and_the_leeway_is_over() {
    let Some(made) = Made::as_of(unix_now()) else {
        return;
    };
    let auth = format!("jwt:{}", made.path("spki.pem").display());
    let mut fed = Fed::start(&["--auth", &auth]);
    // Within the leeway of 30 s, of which these seconds are left.
    let exp = unix_now() - 24;
    let token = &made.sign(&json!({"t": {"exp": exp}}))["t"];
    let mut upgraded = Client::connect_as(fed.server.address(), token);
    let mut later = fed.server.client();
    let mut lasting = fed.server.client();
    lasting.must_subscribe(made.token("without exp"), ACCOUNT, CALLS);
    for session in [&mut upgraded, &mut later] {
        session.must_subscribe(token, ACCOUNT, CALLS);
    }
    publish_call(&mut fed, ACCOUNT, 1);
    for session in [&mut upgraded, &mut later, &mut lasting] {
        assert_eq!(number(session), 1);
    }
    for session in [&mut upgraded, &mut later] {
        assert_eq!(session.expect_close(), (4401, "token expired".to_owned()));
        let late = unix_now().checked_sub(exp + 30);
        assert!(late.is_some_and(|late| late <= 3), "{late:?}");
    }
    assert_eq!(newcomer(&fed.server, token, ACCOUNT), FAILED);
    assert_eq!(status_of_upgrade(&fed.server, token), 403);
    publish_call(&mut fed, ACCOUNT, 2);
    assert_eq!(number(&mut lasting), 2);
    fed.server.wait_for_metric("closes_expired_total", 2);
}

#[test]
fn a_key_that_is_replaced_ends_the_sessions_of_its_tokens() {
    let Some(made) = Made::as_of(unix_now()) else {
        return;
    };
    let keys = Scratch::file("key.pem", &made.text("pkcs1.pem"));
    let tokens = TokenFile::new(&json!({"of-the-file": {"account_id": ACCOUNT}}));
    let auth = format!("jwt:{}", keys.path().display());
    let mut fed = Fed::start(&["--auth", &auth, "--auth", &tokens.option()]);
    let (old, new) = (made.token("rs256"), made.token("of the other key"));
    let mut of_old = fed.server.client();
    of_old.must_subscribe(old, ACCOUNT, CALLS);
    let mut of_file = fed.server.client();
    of_file.must_subscribe("of-the-file", ACCOUNT, CALLS);
    assert_eq!(newcomer(&fed.server, new, ACCOUNT), FAILED);

    // What is no key changes nothing.
    keys.write("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n");
    fed.server.signal(Signal::HUP);
    let line = fed.server.wait_for_log("not reread");
    assert!(line.contains("key.pem"), "{line}");
    publish_call(&mut fed, ACCOUNT, 1);
    assert_eq!(
        (number(&mut of_old), number(&mut of_file)),
        (1.into(), 1.into())
    );

    // The same key in another form is the same key.
    keys.write(&made.text("spki.pem"));
    reread(&fed.server, 2);
    publish_call(&mut fed, ACCOUNT, 2);
    assert_eq!(
        (number(&mut of_old), number(&mut of_file)),
        (2.into(), 2.into())
    );

    keys.write(&made.text("keys/other.pem"));
    reread(&fed.server, 3);
    publish_call(&mut fed, ACCOUNT, 3);
    assert_eq!(of_old.expect_close().0, 4401, "and it sees no event");
    assert_eq!(number(&mut of_file), 3);
    assert_eq!(newcomer(&fed.server, old, ACCOUNT), FAILED);
    assert_eq!(newcomer(&fed.server, new, ACCOUNT), "ok");
    fed.server.wait_for_metric("closes_expired_total", 1);
}

#[test]
fn a_key_that_is_not_there_is_fetched_once_with_the_service_token() {
    let Some(made) = Made::as_of(unix_now()) else {
        return;
    };
    let api = PlatformApi::start();
    api.set_key("system", &made.text("pkcs1.pem"));
    api.set_delay(Duration::from_millis(200));
    let folder = tempfile::tempdir().unwrap();
    fs::copy(made.path("keys/other.pem"), folder.path().join("other.pem")).unwrap();
    let jwt = format!("jwt:{}", folder.path().display());
    let crossbar = format!("crossbar:{}", api.url());
    let args = [
        "--auth",
        &jwt,
        "--auth",
        &crossbar,
        "--crossbar-token",
        SERVICE_TOKEN,
    ];
    let server = Server::start(&[&["--source", "demo"], &args[..]].concat());
    let wanted = |number: u64| (number.to_string(), json!({"jti": number.to_string()}));
    let tokens = made.sign(&(0..40).map(wanted).collect());
    let mut sessions: Vec<Client> = tokens.values().map(|_| server.client()).collect();
    for (session, token) in sessions.iter_mut().zip(tokens.values()) {
        session.send(&subscribe(token, ACCOUNT, CALLS));
    }
    for session in &mut sessions {
        assert_eq!(verdict(&session.reply()), "ok");
    }
    assert_eq!(api.questions_for_key("system"), 1);
    assert_eq!(
        newcomer(&server, made.token("of the other key"), ACCOUNT),
        "ok"
    );
    for _ in 0..3 {
        assert_eq!(
            newcomer(&server, made.token("unknown kid"), ACCOUNT),
            FAILED
        );
        assert_eq!(newcomer(&server, made.token("wrong key"), ACCOUNT), FAILED);
    }
    assert_eq!(api.questions_for_key("unknown"), 1);
    assert_eq!(api.questions(), 2, "nothing else is asked");

    // It outlives a reread.
    reread(&server, 1);
    for session in &mut sessions {
        assert_alive(session);
    }
    assert_eq!(newcomer(&server, made.token("rs384"), ACCOUNT), "ok");
    assert_eq!(api.questions_for_key("system"), 1);
}
