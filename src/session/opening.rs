//! How a connection becomes a session: PROXY header, request, admission; or how it is refused.
//!
//! Invariant: the address of a connection is known, and counted, before its upgrade request is decided on.

use std::sync::Arc;
use std::time::Duration;

use crate::auth::{Identity, Verdict};
use crate::limits::SURPLUS_MAX;
use crate::metrics::Metrics;
use crate::protocol::extension::{Deflate, Offer};
use crate::protocol::forwarded;
use crate::protocol::frame::Frame;
use crate::protocol::handshake::{self, Request, Upgrade};
use crate::protocol::http::{ErrorResponse, HttpError, Parsed};
use crate::protocol::proxy::{self, Preamble};
use crate::protocol::reply;
use crate::routing::index::SubscriptionList;

use super::bucket::Bucket;
use super::clock::Stamp;
use super::close::CloseReason;
use super::figures::LowFrames;
use super::hub::{Context, Hub};
use super::id::Peer;
use super::liveness::Liveness;
use super::occupancy::Place;
use super::outbox::Outbox;
use super::shape::Shape;
use super::{Head, PeerSide, Phase, Session};

/// What becomes of a valid upgrade request.
enum Admission {
    /// The session opens; `None`: without an identity.
    Open(Option<Arc<Identity>>),
    /// The authenticator must be asked first.
    Asks,
}

impl Session {
    /// A new connection of the websocket port, accepted at `clock`, on the loop's clock. `preamble`: whether a PROXY header
    /// must come first.
    #[must_use]
    pub fn new(preamble: Preamble, peer: Peer, clock: Duration, hub: &mut Hub) -> Self {
        let mut session = Self::unplaced(peer, hub);
        session.phase = Phase::Handshake {
            preamble,
            came: Stamp::of(clock),
            head: None,
        };
        if preamble == Preamble::Done {
            session.take_known_place(hub);
        }
        session
    }

    /// A new connection that counts for no address yet.
    pub(super) fn unplaced(peer: Peer, hub: &mut Hub) -> Self {
        Self {
            phase: Phase::Handshake {
                preamble: Preamble::Done,
                came: Stamp::default(),
                head: None,
            },
            identity: None,
            outbox: Outbox::default(),
            bucket: Bucket::default(),
            peer: hub.peers.keep(peer),
            subscriptions: SubscriptionList::default(),
            shape: Shape::new(hub.limits.style, None),
            place: Place::Unknown,
            frames: LowFrames::default(),
        }
    }

