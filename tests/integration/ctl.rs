//! `blackhole ctl` on real processes: what an operator sees, what scripts get, and how what is wrong is told.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use support::client::{ANY_TOKEN, Client};
use support::server::{DEMO, Server, TokenFile, blackhole, run_to_end, wait_for};
use support::tls;

const ACCOUNT: &str = "c0c0c0c0c0c0c0c0c0c0c0c0c0c0c001";
const OTHER: &str = "c0c0c0c0c0c0c0c0c0c0c0c0c0c0c002";
const CREATE: &str = "call.CHANNEL_CREATE.*";

/// What `blackhole ctl` of these arguments printed, and its exit code.
struct Said {
    out: String,
    err: String,
    code: i32,
}

impl Said {
    fn of(output: Output) -> Self {
        Self {
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            code: output.status.code().unwrap(),
        }
    }

    fn json(&self) -> Value {
        assert_eq!((self.code, &*self.err), (0, ""), "{}", self.out);
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    /// The words of the first line that contains `word`.
    fn row(&self, word: &str) -> Vec<&str> {
        let line = self.out.lines().find(|line| line.contains(word));
        let line = line.unwrap_or_else(|| panic!("no {word}: {} {}", self.out, self.err));
        line.split_whitespace().collect()
    }

    fn assert_done(&self) {
        assert_eq!((self.code, &*self.err), (0, ""), "{}", self.out);
    }

    /// It failed with this code and said this, in one line.
    fn assert_failed(&self, code: i32, text: &str) {
        assert_eq!(self.code, code, "{} {}", self.out, self.err);
        assert_eq!(self.err, format!("blackhole ctl: {text}\n"), "{}", self.out);
    }
}

fn ctl(args: &[&str]) -> Said {
    Said::of(run_to_end(&[&["ctl"], args].concat()))
}

/// `blackhole ctl` of these processes.
fn ctl_of(servers: &[&Server], args: &[&str]) -> Said {
    let addresses: Vec<String> = servers
        .iter()
        .map(|server| server.admin().to_string())
        .collect();
    let mut all = args.to_vec();
    for address in &addresses {
        all.extend(["--admin", address]);
    }
    ctl(&all)
}

/// A client with a subscription of this account. Its token says so too, where there are tokens.
fn subscriber(server: &Server, account: &str, binding: &str) -> Client {
    let mut client = server.client();
    client.must_subscribe(&token_of(account), account, binding);
    client
}

fn token_of(account: &str) -> String {
    format!("token-of-{account}")
}

/// The tokens of both accounts.
fn tokens() -> TokenFile {
    let of = |account: &str| json!({"account_id": account});
    TokenFile::new(&json!({token_of(ACCOUNT): of(ACCOUNT), token_of(OTHER): of(OTHER)}))
}

/// Without a broker, but with tokens.
fn with_tokens(tokens: &TokenFile) -> Server {
    Server::start(&["--source", "demo", "--auth", &tokens.option()])
}

#[test]
fn status_shows_each_process_and_their_sums() {
    let (one, two) = (Server::demo(&[]), Server::demo(&[]));
    one.until_ready();
    two.until_ready();
    let _clients = [
        subscriber(&one, ACCOUNT, CREATE),
        subscriber(&two, ACCOUNT, CREATE),
        subscriber(&two, OTHER, CREATE),
    ];
    let said = ctl_of(&[&one, &two], &["status"]);
    said.assert_done();
    let row = said.row(&two.admin().to_string());
    assert_eq!(row[1], "ready", "{}", said.out);
    assert_eq!(said.row("all")[0], "all");
    assert!(!said.out.contains('\x1b'), "no colours but on a terminal");

    let document = ctl_of(&[&one, &two], &["status", "--json"]).json();
    let sessions: Vec<&Value> = document["processes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|process| &process["sessions"])
        .collect();
    assert_eq!(sessions, [1, 2]);
    assert_eq!(document["sum"]["sessions"], 3);
    assert_eq!(document["processes"][0]["is_ready"], true);
    assert_eq!(document["processes"][0]["process"], one.admin().to_string());
}

#[test]
fn every_figure_of_a_status_is_on_the_page_of_metrics() {
    let server = Server::demo(&["--demo-rate", "50"]);
    server.until_ready();
    // Demo events are of this account.
    let mut client = subscriber(&server, "00000000000000000000000000000001", CREATE);
    client.event();
    let document = ctl_of(&[&server], &["status", "--json"]).json();
    for whose in [&document["processes"][0], &document["sum"]] {
        for (figure, value) in whose.as_object().unwrap() {
            assert!(!value.is_null(), "{figure}: {document}");
        }
    }
    assert_eq!(
        document["processes"][0]["version"],
        env!("CARGO_PKG_VERSION")
    );
}

#[test]
fn a_process_that_does_not_answer_is_a_row_and_the_others_are_shown() {
    let server = Server::demo(&[]);
    server.until_ready();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let said = ctl_of(
        &[&server],
        &["status", "--timeout", "1", "--admin", &address],
    );
    assert_eq!((said.code, &*said.err), (1, ""), "{}", said.out);
    assert_eq!(said.row(&server.admin().to_string())[1], "ready");
    let row = said.row(&address);
    assert_eq!(row[1..], ["no", "answer", "within", "1", "s"]);

    let said = ctl_of(
        &[&server],
        &["sessions", "--timeout", "1", "--admin", &address],
    );
    said.assert_failed(1, &format!("{address}: no answer within 1 s"));
    assert_eq!(said.out, "0 sessions\n");
    let said = ctl(&["sessions", "--timeout", "1", "--admin", &address]);
    said.assert_failed(1, &format!("{address}: no answer within 1 s"));
    assert_eq!(said.out, "", "nobody has said that there are none");
}

#[test]
fn sessions_of_all_processes_are_one_list() {
    let tokens = tokens();
    let (one, two) = (with_tokens(&tokens), with_tokens(&tokens));
    let first = subscriber(&one, ACCOUNT, CREATE);
    let second = subscriber(&two, ACCOUNT, CREATE);
    let third = subscriber(&two, OTHER, "call.CHANNEL_ANSWER.*");
    let ids = |said: &Said| -> Vec<String> {
        let document = said.json();
        let mut ids: Vec<String> = document["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|session| session["id"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    };
    let sorted = |clients: &[&Client]| -> Vec<String> {
        let mut ids: Vec<String> = clients.iter().map(|client| client.session_id()).collect();
        ids.sort();
        ids
    };
    let both = [&one, &two];
    for (args, expected) in [
        (&[][..], sorted(&[&first, &second, &third])),
        (&["--all"], sorted(&[&first, &second, &third])),
        (&["--account", ACCOUNT], sorted(&[&first, &second])),
        (&["--binding", "call.CHANNEL_ANSWER.*"], sorted(&[&third])),
        (&["--ip", "127.0.0.2"], Vec::new()),
        (&["--slow"], Vec::new()),
    ] {
        let said = ctl_of(&both, &[&["sessions", "--json"], args].concat());
        assert_eq!(ids(&said), expected, "{args:?}");
    }
    let said = ctl_of(&both, &["sessions", "--sort", "age"]);
    said.assert_done();
    let row = said.row(&first.session_id());
    assert_eq!(row[1], ACCOUNT, "{}", said.out);
    assert!(row.contains(&&*one.admin().to_string()), "{}", said.out);
    assert!(said.out.ends_with("\n3 sessions\n"), "{}", said.out);

    let said = ctl_of(&both, &["sessions", "--limit", "1"]);
    let last = said.out.lines().last();
    assert_eq!(last, Some("1 session; there are more: --limit N, --all"));
    let said = ctl_of(&both, &["sessions", "--all"]);
    assert_eq!(said.out.lines().last(), Some("3 sessions"));
    assert_eq!(said.row("all"), ["all", "3"]);

    let said = ctl_of(&both, &["sessions", "--by", "account"]);
    said.assert_done();
    assert_eq!(said.row(ACCOUNT)[..2], [ACCOUNT, "2"], "{}", said.out);
    assert_eq!(said.row(OTHER)[..2], [OTHER, "1"], "{}", said.out);
    assert!(said.out.ends_with("\n3 sessions\n"), "{}", said.out);
    let said = ctl_of(&both, &["sessions", "--by", "account", "--limit", "1"]);
    let last = said.out.lines().last();
    assert_eq!(last, Some("3 sessions; 1 more row: --limit N, --all"));
    let said = ctl_of(&both, &["sessions", "--by", "ip", "--json"]).json();
    assert_eq!(said["groups"][0]["ip"], "127.0.0.1", "{said}");
    assert_eq!(said["groups"][0]["sessions"], 3, "{said}");

    let said = ctl_of(&both, &["sessions", "--binding", "cal.CHANNEL_CREATE.*"]);
    assert_eq!((said.code, &*said.out), (0, "0 sessions\n"));
    let hint = "blackhole ctl: no binding begins with the word cal; did you mean call?\n";
    assert_eq!(said.err, hint);
}

#[test]
fn more_sessions_than_a_page_holds_are_all_listed() {
    let server = Server::demo(&[]);
    let clients: Vec<Client> = (0..120).map(|_| server.client()).collect();
    for args in [
        &["--all"][..],
        &["--limit", "1000"],
        &["--all", "--sort", "idle"],
    ] {
        let document = ctl_of(&[&server], &[&["sessions", "--json"], args].concat()).json();
        let mut ids: Vec<&str> = document["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|session| session["id"].as_str().unwrap())
            .collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), clients.len(), "{args:?}");
        assert_eq!(document["has_more"], false);
    }
    let document = ctl_of(&[&server], &["sessions", "--json"]).json();
    assert_eq!(document["sessions"].as_array().unwrap().len(), 50);
    assert_eq!(document["has_more"], true);
}

#[test]
fn one_session_is_shown_in_detail_and_its_name_steers_no_terminal() {
    let tokens = tokens();
    let (one, two) = (with_tokens(&tokens), with_tokens(&tokens));
    let mut client = two.client();
    let reply = client.ask(&json!({
        "action": "subscribe", "auth_token": token_of(ACCOUNT),
        "data": {"account_id": ACCOUNT, "bindings": [CREATE, "call.CHANNEL_ANSWER.*"],
                 "name": "\u{1b}[2J\u{9b}1mevil\r\n", "metadata": {"seat": 7}}
    }));
    assert_eq!(reply["status"], "success", "{reply}");
    let id = client.session_id();
    let said = ctl_of(&[&one, &two], &["session", &id]);
    said.assert_done();
    assert_eq!(said.row("session")[1], id);
    assert_eq!(said.row("account")[1], ACCOUNT);
    assert_eq!(said.row("process")[1], two.admin().to_string());
    assert_eq!(said.row("bindings")[1], CREATE);
    assert_eq!(said.row("metadata")[1], r#"{"seat":7}"#);
    assert_eq!(said.row("tls")[1] != "no", tls::is_on());
    assert_eq!(said.row("deflate")[1], "no");
    assert!(
        said.out.contains("\n          call.CHANNEL_ANSWER.*\n"),
        "{}",
        said.out
    );
    let list = ctl_of(&[&one, &two], &["sessions"]);
    let document = ctl_of(&[&one, &two], &["session", &id, "--json"]);
    for said in [&said, &list, &document] {
        let is_bad = |c: char| c.is_control() && c != '\n';
        assert!(!said.out.contains(is_bad), "{:?}", said.out);
        assert!(said.out.contains("evil"), "{}", said.out);
    }
    let document = document.json();
    assert_eq!(document["sessions"][0]["name"], "\u{1b}[2J\u{9b}1mevil\r\n");

    let said = ctl_of(&[&one, &two], &["session", "127.0.0.1:1"]);
    said.assert_failed(1, "no session 127.0.0.1:1 here");
    assert_eq!(said.out, "");
}

#[test]
fn kick_closes_and_says_how_many_where() {
    let (one, two) = (Server::demo(&[]), Server::demo(&[]));
    let mut first = subscriber(&one, ACCOUNT, CREATE);
    let mut second = subscriber(&two, ACCOUNT, CREATE);
    let mut third = subscriber(&two, OTHER, CREATE);
    let both = [&one, &two];
    let said = ctl_of(
        &both,
        &[
            "kick",
            &third.session_id(),
            "--code",
            "4000",
            "--reason",
            "bye & good=luck",
        ],
    );
    said.assert_done();
    assert_eq!(said.out, format!("{}: 1 closed\n", two.admin()));
    assert_eq!(third.expect_close(), (4000, "bye & good=luck".to_owned()));
    two.wait_for_metric("sessions", 1);
    let said = ctl_of(&both, &["kick", &third.session_id()]);
    said.assert_failed(1, &format!("no session {} here", third.session_id()));

    let document = ctl_of(&both, &["kick", "--json", "--ip", "127.0.0.9"]).json();
    assert_eq!(document["closed"], 0);
    let said = ctl_of(&both, &["kick", "--account", ACCOUNT]);
    said.assert_done();
    let mut rows: Vec<&str> = said.out.lines().collect();
    rows.sort_unstable();
    let mut expected = both.map(|server| format!("{}: 1 closed", server.admin()));
    expected.sort();
    assert_eq!(rows, expected);
    for client in [&mut first, &mut second] {
        assert_eq!(client.expect_close().0, 1008);
    }
}

#[test]
fn modules_are_listed_stopped_and_started() {
    let server = Server::demo(&[]);
    let said = ctl_of(&[&server], &["modules"]);
    said.assert_done();
    assert_eq!(
        said.out.lines().next().map(|line| line.contains("FAMILY")),
        Some(true)
    );
    assert_eq!(said.row("call.CHANNEL_CREATE")[0], "call", "{}", said.out);
    let admin = server.admin();
    let said = ctl_of(&[&server], &["modules", "stop", "bh_call"]);
    said.assert_done();
    assert_eq!(said.out, format!("{admin}: bh_call stopped\n"));
    let reply = server.client().subscribe(ANY_TOKEN, ACCOUNT, CREATE);
    assert_eq!(reply["status"], "error", "{reply}");
    let said = ctl_of(&[&server], &["modules", "start", "bh_call"]);
    assert_eq!(said.out, format!("{admin}: bh_call started\n"));
    let document = ctl_of(&[&server], &["modules", "--json"]).json();
    let offer = &document["processes"][0]["answer"];
    assert_eq!(
        offer["call"][0], "call.CHANNEL_CREATE.{CALL_ID}",
        "{document}"
    );
    let said = ctl_of(&[&server], &["modules", "stop", "bh_cal"]);
    said.assert_failed(
        1,
        &format!("{admin}: no such module; did you mean bh_call?"),
    );
}

#[test]
fn the_log_level_changes_and_a_drain_ends_the_process() {
    let mut server = Server::demo(&["--drain-seconds", "1", "--going-away-ms", "0"]);
    server.until_ready();
    let admin = server.admin();
    let said = ctl_of(&[&server], &["log-level", "debug"]);
    said.assert_done();
    assert_eq!(said.out, format!("{admin}: log level debug, was info\n"));
    let mut client = subscriber(&server, ACCOUNT, CREATE);
    let said = ctl_of(&[&server], &["drain"]);
    said.assert_done();
    assert_eq!(said.out, format!("{admin}: drain begun, 1 session\n"));
    assert_eq!(client.expect_close().0, 1001);
    assert_eq!(server.wait().code(), Some(0));
    let said = ctl(&["status", "--admin", &admin.to_string()]);
    said.assert_failed(
        1,
        &format!("{admin}: nobody listens there: is blackhole running with --admin?"),
    );
}

#[test]
fn a_trace_tells_what_happens_until_its_limit() {
    let tokens = tokens();
    let server = with_tokens(&tokens);
    server.until_ready();
    let mut client = server.client();
    let id = client.session_id();
    let admin = server.admin().to_string();
    let mut child = blackhole()
        .args([
            "ctl",
            "trace",
            "--admin",
            &admin,
            "--session",
            &id,
            "--limit",
            "3",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    server.until("somebody looks", |server| server.metric("trace_looks") == 1);
    client.must_subscribe(&token_of(ACCOUNT), ACCOUNT, CREATE);
    wait_for("the trace ends", || child.try_wait().unwrap());
    let said = Said::of(child.wait_with_output().unwrap());
    said.assert_done();
    assert!(
        said.out.lines().next().unwrap().contains("looking"),
        "{}",
        said.out
    );
    let row = said.row("outcome=ok");
    assert_eq!(row[1..3], [&*id, "command"], "{}", said.out);
    assert!(
        row.contains(&&*format!("bindings={CREATE}")),
        "{}",
        said.out
    );

    let said = ctl_of(
        &[&server],
        &["trace", "--json", "--session", &id, "--limit", "2"],
    );
    said.assert_done();
    let lines: Vec<Value> = said
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["what"], "looking", "{}", said.out);
}

#[test]
fn processes_of_a_folder_are_found_and_what_is_left_of_others_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let one = Server::demo(&["--admin-dir", path]);
    let two = Server::demo(&["--admin-dir", path]);
    one.until_ready();
    two.until_ready();
    let _client = subscriber(&two, ACCOUNT, CREATE);
    drop(UnixListener::bind(folder.path().join("blackhole-1.sock")).unwrap());
    fs::write(folder.path().join("notes.txt"), "not a socket").unwrap();
    let said = ctl(&["status", "--json", "--admin-dir", path]);
    assert_eq!(said.code, 0, "{}", said.err);
    let left = folder.path().join("blackhole-1.sock");
    let note = format!(
        "blackhole ctl: {}: nobody listens on this socket any more; passed over\n",
        left.display()
    );
    assert_eq!(said.err, note);
    let document: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(document["sum"]["sessions"], 1);
    let names: Vec<&str> = document["processes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|process| process["process"].as_str().unwrap())
        .collect();
    let mut pids = [one.pid(), two.pid()];
    pids.sort_unstable();
    assert_eq!(names, pids.map(|pid| format!("blackhole-{pid}")));

    let key = ["--key", "call.CHANNEL_CREATE.*", "--limit", "1"];
    let said = ctl(&[&["trace", "--admin-dir", path], &key[..]].concat());
    assert_eq!((said.code, &*said.err), (0, &*note), "{}", said.out);
    let row = said.row("not matched");
    assert!(row[0].starts_with("blackhole-"), "{}", said.out);

    // The environment names them as well; the command line wins.
    let mut command = blackhole();
    command
        .args(["ctl", "sessions"])
        .env("BLACKHOLE_ADMIN_DIR", path);
    fs::remove_file(&left).unwrap();
    let said = Said::of(command.output().unwrap());
    assert!(
        said.out.ends_with("\n1 session\n"),
        "{} {}",
        said.out,
        said.err
    );
    command.args(["--admin", &one.admin().to_string()]);
    let said = Said::of(command.output().unwrap());
    assert_eq!((&*said.out, said.code), ("0 sessions\n", 0), "{}", said.err);

    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().to_str().unwrap();
    ctl(&["status", "--admin-dir", path]).assert_failed(
        1,
        &format!("no process listens in {path}: is blackhole running with --admin-dir?"),
    );
}

#[test]
fn the_token_is_read_from_a_file_and_what_is_wrong_with_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // As the server does, the client takes the first line.
    let right = file("right", "an-admin-token-of-the-tests\nof whom\n");
    let wrong = file("wrong", "another-admin-token-of-the-tests");
    let server = Server::demo(&["--admin-token", &right]);
    let admin = server.admin().to_string();
    let of = |args: &[&str]| ctl(&[args, &["--admin", &admin]].concat());
    of(&["sessions", "--admin-token", &right]).assert_done();
    of(&["sessions"]).assert_failed(
        1,
        &format!("{admin}: it asks for a token: --admin-token FILE"),
    );
    let said = of(&["sessions", "--admin-token", &wrong]);
    said.assert_failed(
        1,
        &format!("{admin}: the token of --admin-token is not the one it was started with"),
    );
    let empty = file("empty", "\n");
    of(&["sessions", "--admin-token", &empty]).assert_failed(
        2,
        &format!("--admin-token {empty}: a token of visible ASCII is expected in the first line"),
    );
}

#[test]
fn a_wrong_command_line_is_told_with_what_is_meant() {
    for (args, expected) in [
        (&["statsu"][..], "a similar subcommand exists: 'status'"),
        (&["sessions", "--acount", ACCOUNT], "'--account'"),
        (
            &["sessions", "--account", "xyz"],
            "32 hex characters are expected",
        ),
        (&["sessions", "--sort", "fames"], "'frames'"),
        (
            &["session", "nobody"],
            "the id of a session is expected, IP:PORT",
        ),
        (&["kick"], "required"),
        (&["trace", "--event", "CHANNEL_CREATE"], "required"),
        (
            &["kick", "--ip", "127.0.0.1", "--code", "1000"],
            "1008, or 4000 to 4999",
        ),
        (&["log-level", "inf"], "'info'"),
        (&["status", "--admin", "nowhere"], "IP:PORT"),
        (&["status", "--timeout", "0"], "--timeout"),
    ] {
        let said = ctl(args);
        assert_eq!((said.code, &*said.out), (2, ""), "{args:?}");
        assert!(said.err.contains(expected), "{args:?}: {}", said.err);
    }
}

#[test]
fn help_and_completions_name_every_command() {
    let help = String::from_utf8(run_to_end(&["--help"]).stdout).unwrap();
    for command in ["ctl", "completions"] {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
    }
    let said = ctl(&["--help"]);
    said.assert_done();
    for command in [
        "status",
        "sessions",
        "session",
        "kick",
        "trace",
        "modules",
        "drain",
        "log-level",
        "metrics",
    ] {
        assert!(
            said.out.contains(&format!("\n  {command} ")),
            "{}",
            said.out
        );
        let help = ctl(&[command, "--help"]);
        help.assert_done();
        assert!(help.out.contains("blackhole ctl"), "{}", help.out);
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = run_to_end(&["completions", shell]);
        assert!(output.status.success());
        let script = String::from_utf8(output.stdout).unwrap();
        for word in [
            "sessions",
            "admin-dir",
            "max-connections-per-ip",
            "log-level",
        ] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let server = Server::demo(&[]);
    let admin = server.admin().to_string();
    let mut child = blackhole()
        .args(["ctl", "status", "--json", "--watch", "1", "--admin", &admin])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let status = wait_for("the end", || child.try_wait().unwrap());
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    assert_eq!((status.code(), &*err), (Some(0), ""));
}

#[test]
fn the_server_alone_is_what_it_was() {
    let said = Said::of(run_to_end(&["clt"]));
    assert_eq!(said.code, 2);
    assert_eq!(
        said.err,
        "blackhole: there is no such command; did you mean ctl?\n"
    );
    let said = Said::of(run_to_end(&["a-token-by-mistake"]));
    assert_eq!(said.code, 2);
    assert_eq!(
        said.err,
        "blackhole: a value that belongs to no option; repeat the option for each value\n"
    );
    let server = Server::start(&DEMO);
    assert!(
        ctl_of(&[&server], &["metrics"])
            .out
            .contains("\nblackhole_sessions 0\n")
    );
}
