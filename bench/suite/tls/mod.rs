//! TLS in our server, beside the same server without and beside nginx and HAProxy that take TLS off before it: memory of an
//! idle session, CPU of a frame and of a connect, pings of a live session while others connect, and all coming back.
//!
//! | file | owns |
//! |---|---|
//! | `sides` | the processes that are measured, and their certificate |
//! | `idle`, `handshakes`, `pings`, `back` | a part each; the fan-out is that of the suite `fanout` |
//!
//! Every side has a port without TLS too. A budget is what the design allows our server; the tables say where it does not
//! hold.

mod back;
mod handshakes;
mod idle;
mod pings;
mod sides;

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::fanout::{self, Fanout};
use crate::ours;
use crate::running::Load;
use crate::subject::{Candidate, Setup, compare_with};
use crate::table::{Table, number, percent, ratio};
use sides::{Front, Port, SIDES};

pub(crate) use sides::{HAPROXY, NGINX, OURS};

/// Sessions of the fan-out; behind a proxy fewer.
const FANOUT_SESSIONS: u32 = 10_000;

/// Sessions that connect at a time where not all do.
const AT_ONCE: u32 = 512;

/// CPU microseconds of a frame above plain, by events in flight (the budgets).
const ABOVE_PLAIN_MAX: [(u64, f64); 2] = [(1, 0.7), (8, 0.5)];

/// How much is measured.
pub(crate) struct Extent {
    /// Divides every number of sessions.
    pub(crate) shrink: u32,
    /// Sessions of the parts in which all are there.
    pub(crate) sessions: u32,
    /// Rounds of handshakes and pings.
    pub(crate) rounds: u32,
    /// (in flight, rounds) of the fan-out.
    pub(crate) fanout: &'static [(u32, u32)],
    /// Time of one subject for one series of its rounds.
    pub(crate) time_max: Duration,
    pub(crate) body_bytes: usize,
}

/// What is measured, and with which programs.
pub(crate) struct Plan<'a> {
    pub(crate) server: &'a Path,
    pub(crate) load: &'a Path,
    pub(crate) extent: Extent,
    /// Whether a candidate of this name is wanted.
    pub(crate) wants: &'a dyn Fn(&str) -> bool,
}

impl Plan<'_> {
    /// One row for each figure, its part in `part`. A proxy that is not installed or fails is left out of its part, which is
    /// told.
    ///
    /// # Errors
    /// Our server fails; what was measured before is printed.
    pub(crate) fn measure(&self) -> io::Result<Vec<Value>> {
        let mut rows = Vec::new();
        let measured = self.parts(&mut rows);
        compare(&mut rows);
        if measured.is_err() {
            print(&rows);
        }
        measured.map(|()| rows)
    }

    fn parts(&self, rows: &mut Vec<Value>) -> io::Result<()> {
        let Extent {
            shrink,
            sessions,
            rounds,
            body_bytes,
            ..
        } = self.extent;
        let load = self.load;
        let most = sessions.div_ceil(shrink);
        for port in [Port::Plain, Port::Tls] {
            self.each("idle", port, most, rows, |front, setup| {
                let row = idle::measure(front, port, setup, load, body_bytes)?;
                Ok(vec![row])
            })?;
        }
        rows.extend(self.fanout()?);
        let connects = handshakes::CONNECTS.div_ceil(shrink);
        self.each("handshakes", Port::Tls, connects, rows, |front, setup| {
            handshakes::measure(front, setup, load, rounds)
        })?;
        let connects = pings::CONNECTS.div_ceil(shrink);
        self.each("pings", Port::Tls, connects, rows, |front, setup| {
            pings::measure(front, setup, load, rounds)
        })?;
        for port in [Port::Plain, Port::Tls] {
            self.each("back", port, most, rows, |front, setup| {
                back::measure(front, port, setup, load)
            })?;
        }
        Ok(())
    }

    /// Adds to `rows` what `measure` says of every side, with `sessions` sessions or as many as it can stand. The ports
    /// without TLS of the proxies are measured only where [`Port::Tls`] is, beside it.
    fn each(
        &self,
        part: &str,
        port: Port,
        sessions: u32,
        rows: &mut Vec<Value>,
        measure: impl Fn(Front, &Setup<'_>) -> io::Result<Vec<Value>>,
    ) -> io::Result<()> {
        for (candidate, front) in SIDES {
            let is_wanted = port == Port::Tls || front == Front::Ours;
            if !is_wanted || !(self.wants)(candidate.name) {
                continue;
            }
            eprintln!("tls: {part}, {}, {}", candidate.name, port.name());
            let setup = Setup {
                server: self.server,
                sessions: sessions.min(candidate.sessions_max.unwrap_or(u32::MAX)),
            };
            match measure(front, &setup) {
                Ok(told) => rows.extend(told.into_iter().map(|mut row| {
                    row["name"] = candidate.name.into();
                    row
                })),
                Err(error) => fanout::leave_out(&candidate, &error)?,
            }
        }
        Ok(())
    }

    /// CPU and latency of a frame: our server without TLS, with it, and behind the proxies.
    fn fanout(&self) -> io::Result<Vec<Value>> {
        let sides = SIDES.map(|(candidate, _)| candidate);
        let all = [ours::CANDIDATE].into_iter().chain(sides);
        let candidates: Vec<Candidate> = all
            .filter(|candidate| {
                candidate.name == ours::CANDIDATE.name || (self.wants)(candidate.name)
            })
            .collect();
        eprintln!("tls: fanout");
        let told = Fanout {
            candidates: &candidates,
            server: self.server,
            load: self.load,
            sessions: FANOUT_SESSIONS.div_ceil(self.extent.shrink),
            body_bytes: &[self.extent.body_bytes],
            series: self.extent.fanout,
            time_max: self.extent.time_max,
        }
        .measure()?;
        let mut rows = Vec::new();
        for row in told {
            let subjects = row["subjects"].as_array().into_iter().flatten();
            let plain = subjects
                .clone()
                .find(|subject| subject["name"] == ours::CANDIDATE.name)
                .and_then(|subject| subject["cpu_us_per_frame"].as_f64());
            rows.extend(subjects.cloned().map(|mut subject| {
                let its = subject["cpu_us_per_frame"].as_f64();
                let above = its.zip(plain).map(|(its, plain)| its - plain);
                subject["part"] = "fanout".into();
                subject["above_plain_us"] = above.into();
                subject["in_flight"] = row["in_flight"].clone();
                subject["body_bytes"] = row["body_bytes"].clone();
                subject
            }));
        }
        Ok(rows)
    }
}

