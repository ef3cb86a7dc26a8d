//! `blackhole-load`: opens thousands of websocket sessions, subscribes them, and counts what they receive.
//!
//! Stdout carries the result (a table, or one JSON line an answer under `--control`), stderr the progress. Exit
//! status: 0 all that was promised came, 1 something was missing, 2 wrong options.

mod dialect;
mod engine;
mod latencies;
mod outcome;
mod parts;
mod template;
mod tls;

use std::io::{self, BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};

use dialect::Dialect;
use engine::{Engine, Plan, Totals};
use outcome::Outcome;
use parts::FromPart;
use shared::numbers::positive;
use shared::process;
use template::{Template, Tokens};
use tls::Tls;

/// The subscribe command when none is given.
const SUBSCRIBE: &str = r#"{"action":"subscribe","auth_token":"{token}","data":{"account_id":"{account}","binding":"call.CHANNEL_CREATE.*"}}"#;

/// Time between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Longest wait for the events of one `expect` under `--control` that does not say how long.
const ROUND_PATIENCE: Duration = Duration::from_secs(60);

/// Longest `--hold`: longer is for ever.
const HOLD_SECONDS_MAX: f64 = 1e9;

/// Longest a turn waits for the sockets.
const TURN_PATIENCE: Duration = Duration::from_millis(200);

