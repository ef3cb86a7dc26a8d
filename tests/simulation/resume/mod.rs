//! Several processes on one virtual broker, and clients that lose their connections and resume with cursors (PROTOCOL 10).
//!
//! How it works:
//!
//! 1. A seed makes a [`world::World`]: three real reactors ("processes"), each with its own history, hand-off, source and
//!    clock, which is some 100 ms ahead of or behind the others'; a [`broker`] that numbers what is published and routes it
//!    by the bindings that each process was told to put in force, with delays that keep the order of each publisher and no
//!    other; and some clients.
//! 2. A *step* does one thing: something is published, a client is cut (and what it has not read is gone), comes back to a
//!    random process and resumes with its last cursor or another's, reads less, says something; a process dies, drains,
//!    loses its broker for a time; rights move, families stop, months change.
//! 3. What a client reads is judged at once: it is the account's, of a subscription that it has, in the order of its
//!    publisher, and no double but among replayed events; none at all after a resume in the same process.
//! 4. After the last step the world *settles*. Then every client must have got every event that it might see from its first
//!    success to the end, or have been told of a gap that covers the hole: [`client::Sub`] keeps the books. A cut at any
//!    frame is a cut like any other, so a cursor that says more than its session was sent shows as a hole.
//! 5. At the end all leave, and nothing is left in any process.
//!
//! A failure prints its seed and what the client went through; `BLACKHOLE_SEED=n cargo test --test simulation resume`
//! replays that one.
//!
//! | module | owns |
//! |---|---|
//! | `model` | what can be subscribed and published, and what matches |
//! | `broker` | what was published, and a process's queue |
//! | `process` | a reactor, its source and its clock |
//! | `client` | a client, its books, and the judgement of what it reads |
//! | `world` | the steps |

mod broker;
mod client;
mod model;
mod process;
mod world;

use support::scripted::under_these_seeds;
use world::{Tally, World};

use crate::SEEDS;

const STEPS: usize = 400;

/// What became of this world.
fn run(seed: u64) -> Tally {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.settle();
    world.check_debts();
    world.end()
}

/// The worlds of the seeds that leave this remainder, on a thread of their own: two tests use two cores.
fn run_half(remainder: u64) {
    let seeds = (0..SEEDS).filter(|seed| seed % 2 == remainder);
    let tallies = under_these_seeds(seeds, run);
    let is_whole = tallies.len() > 1;
    let sum = tallies.into_iter().fold(Tally::default(), Tally::plus);
    println!("{sum:?}");
    if is_whole {
        sum.check_that_enough_was_tried();
    }
}

#[test]
fn whoever_resumes_gets_what_was_missed_or_is_told_under_every_even_seed() {
    run_half(0);
}

#[test]
fn whoever_resumes_gets_what_was_missed_or_is_told_under_every_odd_seed() {
    run_half(1);
}
