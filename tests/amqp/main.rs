//! The AMQP thread against a real RabbitMQ, through the hand-off: one test a guard rail and more.
//!
//! Most need RabbitMQ, and are left out where it is missing.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

mod permissions;
mod stream;
mod tls;
mod unbroken;

use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use amiquip::ExchangeType;
use blackhole::amqp::{self, AmqpCounters, AmqpOptions, AmqpThread, RECONNECT_PAUSE_MAX, TlsFiles};
use blackhole::event::Event;
use blackhole::handoff::{
    FromSource, HANDOFF_EVENTS_MAX, LoopEnd, LoopWaker, ToSource, handoff_bounded,
};
use blackhole::limits::BROKER_ANSWER_MAX;
use blackhole::routing::account_load::AccountTag;
use blackhole::routing::amqp_binding::{AmqpBinding, Asked, Ticket};
use blackhole::routing::families::{Exchange, ExchangeKind};
use crossbeam_channel::Receiver;

use support::broker::Broker;
use support::mute_broker::MuteBroker;
use support::publisher::{Publisher, RawPublisher, nested_headers};

/// Longest wait for anything that must happen; generous, because test machines are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// The loop's side of the hand-off, without a loop.
struct Loop {
    end: Option<LoopEnd>,
    woken: Receiver<()>,
    thread: Option<AmqpThread>,
    counters: Arc<AmqpCounters>,
    /// Taken off the hand-off and not asked for yet.
    waiting: VecDeque<FromSource>,
    ticket: Ticket,
}

impl Loop {
    fn start(url: &str) -> Self {
        Self::start_with(options(&[url]), HANDOFF_EVENTS_MAX)
    }

    fn start_with(options: AmqpOptions, events_max: usize) -> Self {
        capture_log();
        let (wake, woken) = crossbeam_channel::bounded(1);
        let waker = LoopWaker::new(move || {
            let _ = wake.try_send(());
            Ok(())
        });
        let (source, end) = handoff_bounded(waker, events_max);
        let counters = Arc::new(AmqpCounters::default());
        let thread = amqp::spawn(options, source, counters.clone()).unwrap();
        Self {
            end: Some(end),
            woken,
            thread: Some(thread),
            counters,
            waiting: VecDeque::new(),
            ticket: Ticket::default(),
        }
    }

    fn end(&self) -> &LoopEnd {
        self.end.as_ref().unwrap()
    }

    fn bind(&mut self, exchange: &str, key: &str) -> AmqpBinding {
        self.bind_for(AccountTag::NOBODY, exchange, key)
    }

    fn bind_for(&mut self, account: AccountTag, exchange: &str, key: &str) -> AmqpBinding {
        let binding = AmqpBinding {
            exchange: exchange.into(),
            key: key.into(),
        };
        self.ticket = self.ticket.next();
        self.tell(vec![ToSource::Bind {
            binding: binding.clone(),
            ticket: self.ticket,
            account,
        }]);
        binding
    }

    fn unbind(&mut self, binding: &AmqpBinding) {
        self.tell(vec![ToSource::Unbind(binding.clone())]);
    }

    fn tell(&mut self, commands: Vec<ToSource>) {
        self.end.as_mut().unwrap().tell(commands);
    }

    /// Waits until the source has taken all that it was told, as a loop that goes on turning would.
    fn all_taken(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.end().commands_waiting() > 0 {
            assert!(Instant::now() < deadline, "commands were never taken");
            self.end().clear_wake();
            self.tell(Vec::new());
            let _ = self.woken.recv_timeout(Duration::from_millis(20));
        }
    }

