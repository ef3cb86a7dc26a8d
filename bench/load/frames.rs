//! A server's websocket frames (RFC 6455 section 5.2), read with as little work as counting them needs: of an event
//! only the header and the first [`PREFIX_BYTES`] are looked at, and its other bytes are skipped where they lie.
//!
//! The server sends whole unmasked messages; a fragment or a masked frame is an error. Invariant: between two reads
//! a session keeps nothing but how many bytes of an event are still to come, or the few bytes of a frame whose kind
//! is not known yet.

use crate::client_frame::client_frame;

/// Bytes of a payload that tell an event from a reply: `{"action": "event"` and a margin.
pub(crate) const PREFIX_BYTES: usize = 24;

/// Longest frame that is kept whole: replies, notices, pings, closes.
pub(crate) const KEPT_BYTES_MAX: usize = 64 << 10;

/// One frame of the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen<'a> {
    /// An event frame begins; these bytes of its payload are here. Its end is told by [`Seen::EventEnd`].
    Event(&'a [u8]),
    /// The last byte of an event frame has been read; `bytes` with its header.
    EventEnd {
        /// Length of header and payload.
        bytes: u64,
    },
    /// Any other text: a reply or a notice.
    Text(&'a [u8]),
    /// A ping to be answered.
    Ping(&'a [u8]),
    /// The answer to a ping, with its payload.
    Pong(&'a [u8]),
    /// The server says goodbye.
    Close(&'a [u8]),
}

/// Bytes that no server of ours sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadFrame {
    /// A server must not mask.
    #[error("masked frame")]
    Masked,
    /// A fragment, a reserved bit, or an opcode that does not exist.
    #[error("unexpected first byte {0:#04x}")]
    Opcode(u8),
    /// Longer than [`KEPT_BYTES_MAX`], and no event.
    #[error("frame of {0} bytes that is no event")]
    TooLong(u64),
}

/// Where one session's byte stream stands.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    /// Bytes of the event under way that are still to come.
    skip: u64,
    /// Length of the event under way.
    event_bytes: u64,
    /// The beginning of a frame whose end or kind is not known yet.
    kept: Option<Box<[u8]>>,
}

impl FrameReader {
    /// Moves what was kept of an unfinished frame to the front of `buffer`, and returns its length: the next bytes
    /// are to be read behind it, and all of them given to [`FrameReader::feed`].
    ///
    /// `buffer` is longer than [`KEPT_BYTES_MAX`] + 10.
    pub(crate) fn unstash(&mut self, buffer: &mut [u8]) -> usize {
        let Some(kept) = self.kept.take() else {
            return 0;
        };
        buffer[..kept.len()].copy_from_slice(&kept);
        kept.len()
    }

    /// Keeps `bytes` for the next [`FrameReader::unstash`].
    pub(crate) fn stash(&mut self, bytes: &[u8]) {
        self.kept = (!bytes.is_empty()).then(|| bytes.into());
    }

    /// Reads the frames in `bytes` and tells `seen` of each; what is incomplete is kept. Linear in the frames, not in
    /// the bytes of events.
    ///
    /// # Errors
    /// [`BadFrame`]: the stream cannot be read on.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut seen: impl FnMut(Seen<'_>),
    ) -> Result<(), BadFrame> {
        loop {
            if self.skip > 0 {
                let here = bytes
                    .len()
                    .min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                bytes = &bytes[here..];
                self.skip -= here as u64;
                if self.skip > 0 {
                    return Ok(());
                }
                seen(Seen::EventEnd {
                    bytes: self.event_bytes,
                });
            }
            let Some((opcode, header, length)) = header(bytes)? else {
                break;
            };
            let payload = &bytes[header..];
            let prefix = payload.len().min(PREFIX_BYTES);
            if (prefix as u64) < length.min(PREFIX_BYTES as u64) {
                break;
            }
            if opcode == 0x1 && is_event(&payload[..prefix]) {
                let here = payload
                    .len()
                    .min(usize::try_from(length).unwrap_or(usize::MAX));
                seen(Seen::Event(&payload[..here]));
                self.skip = length;
                self.event_bytes = header as u64 + length;
                bytes = payload;
                continue;
            }
            let length = usize::try_from(length)
                .ok()
                .filter(|length| *length <= KEPT_BYTES_MAX);
            let Some(length) = length else {
                return Err(BadFrame::TooLong(self::length(bytes)));
            };
            if payload.len() < length {
                break;
            }
            let (payload, rest) = payload.split_at(length);
            seen(match opcode {
                0x1 => Seen::Text(payload),
                0x8 => Seen::Close(payload),
                0x9 => Seen::Ping(payload),
                _ => Seen::Pong(payload),
            });
            bytes = rest;
        }
        self.stash(bytes);
        Ok(())
    }
}

/// Whether a text that begins so is an event; white space between the tokens is allowed.
fn is_event(prefix: &[u8]) -> bool {
    let mut tokens = prefix.iter().filter(|byte| !byte.is_ascii_whitespace());
    br#"{"action":"event""#
        .iter()
        .all(|byte| tokens.next() == Some(byte))
}

/// Opcode, header length and payload length, when the header is complete.
fn header(bytes: &[u8]) -> Result<Option<(u8, usize, u64)>, BadFrame> {
    let [first, second, ..] = *bytes else {
        return Ok(None);
    };
    if !matches!(first, 0x81 | 0x88 | 0x89 | 0x8A) {
        return Err(BadFrame::Opcode(first));
    }
    let size = match second {
        0x80.. => return Err(BadFrame::Masked),
        127 => 10,
        126 => 4,
        _ => 2,
    };
    Ok((bytes.len() >= size).then(|| (first & 0xF, size, length(bytes))))
}

/// The payload length of a complete header.
fn length(bytes: &[u8]) -> u64 {
    let extended = match bytes[1] {
        127 => &bytes[2..10],
        126 => &bytes[2..4],
        _ => &bytes[1..2],
    };
    extended
        .iter()
        .fold(0, |length, byte| length << 8 | u64::from(*byte))
}

/// A client's frame, final.
#[must_use]
pub(crate) fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    client_frame(0x80 | opcode, payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blackhole::protocol::frame::{Frame, Opcode};

    /// What a script of frames is seen as, with the bytes of `Event` left out: they depend on the cuts.
    fn read_in_pieces(bytes: &[u8], piece: usize) -> Vec<String> {
        let mut reader = FrameReader::default();
        let mut buffer = vec![0; KEPT_BYTES_MAX + 4096];
        let mut told = Vec::new();
        for piece in bytes.chunks(piece) {
            let kept = reader.unstash(&mut buffer);
            buffer[kept..kept + piece.len()].copy_from_slice(piece);
            let read = reader.feed(&buffer[..kept + piece.len()], |seen| {
                told.push(match seen {
                    Seen::Event(_) => "event".to_owned(),
                    other => format!("{other:?}"),
                });
            });
            read.expect("good frames");
        }
        assert!(reader.kept.is_none() && reader.skip == 0, "all is read");
        told
    }

    #[test]
    fn every_kind_of_frame_is_told_whole_however_the_bytes_are_cut() {
        let long = format!(r#"{{"action": "event","args":"{}"}}"#, "x".repeat(70_000));
        let short = br#"{"action":"event"}"#;
        let reply = br#"{"action":"reply","status":"success"}"#;
        let frames = [
            Frame::new(Opcode::Text, short),
            Frame::new(Opcode::Text, reply),
            Frame::new(Opcode::Text, b"{}"),
            Frame::new(Opcode::Ping, b"p"),
            Frame::new(Opcode::Text, long.as_bytes()),
            Frame::new(Opcode::Pong, b""),
            Frame::close(1001, "going away"),
        ];
        let bytes: Vec<u8> = frames
            .iter()
            .flat_map(|frame| frame.bytes().to_vec())
            .collect();
        let expected = [
            "event".to_owned(),
            format!("{:?}", Seen::EventEnd { bytes: 20 }),
            format!("{:?}", Seen::Text(reply)),
            format!("{:?}", Seen::Text(b"{}")),
            format!("{:?}", Seen::Ping(b"p")),
            "event".to_owned(),
            format!(
                "{:?}",
                Seen::EventEnd {
                    bytes: frames[4].len() as u64
                }
            ),
            format!("{:?}", Seen::Pong(b"")),
            format!("{:?}", Seen::Close(&frames[6].bytes()[2..])),
        ];
        for piece in [1, 2, 3, 7, 25, 100, 4096, bytes.len()] {
            assert_eq!(
                read_in_pieces(&bytes, piece.min(4000)),
                expected,
                "cut every {piece} bytes"
            );
        }
    }

    #[test]
    fn frames_that_no_server_sends_are_refused() {
        for (bytes, expected) in [
            (&[0x81, 0x80, 0, 0, 0, 0][..], BadFrame::Masked),
            (&[0x01, 0x02], BadFrame::Opcode(0x01)),
            (&[0xC1, 0x02], BadFrame::Opcode(0xC1)),
            (&[0x82, 0x02], BadFrame::Opcode(0x82)),
        ] {
            assert_eq!(
                FrameReader::default().feed(bytes, |_| {}),
                Err(expected),
                "{bytes:?}"
            );
        }
        let mut long = vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 1];
        long.extend_from_slice(&[b'{'; PREFIX_BYTES]);
        assert_eq!(
            FrameReader::default().feed(&long, |_| {}),
            Err(BadFrame::TooLong(65_537))
        );
    }

    #[test]
    fn a_masked_frame_is_read_back_by_another_parser() {
        use std::io::Cursor;
        use tungstenite::protocol::frame::FrameHeader;
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'a'; length];
            let bytes = masked(0x1, &payload);
            let mut cursor = Cursor::new(&bytes);
            let (header, size) = FrameHeader::parse(&mut cursor)
                .expect("valid")
                .expect("complete");
            let key = header.mask.expect("masked");
            assert!(header.is_final && size == length as u64);
            let unmasked = bytes[cursor.position() as usize..]
                .iter()
                .zip(key.iter().cycle())
                .map(|(b, k)| b ^ k);
            assert!(unmasked.eq(payload));
        }
    }
}
