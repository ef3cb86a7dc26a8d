//! The real `blackhole` process, and the hand that feeds it events without a broker.
//!
//! Every wait has a deadline ([`PATIENCE`], or [`BROKER_PATIENCE`] where a broker has a part in it); a process never
//! outlives its guard, and what it said is shown when a test fails.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use super::client::{Client, Raw};
use super::schemas::hold_answer;
use super::tls::{self, Secured, Spoken};

/// Options of a server that needs no broker and takes any token.
pub const DEMO: [&str; 4] = ["--source", "demo", "--auth", "insecure"];

/// Longest wait for anything that is to happen without a broker.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Longest wait for what needs a broker to start, to be missed or to be found again.
pub const BROKER_PATIENCE: Duration = Duration::from_secs(60);

/// Looks that a condition which nothing announces, such as a metric, gets within the patience: one in 3 ms, or in
/// 20 ms beside a broker, which a look may ask too.
const GLANCES: u32 = 3000;

/// Looks again and again until `condition` gives something; panics, naming `what`, after [`PATIENCE`].
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, condition)
}

/// As [`wait_for`], after this patience.
pub fn wait_within<T>(patience: Duration, what: &str, condition: impl FnMut() -> Option<T>) -> T {
    watch(patience, condition).unwrap_or_else(|| panic!("not within {patience:?}: {what}"))
}

/// What `condition` gives at last; nothing when it gave nothing within the patience.
fn watch<T>(patience: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        let found = condition();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        thread::park_timeout(patience / GLANCES);
    }
}

/// Unix seconds.
pub fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

/// The server of the build that the running test or bench is of: beside it, or beside the folder it is in.
fn built() -> PathBuf {
    let own = env::current_exe().expect("the system tells it");
    let beside = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("blackhole"));
    let program = beside.into_iter().find(|program| program.is_file());
    program.unwrap_or_else(|| panic!("no blackhole beside {}: cargo build", own.display()))
}

/// The program under test: the one built with it, or the one that `BLACKHOLE_SERVER` names, so that a test can be shown
/// to fail with another build.
pub fn blackhole() -> Command {
    let program = env::var_os("BLACKHOLE_SERVER").map(PathBuf::from);
    let mut command = Command::new(program.unwrap_or_else(built));
    command.stdin(Stdio::null());
    command
}

/// Runs the program with a command line that ends by itself.
pub fn run_to_end(args: &[&str]) -> Output {
    let mut child = blackhole()
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    if watch(PATIENCE, || child.try_wait().unwrap()).is_none() {
        child.kill().unwrap();
        panic!("{args:?} did not end within {PATIENCE:?}");
    }
    child.wait_with_output().unwrap()
}

/// An address that stays free until it is taken: its IP is the test's own among those of the loopback interface.
pub fn own_address() -> SocketAddr {
    static USED: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let ip = [127, high | 0x80, low, USED.fetch_add(1, Ordering::Relaxed)];
    let listener = TcpListener::bind(SocketAddr::from((ip, 0))).unwrap();
    listener.local_addr().unwrap()
}

/// An address that refuses every connection for as long as the socket lives: bound, never listening.
pub fn dead_address() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// A running server on a port of its own, with an admin listener; killed on drop.
pub struct Server {
    child: Child,
    address: SocketAddr,
    tls_address: OnceCell<SocketAddr>,
    /// Clients of the harness speak TLS at the address, by the switch.
    spoken: Option<(Spoken, Secured)>,
    admin: OnceCell<SocketAddr>,
    log: Arc<Mutex<String>>,
    log_reader: Option<JoinHandle<()>>,
    stdout: Receiver<String>,
    /// Of every wait for something of it, and of the clients that [`Server::client`] makes.
    patience: Duration,
}

impl Server {
    /// Starts `blackhole` on `127.0.0.1`, port 0, admin port 0, with `args` behind; returns once it listens.
    pub fn start(args: &[&str]) -> Self {
        Self::start_patient(PATIENCE, args)
    }

    /// As [`Server::start`], with the options [`DEMO`].
    pub fn demo(args: &[&str]) -> Self {
        Self::start(&[&DEMO, args].concat())
    }

    /// As [`Server::start`], as a bridge from this broker that takes any token; returns once the broker is there.
    pub fn bridge(broker_url: &str, args: &[&str]) -> Self {
        Self::authorised(broker_url, "insecure", args)
    }

    /// As [`Server::bridge`], with this value of `--auth`.
    pub fn authorised(broker_url: &str, auth: &str, args: &[&str]) -> Self {
        let server = Self::unready(broker_url, &[&["--auth", auth], args].concat());
        server.until_ready();
        server
    }

