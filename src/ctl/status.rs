//! `status`: a row a process, and sums.

use std::collections::HashMap;
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anstyle::Style;
use clap::Args;
use serde_json::{Value, json};

use super::Context;
use super::exposition::{Exposition, Histogram};
use super::http::{Client, Trouble};
use super::output::{Failure, Outcome, Screen, complain};
use super::processes::Answer;
use super::table::{BAD, Cell, Column, DOUBTFUL, HEAD, Table};
use super::text::{NOTHING, bytes, count, latency, rate, span};
use crate::limits::TLS_EXPIRY_WARNED;
use crate::printable::printable;

/// Of a hundred turns, waits or events, ninety-nine are at most so long.
const MOST: f64 = 0.99;

/// The metric that tells when the first certificate for clients expires; 0: there is none.
const CERTIFICATE_EXPIRES: &str = "blackhole_tls_certificate_expires";

/// Show how each process is: ready, sessions, events, delays, memory, CPU
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  blackhole ctl status
  blackhole ctl status --watch 2
  blackhole ctl --admin-dir /run/blackhole status --json

LAG is how late the loop came to what was due, TURN how long its turns took, AGE how
old events were when sessions were given them: 99 of 100 were at most so long, since
the start, or with --watch since the last look. CPU likewise: 100 % is one core.
OUTBOX is what waits for slow clients, SLOW how many these are, HELD how long events
have waited for the loop.")]
pub(super) struct StatusArgs {
    /// Look again every so many seconds, with rates instead of totals, until Ctrl-C
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    watch: Option<u64>,
}

/// What two pages of one process tell.
struct Look {
    at: Instant,
    /// The lines of `/readyz`.
    readiness: Vec<String>,
    is_ready: bool,
    page: Exposition,
}

/// The figures of one process, or the sums of all. Missing ones are not on its page.
#[derive(Clone, Debug, Default)]
struct Figures {
    uptime: Option<f64>,
    sessions: Option<f64>,
    connections: Option<f64>,
    connections_max: Option<f64>,
    /// Taken since the start, or a second since the last look.
    events: Option<f64>,
    /// As of events.
    frames: Option<f64>,
    outbox_bytes: Option<f64>,
    slow: Option<f64>,
    held: Option<f64>,
    memory: Option<f64>,
    /// Of one core, 1: all the time since the start, or the last look.
    cpu: Option<f64>,
    /// When the first certificate for clients expires, in Unix seconds.
    certificate_expires: Option<f64>,
    lag: Option<Histogram>,
    turn: Option<Histogram>,
    age: Option<Histogram>,
}

fn look(client: &Client) -> Result<Look, Trouble> {
    let readiness = client.text("/readyz", Some(503))?;
    let readiness: Vec<String> = readiness.lines().map(str::to_owned).collect();
    let page = client.text("/metrics", None)?;
    let page = Exposition::parse(&page);
    if page.value("blackhole_sessions").is_none() {
        return Err(Trouble::Foreign("no metrics of blackhole".to_owned()));
    }
    Ok(Look {
        at: Instant::now(),
        is_ready: readiness.first().is_some_and(|line| line == "ready"),
        readiness,
        page,
    })
}

impl StatusArgs {
    pub(super) fn run(&self, cx: &mut Context<'_>) -> Result<Outcome, Failure> {
        let mut before: HashMap<String, Look> = HashMap::new();
        let is_rate = self.watch.is_some();
        loop {
            let asked = cx.processes().and_then(|processes| processes.ask(look));
            let answers = match (asked, self.watch) {
                (Ok(answers), _) => answers,
                // Whoever watches a restart sees the new processes come.
                (Err(Failure::Failed(why)), Some(seconds)) => {
                    complain(&why);
                    thread::sleep(Duration::from_secs(seconds));
                    continue;
                }
                (Err(failure), _) => return Err(failure),
            };
            let outcome = Outcome::of(answers.iter().all(|answer| answer.result.is_ok()));
            let figures: Vec<Option<Figures>> = answers
                .iter()
                .map(|answer| {
                    let look = answer.result.as_ref().ok()?;
                    Some(Figures::new(look, before.get(&answer.process), is_rate))
                })
                .collect();
            let shown = Shown {
                answers: &answers,
                figures: &figures,
                is_rate,
            };
            if cx.is_json {
                let document = shown.to_json();
                match self.watch {
                    None => cx.screen.document(&document)?,
                    Some(_) => cx.screen.json_line(&document)?,
                }
            } else {
                if self.watch.is_some() {
                    cx.screen.clear()?;
                }
                shown.write(&mut cx.screen)?;
            }
            let Some(seconds) = self.watch else {
                return Ok(outcome);
            };
            before = answers
                .into_iter()
                .filter_map(|answer| Some((answer.process, answer.result.ok()?)))
                .collect();
            thread::sleep(Duration::from_secs(seconds));
        }
    }
}

