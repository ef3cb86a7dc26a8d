//! What may be asked for on the admin address (PROTOCOL 8), and how it is refused. How it is written in HTTP is known to
//! [`super::admin_request`].

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use log::LevelFilter;

use crate::account::AccountId;
use crate::documents::Document;

use super::control::ModuleChange;
use super::http::{HttpError, Status};

/// A request of the admin address, understood as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    /// `GET /` and the other fixed documents.
    Document {
        /// Which one.
        document: &'static Document,
        /// The asker has it already (`If-None-Match`).
        is_known: bool,
    },
    /// `GET /v2/status`: what the process is.
    Status,
    /// `GET /healthz`.
    Health,
    /// `GET /readyz`.
    Ready,
    /// `GET /metrics`.
    Metrics,
    /// `GET /v2/websockets`: the bindings that there are.
    Bindings,
    /// `GET /v2/accounts/{ACC}/websockets` and `…/{ID}`: sessions as the platform is told of them.
    AccountSessions {
        /// Of this account.
        account: AccountId,
        /// The one of this id only.
        session: Option<SocketAddr>,
        /// How many at most, 1 to 1,000.
        limit: usize,
        /// Where the page before ended: its `next_start_key`.
        start_key: Option<Box<str>>,
    },
    /// `GET /v2/sessions`: sessions and what they cost.
    Sessions(SessionQuery),
    /// `DELETE /v2/sessions/{ID}` and `DELETE /v2/sessions?account=&ip=`.
    CloseSessions(CloseOrder),
    /// `GET /trace`.
    Trace(TraceQuery),
    /// `POST /drain`.
    Drain,
    /// `POST /log-level?level=`.
    LogLevel(LevelFilter),
    /// `POST /modules/{bh_…}?action=start|stop&persist=`.
    Module(ModuleChange),
}

/// Which sessions are listed, in which order, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionQuery {
    /// Those from this address only.
    pub ip: Option<IpAddr>,
    /// Those of this account only.
    pub account: Option<AccountId>,
    /// Those with this client binding only.
    pub binding: Option<Box<str>>,
    /// Those that are slow only.
    pub slow: bool,
    /// The largest first; `None`: in the order of their slots.
    pub sort: Option<SortKey>,
    /// How many at most, 1 to 1,000.
    pub limit: usize,
    /// Where the page before ended: its `next_start_key`.
    pub start_key: Option<Box<str>>,
}

/// What a listing is sorted by, largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortKey {
    /// How long ago it was opened.
    Age,
    /// How long ago its peer last sent something.
    Idle,
    /// Bytes sent.
    Bytes,
    /// Frames sent.
    Frames,
    /// Bytes that wait in its outbox.
    Outbox,
    /// Events dropped.
    Dropped,
}

/// Which sessions are closed, and how. At least one of the first three is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseOrder {
    /// The one of this id.
    pub session: Option<SocketAddr>,
    /// Those of this account.
    pub account: Option<AccountId>,
    /// Those from this address.
    pub ip: Option<IpAddr>,
    /// Close code: 1008, or 4000 to 4999.
    pub code: u16,
    /// Reason of the close frame, at most 123 bytes (RFC 6455 section 5.5).
    pub reason: Box<str>,
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceQuery {
    /// What happens to this session.
    pub session: Option<SocketAddr>,
    /// What happens to sessions and events of this account.
    pub account: Option<AccountId>,
    /// What happens to events of this routing key.
    pub key: Option<Box<str>>,
    /// Events of this name only.
    pub event: Option<Box<str>>,
    /// The stream ends after so many lines.
    pub limit: Option<u64>,
}

/// Why a request of the admin address is refused: what the answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminRefusal {
    /// Its status.
    pub status: Status,
    /// A line for a person, without its end. It never holds a token.
    pub text: Cow<'static, str>,
    /// More fields of the answer, complete lines, each with its CR LF.
    pub headers: String,
}

impl AdminRefusal {
    /// Without more fields.
    #[must_use]
    pub fn new(status: Status, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            text: text.into(),
            headers: String::new(),
        }
    }
}

impl From<HttpError> for AdminRefusal {
    fn from(error: HttpError) -> Self {
        Self {
            status: error.status_word(),
            text: error.text().into(),
            headers: error.headers(),
        }
    }
}
