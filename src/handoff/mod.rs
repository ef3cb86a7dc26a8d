//! The hand-off, which is all that the loop and an event source share: two channels towards the loop, one back, and the
//! waker.
//!
//! Events have a channel that is bounded, in messages ([`HANDOFF_EVENTS_MAX`]) and in bytes ([`HANDOFF_BYTES_MAX`]).
//! When it is full the source waits: this is the back-pressure, which reaches the broker as unacknowledged deliveries.
//! Messages of the source about itself ([`FromSource::is_control`]) have a channel of their own
//! ([`HANDOFF_CONTROLS_MAX`]), so that neither waiting events nor a fan-out keep a subscriber from its answer. They
//! keep their own order and overtake events. So a subscription may see an event from before it, and a session is told
//! of an outage before it gets the last events from before that outage: a notice comes early, never late.
//!
//! Towards the source one list of commands is on its way at a time. Later commands are kept on the loop's side, where
//! those of one binding cancel out (`commands`). The gauge `handoff_commands` shows both.
//!
//! Invariants: the waker's pending flag is cleared *before* the channels are drained, so a message sent after the drain
//! always wakes the loop, and a burst costs one wake; the end of a source wakes the loop too. Only one thread of a
//! source hands over events, so [`HANDOFF_BYTES_MAX`] is exceeded by less than one event, and no wait for room is
//! missed.

pub mod ask;
mod commands;
mod messages;
pub mod stored;
mod wake;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};

use self::commands::CommandQueue;
pub use self::commands::Commands;
pub use self::messages::{FromSource, Return, ToSource};
pub use self::wake::LoopWaker;
use self::wake::SourceWaker;

/// Events that may wait for the loop; beyond it the source waits.
pub const HANDOFF_EVENTS_MAX: usize = 4096;

/// Bytes of events that may wait for the loop, the last of them not counted; beyond it the source waits too.
pub(crate) const HANDOFF_BYTES_MAX: usize = 64 << 20;

/// Control messages that may wait for the loop; beyond it the source waits.
pub(crate) const HANDOFF_CONTROLS_MAX: usize = 1024;

/// The wait that a source repeats until there is room.
const LONG: Duration = Duration::from_secs(60);

/// The loop is gone; the source should end.
#[derive(Debug, thiserror::Error)]
#[error("the loop is gone")]
pub struct LoopGone;

/// Bytes of the events in the channel.
struct Load {
    bytes: AtomicUsize,
    bytes_max: usize,
}

impl Load {
    fn has_room(&self) -> bool {
        self.bytes.load(Ordering::SeqCst) < self.bytes_max
    }

    /// Takes the bytes of an event off. Returns true when there was no room before and is now.
    fn lighten(&self, bytes: usize) -> bool {
        let before = self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        before >= self.bytes_max && before - bytes < self.bytes_max
    }
}

/// Up to when the source knows that what was published has come.
struct CaughtUp {
    begun: Instant,
    /// Milliseconds since then; 0: it does not say.
    millis: AtomicU64,
}

/// A source's end.
#[derive(Clone)]
pub struct SourceEnd {
    to_loop: Sender<FromSource>,
    control: Sender<FromSource>,
    load: Arc<Load>,
    caught_up: Arc<CaughtUp>,
    /// Gets a message when the load falls below its bound.
    room: Receiver<()>,
    /// Commands from the loop; public so that a source can `select!` on it. Disconnected: the loop is gone.
    pub commands: Receiver<Commands>,
    /// Declared after the channels: its drop wakes the loop, which then finds them closed.
    waker: SourceWaker,
}

impl SourceEnd {
    /// What was published before `at` was received. A source that never says so has no delays.
    pub fn note_caught_up(&self, at: Instant) {
        let since = at.saturating_duration_since(self.caught_up.begun);
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.caught_up
            .millis
            .store(millis.max(1), Ordering::Relaxed);
    }

    /// Hands `message` to the loop, waiting while its channel is full: the back-pressure.
    ///
    /// # Errors
    /// [`LoopGone`] when the loop has ended.
    pub fn send(&self, message: FromSource) -> Result<(), LoopGone> {
        let mut message = message;
        loop {
            message = match self.send_timeout(message, LONG) {
                Ok(()) => return Ok(()),
                Err(Some(message)) => message,
                Err(None) => return Err(LoopGone),
            };
        }
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
        let deadline = Instant::now() + patience;
        let bytes = message.bytes();
        while bytes > 0 && !self.load.has_room() {
            match self.room.recv_deadline(deadline) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => return Err(Some(message)),
                Err(RecvTimeoutError::Disconnected) => return Err(None),
            }
        }
        self.load.bytes.fetch_add(bytes, Ordering::SeqCst);
        let channel = if message.is_control() {
            &self.control
        } else {
            &self.to_loop
        };
        let error = match channel.send_deadline(message, deadline) {
            Ok(()) => {
                self.waker.0.wake();
                return Ok(());
            }
            Err(error) => error,
        };
        self.load.lighten(bytes);
        match error {
            crossbeam_channel::SendTimeoutError::Timeout(message) => Err(Some(message)),
            crossbeam_channel::SendTimeoutError::Disconnected(_) => Err(None),
        }
    }
}

