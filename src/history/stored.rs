//! What is known of the stream in which the broker keeps the events of all processes (PROTOCOL 10): the part of it that is
//! loaded, and since when it holds all events of a family.
//!
//! The events in a stream have no times that can be trusted. But every process writes a [`Marker`] to it every few seconds,
//! with its wall clock and the keys that it has bound. Keys are never unbound, so behind a marker there are all events of its
//! keys, up to a marker that tells of a hole. So the past of a subscription from a moment on is there when a marker was met
//! whose time is not behind that moment and whose keys hold the subscription's, with no hole behind it.
//!
//! Invariants: items are in the order of the stream, each with an offset above the one before; nothing is in the buffer that
//! stands before the newest marker of before the earliest moment that is wanted; the buffer holds no more bytes than its
//! bound and the batches under way, for whoever asks for more asks [`Stored::has_room`] first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::Why;
use crate::event::{Event, EventId};

/// A place in the stream. Places rise along the stream, with holes between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

/// The name of a key that is bound to the stream: [`key_id`].
pub type KeyId = EventId;

/// Something in the stream.
#[derive(Clone, Debug)]
pub struct StoredItem {
    /// Where it stands.
    pub offset: Offset,
    /// What it is.
    pub what: Content,
}

/// What stands at one place of the stream.
#[derive(Clone, Debug)]
pub enum Content {
    /// An event.
    Event(Arc<Event>),
    /// What a process wrote of itself.
    Marker(Marker),
}

/// What a process writes of itself, every few seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Its wall clock, in ms since 1970, when it wrote this.
    pub unix_ms: u64,
    /// Whether it is this process.
    pub is_ours: bool,
    /// Before this marker events of any key may be missing.
    pub is_hole: bool,
    /// The keys that were bound when it wrote this.
    pub keys: Box<[KeyId]>,
}

/// The name of a key that is bound to the stream.
#[must_use]
pub fn key_id(exchange: &str, key: &str) -> KeyId {
    EventId::of(exchange, key, b"")
}

/// Whether the stream has the past of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// From this place on.
    From(Offset),
    /// It is not known yet: the stream has to be read, or read on.
    NotYet,
    /// It has not.
    Not(Why),
}

/// The loaded part of the stream.
#[derive(Debug)]
pub struct Stored {
    bytes_max: usize,
    /// From when on it is read; `None`: it is not.
    from: Option<u64>,
    items: VecDeque<StoredItem>,
    bytes: usize,
    /// The markers met, each later than all before it: time and place. The first is the newest of before `from`, once there
    /// is one.
    markers: VecDeque<(u64, Offset)>,
    /// Since which time each key is proven, by the markers met since the last hole.
    proven: HashMap<KeyId, u64>,
    /// The place from which on everything that was read is loaded. Before the first item that is may be holes.
    begin: Offset,
    /// The place behind the last item.
    end: Offset,
    /// Whether the first item was met.
    has_begun: bool,
    /// The latest time of a marker that was forgotten.
    before: u64,
    /// Whether a marker was met: nobody begins before the first.
    has_marker: bool,
    /// Whether a hole was met.
    has_hole: bool,
}

/// Markers kept, at most: an hour of ten processes. Beyond it the oldest are forgotten, and with them what begins there.
const MARKERS_MAX: usize = 4096;

/// Keys remembered, at most. Beyond it those of further markers are not, and what needs them is [`Why::Unknown`].
const KEYS_MAX: usize = 32 << 10;

