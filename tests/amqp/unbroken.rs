//! The queue outlives its connection: whatever cuts the connection, no event is lost or comes twice, and nothing is
//! told; and where the queue did lose something, that is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use amiquip::{Connection, ConsumerOptions};
use blackhole::amqp::AmqpOptions;
use blackhole::event::Event;
use blackhole::handoff::{FromSource, HANDOFF_EVENTS_MAX, Return};

use crate::{Loop, PATIENCE, options, queue_of, unique};
use support::broker::Broker;
use support::mute_broker::{Manner, MuteBroker};
use support::publisher::Publisher;
use support::tcp_proxy::{Mode, TcpProxy};

/// With pauses that are short enough for a thousand cuts.
fn hasty(urls: &[&str]) -> AmqpOptions {
    AmqpOptions {
        pause_max: Duration::from_millis(5),
        ..options(urls)
    }
}

fn start(options: AmqpOptions) -> Loop {
    let mut bridge = Loop::start_with(options, HANDOFF_EVENTS_MAX);
    assert_eq!(returned(&mut bridge), Return::Anew, "the first time");
    bridge
}

fn returned(bridge: &mut Loop) -> Return {
    bridge.wait("Up", |message| match message {
        FromSource::Up(returned) => Some(*returned),
        _ => None,
    })
}

/// What the loop was handed.
#[derive(Default)]
struct Got {
    /// Of each publisher, the numbers in their order.
    numbers: BTreeMap<String, Vec<u64>>,
    unbroken: usize,
    /// Whatever a session would be told of.
    told: Vec<String>,
}

impl Got {
    /// Takes all that there is, and waits for a moment if that is nothing.
    fn take(&mut self, bridge: &mut Loop) {
        bridge.end().clear_wake();
        bridge.tell(Vec::new());
        let mut is_idle = true;
        while let Some(message) = bridge
            .waiting
            .pop_front()
            .or_else(|| bridge.end().try_recv().ok())
        {
            is_idle = false;
            match message {
                FromSource::Event(event) => self.event(&event),
                FromSource::Up(Return::Unbroken) => self.unbroken += 1,
                FromSource::Down { .. } | FromSource::Bound(_) | FromSource::CaughtUp => {}
                other => self.told.push(format!("{other:?}")),
            }
        }
        if is_idle {
            let _ = bridge.woken.recv_timeout(Duration::from_millis(5));
        }
    }

    fn event(&mut self, event: &Event) {
        let body: serde_json::Value = serde_json::from_str(&event.body).unwrap();
        let numbers = self
            .numbers
            .entry(event.routing_key.to_string())
            .or_default();
        numbers.push(body["n"].as_u64().unwrap());
    }

    fn count(&self) -> usize {
        self.numbers.values().map(Vec::len).sum()
    }

    fn until(&mut self, bridge: &mut Loop, what: &str, is: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is(self) {
            let counters = &bridge.counters;
            assert!(Instant::now() < deadline, "{what} never: {counters:?}");
            self.take(bridge);
        }
    }

    /// Each of so many publishers has published the numbers below these: all came, once, in order, and nothing is told.
    fn close(&self, published: &[u64]) {
        assert_eq!(self.numbers.len(), published.len());
        for (publisher, (key, numbers)) in self.numbers.iter().enumerate() {
            let wrong = (0..).zip(numbers).find(|(expected, got)| expected != *got);
            assert_eq!(wrong, None, "{key}: expected and got");
            assert_eq!(numbers.len() as u64, published[publisher], "{key}");
        }
        assert_eq!(self.told, Vec::<String>::new());
    }
}

