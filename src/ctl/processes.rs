//! The processes that are asked: those that the command line names, or that have a socket in a folder; all side by side.

use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::http::{Bearer, Client, Place, Trouble};
use super::output::{Failure, complain};
use crate::limits::{ADMIN_TOKEN_FILE_BYTES_MAX, CTL_PROCESSES_MAX};

const DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5559);

/// Which processes, and how they are asked.
#[derive(Debug, Args)]
#[command(next_help_heading = "Processes")]
pub(super) struct ProcessArgs {
    /// Admin address of a process, or the path of its socket; give it several times for several processes [default:
    /// 127.0.0.1:5559]
    #[arg(
        long,
        global = true,
        value_name = "IP:PORT",
        env = "BLACKHOLE_ADMIN",
        value_delimiter = ',',
        value_parser = parse_place
    )]
    admin: Vec<Place>,
    /// Folder of the admin sockets (blackhole-PID.sock) of this host's processes, all of which are asked
    #[arg(
        long,
        global = true,
        value_name = "FOLDER",
        env = "BLACKHOLE_ADMIN_DIR"
    )]
    admin_dir: Option<PathBuf>,
    /// File of the token that the processes were started with (their --admin-token)
    #[arg(long, global = true, value_name = "FILE")]
    admin_token: Option<PathBuf>,
    /// Time for an answer, in seconds
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    timeout: u64,
}

/// Which of the options were given on the command line itself: they win over the environment's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    pub(super) admin: bool,
    pub(super) admin_dir: bool,
}

fn parse_place(text: &str) -> Result<Place, String> {
    if text.contains('/') {
        return Ok(Place::Unix(PathBuf::from(text)));
    }
    let local = text.strip_prefix("localhost:");
    let port = local.and_then(|port| port.parse().ok());
    port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .or_else(|| text.parse().ok())
        .map(Place::Tcp)
        .ok_or_else(|| "IP:PORT, localhost:PORT or the path of a socket is expected".to_owned())
}

/// A process, by the name that it is shown under.
pub(super) struct Process {
    pub(super) name: String,
    pub(super) client: Client,
    /// Its socket lay in a folder; the process may be gone.
    is_found: bool,
}

/// Those who are asked.
pub(super) struct Processes {
    pub(super) all: Vec<Process>,
    folder: Option<PathBuf>,
}

/// What came of asking one process.
#[derive(Debug)]
pub(super) struct Answer<T> {
    pub(super) process: String,
    pub(super) result: Result<T, Trouble>,
}

impl ProcessArgs {
    /// The processes, with sockets of a folder as they are now.
    pub(super) fn processes(&self, given: Given) -> Result<Processes, Failure> {
        let bearer = self.admin_token.as_deref().map(read_token).transpose()?;
        let timeout = Duration::from_secs(self.timeout);
        let process = |name, place, is_found| Process {
            name,
            client: Client::new(place, bearer.clone(), timeout),
            is_found,
        };
        let is_named = given.admin || !given.admin_dir;
        let folder = self.admin_dir.as_deref();
        let folder = folder.filter(|_| given.admin_dir || !given.admin);
        let mut named: Vec<Place> = Vec::new();
        for place in self.admin.iter().filter(|_| is_named) {
            if !named.contains(place) {
                named.push(place.clone());
            }
        }
        if named.is_empty() && folder.is_none() {
            named.push(Place::Tcp(DEFAULT));
        }
        let mut all: Vec<Process> = named
            .into_iter()
            .map(|place| process(place.to_string(), place, false))
            .collect();
        if let Some(folder) = folder {
            for (name, path) in sockets(folder)? {
                all.push(process(name, Place::Unix(path), true));
            }
            if all.is_empty() {
                return Err(nobody(folder));
            }
        }
        if all.len() > CTL_PROCESSES_MAX {
            return Err(Failure::Usage(format!(
                "{} processes; at most {CTL_PROCESSES_MAX} can be asked at once",
                all.len()
            )));
        }
        Ok(Processes {
            all,
            folder: folder.map(Path::to_owned),
        })
    }
}

fn nobody(folder: &Path) -> Failure {
    Failure::Failed(format!(
        "no process listens in {}: is blackhole running with --admin-dir?",
        folder.display()
    ))
}

