//! All that the loop and an event source share: one channel each way, and the waker.
//!
//! Towards the loop the channel is bounded ([`HANDOFF_EVENTS_MAX`]): when it is full the source waits, which is
//! the back-pressure that reaches the broker as unacknowledged deliveries. Towards the source it is unbounded: while
//! the source is up at most one `Bind` and one `Unbind` a distinct AMQP binding are under way
//! (`routing::broker_bindings`); while it hangs in a connect, a pair for each subscribe that comes and goes waits
//! there, some 80 bytes each, and the gauge `handoff_commands` shows them.
//!
//! Invariant: the waker's pending flag is cleared *before* the channel is drained, so a message sent after the
//! drain always wakes the loop, and a burst costs one wake.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arcstr::ArcStr;
use crossbeam_channel::{Receiver, Sender, TryRecvError};

use crate::protocol::event::Event;

/// Messages that may wait for the loop; above it the source waits.
pub const HANDOFF_EVENTS_MAX: usize = 4096;

/// One (exchange, binding key) pair on the process's own queue (PROTOCOL 1, "AMQP binding").
///
/// Cloning costs two reference counts: the loop's table and the source's table share the text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AmqpBinding {
    /// Exchange name, at most 255 bytes.
    pub exchange: Arc<str>,
    /// Binding key, at most 255 bytes (AMQP rail 2).
    pub key: ArcStr,
}

/// What a source tells the loop.
#[derive(Debug)]
pub enum FromSource {
    /// The source is connected and every binding asked for so far, but those named in an earlier
    /// [`FromSource::Lost`], is in force. Sent after each connect.
    Up,
    /// The source is away since `since`; events published from then on may be lost.
    Down {
        /// When the broker was last heard.
        since: Instant,
    },
    /// These bindings are in force: an event published from now on is delivered.
    Bound(Vec<AmqpBinding>),
    /// These bindings are wanted but not in force (their exchange clashes, AMQP rail 8); the source keeps trying
    /// and says [`FromSource::Bound`] when it succeeds. Events for them may be lost meanwhile.
    Lost(Vec<AmqpBinding>),
    /// Events may have been dropped on the broker's side (queue at its length limit) since this moment.
    Overflowed {
        /// When the queue was last seen below its limit.
        since: Instant,
    },
    /// One decoded delivery. Boxed, because the channel reserves room for [`HANDOFF_EVENTS_MAX`] messages.
    Event(Box<Event>),
}

/// What the loop tells a source.
#[derive(Debug, PartialEq, Eq)]
pub enum ToSource {
    /// Put this binding in force and say [`FromSource::Bound`]. Said once while the loop wants it.
    Bind(AmqpBinding),
    /// The loop no longer wants it. A source may delay it; a later `Bind` of the same takes it back.
    Unbind(AmqpBinding),
    /// End the thread.
    Stop,
}

/// Wakes the loop; cheap when a wake is already pending.
#[derive(Clone)]
pub struct LoopWaker {
    pending: Arc<AtomicBool>,
    waker: Arc<dyn Fn() -> io::Result<()> + Send + Sync>,
}

impl LoopWaker {
    /// A waker around `wake`, which makes the loop's poll return.
    pub fn new(wake: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self {
            pending: Arc::default(),
            waker: Arc::new(wake),
        }
    }

    fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel)
            && let Err(error) = (self.waker)()
        {
            self.pending.store(false, Ordering::Release);
            log::error!("cannot wake the loop: {error}");
        }
    }
}

/// The loop is gone; the source should end.
#[derive(Debug, thiserror::Error)]
#[error("the loop is gone")]
pub struct LoopGone;

/// A source's end.
#[derive(Clone)]
pub struct SourceEnd {
    to_loop: Sender<FromSource>,
    /// Commands from the loop; public so that a source can `select!` on it. Disconnected: the loop is gone.
    pub commands: Receiver<ToSource>,
    waker: LoopWaker,
}