/// Publishes number after number on a connection of its own, beside the proxy.
struct Numbers {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Numbers {
    fn start(broker: &Broker, exchange: &str, key: String) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, exchange) = (is_over.clone(), exchange.to_owned());
        let publisher = Publisher::connect(&broker.url());
        let thread = thread::spawn(move || {
            let mut next = 0;
            while !over.load(Ordering::SeqCst) {
                for _ in 0..4 {
                    // Of any length, so that cuts fall anywhere in frames.
                    let padding = "x".repeat((next * 37 % 900) as usize);
                    let body = format!("{{\"n\":{next},\"padding\":\"{padding}\"}}");
                    publisher.publish(&exchange, &key, body.as_bytes());
                    next += 1;
                }
                thread::park_timeout(Duration::from_millis(4));
            }
            publisher.settle();
            next
        });
        Self { is_over, thread }
    }

    /// Ends it and returns how many there were.
    fn finish(self) -> u64 {
        self.is_over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

fn publish(publisher: &Publisher, exchange: &str, numbers: std::ops::Range<u64>) {
    for number in numbers {
        publisher.publish(exchange, "key", format!("{{\"n\":{number}}}").as_bytes());
    }
    publisher.settle();
}

fn numbers(broker: &Broker, exchange: &str) -> Vec<Numbers> {
    (0..3)
        .map(|number| Numbers::start(broker, exchange, format!("publisher.{number}")))
        .collect()
}

/// Cuts at random while three publishers publish.
fn cut_at_random(cuts: u64) {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("random");
    let proxy = TcpProxy::to_port(broker.port());
    let mut bridge = start(hasty(&[&proxy.amqp_url()]));
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let publishers = numbers(&broker, &exchange);
    let (mut got, begun) = (Got::default(), Instant::now());
    let seed = getrandom::u32().unwrap();
    println!("seed {seed}");
    let mut random = u64::from(seed) | 1;
    let mut below = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    for cut in 1..=cuts {
        // A connection is up after some 2,000 bytes of the broker's and as many of ours. Many cuts fall before that,
        // some in the middle of what comes again, others long after it.
        let most = [3_000, 8_000, 40_000][below(3) as usize];
        if below(3) > 0 {
            proxy.cut_after(Some(below(most)), None);
        } else {
            proxy.cut_after(None, Some(below(most / 10)));
        }
        let deadline = Instant::now() + PATIENCE;
        while proxy.cuts() < cut {
            got.take(&mut bridge);
            assert!(
                Instant::now() < deadline,
                "cut {cut} never came: seed {seed}"
            );
        }
    }
    let published: Vec<_> = publishers.into_iter().map(Numbers::finish).collect();
    let all = published.iter().sum::<u64>() as usize;
    got.until(&mut bridge, "all events", |got| got.count() >= all);
    println!(
        "{cuts} cuts in {:?}, {} of them after Up; {all} events, {} came again",
        begun.elapsed(),
        bridge.count(|counters| &counters.disconnects),
        bridge.count(|counters| &counters.redeliveries),
    );
    got.close(&published);
    assert!(got.unbroken > cuts as usize / 10, "{}", got.unbroken);
    assert!(bridge.count(|counters| &counters.redeliveries) > 0);
    assert_eq!(bridge.count(|counters| &counters.redeliveries_broken), 0);
}

#[test]
fn two_hundred_cuts_at_random_lose_nothing_double_nothing_and_are_told_to_nobody() {
    cut_at_random(200);
}

#[test]
#[ignore = "takes minutes: cargo test --test amqp -- --ignored --nocapture a_thousand_cuts"]
fn a_thousand_cuts_at_random_lose_nothing_double_nothing_and_are_told_to_nobody() {
    cut_at_random(1000);
}

#[test]
fn every_kind_of_cut_loses_nothing_doubles_nothing_and_is_told_to_nobody() {
    let Some(broker) = Broker::own() else {
        return;
    };
    let exchange = unique("kinds");
    let proxy = TcpProxy::to_port(broker.port());
    let mut bridge = start(hasty(&[&proxy.amqp_url()]));
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let publishers = numbers(&broker, &exchange);
    let mut got = Got::default();
    let by_broker = || {
        // Ours alone: it came by the proxy, but so did none of the publishers.
        let connections = broker.ctl(&["list_connections", "pid", "client_properties"]);
        for line in connections
            .lines()
            .filter(|line| line.contains("\"information\",\"blackhole\""))
        {
            let pid = line.split_whitespace().next().unwrap();
            broker.ctl(&["close_connection", pid, "the operator wants it so"]);
        }
    };
    let kinds: [(&str, &dyn Fn()); 6] = [
        ("by the broker", &by_broker),
        ("by a reset", &|| proxy.cut()),
        ("in the middle of a frame", &|| {
            proxy.cut_after(Some(1_003), None)
        }),
        ("in the middle of an ack", &|| {
            proxy.cut_after(None, Some(5))
        }),
        ("by a black hole", &|| proxy.set(Mode::BlackHole)),
        ("while refused", &|| {
            proxy.set(Mode::Refuse);
            proxy.cut();
        }),
    ];
    for (downs, (name, cut)) in (1..).zip(kinds) {
        let before = got.count();
        got.until(&mut bridge, "events flow", |got| got.count() > before + 100);
        cut();
        let deadline = Instant::now() + PATIENCE;
        while bridge.count(|counters| &counters.disconnects) < downs {
            got.take(&mut bridge);
            assert!(Instant::now() < deadline, "{name} is never noticed");
        }
        proxy.set(Mode::Pass);
        got.until(&mut bridge, name, |got| got.unbroken as u64 == downs);
    }
    let before = got.count();
    got.until(&mut bridge, "events flow", |got| got.count() > before + 100);
    let published: Vec<_> = publishers.into_iter().map(Numbers::finish).collect();
    let all = published.iter().sum::<u64>() as usize;
    got.until(&mut bridge, "all events", |got| got.count() >= all);
    got.close(&published);
    assert_eq!(bridge.count(|counters| &counters.queues_unbroken), 6);
}

#[test]
fn what_was_handed_on_and_whose_acks_never_arrived_comes_again_and_is_not_handed_on_twice() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("unacked");
    let proxy = TcpProxy::to_port(broker.port());
    let mut bridge = start(hasty(&[&proxy.amqp_url()]));
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let publisher = Publisher::connect(&broker.url());
    let mut got = Got::default();
    for round in 1..=3 {
        // What the client sends is held, the acks among it.
        proxy.set(Mode::Mute);
        publish(&publisher, &exchange, 100 * (round - 1)..100 * round);
        got.until(&mut bridge, "events", |got| {
            got.count() as u64 == 100 * round
        });
        proxy.cut();
        proxy.set(Mode::Pass);
        got.until(&mut bridge, "Up", |got| got.unbroken as u64 == round);
        bridge.until(
            "again",
            |counters| &counters.redeliveries,
            |count| count >= 100 * round,
        );
    }
    publish(&publisher, &exchange, 300..301);
    got.until(&mut bridge, "the last", |got| got.count() == 301);
    got.close(&[301]);
}

