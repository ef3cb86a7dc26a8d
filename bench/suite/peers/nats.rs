//! NATS with its websocket listener. Pinned to one core, Go's scheduler runs one thread of Go code at a time.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use super::{OWN_TOPIC, TOPIC, await_listening, bodies, find, free_address, peer, write_file};
use crate::running::{Running, SERVER_CORE};
use crate::subject::{Batch, Candidate, Scenario, Subject};

pub(crate) const NATS: Candidate = peer("nats", |_| Ok(Box::new(Nats::start()?)));

/// The server, and a connection to publish on.
pub(crate) struct Nats {
    publisher: BufReader<TcpStream>,
    running: Running,
    websockets: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Nats {
    /// # Errors
    /// It is not installed, or does not start.
    pub(crate) fn start() -> io::Result<Self> {
        let program = find("nats-server", "nats-server")?;
        let (publishers, websockets) = (free_address()?, free_address()?);
        let dir = tempfile::tempdir()?;
        let configuration = format!(
            "listen: \"{publishers}\"\n\
             max_connections: 1000000\n\
             logtime: false\n\
             websocket {{ listen: \"{websockets}\", no_tls: true, compression: false }}\n"
        );
        let file = write_file(dir.path(), "nats.conf", &configuration)?;
        let mut running = Running::start_silent(SERVER_CORE, &program, &["-c".into(), file])?;
        await_listening(&mut running, websockets)?;
        let publisher = BufReader::new(await_listening(&mut running, publishers)?);
        let mut nats = Self {
            publisher,
            running,
            websockets,
            _dir: dir,
        };
        nats.say(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n")?;
        Ok(nats)
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Where websocket clients connect.
    pub(crate) fn websockets(&self) -> String {
        self.websockets.to_string()
    }

    /// Sends `lines` and a PING, and waits for its PONG: what was sent has then been dealt with.
    ///
    /// # Errors
    /// The server is gone, or refuses a line.
    pub(crate) fn say(&mut self, lines: &[u8]) -> io::Result<()> {
        self.publisher
            .get_mut()
            .write_all(&[lines, b"PING\r\n"].concat())?;
        loop {
            let mut line = String::new();
            if self.publisher.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end() {
                "PONG" => return Ok(()),
                "PING" => self.publisher.get_mut().write_all(b"PONG\r\n")?,
                line if line.starts_with("INFO ") => {}
                line => return Err(io::Error::other(line.to_owned())),
            }
        }
    }
}

impl Subject for Nats {
    fn pids(&self) -> Vec<u32> {
        vec![self.running.pid()]
    }

    fn address(&self) -> String {
        self.websockets.to_string()
    }

    fn load_arguments(&self, scenario: Scenario, _: u32) -> Vec<String> {
        let subject = match scenario {
            Scenario::Shared => TOPIC,
            Scenario::Own => OWN_TOPIC,
        };
        ["--dialect", "nats", "--binding", subject]
            .map(str::to_owned)
            .into()
    }

    fn publish(&mut self, batch: Batch) -> io::Result<()> {
        let publish = |body: String| format!("PUB {TOPIC} {}\r\n{body}\r\n", body.len());
        let lines: String = bodies(batch).map(publish).collect();
        self.say(lines.as_bytes())
    }
}
