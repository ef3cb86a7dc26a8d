//! What the sessions tell the one thread that prints.

use std::time::Duration;

use crossbeam_channel::Sender;

/// One thing to print, or to count.
pub(super) enum Report {
    /// A line for stdout about an event; it counts.
    Event(String),
    /// Another line for stdout.
    Notice(String),
    /// A line for stderr that `--quiet` leaves out.
    Told(String),
    /// A line for stderr.
    Problem(String),
    /// Events may be missing.
    Gap(String),
    /// A session is over.
    Ended,
    /// The person wants an end.
    Interrupted,
}

/// The printing thread has ended, and the process with it.
#[derive(Debug)]
pub(super) struct Over;

/// The way to the thread that prints; each session has one, and its label.
pub(super) struct Reporter {
    to: Sender<Report>,
    /// Names the session, where there are several.
    pub(super) label: Option<String>,
}

impl Reporter {
    pub(super) fn new(to: Sender<Report>, label: Option<String>) -> Self {
        Self { to, label }
    }

    /// Waits while [`crate::limits::SUB_LINES_MAX`] reports wait.
    pub(super) fn send(&self, report: Report) -> Result<(), Over> {
        self.to.send(report).map_err(|_| Over)
    }

    pub(super) fn told(&self, text: &str) -> Result<(), Over> {
        self.send(Report::Told(self.labelled(text)))
    }

    pub(super) fn problem(&self, text: &str) -> Result<(), Over> {
        self.send(Report::Problem(self.labelled(text)))
    }

    pub(super) fn gap(&self, text: &str) -> Result<(), Over> {
        self.send(Report::Gap(self.labelled(text)))
    }

    fn labelled(&self, text: &str) -> String {
        match &self.label {
            Some(label) => format!("{label}: {text}"),
            None => text.to_owned(),
        }
    }
}

/// `1.2 s`
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
