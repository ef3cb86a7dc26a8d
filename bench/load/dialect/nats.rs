//! The NATS client protocol, as much as a subscriber needs: lines that end with CRLF, a MSG followed by its payload.

use super::Meaning;
use shared::frames::{BINARY, masked};
use shared::reader::{BadUnit, Format, Front, KEPT_BYTES_MAX};

/// The server's lines; MSG passes.
pub(super) struct Lines;

impl Format for Lines {
    fn front(&self, bytes: &[u8]) -> Result<Front, BadUnit> {
        let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
            return if bytes.len() > KEPT_BYTES_MAX {
                Err(BadUnit::TooLong(bytes.len() as u64))
            } else {
                Ok(Front::Unclear)
            };
        };
        let line = &bytes[..end];
        if !line.starts_with(b"MSG") {
            let length = end as u64 + 2;
            return Ok(Front::Whole { header: 0, length });
        }
        // The payload's length comes last, and a CRLF follows the payload.
        let payload = line
            .rsplit(|byte| *byte == b' ')
            .next()
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok())
            .ok_or(BadUnit::Length)?;
        Ok(Front::Passing {
            header: end + 2,
            length: u64::from(payload) + 2,
        })
    }
}

/// CONNECT, a SUB to each of `subjects`, numbered from 1, and a PING whose PONG says that they are in force.
pub(super) fn opening(subjects: &[String]) -> String {
    let mut lines = String::from(
        "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"1\",\"protocol\":1}\r\n",
    );
    for (at, subject) in subjects.iter().enumerate() {
        lines.push_str(&format!("SUB {subject} {}\r\n", at + 1));
    }
    lines + "PING\r\n"
}

/// What a line that is no MSG means.
pub(super) fn meaning(line: &[u8]) -> Meaning {
    match line.trim_ascii_end() {
        b"PONG" => Meaning::Granted,
        b"PING" => Meaning::Answer(masked(BINARY, b"PONG\r\n")),
        line if line.starts_with(b"INFO ") => Meaning::Nothing,
        line => Meaning::Refused(String::from_utf8_lossy(line).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_is_subscribed_to_under_a_number_of_its_own() {
        let opening = opening(&["a.1".into(), "b.1".into()]);
        assert!(
            opening.ends_with("}\r\nSUB a.1 1\r\nSUB b.1 2\r\nPING\r\n"),
            "{opening}"
        );
    }

    #[test]
    fn a_ping_is_answered_and_an_error_ends_the_session() {
        assert_eq!(meaning(b"INFO {}\r\n"), Meaning::Nothing);
        assert_eq!(meaning(b"PONG\r\n"), Meaning::Granted);
        let pong = masked(BINARY, b"PONG\r\n");
        assert_eq!(meaning(b"PING\r\n"), Meaning::Answer(pong));
        let error = "-ERR 'Authorization Violation'";
        assert_eq!(
            meaning(format!("{error}\r\n").as_bytes()),
            Meaning::Refused(error.into())
        );
    }
}