    /// The first message that `wanted` takes; those before it are dropped, but they are shown when it never comes.
    fn wait<T>(&mut self, what: &str, mut wanted: impl FnMut(&FromSource) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            self.end().clear_wake();
            self.tell(Vec::new());
            while let Ok(message) = self.end.as_ref().unwrap().try_recv() {
                self.waiting.push_back(message);
            }
            while let Some(message) = self.waiting.pop_front() {
                if let Some(found) = wanted(&message) {
                    return found;
                }
                seen.push(message);
            }
            assert!(
                Instant::now() < deadline,
                "no {what}; instead {seen:?}; {:?}",
                self.counters
            );
            let _ = self.woken.recv_timeout(Duration::from_millis(100));
        }
    }

    fn up(&mut self) {
        self.wait("Up", |message| {
            matches!(message, FromSource::Up(_)).then_some(())
        });
    }

    fn down(&mut self) -> Instant {
        self.wait("Down", |message| match message {
            FromSource::Down { since } => Some(*since),
            _ => None,
        })
    }

    fn bound(&mut self, binding: &AmqpBinding) {
        self.wait("Bound", |message| match message {
            FromSource::Bound(bound) if names(bound, binding) => Some(()),
            _ => None,
        });
    }

    fn lost(&mut self, binding: &AmqpBinding) {
        self.wait("Lost", |message| match message {
            FromSource::Lost(lost) if names(lost, binding) => Some(()),
            _ => None,
        });
    }

    /// One binding is put in force, another is lost, in any order.
    fn bound_and_lost(&mut self, kept: &AmqpBinding, gone: &AmqpBinding) {
        let (mut is_bound, mut is_lost) = (false, false);
        self.wait("Bound and Lost", |message| {
            match message {
                FromSource::Bound(bound) => is_bound |= names(bound, kept),
                FromSource::Lost(lost) => is_lost |= names(lost, gone),
                _ => {}
            }
            (is_bound && is_lost).then_some(())
        });
    }

    /// The next event, which must have this routing key.
    fn event(&mut self, key: &str) -> String {
        self.wait(&format!("event {key}"), |message| match message {
            FromSource::Event(event) => {
                assert_eq!(&*event.routing_key, key);
                Some(body(event))
            }
            _ => None,
        })
    }

    /// Waits until a counter satisfies `is`.
    fn until(
        &mut self,
        what: &str,
        counter: impl Fn(&AmqpCounters) -> &AtomicU64,
        is: impl Fn(u64) -> bool,
    ) {
        let deadline = Instant::now() + PATIENCE;
        while !is(counter(&self.counters).load(Ordering::Relaxed)) {
            assert!(
                Instant::now() < deadline,
                "{what} never: {:?}",
                self.counters
            );
            self.end().clear_wake();
            self.tell(Vec::new());
            let _ = self.woken.recv_timeout(Duration::from_millis(20));
        }
    }

    fn count(&self, counter: impl Fn(&AmqpCounters) -> &AtomicU64) -> u64 {
        counter(&self.counters).load(Ordering::Relaxed)
    }

    fn stop(&mut self) {
        if let Some(end) = &mut self.end {
            end.tell(vec![ToSource::Stop]);
        }
        if let Some(thread) = self.thread.take() {
            thread.stop(Duration::from_secs(10));
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.stop();
    }
}

fn names(asked: &[Asked], binding: &AmqpBinding) -> bool {
    asked.iter().any(|asked| asked.binding == *binding)
}

fn body(event: &Event) -> String {
    event.body.to_string()
}

fn options(urls: &[&str]) -> AmqpOptions {
    AmqpOptions {
        urls: urls.iter().map(|&url| url.to_owned()).collect(),
        tls: TlsFiles::default(),
        prefetch: 2048,
        max_queue_length: Some(100_000),
        queue_expires: Duration::from_secs(60),
        durable_queue: false,
        exchanges: Vec::new(),
        pause_max: RECONNECT_PAUSE_MAX,
        answer_max: BROKER_ANSWER_MAX,
    }
}

/// The queue that is bound to this exchange.
fn queue_of(broker: &Broker, exchange: &str) -> String {
    let bindings = broker.ctl(&["list_bindings", "source_name", "destination_name"]);
    let queue = bindings
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{exchange}\t")));
    queue
        .unwrap_or_else(|| panic!("{exchange} is not bound: {bindings}"))
        .to_owned()
}

