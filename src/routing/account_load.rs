//! How many AMQP bindings each account has, in constant memory whatever the number of accounts.
//!
//! A session on an account and a binding of its own costs some 280 bytes, and a table of accounts would add a tenth to
//! that. So an account is known by a [tag](AccountTag), 24 bits of a seeded hash, and each row of 2,048 counters has
//! one for it. There are three rows, and the load of an account is the least of its three counters (a count-min
//! sketch).
//!
//! Invariants: a load is never too low, so no account exceeds a bound. A load is far too high only when all three
//! counters are shared with accounts at their bound. The process has bindings for twelve such accounts; beside these,
//! it happens to one account in five million, and nobody can choose which, because the seed is the process's own.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::account::AccountId;

/// Rows of counters.
const ROWS: usize = 3;
/// Bits of a place in a row.
const ROW_BITS: u32 = 11;

/// An account, as precisely as turns and bounds between accounts need it; or nobody, for what no account asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountTag([u8; 3]);

impl AccountTag {
    /// No account.
    pub const NOBODY: Self = Self([0; 3]);

    /// The tag of a number below 2^24; 0 is nobody.
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        let [low, middle, high, _] = number.to_le_bytes();
        Self([low, middle, high])
    }

    fn number(self) -> u32 {
        let [low, middle, high] = self.0;
        u32::from_le_bytes([low, middle, high, 0])
    }
}

/// The loads of all accounts. All operations cost O(1).
#[derive(Debug)]
pub(super) struct AccountLoads {
    /// Row by row.
    counters: Box<[u32]>,
    seed: RandomState,
}

impl Default for AccountLoads {
    fn default() -> Self {
        Self::new()
    }
}

impl AccountLoads {
    /// Loads of 0.
    #[must_use]
    pub(super) fn new() -> Self {
        Self {
            counters: vec![0; ROWS << ROW_BITS].into(),
            seed: RandomState::new(),
        }
    }

    /// The tag of `account`.
    #[must_use]
    pub(super) fn tag(&self, account: Option<AccountId>) -> AccountTag {
        account.map_or(AccountTag::NOBODY, |account| {
            let [a, b, c, ..] = self.seed.hash_one(account.bytes()).to_le_bytes();
            match AccountTag([a, b, c]) {
                AccountTag::NOBODY => AccountTag::from_number(1),
                tag => tag,
            }
        })
    }

    /// How many bindings an account has, or a little more; 0 for nobody.
    #[must_use]
    pub(super) fn of(&self, tag: AccountTag) -> usize {
        if tag == AccountTag::NOBODY {
            return 0;
        }
        let counters = places(tag).map(|place| self.counters.get(place).copied());
        counters.into_iter().flatten().min().unwrap_or(0) as usize
    }

    /// Counts one more binding of an account.
    pub(super) fn add(&mut self, tag: AccountTag) {
        if tag != AccountTag::NOBODY {
            self.count(tag, |counter| *counter += 1);
        }
    }

    /// Counts one binding less, which was [added](Self::add) before.
    pub(super) fn take(&mut self, tag: AccountTag) {
        if tag != AccountTag::NOBODY {
            self.count(tag, |counter| *counter -= 1);
        }
    }

    fn count(&mut self, tag: AccountTag, change: impl Fn(&mut u32)) {
        for place in places(tag) {
            if let Some(counter) = self.counters.get_mut(place) {
                change(counter);
            }
        }
    }
}

/// The places of a tag's counters, one in each row.
fn places(tag: AccountTag) -> [usize; ROWS] {
    let mut mixed = u64::from(tag.number()).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    [0, 1, 2].map(|row| {
        let place = mixed >> (64 - (row + 1) * ROW_BITS) & ((1 << ROW_BITS) - 1);
        (row as usize) << ROW_BITS | place as usize
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(number: u32) -> AccountId {
        AccountId::parse(&format!("{number:032x}")).expect("32 hex characters")
    }

    #[test]
    fn a_load_is_never_too_low_and_hardly_too_high_beside_twelve_accounts_at_their_bound() {
        let mut loads = AccountLoads::new();
        let heavy: Vec<_> = (0..12).map(|n| loads.tag(Some(account(n)))).collect();
        let light: Vec<_> = (100..19_100).map(|n| loads.tag(Some(account(n)))).collect();
        for tag in &heavy {
            (0..16_384).for_each(|_| loads.add(*tag));
        }
        light.iter().for_each(|tag| loads.add(*tag));
        assert!(heavy.iter().all(|tag| loads.of(*tag) >= 16_384));
        let counted: Vec<_> = light.iter().map(|tag| loads.of(*tag)).collect();
        assert!(counted.iter().all(|load| *load >= 1));
        let too_high = counted.iter().filter(|load| **load > 100).count();
        assert!(
            too_high <= 2,
            "{too_high} honest accounts are taken for heavy"
        );
        for tag in &heavy {
            (0..16_384).for_each(|_| loads.take(*tag));
        }
        light.iter().for_each(|tag| loads.take(*tag));
        assert!(loads.counters.iter().all(|counter| *counter == 0));
    }

    #[test]
    fn what_nobody_asked_for_is_not_counted() {
        let mut loads = AccountLoads::new();
        let nobody = loads.tag(None);
        loads.add(nobody);
        assert_eq!(loads.of(nobody), 0);
        assert!(loads.counters.iter().all(|counter| *counter == 0));
        let first = loads.tag(Some(account(1)));
        assert_ne!(first, AccountTag::NOBODY);
        loads.add(first);
        assert_eq!((loads.of(first), loads.of(nobody)), (1, 0));
        loads.take(first);
        loads.take(nobody);
    }
}
