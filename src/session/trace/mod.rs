//! The trace: what happens to a session, an account or a key, told to those who look (PROTOCOL 8).
//!
//! | module | owns |
//! |---|---|
//! | this | all looks; what sessions and the loop note |
//! | `look` | one look, and the lines that wait for its looker |
//! | `line` | the words of the lines, and how they are written |
//! | `filter`, `who` | what a look looks at; the session that something happens to |
//! | `judge` | which looks an event concerns, and why it did not arrive |
//!
//! Callers ask [`Trace::is_on`] before they note something, so that it costs one test while nobody looks. While somebody
//! does, a turn spends at most [`TRACE_STEPS_PER_TURN_MAX`] steps on it, of which all looks have equal parts: one for each
//! event and look, one for each subscription that is judged, and [`TRACE_LINE_COST`](crate::limits::TRACE_LINE_COST) for
//! each line. What is beyond is left out, counted, and told. A session pays nothing.
//!
//! Invariant: the trace observes only; it never changes which events a session gets, or when one ends.

mod filter;
mod judge;
mod line;
mod look;
mod who;

use std::time::Duration;

pub use self::filter::Filter;
pub use self::judge::{ConcernedLook, TracedSession, WhyNotMatched};
use self::line::{Line, Word, cut};
pub use self::look::{Ended, Lines, Look};
pub use self::who::Who;
use super::clock::Now;
use super::close::CloseReason;
use super::id::ConnId;
use super::subscriptions::Subscriptions;
use crate::account::{AccountId, Scope};
use crate::event::Style;
use crate::limits::{TRACE_KEYS_TOTAL_MAX, TRACE_LOOKS_MAX, TRACE_STEPS_PER_TURN_MAX};
use crate::routing::nearness::{EventKey, Owner};

/// All looks. While there is none it takes one word.
#[derive(Debug, Default)]
pub struct Trace(Option<Box<Looks>>);

#[derive(Debug)]
struct Looks {
    looks: Vec<Look>,
    /// What is to be added to the loop's clock for Unix milliseconds; at most a second too little, and exact after the
    /// first turn that begins with a new second. A system's clock that is set back by less than a second leaves it so much
    /// too large.
    clock_to_unix: Duration,
}

/// What a command asks for, without its token.
#[derive(Clone, Debug, Default)]
pub struct CommandFacts<'a> {
    /// `subscribe`, `unsubscribe` or `ping`; `None`: anything else.
    pub action: Option<&'static str>,
    /// As the client wrote it.
    pub request_id: Option<&'a str>,
    /// The account that it names, as the client wrote it.
    pub account: Option<&'a str>,
    /// The client bindings that it names.
    pub bindings: Vec<&'a str>,
}

/// What came of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandOutcome<'a> {
    /// It was done.
    Ok,
    /// It waits: for this.
    Waits(&'static str),
    /// It was refused, with these texts.
    Errors(&'a [String]),
}

/// What an event is called in lines.
#[derive(Clone, Copy, Debug)]
pub struct EventFacts<'e> {
    /// The event.
    pub event: &'e EventKey<'e>,
    /// Whose it is.
    pub owner: Owner<'e>,
}

/// A subscription, or all equal ones, that an event went to.
#[derive(Clone, Copy, Debug)]
pub struct MatchedSubscription<'m> {
    /// The client binding.
    pub subscribed_key: &'m str,
    /// The pattern that the event was found by.
    pub subscription_key: &'m str,
    /// The account that it is for.
    pub scope: Scope,
    /// Frames queued.
    pub queued: u64,
    /// Frames dropped.
    pub dropped: u64,
}

/// What is told when a look begins.
#[derive(Clone, Debug, Default)]
pub struct Beginning<'a> {
    /// The account of the session that is looked at, if it is there.
    pub account: Option<AccountId>,
    /// Its client bindings, and the account or `*` that each is for.
    pub bindings: Vec<(&'a str, String)>,
    /// How many AMQP bindings there was no room for.
    pub keys_left_out: usize,
    /// The modules that are switched off.
    pub stopped: Vec<&'a str>,
    /// Whether the source of events is there.
    pub is_source_up: bool,
}

impl Trace {
    /// Whether somebody looks.
    #[inline]
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// How many look.
    #[must_use]
    pub fn looks(&self) -> usize {
        self.0.as_ref().map_or(0, |all| all.looks.len())
    }

