//! The waker: a source wakes the loop through a flag that is raised while a wake is pending, so that a burst costs one
//! wake.
//!
//! ```text
//! source: put the message into the channel; raise the flag; wake the loop if it was down
//! loop:   woken, or turning anyway; lower the flag; take messages until there are none
//! ```
//!
//! Invariant: the loop sees a message, or a wake is pending. Raising and lowering both read and write the flag in one
//! step, so one of them comes first and the later one sees it: a source that comes later finds the flag down and wakes
//! the loop; a loop that comes later sees everything that the source did before. A plain store in place of the lowering
//! could be reordered with the loads after it: the loop would miss the message, and the source would not wake it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the protocol needs of an atomic flag; a trait so that a model checker's can stand in for the real one.
trait Flag {
    /// Puts `value` in and returns what was there, in one step.
    fn swap(&self, value: bool, ordering: Ordering) -> bool;
}

impl Flag for AtomicBool {
    fn swap(&self, value: bool, ordering: Ordering) -> bool {
        Self::swap(self, value, ordering)
    }
}

/// Whether a wake is pending.
#[derive(Debug, Default)]
struct Pending<F>(F);

impl<F: Flag> Pending<F> {
    /// To be called by a source that has put a message in. Returns whether it is to wake the loop.
    fn raise(&self) -> bool {
        // Release: the loop that lowers the flag sees the message.
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// To be called by the loop before it looks for messages.
    fn lower(&self) {
        // Acquire: the look comes after it, and sees the messages of all who raised the flag before.
        self.0.swap(false, Ordering::AcqRel);
    }
}

/// Wakes the loop; cheap when a wake is already pending.
#[derive(Clone)]
pub struct LoopWaker {
    pending: Arc<Pending<AtomicBool>>,
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

    /// To be called after a message was put in.
    pub(crate) fn wake(&self) {
        if self.pending.raise()
            && let Err(error) = (self.waker)()
        {
            self.pending.lower();
            log::error!("cannot wake the loop: {error}");
        }
    }

    /// To be called before messages are looked for: one that is put in afterwards wakes the loop again.
    pub(crate) fn clear(&self) {
        self.pending.lower();
    }
}

/// A source's waker: wakes the loop when it is dropped too, so that the end of a source is noticed at once.
///
/// As a field it is declared after the channels that it belongs to, so that they are closed before it is dropped.
#[derive(Clone)]
pub(super) struct SourceWaker(pub(super) LoopWaker);

impl Drop for SourceWaker {
    fn drop(&mut self) {
        self.0.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicUsize};
    use loom::thread;

    impl Flag for AtomicBool {
        fn swap(&self, value: bool, ordering: Ordering) -> bool {
            Self::swap(self, value, ordering)
        }
    }

    /// The hand-off, with nothing in it that would order anything but the flag.
    struct Model {
        pending: Pending<AtomicBool>,
        /// A wake that the loop's poll has not returned yet; changed in one step, as the kernel's event counter is.
        woken: AtomicBool,
        /// Messages put in by each source.
        sent: [AtomicUsize; 2],
    }

    /// Two sources of one message each, and a loop that turns twice beside them: once on its own account, and once if
    /// it is woken. In every order and with every value that the memory model allows, all messages are seen or the loop
    /// is to be woken. `lower`: how the loop lowers the flag.
    fn check(lower: fn(&Pending<AtomicBool>)) {
        loom::model(move || {
            let model = Arc::new(Model {
                pending: Pending(AtomicBool::new(false)),
                woken: AtomicBool::new(false),
                sent: [AtomicUsize::new(0), AtomicUsize::new(0)],
            });
            let sources = [0, 1].map(|source| {
                let model = model.clone();
                thread::spawn(move || {
                    model.sent[source].store(1, Ordering::Relaxed);
                    if model.pending.raise() {
                        model.woken.swap(true, Ordering::Relaxed);
                    }
                })
            });
            let turn = || {
                lower(&model.pending);
                let sent = model.sent.each_ref();
                sent.map(|sent| sent.load(Ordering::Relaxed)).iter().sum()
            };
            let mut seen: usize = turn();
            if model.woken.swap(false, Ordering::Relaxed) {
                seen = turn();
            }
            for source in sources {
                source.join().expect("no panic");
            }
            let is_to_be_woken = model.woken.load(Ordering::Relaxed);
            assert!(seen == 2 || is_to_be_woken, "a message that nobody sees");
        });
    }

    #[test]
    fn a_message_is_seen_or_a_wake_is_pending() {
        check(Pending::lower);
    }

    #[test]
    #[should_panic(expected = "a message that nobody sees")]
    fn the_model_knows_that_a_plain_store_would_lose_messages() {
        check(|pending| pending.0.store(false, Ordering::Release));
    }
}
