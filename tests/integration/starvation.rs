//! What one client may cost another: floods and fan-outs on scripted sockets, counted in turns of the loop, so that no
//! clock and no other process has a say.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blackhole::config::Config;
use blackhole::event::Event;
use blackhole::handoff::{FromSource, Return, SourceEnd};
use blackhole::limits::{
    EVENT_SLICE_BYTES_MAX, FRAMES_READ_BEFORE_EVENTS_MAX, FRAMES_READ_PER_TURN_MAX,
    MERGED_EVENTS_MAX, SESSION_READ_BYTES_MAX,
};
use blackhole::reactor::{Reactor, Ready};
use blackhole::session::ListenerKind;
use blackhole::session::id::{ConnId, Peer};
use serde_json::{Value, json};

use support::client::{ANY_TOKEN, ping_as, subscribe};
use support::events::{ACCOUNT, OTHER_ACCOUNT};
use support::scripted::{Scripted, Wire, asked, config, now, reactor};
use support::wire::{UPGRADE_REQUEST, client_frame, client_text, server_frames};

/// A loop that takes any token, and the source's end of its hand-off.
struct Stage {
    reactor: Reactor<Scripted>,
    source: SourceEnd,
    next_port: u16,
}

#[derive(Clone)]
struct One {
    id: ConnId,
    wire: Rc<RefCell<Wire>>,
}

impl One {
    fn send(&self, bytes: &[u8]) {
        self.wire.borrow_mut().send(bytes);
    }

    /// The texts that came since the last call.
    fn texts(&self) -> Vec<Value> {
        let bytes = std::mem::take(&mut self.wire.borrow_mut().to_client);
        let (frames, used) = server_frames(&bytes);
        assert_eq!(used, bytes.len(), "whole frames");
        let texts = frames.iter().filter(|(opcode, _)| *opcode == 1);
        texts
            .map(|(_, payload)| serde_json::from_slice(payload).unwrap())
            .collect()
    }

    fn numbers(&self) -> Vec<u64> {
        let texts = self.texts();
        texts
            .iter()
            .filter_map(|text| text["args"]["Number"].as_u64())
            .collect()
    }
}

impl Stage {
    fn new(handoff_max: usize) -> Self {
        let config = Config {
            rate_limit_burst: u32::MAX,
            rate_limit_per_second: u32::MAX,
            ..config(&["--auth=insecure"])
        };
        let (source, reactor) = reactor(&config, handoff_max, 1);
        source.send(FromSource::Up(Return::Anew)).unwrap();
        Self {
            reactor,
            source,
            next_port: 1000,
        }
    }

    fn turn(&mut self, heard: &[&One]) {
        let ready: Vec<Ready> = heard
            .iter()
            .map(|one| Ready {
                id: one.id,
                readable: true,
                writable: true,
                read_closed: false,
            })
            .collect();
        self.reactor.turn(&ready, now(Duration::ZERO));
    }

    /// An upgraded session that has said nothing yet.
    fn session(&mut self) -> One {
        let wire = Wire::new(usize::MAX, usize::MAX);
        wire.borrow_mut().send(UPGRADE_REQUEST.as_bytes());
        self.next_port += 1;
        let peer = Peer::from(SocketAddr::from(([203, 0, 113, 1], self.next_port)));
        let socket = Scripted(wire.clone());
        let id = self
            .reactor
            .accept(socket, peer, ListenerKind::Clients, now(Duration::ZERO));
        self.turn(&[]);
        let answer = std::mem::take(&mut wire.borrow_mut().to_client);
        assert!(answer.starts_with(b"HTTP/1.1 101 "));
        One {
            id: id.unwrap(),
            wire,
        }
    }

    fn subscribed(&mut self, account: &str) -> One {
        self.subscribed_by(&subscribe(ANY_TOKEN, account, "call.CHANNEL_CREATE.*"))
    }

    /// A session whose subscribe the source has confirmed.
    fn subscribed_by(&mut self, command: &Value) -> One {
        let one = self.session();
        one.send(&client_text(&command.to_string()));
        self.turn(&[&one]);
        let asked = asked(&self.source);
        if !asked.is_empty() {
            self.source.send(FromSource::Bound(asked)).unwrap();
            self.turn(&[]);
        }
        assert_eq!(one.texts()[0]["status"], "success");
        one
    }

