//! A million sessions, or as many as the machine holds, both ends on it: time until all are live, time from the
//! publishing of one event to the last of its frames, and the memory and CPU of servers, load generators, broker and
//! kernel.
//!
//! Servers share one port (`reuse_port`), and the kernel spreads the connections over them. As many load generators
//! open an equal part of the sessions each. No process is pinned to a core. The events come through a private
//! RabbitMQ.
//!
//! 1. [`refuse`]: what would not fit is refused before anything starts.
//! 2. [`Fleet::connect`]: all sessions are opened and subscribed.
//! 3. [`wait_for_bindings`], [`Fleet::event`]: one event goes to all of them, and every frame is counted.
//!
//! All the time [`Watch`] looks at the memory that is left, at signals and at the children, and ends the run in good
//! order. Everything that was started ends with it.

mod fleet;
mod watch;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::machine::{Demand, Kernel, OTHER_FILES, obstacles, sysctl};
use crate::ours::{Call, EXCHANGE};
use crate::subject::Cpu;
use crate::table::{Table, number};
use fleet::Fleet;
use shared::process::{memory, proportional};
use support::broker::{self, Broker};
use support::publisher::Publisher;
use watch::Watch;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Sessions in all.
    pub(crate) sessions: u32,
    /// Sessions of one process; reckoned from the limit of open files where there is none.
    pub(crate) sessions_per_process: Option<u32>,
    /// Every session subscribes with a request id of its own, and every event must end with it.
    pub(crate) request_ids: bool,
    /// Bytes of memory that are left to others: below it the run stops.
    pub(crate) keep_free: u64,
    /// Of the event.
    pub(crate) body_bytes: usize,
}

/// Sessions of one process, of which the loop is one thread: what one core serves (`bench/README.md`).
const SESSIONS_PER_PROCESS_MAX: u64 = 100_000;

/// Memory of one session, both ends, the kernel's and the processes'.
const SESSION_BYTES: u64 = 8_700;

/// Memory of a server and a load generator beside their sessions, and of the broker.
const PAIR_BYTES: u64 = 2 << 20;
const BROKER_BYTES: u64 = 256 << 20;

/// Longest wait for servers that have lost the broker.
const BINDINGS_PATIENCE: Duration = Duration::from_secs(120);

/// Until servers that have nothing to do have given back what they will.
const SETTLE: Duration = Duration::from_secs(3);

impl Plan {
    /// Sessions of the fullest load generator, where a process may have `files` open files.
    fn share(&self, files: u64) -> u32 {
        let most = self.sessions_per_process.unwrap_or(usual_share(files));
        self.sessions.div_ceil(self.processes(most))
    }

    /// Servers, and load generators, with at most `most` sessions each.
    fn processes(&self, most: u32) -> u32 {
        self.sessions.div_ceil(most.max(1)).max(1)
    }

    fn demand(&self, files: u64) -> Demand {
        let share = self.share(files);
        let processes = self.processes(share);
        let memory = u64::from(self.sessions) * SESSION_BYTES
            + u64::from(processes) * PAIR_BYTES
            + BROKER_BYTES;
        Demand {
            processes,
            sessions: share,
            spare_files: unevenness(share),
            memory: Some(memory),
            keep_free: self.keep_free,
            is_burst: false,
        }
    }
}

/// The most sessions of one process that go with `files` open files: with the [`unevenness`] and all other
/// descriptors no more than that, and a tenth of them unused.
fn usual_share(files: u64) -> u32 {
    let files = files.min(2 * SESSIONS_PER_PROCESS_MAX);
    let even = ((files.saturating_sub(OTHER_FILES) + 9) as f64).sqrt() - 3.0;
    let most = (even * even).min(files as f64 * 0.9) as u64;
    most.clamp(1, SESSIONS_PER_PROCESS_MAX) as u32
}

/// Connections of a server beyond its part of `share`: the kernel draws a server for each by the hash of its
/// addresses, so their number scatters by the square root, and six times that is not met in a thousand million draws.
fn unevenness(share: u32) -> u64 {
    (f64::from(share).sqrt() * 6.0).ceil() as u64
}

