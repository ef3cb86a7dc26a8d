//! Times in a histogram of constant size, which travels between the processes of one run.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Times in microseconds, up to a minute and to three digits; what is longer counts as a minute.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(into = "Vec<(u64, u64)>", from = "Vec<(u64, u64)>")]
pub(crate) struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_max(60_000_000, 3).expect("the bounds are valid"))
    }
}

/// (Time, how often) of every bucket that is not empty.
impl From<Latencies> for Vec<(u64, u64)> {
    fn from(latencies: Latencies) -> Self {
        let buckets = latencies.0.iter_recorded();
        buckets
            .map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value()))
            .collect()
    }
}

impl From<Vec<(u64, u64)>> for Latencies {
    fn from(buckets: Vec<(u64, u64)>) -> Self {
        let mut latencies = Self::default();
        for (micros, count) in buckets {
            latencies.record(micros, count);
        }
        latencies
    }
}

impl Latencies {
    /// Adds `count` times of `micros`.
    pub(crate) fn record(&mut self, micros: u64, count: u64) {
        self.0.saturating_record_n(micros, count);
    }

    /// Forgets all.
    pub(crate) fn reset(&mut self) {
        self.0.reset();
    }

    /// Times recorded.
    #[cfg(test)]
    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    /// Adds all times of `other`.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the bounds are the same");
    }

    /// Percentiles, in microseconds.
    pub(crate) fn json(&self) -> Value {
        json!({
            "p50": self.0.value_at_quantile(0.5),
            "p90": self.0.value_at_quantile(0.9),
            "p99": self.0.value_at_quantile(0.99),
            "max": self.0.max(),
            "count": self.0.len(),
        })
    }
}
