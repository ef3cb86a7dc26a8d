//! The processes of a measurement: a server pinned to one core, its load generator pinned to another.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Memory, cpu, memory};

/// The core of the servers. The load generators are on [`LOAD_CORE`]; so is this program, which sleeps.
const SERVER_CORE: &str = "0";
const LOAD_CORE: &str = "1";

/// Longest wait for a server's CPU time to stand still after a round.
const QUIET_PATIENCE: Duration = Duration::from_secs(2);

/// CPU time is taken when it has stood still for this long.
const QUIET: Duration = Duration::from_millis(10);

/// CPU time of a server: of all its threads, and of its main thread, which runs the loop.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) all: Duration,
    pub(crate) main: Duration,
}

impl Cpu {
    fn of(pid: u32) -> io::Result<Self> {
        let threads = cpu(pid)?;
        let main = threads
            .iter()
            .find(|thread| thread.id == pid)
            .map_or(Duration::ZERO, |thread| thread.ran);
        Ok(Self {
            all: threads.iter().map(|thread| thread.ran).sum(),
            main,
        })
    }

    /// What was used since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            all: self.all.saturating_sub(before.all),
            main: self.main.saturating_sub(before.main),
        }
    }
}

/// Something that runs until it is dropped, with its stdin and stdout in our hands.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    name: String,
}

impl Running {
    /// Starts `program` on `core`.
    fn start(core: &str, program: &Path, arguments: &[String]) -> io::Result<Self> {
        let name = program.display().to_string();
        let mut child = Command::new("taskset")
            .args(["--cpu-list", core])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("taskset {name}: {error}")))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(BufReader::new);
        let stdout = stdout.ok_or_else(|| io::Error::other("no stdout"))?;
        Ok(Self {
            child,
            stdin,
            stdout,
            name,
        })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            return Err(io::Error::other(format!("{} has ended", self.name)));
        }
        Ok(line.trim_end().to_owned())
    }

    fn tell(&mut self, line: &str) -> io::Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .ok_or_else(|| io::Error::other("stdin is closed"))?;
        stdin.write_all(format!("{line}\n").as_bytes())?;
        stdin.flush()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server under measurement.
pub(crate) struct Server {
    running: Running,
    pub(crate) address: String,
}

impl Server {
    /// Starts `program` and waits for its first line, `listening on IP:PORT`.
    pub(crate) fn start(program: &Path, arguments: &[String]) -> io::Result<Self> {
        let mut running = Running::start(SERVER_CORE, program, arguments)?;
        let line = running.line()?;
        let address = line.strip_prefix("listening on ").map(str::to_owned);
        let address = address
            .ok_or_else(|| io::Error::other(format!("{}: first line {line:?}", running.name)))?;
        Ok(Self { running, address })
    }

    /// CPU time so far, taken when it stands still.
    pub(crate) fn cpu(&self) -> io::Result<Cpu> {
        let deadline = Instant::now() + QUIET_PATIENCE;
        let mut last = Cpu::of(self.running.child.id())?;
        loop {
            std::thread::sleep(QUIET);
            let now = Cpu::of(self.running.child.id())?;
            if now.since(last).all < QUIET / 100 || Instant::now() > deadline {
                return Ok(now);
            }
            last = now;
        }
    }

    pub(crate) fn memory(&self) -> io::Result<Memory> {
        memory(self.running.child.id())
    }

    /// Says `line` to the bare server and waits for its answer.
    pub(crate) fn order(&mut self, line: &str) -> io::Result<String> {
        self.running.tell(line)?;
        self.running.line()
    }
}

/// A load generator under `--control`.
pub(crate) struct Load {
    running: Running,
    /// Its summary when all sessions were settled.
    pub(crate) ready: Value,
}

