//! The round trip of another session's pings while a fan-out runs: what one event to all costs those it is not for.
//!
//! The session has a binding of its own, so no event reaches it, and sends a ping every millisecond of the fan-out
//! whether or not the last was answered: a stall counts once for every ping that it held up.

use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::running::{Load, Waiting};
use crate::subject::{Batch, Candidate, Cpu, Scenario, Setup};
use crate::table::{Table, number, ratio};

/// Measures one candidate with `setup.sessions` sessions, in `rounds` rounds of `events` events at once.
///
/// # Errors
/// It does not start, or a session or a frame is missing.
pub(crate) fn measure(
    candidate: &Candidate,
    setup: &Setup<'_>,
    load: &Path,
    body_bytes: usize,
    series: &[(u32, u32)],
) -> io::Result<Vec<Value>> {
    let mut subject = (candidate.start)(setup)?;
    let address = subject.address();
    let more = subject.load_arguments(Scenario::Shared, setup.sessions);
    // Asleep while it waits: a spinning one would keep the pinger, which shares its core, from its answers.
    let mut clients = Load::start(load, &address, setup.sessions, &more, Waiting::Sleep)?;
    let mut rows = Vec::new();
    for &(events, rounds) in series {
        let batch = Batch {
            events,
            body_bytes,
            frame_bytes: body_bytes,
        };
        let own = subject.load_arguments(Scenario::Own, 1);
        let mut pinger = Load::start_pinger(load, &address, 1, &own)?;
        for _ in 0..rounds {
            Cpu::settled(&subject.pids())?;
            clients.arm(events)?;
            pinger.order("pings on", "pings")?;
            subject.publish(batch)?;
            clients.finish()?;
            pinger.order("pings off", "pings")?;
        }
        Cpu::settled(&subject.pids())?;
        let report = pinger.order("report", "report")?;
        let pings = &report["ping_latency_us"];
        if pings["count"] == 0 {
            return Err(io::Error::other("it answers no ping"));
        }
        let milliseconds = |name: &str| pings[name].as_f64().map(|micros| micros / 1e3);
        rows.push(json!({
            "name": candidate.name,
            "sessions": setup.sessions,
            "in_flight": events,
            "pings": pings["count"],
            "p50_ms": milliseconds("p50"),
            "p99_ms": milliseconds("p99"),
            "max_ms": milliseconds("max"),
        }));
    }
    Ok(rows)
}

/// Prints the rows.
pub(crate) fn print(rows: &[Value]) {
    let mut table = Table::new(&[
        "fairness",
        "sessions",
        "in flight",
        "pings",
        "p50 ms",
        "p99 ms",
        "ours to it",
        "max ms",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        table.row(vec![
            row["name"].as_str().unwrap_or("").to_owned(),
            row["sessions"].to_string(),
            row["in_flight"].to_string(),
            row["pings"].to_string(),
            number(figure("p50_ms"), 2),
            number(figure("p99_ms"), 2),
            ratio(figure("ours_to_it_p99")),
            number(figure("max_ms"), 2),
        ]);
    }
    table.note("The round trip of a ping by a session that gets no event, one a millisecond while all others get theirs.");
    table.print();
}
