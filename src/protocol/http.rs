//! HTTP/1.1 as far as it is spoken here (RFC 9112): the head of a request, how long its body is, and whole responses; for
//! the websocket port and the admin address.
//!
//! This module owns what a head is, its bounds, the fields that mean something here, and the statuses and texts of all
//! errors. It keeps nothing between calls: the caller keeps the bytes until a head is complete. What a path means is not
//! known here ([`super::handshake`], [`super::admin`]).
//!
//! The cost of a call is linear in the input. A head that arrives in `n` pieces is read `n` times: one that arrives byte
//! by byte costs at most [`HEAD_BYTES_MAX`]² / 2 steps, and the caller's deadline for a handshake ends it.

use std::fmt::Write;

/// Longest head, from the request line to the empty line. A longer one gets 431.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Most headers of one request. More get 431.
pub const HEADERS_MAX: usize = 64;

/// Longest body of a request. It is read and discarded, because no request needs one; a longer one is refused (413).
pub const BODY_BYTES_MAX: usize = 8 * 1024;

/// How long a refused client is told to wait before it tries again, where waiting may help.
const RETRY_AFTER_SECONDS: u32 = 5;

/// First byte of a TLS record that starts a handshake (RFC 8446 section 5.1). No HTTP request starts with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// What the bytes that have arrived are.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<R> {
    /// A valid beginning: call again with more.
    Incomplete,
    /// The head is complete, or so wrong that the rest of it does not matter.
    Complete {
        /// How many bytes at the start of the input were read. Those behind an upgrade are for the codec.
        consumed: usize,
        /// What the client asks for.
        request: R,
    },
}

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `GET`: the response has a body.
    Get,
    /// `HEAD`: the response to `GET`, without its body.
    Head,
    /// `POST`.
    Post,
    /// `DELETE`.
    Delete,
    /// Any other, which is allowed nowhere.
    Other,
}

/// The statuses of all responses (RFC 9110 section 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200.
    Ok,
    /// 202: what was asked for has begun.
    Accepted,
    /// 304: the asker has it already.
    NotModified,
    /// 400.
    BadRequest,
    /// 401: a bearer token is needed.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 409: not in the state that the process is in.
    Conflict,
    /// 411: a body whose length is not told.
    LengthRequired,
    /// 413: a body above [`BODY_BYTES_MAX`].
    ContentTooLarge,
    /// 417: `Expect` is not understood.
    ExpectationFailed,
    /// 421: `Host` names another server.
    MisdirectedRequest,
    /// 426.
    UpgradeRequired,
    /// 429.
    TooManyRequests,
    /// 431.
    HeadTooLarge,
    /// 500.
    InternalError,
    /// 503.
    Unavailable,
}

impl Status {
    /// The code.
    #[must_use]
    pub fn code(self) -> u16 {
        self.code_and_phrase().0
    }

    fn code_and_phrase(self) -> (u16, &'static str) {
        match self {
            Self::Ok => (200, "OK"),
            Self::Accepted => (202, "Accepted"),
            Self::NotModified => (304, "Not Modified"),
            Self::BadRequest => (400, "Bad Request"),
            Self::Unauthorized => (401, "Unauthorized"),
            Self::Forbidden => (403, "Forbidden"),
            Self::NotFound => (404, "Not Found"),
            Self::MethodNotAllowed => (405, "Method Not Allowed"),
            Self::Conflict => (409, "Conflict"),
            Self::LengthRequired => (411, "Length Required"),
            Self::ContentTooLarge => (413, "Content Too Large"),
            Self::ExpectationFailed => (417, "Expectation Failed"),
            Self::MisdirectedRequest => (421, "Misdirected Request"),
            Self::UpgradeRequired => (426, "Upgrade Required"),
            Self::TooManyRequests => (429, "Too Many Requests"),
            Self::HeadTooLarge => (431, "Request Header Fields Too Large"),
            Self::InternalError => (500, "Internal Server Error"),
            Self::Unavailable => (503, "Service Unavailable"),
        }
    }
}

/// The response to a request that is refused: why, and whether its body is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorResponse {
    /// Why.
    pub error: HttpError,
    /// The request was a `HEAD`.
    pub head_only: bool,
}

/// Why a request is refused, by this module or by its caller. Each error has a status, a line of text and headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpError {
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
    /// 503: nobody can say whether the bearer token is good.
    AuthenticationUnavailable,
}

/// A whole response with a body.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// Its status.
    pub status: Status,
    /// `Content-Type`.
    pub content_type: &'a str,
    /// More fields, complete lines, each with its CR LF.
    pub headers: &'a str,
    /// The body.
    pub body: &'a [u8],
}

