//! One control connection: what is declared on it, and what is asked of it.
//!
//! Invariant: each answer is followed by a question to the broker on the same channel, so a refused publish is known, with
//! its reason, before the next.

use super::super::guard::Vitals;
use super::super::watchdog::Watchdog;
use crate::protocol::control::{Answer, MODULE_ADDRESS, SESSIONS_ADDRESS};
use amiquip::{
    AmqpProperties, AmqpValue, Channel, Connection, Consumer, ConsumerOptions, Delivery,
    ExchangeDeclareOptions, ExchangeType, FieldTable, Publish, QueueDeclareOptions,
};

/// Requests that the broker sends ahead of our acknowledgement.
const PREFETCH: u16 = 16;
/// Requests that wait on the broker; beyond it the oldest are lost, whose askers have given up first.
const QUEUE_LENGTH_MAX: i64 = 1000;
/// The exchange that answers are published to.
const ANSWERS: &str = "targeted";

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;

/// Why a connection ended, or did not come about.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The thread is to end.
    Stop,
    /// The user lacks a permission; which.
    Denied(String),
    /// Why, for the log.
    Because(String),
    /// The client's thread has ended; what closing the connection returns tells why.
    ClientGone,
}

/// A connection that is ready to be served.
pub(super) struct Post<'a> {
    requests: Channel,
    answers: Channel,
    queue: String,
    pub(super) watchdog: &'a Watchdog,
    pub(super) vitals: &'a Vitals,
}

/// What came of a call, with `permission` as what the user needs for it.
fn called<T>(call: amiquip::Result<T>, permission: &str) -> Result<T, Trouble> {
    use amiquip::Error::{
        ClientClosedConnection, EventLoopClientDropped, EventLoopDropped, ServerClosedChannel,
    };
    call.map_err(|error| match error {
        ServerClosedChannel { code, message, .. } if code == ACCESS_REFUSED => {
            Trouble::Denied(format!("the user needs {permission}: {message}"))
        }
        EventLoopDropped | EventLoopClientDropped | ClientClosedConnection => Trouble::ClientGone,
        error => Trouble::Because(error.to_string()),
    })
}

/// Makes sure that an exchange is there: passively first, because one may exist with other properties than ours, and a
/// user may lack the permission to make it (PROTOCOL 6). A refusal closes the channel, so each try has its own.
fn declare(connection: &mut Connection, name: &str, kind: ExchangeType) -> Result<(), Trouble> {
    let channel = called(connection.open_channel(None), "")?;
    match channel.exchange_declare_passive(name) {
        Err(amiquip::Error::ServerClosedChannel { code, .. }) if code == NOT_FOUND => {}
        answer => {
            called(answer, &format!("a look at exchange {name}"))?;
            return called(channel.close(), "");
        }
    }
    let channel = called(connection.open_channel(None), "")?;
    let declared = channel.exchange_declare(kind, name, ExchangeDeclareOptions::default());
    called(
        declared,
        &format!("configure on exchange {name}, which is not there yet"),
    )?;
    called(channel.close(), "")
}

impl<'a> Post<'a> {
    /// Declares the exchanges and a queue that dies with the connection, and binds it.
    pub(super) fn open(
        connection: &mut Connection,
        watchdog: &'a Watchdog,
        vitals: &'a Vitals,
    ) -> Result<Self, Trouble> {
        let _question = watchdog.question();
        for (exchange, kind) in [
            (SESSIONS_ADDRESS.0, ExchangeType::Topic),
            (MODULE_ADDRESS.0, ExchangeType::Topic),
            (ANSWERS, ExchangeType::Direct),
        ] {
            declare(connection, exchange, kind)?;
        }
        let requests = called(connection.open_channel(None), "")?;
        called(requests.qos(0, PREFETCH, false), "")?;
        let mut arguments = FieldTable::new();
        arguments.insert(
            "x-max-length".into(),
            AmqpValue::LongLongInt(QUEUE_LENGTH_MAX),
        );
        let options = QueueDeclareOptions {
            durable: false,
            exclusive: true,
            auto_delete: true,
            arguments,
        };
        let declared = requests.queue_declare("", options);
        let queue = called(declared, "configure on queues named amq.gen-…")?;
        let queue = queue.name().to_owned();
        for (exchange, key) in [SESSIONS_ADDRESS, MODULE_ADDRESS] {
            called(
                requests.queue_bind(&*queue, exchange, key, FieldTable::new()),
                &format!("write on queues named amq.gen-… and read on exchange {exchange}"),
            )?;
        }
        let answers = called(connection.open_channel(None), "")?;
        Ok(Self {
            requests,
            answers,
            queue,
            watchdog,
            vitals,
        })
    }

    /// Begins to take requests.
    pub(super) fn consume(&self) -> Result<Consumer<'_>, Trouble> {
        let _question = self.watchdog.question();
        let options = ConsumerOptions {
            exclusive: true,
            ..ConsumerOptions::default()
        };
        called(
            self.requests.basic_consume(&*self.queue, options),
            "read on queues named amq.gen-…",
        )
    }

    /// Publishes an answer. `node`: what this process is called.
    pub(super) fn publish(&self, answer: &Answer, node: &str) -> Result<(), Trouble> {
        let body = answer.to_json(node);
        let mut properties = AmqpProperties::default().with_content_type("application/json".into());
        if let Some(pid) = &answer.reply_to.pid {
            let mut headers = FieldTable::new();
            headers.insert(
                "Deliver-To-PID".into(),
                AmqpValue::LongString((**pid).into()),
            );
            properties = properties.with_headers(headers);
        }
        let key = &*answer.reply_to.routing_key;
        let publish = Publish::with_properties(&body, key, properties);
        let _question = self.watchdog.question();
        let published = self.answers.basic_publish(ANSWERS, publish);
        // Any call with an answer will do: the broker has then taken or refused what came before it.
        let published = published.and_then(|()| self.answers.qos(0, 0, false));
        called(published, &format!("write on exchange {ANSWERS}"))
    }

    /// Acknowledges a request, or says why not.
    pub(super) fn ack(&self, request: Delivery) -> Result<(), Trouble> {
        called(request.ack(&self.requests), "")
    }
}
