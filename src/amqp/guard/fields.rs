//! The fields of methods and content headers: which of them are hidden from the client's parser, or put right for it.
//! Changes are made in place and keep every length. Pure but for [`Vitals`].

use super::bounds::{BACKLOG_BYTES_MAX, HEARTBEAT_SECONDS, Violation};
use super::vitals::Vitals;
use crate::event;

/// Stands for what was not UTF-8: ASCII's own character for that, which no escaped routing key contains (PROTOCOL 6).
pub(in crate::amqp) const SUBSTITUTE: char = '\u{1a}';

/// Class, weight, body size, flags, then two short strings at most, and what there is in front of a timestamp: the part of
/// a content header that is screened. A timestamp behind more headers than this has room for is hidden like the rest.
pub(super) const CONTENT_BYTES_SCREENED_MAX: usize = 4096;
/// The same of the contents of a stream: an offset that stands behind more headers than this has room for is not found.
pub(super) const STREAM_CONTENT_BYTES_SCREENED_MAX: usize = 16 << 10;
/// The header in which a stream's delivery has its offset, a long.
const OFFSET: &[u8] = b"x-stream-offset";
pub(super) const CONTENT_TYPE: u16 = 1 << 15;
pub(super) const CONTENT_ENCODING: u16 = 1 << 14;
pub(super) const TIMESTAMP: u16 = 1 << 6;
pub(super) const HEADERS: u16 = 1 << 13;
/// More flags follow, which basic's properties never need.
const MORE_FLAGS: u16 = 1;

const CONNECTION_START: (u16, u16) = (10, 10);
const CONNECTION_TUNE: (u16, u16) = (10, 30);
const BASIC_DELIVER: (u16, u16) = (60, 60);
/// Methods that carry a table and that only clients send.
const CLIENT_TABLES: [(u16, u16); 8] = [
    (10, 11),
    (40, 10),
    (40, 30),
    (40, 40),
    (50, 10),
    (50, 20),
    (50, 50),
    (60, 20),
];

/// How much of a content header is screened on a connection.
pub(super) fn content_bytes_screened_max(vitals: &Vitals) -> usize {
    if vitals.has_offsets() {
        STREAM_CONTENT_BYTES_SCREENED_MAX
    } else {
        CONTENT_BYTES_SCREENED_MAX
    }
}

/// Returns the tag of a delivery that the method announces.
pub(super) fn screen_method(payload: &mut [u8]) -> Result<Option<u64>, Violation> {
    let mut fields = Fields(payload);
    let method = (fields.u16()?, fields.u16()?);
    match method {
        CONNECTION_START => {
            fields.skip(2)?;
            let length = fields.u32()? as usize;
            blank_table(fields.take(length)?);
        }
        CONNECTION_TUNE => {
            fields.skip(6)?;
            let heartbeat = fields.take(2)?;
            if *heartbeat == [0, 0] {
                heartbeat.copy_from_slice(&HEARTBEAT_SECONDS.to_be_bytes());
            }
        }
        BASIC_DELIVER => {
            fields.short_string()?;
            let tag = fields.u64()?;
            fields.skip(1)?;
            substitute(fields.short_string()?);
            substitute(fields.short_string()?);
            return Ok(Some(tag));
        }
        (class, method) if CLIENT_TABLES.contains(&(class, method)) => {
            return Err(Violation::ClientMethod(class, method));
        }
        _ => {}
    }
    Ok(None)
}

/// Returns the bytes of a body that is to be swallowed. `tag`: that of the delivery that the content belongs to.
pub(super) fn screen_content(
    payload: &mut [u8],
    tag: Option<u64>,
    vitals: &Vitals,
) -> Result<Option<u64>, Violation> {
    let mut fields = Fields(payload);
    fields.skip(4)?;
    let size = fields.take(8)?;
    let body = size
        .first_chunk()
        .map_or(0, |size| u64::from_be_bytes(*size));
    let backlog = vitals.backlog_bytes().saturating_add(body);
    let is_no_event = body > event::BODY_BYTES_MAX as u64;
    let mut swallowed = None;
    if body > vitals.body_bytes_max() || (backlog > BACKLOG_BYTES_MAX && is_no_event) {
        let Some(tag) = tag else {
            return Err(Violation::BodyTooLarge(body));
        };
        size.fill(0);
        vitals.swallow(tag, body)?;
        swallowed = Some(body);
    } else if backlog > BACKLOG_BYTES_MAX {
        return Err(Violation::BacklogTooLarge(backlog));
    } else {
        vitals.received(body);
    }
    let flags_bytes = fields.take(2)?;
    let announced = u16::from_be_bytes([flags_bytes[0], flags_bytes[1]]);
    let mut flags = announced & (CONTENT_TYPE | CONTENT_ENCODING);
    for flag in [CONTENT_TYPE, CONTENT_ENCODING] {
        if flags & flag != 0 {
            substitute(fields.short_string()?);
        }
    }
    let find: Find = if vitals.has_offsets() {
        find_offset
    } else {
        find_timestamp
    };
    if bring_forward(fields.0, announced, find) {
        flags |= TIMESTAMP;
    }
    flags_bytes.copy_from_slice(&flags.to_be_bytes());
    Ok(swallowed)
}

