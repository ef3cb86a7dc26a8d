//! Faults of the broker under live sessions, each with a RabbitMQ of its own, because it is killed, frozen or
//! stopped. Whatever happens, sessions stay connected, and get events again without doing anything. Where the server's
//! queue was there all the time they miss nothing and are told of nothing; elsewhere what they miss lies in a gap that
//! they are told of.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::scene::{Scene, new_account};
use support::broker::Broker;
use support::client::{Idle, subscribe};
use support::events::{ACCOUNT, call_event};
use support::publisher::{Asker, Publisher};
use support::server::{BROKER_PATIENCE, Server, wait_within};

/// How long a broker is frozen: longer than a silent one is waited for.
const FROZEN: Duration = Duration::from_secs(20);

#[test]
fn a_broker_killed_and_started_again_costs_a_gap_notice_and_nothing_else() {
    let Some(broker) = Broker::own() else {
        return;
    };
    let mut scene = Scene::open(&broker, &broker.url(), &[]);
    broker.kill9();
    scene.until_away();
    broker.restart();
    scene.until_back(1);
    // And again, in order this time.
    broker.stop();
    scene.until_away();
    broker.restart();
    scene.until_back(2);
    let (server, _) = scene.close("killed, then stopped", 2);
    assert_eq!(server.metric("source_outages_total"), 2);
}

#[test]
fn a_broker_frozen_for_20_seconds_is_noticed_before_it_thaws_and_costs_no_event_and_no_notice() {
    let Some(broker) = Broker::own() else {
        return;
    };
    let mut scene = Scene::open(&broker, &broker.url(), &[]);
    let frozen = Instant::now();
    broker.pause();
    scene.until_away();
    wait_within(BROKER_PATIENCE, "20 s", || {
        (frozen.elapsed() >= FROZEN).then_some(())
    });
    broker.resume();
    scene.until_back(0);
    let (server, _) = scene.close("frozen for 20 s", 0);
    assert_eq!(server.metric("amqp_queues_unbroken_total"), 1);
}

#[test]
fn a_broker_short_of_memory_drops_no_session_and_hangs_neither_reconnect_nor_end() {
    let Some(broker) = Broker::own() else {
        return;
    };
    let scene = Scene::open(&broker, &broker.url(), &[]);
    broker.ctl(&["set_vm_memory_high_watermark", "0.000001"]);
    wait_within(BROKER_PATIENCE, "the publisher is blocked", || {
        let states = broker.ctl(&["list_connections", "state"]);
        states.contains("block").then_some(())
    });
    // Binding goes on, and nobody is told of a gap: nothing is lost.
    let mut session = scene.server.client();
    session.must_subscribe("any", ACCOUNT, "fax.status.one");
    assert_eq!(
        scene.server.metric("gap_notices_total"),
        0,
        "{}",
        scene.server.log()
    );
    assert_eq!(scene.server.probe(), 200);
    let session = Idle::start(session);
    close_our_connection(&broker);
    scene.server.wait_for_metric("amqp_connects_total", 2);
    scene.server.until_ready();
    let mut session = session.take_back();
    session.must_subscribe("any", ACCOUNT, "fax.status.two");
    let session = Idle::start(session);
    let mut other = Server::bridge(&broker.url(), &["--drain-seconds", "1"]);
    other
        .client()
        .must_subscribe("any", ACCOUNT, "fax.status.three");
    assert!(other.stop().success());
    let blocked = scene.numbered.latest();
    assert!(broker.ctl(&["list_connections", "state"]).contains("block"));
    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]);
    scene.until_back(0);
    assert!(scene.numbered.latest() > blocked);
    let _server = scene.close("short of memory, and closed meanwhile", 0);
    session.take_back();
}

/// What tells our connection from others in a list with `client_properties`.
pub(crate) const OURS: &str = "\"information\",\"blackhole\"";