/// A name no other test uses.
fn unique(name: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{name}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps every line that the program's own logger would print at its most talkative.
fn capture_log() {
    struct Capture;
    impl log::Log for Capture {
        fn enabled(&self, line: &log::Metadata<'_>) -> bool {
            let client = amqp::CLIENT_LINES;
            !line.target().starts_with(client.target) || line.level() <= client.level
        }

        fn log(&self, line: &log::Record<'_>) {
            if self.enabled(line.metadata()) {
                LOG.lock().unwrap().push(format!(
                    "{} {} {}",
                    line.level(),
                    line.target(),
                    line.args()
                ));
            }
        }

        fn flush(&self) {}
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Capture).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
}

fn logged(piece: &str) -> usize {
    LOG.lock()
        .unwrap()
        .iter()
        .filter(|line| line.contains(piece))
        .count()
}

#[test]
fn an_event_published_after_bound_is_delivered_every_time() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("live");
    let (mut bridge, publisher) = (
        Loop::start(&broker.url()),
        Publisher::connect(&broker.url()),
    );
    bridge.up();
    for round in 0..300 {
        let key = format!("key.{round}");
        let binding = bridge.bind(&exchange, &key);
        bridge.bound(&binding);
        publisher.publish(&exchange, &key, format!("{{\"round\":{round}}}").as_bytes());
        assert_eq!(bridge.event(&key), format!("{{\"round\":{round}}}"));
    }
    bridge.until("acks", |counters| &counters.acks, |acks| acks == 299);
}

#[test]
fn rail_1_nested_headers_and_large_headers_cost_nothing() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("nested");
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let mut raw = RawPublisher::connect(broker.port());
    for depth in [4_000, 20_000] {
        raw.publish(&exchange, b"nested", Some(&nested_headers(depth)), b"{}");
    }
    raw.publish(&exchange, b"after", None, b"{\"after\":1}");
    raw.finish();
    for key in ["nested", "nested", "after"] {
        bridge.event(key);
    }
    assert_eq!(bridge.count(|counters| &counters.disconnects), 0);
    assert_eq!(bridge.count(|counters| &counters.guard_violations), 0);
}

#[test]
fn rail_1_a_body_beyond_the_guards_limit_costs_nobody_else_anything() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("huge");
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let publisher = Publisher::connect(&broker.url());
    let huge = vec![b' '; 65 << 20];
    for round in 1..=3 {
        publisher.publish(&exchange, "huge", &huge);
        publisher.publish(&exchange, "empty", b"");
        publisher.publish(&exchange, "after", b"{}");
        bridge.event("after");
        let swallowed = bridge.count(|counters| &counters.undecodable_swallowed);
        let empty = bridge.count(|counters| &counters.undecodable_not_json_object);
        assert_eq!((swallowed, empty), (round, round));
    }
    bridge.until("acks", |counters| &counters.acks, |acks| acks == 8);
    assert_eq!(bridge.count(|counters| &counters.disconnects), 0);
    assert_eq!(bridge.count(|counters| &counters.guard_violations), 0);
    assert_eq!(
        logged("the body is too large to be taken; routing key \"huge\", 68157440 bytes"),
        1
    );
}

#[test]
fn rail_2_a_key_of_256_bytes_is_lost_and_the_connection_lives() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("long");
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let too_long = bridge.bind(&exchange, &"k".repeat(256));
    bridge.lost(&too_long);
    let longest = bridge.bind(&exchange, &"k".repeat(255));
    bridge.bound(&longest);
    assert_eq!(bridge.count(|counters| &counters.binds_too_long), 1);
    assert_eq!(bridge.count(|counters| &counters.disconnects), 0);
}

#[test]
fn rail_3_a_routing_key_that_is_not_utf8_is_dropped_and_counted_and_the_connection_lives() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("bytes");
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let mut raw = RawPublisher::connect(broker.port());
    raw.publish(&exchange, b"call.\xff\xfe.x", None, b"{}");
    raw.publish(&exchange, b"after", None, b"{}");
    raw.finish();
    bridge.event("after");
    assert_eq!(
        bridge.count(|counters| &counters.undecodable_routing_key),
        1
    );
    assert_eq!(bridge.count(|counters| &counters.disconnects), 0);
}

