//! The units of `scripts/systemd` in force: a real systemd starts, reloads, judges and replaces real servers, on a machine
//! of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::{io, os::unix::fs::PermissionsExt};

use crate::machine::{Machine, PATIENCE};
use crate::visits::visits;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use support::certificates::{Ca, LOCAL};
use support::project_file;
use support::server::{blackhole, wait_within};
use support::tls::{self, NAME, VERSIONS, trusting};

/// Where clients connect there.
const WEBSOCKETS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 5555);

/// Nobody is kept out, events come from nowhere, and no end takes long.
const CONFIG: &str =
    r#"{"auth": "insecure", "source": "demo", "drain_seconds": 1, "going_away_ms": 0}"#;

/// A machine with the server installed, as scripts/README.md says.
fn installed() -> Option<Machine> {
    let machine = Machine::boot()?;
    for entry in fs::read_dir(project_file("scripts/systemd")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let place = match name {
            "sysusers.conf" => "/etc/sysusers.d/blackhole.conf".to_owned(),
            unit => format!("/etc/systemd/system/{unit}"),
        };
        let place = machine.file(&place);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(&path, place).unwrap();
    }
    let program = machine.file("/usr/bin/blackhole");
    fs::copy(blackhole().get_program(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    machine.must(&["systemd-sysusers"]);
    let folder = machine.file("/etc/blackhole");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("blackhole.json"), CONFIG).unwrap();
    machine.must(&["chgrp", "-R", "blackhole", "/etc/blackhole"]);
    machine.must(&["chmod", "0770", "/etc/blackhole"]);
    machine.must(&["chmod", "0640", "/etc/blackhole/blackhole.json"]);
    machine.must(&["systemctl", "daemon-reload"]);
    Some(machine)
}

/// Leaves the running test out where an instance has no core of its own.
fn has_two_cores() -> bool {
    let has = std::thread::available_parallelism().unwrap().get() > 1;
    if !has {
        support::left_out::leave_out(&"an instance is a core, and there is one");
    }
    has
}

fn start(machine: &Machine, units: &[&str]) {
    let said = machine.run(&[&["systemctl", "start"], units].concat());
    let why = || {
        machine
            .run(&["journalctl", "--no-pager", "--lines=50"])
            .text
    };
    assert!(said.is_done, "{}{}", said.text, why());
}

fn property(machine: &Machine, unit: &str, name: &str) -> String {
    let named = format!("--property={name}");
    let said = machine.must(&["systemctl", "show", "--value", &named, unit]);
    said.trim().to_owned()
}

/// Three clients that come all the time, until it is dropped.
struct Visitors {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<usize>>>,
}

impl Visitors {
    fn send(machine: &Machine) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let visitor = |_| {
            let is_over = is_over.clone();
            machine.on_its_network(move || visits(SocketAddr::from(WEBSOCKETS), &is_over))
        };
        Self {
            threads: (0..3).map(visitor).collect(),
            is_over,
        }
    }

    /// Panics when one of them was refused, reset, or not served at all.
    fn call_back(mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let served = thread.join().unwrap().expect("refused or reset");
            assert!(served > 0);
        }
    }
}

