//! One who looks: reads `GET /trace` of the admin address (PROTOCOL 8), a server-sent event at a time. Each must be as the
//! schemas say.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use super::schemas::hold;
use super::server::PATIENCE;

/// A look under way. Every line that it was told is kept as text.
pub struct Looker {
    stream: BufReader<TcpStream>,
    /// Everything that came, as it came.
    pub text: String,
}

impl Looker {
    /// Asks for `/trace?QUERY`, and returns with the first line, which says what is looked at.
    pub fn look(admin: SocketAddr, query: &str) -> (Self, Value) {
        let (mut looker, status) = Self::ask(TcpStream::connect(admin).unwrap(), query);
        assert_eq!(status, 200, "{query}: {}", looker.rest_as_text());
        let (word, looking) = looker.line();
        assert_eq!(word, "looking");
        (looker, looking)
    }

    /// As [`Looker::look`], with a receive buffer of a few KiB, and without reading anything but the head.
    pub fn look_narrowly(admin: SocketAddr, query: &str) -> Self {
        let socket = Socket::new(Domain::for_address(admin), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&admin.into()).unwrap();
        let (looker, status) = Self::ask(socket.into(), query);
        assert_eq!(status, 200, "{query}");
        looker
    }

    /// The status and the text of a look that is refused.
    pub fn refused(admin: SocketAddr, query: &str) -> (u16, String) {
        let (mut looker, status) = Self::ask(TcpStream::connect(admin).unwrap(), query);
        assert_ne!(status, 200, "{query}");
        (status, looker.rest_as_text())
    }

    fn ask(mut stream: TcpStream, query: &str) -> (Self, u16) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request =
            format!("GET /trace?{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut stream = BufReader::with_capacity(1 << 10, stream);
        let mut status = String::new();
        stream.read_line(&mut status).unwrap();
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            assert!(stream.read_line(&mut line).unwrap() > 0, "a whole head");
        }
        let status = status.split(' ').nth(1).unwrap().parse().unwrap();
        let text = String::new();
        (Self { stream, text }, status)
    }

    /// The next line: its word, and what it tells.
    pub fn line(&mut self) -> (String, Value) {
        self.next()
            .unwrap_or_else(|| panic!("the look has ended:\n{}", self.text))
    }

    /// As [`Looker::line`], for the next that is none of `others`.
    pub fn line_but(&mut self, others: &[&str]) -> (String, Value) {
        loop {
            let (word, told) = self.line();
            if !others.contains(&&*word) {
                return (word, told);
            }
        }
    }

    /// What the next line with this word tells; the others before it are passed over.
    pub fn until(&mut self, word: &str) -> Value {
        loop {
            let (found, told) = self.line();
            if found == word {
                return told;
            }
        }
    }

    /// All lines up to the end of the look.
    pub fn rest(&mut self) -> Vec<(String, Value)> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn rest_as_text(&mut self) -> String {
        let mut text = String::new();
        self.stream.read_to_string(&mut text).unwrap();
        text
    }

    /// `None`: the look has ended.
    fn next(&mut self) -> Option<(String, Value)> {
        loop {
            let mut block = String::new();
            while !block.ends_with("\n\n") {
                let read = self.stream.read_line(&mut block);
                let read = read.unwrap_or_else(|error| panic!("{error}; so far:\n{}", self.text));
                if read == 0 {
                    assert_eq!(block, "", "a whole line");
                    return None;
                }
            }
            self.text.push_str(&block);
            if block.starts_with(':') {
                continue;
            }
            let (word, data) = block.trim_end().split_once('\n').unwrap();
            let word = word.strip_prefix("event: ").unwrap();
            let data = data.strip_prefix("data: ").unwrap();
            let told: Value = serde_json::from_str(data).unwrap();
            hold(&format!("admin#trace_{word}"), &told);
            return Some((word.to_owned(), told));
        }
    }
}
