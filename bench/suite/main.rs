//! The bench suite: `scripts/bench OPTIONS`.
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
mod bridge;
mod deflate;
mod density;
mod fairness;
mod fanout;
mod large;
mod logins;
mod machine;
mod matching;
mod million;
mod ours;
mod peers;
mod picture;
mod plant;
mod resume;
mod running;
mod scale;
mod statistics;
mod storm;
mod subject;
mod table;
mod tls;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde_json::Value;

use fanout::{Fanout, leave_out};
use machine::Demand;
use plant::Plant;
use shared::numbers::positive;
use shared::{process, programs};
use subject::{Candidate, Kind, Scenario, Setup, compare};

/// Everything that can be measured. Ours comes first, because every other figure is compared with it.
const CANDIDATES: &[Candidate] = &[
    ours::CANDIDATE,
    ours::WITHOUT_IDS,
    bare::SEND,
    bare::WRITEV,
    bare::MERGED,
    bare::PATCHED,
    peers::NCHAN,
    peers::TOKIO,
    peers::TOKIO_DEFAULTS,
    peers::MOSQUITTO,
    peers::NATS,
    peers::WEB_MQTT,
];

/// Measure Blackhole beside other servers and bare send loops: bytes a session, CPU a connect, CPU and latency a frame.
#[derive(Parser)]
#[command(name = "scripts/bench", max_term_width = 100)]
struct Options {
    /// What to measure; all but `deflate`, `scale`, `plant` and `million` when none is given
    #[arg(value_enum)]
    what: Vec<What>,
    /// A tenth of the sessions, fewer rounds: shows that everything runs, not what it costs
    #[arg(long)]
    quick: bool,
    /// Every number of sessions, every size of events, every number in flight, `deflate`, `scale` and `plant`: takes an hour
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
    /// Sessions of `million`
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    sessions: u32,
    /// Sessions of one server, and of one load generator, in `million`; nine tenths of the open files that one may have
    /// (ulimit -Hn) when it is not given, 100,000 at most
    #[arg(long, value_name = "SESSIONS", value_parser = clap::value_parser!(u32).range(1..))]
    sessions_per_process: Option<u32>,
    /// Subscribe every session of `million` with a request id of its own
    #[arg(long)]
    request_ids: bool,
    /// Memory that `million` leaves to others; when less is left, it stops
    #[arg(long, default_value_t = 2.0, value_name = "GB", value_parser = positive)]
    keep_free: f64,
    /// The server's program, instead of the one built with this bench
    #[arg(long, value_name = "PROGRAM")]
    server: Option<PathBuf>,
    /// Write the figures to this file as JSON, with machine, commit and date
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw bytes a session and CPU a frame into this file, as an SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Measure nothing: print and draw the figures of this file, which --json wrote
    #[arg(long, value_name = "FILE", conflicts_with_all = ["what", "json", "quick", "full"])]
    from: Option<PathBuf>,
}

/// Those of the suite `tls` alone.
const TLS_CANDIDATES: [Candidate; 3] = [tls::OURS, tls::NGINX, tls::HAPROXY];

fn candidate_names() -> clap::builder::PossibleValuesParser {
    CANDIDATES
        .iter()
        .chain(&TLS_CANDIDATES)
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
    /// The subscription index: time and bytes up to a million subscriptions
    Match,
    /// RabbitMQ to sessions: events a second, CPU of the loop and of the AMQP threads
    Bridge,
    /// Ping round trip of a session that gets nothing while all others do
    Fairness,
    /// All sessions reconnect at once: time until all are live, peak memory
    Storm,
    /// One event of 1 MB to 1,000 sessions: peak memory
    Large,
    /// Logins with the platform's tokens: sessions a second, CPU and bytes of each, a ping meanwhile
    Logins,
    /// Ids, history, and all sessions resuming at once; a stream on the broker
    Resume,
    /// TLS here, beside nginx and HAProxy that take it off before: memory, CPU of frames and handshakes, pings, a storm
    Tls,
    /// Permessage-deflate: bytes on the wire, CPU of a frame, bytes of a session, beside a server that deflates by session; only
    /// when named, or with --full
    Deflate,
    /// Cost as sessions grow, up to 190,000 in ten processes; only when named, or with --full
    Scale,
    /// A million sessions, or --sessions, on one port: time, memory and CPU of both ends; only when named
    Million,
    /// A mix of events through RabbitMQ to many accounts, at rising rates; only when named, or with --full
    Plant,
}

