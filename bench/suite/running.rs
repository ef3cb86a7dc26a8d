//! The processes of a measurement: servers pinned to one core, their load generators pinned to another, except in the
//! suite `million`.
//!
//! None of them outlives this program: they end when what started them is dropped, and the kernel kills them when this
//! program is killed. For that they are started by its main thread only.

use std::io::{self, BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

/// The core of the servers. The load generators are on [`LOAD_CORE`]; so is this program, which sleeps.
pub(crate) const SERVER_CORE: &str = "0";
/// The core of the load generators.
pub(crate) const LOAD_CORE: &str = "1";

/// The first source address of the first load generator.
const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);

/// Source addresses of one load generator: more than the descriptors of one process can use.
const SOURCES: u32 = 8;

/// Something that runs until it is dropped, with its stdin and stdout in our hands. Its stderr is ours.
pub(crate) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    name: String,
}

impl Running {
    /// Starts `program` on `core`; its lines on stdout are to be read with [`Running::line`].
    ///
    /// # Errors
    /// There is no such program, or no `setpriv` or `taskset`.
    pub(crate) fn start(core: &str, program: &Path, arguments: &[String]) -> io::Result<Self> {
        let core = Some(core);
        Self::spawn(core, program, arguments, Stdio::piped(), Stdio::inherit())
    }

    /// Starts `program` on whatever cores there are, as [`Running::start`]; where hundreds run, this program and the
    /// broker come first.
    ///
    /// # Errors
    /// As [`Running::start`].
    pub(crate) fn start_anywhere(program: &Path, arguments: &[String]) -> io::Result<Self> {
        Self::spawn(None, program, arguments, Stdio::piped(), Stdio::inherit())
    }

    /// Starts `program` on `core`, and throws away what it says.
    ///
    /// # Errors
    /// As [`Running::start`].
    pub(crate) fn start_silent(
        core: &str,
        program: &Path,
        arguments: &[String],
    ) -> io::Result<Self> {
        Self::spawn(Some(core), program, arguments, Stdio::null(), Stdio::null())
    }

