//! The proxies that are trusted, and the PROXY header with which a proxy names its client (HAProxy's PROXY protocol,
//! versions 1 and 2). The header comes before the request's head. What the head itself says of the client is read by
//! [`super::forwarded`].
//!
//! This module finds where a header ends and says what it means; the crate `ppp` reads the bytes between, and gets whole
//! headers only. Nothing is kept between calls: the caller holds the bytes until a header is complete.
//!
//! Rules:
//!
//! - Only the source of a header counts, and only the source of a TCP connection over IP. The destination is not read.
//! - Of the type-length-values behind the addresses only the CRC-32C is read; a header with a wrong one is malformed.
//! - A header without such a source (`UNKNOWN`, `LOCAL`, Unix sockets, datagrams) leaves the connection's own address in
//!   place, because the health checks of balancers send such headers.

use std::net::{IpAddr, SocketAddr};

use cidr::IpCidr;
use crc::{CRC_32_ISCSI, Crc};
use ppp::{v1, v2};

use super::http::HEAD_BYTES_MAX;

/// Longest PROXY header; a longer one, or one that announces more, is malformed. It is as much as the head behind it may
/// have, and far more than addresses (216 bytes at most) and the usual values need.
pub const HEADER_BYTES_MAX: usize = HEAD_BYTES_MAX;

/// Longest line of version 1, CR LF included (PROXY protocol, section 2.1).
const V1_BYTES_MAX: usize = 107;

/// How a line of version 1 begins.
const V1_START: &[u8] = b"PROXY ";

/// How a line of version 1 begins whose rest is to be ignored (section 2.1).
const V1_UNKNOWN: &[u8] = b"PROXY UNKNOWN";

/// The bytes of version 2 before its addresses: signature, version and command, family, length (section 2.2).
const V2_FIXED_BYTES: usize = 16;

/// Version 2, command `LOCAL`: everything behind the length is to be ignored (section 2.2).
const V2_LOCAL: u8 = 0x20;

/// Of the checksum that a header of version 2 may have (section 2.2.3).
const CRC_32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Type and length of a type-length-value (section 2.2).
const V2_VALUE_AT: usize = 3;

/// The shortest beginning of version 2's signature that no HTTP request has: a request may begin with empty lines.
const V2_TELLTALE: &[u8] = b"\r\n\r\n\0";

/// Whether proxies name their clients in a PROXY header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// They do not. A PROXY header is a malformed request.
    #[default]
    Off,
    /// A trusted proxy may. From any other peer a PROXY header is a malformed request.
    Accept,
    /// A trusted proxy must, and no other peer may connect.
    Required,
}

/// What the bytes that have arrived are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// A valid beginning: call again with more. Never for [`HEADER_BYTES_MAX`] bytes or more.
    Incomplete,
    /// No PROXY header.
    Absent,
    /// The beginning of a PROXY header that no further bytes can make valid.
    Malformed,
    /// A whole header.
    Complete {
        /// Its bytes, at the start of the input. The request's head follows.
        consumed: usize,
        /// The client behind the proxy; `None`: the connection's own address counts.
        source: Option<SocketAddr>,
    },
}

/// Reads the bytes that a proxy has sent. The cost is linear in a line of version 1 and in the values of a whole header
/// of version 2, and constant for a part of version 2; no allocation.
#[must_use]
pub fn parse(input: &[u8]) -> Header {
    let signature = v2::PROTOCOL_PREFIX;
    if input.starts_with(V1_START) {
        parse_v1(input)
    } else if input.starts_with(signature) {
        parse_v2(input)
    } else if V1_START.starts_with(input) || signature.starts_with(input) {
        Header::Incomplete
    } else {
        Header::Absent
    }
}

/// Whether bytes that are no HTTP request are the beginning of a PROXY header, so that the error can say so.
#[must_use]
pub fn is_header_start(input: &[u8]) -> bool {
    input.starts_with(V1_START) || input.starts_with(V2_TELLTALE)
}

