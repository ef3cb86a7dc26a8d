//! How an honest client fares beside an attack, by how it fares without.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Waits until no other attack of this binary runs, and keeps others waiting until it is dropped: two at a time would
/// be judged for each other.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long each of many equal things took.
#[derive(Default)]
pub(crate) struct Delays(Vec<Duration>);

impl Delays {
    /// Does it, and keeps how long it took.
    pub(crate) fn time<T>(&mut self, act: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let outcome = act();
        self.0.push(begun.elapsed());
        outcome
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The shortest time that so many percent took at most.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted[((sorted.len() * percent).div_ceil(100)).max(1) - 1]
    }

    pub(crate) fn longest(&self) -> Duration {
        self.percentile(100)
    }
}

impl fmt::Display for Delays {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, longest] = [50, 99, 100].map(|percent| self.percentile(percent));
        write!(
            formatter,
            "{} times, p50 {p50:?}, p99 {p99:?}, longest {longest:?}",
            self.len()
        )
    }
}

/// Rounds in the calm and rounds beside the attack, in turns.
#[derive(Default)]
pub(crate) struct Rounds {
    calm: Vec<Delays>,
    attacked: Vec<Delays>,
}

impl Rounds {
    /// A calm round and one of the attack, to be filled.
    pub(crate) fn next(&mut self) -> (&mut Delays, &mut Delays) {
        self.calm.push(Delays::default());
        self.attacked.push(Delays::default());
        let last = "just pushed";
        (
            self.calm.last_mut().expect(last),
            self.attacked.last_mut().expect(last),
        )
    }

    /// Of a round in the middle, so that the one into which the machine's other work fell is left out.
    fn typical(rounds: &[Delays], percent: usize) -> Duration {
        let percentiles = rounds.iter().map(|round| round.percentile(percent));
        Delays(percentiles.collect()).percentile(50)
    }

    /// How many times as long this percentile typically is beside the attack.
    pub(crate) fn ratio(&self, percent: usize) -> f64 {
        let [calm, attacked] =
            [&self.calm, &self.attacked].map(|rounds| Self::typical(rounds, percent));
        attacked.as_secs_f64() / calm.as_secs_f64()
    }

    /// Panics, with the figures, unless the percentile is at most `times` as long beside the attack.
    pub(crate) fn assert_ratio(&self, what: &str, percent: usize, times: f64) {
        let [calm, attacked] =
            [&self.calm, &self.attacked].map(|rounds| Self::typical(rounds, percent));
        let rounds = self.calm.len();
        assert_times(
            &format!("p{percent} of {what}, {rounds} rounds"),
            calm,
            attacked,
            times,
        );
    }
}

/// Panics, with the figures, unless `beside` is at most `times` as long as `before`.
pub(crate) fn assert_times(what: &str, before: Duration, beside: Duration, times: f64) {
    let ratio = beside.as_secs_f64() / before.as_secs_f64();
    println!("{what}: {before:?} in the calm, {beside:?} beside the attack, {ratio:.1} times");
    assert!(
        ratio <= times,
        "{what}: {before:?} in the calm, {beside:?} beside the attack: {ratio:.1} times, {times} at most"
    );
}
