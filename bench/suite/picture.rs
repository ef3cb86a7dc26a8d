//! The picture of a run: bytes of an idle session and CPU of a frame, ours beside every subject, as an SVG.
//!
//! Both scales are logarithmic, because peers differ by powers of ten. Everything is drawn in pixels: bars, lines and
//! texts are all there is.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;

use crate::machine;

/// Sessions and body size of the frames shown, where they were measured.
const SESSIONS: u64 = 10_000;
const BODY_BYTES: u64 = 1024;

const WIDTH: i32 = 960;
const LEFT: i32 = 170;
const RIGHT: i32 = 880;
const BAR: i32 = 16;
/// Between the bars of two subjects, and above and below those of a panel.
const GAP: i32 = 8;
const TITLE: i32 = 56;
const FOOT: i32 = 44;

const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const FAINT: RGBColor = RGBColor(0xDD, 0xDD, 0xDD);
/// Ours, the limits, the peers; the bars of one subject grow lighter.
const OURS: RGBColor = RGBColor(0xC2, 0x41, 0x0C);
const LIMIT: RGBColor = RGBColor(0x6B, 0x72, 0x80);
const PEER: RGBColor = RGBColor(0x1D, 0x4E, 0x89);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// One subject's bars.
struct Group {
    name: String,
    values: Vec<f64>,
}

/// One diagram: a bar for each value, the same series in every group.
struct Panel {
    title: String,
    /// Names of the series; none when there is one.
    series: Vec<String>,
    groups: Vec<Group>,
}

impl Panel {
    fn height(&self) -> i32 {
        let bars: usize = self.groups.iter().map(|group| group.values.len()).sum();
        let (bars, groups) = (bars as i32, self.groups.len() as i32);
        TITLE + bars * BAR + (groups + 1) * GAP + FOOT
    }
}

