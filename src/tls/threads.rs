//! The threads of handshakes, so that the loop never waits for a signature.
//!
//! Invariants: work is given back at once or answered once, while the loop is there; a handshake under way goes before a
//! new one; a panic is a failed handshake, and its thread goes on; every thread ends when the loop's end is dropped, after
//! its step; a result is seen by the loop, or a wake is pending.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded, select_biased};

use super::handshake::{Handshake, HandshakeFault, Stepped, Work, Worked};
use super::secrets;
use super::server::ServerTls;
use crate::handoff::LoopWaker;
use crate::limits::{
    TLS_HANDSHAKES_WAITING_MAX, TLS_RESULTS_MAX, TLS_STEPS_WAITING_MAX, TLS_THREADS_MAX,
    TLS_THREADS_NICE,
};

/// Work on its way to a thread.
struct Task {
    word: usize,
    input: Vec<u8>,
    origin: Origin,
}

/// Where a handshake comes from.
enum Origin {
    New(ServerTls),
    UnderWay(Handshake),
}

impl From<Task> for Work {
    fn from(task: Task) -> Self {
        Self {
            word: task.word,
            handshake: match task.origin {
                Origin::New(_) => None,
                Origin::UnderWay(handshake) => Some(handshake),
            },
            input: task.input,
        }
    }
}

/// The loop's end. Dropping it ends the threads.
pub struct HandshakeLane {
    begin: Sender<Task>,
    go_on: Sender<Task>,
    results: Receiver<Worked>,
    waker: LoopWaker,
}

impl HandshakeLane {
    /// Gives a thread work. A new handshake begins with `tls`; one that is under way goes on with what it began with.
    /// Never waits. O(1).
    ///
    /// # Errors
    /// The work back: as much waits as may.
    pub fn give(&self, work: Work, tls: &ServerTls) -> Result<(), Work> {
        let Work {
            word,
            handshake,
            input,
        } = work;
        let (lane, origin) = match handshake {
            None => (&self.begin, Origin::New(tls.clone())),
            Some(handshake) => (&self.go_on, Origin::UnderWay(handshake)),
        };
        let task = Task {
            word,
            input,
            origin,
        };
        lane.try_send(task)
            .map_err(|error| error.into_inner().into())
    }

    /// Whether the next new handshake will be taken. O(1).
    #[must_use]
    pub fn has_room_to_begin(&self) -> bool {
        !self.begin.is_full()
    }

    /// Whether the next handshake that is under way will be taken. O(1).
    #[must_use]
    pub fn has_room_to_go_on(&self) -> bool {
        !self.go_on.is_full()
    }

    /// The next result, if there is one. The loop is woken for results that come after a `None`: it takes results until
    /// there is none, or does not wait before it takes more. O(1).
    #[must_use]
    pub fn take(&self) -> Option<Worked> {
        self.results.try_recv().ok().or_else(|| {
            // One that comes after the next look finds the flag down, and wakes.
            self.waker.clear();
            self.results.try_recv().ok()
        })
    }

    /// Handshakes that wait for a thread (a gauge).
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.begin.len() + self.go_on.len()
    }
}

/// The threads' end: threads are [started](HandshakeThreads::start) with it, or a test works.
pub struct HandshakeThreads {
    worker: Worker,
}

#[derive(Clone)]
struct Worker {
    begin: Receiver<Task>,
    go_on: Receiver<Task>,
    results: Sender<Worked>,
    waker: LoopWaker,
}

/// The two ends. `waker` makes the loop's poll return; it is for results alone.
#[must_use]
pub fn channels(waker: LoopWaker) -> (HandshakeLane, HandshakeThreads) {
    let (to_begin, begin) = bounded(TLS_HANDSHAKES_WAITING_MAX);
    let (to_go_on, go_on) = bounded(TLS_STEPS_WAITING_MAX);
    let (to_loop, results) = bounded(TLS_RESULTS_MAX);
    let lane = HandshakeLane {
        begin: to_begin,
        go_on: to_go_on,
        results,
        waker: waker.clone(),
    };
    let worker = Worker {
        begin,
        go_on,
        results: to_loop,
        waker,
    };
    (lane, HandshakeThreads { worker })
}

impl HandshakeThreads {
    /// Starts the threads, as many as there are cores, but no more than `TLS_THREADS_MAX`. What it returns need not be
    /// joined.
    ///
    /// # Errors
    /// The system refused a thread. Those that were started end with the loop's end.
    pub fn start(self) -> io::Result<Vec<JoinHandle<()>>> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        (1..=cores.min(TLS_THREADS_MAX))
            .map(|number| {
                let worker = self.worker.clone();
                thread::Builder::new()
                    .name(format!("tls-{number}"))
                    .spawn(move || {
                        lower_priority();
                        worker.work();
                    })
            })
            .collect()
    }

    /// Does the next work on the caller's thread, if there is any: for a test that plays the threads. Returns whether
    /// there was some.
    pub fn try_work(&self) -> bool {
        let (begin, go_on) = (&self.worker.begin, &self.worker.go_on);
        let task = go_on.try_recv().or_else(|_| begin.try_recv());
        task.is_ok_and(|task| self.worker.answer(task))
    }
}