impl Response<'_> {
    /// The bytes. `head_only`: without the body, for a `HEAD`; `Content-Length` is that of the body all the same.
    /// `is_last`: the connection is closed after it.
    #[must_use]
    pub fn bytes(&self, head_only: bool, is_last: bool) -> Vec<u8> {
        let mut head = status_line(self.status);
        // Writing to a String cannot fail.
        let _ = write!(
            head,
            "Content-Type: {}\r\nContent-Length: {}\r\n{}{}\r\n",
            self.content_type,
            self.body.len(),
            self.headers,
            if is_last { "Connection: close\r\n" } else { "" },
        );
        let mut bytes = head.into_bytes();
        if !head_only {
            bytes.extend_from_slice(self.body);
        }
        bytes
    }
}

/// The head of a 200 whose body ends with the connection, because its length is not known (RFC 9112 section 6.3).
#[must_use]
pub fn stream_head(content_type: &str, headers: &str) -> Vec<u8> {
    let line = status_line(Status::Ok);
    format!("{line}Content-Type: {content_type}\r\n{headers}Connection: close\r\n\r\n").into_bytes()
}

fn status_line(status: Status) -> String {
    let (code, phrase) = status.code_and_phrase();
    format!("HTTP/1.1 {code} {phrase}\r\n")
}

/// The content type of the responses of this module.
pub const TEXT: &str = "text/plain";

impl HttpError {
    /// Status code.
    #[must_use]
    pub fn status(self) -> u16 {
        self.status_word().code()
    }

    /// Status.
    #[must_use]
    pub fn status_word(self) -> Status {
        match self {
            Self::Malformed(_) | Self::SubProtocol => Status::BadRequest,
            Self::InvalidToken | Self::OriginNotAllowed => Status::Forbidden,
            Self::NotFound => Status::NotFound,
            Self::MethodNotAllowed => Status::MethodNotAllowed,
            Self::UnsupportedVersion => Status::UpgradeRequired,
            Self::TooManyFromThisIp | Self::TooManyOfThisAccount => Status::TooManyRequests,
            Self::HeadTooLarge => Status::HeadTooLarge,
            Self::Full | Self::Draining | Self::SourceDown | Self::AuthenticationUnavailable => {
                Status::Unavailable
            }
        }
    }

    /// The line of text that is the body. It is fixed, so it can be logged.
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
            Self::AuthenticationUnavailable => "authentication unavailable",
        }
    }

    /// The fields that belong to it, complete lines.
    #[must_use]
    pub fn headers(self) -> String {
        match self {
            Self::MethodNotAllowed => "Allow: GET, HEAD\r\n".to_owned(),
            Self::UnsupportedVersion => {
                "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n".to_owned()
            }
            Self::Full | Self::Draining | Self::SourceDown | Self::AuthenticationUnavailable => {
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
        }
    }

    /// The response, after which the connection is closed. `head_only`: without the body, for a `HEAD`.
    #[must_use]
    pub fn response(self, head_only: bool) -> Vec<u8> {
        let response = Response {
            status: self.status_word(),
            content_type: TEXT,
            headers: &self.headers(),
            body: &[self.text().as_bytes(), b"\n"].concat(),
        };
        response.bytes(head_only, true)
    }
}

/// A complete head.
pub(super) struct Head<'a> {
    pub(super) method: Method,
    pub(super) is_http_1_1: bool,
    /// The authority of a target in absolute form; it counts in place of `Host` (RFC 9112 section 3.2.2).
    pub(super) authority: Option<&'a str>,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) fields: Fields<'a>,
}

/// The header fields that mean something here.
#[derive(Default)]
pub(super) struct Fields<'a> {
    pub(super) host: Single<'a>,
    pub(super) key: Single<'a>,
    pub(super) version: Single<'a>,
    pub(super) origin: Single<'a>,
    pub(super) authorization: Single<'a>,
    pub(super) if_none_match: Single<'a>,
    /// `Connection` names `upgrade`.
    pub(super) connection_upgrade: bool,
    /// `Upgrade` names `websocket`.
    pub(super) upgrade_websocket: bool,
    pub(super) has_sub_protocol: bool,
    /// All fields `Sec-WebSocket-Extensions`, in their order.
    pub(super) extensions: Vec<&'a [u8]>,
    pub(super) fetch_site: Single<'a>,
    /// `Connection` names `close`.
    pub(super) connection_close: bool,
    pub(super) has_expectation: bool,
    pub(super) has_transfer_encoding: bool,
    pub(super) content_length: ContentLength,
}

impl Fields<'_> {
    /// Whether there is a body, or it cannot be told.
    pub(super) fn has_body(&self) -> bool {
        let has_length = !matches!(
            self.content_length,
            ContentLength::Absent | ContentLength::Bytes(0)
        );
        self.has_transfer_encoding || has_length
    }
}

/// `Content-Length` (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ContentLength {
    #[default]
    Absent,
    /// So many; more than fit are as good as the largest number.
    Bytes(u64),
    /// No number, or two that differ: nobody can tell where the next request begins.
    Invalid,
}

