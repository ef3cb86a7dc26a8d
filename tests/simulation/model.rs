//! What a world is made of: the accounts and their tokens, what may be subscribed and published, and what a client
//! expects. Constants and plain data; nothing here acts.

use std::time::Duration;

use blackhole::session::liveness::LivenessRules;
use fastrand::Rng;

pub(crate) const ACCOUNTS: [&str; 3] = [
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa2",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa3",
];
/// The token of each account. What it may see is in `rights`.
pub(crate) const TOKENS: [&str; 3] = ["token-1", "token-2", "token-3"];
pub(crate) const REALMS: [&str; 3] = ["one.sip", "two.sip", "three.sip"];
pub(crate) const BINDINGS: [&str; 5] = [
    "call.CHANNEL_CREATE.*",
    "call.*.*",
    "call.CHANNEL_DESTROY.c1",
    "call.*.c2",
    "call.CHANNEL_ANSWER.*",
];
/// Bindings whose events tell the account by its realm.
pub(crate) const PRESENCE: [&str; 2] = ["presence.dialog.*", "presence.update.c1"];
pub(crate) const EVENTS: [&str; 3] = ["CHANNEL_CREATE", "CHANNEL_ANSWER", "CHANNEL_DESTROY"];
pub(crate) const CALLS: [&str; 3] = ["c1", "c2", "c3"];

/// Commands that a session may send at once, and more a second.
pub(crate) const RATE_BURST: usize = 40;
pub(crate) const RATE_PER_SECOND: usize = 10;

/// Resolution of the loop's liveness clock.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// A subscription as the client knows it.
pub(crate) type Key = (usize, &'static str);

/// What a client expects of the next reply.
#[derive(Debug)]
pub(crate) enum Asked {
    Subscribe(Key),
    Unsubscribe,
    Ping,
    /// A subscribe for an account that the identity may not see.
    Refused,
    /// A subscribe to what needs a realm, for an account that has none.
    NoRealm,
    /// A command whose token is not good.
    BadToken,
    /// A subscribe to many bindings that no event matches: granted or refused.
    Many,
    /// Something wrong, without a request id.
    Anonymous,
}

/// The times of the keys of these names.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) ping_interval: Option<Duration>,
    pub(crate) pong_timeout: Duration,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) message_timeout: Duration,
}

impl Times {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let mut time = |range| Duration::from_millis(rng.u64(range));
        Self {
            pong_timeout: time(200..800),
            message_timeout: time(3_000..6_000),
            ping_interval: Some(time(200..1_500)).filter(|_| rng.bool()),
            idle_timeout: Some(Duration::from_millis(rng.u64(1_000..4_000))).filter(|_| rng.bool()),
        }
    }

    /// Longest silence of a session that is still open, its ping having waited in a full outbox for as long as it may.
    pub(crate) fn silence_max(&self) -> Option<Duration> {
        let interval = self.ping_interval?;
        Some(interval * 6 / 5 + interval + 2 * self.pong_timeout + 8 * TICK)
    }

    pub(crate) fn rules(&self) -> LivenessRules {
        LivenessRules::new(
            self.ping_interval,
            self.pong_timeout,
            self.idle_timeout,
            self.message_timeout,
        )
    }
}

/// A realm as it stands in a routing key.
pub(crate) fn escaped(realm: usize) -> String {
    REALMS[realm].replace('.', "%2E")
}

/// Whether a client binding means events of this routing key, whosever they are.
pub(crate) fn means(binding: &str, routing_key: &str) -> bool {
    let Some(words) = binding.strip_prefix("presence.") else {
        return routes(binding, routing_key);
    };
    let (kind, id) = words.split_once('.').expect("two words");
    routes(&format!("{kind}.*.{id}"), routing_key)
}

/// Whether a client binding needs the AMQP binding of this key, whosever realm is in it.
pub(crate) fn needs(binding: &str, key: &str) -> bool {
    let (binding, key) = (binding.trim_start_matches("presence."), key);
    let (ours, theirs): (Vec<_>, Vec<_>) = (binding.split('.').collect(), key.split('.').collect());
    match (&ours[..], &theirs[..]) {
        (["call", event, call], ["call", its_event, its_call]) => {
            call == its_call && (*event == "*" || event == its_event)
        }
        ([kind, call], [its_kind, _, its_call]) => kind == its_kind && call == its_call,
        _ => false,
    }
}

pub(crate) fn routes(key: &str, routing_key: &str) -> bool {
    let (key, routing_key): (Vec<_>, Vec<_>) =
        (key.split('.').collect(), routing_key.split('.').collect());
    key.len() == routing_key.len()
        && key
            .iter()
            .zip(&routing_key)
            .all(|(want, is)| *want == "*" || want == is)
}
