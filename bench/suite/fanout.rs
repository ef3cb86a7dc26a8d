//! CPU and latency of a delivered frame, every subject beside ours, in rounds that take turns.
//!
//! All subjects hold their sessions all the time and run on the same core. A round publishes K events at once and
//! ends when every session has received all K frames; the limits send frames of the very length that ours sent, with
//! request ids or without.
//! Taking turns makes a machine that drifts drift for all; the medians leave out what disturbed one round.
//!
//! Ours is measured with a request id for each session and without: every subject is compared with the first, and
//! with the second too, so that the row of the second tells what request ids cost.

use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::ours;
use crate::running::{Load, Waiting, micros_each};
use crate::statistics::median;
use crate::subject::{Batch, Candidate, Cpu, Kind, ROUND_GAP, Scenario, Setup, Subject};
use crate::table::{Table, is_held_back_by_load, number, percent, ratio};

/// Events at once before the first figure: pages, caches and socket buffers find their size.
const WARM_UP: u32 = 8;

/// A frame is about this much longer than its event's body, and this much more where it has a request id; only for
/// limits that are measured without ours.
const FRAME_OVERHEAD: usize = 250;
const REQUEST_ID_OVERHEAD: usize = 52;

/// Length of ours' frames, without request ids and with them.
#[derive(Clone, Copy)]
struct FrameBytes([usize; 2]);

impl FrameBytes {
    fn guess(body_bytes: usize) -> Self {
        let without = body_bytes + FRAME_OVERHEAD;
        Self([without, without + REQUEST_ID_OVERHEAD])
    }

    fn of(self, candidate: &Candidate) -> usize {
        self.0[usize::from(candidate.has_request_ids)]
    }
}

/// What one series of rounds tells.
#[derive(Default)]
struct Series {
    /// Microseconds a frame: all threads, and the main thread alone.
    cpu: Vec<f64>,
    cpu_main: Vec<f64>,
    /// Microseconds a frame that the load generator worked.
    load: Vec<f64>,
    /// Shares of the round that the server and the load generator were busy.
    server_busy: Vec<f64>,
    load_busy: Vec<f64>,
    /// Milliseconds from the promise to the receipt.
    p50: Vec<f64>,
    p99: Vec<f64>,
    last: Vec<f64>,
    frame_bytes: usize,
    frames: u64,
    spent: Duration,
}

impl Series {
    fn add(&mut self, round: &Value, cpu: Cpu) {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let frames = number(&round["frames"]);
        let each = frames as f64;
        self.cpu.push(micros_each(cpu.all, each));
        self.cpu_main.push(micros_each(cpu.main, each));
        let busy = Duration::from_nanos(number(&round["busy_ns"]));
        self.load.push(micros_each(busy, each));
        let elapsed = Duration::from_micros(number(&round["elapsed_us"]).max(1));
        self.server_busy.push(cpu.all.div_duration_f64(elapsed));
        self.load_busy.push(busy.div_duration_f64(elapsed));
        let latency = &round["latency_us"];
        self.p50.push(number(&latency["p50"]) as f64 / 1e3);
        self.p99.push(number(&latency["p99"]) as f64 / 1e3);
        self.last.push(number(&latency["max"]) as f64 / 1e3);
        self.frame_bytes = bytes_of_a_frame(round);
        self.frames += frames;
    }

    fn json(&self) -> Value {
        json!({
            "cpu_us_per_frame": median(&self.cpu),
            "cpu_main_thread_us_per_frame": median(&self.cpu_main),
            "load_us_per_frame": median(&self.load),
            "server_busy_share": median(&self.server_busy),
            "load_busy_share": median(&self.load_busy),
            "latency_p50_ms": median(&self.p50),
            "latency_p99_ms": median(&self.p99),
            "latency_last_ms": median(&self.last),
            "frame_bytes": self.frame_bytes,
            "frames": self.frames,
            "rounds": self.cpu.len(),
            "rounds_cpu_us_per_frame": self.cpu,
        })
    }
}

/// What to run.
pub(crate) struct Fanout<'a> {
    pub(crate) candidates: &'a [Candidate],
    pub(crate) server: &'a Path,
    pub(crate) load: &'a Path,
    pub(crate) sessions: u32,
    pub(crate) body_bytes: &'a [usize],
    /// (events in flight, rounds at most)
    pub(crate) series: &'a [(u32, u32)],
    /// A subject that has used this much time for one series has no further round in it.
    pub(crate) time_max: Duration,
}

