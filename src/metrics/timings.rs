//! The times that the loop takes, each with the buckets that suit it.

use std::time::Duration;

use super::histogram::Histogram;

const fn micros<const N: usize>(times: [u64; N]) -> [Duration; N] {
    let mut bounds = [Duration::ZERO; N];
    let mut at = 0;
    while at < N {
        bounds[at] = Duration::from_micros(times[at]);
        at += 1;
    }
    bounds
}

/// Around the 2 ms that a turn may take.
const OF_A_TURN: [Duration; 13] = micros([
    50, 100, 250, 500, 1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
]);
/// From the clock of the poll, which counts milliseconds, to a loop that nobody would call alive.
const OF_THE_LAG: [Duration; 11] = micros([
    1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000,
]);
/// From one turn to as many as a storm takes.
const OF_A_FAN_OUT: [Duration; 14] = micros([
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 5_000_000,
]);
/// From what the network takes to what nobody waits for any more.
const OF_AN_EVENT: [Duration; 14] = micros([
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_000_000,
    5_000_000, 10_000_000, 60_000_000,
]);
/// From an answer in the same turn to `request_timeout_ms`.
const OF_AN_ANSWER: [Duration; 14] = micros([
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
]);

macro_rules! timings {
    ($($name:ident as $metric:literal in $bounds:ident $help:literal;)*) => {
        /// The times that the loop takes.
        #[derive(Clone, Debug)]
        pub struct Timings {
            $(#[doc = $help] pub $name: Histogram,)*
        }

        impl Default for Timings {
            fn default() -> Self {
                Self { $($name: Histogram::new(&$bounds),)* }
            }
        }

        impl Timings {
            /// Appends all of them to `out`, in Prometheus' text format.
            pub fn write(&self, out: &mut String) {
                $(self.$name.write($metric, $help, out);)*
            }
        }
    };
}

timings! {
    turn as "turn_seconds" in OF_A_TURN "Time of each turn of the loop, from the return of its poll to the next poll.";
    lag as "loop_lag_seconds" in OF_THE_LAG "How late the loop was for the steps of its walk over all sessions, which are due ten times a second while there are sessions: what any other deadline had to wait too.";
    fan_out as "fan_out_seconds" in OF_A_FAN_OUT "Time of each event from the turn in which its frames were put into outboxes to the end of the turn in which the last session was written to. Sessions whose sockets are full are not waited for.";
    event_age as "event_age_seconds" in OF_AN_EVENT "Age of each event that somebody wanted, when its frames were put into outboxes: since the timestamp of its publisher, or since it arrived if that is missing, older than a day or in the future. Timestamps of whole seconds make it up to a second too large.";
    handshake as "handshake_seconds" in OF_AN_ANSWER "Time of each connection from its accept to the answer to its upgrade request, a refusal included.";
    subscribe as "subscribe_seconds" in OF_AN_ANSWER "Time of each subscribe from its arrival to its answer, good or bad, with the wait for the broker or for the authenticator.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::histogram::BUCKETS_MAX;

    #[test]
    fn all_bounds_are_kept_and_increase() {
        for bounds in [
            &OF_A_TURN[..],
            &OF_THE_LAG,
            &OF_A_FAN_OUT,
            &OF_AN_EVENT,
            &OF_AN_ANSWER,
        ] {
            assert!(
                bounds.len() <= BUCKETS_MAX && bounds.is_sorted(),
                "{bounds:?}"
            );
        }
    }
}
