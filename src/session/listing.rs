//! Which sessions are asked for, and what is told of one: to the platform, over AMQP and on the admin address, and to the
//! operator (PROTOCOL 8). Never a token; to the platform never an account id.
//!
//! A session is one of the account that its identity belongs to. One whose identity belongs to none (`--auth insecure`) is
//! one of each account that it is subscribed for, and shown with the bindings for that.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::account::{AccountId, Scope};
use crate::protocol::admin::{CloseOrder, SessionQuery, SortKey};
use crate::protocol::control::{self, SessionFacts, Whose};
use crate::protocol::page::SessionRow;

use super::clock::{Now, TICK, Tick};
use super::hub::Hub;
use super::id::{ConnId, Peer};
use super::{Phase, Session};

/// Which sessions are asked for, in the terms of sessions: those for which all holds. A question that none can be the
/// answer to is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    account: Option<AccountId>,
    peer: Option<Peer>,
    ip: Option<IpAddr>,
    /// A client binding of one of its subscriptions.
    binding: Option<Box<str>>,
    /// Its peer takes nothing now, or something was dropped because of that.
    is_slow: bool,
}

impl Wanted {
    /// What the platform asks for. `None`: no session can be meant.
    #[must_use]
    pub fn of(whose: &Whose) -> Option<Self> {
        let socket = match &whose.socket {
            None => None,
            Some(id) => Some(id.parse::<SocketAddr>().ok()?),
        };
        let account = match whose.account {
            None => None,
            Some(account) => Some(account?),
        };
        Some(Self::of_account(account, socket))
    }

    /// Those of an account, or the one of an id; if both are given, both must hold.
    #[must_use]
    pub fn of_account(account: Option<AccountId>, session: Option<SocketAddr>) -> Self {
        Self {
            account,
            peer: session.map(Peer::from),
            ..Self::default()
        }
    }

    /// What the operator wants to see.
    #[must_use]
    pub fn of_query(query: &SessionQuery) -> Self {
        Self {
            account: query.account,
            peer: None,
            ip: query.ip.map(|ip| ip.to_canonical()),
            binding: query.binding.clone(),
            is_slow: query.slow,
        }
    }

    /// What the operator wants to close.
    #[must_use]
    pub fn of_order(order: &CloseOrder) -> Self {
        Self {
            ip: order.ip.map(|ip| ip.to_canonical()),
            ..Self::of_account(order.account, order.session)
        }
    }

    /// Whether at most one session is meant.
    #[must_use]
    pub fn is_of_one(&self) -> bool {
        self.peer.is_some()
    }
}

/// A session that is wanted, and what is shown of it.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'s> {
    session: &'s Session,
    hub: &'s Hub,
    id: ConnId,
    peer: Peer,
    /// Only the bindings for this.
    scope: Option<Scope>,
}

/// What is told of a session's connection, of which the session knows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beneath {
    /// Bytes that its peer has acknowledged; `None`: this system cannot say.
    pub bytes: Option<u64>,
    /// Its version of TLS; `None`: it has none.
    pub tls: Option<&'static str>,
}

impl Session {
    /// The session as it is to be shown, if it is one that is wanted. O(1), but linear in its subscriptions where they
    /// decide: by a binding, or by an account where it has none of its own.
    #[must_use]
    pub fn shown<'s>(&'s self, id: ConnId, wanted: &Wanted, hub: &'s Hub) -> Option<Shown<'s>> {
        if !self.is_open() {
            return None;
        }
        let peer = self.peer(hub);
        if wanted.peer.is_some_and(|meant| meant != peer)
            || wanted.ip.is_some_and(|meant| meant != peer.address().ip())
            || (wanted.is_slow && !self.is_slow(id, hub))
        {
            return None;
        }
        let own = self.account();
        let is_owned = wanted.account.is_none_or(|account| own == Some(account));
        if !is_owned && own.is_some() {
            return None;
        }
        let shown = Shown {
            session: self,
            hub,
            id,
            peer,
            scope: wanted.account.filter(|_| !is_owned).map(Scope::One),
        };
        if shown.scope.is_some() && shown.bindings().next().is_none() {
            return None;
        }
        let is_wanted = wanted
            .binding
            .as_ref()
            .is_none_or(|meant| shown.bindings().any(|one| *one == **meant));
        is_wanted.then_some(shown)
    }

    /// Whether its subscriptions decide whether it is wanted, so that [`Session::shown`] is linear in them.
    #[must_use]
    pub fn is_judged_by_subscriptions(&self, wanted: &Wanted) -> bool {
        let is_nobodys = || self.account().is_none();
        wanted.binding.is_some() || (wanted.account.is_some() && is_nobodys())
    }

