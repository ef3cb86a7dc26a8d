//! The judge: the loop's invariants after every turn, what every client is owed when all is at rest, and that the
//! counters and gauges tell what happened.
//!
//! What a client reads is judged in `stream`, how sessions end in `ends`.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use blackhole::metrics::commands::CommandResult;
use blackhole::reactor::connections::Listed;
use blackhole::routing::amqp_binding::AmqpBinding;
use blackhole::routing::broker_bindings::BindingCounts;
use blackhole::routing::index::IndexCounts;
use blackhole::session::clock::Now;
use blackhole::session::close::CloseReason;
use blackhole::session::id::ConnId;
use blackhole::session::outbox::SlowConsumerPolicy;
use blackhole::session::readiness::SourceState;
use blackhole::session::replies::HeldTotals;

use crate::client::Client;
use crate::ends::Phase;
use crate::model::{Asked, means, routes};
use crate::stream::Circumstances;
use crate::world::World;
use support::scripted::Wire;

/// Bytes that a client which reads everything has room for, at least.
const ROOM_OF_A_READER: usize = 100_000;

/// What those that are gone may have been sent, or have said, without a trace in what was read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Untold {
    frames: u64,
    commands: u64,
    dropped: u64,
    written: u64,
    read: u64,
}

impl Untold {
    /// Adds what one wrote and read who was turned away at once.
    pub(crate) fn add_turned_away(&mut self, wire: &Wire) {
        self.written += wire.written;
        self.read += wire.read;
    }

    /// Adds what this client, whose session is no longer open or who reads nothing any more, may not have read.
    fn add(&mut self, client: &Client) {
        let wire = client.wire.borrow();
        if client.closed_with.is_none() || client.seen.was_full {
            let frames = client.seen.lost_frames.max(client.seen.frames as u64 + 1);
            self.frames += frames;
            self.dropped += frames;
        }
        self.dropped += client.seen.dropped;
        self.commands += client.asked.len() as u64;
        self.written += wire.written;
        self.read += wire.read;
    }
}

impl World {
    pub(crate) fn check_invariants(&self, now: Now) {
        let wires: HashMap<ConnId, &Rc<RefCell<Wire>>> = self
            .clients
            .iter()
            .map(|client| (client.id, &client.wire))
            .collect();
        let (mut subscriptions, mut blocked, mut blocked_bytes) = (0, 0, 0);
        let mut partial_bytes = 0;
        let (mut open, mut closing) = (0, 0);
        for (id, connection) in self.reactor.connections().iter() {
            let session = &connection.session;
            let wire = wires[&id].borrow();
            assert!(session.ended().is_none(), "{id:?} outlived step 6");
            if session.outbox.is_blocked() {
                blocked += 1;
                blocked_bytes += session.outbox.blocked().1;
                assert!(
                    wire.write_blocked || wire.edge_writable,
                    "{id:?} waits for an edge that will not come"
                );
                let is_watched =
                    connection.listed.contains(Listed::SEND_TIMER) || session.is_closing();
                assert!(is_watched, "{id:?} is blocked and nobody looks");
            } else if !session.outbox.is_empty() {
                assert!(
                    connection.listed.contains(Listed::FLUSH),
                    "{id:?} has frames and is not on the flush list"
                );
            }
            let has_end = wire.is_reset || wire.client_closed && !wire.end_was_read;
            let has_unread = !wire.to_server.is_empty() || has_end;
            if has_unread && !wire.edge_readable && session.wants_bytes() {
                assert!(
                    connection.listed.contains(Listed::REREAD),
                    "{id:?} has unread bytes and is not on the reread list"
                );
            }
            if connection.listed.contains(Listed::FLUSH)
                || connection.listed.contains(Listed::REREAD)
            {
                assert_eq!(self.reactor.patience(now), Duration::ZERO);
            }
            let had = self
                .reactor
                .hub
                .subscriptions
                .index()
                .len(session.subscriptions());
            assert!(
                had == 0 || session.is_open(),
                "{id:?} is not open and has subscriptions"
            );
            subscriptions += had;
            open += u64::from(session.is_open());
            closing += u64::from(session.is_closing());
            partial_bytes += session.partial_bytes();
        }
        let hub = &self.reactor.hub;
        assert_eq!(hub.partials.bytes(), partial_bytes);
        // Those who are closing may never have been sessions.
        let counted = hub.metrics.sessions_opened_total - hub.metrics.closes_total();
        assert!(
            (open..=open + closing).contains(&counted),
            "{counted} sessions are counted; {open} are open and {closing} closing"
        );
        assert_eq!(
            hub.subscriptions.index().counts().subscriptions,
            subscriptions
        );
        assert_eq!(
            (hub.outboxes.blocked_sessions, hub.outboxes.blocked_bytes),
            (blocked, blocked_bytes)
        );
        assert!(hub.outboxes.blocked_bytes <= hub.limits.outboxes_bytes_max);
    }

