//! Cases of the silent, the mute and the idle, and of messages that are never finished.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blackhole::event::Event;
use blackhole::handoff::FromSource;
use blackhole::session::close::CloseReason;
use blackhole::session::liveness::PING_PAYLOAD;
use blackhole::session::outbox::SlowConsumerPolicy;
use serde_json::json;

use crate::client::{Client, Deed};
use crate::model::{ACCOUNTS, Asked, BINDINGS, TICK, TOKENS, Times};
use crate::scenes::{token_file, world_of_readers};
use crate::world::World;
use support::wire::{client_frame, client_text};

const SECOND: Duration = Duration::from_secs(1);

/// The times of a server whose options were not given.
const DEFAULTS: Times = Times {
    ping_interval: Some(Duration::from_secs(25)),
    pong_timeout: Duration::from_secs(10),
    idle_timeout: None,
    message_timeout: Duration::from_secs(10),
};

/// As [`world_of_readers`], under these times. The first client's slot is one that is pinged after four fifths of the
/// interval.
fn world_of_times(clients: usize, times: Times, tokens: &Path) -> World {
    let mut world = world_of_readers(clients, &[], tokens);
    world.times = times;
    world.reactor.hub.limits.liveness = times.rules();
    for client in &mut world.clients {
        client.answers_pings = true;
        client.ping();
    }
    world.settle();
    world
}

impl World {
    /// What the loop has counted: pings sent, and sessions closed as dead, as idle, and for a message not finished.
    fn liveness_counts(&self) -> [u64; 4] {
        let metrics = &self.reactor.hub.metrics;
        [
            metrics.pings_sent_total,
            metrics.closes_dead_total,
            metrics.closes_idle_total,
            metrics.closes_message_timeout_total,
        ]
    }
}

#[test]
fn a_mute_client_is_pinged_and_dropped_at_its_times_and_not_a_moment_before() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_times(1, DEFAULTS, &tokens);
    world.clients[0].answers_pings = false;
    world.pass(20 * SECOND - TICK);
    assert_eq!(world.liveness_counts(), [0, 0, 0, 0]);
    world.pass(2 * TICK);
    assert_eq!(world.liveness_counts(), [1, 0, 0, 0]);
    assert_eq!(world.clients[0].was_pinged, 1);
    world.pass(10 * SECOND - 2 * TICK);
    assert_eq!(world.liveness_counts(), [1, 0, 0, 0]);
    assert_eq!(world.clients.len(), 1);
    world.pass(3 * TICK);
    assert_eq!(world.liveness_counts(), [1, 1, 0, 0]);
    // Nobody waits for a dead peer to close its side.
    assert_eq!(world.reactor.connections().len(), 0);
    world.end();
}

#[test]
fn a_client_that_answers_stays_for_ever_and_one_that_speaks_is_not_pinged() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_times(2, DEFAULTS, &tokens);
    for _ in 0..40 {
        world.clients[1].ping();
        world.pass(15 * SECOND);
    }
    assert_eq!(world.clients.len(), 2);
    assert_eq!(world.clients[1].was_pinged, 0);
    // Ten minutes at 20 s each.
    assert!(
        (28..=30).contains(&world.clients[0].was_pinged),
        "{:?}",
        world.clients[0]
    );
    world.end();
}

#[test]
fn without_pings_a_silent_client_is_kept_and_the_loop_does_not_wake_for_it() {
    let (_directory, tokens) = token_file();
    let off = Times {
        ping_interval: None,
        ..DEFAULTS
    };
    let mut world = world_of_times(1, off, &tokens);
    world.clients[0].answers_pings = false;
    world.pass(600 * SECOND);
    assert_eq!(world.liveness_counts(), [0; 4]);
    assert_eq!(world.clients.len(), 1);
    assert!(world.reactor.patience(world.now()) > 10 * SECOND);
    world.end();
}

