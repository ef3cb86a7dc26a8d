//! The consumer: delivery -> event -> hand-over -> acknowledgement. It has a thread of its own for the life of one
//! connection, so that neither a burst of binds nor a slow unbind holds deliveries back.
//!
//! Invariants: a delivery is acknowledged only after the loop's channel took its event. So while that channel is full
//! nothing is acknowledged, and the broker sends no more than the prefetch (AMQP rail 6), whose bytes the guard bounds.
//! Deliveries received before the connection died are still handed over: they are no longer in the broker's queue, and
//! that queue is gone.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use amiquip::{Channel, ConsumerMessage, ConsumerOptions, Delivery};
use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, select};

use super::abort::Abort;
use super::counters::{AmqpCounters, add, increment};
use super::guard::{SUBSTITUTE, Vitals};
use super::url::bounded;
use super::watchdog::Watchdog;
use crate::event::age::age_of;
use crate::event::{Arrival, Event, EventId};
use crate::handoff::{FromSource, SourceEnd};
use crate::log_limit::LogLimit;

/// Longest that a delivery which was handed over stays unacknowledged.
const ACK_AFTER: Duration = Duration::from_millis(20);
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
    pub(super) queue: String,
    pub(super) prefetch: u16,
    pub(super) source: SourceEnd,
    pub(super) counters: &'a AmqpCounters,
    pub(super) vitals: &'a Vitals,
    pub(super) abort: &'a Abort,
    pub(super) watchdog: &'a Watchdog,
    /// Disconnected when the consumer is to end.
    pub(super) stop: Receiver<()>,
    /// Gets a message, without waiting, when the backlog suggests that the broker's queue fills.
    pub(super) behind: crossbeam_channel::Sender<()>,
}

/// Deliveries handed over and not yet acknowledged. Acknowledging the newest acknowledges all.
#[derive(Default)]
struct Unacked {
    newest: Option<Delivery>,
    count: usize,
    since: Option<Instant>,
    /// The channel is gone: later deliveries cannot be acknowledged, and need not be.
    refused: bool,
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
                let end = self.pump(&receiver);
                // Dropping it cancels it, and waits for the broker's answer.
                let question = self.watchdog.question();
                drop(consumer);
                drop(question);
                (Ok(end), Some(receiver))
            }
            Err(error) => (Err(error), None),
        }
    }

    fn pump(&self, deliveries: &Receiver<ConsumerMessage>) -> ConsumeEnd {
        let mut unacked = Unacked::default();
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut log_limit = LogLimit::default();
        let batch = usize::from(self.prefetch / 4).max(1);
        let mut flow = Flow::default();
        loop {
            if unacked.count >= batch
                || unacked
                    .since
                    .is_some_and(|since| since.elapsed() >= ACK_AFTER)
            {
                self.ack(&mut unacked);
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
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) if self.is_stopped() => {
                        self.ack(&mut unacked);
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
            if unacked.count + deliveries.len() >= usize::from(self.prefetch) / 2 {
                let _ = self.behind.try_send(());
            }
            if let Some(event) = self.decode(&mut delivery, &mut names, &mut log_limit)
                && let Err(end) = self.hand_over(event, &mut unacked)
            {
                return end;
            }
            unacked.newest = Some(delivery);
            unacked.count += 1;
            unacked.since.get_or_insert_with(Instant::now);
        }
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
        delivery: &mut Delivery,
        names: &mut Vec<Arc<str>>,
        log_limit: &mut LogLimit,
    ) -> Option<Arc<Event>> {
        let exchange = std::mem::take(&mut delivery.exchange);
        let key = std::mem::take(&mut delivery.routing_key);
        let body = std::mem::take(&mut delivery.body);
        let mut bytes = body.len() as u64;
        let swallowed = if body.is_empty() {
            self.vitals.swallowed(delivery.delivery_tag())
        } else {
            None
        };
        let complaint = if let Some(announced) = swallowed {
            increment(&self.counters.undecodable_swallowed);
            bytes = announced;
            "the body is too large to be taken".to_owned()
        } else if exchange.contains(SUBSTITUTE) || key.contains(SUBSTITUTE) {
            increment(&self.counters.undecodable_routing_key);
            "exchange or routing key is not UTF-8".to_owned()
        } else {
            let encoding = delivery.properties.content_encoding().as_deref();
            let id = EventId::of(&exchange, &key, &body);
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

    /// Hands an event over. While the loop is behind it waits, after it has acknowledged what was handed over before.
    fn hand_over(&self, event: Arc<Event>, unacked: &mut Unacked) -> Result<(), ConsumeEnd> {
        let mut message = FromSource::Event(event);
        let mut patience = Duration::ZERO;
        loop {
            message = match self.source.send_timeout(message, patience) {
                Ok(()) => return Ok(()),
                Err(None) => return Err(ConsumeEnd::LoopGone),
                Err(Some(message)) => message,
            };
            if patience.is_zero() {
                increment(&self.counters.handover_waits);
                self.ack(unacked);
                patience = HANDOVER_SLICE;
            }
            let _ = self.behind.try_send(());
            if self.is_stopped() {
                return Err(ConsumeEnd::Stopped);
            }
        }
    }

    fn ack(&self, unacked: &mut Unacked) {
        if let Some(newest) = unacked.newest.take()
            && !unacked.refused
        {
            match newest.ack_multiple(&self.channel) {
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
