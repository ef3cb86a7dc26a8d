//! The stream of the history, on a real RabbitMQ: what is kept in it, what is read from it, and what a reader is told when
//! it is not what it should be.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use amiquip::ExchangeType;
use blackhole::amqp::stream::{self, StreamOptions, StreamThreads};
use blackhole::amqp::{AmqpCounters, TlsFiles};
use blackhole::handoff::LoopWaker;
use blackhole::handoff::stored::{FromReader, Read, StoreEnd, ToReader, stored_channels};
use blackhole::history::Why;
use blackhole::history::stored::{Content, Marker, Offset, StoredItem, key_id};
use blackhole::limits::BROKER_ANSWER_MAX;
use blackhole::routing::amqp_binding::AmqpBinding;
use crossbeam_channel::Receiver;
use support::broker::Broker;
use support::publisher::{Publisher, RawPublisher, nested_headers};

use super::{PATIENCE, unique};

/// The loop's side, without a loop.
struct Process {
    end: Option<StoreEnd>,
    woken: Receiver<()>,
    threads: Option<StreamThreads>,
    counters: Arc<AmqpCounters>,
    reads: u32,
    items: VecDeque<StoredItem>,
}

fn options(url: &str, name: &str) -> StreamOptions {
    StreamOptions {
        urls: vec![url.to_owned()],
        tls: TlsFiles::default(),
        name: name.to_owned(),
        max_age: "1h".to_owned(),
        max_bytes: 1 << 30,
        exchanges: Vec::new(),
        answer_max: BROKER_ANSWER_MAX,
    }
}

impl Process {
    fn start(url: &str, name: &str) -> Self {
        Self::start_with(options(url, name))
    }

    fn start_with(options: StreamOptions) -> Self {
        super::capture_log();
        let (wake, woken) = crossbeam_channel::bounded(1);
        let waker = LoopWaker::new(move || {
            let _ = wake.try_send(());
            Ok(())
        });
        let (end, keeper, reader) = stored_channels(waker);
        let counters = Arc::new(AmqpCounters::default());
        let threads = stream::spawn(options, keeper, reader, counters.clone()).unwrap();
        Self {
            end: Some(end),
            woken,
            threads: Some(threads),
            counters,
            reads: 0,
            items: VecDeque::new(),
        }
    }

    fn end(&self) -> &StoreEnd {
        self.end.as_ref().unwrap()
    }

    /// Keeps the events of these keys, and waits until they are bound.
    fn keep(&self, exchange: &str, keys: &[&str]) {
        let before = self.count(|counters| &counters.stream_bindings);
        let binding = |key: &&str| AmqpBinding {
            exchange: exchange.into(),
            key: (*key).into(),
        };
        assert!(self.end().keep(keys.iter().map(binding).collect()));
        let bound = before + keys.len() as u64;
        self.until("bindings", |counters| &counters.stream_bindings, bound);
    }

    fn count(&self, counter: impl Fn(&AmqpCounters) -> &AtomicU64) -> u64 {
        counter(&self.counters).load(Ordering::Relaxed)
    }

