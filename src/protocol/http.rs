//! The head of an HTTP request, and whole responses (RFC 9112), for the websocket port and the admin listener.
//!
//! This module owns what a head is, its bounds, the fields that mean something here, and the statuses and texts of all
//! errors. It keeps nothing between calls: the caller keeps the bytes until a head is complete.
//!
//! The cost of a call is linear in the input. A head that arrives in `n` pieces is read `n` times: one that arrives byte
//! by byte costs at most [`HEAD_BYTES_MAX`]² / 2 steps, and the caller's deadline for a handshake ends it.

use httparse::Status;

/// Longest head, from the request line to the empty line. A longer one gets 431.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Most headers of one request. More get 431.
pub const HEADERS_MAX: usize = 64;

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
    Refuse(ErrorResponse),
}

/// The methods that are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `GET`: the response has a body.
    Get,
    /// `HEAD`: the response to `GET`, without its body.
    Head,
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

/// Reads what a client of the admin listener sent so far: any `GET` or `HEAD`.
#[must_use]
pub fn parse_plain(input: &[u8]) -> Parsed<PlainRequest<'_>> {
    match parse_head(input) {
        Parsed::Incomplete => Parsed::Incomplete,
        Parsed::Complete { consumed, request } => {
            let request = match request {
                Ok(Head { method, path, .. }) => PlainRequest::Plain { method, path },
                Err(response) => PlainRequest::Refuse(response),
            };
            Parsed::Complete { consumed, request }
        }
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

/// The content type of the responses of this module.
pub const TEXT: &str = "text/plain";

impl HttpError {
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
            Self::Full | Self::Draining | Self::SourceDown | Self::AuthenticationUnavailable => 503,
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

/// A complete head with a method that is allowed.
pub(super) struct Head<'a> {
    pub(super) method: Method,
    pub(super) is_http_1_1: bool,
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
    /// `Connection` names `upgrade`.
    pub(super) connection_upgrade: bool,
    /// `Upgrade` names `websocket`.
    pub(super) upgrade_websocket: bool,
    pub(super) has_sub_protocol: bool,
    /// `Transfer-Encoding`, or a `Content-Length` other than zero.
    pub(super) has_body: bool,
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

/// Steps 1 and 2 of the order in the module's documentation.
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
        Ok(Status::Complete(consumed)) => consumed,
        Ok(Status::Partial) if within.len() < HEAD_BYTES_MAX => return Parsed::Incomplete,
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return refuse(HttpError::HeadTooLarge, false);
        }
        Err(_) => return refuse(HttpError::Malformed("malformed HTTP request"), false),
    };
    let method = match request.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        _ => return refuse(HttpError::MethodNotAllowed, false),
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
                request: PlainRequest::Refuse(response),
                ..
            } => Some(response.error.status()),
            _ => None,
        };
        assert_eq!(refused(b"DELETE /metrics HTTP/1.1\r\n\r\n"), Some(405));
        assert_eq!(refused(b"\0"), Some(400));
        assert_eq!(refused(&[b'x'; HEAD_BYTES_MAX]), Some(431));
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
            assert_eq!(path_and_query(target), expected, "{target}");
        }
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
}
