//! Which subscriptions want this event? Pure: no socket, clock, thread or log.
//!
//! | module | owns |
//! |---|---|
//! | [`account`] | account ids and what a subscription's account may be |
//! | [`words`] | escaping, splitting and joining the words of keys |
//! | [`month`] | the months whose databases a subscription follows |
//! | [`families`] | the one table of binding families, and what a client binding means under it |
//! | [`index`] | subscriptions, grouped; event to groups to members |
//! | [`broker_bindings`] | how many subscriptions need each AMQP binding, and whether it is in force |

pub mod account;
pub mod broker_bindings;
pub mod families;
pub mod index;
pub mod month;
pub mod words;