impl Figures {
    /// `before`: the look before this one. `is_rate`: what is counted is told a second, since then, else since the start.
    fn new(look: &Look, before: Option<&Look>, is_rate: bool) -> Self {
        let value = |name: &str| look.page.value(name);
        let since = |name: &str| {
            let now = value(name)?;
            let before = before?;
            let grown = now - before.page.value(name)?;
            let seconds = look.at.duration_since(before.at).as_secs_f64();
            // A process that has begun anew counts from zero.
            (grown >= 0.0 && seconds > 0.0).then(|| grown / seconds)
        };
        let total = |name: &str| if is_rate { since(name) } else { value(name) };
        let histogram = |name: &str| {
            let now = look.page.histogram(name)?;
            let before = before.and_then(|before| before.page.histogram(name));
            Some(now.since(&before.unwrap_or_default()))
        };
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let unix = unix.unwrap_or_default().as_secs_f64();
        let start = value("process_start_time_seconds");
        let uptime = start.map(|start| (unix - start).max(0.0));
        let cpu = if is_rate {
            since("process_cpu_seconds_total")
        } else {
            value("process_cpu_seconds_total")
                .zip(uptime)
                .map(|(cpu, uptime)| cpu / uptime.max(1.0))
        };
        Self {
            uptime,
            sessions: value("blackhole_sessions"),
            connections: value("blackhole_connections"),
            connections_max: value("blackhole_connections_max"),
            events: total("blackhole_events_total"),
            frames: total("blackhole_frames_delivered_total"),
            outbox_bytes: value("blackhole_outboxes_blocked_bytes"),
            slow: value("blackhole_outboxes_blocked"),
            held: value("blackhole_handoff_held_seconds"),
            memory: value("process_resident_memory_bytes"),
            cpu,
            certificate_expires: value(CERTIFICATE_EXPIRES).filter(|expires| *expires > 0.0),
            lag: histogram("blackhole_loop_lag_seconds"),
            turn: histogram("blackhole_turn_seconds"),
            age: histogram("blackhole_event_age_seconds"),
        }
    }

    /// Both together: sums, the longest times, the first end of a certificate, one distribution of delays.
    fn with(self, other: &Self) -> Self {
        let add = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        let most = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        let least = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let join = |a: Option<Histogram>, b: &Option<Histogram>| match (a, b) {
            (Some(a), Some(b)) => Some(a.with(b)),
            (a, b) => a.or_else(|| b.clone()),
        };
        Self {
            uptime: most(self.uptime, other.uptime),
            sessions: add(self.sessions, other.sessions),
            connections: add(self.connections, other.connections),
            connections_max: add(self.connections_max, other.connections_max),
            events: add(self.events, other.events),
            frames: add(self.frames, other.frames),
            outbox_bytes: add(self.outbox_bytes, other.outbox_bytes),
            slow: add(self.slow, other.slow),
            held: most(self.held, other.held),
            memory: add(self.memory, other.memory),
            cpu: add(self.cpu, other.cpu),
            certificate_expires: least(self.certificate_expires, other.certificate_expires),
            lag: join(self.lag, &other.lag),
            turn: join(self.turn, &other.turn),
            age: join(self.age, &other.age),
        }
    }