impl Worker {
    /// A thread's life.
    fn work(&self) {
        loop {
            let task = select_biased! {
                recv(self.go_on) -> task => task,
                recv(self.begin) -> task => task,
            };
            let is_there = task.is_ok_and(|task| self.answer(task));
            if !is_there {
                return;
            }
        }
    }

    /// Takes a step and hands the result to the loop; waits while as many wait as may. Returns whether the loop is there.
    fn answer(&self, task: Task) -> bool {
        let Task {
            word,
            input,
            origin,
        } = task;
        self.answer_with(word, |out| {
            let handshake = match origin {
                Origin::New(tls) => Handshake::new(&tls),
                Origin::UnderWay(handshake) => Ok(handshake),
            };
            match handshake {
                Ok(handshake) => handshake.step(input, out),
                Err(fault) => Stepped::Failed(fault),
            }
        })
    }

    fn answer_with(&self, word: usize, step: impl FnOnce(&mut Vec<u8>) -> Stepped) -> bool {
        let mut out = Vec::new();
        let stepped = catch_unwind(AssertUnwindSafe(|| step(&mut out))).unwrap_or_else(|_| {
            // The panic's own line is in the log already.
            log::error!("tls: a thread panicked over a handshake; it goes on");
            secrets::forget_told();
            Stepped::Failed(HandshakeFault::Panicked)
        });
        let worked = Worked { word, out, stepped };
        let is_there = self.results.send(worked).is_ok();
        if is_there {
            self.waker.wake();
        }
        is_there
    }
}

/// Puts the calling thread below the others of the process.
fn lower_priority() {
    use rustix::process::{getpriority_process, setpriority_process};
    // On Linux both mean the calling thread.
    let lowered = getpriority_process(None)
        .and_then(|nice| setpriority_process(None, nice.saturating_add(TLS_THREADS_NICE)));
    if let Err(error) = lowered {
        log::warn!("tls: cannot lower the priority of a thread of handshakes: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn lane() -> (HandshakeLane, HandshakeThreads) {
        channels(LoopWaker::new(|| Ok(())))
    }

    #[test]
    fn a_panic_is_a_failed_handshake_and_its_thread_goes_on() {
        let (lane, threads) = lane();
        assert!(
            threads
                .worker
                .answer_with(7, |_| panic!("a panic of this test"))
        );
        let worked = lane.take().expect("a result");
        assert_eq!(worked.word, 7);
        assert!(matches!(
            worked.stepped,
            Stepped::Failed(HandshakeFault::Panicked)
        ));
        assert!(worked.out.is_empty());
        drop(lane);
        let failed = |_: &mut Vec<u8>| Stepped::Failed(HandshakeFault::Internal);
        assert!(!threads.worker.answer_with(8, failed), "the loop is gone");
    }

    #[test]
    fn the_threads_are_named_and_niced_and_end_with_the_loop() {
        let (lane, threads) = lane();
        let before = rustix::process::getpriority_process(None).expect("the caller's own");
        let threads = threads.start().expect("threads");
        assert!((1..=TLS_THREADS_MAX).contains(&threads.len()));
        assert_eq!(threads[0].thread().name(), Some("tls-1"));
        drop(lane);
        for thread in threads {
            thread.join().expect("no panic");
        }
        assert_eq!(
            rustix::process::getpriority_process(None),
            Ok(before),
            "nobody else is"
        );
        let niced = thread::spawn(|| {
            lower_priority();
            rustix::process::getpriority_process(None)
        });
        let lowest = (before + TLS_THREADS_NICE).min(19);
        assert_eq!(niced.join().expect("no panic"), Ok(lowest));
    }

    #[test]
    fn a_result_that_comes_after_a_vain_look_wakes_the_loop() {
        let (wake, woken) = crossbeam_channel::unbounded();
        let waker = LoopWaker::new(move || wake.send(()).map_err(io::Error::other));
        let (lane, threads) = channels(waker);
        for word in 0..3 {
            assert!(lane.take().is_none());
            let worker = threads.worker.clone();
            thread::spawn(move || {
                worker.answer_with(word, |_| Stepped::Failed(HandshakeFault::Internal))
            });
            let deadline = Instant::now() + Duration::from_secs(20);
            woken.recv_deadline(deadline).expect("a wake");
            assert_eq!(lane.take().map(|worked| worked.word), Some(word));
        }
    }
}
