//! The bounds and choices of an operator that concern sessions. Config makes them of its options.

use std::time::Duration;

use crate::event::Style;
use crate::history::HistoryOptions;
use crate::protocol::admin_guard::Guard;
use crate::protocol::codec::CodecLimits;
use crate::protocol::proxy::Proxies;

use super::binding_quota::BindingQuota;
use super::bucket::BucketRule;
use super::lingering::LingeringRules;
use super::liveness::LivenessRules;
use super::outbox::SlowConsumerPolicy;

/// The bounds that an operator sets; `usize::MAX` where there is none.
#[derive(Clone, Debug)]
pub struct SessionLimits {
    /// Of the codec. Whether a message may be deflated is the session's own.
    pub codec: CodecLimits,
    /// `max_metadata_bytes`.
    pub metadata_bytes_max: usize,
    /// `max_subscriptions`.
    pub subscriptions_max: usize,
    /// `max_bindings_per_session`, `max_bindings_per_account`, `max_bindings`.
    pub bindings: BindingQuota,
    /// `slow_consumer`.
    pub slow_consumer: SlowConsumerPolicy,
    /// `max_queued_messages`.
    pub queued_messages_max: usize,
    /// `max_outbox_bytes`.
    pub outbox_bytes_max: usize,
    /// `max_outboxes_bytes`.
    pub outboxes_bytes_max: usize,
    /// `max_partials_bytes`.
    pub partials_bytes_max: usize,
    /// `max_connections_per_ip`; `None`: no limit, and nothing is counted.
    pub connections_per_ip_max: Option<usize>,
    /// `max_connections_per_account`; as that.
    pub connections_per_account_max: Option<usize>,
    /// `request_timeout_ms`.
    pub request_timeout: Duration,
    /// `auth_timeout_ms`.
    pub auth_timeout: Duration,
    /// `send_timeout_ms`.
    pub send_timeout: Duration,
    /// `rate_limit_burst`, `rate_limit_per_second`; `None`: no limit.
    pub rate: Option<BucketRule>,
    /// `gap_notices`.
    pub gap_notices: bool,
    /// `style`.
    pub style: Style,
    /// `compression`: permessage-deflate is agreed on with clients that offer it.
    pub compression: bool,
    /// `allowed_origins`.
    pub allowed_origins: Vec<String>,
    /// `proxy_protocol`, `trusted_proxies`.
    pub proxies: Proxies,
    /// `history_bytes`, `history_seconds`, `history_overlap_ms`.
    pub history: HistoryOptions,
    /// `max_lingering_bindings`, `max_lingering_bindings_per_account`, `history_seconds`.
    pub lingering: LingeringRules,
    /// `resume_max_events`, `resume_max_seconds`.
    pub resume: ResumeLimits,
    /// `prefetch`: deliveries that the source may hold when it tells that the broker has dropped some.
    pub deliveries_held_max: usize,
    /// `admin_token`, `admin_hosts`.
    pub admin: Guard,
    /// `ping_interval_ms`, `pong_timeout_ms`, `idle_timeout_ms`, `message_timeout_ms`.
    pub liveness: LivenessRules,
}

/// How much is sent again at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumeLimits {
    /// `resume_max_events`; `u64::MAX`: no bound.
    pub events_max: u64,
    /// `resume_max_seconds`; `Duration::MAX`: no bound.
    pub age_max: Duration,
}

impl SessionLimits {
    /// How AMQP bindings outlive their users; `None`: they do not, because there is no history.
    pub(super) fn lingering(&self) -> Option<LingeringRules> {
        (self.history.bytes_max > 0).then_some(self.lingering)
    }
}
