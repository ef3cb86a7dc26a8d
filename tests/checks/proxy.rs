//! The PROXY header before a request (HAProxy's PROXY protocol, versions 1 and 2), and whom a session then takes for
//! its peer.
//!
//! Input: one byte, of which bits 0 and 1 choose `proxy_protocol` and bit 2 a stranger in the place of the trusted
//! proxy; then what the connection sends.
//!
//! Invariants: a header that is judged is judged the same with more behind it, and as a second, plain reading of it
//! says; one that is not is below its bound; whom it names is named again by a header that is written for it. A
//! session ends up the same however its bytes are cut. Its peer is the connection's own address unless a trusted proxy
//! names another, and is the one that is counted.

use std::cell::RefCell;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use blackhole::config::{Startup, from_args};
use blackhole::protocol::forwarded;
use blackhole::protocol::handshake::{self, Request};
use blackhole::protocol::http::Parsed;
use blackhole::protocol::proxy::{HEADER_BYTES_MAX, Header, Preamble, parse};
use blackhole::routing::families::{Families, FamilyOptions};
use blackhole::session::Session;
use blackhole::session::clock::Now;
use blackhole::session::hub::Hub;
use blackhole::session::id::{ConnId, Peer};
use blackhole::session::limits::SessionLimits;

const MODES: [&str; 3] = ["off", "accept", "required"];
const PROXY: &str = "10.0.0.1:50000";
const STRANGER: &str = "203.0.113.9:50000";
const NOW: Now = Now {
    clock: Duration::ZERO,
    unix_ms: 1_700_000_000_000,
};
const ID: ConnId = ConnId {
    slot: 0,
    generation: 0,
};

const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

thread_local! {
    /// One for each of [`MODES`]; nothing is left in them between inputs.
    static HUBS: RefCell<Vec<Hub>> = RefCell::new(MODES.map(hub).into());
}

/// See the module's page.
pub fn check(data: &[u8]) -> String {
    let Some((&choice, sent)) = data.split_first() else {
        return "nothing".to_owned();
    };
    let found = check_header(sent);
    let mode = usize::from(choice & 3) % MODES.len();
    let is_stranger = choice & 4 != 0;
    let peer =
        HUBS.with_borrow_mut(|hubs| check_session(sent, choice, is_stranger, &mut hubs[mode]));
    match peer {
        Some(peer) if peer == own_address(is_stranger) => format!("session of its own, {found}"),
        Some(_) => format!("session of another, {found}"),
        None => found.to_owned(),
    }
}

fn own_address(is_stranger: bool) -> SocketAddr {
    let own = if is_stranger { STRANGER } else { PROXY };
    own.parse().expect("an address")
}

fn check_header(sent: &[u8]) -> &'static str {
    let whole = parse(sent);
    let step = 1 + sent.len() / 256;
    for length in (0..sent.len()).step_by(step) {
        let part = parse(&sent[..length]);
        assert!(
            part == Header::Incomplete || part == whole,
            "{length}: {part:?}"
        );
    }
    assert_eq!(whole, read(sent));
    match whole {
        Header::Incomplete => {
            assert!(sent.len() < HEADER_BYTES_MAX);
            "incomplete"
        }
        Header::Absent => "absent",
        Header::Malformed => "malformed",
        Header::Complete { consumed, source } => {
            let behind = [&sent[..consumed], b"PROXY UNKNOWN\r\n"].concat();
            for other in [&sent[..consumed], &behind] {
                assert_eq!(parse(other), whole);
            }
            let Some(source) = source else {
                return "no source";
            };
            for header in [version_1(source), version_2(source)] {
                let consumed = header.len();
                let source = Some(source);
                assert_eq!(parse(&header), Header::Complete { consumed, source });
            }
            "source"
        }
    }
}

