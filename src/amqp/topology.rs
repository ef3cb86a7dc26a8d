//! Declarations to the broker: the process's own queue ([`OurQueue`]), the exchanges that wanted bindings name, and the
//! bindings.
//!
//! Everything here happens on a channel of its own. A refusal (404, 403, 406) closes the channel and leaves the
//! consumer alive (AMQP rail 7); the channel is opened again and the work goes on. An exchange is declared when a
//! binding first names it, together with that binding. An exchange that the broker refuses is marked, and the others
//! are not affected (rail 8).

use std::collections::{HashMap, HashSet};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use amiquip::{
    AmqpValue, Channel, Connection, ExchangeDeclareOptions, ExchangeType, FieldTable,
    QueueDeleteOptions,
};

use super::broker::{Answer, Broker, Lost};
use super::counters::{AmqpCounters, increment};
use super::marker::Marker;
use super::our_queue::{Found, OurQueue, QueueBounds};
use super::permissions::{self, OUR_QUEUE, Permission};
use super::url::Endpoint;
use super::watchdog::Watchdog;
use crate::routing::amqp_binding::AmqpBinding;
use crate::routing::families::{Exchange, ExchangeKind};

/// Channels that a batch of unbinds is spread over. The client waits for the answer to each unbind, so one channel
/// spends its time in round trips: with nine runnable tasks on two cores, 10,000 unbinds took 19 s on one channel, 4.6
/// s on two, 3.2 s on four, 3.0 s on eight, and as many binds 6.5 s.
const UNBINDERS: usize = 4;
/// Fewer unbinds than this are not worth the threads.
const UNBINDS_ALONE_MAX: usize = 16;
/// `reply-code` of a declaration whose properties differ from the existing one's.
const PRECONDITION_FAILED: u16 = 406;
const NOT_FOUND: u16 = 404;
const ACCESS_REFUSED: u16 = 403;
/// A key that nobody binds, for questions about permissions.
const NO_KEY: &str = "blackhole.permission";
/// An exchange that every broker has.
const STANDARD_EXCHANGE: &str = "amq.topic";

/// The broker's refusal of one call: it closed the channel, and nothing else.
#[derive(Debug)]
struct Refusal {
    code: u16,
    text: String,
}

impl Refusal {
    /// Whether what is not there is this queue of ours. RabbitMQ names what it misses, and nobody else has our name.
    fn is_of_queue(&self, queue: &str) -> bool {
        self.code == NOT_FOUND && self.text.contains(&format!("queue '{queue}'"))
    }
}

/// The binding side of one connection.
pub(super) struct Topology<'a> {
    connection: &'a mut Connection,
    channel: Channel,
    /// Channels for batches of unbinds, opened when first needed.
    unbinders: Vec<Channel>,
    queue: Arc<str>,
    /// The queue is one of before, so its bindings may be there.
    is_old: bool,
    /// The queue for the marker, and what keeps one in it, where there has to be one.
    marker: Option<(String, Marker)>,
    endpoint: &'a Endpoint,
    specs: &'a [Exchange],
    watchdog: &'a Watchdog,
    /// Exchanges declared on this connection: admitted (true), or refused until the next retry.
    admitted: HashMap<Arc<str>, bool>,
    /// Exchanges of whose end the worker was told, and which are to be declared when they are next named.
    vanished: HashSet<Arc<str>>,
    counters: &'a AmqpCounters,
}

impl<'a> Topology<'a> {
    /// Without a queue: [`Topology::find_queue`], [`Topology::declare_queue`] or [`Topology::for_queue`] comes first.
    pub(super) fn new(
        connection: &'a mut Connection,
        endpoint: &'a Endpoint,
        specs: &'a [Exchange],
        watchdog: &'a Watchdog,
        counters: &'a AmqpCounters,
    ) -> amiquip::Result<Self> {
        let channel = connection.open_channel(None)?;
        Ok(Self {
            connection,
            channel,
            unbinders: Vec::new(),
            queue: "".into(),
            is_old: false,
            marker: None,
            endpoint,
            specs,
            watchdog,
            admitted: HashMap::new(),
            vanished: HashSet::new(),
            counters,
        })
    }

    /// The same for a queue of another's, which is only bound.
    pub(super) fn for_queue(mut self, name: &str) -> Self {
        self.queue = name.into();
        self
    }

    /// The queue's name.
    pub(super) fn queue(&self) -> &Arc<str> {
        &self.queue
    }

