//! A byte stream of units (websocket frames, or packets inside them), read with as little work as counting them
//! needs: of an event only the header and a few bytes are looked at, and its other bytes are skipped where they lie.
//!
//! Invariant: between two reads a stream keeps nothing but how many bytes of a passing unit are still to come, or
//! the few bytes of a unit that is not clear yet.

/// Longest unit that is kept whole: replies, notices, pings, closes.
pub const KEPT_BYTES_MAX: usize = 64 << 10;

/// How the units of a stream look.
pub trait Format {
    /// What stands at the front of `bytes`, which begin with a unit and are not empty.
    ///
    /// # Errors
    /// No unit of the format begins so.
    fn front(&self, bytes: &[u8]) -> Result<Front, BadUnit>;
}

/// The unit at the front of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// More bytes are needed to tell.
    Unclear,
    /// It is told of piece by piece, as its bytes pass.
    Passing {
        /// Bytes of its header, which are there.
        header: usize,
        /// Bytes of its payload.
        length: u64,
    },
    /// It is kept until it is whole.
    Whole {
        /// Bytes of its header, which are there.
        header: usize,
        /// Bytes of its payload.
        length: u64,
    },
}

/// What a stream has come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// A passing unit begins.
    Begin(Piece<'a>),
    /// The next bytes of its payload.
    More(Piece<'a>),
    /// Its last byte has been read; `bytes` with its header.
    End {
        /// Length of header and payload.
        bytes: u64,
    },
    /// Another unit, whole.
    Whole {
        /// The first byte of its header.
        kind: u8,
        /// Its payload.
        payload: &'a [u8],
    },
}

/// Some bytes of a passing unit's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The bytes that are here; none, where the header alone was read.
    pub bytes: &'a [u8],
    /// How many bytes of the payload come after them.
    pub left: u32,
}

impl Piece<'_> {
    /// Whether it agrees with a payload that ends with `end`: what of the end lies in this piece is compared. When all
    /// pieces of a payload that is no shorter than `end` agree, the payload ends so.
    #[must_use]
    pub fn agrees_with_end(&self, end: &[u8]) -> bool {
        let until_here = end.len().saturating_sub(self.left as usize);
        let (end, bytes) = (&end[..until_here], self.bytes);
        let here = until_here.min(bytes.len());
        end[until_here - here..] == bytes[bytes.len() - here..]
    }
}

/// Bytes that the server's protocol does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUnit {
    /// A server must not mask.
    #[error("masked frame")]
    Masked,
    /// A fragment, a reserved bit, or an opcode that does not exist or does not belong here.
    #[error("unexpected first byte {0:#04x}")]
    Opcode(u8),
    /// Longer than [`KEPT_BYTES_MAX`] and no event, or longer than 4 GB.
    #[error("{0} bytes in one frame or packet")]
    TooLong(u64),
    /// A length of an MQTT packet or a NATS message that is none.
    #[error("malformed length")]
    Length,
}

/// Where one stream stands.
#[derive(Debug, Default)]
pub struct Reader {
    /// Bytes of the passing unit that are still to come.
    left: u32,
    /// Length of the passing unit.
    passing_bytes: u32,
    /// The beginning of a unit whose end or kind is not known yet.
    kept: Option<Box<[u8]>>,
}

impl Reader {
    /// Moves what was kept of an unfinished unit to the front of `buffer`, and returns its length: the next bytes
    /// are to be read behind it, and all of them given to [`Reader::feed`].
    ///
    /// `buffer` is longer than [`KEPT_BYTES_MAX`] + 10.
    pub fn unstash(&mut self, buffer: &mut [u8]) -> usize {
        let Some(kept) = self.kept.take() else {
            return 0;
        };
        buffer[..kept.len()].copy_from_slice(&kept);
        kept.len()
    }

    /// Keeps `bytes` for the next [`Reader::unstash`].
    pub fn stash(&mut self, bytes: &[u8]) {
        self.kept = (!bytes.is_empty()).then(|| bytes.into());
    }

