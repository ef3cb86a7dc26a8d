//! The life of a connection of the admin address (PROTOCOL 8). A request is read whole, body and all; it is answered at
//! once or later, and until then nothing more is read; then the next one may come.
//!
//! ```text
//!           +------------- answered, and more may come --------------+
//!           v                                                        |
//! Reading --whole request--> Answering --begin_stream--> Streaming   |
//!                                |   \----------------------- | -----+
//!                                | answered, and it is the    | end_stream
//!                                | last word                  v
//!                                +------------------------> Leaving --flushed--> Closing
//! ```
//!
//! Invariants:
//!
//! - `input` is below a head, a body and a read: a request is taken out of it when it is whole, and nothing is read while
//!   one is being answered or its answer is not flushed.
//! - An asker is answered in the order of its requests, one a turn.
//! - Bytes that wait for an asker who does not read end its connection (`send_timeout_ms`), whatever `slow_consumer` says.
//! - The connection counts for no address, and what it keeps is bounded by the number of such connections
//!   ([`ADMIN_CONNECTIONS_MAX`](crate::limits::ADMIN_CONNECTIONS_MAX)).

use std::time::Duration;

use serde_json::json;

use crate::documents::Document;
use crate::limits::TRACE_OUTBOX_BYTES_MAX;
use crate::protocol::admin::{AdminRefusal, AdminRequest};
use crate::protocol::admin_request::{self, AnswerForm, AskedFor};
use crate::protocol::frame::Frame;
use crate::protocol::http::{Parsed, Response, Status, TEXT, stream_head};

use super::admin_connection::{AdminConnection, Step};
use super::clock::Now;
use super::close::CloseReason;
use super::delivery::AfterFlush;
use super::hub::{Context, Hub};
use super::id::Peer;
use super::{ListenerKind, PeerSide, Phase, Session};

/// The content type of the metrics page.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What every answer has: nobody keeps it, and no browser takes it for a page.
const HEADERS: &str = "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n";

/// The answer to a request of the admin address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAnswer {
    /// A fixed document.
    Document {
        /// Which one.
        document: &'static Document,
        /// The asker has it already, so it is told only that (304).
        is_known: bool,
    },
    /// Lines of text.
    Text {
        /// Its status.
        status: Status,
        /// The lines, each with its end.
        body: String,
    },
    /// Metrics in the Prometheus text format 0.0.4.
    Metrics(String),
    /// JSON, with its envelope.
    Json {
        /// Its status.
        status: Status,
        /// The JSON.
        body: Vec<u8>,
    },
    /// Refused, in a line of text or in the platform's envelope, as the path calls for.
    Refused(AdminRefusal),
}

impl AdminAnswer {
    fn bytes(&self, form: AnswerForm) -> Vec<u8> {
        let whole = |status, content_type, more: &str, body: &[u8]| {
            let response = Response {
                status,
                content_type,
                headers: &format!("{HEADERS}{more}"),
                body,
            };
            response.bytes(form.head_only, form.is_last)
        };
        match self {
            Self::Document { document, is_known } => {
                let response = Response {
                    status: if *is_known {
                        Status::NotModified
                    } else {
                        Status::Ok
                    },
                    content_type: document.content_type,
                    headers: &document.headers(),
                    body: document.body.as_bytes(),
                };
                response.bytes(form.head_only || *is_known, form.is_last)
            }
            Self::Text { status, body } => whole(*status, TEXT, "", body.as_bytes()),
            Self::Metrics(body) => whole(Status::Ok, METRICS, "", body.as_bytes()),
            Self::Json { status, body } => whole(*status, "application/json", "", body),
            Self::Refused(AdminRefusal {
                status,
                text,
                headers,
            }) if form.is_json => {
                let body = json!({
                    "data": {"message": text},
                    "error": status.code().to_string(),
                    "status": "error",
                });
                let body = format!("{body}\n");
                whole(*status, "application/json", headers, body.as_bytes())
            }
            Self::Refused(AdminRefusal {
                status,
                text,
                headers,
            }) => whole(*status, TEXT, headers, format!("{text}\n").as_bytes()),
        }
    }
}

impl Session {
    /// A new connection of the admin address, through this listener, at `now`.
    #[must_use]
    pub fn of_admin(listener: ListenerKind, peer: Peer, now: Duration, hub: &mut Hub) -> Self {
        let mut session = Self::unplaced(peer, hub);
        session.phase = Phase::Admin(Box::new(AdminConnection {
            is_guarded: listener != ListenerKind::AdminSocket,
            has_asked: false,
            since: now,
            input: Vec::new(),
            step: Step::Reading,
        }));
        session
    }