/// Opens all sessions of `clients` again, after [`Load::cut`], with tickets or without.
///
/// # Errors
/// One does not become live; a handshake is a full one where there are tickets, or the other way round.
fn reopened(clients: &mut Load, tickets: bool, at_once: u32) -> io::Result<()> {
    clients.use_tickets(tickets)?;
    clients.open(at_once)?;
    let ready = &clients.ready;
    let (handshakes, resumed) = (&ready["tls_handshakes"], &ready["tls_resumed"]);
    let is_right = match tickets {
        true => resumed == handshakes,
        false => resumed == 0,
    };
    if is_right {
        return Ok(());
    }
    let message = format!("{resumed} of {handshakes} handshakes were resumed");
    Err(io::Error::other(message))
}

/// Adds to each row the ratios of ours with TLS to it.
fn compare(rows: &mut [Value]) {
    let keys = [
        "part",
        "port",
        "in_flight",
        "connect",
        "meanwhile",
        "handshake",
        "at_once",
    ];
    let figures = [
        ("bytes_per_session", "ours_to_it_bytes"),
        ("cpu_us_per_frame", "ours_to_it_cpu_per_frame"),
        ("cpu_us", "ours_to_it_cpu"),
        ("above_plain_us", "ours_to_it_above"),
        ("p99_ms", "ours_to_it_p99"),
        ("per_second", "ours_to_it_per_second"),
    ];
    compare_with(OURS.name, rows, &keys, &figures);
}

/// The budget of ours for a figure, and whether it holds; a dash for the others.
fn budget(row: &Value, figure: Option<f64>, most: f64, digits: usize) -> String {
    match figure {
        Some(figure) if row["name"] == OURS.name => {
            let holds = if figure <= most { "holds" } else { "MISSED" };
            format!("{most:.digits$} {holds}")
        }
        _ => "-".into(),
    }
}

/// Prints the rows.
pub(crate) fn print(rows: &[Value]) {
    let of = |part: &str| -> Vec<&Value> {
        let rows = rows.iter();
        rows.filter(|row| row["part"] == part).collect()
    };
    for (part, print) in [
        ("idle", idle::print as fn(&[&Value])),
        ("fanout", print_fanout),
        ("handshakes", handshakes::print),
        ("pings", pings::print),
        ("back", back::print),
    ] {
        let rows = of(part);
        if !rows.is_empty() {
            print(&rows);
        }
    }
}

fn print_fanout(rows: &[&Value]) {
    let mut table = Table::new(&[
        "tls: fan-out",
        "sessions",
        "in flight",
        "CPU µs/frame",
        "above plain",
        "budget",
        "ours-tls to it",
        "its loop",
        "p50 ms",
        "p99 ms",
        "last ms",
        "server busy",
        "load busy",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        let in_flight = row["in_flight"].as_u64();
        let most = ABOVE_PLAIN_MAX.iter();
        let most = most.clone().find(|(events, _)| Some(*events) == in_flight);
        let above = figure("above_plain_us").filter(|_| row["name"] != ours::CANDIDATE.name);
        table.row(vec![
            row["name"].as_str().unwrap_or("").to_owned(),
            row["sessions"].to_string(),
            row["in_flight"].to_string(),
            number(figure("cpu_us_per_frame"), 3),
            number(above, 3),
            most.map_or("-".into(), |&(_, most)| budget(row, above, most, 1)),
            ratio(figure("ours_to_it_cpu_per_frame")),
            number(figure("cpu_main_thread_us_per_frame"), 3),
            number(figure("latency_p50_ms"), 1),
            number(figure("latency_p99_ms"), 1),
            number(figure("latency_last_ms"), 1),
            percent(figure("server_busy_share")),
            percent(figure("load_busy_share")),
        ]);
    }
    table.note(
        "ours: without a port for TLS; above plain: than that. A request id of its own for each session. CPU: of all \
         processes of the side.",
    );
    table.print();
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ours_with_tls_is_held_to_its_budgets_and_compared_with_the_same_thing_of_others() {
        let row = |name: &str, connect: &str, cpu: f64| {
            json!({
                "part": "handshakes", "connect": connect, "name": name, "cpu_us": cpu,
            })
        };
        let mut rows = vec![
            row(OURS.name, "full", 200.0),
            row(NGINX.name, "full", 400.0),
            row(OURS.name, "resumed", 90.0),
            row(NGINX.name, "resumed", 90.0),
        ];
        compare(&mut rows);
        let ratios: Vec<_> = rows.iter().map(|row| &row["ours_to_it_cpu"]).collect();
        assert_eq!(ratios, [1.0, 0.5, 1.0, 1.0]);
        for (row, most, told) in [
            (&rows[0], 200.0, "200 holds"),
            (&rows[0], 199.0, "199 MISSED"),
            (&rows[1], 1.0, "-"),
        ] {
            assert_eq!(budget(row, row["cpu_us"].as_f64(), most, 0), told);
        }
    }
}
