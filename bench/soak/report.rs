//! The verdict and the table.

use std::io::{self, Write};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::harm::Harm;
use crate::trend::{ALLOCATED_NOISE_BYTES, RESIDENT_NOISE_BYTES, Rest, Trend};
use crate::witness::Tally;
use crate::{AtRest, Soak};
use shared::process::Memory;

/// What must not grow, what of it is noise, and its name.
type Judged = (fn(&AtRest) -> u64, f64, &'static str);
const JUDGED: [Judged; 2] = [
    (
        |rest| rest.allocated,
        ALLOCATED_NOISE_BYTES,
        "allocated memory",
    ),
    (
        |rest| rest.memory.anonymous,
        RESIDENT_NOISE_BYTES,
        "resident heap and stacks",
    ),
];

/// So many lost connections, and some must have been resumed.
const ENOUGH_LOSSES: u64 = 20;

impl Soak<'_> {
    /// Adds what the sessions saw, and the trend of memory, to the faults.
    pub(crate) fn judge(&mut self, tally: &Tally) {
        let crowd = &self.crowd;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (count, what) in [
            (tally.missing, "events lost in silence"),
            (tally.out_of_order, "events repeated or out of order"),
            (
                tally.foreign + count(&crowd.foreign),
                "events of another account or of no subscription",
            ),
            (tally.broken, "things that witnesses should not have met"),
            (
                count(&crowd.broken),
                "sessions of the crowd that met what they should not have",
            ),
        ] {
            if count > 0 {
                self.faults.push(format!("{count} {what}"));
            }
        }
        let returns = &tally.returns;
        if returns.losses > ENOUGH_LOSSES && returns.resumed == 0 {
            let losses = returns.losses;
            self.faults
                .push(format!("of {losses} lost connections none was resumed"));
        }
        if tally.events == 0 || count(&crowd.upgraded) == 0 {
            self.faults
                .push("nothing was soaked: no event came, or no session".into());
        }
        self.faults.extend(tally.faults.iter().cloned());
        let faults = crowd.faults.lock().unwrap_or_else(PoisonError::into_inner);
        self.faults.extend(faults.iter().cloned());
        for (of, noise, what) in JUDGED {
            if let Some(trend) = self.trend(of)
                && trend.is_leak(noise)
            {
                self.faults.push(format!(
                    "{what} grew by {:.0} KiB while {:.0} sessions were opened; {:.0} KiB are allowed",
                    trend.growth / 1024.0,
                    trend.sessions,
                    trend.allowance(noise) / 1024.0
                ));
            }
        }
    }

    fn trend(&self, of: fn(&AtRest) -> u64) -> Option<Trend> {
        let rests: Vec<Rest> = self
            .rests
            .iter()
            .map(|rest| Rest {
                seconds: rest.seconds,
                bytes: of(rest) as f64,
                sessions: rest.sessions as f64,
            })
            .collect();
        Trend::of(&rests)
    }

    /// Prints the table and the faults.
    ///
    /// # Errors
    /// Stdout is closed.
    pub(crate) fn print(&self, tally: &Tally, at_end: Memory, delivered: u64) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let mut row = |name: &str, value: String| writeln!(out, "{name:<46}{value:>14}");
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed).to_string();
        let kib = |bytes: u64| format!("{} KiB", bytes / 1024);
        row(
            "minutes",
            format!("{:.1}", self.started.elapsed().as_secs_f64() / 60.0),
        )?;
        row("connections of the crowd", count(&self.crowd.opened))?;
        row("  of them upgraded", count(&self.crowd.upgraded))?;
        let left = self
            .crowd
            .left
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (way, count) in &*left {
            row(&format!("  left {}", way.words()), count.to_string())?;
        }
        row("most sessions at once", self.most_sessions.to_string())?;
        row("witnesses", tally.witnesses.to_string())?;
        for (harm, words) in Harm::ALL {
            let count = self.harmed.iter().filter(|other| **other == harm).count();
            row(&format!("broker {words}"), count.to_string())?;
        }
        row(
            "events published",
            self.ledger.published_in_all().to_string(),
        )?;
        row("  confirmed by the broker", count(&self.ledger.confirmed))?;
        row(
            "event frames delivered by the server",
            delivered.to_string(),
        )?;
        row("  checked by witnesses", tally.events.to_string())?;
        row("  announced as lost", tally.announced.to_string())?;
        row(
            "  not got and never confirmed",
            tally.unconfirmed.to_string(),
        )?;
        row("  missing", tally.missing.to_string())?;
        row("  repeated or out of order", tally.out_of_order.to_string())?;
        let foreign = tally.foreign + self.crowd.foreign.load(Ordering::Relaxed);
        row("  of another account or subscription", foreign.to_string())?;
        let returns = &tally.returns;
        row("connections lost by witnesses", returns.losses.to_string())?;
        row("  resumed", returns.resumed.to_string())?;
        row("    events replayed", returns.replayed.to_string())?;
        row("    of them doubles", returns.doubles.to_string())?;
        for (why, count) in &returns.gaps {
            row(&format!("  told a gap: {why}"), count.to_string())?;
        }
        row("    events not got for it", returns.told.to_string())?;
        row("gap notices to witnesses", tally.notices.to_string())?;
        row(
            "longest gap announced",
            format!("{:.1} s", tally.longest_gap as f64 / 1e6),
        )?;
        let unavailable = tally.unavailable + self.crowd.unavailable.load(Ordering::Relaxed);
        row(
            "subscribes the broker did not answer in time",
            unavailable.to_string(),
        )?;
        for (name, quantile) in [
            ("latency in calm times, p50", 0.5),
            ("  p99", 0.99),
            ("  max", 1.0),
        ] {
            let micros = tally.latency.value_at_quantile(quantile);
            row(name, format!("{:.2} ms", micros as f64 / 1e3))?;
        }
        row("resident at the start", kib(self.at_start.resident))?;
        // The first rest that counts for the trend.
        if let Some(rest) = self.rests.get(self.rests.len() / 3) {
            row("  after warming up", kib(rest.memory.resident))?;
        }
        row("  at most", kib(self.peak))?;
        row("  when all had left", kib(at_end.resident))?;
        for (of, noise, what) in JUDGED {
            let Some(trend) = self.trend(of) else {
                row(&format!("slope of {what}"), "too few rests".into())?;
                continue;
            };
            row(
                &format!("slope of {what}"),
                format!("{:+.1} KiB/min", trend.slope / 1024.0),
            )?;
            let grown = format!(
                "{:+.0} of {:.0} KiB",
                trend.growth / 1024.0,
                trend.allowance(noise) / 1024.0
            );
            row("  grown, of what is allowed", grown)?;
            row(
                "  bytes a session opened",
                format!("{:+.2}", trend.growth / trend.sessions.max(1.0)),
            )?;
        }
        for fault in &self.faults {
            writeln!(out, "FAULT: {fault}")?;
        }
        writeln!(
            out,
            "soak: {}",
            if self.faults.is_empty() {
                "all is well"
            } else {
                "FAILED"
            }
        )
    }
}