/// Fails, saying what is missing, when this machine cannot hold `plan`. `files` is the limit of open files of one
/// process.
fn refuse(plan: &Plan, demand: Demand, files: u64) -> io::Result<()> {
    let mut found = obstacles(demand, files);
    let under_way = fleet::under_way(demand.processes);
    // As many handshakes wait for one server, give or take.
    let backlog = u64::from(under_way) * 2;
    if let Some(value) = sysctl("net/core/somaxconn").filter(|&value| value < backlog) {
        found.push(format!(
            "net/core/somaxconn is {value}, and {backlog} handshakes may wait for one server: \
             sysctl -w net.core.somaxconn={backlog}"
        ));
    }
    if found.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{} sessions in {} servers do not fit here:\n       {}",
        plan.sessions,
        demand.processes,
        found.join("\n       ")
    );
    Err(io::Error::other(message))
}

/// Opens the sessions, sends the event, and tells what it cost.
///
/// # Errors
/// The machine cannot hold them; memory runs out; a signal came; a process has ended; a session or a frame is
/// missing. [`io::ErrorKind::NotFound`]: RabbitMQ is not installed.
pub(crate) fn measure(server: &Path, load: &Path, plan: &Plan, files: u64) -> io::Result<Value> {
    broker::installed()?;
    let demand = plan.demand(files);
    refuse(plan, demand, files)?;
    let processes = demand.processes;
    eprintln!(
        "million: {} sessions in {processes} servers and {processes} load generators, about {:.1} GB",
        plan.sessions,
        demand.memory.unwrap_or(0) as f64 / 1e9
    );
    let mut watch = Watch::start(plan.keep_free)?;
    let broker = Broker::start_guarded().map_err(io::Error::other)?;
    watch.look()?;
    let kernel = Kernel::now()?;

    let mut fleet = Fleet::start(server, &broker, processes, &mut watch)?;
    let cpu = Cpus::now(&fleet, &broker)?;
    let connect_seconds = fleet.connect(load, plan, &mut watch)?.as_secs_f64();
    let connect_cpu = Cpus::now(&fleet, &broker)?.since(cpu);
    watch.sleep(SETTLE, &mut fleet)?;
    let idle = Idle::now(&fleet, &broker, kernel)?;
    let available = watch.available()?;

    let publisher = Publisher::try_connect(&broker.url()).map_err(io::Error::other)?;
    wait_for_bindings(&broker, &mut fleet, &mut watch)?;
    watch.forget_most()?;
    let cpu = Cpus::now(&fleet, &broker)?;
    let Call { key, body } = Call::new(1, 1, plan.body_bytes);
    let event = fleet.event(&mut watch, || {
        let published = publisher.try_publish(EXCHANGE, &key, body.as_bytes());
        published.map_err(io::Error::other)
    })?;
    let event_cpu = Cpus::now(&fleet, &broker)?.since(cpu);
    let part = |name: &str, memory: Part, connect: Cpu, event: Cpu| {
        json!({
            "part": name,
            "processes": memory.processes,
            "resident_bytes": memory.resident,
            "heap_bytes": memory.heap,
            "proportional_bytes": memory.proportional,
            "connect_cpu_seconds": connect.all.as_secs_f64(),
            "event_cpu_seconds": event.all.as_secs_f64(),
        })
    };
    Ok(json!({
        "sessions": plan.sessions,
        "processes": processes,
        "request_ids": plan.request_ids,
        "body_bytes": plan.body_bytes,
        "connect_seconds": connect_seconds,
        "event_seconds": event.took.as_secs_f64(),
        "frames": event.frames,
        "gap_notices": event.gap_notices,
        "frame_bytes": event.bytes as f64 / event.frames as f64,
        "descriptors_least": idle.spread.0,
        "descriptors_most": idle.spread.1,
        "parts": [
            part("servers", idle.servers, connect_cpu.servers, event_cpu.servers),
            part("load generators", idle.generators, connect_cpu.generators, event_cpu.generators),
            part("broker", idle.broker, connect_cpu.broker, event_cpu.broker),
        ],
        "kernel_slab_bytes": idle.kernel.slab,
        "kernel_process_bytes": idle.kernel.processes,
        "kernel_tcp_bytes": idle.kernel.tcp,
        "both_ends_bytes": idle.both_ends(),
        "taken_bytes": watch.available_at_first() as f64 - available as f64,
        "event_tcp_bytes_most": watch.most_tcp(),
        "event_available_bytes_least": watch.least_available(),
    }))
}

