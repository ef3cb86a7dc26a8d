//! Which sessions the platform asks for, and what it is told of one (PROTOCOL 8). Never a token or an account id.

use std::net::SocketAddr;

use crate::account::{AccountId, Scope};
use crate::protocol::control::{self, SessionFacts, Whose};

use super::Session;
use super::hub::Hub;
use super::id::{ConnId, Peer};

/// Which sessions are asked for, in the terms of sessions. A question that none can be the answer to is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    account: Option<AccountId>,
    peer: Option<Peer>,
}

impl Wanted {
    /// `None`: no session can be meant.
    #[must_use]
    pub fn of(whose: &Whose) -> Option<Self> {
        let peer = match &whose.socket {
            None => None,
            Some(id) => Some(Peer::from(id.parse::<SocketAddr>().ok()?)),
        };
        let account = match whose.account {
            None => None,
            Some(account) => Some(account?),
        };
        Some(Self { account, peer })
    }

    /// Whether at most one session is meant.
    #[must_use]
    pub fn is_of_one(&self) -> bool {
        self.peer.is_some()
    }
}

impl Session {
    /// Whether the session is one that is wanted. If so, what the platform is told of it is appended to `out`, if there is
    /// one, behind a comma if something is there. `host`: the name of this host.
    ///
    /// A session is one of the account that its identity belongs to. One whose identity belongs to none (`--auth insecure`) is
    /// one of each account that it is subscribed for, and shown with the bindings for that. Linear in its subscriptions.
    pub fn list(
        &self,
        id: ConnId,
        wanted: &Wanted,
        host: &str,
        hub: &Hub,
        out: Option<&mut Vec<u8>>,
    ) -> bool {
        if !self.is_open() {
            return false;
        }
        let peer = self.peer(hub);
        if wanted.peer.is_some_and(|meant| meant != peer) {
            return false;
        }
        let own = self.identity.as_ref().and_then(|own| own.account_id());
        let is_owned = wanted.account.is_none_or(|account| own == Some(account));
        let scope = wanted.account.filter(|_| !is_owned).map(Scope::One);
        let subscriptions = || hub.subscriptions.index().subscriptions(&self.subscriptions);
        let is_shown = |of: Scope| scope.is_none_or(|scope| of == scope);
        if !is_owned && (own.is_some() || !subscriptions().any(|one| is_shown(one.scope()))) {
            return false;
        }
        let Some(out) = out else {
            return true;
        };
        let (name, metadata) = self.name_and_metadata();
        let shown = subscriptions().filter(|one| is_shown(one.scope()));
        let facts = SessionFacts {
            id: &peer.to_string(),
            source: &peer.address().ip().to_string(),
            unix: hub.arrivals.unix(id),
            name,
            metadata: metadata.map(|value| value.get()),
            bindings: shown.map(|one| one.binding()),
        };
        if !out.is_empty() {
            out.push(b',');
        }
        control::write_session(out, facts, host);
        true
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
