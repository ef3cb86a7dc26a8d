//! Commands that are worth a look at each of their parts, and no more: the server's CPU time grows with what is sent,
//! not with its square, whatever it is.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::flood::{Flood, Script};
use crate::judge::{Delays, Rounds, alone, assert_times};
use support::client::{ANY_TOKEN, Client, ping, subscribe, subscribe_to_all};
use support::events::ACCOUNT;
use support::server::{Fed, Server, dead_address};

/// Commands that are measured together; and bytes of one that leave room for its other members.
const COMMANDS: usize = 20;
const LIST_BYTES: usize = 60_000;

/// Subscriptions of a session, as many as it may have.
const SUBSCRIPTIONS: usize = 256;

/// An honest session's pings, and the pause between two.
const ROUNDS: usize = 3;
const PINGS: usize = 30;
const PING_PACE: Duration = Duration::from_millis(10);

const NO_RATE_LIMIT: [&str; 2] = ["--rate-limit-burst", "1000000"];

/// CPU time that the server takes for [`COMMANDS`] of these commands.
fn cpu_of(server: &Server, session: &mut Client, command: &Value) -> Duration {
    let text = command.to_string();
    assert!(text.len() <= 64 << 10, "{} bytes", text.len());
    // What it takes the first time is not its price.
    session.send_text(&text);
    session.reply();
    let before = server.cpu_nanoseconds();
    for _ in 0..COMMANDS {
        session.send_text(&text);
        session.reply();
    }
    Duration::from_nanos(server.cpu_nanoseconds() - before)
}

fn names(count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("fax.status.{number:x}"))
        .collect()
}

fn all(bindings: &[String]) -> Value {
    let bindings: Vec<&str> = bindings.iter().map(|binding| &**binding).collect();
    subscribe_to_all(ANY_TOKEN, ACCOUNT, &bindings)
}

/// As many of this name as one command has room for.
fn doubles(name: &str) -> Vec<String> {
    vec![name.to_owned(); LIST_BYTES / (name.len() + 3)]
}

#[test]
fn a_list_of_bindings_costs_what_its_length_costs_whatever_is_in_it_twice() {
    let _alone = alone();
    let fed = Fed::insecure(&NO_RATE_LIMIT);
    let mut session = fed.server.client();
    let names = names(SUBSCRIPTIONS);
    let reply = session.ask(&all(&names));
    assert_eq!(reply["status"], "success", "{reply}");
    let last = &names[SUBSCRIPTIONS - 1];
    let mut cpu = |list: &[String]| cpu_of(&fed.server, &mut session, &all(list));
    let apart = cpu(&doubles(last)) + cpu(&names);
    let mut list = names.clone();
    list.extend(doubles(last).drain(SUBSCRIPTIONS..));
    assert_times(
        "cpu of doubles behind 256 others, by both apart",
        apart,
        cpu(&list),
        1.3,
    );
}

#[test]
fn a_list_of_different_bindings_costs_what_its_length_costs() {
    let _alone = alone();
    let cpu = |length: usize| {
        let fed = Fed::insecure(&[&NO_RATE_LIMIT[..], &["--max-subscriptions", "0"]].concat());
        let list = names(length);
        let mut session = fed.server.client();
        let before = fed.server.cpu_nanoseconds();
        let reply = session.ask(&all(&list));
        assert_eq!(reply["status"], "success", "{reply}");
        Duration::from_nanos(fed.server.cpu_nanoseconds() - before)
    };
    let (short, long) = (cpu(400), cpu(3200));
    assert_times("cpu of a list of 3,200, by one of 400", short, long, 16.0);
}

/// A server, and a binding on it that only a session has which is not the attacker's.
fn with_a_binding_elsewhere(args: &[&str]) -> (Fed, Client, Value) {
    let fed = Fed::insecure(args);
    let mut owner = fed.server.client();
    let elsewhere = "call.*.else";
    owner.must_subscribe(ANY_TOKEN, ACCOUNT, elsewhere);
    let mut unsubscribe = all(&doubles(elsewhere));
    unsubscribe["action"] = json!("unsubscribe");
    (fed, owner, unsubscribe)
}

