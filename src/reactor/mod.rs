//! The loop: one thread, one poll; the only place that touches client sockets.
//!
//! The turn has one fixed order (DESIGN, The turn):
//!
//! 1. poll, until the next deadline at most ([`server`])
//! 2. accept, a bounded number ([`server`]); read ready sockets, each within a budget and all within another, and run
//!    their commands
//! 3. after a reread, renew some of the sessions, and take no event until all are renewed; hear what the source tells
//!    of itself; drain events from the hand-off, a bounded number, and again after a fan-out as long as more come; match;
//!    put shared frames into outboxes
//! 4. fire deadlines
//! 5. flush at most [`limits::FLUSHES_PER_TURN`] sessions of the flush list, each with one vectored write; through
//!    io_uring, where there is one, all of these are one system call
//! 6. reap the closed; in the quiet after a burst, give memory back
//!
//! Sockets are registered once, readable and writable, edge-triggered. The invariant: *a session with frames
//! waiting is on the flush list, or its last write would have blocked; one with unread bytes is on the reread
//! list, or its last read would have blocked, or it is parked: its outbox is over its bound, and it is listed again when
//! it no longer is.* A budget that runs out
//! leaves its list non-empty, and then the next poll does not wait. Nothing leaves the table before step 6.
//!
//! Nobody's replies hold events: step 2 is bounded by what it makes for step 5 to do, and only what a fan-out itself has
//! left to be written holds the next one ([`flush_list`]).
//!
//! [`Reactor::turn`] is steps 2 to 6 without a poll and without a clock: what a simulation drives.
//!
//! | module | owns |
//! |---|---|
//! | this | the turn |
//! | [`server`] | poll, waker, signals, clock; the thread's entry |
//! | [`listener`] | the listening sockets, accepting, running out of descriptors |
//! | [`connections`] | the table |
//! | `fan_out` | an event's frames into the outboxes of all who want it |
//! | [`flush_list`] | who is to be written to, and how much may merge meanwhile |
//! | [`drain`] | closing everything, spread over time |
//! | `full` | refusing who comes beyond `max_connections`, and who is one too many of its address |
//! | `unfinished` | the handshakes that are not finished: who goes first when the process is full |
//! | `renewal` | every session anew, after what decides on their rights was reread |
//! | `reread` | the thread that rereads it |
//! | `sweep` | the slow walk over all sessions: expired tokens, the silent, the dead, unfinished messages |
//! | `trim` | giving memory back in the quiet after a burst |
//! | [`admin`] | the pages of the admin listener |
//! | [`socket`] | what is needed of a socket |

pub mod admin;
pub mod connections;
pub mod drain;
mod fan_out;
pub mod flush_list;
mod full;
pub mod listener;
mod renewal;
pub mod reread;
pub mod server;
pub mod socket;
mod sweep;
mod trim;
mod unfinished;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use crossbeam_channel::TryRecvError;

use self::connections::{Connection, Connections, Listed};
use self::drain::Drain;
use self::fan_out::FanOut;
use self::flush_list::{FlushList, Hold};
use self::full::{FullAnswer, Room};
use self::renewal::Renewal;
use self::socket::Socket;
use self::sweep::Sweep;
use self::trim::Trim;
use self::unfinished::Unfinished;
use crate::config::SlowConsumerPolicy;
use crate::handoff::{FromSource, LoopEnd, ToSource};
use crate::limits;
use crate::protocol::proxy::Preamble;
use crate::protocol::reply;
use crate::routing::amqp_binding::{AmqpBinding, Asked};
use crate::routing::broker_bindings::WaiterToken;
use crate::session::close::CloseReason;
use crate::session::hub::{Admission, Hub, Now, SourceState};
use crate::session::id::{ConnId, Peer};
use crate::session::outbox::{FlushReport, Flushed};
use crate::session::replies;
use crate::session::{AdminRequest, AfterFlush, Door, Session};
use crate::sys::ring::{Ring, RingWrite};

/// What the poll said of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Whose.
    pub id: ConnId,
    /// It may have bytes, or an error.
    pub readable: bool,
    /// It may take bytes.
    pub writable: bool,
    /// The peer closed its side: it must be read to the end now.
    pub read_closed: bool,
}

