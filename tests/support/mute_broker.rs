//! A broker that logs clients in, answers their first questions, and then only beats its heart; or one that answers all,
//! in a manner of its own.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xCE;

/// What a broker that answers everything does otherwise than others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Nothing.
    Plain,
    /// It closes a connection that declares a transient queue, as RabbitMQ 4 can be set to.
    DurableOnly,
    /// It lets nobody consume.
    NoConsumers,
    /// Its queue is always there and has nine messages; a consumer of the nth connection gets the nth of these lists: bodies,
    /// and whether each has the redelivered flag.
    Delivers(Vec<Vec<(&'static str, bool)>>),
}

/// A running one; its connections end with their clients.
pub struct MuteBroker {
    port: u16,
    questions: Arc<AtomicUsize>,
}

impl MuteBroker {
    /// Answers `answers` questions of each connection after its login.
    pub fn start(answers: usize) -> Self {
        Self::start_as(answers, Manner::Plain)
    }

    /// Answers everything.
    pub fn start_with(manner: Manner) -> Self {
        Self::start_as(usize::MAX, manner)
    }

    fn start_as(answers: usize, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let questions = Arc::new(AtomicUsize::new(0));
        let counted = questions.clone();
        thread::spawn(move || {
            for (connection, socket) in listener.incoming().map_while(Result::ok).enumerate() {
                let (counted, manner) = (counted.clone(), manner.clone());
                thread::spawn(move || serve(socket, answers, &manner, connection, &counted));
            }
        });
        Self { port, questions }
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Questions of all connections after their login, answered or not.
    pub fn questions(&self) -> usize {
        self.questions.load(Ordering::SeqCst)
    }
}

fn serve(
    mut socket: TcpStream,
    answers: usize,
    manner: &Manner,
    connection: usize,
    questions: &AtomicUsize,
) -> io::Result<()> {
    let mut greeting = [0; 8];
    socket.read_exact(&mut greeting)?;
    // Version 0.9, no properties, one mechanism, one locale.
    let start = [
        &[0, 9, 0, 0, 0, 0][..],
        b"\0\0\0\x05PLAIN",
        b"\0\0\0\x05en_US",
    ]
    .concat();
    socket.write_all(&method(0, 10, 10, &start))?;
    let mut heart = socket.try_clone()?;
    let mut asked = 0;
    loop {
        let (kind, channel, payload) = read_frame(&mut socket)?;
        let [class, _, number, ..] = *payload.get(1..).unwrap_or_default() else {
            continue;
        };
        if kind != METHOD {
            continue;
        }
        let is_declaration = (class, number) == (50, 10);
        if *manner == Manner::DurableOnly && is_declaration && is_transient(&payload) {
            let text = b"INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.";
            let close = [&541_u16.to_be_bytes()[..], &short(text), &[0, 50, 0, 10]].concat();
            heart.write_all(&method(0, 10, 50, &close))?;
            continue;
        }
        if *manner == Manner::NoConsumers && (class, number) == (60, 20) {
            let text = b"ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use";
            let close = [&403_u16.to_be_bytes()[..], &short(text), &[0, 60, 0, 20]].concat();
            heart.write_all(&method(channel, 20, 40, &close))?;
            continue;
        }
        let answer: (u8, &[u8]) = match (class, number) {
            // Channels up to 2,047, frames up to 128 KiB, a heartbeat of 5 s.
            (10, 11) => (30, b"\x07\xff\0\x02\0\0\0\x05"),
            (10, 31) => {
                let mut heart = heart.try_clone()?;
                thread::spawn(move || {
                    let beat = [HEARTBEAT, 0, 0, 0, 0, 0, 0, FRAME_END];
                    while heart.write_all(&beat).is_ok() {
                        thread::sleep(Duration::from_secs(1));
                    }
                });
                continue;
            }
            (10, 40) => (41, b"\0"),
            (10, 50) => (51, b""),
            (20, 10) => (11, b"\0\0\0\0"),
            (20, 40) => (41, b""),
            (40, 10) => (11, b""),
            (50, 10) if matches!(manner, Manner::Delivers(_)) => (11, b"\x01q\0\0\0\x09\0\0\0\0"),
            (50, 10) => (11, b"\x01q\0\0\0\0\0\0\0\0"),
            (50, 40) => (41, b"\0\0\0\0"),
            (50, 20) => (21, b""),
            (50, 50) => (51, b""),
            (60, 10) => (11, b""),
            (60, 20) => (21, b"\x01c"),
            (60, 30) => (31, b"\x01c"),
            (60, 70) => (72, b"\0"),
            _ => continue,
        };
        let is_login = class == 10;
        if !is_login {
            asked += 1;
            questions.fetch_add(1, Ordering::SeqCst);
        }
        if is_login || asked <= answers {
            heart.write_all(&method(channel, class, answer.0, answer.1))?;
        }
        if let Manner::Delivers(lists) = manner
            && (class, number) == (60, 20)
        {
            for (tag, (body, is_flagged)) in (1..).zip(lists.get(connection).into_iter().flatten())
            {
                heart.write_all(&delivery(channel, tag, body, *is_flagged))?;
            }
        }
    }
}

/// Whether a `queue.declare` is neither passive nor durable.
fn is_transient(payload: &[u8]) -> bool {
    const PASSIVE_OR_DURABLE: u8 = 0b11;
    // Class, method and a reserved number come before the name.
    let name_bytes = usize::from(payload[6]);
    payload[7 + name_bytes] & PASSIVE_OR_DURABLE == 0
}

fn method(channel: u16, class: u8, number: u8, arguments: &[u8]) -> Vec<u8> {
    frame(
        METHOD,
        channel,
        &[&[0, class, 0, number], arguments].concat(),
    )
}

/// A delivery from exchange `e` with key `k` to consumer `c`.
fn delivery(channel: u16, tag: u64, body: &str, is_flagged: bool) -> Vec<u8> {
    let (tag, size) = (tag.to_be_bytes(), (body.len() as u64).to_be_bytes());
    let deliver = [&b"\x01c"[..], &tag, &[u8::from(is_flagged)], b"\x01e\x01k"].concat();
    [
        method(channel, 60, 60, &deliver),
        frame(
            HEADER,
            channel,
            &[&[0, 60, 0, 0][..], &size, &[0, 0]].concat(),
        ),
        frame(BODY, channel, body.as_bytes()),
    ]
    .concat()
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap();
    let mut frame = vec![kind];
    frame.extend(channel.to_be_bytes());
    frame.extend(size.to_be_bytes());
    frame.extend(payload);
    frame.push(FRAME_END);
    frame
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

fn read_frame(socket: &mut TcpStream) -> io::Result<(u8, u16, Vec<u8>)> {
    let mut header = [0; 7];
    socket.read_exact(&mut header)?;
    let [kind, high, low, size @ ..] = header;
    let mut payload = vec![0; u32::from_be_bytes(size) as usize + 1];
    socket.read_exact(&mut payload)?;
    payload.pop();
    Ok((kind, u16::from_be_bytes([high, low]), payload))
}