    /// As [`Server::start`], as a bridge from this broker, which need not be there yet.
    pub fn unready(broker_url: &str, args: &[&str]) -> Self {
        let beside = ["--log-level", "debug", "--amqp", broker_url];
        Self::start_patient(BROKER_PATIENCE, &[&beside, args].concat())
    }

    fn start_patient(patience: Duration, args: &[&str]) -> Self {
        let mut all = vec!["--ip", "127.0.0.1", "--admin", "127.0.0.1:0"];
        if !args.contains(&"--port") {
            all.extend(["--port", "0"]);
        }
        all.extend(args);
        Self::start_with(patience, &all, Stdio::piped(), OnceCell::new())
    }

    /// With this whole command line, which the switch may change.
    fn start_with(
        patience: Duration,
        args: &[&str],
        stderr: Stdio,
        admin: OnceCell<SocketAddr>,
    ) -> Self {
        let mut command = blackhole();
        match Secured::switch(args) {
            Some((secured, args)) => {
                command.args(args);
                let mut server = Self::spawn_with(patience, command, stderr, admin);
                server.spoken = Some((secured.speak_at(server.tls_address()), secured));
                server
            }
            None => {
                command.args(args);
                Self::spawn_with(patience, command, stderr, admin)
            }
        }
    }

    /// Starts `command`, which becomes or is a `blackhole`, with its own stdin; returns once it listens.
    pub fn spawn(command: Command) -> Self {
        Self::spawn_patient(PATIENCE, command)
    }

    /// As [`Server::spawn`]; every wait for something of it may take this long.
    pub fn spawn_patient(patience: Duration, command: Command) -> Self {
        tls::tell_of_plain(&"the command that starts the server is the test's own");
        Self::spawn_with(patience, command, Stdio::piped(), OnceCell::new())
    }

    /// As [`Server::start`], with a stderr of the test's own, which [`Server::log`] does not read, and the admin
    /// listener at `admin`, which that stderr need not tell. `args` tell the source.
    pub fn start_logging_to(stderr: impl Into<Stdio>, admin: SocketAddr, args: &[&str]) -> Self {
        let address = admin.to_string();
        let own = ["--ip", "127.0.0.1", "--port", "0", "--admin", &address];
        let args = [&own, args].concat();
        Self::start_with(PATIENCE, &args, stderr.into(), OnceCell::from(admin))
    }

