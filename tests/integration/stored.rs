//! Sessions that resume from the stream of the history (PROTOCOL 10), on scripted sockets and a virtual clock; the reader of
//! the stream is the test. `stream` has the same with a real broker.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blackhole::event::Event;
use blackhole::handoff::stored::{
    FromReader, KeeperEnd, Read, ReaderEnd, ToReader, stored_channels,
};
use blackhole::handoff::{FromSource, LoopWaker, Return, SourceEnd};
use blackhole::history::Why;
use blackhole::history::stored::{Content, KeyId, Marker, Offset, StoredItem, key_id};
use blackhole::reactor::{Reactor, Ready};
use blackhole::session::ListenerKind;
use blackhole::session::id::{ConnId, Peer};
use serde_json::{Value, json};

use support::client::ANY_TOKEN;
use support::events::{ACCOUNT, OTHER_ACCOUNT};
use support::scripted::{Scripted, Wire, asked, config, now, reactor};
use support::wire::{UPGRADE_REQUEST, client_text, server_frames};

const CREATE: &str = "call.CHANNEL_CREATE.*";

/// How long before the process's start the clients' cursors are.
const AGO_MS: u64 = 10_000;

struct Stage {
    reactor: Reactor<Scripted>,
    source: SourceEnd,
    keeper: KeeperEnd,
    reader: ReaderEnd,
    clock: Duration,
    port: u16,
    offset: u64,
    keys: Vec<KeyId>,
    /// Our own markers get into the stream.
    is_written: bool,
}

#[derive(Clone)]
struct One {
    id: ConnId,
    wire: Rc<RefCell<Wire>>,
}

impl One {
    /// What came since the last call, a word each.
    fn told(&self) -> Vec<String> {
        let mut wire = self.wire.borrow_mut();
        let (frames, used) = server_frames(&wire.to_client);
        let words = frames
            .iter()
            .filter(|(opcode, _)| *opcode == 1)
            .map(|(_, text)| word(&serde_json::from_slice(text).unwrap()))
            .collect();
        wire.to_client.drain(..used);
        words
    }
}

fn word(text: &Value) -> String {
    match text["action"].as_str() {
        Some("event") if text["replayed"] == true => format!("-{}", text["args"]["Number"]),
        Some("event") => text["args"]["Number"].to_string(),
        Some("notice") if text["name"] == "gap" => {
            format!("gap {}", text["data"]["why"].as_str().unwrap())
        }
        Some("notice") => format!("resumed {}", text["data"]["events"]),
        _ => format!(
            "{}: {}",
            text["status"].as_str().unwrap(),
            text["data"]["resumed"]
        ),
    }
}

fn event(account: &str, number: u64, bytes: usize) -> Arc<Event> {
    let body = json!({"Event-Name": "CHANNEL_CREATE", "Account-ID": account, "Number": number,
        "Padding": "x".repeat(bytes)});
    let key = "call.CHANNEL_CREATE.x";
    let body = body.to_string().into_bytes();
    Arc::new(Event::decode("callevt".into(), key.into(), body, None).unwrap())
}

impl Stage {
    fn new(args: &[&str]) -> Self {
        let config = config(&[&["--auth=insecure"], args].concat());
        let (source, mut reactor) = reactor(&config, 4096, 1);
        let (end, keeper, reader) = stored_channels(LoopWaker::new(|| Ok(())));
        reactor.take_store(end);
        source.send(FromSource::Up(Return::Anew)).unwrap();
        let mut stage = Self {
            reactor,
            source,
            keeper,
            reader,
            clock: Duration::ZERO,
            port: 1000,
            offset: 0,
            keys: Vec::new(),
            is_written: true,
        };
        stage.turn(&[]);
        stage
    }