#[test]
fn a_process_that_was_stopped_gives_everybody_a_ping_and_the_time_to_answer_it() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_times(60, DEFAULTS, &tokens);
    for client in &mut world.clients[30..] {
        client.answers_pings = false;
    }
    for stopped_at in [5 * SECOND, 14 * SECOND] {
        // Not pinged yet; then pinged, and a part of the time to answer has passed.
        world.pass(stopped_at);
        let before = world.liveness_counts();
        world.clock += 3600 * SECOND;
        for _ in 0..10 {
            world.turn();
        }
        assert_eq!(world.liveness_counts(), before);
        assert_eq!(world.clients.len(), 60);
    }
    world.pass(25 * SECOND);
    assert_eq!(world.liveness_counts()[1], 30, "the mute are dead");
    assert_eq!(world.clients.len(), 30);
    world.end();
}

#[test]
fn nobody_is_dropped_whose_bytes_are_there_and_were_not_read_yet() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_times(1, DEFAULTS, &tokens);
    world.clients[0].answers_pings = false;
    world.pass(25 * SECOND);
    assert_eq!(world.liveness_counts(), [1, 0, 0, 0]);
    // The answer is in the kernel, and the polls until the time is over do not tell of it.
    let wire = world.clients[0].wire.clone();
    wire.borrow_mut().send(&client_frame(0x8A, PING_PAYLOAD));
    for _ in 0..100 {
        world.clock += TICK;
        world.reactor.turn(&[], world.now());
    }
    assert!(wire.borrow().to_server.is_empty(), "read at last");
    assert_eq!(world.liveness_counts(), [1, 0, 0, 0]);
    assert_eq!(world.reactor.connections().len(), 1);
}

#[test]
fn pings_of_clients_that_came_together_are_spread() {
    const CLIENTS: usize = 900;
    let (_directory, tokens) = token_file();
    let mut world = world_of_times(CLIENTS, DEFAULTS, &tokens);
    let (mut most, mut before) = (0, 0);
    world.pass(20 * SECOND - TICK);
    assert_eq!(world.liveness_counts()[0], 0);
    for _ in 0..102 {
        world.pass(TICK);
        let pings = world.liveness_counts()[0];
        most = most.max(pings - before);
        before = pings;
    }
    assert_eq!(before, CLIENTS as u64, "each once within ±20 %");
    assert!(
        most <= 3 * CLIENTS as u64 / 100,
        "{most} in a tenth of a second"
    );
    world.end();
}

#[test]
fn a_client_that_takes_nothing_is_found_dead_under_the_policy_drop_only_when_its_system_is() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_times(4, DEFAULTS, &tokens);
    world.reactor.hub.limits.slow_consumer = SlowConsumerPolicy::Drop;
    world.policy = SlowConsumerPolicy::Drop;
    for client in &mut world.clients {
        client.subscribe((0, "call.*.*"));
    }
    world.settle();
    world.clients[0].unplug();
    for client in &world.clients[1..3] {
        client.wire.borrow_mut().room = 0;
    }
    while world.reactor.hub.outboxes.blocked_sessions < 3 {
        world.publish();
        world.turn();
    }
    // Longer than the time to answer, but not so long as one may wait whose ping could not be written.
    world.pass(50 * SECOND);
    assert_eq!(world.liveness_counts()[1], 0);
    world.clients[1].wire.borrow_mut().make_room(usize::MAX / 4);
    world.pass(30 * SECOND);
    assert_eq!(
        world.liveness_counts()[1],
        1,
        "the one that is not there any more"
    );
    assert_eq!(world.clients.len(), 3);
    assert!(
        world.clients[0].was_pinged > 0,
        "the one that reads again was asked, and answered"
    );
    world.end();
}

