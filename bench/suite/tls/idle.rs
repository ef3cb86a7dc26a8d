//! Memory of an idle session: of all processes of a side, a page that several share counted once.

use std::io;
use std::path::Path;
use std::thread::sleep;

use serde_json::{Value, json};

use super::sides::{Front, Port, Side};
use crate::density::{AFTER_BURST, SETTLE};
use crate::subject::{Batch, Setup, Subject, memory_of};
use crate::table::{Table, number, ratio};
use shared::process::proportional;

/// Bytes of an idle session with TLS (the budget).
const BYTES_MAX: f64 = 4096.0;

/// Events of the burst.
const BURST: u32 = 32;

/// Measures `setup.sessions` sessions on one port of one side: idle after their connects, and after a burst.
///
/// # Errors
/// It does not start, or a session or a frame is missing.
pub(super) fn measure(
    front: Front,
    port: Port,
    setup: &Setup<'_>,
    load: &Path,
    body_bytes: usize,
) -> io::Result<Value> {
    let mut side = Side::start(setup, front)?;
    let pids = side.pids();
    let (before, heap_before) = (proportional_of(&pids)?, memory_of(&pids)?.anonymous);
    let mut clients = side.clients(load, port, setup.sessions)?;
    sleep(SETTLE);
    let (idle, heap) = (proportional_of(&pids)?, memory_of(&pids)?.anonymous);
    clients.round(BURST, || {
        side.publish(Batch {
            events: BURST,
            body_bytes,
            frame_bytes: body_bytes,
        })
    })?;
    sleep(AFTER_BURST);
    let after = proportional_of(&pids)?;
    let each = |now: u64, before: u64| (now as f64 - before as f64) / f64::from(setup.sessions);
    Ok(json!({
        "part": "idle",
        "port": port.name(),
        "sessions": setup.sessions,
        "bytes_per_session": each(idle, before),
        "heap_bytes_per_session": each(heap, heap_before),
        "bytes_per_session_after_burst": each(after, before),
        "bytes_before": before,
    }))
}

/// Resident memory of `pids` together, a page that several of them share counted once.
fn proportional_of(pids: &[u32]) -> io::Result<u64> {
    pids.iter().map(|&pid| proportional(pid)).sum()
}

/// Prints the rows.
pub(super) fn print(rows: &[&Value]) {
    let mut table = Table::new(&[
        "tls: idle",
        "port",
        "sessions",
        "B/session",
        "budget",
        "ours to it",
        "heap B/session",
        "after a burst",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        table.row(vec![
            row["name"].as_str().unwrap_or("").to_owned(),
            row["port"].as_str().unwrap_or("").to_owned(),
            row["sessions"].to_string(),
            number(figure("bytes_per_session"), 0),
            super::budget(row, figure("bytes_per_session"), BYTES_MAX, 0),
            ratio(figure("ours_to_it_bytes")),
            number(figure("heap_bytes_per_session"), 0),
            number(figure("bytes_per_session_after_burst"), 0),
        ]);
    }
    table.note(
        "B/session: growth of the proportional set size (Pss) of all processes of the side, our server behind the \
         proxies included; after a burst: 2 s after 32 events of 1 KB to all.",
    );
    table.print();
}
