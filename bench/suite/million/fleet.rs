//! The servers and the load generators: started, heard all together, and killed on drop.
//!
//! Each load generator has a thread here that reads its lines; the main thread hears them in the order in which they
//! come, and looks at everything else between them. A process that ends before the fleet does ends the run.

use std::fs;
use std::io::{self, BufRead};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Plan;
use super::watch::{LOOK_INTERVAL, Watch};
use crate::running::Running;
use support::broker::Broker;

/// Settings of a server beside its port and broker. Pings would be the only work of an idle session, and would blur
/// what is measured. Times are long, because both ends of all sessions share the machine.
const SERVER_ARGUMENTS: [&str; 15] = [
    "--ip",
    "127.0.0.1",
    "--reuse-port",
    "--auth",
    "insecure",
    "--log-level",
    "error",
    "--ping-interval-ms",
    "0",
    "--request-timeout-ms",
    "120000",
    "--auth-timeout-ms",
    "120000",
    "--send-timeout-ms",
    "120000",
];

/// The subscribe with a request id, and the end of the events that it then gets.
const SUBSCRIBE: &str = r#"{"action":"subscribe","auth_token":"{token}","request_id":"{guid}","data":{"account_id":"{account}","binding":"call.CHANNEL_CREATE.*"}}"#;
const EVENT_END: &str = r#""request_id":"{guid}"}"#;

/// The first source address, and the sessions of one: a load generator takes the next after so many.
const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const SESSIONS_PER_SOURCE: u32 = 5_000;

/// Sessions under way at a time, of all load generators together and of one.
const UNDER_WAY: u32 = 16_384;
const UNDER_WAY_EACH_MAX: u32 = 512;

/// Time between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Longest time in which nothing gets on.
const PATIENCE: Duration = Duration::from_secs(120);

/// Longest wait for all frames of the event.
const EVENT_PATIENCE: Duration = Duration::from_secs(600);

/// Sessions that one load generator has under way at a time.
pub(super) fn under_way(processes: u32) -> u32 {
    (UNDER_WAY / processes).clamp(16, UNDER_WAY_EACH_MAX)
}

/// What has come of the event.
pub(super) struct Event {
    pub(super) took: Duration,
    pub(super) frames: u64,
    pub(super) bytes: u64,
    /// Since the sessions were live.
    pub(super) gap_notices: u64,
}

/// All processes but the broker.
pub(super) struct Fleet {
    servers: Vec<Running>,
    generators: Vec<Running>,
    /// Its process.
    broker: u32,
    address: String,
    lines: Receiver<Line>,
    to_us: Sender<Line>,
}

/// A line of the load generator of this number.
type Line = (usize, io::Result<Value>);

impl Fleet {
    /// Starts `processes` servers on one port, the first of which takes a free one.
    ///
    /// # Errors
    /// A server does not start, or the run must end.
    pub(super) fn start(
        program: &Path,
        broker: &Broker,
        processes: u32,
        watch: &mut Watch,
    ) -> io::Result<Self> {
        let (to_us, lines) = channel();
        let mut fleet = Self {
            servers: Vec::new(),
            generators: Vec::new(),
            broker: broker.pid(),
            address: "127.0.0.1:0".to_owned(),
            lines,
            to_us,
        };
        for _ in 0..processes {
            let port = fleet.address.rsplit(':').next().unwrap_or("0");
            let mut arguments = SERVER_ARGUMENTS.map(str::to_owned).to_vec();
            arguments.extend(["--port", port, "--amqp", &broker.url()].map(str::to_owned));
            fleet
                .servers
                .push(Running::start_anywhere(program, &arguments)?);
            let last = fleet.servers.len() - 1;
            fleet.address = fleet.servers[last].listening()?;
            watch.look()?;
        }
        Ok(fleet)
    }

