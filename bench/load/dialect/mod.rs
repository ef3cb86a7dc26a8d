//! What the server speaks over the websocket: how a session subscribes, and what of the server's bytes is an event.
//!
//! | dialect | after the upgrade the session sends | an event is |
//! |---|---|---|
//! | `blackhole` | commands of PROTOCOL 3 | a text frame that begins with `{"action":"event"` |
//! | `mqtt` | CONNECT and SUBSCRIBE of MQTT 3.1.1 at QoS 0 | a PUBLISH packet, wherever the frames cut it |
//! | `nats` | CONNECT, SUB and PING of the NATS protocol | a MSG, wherever the frames cut it |
//! | `plain` | nothing | any text or binary frame |
//!
//! `blackhole-deflate` and `plain-deflate` are the same with permessage-deflate (RFC 7692) offered, as browsers offer it. A
//! deflated event is counted and not inflated.

mod blackhole;
mod mqtt;
mod nats;

use shared::frames::{BINARY, Frames, TEXT, WholeFrame, masked};
use shared::reader::{BadUnit, Format, Piece, Reader, Seen};

/// The server's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Dialect {
    /// This project's own
    Blackhole,
    /// MQTT 3.1.1 in binary frames, subscribed at QoS 0
    Mqtt,
    /// The NATS protocol in binary frames
    Nats,
    /// Every frame is an event, and a session is subscribed when it is upgraded
    Plain,
    /// This project's own, with permessage-deflate offered
    BlackholeDeflate,
    /// As plain, with permessage-deflate offered
    PlainDeflate,
}

impl Dialect {
    /// The `Sec-WebSocket-Protocol` to ask for.
    #[must_use]
    pub(crate) fn sub_protocol(self) -> Option<&'static str> {
        match self {
            Self::Mqtt => Some("mqtt"),
            Self::Blackhole
            | Self::BlackholeDeflate
            | Self::Nats
            | Self::Plain
            | Self::PlainDeflate => None,
        }
    }

    /// The `Sec-WebSocket-Extensions` to ask for.
    #[must_use]
    pub(crate) fn extension(self) -> Option<&'static str> {
        match self {
            Self::BlackholeDeflate | Self::PlainDeflate => {
                Some("permessage-deflate; client_max_window_bits")
            }
            Self::Blackhole | Self::Mqtt | Self::Nats | Self::Plain => None,
        }
    }

    /// The frames that session number `n` sends after the upgrade. `subscribes`: the commands, topic filters or
    /// subjects.
    #[must_use]
    pub(crate) fn opening(self, n: usize, subscribes: &[String]) -> Vec<u8> {
        match self {
            Self::Blackhole | Self::BlackholeDeflate => subscribes
                .iter()
                .flat_map(|command| masked(TEXT, command.as_bytes()))
                .collect(),
            Self::Mqtt => masked(BINARY, &mqtt::opening(n, subscribes)),
            Self::Nats => masked(BINARY, nats::opening(subscribes).as_bytes()),
            Self::Plain | Self::PlainDeflate => Vec::new(),
        }
    }

    /// The frame of a command, sent at `sent`, whose answer is [`Meaning::Pong`]; `None`: there is no such command.
    #[must_use]
    pub(crate) fn ping_command(self, sent: u64) -> Option<Vec<u8>> {
        match self {
            Self::Blackhole | Self::BlackholeDeflate => {
                Some(masked(TEXT, blackhole::ping(sent).as_bytes()))
            }
            Self::Mqtt | Self::Nats | Self::Plain | Self::PlainDeflate => None,
        }
    }

    /// How often [`Meaning::Granted`] comes until all of so many subscribes are in force.
    #[must_use]
    pub(crate) fn grants(self, subscribes: usize) -> usize {
        match self {
            Self::Blackhole | Self::BlackholeDeflate => subscribes,
            Self::Mqtt | Self::Nats | Self::Plain | Self::PlainDeflate => subscribes.min(1),
        }
    }

    /// What a message that is no event means.
    #[must_use]
    pub(crate) fn meaning(self, kind: u8, payload: &[u8]) -> Meaning {
        match self {
            Self::Blackhole | Self::BlackholeDeflate => blackhole::meaning(payload),
            Self::Mqtt => mqtt::meaning(kind, payload),
            Self::Nats => nats::meaning(payload),
            Self::Plain | Self::PlainDeflate => Meaning::Nothing,
        }
    }
}

