//! What a request of the admin address begins (PROTOCOL 8), and the answers.
//!
//! | module | owns |
//! |---|---|
//! | this | which request begins what |
//! | `accept` | connections of the admin address taken in, and refused when there is no room |
//! | [`desk`] | which connections they are |
//! | `metrics` | the page `/metrics` |

mod accept;
pub(super) mod desk;
mod metrics;
mod process;

use super::Reactor;
use super::socket::Socket;
use crate::protocol::admin::{AdminRefusal, AdminRequest};
use crate::protocol::http::Status;
use crate::session::admin::AdminAnswer;
use crate::session::clock::Now;
use crate::session::id::ConnId;

impl<S: Socket> Reactor<S> {
    /// Begins the requests that earlier turns had no time for.
    pub(super) fn begin_waiting(&mut self, now: Now) {
        for (id, request) in self.desk.begin_turn() {
            // Nobody waits for the answer to one whose asker has gone, and so nothing is done for it.
            if self.connections.get(id).is_some() {
                self.begin_admin(request, id, now);
            }
        }
    }

    /// A request has come. It is begun now, or in one of the next turns when as many have been begun in this one as may.
    pub(super) fn take_request(&mut self, request: AdminRequest, id: ConnId, now: Now) {
        if let Some(request) = self.desk.take(id, request) {
            self.begin_admin(request, id, now);
        }
    }

    /// Begins what is asked for. The connection waits for [`Reactor::answer_admin`], which comes at once or in a later turn.
    pub(super) fn begin_admin(&mut self, request: AdminRequest, id: ConnId, now: Now) {
        let answer = match request {
            AdminRequest::Health => AdminAnswer::Text {
                status: Status::Ok,
                body: "ok\n".to_owned(),
            },
            AdminRequest::Ready => self.readiness(),
            AdminRequest::Metrics => AdminAnswer::Metrics(metrics::metrics(self)),
            AdminRequest::Bindings
            | AdminRequest::AccountSessions { .. }
            | AdminRequest::Sessions(_)
            | AdminRequest::CloseSessions(_)
            | AdminRequest::Trace(_)
            | AdminRequest::Drain
            | AdminRequest::LogLevel(_)
            | AdminRequest::Module(_) => {
                AdminAnswer::Refused(AdminRefusal::new(Status::Unavailable, "not here yet"))
            }
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