/// The loop's whole state but for the poll, the listeners and the clock.
pub struct Reactor<S> {
    /// What sessions share.
    pub hub: Hub,
    connections: Connections<S>,
    handoff: LoopEnd,
    epoch: Instant,
    connections_max: usize,
    unfinished: Unfinished,
    read_buffer: Box<[u8]>,
    full_answer: FullAnswer,
    fan_out: FanOut,
    flush: FlushList,
    reread: VecDeque<ConnId>,
    reap: Vec<ConnId>,
    /// The hand-off was left with messages in it.
    more_messages: bool,
    /// Since when events wait there for the flush list to move, and how long that was when last looked at.
    held_since: Option<Duration>,
    held_for: Duration,
    /// Bindings that were in force and are lost while the source is up, and since when.
    lost: HashMap<AmqpBinding, Duration>,
    source_gone: bool,
    renewal: Renewal,
    sweep: Sweep,
    trim: Trim,
    drain: Option<Drain>,
    slow_log: LogLimit,
    proxy_log: LogLimit,
    /// Appends what other threads count to the metrics page.
    more_metrics: Box<dyn Fn(&mut String)>,
    trim_heap: fn(),
    /// `None`: each socket is written to by itself.
    ring: Option<Ring>,
}

/// Lets a line through once an interval and counts the rest.
#[derive(Debug, Default)]
struct LogLimit {
    next: Duration,
    suppressed: u64,
}