/// As an operator would.
pub(crate) fn close_our_connection(broker: &Broker) {
    let connections = broker.ctl(&["list_connections", "pid", "client_properties"]);
    let ours = connections
        .lines()
        .find(|line| line.contains(OURS))
        .unwrap_or_else(|| panic!("none is ours: {connections}"));
    let pid = ours.split_whitespace().next().unwrap();
    broker.ctl(&["close_connection", pid, "the operator wants it so"]);
}

#[test]
fn what_an_operator_ends_is_back_with_all_its_bindings_and_only_the_end_of_the_queue_costs_a_gap_notice()
 {
    let Some(broker) = Broker::own() else {
        return;
    };
    let scene = Scene::open(&broker, &broker.url(), &[]);
    let delete = || {
        broker.ctl(&[
            "eval",
            "[rabbit_amqqueue:delete(Queue, false, false, <<\"operator\">>) || Queue <- rabbit_amqqueue:list()].",
        ]);
    };
    let ends: [(&dyn Fn(), u64); 3] = [
        (&|| close_our_connection(&broker), 0),
        (
            &|| drop(broker.ctl(&["close_all_connections", "everybody out"])),
            0,
        ),
        (&delete, 1),
    ];
    for (connects, (end, gaps)) in (2..).zip(ends) {
        end();
        scene
            .server
            .wait_for_metric("amqp_connects_total", connects);
        scene.until_back(gaps);
    }
    let log = scene.server.log();
    for cause in [
        "the operator wants it so",
        "everybody out",
        "the queue was deleted",
    ] {
        assert!(log.contains(cause), "{cause}: {log}");
    }
    scene.close("ended by an operator", 1);
}

/// The names of our queues on the broker.
fn our_queues(broker: &Broker) -> Vec<String> {
    let listed = broker.ctl(&["list_queues", "name"]);
    let ours = listed.lines().filter(|line| line.starts_with("blackhole."));
    ours.map(str::to_owned).collect()
}

#[test]
fn the_servers_queue_ends_with_sigterm_and_expires_after_a_crash() {
    let Some(broker) = Broker::own() else {
        return;
    };
    let start = |args: &[&str]| {
        let args = [&["--drain-seconds", "1"], args].concat();
        Server::bridge(&broker.url(), &args)
    };
    let mut server = start(&[]);
    assert_eq!(our_queues(&broker).len(), 1);
    assert!(server.stop().success());
    assert_eq!(our_queues(&broker), Vec::<String>::new());

    for expires in ["3600", "2"] {
        let mut crashing = start(&["--queue-expires-seconds", expires]);
        crashing.signal(Signal::KILL);
        crashing.wait();
    }
    wait_within(BROKER_PATIENCE, "the one expires", || {
        (our_queues(&broker).len() == 1).then_some(())
    });
    let left = our_queues(&broker);

    // A durable one has its marker beside it.
    let mut server = start(&["--durable-queue"]);
    let mut queues = our_queues(&broker);
    queues.retain(|queue| !left.contains(queue));
    queues.sort();
    let [queue, marker] = &queues[..] else {
        panic!("{queues:?}");
    };
    assert_eq!(*marker, format!("{queue}.marker"));
    assert!(server.stop().success());
    assert_eq!(our_queues(&broker), left);
}

#[test]
fn a_subscribe_while_the_broker_is_away_succeeds_when_it_comes_back_in_time() {
    let Some(broker) = Broker::own() else {
        return;
    };
    broker.kill9();
    let patient = Server::unready(
        &broker.url(),
        &["--auth", "insecure", "--request-timeout-ms", "60000"],
    );
    let mut session = patient.client();
    session.send(&subscribe("any", ACCOUNT, "call.CHANNEL_CREATE.*"));
    broker.restart();
    assert_eq!(session.reply()["status"], "success");
    publish_call(&broker, 1);
    assert_eq!(session.event()["args"]["Number"], 1);
}

