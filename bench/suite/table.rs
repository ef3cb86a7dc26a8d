//! Tables on stdout: a title and columns, numbers to the right.

use std::fmt::Write as _;

use serde_json::Value;

/// Rows of text under one title; the first column is left-aligned, the others are numbers.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    /// Without rows; the first of `columns` is the title.
    pub(crate) fn new(columns: &[&str]) -> Self {
        Self {
            rows: vec![columns.iter().map(|&column| column.to_owned()).collect()],
            notes: Vec::new(),
        }
    }

    /// Adds a row, which has as many cells as there are columns.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.rows[0].len(), "{cells:?}");
        self.rows.push(cells);
    }

    /// Adds a line below the table; the same one only once.
    pub(crate) fn note(&mut self, note: &str) {
        if !self.notes.iter().any(|known| known == note) {
            self.notes.push(note.to_owned());
        }
    }

    /// Prints it.
    pub(crate) fn print(&self) {
        print!("{}", self.text());
    }

    fn text(&self) -> String {
        let width = |column: usize| {
            let widths = self.rows.iter().map(|row| row[column].chars().count());
            widths.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        let mut text = String::from("\n");
        for row in &self.rows {
            let mut line = format!("{:<1$}", row[0], widths[0]);
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                // Writing to a text cannot fail.
                let _ = write!(line, "  {cell:>width$}");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        for note in &self.notes {
            text.push_str(note);
            text.push('\n');
        }
        text
    }
}

/// A core that is busy for this share of the time is saturated.
pub(crate) const SATURATED: f64 = 0.95;

/// Whether a row's load generator had its core saturated while the server had time left: then the times are the
/// generator's, and the CPU of the server is still its own.
pub(crate) fn is_held_back_by_load(row: &Value) -> bool {
    let share = |name: &str| row[name].as_f64();
    share("load_busy_share") > Some(SATURATED) && share("server_busy_share") < Some(SATURATED)
}

/// `value` with `digits` behind the point; a dash when there is none.
pub(crate) fn number(value: Option<f64>, digits: usize) -> String {
    match value.filter(|value| value.is_finite()) {
        Some(value) => format!("{value:.digits$}"),
        None => "-".into(),
    }
}

/// `value` as a ratio.
pub(crate) fn ratio(value: Option<f64>) -> String {
    match value.filter(|value| value.is_finite()) {
        Some(value) => format!("{value:.3}"),
        None => "-".into(),
    }
}

/// `value` as a share of the whole, in percent.
pub(crate) fn percent(value: Option<f64>) -> String {
    match value.filter(|value| value.is_finite()) {
        Some(value) => format!("{:.0} %", value * 100.0),
        None => "-".into(),
    }
}
