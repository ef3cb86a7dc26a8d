//! `soak`: a real server between a real broker and thousands of sessions that come and go, for as long as one likes,
//! while the broker is stopped, killed and frozen; and the question at the end whether anything was lost or kept.
//!
//! | module | owns |
//! |---|---|
//! | this | the cycles and what is measured |
//! | `harm`, `report` | what is done to the broker; the verdict and the table |
//! | `world` | accounts, tokens, kinds of events |
//! | `publisher` | numbered events, and the record of what was published when |
//! | `witness`, `ledger` | sessions that check every event they get, and those they do not get |
//! | `returner` | sessions that check what they get after a lost connection |
//! | `crowd` | sessions that come and go |
//! | `client` | one websocket client, on the load generator's codec |
//! | `gauges`, `trend` | what must come back to zero, and what must not grow |

mod client;
mod crowd;
mod gauges;
mod harm;
mod ledger;
mod publisher;
mod report;
mod returner;
mod trend;
mod witness;
mod world;

use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Parser;
use fastrand::Rng;
use rustix::process::Signal;

use crowd::Crowd;
use gauges::Gauges;
use harm::Harm;
use publisher::Ledger;
use returner::HISTORY;
use shared::numbers::positive;
use shared::process::{self, Memory};
use support::broker::Broker;
use support::server::{Server, TokenFile};
use witness::{Order, Tally, Witnesses};
use world::World;

/// Time between two looks at the server.
const LOOK: Duration = Duration::from_secs(1);

/// Time between two looks at a rest: less than the silence after which the server gives memory back, which is to
/// come once, when all is freed.
const GLANCE: Duration = Duration::from_millis(300);

/// Looks between two lines of progress.
const LOOKS_A_LINE: u64 = 5;

/// Silence before memory is taken: longer than the server waits before it gives memory back.
const SILENCE: Duration = Duration::from_millis(2500);

/// Longest wait for the broker and the server to be there (again).
const READY_PATIENCE: Duration = Duration::from_secs(120);

/// Longest wait for the crowd to leave, and for the gauges to be what they must.
const SETTLE_PATIENCE: Duration = Duration::from_secs(90);
/// How long the gauges of the first rest do not change before they are taken for those of rest. Longer than the server
/// keeps AMQP bindings that nobody wants any more.
const STILL_MIN: Duration = Duration::from_secs(5);

/// Longest wait for the witnesses' answer: longer than theirs for events and replies.
const ANSWER_PATIENCE: Duration = Duration::from_secs(120);

/// After the broker is back, events are as quick as ever from here on.
const CALM_AFTER: Duration = Duration::from_secs(2);

/// The one ERROR line that is none: the AMQP client's, about a broker that was frozen for long.
const FROZEN: &str = "[amiquip::io_loop] missed heartbeats from server";

/// Counters that stay at zero.
const NEVER: [&str; 10] = [
    "amqp_panics_total",
    "amqp_guard_violations_total",
    "amqp_binds_refused_total",
    r#"amqp_undecodable_total{reason="not_utf8"}"#,
    r#"amqp_undecodable_total{reason="not_json_object"}"#,
    r#"amqp_undecodable_total{reason="broken_gzip"}"#,
    r#"amqp_undecodable_total{reason="too_large"}"#,
    r#"amqp_undecodable_total{reason="swallowed"}"#,
    r#"amqp_undecodable_total{reason="unknown_encoding"}"#,
    r#"amqp_undecodable_total{reason="routing_key"}"#,
];

