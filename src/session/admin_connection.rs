//! What the phase of a connection of the admin address keeps. [`super::admin`] says how it goes on.

use std::time::Duration;

use crate::protocol::admin_request::AnswerForm;

/// A connection of the admin address: what its phase keeps.
#[derive(Debug)]
pub(super) struct AdminConnection {
    /// Who may ask is to be checked: it did not come through the socket in a folder.
    pub(super) is_guarded: bool,
    /// A whole request has come.
    pub(super) has_asked: bool,
    /// Since when it waits for a request, or for the rest of one.
    pub(super) since: Duration,
    /// What has come and belongs to no request that was taken.
    pub(super) input: Vec<u8>,
    pub(super) step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Waits for a request, or for its last answer to be flushed.
    Reading,
    /// Waits for the answer, which takes this form.
    Answering(AnswerForm),
    /// Gets pieces as they come.
    Streaming,
    /// Its last answer is in the outbox. `is_peer_done`: the peer has closed its side.
    Leaving { is_peer_done: bool },
}
