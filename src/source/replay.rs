//! Recorded events, from a file or a named pipe: one JSON object a line.
//!
//! ```json
//! {"exchange": "callevt", "routing_key": "call.CHANNEL_CREATE.abc", "body": {"Event-Name": "CHANNEL_CREATE"}, "delay_ms": 250}
//! ```
//!
//! - `body` is the event's body, as published. `delay_ms` is optional: the time between the event of the line before
//!   and this one (for the first line, since the play began). Blank lines are ignored.
//! - The play begins with the first subscription (the first `Bind`), so that a client can see all of it.
//! - A file is played once; then the source stays up and silent.
//! - A named pipe (`mkfifo`) is a remote control: lines are played as they are written, by any number of writers one
//!   after the other, without end. While the loop is behind, a writer is held back once [`READ_AHEAD_MAX`] lines and
//!   the pipe's own buffer are full. Lines written at once are handed over at once.
//! - A line that is not such an object, or longer than [`LINE_BYTES_MAX`], is skipped, counted, and logged with its
//!   number, at most once in [`LOG_INTERVAL`](crate::limits::LOG_INTERVAL).
//!
//! Reading blocks, and the commands of the loop must be taken meanwhile, so a second thread, `source-read`, reads and
//! decodes. It sends something for every line, so it ends with the first line after the source has dropped their
//! channel. A source that ends writes a line end to its pipe, because the reader may be waiting there.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::answers::{Ended, Heard, answer, answer_until, answer_waiting};
use crate::event::{Arrival, BODY_BYTES_MAX, Event, EventError};
use crate::handoff::{FromSource, SourceEnd};
use crate::log_limit::LogLimit;

/// Longest line: room for the largest body and what stands around it. A longer line is skipped.
const LINE_BYTES_MAX: usize = BODY_BYTES_MAX + 4096;

/// Decoded lines that may wait for the source; above it the file is not read on.
const READ_AHEAD_MAX: usize = 64;

/// One line, as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    exchange: String,
    routing_key: String,
    #[serde(borrow)]
    body: &'a RawValue,
    #[serde(default)]
    delay_ms: u32,
}

/// One line, decoded.
#[derive(Debug)]
struct Step {
    delay: Duration,
    event: Event,
}

/// Why a line is skipped.
#[derive(Debug, thiserror::Error)]
enum LineError {
    /// Not the JSON object of [`Line`].
    #[error("{0}")]
    Malformed(#[from] serde_json::Error),
    /// Its body is not one.
    #[error("{0}")]
    NotAnEvent(#[from] EventError),
    /// Beyond [`LINE_BYTES_MAX`].
    #[error("longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
}

/// The source `replay:FILE`.
pub(super) struct Replay {
    file: File,
    /// A second, non-blocking descriptor of a named pipe, to wake its reader.
    wake_reader: Option<File>,
}

impl Replay {
    /// Opens `path`. A named pipe is opened for writing too, so that neither this nor a later read waits for a
    /// writer, and the end of one writer is not the end of the play.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let kind = std::fs::metadata(path)?.file_type();
        let is_pipe = kind.is_fifo();
        if !(kind.is_file() || is_pipe) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "neither a file nor a named pipe",
            ));
        }
        let file = OpenOptions::new().read(true).write(is_pipe).open(path)?;
        let wake_reader = is_pipe
            .then(|| {
                OpenOptions::new()
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(path)
            })
            .transpose()?;
        Ok(Self { file, wake_reader })
    }

    pub(super) fn run(self, source: &SourceEnd) -> Ended {
        let Self { file, wake_reader } = self;
        let (to_source, steps) = crossbeam_channel::bounded(READ_AHEAD_MAX);
        let reader = thread::Builder::new()
            .name("source-read".into())
            .spawn(move || read_all(file, &to_source));
        let reader = match reader {
            Ok(reader) => reader,
            Err(error) => {
                log::error!("replay: cannot start the reading thread: {error}");
                return Ended;
            }
        };
        let Err(ended) = play(source, steps);
        if let Some(mut pipe) = wake_reader {
            // A full pipe refuses the blank line, and then its reader is not waiting on it.
            let _ = pipe.write(b"\n");
        }
        if reader.join().is_err() {
            log::error!("replay: the reading thread panicked");
        }
        ended
    }
}

/// Plays `steps` from the first `Bind` on, and afterwards only answers commands. Takes the channel by value, so that
/// the reader learns of the end.
fn play(source: &SourceEnd, steps: Receiver<Option<Step>>) -> Result<Infallible, Ended> {
    while answer(source, source.commands.recv().map_err(|_| Ended)?)? == Heard::Nothing {}
    let mut played = 0_u64;
    let mut last = Instant::now();
    loop {
        crossbeam_channel::select_biased! {
            recv(source.commands) -> command => {
                answer(source, command.map_err(|_| Ended)?)?;
            }
            recv(steps) -> step => {
                let Ok(step) = step else { break };
                let Some(Step { delay, mut event }) = step else { continue };
                if !delay.is_zero() {
                    answer_until(source, last + delay)?;
                }
                answer_waiting(source)?;
                event.arrival = Some(Arrival {
                    at: Instant::now(),
                    age: None,
                });
                source.send(FromSource::Event(Arc::new(event)))?;
                last = Instant::now();
                played += 1;
            }
        }
    }
    log::info!("replay: the file is played, {played} events");
    loop {
        answer(source, source.commands.recv().map_err(|_| Ended)?)?;
    }
}