    fn turn(&mut self, heard: &[&One]) {
        self.clock += Duration::from_millis(1);
        if self.is_written {
            self.keeper.wrote(now(self.clock).unix_ms);
        }
        let ready = heard.iter().map(|one| Ready {
            id: one.id,
            readable: true,
            writable: true,
            read_closed: false,
        });
        self.reactor
            .turn(&ready.collect::<Vec<_>>(), now(self.clock));
        let asked = asked(&self.source);
        if !asked.is_empty() {
            self.source.send(FromSource::Bound(asked)).unwrap();
            self.reactor.turn(&[], now(self.clock));
        }
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.reactor.patience(now(self.clock)) > Duration::ZERO {
                return;
            }
            self.turn(&[]);
        }
        panic!("the loop does not come to rest");
    }

    /// Turns now and then until the clock has gone on so far.
    fn wait(&mut self, duration: Duration) {
        let until = self.clock + duration;
        while self.clock < until {
            self.clock += Duration::from_millis(49).min(until - self.clock);
            self.turn(&[]);
        }
    }

    fn unix_ms(&self) -> u64 {
        now(self.clock).unix_ms
    }

    /// A session that asks for what came after a cursor of before the process's start.
    fn resuming(&mut self, account: &str, room: usize) -> One {
        self.resuming_from(account, room, now(Duration::ZERO).unix_ms - AGO_MS)
    }

    /// The same with a cursor of this moment.
    fn resuming_from(&mut self, account: &str, room: usize, unix_ms: u64) -> One {
        let wire = Wire::new(room, usize::MAX);
        wire.borrow_mut().send(UPGRADE_REQUEST.as_bytes());
        self.port += 1;
        let peer = Peer::from(SocketAddr::from(([203, 0, 113, 1], self.port)));
        let id = self.reactor.accept(
            Scripted(wire.clone()),
            peer,
            ListenerKind::Clients,
            now(self.clock),
        );
        self.turn(&[]);
        wire.borrow_mut().to_client.clear();
        let one = One {
            id: id.unwrap(),
            wire,
        };
        let cursor = format!("0.{}.zzzzzz", base_36(unix_ms));
        let command = json!({"action": "subscribe", "auth_token": ANY_TOKEN,
            "data": {"account_id": account, "binding": CREATE, "resume": cursor}});
        one.wire
            .borrow_mut()
            .send(&client_text(&command.to_string()));
        self.turn(&[&one]);
        self.turn(&[]);
        for keys in self.keeper.keys.try_iter() {
            let ids = keys.iter().map(|key| key_id(&key.exchange, &key.key));
            self.keys.extend(ids);
        }
        one
    }

    /// The read that was begun, and from when on.
    fn begun(&self) -> (Read, u64) {
        let begun = self
            .reader
            .commands
            .try_iter()
            .find_map(|command| match command {
                ToReader::Begin { read, from_unix_ms } => Some((read, from_unix_ms)),
                ToReader::More(_) | ToReader::End(_) => None,
            });
        begun.expect("the stream is read")
    }

    fn item(&mut self, what: Content) -> StoredItem {
        self.offset += 3;
        StoredItem {
            offset: Offset(self.offset),
            what,
        }
    }

    fn marker(&mut self, unix_ms: u64, is_ours: bool) -> StoredItem {
        let keys = self.keys.clone().into();
        self.item(Content::Marker(Marker {
            unix_ms,
            is_ours,
            is_hole: false,
            keys,
        }))
    }

    fn stored(&mut self, account: &str, number: u64) -> StoredItem {
        self.item(Content::Event(event(account, number, 0)))
    }

    fn tell(&mut self, read: Read, items: Vec<StoredItem>) {
        let told = self.reader.tell(FromReader::Items(read, items));
        assert!(told.is_ok(), "no more than was asked for");
        self.turn(&[]);
        self.settle();
    }

    fn publish(&mut self, account: &str, number: u64) {
        let event = FromSource::Event(event(account, number, 0));
        self.source.send(event).unwrap();
        self.turn(&[]);
        self.settle();
    }
}

fn base_36(mut number: u64) -> String {
    let mut digits = Vec::new();
    while number > 0 {
        digits.push(char::from_digit((number % 36) as u32, 36).unwrap());
        number /= 36;
    }
    digits.iter().rev().collect()
}

