//! Two hands on the client's side of a real socket: [`Client`] speaks JSON through tungstenite, [`Raw`] sends any
//! bytes and sees the answer as it is. Every read has a deadline ([`PATIENCE`], or what the client was given). A third
//! hand is Python's ([`Python`]). What a server sends must be as the schemas of the protocol say ([`super::schemas`]).

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tungstenite::client::IntoClientRequest;
use tungstenite::http::{HeaderName, HeaderValue};
use tungstenite::{Error, Message, WebSocket};

use super::left_out::leave_out;
use super::schemas::{hold_answer, hold_command, hold_frame, hold_text};
use super::server::PATIENCE;
use super::tls::Stream;
use super::wire::{UPGRADE_REQUEST, client_frame, client_text, server_frames};

/// The token that clients of an insecure server send.
pub const ANY_TOKEN: &str = "any-token";

/// How long an [`Idle`] client is read before it sees whether it is to be taken back.
const GLANCE: Duration = Duration::from_millis(100);

/// A websocket client. Messages that a call did not ask for wait, in order, for the call that does.
pub struct Client {
    socket: WebSocket<Stream>,
    /// Received, and not yet asked for.
    held: VecDeque<Value>,
    patience: Duration,
}

impl Client {
    /// Connects with a plain upgrade request.
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, "/", &[])
    }

    /// Connects with this path and query and these headers; panics when refused.
    pub fn connect_with(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Self {
        Self::open(TcpStream::connect(address).unwrap(), path, headers)
    }

    /// As [`Client::connect_with`]; nothing when the connection is refused or ends before the upgrade.
    pub fn try_connect_with(
        address: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Option<Self> {
        Self::try_open(TcpStream::connect(address).ok()?, path, headers).ok()
    }

    /// Connects as the owner of this token.
    pub fn connect_as(address: SocketAddr, token: &str) -> Self {
        Self::connect_with(
            address,
            "/",
            &[("Authorization", &format!("Bearer {token}"))],
        )
    }

    /// Connects with a receive buffer of a few KiB, so that the server soon finds the socket full once this client
    /// does not read.
    pub fn connect_narrow(address: SocketAddr) -> Self {
        Self::open(narrow(address), "/", &[])
    }

    fn open(stream: TcpStream, path: &str, headers: &[(&str, &str)]) -> Self {
        Self::try_open(stream, path, headers).unwrap_or_else(|error| panic!("upgraded: {error}"))
    }

    fn try_open(stream: TcpStream, path: &str, headers: &[(&str, &str)]) -> Result<Self, String> {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let address = stream.peer_addr().map_err(|error| error.to_string())?;
        let mut request = format!("ws://{address}{path}")
            .into_client_request()
            .unwrap();
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            request
                .headers_mut()
                .insert(name, HeaderValue::from_str(value).unwrap());
        }
        let (socket, _response) =
            tungstenite::client(request, Stream::new(stream)).map_err(|error| error.to_string())?;
        Ok(Self {
            socket,
            held: VecDeque::new(),
            patience: PATIENCE,
        })
    }

    /// Sets the longest wait for a message, which is [`PATIENCE`] at first.
    pub fn set_patience(&mut self, patience: Duration) {
        let stream = self.socket.get_ref().tcp();
        stream.set_read_timeout(Some(patience)).unwrap();
        self.patience = patience;
    }

    /// The session id (PROTOCOL 1).
    pub fn session_id(&self) -> String {
        self.socket
            .get_ref()
            .tcp()
            .local_addr()
            .unwrap()
            .to_string()
    }

    /// Sends one command.
    pub fn send(&mut self, command: &Value) {
        self.send_text(&command.to_string());
    }

    /// Sends one text message.
    pub fn send_text(&mut self, text: &str) {
        self.socket
            .send(Message::text(text))
            .expect("the server takes it");
    }

    /// Sends bytes that need be no frame.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.socket
            .get_mut()
            .write_all(bytes)
            .expect("the server takes it");
    }

    /// Sends a websocket ping and waits for its pong.
    pub fn ping_pong(&mut self, payload: &'static [u8]) {
        self.socket.send(Message::Ping(payload.into())).unwrap();
        loop {
            match self.socket.read().expect("a pong within the patience") {
                Message::Pong(echo) => return assert_eq!(&*echo, payload),
                Message::Text(text) => self.held.push_back(frame_of(&text)),
                other => panic!("{other:?} instead of a pong"),
            }
        }
    }

    /// The text of the next message.
    pub fn recv_text(&mut self) -> String {
        assert!(
            self.held.is_empty(),
            "asked for behind what is held: {:?}",
            self.held
        );
        let text = self.read_text();
        hold_text(text.as_bytes());
        text
    }

    /// The next message.
    pub fn recv(&mut self) -> Value {
        self.held.pop_front().unwrap_or_else(|| self.read())
    }

    /// Sends a command and returns the next reply, which is its own, since replies keep the order of commands.
    pub fn ask(&mut self, command: &Value) -> Value {
        self.send(command);
        let reply = self.reply();
        hold_command(command, &reply);
        reply
    }

    /// The next reply; other messages are kept for later.
    pub fn reply(&mut self) -> Value {
        self.find(is_reply)
    }

    /// The reply that carries this request id; other messages are kept for later.
    pub fn reply_to(&mut self, request_id: &str) -> Value {
        self.find(|message| is_reply(message) && message["request_id"] == request_id)
    }

    /// The next message that is no reply: an event or a notice. Replies are kept for later.
    pub fn pushed(&mut self) -> Value {
        self.find(|message| !is_reply(message))
    }

    /// The next message that is no reply, which must be an event: a notice in its place fails the test.
    pub fn event(&mut self) -> Value {
        let message = self.pushed();
        assert_eq!(message["action"], "event", "{message}");
        message
    }

    /// The next message that is no reply, which must be a notice.
    pub fn notice(&mut self) -> Value {
        let message = self.pushed();
        assert_eq!(message["action"], "notice", "{message}");
        message
    }

    /// The next message of those that came up to now, or the answer to a ping when none did.
    pub fn next_or_pong(&mut self) -> Value {
        let reply = self.ask(&ping("nothing else came"));
        self.held.pop_front().unwrap_or(reply)
    }

    /// Asserts that nothing came up to now that nobody asked for: the server is asked, and its answer is the next
    /// message.
    pub fn assert_nothing_came(&mut self, token: &str) {
        let reply = self.ask(&ping_as(token, "nothing else came"));
        assert_eq!(reply["data"]["response"], "pong", "{reply}");
        assert!(self.held.is_empty(), "{:?}", self.held);
    }

    /// Subscribes and returns the reply.
    pub fn subscribe(&mut self, token: &str, account: &str, binding: &str) -> Value {
        self.ask(&subscribe(token, account, binding))
    }

    /// Subscribes; panics unless that succeeds.
    pub fn must_subscribe(&mut self, token: &str, account: &str, binding: &str) {
        let reply = self.subscribe(token, account, binding);
        assert_eq!(reply["status"], "success", "{binding}: {reply}");
    }

    /// Subscribes to a list of bindings; panics unless that succeeds.
    pub fn must_subscribe_to_all(&mut self, token: &str, account: &str, bindings: &[&str]) {
        let reply = self.ask(&subscribe_to_all(token, account, bindings));
        assert_eq!(reply["status"], "success", "{bindings:?}: {reply}");
    }

    /// Reads the rest: messages, then a close frame, then the end of the TCP connection, which is the server's to
    /// end (RFC 6455 section 7.1.1). Returns the messages, code and reason.
    pub fn read_to_close(&mut self) -> (Vec<Value>, u16, String) {
        let mut messages: Vec<Value> = self.held.drain(..).collect();
        let close = loop {
            match self.socket.read().expect("a close within the patience") {
                Message::Text(text) => messages.push(frame_of(&text)),
                Message::Close(frame) => break frame.expect("a close with a code"),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        };
        match self.socket.read() {
            Err(Error::ConnectionClosed) => {}
            other => panic!("{other:?} instead of the end of the connection"),
        }
        (
            messages,
            close.code.into(),
            close.reason.as_str().to_owned(),
        )
    }

    /// Reads the rest of a connection that may have been given up in the middle of a frame: messages, and the code
    /// of the close if one came.
    pub fn read_what_is_left(&mut self) -> (Vec<Value>, Option<u16>) {
        let mut messages: Vec<Value> = self.held.drain(..).collect();
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => messages.push(frame_of(&text)),
                Ok(Message::Close(frame)) => {
                    return (messages, frame.map(|frame| frame.code.into()));
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(other) => panic!("{other:?}"),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    panic!("no end within {:?}", self.patience)
                }
                Err(_) => return (messages, None),
            }
        }
    }

    /// As [`Client::read_to_close`], without messages before it.
    pub fn expect_close(&mut self) -> (u16, String) {
        let (messages, code, reason) = self.read_to_close();
        assert!(messages.is_empty(), "{messages:?}");
        (code, reason)
    }

    /// Closes in good order: our close frame, the server's, the end of the connection.
    pub fn close(mut self) {
        self.socket.close(None).unwrap();
        loop {
            match self.socket.read() {
                Ok(_) => {}
                Err(Error::ConnectionClosed) => return,
                Err(error) => panic!("{error} instead of the end of the connection"),
            }
        }
    }

    fn find(&mut self, mut is_wanted: impl FnMut(&Value) -> bool) -> Value {
        if let Some(at) = self.held.iter().position(&mut is_wanted) {
            return self.held.remove(at).unwrap();
        }
        let deadline = Instant::now() + self.patience;
        loop {
            let message = self.read();
            if is_wanted(&message) {
                return message;
            }
            self.held.push_back(message);
            assert!(
                Instant::now() < deadline,
                "not within {:?}; held: {:?}",
                self.patience,
                self.held
            );
        }
    }

    /// Reads for as long as its patience: answers a ping, keeps a message for later.
    fn glance(&mut self) {
        match self.socket.read() {
            Ok(Message::Text(text)) => self.held.push_back(frame_of(&text)),
            Ok(Message::Ping(_)) => self.socket.flush().expect("the server takes it"),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => panic!("{other:?} on an idle session"),
        }
    }

    fn read(&mut self) -> Value {
        frame_of(&self.read_text())
    }

    fn read_text(&mut self) -> String {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return text.as_str().to_owned(),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(other) => panic!("{other:?} instead of a text; held: {:?}", self.held),
                Err(error) => panic!("{error}; held: {:?}", self.held),
            }
        }
    }
}

