//! What a session keeps of the index: the first of its subscriptions, and which index they are in.

use crate::routing::arena::NONE;

/// One of the two indexes of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Of the sessions that get events as they come.
    Live,
    /// Of the sessions that resume, and get past events first.
    Replay,
}

/// What one session is subscribed to, in 4 bytes: to be kept beside the session. It is of use with the
/// index that filled it only, and that must empty it before it is dropped. The highest bit says which one that is, where
/// there are two.
#[derive(Debug)]
pub struct SubscriptionList(u32);

impl Default for SubscriptionList {
    fn default() -> Self {
        Self(Self::NOTHING)
    }
}

impl SubscriptionList {
    /// The first of the chain, in the lower bits: there is none.
    const NOTHING: u32 = NONE >> 1;
    const REPLAY: u32 = !Self::NOTHING;

    /// Whether there is no subscription.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 & Self::NOTHING == Self::NOTHING
    }

    /// The index that its subscriptions are in, all of them.
    #[must_use]
    pub fn which(&self) -> Which {
        match self.0 & Self::REPLAY {
            0 => Which::Live,
            _ => Which::Replay,
        }
    }

    /// Takes the chain out.
    pub(super) fn take(&mut self) -> Self {
        let taken = Self(self.0);
        self.0 |= Self::NOTHING;
        taken
    }

    pub(super) fn first(&self) -> u32 {
        match self.0 & Self::NOTHING {
            Self::NOTHING => NONE,
            first => first,
        }
    }

    pub(super) fn set_first(&mut self, id: u32) {
        debug_assert!(id == NONE || id < Self::NOTHING, "ids have 31 bits");
        self.0 = self.0 & Self::REPLAY | id & Self::NOTHING;
    }

    /// Says that its subscriptions are in this index.
    pub(in crate::routing) fn set_which(&mut self, which: Which) {
        let bit = match which {
            Which::Live => 0,
            Which::Replay => Self::REPLAY,
        };
        self.0 = self.0 & Self::NOTHING | bit;
    }
}

/// Names a subscription until it ends or moves to the other index. Names are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(u32);

impl SubscriptionId {
    pub(crate) fn new(id: u32) -> Self {
        Self(id)
    }
}
