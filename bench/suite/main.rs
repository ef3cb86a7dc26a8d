//! The bench suite: `scripts/bench`, or `cargo bench --bench suite -- OPTIONS`.
//!
//! Every figure is one process's user and kernel time or resident memory, read from /proc, while the server has core
//! 0 and the load generator core 1. A frame that does not come fails the run (exit 1). Absolute times drift with the
//! machine: compare the ratios, which are from one run.

mod density;
mod fanout;
#[path = "../process.rs"]
mod process;
mod server;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

use density::Scenario;
use fanout::Fanout;

/// Measure Blackhole: bytes per idle session, CPU per connect and per delivered frame, beside a bare send loop.
#[derive(Parser)]
#[command(name = "suite", max_term_width = 100)]
struct Options {
    /// What to measure; all when none is given
    #[arg(value_enum)]
    what: Vec<What>,
    /// A tenth of the sessions, fewer rounds: shows that everything runs, not what it costs
    #[arg(long)]
    quick: bool,
    /// Idle sessions of `density`
    #[arg(long, default_value_t = 19_000)]
    density_sessions: u32,
    /// Sessions of `fanout`
    #[arg(long, default_value_t = 10_000)]
    fanout_sessions: u32,
    /// Bytes of an event's body
    #[arg(long, default_value_t = 1024)]
    event_bytes: usize,
    /// The server's program, instead of the one built with this bench
    #[arg(long, value_name = "PROGRAM")]
    server: Option<PathBuf>,
    /// The bare loops alone, without our server
    #[arg(long)]
    bare_only: bool,
    /// Write the figures to this file as JSON, with machine, commit and date
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Given by `cargo bench`; without it nothing is measured, so that `cargo test --all-targets` stays quick
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Bytes per idle session, CPU per connect, resident memory after a burst
    Density,
    /// CPU and latency of a frame with 1, 8 and 32 events in flight
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
            eprintln!("suite: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    let files = process::raise_open_files()?;
    let shrink = |sessions: u32| {
        if options.quick {
            sessions.div_ceil(10)
        } else {
            sessions
        }
    };
    let (idle, busy) = (
        shrink(options.density_sessions),
        shrink(options.fanout_sessions),
    );
    if u64::from(idle.max(busy)) + 64 > files {
        let message = format!(
            "{} sessions need as many open files, and the hard limit is {files}",
            idle.max(busy)
        );
        return Err(io::Error::other(message));
    }
    let server = options
        .server
        .as_deref()
        .unwrap_or(Path::new(env!("CARGO_BIN_EXE_blackhole")));
    let load = Path::new(env!("CARGO_BIN_EXE_blackhole-load"));
    let asked = |what| options.what.is_empty() || options.what.contains(&what);
    let mut report = machine();
    if asked(What::Density) && !options.bare_only {
        let mut rows = Vec::new();
        for scenario in [Scenario::Shared, Scenario::Own] {
            eprintln!("density: {idle} sessions, {scenario:?}");
            rows.push(density::measure(
                server,
                load,
                scenario,
                idle,
                options.event_bytes,
            )?);
        }
        print_density(&rows)?;
        report["density"] = rows.into();
    }
    if asked(What::Fanout) {
        eprintln!("fanout: {busy} sessions");
        let series: &[(u32, u32)] = if options.quick {
            &[(1, 3), (8, 3), (32, 3)]
        } else {
            &[(1, 15), (8, 9), (32, 7)]
        };
        let rows = Fanout {
            server: (!options.bare_only).then_some(server),
            bare: Path::new(env!("CARGO_BIN_EXE_bare_send")),
            load,
            sessions: busy,
            body_bytes: options.event_bytes,
            series,
        }
        .measure()?;
        print_fanout(&rows)?;
        report["fanout"] = rows.into();
    }
    println!("{}", stamp(&report));
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{report:#}\n"))?;
    }
    Ok(())
}

/// What a figure needs to mean something later.
fn machine() -> Value {
    let first_line = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .output()
            .ok()
            .filter(|output| output.status.success());
        output.map_or_else(
            || "unknown".to_owned(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    };
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let changed = first_line("git", &["status", "--porcelain", "--untracked-files=no"]);
    json!({
        "machine": model.map_or("unknown", |(_, model)| model.trim()),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "kernel": first_line("uname", &["-r"]),
        "commit": first_line("git", &["rev-parse", "--short=12", "HEAD"]),
        "changed_since": !changed.is_empty(),
        "date": first_line("date", &["--utc", "+%Y-%m-%dT%H:%M:%SZ"]),
    })
}

fn stamp(report: &Value) -> String {
    let text = |name: &str| report[name].as_str().unwrap_or("unknown").to_owned();
    let changed = if report["changed_since"] == true {
        " with changes"
    } else {
        ""
    };
    format!(
        "\n{}, {} cores, Linux {}, commit {}{changed}, {}",
        text("machine"),
        report["cores"],
        text("kernel"),
        text("commit"),
        text("date"),
    )
}

fn print_density(rows: &[Value]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "\n{:<26}{:>9}{:>14}{:>14}{:>14}{:>14}{:>12}",
        "density",
        "sessions",
        "heap B/sess.",
        "RSS B/sess.",
        "connect µs",
        "connects/s",
        "after burst"
    )?;
    for row in rows {
        let number = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
        write!(
            out,
            "{:<26}{:>9}",
            row["scenario"].as_str().unwrap_or(""),
            row["sessions"].as_u64().unwrap_or(0)
        )?;
        write!(out, "{:>14.0}", number("anonymous_bytes_per_session"))?;
        write!(out, "{:>14.0}", number("resident_bytes_per_session"))?;
        write!(
            out,
            "{:>14.1}{:>14.0}",
            number("connect_cpu_us"),
            number("connects_per_second")
        )?;
        match row["after_burst_ratio"].as_f64() {
            Some(ratio) => writeln!(out, "{ratio:>10.2} ×")?,
            None => writeln!(out, "{:>12}", "-")?,
        }
    }
    Ok(())
}

fn print_fanout(rows: &[Value]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "\n{:<14}{:>10}{:>12}{:>10}{:>12}{:>10}{:>10}{:>10}{:>12}{:>14}",
        "fanout",
        "in flight",
        "CPU µs/fr.",
        "loop",
        "load µs/fr.",
        "p50 ms",
        "p99 ms",
        "last ms",
        "frames",
        "ours to it"
    )?;
    for row in rows {
        for name in ["ours"].into_iter().chain(fanout::BARE_KINDS) {
            let series = &row[name];
            if series.is_null() {
                continue;
            }
            let number = |name: &str| series[name].as_f64().unwrap_or(f64::NAN);
            let title = if name == "ours" {
                name.to_owned()
            } else {
                format!("bare {name}")
            };
            write!(
                out,
                "{title:<14}{:>10}",
                row["in_flight"].as_u64().unwrap_or(0)
            )?;
            write!(out, "{:>12.3}", number("cpu_us_per_frame"))?;
            write!(out, "{:>10.3}", number("cpu_main_thread_us_per_frame"))?;
            write!(out, "{:>12.3}", number("load_cpu_us_per_frame"))?;
            for latency in ["latency_p50_ms", "latency_p99_ms", "latency_last_ms"] {
                write!(out, "{:>10.1}", number(latency))?;
            }
            write!(out, "{:>12}", series["frames"].as_u64().unwrap_or(0))?;
            match series["ours_to_it_cpu"].as_f64() {
                Some(ratio) => writeln!(out, "{ratio:>14.3}")?,
                None => writeln!(out)?,
            }
        }
    }
    Ok(())
}
