//! The loop notices the end of its event source at once, also when nothing else wakes it: the real loop, in this process.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use blackhole::config::{self, Config, Startup};
use blackhole::handoff::{FromSource, Return, SourceEnd, handoff};
use blackhole::limits::POLL_WAIT_MAX;
use blackhole::reactor::drain::DrainTimes;
use blackhole::reactor::server::{Addresses, Server, ServerParts, now_since};
use blackhole::routing::families::Families;
use blackhole::session::ListenerKind;
use blackhole::session::hub::Hub;
use blackhole::session::limits::SessionLimits;
use crossbeam_channel::{Receiver, Sender, unbounded};

use support::own_process::in_own_process;

/// Puts lines of the log into a channel.
struct LogTo(Sender<String>);

impl log::Log for LogTo {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let _ = self.0.send(record.args().to_string());
    }

    fn flush(&self) {}
}

fn captured_log() -> Receiver<String> {
    let (sender, lines) = unbounded();
    log::set_boxed_logger(Box::new(LogTo(sender))).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    lines
}

/// What a running loop is known by.
struct Loop {
    address: SocketAddr,
    source: SourceEnd,
    /// The kernel's page on its thread.
    stat: String,
}

/// Starts a loop on a thread of its own, where it stays.
fn start() -> Loop {
    let (started, starting) = unbounded();
    thread::spawn(move || {
        let args = ["blackhole", "--ip", "127.0.0.1", "--port", "0"];
        let rest = ["--source", "demo", "--auth", "insecure"];
        let args = args.into_iter().chain(rest).map(Into::into);
        let Startup::Run(config) = config::from_args(args).unwrap();
        run(&config, &started);
    });
    starting.recv_timeout(Duration::from_secs(60)).unwrap()
}

fn run(config: &Config, started: &Sender<Loop>) {
    let server = Server::bind(Addresses {
        clients: config.port.map(|port| SocketAddr::new(config.ip, port)),
        tls_clients: None,
        reuse_port: false,
        accept_rate: None,
        admin: None,
        admin_dir: None,
        user_timeout: None,
    });
    let server = server.unwrap();
    let epoch = Instant::now();
    let authenticator = config.authenticator().unwrap();
    let families = Families::new(&config.families).unwrap();
    let hub = Hub::new(
        SessionLimits::from(config),
        authenticator,
        families,
        now_since(epoch),
        0,
    );
    let (source, end) = handoff(server.waker());
    let thread = fs::read_link("/proc/thread-self").unwrap();
    let stat = format!("/proc/{}/stat", thread.display());
    let address = server.address(ListenerKind::Clients).unwrap();
    let about = Loop {
        address,
        source,
        stat,
    };
    started.send(about).unwrap();
    let parts = ServerParts {
        inquiry: None,
        handoff: end,
        connections_max: 10,
        drain_delay: Duration::ZERO,
        drain: DrainTimes::default(),
        epoch,
        io_uring: false,
        more_metrics: Box::new(|_| {}),
        reread: Box::new(|_| blackhole::reactor::reread::nothing()),
    };
    server.run(hub, parts).unwrap();
}

fn probe(address: SocketAddr) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    socket
        .write_all(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).unwrap();
    response.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn the_end_of_the_source_wakes_a_loop_that_sleeps() {
    // For its logger is the process's.
    in_own_process(
        "source_end::the_end_of_the_source_wakes_a_loop_that_sleeps",
        end_the_source_of_a_loop_that_sleeps,
    );
}

fn end_the_source_of_a_loop_that_sleeps() {
    let log = captured_log();
    let Loop {
        address,
        source,
        stat,
    } = start();
    source.send(FromSource::Up(Return::Anew)).unwrap();
    // Without connections the loop has no deadline: it sleeps as long as it ever does.
    let begun = Instant::now();
    let sleeps = || {
        let stat = fs::read_to_string(&stat).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('S')
    };
    while !(sleeps() && log.is_empty()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "never sleeps");
        thread::yield_now();
    }
    drop(source);
    // Its next turn of its own would be after that.
    let line = log.recv_timeout(POLL_WAIT_MAX / 2);
    assert_eq!(
        line.as_deref(),
        Ok("the event source's thread has ended; no events will come")
    );
    assert_eq!(probe(address), "HTTP/1.1 503 Service Unavailable");
}
