//! The session that something happens to.

use crate::account::AccountId;
use crate::session::id::{ConnId, Peer};

/// The session that something happens to.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    /// Its connection.
    pub id: ConnId,
    /// Its peer.
    pub peer: Peer,
    /// The account of its identity, else of its first subscription.
    pub account: Option<AccountId>,
}