/// One subject with its sessions.
struct Runner {
    candidate: Candidate,
    subject: Box<dyn Subject>,
    clients: Load,
    sessions: u32,
    last_round: Instant,
}

impl Runner {
    fn start(candidate: &Candidate, fanout: &Fanout<'_>) -> io::Result<Self> {
        let most = candidate.sessions_max.unwrap_or(u32::MAX);
        let sessions = fanout.sessions.min(most);
        let setup = Setup {
            server: fanout.server,
            sessions,
        };
        let subject = (candidate.start)(&setup)?;
        let more = subject.load_arguments(Scenario::Shared, sessions);
        let address = subject.address();
        let clients = Load::start(fanout.load, &address, sessions, &more, Waiting::Spin)?;
        Ok(Self {
            candidate: *candidate,
            subject,
            clients,
            sessions,
            last_round: Instant::now(),
        })
    }

    /// Publishes `events` events, as [`Load::round`]; also what that cost.
    fn round(
        &mut self,
        events: u32,
        body_bytes: usize,
        frame_bytes: FrameBytes,
    ) -> io::Result<(Value, Cpu)> {
        let batch = Batch {
            events,
            body_bytes,
            frame_bytes: frame_bytes.of(&self.candidate),
        };
        thread::sleep(ROUND_GAP.saturating_sub(self.last_round.elapsed()));
        let before = Cpu::settled(&self.subject.pids())?;
        let (subject, clients) = (&mut self.subject, &mut self.clients);
        let round = clients.round(batch.events, || subject.publish(batch))?;
        self.last_round = Instant::now();
        Ok((round, Cpu::settled(&self.subject.pids())?.since(before)))
    }
}

impl Fanout<'_> {
    /// One JSON object for each body size and number of events in flight. A peer that is not installed or fails is
    /// told on stderr and left out.
    ///
    /// # Errors
    /// Ours or a limit fails.
    pub(crate) fn measure(&self) -> io::Result<Vec<Value>> {
        let mut runners = Vec::new();
        for candidate in self.candidates {
            match Runner::start(candidate, self) {
                Ok(runner) => runners.push(runner),
                Err(error) => leave_out(candidate, &error)?,
            }
        }
        let mut results = Vec::new();
        for &body_bytes in self.body_bytes {
            let mut frame_bytes = FrameBytes::guess(body_bytes);
            retain(&mut runners, |runner| {
                let (round, _) = runner.round(WARM_UP, body_bytes, frame_bytes)?;
                if runner.candidate.kind == Kind::Ours {
                    let has_request_ids = runner.candidate.has_request_ids;
                    frame_bytes.0[usize::from(has_request_ids)] = bytes_of_a_frame(&round);
                }
                Ok(())
            })?;
            for &(events, rounds) in self.series {
                let mut row = self.series(&mut runners, rounds, |runner| {
                    runner.round(events, body_bytes, frame_bytes)
                })?;
                row["body_bytes"] = body_bytes.into();
                row["in_flight"] = events.into();
                results.push(row);
            }
        }
        Ok(results)
    }

    fn series(
        &self,
        runners: &mut Vec<Runner>,
        rounds: u32,
        measure: impl Fn(&mut Runner) -> io::Result<(Value, Cpu)>,
    ) -> io::Result<Value> {
        let mut all: Vec<Series> = Vec::new();
        all.resize_with(runners.len(), Series::default);
        for _ in 0..rounds {
            let mut at = 0;
            let mut failed = Vec::new();
            retain(runners, |runner| {
                let series = &mut all[at];
                at += 1;
                if series.spent > self.time_max {
                    return Ok(());
                }
                let started = Instant::now();
                let (round, cpu) = measure(runner).inspect_err(|_| failed.push(at - 1))?;
                series.add(&round, cpu);
                series.spent += started.elapsed();
                Ok(())
            })?;
            for at in failed.into_iter().rev() {
                all.remove(at);
            }
        }
        let mut subjects = Vec::new();
        let named = |name: &str| {
            let at = runners.iter().position(|one| one.candidate.name == name)?;
            Some(&all[at])
        };
        let ours = named(ours::CANDIDATE.name);
        let without_ids = named(ours::WITHOUT_IDS.name);
        for (runner, series) in runners.iter().zip(&all) {
            let mut subject = series.json();
            subject["name"] = runner.candidate.name.into();
            subject["sessions"] = runner.sessions.into();
            let cpu = |ours: &Series| median(&ours.cpu) / median(&series.cpu);
            subject["ours_to_it_cpu"] = ours.map(cpu).into();
            subject["without_ids_to_it_cpu"] = without_ids.map(cpu).into();
            // Of fewer sessions the last is served sooner.
            if let Some(ours) = ours.filter(|_| runner.sessions == self.sessions) {
                let last = median(&ours.last) / median(&series.last);
                subject["ours_to_it_latency_last"] = last.into();
            }
            subjects.push(subject);
        }
        Ok(json!({
            "sessions": self.sessions,
            "subjects": subjects,
        }))
    }
}