/// Draws what `report` has of density and fan-out into `file`.
///
/// # Errors
/// It has neither, or the file cannot be written.
pub(crate) fn draw(report: &Value, file: &Path) -> Result<(), Box<dyn Error>> {
    let panels: Vec<_> = [density(report), fanout(report)]
        .into_iter()
        .flatten()
        .filter(|panel| !panel.groups.is_empty())
        .collect();
    if panels.is_empty() {
        return Err("the picture needs figures of density or fanout".into());
    }
    let height: i32 = panels.iter().map(Panel::height).sum::<i32>() + FOOT;
    let root = SVGBackend::new(file, (WIDTH as u32, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut top = 0;
    for panel in &panels {
        draw_panel(&root, panel, top)?;
        top += panel.height();
    }
    text(
        &root,
        &machine::stamp_line(report),
        (20, top + 16),
        13,
        HPos::Left,
    )?;
    root.present()?;
    Ok(())
}

fn density(report: &Value) -> Option<Panel> {
    let rows = report["density"].as_array()?;
    let shared: Vec<_> = rows
        .iter()
        .filter(|row| row["scenario"] == rows[0]["scenario"])
        .collect();
    let groups = shared.iter().map(|row| Group {
        name: label(row, &rows[0]["sessions"]),
        values: vec![row["resident_bytes_per_session"].as_f64().unwrap_or(0.0)],
    });
    Some(Panel {
        title: format!(
            "Bytes of memory for each of {} idle sessions, {}",
            rows[0]["sessions"],
            rows[0]["scenario"].as_str().unwrap_or("")
        ),
        series: Vec::new(),
        groups: groups.collect(),
    })
}

fn fanout(report: &Value) -> Option<Panel> {
    let rows = report["fanout"].as_array()?;
    let of_size: Vec<_> = rows
        .iter()
        .filter(|row| row["body_bytes"] == BODY_BYTES)
        .collect();
    let all = of_size.iter().filter_map(|row| row["sessions"].as_u64());
    // The number asked for, or the nearest to it.
    let sessions = all.min_by_key(|sessions| sessions.abs_diff(SESSIONS))?;
    let rows: Vec<_> = of_size
        .into_iter()
        .filter(|row| row["sessions"] == sessions)
        .collect();
    let names = rows[0]["subjects"].as_array()?.iter();
    let groups = names.map(|subject| Group {
        name: label(subject, &sessions.into()),
        values: rows
            .iter()
            .filter_map(|row| {
                let subjects = row["subjects"].as_array()?;
                let same = subjects.iter().find(|one| one["name"] == subject["name"])?;
                same["cpu_us_per_frame"].as_f64()
            })
            .collect(),
    });
    Some(Panel {
        title: format!(
            "CPU seconds per million frames of {BODY_BYTES} bytes, to {sessions} sessions"
        ),
        series: rows
            .iter()
            .map(|row| format!("{} in flight", row["in_flight"]))
            .collect(),
        groups: groups.collect(),
    })
}

/// Its name, with its number of sessions where that is not the panel's.
fn label(row: &Value, sessions: &Value) -> String {
    let name = match row["name"].as_str().unwrap_or("") {
        "ours" => "Blackhole",
        "ours-without-ids" => "Blackhole without ids",
        other => other,
    };
    if row["sessions"] == *sessions {
        name.into()
    } else {
        format!("{name} ({})", row["sessions"])
    }
}

fn color(name: &str) -> RGBColor {
    match name {
        _ if name.starts_with("Blackhole") => OURS,
        _ if name.starts_with("bare-") => LIMIT,
        _ => PEER,
    }
}

fn draw_panel(root: &Area<'_>, panel: &Panel, top: i32) -> Result<(), Box<dyn Error>> {
    text(root, &panel.title, (20, top + 22), 17, HPos::Left)?;
    let values = || panel.groups.iter().flat_map(|group| &group.values).copied();
    let positive = || values().filter(|value| *value > 0.0);
    // The shortest bar is to be seen too.
    let low = (positive().fold(f64::MAX, f64::min).log10() - 0.3).floor();
    let high = positive()
        .fold(f64::MIN, f64::max)
        .log10()
        .ceil()
        .max(low + 1.0);
    let place = |value: f64| {
        let share = (value.log10() - low) / (high - low);
        LEFT + (share.clamp(0.0, 1.0) * f64::from(RIGHT - LEFT)) as i32
    };
    let bottom = top + panel.height() - FOOT;
    for decade in low as i32..=high as i32 {
        let value = 10_f64.powi(decade);
        let line = vec![(place(value), top + TITLE - GAP), (place(value), bottom)];
        root.draw(&PathElement::new(line, FAINT.stroke_width(1)))?;
        text(
            root,
            &short(value),
            (place(value), bottom + 12),
            12,
            HPos::Center,
        )?;
    }
    let mut x = LEFT;
    for (at, name) in panel.series.iter().enumerate() {
        let box_top = top + 36;
        let shade = shade(LIMIT, at);
        root.draw(&Rectangle::new(
            [(x, box_top), (x + 10, box_top + 10)],
            shade.filled(),
        ))?;
        text(root, name, (x + 16, box_top + 5), 12, HPos::Left)?;
        x += 110;
    }
    let mut y = top + TITLE + GAP;
    for group in &panel.groups {
        let bars = group.values.len() as i32;
        let middle = y + bars * BAR / 2;
        text(root, &group.name, (LEFT - 10, middle), 14, HPos::Right)?;
        for (at, &value) in group.values.iter().enumerate() {
            let right = place(value).max(LEFT + 2);
            let bar = [(LEFT, y + 1), (right, y + BAR - 1)];
            root.draw(&Rectangle::new(bar, shade(color(&group.name), at).filled()))?;
            text(
                root,
                &short(value),
                (right + 6, y + BAR / 2),
                12,
                HPos::Left,
            )?;
            y += BAR;
        }
        y += GAP;
    }
    Ok(())
}

/// The color of the series number `at`.
fn shade(color: RGBColor, at: usize) -> RGBColor {
    let lighten = |part: u8| {
        let white = 255.0 - f64::from(part);
        part + (white * 0.28 * at as f64).min(white * 0.8) as u8
    };
    RGBColor(lighten(color.0), lighten(color.1), lighten(color.2))
}

fn short(value: f64) -> String {
    match value {
        value if value >= 10_000.0 => format!("{:.0}k", value / 1000.0),
        value if value >= 10.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn text(
    root: &Area<'_>,
    text: &str,
    at: (i32, i32),
    size: i32,
    anchor: HPos,
) -> Result<(), Box<dyn Error>> {
    let style = ("sans-serif", size)
        .into_font()
        .color(&INK)
        .pos(Pos::new(anchor, VPos::Center));
    root.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}
