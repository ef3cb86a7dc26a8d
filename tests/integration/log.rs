//! The log when whoever should read it does not, or nothing of it can be written: it costs lines, which are counted,
//! and nothing else.

use std::fs::File;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use blackhole::logging::{self, LogFormat};
use rustix::process::Signal;
use serde_json::Value;

use support::client::{ANY_TOKEN, Client, Raw};
use support::server::{DEMO, PATIENCE, Server, dead_address, lines, own_address, run_to_end};
use support::tls;

const DEMO_ACCOUNT: &str = "00000000000000000000000000000001";

/// Connections that are closed between two looks at the metrics; each is a line of the log at level debug.
const BATCH: usize = 200;

/// Behind the number of lines that are.
const MISSING: &str = " lines of the log are missing here";

/// A server that logs every connection's end to `stderr`, and many events.
fn talkative(stderr: impl Into<Stdio>) -> Server {
    let args = ["--log-level", "debug", "--demo-rate", "100"];
    let end = ["--drain-seconds", "1", "--going-away-ms", "0"];
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

/// Tells a test that runs in a process of its own that its log is for programs.
const AS_JSON: &str = "BLACKHOLE_TEST_LOG_AS_JSON";

/// Starts the log of this process, in the form that its environment asks for.
fn start_log() {
    let format = match std::env::var_os(AS_JSON) {
        Some(_) => LogFormat::Json,
        None => LogFormat::Text,
    };
    logging::start(
        log::LevelFilter::Debug,
        format,
        blackhole::amqp::CLIENT_LINES,
    )
    .unwrap();
}

/// The log of the test of this name, which is run in a process of its own, and whether that ended well.
fn log_of(test: &str, environment: &[(&str, &str)]) -> (Vec<String>, bool) {
    log_through(std::io::pipe().unwrap(), test, environment)
}

/// As [`log_of`], with this pipe as its stderr.
fn log_through(
    (log, stderr): (PipeReader, PipeWriter),
    test: &str,
    environment: &[(&str, &str)],
) -> (Vec<String>, bool) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--nocapture", "--exact", test])
        .env_remove("RUST_BACKTRACE")
        .env_remove("JOURNAL_STREAM")
        .envs(environment.iter().copied())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let log = lines(log);
    let log: Vec<String> = std::iter::from_fn(|| log.recv_timeout(PATIENCE).ok()).collect();
    (log, child.wait().unwrap().success())
}

#[test]
fn a_panic_is_a_line_of_the_log_behind_those_before_it() {
    let (log, is_well) = log_of("log::panics_with_the_log_started", &[]);
    assert!(!is_well);
    let said: Vec<&str> = log.iter().map(|line| &line[24..]).collect();
    assert_eq!(
        said[..2],
        [
            " ERROR [integration::log] first",
            " ERROR [integration::log] second"
        ]
    );
    assert!(said[2].starts_with(
        " ERROR [blackhole::logging] the thread log::panics_with_the_log_started panicked at tests/integration/log.rs:"
    ));
    assert!(said[2].ends_with(": the reason\\nof it"), "{said:?}");
    assert_eq!(said.len(), 3);

    let (log, _) = log_of(
        "log::panics_with_the_log_started",
        &[("RUST_BACKTRACE", "1")],
    );
    assert!(log.len() > 4, "{log:?}");
    for line in &log {
        assert_eq!(
            &line[23..31],
            "Z ERROR ",
            "a line of the backtrace is a line of the log"
        );
    }
}

#[test]
#[ignore = "the other half of the test above, in a process of its own"]
fn panics_with_the_log_started() {
    start_log();
    log::error!("first");
    log::error!("second");
    panic!("the reason\nof it");
}

