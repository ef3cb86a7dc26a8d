//! What happens to subscribes that wait for the broker: its answers, the end of their time, other rights.
//!
//! Invariant: a subscribe is taken out of its place ([`super::replies`]) before it is changed, and either goes back there
//! or leaves its reply there, so the order of the replies holds.

use std::sync::Arc;

use crate::auth::Identity;
use crate::metrics::commands::{CommandAction, CommandResult};
use crate::routing::waiters::Waiter;

use super::Session;
use super::binding_quota;
use super::errors::{CommandErrors, SourceTrouble};
use super::hub::{Context, Hub};
use super::replies::Reply;
use super::rights::authorised;
use super::waiting::{AskedOfStream, Progress, Waiting};

impl Session {
    /// Ends all subscribes that wait, and gives their leases back. No reply is sent.
    pub(super) fn stop_waiting(&mut self, cx: &mut Context<'_>) {
        let Some(replies) = self.replies_mut() else {
            return;
        };
        let unanswered: Vec<_> = replies.unanswered().collect();
        for (number, mut waiting) in replies.clear(&mut cx.hub.held) {
            cx.hub
                .subscriptions
                .release_leases(&mut waiting, Waiter::new(cx.id.slot, number));
        }
        for (action, due) in unanswered {
            cx.count_command(action, CommandResult::Abandoned, due);
        }
    }

    pub(super) fn take_waiting(&mut self, number: u32, hub: &mut Hub) -> Option<Box<Waiting>> {
        self.replies_mut()?.take(number, &mut hub.held)
    }

    pub(super) fn put_back(&mut self, number: u32, waiting: Box<Waiting>, hub: &mut Hub) {
        if let Some(replies) = self.replies_mut() {
            replies.put_back(number, waiting, &mut hub.held);
        }
    }

    pub(super) fn settle(&mut self, number: u32, reply: Reply, hub: &mut Hub) {
        if let Some(replies) = self.replies_mut() {
            replies.settle(number, reply, &mut hub.held);
        }
    }

    /// One AMQP binding that the subscribe of this number waits for is in force. The reply is sent when it was the last.
    pub fn on_bound(&mut self, number: u32, cx: &mut Context<'_>) {
        if cx.hub.is_ending_families {
            self.end_switched_off(usize::MAX, cx);
        }
        let Some(waiting) = self
            .replies_mut()
            .and_then(|replies| replies.waiting_mut(number))
        else {
            return;
        };
        waiting.outstanding = waiting.outstanding.saturating_sub(1);
        if waiting.outstanding == 0 {
            self.go_on_waiting(number, cx);
            self.send_ready(cx);
            self.drop_empty_rare();
        }
    }

    /// More of the stream was read: the subscribe of this number may know now whether it reaches far enough.
    pub fn on_stored(&mut self, number: u32, cx: &mut Context<'_>) {
        let waiting = self
            .replies_mut()
            .and_then(|replies| replies.waiting_mut(number));
        if waiting.is_some_and(|waiting| waiting.stream != AskedOfStream::No) {
            self.go_on_waiting(number, cx);
            self.send_ready(cx);
            self.drop_empty_rare();
        }
    }

    /// The stream does not tell the subscribe of this number whether it reaches far enough.
    pub fn on_stored_failed(&mut self, number: u32, cx: &mut Context<'_>) {
        let waiting = self
            .replies_mut()
            .and_then(|replies| replies.waiting_mut(number));
        if let Some(waiting) = waiting
            && waiting.stream == AskedOfStream::Waits
        {
            waiting.stream = AskedOfStream::GivenUp;
            self.on_stored(number, cx);
        }
    }

    /// The broker refuses an AMQP binding that the subscribe of this number waits for.
    pub fn on_refused(&mut self, number: u32, cx: &mut Context<'_>) {
        let is_waiting =
            |session: &mut Self| session.replies_mut()?.waiting_mut(number).map(|_| ());
        if is_waiting(self).is_some() {
            self.give_up(number, SourceTrouble::Refused, cx);
            self.drop_empty_rare();
        }
    }

    /// The time of one subscribe or command that waits, or of several, may be over.
    pub fn on_command_timeout(&mut self, cx: &mut Context<'_>) {
        while let Some((number, due)) = self.replies().and_then(|replies| replies.first_due())
            && due <= cx.now.clock
        {
            let waiting = self
                .replies_mut()
                .and_then(|replies| replies.waiting_mut(number));
            if waiting.is_some_and(|waiting| waiting.stream == AskedOfStream::Waits) {
                self.on_stored_failed(number, cx);
            } else if self.give_up_suspended(number, cx) {
                self.send_ready(cx);
            } else {
                self.give_up(number, SourceTrouble::Timeout, cx);
            }
        }
        self.drop_empty_rare();
    }

