//! All sessions lose their connection, miss ten seconds of events, and come back at once with their cursors, beside the same
//! storm without cursors; and what the sessions that stayed notice of it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use super::crowd::{Ask, Crowd};
use super::events::{Events, NEIGHBOURS, NEIGHBOURS_RATE};
use crate::ours::Ours;
use crate::running::{LOAD_CORE, Load, micros_each};
use crate::subject::{Cpu, Setup, Subject, memory_of};
use crate::table::{Table, number};
use shared::process::forget_peak;

/// Accounts of those who come back, for 19,000 sessions.
const SESSIONS_AN_ACCOUNT: u32 = 10;

/// How long they are away while events are published.
const AWAY: Duration = Duration::from_secs(10);

/// AMQP bindings that have been in force for 5 s outlive their last subscriber.
const IN_FORCE: Duration = Duration::from_secs(6);

/// Until the server has found out that connections are gone, and until all events have come.
const SETTLE: Duration = Duration::from_secs(1);

/// Events that each neighbour gets while its latency is measured: three seconds.
const NEIGHBOUR_EVENTS: u32 = 3 * NEIGHBOURS_RATE / NEIGHBOURS;

/// `history_bytes`: the default has no room for what comes while they are away and until the last is back, some 30 s at
/// 1,500 events a second.
const HISTORY_BYTES: &str = "134217728";

/// One row for each storm, and one for each time that the neighbours were measured.
///
/// # Errors
/// A session is not resumed, or gets more or fewer events than there were.
pub(super) fn measure(
    setup: &Setup<'_>,
    load: &Path,
    body_bytes: usize,
    shrink: u32,
) -> io::Result<Vec<Value>> {
    eprintln!("resume: {} sessions come back", setup.sessions);
    let folder = tempfile::tempdir()?;
    let path = folder.path().display().to_string();
    let more = ["--admin-dir", &path, "--history-bytes", HISTORY_BYTES];
    let mut server = Ours::start_with_more(setup, &more)?;
    let address = server.address();
    let pids = server.pids();
    let mut more = vec!["--msg-id-latency".to_owned()];
    more.extend(["--accounts".to_owned(), NEIGHBOURS.to_string()]);
    let mut neighbours = Load::start_first(load, &address, NEIGHBOURS, &more)?;
    let accounts = (setup.sessions / SESSIONS_AN_ACCOUNT).max(1);
    let address = address.parse().map_err(io::Error::other)?;
    let mut events = Events::new(&mut server, accounts, body_bytes);
    let mut crowd = Crowd::new(address, setup.sessions, accounts)?;
    on_core(LOAD_CORE, || {
        let mut rows = Vec::new();
        crowd.come(Ask::FromNow, &mut events)?;
        crowd.stay(IN_FORCE, &mut events)?;

        neighbours.arm(NEIGHBOUR_EVENTS)?;
        events.run(u64::from(NEIGHBOUR_EVENTS * NEIGHBOURS));
        crowd.stay(Duration::from_secs(4), &mut events)?;
        rows.push(latency("no storm", &neighbours.finish()?));

        let ways = [
            ("without cursors", Ask::Plain, Duration::ZERO),
            ("with cursors", Ask::Behind, AWAY / shrink),
        ];
        for (name, ask, away) in ways {
            events.pause();
            crowd.stay(SETTLE, &mut events)?;
            crowd.forget();
            let before: Vec<u32> = events.of_account.clone();
            let idle = memory_of(&pids)?;
            crowd.go();
            sleep(SETTLE);
            events.run(0);
            crowd.stay(away, &mut events)?;
            let missed = events.of_account.iter().zip(&before);
            let missed: u32 = missed.map(|(now, before)| now - before).sum();
            Cpu::settled(&pids)?;
            pids.iter().try_for_each(|&pid| forget_peak(pid))?;
            let (cpu, turns) = (Cpu::of(&pids)?, Turns::read(folder.path())?);
            neighbours.arm(NEIGHBOUR_EVENTS)?;
            events.run(u64::from(NEIGHBOUR_EVENTS * NEIGHBOURS));
            let took = crowd.come(ask, &mut events)?;
            let cpu = Cpu::of(&pids)?.since(cpu);
            let (turns, after) = (Turns::read(folder.path())?.since(&turns), memory_of(&pids)?);
            // So that the neighbours get theirs.
            crowd.stay(Duration::from_secs(3), &mut events)?;
            rows.push(latency(&format!("storm {name}"), &neighbours.finish()?));
            events.pause();
            crowd.stay(SETTLE, &mut events)?;
            if ask == Ask::Behind {
                let sent = events.of_account.iter().zip(&before);
                let sent: Vec<u32> = sent.map(|(now, before)| now - before).collect();
                let wrong = crowd.wrong(&sent);
                if wrong > 0 {
                    let message =
                        format!("{wrong} sessions got more or fewer events than there were");
                    return Err(io::Error::other(message));
                }
            }
            let seconds = took.as_secs_f64();
            rows.push(json!({
                "part": "storm",
                "name": name,
                "sessions": setup.sessions,
                "accounts": accounts,
                "missed_events": missed,
                "replayed_frames": crowd.replayed(),
                "seconds": seconds,
                "sessions_per_second": f64::from(setup.sessions) / seconds,
                "cpu_us": micros_each(cpu.all, setup.sessions),
                "server_busy_share": cpu.all.as_secs_f64() / seconds,
                "longest_turn_ms_at_most": turns.longest_ms(),
                "turns_over_2_ms": turns.over(0.002),
                "turns": turns.count(),
                "idle_resident_bytes": idle.resident,
                "peak_above_idle_bytes": after.peak.saturating_sub(idle.resident),
            }));
            if ask == Ask::Plain {
                // Cursors again, and bindings that are old enough.
                events.pause();
                crowd.go();
                sleep(SETTLE);
                crowd.come(Ask::FromNow, &mut events)?;
                crowd.stay(IN_FORCE, &mut events)?;
            }
        }
        Ok(rows)
    })
}

