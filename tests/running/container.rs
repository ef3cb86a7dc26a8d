//! `scripts/Dockerfile` and `scripts/sysctl.conf`. No engine runs where these tests do, so the image is not built: what
//! can be held without one is that what it copies is there, and that its entry point and its health check do what they are
//! for, with a real server.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::tools::program;
use support::project_file;
use support::server::{Server, blackhole};

fn instructions() -> Vec<(String, String)> {
    let text = fs::read_to_string(project_file("scripts/Dockerfile")).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n");
    let lines = lines.replace("\\\n", " ");
    let split = lines.lines().filter_map(|line| line.split_once(' '));
    split
        .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
        .collect()
}

/// A command line of the image, for this machine: the server of this build, and a folder of the test's.
fn command(json: &str, folder: &Path) -> Vec<String> {
    let words: Vec<String> = serde_json::from_str(json).expect("the form without a shell");
    let server = blackhole().get_program().to_str().unwrap().to_owned();
    let here = |word: String| match word.as_str() {
        "/usr/bin/blackhole" => server.clone(),
        "/run/blackhole" => folder.to_str().unwrap().to_owned(),
        _ => word,
    };
    words.into_iter().map(here).collect()
}

#[test]
fn what_the_image_copies_is_there_and_it_does_not_run_as_root() {
    let instructions = instructions();
    let copies: Vec<&String> = instructions
        .iter()
        .filter(|(name, _)| name == "COPY")
        .map(|(_, rest)| rest)
        .collect();
    let from_here = copies.iter().filter_map(|rest| {
        let (source, _) = rest
            .strip_prefix("--from=build /blackhole/")?
            .split_once(' ')?;
        (!source.starts_with("target/")).then_some(source)
    });
    for source in from_here {
        assert!(project_file(source).exists(), "{source}");
    }
    assert!(copies.len() >= 2);
    let named = |wanted: &str| {
        instructions
            .iter()
            .rfind(|(name, _)| name == wanted)
            .unwrap()
    };
    assert_eq!(named("USER").1, "blackhole");
    // The same compiler as the manifest's, or a later one.
    let manifest = fs::read_to_string(project_file("Cargo.toml")).unwrap();
    let (_, version) = manifest.split_once("rust-version = \"").unwrap();
    let version = version.split('"').next().unwrap();
    let base = instructions
        .iter()
        .find(|(name, _)| name == "FROM")
        .unwrap();
    assert!(
        base.1.starts_with(&format!("rust:{version}-")),
        "{}",
        base.1
    );
}

#[test]
fn the_entry_point_starts_a_server_that_the_health_check_finds_and_misses_when_it_is_gone() {
    let instructions = instructions();
    let named = |wanted: &str| {
        &instructions
            .iter()
            .rfind(|(name, _)| name == wanted)
            .unwrap()
            .1
    };
    let folder = tempfile::tempdir().unwrap();
    let entry = command(named("ENTRYPOINT"), folder.path());
    let mut start = Command::new(&entry[0]);
    start.args(&entry[1..]).stdin(Stdio::null());
    start.args([
        "--ip",
        "127.0.0.1",
        "--port",
        "0",
        "--source",
        "demo",
        "--auth",
        "insecure",
    ]);
    let mut server = Server::spawn(start);

    let (_, check) = named("HEALTHCHECK").split_once("CMD ").unwrap();
    let check = command(check, folder.path());
    let (variable, value) = named("ENV").split_once('=').unwrap();
    assert_eq!(value, "/run/blackhole");
    let healthy = || {
        let mut ask = Command::new(&check[0]);
        ask.args(&check[1..]).env(variable, folder.path());
        ask.output().unwrap().status.code()
    };
    assert_eq!(healthy(), Some(0));
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(healthy(), Some(1));
}

/// Lines `key = value` of the settings, each with whether the kernel may lack it.
fn settings() -> Vec<(String, String, bool)> {
    let text = fs::read_to_string(project_file("scripts/sysctl.conf")).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let setting = |line: &str| {
        let (key, value) = line.split_once(" = ").expect("key = value");
        let may_lack = key.starts_with('-');
        (
            key.trim_start_matches('-').to_owned(),
            value.to_owned(),
            may_lack,
        )
    };
    lines.map(setting).collect()
}

#[test]
fn every_setting_of_the_kernel_has_its_reason_and_is_taken_by_this_kernel() {
    let text = fs::read_to_string(project_file("scripts/sysctl.conf")).unwrap();
    for block in text.split("\n\n").skip(1) {
        let (last, reason) = {
            let mut lines: Vec<&str> = block.trim_end().lines().collect();
            (lines.pop().unwrap(), lines)
        };
        assert!(last.contains(" = "), "{block}");
        assert!(
            !reason.is_empty() && reason.iter().all(|line| line.starts_with("# ")),
            "{block}"
        );
    }
    let (Some(sysctl), Some(unshare)) = (program("sysctl"), program("unshare")) else {
        return;
    };
    // In a network of its own, so that nothing changes for others.
    let file = project_file("scripts/sysctl.conf");
    let script = r#""$0" --quiet --load="$1"; shift; exec "$0" "$@""#;
    let mut command = Command::new(unshare);
    command
        .args(["--net", "sh", "-c", script])
        .arg(sysctl)
        .arg(&file);
    let must: Vec<_> = settings()
        .into_iter()
        .filter(|(_, _, may_lack)| !may_lack)
        .collect();
    command.args(must.iter().map(|(key, _, _)| key));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("unshare failed") {
        support::left_out::leave_out(&"no network of one's own may be made here: needs root");
        return;
    }
    assert!(output.status.success(), "{said}");
    let taken = String::from_utf8(output.stdout).unwrap().replace('\t', " ");
    for (key, value, _) in must {
        assert!(
            taken.contains(&format!("{key} = {value}\n")),
            "{key}: {taken}"
        );
    }
}
