//! Blackhole with its events coming through a named pipe: what is written at once is in flight at once.
//!
//! It is measured twice. In [`CANDIDATE`] every session subscribes with a request id of its own, as the platform's web
//! UI does, and the server puts that into each of its events: so no two sessions get the same bytes. In
//! [`WITHOUT_IDS`] they subscribe without one, and all on one binding get the same bytes. The load generator compares
//! the end of every event, the request id in it, with what the session asked for.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::running::{Running, SERVER_CORE};
use crate::subject::{Batch, Candidate, Kind, Scenario, Setup, Subject};

/// The subject that all others are compared with: a request id of its own for each session.
pub(crate) const CANDIDATE: Candidate = Candidate {
    name: "ours",
    kind: Kind::Ours,
    sessions_max: None,
    has_bindings: true,
    has_request_ids: true,
    start: |setup| Ok(Box::new(Ours::start(setup, true)?)),
};

/// The same server, whose sessions have no request ids.
pub(crate) const WITHOUT_IDS: Candidate = Candidate {
    name: "ours-without-ids",
    has_request_ids: false,
    start: |setup| Ok(Box::new(Ours::start(setup, false)?)),
    ..CANDIDATE
};

/// As [`CANDIDATE`], with permessage-deflate (RFC 7692).
pub(crate) const DEFLATE: Candidate = Candidate {
    name: "ours-deflate",
    start: |setup| Ok(Box::new(Ours::start_deflating(setup, true)?)),
    ..CANDIDATE
};

/// As [`WITHOUT_IDS`], with the same.
pub(crate) const DEFLATE_WITHOUT_IDS: Candidate = Candidate {
    name: "ours-deflate-without-ids",
    has_request_ids: false,
    start: |setup| Ok(Box::new(Ours::start_deflating(setup, false)?)),
    ..CANDIDATE
};

/// Room in the pipe: 32 events of 4 KB are written at once without a wait.
const PIPE_BYTES: usize = 1 << 20;

/// Settings of every server that is measured, whatever its source, but those of the suite `logins`.
pub(crate) const ARGUMENTS: [&str; 8] = [
    "--ip",
    "127.0.0.1",
    "--port",
    "0",
    "--log-level",
    "error",
    "--auth",
    "insecure",
];

/// The same without the authenticator.
const ARGUMENTS_WITHOUT_AUTH: &[&str] = ARGUMENTS.split_at(6).0;

/// Blackhole under measurement.
pub(crate) struct Ours {
    running: Running,
    address: String,
    events: File,
    _pipe: Pipe,
    published: u64,
    has_request_ids: bool,
    /// Its sessions offer permessage-deflate.
    is_deflating: bool,
}

impl Ours {
    fn start(setup: &Setup<'_>, has_request_ids: bool) -> io::Result<Self> {
        Self::start_with(setup, has_request_ids, &ARGUMENTS)
    }

    fn start_deflating(setup: &Setup<'_>, has_request_ids: bool) -> io::Result<Self> {
        let arguments = [&ARGUMENTS[..], &["--compression"]].concat();
        let mut ours = Self::start_with(setup, has_request_ids, &arguments)?;
        ours.is_deflating = true;
        Ok(ours)
    }

    /// Starts it with request ids, an authenticator and more settings of one's own.
    ///
    /// # Errors
    /// It does not listen.
    pub(crate) fn start_with_auth(setup: &Setup<'_>, more: &[&str]) -> io::Result<Self> {
        Self::start_with(setup, true, &[ARGUMENTS_WITHOUT_AUTH, more].concat())
    }

    /// Starts it with request ids and more settings.
    ///
    /// # Errors
    /// It does not listen.
    pub(crate) fn start_with_more(setup: &Setup<'_>, more: &[&str]) -> io::Result<Self> {
        Self::start_with(setup, true, &[&ARGUMENTS, more].concat())
    }

    /// Where clients with TLS connect; once, of a server with a port for them.
    ///
    /// # Errors
    /// It has none.
    pub(crate) fn tls_address(&mut self) -> io::Result<String> {
        self.running.told("listening with TLS on ")
    }

    /// Publishes these lines, as `--source replay` reads them.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn write(&mut self, lines: &str) -> io::Result<()> {
        self.events.write_all(lines.as_bytes())
    }

    fn start_with(
        setup: &Setup<'_>,
        has_request_ids: bool,
        arguments: &[&str],
    ) -> io::Result<Self> {
        let pipe = Pipe::make()?;
        let source = format!("replay:{}", pipe.path.display());
        let arguments = [arguments, &["--source", &source]].concat();
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let mut running = Running::start(SERVER_CORE, setup.server, &arguments)?;
        let address = running.listening()?;
        let events = OpenOptions::new().write(true).open(&pipe.path)?;
        rustix::pipe::fcntl_setpipe_size(&events, PIPE_BYTES)?;
        Ok(Self {
            running,
            address,
            events,
            _pipe: pipe,
            published: 0,
            has_request_ids,
            is_deflating: false,
        })
    }
}

