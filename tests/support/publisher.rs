//! Publishers: a polite one through the AMQP client, and a raw one that sends what no client would.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use amiquip::{
    AmqpProperties, AmqpValue, Auth, Channel, Connection, ConnectionOptions, ConnectionTuning,
    ExchangeDeclareOptions, ExchangeType, FieldTable, Publish, QueueDeclareOptions,
};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::server::{BROKER_PATIENCE, wait_within};

/// Longest wait for a step of the connect.
const PATIENCE: Duration = Duration::from_secs(20);

/// Publishes through the AMQP client.
pub struct Publisher {
    channel: Channel,
    _connection: Connection,
}

/// The properties of an event.
fn plain(encoding: Option<&str>) -> AmqpProperties {
    let properties = AmqpProperties::default().with_content_type("application/json".into());
    match encoding {
        Some(encoding) => properties.with_content_encoding(encoding.into()),
        None => properties,
    }
}

impl Publisher {
    pub fn connect(url: &str) -> Self {
        Self::try_connect(url).expect("the broker takes connections")
    }

    /// As user `guest`, to a broker that may be away.
    pub fn try_connect(url: &str) -> Result<Self, amiquip::Error> {
        let url = url::Url::parse(url).unwrap();
        let address = (url.host_str().unwrap(), url.port().unwrap());
        let io = |source| amiquip::Error::FailedToConnect {
            url: url.clone(),
            source,
        };
        let socket = TcpStream::connect(address).map_err(io)?;
        // The client never sets it, and each call that is answered takes 40 ms without.
        socket.set_nodelay(true).map_err(io)?;
        let stream = mio06::net::TcpStream::from_stream(socket).map_err(io)?;
        let vhost = percent_decode_str(url.path().trim_start_matches('/'));
        let options = ConnectionOptions::<Auth>::default()
            .virtual_host(vhost.decode_utf8().unwrap())
            .connection_timeout(Some(PATIENCE));
        let mut connection =
            Connection::insecure_open_stream(stream, options, ConnectionTuning::default())?;
        let channel = connection.open_channel(None)?;
        Ok(Self {
            channel,
            _connection: connection,
        })
    }

    /// Declares a non-durable exchange, as the platform's publishers do.
    pub fn declare(&self, kind: ExchangeType, exchange: &str) {
        self.channel
            .exchange_declare(kind, exchange, ExchangeDeclareOptions::default())
            .unwrap();
    }

    /// Declares a durable classic queue.
    pub fn declare_queue(&self, name: &str) {
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        self.channel.queue_declare(name, options).unwrap();
    }

    pub fn delete(&self, exchange: &str) {
        self.channel.exchange_delete(exchange, false).unwrap();
    }

    pub fn publish(&self, exchange: &str, key: &str, body: &[u8]) {
        self.publish_encoded(exchange, key, body, None);
    }

    pub fn publish_encoded(&self, exchange: &str, key: &str, body: &[u8], encoding: Option<&str>) {
        self.publish_as(exchange, key, body, plain(encoding))
            .unwrap();
    }

    /// With this timestamp, behind headers, as the platform's publishers have them.
    pub fn publish_stamped(&self, exchange: &str, key: &str, body: &[u8], timestamp: u64) {
        let mut headers = FieldTable::new();
        headers.insert(
            "node".to_owned(),
            AmqpValue::LongString("kazoo@here".to_owned()),
        );
        let properties = plain(None)
            .with_headers(headers)
            .with_message_id("id".to_owned())
            .with_timestamp(timestamp);
        self.publish_as(exchange, key, body, properties).unwrap();
    }

    /// To a broker that may be away.
    pub fn try_publish(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
    ) -> Result<(), amiquip::Error> {
        self.publish_as(exchange, key, body, plain(None))
    }

    fn publish_as(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: AmqpProperties,
    ) -> Result<(), amiquip::Error> {
        self.channel
            .basic_publish(exchange, Publish::with_properties(body, key, properties))
    }

    /// Returns when the broker has done everything published so far.
    pub fn settle(&self) {
        self.try_settle().unwrap();
    }

    /// As [`Publisher::settle`], with a broker that may be away.
    pub fn try_settle(&self) -> Result<(), amiquip::Error> {
        self.channel.qos(0, 0, false)
    }
}

/// Asks a server as the platform does (PROTOCOL 8), and reads the answers from `targeted`.
pub struct Asker {
    publisher: Publisher,
    queue: String,
}

/// An answer: its JSON, as text too, and its header `Deliver-To-PID`.
pub struct Answered {
    pub json: Value,
    pub text: String,
    pub pid: Option<String>,
}

impl Asker {
    /// With a queue of this name, bound to `targeted` with that name, as a node of the platform has.
    pub fn connect(url: &str, queue: &str) -> Self {
        let publisher = Publisher::connect(url);
        for (exchange, kind) in [
            ("sysconf", ExchangeType::Topic),
            ("kapps", ExchangeType::Topic),
            ("targeted", ExchangeType::Direct),
        ] {
            publisher.declare(kind, exchange);
        }
        let options = QueueDeclareOptions {
            exclusive: true,
            ..QueueDeclareOptions::default()
        };
        let channel = &publisher.channel;
        channel.queue_declare(queue, options).unwrap();
        channel
            .queue_bind(queue, "targeted", queue, FieldTable::new())
            .unwrap();
        Self {
            publisher,
            queue: queue.to_owned(),
        }
    }

    /// The `Server-ID` of a process of the platform.
    pub fn server_id(&self) -> String {
        format!("pid://<0.1234.0>/{}", self.queue)
    }

