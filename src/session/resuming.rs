//! The sessions that resume: how far each of them is among the events of the process (PROTOCOL 10).
//!
//! A session that resumes is in the replay index with all its subscriptions, and has an entry here, by its slot. Past
//! events reach it in *laps* (`reactor::laps`): it is *ready* for one while its outbox takes frames and no reply of it is
//! held back. An entry says which event is the next for the session; a subscription that begins later than that, because
//! the session had it before or asked for a later place, has a start of its own.
//!
//! Invariants: a session is here exactly while its list is in the replay index. It has been sent every event before
//! `next` that it may see and that came after the start of the subscription which wants it, and none from `next` on: so
//! nothing comes twice, and no cursor that it was sent lies beyond what it was sent. A session that is not open is not
//! here.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::id::ConnId;
use crate::event::EventId;
use crate::history::{Cursor, History, Seq, Why};
use crate::protocol::reply::Resumption;
use crate::routing::index::SubscriptionId;

/// All sessions that resume, by slot.
#[derive(Debug, Default)]
pub struct Resumers {
    table: BTreeMap<u32, Resumer>,
    /// How many of them have failed.
    failed: usize,
    /// What is before it is a place in the stream.
    stored_end: Seq,
    /// The newest event is being handed out in slices: some live sessions do not have it yet. The loop says so.
    pub is_sliced: bool,
    /// Some may be ready, or have failed, since the loop last looked.
    has_news: bool,
    /// When the first [`Hold`] ends by its time; `None`: there is none.
    held_until: Option<Duration>,
    /// The event to come, when holds were last looked at.
    looked_until: Option<Seq>,
}

/// What this process takes in a little later than another may have been sent by that one already. So a session that came
/// with a cursor of another process, which names an event that is not here, is sent live events as replayed ones, which a
/// client drops if it has them, until that event has come, or for as long as processes may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hold {
    /// `None`: the cursor names no event.
    pub(super) event: Option<EventId>,
    pub(super) until: Duration,
}

/// One session that resumes.
#[derive(Debug)]
pub struct Resumer {
    id: ConnId,
    next: Seq,
    state: State,
    hold: Option<Hold>,
    since: Duration,
    /// When its AMQP bindings were all in force, by the wall clock.
    in_force_ms: u64,
    /// Event frames replayed.
    frames: u64,
    /// The last place that the session was told of.
    place: Cursor,
    /// The starts that are later than `next` was when they were noted; sorted. Names of subscriptions that have ended may
    /// be among them.
    starts: Vec<(SubscriptionId, Seq)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its outbox takes frames, and the replies before them are sent.
    Ready,
    /// It waits until its outbox is empty and its replies are sent.
    Waits,
    /// The rest of what it missed cannot be sent. It is to be told, and goes on with live events.
    Failed(Why),
}

/// What the end of a replay is told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayEnd {
    /// All that was missed has been sent, in so many event frames.
    Resumed(u64),
    /// The rest of it is lost to the session.
    Failed(Why),
}

/// What the reply to a subscribe with `data.resume` says of it, and the notice that follows at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) resumption: Resumption,
    pub(super) then: Option<ReplayEnd>,
}

impl Answer {
    /// No cursor came: `place` is the session's own, if there is a history.
    pub(super) fn from_now(place: Option<Cursor>) -> Self {
        Self::new(place, None, None)
    }

    /// What came after the cursor will be sent.
    pub(super) fn replay(place: Option<Cursor>) -> Self {
        Self::new(place, Some(true), None)
    }

    /// Nothing came after this cursor.
    pub(super) fn nothing_missed(cursor: Cursor) -> Self {
        Self::new(Some(cursor), Some(true), Some(ReplayEnd::Resumed(0)))
    }

    /// What came after the cursor cannot be sent.
    pub(super) fn not_resumed(place: Option<Cursor>, why: Why) -> Self {
        Self::new(place, Some(false), Some(ReplayEnd::Failed(why)))
    }

    fn new(cursor: Option<Cursor>, resumed: Option<bool>, then: Option<ReplayEnd>) -> Self {
        let resumption = Resumption { cursor, resumed };
        Self { resumption, then }
    }
}

impl Resumers {
    /// Places before this one are in the stream. To be called before anybody resumes.
    pub(super) fn take_stream(&mut self, stored_end: Seq) {
        self.stored_end = stored_end;
    }

