//! The real HAProxy and nginx with the files of `scripts/`, the places of processes behind them, and clients that come over
//! TLS.
//!
//! Of a file only addresses and paths are replaced, each of which must be in it; options are switched on as the file says.
//! A proxy never outlives its guard.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, Signal, geteuid, kill_process, kill_process_group};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::HandshakeError;
use tungstenite::http::{HeaderName, HeaderValue, Response};
use tungstenite::{Error, Message, WebSocket};

use super::tools::program;
use support::certificates::{Ca, Certified};
use support::client::{ANY_TOKEN, ping_as};
use support::server::{BROKER_PATIENCE, PATIENCE, Server, blackhole, own_address, wait_for};

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Haproxy,
    Nginx,
}

impl Kind {
    /// Those that are installed. That another is not is said, as of a test that is left out.
    pub(crate) fn each() -> impl Iterator<Item = Self> {
        [Self::Haproxy, Self::Nginx]
            .into_iter()
            .filter(|kind| program(kind.name()).is_some())
    }

    fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    /// The file that operators copy.
    fn shipped(self) -> &'static str {
        match self {
            Self::Haproxy => "scripts/haproxy.cfg",
            Self::Nginx => "scripts/nginx.conf",
        }
    }

    /// How the file says that its processes are started.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Haproxy => &[
                "--proxy-protocol",
                "required",
                "--trusted-proxies",
                "127.0.0.1",
            ],
            Self::Nginx => &["--trusted-proxies", "127.0.0.1"],
        }
    }
}

/// The addresses of one process behind the proxy, which stay the same when it is replaced.
pub(crate) struct Place {
    websockets: SocketAddr,
    /// Of websockets with TLS.
    secured: SocketAddr,
    admin: SocketAddr,
}

impl Place {
    pub(crate) fn new() -> Self {
        let websockets = own_address();
        // Of the same IP, on which nobody else takes ports.
        let more = [(); 2].map(|()| TcpListener::bind((websockets.ip(), 0)).unwrap());
        let [secured, admin] = more.map(|socket| socket.local_addr().unwrap());
        assert!(websockets != admin && websockets != secured);
        Self {
            websockets,
            secured,
            admin,
        }
    }

    /// Two of them.
    pub(crate) fn two() -> [Self; 2] {
        [Self::new(), Self::new()]
    }

    /// Starts a process here, as one behind this kind of proxy, with `args` behind.
    pub(crate) fn start(&self, kind: Kind, args: &[&str]) -> Server {
        self.start_at(self.admin, kind, args)
    }

    /// As [`Place::start`], with TLS of its own too, by this certificate.
    pub(crate) fn start_secured(&self, kind: Kind, files: &Certified, args: &[&str]) -> Server {
        let port = self.secured.port().to_string();
        let [cert, key] = [files.cert(), files.key()].map(|file| file.display().to_string());
        let tls = [
            "--use-ssl",
            "--ssl-port",
            &port,
            "--ssl-cert",
            &cert,
            "--ssl-key",
            &key,
        ];
        self.start(kind, &[&tls[..], args].concat())
    }

    /// As [`Place::start`], with an admin address that is no other process's, for several on one port.
    pub(crate) fn start_beside(&self, kind: Kind, args: &[&str]) -> Server {
        self.start_at(([127, 0, 0, 1], 0).into(), kind, args)
    }

    fn start_at(&self, admin: SocketAddr, kind: Kind, args: &[&str]) -> Server {
        let mut command = blackhole();
        command.args(["--ip", &self.websockets.ip().to_string()]);
        command.args(["--port", &self.websockets.port().to_string()]);
        command.args(["--admin", &admin.to_string()]);
        command.args(kind.options()).args(args);
        // An end takes as long as its drain.
        Server::spawn_patient(BROKER_PATIENCE, command)
    }
}

/// A running proxy before two places; ended with its workers on drop.
pub(crate) struct Proxy {
    kind: Kind,
    child: Child,
    dir: TempDir,
    address: SocketAddr,
    /// Of the option `stream` of nginx, or `pass` of HAProxy.
    stream_address: SocketAddr,
    /// Of the option `ipv6`; none where there is no IPv6.
    six_address: Option<SocketAddr>,
    ca: Arc<ClientConfig>,
    ca_pem: PathBuf,
    ca_of_all: Ca,
}