/// Reads and decodes until the end of `file` or of the source. Sends something for every line; `None` for a line
/// without an event.
fn read_all(file: File, to_source: &Sender<Option<Step>>) {
    let mut lines = Lines {
        file: BufReader::new(file),
        line: Vec::new(),
        number: 0,
    };
    let mut skipped = 0_u64;
    let mut skipped_log = LogLimit::default();
    let mut exchange: Arc<str> = Arc::from("");
    loop {
        let step = match lines.next() {
            Ok(None) => break,
            Ok(Some(Ok(line))) if line.trim_ascii().is_empty() => None,
            Ok(Some(line)) => match line.and_then(|line| decode(line, &mut exchange)) {
                Ok(step) => Some(step),
                Err(error) => {
                    skipped += 1;
                    if let Some(left_out) = skipped_log.pass(Instant::now()) {
                        log::warn!(
                            "replay: line {} is skipped: {error}{left_out}",
                            lines.number
                        );
                    }
                    None
                }
            },
            Err(error) => {
                log::error!(
                    "replay: reading stopped after line {}: {error}",
                    lines.number
                );
                break;
            }
        };
        if to_source.send(step).is_err() {
            return;
        }
    }
    if skipped > 0 {
        log::warn!("replay: {skipped} of {} lines were skipped", lines.number);
    }
}

/// Decodes one line. `exchange` is that of the line before, whose text is shared while it stays the same.
fn decode(line: &[u8], exchange: &mut Arc<str>) -> Result<Step, LineError> {
    let line: Line<'_> = serde_json::from_slice(line)?;
    if **exchange != *line.exchange {
        *exchange = Arc::from(line.exchange);
    }
    let body = line.body.get().as_bytes().to_vec();
    let event = Event::decode(exchange.clone(), line.routing_key.into(), body, None)?;
    Ok(Step {
        delay: Duration::from_millis(line.delay_ms.into()),
        event,
    })
}

