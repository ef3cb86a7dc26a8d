//! `tokio_broadcast`: a plain broadcast server on tokio and tokio-tungstenite, the way most Rust users would write
//! one, for the bench suite. A task a session waits for the next event and for its client; each event is a message
//! of a broadcast channel, shared and not copied, and is sent by itself.
//!
//! Every line on stdin is an event. The first line on stdout is `listening on IP:PORT`; the end of stdin ends it.
//! `--read-buffer BYTES` is the library's setting of that name, for all sessions. `--deflate` agrees to permessage-deflate
//! (RFC 7692), which the library does not have, the way most servers do that: each session deflates each event by itself.
//! `shared` is one compressor, which forgets after each message, as uWebSockets does with its `SHARED_COMPRESSOR`; `own` is one a session,
//! which remembers what it sent (context takeover).

#![allow(
    clippy::result_large_err,
    reason = "the type of the library's callback"
)]

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use blackhole::protocol::deflate::LEVEL;
use flate2::{Compress, Compression, FlushCompress};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::broadcast;
use tokio_tungstenite::accept_hdr_async_with_config;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

/// Events that a session may be behind; it is closed when it is further.
const EVENTS_BEHIND_MAX: usize = 64;

/// As many connects may wait for their accept as the load generator has under way, and more.
const BACKLOG: u32 = 4096;

const EXTENSIONS: &str = "Sec-WebSocket-Extensions";

/// What ends a flush, and is not sent (RFC 7692 section 7.2.1).
const FLUSH_BYTES: usize = 4;

/// What becomes of an event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deflate {
    /// It is sent as it is.
    Never,
    /// Each session has it deflated, by the compressor of all.
    Shared,
    /// By a compressor of its own.
    Own,
}

thread_local! {
    static SHARED: RefCell<Compress> = RefCell::new(compressor());
}

fn compressor() -> Compress {
    Compress::new(Compression::new(LEVEL), false)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mut config, mut deflate) = (WebSocketConfig::default(), Deflate::Never);
    for option in arguments.chunks(2) {
        match option.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["--read-buffer", bytes] => {
                config = config.read_buffer_size(bytes.parse().map_err(io::Error::other)?);
            }
            ["--deflate", "shared"] => deflate = Deflate::Shared,
            ["--deflate", "own"] => deflate = Deflate::Own,
            _ => {
                return Err(io::Error::other(
                    "usage: tokio_broadcast [--read-buffer BYTES] [--deflate shared|own]",
                ));
            }
        }
    }
    let socket = TcpSocket::new_v4()?;
    socket.set_nodelay(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let listener = socket.listen(BACKLOG)?;
    println!("listening on {}", listener.local_addr()?);
    let (events, _) = broadcast::channel(EVENTS_BEHIND_MAX);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                tokio::spawn(serve(stream, config, deflate, events.subscribe()));
            }
            line = lines.next_line() => match line? {
                // Nobody may be there to receive it.
                Some(line) => drop(events.send(Message::text(line))),
                None => return Ok(()),
            },
        }
    }
}

/// Serves one session until it ends, or is too far behind.
async fn serve(
    stream: TcpStream,
    config: WebSocketConfig,
    deflate: Deflate,
    mut events: broadcast::Receiver<Message>,
) {
    let mut is_agreed = false;
    let agree = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        let answer = match deflate {
            Deflate::Never => return Ok(response),
            Deflate::Shared => "permessage-deflate; server_no_context_takeover",
            Deflate::Own => "permessage-deflate",
        };
        let offer = request.headers().get(EXTENSIONS);
        is_agreed = offer.is_some_and(|it| it.as_bytes().starts_with(b"permessage-deflate"));
        if is_agreed {
            let headers = response.headers_mut();
            headers.insert(EXTENSIONS, HeaderValue::from_static(answer));
        }
        Ok(response)
    };
    let accepted = accept_hdr_async_with_config(stream, agree, Some(config)).await;
    let Ok(mut socket) = accepted else {
        return;
    };
    let mut own = (is_agreed && deflate == Deflate::Own).then(compressor);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => {
                    let event = match &mut own {
                        Some(compressor) => deflated(compressor, &event),
                        None if is_agreed => SHARED.with_borrow_mut(|compressor| {
                            compressor.reset();
                            deflated(compressor, &event)
                        }),
                        None => event,
                    };
                    if socket.send(event).await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            },
            message = socket.next() => match message {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
}

/// The message deflated (RFC 7692 section 7.2.1).
fn deflated(compressor: &mut Compress, message: &Message) -> Message {
    let text = message.to_text().unwrap_or_default().as_bytes();
    let mut payload = Vec::with_capacity(text.len() + 64);
    // There is room for more than the text, so that one call does all of it.
    let _ = compressor.compress_vec(text, &mut payload, FlushCompress::Sync);
    payload.truncate(payload.len().saturating_sub(FLUSH_BYTES));
    let header = FrameHeader {
        is_final: true,
        rsv1: true,
        opcode: OpCode::Data(Data::Text),
        ..FrameHeader::default()
    };
    Message::Frame(Frame::from_payload(header, payload.into()))
}
