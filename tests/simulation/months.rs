//! Document subscriptions and the months that their databases are named after (PROTOCOL 6): through roll-overs, waits and
//! clock steps each has the AMQP bindings of the months that it follows, and no others.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::client::Client;
use crate::model::{ACCOUNTS, TOKENS};
use crate::scenes::{readers_in, token_file, world_of_readers};
use crate::wall_clock::STEPPED;
use crate::world::{DAY, HOUR, World};
use support::scripted::under_seeds;
use support::wire::client_text;

/// Asks for the documents of the first account whose database has the month in its name (PROTOCOL 6).
fn subscribe_to_faxes(client: &mut Client) {
    client.subscribe((0, "object.doc_created.fax"));
}

/// The AMQP binding key of that subscription in this month.
fn fax_key(month: &str) -> String {
    format!("doc_created.account%2Faa%2Faa%2Faaaaaaaaaaaaaaaaaaaaaaaaaaa1-{month}.fax.*")
}

/// 2023-12-01T00:00:00Z on the world's clock, which starts at Unix second 1,700,000,000.
const DECEMBER: Duration = Duration::from_secs(1_701_388_800 - 1_700_000_000);
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_document_subscription_follows_the_month_half_an_hour_early_and_an_hour_late() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(2, &[], &tokens);
    subscribe_to_faxes(&mut world.clients[0]);
    world.settle();
    assert!(
        world.clients[0].asked.is_empty(),
        "the subscribe is answered"
    );

    let (november, december) = (fax_key("202311"), fax_key("202312"));
    let second = Duration::from_secs(1);
    for (moment, expected) in [
        (DECEMBER - 60 * MINUTE - second, vec![&november]),
        (DECEMBER - 60 * MINUTE, vec![&november]),
        (DECEMBER - 50 * MINUTE, vec![&november, &december]),
        (DECEMBER, vec![&november, &december]),
        (DECEMBER + 60 * MINUTE - second, vec![&november, &december]),
        (DECEMBER + 60 * MINUTE, vec![&november, &december]),
        (DECEMBER + 70 * MINUTE, vec![&december]),
    ] {
        world.clock = moment;
        world.settle();
        let mut keys: Vec<&str> = world.in_force.iter().map(|binding| &*binding.key).collect();
        keys.sort_unstable();
        assert_eq!(keys, expected, "{moment:?}");
    }
    world.end();
}

#[test]
fn who_subscribes_in_the_overlap_has_both_months_at_once_and_so_have_those_of_its_group() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(3, &[], &tokens);
    let subscribe = json!({"action": "subscribe", "auth_token": TOKENS[0], "data":
        {"account_id": ACCOUNTS[0], "binding": "object.doc_created.fax"}});
    let send = |world: &mut World, client: usize, command: &Value| {
        let text = client_text(&command.to_string());
        world.clients[client].wire.borrow_mut().send(&text);
        for _ in 0..8 {
            world.turn_without_judge();
            world.source_works();
        }
    };
    send(&mut world, 0, &subscribe);
    let ping = json!({"action": "ping", "auth_token": TOKENS[0]});
    send(&mut world, 1, &ping);
    world.clock = DECEMBER - 60 * MINUTE;
    world.turn_without_judge();
    send(&mut world, 1, &subscribe);
    let groups = world.reactor.hub.subscriptions.index().counts().groups;
    assert_eq!((groups, world.in_force.len()), (1, 2));
    for client in [0, 1] {
        send(&mut world, client, &json!({"action": "unsubscribe"}));
    }
    assert_eq!(world.in_force.len(), 0, "each has released what it held");
}

/// Checks that the AMQP bindings wanted are those of the months that each subscription follows, and, while a
/// subscribe waits, more.
fn check_months(world: &World) {
    let hub = &world.reactor.hub;
    let mut expected = HashSet::new();
    for client in &world.clients {
        let Some(connection) = world.reactor.connections().get(client.id) else {
            continue;
        };
        let list = connection.session.subscriptions();
        for subscription in hub.subscriptions.index().subscriptions(list) {
            let mut bindings = Vec::new();
            let months = subscription.held(hub.subscriptions.months());
            hub.subscriptions
                .families()
                .amqp_bindings(&subscription, months, &mut bindings);
            expected.extend(bindings);
        }
    }
    let wanted = hub.subscriptions.broker().counts().wanted;
    assert!(wanted >= expected.len());
    if hub.subscriptions.broker().waiters() == 0 {
        assert_eq!(wanted, expected.len());
        let is_told = |binding| world.wanted.contains_key(binding);
        assert!(world.source.commands.is_empty() && expected.iter().all(is_told));
    }
}

