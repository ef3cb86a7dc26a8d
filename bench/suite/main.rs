//! The bench suite: `scripts/bench`, or `cargo bench --bench suite -- OPTIONS`.
//!
//! Every figure is one process's user and kernel time or resident memory, read from /proc, while the server has core
//! 0 and the load generator core 1. A frame that does not come fails the run (exit 1). Absolute times drift with the
//! machine: compare the ratios, which are from one run.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command talks on its own streams"
)]

mod bare;
mod density;
mod fanout;
mod machine;
mod ours;
#[path = "../process.rs"]
mod process;
mod running;
mod subject;
mod table;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde_json::Value;

use fanout::{Fanout, leave_out};
use subject::{CANDIDATES, Candidate, Scenario, Setup};

/// Measure Blackhole beside other servers and bare send loops: bytes a session, CPU a connect, CPU and latency a frame.
#[derive(Parser)]
#[command(name = "scripts/bench", max_term_width = 100)]
struct Options {
    /// What to measure; all but `scale` when none is given
    #[arg(value_enum)]
    what: Vec<What>,
    /// A tenth of the sessions, fewer rounds: shows that everything runs, not what it costs
    #[arg(long)]
    quick: bool,
    /// Every number of sessions, every size of events, every number in flight, and `scale`: takes an hour
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// Whom to measure, by name, separated by commas; all when none is given
    #[arg(long, value_delimiter = ',', value_name = "NAME", value_parser = candidate_names())]
    subjects: Vec<String>,
    /// Idle sessions of a process in `density`
    #[arg(long, default_value_t = 19_000)]
    density_sessions: u32,
    /// Servers of each kind in `density`, each with that many sessions
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    processes: u32,
    /// The server's program, instead of the one built with this bench
    #[arg(long, value_name = "PROGRAM")]
    server: Option<PathBuf>,
    /// Write the figures to this file as JSON, with machine, commit and date
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Given by `cargo bench`; without it nothing is measured, so that `cargo test --all-targets` stays quick
    #[arg(long, hide = true)]
    bench: bool,
}

fn candidate_names() -> clap::builder::PossibleValuesParser {
    CANDIDATES
        .iter()
        .map(|candidate| candidate.name)
        .collect::<Vec<_>>()
        .into()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Bytes per idle session, CPU per connect, resident memory after a burst
    Density,
    /// CPU and latency of a frame, by sessions, size and events in flight
    Fanout,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !options.bench {
        eprintln!("nothing measured: run scripts/bench, or cargo bench --bench suite");
        return ExitCode::SUCCESS;
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::from(1)
        }
    }
}

/// Body size of an event where no other is asked for.
const BODY_BYTES: usize = 1024;

/// How much is measured.
struct Extent {
    /// Divides every number of sessions.
    shrink: u32,
    /// (sessions, body sizes, (in flight, rounds)) of `fanout`.
    fanout: &'static [(u32, &'static [usize], &'static [(u32, u32)])],
    /// Time of one subject for one series of rounds.
    time_max: Duration,
}

const QUICK: Extent = Extent {
    shrink: 10,
    fanout: &[(10_000, &[1024], &[(1, 3), (8, 3), (32, 3)])],
    time_max: Duration::from_secs(1),
};

const USUAL: Extent = Extent {
    shrink: 1,
    fanout: &[
        (10_000, &[1024], &[(1, 15), (8, 9), (32, 7)]),
        (1_000, &[1024], &[(8, 9)]),
        (19_000, &[1024], &[(1, 7), (8, 5)]),
    ],
    time_max: Duration::from_secs(4),
};

const EVERY: &[(u32, u32)] = &[(1, 15), (8, 9), (32, 7)];
const SIZES: &[usize] = &[256, 1024, 4096];

const FULL: Extent = Extent {
    shrink: 1,
    fanout: &[
        (1_000, SIZES, EVERY),
        (10_000, SIZES, EVERY),
        (19_000, SIZES, EVERY),
    ],
    time_max: Duration::from_secs(6),
};

fn run(options: &Options) -> io::Result<()> {
    let files = process::raise_open_files()?;
    let extent = match options {
        Options { quick: true, .. } => &QUICK,
        Options { full: true, .. } => &FULL,
        _ => &USUAL,
    };
    let bench = Bench {
        extent,
        candidates: CANDIDATES
            .iter()
            .filter(|candidate| {
                options.subjects.is_empty()
                    || options.subjects.iter().any(|name| name == candidate.name)
            })
            .copied()
            .collect(),
        server: options
            .server
            .as_deref()
            .unwrap_or(Path::new(env!("CARGO_BIN_EXE_blackhole"))),
        load: Path::new(env!("CARGO_BIN_EXE_blackhole-load")),
        files,
        options,
    };
    let asked = |what| options.what.is_empty() || options.what.contains(&what);
    let mut report = machine::stamp();
    if asked(What::Density) {
        report["density"] = bench.density()?;
    }
    if asked(What::Fanout) {
        report["fanout"] = bench.fanout()?;
    }
    println!("\n{}", machine::stamp_line(&report));
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{report:#}\n"))?;
    }
    Ok(())
}

/// One run of the suites.
struct Bench<'a> {
    extent: &'static Extent,
    candidates: Vec<Candidate>,
    server: &'a Path,
    load: &'a Path,
    /// Limit of open files of one process.
    files: u64,
    options: &'a Options,
}

impl Bench<'_> {
    /// Fails, saying why, when this machine cannot hold `processes` times `sessions`.
    fn check(&self, processes: u32, sessions: u32) -> io::Result<()> {
        let obstacles = machine::obstacles(processes, sessions, self.files);
        if obstacles.is_empty() {
            return Ok(());
        }
        Err(io::Error::other(obstacles.join("\n       ")))
    }

    fn density(&self) -> io::Result<Value> {
        let processes = self.options.processes;
        let sessions = self.options.density_sessions.div_ceil(self.extent.shrink);
        self.check(processes, sessions)?;
        let mut rows = Vec::new();
        for scenario in [Scenario::Shared, Scenario::Own] {
            for candidate in &self.candidates {
                if !density::is_measured(candidate) {
                    continue;
                }
                let setup = Setup {
                    server: self.server,
                    sessions: sessions.min(candidate.sessions_max.unwrap_or(u32::MAX)),
                };
                eprintln!("density: {}, {}", candidate.name, scenario.title());
                let row = density::measure(
                    candidate, &setup, self.load, scenario, processes, BODY_BYTES,
                );
                match row {
                    Ok(row) => rows.push(row),
                    Err(error) => leave_out(candidate, &error)?,
                }
            }
        }
        density::compare(&mut rows);
        density::print(&rows);
        Ok(rows.into())
    }

    fn fanout(&self) -> io::Result<Value> {
        let mut rows = Vec::new();
        for &(sessions, body_bytes, series) in self.extent.fanout {
            let sessions = sessions.div_ceil(self.extent.shrink);
            self.check(self.candidates.len() as u32, sessions)?;
            eprintln!("fanout: {sessions} sessions");
            rows.extend(
                Fanout {
                    candidates: &self.candidates,
                    server: self.server,
                    load: self.load,
                    sessions,
                    body_bytes,
                    series,
                    time_max: self.extent.time_max,
                }
                .measure()?,
            );
        }
        fanout::print(&rows);
        Ok(rows.into())
    }
}
