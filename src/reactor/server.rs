//! The shell around the turn: poll, waker, signals, clock, listeners. One thread runs it until the process ends.
//!
//! Invariant: after the first signal, or the operator's order to drain, every connection that the kernel has for the
//! clients' listener is taken before the listener closes; or left to the next process, if the socket was handed over.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::net::{TcpStream, UnixStream};
use mio::{Events, Interest, Poll, Token, Waker};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::admin::about::About;
use super::certificate_watch::CertificateWatch;
use super::drain::DrainTimes;
use super::handed::HandedSockets;
use super::listener::{Accepted, Listener};
use super::modules::HostParts;
use super::report::Seen;
use super::reread::{RereadJob, Rereading};
use super::service::Service;
use super::{Reactor, ReactorParts, Ready};
use crate::handoff::ask::AnswerEnd;
use crate::handoff::stored::StoreEnd;
use crate::handoff::{LoopEnd, LoopWaker};
use crate::inquiry::Inquiry;
use crate::limits;
use crate::log_limit::LogLimit;
use crate::protocol::control::{Answer, Request};
use crate::session::ListenerKind;
use crate::session::clock::Now;
use crate::session::hub::Hub;
use crate::session::id::{ConnId, Peer};
use crate::sys::ring::Ring;
use crate::tls::{HandshakeLane, ServerTls};

/// The tokens of what is no connection. No [`ConnId`] has these words, because generations have 24 bits.
const CLIENTS: Token = Token(usize::MAX);
const ADMIN: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX - 2);
const TERMINATIONS: Token = Token(usize::MAX - 3);
const RELOADS: Token = Token(usize::MAX - 4);
const ADMIN_SOCKET: Token = Token(usize::MAX - 5);
const TLS_CLIENTS: Token = Token(usize::MAX - 6);

/// What to listen on.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// The websocket port.
    pub clients: Option<SocketAddr>,
    /// The websocket port with TLS.
    pub tls_clients: Option<SocketAddr>,
    /// Whether several processes share these ports.
    pub reuse_port: bool,
    /// `max_accept_rate`, of each websocket port.
    pub accept_rate: Option<u32>,
    /// The admin address.
    pub admin: Option<SocketAddr>,
    /// The folder of the admin socket.
    pub admin_dir: Option<PathBuf>,
    /// How long the kernel waits for a peer to acknowledge what was sent; `None`: as long as the system is set to.
    pub user_timeout: Option<Duration>,
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be bound.
    #[error("cannot listen on {address}: {error}")]
    Bind {
        /// Its address.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// A socket that was handed over could not be set up.
    #[error("cannot listen at the socket that was handed over: {0}")]
    Handed(io::Error),
    /// The admin socket could not be made.
    #[error("admin_dir {folder}: cannot listen there: {error}")]
    AdminDir {
        /// The folder.
        folder: String,
        /// What the system says.
        error: io::Error,
    },
    /// Another error of the system.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

/// Where a loop is in its life.
///
/// ```text
/// Serving --signal, or POST /drain--> Announced --drain_delay--> Emptying --queue empty--> Draining
/// Draining --nobody left, or time over--> end
/// ```
///
/// `POST /drain` does as a signal, once; any signal behind the first ends the loop at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lifecycle {
    Serving,
    /// Probes are told 503, and connections are taken.
    Announced {
        until: Duration,
    },
    /// The clients' listener begins no new TCP handshake; those under way are finished.
    Emptying {
        until: Duration,
    },
    /// The listener is closed. The sessions are told to move, then those that are left are closed ([`super::drain`]).
    Draining,
}

/// A loop that listens and does not turn yet.
pub struct Server {
    poll: Poll,
    waker: Arc<Waker>,
    listeners: Vec<Listener>,
    terminations: SignalPipe,
    reloads: SignalPipe,
    rereading: Rereading,
    lifecycle: Lifecycle,
    /// A signal has come.
    is_told: bool,
    control: Option<AnswerEnd<Request, Answer>>,
    store: Option<StoreEnd>,
    host: Option<HostParts>,
    service: Option<Service>,
    about: About,
    tls: Option<(HandshakeLane, ServerTls)>,
    certificates: CertificateWatch,
}

