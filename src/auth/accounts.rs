//! The account tree (PROTOCOL 7, `--accounts FILE`): `{ACCOUNT: {"parent": ACCOUNT?, "realm": …?, "superduper_admin":
//! false}}`.
//!
//! Each account has two numbers: its place in a walk over the tree in which an account comes before all that are below
//! it, and the first place behind those. So whether one account is below another is two look-ups and two comparisons,
//! however deep the tree is, and nothing here recurses.
//!
//! Invariants: every parent is in the tree, and no account is its own ancestor; at most [`ACCOUNTS_MAX`] accounts. A tree
//! is complete, or it is not made. An error holds account ids, positions and the names of the known keys, and nothing
//! else of the file's content.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::entry::{ACCOUNT_ID, SharedRealm, account_id, read, realm as sip_realm, shared_realms};
use crate::account::AccountId;
use crate::json::{self, Members};
use crate::limits::ACCOUNTS_MAX;

const KEYS: &str = "parent, realm, superduper_admin";

/// Why an account tree is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountsError {
    /// The file as a whole.
    #[error("{file}: {problem}", file = file.display())]
    File {
        /// The accounts file.
        file: PathBuf,
        /// Line, column and expectation.
        problem: String,
    },
    /// An entry whose name is no account id.
    #[error("{file}: line {line}: entry {entry}: {problem}", file = file.display())]
    Entry {
        /// The accounts file.
        file: PathBuf,
        /// Where the entry's value begins, from 1.
        line: usize,
        /// Position among the entries, from 1.
        entry: usize,
        /// What was expected.
        problem: String,
    },
    /// An account's entry.
    #[error("{file}: line {line}: account {account}: {problem}", file = file.display())]
    Account {
        /// The accounts file.
        file: PathBuf,
        /// Where the entry's value begins, from 1.
        line: usize,
        /// Whose entry it is.
        account: AccountId,
        /// Key and expectation.
        problem: String,
    },
}

/// The account tree, or several trees: any number of accounts have no parent.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    nodes: HashMap<AccountId, Node>,
    shared_realms: Vec<SharedRealm>,
}

#[derive(Debug, PartialEq, Eq)]
struct Node {
    /// Its own place, and those of all accounts below it.
    places: Range<u32>,
    realm: Option<Arc<str>>,
    superduper: bool,
}

impl Accounts {
    /// Parses `text`, the content of `file`. Linear in it, but for two sorts.
    ///
    /// # Errors
    /// It is not an object of such entries; an account stands in it twice; a parent is not in it, or below its own
    /// child; there are more than [`ACCOUNTS_MAX`] accounts.
    pub fn parse(file: &Path, text: &str) -> Result<Self, AccountsError> {
        let whole = |problem| AccountsError::File {
            file: file.to_owned(),
            problem,
        };
        let members: Members<&RawValue> = serde_json::from_str(text).map_err(|error| {
            whole(json::problem(
                &error,
                "a JSON object {ACCOUNT: {\"parent\": ACCOUNT, …}, …}",
            ))
        })?;
        if members.0.len() > ACCOUNTS_MAX {
            return Err(whole(format!("more than {ACCOUNTS_MAX} accounts")));
        }
        let line = |index: usize| {
            let value = members.0.get(index).map_or("", |(_, value)| value.get());
            line_of(text, value)
        };
        let mut entries = Vec::with_capacity(members.0.len());
        let mut indexes = HashMap::with_capacity(members.0.len());
        for (index, (name, value)) in members.0.iter().enumerate() {
            let Some(account) = AccountId::parse(name) else {
                return Err(AccountsError::Entry {
                    file: file.to_owned(),
                    line: line(index),
                    entry: index + 1,
                    problem: format!("expected an account id as its name, {ACCOUNT_ID}"),
                });
            };
            let wrong = |problem: String| AccountsError::Account {
                file: file.to_owned(),
                line: line(index),
                account,
                problem,
            };
            if indexes.insert(account, index).is_some() {
                return Err(wrong("the same account as an earlier entry".to_owned()));
            }
            let entry = Entry::parse(value).map_err(wrong)?;
            entries.push((account, entry));
        }
        let wrong = |index: usize, problem: &str| match entries.get(index) {
            Some((account, _)) => AccountsError::Account {
                file: file.to_owned(),
                line: line(index),
                account: *account,
                problem: problem.to_owned(),
            },
            None => whole(problem.to_owned()),
        };
        let mut parents = Vec::with_capacity(entries.len());
        for (index, (_, entry)) in entries.iter().enumerate() {
            let parent = match &entry.parent {
                None => None,
                Some(parent) => Some(*indexes.get(parent).ok_or_else(|| {
                    wrong(index, &format!("parent: {parent} is not in the file"))
                })?),
            };
            parents.push(parent);
        }
        let places = places(&parents)
            .map_err(|cyclic| wrong(cyclic, "parent: a cycle, the account is its own ancestor"))?;
        let shared_realms = shared_realms(
            entries
                .iter()
                .filter_map(|(account, entry)| Some((*account, entry.realm.as_deref()?))),
        );
        let nodes = entries.into_iter().zip(places);
        let nodes = nodes.map(|((account, entry), places)| {
            let node = Node {
                places,
                realm: entry.realm,
                superduper: entry.superduper,
            };
            (account, node)
        });
        Ok(Self {
            nodes: nodes.collect(),
            shared_realms,
        })
    }

