//! `scripts/package`: what is in the package, and its way onto a machine and off it.
//!
//! The package is made of the program under test, so that no test waits for a release build.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use support::left_out::leave_out;
use support::project_file;
use support::server::{Server, blackhole, wait_within};
use tempfile::TempDir;

use super::machine::{Machine, PATIENCE};
use super::tools::program;

/// What an operator writes to try it: nobody is kept out, and events come from nowhere.
const TRIAL: &str =
    r#"{"auth": "insecure", "source": "demo", "demo_rate": 50, "drain_seconds": 2}"#;

/// Where clients connect on a machine of its own: the port is the one that operators have.
const WEBSOCKETS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 5555);

/// Where the configuration lies.
const CONFIG: &str = "etc/blackhole/blackhole.json";

/// Two packages of the same program, of which the second is newer. `None` where none can be made.
fn packages() -> Option<&'static [PathBuf; 2]> {
    static MADE: OnceLock<Option<[PathBuf; 2]>> = OnceLock::new();
    for name in ["cargo-deb", "dpkg-shlibdeps", "strip", "groff", "lintian"] {
        program(name)?;
    }
    MADE.get_or_init(|| Some(["1", "2"].map(package))).as_ref()
}

fn package(revision: &str) -> PathBuf {
    let made = Command::new(project_file("scripts/package"))
        .arg("--binary")
        .arg(blackhole().get_program())
        .args(["--revision", revision, "--fast", "--output"])
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("package"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&made.stdout);
    let error = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}{error}");
    let last = said.lines().last().unwrap_or_default();
    let file = last.strip_prefix("package: ");
    project_file(file.unwrap_or_else(|| panic!("no `package: FILE` at the end: {said}{error}")))
}

/// Runs a command to its end; what it wrote on stdout. Panics when it fails.
fn must(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{command:?}: {said}{error}");
    said
}

/// The paths of all files below a folder, but for folders.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.insert(entry.path().strip_prefix(folder).unwrap().to_owned());
            }
        }
    }
    found
}

/// The text of a file of the package, unpacked if it is packed.
fn text(folder: &Path, file: &str) -> String {
    let file = folder.join(file);
    match file.extension() {
        Some(packed) if packed == "gz" => must(Command::new("gzip").args(["-dc"]).arg(&file)),
        _ => {
            fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
        }
    }
}

fn unpacked(package: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    must(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(package)
            .arg(folder.path()),
    );
    folder
}

#[test]
fn the_package_says_what_it_needs_and_which_file_is_the_operators() {
    let Some([package, newer]) = packages() else {
        return;
    };
    let field = |package: &Path, name: &str| {
        must(
            Command::new("dpkg-deb")
                .arg("--field")
                .arg(package)
                .arg(name),
        )
        .trim()
        .to_owned()
    };
    assert_eq!(field(package, "Package"), "blackhole");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(field(package, "Version"), format!("{version}-1"));
    assert_eq!(field(newer, "Version"), format!("{version}-2"));
    let needs = field(package, "Depends");
    assert!(
        needs.contains("libc6 (>= ") && needs.contains("systemd"),
        "{needs}"
    );
    let control = tempfile::tempdir().unwrap();
    must(
        Command::new("dpkg-deb")
            .arg("--control")
            .arg(package)
            .arg(control.path()),
    );
    let conffiles = fs::read_to_string(control.path().join("conffiles")).unwrap();
    assert_eq!(
        conffiles.lines().collect::<Vec<_>>(),
        [format!("/{CONFIG}")]
    );
}

#[test]
fn the_checker_of_packages_finds_no_fault() {
    let Some([package, _]) = packages() else {
        return;
    };
    let Some(lintian) = program("lintian") else {
        return;
    };
    let mut lintian = Command::new(lintian);
    lintian.args(["--allow-root", "--fail-on", "error,warning"]);
    let said = must(lintian.arg(package));
    assert_eq!(
        said, "",
        "what is no fault stands in scripts/debian/lintian-overrides"
    );
}

