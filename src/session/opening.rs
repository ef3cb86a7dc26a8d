//! How a connection becomes a session: the PROXY header, the head of the request, the decision on it, and the refusal.

use std::sync::Arc;

use crate::auth::{Identity, Verdict};
use crate::limits::SURPLUS_MAX;
use crate::metrics::Metrics;
use crate::protocol::forwarded;
use crate::protocol::frame::Frame;
use crate::protocol::handshake::{self, Parsed, PlainRequest, Refusal, Refused, Request, Upgrade};
use crate::protocol::proxy::{self, Preamble};
use crate::routing::index::SubscriptionList;

use super::admin::{AdminPage, AdminRequest};
use super::bucket::Bucket;
use super::clock::Now;
use super::close::CloseReason;
use super::hub::{Admission, Hub};
use super::id::{ConnId, Peer};
use super::liveness::Liveness;
use super::outbox::Outbox;
use super::{Door, Head, PeerSide, Phase, Place, Session};

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

    /// Takes the PROXY header off, if one may come, and goes on with what is behind it.
    pub(super) fn on_start(
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
            let page = match handshake::parse_plain(input) {
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
                    let head_only = method == handshake::Method::Head;
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
