//! From RabbitMQ to the sessions: events a second end to end, and the CPU of the loop and of the AMQP threads.
//!
//! The server is stopped (SIGSTOP) while its queue on a private broker fills, so that no publisher competes with it,
//! and then let go. The broker shares the load generator's core. The last event of a round is for the sessions in
//! every row; its queue keeps the order, so when it arrives all before it were dealt with, wanted or not.

use std::io;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::ours::{ARGUMENTS, Call, EXCHANGE};
use crate::running::{LOAD_CORE, Load, Running, SERVER_CORE, Waiting, micros_each};
use crate::statistics::median;
use crate::subject::Cpu;
use crate::table::{Table, number, percent};
use support::broker::{self, Broker};
use support::publisher::Publisher;

/// The account of the sessions, and one that nobody asks for.
const WANTED: u32 = 1;
const UNWANTED: u32 = 2;

/// One way to measure.
struct Way {
    title: &'static str,
    sessions: u32,
    account: u32,
    events: u32,
}

/// Measures every way in `rounds` rounds, with a part of the events when `shrink` is above 1.
///
/// # Errors
/// [`io::ErrorKind::NotFound`]: RabbitMQ is not installed. Another: an event is missing, or the server has ended.
pub(crate) fn measure(
    server: &Path,
    load: &Path,
    body_bytes: usize,
    rounds: u32,
    shrink: u32,
) -> io::Result<Vec<Value>> {
    broker::installed()?;
    let broker = pinned_broker()?;
    let ways = [
        Way {
            title: "nobody wants them",
            sessions: 1,
            account: UNWANTED,
            events: 20_000,
        },
        Way {
            title: "one session",
            sessions: 1,
            account: WANTED,
            events: 20_000,
        },
        Way {
            title: "1,000 sessions",
            sessions: 1_000,
            account: WANTED,
            events: 2_000,
        },
    ];
    let mut rows = Vec::new();
    for way in ways {
        eprintln!("bridge: {}", way.title);
        let way = Way {
            events: way.events.div_ceil(shrink),
            ..way
        };
        rows.push(measure_one(
            &broker.url(),
            server,
            load,
            body_bytes,
            rounds,
            &way,
        )?);
    }
    Ok(rows)
}

/// A private broker on the core of the load generators, which ends with this process however that ends.
///
/// # Errors
/// It does not start, or there is no `taskset`.
pub(crate) fn pinned_broker() -> io::Result<Broker> {
    let broker = Broker::start_guarded().map_err(io::Error::other)?;
    let pin = ["--all-tasks", "--cpu-list", "--pid", LOAD_CORE];
    let pid = broker.pid().to_string();
    let output = Command::new("taskset").args(pin).arg(pid).output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("taskset of the broker: {text}")));
    }
    Ok(broker)
}

fn measure_one(
    url: &str,
    server: &Path,
    load: &Path,
    body_bytes: usize,
    rounds: u32,
    way: &Way,
) -> io::Result<Value> {
    let mut arguments: Vec<String> = ARGUMENTS.map(str::to_owned).into();
    arguments.extend(["--amqp".to_owned(), url.to_owned()]);
    let mut running = Running::start(SERVER_CORE, server, &arguments)?;
    let address = running.listening()?;
    let pids = [running.pid()];
    // A subscribe is answered once the broker has the binding in force.
    let mut clients = Load::start(load, &address, way.sessions, &[], Waiting::Sleep)?;
    let publisher = Publisher::connect(url);
    let (mut per_second, mut main, mut amqp, mut busy) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        signal(running.pid(), Signal::STOP)?;
        let last = u64::from(way.events);
        for n in 1..=last {
            let account = if n == last { WANTED } else { way.account };
            let Call { key, body } = Call::new(n, account, body_bytes);
            publisher.publish(EXCHANGE, &key, body.as_bytes());
        }
        publisher.settle();
        let before = Cpu::of(&pids)?;
        let wanted = if way.account == WANTED { way.events } else { 1 };
        let round = clients.round(wanted, || signal(pids[0], Signal::CONT))?;
        let cpu = Cpu::settled(&pids)?.since(before);
        let seconds = round["elapsed_us"].as_f64().unwrap_or(f64::NAN) / 1e6;
        per_second.push(f64::from(way.events) / seconds);
        main.push(micros_each(cpu.main, way.events));
        amqp.push(micros_each(cpu.all.saturating_sub(cpu.main), way.events));
        busy.push(cpu.all.as_secs_f64() / seconds);
    }
    Ok(json!({
        "way": way.title,
        "sessions": way.sessions,
        "events": way.events,
        "rounds": rounds,
        "events_per_second": median(&per_second),
        "frames_per_second": median(&per_second) * f64::from(way.sessions),
        "loop_cpu_us_per_event": median(&main),
        "amqp_cpu_us_per_event": median(&amqp),
        "server_busy_share": median(&busy),
    }))
}

fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("no such process id"))?;
    Ok(kill_process(pid, signal)?)
}

/// Prints the rows.
pub(crate) fn print(rows: &[Value]) {
    let mut table = Table::new(&[
        "bridge: RabbitMQ to",
        "events",
        "events/s",
        "loop CPU µs/event",
        "AMQP CPU µs/event",
        "server busy",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        table.row(vec![
            row["way"].as_str().unwrap_or("").to_owned(),
            row["events"].to_string(),
            number(figure("events_per_second"), 0),
            number(figure("loop_cpu_us_per_event"), 2),
            number(figure("amqp_cpu_us_per_event"), 2),
            percent(figure("server_busy_share")),
        ]);
    }
    table.note("The queue is full before the server is let go; broker and load generator share the other core.");
    table.print();
}
