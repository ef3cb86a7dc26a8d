//! Faults of the network, by a proxy: between the server and the broker, and between a client and the server.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::scene::Scene;
use support::broker::Broker;
use support::client::{ANY_TOKEN, Client};
use support::events::{ACCOUNT, large_call_event};
use support::publisher::Publisher;
use support::server::{BROKER_PATIENCE, Fed, Server, wait_within};
use support::tcp_proxy::{Mode, TcpProxy};

/// Longer than a silent broker is waited for.
const LONG: Duration = Duration::from_secs(12);

/// A few hundred bytes a tick: 60 KB/s, less than is published.
const TRICKLE: Mode = Mode::Trickle {
    bytes: 600,
    tick: Duration::from_millis(10),
};

#[test]
fn a_network_that_is_cut_costs_no_event_and_no_notice() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let proxy = TcpProxy::to_port(broker.port());
    let mut scene = Scene::open(&broker, &proxy.amqp_url(), &[]);
    proxy.set(Mode::Refuse);
    proxy.cut();
    scene.until_away();
    proxy.set(Mode::Pass);
    scene.until_back(0);
    // Cut, and at once there again.
    proxy.cut();
    scene.server.wait_for_metric("amqp_connects_total", 3);
    scene.until_back(0);
    let (server, _) = scene.close("cut", 0);
    assert_eq!(server.metric("source_outages_total"), 2);
}

#[test]
fn a_network_that_falls_silent_is_noticed_and_costs_no_event_and_no_notice_and_does_not_hold_up_the_end()
 {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let proxy = TcpProxy::to_port(broker.port());
    let mut scene = Scene::open(&broker, &proxy.amqp_url(), &["--drain-seconds", "1"]);
    proxy.set(Mode::BlackHole);
    scene.until_away();
    proxy.set(Mode::Pass);
    scene.until_back(0);
    let (mut server, _) = scene.close("silent", 0);
    proxy.set(Mode::BlackHole);
    assert!(server.stop().success());
}

#[test]
fn a_broker_whose_bytes_trickle_is_kept_and_loses_nothing_until_it_is_cut() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let proxy = TcpProxy::to_port(broker.port());
    let scene = Scene::open(&broker, &proxy.amqp_url(), &[]);
    proxy.set(TRICKLE);
    let (begun, before) = (Instant::now(), proxy.passed());
    wait_within(BROKER_PATIENCE, "12 s", || {
        (begun.elapsed() >= LONG).then_some(())
    });
    assert!(proxy.passed() - before > 100_000, "it trickled");
    assert_eq!(scene.server.metric("amqp_disconnects_total"), 0);
    proxy.set(Mode::Pass);
    scene.numbered.until_flowing(&scene.readers);
    scene.until_back(0);
    // Cut while what comes is old already.
    proxy.set(TRICKLE);
    let begun = Instant::now();
    wait_within(BROKER_PATIENCE, "6 s", || {
        (begun.elapsed() >= LONG / 2).then_some(())
    });
    proxy.set(Mode::Refuse);
    proxy.cut();
    scene.server.until_not_ready();
    proxy.set(Mode::Pass);
    scene.until_back(0);
    scene.close("trickling, then cut", 0);
}

#[test]
fn an_exchange_deleted_while_the_network_is_cut_is_told_to_its_sessions_from_the_cut_on_and_to_no_others()
 {
    let Some(broker) = Broker::own() else {
        return;
    };
    let proxy = TcpProxy::to_port(broker.port());
    let server = Server::bridge(&proxy.amqp_url(), &[]);
    let (mut fax, mut call) = (server.client(), server.client());
    fax.must_subscribe("any", ACCOUNT, "fax.status.one");
    call.must_subscribe("any", ACCOUNT, "call.*.*");
    proxy.set(Mode::Refuse);
    proxy.cut();
    let cut = Instant::now();
    server.until_not_ready();
    Publisher::connect(&broker.url()).delete("faxes");
    wait_within(BROKER_PATIENCE, "3 s", || {
        (cut.elapsed() >= Duration::from_secs(3)).then_some(())
    });
    proxy.set(Mode::Pass);
    let notice = fax.notice();
    assert_eq!(notice["data"]["reason"], "event_source", "{notice}");
    assert!(
        notice["data"]["seconds"].as_f64().unwrap() >= 2.9,
        "{notice}"
    );
    let publisher = Publisher::connect(&broker.url());
    let body = json!({"Event-Name": "fax_status", "Account-ID": ACCOUNT, "Number": 1});
    let key = format!("fax.status.{ACCOUNT}.one");
    publisher.publish("faxes", &key, body.to_string().as_bytes());
    assert_eq!(fax.event()["args"]["Number"], 1);
    call.assert_nothing_came("any");
    assert_eq!(server.metric("amqp_queues_unbroken_total"), 1);
}