/// A client that a test has no use for over a long time, read on a thread meanwhile: a session that answers no ping for
/// half a minute is closed, and a slow machine takes longer than that to restart a broker.
pub struct Idle {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Client>,
}

impl Idle {
    /// Reads `client` until it is taken back; what it gets is kept for then.
    pub fn start(mut client: Client) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let is_over = is_over.clone();
            move || {
                let patience = client.patience;
                client.set_patience(GLANCE);
                while !is_over.load(Ordering::SeqCst) {
                    client.glance();
                }
                client.set_patience(patience);
                client
            }
        });
        Self { is_over, thread }
    }

    /// The client, at the latest [`GLANCE`] later.
    pub fn take_back(self) -> Client {
        self.is_over.store(true, Ordering::SeqCst);
        self.thread.join().expect("its session is open")
    }
}

/// The valid upgrade request with these header lines, too.
pub fn upgrade_with(lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let host = "Host: localhost\r\n";
    UPGRADE_REQUEST.replacen(host, &format!("{host}{lines}"), 1)
}

/// A subscribe command.
pub fn subscribe(token: &str, account: &str, binding: &str) -> Value {
    json!({"action": "subscribe", "auth_token": token, "data": {"account_id": account, "binding": binding}})
}

/// A subscribe command for a list of bindings.
pub fn subscribe_to_all(token: &str, account: &str, bindings: &[&str]) -> Value {
    json!({"action": "subscribe", "auth_token": token, "data": {"account_id": account, "bindings": bindings}})
}

