//! What the service manager is to be told of this process, and when (sd_notify(3)). Pure: [`super::service`] sends it.
//!
//! ```text
//! nothing told --events come, or READY_PATIENCE is over--> READY=1
//! READY=1 --SIGHUP--> RELOADING=1 --read, and every session renewed--> READY=1
//! any of them --the end is announced--> STOPPING=1
//! ```
//!
//! Invariants: nothing counts as told before [`Report::told`] says so; each state is told once, in this order; a reload that
//! was asked for is told, however short it was; while there is a watchdog, it is fed at least each half of its interval
//! for as long as the loop turns.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::limits::READY_PATIENCE;

/// What the loop sees of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// The event source is connected.
    pub(super) is_source_up: bool,
    /// Files are being read again, or sessions renewed by them.
    pub(super) is_rereading: bool,
    /// The process is about to end.
    pub(super) is_ending: bool,
    /// Connections of the websocket port.
    pub(super) clients: usize,
}

/// The states that a service manager knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Ready,
    Reloading,
    Stopping,
}

/// One message for the service manager.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Lines `NAME=VALUE`.
    pub(super) text: String,
    told: Told,
    words: &'static str,
}

impl Message {
    /// Whether it must name the present time of the system's monotonic clock too.
    pub(super) fn needs_time(&self) -> bool {
        self.told == Told::Reloading
    }
}

/// How often the service manager wants to hear of us, or it takes us for hung.
#[derive(Debug)]
struct Watchdog {
    half: Duration,
    due: Duration,
}

/// What has been told so far.
#[derive(Debug)]
pub(super) struct Report {
    told: Told,
    /// The state in words that was told last.
    words: &'static str,
    is_reload_asked: bool,
    ready_by: Duration,
    watchdog: Option<Watchdog>,
    stop_time: Duration,
}

impl Report {
    /// `watchdog`: the longest time between two signs of life. `stop_time`: how long the end may take once it is announced.
    pub(super) fn new(watchdog: Option<Duration>, stop_time: Duration, now: Duration) -> Self {
        Self {
            told: Told::Nothing,
            words: "",
            is_reload_asked: false,
            ready_by: now + READY_PATIENCE,
            watchdog: watchdog.map(|interval| Watchdog {
                half: interval / 2,
                due: now,
            }),
            stop_time,
        }
    }

    /// A reload was asked for.
    pub(super) fn on_reload(&mut self) {
        self.is_reload_asked = true;
    }

    /// What is to be told now, if anything is. Allocates only then.
    pub(super) fn due(&self, seen: Seen, now: Duration) -> Option<Message> {
        let told = match self.told {
            Told::Stopping => Told::Stopping,
            Told::Nothing | Told::Ready | Told::Reloading if seen.is_ending => Told::Stopping,
            Told::Nothing if seen.is_source_up || now >= self.ready_by => Told::Ready,
            Told::Ready if self.is_reload_asked => Told::Reloading,
            Told::Reloading if !seen.is_rereading => Told::Ready,
            unchanged => unchanged,
        };
        let words = words(told, seen.is_source_up);
        let is_fed = self.watchdog.as_ref().is_none_or(|one| now < one.due);
        if told == self.told && words == self.words && is_fed {
            return None;
        }
        let state = match told {
            _ if told == self.told => None,
            Told::Nothing => None,
            Told::Ready => Some(NotifyState::Ready),
            Told::Reloading => Some(NotifyState::Reloading),
            Told::Stopping => Some(NotifyState::Stopping),
        };
        let mut text = String::new();
        if let Some(state) = &state {
            add(&mut text, state);
            if told == Told::Stopping {
                let time = format!("EXTEND_TIMEOUT_USEC={}", self.stop_time.as_micros());
                add(&mut text, &NotifyState::Custom(&time));
            }
        }
        if self.watchdog.is_some() {
            add(&mut text, &NotifyState::Watchdog);
        }
        let status = format!("{words}; clients: {}", seen.clients);
        add(&mut text, &NotifyState::Status(&status));
        Some(Message { text, told, words })
    }

    /// This message has been taken by the service manager.
    pub(super) fn told(&mut self, message: &Message, now: Duration) {
        if message.told != self.told {
            // One that was asked for during the start is over with it.
            self.is_reload_asked &= self.told != Told::Nothing && message.told == Told::Ready;
        }
        self.told = message.told;
        self.words = message.words;
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.due = now + watchdog.half;
        }
    }

    /// When there is something to tell even if nothing changes.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let ready_by = (self.told == Told::Nothing).then_some(self.ready_by);
        let watchdog = self.watchdog.as_ref().map(|one| one.due);
        ready_by.into_iter().chain(watchdog).min()
    }
}

fn add(text: &mut String, line: &NotifyState<'_>) {
    *text += &format!("{line}\n");
}

