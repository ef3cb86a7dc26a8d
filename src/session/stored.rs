//! The past beyond this process's own history: what the stream has of it (PROTOCOL 10, `history stream:NAME`).
//!
//! A subscribe whose cursor the history does not cover waits until it is known whether the stream does; it holds its leases
//! meanwhile, as one that waits for the broker. The stream is read only while somebody waits for it or is sent events of it.
//! A place in the stream is a [`Seq`] below [`STORED_END`](crate::history::STORED_END), and those of the history stand
//! behind it: so laps go through both, and a session goes on from the one in the other where a marker of this process
//! shows that nothing is missing between.
//!
//! Invariants: with `history memory` nothing here does or costs anything. The keys of a family are told once.

use std::time::Duration;

use crate::history::stored::{Content, Offset, Reach, Stored, StoredItem, key_id};
use crate::history::{Cursor, Mark, Seq, Why};
use crate::routing::amqp_binding::AmqpBinding;
use crate::routing::families::{Families, Resolved, RuleId};
use crate::routing::waiters::Waiter;

use super::clock::Now;

/// How long before one of our markers was written everything that was published has reached the stream, and is sent on from
/// the history: the time that an event is under way to both.
const MARKER_SLACK_MS: u64 = 300;

/// How old the newest of our own markers in the stream may be. Without them nobody comes to the end of a replay, however much
/// of the past other processes prove; they are written every 2 s.
const WRITTEN_MAX_MS: u64 = 10_000;

/// The stream, as sessions see it.
#[derive(Debug, Default)]
pub struct StoredPast {
    on: Option<Box<On>>,
}

#[derive(Debug)]
struct On {
    stored: Stored,
    overlap_ms: u64,
    /// When the newest of our markers was written, in ms since 1970.
    written: u64,
    /// The rules whose keys were told.
    kept: Vec<bool>,
    to_keep: Vec<Vec<AmqpBinding>>,
    /// The subscribes that wait, and from when on they want the past.
    waiters: Vec<(Waiter, u64)>,
}

/// What stands next in the stream.
#[derive(Debug)]
pub enum Next {
    /// An event, with its place and the cursor behind it.
    Event(StoredEvent),
    /// A marker. `joins`: the time in ms since 1970 since which this process's history has what follows, if it had the
    /// bindings by then.
    Marker {
        /// The place behind it.
        behind: Seq,
        /// As said.
        joins: Option<u64>,
    },
    /// Nothing has been read yet.
    Nothing,
    /// It is not loaded any more.
    Gone,
}

/// An event of the stream.
#[derive(Debug)]
pub struct StoredEvent {
    /// The event.
    pub event: std::sync::Arc<crate::event::Event>,
    /// Its place.
    pub seq: Seq,
    /// About when it was published, in Unix seconds.
    pub unix: u64,
    /// The place behind it, for any process.
    pub cursor: Cursor,
}

impl StoredPast {
    /// There is a stream, of which so many bytes are loaded at a time.
    pub fn switch_on(&mut self, bytes_max: usize, overlap: Duration) {
        self.on = Some(Box::new(On {
            stored: Stored::new(bytes_max),
            overlap_ms: u64::try_from(overlap.as_millis()).unwrap_or(u64::MAX),
            written: 0,
            kept: Vec::new(),
            to_keep: Vec::new(),
            waiters: Vec::new(),
        }));
    }