impl Drop for Visitors {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

#[test]
fn systemd_knows_when_it_is_ready_reloads_it_and_ends_it_in_good_order() {
    let Some(machine) = installed() else { return };
    let unit = "blackhole@0.service";
    start(&machine, &[unit]);
    let show = |name: &str| property(&machine, unit, name);
    assert_eq!(show("StatusText"), "ready; clients: 0");
    assert_eq!(
        (show("ActiveState"), show("NRestarts")),
        ("active".into(), "0".into())
    );
    let pid = show("MainPID");
    let status = machine.must(&["cat", &format!("/proc/{pid}/status")]);
    let line = |name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name));
        found.unwrap().trim().to_owned()
    };
    assert_eq!(line("Cpus_allowed_list:"), "0");
    assert_eq!(line("NoNewPrivs:"), "1");
    assert_eq!(line("CapEff:"), "0000000000000000");
    assert_ne!(line("Uid:").split('\t').next(), Some("0"));
    // Where process 1 itself may not raise it, the unit gets as much as there is.
    let files = |pid: &str| -> u64 {
        let limits = machine.must(&["cat", &format!("/proc/{pid}/limits")]);
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"));
        let hard = line.unwrap().split_whitespace().nth(1).unwrap();
        hard.parse().unwrap()
    };
    assert!([1_048_576, files("1")].contains(&files(&pid)));

    let ask = |what: &[&str]| {
        let asked = ["blackhole", "ctl", "--admin-dir", "/run/blackhole"];
        machine.must(&[&asked[..], what].concat())
    };
    machine.must(&["systemctl", "reload", unit]);
    wait_within(PATIENCE, "the files read again", || {
        ask(&["metrics"])
            .contains("\nblackhole_config_reloads_total 1\n")
            .then_some(())
    });
    wait_within(PATIENCE, "systemd knows", || {
        (show("ActiveState") == "active" && show("StatusText").starts_with("ready")).then_some(())
    });
    assert_eq!(show("MainPID"), pid, "the same process");
    // The console's address, and the operator's: the port is the first one and the instance.
    let status = machine.must(&[
        "blackhole",
        "ctl",
        "--admin",
        "127.0.0.1:5559",
        "--json",
        "status",
    ]);
    assert!(status.contains("\"is_ready\": true"), "{status}");

    machine.must(&["systemctl", "stop", unit]);
    assert_eq!(
        (show("Result"), show("ActiveState")),
        ("success".into(), "inactive".into())
    );
}

#[test]
fn a_server_that_hangs_is_ended_by_the_watchdog_and_started_again() {
    let Some(machine) = installed() else { return };
    let unit = "blackhole@0.service";
    let folder = machine.file("/etc/systemd/system/blackhole@.service.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(
        folder.join("soon.conf"),
        "[Service]\nWatchdogSec=1\nRestartSec=0\nLimitCORE=0\n",
    )
    .unwrap();
    machine.must(&["systemctl", "daemon-reload"]);
    start(&machine, &[unit]);
    let show = |name: &str| property(&machine, unit, name);
    let pid = show("MainPID");
    machine.must(&["kill", "-STOP", &pid]);
    wait_within(PATIENCE, "another process", || {
        (show("NRestarts") == "1" && show("ActiveState") == "active").then_some(())
    });
    assert_ne!(show("MainPID"), pid);
    let journal = machine.must(&["journalctl", "--no-pager", "--unit", unit]);
    assert!(journal.contains("Watchdog timeout"), "{journal}");
}

#[test]
fn instances_restarted_one_after_another_refuse_nobody() {
    let Some(machine) = installed() else { return };
    if !has_two_cores() {
        return;
    }
    let units = ["blackhole@0.service", "blackhole@1.service"];
    // As scripts/sysctl.conf has it: without it, a client that stalls for a second between its connect and its request may
    // be reset (scripts/README.md), and on a busy machine one does.
    let migrate = || fs::write("/proc/sys/net/ipv4/tcp_migrate_req", "1");
    machine.on_its_network(migrate).join().unwrap().unwrap();
    start(&machine, &units);
    let pids = || units.map(|unit| property(&machine, unit, "MainPID"));
    let before = pids();
    let visitors = Visitors::send(&machine);
    for unit in units {
        machine.must(&["systemctl", "restart", unit]);
        // It comes back when the new one is ready.
        assert!(property(&machine, unit, "StatusText").starts_with("ready"));
    }
    visitors.call_back();
    let after = pids();
    assert!(
        before.iter().all(|pid| !after.contains(pid)),
        "{before:?} {after:?}"
    );
}

#[test]
fn a_port_that_systemd_holds_refuses_nobody_while_its_only_process_restarts() {
    let Some(machine) = installed() else { return };
    // The first who comes starts the service.
    start(&machine, &["blackhole@0.socket"]);
    let state = || property(&machine, "blackhole@0.service", "ActiveState");
    assert_eq!(state(), "inactive");
    let visitors = Visitors::send(&machine);
    wait_within(PATIENCE, "it is started", || {
        (state() == "active").then_some(())
    });
    for _ in 0..2 {
        machine.must(&["systemctl", "restart", "blackhole@0.service"]);
    }
    visitors.call_back();
}

