//! Other servers that fan events out to websocket clients, set up as their users would for many idle sessions: no
//! persistence, no access log, small buffers, no connection limit. Each runs on ports and in a directory of its own
//! and shares nothing with a server of its kind that the machine may have.

mod mosquitto;
mod nats;
mod nchan;
mod nginx;
mod tokio;
mod web_mqtt;

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::ours::Call;
use crate::running::Running;
use crate::subject::{Batch, Candidate, Kind, Setup, Subject};
use shared::mqtt;

pub(crate) use mosquitto::MOSQUITTO;
pub(crate) use nats::{NATS, Nats};
pub(crate) use nchan::NCHAN;
pub(crate) use nginx::Nginx;
pub(crate) use tokio::{TOKIO, TOKIO_DEFAULTS, TOKIO_DEFLATE, TOKIO_DEFLATE_OWN};
pub(crate) use web_mqtt::WEB_MQTT;

/// The topic, subject or channel of events for all.
const TOPIC: &str = "events";

/// The one of each session by itself.
const OWN_TOPIC: &str = "events-{n}";

/// As many connects may wait for their accept as the load generator has under way, and more.
pub(crate) const BACKLOG: u32 = 4096;

/// Longest wait for a server to listen.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// Longest wait for a server's answer to a publisher.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const fn peer(
    name: &'static str,
    start: fn(&Setup<'_>) -> io::Result<Box<dyn Subject>>,
) -> Candidate {
    Candidate {
        name,
        kind: Kind::Peer,
        sessions_max: None,
        has_bindings: true,
        has_request_ids: false,
        start,
    }
}

/// Where `program` is; server programs are not on everybody's PATH.
///
/// # Errors
/// [`io::ErrorKind::NotFound`]: it is not installed, and is in the Debian package `package`.
pub(crate) fn find(program: &str, package: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| not_installed(program, package))
}

fn not_installed(what: &str, package: &str) -> io::Error {
    let text = format!("no {what}; scripts/setup --bench installs the Debian package {package}");
    io::Error::new(io::ErrorKind::NotFound, text)
}

/// An address on which nobody listens now.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// Waits until `address` takes connections; the last one is returned.
///
/// # Errors
/// The server has ended, or is still not there after [`START_PATIENCE`].
pub(crate) fn await_listening(running: &mut Running, address: SocketAddr) -> io::Result<TcpStream> {
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
                return Ok(stream);
            }
            Err(_) if running.is_alive() && Instant::now() < deadline => {
                sleep(Duration::from_millis(20));
            }
            Err(error) if running.is_alive() => return Err(error),
            Err(_) => return Err(io::Error::other("it ended before it listened")),
        }
    }
}

/// Writes a configuration file.
pub(crate) fn write_file(dir: &Path, name: &str, text: &str) -> io::Result<String> {
    let file = dir.join(name);
    fs::write(&file, text)?;
    Ok(file.display().to_string())
}

/// The processes that `pid` has started and that have not ended. Linear in the machine's processes.
fn children(pid: u32) -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has ended meanwhile is none.
        let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else {
            continue;
        };
        // The name, which may hold anything, is in parentheses; then come the state and the parent.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)?.parse().ok());
        if parent == Some(pid) {
            children.push(id);
        }
    }
    Ok(children)
}

/// The bodies of `batch`.
fn bodies(batch: Batch) -> impl Iterator<Item = String> {
    (1..=u64::from(batch.events)).map(move |n| Call::new(n, 1, batch.body_bytes).body)
}

/// A client that publishes by MQTT over TCP, at QoS 0.
struct MqttPublisher(TcpStream);

impl MqttPublisher {
    fn connect(mut stream: TcpStream) -> io::Result<Self> {
        use io::Read;
        stream.write_all(&mqtt::connect("publisher"))?;
        let mut connack = [0; 4];
        stream.read_exact(&mut connack)?;
        if connack != [0x20, 2, 0, 0] {
            return Err(io::Error::other(format!("CONNACK {connack:?}")));
        }
        Ok(Self(stream))
    }

    fn publish(&mut self, batch: Batch) -> io::Result<()> {
        let packets = bodies(batch).map(|body| {
            let mut payload = Vec::new();
            mqtt::text(&mut payload, TOPIC);
            payload.extend_from_slice(body.as_bytes());
            mqtt::packet(0x30, &payload)
        });
        let packets: Vec<_> = packets.collect();
        self.0.write_all(&packets.concat())
    }
}
