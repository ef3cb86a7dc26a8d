//! How sessions end: no session ends without a cause that the world made, and each end is counted under its reason.
//!
//! 1. After every turn each client's session is looked at: its phase, and what waits for it ([`Seen`]).
//! 2. In the turn in which a session is no longer open, every reason that the world knows for it is written down
//!    ([`World::causes`]): a full socket is one only for a client that took too little, by the very rule.
//! 3. A close frame that the client reads must be of such a reason.
//! 4. Of all connections that left the table in a turn, the counters of ends must have grown by exactly one reason each.

use std::net::IpAddr;
use std::time::Duration;

use blackhole::limits::PARTIAL_MESSAGES_PER_ADDRESS_MAX;
use blackhole::metrics::Metrics;
use blackhole::session::close::CloseReason;
use blackhole::session::outbox::SlowConsumerPolicy;

use crate::client::{Client, Deed};
use crate::model::{TICK, means};
use crate::world::World;

/// Reasons that are counted.
pub(crate) const ENDS: usize = 20;

/// Commands in a row over the rate limit that close a session (PROTOCOL 3).
const REFUSED_IN_A_ROW_MAX: usize = 1000;

/// Bytes of an event's frame beyond the event's body, at most.
const ENVELOPE_BYTES_MAX: usize = 450;

/// What the last turn left of a client's session.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) phase: Phase,
    pub(crate) connected_at: Duration,
    pub(crate) ip: IpAddr,
    /// Frames that waited, and their bytes where the socket was full.
    pub(crate) frames: usize,
    pub(crate) blocked_bytes: usize,
    /// Events dropped and not announced.
    pub(crate) dropped: u64,
    /// Since when the full socket has taken nothing.
    pub(crate) stuck_since: Option<Duration>,
    /// Bytes that it had taken.
    written: u64,
    /// Frames that may have been lost with its end, and whether its socket was full then.
    pub(crate) lost_frames: u64,
    pub(crate) was_full: bool,
    /// Why it may have ended, once it is no longer open.
    pub(crate) causes: Option<Vec<CloseReason>>,
}

/// In the order in which they follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Handshake,
    Open,
    Closing,
    Gone,
}

impl Seen {
    pub(crate) fn new(connected_at: Duration, ip: IpAddr) -> Self {
        Self {
            phase: Phase::Handshake,
            connected_at,
            ip,
            frames: 0,
            blocked_bytes: 0,
            dropped: 0,
            stuck_since: None,
            written: 0,
            lost_frames: 0,
            was_full: false,
            causes: None,
        }
    }
}

/// What a turn may have added to an outbox, at most.
#[derive(Clone, Copy, Debug, Default)]
struct Growth {
    frames: usize,
    bytes: usize,
}

/// The reasons that are counted, each with its counter.
pub(crate) fn counted_ends(metrics: &Metrics) -> [(CloseReason, u64); ENDS] {
    [
        (
            CloseReason::PartialsFull,
            metrics.closes_partials_full_total,
        ),
        (CloseReason::NoPlace, metrics.connections_dropped_ip_total),
        (CloseReason::Evicted, metrics.handshakes_evicted_total),
        (CloseReason::Peer, metrics.closes_normal_total),
        (CloseReason::Idle, metrics.closes_idle_total),
        (CloseReason::Drain, metrics.closes_drain_total),
        (CloseReason::Dead, metrics.closes_dead_total),
        (CloseReason::Protocol, metrics.closes_protocol_total),
        (CloseReason::Binary, metrics.closes_binary_total),
        (CloseReason::InvalidText, metrics.closes_invalid_text_total),
        (CloseReason::Corrupt, metrics.closes_corrupt_total),
        (CloseReason::RateLimit, metrics.closes_rate_limit_total),
        (
            CloseReason::NeverAuthenticated,
            metrics.closes_never_authenticated_total,
        ),
        (
            CloseReason::MessageTimeout,
            metrics.closes_message_timeout_total,
        ),
        (CloseReason::TooBig, metrics.closes_too_big_total),
        (CloseReason::Expired, metrics.closes_expired_total),
        (
            CloseReason::SlowConsumer,
            metrics.closes_slow_consumer_total,
        ),
        (
            CloseReason::OutboxesFull,
            metrics.closes_outboxes_full_total,
        ),
        (
            CloseReason::HandshakeTimeout,
            metrics.handshake_timeouts_total,
        ),
        (
            CloseReason::Lost,
            metrics.closes_lost_total + metrics.handshakes_lost_total,
        ),
    ]
}

