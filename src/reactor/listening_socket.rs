//! The two kinds of listening socket: an address, or the file `blackhole-PID.sock` in `admin_dir`.
//!
//! A connection of either kind is a [`TcpStream`] to the loop, whose table has 4 bytes for a socket. For one that came
//! through the file that is a name only: a descriptor is read, written and shut down, which is the same for all streams
//! ([`super::socket::Socket`]); what only TCP can do is asked of websocket sessions alone, which never come through the
//! file.
//!
//! The file belongs to whoever runs the process, and nobody else may open it (mode 0600), from the moment when it is there.
//! It appears when the socket listens already, so a file that refuses connections is one that a dead process has left;
//! such files are removed at the start, and one's own at a clean end.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::limits::{ADMIN_SOCKETS_MAX, LISTEN_BACKLOG};

/// The address that is told of peers who came through the file.
const NO_ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::UNSPECIFIED, 0);

/// A nonblocking listening socket.
#[derive(Debug)]
pub(super) enum ListeningSocket {
    Tcp(TcpListener),
    Local(LocalSocket),
}

/// The admin socket of this process. Dropping it removes its file.
#[derive(Debug)]
pub(super) struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ListeningSocket {
    /// A socket that listens and does not block.
    pub(super) fn tcp(socket: Socket) -> Self {
        Self::Tcp(TcpListener::from_std(socket.into()))
    }

    pub(super) fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => registry.deregister(listener),
            Self::Local(LocalSocket { listener, .. }) => {
                registry.deregister(&mut SourceFd(&listener.as_raw_fd()))
            }
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => registry.register(listener, token, Interest::READABLE),
            Self::Local(LocalSocket { listener, .. }) => {
                let descriptor = listener.as_raw_fd();
                registry.register(&mut SourceFd(&descriptor), token, Interest::READABLE)
            }
        }
    }

    /// Takes one connection, which does not block either.
    pub(super) fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match self {
            Self::Tcp(listener) => listener.accept(),
            Self::Local(LocalSocket { listener, .. }) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                let stream = StdTcpStream::from(OwnedFd::from(stream));
                Ok((TcpStream::from_std(stream), NO_ADDRESS.into()))
            }
        }
    }

    pub(super) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Local(_) => None,
        }
    }

    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Tcp(_) => None,
            Self::Local(socket) => Some(&socket.path),
        }
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Local(socket) => socket.listener.as_fd(),
        }
    }
}

impl LocalSocket {
    /// Listens in `folder`.
    pub(super) fn bind(folder: &Path) -> io::Result<Self> {
        remove_stale(folder)?;
        let pid = std::process::id();
        let path = folder.join(format!("blackhole-{pid}.sock"));
        let unready = folder.join(format!(".blackhole-{pid}.sock"));
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // The mode of a socket becomes that of its file, so there is no moment when others may open it.
        let file = File::from(OwnedFd::from(socket));
        file.set_permissions(Permissions::from_mode(0o600))?;
        let socket = Socket::from(OwnedFd::from(file));
        let _none_left = fs::remove_file(&unready);
        socket.bind(&SockAddr::unix(&unready)?)?;
        let listened = socket
            .listen(LISTEN_BACKLOG)
            .and_then(|()| fs::rename(&unready, &path));
        if let Err(error) = listened {
            let _gone = fs::remove_file(&unready);
            return Err(error);
        }
        Ok(Self {
            listener: UnixListener::from(OwnedFd::from(socket)),
            path,
        })
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // Whoever removed it before us wanted it gone.
        let _gone = fs::remove_file(&self.path);
    }
}

/// Removes the sockets that dead processes have left. What cannot be removed is left there.
fn remove_stale(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.take(ADMIN_SOCKETS_MAX) {
        let entry = entry?;
        // A file that is no socket refuses connections too.
        if !entry.file_type()?.is_socket() {
            continue;
        }
        let path = entry.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let is_ours =
            name.is_some_and(|name| name.starts_with("blackhole-") && name.ends_with(".sock"));
        if is_ours && is_left_behind(&path)? {
            let _left = fs::remove_file(&path);
        }
    }
    Ok(())
}

/// Whether nobody listens there. A process that is alive and takes nobody does not hold this one up.
fn is_left_behind(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let connected = socket.connect(&SockAddr::unix(path)?);
    Ok(connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_socket_is_its_owners_alone_and_those_of_the_dead_are_removed() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| folder.path().join(name);
        // Dead, alive, and none of ours.
        drop(UnixListener::bind(path("blackhole-1.sock")).expect("a socket"));
        let alive = UnixListener::bind(path("blackhole-2.sock")).expect("a socket");
        drop(UnixListener::bind(path("other.sock")).expect("a socket"));
        fs::write(path("blackhole-3.sock"), "no socket").expect("writable");

        let own = LocalSocket::bind(folder.path()).expect("a folder");
        let file = fs::metadata(&own.path).expect("there");
        assert!(file.file_type().is_socket());
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&own.path).expect("it listens");
        let names = || {
            let entries = fs::read_dir(folder.path()).expect("readable");
            let mut names: Vec<String> = entries
                .map(|entry| {
                    entry
                        .expect("readable")
                        .file_name()
                        .into_string()
                        .expect("text")
                })
                .collect();
            names.sort();
            names
        };
        let others = ["blackhole-2.sock", "blackhole-3.sock", "other.sock"];
        let pid = format!("blackhole-{}.sock", std::process::id());
        assert_eq!(names().len(), 4);
        assert!(names().contains(&pid));
        // The name is taken, which only a process of the same number can have done.
        std::mem::forget(own);
        let own = LocalSocket::bind(folder.path()).expect("a folder");
        UnixStream::connect(&own.path).expect("it listens");
        drop(own);
        assert_eq!(names(), others);
        drop(alive);
        assert!(LocalSocket::bind(&path("gone")).is_err());
        assert!(LocalSocket::bind(&path("other.sock")).is_err(), "no folder");
    }
}
