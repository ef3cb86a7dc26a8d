//! What the worker needs of a broker: a trait, so that the worker is tested without a broker and without the AMQP client.

use std::sync::Arc;

use crate::routing::amqp_binding::AmqpBinding;

/// What became of one bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is in force.
    InForce,
    /// The broker refuses it or its exchange. Why, for the log, unless the same was told of its exchange before.
    Refused(Option<String>),
    /// It was not tried after all.
    Untried,
    /// Its exchange is not there any more, so neither is any binding of it.
    ExchangeGone,
}

/// The connection is gone, or of no more use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// Why, for the log.
    Because(String),
    /// The broker's user lacks a permission without which there are no events at all. Which, for the log.
    Barred(Box<str>),
    /// The client's thread has ended; what closing the connection returns tells why.
    ClientGone,
}

/// A broker, for the process's own queue. Each call blocks until the broker has answered; an error says that the
/// connection is gone.
pub(super) trait Broker {
    /// Binds all of `batch` and returns what became of each.
    fn bind(&mut self, batch: Vec<AmqpBinding>) -> Result<Vec<(AmqpBinding, Answer)>, Lost>;
    /// Takes all of `batch` back.
    fn unbind(&mut self, batch: &[AmqpBinding]) -> Result<(), Lost>;
    /// Binds once more what is in force: without effect where it is, and otherwise it is again. Returns the exchanges
    /// that are gone.
    fn rebind(&mut self, batch: &[AmqpBinding]) -> Result<Vec<Arc<str>>, Lost>;
    /// Returns how many messages wait in the queue; none when it was deleted.
    fn queue_length(&mut self) -> Result<Option<u32>, Lost>;
    /// Asks which exchanges there will be no events of, because the user lacks a permission. Returns a line for each, and
    /// changes nothing on the broker.
    fn barred(&mut self) -> Result<Vec<Box<str>>, Lost>;
    /// Looks at refused exchanges again when they are next named (AMQP rail 8: every 5 s).
    fn forget_refused(&mut self);
}
