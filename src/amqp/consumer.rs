//! The consumer: delivery -> event -> hand-over -> acknowledgement. It has a thread of its own for the life of one
//! connection, so that neither a burst of binds nor a slow unbind holds deliveries back.
//!
//! Invariants: a delivery is acknowledged only after the loop's channel took its event. So while that channel is full
//! nothing is acknowledged, and the broker sends no more than the prefetch (AMQP rail 6), whose bytes the guard bounds.
//! Deliveries received before the connection died are still handed over; those of them that were not acknowledged come
//! again on the next connection, where [`Redelivery`] knows them. For its sake the newest delivery's ack waits until a
//! later one was handled, or [`HOLD`] has passed: not for ever, because a broker closes the channel over an ack that is
//! half an hour late.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use amiquip::{Channel, ConsumerMessage, ConsumerOptions, Delivery};
use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, select};

use super::abort::Abort;
use super::counters::{AmqpCounters, add, increment};
use super::guard::{SUBSTITUTE, Vitals};
use super::redelivery::{Redelivery, Verdict};
use super::url::bounded;
use super::watchdog::Watchdog;
use crate::event::age::age_of;
use crate::event::{Arrival, Event, EventId};
use crate::handoff::{FromSource, SourceEnd};
use crate::log_limit::LogLimit;

/// Longest that a delivery which was handed over stays unacknowledged.
const ACK_AFTER: Duration = Duration::from_millis(20);
/// How long the newest delivery's ack waits for a later delivery; and how long what must come again is waited for.
const HOLD: Duration = Duration::from_secs(30);
/// Deliveries in a row that were not waited for, after which they are taken to flow.
const FLOW_DELIVERIES_MIN: u32 = 8;
/// How long deliveries that flow may gather. So much later an event may reach its clients then, and never when it is alone.
const REST: Duration = Duration::from_millis(1);
/// How often a hand-over that waits checks whether it is still wanted.
pub(super) const HANDOVER_SLICE: Duration = Duration::from_millis(50);
/// Exchange names kept to be shared by events, at most. Bindings between exchanges could bring in any number.
const NAMES_MAX: usize = 64;

/// Why consuming ended without an error of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ConsumeEnd {
    /// The worker or the process is to end.
    Stopped,
    /// The loop is gone.
    LoopGone,
    /// The queue was deleted on the broker's side.
    QueueDeleted,
    /// The broker closed the consumer's channel, and only that; for the log.
    ChannelClosed(String),
    /// The client's thread is gone, or closed by the broker; the connection's own `close` tells why.
    ConnectionLost,
}

/// What a consumer works with.
pub(super) struct Consumer<'a> {
    pub(super) channel: Channel,
    pub(super) queue: Arc<str>,
    /// Deliveries that may be under way.
    pub(super) window: u16,
    pub(super) source: SourceEnd,
    pub(super) counters: &'a AmqpCounters,
    pub(super) vitals: &'a Vitals,
    pub(super) abort: &'a Abort,
    pub(super) watchdog: &'a Watchdog,
    /// Disconnected when the consumer is to end.
    pub(super) stop: Receiver<()>,
    /// Gets a message, without waiting, when the backlog suggests that the broker's queue fills.
    pub(super) behind: crossbeam_channel::Sender<()>,
    /// Every event published before this moment was received on the connections before.
    pub(super) caught_up: Instant,
}

/// A delivery, and how many came up to it on this connection.
struct Handled {
    delivery: Delivery,
    count: u64,
}

/// Deliveries handled and not yet acknowledged. Acknowledging one acknowledges all before it.
#[derive(Default)]
struct Unacked {
    newest: Option<Handled>,
    /// The one before the newest, to be acknowledged.
    before: Option<Handled>,
    /// Those to be acknowledged, the newest not counted.
    count: usize,
    since: Option<Instant>,
    /// The channel is gone: later deliveries cannot be acknowledged, and come again.
    refused: bool,
}

impl Unacked {
    fn push(&mut self, delivery: Delivery, count: u64) {
        let Some(before) = self.newest.replace(Handled { delivery, count }) else {
            return;
        };
        self.before = Some(before);
        self.count += 1;
        self.since.get_or_insert_with(Instant::now);
    }
}