impl World {
    /// Looks at every session after a turn, and writes down why those that are no longer open may have ended.
    pub(crate) fn look_at_sessions(&mut self) {
        let mut clients = std::mem::take(&mut self.clients);
        let growths: Vec<Growth> = clients.iter().map(|client| self.growth(client)).collect();
        for (index, growth) in growths.iter().enumerate() {
            let client = &clients[index];
            if client.seen.causes.is_some() || self.phase(client) < Phase::Closing {
                continue;
            }
            let causes = self.causes(client, *growth, &clients, &growths);
            let lost_frames = (client.seen.frames + growth.frames + 1) as u64;
            let client = &mut clients[index];
            client.seen.causes = Some(causes);
            client.seen.lost_frames = lost_frames;
            client.seen.was_full =
                client.seen.blocked_bytes > 0 || client.wire.borrow().write_blocked;
        }
        for client in &mut clients {
            client.seen.phase = self.phase(client);
            let wire = client.wire.borrow();
            let has_moved = wire.written > client.seen.written;
            client.seen.written = wire.written;
            let seen = &mut client.seen;
            if let Some(connection) = self.reactor.connections().get(client.id) {
                let outbox = &connection.session.outbox;
                seen.frames = outbox.frames();
                seen.blocked_bytes = outbox.blocked().1;
                seen.dropped = outbox.dropped();
            }
            seen.stuck_since = match seen.stuck_since {
                _ if !wire.write_blocked => None,
                Some(since) if !has_moved => Some(since),
                _ => Some(self.clock),
            };
        }
        self.clients = clients;
    }

    fn phase(&self, client: &Client) -> Phase {
        let connection = self.reactor.connections().get(client.id);
        match connection.map(|connection| &connection.session) {
            None => Phase::Gone,
            Some(session) if session.is_in_handshake() => Phase::Handshake,
            Some(session) if session.is_open() => Phase::Open,
            Some(_) => Phase::Closing,
        }
    }

    fn growth(&self, client: &Client) -> Growth {
        let mut growth = Growth::default();
        for (routing_key, bytes) in &self.taken {
            let keys = client.ever.iter();
            let frames = keys.filter(|key| means(key.1, routing_key)).count();
            growth.frames += frames;
            growth.bytes += frames * (bytes + ENVELOPE_BYTES_MAX);
        }
        // Replies, pongs, and a notice or ping of the server's own.
        growth.frames += client.asked.len() + client.pings.len() + 4;
        growth.bytes += client.asked.len() * (300 + 80 * client.ever.len())
            + client.pings.len() * 130
            + 4 * 150;
        growth
    }

