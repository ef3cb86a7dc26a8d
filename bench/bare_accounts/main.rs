//! `bare_accounts`: the platform's REST API at its fastest. It takes every token for every account.
//!
//! A thread for each connection, of which the server under measurement has eight. For each request, one without a
//! body, it does nothing but the unavoidable: one `read` of it, a search for its end, one `write` of an answer of the size
//! that the platform's have. It says `listening on IP:PORT`, and ends when it is killed.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

/// Longest request.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// The account as the platform tells it, to the part that counts; the rest is as long as theirs.
fn answer() -> Vec<u8> {
    let filler = "x".repeat(700);
    let body = format!(
        r#"{{"data":{{"id":"account","name":"An Account","realm":"account.example.com","superduper_admin":false,"enabled":true,"filler":"{filler}"}},"status":"success"}}"#
    );
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    (head + &body).into_bytes()
}

fn main() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {}", listener.local_addr()?)?;
    stdout.flush()?;
    for stream in listener.incoming() {
        let stream = stream?;
        stream.set_nodelay(true)?;
        // A client that goes is no failure.
        thread::spawn(move || serve(&stream));
    }
    Ok(())
}

/// Answers until the client goes, or sends what is too long.
fn serve(mut stream: &TcpStream) -> io::Result<()> {
    let answer = answer();
    let mut buffer = vec![0; REQUEST_BYTES_MAX];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..])?;
        filled += read;
        while let Some(length) = request_length(&buffer[..filled]) {
            stream.write_all(&answer)?;
            buffer.copy_within(length..filled, 0);
            filled -= length;
        }
        if read == 0 {
            return Ok(());
        }
    }
}

/// Bytes of the first request that `bytes` begin with, once all of it is there.
fn request_length(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|end| end + 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_request_of_a_connection_is_answered_however_it_is_cut() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let server = thread::spawn(move || serve(&listener.accept().expect("a client").0));
        let client = TcpStream::connect(address).expect("it listens");
        let patience = Duration::from_secs(20);
        client.set_read_timeout(Some(patience)).expect("valid");
        let request = b"GET /v2/accounts/0 HTTP/1.1\r\nX-Auth-Token: t\r\n\r\n";
        let two_and_a_half = [&request[..], request, &request[..20]].concat();
        let expect = |count: usize| {
            let mut told = vec![0; answer().len() * count];
            (&client).read_exact(&mut told).expect("the answers");
            assert_eq!(told, answer().repeat(count));
        };
        (&client).write_all(&two_and_a_half).expect("written");
        expect(2);
        (&client).write_all(&request[20..]).expect("written");
        expect(1);
        drop(client);
        server.join().expect("no panic").expect("it ends in order");
    }
}
