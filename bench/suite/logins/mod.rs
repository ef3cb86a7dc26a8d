//! Logins with the platform's tokens: connect, upgrade, authenticate and subscribe, as fast as the clients can.
//!
//! Each way of authenticating is measured twice, with a server of its own each time: once the logins alone, for their
//! number a second, their CPU and the bytes that they leave; and once with a session beside them that sends a command
//! every [`PING_INTERVAL_MS`] which is answered at once, `ping`, whether or not the last was answered: so a stall of the
//! loop counts once for every ping that it held up. All sessions are on one account and one binding, so what differs between
//! two ways is what the server knows of tokens.

mod tokens;

use std::io;
use std::path::Path;
use std::thread::sleep;

use serde_json::{Value, json};

use crate::density::{CONNECT_RATE, SETTLE};
use crate::ours::Ours;
use crate::running::{LOAD_CORE, Load, Running, Waiting, micros_each};
use crate::subject::{Cpu, Scenario, Setup, Subject, memory_of};
use crate::table::{Table, number, percent, ratio};
use shared::process::Memory;
use shared::programs;
use tokens::Tokens;

/// Longest until all sessions of one series of logins are live; then the run fails. Logins that cost 6 ms each are still
/// told.
const SETTLE_WITHIN_SECONDS: u32 = 120;

/// Not less: of one session a turn reads some eight pings, so where turns are long (a machine that has other work) more of
/// them would wait for each other, which tells nothing of the loop.
const PING_INTERVAL_MS: u32 = 5;

/// So that the session which pings may send that many commands.
const NO_RATE_LIMIT: [&str; 4] = [
    "--rate-limit-burst",
    "1000000",
    "--rate-limit-per-second",
    "1000000",
];

/// Whom the server asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Auth {
    Insecure,
    Jwt,
    Crossbar,
}

/// One way of logging in.
struct Way {
    name: &'static str,
    auth: Auth,
    has_own_tokens: bool,
    /// Whether all go and log in again with the same tokens.
    comes_again: bool,
}

/// The first is what the others are compared with.
const WAYS: [Way; 4] = [
    Way {
        name: "insecure",
        auth: Auth::Insecure,
        has_own_tokens: true,
        comes_again: false,
    },
    Way {
        name: "jwt, one token",
        auth: Auth::Jwt,
        has_own_tokens: false,
        comes_again: false,
    },
    Way {
        name: "jwt",
        auth: Auth::Jwt,
        has_own_tokens: true,
        comes_again: true,
    },
    Way {
        name: "crossbar",
        auth: Auth::Crossbar,
        has_own_tokens: true,
        comes_again: true,
    },
];

/// Measures every way with `setup.sessions` sessions; one row for each time that they log in.
///
/// # Errors
/// [`io::ErrorKind::NotFound`]: no `openssl`, or the bench is not built. A server does not start, or not every session
/// becomes live in time.
pub(crate) fn measure(setup: &Setup<'_>, load: &Path) -> io::Result<Vec<Value>> {
    eprintln!("logins: {} tokens are signed", setup.sessions);
    let tokens = Tokens::make(setup.sessions)?;
    let mut rows = Vec::new();
    for way in &WAYS {
        eprintln!("logins: {}", way.name);
        let costs = Place::start(setup, load, way, &tokens)?.costs()?;
        let pings = Place::start(setup, load, way, &tokens)?.pings()?;
        for (at, (mut row, pings)) in costs.into_iter().zip(pings).enumerate() {
            row["name"] = way.name.into();
            row["comes"] = ["first", "again"][at].into();
            row["pings"] = pings;
            rows.push(row);
        }
    }
    compare(&mut rows);
    Ok(rows)
}

/// Adds to each row what its CPU is to that of the first.
fn compare(rows: &mut [Value]) {
    let base = rows.first().and_then(|row| row["cpu_us"].as_f64());
    for row in rows {
        if let (Some(base), Some(its)) = (base, row["cpu_us"].as_f64()) {
            row["it_to_base_cpu"] = (its / base).into();
        }
    }
}