/// What a running loop needs, besides the hub.
pub struct ServerParts {
    /// Where events come from.
    pub handoff: LoopEnd,
    /// Who answers the authenticator's questions; `None`: it has none.
    pub inquiry: Option<Inquiry>,
    /// `max_connections`.
    pub connections_max: usize,
    /// How long connections are taken after the first signal.
    pub drain_delay: Duration,
    /// How long telling and closing all sessions takes after that.
    pub drain: DrainTimes,
    /// The moment that the loop's clock counts from.
    pub epoch: Instant,
    /// Appends the counters of other threads to the metrics page.
    pub more_metrics: Box<dyn Fn(&mut String)>,
    /// `io_uring`: whether to try it.
    pub io_uring: bool,
    /// Makes the job of a reread (SIGHUP). Called by the loop, so it must not wait.
    pub reread: Box<dyn Fn(&Hub) -> RereadJob>,
}

impl Server {
    /// Binds the listeners and prepares the poll and the signals.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn bind(addresses: Addresses) -> Result<Self, StartError> {
        Self::bind_or_take(addresses, HandedSockets::default())
    }

    /// As [`Server::bind`]; where a socket was handed over, the address of its kind says nothing.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn bind_or_take(addresses: Addresses, handed: HandedSockets) -> Result<Self, StartError> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let mut listeners = Vec::new();
        let reuse_port = addresses.reuse_port;
        let clients = (addresses.clients, handed.clients, reuse_port);
        let tls_clients = (addresses.tls_clients, handed.tls_clients, reuse_port);
        let admin = (addresses.admin, handed.admin, false);
        for (kind, token, (address, socket, reuse_port)) in [
            (ListenerKind::Clients, CLIENTS, clients),
            (ListenerKind::TlsClients, TLS_CLIENTS, tls_clients),
            (ListenerKind::Admin, ADMIN, admin),
        ] {
            let mut listener = match (socket, address) {
                (Some(socket), _) => Listener::take(socket, kind, addresses.user_timeout)
                    .map_err(StartError::Handed)?,
                (None, Some(address)) => {
                    Listener::bind(address, kind, reuse_port, addresses.user_timeout)
                        .map_err(|error| StartError::Bind { address, error })?
                }
                (None, None) => continue,
            };
            if kind.is_of_clients() {
                listener.limit_rate(addresses.accept_rate);
            }
            listener.register(poll.registry(), token)?;
            listeners.push(listener);
        }
        if let Some(folder) = &addresses.admin_dir {
            let mut listener = Listener::bind_in(folder).map_err(|error| StartError::AdminDir {
                folder: folder.display().to_string(),
                error,
            })?;
            listener.register(poll.registry(), ADMIN_SOCKET)?;
            listeners.push(listener);
        }
        let mut terminations = SignalPipe::new(&[SIGTERM, SIGINT])?;
        poll.registry()
            .register(&mut terminations.reader, TERMINATIONS, Interest::READABLE)?;
        let mut reloads = SignalPipe::new(&[SIGHUP])?;
        poll.registry()
            .register(&mut reloads.reader, RELOADS, Interest::READABLE)?;
        Ok(Self {
            poll,
            waker,
            listeners,
            terminations,
            reloads,
            rereading: Rereading::default(),
            lifecycle: Lifecycle::Serving,
            is_told: false,
            control: None,
            store: None,
            host: None,
            service: None,
            about: About::default(),
            tls: None,
            certificates: CertificateWatch::default(),
        })
    }

    /// Serves the TLS port: its handshakes are done by the threads that `lane` leads to, with `served`.
    pub fn take_tls(&mut self, lane: HandshakeLane, served: ServerTls) {
        self.tls = Some((lane, served));
    }

    /// Lets the loop tell the service manager of itself.
    pub fn take_service(&mut self, service: Service) {
        self.service = Some(service);
    }

    /// Lets the loop read the stream of the history.
    pub fn take_store(&mut self, store: StoreEnd) {
        self.store = Some(store);
    }

    /// Lets the loop answer the platform's requests over AMQP.
    pub fn take_control(&mut self, requests: AnswerEnd<Request, Answer>) {
        self.control = Some(requests);
    }

    /// What this host is called, and how changes are kept here.
    pub fn take_host(&mut self, host: HostParts) {
        self.host = Some(host);
    }

    /// What this process is, for whoever asks on the admin address. Where clients connect is known here.
    pub fn take_about(&mut self, about: About) {
        self.about = About {
            websocket: self.address(ListenerKind::Clients),
            websocket_tls: self.address(ListenerKind::TlsClients),
            ..about
        };
    }

    /// The address of the listener of this kind, if there is one.
    #[must_use]
    pub fn address(&self, kind: ListenerKind) -> Option<SocketAddr> {
        self.listeners
            .iter()
            .find(|listener| listener.kind == kind)?
            .address()
    }

    /// The admin socket, if there is one.
    #[must_use]
    pub fn admin_socket(&self) -> Option<&Path> {
        self.listeners.iter().find_map(Listener::path)
    }

    /// What wakes this loop.
    #[must_use]
    pub fn waker(&self) -> LoopWaker {
        let waker = self.waker.clone();
        LoopWaker::new(move || waker.wake())
    }

    /// Turns until a SIGTERM, a SIGINT or the operator's order, and then until the drain is over; a second signal ends it
    /// at once. Every connection that the kernel has for the clients' listener is taken before the listener closes, and
    /// served until its turn to be closed. The admin listener stays to the end.
    ///
    /// # Errors
    /// The poll broke, and nothing can be done any more.
    pub fn run(mut self, hub: Hub, parts: ServerParts) -> io::Result<()> {
        let epoch = parts.epoch;
        let mut reactor: Reactor<TcpStream> = Reactor::new(
            hub,
            ReactorParts {
                handoff: parts.handoff,
                inquiry: parts.inquiry,
                epoch,
                connections_max: parts.connections_max,
                more_metrics: parts.more_metrics,
                trim_heap: crate::sys::trim_heap,
                ring: parts.io_uring.then(ring).flatten(),
            },
        );
        if let Some(requests) = self.control.take() {
            reactor.take_control(requests);
        }
        if let Some(store) = self.store.take() {
            reactor.take_store(store);
        }
        if let Some(host) = self.host.take() {
            let waker = self.waker.clone();
            reactor.take_host(host, Arc::new(move || waker.wake()));
        }
        reactor.take_about(std::mem::take(&mut self.about));
        if let Some((lane, served)) = self.tls.take() {
            reactor.take_tls(lane, served);
        }
        let mut events = Events::with_capacity(limits::POLL_EVENTS_MAX);
        let mut ready: Vec<Ready> = Vec::with_capacity(limits::POLL_EVENTS_MAX);
        let mut accept_log = LogLimit::default();
        // The first connection must find what the source has said before.
        reactor.turn(&[], now_since(epoch));
        loop {
            let now = now_since(epoch);
            reactor.turn_done(now);
            self.tell_service(&mut reactor, now);
            self.warn_of_certificates(&reactor, now);
            let service_due = self.service.as_ref().and_then(Service::next_due);
            let patience = self
                .listeners
                .iter()
                .filter_map(Listener::next_due)
                .chain(service_due)
                .chain(reactor.served_tls().map(|_| self.certificates.due()))
                .map(|due| due.saturating_sub(now.clock))
                .min()
                .unwrap_or(Duration::MAX)
                .min(reactor.patience(now))
                .min(self.lifecycle_patience(now));
            if let Err(error) = self.poll.poll(&mut events, Some(patience))
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Err(error);
            }
            let now = now_since(epoch);
            ready.clear();
            for event in &events {
                match event.token() {
                    WAKER => {}
                    TERMINATIONS => {
                        for _ in 0..self.terminations.take() {
                            if std::mem::replace(&mut self.is_told, true) {
                                log::warn!("told again to end: closing at once");
                                return Ok(());
                            }
                            reactor.announce_drain();
                            self.announce_end(parts.drain_delay, now);
                        }
                    }
                    RELOADS => {
                        if self.reloads.take() > 0 {
                            if let Some(service) = &mut self.service {
                                service.on_reload();
                            }
                            self.reread(&parts.reread, &reactor.hub);
                        }
                    }
                    CLIENTS => self.on_listener_ready(ListenerKind::Clients),
                    TLS_CLIENTS => self.on_listener_ready(ListenerKind::TlsClients),
                    ADMIN => self.on_listener_ready(ListenerKind::Admin),
                    ADMIN_SOCKET => self.on_listener_ready(ListenerKind::AdminSocket),
                    Token(word) => ready.push(Ready {
                        id: ConnId::from_word(word),
                        readable: event.is_readable() || event.is_error(),
                        writable: event.is_writable(),
                        read_closed: event.is_read_closed() || event.is_error(),
                    }),
                }
            }
            self.finish_reread(&parts.reread, &mut reactor);
            self.stop_taking(now);
            self.accept(&mut reactor, &mut accept_log, now);
            if self.stop_listening(now) {
                let connections = reactor.connections().len();
                let drain = parts.drain;
                log::info!("{}", drain_told(connections, drain));
                reactor.begin_drain(drain, now);
            }
            let connections = reactor.connections().len();
            reactor.turn(&ready, now);
            if reactor.take_drain_order() {
                self.announce_end(parts.drain_delay, now);
            }
            if reactor.connections().len() < connections {
                self.listeners.iter_mut().for_each(Listener::on_reap);
            }
            if reactor.is_drained(now) {
                // An end without sessions is announced and over in one turn.
                self.tell_service(&mut reactor, now);
                reactor.end_looks(now);
                reactor.flush_all(now);
                log::info!("drained");
                return Ok(());
            }
        }
    }

    /// Tells the service manager what has changed since it was told last, and that the loop turns.
    fn tell_service(&mut self, reactor: &mut Reactor<TcpStream>, now: Now) {
        let Some(service) = &mut self.service else {
            return;
        };
        let seen = Seen {
            is_source_up: reactor.hub.readiness.is_source_up(),
            is_rereading: self.rereading.is_under_way() || reactor.is_rereading(),
            is_ending: reactor.hub.readiness.is_ending(),
            clients: reactor.clients(),
        };
        reactor.hub.metrics.service_messages_failed_total += service.tell(seen, now.clock);
    }

    /// Says once a day which certificates are near their end.
    fn warn_of_certificates(&mut self, reactor: &Reactor<TcpStream>, now: Now) {
        let Some(served) = reactor.served_tls() else {
            return;
        };
        for warning in self.certificates.look(served, now) {
            log::warn!("{warning}");
        }
    }

    /// Begins to read again what can change while the process runs.
    fn reread(&mut self, make_job: &dyn Fn(&Hub) -> RereadJob, hub: &Hub) {
        let waker = self.waker.clone();
        self.rereading.begin(|| make_job(hub), move || waker.wake());
    }

    /// Puts in force what has been read meanwhile.
    fn finish_reread(
        &mut self,
        make_job: &dyn Fn(&Hub) -> RereadJob,
        reactor: &mut Reactor<TcpStream>,
    ) {
        let Some(finished) = self.rereading.finish(&mut reactor.hub) else {
            return;
        };
        if let Some(tls) = finished.tls {
            reactor.renew_tls(tls);
        }
        if finished.has_changed_identities {
            reactor.renew_identities();
        } else {
            reactor.hub.metrics.config_reloads_total += 1;
        }
        if finished.begin_again {
            self.reread(make_job, &reactor.hub);
        }
    }

    /// How long the next poll may wait, as far as the lifecycle goes.
    fn lifecycle_patience(&self, now: Now) -> Duration {
        match self.lifecycle {
            Lifecycle::Announced { until } => until.saturating_sub(now.clock),
            Lifecycle::Emptying { until } if now.clock < until => until - now.clock,
            // From then on the listener says when it is to be asked again.
            Lifecycle::Serving | Lifecycle::Emptying { .. } | Lifecycle::Draining => Duration::MAX,
        }
    }

    fn clients_listeners(&mut self) -> impl Iterator<Item = &mut Listener> {
        let mut listeners = self.listeners.iter_mut();
        std::iter::from_fn(move || listeners.find(|listener| listener.kind.is_of_clients()))
    }

    /// The first signal, or the operator's order; nothing if the end is announced already.
    fn announce_end(&mut self, delay: Duration, now: Now) {
        if self.lifecycle != Lifecycle::Serving {
            return;
        }
        log::info!("{}", end_told(delay));
        for listener in self.clients_listeners() {
            if let Err(error) = listener.stop_deferring() {
                log::warn!("silent connections may be reset: {error}");
            }
        }
        self.lifecycle = Lifecycle::Announced {
            until: now.clock + delay,
        };
    }

    /// Ends the new handshakes after the delay; and after the time of those under way, asks the queue a last time.
    fn stop_taking(&mut self, now: Now) {
        if let Lifecycle::Announced { until } = self.lifecycle
            && now.clock >= until
        {
            let graces = self.clients_listeners().map(|listener| {
                listener.stop_taking().unwrap_or_else(|error| {
                    log::warn!("connections may be reset: {error}");
                    Duration::ZERO
                })
            });
            let grace = graces.max().unwrap_or_default();
            self.lifecycle = Lifecycle::Emptying {
                until: now.clock + grace,
            };
        }
        if let Lifecycle::Emptying { until } = self.lifecycle
            && now.clock >= until
        {
            self.clients_listeners()
                .filter(|listener| !listener.is_left_to_others())
                .for_each(Listener::on_ready);
        }
    }

    /// Closes the clients' listener once the handshakes under way have had their time and the accept of this turn has found
    /// no connection. Returns whether it was closed.
    fn stop_listening(&mut self, now: Now) -> bool {
        let Lifecycle::Emptying { until } = self.lifecycle else {
            return false;
        };
        if now.clock < until {
            return false;
        }
        let is_late = now.clock >= until + limits::LISTENER_EMPTYING_MAX;
        let mut listeners = self.clients_listeners();
        let is_lost =
            listeners.any(|listener| !listener.is_empty() && !listener.is_left_to_others());
        drop(listeners);
        if is_lost && !is_late {
            return false;
        }
        if is_lost {
            log::warn!("connections that could not be accepted in time are reset");
        }
        let registry = self.poll.registry();
        for listener in &mut self.listeners {
            if listener.kind.is_of_clients()
                && let Err(error) = listener.deregister(registry)
            {
                log::warn!("the poll still tells of a listener that is closed: {error}");
            }
        }
        self.listeners
            .retain(|listener| !listener.kind.is_of_clients());
        self.lifecycle = Lifecycle::Draining;
        true
    }

    fn on_listener_ready(&mut self, kind: ListenerKind) {
        self.listeners
            .iter_mut()
            .filter(|listener| listener.kind == kind)
            .for_each(Listener::on_ready);
    }

    /// Accepts a bounded number of connections: the beginning of step 2.
    fn accept(&mut self, reactor: &mut Reactor<TcpStream>, log_limit: &mut LogLimit, now: Now) {
        for listener in &mut self.listeners {
            let accepts_max = if listener.kind.is_of_clients() {
                limits::ACCEPTS_PER_TURN_MAX
            } else {
                limits::ADMIN_ACCEPTS_PER_TURN_MAX
            };
            for _ in 0..accepts_max {
                match listener.accept(now.clock) {
                    Accepted::Connection(socket, address) => {
                        let Some(id) =
                            reactor.accept(socket, Peer::from(address), listener.kind, now)
                        else {
                            continue;
                        };
                        let interests = Interest::READABLE | Interest::WRITABLE;
                        let registered = reactor.socket_mut(id).is_some_and(|socket| {
                            self.poll
                                .registry()
                                .register(socket, Token(id.to_word()), interests)
                                .is_ok()
                        });
                        if !registered {
                            reactor.hub.metrics.accept_errors_total += 1;
                            reactor.abandon(id, now);
                        }
                    }
                    Accepted::Nothing => break,
                    Accepted::OverRate => {
                        reactor.hub.metrics.accept_rate_pauses_total += 1;
                        break;
                    }
                    Accepted::Failed(error) => {
                        reactor.hub.metrics.accept_errors_total += 1;
                        reactor.hub.metrics.accept_pauses_total += 1;
                        if let Some(left_out) = log_limit.pass(Instant::now()) {
                            log::warn!("cannot accept: {error}; pausing{left_out}");
                        }
                        break;
                    }
                    Accepted::Broken(error) => {
                        reactor.hub.metrics.accept_errors_total += 1;
                        log::debug!("a connection broke before it was accepted: {error}");
                    }
                }
            }
        }
    }
}

