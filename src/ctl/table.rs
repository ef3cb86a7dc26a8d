//! Tables for people: a header, columns in line, numbers to the right.
//!
//! Invariant: every text is made [`printable`] here, so no foreign byte steers the terminal.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::printable::printable;

/// What a reader's eye is to find at once.
pub(super) const BAD: Style = AnsiColor::Red.on_default();
/// What may need a look.
pub(super) const DOUBTFUL: Style = AnsiColor::Yellow.on_default();
/// Headers and sums.
pub(super) const HEAD: Style = Style::new().bold();

/// Blanks between columns.
const GAP: usize = 2;

/// A column's title, and where its texts stand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Left(title) | Self::Right(title) => title,
        }
    }
}

/// A text and how it looks.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(super) fn styled(text: &str, style: Style) -> Self {
        let text = printable(text).into_owned();
        Self { text, style }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text.as_ref(), Style::new())
    }
}

/// Rows under a header.
#[derive(Clone, Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(columns: Vec<Column>) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// A row. One with fewer cells than there are columns ends early, and its last cell may be as wide as it likes.
    pub(super) fn add(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Writes it; lines are cut to `width`, if there is one.
    pub(super) fn write(&self, out: &mut impl Write, width: Option<usize>) -> io::Result<()> {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|index| self.width_of(index))
            .collect();
        let titles = self.columns.iter();
        let titles: Vec<Cell> = titles
            .map(|column| Cell::styled(column.title(), HEAD))
            .collect();
        for cells in std::iter::once(&titles).chain(&self.rows) {
            self.write_row(out, cells, &widths, width)?;
        }
        Ok(())
    }

    fn width_of(&self, index: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| {
            let is_free = index + 1 == row.len() && row.len() < self.columns.len();
            row.get(index).filter(|_| !is_free)
        });
        let widest = cells.map(|cell| cell.text.width()).max().unwrap_or(0);
        let title = self.columns.get(index).map_or("", |column| column.title());
        widest.max(title.width())
    }

    fn write_row(
        &self,
        out: &mut impl Write,
        cells: &[Cell],
        widths: &[usize],
        width: Option<usize>,
    ) -> io::Result<()> {
        let mut left = width.unwrap_or(usize::MAX);
        // No blanks at the end of a line.
        let is_empty = |cell: &Cell| cell.text.is_empty();
        let full = cells.iter().rposition(|cell| !is_empty(cell));
        let cells = &cells[..full.map_or(0, |last| last + 1)];
        for (index, ((cell, column), of_column)) in
            cells.iter().zip(&self.columns).zip(widths).enumerate()
        {
            let blank = of_column.saturating_sub(cell.text.width());
            let is_last = index + 1 == cells.len();
            let (before, behind) = match column {
                Column::Right(_) => (blank, 0),
                Column::Left(_) if is_last => (0, 0),
                Column::Left(_) => (0, blank),
            };
            let before = if index > 0 { before + GAP } else { before };
            let text = cut(&cell.text, left.saturating_sub(before));
            let style = cell.style;
            if left <= before {
                break;
            }
            write!(out, "{:before$}{style}{text}{style:#}", "")?;
            left = left.saturating_sub(before + text.width() + behind);
            write!(out, "{:1$}", "", behind.min(left))?;
        }
        writeln!(out)
    }
}

/// As much of a text as fits in a width, with a mark where it was cut.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut left = width.saturating_sub(1);
    for character in text.chars() {
        let of_character = character.width().unwrap_or(0);
        if of_character > left {
            break;
        }
        left -= of_character;
        out.push(character);
    }
    if width > 0 {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(table: &Table, width: Option<usize>) -> String {
        let mut out = anstream::StripStream::new(Vec::new());
        table.write(&mut out, width).expect("memory takes all");
        String::from_utf8(out.into_inner()).expect("text")
    }

    fn sessions() -> Table {
        let mut table = Table::new(vec![
            Column::Left("ID"),
            Column::Right("FRAMES"),
            Column::Left("NAME"),
        ]);
        table.add(vec!["127.0.0.1:5".into(), "7".into(), "電話 of Zoë".into()]);
        table.add(vec!["::1".into(), "1,234,567".into(), "\x1b[2Jx".into()]);
        table.add(vec!["c".into(), "0".into(), "".into()]);
        table.add(vec!["b".into(), "nobody listens there, alas".into()]);
        table
    }

    #[test]
    fn columns_are_in_line_and_numbers_to_the_right() {
        let expected = "\
ID              FRAMES  NAME
127.0.0.1:5          7  電話 of Zoë
::1          1,234,567  \\u{1b}[2Jx
c                    0
b            nobody listens there, alas
";
        assert_eq!(written(&sessions(), None), expected);
    }

    #[test]
    fn lines_are_cut_to_the_terminal() {
        for width in 1..60 {
            for line in written(&sessions(), Some(width)).lines() {
                assert!(line.width() <= width, "{width}: {line:?}");
            }
        }
        assert_eq!(cut("電話", 4), "電話");
        assert_eq!(cut("電話", 3), "電…");
        assert_eq!(cut("電話", 2), "…");
        assert_eq!(cut("x", 0), "");
    }
}
