//! The reader: it reads the stream for the loop, over a connection that lasts as long as one read.
//!
//! Invariants: a batch is handed over only when the loop has asked for it, and while it has not, no delivery is taken: so
//! the prefetch bounds what waits here, in messages, and the guard in bytes. A delivery is acknowledged once it was taken;
//! that is no more than the broker's leave to send another. Whatever goes wrong is the end of the read, and of nothing
//! else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use amiquip::{
    AmqpValue, Channel, Connection, ConsumerMessage, ConsumerOptions, Delivery, FieldTable,
};
use crossbeam_channel::{Receiver, never, select};

use super::super::abort::Abort;
use super::super::connection;
use super::super::counters::{AmqpCounters, increment};
use super::super::guard::{SUBSTITUTE, Vitals};
use super::super::url::Endpoint;
use super::super::watchdog::Watchdog;
use super::marker::{self, Origin};
use crate::event::{Event, EventId};
use crate::handoff::stored::{
    BATCH_BYTES_MAX, BATCH_ITEMS_MAX, BATCHES_AHEAD, FromReader, Read, ReaderEnd, ToReader,
};
use crate::history::Why;
use crate::history::stored::{Content, Offset, StoredItem};
use crate::limits::FAULTS_LOGGED_FREELY;
use crate::log_limit::LogLimit;

/// How much earlier than asked for the stream is read, so that a marker of before is met: several of them, and some
/// seconds between two clocks.
const BEFORE: Duration = Duration::from_secs(15);
/// Deliveries that the broker sends ahead of our acknowledgement.
const PREFETCH: u16 = 2048;
/// Deliveries acknowledged together.
const ACK_EVERY: usize = 256;

/// Why a read ended.
enum End {
    /// The loop wants no more of it.
    Ended,
    /// The loop wants another.
    Another(Read, u64),
    /// The thread is to end.
    Halt,
    /// It failed. Why, for the log.
    Failed(String),
}

/// The reader.
pub(super) struct Reader {
    name: String,
    end: ReaderEnd,
    origin: Origin,
    is_read: Arc<AtomicBool>,
    counters: Arc<AmqpCounters>,
    abort: Arc<Abort>,
    watchdog: Arc<Watchdog>,
    /// The broker that served last.
    serving: usize,
}

impl Reader {
    pub(super) fn new(
        name: String,
        end: ReaderEnd,
        origin: Origin,
        is_read: Arc<AtomicBool>,
        counters: Arc<AmqpCounters>,
        (abort, watchdog): (Arc<Abort>, Arc<Watchdog>),
    ) -> Self {
        Self {
            name,
            end,
            origin,
            is_read,
            counters,
            abort,
            watchdog,
            serving: 0,
        }
    }

    /// Reads whenever the loop asks; returns when the thread is to end.
    pub(super) fn run(mut self, endpoints: &[Endpoint]) {
        let mut faults = LogLimit::with_credit(FAULTS_LOGGED_FREELY);
        let mut next = None;
        loop {
            let (read, from) = match next.take() {
                Some(next) => next,
                None => match self.end.commands.recv() {
                    Ok(ToReader::Begin { read, from_unix_ms }) => (read, from_unix_ms),
                    Ok(ToReader::More(_) | ToReader::End(_)) => continue,
                    Err(_) => return,
                },
            };
            increment(&self.counters.stream_reads);
            self.is_read.store(true, Ordering::Relaxed);
            let ended = catch_unwind(AssertUnwindSafe(|| self.read(endpoints, read, from)));
            self.abort.cut();
            self.is_read.store(false, Ordering::Relaxed);
            let ended = ended.unwrap_or_else(|_| {
                increment(&self.counters.panics);
                End::Failed("the reader panicked, which is a bug".into())
            });
            match ended {
                End::Halt => return,
                End::Ended => {}
                End::Another(read, from) => next = Some((read, from)),
                End::Failed(cause) => {
                    increment(&self.counters.stream_reads_failed);
                    if let Some(left_out) = faults.pass(Instant::now()) {
                        log::warn!("amqp: stream: it cannot be read: {cause}{left_out}");
                    }
                    if self
                        .end
                        .tell(FromReader::Failed(read, Why::Outage))
                        .is_err()
                    {
                        return;
                    }
                }
            }
        }
    }