/// A ping command that needs no token any more.
pub fn ping(request_id: &str) -> Value {
    json!({"action": "ping", "request_id": request_id})
}

/// A ping command with a token.
pub fn ping_as(token: &str, request_id: &str) -> Value {
    json!({"action": "ping", "auth_token": token, "request_id": request_id})
}

/// The data of a success reply.
pub fn success(reply: &Value) -> &Value {
    assert_eq!(
        (&reply["action"], &reply["status"]),
        (&json!("reply"), &json!("success")),
        "{reply}"
    );
    &reply["data"]
}

/// The errors of an error reply.
pub fn errors(reply: &Value) -> Vec<&str> {
    assert_eq!(reply["status"], "error", "{reply}");
    assert_eq!(reply["action"], "reply", "{reply}");
    reply["data"]["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error.as_str().unwrap())
        .collect()
}

/// A frame of the server, held against its schema.
fn frame_of(text: &str) -> Value {
    let frame = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    hold_frame(&frame);
    frame
}

fn is_reply(message: &Value) -> bool {
    message["action"] == "reply"
}

/// Python with the `websockets` package.
pub struct Python(PathBuf);

impl Python {
    /// `None` where it was not set up: the running test is left out, which is said ([`leave_out`]).
    pub fn installed() -> Option<Self> {
        let python = crate::project_file("target/python/bin/python");
        if !python.exists() {
            let name = python.display();
            leave_out(&format_args!("{name} is missing: run scripts/setup"));
            return None;
        }
        Some(Self(python))
    }

    /// Its stdin is empty and its stdout piped.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.0);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }
}

/// A connection whose receive buffer has a few KiB.
fn narrow(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect_timeout(&address.into(), PATIENCE).unwrap();
    socket.into()
}

/// A connection that sends any bytes.
pub struct Raw {
    stream: Stream,
    /// Received, and not yet looked at.
    bytes: Vec<u8>,
    /// The other end has ended the connection without ending TLS first: what came may not be all.
    is_cut: bool,
}

/// An HTTP response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    fn parse(head: &str, body: &str) -> Self {
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .unwrap()
            .strip_prefix("HTTP/1.1 ")
            .expect("a status line");
        let status = status.split(' ').next().unwrap().parse().unwrap();
        let headers = lines
            .map(|line| line.split_once(": ").expect("name and value"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let response = Self {
            status,
            headers,
            body: body.to_owned(),
        };
        if response.header("content-type") == Some("application/json") && !body.is_empty() {
            hold_answer(body);
        }
        response
    }

    /// The value of a header; the name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, value)| &**value)
    }
}

