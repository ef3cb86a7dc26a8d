//! Step 3 of the turn: what the source says of itself, and the events of the hand-off.
//!
//! Invariant: what the source says of itself is taken in every turn, however many events wait.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crossbeam_channel::TryRecvError;

use super::Reactor;
use super::socket::Socket;
use crate::handoff::{FromSource, Return};
use crate::history::Why;
use crate::limits;
use crate::protocol::reply;
use crate::routing::amqp_binding::Asked;
use crate::routing::waiters::Waiter;
use crate::session::Session;
use crate::session::clock::Now;
use crate::session::hub::{Context, Hub};
use crate::session::id::ConnId;

impl<S: Socket> Reactor<S> {
    /// Empties the hand-off as far as the bounds allow. After a fan-out to many sessions it looks again until nothing more
    /// comes. On a core of its own that is no wait; on a shared core the source hands over the rest of a burst, which then
    /// costs one write a session instead of several.
    pub(super) fn take_events(&mut self, now: Now) {
        if self.renewal.is_some() {
            return;
        }
        let mut in_vain = 0;
        for look in 0..limits::LOOKS_PER_TURN_MAX {
            if look > 0 {
                std::thread::yield_now();
                self.hub.metrics.handoff_looks_again_total += 1;
            }
            let is_in_vain = self.drain_handoff(now) == 0;
            in_vain = if is_in_vain { in_vain + 1 } else { 0 };
            let waiting = self.flush.len().max(self.waiting_for_run());
            let is_worth_it =
                waiting >= limits::YIELD_FLUSHES_MIN && in_vain < limits::EMPTY_LOOKS_MAX;
            if self.more_messages
                || self.fan_out.is_sliced()
                || !is_worth_it
                || (look == 0 && is_in_vain)
            {
                break;
            }
        }
        self.end_run(now);
        let held_for = |since| now.clock.saturating_sub(since);
        self.held_for = self.held_since.map_or(Duration::ZERO, held_for);
    }

    /// One look at the hand-off. Returns how many events it took.
    fn drain_handoff(&mut self, now: Now) -> usize {
        self.handoff.clear_wake();
        self.more_messages = true;
        let are_all_heard = self.hear_source(now);
        let mut taken = 0;
        for _ in 0..limits::EVENTS_PER_LOOK_MAX {
            if !self.flush.takes_another_event(self.fan_out.held()) {
                self.more_messages =
                    !are_all_heard || self.handoff.waiting() > 0 || self.fan_out.is_sliced();
                self.note_held(now);
                return taken;
            }
            if self.fan_out.is_sliced() {
                // The next slice; if another is left, it waits for the next turn.
                self.fan_out_slice(now);
                if self.fan_out.is_sliced() {
                    return taken;
                }
            }
            match self.handoff.try_event() {
                Ok(message) => {
                    self.held_since = None;
                    taken += 1;
                    self.on_message(message, now);
                    if self.fan_out.is_sliced() {
                        return taken;
                    }
                }
                Err(TryRecvError::Empty) => {
                    self.hub.history.nothing_waits(now);
                    self.more_messages = !are_all_heard;
                    self.held_since = None;
                    return taken;
                }
                Err(TryRecvError::Disconnected) => {
                    self.more_messages = false;
                    self.held_since = None;
                    self.on_source_gone(now);
                    return taken;
                }
            }
        }
        taken
    }

    /// Takes what the source says of itself. False: there may be more.
    fn hear_source(&mut self, now: Now) -> bool {
        for _ in 0..limits::CONTROLS_PER_LOOK_MAX {
            match self.handoff.try_control() {
                Ok(message) => self.on_message(message, now),
                // The channel of the events tells the end of the source, because its events come first.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
            }
        }
        false
    }

    fn note_held(&mut self, now: Now) {
        if self.handoff.waiting() > 0 {
            self.hub.metrics.handoff_held_total += 1;
            self.held_since.get_or_insert(now.clock);
        }
    }