    /// Places before this one are in the stream, those from there on in the history.
    #[must_use]
    pub fn stored_end(&self) -> Seq {
        self.stored_end
    }

    /// Whether nobody resumes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// How many sessions resume.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether some may be ready, or have failed, since [`Resumers::looked_at`].
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.has_news
    }

    /// Nobody is ready, and who has failed cannot be told now.
    pub fn looked_at(&mut self) {
        self.has_news = false;
    }

    /// The first event that a session which is up to date has not been sent, or may not have been.
    #[must_use]
    pub fn live_from(&self, history: &History) -> Seq {
        let Seq(next) = history.next();
        Seq(next.saturating_sub(u64::from(self.is_sliced)))
    }

    /// The session in this slot, if it resumes.
    #[must_use]
    pub fn get(&self, slot: u32) -> Option<&Resumer> {
        self.table.get(&slot)
    }

    /// The session in this slot, if it resumes.
    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Resumer> {
        self.table.get_mut(&slot)
    }

    /// The session in this slot, if it can be sent events now.
    pub fn ready(&mut self, slot: u32) -> Option<&mut Resumer> {
        let resumer = self.table.get_mut(&slot);
        resumer.filter(|resumer| resumer.state == State::Ready)
    }

    pub(super) fn enter(&mut self, resumer: Resumer) {
        self.table.insert(resumer.id.slot, resumer);
    }

    /// Keeps the session in this slot among those that resume until the hold is over.
    pub(super) fn hold(&mut self, slot: u32, hold: Hold) {
        let Some(resumer) = self.table.get_mut(&slot) else {
            return;
        };
        resumer.hold = Some(match resumer.hold {
            None => hold,
            // What both name has come when it is certain of both.
            Some(other) => Hold {
                event: hold.event.filter(|event| other.event == Some(*event)),
                until: hold.until.max(other.until),
            },
        });
        let until = self.held_until.map_or(hold.until, |it| it.min(hold.until));
        self.held_until = Some(until);
    }

    /// When a hold is over at the latest, on the loop's clock.
    #[must_use]
    pub fn held_until(&self) -> Option<Duration> {
        self.held_until
    }

    /// Ends the holds that are over. New events are news for those that are left. Linear in the sessions that resume, if
    /// there are holds and a hold may be over.
    pub fn end_holds(&mut self, history: &History, now: Duration) {
        let Some(until) = self.held_until else {
            return;
        };
        let next = history.next();
        if self.looked_until.replace(next) == Some(next) && now < until {
            return;
        }
        self.has_news = true;
        self.held_until = None;
        for resumer in self.table.values_mut() {
            resumer.hold = resumer.hold.filter(|hold| {
                let has_come = hold.event.is_some_and(|event| history.holds(event));
                now < hold.until && !has_come
            });
            if let Some(hold) = resumer.hold {
                let until = self.held_until.map_or(hold.until, |it| it.min(hold.until));
                self.held_until = Some(until);
            }
        }
    }

    /// Takes a session out.
    pub(super) fn leave(&mut self, slot: u32) {
        if let Some(Resumer {
            state: State::Failed(_),
            ..
        }) = self.table.remove(&slot)
        {
            self.failed -= 1;
        }
    }

    /// The outbox of the session in this slot is empty and its replies are sent.
    pub fn become_ready(&mut self, slot: u32) {
        self.has_news = true;
        if let Some(resumer) = self.table.get_mut(&slot)
            && resumer.state == State::Waits
        {
            resumer.state = State::Ready;
        }
    }

    /// The earliest next event, from `from` on, of all that are ready; `present` for those that need nothing but to be
    /// told so. Linear in the sessions that resume.
    #[must_use]
    pub fn earliest(&self, from: Seq, present: Seq) -> Option<Seq> {
        let is_meant = |one: &&Resumer| {
            one.state == State::Ready
                && one.next >= from
                && (one.next < present || one.hold.is_none())
        };
        let ready = self.table.values().filter(is_meant);
        ready.map(|one| one.next).min()
    }

    /// The slots, rising, of those that are ready and whose next event is among `events`. Linear in the sessions that
    /// resume.
    pub fn ready_among(&self, events: &Range<Seq>) -> impl Iterator<Item = u32> {
        let is_meant = |one: &&Resumer| one.state == State::Ready && events.contains(&one.next);
        let ready = self.table.values().filter(is_meant);
        ready.map(|one| one.id.slot)
    }

    /// Some may be ready: there are more events to send.
    pub fn note_news(&mut self) {
        self.has_news |= !self.table.is_empty();
    }

    /// Before which place nothing of the stream is needed any more, as far as some session can take more now; `None`: nobody
    /// needs anything of it. Linear in the sessions that resume.
    #[must_use]
    pub fn earliest_stored(&self) -> Option<Seq> {
        self.earliest_stored_ready()
            .or_else(|| self.earliest_stored_of(State::Waits))
    }

    /// The same of those alone that can take more now.
    #[must_use]
    pub fn earliest_stored_ready(&self) -> Option<Seq> {
        self.earliest_stored_of(State::Ready)
    }

    fn earliest_stored_of(&self, state: State) -> Option<Seq> {
        let such = self.table.values().filter(|one| one.state == state);
        such.map(|one| one.next)
            .filter(|next| *next < self.stored_end)
            .min()
    }

    /// Lets all fail whose next event is in the stream.
    pub fn fail_stored(&mut self, why: Why) {
        self.fail_stored_if(why, |_| true);
    }

    /// Lets those fail whose next event is in the stream, and of which `is_gone` is true. Linear in the sessions that resume.
    pub fn fail_stored_if(&mut self, why: Why, is_gone: impl Fn(Seq) -> bool) {
        let stored_end = self.stored_end;
        self.fail(|one| (one.next < stored_end && is_gone(one.next)).then_some(why));
    }

    /// A marker of the stream was reached, behind which `behind` is the next place. Those that are ready and whose next place
    /// is among `places` go on there; or, where `joins` gives a place for the moment since which their AMQP bindings have
    /// been in force, at that place. Those that were sent more than `frames_max` events fail. Linear in the sessions that
    /// resume.
    pub fn pass_marker(
        &mut self,
        places: &Range<Seq>,
        behind: Seq,
        frames_max: u64,
        joins: impl Fn(u64) -> Option<Seq>,
    ) {
        for one in self.table.values_mut() {
            if one.state == State::Ready && places.contains(&one.next) {
                one.advance(joins(one.in_force_ms).unwrap_or(behind), None);
            }
        }
        let stored_end = self.stored_end;
        self.fail(|one| (one.next < stored_end && one.frames > frames_max).then_some(Why::TooMany));
    }

    /// Those that are ready, have been sent all events before `next`, and are not held: how their replay ends. Linear in
    /// the sessions that resume.
    pub fn arrived(&self, next: Seq) -> impl Iterator<Item = (ConnId, ReplayEnd)> {
        let arrived = move |one: &&Resumer| {
            one.state == State::Ready && one.next == next && one.hold.is_none()
        };
        let arrived = self.table.values().filter(arrived);
        arrived.map(|one| (one.id, ReplayEnd::Resumed(one.frames)))
    }

    /// Those that have failed, and why. Linear in the sessions that resume.
    pub fn failed(&self) -> impl Iterator<Item = (ConnId, ReplayEnd)> {
        let all = (self.failed > 0).then_some(&self.table);
        let all = all.into_iter().flat_map(BTreeMap::values);
        all.filter_map(|one| match one.state {
            State::Failed(why) => Some((one.id, ReplayEnd::Failed(why))),
            State::Ready | State::Waits => None,
        })
    }

    /// Lets those fail for which `judge` has a reason. Linear in the sessions that resume.
    fn fail(&mut self, judge: impl Fn(&Resumer) -> Option<Why>) {
        for resumer in self.table.values_mut() {
            if !matches!(resumer.state, State::Failed(_))
                && let Some(why) = judge(resumer)
            {
                resumer.state = State::Failed(why);
                self.failed += 1;
                self.has_news = true;
            }
        }
    }

    /// Lets all fail.
    pub fn fail_all(&mut self, why: Why) {
        self.fail(|_| Some(why));
    }

    /// Lets those fail whose next event is before `first`, the oldest that is kept, or who began before `begun`.
    pub fn fail_late(&mut self, first: Seq, begun: Option<Duration>) {
        let stored_end = self.stored_end;
        self.fail(|one| {
            if one.next < first && one.next >= stored_end {
                return Some(Why::Expired);
            }
            let is_too_long = begun.is_some_and(|begun| one.since < begun);
            is_too_long.then_some(Why::TooMany)
        });
    }
}

