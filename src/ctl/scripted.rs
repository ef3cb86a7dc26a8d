//! An HTTP server of the tests' own: it reads the head of a request, and then does what its script says.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use tempfile::TempDir;

use super::http::Place;

/// A connection of either kind.
pub(super) trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

/// A server that listens until the test's process ends.
pub(super) struct Scripted {
    pub(super) place: Place,
    requests: Receiver<String>,
    _folder: Option<TempDir>,
}

/// An answer whose length is told; the connection is closed behind it.
pub(super) fn answer(status: &str, content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Gives the answers in turn.
fn in_turn(answers: Vec<Vec<u8>>) -> impl FnMut(&mut dyn Stream) {
    let mut answers = answers.into_iter();
    move |stream| {
        let answer = answers.next().unwrap_or_default();
        // The client may have had enough.
        let _gone = stream.write_all(&answer);
    }
}

impl Scripted {
    /// Over TCP: one answer a connection.
    pub(super) fn answering(answers: Vec<Vec<u8>>) -> Self {
        Self::new(in_turn(answers))
    }

    /// Over a unix socket: one answer a connection.
    pub(super) fn on_unix(answers: Vec<Vec<u8>>) -> Self {
        Self::on_unix_with(in_turn(answers))
    }

    /// Over TCP.
    pub(super) fn new(script: impl FnMut(&mut dyn Stream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let place = Place::Tcp(listener.local_addr().expect("an address"));
        let accept = move || listener.accept().map(|(stream, _)| stream).ok();
        Self::start(place, None, accept, script)
    }

    /// Over a unix socket.
    pub(super) fn on_unix_with(script: impl FnMut(&mut dyn Stream) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("blackhole-7.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let accept = move || listener.accept().map(|(stream, _)| stream).ok();
        Self::start(Place::Unix(path), Some(folder), accept, script)
    }

    fn start<S: Stream>(
        place: Place,
        folder: Option<TempDir>,
        accept: impl Fn() -> Option<S> + Send + 'static,
        mut script: impl FnMut(&mut dyn Stream) + Send + 'static,
    ) -> Self {
        let (sender, requests) = channel();
        thread::spawn(move || {
            while let Some(mut stream) = accept() {
                if read_head(&mut stream, &sender).is_some() {
                    script(&mut stream);
                }
            }
        });
        Self {
            place,
            requests,
            _folder: folder,
        }
    }

    /// The heads of the requests so far.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.try_iter().collect()
    }
}

fn read_head(stream: &mut dyn Stream, sender: &Sender<String>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    sender.send(String::from_utf8(head).ok()?).ok()
}