/// Waits until every server has its binding at the broker: on a full machine one may have missed the broker's
/// heartbeats, and then it binds anew.
fn wait_for_bindings(broker: &Broker, fleet: &mut Fleet, watch: &mut Watch) -> io::Result<()> {
    let servers = fleet.server_pids().len();
    let deadline = Instant::now() + BINDINGS_PATIENCE;
    loop {
        let listed = broker.ctl(&["list_bindings", "source_name", "destination_name"]);
        let queues = listed.lines().filter_map(|line| line.split_once('\t'));
        let queues: BTreeSet<&str> = queues
            .filter(|(exchange, _)| *exchange == EXCHANGE)
            .map(|(_, queue)| queue)
            .collect();
        if queues.len() == servers {
            return Ok(());
        }
        if Instant::now() > deadline {
            let message = format!("million: {} of {servers} servers are bound", queues.len());
            return Err(io::Error::other(message));
        }
        watch.sleep(SETTLE, fleet)?;
    }
}

/// CPU time of each kind of process.
#[derive(Clone, Copy)]
struct Cpus {
    servers: Cpu,
    generators: Cpu,
    broker: Cpu,
}

impl Cpus {
    fn now(fleet: &Fleet, broker: &Broker) -> io::Result<Self> {
        Ok(Self {
            servers: Cpu::settled(&fleet.server_pids())?,
            generators: Cpu::of(&fleet.generator_pids())?,
            broker: Cpu::of(&[broker.pid()])?,
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            servers: self.servers.since(before.servers),
            generators: self.generators.since(before.generators),
            broker: self.broker.since(before.broker),
        }
    }
}

/// Memory of one kind of process.
#[derive(Clone, Copy, Default)]
struct Part {
    processes: usize,
    resident: u64,
    heap: u64,
    /// As `resident`, with what processes share divided among them.
    proportional: u64,
}

impl Part {
    fn of(pids: &[u32]) -> io::Result<Self> {
        let mut part = Self {
            processes: pids.len(),
            ..Self::default()
        };
        for &pid in pids {
            let memory = memory(pid)?;
            part.resident += memory.resident;
            part.heap += memory.anonymous;
            part.proportional += proportional(pid)?;
        }
        Ok(part)
    }
}

/// Memory while all sessions are idle.
struct Idle {
    servers: Part,
    generators: Part,
    broker: Part,
    /// Since before the first server.
    kernel: Kernel,
    /// (Fewest, most) descriptors of one server; 0 where the kernel does not count descriptors (before Linux 6.2).
    spread: (u64, u64),
}

impl Idle {
    fn now(fleet: &Fleet, broker: &Broker, before: Kernel) -> io::Result<Self> {
        Ok(Self {
            servers: Part::of(&fleet.server_pids())?,
            generators: Part::of(&fleet.generator_pids())?,
            broker: Part::of(&[broker.pid()])?,
            kernel: Kernel::now()?.since(before),
            spread: fleet.spread(),
        })
    }

