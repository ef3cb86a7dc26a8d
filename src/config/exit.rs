//! The end of a start that does not become a running server: text, stream and exit code in one value, so that `main`
//! has no logic.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// The stream that the text of an [`Exit`] goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// What was asked for: `--help`, `--version`, `--check-config`.
    Stdout,
    /// What was wrong.
    Stderr,
}

/// The process should print and end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// What to print on stderr first, line ends included; seldom anything.
    pub notes: String,
    /// What to print, line ends included.
    pub text: String,
    /// Where to print it.
    pub stream: Stream,
    /// 0: what was asked for is done. 2: the configuration was refused.
    pub code: u8,
}

/// Exit code of a refused configuration (PROTOCOL 9).
pub const CODE_REFUSED: u8 = 2;

/// A line that an operator is to read once: in the log at the start, and on stderr from `--check-config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// How much it matters.
    pub level: log::Level,
    /// What is to be said. It holds no password and no token.
    pub text: String,
}

impl Note {
    pub(crate) fn info(text: String) -> Self {
        let level = log::Level::Info;
        Self { level, text }
    }

    pub(crate) fn warning(text: String) -> Self {
        let level = log::Level::Warn;
        Self { level, text }
    }
}

impl Exit {
    /// Ends well, with `text` on stdout.
    pub(crate) fn done(text: String) -> Self {
        Self {
            notes: String::new(),
            text,
            stream: Stream::Stdout,
            code: 0,
        }
    }

    /// Says these on stderr before the text, each as `blackhole: NOTE`.
    pub(crate) fn with(mut self, notes: &[Note]) -> Self {
        for note in notes {
            self.notes += &format!("blackhole: {}\n", note.text);
        }
        self
    }

    /// Refuses to start: `blackhole: WHY` on stderr, exit code 2. For every cause that an operator can mend in the
    /// configuration, such as [`super::ConfigError`] and [`crate::auth::AuthError`].
    #[must_use]
    pub fn refused(why: impl fmt::Display) -> Self {
        Self {
            notes: String::new(),
            text: format!("blackhole: {why}\n"),
            stream: Stream::Stderr,
            code: CODE_REFUSED,
        }
    }

    /// Ends because the system refused something: `blackhole: WHY` on stderr.
    #[must_use]
    pub fn failed(code: u8, why: impl fmt::Display) -> Self {
        Self {
            code,
            ..Self::refused(why)
        }
    }

    /// The text without the program's name, as a line of the log.
    #[must_use]
    pub fn why(&self) -> &str {
        let text = self.text.trim_end();
        text.strip_prefix("blackhole: ").unwrap_or(text)
    }

    /// Prints the text and returns the code. A closed stream is not an error: there is nobody to tell.
    #[must_use]
    pub fn print(&self) -> ExitCode {
        let _closed = io::stderr().write_all(self.notes.as_bytes());
        let text = self.text.as_bytes();
        let _closed = match self.stream {
            Stream::Stdout => io::stdout()
                .write_all(text)
                .and_then(|()| io::stdout().flush()),
            Stream::Stderr => io::stderr().write_all(text),
        };
        ExitCode::from(self.code)
    }
}
