//! What the unit of `scripts/systemd` lets the server ask of the kernel: its filter of system calls, made of systemd's own
//! sets, and put around a real server.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread;

use rustix::process::Signal;
use seccompiler::{BpfProgram, TargetArch, apply_filter, compile_from_json};
use serde_json::json;

use crate::tools::program;
use support::client::{ANY_TOKEN, Client};
use support::project_file;
use support::server::Server;

/// The account whose calls the demo makes up.
const DEMO_ACCOUNT: &str = "00000000000000000000000000000001";

/// The system calls of a set of systemd, or the one call of this name.
fn calls(name: &str) -> Option<BTreeSet<String>> {
    if !name.starts_with('@') {
        return Some(BTreeSet::from([name.to_owned()]));
    }
    let mut command = Command::new(program("systemd-analyze")?);
    let output = command.args(["syscall-filter", name]).output().unwrap();
    assert!(output.status.success(), "systemd knows no {name}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut calls = BTreeSet::new();
    for line in text.lines().skip(1).map(str::trim) {
        if !line.starts_with('#') && !line.is_empty() {
            calls.append(&mut self::calls(line)?);
        }
    }
    Some(calls)
}

/// Those that the unit allows: of its lines the first says what is allowed, and one with `~` takes away.
fn allowed(unit: &str) -> Option<BTreeSet<String>> {
    let mut allowed = BTreeSet::new();
    for rule in unit
        .lines()
        .filter_map(|line| line.strip_prefix("SystemCallFilter="))
    {
        let (is_away, names) = match rule.strip_prefix('~') {
            Some(names) => (true, names),
            None => (false, rule),
        };
        for name in names.split(' ') {
            for call in calls(name)? {
                if is_away {
                    allowed.remove(&call);
                } else {
                    allowed.insert(call);
                }
            }
        }
    }
    Some(allowed)
}

/// A filter that answers every other call with EPERM, as the unit says. Names that this processor does not have are left
/// out.
fn filter(allowed: &BTreeSet<String>) -> BpfProgram {
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let compile = |names: &[&String]| {
        let rules: Vec<_> = names.iter().map(|name| json!({"syscall": name})).collect();
        let of_all = json!({"unit": {
            "mismatch_action": {"errno": libc::EPERM}, "match_action": "allow", "filter": rules
        }});
        let mut programs = compile_from_json(of_all.to_string().as_bytes(), arch).ok()?;
        programs.remove("unit")
    };
    let known: Vec<&String> = allowed
        .iter()
        .filter(|name| compile(&[name]).is_some())
        .collect();
    assert!(known.len() > 100, "{known:?}");
    compile(&known).expect("each of them compiles")
}

#[test]
fn the_server_lives_within_the_system_calls_of_its_unit() {
    let unit = fs::read_to_string(project_file("scripts/systemd/blackhole@.service")).unwrap();
    assert!(unit.contains("\nSystemCallErrorNumber=EPERM\n"));
    let Some(allowed) = allowed(&unit) else {
        return;
    };
    for (call, expected) in [
        ("io_uring_enter", true),
        ("setuid", false),
        ("sched_setaffinity", false),
        ("setpriority", true),
    ] {
        assert_eq!(allowed.contains(call), expected, "{call}");
    }
    let filter = filter(&allowed);
    let outside = Server::demo(&["--demo-rate", "50"]);
    // Filters are of a thread and of what it starts.
    let within = thread::spawn(move || {
        apply_filter(&filter).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let admin_dir = folder.path().to_str().unwrap();
        let mut server = Server::demo(&["--demo-rate", "50", "--admin-dir", admin_dir]);
        let mut clients: Vec<Client> = (0..20).map(|_| server.client()).collect();
        for client in &mut clients {
            client.must_subscribe(ANY_TOKEN, DEMO_ACCOUNT, "call.*.*");
        }
        for client in &mut clients {
            client.event();
        }
        server.signal(Signal::HUP);
        server.wait_for_metric("config_reloads_total", 1);
        let limit = server.metric("process_max_fds");
        assert_eq!(server.stop().code(), Some(0));
        (server.log(), limit)
    });
    let (log, limit) = within.join().unwrap();
    assert_eq!(
        limit,
        outside.metric("process_max_fds"),
        "the limit is raised here too"
    );
    let no_ring = "no io_uring here";
    assert_eq!(
        log.contains(no_ring),
        outside.log().contains(no_ring),
        "{log}"
    );
    assert!(!log.contains("Operation not permitted"), "{log}");
}
