//! The threads that ask the platform's REST API, and their HTTP client, against a real HTTP server.

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::iter;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use blackhole::account::AccountId;
use blackhole::auth::jwt::{self, KeyText, Keys};
use blackhole::auth::{AccountAnswer, Answer, KeyAnswer, Lane, Question};
use blackhole::handoff::LoopWaker;
use blackhole::inquiry::{
    Answering, Authorities, Crossbar, CrossbarError, CrossbarOptions, CrossbarUrl, Inquiry,
    InquiryCounters, channels,
};
use blackhole::limits::CROSSBAR_QUESTIONS_MAX;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, Socket, Type};
use support::certificates::{Ca, Certified, LOCAL};
use support::own_process::in_own_process;
use support::platform_api::{Account, After, HttpServer, PlatformApi, SERVICE_TOKEN, answer};

/// Longer than anything good takes.
const LONG: Duration = Duration::from_secs(20);

const ONE: &str = "4b8c6fec4b2597882c0390202d195419";
const TWO: &str = "00112233445566778899aabbccddeeff";

/// The key of a PEM file.
fn keys() -> Keys {
    let file = support::project_file("tests/fixtures/system_key.pem");
    let text = std::fs::read_to_string(&file).unwrap();
    Keys::parse(&file, &KeyText::File(text)).unwrap()
}

fn account(id: &str) -> AccountId {
    AccountId::parse(id).unwrap()
}

/// A client with a limit of time that no good answer comes near.
fn client(url: &str) -> (Crossbar, Arc<InquiryCounters>) {
    client_within(url, LONG)
}

fn client_within(url: &str, timeout: Duration) -> (Crossbar, Arc<InquiryCounters>) {
    let counters = Arc::new(InquiryCounters::default());
    let options = CrossbarOptions {
        url: CrossbarUrl::parse(url).unwrap(),
        timeout,
        service_token: Some(SERVICE_TOKEN.into()),
        authorities: Authorities::System,
    };
    (Crossbar::new(options, counters.clone()).unwrap(), counters)
}

fn yes(realm: Option<&str>, superduper: bool) -> AccountAnswer {
    AccountAnswer::Yes {
        realm: realm.map(Arc::from),
        superduper,
    }
}

#[test]
fn the_platforms_answers_are_told_apart() {
    let api = PlatformApi::start();
    api.allow("child", ONE, "one.example");
    api.set_others(
        "parent",
        Account::Yes {
            realm: None,
            superduper: true,
        },
    );
    let (crossbar, counters) = client(&api.url());
    for (token, id, expected) in [
        ("child", ONE, yes(Some("one.example"), false)),
        ("child", TWO, AccountAnswer::AccountRefused),
        ("parent", TWO, yes(None, true)),
        ("nobody", ONE, AccountAnswer::TokenRefused),
    ] {
        assert_eq!(
            crossbar.account(token, account(id)),
            expected,
            "{token} {id}"
        );
    }
    for (status, expected) in [
        (401, AccountAnswer::TokenRefused),
        (403, AccountAnswer::AccountRefused),
        (404, AccountAnswer::AccountRefused),
        (201, AccountAnswer::Trouble),
        (204, AccountAnswer::Trouble),
        (400, AccountAnswer::Trouble),
        (402, AccountAnswer::Trouble),
        (429, AccountAnswer::Trouble),
        (500, AccountAnswer::Trouble),
        (503, AccountAnswer::Trouble),
    ] {
        api.set("child", ONE, Account::Status(status));
        assert_eq!(
            crossbar.account("child", account(ONE)),
            expected,
            "{status}"
        );
    }
    assert_eq!(counters.trouble_status.load(Relaxed), 7);
    assert_eq!(counters.yes.load(Relaxed), 2);
    assert_eq!(counters.tokens_refused.load(Relaxed), 2);
    assert_eq!(counters.accounts_refused.load(Relaxed), 3);
}