    /// Whether there is no room for another look.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.looks() >= TRACE_LOOKS_MAX
    }

    /// How many more AMQP bindings may be held for looks.
    #[must_use]
    pub fn keys_left(&self) -> usize {
        let looks = self.0.iter().flat_map(|all| &all.looks);
        TRACE_KEYS_TOTAL_MAX.saturating_sub(looks.map(|look| look.keys().len()).sum())
    }

    /// Begins a look, and tells its first line.
    pub fn begin(
        &mut self,
        mut look: Look,
        beginning: &Beginning<'_>,
        limit: Option<u64>,
        now: Now,
    ) {
        let all = self.0.get_or_insert_with(|| {
            Box::new(Looks {
                looks: Vec::new(),
                clock_to_unix: Duration::ZERO,
            })
        });
        all.mind_clock(now);
        let line = looking(&look, beginning, limit, all.at(now));
        look.tell_of_itself(&line);
        all.looks.push(look);
        all.share_out();
    }

    /// Takes out the look of a connection, whose AMQP bindings are to be given back.
    pub fn end(&mut self, id: ConnId) -> Option<Look> {
        let all = self.0.as_mut()?;
        let place = all.looks.iter().position(|look| look.id == id)?;
        let look = all.looks.swap_remove(place);
        if all.looks.is_empty() {
            self.0 = None;
        }
        Some(look)
    }

    /// Ends all looks.
    pub fn end_all(&mut self, why: Ended) {
        for look in self.looks_mut() {
            look.end(why);
        }
    }

    /// Begins a turn's share anew, and divides it between the looks. To be called once a turn while somebody looks.
    pub fn begin_share(&mut self, now: Now) {
        if let Some(all) = &mut self.0 {
            all.share_out();
            all.mind_clock(now);
        }
    }

    /// The connections of all lookers.
    #[must_use]
    pub fn lookers(&self) -> Vec<ConnId> {
        let looks = self.0.iter().flat_map(|all| &all.looks);
        looks.map(|look| look.id).collect()
    }

    /// Takes what there is to send to a looker, if anything. `subscriptions` tell which keys are in force.
    pub fn take(
        &mut self,
        id: ConnId,
        subscriptions: &Subscriptions,
        is_source_up: bool,
        now: Now,
    ) -> Option<Lines> {
        let all = self.0.as_mut()?;
        let at = all.at(now);
        let look = all.looks.iter_mut().find(|look| look.id == id)?;
        let broker = subscriptions.broker();
        look.tell_bound(at, |key| is_source_up && broker.is_confirmed(key));
        look.take(at, now.clock)
    }

    /// Puts the next comment for a looker off, because there is no room for it.
    pub fn put_off(&mut self, id: ConnId, now: Now) {
        for look in self.looks_mut().filter(|look| look.id == id) {
            look.put_off(now.clock);
        }
    }

    /// When something is due, on the loop's clock.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let looks = self.0.iter().flat_map(|all| &all.looks);
        looks.map(Look::due).min()
    }

    /// Whether something is left of the turn's share; if not, the event at hand is left out for all looks.
    pub fn may_judge(&mut self) -> bool {
        let is_left = self.looks_mut().any(|look| *look.steps() > 0);
        if !is_left {
            self.looks_mut().for_each(Look::leave_event_out);
        }
        is_left
    }

    /// The looks, each with the connection of the session that it looks at, if that is there.
    #[must_use]
    pub fn sessions(&self) -> Vec<Option<ConnId>> {
        let looks = self.0.iter().flat_map(|all| &all.looks);
        looks.map(|look| look.session).collect()
    }

    /// Adds to `concerns` each look that an event, whose owner this is, concerns. `session`: the session that the look of
    /// this place looks at, if it is there.
    pub fn concerns<'s>(
        &mut self,
        event: &EventKey<'_>,
        owner: Owner<'_>,
        subscriptions: &Subscriptions,
        mut session: impl FnMut(usize) -> Option<TracedSession<'s>>,
        concerns: &mut Vec<ConcernedLook>,
    ) {
        let Some(all) = &mut self.0 else {
            return;
        };
        for (place, look) in all.looks.iter_mut().enumerate() {
            let session = session(place);
            let mut steps = *look.steps();
            let filter = &look.filter;
            let concern = judge::concern(filter, event, owner, session, subscriptions, &mut steps);
            *look.steps() = steps;
            match concern {
                Ok(Some(nearest)) => concerns.push(ConcernedLook {
                    look: place,
                    nearest,
                    is_of_session: look.filter.session.is_some(),
                }),
                Ok(None) => {}
                Err(_) => {
                    *look.steps() = 0;
                    look.leave_event_out();
                }
            }
        }
    }

    /// Notes that an event went to a subscription. `sessions`: to how many; `None`: of the session that is looked at.
    pub fn matched(
        &mut self,
        look: usize,
        told: EventFacts<'_>,
        went: &MatchedSubscription<'_>,
        sessions: Option<usize>,
        now: Now,
    ) {
        self.tell_event(look, Word::Matched, told, now, |line, session| {
            let line = match sessions {
                Some(sessions) => line.value("sessions", sessions),
                None => line.text_if("session", session),
            };
            let for_account = match went.scope {
                Scope::Any => "*".to_owned(),
                Scope::One(account) => account.to_string(),
            };
            line.text("subscribed_key", went.subscribed_key)
                .text("subscription_key", went.subscription_key)
                .text("for_account_id", &for_account)
                .value("queued", went.queued)
                .value("dropped", went.dropped)
        });
    }

    /// Notes that an event did not arrive. `subscribed_key`: of the subscription that it fits.
    pub fn not_matched(
        &mut self,
        look: usize,
        told: EventFacts<'_>,
        why: WhyNotMatched,
        subscribed_key: Option<&str>,
        now: Now,
    ) {
        self.tell_event(look, Word::NotMatched, told, now, |line, session| {
            line.text_if("session", session)
                .text_if("subscribed_key", subscribed_key)
                .text("why", why.text())
        });
    }

    /// Notes that an event went to one more group of subscriptions than is told.
    pub fn leave_group_out(&mut self, look: usize) {
        if let Some(look) = self.0.as_mut().and_then(|all| all.looks.get_mut(look)) {
            look.leave_line_out();
        }
    }

    /// Notes that a session was opened.
    pub fn opened(&mut self, who: &Who, style: Style, now: Now) {
        for look in self.looks_mut() {
            if look.filter.session == Some(who.peer) {
                look.session = Some(who.id);
            }
        }
        self.tell_session(who, &CommandFacts::default(), Word::Opened, now, |line| {
            line.text("style", style.word())
        });
    }

    /// Notes a command, and what came of it.
    pub fn command(
        &mut self,
        who: &Who,
        asked: &CommandFacts<'_>,
        came: CommandOutcome<'_>,
        now: Now,
    ) {
        self.tell_session(who, asked, Word::Command, now, |line| {
            let line = line
                .text("action", asked.action.unwrap_or("unknown"))
                .text_if("request_id", asked.request_id)
                .text_if("for_account_id", asked.account);
            let line = match asked.bindings.is_empty() {
                true => line,
                false => line.texts("bindings", asked.bindings.iter().copied()),
            };
            match came {
                CommandOutcome::Ok => line.text("outcome", "ok"),
                CommandOutcome::Waits(what) => {
                    line.text("outcome", "waits").text("waits_for", what)
                }
                CommandOutcome::Errors(errors) => line
                    .text("outcome", "error")
                    .texts("errors", errors.iter().map(String::as_str)),
            }
        });
    }

    /// Notes that subscriptions of a session were ended.
    pub fn subscriptions_ended(
        &mut self,
        who: &Who,
        bindings: &[Box<str>],
        reason: &str,
        now: Now,
    ) {
        let asked = CommandFacts {
            bindings: bindings.iter().map(AsRef::as_ref).collect(),
            ..CommandFacts::default()
        };
        self.tell_session(who, &asked, Word::SubscriptionsEnded, now, |line| {
            line.texts("bindings", asked.bindings.iter().copied())
                .text("reason", reason)
        });
    }

    /// Notes that a session was told that the process is going away.
    pub fn going_away(&mut self, who: &Who, within: Duration, now: Now) {
        let asked = CommandFacts::default();
        self.tell_session(who, &asked, Word::GoingAway, now, |line| {
            line.value("within_ms", within.as_millis())
        });
    }

    /// Notes that a session is being closed. `code`: of the close frame that it is sent.
    pub fn closed(&mut self, who: &Who, reason: CloseReason, code: Option<u16>, now: Now) {
        self.tell_session(who, &CommandFacts::default(), Word::Closed, now, |line| {
            let line = line.text("reason", reason.word());
            match code {
                Some(code) => line.value("code", code),
                None => line,
            }
        });
        for look in self.looks_mut() {
            look.session = look.session.filter(|id| *id != who.id);
        }
    }

    /// Notes that bytes went out to a session, and how many still wait.
    pub fn written(&mut self, id: ConnId, bytes: usize, waiting_bytes: usize, now: Now) {
        let Some(all) = &mut self.0 else {
            return;
        };
        let at = all.at(now);
        for look in all.looks.iter_mut().filter(|look| look.session == Some(id)) {
            if !look.may_tell() {
                continue;
            }
            let line = Line::new(Word::Written, at)
                .text_if("session", look.filter.session.map(|peer| peer.to_string()))
                .value("bytes", bytes)
                .value("waiting_bytes", waiting_bytes);
            look.tell(&line.end());
        }
    }

    /// Notes that the source of events came or went.
    pub fn source(&mut self, is_up: bool, now: Now) {
        let Some(all) = &mut self.0 else {
            return;
        };
        let state = if is_up { "up" } else { "down" };
        let line = Line::new(Word::Source, all.at(now))
            .text("state", state)
            .end();
        for look in &mut all.looks {
            look.tell(&line);
        }
    }

    fn looks_mut(&mut self) -> impl Iterator<Item = &mut Look> {
        self.0.iter_mut().flat_map(|all| &mut all.looks)
    }

    /// Tells something that happens to a session to all that look at it.
    fn tell_session(
        &mut self,
        who: &Who,
        asked: &CommandFacts<'_>,
        word: Word,
        now: Now,
        rest: impl FnOnce(Line) -> Line,
    ) {
        let Some(all) = &mut self.0 else {
            return;
        };
        let at = all.at(now);
        let account = asked.account.and_then(AccountId::parse);
        let is_for = |look: &&mut Look| {
            let bindings = asked.bindings.iter().copied();
            look.filter.is_for(who, account, bindings)
        };
        let mut looks = all.looks.iter_mut().filter(is_for).peekable();
        if looks.peek().is_none() {
            return;
        }
        let line = Line::new(word, at)
            .text("session", &who.peer.to_string())
            .account("account_id", who.account);
        let line = rest(line).end();
        for look in looks {
            if look.may_tell() {
                look.tell(&line);
            }
        }
    }

    /// Tells what became of an event to one look. `rest` gets the session that it looks at.
    fn tell_event(
        &mut self,
        look: usize,
        word: Word,
        told: EventFacts<'_>,
        now: Now,
        rest: impl FnOnce(Line, Option<String>) -> Line,
    ) {
        let Some(all) = &mut self.0 else {
            return;
        };
        let at = all.at(now);
        let Some(look) = all.looks.get_mut(look) else {
            return;
        };
        if !look.may_tell() {
            return;
        }
        let EventFacts { event, owner } = told;
        let account = match owner {
            Owner::Account(account) => Some(account),
            Owner::Realm(_) | Owner::Nobody => None,
        };
        let line = Line::new(word, at)
            .text("exchange", event.exchange())
            .text("routing_key", event.routing_key())
            .account("account_id", account)
            .text_if("name", event.head().name.as_deref());
        let session = look.filter.session.map(|peer| peer.to_string());
        look.tell(&rest(line, session).end());
    }
}