/// The first signal, for the log.
fn end_told(delay: Duration) -> String {
    if delay.is_zero() {
        "told to end: no more connections are taken".to_owned()
    } else {
        format!("told to end: connections are taken for another {delay:?}")
    }
}

/// The begin of the drain, for the log.
fn drain_told(connections: usize, times: DrainTimes) -> String {
    let DrainTimes { going_away, whole } = times;
    let told = if going_away.is_zero() {
        String::new()
    } else {
        format!(", the first is closed after {going_away:?}")
    };
    format!("draining: {connections} connections over {whole:?}{told}")
}

/// The present moment, on the clock of a loop that started at `epoch`.
#[must_use]
pub fn now_since(epoch: Instant) -> Now {
    let unix_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64;
    Now {
        clock: epoch.elapsed(),
        unix_ms,
    }
}

/// The ring for this thread, if the kernel gives us one. Without it each socket is written to with its own system call.
fn ring() -> Option<Ring> {
    match Ring::new() {
        Ok(ring) => Some(ring),
        Err(error) => {
            log::info!("no io_uring here, which costs some CPU: {error}");
            None
        }
    }
}

/// One kind of signal as bytes on a pipe that the poll watches.
struct SignalPipe {
    reader: UnixStream,
}

impl SignalPipe {
    fn new(signals: &[i32]) -> io::Result<Self> {
        let (reader, writer) = StdUnixStream::pair()?;
        reader.set_nonblocking(true)?;
        for signal in signals {
            signal_hook::low_level::pipe::register(*signal, writer.try_clone()?)?;
        }
        Ok(Self {
            reader: UnixStream::from_std(reader),
        })
    }

    /// How many signals came since the last call.
    fn take(&mut self) -> usize {
        let mut bytes = [0; 64];
        let mut count = 0;
        while let Ok(more @ 1..) = self.reader.read(&mut bytes) {
            count += more;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_with_the_time_that_connections_are_still_taken() {
        for (seconds, expected) in [
            (0, "told to end: no more connections are taken"),
            (5, "told to end: connections are taken for another 5s"),
        ] {
            assert_eq!(end_told(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn the_drain_is_told_with_the_time_to_move() {
        let times = |going_away| DrainTimes {
            going_away: Duration::from_secs(going_away),
            whole: Duration::from_secs(9),
        };
        for (going_away, expected) in [
            (0, "draining: 2 connections over 9s"),
            (
                5,
                "draining: 2 connections over 9s, the first is closed after 5s",
            ),
        ] {
            assert_eq!(drain_told(2, times(going_away)), expected);
        }
    }
}
