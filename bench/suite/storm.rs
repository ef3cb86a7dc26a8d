//! All sessions are cut at once and come back at once, as after a balancer's restart: time until all are live again,
//! and the most memory that took.

use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::density::CONNECT_RATE;
use crate::running::{Load, Waiting, micros_each};
use crate::subject::{Candidate, Cpu, Scenario, Setup, memory_of};
use crate::table::{Table, number, ratio};
use shared::process::forget_peak;

/// Measures one candidate with `setup.sessions` sessions; one row for each number of sessions that come back at once.
///
/// # Errors
/// It does not start, or a session does not come back.
pub(crate) fn measure(
    candidate: &Candidate,
    setup: &Setup<'_>,
    load: &Path,
) -> io::Result<Vec<Value>> {
    let subject = (candidate.start)(setup)?;
    let address = subject.address();
    let mut more = subject.load_arguments(Scenario::Shared, setup.sessions);
    more.extend(CONNECT_RATE.map(str::to_owned));
    let mut clients = Load::start(load, &address, setup.sessions, &more, Waiting::Sleep)?;
    let mut rows = Vec::new();
    for at_once in [512, setup.sessions] {
        let pids = subject.pids();
        let (idle, cpu) = (memory_of(&pids)?, Cpu::settled(&pids)?);
        pids.iter().try_for_each(|&pid| forget_peak(pid))?;
        // Its end resets every connection; the new one begins while the server still finds that out.
        drop(clients);
        let mut arguments = more.clone();
        arguments.extend(["--under-way".to_owned(), at_once.to_string()]);
        clients = Load::start(load, &address, setup.sessions, &arguments, Waiting::Sleep)?;
        let cpu = Cpu::settled(&pids)?.since(cpu);
        let after = memory_of(&pids)?;
        rows.push(json!({
            "name": candidate.name,
            "sessions": setup.sessions,
            "at_once": at_once,
            "seconds": clients.ready["settled_seconds"],
            "ready_p50_ms": clients.ready["ready_latency_us"]["p50"].as_f64().map(|us| us / 1e3),
            "ready_max_ms": clients.ready["ready_latency_us"]["max"].as_f64().map(|us| us / 1e3),
            "cpu_us": micros_each(cpu.all, setup.sessions),
            "idle_resident_bytes": idle.resident,
            "peak_resident_bytes": after.peak,
        }));
    }
    Ok(rows)
}

/// Prints the rows.
pub(crate) fn print(rows: &[Value]) {
    let mut table = Table::new(&[
        "storm",
        "sessions",
        "at once",
        "all live s",
        "ours to it",
        "p50 ms",
        "last ms",
        "CPU µs each",
        "ours to it",
        "idle MB",
        "peak MB",
        "ours to it",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        let megabytes = |name: &str| number(figure(name).map(|bytes| bytes / 1e6), 1);
        table.row(vec![
            row["name"].as_str().unwrap_or("").to_owned(),
            row["sessions"].to_string(),
            row["at_once"].to_string(),
            number(figure("seconds"), 2),
            ratio(figure("ours_to_it_seconds")),
            number(figure("ready_p50_ms"), 1),
            number(figure("ready_max_ms"), 1),
            number(figure("cpu_us"), 1),
            ratio(figure("ours_to_it_cpu")),
            megabytes("idle_resident_bytes"),
            megabytes("peak_resident_bytes"),
            ratio(figure("ours_to_it_peak")),
        ]);
    }
    table.note(
        "at once: sessions connecting, upgrading or subscribing at a time. Beyond the kernel's queue of connections \
         (net.core.somaxconn) a client's SYN is sent again after 1 s. CPU: the end of the old session and the new one.",
    );
    table.print();
}
