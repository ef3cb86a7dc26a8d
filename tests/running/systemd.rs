//! `scripts/systemd`: the units as systemd reads them, and the server as a service of systemd: what it tells its service
//! manager (sd_notify(3)), and the sockets that it is handed (sd_listen_fds(3)). systemd itself need not run: the manager's
//! end of each is the test's.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::tools::program;
use crate::visits::{Over, visit, visits};
use support::client::{ANY_TOKEN, Client, Raw};
use support::events::ACCOUNT;
use support::project_file;
use support::server::{DEMO, PATIENCE, Server, blackhole, dead_address, own_address, wait_for};
use support::wire::UPGRADE_REQUEST;

const SERVICE: &str = "blackhole@0.service";

/// Tenths of what `systemd-analyze security` gives at most: 0 is none, 100 a service that may do all. Two are for setpriority,
/// by which the threads of TLS handshakes stand back behind the loop.
const EXPOSURE_MAX: &str = "13";

/// The folder of the units as an operator has it: an instance is a name of the template.
fn units() -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(project_file("scripts/systemd")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        fs::copy(&path, folder.path().join(name.replace('@', "@0"))).unwrap();
    }
    folder
}

fn analyze(folder: &Path, args: &[&str]) -> Option<Output> {
    let mut command = Command::new(program("systemd-analyze")?);
    command.current_dir(folder).args(args);
    Some(command.output().unwrap())
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{out}{err}")
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let folder = units();
    let names = [
        "./blackhole@0.service",
        "./blackhole@0.socket",
        "./blackhole-tls@0.socket",
        "./blackhole.target",
    ];
    let verify =
        |names: &[&str]| analyze(folder.path(), &[&["verify", "--man=no"], names].concat());
    let Some(output) = verify(&names) else { return };
    assert_eq!(
        (text(&output).as_str(), output.status.success()),
        ("", true)
    );
    // What it would say.
    let unit = fs::read_to_string(folder.path().join(SERVICE)).unwrap();
    let unit = unit.replace("WatchdogSec=20", "WatchdogSec=often");
    fs::write(folder.path().join(SERVICE), unit).unwrap();
    let output = verify(&names).unwrap();
    assert!(
        text(&output).contains("ignoring: often"),
        "{}",
        text(&output)
    );
}

#[test]
fn the_service_may_do_little_more_than_what_it_is_for() {
    let folder = units();
    let judge = || {
        let threshold = format!("--threshold={EXPOSURE_MAX}");
        let options = ["security", "--offline=yes", "--no-pager", &threshold];
        analyze(
            folder.path(),
            &[&options[..], &["./blackhole@0.service"]].concat(),
        )
    };
    let Some(output) = judge() else { return };
    assert!(output.status.success(), "{}", text(&output));
    let open = fs::read_to_string(folder.path().join(SERVICE)).unwrap();
    let open = open.replace("CapabilityBoundingSet=\n", "");
    fs::write(folder.path().join(SERVICE), open).unwrap();
    let output = judge().unwrap();
    assert!(!output.status.success(), "{}", text(&output));
}

/// What the unit starts, as a line of a shell: systemd's own replacements made for instance 0.
fn start_line(unit: &str, folder: &Path) -> String {
    let unit = unit.replace("\\\n", "");
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let line = line.expect("it starts something");
    let shell = line
        .strip_prefix("/bin/sh -c '")
        .and_then(|line| line.strip_suffix('\''));
    let program = blackhole().get_program().to_str().unwrap().to_owned();
    let options = "--ip 127.0.0.1 --port 0 --source demo --auth insecure";
    let replaced = shell
        .expect("a shell")
        .replace("/usr/bin/blackhole", &program)
        .replace("/etc/blackhole", folder.to_str().unwrap())
        .replace("/run/blackhole", folder.to_str().unwrap())
        .replace("${ADMIN_PORT}", &own_address().port().to_string())
        .replace("${BLACKHOLE_OPTIONS}", options)
        .replace("%i", "0")
        .replace("$$", "$");
    assert!(!replaced.contains("${"), "{replaced}");
    replaced
}

