//! Users without permissions, made on a real RabbitMQ: which one is missing is said, counted and told the loop.

use std::time::{Duration, Instant};

use blackhole::amqp::AmqpOptions;
use blackhole::handoff::{FromSource, HANDOFF_EVENTS_MAX};
use blackhole::routing::families::{Exchange, ExchangeKind};

use crate::{Loop, logged, options};
use support::broker::Broker;

fn limited(broker: &Broker, exchanges: &[&str]) -> Loop {
    let url = format!("amqp://limited:hunter2@127.0.0.1:{}/%2f", broker.port());
    let exchange = |name: &&str| Exchange {
        name: (*name).into(),
        kind: ExchangeKind::Topic,
        durable: false,
    };
    let options = AmqpOptions {
        exchanges: exchanges.iter().map(exchange).collect(),
        ..options(&[&url])
    };
    Loop::start_with(options, HANDOFF_EVENTS_MAX)
}

fn barred(bridge: &mut Loop) -> Vec<String> {
    bridge.wait("Barred", |message| match message {
        FromSource::Barred(lines) => Some(lines.iter().map(ToString::to_string).collect()),
        _ => None,
    })
}

fn permit(broker: &Broker, configure: &str, write: &str, read: &str) {
    broker.ctl(&["set_permissions", "limited", configure, write, read]);
}

#[test]
fn a_missing_permission_is_named_at_the_start_and_what_is_permitted_works() {
    let Some(broker) = Broker::own() else {
        return;
    };
    broker.ctl(&["add_user", "limited", "hunter2"]);
    let user = "user \"limited\" has no ";
    let vhost = "in vhost \"/\"";
    let queues = "permission on queues (blackhole.…)";
    // Without these there is nothing at all.
    let mut bridge = limited(&broker, &[]);
    let expected = format!("{user}permission at all {vhost}");
    assert_eq!(barred(&mut bridge), [&*expected]);
    bridge.stop();
    let said = format!("cannot connect: {expected}; next try in 10000 ms");
    assert!(logged(&said) >= 1);
    for (permission, [configure, write, read]) in [
        ("configure", ["^$", ".*", ".*"]),
        ("write", [".*", "^$", ".*"]),
        ("read", [".*", ".*", "^$"]),
    ] {
        permit(&broker, configure, write, read);
        let mut bridge = limited(&broker, &["callevt"]);
        let expected = format!("{user}{permission} {queues} {vhost}");
        assert_eq!(barred(&mut bridge), [&*expected]);
        assert_eq!(bridge.count(|counters| &counters.permissions_missing), 1);
        bridge.until(
            "said",
            |counters| &counters.connect_failures,
            |failures| failures >= 1,
        );
        assert!(bridge.count(|counters| &counters.permission_refusals) >= 1);
        if permission == "read" {
            // It is found out by itself that this has changed, though not at once.
            let begun = Instant::now();
            permit(&broker, ".*", ".*", ".*");
            assert!(barred(&mut bridge).is_empty());
            bridge.up();
            assert!(
                begun.elapsed() > Duration::from_secs(4),
                "tried without a pause"
            );
        }
        bridge.stop();
        let said = format!("cannot connect: {expected}; next try in 10000 ms");
        assert!(logged(&said) >= 1);
    }
    // One exchange cannot be declared, another not be read, a third is all right.
    let ours = "^(blackhole\\..*|amq\\.topic|right)$";
    permit(&broker, ours, ours, "^(blackhole\\..*|right|absent)$");
    let mut bridge = limited(&broker, &["absent", "unread", "right"]);
    let expected = [
        format!("{user}configure permission on exchange 'absent' {vhost}"),
        format!("{user}read permission on exchange 'unread' {vhost}"),
    ];
    assert_eq!(barred(&mut bridge), expected);
    bridge.up();
    for line in &expected {
        assert_eq!(logged(&format!("{line}: its events are missing")), 1);
    }
    let (right, absent) = (bridge.bind("right", "#"), bridge.bind("absent", "#"));
    bridge.bound_and_lost(&right, &absent);
    assert!(logged(&format!("refused: {}", expected[0])) >= 1);
    assert_eq!(bridge.count(|counters| &counters.permissions_missing), 2);
    assert_eq!(bridge.count(|counters| &counters.disconnects), 0);
    // The question whether it may be declared has not declared it.
    let exchanges = broker.ctl(&["list_exchanges", "name"]);
    assert!(
        exchanges.contains("right") && !exchanges.contains("absent"),
        "{exchanges}"
    );
    permit(&broker, ".*", ".*", ".*");
    bridge.bound(&absent);
    bridge.until(
        "nothing missing",
        |counters| &counters.permissions_missing,
        |missing| missing == 0,
    );
    assert_eq!(logged("hunter2"), 0);
}
