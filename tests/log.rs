//! The log when whoever should read it does not, or nothing of it can be written: it costs lines, which are counted,
//! and nothing else.
#![allow(
    clippy::unwrap_used,
    reason = "a test whose peer answers otherwise must fail"
)]

mod support;

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::Signal;

use support::client::{ANY_TOKEN, Client, Raw};
use support::server::{DEMO, PATIENCE, Server, lines, own_address};

const DEMO_ACCOUNT: &str = "00000000000000000000000000000001";

/// Connections that are closed between two looks at the metrics; each is a line of the log at level debug.
const BATCH: usize = 200;

/// Behind the number of lines that are.
const MISSING: &str = " lines of the log are missing here";

/// A server that logs every connection's end to `stderr`, and many events.
fn talkative(stderr: impl Into<Stdio>) -> Server {
    let args = ["--log-level", "debug", "--demo-rate", "100"];
    let end = ["--drain-seconds", "1"];
    Server::start_logging_to(stderr, own_address(), &[&DEMO[..], &args, &end].concat())
}

fn subscribed(server: &Server) -> Client {
    let mut client = server.client();
    client.must_subscribe(ANY_TOKEN, DEMO_ACCOUNT, "call.*.*");
    client
}

/// Makes lines until so many are lost.
fn log_until_lost(server: &Server, lost: u64) {
    server.until("log_lines_dropped_total", |server| {
        for _ in 0..BATCH {
            let mut probe = Raw::connect(server.address());
            probe.send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n");
            probe.reset();
        }
        server.metric("log_lines_dropped_total") >= lost
    });
}

/// Events come as they did, and the process ends in its time.
fn assert_serves_and_drains(mut server: Server, mut client: Client) {
    for _ in 0..100 {
        client.event();
    }
    let mut other = subscribed(&server);
    other.event();
    let begun = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(
        (client.read_to_close().1, other.read_to_close().1),
        (1001, 1001)
    );
    assert_eq!(server.wait().code(), Some(0));
    assert!(
        begun.elapsed() < PATIENCE,
        "ended after {:?}",
        begun.elapsed()
    );
}

#[test]
fn a_stderr_that_nobody_reads_costs_lines_and_holds_up_nobody() {
    let (unread, stderr) = std::io::pipe().unwrap();
    let server = talkative(stderr);
    let client = subscribed(&server);
    log_until_lost(&server, 1);
    assert_serves_and_drains(server, client);
    drop(unread);
}

#[test]
fn a_log_that_is_read_again_goes_on_in_order_and_tells_where_how_many_lines_are_missing() {
    let (unread, stderr) = std::io::pipe().unwrap();
    let mut server = talkative(stderr);
    log_until_lost(&server, 100);
    let lost = server.metric("log_lines_dropped_total");
    let coming = lines(unread);
    let mut log: Vec<String> = Vec::new();
    server.until("the log tells of the missing lines", |server| {
        // Each look at the metrics is a line, and the first that finds room tells.
        server.metric("log_lines_dropped_total");
        log.extend(coming.try_iter());
        log.iter().any(|line| line.contains(MISSING))
    });
    server.signal(Signal::TERM);
    log.extend(std::iter::from_fn(|| coming.recv_timeout(PATIENCE).ok()));
    // The source has a thread, and so an order, of its own.
    log.retain(|line| !line.contains("[blackhole::source]"));
    assert!(
        log.last().unwrap().ends_with("] drained"),
        "{:?}",
        log.last()
    );
    assert_eq!(server.wait().code(), Some(0));
    assert!(
        log.iter()
            .all(|line| line.as_bytes().get(23) == Some(&b'Z')),
        "whole lines: {log:?}"
    );
    assert!(log.is_sorted_by_key(|line| &line[..24]), "{log:?}");
    let told = log.iter().filter_map(|line| {
        let (before, _) = line.split_once(MISSING)?;
        before.rsplit(' ').next()?.parse::<u64>().ok()
    });
    assert!(told.sum::<u64>() >= lost, "{lost} lost: {log:?}");
}

#[test]
fn a_panic_is_a_line_of_the_log_behind_those_before_it() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--nocapture", "--exact"])
        .arg("panics_with_the_log_started")
        .env_remove("RUST_BACKTRACE")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = lines(child.stderr.take().unwrap());
    let log: Vec<String> = std::iter::from_fn(|| log.recv_timeout(PATIENCE).ok()).collect();
    assert!(!child.wait().unwrap().success());
    let said: Vec<&str> = log.iter().map(|line| &line[24..]).collect();
    assert_eq!(said[..2], [" ERROR [log] first", " ERROR [log] second"]);
    assert!(said[2].starts_with(
        " ERROR [blackhole::logging] the thread panics_with_the_log_started panicked at tests/log.rs:"
    ));
    assert!(said[2].ends_with(": the reason"), "{said:?}");
}

#[test]
#[ignore = "the other half of the test above, in a process of its own"]
fn panics_with_the_log_started() {
    blackhole::logging::start(log::LevelFilter::Info).unwrap();
    log::error!("first");
    log::error!("second");
    panic!("the reason");
}

#[test]
fn a_stderr_on_a_full_disk_costs_lines_and_holds_up_nobody() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let server = talkative(full);
    let client = subscribed(&server);
    log_until_lost(&server, 100);
    assert_serves_and_drains(server, client);
}
