//! What one client, one address, one account or one broker does to everybody else (DESIGN, Nobody's load is another's
//! wait): the real binary over real sockets, the attack, and honest clients beside it.
//!
//! | module | the attack |
//! |---|---|
//! | `binders` | sessions that bind all they can and leave, so that the broker has no time for others |
//! | `flooders` | commands without pause, so that the loop has no time for events |
//! | `places` | connections that take the places of others |
//! | `partial_messages` | messages begun and never finished, for the memory that they take |
//! | `bodies` | events whose work grows with the square of their bytes |
//! | `lists` | commands whose work grows with the square of what is sent |
//! | `lookers` | lookers (`GET /trace`) that read nothing, under a flood of events |
//! | `vain_subscribes` | subscribes that cannot succeed, before those that can |
//! | `mute_broker` | brokers that beat their heart and answer nothing |
//! | `handshakes` | TLS handshakes begun without pause and never finished |
//! | `admin_askers` | askers of the admin address that list all sessions again and again |
//!
//! An honest client is judged by the same client in the same test while nobody attacks, or by the same work done in
//! good faith: by ratios ([`judge`]), and by no time but deadlines that say what never happens. One attack runs at a
//! time. `cargo test --test attacks -- --nocapture` shows the figures, and those of another build with
//! `BLACKHOLE_SERVER=PATH` before it.
#![allow(
    clippy::unwrap_used,
    reason = "a test whose peer answers otherwise must fail"
)]

mod admin_askers;
mod binders;
mod bodies;
mod flood;
mod flooders;
mod handshakes;
mod judge;
mod lists;
mod lookers;
mod mute_broker;
mod partial_messages;
mod places;
mod vain_subscribes;