impl What {
    /// In JSON.
    fn name(self) -> &'static str {
        match self {
            Self::Density => "density",
            Self::Fanout => "fanout",
            Self::Match => "match",
            Self::Bridge => "bridge",
            Self::Fairness => "fairness",
            Self::Storm => "storm",
            Self::Large => "large",
            Self::Logins => "logins",
            Self::Resume => "resume",
            Self::Tls => "tls",
            Self::Deflate => "deflate",
            Self::Scale => "scale",
            Self::Million => "million",
            Self::Plant => "plant",
        }
    }

    fn print(self, rows: &[Value]) {
        match self {
            _ if rows.is_empty() => {}
            Self::Density => density::print(rows),
            Self::Fanout => fanout::print(rows),
            Self::Match => matching::print(rows),
            Self::Bridge => bridge::print(rows),
            Self::Fairness => fairness::print(rows),
            Self::Storm => storm::print(rows),
            Self::Large => large::print(rows),
            Self::Logins => logins::print(rows),
            Self::Resume => resume::print(rows),
            Self::Tls => tls::print(rows),
            Self::Deflate => deflate::print(rows),
            Self::Scale => scale::print(rows),
            Self::Million => million::print(rows),
            Self::Plant => plant::print(rows),
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
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

/// What `fanout` measures with one number of sessions: every body size with every series.
struct Cells {
    sessions: u32,
    body_bytes: &'static [usize],
    /// (in flight, rounds)
    series: &'static [(u32, u32)],
}

const fn cells(
    sessions: u32,
    body_bytes: &'static [usize],
    series: &'static [(u32, u32)],
) -> Cells {
    Cells {
        sessions,
        body_bytes,
        series,
    }
}

/// How much is measured.
struct Extent {
    /// Divides every number of sessions.
    shrink: u32,
    fanout: &'static [Cells],
    /// Time of one subject for one series of rounds.
    time_max: Duration,
    /// (in flight, rounds) of `fairness`.
    fairness: &'static [(u32, u32)],
    /// Rounds of `bridge`, of `large`, of `resume`, of `tls` and of each series of `scale`.
    rounds: u32,
    /// Time of one rate of `plant`.
    plant_seconds: f64,
}

/// Sessions of `fairness`, `storm`, `logins`, `resume` and `tls`.
const MOST_SESSIONS: u32 = 19_000;

const QUICK: Extent = Extent {
    shrink: 10,
    fanout: &[cells(10_000, &[1024], &[(1, 3), (8, 3), (32, 3)])],
    time_max: Duration::from_secs(1),
    fairness: &[(1, 3), (8, 2)],
    rounds: 2,
    plant_seconds: 1.0,
};

const USUAL: Extent = Extent {
    shrink: 1,
    fanout: &[
        cells(10_000, &[1024], &[(1, 15), (8, 9), (32, 7)]),
        cells(1_000, &[1024], &[(8, 9)]),
        cells(19_000, &[1024], &[(1, 7), (8, 5)]),
    ],
    time_max: Duration::from_secs(4),
    fairness: &[(1, 5), (8, 3)],
    rounds: 3,
    plant_seconds: 5.0,
};

const EVERY: &[(u32, u32)] = &[(1, 15), (8, 9), (32, 7)];
const SIZES: &[usize] = &[256, 1024, 4096];

const FULL: Extent = Extent {
    shrink: 1,
    fanout: &[
        cells(1_000, SIZES, EVERY),
        cells(10_000, SIZES, EVERY),
        cells(19_000, SIZES, EVERY),
    ],
    time_max: Duration::from_secs(6),
    fairness: &[(1, 15), (8, 7)],
    rounds: 5,
    plant_seconds: 8.0,
};

fn run(options: &Options) -> io::Result<()> {
    let report = match &options.from {
        Some(file) => read(file)?,
        None => measure(options)?,
    };
    println!("\n{}", machine::stamp_line(&report));
    match &options.plot {
        None => Ok(()),
        Some(file) => picture::draw(&report, file)
            .map_err(|error| io::Error::other(format!("{}: {error}", file.display()))),
    }
}

/// The figures of a run before, printed.
fn read(file: &Path) -> io::Result<Value> {
    let report: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    for suite in What::value_variants() {
        if let Some(rows) = report[suite.name()].as_array() {
            suite.print(rows);
        }
    }
    Ok(report)
}

fn measure(options: &Options) -> io::Result<Value> {
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
        server: match &options.server {
            Some(program) => program.clone(),
            None => programs::beside("blackhole", "blackhole")?,
        },
        load: programs::beside("blackhole-load", "blackhole-bench")?,
        files,
        options,
    };
    let mut report = machine::stamp();
    for suite in What::value_variants() {
        let is_usual = match suite {
            What::Scale | What::Plant | What::Deflate => options.full,
            What::Million => false,
            _ => true,
        };
        if options.what.contains(suite) || (options.what.is_empty() && is_usual) {
            let rows = bench.measure(*suite)?;
            suite.print(&rows);
            report[suite.name()] = rows.into();
            // After each, so that what fails later does not take with it what was measured.
            if let Some(file) = &options.json {
                std::fs::write(file, format!("{report:#}\n"))?;
            }
        }
    }
    Ok(report)
}

/// One run of the suites.
struct Bench<'a> {
    extent: &'static Extent,
    candidates: Vec<Candidate>,
    server: PathBuf,
    load: PathBuf,
    /// Limit of open files of one process.
    files: u64,
    options: &'a Options,
}