    /// Whether the queue was declared on this connection.
    pub(super) fn has_new_queue(&self) -> bool {
        !self.is_old
    }

    /// Looks for the queue of before. `None`: it is gone, or not for us to see.
    pub(super) fn find_queue(&mut self, queue: &OurQueue) -> Result<Option<Found>, Lost> {
        (self.queue, self.is_old) = (queue.name.clone(), true);
        self.marker = queue.marker().map(|name| (name, Marker::new()));
        let has_marker = match queue.marker() {
            Some(name) => self
                .look_at(&name)?
                .is_some_and(|(messages, _)| messages > 0),
            None => true,
        };
        let found = self.look_at(&queue.name)?;
        Ok(found.map(|(messages, consumers)| Found {
            messages,
            consumers,
            has_marker,
        }))
    }

    /// How many messages wait in a queue, and how many consumers it has. `None`: it is gone. A queue that is looked at
    /// begins to expire anew.
    fn look_at(&mut self, name: &str) -> amiquip::Result<Option<(u32, u32)>> {
        let answer = self.attempt(|channel| {
            let queue = channel.queue_declare_passive(name)?;
            Ok((
                queue.declared_message_count().unwrap_or_default(),
                queue.declared_consumer_count().unwrap_or_default(),
            ))
        })?;
        Ok(answer.ok())
    }

    /// Sees to the marker, where there has to be one.
    fn keep_marker(&mut self) -> amiquip::Result<()> {
        let Some((name, mut marker)) = self.marker.take() else {
            return Ok(());
        };
        let looked = self.look_at(&name);
        if let Ok(found) = &looked {
            let is_there = found.is_some_and(|(messages, _)| messages > 0);
            let answer_max = self.watchdog.answer_max();
            marker.keep(is_there, &name, self.endpoint, answer_max, Instant::now());
        }
        self.marker = Some((name, marker));
        looked.map(|_| ())
    }

    /// Declares a queue that nobody has yet (AMQP rail 6).
    pub(super) fn declare_queue(
        &mut self,
        queue: &OurQueue,
        bounds: &QueueBounds,
    ) -> Result<(), Lost> {
        let name = &*queue.name;
        (self.queue, self.is_old) = (queue.name.clone(), false);
        self.marker = queue.marker().map(|name| (name, Marker::new()));
        let mut declared = Ok(());
        for is_pinned in [true, false] {
            let mut all = vec![(name.to_owned(), queue.declaration(bounds, is_pinned))];
            if let Some(marker) = queue.marker() {
                all.push((marker, queue.marker_declaration(bounds, is_pinned)));
            }
            for (name, options) in all {
                declared =
                    self.attempt(|channel| channel.queue_declare(name, options).map(|_| ()))?;
                if declared.is_err() {
                    break;
                }
            }
            if !matches!(&declared, Err(refusal) if refusal.code == PRECONDITION_FAILED) {
                break;
            }
        }
        match declared {
            Ok(()) => Ok(()),
            Err(refusal) if refusal.code == ACCESS_REFUSED => Err(Lost::Barred(permissions::lack(
                self.endpoint,
                Permission::Configure,
                OUR_QUEUE,
            ))),
            Err(Refusal { code, text }) => Err(Lost::Because(format!("the queue: {code} {text}"))),
        }
    }

    /// Deletes the queue, with all that waits in it.
    pub(super) fn delete_queue(&mut self) -> Result<(), Lost> {
        let queue = self.queue.clone();
        let options = QueueDeleteOptions {
            if_unused: false,
            if_empty: false,
        };
        let marker = self.marker.take().map(|(name, _)| name);
        for name in std::iter::once(queue.to_string()).chain(marker) {
            // A refusal: it is gone already.
            let _ = self.attempt(|channel| channel.queue_delete(name, options))?;
        }
        Ok(())
    }

    /// Makes sure that a new queue can be bound and consumed from, before anything is bound to it: asks for a message of
    /// it, and to take back a binding that there is not. Never to be asked of a queue that may hold events, of which it
    /// would lose one.
    pub(super) fn check_new_queue(&mut self) -> Result<(), Lost> {
        let queue = self.queue.clone();
        let read = self.attempt(|channel| channel.basic_get(&*queue, true).map(|_| ()))?;
        if read.is_err_and(|refusal| refusal.code == ACCESS_REFUSED) {
            let line = permissions::lack(self.endpoint, Permission::Read, OUR_QUEUE);
            return Err(Lost::Barred(line));
        }
        self.check_binding()
    }

