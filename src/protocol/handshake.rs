//! The request that opens a websocket, and its response (PROTOCOL 2, RFC 6455 section 4).
//!
//! This module decides whether the head of a request is a valid upgrade, a probe, or an error. [`super::http`] owns what a
//! head is and how an error is sent. The caller decides what the bytes alone cannot tell: whether the token is good, the
//! origin allowed, the process full.
//!
//! ```
//! use blackhole::protocol::handshake::{Request, parse};
//! use blackhole::protocol::http::{HttpError, Parsed};
//!
//! let head = b"GET / HTTP/1.1\r\nHost: bridge.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
//!     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
//! let Parsed::Complete { request: Request::Upgrade(upgrade), .. } = parse(head) else {
//!     panic!("a valid upgrade")
//! };
//! let response = String::from_utf8_lossy(&upgrade.response(None)).into_owned();
//! assert!(response.starts_with("HTTP/1.1 101 Switching Protocols\r\n"));
//!
//! assert_eq!(parse(&head[..40]), Parsed::Incomplete);
//! let Parsed::Complete { request: Request::Refuse(response), .. } = parse(b"GET /x HTTP/1.1\r\n\r\n") else {
//!     panic!("neither an upgrade nor a probe")
//! };
//! assert_eq!(response.error, HttpError::NotFound);
//! ```
//!
//! When more than one thing is wrong, [`parse`] returns the first error of this list:
//!
//! 1. bytes that are no HTTP head: 400; a head that is too long or has too many headers: 431
//! 2. a method that is neither `GET` nor `HEAD`: 405
//! 3. no upgrade asked for: `/` is a probe, any other path 404. `HEAD` never asks for one. An upgrade is asked
//!    for by `Upgrade: websocket`, `Sec-WebSocket-Key` or `Sec-WebSocket-Version`, so that a proxy which strips
//!    the first gets a telling 400.
//! 4. an upgrade, in this order: HTTP/1.0 400, `Host` 400, `Connection` 400, `Upgrade` 400, version absent or
//!    twice 400, other than 13 426, key 400, sub-protocol 400, body 400, `?style=` 400, `Origin` 400,
//!    `Authorization` twice 400, a bearer token that cannot be one 403
use std::fmt;

use tungstenite::handshake::derive_accept_key;

use super::extension::{self, Deflate, Offer};
use super::http::{
    ErrorResponse, Head, HttpError, Method, Parsed, Response, Status, TEXT, parse_head,
};
use crate::event::Style;

/// What a client of the websocket port asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// A websocket. The request is valid as far as its bytes alone can tell.
    Upgrade(Upgrade<'a>),
    /// `GET /` or `HEAD /` of a balancer: 200 or 503, see [`probe_response`].
    Probe(Method),
    /// Refused.
    Refuse(ErrorResponse),
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
    /// What it offers of permessage-deflate. Whatever it is, the session may open without.
    pub offer: Offer,
}

/// Reads what a client of the websocket port sent so far (PROTOCOL 2).
#[must_use]
pub fn parse(input: &[u8]) -> Parsed<Request<'_>> {
    match parse_head(input) {
        Parsed::Incomplete => Parsed::Incomplete,
        Parsed::Complete { consumed, request } => {
            let request = match request {
                Ok(head) => judge(&head),
                Err(response) => Request::Refuse(response),
            };
            Parsed::Complete { consumed, request }
        }
    }
}

/// The response to a [`Request::Probe`]: 200, or the reason why the process takes no connections.
#[must_use]
pub fn probe_response(method: Method, unready: Option<HttpError>) -> Vec<u8> {
    let head_only = method == Method::Head;
    match unready {
        None => {
            let response = Response {
                status: Status::Ok,
                content_type: TEXT,
                headers: "",
                body: b"ok\n",
            };
            response.bytes(head_only, true)
        }
        Some(error) => error.response(head_only),
    }
}

impl Upgrade<'_> {
    /// The response that makes the connection a websocket (RFC 6455 section 4.2.2), with the required fields, and with the
    /// one of `deflate`, if that is agreed on.
    #[must_use]
    pub fn response(&self, deflate: Option<Deflate>) -> Vec<u8> {
        let accept = derive_accept_key(self.key.as_bytes());
        let extensions = deflate.map_or(String::new(), |deflate| {
            format!("Sec-WebSocket-Extensions: {}\r\n", deflate.answer())
        });
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n{extensions}\r\n"
        )
        .into_bytes()
    }
}