#[test]
fn what_the_service_starts_is_a_server_with_an_address_and_a_socket_for_its_operator() {
    let unit = fs::read_to_string(project_file("scripts/systemd/blackhole@.service")).unwrap();
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("blackhole.json"), "{}").unwrap();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &start_line(&unit, folder.path())]);
    let mut server = Server::spawn(shell);
    assert_eq!(server.page("/readyz").0, 200);
    let socket = format!("blackhole-{}.sock", server.pid());
    assert!(
        folder.path().join(socket).exists(),
        "the shell has become the server"
    );
    assert_eq!(server.stop().code(), Some(0));
}

/// For what is there already, or never.
const SHORT: Duration = Duration::from_millis(1);

/// The manager's end of the notifications.
struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, folder }
    }

    /// A server that it has started.
    fn start(&self, environment: &[(&str, &str)], args: &[&str]) -> Server {
        let mut command = blackhole();
        command.args(["--ip", "127.0.0.1", "--port", "0", "--admin", "127.0.0.1:0"]);
        command
            .args(args)
            .env("NOTIFY_SOCKET", self.folder.path().join("notify"));
        command.envs(environment.iter().copied());
        Server::spawn(command)
    }

    /// The next message, as its lines.
    fn next(&self) -> Vec<String> {
        let message = self.within(PATIENCE);
        message.expect("a message within the patience")
    }

    fn within(&self, patience: Duration) -> Option<Vec<String>> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut bytes = [0; 4096];
        match self.socket.recv(&mut bytes) {
            Ok(length) => {
                let text = std::str::from_utf8(&bytes[..length]).unwrap();
                Some(text.lines().map(str::to_owned).collect())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The next message with this line, and all lines before it.
    fn until(&self, line: &str) -> (Vec<String>, Vec<String>) {
        let mut before = Vec::new();
        loop {
            let message = self.next();
            if message.iter().any(|told| told == line) {
                return (before, message);
            }
            before.extend(message);
        }
    }
}

/// Of the clock that systemd compares with.
#[allow(
    unsafe_code,
    reason = "the standard library does not tell this clock's time, and rustix would be built for it again"
)]
fn monotonic_usec() -> i64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec, which outlives the call.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(status, 0);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

#[test]
fn the_manager_is_told_of_the_start_each_reload_and_the_end() {
    let manager = Manager::new();
    let mut server = manager.start(
        &[],
        &[
            &DEMO[..],
            &["--drain-delay-seconds", "1", "--drain-seconds", "3"],
        ]
        .concat(),
    );
    let (before, ready) = manager.until("READY=1");
    assert!(
        before.iter().all(|line| line.starts_with("STATUS=")),
        "{before:?}"
    );
    assert_eq!(ready[1..], ["STATUS=ready; clients: 0"]);
    assert_eq!(server.page("/readyz").0, 200, "it is ready when it says so");

    for reloads in 1..=2 {
        let sent_at = monotonic_usec();
        server.signal(Signal::HUP);
        let (before, reloading) = manager.until("RELOADING=1");
        assert_eq!(before, [""; 0]);
        let time = reloading
            .iter()
            .find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        let time: i64 = time.expect("systemd 253 asks for it").parse().unwrap();
        assert!((sent_at..=monotonic_usec()).contains(&time), "{time}");
        let (before, _) = manager.until("READY=1");
        assert_eq!(before, [""; 0]);
        assert_eq!(
            server.metric("config_reloads_total"),
            reloads,
            "done when told"
        );
    }

    let _client = server.client();
    server.signal(Signal::TERM);
    let (before, stopping) = manager.until("STOPPING=1");
    assert_eq!(before, [""; 0]);
    // 1 s, 3 s, and what the end itself may take.
    assert_eq!(
        stopping[1..],
        [
            "EXTEND_TIMEOUT_USEC=9000000",
            "STATUS=going away; clients: 1"
        ]
    );
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(manager.within(SHORT), None, "that was all");
}

#[test]
fn a_server_whose_broker_is_away_is_not_ready_and_says_why() {
    let manager = Manager::new();
    let (_socket, dead) = dead_address();
    let broker = format!("amqp://guest:guest@{dead}");
    let mut server = manager.start(&[], &["--auth", "insecure", "--amqp", &broker]);
    assert_eq!(
        manager.next(),
        ["STATUS=listening, waiting for the event source; clients: 0"]
    );
    // Whatever comes next is not READY; the end is told of what never began, too.
    server.signal(Signal::TERM);
    assert_eq!(manager.next()[0], "STOPPING=1");
    assert_eq!(server.wait().code(), Some(0));
}