    /// Checks that nobody is kept who has been silent for too long.
    pub(crate) fn note_who_spoke(&mut self) {
        for client in &mut self.clients {
            let mut wire = client.wire.borrow_mut();
            if wire.room < ROOM_OF_A_READER {
                client.narrow_at = Some(self.awake);
            }
            let is_sent = std::mem::take(&mut wire.was_sent);
            let Some(connection) = self.reactor.connections().get(client.id) else {
                continue;
            };
            let session = &connection.session;
            // One that is not read cannot be heard, unless that is because it takes nothing.
            let is_deaf = !session.wants_bytes() && !session.outbox.is_blocked();
            let is_heard = std::mem::take(&mut wire.was_read) || is_deaf;
            if session.is_closing() {
                continue;
            }
            if is_sent {
                client.spoke_at = self.awake;
            }
            if is_heard || session.is_in_handshake() {
                client.heard_at = self.awake;
            }
            // Under the policy `drop` one that takes nothing is kept while its system answers.
            let answers = !wire.is_unplugged && !wire.is_reset;
            if self.policy == SlowConsumerPolicy::Drop && session.outbox.is_blocked() && answers {
                client.spared_at = self.awake;
            }
            let silent_for = self.awake - client.heard_at.max(client.spared_at);
            if let Some(max) = self.times.silence_max() {
                assert!(
                    silent_for <= max,
                    "{:?} is kept, silent for {silent_for:?}",
                    client.id
                );
            }
        }
    }

    /// Lets every client read, and takes leave of those whose connections are no more.
    pub(crate) fn read_streams(&mut self) {
        let hub = &self.reactor.hub;
        let around = Circumstances {
            clock: self.clock,
            request_timeout: hub.deadlines.command.due(Duration::ZERO),
            has_rate_limit: hub.limits.rate.is_some(),
            is_draining: self.is_draining,
            ever_lost: &self.ever_lost,
            rights: &self.rights,
        };
        for client in &mut self.clients {
            client.read_stream(&around, &mut self.tally);
        }
        let connections = self.reactor.connections();
        let is_gone = |client: &mut Client| connections.get(client.id).is_none();
        let gone: Vec<Client> = self.clients.extract_if(.., is_gone).collect();
        for client in &gone {
            self.take_leave_of(client);
        }
        self.judge_the_gone(&gone);
    }

    fn take_leave_of(&mut self, client: &Client) {
        let wire = client.wire.borrow();
        // Without a word: only who did not take it, who went himself, or who never finished the handshake.
        let is_told = client.closed_with.is_some();
        assert!(
            is_told || !client.upgraded || wire.room < ROOM_OF_A_READER || client.has_hung_up(),
            "{client:?} was dropped"
        );
        self.untold.add(client);
    }

