//! What it costs that nothing is lost: ids and history of each event, a storm of sessions that come back with their
//! cursors, and the stream on the broker.
//!
//! | file | measures |
//! |---|---|
//! | `costs` | ids and ring, alone and in a server with the history on, beside one with it off |
//! | `storm`, `crowd`, `events` | sessions that come back, and what the others notice; those sessions; what is published |
//! | `stream` | a broker with a stream bound to the exchange, beside the same without |

mod costs;
mod crowd;
mod events;
mod storm;
mod stream;

use std::io;
use std::path::Path;

use serde_json::Value;

use crate::subject::Setup;

/// How much is measured.
pub(crate) struct Extent {
    /// Divides events.
    pub(crate) shrink: u32,
    /// Rounds of `costs` and `stream`.
    pub(crate) rounds: u32,
}

/// One row for each figure that stands by itself, its part in `part`. `setup.sessions`: those of the storm.
///
/// # Errors
/// A server does not start, an event is missing, or a session is not resumed. Without RabbitMQ the rows of `stream` are left
/// out, which is told.
pub(crate) fn measure(
    setup: &Setup<'_>,
    load: &Path,
    body_bytes: usize,
    extent: &Extent,
) -> io::Result<Vec<Value>> {
    let mut rows = Vec::new();
    eprintln!("resume: ids and ring");
    rows.push(costs::alone(body_bytes));
    for sessions in [1, 1_000] {
        eprintln!("resume: history on and off, {sessions} sessions");
        rows.push(costs::in_server(setup, load, body_bytes, sessions, extent)?);
    }
    rows.extend(storm::measure(setup, load, body_bytes, extent.shrink)?);
    match stream::measure(body_bytes, extent) {
        Ok(told) => rows.extend(told),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("resume: without the stream, not installed: {error}");
        }
        Err(error) => return Err(error),
    }
    Ok(rows)
}

/// Prints the rows.
pub(crate) fn print(rows: &[Value]) {
    let of =
        |part: &str| -> Vec<&Value> { rows.iter().filter(|row| row["part"] == part).collect() };
    costs::print(&of("alone"), &of("server"));
    storm::print(&of("storm"), &of("neighbours"));
    stream::print(&of("stream"));
}
