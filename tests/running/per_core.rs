//! `scripts/run-per-core`: one process a core, on one port. The script and the server are the real ones; the script is
//! told to end with each test, and the kernel ends its processes should it be killed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::tools::program;
use crate::visits::{Over, visit, visits};
use support::client::Client;
use support::project_file;
use support::server::{blackhole, own_address, wait_for, wait_within};

/// For what the script does in several steps, each with its own waiting.
const PATIENCE: Duration = Duration::from_secs(60);

/// Options of servers that need no broker and whose drain no client waits for.
const OPTIONS: [&str; 8] = [
    "--auth",
    "insecure",
    "--drain-seconds",
    "1",
    "--going-away-ms",
    "0",
    "--log-level",
    "info",
];

/// The script, and what it has said.
struct PerCore {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl PerCore {
    /// Runs the server itself, with the demo as its source.
    fn start(processes: u32, options: &[&str]) -> Option<Self> {
        let options = [&["--source", "demo"], options].concat();
        let server = PathBuf::from(blackhole().get_program());
        Self::start_with(&server, processes, &[], &options)
    }

    /// Nothing where the tools of the script are missing.
    fn start_with(server: &Path, processes: u32, own: &[&str], options: &[&str]) -> Option<Self> {
        for tool in ["taskset", "setpriv", "setsid"] {
            program(tool)?;
        }
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("admin")).unwrap();
        let address = own_address();
        let log = File::create(folder.path().join("log")).unwrap();
        // As nohup, cron and a shell's `&` ignore some of them: the script hears its signals all the same.
        let mut command = Command::new("env");
        command.arg("--ignore-signal=HUP,INT,TERM,USR2");
        command.arg(project_file("scripts/run-per-core"));
        command.args(["--processes", &processes.to_string(), "--binary"]);
        command.arg(server).arg("--admin-dir");
        command.arg(folder.path().join("admin")).args(own).arg("--");
        command.args(["--ip", &address.ip().to_string()]);
        command.args(["--port", &address.port().to_string()]);
        command.args(OPTIONS).args(options);
        command.env("TMPDIR", folder.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Some(Self {
            child: command.spawn().unwrap(),
            address,
            folder,
        })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Its processes that answer, by the sockets of their operator.
    fn pids(&self) -> BTreeSet<u32> {
        let entries = fs::read_dir(self.folder.path().join("admin")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let pids = names.filter_map(|name| {
            let name = name.strip_prefix("blackhole-")?.strip_suffix(".sock")?;
            name.parse().ok()
        });
        pids.filter(|pid| is_alive(*pid)).collect()
    }

    fn until_processes(&self, count: usize) -> BTreeSet<u32> {
        wait_within(PATIENCE, &format!("{count} processes"), || {
            let pids = self.pids();
            (pids.len() == count).then_some(pids)
        })
    }

    fn until_log(&self, needle: &str) {
        wait_within(PATIENCE, &format!("{needle:?} in the log"), || {
            self.log().contains(needle).then_some(())
        });
    }

    /// The metrics pages of all processes together.
    fn metrics(&self) -> String {
        let admin = self.folder.path().join("admin");
        let mut command = blackhole();
        command
            .arg("ctl")
            .arg("--admin-dir")
            .arg(admin)
            .arg("metrics");
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    fn wait(&mut self) -> ExitStatus {
        wait_within(PATIENCE, "the script ends", || {
            self.child.try_wait().unwrap()
        })
    }

    fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }
}

impl Drop for PerCore {
    fn drop(&mut self) {
        // The kernel tells its processes.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- run-per-core\n{}---", self.log());
        }
    }
}

fn pid(raw: u32) -> Pid {
    Pid::from_raw(raw.try_into().unwrap()).unwrap()
}

fn send(to: u32, signal: Signal) {
    kill_process(pid(to), signal).expect("it is still there");
}

/// Whether it runs; one that has ended, and that nobody has asked for yet, does not.
fn is_alive(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .map(|(_, behind)| behind.starts_with('Z'));
    state == Some(false)
}

/// The cores that a process may use, as the kernel lists them.
fn cores(process: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap().trim().to_owned()
}

#[test]
fn each_process_is_pinned_to_a_core_of_its_own_and_all_take_the_same_port() {
    let count = thread::available_parallelism().unwrap().get().min(4);
    let Some(mut all) = PerCore::start(count.try_into().unwrap(), &[]) else {
        return;
    };
    let pids = all.until_processes(count);
    let cores: BTreeSet<String> = pids.iter().map(|pid| cores(*pid)).collect();
    assert_eq!(cores.len(), count, "{cores:?}");
    assert!(
        cores.iter().all(|list| list.parse::<u32>().is_ok()),
        "{cores:?}"
    );
    // The kernel gives each of them some of a hundred.
    let clients: Vec<Client> = (0..100).map(|_| Client::connect(all.address)).collect();
    wait_for("each has some", || {
        let page = all.metrics();
        let sessions = page.lines().filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            (name == "blackhole_sessions").then(|| value.parse::<u32>().unwrap())
        });
        let sessions: Vec<u32> = sessions.collect();
        let is_all = sessions.len() == count && sessions.iter().sum::<u32>() == 100;
        (is_all && sessions.iter().all(|held| *held > 0)).then_some(())
    });
    drop(clients);
    assert_eq!(all.stop().code(), Some(0), "{}", all.log());
    assert!(pids.into_iter().all(|pid| !is_alive(pid)));
}

