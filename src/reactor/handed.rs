//! The listening sockets that a service manager has opened for this process and hands over (socket units of systemd).
//!
//! They outlive this process: whoever opened them keeps them open, and hands them to the next one. So none is made to refuse
//! handshakes at our end, and the connections that wait there are left to the next process ([`super::listener`]).

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use socket2::{Socket, Type};

use crate::limits::HANDED_SOCKETS_MAX;
use crate::session::ListenerKind;
use crate::sys::handed::{Handed, take_handed};

/// The sockets by what they are for.
#[derive(Debug, Default)]
pub struct HandedSockets {
    pub(super) clients: Option<Socket>,
    pub(super) tls_clients: Option<Socket>,
    pub(super) admin: Option<Socket>,
}

/// Why a socket that was handed over cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HandedError {
    /// The environment is not what sd_listen_fds(3) says.
    #[error("sockets handed over (LISTEN_FDS): {0}")]
    Environment(io::Error),
    /// More than there is use for.
    #[error(
        "{0} sockets were handed over, and there is use for {HANDED_SOCKETS_MAX}: websocket, admin and websocket-tls"
    )]
    TooMany(usize),
    /// A name that says nothing here.
    #[error(
        "a socket was handed over as {0:?}: expected FileDescriptorName=websocket, =admin or =websocket-tls"
    )]
    Name(String),
    /// Two under one name.
    #[error("two sockets were handed over as {0}")]
    Twice(&'static str),
    /// It is something else.
    #[error("what was handed over as {0} is no listening TCP socket")]
    NotListening(&'static str),
}

/// The names, in the order in which sockets without names come.
const NAMES: [&str; HANDED_SOCKETS_MAX] = [WEBSOCKET, "admin", WEBSOCKET_TLS];

const WEBSOCKET: &str = "websocket";
const WEBSOCKET_TLS: &str = "websocket-tls";

/// What sockets are called when nobody gave them names.
const UNNAMED: &str = "unknown";

impl HandedSockets {
    /// Takes what was handed over to this process, once. To be called before it opens anything.
    ///
    /// # Errors
    /// [`HandedError`].
    pub fn take() -> Result<Self, HandedError> {
        Self::of(take_handed().map_err(HandedError::Environment)?)
    }

    fn of(handed: Vec<Handed>) -> Result<Self, HandedError> {
        if handed.len() > HANDED_SOCKETS_MAX {
            return Err(HandedError::TooMany(handed.len()));
        }
        let mut sockets = Self::default();
        for (given, Handed { name, descriptor }) in NAMES.into_iter().zip(handed) {
            let meant = if name == UNNAMED {
                given
            } else {
                let known = NAMES.into_iter().find(|known| *known == name);
                known.ok_or(HandedError::Name(name))?
            };
            let place = match meant {
                WEBSOCKET => &mut sockets.clients,
                WEBSOCKET_TLS => &mut sockets.tls_clients,
                _ => &mut sockets.admin,
            };
            let socket = listening(descriptor).ok_or(HandedError::NotListening(meant))?;
            if place.replace(socket).is_some() {
                return Err(HandedError::Twice(meant));
            }
        }
        Ok(sockets)
    }

    /// Where the socket of this kind listens, if it was handed over.
    #[must_use]
    pub fn address(&self, kind: ListenerKind) -> Option<SocketAddr> {
        let socket = match kind {
            ListenerKind::Clients => self.clients.as_ref(),
            ListenerKind::Admin => self.admin.as_ref(),
            ListenerKind::TlsClients => self.tls_clients.as_ref(),
            ListenerKind::AdminSocket => None,
        };
        socket?.local_addr().ok()?.as_socket()
    }
}

fn listening(descriptor: OwnedFd) -> Option<Socket> {
    let socket = Socket::from(descriptor);
    let is_stream = socket.r#type().is_ok_and(|kind| kind == Type::STREAM);
    let is_tcp = socket
        .local_addr()
        .is_ok_and(|address| address.as_socket().is_some());
    let is_listening = socket.is_listener().unwrap_or(false);
    (is_stream && is_tcp && is_listening).then_some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixListener;

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").expect("a free port")
    }

    fn handed(name: &str, descriptor: impl Into<OwnedFd>) -> Handed {
        Handed {
            name: name.to_owned(),
            descriptor: descriptor.into(),
        }
    }

    #[test]
    fn names_tell_what_a_socket_is_for_and_without_names_the_order_does() {
        let (first, second) = (listener(), listener());
        let [one, two] = [&first, &second].map(|socket| socket.local_addr().expect("bound"));
        let copies = || [&first, &second].map(|socket| socket.try_clone().expect("open"));
        for (names, clients, admin) in [
            (["websocket", "admin"], one, two),
            (["admin", "websocket"], two, one),
            (["unknown", "unknown"], one, two),
        ] {
            let sockets = names.into_iter().zip(copies());
            let sockets = sockets.map(|(name, socket)| handed(name, socket)).collect();
            let sockets = HandedSockets::of(sockets).expect("both fit");
            assert_eq!(sockets.address(ListenerKind::Clients), Some(clients));
            assert_eq!(sockets.address(ListenerKind::Admin), Some(admin));
        }
        let alone = HandedSockets::of(vec![handed("admin", first)]).expect("it fits");
        assert_eq!(alone.address(ListenerKind::Clients), None);
        assert_eq!(alone.address(ListenerKind::Admin), Some(one));
    }

    #[test]
    fn what_is_no_listening_tcp_socket_or_has_no_known_name_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("socket");
        let local = UnixListener::bind(&path).expect("a socket");
        let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let accepting = listener();
        let address = accepting.local_addr().expect("bound");
        let connected = std::net::TcpStream::connect(address).expect("listening");
        let file = File::open("/dev/null").expect("there");
        let none_listens = [
            handed("websocket", local),
            handed("websocket", datagrams),
            handed("admin", connected),
            handed("unknown", file),
        ];
        for other in none_listens {
            let error = HandedSockets::of(vec![other]).expect_err("refused");
            assert!(matches!(error, HandedError::NotListening(_)), "{error}");
        }
        for (names, expected) in [
            (&["blackhole@0.socket"][..], "blackhole@0.socket"),
            (&["admin", "admin"], "two sockets"),
            (&["websocket", "admin", "websocket"], "two sockets"),
            (
                &["websocket", "admin", "websocket-tls", "admin"],
                "4 sockets",
            ),
        ] {
            let sockets = names.iter().map(|name| handed(name, listener()));
            let error = HandedSockets::of(sockets.collect()).expect_err("refused");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
