//! The machine under the measurement: what it is, what its kernel keeps of a socket, and what stands in the way of
//! many sessions.

use std::fs;
use std::io;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

/// What a figure needs to mean something later: machine, kernel, commit, date.
pub(crate) fn stamp() -> Value {
    let first_line = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .output()
            .ok()
            .filter(|output| output.status.success());
        output.map_or_else(
            || "unknown".to_owned(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    };
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let changed = first_line("git", &["status", "--porcelain", "--untracked-files=no"]);
    json!({
        "machine": model.map_or("unknown", |(_, model)| model.trim()),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory_bytes": meminfo("MemTotal").unwrap_or(0),
        "kernel": first_line("uname", &["-r"]),
        "commit": first_line("git", &["rev-parse", "--short=12", "HEAD"]),
        "changed_since": !changed.is_empty(),
        "date": first_line("date", &["--utc", "+%Y-%m-%dT%H:%M:%SZ"]),
    })
}

/// [`stamp`] in one line.
pub(crate) fn stamp_line(report: &Value) -> String {
    let text = |name: &str| report[name].as_str().unwrap_or("unknown").to_owned();
    let changed = if report["changed_since"] == true {
        " with changes"
    } else {
        ""
    };
    format!(
        "{}, {} cores, Linux {}, commit {}{changed}, {}",
        text("machine"),
        report["cores"],
        text("kernel"),
        text("commit"),
        text("date"),
    )
}

/// Bytes of all kernel objects (`Slab` of /proc/meminfo).
///
/// What the kernel keeps of an idle socket are such objects and nothing else: the socket, its inode, dentry and file,
/// its place in the poll, its port. `MemAvailable` also moves with page caches, /proc/net/sockstat counts buffered
/// data only, and /proc/slabinfo is for root alone. The figure is the whole machine's: other programs blur it.
///
/// # Errors
/// No such line.
pub(crate) fn slab_bytes() -> io::Result<u64> {
    meminfo("Slab")
}

/// [`slab_bytes`] once it stands still: the kernel frees the sockets of what ran before in its own time. Waits for
/// 5 s at most.
///
/// # Errors
/// As [`slab_bytes`].
pub(crate) fn settled_slab_bytes() -> io::Result<u64> {
    let mut last = slab_bytes()?;
    for _ in 0..10 {
        sleep(Duration::from_millis(500));
        let now = slab_bytes()?;
        if now.abs_diff(last) < 1 << 20 {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

fn meminfo(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes
        .map(|kilobytes| kilobytes * 1024)
        .ok_or_else(|| io::Error::other(format!("no {name} in /proc/meminfo")))
}

/// Kernel memory of one idle socket, for the reckoning of [`obstacles`]; what is measured is in the table of `density`.
const SOCKET_BYTES: u64 = 4 << 10;

/// Kernel memory of one 1 KB event on its way to one session, and of a page.
const EVENT_BYTES: u64 = 2304;
const PAGE_BYTES: u64 = 4096;

/// Descriptors of a process beside its sessions.
const OTHER_FILES: u64 = 64;

/// What of this machine's settings stands in the way of `processes` servers with `sessions` sessions each, whose
/// clients are on this machine too: one line for each, with what would have to be done. `files` is the limit of open
/// files of one process.
pub(crate) fn obstacles(processes: u32, sessions: u32, files: u64) -> Vec<String> {
    let sockets = 2 * u64::from(processes) * u64::from(sessions);
    let mut found = Vec::new();
    if u64::from(sessions) + OTHER_FILES > files {
        found.push(format!(
            "{sessions} sessions of one process need as many open files, and the hard limit is {files}: raise it \
             (ulimit -Hn), or ask for fewer"
        ));
    }
    let mut too_low = |name: &str, what: &str, need: u64| {
        let value = sysctl(name);
        if let Some(value) = value.filter(|&value| value < need) {
            found.push(format!(
                "{name} is {value}, and {sockets} sockets need {need} {what}: sysctl -w {}={need}",
                name.replace('/', ".")
            ));
        }
    };
    too_low("fs/file-max", "open files", sockets + 4096);
    if sysctl("net/netfilter/nf_conntrack_count").is_some_and(|count| count > 0) {
        too_low(
            "net/netfilter/nf_conntrack_max",
            "tracked connections",
            sockets / 2 + 1024,
        );
    }
    // Pages of data on their way, in all sockets together; the last figure is where the kernel refuses.
    let pages = words("net/ipv4/tcp_mem");
    let need = sockets / 2 * EVENT_BYTES / PAGE_BYTES;
    if let [_, _, most] = pages[..]
        && most < need
    {
        found.push(format!(
            "net/ipv4/tcp_mem allows {most} pages, and one event on its way to every session needs {need}: \
             sysctl -w net.ipv4.tcp_mem=\"{0} {0} {need}\"",
            need / 2
        ));
    }
    // A load generator takes ports of one address for at most 5,000 sessions.
    let ports = words("net/ipv4/ip_local_port_range");
    if let [first, last] = ports[..]
        && last.saturating_sub(first) < 2 * 5_000
    {
        found.push(format!(
            "net/ipv4/ip_local_port_range is {first} to {last}: clients need 10,000 ports an address"
        ));
    }
    if let Ok(available) = meminfo("MemAvailable") {
        let need = sockets * SOCKET_BYTES + u64::from(processes) * (64 << 20);
        if need > available {
            found.push(format!(
                "{sockets} sockets need about {} MiB of kernel memory, and {} are available",
                need >> 20,
                available >> 20
            ));
        }
    }
    found
}

fn sysctl(name: &str) -> Option<u64> {
    words(name).first().copied()
}

fn words(name: &str) -> Vec<u64> {
    let text = fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
    text.split_ascii_whitespace()
        .map_while(|word| word.parse().ok())
        .collect()
}
