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
//! | this | phases, bytes in, events out, closing |
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

pub mod binding_quota;
pub mod bucket;
pub mod close;
mod commands;
pub mod deadlines;
pub mod hub;
pub mod id;
pub mod labels;
#[cfg(test)]
mod linear;
pub mod liveness;
pub mod outbox;
pub mod partials;
pub mod places;
pub mod replies;
mod rights;
mod roll_over;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

use crate::auth::{Identity, Verdict};
use crate::config::SlowConsumerPolicy;
use crate::event::Style;
use crate::limits::{
    HANDSHAKE_READ_BYTES, PONGS_PER_READ, SESSION_READ_BYTES, SURPLUS_MAX, UNREAD_BEHIND_FRAMES,
};
use crate::metrics::Metrics;
use crate::protocol::codec::{Codec, Item};
use crate::protocol::forwarded;
use crate::protocol::frame::{Frame, FrameBuilder, Opcode};
use crate::protocol::handshake::{self, Request, Upgrade};
use crate::protocol::http::{self, Parsed, PlainRequest, Refusal, Refused};
use crate::protocol::proxy::{self, Preamble};
use crate::protocol::reply;
use crate::routing::amqp_binding::AmqpBinding;
use crate::routing::index::SubscriptionList;

use self::bucket::Bucket;
use self::close::CloseReason;
use self::hub::{Admission, Hub, Now};
use self::id::{ConnId, KeptPeer, Peer};
use self::labels::Label;
use self::liveness::{Health, Liveness, PING_PAYLOAD, Tick};
use self::outbox::{Outbox, Parcel};
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

/// Whether a connection counts for its address (`max_connections_per_ip`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Not yet, for it may come through a proxy that has not told its address; or never, at the admin listener.
    Unknown,
    /// It does.
    Counted,
    /// It would be one too many, and is kept until it has been told so: [`Hub::surplus`] counts it.
    Surplus,
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

/// A request's head, or the PROXY header before it, that arrived in part; at most [`http::HEAD_BYTES_MAX`]
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

/// The pings of one read. The first are answered one by one; of more only the newest is, as RFC 6455 section 5.5.3
/// allows, so that a flood of pings is not a flood of pongs.
#[derive(Debug, Default)]
struct Pings {
    answered: usize,
    /// The pong to the last ping that was not answered at once.
    newest: Option<Frame>,
}

impl Pings {
    /// The pong if it is to be sent at once.
    fn answer(&mut self, pong: Frame) -> Option<Frame> {
        if self.answered == PONGS_PER_READ {
            self.newest = Some(pong);
            return None;
        }
        self.answered += 1;
        Some(pong)
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

/// What an open session does with a complete message; control frames and violations never come here. It may close
/// the session, which ends the reading of what else arrived. The server has one, [`Session::on_command`]; the echo
/// server of the conformance suite (`tests/autobahn`) brings its own, and all else there is the server's.
pub type OnMessage = fn(&mut Session, Message<'_>, ConnId, &mut Hub, Now);

/// What a client of the admin listener asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminRequest {
    /// The page.
    pub page: AdminPage,
    /// By `HEAD`: the answer is that of a `GET` without the body.
    pub head_only: bool,
}

/// A page of the admin listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminPage {
    /// `/healthz`: the loop turns.
    Health,
    /// `/readyz`: sessions are taken and events come.
    Ready,
    /// `/metrics`.
    Metrics,
}

/// Frames of events in a row, one each, for the members of one group.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// In the order of the events.
    pub frames: &'a [Frame],
    /// All of them as one, if that has been made.
    pub parcel: Option<&'a Parcel>,
}

/// What became of a [`Batch`]. The rest, if any, found the session closed, or too slow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Frames that are in the outbox.
    pub queued: u64,
    /// Frames dropped and counted (policy `drop`).
    pub dropped: u64,
    /// The outbox is over its limit: the session is to be closed as a slow consumer.
    pub is_too_slow: bool,
}

/// What the loop does after a flush that left nothing in the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFlush {
    /// Nothing.
    Idle,
    /// More was queued: list it again.
    More,
    /// Tell the peer that nothing more comes.
    ShutdownWrite,
}

