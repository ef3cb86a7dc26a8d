//! CPU of a delivered frame, ours beside the bare loops, in rounds that take turns.
//!
//! Both servers hold the same number of sessions all the time and run on the same core. A round publishes K events
//! at once and ends when every session has received all K frames; the bare loops send frames of the very length that
//! ours sent. Taking turns makes a machine that drifts drift for all; the medians leave out what disturbed one round.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::density::micros_each;
use crate::server::{Cpu, Load, Ours, Server};

/// Events before the first figure: pages, caches and socket buffers find their size.
const WARM_UP: u32 = 8;

/// The bare server's ways: one `send` a frame, one `writev` of the K frames, one `send` of the K frames put together
/// beforehand. The first is the limit of one event in flight, the second that of several.
pub(crate) const BARE_KINDS: [&str; 3] = ["send", "writev", "merged"];

/// What one series of rounds tells.
#[derive(Default)]
struct Series {
    /// Microseconds a frame: all threads, and the main thread alone.
    cpu: Vec<f64>,
    cpu_main: Vec<f64>,
    /// Microseconds a frame of the load generator.
    load: Vec<f64>,
    /// Milliseconds from the promise to the receipt.
    p50: Vec<f64>,
    p99: Vec<f64>,
    last: Vec<f64>,
    frames: u64,
}

impl Series {
    fn add(&mut self, round: &Value, cpu: Cpu) {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let frames = number(&round["frames"]);
        let each = frames as f64;
        self.cpu.push(micros_each(cpu.all, each));
        self.cpu_main.push(micros_each(cpu.main, each));
        self.load.push(micros_each(
            Duration::from_nanos(number(&round["cpu_ns"])),
            each,
        ));
        let latency = &round["latency_us"];
        self.p50.push(number(&latency["p50"]) as f64 / 1e3);
        self.p99.push(number(&latency["p99"]) as f64 / 1e3);
        self.last.push(number(&latency["max"]) as f64 / 1e3);
        self.frames += frames;
    }

    fn json(&self) -> Value {
        json!({
            "cpu_us_per_frame": median(&self.cpu),
            "cpu_main_thread_us_per_frame": median(&self.cpu_main),
            "load_cpu_us_per_frame": median(&self.load),
            "latency_p50_ms": median(&self.p50),
            "latency_p99_ms": median(&self.p99),
            "latency_last_ms": median(&self.last),
            "frames": self.frames,
            "rounds_cpu_us_per_frame": self.cpu,
        })
    }
}

/// What to run.
pub(crate) struct Fanout<'a> {
    /// Our server; `None`: the bare loops only.
    pub(crate) server: Option<&'a Path>,
    pub(crate) bare: &'a Path,
    pub(crate) load: &'a Path,
    pub(crate) sessions: u32,
    pub(crate) body_bytes: usize,
    /// (events in flight, rounds)
    pub(crate) series: &'a [(u32, u32)],
}

impl Fanout<'_> {
    /// One JSON object for each number of events in flight.
    pub(crate) fn measure(&self) -> io::Result<Vec<Value>> {
        let mut bare = Server::start(self.bare, &[])?;
        let mut bare_clients = Load::start(self.load, &bare.address, self.sessions, &[])?;
        let mut ours = match self.server {
            None => None,
            Some(server) => {
                let mut ours = Ours::start(server, self.body_bytes)?;
                let mut clients = Load::start(self.load, &ours.server.address, self.sessions, &[])?;
                let round = clients.round(WARM_UP, || ours.publish(WARM_UP))?;
                Some((ours, clients, frame_bytes(&round)))
            }
        };
        let frame_bytes = ours
            .as_ref()
            .map_or(self.body_bytes, |(_, _, frame_bytes)| *frame_bytes);
        for kind in BARE_KINDS {
            bare_round(&mut bare, &mut bare_clients, kind, WARM_UP, frame_bytes)?;
        }
        let mut results = Vec::new();
        for &(in_flight, rounds) in self.series {
            let mut our_series = Series::default();
            let mut bare_series = BARE_KINDS.map(|_| Series::default());
            for _ in 0..rounds {
                if let Some((ours, clients, _)) = &mut ours {
                    let before = ours.server.cpu()?;
                    let round = clients.round(in_flight, || ours.publish(in_flight))?;
                    our_series.add(&round, ours.server.cpu()?.since(before));
                }
                for (series, kind) in bare_series.iter_mut().zip(BARE_KINDS) {
                    let (round, cpu) =
                        bare_round(&mut bare, &mut bare_clients, kind, in_flight, frame_bytes)?;
                    series.add(&round, cpu);
                }
            }
            let mut result = json!({
                "sessions": self.sessions,
                "in_flight": in_flight,
                "rounds": rounds,
                "frame_bytes": frame_bytes,
            });
            if ours.is_some() {
                result["ours"] = our_series.json();
            }
            for (series, kind) in bare_series.iter().zip(BARE_KINDS) {
                let mut bare = series.json();
                if ours.is_some() {
                    bare["ours_to_it_cpu"] = (median(&our_series.cpu) / median(&series.cpu)).into();
                    bare["ours_to_it_latency_last"] =
                        (median(&our_series.last) / median(&series.last)).into();
                }
                result[kind] = bare;
            }
            results.push(result);
        }
        Ok(results)
    }
}

fn bare_round(
    server: &mut Server,
    clients: &mut Load,
    kind: &str,
    in_flight: u32,
    frame_bytes: usize,
) -> io::Result<(Value, Cpu)> {
    let before = server.cpu()?;
    let order = format!("{kind} {in_flight} {frame_bytes}");
    let round = clients.round(in_flight, || server.order(&order).map(drop))?;
    Ok((round, server.cpu()?.since(before)))
}

fn frame_bytes(round: &Value) -> usize {
    let number = |name: &str| round[name].as_u64().unwrap_or(0);
    (number("bytes") / number("frames").max(1))
        .try_into()
        .unwrap_or(usize::MAX)
}

/// The middle value, of an even number the mean of both; 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (length, middle) if length % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}
