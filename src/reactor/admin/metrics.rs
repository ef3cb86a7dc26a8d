//! The page `/metrics` (Prometheus text format 0.0.4).

use super::process;
use crate::handoff::HANDOFF_EVENTS_MAX;
use crate::metrics::histogram::Seconds;
use crate::metrics::page::{Name, write_head, write_metric, write_sample};
use crate::reactor::Reactor;
use crate::reactor::control::Control;
use crate::reactor::secured::Secured;
use crate::reactor::socket::Socket;
use crate::reactor::tls_port::TlsPort;
use crate::tls::ServerTls;

/// The page. Linear in the counters and gauges, whatever the sessions are.
pub(super) fn metrics<S: Socket>(reactor: &Reactor<S>) -> String {
    let mut out = String::with_capacity(16 << 10);
    let hub = &reactor.hub;
    let subscriptions = &hub.subscriptions;
    let (index, bindings) = (
        subscriptions.index().counts(),
        subscriptions.broker().counts(),
    );
    let asked = hub.authenticator.sizes();
    let (lingering, let_go_early) = subscriptions.lingering();
    let certificate_expires = reactor.served_tls().map_or(0, ServerTls::expires) as usize;
    let secured = reactor.tls.as_ref().map(|tls| &tls.secured);
    for (name, help, value) in [
        (
            "connections",
            "Connections of the websocket port in the table, those in their handshake included.",
            reactor.clients(),
        ),
        (
            "sessions",
            "Upgraded sessions.",
            usize::try_from(hub.metrics.sessions_open()).unwrap_or(usize::MAX),
        ),
        (
            "connections_max",
            "Bound of the connections.",
            reactor.connections_max,
        ),
        ("subscriptions", "Subscriptions.", index.subscriptions),
        (
            "subscription_groups",
            "Groups of equal subscriptions: one frame an event each.",
            index.groups,
        ),
        (
            "interned_strings",
            "Distinct client bindings and realms.",
            index.texts,
        ),
        (
            "subscriptions_with_request_id",
            "Subscriptions whose events carry a request id.",
            index.request_ids,
        ),
        (
            "amqp_bindings_wanted",
            "Distinct AMQP bindings that subscriptions need.",
            bindings.wanted,
        ),
        (
            "amqp_bindings_in_force",
            "Those of them that the source has confirmed.",
            subscriptions.broker().in_force(),
        ),
        (
            "amqp_bindings_lost",
            "Those of them that the broker refuses.",
            bindings.lost,
        ),
        (
            "amqp_bindings_lingering",
            "Those of them that nobody needs and that stay for clients that come back.",
            lingering,
        ),
        (
            "amqp_bindings_young",
            "AMQP bindings of which it is known exactly since when they are in force.",
            subscriptions.broker().young(),
        ),
        (
            "history_events",
            "Events kept for clients that come back.",
            hub.history.len(),
        ),
        ("history_bytes", "Bytes of them.", hub.history.bytes()),
        (
            "history_stored_bytes",
            "Bytes of the events that are loaded from the stream of the history, while somebody resumes from it.",
            hub.past.bytes(),
        ),
        (
            "history_bytes_max",
            "Bound of blackhole_history_bytes, chosen by the operator.",
            hub.limits.history.bytes_max,
        ),
        (
            "subscribes_waiting",
            "Replies that wait for the broker, counted once for each binding.",
            subscriptions.broker().waiters(),
        ),
        (
            "replies_held",
            "Subscribes that wait for the broker, commands that wait for the authenticator, and replies behind them.",
            hub.held.replies,
        ),
        ("replies_held_bytes", "Bytes of them.", hub.held.bytes),
        ("auth_tokens", "Tokens on file.", asked.tokens),
        (
            "auth_keys",
            "Keys of JWTs, those that the platform sent included.",
            asked.keys,
        ),
        (
            "auth_accounts",
            "Accounts of the account tree.",
            asked.accounts,
        ),
        (
            "auth_verified",
            "JWTs that were verified and are kept.",
            asked.verified,
        ),
        (
            "auth_grants",
            "Answers of the platform that are yes and are kept, each for a token and an account.",
            asked.grants,
        ),
        (
            "auth_denials",
            "Answers that are no, or trouble, and are kept.",
            asked.denials,
        ),
        (
            "auth_questions",
            "Questions about tokens that no thread has answered.",
            asked.questions,
        ),
        (
            "auth_askers",
            "Those who wait for the answers, once for each question.",
            asked.askers,
        ),
        (
            "auth_questions_in_lanes",
            "Those of them that wait in the lanes of the threads.",
            reactor.inquiries.in_lanes(),
        ),
        (
            "auth_answers",
            "Answers of threads that the loop has not taken.",
            reactor.inquiries.answered(),
        ),
        (
            "sessions_to_resume",
            "Sessions that have an answer and have not gone on.",
            reactor.inquiries.concerned.len(),
        ),
        (
            "sessions_resuming",
            "Sessions that past events are replayed to.",
            hub.resumers.len(),
        ),
        ("trace_looks", "Looks under way.", hub.trace.looks()),
        (
            "outboxes_blocked",
            "Sessions whose sockets are full.",
            hub.outboxes.blocked_sessions,
        ),
        (
            "outboxes_blocked_bytes",
            "Bytes that wait for them.",
            hub.outboxes.blocked_bytes,
        ),
        (
            "outboxes_bytes_max",
            "Bound of blackhole_history_bytes, chosen by the operator.",
            hub.limits.outboxes_bytes_max,
        ),
        (
            "partial_messages_bytes",
            "Bytes of messages, frames and requests that have arrived in part.",
            hub.partials.bytes(),
        ),
        (
            "labels_bytes",
            "Bytes of names and metadata kept of all sessions.",
            hub.labels.bytes(),
        ),
        (
            "session_figures",
            "Sessions that were sent 65,536 frames or have lost events, and are in a table because of that.",
            hub.figures.len(),
        ),
        (
            "admin_jobs",
            "Listings and orders of the admin address that are under way.",
            reactor.jobs.len(),
        ),
        (
            "flush_list",
            "Sessions that wait for their write.",
            reactor.flush.len(),
        ),
        (
            "reread_list",
            "Sessions that wait for the rest of their read.",
            reactor.reread.len(),
        ),
        (
            "handoff_events",
            "Events of the source that the loop has not taken.",
            reactor.handoff.waiting(),
        ),
        (
            "handoff_events_max",
            "Bound of these events.",
            HANDOFF_EVENTS_MAX,
        ),
        (
            "handoff_bytes",
            "Bytes of the events that wait for the loop.",
            reactor.handoff.waiting_bytes(),
        ),
        (
            "handoff_controls",
            "Messages of the source about itself that the loop has not taken.",
            reactor.handoff.controls_waiting(),
        ),
        (
            "handoff_commands",
            "Commands to the source that it has not taken.",
            reactor.handoff.commands_waiting(),
        ),
        (
            "control_requests_waiting",
            "Requests of the platform over AMQP that the loop has not taken.",
            reactor.control.as_ref().map_or(0, Control::waiting),
        ),
        (
            "handshake_deadlines",
            "Handshake deadlines kept.",
            hub.deadlines.handshake.len(),
        ),
        (
            "admin_connections",
            "Connections of the admin address.",
            reactor.admin.len(),
        ),
        (
            "admin_deadlines",
            "Checks of such connections to come.",
            hub.deadlines.admin.len(),
        ),
        (
            "auth_deadlines",
            "Authentication deadlines kept.",
            hub.deadlines.auth.len(),
        ),
        (
            "tls_certificate_expires",
            "When the first certificate of the TLS port expires, in Unix seconds; 0 without such a port.",
            certificate_expires,
        ),
        (
            "tls_sessions",
            "Connections of the TLS port whose TLS handshakes are done.",
            secured.map_or(0, Secured::live),
        ),
        (
            "tls_handshakes",
            "Connections of the TLS port whose TLS handshakes are not done.",
            secured.map_or(0, Secured::handshakes),
        ),
        (
            "tls_handshakes_bytes",
            "Bytes that these handshakes hold.",
            secured.map_or(0, Secured::handshake_bytes),
        ),
        (
            "tls_handshakes_waiting",
            "Those of them that wait for a thread.",
            reactor.tls.as_ref().map_or(0, TlsPort::waiting),
        ),
        (
            "handshakes_unfinished",
            "Connections whose requests have come in part.",
            reactor.unfinished.len(),
        ),
        (
            "connections_surplus",
            "Connections that are one too many of their IP, kept until they can be told.",
            hub.occupancy.surplus(),
        ),
        (
            "sessions_compressed",
            "Sessions with which permessage-deflate is agreed on.",
            hub.compression.sessions(),
        ),
        (
            "source_up",
            "Whether the event source is there.",
            usize::from(hub.readiness.is_source_up()),
        ),
        (
            "ready",
            "Whether sessions are taken and events come.",
            usize::from(hub.readiness.unready().is_none()),
        ),
        (
            "counted_ips",
            "IPs that connections are counted for.",
            hub.occupancy.ips().kinds(),
        ),
        (
            "counted_accounts",
            "Accounts that sessions are counted for.",
            hub.occupancy.accounts().kinds(),
        ),
    ] {
        write_metric(&mut out, name, "gauge", help, value as u64);
    }
    write_metric(
        &mut out,
        "handoff_held_seconds",
        "gauge",
        "How long events had waited there, at the last look, for what was fanned out before to be written.",
        Seconds(reactor.held_for),
    );
    for (name, help, value) in [
        (
            "history_dropped_early_total",
            "Events dropped before history_seconds because of history_bytes.",
            hub.history.dropped_early(),
        ),
        (
            "lingering_dropped_early_total",
            "Lingering AMQP bindings let go before history_seconds because of their bounds, or to make room.",
            let_go_early,
        ),
        (
            "auth_questions_refused_total",
            "Questions of the authenticator that were not taken, because too many wait already, of an address or of all.",
            asked.not_asked,
        ),
        (
            "auth_withdrawals_total",
            "Passes over all sessions because the platform took rights away.",
            hub.authenticator.withdrawals,
        ),
    ] {
        write_metric(&mut out, name, "counter", help, value);
    }
    write_build_info(&mut out);
    hub.metrics.write(&mut out);
    (reactor.more_metrics)(&mut out);
    process::write(&mut out);
    out
}

/// What runs here, as labels of a constant.
fn write_build_info(out: &mut String) {
    let name = Name::ours("build_info");
    write_head(out, name, "gauge", "The version that runs; always 1.");
    let version = env!("CARGO_PKG_VERSION");
    write_sample(out, name, "", &[("version", &version)], 1);
}
