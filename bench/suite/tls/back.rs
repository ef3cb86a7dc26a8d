//! All connections are cut at once and all sessions come back at once, with tickets and without.

use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::sides::{Front, Port, Side};
use super::{AT_ONCE, reopened};
use crate::running::micros_each;
use crate::subject::{Cpu, Setup, Subject, memory_of};
use crate::table::{Table, number, percent, ratio};
use shared::process::forget_peak;

/// Measures one port of one side; a row for each number of sessions that come back at a time, and with TLS for each kind of
/// handshake.
///
/// # Errors
/// It does not start, or a session does not come back.
pub(super) fn measure(
    front: Front,
    port: Port,
    setup: &Setup<'_>,
    load: &Path,
) -> io::Result<Vec<Value>> {
    let side = Side::start(setup, front)?;
    let pids = side.pids();
    let mut clients = side.clients(load, port, setup.sessions)?;
    let kinds: &[(&str, bool)] = match port {
        Port::Plain => &[("plain", false)],
        Port::Tls => &[("full", false), ("resumed", true)],
    };
    let mut rows = Vec::new();
    for at_once in [AT_ONCE, setup.sessions] {
        for &(name, tickets) in kinds {
            let (idle, cpu) = (memory_of(&pids)?, Cpu::settled(&pids)?);
            pids.iter().try_for_each(|&pid| forget_peak(pid))?;
            // The new ones come while the server still finds out that the old ones are gone.
            clients.cut()?;
            reopened(&mut clients, tickets, at_once)?;
            let cpu = Cpu::settled(&pids)?.since(cpu);
            let after = memory_of(&pids)?;
            let ready = &clients.ready;
            let seconds = ready["settled_seconds"].as_f64().unwrap_or(0.0);
            let busy = ready["busy_seconds"].as_f64().unwrap_or(0.0);
            rows.push(json!({
                "part": "back",
                "handshake": name,
                "sessions": setup.sessions,
                "at_once": if at_once == AT_ONCE { json!(at_once) } else { json!("all") },
                "seconds": seconds,
                "per_second": f64::from(setup.sessions) / seconds,
                "ready_p50_ms": ready["ready_latency_us"]["p50"].as_f64().map(|us| us / 1e3),
                "ready_max_ms": ready["ready_latency_us"]["max"].as_f64().map(|us| us / 1e3),
                "cpu_us": micros_each(cpu.all, setup.sessions),
                "idle_resident_bytes": idle.resident,
                "peak_resident_bytes": after.peak,
                "server_busy_share": cpu.all.as_secs_f64() / seconds,
                "load_busy_share": busy / seconds,
            }));
        }
    }
    Ok(rows)
}

/// Prints the rows.
pub(super) fn print(rows: &[&Value]) {
    let mut table = Table::new(&[
        "tls: back",
        "handshake",
        "sessions",
        "at once",
        "all live s",
        "a second",
        "ours to it",
        "p50 ms",
        "last ms",
        "CPU µs each",
        "ours to it",
        "idle MB",
        "peak MB",
        "server busy",
        "load busy",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        let megabytes = |name: &str| number(figure(name).map(|bytes| bytes / 1e6), 1);
        table.row(vec![
            row["name"].as_str().unwrap_or("").to_owned(),
            row["handshake"].as_str().unwrap_or("").to_owned(),
            row["sessions"].to_string(),
            row["at_once"].to_string().trim_matches('"').to_owned(),
            number(figure("seconds"), 2),
            number(figure("per_second"), 0),
            ratio(figure("ours_to_it_per_second")),
            number(figure("ready_p50_ms"), 1),
            number(figure("ready_max_ms"), 1),
            number(figure("cpu_us"), 1),
            ratio(figure("ours_to_it_cpu")),
            megabytes("idle_resident_bytes"),
            megabytes("peak_resident_bytes"),
            percent(figure("server_busy_share")),
            percent(figure("load_busy_share")),
        ]);
    }
    table.note(
        "at once: sessions connecting, shaking hands, upgrading or subscribing at a time. CPU: the end of the old session \
         and the new one.",
    );
    table.print();
}
