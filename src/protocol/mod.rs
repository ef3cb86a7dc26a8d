//! Bytes and their meaning, both directions. Pure: no socket, clock, thread or log. The only folder that names
//! tungstenite, httparse and (beside the config) serde_json.
//!
//! | module | owns |
//! |---|---|
//! | [`http`] | request head -> what it says; responses (RFC 9112) |
//! | [`handshake`] | upgrade request -> response or refusal (PROTOCOL 2, RFC 6455 section 4) |
//! | [`proxy`] | PROXY header -> who is behind a trusted proxy (PROXY protocol 1 and 2) |
//! | [`forwarded`] | `X-Forwarded-For` and `Forwarded` of a trusted proxy -> the same (RFC 7239) |
//! | [`codec`] | client bytes -> messages, over the loop's shared buffer (RFC 6455 section 5) |
//! | [`frame`] | server frames: encoded once, shared by reference |
//! | [`command`] | client text -> command (PROTOCOL 3) |
//! | `envelope` | the JSON of a command, field by field |
//! | [`event_frame`] | event -> frames of either style (PROTOCOL 5) |
//! | [`reply`] | reply, notice -> frame (PROTOCOL 3 and 5) |
//! | `kazoo` | an event's body as style kazoo has it |

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::wildcard_enum_match_arm
    )
)]

pub mod codec;
pub mod command;
mod envelope;
pub mod event_frame;
pub mod forwarded;
pub mod frame;
pub mod handshake;
pub mod http;
mod kazoo;
pub mod proxy;
pub mod reply;
