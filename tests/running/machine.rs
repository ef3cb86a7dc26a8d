//! A machine of its own for a test: a real systemd as its process 1, with this machine's files below a layer in memory,
//! and a network that is loopback alone. So packages are installed, and units started, as on an operator's machine, on
//! their usual ports, and this machine stays as it was.
//!
//! Made by namespaces and an overlay (`machine.sh`), which takes root. All of it is gone when the [`Machine`] is dropped.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use support::left_out::leave_out;
use support::project_file;
use support::server::wait_within;
use tempfile::TempDir;

use super::tools::program;

/// Longest wait for the machine to be up, or for one of its units.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What gives a command namespaces of its own.
const UNSHARE: [&str; 9] = [
    "unshare",
    "--mount",
    "--pid",
    "--net",
    "--ipc",
    "--uts",
    "--cgroup",
    "--fork",
    "--kill-child=KILL",
];

/// Process 1 and all below it; killed on drop.
pub(crate) struct Machine {
    /// Ends, and kills process 1, when it is killed.
    starter: Child,
    /// Process 1, as this machine numbers it; 0 until it is there.
    systemd: u32,
    /// The control group that systemd found itself in.
    group: PathBuf,
    _folder: TempDir,
}

/// What a command on the machine said and how it ended.
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) is_done: bool,
}

impl Machine {
    /// Boots one; returns when it is up. Leaves the running test out and gives nothing where that is not possible.
    pub(crate) fn boot() -> Option<Self> {
        for name in ["unshare", "nsenter", "systemctl", "dpkg", "ip"] {
            program(name)?;
        }
        if !rustix::process::geteuid().is_root() {
            leave_out(&"a machine of its own takes root");
            return None;
        }
        let mut trial = Command::new(UNSHARE[0]);
        let trial = trial.args(&UNSHARE[1..]).arg("true").output().unwrap();
        if !trial.status.success() {
            let problem = String::from_utf8_lossy(&trial.stderr);
            leave_out(&format!("no namespaces: {}", problem.trim()));
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let group = groups()?.join(format!("blackhole-{}-{}", std::process::id(), own_number()));
        if let Err(error) = fs::create_dir(&group) {
            leave_out(&format!("no control group {}: {error}", group.display()));
            return None;
        }
        // The shell moves itself, and with it all that it becomes.
        let starter = Command::new("sh")
            .args([
                "-c",
                "echo $$ > \"$1/cgroup.procs\" && shift && exec \"$@\"",
                "sh",
            ])
            .arg(&group)
            .args(UNSHARE)
            .arg(project_file("tests/running/machine.sh"))
            .arg(folder.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", starter.id());
        let mut machine = Self {
            starter,
            systemd: 0,
            group,
            _folder: folder,
        };
        machine.systemd = wait_within(PATIENCE, "process 1", || {
            assert!(
                machine.starter.try_wait().unwrap().is_none(),
                "machine.sh has failed: see above"
            );
            let child = fs::read_to_string(&children).ok()?.trim().parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (name.trim() == "systemd").then_some(child)
        });
        wait_within(PATIENCE, "the machine up", || {
            let state = machine.run(&["systemctl", "is-system-running"]).text;
            matches!(state.trim(), "running" | "degraded").then_some(())
        });
        Some(machine)
    }

    /// A command that runs on the machine.
    pub(crate) fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.systemd.to_string(), "--all", "--"])
            .args(line)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command there to its end: all that it said, on both streams.
    pub(crate) fn run(&self, line: &[&str]) -> Said {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(line).output().unwrap();
        let text = [stdout, stderr].concat();
        Said {
            text: String::from_utf8_lossy(&text).into_owned(),
            is_done: status.success(),
        }
    }

    /// As [`Machine::run`]; panics when it fails.
    pub(crate) fn must(&self, line: &[&str]) -> String {
        let Said { text, is_done } = self.run(line);
        assert!(is_done, "{line:?}: {text}");
        text
    }

    /// A file of the machine, by its whole path there, as this machine reaches it.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.systemd.to_string())
            .join("root")
            .join(path.trim_start_matches('/'))
    }

    /// Runs `work` on a thread whose sockets are on the machine's network.
    pub(crate) fn on_its_network<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let network = File::open(format!("/proc/{}/ns/net", self.systemd)).unwrap();
        thread::spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its child goes with it, and with a process 1 all of its machine.
        let _gone = self.starter.kill();
        let _gone = self.starter.wait();
        wait_within(PATIENCE, "the end of the machine", || {
            (!Path::new(&format!("/proc/{}", self.systemd)).exists()).then_some(())
        });
        if let Err(error) = remove_groups(&self.group) {
            eprintln!("{}: {error}", self.group.display());
        }
    }
}

/// The folder of this process's control group, in the second version's hierarchy.
fn groups() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        words.next().filter(|_| words.next() == Some("cgroup2"))
    });
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    if mount.is_none() {
        leave_out(&"there are no control groups of version 2");
    }
    Some(Path::new(mount?).join(own.unwrap_or_default()))
}

/// Tells the machines of one process apart.
fn own_number() -> u32 {
    static USED: AtomicU32 = AtomicU32::new(0);
    USED.fetch_add(1, Ordering::Relaxed)
}

/// Removes a control group and all below it, which is not done by removing files.
fn remove_groups(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
