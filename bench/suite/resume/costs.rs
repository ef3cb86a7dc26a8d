//! CPU of ids and ring, for each event.

use std::hint::black_box;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blackhole::event::{Event, EventId};
use blackhole::history::{History, HistoryOptions, Mark};
use blackhole::now::Now;
use serde_json::{Value, json};

use super::Extent;
use crate::ours::{Call, EXCHANGE, Ours};
use crate::running::{Load, Waiting, micros_each};
use crate::statistics::median;
use crate::subject::{Batch, Cpu, Scenario, Setup, Subject};
use crate::table::{Table, number, ratio};

/// Events of one round of `alone`: more than the ring holds, so that each pushes another one out.
const ALONE: u64 = 40_000;

/// The best of so many rounds.
const ALONE_ROUNDS: u32 = 5;

/// As the server has them when nothing is said.
const OPTIONS: HistoryOptions = HistoryOptions {
    bytes_max: 16 << 20,
    keep: Duration::from_secs(60),
    overlap: Duration::from_secs(2),
};

/// Events whose bodies are written one after the other before their ids are taken: as many as a socket brings at once.
const JUST_READ: usize = 32;

/// Events in flight, and frames of one round of `in_server`.
const IN_FLIGHT: u32 = 8;
const FRAMES: u32 = 64_000;

/// The id, and the ring, in this process: nanoseconds an event.
pub(super) fn alone(body_bytes: usize) -> Value {
    let calls: Vec<Call> = (0..ALONE)
        .map(|n| Call::new(n, 1 + n as u32 % 2_000, body_bytes))
        .collect();
    let (mut id, mut id_cold) = (f64::MAX, f64::MAX);
    let (mut made, mut kept) = (f64::MAX, f64::MAX);
    for _ in 0..ALONE_ROUNDS {
        id = id.min(id_of_just_read(&calls));
        id_cold = id_cold.min(nanos_each(|| take_ids(&calls)));
        // Both make all events first, so that memory is as cold; they differ in who lets them go.
        made = made.min(taken_in(&calls, &mut History::default()));
        let mut history = History::new(OPTIONS, Mark::from_random(1), now(0));
        kept = kept.min(taken_in(&calls, &mut history));
    }
    json!({
        "part": "alone",
        "body_bytes": body_bytes,
        "events": ALONE,
        "id_ns": id,
        "id_cold_ns": id_cold,
        "ring_ns": kept - made,
        "both_ns": id + kept - made,
    })
}

fn take_ids(calls: &[Call]) {
    for call in calls {
        black_box(EventId::of(EXCHANGE, &call.key, call.body.as_bytes()));
    }
}

/// Nanoseconds an id where it is taken in a server: the body has just been written to memory of its own.
fn id_of_just_read(calls: &[Call]) -> f64 {
    let mut took = Duration::ZERO;
    for some in calls.chunks(JUST_READ) {
        let just_read = some.to_vec();
        let begun = Instant::now();
        take_ids(&just_read);
        took += begun.elapsed();
    }
    took.as_secs_f64() * 1e9 / calls.len() as f64
}

/// Nanoseconds an event that is taken in and let go.
fn taken_in(calls: &[Call], history: &mut History) -> f64 {
    let exchange: Arc<str> = EXCHANGE.into();
    let events: Vec<Arc<Event>> = calls
        .iter()
        .filter_map(|call| {
            let body = call.body.clone().into_bytes();
            let event = Event::decode(exchange.clone(), call.key.as_str().into(), body, None);
            event.ok().map(Arc::new)
        })
        .collect();
    nanos_each(|| {
        for (n, event) in (0..).zip(events) {
            black_box(history.take_in(&event, now(n)));
        }
    })
}

/// A thousand events a second.
fn now(event: u64) -> Now {
    Now {
        clock: Duration::from_millis(event),
        unix_ms: 1_700_000_000_000 + event,
    }
}

