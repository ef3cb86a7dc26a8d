//! A connection: TCP, TLS where the URL says so, and the upgrade; and what was wrong, in one line for a person.
//!
//! Invariant: a certificate is always checked, its name included.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, OtherError, StreamOwned,
};
use tungstenite::client::IntoClientRequest;
use tungstenite::error::ProtocolError;
use tungstenite::http::HeaderValue;
use tungstenite::http::header::{ORIGIN, RETRY_AFTER};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, HandshakeError, WebSocket};

use super::lines::cut;
use super::target::Target;
use super::trouble::Trouble;
use crate::limits::{SUB_CONNECT_MAX, SUB_FRAME_BYTES_MAX, SUB_RETRY_AFTER_MAX};
use crate::tls_files::{ClientFiles, TlsFileError, client_config, roots_of, system_roots};

/// The first byte of a TLS alert: what a server with TLS says to a request without.
const TLS_ALERT: u8 = 0x15;

/// How long one read waits, so that a session comes to its deadlines and its end.
const TICK: Duration = Duration::from_millis(200);

/// Reads whom to trust: the CAs in `file`, or those that the system trusts, of which there may be none; and what to show a
/// server that asks.
pub(super) fn tls_config(
    file: Option<&Path>,
    own: Option<&ClientFiles>,
) -> Result<Arc<ClientConfig>, TlsFileError> {
    let roots = file.map_or_else(|| Ok(system_roots()), roots_of)?;
    client_config(roots, own).map(Arc::new)
}

/// The bytes of a connection.
pub(super) struct Stream {
    transport: Transport,
    /// The first byte that came; shared, because a handshake that fails keeps the stream.
    first: Rc<Cell<Option<u8>>>,
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// Lets one read wait so long; `None`: as long as ever.
    pub(super) fn set_wait(&self, wait: Option<Duration>) {
        let socket = match &self.transport {
            Transport::Plain(stream) => stream,
            Transport::Tls(stream) => &stream.sock,
        };
        // What is refused leaves it as it was, which costs time alone.
        let _refused = socket.set_read_timeout(Some(wait.unwrap_or(TICK)));
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.transport {
            Transport::Plain(stream) => stream.read(into),
            Transport::Tls(stream) => stream.read(into),
        };
        if self.first.get().is_none() && read.as_ref().is_ok_and(|read| *read > 0) {
            self.first.set(into.first().copied());
        }
        read
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.transport {
            Transport::Plain(stream) => stream.write(bytes),
            Transport::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.transport {
            Transport::Plain(stream) => stream.flush(),
            Transport::Tls(stream) => stream.flush(),
        }
    }
}

/// Connects and upgrades. Each step blocks for at most [`SUB_CONNECT_MAX`]; a read of the result for [`TICK`].
pub(super) fn connect(
    target: &Target,
    origin: Option<&str>,
    tls: &Arc<ClientConfig>,
) -> Result<WebSocket<Stream>, Trouble> {
    let socket = reach(target)?;
    let wait = |patience| {
        socket
            .set_read_timeout(Some(patience))
            .and_then(|()| socket.set_write_timeout(Some(SUB_CONNECT_MAX)))
            .map_err(|error| Trouble::Unreachable(error.to_string()))
    };
    wait(SUB_CONNECT_MAX)?;
    let clone = || {
        socket
            .try_clone()
            .map_err(|error| Trouble::Unreachable(error.to_string()))
    };
    let transport = if target.has_tls() {
        Transport::Tls(Box::new(shake_hands(clone()?, target, tls)?))
    } else {
        Transport::Plain(clone()?)
    };
    let first = Rc::new(Cell::new(None));
    let stream = Stream {
        transport,
        first: first.clone(),
    };
    let mut request = target
        .as_str()
        .into_client_request()
        .map_err(|error| Trouble::Unreachable(cut(&error.to_string())))?;
    if let Some(origin) = origin.and_then(|origin| HeaderValue::from_str(origin).ok()) {
        request.headers_mut().insert(ORIGIN, origin);
    }
    let config = WebSocketConfig::default()
        .max_message_size(Some(SUB_FRAME_BYTES_MAX))
        .max_frame_size(Some(SUB_FRAME_BYTES_MAX));
    let (websocket, _) = tungstenite::client::client_with_config(request, stream, Some(config))
        .map_err(|error| match error {
            HandshakeError::Interrupted(_) => no_answer(),
            HandshakeError::Failure(Error::Io(error)) if target.has_tls() => {
                of_tls_upgrade(target, &error)
            }
            HandshakeError::Failure(error) => of_upgrade(&error, first.get()),
        })?;
    wait(TICK)?;
    Ok(websocket)
}

/// A TCP connection to the first address of the host that takes one.
fn reach(target: &Target) -> Result<TcpStream, Trouble> {
    let addresses = (target.host(), target.port())
        .to_socket_addrs()
        .map_err(|_| Trouble::Unreachable("no such host is known".to_owned()))?;
    let mut last = "the host has no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, SUB_CONNECT_MAX) {
            Ok(socket) => {
                // Commands are small, and each is waited for.
                let _refused = socket.set_nodelay(true);
                return Ok(socket);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                "nobody listens there (connection refused)".clone_into(&mut last);
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                last = format!("no answer within {} s", SUB_CONNECT_MAX.as_secs());
            }
            Err(error) => last = error.to_string(),
        }
    }
    Err(Trouble::Unreachable(last))
}

