//! Cases of the wall clock, which may step either way: the ends of tokens follow it, as months do
//! (`months`), and nothing else does.

use std::time::Duration;

use blackhole::session::close::CloseReason;
use serde_json::json;

use crate::model::{ACCOUNTS, TOKENS};
use crate::scenes::{token_file, world_of_readers};
use crate::world::{DAY, HOUR};
use support::wire::UPGRADE_REQUEST;

/// What clock steps are tried: an hour and more than a month, either way, there and back.
pub(crate) const STEPPED: [i64; 8] = [
    HOUR,
    -HOUR,
    40 * DAY,
    -40 * DAY,
    0,
    -400 * DAY,
    400 * DAY,
    0,
];

#[test]
fn a_step_of_the_wall_clock_ends_no_wait_and_no_session() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(2, &["call.CHANNEL_CREATE.*"], &tokens);
    // One that has not finished its handshake, one that has not authenticated, one whose subscribe waits.
    world.connect();
    let wire = world.clients[2].wire.clone();
    wire.borrow_mut().to_server.truncate(10);
    world.connect();
    let wire = world.clients[3].wire.clone();
    wire.borrow_mut().to_server.clear();
    wire.borrow_mut().grain = usize::MAX;
    wire.borrow_mut().send(UPGRADE_REQUEST.as_bytes());
    world.clients[1].subscribe((0, "call.*.c2"));
    for stepped in STEPPED {
        world.stepped = stepped;
        world.clock += Duration::from_millis(500);
        world.turn();
        world.clients[0].ping();
        world.turn();
        world.turn();
        assert!(world.clients[0].asked.is_empty(), "{stepped}: no answer");
        assert_eq!(world.clients.len(), 4, "{stepped}: somebody was closed");
        assert_eq!(world.clients[1].asked.len(), 1, "{stepped}: the wait ended");
    }
    world.settle();
    assert!(world.clients[1].live.contains(&(0, "call.*.c2")));
    let before = world.tally.events;
    (0..50).for_each(|_| world.publish());
    world.settle();
    world.check_debts();
    assert!(world.tally.events > before);
    assert!(
        world
            .clients
            .iter()
            .all(|client| client.outage_notices == 0)
    );
    world.end();
}

#[test]
fn tokens_expire_by_the_wall_clock_whichever_way_it_steps() {
    let (_directory, tokens) = token_file();
    let expires = 1_700_000_000 + 2 * HOUR;
    let file = json!({TOKENS[0]: {"account_id": ACCOUNTS[0], "expires": expires}});
    std::fs::write(&tokens, file.to_string()).expect("a token file");
    let mut world = world_of_readers(3, &["call.*.*"], &tokens);
    for stepped in [HOUR, -40 * DAY, 2 * HOUR - 10, 0] {
        world.stepped = stepped;
        world.clock += Duration::from_secs(1);
        world.settle();
        assert_eq!(
            world
                .reactor
                .hub
                .subscriptions
                .index()
                .counts()
                .subscriptions,
            3,
            "{stepped}"
        );
    }
    world.stepped = 2 * HOUR;
    for client in &mut world.clients {
        client.give_up(|_| true);
        client.expects.push(CloseReason::Expired);
    }
    world.clock += Duration::from_secs(1);
    world.settle();
    assert!(
        world
            .clients
            .iter()
            .all(|client| client.closed_with == Some(4401)),
        "{:?}",
        world.clients
    );
    world.end();
}
