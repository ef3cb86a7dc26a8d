//! Clients that do not read (PROTOCOL 5): what becomes of them, and that nobody else notices.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use support::client::{ANY_TOKEN, Client, ping_as};
use support::events::{ACCOUNT, call_event, large_call_event};
use support::server::{Fed, wait_for};

/// Size of an event that soon fills a socket.
const LARGE: usize = 32 << 10;

/// More of them than the kernel's buffers and any bound of these tests hold: 64 MiB.
const MANY: usize = 2048;

/// Publishes large events from `from` on until a metric has this value, letting `healthy` read each; returns the
/// number of the next event.
fn flood(fed: &mut Fed, healthy: &mut Client, from: usize, metric: &str, value: u64) -> usize {
    for number in from..MANY {
        flood_more(fed, healthy, number, 1);
        if number % 4 == 3 && fed.server.metric(metric) == value {
            return number + 1;
        }
    }
    panic!("{metric} did not become {value} within {MANY} events");
}

/// Publishes so many large events, letting `healthy` read each; returns the number of the next.
fn flood_more(fed: &mut Fed, healthy: &mut Client, from: usize, count: usize) -> usize {
    for number in from..from + count {
        fed.publish(
            "callevt",
            "call.CHANNEL_CREATE.x",
            &large_call_event(ACCOUNT, number, LARGE),
        );
        assert_eq!(
            healthy.recv()["args"]["Number"],
            number,
            "the others get every event"
        );
    }
    from + count
}

fn subscribed(mut client: Client) -> Client {
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
    client
}

fn number(event: &Value) -> usize {
    event["args"]["Number"]
        .as_u64()
        .unwrap()
        .try_into()
        .unwrap()
}

/// The events that a client got before its close are the first ones, whole and in order.
fn assert_a_beginning(messages: &[Value]) {
    assert!(!messages.is_empty());
    let numbers: Vec<usize> = messages.iter().map(number).collect();
    assert_eq!(numbers, (0..messages.len()).collect::<Vec<_>>());
}