impl fmt::Debug for Upgrade<'_> {
    /// Shows everything but the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrade")
            .field("bearer", &self.bearer.map(|_| "(masked)"))
            .field("style", &self.style)
            .field("origin", &self.origin)
            .field("offer", &self.offer)
            .finish_non_exhaustive()
    }
}

/// Steps 2 and 3 of the order in the module's documentation, and the way to step 4.
fn judge<'a>(head: &Head<'a>) -> Request<'a> {
    let fields = &head.fields;
    let wants_upgrade =
        fields.upgrade_websocket || fields.key.is_present() || fields.version.is_present();
    let judged = if !matches!(head.method, Method::Get | Method::Head) {
        Err(HttpError::MethodNotAllowed)
    } else if head.method == Method::Get && wants_upgrade {
        judge_upgrade(head).map(Request::Upgrade)
    } else if head.path == "/" {
        Ok(Request::Probe(head.method))
    } else {
        Err(HttpError::NotFound)
    };
    judged.unwrap_or_else(|error| {
        Request::Refuse(ErrorResponse {
            error,
            head_only: head.method == Method::Head,
        })
    })
}

/// Step 4 of the order in the module's documentation.
fn judge_upgrade<'a>(head: &Head<'a>) -> Result<Upgrade<'a>, HttpError> {
    let fields = &head.fields;
    let ensure = |holds, otherwise| if holds { Ok(()) } else { Err(otherwise) };
    ensure(
        head.is_http_1_1,
        HttpError::Malformed("a websocket needs HTTP/1.1"),
    )?;
    fields
        .host
        .required("Host is missing", "Host is repeated")?;
    ensure(
        fields.connection_upgrade,
        HttpError::Malformed("Connection must be Upgrade (does a proxy strip it?)"),
    )?;
    ensure(
        fields.upgrade_websocket,
        HttpError::Malformed("Upgrade must be websocket (does a proxy strip it?)"),
    )?;
    let version = fields.version.required(
        "Sec-WebSocket-Version is missing",
        "Sec-WebSocket-Version is repeated",
    )?;
    ensure(version.trim_ascii() == b"13", HttpError::UnsupportedVersion)?;
    let key = fields.key.required(
        "Sec-WebSocket-Key is missing",
        "Sec-WebSocket-Key is repeated",
    )?;
    let key = websocket_key(key).ok_or(HttpError::Malformed(
        "Sec-WebSocket-Key must be 16 bytes in base64",
    ))?;
    ensure(!fields.has_sub_protocol, HttpError::SubProtocol)?;
    ensure(
        !fields.has_body(),
        HttpError::Malformed("an upgrade request has no body"),
    )?;
    let style = query_style(head.query)?;
    let origin = match fields.origin.optional("Origin is repeated")? {
        Some(origin) => Some(
            std::str::from_utf8(origin).map_err(|_| HttpError::Malformed("Origin must be text"))?,
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
        offer: extension::read(fields.extensions.iter().copied()),
    })
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

fn query_style(query: &str) -> Result<Option<Style>, HttpError> {
    let style = query.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name == "style").then_some(value)
    });
    match style {
        None => Ok(None),
        Some("piston") => Ok(Some(Style::Piston)),
        Some("kazoo") => Ok(Some(Style::Kazoo)),
        Some(_) => Err(HttpError::Malformed("style must be piston or kazoo")),
    }
}

/// The token of a `Bearer` value (RFC 6750 section 2.1); `None` for another scheme.
fn bearer(value: &[u8]) -> Result<Option<&str>, HttpError> {
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
        return Err(HttpError::InvalidToken);
    }
    std::str::from_utf8(token)
        .map(Some)
        .map_err(|_| HttpError::InvalidToken)
}

#[cfg(test)]
mod tests {
    use super::super::http::{HEAD_BYTES_MAX, HEADERS_MAX};
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

    fn error_of(head: &str) -> Option<HttpError> {
        match parse(head.as_bytes()) {
            Parsed::Complete {
                request: Request::Refuse(response),
                ..
            } => Some(response.error),
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
            String::from_utf8(upgrade.response(None)).expect("ASCII"),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        );
    }