/// Three hours around the end of a month, in which sessions subscribe to documents and unsubscribe, the clock is set,
/// the source comes and goes, and binds wait. Returns how many groups roll-overs brought on.
fn documents_around_the_months_end(seed: u64, tokens: &Path) -> u64 {
    const DOCUMENTS: [&str; 5] = [
        "object.doc_created.fax",
        "object.*.*",
        "doc_edited.*.mailbox_message.1",
        "fax.object.*",
        "call.*.*",
    ];
    let mut rng = Rng::with_seed(seed);
    let mut world = readers_in(World::new(seed, tokens), 6, &[]);
    let say = |world: &mut World, client: usize, command: Value| {
        let text = client_text(&command.to_string());
        world.clients[client].wire.borrow_mut().send(&text);
    };
    let token = TOKENS[0];
    for client in 0..world.clients.len() {
        say(
            &mut world,
            client,
            json!({"action": "ping", "auth_token": token}),
        );
    }
    world.turn_without_judge();
    world.clock = DECEMBER - 90 * MINUTE;
    for _ in 0..400 {
        let client = rng.usize(..world.clients.len());
        let data = json!({"account_id": ACCOUNTS[0], "binding": DOCUMENTS[rng.usize(..5)]});
        match rng.u32(..20) {
            0..9 => {
                let mut command = json!({"action": "subscribe", "data": data});
                if rng.bool() {
                    command["request_id"] = json!(rng.u32(..2).to_string());
                }
                say(&mut world, client, command);
            }
            9..13 => say(
                &mut world,
                client,
                json!({"action": "unsubscribe", "data": data}),
            ),
            13 => say(&mut world, client, json!({"action": "unsubscribe"})),
            14..18 => world.clock += Duration::from_secs(rng.u64(1..240)),
            18 => world.stepped = [0, 0, 2 * HOUR, -HOUR, 40 * DAY, -40 * DAY][rng.usize(..6)],
            _ => world.source_comes_or_goes(),
        }
        for _ in 0..rng.u32(..4) {
            world.turn_without_judge();
        }
        if rng.u32(..3) > 0 {
            world.source_works();
            // What the loop kept while the source did not listen comes with its next turn.
            world.turn_without_judge();
            world.source_works();
            check_months(&world);
        }
    }
    if !world.is_up {
        world.source_comes_or_goes();
    }
    for client in 0..world.clients.len() {
        say(&mut world, client, json!({"action": "unsubscribe"}));
    }
    for _ in 0..20 {
        world.turn_without_judge();
        world.source_works();
        world.clock += 11 * MINUTE;
    }
    check_months(&world);
    assert!(world.wanted.is_empty(), "what nobody needs is unbound");
    world.reactor.hub.metrics.months_groups_total
}

#[test]
fn each_subscription_has_the_bindings_of_its_months_through_roll_overs_under_every_seed() {
    let (_directory, tokens) = token_file();
    let moved = under_seeds(64, |seed| documents_around_the_months_end(seed, &tokens));
    assert!(moved.iter().sum::<u64>() > 1000, "{moved:?}");
}

/// When each AMQP binding of December was asked for, by so many document subscriptions, in a world of this seed.
fn december_binds(seed: u64, subscriptions: u32) -> Vec<Duration> {
    let (_directory, tokens) = token_file();
    let mut world = readers_in(World::new(seed, &tokens), 1, &[]);
    for number in 0..subscriptions {
        let command = json!({"action": "subscribe", "auth_token": TOKENS[0], "data":
            {"account_id": ACCOUNTS[0], "binding": format!("doc_created.*.fax.{number}")}});
        let text = client_text(&command.to_string());
        world.clients[0].wire.borrow_mut().send(&text);
        // Fewer at once than may wait.
        if number % 100 == 99 {
            for _ in 0..3 {
                world.turn_without_judge();
                world.source_works();
            }
        }
    }
    let all = usize::try_from(subscriptions).expect("few");
    for _ in 0..1000 {
        world.turn_without_judge();
        world.source_works();
    }
    assert_eq!(
        world
            .reactor
            .hub
            .subscriptions
            .index()
            .counts()
            .subscriptions,
        all
    );
    let mut binds = Vec::new();
    world.clock = DECEMBER - 61 * MINUTE;
    while world.clock < DECEMBER {
        let before = world.reactor.hub.subscriptions.broker().counts().wanted;
        let now = world.now();
        world.reactor.turn(&[], now);
        let bound = world.reactor.hub.subscriptions.broker().counts().wanted - before;
        let of_a_turn = blackhole::limits::ROLL_OVER_GROUPS_PER_TURN_MAX;
        assert!(bound <= of_a_turn, "{bound} in one turn");
        binds.extend(std::iter::repeat_n(world.clock, bound));
        world.source_works();
        let patience = world.reactor.patience(world.now());
        world.clock += patience.clamp(Duration::from_millis(1), Duration::from_secs(30));
    }
    assert_eq!(binds.len(), all, "all before the month begins");
    binds
}

#[test]
fn the_binds_of_a_month_are_spread_over_half_an_hour_and_begin_at_another_moment_in_every_process()
{
    const SUBSCRIPTIONS: u32 = 1000;
    let mut beginnings = HashSet::new();
    for seed in 0..3 {
        let binds = december_binds(seed, SUBSCRIPTIONS);
        let (first, last) = (binds[0], binds[binds.len() - 1]);
        beginnings.insert(first);
        assert!(first >= DECEMBER - 60 * MINUTE, "{first:?}");
        assert!(last <= DECEMBER - 29 * MINUTE, "{last:?}");
        for minute in 0..60 {
            let from = DECEMBER - (60 - minute) * MINUTE;
            let within = binds
                .iter()
                .filter(|at| (from..from + MINUTE).contains(*at));
            // A twentieth each minute, and a step more where one falls into it.
            let count = within.count();
            assert!(count <= 1000 / 20 + 64, "{count} in minute {minute}");
        }
    }
    assert!(beginnings.len() > 1, "{beginnings:?}");
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