    fn on_message(&mut self, message: FromSource, now: Now) {
        if !matches!(message, FromSource::Event(_)) {
            self.end_run(now);
        }
        match message {
            FromSource::Event(event) => self.fan_out(event, now),
            FromSource::Bound(bindings) => self.on_bound(bindings, now),
            FromSource::Up(what) => self.on_up(what, now),
            FromSource::Down { since } => {
                self.on_down(self.clock_of(since));
                self.hub.trace.source(false, now);
            }
            FromSource::Lost(bindings) => {
                // What is found lost at a reconnect may have been so all the while.
                let since = self.hub.readiness.away_since().unwrap_or(now.clock);
                for lost in bindings {
                    for waiter in self.hub.subscriptions.on_lost(&lost, since) {
                        self.resume(waiter, now, Session::on_refused);
                    }
                }
            }
            FromSource::Barred(lines) => self.barred = lines,
            FromSource::CaughtUp => {
                let held = self.hub.limits.deliveries_held_max;
                self.hub.history.catch_up(self.handoff.waiting() + held);
            }
            FromSource::Overflowed { since } => {
                // What the source holds came before what the broker has dropped.
                let held = self.hub.limits.deliveries_held_max;
                self.hub.history.outage(self.handoff.waiting() + held, now);
                self.hub.resumers.fail_all(Why::Outage);
                let away = now.clock.saturating_sub(self.clock_of(since));
                self.announce(away, everybody, now);
            }
        }
    }

    pub(super) fn clock_of(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.epoch)
    }

    fn on_up(&mut self, what: Return, now: Now) {
        let away_since = self.hub.readiness.on_source_up();
        self.hub.history.come_back(what == Return::Unbroken);
        if what == Return::Anew {
            self.hub.history.outage(self.handoff.waiting(), now);
            self.hub.resumers.fail_all(Why::Outage);
        }
        if let (Return::Anew, Some(since)) = (what, away_since) {
            self.announce(now.clock.saturating_sub(since), everybody, now);
        }
        self.hub.trace.source(true, now);
        for waiter in self.hub.subscriptions.on_up() {
            self.resume(waiter, now, Session::on_bound);
        }
    }

    fn on_down(&mut self, since: Duration) {
        self.hub.history.fall_behind(since);
        self.hub.subscriptions.on_down();
        if self.hub.readiness.on_source_down(since) {
            self.hub.metrics.source_outages_total += 1;
        }
    }

    fn on_source_gone(&mut self, now: Now) {
        if !self.source_gone {
            self.source_gone = true;
            log::error!("the event source's thread has ended; no events will come");
            self.on_down(now.clock);
            self.hub.trace.source(false, now);
        }
    }

    fn on_bound(&mut self, bindings: Vec<Asked>, now: Now) {
        let mut lost_since = now.clock;
        let mut healed = HashSet::new();
        let boundary = self.hub.history.draw_coverage(now);
        for bound in bindings {
            let Some(in_force) = self.hub.subscriptions.on_bound(&bound, boundary, now) else {
                continue;
            };
            if let Some(since) = in_force.lost_since {
                lost_since = lost_since.min(since);
                healed.insert(bound.binding);
            }
            for waiter in in_force.waiters {
                self.resume(waiter, now, Session::on_bound);
            }
        }
        if !healed.is_empty() {
            let exchanges = healed.iter().map(|it| it.exchange.clone()).collect();
            let needs = |session: &Session, hub: &Hub| session.needs_any(&healed, &exchanges, hub);
            self.announce(now.clock.saturating_sub(lost_since), needs, now);
        }
    }

    /// Goes on with a subscribe that waits.
    pub(super) fn resume(
        &mut self,
        waiter: Waiter,
        now: Now,
        how: fn(&mut Session, u32, &mut Context<'_>),
    ) {
        let Waiter { slot, number } = waiter;
        if let Some((id, _)) = self.connections.at_slot(slot) {
            self.act(id, now, |session, cx| how(session, number, cx));
        }
    }

    /// Tells every subscribed session that this concerns that events may have been lost for so long. Linear in all sessions.
    fn announce(&mut self, away: Duration, concerns: impl Fn(&Session, &Hub) -> bool, now: Now) {
        if !self.hub.limits.gap_notices {
            return;
        }
        let notice = reply::gap_event_source(&mut self.hub.builder, away);
        let ids: Vec<ConnId> = self.connections.iter().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(connection) = self.connections.get(id)
                && concerns(&connection.session, &self.hub)
            {
                self.act(id, now, |session, cx| session.announce_outage(&notice, cx));
            }
        }
    }
}

/// An outage of the whole source concerns every session.
fn everybody(_: &Session, _: &Hub) -> bool {
    true
}