fn nanos_each(all: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    all();
    begun.elapsed().as_secs_f64() * 1e9 / ALONE as f64
}

/// A server with the history on and one with it off, in turns: CPU an event and a frame.
///
/// # Errors
/// One does not start, or a frame is missing.
pub(super) fn in_server(
    setup: &Setup<'_>,
    load: &Path,
    body_bytes: usize,
    sessions: u32,
    extent: &Extent,
) -> io::Result<Value> {
    let mut places = Vec::new();
    for more in [&[][..], &["--history-bytes", "0"]] {
        let server = Ours::start_with_more(setup, more)?;
        let arguments = server.load_arguments(Scenario::Shared, sessions);
        let address = server.address();
        let clients = Load::start(load, &address, sessions, &arguments, Waiting::Sleep)?;
        places.push((server, clients, Vec::new(), Vec::new()));
    }
    let batches = FRAMES.div_ceil(sessions * IN_FLIGHT * extent.shrink).max(1);
    let batch = Batch {
        events: IN_FLIGHT,
        body_bytes,
        frame_bytes: body_bytes,
    };
    let events = batches * IN_FLIGHT;
    // The first round warms up.
    for round in 0..=extent.rounds * 2 {
        for (server, clients, all, main) in &mut places {
            let pids = server.pids();
            let before = Cpu::settled(&pids)?;
            for _ in 0..batches {
                clients.round(IN_FLIGHT, || server.publish(batch))?;
            }
            let cpu = Cpu::settled(&pids)?.since(before);
            if round > 0 {
                all.push(micros_each(cpu.all, events));
                main.push(micros_each(cpu.main, events));
            }
        }
    }
    let figures: Vec<[f64; 2]> = places
        .iter()
        .map(|(_, _, all, main)| [median(all), median(main)])
        .collect();
    let [[on, loop_on], [off, loop_off]] = figures[..] else {
        return Err(io::Error::other("two servers"));
    };
    Ok(json!({
        "part": "server",
        "sessions": sessions,
        "events": events,
        "on_cpu_us": on,
        "off_cpu_us": off,
        "on_to_off": on / off,
        "on_loop_us": loop_on,
        "off_loop_us": loop_off,
        "loop_on_to_off": loop_on / loop_off,
    }))
}

/// Prints the rows.
pub(super) fn print(alone: &[&Value], server: &[&Value]) {
    let mut table = Table::new(&[
        "ids and ring",
        "events",
        "id ns",
        "ring ns",
        "both ns",
        "id, cold memory, ns",
    ]);
    for row in alone {
        let figure = |name: &str| number(row[name].as_f64(), 0);
        table.row(vec![
            format!("{} bytes", row["body_bytes"]),
            row["events"].to_string(),
            figure("id_ns"),
            figure("ring_ns"),
            figure("both_ns"),
            figure("id_cold_ns"),
        ]);
    }
    table.note(
        "CPU of one event, in this process, the best of five rounds. The id is taken of a body that was just read, as in the \
         server; cold memory: of a body that no cache holds any more. The ring is full: each event pushes one out.",
    );
    table.print();
    let mut table = Table::new(&[
        "history on, and off",
        "events",
        "on: CPU µs/event",
        "off",
        "on to off",
        "on: loop µs/event",
        "off",
        "on to off",
    ]);
    for row in server {
        let figure = |name: &str| row[name].as_f64();
        table.row(vec![
            format!("{} sessions", row["sessions"]),
            row["events"].to_string(),
            number(figure("on_cpu_us"), 2),
            number(figure("off_cpu_us"), 2),
            ratio(figure("on_to_off")),
            number(figure("on_loop_us"), 2),
            number(figure("off_loop_us"), 2),
            ratio(figure("loop_on_to_off")),
        ]);
    }
    table.note("Two servers in turns, 8 events in flight, the events through a pipe. CPU: all threads. With the history on each frame has a cursor, too.");
    table.print();
}
