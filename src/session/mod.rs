//! One client's life, as a state machine that knows no socket and no clock: bytes, deadlines and the source's
//! news come in; frames for its peer gather in its outbox, and its state tells the loop what it may do next.
//!
//! ```text
//! Handshake --upgrade--> Open --close frame queued--> Closing --flushed, and the peer is done--> Gone
//!     |                                                  ^  |
//!     +--refusal, probe, admin page: response queued-----+  +--peer gone, or too slow to end--> Gone
//!     +--peer gone, or too slow--> Gone
//! ```
//!
//! Invariants: commands run when they arrive; their replies leave in the same order, but for a ping's, and those
//! behind a subscribe that waits for the broker are held ([`replies`]); a session that is not `Open` has no
//! subscription; a connection counts for its address from the moment that is known, and for its account from the moment
//! it has one, to its very end ([`Session::dissolve`]); an idle session owns no memory beyond itself.
//!
//! | module | owns |
//! |---|---|
//! | this | the types, the phases, and what can be asked of a session |
//! | `opening` | the PROXY header, the head, admission, the refusal |
//! | `inbound` | bytes, frames and commands |
//! | `delivery` | replies, events and notices, and what follows a flush |
//! | `watch` | what the sweep does with a session |
//! | `closing` | every way to end |
//! | `commands` | what a command does |
//! | `rights` | what another identity, or other rights, change |
//! | [`replies`] | replies that wait for those before them |
//! | [`hub`] | what all sessions share |
//! | `roll_over` | subscriptions moving on to other months |
//! | [`outbox`] | frames waiting for the peer |
//! | [`places`] | sessions counted by IP and by account |
//! | [`labels`] | what clients call themselves |
//! | [`partials`] | who keeps how much of what has arrived in part |
//! | [`liveness`] | who is silent, dead or idle |
//! | [`bucket`], [`deadlines`], [`close`], [`id`] | rate limit, timeouts, close reasons, names |

pub mod admin;
pub mod binding_quota;
pub mod bucket;
pub mod clock;
pub mod close;
mod closing;
mod commands;
pub mod deadlines;
pub mod delivery;
mod errors;
pub mod full;
mod held;
pub mod hub;
pub mod id;
mod inbound;
pub mod labels;
pub mod limits;
#[cfg(test)]
mod linear;
pub mod liveness;
pub mod occupancy;
mod opening;
pub mod outbox;
pub mod partials;
pub mod quota;
pub mod replies;
mod rights;
mod roll_over;
pub mod subscriptions;
mod waiting;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

use crate::auth::Identity;
use crate::event::Style;
use crate::limits::{HANDSHAKE_READ_BYTES, SESSION_READ_BYTES, UNREAD_BEHIND_FRAMES};
use crate::protocol::codec::Codec;
use crate::protocol::proxy::Preamble;
use crate::routing::index::SubscriptionList;

use self::bucket::Bucket;
use self::clock::Now;
use self::close::CloseReason;
use self::id::KeptPeer;
use self::labels::Label;
use self::liveness::Liveness;
use self::occupancy::Place;
use self::outbox::Outbox;
use self::replies::Replies;

/// One connection's state.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    identity: Option<Arc<Identity>>,
    /// What waits for the peer; the loop flushes it.
    pub outbox: Outbox,
    bucket: Bucket,
    peer: KeptPeer,
    subscriptions: SubscriptionList,
    style: Style,
    place: Place,
}

#[derive(Debug)]
enum Phase {
    /// Gathering a request's head; `None` until a part of one has arrived.
    Handshake {
        door: Door,
        preamble: Preamble,
        head: Option<Box<Head>>,
    },
    /// Upgraded. `extra` is there only while it holds something.
    Open {
        extra: Option<Box<Extra>>,
        life: Liveness,
    },
    /// The outbox ends with the last thing that will be said; input is read and thrown away.
    Closing {
        reason: CloseReason,
        was_open: bool,
        peer: PeerSide,
    },
    /// To be taken from the table.
    Gone { reason: CloseReason, was_open: bool },
}

// An idle session pays for it; the liveness lies in what would be padding.
const _: () = assert!(size_of::<Phase>() == 16);

/// What a closing session still expects of its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerSide {
    /// It has not closed: after the flush it is told the end, and given time to read it.
    Open,
    /// It was told, by the end of our side of the stream.
    Told,
    /// It has closed, or sent its close frame: once flushed, all is done.
    Done,
}

/// Which listener a connection came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The websocket port.
    Clients,
    /// The admin listener.
    Admin,
}

/// A request's head, or the PROXY header before it, that arrived in part; at most [`HEAD_BYTES_MAX`](crate::protocol::http::HEAD_BYTES_MAX)
/// and one read.
#[derive(Debug)]
struct Head(Vec<u8>);

/// What only some sessions have.
#[derive(Debug, Default)]
struct Extra {
    /// What of a message or frame has arrived in part; idle when nothing has.
    codec: Codec,
    /// `data.name` and `data.metadata`.
    label: Option<Box<Label>>,
    /// Subscribes that wait for the broker, and replies behind them.
    replies: Replies,
    /// Commands refused by the rate limit since the last that was not.
    refused_in_a_row: u16,
}

impl Extra {
    fn is_needless(&self) -> bool {
        self.codec.is_idle()
            && self.label.is_none()
            && self.replies.is_empty()
            && self.refused_in_a_row == 0
    }
}