#[test]
fn a_client_over_max_outbox_bytes_is_closed_with_4408_and_another_gets_every_event() {
    let mut fed = Fed::insecure(&["--max-outbox-bytes", "262144"]);
    let address = fed.server.address();
    let mut slow = subscribed(Client::connect_narrow(address));
    let mut healthy = subscribed(Client::connect(address));
    let next = flood(&mut fed, &mut healthy, 0, "subscriptions", 1);
    flood_more(&mut fed, &mut healthy, next, 10);
    let (messages, code, reason) = slow.read_to_close();
    assert_eq!(
        (code, &*reason),
        (4408, "slow consumer"),
        "it learns why when it reads later"
    );
    assert_a_beginning(&messages);
    assert!(messages.len() < next, "what waited is not sent any more");
    drop(slow);
    fed.server
        .wait_for_metric(r#"closes_total{reason="slow_consumer"}"#, 1);
    assert_eq!(fed.server.metric("outboxes_blocked_bytes"), 0);
}

#[test]
fn a_client_without_progress_for_send_timeout_is_closed_with_4408() {
    let mut fed = Fed::insecure(&["--max-outbox-bytes", "0", "--send-timeout-ms", "2500"]);
    let address = fed.server.address();
    let mut slow = subscribed(Client::connect_narrow(address));
    let mut healthy = subscribed(Client::connect(address));
    let next = flood(&mut fed, &mut healthy, 0, "outboxes_blocked", 1);
    let blocked = Instant::now();
    fed.server.wait_for_metric("subscriptions", 1);
    // It was blocked a few events before this was seen.
    assert!(
        blocked.elapsed() >= Duration::from_millis(1500),
        "closed after {:?}",
        blocked.elapsed()
    );
    let (messages, code, _) = slow.read_to_close();
    assert_eq!(code, 4408);
    assert_a_beginning(&messages);
    fed.publish(
        "callevt",
        "call.CHANNEL_CREATE.x",
        &large_call_event(ACCOUNT, next, 1),
    );
    assert_eq!(number(&healthy.recv()), next);
}

#[test]
fn a_client_whose_socket_stays_full_but_moves_is_kept() {
    let timeout = Duration::from_millis(1000);
    let mut fed = Fed::insecure(&["--send-timeout-ms", "1000", "--max-outbox-bytes", "0"]);
    let address = fed.server.address();
    let mut slow = subscribed(Client::connect_narrow(address));
    let mut healthy = subscribed(Client::connect(address));
    let published = flood(&mut fed, &mut healthy, 0, "outboxes_blocked", 1);
    // The kernel lets a send buffer grow while its peer reads; what waits here must be more than it then takes.
    let mut published = flood_more(&mut fed, &mut healthy, published, 256);
    let (blocked, mut read) = (Instant::now(), 0);
    // What is read here is replaced there, so that something always waits.
    while blocked.elapsed() < 2 * timeout {
        assert_eq!(number(&slow.recv()), read);
        read += 1;
        published = flood_more(&mut fed, &mut healthy, published, 1);
    }
    assert_eq!(
        fed.server.metric("outboxes_blocked"),
        1,
        "it never caught up"
    );
    for expected in read..published {
        assert_eq!(number(&slow.recv()), expected);
    }
    assert_eq!(slow.ask(&ping_as(ANY_TOKEN, "1"))["status"], "success");
}

/// Lets one client not read while `meanwhile` publishes, which is given the number of the next event and returns the same;
/// then it reads everything.
/// Returns its messages up to a last event that nobody can have dropped, the number of events published (that one
/// included) and the number that the server counts as dropped.
fn let_drop(
    args: &[&str],
    meanwhile: impl FnOnce(&mut Fed, &mut Client, usize) -> usize,
) -> (Vec<Value>, usize, u64) {
    let mut fed = Fed::insecure(
        &[
            &["--slow-consumer", "drop", "--max-queued-messages", "5"],
            args,
        ]
        .concat(),
    );
    let address = fed.server.address();
    let mut slow = subscribed(Client::connect_narrow(address));
    let mut healthy = subscribed(Client::connect(address));
    let blocked = flood(&mut fed, &mut healthy, 0, "outboxes_blocked", 1);
    let published = meanwhile(&mut fed, &mut healthy, blocked);
    let dropped = fed.server.metric("frames_dropped_total");
    assert!(dropped >= 30, "{dropped}");
    // A reply is never dropped, however full the outbox is; and it comes behind what waits.
    slow.send(&ping_as(ANY_TOKEN, "reply"));
    let mut messages = Vec::new();
    loop {
        let message = slow.recv();
        if message["action"] == "reply" {
            assert_eq!(message["request_id"], "reply");
            break;
        }
        messages.push(message);
    }
    // The outbox is empty once nothing is blocked: the next event cannot be dropped.
    fed.server.wait_for_metric("outboxes_blocked", 0);
    fed.publish(
        "callevt",
        "call.CHANNEL_CREATE.x",
        &call_event(ACCOUNT, "CHANNEL_CREATE", published),
    );
    loop {
        messages.push(slow.recv());
        if messages
            .last()
            .is_some_and(|last| last["args"]["Number"] == published)
        {
            return (messages, published + 1, dropped);
        }
    }
}

#[test]
fn under_policy_drop_a_notice_tells_before_the_next_event_how_many_were_dropped() {
    assert_all_is_told(let_drop(&[], forty_more));
}

/// A peer whose receive buffer is full answers no ping, and its kernel takes nothing: neither makes it a dead one.
#[test]
fn under_policy_drop_a_client_that_stopped_reading_is_kept_and_told_however_long_it_takes() {
    let args = [
        "--ping-interval-ms",
        "400",
        "--pong-timeout-ms",
        "400",
        // Less than one event: the server's own ping is beyond it.
        "--max-outbox-bytes",
        "1000",
    ];
    assert_all_is_told(let_drop(&args, |fed, healthy, mut published| {
        published = forty_more(fed, healthy, published);
        while fed.server.metric("silent_spared_total") < 4 {
            published = flood_more(fed, healthy, published, 1);
        }
        assert_eq!(fed.server.metric("closes_total"), 0);
        published
    }));
}

fn forty_more(fed: &mut Fed, healthy: &mut Client, from: usize) -> usize {
    flood_more(fed, healthy, from, 40)
}

fn assert_all_is_told((messages, published, dropped): (Vec<Value>, usize, u64)) {
    let (mut next, mut told) = (0, 0);
    for message in &messages {
        if message["action"] == "notice" {
            let gap = message["data"]["dropped"].as_u64().unwrap();
            let expected = json!({"action": "notice", "name": "gap", "data": {"reason": "slow_consumer", "dropped": gap}});
            assert_eq!(message, &expected);
            told += gap;
            next += usize::try_from(gap).unwrap();
        } else {
            assert_eq!(
                number(message),
                next,
                "every number that is missing was told before"
            );
            next += 1;
        }
    }
    assert_eq!(
        (next, told),
        (published, dropped),
        "received + dropped = published"
    );
}

#[test]
fn gap_notices_can_be_turned_off() {
    let (messages, published, dropped) = let_drop(&["--gap-notices=false"], forty_more);
    assert!(messages.iter().all(|message| message["action"] == "event"));
    assert_eq!(
        messages.len() + usize::try_from(dropped).unwrap(),
        published
    );
}

#[test]
fn over_max_outboxes_bytes_the_largest_outbox_is_closed_first() {
    const LIMIT: u64 = 24 << 20;
    let limit = LIMIT.to_string();
    let mut fed = Fed::insecure(&[
        "--max-outboxes-bytes",
        &limit,
        "--max-outbox-bytes",
        "0",
        "--send-timeout-ms",
        "60000",
    ]);
    let address = fed.server.address();
    let mut healthy = subscribed(Client::connect(address));
    let mut large = subscribed(Client::connect_narrow(address));
    let begun = flood(&mut fed, &mut healthy, 0, "outboxes_blocked", 1);
    let ahead = flood_more(&mut fed, &mut healthy, begun, 64);
    let mut small = subscribed(Client::connect_narrow(address));
    let both = flood(&mut fed, &mut healthy, ahead, "outboxes_blocked", 2);
    assert_eq!(
        fed.server.metric("subscriptions"),
        3,
        "both wait, and neither is closed yet"
    );
    let end = flood(&mut fed, &mut healthy, both, "subscriptions", 2);
    assert!(fed.server.metric("outboxes_blocked_bytes") <= LIMIT);
    let (messages, code, _) = large.read_to_close();
    assert_eq!(code, 4408);
    assert_a_beginning(&messages);
    for expected in ahead..end {
        assert_eq!(
            number(&small.recv()),
            expected,
            "the smaller one keeps everything"
        );
    }
    drop(large);
    fed.server
        .wait_for_metric(r#"closes_total{reason="outboxes_full"}"#, 1);
}

#[test]
fn a_client_that_never_reads_its_replies_is_not_read_either_and_closed_in_time() {
    let fed = Fed::insecure(&["--send-timeout-ms", "1000", "--rate-limit-burst", "1000000"]);
    let mut slow = Client::connect_narrow(fed.server.address());
    let command = ping_as(ANY_TOKEN, &"r".repeat(128));
    for sent in 0..200_000 {
        slow.send(&command);
        if sent % 500 == 0 && fed.server.metric("outboxes_blocked") == 1 {
            break;
        }
    }
    let waiting = fed.server.metric("outboxes_blocked_bytes");
    assert!(
        waiting < 2 * (64 << 10),
        "{waiting} bytes: more than the replies to one read and 64 frames"
    );
    // Its close takes the place of the replies that were not begun.
    wait_for("the close to begin", || {
        (fed.server.metric("outboxes_blocked_bytes") < 1000).then_some(())
    });
    let (replies, code, _) = slow.read_to_close();
    assert_eq!(code, 4408);
    assert!(replies.iter().all(|reply| reply["status"] == "success"));
    drop(slow);
    fed.server
        .wait_for_metric(r#"closes_total{reason="slow_consumer"}"#, 1);
    drop(fed);
}