fn parse_v1(input: &[u8]) -> Header {
    let within = input.get(..V1_BYTES_MAX).unwrap_or(input);
    let end = within.windows(2).position(|window| window == b"\r\n");
    let Some(line) = end.and_then(|end| within.get(..end + 2)) else {
        return if within.len() < V1_BYTES_MAX {
            Header::Incomplete
        } else {
            Header::Malformed
        };
    };
    let consumed = line.len();
    if let Some(rest) = line.strip_prefix(V1_UNKNOWN)
        && (rest == b"\r\n" || rest.starts_with(b" "))
    {
        return Header::Complete {
            consumed,
            source: None,
        };
    }
    // `ppp` takes a port with a sign.
    if line.contains(&b'+') {
        return Header::Malformed;
    }
    let source = match v1::Header::try_from(line).map(|header| header.addresses) {
        Ok(v1::Addresses::Tcp4(ip)) => Some((ip.source_address, ip.source_port).into()),
        Ok(v1::Addresses::Tcp6(ip)) => Some((ip.source_address, ip.source_port).into()),
        Ok(v1::Addresses::Unknown) => None,
        Err(_) => return Header::Malformed,
    };
    Header::Complete { consumed, source }
}

fn parse_v2(input: &[u8]) -> Header {
    let Some(fixed) = input.first_chunk::<V2_FIXED_BYTES>() else {
        return Header::Incomplete;
    };
    let [.., command, _, high, low] = *fixed;
    let consumed = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if consumed > HEADER_BYTES_MAX {
        return Header::Malformed;
    }
    let Some(header) = input.get(..consumed) else {
        return Header::Incomplete;
    };
    if command == V2_LOCAL {
        return Header::Complete {
            consumed,
            source: None,
        };
    }
    let source = match v2::Header::try_from(header) {
        Ok(header) if !is_intact(&header) => return Header::Malformed,
        Ok(header) => match (header.protocol, header.addresses) {
            (v2::Protocol::Stream, v2::Addresses::IPv4(ip)) => {
                Some((ip.source_address, ip.source_port).into())
            }
            (v2::Protocol::Stream, v2::Addresses::IPv6(ip)) => {
                Some((ip.source_address, ip.source_port).into())
            }
            _ => None,
        },
        Err(_) => return Header::Malformed,
    };
    Header::Complete { consumed, source }
}

/// Whether the values behind the addresses fill the header exactly, and its checksum is right (section 2.2.3: that of the
/// whole header with zeros in place of the checksum). A second checksum is refused, so that the header is summed up once.
/// A header of family `UNSPEC` has no values, because the end of its addresses is not known.
fn is_intact(header: &v2::Header<'_>) -> bool {
    let mut at = V2_FIXED_BYTES + header.address_bytes().len();
    let mut checksum = None;
    for value in header.tlvs() {
        let Ok(value) = value else { return false };
        if value.kind == u8::from(v2::Type::CRC32C) {
            let Ok(told) = <[u8; 4]>::try_from(&*value.value) else {
                return false;
            };
            if checksum.replace((at + V2_VALUE_AT, told)).is_some() {
                return false;
            }
        }
        at += V2_VALUE_AT + value.len();
    }
    let Some((at, told)) = checksum else {
        return true;
    };
    let (before, behind) = header.as_bytes().split_at(at);
    let mut digest = CRC_32C.digest();
    digest.update(before);
    digest.update(&[0; 4]);
    digest.update(behind.get(told.len()..).unwrap_or_default());
    digest.finalize() == u32::from_be_bytes(told)
}

/// Where a connection on the websocket port stands with its PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preamble {
    /// No header can come, or one came and named the peer: the request's head is next.
    Done,
    /// A header may come before the request's head.
    Optional,
    /// A header must come before the request's head.
    Required,
    /// A header came and named no peer. The request's head is next, and what it says of the peer does not count: the
    /// proxy passes on the bytes of a client that it does not name, and that client may have written them.
    Nameless,
}

/// The trusted proxies (`trusted_proxies`), and whether they send PROXY headers (`proxy_protocol`).
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    protocol: ProxyProtocol,
    trusted: Vec<IpCidr>,
}

impl Proxies {
    /// The two keys together.
    #[must_use]
    pub fn new(protocol: ProxyProtocol, trusted: Vec<IpCidr>) -> Self {
        Self { protocol, trusted }
    }