/// A complete message of an open session.
#[derive(Clone, Copy)]
pub enum Message<'a> {
    /// A text message, valid UTF-8.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
}

impl Session {
    /// Whether its address has as many connections as it may, and it is kept only to be told so.
    #[must_use]
    pub fn is_surplus(&self) -> bool {
        self.place == Place::Surplus
    }

    /// Whether it still has to finish its handshake.
    #[must_use]
    pub fn is_in_handshake(&self) -> bool {
        matches!(self.phase, Phase::Handshake { .. })
    }

    /// Whether a client's request, or the PROXY header before it, is still to come.
    #[must_use]
    pub fn awaits_request(&self) -> bool {
        matches!(
            self.phase,
            Phase::Handshake {
                door: Door::Clients,
                ..
            }
        )
    }

    /// Whether it is upgraded and not closing.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open { .. })
    }

    /// Whether it is being closed, its last bytes not yet taken.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }

    /// Whether it is closed by the drain and its peer still takes what waited for it: it took some within `patience`.
    #[must_use]
    pub fn is_taking_leave(&self, patience: Duration, now: Now) -> bool {
        let progress_at = self.outbox.progress_at();
        matches!(
            self.phase,
            Phase::Closing {
                reason: CloseReason::Drain,
                ..
            }
        ) && progress_at.is_some_and(|at| now.clock.saturating_sub(at) < patience)
    }

    /// Whether it is upgraded and has not authenticated.
    #[must_use]
    pub fn awaits_authentication(&self) -> bool {
        self.is_open() && self.identity.is_none()
    }

    /// Why it ended and whether it ever was upgraded, once it has ended.
    #[must_use]
    pub fn is_gone(&self) -> Option<(CloseReason, bool)> {
        match self.phase {
            Phase::Gone { reason, was_open } => Some((reason, was_open)),
            Phase::Handshake { .. } | Phase::Open { .. } | Phase::Closing { .. } => None,
        }
    }

    /// Whether the loop should read it: false while more frames wait for it than one write takes, for what it sends
    /// may be answered with more.
    #[must_use]
    pub fn wants_bytes(&self) -> bool {
        match &self.phase {
            Phase::Open { .. } => self.outbox.frames() <= UNREAD_BEHIND_FRAMES,
            Phase::Handshake { .. } | Phase::Closing { .. } => true,
            Phase::Gone { .. } => false,
        }
    }

    /// Bytes that the loop should read of it at once: what is missing of a frame, else little, so that the answers to one
    /// read are few.
    #[must_use]
    pub fn read_bytes_max(&self) -> usize {
        match &self.phase {
            Phase::Open { extra, .. } => extra
                .as_ref()
                .map_or(0, |extra| extra.codec.awaited_bytes())
                .max(SESSION_READ_BYTES),
            Phase::Handshake { .. } => HANDSHAKE_READ_BYTES,
            Phase::Closing { .. } | Phase::Gone { .. } => usize::MAX,
        }
    }

    /// Whether a subscribe of it waits for the broker.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waits_until().is_some()
    }

    /// When the wait of its oldest subscribe that waits is over.
    #[must_use]
    pub fn waits_until(&self) -> Option<Duration> {
        let (_, due) = self.replies()?.first_due()?;
        Some(due)
    }

    fn replies(&self) -> Option<&Replies> {
        match &self.phase {
            Phase::Open {
                extra: Some(extra), ..
            } => Some(&extra.replies),
            _ => None,
        }
    }

    fn replies_mut(&mut self) -> Option<&mut Replies> {
        match &mut self.phase {
            Phase::Open {
                extra: Some(extra), ..
            } => Some(&mut extra.replies),
            _ => None,
        }
    }

    /// Its subscriptions, as the index knows them.
    #[must_use]
    pub fn subscriptions(&self) -> &SubscriptionList {
        &self.subscriptions
    }

    /// When its identity expires, in Unix seconds.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.identity.as_ref()?.expires()
    }

    /// Its optional label and JSON value (PROTOCOL 3), for the session listings.
    #[must_use]
    pub fn name_and_metadata(&self) -> (Option<&str>, Option<&RawValue>) {
        match &self.phase {
            Phase::Open {
                extra: Some(extra), ..
            } => match &extra.label {
                Some(label) => (label.name.as_deref(), label.metadata.as_deref()),
                None => (None, None),
            },
            _ => (None, None),
        }
    }

    /// Heap bytes of its message, frame or request that has arrived in part.
    #[must_use]
    pub fn partial_bytes(&self) -> usize {
        match &self.phase {
            Phase::Open {
                extra: Some(extra), ..
            } => extra.codec.heap_bytes(),
            Phase::Handshake {
                head: Some(head), ..
            } => size_of::<Head>() + head.0.capacity(),
            Phase::Handshake { head: None, .. }
            | Phase::Open { extra: None, .. }
            | Phase::Closing { .. }
            | Phase::Gone { .. } => 0,
        }
    }

    fn extra_mut(&mut self) -> Option<&mut Extra> {
        match &mut self.phase {
            Phase::Open { extra, .. } => Some(extra.get_or_insert_default()),
            Phase::Handshake { .. } | Phase::Closing { .. } | Phase::Gone { .. } => None,
        }
    }

    fn drop_needless_extra(&mut self) {
        if let Phase::Open { extra, .. } = &mut self.phase
            && extra.as_ref().is_some_and(|extra| extra.is_needless())
        {
            *extra = None;
        }
    }
}
