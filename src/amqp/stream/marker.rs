//! The text of a marker, which processes write to the stream of themselves: a small JSON object. Pure.
//!
//! Whoever may publish to the broker's default exchange can write one, and could as well publish events.

use serde::{Deserialize, Serialize};

use crate::event::EventId;
use crate::history::stored::{KeyId, Marker};

/// Longest marker that is read: some 3,500 keys. A longer one proves nothing.
pub(super) const MARKER_BYTES_MAX: usize = 64 << 10;

/// Which process wrote a marker: drawn at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin(pub(super) u64);

#[derive(Deserialize, Serialize)]
struct Text {
    blackhole_marker: u64,
    unix_ms: u64,
    is_hole: bool,
    keys: Vec<String>,
}

/// The text of a marker of this process. Keys beyond what fits are left out, so they prove nothing. Linear in the keys.
pub(super) fn write(origin: Origin, unix_ms: u64, is_hole: bool, keys: &[KeyId]) -> Vec<u8> {
    const KEYS_MAX: usize = (MARKER_BYTES_MAX - 200) / (16 + 3);
    let text = Text {
        blackhole_marker: origin.0,
        unix_ms,
        is_hole,
        keys: keys.iter().take(KEYS_MAX).map(KeyId::to_string).collect(),
    };
    serde_json::to_vec(&text).unwrap_or_default()
}

/// Reads a marker; `None`: it is none. Linear in the text.
pub(super) fn read(text: &[u8], ours: Origin) -> Option<Marker> {
    if text.len() > MARKER_BYTES_MAX {
        return None;
    }
    let text: Text = serde_json::from_slice(text).ok()?;
    Some(Marker {
        unix_ms: text.unix_ms,
        is_ours: text.blackhole_marker == ours.0,
        is_hole: text.is_hole,
        keys: text
            .keys
            .iter()
            .filter_map(|key| EventId::parse(key))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::stored::key_id;

    #[test]
    fn a_marker_is_read_as_it_was_written_and_anything_else_is_none() {
        let keys = [key_id("callevt", "call.*.*"), key_id("faxes", "fax.#")];
        for is_hole in [false, true] {
            let text = write(Origin(7), 1_790_000_000_000, is_hole, &keys);
            for (ours, is_ours) in [(7, true), (8, false)] {
                let expected = Marker {
                    unix_ms: 1_790_000_000_000,
                    is_ours,
                    is_hole,
                    keys: keys.into(),
                };
                assert_eq!(read(&text, Origin(ours)), Some(expected));
            }
        }
        for text in [
            &b""[..],
            b"{}",
            b"[]",
            b"{\"blackhole_marker\":-1}",
            &[0xff; 100],
        ] {
            assert_eq!(read(text, Origin(7)), None);
        }
    }

    #[test]
    fn a_marker_of_too_many_keys_is_still_read() {
        let keys: Vec<_> = (0..10_000).map(|n| key_id("e", &n.to_string())).collect();
        let text = write(Origin(u64::MAX), u64::MAX, true, &keys);
        assert!(text.len() <= MARKER_BYTES_MAX);
        let marker = read(&text, Origin(1)).expect("a marker");
        assert!(marker.keys.len() > 3000 && marker.keys[..] == keys[..marker.keys.len()]);
    }
}