/// What [`Raw::peek`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Peek {
    /// More bytes have arrived.
    Bytes,
    /// Nothing came in that time.
    Nothing,
    /// The connection has ended.
    Ended,
}

impl Raw {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    /// Connects and speaks no TLS, whatever is spoken there.
    pub fn connect_plainly(address: SocketAddr) -> Self {
        Self::connect(address).plainly()
    }

    /// The connection, over which nothing was sent yet, without TLS.
    #[must_use]
    pub fn plainly(self) -> Self {
        Self {
            stream: self.stream.without_tls(),
            ..self
        }
    }

    /// Connects from this loopback address.
    pub fn connect_from(ip: [u8; 4], address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
        socket.connect_timeout(&address.into(), PATIENCE).unwrap();
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream: Stream::new(stream),
            bytes: Vec::new(),
            is_cut: false,
        }
    }

    /// Connects and upgrades.
    pub fn upgraded(address: SocketAddr) -> Self {
        Self::connect(address).upgrade()
    }

    /// As [`Raw::upgraded`], with the receive buffer of [`Client::connect_narrow`].
    pub fn upgraded_narrow(address: SocketAddr) -> Self {
        Self::over(narrow(address)).upgrade()
    }

    /// The session id (PROTOCOL 1).
    pub fn session_id(&self) -> String {
        self.stream.tcp().local_addr().unwrap().to_string()
    }

    fn upgrade(mut self) -> Self {
        self.send(UPGRADE_REQUEST.as_bytes());
        assert_eq!(self.head().status, 101);
        self
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream
            .write_behind(b"", bytes)
            .expect("the server takes it");
    }

    /// Sends bytes that the server may no longer want.
    pub fn try_send(&mut self, bytes: &[u8]) {
        self.try_send_behind(b"", bytes);
    }

    /// As [`Raw::try_send`], behind what stands in clear before all TLS, such as the header of a proxy. Nothing may have
    /// been sent but such.
    pub fn try_send_behind(&mut self, clear: &[u8], bytes: &[u8]) {
        let _ = self.stream.write_behind(clear, bytes);
    }

    /// Sends a masked frame; `first` is its first byte.
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) {
        self.send(&client_frame(first, payload));
    }

    pub fn send_text(&mut self, text: &str) {
        self.send(&client_text(text));
    }

    /// The head of a response that is followed by frames.
    pub fn head(&mut self) -> Response {
        loop {
            if let Some(end) = self
                .bytes
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                let head = String::from_utf8(self.bytes.drain(..end + 4).collect()).unwrap();
                return Response::parse(head.trim_end(), "");
            }
            assert_eq!(
                self.peek(PATIENCE),
                Peek::Bytes,
                "{:?}",
                String::from_utf8_lossy(&self.bytes)
            );
        }
    }

    /// What comes until the server ends the connection.
    pub fn rest(&mut self) -> String {
        String::from_utf8(self.rest_as_bytes()).unwrap()
    }

    /// As [`Raw::rest`], of what need be no text.
    pub fn rest_as_bytes(&mut self) -> Vec<u8> {
        while self.peek(PATIENCE) == Peek::Bytes {}
        std::mem::take(&mut self.bytes)
    }

    /// The response of a connection that the server then ends.
    pub fn last_response(&mut self) -> Response {
        let text = self.rest();
        assert!(!self.is_cut, "TLS was not ended behind {text:?}");
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no response: {text:?}"));
        Response::parse(head, body)
    }

    /// The next frame: opcode and payload.
    pub fn frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            let length = first_frame(&self.bytes);
            if length > 0 {
                let frame: Vec<u8> = self.bytes.drain(..length).collect();
                return server_frames(&frame).0.remove(0);
            }
            assert_eq!(self.peek(PATIENCE), Peek::Bytes, "no frame");
        }
    }

    /// The next frame, deflated or not: its first byte and its payload as it came.
    pub fn any_frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            let length = first_frame(&self.bytes);
            if length > 0 {
                let frame: Vec<u8> = self.bytes.drain(..length).collect();
                let header = match frame[1] {
                    126 => 4,
                    127 => 10,
                    _ => 2,
                };
                return (frame[0], frame[header..].to_vec());
            }
            assert_eq!(self.peek(PATIENCE), Peek::Bytes, "no frame");
        }
    }

    /// The next frame, a text, as JSON.
    pub fn json(&mut self) -> Value {
        let (opcode, payload) = self.frame();
        assert_eq!(opcode, 1, "{:?}", String::from_utf8_lossy(&payload));
        serde_json::from_slice(&payload).unwrap()
    }

    /// A close frame, and then the end of the connection without a byte between: code and reason.
    pub fn expect_close(&mut self) -> (Option<u16>, String) {
        let (opcode, payload) = self.frame();
        assert_eq!(opcode, 8, "{:?}", String::from_utf8_lossy(&payload));
        assert_eq!(self.peek(PATIENCE), Peek::Ended);
        assert!(self.bytes.is_empty(), "{:?}", self.bytes);
        assert!(!self.is_cut, "TLS was not ended behind the close");
        let code = payload
            .get(..2)
            .map(|code| u16::from_be_bytes([code[0], code[1]]));
        (
            code,
            String::from_utf8(payload.get(2..).unwrap_or_default().to_vec()).unwrap(),
        )
    }

    /// Waits at most `patience` for the next bytes or the end.
    pub fn peek(&mut self, patience: Duration) -> Peek {
        self.stream.tcp().set_read_timeout(Some(patience)).unwrap();
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => Peek::Ended,
            Ok(count) => {
                self.bytes.extend_from_slice(&chunk[..count]);
                Peek::Bytes
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Peek::Ended,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.is_cut = true;
                Peek::Ended
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                Peek::Nothing
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Ends the connection as a crash would: with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(self.stream.tcp())
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }

    /// Ends our side of the stream.
    pub fn shutdown_write(&mut self) {
        self.stream.shutdown_write().unwrap();
    }
}

/// Length of the first server frame in `bytes`; 0 when it is not complete.
fn first_frame(bytes: &[u8]) -> usize {
    let (start, length) = match bytes {
        [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([*high, *low]))),
        [_, 127, a, b, c, d, e, f, g, h, ..] => (
            10,
            u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h])
                .try_into()
                .unwrap(),
        ),
        [_, 126 | 127, ..] => return 0,
        [_, length, ..] => (2, usize::from(*length)),
        _ => return 0,
    };
    if bytes.len() >= start + length {
        start + length
    } else {
        0
    }
}
