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

/// Bytes of all kernel objects (`Slab` of /proc/meminfo) but those of [`listed_bytes`].
///
/// What the kernel keeps of an idle socket are such objects and nothing else: the socket, its inode, dentry and file,
/// its place in the poll, its port. `MemAvailable` also moves with page caches, /proc/net/sockstat counts buffered
/// data only, and /proc/slabinfo is for root alone. The figure is the whole machine's: other programs blur it.
///
/// # Errors
/// No such line.
pub(crate) fn slab_bytes() -> io::Result<u64> {
    Ok(meminfo("Slab")?.saturating_sub(listed_bytes()))
}

/// Bytes of the names that the kernel has made up for /proc: whoever looks at the descriptors of all processes, as
/// monitors do all the time, leaves some 900 bytes a socket behind, which say nothing of sockets and go when memory
/// is short. Only root may know: 0 for others. Reading it holds up whoever allocates in the kernel: not to be done often.
pub(crate) fn listed_bytes() -> u64 {
    let text = fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    // Of a cache: its objects in use, and the bytes of one.
    let cache = |name: &str| {
        let words = text.lines().map(str::split_ascii_whitespace);
        let mut words = words.filter_map(|mut words| (words.next() == Some(name)).then_some(words));
        let mut words = words.next()?;
        let active = words.next()?.parse::<u64>().ok()?;
        Some((active, words.nth(1)?.parse::<u64>().ok()?))
    };
    let (inodes, bytes) = cache("proc_inode_cache").unwrap_or((0, 0));
    // Each has a directory entry, and what a security module keeps of it.
    let others =
        ["dentry", "lsm_inode_cache"].map(|name| cache(name).map_or(0, |(_, bytes)| bytes));
    inodes * (bytes + others.iter().sum::<u64>())
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

/// What the kernel keeps, of the whole machine: other programs blur it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// [`slab_bytes`]: the sockets themselves.
    pub(crate) slab: u64,
    /// Page tables of the processes, and stacks of their threads.
    pub(crate) processes: u64,
    /// Data in the buffers of TCP sockets, as /proc/net/sockstat counts it: whole pages of each socket that has any.
    pub(crate) tcp: u64,
}

impl Kernel {
    /// Now.
    ///
    /// # Errors
    /// /proc does not tell.
    pub(crate) fn now() -> io::Result<Self> {
        Ok(Self {
            slab: slab_bytes()?,
            processes: meminfo("PageTables")? + meminfo("KernelStack")?,
            tcp: tcp_bytes()?,
        })
    }

    /// What has come since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            slab: self.slab.saturating_sub(before.slab),
            processes: self.processes.saturating_sub(before.processes),
            tcp: self.tcp.saturating_sub(before.tcp),
        }
    }

    /// All of it. Buffered data lies in slabs and in pages of its own, so a part of it counts twice while there is
    /// any.
    pub(crate) fn all(self) -> u64 {
        self.slab + self.processes + self.tcp
    }
}

/// Bytes in the buffers of all TCP sockets.
///
/// # Errors
/// /proc/net/sockstat does not tell.
pub(crate) fn tcp_bytes() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/net/sockstat")?;
    let line = text.lines().find(|line| line.starts_with("TCP:"));
    let mut words = line.unwrap_or("").split_ascii_whitespace();
    let pages = words
        .by_ref()
        .find(|&word| word == "mem")
        .and_then(|_| words.next()?.parse::<u64>().ok());
    pages
        .map(|pages| pages * PAGE_BYTES)
        .ok_or_else(|| io::Error::other("no TCP mem in /proc/net/sockstat"))
}

/// Memory that programs can still have.
///
/// `MemAvailable` takes nearly all inodes and directory entries of the kernel for memory that it could give back, and
/// every socket has one of each: with millions of sockets gigabytes of it are not to be had. So what these have grown
/// by since [`reclaimable_bytes`] was `reclaimable_before` is taken off. `listed`: [`listed_bytes`].
///
/// # Errors
/// /proc/meminfo does not tell.
pub(crate) fn available_bytes(reclaimable_before: u64, listed: u64) -> io::Result<u64> {
    let grown = reclaimable_bytes(listed)?.saturating_sub(reclaimable_before);
    Ok(meminfo("MemAvailable")?.saturating_sub(grown))
}

/// Inodes, directory entries and other objects that the kernel says it can give back, but for the `listed` ones of
/// [`listed_bytes`], which it can.
///
/// # Errors
/// /proc/meminfo does not tell.
pub(crate) fn reclaimable_bytes(listed: u64) -> io::Result<u64> {
    Ok(meminfo("SReclaimable")?.saturating_sub(listed))
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
pub(crate) const OTHER_FILES: u64 = 64;

/// Sessions that a machine is to hold at both ends: so many servers and load generators.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    pub(crate) processes: u32,
    /// Of one process.
    pub(crate) sessions: u32,
    /// Descriptors of a server for sessions beyond its share.
    pub(crate) spare_files: u64,
    /// Memory in all; reckoned where there is none.
    pub(crate) memory: Option<u64>,
    /// Memory that is to be left to others.
    pub(crate) keep_free: u64,
    /// Whether every session may have an event that its client has not read yet, all at the same time. Where clients
    /// keep up, a lower `net.ipv4.tcp_mem` does.
    pub(crate) is_burst: bool,
}

/// What of this machine's settings stands in the way: one line for each, with what would have to be done. `files` is
/// the limit of open files of one process.
pub(crate) fn obstacles(demand: Demand, files: u64) -> Vec<String> {
    let Demand {
        processes,
        sessions,
        spare_files,
        memory,
        keep_free,
        is_burst,
    } = demand;
    let sockets = 2 * u64::from(processes) * u64::from(sessions);
    let mut found = Vec::new();
    if u64::from(sessions) + spare_files + OTHER_FILES > files {
        found.push(format!(
            "{sessions} sessions of one process need {} open files, and the hard limit is {files}: raise it \
             (ulimit -Hn), or ask for fewer",
            u64::from(sessions) + spare_files + OTHER_FILES
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
    // Who administers the system is not held to it.
    if !is_administrator() {
        too_low("fs/file-max", "open files", sockets + 4096);
    }
    too_low("fs/epoll/max_user_watches", "of one user", sockets + 4096);
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
        && is_burst
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
        let reckoned = sockets * SOCKET_BYTES + u64::from(processes) * (64 << 20);
        let need = memory.unwrap_or(reckoned);
        if need + keep_free > available {
            found.push(format!(
                "{sockets} sockets need about {} MiB of memory, and of {} available ones {} are to be left",
                need >> 20,
                available >> 20,
                keep_free >> 20
            ));
        }
    }
    found
}

/// Whether this process may do what CAP_SYS_ADMIN allows.
fn is_administrator() -> bool {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok());
    capabilities.is_some_and(|capabilities| capabilities & CAP_SYS_ADMIN != 0)
}

/// The first figure of a setting under /proc/sys.
pub(crate) fn sysctl(name: &str) -> Option<u64> {
    words(name).first().copied()
}

fn words(name: &str) -> Vec<u64> {
    let text = fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
    text.split_ascii_whitespace()
        .map_while(|word| word.parse().ok())
        .collect()
}