/// What the engine has to do about a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Nothing.
    Nothing,
    /// A subscription of the session is in force, or all are: [`Dialect::grants`].
    Granted,
    /// The answer to the [ping command](Dialect::ping_command) that was sent then.
    Pong { sent: u64 },
    /// Events for the session were lost: as many as the server numbers.
    Gap { dropped: u64 },
    /// These bytes are to be sent.
    Answer(Vec<u8>),
    /// The session is of no use, for this reason.
    Refused(String),
}

/// What a session hears.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard<'a> {
    /// An event begins.
    EventBegins(Piece<'a>),
    /// More bytes of the event.
    EventGoesOn(Piece<'a>),
    /// The last byte of an event has been read; `bytes` of its frame, or of its packet inside the frames.
    Event { bytes: u64 },
    /// A message that is no event, whole; `kind` is the first byte of its header.
    Message { kind: u8, payload: &'a [u8] },
    /// A websocket ping to be answered.
    Ping(&'a [u8]),
    /// The answer to a ping, with its payload.
    Pong(&'a [u8]),
    /// The server says goodbye.
    Close(&'a [u8]),
}

/// Where one session's bytes stand.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    frames: Reader,
    /// Of the dialects whose packets lie in the frames like in a byte stream.
    packets: Reader,
}

impl Stream {
    /// The reader of the frames, which keeps what a read has cut.
    pub(crate) fn frames(&mut self) -> &mut Reader {
        &mut self.frames
    }

    /// Reads the frames in `bytes` and tells `hear` what they are. Linear in frames and packets, not in the bytes
    /// of events.
    ///
    /// # Errors
    /// [`BadUnit`]: the stream cannot be read on.
    pub(crate) fn feed(
        &mut self,
        dialect: Dialect,
        bytes: &[u8],
        mut hear: impl FnMut(Heard<'_>),
    ) -> Result<(), BadUnit> {
        let frames = match dialect {
            Dialect::Blackhole => Frames::Tagged,
            Dialect::BlackholeDeflate => Frames::TaggedDeflated,
            Dialect::Plain => Frames::Passing,
            Dialect::PlainDeflate => Frames::PassingDeflated,
            Dialect::Mqtt => return self.feed_packets(&mqtt::Packets, bytes, hear),
            Dialect::Nats => return self.feed_packets(&nats::Lines, bytes, hear),
        };
        self.frames
            .feed(&frames, bytes, |seen| hear_frame(seen, &mut hear))
    }

    fn feed_packets(
        &mut self,
        format: &impl Format,
        bytes: &[u8],
        mut hear: impl FnMut(Heard<'_>),
    ) -> Result<(), BadUnit> {
        let packets = &mut self.packets;
        let mut fed = Ok(());
        self.frames
            .feed(&Frames::Passing, bytes, |seen| match seen {
                Seen::Begin(piece) | Seen::More(piece) => {
                    if fed.is_ok() {
                        fed = packets.feed_joined(format, piece.bytes, |seen| {
                            hear_packet(seen, &mut hear);
                        });
                    }
                }
                Seen::End { .. } => {}
                Seen::Whole { .. } => hear_frame(seen, &mut hear),
            })?;
        fed
    }
}

/// A frame where each passing one is an event.
fn hear_frame(seen: Seen<'_>, hear: &mut impl FnMut(Heard<'_>)) {
    match seen {
        Seen::Whole { kind, payload } => match WholeFrame::of(kind) {
            WholeFrame::Text => hear(Heard::Message { kind, payload }),
            WholeFrame::Ping => hear(Heard::Ping(payload)),
            WholeFrame::Pong => hear(Heard::Pong(payload)),
            WholeFrame::Close => hear(Heard::Close(payload)),
        },
        Seen::Begin(_) | Seen::More(_) | Seen::End { .. } => hear_packet(seen, hear),
    }
}

fn hear_packet(seen: Seen<'_>, hear: &mut impl FnMut(Heard<'_>)) {
    match seen {
        Seen::Begin(piece) => hear(Heard::EventBegins(piece)),
        Seen::More(piece) => hear(Heard::EventGoesOn(piece)),
        Seen::End { bytes } => hear(Heard::Event { bytes }),
        Seen::Whole { kind, payload } => hear(Heard::Message { kind, payload }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is heard of `bytes` when they come in pieces.
    fn hear_in_pieces(dialect: Dialect, bytes: &[u8], piece: usize) -> Vec<String> {
        let mut stream = Stream::default();
        let mut buffer = vec![0; shared::reader::KEPT_BYTES_MAX + 4096];
        let mut told = Vec::new();
        for piece in bytes.chunks(piece.min(4000)) {
            let kept = stream.frames().unstash(&mut buffer);
            buffer[kept..kept + piece.len()].copy_from_slice(piece);
            let fed = stream.feed(dialect, &buffer[..kept + piece.len()], |heard| {
                if !matches!(heard, Heard::EventBegins(_) | Heard::EventGoesOn(_)) {
                    told.push(format!("{heard:?}"));
                }
            });
            fed.expect("a good stream");
        }
        told
    }

    /// `packets` in frames of `frame_bytes`, with a ping between the frames.
    fn framed(packets: &[u8], frame_bytes: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in packets.chunks(frame_bytes) {
            bytes.extend_from_slice(&[0x82, 126]);
            bytes.extend_from_slice(&(piece.len() as u16).to_be_bytes());
            bytes.extend_from_slice(piece);
            bytes.extend_from_slice(&[0x89, 0]);
        }
        bytes
    }

    #[test]
    fn packets_are_heard_whole_however_frames_and_reads_cut_them() {
        let publish = |bytes: usize| {
            let body = vec![b'x'; bytes];
            [
                &[0x30, 0x80 | (bytes % 128) as u8, (bytes / 128) as u8],
                &body[..],
            ]
            .concat()
        };
        let mqtt = [
            &[0x20, 2, 0, 0][..],
            &[0x90, 3, 0, 1, 0],
            &publish(1030),
            &publish(300),
            &[0xD0, 0],
        ]
        .concat();
        let mqtt_heard = [
            Heard::Message {
                kind: 0x20,
                payload: &[0, 0],
            },
            Heard::Message {
                kind: 0x90,
                payload: &[0, 1, 0],
            },
            Heard::Event { bytes: 1033 },
            Heard::Event { bytes: 303 },
            Heard::Message {
                kind: 0xD0,
                payload: &[],
            },
        ];
        let body = "y".repeat(1000);
        let nats = format!(
            "INFO {{\"x\":1}}\r\nPONG\r\nMSG events 1 1000\r\n{body}\r\nMSG events 1 reply 4\r\nMSG \r\nPING\r\n"
        );
        let line = |payload: &'static str| Heard::Message {
            kind: payload.as_bytes()[0],
            payload: payload.as_bytes(),
        };
        let nats_heard = [
            line("INFO {\"x\":1}\r\n"),
            line("PONG\r\n"),
            Heard::Event { bytes: 19 + 1002 },
            Heard::Event { bytes: 22 + 6 },
            line("PING\r\n"),
        ];
        for (dialect, packets, heard) in [
            (Dialect::Mqtt, &mqtt[..], &mqtt_heard),
            (Dialect::Nats, nats.as_bytes(), &nats_heard),
        ] {
            let heard: Vec<_> = heard.iter().map(|heard| format!("{heard:?}")).collect();
            for frame_bytes in [1, 2, 5, 130, 1033, packets.len()] {
                let bytes = framed(packets, frame_bytes);
                for piece in [1, 2, 3, 7, 100, bytes.len()] {
                    let (pings, others): (Vec<_>, Vec<_>) = hear_in_pieces(dialect, &bytes, piece)
                        .into_iter()
                        .partition(|heard| *heard == format!("{:?}", Heard::Ping(&[])));
                    assert_eq!(
                        others, heard,
                        "{dialect:?}, frames of {frame_bytes}, cut every {piece}"
                    );
                    assert_eq!(pings.len(), packets.len().div_ceil(frame_bytes));
                }
            }
        }
    }

    #[test]
    fn a_stream_with_a_bad_packet_cannot_be_read_on() {
        for (dialect, packet, expected) in [
            (Dialect::Mqtt, &b"\x32\x02ab"[..], BadUnit::Opcode(0x32)),
            (Dialect::Mqtt, b"\x30\xff\xff\xff\xff\x01", BadUnit::Length),
            (Dialect::Nats, b"MSG events 1 x\r\n", BadUnit::Length),
            (Dialect::Nats, b"MSG\r\n", BadUnit::Length),
        ] {
            let fed = Stream::default().feed(dialect, &framed(packet, 1000), |_| {});
            assert_eq!(fed, Err(expected), "{packet:?}");
        }
    }
}
