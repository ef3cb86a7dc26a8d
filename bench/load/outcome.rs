//! What a run has come to, of one process or of several together: JSON, and a table.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::engine::{Engine, Totals};
use crate::latencies::Latencies;
use shared::process;

/// What a run has come to so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) totals: Totals,
    live: usize,
    missing: u64,
    extra: u64,
    /// From the start until every session was live or lost.
    settled: Duration,
    ready: Latencies,
    event: Latencies,
    ping: Latencies,
    /// Time with work, and CPU time.
    busy: Duration,
    cpu: Duration,
    resident: u64,
    pub(crate) complaints: BTreeMap<String, u64>,
}

impl Outcome {
    /// Of this process. Linear in the sessions.
    ///
    /// # Errors
    /// The system tells no CPU time or memory.
    pub(crate) fn of(engine: &Engine, settled: Duration) -> io::Result<Self> {
        let (missing, extra) = engine.missing_and_extra();
        Ok(Self {
            totals: engine.totals,
            live: engine.live(),
            missing,
            extra,
            settled,
            ready: engine.ready_latency.clone(),
            event: engine.event_latency.clone(),
            ping: engine.ping_latency.clone(),
            busy: engine.busy,
            cpu: process::own_cpu()?,
            resident: process::memory(std::process::id())?.resident,
            complaints: engine.complaints.clone(),
        })
    }

    /// Adds another process's.
    pub(crate) fn add(&mut self, other: Self) {
        self.totals += other.totals;
        self.live += other.live;
        self.missing += other.missing;
        self.extra += other.extra;
        self.settled = self.settled.max(other.settled);
        self.ready.add(&other.ready);
        self.event.add(&other.event);
        self.ping.add(&other.ping);
        self.busy += other.busy;
        self.cpu += other.cpu;
        self.resident += other.resident;
        for (complaint, count) in other.complaints {
            *self.complaints.entry(complaint).or_default() += count;
        }
    }

    /// Whether all that was promised came, and nothing was lost.
    pub(crate) fn is_good(&self) -> bool {
        self.missing == 0 && self.totals.lost == 0 && self.totals.gaps == 0
    }

    /// As an object.
    pub(crate) fn json(&self) -> Value {
        let totals = self.totals;
        json!({
            "sessions": totals.opened,
            "tls_handshakes": totals.secured,
            "tls_resumed": totals.resumed,
            "became_live": totals.became_live,
            "live": self.live,
            "lost": totals.lost,
            "settled_seconds": self.settled.as_secs_f64(),
            "connects_per_second": self.connects_per_second(),
            "events": totals.events,
            "event_bytes": totals.event_bytes,
            "missing": self.missing,
            "beyond_expected": self.extra,
            "gap_notices": totals.gaps,
            "gap_events": totals.gap_events,
            "ready_latency_us": self.ready.json(),
            "event_latency_us": self.event.json(),
            "ping_latency_us": self.ping.json(),
            "busy_seconds": self.busy.as_secs_f64(),
            "load_cpu_seconds": self.cpu.as_secs_f64(),
            "load_resident_bytes": self.resident,
            "complaints": self.complaints,
        })
    }

    fn connects_per_second(&self) -> f64 {
        self.totals.became_live as f64 / self.settled.as_secs_f64()
    }

    /// Writes a table to stdout.
    ///
    /// # Errors
    /// Nobody reads it.
    pub(crate) fn print(&self) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        let totals = self.totals;
        let events = totals.events.max(1) as f64;
        for (title, value) in [
            ("sessions opened", totals.opened.to_string()),
            ("TLS handshakes", totals.secured.to_string()),
            (
                "TLS handshakes resumed by a ticket",
                totals.resumed.to_string(),
            ),
            ("upgraded and subscribed", totals.became_live.to_string()),
            ("refused, reset or closed", totals.lost.to_string()),
            (
                "sessions subscribed a second",
                format!("{:.0}", self.connects_per_second()),
            ),
            ("event frames", totals.events.to_string()),
            ("event frames missing", self.missing.to_string()),
            ("event frames beyond the expected", self.extra.to_string()),
            ("gap notices", totals.gaps.to_string()),
            (
                "events lost, told by the notices",
                totals.gap_events.to_string(),
            ),
            (
                "CPU seconds of this program",
                format!("{:.2}", self.cpu.as_secs_f64()),
            ),
            (
                "CPU µs of this program a frame",
                format!("{:.2}", self.cpu.as_secs_f64() * 1e6 / events),
            ),
        ] {
            if title.starts_with("TLS") && totals.secured == 0 {
                continue;
            }
            writeln!(stdout, "{title:<34}{value:>12}")?;
        }
        writeln!(
            stdout,
            "\n{:<34}{:>12}{:>12}{:>12}{:>12}",
            "latency, ms", "p50", "p90", "p99", "max"
        )?;
        for (title, latencies) in [
            ("connect to subscribed", &self.ready),
            ("ping to pong", &self.ping),
            ("event", &self.event),
        ] {
            let latencies = latencies.json();
            if latencies["count"] == 0 {
                continue;
            }
            write!(stdout, "{title:<34}")?;
            for quantile in ["p50", "p90", "p99", "max"] {
                let milliseconds = latencies[quantile].as_u64().unwrap_or(0) as f64 / 1000.0;
                write!(stdout, "{milliseconds:>12.2}")?;
            }
            writeln!(stdout)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outcome of a process in which one session took `micros` for everything and lost `missing` events.
    fn outcome(micros: u64, missing: u64) -> Outcome {
        let mut outcome = Outcome {
            missing,
            settled: Duration::from_micros(micros),
            ..Outcome::default()
        };
        outcome.totals.events = 3;
        outcome.event.record(micros, 3);
        outcome.complaints.insert("closed".into(), missing);
        outcome
    }

    #[test]
    fn outcomes_of_several_processes_add_up_on_their_way_through_json() {
        let mut all = outcome(1000, 0);
        assert!(all.is_good());
        let text = serde_json::to_string(&outcome(5000, 2)).expect("plain data");
        all.add(serde_json::from_str(&text).expect("our own text"));
        assert!(!all.is_good());
        let json = all.json();
        assert_eq!((&json["events"], &json["missing"]), (&6.into(), &2.into()));
        assert_eq!(json["settled_seconds"], 0.005);
        assert_eq!(json["complaints"]["closed"], 2);
        let latency = &json["event_latency_us"];
        assert_eq!(latency["count"], 6);
        let near = |quantile: &str, micros: u64| {
            let value = latency[quantile].as_u64().expect("a number");
            assert!(
                value.abs_diff(micros) <= micros / 100,
                "{quantile}: {value}"
            );
        };
        near("p50", 1000);
        near("max", 5000);
    }
}