impl Load {
    /// Opens and subscribes `sessions` sessions; fails when not all become live.
    pub(crate) fn start(
        program: &Path,
        address: &str,
        sessions: u32,
        more: &[&str],
    ) -> io::Result<Self> {
        let mut arguments = [
            "--control",
            "--spin",
            "--quiet",
            "--address",
            address,
            "--sessions",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.push(sessions.to_string());
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        let mut running = Running::start(LOAD_CORE, program, &arguments)?;
        let ready = answer(&mut running, "ready")?;
        if ready["live"] != sessions {
            return Err(io::Error::other(format!(
                "not all sessions became live: {ready}"
            )));
        }
        Ok(Self { running, ready })
    }

    /// Expects `each` events a session, calls `publish`, and waits for all of them; fails when one is missing.
    pub(crate) fn round(
        &mut self,
        each: u32,
        publish: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Value> {
        self.running.tell(&format!("expect {each}"))?;
        answer(&mut self.running, "armed")?;
        publish()?;
        let round = answer(&mut self.running, "round")?;
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
}

fn answer(running: &mut Running, name: &str) -> io::Result<Value> {
    let line = running.line()?;
    let mut value: Value = serde_json::from_str(&line)?;
    match value.get_mut(name) {
        Some(value) => Ok(value.take()),
        None => Err(io::Error::other(format!("{line:?} instead of {name}"))),
    }
}

/// Blackhole with its events coming through a named pipe: what is written at once is in flight at once.
pub(crate) struct Ours {
    pub(crate) server: Server,
    events: File,
    _pipe: Pipe,
    published: u64,
    body_bytes: usize,
}

impl Ours {
    /// Starts `program`, whose events have a body of about `body_bytes`.
    pub(crate) fn start(program: &Path, body_bytes: usize) -> io::Result<Self> {
        let pipe = Pipe::make()?;
        let source = format!("replay:{}", pipe.0.display());
        let arguments = [
            "--ip",
            "127.0.0.1",
            "--port",
            "0",
            "--auth",
            "insecure",
            "--log-level",
            "warn",
            "--source",
            &source,
        ];
        let server = Server::start(program, &arguments.map(str::to_owned))?;
        let events = OpenOptions::new().write(true).open(&pipe.0)?;
        Ok(Self {
            server,
            events,
            _pipe: pipe,
            published: 0,
            body_bytes,
        })
    }

    /// Publishes `count` events of account 1 at once: each matches `call.CHANNEL_CREATE.*` of that account.
    pub(crate) fn publish(&mut self, count: u32) -> io::Result<()> {
        let mut lines = String::new();
        for _ in 0..count {
            self.published += 1;
            lines.push_str(&line(self.published, self.body_bytes));
        }
        self.events.write_all(lines.as_bytes())
    }
}

/// One line for the replay source: event number `n`, with a body of `body_bytes` (at least the 200 that its keys take).
fn line(n: u64, body_bytes: usize) -> String {
    let account = "0".repeat(31) + "1";
    let body = |filler: &str| {
        format!(
            r#"{{"Call-ID":"bench-{n}","Custom-Channel-Vars":{{"Account-ID":"{account}"}},"Event-Category":"call_event","Event-Name":"CHANNEL_CREATE","Filler":"{filler}"}}"#
        )
    };
    let filler = "x".repeat(body_bytes.saturating_sub(body("").len()));
    let body = body(&filler);
    format!(
        r#"{{"exchange":"callevt","routing_key":"call.CHANNEL_CREATE.bench-{n}","body":{body}}}"#
    ) + "\n"
}

/// A named pipe that is removed when dropped.
struct Pipe(PathBuf);

impl Pipe {
    fn make() -> io::Result<Self> {
        let path =
            std::env::temp_dir().join(format!("blackhole-bench-{}.pipe", std::process::id()));
        // A run that was killed may have left it.
        let _ = std::fs::remove_file(&path);
        if !Command::new("mkfifo").arg(&path).status()?.success() {
            return Err(io::Error::other(format!("mkfifo {}", path.display())));
        }
        Ok(Self(path))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
