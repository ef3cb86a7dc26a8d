//! A private RabbitMQ for one test or for all tests of a binary, by way of `scripts/broker`.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use std::{fs, io, process, thread};

use crate::left_out::leave_out;

/// Longest wait for a frozen broker's threads to stop.
const STOP_MAX: Duration = Duration::from_secs(10);

/// A running broker in a directory of its own, on ports that the script found free; stopped and removed on drop, also
/// when its test panics.
pub struct Broker {
    dir: PathBuf,
    port: u16,
    options: Vec<String>,
    guard: Option<Guard>,
}

/// Whether RabbitMQ is there to be started.
///
/// # Errors
/// [`io::ErrorKind::NotFound`], with what to do about it as the text.
pub fn installed() -> io::Result<()> {
    let output = Command::new(script()).arg("info").output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::new(io::ErrorKind::NotFound, text))
}

/// Whether the running test can have a broker. Where RabbitMQ is not installed the test is left out, which is said
/// ([`leave_out`]).
pub fn is_there() -> bool {
    installed().map_err(|error| leave_out(&error)).is_ok()
}

fn script() -> PathBuf {
    crate::project_file("scripts/broker")
}

impl Broker {
    /// One of the running test's own; `None` where the test must leave itself out ([`is_there`]).
    pub fn own() -> Option<Self> {
        is_there().then(Self::start)
    }