#[test]
fn the_licences_of_all_that_is_inside_are_inside() {
    let Some([package, _]) = packages() else {
        return;
    };
    let folder = unpacked(package);
    let own = text(folder.path(), "usr/share/doc/blackhole/copyright");
    assert!(
        own.contains("MIT") && own.contains("The Blackhole authors"),
        "{own}"
    );
    let licences = text(folder.path(), "usr/share/doc/blackhole/licences.txt.gz");
    let manifest = fs::read_to_string(project_file("Cargo.toml")).unwrap();
    let (_, behind) = manifest.split_once("\n[dependencies]\n").unwrap();
    let (dependencies, _) = behind.split_once("\n[").unwrap();
    let mut named = 0;
    for line in dependencies
        .lines()
        .filter(|line| !line.starts_with('#') && !line.contains("package ="))
    {
        let Some((name, _)) = line.split_once(" = ") else {
            continue;
        };
        assert!(
            licences.contains(&format!("\n{name} ")),
            "no licence of {name}"
        );
        named += 1;
    }
    assert!(
        named > 30,
        "only {named} dependencies were found in Cargo.toml"
    );
}

#[test]
fn every_command_has_a_manual_page_that_reads_without_a_complaint() {
    let Some([package, _]) = packages() else {
        return;
    };
    let folder = unpacked(package);
    let man = folder.path().join("usr/share/man/man1");
    let pages: BTreeSet<String> = files(&man)
        .into_iter()
        .map(|page| {
            page.to_str()
                .and_then(|page| page.strip_suffix(".1.gz"))
                .unwrap()
                .to_owned()
        })
        .collect();
    let mut referred = BTreeSet::from(["blackhole".to_owned()]);
    for page in &pages {
        let source = text(&man, &format!("{page}.1.gz"));
        let file = folder.path().join(page);
        fs::write(&file, &source).unwrap();
        let mut groff = Command::new("groff");
        let read = groff
            .args(["-man", "-ww", "-Kutf8", "-Tutf8", "-P-cbou", "-rLL=120n"])
            .arg(&file)
            .output()
            .unwrap();
        let complaints = String::from_utf8_lossy(&read.stderr);
        assert!(
            read.status.success() && complaints.is_empty(),
            "{page}: {complaints}"
        );
        let shown = String::from_utf8(read.stdout).unwrap();
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION"] {
            assert!(
                shown.contains(&format!("\n{section}\n")),
                "{page}: no {section}: {shown}"
            );
        }
        let words = shown
            .split_whitespace()
            .filter_map(|word| word.strip_suffix("(1)"));
        referred.extend(words.map(str::to_owned));
        if page == "blackhole" {
            for key in blackhole::config::keys() {
                let option = format!("--{}", key.name.replace('_', "-"));
                assert!(
                    shown
                        .split_whitespace()
                        .any(|word| word.split('[').next() == Some(&*option)),
                    "{option}: {shown}"
                );
            }
        }
    }
    for command in [
        "blackhole-ctl",
        "blackhole-ctl-kick",
        "blackhole-ctl-modules-start",
        "blackhole-sub",
    ] {
        assert!(pages.contains(command), "{command}: {pages:?}");
    }
    assert_eq!(
        pages, referred,
        "a page that no other leads to, or that is missing"
    );
}

#[test]
fn bash_completes_commands_and_options_with_what_the_package_brings() {
    let Some([package, _]) = packages() else {
        return;
    };
    let folder = unpacked(package);
    let script = folder
        .path()
        .join("usr/share/bash-completion/completions/blackhole");
    for (words, expected) in [
        (&["blackhole", "ctl", "ki"][..], "kick"),
        (
            &["blackhole", "--max-connections-per-i"],
            "--max-connections-per-ip",
        ),
        (&["blackhole", "man-p"], "man-pages"),
    ] {
        let last = words.len() - 1;
        let line = format!(
            "source {}; COMP_WORDS=({}); COMP_CWORD={last}; _blackhole blackhole '{}' '{}'; echo \"${{COMPREPLY[@]}}\"",
            script.display(),
            words.join(" "),
            words[last],
            words[last - 1],
        );
        let replies = must(Command::new("bash").args(["--norc", "-c", &line]));
        assert!(
            replies.split_whitespace().any(|reply| reply == expected),
            "{words:?}: {replies}"
        );
    }
    for file in [
        "zsh/vendor-completions/_blackhole",
        "fish/vendor_completions.d/blackhole.fish",
    ] {
        let script = text(folder.path(), &format!("usr/share/{file}"));
        assert!(
            script.contains("max-connections-per-ip") && script.contains("kick"),
            "{file}"
        );
    }
}

