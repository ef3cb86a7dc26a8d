//! How many connections each address and each account has, and which of them are one too many.
//!
//! Invariant: a connection counts for its address from the moment when that is known to its very end, so neither one
//! that does not finish its handshake nor one that does not finish its close escapes the count.

use std::net::IpAddr;

use crate::account::AccountId;

use super::limits::SessionLimits;
use super::quota::Quota;

/// Whether a connection counts for its address (`max_connections_per_ip`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Not yet, for it may come through a proxy that has not told its address; or never, at the admin listener.
    Unknown,
    /// It does.
    Counted,
    /// It would be one too many, and is kept until it has been told so: [`Occupancy::surplus`] counts it.
    Surplus,
}

/// Connections and sessions, counted by what bounds them.
#[derive(Debug)]
pub struct Occupancy {
    /// Connections of each IP ([`super::id::Peer::network`]; `max_connections_per_ip`).
    ips: Quota<IpAddr>,
    surplus: usize,
    /// Sessions of each account, by the own account of the identity that they run as or were closed as
    /// (`max_connections_per_account`).
    pub(super) accounts: Quota<AccountId>,
}

impl Occupancy {
    /// No connections.
    #[must_use]
    pub(super) fn new(limits: &SessionLimits) -> Self {
        Self {
            ips: Quota::new(limits.connections_per_ip_max),
            surplus: 0,
            accounts: Quota::new(limits.connections_per_account_max),
        }
    }

    /// Counts a connection that is not counted yet for its network, if there is a place. `before`: how it stood.
    pub(super) fn enter(&mut self, before: Place, network: IpAddr) -> Place {
        let place = if self.ips.full(&network).is_some() {
            Place::Surplus
        } else {
            self.ips.take(network);
            Place::Counted
        };
        self.surplus -= usize::from(before == Place::Surplus);
        self.surplus += usize::from(place == Place::Surplus);
        place
    }

    /// A connection has ended.
    pub(super) fn leave(&mut self, place: Place, network: &IpAddr) {
        match place {
            Place::Unknown => {}
            Place::Counted => self.ips.give_back(network),
            Place::Surplus => self.surplus -= 1,
        }
    }

    /// Connections of each IP.
    #[must_use]
    pub fn ips(&self) -> &Quota<IpAddr> {
        &self.ips
    }

    /// Sessions of each account.
    #[must_use]
    pub fn accounts(&self) -> &Quota<AccountId> {
        &self.accounts
    }

    /// Connections that are one too many of their IP, and kept until they are told (a gauge).
    #[must_use]
    pub fn surplus(&self) -> usize {
        self.surplus
    }
}