impl Bench<'_> {
    fn measure(&self, suite: What) -> io::Result<Vec<Value>> {
        match suite {
            What::Density => self.density(),
            What::Fanout => self.fanout(),
            What::Match => Ok(self.matching()),
            What::Bridge => self.bridge(),
            What::Fairness => self.fairness(),
            What::Storm => self.storm(),
            What::Large => self.large(),
            What::Logins => self.logins(),
            What::Resume => self.resume(),
            What::Tls => self.tls(),
            What::Deflate => self.deflate(),
            What::Scale => self.scale(),
            What::Million => self.million(),
            What::Plant => self.plant(),
        }
    }

    /// Fails, saying why, when this machine cannot hold `processes` times `sessions`.
    fn check(&self, processes: u32, sessions: u32) -> io::Result<()> {
        let demand = Demand {
            processes,
            sessions,
            spare_files: 0,
            memory: None,
            keep_free: 0,
            is_burst: true,
        };
        let obstacles = machine::obstacles(demand, self.files);
        if obstacles.is_empty() {
            return Ok(());
        }
        Err(io::Error::other(obstacles.join("\n       ")))
    }

    /// What `measure` says of every candidate but the limits; a peer that is not there or fails is left out.
    fn each(
        &self,
        sessions: u32,
        measure: impl Fn(&Candidate, &Setup<'_>) -> io::Result<Vec<Value>>,
    ) -> io::Result<Vec<Value>> {
        let mut rows = Vec::new();
        for candidate in &self.candidates {
            if candidate.kind == Kind::Limit {
                continue;
            }
            let setup = Setup {
                server: &self.server,
                sessions: sessions.min(candidate.sessions_max.unwrap_or(u32::MAX)),
            };
            match measure(candidate, &setup) {
                Ok(told) => rows.extend(told),
                Err(error) => leave_out(candidate, &error)?,
            }
        }
        Ok(rows)
    }

    fn density(&self) -> io::Result<Vec<Value>> {
        let processes = self.options.processes;
        let sessions = self.shrunk(self.options.density_sessions);
        self.check(processes, sessions)?;
        let mut rows = Vec::new();
        for scenario in [Scenario::Shared, Scenario::Own] {
            rows.extend(self.each(sessions, |candidate, setup| {
                if scenario == Scenario::Own && !candidate.has_bindings {
                    return Ok(Vec::new());
                }
                eprintln!("density: {}, {}", candidate.name, scenario.title());
                density::measure(
                    candidate, setup, &self.load, scenario, processes, BODY_BYTES,
                )
                .map(|row| vec![row])
            })?);
        }
        let figures = [
            ("resident_bytes_per_session", "ours_to_it_bytes"),
            ("connect_cpu_us", "ours_to_it_connect"),
        ];
        compare(&mut rows, &["scenario"], &figures);
        Ok(rows)
    }

    fn fanout(&self) -> io::Result<Vec<Value>> {
        let mut rows = Vec::new();
        for cells in self.extent.fanout {
            let sessions = self.shrunk(cells.sessions);
            self.check(self.candidates.len() as u32, sessions)?;
            eprintln!("fanout: {sessions} sessions");
            rows.extend(
                Fanout {
                    candidates: &self.candidates,
                    server: &self.server,
                    load: &self.load,
                    sessions,
                    body_bytes: cells.body_bytes,
                    series: cells.series,
                    time_max: self.extent.time_max,
                }
                .measure()?,
            );
        }
        Ok(rows)
    }

    fn matching(&self) -> Vec<Value> {
        let sizes: Vec<u32> = [1_000, 10_000, 100_000, 1_000_000]
            .into_iter()
            .filter(|&size| size <= 1_000_000 / self.extent.shrink)
            .collect();
        eprintln!("match: up to {} subscriptions", sizes[sizes.len() - 1]);
        matching::measure(&sizes)
    }

    fn bridge(&self) -> io::Result<Vec<Value>> {
        let Extent { shrink, rounds, .. } = *self.extent;
        match bridge::measure(&self.server, &self.load, BODY_BYTES, rounds, shrink) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("bridge: skipped, not installed: {error}");
                Ok(Vec::new())
            }
            rows => rows,
        }
    }

    fn fairness(&self) -> io::Result<Vec<Value>> {
        let sessions = self.shrunk(MOST_SESSIONS);
        self.check(1, sessions)?;
        let mut rows = self.each(sessions, |candidate, setup| {
            eprintln!("fairness: {}", candidate.name);
            fairness::measure(
                candidate,
                setup,
                &self.load,
                BODY_BYTES,
                self.extent.fairness,
            )
        })?;
        compare(&mut rows, &["in_flight"], &[("p99_ms", "ours_to_it_p99")]);
        Ok(rows)
    }

    fn storm(&self) -> io::Result<Vec<Value>> {
        let sessions = self.shrunk(MOST_SESSIONS);
        self.check(1, sessions)?;
        let mut rows = self.each(sessions, |candidate, setup| {
            eprintln!("storm: {}", candidate.name);
            storm::measure(candidate, setup, &self.load)
        })?;
        let figures = [
            ("seconds", "ours_to_it_seconds"),
            ("cpu_us", "ours_to_it_cpu"),
            ("peak_resident_bytes", "ours_to_it_peak"),
        ];
        compare(&mut rows, &["at_once"], &figures);
        Ok(rows)
    }

    fn large(&self) -> io::Result<Vec<Value>> {
        let sessions = self.shrunk(large::SESSIONS);
        self.check(1, sessions)?;
        let mut rows = self.each(sessions, |candidate, setup| {
            eprintln!("large: {}", candidate.name);
            let row = large::measure(candidate, setup, &self.load, self.extent.rounds)?;
            Ok(vec![row])
        })?;
        let figures = [
            ("peak_above_idle_bytes", "ours_to_it_peak"),
            ("cpu_us_per_frame", "ours_to_it_cpu"),
        ];
        compare(&mut rows, &["sessions"], &figures);
        Ok(rows)
    }

    fn logins(&self) -> io::Result<Vec<Value>> {
        let sessions = self.shrunk(MOST_SESSIONS);
        self.check(1, sessions)?;
        let setup = Setup {
            server: &self.server,
            sessions,
        };
        match logins::measure(&setup, &self.load) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("logins: skipped, not installed: {error}");
                Ok(Vec::new())
            }
            rows => rows,
        }
    }

    fn resume(&self) -> io::Result<Vec<Value>> {
        let sessions = self.shrunk(MOST_SESSIONS);
        self.check(1, sessions)?;
        let setup = Setup {
            server: &self.server,
            sessions,
        };
        let extent = resume::Extent {
            shrink: self.extent.shrink,
            rounds: self.extent.rounds,
        };
        resume::measure(&setup, &self.load, BODY_BYTES, &extent)
    }

    fn tls(&self) -> io::Result<Vec<Value>> {
        let sessions = self.shrunk(MOST_SESSIONS);
        self.check(1, sessions)?;
        let names = &self.options.subjects;
        let rows = tls::Plan {
            server: &self.server,
            load: &self.load,
            extent: tls::Extent {
                shrink: self.extent.shrink,
                sessions: MOST_SESSIONS,
                rounds: self.extent.rounds,
                fanout: self.extent.fanout[0].series,
                time_max: self.extent.time_max,
                body_bytes: BODY_BYTES,
            },
            wants: &|name| names.is_empty() || names.iter().any(|wanted| wanted == name),
        }
        .measure();
        match rows {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("tls: skipped, not installed: {error}");
                Ok(Vec::new())
            }
            rows => rows,
        }
    }

    fn deflate(&self) -> io::Result<Vec<Value>> {
        let [some, many] = deflate::SESSIONS.map(|sessions| self.shrunk(sessions));
        let sessions = [deflate::FEWEST, some, many];
        self.check(
            deflate::SERVERS,
            sessions.iter().max().copied().unwrap_or(0),
        )?;
        let Extent {
            fanout, time_max, ..
        } = *self.extent;
        deflate::measure(&deflate::Plan {
            server: &self.server,
            load: &self.load,
            sessions: &sessions,
            series: fanout.first().map_or(&[], |cells| cells.series),
            time_max,
            body_bytes: BODY_BYTES,
        })
    }

    fn scale(&self) -> io::Result<Vec<Value>> {
        let mut rows = Vec::new();
        for (processes, sessions) in scale::SIZES {
            let sessions = self.shrunk(sessions);
            self.check(processes, sessions)?;
            eprintln!("scale: {processes} × {sessions} sessions");
            let setup = Setup {
                server: &self.server,
                sessions,
            };
            rows.push(scale::measure(
                &ours::CANDIDATE,
                &setup,
                &self.load,
                processes,
                BODY_BYTES,
                self.extent.rounds,
            )?);
        }
        Ok(rows)
    }

    fn million(&self) -> io::Result<Vec<Value>> {
        let plan = million::Plan {
            sessions: self.shrunk(self.options.sessions),
            sessions_per_process: self.options.sessions_per_process,
            request_ids: self.options.request_ids,
            keep_free: (self.options.keep_free * 1e9) as u64,
            body_bytes: BODY_BYTES,
        };
        million::measure(&self.server, &self.load, &plan, self.files).map(|row| vec![row])
    }

    fn plant(&self) -> io::Result<Vec<Value>> {
        self.check(1, self.shrunk(plant::SESSIONS))?;
        let names = plant::SUBJECTS.into_iter();
        let subjects: Vec<_> = names
            .filter(|name| self.candidates.iter().any(|one| one.name == *name))
            .collect();
        let Extent {
            shrink,
            plant_seconds: seconds,
            ..
        } = *self.extent;
        Plant {
            server: &self.server,
            load: &self.load,
            shrink,
            seconds,
        }
        .measure(&subjects)
    }

    /// This many sessions, or a part of them in a quick run.
    fn shrunk(&self, sessions: u32) -> u32 {
        sessions.div_ceil(self.extent.shrink)
    }
}