fn shake_hands(
    mut socket: TcpStream,
    target: &Target,
    config: &Arc<ClientConfig>,
) -> Result<StreamOwned<ClientConnection, TcpStream>, Trouble> {
    let unreachable = |problem: &str| Trouble::Unreachable(problem.to_owned());
    let server = ServerName::try_from(target.host())
        .map_err(|_| unreachable("no certificate can name this host"))?;
    let mut tls = ClientConnection::new(config.clone(), server)
        .map_err(|error| unreachable(&error.to_string()))?;
    while tls.is_handshaking() {
        match tls.complete_io(&mut socket) {
            Ok(_) => {}
            Err(error) => return Err(of_tls(target, &error)),
        }
    }
    Ok(StreamOwned::new(tls, socket))
}

/// What is wrong with TLS.
fn of_tls(target: &Target, error: &io::Error) -> Trouble {
    use rustls::Error as E;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<E>());
    let problem = match (inner, error.kind()) {
        (Some(E::InvalidCertificate(error)), _) => certificate(error, &target.host()),
        (Some(E::InvalidMessage(_)), _) => {
            "what listens there does not speak TLS: ws:// in the URL, or another port".to_owned()
        }
        (Some(error), _) => format!("TLS: {error}"),
        (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            "closed within the TLS handshake; if it does not speak TLS: ws:// in the URL".to_owned()
        }
        (None, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return no_answer(),
        (None, _) => error.to_string(),
    };
    Trouble::Unreachable(cut(&problem))
}

fn certificate(error: &CertificateError, host: &str) -> String {
    use CertificateError as E;
    match error {
        E::UnknownIssuer | E::BadSignature => {
            "its certificate is not trusted: it comes from a CA that is not known here; --ca-cert FILE names one's own".to_owned()
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            format!("its certificate is not for {host}")
        }
        E::Expired | E::ExpiredContext { .. } => "its certificate has expired".to_owned(),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "its certificate is not valid yet, or the clock of this machine is behind".to_owned()
        }
        E::Other(error) if is_of_a_ca(error) => {
            "its certificate is a CA's own, which is for no server; with `openssl req -x509` add -addext basicConstraints=CA:FALSE".to_owned()
        }
        error => format!("its certificate is refused: {error}"),
    }
}

/// Whether a server shows what may only sign other certificates. The error's own type is no part of rustls.
fn is_of_a_ca(error: &OtherError) -> bool {
    format!("{error:?}").contains("CaUsedAsEndEntity")
}

fn no_answer() -> Trouble {
    let seconds = SUB_CONNECT_MAX.as_secs();
    Trouble::Unreachable(format!("no answer to the handshake within {seconds} s"))
}

/// What is wrong when the upgrade got no answer over TLS. In TLS 1.3 the server judges the client's certificate behind the
/// client's handshake.
fn of_tls_upgrade(target: &Target, error: &io::Error) -> Trouble {
    use AlertDescription as A;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let problem = match inner {
        Some(rustls::Error::AlertReceived(A::CertificateRequired)) => {
            "it asks for a certificate: --client-cert"
        }
        Some(rustls::Error::AlertReceived(
            A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::DecryptError,
        )) => "it refuses the certificate that it is shown (--client-cert)",
        Some(_) => return of_tls(target, error),
        None => "closed without an answer; it may ask for a certificate (--client-cert)",
    };
    Trouble::Unreachable(problem.to_owned())
}

/// What is wrong with the answer to the upgrade; `first` is its first byte.
fn of_upgrade(error: &Error, first: Option<u8>) -> Trouble {
    let problem = match (error, first) {
        (Error::Http(response), _) => {
            let header = response.headers().get(RETRY_AFTER);
            let seconds = header.and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let body = response.body().as_deref().unwrap_or_default();
            let body = String::from_utf8_lossy(body);
            // A page for browsers says nothing in its first line.
            let is_page = body.trim_start().starts_with('<');
            let first_line = body.lines().next().filter(|_| !is_page);
            return Trouble::Refused {
                status: response.status().as_u16(),
                retry_after: seconds
                    .map(|seconds| Duration::from_secs(seconds).min(SUB_RETRY_AFTER_MAX)),
                said: cut(first_line.unwrap_or_default().trim()),
            };
        }
        (_, Some(TLS_ALERT)) => {
            "what listens there speaks TLS: wss:// in the URL, or another port".to_owned()
        }
        (Error::Protocol(ProtocolError::HandshakeIncomplete) | Error::Io(_), None) => {
            "closed without an answer; if it speaks TLS: wss:// in the URL".to_owned()
        }
        (Error::Io(error), _) => error.to_string(),
        (error, _) => format!("not a websocket server: {error}"),
    };
    Trouble::Unreachable(cut(&problem))
}