#[test]
fn equal_publishes_are_as_many_events_and_none_is_lost_over_a_cut() {
    const EQUAL: usize = 40;
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("equal");
    let proxy = TcpProxy::to_port(broker.port());
    let mut bridge = start(hasty(&[&proxy.amqp_url()]));
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let publisher = Publisher::connect(&broker.url());
    let publish_equal = || {
        for _ in 0..EQUAL {
            publisher.publish(&exchange, "key", b"{\"n\":0}");
        }
        publish(&publisher, &exchange, 1..2);
    };
    let mut got = Got::default();
    publish_equal();
    let is_last = |got: &Got| got.numbers.get("key").is_some_and(|all| all.contains(&1));
    got.until(&mut bridge, "events", is_last);
    assert_eq!(got.count(), EQUAL + 1, "as many as were published");
    proxy.set(Mode::Refuse);
    proxy.cut();
    publish_equal();
    proxy.set(Mode::Pass);
    got.until(&mut bridge, "all", |got| got.count() > 2 * EQUAL + 1);
    assert_eq!(
        got.count(),
        2 * EQUAL + 2,
        "different ones between them tell them apart"
    );
    assert_eq!((got.unbroken, got.told.len()), (1, 0));
}

#[test]
fn a_quiet_connection_owes_no_ack_and_nothing_comes_again_after_it() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("quiet");
    let proxy = TcpProxy::to_port(broker.port());
    let mut bridge = start(hasty(&[&proxy.amqp_url()]));
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let publisher = Publisher::connect(&broker.url());
    publish(&publisher, &exchange, 0..3);
    let mut got = Got::default();
    // The last ack comes when nothing has come for half a minute.
    bridge.until("acks", |counters| &counters.acks, |acks| acks == 3);
    proxy.set(Mode::Refuse);
    proxy.cut();
    publish(&publisher, &exchange, 3..6);
    proxy.set(Mode::Pass);
    got.until(&mut bridge, "all", |got| got.count() == 6);
    got.close(&[6]);
    assert_eq!(bridge.count(|counters| &counters.redeliveries), 0);
    assert_eq!(got.unbroken, 1);
}