    /// Every reason that the world knows for the end of this client's session in the turn just over.
    fn causes(
        &self,
        client: &Client,
        growth: Growth,
        clients: &[Client],
        growths: &[Growth],
    ) -> Vec<CloseReason> {
        let hub = &self.reactor.hub;
        let seen = &client.seen;
        let mut causes = client.expects.clone();
        let mut add = |reason, is_so: bool| {
            if is_so {
                causes.push(reason);
            }
        };
        match client.deed {
            Deed::Nothing => {}
            Deed::Fault(reason) => add(reason, true),
            Deed::Noise => {
                for reason in [
                    CloseReason::Protocol,
                    CloseReason::Binary,
                    CloseReason::InvalidText,
                    CloseReason::TooBig,
                    CloseReason::Peer,
                    CloseReason::MessageTimeout,
                ] {
                    add(reason, true);
                }
            }
            Deed::Begun(at) => add(
                CloseReason::MessageTimeout,
                self.awake - at >= self.times.message_timeout - TICK,
            ),
            Deed::Goodbye => add(CloseReason::Peer, true),
        }
        add(CloseReason::Lost, client.has_hung_up());
        add(CloseReason::Drain, self.is_draining);
        add(CloseReason::Http, self.is_draining && !client.upgraded);

        let age = self.clock - seen.connected_at;
        let request_timeout = hub.deadlines.handshake.due(Duration::ZERO);
        // Whoever has not finished his request goes first when the process or his address is full.
        let is_asking = seen.phase == Phase::Handshake;
        let ip = client.seen.ip;
        let of_address = clients.iter().filter(|one| one.seen.ip == ip).count();
        let is_full = clients.len() >= self.connections_max;
        add(CloseReason::Evicted, is_asking && is_full);
        let is_crowded = of_address > self.connections_per_ip_max;
        add(CloseReason::NoPlace, is_asking && is_crowded);
        add(CloseReason::Http, is_asking && (is_full || is_crowded));
        let begun = clients
            .iter()
            .filter(|one| matches!(one.deed, Deed::Begun(_) | Deed::Noise));
        let partial: u64 = begun.map(|one| one.wire.borrow().read).sum();
        let share = PARTIAL_MESSAGES_PER_ADDRESS_MAX * hub.limits.codec.message_bytes_max;
        let is_partial = matches!(client.deed, Deed::Begun(_) | Deed::Noise);
        add(
            CloseReason::PartialsFull,
            is_partial && partial > share as u64,
        );
        let is_late = seen.phase == Phase::Handshake && age >= request_timeout;
        add(CloseReason::HandshakeTimeout, is_late);
        let auth_timeout = hub.deadlines.auth.due(Duration::ZERO);
        let is_unknown = !client.is_known && age >= auth_timeout;
        add(CloseReason::NeverAuthenticated, is_unknown);

        let silent_for = self.awake - client.heard_at;
        if let Some(interval) = self.times.ping_interval {
            let limit = interval * 4 / 5 + self.times.pong_timeout - TICK;
            // It answers at once, unless it does not take what it would answer.
            let answers = client.answers_pings && client.narrow_at < Some(client.heard_at);
            let wire = client.wire.borrow();
            let is_spared = hub.limits.slow_consumer == SlowConsumerPolicy::Drop
                && seen.blocked_bytes > 0
                && !(wire.is_unplugged || wire.is_reset);
            let is_mute = silent_for >= limit && !answers;
            add(CloseReason::Dead, is_mute && !is_spared);
        }
        if let Some(limit) = self.times.idle_timeout {
            // What it sends is not read while it reads nothing itself.
            let was_deaf = client.narrow_at >= Some(client.spoke_at);
            let idle_for = self.awake - client.spoke_at;
            add(CloseReason::Idle, idle_for >= limit || was_deaf);
        }

        let in_a_row = client.refused_in_a_row + client.asked.len();
        let is_flood = hub.limits.rate.is_some() && in_a_row >= REFUSED_IN_A_ROW_MAX;
        add(CloseReason::RateLimit, is_flood);

        if hub.limits.slow_consumer == SlowConsumerPolicy::Close && seen.blocked_bytes > 0 {
            let reaches = seen.blocked_bytes + growth.bytes;
            let is_over = reaches > hub.limits.outbox_bytes_max;
            let stuck_for = seen.stuck_since.map(|since| self.clock - since);
            let is_stuck = stuck_for >= Some(hub.limits.send_timeout);
            add(CloseReason::SlowConsumer, is_over || is_stuck);
        }
        // It was among the full, all of them were over the bound, and nobody larger is left.
        let reach = |client: &Client, growth: &Growth| match client.wire.borrow().write_blocked {
            _ if client.seen.blocked_bytes > 0 => client.seen.blocked_bytes + growth.bytes,
            true => client.seen.frames * (1_500 + ENVELOPE_BYTES_MAX) + growth.bytes,
            false => 0,
        };
        let all: usize = clients
            .iter()
            .zip(growths)
            .map(|(one, of)| reach(one, of))
            .sum();
        let left = clients.iter().filter_map(|client| {
            let session = &self.reactor.connections().get(client.id)?.session;
            Some(session.outbox.blocked().1)
        });
        let is_largest = reach(client, &growth) >= left.max().unwrap_or(0);
        let is_full = all > hub.limits.outboxes_bytes_max;
        add(
            CloseReason::OutboxesFull,
            is_full && is_largest && reach(client, &growth) > 0,
        );
        causes
    }

