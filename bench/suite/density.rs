//! Bytes of an idle session, in the server and in the kernel, CPU of a connect, and what stays resident after a burst.

use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use crate::machine::{settled_slab_bytes, slab_bytes};
use crate::ours;
use crate::running::{Load, Waiting, micros_each};
use crate::subject::{Batch, Candidate, Cpu, Scenario, Setup, Subject, memory_of};
use crate::table::{Table, is_held_back_by_load, number, percent, ratio};

/// Until a server that has nothing to do has given back what it will.
pub(crate) const SETTLE: Duration = Duration::from_secs(3);

/// More than any server takes: what holds the load generator back are the 512 sessions it has under way.
pub(crate) const CONNECT_RATE: [&str; 2] = ["--connect-rate", "1000000"];

/// How long after a burst its memory is looked at (DESIGN: "resident 2 s after a burst").
pub(crate) const AFTER_BURST: Duration = Duration::from_secs(2);

/// Events of the burst.
const BURST: u32 = 32;

/// Servers that hold idle sessions, each with a load generator of its own.
pub(crate) struct Fleet {
    pub(crate) servers: Vec<(Box<dyn Subject>, Load)>,
    sessions: u32,
    scenario: Scenario,
    before: Before,
    connect: Cpu,
}

/// What there was before the first session.
struct Before {
    anonymous: u64,
    resident: u64,
    slab: u64,
}

impl Fleet {
    /// Starts `processes` servers and opens `sessions` sessions at each, one server after the other.
    ///
    /// # Errors
    /// A server does not start, or not all sessions become live.
    pub(crate) fn start(
        candidate: &Candidate,
        setup: &Setup<'_>,
        load: &Path,
        scenario: Scenario,
        processes: u32,
        waiting: Waiting,
    ) -> io::Result<Self> {
        let subjects = (0..processes).map(|_| (candidate.start)(setup));
        let subjects: Vec<_> = subjects.collect::<io::Result<_>>()?;
        let pids: Vec<u32> = subjects.iter().flat_map(|subject| subject.pids()).collect();
        let memory = memory_of(&pids)?;
        let before = Before {
            anonymous: memory.anonymous,
            resident: memory.resident,
            slab: settled_slab_bytes()?,
        };
        let mut connect = Cpu::default();
        let mut servers = Vec::new();
        for subject in subjects {
            let before = Cpu::settled(&subject.pids())?;
            let mut more = subject.load_arguments(scenario, setup.sessions);
            more.extend(CONNECT_RATE.map(str::to_owned));
            let clients = Load::start(load, &subject.address(), setup.sessions, &more, waiting)?;
            let used = Cpu::settled(&subject.pids())?.since(before);
            connect.all += used.all;
            connect.main += used.main;
            servers.push((subject, clients));
        }
        Ok(Self {
            servers,
            sessions: setup.sessions,
            scenario,
            before,
            connect,
        })
    }

    /// All processes of all servers.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let each = self.servers.iter();
        each.flat_map(|(subject, _)| subject.pids()).collect()
    }

    /// Sessions in all.
    pub(crate) fn sessions(&self) -> u32 {
        self.sessions * self.servers.len() as u32
    }

    /// The figures of the idle sessions. Sleeps for [`SETTLE`] first.
    ///
    /// # Errors
    /// A server is gone.
    pub(crate) fn figures(&self) -> io::Result<Value> {
        sleep(SETTLE);
        let idle = memory_of(&self.pids())?;
        let sessions = self.sessions();
        let each = |now: u64, before: u64| (now as f64 - before as f64) / f64::from(sessions);
        let sum = |name: &str| -> f64 {
            let loads = self.servers.iter();
            loads
                .filter_map(|(_, load)| load.ready[name].as_f64())
                .sum()
        };
        let seconds = sum("settled_seconds");
        let slab_each = each(slab_bytes()?, self.before.slab);
        Ok(json!({
            "scenario": self.scenario.title(),
            "processes": self.servers.len(),
            "sessions": sessions,
            "anonymous_bytes_per_session": each(idle.anonymous, self.before.anonymous),
            "resident_bytes_per_session": each(idle.resident, self.before.resident),
            "anonymous_bytes_before": self.before.anonymous,
            "anonymous_bytes_idle": idle.anonymous,
            // Both ends of a connection are on this machine.
            "kernel_bytes_per_socket": slab_each / 2.0,
            "connect_cpu_us": micros_each(self.connect.all, sessions),
            "connect_cpu_main_thread_us": micros_each(self.connect.main, sessions),
            "connects_per_second": f64::from(sessions) / seconds,
            "server_busy_share": self.connect.all.as_secs_f64() / seconds,
            "load_busy_share": sum("busy_seconds") / seconds,
        }))
    }
}