/// A client behind a proxy and one beside it, both subscribed.
fn two_clients(fed: &Fed) -> (TcpProxy, Client, Client) {
    let proxy = TcpProxy::start(fed.server.address());
    let mut behind = Client::connect(proxy.address());
    behind.set_patience(BROKER_PATIENCE);
    let mut beside = fed.server.client();
    for client in [&mut behind, &mut beside] {
        client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.*.*");
    }
    (proxy, behind, beside)
}

/// Publishes events of about 32 KiB from `from` on until a metric has this value; `beside` gets each of them.
fn flood(fed: &mut Fed, beside: &mut Client, from: usize, metric: &str, value: u64) -> usize {
    for number in (from..from + 4096).step_by(8) {
        let next = flood_more(fed, beside, number, 8);
        if fed.server.metric(metric) == value {
            return next;
        }
    }
    panic!("{metric} did not become {value}");
}

fn flood_more(fed: &mut Fed, beside: &mut Client, from: usize, count: usize) -> usize {
    for number in from..from + count {
        let event = large_call_event(ACCOUNT, number, 32 << 10);
        fed.publish("callevt", "call.CHANNEL_CREATE.x", &event);
        assert_eq!(beside.event()["args"]["Number"], number);
    }
    from + count
}

#[test]
fn a_client_behind_a_network_that_falls_silent_is_closed_as_a_slow_consumer_and_its_neighbour_gets_everything()
 {
    let mut fed = Fed::insecure(&["--send-timeout-ms", "2000"]);
    let (proxy, mut behind, mut beside) = two_clients(&fed);
    proxy.set(Mode::BlackHole);
    let published = flood(&mut fed, &mut beside, 0, "subscriptions", 1);
    // Its close frame is given up too, and its place with it.
    fed.server
        .wait_for_metric(r#"closes_total{reason="slow_consumer"}"#, 1);
    fed.server.wait_for_metric("sessions", 1);
    proxy.set(Mode::Pass);
    let (messages, code) = behind.read_what_is_left();
    assert!(matches!(code, None | Some(4408)), "{code:?}");
    assert!(messages.len() < published);
    for (number, message) in messages.iter().enumerate() {
        assert_eq!(message["args"]["Number"], number);
    }
    beside.assert_nothing_came(ANY_TOKEN);
}

#[test]
fn a_client_that_is_reached_in_a_trickle_is_kept_and_gets_everything_in_order() {
    let mut fed = Fed::insecure(&["--send-timeout-ms", "1000", "--max-outbox-bytes", "0"]);
    let (proxy, mut behind, mut beside) = two_clients(&fed);
    proxy.set(Mode::Trickle {
        bytes: 600,
        tick: Duration::from_millis(1),
    });
    let published = flood(&mut fed, &mut beside, 0, "outboxes_blocked", 1);
    // Much more than the kernel takes: something waits all the while.
    let published = flood_more(&mut fed, &mut beside, published, 256);
    let begun = Instant::now();
    wait_within(BROKER_PATIENCE, "three times send_timeout_ms", || {
        (begun.elapsed() >= Duration::from_secs(3)).then_some(())
    });
    assert_eq!(fed.server.metric("outboxes_blocked"), 1);
    proxy.set(Mode::Pass);
    for number in 0..published {
        assert_eq!(behind.event()["args"]["Number"], number);
    }
    behind.assert_nothing_came(ANY_TOKEN);
}
