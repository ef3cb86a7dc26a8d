//! Cases of the drain.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use blackhole::reactor::drain::DrainTimes;

use crate::client::Client;
use crate::scenes::{token_file, world_of_readers};
use crate::world::World;

/// Forty clients in a drain of ten seconds, ten of them with full sockets until three of them are over.
fn drained_world(max_outboxes_bytes: usize, tokens: &Path) -> (World, u64, u64) {
    let mut world = world_of_readers(40, &["call.*.*"], tokens);
    world.reactor.hub.limits.outbox_bytes_max = usize::MAX;
    world.reactor.hub.limits.queued_messages_max = usize::MAX;
    world.reactor.hub.limits.outboxes_bytes_max = usize::MAX;
    for client in &world.clients[..10] {
        client.wire.borrow_mut().room = 100;
    }
    let before = world.tally.events;
    (0..30).for_each(|_| world.publish());
    let due = |client: &Client| client.due.values().map(VecDeque::len).sum::<usize>();
    let owed = world.clients.iter().map(due).sum::<usize>();
    while !world.outgoing.is_empty() || world.reactor.patience(world.now()) == Duration::ZERO {
        world.turn();
    }
    assert_eq!(world.reactor.hub.outboxes.blocked_sessions, 10);
    let begun = world.clock;
    world.is_draining = true;
    let times = DrainTimes {
        going_away: Duration::ZERO,
        whole: Duration::from_secs(10),
    };
    world.reactor.announce_drain();
    world.reactor.begin_drain(times, world.now());
    while !world.reactor.is_drained(world.now()) {
        world.clock += Duration::from_millis(50);
        if world.clock - begun == Duration::from_millis(2500) {
            assert_eq!(
                world.reactor.hub.outboxes.blocked_sessions, 10,
                "all are closed"
            );
            world.reactor.hub.limits.outboxes_bytes_max = max_outboxes_bytes;
        }
        if world.clock - begun == Duration::from_secs(3) {
            for client in &world.clients {
                client.wire.borrow_mut().make_room(usize::MAX / 4);
            }
        }
        world.turn();
        for client in &world.clients {
            let mut wire = client.wire.borrow_mut();
            if wire.server_shut && !wire.client_closed {
                (wire.client_closed, wire.edge_readable) = (true, true);
            }
        }
    }
    assert!(world.reactor.connections().is_empty(), "nobody was cut");
    let delivered = world.tally.events - before;
    (world, owed as u64, delivered)
}

#[test]
fn a_drain_closes_everybody_behind_the_frames_that_waited_for_them() {
    let (_directory, tokens) = token_file();
    let (world, owed, delivered) = drained_world(usize::MAX, &tokens);
    assert!(owed > 40 && delivered == owed, "{delivered} of {owed} came");
    assert_eq!(world.reactor.hub.metrics.closes_drain_total, 40);
}

#[test]
fn what_waits_for_those_whom_a_drain_has_closed_stays_within_max_outboxes_bytes() {
    let (_directory, tokens) = token_file();
    let (world, owed, delivered) = drained_world(30_000, &tokens);
    assert!(delivered < owed, "nothing was over the bound");
    assert_eq!(world.reactor.hub.metrics.closes_drain_total, 40);
}
