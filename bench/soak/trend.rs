//! Whether memory grows: a line through what was allocated, or resident, at the rests, when the same sessions are open
//! each time.

/// Growth of what is allocated that is noise, in bytes: tables have grown, and the history is not empty everywhere. The longer
/// the soak, the smaller the leak that stands out.
pub(crate) const ALLOCATED_NOISE_BYTES: f64 = 1024.0 * 1024.0;

/// Growth of what is resident that is noise, in bytes. Freed memory stays resident where something else is in the same page.
/// That differs by as much from storm to storm; another trim gives none of it back.
pub(crate) const RESIDENT_NOISE_BYTES: f64 = 4096.0 * 1024.0;

/// Growth allowed for each session that was opened meanwhile, in bytes: less than the smallest thing that could be
/// leaked for each, a heap block.
pub(crate) const BYTES_PER_SESSION: f64 = 8.0;

/// Rests needed for a judgement, the first third of all left out.
pub(crate) const RESTS_MIN: usize = 4;

/// Memory at one rest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    /// Seconds since the soak began.
    pub(crate) seconds: f64,
    /// Bytes of memory.
    pub(crate) bytes: f64,
    /// Sessions opened so far.
    pub(crate) sessions: f64,
}

/// A line through the rests of the last two thirds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trend {
    /// Bytes a minute.
    pub(crate) slope: f64,
    /// Bytes from the first to the last of these rests, on the line.
    pub(crate) growth: f64,
    /// Sessions opened meanwhile.
    pub(crate) sessions: f64,
}

impl Trend {
    /// The line of least squares through the last two thirds of `rests`; `None` when they are fewer than
    /// [`RESTS_MIN`].
    #[must_use]
    pub(crate) fn of(rests: &[Rest]) -> Option<Self> {
        let rests = rests.get(rests.len() / 3..)?;
        let ([first, .., last], RESTS_MIN..) = (rests, rests.len()) else {
            return None;
        };
        let count = rests.len() as f64;
        let mean = |of: fn(&Rest) -> f64| rests.iter().map(of).sum::<f64>() / count;
        let (middle, level) = (mean(|rest| rest.seconds), mean(|rest| rest.bytes));
        let (mut along, mut across) = (0.0, 0.0);
        for rest in rests {
            along += (rest.seconds - middle).powi(2);
            across += (rest.seconds - middle) * (rest.bytes - level);
        }
        let a_second = across / along;
        Some(Self {
            slope: a_second * 60.0,
            growth: a_second * (last.seconds - first.seconds),
            sessions: last.sessions - first.sessions,
        })
    }

    /// Growth beyond which it is a leak, in bytes, if `noise` bytes are none.
    #[must_use]
    pub(crate) fn allowance(&self, noise: f64) -> f64 {
        noise + BYTES_PER_SESSION * self.sessions
    }

    /// Whether memory grew by more than `noise` bytes and what each session may leave.
    #[must_use]
    pub(crate) fn is_leak(&self, noise: f64) -> bool {
        self.growth > self.allowance(noise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rest every half minute, 5,000 sessions each, `leak` bytes a session, and noise of 100 KiB up and down.
    fn rests(count: usize, leak: f64) -> Vec<Rest> {
        let rest = |number: usize| {
            let sessions = number as f64 * 5_000.0;
            let noise = if number.is_multiple_of(2) { 1e5 } else { -1e5 };
            Rest {
                seconds: number as f64 * 30.0,
                bytes: 2e7 + noise + leak * sessions,
                sessions,
            }
        };
        (0..count).map(rest).collect()
    }

    #[test]
    fn a_leak_of_a_small_block_a_session_is_seen_and_noise_is_not() {
        let leaks = [(6, 128.0), (20, 48.0), (60, 16.0)];
        let larger = [(6, 512.0), (20, 96.0), (60, 32.0)];
        for (noise, leaks) in [
            (ALLOCATED_NOISE_BYTES, leaks),
            (RESIDENT_NOISE_BYTES, larger),
        ] {
            for (count, bytes) in leaks {
                let flat = Trend::of(&rests(count, 0.0)).expect("enough rests");
                assert!(!flat.is_leak(noise), "{count}: {flat:?}");
                let leak = Trend::of(&rests(count, bytes)).expect("enough rests");
                assert!(leak.is_leak(noise), "{count}: {leak:?}");
            }
        }
    }

    #[test]
    fn slope_and_growth_are_those_of_the_line() {
        let rests: Vec<_> = (0..9)
            .map(|number| Rest {
                seconds: f64::from(number) * 10.0,
                // The first third does not count.
                bytes: if number < 3 {
                    1e9
                } else {
                    f64::from(number) * 1000.0
                },
                sessions: f64::from(number),
            })
            .collect();
        let trend = Trend::of(&rests).expect("enough rests");
        assert!((trend.slope - 6000.0).abs() < 1e-6, "{trend:?}");
        assert!((trend.growth - 5000.0).abs() < 1e-6, "{trend:?}");
        assert!((trend.sessions - 5.0).abs() < 1e-6, "{trend:?}");
    }

    #[test]
    fn few_rests_are_not_judged() {
        assert!(Trend::of(&rests(5, 0.0)).is_some());
        assert!(Trend::of(&rests(4, 0.0)).is_none());
        assert!(Trend::of(&[]).is_none());
    }
}