/// What happens to the queue while the connection is away, and whether that is to be told.
fn away(
    name: &str,
    meanwhile: impl Fn(&Broker, &str, &str, &Publisher),
    expected: Return,
    left: u64,
) {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique(name);
    let proxy = TcpProxy::to_port(broker.port());
    let mut bridge = start(AmqpOptions {
        prefetch: 10,
        max_queue_length: Some(100),
        ..hasty(&[&proxy.amqp_url()])
    });
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let queue = queue_of(&broker, &exchange);
    assert!(queue.starts_with("blackhole."), "{queue}");
    let publisher = Publisher::connect(&broker.url());
    publish(&publisher, &exchange, 0..5);
    for number in 0..5 {
        assert_eq!(bridge.event("key"), format!("{{\"n\":{number}}}"));
    }
    proxy.set(Mode::Refuse);
    proxy.cut();
    bridge.down();
    meanwhile(&broker, &queue, &exchange, &publisher);
    proxy.set(Mode::Pass);
    assert_eq!(returned(&mut bridge), expected, "{name}");
    let mut got = Got::default();
    // The next must find room in the queue.
    got.until(&mut bridge, "what is left", |got| {
        got.count() as u64 >= left
    });
    publish(&publisher, &exchange, 2000..2001);
    let is_last = |got: &Got| {
        got.numbers
            .get("key")
            .is_some_and(|all| all.contains(&2000))
    };
    got.until(&mut bridge, "the last", is_last);
    assert_eq!(got.count() as u64, left + 1, "{name}: {:?}", got.numbers);
    // It may drop more after Up, and says so.
    let of_up = got
        .told
        .iter()
        .filter(|told| !told.starts_with("Overflowed"));
    assert_eq!(of_up.count(), 0, "{:?}", got.told);
    assert!(expected == Return::Anew || got.told.is_empty());
}

#[test]
fn what_waits_in_the_queue_meanwhile_comes() {
    let some = |_: &Broker, _: &str, exchange: &str, publisher: &Publisher| {
        publish(publisher, exchange, 5..55);
    };
    away("some", some, Return::Unbroken, 50);
    away("nothing", |_, _, _, _| {}, Return::Unbroken, 0);
}

#[test]
fn a_queue_that_overflows_meanwhile_is_told() {
    let many = |_: &Broker, _: &str, exchange: &str, publisher: &Publisher| {
        publish(publisher, exchange, 5..1005);
    };
    away("many", many, Return::Anew, 100);
}

#[test]
fn a_queue_that_is_emptied_or_deleted_meanwhile_is_told() {
    let purge = |broker: &Broker, queue: &str, exchange: &str, publisher: &Publisher| {
        publish(publisher, exchange, 5..55);
        broker.ctl(&["purge_queue", queue]);
    };
    away("purge", purge, Return::Anew, 0);
    let delete = |broker: &Broker, queue: &str, _: &str, _: &Publisher| {
        broker.ctl(&["delete_queue", queue]);
    };
    away("delete", delete, Return::Anew, 0);
}

