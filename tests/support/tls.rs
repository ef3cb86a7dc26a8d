//! TLS on the client's side, and the switch by which a whole run goes over it.
//!
//! With `BLACKHOLE_TEST_TLS=1` every [`super::server::Server`] that the harness puts the command line of together has a TLS
//! port and no plain one, and whatever the harness connects to that port speaks TLS. `1.2` and `1.3` instead of `1`: that
//! version alone. Tests that make no sense over TLS say so by [`plain_only`].
//!
//! Invariants: which addresses speak TLS is known by address, for as long as their server lives; the handshake is the
//! first write's or read's, so connecting waits for nothing, as on the plain port.

use std::env;
use std::fmt::Display;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, StreamOwned,
    SupportedProtocolVersion, WantsVerifier,
};

use super::certificates::{Ca, Certified, LOCAL};
use super::left_out::tell;

const SWITCH: &str = "BLACKHOLE_TEST_TLS";

/// The name that certificates of the harness have, and that its clients ask for.
pub const NAME: &str = "localhost";

/// Both versions, the newer one first.
pub const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

/// Whether this run goes over TLS.
pub fn is_on() -> bool {
    !versions().is_empty()
}

/// The versions that the clients of this run offer; none when it goes over the plain port.
fn versions() -> &'static [&'static SupportedProtocolVersion] {
    match env::var(SWITCH).as_deref() {
        Err(_) | Ok("" | "0") => &[],
        Ok("1") => &VERSIONS,
        Ok("1.2") => &VERSIONS[1..],
        Ok("1.3") => &VERSIONS[..1],
        Ok(other) => panic!("{SWITCH}={other}: 1, 1.2 or 1.3"),
    }
}

/// Whether the running test is to be left out, because this run goes over TLS and the test makes no sense there, which
/// is said.
#[must_use]
pub fn plain_only(reason: &dyn Display) -> bool {
    if is_on() {
        tell("plain only", reason);
    }
    is_on()
}

/// Says that the running test starts a server with the plain port in a run over TLS.
pub(crate) fn tell_of_plain(reason: &dyn Display) {
    if is_on() {
        tell("over the plain port", reason);
    }
}

/// How clients speak TLS to an end.
#[derive(Clone)]
pub struct Peer {
    /// The file of the CA that is to be trusted.
    pub ca: PathBuf,
    pub config: Arc<ClientConfig>,
}

/// What servers and clients of a run share.
struct Run {
    files: Certified,
    peer: Peer,
}

/// Kept by the servers that are there, so that its files go with the last of them.
static RUN: Mutex<Weak<Run>> = Mutex::new(Weak::new());

/// Where TLS is spoken: an entry for each [`Spoken`].
static SPOKEN: Mutex<Vec<(SocketAddr, Peer)>> = Mutex::new(Vec::new());

impl Run {
    fn shared() -> Arc<Self> {
        let mut run = RUN.lock().unwrap_or_else(PoisonError::into_inner);
        run.upgrade().unwrap_or_else(|| {
            let ca = Ca::new();
            let files = ca.certify(LOCAL, 90);
            let pem = files.dir().join("ca.pem");
            let peer = Peer {
                config: trusting(&pem, versions()),
                ca: pem,
            };
            let new = Arc::new(Self { files, peer });
            *run = Arc::downgrade(&new);
            new
        })
    }
}

/// The part of a server that the switch has put on TLS.
pub(crate) struct Secured(Arc<Run>);

impl Secured {
    /// `args`, with the plain port made a TLS port; `None` when this run goes over the plain port, or when the test has
    /// chosen by itself.
    pub(crate) fn switch(args: &[&str]) -> Option<(Self, Vec<String>)> {
        let has_chosen = args.iter().any(|arg| arg.starts_with("--use-ssl"));
        if !is_on() || has_chosen {
            return None;
        }
        let run = Run::shared();
        let mut args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        for arg in args.iter_mut().filter(|arg| *arg == "--port") {
            "--ssl-port".clone_into(arg);
        }
        args.extend(ssl_args(&run.files));
        args.extend(["--port", "none"].map(str::to_owned));
        Some((Self(run), args))
    }

    /// Lets clients of the harness speak TLS at this address, for as long as what is returned lives.
    pub(crate) fn speak_at(&self, address: SocketAddr) -> Spoken {
        speak_at(address, self.0.peer.clone())
    }
}

/// The options of a TLS port with this certificate.
pub fn ssl_args(files: &Certified) -> Vec<String> {
    let [cert, key] = [files.cert(), files.key()].map(|path| path.display().to_string());
    ["--use-ssl", "--ssl-cert", &cert, "--ssl-key", &key]
        .map(str::to_owned)
        .to_vec()
}

/// An address at which clients of the harness speak TLS, until it is dropped.
pub struct Spoken {
    address: SocketAddr,
}

/// Lets clients of the harness speak TLS at this address, for as long as what is returned lives.
pub fn speak_at(address: SocketAddr, peer: Peer) -> Spoken {
    let mut spoken = SPOKEN.lock().unwrap_or_else(PoisonError::into_inner);
    spoken.push((address, peer));
    Spoken { address }
}