#[test]
fn undecodable_bodies_are_dropped_by_kind_and_the_next_event_comes() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("bodies");
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let publisher = Publisher::connect(&broker.url());
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    publisher.publish(&exchange, "bad", b"{\"a\":\"\xff\"}");
    publisher.publish(&exchange, "bad", b"[1]");
    publisher.publish_encoded(&exchange, "bad", b"not gzip", Some("gzip"));
    publisher.publish_encoded(&exchange, "bad", &gzip(&vec![b' '; 9 << 20]), Some("gzip"));
    publisher.publish_encoded(&exchange, "bad", b"{}", Some("br"));
    publisher.publish_encoded(&exchange, "good", &gzip(b"{\"a\":1}"), Some("gzip"));
    assert_eq!(bridge.event("good"), "{\"a\":1}");
    let counters = &bridge.counters;
    for counter in [
        &counters.undecodable_not_utf8,
        &counters.undecodable_not_json_object,
        &counters.undecodable_broken_gzip,
        &counters.undecodable_too_large,
        &counters.undecodable_unknown_encoding,
    ] {
        assert_eq!(counter.load(Ordering::Relaxed), 1, "{counters:?}");
    }
    assert_eq!(counters.amqp_undecodable_total(), 5);
    bridge.until("acks", |counters| &counters.acks, |acks| acks == 5);
}

#[test]
fn rail_4_a_silent_broker_is_noticed_and_events_flow_after_it() {
    let Some(broker) = Broker::own() else {
        return;
    };
    let exchange = unique("silent");
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    broker.pause();
    let paused = Instant::now();
    let never = bridge.bind(&exchange, "asked.while.silent");
    let since = bridge.down();
    assert!(
        since < paused + Duration::from_secs(1),
        "away since its last word, not since it was noticed"
    );
    broker.resume();
    bridge.up();
    bridge.bound(&never);
    Publisher::connect(&broker.url()).publish(&exchange, "after", b"{}");
    bridge.event("after");
}

#[test]
fn rail_4_stopping_does_not_wait_for_a_silent_broker() {
    let Some(broker) = Broker::own() else {
        return;
    };
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    broker.pause();
    let begun = Instant::now();
    bridge.tell(vec![ToSource::Stop]);
    bridge.thread.take().unwrap().stop(Duration::from_secs(2));
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    broker.resume();
}

#[test]
fn rail_5_twenty_connections_end_in_order_under_a_flood() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("ends");
    let publisher = Publisher::connect(&broker.url());
    for _ in 0..20 {
        let mut bridge = Loop::start(&broker.url());
        let binding = bridge.bind(&exchange, "#");
        bridge.up();
        bridge.bound(&binding);
        for _ in 0..200 {
            publisher.publish(&exchange, "flood", b"{}");
        }
        bridge.event("flood");
        let begun = Instant::now();
        bridge.stop();
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "the end was not in order"
        );
        assert_eq!(bridge.count(|counters| &counters.disconnects), 0);
    }
}

#[test]
fn rail_6_a_loop_that_is_behind_holds_the_broker_back_and_loses_nothing() {
    const PREFETCH: u16 = 64;
    const EVENTS: u64 = 5_000;
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("behind");
    let mut bridge = Loop::start_with(
        AmqpOptions {
            prefetch: PREFETCH,
            ..options(&[&broker.url()])
        },
        8,
    );
    bridge.up();
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let publisher = Publisher::connect(&broker.url());
    for number in 0..EVENTS {
        publisher.publish(
            &exchange,
            "behind",
            format!("{{\"n\":{number}}}").as_bytes(),
        );
    }
    publisher.settle();
    bridge.until(
        "waits",
        |counters| &counters.handover_waits,
        |waits| waits > 0,
    );
    // Taken: what the hand-off holds, and one that waits. All else is the prefetch's, or still the broker's.
    assert!(bridge.count(|counters| &counters.deliveries) <= 8 + 1);
    let queue = queue_of(&broker, &exchange);
    let lengths = broker.ctl(&[
        "list_queues",
        "name",
        "messages_unacknowledged",
        "messages_ready",
    ]);
    let line = lengths
        .lines()
        .find(|line| line.starts_with(&queue))
        .expect("the queue is listed");
    let lengths: Vec<u64> = line
        .split('\t')
        .skip(1)
        .map(|number| number.parse().unwrap())
        .collect();
    // One more, because the newest one's ack waits.
    assert!(lengths[0] <= u64::from(PREFETCH) + 1, "{line}");
    assert!(lengths[1] >= EVENTS - u64::from(PREFETCH) - 10, "{line}");
    for number in 0..EVENTS {
        assert_eq!(bridge.event("behind"), format!("{{\"n\":{number}}}"));
    }
    bridge.until("acks", |counters| &counters.acks, |acks| acks == EVENTS - 1);
}

