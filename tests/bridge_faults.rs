//! Faults of the broker under live sessions: the real binary, real websocket clients, and a private RabbitMQ for
//! each test, because it is killed, frozen or stopped. Whatever happens, sessions stay connected, are told of the
//! gap, and get events again without doing anything.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

mod support;

use std::time::Instant;

use serde_json::{Value, json};

use support::broker::Broker;
use support::client::{Client, subscribe};
use support::events::{ACCOUNT, OTHER_ACCOUNT, database};
use support::publisher::Publisher;
use support::server::Server;

/// Sessions of two accounts and two families, and one that is not subscribed.
struct Sessions {
    call: Client,
    neighbour: Client,
    document: Client,
    idle: Client,
}

impl Sessions {
    fn open(server: &Server) -> Self {
        let mut sessions = Self {
            call: server.client(),
            neighbour: server.client(),
            document: server.client(),
            idle: server.client(),
        };
        sessions
            .call
            .must_subscribe("any", ACCOUNT, "call.CHANNEL_CREATE.*");
        sessions
            .neighbour
            .must_subscribe("any", OTHER_ACCOUNT, "call.CHANNEL_CREATE.*");
        sessions
            .document
            .must_subscribe("any", ACCOUNT, "object.doc_edited.user");
        sessions.idle.assert_nothing_came("any");
        sessions
    }

    /// Publishes one event for each that is subscribed; each gets exactly its own.
    fn assert_events_flow(&mut self, broker: &Broker, number: usize) {
        let publisher = Publisher::connect(&broker.url());
        for account in [OTHER_ACCOUNT, ACCOUNT] {
            publisher.publish(
                "callevt",
                "call.CHANNEL_CREATE.call",
                &body(account, "CHANNEL_CREATE", number),
            );
            let key = format!("doc_edited.{}.user.id", database(account));
            publisher.publish("configuration", &key, &body(account, "doc_edited", number));
        }
        for (session, account) in [
            (&mut self.call, ACCOUNT),
            (&mut self.neighbour, OTHER_ACCOUNT),
            (&mut self.document, ACCOUNT),
        ] {
            let event = session.event();
            assert_eq!(
                (&event["args"]["Account-ID"], &event["args"]["Number"]),
                (&json!(account), &json!(number))
            );
            session.assert_nothing_came("any");
        }
        self.idle.assert_nothing_came("any");
    }

    /// Everybody who is subscribed is told of a gap that is no shorter than `least` and no longer than since `most`.
    fn assert_told_of_a_gap(&mut self, least: f64, most: Instant) {
        for session in [&mut self.call, &mut self.neighbour, &mut self.document] {
            let notice = session.notice();
            let seconds = notice["data"]["seconds"].as_f64().unwrap();
            let expected = json!({
                "action": "notice", "name": "gap", "data": {"reason": "event_source", "seconds": notice["data"]["seconds"]}
            });
            assert_eq!(notice, expected);
            // Told in tenths.
            assert!(
                seconds >= least - 0.1,
                "{seconds} s, but it was at least {least} s"
            );
            let most = most.elapsed().as_secs_f64() + 0.1;
            assert!(seconds <= most, "{seconds} s, but it was at most {most} s");
        }
        self.idle.assert_nothing_came("any");
    }
}

fn body(account: &str, event: &str, number: usize) -> Vec<u8> {
    let body: Value =
        json!({"Event-Name": event, "Type": "user", "Account-ID": account, "Number": number});
    body.to_string().into_bytes()
}

#[test]
fn a_broker_killed_and_started_again_costs_a_gap_notice_and_nothing_else() {
    let broker = Broker::start();
    let server = Server::bridge(&broker.url(), &[]);
    let mut sessions = Sessions::open(&server);
    sessions.assert_events_flow(&broker, 1);

    // The gap counts from when the broker was last heard, a heartbeat before the kill at the latest.
    let last_heard = Instant::now();
    broker.kill9();
    server.until_not_ready();
    let noticed = Instant::now();
    // Sessions live on meanwhile: one that has its binding is answered, though not before the broker is back.
    sessions.idle.assert_nothing_came("any");
    sessions.call.assert_nothing_came("any");
    broker.restart();
    let away = noticed.elapsed().as_secs_f64();
    server.until_ready();
    sessions.assert_told_of_a_gap(away, last_heard);
    sessions.assert_events_flow(&broker, 2);
    assert_eq!(server.metric("source_outages_total"), 1);
    assert_eq!(server.metric("sessions_closed_total"), 0);

    // And again, in order this time.
    let last_heard = Instant::now();
    broker.stop();
    server.until_not_ready();
    let noticed = Instant::now();
    broker.restart();
    let away = noticed.elapsed().as_secs_f64();
    server.until_ready();
    sessions.assert_told_of_a_gap(away, last_heard);
    sessions.assert_events_flow(&broker, 3);
    assert_eq!(server.metric("sessions_closed_total"), 0);
}