/// Whether deliveries follow one another so closely that they are taken several at a time. Where the client's thread,
/// this one and the loop share a core, waking them for each event by itself costs more than the event: a third of the
/// CPU at 8,000 events a second.
#[derive(Default)]
struct Flow {
    /// Deliveries in a row that were not waited for.
    taken: u32,
    has_rested: bool,
}

impl Flow {
    fn take(&mut self) {
        self.taken = self.taken.saturating_add(1);
        self.has_rested = false;
    }

    /// To be asked when no delivery is there. True: they flow, and the thread is to [`REST`] once; false: it is to wait.
    fn is_to_rest(&mut self) -> bool {
        let rests = self.taken >= FLOW_DELIVERIES_MIN && !self.has_rested;
        if !rests {
            self.taken = 0;
        }
        self.has_rested = rests;
        rests
    }
}

impl Consumer<'_> {
    /// Consumes until it is stopped or the connection is gone. Also returns a receiver that the caller must keep until
    /// the connection is closed: the client gives up the whole connection when it meets a consumer without a receiver
    /// (AMQP rail 5).
    pub(super) fn run(
        self,
        redelivery: &mut Redelivery,
    ) -> (
        amiquip::Result<ConsumeEnd>,
        Option<Receiver<ConsumerMessage>>,
    ) {
        let options = ConsumerOptions {
            exclusive: true,
            ..ConsumerOptions::default()
        };
        let question = self.watchdog.question();
        match self.channel.basic_consume(&*self.queue, options) {
            Ok(consumer) => {
                drop(question);
                let receiver = consumer.receiver().clone();
                let end = self.pump(&receiver, redelivery);
                // Dropping it cancels it, and waits for the broker's answer.
                let question = self.watchdog.question();
                drop(consumer);
                drop(question);
                (Ok(end), Some(receiver))
            }
            Err(error) => (Err(error), None),
        }
    }

    fn pump(
        &self,
        deliveries: &Receiver<ConsumerMessage>,
        redelivery: &mut Redelivery,
    ) -> ConsumeEnd {
        let mut quiet_since = Instant::now();
        let mut unacked = Unacked::default();
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut log_limit = LogLimit::default();
        let batch = usize::from(self.window / 4).max(1);
        let mut flow = Flow::default();
        loop {
            if unacked.count >= batch
                || unacked
                    .since
                    .is_some_and(|since| since.elapsed() >= ACK_AFTER)
            {
                self.ack(&mut unacked, redelivery);
            }
            let message = match deliveries.try_recv() {
                Ok(message) => message,
                Err(TryRecvError::Disconnected) => return ConsumeEnd::ConnectionLost,
                Err(TryRecvError::Empty) if flow.is_to_rest() => {
                    thread::sleep(REST);
                    continue;
                }
                Err(TryRecvError::Empty) => match self.wait(deliveries, &unacked) {
                    Ok(message) => message,
                    Err(RecvTimeoutError::Timeout) => {
                        if quiet_since.elapsed() >= HOLD
                            && let Err(end) = self.settle(&mut unacked, redelivery)
                        {
                            return end;
                        }
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) if self.is_stopped() => {
                        self.ack(&mut unacked, redelivery);
                        return ConsumeEnd::Stopped;
                    }
                    Err(RecvTimeoutError::Disconnected) => return ConsumeEnd::ConnectionLost,
                },
            };
            let mut delivery = match message {
                ConsumerMessage::Delivery(delivery) => delivery,
                ConsumerMessage::ServerCancelled => return ConsumeEnd::QueueDeleted,
                ConsumerMessage::ServerClosedChannel(error) => {
                    return ConsumeEnd::ChannelClosed(error.to_string());
                }
                ConsumerMessage::ClientCancelled
                | ConsumerMessage::ClientClosedChannel
                | ConsumerMessage::ClientClosedConnection
                | ConsumerMessage::ServerClosedConnection(_) => return ConsumeEnd::ConnectionLost,
            };
            flow.take();
            increment(&self.counters.deliveries);
            self.vitals.taken(delivery.body.len());
            if unacked.count + deliveries.len() >= usize::from(self.window) / 2 {
                let _ = self.behind.try_send(());
            }
            quiet_since = Instant::now();
            let id = EventId::of(&delivery.exchange, &delivery.routing_key, &delivery.body);
            let verdict = redelivery.take(id, delivery.redelivered);
            if verdict == Verdict::Again {
                increment(&self.counters.redeliveries);
                self.swallowed(&delivery);
                delivery.body = Vec::new();
            } else {
                if verdict == Verdict::Broken
                    && let Err(end) = self.tell_broken(&mut unacked, redelivery)
                {
                    return end;
                }
                if let Some(event) = self.decode(id, &mut delivery, &mut names, &mut log_limit)
                    && let Err(end) =
                        self.hand_over(FromSource::Event(event), &mut unacked, redelivery)
                {
                    return end;
                }
                redelivery.handled(id);
            }
            unacked.push(delivery, redelivery.taken());
        }
    }

    /// Nothing has come for long. What must come again will not; and the newest delivery, whose ack waits no longer,
    /// never comes again once the broker has answered behind that ack.
    fn settle(&self, unacked: &mut Unacked, redelivery: &mut Redelivery) -> Result<(), ConsumeEnd> {
        if redelivery.give_up() {
            self.tell_broken(unacked, redelivery)?;
        }
        let Some(newest) = unacked.newest.take() else {
            return Ok(());
        };
        if unacked.refused {
            return Ok(());
        }
        let _question = self.watchdog.question();
        // Asked before too: a connection that is dead already has not taken the ack.
        let answers = || self.channel.qos(0, self.window, false);
        let acked = answers().and_then(|()| {
            redelivery.acked(newest.count);
            newest.delivery.ack_multiple(&self.channel)
        });
        match acked.and_then(|()| answers()) {
            Ok(()) => {
                add(&self.counters.acks, unacked.count + 1);
                redelivery.settled();
                (unacked.before, unacked.count, unacked.since) = (None, 0, None);
            }
            Err(_) => unacked.refused = true,
        }
        Ok(())
    }

    /// The queue has not kept what it had, or its broker not the order: events may be missing.
    fn tell_broken(
        &self,
        unacked: &mut Unacked,
        redelivery: &mut Redelivery,
    ) -> Result<(), ConsumeEnd> {
        increment(&self.counters.redeliveries_broken);
        log::warn!("amqp: the queue has not kept what it had: events may be missing");
        let since = self.caught_up;
        self.hand_over(FromSource::Overflowed { since }, unacked, redelivery)
    }

    /// The announced size of a body that was swallowed. To be asked once for each delivery.
    fn swallowed(&self, delivery: &Delivery) -> Option<u64> {
        let is_empty = delivery.body.is_empty();
        is_empty
            .then(|| self.vitals.swallowed(delivery.delivery_tag()))
            .flatten()
    }

    fn wait(
        &self,
        deliveries: &Receiver<ConsumerMessage>,
        unacked: &Unacked,
    ) -> Result<ConsumerMessage, RecvTimeoutError> {
        let patience = if unacked.count > 0 {
            ACK_AFTER
        } else {
            Duration::from_secs(1)
        };
        select! {
            recv(deliveries) -> message => message.map_err(|_| RecvTimeoutError::Disconnected),
            recv(self.stop) -> _ => Err(RecvTimeoutError::Disconnected),
            default(patience) => Err(RecvTimeoutError::Timeout),
        }
    }

    fn is_stopped(&self) -> bool {
        matches!(self.stop.try_recv(), Err(TryRecvError::Disconnected)) || self.abort.is_stopping()
    }

    /// Returns the event of a delivery, whose exchange, key and body are taken; `None` when the delivery is to be
    /// dropped (PROTOCOL 5).
    fn decode(
        &self,
        id: EventId,
        delivery: &mut Delivery,
        names: &mut Vec<Arc<str>>,
        log_limit: &mut LogLimit,
    ) -> Option<Arc<Event>> {
        let swallowed = self.swallowed(delivery);
        let exchange = std::mem::take(&mut delivery.exchange);
        let key = std::mem::take(&mut delivery.routing_key);
        let body = std::mem::take(&mut delivery.body);
        let mut bytes = body.len() as u64;
        let complaint = if let Some(announced) = swallowed {
            increment(&self.counters.undecodable_swallowed);
            bytes = announced;
            "the body is too large to be taken".to_owned()
        } else if exchange.contains(SUBSTITUTE) || key.contains(SUBSTITUTE) {
            increment(&self.counters.undecodable_routing_key);
            "exchange or routing key is not UTF-8".to_owned()
        } else {
            let encoding = delivery.properties.content_encoding().as_deref();
            match Event::read(body, encoding) {
                Ok((head, body)) => {
                    let published = *delivery.properties.timestamp();
                    return Some(Arc::new(Event {
                        id,
                        exchange: intern(names, exchange),
                        routing_key: key.into_boxed_str(),
                        head,
                        body,
                        arrival: Some(arrival(published)),
                    }));
                }
                Err(error) => {
                    self.counters.count_undecodable(&error);
                    error.to_string()
                }
            }
        };
        if let Some(left_out) = log_limit.pass(Instant::now()) {
            log::warn!(
                "delivery dropped: {complaint}; routing key \"{}\", {bytes} bytes{left_out}",
                bounded(&key)
            );
        }
        None
    }

    /// Hands a message over. While the loop is behind it waits, after it has acknowledged what was handed over before.
    fn hand_over(
        &self,
        mut message: FromSource,
        unacked: &mut Unacked,
        redelivery: &mut Redelivery,
    ) -> Result<(), ConsumeEnd> {
        let mut patience = Duration::ZERO;
        loop {
            message = match self.source.send_timeout(message, patience) {
                Ok(()) => return Ok(()),
                Err(None) => return Err(ConsumeEnd::LoopGone),
                Err(Some(message)) => message,
            };
            if patience.is_zero() {
                increment(&self.counters.handover_waits);
                self.ack(unacked, redelivery);
                patience = HANDOVER_SLICE;
            }
            let _ = self.behind.try_send(());
            if self.is_stopped() {
                return Err(ConsumeEnd::Stopped);
            }
        }
    }

    /// Acknowledges all but the newest.
    fn ack(&self, unacked: &mut Unacked, redelivery: &mut Redelivery) {
        if let Some(before) = unacked.before.take()
            && !unacked.refused
        {
            redelivery.acked(before.count);
            match before.delivery.ack_multiple(&self.channel) {
                Ok(()) => add(&self.counters.acks, unacked.count),
                Err(_) => unacked.refused = true,
            }
        }
        (unacked.count, unacked.since) = (0, None);
    }
}