/// What the bytes so far amount to, by a plain reading.
fn read(sent: &[u8]) -> Header {
    let complete = |consumed, source| Header::Complete { consumed, source };
    if sent.starts_with(V2_START) {
        if sent.len() < 16 {
            return Header::Incomplete;
        }
        let consumed = 16 + usize::from(sent[14]) * 256 + usize::from(sent[15]);
        return match sent.get(..consumed) {
            _ if consumed > HEADER_BYTES_MAX => Header::Malformed,
            None => Header::Incomplete,
            Some(header) => {
                read_2(header).map_or(Header::Malformed, |source| complete(consumed, source))
            }
        };
    }
    if sent.starts_with(b"PROXY ") {
        let within = &sent[..sent.len().min(107)];
        return match within.windows(2).position(|pair| pair == b"\r\n") {
            None if within.len() == 107 => Header::Malformed,
            None => Header::Incomplete,
            Some(end) => {
                read_1(&sent[..end]).map_or(Header::Malformed, |source| complete(end + 2, source))
            }
        };
    }
    if V2_START.starts_with(sent) || b"PROXY ".starts_with(sent) {
        Header::Incomplete
    } else {
        Header::Absent
    }
}

/// A line of version 1, without its end.
fn read_1(line: &[u8]) -> Option<Option<SocketAddr>> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    if words[1] == b"UNKNOWN" {
        return Some(None);
    }
    let [
        _,
        family,
        source,
        destination,
        source_port,
        destination_port,
    ] = words[..]
    else {
        return None;
    };
    let text = |word| std::str::from_utf8(word).ok();
    let port = |word| {
        let number = text(word)?.parse::<u16>().ok()?;
        (number.to_string().as_bytes() == word).then_some(number)
    };
    let ip = |word| -> Option<IpAddr> {
        match family {
            b"TCP4" => Some(text(word)?.parse::<Ipv4Addr>().ok()?.into()),
            b"TCP6" => Some(text(word)?.parse::<Ipv6Addr>().ok()?.into()),
            _ => None,
        }
    };
    let (_, _) = (ip(destination)?, port(destination_port)?);
    Some(Some(SocketAddr::new(ip(source)?, port(source_port)?)))
}

/// A whole header of version 2.
fn read_2(header: &[u8]) -> Option<Option<SocketAddr>> {
    let block = &header[16..];
    match header[12] {
        0x20 => return Some(None),
        0x21 => {}
        _ => return None,
    }
    let addresses = match header[13] >> 4 {
        0 => block.len(),
        1 => 12,
        2 => 36,
        3 => 216,
        _ => return None,
    };
    if header[13] & 15 > 2 {
        return None;
    }
    let mut values = block.get(addresses..)?;
    let mut sums = Vec::new();
    while let [kind, high, low, rest @ ..] = values {
        let (value, behind) =
            rest.split_at_checked(usize::from(*high) * 256 + usize::from(*low))?;
        if *kind == 3 {
            sums.push((header.len() - rest.len(), value));
        }
        values = behind;
    }
    match sums[..] {
        _ if !values.is_empty() => return None,
        [] => {}
        [(at, told)] => {
            let mut zeroed = header.to_vec();
            zeroed
                .get_mut(at..at + 4)
                .filter(|_| told.len() == 4)?
                .fill(0);
            if crc_32c(&zeroed).to_be_bytes() != told {
                return None;
            }
        }
        _ => return None,
    }
    let port = |at: usize| u16::from(block[at]) << 8 | u16::from(block[at + 1]);
    Some(match header[13] {
        0x11 => {
            let ip: [u8; 4] = block[..4].try_into().ok()?;
            Some(SocketAddr::new(ip.into(), port(8)))
        }
        0x21 => {
            let ip: [u8; 16] = block[..16].try_into().ok()?;
            Some(SocketAddr::new(ip.into(), port(32)))
        }
        _ => None,
    })
}

/// Bit by bit (RFC 4960, appendix B).
fn crc_32c(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0x82F6_3B78 * (sum & 1));
        }
    }
    !sum
}

fn version_1(source: SocketAddr) -> Vec<u8> {
    let (ip, port) = (source.ip(), source.port());
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    format!("PROXY {family} {ip} {ip} {port} {port}\r\n").into_bytes()
}

/// With a checksum.
fn version_2(source: SocketAddr) -> Vec<u8> {
    let (family, ip) = match source.ip() {
        IpAddr::V4(ip) => (0x11, ip.octets().to_vec()),
        IpAddr::V6(ip) => (0x21, ip.octets().to_vec()),
    };
    let port = source.port().to_be_bytes();
    let block = [&ip[..], &ip, &port, &port, b"\x03\0\x04\0\0\0\0"].concat();
    let length = u8::try_from(block.len()).expect("short");
    let mut header = [V2_START, &[0x21, family, 0, length], &block].concat();
    let sum = crc_32c(&header).to_be_bytes();
    let at = header.len() - sum.len();
    header[at..].copy_from_slice(&sum);
    header
}

