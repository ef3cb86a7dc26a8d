//! The head of an HTTP request, and what it asks for (PROTOCOL 2, RFC 6455 section 4).
//!
//! Owns the judgement of request bytes and the texts of all responses on the websocket port and the admin
//! listener; keeps nothing between calls, so the caller holds the bytes until a head is complete. What needs more
//! than the bytes (is the token good, the origin allowed, the process full) is decided by the caller, who finds
//! the refusal for it here.
//!
//! What is refused first, when more than one thing is wrong ([`parse`]):
//!
//! 1. bytes that are no HTTP head: 400; a head that is too long or has too many headers: 431
//! 2. a method that is neither `GET` nor `HEAD`: 405
//! 3. no upgrade asked for: `/` is a probe, any other path 404. `HEAD` never asks for one. An upgrade is asked
//!    for by `Upgrade: websocket`, `Sec-WebSocket-Key` or `Sec-WebSocket-Version`, so that a proxy which strips
//!    the first gets a telling 400.
//! 4. an upgrade, in this order: HTTP/1.0 400, `Host` 400, `Connection` 400, `Upgrade` 400, version absent or
//!    twice 400, other than 13 426, key 400, sub-protocol 400, body 400, `?style=` 400, `Origin` 400,
//!    `Authorization` twice 400, a bearer token that cannot be one 403
//!
//! Cost of a call is linear in the input, and a head that comes in `n` pieces is read `n` times: at most
//! [`HEAD_BYTES_MAX`]² / 2 byte steps for one that comes byte by byte, which the caller's deadline for a
//! handshake ends.

use std::fmt;

use httparse::Status;
use tungstenite::handshake::derive_accept_key;

use crate::event::Style;

/// Longest head, request line to empty line; above it 431.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Most headers of one request; above it 431.
pub const HEADERS_MAX: usize = 64;

/// What a refused client is told to wait before it tries again, where waiting may help.
pub const RETRY_AFTER_SECONDS: u32 = 5;

/// First byte of a TLS record that starts a handshake (RFC 8446 section 5.1). No HTTP request starts so.
const TLS_HANDSHAKE: u8 = 0x16;

/// What the bytes so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<R> {
    /// A valid beginning: call again with more.
    Incomplete,
    /// The head is complete, or so wrong that no more of it is needed.
    Complete {
        /// Bytes at the start of the input that are done with. What follows an upgrade belongs to the codec.
        consumed: usize,
        /// What was asked for.
        request: R,
    },
}

/// What a client of the websocket port asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// A websocket: valid in all that the bytes alone can tell.
    Upgrade(Upgrade<'a>),
    /// `GET /` or `HEAD /` of a balancer: 200 or 503, see [`probe_response`].
    Probe(Method),
    /// Refused.
    Refuse(Refused),
}

/// What a client of the admin listener asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum PlainRequest<'a> {
    /// A page.
    Plain {
        /// The method.
        method: Method,
        /// The path without its query, beginning with `/` (or `*`).
        path: &'a str,
    },
    /// Refused.
    Refuse(Refused),
}

/// The methods that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Answered with a body.
    Get,
    /// Answered as [`Method::Get`], without the body.
    Head,
}

/// A refusal and whether its body is to be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// The request was a `HEAD`.
    pub head_only: bool,
}

/// A valid upgrade request.
#[derive(PartialEq, Eq)]
pub struct Upgrade<'a> {
    /// `Sec-WebSocket-Key`: 24 characters, checked.
    key: &'a str,
    /// The token of `Authorization: Bearer TOKEN`, to be verified before the upgrade. Never empty. Other schemes
    /// are not ours and ignored.
    pub bearer: Option<&'a str>,
    /// `?style=` of the query (PROTOCOL 2), the first if there are several.
    pub style: Option<Style>,
    /// `Origin`, to be looked up in the allow-list.
    pub origin: Option<&'a str>,
}

/// Why a request is refused, here or by the caller. Each has a status, a line of text and its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400, with what is wrong.
    Malformed(&'static str),
    /// 400: `Sec-WebSocket-Protocol`; no sub-protocol exists.
    SubProtocol,
    /// 403: the bearer token did not verify.
    InvalidToken,
    /// 403: `Origin` is not on the allow-list.
    OriginNotAllowed,
    /// 404.
    NotFound,
    /// 405, with `Allow`.
    MethodNotAllowed,
    /// 426, with the version that is spoken.
    UnsupportedVersion,
    /// 429: too many sessions from this IP.
    TooManyFromThisIp,
    /// 429: too many sessions of this token's account.
    TooManyOfThisAccount,
    /// 431: above [`HEAD_BYTES_MAX`] or [`HEADERS_MAX`].
    HeadTooLarge,
    /// 503: the process has as many sessions as it may.
    Full,
    /// 503: the process is going away.
    Draining,
    /// 503: the event source is down.
    SourceDown,
}