impl LogLimit {
    /// How many lines this one stands for, or `None` when it is to be left out.
    fn pass(&mut self, now: Duration) -> Option<u64> {
        self.suppressed += 1;
        if now < self.next {
            return None;
        }
        self.next = now + limits::LOG_INTERVAL;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// What may still be read in a turn, or by one read.
#[derive(Clone, Copy, Debug)]
struct ReadBudget {
    bytes: usize,
    /// [`Hub::frames_read`] at which it is spent.
    frames_max: usize,
    /// The same while events wait.
    frames_before_events: usize,
    /// Sessions that have spoken and wait for their flush, at which it is spent.
    spoke_max: usize,
}

impl ReadBudget {
    fn of_a_turn() -> Self {
        Self {
            bytes: limits::READ_BYTES_PER_TURN,
            frames_max: limits::FRAMES_READ_PER_TURN,
            frames_before_events: limits::FRAMES_READ_BEFORE_EVENTS,
            spoke_max: limits::FLUSHES_PER_TURN,
        }
    }

    /// Of a read that has to be, whatever was read in the turn.
    fn of_one_read() -> Self {
        Self {
            bytes: limits::READ_BUFFER_BYTES,
            frames_max: usize::MAX,
            frames_before_events: usize::MAX,
            spoke_max: usize::MAX,
        }
    }
}

/// Whom an outage of the whole source concerns.
fn everybody(_: &Session, _: &Hub) -> bool {
    true
}

/// What the loop is made of, beside the hub.
pub struct ReactorParts {
    /// Where events come from.
    pub handoff: LoopEnd,
    /// The moment that the loop's clock counts from.
    pub epoch: Instant,
    /// `max_connections`.
    pub connections_max: usize,
    /// Appends what other threads count to the metrics page.
    pub more_metrics: Box<dyn Fn(&mut String)>,
    /// Gives freed memory back to the system.
    pub trim_heap: fn(),
    /// Writes to many sockets with one system call, where the kernel lets us.
    pub ring: Option<Ring>,
}

impl<S: Socket> Reactor<S> {
    /// A loop without connections.
    #[must_use]
    pub fn new(hub: Hub, parts: ReactorParts) -> Self {
        Self {
            hub,
            connections: Connections::default(),
            handoff: parts.handoff,
            epoch: parts.epoch,
            connections_max: parts.connections_max,
            unfinished: Unfinished::default(),
            read_buffer: vec![0; limits::READ_BUFFER_BYTES].into(),
            full_answer: FullAnswer::default(),
            fan_out: FanOut::default(),
            flush: FlushList::default(),
            reread: VecDeque::new(),
            reap: Vec::new(),
            more_messages: false,
            held_since: None,
            held_for: Duration::ZERO,
            lost: HashMap::new(),
            source_gone: false,
            renewal: Renewal::default(),
            sweep: Sweep::default(),
            trim: Trim::default(),
            drain: None,
            slow_log: LogLimit::default(),
            proxy_log: LogLimit::default(),
            more_metrics: parts.more_metrics,
            trim_heap: parts.trim_heap,
            ring: parts.ring,
        }
    }

    /// All connections.
    #[must_use]
    pub fn connections(&self) -> &Connections<S> {
        &self.connections
    }

    /// The socket of a connection, to register it with the poll.
    pub fn socket_mut(&mut self, id: ConnId) -> Option<&mut S> {
        self.connections
            .get_mut(id)
            .map(|connection| &mut connection.socket)
    }

    /// Takes a connection in, to be read in the coming turn. One that had to come from a trusted proxy and does not
    /// is closed without a word (`None`). Beyond `max_connections` it takes the place of an unfinished handshake, or is
    /// told 503; one too many of its address is told 429: and is gone already (`None`) where that needs no more than its
    /// first bytes.
    pub fn accept(&mut self, mut socket: S, peer: Peer, door: Door, now: Now) -> Option<ConnId> {
        self.hub.metrics.connections_accepted_total += 1;
        let preamble = match door {
            Door::Clients => self.hub.limits.proxies.preamble(peer.address().ip()),
            Door::Admin => Some(Preamble::Done),
        };
        let Some(preamble) = preamble else {
            self.hub.metrics.proxy_peers_refused_total += 1;
            if let Some(count) = self.proxy_log.pass(now.clock) {
                log::warn!(
                    "connection from {peer} closed: not one of trusted_proxies ({count} such since the last line)"
                );
            }
            return None;
        };
        let room = self.room_for(&mut socket, door, preamble);
        if room == Room::Close {
            return None;
        }
        let session = Session::new(door, preamble, peer, &mut self.hub);
        let is_surplus = session.is_surplus();
        let id = self.connections.insert(socket, session);
        if is_surplus && room == Room::Free && !self.take_surplus(id, now) {
            return None;
        }
        let connection = self.connections.get_mut(id)?;
        if room == Room::Refuse {
            connection.session.refuse_full(id, &mut self.hub, now);
        } else {
            self.hub.deadlines.handshake.begin(now.clock, id);
        }
        connection.listed.insert(Listed::REREAD);
        self.reread.push_back(id);
        self.settle(id);
        Some(id)
    }

    /// Ends a connection that could not be registered.
    pub fn abandon(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.session.abandon(id, &mut self.hub);
            self.settle(id);
        }
    }

    /// Steps 2 to 6 of the turn. `ready`: what the poll said.
    pub fn turn(&mut self, ready: &[Ready], now: Now) {
        self.hub.metrics.turns_total += 1;
        self.hub.waking.advance(now.clock);
        self.read_ready(ready, now);
        self.close_unfinished(now);
        self.renew_some(now);
        self.take_events(now);
        self.fire_deadlines(now);
        self.flush_some(now);
        self.close_largest(now);
        self.reap_closed(now);
        self.trim(now);
        let commands = std::mem::take(&mut self.hub.to_source);
        for command in &commands {
            if let ToSource::Unbind(binding) = command {
                // Nobody is left who could have missed anything.
                self.lost.remove(binding);
            }
        }
        self.take_dark(now);
        self.handoff.tell(commands);
    }

    /// How long the next poll may wait.
    #[must_use]
    pub fn patience(&self, now: Now) -> Duration {
        if self.more_messages
            || !self.flush.is_empty()
            || !self.reread.is_empty()
            || !self.reap.is_empty()
            || self.renewal.is_under_way()
        {
            return Duration::ZERO;
        }
        let sweep = self.sweep_due();
        let drain = self.drain.as_ref().map(|drain| drain.next_due());
        let (deadline, months) = (self.hub.deadlines.next_due(), self.hub.months_due());
        [deadline, months, sweep, self.trim.due(), drain]
            .into_iter()
            .flatten()
            .map(|due| due.saturating_sub(now.clock))
            .min()
            .unwrap_or(limits::POLL_WAIT_MAX)
            .min(limits::POLL_WAIT_MAX)
    }

    /// Brings a connection onto the lists that its state calls for.
    fn settle(&mut self, id: ConnId) {
        self.settle_listing(id, FlushList::push);
    }

    /// As [`Reactor::settle`], with `list` to put it on the flush list.
    fn settle_listing(&mut self, id: ConnId, list: fn(&mut FlushList, ConnId)) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Connection {
            session, listed, ..
        } = connection;
        if session.is_gone().is_some() {
            if listed.enter(Listed::REAP) {
                self.reap.push(id);
            }
            return;
        }
        if !session.outbox.is_blocked()
            && (!session.outbox.is_empty() || session.is_closing())
            && listed.enter(Listed::FLUSH)
        {
            list(&mut self.flush, id);
        }
        self.unpark(id);
    }

