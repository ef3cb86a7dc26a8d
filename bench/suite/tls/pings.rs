//! Round trips of two live sessions, one of each port, while thousands of others connect.
//!
//! Each sends a ping every [`INTERVAL_MS`], answered or not, from a process that has its core before the one that
//! connects: so a stall of the server counts once for every ping that it held up.

use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use super::sides::{Front, Port, Side};
use super::{AT_ONCE, reopened};
use crate::running::Load;
use crate::subject::{Cpu, Setup, Subject};
use crate::table::{Table, number, ratio};

/// Sessions that connect meanwhile.
pub(super) const CONNECTS: u32 = 5_000;

/// Round trip of 99 pings in 100 (the budget).
const P99_MS_MAX: f64 = 10.0;

const INTERVAL_MS: u32 = 2;

/// How long nobody connects, for comparison.
const QUIET: Duration = Duration::from_secs(1);

/// What happens beside the pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    /// All connect; TLS with full handshakes or with tickets.
    Connects {
        port: Port,
        tickets: bool,
    },
}

const MEANWHILE: [(&str, Meanwhile); 4] = [
    ("nothing", Meanwhile::Nothing),
    ("plain", connects(Port::Plain, false)),
    ("full", connects(Port::Tls, false)),
    ("resumed", connects(Port::Tls, true)),
];

const fn connects(port: Port, tickets: bool) -> Meanwhile {
    Meanwhile::Connects { port, tickets }
}

/// Measures one side with `setup.sessions` sessions that connect, in `rounds` rounds; a row for each port of a pinging session
/// and each thing that happens.
///
/// # Errors
/// It does not start, or a session is lost.
pub(super) fn measure(
    front: Front,
    setup: &Setup<'_>,
    load: &Path,
    rounds: u32,
) -> io::Result<Vec<Value>> {
    let side = Side::start(setup, front)?;
    let pids = side.pids();
    let start = |port: Port| {
        let mut clients = side.clients(load, port, setup.sessions)?;
        clients.cut()?;
        Ok::<_, io::Error>(clients)
    };
    let (mut without, mut with) = (start(Port::Plain)?, start(Port::Tls)?);
    let mut rows = Vec::new();
    for (name, meanwhile) in MEANWHILE {
        let pinger = |port: Port| {
            let own = side.arguments(port, 1);
            Load::start_pinger(load, side.address_of(port), INTERVAL_MS, &own)
        };
        let mut pingers = [
            (Port::Plain, pinger(Port::Plain)?),
            (Port::Tls, pinger(Port::Tls)?),
        ];
        let mut seconds = 0.0;
        for _ in 0..rounds {
            // The end of those that were here before is over.
            Cpu::settled(&pids)?;
            for (_, pinger) in &mut pingers {
                pinger.order("pings on", "pings")?;
            }
            let clients = match meanwhile {
                Meanwhile::Nothing => None,
                Meanwhile::Connects { port, tickets } => {
                    let clients = match port {
                        Port::Plain => &mut without,
                        Port::Tls => &mut with,
                    };
                    reopened(clients, tickets, AT_ONCE)?;
                    seconds += clients.ready["settled_seconds"].as_f64().unwrap_or(0.0);
                    Some(clients)
                }
            };
            if clients.is_none() {
                sleep(QUIET);
            }
            for (_, pinger) in &mut pingers {
                pinger.order("pings off", "pings")?;
            }
            if let Some(clients) = clients {
                clients.cut()?;
            }
        }
        for (port, pinger) in &mut pingers {
            let report = pinger.order("report", "report")?;
            let pings = &report["ping_latency_us"];
            if pings["count"] == 0 {
                return Err(io::Error::other("it answers no ping"));
            }
            let milliseconds = |name: &str| pings[name].as_f64().map(|micros| micros / 1e3);
            rows.push(json!({
                "part": "pings",
                "port": port.name(),
                "meanwhile": name,
                "connects": if meanwhile == Meanwhile::Nothing { 0 } else { setup.sessions },
                "seconds": seconds / f64::from(rounds),
                "pings": pings["count"],
                "p50_ms": milliseconds("p50"),
                "p99_ms": milliseconds("p99"),
                "max_ms": milliseconds("max"),
            }));
        }
    }
    Ok(rows)
}

/// Prints the rows.
pub(super) fn print(rows: &[&Value]) {
    let mut table = Table::new(&[
        "tls: ping",
        "its port",
        "others connect",
        "connects",
        "in s",
        "pings",
        "p50 ms",
        "p99 ms",
        "budget",
        "ours to it",
        "max ms",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        table.row(vec![
            row["name"].as_str().unwrap_or("").to_owned(),
            row["port"].as_str().unwrap_or("").to_owned(),
            row["meanwhile"].as_str().unwrap_or("").to_owned(),
            row["connects"].to_string(),
            number(figure("seconds"), 2),
            row["pings"].to_string(),
            number(figure("p50_ms"), 2),
            number(figure("p99_ms"), 2),
            super::budget(row, figure("p99_ms"), P99_MS_MAX, 0),
            ratio(figure("ours_to_it_p99")),
            number(figure("max_ms"), 2),
        ]);
    }
    table.note(
        "The round trip of a ping by a live session, one every 2 ms while all others connect, 512 at a time, as fast as \
         both ends can: without TLS, with full handshakes, with tickets.",
    );
    table.print();
}
