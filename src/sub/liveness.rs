//! Whether the server still answers: when to ping, and when to give a connection up. Pure: the time is a parameter.

use std::time::Instant;

use super::report::seconds;
use super::trouble::Trouble;
use crate::limits::{SUB_PING_INTERVAL, SUB_REPLY_MAX, SUB_SILENCE_MAX};

/// What is waited for.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// A reply to a subscribe, until then.
    Reply(Instant),
    /// The next ping.
    Ping(Instant),
}

/// The liveness of one connection.
#[derive(Debug)]
pub(super) struct Liveness {
    heard: Instant,
    next: Next,
}

impl Liveness {
    /// Of a connection that has just been made, and whose first command is sent now.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            heard: now,
            next: Next::Reply(now + SUB_REPLY_MAX),
        }
    }

    /// Something came.
    pub(super) fn hear(&mut self, now: Instant) {
        self.heard = now;
    }

    /// A subscribe was sent.
    pub(super) fn ask(&mut self, now: Instant) {
        self.next = Next::Reply(now + SUB_REPLY_MAX);
    }

    /// No further subscribe is to be sent.
    pub(super) fn settle(&mut self, now: Instant) {
        self.next = Next::Ping(now + SUB_PING_INTERVAL);
    }

    /// Whether a ping is to be sent now.
    ///
    /// # Errors
    /// The connection is to be given up.
    pub(super) fn check(&mut self, now: Instant) -> Result<bool, Trouble> {
        let silence = now.saturating_duration_since(self.heard);
        if silence >= SUB_SILENCE_MAX {
            let text = format!("no sign of life of the server for {}", seconds(silence));
            return Err(Trouble::Lost(text));
        }
        match self.next {
            Next::Reply(until) if now >= until => {
                let text = format!(
                    "no reply to the subscribe within {}",
                    seconds(SUB_REPLY_MAX)
                );
                Err(Trouble::Lost(text))
            }
            Next::Ping(at) if now >= at => {
                self.settle(now);
                Ok(true)
            }
            Next::Reply(_) | Next::Ping(_) => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// The seconds of pings, and of the end with its reason, of a connection that hears something at `heard`.
    fn life(settled: Option<u64>, heard: &[u64]) -> (Vec<u64>, u64, String) {
        let begun = Instant::now();
        let mut liveness = Liveness::new(begun);
        let mut pings = Vec::new();
        for second in 0.. {
            let now = begun + Duration::from_secs(second);
            if settled == Some(second) {
                liveness.settle(now);
            }
            if heard.contains(&second) {
                liveness.hear(now);
            }
            match liveness.check(now) {
                Ok(true) => pings.push(second),
                Ok(false) => {}
                Err(trouble) => return (pings, second, trouble.to_string()),
            }
        }
        unreachable!("silence ends it")
    }

    #[test]
    fn it_pings_every_20_s_and_gives_up_after_60_s_of_silence() {
        assert_eq!(
            life(Some(1), &[]),
            (
                vec![21, 41],
                60,
                "no sign of life of the server for 60.0 s".to_owned()
            )
        );
        let (pings, end, _) = life(Some(1), &[21, 41, 61, 100]);
        assert_eq!((pings, end), (vec![21, 41, 61, 81, 101, 121, 141], 160));
    }

    #[test]
    fn a_reply_that_does_not_come_ends_it_and_there_is_no_ping_before_it() {
        assert_eq!(
            life(None, &[10, 20, 29]),
            (
                vec![],
                30,
                "no reply to the subscribe within 30.0 s".to_owned()
            )
        );
    }
}