#[test]
fn a_frozen_broker_is_noticed_and_events_flow_when_it_thaws() {
    let broker = Broker::start();
    let server = Server::bridge(&broker.url(), &[]);
    let mut sessions = Sessions::open(&server);
    let last_heard = Instant::now();
    broker.pause();
    server.until_not_ready();
    let noticed = Instant::now();
    sessions.idle.assert_nothing_came("any");
    broker.resume();
    let away = noticed.elapsed().as_secs_f64();
    server.until_ready();
    sessions.assert_told_of_a_gap(away, last_heard);
    sessions.assert_events_flow(&broker, 1);
    assert_eq!(server.metric("sessions_closed_total"), 0);
}

#[test]
fn a_subscribe_while_the_broker_is_away_succeeds_when_it_comes_back_in_time_and_fails_when_not() {
    let broker = Broker::start();
    let server = Server::bridge(&broker.url(), &["--request-timeout-ms", "2000"]);
    let mut session = server.client();
    session.must_subscribe("any", ACCOUNT, "call.CHANNEL_CREATE.*");
    broker.kill9();
    server.until_not_ready();
    let mut other = server.client();
    let command = subscribe("any", ACCOUNT, "call.CHANNEL_CREATE.*");
    let reply = other.ask(&command);
    assert_eq!(reply["data"]["errors"], json!(["event source unavailable"]));
    drop(server);

    let patient = Server::unready(
        &broker.url(),
        &["--auth", "insecure", "--request-timeout-ms", "60000"],
    );
    let mut other = patient.client();
    other.send(&command);
    broker.restart();
    assert_eq!(other.reply()["status"], "success");
    let publisher = Publisher::connect(&broker.url());
    publisher.publish(
        "callevt",
        "call.CHANNEL_CREATE.call",
        &body(ACCOUNT, "CHANNEL_CREATE", 1),
    );
    assert_eq!(other.event()["args"]["Number"], 1);
}

#[test]
fn a_queue_deleted_by_an_operator_is_back_with_all_its_bindings() {
    let broker = Broker::start();
    let server = Server::bridge(&broker.url(), &[]);
    let mut sessions = Sessions::open(&server);
    let last_heard = Instant::now();
    broker.ctl(&[
        "eval",
        "[rabbit_amqqueue:delete(Queue, false, false, <<\"operator\">>) || Queue <- rabbit_amqqueue:list()].",
    ]);
    // Connected again, with a queue again.
    server.wait_for_metric("amqp_connects_total", 2);
    server.until_ready();
    sessions.assert_told_of_a_gap(0.0, last_heard);
    sessions.assert_events_flow(&broker, 1);
    assert!(server.log().contains("the queue was deleted"));
    assert_eq!(server.metric("sessions_closed_total"), 0);
}

#[test]
fn an_exchange_that_was_deleted_is_back_for_all_its_sessions_with_the_next_subscribe() {
    let broker = Broker::start();
    let server = Server::bridge(&broker.url(), &[]);
    let mut sessions = Sessions::open(&server);
    let mut fax = server.client();
    fax.must_subscribe("any", ACCOUNT, "fax.status.one");
    Publisher::connect(&broker.url()).delete("faxes");
    // The broker tells nobody that the binding went with it; the next binding to that exchange finds out.
    sessions
        .idle
        .must_subscribe("any", ACCOUNT, "fax.status.two");
    assert_eq!(fax.notice()["data"]["reason"], "event_source");
    let publisher = Publisher::connect(&broker.url());
    for fax_id in ["one", "two"] {
        let key = format!("fax.status.{ACCOUNT}.{fax_id}");
        publisher.publish("faxes", &key, &body(ACCOUNT, "fax_status", 1));
    }
    assert_eq!(fax.event()["args"]["Number"], 1);
    assert_eq!(server.metric("amqp_disconnects_total"), 0);
    assert_eq!(server.metric("amqp_bindings_lost"), 0);
}
