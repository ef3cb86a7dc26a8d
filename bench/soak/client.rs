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
    },
    /// A gap notice: the length of the gap in microseconds if the event source was away, else none.
    Gap(Option<u64>),
    /// A reply; its errors, none for a success.
    Reply(Vec<String>),
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
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Data {
    Event(Numbered),
    Other {
        reason: Option<String>,
        seconds: Option<f64>,
        errors: Option<Vec<String>>,
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
                })
            }
            (
                "notice",
                None,
                Some(Data::Other {
                    reason, seconds, ..
                }),
            ) if text.name.as_deref() == Some("gap") && reason.is_some() => {
                Ok(Self::Gap(seconds.map(|seconds| (seconds * 1e6) as u64)))
            }
            ("reply", None, Some(Data::Other { errors, .. })) => match text.status.as_deref() {
                Some("success") => Ok(Self::Reply(Vec::new())),
                Some("error") => Ok(Self::Reply(errors.ok_or_else(nonsense)?)),
                _ => Err(nonsense()),
            },
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
