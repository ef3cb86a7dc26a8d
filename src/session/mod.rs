//! One client's life, as a state machine that knows no socket and no clock. Bytes, deadlines and the news of the source
//! come in; frames for the peer gather in the outbox; the state says what the loop may do next.
//!
//! ```text
//! Handshake --upgrade--> Open --close frame queued--> Closing --flushed, and the peer is done--> Gone
//!     |                                                ^ ^  |
//!     +--refusal, probe: response queued---------------+ |  +--peer gone, or too slow to end--> Gone
//!     +--peer gone, or too slow--> Gone                  |
//! Admin --last answer flushed----------------------------+
//!     +--peer gone, too slow, or silent for too long--> Gone
//! ```
//!
//! Invariants:
//!
//! - A command runs when it arrives, unless the authenticator must be asked first (`suspending`). Replies leave in the order
//!   of their commands, except the reply to a ping; a reply behind a subscribe that waits for the broker is held
//!   ([`replies`]).
//! - A session that is not `Open` has no subscription.
//! - A connection counts for its address from the moment when that is known, and for its account from the moment when it
//!   has one, until its very end ([`Session::dissolve`]).
//! - An idle session owns no memory beyond itself.
//!
//! | module | owns |
//! |---|---|
//! | this | the types, the phases, and the questions that a session answers |
//! | `opening` | from the first byte to the upgrade: PROXY header, request, admission, refusal |
//! | `inbound` | what the peer sends: bytes, frames, commands |
//! | `delivery` | what goes to the peer: replies, events, notices; what follows a flush |
//! | `watch` | the check for a silent, dead or idle peer |
//! | `closing` | every way to end |
//! | `commands`, `errors` | what a command does, and why it is refused |
//! | `held`, `waiting`, [`replies`] | subscribes that wait for the broker, and the replies behind them |
//! | [`suspended`], `suspending` | commands that wait for the authenticator; how they wait and go on |
//! | [`switched_off`] | what a family that is stopped ends |
//! | [`listing`], [`arrivals`], [`figures`] | what is told of a session; when it came, what it got and lost |
//! | [`ranking`] | sorted listings, a page at a time |
//! | [`stored`] | the past that only the stream of the history has, and the subscribes that wait for it |
//! | `replay`, [`resuming`] | what a cursor brings, and how a replay ends; how far each session that resumes is |
//! | `resume` | whether the history has all that came after a cursor |
//! | `rights` | what another identity, or other rights, change |
//! | [`hub`] | what all sessions share, and the context in which one acts |
//! | [`subscriptions`], `roll_over` | subscriptions and their AMQP bindings; their move to other months |
//! | [`lingering`] | AMQP bindings that outlive their last user for a while |
//! | [`occupancy`], [`quota`] | connections counted by address, sessions by account |
//! | [`binding_quota`] | how many AMQP bindings a session, an account and the process may have |
//! | [`readiness`] | whether new sessions are taken, and events come |
//! | [`outbox`] | frames that wait for the peer |
//! | [`compression`], `shape` | deflated events and messages; what was agreed on with each session, and the style of its events |
//! | [`gather`], [`scratch`] | the bytes of a flush, and where frames with a request id are put together |
//! | [`labels`] | names and metadata |
//! | [`partials`] | how much of unfinished messages each connection keeps |
//! | [`liveness`], [`clock`] | who is silent, dead or idle; the moments by which that is decided |
//! | [`full`] | the answer when there is no room |
//! | [`admin`], `admin_connection` | a connection of the admin address, from request to answer; what it keeps |
//! | [`trace`], `telling` | what those who look are told; what a session tells them |
//! | [`limits`] | the bounds and choices of the operator |
//! | [`bucket`], [`deadlines`], [`close`], [`id`] | rate limit, deadlines, close reasons, names |

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::wildcard_enum_match_arm
    )
)]

pub mod admin;
mod admin_connection;
pub mod arrivals;
pub mod binding_quota;
pub mod bucket;
pub mod clock;
pub mod close;
mod closing;
mod commands;
pub mod compression;
pub mod deadlines;
pub mod delivery;
mod errors;
pub mod figures;
pub mod full;
pub mod gather;
mod held;
pub mod hub;
pub mod id;
mod inbound;
pub mod labels;
pub mod limits;
#[cfg(test)]
mod linear;
pub mod lingering;
pub mod listing;
pub mod liveness;
pub mod occupancy;
mod opening;
pub mod outbox;
pub mod partials;
pub mod quota;
pub mod ranking;
pub mod readiness;
mod replay;
pub mod replies;
mod resume;
pub mod resuming;
mod rights;
mod roll_over;
pub mod scratch;
mod shape;
pub mod stored;
pub mod subscriptions;
pub mod suspended;
mod suspending;
pub mod switched_off;
mod telling;
pub mod trace;
mod waiting;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

use crate::account::AccountId;
use crate::auth::Identity;
use crate::limits::{
    DEFLATED_READ_BYTES_MAX, HANDSHAKE_READ_BYTES_MAX, READ_BEHIND_FRAMES_MAX,
    SESSION_READ_BYTES_MAX,
};
use crate::protocol::codec::Codec;
use crate::protocol::proxy::Preamble;
use crate::routing::index::SubscriptionList;