#[test]
fn a_binding_that_is_taken_back_meanwhile_is_gone_from_the_queue_at_last_and_a_new_one_is_there() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("meanwhile");
    let proxy = TcpProxy::to_port(broker.port());
    let mut bridge = start(hasty(&[&proxy.amqp_url()]));
    let [stays, goes, returns] = ["stays", "goes", "returns"].map(|key| {
        let binding = bridge.bind(&exchange, key);
        bridge.bound(&binding);
        binding
    });
    proxy.set(Mode::Refuse);
    proxy.cut();
    bridge.down();
    let new = bridge.bind(&exchange, "new");
    for binding in [&goes, &returns] {
        bridge.unbind(binding);
    }
    bridge.bind(&exchange, "returns");
    bridge.all_taken();
    // Published while it is away, for what is bound.
    let publisher = Publisher::connect(&broker.url());
    publisher.publish(&exchange, "stays", b"{\"n\":1}");
    publisher.settle();
    proxy.set(Mode::Pass);
    assert_eq!(returned(&mut bridge), Return::Unbroken);
    let (mut is_new, mut has_returned) = (false, false);
    bridge.wait("Bound", |message| {
        if let FromSource::Bound(bound) = message {
            is_new |= crate::names(bound, &new);
            has_returned |= crate::names(bound, &returns);
            assert!(!crate::names(bound, &stays), "it was in force all the time");
        }
        (is_new && has_returned).then_some(())
    });
    assert_eq!(bridge.event("stays"), "{\"n\":1}");
    bridge.until(
        "unbinds",
        |counters| &counters.unbinds,
        |unbinds| unbinds == 1,
    );
    let listed = broker.ctl(&["list_bindings", "source_name", "routing_key"]);
    let mut keys: Vec<_> = listed
        .lines()
        .filter_map(|line| line.strip_prefix(&format!("{exchange}\t")))
        .collect();
    keys.sort_unstable();
    assert_eq!(keys, ["new", "returns", "stays"]);
}

#[test]
fn an_exchange_that_is_deleted_meanwhile_is_told_as_lost_and_bound_again() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let (deleted, other) = (unique("deleted"), unique("other"));
    let proxy = TcpProxy::to_port(broker.port());
    let mut bridge = start(hasty(&[&proxy.amqp_url()]));
    let [gone, stays] = [&deleted, &other].map(|exchange| {
        let binding = bridge.bind(exchange, "key");
        bridge.bound(&binding);
        binding
    });
    proxy.set(Mode::Refuse);
    proxy.cut();
    bridge.down();
    let publisher = Publisher::connect(&broker.url());
    publisher.delete(&deleted);
    proxy.set(Mode::Pass);
    bridge.wait("Lost", |message| match message {
        FromSource::Lost(lost) => {
            assert!(!crate::names(lost, &stays));
            crate::names(lost, &gone).then_some(())
        }
        _ => None,
    });
    assert_eq!(returned(&mut bridge), Return::Unbroken);
    bridge.bound(&gone);
    publisher.publish(&deleted, "key", b"{\"n\":1}");
    assert_eq!(bridge.event("key"), "{\"n\":1}");
}

#[test]
fn another_way_to_the_same_broker_finds_the_queue() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("ways");
    let ways = [(); 2].map(|()| TcpProxy::to_port(broker.port()));
    let mut bridge = start(hasty(&[&ways[0].amqp_url(), &ways[1].amqp_url()]));
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let publisher = Publisher::connect(&broker.url());
    let mut got = Got::default();
    for round in 0..4 {
        publish(&publisher, &exchange, 10 * round..10 * round + 5);
        let way = &ways[usize::try_from(round % 2).unwrap()];
        way.set(Mode::Refuse);
        way.cut();
        publish(&publisher, &exchange, 10 * round + 5..10 * round + 10);
        got.until(&mut bridge, "Up", |got| got.unbroken as u64 == round + 1);
        way.set(Mode::Pass);
    }
    got.until(&mut bridge, "all", |got| got.count() >= 40);
    got.close(&[40]);
}

