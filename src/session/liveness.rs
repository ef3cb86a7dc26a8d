//! Whether the peer of a session is still there, and still sends something. The sweep decides by it; it takes 7 bytes a
//! session and no timer.
//!
//! ```text
//!        bytes came                    silent for ping_interval_ms           silent for pong_timeout_ms
//!  Heard <--------- any state   Heard ----------------------------> Pinged -----------------------------> dead
//!                                 |                                   ^
//!                                 |  the same, its outbox full        | the outbox is no longer full
//!                                 +-----------------------------> PingWaits --silent for both times-----> dead
//! ```
//!
//! Invariants: only what the peer sends shows that it lives, not what it takes. Time is counted in [`Tick`]s of a clock
//! that stands still while the process does, so no peer is found dead that had no chance to answer. Two 16-bit ticks are
//! never compared after a wrap, because the session is pinged, or dead, long before ([`PERIOD_MAX`]).

use std::time::Duration;

use super::clock::{TICK, Tick};
use super::id::ConnId;
use crate::limits::PERIOD_MAX;

const _: () = assert!(
    2 * PERIOD_MAX.as_millis() / TICK.as_millis() < (u16::MAX / 4 * 3) as u128,
    "a silence is told before its ticks wrap"
);

/// The payload of the server's pings. A pong with this payload is an answer; any other pong is unsolicited.
pub const PING_PAYLOAD: &[u8] = b"alive";

/// The times that the operator allows, in ticks. `None`: off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LivenessRules {
    ping: Option<PingRule>,
    idle: Option<u32>,
    message: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PingRule {
    /// `ping_interval_ms`.
    interval: u16,
    /// `pong_timeout_ms`.
    pong: u16,
}

impl LivenessRules {
    /// Times are rounded up to whole ticks. `ping_interval` and `pong_timeout` are at most [`PERIOD_MAX`].
    #[must_use]
    pub fn new(
        ping_interval: Option<Duration>,
        pong_timeout: Duration,
        idle_timeout: Option<Duration>,
        message_timeout: Duration,
    ) -> Self {
        let ticks = |time: Duration| {
            u32::try_from(time.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u32::MAX)
        };
        let short = |time: Duration| u16::try_from(ticks(time.min(PERIOD_MAX))).unwrap_or(u16::MAX);
        Self {
            ping: ping_interval.map(|interval| PingRule {
                interval: short(interval),
                pong: short(pong_timeout),
            }),
            idle: idle_timeout.map(ticks),
            message: ticks(message_timeout),
        }
    }

    /// Whether every open session must be checked from time to time.
    #[must_use]
    pub fn concern_every_session(&self) -> bool {
        self.ping.is_some() || self.idle.is_some()
    }

    /// Whether a message whose first bytes came at `begun` is late.
    #[must_use]
    pub fn is_message_late(&self, begun: Tick, now: Tick) -> bool {
        // The message may have begun at the end of its tick.
        now.since(begun) > self.message
    }
}

impl PingRule {
    /// The silence, in ticks, after which the session `id` is pinged: the interval plus or minus a fifth. It is always the
    /// same for a session, and evenly spread over neighbouring slots and over the connections that use one slot in turn,
    /// so sessions that connected together are not pinged together.
    fn due_after(self, id: ConnId) -> u16 {
        let mixed = (id.slot ^ id.generation.rotate_left(16)).wrapping_mul(0x9E37_79B1) >> 16;
        let spread = u32::from(self.interval) * 2 / 5;
        self.interval - self.interval / 5 + ((spread * mixed) >> 16) as u16
    }
}

/// Since when the peer of a session is silent.
///
/// Made of bytes only, so that it fits beside the tag of a session's phase.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    silence: Silence,
    /// When `silence` last changed ([`Tick::short`]).
    since: [u8; 2],
    /// When the peer last completed a frame that was no answer to our ping ([`Tick::to_mark`]).
    spoke: [u8; 4],
}