    /// Starts the load generators, waits until every session is live, and tells how long that took.
    ///
    /// # Errors
    /// A session is lost, a process has ended, nothing gets on, or the run must end.
    pub(super) fn connect(
        &mut self,
        load: &Path,
        plan: &Plan,
        watch: &mut Watch,
    ) -> io::Result<Duration> {
        let started = Instant::now();
        let processes = self.servers.len() as u32;
        let sources = plan
            .sessions
            .div_ceil(processes)
            .div_ceil(SESSIONS_PER_SOURCE);
        let begin = |n: u32| u64::from(plan.sessions) * u64::from(n) / u64::from(processes);
        let sessions: Vec<u64> = (0..processes).map(|n| begin(n + 1) - begin(n)).collect();
        for (n, own) in sessions.iter().enumerate() {
            let source = Ipv4Addr::from(u32::from(FIRST_SOURCE) + n as u32 * sources);
            let mut arguments = vec!["--control".to_owned()];
            for (option, value) in [
                ("--address", self.address.clone()),
                ("--sessions", own.to_string()),
                ("--first-source", source.to_string()),
                // More than any server takes: the sessions under way hold it back.
                ("--connect-rate", "1000000".to_owned()),
                ("--under-way", under_way(processes).to_string()),
            ] {
                arguments.extend([option.to_owned(), value]);
            }
            if plan.request_ids {
                let more = ["--subscribe", SUBSCRIBE, "--event-end", EVENT_END];
                arguments.extend(more.map(str::to_owned));
            }
            self.generate(load, &arguments)?;
            watch.look()?;
        }
        let ready = self.answers("ready", PATIENCE, watch, |progress| {
            format!(
                "{} opened, {} live, {} lost",
                progress.sum("opened"),
                progress.sum("became_live"),
                progress.sum("lost")
            )
        })?;
        let took = started.elapsed();
        let live: u64 = ready
            .iter()
            .filter_map(|ready| ready["live"].as_u64())
            .sum();
        if live == u64::from(plan.sessions) {
            return Ok(took);
        }
        let complaints = ready.iter().map(|ready| &ready["complaints"]);
        let complaints: Vec<String> = complaints
            .filter(|complaints| complaints.as_object().is_some_and(|all| !all.is_empty()))
            .map(Value::to_string)
            .collect();
        Err(io::Error::other(format!(
            "{live} of {} sessions are live: {}",
            plan.sessions,
            complaints.join(" ")
        )))
    }

    /// Starts one load generator, and a thread that hears it.
    fn generate(&mut self, load: &Path, arguments: &[String]) -> io::Result<()> {
        let number = self.generators.len();
        let mut generator = Running::start_anywhere(load, arguments)?;
        let stdout = generator.take_stdout();
        self.generators.push(generator);
        let stdout = stdout.ok_or_else(|| io::Error::other("a load generator has no stdout"))?;
        let to_us = self.to_us.clone();
        std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(move || {
                for line in stdout.lines() {
                    let line = line.and_then(|line| Ok(serde_json::from_str(&line)?));
                    if to_us.send((number, line)).is_err() {
                        return;
                    }
                }
                let ended = io::Error::other("million: a load generator has ended");
                // Nobody listens any more where the fleet is gone.
                let _ = to_us.send((number, Err(ended)));
            })?;
        Ok(())
    }

