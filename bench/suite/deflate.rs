//! Permessage-deflate: what it saves on the wire, what it costs in CPU and memory.
//!
//! - The three example events of the platform: bytes of a frame as it is, as ours deflates it once for all, and as a server
//!   deflates it for each session, without and with a memory of what it sent before: others of the same subscription.
//! - CPU and latency of a frame as `fanout` measures them, of ours with and without it, and of a server that deflates for each
//!   session by itself.
//! - Bytes of an idle session, as `density` measures them.

use std::io;
use std::path::Path;
use std::time::Duration;

use blackhole::event::{Event, Style};
use blackhole::limits::DEFLATE_MEMBERS_MIN;
use blackhole::protocol::deflate::{Deflater, LEVEL};
use blackhole::protocol::event_frame::{EventScratch, GroupFields, Stamp};
use blackhole::protocol::frame::Frame;
use blackhole::protocol::tail::Tail;
use flate2::{Compress, Compression, FlushCompress};
use serde_json::{Value, json};
use support::events::{ACCOUNT, FIXTURES, fixture_key};

use crate::fanout::Fanout;
use crate::subject::{Candidate, Scenario, Setup};
use crate::table::{Table, number};
use crate::{density, ours, peers};

/// Numbers of sessions, beside the fewest for which an event is deflated.
pub(crate) const SESSIONS: [u32; 2] = [1_000, 10_000];

/// Those fewest.
pub(crate) const FEWEST: u32 = DEFLATE_MEMBERS_MIN as u32;

/// Servers that run side by side.
pub(crate) const SERVERS: u32 = CANDIDATES.len() as u32;

/// Beside ours without it, which comes first.
const CANDIDATES: [Candidate; 7] = [
    ours::CANDIDATE,
    ours::WITHOUT_IDS,
    ours::DEFLATE,
    ours::DEFLATE_WITHOUT_IDS,
    peers::TOKIO,
    peers::TOKIO_DEFLATE,
    peers::TOKIO_DEFLATE_OWN,
];

/// Whose sessions are counted in bytes.
const COUNTED: [Candidate; 4] = [
    ours::CANDIDATE,
    ours::DEFLATE,
    peers::TOKIO_DEFLATE,
    peers::TOKIO_DEFLATE_OWN,
];

/// A request id as clients send them.
const REQUEST_ID: &str = "0b9f4a52-77aa-4f00-9c1e-8a6b2f3d5e71";

/// What ends a flush, and is not sent (RFC 7692 section 7.2.1).
const FLUSH_BYTES: usize = 4;

/// Events of which one that remembers has seen all but the last.
const DIGIT_TURNS: u8 = 9;

/// Header of a frame of 126 to 65,535 bytes.
const HEADER_BYTES: usize = 4;

/// What to run.
pub(crate) struct Plan<'a> {
    pub(crate) server: &'a Path,
    pub(crate) load: &'a Path,
    /// Numbers of sessions.
    pub(crate) sessions: &'a [u32],
    /// (events in flight, rounds at most)
    pub(crate) series: &'a [(u32, u32)],
    pub(crate) time_max: Duration,
    pub(crate) body_bytes: usize,
}

/// A row for each event, for each number of sessions and of events in flight, and for each kind of session.
///
/// # Errors
/// Ours fails.
pub(crate) fn measure(plan: &Plan<'_>) -> io::Result<Vec<Value>> {
    let mut rows = events();
    for &sessions in plan.sessions {
        eprintln!("deflate: {sessions} sessions");
        let fanout = Fanout {
            candidates: &CANDIDATES,
            server: plan.server,
            load: plan.load,
            sessions,
            body_bytes: &[plan.body_bytes],
            series: plan.series,
            time_max: plan.time_max,
        };
        rows.extend(fanout.measure()?);
    }
    for candidate in COUNTED {
        let most = plan.sessions.iter().max().copied().unwrap_or_default();
        let setup = Setup {
            server: plan.server,
            sessions: most.min(candidate.sessions_max.unwrap_or(u32::MAX)),
        };
        eprintln!("deflate: bytes a session, {}", candidate.name);
        let (scenario, body_bytes) = (Scenario::Shared, plan.body_bytes);
        rows.push(density::measure(
            &candidate, &setup, plan.load, scenario, 1, body_bytes,
        )?);
    }
    Ok(rows)
}

