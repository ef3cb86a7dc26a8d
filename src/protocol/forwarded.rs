//! The client behind a proxy, as the request's head names it: `X-Forwarded-For`, and `Forwarded` (RFC 7239). Only heads
//! from a trusted proxy are asked ([`Proxies::trust`]).
//!
//! Every proxy on the way adds, on the right, the address from which it got the request; the client can write anything
//! at the left end. So the peer is the right-most address that does not belong to a trusted proxy, or the left-most
//! address when all belong to trusted proxies. An item that is no address (`unknown`, a pseudonym) hides everything to
//! the left of it: the peer is then the last address that is known, counted from the right.
//!
//! A proxy maintains one of the two headers and passes the other on as the client wrote it, and the request does not
//! show which. So a request with both headers is refused when they do not agree on the address.
//!
//! Pure; no allocation. Cost: one more reading of the head, only for sessions through trusted proxies.

use std::net::{IpAddr, SocketAddr};

use super::http::HEADERS_MAX;
use super::proxy::Proxies;

/// `Forwarded` breaks RFC 7239 section 4, so that its right end cannot be told from a quoted text of the client's.
const MALFORMED: &str = "Forwarded is malformed";

/// Both headers are there and disagree. One is the client's own, and the request does not show which.
const DISAGREE: &str = "Forwarded and X-Forwarded-For disagree";

/// The client behind `proxy`, a trusted proxy that sent this complete `head`; `None` when the head names no client. The
/// port is the one of `proxy` when the header has none, which is usual.
///
/// # Errors
/// What is wrong with the headers, for a 400.
pub fn peer(
    head: &[u8],
    proxy: SocketAddr,
    proxies: &Proxies,
) -> Result<Option<SocketAddr>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    if !matches!(request.parse(head), Ok(httparse::Status::Complete(_))) {
        return Ok(None);
    }
    let (mut forwarded, mut forwarded_for) = (None, None);
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("forwarded") {
            let trail = forwarded.get_or_insert_with(|| Trail::new(proxies));
            read_forwarded(header.value, trail).ok_or(MALFORMED)?;
        } else if header.name.eq_ignore_ascii_case("x-forwarded-for") {
            let trail = forwarded_for.get_or_insert_with(|| Trail::new(proxies));
            for item in header.value.split(|byte| *byte == b',') {
                let item = item.trim_ascii();
                if !item.is_empty() {
                    trail.add(hop(item));
                }
            }
        }
    }
    if let (Some(one), Some(other)) = (&forwarded, &forwarded_for)
        && one.peer.map(|hop| hop.ip) != other.peer.map(|hop| hop.ip)
    {
        return Err(DISAGREE);
    }
    let peer = forwarded.or(forwarded_for).and_then(|trail| trail.peer);
    Ok(peer.map(|hop| SocketAddr::new(hop.ip, hop.port.unwrap_or(proxy.port()))))
}

/// An address on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hop {
    ip: IpAddr,
    port: Option<u16>,
}

/// The way of a request, read from left to right.
struct Trail<'a> {
    proxies: &'a Proxies,
    /// The peer, if nothing more follows.
    peer: Option<Hop>,
}

impl<'a> Trail<'a> {
    fn new(proxies: &'a Proxies) -> Self {
        Self {
            proxies,
            peer: None,
        }
    }

    /// Goes one address to the right. The address to its left counts only if this one is a trusted proxy's.
    fn add(&mut self, hop: Option<Hop>) {
        let keeps = hop.is_some_and(|hop| self.peer.is_some() && self.proxies.trust(hop.ip));
        if !keeps {
            self.peer = hop;
        }
    }
}

/// Reads `IP`, `IP:PORT`, `[IPv6]` or `[IPv6]:PORT`; anything else names nobody.
fn hop(item: &[u8]) -> Option<Hop> {
    let text = std::str::from_utf8(item).ok()?;
    let bare = || {
        let inner = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        match inner {
            Some(ip) => ip.parse().ok().map(IpAddr::V6),
            None => text.parse().ok(),
        }
    };
    let (ip, port) = match text.parse::<SocketAddr>() {
        Ok(address) => (address.ip(), Some(address.port())),
        Err(_) => (bare()?, None),
    };
    Some(Hop {
        ip: ip.to_canonical(),
        port,
    })
}

