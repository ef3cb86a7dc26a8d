//! What a session and a frame cost as sessions become more: within one process, and in ten processes on one core.
//!
//! The load generators sleep while they wait, because several share a core; so a frame costs the server more here
//! than in `fanout`, where none has to be woken.

use std::io;
use std::path::Path;
use std::thread;

use serde_json::{Value, json};

use crate::density::Fleet;
use crate::running::{Waiting, micros_each};
use crate::statistics::median;
use crate::subject::{Batch, Candidate, Cpu, ROUND_GAP, Scenario, Setup};
use crate::table::{Table, number};

/// (Processes, sessions of each).
pub(crate) const SIZES: [(u32, u32); 5] = [
    (1, 1_000),
    (1, 5_000),
    (1, 10_000),
    (1, 19_000),
    (10, 19_000),
];

/// Events in flight of the two series.
const IN_FLIGHT: [u32; 2] = [1, 8];

/// Measures one candidate in `processes` servers, with `rounds` rounds a series.
///
/// # Errors
/// A server does not start, or a session or a frame is missing.
pub(crate) fn measure(
    candidate: &Candidate,
    setup: &Setup<'_>,
    load: &Path,
    processes: u32,
    body_bytes: usize,
    rounds: u32,
) -> io::Result<Value> {
    let mut fleet = Fleet::start(
        candidate,
        setup,
        load,
        Scenario::Shared,
        processes,
        Waiting::Sleep,
    )?;
    let mut result = fleet.figures()?;
    result["name"] = candidate.name.into();
    let one = Batch {
        events: 1,
        body_bytes,
        frame_bytes: body_bytes,
    };
    result["fanout"] = IN_FLIGHT
        .into_iter()
        .map(|events| series(&mut fleet, Batch { events, ..one }, rounds))
        .collect::<io::Result<_>>()?;
    Ok(result)
}

/// Rounds in which every server sends `batch` to all its sessions.
fn series(fleet: &mut Fleet, batch: Batch, rounds: u32) -> io::Result<Value> {
    let pids = fleet.pids();
    let frames = f64::from(fleet.sessions()) * f64::from(batch.events);
    let (mut cpu, mut last) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        thread::sleep(ROUND_GAP);
        for (_, clients) in &mut fleet.servers {
            clients.arm(batch.events)?;
        }
        let before = Cpu::settled(&pids)?;
        for (subject, _) in &mut fleet.servers {
            subject.publish(batch)?;
        }
        let mut latest = 0.0;
        for (_, clients) in &mut fleet.servers {
            let told = clients.finish()?;
            latest = f64::max(
                latest,
                told["latency_us"]["max"].as_f64().unwrap_or(f64::NAN),
            );
        }
        // The first warms up.
        if round > 0 {
            cpu.push(micros_each(Cpu::settled(&pids)?.since(before).all, frames));
            last.push(latest / 1e3);
        }
    }
    Ok(json!({
        "in_flight": batch.events,
        "rounds": rounds,
        "frames": frames * f64::from(rounds),
        "cpu_us_per_frame": median(&cpu),
        "latency_last_ms": median(&last),
    }))
}

/// Prints the rows.
pub(crate) fn print(rows: &[Value]) {
    let mut table = Table::new(&[
        "scale",
        "processes",
        "sessions",
        "heap B/session",
        "RSS B/session",
        "kernel B/socket",
        "connect CPU µs",
        "1 event: µs/frame",
        "last ms",
        "8 events: µs/frame",
        "last ms",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        let of = |at: usize, name: &str| row["fanout"][at][name].as_f64();
        table.row(vec![
            row["name"].as_str().unwrap_or("").to_owned(),
            row["processes"].to_string(),
            row["sessions"].to_string(),
            number(figure("anonymous_bytes_per_session"), 0),
            number(figure("resident_bytes_per_session"), 0),
            number(figure("kernel_bytes_per_socket"), 0),
            number(figure("connect_cpu_us"), 1),
            number(of(0, "cpu_us_per_frame"), 3),
            number(of(0, "latency_last_ms"), 1),
            number(of(1, "cpu_us_per_frame"), 3),
            number(of(1, "latency_last_ms"), 1),
        ]);
    }
    table.note("All processes of a row share one core, all their load generators the other.");
    table.print();
}
