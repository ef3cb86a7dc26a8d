//! Listings of sessions, and sessions closed, for whoever asks on the admin address ([`super::jobs`]).
//!
//! ```text
//! unsorted: walk, and write what is found             -> the page is full, or the walk at its end
//! sorted:   walk, and keep the first of what is found -> write these -> the page is full, or all are written
//! ```
//!
//! Invariants: of a listing no more than one page is kept: `limit` names of sessions, and [`ADMIN_PAGE_BYTES_MAX`], give or
//! take one session. A slice asks the kernel about a bounded number of sockets, writes a bounded number of bytes and closes
//! a bounded number of sessions.

use std::vec::IntoIter;

use super::listing::{Closing, Form, Listing, Stage};
use crate::limits::{
    ADMIN_PAGE_BYTES_MAX, CONTROL_BYTES_PER_TURN_MAX, CONTROL_SESSIONS_PER_TURN_MAX, ENDING_COST,
    KERNEL_ASKED_COST,
};
use crate::protocol::admin::{AdminRefusal, CloseOrder, SortKey};
use crate::protocol::http::Status;
use crate::protocol::page::{self, Page};
use crate::reactor::Reactor;
use crate::reactor::socket::Socket;
use crate::reactor::walk::{Visit, Walk, Walked};
use crate::reactor::walking::Found;
use crate::session::admin::AdminAnswer;
use crate::session::clock::Now;
use crate::session::id::ConnId;
use crate::session::listing::{Beneath, Wanted};
use crate::session::ranking::Rank;
use crate::tls::Version;

impl<S: Socket> Reactor<S> {
    /// A slice of a listing. Returns the answer once it is whole.
    pub(super) fn list_slice(&mut self, listing: &mut Listing, now: Now) -> Option<AdminAnswer> {
        let Listing {
            walk,
            form,
            limit,
            stage,
        } = listing;
        match stage {
            Stage::Walking(page) => {
                let walked = self.write_found(walk, *form, *limit, page, now);
                let next = walk.next_slot.to_string();
                match walked {
                    Walked::Paused => None,
                    Walked::Stopped => Some(listed(*form, std::mem::take(page), Some(&next))),
                    Walked::Ended => Some(listed(*form, std::mem::take(page), None)),
                }
            }
            Stage::Ranking(key, best) => {
                let key = *key;
                let walked = self.walk_on(walk, |found| {
                    let value = found.sort_value(key);
                    best.look(value, found.id);
                    Visit::GoOn(found.cost_of_value(key))
                });
                if walked == Walked::Ended {
                    let (ranked, has_more) = std::mem::take(best).finish();
                    *stage = Stage::Writing {
                        page: Page::default(),
                        ranked: ranked.into_iter(),
                        last: None,
                        has_more,
                    };
                }
                None
            }
            Stage::Writing {
                page,
                ranked,
                last,
                has_more,
            } => {
                let is_whole = self.write_ranked(&walk.wanted, page, ranked, last, now);
                is_whole.then(|| {
                    let has_more = *has_more || ranked.len() > 0;
                    let next = last.filter(|_| has_more).map(|rank| rank.to_string());
                    listed(*form, std::mem::take(page), next.as_deref())
                })
            }
        }
    }

    fn write_found(
        &self,
        walk: &mut Walk,
        form: Form,
        limit: usize,
        page: &mut Page,
        now: Now,
    ) -> Walked {
        let bytes_max = page.bytes() + CONTROL_BYTES_PER_TURN_MAX;
        self.walk_on(walk, |found| {
            if page.items() >= limit || page.bytes() >= ADMIN_PAGE_BYTES_MAX {
                return Visit::Stop;
            }
            page.add(|out| match form {
                Form::Row => found.write_row(now, out),
                Form::Object | Form::One => found.shown.write_object(&self.host, out),
            });
            if page.bytes() >= bytes_max {
                Visit::Pause
            } else {
                Visit::GoOn(KERNEL_ASKED_COST)
            }
        })
    }

