//! Who is behind an HTTP proxy (`X-Forwarded-For` and `Forwarded`, RFC 7239).
//!
//! Input: lines. One that begins with `f` is the value of a `Forwarded` field, any other that of an
//! `X-Forwarded-For`; bytes that no value may have become `?`.
//!
//! Invariants: the peer is the one that a plain reading from the right gives, of which every word is that of a trusted
//! proxy; whatever stands there, what a trusted proxy adds at the end decides; a list cut into lines is the same list;
//! what is found is found again when it is written down.

use std::net::{IpAddr, SocketAddr};

use blackhole::protocol::forwarded::peer;
use blackhole::protocol::http::HEADERS_MAX;
use blackhole::protocol::proxy::Proxies;
use blackhole::protocol::proxy::ProxyProtocol;

/// The proxy that the request came from.
const PROXY: &str = "10.0.0.1:50000";
const TRUSTED: [&str; 2] = ["10.0.0.0/8", "2001:db8:aaaa::/48"];
/// A client that a proxy adds in the end.
const SEEN: &str = "192.0.2.77";

type Hop = (IpAddr, Option<u16>);

/// See the module's page.
pub fn check(data: &[u8]) -> String {
    let mut fields: Vec<(&str, Vec<u8>)> = Vec::new();
    // Two more are added below.
    for line in data.split(|byte| *byte == b'\n').take(HEADERS_MAX - 2) {
        let (name, value) = match line.split_first() {
            Some((b'f', value)) => ("Forwarded", value),
            _ => ("X-Forwarded-For", line),
        };
        let is_allowed = |byte: u8| byte == b'\t' || byte >= 0x20 && byte != 0x7F;
        let value = value
            .iter()
            .map(|&byte| if is_allowed(byte) { byte } else { b'?' });
        fields.push((name, value.collect()));
    }
    let found = ask(&fields);
    assert_eq!(found, expected(&fields));
    for (name, added) in [
        ("X-Forwarded-For", SEEN.to_owned()),
        ("Forwarded", format!("for={SEEN}")),
    ] {
        let mut only = fields.clone();
        only.retain(|(other, _)| *other == name);
        only.push((name, added.into_bytes()));
        match ask(&only) {
            Ok(peer) => assert_eq!(peer, Some(SocketAddr::new(address(SEEN), 50_000))),
            Err(_) => assert_eq!(name, "Forwarded"),
        }
    }
    let mut lines = Vec::new();
    for (name, value) in &fields {
        if *name == "X-Forwarded-For" {
            lines.extend(
                value
                    .split(|byte| *byte == b',')
                    .map(|item| (*name, item.to_vec())),
            );
        } else {
            lines.push((*name, value.clone()));
        }
    }
    if lines.len() < HEADERS_MAX {
        assert_eq!(ask(&lines), found);
    }
    if let Ok(Some(peer)) = found {
        for (name, value) in [
            ("X-Forwarded-For", format!("{peer}")),
            ("Forwarded", format!("for=\"{peer}\"")),
        ] {
            assert_eq!(ask(&[(name, value.into_bytes())]), found);
        }
    }
    match found {
        Err(problem) => problem.to_owned(),
        Ok(None) => "nobody".to_owned(),
        Ok(Some(_)) => "somebody".to_owned(),
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn proxies() -> Proxies {
    let trusted = TRUSTED.map(|network| network.parse().expect("a network"));
    Proxies::new(ProxyProtocol::Off, trusted.to_vec())
}

fn ask(fields: &[(&str, Vec<u8>)]) -> Result<Option<SocketAddr>, &'static str> {
    let mut head = b"GET / HTTP/1.1\r\n".to_vec();
    for (name, value) in fields {
        head.extend([name.as_bytes(), b":", value, b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    peer(&head, PROXY.parse().expect("an address"), &proxies())
}

/// The same by a plain reading: all items of a header as one list, then from the right.
fn expected(fields: &[(&str, Vec<u8>)]) -> Result<Option<SocketAddr>, &'static str> {
    let mut lists: [Option<Vec<Option<Hop>>>; 2] = [None, None];
    for (name, value) in fields {
        let list = lists[usize::from(*name != "Forwarded")].get_or_insert_default();
        if *name == "Forwarded" {
            list.extend(elements(value).ok_or("Forwarded is malformed")?);
        } else {
            let items = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            list.extend(items.filter(|item| !item.is_empty()).map(hop));
        }
    }
    let [forwarded, forwarded_for] = lists.map(|list| list.map(|list| right_most(&list)));
    if let (Some(one), Some(other)) = (forwarded, forwarded_for)
        && one.map(|(ip, _)| ip) != other.map(|(ip, _)| ip)
    {
        return Err("Forwarded and X-Forwarded-For disagree");
    }
    let found = forwarded.or(forwarded_for).flatten();
    Ok(found.map(|(ip, port)| SocketAddr::new(ip, port.unwrap_or(50_000))))
}

fn right_most(list: &[Option<Hop>]) -> Option<Hop> {
    let proxies = proxies();
    let mut found = None;
    for hop in list.iter().rev() {
        let Some(hop) = hop else { break };
        found = Some(*hop);
        if !proxies.trust(hop.0) {
            break;
        }
    }
    found
}

fn hop(item: &[u8]) -> Option<Hop> {
    let text = std::str::from_utf8(item).ok()?;
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some((address.ip().to_canonical(), Some(address.port())));
    }
    let ip: IpAddr = match text.strip_prefix('[') {
        Some(rest) => IpAddr::V6(rest.strip_suffix(']')?.parse().ok()?),
        None => text.parse().ok()?,
    };
    Some((ip.to_canonical(), None))
}

/// What each element of a `Forwarded` line tells; `None`: malformed.
fn elements(line: &[u8]) -> Option<Vec<Option<Hop>>> {
    let mut found = Vec::new();
    for element in split_unquoted(line, b',') {
        let (mut has_pairs, mut by_for) = (false, None);
        for pair in split_unquoted(element, b';') {
            let pair = pair.trim_ascii();
            if pair.is_empty() {
                continue;
            }
            has_pairs = true;
            let at = pair.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (&pair[..at], &pair[at + 1..]);
            let is_plain =
                |text: &[u8]| !text.is_empty() && !text.iter().any(|byte| b"\" \t".contains(byte));
            if !is_plain(name) || !name.iter().all(u8::is_ascii_graphic) {
                return None;
            }
            let value = match value.strip_prefix(b"\"") {
                Some(quoted) if end_of_quoted(quoted)? + 1 == quoted.len() => {
                    &quoted[..quoted.len() - 1]
                }
                Some(_) => return None,
                None if is_plain(value) => value,
                None => return None,
            };
            if name.eq_ignore_ascii_case(b"for") && by_for.replace(hop(value)).is_some() {
                return None;
            }
        }
        if has_pairs {
            found.push(by_for.flatten());
        }
    }
    Some(found)
}

/// Where the quote is that ends a quoted text.
fn end_of_quoted(quoted: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match quoted.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Splits at every `divider` that is not within quotes; an open quote goes to the end.
fn split_unquoted(text: &[u8], divider: u8) -> Vec<&[u8]> {
    let (mut pieces, mut from, mut at) = (Vec::new(), 0, 0);
    while at < text.len() {
        if text[at] == b'"' {
            let quoted = &text[at + 1..];
            at += 1 + end_of_quoted(quoted).unwrap_or(quoted.len());
        } else if text[at] == divider {
            pieces.push(&text[from..at]);
            from = at + 1;
        }
        at += 1;
    }
    pieces.push(&text[from..]);
    pieces
}
