//! The names and metadata that clients give themselves for the session listings (PROTOCOL 3), and how much of them is
//! kept.
//!
//! A label is kept only while the labels of its account, and those of all sessions, are within their bounds. Beyond them
//! the command runs all the same, and its label is left out and counted: no session needs a label to get events, and
//! no account can use up the room of another.
//!
//! Invariants: [`Labels::bytes`] is the sum over all labels that are kept. An account without labels is not in the table.
//! A label that was kept is dropped exactly once.

use std::collections::HashMap;

use serde_json::value::RawValue;

use crate::account::AccountId;
use crate::limits::{LABELS_BYTES_MAX, LABELS_OF_ACCOUNT_BYTES_MAX};
use crate::protocol::command;

/// What a session is called.
#[derive(Debug, Default)]
pub(super) struct Label {
    pub(super) name: Option<Box<str>>,
    /// As sent.
    pub(super) metadata: Option<Box<RawValue>>,
    /// The account that the bytes count for.
    account: Option<AccountId>,
}

impl Label {
    fn bytes(&self) -> usize {
        let name = self.name.as_ref().map_or(0, |name| name.len());
        let metadata = self.metadata.as_ref().map_or(0, |value| value.get().len());
        size_of::<Self>() + name + metadata
    }
}

/// How much is kept of all sessions.
#[derive(Debug, Default)]
pub struct Labels {
    bytes: usize,
    of_account: HashMap<AccountId, usize>,
}

impl Labels {
    /// Puts what a command says over what `kept` has; the bytes count for the account of the identity that the command
    /// runs as. False: there is no room, and `kept` is as before. O(1) but for the copy.
    pub(super) fn keep(
        &mut self,
        kept: &mut Option<Box<Label>>,
        said: &command::Label<'_>,
        account: Option<AccountId>,
    ) -> bool {
        let before = kept.as_ref().map_or(0, |label| label.bytes());
        let told_name = kept.as_ref().and_then(|label| label.name.as_deref());
        let told_metadata = kept.as_ref().and_then(|label| label.metadata.as_deref());
        let name = said.name.as_deref().or(told_name).map_or(0, str::len);
        let metadata = said
            .metadata
            .or(told_metadata)
            .map_or(0, |value| value.get().len());
        let after = size_of::<Label>() + name + metadata;
        let of_account = account.map_or(0, |account| {
            let counted = kept.as_ref().filter(|label| label.account == Some(account));
            self.of_account(&account) - counted.map_or(0, |label| label.bytes())
        });
        if self.bytes - before + after > LABELS_BYTES_MAX
            || of_account + after > LABELS_OF_ACCOUNT_BYTES_MAX
        {
            return false;
        }
        let mut label = self.drop_label(kept).unwrap_or_default();
        if let Some(name) = &said.name {
            label.name = Some(name.as_ref().into());
        }
        if let Some(metadata) = said.metadata {
            label.metadata = Some(metadata.to_owned());
        }
        label.account = account;
        self.bytes += after;
        if let Some(account) = account {
            *self.of_account.entry(account).or_insert(0) += after;
        }
        *kept = Some(label);
        true
    }

    /// Drops a label, and returns what it was.
    pub(super) fn drop_label(&mut self, kept: &mut Option<Box<Label>>) -> Option<Box<Label>> {
        let label = kept.take()?;
        self.bytes -= label.bytes();
        if let Some(account) = label.account
            && let Some(bytes) = self.of_account.get_mut(&account)
        {
            *bytes -= label.bytes();
            if *bytes == 0 {
                self.of_account.remove(&account);
            }
        }
        Some(label)
    }

    /// Bytes of all labels that are kept (a gauge).
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn of_account(&self, account: &AccountId) -> usize {
        self.of_account.get(account).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(digit: char) -> Option<AccountId> {
        AccountId::parse(&digit.to_string().repeat(32))
    }

    fn keep(
        labels: &mut Labels,
        kept: &mut Option<Box<Label>>,
        said: (&str, &str),
        whose: char,
    ) -> bool {
        let metadata =
            (!said.1.is_empty()).then(|| serde_json::from_str::<&RawValue>(said.1).expect("JSON"));
        let said = command::Label {
            name: (!said.0.is_empty()).then(|| said.0.into()),
            metadata,
        };
        labels.keep(kept, &said, account(whose))
    }

    #[test]
    fn what_is_kept_is_counted_for_its_account_until_it_is_replaced_or_dropped() {
        let mut labels = Labels::default();
        let mut kept = None;
        let own = size_of::<Label>();
        for (said, whose, bytes, of_a, of_b) in [
            (("name", ""), 'a', own + 4, own + 4, 0),
            (("", "[1,2]"), 'a', own + 9, own + 9, 0),
            (("n", ""), 'b', own + 6, 0, own + 6),
            (("", "1"), 'a', own + 2, own + 2, 0),
        ] {
            assert!(keep(&mut labels, &mut kept, said, whose));
            let counted = ['a', 'b'].map(|one| labels.of_account(&account(one).expect("an id")));
            assert_eq!((labels.bytes(), counted), (bytes, [of_a, of_b]), "{said:?}");
        }
        assert!(labels.drop_label(&mut kept).is_some() && kept.is_none());
        assert_eq!((labels.bytes(), labels.of_account.len()), (0, 0));
        assert!(labels.drop_label(&mut kept).is_none());
    }

    #[test]
    fn one_account_fills_its_own_room_and_no_other() {
        let mut labels = Labels::default();
        let mut many = Vec::new();
        let metadata = format!("\"{}\"", "m".repeat(4094));
        loop {
            let mut kept = None;
            if !keep(&mut labels, &mut kept, ("", &metadata), 'a') {
                assert!(kept.is_none());
                break;
            }
            many.push(kept);
            assert!(many.len() < 10_000, "there is no bound");
        }
        assert!(labels.bytes() <= LABELS_OF_ACCOUNT_BYTES_MAX);
        let mut other = None;
        assert!(keep(&mut labels, &mut other, ("other", ""), 'b'));
        // The same in its own place is no more than before.
        assert!(keep(&mut labels, &mut many[0], ("", &metadata), 'a'));
        many.iter_mut()
            .for_each(|kept| drop(labels.drop_label(kept)));
        assert_eq!(labels.bytes(), size_of::<Label>() + 5);
    }
}