    /// Writes those that are still there and wanted, as far as the share of the turn goes. True: the page is full, or all
    /// are written.
    fn write_ranked(
        &self,
        wanted: &Wanted,
        page: &mut Page,
        ranked: &mut IntoIter<(Rank, ConnId)>,
        last: &mut Option<Rank>,
        now: Now,
    ) -> bool {
        let bytes_max = page.bytes() + CONTROL_BYTES_PER_TURN_MAX;
        for _ in 0..CONTROL_SESSIONS_PER_TURN_MAX / KERNEL_ASKED_COST {
            if page.bytes() >= ADMIN_PAGE_BYTES_MAX {
                return true;
            }
            if page.bytes() >= bytes_max {
                return false;
            }
            let Some((rank, id)) = ranked.next() else {
                return true;
            };
            *last = Some(rank);
            let Some(connection) = self.connections.get(id) else {
                continue;
            };
            if let Some(shown) = connection.session.shown(id, wanted, &self.hub) {
                let found = Found {
                    id,
                    shown,
                    socket: &connection.socket,
                    tls: self.tls_version(id),
                };
                page.add(|out| found.write_row(now, out));
            }
        }
        false
    }

    /// A slice of an order to close sessions. Returns the answer once all are closed.
    pub(super) fn close_slice(
        &mut self,
        closing: &mut Closing,
        asker: ConnId,
        now: Now,
    ) -> Option<AdminAnswer> {
        let mut found = Vec::new();
        let walked = self.walk_on(&mut closing.walk, |one| {
            found.push(one.id);
            Visit::GoOn(ENDING_COST * (1 + one.shown.subscriptions()))
        });
        closing.closed += found.len();
        let CloseOrder { code, reason, .. } = &closing.order;
        for id in found {
            self.act(id, now, |session, cx| {
                session.close_for_operator(*code, reason, cx);
            });
        }
        if walked == Walked::Paused {
            return None;
        }
        let (closed, whose) = (closing.closed, closing.whose());
        if closed == 0 && closing.walk.wanted.is_of_one() {
            return Some(not_found(format!("no {whose}")));
        }
        let asker = self.asker_told(asker);
        log::info!(
            "sessions closed by the operator: {closed} ({whose}) with {code} {reason:?}{asker}"
        );
        let body = page::whole(|out| {
            out.extend_from_slice(format!(r#"{{"closed":{closed}}}"#).as_bytes());
        });
        Some(AdminAnswer::Json {
            status: Status::Ok,
            body,
        })
    }

    /// Where an order came from, for the log; empty if its connection has gone.
    fn asker_told(&self, asker: ConnId) -> String {
        let connection = self.connections.get(asker);
        connection.map_or_else(String::new, |one| {
            let peer = one.session.peer(&self.hub);
            if peer.address().ip().is_unspecified() {
                ", asked for on the admin socket".to_owned()
            } else {
                format!(", asked for by {peer}")
            }
        })
    }
}

impl<S: Socket> Found<'_, S> {
    fn write_row(&self, now: Now, out: &mut Vec<u8>) {
        let beneath = Beneath {
            bytes: self.socket.acknowledged_bytes(),
            tls: self.tls.map(Version::number),
        };
        self.shown.write_row(beneath, now, out);
    }

    fn sort_value(&self, key: SortKey) -> u64 {
        let bytes = || self.socket.acknowledged_bytes();
        self.shown.sort_value(key, bytes)
    }

    fn cost_of_value(&self, key: SortKey) -> usize {
        match key {
            SortKey::Bytes => KERNEL_ASKED_COST,
            SortKey::Age | SortKey::Idle | SortKey::Frames | SortKey::Outbox | SortKey::Dropped => {
                0
            }
        }
    }
}

/// A listing that is whole.
fn listed(form: Form, page: Page, next: Option<&str>) -> AdminAnswer {
    let body = match form {
        Form::Row | Form::Object => page.finish(next),
        Form::One => match page.finish_one() {
            Some(body) => body,
            None => return not_found("this account has no such session here".to_owned()),
        },
    };
    AdminAnswer::Json {
        status: Status::Ok,
        body,
    }
}

fn not_found(text: String) -> AdminAnswer {
    AdminAnswer::Refused(AdminRefusal::new(Status::NotFound, text))
}
