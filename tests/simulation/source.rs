//! The source of events: it binds what the loop asks for, publishes, comes and goes, as its contract
//! ([`blackhole::handoff`]) lets it.

use std::sync::Arc;
use std::time::Instant;

use blackhole::event::Event;
use blackhole::handoff::{FromSource, Return, ToSource};
use blackhole::routing::amqp_binding::{AmqpBinding, Asked};
use serde_json::{Value, json};

use crate::model::{ACCOUNTS, CALLS, EVENTS, Key, PRESENCE, REALMS, escaped, means, needs};
use crate::world::World;

impl World {
    pub(crate) fn publish(&mut self) {
        if !self.is_up {
            return;
        }
        for _ in 0..self.rng.u32(1..6) {
            let event = EVENTS[self.rng.usize(0..EVENTS.len())];
            let call = CALLS[self.rng.usize(0..CALLS.len())];
            if self.rng.u32(0..4) == 0 {
                let kind = ["dialog", "update"][self.rng.usize(0..2)];
                let realm = self.rng.usize(0..REALMS.len());
                self.publish_presence(kind, call, realm);
            } else {
                let account = self.rng.usize(0..ACCOUNTS.len());
                self.publish_one(event, call, account);
            }
        }
    }

    pub(crate) fn publish_one(&mut self, event: &str, call: &str, account: usize) {
        let routing_key = format!("call.{event}.{call}");
        let body = json!({"Event-Name": event, "Call-ID": call, "Account": account,
            "Custom-Channel-Vars": {"Account-ID": ACCOUNTS[account]}});
        self.publish_body("callevt", &routing_key, body, Some(account));
    }

    /// Publishes an event of a realm, whosever it is.
    pub(crate) fn publish_presence(&mut self, kind: &str, call: &str, realm: usize) {
        let routing_key = format!("{kind}.{}.{call}", escaped(realm));
        let body = json!({"Event-Name": kind, "Call-ID": call, "Realm": realm});
        self.publish_body("presence", &routing_key, body, self.rights().owner(realm));
    }

    fn publish_body(&mut self, exchange: &str, key: &str, mut body: Value, account: Option<usize>) {
        if !self.is_routed(exchange, key) {
            return self.assert_nobody_is_owed(key, account);
        }
        self.next_event += 1;
        body["Number"] = self.next_event.into();
        body["Padding"] = "x".repeat(self.rng.usize(0..1500)).into();
        let body = body.to_string().into_bytes();
        let decoded = Event::decode(exchange.into(), key.into(), body, None);
        let event = decoded.expect("a valid body");
        self.outgoing.push_back(FromSource::Event(Arc::new(event)));
        for client in &mut self.clients {
            for one in &client.ever {
                // Until the loop takes it, a realm may have moved to any account.
                let is_presence = PRESENCE.contains(&one.1);
                if (Some(one.0) == account || is_presence) && means(one.1, key) {
                    let is_due = Some(one.0) == account && client.live.contains(one);
                    let events = if is_due {
                        &mut client.due
                    } else {
                        &mut client.maybe
                    };
                    events.entry(*one).or_default().push_back(self.next_event);
                }
            }
        }
    }

    /// Whether a binding is in force that takes this key of three words. Each of the last two may be a wildcard.
    fn is_routed(&self, exchange: &str, key: &str) -> bool {
        let exchange: Arc<str> = exchange.into();
        let words: Vec<&str> = key.split('.').collect();
        [words[1], "*"].into_iter().any(|second| {
            [words[2], "*"].into_iter().any(|third| {
                let key = format!("{}.{second}.{third}", words[0]).into();
                let exchange = exchange.clone();
                self.in_force.contains(&AmqpBinding { exchange, key })
            })
        })
    }

