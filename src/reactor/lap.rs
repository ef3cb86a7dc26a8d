//! What a lap keeps from turn to turn, and the events of one slice of it ([`super::laps`]).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::event::{Event, Style};
use crate::history::{Cursor, Seq};
use crate::limits::{
    LAP_BYTES_PER_TURN_MAX, LAP_EVENT_EXTRA_BYTES, LAP_EVENTS_PER_TURN_MAX, LAP_FLUSHES_MAX,
    LAP_FLUSHES_MIN, LAP_FRAMES_PER_TURN_MAX, LAP_MATCHES_MAX, LAP_STEP_BYTES_MAX,
    LAP_VISITS_PER_TURN_MAX,
};
use crate::protocol::event_frame::{EventScratch, GroupFields, Stamp};
use crate::routing::index::{GroupId, Match};
use crate::session::outbox::Parcel;

/// The laps of a loop: one at a time.
#[derive(Debug, Default)]
pub(super) struct Laps {
    pub(super) lap: Option<Lap>,
    /// All that was read of the stream was walked.
    pub(super) is_dry: bool,
    /// When the sessions that resume were last looked at for those who are too late.
    pub(super) looked_at: Duration,
}

/// A walk over past events, from the oldest place of those who are ready to the present.
#[derive(Debug)]
pub(super) struct Lap {
    /// The events of the step under way: all on the lap have got those before.
    pub(super) step: Range<Seq>,
    /// The slots of those who get them, and the place of the next of these.
    pub(super) aboard: Vec<u32>,
    pub(super) at: usize,
}

impl Lap {
    /// A lap that begins at this event.
    pub(super) fn from(seq: Seq) -> Self {
        Self {
            step: seq..seq,
            aboard: Vec::new(),
            at: 0,
        }
    }

    /// Whether all aboard have got the events of the step.
    pub(super) fn is_step_done(&self) -> bool {
        self.at >= self.aboard.len()
    }
}

/// An event of the past, wherever it was kept.
#[derive(Clone, Debug)]
pub(super) struct PastEvent {
    pub(super) event: Arc<Event>,
    /// When it was taken in, in Unix seconds.
    pub(super) unix: u64,
    /// The place behind it.
    pub(super) cursor: Cursor,
    pub(super) seq: Seq,
}

/// Past events that somebody wants, and who does. It holds until the index changes.
#[derive(Debug)]
pub(super) struct Slice {
    events: Vec<PastEvent>,
    wanted: Vec<Wanted>,
    /// The numbers, rising, of what each group wants.
    by_group: HashMap<GroupId, Vec<u32>>,
    /// The event behind the last one that was looked at.
    pub(super) end: Seq,
    bytes: usize,
    /// The event that the scratch memory for frames holds a part of.
    begun: Option<u32>,
}

/// An event that a group wants.
#[derive(Debug)]
struct Wanted {
    /// Its place among the events of the slice.
    event: u32,
    style: Style,
    routing_key: Box<str>,
    subscribed_key: Box<str>,
    subscription_key: Box<str>,
    name_suffixed_by_type: bool,
    parcel: Option<Parcel>,
}

impl Slice {
    /// A slice without events, which begins at `from`.
    pub(super) fn new(from: Seq) -> Self {
        Self {
            events: Vec::new(),
            wanted: Vec::new(),
            by_group: HashMap::new(),
            end: from,
            bytes: 0,
            begun: None,
        }
    }

    /// Whether another event may be added.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < LAP_STEP_BYTES_MAX && self.wanted.len() < LAP_MATCHES_MAX
    }

    /// Whether nobody wants any of its events.
    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Notes that a group wants the event that is added next.
    pub(super) fn note(&mut self, found: &Match<'_>) {
        let numbers = self.by_group.entry(found.group).or_default();
        numbers.push(to_u32(self.wanted.len()));
        self.wanted.push(Wanted {
            event: to_u32(self.events.len()),
            style: found.style,
            routing_key: found.routing_key.into(),
            subscribed_key: found.subscribed_key.into(),
            subscription_key: found.subscription_key.into(),
            name_suffixed_by_type: found.name_suffixed_by_type,
            parcel: None,
        });
    }

    /// Adds an event, which the groups noted since the one before want.
    pub(super) fn add(&mut self, past: PastEvent) {
        self.end = Seq(past.seq.0 + 1);
        let next = to_u32(self.events.len());
        if self.wanted.last().is_some_and(|last| last.event == next) {
            self.bytes += past.event.bytes() + LAP_EVENT_EXTRA_BYTES;
            self.events.push(past);
        }
    }

    /// The numbers, rising, of what the group wants.
    pub(super) fn wanted_by(&self, group: GroupId) -> &[u32] {
        self.by_group.get(&group).map_or(&[], Vec::as_slice)
    }

    /// The event of a number.
    pub(super) fn event_of(&self, number: u32) -> Option<&PastEvent> {
        let wanted = self.wanted.get(number as usize)?;
        self.events.get(wanted.event as usize)
    }

    /// The frame of a number, which is made when it is first asked for.
    pub(super) fn parcel(&mut self, number: u32, scratch: &mut EventScratch) -> Option<Parcel> {
        let wanted = self.wanted.get_mut(number as usize)?;
        let past = self.events.get(wanted.event as usize)?;
        if wanted.parcel.is_none() {
            if self.begun.replace(wanted.event) != Some(wanted.event) {
                scratch.begin(Stamp::Replayed(past.cursor));
            }
            let fields = GroupFields {
                routing_key: &wanted.routing_key,
                name_suffixed_by_type: wanted.name_suffixed_by_type,
                subscribed_key: &wanted.subscribed_key,
                subscription_key: &wanted.subscription_key,
            };
            let frame = scratch.frame(&past.event, wanted.style, fields);
            wanted.parcel = Some(Parcel::from(frame));
        }
        wanted.parcel.clone()
    }
}

/// What laps may still do in this turn.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) events: usize,
    pub(super) visits: usize,
    pub(super) frames: usize,
    pub(super) bytes: usize,
    pub(super) flushes: usize,
}

impl Budget {
    /// The share of a turn in which so many sessions wait for a write.
    pub(super) fn new(flush_list: usize) -> Self {
        Self {
            events: LAP_EVENTS_PER_TURN_MAX,
            visits: LAP_VISITS_PER_TURN_MAX,
            frames: LAP_FRAMES_PER_TURN_MAX,
            bytes: LAP_BYTES_PER_TURN_MAX,
            flushes: LAP_FLUSHES_MAX
                .saturating_sub(flush_list)
                .max(LAP_FLUSHES_MIN),
        }
    }

    /// Whether no session may be visited any more.
    pub(super) fn is_used_up(&self) -> bool {
        [self.visits, self.frames, self.bytes, self.flushes].contains(&0)
    }

    /// Whether the turn's share is used up.
    pub(super) fn is_over(&self) -> bool {
        self.events == 0 || self.is_used_up()
    }
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
