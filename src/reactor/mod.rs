//! The loop: one thread, one poll; the only place that touches client sockets.
//!
//! The turn has one fixed order (DESIGN, The turn):
//!
//! 1. Poll, until the next deadline at most ([`server`]).
//! 2. Forget what is too old: events of the history, AMQP bindings that linger. Accept a bounded number of connections
//!    ([`server`], `accept`). Begin what earlier turns left of what the admin
//!    address was asked ([`admin`]). Read the ready sockets, each within a budget and all within another, and run their
//!    commands (`read`).
//! 3. Let sessions go on whose tokens or rights a thread was asked about (`asking`). Do a slice of what the platform asks
//!    (`requests`, `switching`), and of what the operator asks on the admin address ([`admin`]). After a reread, or when
//!    rights were taken away, renew some of the sessions, and take no event until all are renewed (`renewal`). Take what
//!    the source says of itself, then a bounded number of events from the hand-off, again after a fan-out as long as more
//!    come; match them, and put shared frames into outboxes (`intake`, `fan_out`). Take a batch of what was read of the
//!    stream (`stored`). Do a slice of the lap of those who resume (`laps`).
//! 4. Fire the deadlines; take a step of the sweep and of the drain (`deadlines`, `watch`).
//! 5. Flush at most [`limits::FLUSHES_PER_TURN_MAX`] sessions of the flush list, each with one vectored write; where there is
//!    io_uring, all these writes are one system call, or a few when they are many bytes (`flush`).
//! 6. Take the connections that have ended from the table; put the authenticator's questions to threads (`asking`); in the
//!    quiet after a burst, give memory back (this file). Tell those who look what has happened (`admin`).
//!
//! Sockets are registered once, readable and writable, edge-triggered. The invariant: *a session with frames that wait is
//! on the flush list, or its last write would have blocked, or all that waits is a TLS ticket, which leaves with the first
//! answer; a session with unread bytes is on the reread list, or its last read would have blocked, or it is parked: its
//! outbox is over its bound, or its TLS handshake is at a thread, and it is listed again when that is over.*
//! When a budget runs out its list is not empty, and then the next poll does not wait. Nothing leaves the table before
//! step 6.
//!
//! Replies never hold events back: step 2 is bounded by the work that it makes for step 5, and only what a fan-out itself
//! has left to write holds the next one ([`flush_list`]).
//!
//! [`Reactor::turn`] is steps 2 to 6 without a poll and without a clock, which is what a simulation drives.
//!
//! | module | owns |
//! |---|---|
//! | this | the turn, the lists that its steps leave to each other, and step 6 |
//! | [`server`] | step 1: poll, waker, signals, clock; the entry of the thread |
//! | `accept` | step 2: connections taken in, and refused when there is no room |
//! | `read` | step 2: reading |
//! | `asking` | step 3: answers to the authenticator's questions; step 6: the questions |
//! | `inquiries` | the questions under way, and whom their answers concern |
//! | `intake` | step 3: the source and its events |
//! | `fan_out`, `run` | step 3: the frames of an event put into outboxes; what is kept between events |
//! | `laps`, `lap` | step 3: past events put into the outboxes of sessions that resume; what is kept of that |
//! | `traced` | step 3: the same for an event that somebody looks at |
//! | `stored`, `store` | step 3: the stream of the history read; what is kept of that |
//! | `requests`, `switching` | step 3: the platform's requests over AMQP answered; families started and stopped |
//! | `control`, [`modules`] | those requests; a change of families, and how it is kept |
//! | `walk`, `walking` | step 3: a walk over all sessions for those that are asked for; a slice of it |
//! | `renewal` | step 3: every session renewed after a reread |
//! | `deadlines` | step 4: deadlines, the drain |
//! | `watch`, `sweep` | step 4: the slow walk over all sessions, and how far it is |
//! | `flush` | step 5: writing |
//! | `trim` | step 6: when memory is given back |
//! | [`connections`] | the table of connections |
//! | [`flush_list`] | the sessions to write to, and how many events may merge meanwhile |
//! | `tls`, `tls_port` | steps 2, 3 and 5 of the connections of the TLS port; what is kept for them |
//! | `secured`, `unsealing` | how far each of these is; what a read of one brings |
//! | `unfinished` | the handshakes that are not finished, and which goes first when the process is full |
//! | [`drain`] | the pace at which every session is told to move, and then closed |
//! | `certificate_watch` | what is said of certificates once a day |
//! | `listening_socket` | the two kinds of socket that listen |
//! | [`handed`] | the listening sockets that a service manager hands over |
//! | [`service`], `report` | the service manager told of this process; what it is told, and when |
//! | [`listener`] | a listening socket: accepting, running out of descriptors |
//! | [`reread`] | the thread that reads files again |
//! | [`admin`] | what the admin address is asked, and its answers |
//! | [`socket`] | what the loop needs of a socket |

