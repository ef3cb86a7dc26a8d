//! Clients that die in the middle of a fan-out, and what a client that never reads costs its neighbours.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use support::client::{ANY_TOKEN, Client, Raw, subscribe};
use support::events::{ACCOUNT, call_event, large_call_event};
use support::server::{Fed, Server};

const DYING: usize = 500;
const SURVIVORS: usize = 10;

/// Descriptors that a server has open.
fn descriptors(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid()))
        .unwrap()
        .count()
}

#[test]
fn five_hundred_clients_that_die_by_reset_in_a_fan_out_cost_the_others_nothing_and_leave_nothing() {
    // Some 12 KiB each: many of the dying have frames waiting when they go.
    const EVENTS: usize = 600;
    // What the history keeps goes in time.
    let args = ["--max-outbox-bytes", "0", "--history-seconds", "1"];
    let mut fed = Fed::insecure(&args);
    let address = fed.server.address();
    let mut survivors: Vec<Client> = (0..SURVIVORS).map(|_| fed.server.client()).collect();
    for survivor in &mut survivors {
        survivor.must_subscribe(ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
    }
    // Before the page is asked for, whose connections take a moment to go.
    let descriptors_before = descriptors(&fed.server);
    fed.server.wait_for_metric("amqp_bindings_young", 0);
    let before = (descriptors_before, gauges(&fed.server));
    let mut dying: Vec<Raw> = (0..DYING)
        .map(|number| {
            let mut raw = Raw::upgraded_narrow(address);
            // Some share the survivors' binding, the others have one of their own.
            let own = format!("call.CHANNEL_CREATE.{number}");
            let binding = if number % 2 == 0 {
                "call.CHANNEL_CREATE.*"
            } else {
                &own
            };
            raw.send_text(&subscribe(ANY_TOKEN, ACCOUNT, binding).to_string());
            assert_eq!(raw.json()["status"], "success");
            raw
        })
        .collect();
    assert_eq!(fed.server.metric("sessions"), (DYING + SURVIVORS) as u64);
    let reading: Vec<_> = survivors
        .into_iter()
        .map(|mut survivor| {
            thread::spawn(move || {
                for number in 0..EVENTS {
                    assert_eq!(survivor.event()["args"]["Number"], number);
                }
                survivor
            })
        })
        .collect();
    for number in 0..EVENTS {
        let event = large_call_event(ACCOUNT, number, 12 << 10);
        fed.publish("callevt", &format!("call.CHANNEL_CREATE.{number}"), &event);
        // From the first third to the last, two after each event.
        if (EVENTS / 3..EVENTS * 2 / 3).contains(&number) {
            for raw in dying.drain(..dying.len().min(3)) {
                raw.reset();
            }
        }
    }
    assert!(dying.is_empty());
    let mut survivors: Vec<Client> = reading
        .into_iter()
        .map(|thread| thread.join().expect("every event, in order"))
        .collect();
    let server = &fed.server;
    server.wait_for_metric("sessions", SURVIVORS as u64);
    assert!(
        server.metric(r#"closes_total{reason="lost"}"#)
            + server.metric(r#"closes_total{reason="slow_consumer"}"#)
            >= DYING as u64
    );
    server.until("nothing is left of the dead", |server| {
        (descriptors(server), gauges(server)) == before
    });
    for survivor in &mut survivors {
        survivor.assert_nothing_came(ANY_TOKEN);
    }
}

/// Every gauge that counts what sessions have.
fn gauges(server: &Server) -> Vec<(String, u64)> {
    let (_, page) = server.page("/metrics");
    let metrics = server.metrics();
    let mut gauges: Vec<_> = page
        .lines()
        .filter_map(|line| {
            line.strip_prefix("# TYPE blackhole_")?
                .strip_suffix(" gauge")
        })
        // Memory that is kept, and what a look at the page itself moves.
        .filter(|name| !name.contains("heap") && !name.contains("resident"))
        .map(|name| (name.to_owned(), metrics[name]))
        .collect();
    gauges.sort();
    gauges
}

/// p50 and p99 of `latencies`, in microseconds.
fn percentiles(latencies: &mut [Duration]) -> (u128, u128) {
    latencies.sort();
    let at = |part: usize| latencies[(latencies.len() - 1) * part / 100].as_micros();
    (at(50), at(99))
}

/// Rounds with and without a client that never reads, in turn, so that the machine's mood falls on both alike.
#[test]
#[ignore = "a measurement, which asserts nothing about time: cargo test --release --test faults -- --ignored --nocapture"]
fn what_a_client_that_never_reads_costs_its_neighbours() {
    const ROUNDS: usize = 10;
    const EVENTS: usize = 500;
    const HEALTHY: usize = 20;
    let mut fed = Fed::insecure(&["--slow-consumer", "drop"]);
    let address = fed.server.address();
    let mut healthy: Vec<Client> = (0..HEALTHY).map(|_| fed.server.client()).collect();
    for client in &mut healthy {
        client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
    }
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for (is_beside, latencies) in [(false, &mut without), (true, &mut with)] {
            let sick = is_beside.then(|| {
                let mut sick = Client::connect_narrow(address);
                sick.must_subscribe(ANY_TOKEN, ACCOUNT, "call.*.*");
                // Filled with what the healthy do not get.
                for number in 0..2000 {
                    fed.publish("callevt", "call.CHANNEL_HOLD.x", &{
                        let mut event = large_call_event(ACCOUNT, number, 16 << 10);
                        event["Event-Name"] = "CHANNEL_HOLD".into();
                        event
                    });
                    if number % 50 == 49 && fed.server.metric("outboxes_blocked") == 1 {
                        break;
                    }
                }
                assert_eq!(fed.server.metric("outboxes_blocked"), 1, "round {round}");
                sick
            });
            for number in 0..EVENTS {
                let mut event = call_event(ACCOUNT, "CHANNEL_CREATE", number);
                event["Padding"] = "x".repeat(2048).into();
                let begun = Instant::now();
                fed.publish("callevt", "call.CHANNEL_CREATE.x", &event);
                for client in &mut healthy {
                    assert_eq!(client.event()["args"]["Number"], number);
                    latencies.push(begun.elapsed());
                }
            }
            drop(sick);
            fed.server.wait_for_metric("sessions", HEALTHY as u64);
        }
    }
    let (without, with) = (percentiles(&mut without), percentiles(&mut with));
    println!(
        "event to each of {HEALTHY} healthy sessions: p50 {} µs, p99 {} µs; beside one that never reads: p50 {} µs, \
         p99 {} µs; p99 ratio {:.2}",
        without.0,
        without.1,
        with.0,
        with.1,
        with.1 as f64 / without.1 as f64
    );
}