    /// Whether there is a stream.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.is_some()
    }

    /// Has the events of a subscription's family kept in the stream from now on. O(1) but for the first of a family.
    pub(super) fn keep(&mut self, resolved: &Resolved<'_>, families: &Families) {
        let Some(on) = &mut self.on else { return };
        let RuleId(rule) = resolved.rule;
        let rule = usize::from(rule);
        if on.kept.len() <= rule {
            on.kept.resize(rule + 1, false);
        }
        if let Some(is_kept) = on.kept.get_mut(rule)
            && !std::mem::replace(is_kept, true)
        {
            let mut keys = Vec::new();
            families.family_bindings(resolved.rule, &mut keys);
            on.to_keep.push(keys);
        }
    }

    /// Takes the keys that are to be bound to the stream, a list for each family.
    pub fn take_to_keep(&mut self) -> Vec<Vec<AmqpBinding>> {
        (self.on.as_mut()).map_or_else(Vec::new, |on| std::mem::take(&mut on.to_keep))
    }

    /// When the newest of our own markers in the stream was written, in ms since 1970. True: a replay would come to its end,
    /// which was not so before.
    pub fn note_written(&mut self, unix_ms: u64, now: Now) -> bool {
        let had_end = self.has_end(now);
        if let Some(on) = &mut self.on {
            on.written = unix_ms;
        }
        !had_end && self.has_end(now)
    }

    /// Whether a replay would come to its end: our own markers are in the stream.
    #[must_use]
    pub fn has_end(&self, now: Now) -> bool {
        let is_fresh = |on: &On| now.unix_ms.saturating_sub(on.written) <= WRITTEN_MAX_MS;
        self.on.as_deref().is_some_and(is_fresh)
    }

    /// From when on the past behind a cursor is wanted.
    fn start_of(on: &On, cursor: &Cursor) -> u64 {
        cursor.time.saturating_sub(on.overlap_ms)
    }

    /// Whether the stream has what came after `cursor` for these subscriptions. Linear in their keys.
    pub(super) fn reach<'r>(
        &self,
        cursor: &Cursor,
        wanted: impl Iterator<Item = Resolved<'r>>,
        families: &Families,
        now: Now,
    ) -> Reach {
        let Some(on) = &self.on else {
            return Reach::Not(Why::Unknown);
        };
        if cursor.time > now.unix_ms.saturating_add(on.overlap_ms) {
            return Reach::Not(Why::Unknown);
        }
        if !self.has_end(now) {
            return Reach::NotYet;
        }
        let mut keys = Vec::new();
        for resolved in wanted {
            families.family_bindings(resolved.rule, &mut keys);
        }
        let ids = keys.iter().map(|key| key_id(&key.exchange, &key.key));
        on.stored.reach(Self::start_of(on, cursor), ids)
    }

    /// A subscribe waits until the stream was read.
    pub(super) fn wait(&mut self, waiter: Waiter, cursor: &Cursor) {
        if let Some(on) = &mut self.on {
            let start = Self::start_of(on, cursor);
            on.waiters.push((waiter, start));
        }
    }

    /// Takes those that wait; who goes on waiting says so again.
    pub fn take_waiters(&mut self) -> Vec<Waiter> {
        let waiters =
            (self.on.as_mut()).map_or_else(Vec::new, |on| std::mem::take(&mut on.waiters));
        waiters.into_iter().map(|(waiter, _)| waiter).collect()
    }

    /// Whether somebody waits.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.on.as_ref().is_some_and(|on| !on.waiters.is_empty())
    }

    /// From when on the stream has to be read, if that is earlier than it is.
    #[must_use]
    pub fn to_read_from(&self) -> Option<u64> {
        let on = self.on.as_ref()?;
        let earliest = on.waiters.iter().map(|(_, start)| *start).min()?;
        let is_read = on.stored.from().is_some_and(|from| from <= earliest);
        (!is_read).then_some(earliest)
    }

    /// Whether the stream is read, and from far enough back for somebody who waits. Linear in those who wait.
    #[must_use]
    pub fn is_read_for_somebody(&self) -> bool {
        self.on.as_ref().is_some_and(|on| {
            let from = on.stored.from();
            let mut waiters = on.waiters.iter();
            from.is_some_and(|from| waiters.any(|(_, start)| *start >= from))
        })
    }

    /// Whether the stream is read.
    #[must_use]
    pub fn is_read(&self) -> bool {
        (self.on.as_ref()).is_some_and(|on| on.stored.from().is_some())
    }

    /// It is read from this moment on, from its beginning.
    pub fn begin(&mut self, from_unix_ms: u64) {
        if let Some(on) = &mut self.on {
            on.stored.begin(from_unix_ms);
        }
    }

    /// It is read no more, and what was loaded is given back.
    pub fn end(&mut self) {
        if let Some(on) = &mut self.on {
            on.stored.end_reading();
        }
    }

    /// Takes items in. Returns whether there is a marker among them, and whether one tells of a hole.
    pub fn take_in(&mut self, items: Vec<StoredItem>) -> (bool, bool) {
        let (mut has_marker, mut has_hole) = (false, false);
        if let Some(on) = &mut self.on {
            for item in items {
                has_marker |= matches!(item.what, Content::Marker(_));
                has_hole |= on.stored.take_in(item);
            }
        }
        (has_marker, has_hole)
    }

    /// Whether there is room for more, after what stands before `seq` was forgotten as far as room is needed.
    pub fn make_room(&mut self, seq: Seq) -> bool {
        let Some(on) = &mut self.on else { return false };
        on.stored.make_room(Offset(seq.0));
        on.stored.has_room()
    }

    /// Bytes of the events that are loaded (a gauge).
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.on.as_ref().map_or(0, |on| on.stored.bytes())
    }

    /// Whether what stands at `seq` and behind is loaded, as far as it was read.
    #[must_use]
    pub fn holds(&self, seq: Seq) -> bool {
        (self.on.as_ref()).is_some_and(|on| on.stored.holds(Offset(seq.0)))
    }

    /// What stands next at `seq`, which must be one in the stream. Logarithmic in what is loaded.
    #[must_use]
    pub fn next(&self, seq: Seq) -> Next {
        let Some(on) = &self.on else {
            return Next::Gone;
        };
        let Some(item) = on.stored.next_at(Offset(seq.0)) else {
            return Next::Nothing;
        };
        if !on.stored.holds(Offset(seq.0)) {
            return Next::Gone;
        }
        match &item.what {
            Content::Event(event) => {
                let time = on.stored.time_at(item.offset);
                Next::Event(StoredEvent {
                    event: event.clone(),
                    seq: Seq(item.offset.0),
                    unix: time / 1_000,
                    cursor: Cursor {
                        id: Some(event.id),
                        time: time.saturating_sub(MARKER_SLACK_MS),
                        mark: Mark::from_random(0),
                    },
                })
            }
            Content::Marker(marker) => Next::Marker {
                behind: Seq(item.offset.0.saturating_add(1)),
                joins: marker
                    .is_ours
                    .then(|| marker.unix_ms.saturating_sub(MARKER_SLACK_MS)),
            },
        }
    }
}
