//! The hand-off between the loop and the threads that keep and read the stream (PROTOCOL 10). It is no part of the
//! hand-off of the live events, which goes on as without a stream.
//!
//! Items come in batches, and only as many as the loop has asked for: [`BATCHES_AHEAD`] when a read begins, and one more each
//! time it says [`ToReader::More`]. So neither end ever waits for the other.
//!
//! Invariants: at most one read is under way; a batch is at most [`BATCH_ITEMS_MAX`] items and, but for its last event,
//! [`BATCH_BYTES_MAX`]; what comes of a read that the loop has ended is recognised by its number.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::wake::LoopWaker;
use crate::history::Why;
use crate::history::stored::StoredItem;
use crate::routing::amqp_binding::AmqpBinding;

/// Batches that a read may be ahead of the loop.
pub const BATCHES_AHEAD: usize = 4;

/// Items of one batch, at most.
pub const BATCH_ITEMS_MAX: usize = 256;

/// Bytes of the events of one batch, the last of them not counted.
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// Messages to the loop: the batches and the end of the read under way, and those of one that the loop has just ended.
const TOLD_MAX: usize = 2 * (BATCHES_AHEAD + 1);

/// Commands to the reader that it has not taken. It takes them between two deliveries, and while it connects they wait.
const COMMANDS_MAX: usize = 64;

/// Families whose keys the keeper has not taken. Each is named once.
const FAMILIES_MAX: usize = 4096;

/// The number of a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read(pub u32);

/// What the loop tells the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToReader {
    /// Read all that was stored since this moment, and go on with what comes; an earlier read is over.
    Begin {
        /// Its number.
        read: Read,
        /// From when on, in ms since 1970. The reader begins earlier, so that it meets markers of before.
        from_unix_ms: u64,
    },
    /// There is room for one more batch.
    More(Read),
    /// No more of it.
    End(Read),
}

/// What the reader tells the loop.
#[derive(Debug)]
pub enum FromReader {
    /// The next items.
    Items(Read, Vec<StoredItem>),
    /// The read is over: the stream cannot be read, or no more.
    Failed(Read, Why),
}

/// The loop's end.
pub struct StoreEnd {
    keep: Sender<Vec<AmqpBinding>>,
    commands: Sender<ToReader>,
    told: Receiver<FromReader>,
    written: Arc<AtomicU64>,
    waker: LoopWaker,
}

/// The end of the thread that keeps the stream bound.
pub struct KeeperEnd {
    /// The keys that are to be bound. Disconnected: the loop is gone.
    pub keys: Receiver<Vec<AmqpBinding>>,
    written: Arc<AtomicU64>,
}

/// The end of the thread that reads the stream.
pub struct ReaderEnd {
    /// Public so that it can be `select!`ed on. Disconnected: the loop is gone.
    pub commands: Receiver<ToReader>,
    told: Sender<FromReader>,
    waker: LoopWaker,
}

/// All three ends. `waker` wakes the loop, and is used for nothing else.
#[must_use]
pub fn stored_channels(waker: LoopWaker) -> (StoreEnd, KeeperEnd, ReaderEnd) {
    let (keep, kept) = bounded(FAMILIES_MAX);
    let (to_reader, commands) = bounded(COMMANDS_MAX);
    let (to_loop, told) = bounded(TOLD_MAX);
    let written = Arc::new(AtomicU64::new(0));
    (
        StoreEnd {
            keep,
            commands: to_reader,
            told,
            written: written.clone(),
            waker: waker.clone(),
        },
        KeeperEnd {
            keys: kept,
            written,
        },
        ReaderEnd {
            commands,
            told: to_loop,
            waker,
        },
    )
}

impl StoreEnd {
    /// Binds these keys of a family to the stream. False: there are more than can be told, and they are not bound.
    pub fn keep(&self, keys: Vec<AmqpBinding>) -> bool {
        self.keep.try_send(keys).is_ok()
    }

    /// Tells the reader. False: it takes no commands any more, or none for a long time.
    pub fn tell(&self, command: ToReader) -> bool {
        self.commands.try_send(command).is_ok()
    }

    /// What the reader says next.
    pub fn try_recv(&self) -> Option<FromReader> {
        self.waker.clear();
        self.told.try_recv().ok()
    }

    /// The wall clock of the newest of our markers that is in the stream, in ms since 1970; 0: there is none yet.
    #[must_use]
    pub fn written_unix_ms(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Messages that wait for the loop (a gauge).
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.told.len()
    }
}

impl KeeperEnd {
    /// A marker of this moment, in ms since 1970, is in the stream. Does not wake the loop, which looks when it needs to know.
    pub fn wrote(&self, unix_ms: u64) {
        self.written.store(unix_ms, Ordering::Relaxed);
    }
}

impl ReaderEnd {
    /// Tells the loop. Never waits: the loop has asked for it.
    ///
    /// # Errors
    /// The loop is gone; or it did not ask for so many, which is a bug.
    pub fn tell(&self, message: FromReader) -> Result<(), super::LoopGone> {
        match self.told.try_send(message) {
            Ok(()) => {
                self.waker.wake();
                Ok(())
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(super::LoopGone),
        }
    }
}