impl Session {
    /// A connection that has said nothing yet; `preamble` is what it must say first.
    #[must_use]
    pub fn new(door: Door, preamble: Preamble, peer: Peer, hub: &mut Hub) -> Self {
        let mut session = Self {
            phase: Phase::Handshake {
                door,
                preamble,
                head: None,
            },
            identity: None,
            outbox: Outbox::default(),
            bucket: Bucket::default(),
            peer: hub.peers.keep(peer),
            subscriptions: SubscriptionList::default(),
            style: hub.limits.style,
            place: Place::Unknown,
        };
        if door == Door::Clients && preamble == Preamble::Done {
            session.take_known_place(hub);
        }
        session
    }

    /// Gives back what a session that has ended still has of what is shared.
    pub fn dissolve(mut self, hub: &mut Hub) {
        self.outbox.clear(&mut hub.totals);
        self.give_account_back(hub);
        match self.place {
            Place::Unknown => {}
            Place::Counted => hub.ips.give_back(&self.peer(hub).network()),
            Place::Surplus => hub.surplus -= 1,
        }
        hub.peers.forget(self.peer);
    }

    /// Counts for the address, unless that may be a proxy's, which has not told the peer's.
    fn take_known_place(&mut self, hub: &mut Hub) {
        if !hub.limits.proxies.trust(self.peer(hub).address().ip()) {
            self.take_place(hub);
        }
    }

    /// Counts for the address from now on, if there is a place.
    fn take_place(&mut self, hub: &mut Hub) {
        if self.place == Place::Counted {
            return;
        }
        let network = self.peer(hub).network();
        let before = self.place;
        self.place = if hub.ips.full(&network).is_some() {
            Place::Surplus
        } else {
            hub.ips.take(network);
            Place::Counted
        };
        hub.surplus -= usize::from(before == Place::Surplus);
        hub.surplus += usize::from(self.place == Place::Surplus);
    }

    /// Whether its address has as many connections as it may, and it is kept only to be told so.
    #[must_use]
    pub fn is_surplus(&self) -> bool {
        self.place == Place::Surplus
    }

    /// Whether it is one to be told that and there is no room for more of them, unless it is told at once.
    #[must_use]
    pub fn is_beyond_surplus(&self, hub: &Hub) -> bool {
        self.is_surplus() && self.is_in_handshake() && hub.surplus > SURPLUS_MAX
    }

    /// The session id (PROTOCOL 1). Until the upgrade it may be that of a proxy.
    #[must_use]
    pub fn peer(&self, hub: &Hub) -> Peer {
        hub.peers.get(&self.peer)
    }

