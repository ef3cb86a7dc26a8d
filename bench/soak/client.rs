//! One websocket client of the soak: its socket, what waits to be written, and what the server says.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use serde::Deserialize;

use crate::world::Numbered;
use shared::frames::{Frames, PONG, TEXT, WholeFrame, masked};
use shared::reader::{KEPT_BYTES_MAX, Reader, Seen};
use shared::socket;

/// Size of the buffer that a thread reads all its clients through.
pub(crate) const BUFFER_BYTES: usize = KEPT_BYTES_MAX + (64 << 10);

/// Something that the server did.
#[derive(Debug)]
pub(crate) enum Heard {
    /// It took the connection.
    Connected,
    /// It upgraded the session.
    Upgraded,
    /// A text message.
    Text(Message),
    /// A close frame.
    Close(u16),
    /// An answer to the upgrade request that is none.
    Refused(String),
    /// The connection has ended, in good order or not.
    Ended(io::ErrorKind),
    /// Something that a server must not say.
    Nonsense(String),
}

/// A text message of the server.
#[derive(Debug)]
pub(crate) enum Message {
    /// An event of the soak.
    Event {
        subscribed_key: String,
        request_id: Option<String>,
        numbered: Numbered,
        cursor: Option<String>,
        is_replayed: bool,
    },
    /// A gap notice.
    Gap(Gap),
    /// A replay is over: so many events.
    Resumed(u64),
    /// A reply.
    Reply(Reply),
}

/// The cause of a gap.
#[derive(Debug)]
pub(crate) enum Gap {
    /// The event source was away for so many microseconds.
    Source(u64),
    /// The session reads too slowly.
    Slow,
    /// A resume came to nothing, or its replay was broken off: why.
    Resume(String),
}

/// A reply.
#[derive(Debug)]
pub(crate) struct Reply {
    /// None for a success.
    pub(crate) errors: Vec<String>,
    pub(crate) cursor: Option<String>,
    pub(crate) resumed: Option<bool>,
}

/// Whatever a text may hold.
#[derive(Deserialize)]
struct Text {
    action: String,
    name: Option<String>,
    request_id: Option<String>,
    subscribed_key: Option<String>,
    status: Option<String>,
    args: Option<Numbered>,
    data: Option<Data>,
    cursor: Option<String>,
    #[serde(default)]
    replayed: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Data {
    Event(Numbered),
    Other {
        reason: Option<String>,
        seconds: Option<f64>,
        errors: Option<Vec<String>>,
        cursor: Option<String>,
        resumed: Option<bool>,
        events: Option<u64>,
        why: Option<String>,
    },
}

impl Message {
    fn parse(text: &[u8]) -> Result<Self, String> {
        let nonsense = || {
            let shown = &text[..text.len().min(300)];
            format!("not understood: {}", String::from_utf8_lossy(shown))
        };
        let text: Text = serde_json::from_slice(text).map_err(|_| nonsense())?;
        match (&*text.action, text.args, text.data) {
            ("event", Some(numbered), None) | ("event", None, Some(Data::Event(numbered))) => {
                Ok(Self::Event {
                    subscribed_key: text.subscribed_key.ok_or_else(nonsense)?,
                    request_id: text.request_id,
                    numbered,
                    cursor: text.cursor,
                    is_replayed: text.replayed,
                })
            }
            (
                "notice",
                None,
                Some(Data::Other {
                    reason,
                    seconds,
                    events,
                    why,
                    ..
                }),
            ) => match (text.name.as_deref(), reason.as_deref()) {
                (Some("resumed"), None) => Ok(Self::Resumed(events.ok_or_else(nonsense)?)),
                (Some("gap"), Some("event_source")) => {
                    let seconds = seconds.ok_or_else(nonsense)?;
                    Ok(Self::Gap(Gap::Source((seconds * 1e6) as u64)))
                }
                (Some("gap"), Some("slow_consumer")) => Ok(Self::Gap(Gap::Slow)),
                (Some("gap"), Some("resume")) => {
                    Ok(Self::Gap(Gap::Resume(why.ok_or_else(nonsense)?)))
                }
                _ => Err(nonsense()),
            },
            (
                "reply",
                None,
                Some(Data::Other {
                    errors,
                    cursor,
                    resumed,
                    ..
                }),
            ) => {
                let errors = match text.status.as_deref() {
                    Some("success") => Vec::new(),
                    Some("error") => errors.ok_or_else(nonsense)?,
                    _ => return Err(nonsense()),
                };
                Ok(Self::Reply(Reply {
                    errors,
                    cursor,
                    resumed,
                }))
            }
            _ => Err(nonsense()),
        }
    }
}

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    reader: Reader,
    is_connected: bool,
    is_upgraded: bool,
    unsent: Vec<u8>,
}

