//! The one place that writes a client's websocket frames by hand (RFC 6455 section 5.2), for the load generator and
//! for tests that script a client byte by byte. Independent of the server's codec and of its library, so that the
//! two check each other.

/// Fixed: nothing stands between us and the server that an unpredictable one would protect (section 10.3).
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// A masked frame with its length in the shortest form. `first` is the first byte of the header: FIN, RSV, opcode.
/// Linear in `payload`.
#[must_use]
pub fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length @ 126..=0xFFFF => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}
