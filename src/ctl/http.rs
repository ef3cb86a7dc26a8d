//! One request to one admin address, over TCP or a unix socket.
//!
//! Invariants: of an answer at most [`CTL_PAGE_BYTES_MAX`] are read, and a request that is no trace ends within its
//! timeout, whatever comes. No redirect is followed and no proxy asked. The token is in no [`Trouble`] and no `Debug`.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use ureq::config::Config;
use ureq::http::{HeaderValue, Response, Uri};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{NextTimeout, TcpConnector};
use ureq::{Agent, Body};

use super::unix::UnixConnector;
use crate::limits::{CTL_LINE_BYTES_MAX, CTL_PAGE_BYTES_MAX};
use crate::printable::printable;

/// Where a process listens for its operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => f.write_str(&printable(&path.to_string_lossy())),
        }
    }
}

/// The content of `--admin-token FILE`, as a whole header value.
#[derive(Clone)]
pub(super) struct Bearer(HeaderValue);

impl Bearer {
    /// A token, with white space around it at most; `None` when it is empty or no header can carry it.
    pub(super) fn parse(content: &str) -> Option<Self> {
        let token = content.trim();
        let is_fit = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
        value.set_sensitive(true);
        is_fit.then_some(Self(value))
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer")
    }
}

/// Why a process gave no answer that is of use. Its text follows the name of the process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    #[error("nobody listens there: is blackhole running with {}?", option_of(.0))]
    NobodyListens(Place),
    #[error("there is no such socket: is blackhole running with --admin-dir?")]
    NoSocket,
    #[error("no permission for this socket: only who runs blackhole, and root, may use it")]
    NoPermission,
    #[error("no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    #[error("it asks for a token: --admin-token FILE")]
    TokenWanted,
    #[error("the token of --admin-token is not the one it was started with")]
    TokenWrong,
    /// What was asked for is not there; what the process says of it.
    #[error("{0}")]
    NotFound(String),
    /// Another refusal: the status, and what the process says of it.
    #[error("{1} (HTTP {0})")]
    Refused(u16, String),
    #[error("its answer is larger than {} MiB", CTL_PAGE_BYTES_MAX >> 20)]
    TooLarge,
    #[error("its answer broke off: {0}")]
    Broken(String),
    /// What it answered is not what blackhole answers.
    #[error("its answer is not one of blackhole's: {0}")]
    Foreign(String),
}

fn option_of(place: &Place) -> &'static str {
    match place {
        Place::Tcp(_) => "--admin",
        Place::Unix(_) => "--admin-dir",
    }
}

/// By what method something is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Post,
    Delete,
}

/// A connection to one process, kept between requests.
pub(super) struct Client {
    place: Place,
    agent: Agent,
    bearer: Option<Bearer>,
    timeout: Duration,
}