    /// Servers, load generators and kernel together, every page once.
    fn both_ends(&self) -> u64 {
        self.servers.proportional + self.generators.proportional + self.kernel.all()
    }
}

/// Prints the rows.
pub(crate) fn print(rows: &[Value]) {
    for row in rows {
        print_one(row);
    }
}

fn print_one(row: &Value) {
    let figure = |name: &str| row[name].as_f64();
    let sessions = figure("sessions").unwrap_or(f64::NAN);
    let megabytes = |bytes: Option<f64>| number(bytes.map(|bytes| bytes / 1e6), 0);
    let each = |bytes: Option<f64>| number(bytes.map(|bytes| bytes / sessions), 0);
    let ids = if row["request_ids"] == true {
        ", a request id each"
    } else {
        ""
    };
    let mut times = Table::new(&[&format!("million: {} sessions{ids}", row["sessions"]), "s"]);
    times.row(vec![
        "from the first connect until all are live".to_owned(),
        number(figure("connect_seconds"), 1),
    ]);
    times.row(vec![
        format!(
            "from the publishing of one event to the last of {} frames",
            row["frames"]
        ),
        number(figure("event_seconds"), 2),
    ]);
    times.print();

    let mut parts = Table::new(&[
        "",
        "processes",
        "resident MB",
        "heap MB",
        "shared once MB",
        "B/session",
        "connect CPU s",
        "event CPU s",
    ]);
    for part in row["parts"].as_array().into_iter().flatten() {
        let figure = |name: &str| part[name].as_f64();
        parts.row(vec![
            part["part"].as_str().unwrap_or("").to_owned(),
            part["processes"].to_string(),
            megabytes(figure("resident_bytes")),
            megabytes(figure("heap_bytes")),
            megabytes(figure("proportional_bytes")),
            each(figure("proportional_bytes")),
            number(figure("connect_cpu_seconds"), 1),
            number(figure("event_cpu_seconds"), 1),
        ]);
    }
    let mut whole = |title: &str, name: &str| {
        let mut cells = vec![title.to_owned()];
        cells.extend(["-"; 3].map(str::to_owned));
        cells.extend([megabytes(figure(name)), each(figure(name))]);
        cells.extend(["-"; 2].map(str::to_owned));
        parts.row(cells);
    };
    whole("kernel: sockets of both ends", "kernel_slab_bytes");
    whole("kernel: page tables and stacks", "kernel_process_bytes");
    whole("kernel: data in sockets", "kernel_tcp_bytes");
    whole("both ends: servers, generators, kernel", "both_ends_bytes");
    whole("by the machine's own account", "taken_bytes");
    parts.note(&format!(
        "Memory is that of idle sessions. While the event was under way, at most {} MB were in sockets, and at least \
         {} MB of memory were left.",
        megabytes(figure("event_tcp_bytes_most")),
        megabytes(figure("event_available_bytes_least")),
    ));
    parts.note(&format!(
        "Descriptors of one server: {} to {}. The kernel's work for a socket counts for the process at whose cost it \
         was done. The servers do not ping.",
        row["descriptors_least"], row["descriptors_most"],
    ));
    if row["gap_notices"] != 0 {
        parts.note(&format!(
            "{} gap notices: servers on so full a machine had lost the broker for a while.",
            row["gap_notices"]
        ));
    }
    parts.note(
        "The machine's own account: by how much MemAvailable less the grown SReclaimable has fallen; with the broker, \
         and with whatever else the machine does.",
    );
    parts.print();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(sessions: u32, sessions_per_process: Option<u32>) -> Plan {
        Plan {
            sessions,
            sessions_per_process,
            request_ids: false,
            keep_free: 0,
            body_bytes: 1024,
        }
    }

    #[test]
    fn as_many_processes_as_the_open_files_ask_for_with_room_for_uneven_draws() {
        for (sessions, most, files, processes, share) in [
            (1_000_000, None, 20_000, 56, 17_858),
            (2_000_000, None, 20_000, 112, 17_858),
            (2_000, Some(700), 20_000, 3, 667),
            (1, None, 20_000, 1, 1),
            (100_000, None, 1_024, 127, 788),
            (1_000_000, None, u64::MAX, 10, 100_000),
        ] {
            let plan = plan(sessions, most);
            let demand = plan.demand(files);
            assert_eq!((demand.processes, demand.sessions), (processes, share));
            let needed = u64::from(demand.sessions) + demand.spare_files;
            assert!(needed + OTHER_FILES <= files, "{demand:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_is_missing() {
        for (sessions, most, word) in [
            (19_900, Some(19_900), "open files"),
            (u32::MAX, None, "memory"),
        ] {
            let plan = plan(sessions, most);
            let refused = refuse(&plan, plan.demand(20_000), 20_000);
            let text = refused.expect_err("it does not fit").to_string();
            assert!(text.contains(word), "{text}");
        }
    }
}
