//! A private RabbitMQ for one test or for all tests of a binary, by way of `scripts/broker`.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::{env, fs, process};

/// Ports a broker takes from its first one on; see `scripts/broker`.
const PORTS: u16 = 30;
/// First ports tried: below the ephemeral range.
const FIRST_PORTS: std::ops::Range<u16> = 20_000..32_600;

/// A running broker in a directory of its own; stopped and removed on drop, also when its test panics.
pub struct Broker {
    dir: PathBuf,
    port: u16,
}

impl Broker {
    /// Starts one on free ports and waits until it serves. Panics, saying so, when RabbitMQ is not installed.
    pub fn start() -> Self {
        let (dir, port) = claim();
        let broker = Self { dir, port };
        broker.restart();
        broker
    }

    /// The broker that the tests of this binary share: started by the first, stopped by the last that holds it.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Broker>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let broker = Arc::new(Self::start());
            *shared = Arc::downgrade(&broker);
            broker
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// As user `guest`, virtual host `/`.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Kills the broker as a crash would.
    pub fn kill9(&self) {
        self.run(&["kill9"]);
    }

    /// Starts it again, on the same ports, after [`Broker::kill9`] or [`Broker::stop`].
    pub fn restart(&self) {
        self.run(&["start"]);
    }

    /// An orderly stop.
    pub fn stop(&self) {
        self.run(&["stop"]);
    }

    /// Freezes it: its sockets stay open and say nothing.
    pub fn pause(&self) {
        self.run(&["pause"]);
    }

    pub fn resume(&self) {
        self.run(&["resume"]);
    }

    /// `rabbitmqctl`; answers what it prints.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.run(&[&["ctl"], arguments].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let output = self
            .command(arguments)
            .output()
            .expect("scripts/broker can be run");
        assert!(
            output.status.success(),
            "scripts/broker {arguments:?} failed:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/broker");
        let mut command = Command::new(script);
        command
            .arg("--dir")
            .arg(&self.dir)
            .arg("--port")
            .arg(self.port.to_string())
            .args(arguments);
        command.stdin(Stdio::null());
        command
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Not in order: nobody will read what it would write, and it may be frozen. `stop` also ends its port mapper.
        for arguments in [["kill9"], ["stop"]] {
            let _ = self.command(&arguments).output();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A directory named after its port, which is the claim on that port against other test processes, and a port whose
/// whole range is free.
fn claim() -> (PathBuf, u16) {
    let ranges = (FIRST_PORTS.end - FIRST_PORTS.start) / PORTS;
    let begin = u16::try_from(process::id() % u32::from(ranges)).expect("below `ranges`");
    for turn in 0..ranges {
        let port = FIRST_PORTS.start + (begin + turn * 7) % ranges * PORTS;
        let is_free = |offset| TcpListener::bind(("127.0.0.1", port + offset)).is_ok();
        let dir = env::temp_dir().join(format!("blackhole-test-broker-{port}"));
        if [0, 1, 2].into_iter().all(is_free) && fs::create_dir(&dir).is_ok() {
            return (dir, port);
        }
    }
    panic!("no free ports for a broker below {}", FIRST_PORTS.end);
}
