//! What a request of the admin address begins (PROTOCOL 8), and the answers.
//!
//! | module | owns |
//! |---|---|
//! | this | which request begins what |
//! | [`about`], `status` | what a process is; the page `/v2/status` |
//! | `accept` | connections of the admin address taken in, and refused when there is no room |
//! | [`connections`] | which connections they are |
//! | `looks` | the looks of `/trace`: how they begin, are fed, and end |
//! | `metrics`, `process` | the page `/metrics`; its figures of the process |
//! | `job`, `jobs` | what takes more than one turn; a slice of it a turn |
//! | `listing`, `sessions` | listings of sessions, and sessions closed; a slice of them |
//! | `actions` | a drain, the log level, families started and stopped |

pub mod about;
mod accept;
mod actions;
pub(super) mod connections;
pub(super) mod job;
mod jobs;
mod listing;
mod looks;
mod metrics;
mod process;
mod sessions;
mod status;

use self::job::Work;
use self::listing::{Closing, Listing};
use super::Reactor;
use super::socket::Socket;
use crate::protocol::admin::{AdminRefusal, AdminRequest};
use crate::protocol::http::Status;
use crate::protocol::page;
use crate::session::admin::AdminAnswer;
use crate::session::clock::Now;
use crate::session::id::ConnId;

impl<S: Socket> Reactor<S> {
    /// Begins the requests that earlier turns had no time for.
    pub(super) fn begin_waiting(&mut self, now: Now) {
        for (id, request) in self.admin.begin_turn() {
            // Nobody waits for the answer to one whose asker has gone, and so nothing is done for it.
            if self.connections.get(id).is_some() {
                self.begin_admin(request, id, now);
            }
        }
    }

    /// A request has come. It is begun now, or in one of the next turns when as many have been begun in this one as may.
    pub(super) fn take_request(&mut self, request: AdminRequest, id: ConnId, now: Now) {
        if let Some(request) = self.admin.take(id, request) {
            self.begin_admin(request, id, now);
        }
    }

    /// Begins what is asked for. The connection waits for [`Reactor::answer_admin`], which comes at once or in a later
    /// turn.
    pub(super) fn begin_admin(&mut self, request: AdminRequest, id: ConnId, now: Now) {
        let answer = match request {
            AdminRequest::Document { document, is_known } => {
                AdminAnswer::Document { document, is_known }
            }
            AdminRequest::Status => self.process_status(now),
            AdminRequest::Health => AdminAnswer::Text {
                status: Status::Ok,
                body: "ok\n".to_owned(),
            },
            AdminRequest::Ready => self.readiness(),
            AdminRequest::Metrics => AdminAnswer::Metrics(metrics::metrics(self)),
            AdminRequest::Bindings => self.available_bindings(),
            AdminRequest::AccountSessions {
                account,
                session,
                limit,
                start_key,
            } => {
                let listing = Listing::of_account(account, session, limit, start_key.as_deref());
                return self.begin_listing(listing, id, now);
            }
            AdminRequest::Sessions(query) => {
                return self.begin_listing(Listing::of_query(&query), id, now);
            }
            AdminRequest::CloseSessions(order) => {
                let work = Work::Closing(Closing::new(order));
                return self.begin_job(work, id, now);
            }
            AdminRequest::Drain => self.order_drain(),
            AdminRequest::LogLevel(level) => actions::set_log_level(level),
            AdminRequest::Module(change) => return self.begin_module(change, id, now),
            AdminRequest::Trace(query) => return self.begin_look(&query, id, now),
        };
        self.answer_admin(id, &answer, now);
    }

    /// Answers the request that waits on a connection, if it is still there.
    pub(super) fn answer_admin(&mut self, id: ConnId, answer: &AdminAnswer, now: Now) {
        self.act(id, now, |session, cx| session.answer(answer, cx));
    }

    /// Begins the next request of an asker who sent several at once.
    pub(super) fn begin_next(&mut self, id: ConnId, now: Now) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let cx = &mut self.hub.context(id, now);
        if let Some(request) = connection.session.next_request(cx) {
            self.take_request(request, id, now);
        }
        self.settle(id);
    }

    fn begin_listing(&mut self, listing: Result<Listing, &'static str>, id: ConnId, now: Now) {
        match listing {
            Ok(listing) => self.begin_job(Work::Listing(listing), id, now),
            Err(wrong) => {
                let refusal = AdminRefusal::new(Status::BadRequest, wrong);
                self.answer_admin(id, &AdminAnswer::Refused(refusal), now);
            }
        }
    }

    fn available_bindings(&self) -> AdminAnswer {
        let families = self.hub.subscriptions.families();
        AdminAnswer::Json {
            status: Status::Ok,
            body: page::whole(|out| page::write_bindings(out, families.available())),
        }
    }

    fn readiness(&self) -> AdminAnswer {
        let lines = self.barred.iter();
        let barred: String = lines.map(|line| format!("{line}\n")).collect();
        let (status, told) = match self.hub.readiness.unready() {
            None => (Status::Ok, "ready"),
            Some(why) => (Status::Unavailable, why.text()),
        };
        AdminAnswer::Text {
            status,
            body: format!("{told}\n{barred}"),
        }
    }
}