/// Reads what a client of the websocket port sent so far (PROTOCOL 2).
#[must_use]
pub fn parse(input: &[u8]) -> Parsed<Request<'_>> {
    match parse_head(input) {
        Parsed::Incomplete => Parsed::Incomplete,
        Parsed::Complete { consumed, request } => {
            let request = match request {
                Ok(head) => judge(&head),
                Err(refused) => Request::Refuse(refused),
            };
            Parsed::Complete { consumed, request }
        }
    }
}

/// Reads what a client of the admin listener sent so far: any `GET` or `HEAD`.
#[must_use]
pub fn parse_plain(input: &[u8]) -> Parsed<PlainRequest<'_>> {
    match parse_head(input) {
        Parsed::Incomplete => Parsed::Incomplete,
        Parsed::Complete { consumed, request } => {
            let request = match request {
                Ok(Head { method, path, .. }) => PlainRequest::Plain { method, path },
                Err(refused) => PlainRequest::Refuse(refused),
            };
            Parsed::Complete { consumed, request }
        }
    }
}

/// The answer to a [`Request::Probe`]: 200, or why the process takes no connections.
#[must_use]
pub fn probe_response(method: Method, unready: Option<Refusal>) -> Vec<u8> {
    let head_only = method == Method::Head;
    match unready {
        None => response("200 OK", TEXT, "", "ok\n", head_only),
        Some(refusal) => refusal.response(head_only),
    }
}

/// A whole response after which the connection is closed. `headers` are complete lines, each with its CR LF;
/// `Content-Length` is that of `body` also when `head_only` leaves it out.
#[must_use]
pub fn response(
    status: &str,
    content_type: &str,
    headers: &str,
    body: &str,
    head_only: bool,
) -> Vec<u8> {
    let length = body.len();
    let body = if head_only { "" } else { body };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{headers}\
         Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The content type of every answer here.
pub const TEXT: &str = "text/plain";

impl Upgrade<'_> {
    /// The response that makes the connection a websocket (RFC 6455 section 4.2.2), and nothing more than it must
    /// have.
    #[must_use]
    pub fn response(&self) -> Vec<u8> {
        let accept = derive_accept_key(self.key.as_bytes());
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )
        .into_bytes()
    }
}

impl fmt::Debug for Upgrade<'_> {
    /// All but the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrade")
            .field("bearer", &self.bearer.map(|_| "(masked)"))
            .field("style", &self.style)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

impl Refusal {
    /// Status code.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed(_) | Self::SubProtocol => 400,
            Self::InvalidToken | Self::OriginNotAllowed => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::UnsupportedVersion => 426,
            Self::TooManyFromThisIp | Self::TooManyOfThisAccount => 429,
            Self::HeadTooLarge => 431,
            Self::Full | Self::Draining | Self::SourceDown => 503,
        }
    }

    /// The line of text that is the body; fixed, so fit for a log.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Malformed(what) => what,
            Self::SubProtocol => "no sub-protocol is supported",
            Self::InvalidToken => "failed to authenticate token",
            Self::OriginNotAllowed => "origin is not allowed",
            Self::NotFound => "not found; for a websocket send an upgrade request",
            Self::MethodNotAllowed => "method is not allowed",
            Self::UnsupportedVersion => "websocket version 13 is required",
            Self::TooManyFromThisIp => "too many connections from this address",
            Self::TooManyOfThisAccount => "too many sessions of this account",
            Self::HeadTooLarge => "request head is too large",
            Self::Full => "no more connections can be taken",
            Self::Draining => "going away",
            Self::SourceDown => "event source unavailable",
        }
    }

    /// The response, after which the connection is closed. `head_only`: without the body, for a `HEAD`.
    #[must_use]
    pub fn response(self, head_only: bool) -> Vec<u8> {
        let status = match self.status() {
            400 => "400 Bad Request",
            403 => "403 Forbidden",
            404 => "404 Not Found",
            405 => "405 Method Not Allowed",
            426 => "426 Upgrade Required",
            429 => "429 Too Many Requests",
            431 => "431 Request Header Fields Too Large",
            _ => "503 Service Unavailable",
        };
        let headers = match self {
            Self::MethodNotAllowed => "Allow: GET, HEAD\r\n".to_owned(),
            Self::UnsupportedVersion => {
                "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n".to_owned()
            }
            Self::Full | Self::Draining | Self::SourceDown => {
                format!("Retry-After: {RETRY_AFTER_SECONDS}\r\n")
            }
            Self::Malformed(_)
            | Self::SubProtocol
            | Self::InvalidToken
            | Self::OriginNotAllowed
            | Self::NotFound
            | Self::TooManyFromThisIp
            | Self::TooManyOfThisAccount
            | Self::HeadTooLarge => String::new(),
        };
        response(
            status,
            TEXT,
            &headers,
            &format!("{}\n", self.text()),
            head_only,
        )
    }
}

/// A complete head with a method that is served.
struct Head<'a> {
    method: Method,
    is_http_1_1: bool,
    path: &'a str,
    query: &'a str,
    fields: Fields<'a>,
}

