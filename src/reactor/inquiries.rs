//! The authenticator's questions under way, and whom their answers concern ([`super::asking`]).

use std::collections::VecDeque;

use crate::inquiry::Inquiry;
use crate::session::id::ConnId;

/// The questions under way, and whom their answers concern.
#[derive(Default)]
pub(super) struct Inquiries {
    /// `None`: nothing has to be asked.
    pub(super) inquiry: Option<Inquiry>,
    /// Answers were left in the channel.
    pub(super) has_more: bool,
    /// Connections that are to look again.
    pub(super) concerned: VecDeque<ConnId>,
}

impl Inquiries {
    /// Whether the next turn has something to do at once.
    pub(super) fn is_pressing(&self) -> bool {
        self.has_more || !self.concerned.is_empty()
    }

    /// Questions in the lanes of the threads (a gauge).
    pub(super) fn in_lanes(&self) -> usize {
        let waiting = |inquiry: &Inquiry| inquiry.verify_waiting() + inquiry.network_waiting();
        self.inquiry.as_ref().map_or(0, waiting)
    }

    /// Answers that wait for the loop (a gauge).
    pub(super) fn answered(&self) -> usize {
        self.inquiry.as_ref().map_or(0, Inquiry::answers_waiting)
    }
}
