//! The lines of a metrics page: Prometheus' text format, version 0.0.4.
//!
//! Invariant: a family is begun once, and its samples follow at once. No label holds what a peer said: all label values are
//! literals of this program.

use std::fmt::{self, Display, Write};

/// The name of a metric on the page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name<'a> {
    prefix: &'static str,
    name: &'a str,
}

impl<'a> Name<'a> {
    /// A metric of this program: `blackhole_<name>`.
    pub(crate) fn ours(name: &'a str) -> Self {
        let prefix = "blackhole_";
        Self { prefix, name }
    }

    /// A metric that every program has under this very name, such as `process_open_fds`.
    pub(crate) fn standard(name: &'a str) -> Self {
        Self { prefix: "", name }
    }
}

impl Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.prefix, self.name)
    }
}

/// Begins a family: its help and its type (`counter`, `gauge` or `histogram`).
pub(crate) fn write_head(out: &mut String, name: Name<'_>, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Appends one sample. `suffix`: of a part of a histogram, else empty.
pub(crate) fn write_sample(
    out: &mut String,
    name: Name<'_>,
    suffix: &str,
    labels: &[(&str, &dyn Display)],
    value: impl Display,
) {
    let _ = write!(out, "{name}{suffix}");
    for (at, (label, text)) in labels.iter().enumerate() {
        let begin = if at == 0 { '{' } else { ',' };
        let _ = write!(out, "{begin}{label}=\"{text}\"");
    }
    let end = if labels.is_empty() { "" } else { "}" };
    let _ = writeln!(out, "{end} {value}");
}

/// Appends one metric `blackhole_<name>` without labels.
pub(crate) fn write_metric(
    out: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    value: impl Display,
) {
    let name = Name::ours(name);
    write_head(out, name, kind, help);
    write_sample(out, name, "", &[], value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_its_labels_in_braces_and_none_has_none() {
        let mut out = String::new();
        let name = Name::ours("closes_total");
        write_head(&mut out, name, "counter", "Ends.");
        write_sample(&mut out, name, "", &[("reason", &"peer")], 7);
        write_sample(&mut out, name, "_x", &[("a", &1), ("b", &"c")], 0.25);
        write_sample(&mut out, Name::standard("process_threads"), "", &[], 3);
        assert_eq!(
            out,
            "# HELP blackhole_closes_total Ends.\n# TYPE blackhole_closes_total counter\n\
             blackhole_closes_total{reason=\"peer\"} 7\nblackhole_closes_total_x{a=\"1\",b=\"c\"} 0.25\n\
             process_threads 3\n"
        );
    }
}