/// A system in a folder, as it is before its first boot: maintainer scripts run outside of it, and are told of it.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dpkg = folder.path().join("var/lib/dpkg");
        for part in ["info", "updates", "triggers"] {
            fs::create_dir_all(dpkg.join(part)).unwrap();
        }
        fs::write(dpkg.join("status"), "").unwrap();
        Self(folder)
    }

    /// Runs dpkg on it. The packages that are needed are this machine's.
    fn dpkg(&self, action: &str, what: &Path) -> String {
        let mut dpkg = Command::new("dpkg");
        dpkg.arg(format!("--root={}", self.0.path().display()));
        dpkg.args(["--force-script-chrootless", "--force-depends", action])
            .arg(what);
        must(dpkg.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// The program in it, with the configuration in it, on a port of its own.
    fn server(&self) -> Command {
        let mut command = Command::new(self.path("usr/bin/blackhole"));
        command.args(["--ip", "127.0.0.1", "--port", "0", "--config"]);
        command.arg(self.path(CONFIG)).stdin(Stdio::null());
        command
    }

    /// What is left of the package; the user, and what dpkg notes of itself, is not.
    fn left(&self) -> BTreeSet<PathBuf> {
        let is_ours = |path: &PathBuf| {
            let path = path.to_str().unwrap();
            path.contains("blackhole") && !path.starts_with("var/lib/dpkg/")
        };
        files(self.0.path()).into_iter().filter(is_ours).collect()
    }
}

#[test]
fn in_a_folder_it_is_installed_starts_is_upgraded_and_leaves_nothing() {
    let Some([package, newer]) = packages() else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        leave_out(&"dpkg takes root");
        return;
    }
    let folder = Folder::new();
    let said = folder.dpkg("--install", package);
    assert!(
        said.contains("systemctl enable --now blackhole@0"),
        "{said}"
    );
    let user = fs::read_to_string(folder.path("etc/passwd")).unwrap();
    assert!(user.starts_with("blackhole:"), "{user}");
    let config = folder.path(CONFIG);
    for (path, mode) in [(config.as_path(), 0o640), (config.parent().unwrap(), 0o770)] {
        let metadata = fs::metadata(path).unwrap();
        assert_eq!(metadata.mode() & 0o777, mode, "{}", path.display());
        let group = fs::read_to_string(folder.path("etc/group")).unwrap();
        let group = group
            .strip_prefix("blackhole:x:")
            .and_then(|rest| rest.split(':').next());
        assert_eq!(
            group,
            Some(&*metadata.gid().to_string()),
            "{}",
            path.display()
        );
    }

    // As it comes: refused, with the reason and what to do.
    let refused = folder.server().output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let reason = String::from_utf8(refused.stderr).unwrap();
    let expected = format!("blackhole: {}: auth: not set", config.display());
    assert!(reason.starts_with(&expected), "{reason}");
    assert!(reason.contains("\"auth\": \"tokens:FILE\""), "{reason}");

    fs::write(&config, TRIAL).unwrap();
    let server = Server::spawn(folder.server());
    folder.dpkg("--install", newer);
    assert_eq!(
        fs::read_to_string(&config).unwrap(),
        TRIAL,
        "the operator's file"
    );
    assert_eq!(server.probe(), 200, "it goes on over the upgrade");
    drop(server);
    drop(Server::spawn(folder.server()));

    folder.dpkg("--remove", Path::new("blackhole"));
    assert_eq!(folder.left(), BTreeSet::from([PathBuf::from(CONFIG)]));
    // What the server keeps when the platform stops a family.
    fs::write(config.with_extension("json.modules.json"), "{}").unwrap();
    folder.dpkg("--purge", Path::new("blackhole"));
    assert_eq!(folder.left(), BTreeSet::new());
    assert!(!folder.path("etc/blackhole").exists());
}

/// What became of connects that came one after the other, without a pause.
#[derive(Default, Debug)]
struct Connects {
    answered: u32,
    /// Why one was not answered.
    failed: Vec<String>,
}

/// Asks for the probe again and again until told to stop.
fn connect_until(is_over: &AtomicBool, address: (Ipv4Addr, u16)) -> Connects {
    let mut connects = Connects::default();
    while !is_over.load(Ordering::Relaxed) {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&address.into(), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        match ask() {
            Ok(answer) if answer.starts_with("HTTP/1.1 ") => connects.answered += 1,
            Ok(answer) => connects.failed.push(format!("no answer: {answer:?}")),
            Err(error) => connects.failed.push(error.to_string()),
        }
    }
    connects
}

