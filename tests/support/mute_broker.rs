//! A broker that logs clients in, answers their first questions, and then only beats its heart; or one that answers all
//! and allows no transient queues.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

const METHOD: u8 = 1;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xCE;

/// A running one; its connections end with their clients.
pub struct MuteBroker {
    port: u16,
    questions: Arc<AtomicUsize>,
}

impl MuteBroker {
    /// Answers `answers` questions of each connection after its login.
    pub fn start(answers: usize) -> Self {
        Self::start_as(answers, false)
    }

    /// Closes a connection that declares a transient queue, as RabbitMQ 4 can be set to.
    pub fn start_durable_only() -> Self {
        Self::start_as(usize::MAX, true)
    }

    fn start_as(answers: usize, is_durable_only: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let questions = Arc::new(AtomicUsize::new(0));
        let counted = questions.clone();
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let counted = counted.clone();
                thread::spawn(move || serve(socket, answers, is_durable_only, &counted));
            }
        });
        Self { port, questions }
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
    is_durable_only: bool,
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
        if is_durable_only && (class, number) == (50, 10) && is_transient(&payload) {
            let text = b"INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.";
            let size = u8::try_from(text.len()).unwrap();
            let close = [&541_u16.to_be_bytes()[..], &[size], text, &[0, 50, 0, 10]].concat();
            heart.write_all(&method(0, 10, 50, &close))?;
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
            (50, 10) => (11, b"\x01q\0\0\0\0\0\0\0\0"),
            (50, 20) => (21, b""),
            (50, 50) => (51, b""),
            (60, 10) => (11, b""),
            (60, 20) => (21, b"\x01c"),
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
    let size = u32::try_from(arguments.len() + 4).unwrap();
    let mut frame = vec![METHOD];
    frame.extend(channel.to_be_bytes());
    frame.extend(size.to_be_bytes());
    frame.extend([0, class, 0, number]);
    frame.extend(arguments);
    frame.push(FRAME_END);
    frame
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