    /// Asks which sessions there are: the platform's own message, with `more` over it.
    pub fn ask_for_sessions(&self, more: &Value) {
        let message = self.message("get_req", more);
        self.send("sysconf", "websockets.get", message.to_string().as_bytes());
    }

    /// Asks to start or stop a module: the platform's own message, with `more` over it.
    pub fn ask_for_module(&self, module: &str, action: &str, more: &Value) {
        let mut change = json!({"Module": module, "Action": action});
        lay_over(&mut change, more);
        let message = self.message("module_req", &change);
        self.send("kapps", "ws.module_req", message.to_string().as_bytes());
    }

    pub fn send(&self, exchange: &str, key: &str, body: &[u8]) {
        self.publisher.publish(exchange, key, body);
    }

    fn message(&self, name: &str, more: &Value) -> Value {
        let mut message = json!({
            "Event-Category": "websockets", "Event-Name": name, "Msg-ID": "msg-1", "Server-ID": self.server_id(),
            "App-Name": "crossbar", "App-Version": "4.3.142", "Node": "kazoo_apps@apps001.example.com",
            "System-Log-ID": "1a2b3c"
        });
        lay_over(&mut message, more);
        message
    }

    /// The next answer.
    pub fn answer(&self) -> Answered {
        let got = wait_within(BROKER_PATIENCE, "an answer", || {
            self.publisher
                .channel
                .basic_get(&*self.queue, true)
                .unwrap()
        });
        let delivery = got.delivery;
        let headers = delivery.properties.headers().clone().unwrap_or_default();
        let pid = headers.get("Deliver-To-PID").map(|value| match value {
            AmqpValue::LongString(text) => text.clone(),
            other => panic!("not a text: {other:?}"),
        });
        assert_eq!(delivery.exchange, "targeted");
        assert_eq!(
            delivery.properties.content_type().as_deref(),
            Some("application/json")
        );
        let text = String::from_utf8(delivery.body).unwrap();
        Answered {
            json: serde_json::from_str(&text).unwrap(),
            text,
            pid,
        }
    }

    /// The answer to [`Asker::ask_for_module`].
    pub fn switch(&self, module: &str, action: &str, more: &Value) -> Value {
        self.ask_for_module(module, action, more);
        self.answer().json
    }
}

fn lay_over(message: &mut Value, more: &Value) {
    let members = more.as_object().unwrap().clone();
    message.as_object_mut().unwrap().extend(members);
}

/// Writes AMQP frames by hand, as user `guest`.
pub struct RawPublisher {
    stream: TcpStream,
}

impl RawPublisher {
    pub fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the broker listens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut raw = Self { stream };
        raw.stream.write_all(b"AMQP\x00\x00\x09\x01").unwrap();
        raw.expect(10, 10);
        raw.method(
            0,
            10,
            11,
            &[
                &[0; 4],
                &short(b"PLAIN")[..],
                &long(b"\0guest\0guest"),
                &short(b"en_US"),
            ]
            .concat(),
        );
        raw.expect(10, 30);
        raw.method(0, 10, 31, &[0x07, 0xff, 0, 2, 0, 0, 0, 0]);
        raw.method(0, 10, 40, &[&short(b"/")[..], &short(b""), &[0]].concat());
        raw.expect(10, 41);
        raw.method(1, 20, 10, &short(b""));
        raw.expect(20, 11);
        raw
    }

    /// `headers` is the content of the `headers` table, encoded.
    pub fn publish(&mut self, exchange: &str, key: &[u8], headers: Option<&[u8]>, body: &[u8]) {
        self.method(
            1,
            60,
            40,
            &[&[0, 0][..], &short(exchange.as_bytes()), &short(key), &[0]].concat(),
        );
        let flags: u16 = if headers.is_some() { 1 << 13 } else { 0 };
        let table = headers.map(long).unwrap_or_default();
        let size = (body.len() as u64).to_be_bytes();
        self.frame(
            2,
            1,
            &[&[0, 60, 0, 0][..], &size, &flags.to_be_bytes(), &table].concat(),
        );
        self.frame(3, 1, body);
    }

    /// Returns when the broker has done everything published so far; ends the connection.
    pub fn finish(mut self) {
        self.method(1, 20, 40, &[&[0, 200][..], &short(b""), &[0; 4]].concat());
        self.expect(20, 41);
    }

    fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        self.frame(
            1,
            channel,
            &[&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat(),
        );
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        self.stream
            .write_all(&[&[kind][..], &channel.to_be_bytes(), &size, payload, &[0xce]].concat())
            .unwrap();
    }

    fn expect(&mut self, class: u16, method: u16) {
        let mut header = [0; 7];
        self.stream
            .read_exact(&mut header)
            .expect("the broker answers");
        let size = u32::from_be_bytes(header[3..].try_into().unwrap()) as usize;
        let mut payload = vec![0; size + 1];
        self.stream
            .read_exact(&mut payload)
            .expect("the broker answers");
        let answer = [
            u16::from_be_bytes([payload[0], payload[1]]),
            u16::from_be_bytes([payload[2], payload[3]]),
        ];
        assert_eq!(
            answer,
            [class, method],
            "{}",
            String::from_utf8_lossy(&payload)
        );
    }
}

/// The content of a `headers` table whose one value is `depth` arrays, each inside the other.
pub fn nested_headers(depth: usize) -> Vec<u8> {
    let mut table = b"\x01h".to_vec();
    for level in (0..depth).rev() {
        table.push(b'A');
        table.extend(u32::try_from(level * 5).unwrap().to_be_bytes());
    }
    table
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()][..], text].concat()
}

fn long(text: &[u8]) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat()
}