impl Stored {
    /// Nothing is loaded. `bytes_max`: how much may be.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            from: None,
            items: VecDeque::new(),
            bytes: 0,
            markers: VecDeque::new(),
            proven: HashMap::new(),
            begin: Offset(0),
            end: Offset(0),
            has_begun: false,
            before: 0,
            has_marker: false,
            has_hole: false,
        }
    }

    /// From when on the stream is read, in ms since 1970; `None`: it is not.
    #[must_use]
    pub fn from(&self) -> Option<u64> {
        self.from
    }

    /// The stream is read from a moment on; what was loaded is forgotten. Linear in that.
    pub fn begin(&mut self, from_unix_ms: u64) {
        *self = Self::new(self.bytes_max);
        self.from = Some(from_unix_ms);
    }

    /// It is read no more. Linear in what was loaded.
    pub fn end_reading(&mut self) {
        *self = Self::new(self.bytes_max);
    }

    /// Whether another batch finds room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.bytes < self.bytes_max
    }

    /// Bytes of the events that are loaded (a gauge).
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the next item in. True: it tells of a hole, so whoever reads before it misses something. O(1), amortised; of a
    /// marker linear in its keys.
    pub fn take_in(&mut self, item: StoredItem) -> bool {
        let Some(from) = self.from else { return false };
        if self.has_begun && item.offset < self.end {
            return false;
        }
        let is_hole = matches!(&item.what, Content::Marker(marker) if marker.is_hole);
        if !std::mem::replace(&mut self.has_begun, true) {
            self.begin = item.offset;
        }
        self.end = Offset(item.offset.0.saturating_add(1));
        match &item.what {
            Content::Event(_) if !self.has_marker => {
                self.begin = self.end;
                return false;
            }
            Content::Event(event) => self.bytes += event.bytes(),
            Content::Marker(marker) => {
                self.has_marker = true;
                self.take_marker(marker, item.offset);
                if marker.unix_ms <= from && self.markers.len() == 1 {
                    // Nobody wants what stands before it.
                    self.items.clear();
                    self.bytes = 0;
                    self.begin = item.offset;
                }
            }
        }
        self.items.push_back(item);
        is_hole
    }

    fn take_marker(&mut self, marker: &Marker, offset: Offset) {
        let newest = self.markers.back().map_or(self.before, |(time, _)| *time);
        if marker.is_hole {
            self.has_hole = true;
            self.proven.clear();
            self.forget_markers();
        }
        if marker.unix_ms >= newest {
            let from = self.from.unwrap_or_default();
            if marker.unix_ms <= from {
                self.forget_markers();
            }
            self.markers.push_back((marker.unix_ms, offset));
            if self.markers.len() > MARKERS_MAX
                && let Some((time, _)) = self.markers.pop_front()
            {
                self.before = self.before.max(time);
            }
        }
        // A marker that comes behind a later one was written by a clock that lags: what it proves, it proves since then.
        let time = marker.unix_ms.max(newest);
        for key in &marker.keys {
            if self.proven.len() < KEYS_MAX {
                self.proven.entry(*key).or_insert(time);
            }
        }
    }

    fn forget_markers(&mut self) {
        let latest = self.markers.iter().map(|(time, _)| *time).max();
        self.before = self.before.max(latest.unwrap_or_default());
        self.markers.clear();
    }

    /// Whether the stream has all events of `keys` since `start_unix_ms`. Linear in the markers and the keys.
    pub fn reach(&self, start_unix_ms: u64, keys: impl Iterator<Item = KeyId>) -> Reach {
        let Some(from) = self.from else {
            return Reach::NotYet;
        };
        if start_unix_ms < from {
            return Reach::NotYet;
        }
        let is_behind = |(time, _): &&(u64, Offset)| *time > start_unix_ms;
        if !self.markers.iter().any(|marker| is_behind(&marker)) {
            return Reach::NotYet;
        }
        let before = self.markers.iter().take_while(|marker| !is_behind(marker));
        let Some((_, offset)) = before.last() else {
            return Reach::Not(if self.has_hole {
                Why::Outage
            } else {
                Why::Expired
            });
        };
        for key in keys {
            match self.proven.get(&key) {
                Some(since) if *since <= start_unix_ms => {}
                _ => return Reach::Not(Why::Unknown),
            }
        }
        Reach::From(*offset)
    }

    /// The first item that does not stand before `offset`. Logarithmic in what is loaded.
    #[must_use]
    pub fn next_at(&self, offset: Offset) -> Option<&StoredItem> {
        let at = self.items.partition_point(|item| item.offset < offset);
        self.items.get(at)
    }

    /// Whether everything from `offset` on that was read is still loaded. True while nothing has come: it is not known yet.
    #[must_use]
    pub fn holds(&self, offset: Offset) -> bool {
        !self.has_begun || offset >= self.begin
    }

    /// Forgets what stands before `offset`, only as far as room is needed: what begins there has to be read again.
    pub fn make_room(&mut self, offset: Offset) {
        while !self.has_room()
            && let Some(first) = self.items.front()
            && first.offset < offset
        {
            match &first.what {
                Content::Event(event) => self.bytes -= event.bytes(),
                Content::Marker(marker) => {
                    let (time, offset) = (marker.unix_ms, first.offset);
                    self.markers.retain(|(_, at)| *at != offset);
                    self.before = self.before.max(time);
                    let next = self.markers.front().map_or(time + 1, |(time, _)| *time);
                    self.from = self.from.map(|from| from.max(next));
                }
            }
            self.begin = Offset(first.offset.0.saturating_add(1));
            self.items.pop_front();
        }
    }

    /// The time of the newest marker that does not stand behind `offset`: what the cursor of an event there carries.
    #[must_use]
    pub fn time_at(&self, offset: Offset) -> u64 {
        let at = self.markers.partition_point(|(_, place)| *place <= offset);
        at.checked_sub(1)
            .and_then(|at| self.markers.get(at))
            .map(|(time, _)| *time)
            .unwrap_or(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventHead;

    fn event(number: u64) -> Content {
        Content::Event(Arc::new(Event {
            id: EventId::of("e", &number.to_string(), b""),
            exchange: "e".into(),
            routing_key: number.to_string().into(),
            head: EventHead::default(),
            body: "x".repeat(100).into(),
            arrival: None,
        }))
    }

    fn marker(unix_ms: u64, keys: &[&str]) -> Content {
        Content::Marker(Marker {
            unix_ms,
            is_ours: false,
            is_hole: false,
            keys: keys.iter().map(|key| key_id("e", key)).collect(),
        })
    }

    fn hole(unix_ms: u64) -> Content {
        Content::Marker(Marker {
            unix_ms,
            is_ours: false,
            is_hole: true,
            keys: Box::default(),
        })
    }

    /// Reads from `from` on, with items at the offsets 10, 20, ….
    fn stored(from: u64, items: Vec<Content>) -> Stored {
        let mut stored = Stored::new(10_000);
        stored.begin(from);
        for (number, what) in items.into_iter().enumerate() {
            let offset = Offset(10 * (number as u64 + 1));
            stored.take_in(StoredItem { offset, what });
        }
        stored
    }

    fn reach(stored: &Stored, start: u64, keys: &[&str]) -> Reach {
        stored.reach(start, keys.iter().map(|key| key_id("e", key)))
    }

    #[test]
    fn the_past_is_there_from_the_newest_marker_of_before_on() {
        let stored = stored(
            5000,
            vec![
                event(1),
                marker(3000, &["a"]),
                event(2),
                marker(4900, &["a"]),
                event(3),
                marker(5500, &["a", "b"]),
                event(4),
                marker(6000, &["a"]),
            ],
        );
        for (start, keys, expected) in [
            (4999, &["a"][..], Reach::NotYet),
            (5000, &["a"], Reach::From(Offset(40))),
            (5499, &["a"], Reach::From(Offset(40))),
            (5500, &["a"], Reach::From(Offset(60))),
            (5500, &["a", "b"], Reach::From(Offset(60))),
            (5499, &["a", "b"], Reach::Not(Why::Unknown)),
            (5600, &["c"], Reach::Not(Why::Unknown)),
            // Nothing is known of what is behind the last marker.
            (6000, &["a"], Reach::NotYet),
        ] {
            assert_eq!(reach(&stored, start, keys), expected, "{start} {keys:?}");
        }
        let at = |offset| stored.next_at(Offset(offset)).map(|item| item.offset.0);
        assert_eq!(
            (at(0), at(41), at(50), at(81)),
            (Some(40), Some(50), Some(50), None)
        );
        assert!(!stored.holds(Offset(39)) && stored.holds(Offset(40)) && stored.holds(Offset(81)));
        assert_eq!(stored.time_at(Offset(50)), 4900);
        assert_eq!(stored.time_at(Offset(71)), 5500);
    }

    #[test]
    fn what_was_trimmed_or_stands_before_a_hole_is_not_there() {
        let trimmed = stored(
            5000,
            vec![event(1), marker(5200, &["a"]), marker(5600, &["a"])],
        );
        assert_eq!(reach(&trimmed, 5000, &["a"]), Reach::Not(Why::Expired));
        assert_eq!(reach(&trimmed, 5300, &["a"]), Reach::From(Offset(20)));
        let holed = stored(
            5000,
            vec![
                marker(4900, &["a"]),
                marker(5100, &["a"]),
                hole(5150),
                event(1),
                marker(5200, &["a"]),
                marker(5400, &["a"]),
            ],
        );
        assert_eq!(reach(&holed, 5000, &["a"]), Reach::Not(Why::Outage));
        assert_eq!(reach(&holed, 5160, &["a"]), Reach::Not(Why::Unknown));
        assert_eq!(reach(&holed, 5200, &["a"]), Reach::From(Offset(50)));
    }

    #[test]
    fn a_clock_that_lags_proves_nothing_of_before_it_was_heard() {
        let stored = stored(
            5000,
            vec![
                marker(5000, &[]),
                marker(5300, &[]),
                marker(4000, &["a"]),
                marker(5500, &[]),
            ],
        );
        assert_eq!(reach(&stored, 5100, &["a"]), Reach::Not(Why::Unknown));
        assert_eq!(reach(&stored, 5300, &["a"]), Reach::From(Offset(20)));
    }

    #[test]
    fn a_place_in_front_of_a_hole_is_there_when_room_was_made_up_to_it() {
        let mut stored = stored(5000, vec![marker(4900, &["a"]), event(1), event(2)]);
        stored.bytes_max = 1;
        stored.make_room(Offset(21));
        assert_eq!(
            stored.next_at(Offset(0)).map(|item| item.offset),
            Some(Offset(30))
        );
        assert!(stored.holds(Offset(21)) && !stored.holds(Offset(20)));
    }

    #[test]
    fn room_is_made_only_where_nobody_reads_and_nothing_comes_twice() {
        let mut stored = stored(5000, vec![marker(4900, &["a"])]);
        let mut offset = 20;
        while stored.has_room() {
            let what = event(offset);
            stored.take_in(StoredItem {
                offset: Offset(offset),
                what,
            });
            offset += 1;
        }
        let full = stored.bytes();
        stored.make_room(Offset(0));
        assert_eq!(stored.bytes(), full);
        assert_eq!(stored.time_at(Offset(offset)), 4900);
        stored.make_room(Offset(offset));
        assert!(stored.has_room() && stored.bytes() > 0);
        assert_eq!(
            stored.time_at(Offset(offset)),
            4900,
            "its marker is forgotten"
        );
        assert!(!stored.holds(Offset(10)));
        assert_eq!(
            reach(&stored, 5000, &["a"]),
            Reach::NotYet,
            "it is read again"
        );
        let before = stored.bytes();
        stored.take_in(StoredItem {
            offset: Offset(30),
            what: event(30),
        });
        assert_eq!(stored.bytes(), before, "it stands before what was read");
        stored.end_reading();
        assert_eq!((stored.bytes(), stored.from()), (0, None));
    }
}