mod accept;
pub mod admin;
mod asking;
mod certificate_watch;
pub mod connections;
mod control;
mod deadlines;
pub mod drain;
mod fan_out;
mod flush;
pub mod flush_list;
pub mod handed;
mod inquiries;
mod intake;
mod lap;
mod laps;
pub mod listener;
mod listening_socket;
pub mod modules;
mod read;
mod renewal;
mod report;
mod requests;
pub mod reread;
mod run;
mod secured;
pub mod server;
pub mod service;
pub mod socket;
mod store;
mod stored;
mod sweep;
mod switching;
mod tls;
mod tls_port;
mod traced;
mod trim;
mod unfinished;
mod unsealing;
mod walk;
mod walking;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::admin::about::About;
use self::admin::connections::AdminConnections;
use self::admin::job::Jobs;
use self::connections::{Connection, Connections, Listed};
use self::control::Control;
use self::drain::Drain;
use self::flush_list::FlushList;
use self::inquiries::Inquiries;
use self::lap::Laps;
use self::modules::{HostParts, Keeper, WakeLoop};
use self::run::FanOut;
use self::socket::Socket;
use self::store::Store;
use self::sweep::Sweep;
use self::tls_port::TlsPort;
use self::trim::{Trim, TurnDone};
use self::unfinished::Unfinished;
use crate::handoff::LoopEnd;
use crate::handoff::stored::StoreEnd;
use crate::inquiry::Inquiry;
use crate::limits;
use crate::log_limit::LogLimit;
use crate::session::Session;
use crate::session::clock::Now;
use crate::session::close::CloseReason;
use crate::session::full::FullAnswer;
use crate::session::hub::{Context, Hub};
use crate::session::id::{ConnId, Peer};
use crate::session::scratch::Scratch;
use crate::sys::ring::Ring;
use crate::tls::Alert;

/// What the poll says of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The connection of the socket.
    pub id: ConnId,
    /// It may have bytes, or an error.
    pub readable: bool,
    /// It may take bytes.
    pub writable: bool,
    /// The peer closed its side: it must be read to the end now.
    pub read_closed: bool,
}

