//! What all sessions share: who may do what, who wants what, what the broker has been asked for, and the bounds.
//!
//! Pure, as a session is: what it wants of the source it leaves in [`Hub::to_source`], what it wants of the clock
//! in [`Hub::deadlines`]; the loop carries both out.
//!
//! Invariant: every AMQP binding is acquired once for each subscription in the index and once for each lease of a
//! subscribe that waits, so that no session's end takes away what another needs.

use std::net::IpAddr;
use std::time::Duration;

use crate::account::AccountId;
use crate::auth::Authenticator;
use crate::handoff::ToSource;
use crate::limits::LINGER;
use crate::metrics::Metrics;
use crate::protocol::frame::{Frame, FrameBuilder, Opcode};
use crate::protocol::handshake::Refusal;
use crate::routing::amqp_binding::AmqpBinding;
use crate::routing::broker_bindings::{Acquired, Ask, BrokerBindings};
use crate::routing::families::Families;
use crate::routing::index::SubscriptionIndex;
use crate::routing::month::{ActiveMonths, FollowedMonths};

use super::clock::{Now, WakingClock};
use super::deadlines::{Deadlines, Timeouts};
use super::id::{ConnId, Peers};
use super::labels::Labels;
use super::limits::SessionLimits;
use super::liveness::PING_PAYLOAD;
use super::outbox::OutboxTotals;
use super::partials::Partials;
use super::places::Places;
use super::replies::HeldTotals;
use super::roll_over::RollOver;
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

/// Everything that sessions share.
#[derive(Debug)]
pub struct Hub {
    /// The operator's bounds.
    pub limits: SessionLimits,
    /// What sessions do with messages: [`Session::on_command`].
    pub on_message: OnMessage,
    /// Who may do what.
    pub authenticator: Authenticator,
    /// What client bindings mean.
    pub families: Families,
    /// AMQP bindings that one subscription can have, at most.
    pub(super) bindings_of_one_max: usize,
    /// Who wants what.
    pub index: SubscriptionIndex,
    /// What the broker has been asked for.
    pub broker: BrokerBindings,
    /// The months whose databases are followed.
    pub months: FollowedMonths,
    /// The way from the months before to those of now; `None`: nobody is behind.
    pub(super) roll_over: Option<RollOver>,
    /// Whether events come.
    pub source: SourceState,
    /// Whether sessions are taken.
    pub admission: Admission,
    /// What must happen by when.
    pub deadlines: Deadlines,
    /// What waits in full outboxes.
    pub totals: OutboxTotals,
    /// What happened.
    pub metrics: Metrics,
    /// Commands for the source, in order; the loop hands them over and empties this each turn.
    pub to_source: Vec<ToSource>,
    /// Bindings of subscriptions that go on under another realm and are not in force yet: their events may be missed
    /// until they are. The loop takes them, and tells the sessions once they are.
    pub dark: Vec<AmqpBinding>,
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
    /// Heap bytes of all messages, frames and requests that have arrived in part: the sum of the sessions'
    /// [`Session::partial_bytes`].
    pub partial_bytes: usize,
    /// Whose they are.
    pub partials: Partials,
    /// Frames of clients decoded in this turn, and one for each read; the loop begins it anew.
    pub frames_read: usize,
    /// Scratch for replies.
    pub builder: FrameBuilder,
    /// The peers of all sessions.
    pub peers: Peers,
    /// Connections of each IP ([`super::id::Peer::network`]; `max_connections_per_ip`), from the moment it is known.
    pub ips: Places<IpAddr>,
    /// Connections that are one too many of their IP, and kept until they are told.
    pub surplus: usize,
    /// Sessions of each account, by the own account of the identity that they run as or were closed as
    /// (`max_connections_per_account`).
    pub accounts: Places<AccountId>,
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
            bindings_of_one_max: families.amqp_binding_count_max(),
            families,
            index: SubscriptionIndex::new(),
            broker: BrokerBindings::new(),
            months: FollowedMonths::new(ActiveMonths::at(now.unix)),
            roll_over: None,
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
            totals: OutboxTotals::default(),
            metrics: Metrics::default(),
            to_source: Vec::new(),
            dark: Vec::new(),
            is_renewing: false,
            held: HeldTotals::default(),
            tokens_expire: false,
            waking: WakingClock::default(),
            ping: Frame::new(Opcode::Ping, PING_PAYLOAD),
            partial_bytes: 0,
            partials: Partials::new(limits.partials_bytes_max, limits.codec.message_bytes_max),
            frames_read: 0,
            builder: FrameBuilder::new(),
            peers: Peers::default(),
            ips: Places::new(limits.connections_per_ip_max),
            surplus: 0,
            accounts: Places::new(limits.connections_per_account_max),
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
    pub fn unready(&self) -> Option<Refusal> {
        match (self.admission, self.source) {
            (Admission::Leaving | Admission::Draining, _) => Some(Refusal::Draining),
            (Admission::Open, SourceState::Up) => None,
            (Admission::Open, SourceState::Starting | SourceState::Away { .. }) => {
                Some(Refusal::SourceDown)
            }
        }
    }

    /// Counts one more user of a binding, of `account`, and asks the source for it when it is the first.
    pub fn acquire(&mut self, binding: &AmqpBinding, account: Option<AccountId>) -> Acquired {
        self.acquire_for(binding, 1, account)
    }

    /// As [`Hub::acquire`], for so many users.
    pub fn acquire_for(
        &mut self,
        binding: &AmqpBinding,
        users: u32,
        account: Option<AccountId>,
    ) -> Acquired {
        let acquired = self.broker.acquire(binding, users, account);
        let binding = || binding.clone();
        self.to_source.extend(acquired.ask.map(|ask| match ask {
            Ask::Bind(ticket, account) => ToSource::Bind {
                binding: binding(),
                ticket,
                account,
            },
            Ask::Join(account) => ToSource::Join {
                binding: binding(),
                account,
            },
        }));
        acquired
    }

    /// Counts one user less and tells the source when it was the last.
    pub fn release(&mut self, binding: &AmqpBinding) {
        self.release_for(binding, 1);
    }

    /// As [`Hub::release`], for so many users.
    pub fn release_for(&mut self, binding: &AmqpBinding, users: u32) {
        if self.broker.release(binding, users) {
            self.to_source.push(ToSource::Unbind(binding.clone()));
        }
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
