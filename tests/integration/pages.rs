//! The pages for people: what they name is there, and what they show works.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use support::server::{Scratch, Server, run_to_end};

const PAGES: [&str; 3] = ["README.md", "bench/README.md", "scripts/README.md"];
/// What a newcomer reads in the time of one cup of tea.
const README_LINES_MAX: usize = 150;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(page: &Path) -> String {
    fs::read_to_string(root().join(page)).unwrap_or_else(|error| panic!("{page:?}: {error}"))
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// The blocks of code in `language`.
fn blocks<'t>(text: &'t str, language: &str) -> Vec<&'t str> {
    let blocks = text.split("```").skip(1).step_by(2);
    blocks
        .filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'))
        .collect()
}

/// What stands in the text between `begin` and the next `end`.
fn between<'t>(text: &'t str, begin: &str, end: char) -> Vec<&'t str> {
    let rest = text.split(begin).skip(1);
    rest.filter_map(|rest| Some(rest.split_once(end)?.0))
        .collect()
}

/// What links to the headings of a page end in.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
    let anchor = |heading: &str| {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn the_readme_is_short() {
    let lines = read(Path::new("README.md")).lines().count();
    assert!(lines <= README_LINES_MAX, "{lines} lines");
}

#[test]
fn the_readme_asks_for_the_toolchain_that_cargo_asks_for() {
    let manifest = read(Path::new("Cargo.toml"));
    let version = between(&manifest, "rust-version = \"", '"')[0];
    let asked = format!("a Rust toolchain ({version} or later)");
    assert!(read(Path::new("README.md")).contains(&asked), "{asked}");
}

#[test]
fn every_link_leads_somewhere() {
    for page in PAGES.map(Path::new) {
        let text = prose(&read(page));
        for link in between(&text, "](", ')') {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.to_owned(),
                file => page.parent().unwrap().join(file),
            };
            assert!(root().join(&target).exists(), "{page:?}: {link}");
            assert!(
                anchor.is_empty() || anchors(&prose(&read(&target))).contains(&anchor.to_owned()),
                "{page:?}: {link}"
            );
        }
    }
}

#[test]
fn every_file_that_is_named_exists_and_every_script_is_named() {
    for page in PAGES.map(Path::new) {
        let text = read(page);
        let named = prose(&text);
        let shown = blocks(&text, "");
        let words = between(&named, "`", '`').into_iter().chain(shown);
        for word in words.flat_map(str::split_whitespace) {
            let folder = word.split('/').next().unwrap_or_default();
            if word.contains('/') && ["bench", "scripts", "src", "tests"].contains(&folder) {
                assert!(root().join(word).exists(), "{page:?}: {word}");
            }
        }
    }
    let table = read(Path::new("scripts/README.md"));
    for entry in fs::read_dir(root().join("scripts")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name.contains('.') || table.contains(&format!("| `scripts/{name}")),
            "scripts/README.md says nothing about {name}"
        );
    }
}

#[test]
fn every_metric_that_is_named_exists() {
    let metrics = Server::demo(&[]).metrics();
    let mut named = 0;
    for page in PAGES.map(Path::new) {
        for name in between(&prose(&read(page)), "`blackhole_", '`') {
            named += 1;
            let exists = if name.ends_with('_') {
                metrics.keys().any(|metric| metric.starts_with(name))
            } else {
                let of_a_histogram = format!("{name}_count");
                metrics.contains_key(name) || metrics.contains_key(&of_a_histogram)
            };
            assert!(exists || name.is_empty(), "{page:?}: blackhole_{name}");
        }
    }
    assert!(named > 10);
}

#[test]
fn the_examples_are_json_and_those_of_files_are_taken() {
    for page in PAGES.map(Path::new) {
        for block in blocks(&read(page), "json") {
            let parsed = serde_json::from_str::<Value>(block);
            assert!(parsed.is_ok(), "{page:?}: {parsed:?}\n{block}");
        }
    }
    let operating = read(Path::new("scripts/README.md"));
    let example = |of: &str| {
        let mut examples = blocks(&operating, "json").into_iter();
        examples.find(|block| block.contains(of)).unwrap()
    };
    let tokens = Scratch::file("tokens.json", example("\"TOKEN\""));
    let config = Scratch::file("blackhole.json", example("\"families\""));
    let auth = format!("tokens:{}", tokens.path().display());
    let config = config.path().display().to_string();
    let output = run_to_end(&["--check-config", "--auth", &auth, "--config", &config]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let in_force = serde_json::from_slice::<Value>(&output.stdout).unwrap();
    assert_eq!(in_force["families"][0]["name"], "queue");
}