/// The whole state of the loop, except the poll, the listeners and the clock.
pub struct Reactor<S> {
    /// What sessions share.
    pub hub: Hub,
    connections: Connections<S>,
    handoff: LoopEnd,
    inquiries: Inquiries,
    epoch: Instant,
    /// When the turn under way began; `None`: [`Reactor::turn_done`] was told its end.
    turn_began: Option<Duration>,
    connections_max: usize,
    unfinished: Unfinished,
    admin: AdminConnections,
    jobs: Jobs,
    read_buffer: Box<[u8]>,
    /// Where frames with a request id are put together for a write.
    scratch: Scratch,
    full_answer: FullAnswer,
    fan_out: FanOut,
    laps: Laps,
    flush: FlushList,
    reread: VecDeque<ConnId>,
    reap: Vec<ConnId>,
    /// Messages were left in the hand-off.
    more_messages: bool,
    /// Since when events wait there because the flush list has not moved; and for how long at the last look (a gauge).
    held_since: Option<Duration>,
    held_for: Duration,
    source_gone: bool,
    /// `None`: the platform asks nothing here.
    control: Option<Control>,
    /// `None`: the history has no stream.
    store: Option<Store>,
    /// The name of this host.
    host: String,
    /// What this process is.
    about: About,
    keeper: Keeper,
    /// A change of families is under way, whoever asked for it.
    is_switching: bool,
    /// What the broker does not permit its user, a line each.
    barred: Vec<Box<str>>,
    /// The next slot to be renewed; `None`: no pass is under way.
    renewal: Option<u32>,
    /// That pass follows a reread.
    is_rereading: bool,
    sweep: Sweep,
    trim: Trim,
    drain: Option<Drain>,
    drain_ordered: bool,
    slow_log: LogLimit,
    proxy_log: LogLimit,
    flood_log: LogLimit,
    /// Appends the counters of other threads to the metrics page.
    more_metrics: Box<dyn Fn(&mut String)>,
    trim_heap: fn(),
    /// `None`: each socket is written to with a system call of its own.
    ring: Option<Ring>,
    /// `None`: there is no TLS port.
    tls: Option<TlsPort>,
}

