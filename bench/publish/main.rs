//! Publishes call events from files to RabbitMQ as the platform does, one after another, again and again: what the
//! demo shows, and a way to try a bridge on a broker without a platform.
//!
//! Each file is one event's body, published byte for byte to the exchange `callevt` with the routing key
//! `call.EVENT.CALLID` made of its `Event-Name` and `Call-ID` (PROTOCOL 6). Ends when it is killed, with code 1
//! when the broker goes away and 2 when it was called wrongly.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command talks on its own streams"
)]

use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use amiquip::{AmqpProperties, Connection, ExchangeDeclareOptions, ExchangeType, Publish};
use blackhole::routing::words::escape_into;
use serde_json::Value;

const USAGE: &str = "usage: blackhole-publish --amqp URL --interval-ms MS FILE...";

/// One event, ready to be published.
struct Event {
    key: String,
    body: Vec<u8>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ["--amqp", url, "--interval-ms", interval, files @ ..] =
        &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..]
    else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let events: Result<Vec<_>, _> = files.iter().map(|file| read(file)).collect();
    let (events, interval) = match (events, interval.parse()) {
        (Ok(events), Ok(interval)) if !events.is_empty() => {
            (events, Duration::from_millis(interval))
        }
        (Err(error), _) => {
            eprintln!("blackhole-publish: {error}");
            return ExitCode::from(2);
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Err(error) = publish(url, &events, interval);
    eprintln!("blackhole-publish: {error}");
    ExitCode::FAILURE
}

fn read(file: &str) -> Result<Event, String> {
    let body = fs::read(file).map_err(|error| format!("{file}: {error}"))?;
    let json: Value = serde_json::from_slice(&body).map_err(|error| format!("{file}: {error}"))?;
    let word = |name: &str| {
        json[name]
            .as_str()
            .ok_or_else(|| format!("{file}: no text {name}"))
    };
    let mut key = String::from("call.");
    escape_into(word("Event-Name")?, &mut key);
    key.push('.');
    escape_into(word("Call-ID")?, &mut key);
    Ok(Event { key, body })
}

/// Never ends but by an error of the broker.
fn publish(
    url: &str,
    events: &[Event],
    interval: Duration,
) -> amiquip::Result<std::convert::Infallible> {
    let mut connection = Connection::insecure_open(url)?;
    let channel = connection.open_channel(None)?;
    channel.exchange_declare(
        ExchangeType::Topic,
        "callevt",
        ExchangeDeclareOptions::default(),
    )?;
    let properties = AmqpProperties::default().with_content_type("application/json".to_owned());
    loop {
        for Event { key, body } in events {
            let message = Publish::with_properties(body, key.as_str(), properties.clone());
            channel.basic_publish("callevt", message)?;
            thread::sleep(interval);
        }
    }
}
