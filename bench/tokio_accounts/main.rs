//! `tokio_accounts`: the platform's events to websocket sessions by account, on tokio, tokio-tungstenite and a
//! RabbitMQ client, the way most Rust users would write it, for the suite `plant`. A map from account to subscribers;
//! a task a session waits for its events and for its client; an event is one text for each of its subscribers, because
//! it carries the request id.
//!
//! It knows just what the suite needs: the three bindings of [`Kind`], whose wildcards it takes as given, any token,
//! subscribes but no unsubscribes. A session's entries stay until it is to get the next event, and what waits for it is
//! not bounded. It takes all events of the three kinds from the broker, acknowledged as they are sent, and finds the
//! account itself.
//!
//! `tokio_accounts PORT`: of a broker on this machine, user and password `guest`. The first line on stdout is `listening on IP:PORT`; the end of
//! stdin ends it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use amqprs::channel::{
    BasicConsumeArguments, ConsumerMessage, ExchangeDeclareArguments, QueueBindArguments,
    QueueDeclareArguments,
};
use amqprs::connection::{Connection, OpenConnectionArguments};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// As many connects may wait for their accept as the load generator has under way, and more.
const BACKLOG: u32 = 4096;

/// The smallest read buffer that one would take for density.
const READ_BUFFER_BYTES: usize = 1024;

/// What an account's realm has beside the account id, as it is written in a routing key.
const REALM_SUFFIX: &str = "%2Elocalhost";

/// The kinds of events.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Call,
    Document,
    Presence,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Call, Self::Document, Self::Presence];

    /// Where they are published.
    fn exchange(self) -> &'static str {
        match self {
            Self::Call => "callevt",
            Self::Document => "configuration",
            Self::Presence => "presence",
        }
    }

    /// The one AMQP binding for all accounts.
    fn amqp_binding(self) -> &'static str {
        match self {
            Self::Call => "call.*.*",
            Self::Document => "doc_edited.*.user.*",
            Self::Presence => "dialog.*.*",
        }
    }

    /// What a client asks for.
    fn client_binding(self) -> &'static str {
        match self {
            Self::Call => "call.*.*",
            Self::Document => "object.doc_edited.user",
            Self::Presence => "presence.dialog.*",
        }
    }
}

/// One subscription: where its session's events go, and its request id.
struct Subscriber {
    events: mpsc::UnboundedSender<Utf8Bytes>,
    request_id: String,
}

type Accounts = Rc<RefCell<HashMap<(Kind, String), Vec<Subscriber>>>>;

/// A subscribe command.
#[derive(Deserialize)]
struct Command {
    request_id: String,
    data: Subscribe,
}

#[derive(Deserialize)]
struct Subscribe {
    account_id: String,
    binding: String,
}

/// What of an event is of interest.
#[derive(Deserialize)]
struct Head<'e> {
    #[serde(rename = "Event-Name")]
    name: &'e str,
    #[serde(rename = "Account-ID")]
    account: Option<&'e str>,
    #[serde(rename = "Custom-Channel-Vars", borrow)]
    custom_channel_vars: Option<ChannelVars<'e>>,
}

#[derive(Deserialize)]
struct ChannelVars<'e> {
    #[serde(rename = "Account-ID")]
    account: Option<&'e str>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok());
    let port = port.ok_or_else(|| io::Error::other("usage: tokio_accounts PORT"))?;
    tokio::task::LocalSet::new().run_until(serve(port)).await
}

async fn serve(broker: u16) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_nodelay(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let listener = socket.listen(BACKLOG)?;
    let accounts = Accounts::default();
    let mut deliveries = consume(broker).await.map_err(io::Error::other)?;
    println!("listening on {}", listener.local_addr()?);
    let mut stdin = tokio::io::stdin();
    let mut byte = [0];
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                tokio::task::spawn_local(session(stream, accounts.clone()));
            }
            delivery = deliveries.recv() => match delivery {
                Some(delivery) => fan_out(&delivery, &mut accounts.borrow_mut()),
                None => return Err(io::Error::other("the broker is gone")),
            },
            read = stdin.read(&mut byte) => if read? == 0 {
                return Ok(());
            },
        }
    }
}