/// Reads one `Forwarded` line: elements divided by commas, in each pairs divided by semicolons, in each a name and a
/// value that may be quoted. Unquoted values may have more characters than RFC 7239 allows, because IPv6 addresses and
/// ports often come without quotes. Quoted values must follow it. `None`: malformed.
fn read_forwarded(line: &[u8], trail: &mut Trail<'_>) -> Option<()> {
    let mut rest = line.trim_ascii();
    let mut element = Element::default();
    loop {
        if !matches!(rest.first(), None | Some(b',' | b';')) {
            let (name, behind) = split(rest, |byte| byte == b'=');
            let is_name = |byte: &u8| byte.is_ascii_graphic() && !b",;\"".contains(byte);
            if name.is_empty() || !name.iter().all(is_name) {
                return None;
            }
            let (value, behind) = read_value(behind.strip_prefix(b"=")?)?;
            element.has_pairs = true;
            if name.eq_ignore_ascii_case(b"for") && element.by_for.replace(hop(value)).is_some() {
                return None;
            }
            rest = behind.trim_ascii_start();
        }
        let ends_element = match rest.first() {
            None | Some(b',') => true,
            Some(b';') => false,
            Some(_) => return None,
        };
        if ends_element {
            let ended = std::mem::take(&mut element);
            if ended.has_pairs {
                trail.add(ended.by_for.flatten());
            }
        }
        let Some((_, behind)) = rest.split_first() else {
            return Some(());
        };
        rest = behind.trim_ascii_start();
    }
}

/// What one proxy added.
#[derive(Default)]
struct Element {
    has_pairs: bool,
    /// Its `for`, once read: an address, or nobody.
    by_for: Option<Option<Hop>>,
}

/// A value at the start of `input`, and the rest behind it. Escapes within quotes are kept: no address has any.
fn read_value(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let Some(quoted) = input.strip_prefix(b"\"") else {
        let (value, behind) = split(input, |byte| b",; \t".contains(&byte));
        return (!value.is_empty() && !value.contains(&b'"')).then_some((value, behind));
    };
    let mut is_escaped = false;
    let (value, behind) = split(quoted, |byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    });
    Some((value, behind.strip_prefix(b"\"")?))
}