/// What scripts/README.md has certbot run when it has renewed a certificate.
fn renewal_hook() -> String {
    let readme = fs::read_to_string(project_file("scripts/README.md")).unwrap();
    let (_, hook) = readme.split_once("  #!/bin/sh\n").expect("the hook");
    let (hook, _) = hook.split_once("  ```").unwrap();
    format!("#!/bin/sh\n{hook}")
}

#[test]
fn the_port_for_tls_is_held_open_too_and_a_hook_puts_a_renewed_certificate_in_force() {
    const HOOK: &str = "/etc/letsencrypt/renewal-hooks/deploy/blackhole";
    const LINEAGE: &str = "/etc/letsencrypt/live/try";
    let Some(machine) = installed() else { return };
    let ca = Ca::new();
    let hook = machine.file(HOOK);
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, renewal_hook()).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(machine.file(LINEAGE)).unwrap();
    let renew = || {
        let certified = ca.certify(LOCAL, 90);
        for (from, to) in [
            (certified.cert(), "fullchain.pem"),
            (certified.key(), "privkey.pem"),
        ] {
            fs::copy(from, machine.file(LINEAGE).join(to)).unwrap();
        }
        machine.must(&["env", &format!("RENEWED_LINEAGE={LINEAGE}"), HOOK]);
        CertificateDer::from_pem_file(certified.cert()).unwrap()
    };
    let config = trusting(&ca.pem(), &VERSIONS);
    let shown = || {
        let config = config.clone();
        let look = move || -> io::Result<_> {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 5556))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut tls = tls::over(config, NAME, stream);
            while tls.conn.is_handshaking() {
                tls.conn.complete_io(&mut tls.sock)?;
            }
            Ok(tls.conn.peer_certificates().unwrap()[0]
                .clone()
                .into_owned())
        };
        machine.on_its_network(look).join().unwrap().unwrap()
    };
    let first = renew();
    let tls = r#""use_ssl": true, "ssl_cert": "/etc/blackhole/tls/fullchain.pem", "ssl_key": "/etc/blackhole/tls/privkey.pem""#;
    let config = CONFIG.replace('}', &format!(", {tls}}}"));
    fs::write(machine.file("/etc/blackhole/blackhole.json"), config).unwrap();

    // The first who comes, to either port, starts the service.
    start(&machine, &["blackhole@0.socket", "blackhole-tls@0.socket"]);
    assert_eq!(
        property(&machine, "blackhole@0.service", "ActiveState"),
        "inactive"
    );
    assert_eq!(shown(), first);
    let visitors = Visitors::send(&machine);
    let second = renew();
    assert_ne!(first, second);
    wait_within(PATIENCE, "the renewed certificate", || {
        (shown() == second).then_some(())
    });
    machine.must(&["systemctl", "restart", "blackhole@0.service"]);
    assert_eq!(shown(), second);
    visitors.call_back();
    let journal = machine.must(&["journalctl", "--no-pager", "--unit", "blackhole@0.service"]);
    for port in [
        "listening on 0.0.0.0:5555",
        "listening with TLS on 0.0.0.0:5556",
    ] {
        // On stdout and in the log, of each start.
        assert_eq!(journal.matches(port).count(), 4, "{port}\n{journal}");
    }
}

#[test]
fn sockets_of_two_instances_are_on_one_port_and_refuse_nobody_while_both_restart() {
    let Some(machine) = installed() else { return };
    if !has_two_cores() {
        return;
    }
    start(&machine, &["blackhole@0.socket", "blackhole@1.socket"]);
    let units = ["blackhole@0.service", "blackhole@1.service"];
    start(&machine, &units);
    let visitors = Visitors::send(&machine);
    for unit in units {
        machine.must(&["systemctl", "restart", unit]);
    }
    visitors.call_back();
    let journal = machine.must(&["journalctl", "--no-pager", "--unit", "blackhole@1.service"]);
    assert!(journal.contains("listening on 0.0.0.0:5555"), "{journal}");
}