    fn spawn_with(
        patience: Duration,
        mut command: Command,
        stderr: Stdio,
        admin: OnceCell<SocketAddr>,
    ) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("the program can be started");
        // It holds the write end of a test's own stderr, whose reader waits for the end of all of them.
        drop(command);
        let log = Arc::new(Mutex::new(String::new()));
        let log_reader = child
            .stderr
            .take()
            .map(|stderr| gather(stderr, log.clone()));
        let stdout = lines(child.stdout.take().unwrap());
        let mut server = Self {
            child,
            address: ([0, 0, 0, 0], 0).into(),
            tls_address: OnceCell::new(),
            spoken: None,
            admin,
            log,
            log_reader,
            stdout,
            patience,
        };
        let first = server.stdout.recv_timeout(patience);
        let first =
            first.unwrap_or_else(|error| panic!("no first line: {error}\n{}", server.log()));
        server.address = match first.strip_prefix("listening on ") {
            Some(address) => address.parse().expect("IP:PORT"),
            None => *server.tls_address.get_or_init(|| tls_address_of(&first)),
        };
        server
    }

    /// Where clients connect: the TLS port when there is no other.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where clients connect with TLS, which the server must be told to listen for.
    pub fn tls_address(&self) -> SocketAddr {
        *self.tls_address.get_or_init(|| {
            let line = self.stdout.recv_timeout(self.patience);
            tls_address_of(&line.unwrap_or_else(|error| panic!("{error}: no line for TLS")))
        })
    }

    /// Where the admin pages are, as the log tells.
    pub fn admin(&self) -> SocketAddr {
        *self.admin.get_or_init(|| {
            let line = self.wait_for_log("admin pages on http://");
            let (_, behind) = line.split_once("http://").unwrap();
            behind.split('/').next().unwrap().parse().unwrap()
        })
    }

    /// A websocket client that has the server's patience.
    pub fn client(&self) -> Client {
        self.client_at("/")
    }

    /// As [`Server::client`], connected with this path and query.
    pub fn client_at(&self, path: &str) -> Client {
        let mut client = Client::connect_with(self.address, path, &[]);
        client.set_patience(self.patience);
        client
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything on stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The first line of the log that contains `needle`, once it is there.
    pub fn wait_for_log(&self, needle: &str) -> String {
        wait_within(self.patience, &format!("{needle:?} in the log"), || {
            let log = self.log.lock().unwrap();
            log.lines()
                .find(|line| line.contains(needle))
                .map(str::to_owned)
        })
    }

    /// A page of the admin listener: status and body.
    pub fn page(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin()).unwrap();
        stream.set_read_timeout(Some(self.patience)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut response = String::new();
        stream
            .read_to_string(&mut response)
            .expect("the page within the patience");
        let (head, body) = response.split_once("\r\n\r\n").expect("a whole head");
        if head.contains("Content-Type: application/json\r\n") {
            hold_answer(body);
        }
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    /// All metrics that are whole numbers by name, with their labels as they stand on the page and without the prefix
    /// `blackhole_`: `sessions`, `closes_total{reason="peer"}`, `turn_seconds_bucket{le="0.002"}`, `process_threads`. Sums
    /// of a family are there too, by the name without labels (`closes_total`), or with one of several
    /// (`commands_total{result="ok"}`).
    pub fn metrics(&self) -> HashMap<String, u64> {
        let (status, body) = self.page("/metrics");
        assert_eq!(status, 200);
        whole_metrics(&body)
    }

    /// One metric, or the sum of a family.
    pub fn metric(&self, name: &str) -> u64 {
        *self
            .metrics()
            .get(name)
            .unwrap_or_else(|| panic!("no metric {name}"))
    }

    /// One metric of a time, in seconds, such as `turn_seconds_sum`.
    pub fn metric_seconds(&self, name: &str) -> f64 {
        let (status, body) = self.page("/metrics");
        assert_eq!(status, 200);
        let mut samples = samples(&body);
        let (_, value) = samples
            .find(|(sample, _)| *sample == name)
            .unwrap_or_else(|| panic!("no metric {name}"));
        value.parse().expect("a number")
    }

    /// Waits until a metric has this value.
    pub fn wait_for_metric(&self, name: &str, value: u64) {
        self.until(&format!("{name} = {value}"), |server| {
            server.metric(name) == value
        });
    }

    /// Waits until `is` holds; panics, naming `what` and showing the metrics, when it never does.
    pub fn until(&self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        let came = watch(self.patience, || is(self).then_some(()));
        assert!(
            came.is_some(),
            "not within {:?}: {what}\n{}",
            self.patience,
            self.page("/metrics").1
        );
    }

    /// Waits until the event source is there.
    pub fn until_ready(&self) {
        self.until("ready", |server| server.page("/readyz").0 == 200);
    }

    /// Waits until the event source is missed.
    pub fn until_not_ready(&self) {
        self.until("not ready", |server| server.page("/readyz").0 == 503);
    }

    /// What a balancer that asks the websocket port is told: the status of `GET /`.
    pub fn probe(&self) -> u16 {
        let mut raw = Raw::connect(self.address);
        raw.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        raw.last_response().status
    }

    /// Nanoseconds of CPU that all threads have used.
    pub fn cpu_nanoseconds(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        tasks
            .map(|task| {
                let schedstat = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
                schedstat.split(' ').next().unwrap().parse::<u64>().unwrap()
            })
            .sum()
    }

    /// Bytes of memory that are resident.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// Most bytes of memory that were resident at once, since the start or the last [`Server::forget_peak`].
    pub fn peak_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// Lets the peak begin anew.
    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").unwrap();
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() << 10
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).expect("the process is still there");
    }

    /// SIGTERM, and the exit status.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// The exit status, once the process ends by itself. The log is complete afterwards.
    pub fn wait(&mut self) -> ExitStatus {
        let status = watch(self.patience, || self.child.try_wait().unwrap());
        let status = status.unwrap_or_else(|| panic!("did not end within {:?}", self.patience));
        if let Some(reader) = self.log_reader.take() {
            reader.join().unwrap();
        }
        status
    }

    /// Lines on stdout behind the first; complete once the process has ended.
    pub fn more_stdout(&self) -> Vec<String> {
        self.stdout.try_iter().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let status = self.child.wait();
        if thread::panicking() {
            // What the process said explains most failures.
            eprintln!("--- blackhole {status:?}\n{}---", self.log());
        } else if let Ok(status) = status {
            // Killed here, ended well, or told to end: anything else is a crash that no test may overlook.
            let is_fine = status.signal() == Some(9) || status.success();
            assert!(is_fine, "ended with {status}:\n{}", self.log());
        }
    }
}

