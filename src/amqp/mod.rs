//! The AMQP thread: it brings events from RabbitMQ to the loop, and bindings from the loop to RabbitMQ. No other folder
//! names the AMQP client, so the client can be replaced without touching the rest (AMQP rail 11).
//!
//! ```text
//! thread "amqp-connect"  one try: resolve, connect, log in
//! thread "amqp"          connect -> find or declare queue -> bind all that is wanted -> Up -> serve commands -> Down -> wait
//! thread "amqp-consume"                                 deliveries -> events -> hand-off -> acks
//! thread "amqp-watch"    cuts the connection when an answer is overdue
//! threads "amqp-unbind"  one batch of unbinds
//! thread "amqp-marker"   a connection of its own: one message beside a durable queue
//! thread "amqp-control"  a connection of its own: the platform's requests -> loop -> answers
//! threads "amqp-stream", "amqp-stream-read"  the stream of the history, where there is one
//! thread of the client   socket <-> TLS, where there is any <-> guard <-> frames
//! ```
//!
//! | module | owns |
//! |---|---|
//! | `url` | broker URLs, and keeping passwords out of texts |
//! | this | the thread's start and end |
//! | `options` | what the thread is told at its start |
//! | `connector` | the way from one connection to the next |
//! | `backoff` | pauses between tries |
//! | `connection` | socket and login, and why a connection ended |
//! | `tls` | TLS: trust, handshake, the decrypted stream |
//! | `guard` | which of the broker's bytes the client's parser sees |
//! | `broker` | what is asked of a broker |
//! | `worker` | what the loop wants, batch by batch, and what the loop is told |
//! | `bindings` | which bindings are wanted, and where each stands |
//! | `bind_queue` | bindings that wait to be bound, in turns between accounts |
//! | `lingering` | bindings that nobody wants any more and the broker still has |
//! | `our_queue` | the process's queue, which outlives its connection |
//! | `marker` | what shows that the broker of a durable queue has restarted |
//! | `redelivery` | which deliveries come again after a reconnect |
//! | `topology` | queue, exchanges, bindings on the broker |
//! | `permissions` | what the broker's user may not do |
//! | `consumer` | deliveries |
//! | [`control`] | the platform's requests, and the answers, over a connection of their own |
//! | [`stream`] | the stream in which the broker keeps events, over connections of its own |
//! | `counters` | figures for the metrics page |
//! | `watchdog`, `abort` | how long an answer may take; the end of a call that hangs |
//! | `client_log` | the client's own lines of the log |
//!
//! Invariants: the thread says `Up` only after every wanted binding is in force or was said to be `Lost`; `Down`
//! follows every `Up`, and comes after the last event of that connection; a panic anywhere here becomes a reconnect
//! (rail 10); nothing is ever published on the connection of the events, because a broker that blocks publishers would hang
//! the consumer too (rail 7).

mod abort;
mod backoff;
mod bind_queue;
mod bindings;
mod broker;
mod client_log;
mod connection;
mod connector;
mod consumer;
pub mod control;
mod counters;
mod guard;
mod lingering;
mod marker;
mod options;
mod our_queue;
mod permissions;
mod redelivery;
pub mod stream;
mod tls;
mod topology;
mod url;
mod watchdog;
mod worker;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use self::abort::Abort;
pub use self::backoff::RECONNECT_PAUSE_MAX;
pub use self::client_log::CLIENT_LINES;
use self::connector::Connector;
pub use self::counters::AmqpCounters;
pub use self::options::AmqpOptions;
pub use self::tls::{ClientFiles, TlsFileError, TlsFiles};
use self::url::Endpoint;
pub(crate) use self::url::{AmqpUrlError, has_tls, validate_url};
use crate::handoff::SourceEnd;