    /// One read, from its connection's beginning to its end.
    fn read(&mut self, endpoints: &[Endpoint], read: Read, from_unix_ms: u64) -> End {
        let mut cause = "no broker".to_owned();
        for turn in 0..endpoints.len() {
            let serving = (self.serving + turn) % endpoints.len();
            let Some(endpoint) = endpoints.get(serving) else {
                continue;
            };
            let vitals = Arc::new(Vitals::of_a_stream(Instant::now()));
            let attempt = self.abort.begin();
            let opened = connection::open(
                endpoint,
                "blackhole stream reader",
                &self.abort,
                attempt,
                vitals.clone(),
            );
            match opened {
                Ok(connection) => {
                    self.serving = serving;
                    return self.read_on(connection, endpoint, &vitals, read, from_unix_ms);
                }
                Err(_) if self.abort.is_stopping() => return End::Halt,
                Err(error) => cause = endpoint.redact(&format!("{endpoint}: {error}")),
            }
        }
        End::Failed(cause)
    }

    fn read_on(
        &self,
        mut connection: Connection,
        endpoint: &Endpoint,
        vitals: &Vitals,
        read: Read,
        from_unix_ms: u64,
    ) -> End {
        let mut kept = None;
        let end = self
            .consume(&mut connection, vitals, read, from_unix_ms, &mut kept)
            .unwrap_or_else(|error| End::Failed(error.to_string()));
        let question = self.watchdog.question();
        // Not closed in order where it failed: a broker that does not answer would hold this thread.
        if matches!(end, End::Failed(_)) {
            self.abort.cut();
        }
        let closed = connection.close();
        drop((question, kept));
        if vitals.violations() > 0 {
            increment(&self.counters.guard_violations);
        }
        match end {
            End::Failed(_) if self.abort.is_stopping() => End::Halt,
            End::Failed(cause) if cause.is_empty() => {
                let cause = connection::cause_of_end(closed);
                End::Failed(endpoint.redact(&format!("{endpoint}: {cause}")))
            }
            End::Failed(cause) => End::Failed(endpoint.redact(&format!("{endpoint}: {cause}"))),
            end => end,
        }
    }

    fn consume(
        &self,
        connection: &mut Connection,
        vitals: &Vitals,
        read: Read,
        from_unix_ms: u64,
        kept: &mut Option<Receiver<ConsumerMessage>>,
    ) -> amiquip::Result<End> {
        let question = self.watchdog.question();
        let channel = connection.open_channel(None)?;
        channel.qos(0, PREFETCH, false)?;
        let mut arguments = FieldTable::new();
        let begin = Duration::from_millis(from_unix_ms).saturating_sub(BEFORE);
        arguments.insert(
            "x-stream-offset".into(),
            AmqpValue::Timestamp(begin.as_secs()),
        );
        let options = ConsumerOptions {
            arguments,
            ..ConsumerOptions::default()
        };
        let consumer = channel.basic_consume(&*self.name, options)?;
        drop(question);
        let receiver = consumer.receiver().clone();
        *kept = Some(receiver.clone());
        let mut tail = Tail {
            reader: self,
            vitals,
            channel: &channel,
            read,
            credit: BATCHES_AHEAD,
            items: Vec::new(),
            bytes: 0,
            newest: None,
            unacked: 0,
            at: None,
            names: Vec::new(),
        };
        let end = tail.run(&receiver);
        if matches!(end, End::Failed(_)) {
            self.abort.cut();
        }
        let _question = self.watchdog.question();
        drop(consumer);
        Ok(end)
    }
}

/// A read under way.
struct Tail<'a> {
    reader: &'a Reader,
    vitals: &'a Vitals,
    channel: &'a Channel,
    read: Read,
    /// Batches that the loop has room for.
    credit: usize,
    /// The next batch.
    items: Vec<StoredItem>,
    bytes: usize,
    /// The newest delivery that is not acknowledged, and how many there are.
    newest: Option<Delivery>,
    unacked: usize,
    /// The offset of the last delivery.
    at: Option<u64>,
    /// Exchanges met, shared by their events.
    names: Vec<Arc<str>>,
}

