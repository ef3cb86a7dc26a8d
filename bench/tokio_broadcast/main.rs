//! `tokio_broadcast`: a plain broadcast server on tokio and tokio-tungstenite, the way most Rust users would write
//! one, for the bench suite. A task a session waits for the next event and for its client; each event is a message
//! of a broadcast channel, shared and not copied, and is sent by itself.
//!
//! Every line on stdin is an event. The first line on stdout is `listening on IP:PORT`; the end of stdin ends it.
//! `--read-buffer BYTES` is the library's setting of that name, for all sessions.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::broadcast;
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Events that a session may be behind; it is closed when it is further.
const EVENTS_BEHIND_MAX: usize = 64;

/// As many connects may wait for their accept as the load generator has under way, and more.
const BACKLOG: u32 = 4096;

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut config = WebSocketConfig::default();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {}
        ["--read-buffer", bytes] => {
            config = config.read_buffer_size(bytes.parse().map_err(io::Error::other)?);
        }
        _ => {
            return Err(io::Error::other(
                "usage: tokio_broadcast [--read-buffer BYTES]",
            ));
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
                tokio::spawn(serve(stream, config, events.subscribe()));
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
    mut events: broadcast::Receiver<Message>,
) {
    let Ok(mut socket) = accept_async_with_config(stream, Some(config)).await else {
        return;
    };
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => {
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