/// A server that takes one way, and what its clients need.
struct Place<'a> {
    server: Ours,
    /// Whom the server asks over HTTP.
    accounts: Option<Running>,
    load: &'a Path,
    sessions: u32,
    tokens: &'a Path,
    times: u32,
}

impl<'a> Place<'a> {
    fn start(setup: &Setup<'_>, load: &'a Path, way: &Way, tokens: &'a Tokens) -> io::Result<Self> {
        let mut accounts = None;
        let auth = match way.auth {
            Auth::Insecure => "insecure".to_owned(),
            Auth::Jwt => format!("jwt:{}", tokens.key.display()),
            Auth::Crossbar => {
                let program = programs::beside("bare_accounts", "blackhole-bench")?;
                let mut running = Running::start(LOAD_CORE, &program, &[])?;
                let address = running.listening()?;
                accounts = Some(running);
                format!("crossbar:http://{address}/v2")
            }
        };
        let more = [&["--auth", &auth], &NO_RATE_LIMIT[..]].concat();
        Ok(Self {
            server: Ours::start_with_auth(setup, &more)?,
            accounts,
            load,
            sessions: setup.sessions,
            tokens: if way.has_own_tokens {
                &tokens.each
            } else {
                &tokens.one
            },
            times: 1 + u32::from(way.comes_again),
        })
    }

    /// Arguments of a load generator for `sessions` sessions.
    fn arguments(&self, sessions: u32) -> Vec<String> {
        let mut arguments = self.server.load_arguments(Scenario::Shared, sessions);
        arguments.extend(["--tokens".to_owned(), self.tokens.display().to_string()]);
        let longest = SETTLE_WITHIN_SECONDS.to_string();
        arguments.extend(["--settle-within".to_owned(), longest]);
        arguments
    }

    /// Logs all in, as fast as they can.
    fn log_in(&self) -> io::Result<Load> {
        let mut arguments = self.arguments(self.sessions);
        arguments.extend(CONNECT_RATE.map(str::to_owned));
        let address = self.server.address();
        Load::start(
            self.load,
            &address,
            self.sessions,
            &arguments,
            Waiting::Sleep,
        )
    }

    /// What the logins cost, each time that they come.
    fn costs(&self) -> io::Result<Vec<Value>> {
        let pids = self.server.pids();
        let before = memory_of(&pids)?;
        let mut rows = Vec::new();
        for _ in 0..self.times {
            // After the end of those that were here.
            let cpu = Cpu::settled(&pids)?;
            let accounts_cpu = self.accounts_cpu()?;
            let clients = self.log_in()?;
            let cpu = Cpu::settled(&pids)?.since(cpu);
            let accounts_cpu = self.accounts_cpu()?.since(accounts_cpu);
            sleep(SETTLE);
            let idle = memory_of(&pids)?;
            let seconds = clients.ready["settled_seconds"].as_f64().unwrap_or(0.0);
            let busy = clients.ready["busy_seconds"].as_f64().unwrap_or(0.0);
            let each = |of: fn(&Memory) -> u64| {
                (of(&idle) as f64 - of(&before) as f64) / f64::from(self.sessions)
            };
            rows.push(json!({
                "sessions": self.sessions,
                "seconds": seconds,
                "logins_per_second": f64::from(self.sessions) / seconds,
                "cpu_us": micros_each(cpu.all, self.sessions),
                "cpu_main_thread_us": micros_each(cpu.main, self.sessions),
                "accounts_cpu_us": micros_each(accounts_cpu.all, self.sessions),
                "server_busy_share": cpu.all.as_secs_f64() / seconds,
                "load_busy_share": (busy + accounts_cpu.all.as_secs_f64()) / seconds,
                "anonymous_bytes_per_session": each(|memory| memory.anonymous),
                "resident_bytes_per_session": each(|memory| memory.resident),
            }));
        }
        Ok(rows)
    }

