//! Which subscriptions want this event? Pure: no socket, clock, thread or log.
//!
//! | module | owns |
//! |---|---|
//! | [`account_load`] | how many AMQP bindings each account has |
//! | [`amqp_binding`] | one binding of the process's own queue |
//! | [`words`] | escaping and splitting the words of keys |
//! | [`month`] | the months whose databases a subscription follows |
//! | [`families`] | the one table of binding families, and what a client binding means under it |
//! | [`index`] | subscriptions, grouped; event to groups to members |
//! | [`broker_bindings`] | how many subscriptions need each AMQP binding, and whether it is in force |
//! | [`waiters`] | who waits until a binding is in force |
//! | `arena`, `interner` | the dense storage under the last three |

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
mod interner;
pub mod month;
mod table;
pub mod waiters;
pub mod words;
