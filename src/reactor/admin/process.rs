//! The metrics of the process, under the names that every program has them.

use std::fmt::Display;

use crate::metrics::histogram::Seconds;
use crate::metrics::page::{Name, write_head, write_sample};
use crate::sys::process::process_figures;

/// Appends them to `out`; what the system does not say is left out. Reads a small file of /proc, and walks the allocator's
/// freed blocks.
pub(super) fn write(out: &mut String) {
    let figures = process_figures();
    let mut one = |name: &str, kind: &str, help: &str, value: Option<&dyn Display>| {
        if let Some(value) = value {
            let name = Name::standard(name);
            write_head(out, name, kind, help);
            write_sample(out, name, "", &[], value);
        }
    };
    let (cpu, started) = (figures.cpu.map(Seconds), figures.started.map(Seconds));
    for (name, kind, help, value) in [
        (
            "process_cpu_seconds_total",
            "counter",
            "CPU that all threads have used, in user and kernel mode, in seconds.",
            cpu.as_ref().map(|value| value as &dyn Display),
        ),
        (
            "process_resident_memory_bytes",
            "gauge",
            "Memory that is resident, in bytes.",
            figures.resident_bytes.as_ref().map(|value| value as _),
        ),
        (
            "process_heap_bytes",
            "gauge",
            "Memory that is allocated and not freed, in bytes; glibc only.",
            figures.heap_bytes.as_ref().map(|value| value as _),
        ),
        (
            "process_virtual_memory_bytes",
            "gauge",
            "Address space, in bytes.",
            figures.virtual_bytes.as_ref().map(|value| value as _),
        ),
        (
            "process_threads",
            "gauge",
            "Threads.",
            figures.threads.as_ref().map(|value| value as _),
        ),
        (
            "process_start_time_seconds",
            "gauge",
            "When the process started, in Unix seconds.",
            started.as_ref().map(|value| value as _),
        ),
        (
            "process_open_fds",
            "gauge",
            "Descriptors that are open; Linux 6.2 and later.",
            figures.open_descriptors.as_ref().map(|value| value as _),
        ),
        (
            "process_max_fds",
            "gauge",
            "Bound of the open descriptors.",
            Some(&figures.max_descriptors as _),
        ),
    ] {
        one(name, kind, help, value);
    }
}
