//! What all sessions share: who may do what, who wants what, what the broker has been asked for, and the bounds.
//!
//! Pure, as a session is: what it wants of the source and of the clock it leaves in [`Subscriptions`] and [`Deadlines`],
//! and the loop carries it out.

use std::time::Duration;

use crate::auth::Authenticator;
use crate::limits::LINGER;
use crate::metrics::Metrics;
use crate::protocol::frame::{Frame, FrameBuilder, Opcode};
use crate::protocol::http::HttpError;
use crate::routing::families::Families;

use super::clock::{Now, WakingClock};
use super::deadlines::{Deadlines, Timeouts};
use super::id::{ConnId, Peers};
use super::labels::Labels;
use super::limits::SessionLimits;
use super::liveness::PING_PAYLOAD;
use super::occupancy::Occupancy;
use super::outbox::OutboxTotals;
use super::partials::Partials;
use super::replies::HeldTotals;
use super::subscriptions::Subscriptions;
use super::{Message, Session};

/// Whether the event source is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// Never yet.
    Starting,
    /// Every binding that is said to be in force is.
    Up,
    /// Away; events may be lost since then.
    Away {
        /// On the loop's clock.
        since: Duration,
    },
}

/// Whether new sessions are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// They are.
    Open,
    /// They are, for those who come all the same, but balancers are to send nobody any more: the process is about
    /// to end.
    Leaving,
    /// They are refused: every session is being closed.
    Draining,
}

/// What a session acts in: its name, the moment of the turn, and what it shares with all others.
#[derive(Debug)]
pub struct Context<'h> {
    /// Which connection the session is of.
    pub id: ConnId,
    /// What all sessions share.
    pub hub: &'h mut Hub,
    /// The moment of the turn.
    pub now: Now,
}

/// What an open session does with a complete message; control frames and violations never come here. It may close
/// the session, which ends the reading of what else arrived. The server has one, [`Session::on_command`]; the echo
/// server of the conformance suite (`tests/autobahn`) brings its own, and all else there is the server's.
pub type OnMessage = fn(&mut Session, Message<'_>, &mut Context<'_>);

/// What has been done, as far as the loop decides by it: metrics are for the operator, and decide nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Frames of clients decoded in this turn, and one for each read; the loop begins it anew.
    pub frames_read: usize,
    /// A command was run, or a frame delivered, in this turn; the loop takes it back.
    pub is_busy: bool,
    /// Sessions that have come, and sessions that have gone, ever: each leaves freed memory behind.
    pub comings_and_goings: u64,
}

/// Everything that sessions share.
#[derive(Debug)]
pub struct Hub {
    /// The operator's bounds.
    pub limits: SessionLimits,
    /// What sessions do with messages: [`Session::on_command`].
    pub on_message: OnMessage,
    /// Who may do what.
    pub authenticator: Authenticator,
    /// What all sessions are subscribed to.
    pub subscriptions: Subscriptions,
    /// Whether events come.
    pub source: SourceState,
    /// Whether sessions are taken.
    pub admission: Admission,
    /// What must happen by when.
    pub deadlines: Deadlines,
    /// What waits in full outboxes.
    pub outboxes: OutboxTotals,
    /// What happened.
    pub metrics: Metrics,
    /// Sessions are being renewed after a reread: one that has not been yet is, before it runs a command.
    pub is_renewing: bool,
    /// What is held back behind subscribes that wait.
    pub held: HeldTotals,
    /// A session has, or has come by since the sweep's last pass began, a token that expires.
    pub tokens_expire: bool,
    /// The clock of silent peers and unfinished messages; the loop advances it at the beginning of each turn.
    pub waking: WakingClock,
    /// The ping that all sessions share.
    pub ping: Frame,
    /// What has arrived in part of messages, frames and requests.
    pub partials: Partials,
    /// What has been done, as far as the loop decides by it.
    pub work: Work,
    /// Scratch for replies.
    pub builder: FrameBuilder,
    /// The peers of all sessions.
    pub peers: Peers,
    /// How many connections each address and each account has.
    pub occupancy: Occupancy,
    /// Names and metadata of all sessions.
    pub labels: Labels,
    request_ids: RequestIds,
}

impl Hub {
    /// A hub without sessions. `seed` makes the generated request ids of two processes differ.
    #[must_use]
    pub fn new(
        limits: SessionLimits,
        authenticator: Authenticator,
        families: Families,
        now: Now,
        seed: u64,
    ) -> Self {
        Self {
            on_message: Session::on_command,
            authenticator,
            subscriptions: Subscriptions::new(families, now.unix),
            source: SourceState::Starting,
            admission: Admission::Open,
            deadlines: Deadlines {
                handshake: Timeouts::new(limits.request_timeout),
                auth: Timeouts::new(limits.auth_timeout),
                command: Timeouts::new(limits.request_timeout),
                send: Timeouts::new(limits.send_timeout / 4),
                close: Timeouts::new(limits.send_timeout),
                answered: Timeouts::new(LINGER),
            },
            outboxes: OutboxTotals::default(),
            metrics: Metrics::default(),
            is_renewing: false,
            held: HeldTotals::default(),
            tokens_expire: false,
            waking: WakingClock::default(),
            ping: Frame::new(Opcode::Ping, PING_PAYLOAD),
            partials: Partials::new(limits.partials_bytes_max, limits.codec.message_bytes_max),
            work: Work::default(),
            builder: FrameBuilder::new(),
            peers: Peers::default(),
            occupancy: Occupancy::new(&limits),
            labels: Labels::default(),
            request_ids: RequestIds(seed),
            limits,
        }
    }

    /// What the session of the connection `id` acts in, in the turn of `now`.
    pub fn context(&mut self, id: ConnId, now: Now) -> Context<'_> {
        Context { id, hub: self, now }
    }

    /// Why balancers are to send nobody here; `None`: sessions are taken and events come.
    #[must_use]
    pub fn unready(&self) -> Option<HttpError> {
        match (self.admission, self.source) {
            (Admission::Leaving | Admission::Draining, _) => Some(HttpError::Draining),
            (Admission::Open, SourceState::Up) => None,
            (Admission::Open, SourceState::Starting | SourceState::Away { .. }) => {
                Some(HttpError::SourceDown)
            }
        }
    }

    /// Follows the months, a step at a time.
    pub fn roll_months(&mut self, now: Now) {
        let ids = &mut self.request_ids;
        let random = || ids.generate()[0];
        self.subscriptions
            .roll_months(now, random, &mut self.metrics);
    }

    /// A fresh request id for a reply whose command had none.
    pub fn generate_request_id(&mut self) -> [u8; 16] {
        self.request_ids.generate()
    }
}

/// Generates request ids: distinct within a process, and as good as distinct between processes. They name
/// replies and protect nothing, so they need not be unpredictable.
#[derive(Debug)]
struct RequestIds(u64);

impl RequestIds {
    fn generate(&mut self) -> [u8; 16] {
        let mut id = [0; 16];
        for half in id.chunks_exact_mut(8) {
            half.copy_from_slice(&self.next().to_be_bytes());
        }
        id
    }

    /// SplitMix64: a Weyl sequence through a bijective mixer, so no output repeats within 2^64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
