//! One client's socket: connecting without waiting, the upgrade request and its response, and reading.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};

use mio::net::TcpStream;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::reader::Reader;

/// The example key of RFC 6455 section 1.3: one for all, so that the answer can be compared.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The answer to [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Longest head of an upgrade response.
pub const HEAD_BYTES_MAX: usize = 8 << 10;

/// Begins to connect to `address`, from `source` if there is one, with a receive buffer of so many bytes if that is
/// given. The stream is connected, or has its error, once it is writable.
///
/// # Errors
/// The system refuses the socket or the address.
pub fn connect(
    address: SocketAddr,
    source: Option<Ipv4Addr>,
    receive_buffer: Option<usize>,
) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(source) = source {
        socket.bind(&SockAddr::from(SocketAddr::from((source, 0))))?;
    }
    match socket.connect(&SockAddr::from(address)) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    Ok(TcpStream::from_std(socket.into()))
}

/// The upgrade request, with this path and query, and this auth token and sub-protocol if there is one.
#[must_use]
pub fn upgrade_request(
    address: SocketAddr,
    path: &str,
    bearer: Option<&str>,
    sub_protocol: Option<&str>,
    extension: Option<&str>,
) -> String {
    let extension = extension.map_or(String::new(), |name| {
        format!("Sec-WebSocket-Extensions: {name}\r\n")
    });
    let sub_protocol = sub_protocol.map_or(String::new(), |name| {
        format!("Sec-WebSocket-Protocol: {name}\r\n")
    });
    let bearer = bearer.map_or(String::new(), |token| {
        format!("Authorization: Bearer {token}\r\n")
    });
    format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{sub_protocol}{extension}{bearer}\r\n"
    )
}

/// Length of a complete upgrade response's head; `Ok(None)` while it is incomplete; what is wrong with it.
///
/// # Errors
/// It is no upgrade response, or too long; the text says which.
pub fn head_length(bytes: &[u8]) -> Result<Option<usize>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(bytes) {
        Err(error) => Err(format!("upgrade: {error}")),
        Ok(httparse::Status::Partial) if bytes.len() > HEAD_BYTES_MAX => {
            Err("upgrade: the head does not end".into())
        }
        Ok(httparse::Status::Partial) => Ok(None),
        Ok(httparse::Status::Complete(length)) => match response.code {
            Some(101) => {
                let mut accepts = response
                    .headers
                    .iter()
                    .filter(|h| h.name.eq_ignore_ascii_case("sec-websocket-accept"));
                match accepts.next() {
                    Some(accept) if accept.value == ACCEPT.as_bytes() => Ok(Some(length)),
                    _ => Err("upgrade: wrong Sec-WebSocket-Accept".into()),
                }
            }
            code => Err(format!("upgrade: status {}", code.unwrap_or(0))),
        },
    }
}

/// Reads `stream` once, behind what `reader` has kept: how much of `buffer` is filled then; `None` when nothing has
/// arrived. `buffer` is as long as [`Reader::unstash`] wants it.
///
/// # Errors
/// The connection broke, or the server has closed it (`UnexpectedEof`).
pub fn fill(
    stream: &mut TcpStream,
    reader: &mut Reader,
    buffer: &mut [u8],
) -> io::Result<Option<usize>> {
    let kept = reader.unstash(buffer);
    loop {
        match stream.read(&mut buffer[kept..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => return Ok(Some(kept + read)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                reader.stash(&buffer[..kept]);
                return match error.kind() {
                    io::ErrorKind::WouldBlock => Ok(None),
                    _ => Err(error),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_upgrade_response_is_taken() {
        let good =
            format!("HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {ACCEPT}\r\n\r\n");
        assert_eq!(
            head_length(format!("{good}rest").as_bytes()),
            Ok(Some(good.len()))
        );
        assert_eq!(head_length(&good.as_bytes()[..good.len() - 1]), Ok(None));
        let wrong = good.replace(ACCEPT, "x");
        assert_eq!(
            head_length(wrong.as_bytes()),
            Err("upgrade: wrong Sec-WebSocket-Accept".into())
        );
        assert_eq!(
            head_length(b"HTTP/1.1 503 Full\r\n\r\n"),
            Err("upgrade: status 503".into())
        );
        let endless = format!("HTTP/1.1 101 X\r\nx: {}", "y".repeat(HEAD_BYTES_MAX));
        assert_eq!(
            head_length(endless.as_bytes()),
            Err("upgrade: the head does not end".into())
        );
    }
}
