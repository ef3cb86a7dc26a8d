//! Named cases: what once went wrong, and what a random world meets too seldom.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use blackhole::event::Event;
use blackhole::handoff::{FromSource, LoopWaker, handoff_bounded};
use blackhole::limits::EMPTY_LOOKS_MAX;
use blackhole::protocol::http::HttpError;
use blackhole::routing::amqp_binding::{AmqpBinding, Asked, Ticket};
use blackhole::routing::index::IndexCounts;
use blackhole::session::outbox::SlowConsumerPolicy;
use blackhole::session::readiness::SourceState;
use serde_json::json;

use crate::SEEDS;
use crate::client::Client;
use crate::model::{ACCOUNTS, BINDINGS, CALLS, EVENTS, TOKENS};
use crate::rights::Rights;
use crate::scenes::{readers_in, token_file, world_of_readers};
use crate::world::World;
use support::scripted::under_seeds;
use support::wire::client_frame;

#[test]
fn a_flood_of_pings_leaves_few_pongs_waiting_and_the_newest_is_answered() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(600, &[], &tokens);
    for client in &mut world.clients {
        for number in 0..4000_u32 {
            client.websocket_ping(number.to_be_bytes().to_vec());
        }
    }
    for _ in 0..200 {
        world.turn();
        let waiting: usize = world
            .reactor
            .connections()
            .iter()
            .map(|(_, one)| one.session.outbox.frames())
            .sum();
        assert!(waiting <= 600 * 100, "{waiting} frames wait");
    }
    world.settle();
    for client in &world.clients {
        assert_eq!(
            client.last_pong.as_deref(),
            Some(&3999_u32.to_be_bytes()[..])
        );
    }
    world.end();
}

#[test]
fn events_that_match_several_subscriptions_wait_in_the_handoff_not_in_the_outboxes() {
    let (_directory, tokens) = token_file();
    let bindings = ["call.CHANNEL_CREATE.*", "call.*.*", "call.*.c2"];
    let mut world = world_of_readers(300, &bindings, &tokens);
    let body = json!({"Event-Name": "CHANNEL_CREATE", "Call-ID": "c2", "Account": 0,
        "Custom-Channel-Vars": {"Account-ID": ACCOUNTS[0]}, "Number": 1});
    for number in 1..=600 {
        let mut body = body.clone();
        body["Number"] = number.into();
        let key = "call.CHANNEL_CREATE.c2".into();
        let event = Event::decode("callevt".into(), key, body.to_string().into_bytes(), None);
        world
            .outgoing
            .push_back(FromSource::Event(Arc::new(event.expect("a valid body"))));
    }
    let mut most = 0;
    for _ in 0..100_000 {
        world.turn();
        let frames = world
            .reactor
            .connections()
            .iter()
            .map(|(_, one)| one.session.outbox.frames());
        most = most.max(frames.max().unwrap_or(0));
        if world.tally.events == 600 * 3 * 300 {
            assert!(most <= 64 * 3, "{most} frames waited for one session");
            return world.end();
        }
    }
    panic!("{} of {} frames came", world.tally.events, 600 * 3 * 300);
}

#[test]
fn events_in_a_row_leave_as_one_frame_and_none_is_lost_doubled_or_out_of_order() {
    let (_directory, tokens) = token_file();
    let counts = under_seeds(SEEDS / 8, |seed| {
        let world = World::new(seed, &tokens);
        let mut world = readers_in(world, 12, &["call.CHANNEL_CREATE.*", "call.*.c2"]);
        let limits = &mut world.reactor.hub.limits;
        (limits.outbox_bytes_max, limits.outboxes_bytes_max) = (usize::MAX, usize::MAX);
        for _ in 0..60 {
            for index in 0..world.clients.len() {
                if world.rng.u32(0..3) == 0 {
                    let room = world.rng.usize(1..6_000);
                    let mut wire = world.clients[index].wire.borrow_mut();
                    wire.room = 0;
                    wire.make_room(room);
                }
            }
            // Of the first subscription, of the second, of both, and of nobody.
            for _ in 0..world.rng.u32(1..6) {
                let event = EVENTS[world.rng.usize(0..2)];
                let call = CALLS[world.rng.usize(0..2)];
                for _ in 0..world.rng.u32(1..6) {
                    world.publish_one(event, call, 0);
                }
            }
            world.turn();
        }
        world.settle();
        world.check_debts();
        let announced: u64 = world.clients.iter().map(|client| client.announced).sum();
        let missed = |client: &Client| {
            client.missed + client.due.values().map(VecDeque::len).sum::<usize>() as u64
        };
        let missed: u64 = world.clients.iter().map(missed).sum();
        assert_eq!(missed, announced, "as many as were dropped");
        let merged = world.reactor.hub.metrics.runs_merged_total;
        world.end();
        [merged, announced]
    });
    let [merged, announced] = [0, 1].map(|kind| counts.iter().map(|one| one[kind]).sum::<u64>());
    println!("{merged} runs merged, {announced} frames announced as dropped");
    if counts.len() > 1 {
        assert!(merged > 1000 && announced > 1000);
    }
}