    /// Checks a subscribe that has seen all its bindings in force, and finishes it if they still are: the months may have
    /// changed since the wait began, and a binding may have been lost.
    pub(super) fn go_on_waiting(&mut self, number: u32, cx: &mut Context<'_>) {
        if let Some(mut waiting) = self.take_waiting(number, cx.hub) {
            cx.hub.subscriptions.lease(&mut waiting);
            self.look_at(number, waiting, cx);
        }
    }

    /// Finishes a subscribe that was taken out, or puts it back.
    pub(super) fn look_at(&mut self, number: u32, mut waiting: Box<Waiting>, cx: &mut Context<'_>) {
        let waiter = Waiter::new(cx.id.slot, number);
        match cx.hub.subscriptions.wait_for_leases(&mut waiting, waiter) {
            Progress::InForce if self.asks_stream(number, &mut waiting, cx) => {
                self.put_back(number, waiting, cx.hub);
            }
            Progress::InForce => {
                if cx.hub.trace.is_on() {
                    self.tell_waited(&waiting, None, cx);
                }
                cx.count_command(CommandAction::Subscribe, CommandResult::Ok, waiting.due);
                let reply = self.finish_subscribe(*waiting, cx);
                self.settle(number, reply, cx.hub);
            }
            Progress::Waits => self.put_back(number, waiting, cx.hub),
            Progress::Refused => {
                self.refuse_waiting(number, waiting, SourceTrouble::Refused.into(), cx);
            }
        }
    }

    /// Refuses a subscribe that was taken out, and keeps nothing of it.
    pub(super) fn refuse_waiting(
        &mut self,
        number: u32,
        mut waiting: Box<Waiting>,
        refusals: CommandErrors,
        cx: &mut Context<'_>,
    ) {
        if cx.hub.trace.is_on() {
            self.tell_waited(&waiting, Some(&refusals), cx);
        }
        cx.hub
            .subscriptions
            .release_leases(&mut waiting, Waiter::new(cx.id.slot, number));
        cx.count_command(CommandAction::Subscribe, refusals.result(), waiting.due);
        let reply = refusals.reply(&waiting.reply_id, cx.hub);
        self.settle(number, reply, cx.hub);
    }

    /// Refuses a subscribe that is in its place, and sends the replies that wait for nothing any more.
    pub(super) fn give_up(&mut self, number: u32, why: SourceTrouble, cx: &mut Context<'_>) {
        if let Some(waiting) = self.take_waiting(number, cx.hub) {
            self.refuse_waiting(number, waiting, why.into(), cx);
        }
        self.send_ready(cx);
    }

    /// Checks the subscribes that wait against the rights of `identity`. One that it may not have is refused; one whose realm
    /// is another waits for the AMQP bindings of that realm. Each keeps its time. Linear in what they ask for.
    pub(super) fn revise_waiting(&mut self, identity: &Arc<Identity>, cx: &mut Context<'_>) {
        let numbers = self.replies().into_iter().flat_map(|all| all.waiting());
        for number in numbers.map(|(number, _)| number).collect::<Vec<u32>>() {
            let Some(mut waiting) = self.take_waiting(number, cx.hub) else {
                continue;
            };
            let wanted = &mut waiting.wanted;
            let sight = cx.hub.authenticator.sight(identity);
            let refusals = match authorised(wanted.scope, &sight) {
                Err(error) => Some(error.into()),
                Ok(realm) => {
                    wanted.account = binding_quota::account_of(identity, wanted.scope);
                    wanted.superduper = sight.is_superduper();
                    let is_moved = wanted.realm != realm;
                    wanted.realm = realm;
                    let families = cx.hub.subscriptions.families();
                    let errors = wanted.bindings.iter().filter_map(|binding| {
                        let rights = wanted.rights();
                        families.resolve(binding, wanted.scope, rights).err()
                    });
                    let errors: Vec<_> = errors.collect();
                    if is_moved && errors.is_empty() {
                        cx.hub
                            .subscriptions
                            .lease_anew(&mut waiting, Waiter::new(cx.id.slot, number));
                        self.look_at(number, waiting, cx);
                        continue;
                    }
                    (!errors.is_empty()).then_some(CommandErrors::Bindings(errors))
                }
            };
            match refusals {
                Some(refusals) => self.refuse_waiting(number, waiting, refusals, cx),
                None => self.put_back(number, waiting, cx.hub),
            }
        }
    }

    /// Sends the replies that wait for nothing any more.
    pub(super) fn send_ready(&mut self, cx: &mut Context<'_>) {
        while let Some(replies) = self.replies_mut()
            && let Some(reply) = replies.pop_ready(&mut cx.hub.held)
        {
            self.send(reply, cx);
        }
    }

    /// Gives up the subscribes and commands that have waited longest, while the session holds more than it may.
    pub(super) fn shorten_replies(&mut self, cx: &mut Context<'_>) {
        while let Some(replies) = self.replies().filter(|replies| replies.is_over())
            && let Some((number, _)) = replies.first_due()
        {
            if self.give_up_suspended(number, cx) {
                self.send_ready(cx);
            } else {
                self.give_up(number, SourceTrouble::GivenUp, cx);
            }
        }
    }
}