    /// [`Reader::feed`] with what was kept put before `bytes`: a copy, which only a unit that was cut costs.
    ///
    /// # Errors
    /// The bytes are no units of `format`.
    pub fn feed_joined(
        &mut self,
        format: &impl Format,
        bytes: &[u8],
        seen: impl FnMut(Seen<'_>),
    ) -> Result<(), BadUnit> {
        match self.kept.take() {
            None => self.feed(format, bytes, seen),
            Some(kept) => self.feed(format, &[&kept, bytes].concat(), seen),
        }
    }

    /// Reads the units in `bytes` and tells `seen` of each; what is incomplete is kept. Linear in the units, not in
    /// the bytes of passing ones.
    ///
    /// # Errors
    /// [`BadUnit`]: the stream cannot be read on.
    pub fn feed(
        &mut self,
        format: &impl Format,
        mut bytes: &[u8],
        mut seen: impl FnMut(Seen<'_>),
    ) -> Result<(), BadUnit> {
        if self.left > 0 {
            let piece = self.piece(bytes);
            seen(Seen::More(piece));
            bytes = self.pass(bytes, piece, &mut seen);
        }
        while !bytes.is_empty() {
            match format.front(bytes)? {
                Front::Unclear => break,
                Front::Passing { header, length } => {
                    self.passing_bytes = u32::try_from(header as u64 + length)
                        .map_err(|_| BadUnit::TooLong(length))?;
                    self.left = self.passing_bytes - header as u32;
                    let payload = &bytes[header..];
                    let piece = self.piece(payload);
                    seen(Seen::Begin(piece));
                    bytes = self.pass(payload, piece, &mut seen);
                }
                Front::Whole { header, length } => {
                    if length > KEPT_BYTES_MAX as u64 {
                        return Err(BadUnit::TooLong(length));
                    }
                    let end = header + length as usize;
                    if bytes.len() < end {
                        break;
                    }
                    seen(Seen::Whole {
                        kind: bytes[0],
                        payload: &bytes[header..end],
                    });
                    bytes = &bytes[end..];
                }
            }
        }
        self.stash(bytes);
        Ok(())
    }

    /// What of the passing unit stands at the front of `bytes`.
    fn piece<'a>(&self, bytes: &'a [u8]) -> Piece<'a> {
        let here = bytes.len().min(self.left as usize);
        Piece {
            bytes: &bytes[..here],
            left: self.left - here as u32,
        }
    }

    /// Passes over `piece` of the passing unit, which stands at the front of `bytes`; the bytes after it.
    fn pass<'a>(
        &mut self,
        bytes: &'a [u8],
        piece: Piece<'_>,
        seen: &mut impl FnMut(Seen<'_>),
    ) -> &'a [u8] {
        self.left = piece.left;
        if self.left == 0 {
            seen(Seen::End {
                bytes: self.passing_bytes.into(),
            });
        }
        &bytes[piece.bytes.len()..]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a script of units is seen as when it comes in pieces of `piece` bytes, with the bytes of passing units
    /// left out: they depend on the cuts.
    pub(crate) fn read_in_pieces(
        format: &impl Format,
        bytes: &[u8],
        piece: usize,
    ) -> Result<Vec<String>, BadUnit> {
        let mut buffered = Reader::default();
        let mut joined = Reader::default();
        let mut buffer = vec![0; KEPT_BYTES_MAX + 4096];
        let mut told = (Vec::new(), Vec::new());
        for piece in bytes.chunks(piece.min(4000)) {
            let kept = buffered.unstash(&mut buffer);
            buffer[kept..kept + piece.len()].copy_from_slice(piece);
            let bytes = &buffer[..kept + piece.len()];
            buffered.feed(format, bytes, |seen| told.0.extend(tell(&seen)))?;
            joined.feed_joined(format, piece, |seen| told.1.extend(tell(&seen)))?;
        }
        assert_eq!(told.0, told.1, "both ways to read are one");
        assert!(
            buffered.kept.is_none() && buffered.left == 0,
            "all is read: {buffered:?}"
        );
        Ok(told.0)
    }

    fn tell(seen: &Seen<'_>) -> Option<String> {
        match seen {
            Seen::Begin(_) => Some("event".into()),
            Seen::More(_) => None,
            Seen::End { .. } | Seen::Whole { .. } => Some(format!("{seen:?}")),
        }
    }
}