#[test]
fn the_rest_of_a_burst_is_looked_for_when_it_is_for_many() {
    let (_directory, tokens) = token_file();
    for (clients, expected) in [(63, 0), (64, EMPTY_LOOKS_MAX as u64)] {
        let mut world = world_of_readers(clients, &["call.CHANNEL_CREATE.*"], &tokens);
        let looks = |world: &World| world.reactor.hub.metrics.handoff_looks_again_total;
        let before = looks(&world);
        world.publish_one("CHANNEL_CREATE", "c1", 0);
        world.turn();
        assert_eq!(looks(&world) - before, expected, "{clients} clients");
        world.turn();
        assert_eq!(looks(&world) - before, expected, "nothing came");
        world.end();
    }
}

#[test]
fn floods_do_not_keep_a_neighbour_unread() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(80, &[], &tokens);
    let noise = client_frame(0x8A, &[0; 125]).repeat(1000);
    let victim = world.clients.len() - 1;
    let mut asked = false;
    for turn in 0..60 {
        for client in &mut world.clients[..victim] {
            client.wire.borrow_mut().send(&noise);
        }
        if turn == 3 {
            world.clients[victim].ping();
            asked = true;
        }
        world.turn();
        if asked && world.clients[victim].asked.is_empty() {
            return;
        }
    }
    panic!("not answered in 57 turns");
}

#[test]
fn another_identity_does_not_keep_what_only_the_first_may_see() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(1, &["call.*.*"], &tokens);
    let client = &mut world.clients[0];
    client.switch(TOKENS[2], &Rights::default());
    client.ping();
    world.settle();
    assert_eq!(
        world.reactor.hub.subscriptions.index().counts(),
        IndexCounts::default()
    );
    world.source_works();
    assert!(
        world.wanted.is_empty(),
        "the broker is not asked for it any more"
    );
    world.end();
}

/// A binding of `callevt` that was answered for before, so that the ticket does not matter.
fn answered(key: &str) -> Asked {
    Asked {
        binding: AmqpBinding {
            exchange: "callevt".into(),
            key: key.into(),
        },
        ticket: Ticket::default(),
    }
}

#[test]
fn an_exchange_that_never_worked_is_nobodys_loss() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(2, &["call.CHANNEL_CREATE.*"], &tokens);
    let refused = answered("call.CHANNEL_ANSWER.*");
    world.clients[1].subscribe((0, "call.CHANNEL_ANSWER.*"));
    world.turn();
    world
        .outgoing
        .push_back(FromSource::Lost(vec![refused.clone()]));
    world.turn();
    world.outgoing.push_back(FromSource::Bound(vec![refused]));
    world.settle();
    assert!(
        world
            .clients
            .iter()
            .all(|client| client.outage_notices == 0)
    );

    let lost = answered("call.CHANNEL_CREATE.*");
    world
        .outgoing
        .push_back(FromSource::Lost(vec![lost.clone()]));
    world.outgoing.push_back(FromSource::Bound(vec![lost]));
    world.settle();
    assert!(
        world
            .clients
            .iter()
            .all(|client| client.outage_notices == 1)
    );
}

#[test]
fn a_binding_that_was_lost_is_told_to_those_who_need_it_and_to_nobody_else() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(2, &["call.CHANNEL_CREATE.*"], &tokens);
    world.clients[1].subscribe((0, "call.CHANNEL_ANSWER.*"));
    world.settle();
    let lost = answered("call.CHANNEL_ANSWER.*");
    world
        .outgoing
        .push_back(FromSource::Lost(vec![lost.clone()]));
    world.outgoing.push_back(FromSource::Bound(vec![lost]));
    world.settle();
    let notices = world.clients.iter().map(|client| client.outage_notices);
    assert_eq!(notices.collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn an_event_keeps_the_request_id_that_it_was_published_under_though_the_subscription_has_another_now()
 {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(5, &[], &tokens);
    let key = (0, "call.CHANNEL_CREATE.*");
    let limits = &mut world.reactor.hub.limits;
    (limits.outbox_bytes_max, limits.outboxes_bytes_max) = (1 << 20, 1 << 30);
    // Each with another kind of request id, and one with none.
    for client in &mut world.clients {
        client.subscribe(key);
    }
    world.settle();
    let before = world.tally.events;
    for client in &mut world.clients {
        client.wire.borrow_mut().room = 0;
    }
    (0..3).for_each(|_| world.publish_one("CHANNEL_CREATE", "c1", 0));
    (0..2).for_each(|_| world.turn());
    for client in &mut world.clients[..4] {
        client.unsubscribe(key);
        client.subscribe(key);
    }
    (0..2).for_each(|_| world.turn());
    (0..3).for_each(|_| world.publish_one("CHANNEL_CREATE", "c1", 0));
    (0..2).for_each(|_| world.turn());
    let hub = &world.reactor.hub;
    assert_eq!(hub.outboxes.blocked_sessions, 5);
    assert!(world.clients[4].request_ids[&key].len() == 1);
    let ids: Vec<_> = world
        .clients
        .iter()
        .map(|client| client.request_ids[&key].clone())
        .collect();
    // A byte at a time at first: each frame is cut everywhere.
    for _ in 0..400 {
        for client in &mut world.clients {
            client.wire.borrow_mut().make_room(1);
        }
        world.turn();
    }
    world.settle();
    world.check_debts();
    assert_eq!(world.tally.events - before, 5 * 6);
    for (client, ids) in world.clients[..4].iter().zip(ids) {
        assert_eq!(ids.len(), 2);
        assert_eq!(
            client.request_ids[&key],
            ids[1..],
            "the older one was on the first three"
        );
    }
    // What a session has of its own goes with it.
    for client in &mut world.clients {
        client.wire.borrow_mut().room = 0;
    }
    (0..3).for_each(|_| world.publish_one("CHANNEL_CREATE", "c1", 0));
    (0..2).for_each(|_| world.turn());
    world.end();
}

#[test]
fn who_speaks_during_a_fan_out_is_answered_before_the_fan_out_is_over() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(901, &[], &tokens);
    for client in &mut world.clients[..900] {
        client.subscribe((0, "call.*.*"));
    }
    world.settle();
    let before = world.tally.events;
    while world.tally.events == before {
        world.publish();
        world.turn();
    }
    world.clients[900].ping();
    for _ in 0..2 {
        world.turn();
    }
    let fanned_out = world.reactor.hub.metrics.frames_delivered_total;
    assert!(world.clients[900].asked.is_empty(), "no answer");
    let written = world.tally.events - before;
    assert!(
        written < fanned_out,
        "{written} of {fanned_out} were written"
    );
    world.end();
}

