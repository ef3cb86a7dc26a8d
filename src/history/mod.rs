//! The events of the last minute, and the cursors that name a place among them (PROTOCOL 10).
//!
//! | module | owns |
//! |---|---|
//! | [`cursor`] | a cursor and its text |
//! | `ring` | the events that are kept, and the two bounds of them |
//! | [`stored`] | what is loaded of the stream, and what that proves |
//! | this | the times of cursors; which cursors are good |

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::wildcard_enum_match_arm
    )
)]

pub mod cursor;
pub mod stored;

use std::sync::Arc;
use std::time::Duration;

use crate::event::Event;
use crate::now::Now;

pub use cursor::{Cursor, Mark};

/// How much is kept, and how far two processes may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryOptions {
    /// `history_bytes`; 0: no history at all.
    pub bytes_max: usize,
    /// `history_seconds`.
    pub keep: Duration,
    /// `history_overlap_ms`.
    pub overlap: Duration,
}

/// The number of an event among those that this process took in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// Where the numbers of a history begin that stands behind a stream: those below it are places in the stream.
pub const STORED_END: Seq = Seq(1 << 62);

/// Why there is no replay from a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its time is before the history.
    Expired,
    /// It is of the future, or never was given, or a binding is not covered since then.
    Unknown,
    /// More events than may be replayed.
    TooMany,
    /// Events may have been lost since then.
    Outage,
}

impl Why {
    /// The word of `data.why`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Unknown => "unknown",
            Self::TooMany => "too_many",
            Self::Outage => "outage",
        }
    }
}

/// An event that is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Shared with whoever hands it out.
    pub event: Arc<Event>,
    /// The time of its cursor.
    pub cursor_time: u64,
    /// When it was taken in, on the loop's clock.
    pub at: Duration,
    /// The same in Unix seconds: which months were in force.
    pub unix: u64,
}

/// The events of the last minute.
#[derive(Debug, Default)]
pub struct History {
    options: Option<(HistoryOptions, Mark)>,
}

impl History {
    /// No history: nothing is kept, and there are no cursors.
    #[must_use]
    pub fn off() -> Self {
        Self::default()
    }

    /// An empty history of a process that begins now.
    #[must_use]
    pub fn new(options: HistoryOptions, mark: Mark, now: Now) -> Self {
        let _ = now;
        Self {
            options: (options.bytes_max > 0).then_some((options, mark)),
        }
    }

    /// Whether events are kept.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.options.is_some()
    }

    /// Keeps an event and returns its cursor; `None`: off. O(1), amortised.
    pub fn take_in(&mut self, event: &Arc<Event>, now: Now) -> Option<Cursor> {
        let (_, mark) = self.options?;
        Some(Cursor {
            id: Some(event.id),
            time: now.unix_ms,
            mark,
        })
    }

    /// The position behind all events taken in so far and before all to come; `None`: off. Of the future, when an event is
    /// being handed out in slices, that event is one.
    pub fn here(&mut self, now: Now) -> Option<Cursor> {
        let (_, mark) = self.options?;
        Some(Cursor {
            id: None,
            time: now.unix_ms,
            mark,
        })
    }

    /// The first event behind a cursor.
    ///
    /// # Errors
    /// Why it cannot be told, or is not all there any more.
    pub fn locate(&self, cursor: &Cursor, now: Now) -> Result<Seq, Why> {
        let _ = (cursor, now);
        Err(Why::Unknown)
    }

    /// The event with this number, if it is still kept. O(1).
    #[must_use]
    pub fn get(&self, seq: Seq) -> Option<&Kept> {
        let _ = seq;
        None
    }

    /// The oldest event that is kept, or the next one.
    #[must_use]
    pub fn first(&self) -> Seq {
        Seq(0)
    }

    /// The event to come.
    #[must_use]
    pub fn next(&self) -> Seq {
        Seq(0)
    }

    /// The cursor behind an event that is kept; `None`: off.
    #[must_use]
    pub fn cursor_of(&self, kept: &Kept) -> Option<Cursor> {
        let (_, mark) = self.options?;
        Some(Cursor {
            id: Some(kept.event.id),
            time: kept.cursor_time,
            mark,
        })
    }

    /// What came before may have holes: cursors of before this moment are [`Why::Outage`], and so are those of the next
    /// `waiting` events, which had come before the source told it.
    pub fn outage(&mut self, waiting: usize, now: Now) {
        let _ = (waiting, now);
    }

    /// Numbers the events from [`STORED_END`] on. To be called before any has come.
    pub fn stand_behind_the_stream(&mut self) {}

    /// The first event that came after this moment, in ms since 1970; `None`: something behind it may be missing, or is gone.
    /// O(log n).
    #[must_use]
    pub fn from_time(&self, unix_ms: u64, now: Now) -> Option<Seq> {
        let _ = (unix_ms, now);
        None
    }

    /// Drops what is too old.
    pub fn evict(&mut self, now: Now) {
        let _ = now;
    }

    /// When [`History::evict`] has something to do, on the loop's clock.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        None
    }
}
