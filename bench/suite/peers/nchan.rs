//! nginx with the nchan module: one worker, published to by HTTP POST. Its listener is not `deferred`: with that, nchan
//! neither answers a ping nor sees that a client has gone.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use super::nginx::Nginx;
use super::{
    BACKLOG, OWN_TOPIC, TOPIC, await_listening, bodies, find, free_address, not_installed, peer,
};
use crate::subject::{Batch, Candidate, Scenario, Setup, Subject};

pub(crate) const NCHAN: Candidate = peer("nchan", |setup| Ok(Box::new(Nchan::start(setup)?)));

/// Where Debian puts the module.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

struct Nchan {
    publisher: TcpStream,
    nginx: Nginx,
    websockets: SocketAddr,
}

impl Nchan {
    fn start(setup: &Setup<'_>) -> io::Result<Self> {
        find("nginx", "nginx")?;
        if !Path::new(MODULE).exists() {
            return Err(not_installed(MODULE, "libnginx-mod-nchan"));
        }
        let (publishers, websockets) = (free_address()?, free_address()?);
        // Those of a storm come before the old ones have been found to be gone. With less than a sixteenth of them
        // free it would close the publisher's, which is idle.
        let connections = 2 * setup.sessions + 1024;
        let (head, http) = (Nginx::HEAD, Nginx::HTTP_HEAD);
        let configuration = format!(
            "load_module {MODULE};
             {head}
             worker_processes 1;
             events {{ worker_connections {connections}; }}
             http {{
               {http}
               connection_pool_size 256; request_pool_size 1k; client_header_buffer_size 512;
               nchan_message_buffer_length 64; nchan_message_timeout 10s;
               server {{
                 listen {websockets} backlog={BACKLOG};
                 location ~ ^/subscribe/(.+)$ {{
                   nchan_subscriber websocket; nchan_channel_id $1; nchan_subscriber_first_message newest;
                 }}
               }}
               server {{
                 listen {publishers};
                 keepalive_requests 1000000000; keepalive_timeout 1h;
                 location ~ ^/publish/(.+)$ {{ nchan_publisher http; nchan_channel_id $1; }}
               }}
             }}\n"
        );
        let mut nginx = Nginx::start(&configuration, websockets)?;
        let publisher = await_listening(&mut nginx.running, publishers)?;
        Ok(Self {
            publisher,
            nginx,
            websockets,
        })
    }
}

impl Subject for Nchan {
    /// The worker, then the master.
    fn pids(&self) -> Vec<u32> {
        self.nginx.pids()
    }

    fn address(&self) -> String {
        self.websockets.to_string()
    }

    fn load_arguments(&self, scenario: Scenario, _: u32) -> Vec<String> {
        let channel = match scenario {
            Scenario::Shared => TOPIC,
            Scenario::Own => OWN_TOPIC,
        };
        let path = format!("/subscribe/{channel}");
        ["--dialect", "plain", "--path", &path]
            .map(str::to_owned)
            .into()
    }

    /// Requests in one write, as a publisher with a connection kept alive pipelines them.
    fn publish(&mut self, batch: Batch) -> io::Result<()> {
        let request = |body: String| {
            let length = body.len();
            format!(
                "POST /publish/{TOPIC} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: {length}\r\n\r\n{body}"
            )
        };
        let requests: String = bodies(batch).map(request).collect();
        self.publisher.write_all(requests.as_bytes())?;
        let mut received = Vec::new();
        for _ in 0..batch.events {
            accepted(&mut self.publisher, &mut received)?;
        }
        Ok(())
    }
}

/// Takes the response to one request, which must be a success, from `received` and what is read behind it.
fn accepted(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(received).map_err(io::Error::other)?;
        if let httparse::Status::Complete(head) = parsed {
            let code = response.code.unwrap_or(0);
            if !(200..300).contains(&code) {
                return Err(io::Error::other(format!("publish: status {code}")));
            }
            let length = response
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case("content-length"))
                .and_then(|header| {
                    std::str::from_utf8(header.value)
                        .ok()?
                        .parse::<usize>()
                        .ok()
                });
            let length = length.ok_or_else(|| io::Error::other("publish: no content-length"))?;
            if received.len() >= head + length {
                received.drain(..head + length);
                return Ok(());
            }
        }
        let mut buffer = [0; 8192];
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => received.extend_from_slice(&buffer[..read]),
        }
    }
}
