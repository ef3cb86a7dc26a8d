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

pub mod account_load;
pub mod amqp_binding;
mod arena;
pub mod broker_bindings;
pub mod families;
pub mod index;
mod interner;
pub mod month;
pub mod waiters;
pub mod words;

use hashbrown::HashTable;

use crate::room::room_wanted;

/// A stored hash of 32 bits as a table wants it, with entropy at both ends of 64.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Gives a table's memory back after a storm: amortised O(1) a removal.
fn shrink_table(table: &mut HashTable<u32>, hash: impl Fn(&u32) -> u64) {
    if let Some(room) = room_wanted(table.len(), table.capacity()) {
        table.shrink_to(room, hash);
    }
}