/// The header fields that mean something here.
#[derive(Default)]
struct Fields<'a> {
    host: Single<'a>,
    key: Single<'a>,
    version: Single<'a>,
    origin: Single<'a>,
    authorization: Single<'a>,
    /// `Connection` names `upgrade`.
    connection_upgrade: bool,
    /// `Upgrade` names `websocket`.
    upgrade_websocket: bool,
    has_sub_protocol: bool,
    /// `Transfer-Encoding`, or a `Content-Length` other than zero.
    has_body: bool,
}

/// A field that may come once.
#[derive(Clone, Copy, Default)]
enum Single<'a> {
    #[default]
    Absent,
    Once(&'a [u8]),
    Repeated,
}

impl<'a> Single<'a> {
    fn add(&mut self, value: &'a [u8]) {
        *self = match self {
            Self::Absent => Self::Once(value),
            Self::Once(_) | Self::Repeated => Self::Repeated,
        };
    }

    fn is_present(self) -> bool {
        !matches!(self, Self::Absent)
    }

    /// The value of a field that must be there.
    fn required(self, missing: &'static str, repeated: &'static str) -> Result<&'a [u8], Refusal> {
        self.optional(repeated)?.ok_or(Refusal::Malformed(missing))
    }

    fn optional(self, repeated: &'static str) -> Result<Option<&'a [u8]>, Refusal> {
        match self {
            Self::Absent => Ok(None),
            Self::Once(value) => Ok(Some(value)),
            Self::Repeated => Err(Refusal::Malformed(repeated)),
        }
    }
}

/// Steps 1 and 2 of the order in the module's documentation.
fn parse_head(input: &[u8]) -> Parsed<Result<Head<'_>, Refused>> {
    let refuse = |refusal, head_only| Parsed::Complete {
        consumed: input.len(),
        request: Err(Refused { refusal, head_only }),
    };
    if input.first() == Some(&TLS_HANDSHAKE) {
        return refuse(Refusal::Malformed("this port does not speak TLS"), false);
    }
    let within = input.get(..HEAD_BYTES_MAX).unwrap_or(input);
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let consumed = match request.parse(within) {
        Ok(Status::Complete(consumed)) => consumed,
        Ok(Status::Partial) if within.len() < HEAD_BYTES_MAX => return Parsed::Incomplete,
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return refuse(Refusal::HeadTooLarge, false);
        }
        Err(_) => return refuse(Refusal::Malformed("malformed HTTP request"), false),
    };
    let method = match request.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        _ => return refuse(Refusal::MethodNotAllowed, false),
    };
    let (path, query) = path_and_query(request.path.unwrap_or("/"));
    let is_http_1_1 = request.version == Some(1);
    let fields = read_fields(request.headers);
    Parsed::Complete {
        consumed,
        request: Ok(Head {
            method,
            is_http_1_1,
            path,
            query,
            fields,
        }),
    }
}

fn read_fields<'a>(headers: &[httparse::Header<'a>]) -> Fields<'a> {
    let mut fields = Fields::default();
    for &httparse::Header { name, value } in headers {
        let is = |field: &str| name.eq_ignore_ascii_case(field);
        if is("host") {
            fields.host.add(value);
        } else if is("connection") {
            fields.connection_upgrade |= list_names(value, b"upgrade");
        } else if is("upgrade") {
            fields.upgrade_websocket |= list_names(value, b"websocket");
        } else if is("sec-websocket-key") {
            fields.key.add(value);
        } else if is("sec-websocket-version") {
            fields.version.add(value);
        } else if is("sec-websocket-protocol") {
            fields.has_sub_protocol |= !is_empty_list(value);
        } else if is("origin") {
            fields.origin.add(value);
        } else if is("authorization") {
            fields.authorization.add(value);
        } else if is("transfer-encoding") {
            fields.has_body = true;
        } else if is("content-length") {
            fields.has_body |= value.trim_ascii() != b"0";
        }
    }
    fields
}

/// Step 3 of the order in the module's documentation, and the way to step 4.
fn judge<'a>(head: &Head<'a>) -> Request<'a> {
    let fields = &head.fields;
    let wants_upgrade =
        fields.upgrade_websocket || fields.key.is_present() || fields.version.is_present();
    let judged = if head.method == Method::Get && wants_upgrade {
        judge_upgrade(head).map(Request::Upgrade)
    } else if head.path == "/" {
        Ok(Request::Probe(head.method))
    } else {
        Err(Refusal::NotFound)
    };
    judged.unwrap_or_else(|refusal| {
        Request::Refuse(Refused {
            refusal,
            head_only: head.method == Method::Head,
        })
    })
}