#[test]
fn rail_6_a_queue_at_its_limit_is_told_as_overflowed() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("full");
    let limited = AmqpOptions {
        prefetch: 10,
        max_queue_length: Some(100),
        ..options(&[&broker.url()])
    };
    let mut bridge = Loop::start_with(limited, 4);
    bridge.up();
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let begun = Instant::now();
    let publisher = Publisher::connect(&broker.url());
    for _ in 0..1000 {
        publisher.publish(&exchange, "full", b"{}");
    }
    publisher.settle();
    // The loop does not drain until the thread has seen it.
    bridge.until(
        "overflow",
        |counters| &counters.overflow_suspicions,
        |seen| seen > 0,
    );
    let since = bridge.wait("Overflowed", |message| match message {
        FromSource::Overflowed { since } => Some(*since),
        _ => None,
    });
    assert!(since < begun + Duration::from_secs(5));
}

#[test]
fn rail_7_and_8_a_clashing_exchange_takes_nobody_down_and_heals() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let (clashing, good) = (unique("clash"), unique("good"));
    let publisher = Publisher::connect(&broker.url());
    publisher.declare(ExchangeType::Direct, &clashing);
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let lost = bridge.bind(&clashing, "call.*");
    bridge.lost(&lost);
    let also_lost = bridge.bind(&clashing, "call.#");
    bridge.lost(&also_lost);
    let kept = bridge.bind(&good, "#");
    bridge.bound(&kept);
    publisher.publish(&good, "meanwhile", b"{}");
    bridge.event("meanwhile");
    assert_eq!(bridge.count(|counters| &counters.bindings_refused), 2);

    publisher.delete(&clashing);
    publisher.declare(ExchangeType::Topic, &clashing);
    let mut healed = [false; 2];
    bridge.wait("both Bound", |message| {
        if let FromSource::Bound(bound) = message {
            healed[0] |= names(bound, &lost);
            healed[1] |= names(bound, &also_lost);
        }
        healed.iter().all(|&healed| healed).then_some(())
    });
    publisher.publish(&clashing, "call.x", b"{}");
    bridge.event("call.x");
    assert_eq!(bridge.count(|counters| &counters.disconnects), 0);
    assert_eq!(bridge.count(|counters| &counters.bindings_refused), 0);
}

#[test]
fn rail_8_a_clash_at_a_reconnect_is_lost_before_up_and_the_others_are_bound() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let (clashing, good) = (unique("clash"), unique("good"));
    let publisher = Publisher::connect(&broker.url());
    publisher.declare(ExchangeType::Fanout, &clashing);
    let mut bridge = Loop::start(&broker.url());
    let lost = bridge.bind(&clashing, "k");
    let kept = bridge.bind(&good, "k");
    bridge.lost(&lost);
    bridge.up();
    bridge.bound(&kept);
}