#[test]
fn a_client_whose_subscribes_wait_is_read_on_and_its_pings_of_either_kind_are_answered() {
    let (_directory, tokens) = token_file();
    let times = Times {
        ping_interval: Some(SECOND),
        pong_timeout: SECOND,
        ..DEFAULTS
    };
    let mut world = world_of_times(1, times, &tokens);
    // The broker does not confirm them.
    for binding in BINDINGS {
        world.clients[0].subscribe((0, binding));
    }
    world.clients[0].command(json!({"action": "unsubscribe"}), Asked::Unsubscribe);
    world.clients[0].give_up(|_| true);
    world.clients[0].subscribe((0, "call.*.*"));
    for _ in 0..2000 {
        world.clients[0].ping();
    }
    world.clients[0].websocket_ping(b"are you there".to_vec());
    for _ in 0..600 {
        world.turn();
    }
    let client = &world.clients[0];
    assert_eq!(client.last_pong.as_deref(), Some(&b"are you there"[..]));
    // What was unsubscribed does not wait any more, so neither does the unsubscribe.
    assert_eq!(client.asked.len(), 1, "{:?}", client.asked);
    world.pass(9 * SECOND);
    let connection = world.reactor.connections().iter().next();
    let (_, connection) = connection.expect("still there");
    assert!(connection.session.is_waiting() && connection.session.wants_bytes());
    assert_eq!(world.liveness_counts()[1..], [0; 3]);
    world.settle();
    assert!(world.clients[0].asked.is_empty());
    world.end();
}

#[test]
fn a_client_without_a_frame_of_its_own_is_closed_at_the_idle_limit_though_it_answers_pings() {
    let (_directory, tokens) = token_file();
    let limit = 360 * SECOND;
    let times = Times {
        idle_timeout: Some(limit),
        ..DEFAULTS
    };
    // The first sends nothing of its own.
    let own: [fn(&mut Client); 4] = [
        |_| {},
        |client| {
            client.expect_reply("none", Asked::Anonymous);
            client.wire.borrow_mut().send(&client_text("{}"));
        },
        |client| client.websocket_ping(Vec::new()),
        |client| client.wire.borrow_mut().send(&client_frame(0x8A, b"")),
    ];
    let mut world = world_of_times(own.len(), times, &tokens);
    world.pass(limit - TICK);
    for (client, says) in world.clients.iter_mut().zip(own) {
        assert!(client.was_pinged > 10);
        says(client);
    }
    world.turn();
    let codes = |world: &World| -> Vec<Option<u16>> {
        let codes = world.clients.iter().map(|client| client.closed_with);
        codes.collect()
    };
    assert_eq!(codes(&world), [None; 4]);
    world.pass(3 * TICK);
    assert_eq!(codes(&world), [Some(1000), None, None, None]);
    world.pass(limit - 4 * TICK);
    assert_eq!(codes(&world), [None; 3]);
    world.pass(4 * TICK);
    assert_eq!(codes(&world), [Some(1000); 3]);
    world.end();
    assert_eq!(world.liveness_counts()[1..], [0, 4, 0]);
}

/// The request id of the ping that is dripped.
const DRIPPED: &str =
    "a ping that comes byte by byte, and is long enough to be seen in many places of its way";

/// Sends the pieces to the only client's session, evenly so that the last comes `time` after the first, and says
/// whether the session was closed.
fn drip(world: &mut World, pieces: &[Vec<u8>], time: Duration) -> bool {
    let steps = (time.as_millis() / TICK.as_millis()) as usize;
    let ping = client_frame(0x89, b"");
    for step in 0..=steps {
        if step > 0 {
            world.pass(TICK);
        }
        let place = |step: usize| step * pieces.len() / (steps + 1);
        let pieces = &pieces[place(step)..place(step + 1)];
        let pings = pieces.iter().filter(|piece| piece.ends_with(&ping));
        world.clients[0].pings.extend(pings.map(|_| Vec::new()));
        if step == steps && world.clients[0].closed_with.is_none() {
            world.clients[0].expect_reply(DRIPPED, Asked::Ping);
        }
        world.clients[0].wire.borrow_mut().send(&pieces.concat());
    }
    world.turn();
    world.clients[0].closed_with == Some(1008)
}