    /// Whether `peer` is a trusted proxy. The caller must have unwrapped IPv4 within IPv6. Linear in the number of
    /// networks.
    #[must_use]
    pub fn trust(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(&peer))
    }

    /// How a connection from `peer` begins; `None`: it must be refused, because only proxies may connect.
    #[must_use]
    pub fn preamble(&self, peer: IpAddr) -> Option<Preamble> {
        match self.protocol {
            ProxyProtocol::Off => Some(Preamble::Done),
            ProxyProtocol::Accept if self.trust(peer) => Some(Preamble::Optional),
            ProxyProtocol::Accept => Some(Preamble::Done),
            ProxyProtocol::Required => self.trust(peer).then_some(Preamble::Required),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn complete(consumed: usize, source: Option<&str>) -> Header {
        Header::Complete {
            consumed,
            source: source.map(|source| source.parse().expect("an address")),
        }
    }

    /// A header of version 2: command, family, what follows.
    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).expect("a length");
        let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        header.extend([command, family]);
        header.extend(length.to_be_bytes());
        header.extend(block);
        header
    }

    /// Source 203.0.113.7:4711, destination 192.0.2.1:443.
    const IPV4: [u8; 12] = [203, 0, 113, 7, 192, 0, 2, 1, 0x12, 0x67, 1, 0xBB];

    /// Source [2001:db8::7]:4711, destination [2001:db8::1]:443.
    fn ipv6() -> Vec<u8> {
        let mut block = Vec::new();
        for last in [7, 1] {
            block.extend([0x20, 1, 0x0D, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        block.extend([0x12, 0x67, 1, 0xBB]);
        block
    }

    /// Values behind [`IPV4`]: a checksum between two others.
    const CHECKED: [u8; 15] = *b"\x04\0\x01x\x03\0\x04\x17\x5E\xA3\x19\x04\0\x01y";

    /// One value that fills so many bytes.
    fn padding(bytes: usize) -> Vec<u8> {
        let length = u16::try_from(bytes - V2_VALUE_AT).expect("a length");
        let mut value = vec![4];
        value.extend(length.to_be_bytes());
        value.resize(bytes, 0xEE);
        value
    }

    fn well_formed() -> Vec<(&'static str, Vec<u8>, Option<&'static str>)> {
        let line = |line: &str| line.as_bytes().to_vec();
        let with_tlvs = |block: &[u8], tlvs: &[u8]| [block, tlvs].concat();
        let (v4, v6) = (Some("203.0.113.7:4711"), Some("[2001:db8::7]:4711"));
        let longest_v1 = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
                          ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_eq!(longest_v1.len(), V1_BYTES_MAX);
        vec![
            (
                "v1 over IPv4",
                line("PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n"),
                v4,
            ),
            (
                "v1 over IPv6",
                line("PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n"),
                v6,
            ),
            ("v1 unknown", line("PROXY UNKNOWN\r\n"), None),
            ("v1 unknown, longest", line(longest_v1), None),
            (
                "v1 unknown with whatever behind",
                line("PROXY UNKNOWN a  b \0 c d e f g\r\n"),
                None,
            ),
            ("v2 over IPv4", v2(0x21, 0x11, &IPV4), v4),
            ("v2 over IPv6", v2(0x21, 0x21, &ipv6()), v6),
            (
                "v2 with values behind the addresses",
                v2(0x21, 0x11, &with_tlvs(&IPV4, &[4, 0, 2, 1, 2])),
                v4,
            ),
            (
                "v2 with a checksum",
                v2(0x21, 0x11, &with_tlvs(&IPV4, &CHECKED)),
                v4,
            ),
            (
                "v2, longest",
                v2(
                    0x21,
                    0x11,
                    &with_tlvs(&IPV4, &padding(HEADER_BYTES_MAX - 28)),
                ),
                v4,
            ),
            (
                "v2 unspecified with something like half a value behind",
                v2(0x21, 0x00, &[3, 0, 9]),
                None,
            ),
            (
                "v2 local with something like a wrong checksum behind",
                v2(0x20, 0x11, &with_tlvs(&IPV4, &[3, 0, 4, 1, 2, 3, 4])),
                None,
            ),
            ("v2 over a Unix socket", v2(0x21, 0x31, &[b'x'; 216]), None),
            ("v2 datagrams over IPv4", v2(0x21, 0x12, &IPV4), None),
            ("v2 datagrams over IPv6", v2(0x21, 0x22, &ipv6()), None),
            ("v2 unspecified", v2(0x21, 0x00, &[]), None),
            (
                "v2 unspecified with something behind",
                v2(0x21, 0x00, &IPV4),
                None,
            ),
            ("v2 local", v2(0x20, 0x00, &[]), None),
            ("v2 local with addresses", v2(0x20, 0x11, &IPV4), None),
            (
                "v2 local of a family without its addresses",
                v2(0x20, 0x21, &[]),
                None,
            ),
        ]
    }

    #[test]
    fn every_kind_of_header_tells_its_source_and_its_end_wherever_it_is_cut() {
        for (name, header, source) in well_formed() {
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut]), Header::Incomplete, "{name}: {cut}");
            }
            for behind in [
                "",
                "G",
                "GET / HTTP/1.1\r\n\r\n",
                "\r\n",
                "PROXY UNKNOWN\r\n",
            ] {
                let input = [&header, behind.as_bytes()].concat();
                assert_eq!(parse(&input), complete(header.len(), source), "{name}");
            }
        }
    }

    #[test]
    fn a_malformed_header_is_seen_and_stays_so_with_more_bytes() {
        let long_line = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_BYTES_MAX - 15));
        let long_block = [&IPV4[..], &vec![0; HEADER_BYTES_MAX - 27]].concat();
        let mut rows: Vec<Vec<u8>> = [
            "PROXY \r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY tcp4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
            "PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            "PROXY TCP6 ::1 ::1 1 +2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\rx\r\n",
            "PROXY TCP4 1.2.3.\u{661} 1.2.3.4 1 2\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY UNKNOWN\rx\r\n",
            &long_line,
        ]
        .map(|line| line.as_bytes().to_vec())
        .to_vec();
        rows.extend([
            v2(0x11, 0x11, &IPV4),
            v2(0x31, 0x11, &IPV4),
            v2(0x22, 0x11, &IPV4),
            v2(0x21, 0x41, &IPV4),
            v2(0x21, 0x13, &IPV4),
            v2(0x21, 0x11, &IPV4[..11]),
            v2(0x21, 0x21, &ipv6()[..35]),
            v2(0x21, 0x31, &[0; 215]),
            v2(0x21, 0x11, &long_block),
            v2(0x20, 0x11, &long_block),
            v2(0x21, 0x11, &[&IPV4[..], &[4]].concat()),
            v2(0x21, 0x21, &[&ipv6()[..], &[4, 0xFF]].concat()),
            v2(0x21, 0x31, &[&[b'x'; 216][..], &[4, 0, 1]].concat()),
            v2(0x21, 0x11, &[&IPV4[..], &[3, 0, 3, 1, 2, 3]].concat()),
            v2(0x21, 0x12, &[&IPV4[..], &[3, 0, 4, 0, 0, 0, 0]].concat()),
            v2(
                0x21,
                0x11,
                &[&IPV4[..], &CHECKED, &[3, 0, 4, 0, 0, 0, 0]].concat(),
            ),
        ]);
        // A checksum tells of any one bit that flipped behind the length, but for those of its own type.
        let checked = v2(0x21, 0x11, &[&IPV4[..], &CHECKED].concat());
        let type_at = V2_FIXED_BYTES + IPV4.len() + 4;
        for bit in (8 * V2_FIXED_BYTES..8 * checked.len()).filter(|bit| bit / 8 != type_at) {
            let mut flipped = checked.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            rows.push(flipped);
        }
        for row in rows {
            let shown = row.escape_ascii().to_string();
            let mut is_malformed = false;
            for cut in 0..=row.len() {
                match parse(&row[..cut]) {
                    Header::Incomplete => assert!(!is_malformed, "{shown}: {cut}"),
                    Header::Malformed => is_malformed = true,
                    other => panic!("{shown}: {cut}: {other:?}"),
                }
            }
            assert!(is_malformed, "{shown}");
        }
    }

    #[test]
    fn the_bound_of_version_2_is_seen_before_the_bytes_have_come() {
        let header = v2(0x21, 0x11, &[0; 0xFFFF]);
        assert_eq!(parse(&header[..15]), Header::Incomplete);
        assert_eq!(parse(&header[..16]), Header::Malformed);
    }

    #[test]
    fn what_is_no_proxy_header_is_left_to_others() {
        for (input, expected) in [
            ("", Header::Incomplete),
            ("P", Header::Incomplete),
            ("\r\n\r\n", Header::Incomplete),
            ("GET / HTTP/1.1\r\n", Header::Absent),
            ("POST / HTTP/1.1\r\n", Header::Absent),
            ("\r\nGET / HTTP/1.1\r\n", Header::Absent),
            ("\r\n\r\nG", Header::Absent),
            ("\r\n\r\n\0x", Header::Absent),
            ("proxy TCP4", Header::Absent),
            ("PROXY\t", Header::Absent),
            ("\x16\x03\x01", Header::Absent),
        ] {
            assert_eq!(parse(input.as_bytes()), expected, "{input:?}");
        }
        for (input, expected) in [
            ("PROXY TCP4 1", true),
            ("\r\n\r\n\0", true),
            ("PROXY", false),
            ("\r\n\r\nGET", false),
            ("GET / HTTP/1.1", false),
        ] {
            assert_eq!(is_header_start(input.as_bytes()), expected, "{input:?}");
        }
    }

    #[test]
    fn trusted_peers_may_or_must_send_a_header_and_others_may_not() {
        use ProxyProtocol::{Accept, Off, Required};
        let networks = || {
            let networks = ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"];
            networks.map(|network| network.parse().expect("a network"))
        };
        for (peer, trusted) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("2001:db8:ffff::", true),
            ("2001:db9::", false),
            ("::ffff:10.0.0.1", false),
        ] {
            let ip = peer.parse().expect("an address");
            let preamble = |mode| Proxies::new(mode, networks().to_vec()).preamble(ip);
            let (accept, required) = if trusted {
                (Preamble::Optional, Some(Preamble::Required))
            } else {
                (Preamble::Done, None)
            };
            assert_eq!(preamble(Off), Some(Preamble::Done), "{peer}");
            assert_eq!(preamble(Accept), Some(accept), "{peer}");
            assert_eq!(preamble(Required), required, "{peer}");
        }
        assert!(!Proxies::default().trust(IpAddr::from([127, 0, 0, 1])));
    }

    /// Bytes that are likely to get past the first checks.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let noise = || prop::collection::vec(any::<u8>(), 0..300);
        let mutated = (
            0..well_formed().len(),
            any::<prop::sample::Index>(),
            1..=255u8,
        );
        prop_oneof![
            noise(),
            noise().prop_map(|tail| [V1_START, &tail].concat()),
            noise().prop_map(|tail| [v2::PROTOCOL_PREFIX, &tail].concat()),
            "PROXY (TCP4|TCP6|UNKNOWN) [0-9a-f.:]{0,20} [0-9.:]{0,20} [0-9]{0,6} [0-9]{0,6}\r?\n?"
                .prop_map(String::into_bytes),
            mutated.prop_map(|(row, at, change)| {
                let (_, mut header, _) = well_formed().swap_remove(row);
                let at = at.index(header.len());
                header[at] ^= change;
                header
            }),
        ]
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_what_was_decided_stays_decided(input in bytes()) {
            let mut decided = None;
            for cut in 0..=input.len() {
                let found = parse(&input[..cut]);
                if let Some(decided) = decided {
                    prop_assert_eq!(found, decided);
                } else if found != Header::Incomplete {
                    decided = Some(found);
                }
                match found {
                    Header::Incomplete => prop_assert!(cut < HEADER_BYTES_MAX),
                    Header::Complete { consumed, .. } => prop_assert!(consumed <= cut),
                    Header::Absent | Header::Malformed => {}
                }
            }
        }
    }
}
