//! What a real plant is like: sessions of many accounts with request ids of their own, a mix of events of which most
//! are nobody's, through RabbitMQ, at rates that rise until events get old.
//!
//! The publisher keeps its rate whatever happens: each event has its time, which is in its body, and its age is from
//! that time to its receipt by a client; so an event that waits for a publisher or a broker that is behind ages too.
//! Server on one core; broker, publisher and load generator share the other, which may be saturated first.

mod mix;
mod servers;

use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::bridge;
use crate::running::{Load, Waiting, micros_each};
use crate::subject::{Cpu, ROUND_GAP, compare};
use crate::table::{SATURATED, Table, number, percent, ratio};
use mix::{Event, Mix, WANTED_IN_CYCLE};
use servers::{Events, Server};
use support::broker::{self, Broker};

/// The subjects, by the names that they have in the other suites.
pub(crate) const SUBJECTS: [&str; 3] = ["ours", "tokio-tungstenite", "nats"];

/// Sessions and their accounts.
pub(crate) const SESSIONS: u32 = 19_000;
const ACCOUNTS: u32 = 2_000;

/// A rate is held when 99 of 100 events are not older than this.
const AGE_MAX_MS: f64 = 50.0;

/// A series ends when so many rates in a row are not held: one may be the machine's fault.
const MISSES_MAX: u32 = 2;

/// Events a second, rising; the last is far beyond what one core can take.
const RATES: [u32; 20] = [
    1_000, 2_000, 4_000, 6_000, 8_000, 10_000, 12_000, 14_000, 16_000, 18_000, 20_000, 24_000,
    28_000, 32_000, 40_000, 50_000, 60_000, 80_000, 100_000, 120_000,
];

/// Shortest sleep of the publisher: what is due meanwhile goes out together.
const TICK: Duration = Duration::from_micros(250);

/// The rate before the first that is measured: caches and socket buffers find their size.
const WARM_UP: u32 = 1_000;

/// What to run.
pub(crate) struct Plant<'a> {
    pub(crate) server: &'a Path,
    pub(crate) load: &'a Path,
    /// Divides sessions and accounts.
    pub(crate) shrink: u32,
    /// Time of one rate, at least.
    pub(crate) seconds: f64,
}

impl Plant<'_> {
    /// One JSON object for each rate of each of `subjects`, up to the rates that it does not hold.
    ///
    /// # Errors
    /// Ours fails: a frame or a session is missing. A peer that does is told on stderr, and its series ends.
    pub(crate) fn measure(&self, subjects: &[&str]) -> io::Result<Vec<Value>> {
        let broker = match broker::installed() {
            _ if !subjects.iter().any(|subject| *subject != "nats") => None,
            Ok(()) => Some(bridge::pinned_broker()?),
            Err(error) => {
                eprintln!("plant: without RabbitMQ, not installed: {error}");
                None
            }
        };
        let mut rows = Vec::new();
        for &subject in subjects {
            eprintln!("plant: {subject}");
            match self.series(subject, broker.as_ref(), &mut rows) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    eprintln!("  {subject}: skipped, not installed: {error}");
                }
                Err(error) if subject == SUBJECTS[0] => {
                    return Err(io::Error::other(format!("{subject}: {error}")));
                }
                Err(error) => eprintln!("  {subject}: ended, failed: {error}"),
            }
        }
        compare(
            &mut rows,
            &["rate"],
            &[("cpu_us_per_frame", "ours_to_it_cpu")],
        );
        Ok(rows)
    }

    fn series(
        &self,
        subject: &str,
        broker: Option<&Broker>,
        rows: &mut Vec<Value>,
    ) -> io::Result<()> {
        let of_broker = || broker.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        let server = match subject {
            "ours" => Server::ours(self.server, of_broker()?),
            "nats" => Server::nats(),
            _ => Server::tokio(of_broker()?),
        }?;
        let (sessions, accounts) = (SESSIONS / self.shrink, ACCOUNTS / self.shrink);
        let mut arguments = server.load_arguments.clone();
        arguments.extend(["--accounts".to_owned(), accounts.to_string()]);
        arguments.push("--msg-id-latency".to_owned());
        let waiting = Waiting::Sleep;
        let clients = Load::start(self.load, &server.address, sessions, &arguments, waiting)?;
        let mut runner = Runner {
            server,
            clients,
            broker: broker.filter(|_| subject != "nats"),
            mix: Mix::new(accounts),
            sessions,
            accounts,
            seconds: self.seconds,
        };
        runner.round(WARM_UP)?;
        let mut misses = 0;
        for rate in RATES {
            let mut row = runner.round(rate)?;
            row["name"] = subject.into();
            misses = if is_held(&row) { 0 } else { misses + 1 };
            rows.push(row);
            if misses == MISSES_MAX {
                break;
            }
        }
        Ok(())
    }
}

