//! `blackhole sub` and what it has missed (PROTOCOL 10), against a server that follows a script: what it asks for, what it
//! leaves out, what it says, and how it moves.

use std::net::{TcpListener, TcpStream};

use serde_json::{Value, json};
use tungstenite::{Error, Message, WebSocket};

use support::client::ANY_TOKEN;
use support::events::ACCOUNT;
use support::server::PATIENCE;

use crate::sub::Sub;

const BINDING: &str = "call.*.*";

/// A listener, and the program that connects to it.
fn begin(more: &[&str]) -> (TcpListener, Sub) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let form: &[&str] = if more.contains(&"--json") {
        &[]
    } else {
        &["--keys"]
    };
    let sub = Sub::at(
        listener.local_addr().unwrap(),
        &[form, more, &[BINDING]].concat(),
    );
    (listener, sub)
}

/// The server's end of a session.
struct Served {
    websocket: WebSocket<TcpStream>,
    /// `data.resume` of the subscribe.
    resume: Value,
}

impl Served {
    /// The next connection, once it has sent its subscribe.
    fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let websocket = tungstenite::accept(stream).unwrap();
        let mut served = Self {
            websocket,
            resume: Value::Null,
        };
        served.resume = served.command()["data"]["resume"].clone();
        served
    }

    fn command(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.websocket.read().expect("a command") {
                let command: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(command["auth_token"], ANY_TOKEN);
                assert_eq!(command["data"]["account_id"], ACCOUNT);
                return command;
            }
        }
    }

    fn send(&mut self, message: &Value) {
        self.websocket
            .send(Message::text(message.to_string()))
            .unwrap();
    }

    /// Answers the subscribe; `more`: members of `data`.
    fn subscribed(&mut self, more: &Value) {
        let mut data = json!({"subscribed": [BINDING], "subscriptions": [BINDING]});
        for (name, value) in more.as_object().unwrap() {
            data[name] = value.clone();
        }
        self.send(
            &json!({"action": "reply", "request_id": "1", "status": "success", "data": data}),
        );
    }

    fn event(&mut self, key: &str, cursor: &str, is_replayed: bool) {
        let mut event = json!({"action": "event", "name": "X", "routing_key": key, "args": {}, "cursor": cursor});
        if is_replayed {
            event["replayed"] = true.into();
        }
        self.send(&event);
    }

    fn notice(&mut self, name: &str, data: &Value) {
        self.send(&json!({"action": "notice", "name": name, "data": data}));
    }

    /// Whether the client closes in good order.
    fn ends_well(mut self) -> bool {
        loop {
            match self.websocket.read() {
                Ok(Message::Close(_)) => {
                    let ended = self.websocket.flush();
                    return matches!(ended, Ok(()) | Err(Error::ConnectionClosed));
                }
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }
}

/// A cursor of process `mark`.
fn cursor(id: u64, time: u32, mark: &str) -> String {
    format!("{id:016x}.{time}.{mark}")
}

#[test]
fn what_was_missed_is_fetched_and_what_came_before_is_left_out() {
    let (listener, mut sub) = begin(&[]);
    let mut first = Served::accept(&listener);
    assert_eq!(first.resume, true);
    first.subscribed(&json!({"cursor": "0.1000.aaaaaa"}));
    first.event("one", &cursor(1, 1001, "aaaaaa"), false);
    first.event("two", &cursor(2, 1002, "aaaaaa"), false);
    assert_eq!([sub.event(), sub.event()], ["one", "two"]);
    drop(first);

    let mut second = Served::accept(&listener);
    assert_eq!(second.resume, json!(cursor(2, 1002, "aaaaaa")));
    second.subscribed(&json!({"cursor": cursor(2, 1002, "aaaaaa"), "resumed": true}));
    for (key, id) in [("one", 1), ("two", 2), ("two once more", 2), ("three", 3)] {
        second.event(key, &cursor(id, 1003, "bbbbbb"), true);
    }
    second.notice("resumed", &json!({"events": 4}));
    second.event("four", &cursor(4, 1004, "bbbbbb"), false);
    assert_eq!(
        [sub.event(), sub.event(), sub.event()],
        ["two once more", "three", "four"],
        "an equal publish is an event of its own"
    );
    assert_eq!(
        sub.hears("resumed"),
        "blackhole sub: resumed: 4 events that were missed have come, 2 of them again and left out"
    );

    // The loss of a replay is made good by the next.
    drop(second);
    let mut third = Served::accept(&listener);
    third.subscribed(&json!({"cursor": cursor(4, 1004, "bbbbbb"), "resumed": true}));
    third.event("five", &cursor(5, 1005, "bbbbbb"), true);
    assert_eq!(sub.event(), "five");
    drop(third);
    let mut fourth = Served::accept(&listener);
    assert_eq!(fourth.resume, json!(cursor(5, 1005, "bbbbbb")));
    fourth.subscribed(&json!({"cursor": cursor(5, 1005, "bbbbbb"), "resumed": true}));
    fourth.notice("resumed", &json!({"events": 0}));
    sub.hears("resumed: no event was missed");
    drop(listener);
    drop(fourth);
    sub.hears("next try in");
    assert!(
        !sub.log().iter().any(|line| line.contains("missing")),
        "{:?}",
        sub.log()
    );
}

#[test]
fn a_ping_moves_the_cursor_of_a_quiet_session_on() {
    // The ping itself comes after 20 s: here its reply comes unasked.
    let (listener, _sub) = begin(&[]);
    let mut first = Served::accept(&listener);
    first.subscribed(&json!({"cursor": "0.1000.aaaaaa"}));
    let data = json!({"response": "pong", "cursor": "0.2000.aaaaaa"});
    first
        .send(&json!({"action": "reply", "request_id": "ping", "status": "success", "data": data}));
    drop(first);
    assert_eq!(Served::accept(&listener).resume, "0.2000.aaaaaa");
}

#[test]
fn a_gap_is_told_with_its_cause() {
    let (listener, mut sub) = begin(&[]);
    let mut served = Served::accept(&listener);
    served.subscribed(&json!({"cursor": "0.1000.aaaaaa"}));
    for (why, expected) in [
        ("expired", "the server does not keep events for so long"),
        ("outage", "the server's source of events was away"),
        ("a new one", "a new one"),
    ] {
        drop(served);
        served = Served::accept(&listener);
        served.subscribed(&json!({"cursor": "0.1000.aaaaaa", "resumed": false}));
        served.notice("gap", &json!({"reason": "resume", "why": why}));
        sub.hears("gap: events from ");
        sub.hears(&format!("not resumed: {expected}"));
    }
    // In the middle of a replay.
    drop(served);
    served = Served::accept(&listener);
    served.subscribed(&json!({"cursor": "0.1000.aaaaaa", "resumed": true}));
    served.notice("gap", &json!({"reason": "resume", "why": "too_many"}));
    let told = sub.hears("gap: events from ");
    assert!(
        told.ends_with(" may be missing: more events came than the server replays"),
        "{told}"
    );
}

#[test]
fn a_server_without_cursors_is_used_as_ever() {
    let (listener, mut sub) = begin(&[]);
    let mut served = Served::accept(&listener);
    served.subscribed(&json!({}));
    served.notice("going_away", &json!({"within_ms": 60_000}));
    assert_eq!(
        sub.hears("going_away"),
        "blackhole sub: going_away: within_ms=60000"
    );
    drop(served);
    let mut served = Served::accept(&listener);
    assert_eq!(served.resume, true);
    served.subscribed(&json!({}));
    sub.hears("may be missing");
}

#[test]
fn where_the_second_cannot_resume_both_are_read_for_a_while_and_nothing_is_missing() {
    let (listener, mut sub) = begin(&[]);
    let mut first = Served::accept(&listener);
    first.subscribed(&json!({"cursor": "0.1000.aaaaaa"}));
    first.event("one", &cursor(1, 1001, "aaaaaa"), false);
    first.notice("going_away", &json!({"within_ms": 60_000}));
    let mut second = Served::accept(&listener);
    // Before the second has its bindings, and so never there.
    first.event("two", &cursor(2, 1002, "aaaaaa"), false);
    second.subscribed(&json!({"cursor": "0.1003.bbbbbb", "resumed": false}));
    second.notice("gap", &json!({"reason": "resume", "why": "unknown"}));
    sub.hears("both sessions are read for 1.0 s");
    for served in [&mut second, &mut first] {
        for (key, id) in [("three", 3), ("equal", 4), ("equal", 4)] {
            served.event(key, &cursor(id, 1004, "aaaaaa"), false);
        }
    }
    first.event("last of the first", &cursor(5, 1005, "aaaaaa"), false);
    let mut events: Vec<String> = (0..6).map(|_| sub.event()).collect();
    events.sort();
    assert_eq!(
        events,
        ["equal", "equal", "last of the first", "one", "three", "two"]
    );
    assert!(first.ends_well(), "in good order");
    sub.hears("moved: 3 events came on both sessions and were told once");
    assert!(
        !sub.log().iter().any(|line| line.contains("missing")),
        "{:?}",
        sub.log()
    );
    second.event("six", &cursor(6, 1006, "bbbbbb"), false);
    assert_eq!(sub.event(), "six");
    drop(second);
    assert_eq!(
        Served::accept(&listener).resume,
        json!(cursor(6, 1006, "bbbbbb"))
    );
}

#[test]
fn a_first_session_that_is_lost_while_both_are_read_is_a_gap() {
    let (listener, mut sub) = begin(&["--json"]);
    let mut first = Served::accept(&listener);
    first.subscribed(&json!({"cursor": "0.1000.aaaaaa"}));
    first.notice("going_away", &json!({"within_ms": 60_000}));
    let mut second = Served::accept(&listener);
    second.subscribed(&json!({"cursor": "0.1003.bbbbbb", "resumed": false}));
    second.notice("gap", &json!({"reason": "resume", "why": "unknown"}));
    sub.hears("both sessions are read for 1.0 s");
    drop(first);
    sub.hears("may be missing");
    let told: Value = serde_json::from_str(&sub.event()).unwrap();
    assert_eq!(told["name"], "going_away");
    let told: Value = serde_json::from_str(&sub.event()).unwrap();
    assert_eq!(
        (&told["name"], &told["data"]["reason"]),
        (&json!("gap"), &json!("reconnect"))
    );
}

#[test]
fn a_cursor_that_is_refused_is_given_up_and_the_gap_told() {
    let (listener, mut sub) = begin(&[]);
    let mut served = Served::accept(&listener);
    served.subscribed(&json!({"cursor": "0.1000.aaaaaa"}));
    drop(served);
    let mut served = Served::accept(&listener);
    assert_eq!(served.resume, "0.1000.aaaaaa");
    let data = json!({"errors": ["invalid resume"]});
    served.send(&json!({"action": "reply", "request_id": "1", "status": "error", "data": data}));
    assert_eq!(served.command()["data"]["resume"], true);
    served.subscribed(&json!({"cursor": "0.2000.bbbbbb"}));
    sub.hears("may be missing");
}

#[test]
fn who_does_not_want_it_asks_for_nothing_and_stays() {
    let (listener, mut sub) = begin(&["--no-resume"]);
    let mut served = Served::accept(&listener);
    assert_eq!(served.resume, Value::Null);
    served.subscribed(&json!({}));
    served.notice("going_away", &json!({"within_ms": 60_000}));
    sub.hears("going_away: within_ms=60000");
    served.event("one", &cursor(1, 1001, "aaaaaa"), false);
    assert_eq!(sub.event(), "one");
    drop(served);
    assert_eq!(Served::accept(&listener).resume, Value::Null);
}

#[test]
fn told_that_the_server_goes_away_it_moves_before_it_leaves() {
    let (listener, mut sub) = begin(&[]);
    let mut first = Served::accept(&listener);
    first.subscribed(&json!({"cursor": "0.1000.aaaaaa"}));
    first.event("one", &cursor(1, 1001, "aaaaaa"), false);
    first.notice("going_away", &json!({"within_ms": 3000}));
    sub.hears("the server goes away in 3.0 s: moving");

    // A second that comes to nothing: the first is read on, from where it was.
    let second = Served::accept(&listener);
    assert_eq!(second.resume, json!(cursor(1, 1001, "aaaaaa")));
    first.event("two", &cursor(2, 1002, "aaaaaa"), false);
    drop(second);
    sub.hears("cannot move yet");
    assert_eq!([sub.event(), sub.event()], ["one", "two"]);

    let mut third = Served::accept(&listener);
    assert_eq!(third.resume, json!(cursor(2, 1002, "aaaaaa")));
    // Comes to the first too, which is not read any more.
    first.event("three", &cursor(3, 1003, "aaaaaa"), false);
    third.subscribed(&json!({"cursor": cursor(2, 1002, "aaaaaa"), "resumed": true}));
    third.event("two", &cursor(2, 1002, "bbbbbb"), true);
    third.event("three", &cursor(3, 1003, "bbbbbb"), true);
    third.notice("resumed", &json!({"events": 2}));
    third.event("four", &cursor(4, 1004, "bbbbbb"), false);
    assert!(first.ends_well(), "in good order");
    assert_eq!([sub.event(), sub.event()], ["three", "four"]);
    sub.hears("resumed: 2 events that were missed have come, 1 of them again and left out");
    assert!(
        !sub.log().iter().any(|line| line.contains("missing")),
        "{:?}",
        sub.log()
    );
}