    /// Checks that nobody who takes what is written waits for what is due: a ping of an authenticated session is
    /// answered at once, whatever waits before it, and nothing is answered later than `request_timeout_ms` after it was
    /// read (PROTOCOL 3).
    pub(crate) fn check_answers(&mut self) {
        let request_timeout = self.reactor.hub.deadlines.command.due(Duration::ZERO);
        for client in &mut self.clients {
            let Some(connection) = self.reactor.connections().get(client.id) else {
                continue;
            };
            let session = &connection.session;
            let is_read = client.wire.borrow().to_server.is_empty() && session.wants_bytes();
            if !session.is_open() || !is_read || !session.outbox.is_empty() {
                continue;
            }
            let mut is_behind = false;
            for index in 0..client.asked.len() {
                let question = &mut client.asked[index];
                let read_at = *question.read_at.get_or_insert(self.clock);
                assert!(
                    self.clock - read_at < request_timeout,
                    "{:?}: not answered within {request_timeout:?}: {question:?}",
                    client.id
                );
                if !matches!(question.asked, Asked::Ping) {
                    is_behind = true;
                    continue;
                }
                // A refusal keeps its place behind what waits.
                let sent_at = question.sent_at.expect("it was read");
                let may_be_refused = is_behind && client.may_be_over_the_rate(sent_at);
                assert!(
                    may_be_refused || session.awaits_authentication(),
                    "{:?}: a ping is not answered at once: {:?}",
                    client.id,
                    client.asked
                );
            }
        }
    }

    /// The broker would drop this event: then no client may have been told that it gets such events.
    pub(crate) fn assert_nobody_is_owed(&self, routing_key: &str, account: Option<usize>) {
        if self.lost.iter().any(|lost| routes(&lost.key, routing_key)) {
            return;
        }
        let connections = self.reactor.connections();
        for client in &self.clients {
            // One that the server is closing may not have read that yet.
            if !connections
                .get(client.id)
                .is_some_and(|connection| connection.session.is_open())
            {
                continue;
            }
            for key in &client.live {
                assert!(
                    Some(key.0) != account || !means(key.1, routing_key),
                    "{:?} was told that {key:?} is live, and the broker has no binding for it",
                    client.id
                );
            }
        }
    }

    /// Checks, when all is at rest, that the broker has been asked for what the subscriptions need and nothing else.
    fn check_bindings(&self) {
        let hub = &self.reactor.hub;
        let mut needed = HashSet::new();
        for (_, connection) in self.reactor.connections().iter() {
            for subscription in hub
                .subscriptions
                .index()
                .subscriptions(connection.session.subscriptions())
            {
                let months = subscription.held(hub.subscriptions.months());
                let mut bindings = Vec::new();
                hub.subscriptions
                    .families()
                    .amqp_bindings(&subscription, months, &mut bindings);
                needed.extend(bindings);
            }
        }
        let wanted: HashSet<AmqpBinding> = self.wanted.keys().cloned().collect();
        assert!(needed.is_subset(&wanted), "{needed:?} {wanted:?}");
        let (lingering, _) = hub.subscriptions.lingering();
        assert_eq!(wanted.len(), needed.len() + lingering);
        assert_eq!(hub.subscriptions.broker().counts().wanted, wanted.len());
    }

    pub(crate) fn check_debts(&self) {
        self.check_bindings();
        for client in &self.clients {
            if !client.stays() {
                // One whose token was withdrawn is closed, if it ever was authenticated.
                let is_withdrawn = client.expects.contains(&CloseReason::Expired);
                let is_open = client.seen.phase == Phase::Open;
                let has_token = client
                    .identity
                    .is_some_and(|(_, token)| !self.rights().is_good(token));
                assert!(
                    !(is_withdrawn && is_open && has_token),
                    "{client:?} is kept"
                );
                continue;
            }
            let owed: usize = client.due.values().map(VecDeque::len).sum();
            match self.policy {
                SlowConsumerPolicy::Close => {
                    assert_eq!((owed, client.missed), (0, 0), "{client:?}")
                }
                SlowConsumerPolicy::Drop => {
                    let unread = client.maybe.values().map(VecDeque::len).sum::<usize>() as u64;
                    let least = client.missed + owed as u64;
                    let most = least + client.maybe_missed + unread;
                    assert!(
                        (least..=most).contains(&client.announced),
                        "between {least} and {most} are missing, and {} were announced: {:?}",
                        client.announced,
                        client.id
                    );
                }
            }
            assert!(
                client.asked.is_empty(),
                "without a reply: {:?}",
                client.asked
            );
            assert!(client.pings.is_empty(), "without a pong");
            assert!(
                client.ending.is_empty(),
                "{client:?} is not told what ended"
            );
            // Of those that found its queue full it may be told the latest.
            let owed_outages = match self.policy {
                SlowConsumerPolicy::Close => client.owed_outages,
                SlowConsumerPolicy::Drop => client.owed_outages.min(1),
            };
            assert!(
                client.outage_notices >= owed_outages,
                "not told of an outage: {client:?}"
            );
        }
    }

