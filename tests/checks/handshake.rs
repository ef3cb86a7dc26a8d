//! The head of an HTTP request (PROTOCOL 2, RFC 6455 section 4).
//!
//! Input: what a client sends first.
//!
//! Invariants: a head that is judged is judged the same with more behind it; one that is not is below its limit; an
//! upgrade that we take is one that tungstenite takes, with the same accept key, and one that it takes is never
//! mistaken for anything but an upgrade; every answer is one HTTP response whose length is right; what `Debug` shows
//! does not depend on the token. The same bytes on the admin address: what is judged is judged the same with more behind
//! it, and is within its bounds; a refusal breaks no line.

use blackhole::protocol::admin_guard::Guard;
use blackhole::protocol::admin_request;
use blackhole::protocol::handshake::{Request, Upgrade, parse};
use blackhole::protocol::http::{BODY_BYTES_MAX, HEAD_BYTES_MAX, HttpError, Parsed};
use tungstenite::error::ProtocolError;
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server;

/// See the module's page.
pub fn check(data: &[u8]) -> String {
    let whole = parse(data);
    for length in lengths(data) {
        match (parse(&data[..length]), &whole) {
            (Parsed::Incomplete, _) => {}
            (Parsed::Complete { request, .. }, Parsed::Complete { request: later, .. }) => {
                assert_eq!(request, *later, "with {length} bytes and with all");
            }
            (Parsed::Complete { .. }, Parsed::Incomplete) => panic!("judged at {length} only"),
        }
    }
    let theirs = theirs(data);
    let Parsed::Complete { consumed, request } = &whole else {
        assert!(data.len() < HEAD_BYTES_MAX);
        check_admin(data, false);
        assert!(theirs.is_none(), "complete for another parser");
        return "incomplete".to_owned();
    };
    assert!(*consumed <= data.len());
    check_admin(data, true);
    match request {
        Request::Upgrade(upgrade) => {
            assert!(*consumed <= HEAD_BYTES_MAX);
            check_upgrade(data, upgrade, theirs);
            match (upgrade.bearer, upgrade.style) {
                (Some(_), _) => "upgrade with token".to_owned(),
                (None, Some(_)) => "upgrade with style".to_owned(),
                (None, None) => "upgrade".to_owned(),
            }
        }
        Request::Probe(method) => {
            assert!(
                !matches!(theirs, Some(Ok(_))),
                "an upgrade for another server"
            );
            format!("probe {method:?}")
        }
        Request::Refuse(response) => {
            if matches!(theirs, Some(Ok(_))) {
                let status = response.error.status();
                assert!(
                    !matches!(status, 404 | 405),
                    "an upgrade for another server"
                );
            }
            check_refusal(response.error, response.head_only);
            response.error.status().to_string()
        }
    }
}

/// All cuts of a short head, and a few of a long one.
fn lengths(data: &[u8]) -> impl Iterator<Item = usize> {
    let step = 1 + data.len() / 64;
    (0..data.len()).step_by(step)
}

/// What tungstenite's server answers, if the head is complete for it.
fn theirs(data: &[u8]) -> Option<Result<server::Response, ProtocolError>> {
    let (_, request) = match server::Request::try_parse(data) {
        Ok(parsed) => parsed?,
        Err(tungstenite::Error::Protocol(error)) => return Some(Err(error)),
        Err(_) => return Some(Err(ProtocolError::InvalidHeader(Box::new(HOST)))),
    };
    match server::create_response(&request) {
        Ok(response) => Some(Ok(response)),
        Err(tungstenite::Error::Protocol(error)) => Some(Err(error)),
        Err(_) => Some(Err(ProtocolError::InvalidHeader(Box::new(HOST)))),
    }
}

/// Stands for whatever is no breach of the handshake but of HTTP.
const HOST: tungstenite::http::HeaderName = tungstenite::http::header::HOST;

fn check_upgrade(
    data: &[u8],
    upgrade: &Upgrade<'_>,
    theirs: Option<Result<server::Response, ProtocolError>>,
) {
    let response = String::from_utf8(upgrade.response(None)).expect("ASCII");
    match theirs.expect("complete for another parser too") {
        Ok(theirs) => {
            let accept = theirs.headers()["Sec-WebSocket-Accept"]
                .to_str()
                .expect("ASCII");
            let line = format!("Sec-WebSocket-Accept: {accept}\r\n");
            assert!(response.contains(&line), "{response} without {line}");
        }
        // It reads only the first of several fields, no list of upgrades, and refuses a last character of the key
        // whose unused bits are set.
        Err(
            ProtocolError::MissingConnectionUpgradeHeader
            | ProtocolError::MissingUpgradeWebSocketHeader
            | ProtocolError::InvalidSecWebSocketKey
            | ProtocolError::InvalidHeader(_),
        ) => {}
        Err(error) => panic!("refused by another server: {error}"),
    }
    if let Some(token) = upgrade.bearer {
        assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
        let at = token.as_ptr().addr() - data.as_ptr().addr();
        let mut other = data.to_vec();
        other[at..at + token.len()].fill(b'z');
        let Parsed::Complete {
            request: Request::Upgrade(other),
            ..
        } = parse(&other)
        else {
            panic!("another token changes what the request is");
        };
        assert_eq!(format!("{upgrade:?}"), format!("{other:?}"));
    }
}

fn check_refusal(error: HttpError, head_only: bool) {
    let response = error.response(head_only);
    let mut headers = [httparse::EMPTY_HEADER; 8];
    let mut parsed = httparse::Response::new(&mut headers);
    let head = parsed.parse(&response).expect("a response");
    assert_eq!(parsed.code, Some(error.status()));
    let length = parsed
        .headers
        .iter()
        .find(|header| header.name == "Content-Length");
    let text = format!("{}\n", error.text());
    assert_eq!(
        length.map(|length| length.value),
        Some(text.len().to_string().as_bytes())
    );
    let body = if head_only { "" } else { &text };
    assert_eq!(&response[head.unwrap()..], body.as_bytes());
}

/// The admin address reads the same heads, and may wait for a body behind one.
fn check_admin(data: &[u8], is_head_judged: bool) {
    let guard = Guard::default();
    let whole = admin_request::parse(data, Some(&guard));
    for length in lengths(data) {
        match (admin_request::parse(&data[..length], Some(&guard)), &whole) {
            (Parsed::Incomplete, _) => {}
            (Parsed::Complete { request, .. }, Parsed::Complete { request: later, .. }) => {
                assert_eq!(request, *later, "with {length} bytes and with all");
            }
            (Parsed::Complete { .. }, Parsed::Incomplete) => panic!("judged at {length} only"),
        }
    }
    let Parsed::Complete { consumed, request } = whole else {
        assert!(data.len() < HEAD_BYTES_MAX + BODY_BYTES_MAX);
        return;
    };
    assert!(is_head_judged && consumed <= data.len());
    match request.request {
        Ok(_) => assert!((1..=HEAD_BYTES_MAX + BODY_BYTES_MAX).contains(&consumed)),
        Err(refusal) => {
            assert!((400..=431).contains(&refusal.status.code()), "{refusal:?}");
            assert!(!refusal.text.is_empty() && !refusal.text.contains(char::is_control));
            let lines = refusal.headers.matches("\r\n").count();
            assert_eq!(lines, refusal.headers.matches('\n').count());
        }
    }
    // Without a guard more is answered, and nothing is understood otherwise.
    let Parsed::Complete {
        request: unguarded, ..
    } = admin_request::parse(data, None)
    else {
        panic!("complete with a guard only");
    };
    assert_eq!(unguarded.form, request.form);
}