/// The body of a good answer about `ONE`.
fn body_of(data: &str) -> String {
    format!(r#"{{"data":{data},"status":"success","auth_token":"child","node":"n"}}"#)
}

#[test]
fn only_an_answer_of_the_right_form_is_a_yes() {
    let other = format!(r#"{{"id":"{TWO}","realm":"one.example"}}"#);
    let same = format!(r#"{{"id":"{}","realm":"one.example"}}"#, ONE.to_uppercase());
    let long = format!(r#"{{"realm":"{}"}}"#, "r".repeat(256));
    let of_64_kib = body_of(&format!(
        r#"{{"realm":"a","pad":"{}"}}"#,
        "x".repeat(60_000)
    ));
    let spaces = 65_536 - of_64_kib.len();
    let yes_of_one = yes(Some("one.example"), false);
    let rows: Vec<(String, AccountAnswer)> = vec![
        (body_of(&same), yes_of_one.clone()),
        (
            body_of(r#"{"realm":"one.example","superduper_admin":true}"#),
            yes(Some("one.example"), true),
        ),
        (body_of("{}"), yes(None, false)),
        (
            body_of(r#"{"realm":null,"superduper_admin":null}"#),
            yes(None, false),
        ),
        (body_of(r#"{"realm":""}"#), yes(None, false)),
        (
            body_of(r#"{"realm":"a","unknown":[{"deep":[1,2,{}]}]}"#),
            yes(Some("a"), false),
        ),
        (
            of_64_kib.clone() + &" ".repeat(spaces),
            yes(Some("a"), false),
        ),
        (of_64_kib + &" ".repeat(spaces + 1), AccountAnswer::Trouble),
        (body_of(&other), AccountAnswer::Trouble),
        (body_of(r#"{"id":"not an id"}"#), AccountAnswer::Trouble),
        (body_of(r#"{"id":7}"#), AccountAnswer::Trouble),
        (
            body_of(r#"{"realm":["one.example"]}"#),
            AccountAnswer::Trouble,
        ),
        (
            body_of(r#"{"realm":"one example"}"#),
            AccountAnswer::Trouble,
        ),
        (body_of(&long), AccountAnswer::Trouble),
        (
            body_of(r#"{"superduper_admin":"true"}"#),
            AccountAnswer::Trouble,
        ),
        (body_of(r#"{"superduper_admin":1}"#), AccountAnswer::Trouble),
        (
            body_of(r#"{"superduper_admin":false,"superduper_admin":true}"#),
            AccountAnswer::Trouble,
        ),
        (body_of("null"), AccountAnswer::Trouble),
        (body_of(r#""text""#), AccountAnswer::Trouble),
        (r#"{"status":"success"}"#.to_owned(), AccountAnswer::Trouble),
        (r#"{"data":{}}"#.to_owned(), AccountAnswer::Trouble),
        (
            r#"{"data":{},"status":"error"}"#.to_owned(),
            AccountAnswer::Trouble,
        ),
        (
            r#"{"data":{},"status":true}"#.to_owned(),
            AccountAnswer::Trouble,
        ),
        (body_of("{}") + "x", AccountAnswer::Trouble),
        (
            format!(r#"{{"data":{}"#, "[".repeat(50_000)),
            AccountAnswer::Trouble,
        ),
        ("<html>welcome</html>".to_owned(), AccountAnswer::Trouble),
        (String::new(), AccountAnswer::Trouble),
    ];
    for (body, expected) in rows {
        let sent = body.clone();
        let server = HttpServer::start(move |_, socket| answer(socket, 200, &sent));
        let (crossbar, counters) = client(&format!("http://{}", server.address()));
        let start = &body[..body.len().min(200)];
        assert_eq!(crossbar.account("child", account(ONE)), expected, "{start}");
        let troubles = u64::from(expected == AccountAnswer::Trouble);
        assert_eq!(counters.trouble_body.load(Relaxed), troubles, "{start}");
        assert_eq!(server.requests(), 1, "{start}");
    }
}

#[test]
fn what_is_asked_is_what_the_platform_expects() {
    let (seen, requests) = mpsc::channel();
    let server = HttpServer::start(move |request, socket| {
        seen.send(request.clone()).unwrap();
        answer(socket, 404, "")
    });
    let (crossbar, _) = client(&format!("http://{}/a/v2///", server.address()));
    crossbar.account("child", account(&ONE.to_uppercase()));
    crossbar.key("0123abcd");
    let next = || requests.recv_timeout(LONG).unwrap();
    let (asked, key) = (next(), next());
    assert_eq!(
        (&*asked.method, &*asked.path),
        ("GET", &*format!("/a/v2/accounts/{ONE}"))
    );
    assert_eq!(asked.token(), "child");
    assert_eq!(
        (&*key.method, &*key.path),
        ("GET", "/a/v2/auth/keys/0123abcd")
    );
    assert_eq!(key.token(), SERVICE_TOKEN);
    let agent = concat!("blackhole/", env!("CARGO_PKG_VERSION"));
    for request in [asked, key] {
        assert_eq!(request.headers["user-agent"], agent);
        assert_eq!(request.headers["accept"], "application/json");
        assert!(!request.headers.contains_key("authorization"));
    }
}

#[test]
fn one_connection_serves_a_thread_and_one_that_the_server_closed_is_replaced() {
    let api = PlatformApi::start();
    api.allow("child", ONE, "one.example");
    let (crossbar, counters) = client(&api.url());
    let ask = |expected| assert_eq!(crossbar.account("child", account(ONE)), expected);
    let good = yes(Some("one.example"), false);
    for _ in 0..50 {
        ask(good.clone());
        assert_eq!(
            crossbar.account("child", account(TWO)),
            AccountAnswer::AccountRefused
        );
    }
    assert_eq!((api.questions(), api.accepted()), (100, 1));
    api.set("child", ONE, Account::Status(500));
    ask(AccountAnswer::Trouble);
    api.allow("child", ONE, "one.example");
    ask(good.clone());
    assert_eq!(
        api.accepted(),
        1,
        "trouble with an answer costs no connection"
    );
    api.close_all();
    ask(good);
    assert_eq!((api.questions(), api.accepted()), (103, 2));
    assert_eq!(counters.trouble_connect.load(Relaxed), 0);
}

#[test]
fn a_request_is_sent_again_when_a_kept_connection_ends_instead_of_an_answer() {
    let number = AtomicUsize::new(0);
    let server = HttpServer::start(move |_, socket| match number.fetch_add(1, SeqCst) {
        // The second request comes on the kept connection, which the server is about to close.
        1 => Ok(After::Close),
        _ => answer(socket, 200, &body_of(r#"{"realm":"a"}"#)),
    });
    let (crossbar, counters) = client(&format!("http://{}", server.address()));
    for _ in 0..2 {
        assert_eq!(
            crossbar.account("child", account(ONE)),
            yes(Some("a"), false)
        );
    }
    assert_eq!((server.requests(), server.accepted()), (3, 2));
    assert_eq!(counters.requests_again.load(Relaxed), 1);
    assert_eq!(counters.requests.load(Relaxed), 3);
}

#[test]
fn a_server_that_is_gone_is_trouble_until_it_is_back() {
    let mut api = PlatformApi::start();
    api.allow("child", ONE, "one.example");
    let (crossbar, counters) = client(&api.url());
    let ask = || crossbar.account("child", account(ONE));
    assert_eq!(ask(), yes(Some("one.example"), false));
    api.stop();
    for _ in 0..3 {
        assert_eq!(ask(), AccountAnswer::Trouble);
    }
    assert_eq!(counters.trouble_connect.load(Relaxed), 3);
    api.start_again();
    assert_eq!(ask(), yes(Some("one.example"), false));
}

/// How a server answers every request.
type Nasty = fn(&mut TcpStream) -> io::Result<After>;

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";

#[test]
fn nothing_that_a_server_does_is_a_yes_or_takes_longer_than_it_may() {
    static TAKEN_WHOLE: AtomicBool = AtomicBool::new(false);
    let silence: Nasty = |socket| {
        let _closed = socket.read(&mut [0]);
        Ok(After::Close)
    };
    let drip: Nasty = |socket| {
        write!(socket, "{HEAD}content-length: 1000000\r\n\r\n")?;
        loop {
            socket.write_all(b" ")?;
            thread::sleep(Duration::from_millis(20));
        }
    };
    let drip_of_the_head: Nasty = |socket| {
        let endless = HEAD.bytes().chain(*b"x-long: ").chain(iter::repeat(b'a'));
        for byte in endless {
            socket.write_all(&[byte])?;
            thread::sleep(Duration::from_millis(5));
        }
        Ok(After::Close)
    };
    let half_a_body: Nasty = |socket| {
        let body = body_of(r#"{"realm":"a"}"#);
        write!(
            socket,
            "{HEAD}content-length: {}\r\n\r\n{}",
            body.len(),
            &body[..body.len() / 2]
        )?;
        Ok(After::Close)
    };
    let half_a_chunk: Nasty = |socket| {
        write!(
            socket,
            "{HEAD}transfer-encoding: chunked\r\n\r\nff\r\n{{\"data\":"
        )?;
        Ok(After::Close)
    };
    let half_a_head: Nasty = |socket| {
        write!(socket, "{HEAD}content-le")?;
        Ok(After::Close)
    };
    let garbage: Nasty = |socket| {
        socket.write_all(&[0xff; 5000])?;
        Ok(After::Close)
    };
    let endless_head: Nasty = |socket| {
        write!(socket, "{HEAD}")?;
        loop {
            socket.write_all(b"x-header: and one more of them, as there is no end of it\r\n")?;
        }
    };
    let reset: Nasty = |_| Ok(After::Reset);
    let closed: Nasty = |_| Ok(After::Close);
    let a_hundred_megabytes: Nasty = |socket| {
        write!(socket, "{HEAD}content-length: 100000000\r\n\r\n")?;
        for _ in 0..100_000_000 / 100_000 {
            socket.write_all(&[b' '; 100_000])?;
        }
        TAKEN_WHOLE.store(true, SeqCst);
        Ok(After::Close)
    };
    let an_endless_refusal: Nasty = |socket| {
        write!(socket, "HTTP/1.1 500 Oh\r\n\r\n")?;
        loop {
            socket.write_all(&[b' '; 100_000])?;
        }
    };
    let rows: [(&str, Nasty, Counter, usize); 12] = [
        ("silence", silence, |of| &of.trouble_timeout, 1),
        ("drip", drip, |of| &of.trouble_timeout, 1),
        (
            "drip of the head",
            drip_of_the_head,
            |of| &of.trouble_timeout,
            1,
        ),
        ("half a body", half_a_body, |of| &of.trouble_body, 1),
        ("half a chunk", half_a_chunk, |of| &of.trouble_body, 1),
        ("half a head", half_a_head, |of| &of.trouble_connect, 2),
        ("garbage", garbage, |of| &of.trouble_body, 1),
        ("endless head", endless_head, |of| &of.trouble_body, 1),
        ("closed", closed, |of| &of.trouble_connect, 2),
        ("reset", reset, |of| &of.trouble_connect, 2),
        ("100 MB", a_hundred_megabytes, |of| &of.trouble_body, 1),
        (
            "endless refusal",
            an_endless_refusal,
            |of| &of.trouble_status,
            1,
        ),
    ];
    for (name, nasty, counter, requests) in rows {
        let server = HttpServer::start(move |_, socket| nasty(socket));
        let url = format!("http://{}", server.address());
        let (crossbar, counters) = client_within(&url, Duration::from_millis(500));
        let asked = Instant::now();
        assert_eq!(
            crossbar.account("child", account(ONE)),
            AccountAnswer::Trouble,
            "{name}"
        );
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(5), "{name}: {took:?}");
        assert_eq!(counter(&counters).load(Relaxed), 1, "{name}: {counters:?}");
        assert_eq!(server.requests(), requests, "{name}");
    }
    assert!(!TAKEN_WHOLE.load(SeqCst), "a body of 100 MB was read");
}

type Counter = fn(&InquiryCounters) -> &AtomicU64;

#[test]
fn a_host_that_takes_no_connection_is_trouble_in_time() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    // Until the queue is full: the kernel answers no more.
    let mut queued = Vec::new();
    while let Ok(client) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        queued.push(client);
    }
    let (crossbar, counters) =
        client_within(&format!("http://{address}"), Duration::from_millis(500));
    let asked = Instant::now();
    assert_eq!(
        crossbar.account("child", account(ONE)),
        AccountAnswer::Trouble
    );
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(counters.trouble_timeout.load(Relaxed), 1, "{counters:?}");
}

#[test]
fn a_host_may_have_a_name_or_not_exist() {
    let api = PlatformApi::start();
    api.allow("child", ONE, "one.example");
    let (crossbar, _) = client(&api.url().replace("127.0.0.1", "localhost"));
    for _ in 0..3 {
        assert_eq!(
            crossbar.account("child", account(ONE)),
            yes(Some("one.example"), false)
        );
    }
    assert_eq!(api.accepted(), 1);
    // Reserved never to exist (RFC 2606). Where no name server answers at all, it is the time that ends it.
    let (crossbar, counters) = client_within("http://platform.invalid/v2", Duration::from_secs(2));
    assert_eq!(
        crossbar.account("child", account(ONE)),
        AccountAnswer::Trouble
    );
    let troubles = [&counters.trouble_connect, &counters.trouble_timeout];
    assert_eq!(
        troubles
            .map(|counter| counter.load(Relaxed))
            .iter()
            .sum::<u64>(),
        1
    );
}

#[test]
fn a_redirect_is_trouble_and_not_followed() {
    let good = HttpServer::start(|_, socket| answer(socket, 200, &body_of("{}")));
    for status in [301, 302, 303, 307, 308] {
        let elsewhere = format!("http://{}/accounts/{ONE}", good.address());
        let server = HttpServer::start(move |_, socket| {
            let head = format!("HTTP/1.1 {status} Over There\r\nlocation: {elsewhere}\r\n");
            write!(socket, "{head}content-length: 0\r\n\r\n")?;
            Ok(After::Keep)
        });
        let (crossbar, counters) = client(&format!("http://{}", server.address()));
        for _ in 0..2 {
            assert_eq!(
                crossbar.account("child", account(ONE)),
                AccountAnswer::Trouble
            );
        }
        assert_eq!(counters.trouble_status.load(Relaxed), 2);
        assert_eq!((server.requests(), server.accepted()), (2, 1));
    }
    assert_eq!((good.requests(), good.accepted()), (0, 0));
}

#[test]
fn what_no_header_or_path_takes_is_refused_unasked() {
    let api = PlatformApi::start();
    let (crossbar, counters) = client(&api.url());
    let long = "t".repeat(8193);
    let tokens = ["", "a b", " a", "a\r\nX-Other: b", "tök", "a\0", &long];
    for token in tokens {
        assert_eq!(
            crossbar.account(token, account(ONE)),
            AccountAnswer::TokenRefused,
            "{token:?}"
        );
    }
    assert_eq!(counters.tokens_unsendable.load(Relaxed), 7);
    let long = "k".repeat(257);
    let kids = [
        "",
        ".",
        "..",
        "../../accounts",
        "a/b",
        "a%2fb",
        "a?b",
        "a#b",
        "a b",
        "ö",
        "a\n",
        &long,
    ];
    for kid in kids {
        assert_eq!(crossbar.key(kid), KeyAnswer::Unknown, "{kid:?}");
    }
    assert_eq!(counters.keys_unknown.load(Relaxed), 12);
    assert_eq!((api.questions(), api.accepted()), (0, 0));
    let longest = "t".repeat(8192);
    api.allow(&longest, ONE, "one.example");
    assert_eq!(
        crossbar.account(&longest, account(ONE)),
        yes(Some("one.example"), false)
    );
}

#[test]
fn keys_are_fetched_with_the_service_token() {
    let api = PlatformApi::start();
    let pem = "-----BEGIN RSA PUBLIC KEY-----\nAAAA\n-----END RSA PUBLIC KEY-----\n";
    api.set_key("0123abcd", pem);
    let (crossbar, counters) = client(&api.url());
    assert_eq!(crossbar.key("0123abcd"), KeyAnswer::Pem(pem.to_owned()));
    assert_eq!(crossbar.key("4567"), KeyAnswer::Unknown);
    assert_eq!(api.questions_for_key("0123abcd"), 1);
    assert_eq!(
        (
            counters.keys.load(Relaxed),
            counters.keys_unknown.load(Relaxed)
        ),
        (1, 1)
    );

    let with_token = |service_token: Option<&str>| {
        let options = CrossbarOptions {
            url: CrossbarUrl::parse(&api.url()).unwrap(),
            timeout: LONG,
            service_token: service_token.map(Into::into),
            authorities: Authorities::System,
        };
        Crossbar::new(options, counters.clone())
    };
    assert_eq!(
        with_token(Some("another")).unwrap().key("0123abcd"),
        KeyAnswer::Trouble
    );
    assert_eq!(counters.key_status.load(Relaxed), 1);
    assert_eq!(
        with_token(None).unwrap().key("0123abcd"),
        KeyAnswer::Unknown
    );
    assert_eq!(api.questions(), 3, "without a token nobody is asked");
    let error = with_token(Some("secret token")).unwrap_err().to_string();
    assert!(
        error.contains("service token") && !error.contains("secret"),
        "{error}"
    );

    for data in ["{}", r#"{"public_key_pem":7}"#, "null", "[]"] {
        let server = HttpServer::start(move |_, socket| answer(socket, 200, &body_of(data)));
        let (crossbar, _) = client(&format!("http://{}", server.address()));
        assert_eq!(crossbar.key("0123abcd"), KeyAnswer::Trouble, "{data}");
    }
}

#[test]
fn no_proxy_is_taken_from_the_environment() {
    let proxy = HttpServer::start(|_, socket| answer(socket, 200, &body_of("{}")));
    let mut other = Command::new(std::env::current_exe().unwrap());
    other.args(["--exact", "crossbar::the_platforms_answers_are_told_apart"]);
    for name in ["http_proxy", "https_proxy", "all_proxy"] {
        let url = format!("http://{}", proxy.address());
        other.env(name, &url).env(name.to_uppercase(), &url);
    }
    let output = other.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && printed.contains("1 passed"),
        "{printed}"
    );
    assert_eq!(proxy.accepted(), 0);
}

/// The loop's end and its wakes, with threads that ask `api`.
fn threads(
    url: &str,
    timeout: Duration,
) -> (
    Inquiry,
    Receiver<()>,
    Arc<InquiryCounters>,
    Vec<JoinHandle<()>>,
) {
    let (crossbar, counters) = client_within(url, timeout);
    let (wake, woken) = mpsc::channel();
    let wake = Mutex::new(wake);
    let waker = LoopWaker::new(move || {
        // A test that has seen enough is gone.
        let _gone = wake.lock().unwrap().send(());
        Ok(())
    });
    let (inquiry, answering) = channels(waker, counters.clone());
    let threads = answering.start(false, Some(crossbar)).unwrap();
    (inquiry, woken, counters, threads)
}

/// Takes `expected` answers as the loop would: after a wake, until there is none.
fn take(inquiry: &Inquiry, woken: &Receiver<()>, expected: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    while answers.len() < expected {
        woken
            .recv_timeout(LONG)
            .expect("a wake for the answers that are missing");
        answers.extend(iter::from_fn(|| inquiry.try_answer()));
    }
    answers
}

fn ask_account(token: &str, id: &str) -> Question {
    Question::Account {
        token: token.into(),
        account: account(id),
    }
}

#[test]
fn the_threads_answer_every_question_once_over_no_more_connections_than_threads() {
    let api = PlatformApi::start();
    let pem = "PEM";
    api.set_key("kid", pem);
    api.allow("token0", ONE, "one.example");
    let (inquiry, woken, counters, threads) = threads(&api.url(), LONG);
    let accounts = (0..500).map(|number| ask_account(&format!("token{number}"), ONE));
    let key = Question::Key { kid: "kid".into() };
    let mut questions = accounts.chain([key]).peekable();
    let mut answers = Vec::new();
    while answers.len() < 501 {
        while inquiry.has_room(Lane::Platform)
            && let Some(question) = questions.next()
        {
            inquiry.ask(question).unwrap();
        }
        answers.extend(take(&inquiry, &woken, 1));
    }
    let mut tokens = HashSet::new();
    let mut good = Vec::new();
    for answer in answers {
        match answer {
            Answer::Account {
                token,
                account: id,
                answer,
            } => {
                assert_eq!(id, account(ONE));
                if answer != AccountAnswer::TokenRefused {
                    good.push((token.to_string(), answer));
                }
                assert!(tokens.insert(token), "answered twice");
            }
            Answer::Key { kid, answer } => {
                assert_eq!((&*kid, answer), ("kid", KeyAnswer::Pem(pem.to_owned())));
            }
            Answer::Verify { .. } => panic!("nobody asked"),
        }
    }
    assert_eq!(
        good,
        [("token0".to_owned(), yes(Some("one.example"), false))]
    );
    assert_eq!((tokens.len(), api.questions()), (500, 501));
    assert!((1..=8).contains(&api.accepted()), "{}", api.accepted());
    assert!(inquiry.try_answer().is_none());
    assert_eq!(inquiry.network_waiting() + inquiry.answers_waiting(), 0);
    let mut page = String::new();
    counters.write(&mut page);
    assert!(
        page.contains("\nblackhole_crossbar_requests_total 501\n"),
        "{page}"
    );
    drop(inquiry);
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_silent_platform_fills_the_lane_and_the_rest_is_given_back() {
    let server = HttpServer::start(|_, socket| {
        let _closed = socket.read(&mut [0]);
        Ok(After::Close)
    });
    let url = format!("http://{}", server.address());
    let (inquiry, woken, _counters, threads) = threads(&url, Duration::from_millis(300));
    let deadline = Instant::now() + LONG;
    let mut asked = 0;
    let given_back = loop {
        match inquiry.ask(ask_account(&format!("token{asked}"), ONE)) {
            Ok(()) => asked += 1,
            Err(question) => break question,
        }
        assert!(Instant::now() < deadline, "{asked} questions found room");
    };
    assert!(asked >= CROSSBAR_QUESTIONS_MAX, "{asked}");
    assert!(!inquiry.has_room(Lane::Platform) && inquiry.has_room(Lane::Verify));
    let Question::Account { token, .. } = given_back else {
        panic!("another question than was asked: {given_back:?}");
    };
    assert_eq!(*token, *format!("token{asked}"));
    let verify = Question::Verify {
        token: "a.b.c".into(),
        keys: Arc::new(keys()),
        rules: Arc::new(jwt::Rules::new("kazoo", false)),
        unix_now: 0,
    };
    assert!(inquiry.ask(verify).is_err(), "no thread verifies here");
    let answers = take(&inquiry, &woken, 8);
    assert!(answers.iter().all(|answer| matches!(
        answer,
        Answer::Account {
            answer: AccountAnswer::Trouble,
            ..
        }
    )));
    // Questions that wait are not asked any more.
    drop(inquiry);
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(server.requests() < 200, "{}", server.requests());
}

#[test]
fn a_test_can_play_the_threads() {
    let (inquiry, answering): (_, Answering) = channels(LoopWaker::new(|| Ok(())), Arc::default());
    inquiry.ask(ask_account("secret", ONE)).unwrap();
    let question = answering.try_question().unwrap();
    let shown = format!("{question:?}");
    assert!(shown.contains(ONE) && !shown.contains("secret"), "{shown}");
    assert!(answering.try_question().is_none());
    let answer = Answer::Account {
        token: "secret".into(),
        account: account(ONE),
        answer: AccountAnswer::TokenRefused,
    };
    assert!(!format!("{answer:?}").contains("secret"));
    answering.answer(answer.clone()).unwrap();
    assert_eq!(inquiry.try_answer(), Some(answer.clone()));
    drop(inquiry);
    assert!(answering.answer(answer).is_err());
}

/// An HTTP server behind TLS that answers every request with `body_of("{}")` and keeps connections. Returns its port, and
/// the connections that it has taken.
fn start_https(certified: &Certified) -> (u16, Arc<AtomicUsize>) {
    let certificate = CertificateDer::from_pem_file(certified.cert()).unwrap();
    let key = PrivateKeyDer::from_pem_file(certified.key()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = accepted.clone();
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            counted.fetch_add(1, SeqCst);
            let tls = ServerConnection::new(config.clone()).unwrap();
            thread::spawn(move || {
                let mut stream = BufReader::new(StreamOwned::new(tls, socket));
                let mut line = String::new();
                while stream.read_line(&mut line).is_ok_and(|read| read > 0) {
                    if line == "\r\n" {
                        answer(stream.get_mut(), 200, &body_of("{}")).unwrap();
                        stream.get_mut().flush().unwrap();
                    }
                    line.clear();
                }
            });
        }
    });
    (port, accepted)
}

#[test]
fn with_https_a_certificate_must_be_trusted_and_of_the_host() {
    let (ca, other) = (Ca::new(), Ca::new());
    let (good, accepted) = start_https(&ca.certify(LOCAL, 9));
    let (elsewhere, _) = start_https(&ca.certify("DNS:elsewhere.example,IP:127.0.0.2", 9));
    let (expired, _) = start_https(&ca.certify(LOCAL, 0));
    let made = SystemTime::now();
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let plain_port = plain.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut kept = Vec::new();
        for mut socket in plain.incoming().map_while(Result::ok) {
            answer(&mut socket, 400, "TLS is not spoken here").unwrap();
            kept.push(socket);
        }
    });
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let trusted = || Authorities::Pem(std::fs::read(ca.pem()).unwrap());
    let others = Authorities::Pem(std::fs::read(other.pem()).unwrap());
    let tls: Counter = |of| &of.trouble_tls;
    let rows: [(&str, u16, Authorities, Counter); 8] = [
        ("127.0.0.1", good, trusted(), |of| &of.yes),
        ("localhost", good, trusted(), |of| &of.yes),
        ("127.0.0.1", good, others, tls),
        ("127.0.0.1", good, Authorities::System, tls),
        ("127.0.0.1", elsewhere, trusted(), tls),
        ("127.0.0.1", expired, trusted(), tls),
        ("127.0.0.1", plain_port, trusted(), tls),
        (
            "127.0.0.1",
            silent.local_addr().unwrap().port(),
            trusted(),
            |of| &of.trouble_timeout,
        ),
    ];
    for (row, (host, port, authorities, counter)) in rows.into_iter().enumerate() {
        let counters = Arc::new(InquiryCounters::default());
        let is_silent = row == 7;
        let options = CrossbarOptions {
            url: CrossbarUrl::parse(&format!("https://{host}:{port}/v2")).unwrap(),
            timeout: if is_silent {
                Duration::from_millis(500)
            } else {
                LONG
            },
            service_token: None,
            authorities,
        };
        // A machine without any authority has none to trust in row 3.
        let crossbar = match Crossbar::new(options, counters.clone()) {
            Err(CrossbarError::NoAuthorities(_)) if row == 3 => continue,
            crossbar => crossbar.unwrap(),
        };
        while row == 5 && made.elapsed().unwrap() < Duration::from_secs(2) {
            // Its time is over with the second in which it was made.
            thread::sleep(Duration::from_millis(10));
        }
        let before = accepted.load(SeqCst);
        for asked in 1..=2 {
            let answer = crossbar.account("child", account(ONE));
            let is_good = row < 2;
            assert_eq!(
                answer == yes(None, false),
                is_good,
                "{row}: {answer:?} {counters:?}"
            );
            assert_eq!(answer == AccountAnswer::Trouble, !is_good, "{row}");
            assert_eq!(
                counter(&counters).load(Relaxed),
                asked,
                "{row}: {counters:?}"
            );
        }
        if row < 2 {
            assert_eq!(
                accepted.load(SeqCst) - before,
                1,
                "{row}: a kept connection"
            );
        }
    }
}

/// Collects the lines of this process.
struct Lines(Mutex<Vec<(log::Level, String)>>);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{}: {}", record.target(), record.args());
        self.0.lock().unwrap().push((record.level(), line));
    }

    fn flush(&self) {}
}

#[test]
fn trouble_is_logged_once_a_minute_for_each_cause_and_no_line_shows_a_token() {
    static LINES: Lines = Lines(Mutex::new(Vec::new()));
    let test = "crossbar::trouble_is_logged_once_a_minute_for_each_cause_and_no_line_shows_a_token";
    in_own_process(test, || {
        log::set_logger(&LINES).unwrap();
        log::set_max_level(log::LevelFilter::Debug);
        let number = AtomicUsize::new(0);
        let server = HttpServer::start(move |request, socket| {
            let token = request.token();
            match number.fetch_add(1, SeqCst) % 4 {
                0 => answer(socket, 500, token),
                1 => answer(
                    socket,
                    200,
                    &format!(r#"{{"data":{{"superduper_admin":"{token}"}}}}"#),
                ),
                2 => {
                    write!(
                        socket,
                        "HTTP/1.1 302 {token}\r\nlocation: http://{token}/\r\n"
                    )?;
                    write!(socket, "content-length: 0\r\n{token}: {token}\r\n\r\n")?;
                    Ok(After::Keep)
                }
                _ => {
                    write!(socket, "{token} {token}\r\n{token}\r\n\r\n")?;
                    Ok(After::Close)
                }
            }
        });
        let (crossbar, counters) = client(&format!("http://{}", server.address()));
        for _ in 0..8 {
            assert_eq!(
                crossbar.account("secret-of-a-user", account(ONE)),
                AccountAnswer::Trouble
            );
            assert_eq!(crossbar.key("0123abcd"), KeyAnswer::Trouble);
        }
        let statuses = [&counters.trouble_status, &counters.key_status];
        let bodies = [&counters.trouble_body, &counters.key_body];
        for causes in [statuses, bodies] {
            assert_eq!(causes.map(|of| of.load(Relaxed)).iter().sum::<u64>(), 8);
        }
        let lines = LINES.0.lock().unwrap();
        for (_, line) in lines.iter() {
            for token in ["secret-of-a-user", SERVICE_TOKEN] {
                assert!(!line.contains(token), "{line}");
            }
        }
        let warnings = lines.iter().filter(|(level, _)| *level <= log::Level::Warn);
        let warnings: Vec<_> = warnings.map(|(_, line)| &**line).collect();
        let [status, body] = warnings[..] else {
            panic!("{warnings:?}");
        };
        assert!(
            status.contains("crossbar: no answer: status 500"),
            "{status}"
        );
        assert!(body.contains("not the JSON that it should be"), "{body}");
    });
}

#[test]
fn a_refusal_counts_though_its_body_never_ends() {
    let server = HttpServer::start(|_, socket| {
        write!(socket, "HTTP/1.1 401 No\r\ncontent-length: 1000\r\n\r\n")?;
        let _closed = socket.read(&mut [0]);
        Ok(After::Close)
    });
    let url = format!("http://{}", server.address());
    let (crossbar, counters) = client_within(&url, Duration::from_millis(500));
    let asked = Instant::now();
    assert_eq!(
        crossbar.account("child", account(ONE)),
        AccountAnswer::TokenRefused
    );
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(counters.tokens_refused.load(Relaxed), 1);
}