#[test]
fn rail_8_an_exchange_of_another_kind_or_durability_is_used_as_configured_or_found() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let (direct, durable) = (unique("direct"), unique("durable"));
    broker.ctl(&[
        "eval",
        &format!(
            "rabbit_exchange:declare(rabbit_misc:r(<<\"/\">>, exchange, <<\"{durable}\">>), topic, true, false, \
             false, [], <<\"guest\">>)."
        ),
    ]);
    let spec = Exchange {
        name: direct.as_str().into(),
        kind: ExchangeKind::Direct,
        durable: false,
    };
    let mut bridge = Loop::start_with(
        AmqpOptions {
            exchanges: vec![spec],
            ..options(&[&broker.url()])
        },
        HANDOFF_EVENTS_MAX,
    );
    bridge.up();
    for exchange in [&direct, &durable] {
        let binding = bridge.bind(exchange, "key");
        bridge.bound(&binding);
    }
    let publisher = Publisher::connect(&broker.url());
    publisher.declare(ExchangeType::Direct, &direct);
    for exchange in [&direct, &durable] {
        publisher.publish(exchange, "key", b"{}");
        bridge.event("key");
    }
}

#[test]
fn an_exchange_we_created_may_be_declared_by_its_publisher_later() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("absent");
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let publisher = Publisher::connect(&broker.url());
    publisher.declare(ExchangeType::Topic, &exchange);
    publisher.publish(&exchange, "later", b"{}");
    bridge.event("later");
}

#[test]
fn an_exchange_that_vanishes_is_created_again_by_the_next_bind() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("vanishes");
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let first = bridge.bind(&exchange, "first");
    bridge.bound(&first);
    let publisher = Publisher::connect(&broker.url());
    publisher.delete(&exchange);
    let second = bridge.bind(&exchange, "second");
    bridge.bound(&second);
    publisher.publish(&exchange, "second", b"{}");
    bridge.event("second");
    assert_eq!(bridge.count(|counters| &counters.disconnects), 0);
}

#[test]
fn rail_8_after_a_crash_everything_is_bound_again_without_being_asked() {
    let Some(broker) = Broker::own() else {
        return;
    };
    let exchange = unique("crash");
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let bindings: Vec<_> = (0..50)
        .map(|number| bridge.bind(&exchange, &format!("key.{number}")))
        .collect();
    bridge.bound(&bindings[49]);
    broker.kill9();
    bridge.down();
    let asked_meanwhile = bridge.bind(&exchange, "meanwhile");
    bridge.unbind(&bindings[0]);
    bridge.all_taken();
    broker.restart();
    bridge.up();
    assert_eq!(bridge.count(|counters| &counters.bindings_in_force), 50);
    bridge.bound(&asked_meanwhile);
    let publisher = Publisher::connect(&broker.url());
    for key in ["key.0", "key.7", "meanwhile"] {
        publisher.publish(&exchange, key, b"{}");
    }
    bridge.event("key.7");
    bridge.event("meanwhile");
    // An orderly stop of the broker is survived as well.
    broker.stop();
    bridge.down();
    broker.restart();
    bridge.up();
}

#[test]
fn rail_9_dead_brokers_are_passed_over() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = format!("amqp://127.0.0.1:{}/", taken.local_addr().unwrap().port());
    drop(taken);
    let mut bridge = Loop::start_with(options(&[&dead, &dead, &broker.url()]), HANDOFF_EVENTS_MAX);
    bridge.up();
    assert_eq!(bridge.count(|counters| &counters.connect_failures), 2);
}

#[test]
fn rail_9_no_log_line_shows_a_password() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let user = unique("user");
    broker.ctl(&["add_user", &user, "right-s3cret"]);
    broker.ctl(&["set_permissions", &user, ".*", ".*", ".*"]);
    let port = broker.port();
    let urls = [
        format!("amqp://{user}:wrong-s3cret@127.0.0.1:{port}/%2f"),
        format!("amqp://{user}:right-s3cret@127.0.0.1:{port}/no-such-vhost"),
        format!("amqp://{user}:right-s3cret@127.0.0.1:{port}/%2f"),
    ];
    let urls: Vec<_> = urls.iter().map(String::as_str).collect();
    let mut bridge = Loop::start_with(options(&urls), HANDOFF_EVENTS_MAX);
    bridge.up();
    bridge.stop();
    assert!(
        logged("invalid credentials") > 0,
        "the wrong password's cause is told"
    );
    assert!(
        logged("no-such-vhost") > 0,
        "the wrong virtual host's cause is told"
    );
    assert!(logged(&format!("connected to 127.0.0.1:{port}")) > 0);
    assert_eq!(logged("s3cret"), 0, "{:?}", LOG.lock().unwrap());
}

