//! The messages between the loop and a source, in both directions.

use std::sync::Arc;
use std::time::Instant;

use crate::event::Event;
use crate::routing::account_load::AccountTag;
use crate::routing::amqp_binding::{AmqpBinding, Asked, Ticket};

/// What a source tells the loop.
#[derive(Debug)]
pub enum FromSource {
    /// The source is connected and every binding asked for so far, but those named in an earlier
    /// [`FromSource::Lost`], is in force. Sent after each connect.
    Up(Return),
    /// The source is away since `since`; events published from then on may be lost.
    Down {
        /// Every event published before this moment had been received.
        since: Instant,
    },
    /// These bindings are in force: an event published from now on is delivered.
    Bound(Vec<Asked>),
    /// These bindings are wanted but not in force (their exchange clashes, AMQP rail 8); the source keeps trying
    /// and says [`FromSource::Bound`] when it succeeds. Events for them may be lost meanwhile.
    Lost(Vec<Asked>),
    /// What the broker does not permit its user, a line each: events are missing because of it. Replaces what was told
    /// before; none: everything that is needed.
    Barred(Vec<Box<str>>),
    /// Events may have been dropped on the broker's side (queue at its length limit) since this moment.
    Overflowed {
        /// When the queue was last seen below its limit.
        since: Instant,
    },
    /// One decoded delivery, which the history shares. Behind a pointer, because the channel reserves room for [`HANDOFF_EVENTS_MAX`](super::HANDOFF_EVENTS_MAX) messages.
    Event(Arc<Event>),
}

/// What a source that is connected again says of the events that were published while it was away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// The queue is a new one: what was published while the source was away is lost. Of the first connect, too.
    Anew,
    /// The queue of before was there all the time and dropped nothing: nothing was missed.
    Unbroken,
}

impl FromSource {
    /// Whether it is a control message: anything but an event.
    #[must_use]
    pub(crate) fn is_control(&self) -> bool {
        !matches!(self, Self::Event(_))
    }

    /// Bytes that the message counts for while it waits.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Event(event) => event.bytes(),
            Self::Up(_)
            | Self::Down { .. }
            | Self::Bound(_)
            | Self::Lost(_)
            | Self::Barred(_)
            | Self::Overflowed { .. } => 0,
        }
    }
}

/// What the loop tells a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToSource {
    /// Put this binding in force and say [`FromSource::Bound`] with the same ticket. Sent once while the loop wants the
    /// binding. For a binding that the source knows already, it is as if an `Unbind` had come before.
    Bind {
        /// Which.
        binding: AmqpBinding,
        /// For the answer.
        ticket: Ticket,
        /// Who asked: accounts take turns.
        account: AccountTag,
    },
    /// Another account waits for a binding that was asked for, which is bound at the first of their turns.
    Join {
        /// Which.
        binding: AmqpBinding,
        /// Who.
        account: AccountTag,
    },
    /// The loop no longer wants this binding, nor an answer to its earlier `Bind`. A source may delay the unbind; a
    /// later `Bind` of the same binding takes it back.
    Unbind(AmqpBinding),
    /// End the thread.
    Stop,
}
