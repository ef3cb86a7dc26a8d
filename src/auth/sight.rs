//! Which accounts an identity may see now, by all that decides on it: the token itself, then the account tree, if there is
//! one, else the platform, if it is asked (PROTOCOL 7).

use std::sync::Arc;

use super::accounts::Accounts;
use super::grants::Grants;
use super::identity::Identity;
use crate::account::{AccountId, Scope};

/// What an identity may see.
#[derive(Clone, Copy)]
pub struct Sight<'a> {
    pub(super) identity: &'a Identity,
    pub(super) tree: Option<&'a Accounts>,
    /// What the platform has allowed.
    pub(super) grants: Option<&'a Grants>,
}

impl Sight<'_> {
    /// Whether events of `account` may be shown (PROTOCOL 4). Where the platform must be asked, it has been, and its last word
    /// counts. O(log descendants) and the look-ups of a token and an account.
    #[must_use]
    pub fn may_see(&self, account: AccountId) -> bool {
        self.is_superduper() || self.sees_by_itself(account) || self.granted(account).is_some()
    }

    /// Whether it may subscribe for `scope`: an account it [may see](Self::may_see), or all for a superduper admin.
    #[must_use]
    pub fn may_have(&self, scope: Scope) -> bool {
        match scope {
            Scope::One(account) => self.may_see(account),
            Scope::Any => self.is_superduper(),
        }
    }

    /// Whether it may ask for `*` as the account.
    #[must_use]
    pub fn is_superduper(&self) -> bool {
        self.identity.is_superduper()
            || self
                .tree_of_own()
                .is_some_and(|(tree, own)| tree.is_superduper(own))
    }

    /// The SIP realm of `account` (PROTOCOL 6, REALM), unescaped. `None` when the account may not be
    /// [seen](Self::may_see) or no realm is known for it. Of a token that only the platform knows, the platform's word
    /// counts before the tree's.
    #[must_use]
    pub fn realm_of(&self, account: AccountId) -> Option<Arc<str>> {
        if !self.may_see(account) {
            return None;
        }
        let of_tree = || self.tree?.realm_of(account);
        let granted = || self.granted(account)?.cloned();
        let of_token = self.identity.realm_of(account);
        match self.identity.is_asked() {
            true => granted().or_else(of_tree),
            false => of_token.or_else(of_tree).or_else(granted),
        }
    }

    /// Whether the token or the tree gives the right, so that nobody has to be asked.
    pub(super) fn sees_by_itself(&self, account: AccountId) -> bool {
        self.identity.may_see(account)
            || self
                .tree_of_own()
                .is_some_and(|(tree, own)| tree.is_within(account, own))
    }

    /// The tree, and the place of the identity in it. The platform's own tokens are judged by the platform alone.
    fn tree_of_own(&self) -> Option<(&Accounts, AccountId)> {
        if self.identity.is_asked() {
            return None;
        }
        self.tree.zip(self.identity.account_id())
    }

    /// Whether the platform decides on accounts that the token itself does not give.
    pub(super) fn is_asked_for(&self) -> bool {
        self.grants.is_some() && (self.tree.is_none() || self.identity.is_asked())
    }

    fn granted(&self, account: AccountId) -> Option<Option<&Arc<str>>> {
        if !self.is_asked_for() {
            return None;
        }
        self.grants?.live(self.identity.token()?, account)
    }
}