impl Client {
    /// Begins to connect; see [`socket::connect`].
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn connect(
        address: SocketAddr,
        source: Option<Ipv4Addr>,
        receive_buffer: Option<usize>,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let mut stream = socket::connect(address, source, receive_buffer)?;
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self {
            stream,
            reader: Reader::default(),
            is_connected: false,
            is_upgraded: false,
            unsent: Vec::new(),
        })
    }

    /// Sends bytes; what the socket does not take waits. A broken connection is found by the next read.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        if self.is_connected {
            self.flush();
        }
    }

    /// Sends a text message.
    pub(crate) fn send_text(&mut self, text: &str) {
        self.send(&masked(TEXT, text.as_bytes()));
    }

    fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.unsent.clear();
                    }
                    return;
                }
            }
        }
    }

    /// Goes on after the poll has told of the socket; what is new is added to `heard`. With `is_deaf` nothing is read.
    pub(crate) fn turn(
        &mut self,
        is_writable: bool,
        is_deaf: bool,
        buffer: &mut [u8],
        heard: &mut Vec<Heard>,
    ) {
        if is_writable && !self.is_connected {
            if let Some(error) = self.stream.take_error().ok().flatten() {
                return heard.push(Heard::Ended(error.kind()));
            }
            self.is_connected = true;
            heard.push(Heard::Connected);
        }
        if is_writable {
            self.flush();
        }
        if self.is_connected && !is_deaf {
            self.read(buffer, heard);
        }
    }

    fn read(&mut self, buffer: &mut [u8], heard: &mut Vec<Heard>) {
        loop {
            let filled = match socket::fill(&mut self.stream, &mut self.reader, buffer) {
                Ok(Some(filled)) => filled,
                Ok(None) => return,
                Err(error) => return heard.push(Heard::Ended(error.kind())),
            };
            let mut bytes = &buffer[..filled];
            if !self.is_upgraded {
                match socket::head_length(bytes) {
                    Ok(Some(head)) => {
                        self.is_upgraded = true;
                        heard.push(Heard::Upgraded);
                        bytes = &bytes[head..];
                    }
                    Ok(None) => {
                        self.reader.stash(bytes);
                        continue;
                    }
                    // The connection's end is still to come.
                    Err(complaint) => {
                        heard.push(Heard::Refused(complaint));
                        continue;
                    }
                }
            }
            let mut pongs = Vec::new();
            let fed = self.reader.feed(&Frames::Whole, bytes, |seen| {
                let Seen::Whole { kind, payload } = seen else {
                    return;
                };
                match WholeFrame::of(kind) {
                    WholeFrame::Text => heard.push(match Message::parse(payload) {
                        Ok(message) => Heard::Text(message),
                        Err(complaint) => Heard::Nonsense(complaint),
                    }),
                    WholeFrame::Ping => pongs.extend(masked(PONG, payload)),
                    WholeFrame::Close => {
                        let code = payload.first_chunk().copied().map(u16::from_be_bytes);
                        heard.push(Heard::Close(code.unwrap_or(1005)));
                    }
                    WholeFrame::Pong => {}
                }
            });
            if let Err(error) = fed {
                return heard.push(Heard::Nonsense(error.to_string()));
            }
            if !pongs.is_empty() {
                self.send(&pongs);
            }
        }
    }
}