/// The neighbours' latency in one round.
fn latency(name: &str, round: &Value) -> Value {
    let millis = |quantile: &str| round["latency_us"][quantile].as_f64().map(|us| us / 1e3);
    json!({
        "part": "neighbours",
        "name": name,
        "frames": round["frames"],
        "p50_ms": millis("p50"),
        "p99_ms": millis("p99"),
        "max_ms": millis("max"),
    })
}

/// Runs `run` with this thread on `core`, and lets it go anywhere again: the crowd is a load generator.
fn on_core<T>(core: &str, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let allowed = allowed.map_or(core, str::trim).to_owned();
    pin(core)?;
    let ran = run();
    pin(&allowed)?;
    ran
}

fn pin(cores: &str) -> io::Result<()> {
    let pid = std::process::id().to_string();
    let output = Command::new("taskset")
        .args(["--cpu-list", "--pid", cores, &pid])
        .output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "taskset: {}",
            String::from_utf8_lossy(&output.stderr)
        ))),
    }
}

/// The turns of a server's loop: how many took at most so many seconds, by the histogram of its metrics.
struct Turns(Vec<(f64, u64)>);

impl Turns {
    /// Reads the page of the only process that has its admin socket in `folder`.
    fn read(folder: &Path) -> io::Result<Self> {
        let sockets = std::fs::read_dir(folder)?.filter_map(Result::ok);
        let socket = sockets
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|it| it == "sock"))
            .ok_or_else(|| io::Error::other("no admin socket"))?;
        let mut stream = UnixStream::connect(socket)?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        let buckets = page.lines().filter_map(|line| {
            let rest = line.strip_prefix("blackhole_turn_seconds_bucket{le=\"")?;
            let (bound, count) = rest.split_once("\"} ")?;
            let bound = match bound {
                "+Inf" => f64::INFINITY,
                bound => bound.parse().ok()?,
            };
            Some((bound, count.parse().ok()?))
        });
        let buckets: Vec<(f64, u64)> = buckets.collect();
        match buckets.is_empty() {
            true => Err(io::Error::other("no turns on the page")),
            false => Ok(Self(buckets)),
        }
    }

    fn since(&self, before: &Self) -> Self {
        let both = self.0.iter().zip(&before.0);
        Self(
            both.map(|((bound, now), (_, before))| (*bound, now - before))
                .collect(),
        )
    }

    fn count(&self) -> u64 {
        self.0.last().map_or(0, |(_, count)| *count)
    }

    /// The bound that all of them are within; none when one was beyond the last.
    fn longest_ms(&self) -> Option<f64> {
        let all = self.count();
        let within = self.0.iter().find(|(_, count)| *count == all);
        within
            .map(|(bound, _)| bound * 1e3)
            .filter(|bound| bound.is_finite())
    }

    /// How many took longer than this bound of the histogram.
    fn over(&self, seconds: f64) -> u64 {
        let within = self.0.iter().find(|(bound, _)| *bound >= seconds);
        self.count() - within.map_or(0, |(_, count)| *count)
    }
}

/// Prints the rows.
pub(super) fn print(storms: &[&Value], neighbours: &[&Value]) {
    let mut table = Table::new(&[
        "sessions come back",
        "sessions",
        "missed events",
        "replayed frames",
        "all current s",
        "sessions/s",
        "CPU µs each",
        "server busy",
        "longest turn ≤ ms",
        "turns > 2 ms",
        "of turns",
        "idle MB",
        "peak above MB",
    ]);
    for row in storms {
        let figure = |name: &str| row[name].as_f64();
        let megabytes = |name: &str| number(figure(name).map(|bytes| bytes / 1e6), 1);
        table.row(vec![
            row["name"].as_str().unwrap_or("").to_owned(),
            row["sessions"].to_string(),
            row["missed_events"].to_string(),
            row["replayed_frames"].to_string(),
            number(figure("seconds"), 2),
            number(figure("sessions_per_second"), 0),
            number(figure("cpu_us"), 1),
            crate::table::percent(figure("server_busy_share")),
            number(figure("longest_turn_ms_at_most"), 1),
            row["turns_over_2_ms"].to_string(),
            row["turns"].to_string(),
            megabytes("idle_resident_bytes"),
            megabytes("peak_above_idle_bytes"),
        ]);
    }
    table.note(
        "From the first connect until the last session is live and has all that it missed; 1,000 events a second go on \
         meanwhile. Every session got every event of its account, once. The clients share one core with the publisher.",
    );
    table.print();
    let mut table = Table::new(&["neighbours", "frames", "p50 ms", "p99 ms", "max ms"]);
    for row in neighbours {
        let figure = |name: &str| number(row[name].as_f64(), 2);
        table.row(vec![
            row["name"].as_str().unwrap_or("").to_owned(),
            row["frames"].to_string(),
            figure("p50_ms"),
            figure("p99_ms"),
            figure("max_ms"),
        ]);
    }
    table.note("Live events of 50 sessions that stay, 500 events a second, from their publishing to their receipt, for 3 s from the begin of each storm.");
    table.print();
}
