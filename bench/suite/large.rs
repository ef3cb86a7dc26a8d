//! One large event to many sessions: the most memory that a server takes for it, beyond what it had idle.
//!
//! A server that makes a frame of its own for every session, or puts one into a buffer of every socket, holds the event
//! as many times as there are sessions; one that shares it holds it once, and what is on its way is the kernel's,
//! whose sockets on a loopback address take an event of this size whole.

use std::io;
use std::path::Path;
use std::thread::sleep;

use serde_json::{Value, json};

use crate::density::AFTER_BURST;
use crate::running::{Load, Waiting, micros_each};
use crate::statistics::median;
use crate::subject::{Batch, Candidate, Cpu, Scenario, Setup, memory_of};
use crate::table::{Table, number, ratio};
use shared::process::forget_peak;

/// Sessions that get the event.
pub(crate) const SESSIONS: u32 = 1_000;

/// Bytes of the event's body: just below 1 MiB, the most that some of the servers take.
const BODY_BYTES: usize = 1_000_000;

/// Measures one candidate with `setup.sessions` sessions, in `rounds` rounds of one event; of the memory, the round
/// counts that took most.
///
/// # Errors
/// It does not start, or a session or a frame is missing.
pub(crate) fn measure(
    candidate: &Candidate,
    setup: &Setup<'_>,
    load: &Path,
    rounds: u32,
) -> io::Result<Value> {
    let mut subject = (candidate.start)(setup)?;
    let more = subject.load_arguments(Scenario::Shared, setup.sessions);
    let address = subject.address();
    let mut clients = Load::start(load, &address, setup.sessions, &more, Waiting::Sleep)?;
    let batch = Batch {
        events: 1,
        body_bytes: BODY_BYTES,
        frame_bytes: BODY_BYTES,
    };
    let (mut cpu, mut last) = (Vec::new(), Vec::new());
    let (mut idle, mut above, mut after) = (0, 0, 0);
    for round in 0..rounds {
        let pids = subject.pids();
        let before = Cpu::settled(&pids)?;
        let resident = memory_of(&pids)?.resident;
        if round == 0 {
            idle = resident;
        }
        pids.iter().try_for_each(|&pid| forget_peak(pid))?;
        let told = clients.round(1, || subject.publish(batch))?;
        cpu.push(micros_each(
            Cpu::settled(&pids)?.since(before).all,
            setup.sessions,
        ));
        last.push(told["latency_us"]["max"].as_f64().unwrap_or(f64::NAN) / 1e3);
        above = above.max(memory_of(&pids)?.peak.saturating_sub(idle));
        sleep(AFTER_BURST);
        after = after.max(memory_of(&pids)?.resident);
    }
    Ok(json!({
        "name": candidate.name,
        "sessions": setup.sessions,
        "body_bytes": BODY_BYTES,
        "rounds": rounds,
        "idle_resident_bytes": idle,
        "peak_above_idle_bytes": above,
        "after_resident_bytes": after,
        "cpu_us_per_frame": median(&cpu),
        "latency_last_ms": median(&last),
    }))
}

/// Prints the rows.
pub(crate) fn print(rows: &[Value]) {
    let mut table = Table::new(&[
        "large",
        "sessions",
        "body B",
        "idle MiB",
        "peak above idle MiB",
        "ours to it",
        "after MiB",
        "CPU µs/frame",
        "ours to it",
        "last ms",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        let mebibytes = |name: &str| number(figure(name).map(|bytes| bytes / 1_048_576.0), 1);
        table.row(vec![
            row["name"].as_str().unwrap_or("").to_owned(),
            row["sessions"].to_string(),
            row["body_bytes"].to_string(),
            mebibytes("idle_resident_bytes"),
            mebibytes("peak_above_idle_bytes"),
            ratio(figure("ours_to_it_peak")),
            mebibytes("after_resident_bytes"),
            number(figure("cpu_us_per_frame"), 0),
            ratio(figure("ours_to_it_cpu")),
            number(figure("latency_last_ms"), 0),
        ]);
    }
    table.note(
        "One event at a time. Memory is the server's own; what its sockets hold is the kernel's.",
    );
    table.print();
}
