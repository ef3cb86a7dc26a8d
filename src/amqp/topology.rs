//! What we declare to the broker: the process's own queue, the exchanges that wanted bindings name, the bindings.
//!
//! Everything here happens on a channel of its own, so that a refusal (404, 403, 406), which closes the channel,
//! leaves the consumer alive (AMQP rail 7): the channel is opened again and the work goes on. An exchange is looked
//! at when a binding first names it, together with that first binding; what the broker refuses is marked, and the
//! others never notice (rail 8).

use std::collections::HashMap;
use std::sync::Arc;

use amiquip::{
    AmqpValue, Channel, Connection, ExchangeDeclareOptions, ExchangeType, FieldTable,
    QueueDeclareOptions,
};

use super::bindings::Bindings;
use super::counters::{AmqpCounters, add, increment};
use crate::handoff::AmqpBinding;
use crate::routing::families::{Exchange, ExchangeKind};

/// Bindings pipelined before the one answer that confirms them all is awaited: some 130 ms at a broker's 3,800
/// bindings a second, and the longest that a new binding waits behind a burst.
pub(super) const BATCH: usize = 512;
/// `reply-code` of a declaration whose properties differ from the existing one's.
const PRECONDITION_FAILED: u16 = 406;
const NOT_FOUND: u16 = 404;

/// The broker's refusal of one call: it closed the channel, and nothing else.
#[derive(Debug)]
struct Refusal {
    code: u16,
    text: String,
}

/// Declares the queue that dies with the connection: server-named, exclusive, auto-delete (AMQP rail 6). Answers its
/// name.
pub(super) fn declare_queue(channel: &Channel, max_length: Option<u32>) -> amiquip::Result<String> {
    let mut arguments = FieldTable::new();
    if let Some(max_length) = max_length {
        arguments.insert(
            "x-max-length".into(),
            AmqpValue::LongLongInt(max_length.into()),
        );
    }
    let options = QueueDeclareOptions {
        durable: false,
        exclusive: true,
        auto_delete: true,
        arguments,
    };
    Ok(channel.queue_declare("", options)?.name().to_owned())
}

/// The binding side of one connection.
pub(super) struct Topology<'a> {
    connection: &'a mut Connection,
    channel: Channel,
    queue: String,
    specs: &'a [Exchange],
    /// Exchanges looked at on this connection: admitted, or refused until the next retry.
    admitted: HashMap<Arc<str>, bool>,
    counters: &'a AmqpCounters,
    /// Refusals since the caller last took them, for the log.
    refusals: Vec<String>,
}

impl<'a> Topology<'a> {
    pub(super) fn new(
        connection: &'a mut Connection,
        queue: String,
        specs: &'a [Exchange],
        counters: &'a AmqpCounters,
    ) -> amiquip::Result<Self> {
        let channel = connection.open_channel(None)?;
        Ok(Self {
            connection,
            channel,
            queue,
            specs,
            admitted: HashMap::new(),
            counters,
            refusals: Vec::new(),
        })
    }

    /// Binds at most [`BATCH`] of what is queued and says so to `bindings`. Blocks until the broker has put them in
    /// force or refused them.
    ///
    /// # Errors
    /// The connection is gone.
    pub(super) fn bind_batch(&mut self, bindings: &mut Bindings) -> amiquip::Result<()> {
        let mut pipelined = Vec::new();
        for binding in bindings.take_batch(BATCH) {
            match self.admitted.get(&binding.exchange) {
                Some(true) => pipelined.push(binding),
                Some(false) => bindings.refuse(binding),
                None => {
                    let admitted = self.admit(&binding)?;
                    self.admitted.insert(binding.exchange.clone(), admitted);
                    if admitted {
                        self.bound(bindings, binding);
                    } else {
                        bindings.refuse(binding);
                    }
                }
            }
        }
        if pipelined.is_empty() {
            return Ok(());
        }
        match self.pipeline(&pipelined)? {
            Ok(()) => pipelined
                .into_iter()
                .for_each(|binding| self.bound(bindings, binding)),
            Err(_) => self.bind_singly(bindings, pipelined)?,
        }
        Ok(())
    }

    /// After a refused batch: one by one, to find which the broker refuses. An exchange that has vanished is looked
    /// at anew when the next batch names it.
    fn bind_singly(
        &mut self,
        bindings: &mut Bindings,
        batch: Vec<AmqpBinding>,
    ) -> amiquip::Result<()> {
        for binding in batch {
            if self.admitted.get(&binding.exchange) != Some(&true) {
                bindings.requeue(binding);
                continue;
            }
            match self.bind_one(&binding)? {
                Ok(()) => self.bound(bindings, binding),
                Err(refusal) if refusal.code == NOT_FOUND => {
                    self.admitted.remove(&binding.exchange);
                    bindings.exchange_vanished(&binding.exchange);
                    bindings.requeue(binding);
                }
                Err(refusal) => {
                    self.refused(&binding.exchange, &refusal);
                    bindings.refuse(binding);
                }
            }
        }
        Ok(())
    }

    /// Binds once more what is in force: without effect where it is, and otherwise it is again. Of an exchange that
    /// is gone, all bindings are queued anew.
    ///
    /// # Errors
    /// The connection is gone.
    pub(super) fn rebind(
        &mut self,
        bindings: &mut Bindings,
        batch: &[AmqpBinding],
    ) -> amiquip::Result<()> {
        if batch.is_empty() || self.pipeline(batch)?.is_ok() {
            return Ok(());
        }
        for binding in batch {
            if self.admitted.get(&binding.exchange) == Some(&true)
                && let Err(refusal) = self.bind_one(binding)?
                && refusal.code == NOT_FOUND
            {
                self.admitted.remove(&binding.exchange);
                bindings.exchange_vanished(&binding.exchange);
            }
        }
        Ok(())
    }