/// The loop's end.
pub struct LoopEnd {
    from_source: Receiver<FromSource>,
    control: Receiver<FromSource>,
    load: Arc<Load>,
    caught_up: Arc<CaughtUp>,
    has_room: Sender<()>,
    to_source: CommandQueue,
    waker: LoopWaker,
}

impl LoopEnd {
    /// To be called before draining: a message sent afterwards wakes the loop again.
    pub fn clear_wake(&self) {
        self.waker.clear();
    }

    /// Returns the next message, control messages first.
    ///
    /// # Errors
    /// `Empty`; or `Disconnected` when the source's thread has ended and all its messages were taken.
    pub fn try_recv(&self) -> Result<FromSource, TryRecvError> {
        self.try_control().or_else(|_| self.try_event())
    }

    /// Returns the next control message.
    ///
    /// # Errors
    /// As of [`LoopEnd::try_recv`].
    pub(crate) fn try_control(&self) -> Result<FromSource, TryRecvError> {
        self.control.try_recv()
    }

    /// Returns the next event; after the source's end, its last control messages.
    ///
    /// # Errors
    /// As of [`LoopEnd::try_recv`].
    pub(crate) fn try_event(&self) -> Result<FromSource, TryRecvError> {
        let message = match self.from_source.try_recv() {
            // It may have sent something between the look at the one channel and the look at the other.
            Err(TryRecvError::Disconnected) => return self.try_control(),
            received => received?,
        };
        if self.load.lighten(message.bytes()) {
            // An error: the channel is full, so the source has been told already and not looked yet.
            let _ = self.has_room.try_send(());
        }
        Ok(message)
    }

    /// Before which moment all that was published was received; `None`: the source does not say.
    #[must_use]
    pub fn caught_up(&self) -> Option<Instant> {
        match self.caught_up.millis.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(self.caught_up.begun + Duration::from_millis(millis)),
        }
    }

    /// Events waiting now (a gauge).
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.from_source.len()
    }

    /// Control messages waiting now (a gauge).
    #[must_use]
    pub(crate) fn controls_waiting(&self) -> usize {
        self.control.len()
    }

    /// Bytes of the events waiting now (a gauge).
    #[must_use]
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.load.bytes.load(Ordering::SeqCst)
    }

    /// Commands the source has not taken yet (a gauge).
    #[must_use]
    pub fn commands_waiting(&self) -> usize {
        self.to_source.waiting()
    }

    /// Tells the source all of `commands`, in order, or keeps them while the source has not taken the last ones. When
    /// it takes those, it wakes the loop, and this is to be called again, with commands or without. A source that has
    /// ended gets nothing; the loop learns of that from [`LoopEnd::try_recv`].
    pub fn tell(&mut self, commands: Vec<ToSource>) {
        self.to_source.tell(commands);
    }
}

/// The two ends of a hand-off.
#[must_use]
pub fn handoff(waker: LoopWaker) -> (SourceEnd, LoopEnd) {
    handoff_bounded(waker, HANDOFF_EVENTS_MAX)
}

/// A hand-off with another bound, for tests of the back-pressure.
#[must_use]
pub fn handoff_bounded(waker: LoopWaker, events_max: usize) -> (SourceEnd, LoopEnd) {
    with_bounds(waker, events_max, HANDOFF_BYTES_MAX)
}

