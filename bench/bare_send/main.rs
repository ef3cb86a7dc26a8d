//! `bare_send`: the limit that a websocket server on one thread can reach with plain system calls.
//!
//! It upgrades and answers every command with success, so the load generator takes it for a server, and then does
//! nothing per event but the unavoidable: one preencoded frame to each socket, in accept order. No matching, no
//! outbox, no flush list, no poll between the sends.
//!
//! | line on stdin | what happens |
//! |---|---|
//! | `send K BYTES` | K rounds of one `send` of a BYTES long frame to each socket |
//! | `writev K BYTES` | one `writev` of K such frames, each in memory of its own, to each socket: perfect merging |
//! | `merged K BYTES` | one `send` of K such frames, copied together beforehand, to each socket: the floor |
//! | `patched K BYTES` | for each socket K such frames are copied to one scratch buffer, the session's request id is written into each, and one `send` takes them: the floor where each session has an id of its own |
//!
//! The request id, of 36 bytes, is that of the session's command; a session without one has a blank one.
//!
//! The limit of open files is the one it is started with. Each line is answered on stdout with `sent FRAMES waited N`: N is how often a socket was full and was waited for.

use std::io::{self, BufRead, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc::Receiver;

use blackhole::protocol::frame::{Frame, Opcode};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::event::{PollFd, PollFlags};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};

const LISTENER: Token = Token(usize::MAX);
const WAKE: Token = Token(usize::MAX - 1);

/// As many connects may wait for their accept as the load generator has under way, and more.
const BACKLOG: i32 = 4096;

fn main() -> io::Result<()> {
    let mut server = Server::new()?;
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {}", server.listener.local_addr()?)?;
    stdout.flush()?;
    let commands = stdin_lines(server.poll.registry())?;
    let mut events = Events::with_capacity(1024);
    loop {
        if let Err(error) = server.poll.poll(&mut events, None)
            && error.kind() != io::ErrorKind::Interrupted
        {
            return Err(error);
        }
        for event in &events {
            match event.token() {
                LISTENER => server.accept()?,
                WAKE => {}
                Token(index) => server.read(index),
            }
        }
        loop {
            match commands.try_recv() {
                Ok(line) => {
                    writeln!(stdout, "{}", server.run(&line)?)?;
                    stdout.flush()?;
                }
                Err(std::sync::mpsc::TryRecvError::Empty) => break,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }
}

/// Lines of stdin, read on a thread of their own, which wakes the loop.
fn stdin_lines(registry: &mio::Registry) -> io::Result<Receiver<String>> {
    let (to_loop, lines) = std::sync::mpsc::channel();
    let waker = Waker::new(registry, WAKE)?;
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            for line in io::stdin().lock().lines() {
                let Ok(line) = line else { break };
                if to_loop.send(line).is_err() || waker.wake().is_err() {
                    return;
                }
            }
            drop(to_loop);
            // The loop is about to end with the process; a wake that fails has nobody to tell.
            let _ = waker.wake();
        })?;
    Ok(lines)
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    /// In accept order; a session that ended leaves its place empty.
    sessions: Vec<Option<Session>>,
}

struct Session {
    stream: TcpStream,
    is_upgraded: bool,
    request_id: [u8; REQUEST_ID_BYTES],
}

/// Length of a GUID's text.
const REQUEST_ID_BYTES: usize = 36;

/// What a frame of `patched` ends with, the request id in between.
const BEFORE_ID: &str = r#"","request_id":""#;
const AFTER_ID: &str = r#""}"#;

impl Server {
    fn new() -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))?;
        socket.listen(BACKLOG)?;
        let mut listener = TcpListener::from_std(socket.into());
        let poll = Poll::new()?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            sessions: Vec::new(),
        })
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            self.poll.registry().register(
                &mut stream,
                Token(self.sessions.len()),
                Interest::READABLE,
            )?;
            self.sessions.push(Some(Session {
                stream,
                is_upgraded: false,
                request_id: [b' '; REQUEST_ID_BYTES],
            }));
        }
    }

    /// The load generator sends one request, then one command, each in one segment: both are read whole here.
    fn read(&mut self, index: usize) {
        let Some(session) = &mut self.sessions[index] else {
            return;
        };
        let mut buffer = [0; 8192];
        loop {
            match session.stream.read(&mut buffer) {
                Ok(length) if length > 0 && session.answer(&buffer[..length]).is_some() => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => break,
            }
        }
        self.sessions[index] = None;
    }

    fn run(&self, line: &str) -> io::Result<String> {
        let mut words = line.split_ascii_whitespace();
        let number =
            |words: &mut std::str::SplitAsciiWhitespace<'_>| words.next()?.parse::<usize>().ok();
        let (kind, each, bytes) = (words.next(), number(&mut words), number(&mut words));
        let (Some(kind), Some(each), Some(bytes)) = (kind, each, bytes) else {
            return Err(io::Error::other(format!("unknown command {line:?}")));
        };
        let blank = " ".repeat(REQUEST_ID_BYTES);
        let end = match kind {
            "patched" => format!("{BEFORE_ID}{blank}{AFTER_ID}"),
            _ => AFTER_ID.to_owned(),
        };
        let frame = event_frame(bytes, &end)?;
        let mut waited = 0;
        match kind {
            "send" => {
                for _ in 0..each {
                    waited += self.send_to_all(&[frame.bytes()])?;
                }
            }
            "writev" => {
                let frames: Vec<_> = (0..each).map(|_| frame.bytes().to_vec()).collect();
                waited = self.send_to_all(&frames.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
            }
            "merged" => waited = self.send_to_all(&[&frame.bytes().repeat(each)])?,
            "patched" => waited = self.patch_and_send_to_all(&frame.bytes().repeat(each), bytes)?,
            _ => return Err(io::Error::other(format!("unknown command {line:?}"))),
        }
        Ok(format!(
            "sent {} waited {waited}",
            each * self.sessions.iter().flatten().count()
        ))
    }

    /// One system call a socket for all of `frames`; says how often a socket was full and was waited for.
    fn send_to_all(&self, frames: &[&[u8]]) -> io::Result<u64> {
        let mut waited = 0;
        let mut slices = Vec::with_capacity(frames.len());
        for session in self.sessions.iter().flatten() {
            slices.clear();
            slices.extend(frames.iter().map(|frame| IoSlice::new(frame)));
            waited += session.send(&mut slices)?;
        }
        Ok(waited)
    }

    /// One system call a socket for a copy of `frames`, each `frame_bytes` long, with the session's request id in each;
    /// says how often a socket was full and was waited for.
    fn patch_and_send_to_all(&self, frames: &[u8], frame_bytes: usize) -> io::Result<u64> {
        let mut waited = 0;
        let mut scratch = vec![0; frames.len()];
        let id = frame_bytes - AFTER_ID.len() - REQUEST_ID_BYTES..frame_bytes - AFTER_ID.len();
        for session in self.sessions.iter().flatten() {
            scratch.copy_from_slice(frames);
            for frame in scratch.chunks_exact_mut(frame_bytes) {
                frame[id.clone()].copy_from_slice(&session.request_id);
            }
            waited += session.send(&mut [IoSlice::new(&scratch)])?;
        }
        Ok(waited)
    }
}