/// Bytes of the frames of the platform's example events.
fn events() -> Vec<Value> {
    let (mut deflater, mut scratch) = (Deflater::default(), EventScratch::default());
    let mut alone = Compress::new(Compression::new(LEVEL), false);
    let events = FIXTURES.into_iter().filter_map(|(name, body)| {
        let mut frame = |body: &str| -> Option<(Frame, Frame)> {
            let (key, body) = (fixture_key(name).into(), body.as_bytes().to_vec());
            let event = Event::decode("callevt".into(), key, body, None).ok()?;
            let key = format!("call.{ACCOUNT}.{name}.*");
            let fields = GroupFields {
                routing_key: &event.routing_key,
                name_suffixed_by_type: false,
                subscribed_key: &format!("call.{name}.*"),
                subscription_key: &key,
            };
            scratch.begin(Stamp::None);
            let plain = scratch.frame(&event, Style::Piston, fields);
            let mut with_id = Vec::new();
            Tail(REQUEST_ID).write(&plain, &mut with_id);
            Some((plain, Frame::raw(&with_id)))
        };
        let mut remembering = Compress::new(Compression::new(LEVEL), false);
        for turn in 1..DIGIT_TURNS {
            let (_, before) = frame(&turned(body, turn))?;
            deflated_bytes(&mut remembering, before.payload());
        }
        let (plain, with_id) = frame(body)?;
        let text = with_id.payload();
        let deflated = deflater.deflate(&plain)?;
        alone.reset();
        Some(json!({
            "event": name,
            "plain_bytes": plain.len(),
            "plain_bytes_with_id": with_id.len(),
            "deflated_bytes": deflated.len(),
            "deflated_bytes_with_id": Tail(REQUEST_ID).len_of(&deflated),
            "by_session_bytes_with_id": HEADER_BYTES + deflated_bytes(&mut alone, text),
            "by_session_remembering_bytes_with_id":
                HEADER_BYTES + deflated_bytes(&mut remembering, text),
        }))
    });
    events.collect()
}

/// An event as it came before: other digits, but for the zeros, so that numbers stay numbers.
fn turned(body: &str, turn: u8) -> String {
    let turned = |char| match char {
        '1'..='9' => char::from(b'1' + (char as u8 - b'1' + turn) % DIGIT_TURNS),
        _ => char,
    };
    body.chars().map(turned).collect()
}

fn deflated_bytes(compressor: &mut Compress, text: &[u8]) -> usize {
    let mut payload = Vec::with_capacity(text.len() + 64);
    // There is room for more than the text, so that one call does all of it.
    let done = compressor.compress_vec(text, &mut payload, FlushCompress::Sync);
    done.map_or(text.len(), |_| payload.len() - FLUSH_BYTES)
}

/// Prints the rows.
pub(crate) fn print(rows: &[Value]) {
    let figure = |row: &Value, name: &str| row[name].as_f64();
    let mut table = Table::new(&[
        "bytes of a frame",
        "plain",
        "deflated once",
        "ratio",
        "with an id",
        "deflated once",
        "by session",
        "with memory",
    ]);
    for row in rows.iter().filter(|row| row["event"].is_string()) {
        let bytes = |name| number(figure(row, name), 0);
        let ratio = figure(row, "deflated_bytes").zip(figure(row, "plain_bytes"));
        let ratio = ratio.map(|(deflated, plain)| deflated / plain);
        table.row(vec![
            row["event"].as_str().unwrap_or_default().to_owned(),
            bytes("plain_bytes"),
            bytes("deflated_bytes"),
            number(ratio, 2),
            bytes("plain_bytes_with_id"),
            bytes("deflated_bytes_with_id"),
            bytes("by_session_bytes_with_id"),
            bytes("by_session_remembering_bytes_with_id"),
        ]);
    }
    table.print();
    let mut table = Table::new(&[
        "sessions",
        "in flight",
        "subject",
        "bytes/frame",
        "CPU µs/frame",
        "ours plain : it",
        "last ms",
    ]);
    for row in rows {
        for subject in row["subjects"].as_array().into_iter().flatten() {
            table.row(vec![
                subject["sessions"].to_string(),
                row["in_flight"].to_string(),
                subject["name"].as_str().unwrap_or_default().to_owned(),
                subject["frame_bytes"].to_string(),
                number(figure(subject, "cpu_us_per_frame"), 3),
                number(figure(subject, "ours_to_it_cpu"), 2),
                number(figure(subject, "latency_last_ms"), 1),
            ]);
        }
    }
    table.print();
    let mut table = Table::new(&["subject", "sessions", "resident B/session", "anonymous"]);
    for row in rows.iter().filter(|row| row["scenario"].is_string()) {
        table.row(vec![
            row["name"].as_str().unwrap_or_default().to_owned(),
            row["sessions"].to_string(),
            number(figure(row, "resident_bytes_per_session"), 0),
            number(figure(row, "anonymous_bytes_per_session"), 0),
        ]);
    }
    table.print();
}