impl Resumer {
    /// A session that resumes at the event `next`; `place` is the cursor that it came with. Its subscriptions of before are
    /// sent events from `live_from` on.
    pub(super) fn new(
        id: ConnId,
        next: Seq,
        place: Cursor,
        before: Vec<SubscriptionId>,
        live_from: Seq,
        now: Duration,
    ) -> Self {
        let next = if before.is_empty() {
            next
        } else {
            next.min(live_from)
        };
        let mut starts: Vec<_> = before.into_iter().map(|one| (one, live_from)).collect();
        starts.sort_unstable();
        Self {
            id,
            next,
            state: State::Waits,
            hold: None,
            since: now,
            in_force_ms: u64::MAX,
            frames: 0,
            place,
            starts,
        }
    }

    /// All its AMQP bindings are in force at this moment of the wall clock, in ms since 1970.
    pub(super) fn in_force_at(&mut self, unix_ms: u64) {
        self.in_force_ms = unix_ms;
    }

    /// Its connection.
    #[must_use]
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// The next event for it.
    #[must_use]
    pub fn next(&self) -> Seq {
        self.next
    }

    /// Why the rest of what it missed cannot be sent.
    pub(super) fn failure(&self) -> Option<Why> {
        match self.state {
            State::Failed(why) => Some(why),
            State::Ready | State::Waits => None,
        }
    }