#[test]
fn the_dead_are_started_again_with_longer_and_longer_pauses_and_the_others_serve_meanwhile() {
    let Some(mut all) = PerCore::start(2, &[]) else {
        return;
    };
    let mut pids = all.until_processes(2);
    let survivor = pids.pop_first().unwrap();
    let mut victim = pids.pop_first().unwrap();
    for pause in [500, 1000, 2000] {
        send(victim, Signal::KILL);
        all.until_log(&format!("process {victim} ended (signal 9)"));
        all.until_log(&format!("the next one in {pause} ms"));
        visit(std::net::TcpStream::connect(all.address).unwrap()).expect("the other serves");
        let pids = all.until_processes(2);
        assert!(pids.contains(&survivor));
        victim = pids.into_iter().find(|pid| *pid != survivor).unwrap();
    }
    assert_eq!(all.stop().code(), Some(0), "{}", all.log());
}

#[test]
fn a_reload_is_passed_on_to_every_process() {
    let Some(mut all) = PerCore::start(2, &[]) else {
        return;
    };
    all.until_processes(2);
    let reloads = |page: &str| -> u32 {
        let lines = page
            .lines()
            .filter(|line| line.starts_with("blackhole_config_reloads_total "));
        lines
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u32>().unwrap())
            .sum()
    };
    assert_eq!(reloads(&all.metrics()), 0);
    all.signal(Signal::HUP);
    wait_for("both have reloaded", || {
        (reloads(&all.metrics()) == 2).then_some(())
    });
    assert_eq!(all.stop().code(), Some(0), "{}", all.log());
}

#[test]
fn a_rolling_restart_replaces_every_process_and_refuses_nobody() {
    // With the delay, no client that stalls between its connect and its request is reset (scripts/README.md).
    let Some(mut all) = PerCore::start(2, &["--drain-delay-seconds", "2"]) else {
        return;
    };
    let before = all.until_processes(2);
    let is_over = AtomicBool::new(false);
    let address = all.address;
    thread::scope(|scope| {
        let over = Over(&is_over);
        let clients: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| visits(address, &is_over)))
            .collect();
        for round in 1..=2 {
            all.signal(Signal::USR2);
            wait_within(PATIENCE, "all are replaced", || {
                let done = all.log().matches("rolling restart: done").count();
                (done == round).then_some(())
            });
        }
        drop(over);
        for client in clients {
            let served = client.join().unwrap().expect("refused or reset");
            assert!(served > 0);
        }
    });
    let after = all.until_processes(2);
    assert!(before.is_disjoint(&after), "{before:?} {after:?}");
    let lists: BTreeSet<String> = after.iter().map(|pid| cores(*pid)).collect();
    assert_eq!(
        lists.len(),
        after
            .len()
            .min(thread::available_parallelism().unwrap().get())
    );
    assert_eq!(all.stop().code(), Some(0), "{}", all.log());
}