    fn accounts_cpu(&self) -> io::Result<Cpu> {
        let accounts = self.accounts.as_ref();
        accounts.map_or_else(
            || Ok(Cpu::default()),
            |running| Cpu::settled(&[running.pid()]),
        )
    }

    /// How long another session's pings take while they log in, each time.
    fn pings(&self) -> io::Result<Vec<Value>> {
        let mut told = Vec::new();
        for _ in 0..self.times {
            Cpu::settled(&self.server.pids())?;
            let mut more = self.arguments(1);
            more.push("--ping-command".to_owned());
            let mut pinger =
                Load::start_pinger(self.load, &self.server.address(), PING_INTERVAL_MS, &more)?;
            pinger.order("pings on", "pings")?;
            let clients = self.log_in()?;
            pinger.order("pings off", "pings")?;
            let report = pinger.order("report", "report")?;
            drop(clients);
            let pings = &report["ping_latency_us"];
            if pings["count"] == 0 || report["lost"] != 0 {
                return Err(io::Error::other(format!("no answers to pings: {report}")));
            }
            let milliseconds = |name: &str| pings[name].as_f64().map(|micros| micros / 1e3);
            told.push(json!({
                "count": pings["count"],
                "p50_ms": milliseconds("p50"),
                "p99_ms": milliseconds("p99"),
                "max_ms": milliseconds("max"),
            }));
        }
        Ok(told)
    }
}

/// Prints the rows.
pub(crate) fn print(rows: &[Value]) {
    let mut table = Table::new(&[
        "logins",
        "come",
        "sessions",
        "logins/s",
        "CPU µs each",
        "to the first",
        "of it the loop",
        "server busy",
        "load busy",
        "heap B/session",
        "RSS B/session",
        "pings",
        "p50 ms",
        "p99 ms",
        "max ms",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        let ping = |name: &str| number(row["pings"][name].as_f64(), 2);
        table.row(vec![
            row["name"].as_str().unwrap_or("").to_owned(),
            row["comes"].as_str().unwrap_or("").to_owned(),
            row["sessions"].to_string(),
            number(figure("logins_per_second"), 0),
            number(figure("cpu_us"), 1),
            ratio(figure("it_to_base_cpu")),
            number(figure("cpu_main_thread_us"), 1),
            percent(figure("server_busy_share")),
            percent(figure("load_busy_share")),
            number(figure("anonymous_bytes_per_session"), 0),
            number(figure("resident_bytes_per_session"), 0),
            row["pings"]["count"].to_string(),
            ping("p50_ms"),
            ping("p99_ms"),
            ping("max_ms"),
        ]);
    }
    table.note(
        "Connect, upgrade, authenticate and subscribe, 512 at a time, all with tokens of the platform's kind (RS256, 2048 \
         bits), one for each session but in `one token`; `again`: the same tokens once more. All threads of the server \
         share one core.",
    );
    table.note(&format!(
        "ms: the round trip of another session's ping command, one every {PING_INTERVAL_MS} ms while the others log in."
    ));
    if let Some(row) = rows
        .iter()
        .find(|row| row["accounts_cpu_us"].as_f64() > Some(0.0))
    {
        table.note(&format!(
            "crossbar asks bare_accounts, which shares the core of the load generator: {} CPU µs a login, in \"load busy\".",
            number(row["accounts_cpu_us"].as_f64(), 1)
        ));
    }
    table.print();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_compared_with_the_first() {
        let mut rows = [40.0, 80.0, 20.0].map(|cpu| json!({"cpu_us": cpu}));
        compare(&mut rows);
        let ratios = rows.map(|row| row["it_to_base_cpu"].as_f64());
        assert_eq!(ratios, [Some(1.0), Some(2.0), Some(0.5)]);
    }
}