    /// Lets every session expect one event, calls `publish`, and waits for all frames.
    ///
    /// # Errors
    /// A frame is missing or came twice, a session is lost, a process has ended, or the run must end.
    pub(super) fn event(
        &mut self,
        watch: &mut Watch,
        publish: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Event> {
        let order = format!("expect 1 {}", EVENT_PATIENCE.as_secs());
        for generator in &mut self.generators {
            generator.tell(&order)?;
        }
        self.answers("armed", PATIENCE, watch, |_| "ready for the event".into())?;
        let published = Instant::now();
        publish()?;
        let rounds = self.answers("round", EVENT_PATIENCE, watch, |progress| {
            format!("{} frames", progress.sum("events"))
        })?;
        let took = published.elapsed();
        for generator in &mut self.generators {
            generator.tell("report")?;
        }
        let reports = self.answers("report", PATIENCE, watch, |_| "counting".into())?;
        let sum = |name: &str| -> u64 { rounds.iter().filter_map(|r| r[name].as_u64()).sum() };
        // A gap notice alone is told: the server had lost the broker, and got this event all the same.
        let wrong: Vec<String> = ["missing", "extra", "lost"]
            .into_iter()
            .filter(|&promise| sum(promise) > 0)
            .map(|promise| format!("{} {promise}", sum(promise)))
            .collect();
        if !wrong.is_empty() {
            let message = format!("the event, {} frames: {}", sum("frames"), wrong.join(", "));
            return Err(io::Error::other(message));
        }
        Ok(Event {
            took,
            frames: sum("frames"),
            bytes: sum("bytes"),
            gap_notices: reports
                .iter()
                .filter_map(|report| report["gap_notices"].as_u64())
                .sum(),
        })
    }

    /// Waits until every load generator has said `name`, and returns what they said. `tell` puts what they said of
    /// their progress into words.
    fn answers(
        &mut self,
        name: &str,
        patience: Duration,
        watch: &mut Watch,
        tell: impl Fn(&Progress) -> String,
    ) -> io::Result<Vec<Value>> {
        let began = Instant::now();
        let mut answers = vec![Value::Null; self.generators.len()];
        let mut missing = answers.len();
        let mut progress = Progress(vec![Value::Null; answers.len()]);
        let (mut told, mut got_on, mut looked) = (began, began, began);
        while missing > 0 {
            // All that have come, and then a look: a look takes its time where hundreds of processes run.
            let first = self.lines.recv_timeout(LOOK_INTERVAL).ok();
            for (number, line) in first.into_iter().chain(self.lines.try_iter()) {
                let mut line = line?;
                if let Some(totals) = line.get_mut("progress") {
                    let totals = totals.take();
                    if totals != progress.0[number] {
                        got_on = Instant::now();
                    }
                    progress.0[number] = totals;
                } else if let Some(answer) = line.get_mut(name) {
                    answers[number] = answer.take();
                    missing -= 1;
                    got_on = Instant::now();
                } else {
                    return Err(io::Error::other(format!("{line} instead of {name}")));
                }
            }
            if looked.elapsed() >= LOOK_INTERVAL {
                watch.look()?;
                self.check()?;
                looked = Instant::now();
            }
            if got_on.elapsed() > patience {
                let message = format!("nothing gets on any more: {}", tell(&progress));
                return Err(io::Error::other(message));
            }
            if told.elapsed() >= PROGRESS_INTERVAL {
                told = Instant::now();
                eprintln!(
                    "million: {:.0} s: {}; {:.1} GB of memory left",
                    began.elapsed().as_secs_f64(),
                    tell(&progress),
                    watch.available()? as f64 / 1e9
                );
            }
        }
        Ok(answers)
    }

    /// Fails when a process has ended, be it the broker's.
    ///
    /// # Errors
    /// See above.
    pub(super) fn check(&mut self) -> io::Result<()> {
        let ended = |kind: &str, running: &Running| {
            let message = format!("million: {kind} has ended (process {})", running.pid());
            Err(io::Error::other(message))
        };
        for server in &mut self.servers {
            if !server.is_alive() {
                return ended("a server", server);
            }
        }
        for generator in &mut self.generators {
            if !generator.is_alive() {
                return ended("a load generator", generator);
            }
        }
        if !Path::new(&format!("/proc/{}", self.broker)).exists() {
            return Err(io::Error::other("million: the broker has ended"));
        }
        Ok(())
    }

    /// Of all servers.
    pub(super) fn server_pids(&self) -> Vec<u32> {
        self.servers.iter().map(Running::pid).collect()
    }

    /// Of all load generators.
    pub(super) fn generator_pids(&self) -> Vec<u32> {
        self.generators.iter().map(Running::pid).collect()
    }

    /// (Fewest, most) descriptors of a server: its connections, and some twenty others. 0 before Linux 6.2.
    pub(super) fn spread(&self) -> (u64, u64) {
        let counts = self.servers.iter().map(|server| {
            let descriptors = fs::metadata(format!("/proc/{}/fd", server.pid()));
            descriptors.map_or(0, |descriptors| descriptors.len())
        });
        counts.fold((u64::MAX, 0), |(fewest, most), count| {
            (fewest.min(count), most.max(count))
        })
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // All before the first is waited for. The clients first: their ends reset the connections, so nothing
        // lingers.
        for running in self.generators.iter_mut().chain(&mut self.servers) {
            running.kill();
        }
    }
}

/// What the load generators last said of their progress.
struct Progress(Vec<Value>);

impl Progress {
    fn sum(&self, name: &str) -> u64 {
        self.0
            .iter()
            .filter_map(|totals| totals[name].as_u64())
            .sum()
    }
}
