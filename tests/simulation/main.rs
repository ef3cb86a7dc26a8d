//! The whole reactor on scripted sockets and a virtual clock, under many seeds. No socket, no thread, no sleep: a run
//! depends on its seed alone.
//!
//! How it works:
//!
//! 1. A seed makes a [`world::World`]: a real [`blackhole::reactor::Reactor`] with limits drawn at random, whose sockets
//!    are byte queues ([`support::scripted`]) and whose clock the world sets.
//! 2. A *step* does one thing to it: a client connects, says something, floods, reads less, leaves; the source confirms,
//!    publishes, goes, comes back; time passes, or the wall clock is stepped. Then the loop turns once or twice. A turn
//!    tells the loop of sockets as an edge-triggered poll does, and now and then of one without cause.
//! 3. After every turn the *judge* checks the loop's invariants, and reads what each client was sent: order,
//!    completeness, isolation, replies, notices, and whether a close had a cause.
//! 4. After the last step the world *settles*: everybody reads, the source is there, the loop turns until nothing moves.
//!    Then every client must have got what it was owed.
//! 5. At the *end* all leave, and every list, count and binding must be back at nothing.
//!
//! A failure prints its seed; `BLACKHOLE_SEED=n cargo test --test simulation` replays that one. A seed that once failed
//! becomes a case with a name.
//!
//! | module | owns |
//! |---|---|
//! | `model` | accounts, tokens, bindings, what a client expects |
//! | `world` | the steps, the clock, the turn |
//! | `source` | the source's end of the hand-off |
//! | `client` | what a client sends and knows |
//! | `judge` | the loop's invariants, what is owed, counters and gauges |
//! | `stream` | what a client reads |
//! | `ends` | how sessions end |
//! | `rights` | the token file as it changes: who may see what, and when |
//! | `hostile` | hostile clients beside honest ones |
//! | `scenes` | worlds that a case begins with |
//! | `resume` | several processes on one broker, and clients that come back with cursors |
//! | `regressions`, `drain`, `liveness`, `months`, `tokens`, `wall_clock` | cases with names |

mod client;
mod drain;
mod ends;
mod hostile;
mod judge;
mod liveness;
mod model;
mod months;
mod regressions;
mod resume;
mod rights;
mod scenes;
mod source;
mod stream;
mod tokens;
mod wall_clock;
mod world;

use scenes::token_file;
use support::scripted::under_seeds;
use world::World;

const STEPS: usize = 500;
pub(crate) const SEEDS: u64 = 256;

#[test]
fn the_loop_keeps_its_invariants_and_its_promises_under_every_seed() {
    let counts = under_seeds(SEEDS, |seed| {
        let (_directory, tokens) = token_file();
        let history_bytes = if seed % 2 == 0 { 64 << 10 } else { 0 };
        let mut world = World::with_history(history_bytes, seed, &tokens);
        world.dawdles = world.rng.bool();
        world.source_comes_or_goes();
        (0..4).for_each(|_| world.connect());
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        world.check_debts();
        let announced: u64 = world.clients.iter().map(|client| client.announced).sum();
        let outages: u64 = world
            .clients
            .iter()
            .map(|client| client.outage_notices)
            .sum();
        world.end();
        [world.next_event, world.tally.events, announced, outages]
    });
    let [events, delivered, announced, outages] =
        [0, 1, 2, 3].map(|kind| counts.iter().map(|one| one[kind]).sum::<u64>());
    println!(
        "{events} events, {delivered} frames delivered, {announced} announced as dropped, {outages} outage notices"
    );
    if counts.len() > 1 {
        assert!(
            events > 1000 && delivered > 1000 && announced > 0 && outages > 0,
            "the simulation exercised too little"
        );
    }
}
