//! The stream of the history, as the loop sees it ([`super::stored`]).

use std::time::Duration;

use crate::handoff::stored::{Read, StoreEnd};

/// The reader, as the loop sees it.
pub(super) struct Store {
    pub(super) end: StoreEnd,
    /// The read under way, or the last one.
    pub(super) read: Read,
    /// Batches that the reader may be asked for once there is room.
    pub(super) owed: usize,
    /// When somebody last needed it, on the loop's clock.
    pub(super) needed_at: Duration,
}

impl Store {
    pub(super) fn new(end: StoreEnd) -> Self {
        Self {
            end,
            read: Read(0),
            owed: 0,
            needed_at: Duration::ZERO,
        }
    }
}
