//! Bytes and their meaning, in both directions. Pure: no socket, clock, thread or log. Only this folder uses tungstenite
//! and httparse.
//!
//! | module | owns |
//! |---|---|
//! | [`http`] | the head of a request, the length of its body, and responses (RFC 9112) |
//! | [`admin`] | what may be asked for on the admin address (PROTOCOL 8) |
//! | [`admin_request`] | HTTP request -> that (RFC 9112) |
//! | [`admin_guard`] | who may ask: token, `Host`, `Origin` |
//! | [`handshake`] | head -> upgrade, probe or error (PROTOCOL 2, RFC 6455 section 4) |
//! | [`proxy`] | PROXY header -> the peer behind a trusted proxy (PROXY protocol 1 and 2) |
//! | [`forwarded`] | `X-Forwarded-For` and `Forwarded` of a trusted proxy -> the same (RFC 7239) |
//! | [`codec`] | client bytes -> messages, in the loop's shared buffer (RFC 6455 section 5) |
//! | [`frame`] | server frames: encoded once, shared by reference |
//! | [`extension`] | what is agreed on permessage-deflate (RFC 7692 section 7.1) |
//! | [`deflate`] | messages deflated and inflated (RFC 7692 section 7.2) |
//! | [`tail`] | a request id put into the frame that many share |
//! | [`command`] | client text -> command (PROTOCOL 3) |
//! | `envelope` | the JSON of a command, field by field |
//! | [`control`] | the platform's requests over AMQP, and the answers (PROTOCOL 8) |
//! | [`page`] | pages of the admin address as JSON (PROTOCOL 8) |
//! | [`reply`] | reply or notice -> frame (PROTOCOL 3 and 5) |
//! | [`event_frame`] | event -> frame in either style (PROTOCOL 5) |
//! | `kazoo` | the body of an event in style kazoo |

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::wildcard_enum_match_arm
    )
)]

pub mod admin;
pub mod admin_guard;
pub mod admin_request;
pub mod codec;
pub mod command;
pub mod control;
pub mod deflate;
mod envelope;
pub mod event_frame;
pub mod extension;
pub mod forwarded;
pub mod frame;
pub mod handshake;
pub mod http;
mod kazoo;
pub mod page;
pub mod proxy;
pub mod reply;
pub mod tail;