    fn set_peer(&mut self, peer: Peer, hub: &mut Hub) {
        let before = std::mem::replace(&mut self.peer, hub.peers.keep(peer));
        hub.peers.forget(before);
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

    /// Tells the hub what of it has arrived in part.
    fn note_partial(&self, id: ConnId, hub: &mut Hub) {
        let is_told = self.place != Place::Unknown;
        let address = (is_told && self.identity.is_none()).then(|| self.peer(hub).network());
        hub.partials.set(id, self.partial_bytes(), address);
        hub.partial_bytes = hub.partials.bytes();
    }

    /// The sweep's look at it: whether its peer is silent, dead, idle, or does not finish what it began. What is to
    /// be done about that is the caller's to do: [`Session::ping`] or [`Session::close`]. O(1).
    pub fn examine(&mut self, id: ConnId, hub: &Hub) -> Health {
        let (is_deaf, is_blocked) = (!self.wants_bytes(), self.outbox.is_blocked());
        let Phase::Open { extra, life } = &mut self.phase else {
            return Health::Fine;
        };
        let (rules, now) = (&hub.limits.liveness, hub.waking.tick());
        let codec = extra.as_mut().map(|extra| &mut extra.codec);
        let mut codec = codec.filter(|codec| !codec.is_idle());
        if is_deaf {
            // What it sends is not read: it cannot finish a message, and is not silent. But one that takes nothing
            // either has to be found dead.
            if let Some(codec) = &mut codec {
                codec.mark_anew(now.to_mark());
            }
            if !is_blocked {
                *life = Liveness::new(now);
            }
        }
        if let Some(codec) = codec {
            if let Some(begun) = codec.mark()
                && rules.is_message_late(Tick::from_mark(begun), now)
            {
                return Health::MessageLate;
            }
            // It is in the middle of saying something, which has a limit of its own.
            life.on_own_frame(now);
        }
        life.judge(rules, is_blocked, id, now)
    }

    /// Asks the peer of an open session whether it is there. No allocation unless frames wait for it.
    pub fn ping(&mut self, id: ConnId, hub: &mut Hub, now: Now) {
        let is_blocked = self.outbox.is_blocked();
        if let Phase::Open { life, .. } = &mut self.phase {
            life.on_ping(is_blocked, hub.waking.tick());
            hub.metrics.pings_sent_total += 1;
            self.push(hub.ping.clone(), id, hub, now);
        }
    }

    /// Keeps an open session that takes nothing and says nothing until the next look, as if its ping had just been put
    /// into its full outbox, where one waits already.
    pub fn spare(&mut self, hub: &Hub) {
        if let Phase::Open { life, .. } = &mut self.phase {
            life.on_ping(true, hub.waking.tick());
        }
    }

    /// Takes what the peer sent. The bytes may be changed (they are unmasked in place). Returns the admin page
    /// asked for, which the loop answers with [`Session::respond`].
    pub fn on_bytes(
        &mut self,
        input: &mut [u8],
        id: ConnId,
        hub: &mut Hub,
        now: Now,
    ) -> Option<AdminRequest> {
        let had_part = self.partial_bytes() > 0;
        let page = self.take_bytes(input, id, hub, now);
        if had_part || self.partial_bytes() > 0 {
            self.note_partial(id, hub);
        }
        page
    }

    fn take_bytes(
        &mut self,
        input: &mut [u8],
        id: ConnId,
        hub: &mut Hub,
        now: Now,
    ) -> Option<AdminRequest> {
        match &mut self.phase {
            Phase::Handshake {
                door,
                preamble,
                head,
            } => {
                let (door, preamble) = (*door, *preamble);
                match head.take() {
                    None => self.on_start(door, preamble, input, id, hub, now),
                    Some(mut gathered) => {
                        gathered.0.extend_from_slice(input);
                        self.on_start(door, preamble, &mut gathered.0, id, hub, now)
                    }
                }
            }
            Phase::Open { .. } => {
                self.on_frames(input, id, hub, now);
                None
            }
            Phase::Closing { .. } | Phase::Gone { .. } => None,
        }
    }

    /// Takes the PROXY header off, if one may come, and goes on with what is behind it.
    fn on_start(
        &mut self,
        door: Door,
        preamble: Preamble,
        mut input: &mut [u8],
        id: ConnId,
        hub: &mut Hub,
        now: Now,
    ) -> Option<AdminRequest> {
        let preamble = match preamble {
            Preamble::Done | Preamble::Nameless => preamble,
            Preamble::Optional | Preamble::Required => match proxy::parse(input) {
                proxy::Header::Incomplete => {
                    self.gather(door, preamble, input, id, hub, now);
                    return None;
                }
                proxy::Header::Absent if preamble == Preamble::Optional => Preamble::Done,
                proxy::Header::Absent => {
                    self.close(CloseReason::NoProxyHeader, id, hub, now);
                    return None;
                }
                proxy::Header::Malformed => {
                    self.close(CloseReason::BadProxyHeader, id, hub, now);
                    return None;
                }
                proxy::Header::Complete { consumed, source } => {
                    hub.metrics.proxy_headers_total += 1;
                    input = input.get_mut(consumed..).unwrap_or_default();
                    match source {
                        Some(source) => {
                            self.set_peer(Peer::from(source), hub);
                            self.take_known_place(hub);
                            Preamble::Done
                        }
                        None => Preamble::Nameless,
                    }
                }
            },
        };
        self.on_head(door, preamble, input, id, hub, now)
    }

    /// Keeps what arrived in part.
    fn gather(
        &mut self,
        door: Door,
        preamble: Preamble,
        input: &[u8],
        id: ConnId,
        hub: &mut Hub,
        now: Now,
    ) {
        self.phase = Phase::Handshake {
            door,
            preamble,
            head: Some(Box::new(Head(input.to_vec()))),
        };
        if self.is_beyond_surplus(hub) {
            self.close(CloseReason::NoPlace, id, hub, now);
        }
    }

    fn on_head(
        &mut self,
        door: Door,
        preamble: Preamble,
        input: &mut [u8],
        id: ConnId,
        hub: &mut Hub,
        now: Now,
    ) -> Option<AdminRequest> {
        if door == Door::Admin {
            let page = match http::parse_plain(input) {
                Parsed::Incomplete => {
                    self.gather(door, preamble, input, id, hub, now);
                    return None;
                }
                Parsed::Complete {
                    request: PlainRequest::Refuse(refused),
                    ..
                } => Err(refused),
                Parsed::Complete {
                    request: PlainRequest::Plain { method, path },
                    ..
                } => {
                    let head_only = method == http::Method::Head;
                    let page = match path {
                        "/healthz" => Some(AdminPage::Health),
                        "/readyz" => Some(AdminPage::Ready),
                        "/metrics" => Some(AdminPage::Metrics),
                        _ => None,
                    };
                    page.map(|page| AdminRequest { page, head_only })
                        .ok_or(Refused {
                            refusal: Refusal::NotFound,
                            head_only,
                        })
                }
            };
            return page
                .map_err(|refused| self.refuse(refused, id, hub, now))
                .ok();
        }
        let consumed = match handshake::parse(input) {
            Parsed::Incomplete => {
                self.gather(door, preamble, input, id, hub, now);
                return None;
            }
            Parsed::Complete {
                request: Request::Refuse(mut refused),
                ..
            } => {
                if matches!(refused.refusal, Refusal::Malformed(_)) && proxy::is_header_start(input)
                {
                    hub.metrics.proxy_headers_untrusted_total += 1;
                    refused.refusal =
                        Refusal::Malformed("no PROXY header is taken from this address");
                }
                self.refuse(refused, id, hub, now);
                return None;
            }
            Parsed::Complete {
                request: Request::Probe(method),
                ..
            } => {
                hub.metrics.probes_total += 1;
                let unready = hub.unready();
                self.respond(&handshake::probe_response(method, unready), id, hub, now);
                return None;
            }
            Parsed::Complete {
                consumed,
                request: Request::Upgrade(upgrade),
            } => {
                let head = input.get(..consumed).unwrap_or_default();
                let told = self.take_forwarded(head, preamble, hub);
                self.take_place(hub);
                match told.and_then(|()| self.admit(&upgrade, hub, now)) {
                    Ok(identity) => self.open(&upgrade, identity, id, hub, now),
                    Err(refusal) => {
                        self.refuse(
                            Refused {
                                refusal,
                                head_only: false,
                            },
                            id,
                            hub,
                            now,
                        );
                        return None;
                    }
                }
                consumed
            }
        };
        if let Some(rest) = input.get_mut(consumed..)
            && !rest.is_empty()
        {
            self.on_frames(rest, id, hub, now);
        }
        None
    }

    /// Makes the peer the one that a trusted proxy names in the head of its upgrade request.
    fn take_forwarded(
        &mut self,
        head: &[u8],
        preamble: Preamble,
        hub: &mut Hub,
    ) -> Result<(), Refusal> {
        let proxies = &hub.limits.proxies;
        let proxy = self.peer(hub).address();
        if preamble == Preamble::Nameless || !proxies.trust(proxy.ip()) {
            return Ok(());
        }
        if let Some(peer) = forwarded::peer(head, proxy, proxies).map_err(Refusal::Malformed)? {
            hub.metrics.forwarded_peers_total += 1;
            self.set_peer(Peer::from(peer), hub);
        }
        Ok(())
    }

    /// Decides on a valid upgrade of a connection that counts for its address if there was a place.
    fn admit(
        &mut self,
        upgrade: &Upgrade<'_>,
        hub: &mut Hub,
        now: Now,
    ) -> Result<Option<Arc<Identity>>, Refusal> {
        if hub.admission == Admission::Draining {
            return Err(Refusal::Draining);
        }
        let origins = &hub.limits.allowed_origins;
        if let Some(origin) = upgrade.origin
            && !origins.is_empty()
            && !origins
                .iter()
                .any(|allowed| allowed.eq_ignore_ascii_case(origin))
        {
            return Err(Refusal::OriginNotAllowed);
        }
        let identity = match upgrade.bearer {
            None => None,
            Some(token) => match hub.authenticator.authenticate(token, now.unix) {
                Verdict::Accepted(identity) => Some(identity),
                Verdict::Refused => {
                    hub.metrics.authentications_failed_total += 1;
                    return Err(Refusal::InvalidToken);
                }
            },
        };
        if self.is_surplus() {
            return Err(Refusal::TooManyFromThisIp);
        }
        let account = identity.as_ref().and_then(|identity| identity.account_id());
        if account.is_some_and(|account| hub.accounts.full(&account).is_some()) {
            return Err(Refusal::TooManyOfThisAccount);
        }
        Ok(identity)
    }

    fn open(
        &mut self,
        upgrade: &Upgrade<'_>,
        identity: Option<Arc<Identity>>,
        id: ConnId,
        hub: &mut Hub,
        now: Now,
    ) {
        hub.metrics.sessions_opened_total += 1;
        self.outbox
            .push(Frame::raw(&upgrade.response()), &mut hub.totals);
        self.style = upgrade.style.unwrap_or(hub.limits.style);
        self.phase = Phase::Open {
            extra: None,
            life: Liveness::new(hub.waking.tick()),
        };
        match identity {
            Some(identity) => self.take_identity(identity, hub),
            None => hub.deadlines.auth.begin(now.clock, id),
        }
    }

    /// The session has no identity any more, and counts for no account.
    fn give_account_back(&mut self, hub: &mut Hub) {
        if let Some(account) = self
            .identity
            .take()
            .and_then(|identity| identity.account_id())
        {
            hub.accounts.give_back(&account);
        }
    }

    fn refuse(&mut self, refused: Refused, id: ConnId, hub: &mut Hub, now: Now) {
        hub.metrics.handshakes_refused_total += 1;
        if let Some(counter) = limit_counter(refused.refusal, &mut hub.metrics) {
            *counter += 1;
        }
        self.respond(&refused.refusal.response(refused.head_only), id, hub, now);
    }

    /// Tells the peer that the process has as many sessions as it may.
    pub fn refuse_full(&mut self, id: ConnId, hub: &mut Hub, now: Now) {
        self.respond(&Refusal::Full.response(false), id, hub, now);
    }

    /// Sends an HTTP response as the connection's last word. One that has no place is not given the time to read it and
    /// close its side: its request was read to its end, so the close is in good order.
    pub fn respond(&mut self, response: &[u8], id: ConnId, hub: &mut Hub, now: Now) {
        self.outbox.push(Frame::raw(response), &mut hub.totals);
        self.phase = Phase::Closing {
            reason: CloseReason::Http,
            was_open: false,
            peer: if self.is_surplus() {
                PeerSide::Done
            } else {
                PeerSide::Open
            },
        };
        hub.deadlines.answered.begin(now.clock, id);
    }

    fn on_frames(&mut self, input: &mut [u8], id: ConnId, hub: &mut Hub, now: Now) {
        let tick = hub.waking.tick();
        if let Phase::Open { life, .. } = &mut self.phase {
            life.on_bytes(tick);
        }
        let mut pings = Pings::default();
        self.decode(input, &mut pings, id, hub, now);
        if let Some(pong) = pings.newest
            && self.is_open()
        {
            self.push(pong, id, hub, now);
        }
        if let Phase::Open {
            extra: Some(extra), ..
        } = &mut self.phase
        {
            extra.codec.mark_once(tick.to_mark());
            self.drop_needless_extra();
        }
    }

    fn decode(
        &mut self,
        mut input: &mut [u8],
        pings: &mut Pings,
        id: ConnId,
        hub: &mut Hub,
        now: Now,
    ) {
        loop {
            let Phase::Open { extra, life } = &mut self.phase else {
                return;
            };
            let kept = extra.as_mut().map(|extra| std::mem::take(&mut extra.codec));
            let mut codec = kept.unwrap_or_default();
            let decoded = codec.decode(input, &hub.limits.codec);
            if !codec.is_idle() {
                extra.get_or_insert_default().codec = codec;
            }
            let decoded = match decoded {
                Ok(decoded) => decoded,
                Err(error) => {
                    let reason = match error.close_code() {
                        1007 => CloseReason::InvalidText,
                        1009 => CloseReason::TooBig,
                        _ => CloseReason::Protocol,
                    };
                    return self.close(reason, id, hub, now);
                }
            };
            let consumed = decoded.consumed;
            hub.frames_read += decoded.frames;
            match &decoded.item {
                None => {}
                Some(Item::Pong(payload)) if **payload == *PING_PAYLOAD => {}
                Some(_) => life.on_own_frame(hub.waking.tick()),
            }
            match decoded.item {
                None => return,
                Some(Item::Text(text)) => {
                    (hub.on_message)(self, Message::Text(&text), id, hub, now);
                }
                Some(Item::Binary(bytes)) => {
                    (hub.on_message)(self, Message::Binary(&bytes), id, hub, now);
                }
                Some(Item::Ping(payload)) => {
                    let pong = Frame::new(Opcode::Pong, &payload);
                    if let Some(pong) = pings.answer(pong) {
                        self.push(pong, id, hub, now);
                    }
                }
                Some(Item::Pong(_)) => {}
                Some(Item::Close { code, .. }) => {
                    let echo = match code {
                        Some(code) => Frame::close(code, ""),
                        None => Frame::close_empty(),
                    };
                    return self.begin_closing(
                        CloseReason::Peer,
                        Some(echo),
                        PeerSide::Done,
                        id,
                        hub,
                        now,
                    );
                }
            }
            input = input.get_mut(consumed..).unwrap_or_default();
            if input.is_empty() {
                return;
            }
        }
    }

    /// The [`OnMessage`] of the server: text is a command (PROTOCOL 3), binary closes the session with 1003.
    pub fn on_command(&mut self, message: Message<'_>, id: ConnId, hub: &mut Hub, now: Now) {
        match message {
            Message::Text(text) => self.on_text(text, id, hub, now),
            Message::Binary(_) => self.close(CloseReason::Binary, id, hub, now),
        }
    }

    fn on_text(&mut self, text: &str, id: ConnId, hub: &mut Hub, now: Now) {
        hub.metrics.commands_total += 1;
        let is_allowed = hub
            .limits
            .rate
            .is_none_or(|rule| self.bucket.take(rule, now.clock));
        if is_allowed {
            if let Phase::Open {
                extra: Some(extra), ..
            } = &mut self.phase
            {
                extra.refused_in_a_row = 0;
            }
        } else {
            hub.metrics.commands_rate_limited_total += 1;
            let Some(extra) = self.extra_mut() else {
                return;
            };
            extra.refused_in_a_row += 1;
            if extra.refused_in_a_row >= crate::limits::REFUSED_COMMANDS_MAX {
                return self.close(CloseReason::RateLimit, id, hub, now);
            }
        }
        if hub.is_renewing {
            self.renew_identity(id, hub, now);
            if !self.is_open() {
                return;
            }
        }
        self.run(text, is_allowed, id, hub, now);
        self.drop_needless_extra();
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

    /// Queues a frame that is not an event: never dropped. Under the policy `close` a peer that takes none of them is
    /// closed; under `drop` it is not read any further ([`Session::wants_bytes`]), so there is a bound to what it can
    /// ask for. The session must be open.
    pub fn push(&mut self, frame: Frame, id: ConnId, hub: &mut Hub, now: Now) {
        let (_, blocked_bytes) = self.outbox.blocked();
        if hub.limits.slow_consumer == SlowConsumerPolicy::Close
            && blocked_bytes > 0
            && blocked_bytes + frame.len() > hub.limits.outbox_bytes_max
        {
            self.close(CloseReason::SlowConsumer, id, hub, now);
        } else {
            self.outbox.push(frame, &mut hub.totals);
        }
    }

    /// Queues event frames, by the slow consumer policy (PROTOCOL 5). O(1) for a parcel that the socket is believed to
    /// take; otherwise by the number of frames.
    #[inline]
    pub fn deliver(&mut self, batch: Batch<'_>, shared: &mut DeliveryShared<'_>) -> Delivered {
        if !self.is_open() {
            return Delivered::default();
        }
        if self.outbox.is_blocked() || self.outbox.owes_notice() {
            return self.deliver_late(batch.frames, shared);
        }
        match batch.parcel {
            Some(parcel) => self.outbox.push_parcel(parcel, shared.totals),
            None => {
                for frame in batch.frames {
                    self.outbox.push(frame.clone(), shared.totals);
                }
            }
        }
        Delivered {
            queued: batch.frames.len() as u64,
            ..Delivered::default()
        }
    }

    fn deliver_late(&mut self, batch: &[Frame], shared: &mut DeliveryShared<'_>) -> Delivered {
        let limits = shared.limits;
        let mut delivered = Delivered::default();
        for frame in batch {
            let (frames, bytes) = self.outbox.blocked();
            match limits.slow_consumer {
                SlowConsumerPolicy::Close if bytes + frame.len() > limits.outbox_bytes_max => {
                    delivered.is_too_slow = true;
                    break;
                }
                SlowConsumerPolicy::Drop
                    if frames >= limits.queued_messages_max
                        || (bytes > 0 && bytes + frame.len() > limits.outbox_bytes_max) =>
                {
                    if limits.gap_notices {
                        self.outbox.count_dropped();
                    }
                    delivered.dropped += 1;
                    continue;
                }
                SlowConsumerPolicy::Close | SlowConsumerPolicy::Drop => {}
            }
            while let Some(notice) = self.take_gap_notice(shared.builder) {
                self.outbox.push(notice, shared.totals);
                *shared.gap_notices_total += 1;
            }
            self.outbox.push(frame.clone(), shared.totals);
            delivered.queued += 1;
        }
        delivered
    }

    /// A notice of what policy `drop` left out, if there is one still to be told: of an outage, and then of events.
    fn take_gap_notice(&mut self, builder: &mut FrameBuilder) -> Option<Frame> {
        if let Some(outage) = self.outbox.take_outage() {
            return Some(outage);
        }
        match self.outbox.take_dropped() {
            0 => None,
            dropped => Some(reply::gap_slow_consumer(builder, dropped)),
        }
    }

    /// Whether a subscription of it needs one of `bindings`, which are of these exchanges. Linear in its subscriptions.
    #[must_use]
    pub fn needs_any(
        &self,
        bindings: &HashSet<AmqpBinding>,
        exchanges: &HashSet<Arc<str>>,
        hub: &Hub,
    ) -> bool {
        let mut needed = Vec::new();
        hub.index
            .subscriptions(&self.subscriptions)
            .any(|subscription| {
                if exchanges.contains(hub.families.exchange(&subscription)) {
                    hub.families.amqp_bindings(
                        &subscription,
                        subscription.held(hub.months),
                        &mut needed,
                    );
                }
                needed.drain(..).any(|binding| bindings.contains(&binding))
            })
    }

    /// Tells the session that events may have been lost while the source was away, unless it has no subscription. Where
    /// policy `drop` has no room for an event, the latest such notice is kept until there is, so that no number of
    /// outages makes a queue grow.
    pub fn announce_outage(&mut self, notice: &Frame, id: ConnId, hub: &mut Hub, now: Now) {
        let (frames, _) = self.outbox.blocked();
        let is_dropped = hub.limits.slow_consumer == SlowConsumerPolicy::Drop
            && frames >= hub.limits.queued_messages_max;
        if self.is_open() && !self.subscriptions.is_empty() {
            if is_dropped {
                return self.outbox.keep_outage(notice.clone());
            }
            hub.metrics.gap_notices_total += 1;
            self.push(notice.clone(), id, hub, now);
        }
    }

    /// The outbox was flushed and is empty.
    pub fn after_flush(&mut self, hub: &mut Hub) -> AfterFlush {
        match &mut self.phase {
            Phase::Open { .. } => {
                let mut after = AfterFlush::Idle;
                while let Some(notice) = self.take_gap_notice(&mut hub.builder) {
                    hub.metrics.gap_notices_total += 1;
                    self.outbox.push(notice, &mut hub.totals);
                    after = AfterFlush::More;
                }
                after
            }
            Phase::Closing {
                reason,
                was_open,
                peer,
            } => match peer {
                PeerSide::Open => {
                    *peer = PeerSide::Told;
                    AfterFlush::ShutdownWrite
                }
                PeerSide::Told => AfterFlush::Idle,
                PeerSide::Done => {
                    self.phase = Phase::Gone {
                        reason: *reason,
                        was_open: *was_open,
                    };
                    AfterFlush::Idle
                }
            },
            Phase::Handshake { .. } | Phase::Gone { .. } => AfterFlush::Idle,
        }
    }

    /// The peer closed its side of the stream, or the connection broke (`is_broken`).
    pub fn on_end(&mut self, is_broken: bool, hub: &mut Hub, id: ConnId) {
        match &mut self.phase {
            Phase::Closing { peer, .. } if !is_broken && !self.outbox.is_empty() => {
                *peer = PeerSide::Done
            }
            Phase::Closing {
                reason, was_open, ..
            } => {
                self.phase = Phase::Gone {
                    reason: *reason,
                    was_open: *was_open,
                };
            }
            Phase::Handshake { .. } => {
                self.phase = Phase::Gone {
                    reason: CloseReason::Lost,
                    was_open: false,
                };
                self.note_partial(id, hub);
            }
            Phase::Open { .. } => {
                self.leave(id, hub);
                self.phase = Phase::Gone {
                    reason: CloseReason::Lost,
                    was_open: true,
                };
                self.note_partial(id, hub);
            }
            Phase::Gone { .. } => {}
        }
    }

    /// Closes an open session with the close frame of `reason`; a session in its handshake goes without a word.
    /// What is already in the outbox goes out first; of a peer that does not read it is forgotten, unless the process
    /// drains: then it has as long as it goes on taking bytes, and the process lasts. A dead peer is not waited for.
    pub fn close(&mut self, reason: CloseReason, id: ConnId, hub: &mut Hub, now: Now) {
        let frame = reason.frame().map(|(code, text)| Frame::close(code, text));
        let peer = if reason == CloseReason::Dead {
            PeerSide::Done
        } else {
            PeerSide::Open
        };
        self.begin_closing(reason, frame, peer, id, hub, now);
    }

    fn begin_closing(
        &mut self,
        reason: CloseReason,
        frame: Option<Frame>,
        peer: PeerSide,
        id: ConnId,
        hub: &mut Hub,
        now: Now,
    ) {
        match &self.phase {
            Phase::Handshake { .. } => {
                self.phase = Phase::Gone {
                    reason,
                    was_open: false,
                };
                self.note_partial(id, hub);
            }
            Phase::Closing { .. } | Phase::Gone { .. } => {}
            Phase::Open { .. } => {
                self.leave(id, hub);
                if reason == CloseReason::Drain {
                    while let Some(notice) = self.take_gap_notice(&mut hub.builder) {
                        hub.metrics.gap_notices_total += 1;
                        self.outbox.push(notice, &mut hub.totals);
                    }
                } else if self.outbox.is_blocked() {
                    self.outbox.forget_unbegun(&mut hub.totals);
                }
                if let Some(frame) = frame {
                    self.outbox.push(frame, &mut hub.totals);
                }
                self.phase = Phase::Closing {
                    reason,
                    was_open: true,
                    peer,
                };
                self.note_partial(id, hub);
                hub.deadlines.close.begin(now.clock, id);
            }
        }
    }

    /// Ends an unfinished handshake in favour of another connection.
    pub fn evict(&mut self, id: ConnId, hub: &mut Hub) {
        match self.phase {
            Phase::Handshake { .. } => {
                self.phase = Phase::Gone {
                    reason: CloseReason::Evicted,
                    was_open: false,
                };
                self.note_partial(id, hub);
            }
            Phase::Open { .. } | Phase::Closing { .. } | Phase::Gone { .. } => {
                self.abandon(id, hub)
            }
        }
    }

    /// Ends a session whose time to close in good order is over.
    pub fn abandon(&mut self, id: ConnId, hub: &mut Hub) {
        match self.phase {
            Phase::Closing {
                reason, was_open, ..
            } => self.phase = Phase::Gone { reason, was_open },
            Phase::Handshake { .. } | Phase::Open { .. } => self.on_end(true, hub, id),
            Phase::Gone { .. } => {}
        }
    }

    /// Takes the session out of all that is shared, but for the totals of its outbox and what it counts for until its
    /// end. Cost: what it had.
    fn leave(&mut self, id: ConnId, hub: &mut Hub) {
        if let Phase::Open {
            extra: Some(extra), ..
        } = &mut self.phase
        {
            hub.labels.drop_label(&mut extra.label);
        }
        self.stop_waiting(id, hub);
        self.drop_subscriptions(hub);
    }
}

/// Counts the refusals of one limit, for a refusal that is one of a limit.
fn limit_counter(refusal: Refusal, metrics: &mut Metrics) -> Option<&mut u64> {
    match refusal {
        Refusal::TooManyFromThisIp => Some(&mut metrics.handshakes_refused_ip_total),
        Refusal::TooManyOfThisAccount => Some(&mut metrics.handshakes_refused_account_total),
        Refusal::OriginNotAllowed => Some(&mut metrics.handshakes_refused_origin_total),
        Refusal::InvalidToken => Some(&mut metrics.handshakes_refused_token_total),
        Refusal::HeadTooLarge => Some(&mut metrics.handshakes_refused_head_total),
        Refusal::Malformed(_)
        | Refusal::SubProtocol
        | Refusal::NotFound
        | Refusal::MethodNotAllowed
        | Refusal::UnsupportedVersion
        | Refusal::Full
        | Refusal::Draining
        | Refusal::SourceDown => None,
    }
}

/// What a fan-out lends to [`Session::deliver`].
#[derive(Debug)]
pub struct DeliveryShared<'a> {
    /// The operator's bounds.
    pub limits: &'a hub::SessionLimits,
    /// What waits in full outboxes.
    pub totals: &'a mut outbox::OutboxTotals,
    /// Scratch for notices.
    pub builder: &'a mut FrameBuilder,
    /// Counter.
    pub gap_notices_total: &'a mut u64,
}