    /// Whether `account` is `ancestor` or below it; false when either is not in the tree. O(1).
    #[must_use]
    pub fn is_within(&self, account: AccountId, ancestor: AccountId) -> bool {
        let (Some(account), Some(ancestor)) = (self.nodes.get(&account), self.nodes.get(&ancestor))
        else {
            return false;
        };
        ancestor.places.contains(&account.places.start)
    }

    /// The SIP realm of `account`, if the tree has one. O(1).
    #[must_use]
    pub fn realm_of(&self, account: AccountId) -> Option<Arc<str>> {
        self.nodes.get(&account)?.realm.clone()
    }

    /// Whether identities of `account` may see every account. O(1).
    #[must_use]
    pub fn is_superduper(&self, account: AccountId) -> bool {
        self.nodes.get(&account).is_some_and(|node| node.superduper)
    }

    /// Accounts in the tree (a gauge).
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Accounts that share a realm, and so see each other's events where only the realm tells accounts apart: to be
    /// warned of.
    #[must_use]
    pub fn shared_realms(&self) -> &[SharedRealm] {
        &self.shared_realms
    }
}

/// The places of each account and all below it, from the index of each one's parent. Linear.
///
/// First from the leaves up, an account once all its children are counted: how many there are below it. An account that
/// is never reached has itself below it. Then back down: each takes its places out of its parent's.
///
/// # Errors
/// The index of an account that is its own ancestor, the first of one cycle.
fn places(parents: &[Option<usize>]) -> Result<Vec<Range<u32>>, usize> {
    let parent = |index: usize| parents.get(index).copied().flatten();
    let mut children = vec![0_u32; parents.len()];
    for parent in parents.iter().flatten() {
        if let Some(children) = children.get_mut(*parent) {
            *children += 1;
        }
    }
    let mut sizes = vec![1_u32; parents.len()];
    let mut upwards: Vec<usize> = (0..parents.len())
        .filter(|index| children.get(*index) == Some(&0))
        .collect();
    let mut done = 0;
    while let Some(&index) = upwards.get(done) {
        done += 1;
        let size = sizes.get(index).copied().unwrap_or_default();
        if let Some(parent) = parent(index)
            && let (Some(parents_size), Some(children)) =
                (sizes.get_mut(parent), children.get_mut(parent))
        {
            *parents_size += size;
            *children -= 1;
            if *children == 0 {
                upwards.push(parent);
            }
        }
    }
    if upwards.len() < parents.len() {
        return Err(first_of_cycle(parents, &children));
    }
    let mut places = vec![0..0; parents.len()];
    // The first place that is not taken yet: of a root, and of a child of each account.
    let (mut free, mut free_below) = (0, vec![0; parents.len()]);
    for &index in upwards.iter().rev() {
        let size = sizes.get(index).copied().unwrap_or_default();
        let free = match parent(index) {
            Some(parent) => free_below.get_mut(parent),
            None => Some(&mut free),
        };
        if let (Some(free), Some(places)) = (free, places.get_mut(index)) {
            *places = *free..*free + size;
            *free += size;
        }
        if let (Some(below), Some(places)) = (free_below.get_mut(index), places.get(index)) {
            *below = places.start + 1;
        }
    }
    Ok(places)
}