/// Measures one scenario of one candidate with `processes` servers, and after it (one binding for all) a burst.
///
/// # Errors
/// A server does not start, or a session or a frame is missing.
pub(crate) fn measure(
    candidate: &Candidate,
    setup: &Setup<'_>,
    load: &Path,
    scenario: Scenario,
    processes: u32,
    body_bytes: usize,
) -> io::Result<Value> {
    let waiting = if processes == 1 {
        Waiting::Spin
    } else {
        Waiting::Sleep
    };
    let mut fleet = Fleet::start(candidate, setup, load, scenario, processes, waiting)?;
    let mut result = fleet.figures()?;
    result["name"] = candidate.name.into();
    if scenario == Scenario::Shared {
        let batch = Batch {
            events: BURST,
            body_bytes,
            frame_bytes: body_bytes,
        };
        let idle = memory_of(&fleet.pids())?;
        for (subject, clients) in &mut fleet.servers {
            clients.round(BURST, || subject.publish(batch))?;
        }
        sleep(AFTER_BURST);
        let after = memory_of(&fleet.pids())?;
        result["anonymous_bytes_after_burst"] = after.anonymous.into();
        result["after_burst_ratio"] = (after.anonymous as f64 / idle.anonymous as f64).into();
    }
    Ok(result)
}

/// Prints the rows.
pub(crate) fn print(rows: &[Value]) {
    let mut table = Table::new(&[
        "density",
        "",
        "sessions",
        "heap B/session",
        "RSS B/session",
        "ours to it",
        "kernel B/socket",
        "connect CPU µs",
        "ours to it",
        "connects/s",
        "server busy",
        "load busy",
        "after burst",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        let mark = if is_held_back_by_load(row) {
            table.note("!: the load generator's core was saturated and the server's was not: it could take more a second.");
            " !"
        } else {
            ""
        };
        table.row(vec![
            row["scenario"].as_str().unwrap_or("").to_owned(),
            row["name"].as_str().unwrap_or("").to_owned(),
            row["sessions"].to_string(),
            number(figure("anonymous_bytes_per_session"), 0),
            number(figure("resident_bytes_per_session"), 0),
            ratio(figure("ours_to_it_bytes")),
            number(figure("kernel_bytes_per_socket"), 0),
            number(figure("connect_cpu_us"), 1),
            ratio(figure("ours_to_it_connect")),
            number(figure("connects_per_second"), 0) + mark,
            percent(figure("server_busy_share")),
            percent(figure("load_busy_share")),
            match figure("after_burst_ratio") {
                Some(ratio) => format!("{ratio:.2} × idle"),
                None => "-".into(),
            },
        ]);
    }
    if rows.iter().any(|row| row["name"] == ours::WITHOUT_IDS.name) {
        table.note(
            "ours: each session subscribes with a request id of its own, 36 bytes that the server keeps and puts into \
             its events; ours-without-ids: without.",
        );
    }
    table.note("kernel B/socket: growth of the machine's Slab over both ends of every connection.");
    table.print();
}
