//! Cases of the wall clock, which may step either way: months and the ends of tokens follow it, and nothing else does.

use std::time::Duration;

use blackhole::session::close::CloseReason;
use serde_json::json;

use crate::client::Client;
use crate::model::{ACCOUNTS, TOKENS};
use crate::scenes::{token_file, world_of_readers};
use crate::support::wire::UPGRADE_REQUEST;
use crate::world::{DAY, HOUR};

/// Asks for the documents of the first account whose database has the month in its name (PROTOCOL 6).
fn subscribe_to_faxes(client: &mut Client) {
    client.subscribe((0, "object.doc_created.fax"));
}

/// The AMQP binding key of that subscription in this month.
fn fax_key(month: &str) -> String {
    format!("doc_created.account%2Faa%2Faa%2Faaaaaaaaaaaaaaaaaaaaaaaaaaa1-{month}.fax.*")
}

#[test]
fn a_document_subscription_follows_the_month_a_minute_early_and_a_minute_late() {
    /// 2023-12-01T00:00:00Z on the world's clock, which starts at Unix second 1,700,000,000.
    const DECEMBER: Duration = Duration::from_secs(1_701_388_800 - 1_700_000_000);
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(1, &[], &tokens);
    subscribe_to_faxes(&mut world.clients[0]);
    world.settle();
    assert!(
        world.clients[0].asked.is_empty(),
        "the subscribe is answered"
    );

    let (november, december) = (fax_key("202311"), fax_key("202312"));
    let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
    for (moment, expected) in [
        (DECEMBER - minute - second, vec![&november]),
        (DECEMBER - minute, vec![&november, &december]),
        (DECEMBER, vec![&november, &december]),
        (DECEMBER + minute - second, vec![&november, &december]),
        (DECEMBER + minute, vec![&december]),
    ] {
        world.clock = moment;
        world.settle();
        let mut keys: Vec<&str> = world.in_force.iter().map(|binding| &*binding.key).collect();
        keys.sort_unstable();
        assert_eq!(keys, expected, "{moment:?}");
    }
    world.end();
}

/// What clock steps are tried: an hour and more than a month, either way, there and back.
const STEPPED: [i64; 8] = [
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
            world.reactor.hub.index.counts().subscriptions,
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

#[test]
fn months_follow_a_wall_clock_that_steps_either_way_and_no_binding_is_lost_or_left() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(3, &["call.*.*"], &tokens);
    world.clients[..2].iter_mut().for_each(subscribe_to_faxes);
    world.settle();
    let bindings = world.in_force.len();
    for (stepped, month) in [
        (HOUR, "202311"),
        (30 * DAY, "202312"),
        (0, "202311"),
        (-30 * DAY, "202310"),
        (400 * DAY, "202412"),
        (-400 * DAY, "202210"),
        (0, "202311"),
    ] {
        world.stepped = stepped;
        world.settle();
        let keys: Vec<&str> = world.in_force.iter().map(|binding| &*binding.key).collect();
        assert_eq!(keys.len(), bindings, "{stepped}: {keys:?}");
        assert!(keys.contains(&&*fax_key(month)), "{stepped}: {keys:?}");
    }
    // Steps that come faster than the broker answers.
    for stepped in STEPPED {
        world.stepped = stepped;
        world.turn();
    }
    world.settle();
    assert!(
        world
            .in_force
            .iter()
            .any(|binding| *binding.key == *fax_key("202311"))
    );
    world.end();
}

#[test]
fn a_subscribe_that_waits_while_the_month_changes_succeeds_when_the_new_month_is_in_force() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(1, &[], &tokens);
    subscribe_to_faxes(&mut world.clients[0]);
    world.turn();
    world.turn();
    assert_eq!(world.clients[0].asked.len(), 1, "it waits");
    world.stepped = 30 * DAY;
    world.turn();
    world.source_works();
    world.turn();
    world.turn();
    assert_eq!(
        world.clients[0].asked.len(),
        1,
        "what is in force now is the month before's"
    );
    world.settle();
    assert!(world.clients[0].asked.is_empty());
    let keys: Vec<&str> = world.in_force.iter().map(|binding| &*binding.key).collect();
    assert_eq!(keys, [fax_key("202312")]);
    world.end();
}