impl ContentLength {
    fn add(&mut self, value: &[u8]) {
        let value = value.trim_ascii();
        let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let digits = value
            .iter()
            .map(|byte| u64::from(byte.saturating_sub(b'0')));
        let bytes = digits.fold(0_u64, |sum, digit| {
            sum.saturating_mul(10).saturating_add(digit)
        });
        *self = match *self {
            _ if !is_number => Self::Invalid,
            Self::Absent => Self::Bytes(bytes),
            Self::Bytes(before) if before == bytes => Self::Bytes(bytes),
            Self::Bytes(_) | Self::Invalid => Self::Invalid,
        };
    }
}

/// A field that may occur once.
#[derive(Clone, Copy, Default)]
pub(super) enum Single<'a> {
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

    pub(super) fn is_present(self) -> bool {
        !matches!(self, Self::Absent)
    }

    /// The value of a field that must be there.
    pub(super) fn required(
        self,
        missing: &'static str,
        repeated: &'static str,
    ) -> Result<&'a [u8], HttpError> {
        self.optional(repeated)?
            .ok_or(HttpError::Malformed(missing))
    }

    pub(super) fn optional(self, repeated: &'static str) -> Result<Option<&'a [u8]>, HttpError> {
        match self {
            Self::Absent => Ok(None),
            Self::Once(value) => Ok(Some(value)),
            Self::Repeated => Err(HttpError::Malformed(repeated)),
        }
    }
}

/// Reads a head. Bytes that are none, and a head that is too long or has too many headers, are refused.
pub(super) fn parse_head(input: &[u8]) -> Parsed<Result<Head<'_>, ErrorResponse>> {
    let refuse = |error, head_only| Parsed::Complete {
        consumed: input.len(),
        request: Err(ErrorResponse { error, head_only }),
    };
    if input.first() == Some(&TLS_HANDSHAKE) {
        return refuse(HttpError::Malformed("this port does not speak TLS"), false);
    }
    let within = input.get(..HEAD_BYTES_MAX).unwrap_or(input);
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let consumed = match request.parse(within) {
        Ok(httparse::Status::Complete(consumed)) => consumed,
        Ok(httparse::Status::Partial) if within.len() < HEAD_BYTES_MAX => {
            return Parsed::Incomplete;
        }
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return refuse(HttpError::HeadTooLarge, false);
        }
        Err(_) => return refuse(HttpError::Malformed("malformed HTTP request"), false),
    };
    let method = match request.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        Some("POST") => Method::Post,
        Some("DELETE") => Method::Delete,
        Some(_) | None => Method::Other,
    };
    let (authority, path, query) = target_parts(request.path.unwrap_or("/"));
    let is_http_1_1 = request.version == Some(1);
    let fields = read_fields(request.headers);
    Parsed::Complete {
        consumed,
        request: Ok(Head {
            method,
            is_http_1_1,
            authority,
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
            fields.connection_close |= list_names(value, b"close");
        } else if is("upgrade") {
            fields.upgrade_websocket |= list_names(value, b"websocket");
        } else if is("sec-websocket-key") {
            fields.key.add(value);
        } else if is("sec-websocket-version") {
            fields.version.add(value);
        } else if is("sec-websocket-protocol") {
            fields.has_sub_protocol |= !is_empty_list(value);
        } else if is("sec-websocket-extensions") {
            fields.extensions.push(value);
        } else if is("origin") {
            fields.origin.add(value);
        } else if is("authorization") {
            fields.authorization.add(value);
        } else if is("if-none-match") {
            fields.if_none_match.add(value);
        } else if is("transfer-encoding") {
            fields.has_transfer_encoding = true;
        } else if is("content-length") {
            fields.content_length.add(value);
        } else if is("expect") {
            fields.has_expectation = true;
        } else if is("sec-fetch-site") {
            fields.fetch_site.add(value);
        }
    }
    fields
}