#[test]
fn a_source_whose_thread_ends_is_told_of_and_what_it_had_handed_over_is_delivered() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(2, &["call.CHANNEL_CREATE.*"], &tokens);
    let before = world.tally.events;
    world.publish_one("CHANNEL_CREATE", "c1", 0);
    world.hand_over();
    let (other, _loop) = handoff_bounded(LoopWaker::new(|| Ok(())), 1);
    drop(std::mem::replace(&mut world.source, other));
    for client in &mut world.clients {
        client.subscribe((0, "call.CHANNEL_ANSWER.*"));
        client.ping();
    }
    (0..4).for_each(|_| world.turn());
    assert_eq!(world.tally.events - before, 2);
    let hub = &world.reactor.hub;
    assert!(matches!(hub.readiness.source(), SourceState::Away { .. }));
    assert_eq!(hub.readiness.unready(), Some(HttpError::SourceDown));
    // Nobody will answer: an error in its time, and nothing is kept.
    world.pass(Duration::from_secs(11));
    assert_eq!(world.tally.unavailable, 2);
    assert_eq!(
        world
            .reactor
            .hub
            .subscriptions
            .index()
            .counts()
            .subscriptions,
        2
    );
    assert_eq!(world.reactor.hub.subscriptions.broker().waiters(), 0);
}

#[test]
fn under_the_policy_that_drops_nobody_who_lives_is_closed_and_the_loss_is_told_to_the_last_event() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(2, &["call.*.*"], &tokens);
    let limits = &mut world.reactor.hub.limits;
    limits.slow_consumer = SlowConsumerPolicy::Drop;
    (limits.queued_messages_max, limits.outbox_bytes_max) = (5, 2_000);
    limits.outboxes_bytes_max = usize::MAX;
    world.policy = SlowConsumerPolicy::Drop;
    world.clients[0].wire.borrow_mut().room = 0;
    // It takes nothing for a minute, in which it says something every second, and twice events are lost on the broker.
    for second in 0..60 {
        if second == 20 || second == 40 {
            world.overflow();
        }
        world.publish_one("CHANNEL_CREATE", "c1", 0);
        world.clients[0].ping();
        world.clients[0].websocket_ping(b"and so on".to_vec());
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.clients.len(), 2);
    let wire = world.clients[0].wire.clone();
    wire.borrow_mut().make_room(usize::MAX / 4);
    world.settle();
    world.check_debts();
    let client = &world.clients[0];
    let missed = client.missed + client.due.values().map(VecDeque::len).sum::<usize>() as u64;
    assert_eq!(client.announced, missed);
    assert_eq!(client.outage_notices, 1, "the latest");
    assert!(missed >= 55, "{missed}");
    world.end();
}

#[test]
fn subscribes_that_nobody_confirms_fail_together_and_pings_between_them_are_answered() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(1, &[], &tokens);
    for binding in BINDINGS {
        world.clients[0].subscribe((0, binding));
        world.clients[0].ping();
    }
    (0..6).for_each(|_| world.turn());
    assert_eq!(world.clients[0].asked.len(), BINDINGS.len());
    world.pass(Duration::from_secs(10));
    assert_eq!(world.tally.unavailable, BINDINGS.len() as u64);
    assert!(world.clients[0].asked.is_empty());
    world.end();
}