/// Reads lines for as long as they come, and counts them.
fn count_lines(from: impl Read + Send + 'static) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    thread::spawn(move || {
        for _line in BufReader::new(from).lines().map_while(Result::ok) {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    count
}

/// The package's instances on a machine of their own.
struct Instances {
    machine: Machine,
    /// What the machine had of that name before.
    before: String,
}

/// The files that have the package's name in their path; a checkout of the sources is none.
fn traces(machine: &Machine) -> String {
    let places = ["find", "/etc", "/usr", "/var/lib", "-xdev"];
    let names = ["-path", "*blackhole*", "-not", "-path", "*/target/*"];
    machine.must(&[&places[..], &names].concat())
}

impl Instances {
    /// A machine with the older package installed and the newer one at hand.
    fn installed(packages: &[PathBuf; 2]) -> Option<Self> {
        let machine = Machine::boot()?;
        // Where somebody has installed it on the machine below.
        machine.run(&["dpkg", "--purge", "blackhole"]);
        for (package, name) in packages.iter().zip(["older", "newer"]) {
            fs::copy(package, machine.file(&format!("run/{name}.deb"))).unwrap();
        }
        let before = traces(&machine);
        let instances = Self { machine, before };
        let said = instances.install("older");
        assert!(
            said.contains("systemctl enable --now blackhole@0"),
            "{said}"
        );
        Some(instances)
    }

    fn install(&self, name: &str) -> String {
        self.machine
            .must(&["dpkg", "--install", &format!("/run/{name}.deb")])
    }

    fn configure(&self, config: &str) {
        fs::write(self.machine.file(CONFIG), config).unwrap();
    }

    fn property(&self, name: &str, unit: &str) -> String {
        let said = self
            .machine
            .must(&["systemctl", "show", "--value", "--property", name, unit]);
        said.trim().to_owned()
    }

    /// Starts a unit that cannot start; what the journal says of it then.
    fn refused(&self, unit: &str) -> String {
        let started = self.machine.run(&["systemctl", "start", unit]);
        assert!(!started.is_done, "{}", started.text);
        assert_eq!(
            self.property("ActiveState", unit),
            "failed",
            "it is not tried for ever"
        );
        self.machine.must(&["systemctl", "reset-failed", unit]);
        self.machine
            .must(&["journalctl", "--output=cat", "--unit", unit])
    }

    /// The process of a running unit, which is the program that is installed.
    fn process(&self, unit: &str) -> String {
        assert_eq!(self.property("ActiveState", unit), "active", "{unit}");
        self.property("MainPID", unit)
    }

    fn program(&self, process: &str) -> String {
        self.machine
            .must(&["readlink", &format!("/proc/{process}/exe")])
            .trim()
            .to_owned()
    }

    /// Connects from now on; the result tells how that went until `is_over`.
    fn connect_until(&self, is_over: &Arc<AtomicBool>) -> JoinHandle<Connects> {
        let is_over = is_over.clone();
        self.machine
            .on_its_network(move || connect_until(&is_over, WEBSOCKETS))
    }

    /// Upgrades to the newer package under connects, none of which may fail, and a client, which must get events after
    /// it as before.
    fn upgrade(&self, units: &[&str]) {
        let before: Vec<_> = units.iter().map(|unit| self.process(unit)).collect();
        let is_over = Arc::new(AtomicBool::new(false));
        let connects = self.connect_until(&is_over);
        let account = "00000000000000000000000000000001";
        let mut sub = self
            .machine
            .command(&[
                "blackhole",
                "sub",
                "--url",
                "ws://127.0.0.1:5555",
                "--token",
                "any",
                "--keys",
            ])
            .args(["--account", account, "call.*.*"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let events = count_lines(sub.stdout.take().unwrap());
        let more_events = |what: &str| {
            let before = events.load(Ordering::Relaxed);
            wait_within(PATIENCE, what, || {
                (events.load(Ordering::Relaxed) > before + 10).then_some(())
            });
        };
        more_events("events");

        self.install("newer");
        for (unit, before) in units.iter().zip(&before) {
            let after = self.process(unit);
            assert_ne!(*before, after, "{unit} was not restarted");
            assert_eq!(self.program(&after), "/usr/bin/blackhole");
        }
        more_events("events after the upgrade");
        is_over.store(true, Ordering::Relaxed);
        let connects = connects.join().unwrap();
        assert!(
            connects.failed.is_empty() && connects.answered > 100,
            "{connects:?}"
        );
        sub.kill().unwrap();
        sub.wait().unwrap();
    }

    /// Removes and purges the package; nothing of it is left, and nobody has the port.
    fn purge(&self, units: &[&str]) {
        self.machine.must(&["dpkg", "--remove", "blackhole"]);
        for unit in units {
            assert_eq!(self.property("ActiveState", unit), "inactive", "{unit}");
        }
        self.machine.must(&["dpkg", "--purge", "blackhole"]);
        assert_eq!(traces(&self.machine), self.before);
        let connect = self
            .machine
            .on_its_network(|| TcpStream::connect(WEBSOCKETS));
        let refused = connect.join().unwrap().unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn under_systemd_the_journal_says_why_it_does_not_start() {
    const UNIT: &str = "blackhole@0.service";
    let Some(packages) = packages() else { return };
    let Some(instances) = Instances::installed(packages) else {
        return;
    };
    let machine = &instances.machine;
    let journal = instances.refused(UNIT);
    assert!(
        journal.contains(&format!("blackhole: /{CONFIG}: auth: not set")),
        "{journal}"
    );

    // A file that root alone may read.
    let tokens = machine.file("etc/blackhole/tokens.json");
    fs::write(
        &tokens,
        r#"{"secret": {"account_id": "00000000000000000000000000000001"}}"#,
    )
    .unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    instances.configure(r#"{"auth": "tokens:/etc/blackhole/tokens.json", "source": "demo"}"#);
    let journal = instances.refused(UNIT);
    assert!(
        journal.contains("/etc/blackhole/tokens.json: cannot be read: Permission denied"),
        "{journal}"
    );
    machine.must(&["chgrp", "blackhole", "/etc/blackhole/tokens.json"]);
    machine.must(&["chmod", "640", "/etc/blackhole/tokens.json"]);
    let check = ["runuser", "-u", "blackhole", "--", "blackhole", "--config"];
    machine.must(
        &[
            &check[..],
            &["/etc/blackhole/blackhole.json", "--check-config"],
        ]
        .concat(),
    );
    machine.must(&["systemctl", "start", UNIT]);

    // Its port is another's.
    machine.must(&["systemctl", "stop", UNIT]);
    let other = machine
        .on_its_network(|| TcpListener::bind(WEBSOCKETS))
        .join()
        .unwrap()
        .unwrap();
    machine.must(&["systemctl", "reset-failed"]);
    machine.run(&["systemctl", "start", "--no-block", UNIT]);
    wait_within(PATIENCE, "the reason in the journal", || {
        let journal = machine.must(&["journalctl", "--output=cat", "--unit", UNIT]);
        journal
            .contains("5555: Address already in use")
            .then_some(())
    });
    // It is tried again until the port is free.
    drop(other);
    wait_within(PATIENCE, "the service", || {
        (instances.property("ActiveState", UNIT) == "active").then_some(())
    });
    instances
        .machine
        .must(&["rm", "/etc/blackhole/tokens.json"]);
    instances.purge(&[UNIT]);
}

#[test]
fn an_upgrade_refuses_no_connect_and_ends_at_the_first_instance_that_does_not_come_up() {
    const UNITS: [&str; 2] = ["blackhole@0.service", "blackhole@1.service"];
    let Some(packages) = packages() else { return };
    let Some(instances) = Instances::installed(packages) else {
        return;
    };
    instances.configure(TRIAL);
    instances
        .machine
        .must(&["systemctl", "enable", "--now", UNITS[0], UNITS[1]]);
    instances.upgrade(&UNITS);

    // A slip in the file that waits for the next start.
    instances.configure(r#"{"auth": "insecure", "prot": 5555}"#);
    let before = instances.process(UNITS[1]);
    let said = instances.install("newer");
    assert!(
        said.contains("blackhole@0.service did not come up"),
        "{said}"
    );
    assert_eq!(instances.property("ActiveState", UNITS[0]), "failed");
    assert_eq!(
        instances.process(UNITS[1]),
        before,
        "what serves is left to serve"
    );
    assert!(instances.program(&before).ends_with(" (deleted)"));
    instances.purge(&UNITS);
}

#[test]
fn one_instance_alone_is_upgraded_without_a_refused_connect_where_systemd_holds_its_port() {
    const UNITS: [&str; 2] = ["blackhole@0.socket", "blackhole@0.service"];
    let Some(packages) = packages() else { return };
    let Some(instances) = Instances::installed(packages) else {
        return;
    };
    instances.configure(TRIAL);
    instances
        .machine
        .must(&["systemctl", "enable", "--now", UNITS[0], UNITS[1]]);
    instances.upgrade(&UNITS[1..]);
    instances.purge(&UNITS);
}
