//! The one thread that prints: events on stdout, everything else on stderr, and the counts at the end.
//!
//! Lines are written together while more wait, and at once when none does.

use std::io::{self, BufWriter, Write};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::report::{Report, seconds};

/// When to end.
pub(super) struct Ends {
    /// After so many events.
    pub(super) count: Option<u64>,
    /// After this time.
    pub(super) time: Option<Duration>,
    /// Sessions that there are.
    pub(super) sessions: usize,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// As was asked for, or because nobody reads stdout any more.
    Done,
    /// No session is left, or fewer events came than were asked for.
    Failed,
}

/// What was counted.
struct Printer<O> {
    out: O,
    is_quiet: bool,
    begun: Instant,
    events: u64,
    gaps: u64,
}

/// Prints what the sessions report, until an end.
pub(super) fn print(reports: &Receiver<Report>, ends: &Ends, is_quiet: bool) -> Outcome {
    let mut printer = Printer {
        out: BufWriter::new(io::stdout()),
        is_quiet,
        begun: Instant::now(),
        events: 0,
        gaps: 0,
    };
    match printer.run(reports, ends) {
        Ok(outcome) => {
            printer.sum_up();
            outcome
        }
        // A closed pipe: the reader has what it wanted.
        Err(_) => Outcome::Done,
    }
}

impl<O: Write> Printer<O> {
    fn run(&mut self, reports: &Receiver<Report>, ends: &Ends) -> io::Result<Outcome> {
        let until = ends.time.map(|time| self.begun + time);
        let mut left = ends.sessions;
        loop {
            let next = match until {
                None => reports.recv().map_err(|_| RecvTimeoutError::Disconnected),
                // A report that is there would be taken whatever the time.
                Some(until) if Instant::now() >= until => Err(RecvTimeoutError::Timeout),
                Some(until) => reports.recv_deadline(until),
            };
            match next {
                Ok(Report::Event(line)) => {
                    writeln!(self.out, "{line}")?;
                    self.events += 1;
                    if ends.count == Some(self.events) {
                        self.out.flush()?;
                        return Ok(Outcome::Done);
                    }
                }
                Ok(Report::Notice(line)) => writeln!(self.out, "{line}")?,
                Ok(Report::Told(text)) if self.is_quiet => drop(text),
                Ok(Report::Told(text) | Report::Problem(text)) => say(&text),
                Ok(Report::Gap(text)) => {
                    self.gaps += 1;
                    say(&text);
                }
                Ok(Report::Ended) => {
                    left -= 1;
                    if left == 0 {
                        self.out.flush()?;
                        return Ok(Outcome::Failed);
                    }
                }
                Ok(Report::Interrupted) => {
                    self.out.flush()?;
                    return Ok(Outcome::Done);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.out.flush()?;
                    let is_short = ends.count.is_some();
                    return Ok(if is_short {
                        Outcome::Failed
                    } else {
                        Outcome::Done
                    });
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(Outcome::Failed),
            }
            if reports.is_empty() {
                self.out.flush()?;
            }
        }
    }

    fn sum_up(&self) {
        if !self.is_quiet {
            let counted = |count: u64, one: &str| match count {
                1 => format!("1 {one}"),
                count => format!("{count} {one}s"),
            };
            say(&format!(
                "{} in {}, {}",
                counted(self.events, "event"),
                seconds(self.begun.elapsed()),
                counted(self.gaps, "gap")
            ));
        }
    }
}

/// A line on stderr. Nobody may be reading it, which is no reason to end.
pub(super) fn say(text: &str) {
    let _closed = writeln!(io::stderr(), "blackhole sub: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::unbounded;

    fn outcome(
        count: Option<u64>,
        time: Option<Duration>,
        reports: Vec<Report>,
    ) -> (Outcome, String) {
        let (to, from) = unbounded();
        for report in reports {
            to.send(report).expect("it is there");
        }
        let mut printer = Printer {
            out: Vec::new(),
            is_quiet: true,
            begun: Instant::now(),
            events: 0,
            gaps: 0,
        };
        let ends = Ends {
            count,
            time,
            sessions: 2,
        };
        let outcome = printer.run(&from, &ends).expect("a Vec takes everything");
        (outcome, String::from_utf8(printer.out).expect("text"))
    }

    #[test]
    fn it_ends_at_the_count_the_time_the_persons_wish_or_the_last_session() {
        let event = |text: &str| Report::Event(text.to_owned());
        let text = |text: &str| text.to_owned();
        assert_eq!(
            outcome(Some(2), None, vec![event("a"), event("b"), event("c")]),
            (Outcome::Done, text("a\nb\n"))
        );
        assert_eq!(
            outcome(None, Some(Duration::ZERO), vec![]),
            (Outcome::Done, text(""))
        );
        assert_eq!(
            outcome(None, Some(Duration::ZERO), vec![event("a"), event("b")]),
            (Outcome::Done, text("")),
            "however much waits"
        );
        assert_eq!(
            outcome(Some(2), Some(Duration::ZERO), vec![]),
            (Outcome::Failed, text(""))
        );
        assert_eq!(
            outcome(
                None,
                None,
                vec![event("a"), Report::Interrupted, event("b")]
            ),
            (Outcome::Done, text("a\n"))
        );
        assert_eq!(
            outcome(
                None,
                None,
                vec![Report::Ended, event("a"), Report::Ended, event("b")]
            ),
            (Outcome::Failed, text("a\n"))
        );
    }
}