#[test]
fn a_session_goes_through_the_stream_and_on_in_the_history_without_a_hole() {
    let mut stage = Stage::new(&[]);
    let one = stage.resuming(ACCOUNT, usize::MAX);
    assert!(!stage.keys.is_empty(), "its family is kept");
    let (read, from) = stage.begun();
    let start = now(Duration::ZERO).unix_ms - AGO_MS;
    assert_eq!(from, start - 2_000);
    assert_eq!(one.told(), [""; 0], "its reply waits");
    let items = vec![
        stage.stored(ACCOUNT, 0),
        stage.marker(from - 1_000, false),
        stage.stored(ACCOUNT, 1),
        stage.stored(OTHER_ACCOUNT, 99),
    ];
    stage.tell(read, items);
    assert_eq!(one.told(), [""; 0], "it may still be behind a hole");
    let items = vec![stage.marker(from + 1, false), stage.stored(ACCOUNT, 2)];
    stage.tell(read, items);
    assert_eq!(one.told(), ["success: true", "-1", "-2"]);
    // Live by now, and in the stream too: it comes once, and what is behind it later.
    stage.publish(ACCOUNT, 3);
    let items = vec![stage.stored(ACCOUNT, 3)];
    stage.tell(read, items);
    assert_eq!(one.told(), ["-3"]);
    // A marker of before its bindings were in force joins nothing, nor does another's.
    let items = vec![
        stage.marker(start, true),
        stage.marker(start + 60_000, false),
    ];
    stage.tell(read, items);
    assert_eq!(one.told(), [""; 0]);
    stage.wait(Duration::from_millis(2_100));
    stage.publish(ACCOUNT, 4);
    let unix_ms = stage.unix_ms() - 200;
    let items = vec![stage.marker(unix_ms, true)];
    stage.tell(read, items);
    assert_eq!(one.told(), ["-4", "resumed 4"]);
    stage.publish(ACCOUNT, 5);
    assert_eq!(one.told(), ["5"]);
    // Nobody needs the stream any more.
    stage.wait(Duration::from_secs(11));
    let last = stage.reader.commands.try_iter().last();
    assert_eq!(last, Some(ToReader::End(read)));
    assert_eq!(stage.reactor.hub.past.bytes(), 0);
}

#[test]
fn a_stream_that_does_not_answer_costs_a_reply_its_time_and_is_told() {
    let mut stage = Stage::new(&["--request-timeout-ms=5000"]);
    let one = stage.resuming(ACCOUNT, usize::MAX);
    stage.wait(Duration::from_millis(4_900));
    assert_eq!(one.told(), [""; 0]);
    stage.wait(Duration::from_millis(200));
    assert_eq!(one.told(), ["success: false", "gap outage"]);
    stage.publish(ACCOUNT, 1);
    assert_eq!(one.told(), ["1"], "it is live all the same");
}

#[test]
fn who_comes_with_ever_older_cursors_keeps_nobody_from_an_answer() {
    let mut stage = Stage::new(&[]);
    let one = stage.resuming(ACCOUNT, usize::MAX);
    let (read, from) = stage.begun();
    let mut others = Vec::new();
    for number in 1..=10 {
        others.push(stage.resuming_from(
            OTHER_ACCOUNT,
            usize::MAX,
            now(Duration::ZERO).unix_ms - AGO_MS - 1_000 * number,
        ));
        stage.wait(Duration::from_millis(100));
    }
    let items = vec![
        stage.marker(from - 1, false),
        stage.stored(ACCOUNT, 1),
        stage.marker(from + 1, false),
    ];
    stage.tell(read, items);
    assert_eq!(
        one.told(),
        ["success: true", "-1"],
        "the read was not begun anew"
    );
    // When it is through, which takes less than the bound on one group, the others have their turn, all at once.
    let marker = stage.unix_ms() + 1_000;
    stage.wait(Duration::from_millis(1_500));
    let items = vec![stage.marker(marker, true)];
    stage.tell(read, items);
    assert_eq!(stage.begun().1, from - 10_000, "from the oldest of them on");
    // It came from another process, so it is held for history_overlap_ms.
    stage.wait(Duration::from_secs(1));
    assert_eq!(one.told(), ["resumed 1"]);
}