const _: () = assert!(size_of::<Liveness>() == 7 && align_of::<Liveness>() == 1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    /// Bytes came, and no ping is outstanding.
    Heard,
    /// A ping was written, or was about to be.
    Pinged,
    /// A ping waits in a full outbox.
    PingWaits,
}

/// What a check of a session found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing has to be done.
    Fine,
    /// The peer is silent: ping it ([`Liveness::on_ping`]).
    Silent,
    /// The peer did not answer a ping: close the session ([`super::close::CloseReason::Dead`]).
    Dead,
    /// The peer has sent no frame of its own for `idle_timeout_ms`.
    Idle,
    /// The peer has begun a message and not finished it in `message_timeout_ms`.
    MessageLate,
}

impl Health {
    /// Whether the session must be closed, unless a last read finds bytes of the peer.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        match self {
            Self::Fine | Self::Silent => false,
            Self::Dead | Self::Idle | Self::MessageLate => true,
        }
    }
}

impl Liveness {
    /// The liveness of a peer that has just sent something.
    #[must_use]
    pub fn new(now: Tick) -> Self {
        Self {
            silence: Silence::Heard,
            since: now.short().to_ne_bytes(),
            spoke: now.to_mark().to_ne_bytes(),
        }
    }

    /// The peer sent bytes of any kind.
    pub fn on_bytes(&mut self, now: Tick) {
        self.silence = Silence::Heard;
        self.since = now.short().to_ne_bytes();
    }

    /// The peer completed a frame that was no answer to our ping.
    pub fn on_own_frame(&mut self, now: Tick) {
        self.spoke = now.to_mark().to_ne_bytes();
    }

    /// When the peer last completed a frame that was no answer to our ping.
    #[must_use]
    pub fn spoke(&self) -> Tick {
        Tick::from_mark(u32::from_ne_bytes(self.spoke))
    }

    /// A ping was put into the outbox. `waits`: the outbox is full.
    pub fn on_ping(&mut self, waits: bool, now: Tick) {
        self.silence = if waits {
            Silence::PingWaits
        } else {
            Silence::Pinged
        };
        self.since = now.short().to_ne_bytes();
    }