#[test]
fn a_queue_that_goes_with_its_broker_is_told() {
    let Some(broker) = Broker::own() else {
        return;
    };
    let exchange = unique("restart");
    let mut bridge = start(hasty(&[&broker.url()]));
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    Publisher::connect(&broker.url()).publish(&exchange, "key", b"{\"n\":1}");
    bridge.event("key");
    broker.kill9();
    bridge.down();
    broker.restart();
    assert_eq!(returned(&mut bridge), Return::Anew);
    Publisher::connect(&broker.url()).publish(&exchange, "key", b"{\"n\":2}");
    assert_eq!(bridge.event("key"), "{\"n\":2}");
}

#[test]
fn a_clean_end_leaves_no_queue_behind() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("clean");
    let mut bridge = start(options(&[&broker.url()]));
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let queue = queue_of(&broker, &exchange);
    let publisher = Publisher::connect(&broker.url());
    publish(&publisher, &exchange, 0..10);
    bridge.event("key");
    assert!(broker.ctl(&["list_queues", "name"]).contains(&queue));
    bridge.stop();
    assert!(!broker.ctl(&["list_queues", "name"]).contains(&queue));
}

#[test]
fn a_queue_that_somebody_else_consumes_for_good_is_given_up_and_told() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("taken");
    let proxy = TcpProxy::to_port(broker.port());
    let mut bridge = start(hasty(&[&proxy.amqp_url()]));
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let queue = queue_of(&broker, &exchange);
    let mut connection = Connection::insecure_open(&broker.url()).unwrap();
    let channel = connection.open_channel(None).unwrap();
    let refused = channel.basic_consume(&*queue, ConsumerOptions::default());
    assert!(refused.is_err(), "while we consume nobody else does");
    proxy.set(Mode::Refuse);
    proxy.cut();
    bridge.down();
    let channel = connection.open_channel(None).unwrap();
    let thief = support::server::wait_within(PATIENCE, "a consumer", || {
        channel
            .basic_consume(&*queue, ConsumerOptions::default())
            .ok()
    });
    proxy.set(Mode::Pass);
    assert_eq!(returned(&mut bridge), Return::Anew);
    let publisher = Publisher::connect(&broker.url());
    publish(&publisher, &exchange, 0..1);
    assert_eq!(bridge.event("key"), "{\"n\":0}");
    assert_ne!(queue_of(&broker, &exchange), queue);
    assert!(!broker.ctl(&["list_queues", "name"]).contains(&queue));
    drop(thief);
}

/// Waits until the queue beside `queue` has its marker, or has none.
fn until_marked(broker: &Broker, queue: &str, messages: &str) {
    let line = format!("{queue}.marker\t{messages}");
    support::server::wait_within(PATIENCE, &line, || {
        let queues = broker.ctl(&["list_queues", "name", "messages"]);
        queues.lines().any(|listed| listed == line).then_some(())
    });
}