/// An event that comes now. `published`: its timestamp, in whatever unit its publisher counts.
fn arrival(published: Option<u64>) -> Arrival {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    Arrival {
        at: Instant::now(),
        age: published.and_then(|published| age_of(published, since_1970.ok()?)),
    }
}

pub(super) fn intern(names: &mut Vec<Arc<str>>, name: String) -> Arc<str> {
    if let Some(known) = names.iter().find(|known| ***known == *name) {
        return known.clone();
    }
    if names.len() >= NAMES_MAX {
        names.clear();
    }
    let name: Arc<str> = name.into();
    names.push(name.clone());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_that_flow_make_the_thread_rest_once_each_time_there_is_none() {
        let mut flow = Flow::default();
        for _ in 1..FLOW_DELIVERIES_MIN {
            flow.take();
        }
        assert!(!flow.is_to_rest(), "too few");
        for _ in 0..FLOW_DELIVERIES_MIN {
            flow.take();
        }
        for _ in 0..3 {
            assert!(flow.is_to_rest());
            flow.take();
        }
        assert!(flow.is_to_rest());
        assert!(!flow.is_to_rest(), "nothing came while it rested");
        for _ in 0..100 {
            flow.take();
            assert!(!flow.is_to_rest(), "one at a time");
        }
    }

    #[test]
    fn exchange_names_are_shared_and_their_number_is_bounded() {
        let mut names = Vec::new();
        let first = intern(&mut names, "callevt".into());
        assert!(Arc::ptr_eq(&first, &intern(&mut names, "callevt".into())));
        for number in 0..10 * NAMES_MAX {
            intern(&mut names, number.to_string());
            assert!(names.len() <= NAMES_MAX);
        }
    }
}
