//! The real binary as a guarded child process, and a small websocket client for it.
//!
//! The client is tungstenite's own, so a frame that breaks RFC 6455 fails the test. Every wait has a deadline and
//! every panic shows the server's log.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

/// Longest wait for anything that must happen; generous, because test machines are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition that cannot be waited on is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A running `blackhole`; killed on drop.
pub struct Server {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    log: Arc<Log>,
}

/// What the server wrote to stderr so far.
#[derive(Default)]
struct Log {
    text: Mutex<String>,
    grown: Condvar,
}

impl Log {
    fn text(&self) -> String {
        self.text
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads `from` to its end.
    fn follow(&self, from: impl Read) {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
            text.push_str(&String::from_utf8_lossy(&line));
            text.push('\n');
            self.grown.notify_all();
        }
    }

    /// Waits for a line that contains `piece`.
    fn line(&self, piece: &str) -> Option<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(line) = text.lines().find(|line| line.contains(piece)) {
                return Some(line.to_owned());
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            text = self
                .grown
                .wait_timeout(text, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Server {
    /// Starts it on free ports, at log level debug, with `arguments` added, and waits until it listens.
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_blackhole"))
            .args([
                "--ip",
                "127.0.0.1",
                "--port",
                "0",
                "--admin",
                "127.0.0.1:0",
                "--log-level",
                "debug",
            ])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary was built with this test");
        let log = Arc::new(Log::default());
        let (stderr, follower) = (child.stderr.take().unwrap(), log.clone());
        thread::spawn(move || follower.follow(stderr));
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut first)
            .unwrap();
        let address = first
            .trim()
            .strip_prefix("listening on ")
            .and_then(|address| address.parse().ok());
        let admin = log.line("admin pages on http://").and_then(|line| {
            line.split_once("http://")?
                .1
                .split_once('/')?
                .0
                .parse()
                .ok()
        });
        match (address, admin) {
            (Some(address), Some(admin)) => Self {
                child,
                address,
                admin,
                log,
            },
            _ => panic!("the server did not start: {first:?}\n{}", log.text()),
        }
    }

    /// Starts it with this broker, `--auth insecure` and `arguments`, and waits until the broker is there.
    pub fn bridge(broker_url: &str, arguments: &[&str]) -> Self {
        Self::authorised(broker_url, &["--auth", "insecure"], arguments)
    }

    /// As [`Server::bridge`], with the `--auth` option given.
    pub fn authorised(broker_url: &str, auth: &[&str], arguments: &[&str]) -> Self {
        let server = Self::start(&[auth, &["--amqp", broker_url], arguments].concat());
        server.until_ready();
        server
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for a log line that contains `piece`.
    pub fn wait_for_line(&self, piece: &str) -> String {
        self.log
            .line(piece)
            .unwrap_or_else(|| panic!("never logged {piece:?}; instead:\n{}", self.log()))
    }

    /// Status code and body of an admin page.
    pub fn page(&self, path: &str) -> (u16, String) {
        let mut stream =
            TcpStream::connect(self.admin).expect("the admin listener takes connections");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut response = String::new();
        stream
            .read_to_string(&mut response)
            .expect("a whole response");
        let (head, body) = response.split_once("\r\n\r\n").expect("a head");
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        (
            status.unwrap_or_else(|| panic!("no status: {head}")),
            body.to_owned(),
        )
    }

    /// One value of `/metrics`; `name` without the prefix `blackhole_`.
    pub fn metric(&self, name: &str) -> u64 {
        let (_, page) = self.page("/metrics");
        let value = page
            .lines()
            .find_map(|line| line.strip_prefix(&format!("blackhole_{name} ")));
        value
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("no metric {name} in\n{page}"))
    }

    /// Waits until `is` holds.
    pub fn until(&self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        assert!(
            wait_until(|| is(self)),
            "never {what}\n{}\n{}",
            self.page("/metrics").1,
            self.log()
        );
    }

    pub fn until_ready(&self) {
        self.until("ready", |server| server.page("/readyz").0 == 200);
    }

    pub fn until_not_ready(&self) {
        self.until("not ready", |server| server.page("/readyz").0 == 503);
    }

    /// A websocket session.
    pub fn session(&self) -> Session {
        self.session_at("/")
    }

    /// A websocket session that asked for this path and query.
    pub fn session_at(&self, path: &str) -> Session {
        let stream = TcpStream::connect(self.address).expect("the server takes connections");
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let url = format!("ws://{}{path}", self.address);
        match tungstenite::client(url, stream) {
            Ok((socket, _)) => Session {
                socket,
                log: self.log.clone(),
                unread: VecDeque::new(),
            },
            Err(error) => panic!("no upgrade: {error}\n{}", self.log()),
        }
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is our child");
    }

    /// Waits for its end.
    pub fn exit_status(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until(|| {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap_or_else(|| panic!("it does not end:\n{}", self.log()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One websocket session. Frames that a call did not ask for wait, in order, for the call that does.
pub struct Session {
    socket: WebSocket<TcpStream>,
    log: Arc<Log>,
    unread: VecDeque<Value>,
}

impl Session {
    /// Sends one command without waiting for its reply.
    pub fn send(&mut self, command: &Value) {
        self.socket
            .send(Message::text(command.to_string()))
            .expect("the server takes commands");
    }

    /// The next reply.
    pub fn reply(&mut self) -> Value {
        self.first("reply", is_reply)
    }

    /// Sends a command and reads its reply.
    pub fn command(&mut self, command: &Value) -> Value {
        self.send(command);
        self.reply()
    }

    /// Subscribes; success is asserted. Answers the reply's `data.subscribed`.
    pub fn subscribe(&mut self, token: &str, account: &str, bindings: &[&str]) -> Value {
        let mut reply = self.command(&subscribe(token, account, bindings));
        assert_eq!(reply["status"], "success", "{reply}\n{}", self.log.text());
        reply["data"]["subscribed"].take()
    }

    /// The next frame that is no reply: an event or a notice.
    pub fn pushed(&mut self) -> Value {
        self.first("event or notice", |frame| !is_reply(frame))
    }

    /// The next frame that is no reply, which must be an event: a notice in its place fails the test.
    pub fn event(&mut self) -> Value {
        let frame = self.pushed();
        assert_eq!(frame["action"], "event", "{frame}\n{}", self.log.text());
        frame
    }

    /// The next frame that is no reply, which must be a notice.
    pub fn notice(&mut self) -> Value {
        let frame = self.pushed();
        assert_eq!(frame["action"], "notice", "{frame}\n{}", self.log.text());
        frame
    }

    /// Asserts that the server sent nothing but replies up to now: asks it, and looks at what came before.
    pub fn assert_nothing_came(&mut self, token: &str) {
        let reply = self.command(&json!({"action": "ping", "auth_token": token}));
        assert_eq!(reply["data"]["response"], "pong", "{reply}");
        assert!(self.unread.is_empty(), "{:?}", self.unread);
    }

    /// Says goodbye and waits for the server's.
    pub fn close(mut self) {
        self.socket.close(None).unwrap();
        while self.socket.read().is_ok() {}
    }

    /// Dies without a goodbye.
    pub fn die(self) {
        drop(self);
    }

    /// Reads until the server closes; answers its close frame.
    pub fn closed(&mut self) -> Option<CloseFrame> {
        loop {
            match self.socket.read() {
                Ok(Message::Close(frame)) => return frame,
                Ok(_) => {}
                Err(error) => panic!("no close frame: {error}\n{}", self.log.text()),
            }
        }
    }

    fn first(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.unread.iter().position(&is) {
            return self.unread.remove(at).unwrap();
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let frame = self.read(what, deadline);
            if is(&frame) {
                return frame;
            }
            self.unread.push_back(frame);
        }
    }

    fn read(&mut self, what: &str, deadline: Instant) -> Value {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.socket
                .get_ref()
                .set_read_timeout(Some(left.max(LOOK_AGAIN)))
                .unwrap();
            let error = match self.socket.read() {
                Ok(Message::Text(text)) => {
                    return serde_json::from_str(&text)
                        .unwrap_or_else(|error| panic!("{error}: {text}"));
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => continue,
                Ok(other) => format!("{other:?}"),
                Err(tungstenite::Error::Io(error))
                    if error.kind() == io::ErrorKind::WouldBlock && !left.is_zero() =>
                {
                    continue;
                }
                Err(error) => error.to_string(),
            };
            panic!(
                "no {what}: {error}; unread {:?}\n{}",
                self.unread,
                self.log.text()
            );
        }
    }
}

/// Waits until `is` holds; false when it never does.
pub fn wait_until(mut is: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if is() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::park_timeout(LOOK_AGAIN);
    }
}

/// A subscribe command.
pub fn subscribe(token: &str, account: &str, bindings: &[&str]) -> Value {
    json!({"action": "subscribe", "auth_token": token, "data": {"account_id": account, "bindings": bindings}})
}

fn is_reply(frame: &Value) -> bool {
    frame["action"] == "reply"
}