    fn until(&self, what: &str, counter: impl Fn(&AmqpCounters) -> &AtomicU64, least: u64) {
        let deadline = Instant::now() + PATIENCE;
        while counter(&self.counters).load(Ordering::Relaxed) < least {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.counters);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn begin(&mut self, from_unix_ms: u64) -> Read {
        self.reads += 1;
        self.items.clear();
        let read = Read(self.reads);
        assert!(self.end().tell(ToReader::Begin { read, from_unix_ms }));
        read
    }

    /// The next item of the read under way, or why there is none.
    fn next(&mut self) -> Result<StoredItem, Why> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(item) = self.items.pop_front() {
                return Ok(item);
            }
            match self.end().try_recv() {
                Some(FromReader::Items(read, items)) if read.0 == self.reads => {
                    assert!(!items.is_empty());
                    self.items.extend(items);
                    assert!(self.end().tell(ToReader::More(read)));
                }
                Some(FromReader::Failed(read, why)) if read.0 == self.reads => return Err(why),
                Some(FromReader::Items(..) | FromReader::Failed(..)) => {}
                None => {
                    assert!(Instant::now() < deadline, "nothing: {:?}", self.counters);
                    let _ = self.woken.recv_timeout(Duration::from_millis(20));
                }
            }
        }
    }

    /// All that there is up to a marker of this process that was written after `unix_ms`.
    fn all_until(&mut self, unix_ms: u64) -> Vec<StoredItem> {
        let mut all = Vec::new();
        loop {
            let item = self.next().expect("it can be read");
            let is_last = matches!(&item.what, Content::Marker(marker)
                if marker.is_ours && marker.unix_ms > unix_ms);
            all.push(item);
            if is_last {
                return all;
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(threads) = self.threads.take() {
            threads.stop(Duration::from_secs(10));
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

fn keys_of(items: &[StoredItem]) -> Vec<String> {
    let key = |item: &StoredItem| match &item.what {
        Content::Event(event) => Some(event.routing_key.to_string()),
        Content::Marker(_) => None,
    };
    items.iter().filter_map(key).collect()
}

fn markers_of(items: &[StoredItem]) -> Vec<&Marker> {
    let markers = items.iter().filter_map(|item| match &item.what {
        Content::Marker(marker) => Some(marker),
        Content::Event(_) => None,
    });
    markers.collect()
}

/// A stream with the events of these keys: the exchange, the stream's name, a publisher, and a process that keeps them.
fn kept(broker: &Broker, keys: &[&str]) -> (String, String, Publisher, Process) {
    let (exchange, name) = (unique("stored"), unique("history"));
    let publisher = Publisher::connect(&broker.url());
    publisher.declare(ExchangeType::Topic, &exchange);
    let process = Process::start(&broker.url(), &name);
    process.keep(&exchange, keys);
    (exchange, name, publisher, process)
}

#[test]
fn what_is_published_is_read_again_in_order_whatever_its_headers_are() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let (exchange, name, publisher, mut process) = kept(&broker, &["key.*"]);
    let begin = now_ms();
    for number in 0..1000 {
        let (key, body) = (format!("key.{number}"), format!("{{\"n\":{number}}}"));
        publisher.publish_stamped(&exchange, &key, body.as_bytes(), 77);
    }
    publisher.publish(&exchange, "other.1", b"{}");
    publisher.publish(&exchange, "key.broken", b"no JSON");
    publisher.publish("", &name, b"no marker");
    publisher.settle();
    // Headers that nest, that are longer than what the guard looks through, and that lie.
    let mut raw = RawPublisher::connect(broker.port());
    let mut expected: Vec<_> = (0..1000).map(|number| format!("key.{number}")).collect();
    let text = |name: &[u8], value: &[u8]| {
        let length = u32::try_from(value.len()).unwrap().to_be_bytes();
        let short = [u8::try_from(name.len()).unwrap()];
        [&short[..], name, b"S", &length, value].concat()
    };
    let lie = [&b"\x0fx-stream-offsetl"[..], &7_u64.to_be_bytes()].concat();
    let lie_as_text = text(b"x-stream-offset", b"7");
    for (number, headers) in [
        nested_headers(3000),
        text(b"aaa", &[b'x'; 40_000]),
        lie,
        lie_as_text,
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("key.hostile{number}");
        raw.publish(&exchange, key.as_bytes(), Some(&headers), b"{}");
        expected.push(key);
    }
    raw.finish();
    process.begin(begin);
    let items = process.all_until(now_ms());
    assert_eq!(keys_of(&items), expected);
    let offsets: Vec<Offset> = items.iter().map(|item| item.offset).collect();
    assert!(offsets.is_sorted_by(|one, next| one < next));
    // The first marker tells that nothing is known of before; none later does.
    let markers = markers_of(&items);
    assert!(markers[0].is_hole && markers[0].keys.is_empty());
    assert!(
        markers[1..]
            .iter()
            .all(|marker| !marker.is_hole && marker.is_ours)
    );
    let is_proven = |marker: &&Marker| *marker.keys == [key_id(&exchange, "key.*")];
    assert!(
        markers
            .iter()
            .any(|marker| is_proven(marker) && marker.unix_ms <= begin)
    );
    // From there on events come as they are published.
    publisher.publish(&exchange, "key.live", b"{}");
    let items = process.all_until(now_ms());
    assert_eq!(keys_of(&items), ["key.live"]);
    // And another read begins at its own moment: at a marker of before it, if there is one within 25 s.
    process.begin(now_ms());
    let again = process.all_until(now_ms());
    assert!(keys_of(&again).ends_with(&["key.live".to_owned()]));
    assert_eq!(process.count(|counters| &counters.guard_violations), 0);
    assert_eq!(process.count(|counters| &counters.stream_reads_failed), 0);
}

#[test]
fn a_publisher_to_an_exchange_writes_no_marker_whatever_its_headers_say() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let (exchange, name, _publisher, mut process) = kept(&broker, &["key.*"]);
    let begin = now_ms();
    let text = |name: &[u8], value: &[u8]| {
        let length = u32::try_from(value.len()).unwrap().to_be_bytes();
        let short = [u8::try_from(name.len()).unwrap()];
        [&short[..], name, b"S", &length, value].concat()
    };
    let headers = [
        text(b"x-exchange", b""),
        text(b"x-routing-key", name.as_bytes()),
    ]
    .concat();
    let forged =
        br#"{"blackhole_marker":7,"unix_ms":1,"is_hole":false,"keys":["0123456789abcdef"]}"#;
    let mut raw = RawPublisher::connect(broker.port());
    raw.publish(&exchange, b"key.1", Some(&headers), forged);
    raw.publish(&exchange, b"key.2", None, forged);
    raw.finish();
    process.begin(begin);
    let items = process.all_until(now_ms());
    assert_eq!(keys_of(&items), ["key.1", "key.2"]);
    assert!(markers_of(&items).iter().all(|marker| marker.unix_ms > 1));
}

#[test]
fn a_reader_takes_no_more_than_it_was_asked_for() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let (exchange, _, publisher, mut process) = kept(&broker, &["#"]);
    for number in 0..20_000 {
        publisher.publish(&exchange, &number.to_string(), b"{}");
    }
    publisher.settle();
    let read = process.begin(now_ms() - 1000);
    // Nothing is asked for: four batches, which are not full where the broker was slow, and the fifth is being filled.
    let deadline = Instant::now() + PATIENCE;
    while process.end().waiting() < 4 {
        assert!(Instant::now() < deadline, "{:?}", process.counters);
        std::thread::sleep(Duration::from_millis(5));
    }
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        let taken = process.count(|counters| &counters.stream_deliveries);
        assert!(taken <= 5 * 256 + 5, "{taken}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(process.end().waiting(), 4);
    assert!(process.end().tell(ToReader::End(read)));
    // The next read comes whole all the same.
    process.begin(now_ms());
    let items = process.all_until(now_ms());
    let expected: Vec<_> = (0..20_000).map(|number: u32| number.to_string()).collect();
    assert_eq!(keys_of(&items), expected);
}

#[test]
fn a_stream_that_is_another_or_gone_or_none_is_told_and_one_that_is_missing_is_declared() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let exchange = unique("stored");
    let publisher = Publisher::connect(&broker.url());
    publisher.declare(ExchangeType::Topic, &exchange);
    // Declared otherwise by somebody else: 406.
    let name = unique("history");
    let first = Process::start(&broker.url(), &name);
    first.keep(&exchange, &["#"]);
    let mut other = Process::start_with(StreamOptions {
        max_age: "2h".to_owned(),
        ..options(&broker.url(), &name)
    });
    other.until("failures", |counters| &counters.stream_failures, 1);
    assert!(super::logged("events are not kept") > 0 && super::logged("406") > 0);
    assert_eq!(other.count(|counters| &counters.stream_up), 0);
    drop((first, other));
    // A classic queue of that name: it can be read from, but not as a stream.
    let name = unique("history");
    broker_queue(&broker, &name);
    other = Process::start(&broker.url(), &name);
    other.until("failures", |counters| &counters.stream_failures, 1);
    other.begin(now_ms());
    assert_eq!(other.next().map(|_| ()), Err(Why::Outage));
    // Deleted under a reader, who is told; and declared again, with nothing in it.
    let name = unique("history");
    let mut process = Process::start(&broker.url(), &name);
    process.keep(&exchange, &["#"]);
    publisher.publish(&exchange, "before", b"{}");
    publisher.settle();
    process.begin(now_ms());
    assert_eq!(keys_of(&process.all_until(now_ms())), ["before"]);
    broker.ctl(&["delete_queue", &name]);
    let why = loop {
        if let Err(why) = process.next() {
            break why;
        }
    };
    assert_eq!(why, Why::Outage);
    let deleted = now_ms();
    let deadline = Instant::now() + PATIENCE;
    let items = loop {
        process.begin(now_ms());
        match process.next() {
            Ok(first) => {
                let rest = process.all_until(now_ms());
                break [vec![first], rest].concat();
            }
            Err(why) => assert_eq!(why, Why::Outage),
        }
        assert!(Instant::now() < deadline, "it is not declared again");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(keys_of(&items).is_empty());
    let markers = markers_of(&items);
    assert!(
        markers[0].unix_ms >= deleted - 1000,
        "nothing of before is there"
    );
}

#[test]
fn a_broker_that_restarts_leaves_a_hole_and_one_that_does_not_leaves_none() {
    let Some(broker) = Broker::own() else {
        return;
    };
    let (exchange, name) = (unique("stored"), unique("history"));
    let publisher = Publisher::connect(&broker.url());
    publisher.declare(ExchangeType::Topic, &exchange);
    let begin = now_ms();
    {
        let process = Process::start(&broker.url(), &name);
        process.keep(&exchange, &["#"]);
        publisher.publish(&exchange, "first", b"{}");
        publisher.settle();
    }
    // Another process finds all that was kept meanwhile, and no hole.
    publisher.publish(&exchange, "between", b"{}");
    publisher.settle();
    let mut process = Process::start(&broker.url(), &name);
    process.keep(&exchange, &["#"]);
    publisher.publish(&exchange, "second", b"{}");
    publisher.settle();
    process.begin(begin);
    let items = process.all_until(now_ms());
    assert_eq!(keys_of(&items), ["first", "between", "second"]);
    let holes = |items: &[StoredItem]| {
        let markers = markers_of(items);
        markers.iter().filter(|marker| marker.is_hole).count()
    };
    assert_eq!(holes(&items), 1, "but for its declaration");
    // The exchange, and with it the binding, goes with the broker.
    // In order: after a kill the streams of this one node do not come back by themselves (RabbitMQ 3.10).
    broker.stop();
    broker.restart();
    let publisher = Publisher::connect(&broker.url());
    publisher.declare(ExchangeType::Topic, &exchange);
    publisher.publish(&exchange, "lost", b"{}");
    publisher.settle();
    let restarted = now_ms();
    let deadline = Instant::now() + PATIENCE;
    let items = loop {
        process.begin(begin);
        let mut items = Vec::new();
        let is_whole = loop {
            match process.next() {
                Ok(item) => {
                    let is_last = matches!(&item.what, Content::Marker(marker)
                        if marker.unix_ms > restarted && !marker.keys.is_empty());
                    items.push(item);
                    if is_last {
                        break true;
                    }
                }
                Err(_) => break false,
            }
        };
        if is_whole {
            break items;
        }
        assert!(
            Instant::now() < deadline,
            "it is never read again: {:?}",
            process.counters
        );
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(holes(&items) >= 2, "{items:?}");
}

/// Declares a classic queue.
fn broker_queue(broker: &Broker, name: &str) {
    let publisher = Publisher::connect(&broker.url());
    publisher.declare_queue(name);
}