impl Proxy {
    /// Starts one with the shipped file; returns once it takes connections.
    pub(crate) fn start(kind: Kind, places: &[Place; 2]) -> Self {
        Self::start_with(kind, places, &[])
    }

    /// As [`Proxy::start`], with these options of the file switched on.
    pub(crate) fn start_with(kind: Kind, places: &[Place; 2], options: &[&str]) -> Self {
        let program = program(kind.name()).expect("it was found before");
        let dir = tempfile::tempdir().unwrap();
        let (address, stream_address) = (own_address(), own_address());
        let six = TcpListener::bind("[::1]:0");
        let six_address = six.ok().map(|six| six.local_addr().unwrap());
        let ca = Ca::new();
        let names = format!("DNS:localhost,IP:{}", address.ip());
        let certified = ca.certify(&names, 9);
        let (cert, key) = (
            fs::read(certified.cert()).unwrap(),
            fs::read(certified.key()).unwrap(),
        );
        // HAProxy wants both in one file; nginx passes over the key.
        fs::write(dir.path().join("cert.pem"), [cert, key.clone()].concat()).unwrap();
        fs::write(dir.path().join("key.pem"), key).unwrap();

        let text = configuration(
            kind,
            &dir,
            [address, stream_address],
            six_address,
            places,
            options,
        );
        let file = dir.path().join("configuration");
        fs::write(&file, &text).unwrap();
        let file = file.to_str().unwrap();

        let check: &[&str] = match kind {
            Kind::Haproxy => &["-c", "-f", file],
            Kind::Nginx => &["-t", "-c", file],
        };
        let output = Command::new(&program).args(check).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_fine = output.status.success() && !said.to_lowercase().contains("warn");
        assert!(is_fine, "{kind:?}: {said}\n{text}");

        let run: &[&str] = match kind {
            Kind::Haproxy => &["-W", "-f", file],
            Kind::Nginx => &["-c", file, "-g", "daemon off;"],
        };
        let log = File::create(dir.path().join("said")).unwrap();
        let child = Command::new(&program)
            .args(run)
            // Its workers go with it, whatever becomes of it.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let proxy = Self {
            kind,
            child,
            dir,
            address,
            stream_address,
            six_address,
            ca: trusting(&ca),
            ca_pem: ca.pem(),
            ca_of_all: ca,
        };
        wait_for("the proxy listens", || TcpStream::connect(address).ok());
        proxy
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A certificate that its clients trust as they do its own.
    pub(crate) fn certify(&self, names: &str) -> Certified {
        self.ca_of_all.certify(names, 9)
    }

    /// Where they connect with the option `stream` or `pass`.
    pub(crate) fn stream_address(&self) -> SocketAddr {
        self.stream_address
    }

    /// Where they connect with the option `ipv6`; none where there is no IPv6.
    pub(crate) fn six_address(&self) -> Option<SocketAddr> {
        self.six_address
    }

    /// The CA that clients are to trust.
    pub(crate) fn ca_pem(&self) -> &str {
        self.ca_pem.to_str().unwrap()
    }

    /// A client that connects from an address that no process trusts, and is upgraded.
    pub(crate) fn client(&self) -> Wss {
        self.client_at("/", &[])
    }

    /// As [`Proxy::client`], with this path and these headers.
    pub(crate) fn client_at(&self, path: &str, headers: &[(&str, &str)]) -> Wss {
        let connected = Wss::connect(self, STRANGER, path, headers);
        connected.unwrap_or_else(|refusal| panic!("{refusal:?}\n{}", self.log()))
    }

    /// TLS from `ip` to this address.
    pub(crate) fn connect(&self, ip: [u8; 4], to: SocketAddr) -> Result<Tls, String> {
        let stream = tcp(ip, to).map_err(|error| error.to_string())?;
        Ok(self.tls(stream))
    }

    /// TLS over a connection, on which something may have been sent.
    pub(crate) fn tls(&self, stream: TcpStream) -> Tls {
        let name = ServerName::try_from("localhost").unwrap();
        let session = ClientConnection::new(self.ca.clone(), name).unwrap();
        StreamOwned::new(session, stream)
    }