#[test]
fn rail_10_a_peer_that_does_not_speak_amqp_is_a_reconnect() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let liar = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqp://127.0.0.1:{}/", liar.local_addr().unwrap().port());
    let lying = std::thread::spawn(move || {
        let (mut socket, _) = liar.accept().unwrap();
        socket
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .unwrap();
    });
    let mut bridge = Loop::start_with(options(&[&url, &broker.url()]), HANDOFF_EVENTS_MAX);
    bridge.up();
    lying.join().unwrap();
    assert_eq!(bridge.count(|counters| &counters.connect_failures), 1);
    assert!(logged("does not speak AMQP") > 0);
}

#[test]
fn a_queue_deleted_by_an_operator_is_declared_and_bound_again() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("operator");
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let queue = queue_of(&broker, &exchange);
    broker.ctl(&[
        "eval",
        &format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)), \
             rabbit_amqqueue:delete(Q, false, false, <<\"operator\">>)."
        ),
    ]);
    bridge.down();
    bridge.up();
    assert!(logged("the queue was deleted") > 0);
    Publisher::connect(&broker.url()).publish(&exchange, "after", b"{}");
    bridge.event("after");
}

#[test]
fn an_unbind_is_lazy_and_a_bind_takes_it_back_at_once() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("lazy");
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    bridge.unbind(&binding);
    bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    assert_eq!(
        bridge.count(|counters| &counters.binds),
        1,
        "it was never unbound"
    );
    bridge.unbind(&binding);
    bridge.until(
        "unbinds",
        |counters| &counters.unbinds,
        |unbinds| unbinds == 1,
    );
    assert!(
        !broker
            .ctl(&["list_bindings", "source_name"])
            .contains(&exchange)
    );
    bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    Publisher::connect(&broker.url()).publish(&exchange, "again", b"{}");
    bridge.event("again");
}

/// What a connection asks before `Up`, with nothing wanted: its two channels, their limits, the queue, what may be done
/// with that, and its length.
const QUESTIONS_BEFORE_UP: usize = 7;

#[test]
fn a_broker_that_only_beats_its_heart_is_left_wherever_it_falls_silent() {
    // In the login's wake, before `Up`, while the consumer is declared, at the first look at the queue, later.
    for answers in [
        0,
        1,
        QUESTIONS_BEFORE_UP - 1,
        QUESTIONS_BEFORE_UP,
        QUESTIONS_BEFORE_UP + 1,
        QUESTIONS_BEFORE_UP + 3,
    ] {
        let (mute, good) = (MuteBroker::start(answers), MuteBroker::start(usize::MAX));
        let options = AmqpOptions {
            answer_max: Duration::from_secs(2),
            ..options(&[&mute.url(), &good.url()])
        };
        let begun = Instant::now();
        let mut bridge = Loop::start_with(options, HANDOFF_EVENTS_MAX);
        if answers >= QUESTIONS_BEFORE_UP {
            bridge.up();
            bridge.down();
        }
        bridge.up();
        let overdue = bridge.count(|counters| &counters.answers_overdue);
        assert_eq!(overdue, 1, "after {answers} answers");
        assert!(begun.elapsed() >= Duration::from_secs(2));
        // One fewer where it believes that it has found its queue again, of which it never takes a message to see if it may.
        assert!(mute.questions() > answers && good.questions() >= QUESTIONS_BEFORE_UP - 1);
        // It goes on with the good one: a bind is answered.
        let binding = bridge.bind("callevt", "key");
        bridge.bound(&binding);
    }
}

#[test]
fn a_broker_that_takes_connections_and_says_nothing_is_left() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqp://127.0.0.1:{}/", silent.local_addr().unwrap().port());
    let good = MuteBroker::start(usize::MAX);
    let options = AmqpOptions {
        answer_max: Duration::from_secs(1),
        ..options(&[&url, &good.url()])
    };
    let mut bridge = Loop::start_with(options, HANDOFF_EVENTS_MAX);
    bridge.up();
    assert_eq!(bridge.count(|counters| &counters.answers_overdue), 1);
}