    fn spawn(
        core: Option<&str>,
        program: &Path,
        arguments: &[String],
        stdout: Stdio,
        stderr: Stdio,
    ) -> io::Result<Self> {
        let name = program.display().to_string();
        // All of them become the program, so the child's id is the program's.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        match core {
            Some(core) => command.args(["taskset", "--cpu-list", core]),
            None => command.args(["nice", "-n", "5"]),
        };
        // A group of its own: Ctrl-C is for this program, which ends them in order.
        let mut child = command
            .arg(program)
            .args(arguments)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("setpriv {name}: {error}")))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(BufReader::new);
        Ok(Self {
            child,
            stdin,
            stdout,
            name,
        })
    }

    /// The process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its stdout, for another thread to read; [`Running::line`] fails from then on.
    pub(crate) fn take_stdout(&mut self) -> Option<BufReader<ChildStdout>> {
        self.stdout.take()
    }

    /// Kills it, and does not wait for its end: many end together faster than one after the other.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
    }

    /// Waits for its next line, returned without the line end.
    ///
    /// # Errors
    /// It has ended, or was started silent.
    pub(crate) fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        let stdout = self.stdout.as_mut();
        let stdout = stdout.ok_or_else(|| io::Error::other("started silent"))?;
        if stdout.read_line(&mut line)? == 0 {
            return Err(io::Error::other(format!("{} has ended", self.name)));
        }
        Ok(line.trim_end().to_owned())
    }

    /// Writes `line` to its stdin.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn tell(&mut self, line: &str) -> io::Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .ok_or_else(|| io::Error::other("stdin is closed"))?;
        stdin.write_all(format!("{line}\n").as_bytes())?;
        stdin.flush()
    }

    /// Waits for the line `listening on IP:PORT` and returns the address.
    ///
    /// # Errors
    /// Its next line is another one.
    pub(crate) fn listening(&mut self) -> io::Result<String> {
        self.told("listening on ")
    }

    /// Waits for a line that begins with `what`, and returns the rest.
    ///
    /// # Errors
    /// Its next line is another one.
    pub(crate) fn told(&mut self, what: &str) -> io::Result<String> {
        let line = self.line()?;
        let rest = line.strip_prefix(what).map(str::to_owned);
        rest.ok_or_else(|| io::Error::other(format!("{}: {line:?} instead of {what:?}", self.name)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a load generator waits for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Without sleep: no server pays for waking it. For one at a time.
    Spin,
    /// Asleep: for several on one core.
    Sleep,
}

/// A load generator under `--control`, on source addresses that no other one has.
pub(crate) struct Load {
    running: Running,
    sessions: u32,
    /// Its summary when all sessions were settled.
    pub(crate) ready: Value,
}

impl Load {
    /// Opens and subscribes `sessions` sessions at `address`, with `more` arguments of the load generator.
    ///
    /// # Errors
    /// Not all became live.
    pub(crate) fn start(
        program: &Path,
        address: &str,
        sessions: u32,
        more: &[String],
        waiting: Waiting,
    ) -> io::Result<Self> {
        let mut arguments = Self::arguments(address, sessions, more);
        if waiting == Waiting::Spin {
            arguments.push("--spin".into());
        }
        Self::settled(Running::start(LOAD_CORE, program, &arguments)?, sessions)
    }

    /// Opens one session that takes the core from every other program when it has something to do, and pings every
    /// `interval_ms` between `pings on` and `pings off`. Without the right to that it only pings.
    ///
    /// # Errors
    /// It does not become live.
    pub(crate) fn start_pinger(
        program: &Path,
        address: &str,
        interval_ms: u32,
        more: &[String],
    ) -> io::Result<Self> {
        let interval = ["--ping-interval".to_owned(), interval_ms.to_string()];
        Self::start_first(program, address, 1, &[more, &interval].concat())
    }

    /// Opens `sessions` sessions that take the core from every other program when they have something to do. Without the
    /// right to that they share it.
    ///
    /// # Errors
    /// Not all become live.
    pub(crate) fn start_first(
        program: &Path,
        address: &str,
        sessions: u32,
        more: &[String],
    ) -> io::Result<Self> {
        let mut arguments: Vec<String> = ["-n", "-20"].map(str::to_owned).into();
        arguments.push(program.display().to_string());
        arguments.extend(Self::arguments(address, sessions, more));
        let running = Running::start(LOAD_CORE, Path::new("nice"), &arguments)?;
        Self::settled(running, sessions)
    }

    fn arguments(address: &str, sessions: u32, more: &[String]) -> Vec<String> {
        static BLOCKS: AtomicU32 = AtomicU32::new(0);
        let source =
            u32::from(FIRST_SOURCE) + SOURCES * BLOCKS.fetch_add(1, Ordering::Relaxed) % (1 << 20);
        let mut arguments: Vec<String> = ["--control", "--quiet"].map(str::to_owned).into();
        for (option, value) in [
            ("--address", address.to_owned()),
            ("--sessions", sessions.to_string()),
            ("--first-source", Ipv4Addr::from(source).to_string()),
        ] {
            arguments.extend([option.to_owned(), value]);
        }
        arguments.extend_from_slice(more);
        arguments
    }

    /// Waits until all `sessions` are live.
    fn settled(running: Running, sessions: u32) -> io::Result<Self> {
        let mut load = Self {
            running,
            sessions,
            ready: Value::Null,
        };
        load.take_ready()?;
        Ok(load)
    }

    fn take_ready(&mut self) -> io::Result<()> {
        self.ready = self.answer("ready")?;
        if self.ready["live"] == self.sessions {
            return Ok(());
        }
        let message = format!("not all sessions became live: {}", self.ready);
        Err(io::Error::other(message))
    }

    /// Resets all connections at once.
    ///
    /// # Errors
    /// The load generator has ended.
    pub(crate) fn cut(&mut self) -> io::Result<()> {
        self.order("cut", "cut").map(drop)
    }

    /// Opens and subscribes all sessions again after [`Load::cut`], at most `at_once` at a time, and renews
    /// [`Load::ready`].
    ///
    /// # Errors
    /// Not all become live.
    pub(crate) fn open(&mut self, at_once: u32) -> io::Result<()> {
        self.running.tell(&format!("open {at_once}"))?;
        self.take_ready()
    }

    /// Whether sessions opened from now on resume TLS with tickets.
    ///
    /// # Errors
    /// The load generator has ended.
    pub(crate) fn use_tickets(&mut self, is_on: bool) -> io::Result<()> {
        let switch = if is_on { "tickets on" } else { "tickets off" };
        self.order(switch, "tickets").map(drop)
    }

    /// Expects `each` more events a session; their latency counts from now. [`Load::finish`] is to follow.
    ///
    /// # Errors
    /// The load generator has ended.
    pub(crate) fn arm(&mut self, each: u32) -> io::Result<()> {
        self.running.tell(&format!("expect {each}"))?;
        self.answer("armed").map(drop)
    }

    /// Waits for the end of the round, and returns the load generator's account of it.
    ///
    /// # Errors
    /// An event is missing or came twice, or a session was lost.
    pub(crate) fn finish(&mut self) -> io::Result<Value> {
        let round = self.answer("round")?;
        for promise in ["missing", "extra", "gaps", "lost"] {
            if round[promise] != 0 {
                return Err(io::Error::other(format!(
                    "a round with {} {promise}: {round}",
                    round[promise]
                )));
            }
        }
        Ok(round)
    }

    /// Expects `each` events a session, calls `publish`, and waits for all of them.
    ///
    /// # Errors
    /// As [`Load::finish`].
    pub(crate) fn round(
        &mut self,
        each: u32,
        publish: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Value> {
        self.arm(each)?;
        publish()?;
        self.finish()
    }

    /// Says `line` and waits for the answer `{name: ...}`.
    ///
    /// # Errors
    /// The answer is another one.
    pub(crate) fn order(&mut self, line: &str, name: &str) -> io::Result<Value> {
        self.running.tell(line)?;
        self.answer(name)
    }

    fn answer(&mut self, name: &str) -> io::Result<Value> {
        let line = self.running.line()?;
        let mut value: Value = serde_json::from_str(&line)?;
        match value.get_mut(name) {
            Some(value) => Ok(value.take()),
            None => Err(io::Error::other(format!("{line:?} instead of {name}"))),
        }
    }
}

/// Microseconds of `time` for each of `count`.
pub(crate) fn micros_each(time: Duration, count: impl Into<f64>) -> f64 {
    time.as_secs_f64() * 1e6 / count.into()
}