/// Soak a Blackhole server: sessions that come and go, numbered events and broker restarts, for so many minutes.
///
/// Starts a private RabbitMQ and a server between it and the clients, all on 127.0.0.0/8. Time goes in cycles. In
/// each, a crowd comes, subscribes, unsubscribes and leaves by every way there is (close frame, end of stream, reset,
/// in the middle of a frame or of the handshake, without ever reading, with garbage ...), events of eight kinds are
/// published for all accounts, and one thing is done to the broker: it is stopped in order, killed (-9), or frozen for
/// 3 s or 14 s, all four in turn, in random order but for a long freeze at first. The server is told to reread its tokens.
/// At the end of a cycle crowd and publisher rest, and the server is looked at.
///
/// Witnesses live as long as the soak and check every event: its account and subscription, its order, its number. A
/// number that does not come must lie in a gap that a notice announced before the next event. Some of them lose their
/// connection again and again, by every way there is, and come back with their cursor: they get all that they missed, once,
/// or are told a gap, and for that there must be a reason.
///
/// It fails (exit status 1) when an event is missing, repeated, out of order or somebody else's; a session met
/// anything but what it provoked; a gauge of /metrics is not at each rest what it was at the first, or not zero
/// when all have left; the server logged an ERROR, panicked, dropped a delivery or did not end well; or memory grew:
/// the line of least squares through the rests of the last two thirds rises by more than 1 MiB (what is allocated) or
/// 4 MiB (what is resident of heap and stacks), and 8 bytes for each session opened meanwhile (from 4 such rests on,
/// which three minutes have).
#[derive(Parser)]
#[command(
    name = "soak",
    max_term_width = 100,
    after_help = "Exit status: 0 all is well, 1 it is not, 2 wrong options."
)]
struct Options {
    /// How long, in minutes
    #[arg(value_name = "MINUTES", value_parser = positive)]
    minutes: f64,
    /// One cycle, rest included, in seconds; in each the broker is disturbed once
    #[arg(long, default_value_t = 25.0, value_name = "SECONDS", value_parser = positive)]
    cycle: f64,
    /// Events published a second
    #[arg(long, default_value_t = 500.0, value_name = "A_SECOND", value_parser = positive)]
    rate: f64,
    /// Sessions of the crowd that come a second; each stays for a few seconds
    #[arg(long, default_value_t = 150.0, value_name = "A_SECOND", value_parser = positive)]
    churn: f64,
    /// Accounts that events are published for; each has seven witnesses
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..=1000))]
    accounts: u32,
    /// Seed of all random choices; a random one when none is given
    #[arg(long)]
    seed: Option<u64>,
    /// Program to soak; the one that was built beside this one when none is given
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
    /// No progress on stderr
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::from(1)
        }
    }
}

/// The server at a rest.
struct AtRest {
    /// Seconds since the soak began.
    seconds: f64,
    memory: Memory,
    /// Bytes that it has allocated and not freed.
    allocated: u64,
    /// Sessions opened until then.
    sessions: u64,
}

/// Everything that runs.
struct Soak<'a> {
    options: &'a Options,
    started: Instant,
    interrupted: Arc<AtomicBool>,
    broker: Arc<Broker>,
    server: Server,
    ledger: Arc<Ledger>,
    crowd: Arc<crowd::Shared>,
    orders: Sender<Order>,
    answers: Receiver<Tally>,
    rng: Rng,
    /// The turn's rest of harms, the next last.
    harms: Vec<Harm>,
    harmed: Vec<Harm>,
    /// Gauges at the first rest.
    baseline: Option<Gauges>,
    /// Memory at the start, and at each rest.
    at_start: Memory,
    rests: Vec<AtRest>,
    /// Highest resident memory at any look.
    peak: u64,
    most_sessions: u64,
    looks: u64,
    /// What is wrong with it.
    faults: Vec<String>,
}

