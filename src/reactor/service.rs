//! The service manager (systemd), and how it is told of this process: datagrams to its socket, by the loop itself, so that
//! a loop that hangs is silent and its watchdog bites. What is told, and when, is decided in [`super::report`].
//!
//! Invariant: telling never waits. What the manager does not take now is told again after a pause
//! ([`SERVICE_RETRY_PAUSE`]), in its newest form, and counted.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::report::{Message, Report, Seen};
use crate::limits::SERVICE_RETRY_PAUSE;
use crate::log_limit::LogLimit;

/// The service manager that has started this process.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    /// Connected, until something goes wrong there.
    socket: Option<UnixDatagram>,
    report: Report,
    retry_at: Option<Duration>,
    log_limit: LogLimit,
}

impl Service {
    /// The service manager that the environment names (`NOTIFY_SOCKET`), if it names one. `stop_time`: how long the end of
    /// this process may take once it is announced. `now`: the loop's clock.
    ///
    /// # Errors
    /// The socket's name is none that a socket of this machine can have.
    pub fn from_environment(stop_time: Duration, now: Duration) -> io::Result<Option<Self>> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let watchdog = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero());
        Ok(Some(Self {
            address: address(&name)?,
            socket: None,
            report: Report::new(watchdog, stop_time, now),
            retry_at: None,
            log_limit: LogLimit::default(),
        }))
    }

    /// A reload was asked for.
    pub(super) fn on_reload(&mut self) {
        self.report.on_reload();
    }

    /// Tells what is due. Returns how many messages were not taken.
    pub(super) fn tell(&mut self, seen: Seen, now: Duration) -> u64 {
        if self.retry_at.is_some_and(|until| now < until) {
            return 0;
        }
        self.retry_at = None;
        // At most the three that a reload makes of a start.
        while let Some(message) = self.report.due(seen, now) {
            if let Err(error) = self.send(&message) {
                self.socket = None;
                self.retry_at = Some(now + SERVICE_RETRY_PAUSE);
                if let Some(left_out) = self.log_limit.pass(Instant::now()) {
                    log::warn!("cannot tell the service manager: {error}{left_out}");
                }
                return 1;
            }
            self.report.told(&message, now);
        }
        0
    }

    /// When there is something to tell even if nothing changes.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.retry_at.or_else(|| self.report.next_due())
    }

    fn send(&mut self, message: &Message) -> io::Result<()> {
        let mut text = message.text.clone();
        if message.needs_time() {
            text += &format!("{}\n", NotifyState::monotonic_usec_now()?);
        }
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => connect(&self.address)?,
        };
        socket.send(text.as_bytes())?;
        self.socket = Some(socket);
        Ok(())
    }
}

fn connect(address: &SocketAddr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(address)?;
    Ok(socket)
}

/// A path, or a name behind `@`.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(name),
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "expected a path, or a name behind @",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Seen = Seen {
        is_source_up: true,
        is_rereading: false,
        is_ending: false,
        clients: 0,
    };

    fn service(name: &OsStr) -> Service {
        Service {
            address: address(name).expect("a name"),
            socket: None,
            report: Report::new(None, Duration::ZERO, Duration::ZERO),
            retry_at: None,
            log_limit: LogLimit::default(),
        }
    }

    fn receive(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        let length = manager.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn a_manager_whose_queue_is_full_holds_nothing_up_and_is_told_later() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("a socket");
        // Until it is the manager's queue that has no room, and not a sender's.
        let mut filled = 0;
        loop {
            let other = connect(&address(path.as_os_str()).expect("a name")).expect("bound");
            let before = filled;
            while other.send(b"x").is_ok() {
                filled += 1;
            }
            if filled == before {
                break;
            }
        }
        let mut service = service(path.as_os_str());
        let start = Duration::from_secs(1);
        assert_eq!(service.tell(UP, start), 1);
        assert_eq!(service.next_due(), Some(start + SERVICE_RETRY_PAUSE));
        for _ in 0..filled {
            assert_eq!(receive(&manager), "x");
        }
        let early = start + SERVICE_RETRY_PAUSE - Duration::from_nanos(1);
        assert_eq!(service.tell(UP, early), 0, "the pause is kept");
        assert_eq!(service.tell(UP, start + SERVICE_RETRY_PAUSE), 0);
        assert!(receive(&manager).starts_with("READY=1\n"));
        assert_eq!(service.next_due(), None);
    }

    #[test]
    fn a_manager_that_comes_back_is_found_again() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("notify");
        let first = UnixDatagram::bind(&path).expect("a socket");
        let mut service = service(path.as_os_str());
        assert_eq!(service.tell(UP, Duration::ZERO), 0);
        assert!(receive(&first).starts_with("READY=1\n"));
        drop(first);
        std::fs::remove_file(&path).expect("bound there");
        service.on_reload();
        assert_eq!(service.tell(UP, Duration::ZERO), 1);
        let second = UnixDatagram::bind(&path).expect("a socket");
        assert_eq!(service.tell(UP, SERVICE_RETRY_PAUSE), 0);
        let told = receive(&second);
        assert!(told.starts_with("RELOADING=1\n"), "{told}");
        assert!(told.contains("\nMONOTONIC_USEC="), "{told}");
        assert!(receive(&second).starts_with("READY=1\n"));
    }

    #[test]
    fn a_name_is_a_path_or_stands_behind_an_at_and_nothing_else() {
        for (name, expected) in [
            ("/run/systemd/notify", true),
            ("@notify", true),
            ("vsock:2:1", false),
            ("notify", false),
        ] {
            assert_eq!(address(OsStr::new(name)).is_ok(), expected, "{name}");
        }
        let long = format!("/{}", "x".repeat(200));
        assert!(address(OsStr::new(&long)).is_err());
    }
}
