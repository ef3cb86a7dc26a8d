//! A command that waits for the authenticator: its text, and its time; and what came of an answer. How it waits is in
//! `suspending`.

use std::time::Duration;

use crate::metrics::commands::CommandAction;

/// A command that waits for the authenticator.
#[derive(Debug)]
pub(super) struct Suspended {
    /// The command, as it came.
    pub(super) text: Box<str>,
    /// What it asks for.
    pub(super) verb: CommandAction,
    /// When it is given up.
    pub(super) due: Duration,
}

impl Suspended {
    /// Heap bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.text.len()
    }
}

/// What came of an answer for one session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// Commands that were run again.
    pub commands: usize,
    /// More of them may go on, in another turn.
    pub has_more: bool,
}