    fn to_json(&self, is_rate: bool) -> Value {
        let most = |histogram: &Option<Histogram>| histogram.as_ref()?.quantile(MOST);
        let (events, frames) = match is_rate {
            false => ("events", "frames"),
            true => ("events_per_second", "frames_per_second"),
        };
        let mut figures = json!({
            "uptime_seconds": self.uptime,
            "sessions": whole(self.sessions),
            "connections": whole(self.connections),
            "connections_max": whole(self.connections_max),
            events: if is_rate { json!(self.events) } else { json!(whole(self.events)) },
            frames: if is_rate { json!(self.frames) } else { json!(whole(self.frames)) },
            "outbox_bytes": whole(self.outbox_bytes),
            "slow_sessions": whole(self.slow),
            "held_seconds": self.held,
            "memory_bytes": whole(self.memory),
            "cpu": self.cpu,
            "loop_lag_p99_seconds": most(&self.lag),
            "turn_p99_seconds": most(&self.turn),
            "event_age_p99_seconds": most(&self.age),
        });
        // Only where there is TLS.
        if let Some(expires) = whole(self.certificate_expires) {
            figures["certificate_expires"] = json!(expires);
        }
        figures
    }

    /// The cells of the first table from UPTIME on.
    fn of_sessions(&self, is_rate: bool) -> Vec<String> {
        let counted = |value| whole(value).map_or(NOTHING.to_owned(), count);
        let flow = |value: Option<f64>| match (is_rate, value) {
            (true, value) => value.map_or(NOTHING.to_owned(), rate),
            (false, value) => counted(value),
        };
        vec![
            whole(self.uptime).map_or(NOTHING.to_owned(), span),
            counted(self.sessions),
            format!(
                "{} / {}",
                counted(self.connections),
                counted(self.connections_max)
            ),
            flow(self.events),
            flow(self.frames),
        ]
    }

    /// The cells of the second table.
    fn of_loop(&self) -> Vec<Cell> {
        let delay = |histogram: &Option<Histogram>| {
            let most = histogram.as_ref().and_then(|all| all.quantile(MOST));
            Cell::from(most.map_or(NOTHING.to_owned(), latency))
        };
        let doubtful = |value: Option<f64>, write: fn(u64) -> String| match whole(value) {
            None => Cell::from(NOTHING),
            Some(0) => Cell::from(write(0)),
            Some(value) => Cell::styled(&write(value), DOUBTFUL),
        };
        vec![
            delay(&self.lag),
            delay(&self.turn),
            delay(&self.age),
            self.held.map_or(NOTHING.to_owned(), latency).into(),
            doubtful(self.slow, count),
            doubtful(self.outbox_bytes, bytes),
            whole(self.memory).map_or(NOTHING.to_owned(), bytes).into(),
            self.cpu
                .map_or(NOTHING.to_owned(), |cpu| format!("{:.1} %", cpu * 100.0))
                .into(),
        ]
    }
}

/// What is said of a certificate that is good for so many seconds more; `None`: there is time.
fn certificate_told(left: f64) -> Option<String> {
    if left <= 0.0 {
        return Some("a certificate for clients has expired".to_owned());
    }
    (left < TLS_EXPIRY_WARNED.as_secs_f64()).then(|| {
        let left = whole(Some(left)).map_or(NOTHING.to_owned(), span);
        format!("a certificate for clients expires in {left}")
    })
}

/// A value that is a count.
fn whole(value: Option<f64>) -> Option<u64> {
    // Below zero and beyond 2^64 `as` takes the nearest.
    value.map(|value| value as u64)
}

/// What one look at all processes shows.
struct Shown<'a> {
    answers: &'a [Answer<Look>],
    /// Of each answer, if it is one.
    figures: &'a [Option<Figures>],
    is_rate: bool,
}

