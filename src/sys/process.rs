//! What the system and the allocator say of this process, for the metrics page. Each look reads one small file of /proc and
//! asks the kernel three things, none of which grows with the number of descriptors or threads, and the allocator one.

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::param::{clock_ticks_per_second, page_size};

/// The figures. `None`: the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessFigures {
    /// CPU that all threads have used, in user and kernel mode.
    pub cpu: Option<Duration>,
    /// Memory that is resident.
    pub resident_bytes: Option<u64>,
    /// Memory that is allocated and not freed, by the C library included. What of [`Self::resident_bytes`] is beyond it is free,
    /// in pages that are used in part, or is no heap. Only with glibc.
    pub heap_bytes: Option<u64>,
    /// Address space.
    pub virtual_bytes: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// When the process started, since 1970. Always the same.
    pub started: Option<Duration>,
    /// Descriptors that are open: told by Linux 6.2 and later without opening the folder, which takes milliseconds at
    /// thousands of them.
    pub open_descriptors: Option<u64>,
    /// Bound of these.
    pub max_descriptors: u64,
}

/// Looks at this process.
#[must_use]
pub fn process_figures() -> ProcessFigures {
    let of_stat = fs::read_to_string("/proc/self/stat").ok();
    let of_stat = of_stat.as_deref().and_then(Stat::parse);
    let descriptors = fs::metadata("/proc/self/fd").map_or(0, |folder| folder.len());
    ProcessFigures {
        cpu: of_stat.map(|stat| ticks(stat.cpu_ticks)),
        resident_bytes: of_stat.map(|stat| stat.resident_pages * page_size() as u64),
        heap_bytes: super::heap_in_use(),
        virtual_bytes: of_stat.map(|stat| stat.virtual_bytes),
        threads: of_stat.map(|stat| stat.threads),
        started: of_stat.and_then(|stat| started(stat.start_ticks)),
        open_descriptors: (descriptors > 0).then_some(descriptors),
        max_descriptors: super::descriptor_limit(),
    }
}

/// When the process started. Computed once, because the two clocks that it takes are not read at the same moment, and
/// another value would look like a restart.
fn started(start_ticks: u64) -> Option<Duration> {
    static STARTED: OnceLock<Option<Duration>> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let booted = now.checked_sub(Duration::try_from_secs_f64(uptime).ok()?)?;
        let started = booted + ticks(start_ticks);
        Some(Duration::from_millis(
            u64::try_from(started.as_millis()).ok()?,
        ))
    })
}

/// The kernel's clock ticks as a time.
fn ticks(count: u64) -> Duration {
    let a_second = clock_ticks_per_second().max(1);
    let nanos = count % a_second * (1_000_000_000 / a_second);
    Duration::from_secs(count / a_second) + Duration::from_nanos(nanos)
}

/// Some fields of `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name of the program stands in parentheses and may contain any character.
        let (_, behind_name) = text.rsplit_once(')')?;
        let fields: Vec<&str> = behind_name.split_whitespace().collect();
        // The first of them is the third of the line.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_behind_any_name() {
        let text = "7 (a) (b c) S 1 7 7 0 -1 4194560 2 0 0 0 15 27 0 0 20 0 9 0 1234 81920 10 18446744073709551615 1";
        let expected = Stat {
            cpu_ticks: 42,
            threads: 9,
            start_ticks: 1234,
            virtual_bytes: 81920,
            resident_pages: 10,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        for cut in ["", "7 (a", "7 (a) S", "7 (a) S 1 2 x"] {
            assert_eq!(Stat::parse(cut), None, "{cut}");
        }
    }

    #[test]
    fn this_process_has_figures_that_make_sense_and_one_start() {
        let (one, other) = (process_figures(), process_figures());
        assert_eq!(one.started, other.started);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
        let age = now.and_then(|now| now.checked_sub(one.started?));
        assert!(
            age.is_some_and(|age| age < Duration::from_secs(86_400)),
            "{one:?}"
        );
        assert!(
            one.resident_bytes.is_some_and(|bytes| bytes > 1 << 20),
            "{one:?}"
        );
        assert!(one.virtual_bytes > one.resident_bytes, "{one:?}");
        // Other tests allocate at the same time.
        let held = vec![0_u8; 256 << 20];
        let with = process_figures().heap_bytes;
        assert!(with > Some(held.len() as u64), "{with:?}");
        drop(held);
        assert!(process_figures().heap_bytes < with, "{with:?}");
        assert!(one.threads.is_some_and(|threads| threads > 0), "{one:?}");
        assert!(
            one.open_descriptors
                .is_none_or(|open| open <= one.max_descriptors)
        );
    }
}
