//! An nginx of our own: its directory, its processes, and their end.

use std::io;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{await_listening, children, find, write_file};
use crate::running::{Running, SERVER_CORE};

/// Longest wait for its end.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// A master and its workers; all end when it is dropped.
pub(crate) struct Nginx {
    pub(super) running: Running,
    _dir: tempfile::TempDir,
}

impl Nginx {
    /// Starts it with this file, of which [`Nginx::HEAD`] stands at the front, and waits until it listens.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`]: it is not installed. It ends before it listens.
    pub(crate) fn start(configuration: &str, listens: SocketAddr) -> io::Result<Self> {
        let program = find("nginx", "nginx")?;
        let dir = tempfile::tempdir()?;
        let file = write_file(dir.path(), "nginx.conf", configuration)?;
        let prefix = dir.path().display().to_string();
        let arguments = ["-p".into(), prefix, "-c".into(), file];
        let mut running = Running::start_silent(SERVER_CORE, &program, &arguments)?;
        await_listening(&mut running, listens)?;
        Ok(Self { running, _dir: dir })
    }

    /// What each of our configurations has. Started by root its workers would become another user, who cannot enter the
    /// directory.
    pub(crate) const HEAD: &str =
        "user root; daemon off; pid nginx.pid; error_log /dev/null crit;\n";

    /// What each has in `http`.
    pub(crate) const HTTP_HEAD: &str = "access_log off;
         client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
         uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n";

    /// The workers, then the master.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let master = self.running.pid();
        let mut pids = children(master).unwrap_or_default();
        pids.push(master);
        pids
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // A master that is killed leaves its workers behind; one that is asked to end takes them along.
        let master = Pid::from_raw(self.running.pid().cast_signed());
        if master.is_some_and(|master| kill_process(master, Signal::TERM).is_ok()) {
            let deadline = Instant::now() + END_PATIENCE;
            while self.running.is_alive() && Instant::now() < deadline {
                sleep(Duration::from_millis(5));
            }
        }
    }
}
