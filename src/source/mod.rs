//! The embedded event sources: events without a broker, for the first minute, demos and load tests.
//!
//! They use the same hand-off as RabbitMQ's events: [`FromSource::Up`] comes before the start, every `ToSource::Bind` is
//! answered with [`FromSource::Bound`], and events come while the hand-off has room. A source is not a broker: its
//! bindings do not filter, so the loop gets every event and drops those without a subscriber, and `ToSource::Unbind` has
//! no effect.
//!
//! | module | source |
//! |---|---|
//! | `demo` | `demo`: made-up calls at a given rate, spread over a given number of accounts |
//! | `replay` | `replay:FILE`: JSON lines from a file or a named pipe |
//!
//! `options` has the choice between them, `answers` what they share.
//!
//! Invariant: an event is handed over only after every `Bind` that was waiting has been answered. So a client whose
//! subscribe was answered sees every event that is made up or read from then on.

mod answers;
mod demo;
mod options;
mod replay;

use std::thread::{self, JoinHandle};

use self::answers::Ended;
pub use self::demo::demo_account;
pub use self::options::{SourceConfig, SourceError};
use crate::handoff::{FromSource, Return, SourceEnd};

/// Starts the embedded source that `config` names, on a thread named `source`. When this returns, the hand-off holds
/// [`FromSource::Up`]: a loop that takes it before it takes connections has a source for the first of them.
///
/// The thread ends at [`ToSource::Stop`](crate::handoff::ToSource::Stop), and when the loop's end is dropped. It may be
/// waiting for room in the hand-off, so the loop's end must be drained or dropped before the thread is joined.
///
/// # Errors
/// [`SourceError`]. The configuration is checked before the thread starts.
pub fn spawn(config: &SourceConfig, source: SourceEnd) -> Result<JoinHandle<()>, SourceError> {
    match config {
        SourceConfig::Amqp => Err(SourceError::NotEmbedded),
        SourceConfig::Demo { rate, accounts } => {
            let demo = demo::Demo::new(*rate, *accounts)?;
            start(source, move |source| demo.run(source))
        }
        SourceConfig::Replay { file } => {
            let replay = replay::Replay::open(file).map_err(|error| SourceError::Open {
                file: file.clone(),
                error,
            })?;
            start(source, move |source| replay.run(source))
        }
    }
}

fn start(
    source: SourceEnd,
    run: impl FnOnce(&SourceEnd) -> Ended + Send + 'static,
) -> Result<JoinHandle<()>, SourceError> {
    // An error: the loop is gone, which the thread notices.
    let _gone = source.send(FromSource::Up(Return::Anew));
    thread::Builder::new()
        .name("source".into())
        .spawn(move || {
            let Ended = run(&source);
            log::debug!("the source has ended");
        })
        .map_err(SourceError::Thread)
}

#[cfg(test)]
mod testing {
    //! A loop's end for the tests of the sources: waits with a deadline instead of polling.

    use std::sync::Arc;
    use std::thread::JoinHandle;
    use std::time::{Duration, Instant};

    use crossbeam_channel::{Receiver, TryRecvError};

    use super::{SourceConfig, spawn};
    use crate::event::Event;
    use crate::handoff::{FromSource, LoopEnd, LoopWaker, ToSource, handoff_bounded};
    use crate::routing::account_load::AccountTag;
    use crate::routing::amqp_binding::{AmqpBinding, Asked, Ticket};

    /// Longest wait of a test for something that is to happen.
    const PATIENCE: Duration = Duration::from_secs(20);

    pub(super) struct Loop {
        end: LoopEnd,
        woken: Receiver<()>,
        pub(super) thread: JoinHandle<()>,
    }

    impl Loop {
        pub(super) fn start(config: &SourceConfig, events_max: usize) -> Self {
            let (wake, woken) = crossbeam_channel::unbounded();
            let waker = LoopWaker::new(move || wake.send(()).map_err(std::io::Error::other));
            let (source, end) = handoff_bounded(waker, events_max);
            Self {
                end,
                woken,
                thread: spawn(config, source).expect("a good configuration"),
            }
        }

