//! Where things are printed, and how it ends: stdout for what was asked, stderr for what went wrong, exit codes.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use anstream::AutoStream;
use serde_json::Value;

use crate::printable::{printable, printable_json};

/// Exit code when something failed: a process that does not answer, or refuses; nothing where one thing was asked for.
pub(super) const CODE_FAILED: u8 = 1;
/// Exit code of a wrong command line, which is clap's too.
pub(super) const CODE_USAGE: u8 = 2;

/// Why the command ends early.
#[derive(Debug)]
pub(super) enum Failure {
    /// The command line cannot be right.
    Usage(String),
    /// Something else; what, in a line.
    Failed(String),
    /// stdout takes no more.
    Stdout(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Stdout(error)
    }
}

impl Failure {
    /// Tells it in a line on stderr. A reader of stdout that has gone, such as `head`, has what it wanted.
    pub(super) fn end(self) -> ExitCode {
        let (code, text) = match self {
            Self::Usage(text) => (CODE_USAGE, text),
            Self::Failed(text) => (CODE_FAILED, text),
            Self::Stdout(error) if error.kind() == ErrorKind::BrokenPipe => {
                return ExitCode::SUCCESS;
            }
            Self::Stdout(error) => (CODE_FAILED, format!("stdout: {error}")),
        };
        complain(&text);
        ExitCode::from(code)
    }
}

/// Whether all went well; what did not has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Well,
    Failed,
}

impl Outcome {
    /// Well, if it is so.
    pub(super) fn of(is_well: bool) -> Self {
        if is_well { Self::Well } else { Self::Failed }
    }

    pub(super) fn code(self) -> ExitCode {
        match self {
            Self::Well => ExitCode::SUCCESS,
            Self::Failed => ExitCode::from(CODE_FAILED),
        }
    }
}

/// A line on stderr.
pub(super) fn complain(text: &str) {
    // Nobody may be reading; the exit code tells it too.
    let _closed = writeln!(io::stderr(), "blackhole ctl: {}", printable(text));
}

/// stdout. Colours come through on a terminal only, and not with `NO_COLOR`.
pub(super) struct Screen {
    pub(super) out: AutoStream<io::StdoutLock<'static>>,
    /// Columns of the terminal; none when it is no terminal.
    pub(super) width: Option<usize>,
}

impl Screen {
    pub(super) fn new() -> Self {
        let is_terminal = io::stdout().is_terminal();
        let size = terminal_size::terminal_size_of(io::stdout());
        let columns = size.map(|(columns, _)| usize::from(columns.0));
        Self {
            out: anstream::stdout().lock(),
            // A terminal that tells no size is taken for endless.
            width: columns.filter(|columns| is_terminal && *columns > 0),
        }
    }

    /// Empties the terminal, if it is one.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        if self.width.is_some() {
            self.out.write_all(b"\x1b[H\x1b[2J")?;
        }
        Ok(())
    }

    /// A whole document, for scripts.
    pub(super) fn document(&mut self, document: &Value) -> io::Result<()> {
        self.json_text(&format!("{document:#}"))
    }

    /// A document in one line.
    pub(super) fn json_line(&mut self, document: &Value) -> io::Result<()> {
        self.json_text(&document.to_string())
    }

    fn json_text(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{}", printable_json(text))?;
        self.out.flush()
    }
}

/// Asks the person at the terminal, if there is one; without a terminal, or with `--yes`, the answer is yes.
pub(super) fn confirm(question: &str, is_yes: bool) -> Result<(), Failure> {
    if is_yes || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(());
    }
    let mut stderr = io::stderr();
    let _closed = write!(stderr, "{} [y/N] ", printable(question)).and_then(|()| stderr.flush());
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    match (read, answer.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::Failed("nothing was done".to_owned())),
    }
}
