//! Who serves a plant: Blackhole and a server on tokio-tungstenite from RabbitMQ, NATS by itself.

use std::io;
use std::path::Path;

use super::mix::{Event, Kind};
use crate::ours;
use crate::peers::Nats;
use crate::running::{Running, SERVER_CORE};
use shared::programs;
use support::broker::Broker;
use support::publisher::Publisher;

/// A server that runs, and how events get to it.
pub(crate) struct Server {
    /// The processes whose CPU is its cost.
    pub(crate) pids: Vec<u32>,
    /// Where websocket clients connect.
    pub(crate) address: String,
    /// Dialect and subscribes of `blackhole-load`.
    pub(crate) load_arguments: Vec<String>,
    /// Whether its main thread is a loop and the others speak AMQP.
    pub(crate) has_amqp_threads: bool,
    pub(crate) events: Box<dyn Events>,
    /// Ends it.
    _running: Option<Running>,
}

/// The way of events to a server.
pub(crate) trait Events {
    /// Publishes all of `events`.
    ///
    /// # Errors
    /// The broker or server is gone.
    fn publish(&mut self, events: &[Event]) -> io::Result<()>;
}

impl Server {
    /// Blackhole.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn ours(program: &Path, broker: &Broker) -> io::Result<Self> {
        let mut arguments: Vec<String> = ours::ARGUMENTS.map(str::to_owned).into();
        arguments.extend(["--amqp".to_owned(), broker.url()]);
        let running = Running::start(SERVER_CORE, program, &arguments)?;
        Self::of_broker(running, broker, true)
    }

    /// `bench/tokio_accounts`.
    ///
    /// # Errors
    /// It was not built, or does not start.
    pub(crate) fn tokio(broker: &Broker) -> io::Result<Self> {
        let program = programs::beside("tokio_accounts", "blackhole-bench")?;
        let arguments = [broker.port().to_string()];
        let running = Running::start(SERVER_CORE, &program, &arguments)?;
        Self::of_broker(running, broker, false)
    }

    /// One subscribe command for each binding, each with a GUID of its own, as the platform's web UI does.
    fn of_broker(
        mut running: Running,
        broker: &Broker,
        has_amqp_threads: bool,
    ) -> io::Result<Self> {
        let address = running.listening()?;
        let commands = Kind::ALL.into_iter().enumerate().flat_map(|(at, kind)| {
            let binding = kind.binding();
            let command = format!(
                r#"{{"action":"subscribe","auth_token":"{{token}}","request_id":"6ba7b81{at}-9dad-41d1-80b4-{{hex}}","data":{{"account_id":"{{account}}","binding":"{binding}"}}}}"#
            );
            ["--subscribe".to_owned(), command]
        });
        Ok(Self {
            pids: vec![running.pid()],
            address,
            load_arguments: commands.collect(),
            has_amqp_threads,
            events: Box::new(Publisher::connect(&broker.url())),
            _running: Some(running),
        })
    }

    /// NATS: a subject for each kind of each account, and the publisher connected to the server itself. What stands
    /// for the request id is the number of the subscription.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub(crate) fn nats() -> io::Result<Self> {
        let nats = Nats::start()?;
        let subjects = Kind::ALL
            .into_iter()
            .flat_map(|kind| ["--binding".to_owned(), kind.subject("{account}")]);
        let dialect = ["--dialect", "nats"].map(str::to_owned);
        Ok(Self {
            pids: vec![nats.pid()],
            address: nats.websockets(),
            load_arguments: dialect.into_iter().chain(subjects).collect(),
            has_amqp_threads: false,
            events: Box::new(nats),
            _running: None,
        })
    }
}

impl Events for Publisher {
    fn publish(&mut self, events: &[Event]) -> io::Result<()> {
        for event in events {
            self.try_publish(event.kind.exchange(), &event.key, event.body.as_bytes())
                .map_err(io::Error::other)?;
        }
        Ok(())
    }
}

impl Events for Nats {
    fn publish(&mut self, events: &[Event]) -> io::Result<()> {
        let mut lines = String::new();
        for Event {
            kind,
            account,
            body,
            ..
        } in events
        {
            let subject = kind.subject(account);
            lines.push_str(&format!("PUB {subject} {}\r\n{body}\r\n", body.len()));
        }
        self.say(lines.as_bytes())
    }
}
