//! Blackhole: platform events from RabbitMQ, pushed to websocket clients.
//!
//! ```text
//! client bytes  -> one read buffer of the loop -> protocol::{handshake, codec} -> protocol::command -> session
//!               -> auth, routing::families -> routing::index
//! RabbitMQ      -> amqp thread: delivery -> event -> handoff (bounded) + waker -> loop
//! event         -> routing::index -> each matching group: one frame -> outbox of each subscriber -> flush list
//! end of turn   -> every session on the flush list: one vectored write of all its frames
//! ```
//!
//! | folder | kind | what it owns |
//! |---|---|---|
//! | [`protocol`] | pure | bytes and their meaning: handshake, frames, commands, replies, frames of events |
//! | [`event`] | pure | what was published, decoded once; the styles of its frames |
//! | [`routing`] | pure | who wants this routing key: binding families, the subscription index, AMQP binding counts |
//! | [`session`] | pure | one client's life: phases, outbox, rate limit, close reasons |
//! | [`auth`] | pure but for reading its file | who may do what |
//! | [`reactor`] | shell | the one thread that polls; the only place that touches client sockets |
//! | [`amqp`] | shell | the other thread; the only place that names the AMQP client |
//! | [`source`] | shell | the embedded event sources, for trying and loading without a broker |
//! | [`handoff`] | shared | all that the two threads share: two bounded channels towards the loop, a list of commands back, a waker |
//! | [`config`], [`logging`], `log_limit`, `room`, [`metrics`], [`limits`], [`sys`] | | options, log, its lines a minute, what tables give back, counters, fixed bounds, the system calls that need `unsafe` |
//!
//! Invariants, above all of absence: no lock in the loop; no thread per connection; no read buffer per
//! connection; no socket, clock or thread in a pure folder (time comes in as `now`); no event is retained once
//! the sessions that it matched have taken it; isolation between accounts is part of the key that is looked up,
//! never a test after the match.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "blackhole is for Linux only: it uses io_uring, TCP_DEFER_ACCEPT, socket filters and /proc"
);

// Forbidden here where the manifest only denies it: `sys` alone may allow it, for one function at a time.
#[forbid(unsafe_code)]
pub mod account;
#[forbid(unsafe_code)]
pub mod amqp;
#[forbid(unsafe_code)]
pub mod auth;
#[forbid(unsafe_code)]
pub mod config;
#[forbid(unsafe_code)]
pub mod event;
#[forbid(unsafe_code)]
pub mod handoff;
#[forbid(unsafe_code)]
mod json;
#[forbid(unsafe_code)]
pub mod limits;
#[forbid(unsafe_code)]
mod log_limit;
#[forbid(unsafe_code)]
pub mod logging;
#[forbid(unsafe_code)]
pub mod metrics;
#[forbid(unsafe_code)]
pub mod protocol;
#[forbid(unsafe_code)]
pub mod reactor;
#[forbid(unsafe_code)]
mod room;
#[forbid(unsafe_code)]
pub mod routing;
#[forbid(unsafe_code)]
pub mod session;
#[forbid(unsafe_code)]
pub mod source;
#[forbid(unsafe_code)]
#[cfg(test)]
mod steps;
pub mod sys;