#[test]
fn nobody_is_told_that_nothing_is_missing_while_our_own_markers_do_not_get_into_the_stream() {
    let mut stage = Stage::new(&["--request-timeout-ms=15000"]);
    let one = stage.resuming(ACCOUNT, usize::MAX);
    let (read, from) = stage.begun();
    let items = vec![
        stage.marker(from - 1, false),
        stage.stored(ACCOUNT, 1),
        stage.marker(from + 1, false),
    ];
    stage.tell(read, items);
    assert_eq!(one.told(), ["success: true", "-1"]);
    // From now on another process's get into it, and ours do not.
    stage.is_written = false;
    for _ in 0..6 {
        stage.wait(Duration::from_secs(2));
        let items = vec![stage.marker(stage.unix_ms(), false)];
        stage.tell(read, items);
    }
    assert_eq!(one.told(), ["gap outage"], "within seconds");
    // Who comes now waits, and what proves the past is not enough.
    let late = stage.resuming(ACCOUNT, usize::MAX);
    let items = vec![stage.marker(stage.unix_ms(), false)];
    stage.tell(read, items);
    stage.wait(Duration::from_secs(14));
    assert_eq!(late.told(), [""; 0]);
    stage.wait(Duration::from_secs(2));
    assert_eq!(late.told(), ["success: false", "gap outage"]);
    // Once they do, who waits is answered.
    let other = stage.resuming(ACCOUNT, usize::MAX);
    stage.wait(Duration::from_secs(5));
    assert_eq!(other.told(), [""; 0]);
    stage.is_written = true;
    stage.wait(Duration::from_millis(300));
    assert_eq!(other.told(), ["success: true", "-1"]);
    stage.wait(Duration::from_secs(3));
    let items = vec![stage.marker(stage.unix_ms(), true)];
    stage.tell(read, items);
    assert_eq!(other.told(), ["resumed 1"]);
}

#[test]
fn what_ends_a_read_is_told_to_who_waits_and_to_who_is_under_way() {
    for ends_by_hole in [false, true] {
        let mut stage = Stage::new(&[]);
        let one = stage.resuming(ACCOUNT, usize::MAX);
        let (read, from) = stage.begun();
        let items = vec![
            stage.marker(from - 1, false),
            stage.stored(ACCOUNT, 1),
            stage.marker(from + 1, false),
        ];
        stage.tell(read, items);
        assert_eq!(one.told(), ["success: true", "-1"]);
        if ends_by_hole {
            let hole = Content::Marker(Marker {
                unix_ms: from + 2,
                is_ours: false,
                is_hole: true,
                keys: Box::default(),
            });
            let items = vec![stage.item(hole), stage.stored(ACCOUNT, 2)];
            stage.tell(read, items);
        } else {
            let failed = FromReader::Failed(read, Why::Outage);
            assert!(stage.reader.tell(failed).is_ok());
            stage.turn(&[]);
            stage.settle();
        }
        assert_eq!(one.told(), ["gap outage"], "and never `resumed`");
        stage.publish(ACCOUNT, 3);
        assert_eq!(one.told(), ["3"]);
        // Who comes later asks anew, or hears of the hole.
        let other = stage.resuming(ACCOUNT, usize::MAX);
        if ends_by_hole {
            let items = vec![stage.marker(from + 100, false)];
            stage.tell(read, items);
        } else {
            let (read, _) = stage.begun();
            assert!(
                stage
                    .reader
                    .tell(FromReader::Failed(read, Why::Outage))
                    .is_ok()
            );
            stage.turn(&[]);
            stage.settle();
        }
        assert_eq!(other.told(), ["success: false", "gap outage"]);
    }
}

#[test]
fn a_session_that_does_not_read_holds_up_nobody_and_is_told() {
    let mut stage = Stage::new(&["--history-bytes=200000"]);
    let reads = stage.resuming(ACCOUNT, usize::MAX);
    let stuck = stage.resuming(ACCOUNT, 3_000);
    let (read, from) = stage.begun();
    let items = vec![stage.marker(from - 1, false), stage.marker(from + 1, false)];
    stage.tell(read, items);
    let mut credit = 3;
    let mut expected = vec!["success: true".to_owned()];
    for number in 0..400 {
        assert!(credit > 0, "the reader is asked for more, {number}");
        credit -= 1;
        let what = Content::Event(event(ACCOUNT, number, 5_000));
        let items = vec![stage.item(what)];
        stage.tell(read, items);
        stage.wait(Duration::from_millis(5));
        let asked = stage.reader.commands.try_iter();
        credit += asked.filter(|one| *one == ToReader::More(read)).count();
        expected.push(format!("-{number}"));
        assert!(stage.reactor.hub.past.bytes() < 300_000, "bounded");
    }
    assert_eq!(reads.told(), expected);
    stuck.wire.borrow_mut().make_room(usize::MAX >> 1);
    stage.turn(&[&stuck]);
    stage.settle();
    let told = stuck.told();
    assert_eq!(told.first().map(String::as_str), Some("success: true"));
    assert_eq!(told.last().map(String::as_str), Some("gap expired"));
}