#[test]
fn an_exchange_that_was_deleted_is_back_for_all_its_sessions_and_no_others_hear_of_it() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let server = Server::bridge(&broker.url(), &["--rate-limit-burst", "100000"]);
    let mut fax = server.client();
    fax.must_subscribe("any", ACCOUNT, "fax.status.one");
    Publisher::connect(&broker.url()).delete("faxes");
    // The broker tells nobody that the binding went with it; the next binding to that exchange finds out.
    server
        .client()
        .must_subscribe("any", ACCOUNT, "fax.status.two");
    assert_eq!(fax.notice()["data"]["reason"], "event_source");
    let publisher = Publisher::connect(&broker.url());
    for (number, fax_id) in [(1, "one"), (2, "two")] {
        let key = format!("fax.status.{ACCOUNT}.{fax_id}");
        let body: Value =
            json!({"Event-Name": "fax_status", "Account-ID": ACCOUNT, "Number": number});
        publisher.publish("faxes", &key, body.to_string().as_bytes());
    }
    assert_eq!(fax.event()["args"]["Number"], 1);
    // Nobody subscribes, and nobody but those who need it hears of it.
    let mut call = server.client();
    call.must_subscribe("any", &new_account(), "call.*.*");
    Publisher::connect(&broker.url()).delete("faxes");
    assert_eq!(fax.notice()["data"]["reason"], "event_source");
    // Somebody else declares it at once: the broker tells nobody, and nobody can know, but the binding is back.
    let publisher = Publisher::connect(&broker.url());
    publisher.delete("faxes");
    publisher.declare(amiquip::ExchangeType::Topic, "faxes");
    let key = format!("fax.status.{ACCOUNT}.one");
    let body = json!({"Event-Name": "fax_status", "Account-ID": ACCOUNT, "Number": 2});
    let came = wait_within(BROKER_PATIENCE, "events of the new exchange", || {
        publisher.publish("faxes", &key, body.to_string().as_bytes());
        publisher.settle();
        let message = fax.next_or_pong();
        (message["action"] == "event").then_some(message)
    });
    assert_eq!(came["args"]["Number"], 2);
    call.assert_nothing_came("any");
    assert_eq!(server.metric("amqp_disconnects_total"), 0);
    assert_eq!(server.metric("amqp_bindings_lost"), 0);
}

fn publish_call(broker: &Broker, number: usize) {
    let event = call_event(ACCOUNT, "CHANNEL_CREATE", number);
    Publisher::connect(&broker.url()).publish(
        "callevt",
        "call.CHANNEL_CREATE.call",
        event.to_string().as_bytes(),
    );
}

#[test]
fn a_broker_killed_under_the_platforms_requests_is_asked_through_again_once_it_is_back() {
    let Some(broker) = Broker::own() else {
        return;
    };
    let server = Server::bridge(&broker.url(), &[]);
    server.wait_for_metric("amqp_control_connects_total", 1);
    let account = new_account();
    let mut session = server.client();
    session.must_subscribe("any", &account, "call.*.*");
    let session_id = session.session_id();
    let idle = Idle::start(session);
    let listed = |asker: &Asker| {
        asker.ask_for_sessions(&json!({"Account-ID": account}));
        asker.answer().json["Data"][0]["websocket_session_id"].clone()
    };
    assert_eq!(listed(&Asker::connect(&broker.url(), "q")), *session_id);
    broker.kill9();
    server.wait_for_metric("amqp_control_up", 0);
    broker.restart();
    server.wait_for_metric("amqp_control_connects_total", 2);
    let asker = Asker::connect(&broker.url(), "q");
    assert_eq!(listed(&asker), *session_id);
    let answer = asker.switch("bh_fax", "stop", &json!({"Persist": false}));
    assert_eq!(answer["Started"], false, "{answer}");

    // Frozen, in order and without a word: the server ends in time all the same.
    server.until_ready();
    let session = idle.take_back();
    broker.pause();
    let mut server = server;
    let told = Instant::now();
    assert!(server.stop().success());
    assert!(
        told.elapsed() < Duration::from_secs(15),
        "{:?}",
        told.elapsed()
    );
    broker.resume();
    drop(session);
}