    /// Processes that serve, newest last; those that an earlier configuration has left are among them.
    pub(crate) fn workers(&self) -> Vec<u32> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children
            .split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect()
    }

    /// Whether it still has the connection of this client open, by the kernel's list.
    pub(crate) fn holds(&self, client: &Wss) -> bool {
        let text = |address: SocketAddr| match address {
            SocketAddr::V4(v4) => {
                let ip = u32::from_le_bytes(v4.ip().octets());
                format!("{ip:08X}:{:04X}", v4.port())
            }
            SocketAddr::V6(_) => unreachable!("all addresses of the tests are IPv4"),
        };
        let ends = format!(" {} {} 01 ", text(self.address), text(client.address()));
        fs::read_to_string("/proc/net/tcp").unwrap().contains(&ends)
    }

    /// Reads the file again; returns once new workers serve and the old ones take nobody any more.
    pub(crate) fn reload(&self) {
        let before: HashSet<u32> = self.workers().into_iter().collect();
        let signal = match self.kind {
            Kind::Haproxy => Signal::USR2,
            Kind::Nginx => Signal::HUP,
        };
        kill_process(self.pid(), signal).expect("the proxy is there");
        wait_for("a reload of the proxy", || {
            let is_done = match self.kind {
                Kind::Haproxy => {
                    let info = self.ask("show info");
                    let pid = info.lines().find_map(|line| line.strip_prefix("Pid: "));
                    pid.is_some_and(|pid| !before.contains(&pid.parse().unwrap()))
                }
                Kind::Nginx => {
                    let now = self.workers();
                    let is_leaving = |pid: &u32| {
                        let title = fs::read_to_string(format!("/proc/{pid}/cmdline"));
                        title.is_ok_and(|title| title.contains("shutting down"))
                    };
                    let (old, new): (Vec<_>, Vec<_>) =
                        now.iter().partition(|pid| before.contains(pid));
                    !new.is_empty() && old.into_iter().all(is_leaving)
                }
            };
            is_done.then_some(())
        });
    }

    /// What HAProxy answers on its own socket; empty when it does not.
    pub(crate) fn ask(&self, command: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut socket) = UnixStream::connect(self.dir.path().join("admin.sock")) {
            let asked = socket.write_all(format!("{command}\n").as_bytes());
            let _ = asked.and_then(|()| socket.read_to_string(&mut answer));
        }
        answer
    }

    /// Whether HAProxy sends websockets to the server of this name.
    pub(crate) fn is_up(&self, server: &str) -> bool {
        self.is_up_in("processes", server)
    }

    /// As [`Proxy::is_up`], in the backend of this name.
    pub(crate) fn is_up_in(&self, backend: &str, server: &str) -> bool {
        // CSV: proxy, server and the state in column 18.
        let stat = self.ask("show stat");
        let line = stat
            .lines()
            .find(|line| line.starts_with(&format!("{backend},{server},")));
        let state = line.and_then(|line| line.split(',').nth(17));
        // `UP 1/2` after a first failure.
        state.is_some_and(|state| state.starts_with("UP"))
    }

    /// All that it said.
    pub(crate) fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        read("said") + &read("error.log")
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = kill_process(self.pid(), Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::park_timeout(PATIENCE / 1000);
        }
        // Nothing is left of the group when it ended in order.
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {:?}\n{}---", self.kind, self.log());
        }
    }
}