    /// Whether its socket takes nothing now, or events were dropped because it did not.
    fn is_slow(&self, id: ConnId, hub: &Hub) -> bool {
        self.outbox.is_blocked() || hub.figures.dropped(id.slot) > 0
    }
}

impl<'s> Shown<'s> {
    /// How many subscriptions it has. Linear in them.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        let index = self.hub.subscriptions.index();
        index.len(&self.session.subscriptions)
    }

    fn bindings(&self) -> impl Iterator<Item = &'s str> + use<'s> {
        let index = self.hub.subscriptions.index();
        let (all, scope) = (index.subscriptions(&self.session.subscriptions), self.scope);
        all.filter(move |one| scope.is_none_or(|scope| one.scope() == scope))
            .map(|one| one.binding())
    }

    /// Appends what the platform is told of it. `host`: the name of this host. Linear in its subscriptions.
    pub fn write_object(&self, host: &str, out: &mut Vec<u8>) {
        let (name, metadata) = self.session.name_and_metadata();
        let facts = SessionFacts {
            id: &self.peer.to_string(),
            source: &self.peer.address().ip().to_string(),
            unix: self.hub.arrivals.unix(self.id),
            name,
            metadata: metadata.map(|value| value.get()),
            bindings: self.bindings(),
        };
        control::write_session(out, facts, host);
    }

    /// Appends what the operator is told of it. Linear in its subscriptions.
    pub fn write_row(&self, beneath: Beneath, now: Now, out: &mut Vec<u8>) {
        let (name, _) = self.session.name_and_metadata();
        let row = SessionRow {
            id: &self.peer.to_string(),
            account: self.session.account(),
            ip: &self.peer.address().ip().to_string(),
            age_seconds: now.unix().saturating_sub(self.hub.arrivals.unix(self.id)),
            idle_seconds: self.idle().as_secs(),
            bindings: self.bindings(),
            frames: self.frames(),
            bytes: beneath.bytes,
            outbox_bytes: self.session.outbox.bytes() as u64,
            dropped: self.hub.figures.dropped(self.id.slot),
            name,
            tls: beneath.tls,
            is_compressed: self.session.is_compressed(),
        };
        row.write(out);
    }

    /// What a listing is sorted by, the largest first. What only grows with time is given such that it stays the same.
    /// `bytes`: asks what its peer has acknowledged.
    #[must_use]
    pub fn sort_value(&self, key: SortKey, bytes: impl FnOnce() -> Option<u64>) -> u64 {
        match key {
            SortKey::Age => u64::MAX - self.hub.arrivals.unix(self.id),
            SortKey::Idle => {
                let spoke = self.spoke().map(Tick::to_mark);
                spoke.map_or(0, |spoke| u64::from(u32::MAX - spoke))
            }
            SortKey::Bytes => bytes().unwrap_or(0),
            SortKey::Frames => self.frames(),
            SortKey::Outbox => self.session.outbox.bytes() as u64,
            SortKey::Dropped => self.hub.figures.dropped(self.id.slot),
        }
    }

    fn frames(&self) -> u64 {
        self.hub.figures.frames(self.session.frames, self.id.slot)
    }

    /// When its peer last completed a frame of its own; `None`: it is not open.
    fn spoke(&self) -> Option<Tick> {
        match &self.session.phase {
            Phase::Open { life, .. } => Some(life.spoke()),
            Phase::Handshake { .. }
            | Phase::Admin(_)
            | Phase::Closing { .. }
            | Phase::Gone { .. } => None,
        }
    }

    /// How long ago that was, on a clock that stands still while the process does.
    fn idle(&self) -> Duration {
        let now = self.hub.waking.tick();
        let idle = self.spoke().map(|spoke| TICK * now.since(spoke));
        idle.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_session_can_be_called_is_nobody() {
        let account = AccountId::parse(&"1".repeat(32));
        for (whose_account, socket, expected) in [
            (Some(account), None, true),
            (Some(account), Some("127.0.0.1:5"), true),
            (None, Some("[2001:db8::1]:5"), true),
            (Some(None), None, false),
            (Some(None), Some("127.0.0.1:5"), false),
            (None, Some("127.0.0.1"), false),
            (None, Some("localhost:5"), false),
        ] {
            let whose = Whose {
                account: whose_account,
                socket: socket.map(Box::from),
            };
            let wanted = Wanted::of(&whose);
            assert_eq!(wanted.is_some(), expected, "{whose:?}");
            let is_of_one = wanted.is_some_and(|wanted| wanted.is_of_one());
            assert_eq!(is_of_one, expected && socket.is_some(), "{whose:?}");
        }
    }
}
