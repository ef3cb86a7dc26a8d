//! A server's websocket frames (RFC 6455 section 5.2). The server sends whole unmasked messages; a fragment or a
//! masked frame is an error.

use crate::reader::{BadUnit, Format, Front};
use support::client_frame::client_frame;

/// Bytes of a payload that tell an event from a reply: `{"action": "event"` and a margin.
pub const PREFIX_BYTES: usize = 24;

/// Opcode of a text frame.
pub const TEXT: u8 = 0x1;
/// Opcode of a binary frame.
pub const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
/// Opcode of a ping.
pub const PING: u8 = 0x9;
/// Opcode of a pong.
pub const PONG: u8 = 0xA;

/// What the server's frames carry; control frames are always kept whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Texts; those that begin like an event of ours pass, the others are kept whole. No binary frame.
    Tagged,
    /// The same, and deflated texts (RFC 7692), all of which pass: a server of ours deflates events only.
    TaggedDeflated,
    /// Texts or binary frames, all of which pass.
    Passing,
    /// The same, deflated or not.
    PassingDeflated,
    /// Texts, all of which are kept whole: for those who read events. No binary frame.
    Whole,
}

/// Kinds of frames that are kept whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WholeFrame {
    /// A text.
    Text,
    /// A ping.
    Ping,
    /// A pong.
    Pong,
    /// A close frame.
    Close,
}

impl WholeFrame {
    /// The kind of a frame by the first byte of its header.
    pub fn of(first: u8) -> Self {
        match first & 0xF {
            CLOSE => Self::Close,
            PING => Self::Ping,
            PONG => Self::Pong,
            _ => Self::Text,
        }
    }
}

impl Format for Frames {
    fn front(&self, bytes: &[u8]) -> Result<Front, BadUnit> {
        let [first, second, ..] = *bytes else {
            return Ok(Front::Unclear);
        };
        let is_good = match first {
            0x88..=0x8A | 0x81 => true,
            0x82 => matches!(self, Self::Passing | Self::PassingDeflated),
            0xC1 => matches!(self, Self::TaggedDeflated | Self::PassingDeflated),
            0xC2 => *self == Self::PassingDeflated,
            _ => false,
        };
        if !is_good {
            return Err(BadUnit::Opcode(first));
        }
        let header = match second {
            0x80.. => return Err(BadUnit::Masked),
            127 => 10,
            126 => 4,
            _ => 2,
        };
        if bytes.len() < header {
            return Ok(Front::Unclear);
        }
        let length = length(bytes);
        Ok(match (first & 0xF, self) {
            (TEXT | BINARY, Self::Passing | Self::PassingDeflated) => {
                Front::Passing { header, length }
            }
            (TEXT, Self::TaggedDeflated) if first == 0xC1 => Front::Passing { header, length },
            (TEXT, Self::Tagged | Self::TaggedDeflated) => {
                let payload = &bytes[header..];
                let prefix = &payload[..payload.len().min(PREFIX_BYTES)];
                if (prefix.len() as u64) < length.min(PREFIX_BYTES as u64) {
                    Front::Unclear
                } else if is_event(prefix) {
                    Front::Passing { header, length }
                } else {
                    Front::Whole { header, length }
                }
            }
            _ => Front::Whole { header, length },
        })
    }
}