/// The shipped file for these addresses: where clients connect, and where with the option `stream` or `pass`.
fn configuration(
    kind: Kind,
    dir: &TempDir,
    [address, stream_address]: [SocketAddr; 2],
    six: Option<SocketAddr>,
    places: &[Place; 2],
    options: &[&str],
) -> String {
    let mut text = fs::read_to_string(support::project_file(kind.shipped())).unwrap();
    let within = |name: &str| dir.path().join(name).display().to_string();
    let mut replace = |from: &str, to: &str| {
        assert!(text.contains(from), "{from:?} is not in {}", kind.shipped());
        text = text.replace(from, to);
    };
    match kind {
        Kind::Haproxy => {
            replace("\":443\"", &format!("\"{address}\""));
            replace("\":8443\"", &format!("\"{stream_address}\""));
            replace("/etc/haproxy/blackhole.pem", &within("cert.pem"));
            replace("\"/run/haproxy/admin.sock\"", &within("admin.sock"));
        }
        Kind::Nginx => {
            replace("listen 443", &format!("listen {address}"));
            replace("listen 8443", &format!("listen {stream_address}"));
            replace("/etc/nginx/blackhole.pem", &within("cert.pem"));
            replace("/etc/nginx/blackhole.key", &within("key.pem"));
            replace("/run/nginx.pid", &within("pid"));
            replace("/var/log/nginx/error.log", &within("error.log"));
            replace("/var/log/nginx/access.log", &within("access.log"));
        }
    }
    for (number, place) in places.iter().enumerate() {
        let (port, admin) = (5551 + number, 5559 + number);
        match kind {
            Kind::Haproxy => {
                for (port, address) in [(port, place.websockets), (port + 10, place.secured)] {
                    replace(
                        &format!("127.0.0.1:{port} port {admin}"),
                        &format!("{address} port {}", place.admin.port()),
                    );
                }
            }
            Kind::Nginx => replace(
                &format!("server 127.0.0.1:{port} "),
                &format!("server {} ", place.websockets),
            ),
        }
    }
    for option in options {
        text = match *option {
            "sticky" => edited(&text, &sticky(kind)),
            "stream" => edited(&text, "s/#stream //"),
            "pass" => edited(&text, "s/#pass //"),
            // Another balancer in front, as scripts/README.md tells it.
            "behind" => edited(
                &text,
                match kind {
                    Kind::Haproxy => "s/^ *bind .*/& accept-proxy/",
                    Kind::Nginx => {
                        "s/listen .* ssl/& proxy_protocol/
                         s/^http {/& set_real_ip_from 127.0.0.9; real_ip_header proxy_protocol;/"
                    }
                },
            ),
            "ipv6" => {
                let six = six.expect("this machine has IPv6");
                match kind {
                    Kind::Haproxy => {
                        text.replace(&format!("\"{address}\""), &format!("\"{address},{six}\""))
                    }
                    Kind::Nginx => text.replacen(
                        "        listen ",
                        &format!("        listen {six} ssl;\n        listen "),
                        1,
                    ),
                }
            }
            // Processes that share a port, as scripts/README.md tells it.
            "shared" => {
                let probe = |line: &str| match line.split_once(" port ") {
                    Some((server, _)) if line.trim_start().starts_with("server ") => {
                        format!("{server} check-send-proxy\n")
                    }
                    _ => format!("{line}\n"),
                };
                text.replace("uri /readyz", "uri /")
                    .lines()
                    .map(probe)
                    .collect()
            }
            other => panic!("no option {other}"),
        };
    }
    if !geteuid().is_root() {
        text = for_others(kind, &text, dir);
    }
    text
}

/// What `sed` makes of a text.
fn edited(text: &str, script: &str) -> String {
    let mut sed = Command::new("sed")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It reads all before it is done, and a file fits into the pipe.
    sed.stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = sed.wait_with_output().unwrap();
    assert!(output.status.success(), "{script}");
    let edited = String::from_utf8(output.stdout).unwrap();
    assert_ne!(edited, text, "{script} changes nothing");
    edited
}

/// How operators are told to keep the clients of an account together.
fn sticky(kind: Kind) -> String {
    let readme = fs::read_to_string(support::project_file("scripts/README.md")).unwrap();
    let file = match kind {
        Kind::Haproxy => "' /etc/haproxy/haproxy.cfg",
        Kind::Nginx => "' /etc/nginx/nginx.conf",
    };
    let mut lines = readme
        .lines()
        .filter_map(|line| line.strip_prefix("sed -i '"));
    let script = lines.find_map(|line| line.strip_suffix(file));
    script
        .expect("scripts/README.md has the command")
        .to_owned()
}

/// What only root may do is left out, and what only root may write goes to `dir`.
fn for_others(kind: Kind, text: &str, dir: &TempDir) -> String {
    let roots = ["chroot ", "user ", "group "];
    let mut others = String::new();
    for line in text.lines() {
        if !roots.iter().any(|root| line.trim_start().starts_with(root)) {
            writeln!(others, "{line}").unwrap();
        }
        if kind == Kind::Nginx && line == "http {" {
            for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
                let path = dir.path().join(name);
                writeln!(others, "{name}_temp_path {};", path.display()).unwrap();
            }
        }
    }
    others
}