fn run(options: &Options) -> io::Result<bool> {
    process::raise_open_files()?;
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("soak: seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, interrupted.clone())?;
    }
    let world = Arc::new(World::new(options.accounts as usize, &mut rng));
    let tokens = TokenFile::new(&world.tokens());
    let broker = Arc::new(Broker::start());
    let server = start_server(options, &broker, &tokens)?;
    let at_start = process::memory(server.pid())?;
    let address = server.address();

    let ledger = Arc::new(Ledger::new(world.lanes()));
    let (orders, told) = channel();
    let (to_us, answers) = channel();
    let witnesses = Witnesses::connect(address, ledger.clone(), world.clone(), rng.fork())?;
    let witnesses = thread("witnesses", move || witnesses.serve(&told, &to_us))?;
    let publisher = {
        let (ledger, world, port, rate, rng) = (
            ledger.clone(),
            world.clone(),
            broker.port(),
            options.rate,
            rng.fork(),
        );
        thread("publisher", move || {
            publisher::publish(&ledger, &world, port, rate, rng);
            Ok(())
        })?
    };
    let shared = Arc::new(crowd::Shared::default());
    shared.is_leaving.store(true, Ordering::SeqCst);
    let crowd = Crowd::new(address, world, shared.clone(), rng.fork())?;
    let churn = options.churn;
    let crowd = thread("crowd", move || crowd.serve(churn))?;

    let mut soak = Soak {
        options,
        started: Instant::now(),
        interrupted,
        broker,
        server,
        ledger,
        crowd: shared,
        orders,
        answers,
        rng,
        harms: Vec::new(),
        harmed: Vec::new(),
        baseline: None,
        at_start,
        rests: Vec::new(),
        peak: 0,
        most_sessions: 0,
        looks: 0,
        faults: Vec::new(),
    };
    soak.cycles()?;
    soak.ledger.is_over.store(true, Ordering::SeqCst);
    soak.crowd.is_over.store(true, Ordering::SeqCst);
    let tally = soak.ask(Order::Leave)?;
    for (name, handle) in [
        ("witnesses", witnesses),
        ("publisher", publisher),
        ("crowd", crowd),
    ] {
        match handle.join() {
            Ok(ended) => ended?,
            Err(_) => soak.faults.push(format!("the thread {name} panicked")),
        }
    }
    soak.finish(&tally)
}

