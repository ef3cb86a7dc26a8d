//! Whether the history has all that came after a cursor (PROTOCOL 10).
//!
//! Judged when a subscribe succeeds: all its AMQP bindings are in force, and their leases are not given back yet.
//! Invariant: a cursor is good only if it is certain that nothing of what came behind it, for every binding asked for, is
//! missing.

use crate::history::{Cursor, Seq, Why};
use crate::routing::month::ActiveMonths;

use super::clock::Now;
use super::hub::Hub;
use super::waiting::{Lease, Waiting};

/// The first event to send again. The age of the cursor has been judged. Linear in the leases.
pub(super) fn start(cursor: &Cursor, waiting: &Waiting, hub: &Hub, now: Now) -> Result<Seq, Why> {
    let place = hub.history.locate(cursor, now)?;
    let broker = hub.subscriptions.broker();
    let is_covered = |lease: &Lease| place.is_behind(broker.covered_since(lease.id));
    // The leases are for the months of now, and events of other months need other bindings.
    let is_of_now = ActiveMonths::at(cursor.time / 1_000) == ActiveMonths::at(now.unix());
    if !is_of_now || !waiting.leases.iter().all(is_covered) {
        return Err(Why::Unknown);
    }
    if hub.history.next().0 - place.seq.0 > hub.limits.resume.events_max {
        return Err(Why::TooMany);
    }
    Ok(place.seq)
}
