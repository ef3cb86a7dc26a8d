//! Hostile clients beside honest ones (DESIGN, "Nobody's load is another's wait").
//!
//! 1. Four honest clients read everything, and say little: a ping now and then, a subscribe, an unsubscribe.
//! 2. Beside them a dozen others do what their part is ([`Part`]), as hard as they can, and come again when they are
//!    closed.
//! 3. Events are published all the while. Each must be with every honest client a few turns later, and each command
//!    answered after as many turns as there are hostile ones and a few: turns of the loop, for its clock hardly moves.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use blackhole::session::id::ConnId;
use serde_json::json;

use crate::client::Deed;
use crate::model::{ACCOUNTS, Asked, TOKENS};
use crate::scenes::{readers_in, token_file};
use crate::world::World;
use support::scripted::{Wire, under_seeds};
use support::wire::{UPGRADE_REQUEST, client_frame};

const HONEST: usize = 4;
const HOSTILE: usize = 12;
/// Turns within which an event is with all honest clients.
const EVENT_TURNS_MAX: u64 = 6;
/// Turns within which a command of theirs is answered: each flooder may cost one
/// ([`blackhole::limits::READ_BYTES_PER_TURN_MAX`] and its like), as those who wait to be read are read in their order.
const ANSWER_TURNS_MAX: u64 = HOSTILE as u64 + 6;
const TURNS: u64 = 60;
const SEEDS: u64 = 6;

/// What a hostile client does.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// Commands `ping` in a row, hundreds of them.
    Pings,
    /// `{}` in a row, without a token.
    Braces,
    /// Pings of the websocket in a row.
    WebsocketPings,
    /// Subscribes to as many bindings as it may, and leaves.
    Binds,
    /// Begins a long message, and leaves it at that.
    Begins,
    /// Subscribes to everything, and reads nothing.
    Mute,
    /// Subscribes to everything, reads a little, and pings.
    Sips,
}

const PARTS: [Part; 7] = [
    Part::Pings,
    Part::Braces,
    Part::WebsocketPings,
    Part::Binds,
    Part::Begins,
    Part::Mute,
    Part::Sips,
];

/// A world of honest clients, and those who come to it.
struct Siege<'a> {
    world: World,
    parts: &'a [Part],
    hostile: HashMap<ConnId, Part>,
    turn: u64,
    /// The turns in which events were published, from the first.
    published: Vec<u64>,
    first_event: u64,
    /// The turn since which each honest client waits for a reply.
    asked: [Option<u64>; HONEST],
}

impl<'a> Siege<'a> {
    fn new(seed: u64, parts: &'a [Part], tokens: &Path) -> Self {
        let mut world = World::with_handoff(1000, seed, tokens);
        let rate = world.reactor.hub.limits.rate;
        let subscriptions_max = world.reactor.hub.limits.subscriptions_max;
        world = readers_in(world, HONEST, &["call.CHANNEL_CREATE.*", "call.*.c2"]);
        let limits = &mut world.reactor.hub.limits;
        // A limit that an operator took away is one that the loop must live without.
        limits.rate = rate.filter(|_| seed.is_multiple_of(2));
        limits.subscriptions_max = subscriptions_max;
        let first_event = world.next_event;
        Self {
            world,
            parts,
            hostile: HashMap::new(),
            turn: 0,
            published: Vec::new(),
            first_event,
            asked: [None; HONEST],
        }
    }

    fn run(&mut self) {
        for turn in 0..TURNS {
            self.turn = turn;
            self.world.clock += Duration::from_millis(1);
            self.come();
            self.act();
            self.live();
            self.world.source_works();
            self.world.turn();
            self.judge();
        }
        for client in &mut self.world.clients[HONEST..] {
            client.hang_up(true);
        }
        self.world.settle();
        self.world.check_debts();
        self.world.end();
    }

    /// Those that are gone come again.
    fn come(&mut self) {
        while self.world.clients.len() < HONEST + HOSTILE {
            let wire = Wire::new(usize::MAX / 2, usize::MAX);
            wire.borrow_mut().send(UPGRADE_REQUEST.as_bytes());
            // A few addresses, other than that of the honest.
            let ip = IpAddr::from(Ipv4Addr::new(127, 0, 1, self.world.rng.u8(0..3)));
            let part = self.parts[self.world.rng.usize(0..self.parts.len())];
            let client = self.world.join(wire, ip, TOKENS[1]);
            let id = client.expect("there is room").id;
            self.hostile.insert(id, part);
        }
    }