#[test]
fn what_comes_and_goes_leaves_nothing_on_the_broker_and_another_account_waits_for_one_turn() {
    const BINDS: usize = 20_000;
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("turns");
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let (many, one) = (AccountTag::from_number(1), AccountTag::from_number(2));
    let bindings: Vec<_> = (0..BINDS)
        .map(|number| bridge.bind_for(many, &exchange, &format!("many.{number}")))
        .collect();
    let honest = bridge.bind_for(one, &exchange, "one");
    let mut bound_before = 0;
    bridge.wait("Bound of the one", |message| match message {
        FromSource::Bound(bound) if names(bound, &honest) => Some(()),
        FromSource::Bound(bound) => {
            bound_before += bound.len();
            None
        }
        _ => None,
    });
    assert!(bound_before < BINDS / 10, "{bound_before} went first");
    bridge.tell(bindings.into_iter().map(ToSource::Unbind).collect());
    let is_one = |in_force| in_force == 1;
    bridge.until("in force", |counters| &counters.bindings_in_force, is_one);
    let binds = bridge.count(|counters| &counters.binds);
    let unbinds = bridge.count(|counters| &counters.unbinds);
    assert_eq!(unbinds, binds - 1);
    let left = broker.ctl(&["list_bindings", "source_name", "routing_key"]);
    let left: Vec<_> = left
        .lines()
        .filter(|line| line.starts_with(&exchange))
        .collect();
    assert_eq!(left, [format!("{exchange}\tone")]);
    println!("{binds} of {BINDS} were bound");
}

#[test]
fn ten_thousand_binds_are_pipelined_while_deliveries_go_on() {
    const BINDS: usize = 10_000;
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("burst");
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let first = bridge.bind(&exchange, "steady");
    bridge.bound(&first);
    let publisher = Publisher::connect(&broker.url());
    let begun = Instant::now();
    for number in 0..BINDS {
        bridge.bind(&exchange, &format!("burst.{number}"));
    }
    publisher.publish(&exchange, "steady", b"{}");
    let (mut bound, mut bound_before_event) = (0, None);
    bridge.wait("all Bound", |message| {
        match message {
            FromSource::Bound(bindings) => bound += bindings.len(),
            FromSource::Event(_) => bound_before_event = Some(bound),
            _ => {}
        }
        (bound == BINDS && bound_before_event.is_some()).then_some(())
    });
    println!("{BINDS} bindings in force after {:?}", begun.elapsed());
    assert!(
        bound_before_event.unwrap() < BINDS,
        "the delivery waited for the whole burst"
    );
}

#[test]
fn the_thread_ends_when_the_loop_is_gone() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("gone");
    let mut bridge = Loop::start(&broker.url());
    bridge.up();
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let thread = bridge.thread.take().unwrap();
    bridge.end = None;
    let begun = Instant::now();
    thread.stop(Duration::from_secs(10));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

/// Our own queue is known by its name in the text, where a binding is refused because something is not there.
#[test]
fn the_broker_names_what_it_misses() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let mut connection = amiquip::Connection::insecure_open(&broker.url()).unwrap();
    for (queue, exchange, missed) in [
        ("blackhole.nobody", "amq.topic", "queue 'blackhole.nobody'"),
        ("blackhole.nobody", "nowhere", "exchange 'nowhere'"),
    ] {
        let channel = connection.open_channel(None).unwrap();
        if missed.starts_with("exchange") {
            let options = amiquip::QueueDeclareOptions {
                exclusive: true,
                ..Default::default()
            };
            channel.queue_declare(queue, options).unwrap();
        }
        let refused = channel.queue_bind(queue, exchange, "key", amiquip::FieldTable::new());
        let Err(amiquip::Error::ServerClosedChannel { code, message, .. }) = refused else {
            panic!("{missed}: {refused:?}");
        };
        assert_eq!(code, 404, "{message}");
        assert!(message.contains(missed), "{missed}: {message}");
    }
    connection.close().unwrap();
}