/// Appends to `passed` those of a broker's bytes that the AMQP client would see (AMQP rail 1). This is the guard
/// without a connection around it, for tests from outside. `is_stream`: as on a connection that reads a stream.
///
/// # Errors
/// The stream's own; [`io::ErrorKind::InvalidData`] for what a broker must not send, after which the connection is
/// given up.
#[doc(hidden)]
pub fn pass_through_guard(
    broker: impl io::Read,
    is_stream: bool,
    passed: &mut Vec<u8>,
) -> io::Result<()> {
    guard::pass_on(broker, is_stream, passed)
}

/// The running thread.
#[derive(Debug)]
pub struct AmqpThread {
    thread: JoinHandle<()>,
    ended: Receiver<()>,
    abort: Arc<Abort>,
}

impl AmqpThread {
    /// Ends the thread, which should have been told [`Stop`](crate::handoff::ToSource::Stop) before. The thread has
    /// half of `patience` to close its connection; then its socket is cut. Blocks for `patience` at most.
    pub fn stop(self, patience: Duration) {
        self.abort.stop();
        let ended = |wait| {
            !matches!(
                self.ended.recv_timeout(wait),
                Err(RecvTimeoutError::Timeout)
            )
        };
        if !ended(patience / 2) {
            self.abort.cut();
            if !ended(patience / 2) {
                log::warn!("amqp: the thread did not end in {patience:?} and is left behind");
                return;
            }
        }
        if self.thread.join().is_err() {
            log::error!("amqp: the thread panicked");
        }
    }
}

/// Starts the thread "amqp". It connects by itself, reconnects for ever, and ends on
/// [`Stop`](crate::handoff::ToSource::Stop) or when the loop is gone.
///
/// # Errors
/// `InvalidInput` when there is no URL or [`validate_url`] refuses one; otherwise the system's error when it refuses a
/// thread.
pub fn spawn(
    options: AmqpOptions,
    source: SourceEnd,
    counters: Arc<AmqpCounters>,
) -> io::Result<AmqpThread> {
    let endpoints = parse_endpoints(&options.urls, &options.tls)?;
    let abort = Arc::new(Abort::default());
    let (alive, ended) = bounded(0);
    let options = AmqpOptions {
        prefetch: options.prefetch.max(1),
        urls: Vec::new(),
        ..options
    };
    let mut connector = Connector::new(options, source, counters, abort.clone());
    connector.watchdog().start(abort.clone(), ended.clone())?;
    let thread = thread::Builder::new().name("amqp".into()).spawn(move || {
        let _alive: Sender<()> = alive;
        connector.run(&endpoints);
    })?;
    Ok(AmqpThread {
        thread,
        ended,
        abort,
    })
}

/// The brokers of these URLs, whose passwords are kept out of the log from now on.
fn parse_endpoints(urls: &[String], tls: &TlsFiles) -> io::Result<Vec<Endpoint>> {
    let tls = Arc::new(tls.clone());
    let invalid = |error: AmqpUrlError| io::Error::new(io::ErrorKind::InvalidInput, error);
    let endpoints: Vec<_> = urls
        .iter()
        .map(|url| Ok(Endpoint::parse(url).map_err(invalid)?.with_files(&tls)))
        .collect::<io::Result<_>>()?;
    if endpoints.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no broker URL"));
    }
    client_log::keep_secret(&endpoints);
    Ok(endpoints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_url_keeps_the_thread_from_starting_and_shows_nothing() {
        for urls in [vec![], vec!["amqp://h".into(), "amqpz://u:s3cret@h".into()]] {
            let (source, _end) = crate::handoff::handoff(crate::handoff::LoopWaker::new(|| Ok(())));
            let options = AmqpOptions {
                urls,
                tls: TlsFiles::default(),
                prefetch: 1,
                max_queue_length: None,
                queue_expires: Duration::from_secs(60),
                durable_queue: false,
                exchanges: Vec::new(),
                pause_max: RECONNECT_PAUSE_MAX,
                answer_max: Duration::from_secs(1),
            };
            let error = spawn(options, source, Arc::default()).expect_err("a refused URL");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(!error.to_string().contains("s3cret"));
        }
    }
}
