//! The stream of the history, as the loop sees it ([`super::stored`]).

use std::collections::VecDeque;
use std::time::Duration;

use crate::handoff::stored::{Read, StoreEnd};
use crate::routing::waiters::Waiter;

/// The reader, as the loop sees it.
pub(super) struct Store {
    pub(super) end: StoreEnd,
    /// The read under way, or the last one.
    pub(super) read: Read,
    /// Batches that the reader may be asked for once there is room.
    pub(super) owed: usize,
    /// When somebody last needed it, on the loop's clock.
    pub(super) needed_at: Duration,
    /// When the read under way was begun, on the loop's clock.
    pub(super) begun_at: Duration,
    /// When there was last room for more, on the loop's clock.
    pub(super) room_at: Duration,
    /// When all who resume were last looked at, on the loop's clock.
    pub(super) looked_at: Duration,
    /// The subscribes that waited when something became known, and have not been asked again.
    pub(super) asking: VecDeque<Waiter>,
    /// What became known is that the stream does not tell.
    pub(super) has_failed: bool,
    /// Something became known since they were listed.
    pub(super) has_news: bool,
}

impl Store {
    pub(super) fn new(end: StoreEnd) -> Self {
        Self {
            end,
            read: Read(0),
            owed: 0,
            needed_at: Duration::ZERO,
            begun_at: Duration::ZERO,
            room_at: Duration::ZERO,
            looked_at: Duration::ZERO,
            asking: VecDeque::new(),
            has_failed: false,
            has_news: false,
        }
    }
}