/// Authority, path and query of a target. The absolute form, which proxies send and servers must take (RFC 9112 section
/// 3.2.2), has an authority; an empty path is `/`.
fn target_parts(target: &str) -> (Option<&str>, &str, &str) {
    let (before, query) = target.split_once('?').unwrap_or((target, ""));
    let is_scheme = |scheme: &str| {
        let is_of_it =
            |byte| matches!(byte, b'+' | b'-' | b'.') || u8::is_ascii_alphanumeric(&byte);
        !scheme.is_empty() && scheme.bytes().all(is_of_it)
    };
    match before.split_once("://") {
        Some((scheme, behind)) if is_scheme(scheme) => {
            let (authority, path) = match behind.find('/') {
                Some(at) => behind.split_at(at),
                None => (behind, "/"),
            };
            (Some(authority), path, query)
        }
        Some(_) | None => (None, before, query),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_a_response_with_its_status_its_line_and_its_headers() {
        for (error, status_line, header) in [
            (HttpError::Malformed("why"), "400 Bad Request", ""),
            (HttpError::SubProtocol, "400 Bad Request", ""),
            (HttpError::InvalidToken, "403 Forbidden", ""),
            (HttpError::OriginNotAllowed, "403 Forbidden", ""),
            (HttpError::NotFound, "404 Not Found", ""),
            (
                HttpError::MethodNotAllowed,
                "405 Method Not Allowed",
                "Allow: GET, HEAD\r\n",
            ),
            (
                HttpError::UnsupportedVersion,
                "426 Upgrade Required",
                "Sec-WebSocket-Version: 13\r\n",
            ),
            (HttpError::TooManyFromThisIp, "429 Too Many Requests", ""),
            (HttpError::TooManyOfThisAccount, "429 Too Many Requests", ""),
            (
                HttpError::HeadTooLarge,
                "431 Request Header Fields Too Large",
                "",
            ),
            (
                HttpError::Full,
                "503 Service Unavailable",
                "Retry-After: 5\r\n",
            ),
            (
                HttpError::Draining,
                "503 Service Unavailable",
                "Retry-After: 5\r\n",
            ),
            (
                HttpError::SourceDown,
                "503 Service Unavailable",
                "Retry-After: 5\r\n",
            ),
        ] {
            let whole = String::from_utf8(error.response(false)).expect("ASCII");
            let (head, body) = whole.split_once("\r\n\r\n").expect("a head");
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status_line}\r\n")),
                "{whole}"
            );
            assert!(status_line.starts_with(&error.status().to_string()));
            assert!(head.contains(header.trim_end()), "{whole}");
            assert_eq!(body, format!("{}\n", error.text()));
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
            let head_only = String::from_utf8(error.response(true)).expect("ASCII");
            assert_eq!(head_only, format!("{head}\r\n\r\n"));
        }
    }

    #[test]
    fn the_length_of_a_body_is_one_number_or_nobody_knows_it() {
        use ContentLength::{Absent, Bytes, Invalid};
        for (lines, expected) in [
            (&[][..], Absent),
            (&["0"], Bytes(0)),
            (&[" 12 "], Bytes(12)),
            (&["007", "7"], Bytes(7)),
            (&["7", "8"], Invalid),
            (&["7", "8", "8"], Invalid),
            (&["7,7"], Invalid),
            (&[""], Invalid),
            (&["+7"], Invalid),
            (&["-1"], Invalid),
            (&["0x7"], Invalid),
            (&["7 7"], Invalid),
            (&["99999999999999999999999"], Bytes(u64::MAX)),
        ] {
            let mut length = Absent;
            lines.iter().for_each(|line| length.add(line.as_bytes()));
            assert_eq!(length, expected, "{lines:?}");
        }
    }

    #[test]
    fn every_status_begins_a_response_of_its_own() {
        let mut codes: Vec<u16> = [
            Status::Ok,
            Status::Accepted,
            Status::NotModified,
            Status::BadRequest,
            Status::Unauthorized,
            Status::Forbidden,
            Status::NotFound,
            Status::MethodNotAllowed,
            Status::Conflict,
            Status::LengthRequired,
            Status::ContentTooLarge,
            Status::ExpectationFailed,
            Status::MisdirectedRequest,
            Status::UpgradeRequired,
            Status::TooManyRequests,
            Status::HeadTooLarge,
            Status::InternalError,
            Status::Unavailable,
        ]
        .into_iter()
        .map(|status| {
            let response = Response {
                status,
                content_type: TEXT,
                headers: "X: y\r\n",
                body: b"body",
            };
            let kept = String::from_utf8(response.bytes(false, false)).expect("ASCII");
            let line = format!("HTTP/1.1 {} ", status.code());
            assert!(kept.starts_with(&line) && kept.ends_with("\r\nX: y\r\n\r\nbody"));
            assert!(!kept.contains("Connection"), "{kept}");
            let last = String::from_utf8(response.bytes(true, true)).expect("ASCII");
            assert!(last.ends_with("Connection: close\r\n\r\n"), "{last}");
            assert!(last.contains("Content-Length: 4\r\n"), "{last}");
            status.code()
        })
        .collect();
        let count = codes.len();
        codes.dedup();
        assert!(codes.len() == count && codes.is_sorted());
    }

    #[test]
    fn the_path_of_an_absolute_target_is_that_of_its_origin_form() {
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
            let (_, path, query) = target_parts(target);
            assert_eq!((path, query), expected, "{target}");
        }
        assert_eq!(target_parts("http://a:1/b").0, Some("a:1"));
        assert_eq!(target_parts("http://a").0, Some("a"));
        assert_eq!(target_parts("/http://a").0, None);
    }
}