    /// Makes sure that the queue can be bound.
    pub(super) fn check_binding(&mut self) -> Result<(), Lost> {
        match self.ask_for_bind(STANDARD_EXCHANGE)? {
            // The queue is asked for first.
            Err(refusal)
                if refusal.code == ACCESS_REFUSED && refusal.text.contains("to queue ") =>
            {
                let line = permissions::lack(self.endpoint, Permission::Write, OUR_QUEUE);
                Err(Lost::Barred(line))
            }
            _ => Ok(()),
        }
    }

    /// Whether the queue may be bound to an exchange: taking a binding back asks for the same permissions, and there is
    /// none of this key.
    fn ask_for_bind(&mut self, exchange: &str) -> amiquip::Result<Result<(), Refusal>> {
        let queue = self.queue.clone();
        self.attempt(|channel| channel.queue_unbind(&*queue, exchange, NO_KEY, FieldTable::new()))
    }

    fn is_there(&mut self, exchange: &str) -> amiquip::Result<bool> {
        let answer =
            self.attempt(|channel| channel.exchange_declare_passive(exchange).map(|_| ()))?;
        Ok(!answer.is_err_and(|refusal| refusal.code == NOT_FOUND))
    }

    /// Whether an exchange that is not there may be declared: with an alternate exchange that is a number, which RabbitMQ
    /// refuses (406) where it has not refused it for want of the permission (403).
    fn ask_for_declare(&mut self, exchange: &str) -> amiquip::Result<Result<(), Refusal>> {
        let mut arguments = FieldTable::new();
        arguments.insert("alternate-exchange".into(), AmqpValue::LongLongInt(0));
        self.attempt(|channel| {
            let options = ExchangeDeclareOptions {
                arguments,
                ..ExchangeDeclareOptions::default()
            };
            channel
                .exchange_declare(ExchangeType::Topic, exchange, options)
                .map(|_| ())
        })
    }

    /// Binds the bindings of a refused batch one by one, to find those that the broker refuses. An exchange that has
    /// vanished is declared again when the next batch names it.
    fn bind_singly(
        &mut self,
        batch: Vec<AmqpBinding>,
        answers: &mut Vec<(AmqpBinding, Answer)>,
    ) -> Result<(), Lost> {
        for binding in batch {
            let answer = if self.admitted.get(&binding.exchange) == Some(&true) {
                match self.bind_one(&binding)? {
                    Ok(()) => Answer::InForce,
                    Err(refusal) if refusal.code == NOT_FOUND => {
                        self.admitted.remove(&binding.exchange);
                        Answer::ExchangeGone
                    }
                    Err(refusal) => {
                        Answer::Refused(Some(self.refused(&binding.exchange, &refusal)))
                    }
                }
            } else {
                Answer::Untried
            };
            answers.push((binding, answer));
        }
        Ok(())
    }

