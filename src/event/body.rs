//! The body of a delivery before its JSON is read: the encoding, the bounds, the text, and the reasons to drop it.

use std::io::Read;

use crate::json::is_white;

/// Why a delivery is not an event (PROTOCOL 5). Such a delivery is dropped and counted.
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
    /// More bytes than [`BODY_BYTES_MAX`], before or after inflation, or too many gzip members.
    #[error(
        "the body has more than {BODY_BYTES_MAX} bytes, or more than {GZIP_MEMBERS_MAX} gzip members"
    )]
    TooLarge,
    /// `content_encoding` has a name other than those of gzip, of no encoding, of UTF-8 and of its subsets.
    #[error("the content encoding is not supported")]
    UnknownEncoding,
}

/// Largest body, before and after gzip inflation (PROTOCOL 5). A larger one is dropped and counted.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// Most members of a gzip body. Each member costs a decompressor of its own, even an empty one. A body with more members
/// counts as too large.
pub(super) const GZIP_MEMBERS_MAX: usize = 1024;

/// Undoes `content_encoding`. The result is within [`BODY_BYTES_MAX`].
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

/// Returns the text of a body, without the white space around it.
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

/// How a body is encoded, according to `content_encoding` (PROTOCOL 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Plain,
    Gzip,
}

impl Encoding {
    /// Reads names that are separated by `,` or `:`, in any case and order, with or without spaces around them. A name
    /// is that of a compression, at most once, or of a character set: UTF-8 or a subset of it.
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
    // A compressed body above the bound of its content is made of empty members: it costs more than it can contain.
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
