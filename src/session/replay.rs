//! A subscribe with `data.resume` (PROTOCOL 10): from which event on its subscriptions are sent events, what its reply
//! says, and how a replay ends.
//!
//! ```text
//!                      a cursor is good, and something came after it
//!  live index --------------------------------------------------------> replay index: past events, in laps
//!      ^                                                                     |
//!      +--- notice `resumed`: all of them are sent --------------------------+
//!      +--- notice `gap`, reason `resume`: the rest cannot be sent ----------+
//! ```
//!
//! Judged when all AMQP bindings of the subscribe are in force, so what comes from then on is in the history too.
//! Invariants: a reply says `resumed: true` only if the history holds, without a hole, what came after the cursor for all
//! that the command newly subscribes; and then either all of it is sent and the notice `resumed` follows, or a notice of
//! a gap. Such a notice is sent even with `gap_notices: false`: the client has asked.

use std::collections::HashSet;
use std::time::Duration;

use crate::history::stored::{Offset, Reach};
use crate::history::{Cursor, Seq, Why};
use crate::protocol::command::Resume;
use crate::protocol::reply;
use crate::routing::index::Which;
use crate::routing::waiters::Waiter;

use super::Session;
use super::hub::Context;
use super::replies::Reply;
use super::resume;
use super::resuming::{Answer, Hold, ReplayEnd, Resumer};
use super::waiting::{AskedOfStream, Waiting};

/// Where what came after a cursor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    /// From here on, in the history or in the stream.
    From(Seq),
    /// The stream has to be read, or read on, to know.
    Asks,
    /// Nowhere.
    Not(Why),
}

impl Session {
    /// Whether past events are replayed to the session.
    #[must_use]
    pub fn is_resuming(&self) -> bool {
        self.subscriptions.which() == Which::Replay
    }

    /// Whether the session is resuming, and past events may be sent to it: nothing waits for its peer, and no reply is held
    /// back that must come before them.
    #[must_use]
    pub fn is_ready_to_resume(&self) -> bool {
        self.is_resuming() && self.outbox.is_empty() && !self.holds_replies()
    }

    /// Whether a reply of the session waits behind another.
    #[must_use]
    pub fn holds_replies(&self) -> bool {
        self.replies().is_some_and(|replies| !replies.is_empty())
    }

    /// The place of the session among the events: it has been sent all before, and none behind. `None`: there is no history.
    pub(super) fn place(&self, cx: &mut Context<'_>) -> Option<Cursor> {
        match cx.hub.resumers.get(cx.id.slot) {
            Some(resumer) => Some(resumer.place()),
            None => cx.hub.history.here(cx.now),
        }
    }

    /// Makes the subscriptions of a subscribe whose AMQP bindings are all in force, gives the leases back, and returns the
    /// reply. Linear in what the session has and asks for.
    pub(super) fn finish_subscribe(&mut self, mut waiting: Waiting, cx: &mut Context<'_>) -> Reply {
        let slot = cx.id.slot;
        let (start, answer) = self.begin_replay(&waiting, cx);
        let is_resuming = self.is_resuming();
        let mut added = Vec::new();
        let list = &mut self.subscriptions;
        cx.hub
            .subscriptions
            .subscribe(list, slot, self.shape.style(), &mut waiting, &mut |id| {
                if is_resuming {
                    added.push(id)
                }
            });
        if let Some(resumer) = cx.hub.resumers.get_mut(slot) {
            resumer.in_force_at(cx.now.unix_ms);
            added.iter().for_each(|id| resumer.begin(*id, start));
            let live = cx.hub.subscriptions.index().memberships(list);
            resumer.tidy(live.map(|one| one.id).collect());
        }
        Reply::Subscribed {
            id: waiting.reply_id,
            answer: answer.map(Box::new),
        }
    }

    /// Judges the cursor of a subscribe, and takes the session back to it if something came after it. Returns the first
    /// event for the new subscriptions, and what the reply says.
    fn begin_replay(&mut self, waiting: &Waiting, cx: &mut Context<'_>) -> (Seq, Option<Answer>) {
        let live_from = cx.hub.resumers.live_from(&cx.hub.history);
        let cursor = match waiting.resume {
            Some(Resume::After(cursor)) => cursor,
            Some(Resume::FromNow) => return (live_from, Some(Answer::from_now(self.place(cx)))),
            None => return (live_from, None),
        };
        let start = match self.judge_cursor(&cursor, waiting, cx) {
            Ok(start) => start,
            Err(why) => return (live_from, Some(Answer::not_resumed(self.place(cx), why))),
        };
        let hold = hold(&cursor, cx);
        if !self.is_resuming() && start >= cx.hub.history.next() && hold.is_none() {
            return (live_from, Some(Answer::nothing_missed(cursor)));
        }
        self.go_back(start, cursor, cx);
        if let Some(hold) = hold {
            cx.hub.resumers.hold(cx.id.slot, hold);
        }
        (start, Some(Answer::replay(self.place(cx))))
    }

