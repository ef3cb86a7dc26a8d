//! What the benches ask the system about processes: CPU time, resident memory, the limit of open files.
//!
//! CPU comes from `schedstat` (nanoseconds that a thread ran), because the ticks of `/proc/PID/stat` are too coarse
//! for one fan-out. A running thread's figure lags by up to one scheduler tick; an idle one's is exact.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// CPU time of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadCpu {
    /// The thread's id; that of the main thread is the process's.
    pub id: u32,
    /// Time it ran, since it began.
    pub ran: Duration,
}

/// CPU time of every live thread of `pid`. Linear in the threads.
///
/// # Errors
/// The process is gone, or the kernel keeps no `schedstat`.
pub fn cpu(pid: u32) -> io::Result<Vec<ThreadCpu>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        let id = entry
            .file_name()
            .to_string_lossy()
            .parse()
            .map_err(io::Error::other)?;
        match fs::read_to_string(entry.path().join("schedstat")) {
            Ok(text) => threads.push(ThreadCpu {
                id,
                ran: ran(&text)?,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(threads)
}

/// CPU time of this process so far.
///
/// # Errors
/// As [`cpu`].
pub fn own_cpu() -> io::Result<Duration> {
    let threads = cpu(std::process::id())?;
    Ok(threads.iter().map(|thread| thread.ran).sum())
}

fn ran(schedstat: &str) -> io::Result<Duration> {
    let first = schedstat.split_ascii_whitespace().next();
    let nanoseconds = first.and_then(|text| text.parse().ok());
    nanoseconds
        .map(Duration::from_nanos)
        .ok_or_else(|| io::Error::other(format!("schedstat: {schedstat:?}")))
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// `VmRSS`: everything resident, mapped files too.
    pub resident: u64,
    /// `RssAnon`: heap and stacks only.
    pub anonymous: u64,
    /// `VmHWM`: the most that was ever resident, or since [`forget_peak`].
    pub peak: u64,
}

/// Resident memory of `pid`.
///
/// # Errors
/// The process is gone.
pub fn memory(pid: u32) -> io::Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let bytes = |name: &str| {
        kilobytes(&status, name).ok_or_else(|| io::Error::other(format!("no {name} in status")))
    };
    Ok(Memory {
        resident: bytes("VmRSS")?,
        anonymous: bytes("RssAnon")?,
        peak: bytes("VmHWM")?,
    })
}

/// Resident memory of `pid` in which a page that several processes share counts for its part (`Pss`), in bytes.
/// Linear in the pages.
///
/// # Errors
/// The process is gone, or another user's.
pub fn proportional(pid: u32) -> io::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    kilobytes(&rollup, "Pss").ok_or_else(|| io::Error::other("no Pss in smaps_rollup"))
}

/// The bytes of a line `name:  N kB`.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kilobytes = line?.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
    Some(kilobytes * 1024)
}

/// Lets [`Memory::peak`] of `pid` begin anew.
///
/// # Errors
/// The process is gone, or another user's.
pub fn forget_peak(pid: u32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// Raises the soft limit of open files to the hard one, and returns it; `u64::MAX` where there is none. Children
/// inherit it.
///
/// # Errors
/// The system refuses.
pub fn raise_open_files() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}