    /// Binds all of `batch` with one answer of the broker.
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
            // Any call with an answer will do: the broker has then done everything that came before it.
            channel.qos(0, 0, false)
        })
    }

    fn unbind_singly(&mut self, batch: &[AmqpBinding]) -> amiquip::Result<()> {
        for binding in batch {
            let queue = self.queue.clone();
            // A refusal: exchange and binding are gone already.
            let _ = self.attempt(|channel| {
                channel.queue_unbind(
                    &*queue,
                    &*binding.exchange,
                    &*binding.key,
                    FieldTable::new(),
                )
            })?;
        }
        Ok(())
    }

    /// Makes sure that the exchange of `first` exists with its type, and binds `first`. On an old queue an exchange that
    /// is not there is told first, since its bindings went with it, and declared when it is next named.
    fn admit(&mut self, first: &AmqpBinding) -> Result<Answer, Lost> {
        if self.is_old
            && !self.vanished.contains(&first.exchange)
            && !self.is_there(&first.exchange)?
        {
            self.vanished.insert(first.exchange.clone());
            return Ok(Answer::ExchangeGone);
        }
        let answer = match self.declare(&first.exchange)? {
            Ok(()) => self.bind_one(first)?,
            Err(refusal) if refusal.code == ACCESS_REFUSED => {
                increment(&self.counters.binds_refused);
                increment(&self.counters.permission_refusals);
                self.admitted.insert(first.exchange.clone(), false);
                let exchange = format!("exchange '{}'", first.exchange);
                let line = permissions::lack(self.endpoint, Permission::Configure, &exchange);
                return Ok(Answer::Refused(Some(line.into())));
            }
            refused => refused,
        };
        self.admitted.insert(first.exchange.clone(), answer.is_ok());
        Ok(match answer {
            Ok(()) => Answer::InForce,
            Err(refusal) => Answer::Refused(Some(self.refused(&first.exchange, &refusal))),
        })
    }

    /// Declares an exchange: passively first, because one may exist with other properties than ours; and then actively,
    /// which creates it when it is absent (PROTOCOL 6). The passive declaration does not compare the type, and bindings
    /// to an exchange of another type never match. So the active one is always tried, and when the exchange exists,
    /// only a different type counts as a refusal. The broker compares the type before anything else.
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

    /// Binds one. A queue that is gone says nothing of the exchange: a node that is apart from the one with the queue misses
    /// it, and it may be whole.
    fn bind_one(&mut self, binding: &AmqpBinding) -> Result<Result<(), Refusal>, Lost> {
        let queue = self.queue.clone();
        let bound = self.attempt(|channel| {
            channel.queue_bind(
                &*queue,
                &*binding.exchange,
                &*binding.key,
                FieldTable::new(),
            )
        })?;
        match bound {
            Err(refusal) if refusal.is_of_queue(&queue) => Err(Lost::Because(format!(
                "the queue: {} {}",
                refusal.code, refusal.text
            ))),
            answer => Ok(answer),
        }
    }

    /// Counts a refusal; returns its text for the log.
    fn refused(&self, exchange: &str, refusal: &Refusal) -> String {
        increment(&self.counters.binds_refused);
        if refusal.code == ACCESS_REFUSED {
            increment(&self.counters.permission_refusals);
            if let Some(line) = permissions::lack_of_bind(self.endpoint, &refusal.text) {
                return line.into();
            }
        }
        format!("exchange {exchange:?}: {} {}", refusal.code, refusal.text)
    }

    /// Makes one call. A refusal closes the channel, and another is opened.
    fn attempt<T>(
        &mut self,
        call: impl FnOnce(&Channel) -> amiquip::Result<T>,
    ) -> amiquip::Result<Result<T, Refusal>> {
        let _question = self.watchdog.question();
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

impl Broker for Topology<'_> {
    fn bind(&mut self, batch: Vec<AmqpBinding>) -> Result<Vec<(AmqpBinding, Answer)>, Lost> {
        let (mut answers, mut pipelined) = (Vec::new(), Vec::new());
        for binding in batch {
            let answer = match self.admitted.get(&binding.exchange) {
                Some(true) => {
                    pipelined.push(binding);
                    continue;
                }
                Some(false) => Answer::Refused(None),
                None => self.admit(&binding)?,
            };
            answers.push((binding, answer));
        }
        if pipelined.is_empty() {
            return Ok(answers);
        }
        match self.pipeline(&pipelined)? {
            Ok(()) => {
                let in_force = |binding| (binding, Answer::InForce);
                answers.extend(pipelined.into_iter().map(in_force));
            }
            Err(_) => self.bind_singly(pipelined, &mut answers)?,
        }
        Ok(answers)
    }

    fn unbind(&mut self, batch: &[AmqpBinding]) -> Result<(), Lost> {
        if batch.len() < UNBINDS_ALONE_MAX {
            return Ok(self.unbind_singly(batch)?);
        }
        while self.unbinders.len() < UNBINDERS {
            let _question = self.watchdog.question();
            self.unbinders.push(self.connection.open_channel(None)?);
        }
        let share = batch.len().div_ceil(self.unbinders.len());
        let (queue, watchdog) = (&*self.queue, self.watchdog);
        let ends: Vec<_> = thread::scope(|scope| {
            let starts: Vec<_> = batch
                .chunks(share)
                .zip(self.unbinders.drain(..))
                .map(|(share, channel)| {
                    let work = move || unbind_on(channel, queue, share, watchdog);
                    thread::Builder::new()
                        .name("amqp-unbind".into())
                        .spawn_scoped(scope, work)
                        .map_or(Err(share), Ok)
                })
                .collect();
            // A panic goes on here, where it becomes a reconnect (AMQP rail 10).
            let end = |start: thread::ScopedJoinHandle<'_, _>| {
                start.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            starts.into_iter().map(|start| start.map(end)).collect()
        });
        for end in ends {
            match end {
                Ok((Ok(channel), _)) => self.unbinders.push(channel),
                // Exchange and binding of the one that was refused are gone already.
                Ok((Err(amiquip::Error::ServerClosedChannel { .. }), rest)) => {
                    self.unbind_singly(rest)?;
                }
                Ok((Err(error), _)) => return Err(error.into()),
                // The system refused a thread.
                Err(share) => self.unbind_singly(share)?,
            }
        }
        Ok(())
    }

    fn rebind(&mut self, batch: &[AmqpBinding]) -> Result<Vec<Arc<str>>, Lost> {
        let mut gone = Vec::new();
        if self.pipeline(batch)?.is_ok() {
            return Ok(gone);
        }
        for binding in batch {
            if self.admitted.get(&binding.exchange) == Some(&true)
                && let Err(refusal) = self.bind_one(binding)?
                && refusal.code == NOT_FOUND
            {
                self.admitted.remove(&binding.exchange);
                gone.push(binding.exchange.clone());
            }
        }
        Ok(gone)
    }

    fn queue_length(&mut self) -> Result<Option<u32>, Lost> {
        self.keep_marker()?;
        let queue = self.queue.clone();
        let found = self.look_at(&queue)?;
        Ok(found.map(|(messages, _)| messages))
    }

    fn barred(&mut self) -> Result<Vec<Box<str>>, Lost> {
        let mut lines = Vec::new();
        for spec in self.specs {
            let line = match self.ask_for_bind(&spec.name)? {
                // Keys have permissions of their own. The key of this question is nobody's.
                Err(refusal) if refusal.text.contains("access to topic ") => None,
                Err(refusal) if refusal.code == ACCESS_REFUSED => {
                    permissions::lack_of_bind(self.endpoint, &refusal.text)
                }
                _ if self.is_there(&spec.name)? => None,
                _ => {
                    let asked = self.ask_for_declare(&spec.name)?;
                    let exchange = format!("exchange '{}'", spec.name);
                    asked
                        .is_err_and(|refusal| refusal.code == ACCESS_REFUSED)
                        .then(|| permissions::lack(self.endpoint, Permission::Configure, &exchange))
                }
            };
            lines.extend(line);
        }
        Ok(lines)
    }

    fn forget_refused(&mut self) {
        self.admitted.retain(|_, admitted| *admitted);
    }
}

