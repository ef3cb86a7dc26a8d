//! What a stream costs the broker and its publishers: the same events to an exchange with one queue, and with one queue and
//! a stream. Nothing of ours runs.

use std::io;
use std::time::{Duration, Instant};

use amiquip::{
    AmqpValue, Channel, Connection, ConsumerMessage, ConsumerOptions, ExchangeType, FieldTable,
    Publish, QueueDeclareOptions,
};
use serde_json::{Value, json};

use super::Extent;
use crate::bridge::pinned_broker;
use crate::ours::{Call, EXCHANGE};
use crate::running::micros_each;
use crate::statistics::median;
use crate::subject::Cpu;
use crate::table::{Table, number, ratio};
use support::broker;

/// Events of one round.
const EVENTS: u32 = 20_000;

/// Segments as small as ours.
const SEGMENT_BYTES: i64 = 16 << 20;
const STREAM_BYTES_MAX: i64 = 1 << 30;

/// One row with a stream, and one without.
///
/// # Errors
/// [`io::ErrorKind::NotFound`]: RabbitMQ is not installed. Another: it refuses something.
pub(super) fn measure(body_bytes: usize, extent: &Extent) -> io::Result<Vec<Value>> {
    broker::installed()?;
    let broker = pinned_broker()?;
    eprintln!("resume: a stream on the broker");
    let pids = [broker.pid()];
    let calls: Vec<Call> = (0..1_000).map(|n| Call::new(n, 1, body_bytes)).collect();
    let events = EVENTS / extent.shrink;
    let ways = ["one queue", "one queue and a stream"];
    let mut figures = vec![(Vec::new(), Vec::new()); ways.len()];
    for round in 0..=extent.rounds {
        for (way, (rates, cpu)) in figures.iter_mut().enumerate() {
            let exchange = format!("{EXCHANGE}.{way}");
            let before = Cpu::settled(&pids)?;
            let took = publish(&broker.url(), &exchange, way == 1, &calls, events)
                .map_err(io::Error::other)?;
            let used = Cpu::settled(&pids)?.since(before);
            // The first round warms up and declares.
            if round > 0 {
                rates.push(f64::from(events) / took.as_secs_f64());
                cpu.push(micros_each(used.all, events));
            }
        }
    }
    let medians: Vec<(f64, f64)> = figures
        .iter()
        .map(|(rates, cpu)| (median(rates), median(cpu)))
        .collect();
    let rows = ways.iter().zip(&medians).map(|(way, (rate, cpu))| {
        json!({
            "part": "stream",
            "name": way,
            "events": events,
            "events_per_second": rate,
            "broker_cpu_us": cpu,
            "to_without_rate": rate / medians[0].0,
            "to_without_cpu": cpu / medians[0].1,
        })
    });
    Ok(rows.collect())
}

/// Publishes on one channel as fast as the broker takes it, until a consumer of the queue has all; returns how long the
/// publisher was at it: until the broker had confirmed the last.
fn publish(
    url: &str,
    exchange: &str,
    has_stream: bool,
    calls: &[Call],
    events: u32,
) -> amiquip::Result<Duration> {
    let mut connection = Connection::insecure_open(url)?;
    let channel = connection.open_channel(None)?;
    let declared = channel.exchange_declare(
        ExchangeType::Topic,
        exchange,
        amiquip::ExchangeDeclareOptions::default(),
    )?;
    if has_stream {
        let mut arguments = FieldTable::new();
        for (name, value) in [
            ("x-queue-type", AmqpValue::LongString("stream".into())),
            (
                "x-max-length-bytes",
                AmqpValue::LongLongInt(STREAM_BYTES_MAX),
            ),
            (
                "x-stream-max-segment-size-bytes",
                AmqpValue::LongLongInt(SEGMENT_BYTES),
            ),
        ] {
            arguments.insert(name.to_owned(), value);
        }
        let options = QueueDeclareOptions {
            durable: true,
            arguments,
            ..QueueDeclareOptions::default()
        };
        let stream = channel.queue_declare("bench.stream", options)?;
        stream.bind(&declared, "call.*.*", FieldTable::new())?;
    }
    let mut reader = Connection::insecure_open(url)?;
    let reading = reader.open_channel(None)?;
    let queue = reading.queue_declare(
        "",
        QueueDeclareOptions {
            exclusive: true,
            ..QueueDeclareOptions::default()
        },
    )?;
    queue.bind(
        &declared_on(&reading, exchange)?,
        "call.*.*",
        FieldTable::new(),
    )?;
    let consumer = queue.consume(ConsumerOptions {
        no_ack: true,
        ..ConsumerOptions::default()
    })?;
    channel.enable_publisher_confirms()?;
    let confirms = channel.listen_for_publisher_confirms()?;
    let begun = Instant::now();
    let mut confirmed = 0;
    let take = |confirm: amiquip::Confirm, confirmed: &mut u64| {
        let (amiquip::Confirm::Ack(payload) | amiquip::Confirm::Nack(payload)) = confirm;
        *confirmed = payload.delivery_tag.max(*confirmed);
    };
    for call in calls.iter().cycle().take(events as usize) {
        channel.basic_publish(
            exchange,
            Publish::new(call.body.as_bytes(), call.key.as_str()),
        )?;
        while let Ok(confirm) = confirms.try_recv() {
            take(confirm, &mut confirmed);
        }
    }
    while confirmed < u64::from(events) {
        match confirms.recv() {
            Ok(confirm) => take(confirm, &mut confirmed),
            Err(_) => break,
        }
    }
    let took = begun.elapsed();
    let mut delivered = 0;
    for message in consumer.receiver() {
        match message {
            ConsumerMessage::Delivery(_) => delivered += 1,
            _ => break,
        }
        if delivered == events {
            break;
        }
    }
    consumer.cancel()?;
    reader.close()?;
    connection.close()?;
    Ok(took)
}

fn declared_on<'c>(channel: &'c Channel, exchange: &str) -> amiquip::Result<amiquip::Exchange<'c>> {
    channel.exchange_declare(
        ExchangeType::Topic,
        exchange,
        amiquip::ExchangeDeclareOptions::default(),
    )
}

/// Prints the rows.
pub(super) fn print(rows: &[&Value]) {
    let mut table = Table::new(&[
        "exchange with",
        "events",
        "events/s of one channel",
        "to without",
        "broker CPU µs/event",
        "to without",
    ]);
    for row in rows {
        let figure = |name: &str| row[name].as_f64();
        table.row(vec![
            row["name"].as_str().unwrap_or("").to_owned(),
            row["events"].to_string(),
            number(figure("events_per_second"), 0),
            ratio(figure("to_without_rate")),
            number(figure("broker_cpu_us"), 1),
            ratio(figure("to_without_cpu")),
        ]);
    }
    table.note("One publisher with confirms, one consumer of the queue, nobody reads the stream; broker and both share one core.");
    table.print();
}