/// The interval in these tests; the server gives a sign of life every half of it.
const WATCHDOG: Duration = Duration::from_millis(600);

#[test]
fn the_watchdog_is_fed_by_the_loop_and_starves_when_the_loop_hangs_though_the_process_lives() {
    let manager = Manager::new();
    let interval = WATCHDOG.as_micros().to_string();
    let begun = Instant::now();
    let mut server = manager.start(&[("WATCHDOG_USEC", &interval)], &DEMO);
    let (_, ready) = manager.until("READY=1");
    assert!(ready.contains(&"WATCHDOG=1".to_owned()), "{ready:?}");
    for _ in 0..4 {
        let fed = manager.next();
        assert_eq!(fed, ["WATCHDOG=1", "STATUS=ready; clients: 0"]);
    }
    assert!(
        begun.elapsed() >= WATCHDOG * 2,
        "no more often than each half"
    );

    let Some(hung) = one_thread::Stopped::stop(server.pid()) else {
        support::left_out::leave_out(&"no thread may be stopped here (ptrace)");
        return;
    };
    // What was sent before the stop.
    while manager.within(SHORT).is_some() {}
    assert_eq!(manager.within(WATCHDOG * 2), None, "the loop hangs");
    drop(hung);
    assert_eq!(manager.next()[0], "WATCHDOG=1", "the loop turns again");
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn a_watchdog_of_another_process_is_none_of_ours() {
    let manager = Manager::new();
    let environment = [("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")];
    let mut server = manager.start(&environment, &DEMO);
    let (_, ready) = manager.until("READY=1");
    assert!(!ready.contains(&"WATCHDOG=1".to_owned()), "{ready:?}");
    server.signal(Signal::TERM);
    assert_eq!(manager.next()[0], "STOPPING=1", "nothing between the two");
    assert_eq!(server.wait().code(), Some(0));
}

mod one_thread {
    use std::ptr::null_mut;

    /// The main thread of a process, stopped alone; it goes on when this is dropped, by the thread that has stopped it.
    pub(super) struct Stopped(libc::pid_t);

    impl Stopped {
        /// Nothing where that is not allowed.
        #[allow(
            unsafe_code,
            reason = "no safe crate of the tree offers ptrace, and a signal would stop every thread"
        )]
        pub(super) fn stop(pid: u32) -> Option<Self> {
            let pid: libc::pid_t = pid.try_into().unwrap();
            // SAFETY: these requests take no memory of ours; the process is our child.
            let is_ours = unsafe {
                libc::ptrace(libc::PTRACE_SEIZE, pid, null_mut::<u8>(), null_mut::<u8>()) == 0
                    && libc::ptrace(
                        libc::PTRACE_INTERRUPT,
                        pid,
                        null_mut::<u8>(),
                        null_mut::<u8>(),
                    ) == 0
            };
            if !is_ours {
                return None;
            }
            let mut status = 0;
            // SAFETY: the kernel writes one number, which outlives the call.
            let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
            assert_eq!(waited, pid);
            assert!(libc::WIFSTOPPED(status));
            Some(Self(pid))
        }
    }

    impl Drop for Stopped {
        #[allow(unsafe_code, reason = "as above")]
        fn drop(&mut self) {
            // SAFETY: as above.
            unsafe {
                libc::ptrace(
                    libc::PTRACE_DETACH,
                    self.0,
                    null_mut::<u8>(),
                    null_mut::<u8>(),
                )
            };
        }
    }
}

/// A command that becomes the server with `socket` handed over under this name, or without one.
fn handed(socket: &TcpListener, name: Option<&str>, args: &[&str]) -> Command {
    let copy = OwnedFd::from(socket.try_clone().unwrap());
    let mut command = Command::new("/bin/sh");
    // Descriptors are handed over from 3 on; the process keeps its number.
    let script = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec "$@""#;
    command.args(["-c", script, "sh"]);
    command.arg(blackhole().get_program()).args(args);
    if let Some(name) = name {
        command.env("LISTEN_FDNAMES", name);
    }
    command.stdin(Stdio::from(copy));
    command
}

/// Short, and nobody is asked to move.
const BRIEF: [&str; 4] = ["--drain-seconds", "1", "--going-away-ms", "0"];

