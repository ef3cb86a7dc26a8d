//! Looks: `GET /trace` (PROTOCOL 8). How one begins, how its looker is fed, and how it ends.
//!
//! Invariants: the AMQP bindings of a look are held from its beginning to its end, however it ends, as those of a
//! subscription are; the loop never waits for a looker.

use std::sync::Arc;

use crate::account::AccountId;
use crate::limits::TRACE_KEYS_MAX;
use crate::protocol::admin::{AdminRefusal, TraceQuery};
use crate::protocol::http::Status;
use crate::reactor::Reactor;
use crate::reactor::socket::Socket;
use crate::routing::amqp_binding::AmqpBinding;
use crate::routing::key_filter::KeyFilter;
use crate::session::admin::AdminAnswer;
use crate::session::clock::Now;
use crate::session::hub::Hub;
use crate::session::id::{ConnId, Peer};
use crate::session::trace::{Beginning, Ended, Filter, Look};

impl<S: Socket> Reactor<S> {
    /// Begins a look, or refuses it. Linear in all sessions.
    pub(super) fn begin_look(&mut self, query: &TraceQuery, id: ConnId, now: Now) {
        let filter = match self.filter(query) {
            Ok(filter) => filter,
            Err(refusal) => {
                return self.answer_admin(id, &AdminAnswer::Refused(refusal), now);
            }
        };
        self.act(id, now, |session, cx| session.begin_stream(cx));
        if !self.is_streaming(id) {
            // `HEAD`: there is nobody to tell.
            return;
        }
        self.hub.metrics.trace_looks_total += 1;
        let session = filter.session.and_then(|peer| self.session_of(peer));
        let (keys, keys_left_out) = self.keys_for(&filter);
        self.hub.subscriptions.hold(&keys);
        let look = Look::new(id, filter, session, keys, query.limit, now.clock);
        let seen = session.and_then(|id| self.connections.get(id));
        let seen = seen.map(|connection| &connection.session);
        let Hub {
            trace,
            subscriptions,
            readiness,
            ..
        } = &mut self.hub;
        let list = seen.into_iter().flat_map(|session| {
            let index = subscriptions.index();
            index.subscriptions(session.subscriptions())
        });
        let bindings = list.map(|one| {
            let account = one.scope().account();
            let account = account.map_or_else(|| "*".to_owned(), |account| account.to_string());
            (one.binding(), account)
        });
        let beginning = Beginning {
            account: seen.and_then(|session| session.account()),
            bindings: bindings.collect(),
            keys_left_out,
            stopped: subscriptions.families().stopped(),
            is_source_up: readiness.is_source_up(),
        };
        trace.begin(look, &beginning, query.limit, now);
    }

    /// Sends the lookers what there is for them, and ends the looks that are over. To be called once a turn, when
    /// everything else has happened.
    pub(in crate::reactor) fn feed_looks(&mut self, now: Now) {
        if !self.hub.trace.is_on() {
            return;
        }
        for id in self.hub.trace.lookers() {
            if !self.is_streaming(id) {
                self.end_look(id);
                continue;
            }
            let has_room = self
                .connections
                .get(id)
                .is_some_and(|connection| connection.session.stream_has_room());
            let Hub {
                trace,
                subscriptions,
                readiness,
                ..
            } = &mut self.hub;
            if !has_room {
                trace.put_off(id, now);
                continue;
            }
            let Some(lines) = trace.take(id, subscriptions, readiness.is_source_up(), now) else {
                continue;
            };
            self.hub.metrics.trace_left_out_total += lines.left_out;
            self.act(id, now, |session, cx| {
                session.push_stream(&lines.bytes, cx);
                if lines.is_last {
                    session.end_stream(cx);
                }
            });
            if lines.is_last {
                self.end_look(id);
            }
        }
        self.hub.trace.begin_share(now);
    }

    /// Ends all looks, with a word to those who take it: for the end of the process.
    pub fn end_looks(&mut self, now: Now) {
        self.hub.trace.end_all(Ended::Drain);
        self.feed_looks(now);
    }

    fn end_look(&mut self, id: ConnId) {
        if let Some(look) = self.hub.trace.end(id) {
            self.hub.subscriptions.let_go(&look.into_keys());
        }
    }

    fn is_streaming(&self, id: ConnId) -> bool {
        self.connections
            .get(id)
            .is_some_and(|connection| connection.session.is_streaming())
    }

    /// What is looked at.
    ///
    /// # Errors
    /// Nothing is named, a key that no family knows is, or there are as many looks as there may be.
    fn filter(&mut self, query: &TraceQuery) -> Result<Filter, AdminRefusal> {
        let bad = |text: &str| AdminRefusal::new(Status::BadRequest, text.to_owned());
        if query.session.is_none() && query.account.is_none() && query.key.is_none() {
            return Err(bad("one of session, account and key must be given"));
        }
        if self.hub.trace.is_full() {
            self.hub.metrics.trace_looks_refused_total += 1;
            let text = "as many look as may at once";
            return Err(AdminRefusal::new(Status::Unavailable, text));
        }
        let realm = query.account.and_then(|account| self.realm_of(account));
        let families = self.hub.subscriptions.families();
        let key = query.key.as_deref().map(|key| {
            let filter = KeyFilter::new(families, key, query.account, realm.as_deref());
            filter.map_err(|error| bad(&error.to_string()))
        });
        Ok(Filter {
            session: query.session.map(Peer::from),
            account: query.account,
            realm,
            key: key.transpose()?,
            event: query.event.clone(),
        })
    }

    /// The AMQP bindings that bring the events looked at, as far as there is room, and how many there is no room for. What
    /// a session gets is bound already.
    fn keys_for(&self, filter: &Filter) -> (Vec<AmqpBinding>, usize) {
        let subscriptions = &self.hub.subscriptions;
        let (families, months) = (subscriptions.families(), subscriptions.months().now());
        let mut keys = Vec::new();
        match (&filter.key, filter.account) {
            (Some(key), _) => key.amqp_bindings(families, months, &mut keys),
            (None, Some(account)) => {
                families.account_bindings(account, filter.realm.as_deref(), months, &mut keys);
            }
            (None, None) => {}
        }
        let room = TRACE_KEYS_MAX.min(self.hub.trace.keys_left());
        let left_out = keys.len().saturating_sub(room);
        keys.truncate(room);
        (keys, left_out)
    }

    /// The open session of a peer.
    fn session_of(&self, peer: Peer) -> Option<ConnId> {
        let is_it = |id: &ConnId| {
            let connection = self.connections.get(*id);
            connection.is_some_and(|connection| {
                connection.session.is_open() && connection.session.peer(&self.hub) == peer
            })
        };
        self.connections.iter().map(|(id, _)| id).find(is_it)
    }

    /// The SIP realm of an account, as far as the account tree tells or a session knows.
    fn realm_of(&self, account: AccountId) -> Option<Arc<str>> {
        let authenticator = &self.hub.authenticator;
        let of_sessions = || {
            let sessions = self.connections.iter();
            let mut sessions = sessions.map(|(_, connection)| &connection.session);
            sessions.find_map(|session| session.realm_of(account, &self.hub))
        };
        authenticator.realm_in_tree(account).or_else(of_sessions)
    }
}
