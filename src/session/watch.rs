//! What the sweep does with a session: it checks whether the peer is there, and pings it.

use super::clock::Tick;
use super::hub::{Context, Hub};
use super::liveness::{Health, Liveness};
use super::{Phase, Session};

impl Session {
    /// Checks whether the peer is silent, dead or idle, or does not finish what it began. The caller acts on the result, by
    /// [`Session::ping`] or [`Session::close`]. O(1).
    pub fn examine(&mut self, cx: &Context<'_>) -> Health {
        let (is_deaf, is_blocked) = (!self.wants_bytes(), self.outbox.is_blocked());
        let Phase::Open { rare, life } = &mut self.phase else {
            return Health::Fine;
        };
        let (rules, now) = (&cx.hub.limits.liveness, cx.hub.waking.tick());
        let codec = rare.as_mut().map(|rare| &mut rare.codec);
        let mut codec = codec.filter(|codec| !codec.is_idle());
        if is_deaf {
            // The socket is not read, so the peer cannot finish a message and is not silent. But a peer that takes nothing
            // either must still be found dead.
            if let Some(codec) = &mut codec {
                codec.mark_anew(now.to_mark());
            }
            if !is_blocked {
                *life = Liveness::new(now);
            }
        }
        if let Some(codec) = codec {
            if let Some(begun) = codec.mark()
                && rules.is_message_late(Tick::from_mark(begun), now)
            {
                return Health::MessageLate;
            }
            // An unfinished message has a time limit of its own, so its sender is not idle.
            life.on_own_frame(now);
        }
        life.judge(rules, is_blocked, cx.id, now)
    }

    /// Pings the peer of an open session. No allocation unless frames wait for it.
    pub fn ping(&mut self, cx: &mut Context<'_>) {
        let is_blocked = self.outbox.is_blocked();
        if let Phase::Open { life, .. } = &mut self.phase {
            life.on_ping(is_blocked, cx.hub.waking.tick());
            cx.hub.metrics.pings_sent_total += 1;
            self.push(cx.hub.ping.clone(), cx);
        }
    }

    /// Gives an open session, whose peer takes nothing and sends nothing, time until the next check: as if the ping that
    /// waits in its full outbox had just been put there.
    pub fn spare(&mut self, hub: &Hub) {
        if let Phase::Open { life, .. } = &mut self.phase {
            life.on_ping(true, hub.waking.tick());
        }
    }
}
