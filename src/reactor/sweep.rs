//! The slow walk over all sessions, a part of them each tenth of a second: what has no deadline of its own is found
//! here, so that an idle session needs no timer.
//!
//! Invariant: while any session has a token that expires, a pass is under way or the next is due; else nobody walks.

use std::time::Duration;

use super::Reactor;
use super::socket::Socket;
use crate::limits;
use crate::session::close::CloseReason;
use crate::session::hub::Now;

/// The slow walk over all sessions.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    due: Duration,
    next_slot: u32,
    /// A pass has begun and is not through.
    is_under_way: bool,
}

impl<S: Socket> Reactor<S> {
    /// Visits a part of all sessions: closes those whose token has expired. A pass that finds no token with an
    /// expiry is the last, until a session comes by another.
    pub(super) fn sweep(&mut self, now: Now) {
        if !self.is_sweeping() || now.clock < self.sweep.due {
            return;
        }
        if !self.sweep.is_under_way {
            self.hub.tokens_expire = false;
            self.sweep.is_under_way = true;
        }
        self.sweep.due = now.clock + limits::SWEEP_INTERVAL;
        let slots = self.connections.slots();
        let visits = (slots as usize / limits::SWEEP_STEPS).max(limits::SWEEP_SESSIONS_MIN);
        for _ in 0..visits {
            if self.sweep.next_slot >= slots {
                let due = self.sweep.due;
                self.sweep = Sweep {
                    due,
                    ..Sweep::default()
                };
                return;
            }
            let slot = self.sweep.next_slot;
            self.sweep.next_slot += 1;
            let Some((id, connection)) = self.connections.at_slot(slot) else {
                continue;
            };
            if let Some(expires) = connection.session.expires()
                && connection.session.is_open()
            {
                // There is one to look at again, in the next pass.
                self.hub.tokens_expire = true;
                if expires <= now.unix {
                    self.close(id, CloseReason::Expired, now);
                }
            }
        }
    }

    /// When the sweep has to go on; `None`: no session has a token that expires.
    pub(super) fn sweep_due(&self) -> Option<Duration> {
        self.is_sweeping().then_some(self.sweep.due)
    }

    fn is_sweeping(&self) -> bool {
        self.sweep.is_under_way || self.hub.tokens_expire
    }
}
