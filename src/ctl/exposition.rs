//! A page of metrics in Prometheus' text format (version 0.0.4), read.
//!
//! What is not understood is passed over: a page of a later version shows what it has in common with this one.

use std::collections::HashMap;

/// The samples of a page, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Exposition {
    samples: HashMap<String, Vec<Sample>>,
}

#[derive(Clone, Debug)]
struct Sample {
    labels: Vec<(String, String)>,
    value: f64,
}

/// A histogram: how many values were at most so large.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Histogram {
    /// Upper bound and how many, both growing; the last bound is endless.
    buckets: Vec<(f64, f64)>,
}

impl Exposition {
    /// Linear in the page.
    pub(super) fn parse(page: &str) -> Self {
        let mut samples: HashMap<String, Vec<Sample>> = HashMap::new();
        for line in page.lines() {
            if let Some((name, sample)) = parse_line(line) {
                samples.entry(name).or_default().push(sample);
            }
        }
        Self { samples }
    }

    /// The value of a metric; of one with labels the sum. `None`: the page has none of that name.
    pub(super) fn value(&self, name: &str) -> Option<f64> {
        let samples = self.samples.get(name)?;
        Some(samples.iter().map(|sample| sample.value).sum())
    }

    /// A label of a metric's first sample, such as the version of `build_info`.
    pub(super) fn label(&self, name: &str, label: &str) -> Option<&str> {
        let labels = &self.samples.get(name)?.first()?.labels;
        let found = labels.iter().find(|(name, _)| name == label);
        found.map(|(_, value)| &**value)
    }

    /// A histogram; of one with labels the sum. Of n samples O(n log n).
    pub(super) fn histogram(&self, name: &str) -> Option<Histogram> {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for sample in self.samples.get(&format!("{name}_bucket"))? {
            let bound = sample.labels.iter().find(|(name, _)| name == "le");
            let bound: f64 = bound.and_then(|(_, value)| value.parse().ok())?;
            buckets.push((bound, sample.value));
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        buckets.dedup_by(|next, kept| {
            let is_same = next.0.total_cmp(&kept.0).is_eq();
            kept.1 += if is_same { next.1 } else { 0.0 };
            is_same
        });
        Some(Histogram { buckets })
    }
}

/// `name{label="value",…} 1.5`, with an optional timestamp behind.
fn parse_line(line: &str) -> Option<(String, Sample)> {
    let line = line.trim();
    let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, rest) = line.split_at(end);
    if name.is_empty() || name.starts_with('#') {
        return None;
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => parse_labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some((name.to_owned(), Sample { labels, value }))
}

fn parse_labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        rest = loop {
            match characters.next()? {
                (at, '"') => break quoted.get(at + 1..)?,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.push((name.trim().to_owned(), value));
    }
}

impl Histogram {
    /// The value that this share of all is at most, as Prometheus' `histogram_quantile` reckons it: even within a bucket;
    /// in the last, endless one its lower bound. `None`: there is no value. Linear in the buckets.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let all = self.buckets.last().map(|(_, count)| *count)?;
        if all <= 0.0 {
            return None;
        }
        let wanted = all * share;
        let mut below = (0.0, 0.0);
        for (bound, count) in &self.buckets {
            if *count >= wanted {
                if bound.is_infinite() {
                    return Some(below.0);
                }
                let within = (wanted - below.1) / (count - below.1).max(f64::MIN_POSITIVE);
                return Some(below.0 + (bound - below.0) * within.clamp(0.0, 1.0));
            }
            below = (*bound, *count);
        }
        Some(below.0)
    }

    /// What came since `before`; all when the counts have begun anew.
    pub(super) fn since(&self, before: &Self) -> Self {
        let same = self.buckets.len() == before.buckets.len();
        let pairs = self.buckets.iter().zip(&before.buckets);
        let is_later = same
            && pairs
                .clone()
                .all(|(now, then)| now.0 == then.0 && now.1 >= then.1);
        if !is_later {
            return self.clone();
        }
        Self {
            buckets: pairs.map(|(now, then)| (now.0, now.1 - then.1)).collect(),
        }
    }

    /// All values of both.
    pub(super) fn with(mut self, other: &Self) -> Self {
        if self.buckets.is_empty() {
            return other.clone();
        }
        for ((_, count), (_, more)) in self.buckets.iter_mut().zip(&other.buckets) {
            *count += more;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"
# HELP blackhole_sessions Upgraded sessions.
# TYPE blackhole_sessions gauge
blackhole_sessions 19000
blackhole_build_info{version="1.2 \"x\"}",commit="a\\b\nc"} 1
blackhole_closes_total{reason="normal"} 3
blackhole_closes_total{reason="slow_consumer",} 4 1700000000000
blackhole_turn_seconds_bucket{le="0.001"} 90
blackhole_turn_seconds_bucket{le="0.01"} 99
blackhole_turn_seconds_bucket{le="+Inf"} 100
blackhole_turn_seconds_sum 0.2
blackhole_broken{le="0.1 7
blackhole_odd seven
{} 1
"#;

    #[test]
    fn a_page_is_read() {
        let page = Exposition::parse(PAGE);
        assert_eq!(page.value("blackhole_sessions"), Some(19_000.0));
        assert_eq!(page.value("blackhole_closes_total"), Some(7.0));
        assert_eq!(page.value("blackhole_turn_seconds_sum"), Some(0.2));
        for name in ["blackhole_broken", "blackhole_odd", "blackhole_none", ""] {
            assert_eq!(page.value(name), None, "{name}");
        }
        let version = page.label("blackhole_build_info", "version");
        assert_eq!(version, Some("1.2 \"x\"}"));
        assert_eq!(
            page.label("blackhole_build_info", "commit"),
            Some("a\\b\nc")
        );
        assert_eq!(page.label("blackhole_sessions", "version"), None);
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let page = Exposition::parse(PAGE);
        let turns = page.histogram("blackhole_turn_seconds").expect("is there");
        for (share, expected) in [(0.45, 0.0005), (0.99, 0.01), (1.0, 0.01)] {
            let found = turns.quantile(share).expect("has values");
            assert!((found - expected).abs() < 1e-9, "{share}: {found}");
        }
        assert_eq!(turns.since(&turns).quantile(0.99), None);
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(turns.since(&Histogram::default()), turns);
    }

    #[test]
    fn the_buckets_of_all_labels_are_added_up_however_many_there_are() {
        let buckets = 100_000;
        let line = |bound: u32, name| format!("x_bucket{{a=\"{name}\",le=\"{bound}\"}} {bound}\n");
        let page: String = (0..buckets)
            .rev()
            .flat_map(|bound| [line(bound, "one"), line(bound, "other")])
            .collect();
        let page = Exposition::parse(&(page + "x_bucket{le=\"NaN\"} 1\nx_bucket{le=\"NaN\"} 1\n"));
        let begun = std::time::Instant::now();
        let found = page.histogram("x").expect("is there").buckets;
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
        let (not_a_number, rest) = found.split_last().expect("is there");
        assert!(not_a_number.0.is_nan() && not_a_number.1 == 2.0);
        let expected: Vec<_> = (0..buckets)
            .map(f64::from)
            .map(|bound| (bound, 2.0 * bound))
            .collect();
        assert_eq!(rest, expected);
    }
}