    /// The last place that it was told of.
    #[must_use]
    pub fn place(&self) -> Cursor {
        self.place
    }

    /// From which event on a subscription of it is sent events. O(log n) in its subscriptions.
    #[must_use]
    pub fn start(&self, subscription: SubscriptionId) -> Seq {
        let at = (self.starts).binary_search_by_key(&subscription, |(one, _)| *one);
        let start = at.ok().and_then(|at| self.starts.get(at));
        start.map_or(self.next, |(_, start)| self.next.max(*start))
    }

    /// It has been sent all events before `next`, the last in these frames, so far as there are some.
    pub fn advance(&mut self, next: Seq, sent: Option<(u64, Cursor)>) {
        debug_assert!(self.next <= next, "it goes forward only");
        self.next = next;
        if let Some((frames, place)) = sent {
            self.frames += frames;
            self.place = place;
        }
        if self.starts.iter().all(|(_, start)| *start <= next) {
            self.starts = Vec::new();
        }
    }

    /// It takes no more for now.
    pub fn wait(&mut self) {
        if self.state == State::Ready {
            self.state = State::Waits;
        }
    }

    /// Goes back to an earlier event, where `place` is; or stays where it is, if that is earlier. Its subscriptions keep
    /// their places. What it is told of next must wait until the reply is sent.
    pub(super) fn go_back(
        &mut self,
        next: Seq,
        place: Cursor,
        before: impl Iterator<Item = SubscriptionId>,
    ) {
        self.wait();
        if next < self.next {
            let mut starts: Vec<_> = before.map(|one| (one, self.start(one))).collect();
            starts.sort_unstable();
            (self.starts, self.next, self.place) = (starts, next, place);
        }
    }

    /// A new subscription is sent events from `start` on.
    pub(super) fn begin(&mut self, subscription: SubscriptionId, start: Seq) {
        let at = (self.starts).binary_search_by_key(&subscription, |(one, _)| *one);
        match (at, start > self.next) {
            (Ok(at), _) => {
                if let Some((_, known)) = self.starts.get_mut(at) {
                    *known = start;
                }
            }
            (Err(at), true) => self.starts.insert(at, (subscription, start)),
            (Err(_), false) => {}
        }
    }