/// Divides `input` before the first byte for which `ends` is true.
fn split(input: &[u8], ends: impl FnMut(u8) -> bool) -> (&[u8], &[u8]) {
    let at = input.iter().copied().position(ends);
    input.split_at(at.unwrap_or(input.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::proxy::ProxyProtocol;

    const PROXY: &str = "10.0.0.1:50000";

    fn proxies() -> Proxies {
        let trusted = ["10.0.0.0/8", "2001:db8:aaaa::/48"];
        let trusted = trusted.map(|network| network.parse().expect("a network"));
        Proxies::new(ProxyProtocol::Off, trusted.to_vec())
    }

    fn peer_of(lines: &[&str]) -> Result<Option<String>, &'static str> {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let head = format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
        let proxy = PROXY.parse().expect("an address");
        let peer = peer(head.as_bytes(), proxy, &proxies())?;
        Ok(peer.map(|peer| peer.to_string()))
    }

    #[test]
    fn the_peer_is_the_right_most_hop_that_is_no_trusted_proxy() {
        for (lines, expected) in [
            (&["X-Other: 192.0.2.1"][..], None),
            (&["X-Forwarded-For: 192.0.2.1"], Some("192.0.2.1:50000")),
            (&["x-forwarded-for:192.0.2.1:81"], Some("192.0.2.1:81")),
            (
                &["X-Forwarded-For: 2001:db8::1"],
                Some("[2001:db8::1]:50000"),
            ),
            (
                &["X-Forwarded-For: [2001:db8::1]"],
                Some("[2001:db8::1]:50000"),
            ),
            (
                &["X-Forwarded-For: [2001:db8::1]:81"],
                Some("[2001:db8::1]:81"),
            ),
            (
                &["X-Forwarded-For: ::ffff:192.0.2.1"],
                Some("192.0.2.1:50000"),
            ),
            (
                &["X-Forwarded-For: 6.6.6.6, 192.0.2.1"],
                Some("192.0.2.1:50000"),
            ),
            (
                &["X-Forwarded-For: 6.6.6.6, 192.0.2.1, 10.1.1.1,2001:db8:aaaa::1"],
                Some("192.0.2.1:50000"),
            ),
            (
                &[
                    "X-Forwarded-For: 6.6.6.6",
                    "X-Forwarded-For: 192.0.2.1",
                    "X-Forwarded-For: 10.1.1.1",
                ],
                Some("192.0.2.1:50000"),
            ),
            (
                &["X-Forwarded-For: 10.2.2.2, 10.1.1.1"],
                Some("10.2.2.2:50000"),
            ),
            (
                &["X-Forwarded-For: ::ffff:10.2.2.2, ::ffff:10.1.1.1"],
                Some("10.2.2.2:50000"),
            ),
            (
                &["X-Forwarded-For: 6.6.6.6, unknown, 10.1.1.1"],
                Some("10.1.1.1:50000"),
            ),
            (&["X-Forwarded-For: 6.6.6.6, unknown"], None),
            (&["X-Forwarded-For: 6.6.6.6, 10.0.0.256"], None),
            (&["X-Forwarded-For: [192.0.2.1]"], None),
            (&["X-Forwarded-For: \u{e9}"], None),
            (&["X-Forwarded-For:"], None),
            (&["X-Forwarded-For: ,192.0.2.1,,"], Some("192.0.2.1:50000")),
            (&["Forwarded: for=192.0.2.1"], Some("192.0.2.1:50000")),
            (
                &["FORWARDED: by=_x; FOR=\"192.0.2.1:81\" ;proto=https;"],
                Some("192.0.2.1:81"),
            ),
            (
                &["Forwarded: for=\"[2001:db8::1]:81\""],
                Some("[2001:db8::1]:81"),
            ),
            (
                &["Forwarded: for=[2001:db8::1]"],
                Some("[2001:db8::1]:50000"),
            ),
            (
                &["Forwarded: for=6.6.6.6, for=192.0.2.1;by=\"a, for=9.9.9.9\", for=10.1.1.1"],
                Some("192.0.2.1:50000"),
            ),
            (
                &[
                    "Forwarded: for=6.6.6.6",
                    "Forwarded: for=192.0.2.1",
                    "Forwarded: for=10.1.1.1",
                ],
                Some("192.0.2.1:50000"),
            ),
            (
                &["Forwarded: for=6.6.6.6;x=\"\\\", for=9.9.9.9\""],
                Some("6.6.6.6:50000"),
            ),
            (&["Forwarded: for=6.6.6.6, for=_hidden"], None),
            (
                &["Forwarded: for=6.6.6.6, for=\"_hidden:81\", for=10.1.1.1"],
                Some("10.1.1.1:50000"),
            ),
            (&["Forwarded: for=6.6.6.6, proto=https"], None),
            (&["Forwarded: for=192.0.2.1, , ;"], Some("192.0.2.1:50000")),
            (
                &[
                    "Forwarded: for=\"192.0.2.1:81\"",
                    "X-Forwarded-For: 6.6.6.6, 192.0.2.1",
                ],
                Some("192.0.2.1:81"),
            ),
        ] {
            assert_eq!(peer_of(lines), Ok(expected.map(str::to_owned)), "{lines:?}");
        }
    }

    #[test]
    fn headers_that_a_client_may_have_twisted_are_refused() {
        for (lines, expected) in [
            (
                &["Forwarded: for=6.6.6.6;x=\", for=192.0.2.1"][..],
                MALFORMED,
            ),
            (
                &["Forwarded: for=6.6.6.6;x=\", for=\"192.0.2.1:81\""],
                MALFORMED,
            ),
            (
                &["Forwarded: for=6.6.6.6;x=\"\\\", for=192.0.2.1"],
                MALFORMED,
            ),
            (
                &["Forwarded: for=6.6.6.6;x=a\", for=\"192.0.2.1:81\""],
                MALFORMED,
            ),
            (&["Forwarded: for=6.6.6.6;for=192.0.2.1"], MALFORMED),
            (&["Forwarded: 192.0.2.1"], MALFORMED),
            (&["Forwarded: for"], MALFORMED),
            (&["Forwarded: for="], MALFORMED),
            (&["Forwarded: for =192.0.2.1"], MALFORMED),
            (&["Forwarded: =192.0.2.1"], MALFORMED),
            (&["Forwarded: for=6.6.6.6 for=192.0.2.1"], MALFORMED),
            (
                &["Forwarded: for=6.6.6.6", "X-Forwarded-For: 192.0.2.1"],
                DISAGREE,
            ),
            (
                &["X-Forwarded-For: 6.6.6.6", "Forwarded: for=192.0.2.1"],
                DISAGREE,
            ),
            (
                &["X-Forwarded-For: 6.6.6.6", "Forwarded: for=unknown"],
                DISAGREE,
            ),
        ] {
            assert_eq!(peer_of(lines), Err(expected), "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn what_a_client_writes_never_moves_the_peer_that_its_proxy_saw(
            made_up in "[ -~]{0,60}",
            pieces in prop::collection::vec(
                prop::sample::select(vec!["for=", "for", "6.6.6.6", "\"", "\\", ",", ";", "=", " ", "x=", "[::1]", "10.1.1.1"]),
                0..12,
            ),
        ) {
            for made_up in [made_up, pieces.concat()] {
                for (name, added, seen) in [
                    ("X-Forwarded-For", "192.0.2.1", "192.0.2.1:50000"),
                    ("Forwarded", "for=192.0.2.1", "192.0.2.1:50000"),
                    ("Forwarded", "for=\"192.0.2.1:81\";by=\"[::1]\"", "192.0.2.1:81"),
                ] {
                    let line = format!("{name}: {made_up}, {added}");
                    match peer_of(&[&line]) {
                        Ok(peer) => prop_assert_eq!(peer, Some(seen.to_owned()), "{}", line),
                        Err(problem) => prop_assert_eq!(problem, MALFORMED, "{}", line),
                    }
                }
            }
        }

        #[test]
        fn no_head_panics(head in prop::collection::vec(any::<u8>(), 0..300)) {
            let proxy = PROXY.parse().expect("an address");
            let whole = [b"GET / HTTP/1.1\r\nForwarded: ", &head[..], b"\r\n\r\n"].concat();
            let _ = peer(&head, proxy, &proxies());
            let _ = peer(&whole, proxy, &proxies());
        }
    }
}