fn tls_address_of(line: &str) -> SocketAddr {
    line.strip_prefix("listening with TLS on ")
        .and_then(|address| address.parse().ok())
        .unwrap_or_else(|| panic!("not `listening with TLS on IP:PORT`: {line:?}"))
}

/// The samples of a metrics page: their names, as [`Server::metrics`] has them, and their values.
pub fn samples(page: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').expect("name and value");
        let ours = name.strip_prefix("blackhole_");
        let is_standard = name.starts_with("process_");
        assert!(
            ours.is_some() || is_standard,
            "neither ours nor a standard name: {name}"
        );
        (ours.unwrap_or(name), value)
    })
}

/// [`Server::metrics`] of a page.
pub fn whole_metrics(page: &str) -> HashMap<String, u64> {
    let (mut metrics, mut sums) = (HashMap::new(), HashMap::new());
    for (name, value) in samples(page) {
        let Ok(whole) = value.parse::<u64>() else {
            assert!(value.parse::<f64>().is_ok(), "{name} is {value}");
            continue;
        };
        let before = metrics.insert(name.to_owned(), whole);
        assert_eq!(before, None, "{name} stands on the page twice");
        if let Some((family, labels)) = name.split_once('{') {
            *sums.entry(family.to_owned()).or_insert(0) += whole;
            let labels: Vec<&str> = labels.trim_end_matches('}').split(',').collect();
            for label in labels.iter().filter(|_| labels.len() > 1) {
                *sums.entry(format!("{family}{{{label}}}")).or_insert(0) += whole;
            }
        }
    }
    metrics.extend(sums);
    metrics
}

/// The lines of a child's stream, as they come.
pub fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn gather(stream: impl Read + Send + 'static, into: Arc<Mutex<String>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            into.lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}

/// A server whose events are published by the test, one at a time and when it wants, through a named pipe.
pub struct Fed {
    pub server: Server,
    pipe: File,
    _dir: TempDir,
}

impl Fed {
    /// Any token is good for any account.
    pub fn insecure(args: &[&str]) -> Self {
        Self::start(&[&["--auth", "insecure"], args].concat())
    }

    /// `tokens` is the content of the token file.
    pub fn with_tokens(tokens: &Value, args: &[&str]) -> Self {
        let file = TokenFile::new(tokens);
        let fed = Self::start(&[&["--auth", &file.option()], args].concat());
        // Read at start; nothing of it is needed any more.
        drop(file);
        fed
    }

    pub fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        assert!(
            Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        let source = format!("replay:{}", path.display());
        let server = Server::start(&[&["--source", &source], args].concat());
        // Not blocking, so that a server that does not read fails the test instead of hanging it.
        let pipe = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .unwrap();
        Self {
            server,
            pipe,
            _dir: dir,
        }
    }

    /// Publishes one event.
    pub fn publish(&mut self, exchange: &str, routing_key: &str, body: &Value) {
        self.publish_text(exchange, routing_key, &body.to_string());
    }

    /// Publishes one event whose body is exactly this JSON text, which must be on one line.
    pub fn publish_text(&mut self, exchange: &str, routing_key: &str, body: &str) {
        let (exchange, routing_key) = (json!(exchange), json!(routing_key));
        let line =
            format!("{{\"exchange\":{exchange},\"routing_key\":{routing_key},\"body\":{body}}}\n");
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            match self.pipe.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_for_room(),
                Err(error) => panic!("the server reads no events: {error}"),
            }
        }
    }

    fn wait_for_room(&self) {
        let mut pipe = [PollFd::from_borrowed_fd(self.pipe.as_fd(), PollFlags::OUT)];
        let patience = Timespec {
            tv_sec: PATIENCE.as_secs().try_into().unwrap(),
            tv_nsec: 0,
        };
        let ready = rustix::io::retry_on_intr(|| poll(&mut pipe, Some(&patience))).unwrap();
        assert!(ready > 0, "the server took no event within {PATIENCE:?}");
    }
}

/// A token file that a running server rereads.
pub struct TokenFile {
    dir: TempDir,
}

impl TokenFile {
    pub fn new(tokens: &Value) -> Self {
        let file = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        file.write(&tokens.to_string());
        file
    }

    /// Replaces the content.
    pub fn write(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
    }

    /// The value of `--auth`.
    pub fn option(&self) -> String {
        format!("tokens:{}", self.path().display())
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("tokens.json")
    }
}

/// A file of this content in a directory that vanishes with it.
pub struct Scratch {
    _dir: TempDir,
    path: PathBuf,
}

impl Scratch {
    pub fn file(name: &str, content: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        Self { _dir: dir, path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn write(&self, content: &str) {
        fs::write(&self.path, content).unwrap();
    }
}
