//! What the platform has allowed: the accounts that each token may see (PROTOCOL 7, `crossbar`).
//!
//! A yes is good for newcomers until its time is over. For sessions that are there it stays good until the platform says
//! no: it is asked again before its time is over, and trouble takes nothing from them.
//!
//! Invariants: at most [`GRANTS_MAX`] are kept, of one token at most [`GRANTS_OF_TOKEN_MAX`]. A grant that no session uses goes when its time is over. A token that the
//! platform refuses has no grant.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::identity::Identity;
use crate::account::AccountId;
use crate::limits::{GRANTS_MAX, GRANTS_OF_TOKEN_MAX};

/// How long answers are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheTimes {
    /// `crossbar_yes_seconds`.
    pub yes: Duration,
    /// `crossbar_no_seconds`.
    pub no: Duration,
}

/// All grants.
#[derive(Debug)]
pub(super) struct Grants {
    pub(super) times: CacheTimes,
    holders: HashMap<Arc<str>, Holder>,
    len: usize,
    /// When a grant must be looked at; an entry is stale whose grant is gone, or is to be looked at at another time.
    due: BinaryHeap<Reverse<(Duration, Arc<str>, AccountId)>>,
    /// Tokens whose rights became other or less since all sessions were last renewed.
    changed: HashMap<Arc<str>, (Change, u64)>,
    /// Passes over all sessions that have begun; a change is told with the number that there were.
    passes: u64,
}

/// What became of the rights of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// They are other or less.
    Other,
    /// The platform refuses the token.
    Refused,
}

/// A token that some account has authorised.
#[derive(Debug)]
struct Holder {
    owner: Owner,
    /// In the order of the accounts: few, as a rule.
    grants: Vec<(AccountId, Grant)>,
}

/// Whose sessions use the grants of a token.
#[derive(Debug)]
enum Owner {
    /// An identity that is known by these grants only.
    Asked(Arc<Identity>),
    /// Identities of another kind with this token: several where one was verified again.
    Others(Vec<Weak<Identity>>),
}

#[derive(Debug)]
struct Grant {
    realm: Option<Arc<str>>,
    /// Until when it is good for newcomers.
    until: Duration,
    /// When it is to be looked at; `None`: it is asked for again.
    due: Option<Duration>,
}

impl Holder {
    fn place(&self, account: AccountId) -> Result<usize, usize> {
        self.grants.binary_search_by_key(&account, |(one, _)| *one)
    }

    fn grant(&self, account: AccountId) -> Option<&Grant> {
        let (_, grant) = self.grants.get(self.place(account).ok()?)?;
        Some(grant)
    }

    fn grant_mut(&mut self, account: AccountId) -> Option<&mut Grant> {
        let place = self.place(account).ok()?;
        let (_, grant) = self.grants.get_mut(place)?;
        Some(grant)
    }

    fn remove(&mut self, account: AccountId) -> Option<Grant> {
        let place = self.place(account).ok()?;
        let (_, grant) = self.grants.remove(place);
        Some(grant)
    }
}

/// A grant that must be asked for again.
#[derive(Debug)]
pub(super) struct Again {
    pub(super) token: Arc<str>,
    pub(super) account: AccountId,
}

impl Grants {
    pub(super) fn new(times: CacheTimes) -> Self {
        Self {
            times,
            holders: HashMap::new(),
            len: 0,
            due: BinaryHeap::new(),
            changed: HashMap::new(),
            passes: 0,
        }
    }

    /// The identity of a token that some account has authorised.
    pub(super) fn identity(&self, token: &str) -> Option<&Arc<Identity>> {
        match &self.holders.get(token)?.owner {
            Owner::Asked(identity) => Some(identity),
            Owner::Others(_) => None,
        }
    }

    /// Whether the token may see the account, for sessions that are there; the realm is in the `Option` within.
    pub(super) fn live(&self, token: &str, account: AccountId) -> Option<Option<&Arc<str>>> {
        let grant = self.holders.get(token)?.grant(account)?;
        Some(grant.realm.as_ref())
    }

    /// Whether the token may see the account, for newcomers at `now`.
    pub(super) fn is_fresh(&self, token: &str, account: AccountId, now: Duration) -> bool {
        let holder = self.holders.get(token);
        let grant = holder.and_then(|holder| holder.grant(account));
        grant.is_some_and(|grant| grant.until > now)
    }

    /// Whether there is room for another grant of this token.
    pub(super) fn has_room_for(&self, token: &str) -> bool {
        let of_token = self
            .holders
            .get(token)
            .map_or(0, |holder| holder.grants.len());
        self.len < GRANTS_MAX && of_token < GRANTS_OF_TOKEN_MAX
    }

