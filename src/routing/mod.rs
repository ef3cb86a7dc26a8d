//! Which subscriptions want an event. Pure: no socket, clock, thread or log.
//!
//! ```text
//! client binding -> families: a rule, its AMQP keys -> index: a subscription in a group
//!                                                   -> broker_bindings: what the source must bind
//! event          -> index: the groups that want it, and their members
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`families`] | the table of binding families, and what a client binding means under it |
//! | [`index`] | subscriptions in groups; from an event to groups to members |
//! | [`indexes`] | the two indexes, live and replay, and which of them a session is in |
//! | [`nearness`] | how near a subscription comes to an event; whose an event is |
//! | [`key_filter`] | the keys that somebody who looks may name, and what must be bound for that |
//! | [`broker_bindings`] | how many subscriptions need each AMQP binding, and whether it is in force |
//! | `young` | since when the bindings that came of late have been in force |
//! | [`waiters`] | who waits until a binding is in force |
//! | [`amqp_binding`] | one AMQP binding, and the number of a request for it |
//! | [`account_load`] | how many AMQP bindings each account has |
//! | [`month`] | the months whose databases a subscription follows |
//! | [`words`] | the words of keys, and their escaping |
//! | `arena`, `interner`, `request_ids`, `table` | the dense storage under `index`, `broker_bindings` and `waiters` |
//!
//! Invariant: isolation between accounts is a part of the key that is looked up, never a test after the match.

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::wildcard_enum_match_arm
    )
)]

pub mod account_load;
pub mod amqp_binding;
mod arena;
pub mod broker_bindings;
pub mod families;
pub mod index;
pub mod indexes;
mod interner;
pub mod key_filter;
pub mod month;
pub mod nearness;
mod request_ids;
mod table;
pub mod waiters;
pub mod words;
mod young;