impl Shown<'_> {
    fn sum(&self) -> Figures {
        let found = self.figures.iter().flatten();
        found.fold(Figures::default(), Figures::with)
    }

    fn to_json(&self) -> Value {
        let pairs = self.answers.iter().zip(self.figures);
        let of_each: Vec<Value> = pairs
            .map(|(answer, figures)| match (&answer.result, figures) {
                (Ok(look), Some(figures)) => {
                    let mut object = figures.to_json(self.is_rate);
                    object["process"] = json!(answer.process);
                    object["version"] = json!(version(look));
                    object["is_ready"] = json!(look.is_ready);
                    object["readiness"] = json!(look.readiness);
                    object["is_source_up"] = json!(is_source_up(look));
                    object
                }
                (Err(trouble), _) => {
                    json!({"process": answer.process, "error": trouble.to_string()})
                }
                (Ok(_), None) => Value::Null,
            })
            .collect();
        json!({"processes": of_each, "sum": self.sum().to_json(self.is_rate)})
    }

    fn write(&self, screen: &mut Screen) -> io::Result<()> {
        if self.figures.iter().all(Option::is_none) {
            for answer in self.answers {
                if let Err(trouble) = &answer.result {
                    complain(&format!("{}: {trouble}", answer.process));
                }
            }
            return Ok(());
        }
        let (events, frames) = match self.is_rate {
            false => ("EVENTS", "FRAMES"),
            true => ("EVENTS/S", "FRAMES/S"),
        };
        let mut sessions = Table::new(vec![
            Column::Left("PROCESS"),
            Column::Left("STATE"),
            Column::Left("VERSION"),
            Column::Left("BROKER"),
            Column::Right("UPTIME"),
            Column::Right("SESSIONS"),
            Column::Right("CONNECTIONS"),
            Column::Right(events),
            Column::Right(frames),
        ]);
        let mut loops = Table::new(vec![
            Column::Left("PROCESS"),
            Column::Right("LAG"),
            Column::Right("TURN"),
            Column::Right("AGE"),
            Column::Right("HELD"),
            Column::Right("SLOW"),
            Column::Right("OUTBOX"),
            Column::Right("MEMORY"),
            Column::Right("CPU"),
        ]);
        for (answer, figures) in self.answers.iter().zip(self.figures) {
            let name = Cell::from(&answer.process);
            match (&answer.result, figures) {
                (Ok(look), Some(figures)) => {
                    let mut row = vec![name.clone(), state(look)];
                    row.push(version(look).unwrap_or(NOTHING).into());
                    row.push(match is_source_up(look) {
                        None => NOTHING.into(),
                        Some(true) => "up".into(),
                        Some(false) => Cell::styled("down", BAD),
                    });
                    let cells = figures.of_sessions(self.is_rate);
                    row.extend(cells.iter().map(Cell::from));
                    sessions.add(row);
                    let mut row = vec![name];
                    row.extend(figures.of_loop());
                    loops.add(row);
                }
                (Err(trouble), _) => {
                    sessions.add(vec![name, Cell::styled(&trouble.to_string(), BAD)]);
                }
                (Ok(_), None) => {}
            }
        }
        if self.answers.len() > 1 {
            let sum = self.sum();
            let mut row = vec![Cell::styled("all", HEAD), "".into(), "".into(), "".into()];
            let cells = sum.of_sessions(self.is_rate);
            row.extend(cells.iter().map(|cell| Cell::styled(cell, HEAD)));
            sessions.add(row);
            let mut row = vec![Cell::styled("all", HEAD)];
            row.extend(sum.of_loop());
            loops.add(row);
        }
        sessions.write(&mut screen.out, screen.width)?;
        writeln!(screen.out)?;
        loops.write(&mut screen.out, screen.width)?;
        self.write_more(screen)?;
        screen.out.flush()
    }

    /// What `/readyz` says beyond its first line, and that a certificate is near its end.
    fn write_more(&self, screen: &mut Screen) -> io::Result<()> {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let unix = unix.unwrap_or_default().as_secs_f64();
        for (answer, figures) in self.answers.iter().zip(self.figures) {
            let Ok(look) = &answer.result else { continue };
            let expires = figures.as_ref().and_then(|all| all.certificate_expires);
            let certificate = expires.and_then(|expires| certificate_told(expires - unix));
            let more = look.readiness.iter().skip(1).cloned();
            for line in more.chain(certificate) {
                let line = format!("{}: {line}", answer.process);
                writeln!(screen.out, "{DOUBTFUL}{}{DOUBTFUL:#}", printable(&line))?;
            }
        }
        Ok(())
    }
}