/// Step 4 of the order in the module's documentation.
fn judge_upgrade<'a>(head: &Head<'a>) -> Result<Upgrade<'a>, Refusal> {
    let fields = &head.fields;
    let ensure = |holds, otherwise| if holds { Ok(()) } else { Err(otherwise) };
    ensure(
        head.is_http_1_1,
        Refusal::Malformed("a websocket needs HTTP/1.1"),
    )?;
    fields
        .host
        .required("Host is missing", "Host is repeated")?;
    ensure(
        fields.connection_upgrade,
        Refusal::Malformed("Connection must be Upgrade (does a proxy strip it?)"),
    )?;
    ensure(
        fields.upgrade_websocket,
        Refusal::Malformed("Upgrade must be websocket (does a proxy strip it?)"),
    )?;
    let version = fields.version.required(
        "Sec-WebSocket-Version is missing",
        "Sec-WebSocket-Version is repeated",
    )?;
    ensure(version.trim_ascii() == b"13", Refusal::UnsupportedVersion)?;
    let key = fields.key.required(
        "Sec-WebSocket-Key is missing",
        "Sec-WebSocket-Key is repeated",
    )?;
    let key = websocket_key(key).ok_or(Refusal::Malformed(
        "Sec-WebSocket-Key must be 16 bytes in base64",
    ))?;
    ensure(!fields.has_sub_protocol, Refusal::SubProtocol)?;
    ensure(
        !fields.has_body,
        Refusal::Malformed("an upgrade request has no body"),
    )?;
    let style = query_style(head.query)?;
    let origin = match fields.origin.optional("Origin is repeated")? {
        Some(origin) => Some(
            std::str::from_utf8(origin).map_err(|_| Refusal::Malformed("Origin must be text"))?,
        ),
        None => None,
    };
    let bearer = match fields.authorization.optional("Authorization is repeated")? {
        Some(authorization) => bearer(authorization)?,
        None => None,
    };
    Ok(Upgrade {
        key,
        bearer,
        style,
        origin,
    })
}

/// Path and query of a target. In its absolute form, which proxies send and servers must take (RFC 9112 section
/// 3.2.2), what stands before the path is passed over, and an empty path is `/`.
fn path_and_query(target: &str) -> (&str, &str) {
    let (before, query) = target.split_once('?').unwrap_or((target, ""));
    let is_scheme = |scheme: &str| {
        let is_of_it =
            |byte| matches!(byte, b'+' | b'-' | b'.') || u8::is_ascii_alphanumeric(&byte);
        !scheme.is_empty() && scheme.bytes().all(is_of_it)
    };
    let path = match before.split_once("://") {
        Some((scheme, behind)) if is_scheme(scheme) => {
            behind.find('/').map_or("/", |at| &behind[at..])
        }
        Some(_) | None => before,
    };
    (path, query)
}

/// Whether a comma-separated list (RFC 9110 section 5.6.1) has no element.
fn is_empty_list(list: &[u8]) -> bool {
    list.split(|byte| *byte == b',')
        .all(|element| element.trim_ascii().is_empty())
}

/// Whether a comma-separated list (RFC 9110 section 5.6.1) has `token`, whatever its case.
fn list_names(list: &[u8], token: &[u8]) -> bool {
    list.split(|byte| *byte == b',')
        .any(|name| name.trim_ascii().eq_ignore_ascii_case(token))
}

/// The key, if it is the base64 of 16 bytes: 22 characters of the alphabet, and two of padding.
fn websocket_key(value: &[u8]) -> Option<&str> {
    let key = value.trim_ascii();
    let characters = key.strip_suffix(b"==")?;
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    if characters.len() != 22 || !characters.iter().all(is_base64) {
        return None;
    }
    std::str::from_utf8(key).ok()
}

fn query_style(query: &str) -> Result<Option<Style>, Refusal> {
    let style = query.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name == "style").then_some(value)
    });
    match style {
        None => Ok(None),
        Some("piston") => Ok(Some(Style::Piston)),
        Some("kazoo") => Ok(Some(Style::Kazoo)),
        Some(_) => Err(Refusal::Malformed("style must be piston or kazoo")),
    }
}

