//! Counters of the AMQP side. Its threads write them with relaxed atomics, and the metrics page reads them.
//!
//! Invariant: no figure here decides anything.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::EventError;
use crate::metrics::figures::figures;

figures! {
    /// Counters (only grow) and gauges of the AMQP side, for the whole life of the process.
    struct AmqpCounters of AtomicU64;
    plain {
        counter deliveries as "amqp_deliveries_total" "Deliveries received from the broker, good or bad.";
        counter acks as "amqp_acks_total" "Deliveries acknowledged to the broker, each after its hand-over.";
        counter handover_waits as "amqp_handover_waits_total" "Times a delivery or message had to wait because the hand-off was full: the back-pressure at work.";
        counter connects as "amqp_connects_total" "Connections that reached the point where everything wanted was bound.";
        counter connect_failures as "amqp_connect_failures_total" "Tries to connect that did not get that far.";
        counter disconnects as "amqp_disconnects_total" "Connections lost after they had got that far.";
        counter queues_unbroken as "amqp_queues_unbroken_total" "Reconnects that found the queue of before whole: nothing was missed, and no session is told of anything.";
        counter redeliveries as "amqp_redeliveries_total" "Deliveries that came again after a reconnect and were not handed on twice.";
        counter redeliveries_broken as "amqp_redeliveries_broken_total" "Reconnects after which other deliveries came again than had to, so that events may be missing: told as a gap.";
        counter panics as "amqp_panics_total" "Panics of the AMQP client or of our own code around it that were turned into a reconnect (rail 10).";
        counter answers_overdue as "amqp_answers_overdue_total" "Connections cut because the broker did not answer in 20 s, heartbeats or not.";
        counter guard_violations as "amqp_guard_violations_total" "Connections ended because the broker's bytes broke a bound of the guard (rail 1).";
        counter binds as "amqp_binds_total" "AMQP bindings put in force, those after a reconnect included.";
        counter unbinds as "amqp_unbinds_total" "AMQP bindings taken back.";
        counter binds_refused as "amqp_binds_refused_total" "Times a binding or its exchange was refused (rail 8), retries included.";
        counter binds_too_long as "amqp_binds_too_long_total" "Bindings asked for whose exchange or key is longer than 255 bytes (rail 2).";
        counter permission_refusals as "amqp_permission_refusals_total" "Times the broker refused what its user has no permission for, retries included.";
        counter overflow_suspicions as "amqp_overflow_suspicions_total" "Checks that found the queue at its length limit, so that the broker may have dropped events.";
        counter control_requests as "amqp_control_requests_total" "Requests of the platform received, good or bad.";
        counter control_refused as "amqp_control_refused_total" "Those of them without an answer because they were no requests: garbage, too large, or without a Server-ID that an answer can go to.";
        counter control_dropped as "amqp_control_dropped_total" "Those of them without an answer because too many waited for the loop.";
        counter control_answers as "amqp_control_answers_total" "Answers to the platform published.";
        counter control_answers_lost as "amqp_control_answers_lost_total" "Answers to the platform that were not published, because the connection was away or the user may not.";
        counter control_connects as "amqp_control_connects_total" "Control connections that reached the point where requests come.";
        counter control_failures as "amqp_control_failures_total" "Control connections that were lost, and tries that did not get that far.";
        counter control_denied as "amqp_control_denied_total" "Those of them that failed because the user lacks a permission; tried again a minute later.";
        counter stream_markers as "amqp_stream_markers_total" "Markers written to the stream of the history.";
        counter stream_failures as "amqp_stream_failures_total" "Connections to keep the stream of the history that were lost, and tries that did not get that far.";
        counter stream_reads as "amqp_stream_reads_total" "Times the stream of the history was read because somebody resumed from before this process's own history.";
        counter stream_reads_failed as "amqp_stream_reads_failed_total" "Those of them that failed, so that clients were told of a gap.";
        counter stream_deliveries as "amqp_stream_deliveries_total" "Events and markers read from the stream of the history.";
        gauge stream_up as "amqp_stream_up" "1 while the stream of the history is there and bound, else 0.";
        gauge stream_bindings as "amqp_stream_bindings" "Bindings of families to the stream of the history.";
        gauge control_up as "amqp_control_up" "1 while requests of the platform can come, else 0.";
        gauge up as "amqp_up" "1 while connected with everything bound, else 0.";
        gauge bindings_wanted as "amqp_thread_bindings_wanted" "Bindings the loop wants, as far as the AMQP thread has heard.";
        gauge bindings_in_force as "amqp_thread_bindings_in_force" "Bindings in force on the queue, those awaiting their unbind included.";
        gauge bindings_refused as "amqp_thread_bindings_refused" "Bindings wanted but refused (rail 8), tried again every 5 s.";
        gauge permissions_missing as "amqp_permissions_missing" "Permissions that the broker's user lacks, as /readyz names them.";
        gauge binds_queued as "amqp_thread_binds_queued" "Bindings that wait for their turn to be bound.";
        gauge unbinds_queued as "amqp_thread_unbinds_queued" "Bindings that wait for their turn to be unbound.";
    }
    families {
        counter amqp_undecodable_total [reason] "Deliveries dropped because they hold no event, by reason." {
            undecodable_not_utf8 ("not_utf8") "The body is not UTF-8.";
            undecodable_not_json_object ("not_json_object") "The body is not a JSON object.";
            undecodable_broken_gzip ("broken_gzip") "The gzip stream is broken.";
            undecodable_too_large ("too_large") "The body is too large, after inflation where there is one.";
            undecodable_swallowed ("swallowed") "The body is above 64 MiB, or above 8 MiB while 256 MiB wait to be taken, and was never kept (AMQP rail 1).";
            undecodable_unknown_encoding ("unknown_encoding") "The content encoding is not supported.";
            undecodable_routing_key ("routing_key") "The exchange or routing key is not UTF-8 (AMQP rail 3).";
        }
    }
    beside {}
}

impl AmqpCounters {
    pub(super) fn count_undecodable(&self, error: &EventError) {
        increment(match error {
            EventError::NotUtf8 => &self.undecodable_not_utf8,
            EventError::NotJsonObject => &self.undecodable_not_json_object,
            EventError::BrokenGzip => &self.undecodable_broken_gzip,
            EventError::TooLarge => &self.undecodable_too_large,
            EventError::UnknownEncoding => &self.undecodable_unknown_encoding,
        });
    }
}

pub(super) fn increment(counter: &AtomicU64) {
    add(counter, 1);
}

pub(super) fn add(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

pub(super) fn set(gauge: &AtomicU64, to: usize) {
    gauge.store(to as u64, Ordering::Relaxed);
}
