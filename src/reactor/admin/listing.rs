//! A listing of sessions that is being made for an asker of the admin address, and an order to close some: what is asked
//! for, and how far it is. The loop goes on with them in [`super::sessions`].
//!
//! Invariant: of a listing no more than one page is kept: `limit` names of sessions, and
//! [`ADMIN_PAGE_BYTES_MAX`](crate::limits::ADMIN_PAGE_BYTES_MAX), give or take one session.

use std::net::SocketAddr;
use std::vec::IntoIter;

use crate::account::AccountId;
use crate::protocol::admin::{CloseOrder, SessionQuery, SortKey};
use crate::protocol::page::Page;
use crate::reactor::walk::Walk;
use crate::session::id::ConnId;
use crate::session::listing::Wanted;
use crate::session::ranking::{self, Rank};

/// A page that is being made.
pub(super) struct Listing {
    pub(super) walk: Walk,
    pub(super) form: Form,
    pub(super) limit: usize,
    pub(super) stage: Stage,
}

/// As what a session is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A row for the operator.
    Row,
    /// The object that the platform is told, in a list.
    Object,
    /// The same alone.
    One,
}

/// How far a listing is.
pub(super) enum Stage {
    /// Sessions are written as they are found.
    Walking(Page),
    /// The first of all are looked for.
    Ranking(SortKey, ranking::Page),
    /// They are written.
    Writing {
        page: Page,
        ranked: IntoIter<(Rank, ConnId)>,
        /// The last that was written or is gone.
        last: Option<Rank>,
        has_more: bool,
    },
}

/// Sessions that are being closed.
pub(super) struct Closing {
    pub(super) walk: Walk,
    pub(super) order: CloseOrder,
    pub(super) closed: usize,
}

/// A value of the query that cannot be: its name, and what was expected.
const BAD_START_KEY: &str = "start_key: not the next_start_key of a page of this listing";

impl Listing {
    /// What `GET /v2/sessions` asks for.
    ///
    /// # Errors
    /// What is wrong with the query.
    pub(super) fn of_query(query: &SessionQuery) -> Result<Self, &'static str> {
        let mut walk = Walk::new(Wanted::of_query(query));
        let start = query.start_key.as_deref();
        let stage = match query.sort {
            None => {
                walk.next_slot = first_slot(start)?;
                Stage::Walking(Page::default())
            }
            Some(key) => {
                let behind = start.map(|text| Rank::parse(text).ok_or(BAD_START_KEY));
                Stage::Ranking(key, ranking::Page::new(query.limit, behind.transpose()?))
            }
        };
        Ok(Self {
            walk,
            form: Form::Row,
            limit: query.limit,
            stage,
        })
    }

    /// What `GET /v2/accounts/{ACC}/websockets` asks for, or `…/{ID}`.
    ///
    /// # Errors
    /// What is wrong with the query.
    pub(super) fn of_account(
        account: AccountId,
        session: Option<SocketAddr>,
        limit: usize,
        start_key: Option<&str>,
    ) -> Result<Self, &'static str> {
        let mut walk = Walk::new(Wanted::of_account(Some(account), session));
        walk.next_slot = first_slot(start_key)?;
        let form = session.map_or(Form::Object, |_| Form::One);
        Ok(Self {
            walk,
            form,
            limit,
            stage: Stage::Walking(Page::default()),
        })
    }
}

/// The slot that an unsorted page begins with.
fn first_slot(start_key: Option<&str>) -> Result<u32, &'static str> {
    start_key.map_or(Ok(0), |text| ranking::slot(text).ok_or(BAD_START_KEY))
}

impl Closing {
    /// What `DELETE /v2/sessions` orders.
    pub(super) fn new(order: CloseOrder) -> Self {
        Self {
            walk: Walk::new(Wanted::of_order(&order)),
            order,
            closed: 0,
        }
    }

    /// Whose sessions these are, for the log.
    pub(super) fn whose(&self) -> String {
        let CloseOrder {
            session,
            account,
            ip,
            ..
        } = &self.order;
        let session = session.map(|id| format!("session {id}"));
        let account = account.map(|id| format!("account {id}"));
        let ip = ip.map(|ip| format!("address {ip}"));
        let all: Vec<String> = [session, account, ip].into_iter().flatten().collect();
        all.join(", ")
    }
}