    /// The source takes the loop's commands and answers them: at once, or some of them later if it dawdles.
    pub(crate) fn source_works(&mut self) {
        let mut bound = Vec::new();
        let commands: Vec<ToSource> = self.source.commands.try_iter().flatten().collect();
        for command in commands {
            match command {
                ToSource::Bind {
                    binding, ticket, ..
                } => {
                    // One that is known already has come and gone while nobody listened.
                    self.forget(&binding);
                    self.wanted.insert(binding.clone(), ticket);
                    self.unconfirmed.push(binding);
                }
                ToSource::Join { binding, .. } => {
                    assert!(
                        self.wanted.contains_key(&binding),
                        "{binding:?} is not known"
                    );
                }
                ToSource::Unbind(binding) => {
                    let was_wanted = self.forget(&binding);
                    assert!(was_wanted, "unbound what was not bound: {binding:?}");
                }
                ToSource::Stop => {}
            }
        }
        if self.is_up {
            for binding in std::mem::take(&mut self.unconfirmed) {
                if self.dawdles && self.rng.u32(0..3) == 0 {
                    self.unconfirmed.push(binding);
                } else {
                    self.in_force.insert(binding.clone());
                    bound.push(binding);
                }
            }
        }
        if !bound.is_empty() {
            self.outgoing
                .push_back(FromSource::Bound(self.asked(bound)));
        }
    }

    /// As if it had never been asked for; whether it had been.
    fn forget(&mut self, binding: &AmqpBinding) -> bool {
        self.in_force.remove(binding);
        self.lost.remove(binding);
        self.unconfirmed.retain(|one| one != binding);
        self.wanted.remove(binding).is_some()
    }

    /// These bindings, with the tickets of their latest `Bind`.
    pub(crate) fn asked(&self, bindings: Vec<AmqpBinding>) -> Vec<Asked> {
        let asked = bindings.into_iter().map(|binding| Asked {
            ticket: self.wanted.get(&binding).copied().unwrap_or_default(),
            binding,
        });
        asked.collect()
    }

    pub(crate) fn source_comes_or_goes(&mut self) {
        self.source_works();
        if self.is_up {
            self.is_up = false;
            self.in_force.clear();
            self.outgoing.push_back(FromSource::Down {
                since: Instant::now(),
            });
        } else {
            self.is_up = true;
            let bound = std::mem::take(&mut self.unconfirmed);
            let wanted = self.wanted.keys();
            self.in_force = wanted
                .filter(|one| !self.lost.contains(one))
                .cloned()
                .collect();
            if !bound.is_empty() {
                self.outgoing
                    .push_back(FromSource::Bound(self.asked(bound)));
            }
            self.outgoing.push_back(FromSource::Up(Return::Anew));
            self.owe_a_notice(|_| true);
        }
    }

    /// What was in force is so no longer, and the source says so; sometimes again.
    pub(crate) fn lose(&mut self) {
        let mut bindings: Vec<AmqpBinding> = self.in_force.iter().cloned().collect();
        bindings.sort();
        bindings.retain(|_| self.rng.u32(0..3) == 0);
        for binding in &bindings {
            self.in_force.remove(binding);
            self.lost.insert(binding.clone());
        }
        if self.rng.bool() {
            bindings.extend(self.lost.iter().next().cloned());
        }
        if !bindings.is_empty() {
            self.outgoing
                .push_back(FromSource::Lost(self.asked(bindings)));
        }
    }

    /// What was lost is in force again; sometimes with what always was.
    pub(crate) fn heal(&mut self) {
        if !self.is_up {
            return;
        }
        let mut bound: Vec<AmqpBinding> = self.lost.drain().collect();
        bound.sort();
        if bound.is_empty() {
            return;
        }
        self.owe_a_notice(|key| bound.iter().any(|one| needs(key.1, &one.key)));
        self.in_force.extend(bound.iter().cloned());
        if self.rng.bool() {
            bound.push(bound[0].clone());
        }
        self.outgoing
            .push_back(FromSource::Bound(self.asked(bound)));
    }

    /// The broker may have dropped events.
    pub(crate) fn overflow(&mut self) {
        if self.is_up {
            let since = Instant::now();
            self.outgoing.push_back(FromSource::Overflowed { since });
            self.owe_a_notice(|_| true);
        }
    }

    /// Whoever has such a subscription is to be told of an outage.
    fn owe_a_notice(&mut self, concerns: impl Fn(&Key) -> bool) {
        for client in &mut self.clients {
            client.owed_outages += u64::from(client.live.iter().any(&concerns));
        }
    }

    pub(crate) fn come_back(&mut self) {
        if !self.is_up {
            self.source_comes_or_goes();
        }
    }
}