    #[test]
    fn an_offer_of_any_of_the_fields_is_answered_in_one() {
        let head = upgrade(&[
            "Sec-WebSocket-Extensions: x-other",
            "sec-websocket-extensions: permessage-deflate; server_max_window_bits=10",
        ]);
        let Parsed::Complete {
            request: Request::Upgrade(upgrade),
            ..
        } = parse(head.as_bytes())
        else {
            panic!("{head}")
        };
        let Offer::Good(deflate) = upgrade.offer else {
            panic!("{:?}", upgrade.offer)
        };
        let response = String::from_utf8(upgrade.response(Some(deflate))).expect("ASCII");
        assert!(
            response.ends_with(
                "\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; \
                 client_no_context_takeover; server_max_window_bits=10\r\n\r\n"
            ),
            "{response}"
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
        let head = upgrade_with("GET ws://bridge.example:5555?style=kazoo HTTP/1.1", &[]);
        let Parsed::Complete {
            request: Request::Upgrade(upgrade),
            ..
        } = parse(head.as_bytes())
        else {
            panic!("{head}")
        };
        assert_eq!(upgrade.style, Some(Style::Kazoo));
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
            let error = error_of(&head).unwrap_or_else(|| panic!("not refused: {head}"));
            assert_eq!(error.status(), status, "{head}");
            assert!(error.text().contains(text), "{head}: {}", error.text());
        }
        let mut head = upgrade(&["Origin: X"]).into_bytes();
        let at = head
            .iter()
            .rposition(|byte| *byte == b'X')
            .expect("it is there");
        head[at] = 0xE9;
        assert!(
            matches!(parse(&head), Parsed::Complete { request: Request::Refuse(ErrorResponse { error, .. }), .. }
                if error == HttpError::Malformed("Origin must be text"))
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
                error_of(head),
                Some(HttpError::Malformed("malformed HTTP request")),
                "{head:?}"
            );
        }
        for tls in [&[0x16][..], &[0x16, 3, 1, 2, 0, 1, 0]] {
            assert!(
                matches!(parse(tls), Parsed::Complete { request: Request::Refuse(ErrorResponse { error, .. }), .. }
                    if error == HttpError::Malformed("this port does not speak TLS"))
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
                Request::Refuse(ErrorResponse {
                    error: HttpError::NotFound,
                    head_only: false,
                }),
            ),
            (
                "HEAD /x HTTP/1.1\r\n\r\n",
                Request::Refuse(ErrorResponse {
                    error: HttpError::NotFound,
                    head_only: true,
                }),
            ),
            (
                "POST / HTTP/1.1\r\n\r\n",
                Request::Refuse(ErrorResponse {
                    error: HttpError::MethodNotAllowed,
                    head_only: false,
                }),
            ),
            (
                "OPTIONS * HTTP/1.0\r\n\r\n",
                Request::Refuse(ErrorResponse {
                    error: HttpError::MethodNotAllowed,
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
            let error = error_of(&head).unwrap_or_else(|| panic!("not refused: {head}"));
            assert!(error.text().contains(expected), "{head}: {}", error.text());
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
        assert_eq!(error_of(&largest), None);
        assert_eq!(
            parse(&largest.as_bytes()[..HEAD_BYTES_MAX - 1]),
            Parsed::Incomplete
        );
        let larger = head_of(HEAD_BYTES_MAX + 1);
        assert_eq!(error_of(&larger), Some(HttpError::HeadTooLarge));
        assert_eq!(
            error_of(&larger[..HEAD_BYTES_MAX]),
            Some(HttpError::HeadTooLarge),
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
        assert_eq!(error_of(&headers_of(HEADERS_MAX)), None);
        assert_eq!(
            error_of(&headers_of(HEADERS_MAX + 1)),
            Some(HttpError::HeadTooLarge)
        );
    }

    #[test]
    fn a_probe_is_answered_200_when_ready_and_503_when_not() {
        let ready = String::from_utf8(probe_response(Method::Get, None)).expect("ASCII");
        assert!(ready.starts_with("HTTP/1.1 200 OK\r\n") && ready.ends_with("\r\n\r\nok\n"));
        let ready = String::from_utf8(probe_response(Method::Head, None)).expect("ASCII");
        assert!(ready.contains("Content-Length: 3\r\n") && ready.ends_with("\r\n\r\n"));
        let draining = probe_response(Method::Get, Some(HttpError::Draining));
        assert_eq!(draining, HttpError::Draining.response(false));
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