    /// Grants that are kept.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Notes that sessions with this identity, which is of another kind than `crossbar`, use the grants of its token. Linear
    /// in the identities with this token.
    pub(super) fn attach(&mut self, token: &str, identity: &Arc<Identity>) {
        if let Some(holder) = self.holders.get_mut(token)
            && let Owner::Others(others) = &mut holder.owner
            && !others
                .iter()
                .any(|other| other.as_ptr() == Arc::as_ptr(identity))
        {
            others.retain(|other| other.strong_count() > 0);
            others.push(Arc::downgrade(identity));
        }
    }

    /// Forgets the grants of a token that another kind of authenticator knew and does not know any more.
    pub(super) fn forget_others(&mut self, token: &str) {
        if let Some(Holder {
            owner: Owner::Others(_),
            grants,
        }) = self.holders.get(token)
        {
            self.len -= grants.len();
            self.holders.remove(token);
        }
    }

    /// The platform says yes. `is_asked`: it alone knows the token. `random`: any number, which spreads the time of the next
    /// question. O(log n).
    pub(super) fn allow(
        &mut self,
        token: &Arc<str>,
        account: AccountId,
        (realm, superduper): (Option<Arc<str>>, bool),
        is_asked: bool,
        now: Duration,
        random: u64,
    ) {
        let holder = match self.holders.entry(token.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Holder {
                owner: if is_asked {
                    let identity = Identity::asked(token.clone(), Some(account), superduper);
                    Owner::Asked(Arc::new(identity))
                } else {
                    Owner::Others(Vec::new())
                },
                grants: Vec::new(),
            }),
        };
        let mut has_changed = false;
        if let Owner::Asked(identity) = &mut holder.owner
            && identity.account_id() == Some(account)
            && identity.is_superduper() != superduper
        {
            *identity = Arc::new(Identity::asked(token.clone(), Some(account), superduper));
            has_changed = true;
        }
        let until = now + self.times.yes;
        match holder.place(account) {
            Ok(place) => {
                if let Some((_, grant)) = holder.grants.get_mut(place) {
                    has_changed |= grant.realm != realm;
                    (grant.realm, grant.until) = (realm, until);
                }
            }
            Err(place) => {
                let grant = Grant {
                    realm,
                    until,
                    due: None,
                };
                if holder.grants.is_empty() {
                    // Most tokens have one.
                    holder.grants.reserve_exact(1);
                }
                holder.grants.insert(place, (account, grant));
                self.len += 1;
            }
        }
        if has_changed {
            self.note(token.clone(), Change::Other);
        } else if let Some((change, _)) = self.changed.get_mut(token) {
            // A token that was refused is good again, before all who had it were closed.
            *change = Change::Other;
        }
        self.look_within(token.clone(), account, now, self.times.yes, random);
    }

    fn note(&mut self, token: Arc<str>, change: Change) {
        self.changed.insert(token, (change, self.passes));
    }

    /// The platform says no to this account.
    pub(super) fn withdraw(&mut self, token: &Arc<str>, account: AccountId) {
        let holder = self.holders.get_mut(token);
        if holder.and_then(|holder| holder.remove(account)).is_some() {
            self.len -= 1;
            self.note(token.clone(), Change::Other);
        }
    }

    /// The platform says that the token is no good.
    pub(super) fn refuse(&mut self, token: &str) {
        if let Some((token, holder)) = self.holders.remove_entry(token) {
            self.len -= holder.grants.len();
            self.note(token, Change::Refused);
        }
    }

    /// The platform could not say; a session that is there keeps its right, and the question is put again, at one time
    /// however many asked.
    pub(super) fn trouble(
        &mut self,
        token: &Arc<str>,
        account: AccountId,
        now: Duration,
        random: u64,
    ) {
        let grant = self
            .holders
            .get(token)
            .and_then(|holder| holder.grant(account));
        if grant.is_some_and(|grant| grant.due.is_none()) {
            let within =
                (self.times.yes / 4).clamp(Duration::from_secs(1), Duration::from_secs(10));
            self.look_within(token.clone(), account, now, within, random);
        }
    }

    /// Notes that a grant is to be looked at between half and nine tenths of `time` from now.
    fn look_within(
        &mut self,
        token: Arc<str>,
        account: AccountId,
        now: Duration,
        time: Duration,
        random: u64,
    ) {
        let spread = time.mul_f64(0.4 * (random % 1024) as f64 / 1024.0);
        let due = now + time / 2 + spread;
        if let Some(holder) = self.holders.get_mut(&token)
            && let Some(grant) = holder.grant_mut(account)
        {
            grant.due = Some(due);
            self.due.push(Reverse((due, token, account)));
        }
    }

    /// When the next grant must be looked at.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.due.peek().map(|Reverse((due, ..))| *due)
    }

    /// Takes the next grant that must be asked for again at `now`, and drops those that nobody uses and whose time is over.
    /// `held_elsewhere`: how many others than sessions hold the identity of this token. O(log n) each.
    pub(super) fn pop_due(
        &mut self,
        now: Duration,
        held_elsewhere: impl Fn(&Arc<Identity>) -> usize,
    ) -> Option<Again> {
        while self.next_due()? <= now {
            let Reverse((due, token, account)) = self.due.pop()?;
            let Some(holder) = self.holders.get_mut(&token) else {
                continue;
            };
            let Some(grant) = holder.grant_mut(account) else {
                continue;
            };
            if grant.due.take_if(|at| *at == due).is_none() {
                continue;
            }
            let until = grant.until;
            let is_used = self.changed.contains_key(&token)
                || match &holder.owner {
                    Owner::Asked(identity) => Arc::strong_count(identity) > 1,
                    Owner::Others(others) => others.iter().any(|other| {
                        other.upgrade().is_some_and(|identity| {
                            Arc::strong_count(&identity) > 1 + held_elsewhere(&identity)
                        })
                    }),
                };
            if is_used {
                return Some(Again { token, account });
            }
            if until > now {
                if let Some(grant) = holder.grant_mut(account) {
                    grant.due = Some(until);
                }
                self.due.push(Reverse((until, token, account)));
                continue;
            }
            holder.remove(account);
            self.len -= 1;
            if holder.grants.is_empty() {
                self.holders.remove(&token);
            }
        }
        None
    }

    /// Whether rights became other or less since all sessions were last renewed.
    pub(super) fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// How the rights of this token did.
    pub(super) fn change(&self, token: &str) -> Option<Change> {
        self.changed.get(token).map(|(change, _)| *change)
    }

    /// A pass begins, in which all sessions are renewed.
    pub(super) fn begin_pass(&mut self) {
        self.passes += 1;
    }

    /// All sessions have been renewed since the pass began: what had changed before is done with. Linear in the changes.
    pub(super) fn end_pass(&mut self) {
        let passes = self.passes;
        let done = self.changed.extract_if(|_, (_, at)| *at < passes);
        for (token, _) in done {
            if let Entry::Occupied(holder) = self.holders.entry(token)
                && holder.get().grants.is_empty()
            {
                holder.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn grants() -> Grants {
        Grants::new(CacheTimes {
            yes: MINUTE,
            no: Duration::from_secs(5),
        })
    }

    fn pass(grants: &mut Grants) {
        grants.begin_pass();
        grants.end_pass();
    }

    fn account(number: u8) -> AccountId {
        AccountId::from_bytes([number; 16])
    }

    fn yes(grants: &mut Grants, token: &str, number: u8, realm: &str, now: Duration) {
        let answer = (Some(Arc::from(realm)), false);
        grants.allow(
            &token.into(),
            account(number),
            answer,
            true,
            now,
            now.as_secs(),
        );
    }

    fn due(grants: &mut Grants, now: Duration) -> Vec<(String, AccountId)> {
        let next = |grants: &mut Grants| grants.pop_due(now, |_| 0);
        std::iter::from_fn(|| next(grants))
            .map(|again| (again.token.to_string(), again.account))
            .collect()
    }

    #[test]
    fn what_no_session_uses_goes_when_its_time_is_over_and_what_one_uses_is_asked_for_again() {
        let mut grants = grants();
        yes(&mut grants, "unused", 1, "r", Duration::ZERO);
        yes(&mut grants, "used", 2, "r", Duration::ZERO);
        let session = grants.identity("used").expect("known").clone();
        assert_eq!(session.account_id(), Some(account(2)));
        assert_eq!(due(&mut grants, MINUTE / 3), []);
        let again = due(&mut grants, MINUTE - Duration::from_secs(1));
        assert_eq!(again, [("used".to_owned(), account(2))]);
        assert_eq!(grants.len(), 2, "the other is still good for newcomers");
        assert_eq!(due(&mut grants, MINUTE), []);
        assert_eq!(grants.len(), 1);
        assert!(grants.live("unused", account(1)).is_none());

        // Nobody could say: the session keeps it, a newcomer does not get it, and it is asked for again.
        grants.trouble(&"used".into(), account(2), MINUTE, 0);
        assert!(grants.live("used", account(2)).is_some());
        assert!(!grants.is_fresh("used", account(2), MINUTE));
        let again = due(&mut grants, MINUTE + Duration::from_secs(10));
        assert_eq!(again.len(), 1);
        assert!(!grants.has_changed());
    }

    #[test]
    fn newcomers_who_ask_in_vain_do_not_make_a_session_ask_more_often() {
        let mut grants = grants();
        yes(&mut grants, "used", 1, "r", Duration::ZERO);
        let _session = grants.identity("used").expect("known").clone();
        let mut now = MINUTE;
        assert_eq!(due(&mut grants, now).len(), 1);
        let mut asked = 0;
        for second in 0..600 {
            now += Duration::from_secs(1);
            grants.trouble(&"used".into(), account(1), now, second);
            asked += due(&mut grants, now).len();
        }
        assert!((60..=120).contains(&asked), "once in 5 to 9 s: {asked}");
        assert!(grants.due.len() <= 1);
        // The same when it is back, and a newcomer was faster.
        yes(&mut grants, "used", 1, "r", now);
        yes(&mut grants, "used", 1, "r", now);
        assert_eq!(due(&mut grants, now + MINUTE).len(), 1);
        assert_eq!(grants.due.len(), 0);
    }

    #[test]
    fn what_the_platform_takes_away_is_gone_at_once_and_noted() {
        let mut grants = grants();
        yes(&mut grants, "t", 1, "r", Duration::ZERO);
        yes(&mut grants, "t", 2, "r", Duration::ZERO);
        assert!(!grants.has_changed(), "more is no change");
        grants.withdraw(&"t".into(), account(2));
        assert!(grants.live("t", account(2)).is_none() && grants.live("t", account(1)).is_some());
        assert!(grants.change("t") == Some(Change::Other) && grants.change("u").is_none());
        pass(&mut grants);
        yes(&mut grants, "t", 1, "r", Duration::ZERO);
        assert!(!grants.has_changed(), "the same again");
        yes(&mut grants, "t", 1, "other", Duration::ZERO);
        assert!(grants.change("t").is_some(), "another realm");
        pass(&mut grants);
        let answer = (Some(Arc::from("other")), true);
        grants.allow(&"t".into(), account(1), answer, true, Duration::ZERO, 0);
        assert!(grants.change("t").is_some(), "another right");
        assert!(grants.identity("t").is_some_and(|one| one.is_superduper()));
        grants.refuse("t");
        assert_eq!(grants.len(), 0);
        assert!(grants.identity("t").is_none() && grants.change("t") == Some(Change::Refused));
        grants.allow(
            &"t".into(),
            account(1),
            (None, false),
            true,
            Duration::ZERO,
            0,
        );
        assert_eq!(grants.change("t"), Some(Change::Other), "it is good again");
        grants.refuse("t");
        assert!(grants.identity("t").is_none() && grants.change("t") == Some(Change::Refused));
    }

    #[test]
    fn a_token_that_may_see_nothing_any_more_is_forgotten() {
        let mut grants = grants();
        yes(&mut grants, "t", 1, "r", Duration::ZERO);
        grants.begin_pass();
        grants.withdraw(&"t".into(), account(1));
        grants.end_pass();
        assert!(grants.has_changed(), "some sessions were renewed before");
        pass(&mut grants);
        assert_eq!((grants.len(), grants.holders.len()), (0, 0));
    }

    #[test]
    fn a_token_of_another_kind_is_used_as_long_as_a_session_has_any_identity_of_it() {
        let mut grants = grants();
        let answer = (None, false);
        grants.allow(&"t".into(), account(1), answer, false, Duration::ZERO, 0);
        assert!(grants.identity("t").is_none());
        let identity = || Arc::new(Identity::asked("t".into(), Some(account(2)), false));
        // Two of one token, because the first was verified and forgotten.
        let (first, second) = (identity(), identity());
        for identity in [&first, &second, &first] {
            grants.attach("t", identity);
        }
        drop(second);
        assert_eq!(due(&mut grants, MINUTE).len(), 1, "a session has the first");
        grants.trouble(&"t".into(), account(1), MINUTE, 0);
        drop(first);
        assert_eq!(due(&mut grants, 2 * MINUTE), []);
        assert_eq!(grants.len(), 0);

        grants.allow(&"t".into(), account(1), (None, false), false, MINUTE, 0);
        grants.forget_others("t");
        assert_eq!((grants.len(), grants.holders.len()), (0, 0));
    }

    #[test]
    fn superduper_counts_only_in_the_answer_about_the_own_account() {
        let mut grants = grants();
        let answer = |superduper| (None, superduper);
        let zero = Duration::ZERO;
        grants.allow(&"t".into(), account(1), answer(false), true, zero, 0);
        grants.allow(&"t".into(), account(2), answer(true), true, zero, 0);
        let identity = grants.identity("t").expect("known");
        assert!(!identity.is_superduper());
        assert_eq!(identity.account_id(), Some(account(1)));
    }
}