impl Looks {
    fn at(&self, now: Now) -> u64 {
        u64::try_from((self.clock_to_unix + now.clock).as_millis()).unwrap_or(u64::MAX)
    }

    /// Gives each look its part of the turn's share.
    fn share_out(&mut self) {
        let share = TRACE_STEPS_PER_TURN_MAX / self.looks.len().max(1);
        for look in &mut self.looks {
            *look.steps() = share;
        }
    }

    fn mind_clock(&mut self, now: Now) {
        let least = Duration::from_secs(now.unix()).saturating_sub(now.clock);
        let most = least + Duration::from_secs(1);
        // The system's clock may have been set.
        if !(least..most).contains(&self.clock_to_unix) {
            self.clock_to_unix = least;
        }
    }
}

/// The first line of a look.
fn looking(look: &Look, beginning: &Beginning<'_>, limit: Option<u64>, at: u64) -> Vec<u8> {
    let Filter {
        session,
        account,
        realm,
        key,
        event,
    } = &look.filter;
    let mut line = Line::new(Word::Looking, at);
    if let Some(peer) = session {
        line = line
            .text("session", &peer.to_string())
            .value("there", look.session.is_some())
            .account("session_account_id", beginning.account);
        let bindings = beginning.bindings.iter();
        let bindings = bindings.map(|(binding, account)| [Some(*binding), Some(&**account)]);
        line = line.objects("bindings", ["binding", "account_id"], bindings);
    }
    line = line
        .account("account_id", *account)
        .text_if("realm", realm.as_deref())
        .text_if("key", key.as_ref().map(|key| cut(key.key())))
        .text_if("event", event.as_deref());
    if let Some(limit) = limit {
        line = line.value("limit", limit);
    }
    let keys = look.keys().iter();
    let keys = keys.map(|key| [Some(&*key.exchange), Some(key.key.as_str())]);
    line.objects("keys", ["exchange", "key"], keys)
        .value("keys_without_room", beginning.keys_left_out)
        .texts("stopped", beginning.stopped.iter().copied())
        .text("source", if beginning.is_source_up { "up" } else { "down" })
        .end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{TRACE_COMMENT_INTERVAL, TRACE_LINE_COST, TRACE_LINES_BYTES_MAX};
    use crate::routing::families::{Families, FamilyOptions};

    const LOOKER: ConnId = ConnId {
        slot: 1,
        generation: 1,
    };

    fn at(seconds: u64, millis: u64) -> Now {
        Now {
            clock: Duration::from_millis(seconds * 1000 + millis),
            unix_ms: (1_795_425_948 + seconds) * 1_000,
        }
    }

    fn who(slot: u32) -> Who {
        Who {
            id: ConnId {
                slot,
                generation: 7,
            },
            peer: std::net::SocketAddr::from(([127, 0, 0, 1], 5000)).into(),
            account: Some(AccountId::from_bytes([1; 16])),
        }
    }

    struct Bench {
        trace: Trace,
        subscriptions: Subscriptions,
    }

    impl Bench {
        fn new(limit: Option<u64>) -> Self {
            let families = Families::new(&FamilyOptions::default()).expect("the platform's");
            let mut bench = Self {
                trace: Trace::default(),
                subscriptions: Subscriptions::new(families, at(0, 0).unix(), None),
            };
            let filter = Filter {
                session: None,
                account: who(0).account,
                realm: None,
                key: None,
                event: None,
            };
            let look = Look::new(LOOKER, filter, None, Vec::new(), limit, at(0, 0).clock);
            bench
                .trace
                .begin(look, &Beginning::default(), limit, at(0, 0));
            assert!(bench.take(at(0, 0)).starts_with("event: looking\n"));
            bench
        }

        fn take(&mut self, now: Now) -> String {
            let lines = self.trace.take(LOOKER, &self.subscriptions, true, now);
            let bytes = lines.map(|lines| lines.bytes).unwrap_or_default();
            String::from_utf8(bytes).expect("UTF-8")
        }

        fn ping(&mut self, now: Now) {
            let asked = CommandFacts {
                action: Some("ping"),
                ..CommandFacts::default()
            };
            self.trace.command(&who(9), &asked, CommandOutcome::Ok, now);
        }
    }

    #[test]
    fn what_is_beyond_the_share_of_a_turn_is_counted_and_the_next_turn_has_its_own() {
        let mut bench = Bench::new(None);
        let room = TRACE_STEPS_PER_TURN_MAX / TRACE_LINE_COST;
        for _ in 0..room + 5 {
            bench.ping(at(0, 1));
        }
        assert!(!bench.trace.may_judge());
        let told = bench.take(at(0, 1));
        assert_eq!(told.matches("event: command\n").count(), room);
        assert!(
            told.contains("event: left_out\n") && told.contains("\"lines\":5,\"events\":1}"),
            "{told}"
        );
        bench.trace.begin_share(at(0, 2));
        bench.ping(at(0, 2));
        let told = bench.take(at(0, 2));
        assert!(
            told.contains("event: command\n") && !told.contains("left_out"),
            "{told}"
        );
    }

    #[test]
    fn a_looker_that_takes_nothing_keeps_no_more_than_its_bound() {
        let mut bench = Bench::new(None);
        let mut told = 0;
        for turn in 0..200 {
            bench.trace.begin_share(at(turn, 0));
            for _ in 0..100 {
                bench.ping(at(turn, 0));
                told += 1;
            }
            bench.trace.put_off(LOOKER, at(turn, 0));
        }
        let lines = bench.take(at(200, 0));
        assert!(lines.len() < TRACE_LINES_BYTES_MAX + 200, "{}", lines.len());
        let kept = lines.matches("event: command\n").count();
        assert!(
            lines.contains(&format!("\"lines\":{},\"events\":0}}", told - kept)),
            "{kept}"
        );
    }

    #[test]
    fn a_look_ends_after_its_limit_and_tells_nothing_more() {
        let mut bench = Bench::new(Some(2));
        for _ in 0..3 {
            bench.ping(at(0, 0));
        }
        bench.trace.source(false, at(0, 0));
        bench.trace.end_all(Ended::Drain);
        let told = bench.take(at(0, 0));
        let words: Vec<_> = told
            .lines()
            .filter_map(|line| line.strip_prefix("event: "))
            .collect();
        assert_eq!(words, ["command", "command", "ended"]);
        assert!(told.contains("\"why\":\"limit\""), "{told}");
        assert!(bench.trace.end(LOOKER).is_some());
        assert!(!bench.trace.is_on());
        assert_eq!(bench.trace.next_due(), None);
    }

    #[test]
    fn a_comment_comes_when_nothing_else_has_for_its_interval() {
        let mut bench = Bench::new(None);
        let due = bench.trace.next_due().expect("somebody looks");
        assert_eq!(due, TRACE_COMMENT_INTERVAL);
        assert_eq!(bench.take(at(14, 999)), "");
        assert_eq!(bench.take(at(15, 0)), ": still here\n\n");
        assert_eq!(bench.trace.next_due(), Some(2 * TRACE_COMMENT_INTERVAL));
        bench.trace.source(false, at(16, 0));
        let told = bench.take(at(30, 0));
        assert!(
            told.starts_with("event: source\n") && told.contains("\"state\":\"down\""),
            "{told}"
        );
    }

    #[test]
    fn times_are_unix_milliseconds_once_a_second_has_begun() {
        let mut bench = Bench::new(None);
        bench.trace.begin_share(at(1, 0));
        bench.ping(at(1, 250));
        let told = bench.take(at(1, 250));
        assert!(told.contains("{\"at\":1795425949250,"), "{told}");
    }

    #[test]
    fn times_follow_the_systems_clock_when_it_is_set_back_or_forward() {
        let mut bench = Bench::new(None);
        for (hours, expected) in [(-1_i64, "1795422349000"), (2, "1795433149000")] {
            let mut now = at(1, 250);
            now.unix_ms = now.unix_ms.strict_add_signed(hours * 3_600_000);
            bench.trace.begin_share(now);
            bench.ping(now);
            let told = bench.take(now);
            assert!(told.contains(&format!("{{\"at\":{expected},")), "{told}");
        }
    }

    #[test]
    fn what_happens_to_others_is_not_told() {
        let mut bench = Bench::new(None);
        let mut other = who(9);
        other.account = Some(AccountId::from_bytes([2; 16]));
        bench
            .trace
            .closed(&other, CloseReason::Peer, Some(1000), at(0, 0));
        bench.trace.opened(&other, Style::Kazoo, at(0, 0));
        bench.trace.written(other.id, 5, 0, at(0, 0));
        let asked = CommandFacts {
            action: Some("subscribe"),
            ..CommandFacts::default()
        };
        bench
            .trace
            .command(&other, &asked, CommandOutcome::Ok, at(0, 0));
        assert_eq!(bench.take(at(0, 0)), "");
        // But who asks for the account is.
        let account = AccountId::from_bytes([1; 16]).to_string();
        let asked = CommandFacts {
            account: Some(&account),
            ..asked
        };
        bench
            .trace
            .command(&other, &asked, CommandOutcome::Waits("broker"), at(0, 0));
        let told = bench.take(at(0, 0));
        assert!(
            told.contains("\"outcome\":\"waits\",\"waits_for\":\"broker\""),
            "{told}"
        );
    }
}
