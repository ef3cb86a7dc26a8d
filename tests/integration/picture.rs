//! The picture of the README is drawn from the code's own map: the ways of the data and the table of floors in the
//! documentation of `src/lib.rs`. A way that changes there without the picture fails here; `BLACKHOLE_DRAW=1` draws it anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const PICTURE: &str = "scripts/ways.svg";

const LEGEND: [(&str, &str); 3] = [
    ("pure", "pure: no socket, no clock, no thread"),
    ("shell", "shell: touches the system"),
    ("", "outside, or several modules"),
];

const WIDTH: usize = 980;
const BOX_WIDTH: usize = 124;
const BOX_GAP: usize = 14;
/// Letters of a line in a box.
const LINE_LETTERS: usize = 17;
const LINE_HEIGHT: usize = 16;

const STYLE: &str = "
text { font: 12px system-ui, sans-serif; fill: #1f2430; text-anchor: middle }
.legend { text-anchor: start }
rect { stroke: #8a93a6; fill: #ffffff }
.pure { fill: #e3f2e6; stroke: #3d8b52 }
.shell { fill: #e4ecfb; stroke: #3f6fc4 }
path { stroke: #5b6478; fill: none; marker-end: url(#head) }
marker path { fill: #5b6478; stroke: none; marker-end: none }
@media (prefers-color-scheme: dark) {
text { fill: #e6e9f0 }
rect { fill: #1b1f29; stroke: #6b7488 }
.pure { fill: #17301e; stroke: #5fb277 }
.shell { fill: #18263f; stroke: #6e9cf0 }
path { stroke: #a3acc0 }
marker path { fill: #a3acc0 }
}
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pure,
    Shell,
    /// No module of ours, or several.
    Other,
}

fn path(from_root: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(from_root)
}

/// The kind of every module, from the table of floors.
fn kinds(lib: &str) -> BTreeMap<&str, Kind> {
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | "));
    let kinds = rows.filter_map(|row| {
        let mut cells = row.split(" | ").skip(1);
        let module = cells.next()?.trim_matches(['[', ']', '`']);
        match cells.next()? {
            "pure" => Some((module, Kind::Pure)),
            "shell" => Some((module, Kind::Shell)),
            _ => None,
        }
    });
    kinds.collect()
}

/// The ways of the data: the steps of each, from the drawing at the top. A line that begins with an arrow goes on with the
/// way of the line above.
fn ways(lib: &str) -> Vec<Vec<&str>> {
    let drawing = lib.split("//! ```text\n").nth(1).unwrap();
    let drawing = drawing.split("//! ```").next().unwrap();
    let mut ways: Vec<Vec<&str>> = Vec::new();
    for line in drawing.lines() {
        let line = line.trim_start_matches("//!").trim();
        if !line.starts_with("->") {
            ways.push(Vec::new());
        }
        let steps = line.split("->").map(str::trim);
        let steps = steps.filter(|step| !step.is_empty());
        ways.last_mut().unwrap().extend(steps);
    }
    ways
}

/// A step in the lines of its box.
fn lines(step: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in step.replace("::", ":: ").split(' ') {
        let is_path = lines.last().is_some_and(|last| last.ends_with("::"));
        let space = if is_path { "" } else { " " };
        match lines.last_mut() {
            Some(last) if last.len() + space.len() + word.len() <= LINE_LETTERS => {
                last.push_str(space);
                last.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The kind of the module that a step names first.
fn kind_of(step: &str, kinds: &BTreeMap<&str, Kind>) -> Kind {
    let end = step.find(|letter: char| !letter.is_ascii_lowercase() && letter != '_');
    let module = step.get(..end.unwrap_or(step.len())).unwrap();
    kinds.get(module).copied().unwrap_or(Kind::Other)
}

fn draw(lib: &str) -> String {
    let (kinds, ways) = (kinds(lib), ways(lib));
    let (mut boxes, mut top) = (String::new(), 12);
    for way in &ways {
        let texts: Vec<_> = way.iter().map(|step| lines(step)).collect();
        let height = 14 + LINE_HEIGHT * texts.iter().map(Vec::len).max().unwrap();
        for (at, (step, lines)) in way.iter().zip(&texts).enumerate() {
            let left = 4 + at * (BOX_WIDTH + BOX_GAP);
            if at > 0 {
                let (from, middle) = (left - BOX_GAP, top + height / 2);
                writeln!(boxes, "<path d=\"M{from} {middle} H{}\"/>", left - 2).unwrap();
            }
            let class = match kind_of(step, &kinds) {
                Kind::Pure => " class=\"pure\"",
                Kind::Shell => " class=\"shell\"",
                Kind::Other => "",
            };
            writeln!(
                boxes,
                "<rect x=\"{left}\" y=\"{top}\" width=\"{BOX_WIDTH}\" height=\"{height}\" rx=\"6\"{class}/>"
            )
            .unwrap();
            let first = top + height / 2 + 4 - (lines.len() - 1) * LINE_HEIGHT / 2;
            for (number, line) in lines.iter().enumerate() {
                let (x, y) = (left + BOX_WIDTH / 2, first + number * LINE_HEIGHT);
                writeln!(boxes, "<text x=\"{x}\" y=\"{y}\">{line}</text>").unwrap();
            }
        }
        top += height + 14;
    }
    for (at, (class, text)) in LEGEND.iter().enumerate() {
        let left = 4 + at * 330;
        let (y, text_y) = (top + 2, top + 14);
        writeln!(
            boxes,
            "<rect x=\"{left}\" y=\"{y}\" width=\"16\" height=\"16\" rx=\"3\" class=\"{class}\"/>\
             <text class=\"legend\" x=\"{}\" y=\"{text_y}\">{text}</text>",
            left + 24
        )
        .unwrap();
    }
    let height = top + 30;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         role=\"img\">\n<title>The ways of the data through Blackhole</title>\n<style>{STYLE}</style>\n<defs><marker \
         id=\"head\" markerWidth=\"8\" markerHeight=\"8\" refX=\"6\" refY=\"4\" orient=\"auto\"><path d=\"M0 1 L7 4 L0 \
         7 Z\"/></marker></defs>\n{boxes}</svg>\n"
    )
}

#[test]
fn the_picture_shows_the_ways_of_the_data_as_the_code_tells_them() {
    let lib = fs::read_to_string(path("src/lib.rs")).unwrap();
    let drawn = draw(&lib);
    assert!(ways(&lib).len() > 4 && drawn.contains("class=\"pure\"/>"));
    if std::env::var_os("BLACKHOLE_DRAW").is_some() {
        fs::write(path(PICTURE), &drawn).unwrap();
    }
    let kept = fs::read_to_string(path(PICTURE)).unwrap();
    assert!(kept == drawn, "draw {PICTURE} anew: BLACKHOLE_DRAW=1");
}