/// Tells on stderr that `candidate` is left out, when that may be.
///
/// # Errors
/// It may not: it is ours, or a limit.
pub(crate) fn leave_out(candidate: &Candidate, error: &io::Error) -> io::Result<()> {
    if candidate.kind != Kind::Peer {
        return Err(io::Error::other(format!("{}: {error}", candidate.name)));
    }
    let what = match error.kind() {
        io::ErrorKind::NotFound => "skipped, not installed",
        _ => "left out, failed",
    };
    eprintln!("  {}: {what}: {error}", candidate.name);
    Ok(())
}

/// Keeps the runners for which `step` succeeds, as [`leave_out`] allows.
fn retain(
    runners: &mut Vec<Runner>,
    mut step: impl FnMut(&mut Runner) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = 0;
    while at < runners.len() {
        match step(&mut runners[at]) {
            Ok(()) => at += 1,
            Err(error) => leave_out(&runners.remove(at).candidate, &error)?,
        }
    }
    Ok(())
}

/// Length of the frames of a round, header included.
fn bytes_of_a_frame(round: &Value) -> usize {
    let number = |name: &str| round[name].as_u64().unwrap_or(0);
    (number("bytes") / number("frames").max(1))
        .try_into()
        .unwrap_or(usize::MAX)
}

/// Prints the rows.
pub(crate) fn print(rows: &[Value]) {
    let mut table = Table::new(&[
        "fanout",
        "sessions",
        "body B",
        "in flight",
        "CPU µs/frame",
        "ours to it",
        "without ids to it",
        "its loop",
        "p50 ms",
        "p99 ms",
        "last ms",
        "ours to it",
        "frame B",
        "frames",
        "server busy",
        "load busy",
        "load µs/frame",
    ]);
    for row in rows {
        for subject in row["subjects"].as_array().into_iter().flatten() {
            let figure = |name: &str| subject[name].as_f64();
            let is_held_back = is_held_back_by_load(subject);
            let mark = if is_held_back { " !" } else { "" };
            table.row(vec![
                subject["name"].as_str().unwrap_or("").to_owned(),
                subject["sessions"].to_string(),
                row["body_bytes"].to_string(),
                row["in_flight"].to_string(),
                number(figure("cpu_us_per_frame"), 3),
                ratio(figure("ours_to_it_cpu")),
                ratio(figure("without_ids_to_it_cpu")),
                number(figure("cpu_main_thread_us_per_frame"), 3),
                number(figure("latency_p50_ms"), 1),
                number(figure("latency_p99_ms"), 1),
                number(figure("latency_last_ms"), 1) + mark,
                ratio(figure("ours_to_it_latency_last")),
                subject["frame_bytes"].to_string(),
                subject["frames"].to_string(),
                percent(figure("server_busy_share")),
                percent(figure("load_busy_share")),
                number(figure("load_us_per_frame"), 3),
            ]);
            if is_held_back {
                table.note(
                    "!: the load generator's core was saturated and the server's was not: the latency is the \
                     generator's, the CPU a frame is still the server's.",
                );
            }
        }
    }
    for row in rows {
        if let Some(ratio) = ids_to_none(row) {
            table.note(&format!(
                "a request id each : none, CPU: {ratio:.3} ({} sessions, {} B, {} in flight)",
                row["sessions"], row["body_bytes"], row["in_flight"]
            ));
        }
    }
    table.note(
        "CPU µs/frame = CPU seconds of the server a million frames, all its threads and processes.",
    );
    table.print();
}

/// CPU of a frame with a request id for each session, to that without.
fn ids_to_none(row: &Value) -> Option<f64> {
    let subjects = row["subjects"].as_array()?;
    let without = subjects
        .iter()
        .find(|subject| subject["name"] == ours::WITHOUT_IDS.name)?;
    without["ours_to_it_cpu"].as_f64()
}