/// Unbinds all of `batch`. Returns the channel, or the error; and the bindings that were not tried.
fn unbind_on<'b>(
    channel: Channel,
    queue: &str,
    batch: &'b [AmqpBinding],
    watchdog: &Watchdog,
) -> (amiquip::Result<Channel>, &'b [AmqpBinding]) {
    let mut rest = batch;
    while let Some((binding, others)) = rest.split_first() {
        rest = others;
        let _question = watchdog.question();
        let (exchange, key) = (&*binding.exchange, &*binding.key);
        if let Err(error) = channel.queue_unbind(queue, exchange, key, FieldTable::new()) {
            return (Err(error), rest);
        }
    }
    (Ok(channel), rest)
}

fn client_kind(kind: ExchangeKind) -> ExchangeType {
    match kind {
        ExchangeKind::Topic => ExchangeType::Topic,
        ExchangeKind::Direct => ExchangeType::Direct,
        ExchangeKind::Fanout => ExchangeType::Fanout,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_is_not_there_is_told_from_an_exchange_that_is_not() {
        let queue = "blackhole.4781cf0579edae19a23a9224b97097a8";
        let other = "blackhole.7c8762e1cd515dff53a8e3c4d8bb26e8";
        for (code, text, is_of_queue) in [
            (
                404,
                format!("NOT_FOUND - no queue '{queue}' in vhost '/'"),
                true,
            ),
            (
                404,
                format!(
                    "NOT_FOUND - home node 'a@b' of durable queue '{queue}' in vhost '/' is down or inaccessible"
                ),
                true,
            ),
            (
                404,
                "NOT_FOUND - no exchange 'callevt' in vhost '/'".to_owned(),
                false,
            ),
            (
                404,
                format!("NOT_FOUND - no queue '{other}' in vhost '/'"),
                false,
            ),
            (
                403,
                format!("ACCESS_REFUSED - access to queue '{queue}' in vhost '/' refused"),
                false,
            ),
        ] {
            let refusal = Refusal { code, text };
            assert_eq!(refusal.is_of_queue(queue), is_of_queue, "{}", refusal.text);
        }
    }
}