/// What is logged, and what of it is in the line.
const ODD_TEXTS: [(&str, &str); 19] = [
    ("plain \"quoted\" \\ text", "plain \"quoted\" \\ text"),
    ("ü é ß 漢 👍 Ω", "ü é ß 漢 👍 Ω"),
    ("a\nb", "a\\nb"),
    ("a\r\nb", "a\\r\\nb"),
    ("a\tb\0c", "a\\tb\\0c"),
    ("\x1b[31mred", "\\u{1b}[31mred"),
    ("\x07\x08\x7f", "\\u{7}\\u{8}\\u{7f}"),
    (
        "next line \u{85} of C1 \u{9b}",
        "next line \\u{85} of C1 \\u{9b}",
    ),
    (
        "line\u{2028}paragraph\u{2029}",
        "line\\u{2028}paragraph\\u{2029}",
    ),
    (
        "\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}",
        "\\u{202a}\\u{202b}\\u{202c}\\u{202d}\\u{202e}",
    ),
    (
        "\u{2066}\u{2067}\u{2068}\u{2069}",
        "\\u{2066}\\u{2067}\\u{2068}\\u{2069}",
    ),
    ("\u{200e}\u{200f}\u{61c}", "\\u{200e}\\u{200f}\\u{61c}"),
    (
        "\u{200b}\u{200d}\u{2060}\u{feff}",
        "\\u{200b}\\u{200d}\\u{2060}\\u{feff}",
    ),
    ("soft\u{ad}hyphen", "soft\\u{ad}hyphen"),
    ("\u{e0041}\u{fff9}", "\\u{e0041}\\u{fff9}"),
    ("a\u{a0}b\u{3000}c", "a\\u{a0}b\\u{3000}c"),
    ("private \u{e000}", "private \\u{e000}"),
    ("o\u{336}\u{301}", "o\\u{336}\\u{301}"),
    ("\u{1a}", "\\u{1a}"),
];

#[test]
fn what_is_not_printable_is_escaped_and_nothing_else_is() {
    let (log, is_well) = log_of("log::logs_odd_texts", &[]);
    assert!(is_well);
    let said: Vec<&str> = log.iter().map(|line| &line[24..]).collect();
    let expected = ODD_TEXTS.map(|(_, line)| format!(" ERROR [integration::log] {line}"));
    assert_eq!(said, expected);
}

#[test]
#[ignore = "the other half of the test above, in a process of its own"]
fn logs_odd_texts() {
    start_log();
    for (text, _) in ODD_TEXTS {
        log::error!("{text}");
    }
    assert!(logging::flush());
}

/// The members of a line for programs: level, target, message; the time is checked.
fn members(line: &str) -> (String, String, String) {
    let Ok(Value::Object(object)) = serde_json::from_str(line) else {
        panic!("not an object: {line}");
    };
    let names: Vec<&String> = object.keys().collect();
    assert_eq!(names, ["level", "message", "target", "time"], "{line}");
    let text = |name: &str| object[name].as_str().unwrap().to_owned();
    let time = text("time");
    assert_eq!((time.len(), &time[10..11], &time[23..]), (24, "T", "Z"));
    (text("level"), text("target"), text("message"))
}

#[test]
fn json_lines_hold_what_text_lines_hold_whatever_is_in_it() {
    let (log, is_well) = log_of("log::logs_odd_texts", &[(AS_JSON, "1")]);
    assert!(is_well);
    let said: Vec<_> = log.iter().map(|line| members(line)).collect();
    let expected =
        ODD_TEXTS.map(|(_, line)| ("error".into(), "integration::log".into(), line.to_owned()));
    assert_eq!(said, expected);
}

#[test]
fn a_server_that_logs_json_logs_nothing_else() {
    let mut server = Server::demo(&["--log-format", "json", "--log-level", "debug"]);
    let mut client = subscribed(&server);
    client.event();
    let mut hostile = Raw::connect(server.address());
    hostile.send(b"GET /\x1b[31m\"}\xff HTTP/1.1\r\nHost: \"h\"\r\n\r\n");
    hostile.reset();
    server.wait_for_log(" ended: ");
    assert_eq!(server.stop().code(), Some(0));
    let log = server.log();
    let messages: Vec<String> = log.lines().map(|line| members(line).2).collect();
    let listening = if tls::is_on() {
        "listening with TLS on 127.0.0.1:"
    } else {
        "listening on 127.0.0.1:"
    };
    for message in [listening, "drained"] {
        assert!(
            messages.iter().any(|said| said.starts_with(message)),
            "{log}"
        );
    }
}