/// The lines of a file. Invariant: `line` never holds more than [`LINE_BYTES_MAX`] + 1 bytes.
struct Lines<R> {
    file: R,
    line: Vec<u8>,
    /// Of the line returned last, from 1.
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// The next line with its line end; `Ok(None)` at the end of the file.
    fn next(&mut self) -> io::Result<Option<Result<&[u8], LineError>>> {
        self.line.clear();
        let read = io::Read::take(&mut self.file, LINE_BYTES_MAX as u64 + 1)
            .read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        if read <= LINE_BYTES_MAX || self.line.ends_with(b"\n") {
            return Ok(Some(Ok(&self.line)));
        }
        self.line = Vec::new();
        self.file.skip_until(b'\n')?;
        Ok(Some(Err(LineError::TooLong)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::SourceConfig;
    use super::super::testing::Loop;
    use super::*;

    /// A path of its own in the system's directory for temporary files, removed when dropped.
    struct Scratch(PathBuf);

    impl Scratch {
        fn path(name: &str) -> Self {
            let path = std::env::temp_dir()
                .join(format!("blackhole-replay-{}-{name}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            Self(path)
        }

        fn file(name: &str, text: impl AsRef<[u8]>) -> Self {
            let scratch = Self::path(name);
            std::fs::write(&scratch.0, text).expect("the directory can be written");
            scratch
        }

        fn pipe(name: &str) -> Self {
            let scratch = Self::path(name);
            let made = std::process::Command::new("mkfifo")
                .arg(&scratch.0)
                .status()
                .expect("mkfifo exists");
            assert!(made.success());
            scratch
        }

        fn play(&self, events_max: usize) -> Loop {
            let mut the_loop = Loop::start(
                &SourceConfig::Replay {
                    file: self.0.clone(),
                },
                events_max,
            );
            assert!(matches!(the_loop.next(), FromSource::Up(_)));
            the_loop
        }

        fn writer(&self) -> File {
            OpenOptions::new()
                .write(true)
                .open(&self.0)
                .expect("the pipe has a reader")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn line(n: usize) -> String {
        format!(
            r#"{{"exchange":"callevt","routing_key":"call.CHANNEL_CREATE.{n}","body":{{"n": {n}}}}}"#
        ) + "\n"
    }

    fn bound(the_loop: &mut Loop) {
        the_loop.bind("call.CHANNEL_CREATE.*");
        assert!(matches!(the_loop.next(), FromSource::Bound(_)));
    }

    fn expect_line(the_loop: &mut Loop, n: usize) {
        let event = the_loop.next_event();
        assert_eq!(*event.routing_key, *format!("call.CHANNEL_CREATE.{n}"));
        assert_eq!(*event.body, *format!(r#"{{"n": {n}}}"#), "as published");
        assert_eq!(&*event.exchange, "callevt");
    }

    #[test]
    fn a_file_is_played_in_order_once_the_first_binding_is_in_force() {
        let count = 3 * READ_AHEAD_MAX;
        let scratch = Scratch::file("order", (0..count).map(line).collect::<String>());
        let mut the_loop = scratch.play(4);
        bound(&mut the_loop);
        for n in 0..count {
            expect_line(&mut the_loop, n);
        }
        bound(&mut the_loop);
        assert_eq!(the_loop.waiting(), 0, "played once");
        the_loop.stop();
    }

    #[test]
    fn lines_that_are_no_events_are_skipped_and_the_others_played() {
        let text = [
            &line(0)[..],
            "\n  \n",
            "{\n",
            "[]\n",
            "{\"exchange\":\"callevt\",\"body\":{}}\n",
            "{\"exchange\":\"callevt\",\"routing_key\":\"call.x\",\"body\":[1]}\n",
            "{\"exchange\":\"callevt\",\"routing_key\":\"call.x\",\"body\":{},\"delay\":1}\n",
            "{\"exchange\":\"callevt\",\"routing_key\":\"call.x\",\"body\":{},\"delay_ms\":-1}\n",
            line(1).trim_end(),
        ]
        .concat();
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(b"\n\xff\xfe\n");
        bytes.extend_from_slice(line(2).as_bytes());
        let scratch = Scratch::file("malformed", bytes);
        let mut the_loop = scratch.play(64);
        bound(&mut the_loop);
        for n in 0..3 {
            expect_line(&mut the_loop, n);
        }
        the_loop.stop();
    }

    #[test]
    fn a_line_over_the_limit_is_skipped_without_being_kept() {
        let mut text = vec![b'x'; LINE_BYTES_MAX];
        text.push(b'\n');
        text.extend_from_slice(line(0).as_bytes());
        let mut lines = Lines {
            file: &text[..],
            line: Vec::new(),
            number: 0,
        };
        let at_limit = lines
            .next()
            .expect("a slice reads")
            .expect("a line")
            .map(<[u8]>::len);
        assert!(
            matches!(at_limit, Ok(length) if length == LINE_BYTES_MAX + 1),
            "the limit is without the line end"
        );

        text.insert(0, b'x');
        let mut lines = Lines {
            file: &text[..],
            line: Vec::new(),
            number: 0,
        };
        assert!(matches!(lines.next(), Ok(Some(Err(LineError::TooLong)))));
        assert_eq!(lines.line.capacity(), 0);
        assert!(matches!(lines.next(), Ok(Some(Ok(rest))) if rest == line(0).as_bytes()));
        assert_eq!(lines.number, 2);
        assert!(matches!(lines.next(), Ok(None)));
    }

    #[test]
    fn a_delay_holds_its_event_back_and_binds_are_answered_meanwhile() {
        let delayed = line(1).replacen("\"exchange\"", "\"delay_ms\":300,\"exchange\"", 1);
        let scratch = Scratch::file("delay", line(0) + &delayed);
        let mut the_loop = scratch.play(64);
        let before = Instant::now();
        bound(&mut the_loop);
        expect_line(&mut the_loop, 0);
        bound(&mut the_loop);
        expect_line(&mut the_loop, 1);
        assert!(
            before.elapsed() >= Duration::from_millis(300),
            "{:?}",
            before.elapsed()
        );
        the_loop.stop();
    }

    #[test]
    fn a_named_pipe_is_played_as_it_is_written_by_one_writer_after_the_other() {
        let scratch = Scratch::pipe("writers");
        let mut the_loop = scratch.play(64);
        scratch
            .writer()
            .write_all(line(0).as_bytes())
            .expect("written before anyone has subscribed");
        bound(&mut the_loop);
        expect_line(&mut the_loop, 0);
        for round in 0..3 {
            let burst: String = (0..32).map(|n| line(round * 32 + n)).collect();
            scratch
                .writer()
                .write_all(burst.as_bytes())
                .expect("written");
            for n in 0..32 {
                expect_line(&mut the_loop, round * 32 + n);
            }
        }
        the_loop.stop();
    }

    #[test]
    fn a_source_on_a_named_pipe_ends_whatever_its_reader_waits_for() {
        for (written, subscribed) in [
            ("", false),
            ("", true),
            ("{\"exch", true),
            (&*line(0).repeat(500), true),
        ] {
            let scratch = Scratch::pipe("ends");
            let mut the_loop = scratch.play(1);
            scratch
                .writer()
                .write_all(written.as_bytes())
                .expect("fits the pipe");
            if subscribed {
                bound(&mut the_loop);
            }
            the_loop.stop();
        }
    }
}