    /// Lists a parked session to be read again once it wants its bytes.
    fn unpark(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id)
            && connection.listed.contains(Listed::PARKED)
            && connection.session.wants_bytes()
        {
            connection.listed.remove(Listed::PARKED);
            self.list_reread(id);
        }
    }

    fn list_reread(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id)
            && connection.listed.enter(Listed::REREAD)
        {
            self.reread.push_back(id);
        }
    }

    // Step 2: read.

    fn read_ready(&mut self, ready: &[Ready], now: Now) {
        self.hub.frames_read = 0;
        let mut budget = ReadBudget::of_a_turn();
        // First those whom an earlier turn owed a read, lest those with news keep them waiting for ever; and only
        // those listed before this turn: one that is listed again has had its share.
        for _ in 0..self.reread.len() {
            if self.is_spent(&budget) {
                break;
            }
            let Some(id) = self.reread.pop_front() else {
                break;
            };
            if let Some(connection) = self.connections.get_mut(id) {
                connection.listed.remove(Listed::REREAD);
                self.read(id, &mut budget, now);
            }
        }
        for ready in ready {
            let Some(connection) = self.connections.get_mut(ready.id) else {
                continue;
            };
            if ready.writable
                && connection.session.outbox.is_blocked()
                && connection.listed.enter(Listed::FLUSH)
            {
                self.flush.push(ready.id);
            }
            if ready.read_closed {
                connection.listed.insert(Listed::HAS_ENDED);
            }
            if (ready.readable || ready.read_closed) && !connection.listed.contains(Listed::REREAD)
            {
                self.read(ready.id, &mut budget, now);
            }
        }
    }

    /// Reads one socket once, and lists it again if it may have more: after a full read, or when its peer has closed,
    /// which the poll does not tell twice.
    fn read(&mut self, id: ConnId, budget: &mut ReadBudget, now: Now) {
        let is_spent = self.is_spent(budget);
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if !connection.session.wants_bytes() {
            connection.listed.insert(Listed::PARKED);
            return;
        }
        if is_spent {
            return self.list_reread(id);
        }
        self.hub.metrics.reads_total += 1;
        self.hub.frames_read += 1;
        let most = connection.session.read_bytes_max();
        let most = most.min(self.read_buffer.len());
        let buffer = self.read_buffer.get_mut(..most).unwrap_or_default();
        match connection.socket.read(buffer) {
            Ok(0) => connection.session.on_end(false, &mut self.hub, id),
            Ok(count) => {
                budget.bytes = budget.bytes.saturating_sub(count);
                self.hub.metrics.read_bytes_total += count as u64;
                let has_more = count == most || connection.listed.contains(Listed::HAS_ENDED);
                if connection.listed.contains(Listed::UNFINISHED) {
                    connection.listed.remove(Listed::UNFINISHED);
                    let address = connection.session.peer(&self.hub).network();
                    self.unfinished.remove(address, id);
                }
                let input = self.read_buffer.get_mut(..count).unwrap_or_default();
                let page = connection.session.on_bytes(input, id, &mut self.hub, now);
                if let Some(page) = page {
                    self.show(page, id, now);
                }
                if has_more {
                    self.list_reread(id);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.list_reread(id),
            Err(_) => connection.session.on_end(true, &mut self.hub, id),
        }
        self.note_unfinished(id);
        self.settle_listing(id, FlushList::push_spoke);
    }

    /// Names a connection that has been read and is still in its handshake.
    fn note_unfinished(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id)
            && connection.session.awaits_request()
            && connection.listed.enter(Listed::UNFINISHED)
        {
            let address = connection.session.peer(&self.hub).network();
            self.unfinished.insert(address, id);
        }
    }

    /// While what has arrived in part is over a bound, closes who keeps most of it.
    fn close_unfinished(&mut self, now: Now) {
        while let Some(id) = self.hub.partials.first_to_go() {
            self.close(id, CloseReason::PartialsFull, now);
            // Whatever becomes of it, it keeps nothing.
            self.hub.partials.remove(id);
        }
    }

    /// Whether the rest is to be read in the next turn.
    fn is_spent(&self, budget: &ReadBudget) -> bool {
        let frames = self.hub.frames_read;
        budget.bytes == 0
            || frames >= budget.frames_max
            || (frames >= budget.frames_before_events && self.handoff.waiting() > 0)
            || self.flush.spoke_len() >= budget.spoke_max
    }

    fn show(&mut self, request: AdminRequest, id: ConnId, now: Now) {
        let response = admin::page(request, self);
        if let Some(connection) = self.connections.get_mut(id) {
            connection
                .session
                .respond(&response, id, &mut self.hub, now);
        }
    }

    // Step 3: events.

    /// Empties the hand-off as far as the bounds allow. After a fan-out to many it looks again until nothing more comes:
    /// on a core of its own that is no wait; on one that it shares, the source hands over the rest of a burst, which
    /// then costs one write a session instead of several.
    fn take_events(&mut self, now: Now) {
        if self.renewal.is_under_way() {
            return;
        }
        let mut in_vain = 0;
        for look in 0..limits::LOOKS_PER_TURN {
            if look > 0 {
                std::thread::yield_now();
                self.hub.metrics.handoff_looks_again_total += 1;
            }
            let events = self.hub.metrics.events_total;
            self.drain_handoff(now);
            let is_in_vain = self.hub.metrics.events_total == events;
            in_vain = if is_in_vain { in_vain + 1 } else { 0 };
            let waiting = self.flush.len().max(self.waiting_for_run());
            let is_worth_it =
                waiting >= limits::YIELD_FLUSHES_MIN && in_vain < limits::LOOKS_IN_VAIN;
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

    fn drain_handoff(&mut self, now: Now) {
        self.handoff.clear_wake();
        self.more_messages = true;
        let are_all_heard = self.hear_source(now);
        for _ in 0..limits::EVENTS_PER_LOOK {
            if !self.flush.takes_another_event(self.fan_out.held()) {
                self.more_messages =
                    !are_all_heard || self.handoff.waiting() > 0 || self.fan_out.is_sliced();
                return self.note_held(now);
            }
            if self.fan_out.is_sliced() {
                // Its next slice, and nothing else in this turn if there is another.
                self.fan_out_slice(now);
                if self.fan_out.is_sliced() {
                    return;
                }
            }
            match self.handoff.try_event() {
                Ok(message) => {
                    self.held_since = None;
                    self.on_message(message, now);
                    if self.fan_out.is_sliced() {
                        return;
                    }
                }
                Err(TryRecvError::Empty) => {
                    self.more_messages = !are_all_heard;
                    self.held_since = None;
                    return;
                }
                Err(TryRecvError::Disconnected) => {
                    self.more_messages = false;
                    self.held_since = None;
                    self.on_source_gone(now);
                    return;
                }
            }
        }
    }

    /// Takes what the source tells of itself, whatever is fanned out. False: there may be more.
    fn hear_source(&mut self, now: Now) -> bool {
        for _ in 0..limits::CONTROLS_PER_LOOK {
            match self.handoff.try_control() {
                Ok(message) => self.on_message(message, now),
                // The end of the source is told by the channel of the events, which come first.
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
            FromSource::Up => self.on_up(now),
            FromSource::Down { since } => self.on_down(self.clock_of(since)),
            FromSource::Lost(bindings) => {
                for lost in bindings {
                    if self.hub.broker.is_confirmed(&lost.binding) {
                        self.lost.entry(lost.binding.clone()).or_insert(now.clock);
                    }
                    for waiter in self.hub.broker.on_lost(&lost) {
                        self.resume(waiter, now, Session::on_refused);
                    }
                }
            }
            FromSource::Overflowed { since } => {
                let away = now.clock.saturating_sub(self.clock_of(since));
                self.announce(away, everybody, now);
            }
        }
    }

    fn clock_of(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.epoch)
    }

    fn on_up(&mut self, now: Now) {
        let before = std::mem::replace(&mut self.hub.source, SourceState::Up);
        if let SourceState::Away { since } = before {
            self.announce(now.clock.saturating_sub(since), everybody, now);
        }
        for waiter in self.hub.broker.on_up() {
            self.resume(waiter, now, Session::on_bound);
        }
    }

    fn on_down(&mut self, since: Duration) {
        self.hub.broker.on_down();
        if self.hub.source == SourceState::Up {
            self.hub.source = SourceState::Away { since };
            self.hub.metrics.source_outages_total += 1;
        }
    }

    fn on_source_gone(&mut self, now: Now) {
        if !self.source_gone {
            self.source_gone = true;
            log::error!("the event source's thread has ended; no events will come");
            self.on_down(now.clock);
        }
    }

    fn on_bound(&mut self, bindings: Vec<Asked>, now: Now) {
        self.take_dark(now);
        let mut lost_since = now.clock;
        let mut healed = HashSet::new();
        for bound in bindings {
            if !self.hub.broker.is_answer(&bound) {
                continue;
            }
            let waiters = self.hub.broker.on_bound(&bound);
            if let Some(since) = self.lost.remove(&bound.binding) {
                lost_since = lost_since.min(since);
                healed.insert(bound.binding);
            }
            for waiter in waiters {
                self.resume(waiter, now, Session::on_bound);
            }
        }
        if !healed.is_empty() {
            let exchanges = healed.iter().map(|it| it.exchange.clone()).collect();
            let needs = |session: &Session, hub: &Hub| session.needs_any(&healed, &exchanges, hub);
            self.announce(now.clock.saturating_sub(lost_since), needs, now);
        }
    }

    /// Goes on with the subscribe that waits under this token.
    fn resume(
        &mut self,
        waiter: WaiterToken,
        now: Now,
        how: fn(&mut Session, u32, ConnId, &mut Hub, Now),
    ) {
        let (slot, number) = replies::slot_and_number(waiter);
        let Some((id, connection)) = self.connections.at_slot(slot) else {
            return;
        };
        how(&mut connection.session, number, id, &mut self.hub, now);
        self.settle(id);
    }

    /// From now on the bindings of subscriptions that have moved are lost ones, whose return is told.
    fn take_dark(&mut self, now: Now) {
        for binding in std::mem::take(&mut self.hub.dark) {
            // It may have been released again, or confirmed, meanwhile.
            if self.hub.broker.is_awaited(&binding) {
                self.lost.entry(binding).or_insert(now.clock);
            }
        }
    }

    /// Tells every subscribed session that it concerns that events may have been lost for so long. Cost: all sessions.
    fn announce(&mut self, away: Duration, concerns: impl Fn(&Session, &Hub) -> bool, now: Now) {
        if !self.hub.limits.gap_notices {
            return;
        }
        let notice = reply::gap_event_source(&mut self.hub.builder, away);
        let ids: Vec<ConnId> = self.connections.iter().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(connection) = self.connections.get_mut(id)
                && concerns(&connection.session, &self.hub)
            {
                connection
                    .session
                    .announce_outage(&notice, id, &mut self.hub, now);
                self.settle(id);
            }
        }
    }

    fn close(&mut self, id: ConnId, reason: CloseReason, now: Now) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.session.close(reason, id, &mut self.hub, now);
            self.settle(id);
        }
    }

    // Step 4: deadlines.

    fn fire_deadlines(&mut self, now: Now) {
        let connections = &self.connections;
        let session = |id| connections.get(id).map(|connection| &connection.session);
        let deadlines = &mut self.hub.deadlines;
        deadlines
            .handshake
            .prune(|id| session(id).is_some_and(Session::is_in_handshake));
        deadlines
            .auth
            .prune(|id| session(id).is_some_and(Session::awaits_authentication));
        deadlines
            .command
            .prune(|id| session(id).is_some_and(Session::is_waiting));
        deadlines
            .close
            .prune(|id| session(id).is_some_and(Session::is_closing));
        deadlines
            .answered
            .prune(|id| session(id).is_some_and(Session::is_closing));

        while let Some(id) = self.hub.deadlines.handshake.pop_due(now.clock) {
            if self
                .connections
                .get(id)
                .is_some_and(|connection| connection.session.is_in_handshake())
            {
                self.close(id, CloseReason::HandshakeTimeout, now);
            }
        }
        while let Some(id) = self.hub.deadlines.auth.pop_due(now.clock) {
            if self
                .connections
                .get(id)
                .is_some_and(|connection| connection.session.awaits_authentication())
            {
                self.close(id, CloseReason::NeverAuthenticated, now);
            }
        }
        while let Some(id) = self.hub.deadlines.command.pop_due(now.clock) {
            let due = self
                .connections
                .get(id)
                .and_then(|connection| connection.session.waits_until());
            if due.is_some_and(|due| due <= now.clock)
                && let Some(connection) = self.connections.get_mut(id)
            {
                let session = &mut connection.session;
                session.on_command_timeout(id, &mut self.hub, now);
                self.settle(id);
            }
        }
        let patience = self.hub.limits.send_timeout;
        while let Some(id) = self.hub.deadlines.close.pop_due(now.clock) {
            let Some(connection) = self.connections.get(id) else {
                continue;
            };
            if connection.session.is_taking_leave(patience, now) {
                self.hub.deadlines.close.begin(now.clock, id);
            } else if connection.session.is_closing() {
                self.abandon(id);
            }
        }
        while let Some(id) = self.hub.deadlines.answered.pop_due(now.clock) {
            if self
                .connections
                .get(id)
                .is_some_and(|connection| connection.session.is_closing())
            {
                self.abandon(id);
            }
        }
        while let Some(id) = self.hub.deadlines.send.pop_due(now.clock) {
            self.look_at_full_socket(id, now);
        }
        self.hub.roll_months(now);
        self.sweep(now);
        self.drain_step(now);
    }

    fn look_at_full_socket(&mut self, id: ConnId, now: Now) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.listed.remove(Listed::SEND_TIMER);
        // The poll tells of a full socket only once a third of it is free, which a peer that takes some seconds for a
        // megabyte does not reach in time, although it reads.
        if let Some(descriptor) = connection.socket.descriptor()
            && let Ok(bytes) = crate::sys::unacknowledged_bytes(descriptor)
        {
            connection.session.outbox.look(bytes, now.clock);
        }
        let Some(progress_at) = connection.session.outbox.progress_at() else {
            return;
        };
        if self.hub.limits.slow_consumer == SlowConsumerPolicy::Close
            && connection.session.is_open()
            && now.clock.saturating_sub(progress_at) >= self.hub.limits.send_timeout
        {
            self.close(id, CloseReason::SlowConsumer, now);
        } else {
            connection.listed.insert(Listed::SEND_TIMER);
            self.hub.deadlines.send.begin(now.clock, id);
        }
    }

    /// From now on probes and `/readyz` say that the process is going away, and nothing else changes.
    pub fn announce_drain(&mut self) {
        self.hub.admission = Admission::Leaving;
    }

    /// Begins to close everything, spread evenly over `drain`; to be called when no more connections come. Those
    /// that are here may still finish their handshake, and are closed in their turn.
    pub fn begin_drain(&mut self, drain: Duration, now: Now) {
        if self.drain.is_none() {
            self.hub.admission = Admission::Leaving;
            self.drain = Some(Drain::new(self.connections.len(), drain, now.clock));
        }
    }

    /// Whether the drain is over: everybody is gone, or its time is.
    #[must_use]
    pub fn is_drained(&self, now: Now) -> bool {
        self.drain
            .as_ref()
            .is_some_and(|drain| drain.is_over(now.clock) || self.connections.is_empty())
    }

    fn drain_step(&mut self, now: Now) {
        let Some(mut drain) = self.drain.take() else {
            return;
        };
        let slots = self.connections.slots();
        while let Some(slot) = drain.next_slot(slots, now.clock) {
            if let Some((id, connection)) = self.connections.at_slot(slot)
                && connection.session.is_open()
            {
                drain.closed_one();
                self.close(id, CloseReason::Drain, now);
            }
        }
        if drain.is_spread(now.clock) {
            self.hub.admission = Admission::Draining;
        }
        self.drain = Some(drain);
    }

    // Step 5: flush.

    /// Those who have just spoken and those to whom events go take turns.
    fn flush_some(&mut self, now: Now) {
        let mut listed = Vec::with_capacity(self.flush.len().min(limits::FLUSHES_PER_TURN));
        while listed.len() < limits::FLUSHES_PER_TURN
            && let Some((id, hold)) = self.flush.pop(listed.len().is_multiple_of(2))
        {
            match self.connections.get_mut(id) {
                Some(connection) => {
                    connection.listed.remove(Listed::FLUSH);
                    listed.push((id, hold));
                }
                None => self.flush.give_back(hold),
            }
        }
        if listed.len() >= limits::RING_WRITES_MIN {
            listed = self.flush_through_ring(listed, now);
        }
        for (id, hold) in listed {
            self.flush_one(id, hold, now);
        }
    }

    fn flush_one(&mut self, id: ConnId, hold: Hold, now: Now) {
        let Some(connection) = self.connections.get_mut(id) else {
            return self.flush.give_back(hold);
        };
        let (socket, outbox) = (&mut connection.socket, &mut connection.session.outbox);
        let report = (!outbox.is_empty()).then(|| {
            let write = |slices: &[IoSlice<'_>]| socket.write(slices);
            outbox.flush(write, now.clock, &mut self.hub.totals)
        });
        self.after_flush(id, hold, report, now);
    }

    /// As [`Reactor::flush_one`] for all of `listed`, with one system call. Returns whom that cannot be done for: nobody,
    /// or all of them, and nothing is done.
    fn flush_through_ring(&mut self, listed: Vec<(ConnId, Hold)>, now: Now) -> Vec<(ConnId, Hold)> {
        let Some(ring) = &mut self.ring else {
            return listed;
        };
        let mut slices = Vec::with_capacity(listed.len());
        // Where the slices of each of `listed` end among all.
        let mut ends = Vec::with_capacity(listed.len());
        for (id, _) in &listed {
            let connection = self.connections.get(*id);
            slices.extend(
                connection
                    .into_iter()
                    .flat_map(|one| one.session.outbox.slices()),
            );
            ends.push(slices.len());
        }
        let mut writes = Vec::with_capacity(listed.len());
        let mut begin = 0;
        for ((id, _), &end) in listed.iter().zip(&ends) {
            let slices = slices.get(begin..end).unwrap_or_default();
            begin = end;
            let connection = self.connections.get(*id).filter(|_| !slices.is_empty());
            let Some(connection) = connection else {
                continue;
            };
            let Some(socket) = connection.socket.descriptor() else {
                return listed;
            };
            writes.push(RingWrite { socket, slices });
        }
        self.hub.metrics.ring_calls_total += 1;
        let mut outcomes = Vec::with_capacity(writes.len());
        if let Err(error) = ring.write(&writes, &mut outcomes) {
            log::error!("io_uring broke, each socket is written to by itself from now on: {error}");
            self.ring = None;
        }
        let mut outcomes = outcomes.into_iter();
        let mut begin = 0;
        for ((id, hold), end) in listed.into_iter().zip(ends) {
            let outcome = (begin < end).then(|| outcomes.next()).flatten();
            begin = end;
            let Some(connection) = self.connections.get_mut(id) else {
                self.flush.give_back(hold);
                continue;
            };
            let outbox = &mut connection.session.outbox;
            let report =
                outcome.map(|outcome| outbox.after_write(outcome, now.clock, &mut self.hub.totals));
            self.after_flush(id, hold, report, now);
        }
        Vec::new()
    }

    /// Goes on after a session's flush; `report`: what became of it, if it had anything to write.
    fn after_flush(&mut self, id: ConnId, hold: Hold, report: Option<FlushReport>, now: Now) {
        let Some(connection) = self.connections.get_mut(id) else {
            return self.flush.give_back(hold);
        };
        let Connection {
            socket,
            session,
            listed,
            ..
        } = connection;
        let hub = &mut self.hub;
        if let Some(report) = report {
            hub.metrics.writes_total += 1;
            hub.metrics.written_bytes_total += report.written as u64;
            if report.outcome == Flushed::More {
                let has_events = !session.subscriptions().is_empty();
                listed.insert(Listed::FLUSH);
                self.flush.push_again(id, hold, has_events);
                return self.unpark(id);
            }
        }
        self.flush.give_back(hold);
        match report.map(|report| report.outcome) {
            None | Some(Flushed::Drained | Flushed::More) => {}
            Some(Flushed::Blocked) => {
                if listed.enter(Listed::SEND_TIMER) {
                    hub.deadlines.send.begin(now.clock, id);
                }
                return self.unpark(id);
            }
            Some(Flushed::Broken) => {
                session.on_end(true, hub, id);
                return self.settle(id);
            }
        }
        match session.after_flush(hub) {
            AfterFlush::Idle => {
                if session.is_gone().is_some() {
                    self.settle(id);
                } else {
                    self.unpark(id);
                }
            }
            AfterFlush::More => self.settle(id),
            AfterFlush::ShutdownWrite => {
                if socket.shutdown_write().is_err() {
                    session.on_end(true, hub, id);
                }
                self.settle(id);
            }
        }
    }

    /// Writes what the sockets take of all that waits, whatever it costs: for the end of the process.
    pub fn flush_all(&mut self, now: Now) {
        while !self.flush.is_empty() {
            self.flush_some(now);
        }
    }

    /// While all full outboxes together are over `max_outboxes_bytes`, closes the largest, and one that is closed
    /// already at once. One pass over all sessions serves [`limits::LARGEST_OUTBOXES`] closes.
    fn close_largest(&mut self, now: Now) {
        let max = self.hub.limits.outboxes_bytes_max;
        while self.hub.totals.blocked_bytes > max {
            let mut largest: Vec<(usize, ConnId)> = self
                .connections
                .iter()
                .filter(|(_, connection)| {
                    let session = &connection.session;
                    (session.is_open() || session.is_closing()) && session.outbox.is_blocked()
                })
                .map(|(id, connection)| (connection.session.outbox.blocked().1, id))
                .collect();
            largest.sort_unstable_by(|one, other| other.cmp(one));
            if largest.is_empty() {
                return;
            }
            for (_, id) in largest.into_iter().take(limits::LARGEST_OUTBOXES) {
                if self.hub.totals.blocked_bytes <= max {
                    return;
                }
                let Some(connection) = self.connections.get_mut(id) else {
                    continue;
                };
                if connection.session.is_open() {
                    self.close(id, CloseReason::OutboxesFull, now);
                } else {
                    connection.session.outbox.clear(&mut self.hub.totals);
                    self.abandon(id);
                }
            }
        }
    }

    // Step 6: reap.

    fn reap_closed(&mut self, now: Now) {
        for id in std::mem::take(&mut self.reap) {
            let Some((peer, reason)) = self.remove(id) else {
                continue;
            };
            let limit = match reason {
                CloseReason::SlowConsumer | CloseReason::OutboxesFull => &mut self.slow_log,
                CloseReason::NoProxyHeader | CloseReason::BadProxyHeader => &mut self.proxy_log,
                _ => {
                    log::debug!("session {peer} ended: {}", reason.word());
                    continue;
                }
            };
            if let Some(count) = limit.pass(now.clock) {
                log::warn!(
                    "session {peer} closed: {} ({count} such since the last line)",
                    reason.word()
                );
            }
        }
    }

    /// Takes a connection that has ended out of the table, and counts its end. Beside step 6 only for one that has had
    /// no subscription, which nothing names by its slot.
    fn remove(&mut self, id: ConnId) -> Option<(Peer, CloseReason)> {
        let connection = self.connections.remove(id)?;
        let peer = connection.session.peer(&self.hub);
        if connection.listed.contains(Listed::UNFINISHED) {
            self.unfinished.remove(peer.network(), id);
        }
        let gone = connection.session.is_gone();
        connection.session.dissolve(&mut self.hub);
        let (reason, was_open) = gone?;
        reason.count(was_open, &mut self.hub.metrics);
        self.hub.metrics.sessions_closed_total += u64::from(was_open);
        Some((peer, reason))
    }
}