/// Binds a queue to all events of the three kinds, and consumes it.
async fn consume(
    broker: u16,
) -> Result<mpsc::UnboundedReceiver<ConsumerMessage>, amqprs::error::Error> {
    let arguments = OpenConnectionArguments::new("127.0.0.1", broker, "guest", "guest");
    let connection = Connection::open(&arguments).await?;
    let channel = connection.open_channel(None).await?;
    let queue = QueueDeclareArguments::exclusive_server_named().finish();
    let declared = channel.queue_declare(queue).await?;
    let (queue, _, _) = declared.expect("a declare that waits is answered");
    for kind in Kind::ALL {
        let exchange = ExchangeDeclareArguments::new(kind.exchange(), "topic");
        channel.exchange_declare(exchange).await?;
        let binding = QueueBindArguments::new(&queue, kind.exchange(), kind.amqp_binding());
        channel.queue_bind(binding).await?;
    }
    let consumer = BasicConsumeArguments::new(&queue, "")
        .manual_ack(false)
        .finish();
    let (_, deliveries) = channel.basic_consume_rx(consumer).await?;
    // Dropped, they would close; the process ends with them.
    std::mem::forget((connection, channel));
    Ok(deliveries)
}

/// Puts one delivery before the subscribers of its account; what is no event is dropped.
fn fan_out(delivery: &ConsumerMessage, accounts: &mut HashMap<(Kind, String), Vec<Subscriber>>) {
    let (Some(deliver), Some(body)) = (&delivery.deliver, &delivery.content) else {
        return;
    };
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| kind.exchange() == deliver.exchange());
    let (Some(kind), Ok(body)) = (kind, std::str::from_utf8(body)) else {
        return;
    };
    let Ok(head) = serde_json::from_str::<Head<'_>>(body) else {
        return;
    };
    let account = match kind {
        Kind::Call => head.custom_channel_vars.and_then(|vars| vars.account),
        Kind::Document => head.account,
        Kind::Presence => deliver
            .routing_key()
            .split('.')
            .nth(1)
            .and_then(|realm| realm.strip_suffix(REALM_SUFFIX)),
    };
    let Some(account) = account else {
        return;
    };
    let Some(subscribers) = accounts.get_mut(&(kind, account.to_owned())) else {
        return;
    };
    let binding = kind.client_binding();
    let begin = format!(
        r#"{{"action":"event","name":"{}","routing_key":"{}","args":{body},"subscribed_key":"{binding}","request_id":""#,
        head.name,
        deliver.routing_key(),
    );
    subscribers.retain(|subscriber| {
        let text = [&begin, &subscriber.request_id, r#""}"#].concat();
        subscriber.events.send(text.into()).is_ok()
    });
}

/// Serves one session until it ends.
async fn session(stream: TcpStream, accounts: Accounts) {
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
    let Ok(mut socket) = accept_async_with_config(stream, Some(config)).await else {
        return;
    };
    let (sender, mut events) = mpsc::unbounded_channel();
    loop {
        tokio::select! {
            Some(event) = events.recv() => {
                if socket.feed(Message::Text(event)).await.is_err() {
                    return;
                }
                // All that waits is written together.
                while let Ok(event) = events.try_recv() {
                    if socket.feed(Message::Text(event)).await.is_err() {
                        return;
                    }
                }
                if socket.flush().await.is_err() {
                    return;
                }
            }
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let reply = command(&text, sender.clone(), &accounts);
                    if socket.send(reply).await.is_err() {
                        return;
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
}

/// Does what a command says, and replies.
fn command(text: &str, events: mpsc::UnboundedSender<Utf8Bytes>, accounts: &Accounts) -> Message {
    let reply = |status, request_id: &str| {
        let reply = serde_json::json!({
            "action": "reply", "request_id": request_id, "status": status, "data": {"errors": []},
        });
        Message::text(reply.to_string())
    };
    let Ok(Command { request_id, data }) = serde_json::from_str(text) else {
        return reply("error", "");
    };
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| kind.client_binding() == data.binding);
    let Some(kind) = kind else {
        return reply("error", &request_id);
    };
    let reply = reply("success", &request_id);
    let mut accounts = accounts.borrow_mut();
    let subscribers = accounts.entry((kind, data.account_id)).or_default();
    subscribers.push(Subscriber { events, request_id });
    reply
}