/// As [`speak_at`], for what passes everything on to `target`; `None` when that speaks plainly.
pub(crate) fn speak_as(target: SocketAddr, address: SocketAddr) -> Option<Spoken> {
    Some(speak_at(address, peer_at(target)?))
}

impl Drop for Spoken {
    fn drop(&mut self) {
        let mut spoken = SPOKEN.lock().unwrap_or_else(PoisonError::into_inner);
        // Of servers that follow each other at an address, the first is the first to go.
        let own = spoken
            .iter()
            .position(|(address, _)| *address == self.address);
        spoken.remove(own.expect("added when it was made"));
    }
}

/// How to speak TLS at this address; `None` where that is not spoken.
pub fn peer_at(address: SocketAddr) -> Option<Peer> {
    let spoken = SPOKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let is_at = |other: SocketAddr| {
        other == address || (other.ip().is_unspecified() && other.port() == address.port())
    };
    let newest = spoken.iter().rev().find(|(other, _)| is_at(*other));
    newest.map(|(_, peer)| peer.clone())
}

/// The options by which `blackhole sub` connects to this address.
pub fn sub_args(address: SocketAddr) -> Vec<String> {
    let mut args = vec!["--url".to_owned(), url(address)];
    if let Some(peer) = peer_at(address) {
        args.extend(["--ca-cert".to_owned(), peer.ca.display().to_string()]);
    }
    args
}

/// The URL of this address for websocket clients.
pub fn url(address: SocketAddr) -> String {
    match peer_at(address) {
        Some(_) => format!("wss://{address}"),
        None => format!("ws://{address}"),
    }
}

/// A client that trusts the CA of this file and shows no certificate.
pub fn trusting(ca: &Path, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
    Arc::new(trusting_with(ca, versions).with_no_client_auth())
}

/// A client that trusts the CA of `files` and shows the certificate there.
pub fn showing(
    files: &Certified,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let chain = CertificateDer::pem_file_iter(files.cert()).unwrap();
    let key = PrivateKeyDer::from_pem_file(files.key()).unwrap();
    let config = trusting_with(&files.dir().join("ca.pem"), versions);
    let config = config.with_client_auth_cert(chain.map(Result::unwrap).collect(), key);
    Arc::new(config.unwrap())
}

fn trusting_with(
    ca: &Path,
    versions: &[&'static SupportedProtocolVersion],
) -> ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca).unwrap())
        .unwrap();
    let builder: ConfigBuilder<ClientConfig, WantsVerifier> =
        ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_protocol_versions(versions)
            .unwrap();
    builder.with_root_certificates(roots)
}

/// TLS over a connection.
pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// TLS over a connection, on which something may have been sent already.
pub fn over(config: Arc<ClientConfig>, name: &str, stream: TcpStream) -> Tls {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    StreamOwned::new(ClientConnection::new(config, name).unwrap(), stream)
}

/// A client's end, as the other end speaks. No call is ended by a signal, as a read with a timeout is when a child of this
/// process dies.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

impl Stream {
    /// To a server: TLS where that is spoken.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        TcpStream::connect(address).map(Self::new)
    }

    /// As [`Stream::connect`], over a connection that is there.
    pub fn new(stream: TcpStream) -> Self {
        match stream.peer_addr().ok().and_then(peer_at) {
            Some(peer) => Self::Tls(over(peer.config, NAME, stream).into()),
            None => Self::Plain(stream),
        }
    }

    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(tls) => &tls.sock,
        }
    }

    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The connection alone, on which nothing was sent yet.
    pub(crate) fn without_tls(self) -> Self {
        match self {
            Self::Plain(stream) => Self::Plain(stream),
            Self::Tls(tls) => Self::Plain(tls.sock),
        }
    }

    /// Sends `clear` as it is, and `bytes` behind it as the other end speaks. Nothing may have been sent but in clear.
    pub fn write_behind(&mut self, clear: &[u8], bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(&[clear, bytes].concat()),
            Self::Tls(tls) => {
                tls.sock.write_all(clear)?;
                if bytes.is_empty() {
                    return Ok(());
                }
                self.write_all(bytes)?;
                self.flush()
            }
        }
    }

    /// Ends our side of the stream, and in good order where there is one.
    pub fn shutdown_write(&mut self) -> io::Result<()> {
        if let Self::Tls(tls) = self {
            tls.conn.send_close_notify();
            tls.flush()?;
        }
        self.tcp().shutdown(std::net::Shutdown::Write)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        unless_interrupted(|| match self {
            Self::Plain(stream) => stream.read(buffer),
            // Before it reads it sends what TLS still has to say, which an end that is gone takes for nothing.
            Self::Tls(tls) => tls.read(buffer).map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => io::ErrorKind::ConnectionReset.into(),
                _ => error,
            }),
        })
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        unless_interrupted(|| match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        unless_interrupted(|| match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(tls) => tls.flush(),
        })
    }
}

fn unless_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
