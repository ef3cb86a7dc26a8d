//! What the operator sees of the sessions, and does to them and to the process, on the admin address of the real server
//! (PROTOCOL 8).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::client::{Client, Raw, subscribe, subscribe_to_all};
use support::events::{call_event, large_call_event};
use support::server::{Fed, Server, wait_for};
use support::tls::{Stream, plain_only};
use support::wire::{UPGRADE_REQUEST, client_text, server_frames};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// The tokens, which no page may show.
const OF_A: &str = "token-of-a-0123456789";
const OF_B: &str = "token-of-b-0123456789";

const CREATED: &str = "call.CHANNEL_CREATE.*";

fn fed(args: &[&str]) -> Fed {
    let tokens = json!({OF_A: {"account_id": A}, OF_B: {"account_id": B}});
    Fed::with_tokens(&tokens, args)
}

/// Status and body of the answer to one request. No answer may hold a token.
fn request(server: &Server, method: &str, path: &str) -> (u16, String) {
    let mut raw = Raw::connect(server.admin());
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    raw.send(head.as_bytes());
    let response = raw.last_response();
    assert!(
        !response.body.contains("token-of"),
        "{path}: {}",
        response.body
    );
    (response.status, response.body)
}

/// The JSON of an answer with this status.
fn answer(server: &Server, expected: u16, method: &str, path: &str) -> Value {
    let (status, body) = request(server, method, path);
    assert_eq!(status, expected, "{method} {path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

fn get(server: &Server, path: &str) -> Value {
    answer(server, 200, "GET", path)
}

fn rows(page: &Value) -> &[Value] {
    let rows = page["data"].as_array().expect("a list");
    assert_eq!(page["page_size"], rows.len(), "{page}");
    assert_eq!(page["status"], "success");
    rows
}

fn ids(page: &Value) -> Vec<String> {
    let id = |row: &Value| row["id"].as_str().expect("an id").to_owned();
    rows(page).iter().map(id).collect()
}

/// The row of a session.
fn row(server: &Server, id: &str) -> Value {
    let page = get(server, "/v2/sessions?limit=1000");
    let found = rows(&page).iter().find(|row| row["id"] == id);
    found.unwrap_or_else(|| panic!("no {id}: {page}")).clone()
}

#[test]
fn a_session_is_told_with_what_it_has_asked_for_got_and_not_taken() {
    if plain_only(&"the bytes of the socket are not those of the frames there") {
        return;
    }
    let mut fed = fed(&[]);
    let mut socket = Stream::connect(fed.server.address()).unwrap();
    socket
        .tcp()
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let id = socket.tcp().local_addr().unwrap().to_string();
    socket.write_all(UPGRADE_REQUEST.as_bytes()).unwrap();
    let mut command = subscribe_to_all(OF_A, A, &[CREATED, "fax.status.*"]);
    command["data"]["name"] = json!("the \"name\"\n");
    socket
        .write_all(&client_text(&command.to_string()))
        .unwrap();
    let mut got = Vec::new();
    let mut read_frames = |count: usize| -> usize {
        loop {
            let head = got.windows(4).position(|end| end == b"\r\n\r\n");
            let frames = head.map(|end| server_frames(&got[end + 4..]));
            if frames.is_some_and(|(frames, _)| frames.len() == count) {
                return got.len();
            }
            let mut more = [0; 4096];
            let count = socket.read(&mut more).expect("more comes");
            got.extend_from_slice(&more[..count]);
        }
    };
    read_frames(1);
    for number in 0..3 {
        let event = call_event(A, "CHANNEL_CREATE", number);
        fed.publish("callevt", "call.CHANNEL_CREATE.x", &event);
    }
    let bytes = read_frames(4);
    // The client's system acknowledges when it likes to.
    let row = wait_for("all bytes acknowledged", || {
        Some(row(&fed.server, &id)).filter(|row| row["bytes"] == bytes)
    });
    let (age, idle) = (row["age_seconds"].as_u64(), row["idle_seconds"].as_u64());
    assert!(
        age.is_some_and(|age| age < 60) && idle.is_some_and(|idle| idle < 60),
        "{row}"
    );
    let expected = json!({
        "id": id, "account_id": A, "ip": "127.0.0.1", "age_seconds": age, "idle_seconds": idle,
        "bindings": [CREATED, "fax.status.*"], "frames": 4, "bytes": bytes, "outbox_bytes": 0, "dropped": 0,
        "name": "the \"name\"\n", "tls": null, "compression": false
    });
    assert_eq!(row, expected);
    // A ping and its pong: a frame of the client's own, so it is idle no longer; and one frame more.
    wait_for("idle", || {
        (self::row(&fed.server, &id)["idle_seconds"].as_u64() >= Some(1)).then_some(())
    });
    socket.write_all(&[0x89, 0x80, 0, 0, 0, 0]).unwrap();
    wait_for("not idle", || {
        let row = self::row(&fed.server, &id);
        (row["idle_seconds"] == 0 && row["frames"] == 5).then_some(())
    });
}

#[test]
fn the_filters_hold_together_and_each_by_itself() {
    let fed = fed(&[]);
    let server = &fed.server;
    let connect = |ip: [u8; 4], token: &str, account: &str, binding: &str| {
        let mut raw = Raw::connect_from(ip, server.address());
        raw.send(UPGRADE_REQUEST.as_bytes());
        assert_eq!(raw.head().status, 101);
        raw.send_text(&subscribe(token, account, binding).to_string());
        assert_eq!(raw.json()["status"], "success");
        raw
    };
    let _sessions = [
        connect([127, 0, 0, 1], OF_A, A, CREATED),
        connect([127, 0, 0, 2], OF_A, A, CREATED),
        connect([127, 0, 0, 2], OF_A, A, "fax.status.*"),
        connect([127, 0, 0, 2], OF_B, B, CREATED),
    ];
    let created = CREATED.replace('*', "%2A");
    for (filters, expected) in [
        (String::new(), 4),
        (format!("account={A}"), 3),
        (format!("account={B}"), 1),
        (format!("account={}", "c".repeat(32)), 0),
        ("ip=127.0.0.2".to_owned(), 3),
        ("ip=::ffff:127.0.0.2".to_owned(), 3),
        ("ip=127.0.0.3".to_owned(), 0),
        (format!("binding={created}"), 3),
        ("binding=call.CHANNEL_CREATE.x".to_owned(), 0),
        (format!("binding={created}&ip=127.0.0.2"), 2),
        (format!("binding={created}&ip=127.0.0.2&account={A}"), 1),
        ("slow=1".to_owned(), 0),
    ] {
        for sort in ["", "&sort=age", "&sort=frames"] {
            let query = format!("{filters}{sort}");
            let page = get(
                server,
                &format!("/v2/sessions?{}", query.trim_start_matches('&')),
            );
            assert_eq!(rows(&page).len(), expected, "{query}: {page}");
            assert_eq!(page["next_start_key"], Value::Null);
        }
    }
    for wrong in [
        "start_key=x",
        "start_key=-1",
        "start_key=1-2",
        "sort=age&start_key=7",
    ] {
        let (status, body) = request(server, "GET", &format!("/v2/sessions?{wrong}"));
        assert_eq!(status, 400, "{wrong}");
        assert!(body.contains("start_key"), "{body}");
    }
    let of_account = get(server, &format!("/v2/accounts/{A}/websockets"));
    let objects = rows(&of_account);
    assert_eq!(objects.len(), 3, "{of_account}");
    for object in objects {
        let members: Vec<&str> = object
            .as_object()
            .unwrap()
            .keys()
            .map(|key| &**key)
            .collect();
        let expected = [
            "bindings",
            "destination",
            "source",
            "timestamp",
            "websocket_session_id",
        ];
        assert_eq!(members, expected);
        let id = object["websocket_session_id"].as_str().unwrap();
        let one = get(server, &format!("/v2/accounts/{A}/websockets/{id}"));
        assert_eq!(one, json!({"data": object, "status": "success"}));
        let other = format!("/v2/accounts/{B}/websockets/{id}");
        let expected = json!({
            "data": {"message": "this account has no such session here"}, "error": "404", "status": "error"
        });
        assert_eq!(answer(server, 404, "GET", &other), expected);
    }
}

/// All pages of a listing, the first by this path.
fn all_pages(server: &Server, path: &str, mut between: impl FnMut()) -> Vec<String> {
    let (mut all, mut next) = (Vec::new(), String::new());
    loop {
        let page = get(server, &format!("{path}{next}"));
        let ids = ids(&page);
        assert!(!ids.is_empty() && ids.len() <= 40, "{page}");
        all.extend(ids);
        match page["next_start_key"].as_str() {
            Some(key) => next = format!("&start_key={key}"),
            None => return all,
        }
        between();
    }
}

#[test]
fn the_pages_of_a_listing_hold_each_session_that_stays_exactly_once() {
    if plain_only(&"the bytes of the socket are not those of the frames there") {
        return;
    }
    let fed = fed(&["--max-connections-per-ip", "0"]);
    let server = &fed.server;
    let connect = |number: usize| {
        let mut client = Client::connect(server.address());
        if number.is_multiple_of(3) {
            client.must_subscribe(OF_A, A, CREATED);
        }
        client
    };
    let staying: Vec<Client> = (0..300).map(connect).collect();
    let expected: BTreeSet<String> = staying.iter().map(Client::session_id).collect();
    // The system of the clients acknowledges when it likes to, which would change their places among the others.
    wait_for("all bytes acknowledged", || {
        let page = get(server, "/v2/sessions?sort=bytes&limit=1000");
        let bytes: Vec<u64> = rows(&page)
            .iter()
            .map(|row| row["bytes"].as_u64().unwrap())
            .collect();
        let (subscribed, others) = bytes.split_at(100);
        let is_settled = bytes[0] > bytes[100] && others[0] > 0;
        let are_equal = |part: &[u64]| part.iter().all(|bytes| *bytes == part[0]);
        (is_settled && are_equal(subscribed) && are_equal(others)).then_some(())
    });
    for sort in [
        "",
        "&sort=age",
        "&sort=idle",
        "&sort=bytes",
        "&sort=frames",
        "&sort=outbox",
        "&sort=dropped",
    ] {
        let mut passing: Vec<Client> = (0..10).map(|_| connect(1)).collect();
        let seen = all_pages(server, &format!("/v2/sessions?limit=40{sort}"), || {
            passing.drain(..5).for_each(Client::close);
            passing.extend((0..5).map(|_| connect(1)));
        });
        let mut times = BTreeMap::new();
        seen.iter()
            .for_each(|id| *times.entry(id.clone()).or_insert(0) += 1);
        for id in &expected {
            assert_eq!(times.get(id), Some(&1), "{sort}: {id}");
        }
    }
    let by_frames = get(server, "/v2/sessions?sort=frames&limit=1000");
    let frames: Vec<u64> = rows(&by_frames)
        .iter()
        .map(|row| row["frames"].as_u64().unwrap())
        .collect();
    assert!(frames.is_sorted_by(|one, next| one >= next), "{frames:?}");
    assert_eq!((frames[0], frames[99], frames[100]), (1, 1, 0));
    let of_account = all_pages_of_account(server);
    assert_eq!(of_account.len(), 100);
}

fn all_pages_of_account(server: &Server) -> BTreeSet<String> {
    let (mut all, mut next) = (BTreeSet::new(), String::new());
    loop {
        let page = get(
            server,
            &format!("/v2/accounts/{A}/websockets?limit=30{next}"),
        );
        for object in rows(&page) {
            assert!(all.insert(object["websocket_session_id"].as_str().unwrap().to_owned()));
        }
        match page["next_start_key"].as_str() {
            Some(key) => next = format!("&start_key={key}"),
            None => return all,
        }
    }
}

#[test]
fn who_is_slow_is_told_with_what_waits_and_what_was_dropped() {
    let mut fed = fed(&["--slow-consumer", "drop", "--ping-interval-ms", "0"]);
    let mut healthy = Client::connect(fed.server.address());
    healthy.must_subscribe(OF_A, A, CREATED);
    let mut slow = Client::connect_narrow(fed.server.address());
    slow.must_subscribe(OF_A, A, CREATED);
    let id = slow.session_id();
    let mut number = 0;
    while fed.server.metric("frames_dropped_total") == 0 {
        for _ in 0..20 {
            let event = large_call_event(A, number, 16 << 10);
            fed.publish("callevt", "call.CHANNEL_CREATE.x", &event);
            assert_eq!(healthy.recv()["args"]["Number"], number);
            number += 1;
        }
    }
    for query in ["slow=1", "sort=dropped&limit=1", "sort=outbox&limit=1"] {
        let page = get(&fed.server, &format!("/v2/sessions?{query}"));
        assert_eq!(ids(&page), [&*id], "{query}");
        let row = &rows(&page)[0];
        assert_eq!(
            row["dropped"],
            fed.server.metric("frames_dropped_total"),
            "{row}"
        );
        assert_eq!(
            row["outbox_bytes"],
            fed.server.metric("outboxes_blocked_bytes"),
            "{row}"
        );
        // The reply, and each event that was not dropped.
        let queued = number as u64 + 1 - row["dropped"].as_u64().unwrap();
        assert_eq!(row["frames"], queued, "{row}");
    }
    // What it lost stays told when it has caught up.
    let dropped = rows(&get(&fed.server, "/v2/sessions?slow=1"))[0]["dropped"].clone();
    while slow.pushed()["action"] != "notice" {}
    let row = wait_for("caught up", || {
        Some(row(&fed.server, &id)).filter(|row| row["outbox_bytes"] == 0)
    });
    assert_eq!(row["dropped"], dropped);
    assert_eq!(ids(&get(&fed.server, "/v2/sessions?slow=1")), [&*id]);
    slow.close();
    wait_for("nobody slow", || {
        ids(&get(&fed.server, "/v2/sessions?slow=1"))
            .is_empty()
            .then_some(())
    });
}

#[test]
fn sessions_are_closed_by_id_account_and_address_as_the_operator_says() {
    let fed = fed(&[]);
    let server = &fed.server;
    let connect = |token, account| {
        let mut client = Client::connect(server.address());
        client.must_subscribe(token, account, CREATED);
        client
    };
    let close = |path: &str| answer(server, 200, "DELETE", path);
    let closed = |count: usize| json!({"data": {"closed": count}, "status": "success"});

    let mut one = connect(OF_A, A);
    let mut rest = vec![connect(OF_A, A), connect(OF_B, B)];
    assert_eq!(
        close(&format!("/v2/sessions/{}", one.session_id())),
        closed(1)
    );
    assert_eq!(
        one.expect_close(),
        (1008, "closed by the operator".to_owned())
    );
    wait_for("gone", || (server.metric("sessions") == 2).then_some(()));
    let gone = format!("/v2/sessions/{}", one.session_id());
    let (status, body) = request(server, "DELETE", &gone);
    assert!(
        status == 404 && body.contains("no session"),
        "{status} {body}"
    );

    // Both must hold.
    assert_eq!(
        close(&format!("/v2/sessions?account={A}&ip=127.0.0.9")),
        closed(0)
    );
    assert_eq!(
        close(&format!(
            "/v2/sessions?account={A}&ip=127.0.0.1&code=4321&reason=see%20you"
        )),
        closed(1)
    );
    assert_eq!(rest.remove(0).expect_close(), (4321, "see you".to_owned()));
    rest.extend((0..200).map(|_| connect(OF_B, B)));
    assert_eq!(close("/v2/sessions?ip=127.0.0.1&code=1008"), closed(201));
    for client in &mut rest {
        assert_eq!(
            client.expect_close(),
            (1008, "closed by the operator".to_owned())
        );
    }
    wait_for("all gone", || {
        (server.metric("sessions") == 0).then_some(())
    });
    assert_eq!(server.metric(r#"closes_total{reason="operator"}"#), 203);
    let line = server.wait_for_log("closed by the operator: 201 ");
    assert!(
        line.contains("address 127.0.0.1") && line.contains("1008"),
        "{line}"
    );
    let line = server.wait_for_log("4321");
    assert!(
        line.contains(A) && line.contains("see you") && line.contains("asked for by 127.0.0.1"),
        "{line}"
    );
    for wrong in [
        "",
        "?",
        "?code=1008",
        "?account=x",
        "?ip=x",
        "?ip=127.0.0.1&code=1000",
    ] {
        let (status, _) = request(server, "DELETE", &format!("/v2/sessions{wrong}"));
        assert_eq!(status, 400, "{wrong}");
    }
    assert!(!server.log().contains("token-of"));
}

#[test]
fn families_are_started_and_stopped() {
    let fed = fed(&[]);
    let server = &fed.server;
    let mut client = Client::connect(server.address());
    client.must_subscribe_to_all(OF_A, A, &[CREATED, "fax.status.*"]);
    let available = get(server, "/v2/websockets");
    assert_eq!(
        available["data"]["call"][0],
        "call.CHANNEL_CREATE.{CALL_ID}"
    );
    assert_eq!(available["status"], "success");

    let stopped = answer(
        server,
        200,
        "POST",
        "/modules/bh_call?action=stop&persist=false",
    );
    let expected = json!({"module": "bh_call", "started": false, "persisted": false});
    assert_eq!(stopped["data"], expected);
    let notice = client.notice();
    assert_eq!(
        notice["data"],
        json!({"reason": "module", "bindings": [CREATED]})
    );
    assert_eq!(get(server, "/v2/websockets")["data"]["call"], Value::Null);

    let started = answer(
        server,
        200,
        "POST",
        "/modules/bh_call?action=start&persist=true",
    );
    assert_eq!(started["data"]["started"], true);
    assert_eq!(
        started["data"]["error"],
        "not kept: the process was started without --config"
    );
    client.must_subscribe(OF_A, A, CREATED);

    let (status, body) = request(server, "POST", "/modules/bh_cal?action=stop&persist=false");
    assert_eq!(
        (status, &*body),
        (404, "no such module; did you mean bh_call?\n")
    );
    let (status, _) = request(server, "POST", "/modules/bh_call?action=restart");
    assert_eq!(status, 400);
}

#[test]
fn the_log_level_is_changed_while_running() {
    let fed = fed(&[]);
    let changed = answer(&fed.server, 200, "POST", "/log-level?level=debug");
    assert_eq!(changed["data"], json!({"old": "info", "new": "debug"}));
    fed.server.client().close();
    fed.server.wait_for_log("ended: closed by the peer");
    let changed = answer(&fed.server, 200, "POST", "/log-level?level=error");
    assert_eq!(changed["data"], json!({"old": "debug", "new": "error"}));
    let (status, _) = request(&fed.server, "POST", "/log-level?level=loud");
    assert_eq!(status, 400);
}

#[test]
fn a_drain_is_ordered_once_and_the_first_signal_behind_it_changes_nothing() {
    let mut fed = fed(&[
        "--drain-delay-seconds",
        "0",
        "--drain-seconds",
        "3",
        "--going-away-ms",
        "0",
    ]);
    let mut client = Client::connect(fed.server.address());
    client.must_subscribe(OF_A, A, CREATED);
    let begun = answer(&fed.server, 202, "POST", "/drain");
    assert_eq!(begun["data"], json!({"drain": "begun", "sessions": 1}));
    let again = answer(&fed.server, 202, "POST", "/drain");
    assert_eq!(again["data"]["drain"], "under way already");
    fed.server.signal(Signal::TERM);
    assert_eq!(client.expect_close(), (1001, "going away".to_owned()));
    drop(client);
    assert!(fed.server.wait().success());
    let log = fed.server.log();
    assert!(
        log.contains("the operator ordered a drain") && log.contains("drained"),
        "{log}"
    );
    assert!(!log.contains("told again"), "{log}");
}
