//! `blackhole sub`: a websocket client in the same binary, for people and scripts. It subscribes, prints events as they
//! come, and comes back when the connection is lost.
//!
//! | file | owns |
//! |---|---|
//! | `mod` | the command line, and what it starts |
//! | `target` | URLs and tokens |
//! | `session` | one session: connect, subscribe, read, begin again |
//! | `connect` | TCP, TLS, upgrade |
//! | `trouble` | why there is no connection, and whether trying again is of use |
//! | `liveness` | when to ping, and when to give a connection up |
//! | `backoff` | pauses between tries |
//! | `position` | cursors, and which events came before |
//! | `lines` | what is printed of a frame |
//! | `farewell` | the end of the connections that stand |
//! | `report`, `output` | what sessions tell the thread that prints; that thread |
//!
//! A thread for each session (a URL and a token), a bounded queue, and the main thread, which alone prints.
//!
//! Exit codes: 0: the count was reached, the time is over, SIGINT, SIGTERM, or nobody reads stdout any more; 1: no session
//! is left, or fewer events came within the time than were asked for; 2: a wrong command line.
//!
//! Invariant: a token is sent to its server, and is in no line, error or `Debug` output.

mod backoff;
mod connect;
mod farewell;
mod lines;
mod liveness;
mod output;
mod position;
mod report;
mod session;
mod target;
mod trouble;

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use clap::{ArgMatches, Command, CommandFactory, FromArgMatches, Parser, ValueEnum, ValueHint};
use crossbeam_channel::{Sender, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::account::AccountId;
use crate::limits::{SUB_LINES_MAX, SUB_SESSIONS_MAX, SUB_TOKENS_BYTES_MAX, TOKEN_BYTES_MAX};
use crate::tls_files::ClientFiles;
use connect::tls_config;
use farewell::Farewell;
use lines::Form;
use output::{Ends, Outcome, say};
use report::{Report, Reporter};
use session::{Plan, Session};
use target::{Target, Token};

/// Exit code: no session is left.
const CODE_FAILED: u8 = 1;

/// Exit code: a wrong command line.
const CODE_WRONG: u8 = 2;

/// Longest wait at the end for connections to be closed.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

/// The environment variable that a token may be in.
const TOKEN_VARIABLE: &str = "BLACKHOLE_TOKEN";

/// Subscribe at a server, and print events as they come
///
/// Comes back by itself when the connection is lost, fetches the events that it has missed, and tells where some may be
/// missing.
#[derive(Parser)]
#[command(name = "sub", args_override_self = false, after_help = EXAMPLES)]
struct SubOptions {
    /// Server to connect to: ws://HOST:PORT, or wss:// for TLS; several times to compare servers
    #[arg(long, value_name = "URL", required = true)]
    url: Vec<String>,
    /// Token to subscribe with; several times for a session each. Others on this machine can read a command line:
    /// better --token-file, or the environment variable BLACKHOLE_TOKEN
    #[arg(long, value_name = "TOKEN")]
    token: Vec<String>,
    /// File with a token on each line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    token_file: Option<PathBuf>,
    /// Account whose events are asked for, 32 hex characters, or * for all (superduper admins only); absent: the token's
    /// own
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<String>,
    /// Shape of events; absent: the server's default
    #[arg(long, value_name = "STYLE")]
    style: Option<StyleName>,
    /// What this session is called in the server's listings
    #[arg(long, value_name = "NAME", default_value = "blackhole sub")]
    name: String,
    /// Origin header to send, to try a server's allowed_origins
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<String>,
    /// CAs to trust for wss://, as a PEM file; absent: those that the system trusts
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    ca_cert: Option<PathBuf>,
    /// Certificate to show a server that asks for one (ssl_ca_cert), as a PEM file, with what links it to its CA behind it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// Private key of --client-cert, as a PEM file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "client_cert")]
    client_key: Option<PathBuf>,
    /// Print each event and notice as the JSON that it is, one a line
    #[arg(long, conflicts_with = "keys")]
    json: bool,
    /// Print the routing key of each event only
    #[arg(long)]
    keys: bool,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    time: Option<u32>,
    /// End when the connection is lost
    #[arg(long)]
    no_reconnect: bool,
    /// Do not ask for the events that were missed, and do not move when the server says that it is going away
    #[arg(long)]
    no_resume: bool,
    /// Say on stderr only what is wrong, and where events may be missing
    #[arg(long, short)]
    quiet: bool,
    /// Bindings to subscribe to, such as call.CHANNEL_CREATE.* (quoted, for the shell)
    #[arg(value_name = "BINDING", required = true)]
    bindings: Vec<String>,
}

/// `--style`.
#[derive(Clone, Copy, ValueEnum)]
enum StyleName {
    Piston,
    Kazoo,
}

const EXAMPLES: &str = "\
Examples:
  blackhole sub --url ws://127.0.0.1:5555 --token-file token.txt 'call.*.*'
  Two servers, what one event looks like, and nothing else:
    blackhole sub --url ws://one:5555 --url wss://two:5555 --token-file token.txt \\
                  --json --count 1 --quiet 'call.CHANNEL_CREATE.*' | jq

Exit codes: 0: ended as was asked for; 1: no session is left, or --for ended before --count; 2: wrong command line.";

/// The command line of `blackhole sub`.
#[must_use]
pub fn command() -> Command {
    SubOptions::command()
}

/// Runs `blackhole sub` with a command line that [`command`] has read, until its end. Takes over SIGINT and SIGTERM.
#[must_use]
pub fn run(matches: &ArgMatches) -> ExitCode {
    let started = SubOptions::from_arg_matches(matches)
        .map_err(|error| error.to_string())
        .and_then(prepare);
    let prepared = match started {
        Ok(prepared) => prepared,
        Err(problem) => {
            say(&problem);
            return ExitCode::from(CODE_WRONG);
        }
    };
    match prepared.run() {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(CODE_FAILED),
        Err(error) => {
            say(&error.to_string());
            ExitCode::from(CODE_FAILED)
        }
    }
}

/// A command line that makes sense.
struct Prepared {
    /// With the label of each.
    plans: Vec<(Plan, Option<String>)>,
    ends: Ends,
    is_quiet: bool,
}

/// Checks what clap does not. No error repeats a value that may be a token.
fn prepare(options: SubOptions) -> Result<Prepared, String> {
    let style = options.style.map(|style| match style {
        StyleName::Piston => "piston",
        StyleName::Kazoo => "kazoo",
    });
    let targets = options
        .url
        .iter()
        .map(|url| Target::parse(url, style).map_err(|error| format!("--url: {error}")))
        .collect::<Result<Vec<_>, _>>()?;
    let account = options.account.as_deref();
    if account.is_some_and(|account| account != "*" && AccountId::parse(account).is_none()) {
        return Err("--account: expected 32 hex characters, or *".to_owned());
    }
    let tokens = tokens(options.token, options.token_file.as_deref())?;
    let sessions = targets.len() * tokens.len();
    if sessions > SUB_SESSIONS_MAX {
        return Err(format!(
            "{sessions} sessions, one for each --url and each token: at most {SUB_SESSIONS_MAX} are possible"
        ));
    }
    let own = options.client_cert.zip(options.client_key);
    let own = own.map(|(cert, key)| ClientFiles { cert, key });
    let tls = tls_config(options.ca_cert.as_deref(), own.as_ref())
        .map_err(|problem| problem.to_string())?;
    let form = if options.json {
        Form::Json
    } else if options.keys {
        Form::Keys
    } else {
        Form::People {
            is_coloured: is_coloured(),
        }
    };
    let mut plans = Vec::new();
    for target in &targets {
        for (index, token) in tokens.iter().enumerate() {
            let plan = Plan {
                target: target.clone(),
                token: token.clone(),
                tls: Arc::clone(&tls),
                origin: options.origin.clone(),
                account: options.account.clone(),
                bindings: options.bindings.clone(),
                name: options.name.clone(),
                form,
                reconnects: !options.no_reconnect,
                resumes: !options.no_resume,
            };
            let label = (sessions > 1).then(|| match tokens.len() {
                1 => target.name(),
                _ => format!("{}#{}", target.name(), index + 1),
            });
            plans.push((plan, label));
        }
    }
    Ok(Prepared {
        plans,
        ends: Ends {
            count: options.count,
            time: options.time.map(|time| Duration::from_secs(time.into())),
            sessions,
        },
        is_quiet: options.quiet,
    })
}

/// The tokens of the command line and the file; without either, that of the environment.
fn tokens(given: Vec<String>, file: Option<&Path>) -> Result<Vec<Token>, String> {
    let mut tokens: Vec<(&str, String)> =
        given.into_iter().map(|token| ("--token", token)).collect();
    if let Some(file) = file {
        let wrong = |problem: String| format!("--token-file: {}: {problem}", file.display());
        let mut text = String::new();
        File::open(file)
            .and_then(|opened| {
                opened
                    .take(SUB_TOKENS_BYTES_MAX + 1)
                    .read_to_string(&mut text)
            })
            .map_err(|error| wrong(format!("cannot be read: {error}")))?;
        if text.len() as u64 > SUB_TOKENS_BYTES_MAX {
            return Err(wrong(format!(
                "is longer than {SUB_TOKENS_BYTES_MAX} bytes"
            )));
        }
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(|line| ("--token-file", line.to_owned()));
        let before = tokens.len();
        tokens.extend(lines);
        if tokens.len() == before {
            return Err(wrong("holds no token".to_owned()));
        }
    }
    if tokens.is_empty() {
        match std::env::var(TOKEN_VARIABLE) {
            Ok(token) => tokens.push((TOKEN_VARIABLE, token)),
            Err(_) => {
                return Err(format!(
                    "no token: --token-file FILE, --token TOKEN, or {TOKEN_VARIABLE} in the environment"
                ));
            }
        }
    }
    tokens
        .into_iter()
        .map(|(place, token)| {
            let fits = (1..=TOKEN_BYTES_MAX).contains(&token.len())
                && token.bytes().all(|byte| byte.is_ascii_graphic());
            fits.then_some(Token(token)).ok_or_else(|| {
                format!("{place}: expected a token of 1 to {TOKEN_BYTES_MAX} visible characters")
            })
        })
        .collect()
}

/// Whether a terminal shows stdout, and nobody said NO_COLOR (no-color.org).
fn is_coloured() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !is_set("NO_COLOR")
}