impl Client {
    /// Connects with the first request. `timeout`: of each request, from connecting to the last byte.
    pub(super) fn new(place: Place, bearer: Option<Bearer>, timeout: Duration) -> Self {
        let config = Config::builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("blackhole-ctl/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(timeout))
            .timeout_send_request(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .build();
        let agent = match &place {
            Place::Tcp(address) => {
                Agent::with_parts(config, TcpConnector::default(), Known(*address))
            }
            Place::Unix(path) => Agent::with_parts(
                config,
                UnixConnector(path.clone()),
                Known((Ipv4Addr::LOCALHOST, 0).into()),
            ),
        };
        Self {
            place,
            agent,
            bearer,
            timeout,
        }
    }

    /// The text of a page, such as `/metrics`. `also`: a status that is an answer too, such as `/readyz`'s 503.
    pub(super) fn text(&self, path: &str, also: Option<u16>) -> Result<String, Trouble> {
        let (status, body) = self.whole(Method::Get, path)?;
        if status == 200 || Some(status) == also {
            return Ok(body);
        }
        Err(self.refusal(status, &body))
    }

    /// The envelope of an answer in JSON (PROTOCOL 8): an object.
    pub(super) fn json(&self, method: Method, path: &str) -> Result<Value, Trouble> {
        let (status, body) = self.whole(method, path)?;
        if !(200..300).contains(&status) {
            return Err(self.refusal(status, &body));
        }
        match serde_json::from_str(&body) {
            Ok(value @ Value::Object(_)) => Ok(value),
            Ok(_) => Err(Trouble::Foreign("not a JSON object".to_owned())),
            Err(_) => Err(Trouble::Foreign(format!("no JSON: {}", first_line(&body)))),
        }
    }

    /// The lines of a stream that ends when the process, or who reads it, ends it. Silence is no trouble.
    pub(super) fn stream(&self, path: &str) -> Result<Lines, Trouble> {
        let response = self.send(Method::Get, path, None)?;
        let status = response.status().as_u16();
        if status != 200 {
            let body = self.read(response)?;
            return Err(self.refusal(status, &body));
        }
        let kind = response.headers().get("content-type");
        let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        if !is_stream {
            return Err(Trouble::Foreign("not an event stream".to_owned()));
        }
        Ok(Lines(BufReader::new(Box::new(
            response.into_body().into_reader(),
        ))))
    }

    fn whole(&self, method: Method, path: &str) -> Result<(u16, String), Trouble> {
        let response = self.send(method, path, Some(self.timeout))?;
        let status = response.status().as_u16();
        Ok((status, self.read(response)?))
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        in_all: Option<Duration>,
    ) -> Result<Response<Body>, Trouble> {
        let authority = match &self.place {
            Place::Tcp(address) => address.to_string(),
            Place::Unix(_) => "localhost".to_owned(),
        };
        let uri = format!("http://{authority}{path}");
        macro_rules! with_all {
            ($request:expr) => {{
                let request = match &self.bearer {
                    Some(bearer) => $request.header("authorization", bearer.0.clone()),
                    None => $request,
                };
                request.config().timeout_global(in_all).build()
            }};
        }
        let sent = match method {
            Method::Get => with_all!(self.agent.get(uri)).call(),
            Method::Delete => with_all!(self.agent.delete(uri)).call(),
            Method::Post => with_all!(self.agent.post(uri)).send_empty(),
        };
        sent.map_err(|error| self.trouble(error))
    }

    fn read(&self, response: Response<Body>) -> Result<String, Trouble> {
        let mut body = Vec::new();
        response
            .into_body()
            .into_reader()
            .take(CTL_PAGE_BYTES_MAX + 1)
            .read_to_end(&mut body)
            .map_err(|error| self.broken(error))?;
        if body.len() as u64 > CTL_PAGE_BYTES_MAX {
            return Err(Trouble::TooLarge);
        }
        String::from_utf8(body).map_err(|_| Trouble::Foreign("not UTF-8".to_owned()))
    }

    fn trouble(&self, error: ureq::Error) -> Trouble {
        match error {
            ureq::Error::Io(error) => self.broken(error),
            ureq::Error::Timeout(_) => Trouble::Timeout(self.timeout),
            other => Trouble::Foreign(first_line(&other.to_string())),
        }
    }

    /// What an error while reading means.
    pub(super) fn broken(&self, error: io::Error) -> Trouble {
        if let Some(ureq::Error::Timeout(_)) =
            error.get_ref().and_then(|inner| inner.downcast_ref())
        {
            return Trouble::Timeout(self.timeout);
        }
        match error.kind() {
            ErrorKind::ConnectionRefused => Trouble::NobodyListens(self.place.clone()),
            ErrorKind::NotFound => Trouble::NoSocket,
            ErrorKind::PermissionDenied => Trouble::NoPermission,
            ErrorKind::TimedOut => Trouble::Timeout(self.timeout),
            _ => Trouble::Broken(first_line(&error.to_string())),
        }
    }

    /// What a status that is no success means, and what the process says of it: a line of text, or the platform's
    /// envelope.
    fn refusal(&self, status: u16, body: &str) -> Trouble {
        let envelope: Option<Value> = serde_json::from_str(body).ok();
        let message = envelope
            .as_ref()
            .and_then(|envelope| envelope.pointer("/data/message"))
            .and_then(Value::as_str)
            .unwrap_or(body);
        let said = first_line(message);
        match status {
            401 | 403 if self.bearer.is_none() => Trouble::TokenWanted,
            401 | 403 => Trouble::TokenWrong,
            404 => Trouble::NotFound(said),
            _ => Trouble::Refused(status, said),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.place).finish()
    }
}

/// Longest message of a process that is shown; of a page that is none of blackhole's it is the begin.
const MESSAGE_CHARS_MAX: usize = 200;

fn first_line(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    let begin: String = line.chars().take(MESSAGE_CHARS_MAX).collect();
    match printable(&begin) {
        empty if empty.is_empty() => "it says nothing".to_owned(),
        line => line.into_owned(),
    }
}

/// The lines of a stream.
pub(super) struct Lines(BufReader<Box<dyn Read + Send>>);

impl Lines {
    /// The next line without its end; `None` at the end of the stream. What is longer than [`CTL_LINE_BYTES_MAX`] is cut.
    pub(super) fn next(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        let bound = CTL_LINE_BYTES_MAX as u64;
        (&mut self.0).take(bound).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.last() != Some(&b'\n') {
            // The end of the stream, or of what is kept.
            self.0.skip_until(b'\n')?;
        }
        while matches!(line.last(), Some(b'\n' | b'\r')) {
            line.pop();
        }
        Ok(Some(String::from_utf8_lossy(&line).into_owned()))
    }
}

/// One address, which nobody needs to be asked about.
struct Known(SocketAddr);

impl Resolver for Known {
    fn resolve(
        &self,
        _uri: &Uri,
        _config: &Config,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut all = self.empty();
        all.push(self.0);
        Ok(all)
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    use super::super::scripted::{Scripted, Stream, answer};
    use super::*;

    /// Longer than any honest answer of a test takes.
    const PATIENCE: Duration = Duration::from_secs(20);
    /// For answers that never come.
    const IMPATIENCE: Duration = Duration::from_millis(300);

    fn client(server: &Scripted, timeout: Duration) -> Client {
        Client::new(server.place.clone(), None, timeout)
    }

    fn json_of(bytes: &[u8]) -> Result<Value, Trouble> {
        let server = Scripted::answering(vec![bytes.to_vec()]);
        client(&server, PATIENCE).json(Method::Get, "/v2/sessions")
    }

    #[test]
    fn what_is_no_good_answer_is_told_in_one_line() {
        let of = |status, body: &str| json_of(&answer(status, "application/json", body));
        for (status, body, expected) in [
            (
                "200 OK",
                "<html>\n<p>",
                "its answer is not one of blackhole's: no JSON: <html>",
            ),
            (
                "200 OK",
                "[]",
                "its answer is not one of blackhole's: not a JSON object",
            ),
            (
                "200 OK",
                "",
                "its answer is not one of blackhole's: no JSON: it says nothing",
            ),
            ("500 Oh", "\x1b[2Jboom\nmore", "\\u{1b}[2Jboom (HTTP 500)"),
            (
                "404 No",
                r#"{"data":{"message":"no such"},"status":"error"}"#,
                "no such",
            ),
            (
                "400 Bad",
                "limit: expected 1 to 1000\n",
                "limit: expected 1 to 1000 (HTTP 400)",
            ),
            ("401 No", "token", "it asks for a token: --admin-token FILE"),
            ("503 Busy", "", "it says nothing (HTTP 503)"),
        ] {
            let trouble = of(status, body).expect_err(body);
            assert_eq!(trouble.to_string(), expected);
        }
        let deep = "[".repeat(100_000);
        assert!(
            of("200 OK", &deep).is_err(),
            "a deep document is none of ours"
        );
        let found = of("200 OK", r#"{"data":1}"#).expect("an answer");
        assert_eq!(found["data"], 1);
    }

    #[test]
    fn a_redirect_is_not_followed() {
        let other = Scripted::answering(vec![answer("200 OK", "application/json", "{}")]);
        let away = format!(
            "HTTP/1.1 302 Found\r\nLocation: http://{}/\r\nContent-Length: 0\r\n\r\n",
            other.place
        );
        let trouble = json_of(away.as_bytes()).expect_err("a redirect");
        assert_eq!(trouble, Trouble::Refused(302, "it says nothing".to_owned()));
        assert_eq!(other.requests(), Vec::<String>::new());
    }

    #[test]
    fn an_answer_that_breaks_off_or_is_no_http_is_an_error() {
        for bytes in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"a",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Len",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\x00\x01\x02",
            b"",
        ] {
            let trouble = json_of(bytes).expect_err("no answer");
            let is_told = matches!(trouble, Trouble::Broken(_) | Trouble::Foreign(_));
            assert!(is_told, "{bytes:?}: {trouble:?}");
            assert_eq!(trouble.to_string().lines().count(), 1, "{trouble}");
        }
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
        assert_eq!(json_of(chunked), Ok(Value::Object(serde_json::Map::new())));
    }

    #[test]
    fn an_endless_answer_is_read_up_to_its_bound() {
        let server = Scripted::new(|stream: &mut dyn Stream| {
            let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
            let mut sent = stream.write_all(head);
            while sent.is_ok() {
                sent = stream.write_all(&[b' '; 1 << 16]);
            }
        });
        let trouble = client(&server, PATIENCE).text("/metrics", None);
        assert_eq!(trouble, Err(Trouble::TooLarge));
    }

    #[test]
    fn silence_and_drips_end_with_the_timeout() {
        let silent = Scripted::new(|stream: &mut dyn Stream| {
            // Until the client has gone.
            let _gone = stream.read(&mut [0]);
        });
        let dripping = Scripted::new(|stream: &mut dyn Stream| {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n";
            let mut sent = stream.write_all(head);
            while sent.is_ok() {
                std::thread::park_timeout(IMPATIENCE / 20);
                sent = stream.write_all(b" ");
            }
        });
        for server in [silent, dripping] {
            let begun = Instant::now();
            let answer = client(&server, IMPATIENCE).text("/metrics", None);
            assert_eq!(answer, Err(Trouble::Timeout(IMPATIENCE)));
            assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        }
    }

    #[test]
    fn the_token_goes_into_the_request_and_nowhere_else() {
        let server = Scripted::answering(vec![answer("403 Forbidden", "text/plain", "no")]);
        let bearer = Bearer::parse("  s3cret\n").expect("a token");
        let client = Client::new(server.place.clone(), Some(bearer.clone()), PATIENCE);
        let trouble = client
            .json(Method::Delete, "/v2/sessions/x")
            .expect_err("refused");
        assert_eq!(trouble, Trouble::TokenWrong);
        let request = server.requests().concat();
        assert!(
            request.starts_with("DELETE /v2/sessions/x HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(
            request.contains("authorization: Bearer s3cret\r\n"),
            "{request}"
        );
        assert!(
            request.contains(&format!("host: {}\r\n", server.place)),
            "{request}"
        );
        for shown in [
            format!("{client:?}"),
            format!("{bearer:?}"),
            trouble.to_string(),
        ] {
            assert!(!shown.contains("s3cret"), "{shown}");
        }
        for content in ["", "\n", "two words", "tök", "a\0b"] {
            assert!(Bearer::parse(content).is_none(), "{content:?}");
        }
    }

    #[test]
    fn a_post_has_a_length_and_no_body() {
        let server = Scripted::answering(vec![answer("202 Accepted", "application/json", "{}")]);
        let answered = client(&server, PATIENCE).json(Method::Post, "/drain");
        assert!(answered.is_ok(), "{answered:?}");
        let request = server.requests().concat();
        assert!(request.starts_with("POST /drain HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("content-length: 0\r\n"), "{request}");
    }

    #[test]
    fn nobody_there_is_told_apart() {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let place = Place::Tcp(address);
        let trouble = Client::new(place.clone(), None, PATIENCE).text("/healthz", None);
        assert_eq!(trouble, Err(Trouble::NobodyListens(place)));

        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("blackhole-1.sock");
        let place = Place::Unix(path.clone());
        let ask = || Client::new(place.clone(), None, PATIENCE).text("/healthz", None);
        assert_eq!(ask(), Err(Trouble::NoSocket));
        drop(UnixListener::bind(&path).expect("a socket"));
        assert_eq!(ask(), Err(Trouble::NobodyListens(place.clone())));
        // Tests may run as root, whom nothing is forbidden.
        let client = Client::new(place.clone(), None, PATIENCE);
        let forbidden = io::Error::from(ErrorKind::PermissionDenied);
        assert_eq!(client.broken(forbidden), Trouble::NoPermission);
    }

    #[test]
    fn unix_sockets_speak_the_same() {
        let ok = answer("200 OK", "text/plain", "ok\n");
        let server = Scripted::on_unix(vec![ok.clone(), ok]);
        let client = client(&server, PATIENCE);
        for _ in 0..2 {
            assert_eq!(client.text("/healthz", None), Ok("ok\n".to_owned()));
        }
        let requests = server.requests();
        assert_eq!(requests.len(), 2);
        assert!(requests[0].contains("host: localhost\r\n"), "{requests:?}");

        let silent = Scripted::on_unix_with(|stream: &mut dyn Stream| {
            let _gone = stream.read(&mut [0]);
        });
        let answer = Client::new(silent.place.clone(), None, IMPATIENCE).text("/healthz", None);
        assert_eq!(answer, Err(Trouble::Timeout(IMPATIENCE)));
    }

    #[test]
    fn a_stream_may_be_silent_and_its_lines_are_bounded() {
        let server = Scripted::new(|stream: &mut dyn Stream| {
            let head =
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
            let _sent = stream.write_all(head);
            std::thread::park_timeout(IMPATIENCE * 2);
            let long = vec![b'x'; CTL_LINE_BYTES_MAX + 10];
            for line in [&b"data: 1\r\n"[..], b"\n", &long, b"\nlast"] {
                let _sent = stream.write_all(line);
            }
        });
        let mut lines = client(&server, IMPATIENCE)
            .stream("/trace")
            .expect("a stream");
        let mut next = || lines.next().expect("a line");
        assert_eq!(next().as_deref(), Some("data: 1"));
        assert_eq!(next().as_deref(), Some(""));
        assert_eq!(next().map(|line| line.len()), Some(CTL_LINE_BYTES_MAX));
        assert_eq!(next().as_deref(), Some("last"));
        assert_eq!(next(), None);

        let server =
            Scripted::answering(vec![answer("400 Bad", "text/plain", "key: expected a key")]);
        let trouble = client(&server, PATIENCE).stream("/trace").err();
        assert_eq!(
            trouble,
            Some(Trouble::Refused(400, "key: expected a key".to_owned()))
        );
        let server = Scripted::answering(vec![answer("200 OK", "text/html", "<p>")]);
        assert!(client(&server, PATIENCE).stream("/trace").is_err());
    }
}
