//! Who may do what (PROTOCOL 3, 4 and 7) on the whole server: the real program, its threads and its sockets, tokens that
//! PyJWT made, and a REST API that is a real HTTP server.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Signal, getrlimit};
use serde_json::{Value, json};
use support::client::{Client, Raw, errors, ping, ping_as, subscribe, success, upgrade_with};
use support::events::{
    ACCOUNT, OTHER_ACCOUNT, PARENT_ACCOUNT, call_event, events_until_marker, subscribe_to_marker,
};
use support::left_out::leave_out;
use support::platform_api::{Account, After, HttpServer, PlatformApi, SERVICE_TOKEN, answer};
use support::server::{Fed, Scratch, Server, TokenFile, run_to_end, unix_now, wait_for};
use support::tls::plain_only;
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
        let verified = fed
            .server
            .metric(r#"auth_questions_total{kind="jwt",outcome="yes"}"#);
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
    assert_eq!(errors(&told), ["authentication token required"]);
    session.must_subscribe(made.token("rs512"), ACCOUNT, CALLS);
    let metrics = server.metrics();
    let at_upgrades = refused.values().filter(|token| token.len() < 8000).count();
    assert_eq!(
        metrics[r#"handshakes_refused_total{reason="token"}"#],
        at_upgrades as u64
    );
    let failed = 2 * refused.len() + at_upgrades;
    assert_eq!(metrics["authentications_failed_total"], failed as u64);
    assert_eq!(
        metrics[r#"auth_questions_total{kind="jwt",outcome="yes"}"#],
        2
    );
    assert_eq!(metrics[r#"closes_total{reason="expired"}"#], 0);
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
    fed.server
        .wait_for_metric(r#"closes_total{reason="expired"}"#, 2);
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
    fed.server
        .wait_for_metric(r#"closes_total{reason="expired"}"#, 1);
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

/// A server whose tokens the platform decides on, fed with events by the test.
fn decided_by(api: &PlatformApi, args: &[&str]) -> Fed {
    let crossbar = format!("crossbar:{}", api.url());
    Fed::start(&[&["--auth", &crossbar], args].concat())
}

/// A good answer about [`ACCOUNT`].
fn body() -> String {
    json!({"status": "success", "data": {"id": ACCOUNT, "realm": "a.example"}}).to_string()
}

/// What the platform does with a token that says so.
fn act(token: &str, elsewhere: &str, socket: &mut TcpStream) -> io::Result<After> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let (body, end) = (body(), "\r\n\r\n");
    match token {
        "good" => return answer(socket, 200, &body),
        "garbage" => socket.write_all(&[0xff; 5000])?,
        "not-json" => return answer(socket, 200, "<html>welcome</html>"),
        "of-another" => return answer(socket, 200, &body.replace(ACCOUNT, OTHER_ACCOUNT)),
        "half" => {
            let (length, half) = (body.len(), &body[..body.len() / 2]);
            write!(socket, "{head}content-length: {length}{end}{half}")?;
        }
        "silence" => {
            let _closed = socket.read(&mut [0]);
        }
        "drip" => {
            write!(socket, "{head}content-length: 1000000{end}")?;
            loop {
                socket.write_all(b" ")?;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        "reset" => return Ok(After::Reset),
        "redirect" => {
            write!(
                socket,
                "HTTP/1.1 302 Found\r\nlocation: {elsewhere}\r\ncontent-length: 0{end}"
            )?;
            return Ok(After::Keep);
        }
        "large" => {
            write!(socket, "{head}content-length: 100000000{end}")?;
            for _ in 0..1000 {
                socket.write_all(&[b' '; 100_000])?;
            }
        }
        status => return answer(socket, status.parse().unwrap(), "{}"),
    }
    Ok(After::Close)
}

#[test]
fn each_answer_of_the_platform_has_its_error_and_trouble_is_never_a_yes() {
    let elsewhere = HttpServer::start(|_, socket| answer(socket, 200, &body()));
    let location = format!("http://{}/v2/accounts/{ACCOUNT}", elsewhere.address());
    let api = HttpServer::start(move |request, socket| act(request.token(), &location, socket));
    let crossbar = format!("crossbar:http://{}/v2", api.address());
    let args = ["--auth", &crossbar, "--crossbar-timeout-ms", "700"];
    let server = Server::start(&[&["--source", "demo"], &args[..]].concat());
    let rows = [
        ("good", "ok"),
        ("401", FAILED),
        ("403", UNAUTHORIZED),
        ("404", UNAUTHORIZED),
        ("201", UNAVAILABLE),
        ("429", UNAVAILABLE),
        ("500", UNAVAILABLE),
        ("503", UNAVAILABLE),
        ("garbage", UNAVAILABLE),
        ("not-json", UNAVAILABLE),
        ("of-another", UNAVAILABLE),
        ("half", UNAVAILABLE),
        ("silence", UNAVAILABLE),
        ("drip", UNAVAILABLE),
        ("reset", UNAVAILABLE),
        ("redirect", UNAVAILABLE),
        ("large", UNAVAILABLE),
    ];
    let mut session = server.client();
    session.must_subscribe("good", ACCOUNT, CALLS);
    let asked = Instant::now();
    let mut askers: Vec<Client> = rows.iter().map(|_| server.client()).collect();
    for (asker, (token, _)) in askers.iter_mut().zip(rows) {
        asker.send(&subscribe(token, ACCOUNT, CALLS));
    }
    for (asker, (token, expected)) in askers.iter_mut().zip(rows) {
        assert_eq!(verdict(&asker.reply()), expected, "{token}");
    }
    assert!(
        asked.elapsed() < Duration::from_secs(6),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(elsewhere.requests(), 0, "no redirect is followed");
    for (asker, (_, expected)) in askers.iter_mut().zip(rows) {
        let told = asker.ask(&ping("no token yet"));
        if expected != "ok" {
            assert_eq!(errors(&told), ["authentication token required"]);
        }
        // A session that gave up goes on with a token that is good.
        asker.must_subscribe("good", ACCOUNT, CALLS);
    }
    // A session that has a good token keeps what it has when another is no good.
    for (token, expected) in [("401", FAILED), ("500", UNAVAILABLE)] {
        let told = session.subscribe(token, ACCOUNT, DIALOGS);
        assert_eq!(errors(&told), [expected]);
    }
    assert_alive(&mut session);
}

#[test]
fn hundreds_of_equal_questions_are_asked_once() {
    let api = PlatformApi::start();
    api.allow("shared", ACCOUNT, "a.example");
    api.set_delay(Duration::from_millis(500));
    let mut fed = decided_by(&api, &[]);
    let mut sessions: Vec<Client> = (0..300).map(|_| fed.server.client()).collect();
    for session in &mut sessions {
        session.send(&subscribe("shared", ACCOUNT, CALLS));
    }
    for session in &mut sessions {
        assert_eq!(verdict(&session.reply()), "ok");
    }
    assert_eq!(api.questions(), 1);
    publish_call(&mut fed, ACCOUNT, 1);
    for session in &mut sessions {
        assert_eq!(number(session), 1);
    }
    // So are those whose answer is no.
    for session in &mut sessions {
        session.send(&subscribe("unknown", ACCOUNT, CALLS));
    }
    for session in &mut sessions {
        assert_eq!(verdict(&session.reply()), FAILED);
    }
    assert_eq!(api.questions(), 2);
}

#[test]
fn a_flood_of_questions_is_bounded_and_another_address_is_served_in_its_turn() {
    const FLOODERS: u64 = 30;
    let api = PlatformApi::start();
    let token = |number: u64| format!("flood-{number}");
    for number in 0..FLOODERS {
        api.allow(&token(number), ACCOUNT, "a.example");
    }
    api.allow("honest", ACCOUNT, "a.example");
    let mut fed = decided_by(&api, &["--request-timeout-ms", "30000"]);
    let server = &fed.server;
    let mut flooders: Vec<Client> = (0..FLOODERS).map(|_| server.client()).collect();
    for (number, flooder) in (0..).zip(&mut flooders) {
        flooder.must_subscribe(&token(number), ACCOUNT, CALLS);
    }
    // 80 answers a second for some 3,000 questions.
    api.set_delay(Duration::from_millis(100));
    for (number, flooder) in (0..).zip(&mut flooders) {
        for other in 1..99 {
            flooder.send(&subscribe(&token(number), &account(other), CALLS));
        }
    }
    server.until("a flood that is too much", |server| {
        server.metric("auth_questions_refused_total") > 0
    });
    let questions = server.metric("auth_questions");
    assert!(questions <= 2200, "{questions} of one address");
    assert_eq!(newcomer(server, "newcomer", ACCOUNT), UNAVAILABLE);

    let asked = Instant::now();
    let mut honest = Raw::connect_from([127, 0, 0, 2], server.address());
    honest.send(upgrade_with(&[]).as_bytes());
    assert_eq!(honest.head().status, 101);
    honest.send_text(&subscribe("honest", ACCOUNT, CALLS).to_string());
    assert_eq!(verdict(&honest.json()), "ok");
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");

    publish_call(&mut fed, ACCOUNT, 1);
    assert_eq!(honest.json()["args"]["Number"], 1);
    for flooder in &mut flooders {
        assert_eq!(
            number(flooder),
            1,
            "those who asked too much have what they had"
        );
    }
    let unavailable = fed.server.metric(r#"commands_total{result="unavailable"}"#);
    assert!(unavailable >= 1, "{unavailable}");
}

#[test]
fn thousands_of_different_tokens_are_bounded_and_another_address_is_served_in_its_turn() {
    if plain_only(&"the handshakes of so many take longer than their answers") {
        return;
    }
    // One question of a session at a time, so it takes a connection for each.
    const TOKENS: usize = 2400;
    let descriptors = getrlimit(Resource::Nofile).current;
    if descriptors.is_some_and(|most| most < 2 * TOKENS as u64) {
        leave_out(&"fewer descriptors than it takes: ulimit -n");
        return;
    }
    let api = PlatformApi::start();
    api.allow("honest", ACCOUNT, "a.example");
    api.set_delay(Duration::from_millis(100));
    let fed = decided_by(&api, &["--request-timeout-ms", "3000"]);
    let server = &fed.server;
    let mut flooders: Vec<Raw> = (0..TOKENS)
        .map(|number| {
            let mut raw = Raw::upgraded(server.address());
            raw.send_text(&subscribe(&format!("flood-{number}"), ACCOUNT, CALLS).to_string());
            raw
        })
        .collect();
    server.until("a flood that is too much", |server| {
        server.metric("auth_questions_refused_total") > 0
    });
    let asked = Instant::now();
    let mut honest = Raw::connect_from([127, 0, 0, 2], server.address());
    honest.send(upgrade_with(&[]).as_bytes());
    assert_eq!(honest.head().status, 101);
    honest.send_text(&subscribe("honest", ACCOUNT, CALLS).to_string());
    assert_eq!(verdict(&honest.json()), "ok");
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    // All are answered within their time: by the platform, or that it cannot be told.
    let mut told = BTreeMap::<String, usize>::new();
    for flooder in &mut flooders {
        *told.entry(verdict(&flooder.json())).or_default() += 1;
    }
    assert_eq!(told.values().sum::<usize>(), TOKENS);
    assert_eq!(told.keys().collect::<Vec<_>>(), [UNAVAILABLE, FAILED]);
    assert!(told[UNAVAILABLE] > TOKENS / 2, "{told:?}");
    // What nobody waits for any more is let go of as its turn comes; the server goes on.
    honest.send_text(&ping("alive").to_string());
    assert_eq!(honest.json()["data"]["response"], "pong");
}

/// Questions that found nobody to answer them.
fn unanswered(server: &Server) -> u64 {
    let metrics = server.metrics();
    let causes = ["timeout", "connect", "status", "body", "tls", "late"].into_iter();
    let of = |cause| metrics[&format!(r#"auth_questions_total{{outcome="{cause}"}}"#)];
    causes.map(of).sum()
}

/// Answers are good for two seconds.
const SHORT: [&str; 4] = ["--crossbar-yes-seconds", "2", "--crossbar-no-seconds", "1"];

#[test]
fn sessions_outlive_a_platform_that_is_gone_and_no_newcomer_gets_a_yes() {
    let mut api = PlatformApi::start();
    api.allow("here", ACCOUNT, "a.example");
    api.allow("later", ACCOUNT, "a.example");
    let mut fed = decided_by(&api, &SHORT);
    let mut sessions: Vec<Client> = (0..20).map(|_| fed.server.client()).collect();
    for session in &mut sessions {
        session.must_subscribe("here", ACCOUNT, CALLS);
    }
    fed.server
        .until("the platform is asked again", |_| api.questions() > 1);
    api.stop();
    assert_eq!(newcomer(&fed.server, "later", ACCOUNT), UNAVAILABLE);
    // The yes that is known serves newcomers until its time is over, and not a moment longer.
    let gone = Instant::now();
    wait_for("no yes for a newcomer", || {
        (newcomer(&fed.server, "here", ACCOUNT) == UNAVAILABLE).then_some(())
    });
    assert!(
        gone.elapsed() < Duration::from_secs(4),
        "{:?}",
        gone.elapsed()
    );
    for round in 1..=4 {
        let troubles = unanswered(&fed.server);
        fed.server.until("it is asked again and again", |server| {
            unanswered(server) > troubles
        });
        for token in ["here", "later", "never"] {
            assert_eq!(
                newcomer(&fed.server, token, ACCOUNT),
                UNAVAILABLE,
                "{token}"
            );
        }
        publish_call(&mut fed, ACCOUNT, round);
        for session in &mut sessions {
            assert_eq!(number(session), round);
            assert_alive(session);
        }
    }
    api.start_again();
    for (token, expected) in [("here", "ok"), ("later", "ok"), ("never", FAILED)] {
        wait_for("an answer of the platform that is back", || {
            let told = newcomer(&fed.server, token, ACCOUNT);
            assert!(told == expected || told == UNAVAILABLE, "{token}: {told}");
            (told == expected).then_some(())
        });
    }
    publish_call(&mut fed, ACCOUNT, 9);
    for session in &mut sessions {
        assert_eq!(number(session), 9);
    }
    let metrics = fed.server.metrics();
    assert_eq!(
        metrics[r#"closes_total{reason="expired"}"#] + metrics["subscriptions_ended_total"],
        0
    );
}

#[test]
fn a_right_that_the_platform_takes_away_ends_and_a_token_that_it_refuses_closes() {
    let api = PlatformApi::start();
    for account in [ACCOUNT, OTHER_ACCOUNT] {
        api.allow("user", account, "a.example");
        api.allow("neighbour", account, "a.example");
    }
    let mut fed = decided_by(&api, &SHORT);
    let mut sessions: Vec<Client> = (0..3).map(|_| fed.server.client()).collect();
    let mut neighbour = fed.server.client();
    for session in &mut sessions {
        subscribe_to_marker(session, "user", ACCOUNT);
        session.must_subscribe("user", OTHER_ACCOUNT, CALLS);
    }
    neighbour.must_subscribe("neighbour", OTHER_ACCOUNT, CALLS);
    for (status, round) in [(403, 1), (404, 2)] {
        publish_call(&mut fed, OTHER_ACCOUNT, round);
        for session in sessions.iter_mut().chain([&mut neighbour]) {
            assert_eq!(number(session), round);
        }
        api.set("user", OTHER_ACCOUNT, Account::Status(status));
        let withdrawn = Instant::now();
        for session in &mut sessions {
            assert_eq!(ended(session), ("rights".to_owned(), json!([CALLS])));
        }
        // The time of a yes, and some for a slow machine.
        let took = withdrawn.elapsed();
        assert!(took < Duration::from_secs(4), "{took:?}");
        publish_call(&mut fed, OTHER_ACCOUNT, 7);
        for session in &mut sessions {
            assert_eq!(
                events_until_marker(&mut fed, ACCOUNT, session),
                [json!(null); 0]
            );
            let told = session.subscribe("user", OTHER_ACCOUNT, CALLS);
            assert_eq!(errors(&told), [UNAUTHORIZED], "{status}");
        }
        assert_eq!(number(&mut neighbour), 7);
        // What was given back is there when the no is over.
        api.allow("user", OTHER_ACCOUNT, "a.example");
        for session in &mut sessions {
            wait_for("the right again", || {
                let told = session.subscribe("user", OTHER_ACCOUNT, CALLS);
                (told["status"] == "success").then_some(())
            });
            while session.next_or_pong()["action"] != "reply" {}
        }
    }
    api.forget("user");
    let refused = Instant::now();
    for session in &mut sessions {
        let (_, code, _) = session.read_to_close();
        assert_eq!(code, 4401);
    }
    let took = refused.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(newcomer(&fed.server, "user", ACCOUNT), FAILED);
    publish_call(&mut fed, OTHER_ACCOUNT, 8);
    assert_eq!(number(&mut neighbour), 8);
}

#[test]
fn presence_goes_by_the_realm_that_the_platform_tells() {
    let api = PlatformApi::start();
    api.allow("user", ACCOUNT, "one.example");
    let no_realm = Account::Yes {
        realm: None,
        superduper: false,
    };
    api.set("none", ACCOUNT, no_realm);
    let mut fed = decided_by(&api, &SHORT);
    let mut session = fed.server.client();
    session.must_subscribe("user", ACCOUNT, DIALOGS);
    let told = fed.server.client().subscribe("none", ACCOUNT, DIALOGS);
    assert_eq!(
        errors(&told),
        ["no available subscriptions to requested binding"]
    );
    publish_dialog(&mut fed, "two.example", 1);
    publish_dialog(&mut fed, "one.example", 2);
    assert_eq!(number(&mut session), 2);
    // The account gets another realm: its presence goes on in that one.
    api.allow("user", ACCOUNT, "two.example");
    fed.server.wait_for_metric("subscriptions_moved_total", 1);
    assert_eq!(session.notice()["name"], "gap");
    publish_dialog(&mut fed, "one.example", 3);
    publish_dialog(&mut fed, "two.example", 4);
    assert_eq!(number(&mut session), 4);
}

#[test]
fn superduper_admin_counts_only_in_the_answer_about_the_own_account() {
    let yes = |superduper| Account::Yes {
        realm: None,
        superduper,
    };
    let api = PlatformApi::start();
    api.set("admin", ACCOUNT, yes(true));
    api.set_others("admin", yes(false));
    api.set("user", ACCOUNT, yes(false));
    api.set("user", OTHER_ACCOUNT, yes(true));
    let mut fed = decided_by(&api, &SHORT);
    let (mut admin, mut user) = (fed.server.client(), fed.server.client());
    // Before an account is authorised it is none's.
    let all = |token| subscribe(token, "*", CALLS);
    assert_ne!(admin.ask(&all("admin"))["status"], "success");
    admin.must_subscribe("admin", ACCOUNT, CALLS);
    user.must_subscribe("user", ACCOUNT, CALLS);
    user.must_subscribe("user", OTHER_ACCOUNT, CALLS);
    assert_eq!(
        errors(&user.ask(&all("user"))),
        ["unauthorized wildcard account id"]
    );
    assert_eq!(verdict(&admin.ask(&all("admin"))), "ok");
    subscribe_to_marker(&mut user, "user", ACCOUNT);
    publish_call(&mut fed, PARENT_ACCOUNT, 1);
    assert_eq!(number(&mut admin), 1);
    assert_eq!(
        events_until_marker(&mut fed, ACCOUNT, &mut user),
        [json!(null); 0]
    );
    // What it was by that right ends with it.
    api.set("admin", ACCOUNT, yes(false));
    assert_eq!(ended(&mut admin).0, "rights");
    publish_call(&mut fed, PARENT_ACCOUNT, 2);
    publish_call(&mut fed, ACCOUNT, 3);
    assert_eq!(number(&mut admin), 3);
}

const CHILD: &str = "c0000000000000000000000000000001";
const GRANDCHILD: &str = "c0000000000000000000000000000002";
const SIBLING: &str = "c0000000000000000000000000000003";

/// A tree in which [`CHILD`] is below `parent`.
fn tree(parent: &str) -> String {
    json!({
        ACCOUNT: {"parent": PARENT_ACCOUNT, "realm": "own.example"},
        PARENT_ACCOUNT: {},
        CHILD: {"parent": parent, "realm": "child.example"},
        GRANDCHILD: {"parent": CHILD, "realm": "grandchild.example"},
        SIBLING: {"parent": PARENT_ACCOUNT},
    })
    .to_string()
}

#[test]
fn each_token_goes_to_the_kind_that_it_has_the_shape_of() {
    let Some(made) = Made::as_of(unix_now()) else {
        return;
    };
    let api = PlatformApi::start();
    api.allow("of-the-platform", OTHER_ACCOUNT, "other.example");
    // A token of the file that the platform knows too, for another account.
    api.allow("of-the-file", CHILD, "child.example");
    let (jwt, forged) = (made.token("rs256"), made.token("wrong key"));
    for jwt in [jwt, forged] {
        api.allow(jwt, CHILD, "child.example");
        api.set(jwt, ACCOUNT, Account::Status(403));
    }
    let tokens = TokenFile::new(&json!({"of-the-file": {"account_id": PARENT_ACCOUNT}}));
    let (file, crossbar) = (tokens.option(), format!("crossbar:{}", api.url()));
    let keys = format!("jwt:{}", made.path("spki.pem").display());
    let kinds = [&*file, &keys, &crossbar].map(|kind| ["--auth", kind]);
    let mut fed = Fed::start(kinds.as_flattened());
    let rows = [
        // What a token itself gives is not asked for.
        ("of-the-file", PARENT_ACCOUNT, "ok", 0),
        (jwt, ACCOUNT, "ok", 0),
        (forged, ACCOUNT, FAILED, 0),
        (forged, CHILD, FAILED, 0),
        // Without a tree the platform is asked for more.
        ("of-the-file", CHILD, "ok", 1),
        (jwt, CHILD, "ok", 1),
        ("of-the-file", SIBLING, UNAUTHORIZED, 1),
        (jwt, SIBLING, UNAUTHORIZED, 1),
        // All else is the platform's.
        ("of-the-platform", OTHER_ACCOUNT, "ok", 1),
        ("of-the-platform", ACCOUNT, UNAUTHORIZED, 1),
        ("nobody's", ACCOUNT, FAILED, 1),
    ];
    let mut sessions = Vec::new();
    for (token, account, expected, questions) in rows {
        let before = api.questions();
        let mut session = fed.server.client();
        let told = session.subscribe(token, account, CALLS);
        assert_eq!(verdict(&told), expected, "{token} {account}");
        assert_eq!(api.questions() - before, questions, "{token} {account}");
        if expected == "ok" {
            sessions.push((session, account));
        }
    }
    let mut three = fed.server.client();
    for (token, account) in [
        ("of-the-file", PARENT_ACCOUNT),
        (jwt, ACCOUNT),
        ("of-the-platform", OTHER_ACCOUNT),
    ] {
        // One session after another identity: what it had ends, as it is told.
        three.must_subscribe(token, account, CALLS);
    }
    assert_eq!([ended(&mut three).0, ended(&mut three).0], ["identity"; 2]);
    let accounts = [ACCOUNT, OTHER_ACCOUNT, PARENT_ACCOUNT, CHILD, SIBLING];
    for (at, account) in accounts.into_iter().enumerate() {
        publish_call(&mut fed, account, at);
    }
    for (session, account) in &mut sessions {
        let at = accounts.iter().position(|one| one == account);
        assert_eq!(number(session), json!(at));
        assert_alive(session);
    }
    assert_eq!(number(&mut three), 1);
}

#[test]
fn a_parent_sees_what_is_below_it_in_the_tree_and_a_moved_child_goes() {
    let file = Scratch::file("accounts.json", &tree(ACCOUNT));
    let accounts = file.path().to_str().unwrap().to_owned();
    let tokens = json!({
        "parent": {"account_id": ACCOUNT}, "child": {"account_id": CHILD},
        "sibling": {"account_id": SIBLING}, "listed": {"account_id": SIBLING, "descendants": [CHILD]},
    });
    let tokens = TokenFile::new(&tokens);
    let auth = tokens.option();
    let mut fed = Fed::start(&["--auth", &auth, "--accounts", &accounts]);
    let session = |token: &str, account: &str| {
        let mut session = fed.server.client();
        for below in [account, CHILD, GRANDCHILD, SIBLING, PARENT_ACCOUNT] {
            let told = session.subscribe(token, below, CALLS);
            let sees = match token {
                "parent" => [ACCOUNT, CHILD, GRANDCHILD].contains(&below),
                "child" => [CHILD, GRANDCHILD].contains(&below),
                "sibling" => below == SIBLING,
                _ => [SIBLING, CHILD].contains(&below),
            };
            let expected = if sees { "ok" } else { UNAUTHORIZED };
            assert_eq!(verdict(&told), expected, "{token} {below}");
        }
        session
    };
    let mut parent = session("parent", ACCOUNT);
    let mut child = session("child", CHILD);
    let mut sibling = session("sibling", SIBLING);
    let mut listed = session("listed", SIBLING);
    parent.must_subscribe("parent", CHILD, DIALOGS);
    let all = [ACCOUNT, CHILD, GRANDCHILD, SIBLING, PARENT_ACCOUNT];
    let publish_all = |fed: &mut Fed| {
        for (at, account) in all.into_iter().enumerate() {
            publish_call(fed, account, at);
        }
        publish_dialog(fed, "child.example", 7);
    };
    publish_all(&mut fed);
    fn sees(session: &mut Client, expected: &[usize]) {
        for at in expected {
            assert_eq!(number(session), *at);
        }
        assert_alive(session);
        assert_eq!(session.next_or_pong()["action"], "reply", "and no more");
    }
    sees(&mut parent, &[0, 1, 2, 7]);
    sees(&mut child, &[1, 2]);
    sees(&mut sibling, &[3]);
    sees(&mut listed, &[1, 3]);

    // Trees that are none change nothing, and are told with the line.
    let two = |one: &str, other: &str| {
        format!(
            "{{\n  \"{CHILD}\": {{\"parent\": \"{one}\"}},\n  \"{GRANDCHILD}\": {{\"parent\": \"{other}\"}}\n}}"
        )
    };
    let wrong = [two(GRANDCHILD, CHILD), two(OTHER_ACCOUNT, CHILD)];
    for (rereads, wrong) in (1..).zip(&wrong) {
        file.write(wrong);
        reread(&fed.server, rereads);
    }
    for cause in ["a cycle", "is not in the file"] {
        let told = fed.server.wait_for_log(cause);
        assert!(told.contains("not reread"), "{told}");
        assert!(told.contains("accounts.json: line 2: "), "{told}");
    }
    publish_all(&mut fed);
    sees(&mut parent, &[0, 1, 2, 7]);
    sees(&mut child, &[1, 2]);
    sees(&mut sibling, &[3]);
    sees(&mut listed, &[1, 3]);

    // The child, and what is below it, goes to the sibling.
    file.write(&tree(SIBLING));
    reread(&fed.server, 3);
    let (reason, mut bindings) = ended(&mut parent);
    bindings
        .as_array_mut()
        .unwrap()
        .sort_by_key(Value::to_string);
    assert_eq!(
        (&*reason, bindings),
        ("rights", json!([CALLS, CALLS, DIALOGS]))
    );
    publish_all(&mut fed);
    sees(&mut parent, &[0]);
    sees(&mut child, &[1, 2]);
    sees(&mut listed, &[1, 3]);
    sees(&mut sibling, &[3]);
    assert_eq!(
        errors(&parent.subscribe("parent", CHILD, CALLS)),
        [UNAUTHORIZED]
    );
    sibling.must_subscribe("sibling", GRANDCHILD, CALLS);
    publish_all(&mut fed);
    sees(&mut sibling, &[2, 3]);

    // At the start they are refused.
    for wrong in &wrong {
        file.write(wrong);
        let output = run_to_end(&["--source", "demo", "--auth", &auth, "--accounts", &accounts]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains("accounts.json: line 2: "), "{told}");
    }
}

#[test]
fn a_right_from_the_platform_is_still_asked_for_after_the_tokens_were_reread() {
    let api = PlatformApi::start();
    api.allow("of-the-file", CHILD, "child.example");
    let tokens = TokenFile::new(&json!({"of-the-file": {"account_id": ACCOUNT}}));
    let (file, crossbar) = (tokens.option(), format!("crossbar:{}", api.url()));
    let args = ["--auth", &file, "--auth", &crossbar];
    let mut fed = Fed::start(&[&args, &SHORT[..]].concat());
    let mut session = fed.server.client();
    session.must_subscribe("of-the-file", CHILD, CALLS);
    for rereads in 1..=2 {
        // Another account gets a realm: nothing that concerns this token.
        let realm = format!("{rereads}.example");
        let other = json!({"account_id": OTHER_ACCOUNT, "realm": realm});
        let own = json!({"account_id": ACCOUNT});
        tokens.write(&json!({"of-the-file": own, "another": other}).to_string());
        reread(&fed.server, rereads);
    }
    let asked = api.questions();
    fed.server.until("it is asked again, and again", |_| {
        api.questions() >= asked + 3
    });
    publish_call(&mut fed, CHILD, 1);
    assert_eq!(number(&mut session), 1);
    api.set("of-the-file", CHILD, Account::Status(403));
    assert_eq!(ended(&mut session), ("rights".to_owned(), json!([CALLS])));
    publish_call(&mut fed, CHILD, 2);
    assert_alive(&mut session);
    assert_eq!(session.next_or_pong()["action"], "reply", "and no event");
    // Of what no session has nobody is asked any more.
    api.allow("of-the-file", CHILD, "child.example");
    wait_for("the right again", || {
        let told = session.subscribe("of-the-file", CHILD, CALLS);
        (told["status"] == "success").then_some(())
    });
    session.close();
    fed.server.wait_for_metric("auth_grants", 0);
}

#[test]
fn with_a_tree_the_platform_is_asked_about_its_own_tokens_only() {
    let Some(made) = Made::as_of(unix_now()) else {
        return;
    };
    let jwt = made.token("rs256");
    let api = PlatformApi::start();
    api.set_others(jwt, Account::Status(500));
    api.allow("of-the-platform", ACCOUNT, "told.example");
    let file = Scratch::file("accounts.json", &tree(ACCOUNT));
    let keys = format!("jwt:{}", made.path("spki.pem").display());
    let crossbar = format!("crossbar:{}", api.url());
    let accounts = file.path().to_str().unwrap();
    let mut fed = Fed::start(&["--auth", &keys, "--auth", &crossbar, "--accounts", accounts]);
    let (mut verified, mut asked) = (fed.server.client(), fed.server.client());
    for (account, expected) in [
        (ACCOUNT, "ok"),
        (CHILD, "ok"),
        (GRANDCHILD, "ok"),
        (SIBLING, UNAUTHORIZED),
        (OTHER_ACCOUNT, UNAUTHORIZED),
    ] {
        let told = verified.subscribe(jwt, account, CALLS);
        assert_eq!(verdict(&told), expected, "{account}");
    }
    verified.must_subscribe(jwt, ACCOUNT, DIALOGS);
    assert_eq!(api.questions(), 0);
    for (account, expected) in [(ACCOUNT, "ok"), (CHILD, UNAUTHORIZED)] {
        let told = asked.subscribe("of-the-platform", account, CALLS);
        assert_eq!(verdict(&told), expected, "{account}");
    }
    asked.must_subscribe("of-the-platform", ACCOUNT, DIALOGS);
    assert_eq!(api.questions(), 2);
    publish_dialog(&mut fed, "told.example", 1);
    publish_dialog(&mut fed, "own.example", 2);
    publish_call(&mut fed, GRANDCHILD, 3);
    publish_call(&mut fed, ACCOUNT, 4);
    assert_eq!([2, 3, 4].map(|_| number(&mut verified)), [2, 3, 4]);
    assert_eq!([1, 4].map(|_| number(&mut asked)), [1, 4]);
}

#[test]
fn no_part_of_a_token_is_in_the_log_or_on_a_page() {
    let Some(made) = Made::as_of(unix_now()) else {
        return;
    };
    let mut api = PlatformApi::start();
    api.allow("Zp4of-the-platform9Qx", ACCOUNT, "a.example");
    api.set("Zp4in-trouble-there9Qx", ACCOUNT, Account::Status(500));
    api.set("Zp4forbidden-there9Qx", ACCOUNT, Account::Status(403));
    let keys = format!("jwt:{}", made.path("keys").display());
    let crossbar = format!("crossbar:{}", api.url());
    let mut args = vec!["--source", "demo", "--log-level", "debug"];
    args.extend(["--auth", &keys, "--auth", &crossbar]);
    args.extend(["--crossbar-token", SERVICE_TOKEN]);
    args.extend(SHORT);
    let mut server = Server::start(&args);
    let mut said: Vec<String> = refused(&made).into_values().collect();
    said.extend(["rs256", "rs384", "of the other key"].map(|name| made.token(name).to_owned()));
    let words = [
        "of-the-platform",
        "in-trouble-there",
        "forbidden-there",
        "unknown-there",
    ];
    said.extend(words.map(|word| format!("Zp4{word}9Qx")));
    let mut session = server.client();
    let mut say_all = |server: &Server| {
        for token in &said {
            let _verdict = newcomer(server, token, ACCOUNT);
            let _status = status_of_upgrade(server, token);
        }
        session.ask(&ping_as(&said[0], "1"));
    };
    say_all(&server);
    api.stop();
    wait_for("trouble", || {
        (newcomer(&server, "Zp4another9Qx", ACCOUNT) == UNAVAILABLE).then_some(())
    });
    say_all(&server);
    reread(&server, 1);
    let pages = ["/metrics", "/healthz", "/readyz"].map(|page| server.page(page).1);
    server.stop();
    let heard = [server.log(), pages.concat()].concat();
    assert!(heard.contains("crossbar"), "trouble is told: {heard}");
    said.push(SERVICE_TOKEN.to_owned());
    for token in &said {
        // Of a JWT the header and the names of claims are no secret, but nothing of them is told either.
        for piece in token.as_bytes().windows(12).step_by(4) {
            let piece = str::from_utf8(piece).unwrap();
            assert!(!heard.contains(piece), "{piece} of {token}: {heard}");
        }
    }
}