    /// Makes an answer true at the moment when it is sent: while it waited behind another reply, that one's subscribe may
    /// have taken the session back. Then no place is told that the session has not come to again, and not yet that it is
    /// live.
    pub(super) fn bring_up_to_date(&self, answer: &mut Answer, cx: &Context<'_>) {
        if let Some(resumer) = cx.hub.resumers.get(cx.id.slot) {
            answer.resumption.cursor = Some(resumer.place());
            if let Some(ReplayEnd::Resumed(_)) = answer.then {
                answer.then = None;
            }
        }
    }

    /// The answer to a subscribe of which an unsubscribe has left nothing.
    pub(super) fn answer_withdrawn(
        &mut self,
        resume: Option<Resume>,
        cx: &mut Context<'_>,
    ) -> Option<Box<Answer>> {
        let place = self.place(cx);
        Some(Box::new(match resume? {
            Resume::FromNow => Answer::from_now(place),
            Resume::After(_) => Answer::not_resumed(place, Why::Unknown),
        }))
    }

    /// The first event behind the cursor, if all events from there on that the subscribe wants can be replayed.
    fn judge_cursor(
        &self,
        cursor: &Cursor,
        waiting: &Waiting,
        cx: &mut Context<'_>,
    ) -> Result<Seq, Why> {
        let judged = self.locate(cursor, waiting, cx);
        let metrics = &mut cx.hub.metrics;
        *match judged {
            Ok(_) => &mut metrics.resumes_good_total,
            Err(Why::Expired) => &mut metrics.resumes_expired_total,
            Err(Why::Unknown) => &mut metrics.resumes_unknown_total,
            Err(Why::TooMany) => &mut metrics.resumes_too_many_total,
            Err(Why::Outage) => &mut metrics.resumes_outage_total,
        } += 1;
        judged
    }

    /// Whether the subscribe, whose AMQP bindings are all in force, has to wait until more of the stream was read; that it
    /// waits is noted then.
    pub(super) fn asks_stream(
        &self,
        number: u32,
        waiting: &mut Waiting,
        cx: &mut Context<'_>,
    ) -> bool {
        let Some(Resume::After(cursor)) = waiting.resume else {
            return false;
        };
        let asks = cx.hub.past.is_on()
            && waiting.stream != AskedOfStream::GivenUp
            && self.judge_place(&cursor, waiting, cx) == Judged::Asks;
        if asks {
            waiting.stream = AskedOfStream::Waits;
            cx.hub.past.wait(Waiter::new(cx.id.slot, number), &cursor);
        }
        asks
    }

    fn locate(&self, cursor: &Cursor, waiting: &Waiting, cx: &mut Context<'_>) -> Result<Seq, Why> {
        match self.judge_place(cursor, waiting, cx) {
            Judged::From(start) => Ok(start),
            Judged::Not(why) => Err(why),
            Judged::Asks => Err(Why::Outage),
        }
    }

    /// Where the session would go on: in the history, or else in the stream, if there is one.
    fn judge_place(&self, cursor: &Cursor, waiting: &Waiting, cx: &mut Context<'_>) -> Judged {
        let why = match self.locate_in_history(cursor, waiting, cx) {
            Ok(start) => return Judged::From(start),
            Err((why, is_final)) if is_final || !cx.hub.past.is_on() => return Judged::Not(why),
            Err((why, _)) => why,
        };
        let families = cx.hub.subscriptions.families();
        let wanted = waiting.wanted.resolved(families);
        match cx.hub.past.reach(cursor, wanted, families, cx.now) {
            Reach::From(Offset(offset)) => Judged::From(Seq(offset)),
            Reach::NotYet => Judged::Asks,
            // The history has the better reason.
            Reach::Not(Why::Unknown) => Judged::Not(why),
            Reach::Not(why) => Judged::Not(why),
        }
    }

