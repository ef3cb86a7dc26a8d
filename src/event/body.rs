//! A delivery's body before it is read: its encoding, its bounds, its text, and why one is refused.

use std::io::Read;

use crate::json::is_white;

/// Why a delivery is not an event (PROTOCOL 5): it is dropped and counted.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum EventError {
    /// The body is not UTF-8.
    #[error("the body is not UTF-8")]
    NotUtf8,
    /// The body is not one JSON object.
    #[error("the body is not a JSON object")]
    NotJsonObject,
    /// The gzip stream is broken.
    #[error("the gzip stream is broken")]
    BrokenGzip,
    /// More than [`BODY_BYTES_MAX`], before or after inflation, or than [`GZIP_MEMBERS_MAX`].
    #[error(
        "the body has more than {BODY_BYTES_MAX} bytes, or more than {GZIP_MEMBERS_MAX} gzip members"
    )]
    TooLarge,
    /// `content_encoding` names what is neither gzip, nor nothing, nor UTF-8 or a part of it.
    #[error("the content encoding is not supported")]
    UnknownEncoding,
}

/// Largest body, after gzip inflation (PROTOCOL 5). A larger one is dropped and counted.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// Members of a gzip body, each of which costs a decompressor of its own, however little is in it. A body of more is
/// dropped and counted as one that is too large.
pub const GZIP_MEMBERS_MAX: usize = 1024;

/// The body as it was before `content_encoding`, within [`BODY_BYTES_MAX`].
pub(super) fn plain(body: Vec<u8>, content_encoding: &str) -> Result<Vec<u8>, EventError> {
    let body = match Encoding::of(content_encoding)? {
        Encoding::Plain => body,
        Encoding::Gzip => inflate(&body)?,
    };
    if body.len() > BODY_BYTES_MAX {
        return Err(EventError::TooLarge);
    }
    Ok(body)
}

/// The text of a body, without the white space around it.
pub(super) fn text(mut body: &[u8]) -> Result<&str, EventError> {
    while let [first, rest @ ..] = body
        && is_white(*first)
    {
        body = rest;
    }
    while let [rest @ .., last] = body
        && is_white(*last)
    {
        body = rest;
    }
    simdutf8::basic::from_utf8(body).map_err(|_| EventError::NotUtf8)
}

/// What a `content_encoding` says of a body (PROTOCOL 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Plain,
    Gzip,
}

impl Encoding {
    /// Reads names that `,` or `:` separates, whatever their case, spaces around them and order. Each is that of a
    /// compression, once at most, or of a character set that is UTF-8 or a part of it.
    fn of(names: &str) -> Result<Self, EventError> {
        const PLAIN: [&str; 6] = ["", "identity", "utf-8", "utf8", "us-ascii", "ascii"];
        const GZIP: [&str; 2] = ["gzip", "x-gzip"];
        let mut encoding = Self::Plain;
        for name in names.split([',', ':']) {
            let is_one_of = |known: &[&str]| {
                let name = name.trim_ascii();
                known.iter().any(|known| name.eq_ignore_ascii_case(known))
            };
            if is_one_of(&GZIP) && encoding == Self::Plain {
                encoding = Self::Gzip;
            } else if !is_one_of(&PLAIN) {
                return Err(EventError::UnknownEncoding);
            }
        }
        Ok(encoding)
    }
}

/// Inflates all members of a gzip body (RFC 1952 section 2.2), up to one byte more than [`BODY_BYTES_MAX`].
fn inflate(mut body: &[u8]) -> Result<Vec<u8>, EventError> {
    // What is larger than its content may be costs more to inflate than it is worth: members without content.
    if body.len() > BODY_BYTES_MAX {
        return Err(EventError::TooLarge);
    }
    let mut inflated = Vec::new();
    for _ in 0..GZIP_MEMBERS_MAX {
        let limit = (BODY_BYTES_MAX + 1 - inflated.len()) as u64;
        flate2::bufread::GzDecoder::new(&mut body)
            .take(limit)
            .read_to_end(&mut inflated)
            .map_err(|_| EventError::BrokenGzip)?;
        if body.is_empty() || inflated.len() > BODY_BYTES_MAX {
            return Ok(inflated);
        }
    }
    Err(EventError::TooLarge)
}
