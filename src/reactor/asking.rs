//! Steps 3 and 6 of the turn: answers to the authenticator's questions, and the questions themselves.
//!
//! Invariants: the loop waits for no answer. Sessions that an answer concerns go on in the order in which the answers came,
//! at most [`RESUMED_COMMANDS_PER_TURN_MAX`] commands in a turn and a few of each session, so that an answer that thousands
//! wait for delays nobody else; while some are left, the next poll does not wait. Questions go to a lane only as it has
//! room, so that the authenticator's turns between networks hold.

use super::Reactor;
use super::socket::Socket;
use crate::auth::Lane;
use crate::limits::{ANSWERS_PER_TURN_MAX, RESUMED_COMMANDS_PER_TURN_MAX};
use crate::room::GiveBackRoom;
use crate::session::clock::Now;
use crate::session::id::ConnId;
use crate::session::suspended::Resumed;

impl<S: Socket> Reactor<S> {
    /// Takes answers, and lets sessions that waited for one go on.
    pub(super) fn take_answers(&mut self, now: Now) {
        let Some(inquiry) = &self.inquiries.inquiry else {
            return;
        };
        self.inquiries.has_more = true;
        for _ in 0..ANSWERS_PER_TURN_MAX {
            let Some(answer) = inquiry.try_answer() else {
                self.inquiries.has_more = false;
                break;
            };
            let random = self.hub.random();
            let concerned = self
                .hub
                .authenticator
                .take_answer(answer, random, now.into());
            let concerned = concerned.into_iter().map(ConnId::from_word);
            self.inquiries.concerned.extend(concerned);
        }
        let mut commands = 0;
        while commands < RESUMED_COMMANDS_PER_TURN_MAX
            && let Some(id) = self.inquiries.concerned.pop_front()
        {
            let mut resumed = Resumed::default();
            self.act(id, now, |session, cx| resumed = session.on_answered(cx));
            commands += 1 + resumed.commands;
            if resumed.has_more {
                self.inquiries.concerned.push_back(id);
            }
        }
        self.inquiries.concerned.give_back_room();
    }

    /// Asks again for what live sessions have, renews them where a right was taken away, and puts questions to the threads.
    pub(super) fn put_questions(&mut self, now: Now) {
        let Some(inquiry) = &self.inquiries.inquiry else {
            return;
        };
        let authenticator = &mut self.hub.authenticator;
        authenticator.ask_again(now.into());
        for lane in [Lane::Verify, Lane::Platform] {
            while inquiry.has_room(lane)
                && let Some(question) = authenticator.next_question(lane)
            {
                if let Err(question) = inquiry.ask(question) {
                    authenticator.put_back(question);
                    break;
                }
            }
        }
        if self.renewal.is_none() && self.hub.authenticator.must_renew(now.into()) {
            self.begin_renewal();
        }
    }
}