    /// Forgets the starts of subscriptions that have ended, when there are more starts than subscriptions. `live`: those
    /// that have not ended. So coming and going does not make an entry grow.
    pub(super) fn tidy(&mut self, mut live: Vec<SubscriptionId>) {
        if self.starts.len() > live.len() {
            live.sort_unstable();
            (self.starts).retain(|(one, _)| live.binary_search(one).is_ok());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Mark;

    fn id(slot: u32) -> ConnId {
        ConnId {
            slot,
            generation: 0,
        }
    }

    fn place(time: u64) -> Cursor {
        Cursor {
            id: None,
            time,
            mark: Mark::from_random(0),
        }
    }

    fn resumer(slot: u32, next: u64, before: &[SubscriptionId], live_from: u64) -> Resumer {
        let before = before.to_vec();
        Resumer::new(
            id(slot),
            Seq(next),
            place(next),
            before,
            Seq(live_from),
            Duration::ZERO,
        )
    }

    fn names(count: u32) -> Vec<SubscriptionId> {
        (0..count).map(SubscriptionId::new).collect()
    }

    #[test]
    fn each_subscription_has_its_own_start_and_none_is_sent_an_event_twice() {
        let ids = names(4);
        let mut one = resumer(1, 10, &ids[..1], 50);
        one.begin(ids[1], Seq(10));
        one.begin(ids[2], Seq(30));
        let starts = |one: &Resumer| ids.iter().map(|id| one.start(*id).0).collect::<Vec<_>>();
        assert_eq!(starts(&one), [50, 10, 30, 10]);
        one.advance(Seq(20), Some((3, place(19))));
        assert_eq!(starts(&one), [50, 20, 30, 20]);
        // Back to an earlier place, for the fourth.
        one.go_back(Seq(15), place(15), ids[..3].iter().copied());
        one.begin(ids[3], Seq(15));
        assert_eq!(starts(&one), [50, 20, 30, 15]);
        assert_eq!((one.next(), one.place().time), (Seq(15), 15));
        // A later place changes nothing.
        one.go_back(Seq(40), place(40), ids[..3].iter().copied());
        one.begin(ids[3], Seq(40));
        assert_eq!(starts(&one), [50, 20, 30, 40]);
        assert_eq!(one.place().time, 15, "no place beyond what was sent");
        one.advance(Seq(60), Some((9, place(59))));
        assert_eq!(one.starts, [], "what is over is forgotten");
        assert_eq!((starts(&one), one.frames), (vec![60; 4], 12));
    }

    #[test]
    fn a_name_that_is_used_again_begins_where_it_is_told_to() {
        let ids = names(2);
        let mut one = resumer(1, 10, &ids[..1], 50);
        one.begin(ids[0], Seq(10));
        assert_eq!(one.start(ids[0]), Seq(10));
        for _ in 0..100 {
            one.begin(ids[1], Seq(90));
            one.tidy(vec![ids[0]]);
        }
        assert_eq!(one.starts.len(), 1);
    }

    #[test]
    fn who_may_not_have_the_newest_event_yet_is_sent_it() {
        let ids = names(2);
        let mut one = resumer(1, 50, &ids[..1], 49);
        one.begin(ids[1], Seq(50));
        assert_eq!(
            (one.next(), one.start(ids[0]), one.start(ids[1])),
            (Seq(49), Seq(49), Seq(50))
        );
    }

    #[test]
    fn only_who_is_ready_gets_on_and_who_is_late_is_told() {
        let mut all = Resumers::default();
        for (slot, next) in [(1, 5), (2, 7), (3, 9)] {
            all.enter(resumer(slot, next, &[], 0));
        }
        let present = Seq(9);
        assert_eq!(
            (all.earliest(Seq(0), present), all.has_news()),
            (None, false)
        );
        all.become_ready(2);
        all.become_ready(3);
        assert!(all.has_news());
        assert_eq!(
            (all.earliest(Seq(0), present), all.earliest(Seq(8), present)),
            (Some(Seq(7)), Some(Seq(9)))
        );
        assert_eq!(all.ready_among(&(Seq(0)..Seq(9))).collect::<Vec<_>>(), [2]);
        assert_eq!(
            all.arrived(Seq(9)).collect::<Vec<_>>(),
            [(id(3), ReplayEnd::Resumed(0))]
        );
        all.fail_late(Seq(6), None);
        all.fail_late(Seq(6), Some(Duration::ZERO));
        let expired = ReplayEnd::Failed(Why::Expired);
        assert_eq!(all.failed().collect::<Vec<_>>(), [(id(1), expired)]);
        all.fail_late(Seq(6), Some(Duration::from_nanos(1)));
        assert_eq!(all.failed().count(), 3);
        assert_eq!(
            all.failed().next(),
            Some((id(1), expired)),
            "the first reason stays"
        );
        assert!(all.ready(2).is_none());
        for slot in [1, 2, 3, 4] {
            all.leave(slot);
        }
        assert_eq!((all.len(), all.failed().count(), all.failed), (0, 0, 0));
    }
}
