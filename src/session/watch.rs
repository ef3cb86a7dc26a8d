//! What the sweep does with a session: it looks whether the peer is there, and asks it.

use super::clock::Tick;
use super::hub::{Context, Hub};
use super::liveness::{Health, Liveness};
use super::{Phase, Session};

impl Session {
    /// The sweep's look at it: whether its peer is silent, dead, idle, or does not finish what it began. What is to
    /// be done about that is the caller's to do: [`Session::ping`] or [`Session::close`]. O(1).
    pub fn examine(&mut self, cx: &Context<'_>) -> Health {
        let (is_deaf, is_blocked) = (!self.wants_bytes(), self.outbox.is_blocked());
        let Phase::Open { extra, life } = &mut self.phase else {
            return Health::Fine;
        };
        let (rules, now) = (&cx.hub.limits.liveness, cx.hub.waking.tick());
        let codec = extra.as_mut().map(|extra| &mut extra.codec);
        let mut codec = codec.filter(|codec| !codec.is_idle());
        if is_deaf {
            // What it sends is not read: it cannot finish a message, and is not silent. But one that takes nothing
            // either has to be found dead.
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
            // It is in the middle of saying something, which has a limit of its own.
            life.on_own_frame(now);
        }
        life.judge(rules, is_blocked, cx.id, now)
    }

    /// Asks the peer of an open session whether it is there. No allocation unless frames wait for it.
    pub fn ping(&mut self, cx: &mut Context<'_>) {
        let is_blocked = self.outbox.is_blocked();
        if let Phase::Open { life, .. } = &mut self.phase {
            life.on_ping(is_blocked, cx.hub.waking.tick());
            cx.hub.metrics.pings_sent_total += 1;
            self.push(cx.hub.ping.clone(), cx);
        }
    }

    /// Keeps an open session that takes nothing and says nothing until the next look, as if its ping had just been put
    /// into its full outbox, where one waits already.
    pub fn spare(&mut self, hub: &Hub) {
        if let Phase::Open { life, .. } = &mut self.phase {
            life.on_ping(true, hub.waking.tick());
        }
    }
}