#[test]
fn what_prevents_a_start_is_a_line_of_a_log_for_programs() {
    let (_taken, address) = dead_address();
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let args = ["--ip", &ip, "--port", &port, "--log-format"];
    let last = |format| {
        let output = run_to_end(&[&DEMO[..], &args, &[format]].concat());
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        said.lines().last().unwrap().to_owned()
    };
    let plain = last("text");
    let why = plain.strip_prefix("blackhole: ").unwrap();
    assert!(why.contains(&port), "{why}");
    let said = members(&last("json"));
    assert_eq!(said, ("error".into(), "blackhole".into(), why.to_owned()));
}

#[test]
#[ignore = "the other half of the tests below, in a process of its own"]
fn logs_at_each_level() {
    start_log();
    // Only ours are logged below the level error.
    let target = "blackhole::x";
    log::error!(target: target, "first");
    log::warn!(target: target, "second");
    log::info!(target: target, "third");
    log::debug!(target: target, "fourth");
    assert!(logging::flush());
}

/// A pipe, and what names it as systemd would.
fn named_pipe() -> ((PipeReader, PipeWriter), String) {
    let pipe = std::io::pipe().unwrap();
    let same = OwnedFd::from(pipe.1.try_clone().unwrap());
    let metadata = File::from(same).metadata().unwrap();
    (pipe, format!("{}:{}", metadata.dev(), metadata.ino()))
}

#[test]
fn lines_for_the_journal_have_its_priorities_and_no_time_of_their_own() {
    let (pipe, name) = named_pipe();
    let (log, is_well) = log_through(
        pipe,
        "log::logs_at_each_level",
        &[("JOURNAL_STREAM", &name)],
    );
    assert!(is_well);
    let expected = [
        "<3>ERROR [blackhole::x] first",
        "<4>WARN  [blackhole::x] second",
        "<6>INFO  [blackhole::x] third",
        "<7>DEBUG [blackhole::x] fourth",
    ];
    assert_eq!(log, expected);

    let (pipe, name) = named_pipe();
    let environment = [("JOURNAL_STREAM", &*name), (AS_JSON, "1")];
    let (log, is_well) = log_through(pipe, "log::logs_at_each_level", &environment);
    assert!(is_well);
    let said: Vec<_> = log
        .iter()
        .map(|line| (&line[..3], members(&line[3..]).0))
        .collect();
    let expected = [
        ("<3>", "error"),
        ("<4>", "warn"),
        ("<6>", "info"),
        ("<7>", "debug"),
    ];
    assert_eq!(
        said,
        expected.map(|(priority, level)| (priority, level.to_owned()))
    );
}

#[test]
fn a_stderr_that_is_not_the_journals_gets_the_time_and_no_priority() {
    // Inherited from a service: its journal is not where this process logs to.
    let (_journal, name) = named_pipe();
    let (pipe, _) = named_pipe();
    let (log, is_well) = log_through(
        pipe,
        "log::logs_at_each_level",
        &[("JOURNAL_STREAM", &name)],
    );
    assert!(is_well);
    let said: Vec<_> = log
        .iter()
        .map(|line| (&line[23..25], &line[25..]))
        .collect();
    let levels = ["ERROR", "WARN ", "INFO ", "DEBUG"].into_iter();
    let expected: Vec<String> = levels
        .zip(["first", "second", "third", "fourth"])
        .map(|(level, text)| format!("{level} [blackhole::x] {text}"))
        .collect();
    assert_eq!(
        said,
        expected
            .iter()
            .map(|line| ("Z ", &**line))
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_stderr_on_a_full_disk_costs_lines_and_holds_up_nobody() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let server = talkative(full);
    let client = subscribed(&server);
    log_until_lost(&server, 100);
    assert_serves_and_drains(server, client);
}
