//! MQTT 3.1.1, as much as a subscriber at QoS 0 needs. Its packets lie in the frames like in a byte stream
//! (section 6.0: a packet need not begin or end with a frame).

use super::Meaning;
use shared::mqtt::{connect, packet, text};
use shared::reader::{BadUnit, Format, Front};

const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const SUBACK: u8 = 0x90;

/// The packet id of the one SUBSCRIBE.
const PACKET_ID: [u8; 2] = [0, 1];

/// The server's packets (section 2.2); PUBLISH passes.
pub(super) struct Packets;

impl Format for Packets {
    fn front(&self, bytes: &[u8]) -> Result<Front, BadUnit> {
        let mut length = 0;
        for (at, byte) in bytes[1..].iter().take(4).enumerate() {
            length |= u64::from(byte & 0x7F) << (7 * at);
            if *byte < 0x80 {
                let header = at + 2;
                return match bytes[0] {
                    // At QoS 0, with or without the retain flag.
                    PUBLISH | 0x31 => Ok(Front::Passing { header, length }),
                    PUBLISH..0x40 => Err(BadUnit::Opcode(bytes[0])),
                    _ => Ok(Front::Whole { header, length }),
                };
            }
        }
        if bytes.len() > 4 {
            return Err(BadUnit::Length);
        }
        Ok(Front::Unclear)
    }
}

/// CONNECT and one SUBSCRIBE to all `filters`, of session number `n`. No answer need
/// be awaited between the two (section 3.1.4).
pub(super) fn opening(n: usize, filters: &[String]) -> Vec<u8> {
    let mut subscribe = PACKET_ID.to_vec();
    for filter in filters {
        text(&mut subscribe, filter);
        subscribe.push(0);
    }
    // A second session of a client would end the first, so no two programs may have the same.
    let connect = connect(&format!("load{:x}n{n}", std::process::id()));
    [connect, packet(0x82, &subscribe)].concat()
}

/// What a packet that is no PUBLISH means.
pub(super) fn meaning(kind: u8, payload: &[u8]) -> Meaning {
    match (kind, payload) {
        (CONNACK, [_, 0]) => Meaning::Nothing,
        (CONNACK, _) => Meaning::Refused(format!("CONNACK {payload:?}")),
        (SUBACK, [0, 1, codes @ ..]) if codes.iter().all(|code| *code == 0) => Meaning::Granted,
        (SUBACK, _) => Meaning::Refused(format!("SUBACK {payload:?}")),
        _ => Meaning::Refused(format!("unexpected packet {kind:#04x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_connects_and_subscribes_at_once() {
        let filter = "a".repeat(125);
        let client = format!("load{:x}n7", std::process::id());
        let length = client.len() as u8;
        let expected = [
            &[0x10, 12 + length],
            &b"\0\x04MQTT\x04\x02\0\0\0"[..],
            &[length],
            client.as_bytes(),
            b"\x82\x82\x01\0\x01\0\x7d",
            filter.as_bytes(),
            &[0],
        ]
        .concat();
        assert_eq!(opening(7, &[filter]), expected);
    }

    #[test]
    fn only_an_accepted_connect_and_subscribe_make_a_session_live() {
        assert_eq!(meaning(CONNACK, &[0, 0]), Meaning::Nothing);
        assert_eq!(meaning(SUBACK, &[0, 1, 0]), Meaning::Granted);
        assert_eq!(meaning(SUBACK, &[0, 1, 0, 0]), Meaning::Granted);
        assert!(matches!(
            meaning(SUBACK, &[0, 1, 0, 0x80]),
            Meaning::Refused(_)
        ));
        for (kind, payload) in [(CONNACK, &[0, 5][..]), (SUBACK, &[0, 1, 0x80]), (0x40, &[])] {
            assert!(matches!(meaning(kind, payload), Meaning::Refused(_)));
        }
    }
}