    /// Binds all of `batch`, which the broker answers once.
    fn pipeline(&mut self, batch: &[AmqpBinding]) -> amiquip::Result<Result<(), Refusal>> {
        let queue = self.queue.clone();
        self.attempt(|channel| {
            for binding in batch {
                channel.queue_bind_nowait(
                    &*queue,
                    &*binding.exchange,
                    &*binding.key,
                    FieldTable::new(),
                )?;
            }
            // Any call that is answered will do: the broker has then done all that came before it.
            channel.qos(0, 0, false)
        })
    }

    /// Refused exchanges are looked at again when next named (AMQP rail 8: every 5 s).
    pub(super) fn forget_refused(&mut self) {
        self.admitted.retain(|_, admitted| *admitted);
    }

    /// Takes one binding back.
    ///
    /// # Errors
    /// The connection is gone.
    pub(super) fn unbind(&mut self, binding: &AmqpBinding) -> amiquip::Result<()> {
        let queue = self.queue.clone();
        // Refused: exchange and binding are gone already.
        let _ = self.attempt(|channel| {
            channel.queue_unbind(queue, &*binding.exchange, &*binding.key, FieldTable::new())
        })?;
        increment(&self.counters.unbinds);
        Ok(())
    }

    /// Messages that wait in the queue on the broker's side; none when the queue was deleted.
    ///
    /// # Errors
    /// The connection is gone.
    pub(super) fn queue_length(&mut self) -> amiquip::Result<Option<u32>> {
        let queue = self.queue.clone();
        let answer = self.attempt(|channel| {
            channel
                .queue_declare_passive(queue)
                .map(|queue| queue.declared_message_count())
        })?;
        Ok(answer.ok().flatten())
    }

    /// What was refused since the last call, one text an exchange.
    pub(super) fn take_refusals(&mut self) -> Vec<String> {
        std::mem::take(&mut self.refusals)
    }

    /// Sees to it that the exchange of `first` exists with its type, and binds `first`.
    fn admit(&mut self, first: &AmqpBinding) -> amiquip::Result<bool> {
        let answer = match self.declare(&first.exchange)? {
            Ok(()) => self.bind_one(first)?,
            refused => refused,
        };
        if let Err(refusal) = &answer {
            self.refused(&first.exchange, refusal);
        }
        Ok(answer.is_ok())
    }

    /// Looks first, because one may exist with other properties than ours; creates it when absent (PROTOCOL 6).
    /// Looking does not compare the type, and bindings to an exchange of another type never match: so the
    /// declaration is always tried, and of its refusals only an unequal type counts when the exchange exists. The
    /// broker compares the type first.
    fn declare(&mut self, exchange: &Arc<str>) -> amiquip::Result<Result<(), Refusal>> {
        let spec = self.specs.iter().find(|spec| spec.name == *exchange);
        let kind = spec.map_or(ExchangeKind::Topic, |spec| spec.kind);
        let durable = spec.is_some_and(|spec| spec.durable);
        let exists = match self
            .attempt(|channel| channel.exchange_declare_passive(&**exchange).map(|_| ()))?
        {
            Ok(()) => true,
            Err(refusal) if refusal.code == NOT_FOUND => false,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let declared = self.attempt(|channel| {
            let options = ExchangeDeclareOptions {
                durable,
                ..ExchangeDeclareOptions::default()
            };
            channel
                .exchange_declare(client_kind(kind), &**exchange, options)
                .map(|_| ())
        })?;
        Ok(match declared {
            Err(refusal)
                if refusal.code == PRECONDITION_FAILED && !refusal.text.contains("'type'") =>
            {
                Ok(())
            }
            Err(refusal) if exists && refusal.code != PRECONDITION_FAILED => Ok(()),
            answer => answer,
        })
    }

    fn bind_one(&mut self, binding: &AmqpBinding) -> amiquip::Result<Result<(), Refusal>> {
        let queue = self.queue.clone();
        self.attempt(|channel| {
            channel.queue_bind(queue, &*binding.exchange, &*binding.key, FieldTable::new())
        })
    }

    fn bound(&self, bindings: &mut Bindings, binding: AmqpBinding) {
        add(&self.counters.binds, 1);
        bindings.bound(binding);
    }

    fn refused(&mut self, exchange: &str, refusal: &Refusal) {
        increment(&self.counters.binds_refused);
        if self.refusals.len() < BATCH {
            self.refusals.push(format!(
                "exchange {exchange:?}: {} {}",
                refusal.code, refusal.text
            ));
        }
    }

    /// One call; a refusal closes the channel, and another is opened.
    fn attempt<T>(
        &mut self,
        call: impl FnOnce(&Channel) -> amiquip::Result<T>,
    ) -> amiquip::Result<Result<T, Refusal>> {
        match call(&self.channel) {
            Ok(answer) => Ok(Ok(answer)),
            Err(amiquip::Error::ServerClosedChannel { code, message, .. }) => {
                self.channel = self.connection.open_channel(None)?;
                Ok(Err(Refusal {
                    code,
                    text: message,
                }))
            }
            Err(error) => Err(error),
        }
    }
}

fn client_kind(kind: ExchangeKind) -> ExchangeType {
    match kind {
        ExchangeKind::Topic => ExchangeType::Topic,
        ExchangeKind::Direct => ExchangeType::Direct,
        ExchangeKind::Fanout => ExchangeType::Fanout,
    }
}