    /// The first event behind the cursor, of the history. An error tells why not, and whether nothing else can help.
    fn locate_in_history(
        &self,
        cursor: &Cursor,
        waiting: &Waiting,
        cx: &mut Context<'_>,
    ) -> Result<Seq, (Why, bool)> {
        let hub = &mut *cx.hub;
        if let Some(why) = hub.resumers.get(cx.id.slot).and_then(Resumer::failure) {
            return Err((why, true));
        }
        if !self.has_news_in(waiting, cx) {
            // Nothing tells since when the session has what it asks for once more.
            return Err((Why::Unknown, true));
        }
        let age = Duration::from_millis(cx.now.unix_ms.saturating_sub(cursor.time));
        if age > cx.hub.limits.resume.age_max {
            return Err((Why::Expired, true));
        }
        resume::start(cursor, waiting, cx.hub, cx.now).map_err(|why| (why, why == Why::TooMany))
    }

    /// Whether the subscribe asks for anything that the session does not have.
    fn has_news_in(&self, waiting: &Waiting, cx: &Context<'_>) -> bool {
        let index = cx.hub.subscriptions.index();
        let known = index.subscriptions(&self.subscriptions);
        let scope = waiting.wanted.scope;
        let known: HashSet<&str> = known
            .filter(|one| one.scope() == scope)
            .map(|one| one.binding())
            .collect();
        let mut bindings = waiting.wanted.bindings.iter();
        bindings.any(|binding| !known.contains(&**binding))
    }

    /// Takes the session back to an earlier event, where `cursor` is, with all its subscriptions: those that it has keep
    /// their places.
    fn go_back(&mut self, start: Seq, cursor: Cursor, cx: &mut Context<'_>) {
        let (slot, list) = (cx.id.slot, &mut self.subscriptions);
        let live_from = cx.hub.resumers.live_from(&cx.hub.history);
        // A position behind an event that some of its subscriptions may not have been sent yet would lie.
        let place = match start > live_from {
            true => cx.hub.history.here(cx.now).unwrap_or(cursor),
            false => cursor,
        };
        let hub = &mut *cx.hub;
        match hub.resumers.get_mut(slot) {
            Some(resumer) => {
                let before = hub.subscriptions.index().memberships(list);
                resumer.go_back(start, place, before.map(|one| one.id));
            }
            None => {
                let mut before = Vec::new();
                hub.subscriptions
                    .move_to(Which::Replay, list, slot, &mut |id| before.push(id));
                let clock = cx.now.clock;
                let resumer = Resumer::new(cx.id, start, place, before, live_from, clock);
                hub.resumers.enter(resumer);
            }
        }
    }

    /// Ends the replay: the session gets live events from now on, and is told so. It must have been sent all events so far
    /// (`Resumed`), or is told that it has not (`Failed`). Linear in the session's own subscriptions.
    pub fn end_replay(&mut self, end: ReplayEnd, cx: &mut Context<'_>) {
        if !self.is_resuming() {
            return;
        }
        let slot = cx.id.slot;
        cx.hub.resumers.leave(slot);
        cx.hub
            .subscriptions
            .move_to(Which::Live, &mut self.subscriptions, slot, &mut |_| {});
        let metrics = &mut cx.hub.metrics;
        *match end {
            ReplayEnd::Resumed(_) => &mut metrics.replays_done_total,
            ReplayEnd::Failed(Why::Expired | Why::Unknown) => &mut metrics.replays_expired_total,
            ReplayEnd::Failed(Why::TooMany) => &mut metrics.replays_too_many_total,
            ReplayEnd::Failed(Why::Outage) => &mut metrics.replays_outage_total,
        } += 1;
        self.tell_replay_end(end, cx);
    }

    /// Sends the notice of the end of a replay.
    pub(super) fn tell_replay_end(&mut self, end: ReplayEnd, cx: &mut Context<'_>) {
        let builder = &mut cx.hub.builder;
        let notice = match end {
            ReplayEnd::Resumed(frames) => reply::resumed(builder, frames),
            ReplayEnd::Failed(why) => {
                cx.hub.metrics.gap_notices_total += 1;
                reply::gap_resume(builder, why)
            }
        };
        if self.is_open() {
            self.push(notice, cx);
        }
    }

    /// Ends the replay of a session that ends itself, without a word.
    pub(super) fn drop_replay(&mut self, cx: &mut Context<'_>) {
        if self.is_resuming() {
            cx.hub.metrics.replays_closed_total += 1;
            cx.hub.resumers.leave(cx.id.slot);
        }
    }
}

/// How long a session that came with this cursor, which is good, stays among those that resume.
fn hold(cursor: &Cursor, cx: &Context<'_>) -> Option<Hold> {
    let (history, overlap) = (&cx.hub.history, cx.hub.limits.history.overlap);
    let is_here = |event| history.holds(event);
    if history.is_own(cursor) || cursor.id.is_some_and(is_here) {
        return None;
    }
    Some(Hold {
        event: cursor.id,
        until: cx.now.clock + overlap,
    })
}
