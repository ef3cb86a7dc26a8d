//! A subscribe that waits for the broker: what it asks for, and its leases on the AMQP bindings that it needs.

use std::sync::Arc;
use std::time::Duration;

use arcstr::ArcStr;

use crate::account::{AccountId, Scope};
use crate::protocol::command::Resume;
use crate::routing::amqp_binding::AmqpBinding;
use crate::routing::broker_bindings::BindingId;
use crate::routing::families::{Families, Resolved, Rights};
use crate::routing::month::ActiveMonths;
use crate::routing::waiters::WaitId;

/// A subscribe that waits for the broker.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The request id of the reply.
    pub(super) reply_id: Box<str>,
    /// The request id of the events; `None`: the client gave none.
    pub(super) request_id: Option<Box<str>>,
    /// Whether the stream is asked for what came after its cursor.
    pub(super) stream: AskedOfStream,
    /// The client bindings.
    pub(super) wanted: Wanted,
    /// From where events are wanted; `None`: from now on, and nothing is to be told of it.
    pub(super) resume: Option<Resume>,
    /// The months that the leases are for; `None`: there is no lease yet.
    pub(super) months: Option<ActiveMonths>,
    /// The AMQP bindings acquired on its behalf, so that they stay wanted: each once, sorted.
    pub(super) leases: Vec<Lease>,
    /// How many leases were not in force at the last check, less those that have been confirmed since.
    pub(super) outstanding: usize,
    /// When it is given up.
    pub(super) due: Duration,
}

/// How far a subscribe is with the stream of the history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum AskedOfStream {
    /// Not yet, or it does not have to be.
    #[default]
    No,
    /// It waits, with all its AMQP bindings in force.
    Waits,
    /// The stream does not answer.
    GivenUp,
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) binding: AmqpBinding,
    pub(super) id: BindingId,
    /// The wait for it, which may be over; `None`: it was in force.
    pub(super) wait: Option<WaitId>,
}

/// Client bindings that an identity may have for an account.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) scope: Scope,
    pub(super) superduper: bool,
    pub(super) realm: Option<Arc<str>>,
    /// The account that the AMQP bindings count for.
    pub(super) account: Option<AccountId>,
    /// Each binding once; each of them resolves.
    pub(super) bindings: Vec<Box<str>>,
}

impl Wanted {
    pub(super) fn rights(&self) -> Rights<'_> {
        Rights {
            superduper: self.superduper,
            realm: self.realm.as_deref(),
        }
    }

    /// The bindings, resolved. They resolved before, so none is left out, but those of a family that was stopped meanwhile
    /// and whose subscribes are about to be refused.
    pub(super) fn resolved<'a>(
        &'a self,
        families: &'a Families,
    ) -> impl Iterator<Item = Resolved<'a>> + Clone {
        self.bindings
            .iter()
            .filter_map(|binding| families.resolve(binding, self.scope, self.rights()).ok())
    }
}

impl Waiting {
    /// Heap bytes, without those of the texts that the table of AMQP bindings holds in any case. Linear in what it asks for.
    pub(super) fn bytes(&self) -> usize {
        let request_id = self.request_id.as_ref().map_or(0, |id| id.len());
        let texts = self.wanted.bindings.iter().map(|text| text.len());
        size_of::<Self>()
            + self.reply_id.len()
            + request_id
            + texts.sum::<usize>()
            + self.wanted.bindings.capacity() * size_of::<Box<str>>()
            + self.leases.capacity() * size_of::<Lease>()
    }

    /// How many client bindings it asks for.
    pub(super) fn wanted(&self) -> usize {
        self.wanted.bindings.len()
    }

    /// How many AMQP bindings it holds.
    pub(super) fn leases(&self) -> usize {
        self.leases.len()
    }

    /// The shared text of the lease on this AMQP binding. O(log n) in the leases.
    pub(super) fn key(&self, exchange: &str, key: &str) -> Option<&ArcStr> {
        let place = |lease: &Lease| lease_order(&lease.binding).cmp(&(exchange, key));
        let at = self.leases.binary_search_by(place).ok()?;
        Some(&self.leases.get(at)?.binding.key)
    }
}

pub(super) fn lease_order(binding: &AmqpBinding) -> (&str, &str) {
    #[cfg(test)]
    crate::steps::step();
    (&binding.exchange, binding.key.as_str())
}

/// How far the broker is with the AMQP bindings that a subscribe needs.
pub(super) enum Progress {
    /// All are in force.
    InForce,
    /// Some are not in force yet.
    Waits,
    /// It refuses one.
    Refused,
}