fn upgraded(raw: &mut Raw) {
    raw.send(UPGRADE_REQUEST.as_bytes());
    assert_eq!(raw.head().status, 101);
}

#[test]
fn a_socket_that_is_handed_over_keeps_its_clients_for_the_next_process() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let args = [&DEMO[..], &BRIEF, &["--admin", "127.0.0.1:0"]].concat();
    for name in [Some("websocket"), None] {
        let mut first = Server::spawn(handed(&socket, name, &args));
        assert_eq!(first.address(), address, "not --port");
        let mut client = Client::connect(address);
        client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
        first.signal(Signal::TERM);
        assert_eq!(client.expect_close().0, 1001);
        assert_eq!(first.wait().code(), Some(0));
        // Nobody listens but the test's own socket: whoever comes waits, and is not refused.
        let mut waiting: Vec<Raw> = (0..20).map(|_| Raw::connect(address)).collect();
        waiting[0].send(UPGRADE_REQUEST.as_bytes());
        let mut second = Server::spawn(handed(&socket, name, &args));
        assert_eq!(waiting[0].head().status, 101);
        waiting[1..].iter_mut().for_each(upgraded);
        drop(waiting);
        assert_eq!(second.stop().code(), Some(0));
    }
}

/// Times that a process is replaced under clients that come all the time.
const REPLACEMENTS: usize = 3;

#[test]
fn no_connect_is_refused_or_reset_while_processes_with_a_handed_socket_replace_each_other() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let args = [&DEMO[..], &BRIEF, &["--admin", "127.0.0.1:0"]].concat();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let over = Over(&is_over);
        let clients: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| visits(address, &is_over)))
            .collect();
        for _ in 0..REPLACEMENTS {
            let mut server = Server::spawn(handed(&socket, Some("websocket"), &args));
            server.until("visits", |server| {
                server.metric("sessions_opened_total") > 30
            });
            assert_eq!(server.stop().code(), Some(0));
        }
        let _last = Server::spawn(handed(&socket, Some("websocket"), &args));
        drop(over);
        for client in clients {
            let served = client.join().unwrap().expect("refused or reset");
            assert!(served > 0);
        }
    });
}

#[test]
fn both_sockets_come_by_their_names_from_systemds_own_tool() {
    let Some(activate) = program("systemd-socket-activate") else {
        return;
    };
    let [clients, admin] = [own_address(), own_address()];
    let mut command = Command::new(activate);
    command.args([
        "--listen",
        &admin.to_string(),
        "--listen",
        &clients.to_string(),
    ]);
    command.arg("--fdname=admin:websocket");
    command.arg(blackhole().get_program()).args(DEMO);
    // It starts the server when somebody comes.
    let first = thread::spawn(move || {
        let stream = wait_for("it listens", || TcpStream::connect(clients).ok());
        visit(stream).expect("the server takes what has started it");
    });
    let mut server = Server::spawn(command);
    first.join().unwrap();
    assert_eq!((server.address(), server.admin()), (clients, admin));
    assert_eq!(server.page("/readyz").0, 200);
    assert_eq!(server.metric("sessions_opened_total"), 1);
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn a_socket_that_cannot_be_meant_is_refused_with_the_reason() {
    let socket = |address| TcpListener::bind::<&str>(address).unwrap();
    let anywhere = "a socket was handed over as \"http\": expected FileDescriptorName=websocket, =admin or =websocket-tls";
    for (name, address, expected) in [
        ("http", "127.0.0.1:0", anywhere),
        ("admin", "0.0.0.0:0", "admin_token must be set"),
        ("websocket:admin", "127.0.0.1:0", "LISTEN_FDS"),
    ] {
        let mut command = handed(&socket(address), Some(name), &DEMO);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(expected), "{}", text(&output));
    }
}

#[test]
fn the_files_that_the_units_name_are_those_of_the_package() {
    let service = fs::read_to_string(project_file("scripts/systemd/blackhole@.service")).unwrap();
    let users = fs::read_to_string(project_file("scripts/systemd/sysusers.conf")).unwrap();
    let user = service.lines().find_map(|line| line.strip_prefix("User="));
    let declared = format!("u {} ", user.expect("not root"));
    assert!(users.lines().any(|line| line.starts_with(&declared)));
}
