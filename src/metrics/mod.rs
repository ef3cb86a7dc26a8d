//! Figures of the loop for the metrics page, in Prometheus' text format (version 0.0.4).
//!
//! | module | owns |
//! |---|---|
//! | this | the loop's counters |
//! | [`commands`] | commands by action and result |
//! | [`timings`], [`histogram`] | the times that the loop takes, in buckets |
//! | `figures` | how counters and gauges are declared, here and on other threads |
//! | `page` | the lines of the page |
//!
//! Invariants: the loop alone owns them, so they are plain integers, no atomics; other threads have their own
//! (`amqp::AmqpCounters`, `inquiry::InquiryCounters`). Nothing is counted under two names, and the values of a label are
//! disjoint, so a family can be summed.

pub mod commands;
pub(crate) mod figures;
pub mod histogram;
pub(crate) mod page;
pub mod timings;

use self::commands::CommandCounts;
use self::figures::figures;
use self::timings::Timings;

figures! {
    /// Everything the loop counts.
    #[derive(Clone)]
    struct Metrics of u64;
    plain {
        counter connections_accepted_total "Connections accepted, those of the admin listener included.";
        counter accept_errors_total "Accepts that failed, out of descriptors or memory included.";
        counter accept_pauses_total "Pauses in accepting because it failed: out of descriptors or memory, or another error that may last.";
        counter accept_rate_pauses_total "Times that connections were left waiting because max_accept_rate was reached.";
        counter service_messages_failed_total "Messages to the service manager (systemd) that it did not take; each was sent again.";
        counter proxy_headers_total "PROXY headers taken.";
        counter proxy_headers_untrusted_total "PROXY headers refused with 400: unasked for, or from none of trusted_proxies.";
        counter forwarded_peers_total "Upgrade requests whose peer was told by X-Forwarded-For or Forwarded.";
        counter admin_requests_total "Requests of the admin address.";
        counter admin_requests_refused_total "Those of them that were refused.";
        counter admin_connections_refused_total "Connections of the admin address refused with 503 because all the others waited for answers.";
        counter admin_connections_evicted_total "Connections of the admin address that made room for another while they waited for a request.";
        counter admin_slow_total "Connections of the admin address ended because the asker did not read in send_timeout_ms.";
        counter probes_total "Balancer checks (GET or HEAD / without upgrade) answered.";
        counter sessions_opened_total "Sessions upgraded to websocket.";
        counter labels_left_out_total "Names and metadata of clients that were not kept, because those of their account or of all were over their bound.";
        counter replies_held_total "Replies held back behind that of a subscribe that waits for the broker.";
        counter subscribes_waited_total "Subscribes that waited for the broker.";
        counter subscriptions_ended_total "Subscriptions ended because the session's identity or rights changed, or their family was stopped.";
        counter subscriptions_moved_total "Subscriptions that follow another realm because their account's changed.";
        counter authentications_failed_total "Tokens that did not verify.";
        counter commands_suspended_total "Commands that waited for the authenticator.";
        counter commands_resumed_total "Times such a command was run again because the authenticator had an answer.";
        counter events_total "Events taken from the source.";
        counter events_sliced_total "Events whose frames were made a part at a time, because all of them together were too large.";
        counter events_unmatched_total "Events that no subscription wanted.";
        counter frames_delivered_total "Event frames put into outboxes.";
        counter frames_replayed_total "Those of them that were of past events, for sessions that resume.";
        counter laps_total "Laps begun: walks over past events for sessions that resume.";
        counter lap_slices_total "Turns in which a lap went on.";
        counter lap_events_total "Past events matched, once for each slice of the sessions on a lap.";
        counter lap_falls_total "Times that a session left a lap because its outbox took no more.";
        counter runs_merged_total "Runs of events that one group alone wanted whose frames were put together, once for all its members.";
        counter frames_dropped_total "Event frames dropped by the slow consumer policy drop.";
        counter compression_agreed_total "Sessions with which permessage-deflate was agreed on.";
        counter compression_declined_total "Sessions opened without it although they offered it, because of the parameters of all their offers.";
        counter deflated_frames_total "Event frames deflated, each once for all members of its group.";
        counter deflated_bytes_before_total "Bytes of these frames.";
        counter deflated_bytes_after_total "Bytes of what became of them.";
        counter deflate_postponed_total "Event frames that were sent as they are because the turn had no share left to deflate them.";
        counter frames_delivered_deflated_total "Event frames put into outboxes deflated; not those of sessions that were too slow for a whole run.";
        counter frames_delivered_saved_bytes_total "Bytes that they are shorter for it.";
        counter inflated_messages_total "Messages of clients that were deflated.";
        counter inflated_bytes_before_total "Bytes of deflated messages as they came, those that were refused included.";
        counter inflated_bytes_after_total "Bytes of deflated messages, inflated.";
        counter inflate_refused_total "Messages that did not inflate, or to too much, or not to UTF-8; each closed its session.";
        counter gap_notices_total "Gap notices sent.";
        counter silent_spared_total "Times a silent client whose outbox is full was kept (policy drop) because its system still answers.";
        counter going_away_notices_total "Notices that the process is going away.";
        counter pings_sent_total "Websocket pings to clients that were silent for ping_interval_ms.";
        counter source_outages_total "Times the event source was away.";
        counter tls_clear_http_total "Requests of plain HTTP on the TLS port, answered with 400.";
        counter tls_records_refused_total "Sessions on the TLS port ended because a record was wrong.";
        counter tls_truncated_total "Sessions of the TLS port whose peers ended their side without close_notify.";
        counter writes_total "Write calls on client sockets.";
        counter ring_calls_total "io_uring calls, each of which wrote to several client sockets.";
        counter written_bytes_total "Bytes written to client sockets.";
        counter reads_total "Read calls on client sockets.";
        counter read_bytes_total "Bytes read from client sockets.";
        counter handoff_held_total "Looks at the hand-off that left events there because sessions still had to be written what was fanned out before.";
        counter handoff_looks_again_total "Looks at the hand-off beyond the first of a turn, for the rest of a burst.";
        counter heap_trims_total "Times memory was given back to the system, in the quiet after a burst or under lasting traffic.";
        counter months_rolled_total "Month roll-overs of document bindings begun: two a month, one to bind and one to release.";
        counter months_groups_total "Groups of document subscriptions that a roll-over brought to other months.";
        counter control_requests_total "Requests of the platform over AMQP that were answered.";
        counter control_sessions_listed_total "Sessions told of in answers to the platform.";
        counter control_sessions_left_out_total "Sessions left out of answers to the platform because the answers were full.";
        counter modules_switched_total "Times the families of a module were started or stopped while running.";
        counter admin_jobs_refused_total "Listings and orders of the admin address answered with busy, because too many were under way.";
        counter trace_looks_total "Looks begun (GET /trace).";
        counter trace_looks_refused_total "Looks refused because there were as many as there may be.";
        counter trace_left_out_total "Lines and events that lookers were told were left out.";
        counter config_reloads_total "Rereads of what can change while running (SIGHUP).";
    }
    families {
        counter connections_dropped_total [reason] "Connections closed before their request was answered, by reason." {
            connections_dropped_full_total ("full") "max_connections was reached and there was no room even for an answer.";
            connections_dropped_ip_total ("ip") "max_connections_per_ip was reached, the request was not whole, and too many such were there already.";
            handshakes_evicted_total ("evicted") "max_connections was reached, another connection came, and this was an unfinished handshake.";
            handshake_timeouts_total ("handshake_timeout") "The handshake was not finished in time.";
            handshakes_lost_total ("lost") "The peer ended it.";
            handshakes_drained_total ("drain") "The process ended.";
            handshakes_partials_full_total ("partials_full") "Unfinished requests and messages were over max_partials_bytes, or those of one address over its share.";
            proxy_peers_refused_total ("untrusted_proxy") "proxy_protocol is required and it came from none of trusted_proxies.";
            proxy_headers_missing_total ("proxy_header_missing") "It came from a trusted proxy, and no PROXY header came first.";
            proxy_headers_malformed_total ("proxy_header_malformed") "It came from a trusted proxy, and the PROXY header was malformed.";
        }
        counter handshakes_refused_total [reason] "Requests on the websocket port that were answered with a refusal, by reason." {
            handshakes_refused_full_total ("full") "503: max_connections was reached.";
            handshakes_refused_ip_total ("ip") "429: max_connections_per_ip.";
            handshakes_refused_account_total ("account") "429: max_connections_per_account.";
            handshakes_refused_origin_total ("origin") "403: allowed_origins.";
            handshakes_refused_token_total ("token") "403: the bearer token did not verify.";
            handshakes_refused_unavailable_total ("unavailable") "503: nobody could say whether the bearer token is good.";
            handshakes_refused_draining_total ("draining") "503: the process is about to end.";
            handshakes_refused_head_total ("head") "431: the head was too large.";
            handshakes_refused_request_total ("request") "Another status: the request is none that is served here.";
        }
        counter tls_handshakes_total [result] "TLS handshakes that ended, by how." {
            tls_handshakes_full_total ("full") "Done, with a signature.";
            tls_handshakes_resumed_total ("resumed") "Done, by a ticket.";
            tls_handshakes_failed_total ("failed") "Refused: what came was no TLS, or had nothing in common with what is served here, or was wrong.";
        }
        counter tls_handshake_faults_total [reason] "TLS handshakes that failed, by reason." {
            tls_faults_malformed_total ("malformed") "The peer speaks something else, or its messages are broken.";
            tls_faults_too_long_total ("too_long") "More than the bounds of a handshake, a message or a record.";
            tls_faults_incompatible_total ("incompatible") "No version, cipher, group or signature that both have.";
            tls_faults_no_protocol_total ("no_protocol") "The peer offers application protocols, and http/1.1 is none of them.";
            tls_faults_no_certificate_total ("no_certificate") "The peer shows no certificate, and ssl_client_required is set.";
            tls_faults_bad_certificate_total ("bad_certificate") "The peer's certificate is not one of ssl_ca_cert, or not valid now.";
            tls_faults_misbehaved_total ("misbehaved") "The peer's answer does not fit what it agreed to.";
            tls_faults_alerted_total ("alerted") "The peer ended it with an alert: it may not trust the certificate.";
            tls_faults_internal_total ("internal") "Our own trouble.";
            tls_faults_panicked_total ("panicked") "Our own trouble: a panic.";
        }
        counter resumes_total [result] "Subscribes with a cursor, by what came of it." {
            resumes_good_total ("resumed") "What came after it was replayed.";
            resumes_expired_total ("expired") "It was from before the history.";
            resumes_unknown_total ("unknown") "It was of the future, or never given, or the history did not cover a binding.";
            resumes_too_many_total ("too_many") "More than resume_max_events came after it.";
            resumes_outage_total ("outage") "Events may have been lost since.";
        }
        counter replays_total [end] "Replays that ended, by how." {
            replays_done_total ("resumed") "All that was missed was sent.";
            replays_expired_total ("expired") "The history dropped events before the session took them.";
            replays_too_many_total ("too_many") "It took too long.";
            replays_outage_total ("outage") "Events may have been lost meanwhile.";
            replays_closed_total ("closed") "The session ended.";
        }
        counter closes_total [reason] "Sessions that ended, by reason." {
            closes_normal_total ("peer") "The peer closed.";
            closes_lost_total ("lost") "The connection broke or ended without a close frame.";
            closes_idle_total ("idle") "1000: no frame of the client's own for idle_timeout_ms.";
            closes_drain_total ("drain") "1001: the process drains.";
            closes_dead_total ("dead") "1001: a ping was not answered in pong_timeout_ms.";
            closes_protocol_total ("protocol") "1002: the client broke RFC 6455.";
            closes_binary_total ("binary") "1003: a binary message.";
            closes_invalid_text_total ("invalid_text") "1007: text that is not UTF-8.";
            closes_corrupt_total ("corrupt") "1007: a deflated message that does not inflate.";
            closes_rate_limit_total ("rate_limit") "1008: too many commands in a row were over the rate limit.";
            closes_never_authenticated_total ("never_authenticated") "1008: no authentication in auth_timeout_ms.";
            closes_message_timeout_total ("message_timeout") "1008: a message was begun and not finished in message_timeout_ms.";
            closes_partials_full_total ("partials_full") "1008: unfinished messages and requests were over max_partials_bytes, or those of one address over its share.";
            closes_operator_total ("operator") "1008, or the code that was given: closed on the admin address.";
            closes_too_big_total ("too_big") "1009: a message over max_message_bytes or max_frame_bytes.";
            closes_expired_total ("expired") "4401: the token expired, or is no longer valid.";
            closes_slow_consumer_total ("slow_consumer") "4408: outbox over its limit, or no progress in send_timeout_ms.";
            closes_outboxes_full_total ("outboxes_full") "4408: all outboxes together were over max_outboxes_bytes, and this one was the largest.";
        }
    }
    beside {
        /// Commands by action and result.
        commands: CommandCounts;
        /// The times that the loop takes.
        timings: Timings;
    }
}

impl Metrics {
    /// Sessions that are open now.
    #[must_use]
    pub fn sessions_open(&self) -> u64 {
        self.sessions_opened_total
            .saturating_sub(self.closes_total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_metric_has_help_type_and_value() {
        let metrics = Metrics {
            events_total: 7,
            closes_dead_total: 3,
            ..Metrics::default()
        };
        let mut out = String::new();
        metrics.write(&mut out);
        for expected in [
            "# HELP blackhole_events_total Events taken from the source.\n# TYPE blackhole_events_total counter\nblackhole_events_total 7\n",
            "\nblackhole_closes_total{reason=\"dead\"} 3\n",
            "\nblackhole_commands_total{action=\"ping\",result=\"ok\"} 0\n",
        ] {
            assert!(out.contains(expected), "{expected}");
        }
        let mut seen = HashSet::new();
        for line in out.lines() {
            let said = line.rsplit_once(' ').expect("a value").0;
            assert!(seen.insert(said), "{said} stands there twice");
        }
    }
}