/// A program that becomes the server, with more options unless it is asked for something else.
fn write_program(path: &Path, more: &str) {
    let server = blackhole().get_program().to_str().unwrap().to_owned();
    let text = format!(
        "#!/bin/sh\n[ \"$1\" != ctl ] || exec '{server}' \"$@\"\nexec '{server}' \"$@\" {more}\n"
    );
    let draft = path.with_extension("draft");
    fs::write(&draft, text).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&draft, path).unwrap();
}

#[test]
fn a_rolling_restart_onto_a_program_that_does_not_get_ready_leaves_the_old_processes() {
    let folder = TempDir::new().unwrap();
    let server = folder.path().join("server");
    write_program(&server, "--source demo");
    let own = ["--ready-seconds", "2"];
    let Some(mut all) = PerCore::start_with(&server, 2, &own, &[]) else {
        return;
    };
    let before = all.until_processes(2);
    for (more, why) in [
        ("--source demo --no-such-option", "ended (exit code 2)"),
        // Nobody listens there.
        ("--amqp amqp://127.0.0.1:1", "is not ready after 2 s"),
    ] {
        write_program(&server, more);
        let stops = all.log().matches("the other processes stay").count();
        all.signal(Signal::USR2);
        wait_within(PATIENCE, why, || {
            let log = all.log();
            let is_over = log.matches("the other processes stay").count() > stops;
            (is_over && log.contains(why)).then_some(())
        });
        assert_eq!(all.until_processes(2), before);
    }
    visit(std::net::TcpStream::connect(all.address).unwrap()).expect("they serve");
    assert_eq!(all.stop().code(), Some(0), "{}", all.log());
}

#[test]
fn a_second_signal_to_end_is_passed_on_and_ends_the_drain() {
    let Some(mut all) = PerCore::start(2, &["--drain-delay-seconds", "3600"]) else {
        return;
    };
    all.until_processes(2);
    all.signal(Signal::TERM);
    wait_within(PATIENCE, "both drain", || {
        (all.log()
            .matches("told to end: connections are taken")
            .count()
            == 2)
            .then_some(())
    });
    all.signal(Signal::INT);
    assert_eq!(all.wait().code(), Some(0), "{}", all.log());
    assert_eq!(all.log().matches("closing at once").count(), 2);
}

#[test]
fn the_processes_do_not_outlive_a_script_that_is_killed() {
    let Some(all) = PerCore::start(2, &[]) else {
        return;
    };
    let pids = all.until_processes(2);
    drop(all);
    wait_within(PATIENCE, "its processes end", || {
        pids.iter().all(|pid| !is_alive(*pid)).then_some(())
    });
}

#[test]
fn what_cannot_be_meant_is_refused_with_exit_code_2() {
    let server = blackhole().get_program().to_owned();
    for (args, expected) in [
        (
            &["--processes", "none"][..],
            "expected a whole number above 0",
        ),
        (&["--processes"], "--processes needs a value"),
        (
            &["--", "--admin", "127.0.0.1:1"],
            "--admin is set for each process",
        ),
        (
            &["--binary", "/nowhere/blackhole"],
            "no server at /nowhere/blackhole",
        ),
        // What the server itself refuses.
        (
            &["--processes", "2", "--", "--port", "none"],
            "the options were refused",
        ),
    ] {
        let mut command = Command::new(project_file("scripts/run-per-core"));
        command.arg("--binary").arg(&server).args(args);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    let mut command = Command::new(project_file("scripts/run-per-core"));
    let help = command.arg("--help").output().unwrap();
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).starts_with("usage: scripts/run-per-core"));
}
