//! CPU of a connect with a full handshake, with a resumed one, and without TLS, on the same processes in turns.

use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::sides::{Front, Port, Side};
use super::{AT_ONCE, reopened};
use crate::running::{Load, micros_each};
use crate::statistics::median;
use crate::subject::{Cpu, Setup, Subject};
use crate::table::{Table, number, percent, ratio};

/// Connects of one round.
pub(super) const CONNECTS: u32 = 5_000;

/// CPU microseconds of a handshake above a connect without TLS (the budgets).
const FULL_MAX: f64 = 200.0;
const RESUMED_MAX: f64 = 80.0;

/// One way to connect.
#[derive(Default)]
struct Way {
    cpu: Vec<f64>,
    cpu_main: Vec<f64>,
    seconds: Vec<f64>,
    load_busy: Vec<f64>,
}

impl Way {
    fn round(&mut self, clients: &mut Load, tickets: bool, pids: &[u32]) -> io::Result<()> {
        let before = Cpu::settled(pids)?;
        reopened(clients, tickets, AT_ONCE)?;
        let cpu = Cpu::settled(pids)?.since(before);
        let sessions = clients.ready["live"].as_f64().unwrap_or(0.0);
        let seconds = clients.ready["settled_seconds"].as_f64().unwrap_or(0.0);
        let busy = clients.ready["busy_seconds"].as_f64().unwrap_or(0.0);
        self.cpu.push(micros_each(cpu.all, sessions));
        self.cpu_main.push(micros_each(cpu.main, sessions));
        self.seconds.push(seconds);
        self.load_busy.push(busy / seconds);
        clients.cut()
    }

    fn json(&self, name: &str, sessions: u32, plain: &Self) -> Value {
        json!({
            "part": "handshakes",
            "connect": name,
            "connects": sessions,
            "rounds": self.cpu.len(),
            "cpu_us": median(&self.cpu),
            "cpu_main_thread_us": median(&self.cpu_main),
            "above_plain_us": median(&self.cpu) - median(&plain.cpu),
            "connects_per_second": f64::from(sessions) / median(&self.seconds),
            "load_busy_share": median(&self.load_busy),
            "rounds_cpu_us": self.cpu,
        })
    }
}

/// Measures one side with `setup.sessions` connects a round; a row for each way to connect.
///
/// # Errors
/// It does not start, a session does not become live, or a handshake that should resume is a full one or the other way
/// round.
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
    let (mut plain, mut full, mut resumed) = Default::default();
    for _ in 0..rounds {
        Way::round(&mut plain, &mut without, false, &pids)?;
        Way::round(&mut full, &mut with, false, &pids)?;
        Way::round(&mut resumed, &mut with, true, &pids)?;
    }
    let ways = [("plain", &plain), ("full", &full), ("resumed", &resumed)];
    let row = |(name, way): (&str, &Way)| way.json(name, setup.sessions, &plain);
    Ok(ways.map(row).into())
}

/// Prints the rows.
pub(super) fn print(rows: &[&Value]) {
    let mut table = Table::new(&[
        "tls: connect",
        "handshake",
        "connects",
        "rounds",
        "CPU µs",
        "ours to it",
        "above plain",
        "budget",
        "ours to it",
        "of it the loop",
        "connects/s",
        "load busy",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        let above = figure("above_plain_us");
        let budget = match row["connect"].as_str() {
            Some("full") => super::budget(row, above, FULL_MAX, 0),
            Some("resumed") => super::budget(row, above, RESUMED_MAX, 0),
            _ => "-".into(),
        };
        let is_plain = row["connect"] == "plain";
        table.row(vec![
            row["name"].as_str().unwrap_or("").to_owned(),
            row["connect"].as_str().unwrap_or("").to_owned(),
            row["connects"].to_string(),
            row["rounds"].to_string(),
            number(figure("cpu_us"), 1),
            ratio(figure("ours_to_it_cpu")),
            number(above.filter(|_| !is_plain), 1),
            budget,
            ratio(figure("ours_to_it_above").filter(|_| !is_plain)),
            number(figure("cpu_main_thread_us"), 1),
            number(figure("connects_per_second"), 0),
            percent(figure("load_busy_share")),
        ]);
    }
    table.note(
        "CPU µs: of a connect, handshake, upgrade, authentication and subscribe, of all processes of the side; above \
         plain: without what the same takes on the side's port without TLS. The loop: the main thread of our server.",
    );
    table.print();
}