fn trusting(ca: &Ca) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca.pem()).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

/// An address of clients that is no proxy's.
pub(crate) const STRANGER: [u8; 4] = [127, 0, 0, 9];

/// Connects from this loopback address.
pub(crate) fn tcp(ip: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((ip, 0)).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A TLS stream.
pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Why a client is not connected.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// An answer other than 101.
    Answer(Box<Response<Option<Vec<u8>>>>),
    /// No answer.
    #[expect(dead_code, reason = "shown by `Debug`")]
    None(String),
}

/// A websocket client over TLS.
pub(crate) struct Wss {
    socket: WebSocket<Tls>,
}

impl Wss {
    /// Connects from `ip` to the proxy.
    pub(crate) fn connect(
        proxy: &Proxy,
        ip: [u8; 4],
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, Refusal> {
        let tls = proxy.connect(ip, proxy.address()).map_err(Refusal::None)?;
        Self::upgrade(tls, path, headers)
    }

    /// Asks for an upgrade.
    pub(crate) fn upgrade(tls: Tls, path: &str, headers: &[(&str, &str)]) -> Result<Self, Refusal> {
        let mut request = format!("wss://localhost{path}")
            .into_client_request()
            .unwrap();
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            let value = HeaderValue::from_str(value).unwrap();
            request.headers_mut().append(name, value);
        }
        match tungstenite::client(request, tls) {
            Ok((socket, _)) => Ok(Self { socket }),
            Err(HandshakeError::Failure(Error::Http(response))) => Err(Refusal::Answer(response)),
            Err(HandshakeError::Failure(error)) => Err(Refusal::None(error.to_string())),
            Err(HandshakeError::Interrupted(_)) => Err(Refusal::None("no answer".to_owned())),
        }
    }

    /// Its end of the connection.
    pub(crate) fn address(&self) -> SocketAddr {
        self.socket.get_ref().sock.local_addr().unwrap()
    }

    /// Its session's id, as the server is to know it.
    pub(crate) fn id(&self) -> String {
        self.address().to_string()
    }

    /// Sends a command.
    pub(crate) fn send(&mut self, command: &Value) -> Result<(), String> {
        let message = Message::text(command.to_string());
        self.socket.send(message).map_err(|error| error.to_string())
    }

    /// The next text.
    pub(crate) fn next(&mut self) -> Result<Value, String> {
        loop {
            match self.socket.read().map_err(|error| error.to_string())? {
                Message::Text(text) => {
                    return serde_json::from_str(&text).map_err(|error| error.to_string());
                }
                Message::Close(frame) => return Err(format!("closed: {frame:?}")),
                _ => {}
            }
        }
    }

    /// The reply to a command; what comes before it is passed over.
    pub(crate) fn try_ask(&mut self, command: &Value) -> Result<Value, String> {
        self.send(command)?;
        loop {
            let message = self.next()?;
            if message["action"] == "reply" {
                return Ok(message);
            }
        }
    }

    /// Whether the process answers a ping.
    pub(crate) fn try_ping(&mut self) -> Result<(), String> {
        let reply = self.try_ask(&ping_as(ANY_TOKEN, "ping"))?;
        let is_pong = reply["data"]["response"] == "pong";
        is_pong.then_some(()).ok_or_else(|| reply.to_string())
    }

    /// Panics unless the process answers a ping.
    pub(crate) fn ping(&mut self) {
        self.try_ping().unwrap();
    }

    /// Messages up to the end, and the code of the close.
    pub(crate) fn read_to_close(&mut self) -> (Vec<Value>, Option<u16>) {
        let mut messages = Vec::new();
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => messages.push(serde_json::from_str(&text).unwrap()),
                Ok(Message::Close(frame)) => {
                    return (messages, frame.map(|frame| frame.code.into()));
                }
                Ok(_) => {}
                Err(error) => panic!("{error} behind {messages:?}"),
            }
        }
    }

    /// Closes in good order.
    pub(crate) fn close(mut self) -> Result<(), String> {
        self.socket.close(None).map_err(|error| error.to_string())?;
        loop {
            match self.socket.read() {
                Ok(_) => {}
                Err(Error::ConnectionClosed) => return Ok(()),
                // A proxy may end TLS without a farewell once both close frames are through.
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Ok(());
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}