/// Open thousands of websocket sessions on a Blackhole server, subscribe them, count what they receive.
///
/// Opens the sessions at the connect rate, waits for every subscribe's reply, then holds the sessions for the given
/// time or until each has received the expected number of events. To a server on a loopback address the sessions
/// come from --first-source and up, 5,000 from each, so one machine can open more than it has ports.
///
/// Templates (--subscribe, --binding, --path, --event-end) have places that differ by session: {account} becomes an
/// account id, the number (n - 1) % ACCOUNTS + 1 as 32 hex digits (those of `blackhole --source demo`); {guid} a GUID
/// of the session's own, 36 characters, such as clients send for request ids; {token} the auth token, of --tokens the
/// one of the session's turn; and the letter n in braces the session's number n, from 1.
#[derive(Clone, Parser)]
#[command(
    name = "blackhole-load",
    version,
    max_term_width = 100,
    after_help = "Examples:\n  \
        blackhole --auth insecure --source demo &\n  \
        blackhole-load --sessions 1000 --hold 10 --msg-id-latency\n\n  \
        Each session on an account of its own, until each has received 3 events, result as JSON too:\n  \
        blackhole-load --sessions 5000 --accounts 5000 --events-expected 3 --json result.json\n\n\
        Control (--control): once all sessions are settled one line `{\"ready\": ...}` is printed; then each line on stdin is answered by one line. `expect N` or `expect N SECONDS`: `{\"armed\": N}` at once, and `{\"round\": ...}` when every session has received N more events, or so many seconds, 60 where none are given, have passed. `pings on`, `pings off`: whether --ping-interval is heeded; off at first. `report`: the result so far. `cut`: all connections are reset at once, answered by `{\"cut\": N}`; after it `open UNDER_WAY` opens all sessions again, at most so many at once, answered by `{\"ready\": ...}`. `tickets on`, `tickets off`: whether these resume, as --tls-tickets says at first. The end of stdin ends the run. Without --quiet a line `{\"progress\": ...}` comes every second while sessions are opened or events expected.\n\n\
        Exit status: 0 all that was promised came (every connect upgraded, every subscribe granted, every expected event received, no gap notice, nobody closed); 1 not so; 2 wrong options."
)]
struct Options {
    /// Address of the server
    #[arg(long, default_value = "127.0.0.1:5555", value_name = "HOST:PORT")]
    address: String,
    /// Speak TLS; neither certificate nor signature of the server is checked
    #[arg(long)]
    tls: bool,
    /// Resume sessions of TLS 1.3 with tickets that earlier ones were given
    #[arg(long, requires = "tls")]
    tls_tickets: bool,
    /// Sessions to open
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    sessions: u32,
    /// Processes that share them: one can have no more than its open files (ulimit -Hn)
    #[arg(long, default_value_t = 1, conflicts_with = "control",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    processes: u32,
    /// New connections a second, at most
    #[arg(long, default_value_t = 5000.0, value_name = "PER_SECOND", value_parser = positive)]
    connect_rate: f64,
    /// What the server speaks, to measure another one with the same clients
    #[arg(long, value_enum, default_value_t = Dialect::Blackhole)]
    dialect: Dialect,
    /// Sessions that may be connecting, upgrading or subscribing at once
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    under_way: u32,
    /// First source address to a server on a loopback address: give each program of several its own
    #[arg(long, default_value_t = Ipv4Addr::new(127, 0, 1, 1), value_name = "IP")]
    first_source: Ipv4Addr,
    /// Command sent after the upgrade, again for several; empty: none. Default: {"action":"subscribe","auth_token":"{token}",
    /// "data":{"account_id":"{account}","binding":"BINDING"}}
    #[arg(long, default_value = SUBSCRIBE, value_name = "TEMPLATE", hide_default_value = true)]
    subscribe: Vec<String>,
    /// Binding of the default command, again for several: events of the account's calls; topic filter of mqtt, subject
    /// of nats
    #[arg(
        long,
        default_value = "call.CHANNEL_CREATE.*",
        value_name = "TEMPLATE",
        conflicts_with = "subscribe"
    )]
    binding: Vec<String>,
    /// What every event is to end with, byte for byte (dialects blackhole and plain); a session that gets another event
    /// is lost. With a --subscribe that has "request_id":"{guid}", for example: "request_id":"{guid}"}
    #[arg(long, value_name = "TEMPLATE")]
    event_end: Option<String>,
    /// Path and query of the upgrade request, for example `/?style=kazoo`
    #[arg(long, default_value = "/", value_name = "TEMPLATE")]
    path: String,
    /// Accounts that the sessions are spread over, 1 to this
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    accounts: u32,
    /// Auth token for `{token}`
    #[arg(long, default_value = "load")]
    token: String,
    /// File of auth tokens for `{token}`, one a line, that the sessions take in turn
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    tokens: Option<PathBuf>,
    /// Send the token as `Authorization: Bearer` with the upgrade request too
    #[arg(long)]
    bearer: bool,
    /// Event frames that each session is to receive; the run ends when all have come, and fails at the end of --hold
    #[arg(long, default_value_t = 0, value_name = "EACH")]
    events_expected: u32,
    /// How long to hold the sessions once they are subscribed
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = positive)]
    hold: f64,
    /// Measure events from their `Msg-ID` (microseconds since 1970, as demo events have it); else from the moment when
    /// all sessions were subscribed
    #[arg(long)]
    msg_id_latency: bool,
    /// Let every session ping that often, and tell the round trips
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    ping_interval: Option<u32>,
    /// Ping by the server's command, which its own code answers, instead of by control frames (dialect blackhole)
    #[arg(long, requires = "ping_interval")]
    ping_command: bool,
    /// Longest time until all sessions are subscribed; those that are not are lost then
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    settle_within: Option<f64>,
    /// Write the result to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// No progress on stderr, nor under --control on stdout
    #[arg(long)]
    quiet: bool,
    /// Take rounds from stdin (see below)
    #[arg(long, conflicts_with_all = ["hold", "events_expected"])]
    control: bool,
    /// Never sleep while a round of --control is under way: on one machine a server pays for waking a generator that
    /// sleeps, and how often it does is chance. Its own CPU time then says nothing
    #[arg(long, requires = "control")]
    spin: bool,
    /// This is one of several processes, the one of this number from 0
    #[arg(long, hide = true)]
    part: Option<u32>,
    /// Sessions of the parts before this one
    #[arg(skip)]
    sessions_before: u32,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("blackhole-load: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all that was promised came.
fn run(options: &Options) -> io::Result<bool> {
    if let Some(part) = options.part {
        parts::end_with_parent()?;
        let outcome = run_here(&parts::share(options, part))?.0;
        FromPart::Outcome(Box::new(outcome)).tell()?;
        return Ok(true);
    }
    let (outcome, is_good) = match options.processes {
        1 => run_here(options)?,
        _ => (parts::run(options, &mut Progress::new(options))?, true),
    };
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{:#}\n", outcome.json()))?;
    }
    if !options.control {
        outcome.print()?;
    }
    for (complaint, count) in &outcome.complaints {
        eprintln!("{count} sessions: {complaint}");
    }
    Ok(is_good && outcome.is_good())
}

/// Runs the sessions of this process; says also whether every round was complete.
fn run_here(options: &Options) -> io::Result<(Outcome, bool)> {
    let files = process::raise_open_files()?;
    if u64::from(options.sessions) + 16 > files {
        let message = format!(
            "{} sessions of one process need as many open files, and the hard limit is {files}: use --processes",
            options.sessions
        );
        return Err(io::Error::other(message));
    }
    let mut engine = Engine::new(plan(options)?)?;
    let mut progress = Progress::new(options);
    engine.use_tickets(options.tls_tickets);
    let settled = settle(&mut engine, options, &mut progress)?;
    let is_good = if options.control {
        control(&mut engine, options, settled, &mut progress)?
    } else {
        if options.part.is_some() {
            FromPart::Settled(engine.totals).tell()?;
            let lines = stdin_lines(&engine)?;
            while lines.try_recv() == Err(TryRecvError::Empty) {
                engine.turn(TURN_PATIENCE)?;
            }
        }
        hold(&mut engine, options, &mut progress)?
    };
    Ok((Outcome::of(&engine, settled)?, is_good))
}

/// Turns until every session is live or lost; how long that took.
fn settle(engine: &mut Engine, options: &Options, progress: &mut Progress) -> io::Result<Duration> {
    let started = Instant::now();
    while !engine.is_settled() {
        engine.turn(TURN_PATIENCE)?;
        progress.tell(engine.totals)?;
        let longest = options.settle_within;
        if longest.is_some_and(|longest| started.elapsed().as_secs_f64() > longest) {
            engine.give_up();
        }
    }
    Ok(started.elapsed())
}

fn plan(options: &Options) -> io::Result<Plan> {
    let tokens = tokens(options)?;
    let template = |text: &str| Template::new(text, options.accounts, tokens.clone());
    let bindings = options.binding.iter();
    let mut subscribes: Vec<String> = match options.dialect {
        Dialect::Blackhole | Dialect::BlackholeDeflate => bindings
            .flat_map(|binding| {
                let commands = options.subscribe.iter();
                commands.map(|command| command.replace("call.CHANNEL_CREATE.*", binding))
            })
            .collect(),
        Dialect::Mqtt | Dialect::Nats => bindings.cloned().collect(),
        Dialect::Plain | Dialect::PlainDeflate => Vec::new(),
    };
    if options.event_end.is_some()
        && !matches!(options.dialect, Dialect::Blackhole | Dialect::Plain)
    {
        let message = "--event-end is for the dialects blackhole and plain";
        return Err(io::Error::other(message));
    }
    let has_commands = matches!(
        options.dialect,
        Dialect::Blackhole | Dialect::BlackholeDeflate
    );
    if options.ping_command && !has_commands {
        let message = "--ping-command is for the dialects blackhole and blackhole-deflate";
        return Err(io::Error::other(message));
    }
    subscribes.retain(|subscribe| !subscribe.is_empty());
    Ok(Plan {
        address: resolve(&options.address)?,
        tls: options.tls.then(|| tls(options)).transpose()?,
        sessions: options.sessions as usize,
        sessions_before: options.sessions_before as usize,
        connect_rate: options.connect_rate,
        path: template(&options.path),
        dialect: options.dialect,
        subscribes: subscribes.iter().map(|text| template(text)).collect(),
        event_end: options.event_end.as_deref().map(template),
        bearer: options.bearer.then(|| template("{token}")),
        msg_id_latency: options.msg_id_latency,
        under_way_max: options.under_way as usize,
        ping_interval: options
            .ping_interval
            .map(|interval| Duration::from_millis(interval.into())),
        has_ping_command: options.ping_command,
        first_source: options.first_source,
    })
}

fn tls(options: &Options) -> io::Result<Tls> {
    let host = options.address.rsplit_once(':');
    let host = host.map_or(options.address.as_str(), |(host, _)| host);
    // A ticket for each session; most servers give two, and the second is for nobody.
    Tls::new(host, options.sessions as usize).map_err(io::Error::other)
}

fn tokens(options: &Options) -> io::Result<Tokens> {
    let Some(file) = &options.tokens else {
        return Ok(options.token.as_str().into());
    };
    let wrong = |what: &str| io::Error::other(format!("--tokens {}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(&error.to_string()))?;
    Tokens::lines(&text).ok_or_else(|| wrong("no token in it"))
}

fn resolve(address: &str) -> io::Result<SocketAddr> {
    let found = address
        .to_socket_addrs()
        .map_err(|error| io::Error::other(format!("--address {address}: {error}")))?;
    found
        .into_iter()
        .next()
        .ok_or_else(|| io::Error::other(format!("--address {address}: no such host")))
}

/// Holds the sessions; whether every expected event came.
fn hold(engine: &mut Engine, options: &Options, progress: &mut Progress) -> io::Result<bool> {
    engine.promise(options.events_expected);
    let end = Instant::now() + Duration::from_secs_f64(options.hold.min(HOLD_SECONDS_MAX));
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || (options.events_expected > 0 && engine.is_fulfilled()) {
            return Ok(engine.is_fulfilled());
        }
        engine.turn(left.min(TURN_PATIENCE))?;
        progress.tell(engine.totals)?;
    }
}

/// Serves `expect N` lines until stdin ends; whether every round was complete and none had an event too many.
fn control(
    engine: &mut Engine,
    options: &Options,
    mut settled: Duration,
    progress: &mut Progress,
) -> io::Result<bool> {
    let commands = stdin_lines(engine)?;
    engine.is_pinging = false;
    say(&Outcome::of(engine, settled)?.json(), "ready")?;
    let mut is_good = true;
    loop {
        let line = match commands.try_recv() {
            Ok(line) => line,
            Err(TryRecvError::Empty) => {
                engine.turn(TURN_PATIENCE)?;
                continue;
            }
            Err(TryRecvError::Disconnected) => return Ok(is_good),
        };
        let expected = match line.trim().split_once(' ') {
            Some(("expect", expected)) => expectation(expected),
            Some(("pings", switch @ ("on" | "off"))) => {
                engine.is_pinging = switch == "on";
                say(&json!(switch), "pings")?;
                continue;
            }
            Some(("tickets", switch @ ("on" | "off"))) => {
                engine.use_tickets(switch == "on");
                say(&json!(switch), "tickets")?;
                continue;
            }
            Some(("open", under_way)) if engine.totals.opened == 0 => {
                let under_way = under_way.parse().ok().filter(|&at_once| at_once > 0_usize);
                engine.open(under_way.unwrap_or(options.under_way as usize));
                settled = settle(engine, options, progress)?;
                say(&Outcome::of(engine, settled)?.json(), "ready")?;
                continue;
            }
            None if line.trim() == "cut" => {
                let live = engine.live();
                engine.cut();
                say(&json!(live), "cut")?;
                continue;
            }
            None if line.trim() == "report" => {
                say(&Outcome::of(engine, settled)?.json(), "report")?;
                continue;
            }
            _ => None,
        };
        let Some((each, longest)) = expected else {
            return Err(io::Error::other(format!(
                "--control: unknown command {line:?}"
            )));
        };
        let (cpu, busy, before) = (process::own_cpu()?, engine.busy, engine.totals);
        engine.event_latency.reset();
        engine.promise(each);
        say(&json!(each), "armed")?;
        let started = Instant::now();
        let patience = if options.spin {
            Duration::ZERO
        } else {
            TURN_PATIENCE
        };
        while !engine.is_fulfilled() && started.elapsed() < longest {
            engine.turn(patience)?;
            progress.tell(engine.totals)?;
        }
        let elapsed = started.elapsed();
        let (missing, extra) = engine.missing_and_extra();
        is_good &= missing == 0 && extra == 0;
        let totals = engine.totals;
        let round = json!({
            "frames": totals.events - before.events,
            "bytes": totals.event_bytes - before.event_bytes,
            "missing": missing,
            "extra": extra,
            "gaps": totals.gaps - before.gaps,
            "lost": totals.lost,
            "elapsed_us": elapsed.as_micros() as u64,
            "latency_us": engine.event_latency.json(),
            "busy_ns": (engine.busy - busy).as_nanos() as u64,
            "cpu_ns": (process::own_cpu()? - cpu).as_nanos() as u64,
        });
        say(&round, "round")?;
    }
}

/// `N` or `N SECONDS`: events of each session, and how long they may take.
fn expectation(text: &str) -> Option<(u32, Duration)> {
    match text.split_once(' ') {
        Some((each, seconds)) => {
            let longest = Duration::from_secs(seconds.parse().ok()?);
            Some((each.parse().ok()?, longest))
        }
        None => Some((text.parse().ok()?, ROUND_PATIENCE)),
    }
}

/// Lines of stdin, read on a thread of their own, which wakes the engine.
fn stdin_lines(engine: &Engine) -> io::Result<Receiver<String>> {
    let (to_loop, lines) = std::sync::mpsc::channel();
    let waker = engine.waker()?;
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            for line in io::stdin().lock().lines() {
                if line.is_err() || line.is_ok_and(|line| to_loop.send(line).is_err()) {
                    break;
                }
                if waker.wake().is_err() {
                    break;
                }
            }
            drop(to_loop);
            // At the end of stdin the loop finds the channel closed; a wake that fails only delays that to its next turn.
            let _ = waker.wake();
        })?;
    Ok(lines)
}

