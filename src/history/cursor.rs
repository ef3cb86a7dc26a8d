//! A cursor: the name of a place among the events that a process took in (PROTOCOL 10).
//!
//! Invariant: a cursor has one spelling. What [`Cursor::parse`] takes, `Display` writes again to the byte.

use std::fmt;

use crate::event::EventId;

/// The name of a process since its start: six characters of base 36.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark([u8; MARK_BYTES]);

/// A place among the events of a process: behind the event `id`, or, without one, behind every event up to `time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The event before the place; `None`: a position, which is written as `0`.
    pub id: Option<EventId>,
    /// When the process took the event in: Unix milliseconds ([`super`] says by which clock).
    pub time: u64,
    /// Which process.
    pub mark: Mark,
}

const MARK_BYTES: usize = 6;

/// Longest time in base 36: that of `u64::MAX`.
const TIME_DIGITS_MAX: usize = 13;

/// Longest cursor as text, in bytes.
pub const CURSOR_BYTES_MAX: usize = 16 + 1 + TIME_DIGITS_MAX + 1 + MARK_BYTES;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

impl Mark {
    /// The mark that `random` makes: one of 2,176,782,336.
    #[must_use]
    pub fn from_random(random: u64) -> Self {
        let mut rest = random;
        Self(std::array::from_fn(|_| {
            let digit = rest % 36;
            rest /= 36;
            digit_of(digit)
        }))
    }

    fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; MARK_BYTES] = text.as_bytes().try_into().ok()?;
        bytes
            .iter()
            .all(|byte| DIGITS.contains(byte))
            .then_some(Self(bytes))
    }
}

impl Cursor {
    /// Reads a cursor. `None`: anything but the text that `Display` writes of one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > CURSOR_BYTES_MAX {
            return None;
        }
        let (id, rest) = text.split_once('.')?;
        let (time, mark) = rest.split_once('.')?;
        let id = match id {
            "0" => None,
            id => Some(EventId::parse(id)?),
        };
        Some(Self {
            id,
            time: time_of(time)?,
            mark: Mark::parse(mark)?,
        })
    }

    /// Appends the text of the cursor, which needs no escapes in JSON. Without an allocation but for `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self.id {
            None => out.push(b'0'),
            Some(id) => out.extend_from_slice(&id.digits()),
        }
        out.push(b'.');
        write_time(self.time, out);
        out.push(b'.');
        out.extend_from_slice(&self.mark.0);
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(CURSOR_BYTES_MAX);
        self.write(&mut text);
        text.iter()
            .try_for_each(|byte| fmt::Write::write_char(f, char::from(*byte)))
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

fn digit_of(value: u64) -> u8 {
    DIGITS
        .get((value % 36) as usize)
        .copied()
        .unwrap_or_default()
}

fn write_time(time: u64, out: &mut Vec<u8>) {
    let begin = out.len();
    let mut rest = time;
    loop {
        out.push(digit_of(rest));
        rest /= 36;
        if rest == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(begin..) {
        digits.reverse();
    }
}

fn time_of(text: &str) -> Option<u64> {
    let is_canonical = text == "0" || !text.is_empty() && !text.starts_with('0');
    let is_lower = text.bytes().all(|byte| DIGITS.contains(&byte));
    if !is_canonical || !is_lower {
        return None;
    }
    u64::from_str_radix(text, 36).ok()
}