/// Looks for eight bytes among a content's properties, which these flags announce.
type Find = fn(&mut [u8], u16) -> Result<Option<[u8; 8]>, Violation>;

/// Copies the eight bytes that `find` finds to the front of `properties`, which begin behind a content's type and encoding,
/// so that they are what the parser meets next. False: there are none, or they cannot be found; nothing was changed.
fn bring_forward(properties: &mut [u8], announced: u16, find: Find) -> bool {
    if announced & MORE_FLAGS != 0 {
        return false;
    }
    if let Ok(Some(found)) = find(properties, announced)
        && let Some(front) = properties.first_chunk_mut()
    {
        *front = found;
        true
    } else {
        false
    }
}

/// Looks for the offset of a stream's delivery among its headers. Each field is stepped over by its length, whatever is in
/// it, so nothing nests; linear in the bytes that are screened. The broker puts its own headers first; a publisher's of the
/// same name would stand behind it.
fn find_offset(properties: &mut [u8], announced: u16) -> Result<Option<[u8; 8]>, Violation> {
    if announced & HEADERS == 0 {
        return Ok(None);
    }
    let mut fields = Fields(properties);
    let length = fields.u32()? as usize;
    let screened = length.min(fields.0.len());
    let mut headers = Fields(fields.take(screened)?);
    while !headers.0.is_empty() {
        let is_offset = headers.short_string()? == OFFSET;
        let [kind] = headers.array()?;
        if is_offset {
            return Ok(if kind == b'l' {
                Some(headers.array()?)
            } else {
                None
            });
        }
        let length = match kind {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'u' | b'U' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'l' | b'L' | b'd' | b'T' => 8,
            b'S' | b'x' | b'A' | b'F' => headers.u32()? as usize,
            _ => return Ok(None),
        };
        headers.skip(length)?;
    }
    Ok(None)
}

/// Steps over the properties between the encoding and the timestamp (AMQP 0-9-1, class basic).
fn find_timestamp(properties: &mut [u8], announced: u16) -> Result<Option<[u8; 8]>, Violation> {
    const DELIVERY_MODE: u16 = 1 << 12;
    const PRIORITY: u16 = 1 << 11;
    /// The correlation id, the queue to reply to, the expiration and the message id.
    const SHORT_STRINGS: [u16; 4] = [1 << 10, 1 << 9, 1 << 8, 1 << 7];
    if announced & TIMESTAMP == 0 {
        return Ok(None);
    }
    let mut fields = Fields(properties);
    if announced & HEADERS != 0 {
        let length = fields.u32()? as usize;
        fields.skip(length)?;
    }
    for one_byte in [DELIVERY_MODE, PRIORITY] {
        if announced & one_byte != 0 {
            fields.skip(1)?;
        }
    }
    for text in SHORT_STRINGS {
        if announced & text != 0 {
            fields.short_string()?;
        }
    }
    fields.array().map(Some)
}

/// Makes the content of `table` one byte array, which does not nest. In less than 6 bytes nothing can nest.
fn blank_table(table: &mut [u8]) {
    let Some(length) = table
        .len()
        .checked_sub(6)
        .and_then(|length| u32::try_from(length).ok())
    else {
        return;
    };
    table.fill(0);
    table[1] = b'x';
    table[2..6].copy_from_slice(&length.to_be_bytes());
}

/// Makes `text` valid UTF-8 of the same length: [`SUBSTITUTE`] stands for each byte that is not.
fn substitute(text: &mut [u8]) {
    let mut from = 0;
    while let Some(rest) = text.get_mut(from..)
        && let Err(error) = std::str::from_utf8(rest)
    {
        let bad = error.valid_up_to()
            ..error.valid_up_to()
                + error
                    .error_len()
                    .unwrap_or(rest.len() - error.valid_up_to());
        rest[bad.clone()].fill(SUBSTITUTE as u8);
        from += bad.end;
    }
}

/// Reads AMQP's fields off the front of a payload.
struct Fields<'a>(&'a mut [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a mut [u8], Violation> {
        let (taken, rest) = std::mem::take(&mut self.0)
            .split_at_mut_checked(bytes)
            .ok_or(Violation::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        self.take(N)?
            .first_chunk()
            .copied()
            .ok_or(Violation::Truncated)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), Violation> {
        self.take(bytes).map(|_| ())
    }

    fn u16(&mut self) -> Result<u16, Violation> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Violation> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Violation> {
        self.array().map(u64::from_be_bytes)
    }

    fn short_string(&mut self) -> Result<&'a mut [u8], Violation> {
        let [length] = self.array()?;
        self.take(length.into())
    }
}