        pub(super) fn next(&mut self) -> FromSource {
            let deadline = Instant::now() + PATIENCE;
            loop {
                self.end.tell(Vec::new());
                self.end.clear_wake();
                match self.end.try_recv() {
                    Ok(message) => return message,
                    Err(TryRecvError::Empty) => {
                        self.woken
                            .recv_deadline(deadline)
                            .expect("a message within the patience");
                    }
                    Err(TryRecvError::Disconnected) => panic!("the source has ended"),
                }
            }
        }

        pub(super) fn next_event(&mut self) -> Arc<Event> {
            match self.next() {
                FromSource::Event(event) => event,
                other => panic!("{other:?} instead of an event"),
            }
        }

        pub(super) fn bind(&mut self, key: &str) -> Asked {
            let binding = AmqpBinding {
                exchange: Arc::from("callevt"),
                key: key.into(),
            };
            let ticket = Ticket::default();
            self.end.tell(vec![ToSource::Bind {
                binding: binding.clone(),
                ticket,
                account: AccountTag::NOBODY,
            }]);
            Asked { binding, ticket }
        }

        pub(super) fn waiting(&self) -> usize {
            self.end.waiting()
        }

        /// Says `Stop` and waits for the thread, draining so that it is not held back.
        pub(super) fn stop(mut self) {
            self.end.tell(vec![ToSource::Stop]);
            self.wait_for_the_end();
        }

        /// Drops the loop's end and waits for the thread.
        pub(super) fn vanish(self) {
            let Self { end, woken, thread } = self;
            drop((end, woken));
            thread.join().expect("the source does not panic");
        }

        fn wait_for_the_end(mut self) {
            let deadline = Instant::now() + PATIENCE;
            loop {
                self.end.tell(Vec::new());
                match self.end.try_recv() {
                    Ok(_) => {}
                    Err(TryRecvError::Empty) => {
                        assert!(Instant::now() < deadline, "the source did not end");
                        std::thread::yield_now();
                    }
                    Err(TryRecvError::Disconnected) => break,
                }
            }
            self.thread.join().expect("the source does not panic");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::testing::Loop;
    use super::*;
    use crate::handoff::{LoopWaker, handoff};

    const SLOW_DEMO: SourceConfig = SourceConfig::Demo {
        rate: 0.001,
        accounts: 1,
    };

    #[test]
    fn a_source_is_up_at_once_and_every_bind_is_answered() {
        let mut the_loop = Loop::start(&SLOW_DEMO, 64);
        assert!(matches!(the_loop.next(), FromSource::Up(_)));
        assert!(
            matches!(the_loop.next(), FromSource::Event(_)),
            "the first event is due at the start"
        );
        let asked: Vec<_> = (0..100)
            .map(|n| the_loop.bind(&format!("call.*.{n}")))
            .collect();
        let mut answered = Vec::new();
        while answered.len() < asked.len() {
            match the_loop.next() {
                FromSource::Bound(bindings) => answered.extend(bindings),
                other => panic!("{other:?} instead of bound"),
            }
        }
        assert_eq!(answered, asked);
        the_loop.stop();
    }

    #[test]
    fn a_source_ends_when_the_loop_is_gone_even_while_it_waits_for_room() {
        for rate in [0.001, 100_000.0] {
            Loop::start(&SourceConfig::Demo { rate, accounts: 1 }, 1).vanish();
        }
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused_at_the_start() {
        let missing = SourceConfig::Replay {
            file: PathBuf::from("/nonexistent/events.jsonl"),
        };
        for (config, expected) in [
            (
                SourceConfig::Amqp,
                "source `amqp` is not an embedded source",
            ),
            (
                SourceConfig::Demo {
                    rate: 0.0,
                    accounts: 1,
                },
                "demo_rate: 0 is not a positive number of events a second",
            ),
            (
                SourceConfig::Demo {
                    rate: f64::NAN,
                    accounts: 1,
                },
                "demo_rate: NaN is not a positive number of events a second",
            ),
            (
                SourceConfig::Demo {
                    rate: 1.0,
                    accounts: 0,
                },
                "demo_accounts: at least 1 is needed",
            ),
            (
                missing,
                "source replay:/nonexistent/events.jsonl: No such file or directory (os error 2)",
            ),
        ] {
            let (source, _end) = handoff(LoopWaker::new(|| Ok(())));
            let error = spawn(&config, source).expect_err("refused");
            assert_eq!(error.to_string(), expected);
        }
    }
}
