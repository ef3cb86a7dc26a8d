//! Step 3 of the turn: families started and stopped ([`super::modules`]), the sessions a slice a turn.

use std::borrow::Cow;

use crossbeam_channel::TryRecvError;

use super::Reactor;
use super::modules::{Stage, Switch};
use super::socket::Socket;
use crate::limits::{CONTROL_SESSIONS_PER_TURN_MAX, ENDED_AT_ONCE_MAX};
use crate::protocol::control::{ModuleChange, ModuleReply};
use crate::session::clock::Now;

impl<S: Socket> Reactor<S> {
    /// Begins a change, which [`Reactor::go_on_switch`] goes on with. One at a time, whoever asks: while one is under way
    /// (`is_switching`) this must not be called. O(families).
    ///
    /// # Errors
    /// There is no such module.
    pub(super) fn begin_switch(&mut self, change: ModuleChange) -> Result<Switch, ModuleReply> {
        let ModuleChange {
            module,
            is_start,
            persist,
        } = change;
        let changed = self.hub.subscriptions.switch_module(&module, is_start);
        let Some(changed) = changed else {
            return Err(ModuleReply {
                persisted: false,
                started: false,
                // As the platform says it.
                error: Some("module doesn't exist".into()),
            });
        };
        if changed {
            self.hub.metrics.modules_switched_total += 1;
            let what = if is_start { "started" } else { "stopped" };
            log::info!("module {module} {what}");
        }
        let is_ending = changed && !is_start;
        self.hub.is_ending_families = is_ending;
        self.is_switching = true;
        Ok(Switch {
            module,
            is_start,
            persist,
            stage: if is_ending {
                Stage::Ending(0)
            } else {
                Stage::Ended
            },
        })
    }

    /// Goes on with a change, a slice of the sessions at a time. Returns what became of it once it is done.
    pub(super) fn go_on_switch(&mut self, switch: &mut Switch, now: Now) -> Option<ModuleReply> {
        let done = self.switch_on(switch, now);
        self.is_switching = done.is_none();
        done
    }

    fn switch_on(&mut self, switch: &mut Switch, now: Now) -> Option<ModuleReply> {
        let reply = |kept: Result<bool, Cow<'static, str>>| ModuleReply {
            persisted: kept.as_ref().is_ok_and(|is_kept| *is_kept),
            started: switch.is_start,
            error: kept.err(),
        };
        match &switch.stage {
            Stage::Ending(slot) => {
                let next = self.end_some(*slot, now);
                self.hub.is_ending_families = next.is_some();
                switch.stage = next.map_or(Stage::Ended, Stage::Ending);
                None
            }
            Stage::Ended if !switch.persist => Some(reply(Ok(false))),
            Stage::Ended => match self.keeper.begin(&switch.module, switch.is_start) {
                Ok(result) => {
                    switch.stage = Stage::Keeping(result);
                    None
                }
                Err(error) => {
                    log::warn!("module {}: {error}", switch.module);
                    Some(reply(Err(error.into())))
                }
            },
            Stage::Keeping(result) => match result.try_recv() {
                Ok(Ok(())) => Some(reply(Ok(true))),
                Ok(Err(error)) => {
                    log::error!("module {}: not kept: {error}", switch.module);
                    Some(reply(Err("not kept: its file cannot be written".into())))
                }
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => {
                    log::error!("module {}: not kept: its thread has ended", switch.module);
                    Some(reply(Err("not kept".into())))
                }
            },
        }
    }

    /// Lets the sessions from `slot` on end their subscriptions of families that are off, as far as the share of the turn
    /// goes. Returns the next slot, if there is one.
    fn end_some(&mut self, slot: u32, now: Now) -> Option<u32> {
        let (mut slot, mut cost) = (slot, 0);
        while slot < self.connections.slots() {
            if cost >= CONTROL_SESSIONS_PER_TURN_MAX {
                return Some(slot);
            }
            if let Some((id, connection)) = self.connections.at_slot(slot) {
                let session = &mut connection.session;
                let cx = &mut self.hub.context(id, now);
                let ended = session.end_switched_off(ENDED_AT_ONCE_MAX, cx);
                self.settle(id);
                cost += ended.cost;
                if !ended.is_all {
                    return Some(slot);
                }
            }
            cost += 1;
            slot += 1;
        }
        None
    }
}
