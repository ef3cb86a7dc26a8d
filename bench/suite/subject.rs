//! What is measured: Blackhole, the bare loops that are its limits, and other servers, all in one shape.
//!
//! A [`Candidate`] is one that could be measured on this machine; started, it is a [`Subject`]. The suites know
//! nothing else of them.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ours;
use shared::process::{Memory, cpu, memory};

/// One that could be measured.
#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    /// In tables, in JSON and for `--subjects`; without blanks.
    pub(crate) name: &'static str,
    /// What it is to ours.
    pub(crate) kind: Kind,
    /// Sessions that it can stand here; it is measured with fewer than the others where they have more.
    pub(crate) sessions_max: Option<u32>,
    /// Whether sessions can have a binding (topic, channel, subject) each.
    pub(crate) has_bindings: bool,
    /// Whether each session has a request id of its own, which every one of its events carries.
    pub(crate) has_request_ids: bool,
    /// Starts it. `Err` with [`io::ErrorKind::NotFound`]: it is not installed, with how to install it as the text;
    /// then it is skipped with a line saying so.
    pub(crate) start: fn(&Setup<'_>) -> io::Result<Box<dyn Subject>>,
}

/// What a candidate is to ours. A failure of a peer is told and the peer left out; any other ends the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Blackhole, with request ids or without.
    Ours,
    /// A loop that does nothing but send: what no server can beat. Measured in `fanout` only.
    Limit,
    /// Another server that users could take instead.
    Peer,
}

/// What a candidate may need to know to be started.
pub(crate) struct Setup<'a> {
    /// Blackhole's program.
    pub(crate) server: &'a Path,
    /// Sessions that will be opened, for settings like a connection limit.
    pub(crate) sessions: u32,
}

/// How the sessions' subscriptions differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// All on one binding of one account: an event reaches every session.
    Shared,
    /// Each on an account and a binding (topic, channel, subject) of its own.
    Own,
}

impl Scenario {
    /// As tables and JSON name it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Shared => "one binding for all",
            Self::Own => "own account and binding",
        }
    }
}

/// Events to be published at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// How many.
    pub(crate) events: u32,
    /// Bytes of an event's body, at least 200: what a peer publishes.
    pub(crate) body_bytes: usize,
    /// Bytes of the frame that ours makes of it, header included: what a limit sends.
    pub(crate) frame_bytes: usize,
}

/// A server that runs, pinned to [`crate::running::SERVER_CORE`], until it is dropped.
pub(crate) trait Subject {
    /// The processes whose CPU and memory are its cost; the first has the loop, if one has.
    fn pids(&self) -> Vec<u32>;

    /// Where websocket clients connect, `IP:PORT`.
    fn address(&self) -> String;

    /// Arguments of `blackhole-load` beside address and number of sessions: dialect, path, subscribe.
    fn load_arguments(&self, scenario: Scenario, sessions: u32) -> Vec<String>;

    /// Publishes `batch` as nearly at once as it can; every session under [`Scenario::Shared`] is to receive all its
    /// events. The time that this takes is part of their latency; it may return before they are sent.
    ///
    /// # Errors
    /// It has ended.
    fn publish(&mut self, batch: Batch) -> io::Result<()>;
}

/// Adds to each row of a suite the ratio of ours to it: `figures` are (figure, name of its ratio), and rows with the
/// same `keys` belong together. Quadratic in the rows, which are few.
pub(crate) fn compare(rows: &mut [Value], keys: &[&str], figures: &[(&str, &str)]) {
    compare_with(ours::CANDIDATE.name, rows, keys, figures);
}

/// As [`compare`], of the rows of another name to all.
pub(crate) fn compare_with(
    name: &str,
    rows: &mut [Value],
    keys: &[&str],
    figures: &[(&str, &str)],
) {
    for at in 0..rows.len() {
        let row = &rows[at];
        let belongs = |other: &&Value| keys.iter().all(|&key| other[key] == row[key]);
        let ours = rows.iter().filter(belongs);
        let ours = ours.into_iter().find(|row| row["name"] == name);
        let Some(ours) = ours.cloned() else {
            continue;
        };
        for &(figure, name) in figures {
            if let (Some(ours), Some(its)) = (ours[figure].as_f64(), rows[at][figure].as_f64()) {
                rows[at][name] = (ours / its).into();
            }
        }
    }
}

/// Least time between two rounds of a subject: longer than TCP's retransmission timeout. After such a gap the kernel
/// acknowledges a connection's next 16 segments at once, at the sender's cost, which makes a lone event 15 to 40 %
/// dearer; so it does for all subjects in all rounds, and not for those alone that others kept waiting.
pub(crate) const ROUND_GAP: Duration = Duration::from_millis(400);

/// Longest wait for a server's CPU time to stand still after a round.
const QUIET_PATIENCE: Duration = Duration::from_secs(1);

/// CPU time is taken when it has stood still for this long.
const QUIET: Duration = Duration::from_millis(10);

/// CPU time of processes: of all their threads, and of the first process's main thread, which runs the loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cpu {
    pub(crate) all: Duration,
    pub(crate) main: Duration,
}

impl Cpu {
    /// So far.
    ///
    /// # Errors
    /// A process is gone.
    pub(crate) fn of(pids: &[u32]) -> io::Result<Self> {
        let mut total = Self::default();
        for (at, &pid) in pids.iter().enumerate() {
            for thread in cpu(pid)? {
                total.all += thread.ran;
                if at == 0 && thread.id == pid {
                    total.main += thread.ran;
                }
            }
        }
        Ok(total)
    }

    /// So far, taken when it stands still, or after [`QUIET_PATIENCE`].
    ///
    /// # Errors
    /// A process is gone.
    pub(crate) fn settled(pids: &[u32]) -> io::Result<Self> {
        let deadline = Instant::now() + QUIET_PATIENCE;
        let mut last = Self::of(pids)?;
        loop {
            std::thread::sleep(QUIET);
            let now = Self::of(pids)?;
            if now.since(last).all < QUIET / 100 || Instant::now() > deadline {
                return Ok(now);
            }
            last = now;
        }
    }

    /// What was used since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            all: self.all.saturating_sub(before.all),
            main: self.main.saturating_sub(before.main),
        }
    }
}

/// Resident memory of `pids` together.
///
/// # Errors
/// A process is gone.
pub(crate) fn memory_of(pids: &[u32]) -> io::Result<Memory> {
    pids.iter().try_fold(Memory::default(), |total, &pid| {
        let one = memory(pid)?;
        Ok(Memory {
            resident: total.resident + one.resident,
            anonymous: total.anonymous + one.anonymous,
            peak: total.peak + one.peak,
        })
    })
}