fn hub(mode: &str) -> Hub {
    let line = [
        "blackhole",
        "--auth=insecure",
        "--source=demo",
        "--trusted-proxies=10.0.0.0/8",
        "--max-connections-per-ip=1",
        "--proxy-protocol",
        mode,
    ];
    let startup = from_args(line.into_iter().map(OsString::from));
    let Ok(Startup::Run(config)) = startup else {
        panic!("a good command line")
    };
    let authenticator = config.authenticator().expect("reads nothing");
    let families = Families::new(&FamilyOptions::default()).expect("the platform's own");
    Hub::new(
        SessionLimits::from(&config),
        authenticator,
        families,
        NOW,
        1,
    )
}

/// Feeds a session; returns its peer if it was upgraded.
fn check_session(sent: &[u8], seed: u8, is_stranger: bool, hub: &mut Hub) -> Option<SocketAddr> {
    let own = own_address(is_stranger);
    let preamble = hub.limits.proxies.preamble(own.ip())?;
    let peer = feed(&[sent], own, preamble, hub);
    for pieces in [super::cut(sent, seed), super::cut(sent, !seed)] {
        assert_eq!(feed(&pieces, own, preamble, hub), peer, "cut {pieces:?}");
    }
    let told = told_peer(sent, own, preamble, hub);
    if let Some(peer) = peer {
        assert_eq!(peer, told);
        assert!(peer == own || !is_stranger);
    }
    peer
}

/// The peer of the session that comes of these bytes, if it is upgraded, and nothing of it is left.
fn feed(
    pieces: &[&[u8]],
    own: SocketAddr,
    preamble: Preamble,
    hub: &mut Hub,
) -> Option<SocketAddr> {
    let opened = hub.metrics.sessions_opened_total;
    let mut session = Session::new(preamble, Peer::from(own), Duration::ZERO, hub);
    for piece in pieces {
        session.on_bytes(&mut piece.to_vec(), &mut hub.context(ID, NOW));
        if session.is_open() {
            let counted = session.peer(hub).network();
            assert_eq!(
                (
                    hub.occupancy.ips().kinds(),
                    hub.occupancy.ips().taken(&counted)
                ),
                (1, 1)
            );
        }
    }
    session.on_end(true, &mut hub.context(ID, NOW));
    let ended_as = session.peer(hub).address();
    session.dissolve(hub);
    assert_eq!((hub.occupancy.ips().kinds(), hub.peers.len()), (0, 0));
    let deadlines = &mut hub.deadlines;
    for queue in [
        &mut deadlines.auth,
        &mut deadlines.command,
        &mut deadlines.close,
        &mut deadlines.answered,
    ] {
        queue.prune(|_| false);
    }
    hub.subscriptions.end_turn(NOW);
    let was_opened = hub.metrics.sessions_opened_total > opened;
    was_opened.then_some(ended_as)
}

/// Who the peer of an upgraded session is, by the rule: each is believed for the one before it if it is trusted.
fn told_peer(sent: &[u8], own: SocketAddr, preamble: Preamble, hub: &Hub) -> SocketAddr {
    let proxies = &hub.limits.proxies;
    let header = match preamble {
        Preamble::Done | Preamble::Nameless => Header::Absent,
        Preamble::Optional | Preamble::Required => parse(sent),
    };
    let (head, who) = match header {
        Header::Complete { source: None, .. } => return own,
        Header::Complete {
            consumed,
            source: Some(source),
        } => {
            assert!(proxies.trust(own.ip()));
            (&sent[consumed..], Peer::from(source).address())
        }
        Header::Incomplete | Header::Absent | Header::Malformed => (sent, own),
    };
    let Parsed::Complete {
        consumed,
        request: Request::Upgrade(_),
    } = handshake::parse(head)
    else {
        return who;
    };
    if !proxies.trust(who.ip()) {
        return who;
    }
    match forwarded::peer(&head[..consumed], who, proxies) {
        Ok(Some(peer)) => Peer::from(peer).address(),
        Ok(None) | Err(_) => who,
    }
}