/// Writes `{name: value}` as one line, at once.
fn say(value: &Value, name: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", json!({ name: value }))?;
    stdout.flush()
}

/// Counts so far, once a second.
struct Progress {
    to: ProgressTo,
    last: Instant,
    /// Events at the last line.
    events: u64,
}

/// Who wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProgressTo {
    Nobody,
    /// In words, on stderr.
    User,
    /// The program that gives the orders of `--control`.
    Control,
    /// The process that this one is a part of.
    Parent,
}

impl Progress {
    fn new(options: &Options) -> Self {
        Self {
            to: match options {
                Options { part: Some(_), .. } => ProgressTo::Parent,
                Options { quiet: true, .. } => ProgressTo::Nobody,
                Options { control: true, .. } => ProgressTo::Control,
                _ => ProgressTo::User,
            },
            last: Instant::now(),
            events: 0,
        }
    }

    /// Tells `totals` when a second has passed since the last time.
    fn tell(&mut self, totals: Totals) -> io::Result<()> {
        let since = self.last.elapsed();
        if self.to == ProgressTo::Nobody || since < PROGRESS_INTERVAL {
            return Ok(());
        }
        self.last = Instant::now();
        let new = totals.events - self.events;
        self.events = totals.events;
        match self.to {
            ProgressTo::Parent => return FromPart::Progress(totals).tell(),
            ProgressTo::Control => return say(&json!(totals), "progress"),
            ProgressTo::User | ProgressTo::Nobody => {}
        }
        eprintln!(
            "{} opened, {} subscribed, {} lost, {} events ({:.0}/s), {} gap notices",
            totals.opened,
            totals.became_live,
            totals.lost,
            totals.events,
            new as f64 / since.as_secs_f64(),
            totals.gaps,
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::process::{cpu, memory};

    #[test]
    fn a_busy_thread_is_seen_to_run_and_its_memory_to_be_resident() {
        let own = std::process::id();
        let total = || {
            cpu(own)
                .expect("own threads")
                .iter()
                .map(|thread| thread.ran)
                .sum::<Duration>()
        };
        let before = total();
        let deadline = Instant::now() + Duration::from_secs(20);
        while total() <= before {
            assert!(Instant::now() < deadline, "no CPU time is told");
        }
        let memory = memory(own).expect("own memory");
        assert!(
            memory.anonymous > 0 && memory.resident >= memory.anonymous,
            "{memory:?}"
        );
    }
}