#[test]
fn a_session_that_does_not_read_does_not_hold_back_who_wants_what_came_earlier() {
    let mut stage = Stage::new(&[]);
    let stuck = stage.resuming(ACCOUNT, 3_000);
    let (read, from) = stage.begun();
    stage.offset = 1_000;
    let mut items = vec![stage.marker(from - 1, false), stage.marker(from + 1, false)];
    for number in 0..40 {
        let what = Content::Event(event(ACCOUNT, number, 5_000));
        items.push(stage.item(what));
    }
    stage.tell(read, items.clone());
    // Its place is far behind, and it takes nothing. Another tenant's session wants to begin before it.
    let early = stage.resuming_from(OTHER_ACCOUNT, usize::MAX, from - 60_000);
    stage.wait(Duration::from_secs(2));
    assert!(
        stage
            .reader
            .commands
            .try_iter()
            .all(|one| one == ToReader::More(read)),
        "who is under way has its time"
    );
    stage.wait(Duration::from_secs(2));
    let (again, earlier) = stage.begun();
    assert_eq!(earlier, from - 62_000);
    // What stands before the others, then these once more.
    stage.offset = 0;
    let mut all = vec![
        stage.marker(earlier - 1, false),
        stage.stored(OTHER_ACCOUNT, 500),
        stage.marker(earlier + 1, false),
    ];
    all.extend(items);
    stage.tell(again, all);
    assert_eq!(early.told(), ["success: true", "-500"]);
    // And who was stuck misses nothing when it reads at last.
    stuck.wire.borrow_mut().make_room(usize::MAX >> 1);
    stage.turn(&[&stuck]);
    stage.settle();
    let expected: Vec<_> = (0..40).map(|number| format!("-{number}")).collect();
    assert_eq!(stuck.told()[1..], expected);
}

#[test]
fn sessions_that_do_not_read_do_not_keep_the_room_from_who_waits() {
    let mut stage = Stage::new(&["--history-bytes=200000"]);
    let stuck = stage.resuming(ACCOUNT, 3_000);
    let (read, from) = stage.begun();
    let items = vec![stage.marker(from - 1, false), stage.marker(from + 1, false)];
    stage.tell(read, items);
    let mut credit = 3;
    for number in 0..100 {
        let what = Content::Event(event(ACCOUNT, number, 5_000));
        let items = match number {
            20 => vec![stage.marker(from + 50, false)],
            _ => vec![stage.item(what)],
        };
        stage.tell(read, items);
        stage.wait(Duration::from_millis(5));
        let asked = stage.reader.commands.try_iter();
        credit += asked.filter(|one| *one == ToReader::More(read)).count();
        credit -= 1;
        if credit == 0 {
            break;
        }
    }
    assert_eq!(credit, 0, "nobody takes anything, so nothing more is read");
    let waits = stage.resuming_from(OTHER_ACCOUNT, usize::MAX, from + 2_100);
    stage.wait(Duration::from_millis(1_500));
    let more = ToReader::More(read);
    assert!(stage.reader.commands.try_iter().any(|one| one == more));
    let items = vec![stage.marker(from + 200, false)];
    stage.tell(read, items);
    assert_eq!(waits.told(), ["success: true"]);
    // Who does not read is told what that costs it.
    stage.wait(Duration::from_millis(200));
    stuck.wire.borrow_mut().make_room(usize::MAX >> 1);
    stage.turn(&[&stuck]);
    stage.settle();
    assert_eq!(stuck.told().last().map(String::as_str), Some("gap expired"));
}