#[test]
fn an_unsubscribe_costs_what_its_list_costs_whatever_the_session_has() {
    let _alone = alone();
    let (fed, _owner, unsubscribe) = with_a_binding_elsewhere(&NO_RATE_LIMIT);
    let cpu = |subscriptions: usize| {
        let mut session = fed.server.client();
        let reply = session.ask(&all(&names(subscriptions)));
        assert_eq!(reply["status"], "success", "{reply}");
        cpu_of(&fed.server, &mut session, &unsubscribe)
    };
    let (few, many) = (cpu(8), cpu(SUBSCRIPTIONS));
    assert_times(
        "cpu of an unsubscribe list with 256 subscriptions, by 8",
        few,
        many,
        3.0,
    );
}

#[test]
fn a_ping_waits_no_longer_beside_lists_of_sessions_that_have_much() {
    let _alone = alone();
    let (fed, mut honest, unsubscribe) = with_a_binding_elsewhere(&[]);
    let mut beside = |subscriptions: usize, delays: &mut Delays| {
        let script = Script {
            greeting: Some(all(&names(subscriptions)).to_string()),
            message: unsubscribe.to_string(),
            // Within the rate limit.
            repeats: 90,
        };
        let flood = Flood::start(fed.server.address(), 3, &script.bytes());
        for _ in 0..PINGS {
            delays.time(|| honest.ask(&ping("honest")));
            thread::park_timeout(PING_PACE);
        }
        drop(flood);
    };
    let mut rounds = Rounds::default();
    for _ in 0..ROUNDS {
        let (few, many) = rounds.next();
        beside(8, few);
        beside(SUBSCRIPTIONS, many);
    }
    rounds.assert_ratio("pings beside lists of sessions that have much", 50, 2.5);
}

#[test]
fn a_binding_that_is_too_long_costs_no_more_than_its_bytes() {
    let _alone = alone();
    let fed = Fed::insecure(&NO_RATE_LIMIT);
    let mut session = fed.server.client();
    let long = "x".repeat(LIST_BYTES);
    let mut ignored = subscribe(ANY_TOKEN, ACCOUNT, "call.*.short");
    ignored["data"]["ignored"] = json!(long);
    let read = cpu_of(&fed.server, &mut session, &ignored);
    for binding in ["call.*.", "call.CHANNEL_CREATE.", "fax.status.", "nothing."] {
        let command = subscribe(ANY_TOKEN, ACCOUNT, &format!("{binding}{long}"));
        let resolved = cpu_of(&fed.server, &mut session, &command);
        assert_times(
            &format!("cpu of {binding} and 60,000 bytes, by bytes that are only read"),
            read,
            resolved,
            4.0,
        );
    }
}

/// CPU time of so many leaving that wait for the same AMQP bindings.
fn cpu_of_leaving(sessions: usize) -> Duration {
    let (_nobody, address) = dead_address();
    let url = format!("amqp://guest:guest@{address}/%2f");
    let args = ["--auth", "insecure", "--request-timeout-ms", "60000"];
    let server = Server::unready(&url, &args);
    let mut waiting: Vec<Client> = (0..sessions).map(|_| server.client()).collect();
    let bindings: Vec<String> = (0..30).map(|number| format!("call.*.{number}")).collect();
    for session in &mut waiting {
        session.send(&all(&bindings));
    }
    server.wait_for_metric("subscribes_waited_total", sessions as u64);
    let before = server.cpu_nanoseconds();
    // The last first, who stand behind all others.
    while waiting.pop().is_some() {}
    server.wait_for_metric("sessions", 0);
    Duration::from_nanos(server.cpu_nanoseconds() - before)
}

#[test]
fn subscribers_that_wait_together_and_leave_cost_each_what_one_costs() {
    let _alone = alone();
    let (few, many) = (cpu_of_leaving(300), cpu_of_leaving(2400));
    assert_times("cpu of 2,400 that leave, by 300", few, many, 16.0);
}