    /// Whether it is a connection of the admin address that is not closing.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        matches!(self.phase, Phase::Admin(_))
    }

    /// Whether this connection of the admin address may make room for another: nobody waits for an answer, or the answer
    /// has been there for longer than `patience`, however little of it is read all the time.
    #[must_use]
    pub fn may_make_room(&self, now: Now, patience: Duration) -> bool {
        self.admin().is_some_and(|admin| match admin.step {
            Step::Reading | Step::Leaving { .. } => {
                self.outbox.is_empty() || now.clock.saturating_sub(admin.since) >= patience
            }
            Step::Answering(_) | Step::Streaming => false,
        })
    }

    fn is_admin_at_rest(&self) -> bool {
        self.outbox.is_empty()
            && self
                .admin()
                .is_some_and(|admin| admin.step == Step::Reading)
    }

    /// Whether the answer to its request is still to come.
    #[must_use]
    pub fn is_admin_waiting(&self) -> bool {
        self.admin()
            .is_some_and(|admin| matches!(admin.step, Step::Answering(_)))
    }

    /// Takes what the peer sent. Returns the request, if it is whole and permitted, for [`Session::answer`] or
    /// [`Session::begin_stream`], which must follow, at once or later.
    pub(super) fn on_admin_bytes(
        &mut self,
        input: &[u8],
        cx: &mut Context<'_>,
    ) -> Option<AdminRequest> {
        let admin = self.admin_mut()?;
        match admin.step {
            Step::Reading | Step::Answering(_) => {
                if admin.input.is_empty() {
                    admin.since = cx.now.clock;
                }
                admin.input.extend_from_slice(input);
                self.next_request(cx)
            }
            // It has nothing more to say; unread it would be a reset, which may destroy the answer.
            Step::Streaming | Step::Leaving { .. } => None,
        }
    }

    /// The next request of what has come already, as [`Session::on_bytes`] returns it. One that is refused is answered.
    pub fn next_request(&mut self, cx: &mut Context<'_>) -> Option<AdminRequest> {
        let admin = self.admin_mut()?;
        if admin.step != Step::Reading || admin.input.is_empty() {
            return None;
        }
        let guard = admin.is_guarded.then_some(&cx.hub.limits.admin);
        let Parsed::Complete { consumed, request } = admin_request::parse(&admin.input, guard)
        else {
            return None;
        };
        let AskedFor { request, form } = request;
        admin.input = admin.input.get(consumed..).unwrap_or_default().to_vec();
        admin.has_asked = true;
        admin.step = Step::Answering(form);
        cx.hub.metrics.admin_requests_total += 1;
        request
            .map_err(|refusal| {
                cx.hub.metrics.admin_requests_refused_total += 1;
                self.answer(&AdminAnswer::Refused(refusal), cx);
            })
            .ok()
    }

    /// Answers the request that waits; without one, nothing happens. `HEAD` and whether more may come are remembered. A
    /// process that is about to end takes no more.
    pub fn answer(&mut self, answer: &AdminAnswer, cx: &mut Context<'_>) {
        let Some(admin) = self.admin_mut() else {
            return;
        };
        let Step::Answering(mut form) = admin.step else {
            return;
        };
        form.is_last |= cx.hub.readiness.is_draining();
        admin.since = cx.now.clock;
        admin.step = if form.is_last {
            Step::Leaving {
                is_peer_done: false,
            }
        } else {
            Step::Reading
        };
        let frame = Frame::raw(&answer.bytes(form));
        self.outbox.push(frame, &mut cx.hub.outboxes);
    }

    /// Answers the request that waits with a stream of server-sent events, which begins empty; without one, nothing
    /// happens.
    pub fn begin_stream(&mut self, cx: &mut Context<'_>) {
        let Some(admin) = self.admin_mut() else {
            return;
        };
        let Step::Answering(form) = admin.step else {
            return;
        };
        admin.step = if form.head_only {
            Step::Leaving {
                is_peer_done: false,
            }
        } else {
            Step::Streaming
        };
        admin.input = Vec::new();
        let head = stream_head("text/event-stream", HEADERS);
        self.outbox.push(Frame::raw(&head), &mut cx.hub.outboxes);
    }

    /// Whether a stream goes on.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.admin()
            .is_some_and(|admin| admin.step == Step::Streaming)
    }

    /// Sends whole server-sent events. The caller asks [`Session::stream_has_room`] before.
    pub fn push_stream(&mut self, bytes: &[u8], cx: &mut Context<'_>) {
        if self.is_streaming() && !bytes.is_empty() {
            self.outbox.push(Frame::raw(bytes), &mut cx.hub.outboxes);
        }
    }

    /// Whether the looker takes what it is sent: fewer than [`TRACE_OUTBOX_BYTES_MAX`] bytes wait for it.
    #[must_use]
    pub fn stream_has_room(&self) -> bool {
        self.outbox.bytes() < TRACE_OUTBOX_BYTES_MAX
    }

    /// Ends a stream, and with it the connection, after what is queued.
    pub fn end_stream(&mut self, cx: &mut Context<'_>) {
        if !self.is_streaming() {
            return;
        }
        if self.outbox.is_empty() {
            return self.tell_end(PeerSide::Open, cx);
        }
        if let Some(admin) = self.admin_mut() {
            admin.step = Step::Leaving {
                is_peer_done: false,
            };
        }
    }

    /// What follows the flush of all that was for the asker.
    pub(super) fn after_admin_flush(&mut self, cx: &mut Context<'_>) -> AfterFlush {
        let Some(admin) = self.admin_mut() else {
            return AfterFlush::Idle;
        };
        match admin.step {
            Step::Reading => {
                admin.since = cx.now.clock;
                if admin.input.is_empty() {
                    AfterFlush::Idle
                } else {
                    AfterFlush::NextRequest
                }
            }
            Step::Answering(_) | Step::Streaming => AfterFlush::Idle,
            Step::Leaving { is_peer_done: true } => {
                self.phase = Phase::Gone {
                    reason: CloseReason::Http,
                    was_open: false,
                };
                AfterFlush::Idle
            }
            Step::Leaving {
                is_peer_done: false,
            } => {
                self.tell_end(PeerSide::Told, cx);
                AfterFlush::ShutdownWrite
            }
        }
    }

    /// Gives the peer time to close its side.
    fn tell_end(&mut self, peer: PeerSide, cx: &mut Context<'_>) {
        self.phase = Phase::Closing {
            reason: CloseReason::Http,
            was_open: false,
            peer,
        };
        cx.hub.deadlines.answered.begin(cx.now.clock, cx.id);
    }

    /// Ends a connection that has been waiting for a request, or for the rest of one, for `request_timeout_ms`. Returns
    /// whether it must be looked at again.
    pub fn check_admin(&mut self, cx: &mut Context<'_>) -> bool {
        let is_at_rest = self.is_admin_at_rest();
        let Some(admin) = self.admin() else {
            return false;
        };
        let waited = cx.now.clock.saturating_sub(admin.since);
        if !is_at_rest || waited < cx.hub.limits.request_timeout {
            return true;
        }
        let reason = if admin.has_asked && admin.input.is_empty() {
            CloseReason::Http
        } else {
            CloseReason::HandshakeTimeout
        };
        self.close(reason, cx);
        false
    }

    /// The peer closed its side of the stream, or the connection broke.
    pub(super) fn on_admin_end(&mut self, is_broken: bool) {
        let has_unsent = !self.outbox.is_empty();
        let Some(admin) = self.admin_mut() else {
            return;
        };
        let reason = match &mut admin.step {
            Step::Leaving { is_peer_done } if has_unsent && !is_broken => {
                *is_peer_done = true;
                return;
            }
            Step::Reading if admin.has_asked && admin.input.is_empty() => CloseReason::Http,
            Step::Reading | Step::Answering(_) => CloseReason::Lost,
            Step::Streaming | Step::Leaving { .. } => CloseReason::Http,
        };
        self.phase = Phase::Gone {
            reason,
            was_open: false,
        };
    }

    /// [`Session::wants_bytes`] of such a connection.
    pub(super) fn admin_wants_bytes(&self, admin: &AdminConnection) -> bool {
        match admin.step {
            Step::Reading => self.outbox.is_empty(),
            Step::Answering(_) => false,
            Step::Streaming | Step::Leaving { .. } => true,
        }
    }

    fn admin(&self) -> Option<&AdminConnection> {
        match &self.phase {
            Phase::Admin(admin) => Some(admin),
            Phase::Handshake { .. }
            | Phase::Open { .. }
            | Phase::Closing { .. }
            | Phase::Gone { .. } => None,
        }
    }

    fn admin_mut(&mut self) -> Option<&mut AdminConnection> {
        match &mut self.phase {
            Phase::Admin(admin) => Some(admin),
            Phase::Handshake { .. }
            | Phase::Open { .. }
            | Phase::Closing { .. }
            | Phase::Gone { .. } => None,
        }
    }
}
