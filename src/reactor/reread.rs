//! Rereading what can change while running (SIGHUP), on a thread of its own: the loop neither reads nor parses a file.
//!
//! The loop makes a [`RereadJob`]; a thread runs it and wakes the loop; the loop carries out the result ([`PutInForce`]) and
//! gives what is left over back to the thread, which drops it, for that may take time. Invariant: there is one thread at
//! a time. If another reread is asked for meanwhile, it begins when the first is through, so the last state of the files
//! is put in force.

use std::any::Any;
use std::{io, thread};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use crate::session::hub::Hub;
use crate::tls::ServerTls;

/// Reads and parses. Runs on a thread that may wait.
pub type RereadJob = Box<dyn FnOnce() -> PutInForce + Send>;

/// Puts in force what was read. Runs in the loop, so it must not wait.
pub type PutInForce = Box<dyn FnOnce(&mut Hub) -> Reread + Send>;

/// The result of putting it in force.
pub struct Reread {
    /// Whether identities may have changed, so that every session must be renewed.
    pub has_changed_identities: bool,
    /// What handshakes of the TLS port are served with from now on; `None`: as before.
    pub tls: Option<ServerTls>,
    /// What was in force before; the thread drops it.
    pub leftover: Box<dyn Any + Send>,
}

/// The job of a server that has nothing to reread.
#[must_use]
pub fn nothing() -> RereadJob {
    let nothing = || Reread {
        has_changed_identities: false,
        tls: None,
        leftover: Box::new(()),
    };
    Box::new(move || Box::new(move |_| nothing()))
}

/// Whether files are being read.
#[derive(Default)]
pub(super) enum Rereading {
    /// No.
    #[default]
    Idle,
    /// A thread reads them.
    UnderWay {
        results: Receiver<PutInForce>,
        leftovers: Sender<Box<dyn Any + Send>>,
        /// They must be read once more after this.
        again: bool,
    },
}

/// Wakes the loop when the job is done, or has panicked.
pub(super) struct WakeOnDrop<W: Fn()>(pub(super) W);

impl<W: Fn()> Drop for WakeOnDrop<W> {
    fn drop(&mut self) {
        self.0();
    }
}

fn read(job: RereadJob, to_loop: Sender<PutInForce>) {
    // The only message, so there is room; the loop may have ended.
    let _ended = to_loop.try_send(job());
}

impl Rereading {
    /// Whether a thread reads, or what it has read is not in force yet.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self, Self::UnderWay { .. })
    }

    /// Begins to read, or notes that it must be done again. `wake` makes the loop's poll return.
    pub(super) fn begin(
        &mut self,
        make_job: impl FnOnce() -> RereadJob,
        wake: impl Fn() -> io::Result<()> + Send + 'static,
    ) {
        if let Self::UnderWay { again, .. } = self {
            *again = true;
            return;
        }
        let job = make_job();
        let (to_loop, results) = bounded(1);
        let (leftovers, from_loop) = bounded::<Box<dyn Any + Send>>(1);
        let work = move || {
            let waking = WakeOnDrop(move || {
                if let Err(error) = wake() {
                    log::error!("cannot wake the loop: {error}");
                }
            });
            // In this order, even if the job panics: hand over, close the channel, wake.
            read(job, to_loop);
            drop(waking);
            drop(from_loop.recv());
        };
        match thread::Builder::new().name("reread".to_owned()).spawn(work) {
            Ok(_thread) => {
                *self = Self::UnderWay {
                    results,
                    leftovers,
                    again: false,
                }
            }
            Err(error) => log::error!("SIGHUP: nothing reread: cannot start a thread: {error}"),
        }
    }

    /// Puts in force what the thread has read, if it is done; returns the result. O(1).
    pub(super) fn finish(&mut self, hub: &mut Hub) -> Option<Finished> {
        let Self::UnderWay {
            results,
            leftovers,
            again,
        } = self
        else {
            return None;
        };
        let (has_changed_identities, tls) = match results.try_recv() {
            Ok(put_in_force) => {
                let reread = put_in_force(hub);
                let _gone = leftovers.try_send(reread.leftover);
                (reread.has_changed_identities, reread.tls)
            }
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => {
                log::error!("SIGHUP: nothing reread: its thread has ended");
                (false, None)
            }
        };
        let begin_again = *again;
        *self = Self::Idle;
        Some(Finished {
            has_changed_identities,
            tls,
            begin_again,
        })
    }
}

/// The result of [`Rereading::finish`].
pub(super) struct Finished {
    pub(super) has_changed_identities: bool,
    pub(super) tls: Option<ServerTls>,
    pub(super) begin_again: bool,
}