impl SourceEnd {
    /// Hands `message` to the loop, waiting while the channel is full: the back-pressure.
    ///
    /// # Errors
    /// [`LoopGone`] when the loop has ended.
    pub fn send(&self, message: FromSource) -> Result<(), LoopGone> {
        self.to_loop.send(message).map_err(|_| LoopGone)?;
        self.waker.wake();
        Ok(())
    }

    /// Hands `message` to the loop, waiting at most `patience`.
    ///
    /// # Errors
    /// The message back when the channel stayed full; [`LoopGone`] (as `Err(None)`) when the loop has ended.
    pub fn send_timeout(
        &self,
        message: FromSource,
        patience: Duration,
    ) -> Result<(), Option<FromSource>> {
        match self.to_loop.send_timeout(message, patience) {
            Ok(()) => {
                self.waker.wake();
                Ok(())
            }
            Err(crossbeam_channel::SendTimeoutError::Timeout(message)) => Err(Some(message)),
            Err(crossbeam_channel::SendTimeoutError::Disconnected(_)) => Err(None),
        }
    }
}

/// The loop's end.
pub struct LoopEnd {
    from_source: Receiver<FromSource>,
    to_source: Sender<ToSource>,
    waker: LoopWaker,
}

impl LoopEnd {
    /// Must be called before draining: a message sent afterwards wakes the loop again.
    pub fn clear_wake(&self) {
        self.waker.pending.store(false, Ordering::Release);
    }

    /// The next message, when there is one.
    ///
    /// # Errors
    /// `Empty`; or `Disconnected` when the source's thread has ended.
    pub fn try_recv(&self) -> Result<FromSource, TryRecvError> {
        self.from_source.try_recv()
    }

    /// Messages waiting now (a gauge).
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.from_source.len()
    }

    /// Commands the source has not taken yet (a gauge).
    #[must_use]
    pub fn commands_waiting(&self) -> usize {
        self.to_source.len()
    }

    /// Tells the source; a source that has ended hears nothing, and the loop learns of that from `try_recv`.
    pub fn tell(&self, command: ToSource) {
        let _ = self.to_source.send(command);
    }
}

/// The two ends of a hand-off.
#[must_use]
pub fn handoff(waker: LoopWaker) -> (SourceEnd, LoopEnd) {
    handoff_bounded(waker, HANDOFF_EVENTS_MAX)
}

/// A hand-off of another bound, for tests of the back-pressure.
#[must_use]
pub fn handoff_bounded(waker: LoopWaker, events_max: usize) -> (SourceEnd, LoopEnd) {
    let (to_loop, from_source) = crossbeam_channel::bounded(events_max);
    let (to_source, commands) = crossbeam_channel::unbounded();
    (
        SourceEnd {
            to_loop,
            commands,
            waker: waker.clone(),
        },
        LoopEnd {
            from_source,
            to_source,
            waker,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn a_burst_costs_one_wake_and_a_message_after_the_clear_wakes_again() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = wakes.clone();
        let (source, end) = handoff(LoopWaker::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }));
        for _ in 0..10 {
            source.send(FromSource::Up).expect("the loop's end is held");
        }
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        end.clear_wake();
        source.send(FromSource::Up).expect("the loop's end is held");
        assert_eq!(wakes.load(Ordering::Relaxed), 2);
        assert_eq!(std::iter::from_fn(|| end.try_recv().ok()).count(), 11);
    }

    #[test]
    fn a_full_channel_holds_the_source_back() {
        let (source, end) = handoff_bounded(LoopWaker::new(|| Ok(())), 2);
        for _ in 0..2 {
            assert!(source.send_timeout(FromSource::Up, Duration::ZERO).is_ok());
        }
        assert!(matches!(
            source.send_timeout(FromSource::Up, Duration::ZERO),
            Err(Some(FromSource::Up))
        ));
        assert!(end.try_recv().is_ok());
        assert!(source.send_timeout(FromSource::Up, Duration::ZERO).is_ok());
        drop(end);
        assert!(matches!(
            source.send_timeout(FromSource::Up, Duration::ZERO),
            Err(None)
        ));
    }
}