impl Tail<'_> {
    fn run(&mut self, deliveries: &Receiver<ConsumerMessage>) -> End {
        let patience = self.reader.watchdog.answer_max();
        let mut heard = Instant::now();
        loop {
            if self.reader.abort.is_stopping() {
                return End::Halt;
            }
            if self.is_full() || deliveries.is_empty() && !self.items.is_empty() {
                if self.credit > 0 {
                    if self.flush().is_err() {
                        return End::Halt;
                    }
                } else {
                    heard = Instant::now();
                }
            }
            let takes = if self.is_full() { &never() } else { deliveries };
            let message = select! {
                recv(takes) -> message => message,
                recv(self.reader.end.commands) -> command => {
                    match command {
                        Ok(ToReader::Begin { read, from_unix_ms }) => return End::Another(read, from_unix_ms),
                        Ok(ToReader::More(read)) if read == self.read => self.credit += 1,
                        Ok(ToReader::End(read)) if read == self.read => return End::Ended,
                        Ok(ToReader::More(_) | ToReader::End(_)) => {}
                        Err(_) => return End::Halt,
                    }
                    continue;
                }
                default(Duration::from_millis(100)) => {
                    // Markers come all the time while the stream is read.
                    if heard.elapsed() > patience {
                        return End::Failed(format!("nothing came for {} s", patience.as_secs()));
                    }
                    continue;
                }
            };
            heard = Instant::now();
            match message {
                Ok(ConsumerMessage::Delivery(delivery)) => {
                    if self.take(delivery).is_err() {
                        return End::Failed(String::new());
                    }
                }
                Ok(ConsumerMessage::ServerCancelled) => {
                    return End::Failed("the stream was deleted, or has no replica here".into());
                }
                Ok(ConsumerMessage::ServerClosedChannel(error)) => {
                    return End::Failed(error.to_string());
                }
                Ok(
                    ConsumerMessage::ClientCancelled
                    | ConsumerMessage::ClientClosedChannel
                    | ConsumerMessage::ClientClosedConnection
                    | ConsumerMessage::ServerClosedConnection(_),
                )
                | Err(_) => return End::Failed(String::new()),
            }
        }
    }

    fn is_full(&self) -> bool {
        self.items.len() >= BATCH_ITEMS_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    fn flush(&mut self) -> Result<(), crate::handoff::LoopGone> {
        self.credit -= 1;
        self.bytes = 0;
        let items = std::mem::take(&mut self.items);
        self.reader.end.tell(FromReader::Items(self.read, items))
    }

    fn take(&mut self, mut delivery: Delivery) -> amiquip::Result<()> {
        increment(&self.reader.counters.stream_deliveries);
        self.vitals.taken(delivery.body.len());
        // Without one it stands behind more headers than the guard looks through.
        let offset = *delivery.properties.timestamp();
        let behind = self.at.map_or(0, |at| at.saturating_add(1));
        let at = offset.unwrap_or(behind).max(behind);
        self.at = Some(at);
        if let Some(what) = self.decode(&mut delivery) {
            if let Content::Event(event) = &what {
                self.bytes += event.bytes();
            }
            self.items.push(StoredItem {
                offset: Offset(at),
                what,
            });
        }
        self.newest = Some(delivery);
        self.unacked += 1;
        if self.unacked >= ACK_EVERY
            && let Some(newest) = self.newest.take()
        {
            self.unacked = 0;
            newest.ack_multiple(self.channel)?;
        }
        Ok(())
    }

    /// What a delivery is; `None`: nothing that concerns us. What cannot be an event was told of when it was live.
    fn decode(&mut self, delivery: &mut Delivery) -> Option<Content> {
        let exchange = std::mem::take(&mut delivery.exchange);
        let key = std::mem::take(&mut delivery.routing_key);
        let body = std::mem::take(&mut delivery.body);
        if exchange.is_empty() {
            // Nothing but markers comes by the default exchange.
            let marker = marker::read(&body, self.reader.origin)?;
            return Some(Content::Marker(marker));
        }
        let was_swallowed =
            body.is_empty() && self.vitals.swallowed(delivery.delivery_tag()).is_some();
        if was_swallowed || exchange.contains(SUBSTITUTE) || key.contains(SUBSTITUTE) {
            return None;
        }
        let id = EventId::of(&exchange, &key, &body);
        let encoding = delivery.properties.content_encoding().as_deref();
        let (head, body) = Event::read(body, encoding).ok()?;
        Some(Content::Event(Arc::new(Event {
            id,
            exchange: super::super::consumer::intern(&mut self.names, exchange),
            routing_key: key.into_boxed_str(),
            head,
            body,
            arrival: None,
        })))
    }
}
