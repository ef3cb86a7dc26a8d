//! Tickets: a session as its client keeps it, sealed, for any process that has the same secret (RFC 8446, 4.6.1;
//! RFC 5077).
//!
//! ```text
//! ticket = period (4) | salt (16) | sealed session | tag (16)
//! key and nonce of a ticket = HKDF-SHA-256(secret; period, salt)
//! ```
//!
//! So all processes of a host, or of a fleet, agree on the keys without talking, and nobody has to rotate them: they go with
//! the time. Where clients are asked for certificates there are no tickets ([`super::server`]).
//!
//! Invariants: no two tickets share a key; a ticket of before the last period opens no more, though the secret, as long as
//! it stays, can make its key again; no `Debug` shows a secret.

use std::fmt;
use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use rustls::server::ProducesTickets;
use zeroize::Zeroize;

use crate::limits::TLS_TICKET_PERIOD;

/// Shortest secret.
pub(super) const SECRET_BYTES_MIN: usize = 32;

const PERIOD_BYTES: usize = 4;
const SALT_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
const KEY_BYTES: usize = 32;
/// Keeps these keys apart from those of anything else that is made of the same secret, now or later.
const LABEL: &[u8] = b"blackhole tls ticket 1";

/// Tells the time: Unix seconds.
pub(super) type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What seals and opens tickets.
pub(super) struct Tickets {
    secret: hkdf::Prk,
    clock: Clock,
}

impl Tickets {
    /// `secret`: at least [`SECRET_BYTES_MIN`] bytes of a good source.
    pub(super) fn new(secret: &[u8], clock: Clock) -> Self {
        Self {
            secret: hkdf::Salt::new(hkdf::HKDF_SHA256, LABEL).extract(secret),
            clock,
        }
    }

    /// The number of the period that it is.
    fn period(&self) -> Option<u32> {
        u32::try_from((self.clock)() / TLS_TICKET_PERIOD.as_secs()).ok()
    }

    fn key(&self, period: [u8; PERIOD_BYTES], salt: &[u8]) -> Option<(LessSafeKey, Nonce)> {
        struct Length;
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                KEY_BYTES + NONCE_LEN
            }
        }
        let mut bytes = [0; KEY_BYTES + NONCE_LEN];
        let info = [&period[..], salt];
        self.secret
            .expand(&info, Length)
            .and_then(|expanded| expanded.fill(&mut bytes))
            .ok()?;
        let (key, nonce) = bytes.split_at(KEY_BYTES);
        let key = UnboundKey::new(&AES_256_GCM, key).ok()?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        bytes.zeroize();
        Some((LessSafeKey::new(key), nonce))
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    /// For as long every ticket is taken, however late in a period it was made.
    fn lifetime(&self) -> u32 {
        u32::try_from(TLS_TICKET_PERIOD.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let period = self.period()?.to_be_bytes();
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).ok()?;
        let (key, nonce) = self.key(period, &salt)?;
        let mut ticket = Vec::with_capacity(PERIOD_BYTES + SALT_BYTES + plain.len() + TAG_BYTES);
        ticket.extend(period);
        ticket.extend(salt);
        ticket.extend(plain);
        let content = ticket.get_mut(PERIOD_BYTES + SALT_BYTES..)?;
        let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), content);
        ticket.extend(tag.ok()?.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (period, rest) = ticket.split_first_chunk::<PERIOD_BYTES>()?;
        let (salt, sealed) = rest.split_first_chunk::<SALT_BYTES>()?;
        // One period to each side: the last one's tickets are taken, and those of processes whose clock is ahead.
        if self.period()?.abs_diff(u32::from_be_bytes(*period)) > 1 {
            return None;
        }
        let (key, nonce) = self.key(*period, salt)?;
        let mut session = sealed.to_vec();
        let bytes = key
            .open_in_place(nonce, Aad::empty(), &mut session)
            .ok()?
            .len();
        session.truncate(bytes);
        Some(session)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}