    /// Judges the session `id`. `is_blocked`: its outbox is full.
    pub fn judge(
        &mut self,
        rules: &LivenessRules,
        is_blocked: bool,
        id: ConnId,
        now: Tick,
    ) -> Health {
        if rules
            .idle
            .is_some_and(|idle| now.since(self.spoke()) > idle)
        {
            return Health::Idle;
        }
        let Some(rule) = rules.ping else {
            return Health::Fine;
        };
        let silent_for = now.short().wrapping_sub(u16::from_ne_bytes(self.since));
        match self.silence {
            Silence::Heard if silent_for >= rule.due_after(id) => Health::Silent,
            Silence::Pinged if silent_for >= rule.pong => Health::Dead,
            Silence::PingWaits if !is_blocked => {
                self.on_ping(false, now);
                Health::Fine
            }
            Silence::PingWaits if silent_for >= rule.interval + rule.pong => Health::Dead,
            Silence::Heard | Silence::Pinged | Silence::PingWaits => Health::Fine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rules() -> LivenessRules {
        LivenessRules::new(
            Some(25 * SECOND),
            10 * SECOND,
            Some(3600 * SECOND),
            10 * SECOND,
        )
    }

    fn id(slot: u32, generation: u32) -> ConnId {
        ConnId { slot, generation }
    }

    /// The slot 0 of generation 0 has the shortest interval: 20 s.
    const FIRST: ConnId = ConnId {
        slot: 0,
        generation: 0,
    };

    #[test]
    fn a_silent_peer_is_pinged_and_found_dead_at_its_times_and_not_before() {
        for start in [0, u32::from(u16::MAX) - 100, u32::MAX - 250] {
            let at = |ticks: u32| Tick::from_mark(start.wrapping_add(ticks));
            let mut life = Liveness::new(at(0));
            let look = |life: &mut Liveness, ticks| life.judge(&rules(), false, FIRST, at(ticks));
            assert_eq!(look(&mut life, 199), Health::Fine);
            assert_eq!(look(&mut life, 200), Health::Silent);
            assert_eq!(look(&mut life, 201), Health::Silent);
            life.on_ping(false, at(201));
            assert_eq!(look(&mut life, 300), Health::Fine);
            assert_eq!(look(&mut life, 301), Health::Dead);
            let mut saved = life;
            saved.on_bytes(at(301));
            assert_eq!(look(&mut saved, 500), Health::Fine);
            assert_eq!(look(&mut saved, 501), Health::Silent);
        }
    }

    #[test]
    fn a_ping_that_waits_in_a_full_outbox_starts_its_clock_when_it_is_written_but_not_for_ever() {
        let mut life = Liveness::new(Tick::from_mark(0));
        life.on_ping(true, Tick::from_mark(200));
        let look = |life: &mut Liveness, is_blocked, ticks| {
            life.judge(&rules(), is_blocked, FIRST, Tick::from_mark(ticks))
        };
        assert_eq!(look(&mut life, true, 549), Health::Fine);
        assert_eq!(look(&mut life, true, 550), Health::Dead);
        // Written just before: it has the whole time to answer.
        assert_eq!(look(&mut life, false, 550), Health::Fine);
        assert_eq!(look(&mut life, true, 649), Health::Fine);
        assert_eq!(look(&mut life, true, 650), Health::Dead);
    }

    #[test]
    fn only_frames_of_its_own_keep_a_client_from_the_idle_limit() {
        let mut life = Liveness::new(Tick::from_mark(0));
        let look = |life: &mut Liveness, ticks| {
            life.on_bytes(Tick::from_mark(ticks));
            life.judge(&rules(), false, FIRST, Tick::from_mark(ticks))
        };
        assert_eq!(look(&mut life, 36_000), Health::Fine);
        assert_eq!(look(&mut life, 36_001), Health::Idle);
        life.on_own_frame(Tick::from_mark(36_001));
        assert_eq!(look(&mut life, 72_001), Health::Fine);
        assert_eq!(look(&mut life, 72_002), Health::Idle);
    }

    #[test]
    fn what_is_off_never_ends_a_session() {
        let off = LivenessRules::new(None, SECOND, None, SECOND);
        assert!(!off.concern_every_session());
        let mut life = Liveness::new(Tick::from_mark(0));
        for ticks in [1, 1 << 15, 1 << 16, u32::MAX] {
            assert_eq!(
                life.judge(&off, true, FIRST, Tick::from_mark(ticks)),
                Health::Fine
            );
        }
    }

    #[test]
    fn a_message_has_its_whole_time_and_no_more() {
        for start in [0, u32::MAX - 50] {
            let at = |ticks: u32| Tick::from_mark(start.wrapping_add(ticks));
            assert!(!rules().is_message_late(at(0), at(100)));
            assert!(rules().is_message_late(at(0), at(101)));
        }
    }

    #[test]
    fn pings_of_sessions_that_connected_together_are_spread_over_two_fifths_of_the_interval() {
        const SESSIONS: u32 = 19_000;
        let rule = rules().ping.expect("on");
        for generation in [|slot| slot, |_| 7, |slot| 1_000_000 + 3 * slot] {
            let mut due = [0; 400];
            for slot in 0..SESSIONS {
                due[usize::from(rule.due_after(id(slot, generation(slot))))] += 1;
            }
            let (early, late) = (&due[..200], &due[300..]);
            assert!(early.iter().chain(late).all(|count| *count == 0), "±20 %");
            let most = due.iter().max().copied();
            assert!(most <= Some(2 * SESSIONS / 100), "{most:?} in one tick");
        }
        // Short intervals and the longest stay within their types.
        for interval in [1, 3, (PERIOD_MAX.as_millis() / 100) as u16] {
            let rule = PingRule { interval, pong: 1 };
            for slot in 0..1000 {
                let due = u32::from(rule.due_after(id(slot, slot)));
                assert!(due * 5 >= u32::from(interval) * 4 && due * 5 <= u32::from(interval) * 6);
                assert!(due > 0);
            }
        }
    }
}
