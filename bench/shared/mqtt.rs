//! The packets of MQTT 3.1.1 that a client at QoS 0 sends, for the load generator and the bench suite.

/// CONNECT with a clean session and no keep-alive (section 3.1).
#[must_use]
pub fn connect(client_id: &str) -> Vec<u8> {
    let mut connect = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 0x02, 0, 0];
    text(&mut connect, client_id);
    packet(0x10, &connect)
}

/// A packet with the first byte `kind` (section 2.2); `payload` has less than 256 MB.
#[must_use]
pub fn packet(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind];
    let mut left = payload.len();
    while left >= 0x80 {
        packet.push(0x80 | (left & 0x7F) as u8);
        left >>= 7;
    }
    packet.push(left as u8);
    packet.extend_from_slice(payload);
    packet
}

/// Appends a string of less than 64 KB with its length before it (section 1.5.3).
pub fn text(packet: &mut Vec<u8>, text: &str) {
    packet.extend_from_slice(&(text.len() as u16).to_be_bytes());
    packet.extend_from_slice(text.as_bytes());
}
