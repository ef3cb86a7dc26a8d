//! The daily word on certificates of the TLS port that are near their end. At the start and at a reread it is said by whoever
//! has loaded them.

use std::time::Duration;

use crate::limits::TLS_EXPIRY_TOLD_EVERY;
use crate::session::clock::Now;
use crate::tls::ServerTls;

/// When it is said next, on the loop's clock.
pub(super) struct CertificateWatch {
    due: Duration,
}

impl Default for CertificateWatch {
    /// A day from the start.
    fn default() -> Self {
        Self {
            due: TLS_EXPIRY_TOLD_EVERY,
        }
    }
}

impl CertificateWatch {
    /// When to look again.
    pub(super) fn due(&self) -> Duration {
        self.due
    }

    /// The warnings for the log: none but once a day. Linear in the certificates then.
    pub(super) fn look(&mut self, served: &ServerTls, now: Now) -> Vec<String> {
        if !self.is_due(now.clock) {
            return Vec::new();
        }
        served.warnings(now.unix_ms / 1000)
    }

    fn is_due(&mut self, clock: Duration) -> bool {
        let is_due = clock >= self.due;
        if is_due {
            self.due = clock + TLS_EXPIRY_TOLD_EVERY;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_a_day_also_after_a_long_sleep() {
        let mut watch = CertificateWatch::default();
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        for (clock, expected) in [
            (0, false),
            (23, false),
            (24, true),
            (24, false),
            (47, false),
            (48, true),
            (500, true),
            (501, false),
            (524, true),
        ] {
            assert_eq!(watch.is_due(hours(clock)), expected, "{clock}");
            assert!(watch.due() > hours(clock));
        }
    }
}