    /// Counts for the address, unless that may be the address of a proxy, which has not told that of its client.
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
        self.place = hub.occupancy.enter(self.place, network);
    }

    /// Whether the connection is one too many of its address, and there is no room to keep more such connections.
    #[must_use]
    pub fn is_beyond_surplus(&self, hub: &Hub) -> bool {
        self.is_surplus() && self.is_in_handshake() && hub.occupancy.surplus() > SURPLUS_MAX
    }

    /// The peer, whose address is the session id (PROTOCOL 1). Until the upgrade it may be a proxy.
    #[must_use]
    pub fn peer(&self, hub: &Hub) -> Peer {
        hub.peers.get(&self.peer)
    }

    fn set_peer(&mut self, peer: Peer, hub: &mut Hub) {
        let before = std::mem::replace(&mut self.peer, hub.peers.keep(peer));
        hub.peers.forget(before);
    }

    /// Takes the PROXY header, if one may come, and goes on with what is behind it.
    pub(super) fn on_start(&mut self, preamble: Preamble, input: &mut [u8], cx: &mut Context<'_>) {
        if let Some((preamble, consumed)) = self.take_preamble(preamble, input, cx) {
            let rest = input.get_mut(consumed..).unwrap_or_default();
            self.on_head(preamble, rest, cx);
        }
    }

    /// Takes what comes in clear on a connection of the TLS port: the PROXY header, if one may come. Returns what stands
    /// behind it, which is TLS; `None`: the header is not whole, or the connection was closed for it.
    pub fn on_clear_bytes(&mut self, input: &[u8], cx: &mut Context<'_>) -> Option<Vec<u8>> {
        let Phase::Handshake { preamble, head, .. } = &mut self.phase else {
            return None;
        };
        let (preamble, head) = (*preamble, head.take());
        let mut bytes = head.map_or_else(Vec::new, |head| head.bytes);
        bytes.extend_from_slice(input);
        let taken = self.take_preamble(preamble, &bytes, cx);
        self.note_partial(cx);
        let (taken, consumed) = taken?;
        if let Phase::Handshake { preamble, .. } = &mut self.phase {
            *preamble = taken;
        }
        bytes.drain(..consumed);
        Some(bytes)
    }

    /// The PROXY header, if one may come: what may come next, and how many bytes it has. `None`: it is not whole, or the
    /// connection was closed for it.
    fn take_preamble(
        &mut self,
        preamble: Preamble,
        input: &[u8],
        cx: &mut Context<'_>,
    ) -> Option<(Preamble, usize)> {
        match preamble {
            Preamble::Done | Preamble::Nameless => Some((preamble, 0)),
            Preamble::Optional | Preamble::Required => match proxy::parse(input) {
                proxy::Header::Incomplete => {
                    self.gather(preamble, input, cx);
                    None
                }
                proxy::Header::Absent if preamble == Preamble::Optional => {
                    Some((Preamble::Done, 0))
                }
                proxy::Header::Absent => {
                    self.close(CloseReason::NoProxyHeader, cx);
                    None
                }
                proxy::Header::Malformed => {
                    self.close(CloseReason::BadProxyHeader, cx);
                    None
                }
                proxy::Header::Complete { consumed, source } => {
                    cx.hub.metrics.proxy_headers_total += 1;
                    let Some(source) = source else {
                        return Some((Preamble::Nameless, consumed));
                    };
                    self.set_peer(Peer::from(source), cx.hub);
                    self.take_known_place(cx.hub);
                    Some((Preamble::Done, consumed))
                }
            },
        }
    }

    /// Keeps the part that has arrived.
    fn gather(&mut self, preamble: Preamble, input: &[u8], cx: &mut Context<'_>) {
        let Phase::Handshake { came, .. } = self.phase else {
            return;
        };
        self.phase = Phase::Handshake {
            preamble,
            came,
            head: Some(Box::new(Head {
                bytes: input.to_vec(),
                awaits_answer: false,
            })),
        };
        if self.is_beyond_surplus(cx.hub) {
            self.close(CloseReason::NoPlace, cx);
        }
    }

    fn on_head(&mut self, preamble: Preamble, input: &mut [u8], cx: &mut Context<'_>) {
        let consumed = match handshake::parse(input) {
            Parsed::Incomplete => {
                self.gather(preamble, input, cx);
                return;
            }
            Parsed::Complete {
                request: Request::Refuse(mut response),
                ..
            } => {
                if matches!(response.error, HttpError::Malformed(_))
                    && proxy::is_header_start(input)
                {
                    cx.hub.metrics.proxy_headers_untrusted_total += 1;
                    response.error =
                        HttpError::Malformed("no PROXY header is taken from this address");
                }
                self.refuse(response, cx);
                return;
            }
            Parsed::Complete {
                request: Request::Probe(method),
                ..
            } => {
                cx.hub.metrics.probes_total += 1;
                let unready = cx.hub.readiness.unready();
                self.respond(&handshake::probe_response(method, unready), cx);
                return;
            }
            Parsed::Complete {
                consumed,
                request: Request::Upgrade(upgrade),
            } => {
                let head = input.get(..consumed).unwrap_or_default();
                let told = self.take_forwarded(head, preamble, cx.hub);
                self.take_place(cx.hub);
                if let Err(error) = told {
                    self.refuse_upgrade(error, cx);
                    return;
                }
                if !self.on_upgrade(&upgrade, cx) {
                    self.await_answer(input);
                    return;
                }
                consumed
            }
        };
        self.on_rest(consumed, input, cx);
    }

    /// Opens the session or refuses to. False: the authenticator must be asked first.
    fn on_upgrade(&mut self, upgrade: &Upgrade<'_>, cx: &mut Context<'_>) -> bool {
        match self.admit(upgrade, cx) {
            Ok(Admission::Open(identity)) => self.open(upgrade, identity, cx),
            Ok(Admission::Asks) => return false,
            Err(error) => self.refuse_upgrade(error, cx),
        }
        true
    }

    /// Keeps a whole request, and what came behind it, until the authenticator has its answer. Nothing is read meanwhile.
    fn await_answer(&mut self, input: &[u8]) {
        let Phase::Handshake { came, .. } = self.phase else {
            return;
        };
        self.phase = Phase::Handshake {
            preamble: Preamble::Done,
            came,
            head: Some(Box::new(Head {
                bytes: input.to_vec(),
                awaits_answer: true,
            })),
        };
    }

    /// Decides again on a request that waited for the authenticator. Its address is known and counted already.
    pub(super) fn resume_handshake(&mut self, cx: &mut Context<'_>) {
        let Phase::Handshake { head, .. } = &mut self.phase else {
            return;
        };
        let Some(mut head) = head.take_if(|head| head.awaits_answer) else {
            return;
        };
        let Parsed::Complete {
            consumed,
            request: Request::Upgrade(upgrade),
        } = handshake::parse(&head.bytes)
        else {
            return self.close(CloseReason::Lost, cx);
        };
        if self.on_upgrade(&upgrade, cx) {
            self.on_rest(consumed, &mut head.bytes, cx);
        } else {
            self.await_answer(&head.bytes);
        }
        self.note_partial(cx);
    }

    /// Takes what came behind the request.
    fn on_rest(&mut self, consumed: usize, input: &mut [u8], cx: &mut Context<'_>) {
        if let Some(rest) = input.get_mut(consumed..)
            && !rest.is_empty()
            && self.is_open()
        {
            // The client cannot know yet whether it may send deflated messages.
            self.on_frames(rest, false, cx);
        }
    }

    /// Takes the client that a trusted proxy names in the head of its upgrade request for the peer.
    fn take_forwarded(
        &mut self,
        head: &[u8],
        preamble: Preamble,
        hub: &mut Hub,
    ) -> Result<(), HttpError> {
        let proxies = &hub.limits.proxies;
        let proxy = self.peer(hub).address();
        if preamble == Preamble::Nameless || !proxies.trust(proxy.ip()) {
            return Ok(());
        }
        if let Some(peer) = forwarded::peer(head, proxy, proxies).map_err(HttpError::Malformed)? {
            hub.metrics.forwarded_peers_total += 1;
            self.set_peer(Peer::from(peer), hub);
        }
        Ok(())
    }

    /// Decides on a valid upgrade request. The connection counts for its address already, if there was a place.
    fn admit(
        &mut self,
        upgrade: &Upgrade<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Admission, HttpError> {
        let asker = self.asker(cx);
        let (hub, now) = (&mut *cx.hub, cx.now);
        if hub.readiness.is_draining() {
            return Err(HttpError::Draining);
        }
        let origins = &hub.limits.allowed_origins;
        if let Some(origin) = upgrade.origin
            && !origins.is_empty()
            && !origins
                .iter()
                .any(|allowed| allowed.eq_ignore_ascii_case(origin))
        {
            return Err(HttpError::OriginNotAllowed);
        }
        let identity = match upgrade.bearer {
            None => None,
            Some(token) => match hub.authenticator.identify(token, asker, now.into()) {
                Verdict::Accepted(identity) => Some(identity),
                Verdict::Asks => return Ok(Admission::Asks),
                Verdict::Unavailable => return Err(HttpError::AuthenticationUnavailable),
                Verdict::Refused => {
                    hub.metrics.authentications_failed_total += 1;
                    return Err(HttpError::InvalidToken);
                }
            },
        };
        if self.is_surplus() {
            return Err(HttpError::TooManyFromThisIp);
        }
        let account = identity.as_ref().and_then(|identity| identity.account_id());
        if account.is_some_and(|account| hub.occupancy.accounts.full(&account).is_some()) {
            return Err(HttpError::TooManyOfThisAccount);
        }
        Ok(Admission::Open(identity))
    }

    fn open(
        &mut self,
        upgrade: &Upgrade<'_>,
        identity: Option<Arc<Identity>>,
        cx: &mut Context<'_>,
    ) {
        self.note_answered(cx);
        cx.hub.metrics.sessions_opened_total += 1;
        cx.hub.work.comings_and_goings += 1;
        let deflate = agreed(upgrade.offer, cx.hub);
        self.outbox
            .push(Frame::raw(&upgrade.response(deflate)), &mut cx.hub.outboxes);
        self.shape = Shape::new(upgrade.style.unwrap_or(cx.hub.limits.style), deflate);
        self.phase = Phase::Open {
            rare: None,
            life: Liveness::new(cx.hub.waking.tick()),
        };
        if let Some(identity) = identity {
            self.take_identity(identity, cx.hub);
        }
        if cx.hub.trace.is_on() {
            self.tell_opened(cx);
        }
        if let Some(first_close) = cx.hub.readiness.first_close(cx.id.slot) {
            let within = first_close.saturating_sub(cx.now.clock);
            let notice = reply::going_away(&mut cx.hub.builder, within);
            self.tell_going_away(notice, within, cx);
        }
        if self.has_no_proof() {
            cx.hub.deadlines.auth.begin(cx.now.clock, cx.id);
        }
    }

    /// The upgrade request is about to be answered.
    fn note_answered(&self, cx: &mut Context<'_>) {
        if let Phase::Handshake { came, .. } = self.phase {
            let took = came.elapsed(cx.now.clock);
            cx.hub.metrics.timings.handshake.record(took);
        }
    }

    fn refuse_upgrade(&mut self, error: HttpError, cx: &mut Context<'_>) {
        self.note_answered(cx);
        let response = ErrorResponse {
            error,
            head_only: false,
        };
        self.refuse(response, cx);
    }

    fn refuse(&mut self, response: ErrorResponse, cx: &mut Context<'_>) {
        *refusal_counter(response.error, &mut cx.hub.metrics) += 1;
        self.respond(&response.error.response(response.head_only), cx);
    }

    /// Tells the peer that the process has as many connections as it may (503).
    pub fn refuse_full(&mut self, cx: &mut Context<'_>) {
        self.respond(&HttpError::Full.response(false), cx);
    }

    /// Tells a peer on the TLS port that did not begin with TLS what is wrong (400), in clear.
    pub fn refuse_clear(&mut self, problem: &'static str, cx: &mut Context<'_>) {
        let error = HttpError::Malformed(problem);
        self.respond(&error.response(false), cx);
    }

    /// Sends an HTTP response and closes the connection. One too many of its address gets no time to read the response and
    /// close its side: its request was read to its end, so the kernel still delivers the response.
    pub(super) fn respond(&mut self, response: &[u8], cx: &mut Context<'_>) {
        self.outbox.push(Frame::raw(response), &mut cx.hub.outboxes);
        self.phase = Phase::Closing {
            reason: CloseReason::Http,
            was_open: false,
            peer: if self.is_surplus() {
                PeerSide::Done
            } else {
                PeerSide::Open
            },
        };
        cx.hub.deadlines.answered.begin(cx.now.clock, cx.id);
    }
}

