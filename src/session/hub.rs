//! What all sessions share: rights, subscriptions, counts, bounds, deadlines; and the context in which one session acts.
//!
//! Pure, as a session is: commands for the source wait in [`Subscriptions`], and moments to come in [`Deadlines`], until the
//! loop takes them.

use std::time::Duration;

use crate::auth::Authenticator;
use crate::history::{History, Mark, STORED_END};
use crate::metrics::Metrics;
use crate::metrics::commands::{CommandAction, CommandResult};
use crate::protocol::frame::{Frame, FrameBuilder, Opcode};
use crate::routing::families::Families;

use super::arrivals::Arrivals;
use super::clock::{Now, WakingClock};
use super::compression::Compression;
use super::deadlines::Deadlines;
use super::figures::Figures;
use super::id::{ConnId, Peers};
use super::labels::Labels;
use super::limits::SessionLimits;
use super::liveness::PING_PAYLOAD;
use super::occupancy::Occupancy;
use super::outbox::OutboxTotals;
use super::partials::Partials;
use super::readiness::Readiness;
use super::replies::HeldTotals;
use super::resuming::Resumers;
use super::stored::StoredPast;
use super::subscriptions::Subscriptions;
use super::trace::Trace;
use super::waiting::Waiting;
use super::{Message, Session};

/// What a session needs to act: its name, what it shares with all others, and the moment of the turn.
#[derive(Debug)]
pub struct Context<'h> {
    /// The connection of the session.
    pub id: ConnId,
    /// What all sessions share.
    pub hub: &'h mut Hub,
    /// The moment of the turn.
    pub now: Now,
}

impl Context<'_> {
    /// Counts a command of which it is known now what became of it. `due`: when it would have been given up, which tells
    /// when it came.
    pub(super) fn count_command(
        &mut self,
        action: CommandAction,
        result: CommandResult,
        due: Duration,
    ) {
        let metrics = &mut self.hub.metrics;
        metrics.commands.count(action, result);
        if action == CommandAction::Subscribe && result != CommandResult::Abandoned {
            let came = self.hub.deadlines.command.begun(due);
            let took = self.now.clock.saturating_sub(came);
            metrics.timings.subscribe.record(took);
        }
    }
}

/// What an open session does with a complete message. Control frames and violations of the protocol never come here. The
/// function may close the session; what else has arrived is then not read. The server uses [`Session::on_command`]. The
/// echo server of the conformance suite (`tests/autobahn`) replaces this function, and nothing else.
pub type OnMessage = fn(&mut Session, Message<'_>, &mut Context<'_>);

/// What has been done, as far as the loop decides by it. Metrics are for the operator: the loop writes them and never
/// reads them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Frames of clients decoded in this turn, one for each read, and what inflating a message counts for beside its frames.
    /// The loop sets it back.
    pub frames_read: usize,
    /// A command was run, or a frame delivered, since the loop last set it back.
    pub is_busy: bool,
    /// Sessions opened, and sessions ended, ever: each leaves freed memory behind.
    pub comings_and_goings: u64,
}

/// What all sessions share.
#[derive(Debug)]
pub struct Hub {
    /// The operator's bounds.
    pub limits: SessionLimits,
    /// What sessions do with messages: [`Session::on_command`] in the server.
    pub on_message: OnMessage,
    /// Tokens and their rights.
    pub authenticator: Authenticator,
    /// What all sessions are subscribed to.
    pub subscriptions: Subscriptions,
    /// Whether new sessions are taken and events come.
    pub readiness: Readiness,
    /// What must happen by when.
    pub deadlines: Deadlines,
    /// What waits in full outboxes.
    pub outboxes: OutboxTotals,
    /// What the operator sees.
    pub metrics: Metrics,
    /// Sessions are being renewed after a reread: each is renewed before it runs its next command.
    pub is_renewing: bool,
    /// A family was stopped, and not every session has ended its subscriptions of it: each does so before it acts.
    pub is_ending_families: bool,
    /// When each connection came.
    pub arrivals: Arrivals,
    /// What sessions were sent and have lost.
    pub figures: Figures,
    /// Deflated events and messages.
    pub compression: Compression,
    /// Subscribes that wait, and the replies behind them.
    pub held: HeldTotals,
    /// Since the last pass of the sweep began, a session was found to have, or was given, a token that expires.
    pub tokens_expire: bool,
    /// The clock by which peers are silent and messages late; the loop advances it at the beginning of each turn.
    pub waking: WakingClock,
    /// The ping that all sessions share.
    pub(super) ping: Frame,
    /// The messages, frames and requests that have arrived in part.
    pub partials: Partials,
    /// What has been done, as far as the loop decides by it.
    pub work: Work,
    /// Scratch memory for replies.
    pub builder: FrameBuilder,
    /// The peers of all sessions.
    pub peers: Peers,
    /// How many connections each address and each account has.
    pub occupancy: Occupancy,
    /// The names and metadata of all sessions.
    pub labels: Labels,
    /// The looks under way.
    pub trace: Trace,
    /// The sessions that resume.
    pub resumers: Resumers,
    /// The events of the last minute.
    pub history: History,
    /// What the stream has of before.
    pub past: StoredPast,
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
            subscriptions: Subscriptions::new(families, now.unix(), limits.lingering()),
            readiness: Readiness::default(),
            deadlines: Deadlines::new(&limits),
            outboxes: OutboxTotals::default(),
            metrics: Metrics::default(),
            is_renewing: false,
            is_ending_families: false,
            arrivals: Arrivals::default(),
            figures: Figures::default(),
            compression: Compression::default(),
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
            trace: Trace::default(),
            resumers: Resumers::default(),
            past: StoredPast::default(),
            history: History::new(limits.history, Mark::from_random(seed), now),
            request_ids: RequestIds(seed),
            limits,
        }
    }

    /// There is a stream of the history. To be called before any event has come. Without a history there is none.
    pub fn take_stream(&mut self) {
        if self.history.is_on() {
            let options = self.limits.history;
            self.past.switch_on(options.bytes_max, options.overlap);
            self.history.stand_behind_the_stream();
            self.resumers.take_stream(STORED_END);
        }
    }

    /// Has the families of a subscribe kept in the stream, if there is one.
    pub(super) fn keep_in_stream(&mut self, waiting: &Waiting) {
        if self.past.is_on() {
            let families = self.subscriptions.families();
            for resolved in waiting.wanted.resolved(families) {
                self.past.keep(&resolved, families);
            }
        }
    }

    /// The context in which the session of the connection `id` acts, at `now`.
    pub fn context(&mut self, id: ConnId, now: Now) -> Context<'_> {
        Context { id, hub: self, now }
    }

    /// Moves subscriptions on when other months are in force, a step at a time.
    pub fn roll_months(&mut self, now: Now) {
        let ids = &mut self.request_ids;
        let random = || ids.generate()[0];
        self.subscriptions
            .roll_months(now, random, &mut self.metrics);
    }

    /// Any number; it may be predictable.
    pub fn random(&mut self) -> u64 {
        self.request_ids.next()
    }

    /// A new request id, for a reply to a command that had none.
    pub fn generate_request_id(&mut self) -> [u8; 16] {
        self.request_ids.generate()
    }
}

/// Generates request ids, which are distinct within a process and, for all practical purposes, between processes. They
/// name replies and protect nothing, so they may be predictable.
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