fn thread(
    name: &str,
    run: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<JoinHandle<io::Result<()>>> {
    std::thread::Builder::new().name(name.into()).spawn(run)
}

fn silent() -> io::Error {
    io::Error::other("the witnesses do not answer")
}

fn start_server(options: &Options, broker: &Broker, tokens: &TokenFile) -> io::Result<Server> {
    let program = match &options.server {
        Some(program) => program.clone(),
        None => shared::programs::beside("blackhole", "blackhole")?,
    };
    let mut command = Command::new(program);
    command.args([
        "--ip",
        "127.0.0.1",
        "--port",
        "0",
        "--admin",
        "127.0.0.1:0",
        "--amqp",
        &broker.url(),
    ]);
    command.args(["--auth", &tokens.option()]);
    // So that places are counted by IP, and so that those who do not read are closed within a cycle.
    command.args([
        "--max-connections-per-ip",
        "1000",
        "--send-timeout-ms",
        "2000",
        "--drain-seconds",
        "1",
    ]);
    // So that some come back too late, and that it is empty at a rest.
    command.args(["--history-seconds", &HISTORY.as_secs().to_string()]);
    let server = Server::spawn_patient(READY_PATIENCE, command);
    server.until_ready();
    Ok(server)
}

impl Soak<'_> {
    fn cycles(&mut self) -> io::Result<()> {
        // Witnesses first, so that their sessions are the oldest whatever the crowd does.
        self.ask(Order::Rest)?;
        let end = Duration::from_secs_f64(self.options.minutes * 60.0);
        while self.started.elapsed() < end && !self.is_over() {
            self.churn()?;
            self.rest()?;
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    /// Crowd, events, and something done to the broker.
    fn churn(&mut self) -> io::Result<()> {
        let began = Instant::now();
        // Time enough for a rest.
        let length =
            Duration::from_secs_f64((self.options.cycle - 8.0).max(self.options.cycle / 2.0));
        self.orders.send(Order::GoOn).map_err(|_| silent())?;
        self.crowd.is_leaving.store(false, Ordering::SeqCst);
        self.ledger.is_paused.store(false, Ordering::SeqCst);
        let calm = Duration::from_secs_f64(self.rng.f64() * length.as_secs_f64() / 5.0 + 1.0);
        while began.elapsed() < calm {
            self.look()?;
        }
        if self.harms.is_empty() {
            self.harms = Harm::ALL.map(|(harm, _)| harm).to_vec();
            self.rng.shuffle(&mut self.harms);
            if self.harmed.is_empty() {
                // The greatest storm first: what memory is kept after it is no growth later.
                self.harms.sort_by_key(|harm| *harm == Harm::LongFreeze);
            }
        }
        let harm = self.harms.pop().unwrap_or(Harm::Kill);
        self.ledger.is_calm.store(false, Ordering::SeqCst);
        self.progress(&format!("the broker is {}", harm.words()));
        let broker = self.broker.clone();
        let inflicted = thread("harm", move || {
            harm.inflict(&broker);
            Ok(())
        })?;
        while !inflicted.is_finished() {
            self.look()?;
        }
        if inflicted.join().is_err() {
            return Err(io::Error::other("the broker could not be disturbed"));
        }
        self.harmed.push(harm);
        let until = Instant::now() + READY_PATIENCE;
        while self.server.page("/readyz").0 != 200 {
            if Instant::now() > until {
                return Err(io::Error::other(format!(
                    "the server does not find the broker again after it was {}",
                    harm.words()
                )));
            }
            self.look()?;
        }
        let until = Instant::now() + CALM_AFTER;
        while Instant::now() < until {
            self.look()?;
        }
        self.ledger.is_calm.store(true, Ordering::SeqCst);
        self.server.signal(Signal::HUP);
        while began.elapsed() < length && !self.is_over() {
            self.look()?;
        }
        Ok(())
    }

    /// Everybody but the witnesses leaves, nothing is published; everything must be as at the first rest.
    fn rest(&mut self) -> io::Result<()> {
        if self.is_over() {
            return Ok(());
        }
        self.crowd.is_leaving.store(true, Ordering::SeqCst);
        let until = Instant::now() + SETTLE_PATIENCE;
        while self.crowd.members.load(Ordering::SeqCst) > 0 {
            if Instant::now() > until {
                self.faults.push("some of the crowd did not leave".into());
                break;
            }
            self.look_after(GLANCE)?;
        }
        self.ledger.is_paused.store(true, Ordering::SeqCst);
        let until = Instant::now() + SETTLE_PATIENCE;
        loop {
            self.look_after(GLANCE)?;
            if self.ledger.is_settled() {
                break;
            }
            if Instant::now() > until {
                self.faults
                    .push("the broker does not confirm what was published".into());
                break;
            }
        }
        self.progress("all but the witnesses have left, nothing is published");
        let tally = self.ask(Order::Rest)?;
        self.progress("the witnesses have closed their books");
        self.settle_gauges(tally.witnesses as u64)?;
        std::thread::sleep(SILENCE);
        let memory = process::memory(self.server.pid())?;
        let metrics = self.server.metrics();
        let (allocated, sessions) = (
            metrics["process_heap_bytes"],
            metrics["sessions_opened_total"],
        );
        self.rests.push(AtRest {
            seconds: self.started.elapsed().as_secs_f64(),
            memory,
            allocated,
            sessions,
        });
        self.progress(&format!(
            "rest {}: {} KiB resident, {} KiB of them heap and stacks, {} KiB allocated, {sessions} sessions so far, {} events checked, {} faults",
            self.rests.len(),
            memory.resident / 1024,
            memory.anonymous / 1024,
            allocated / 1024,
            tally.events,
            tally.faults.len() + self.faults.len(),
        ));
        Ok(())
    }

    /// Waits until the gauges are those of the first rest, or, at the first, stand still with only the witnesses there.
    fn settle_gauges(&mut self, witnesses: u64) -> io::Result<()> {
        let until = Instant::now() + SETTLE_PATIENCE;
        let (mut last, mut still_since) = (Gauges::new(), Instant::now());
        loop {
            let gauges = gauges::read(&self.server.page("/metrics").1);
            if gauges != last {
                still_since = Instant::now();
            }
            let differing = match &self.baseline {
                Some(baseline) => gauges::differing(&gauges, baseline),
                None if still_since.elapsed() >= STILL_MIN
                    && gauges.get("sessions") == Some(&witnesses) =>
                {
                    self.baseline = Some(gauges);
                    return Ok(());
                }
                None => vec![format!("gauges do not come to rest: {gauges:?}")],
            };
            if differing.is_empty() || self.is_over() {
                return Ok(());
            }
            if Instant::now() > until {
                for differing in differing {
                    self.faults
                        .push(format!("rest {}: {differing}", self.rests.len() + 1));
                }
                return Ok(());
            }
            last = gauges;
            std::thread::sleep(GLANCE);
        }
    }

    /// One look at memory and gauges, a second after the last.
    fn look(&mut self) -> io::Result<()> {
        self.look_after(LOOK)
    }

    fn look_after(&mut self, pause: Duration) -> io::Result<()> {
        std::thread::sleep(pause);
        let memory = process::memory(self.server.pid()).map_err(|error| {
            io::Error::other(format!(
                "the server is gone ({error}):\n{}",
                self.server.log()
            ))
        })?;
        let gauges = gauges::read(&self.server.page("/metrics").1);
        let gauge = |name: &str| gauges.get(name).copied().unwrap_or(0);
        self.peak = self.peak.max(memory.resident);
        self.most_sessions = self.most_sessions.max(gauge("sessions"));
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS_A_LINE) {
            self.progress(&format!(
                "{} sessions, {} subscriptions, {} AMQP bindings, source {}, {} KiB, {} published, {} opened",
                gauge("sessions"),
                gauge("subscriptions"),
                gauge("amqp_bindings_in_force"),
                if gauge("source_up") == 1 { "up" } else { "away" },
                memory.resident / 1024,
                self.ledger.published_in_all(),
                self.crowd.opened.load(Ordering::Relaxed),
            ));
        }
        Ok(())
    }

    fn progress(&self, text: &str) {
        if !self.options.quiet {
            eprintln!("{:>6.1} s  {text}", self.started.elapsed().as_secs_f64());
        }
    }

    fn ask(&self, order: Order) -> io::Result<Tally> {
        self.orders.send(order).map_err(|_| silent())?;
        let answer = self.answers.recv_timeout(ANSWER_PATIENCE);
        answer.map_err(|_| silent())
    }

    /// All have left: the last looks, the table, the verdict.
    fn finish(mut self, tally: &Tally) -> io::Result<bool> {
        let until = Instant::now() + SETTLE_PATIENCE;
        loop {
            let astray = gauges::astray(&gauges::read(&self.server.page("/metrics").1));
            if astray.is_empty() {
                break;
            }
            if Instant::now() > until {
                self.faults.extend(
                    astray
                        .into_iter()
                        .map(|gauge| format!("when all had left: {gauge}")),
                );
                break;
            }
            std::thread::sleep(GLANCE);
        }
        std::thread::sleep(SILENCE);
        let at_end = process::memory(self.server.pid())?;
        let metrics = self.server.metrics();
        for name in NEVER {
            match metrics.get(name) {
                Some(0) => {}
                value => self
                    .faults
                    .push(format!("{name} is {value:?} instead of 0")),
            }
        }
        let status = self.server.stop();
        if !status.success() {
            self.faults.push(format!("the server ended with {status}"));
        }
        let log = self.server.log();
        let complaints = log.lines().filter(|line| {
            (line.contains("ERROR") || line.contains("panicked")) && !line.contains(FROZEN)
        });
        self.faults
            .extend(complaints.map(|line| format!("the server logged: {line}")));
        self.judge(tally);
        self.print(
            tally,
            at_end,
            metrics.get("frames_delivered_total").copied().unwrap_or(0),
        )?;
        Ok(self.faults.is_empty())
    }
}
