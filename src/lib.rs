//! Blackhole: platform events from RabbitMQ, pushed to websocket clients.
//!
//! ```text
//! client bytes  -> reactor: one read buffer -> protocol::{handshake, codec} -> protocol::command -> session
//!               -> auth, routing::families -> routing::index
//! RabbitMQ      -> amqp thread: delivery -> event -> handoff (bounded) + waker -> reactor: the loop
//! event         -> routing::index -> each matching group: one frame -> outbox of each subscriber -> reactor: flush list
//! event         -> history (bounded) -> reactor: laps, for the sessions that come back with a cursor -> outbox of each
//! a stream      -> amqp threads: what is older than the history -> handoff::stored -> reactor: laps
//! end of turn   -> reactor: one vectored write to every session on the flush list, of all its frames
//! ```
//!
//! # Floors
//!
//! | floor | module | kind | what it owns |
//! |---|---|---|---|
//! | 7 | main | shell | puts everything together |
//! | 6 | [`reactor`] | shell | the loop: one thread that polls; the only place that touches client sockets |
//! | 6 | [`sub`] | shell | `blackhole sub`: a websocket client for people and scripts |
//! | 6 | [`config`] | shell | what an operator can choose; nobody below knows it |
//! | 6 | [`ctl`] | shell | `blackhole ctl`: a client of the admin addresses of running processes |
//! | 5 | [`session`] | pure | one client's life: phases, outbox, rate limit, close reasons |
//! | 5 | [`amqp`] | shell | the other thread; the only place that names the AMQP client |
//! | 5 | [`inquiry`] | shell | the threads that answer the authenticator's questions; the HTTP client of `crossbar` |
//! | 5 | [`source`] | shell | the embedded event sources, for trying and loading without a broker |
//! | 5 | [`tls`] | shell | TLS of clients' connections: records (pure), handshakes and their threads, certificates, tickets |
//! | 4 | [`handoff`] | shared | all that the loop shares with a source, and with the threads of the stream: bounded channels, commands back, a waker |
//! | 4 | [`protocol`] | pure | bytes and their meaning: handshake, frames, commands, replies, frames of events |
//! | 4 | [`auth`] | pure | who may do what |
//! | 3 | [`routing`] | pure | who wants this routing key: binding families, subscription index, counts of AMQP bindings |
//! | 3 | [`history`] | pure | the events of the last minute, cursors that name a place among them, what the stream proves of before |
//! | 2 | [`event`] | pure | what was published, decoded once; the styles of its frames |
//! | 2 | [`documents`] | pure | the fixed documents of the admin address, and how an asker is told that it has one already |
//! | 1 | [`console`] | pure | the console: one page for browsers, put together by the compiler |
//! | 1 | json | pure | reading and writing JSON where `serde_json` does not suffice |
//! | 2 | [`logging`] | shell | the log: a thread of its own behind a bounded queue |
//! | 2 | tls_files | shell | the files of TLS clients, and whom they trust |
//! | 2 | log_limit | pure | how often a line that repeats is written |
//! | 1 | [`limits`] | pure | every fixed bound |
//! | 1 | [`metrics`] | pure | counters, and their page |
//! | 1 | [`now`] | pure | the moment of a turn |
//! | 1 | room | pure | how much memory a table gives back as it empties |
//! | 1 | [`sys`] | shell | the system calls that need `unsafe` |
//! | 1 | [`account`] | pure | account ids |
//! | 1 | [`schemas`] | pure | the protocol for machines: AsyncAPI and JSON Schemas, for the admin address to show |
//! | 1 | closest | pure | the known name that is likely meant by another |
//! | 1 | printable | pure | foreign text on a terminal |
//! | 1 | steps | tests only | counts the steps of an algorithm |
//!
//! A module imports from lower floors and from its own folder, and no chain of imports leads back to the file where it
//! began. A test reads this table and holds the source to both (`tests/integration/house.rs`).
//!
//! Invariants, above all of absence: no lock in the loop; no thread per connection; no read buffer per
//! connection; no socket, clock or thread in a pure folder (time comes in as `now`); no event is retained once
//! the sessions that it matched have taken it, but in the bounded [`history`]; isolation between accounts is part of the
//! key that is looked up, never a test after the match.

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
mod closest;
#[forbid(unsafe_code)]
pub mod config;
#[forbid(unsafe_code)]
pub mod console;
#[forbid(unsafe_code)]
pub mod ctl;
#[forbid(unsafe_code)]
pub mod documents;
#[forbid(unsafe_code)]
pub mod event;
#[forbid(unsafe_code)]
pub mod handoff;
#[forbid(unsafe_code)]
pub mod history;
#[forbid(unsafe_code)]
pub mod inquiry;
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
pub mod now;
#[forbid(unsafe_code)]
mod printable;
#[forbid(unsafe_code)]
pub mod protocol;
#[forbid(unsafe_code)]
pub mod reactor;
#[forbid(unsafe_code)]
mod room;
#[forbid(unsafe_code)]
pub mod routing;
#[forbid(unsafe_code)]
pub mod schemas;
#[forbid(unsafe_code)]
pub mod session;
#[forbid(unsafe_code)]
pub mod source;
#[forbid(unsafe_code)]
#[cfg(test)]
mod steps;
#[forbid(unsafe_code)]
pub mod sub;
pub mod sys;
#[forbid(unsafe_code)]
pub mod tls;
#[forbid(unsafe_code)]
mod tls_files;
