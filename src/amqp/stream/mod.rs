//! The stream in which the broker keeps the events of all processes (PROTOCOL 10, `history stream:NAME`): two threads, each
//! with a connection of its own, and nothing of them touches the live events.
//!
//! ```text
//! thread "amqp-stream"       declares the stream, binds the families' keys, writes a marker every few seconds
//! thread "amqp-stream-read"  connects only while the loop wants the past: stream -> items -> loop
//! ```
//!
//! | module | owns |
//! |---|---|
//! | this | the threads' start and end |
//! | `keeper` | the stream, its bindings and our markers in it |
//! | `reader` | one read of the stream |
//! | `marker` | the text of a marker |
//! | `options` | what the threads are told at their start |
//!
//! The keys that are bound are those of families, with `*` for all that a client chooses: a handful of bindings whatever
//! clients do. They are never unbound, so what a marker says of its keys holds for ever; an operator who wants a family out
//! of the stream unbinds it when no process runs, or deletes the stream.
//!
//! What the broker forgets when it restarts, it forgets together: bindings of exchanges that are not durable, and an
//! exchange of ours that is not durable either (`NAME.witness`). A keeper that does not find it writes a marker that tells
//! of a hole before it declares it again.
//!
//! Invariants: a key is in a marker only after the broker has confirmed its binding, which is asked for again every few
//! seconds; a hole is confirmed in the stream before the witness is declared.

mod keeper;
mod marker;
mod options;
mod reader;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use self::keeper::Keeper;
use self::marker::Origin;
pub use self::options::{NAME_BYTES_MAX, StreamOptions};
use self::reader::Reader;
use super::abort::Abort;
use super::counters::AmqpCounters;
use super::watchdog::Watchdog;
use super::{AmqpThread, parse_endpoints};
use crate::handoff::stored::{KeeperEnd, ReaderEnd};

/// The running threads.
#[derive(Debug)]
pub struct StreamThreads {
    keeper: AmqpThread,
    reader: AmqpThread,
}

impl StreamThreads {
    /// Ends both, which end by themselves when the loop is gone. Blocks for `patience` at most.
    pub fn stop(self, patience: Duration) {
        let deadline = Instant::now() + patience;
        self.reader.stop(patience / 2);
        self.keeper
            .stop(deadline.saturating_duration_since(Instant::now()));
    }
}

/// Starts the threads "amqp-stream" and "amqp-stream-read", which reconnect for ever and end when the loop is gone.
///
/// # Errors
/// As of [`super::spawn`].
pub fn spawn(
    options: StreamOptions,
    keeper: KeeperEnd,
    reader: ReaderEnd,
    counters: Arc<AmqpCounters>,
) -> io::Result<StreamThreads> {
    let endpoints = parse_endpoints(&options.urls, &options.tls)?;
    let mut random = [0; 8];
    getrandom::fill(&mut random)?;
    let origin = Origin(u64::from_le_bytes(random));
    let is_read = Arc::new(AtomicBool::new(false));
    let options = StreamOptions {
        urls: Vec::new(),
        ..options
    };
    let (keeper_parts, reader_parts) = (Parts::new(&options)?, Parts::new(&options)?);
    let keeper = Keeper::new(
        options.clone(),
        keeper,
        origin,
        is_read.clone(),
        counters.clone(),
        (keeper_parts.abort.clone(), keeper_parts.watchdog.clone()),
    );
    let reader = Reader::new(
        options.name,
        reader,
        origin,
        is_read,
        counters,
        (reader_parts.abort.clone(), reader_parts.watchdog.clone()),
    );
    let (of_keeper, of_reader) = (endpoints.clone(), endpoints);
    Ok(StreamThreads {
        keeper: keeper_parts.run("amqp-stream", move || keeper.run(&of_keeper))?,
        reader: reader_parts.run("amqp-stream-read", move || reader.run(&of_reader))?,
    })
}

/// What a thread is ended with.
struct Parts {
    abort: Arc<Abort>,
    watchdog: Arc<Watchdog>,
    alive: Sender<()>,
    ended: crossbeam_channel::Receiver<()>,
}

impl Parts {
    fn new(options: &StreamOptions) -> io::Result<Self> {
        let (alive, ended) = bounded(0);
        let parts = Self {
            abort: Arc::default(),
            watchdog: Arc::new(Watchdog::new(options.answer_max)),
            alive,
            ended,
        };
        parts
            .watchdog
            .start(parts.abort.clone(), parts.ended.clone())?;
        Ok(parts)
    }

    fn run(self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<AmqpThread> {
        let alive = self.alive;
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            let _alive = alive;
            work();
        })?;
        Ok(AmqpThread {
            thread,
            ended: self.ended,
            abort: self.abort,
        })
    }
}