/// Whether the row's events were young enough.
fn is_held(row: &Value) -> bool {
    row["age_p99_ms"]
        .as_f64()
        .is_some_and(|age| age <= AGE_MAX_MS)
}

/// A server with its sessions.
struct Runner<'a> {
    server: Server,
    clients: Load,
    /// The broker whose CPU counts.
    broker: Option<&'a Broker>,
    mix: Mix,
    sessions: u32,
    accounts: u32,
    seconds: f64,
}

impl Runner<'_> {
    /// Publishes `rate` events a second for about [`Plant::seconds`]: so many that every session gets equally many.
    fn round(&mut self, rate: u32) -> io::Result<Value> {
        sleep(ROUND_GAP);
        let wanted_share = WANTED_IN_CYCLE as f64 / 100.0;
        let wanted = f64::from(rate) * self.seconds * wanted_share;
        let each = (wanted / f64::from(self.accounts)).round().max(1.0) as u32;
        let broker: Vec<u32> = self.broker.iter().map(|broker| broker.pid()).collect();
        let own = [std::process::id()];
        let cpu = || -> io::Result<_> { Ok((Cpu::of(&broker)?.all, Cpu::of(&own)?.all)) };
        self.clients.arm(each)?;
        let before = Cpu::of(&self.server.pids)?;
        let (broker_before, own_before) = cpu()?;
        let started = Instant::now();
        let target = self.mix.wanted() + u64::from(each) * u64::from(self.accounts);
        let sent = publish(&mut self.mix, target, rate, &mut *self.server.events)?;
        let round = self.clients.finish()?;
        let elapsed = started.elapsed();
        let (broker_after, own_after) = cpu()?;
        let cpu = Cpu::settled(&self.server.pids)?.since(before);
        let events = sent.events as f64;
        let frames = round["frames"].as_f64().unwrap_or(0.0);
        let seconds = elapsed.as_secs_f64();
        let share = |time: Duration| time.as_secs_f64() / seconds;
        let load = Duration::from_nanos(round["cpu_ns"].as_u64().unwrap_or(0));
        let broker = broker_after.saturating_sub(broker_before);
        let publisher = own_after.saturating_sub(own_before);
        let others = cpu.all.saturating_sub(cpu.main);
        let amqp = |count: f64| {
            let figure = self.server.has_amqp_threads;
            figure.then(|| micros_each(others, count))
        };
        let main = if self.server.has_amqp_threads {
            cpu.main
        } else {
            cpu.all
        };
        let millis = |quantile: &str| round["latency_us"][quantile].as_f64().map(|us| us / 1e3);
        Ok(json!({
            "rate": rate,
            "sessions": self.sessions,
            "accounts": self.accounts,
            "events": sent.events,
            "frames": frames,
            "events_per_second": events / seconds,
            "frames_per_second": frames / seconds,
            "age_p50_ms": millis("p50"),
            "age_p99_ms": millis("p99"),
            "age_max_ms": millis("max"),
            "frames_aged": round["latency_us"]["count"],
            "publisher_late_ms": sent.late.as_secs_f64() * 1e3,
            "cpu_us_per_event": micros_each(cpu.all, events),
            "cpu_us_per_frame": micros_each(cpu.all, frames),
            "loop_cpu_us_per_event": micros_each(main, events),
            "loop_cpu_us_per_frame": micros_each(main, frames),
            "amqp_cpu_us_per_event": amqp(events),
            "amqp_cpu_us_per_frame": amqp(frames),
            "server_busy_share": share(cpu.all),
            "broker_busy_share": self.broker.map(|_| share(broker)),
            "load_busy_share": share(load),
            "publisher_busy_share": share(publisher),
            "other_core_busy_share": share(load + broker + publisher),
        }))
    }
}

