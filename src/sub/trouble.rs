//! Why a session of `blackhole sub` has no connection, in one line for a person, and what follows from it. Pure.

use std::fmt;
use std::time::Duration;

use super::lines::cut;

/// Why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no connection to the address, or what is there does not speak what the URL says.
    Unreachable(String),
    /// The server answered the upgrade with something else.
    Refused {
        status: u16,
        /// Its `Retry-After`.
        retry_after: Option<Duration>,
        /// The first line of its body.
        said: String,
    },
    /// The token is not good, or not any more.
    Token(String),
    /// Nothing that was asked for may be had.
    Bindings(String),
    /// The server cannot serve just now.
    Unavailable(String),
    /// The connection ended.
    Lost(String),
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Trying again is of no use.
    Final,
    /// To be tried again after the back-off's pause.
    Again,
    /// As [`Fate::Again`], and not before this time.
    After(Duration),
}

impl Trouble {
    /// What follows. `was_good`: this session was subscribed before, so that address, TLS and token were right once.
    pub(super) fn fate(&self, was_good: bool) -> Fate {
        match self {
            Self::Token(_)
            | Self::Bindings(_)
            | Self::Refused {
                status: 401 | 403, ..
            } => Fate::Final,
            Self::Refused {
                retry_after: Some(pause),
                ..
            } => Fate::After(*pause),
            Self::Refused {
                status: 429 | 500..=599,
                ..
            }
            | Self::Unavailable(_)
            | Self::Lost(_) => Fate::Again,
            // A mistake of the person's at first; later a server that is on its way down or up.
            Self::Unreachable(_) | Self::Refused { .. } if was_good => Fate::Again,
            Self::Unreachable(_) | Self::Refused { .. } => Fate::Final,
        }
    }

    /// What the texts of an error reply mean; `None`: they are about the bindings.
    pub(super) fn of_reply(errors: &[String]) -> Option<Self> {
        let text = || cut(&errors.join("; "));
        let has = |wanted: &[&str]| {
            let begins = |error: &String| wanted.iter().any(|text| error.starts_with(text));
            errors.iter().any(begins)
        };
        if has(&[
            "failed to authenticate token",
            "authentication token required",
        ]) {
            Some(Self::Token(text()))
        } else if has(&[
            "event source unavailable",
            "authentication unavailable",
            "rate limiting threshold hit",
        ]) {
            Some(Self::Unavailable(text()))
        } else if has(&["unauthorized", "missing required keys", "unknown action"]) {
            Some(Self::Bindings(text()))
        } else {
            None
        }
    }

    /// What the server's close means.
    pub(super) fn of_close(code: u16, reason: &str) -> Self {
        let reason = cut(reason);
        let text = if reason.is_empty() {
            format!("closed by the server with {code}")
        } else {
            format!("closed by the server with {code}: {reason}")
        };
        match code {
            4401 => Self::Token(text),
            _ => Self::Lost(text),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(text)
            | Self::Token(text)
            | Self::Bindings(text)
            | Self::Unavailable(text)
            | Self::Lost(text) => f.write_str(text),
            Self::Refused { status, said, .. } => {
                let what = match status {
                    401 | 403 => "the server refuses the connection",
                    429 | 503 => "the server takes no more connections now",
                    _ => "not a websocket server",
                };
                let colon = if said.is_empty() { "" } else { ": " };
                write!(f, "{what} (HTTP {status}){colon}{said}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, seconds: Option<u64>) -> Trouble {
        Trouble::Refused {
            status,
            retry_after: seconds.map(Duration::from_secs),
            said: String::new(),
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let text = String::new;
        for (trouble, at_first, later) in [
            (refused(401, None), Fate::Final, Fate::Final),
            (refused(403, Some(5)), Fate::Final, Fate::Final),
            (
                refused(429, Some(5)),
                Fate::After(Duration::from_secs(5)),
                Fate::After(Duration::from_secs(5)),
            ),
            (refused(429, None), Fate::Again, Fate::Again),
            (refused(503, None), Fate::Again, Fate::Again),
            (refused(502, None), Fate::Again, Fate::Again),
            (refused(404, None), Fate::Final, Fate::Again),
            (refused(200, None), Fate::Final, Fate::Again),
            (Trouble::Unreachable(text()), Fate::Final, Fate::Again),
            (Trouble::Token(text()), Fate::Final, Fate::Final),
            (Trouble::Bindings(text()), Fate::Final, Fate::Final),
            (Trouble::Unavailable(text()), Fate::Again, Fate::Again),
            (Trouble::Lost(text()), Fate::Again, Fate::Again),
        ] {
            assert_eq!(trouble.fate(false), at_first, "{trouble:?}");
            assert_eq!(trouble.fate(true), later, "{trouble:?}");
        }
    }

    #[test]
    fn replies_and_closes_are_told_apart() {
        let of = |error: &str| Trouble::of_reply(&[error.to_owned()]);
        let text = |text: &str| text.to_owned();
        for (error, expected) in [
            (
                "failed to authenticate token",
                Some(Trouble::Token(text("failed to authenticate token"))),
            ),
            (
                "event source unavailable",
                Some(Trouble::Unavailable(text("event source unavailable"))),
            ),
            (
                "rate limiting threshold hit for 1.2.3.4:5!",
                Some(Trouble::Unavailable(text(
                    "rate limiting threshold hit for 1.2.3.4:5!",
                ))),
            ),
            (
                "unauthorized account id",
                Some(Trouble::Bindings(text("unauthorized account id"))),
            ),
            ("event X not supported", None),
            ("no available subscriptions to requested binding", None),
            ("too many subscriptions (max 256)", None),
        ] {
            assert_eq!(of(error), expected, "{error}");
        }
        assert_eq!(
            Trouble::of_close(4401, "token expired"),
            Trouble::Token(text("closed by the server with 4401: token expired"))
        );
        for code in [1000, 1001, 1008, 1012, 4408] {
            assert!(
                matches!(Trouble::of_close(code, ""), Trouble::Lost(_)),
                "{code}"
            );
        }
    }

    #[test]
    fn what_a_server_says_is_one_short_line() {
        let long = format!("a\n\u{1b}[31m{}", "x".repeat(1000));
        let told = Trouble::of_close(1001, &long).to_string();
        assert!(
            told.len() < 300 && !told.contains(char::is_control),
            "{told}"
        );
    }
}