#[test]
fn a_message_that_was_begun_is_finished_in_its_time_however_it_drips_or_the_session_is_closed() {
    let (_directory, tokens) = token_file();
    let text = json!({"action": "ping", "auth_token": TOKENS[0], "request_id": DRIPPED});
    let text = text.to_string();
    let byte_by_byte: Vec<Vec<u8>> = client_text(&text)
        .into_iter()
        .map(|byte| vec![byte])
        .collect();
    // Each fragment comes whole, and a ping with it: between two reads no frame is in part.
    let last = text.len() - 1;
    let fragment = |(at, byte)| {
        let first = u8::from(at == 0) | if at == last { 0x80 } else { 0 };
        [client_frame(first, &[byte]), client_frame(0x89, b"")].concat()
    };
    let fragments: Vec<Vec<u8>> = text.bytes().enumerate().map(fragment).collect();
    for pieces in [byte_by_byte, fragments] {
        for (time, is_closed) in [(99, false), (100, false), (103, true)] {
            let mut world = world_of_times(1, DEFAULTS, &tokens);
            if is_closed {
                world.clients[0].expects.push(CloseReason::MessageTimeout);
            }
            let commands = world.reactor.hub.metrics.commands.total();
            assert_eq!(drip(&mut world, &pieces, time * TICK), is_closed, "{time}");
            let more = world.reactor.hub.metrics.commands.total() - commands;
            assert_eq!(more, u64::from(!is_closed), "{time}");
            // The next has a time of its own.
            assert!(is_closed || !drip(&mut world, &pieces, 99 * TICK));
            world.end();
            let expected = [0, 0, u64::from(is_closed)];
            assert_eq!(world.liveness_counts()[1..], expected);
        }
    }
}

#[test]
fn a_frame_that_is_never_finished_is_cut_off_too_and_costs_no_more_than_what_arrived() {
    let (_directory, tokens) = token_file();
    let off = Times {
        ping_interval: None,
        ..DEFAULTS
    };
    let mut world = world_of_times(2, off, &tokens);
    // The first byte of a ping; and 1,000 bytes of a message that announces 60,000.
    let announced = client_frame(0x81, &[b' '; 60_000]);
    for (client, bytes) in world.clients.iter_mut().zip([&[0x89], &announced[..1008]]) {
        client.do_deed(Deed::Begun(world.awake), bytes);
    }
    (0..2).for_each(|_| world.turn());
    let held = world.reactor.hub.partials.bytes();
    assert!((1_000..3_000).contains(&held), "{held} bytes");
    world.pass(10 * SECOND);
    let codes = |world: &World, code| world.clients.iter().all(|one| one.closed_with == code);
    assert!(codes(&world, None));
    world.pass(3 * TICK);
    assert!(codes(&world, Some(1008)));
    assert_eq!(world.reactor.hub.partials.bytes(), 0);
    world.end();
    assert_eq!(world.liveness_counts(), [0, 0, 0, 2]);
}

#[test]
fn pings_that_never_end_do_not_keep_the_memory_of_a_burst() {
    let (_directory, tokens) = token_file();
    let times = Times {
        ping_interval: Some(SECOND),
        ..DEFAULTS
    };
    let mut world = world_of_times(400, times, &tokens);
    for client in &mut world.clients {
        client.subscribe((0, "call.*.*"));
    }
    world.settle();
    let before = world.reactor.hub.metrics.clone();
    // Two events in one turn merge, and each session has a queue.
    for number in 1..=2 {
        let body = json!({"Event-Name": "CHANNEL_CREATE", "Call-ID": "c1", "Account": 0, "Number": number,
            "Custom-Channel-Vars": {"Account-ID": ACCOUNTS[0]}});
        let key = "call.CHANNEL_CREATE.c1".into();
        let event = Event::decode("callevt".into(), key, body.to_string().into_bytes(), None);
        world
            .outgoing
            .push_back(FromSource::Event(Arc::new(event.expect("a valid body"))));
    }
    world.settle();
    world.pass(3 * SECOND);
    let metrics = &world.reactor.hub.metrics;
    assert!(metrics.pings_sent_total > before.pings_sent_total + 400);
    assert_eq!(metrics.heap_trims_total, before.heap_trims_total + 1);
    world.end();
}
