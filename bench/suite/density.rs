//! Bytes of an idle session, CPU of a connect, and what stays resident after a burst.

use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{Load, Ours};

/// Until a server that has nothing to do has given back what it will.
const SETTLE: Duration = Duration::from_secs(3);

/// More than any server takes: what holds the load generator back are the 512 sessions it has under way.
const CONNECT_RATE: &str = "1000000";

/// How long after a burst its memory is looked at (DESIGN: "resident 2 s after a burst").
const AFTER_BURST: Duration = Duration::from_secs(2);

/// Events of the burst.
const BURST: u32 = 32;

/// How the sessions' subscriptions differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// All on one binding of one account.
    Shared,
    /// Each on an account and a binding of its own.
    Own,
}

/// Measures one scenario with `sessions` sessions.
pub(crate) fn measure(
    server: &Path,
    load: &Path,
    scenario: Scenario,
    sessions: u32,
    body_bytes: usize,
) -> io::Result<Value> {
    let mut ours = Ours::start(server, body_bytes)?;
    let (memory_before, cpu_before) = (ours.server.memory()?, ours.server.cpu()?);
    let accounts = sessions.to_string();
    let more: &[&str] = match scenario {
        Scenario::Shared => &["--connect-rate", CONNECT_RATE],
        Scenario::Own => &[
            "--connect-rate",
            CONNECT_RATE,
            "--accounts",
            &accounts,
            "--binding",
            "call.CHANNEL_CREATE.call-{n}",
        ],
    };
    let mut clients = Load::start(load, &ours.server.address, sessions, more)?;
    let connect = ours.server.cpu()?.since(cpu_before);
    sleep(SETTLE);
    let idle = ours.server.memory()?;
    let per_session = |now: u64, before: u64| (now as f64 - before as f64) / f64::from(sessions);
    let mut result = json!({
        "scenario": match scenario { Scenario::Shared => "one binding for all", Scenario::Own => "own account and binding" },
        "sessions": sessions,
        "anonymous_bytes_per_session": per_session(idle.anonymous, memory_before.anonymous),
        "resident_bytes_per_session": per_session(idle.resident, memory_before.resident),
        "anonymous_bytes_before": memory_before.anonymous,
        "anonymous_bytes_idle": idle.anonymous,
        "connect_cpu_us": micros_each(connect.all, sessions),
        "connect_cpu_main_thread_us": micros_each(connect.main, sessions),
        "connects_per_second": clients.ready["connects_per_second"],
        "load_cpu_seconds": clients.ready["load_cpu_seconds"],
        "load_settled_seconds": clients.ready["settled_seconds"],
    });
    if scenario == Scenario::Shared {
        clients.round(BURST, || ours.publish(BURST))?;
        sleep(AFTER_BURST);
        let after = ours.server.memory()?;
        result["anonymous_bytes_after_burst"] = after.anonymous.into();
        result["after_burst_ratio"] = (after.anonymous as f64 / idle.anonymous as f64).into();
    }
    Ok(result)
}

/// Microseconds of `time` for each of `count`.
pub(crate) fn micros_each(time: Duration, count: impl Into<f64>) -> f64 {
    time.as_secs_f64() * 1e6 / count.into()
}