impl Prepared {
    /// Starts the sessions and prints what they report.
    ///
    /// # Errors
    /// The system refused a thread or a signal.
    fn run(self) -> io::Result<Outcome> {
        let (to, reports) = bounded(SUB_LINES_MAX);
        report_signals(to.clone())?;
        let farewell = Arc::new(Farewell::default());
        for (plan, label) in self.plans {
            let session = Session::new(plan, Reporter::new(to.clone(), label), farewell.clone());
            thread::Builder::new()
                .name("session".into())
                .spawn(move || session.run())?;
        }
        drop(to);
        let outcome = output::print(&reports, &self.ends, self.is_quiet);
        // So that no session waits for room in it.
        drop(reports);
        farewell.say(FAREWELL_MAX);
        Ok(outcome)
    }
}

/// The first SIGINT or SIGTERM ends the printing, a second one the process: stdout may be stuck.
fn report_signals(to: Sender<Report>) -> io::Result<()> {
    let (mut signalled, writer) = UnixStream::pair()?;
    let is_second = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(
            signal,
            i32::from(CODE_FAILED),
            is_second.clone(),
        )?;
        signal_hook::flag::register(signal, is_second.clone())?;
        signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
    }
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if signalled.read_exact(&mut [0]).is_ok() {
                // The printing thread may have ended by itself.
                let _over = to.send(Report::Interrupted);
            }
        })?;
    Ok(())
}