impl Session {
    /// Sends all of `slices`; says how often the socket was full and was waited for.
    fn send(&self, mut slices: &mut [IoSlice<'_>]) -> io::Result<u64> {
        let mut waited = 0;
        while !slices.is_empty() {
            let sent = match &slices[..] {
                [one] => (&self.stream).write(one),
                several => (&self.stream).write_vectored(several),
            };
            match sent {
                Ok(sent) => IoSlice::advance_slices(&mut slices, sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    waited += 1;
                    let poll = PollFd::new(&self.stream, PollFlags::OUT);
                    rustix::event::poll(&mut [poll], None)?;
                }
                // The client has gone; the frames it misses fail the run at its end.
                Err(_) => break,
            }
        }
        Ok(waited)
    }

    /// Answers the upgrade request, or one command; `None`: the session is of no use.
    fn answer(&mut self, bytes: &[u8]) -> Option<()> {
        if self.is_upgraded {
            let mut rest = io::Cursor::new(bytes);
            let (header, _) = FrameHeader::parse(&mut rest).ok()??;
            let is_text = header.opcode == OpCode::Data(Data::Text);
            if is_text {
                let mask = header.mask.unwrap_or_default();
                let payload = bytes.iter().skip(rest.position() as usize);
                let command: Vec<u8> = payload
                    .zip(mask.iter().cycle())
                    .map(|(b, k)| b ^ k)
                    .collect();
                self.request_id = request_id(&command).unwrap_or(self.request_id);
                let reply = br#"{"action":"reply","request_id":"0","status":"success","data":{"subscribed":[]}}"#;
                self.stream
                    .write_all(Frame::new(Opcode::Text, reply).bytes())
                    .ok()?;
            }
            return Some(());
        }
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        request.parse(bytes).ok()?.is_complete().then_some(())?;
        let key = request
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("sec-websocket-key"))?;
        let accept = derive_accept_key(key.value);
        let response = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        self.is_upgraded = true;
        self.stream.write_all(response.as_bytes()).ok()
    }
}

/// The request id of a command that has one of the right length.
fn request_id(command: &[u8]) -> Option<[u8; REQUEST_ID_BYTES]> {
    let command: serde_json::Value = serde_json::from_slice(command).ok()?;
    command["request_id"].as_str()?.as_bytes().try_into().ok()
}

/// An event frame of `bytes`, header included, that ends with `end`; the load generator counts it like any other. Fails
/// for lengths that no frame has: too short for that, and where the header grows (128, 129, 65,540 to 65,545).
fn event_frame(bytes: usize, end: &str) -> io::Result<Frame> {
    const START: &str = r#"{"action":"event","args":""#;
    let header = match bytes {
        0..=127 => 2,
        128..=0x1_0003 => 4,
        _ => 10,
    };
    let filler = bytes.saturating_sub(header + START.len() + end.len());
    let frame = Frame::new(
        Opcode::Text,
        format!("{START}{}{end}", "x".repeat(filler)).as_bytes(),
    );
    if frame.len() == bytes {
        Ok(frame)
    } else {
        Err(io::Error::other(format!(
            "no event frame has {bytes} bytes"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_the_length_asked_for() {
        for bytes in [30, 127, 130, 1250, 65_539, 65_546, 70_000] {
            let frame = event_frame(bytes, AFTER_ID).expect("a possible length");
            assert_eq!(frame.len(), bytes);
        }
        for bytes in [0, 29, 128, 129, 65_540, 65_545] {
            assert!(event_frame(bytes, AFTER_ID).is_err(), "{bytes}");
        }
    }

    #[test]
    fn a_request_id_is_taken_from_the_command() {
        let id = "0b5d3f2e-8a1c-4c55-9d0e-1f2a3b4c5d6e";
        let command = format!(r#"{{"request_id":"{id}"}}"#);
        let taken = request_id(command.as_bytes()).expect("it has one");
        assert_eq!(taken, id.as_bytes());
        for command in [
            r#"{"request_id":"short"}"#,
            r#"{"request_id":1}"#,
            "{}",
            "no JSON",
        ] {
            assert_eq!(request_id(command.as_bytes()), None, "{command}");
        }
    }
}