/// What the loop is made of, besides the hub.
pub struct ReactorParts {
    /// Where events come from.
    pub handoff: LoopEnd,
    /// Who answers the authenticator's questions; `None`: it has none.
    pub inquiry: Option<Inquiry>,
    /// The moment that the loop's clock counts from.
    pub epoch: Instant,
    /// `max_connections`.
    pub connections_max: usize,
    /// Appends the counters of other threads to the metrics page.
    pub more_metrics: Box<dyn Fn(&mut String)>,
    /// Gives freed memory back to the system.
    pub trim_heap: fn(),
    /// Writes to many sockets with one system call, where the kernel allows it.
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
            inquiries: Inquiries {
                inquiry: parts.inquiry,
                ..Inquiries::default()
            },
            epoch: parts.epoch,
            turn_began: None,
            connections_max: parts.connections_max,
            unfinished: Unfinished::default(),
            admin: AdminConnections::default(),
            jobs: Jobs::default(),
            read_buffer: vec![0; limits::READ_BUFFER_BYTES].into(),
            scratch: Scratch::default(),
            full_answer: FullAnswer::default(),
            fan_out: FanOut::default(),
            laps: Laps::default(),
            flush: FlushList::default(),
            reread: VecDeque::new(),
            reap: Vec::new(),
            more_messages: false,
            held_since: None,
            held_for: Duration::ZERO,
            source_gone: false,
            control: None,
            store: None,
            host: String::new(),
            about: About::default(),
            keeper: Keeper {
                keep: None,
                wake: Arc::new(|| Ok(())),
            },
            is_switching: false,
            barred: Vec::new(),
            renewal: None,
            is_rereading: false,
            sweep: Sweep::default(),
            trim: Trim::default(),
            drain: None,
            drain_ordered: false,
            slow_log: LogLimit::default(),
            proxy_log: LogLimit::default(),
            flood_log: LogLimit::default(),
            more_metrics: parts.more_metrics,
            trim_heap: parts.trim_heap,
            ring: parts.ring,
            tls: None,
        }
    }

    /// There is a stream of the history, behind this. To be called before the first turn.
    pub fn take_store(&mut self, end: StoreEnd) {
        self.hub.take_stream();
        self.store = Some(Store::new(end));
    }

    /// What this host is called, and how changes are kept here. `wake` makes the loop's poll return.
    pub fn take_host(&mut self, parts: HostParts, wake: WakeLoop) {
        self.host = parts.name;
        self.keeper = Keeper {
            keep: parts.keep,
            wake,
        };
    }

    /// What this process is, for whoever asks on the admin address.
    pub fn take_about(&mut self, about: About) {
        self.about = about;
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

    /// Ends a connection that could not be registered.
    pub fn abandon(&mut self, id: ConnId, now: Now) {
        self.act(id, now, Session::abandon);
    }

    /// Steps 2 to 6 of the turn. `ready`: what the poll says.
    pub fn turn(&mut self, ready: &[Ready], now: Now) {
        self.turn_done(now);
        self.turn_began = Some(now.clock);
        self.hub.waking.advance(now.clock);
        self.hub.compression.begin_turn();
        let caught_up = self.handoff.caught_up().map(|at| self.clock_of(at));
        self.hub.history.know_caught_up(caught_up);
        self.hub.history.evict(now);
        self.hub.subscriptions.begin_turn(now);
        self.begin_waiting(now);
        self.read_ready(ready, now);
        self.close_unfinished(now);
        self.go_on_with_handshakes(now);
        self.take_answers(now);
        self.answer_platform(now);
        self.go_on_with_jobs(now);
        self.renew_some(now);
        self.take_events(now);
        self.go_on_with_stored(now);
        self.go_on_with_laps(now);
        self.fire_deadlines(now);
        self.flush_some(now);
        self.close_largest(now);
        self.reap_closed(now);
        self.put_questions(now);
        self.give_memory_back(now);
        self.feed_looks(now);
        let commands = self.hub.subscriptions.end_turn(now);
        self.handoff.tell(commands);
    }

    /// Notes the end of a turn, and the events whose last session was written to in it, for the timings. To be called with
    /// the clock that is read before the poll anyway; if it is not called, the turn lasts until the next one. O(1) for each
    /// turn in which these events were fanned out.
    pub fn turn_done(&mut self, now: Now) {
        let Some(began) = self.turn_began.take() else {
            return;
        };
        let timings = &mut self.hub.metrics.timings;
        timings.turn.record(now.clock.saturating_sub(began));
        for (fanned_out_at, events) in self.flush.take_done() {
            let took = now.clock.saturating_sub(fanned_out_at);
            timings.fan_out.record_many(took, events);
        }
    }

    /// How long the next poll may wait.
    #[must_use]
    pub fn patience(&self, now: Now) -> Duration {
        if self.more_messages
            || !self.flush.is_empty()
            || !self.reread.is_empty()
            || !self.reap.is_empty()
            || self.renewal.is_some()
            || self.jobs.is_pressing()
            || self.admin.has_waiting()
            || self.inquiries.is_pressing()
            || self.has_handshakes()
            || self.has_laps()
            || self.has_stored()
        {
            return Duration::ZERO;
        }
        let sweep = self.sweep_due();
        let drain = self.drain.as_ref().map(|drain| drain.next_due());
        let (deadline, months) = (
            self.hub.deadlines.next_due(),
            self.hub.subscriptions.months_due(),
        );
        let asked = self.hub.authenticator.next_due();
        let control = self.control.as_ref();
        let control = control.and_then(|control| control.due(self.is_switching));
        let looks = self.hub.trace.next_due();
        let (laps, stored) = (self.laps_due(), self.stored_due());
        let history = self.hub.history.next_due();
        let lingering = self.hub.subscriptions.lingering_due();
        [
            history,
            lingering,
            deadline,
            months,
            sweep,
            self.trim.due(),
            drain,
            asked,
            control,
            looks,
            laps,
            stored,
        ]
        .into_iter()
        .flatten()
        .map(|due| due.saturating_sub(now.clock))
        .min()
        .unwrap_or(limits::POLL_WAIT_MAX)
        .min(limits::POLL_WAIT_MAX)
    }

    /// Puts a connection on the lists that its state calls for.
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
        if session.ended().is_some() {
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

    /// Puts a parked session on the reread list once it wants its bytes.
    fn unpark(&mut self, id: ConnId) {
        let tls = self.tls.as_ref();
        if let Some(connection) = self.connections.get_mut(id)
            && connection.listed.contains(Listed::PARKED)
            && connection.session.wants_bytes()
            && !tls.is_some_and(|tls| tls.secured.is_busy(id.slot))
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

    fn close(&mut self, id: ConnId, reason: CloseReason, now: Now) {
        self.act(id, now, |session, cx| session.close(reason, cx));
    }

    /// Lets a session act, and puts its connection on the lists that its state then calls for.
    fn act(&mut self, id: ConnId, now: Now, act: impl FnOnce(&mut Session, &mut Context<'_>)) {
        if let Some(connection) = self.connections.get_mut(id) {
            act(&mut connection.session, &mut self.hub.context(id, now));
            self.settle(id);
        }
    }

    fn reap_closed(&mut self, now: Now) {
        for id in std::mem::take(&mut self.reap) {
            let Some((peer, reason)) = self.remove(id) else {
                continue;
            };
            let limit = match reason {
                CloseReason::SlowConsumer | CloseReason::OutboxesFull => &mut self.slow_log,
                CloseReason::NoProxyHeader | CloseReason::BadProxyHeader => &mut self.proxy_log,
                CloseReason::RateLimit => &mut self.flood_log,
                _ => {
                    log::debug!("session {peer} ended: {}", reason.word());
                    continue;
                }
            };
            if let Some(left_out) = limit.pass(self.epoch + now.clock) {
                log::warn!("session {peer} closed: {}{left_out}", reason.word());
            }
        }
    }

    /// Gives memory back to the system when it is time.
    fn give_memory_back(&mut self, now: Now) {
        let records = self.tls.as_ref().map_or(0, TlsPort::capacity);
        let done = TurnDone {
            freed: self.hub.outboxes.queues_freed + self.hub.work.comings_and_goings,
            is_busy: std::mem::take(&mut self.hub.work.is_busy) || !self.flush.is_empty(),
            has_grown: self.flush.has_grown()
                || self.scratch.capacity() > limits::SCRATCH_KEPT_MAX
                || records > limits::SCRATCH_KEPT_MAX,
            history: self.hub.history.bytes(),
        };
        if !self.trim.is_due(done, now.clock) {
            return;
        }
        self.flush.shrink();
        self.scratch = Scratch::default();
        if let Some(tls) = &mut self.tls {
            tls.shrink();
        }
        self.reread.shrink_to(self.reread.len());
        self.connections.shrink_if_empty();
        self.hub.peers.shrink();
        self.unfinished.shrink();
        self.hub.partials.shrink();
        self.hub.compression.shrink();
        (self.trim_heap)();
        self.hub.metrics.heap_trims_total += 1;
    }

    /// Ends a connection at once, to make room for another: one that never had a subscription.
    fn evict(&mut self, id: ConnId, now: Now) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.session.evict(&mut self.hub.context(id, now));
        }
        self.remove(id);
    }

    /// Takes a connection that has ended out of the table, and counts its end. Outside of step 6 only for a connection that
    /// never had a subscription, because nothing names it by its slot.
    fn remove(&mut self, id: ConnId) -> Option<(Peer, CloseReason)> {
        self.end_secured(id, Alert::CLOSE_NOTIFY);
        let connection = self.connections.remove(id)?;
        let peer = connection.session.peer(&self.hub);
        if connection.listed.contains(Listed::UNFINISHED) {
            self.unfinished.remove(peer.network(), id);
        }
        if connection.listed.contains(Listed::ADMIN) {
            self.admin.remove(id);
        }
        if let Some(tls) = &mut self.tls {
            tls.secured.remove(id, peer.network());
            self.hub.partials.remove(id);
        }
        let gone = connection.session.ended();
        connection.session.dissolve(&mut self.hub);
        let (reason, was_open) = gone?;
        reason.count(was_open, &mut self.hub.metrics);
        self.hub.work.comings_and_goings += u64::from(was_open);
        Some((peer, reason))
    }
}
