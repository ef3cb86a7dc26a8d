//! What the tests of several binaries share.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(
    unreachable_pub,
    reason = "what is shared is public among the tests, which are no library"
)]
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

pub mod broker;
pub mod client;
pub mod events;
pub mod mute_broker;
pub mod numbered;
pub mod publisher;
pub mod scripted;
pub mod server;
pub mod tcp_proxy;
pub mod wire;