fn state(look: &Look) -> Cell {
    let line = look.readiness.first().map_or("not ready", |line| &**line);
    let style = if look.is_ready { Style::new() } else { BAD };
    Cell::styled(line, style)
}

fn version(look: &Look) -> Option<&str> {
    look.page.label("blackhole_build_info", "version")
}

fn is_source_up(look: &Look) -> Option<bool> {
    let up = look.page.value("blackhole_source_up");
    up.map(|up| up > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_of(at: Instant, events: u64, turns: [u64; 2]) -> Look {
        let page = format!(
            "blackhole_sessions 3\nblackhole_events_total {events}\nprocess_cpu_seconds_total 1.5\n\
             blackhole_turn_seconds_bucket{{le=\"0.001\"}} {}\n\
             blackhole_turn_seconds_bucket{{le=\"+Inf\"}} {}\n",
            turns[0], turns[1]
        );
        Look {
            at,
            readiness: vec!["ready".to_owned()],
            is_ready: true,
            page: Exposition::parse(&page),
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks_and_totals_since_the_start() {
        let begun = Instant::now();
        let first = look_of(begun, 100, [100, 100]);
        let second = look_of(begun + Duration::from_secs(2), 150, [101, 200]);
        let total = Figures::new(&second, None, false);
        assert_eq!(
            (total.events, total.cpu),
            (Some(150.0), None),
            "no start, no share"
        );
        let rate = Figures::new(&second, Some(&first), true);
        assert_eq!((rate.events, rate.cpu), (Some(25.0), Some(0.0)));
        // Of the hundred turns since the first look one was fast.
        let most = |figures: &Figures| figures.turn.as_ref().and_then(|turn| turn.quantile(0.5));
        assert_eq!(most(&rate), Some(0.001));
        assert!(most(&total) < Some(0.001), "{:?}", most(&total));
        let none = Figures::new(&first, None, true);
        assert_eq!(none.events, None, "one look has no rate");
        let anew = Figures::new(&first, Some(&second), true);
        assert_eq!(anew.events, None, "a process that began anew has none yet");
    }

    #[test]
    fn a_certificate_is_told_of_when_there_is_little_time_left() {
        const DAY: f64 = 86_400.0;
        for (left, expected) in [
            (31.0 * DAY, None),
            (
                12.0 * DAY,
                Some("a certificate for clients expires in 12 d 00 h"),
            ),
            (0.0, Some("a certificate for clients has expired")),
            (-DAY, Some("a certificate for clients has expired")),
        ] {
            assert_eq!(certificate_told(left).as_deref(), expected, "{left}");
        }
        let expires = |line: &str| {
            let page = format!("blackhole_sessions 3\n{line}");
            let mut look = look_of(Instant::now(), 0, [0, 0]);
            look.page = Exposition::parse(&page);
            Figures::new(&look, None, false)
        };
        let none = expires("blackhole_tls_certificate_expires 0\n");
        let one = expires("blackhole_tls_certificate_expires 7\n");
        let other = expires("blackhole_tls_certificate_expires 5\n");
        assert_eq!(none.certificate_expires, None);
        assert_eq!(none.with(&one).with(&other).certificate_expires, Some(5.0));
    }

    #[test]
    fn sums_add_what_is_there() {
        let one = Figures {
            sessions: Some(2.0),
            held: Some(0.5),
            ..Figures::default()
        };
        let two = Figures {
            sessions: Some(3.0),
            held: Some(0.1),
            memory: Some(7.0),
            ..Figures::default()
        };
        let sum = one.with(&two).with(&Figures::default());
        assert_eq!(
            (sum.sessions, sum.held, sum.memory),
            (Some(5.0), Some(0.5), Some(7.0))
        );
        assert_eq!(sum.cpu, None);
    }
}
