//! `bare_accounts`: the platform's REST API at its fastest. It takes every token for every account.
//!
//! A thread for each connection, of which the server under measurement has eight. For each request, one without a
//! body, it does nothing but the unavoidable: one `read` of it, a search for its end and for its account, one `write` of an
//! answer of the size that the platform's have. It says `listening on IP:PORT`, and ends when it is killed.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

/// Longest request.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// What stands before the account's id in a request.
const BEFORE_ID: &[u8] = b"/accounts/";

/// What stands for the account's id in [`answer`], and is as long.
const ANY_ID: &str = "00000000000000000000000000000000";

/// The account as the platform tells it, to the part that counts; the rest is as long as theirs.
fn answer() -> Vec<u8> {
    let filler = "x".repeat(700);
    let body = format!(
        r#"{{"data":{{"id":"{ANY_ID}","name":"An Account","realm":"account.example.com","superduper_admin":false,"enabled":true,"filler":"{filler}"}},"status":"success"}}"#
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
    let mut answer = answer();
    let id_at = memchr::memmem::find(&answer, ANY_ID.as_bytes()).unwrap_or(0);
    let mut buffer = vec![0; REQUEST_BYTES_MAX];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..])?;
        filled += read;
        while let Some(length) = request_length(&buffer[..filled]) {
            if let Some(id) = account_id(&buffer[..length]) {
                answer[id_at..id_at + id.len()].copy_from_slice(id);
            }
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

/// The account that `request` asks about; `None`: about none.
fn account_id(request: &[u8]) -> Option<&[u8]> {
    let begin = memchr::memmem::find(request, BEFORE_ID)? + BEFORE_ID.len();
    request.get(begin..begin + ANY_ID.len())
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
        let request = |id: u32| {
            format!("GET /v2/accounts/{id:032x} HTTP/1.1\r\nX-Auth-Token: t\r\n\r\n").into_bytes()
        };
        let third = request(3);
        let two_and_a_half = [&request(1)[..], &request(2), &third[..20]].concat();
        let expect = |ids: &[u32]| {
            for id in ids {
                let mut told = vec![0; answer().len()];
                (&client).read_exact(&mut told).expect("the answer");
                let told = String::from_utf8(told).expect("text");
                let (head, body) = told.split_once("\r\n\r\n").expect("head and body");
                assert!(head.ends_with(&format!("content-length: {}", body.len())));
                assert!(body.contains(&format!(r#""id":"{id:032x}""#)), "{body}");
                assert_eq!(body.matches(ANY_ID).count(), 0, "{body}");
            }
        };
        (&client).write_all(&two_and_a_half).expect("written");
        expect(&[1, 2]);
        (&client).write_all(&third[20..]).expect("written");
        expect(&[3]);
        drop(client);
        server.join().expect("no panic").expect("it ends in order");
    }
}
