//! Counters of the loop, named after what they count, printed in Prometheus' text format (version 0.0.4).
//!
//! Invariant: the loop alone owns them, so they are plain integers, no atomics. The AMQP thread has its own
//! (`amqp::AmqpCounters`).

/// Declares [`Metrics`]: one field, one metric `blackhole_<name>`, one help text each.
macro_rules! metrics {
    ($($kind:ident $name:ident $help:literal;)*) => {
        /// Everything the loop counts.
        #[derive(Clone, Debug, Default)]
        pub struct Metrics {
            $(#[doc = $help] pub $name: u64,)*
        }

        impl Metrics {
            /// Appends all metrics to `out`.
            pub fn write(&self, out: &mut String) {
                $(write_metric(out, stringify!($name), stringify!($kind), $help, self.$name);)*
            }
        }
    };
}

/// Appends one metric `blackhole_<name>` with its help and type.
pub(crate) fn write_metric(out: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    use std::fmt::Write;
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "# HELP blackhole_{name} {help}\n# TYPE blackhole_{name} {kind}\nblackhole_{name} {value}"
    );
}

metrics! {
    counter connections_accepted_total "Connections accepted, those of the admin listener included.";
    counter connections_refused_full_total "Connections refused with 503 or closed because max_connections was reached.";
    counter connections_dropped_full_total "Connections closed without a word because max_connections was reached and there was no room to answer them either.";
    counter connections_dropped_ip_total "Connections closed without a word because of max_connections_per_ip: their requests were not whole, and too many such were there already.";
    counter handshakes_evicted_total "Unfinished handshakes that were ended because max_connections was reached and another came.";
    counter accept_errors_total "Accepts that failed, out of descriptors or memory included.";
    counter accept_pauses_total "Pauses in accepting because it failed: out of descriptors or memory, or another error that may last.";
    counter accept_rate_pauses_total "Times that connections were left waiting because max_accept_rate was reached.";
    counter proxy_headers_total "PROXY headers taken.";
    counter proxy_peers_refused_total "Connections closed at once because proxy_protocol is required and they came from none of trusted_proxies.";
    counter proxy_headers_missing_total "Connections of trusted proxies closed because no PROXY header came first.";
    counter proxy_headers_malformed_total "Connections of trusted proxies closed because their PROXY header was malformed.";
    counter proxy_headers_untrusted_total "PROXY headers refused with 400: unasked for, or from none of trusted_proxies.";
    counter forwarded_peers_total "Upgrade requests whose peer was told by X-Forwarded-For or Forwarded.";
    counter handshakes_refused_total "Upgrade requests answered with a refusal.";
    counter handshakes_refused_ip_total "Those of them refused with 429 because of max_connections_per_ip.";
    counter handshakes_refused_account_total "Those of them refused with 429 because of max_connections_per_account.";
    counter handshakes_refused_origin_total "Those of them refused with 403 because of allowed_origins.";
    counter handshakes_refused_token_total "Those of them refused with 403 because their bearer token did not verify.";
    counter handshakes_refused_head_total "Those of them refused with 431 because their head was too large.";
    counter admin_requests_total "Requests of the admin address.";
    counter admin_requests_refused_total "Those of them that were refused.";
    counter admin_connections_refused_total "Connections of the admin address refused with 503 because all the others waited for answers.";
    counter admin_connections_evicted_total "Connections of the admin address that made room for another while they waited for a request.";
    counter admin_slow_total "Connections of the admin address ended because the asker did not read in send_timeout_ms.";
    counter handshakes_lost_total "Connections that ended before their request was answered.";
    counter handshake_timeouts_total "Connections closed because the handshake was not finished in time.";
    counter probes_total "Balancer checks (GET or HEAD / without upgrade) answered.";
    counter sessions_opened_total "Sessions upgraded to websocket.";
    counter sessions_closed_total "Sessions that ended, for whatever reason.";
    counter closes_normal_total "Sessions closed by the peer.";
    counter closes_protocol_total "Sessions closed with 1002.";
    counter closes_binary_total "Sessions closed with 1003.";
    counter closes_invalid_text_total "Sessions closed with 1007.";
    counter closes_too_big_total "Sessions closed with 1009.";
    counter closes_rate_limit_total "Sessions closed with 1008 because too many commands in a row were over the rate limit.";
    counter closes_never_authenticated_total "Sessions closed with 1008 because they had not authenticated in auth_timeout_ms.";
    counter closes_slow_consumer_total "Sessions closed with 4408: outbox over its limit, or no progress in send_timeout_ms.";
    counter closes_outboxes_full_total "Sessions closed with 4408 because all outboxes together were over max_outboxes_bytes.";
    counter closes_expired_total "Sessions closed with 4401.";
    counter closes_drain_total "Sessions closed with 1001 because the process drains.";
    counter closes_dead_total "Sessions closed with 1001: a ping was not answered in pong_timeout_ms.";
    counter closes_idle_total "Sessions closed with 1000: no frame of the client's own for idle_timeout_ms.";
    counter closes_message_timeout_total "Sessions closed with 1008: a message was begun and not finished in message_timeout_ms.";
    counter closes_partials_full_total "Sessions closed with 1008, and unfinished handshakes ended, because unfinished messages and requests were over max_partials_bytes, or those of one address over its share.";
    counter closes_operator_total "Sessions closed on the admin address, with 1008 or the code that was given.";
    counter closes_lost_total "Sessions whose connection broke or ended without a close frame.";
    counter commands_total "Commands received.";
    counter commands_rate_limited_total "Commands refused by the rate limit.";
    counter commands_failed_total "Commands answered with an error.";
    counter commands_refused_account_total "Those of them refused because of max_connections_per_account.";
    counter commands_refused_subscriptions_total "Those of them refused because of max_subscriptions.";
    counter commands_refused_bindings_total "Those of them refused because of max_bindings_per_session or max_bindings.";
    counter commands_refused_account_bindings_total "Those of them refused because of max_bindings_per_account.";
    counter commands_refused_metadata_total "Those of them refused because of max_metadata_bytes.";
    counter labels_left_out_total "Names and metadata of clients that were not kept, because those of their account or of all were over their bound.";
    counter replies_held_total "Replies held back behind that of a subscribe that waits for the broker.";
    counter subscribes_waited_total "Subscribes that waited for the broker.";
    counter subscribes_timed_out_total "Subscribes that the broker did not confirm in request_timeout_ms.";
    counter subscribes_refused_total "Subscribes that needed a binding that the broker refuses.";
    counter subscribes_given_up_total "Subscribes that could not wait, or wait on, because too much was held back.";
    counter subscriptions_ended_total "Subscriptions ended because the session's identity or rights changed, or their family was stopped.";
    counter subscriptions_moved_total "Subscriptions that follow another realm because their account's changed.";
    counter authentications_failed_total "Tokens that did not verify.";
    counter commands_suspended_total "Commands that waited for the authenticator.";
    counter commands_refused_unavailable_total "Commands answered with authentication unavailable.";
    counter commands_resumed_total "Times such a command was run again because the authenticator had an answer.";
    counter events_total "Events taken from the source.";
    counter events_sliced_total "Events whose frames were made a part at a time, because all of them together were too large.";
    counter events_unmatched_total "Events that no subscription wanted.";
    counter frames_delivered_total "Event frames put into outboxes.";
    counter runs_merged_total "Runs of events that one group alone wanted whose frames were put together, once for all its members.";
    counter frames_dropped_total "Event frames dropped by the slow consumer policy drop.";
    counter gap_notices_total "Gap notices sent.";
    counter silent_spared_total "Times a silent client whose outbox is full was kept (policy drop) because its system still answers.";
    counter pings_sent_total "Websocket pings to clients that were silent for ping_interval_ms.";
    counter source_outages_total "Times the event source was away.";
    counter writes_total "Write calls on client sockets.";
    counter ring_calls_total "io_uring calls, each of which wrote to several client sockets.";
    counter written_bytes_total "Bytes written to client sockets.";
    counter reads_total "Read calls on client sockets.";
    counter read_bytes_total "Bytes read from client sockets.";
    counter turns_total "Turns of the loop.";
    counter handoff_held_total "Looks at the hand-off that left events there because sessions still had to be written what was fanned out before.";
    counter handoff_looks_again_total "Looks at the hand-off beyond the first of a turn, for the rest of a burst.";
    counter heap_trims_total "Times memory was given back to the system, in the quiet after a burst or under lasting traffic.";
    counter months_rolled_total "Month roll-overs of document bindings begun: two a month, one to bind and one to release.";
    counter months_groups_total "Groups of document subscriptions that a roll-over brought to other months.";
    counter control_requests_total "Requests of the platform over AMQP that were answered.";
    counter control_sessions_listed_total "Sessions told of in answers to the platform.";
    counter control_sessions_left_out_total "Sessions left out of answers to the platform because the answers were full.";
    counter admin_jobs_refused_total "Listings and orders of the admin address answered with busy, because too many were under way.";
    counter modules_switched_total "Times the families of a module were started or stopped while running.";
    counter trace_looks_total "Looks begun (GET /trace).";
    counter trace_looks_refused_total "Looks refused because there were as many as there may be.";
    counter trace_left_out_total "Lines and events that lookers were told were left out.";
    counter config_reloads_total "Rereads of what can change while running (SIGHUP).";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_help_type_and_value() {
        let metrics = Metrics {
            events_total: 7,
            ..Metrics::default()
        };
        let mut out = String::new();
        metrics.write(&mut out);
        assert!(out.contains(
            "# HELP blackhole_events_total Events taken from the source.\n# TYPE blackhole_events_total counter\nblackhole_events_total 7\n"
        ));
        assert_eq!(out.lines().count() % 3, 0);
    }
}
