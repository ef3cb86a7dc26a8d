//! What a fan-out keeps between events: the run under way, and the event that is handed out in slices
//! ([`super::fan_out`]).

use std::collections::HashSet;
use std::sync::Arc;

use crate::event::Event;
use crate::limits::{MERGED_EVENTS_MAX, RUN_BYTES_MAX};
use crate::protocol::event_frame::{EventScratch, Stamp};
use crate::protocol::frame::Frame;
use crate::routing::index::GroupId;
use crate::session::id::ConnId;

/// The state of the fan-out between two events.
#[derive(Debug, Default)]
pub(super) struct FanOut {
    pub(super) scratch: EventScratch,
    /// Room for the frames of one event; empty between two.
    pub(super) matched: Vec<(GroupId, Frame)>,
    pub(super) run: Option<Run>,
    pub(super) sliced: Option<Sliced>,
    pub(super) too_slow: Vec<ConnId>,
}

/// Frames that wait to be handed out to one group: at least one.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) group: GroupId,
    pub(super) frames: Vec<Frame>,
    pub(super) bytes: u64,
}

/// An event of which not all frames have been made.
#[derive(Debug)]
pub(super) struct Sliced {
    pub(super) event: Arc<Event>,
    pub(super) stamp: Stamp,
    /// The groups that have not got it; never empty.
    pub(super) owed: HashSet<GroupId>,
}

impl Run {
    pub(super) fn takes(&self, group: GroupId, frame: &Frame) -> bool {
        self.group == group
            && (self.frames.len() as u64) < MERGED_EVENTS_MAX
            && self.bytes + frame.len() as u64 <= RUN_BYTES_MAX
    }
}

impl FanOut {
    /// How many events, and bytes of frames, the run holds.
    pub(super) fn held(&self) -> (u64, u64) {
        let held = |run: &Run| (run.frames.len() as u64, run.bytes);
        self.run.as_ref().map_or((0, 0), held)
    }

    /// Whether some groups have not got their event yet; no other event may be fanned out before that.
    pub(super) fn is_sliced(&self) -> bool {
        self.sliced.is_some()
    }
}