/// Whether a text that begins so is an event; white space between the tokens is allowed.
fn is_event(prefix: &[u8]) -> bool {
    let mut tokens = prefix.iter().filter(|byte| !byte.is_ascii_whitespace());
    br#"{"action":"event""#
        .iter()
        .all(|byte| tokens.next() == Some(byte))
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
pub fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    client_frame(0x80 | opcode, payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::tests::read_in_pieces;
    use crate::reader::{Reader, Seen};
    use blackhole::protocol::frame::{Frame, Opcode};

    const CUTS: [usize; 7] = [1, 2, 3, 7, 25, 100, 4000];

    fn whole(kind: u8, payload: &[u8]) -> String {
        format!("{:?}", Seen::Whole { kind, payload })
    }

    fn end(bytes: u64) -> String {
        format!("{:?}", Seen::End { bytes })
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
        let long = end(frames[4].len() as u64);
        let control = |frame: &Frame| whole(frame.bytes()[0], &frame.bytes()[2..]);
        let event = || "event".to_owned();
        let tagged = [
            event(),
            end(20),
            whole(0x81, reply),
            whole(0x81, b"{}"),
            control(&frames[3]),
            event(),
            long.clone(),
            control(&frames[5]),
            control(&frames[6]),
        ];
        let passing = [
            event(),
            end(20),
            event(),
            end(reply.len() as u64 + 2),
            event(),
            end(4),
            control(&frames[3]),
            event(),
            long,
            control(&frames[5]),
            control(&frames[6]),
        ];
        for (frames, expected) in [(Frames::Tagged, &tagged[..]), (Frames::Passing, &passing)] {
            for piece in CUTS {
                assert_eq!(
                    read_in_pieces(&frames, &bytes, piece).expect("good frames"),
                    expected,
                    "cut every {piece} bytes"
                );
            }
        }
    }

    #[test]
    fn an_event_is_told_whole_to_those_who_read_it() {
        let event = br#"{"action":"event","args":{}}"#;
        let frames = [
            Frame::new(Opcode::Text, event),
            Frame::new(Opcode::Text, b"{}"),
        ];
        let bytes: Vec<u8> = frames
            .iter()
            .flat_map(|frame| frame.bytes().to_vec())
            .collect();
        for piece in CUTS {
            assert_eq!(
                read_in_pieces(&Frames::Whole, &bytes, piece).expect("good frames"),
                [whole(0x81, event), whole(0x81, b"{}")],
                "cut every {piece} bytes"
            );
        }
    }

    #[test]
    fn a_deflated_frame_passes_only_where_it_may_come() {
        let reply = b"{\"action\":\"reply\"}";
        let bytes = [
            &[0xC1, 3, 1, 2, 3][..],
            Frame::new(Opcode::Text, reply).bytes(),
            &[0xC1, 0],
        ]
        .concat();
        let tagged = ["event", &end(5), &whole(0x81, reply), "event", &end(2)];
        let length = reply.len() as u64 + 2;
        let passing = ["event", &end(5), "event", &end(length), "event", &end(2)];
        for piece in CUTS {
            let read = |frames| read_in_pieces(&frames, &bytes, piece).expect("good frames");
            assert_eq!(read(Frames::TaggedDeflated), tagged);
            assert_eq!(read(Frames::PassingDeflated), passing);
        }
    }

    #[test]
    fn an_empty_frame_is_an_event_like_any_other_where_all_pass() {
        let bytes = [0x81, 0, 0x82, 0, 0x81, 1, b'x'];
        let expected = ["event", &end(2), "event", &end(2), "event", &end(3)];
        for piece in CUTS {
            assert_eq!(
                read_in_pieces(&Frames::Passing, &bytes, piece).expect("good frames"),
                expected
            );
        }
    }

    #[test]
    fn frames_that_no_server_sends_are_refused() {
        for (bytes, expected) in [
            (&[0x81, 0x80, 0, 0, 0, 0][..], BadUnit::Masked),
            (&[0x01, 0x02], BadUnit::Opcode(0x01)),
            (&[0xC1, 0x02], BadUnit::Opcode(0xC1)),
            (&[0x82, 0x02], BadUnit::Opcode(0x82)),
        ] {
            assert_eq!(
                Reader::default().feed(&Frames::Tagged, bytes, |_| {}),
                Err(expected),
                "{bytes:?}"
            );
        }
        let mut long = vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 1];
        long.extend_from_slice(&[b'{'; PREFIX_BYTES]);
        assert_eq!(
            Reader::default().feed(&Frames::Tagged, &long, |_| {}),
            Err(BadUnit::TooLong(65_537))
        );
        let huge = [0x82, 127, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF];
        assert_eq!(
            Reader::default().feed(&Frames::Passing, &huge, |_| {}),
            Err(BadUnit::TooLong(0xFFFF_FFFF))
        );
    }

    #[test]
    fn a_masked_frame_is_read_back_by_another_parser() {
        use std::io::Cursor;
        use tungstenite::protocol::frame::FrameHeader;
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'a'; length];
            let bytes = masked(TEXT, &payload);
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