    /// Checks the counters against what the clients have read, when all is at rest: exactly, but for what was lost with
    /// those that are gone.
    pub(crate) fn check_counters(&self) {
        let (metrics, tally) = (&self.reactor.hub.metrics, &self.tally);
        let mut untold = self.untold;
        for client in &self.clients {
            if client.seen.causes.is_some() || client.wire.borrow().is_unplugged {
                untold.add(client);
            } else {
                untold.written += client.wire.borrow().written;
                untold.read += client.wire.borrow().read;
            }
        }
        let (frames, commands) = (untold.frames, untold.commands);
        for (name, counted, told, lost) in [
            (
                "sessions_opened",
                metrics.sessions_opened_total,
                tally.upgrades,
                frames,
            ),
            (
                "commands",
                metrics.commands.total(),
                tally.replies,
                frames + commands,
            ),
            (
                "commands_failed",
                metrics.commands.refused(),
                tally.errors,
                frames + commands,
            ),
            (
                "commands_rate_limited",
                metrics.commands.of_result(CommandResult::RateLimited),
                tally.rate_limited,
                frames + commands,
            ),
            (
                "frames_delivered",
                metrics.frames_delivered_total,
                tally.events,
                frames,
            ),
            (
                "frames_dropped",
                metrics.frames_dropped_total,
                tally.dropped,
                untold.dropped,
            ),
            ("gap_notices", metrics.gap_notices_total, tally.gaps, frames),
            ("pings_sent", metrics.pings_sent_total, tally.pings, frames),
        ] {
            assert!(
                (told..=told + lost).contains(&counted),
                "{name}_total is {counted}; clients have read {told}, and {lost} may be lost"
            );
        }
        for (name, counted, told) in [
            (
                "connections_accepted",
                metrics.connections_accepted_total,
                self.accepted,
            ),
            ("events", metrics.events_total, self.events_handed),
            ("written_bytes", metrics.written_bytes_total, untold.written),
            ("read_bytes", metrics.read_bytes_total, untold.read),
        ] {
            // The last word to one whose place went to another is no session's.
            let is_told = name != "written_bytes" || metrics.handshakes_evicted_total == 0;
            assert!(
                counted == told || !is_told && counted < told,
                "{name}_total: {counted}, {told}"
            );
        }
    }

    /// Lets all leave; then nothing may be left of them.
    pub(crate) fn end(&mut self) {
        self.settle();
        self.check_counters();
        for client in &mut self.clients {
            let is_unplugged = client.wire.borrow().is_unplugged;
            client.hang_up(is_unplugged || self.rng.u32(0..3) == 0);
        }
        self.settle();
        self.clock += Duration::from_secs(60);
        for _ in 0..2 {
            self.turn();
            self.source_works();
        }
        let hub = &self.reactor.hub;
        assert_eq!(self.reactor.connections().len(), 0);
        assert_eq!(hub.subscriptions.index().counts(), IndexCounts::default());
        assert_eq!(
            hub.subscriptions.broker().counts(),
            BindingCounts::default()
        );
        assert_eq!(hub.subscriptions.broker().waiters(), 0);
        assert_eq!(
            (
                hub.occupancy.ips().kinds(),
                hub.occupancy.accounts().kinds()
            ),
            (0, 0)
        );
        assert_eq!(hub.partials.bytes(), 0);
        assert_eq!(hub.held, HeldTotals::default());
        assert!(hub.peers.is_empty());
        assert_eq!(
            (hub.outboxes.blocked_sessions, hub.outboxes.blocked_bytes),
            (0, 0)
        );
        assert!(
            self.wanted.is_empty() && self.in_force.is_empty(),
            "the broker keeps {:?}",
            self.wanted
        );
        assert_eq!(hub.deadlines.next_due(), None);
        assert_eq!(
            hub.metrics.sessions_opened_total,
            hub.metrics.closes_total()
        );
        assert_eq!(hub.readiness.source(), SourceState::Up);
        self.check_counters();
    }
}