#[test]
fn a_durable_queue_is_unbroken_over_a_cut_and_told_over_a_restart_that_it_survives() {
    let Some(broker) = Broker::own() else {
        return;
    };
    let exchange = unique("durable");
    let proxy = TcpProxy::to_port(broker.port());
    let mut bridge = start(AmqpOptions {
        durable_queue: true,
        ..hasty(&[&proxy.amqp_url()])
    });
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let queue = queue_of(&broker, &exchange);
    let restarts: [&dyn Fn(); 2] = [&|| broker.kill9(), &|| broker.stop()];
    for restart in restarts {
        until_marked(&broker, &queue, "1");
        let publisher = Publisher::connect(&broker.url());
        publish(&publisher, &exchange, 0..1);
        assert_eq!(bridge.event("key"), "{\"n\":0}");
        proxy.set(Mode::Refuse);
        proxy.cut();
        bridge.down();
        publish(&publisher, &exchange, 1..2);
        proxy.set(Mode::Pass);
        assert_eq!(returned(&mut bridge), Return::Unbroken);
        assert_eq!(bridge.event("key"), "{\"n\":1}");
        drop(publisher);
        restart();
        bridge.down();
        broker.restart();
        assert_eq!(returned(&mut bridge), Return::Anew);
        assert_eq!(queue_of(&broker, &exchange), queue, "it is there again");
    }
    until_marked(&broker, &queue, "1");
    bridge.stop();
    let queues = broker.ctl(&["list_queues", "name"]);
    assert!(!queues.contains(&queue), "{queues}");
}

#[test]
fn a_broker_that_allows_no_transient_queue_gets_a_durable_one() {
    let broker = MuteBroker::start_with(Manner::DurableOnly);
    let mut bridge = start(hasty(&[&broker.url()]));
    let binding = bridge.bind("callevt", "key");
    bridge.bound(&binding);
    assert_eq!(bridge.count(|counters| &counters.connect_failures), 1);
    assert_eq!(crate::logged("ours is durable from now on"), 1);
}

#[test]
fn a_queue_that_is_found_and_never_let_us_consume_is_given_up_and_told() {
    let broker = MuteBroker::start_with(Manner::NoConsumers);
    let mut bridge = start(hasty(&[&broker.url()]));
    // The first connection and four more, each of which finds it.
    for _ in 1..5 {
        assert_eq!(returned(&mut bridge), Return::Unbroken);
    }
    assert_eq!(returned(&mut bridge), Return::Anew);
}

/// A broker that sends the second list after a cut behind the first: what is handed on of the second, and whether a loss
/// is told.
fn after_a_cut(
    first: &[(&'static str, bool)],
    second: &[(&'static str, bool)],
    handed_on: &[&str],
    is_told: bool,
) {
    let broker = MuteBroker::start_with(Manner::Delivers(vec![first.to_vec(), second.to_vec()]));
    let proxy = TcpProxy::start(broker.address());
    let mut bridge = start(hasty(&[&proxy.amqp_url()]));
    for (body, _) in first {
        assert_eq!(bridge.event("k"), *body);
    }
    bridge.until("the first ack", |counters| &counters.acks, |acks| acks == 1);
    proxy.cut();
    assert_eq!(
        returned(&mut bridge),
        Return::Unbroken,
        "so far it looks well"
    );
    let (mut got, mut told) = (Vec::new(), 0);
    bridge.wait("the last", |message| {
        match message {
            FromSource::Event(event) => got.push(event.body.to_string()),
            FromSource::Overflowed { .. } => told += 1,
            _ => {}
        }
        (got.len() == handed_on.len() && told == usize::from(is_told)).then_some(())
    });
    assert_eq!(got, handed_on, "{second:?}");
}

#[test]
fn what_a_broker_sends_again_amiss_is_handed_on_and_told() {
    const A: &str = r#"{"n":1}"#;
    const B: &str = r#"{"n":2}"#;
    const C: &str = r#"{"n":3}"#;
    let first = [(A, false), (B, false)];
    // As it should.
    after_a_cut(&first, &[(A, true), (B, true), (C, false)], &[C], false);
    after_a_cut(&first, &[(B, true), (C, true)], &[C], false);
    // Without its flag; something else with the flag; nothing of what it must; in another order.
    after_a_cut(&first, &[(A, true), (B, false), (C, false)], &[B, C], true);
    after_a_cut(&first, &[(C, true), (A, true)], &[C, A], true);
    after_a_cut(&first, &[(C, false)], &[C], true);
    after_a_cut(&first, &[(B, true), (A, true)], &[A], false);
    after_a_cut(&first, &[(A, true), (C, true)], &[C], true);
}