    /// Each hostile client does its part.
    fn act(&mut self) {
        let awake = self.world.awake;
        let world = &mut self.world;
        for client in &mut world.clients[HONEST..] {
            if !client.is_talking() {
                continue;
            }
            match self.hostile[&client.id] {
                Part::Pings if client.asked.len() < 300 => {
                    (0..800).for_each(|_| client.ping());
                }
                Part::Braces if client.asked.len() < 300 => {
                    let braces = client_frame(0x81, b"{}").repeat(800);
                    (0..800).for_each(|_| client.expect_reply("", Asked::Anonymous));
                    client.wire.borrow_mut().send(&braces);
                }
                Part::WebsocketPings if client.pings.len() < 300 => {
                    (0..800_u32).for_each(|n| client.websocket_ping(n.to_be_bytes().to_vec()));
                }
                Part::Binds => {
                    let id = client.id;
                    let bindings: Vec<String> = (0..16)
                        .map(|n| format!("call.*.{}-{}-{n}", id.slot, id.generation))
                        .collect();
                    client.command(
                        json!({"action": "subscribe", "data": {"account_id": ACCOUNTS[1], "bindings": bindings}}),
                        Asked::Many,
                    );
                    if world.rng.bool() {
                        client.hang_up(world.rng.bool());
                    }
                }
                Part::Begins => {
                    let begun = client_frame(0x81, &[b' '; 60_000]);
                    let length = world.rng.usize(10..begun.len());
                    client.do_deed(Deed::Begun(awake), &begun[..length]);
                }
                Part::Mute | Part::Sips if client.ever.is_empty() => {
                    client.subscribe((1, "call.*.*"));
                    client.subscribe((2, "call.*.c2"));
                    let mut wire = client.wire.borrow_mut();
                    wire.room = world.rng.usize(0..2_000);
                }
                Part::Sips => {
                    client.ping();
                    client.wire.borrow_mut().make_room(world.rng.usize(1..500));
                }
                Part::Pings | Part::Braces | Part::WebsocketPings | Part::Mute => {}
            }
        }
    }

    /// Events come, and the honest say something now and then.
    fn live(&mut self) {
        let world = &mut self.world;
        for account in 0..2 {
            let before = world.next_event;
            world.publish_one("CHANNEL_CREATE", "c2", account);
            let turns = (before..world.next_event).map(|_| self.turn);
            self.published.extend(turns);
        }
        for (client, asked) in world.clients.iter_mut().zip(&mut self.asked) {
            // Within the rate limit.
            if asked.is_some() || self.turn % 12 != u64::from(client.id.slot) {
                continue;
            }
            *asked = Some(self.turn);
            let key = (0, "call.CHANNEL_ANSWER.*");
            if self.turn % 24 < 12 {
                client.ping();
            } else if client.live.contains(&key) {
                client.unsubscribe(key);
            } else {
                client.subscribe(key);
            }
        }
    }

    fn judge(&mut self) {
        for (client, asked) in self.world.clients.iter().zip(&mut self.asked) {
            if client.asked.is_empty() {
                *asked = None;
            }
            let waits = asked.map_or(0, |asked| self.turn - asked);
            assert!(
                waits <= ANSWER_TURNS_MAX,
                "turn {}: no answer in {waits} turns to {:?}",
                self.turn,
                client.asked
            );
            let oldest = client.due.values().filter_map(|due| due.front()).min();
            let published = oldest.map(|number| {
                let index = (number - self.first_event - 1) as usize;
                self.published[index]
            });
            let waits = published.map_or(0, |published| self.turn - published);
            assert!(
                waits <= EVENT_TURNS_MAX,
                "turn {}: event {oldest:?} is not with {:?} after {waits} turns",
                self.turn,
                client.id
            );
            assert_eq!(client.missed, 0);
        }
    }
}

fn besieged(parts: &[Part]) {
    let (_directory, tokens) = token_file();
    under_seeds(SEEDS, |seed| Siege::new(seed, parts, &tokens).run());
}

#[test]
fn commands_in_a_row_hold_up_no_event_and_no_reply_of_others() {
    besieged(&[Part::Pings]);
}

#[test]
fn commands_of_those_who_are_not_authenticated_hold_up_nobody() {
    besieged(&[Part::Braces]);
}

#[test]
fn pings_of_the_websocket_hold_up_nobody() {
    besieged(&[Part::WebsocketPings]);
}

#[test]
fn those_who_subscribe_to_much_and_leave_hold_up_nobody() {
    besieged(&[Part::Binds]);
}

#[test]
fn those_who_do_not_read_hold_up_nobody() {
    besieged(&[Part::Mute, Part::Sips]);
}

#[test]
fn whatever_the_hostile_do_the_honest_get_their_events_and_answers_in_a_few_turns() {
    besieged(&PARTS);
}

#[test]
fn unfinished_handshakes_of_a_few_addresses_take_nobody_elses_place() {
    let (_directory, tokens) = token_file();
    under_seeds(SEEDS, |seed| {
        let mut world = World::with_places([40, 12], 100, seed, &tokens);
        world.source_comes_or_goes();
        let cut = UPGRADE_REQUEST.len() / 2;
        for turn in 0..100_u8 {
            for _ in 0..8 {
                let wire = Wire::new(usize::MAX / 2, usize::MAX);
                wire.borrow_mut().send(&UPGRADE_REQUEST.as_bytes()[..cut]);
                let ip = Ipv4Addr::new(127, 0, 1, world.rng.u8(0..4));
                world.join(wire, ip.into(), TOKENS[1]);
            }
            let wire = Wire::new(usize::MAX / 2, usize::MAX);
            wire.borrow_mut().send(UPGRADE_REQUEST.as_bytes());
            let ip = Ipv4Addr::new(127, 0, 2, turn);
            let honest = world.join(wire, ip.into(), TOKENS[0]);
            let id = honest.expect("there is a place").id;
            (0..2).for_each(|_| world.turn());
            let honest = world.clients.iter_mut().find(|client| client.id == id);
            let honest = honest.expect("it is there");
            assert!(honest.upgraded, "turn {turn}");
            honest.hang_up(false);
            world.clock += Duration::from_millis(1);
        }
        world.end();
    });
}
