//! What the hash tables of 4-byte ids share: the spreading of their hashes, and the room that they give back.

use hashbrown::HashTable;

use crate::room::room_wanted;

/// Spreads a stored hash of 32 bits over 64: a table takes bits from both ends.
pub(super) fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The 32 bits of a hash that are stored.
pub(super) fn low_half(hash: u64) -> u32 {
    let [a, b, c, d, ..] = hash.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Gives room back, as [`room`](crate::room) has it. To be called after a removal; amortised O(1).
pub(super) fn shrink_table(table: &mut HashTable<u32>, hash: impl Fn(&u32) -> u64) {
    if let Some(room) = room_wanted(table.len(), table.capacity()) {
        table.shrink_to(room, hash);
    }
}
