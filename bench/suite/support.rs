//! What the tests have and the benches need too: a private broker, a publisher.
#![allow(dead_code, reason = "the tests use all of it")]
#![allow(
    unreachable_pub,
    reason = "what is shared is public among the tests, which are no library"
)]
#![allow(clippy::unwrap_used, reason = "what cannot be set up must fail")]

#[path = "../../tests/support/broker.rs"]
pub mod broker;
#[path = "../../tests/support/publisher.rs"]
pub mod publisher;