    fn publish(&self, account: &str, number: u64) -> bool {
        self.publish_body(
            &json!({"Event-Name": "CHANNEL_CREATE", "Account-ID": account, "Number": number}),
        )
    }

    fn publish_body(&self, body: &Value) -> bool {
        self.publish_on("callevt", "call.CHANNEL_CREATE.x", body)
    }

    /// Whether the hand-off had room for an event of this body.
    fn publish_on(&self, exchange: &str, routing_key: &str, body: &Value) -> bool {
        let event = Event::decode(
            exchange.into(),
            routing_key.into(),
            body.to_string().into_bytes(),
            None,
        );
        let event = FromSource::Event(Arc::new(event.unwrap()));
        self.source.send_timeout(event, Duration::ZERO).is_ok()
    }
}

#[test]
fn an_event_waits_for_nobodys_replies() {
    let ping = client_text(&ping_as(ANY_TOKEN, "p").to_string());
    for (flood, is_subscribed, what) in [
        (client_text("{}"), false, "commands that are refused"),
        (client_text(""), false, "commands that are no JSON"),
        (ping.clone(), false, "pings of a client"),
        (ping, true, "pings of a subscriber"),
        (client_frame(0x89, b""), false, "protocol pings"),
        (client_frame(0x00, b""), false, "fragments"),
    ] {
        let mut stage = Stage::new(4096);
        let honest = stage.subscribed(ACCOUNT);
        let flooders: Vec<One> = (0..10)
            .map(|_| match is_subscribed {
                true => stage.subscribed(ACCOUNT),
                false => stage.session(),
            })
            .collect();
        if flood[0] == 0 {
            let begin = client_frame(0x01, b"");
            flooders.iter().for_each(|one| one.send(&begin));
        }
        let burst = flood.repeat((16 << 10) / flood.len());
        for number in 0..100 {
            let heard: Vec<&One> = flooders
                .iter()
                .filter(|one| one.wire.borrow().to_server.len() < burst.len() / 2)
                .inspect(|one| one.send(&burst))
                .collect();
            assert!(stage.publish(ACCOUNT, number));
            stage.turn(&heard);
            assert_eq!(honest.numbers(), [number], "{what}");
            let read = stage.reactor.hub.work.frames_read;
            let most = FRAMES_READ_BEFORE_EVENTS_MAX + 1 + SESSION_READ_BYTES_MAX / 6;
            assert!(read <= most, "{what}: {read} frames in one turn");
            assert!(
                read > FRAMES_READ_BEFORE_EVENTS_MAX / 2,
                "{what}: nobody is read"
            );
            // Without events that wait they are heard as well as may be.
            stage.turn(&[]);
            let most = FRAMES_READ_PER_TURN_MAX + 1 + SESSION_READ_BYTES_MAX / 6;
            let read = stage.reactor.hub.work.frames_read;
            assert!(read <= most, "{what}: {read} frames in one turn");
        }
        let metrics = &stage.reactor.hub.metrics;
        assert_eq!(metrics.handoff_held_total, 0, "{what}");
    }
}

#[test]
fn a_subscribe_is_confirmed_whatever_is_fanned_out() {
    let mut stage = Stage::new(2 * MERGED_EVENTS_MAX as usize);
    let many: Vec<One> = (0..400).map(|_| stage.subscribed(ACCOUNT)).collect();
    let late = stage.session();
    // The events of a burst that has just begun, more than the loop takes before the first of them is written to all.
    let mut published = 0;
    for _ in 0..3 {
        while stage.publish(ACCOUNT, published) {
            published += 1;
        }
        stage.turn(&[]);
    }
    let held = stage.reactor.hub.metrics.handoff_held_total;
    assert!(held > 0, "the fan-out holds nothing");
    late.send(&client_text(
        &subscribe(ANY_TOKEN, OTHER_ACCOUNT, "fax.status.*").to_string(),
    ));
    stage.turn(&[&late]);
    let asked = asked(&stage.source);
    assert_eq!(asked.len(), 1);
    assert!(late.texts().is_empty(), "it waits for the broker");
    stage.source.send(FromSource::Bound(asked)).unwrap();
    while stage.publish(ACCOUNT, published) {
        published += 1;
    }
    stage.turn(&[]);
    assert_eq!(late.texts()[0]["status"], "success");
    assert!(
        stage.reactor.hub.metrics.handoff_held_total > held,
        "the fan-out is over"
    );
    while stage.reactor.patience(now(Duration::ZERO)) == Duration::ZERO {
        stage.turn(&[]);
    }
    let all: Vec<u64> = (0..published).collect();
    assert!(many.iter().all(|one| one.numbers() == all));
}

