//! The replies of one session that cannot be sent yet. Replies keep the order of their commands (PROTOCOL 3), and a
//! subscribe that waits for the broker, or a command that waits for the authenticator, has no reply yet, so the replies
//! behind it are held.
//!
//! Invariants: the first entry, if there is one, is a subscribe or a command that waits. Commands that wait for the
//! authenticator go on in their order. The times by which those that wait are given up never run backwards. `bytes` is the
//! sum over the entries, and [`HeldTotals`] the sum over all sessions.

use std::collections::VecDeque;
use std::time::Duration;

use super::resuming::Answer;
use super::suspended::Suspended;
use super::waiting::Waiting;
use crate::limits::{HELD_BYTES_MAX, HELD_REPLIES_MAX};
use crate::metrics::commands::CommandAction;
use crate::protocol::frame::Frame;

/// The sums over all sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldTotals {
    /// Subscribes that wait, and replies behind them.
    pub replies: usize,
    /// Heap bytes of them.
    pub bytes: usize,
}

/// A known reply. It tells what the session is subscribed to at the moment when it is sent.
#[derive(Debug)]
pub(super) enum Reply {
    /// To a subscribe.
    Subscribed {
        id: Box<str>,
        /// What it says of `data.resume`.
        answer: Option<Box<Answer>>,
    },
    /// To an unsubscribe, with what it removed.
    Unsubscribed {
        id: Box<str>,
        removed: Vec<Box<str>>,
    },
    /// Any other.
    Frame(Frame),
}

impl Reply {
    fn bytes(&self) -> usize {
        match self {
            Self::Subscribed { id, answer } => {
                id.len() + answer.as_ref().map_or(0, |_| size_of::<Answer>())
            }
            Self::Unsubscribed { id, removed } => {
                let texts = removed
                    .iter()
                    .map(|text| text.len() + size_of::<Box<str>>());
                id.len() + texts.sum::<usize>()
            }
            Self::Frame(frame) => frame.len(),
        }
    }
}

#[derive(Debug)]
enum Entry {
    Waiting(Box<Waiting>),
    Suspended(Box<Suspended>),
    Ready(Reply),
    /// The subscribe or the command was taken out, and something is about to take its place.
    Taken,
}

impl Entry {
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Waiting(waiting) => waiting.bytes(),
                Self::Suspended(suspended) => suspended.bytes(),
                Self::Ready(reply) => reply.bytes(),
                Self::Taken => 0,
            }
    }

    fn wanted(&self) -> usize {
        match self {
            Self::Waiting(waiting) => waiting.wanted(),
            Self::Suspended(_) | Self::Ready(_) | Self::Taken => 0,
        }
    }

    fn leases(&self) -> usize {
        match self {
            Self::Waiting(waiting) => waiting.leases(),
            Self::Suspended(_) | Self::Ready(_) | Self::Taken => 0,
        }
    }
}

/// The held replies of one session, in the order of their commands. All operations cost O(1) unless they say otherwise.
#[derive(Debug, Default)]
pub(super) struct Replies {
    entries: VecDeque<Entry>,
    /// The numbers of the commands that wait for the authenticator, oldest first.
    suspended: VecDeque<u32>,
    /// The number of the first entry; numbers wrap.
    first: u32,
    bytes: usize,
    /// Client bindings that the waiting subscribes ask for; one that is asked for twice counts twice.
    wanted: usize,
    /// AMQP bindings that they hold; one that is held twice counts twice.
    leases: usize,
}

impl Replies {
    /// Heap bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number that the next entry will have.
    pub(super) fn next_number(&self) -> u32 {
        self.number_of(self.entries.len())
    }

