//! Figures as a person reads them on a terminal.

use serde_json::{Map, Value};

/// What a table shows where there is nothing.
pub(super) const NOTHING: &str = "–";

/// `19,000`.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1.2 MiB`.
pub(super) fn bytes(value: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if value < 1024 {
        return format!("{value} B");
    }
    let mut scaled = value as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while scaled >= 1023.95
        && let Some(next) = units.next()
    {
        scaled /= 1024.0;
        unit = Some(next);
    }
    format!("{scaled:.1} {}", unit.unwrap_or(&"B"))
}

/// `47 s`, `3 min 05 s`, `3 h 05 min`, `12 d 04 h`.
pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {:02} s", seconds % 60),
        3600..86_400 => format!("{hours} h {:02} min", minutes % 60),
        86_400.. => format!("{days} d {:02} h", hours % 24),
    }
}

/// `85 µs`, `1.3 ms`, `2.05 s`: of a duration that is usually short, in seconds.
pub(super) fn latency(seconds: f64) -> String {
    match seconds {
        s if s < 0.000_999_5 => format!("{:.0} µs", s * 1e6),
        s if s < 0.099_95 => format!("{:.1} ms", s * 1e3),
        s if s < 0.999_5 => format!("{:.0} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// `0.4`, `12.5`, `1,250`: of something a second.
pub(super) fn rate(a_second: f64) -> String {
    if a_second < 99.95 {
        format!("{a_second:.1}")
    } else {
        // Rates are far below 2^53.
        count(a_second.round() as u64)
    }
}

/// A text among the members of an answer.
pub(super) fn text<'s>(session: &'s Map<String, Value>, member: &str) -> &'s str {
    let text = session.get(member).and_then(Value::as_str);
    text.unwrap_or(NOTHING)
}

/// A number among the members of an answer; 0: there is none.
pub(super) fn number(session: &Map<String, Value>, member: &str) -> u64 {
    let number = session.get(member).and_then(Value::as_u64);
    number.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_for_people() {
        for (value, expected) in [(0, "0"), (999, "999"), (19_000, "19,000")] {
            assert_eq!(count(value), expected);
        }
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
        for (value, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_258_291, "1.2 MiB"),
            (1_048_575, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(value), expected);
        }
        for (seconds, expected) in [
            (0, "0 s"),
            (59, "59 s"),
            (185, "3 min 05 s"),
            (11_100, "3 h 05 min"),
            (86_400, "1 d 00 h"),
        ] {
            assert_eq!(span(seconds), expected);
        }
        for (seconds, expected) in [
            (0.0, "0 µs"),
            (0.000_085, "85 µs"),
            (0.001, "1.0 ms"),
            (0.25, "250 ms"),
            (2.046, "2.05 s"),
        ] {
            assert_eq!(latency(seconds), expected);
        }
        for (value, expected) in [(0.0, "0.0"), (12.46, "12.5"), (1249.6, "1,250")] {
            assert_eq!(rate(value), expected);
        }
    }
}