/// Frames of the large event, as they came to `all` since the last call.
fn large_frames(all: &[One]) -> Vec<usize> {
    let texts = all.iter().map(One::texts);
    texts
        .map(|texts| {
            let is_large = |text: &&Value| text["args"]["Padding"].is_string();
            texts.iter().filter(is_large).count()
        })
        .collect()
}

#[test]
fn an_event_that_is_large_for_many_is_made_a_slice_at_a_time_and_reaches_each_once_and_in_order() {
    const BODY: usize = 1 << 20;
    const PER_SLICE: usize = EVENT_SLICE_BYTES_MAX as usize / BODY;
    const CONFERENCE: &str = "conference.command.c";
    let mut stage = Stage::new(100);
    let mut all: Vec<One> = Vec::new();
    for number in 0..4 * PER_SLICE {
        // Of all accounts, each a group of its own.
        let command = subscribe(ANY_TOKEN, &format!("{number:032x}"), CONFERENCE);
        all.push(stage.subscribed_by(&command));
    }
    let body = json!({"Event-Name": "play", "Padding": "x".repeat(BODY)});
    assert!(stage.publish_on("conference", CONFERENCE, &body));
    let next = json!({"Event-Name": "stop"});
    assert!(
        stage.publish_on("conference", CONFERENCE, &next),
        "what comes next"
    );
    stage.turn(&[]);
    let mut got = large_frames(&all);
    assert_eq!(got.iter().sum::<usize>(), PER_SLICE);
    // Two go away before their slice, in either way; others come, of whom one takes the name of a group that was owed.
    let unsubscribe = json!({"action": "unsubscribe", "request_id": "gone"});
    let (leaver, closer) = (
        all[4 * PER_SLICE - 1].clone(),
        all[4 * PER_SLICE - 2].clone(),
    );
    leaver.send(&client_text(&unsubscribe.to_string()));
    closer.send(&client_frame(0x88, &1000_u16.to_be_bytes()));
    let stranger = stage.session();
    stranger.send(&client_text(
        &subscribe(ANY_TOKEN, OTHER_ACCOUNT, "call.CHANNEL_CREATE.*").to_string(),
    ));
    stage.turn(&[&leaver, &closer, &stranger]);
    // One of them made the stranger a session.
    let mut turns = 3;
    loop {
        let more = large_frames(&all);
        let made: usize = more.iter().sum();
        assert!(made <= 2 * PER_SLICE, "{made} in a turn or two");
        got.iter_mut()
            .zip(more)
            .for_each(|(sum, more)| *sum += more);
        if stage.reactor.patience(now(Duration::ZERO)) > Duration::ZERO {
            break;
        }
        // Who has the large event already does not get the next before everybody has it.
        let is_owed = got.iter().take(4 * PER_SLICE - 2).any(|count| *count == 0);
        let events = stage.reactor.hub.metrics.events_total;
        assert!(!is_owed || events == 1, "{events} were taken");
        stage.turn(&[]);
        turns += 1;
    }
    assert!(turns >= 4, "{turns} turns");
    let (still, gone) = got.split_at(4 * PER_SLICE - 2);
    assert!(still.iter().all(|count| *count == 1), "{still:?}");
    assert_eq!(gone, [0, 0]);
    let metrics = &stage.reactor.hub.metrics;
    assert_eq!((metrics.events_total, metrics.events_sliced_total), (2, 1));
    assert!(stranger.texts().is_empty() || stranger.numbers().is_empty());
}