use self::admin_connection::AdminConnection;
use self::bucket::Bucket;
use self::clock::{Now, Stamp};
use self::close::CloseReason;
use self::figures::LowFrames;
use self::id::KeptPeer;
use self::labels::Label;
use self::liveness::Liveness;
use self::occupancy::Place;
use self::outbox::Outbox;
use self::replies::Replies;
use self::shape::Shape;

/// The state of one connection.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    identity: Option<Arc<Identity>>,
    /// What waits for the peer. The loop flushes it.
    pub outbox: Outbox,
    bucket: Bucket,
    peer: KeptPeer,
    subscriptions: SubscriptionList,
    shape: Shape,
    place: Place,
    /// Frames queued for it since the upgrade: events, replies, notices, pings and pongs; not the frame that closes it.
    frames: LowFrames,
}

// Each idle session pays for this size. The count of frames fills what would be padding.
const _: () = assert!(size_of::<Session>() == 56);

#[derive(Debug)]
enum Phase {
    /// Before the upgrade. `head`: what has arrived of a request, if that is a part of one.
    Handshake {
        preamble: Preamble,
        /// When the connection was accepted.
        came: Stamp,
        head: Option<Box<Head>>,
    },
    /// Of the admin address.
    Admin(Box<AdminConnection>),
    /// Upgraded. `rare` exists only while it holds something.
    Open {
        rare: Option<Box<RareState>>,
        life: Liveness,
    },
    /// The outbox ends with the last frame that will be sent; input is read and thrown away.
    Closing {
        reason: CloseReason,
        was_open: bool,
        peer: PeerSide,
    },
    /// At its end, to be taken from the table of connections.
    Gone { reason: CloseReason, was_open: bool },
}

// Each idle session pays for this size. The liveness, and the stamp of a handshake, fill what would be padding.
const _: () = assert!(size_of::<Phase>() == 16);

/// What a closing session still waits for from its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerSide {
    /// The peer has not closed. After the flush our side of the stream is ended, and the peer has time to read it.
    Open,
    /// Our side of the stream is ended.
    Told,
    /// The peer has closed, or sent its close frame: after the flush nothing is left to do.
    Done,
}

/// The kind of listener that a connection came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// The websocket port.
    Clients,
    /// The websocket port on which TLS is spoken.
    TlsClients,
    /// The admin address.
    Admin,
    /// The admin socket in a folder, where the permissions of the file are the right to ask.
    AdminSocket,
}

impl ListenerKind {
    /// Whether clients come by it.
    #[must_use]
    pub fn is_of_clients(self) -> bool {
        match self {
            Self::Clients | Self::TlsClients => true,
            Self::Admin | Self::AdminSocket => false,
        }
    }
}

/// A request's head, or the PROXY header before it, that arrived in part; at most [`HEAD_BYTES_MAX`](crate::protocol::http::HEAD_BYTES_MAX)
/// and one read.
#[derive(Debug)]
struct Head {
    bytes: Vec<u8>,
    /// The request is whole, and the authenticator has to say whether its token is good.
    awaits_answer: bool,
}

/// What only some sessions have, and none for long: a box that an idle session does not pay for.
#[derive(Debug, Default)]
struct RareState {
    /// The part of a message or frame that has arrived; idle when there is none.
    codec: Codec,
    /// `data.name` and `data.metadata`.
    label: Option<Box<Label>>,
    /// Subscribes that wait for the broker, and the replies behind them.
    replies: Replies,
    /// Commands that the rate limit has refused since the last one that it let pass.
    refused_in_a_row: u16,
}

impl RareState {
    fn is_empty(&self) -> bool {
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
    /// Whether the connection is one too many of its address, and is kept only to be told so.
    #[must_use]
    pub fn is_surplus(&self) -> bool {
        self.place == Place::Surplus
    }

    /// Whether the handshake is not finished.
    #[must_use]
    pub fn is_in_handshake(&self) -> bool {
        matches!(self.phase, Phase::Handshake { .. })
    }

    /// Whether the request of a client, or the PROXY header before it, has not arrived whole.
    #[must_use]
    pub fn awaits_request(&self) -> bool {
        self.is_in_handshake()
    }

    /// Whether the session is upgraded and not closing.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open { .. })
    }