    /// The number of the entry at a place.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "there is at most one entry more than HELD_REPLIES_MAX"
    )]
    fn number_of(&self, place: usize) -> u32 {
        self.first.wrapping_add(place as u32)
    }

    /// Client bindings that the waiting subscribes ask for.
    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }

    /// AMQP bindings that the waiting subscribes hold.
    pub(super) fn leases(&self) -> usize {
        self.leases
    }

    /// Whether the session holds more than it may. A single entry is never too much: other limits bound it.
    pub(super) fn is_over(&self) -> bool {
        let is_over = self.bytes > HELD_BYTES_MAX || self.entries.len() > HELD_REPLIES_MAX;
        is_over && self.entries.len() > 1
    }

    pub(super) fn push_waiting(&mut self, waiting: Waiting, totals: &mut HeldTotals) {
        self.push(Entry::Waiting(Box::new(waiting)), totals);
    }

    pub(super) fn push_suspended(&mut self, suspended: Suspended, totals: &mut HeldTotals) {
        self.suspended.push_back(self.next_number());
        self.push(Entry::Suspended(Box::new(suspended)), totals);
    }

    /// Whether a command waits for the authenticator.
    pub(super) fn is_suspended(&self) -> bool {
        !self.suspended.is_empty()
    }

    /// The number of the oldest command that waits for the authenticator.
    pub(super) fn first_suspended(&self) -> Option<u32> {
        self.suspended.front().copied()
    }

    /// Takes out the oldest command that waits for the authenticator, and tells its number. [`Replies::suspend_again`],
    /// [`Replies::put_back`] or [`Replies::settle`] must follow before anything else is asked.
    pub(super) fn take_suspended(
        &mut self,
        totals: &mut HeldTotals,
    ) -> Option<(u32, Box<Suspended>)> {
        let number = self.suspended.pop_front()?;
        match self.replace(number, Entry::Taken, totals)? {
            Entry::Suspended(suspended) => Some((number, suspended)),
            Entry::Waiting(_) | Entry::Ready(_) | Entry::Taken => None,
        }
    }

    /// Puts back the command that was taken out last: it waits again.
    pub(super) fn suspend_again(
        &mut self,
        number: u32,
        suspended: Box<Suspended>,
        totals: &mut HeldTotals,
    ) {
        self.suspended.push_front(number);
        self.replace(number, Entry::Suspended(suspended), totals);
    }

    /// Puts a reply behind the others; there must be one.
    pub(super) fn push_ready(&mut self, reply: Reply, totals: &mut HeldTotals) {
        debug_assert!(!self.entries.is_empty());
        self.push(Entry::Ready(reply), totals);
    }

    fn push(&mut self, entry: Entry, totals: &mut HeldTotals) {
        totals.replies += 1;
        self.count(&entry, totals);
        self.entries.push_back(entry);
    }

    /// The subscribe of this number, if it still waits.
    pub(super) fn waiting_mut(&mut self, number: u32) -> Option<&mut Waiting> {
        match self.entry_mut(number)? {
            Entry::Waiting(waiting) => Some(waiting),
            Entry::Suspended(_) | Entry::Ready(_) | Entry::Taken => None,
        }
    }

    /// Takes out the subscribe of this number, if it still waits. [`Replies::put_back`] or [`Replies::settle`] must
    /// follow before anything else is asked.
    pub(super) fn take(&mut self, number: u32, totals: &mut HeldTotals) -> Option<Box<Waiting>> {
        self.waiting_mut(number)?;
        match self.replace(number, Entry::Taken, totals)? {
            Entry::Waiting(waiting) => Some(waiting),
            Entry::Suspended(_) | Entry::Ready(_) | Entry::Taken => None,
        }
    }

    /// Puts a subscribe back that goes on waiting.
    pub(super) fn put_back(&mut self, number: u32, waiting: Box<Waiting>, totals: &mut HeldTotals) {
        self.replace(number, Entry::Waiting(waiting), totals);
    }

    /// Puts the reply in the place of the subscribe of this number.
    pub(super) fn settle(&mut self, number: u32, reply: Reply, totals: &mut HeldTotals) {
        self.replace(number, Entry::Ready(reply), totals);
    }

    /// Takes the oldest reply, if it is known.
    pub(super) fn pop_ready(&mut self, totals: &mut HeldTotals) -> Option<Reply> {
        if !matches!(self.entries.front(), Some(Entry::Ready(_))) {
            return None;
        }
        match self.pop(totals)? {
            Entry::Ready(reply) => Some(reply),
            Entry::Waiting(_) | Entry::Suspended(_) | Entry::Taken => None,
        }
    }

    /// Takes everything out, and returns the subscribes that waited, with their numbers. Linear in all entries.
    pub(super) fn clear(&mut self, totals: &mut HeldTotals) -> Vec<(u32, Waiting)> {
        let mut waiting = Vec::new();
        self.suspended = VecDeque::new();
        let mut number = self.first;
        while let Some(entry) = self.pop(totals) {
            if let Entry::Waiting(one) = entry {
                waiting.push((number, *one));
            }
            number = number.wrapping_add(1);
        }
        waiting
    }

    /// The number of the subscribe or command that has waited longest, and the time by which it is given up.
    pub(super) fn first_due(&self) -> Option<(u32, Duration)> {
        match self.entries.front()? {
            Entry::Waiting(waiting) => Some((self.first, waiting.due)),
            Entry::Suspended(suspended) => Some((self.first, suspended.due)),
            Entry::Ready(_) | Entry::Taken => None,
        }
    }

    /// The commands that have no answer yet, and by when each is given up. Linear in all entries.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = (CommandAction, Duration)> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Waiting(waiting) => Some((CommandAction::Subscribe, waiting.due)),
            Entry::Suspended(suspended) => Some((suspended.verb, suspended.due)),
            Entry::Ready(_) | Entry::Taken => None,
        })
    }

    /// The subscribes that wait, oldest first. Linear in all entries.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (u32, &Waiting)> {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(at, entry)| match entry {
            Entry::Waiting(waiting) => Some((self.number_of(at), &**waiting)),
            Entry::Suspended(_) | Entry::Ready(_) | Entry::Taken => None,
        })
    }

    fn entry_mut(&mut self, number: u32) -> Option<&mut Entry> {
        let at = number.wrapping_sub(self.first);
        self.entries.get_mut(at as usize)
    }

    fn replace(&mut self, number: u32, entry: Entry, totals: &mut HeldTotals) -> Option<Entry> {
        self.entry_mut(number)?;
        self.count(&entry, totals);
        let before = std::mem::replace(self.entry_mut(number)?, entry);
        self.uncount(&before, totals);
        Some(before)
    }

    fn pop(&mut self, totals: &mut HeldTotals) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.first = self.first.wrapping_add(1);
        totals.replies -= 1;
        self.uncount(&entry, totals);
        Some(entry)
    }

    fn count(&mut self, entry: &Entry, totals: &mut HeldTotals) {
        self.bytes += entry.bytes();
        totals.bytes += entry.bytes();
        self.wanted += entry.wanted();
        self.leases += entry.leases();
    }

    fn uncount(&mut self, entry: &Entry, totals: &mut HeldTotals) {
        self.bytes -= entry.bytes();
        totals.bytes -= entry.bytes();
        self.wanted -= entry.wanted();
        self.leases -= entry.leases();
    }
}
