//! The options that concern sessions, as sessions take them.

use std::time::Duration;

use crate::history::HistoryOptions;
use crate::limits::DEFLATED_MESSAGE_BYTES_MAX;
use crate::protocol::admin_guard::Guard;
use crate::protocol::codec::CodecLimits;
use crate::protocol::proxy::Proxies;
use crate::session::binding_quota::BindingQuota;
use crate::session::bucket::BucketRule;
use crate::session::limits::{ResumeLimits, SessionLimits};
use crate::session::lingering::LingeringRules;
use crate::session::liveness::LivenessRules;

use super::Config;

impl From<&Config> for SessionLimits {
    fn from(config: &Config) -> Self {
        let unlimited = |bound: Option<usize>| bound.unwrap_or(usize::MAX);
        Self {
            codec: CodecLimits {
                message_bytes_max: unlimited(config.max_message_bytes),
                deflated_bytes_max: DEFLATED_MESSAGE_BYTES_MAX,
                may_be_deflated: false,
            },
            metadata_bytes_max: unlimited(config.max_metadata_bytes),
            subscriptions_max: unlimited(config.max_subscriptions),
            bindings: BindingQuota {
                session_max: unlimited(config.max_bindings_per_session),
                account_max: unlimited(config.max_bindings_per_account),
                process_max: unlimited(config.max_bindings),
            },
            slow_consumer: config.slow_consumer,
            queued_messages_max: unlimited(config.max_queued_messages),
            outbox_bytes_max: unlimited(config.max_outbox_bytes),
            outboxes_bytes_max: unlimited(config.max_outboxes_bytes),
            partials_bytes_max: unlimited(config.max_partials_bytes),
            connections_per_ip_max: config.max_connections_per_ip,
            connections_per_account_max: config.max_connections_per_account,
            request_timeout: config.request_timeout,
            auth_timeout: config.auth_timeout,
            send_timeout: config.send_timeout,
            rate: BucketRule::new(config.rate_limit_burst, config.rate_limit_per_second),
            gap_notices: config.gap_notices,
            style: config.style,
            compression: config.compression,
            allowed_origins: config.allowed_origins.clone(),
            proxies: Proxies::new(config.proxy_protocol, config.trusted_proxies.clone()),
            history: HistoryOptions {
                bytes_max: config.history_bytes,
                keep: config.history,
                overlap: config.history_overlap,
            },
            lingering: LingeringRules {
                total_max: unlimited(config.max_lingering_bindings),
                account_max: unlimited(config.max_lingering_bindings_per_account),
                keep: config.history,
            },
            resume: ResumeLimits {
                events_max: config.resume_max_events.unwrap_or(u64::MAX),
                age_max: config.resume_max_age.unwrap_or(Duration::MAX),
            },
            // And the one whose acknowledgement waits for the next.
            deliveries_held_max: usize::from(config.prefetch) + 1,
            // Its token is read from a file: `Config::admin_token`.
            admin: Guard::new(config.admin_hosts.clone()),
            liveness: LivenessRules::new(
                config.ping_interval,
                config.pong_timeout,
                config.idle_timeout,
                config.message_timeout,
            ),
        }
    }
}