    /// Whether permessage-deflate was agreed on with it (RFC 7692).
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        self.shape.is_deflated()
    }

    /// Whether so many bytes may be sent to it as one deflated message (RFC 7692).
    #[must_use]
    #[inline]
    pub fn takes_deflated(&self, bytes: usize) -> bool {
        self.shape.takes_deflated(bytes)
    }

    /// Whether the session is being closed and has not ended.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }

    /// Whether the drain closes the session and its peer still takes what waits for it: the peer took some of it within
    /// `patience`.
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

    /// Whether the session is upgraded and has no identity.
    #[must_use]
    pub fn awaits_authentication(&self) -> bool {
        self.is_open() && self.has_no_proof()
    }

    /// Why the session ended, and whether it ever was upgraded. `None`: it has not ended.
    #[must_use]
    pub fn ended(&self) -> Option<(CloseReason, bool)> {
        match self.phase {
            Phase::Gone { reason, was_open } => Some((reason, was_open)),
            Phase::Handshake { .. }
            | Phase::Admin(_)
            | Phase::Open { .. }
            | Phase::Closing { .. } => None,
        }
    }

    /// Whether the loop should read the socket. False while more frames wait than one write takes, because what the peer
    /// sends may be answered with more of them.
    #[must_use]
    pub fn wants_bytes(&self) -> bool {
        match &self.phase {
            Phase::Open { .. } => self.outbox.frames() <= READ_BEHIND_FRAMES_MAX,
            Phase::Handshake { .. } => !self.awaits_answer(),
            Phase::Admin(admin) => self.admin_wants_bytes(admin),
            Phase::Closing { .. } => true,
            Phase::Gone { .. } => false,
        }
    }

    /// How many bytes one read should take at most: what is missing of a frame; otherwise little, so that the answers to
    /// one read are few.
    #[must_use]
    pub fn read_bytes_max(&self) -> usize {
        match &self.phase {
            Phase::Open { rare, .. } => {
                let awaited = rare.as_ref().map_or(0, |rare| rare.codec.awaited_bytes());
                awaited.max(if self.shape.is_deflated() {
                    DEFLATED_READ_BYTES_MAX
                } else {
                    SESSION_READ_BYTES_MAX
                })
            }
            Phase::Handshake { .. } | Phase::Admin(_) => HANDSHAKE_READ_BYTES_MAX,
            Phase::Closing { .. } | Phase::Gone { .. } => usize::MAX,
        }
    }

    /// Whether a subscribe of the session waits for the broker, or a command for the authenticator.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waits_until().is_some()
    }

    /// By when the oldest of them is given up.
    #[must_use]
    pub fn waits_until(&self) -> Option<Duration> {
        let (_, due) = self.replies()?.first_due()?;
        Some(due)
    }

    /// Whether a whole upgrade request waits for the authenticator.
    fn awaits_answer(&self) -> bool {
        matches!(&self.phase, Phase::Handshake { head: Some(head), .. } if head.awaits_answer)
    }

    /// Whether no token of the session has been verified.
    fn has_no_proof(&self) -> bool {
        self.identity
            .as_ref()
            .is_none_or(|identity| !identity.is_proven())
    }

    fn rare(&self) -> Option<&RareState> {
        match &self.phase {
            Phase::Open { rare, .. } => rare.as_deref(),
            Phase::Handshake { .. }
            | Phase::Admin(_)
            | Phase::Closing { .. }
            | Phase::Gone { .. } => None,
        }
    }

    fn replies(&self) -> Option<&Replies> {
        Some(&self.rare()?.replies)
    }

    fn replies_mut(&mut self) -> Option<&mut Replies> {
        match &mut self.phase {
            Phase::Open { rare, .. } => Some(&mut rare.as_deref_mut()?.replies),
            Phase::Handshake { .. }
            | Phase::Admin(_)
            | Phase::Closing { .. }
            | Phase::Gone { .. } => None,
        }
    }

    /// The account of the session's identity.
    #[must_use]
    pub fn account(&self) -> Option<AccountId> {
        self.identity.as_ref()?.account_id()
    }

    /// The subscriptions of the session, as the index knows them.
    #[must_use]
    pub fn subscriptions(&self) -> &SubscriptionList {
        &self.subscriptions
    }

    /// When the identity of the session expires, in Unix seconds.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.identity.as_ref()?.expires()
    }

    /// The name and the metadata that the client has given (PROTOCOL 3), for the session listings.
    #[must_use]
    pub fn name_and_metadata(&self) -> (Option<&str>, Option<&RawValue>) {
        let label = self.rare().and_then(|rare| rare.label.as_ref());
        label.map_or((None, None), |label| {
            (label.name.as_deref(), label.metadata.as_deref())
        })
    }

    /// Heap bytes of the message, frame or request that has arrived in part.
    #[must_use]
    pub fn partial_bytes(&self) -> usize {
        match &self.phase {
            Phase::Open {
                rare: Some(rare), ..
            } => rare.codec.heap_bytes(),
            Phase::Handshake {
                head: Some(head), ..
            } => size_of::<Head>() + head.bytes.capacity(),
            Phase::Handshake { head: None, .. }
            | Phase::Admin(_)
            | Phase::Open { rare: None, .. }
            | Phase::Closing { .. }
            | Phase::Gone { .. } => 0,
        }
    }

    fn rare_mut(&mut self) -> Option<&mut RareState> {
        match &mut self.phase {
            Phase::Open { rare, .. } => Some(rare.get_or_insert_default()),
            Phase::Handshake { .. }
            | Phase::Admin(_)
            | Phase::Closing { .. }
            | Phase::Gone { .. } => None,
        }
    }

    fn drop_empty_rare(&mut self) {
        if let Phase::Open { rare, .. } = &mut self.phase
            && rare.as_ref().is_some_and(|rare| rare.is_empty())
        {
            *rare = None;
        }
    }
}
