//! Several processes that are one load generator: each has a part of the sessions, which a process's descriptors bound.
//!
//! The parent starts itself again with the options of each part behind its own. A part says how it gets on by lines on
//! stdout, [`FromPart`]; when all are settled the parent lets all hold at once, by a line on their stdin. A part does
//! not outlive its parent.

use std::io::{self, BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use crate::engine::{SESSIONS_PER_SOURCE, Totals};
use crate::outcome::Outcome;
use crate::{Options, Progress};

/// A line of a part.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromPart {
    /// Counts so far.
    Progress(Totals),
    /// Every session is live or lost; the part waits for its stdin.
    Settled(Totals),
    /// The end.
    Outcome(Box<Outcome>),
}

impl FromPart {
    /// Writes it to stdout.
    ///
    /// # Errors
    /// The parent is gone.
    pub(crate) fn tell(&self) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", serde_json::to_string(self)?)?;
        stdout.flush()
    }
}

/// Lets this part end with its parent.
///
/// # Errors
/// The system refuses.
pub(crate) fn end_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// What part `part` has of all sessions, and the first of its source addresses.
pub(crate) fn share(options: &Options, part: u32) -> Options {
    let (sessions, processes) = (options.sessions, options.processes);
    let begin = |part: u32| (u64::from(sessions) * u64::from(part) / u64::from(processes)) as u32;
    let largest = sessions.div_ceil(processes) as usize;
    let sources = largest.div_ceil(SESSIONS_PER_SOURCE) as u32;
    Options {
        sessions: begin(part + 1) - begin(part),
        sessions_before: begin(part),
        connect_rate: options.connect_rate / f64::from(processes),
        under_way: options.under_way.div_ceil(processes),
        first_source: Ipv4Addr::from(u32::from(options.first_source) + part * sources),
        ..options.clone()
    }
}

/// Runs all parts to their end.
///
/// # Errors
/// A part cannot be started, or ends before it has told its outcome.
pub(crate) fn run(options: &Options, progress: &mut Progress) -> io::Result<Outcome> {
    let (to_parent, told) = channel();
    let parts = (0..options.processes).map(|part| Part::start(part, to_parent.clone()));
    let mut parts: Vec<_> = parts.collect::<io::Result<_>>()?;
    drop(to_parent);
    let mut totals = vec![Totals::default(); parts.len()];
    let mut settled = 0;
    let mut outcomes = Vec::new();
    while outcomes.len() < parts.len() {
        let (part, line) = next(&told)?;
        match line? {
            FromPart::Progress(sum) => totals[part] = sum,
            FromPart::Settled(sum) => {
                totals[part] = sum;
                settled += 1;
                if settled == parts.len() {
                    parts.iter_mut().try_for_each(Part::hold)?;
                }
            }
            FromPart::Outcome(outcome) => outcomes.push(*outcome),
        }
        let mut sum = Totals::default();
        totals.iter().for_each(|part| sum += *part);
        progress.tell(sum)?;
    }
    let mut all = Outcome::default();
    outcomes.into_iter().for_each(|outcome| all.add(outcome));
    Ok(all)
}

type Told = (usize, io::Result<FromPart>);

fn next(told: &Receiver<Told>) -> io::Result<Told> {
    told.recv()
        .map_err(|_| io::Error::other("a part ended without its outcome"))
}

/// A child; killed on drop.
struct Part(Child);

impl Part {
    fn start(part: u32, to_parent: Sender<Told>) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .args(["--part", &part.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take();
        let stdout = stdout.ok_or_else(|| io::Error::other("a part has no stdout"))?;
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let line = line.and_then(|line| Ok(serde_json::from_str(&line)?));
                if to_parent.send((part as usize, line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self(child))
    }

    fn hold(&mut self) -> io::Result<()> {
        let stdin = self.0.stdin.as_mut();
        let stdin = stdin.ok_or_else(|| io::Error::other("a part has no stdin"))?;
        writeln!(stdin, "hold")?;
        stdin.flush()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn the_parts_have_all_sessions_once_and_no_source_address_in_common() {
        let options = Options::parse_from(["x", "--sessions", "20003", "--processes", "3"]);
        let parts: Vec<_> = (0..3).map(|part| share(&options, part)).collect();
        let mut next = 0;
        let mut first_free = u32::from(options.first_source);
        for part in &parts {
            assert_eq!(part.sessions_before, next);
            next += part.sessions;
            assert!(u32::from(part.first_source) >= first_free);
            let sources = (part.sessions as usize).div_ceil(SESSIONS_PER_SOURCE);
            first_free = u32::from(part.first_source) + sources as u32;
        }
        assert_eq!(next, 20_003);
    }
}