fn with_bounds(waker: LoopWaker, events_max: usize, bytes_max: usize) -> (SourceEnd, LoopEnd) {
    let (to_loop, from_source) = crossbeam_channel::bounded(events_max);
    let (control, controls) = crossbeam_channel::bounded(HANDOFF_CONTROLS_MAX);
    let (to_source, commands) = CommandQueue::new(waker.clone());
    let (has_room, room) = crossbeam_channel::bounded(1);
    let load = Arc::new(Load {
        bytes: AtomicUsize::new(0),
        bytes_max,
    });
    let caught_up = Arc::new(CaughtUp {
        begun: Instant::now(),
        millis: AtomicU64::new(0),
    });
    (
        SourceEnd {
            to_loop,
            control,
            load: load.clone(),
            caught_up: caught_up.clone(),
            room,
            commands,
            waker: SourceWaker(waker.clone()),
        },
        LoopEnd {
            from_source,
            control: controls,
            load,
            caught_up,
            has_room,
            to_source,
            waker,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::event::{EventHead, EventId};
    use std::thread;

    #[test]
    fn a_burst_costs_one_wake_and_a_message_after_the_clear_wakes_again() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = wakes.clone();
        let (source, end) = handoff(LoopWaker::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }));
        for _ in 0..10 {
            source
                .send(FromSource::Up(Return::Anew))
                .expect("the loop's end is held");
        }
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        end.clear_wake();
        source
            .send(FromSource::Up(Return::Anew))
            .expect("the loop's end is held");
        assert_eq!(wakes.load(Ordering::Relaxed), 2);
        assert_eq!(std::iter::from_fn(|| end.try_recv().ok()).count(), 11);
    }

    #[test]
    fn the_end_of_a_source_wakes_the_loop_which_finds_it_gone() {
        let (wake, woken) = crossbeam_channel::unbounded();
        let waker = LoopWaker::new(move || wake.send(()).map_err(std::io::Error::other));
        let (source, end) = handoff(waker);
        let other = source.clone();
        for (dropped, expected) in [
            (source, TryRecvError::Empty),
            (other, TryRecvError::Disconnected),
        ] {
            end.clear_wake();
            drop(dropped);
            assert_eq!(woken.try_iter().count(), 1);
            assert_eq!(end.try_recv().map(|_| ()), Err(expected));
        }
    }

    fn event(body_bytes: usize) -> FromSource {
        FromSource::Event(Arc::new(Event {
            id: EventId::of("", "", b""),
            exchange: "callevt".into(),
            routing_key: "key".into(),
            head: EventHead::default(),
            body: "x".repeat(body_bytes).into(),
            arrival: None,
        }))
    }

    #[test]
    fn too_many_bytes_hold_events_back_and_nothing_else_until_the_loop_has_taken_some() {
        let (source, end) = with_bounds(LoopWaker::new(|| Ok(())), 100, 10_000);
        let try_event = || source.send_timeout(event(6_000), Duration::ZERO).is_ok();
        assert!(try_event() && try_event(), "the last may go beyond");
        assert!(!try_event());
        assert!(
            source
                .send_timeout(FromSource::Up(Return::Anew), Duration::ZERO)
                .is_ok()
        );
        assert!((12_000..13_000).contains(&end.waiting_bytes()));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| source.send(event(1)));
            assert!(end.try_event().is_ok());
            assert!(waiting.join().expect("no panic").is_ok());
        });
        assert!(try_event());
        assert!(!try_event());
        assert_eq!(std::iter::from_fn(|| end.try_recv().ok()).count(), 4);
        assert_eq!(end.waiting_bytes(), 0);
        assert!(try_event());
    }

    #[test]
    fn a_source_that_waits_for_room_hears_that_the_loop_is_gone() {
        let (source, end) = with_bounds(LoopWaker::new(|| Ok(())), 100, 1);
        assert!(source.send(event(1)).is_ok());
        thread::scope(|scope| {
            let waiting = scope.spawn(|| source.send(event(1)));
            drop(end);
            assert!(waiting.join().expect("no panic").is_err());
        });
    }

    #[test]
    fn a_full_channel_holds_the_source_back() {
        let (source, end) = handoff_bounded(LoopWaker::new(|| Ok(())), 2);
        for _ in 0..2 {
            assert!(source.send_timeout(event(1), Duration::ZERO).is_ok());
        }
        assert!(matches!(
            source.send_timeout(event(1), Duration::ZERO),
            Err(Some(FromSource::Event(_)))
        ));
        assert!(end.try_recv().is_ok());
        assert!(source.send_timeout(event(1), Duration::ZERO).is_ok());
        drop(end);
        for message in [event(1), FromSource::Up(Return::Anew)] {
            let refused = source.send_timeout(message, Duration::ZERO);
            assert!(matches!(refused, Err(None)));
        }
    }

    #[test]
    fn what_a_source_tells_of_itself_waits_behind_no_event_and_outlives_it() {
        let (source, end) = handoff_bounded(LoopWaker::new(|| Ok(())), 1);
        source.send(event(1)).expect("there is room");
        let told = [
            FromSource::Up(Return::Anew),
            FromSource::Bound(Vec::new()),
            FromSource::Lost(Vec::new()),
        ];
        for message in told {
            assert!(source.send_timeout(message, Duration::ZERO).is_ok());
        }
        assert!(matches!(end.try_control(), Ok(FromSource::Up(_))));
        assert!(matches!(end.try_recv(), Ok(FromSource::Bound(_))));
        assert!(matches!(end.try_event(), Ok(FromSource::Event(_))));
        assert_eq!((end.waiting(), end.controls_waiting()), (0, 1));
        drop(source);
        assert!(matches!(end.try_event(), Ok(FromSource::Lost(_))));
        assert!(matches!(end.try_event(), Err(TryRecvError::Disconnected)));
        assert!(matches!(end.try_recv(), Err(TryRecvError::Disconnected)));
    }

    #[test]
    fn a_source_that_tells_more_of_itself_than_is_taken_waits() {
        let (source, end) = handoff(LoopWaker::new(|| Ok(())));
        for _ in 0..HANDOFF_CONTROLS_MAX {
            source
                .send(FromSource::Up(Return::Anew))
                .expect("there is room");
        }
        let refused = source.send_timeout(FromSource::Up(Return::Anew), Duration::ZERO);
        assert!(matches!(refused, Err(Some(FromSource::Up(_)))));
        assert!(end.try_control().is_ok());
        assert!(
            source
                .send_timeout(FromSource::Up(Return::Anew), Duration::ZERO)
                .is_ok()
        );
    }
}