impl Subject for Ours {
    fn pids(&self) -> Vec<u32> {
        vec![self.running.pid()]
    }

    fn address(&self) -> String {
        self.address.clone()
    }

    fn load_arguments(&self, scenario: Scenario, sessions: u32) -> Vec<String> {
        let (accounts, call) = match scenario {
            Scenario::Shared => (1, "*"),
            Scenario::Own => (sessions, "call-{n}"),
        };
        let (request_id, end) = if self.has_request_ids {
            (
                r#""request_id":"{guid}","#,
                r#""request_id":"{guid}"}"#.to_owned(),
            )
        } else {
            let key = format!("call.{{account}}.CHANNEL_CREATE.{call}");
            ("", format!(r#""subscription_key":"{key}"}}"#))
        };
        let subscribe = format!(
            r#"{{"action":"subscribe",{request_id}"auth_token":"{{token}}","data":{{"account_id":"{{account}}","binding":"call.CHANNEL_CREATE.{call}"}}}}"#
        );
        let arguments = [
            ("--accounts", accounts.to_string()),
            ("--subscribe", subscribe),
            // Of a deflated event the load generator sees no end.
            if self.is_deflating {
                ("--dialect", "blackhole-deflate".to_owned())
            } else {
                ("--event-end", end)
            },
        ];
        let each = arguments.into_iter();
        each.flat_map(|(option, value)| [option.to_owned(), value])
            .collect()
    }

    /// Events of account 1; each matches `call.CHANNEL_CREATE.*` of that account.
    fn publish(&mut self, batch: Batch) -> io::Result<()> {
        let mut lines = String::new();
        for _ in 0..batch.events {
            self.published += 1;
            let Call { key, body } = Call::new(self.published, 1, batch.body_bytes);
            lines.push_str(&format!(
                r#"{{"exchange":"{EXCHANGE}","routing_key":"{key}","body":{body}}}"#
            ));
            lines.push('\n');
        }
        self.events.write_all(lines.as_bytes())
    }
}

/// The exchange of call events.
pub(crate) const EXCHANGE: &str = "callevt";

/// A call event as the platform publishes it.
#[derive(Clone)]
pub(crate) struct Call {
    /// Its routing key, matched by `call.CHANNEL_CREATE.*` of its account.
    pub(crate) key: String,
    /// A JSON object.
    pub(crate) body: String,
}

impl Call {
    /// Event number `n` of the account numbered `account`, with a body of `body_bytes` (at least the 200 that its
    /// keys take).
    pub(crate) fn new(n: u64, account: u32, body_bytes: usize) -> Self {
        let body = |filler: &str| {
            format!(
                r#"{{"Call-ID":"bench-{n}","Custom-Channel-Vars":{{"Account-ID":"{account:032x}"}},"Event-Category":"call_event","Event-Name":"CHANNEL_CREATE","Filler":"{filler}"}}"#
            )
        };
        let filler = filler(n, body_bytes.saturating_sub(body("").len()));
        Self {
            key: format!("call.CHANNEL_CREATE.bench-{n}"),
            body: body(&filler),
        }
    }
}

/// So many bytes of what events of the platform are made of, for those who deflate: its words stay the same from one event
/// to the next, its numbers do not.
fn filler(n: u64, bytes: usize) -> String {
    const EVENT: &str = include_str!("../../tests/fixtures/events/channel_destroy.json");
    let shift = (n % 7) as u8;
    let turned = |byte: u8| match byte {
        b'0'..=b'9' => b'0' + (byte - b'0' + shift) % 10,
        b'"' | b'\\' => b'\'',
        b' '..=b'~' => byte,
        _ => b' ',
    };
    let text = EVENT.bytes().cycle().map(|byte| char::from(turned(byte)));
    text.take(bytes).collect()
}

/// A named pipe that is removed, with its directory, when dropped.
struct Pipe {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Pipe {
    fn make() -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("events");
        mkfifo(&path)?;
        Ok(Self { path, _dir: dir })
    }
}

fn mkfifo(path: &Path) -> io::Result<()> {
    if Command::new("mkfifo").arg(path).status()?.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("mkfifo {}", path.display())))
}
