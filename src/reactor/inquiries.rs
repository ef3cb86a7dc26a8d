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
}
