//! What a read of a connection of the TLS port brings: its first bytes told apart; later its records, opened in place, and
//! given to the session as far as it may be given some.

use super::secured::Live;
use crate::protocol::proxy;
use crate::tls::{Alert, Opened, Records};

/// What the first bytes of a connection of the TLS port are.
pub(super) enum First {
    /// A record of a handshake (RFC 8446 section 5.1).
    Handshake,
    /// A request of HTTP, in clear.
    Http,
    /// A PROXY header, which is not taken from this address.
    ProxyHeader,
    /// Nothing that is spoken here.
    Other,
}

impl First {
    /// `None`: there are none.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        Some(match bytes.first()? {
            0x16 => Self::Handshake,
            _ if proxy::is_header_start(bytes) => Self::ProxyHeader,
            b'A'..=b'Z' => Self::Http,
            _ => Self::Other,
        })
    }
}

/// Records under way to a session.
pub(super) struct Unsealing<'i> {
    /// First plain bytes, then records.
    pub(super) input: &'i mut [u8],
    /// How many are plain.
    pub(super) plain: usize,
    /// How many plain bytes the session may still be given.
    pub(super) left: usize,
}

impl Unsealing<'_> {
    /// Gives a session plain bytes, as long as it may be given some and `deliver` says that it wants more, and keeps the
    /// rest in `live`. `records`: counts those that were opened. True: the peer has said that nothing follows.
    ///
    /// # Errors
    /// A record was wrong: what the peer is to be told.
    pub(super) fn deliver(
        mut self,
        live: &mut Live,
        records: &mut usize,
        mut deliver: impl FnMut(&mut [u8]) -> bool,
    ) -> Result<bool, Alert> {
        let mut wants_more = self.left > 0;
        // Where the plain bytes begin, and where the records behind them.
        let mut begin = 0;
        let mut behind = self.plain;
        while wants_more {
            if self.plain > 0 {
                let count = self.plain.min(self.left);
                let bytes = self.input.get_mut(begin..begin + count);
                wants_more = deliver(bytes.unwrap_or_default());
                (begin, self.plain, self.left) =
                    (begin + count, self.plain - count, self.left - count);
                wants_more &= self.left > 0;
                continue;
            }
            begin = behind;
            let next = self.input.get_mut(behind..).unwrap_or_default();
            let length = Records::record_len(next).map_err(|error| error.alert())?;
            let Some(record) = length.and_then(|length| next.get_mut(..length)) else {
                break;
            };
            let length = record.len();
            *records += 1;
            match live.records.open(record).map_err(|error| error.alert())? {
                Opened::Data(place) => {
                    (begin, self.plain) = (behind + place.start, place.len());
                }
                Opened::Nothing => {}
                Opened::End => return Ok(true),
            }
            behind += length;
            if self.plain == 0 {
                begin = behind;
            }
        }
        // The tag of the last record stands between what is plain and the records behind it.
        let plain_end = begin + self.plain;
        self.input.copy_within(behind.., plain_end);
        let end = self.input.len() - (behind - plain_end);
        live.keep(self.input.get(begin..end).unwrap_or_default(), self.plain);
        Ok(false)
    }
}