/// What is agreed on permessage-deflate with a session that opens.
fn agreed(offer: Offer, hub: &mut Hub) -> Option<Deflate> {
    match offer {
        Offer::Good(deflate) if hub.limits.compression => {
            hub.compression.join();
            hub.metrics.compression_agreed_total += 1;
            Some(deflate)
        }
        Offer::Declined if hub.limits.compression => {
            hub.metrics.compression_declined_total += 1;
            None
        }
        Offer::Good(_) | Offer::Declined | Offer::Absent => None,
    }
}

/// The counter of refusals for this reason.
fn refusal_counter(error: HttpError, metrics: &mut Metrics) -> &mut u64 {
    match error {
        HttpError::TooManyFromThisIp => &mut metrics.handshakes_refused_ip_total,
        HttpError::TooManyOfThisAccount => &mut metrics.handshakes_refused_account_total,
        HttpError::OriginNotAllowed => &mut metrics.handshakes_refused_origin_total,
        HttpError::InvalidToken => &mut metrics.handshakes_refused_token_total,
        HttpError::HeadTooLarge => &mut metrics.handshakes_refused_head_total,
        HttpError::Full => &mut metrics.handshakes_refused_full_total,
        HttpError::Draining => &mut metrics.handshakes_refused_draining_total,
        HttpError::SourceDown | HttpError::AuthenticationUnavailable => {
            &mut metrics.handshakes_refused_unavailable_total
        }
        HttpError::Malformed(_)
        | HttpError::SubProtocol
        | HttpError::NotFound
        | HttpError::MethodNotAllowed
        | HttpError::UnsupportedVersion => &mut metrics.handshakes_refused_request_total,
    }
}
