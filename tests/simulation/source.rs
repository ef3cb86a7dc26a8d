//! The source of events: it binds what the loop asks for, publishes, comes and goes, as its contract
//! ([`blackhole::handoff`]) lets it.

use std::sync::Arc;
use std::time::Instant;

use blackhole::handoff::{AmqpBinding, FromSource, ToSource};
use blackhole::protocol::event::Event;
use serde_json::json;

use crate::model::{ACCOUNTS, CALLS, EVENTS, routes};
use crate::world::World;

impl World {
    pub(crate) fn publish(&mut self) {
        if !self.is_up {
            return;
        }
        for _ in 0..self.rng.u32(1..6) {
            let event = EVENTS[self.rng.usize(0..EVENTS.len())];
            let call = CALLS[self.rng.usize(0..CALLS.len())];
            let account = self.rng.usize(0..ACCOUNTS.len());
            self.publish_one(event, call, account);
        }
    }

    pub(crate) fn publish_one(&mut self, event: &str, call: &str, account: usize) {
        let routing_key = format!("call.{event}.{call}");
        if !self.is_routed("callevt", [event, call]) {
            return self.assert_nobody_is_owed(event, call, account);
        }
        self.next_event += 1;
        let body = json!({"Event-Name": event, "Call-ID": call, "Number": self.next_event, "Account": account,
            "Custom-Channel-Vars": {"Account-ID": ACCOUNTS[account]}, "Padding": "x".repeat(self.rng.usize(0..1500))});
        let body = body.to_string().into_bytes();
        let decoded = Event::decode("callevt".into(), routing_key.clone().into(), body, None)
            .expect("a valid body");
        self.outgoing
            .push_back(FromSource::Event(Box::new(decoded)));
        for client in &mut self.clients {
            for key in &client.ever {
                if key.0 == account && routes(key.1, &routing_key) {
                    let is_due = client.live.contains(key);
                    let events = if is_due {
                        &mut client.due
                    } else {
                        &mut client.maybe
                    };
                    events.entry(*key).or_default().push_back(self.next_event);
                }
            }
        }
    }

    /// Whether a binding is in force that takes these two words behind the exchange's first.
    fn is_routed(&self, exchange: &str, words: [&str; 2]) -> bool {
        let exchange: Arc<str> = exchange.into();
        let has = |first: &str, second: &str| {
            let key = format!("call.{first}.{second}").into();
            let exchange = exchange.clone();
            self.in_force.contains(&AmqpBinding { exchange, key })
        };
        let [first, second] = words;
        has(first, second) || has(first, "*") || has("*", second) || has("*", "*")
    }

    /// The source takes the loop's commands and confirms what it bound.
    pub(crate) fn source_works(&mut self) {
        let mut bound = Vec::new();
        for command in self.source.commands.try_iter().flatten() {
            match command {
                ToSource::Bind(binding) => {
                    let is_new = self.wanted.insert(binding.clone());
                    assert!(is_new, "bound twice: {binding:?}");
                    if self.is_up {
                        self.in_force.insert(binding.clone());
                        bound.push(binding);
                    } else {
                        self.unconfirmed.push(binding);
                    }
                }
                ToSource::Unbind(binding) => {
                    let was_wanted = self.wanted.remove(&binding);
                    assert!(was_wanted, "unbound what was not bound: {binding:?}");
                    self.in_force.remove(&binding);
                    self.unconfirmed
                        .retain(|unconfirmed| *unconfirmed != binding);
                    bound.retain(|one| *one != binding);
                }
                ToSource::Stop => {}
            }
        }
        if !bound.is_empty() {
            self.outgoing.push_back(FromSource::Bound(bound));
        }
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
            self.in_force = self.wanted.clone();
            let bound = std::mem::take(&mut self.unconfirmed);
            if !bound.is_empty() {
                self.outgoing.push_back(FromSource::Bound(bound));
            }
            self.outgoing.push_back(FromSource::Up);
            for client in &mut self.clients {
                client.owed_outages += u64::from(!client.live.is_empty());
            }
        }
    }

    pub(crate) fn come_back(&mut self) {
        if !self.is_up {
            self.source_comes_or_goes();
        }
    }
}
