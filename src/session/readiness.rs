//! Whether new sessions are taken, and whether events come: what balancers and probes are told.

use std::time::Duration;

use crate::protocol::http::HttpError;

/// Whether the event source is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// It has not been connected yet.
    Starting,
    /// It is connected: what it has said to be in force is.
    Up,
    /// It is away, and events may be lost.
    Away {
        /// Since when, on the loop's clock.
        since: Duration,
    },
}

/// Whether new sessions are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// New sessions are taken.
    Open,
    /// New sessions are taken, but balancers are told to send no more: the process is about to end.
    Leaving,
    /// New sessions are refused: every session is being closed.
    Draining,
}

/// The state of the process as far as newcomers are concerned.
#[derive(Clone, Copy, Debug)]
pub struct Readiness {
    source: SourceState,
    admission: Admission,
}

impl Default for Readiness {
    /// New sessions are taken, and the source has not been connected yet.
    fn default() -> Self {
        Self {
            source: SourceState::Starting,
            admission: Admission::Open,
        }
    }
}

impl Readiness {
    /// Whether the event source is connected.
    #[must_use]
    pub fn source(&self) -> SourceState {
        self.source
    }

    /// Whether the event source is connected now.
    #[must_use]
    pub fn is_source_up(&self) -> bool {
        self.source == SourceState::Up
    }

    /// Whether new sessions are refused.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.admission == Admission::Draining
    }

    /// Whether the process is about to end.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.admission != Admission::Open
    }

    /// Why balancers should send no client here; `None`: sessions are taken and events come.
    #[must_use]
    pub fn unready(&self) -> Option<HttpError> {
        match (self.admission, self.source) {
            (Admission::Leaving | Admission::Draining, _) => Some(HttpError::Draining),
            (Admission::Open, SourceState::Up) => None,
            (Admission::Open, SourceState::Starting | SourceState::Away { .. }) => {
                Some(HttpError::SourceDown)
            }
        }
    }

    /// Since when the source is away, if it is.
    #[must_use]
    pub fn away_since(&self) -> Option<Duration> {
        match self.source {
            SourceState::Away { since } => Some(since),
            SourceState::Starting | SourceState::Up => None,
        }
    }

    /// The source is connected. Returns since when it was away, if it was.
    pub fn on_source_up(&mut self) -> Option<Duration> {
        match std::mem::replace(&mut self.source, SourceState::Up) {
            SourceState::Away { since } => Some(since),
            SourceState::Starting | SourceState::Up => None,
        }
    }

    /// The source is away since then. True: it was connected.
    pub fn on_source_down(&mut self, since: Duration) -> bool {
        let was_up = self.is_source_up();
        if was_up {
            self.source = SourceState::Away { since };
        }
        was_up
    }

    /// From now on balancers are told to send no more clients.
    pub fn announce_end(&mut self) {
        self.admission = Admission::Leaving;
    }

    /// From now on new sessions are refused.
    pub fn refuse_newcomers(&mut self) {
        self.admission = Admission::Draining;
    }
}