/// The token of a `Bearer` value (RFC 6750 section 2.1); `None` for another scheme.
fn bearer(value: &[u8]) -> Result<Option<&str>, Refusal> {
    let value = value.trim_ascii();
    let end = value
        .iter()
        .position(|byte| *byte == b' ')
        .unwrap_or(value.len());
    let (scheme, token) = value.split_at(end);
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Ok(None);
    }
    let token = token.trim_ascii();
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(Refusal::InvalidToken);
    }
    std::str::from_utf8(token)
        .map(Some)
        .map_err(|_| Refusal::InvalidToken)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    /// An upgrade request with `changes` made to the lines of a good one: a line whose field is in it is
    /// replaced by all lines of that field in `changes`, the others are added.
    fn upgrade_with(request_line: &str, changes: &[&str]) -> String {
        let field = |line: &str| {
            line.split(':')
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase()
        };
        let good = [
            "Host: bridge.example",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ];
        let mut head = format!("{request_line}\r\n");
        for line in good {
            if !changes.iter().any(|change| field(change) == field(line)) {
                head += &format!("{line}\r\n");
            }
        }
        for change in changes.iter().filter(|change| change.contains(':')) {
            head += &format!("{change}\r\n");
        }
        head + "\r\n"
    }

    fn upgrade(changes: &[&str]) -> String {
        upgrade_with("GET /any/path HTTP/1.1", changes)
    }

    fn refusal_of(head: &str) -> Option<Refusal> {
        match parse(head.as_bytes()) {
            Parsed::Complete {
                request: Request::Refuse(refused),
                ..
            } => Some(refused.refusal),
            _ => None,
        }
    }

    #[test]
    fn an_upgrade_is_answered_with_the_accept_key_of_the_rfc() {
        let head = upgrade(&[]);
        let Parsed::Complete {
            consumed,
            request: Request::Upgrade(upgrade),
        } = parse(head.as_bytes())
        else {
            panic!("{head}")
        };
        assert_eq!(consumed, head.len());
        assert_eq!(
            (upgrade.key, upgrade.bearer, upgrade.style, upgrade.origin),
            (KEY, None, None, None)
        );
        assert_eq!(
            String::from_utf8(upgrade.response()).expect("ASCII"),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        );
    }

    #[test]
    fn every_spelling_of_a_valid_upgrade_is_taken() {
        for (request_line, changes) in [
            ("GET / HTTP/1.1", &[][..]),
            ("GET http://bridge.example/socket HTTP/1.1", &[]),
            ("GET * HTTP/1.1", &[]),
            ("GET / HTTP/1.1", &["Sec-WebSocket-Protocol:"]),
            (
                "GET / HTTP/1.1",
                &["Sec-WebSocket-Protocol: ,", "Sec-WebSocket-Protocol:  , "],
            ),
            ("GET /?x=1&y HTTP/1.1", &["connection: keep-alive, uPgRaDe"]),
            (
                "GET / HTTP/1.1",
                &["Connection: keep-alive", "Connection: Upgrade"],
            ),
            ("GET / HTTP/1.1", &["Upgrade: h2c ,  WebSocket"]),
            ("GET / HTTP/1.1", &["upgrade: h2c", "upgrade: websocket"]),
            (
                "GET / HTTP/1.1",
                &["Sec-WebSocket-Extensions: permessage-deflate"],
            ),
            ("GET / HTTP/1.1", &["Content-Length: 0"]),
            ("GET / HTTP/1.1", &["Authorization: Basic dTpw"]),
            (
                "GET / HTTP/1.1",
                &["SEC-WEBSOCKET-KEY:   dGhlIHNhbXBsZSBub25jZQ==  "],
            ),
        ] {
            let head = upgrade_with(request_line, changes);
            assert!(
                matches!(
                    parse(head.as_bytes()),
                    Parsed::Complete {
                        request: Request::Upgrade(_),
                        ..
                    }
                ),
                "{head}"
            );
        }
    }

    #[test]
    fn an_absolute_target_is_taken_like_its_origin_form() {
        for (target, expected) in [
            ("/a?b", ("/a", "b")),
            ("/?a?b", ("/", "a?b")),
            ("/a?x=http://b/c", ("/a", "x=http://b/c")),
            ("http://host/a?b", ("/a", "b")),
            ("http://host", ("/", "")),
            ("http://host/", ("/", "")),
            ("http://host?style=kazoo", ("/", "style=kazoo")),
            ("ws://host:5555?style=kazoo", ("/", "style=kazoo")),
            (
                "WSS://host:5555?style=kazoo&x=/y",
                ("/", "style=kazoo&x=/y"),
            ),
            ("http://host?", ("/", "")),
            ("http://[::1]:5555/a//b", ("/a//b", "")),
            ("*", ("*", "")),
            ("host:5555", ("host:5555", "")),
            ("://host/a", ("://host/a", "")),
            ("/x://host/a", ("/x://host/a", "")),
        ] {
            assert_eq!(path_and_query(target), expected, "{target}");
        }
        let head = upgrade_with("GET ws://bridge.example:5555?style=kazoo HTTP/1.1", &[]);
        let Parsed::Complete {
            request: Request::Upgrade(upgrade),
            ..
        } = parse(head.as_bytes())
        else {
            panic!("{head}")
        };
        assert_eq!(upgrade.style, Some(Style::Kazoo));
        let head = "HEAD http://bridge.example:5559/readyz?now HTTP/1.1\r\n\r\n";
        let Parsed::Complete {
            request: PlainRequest::Plain { path, .. },
            ..
        } = parse_plain(head.as_bytes())
        else {
            panic!("{head}")
        };
        assert_eq!(path, "/readyz");
    }

    #[test]
    fn token_style_and_origin_of_an_upgrade_are_handed_on() {
        for (target, changes, bearer, style, origin) in [
            (
                "/?style=kazoo",
                &["Authorization: Bearer a.b-c_d~e+f/g="][..],
                Some("a.b-c_d~e+f/g="),
                Some(Style::Kazoo),
                None,
            ),
            (
                "/x?a=b&style=piston&c",
                &["Origin: https://ui.example"],
                None,
                Some(Style::Piston),
                Some("https://ui.example"),
            ),
            (
                "/?styles=kazoo&mystyle=kazoo",
                &["Authorization: bEARER   token "],
                Some("token"),
                None,
                None,
            ),
        ] {
            let head = upgrade_with(&format!("GET {target} HTTP/1.1"), changes);
            let Parsed::Complete {
                request: Request::Upgrade(upgrade),
                ..
            } = parse(head.as_bytes())
            else {
                panic!("{head}")
            };
            assert_eq!(
                (upgrade.bearer, upgrade.style, upgrade.origin),
                (bearer, style, origin),
                "{head}"
            );
        }
    }

    #[test]
    fn the_token_is_not_in_the_debug_text() {
        let head = upgrade(&["Authorization: Bearer hunter2"]);
        let shown = format!("{:?}", parse(head.as_bytes()));
        assert!(
            shown.contains("masked") && !shown.contains("hunter2"),
            "{shown}"
        );
    }

    #[test]
    fn every_bad_upgrade_is_refused_with_its_status() {
        let malformed = 400;
        for (changes, status, text) in [
            (&["Host"][..], malformed, "Host is missing"),
            (&["Host: a", "Host: b"], malformed, "Host is repeated"),
            (&["Connection"], malformed, "Connection must"),
            (&["Connection: keep-alive"], malformed, "Connection must"),
            (
                &["Connection: no-upgrade, upgraded"],
                malformed,
                "Connection must",
            ),
            (&["Upgrade"], malformed, "Upgrade must"),
            (&["Upgrade: h2c"], malformed, "Upgrade must"),
            (&["Sec-WebSocket-Version"], malformed, "Version is missing"),
            (
                &["Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 13"],
                malformed,
                "Version is repeated",
            ),
            (&["Sec-WebSocket-Version: 8"], 426, "version 13"),
            (&["Sec-WebSocket-Version: 13, 8"], 426, "version 13"),
            (&["Sec-WebSocket-Version: 013"], 426, "version 13"),
            (&["Sec-WebSocket-Key"], malformed, "Key is missing"),
            (
                &[
                    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                ],
                malformed,
                "Key is repeated",
            ),
            (&["Sec-WebSocket-Key: "], malformed, "16 bytes"),
            (
                &["Sec-WebSocket-Key: SGVsbG8sIHdvcmxkIQ=="],
                malformed,
                "16 bytes",
            ),
            (
                &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ"],
                malformed,
                "16 bytes",
            ),
            (
                &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQA="],
                malformed,
                "16 bytes",
            ),
            (
                &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j-Q=="],
                malformed,
                "16 bytes",
            ),
            (
                &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j\u{e9}Q=="],
                malformed,
                "16 bytes",
            ),
            (&["Sec-WebSocket-Protocol: mqtt"], malformed, "sub-protocol"),
            (
                &["Sec-WebSocket-Protocol:", "Sec-WebSocket-Protocol: ,a"],
                malformed,
                "sub-protocol",
            ),
            (&["Content-Length: 1"], malformed, "no body"),
            (&["Content-Length: 0, 5"], malformed, "no body"),
            (&["Transfer-Encoding: chunked"], malformed, "no body"),
            (&["Origin: a", "Origin: b"], malformed, "Origin is repeated"),
            (
                &["Authorization: Bearer a", "Authorization: Bearer a"],
                malformed,
                "Authorization is repeated",
            ),
            (&["Authorization: Bearer"], 403, "authenticate"),
            (&["Authorization: Bearer  "], 403, "authenticate"),
            (&["Authorization: Bearer a b"], 403, "authenticate"),
            (&["Authorization: Bearer \u{e9}"], 403, "authenticate"),
        ] {
            let head = upgrade(changes);
            let refusal = refusal_of(&head).unwrap_or_else(|| panic!("not refused: {head}"));
            assert_eq!(refusal.status(), status, "{head}");
            assert!(refusal.text().contains(text), "{head}: {}", refusal.text());
        }
        let mut head = upgrade(&["Origin: X"]).into_bytes();
        let at = head
            .iter()
            .rposition(|byte| *byte == b'X')
            .expect("it is there");
        head[at] = 0xE9;
        assert!(
            matches!(parse(&head), Parsed::Complete { request: Request::Refuse(Refused { refusal, .. }), .. }
                if refusal == Refusal::Malformed("Origin must be text"))
        );
    }

    #[test]
    fn bytes_that_are_no_http_head_are_malformed() {
        for head in [
            "\u{1}",
            "GET\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nName : value\r\n\r\n",
            "GET / HTTP/1.1\r\nFolded: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\nNul: \0\r\n\r\n",
            "GET / page HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(
                refusal_of(head),
                Some(Refusal::Malformed("malformed HTTP request")),
                "{head:?}"
            );
        }
        for tls in [&[0x16][..], &[0x16, 3, 1, 2, 0, 1, 0]] {
            assert!(
                matches!(parse(tls), Parsed::Complete { request: Request::Refuse(Refused { refusal, .. }), .. }
                    if refusal == Refusal::Malformed("this port does not speak TLS"))
            );
        }
    }

    #[test]
    fn without_an_upgrade_only_the_root_is_a_page() {
        for (head, expected) in [
            (
                "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                Request::Probe(Method::Get),
            ),
            ("GET / HTTP/1.0\r\n\r\n", Request::Probe(Method::Get)),
            ("HEAD / HTTP/1.1\r\n\r\n", Request::Probe(Method::Head)),
            ("GET /?now HTTP/1.1\r\n\r\n", Request::Probe(Method::Get)),
            ("GET http://a HTTP/1.1\r\n\r\n", Request::Probe(Method::Get)),
            (
                "GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
                Request::Probe(Method::Get),
            ),
            (
                "GET /x HTTP/1.1\r\n\r\n",
                Request::Refuse(Refused {
                    refusal: Refusal::NotFound,
                    head_only: false,
                }),
            ),
            (
                "HEAD /x HTTP/1.1\r\n\r\n",
                Request::Refuse(Refused {
                    refusal: Refusal::NotFound,
                    head_only: true,
                }),
            ),
            (
                "POST / HTTP/1.1\r\n\r\n",
                Request::Refuse(Refused {
                    refusal: Refusal::MethodNotAllowed,
                    head_only: false,
                }),
            ),
            (
                "OPTIONS * HTTP/1.0\r\n\r\n",
                Request::Refuse(Refused {
                    refusal: Refusal::MethodNotAllowed,
                    head_only: false,
                }),
            ),
        ] {
            assert_eq!(
                parse(head.as_bytes()),
                Parsed::Complete {
                    consumed: head.len(),
                    request: expected
                },
                "{head}"
            );
        }
        let head = upgrade_with("HEAD / HTTP/1.1", &[]);
        assert!(
            matches!(
                parse(head.as_bytes()),
                Parsed::Complete {
                    request: Request::Probe(Method::Head),
                    ..
                }
            ),
            "HEAD never upgrades"
        );
    }

    /// Every fault of the documented order, made one after the other from the last to the first: the one made
    /// last must be the one that is answered.
    #[test]
    fn of_several_faults_the_first_of_the_documented_order_is_answered() {
        let mut request_line = "GET / HTTP/1.1".to_owned();
        let mut changes: Vec<&str> = Vec::new();
        let mut check = |fault: Result<&str, &'static str>, gone: &str, expected: &str| {
            match fault {
                Ok(line) => request_line = line.to_owned(),
                Err(change) => {
                    changes.retain(|old| gone.is_empty() || !old.starts_with(gone));
                    changes.push(change);
                }
            }
            let head = upgrade_with(&request_line, &changes);
            let refusal = refusal_of(&head).unwrap_or_else(|| panic!("not refused: {head}"));
            assert!(
                refusal.text().contains(expected),
                "{head}: {}",
                refusal.text()
            );
        };
        check(Err("Authorization: Bearer"), "", "authenticate");
        check(Err("Authorization: x"), "", "Authorization is repeated");
        check(Err("Origin: a"), "", "Authorization is repeated");
        check(Err("Origin: b"), "", "Origin is repeated");
        check(Ok("GET /?style=xml HTTP/1.1"), "", "style");
        check(Err("Content-Length: 7"), "", "no body");
        check(Err("Sec-WebSocket-Protocol: x"), "", "sub-protocol");
        check(Err("Sec-WebSocket-Key: x"), "", "16 bytes");
        check(Err("Sec-WebSocket-Version: 12"), "", "version 13");
        check(
            Err("Sec-WebSocket-Version"),
            "Sec-WebSocket-Version",
            "Version is missing",
        );
        check(Err("Upgrade: h2c"), "", "Upgrade must");
        check(Err("Connection: close"), "", "Connection must");
        check(Err("Host"), "", "Host is missing");
        check(Ok("GET /?style=xml HTTP/1.0"), "", "HTTP/1.1");
        check(Ok("PUT /?style=xml HTTP/1.0"), "", "method");
        check(Ok("PUT /?style=xml HTTP/3.0"), "", "malformed");
    }

    #[test]
    fn a_head_may_have_exactly_as_many_bytes_and_headers_as_the_limits_say() {
        let head_of = |length: usize| {
            let bare = upgrade(&["Padding: "]);
            upgrade(&[&format!("Padding: {}", "x".repeat(length - bare.len()))])
        };
        let largest = head_of(HEAD_BYTES_MAX);
        assert_eq!(largest.len(), HEAD_BYTES_MAX);
        assert_eq!(refusal_of(&largest), None);
        assert_eq!(
            parse(&largest.as_bytes()[..HEAD_BYTES_MAX - 1]),
            Parsed::Incomplete
        );
        let larger = head_of(HEAD_BYTES_MAX + 1);
        assert_eq!(refusal_of(&larger), Some(Refusal::HeadTooLarge));
        assert_eq!(
            refusal_of(&larger[..HEAD_BYTES_MAX]),
            Some(Refusal::HeadTooLarge),
            "no waiting for its end"
        );
        let followed = format!("{largest}more");
        assert!(matches!(
            parse(followed.as_bytes()),
            Parsed::Complete {
                consumed: HEAD_BYTES_MAX,
                request: Request::Upgrade(_)
            }
        ));

        let headers_of = |count: usize| upgrade(&vec!["X: y"; count - 5]);
        assert_eq!(refusal_of(&headers_of(HEADERS_MAX)), None);
        assert_eq!(
            refusal_of(&headers_of(HEADERS_MAX + 1)),
            Some(Refusal::HeadTooLarge)
        );
    }

    #[test]
    fn every_refusal_is_a_response_with_its_status_its_line_and_its_headers() {
        for (refusal, status_line, header) in [
            (Refusal::Malformed("why"), "400 Bad Request", ""),
            (Refusal::SubProtocol, "400 Bad Request", ""),
            (Refusal::InvalidToken, "403 Forbidden", ""),
            (Refusal::OriginNotAllowed, "403 Forbidden", ""),
            (Refusal::NotFound, "404 Not Found", ""),
            (
                Refusal::MethodNotAllowed,
                "405 Method Not Allowed",
                "Allow: GET, HEAD\r\n",
            ),
            (
                Refusal::UnsupportedVersion,
                "426 Upgrade Required",
                "Sec-WebSocket-Version: 13\r\n",
            ),
            (Refusal::TooManyFromThisIp, "429 Too Many Requests", ""),
            (Refusal::TooManyOfThisAccount, "429 Too Many Requests", ""),
            (
                Refusal::HeadTooLarge,
                "431 Request Header Fields Too Large",
                "",
            ),
            (
                Refusal::Full,
                "503 Service Unavailable",
                "Retry-After: 5\r\n",
            ),
            (
                Refusal::Draining,
                "503 Service Unavailable",
                "Retry-After: 5\r\n",
            ),
            (
                Refusal::SourceDown,
                "503 Service Unavailable",
                "Retry-After: 5\r\n",
            ),
        ] {
            let whole = String::from_utf8(refusal.response(false)).expect("ASCII");
            let (head, body) = whole.split_once("\r\n\r\n").expect("a head");
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status_line}\r\n")),
                "{whole}"
            );
            assert!(status_line.starts_with(&refusal.status().to_string()));
            assert!(head.contains(header.trim_end()), "{whole}");
            assert_eq!(body, format!("{}\n", refusal.text()));
            let mut headers = [httparse::EMPTY_HEADER; 8];
            let mut parsed = httparse::Response::new(&mut headers);
            assert!(parsed.parse(whole.as_bytes()).expect("valid").is_complete());
            let value_of = |name: &str| {
                let header = parsed.headers.iter().find(|header| header.name == name);
                header.map(|header| String::from_utf8_lossy(header.value).into_owned())
            };
            assert_eq!(value_of("Content-Length"), Some(body.len().to_string()));
            assert_eq!(value_of("Connection").as_deref(), Some("close"));
            assert_eq!(value_of("Content-Type").as_deref(), Some("text/plain"));
            let head_only = String::from_utf8(refusal.response(true)).expect("ASCII");
            assert_eq!(head_only, format!("{head}\r\n\r\n"));
        }
    }

    #[test]
    fn a_probe_is_answered_200_when_ready_and_503_when_not() {
        let ready = String::from_utf8(probe_response(Method::Get, None)).expect("ASCII");
        assert!(ready.starts_with("HTTP/1.1 200 OK\r\n") && ready.ends_with("\r\n\r\nok\n"));
        let ready = String::from_utf8(probe_response(Method::Head, None)).expect("ASCII");
        assert!(ready.contains("Content-Length: 3\r\n") && ready.ends_with("\r\n\r\n"));
        let draining = probe_response(Method::Get, Some(Refusal::Draining));
        assert_eq!(draining, Refusal::Draining.response(false));
    }

    #[test]
    fn the_admin_listener_gets_method_and_path_of_any_page() {
        let head = "HEAD /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(
            parse_plain(head.as_bytes()),
            Parsed::Complete {
                consumed: head.len(),
                request: PlainRequest::Plain {
                    method: Method::Head,
                    path: "/metrics"
                }
            }
        );
        assert_eq!(parse_plain(&head.as_bytes()[..20]), Parsed::Incomplete);
        let refused = |input: &[u8]| match parse_plain(input) {
            Parsed::Complete {
                request: PlainRequest::Refuse(refused),
                ..
            } => Some(refused.refusal.status()),
            _ => None,
        };
        assert_eq!(refused(b"DELETE /metrics HTTP/1.1\r\n\r\n"), Some(405));
        assert_eq!(refused(b"\0"), Some(400));
        assert_eq!(refused(&[b'x'; HEAD_BYTES_MAX]), Some(431));
    }

    #[test]
    fn a_head_cut_anywhere_is_incomplete_until_it_is_whole() {
        for head in [
            upgrade(&["Authorization: Bearer t"]),
            "GET / HTTP/1.0\r\n\r\n".to_owned(),
            "\r\n\r\nGET / HTTP/1.1\nHost: bare line feeds\n\n".to_owned(),
            upgrade(&["Sec-WebSocket-Protocol: x"]),
        ] {
            for length in 0..head.len() {
                assert_eq!(
                    parse(&head.as_bytes()[..length]),
                    Parsed::Incomplete,
                    "{length} bytes of {head}"
                );
            }
            assert_ne!(parse(head.as_bytes()), Parsed::Incomplete, "{head}");
        }
    }
}