/// What a publisher has done.
struct Sent {
    events: u64,
    /// How late the latest event was handed on.
    late: Duration,
}

/// Publishes events of `mix`, `rate` a second, until `target` wanted ones have been made in all.
fn publish(mix: &mut Mix, target: u64, rate: u32, to: &mut dyn Events) -> io::Result<Sent> {
    let epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(io::Error::other)?;
    let started = Instant::now();
    let interval = Duration::from_secs(1) / rate;
    let mut sent = Sent {
        events: 0,
        late: Duration::ZERO,
    };
    let mut due = Duration::ZERO;
    let mut batch: Vec<Event> = Vec::new();
    while mix.wanted() < target {
        let now = started.elapsed();
        sent.late = sent.late.max(now.saturating_sub(due));
        while due <= now && mix.wanted() < target {
            let micros = (epoch + due).as_micros();
            batch.push(mix.next(micros.try_into().unwrap_or(u64::MAX)));
            due += interval;
        }
        to.publish(&batch)?;
        sent.events += batch.len() as u64;
        batch.clear();
        sleep(due.saturating_sub(started.elapsed()).max(TICK));
    }
    Ok(sent)
}

/// A mark for an age that is not the server's, and what it means.
fn mark(row: &Value) -> Option<(&'static str, &'static str)> {
    let is_saturated = |name: &str| row[name].as_f64() > Some(SATURATED);
    if is_saturated("server_busy_share") {
        None
    } else if is_saturated("other_core_busy_share") {
        Some((
            " !",
            "!: broker, load generator and publisher had saturated their core and the server had not: the age is \
             theirs, the CPU of the server is still its own.",
        ))
    } else if !is_held(row) {
        Some((
            " ?",
            "?: neither core was saturated by what is measured: the age is that of a stall, of another program on the \
             machine, or of a publisher that waited for the broker.",
        ))
    } else {
        None
    }
}

/// Prints the rows.
pub(crate) fn print(rows: &[Value]) {
    let mut table = Table::new(&[
        "plant",
        "rate",
        "events/s",
        "frames/s",
        "p50 ms",
        "p99 ms",
        "CPU µs/frame",
        "ours to it",
        "loop µs/event",
        "µs/frame",
        "AMQP µs/event",
        "µs/frame",
        "server busy",
        "broker",
        "load",
        "publisher",
        "core 1 busy",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        let mark = mark(row);
        table.row(vec![
            row["name"].as_str().unwrap_or("").to_owned(),
            row["rate"].to_string(),
            number(figure("events_per_second"), 0),
            number(figure("frames_per_second"), 0),
            number(figure("age_p50_ms"), 1),
            number(figure("age_p99_ms"), 1) + mark.map_or("", |(mark, _)| mark),
            number(figure("cpu_us_per_frame"), 2),
            ratio(figure("ours_to_it_cpu")),
            number(figure("loop_cpu_us_per_event"), 2),
            number(figure("loop_cpu_us_per_frame"), 2),
            number(figure("amqp_cpu_us_per_event"), 2),
            number(figure("amqp_cpu_us_per_frame"), 2),
            percent(figure("server_busy_share")),
            percent(figure("broker_busy_share")),
            percent(figure("load_busy_share")),
            percent(figure("publisher_busy_share")),
            percent(figure("other_core_busy_share")),
        ]);
        if let Some((_, meaning)) = mark {
            table.note(meaning);
        }
    }
    for name in SUBJECTS {
        let of_it = |row: &&Value| row["name"] == name && is_held(row);
        if let Some(last) = rows.iter().rfind(of_it) {
            table.note(&format!(
                "{name}: 99 of 100 events reach their sessions within {AGE_MAX_MS} ms up to {} events/s, {} frames/s, \
                 with the server {} busy.",
                last["rate"],
                number(last["frames_per_second"].as_f64(), 0),
                percent(last["server_busy_share"].as_f64()),
            ));
        }
    }
    table.note(
        "Age: from the time at which an event was to be published to its receipt. NATS gets its events from the \
         publisher, without RabbitMQ; its CPU, and that of tokio-tungstenite, is all under the loop.",
    );
    table.print();
}
