//! What may end a run before its time: memory that runs out, a signal.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::fleet::Fleet;
use crate::machine::{available_bytes, listed_bytes, reclaimable_bytes, tcp_bytes};

/// Time between two looks.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How readily the kernel ends this program and what it starts, where memory is gone all the same: before anything
/// else.
const OOM_SCORE: &str = "1000";

/// Looks at memory and signals.
pub(super) struct Watch {
    signal: Arc<AtomicUsize>,
    keep_free: u64,
    reclaimable_at_first: u64,
    available_at_first: u64,
    least_available: u64,
    most_tcp: u64,
    /// [`listed_bytes`], as of then.
    listed: (u64, Instant),
}

/// How old [`listed_bytes`] may be.
const LISTED_AGE_MAX: Duration = Duration::from_secs(2);

impl Watch {
    /// From here on SIGINT, SIGTERM and SIGHUP only make [`Watch::look`] fail. What is started later is the first
    /// that the kernel ends where memory is gone.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn start(keep_free: u64) -> io::Result<Self> {
        fs::write("/proc/self/oom_score_adj", OOM_SCORE)?;
        let signal = Arc::new(AtomicUsize::new(0));
        for number in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register_usize(number, signal.clone(), number as usize)?;
        }
        let listed = listed_bytes();
        let reclaimable = reclaimable_bytes(listed)?;
        let available = available_bytes(reclaimable, listed)?;
        Ok(Self {
            signal,
            keep_free,
            reclaimable_at_first: reclaimable,
            available_at_first: available,
            least_available: available,
            most_tcp: 0,
            listed: (listed, Instant::now()),
        })
    }

    /// Fails when the run must end.
    ///
    /// # Errors
    /// A signal has come, or less memory is left than is to be kept.
    pub(super) fn look(&mut self) -> io::Result<()> {
        match self.signal.load(Ordering::Relaxed) as i32 {
            0 => {}
            SIGINT => return Err(io::Error::other("million: stopped by SIGINT")),
            SIGTERM => return Err(io::Error::other("million: stopped by SIGTERM")),
            _ => return Err(io::Error::other("million: stopped by SIGHUP")),
        }
        let available = self.available()?;
        self.least_available = self.least_available.min(available);
        self.most_tcp = self.most_tcp.max(tcp_bytes()?);
        if available >= self.keep_free {
            return Ok(());
        }
        let message = format!(
            "million: stopped, because {:.2} GB of memory are left, less than --keep-free {:.2}",
            available as f64 / 1e9,
            self.keep_free as f64 / 1e9
        );
        Err(io::Error::other(message))
    }

    /// Sleeps, and looks meanwhile.
    ///
    /// # Errors
    /// As [`Watch::look`] and [`Fleet::check`].
    pub(super) fn sleep(&mut self, time: Duration, fleet: &mut Fleet) -> io::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            sleep(LOOK_INTERVAL);
            self.look()?;
            fleet.check()?;
        }
        Ok(())
    }

    /// Memory that is left.
    ///
    /// # Errors
    /// /proc does not tell.
    pub(super) fn available(&mut self) -> io::Result<u64> {
        if self.listed.1.elapsed() > LISTED_AGE_MAX {
            self.listed = (listed_bytes(), Instant::now());
        }
        available_bytes(self.reclaimable_at_first, self.listed.0)
    }

    /// What was left at the start.
    pub(super) fn available_at_first(&self) -> u64 {
        self.available_at_first
    }

    /// The least that was left at any look since [`Watch::forget_most`].
    pub(super) fn least_available(&self) -> u64 {
        self.least_available
    }

    /// The most data that was in sockets at any look since [`Watch::forget_most`].
    pub(super) fn most_tcp(&self) -> u64 {
        self.most_tcp
    }

    /// Lets [`Watch::least_available`] and [`Watch::most_tcp`] begin anew, with a look.
    ///
    /// # Errors
    /// As [`Watch::look`].
    pub(super) fn forget_most(&mut self) -> io::Result<()> {
        self.least_available = u64::MAX;
        self.most_tcp = 0;
        self.look()
    }
}