    /// Starts one on free ports and waits until it serves. Panics, saying so, when RabbitMQ is not installed.
    pub fn start() -> Self {
        Self::start_with(&[]).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Broker::start`], with options of `scripts/broker`. `Err` says why it did not start.
    pub fn start_with(options: &[&str]) -> Result<Self, String> {
        let mut broker = Self::new(options);
        broker.begin()?;
        Ok(broker)
    }

    /// With TLS on a port of its own, by the files of a directory ([`crate::certificates::Certified`]); `clients`: and
    /// only for clients with a certificate of the same CA.
    pub fn start_with_tls(files: &Path, clients: bool) -> Result<Self, String> {
        let files = files.to_str().expect("a name in UTF-8");
        let clients = clients.then_some("--tls-clients");
        Self::start_with(&[&["--tls", files], clients.as_slice()].concat())
    }

    /// As [`Broker::start_with`] without options; and it does not outlive this process even when that is killed. To
    /// be called by the main thread only.
    pub fn start_guarded() -> Result<Self, String> {
        let mut broker = Self::new(&[]);
        broker.guard = Some(Guard::start(&broker.dir).map_err(|error| error.to_string())?);
        broker.begin()?;
        Ok(broker)
    }

    fn new(options: &[&str]) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self {
            dir: crate::project_file(&format!("target/brokers/{}-{number}", process::id())),
            port: 0,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            guard: None,
        }
    }

    fn begin(&mut self) -> Result<(), String> {
        self.try_run(&["start"])?;
        let port = fs::read_to_string(self.dir.join("port")).map_err(|error| error.to_string())?;
        self.port = port.trim().parse().expect("a port is a number");
        Ok(())
    }

    /// The broker that the tests of this binary share: started by the first, stopped by the last that holds it. `None`
    /// where the running test must leave itself out ([`is_there`]).
    pub fn shared() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Broker>> = Mutex::new(Weak::new());
        if !is_there() {
            return None;
        }
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        Some(shared.upgrade().unwrap_or_else(|| {
            let broker = Arc::new(Self::start());
            *shared = Arc::downgrade(&broker);
            broker
        }))
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
        self.run(&["stop-node"]);
    }

    /// Freezes it: its sockets stay open and say nothing. Returns when every thread of it has stopped.
    pub fn pause(&self) {
        self.run(&["pause"]);
        let deadline = Instant::now() + STOP_MAX;
        while !self.is_frozen() {
            assert!(Instant::now() < deadline, "a stopped broker goes on");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_frozen(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("a broker runs");
        // A thread that has ended meanwhile has no state any more.
        threads.flatten().all(|thread| {
            fs::read_to_string(thread.path().join("stat")).map_or(true, |stat| {
                stat.rsplit_once(") ")
                    .is_some_and(|(_, rest)| rest.starts_with(['T', 't', 'Z', 'X']))
            })
        })
    }

    pub fn resume(&self) {
        self.run(&["resume"]);
    }

    /// `rabbitmqctl`; answers what it prints.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.run(&[&["ctl"], arguments].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Where websocket clients connect when it was started with `--web-mqtt`.
    pub fn websocket_port(&self) -> u16 {
        self.port + 3
    }

    /// Where MQTT clients connect when it was started with `--web-mqtt`.
    pub fn mqtt_port(&self) -> u16 {
        self.port + 4
    }

    /// Where AMQP is spoken over TLS when it was started so.
    pub fn tls_port(&self) -> u16 {
        self.port + 5
    }

    /// The node's process.
    pub fn pid(&self) -> u32 {
        let pid = fs::read_to_string(self.dir.join("pid")).expect("a broker writes its process id");
        pid.trim().parse().expect("a process id is a number")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.try_run(arguments)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_run(&self, arguments: &[&str]) -> Result<Output, String> {
        let output = self
            .command(arguments)
            .output()
            .map_err(|error| format!("scripts/broker: {error}"))?;
        if output.status.success() {
            return Ok(output);
        }
        Err(format!(
            "scripts/broker {arguments:?} failed:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match self.guard {
            None => Command::new(script()),
            Some(_) => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL"]).arg(script());
                command
            }
        };
        command
            .arg("--dir")
            .arg(&self.dir)
            .env_remove("BROKER_PORT")
            .args(&self.options)
            .args(arguments);
        command.stdin(Stdio::null());
        command
    }
}

/// Nodes of one cluster, each a [`Broker`]; stopped and removed on drop.
pub struct Cluster {
    dir: PathBuf,
    nodes: Vec<Broker>,
}

impl Cluster {
    /// Starts one of so many nodes and waits until each knows all others; `None` where the running test must leave
    /// itself out ([`is_there`]).
    pub fn start(nodes: usize) -> Option<Self> {
        if !is_there() {
            return None;
        }
        let count = nodes.to_string();
        let whole = Broker::new(&["--cluster", &count]);
        let dir = whole.dir.clone();
        let node = |number: usize| Broker {
            dir: dir.join(number.to_string()),
            port: 0,
            options: Vec::new(),
            guard: None,
        };
        // Before the start, so that one that fails leaves nothing behind.
        let mut cluster = Self {
            nodes: (1..=nodes).map(node).collect(),
            dir: dir.clone(),
        };
        whole.run(&["start"]);
        std::mem::forget(whole);
        for node in &mut cluster.nodes {
            let port = fs::read_to_string(node.dir.join("port")).expect("a started node");
            node.port = port.trim().parse().expect("a port is a number");
        }
        Some(cluster)
    }

    pub fn nodes(&self) -> &[Broker] {
        &self.nodes
    }

    /// Waits until all nodes run and the last knows them.
    pub fn until_whole(&self) {
        let count = self.nodes.len().to_string();
        let last = self.nodes.last().expect("at least one");
        last.ctl(&["await_online_nodes", &count, "--timeout", "60"]);
    }

    /// Cuts a node off from the others: their connections end, and no other can be made, because the node does not know
    /// the others' cookie any more. Clients reach it as before. It sees a minority and pauses.
    pub fn part(&self, node: usize) {
        self.each_other(
            node,
            "erlang:set_cookie(N, parted), erlang:disconnect_node(N)",
        );
    }

    /// Ends what [`Cluster::part`] began.
    pub fn heal(&self, node: usize) {
        self.each_other(node, "erlang:set_cookie(N, erlang:get_cookie())");
    }

    /// Runs Erlang on a node with the names of the others as `N`.
    fn each_other(&self, node: usize, erlang: &str) {
        let name = |other: &Broker| format!("'blackhole{}@localhost'", other.port);
        let others = self.nodes.iter().enumerate();
        let others: Vec<_> = others
            .filter(|(number, _)| *number != node)
            .map(|(_, other)| name(other))
            .collect();
        let each = format!("[begin {erlang} end || N <- [{}]].", others.join(", "));
        self.nodes[node].ctl(&["eval", &each]);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.clear();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Waits for the end of its stdin, which is this process's end, and then stops the broker of a directory and removes
/// that. Twice, because a start that was broken off may have a step under way. Does nothing when dropped.
struct Guard(Child);

impl Guard {
    fn start(dir: &Path) -> io::Result<Self> {
        const STOP: &str =
            r#"read -r _; "$0" --dir "$1" stop; sleep 3; "$0" --dir "$1" stop; rm -rf "$1""#;
        let child = Command::new("sh")
            .args(["-c", STOP])
            .args([&script(), dir])
            // Ctrl-C is not for it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Before its stdin ends.
        let _ = self.0.kill();
        let _ = self.0.wait();
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