/// The token, which goes nowhere but into the requests. As the server does, it takes the first line of the file.
fn read_token(file: &Path) -> Result<Bearer, Failure> {
    let wrong = |what: String| Failure::Usage(format!("--admin-token {}: {what}", file.display()));
    let mut content = String::new();
    // A pipe tells no size.
    File::open(file)
        .and_then(|opened| {
            let bound = ADMIN_TOKEN_FILE_BYTES_MAX + 1;
            opened.take(bound).read_to_string(&mut content)
        })
        .map_err(|error| wrong(error.to_string()))?;
    if content.len() as u64 > ADMIN_TOKEN_FILE_BYTES_MAX {
        return Err(wrong("too large for a token".to_owned()));
    }
    let line = content.lines().next().unwrap_or_default();
    Bearer::parse(line)
        .ok_or_else(|| wrong("a token of visible ASCII is expected in the first line".to_owned()))
}

/// The sockets of a folder by name, in the order of the process ids.
fn sockets(folder: &Path) -> Result<Vec<(String, PathBuf)>, Failure> {
    let wrong = |error| Failure::Failed(format!("{}: {error}", folder.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let pid = name
            .and_then(|name| name.strip_prefix("blackhole-")?.strip_suffix(".sock"))
            .and_then(|pid| pid.parse::<u32>().ok());
        if let Some(pid) = pid {
            found.push((pid, path));
        }
    }
    found.sort();
    let named = found.into_iter();
    Ok(named
        .map(|(pid, path)| (format!("blackhole-{pid}"), path))
        .collect())
}

impl Process {
    /// Whether the process has ended, by this trouble with its socket in a folder; a note on stderr then says so.
    pub(super) fn note_if_gone(&self, trouble: &Trouble) -> bool {
        let (true, Trouble::NobodyListens(place)) = (self.is_found, trouble) else {
            return false;
        };
        complain(&format!(
            "{place}: nobody listens on this socket any more; passed over"
        ));
        true
    }
}

impl Processes {
    /// Asks all at once; the answers are in the order of the processes. A socket of a folder that nobody listens on any
    /// more is passed over, with a note.
    pub(super) fn ask<T: Send>(
        &self,
        question: impl Fn(&Client) -> Result<T, Trouble> + Sync,
    ) -> Result<Vec<Answer<T>>, Failure> {
        let question = &question;
        let results: Vec<Option<Result<T, Trouble>>> = thread::scope(|scope| {
            let asking: Vec<_> = self
                .all
                .iter()
                .map(|process| {
                    thread::Builder::new()
                        .spawn_scoped(scope, move || question(&process.client))
                        .ok()
                })
                .collect();
            let asking = asking.into_iter();
            asking.map(|thread| thread?.join().ok()).collect()
        });
        let mut answers = Vec::new();
        for (process, result) in self.all.iter().zip(results) {
            match result {
                None => return Err(Failure::Failed("a thread could not be started".to_owned())),
                Some(Err(trouble)) if process.note_if_gone(&trouble) => {}
                Some(result) => answers.push(Answer {
                    process: process.name.clone(),
                    result,
                }),
            }
        }
        if answers.is_empty() {
            return Err(self.nobody());
        }
        Ok(answers)
    }

    /// The failure when none of the processes is left.
    pub(super) fn nobody(&self) -> Failure {
        match &self.folder {
            Some(folder) => nobody(folder),
            None => Failure::Failed("there is no process to ask".to_owned()),
        }
    }
}

impl<T> Answer<T> {
    /// Whether it is of use; else says why not, on stderr.
    pub(super) fn told(self) -> Option<(String, T)> {
        match self.result {
            Ok(found) => Some((self.process, found)),
            Err(trouble) => {
                complain(&format!("{}: {trouble}", self.process));
                None
            }
        }
    }

    /// For `--json`: the process, and its error or what `write` makes of the answer.
    pub(super) fn to_json(&self, write: impl FnOnce(&T) -> Value) -> Value {
        match &self.result {
            Ok(found) => json!({"process": self.process, "answer": write(found)}),
            Err(trouble) => json!({"process": self.process, "error": trouble.to_string()}),
        }
    }
}