fn words(told: Told, is_source_up: bool) -> &'static str {
    match (told, is_source_up) {
        (Told::Stopping, _) => "going away",
        (Told::Reloading, _) => "reading files again",
        (Told::Nothing | Told::Ready, true) => "ready",
        (Told::Nothing, false) => "listening, waiting for the event source",
        (Told::Ready, false) => "not ready: the event source is away",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const UP: Seen = Seen {
        is_source_up: true,
        is_rereading: false,
        is_ending: false,
        clients: 0,
    };
    const AWAY: Seen = Seen {
        is_source_up: false,
        ..UP
    };

    /// The lines that are told now, taken at once.
    fn lines(report: &mut Report, seen: Seen, now: Duration) -> Vec<String> {
        let Some(message) = report.due(seen, now) else {
            return Vec::new();
        };
        report.told(&message, now);
        assert_eq!(report.due(seen, now), None, "told twice: {}", message.text);
        message.text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_life_is_told_state_by_state_and_each_once() {
        let mut report = Report::new(None, 12 * SECOND, Duration::ZERO);
        let rereading = Seen {
            is_rereading: true,
            ..UP
        };
        let ending = Seen {
            is_ending: true,
            clients: 7,
            ..UP
        };
        let started: [(Seen, u32, &[&str]); 4] = [
            (
                AWAY,
                0,
                &["STATUS=listening, waiting for the event source; clients: 0"],
            ),
            (AWAY, 1, &[]),
            (UP, 2, &["READY=1", "STATUS=ready; clients: 0"]),
            (
                AWAY,
                3,
                &["STATUS=not ready: the event source is away; clients: 0"],
            ),
        ];
        for (seen, second, expected) in started {
            assert_eq!(lines(&mut report, seen, SECOND * second), expected);
        }
        report.on_reload();
        let reloaded: [(Seen, u32, &[&str]); 5] = [
            (
                rereading,
                4,
                &["RELOADING=1", "STATUS=reading files again; clients: 0"],
            ),
            (rereading, 5, &[]),
            (UP, 6, &["READY=1", "STATUS=ready; clients: 0"]),
            (
                ending,
                7,
                &[
                    "STOPPING=1",
                    "EXTEND_TIMEOUT_USEC=12000000",
                    "STATUS=going away; clients: 7",
                ],
            ),
            (UP, 8, &[]),
        ];
        for (seen, second, expected) in reloaded {
            assert_eq!(lines(&mut report, seen, SECOND * second), expected);
        }
        report.on_reload();
        assert_eq!(
            lines(&mut report, rereading, 9 * SECOND),
            [""; 0],
            "too late for that"
        );
    }

    #[test]
    fn a_reload_that_is_over_before_it_is_told_is_told_nevertheless_and_so_is_the_next_one() {
        let mut report = Report::new(None, SECOND, Duration::ZERO);
        report.on_reload();
        assert_eq!(lines(&mut report, UP, SECOND)[0], "READY=1");
        assert_eq!(
            lines(&mut report, UP, SECOND),
            [""; 0],
            "the start was its end"
        );
        for _ in 0..2 {
            report.on_reload();
        }
        let told_reload = report.due(UP, SECOND).expect("a reload");
        report.told(&told_reload, SECOND);
        report.on_reload();
        for expected in ["READY=1", "RELOADING=1", "READY=1"] {
            let message = report.due(UP, SECOND).expect(expected);
            assert!(message.text.starts_with(expected), "{}", message.text);
            assert_eq!(message.needs_time(), expected == "RELOADING=1");
            report.told(&message, SECOND);
        }
        assert_eq!(report.due(UP, SECOND), None);
    }

    #[test]
    fn the_start_does_not_wait_for_the_source_for_ever() {
        let mut report = Report::new(None, SECOND, SECOND);
        assert_eq!(lines(&mut report, AWAY, SECOND).len(), 1);
        assert_eq!(report.next_due(), Some(SECOND + READY_PATIENCE));
        let early = SECOND + READY_PATIENCE - Duration::from_nanos(1);
        assert_eq!(lines(&mut report, AWAY, early), [""; 0]);
        let told = lines(&mut report, AWAY, SECOND + READY_PATIENCE);
        assert_eq!(
            told,
            [
                "READY=1",
                "STATUS=not ready: the event source is away; clients: 0"
            ]
        );
        assert_eq!(report.next_due(), None, "nothing wakes an idle loop");
    }

    #[test]
    fn the_watchdog_is_fed_each_half_of_its_interval_and_with_whatever_is_told() {
        let mut report = Report::new(Some(10 * SECOND), SECOND, Duration::ZERO);
        let fed = |told: Vec<String>| told.contains(&"WATCHDOG=1".to_owned());
        assert!(fed(lines(&mut report, UP, SECOND)));
        assert_eq!(report.next_due(), Some(6 * SECOND));
        assert!(!fed(lines(
            &mut report,
            UP,
            6 * SECOND - Duration::from_nanos(1)
        )));
        assert!(fed(lines(&mut report, UP, 6 * SECOND)));
        assert!(fed(lines(&mut report, AWAY, 7 * SECOND)));
        assert_eq!(report.next_due(), Some(12 * SECOND));
    }

    #[test]
    fn what_could_not_be_sent_is_due_until_it_is() {
        let report = Report::new(None, SECOND, Duration::ZERO);
        for _ in 0..3 {
            let message = report.due(UP, SECOND).expect("not told yet");
            assert!(message.text.starts_with("READY=1\n"));
        }
    }
}
