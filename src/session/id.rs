//! Names of a connection: [`ConnId`] inside the process, [`Peer`] (PROTOCOL 1, "session id") outside.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

use slab::Slab;

/// Names one connection. Slots are reused; the `generation`, which wraps after 2^24 connections, makes a stale name miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    /// The place in the table of connections.
    pub slot: u32,
    /// Number of the connection, counted from the start: 24 bits.
    pub generation: u32,
}

impl ConnId {
    /// The name as one word, for the poll. It is far below the largest words, which name other things.
    #[must_use]
    pub fn to_word(self) -> usize {
        (self.generation as usize) << 32 | self.slot as usize
    }

    /// Back from [`ConnId::to_word`].
    #[must_use]
    pub fn from_word(word: usize) -> Self {
        Self {
            slot: (word as u64 & 0xFFFF_FFFF) as u32,
            generation: (word as u64 >> 32) as u32,
        }
    }
}

/// The address of a peer, displayed as the session id `IP:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// An IPv4 address, also when it arrived mapped into IPv6.
    V4(Ipv4Addr, u16),
    /// An IPv6 address.
    V6(SocketAddrV6),
}

impl Peer {
    /// The address; an IPv4 address is never mapped into IPv6.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::V4(ip, port) => SocketAddr::from((*ip, *port)),
            Self::V6(address) => SocketAddr::V6(*address),
        }
    }

    /// The IP alone, as limits count it: an IPv6 address stands for its /64.
    #[must_use]
    pub fn network(&self) -> IpAddr {
        match self {
            Self::V4(ip, _) => IpAddr::V4(*ip),
            Self::V6(address) => {
                let [a, b, c, d, ..] = address.ip().segments();
                IpAddr::from([a, b, c, d, 0, 0, 0, 0])
            }
        }
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => Self::V4(*address.ip(), address.port()),
            SocketAddr::V6(address) => match address.ip().to_ipv4_mapped() {
                Some(ip) => Self::V4(ip, address.port()),
                None => Self::V6(address),
            },
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(ip, port) => write!(f, "{ip}:{port}"),
            Self::V6(address) => write!(f, "{address}"),
        }
    }
}

/// A [`Peer`] as a session keeps it, in 8 bytes. An IPv6 address is kept in [`Peers`], to which this must be given back
/// before it is dropped.
#[derive(Debug)]
pub struct KeptPeer(Kept);

#[derive(Debug)]
enum Kept {
    V4([u8; 4], [u8; 2]),
    V6(u32),
}

/// The IPv6 addresses of all sessions' peers.
#[derive(Debug, Default)]
pub struct Peers(Slab<SocketAddrV6>);

impl Peers {
    /// Keeps a peer until [`Peers::forget`]. O(1) amortised.
    ///
    /// # Panics
    /// Beyond 2^32 IPv6 peers: no process has so many descriptors.
    pub fn keep(&mut self, peer: Peer) -> KeptPeer {
        KeptPeer(match peer {
            Peer::V4(ip, port) => Kept::V4(ip.octets(), port.to_be_bytes()),
            Peer::V6(address) => {
                let place = self.0.insert(address);
                Kept::V6(u32::try_from(place).expect("fewer than 2^32 descriptors"))
            }
        })
    }

    /// The peer. O(1).
    #[must_use]
    #[expect(
        clippy::indexing_slicing,
        reason = "the place of a kept peer is taken until it is given back"
    )]
    pub fn get(&self, kept: &KeptPeer) -> Peer {
        match kept.0 {
            Kept::V4(ip, port) => Peer::V4(ip.into(), u16::from_be_bytes(port)),
            Kept::V6(place) => Peer::V6(self.0[place as usize]),
        }
    }

    /// Gives a kept peer back. O(1).
    pub fn forget(&mut self, kept: KeptPeer) {
        if let Kept::V6(place) = kept.0 {
            self.0.remove(place as usize);
        }
    }

    /// How many IPv6 peers are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no IPv6 peer is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives back the memory behind the last kept peer.
    pub fn shrink(&mut self) {
        self.0.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_the_poll() {
        let id = ConnId {
            slot: 0xFEDC_BA98,
            generation: 0x7654_3210,
        };
        assert_eq!(ConnId::from_word(id.to_word()), id);
    }

    #[test]
    fn a_session_id_is_ip_and_port() {
        for (address, id, network) in [
            ("127.0.0.1:5555", "127.0.0.1:5555", "127.0.0.1"),
            ("[::ffff:10.1.2.3]:80", "10.1.2.3:80", "10.1.2.3"),
            (
                "[2001:db8:1:2:3:4:5:6]:80",
                "[2001:db8:1:2:3:4:5:6]:80",
                "2001:db8:1:2::",
            ),
        ] {
            let peer = Peer::from(address.parse::<SocketAddr>().expect("an address"));
            assert_eq!(peer.to_string(), id);
            assert_eq!(peer.address().to_string(), id);
            assert_eq!(peer.network().to_string(), network);
            let mut peers = Peers::default();
            let kept = peers.keep(peer);
            assert_eq!(peers.get(&kept), peer);
            assert_eq!(peers.is_empty(), matches!(peer, Peer::V4(..)));
            peers.forget(kept);
            assert!(peers.is_empty());
        }
        assert_eq!(size_of::<KeptPeer>(), 8);
    }
}