/// The first account, as the file has them, of a cycle. `children`: those that were not counted, so that only accounts on
/// a cycle and above one have any.
fn first_of_cycle(parents: &[Option<usize>], children: &[u32]) -> usize {
    let parent = |index: usize| parents.get(index).copied().flatten();
    let start = children.iter().position(|children| *children > 0);
    let mut index = start.unwrap_or_default();
    // As many steps up as there are accounts lead onto a cycle, and once around it visits all of it.
    for _ in 0..parents.len() {
        index = parent(index).unwrap_or(index);
    }
    let (mut first, mut at) = (index, parent(index));
    while let Some(next) = at.filter(|next| *next != index) {
        first = first.min(next);
        at = parent(next);
    }
    first
}

/// The line, from 1, on which `part` of `text` begins. Linear in the text.
fn line_of(text: &str, part: &str) -> usize {
    let offset = (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    let before = text.as_bytes().iter().take(offset);
    1 + before.filter(|byte| **byte == b'\n').count()
}

/// What the file says of one account.
struct Entry {
    parent: Option<AccountId>,
    realm: Option<Arc<str>>,
    superduper: bool,
}

impl Entry {
    fn parse(entry: &RawValue) -> Result<Self, String> {
        let members: Members<&RawValue> = serde_json::from_str(entry.get())
            .map_err(|_| format!("expected an object with the keys {KEYS}"))?;
        if let Some(index) = members.repeated() {
            return Err(format!("key {} is given twice", index + 1));
        }
        let (mut parent, mut realm, mut superduper) = (None, None, false);
        for (index, (key, value)) in members.0.iter().enumerate() {
            match key.as_str() {
                "parent" => {
                    let text: String = read(value, "parent", ACCOUNT_ID)?;
                    parent = Some(account_id(&text, "parent")?);
                }
                "realm" => realm = Some(sip_realm(value)?),
                "superduper_admin" => {
                    superduper = read(value, "superduper_admin", "true or false")?;
                }
                _ => return Err(format!("key {} is none of {KEYS}", index + 1)),
            }
        }
        Ok(Self {
            parent,
            realm,
            superduper,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(number: usize) -> AccountId {
        AccountId::parse(&format!("{number:032x}")).expect("32 hex characters")
    }

    /// The tree of `parents`, one account a line from line 2 on.
    fn tree(parents: &[Option<usize>]) -> Result<Accounts, AccountsError> {
        let lines = parents
            .iter()
            .enumerate()
            .map(|(index, parent)| match parent {
                Some(parent) => format!(r#""{}": {{"parent": "{}"}}"#, id(index), id(*parent)),
                None => format!(r#""{}": {{}}"#, id(index)),
            });
        let text = format!("{{\n{}\n}}", lines.collect::<Vec<_>>().join(",\n"));
        Accounts::parse(Path::new("accounts.json"), &text)
    }

    fn problem(text: &str) -> String {
        let error = Accounts::parse(Path::new("accounts.json"), text).err();
        error.map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn an_account_is_within_itself_and_its_ancestors_and_no_other() {
        let tree = tree(&[None, Some(2), Some(0), Some(0), Some(1), None]).expect("a tree");
        assert_eq!(tree.len(), 6);
        let mut within = Vec::new();
        for account in 0..6 {
            let ancestors = (0..6).filter(|ancestor| tree.is_within(id(account), id(*ancestor)));
            within.push(ancestors.collect::<Vec<_>>());
        }
        assert_eq!(
            within,
            [
                vec![0],
                vec![0, 1, 2],
                vec![0, 2],
                vec![0, 3],
                vec![0, 1, 2, 4],
                vec![5]
            ]
        );
        assert!(!tree.is_within(id(9), id(0)) && !tree.is_within(id(0), id(9)));
        assert!(!tree.is_within(id(9), id(9)), "not in the tree");
        let empty = Accounts::parse(Path::new("accounts.json"), "{}").expect("no accounts");
        assert!(empty.is_empty() && !empty.is_within(id(0), id(0)));
    }

    #[test]
    fn realms_and_superdupers_are_the_accounts_own() {
        let text = format!(
            r#"{{"{}": {{"realm": "one.example", "superduper_admin": true}},
                "{}": {{"parent": "{}", "realm": "two.example", "superduper_admin": false}},
                "{}": {{"realm": "two.example"}}, "{}": {{"realm": "two.example"}}}}"#,
            id(0),
            id(1),
            id(0),
            id(2),
            id(0xab).to_string().to_uppercase()
        );
        let tree = Accounts::parse(Path::new("accounts.json"), &text).expect("a tree");
        assert_eq!(tree.realm_of(id(0)).as_deref(), Some("one.example"));
        assert_eq!(tree.realm_of(id(1)).as_deref(), Some("two.example"));
        assert_eq!(tree.realm_of(id(7)), None);
        assert!(
            tree.is_superduper(id(0)) && !tree.is_superduper(id(1)) && !tree.is_superduper(id(7))
        );
        assert_eq!(
            tree.shared_realms(),
            [(1, 2), (1, 0xab)].map(|(one, other)| SharedRealm {
                one: id(one),
                other: id(other)
            })
        );
    }

    #[test]
    fn cycles_and_unknown_parents_are_refused_with_line_and_account() {
        let cycle = "parent: a cycle, the account is its own ancestor";
        for (parents, line, account, expected) in [
            (vec![Some(0)], 2, 0, cycle.to_owned()),
            (vec![None, Some(2), Some(1)], 3, 1, cycle.to_owned()),
            (
                vec![Some(1), Some(3), Some(1), Some(2), Some(0)],
                3,
                1,
                cycle.to_owned(),
            ),
            (
                vec![None, Some(7)],
                3,
                1,
                format!("parent: {} is not in the file", id(7)),
            ),
        ] {
            let error = tree(&parents).err().map(|error| error.to_string());
            let expected = format!(
                "accounts.json: line {line}: account {}: {expected}",
                id(account)
            );
            assert_eq!(error, Some(expected), "{parents:?}");
        }
    }

    #[test]
    fn a_file_that_does_not_fit_is_refused_with_its_line() {
        let (one, two) = (id(1), id(0xab));
        let upper = two.to_string().to_uppercase();
        for (text, expected) in [
            (
                "",
                "not JSON: EOF while parsing a value at line 1 column 0".to_owned(),
            ),
            (
                "[]",
                "line 1 column 0: expected a JSON object {ACCOUNT: {\"parent\": ACCOUNT, …}, …}"
                    .to_owned(),
            ),
            (
                "{\n\"secret\": {}}",
                "line 2: entry 1: expected an account id as its name, 32 hex characters".to_owned(),
            ),
            (
                &format!("{{\"{one}\": {{}},\n\"{one}\": {{}}}}"),
                format!("line 2: account {one}: the same account as an earlier entry"),
            ),
            (
                &format!("{{\"{two}\": {{}},\n\"{upper}\": {{}}}}"),
                format!("line 2: account {two}: the same account as an earlier entry"),
            ),
            (
                &format!("{{\"{one}\": \"secret\"}}"),
                format!("line 1: account {one}: expected an object with the keys {KEYS}"),
            ),
            (
                &format!("{{\"{one}\": {{\"secret\": 1}}}}"),
                format!("line 1: account {one}: key 1 is none of {KEYS}"),
            ),
            (
                &format!("{{\"{one}\": {{\"parent\": \"secret\"}}}}"),
                format!("line 1: account {one}: parent: expected 32 hex characters"),
            ),
            (
                &format!("{{\"{one}\": {{\"parent\": null}}}}"),
                format!("line 1: account {one}: parent: expected 32 hex characters"),
            ),
            (
                &format!("{{\"{one}\": {{\"realm\": \"a secret\"}}}}"),
                format!("line 1: account {one}: realm: expected a SIP realm"),
            ),
            (
                &format!("{{\"{one}\": {{\"superduper_admin\": 1}}}}"),
                format!("line 1: account {one}: superduper_admin: expected true or false"),
            ),
            (
                &format!("{{\"{one}\": {{\"realm\": \"a\", \"realm\": \"b\"}}}}"),
                format!("line 1: account {one}: key 2 is given twice"),
            ),
        ] {
            let problem = problem(text);
            assert_eq!(problem, format!("accounts.json: {expected}"), "{text}");
            assert!(!problem.contains("secret"), "{problem}");
        }
    }

    #[test]
    fn a_chain_of_a_hundred_thousand_accounts_takes_no_stack() {
        const DEPTH: usize = 100_000;
        let last = DEPTH - 1;
        // Each account is below the next, so that a walk from the first would go down all of them.
        let chain: Vec<_> = (0..DEPTH)
            .map(|index| (index < last).then_some(index + 1))
            .collect();
        let places = places(&chain).expect("a chain");
        assert_eq!(places[last], 0..DEPTH as u32);
        assert_eq!(places[0], last as u32..DEPTH as u32);
        let circle: Vec<_> = (0..DEPTH).map(|index| Some((index + 1) % DEPTH)).collect();
        assert_eq!(super::places(&circle), Err(0));
    }

    proptest! {
        #[test]
        fn places_agree_with_a_walk_up_the_parents(
            parents in prop::collection::vec(prop::option::weighted(0.8, 0_usize..24), 1..24)
        ) {
            let count = parents.len();
            let parents: Vec<_> = parents.into_iter().map(|p| p.map(|p| p % count)).collect();
            // Its ancestors, itself first; endless for one below a cycle.
            let up = |index| std::iter::successors(Some(index), |index: &usize| parents[*index]);
            let is_cyclic = |index: &usize| up(*index).skip(1).take(count).any(|above| above == *index);
            let first_cyclic = (0..count).find(is_cyclic);
            match places(&parents) {
                Ok(places) => {
                    prop_assert_eq!(first_cyclic, None);
                    for account in 0..count {
                        for ancestor in 0..count {
                            let is_above = up(account).any(|above| above == ancestor);
                            prop_assert_eq!(places[ancestor].contains(&places[account].start), is_above);
                        }
                    }
                }
                Err(index) => prop_assert!(is_cyclic(&index)),
            }
        }
    }

    #[test]
    #[ignore = "a figure, to be read: cargo test --release --lib a_large_tree -- --ignored --nocapture"]
    fn a_large_tree_is_parsed() {
        const COUNT: usize = 100_000;
        let line = |index: usize| {
            let parent = if index == 0 {
                String::new()
            } else {
                format!(r#""parent": "{}", "#, id(index / 10))
            };
            format!(
                r#""{}": {{{parent}"realm": "r{index}.sip.example.com"}}"#,
                id(index)
            )
        };
        let text = format!(
            "{{{}}}",
            (0..COUNT).map(line).collect::<Vec<_>>().join(",\n")
        );
        let start = std::time::Instant::now();
        let tree = Accounts::parse(Path::new("accounts.json"), &text).expect("a tree");
        println!(
            "{COUNT} accounts, {} bytes: {:?}",
            text.len(),
            start.elapsed()
        );
        assert_eq!(tree.len(), COUNT);
        assert!((0..COUNT).all(|index| tree.is_within(id(index), id(0))));
    }
}