    /// Checks that the counters of ends tell what became of these clients, whose connections left the table.
    pub(crate) fn judge_the_gone(&mut self, gone: &[Client]) {
        let counts = counted_ends(&self.reactor.hub.metrics);
        let grown: Vec<(CloseReason, u64)> = counts
            .iter()
            .zip(&self.ends_counted)
            .map(|((reason, now), (_, before))| (*reason, now - before))
            .collect();
        self.ends_counted = counts;
        let causes = gone.iter().map(|client| &client.seen.causes);
        let causes = causes.map(|causes| causes.as_deref().unwrap_or_default());
        // Those who were turned away at once never were clients.
        let turned_away: &[CloseReason] = &[CloseReason::NoPlace, CloseReason::Http];
        let turned_away = std::iter::repeat_n(turned_away, std::mem::take(&mut self.turned_away));
        let causes: Vec<&[CloseReason]> = causes.chain(turned_away).collect();
        assert!(
            can_assign(&causes, &grown),
            "ended for {:?}, and the causes were {causes:?}: {gone:?}",
            grown
                .iter()
                .filter(|(_, count)| *count > 0)
                .collect::<Vec<_>>()
        );
    }
}

impl Client {
    /// Takes a close frame: it must be of a reason that the world knows.
    pub(crate) fn judge_close(&mut self, code: u16, text: &[u8]) {
        let causes = self.seen.causes.as_mut();
        let causes = causes.expect("a close frame is sent by a session that is no longer open");
        let known = causes.clone();
        causes.retain(|reason| match reason.frame() {
            Some((its_code, its_text)) => (its_code, its_text.as_bytes()) == (code, text),
            // Its own code comes back.
            None => *reason == CloseReason::Peer && text.is_empty(),
        });
        let text = String::from_utf8_lossy(text);
        assert!(
            !causes.is_empty(),
            "closed with {code} {text}, and the causes were {known:?}: {self:?}"
        );
        assert_eq!(self.closed_with.replace(code), None, "closed twice");
    }
}

/// Whether each of those that ended can be given one of its causes so that every count is used up. An HTTP response is
/// not counted as an end.
fn can_assign(ended: &[&[CloseReason]], counts: &[(CloseReason, u64)]) -> bool {
    let counted: u64 = counts.iter().map(|(_, count)| count).sum();
    let Some(uncounted) = (ended.len() as u64).checked_sub(counted) else {
        return false;
    };
    let mut places = Places {
        ended,
        counts: counts
            .iter()
            .copied()
            .chain([(CloseReason::Http, uncounted)])
            .collect(),
        holders: vec![Vec::new(); counts.len() + 1],
    };
    (0..ended.len()).all(|one| {
        let mut tried = vec![false; places.counts.len()];
        places.find(one, &mut tried)
    })
}

/// Those that ended, each at a reason: a bipartite matching by augmenting paths.
struct Places<'a> {
    ended: &'a [&'a [CloseReason]],
    counts: Vec<(CloseReason, u64)>,
    holders: Vec<Vec<usize>>,
}

impl Places<'_> {
    fn find(&mut self, one: usize, tried: &mut [bool]) -> bool {
        for at in 0..self.counts.len() {
            let (reason, room) = self.counts[at];
            if tried[at] || !self.ended[one].contains(&reason) {
                continue;
            }
            tried[at] = true;
            if (self.holders[at].len() as u64) < room {
                self.holders[at].push(one);
                return true;
            }
            for held in 0..self.holders[at].len() {
                if self.find(self.holders[at][held], tried) {
                    self.holders[at][held] = one;
                    return true;
                }
            }
        }
        false
    }
}
