//! Which looks an event concerns, and why it did not arrive where somebody looks.
//!
//! Why is decided in this order; the first that holds is told:
//!
//! | why | the event |
//! |---|---|
//! | `session slow: dropped` | fits a subscription of the session, which was slow: its outbox was full. Under the policy `close` its end follows |
//! | `exchange or family stopped` | is of a family that is switched off, or of an exchange that no family has |
//! | `account not this session's` | fits a subscription of the session but for the account, or the realm that stands for it |
//! | `other event word` | fits a subscription of the session but for the event word: what happened, or the type of document |
//! | `not bound by this session` | went to other sessions |
//! | `nobody bound the key` | went to nobody |
//!
//! Invariant: what is told follows from the same comparison by which events are matched ([`crate::routing::nearness`]).

use super::filter::Filter;
use crate::account::{AccountId, Scope};
use crate::routing::index::SubscriptionList;
use crate::routing::nearness::{EventKey, Nearness, Owner, Standing};
use crate::routing::words::is_escaped_form;
use crate::session::id::ConnId;
use crate::session::subscriptions::Subscriptions;

/// The session that is looked at, if it is there.
#[derive(Clone, Copy, Debug)]
pub struct TracedSession<'s> {
    /// Its connection.
    pub id: ConnId,
    /// What it is subscribed to.
    pub list: &'s SubscriptionList,
    /// The account of its identity.
    pub account: Option<AccountId>,
}

/// An event that concerns a look.
#[derive(Clone, Copy, Debug)]
pub struct ConcernedLook {
    /// The place of the look among the looks.
    pub look: usize,
    /// Of the session that is looked at, if one is: how near its nearest subscription comes.
    pub nearest: Option<(ConnId, Nearness)>,
    /// A session is asked about, whether it is there or not.
    pub is_of_session: bool,
}

/// Why an event did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNotMatched {
    /// The session was slow, whatever the policy.
    SlowDropped,
    /// Its family is off, or its exchange is no family's.
    Stopped,
    /// All but the account fits.
    OtherAccount,
    /// All but the event word fits.
    OtherEventWord,
    /// Others got it.
    NotBoundHere,
    /// Nobody got it.
    NotBound,
}

impl WhyNotMatched {
    /// The words of PROTOCOL 8.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::SlowDropped => "session slow: dropped",
            Self::Stopped => "exchange or family stopped",
            Self::OtherAccount => "account not this session's",
            Self::OtherEventWord => "other event word",
            Self::NotBoundHere => "not bound by this session",
            Self::NotBound => "nobody bound the key",
        }
    }

    /// Why an event that fits no subscription of the session, or nobody's if none is asked about, did not arrive.
    /// `nearest`: how near the session's nearest comes. `is_others`: others got it.
    #[must_use]
    pub fn of(standing: Standing<'_>, nearest: Nearness, is_others: bool) -> Self {
        match (standing, nearest) {
            (Standing::Off(_) | Standing::UnknownExchange, _) => Self::Stopped,
            (_, Nearness::ButForScope) => Self::OtherAccount,
            (_, Nearness::ButForEventWord) => Self::OtherEventWord,
            (_, Nearness::Far | Nearness::Fits) if is_others => Self::NotBoundHere,
            (_, Nearness::Far | Nearness::Fits) => Self::NotBound,
        }
    }
}

/// Whether an event concerns a look, and how near the subscriptions of its session come. `steps` is what is left of the
/// turn's share, and loses one for the look, and one for each subscription that is judged.
///
/// # Errors
/// The share is used up before that is known.
pub(super) fn concern(
    filter: &Filter,
    event: &EventKey<'_>,
    owner: Owner<'_>,
    session: Option<TracedSession<'_>>,
    subscriptions: &Subscriptions,
    steps: &mut usize,
) -> Result<Option<Option<(ConnId, Nearness)>>, OutOfSteps> {
    *steps = steps.checked_sub(1).ok_or(OutOfSteps)?;
    let (families, months) = (subscriptions.families(), subscriptions.months().now());
    if !filter.admits(families, event, owner, months) {
        return Ok(None);
    }
    let Some(TracedSession { id, list, account }) = session else {
        // The session is not in this process, so its bindings are not known.
        return Ok(filter.session.is_none().then_some(None));
    };
    let mut nearest = Nearness::Far;
    let mut is_own = matches!(owner, Owner::Account(owner) if account == Some(owner));
    for one in subscriptions.index().subscriptions(list) {
        *steps = steps.checked_sub(1).ok_or(OutOfSteps)?;
        nearest = nearest.max(families.nearness(&one, event, months));
        is_own |= match (one.scope(), owner) {
            (Scope::Any, _) => true,
            (Scope::One(scope), Owner::Account(owner)) => scope == owner,
            (Scope::One(_), Owner::Realm(word)) => one
                .realm()
                .is_some_and(|realm| is_escaped_form(realm, word)),
            (Scope::One(_), Owner::Nobody) => false,
        };
    }
    let is_meant = !filter.is_of_session_only() || is_own || nearest >= Nearness::ButForScope;
    Ok(is_meant.then_some(Some((id, nearest))))
}

/// The share of the turn is used up.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutOfSteps;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_that_holds_is_told() {
        for (standing, nearest, is_others, expected) in [
            (
                Standing::Off("bh_call"),
                Nearness::ButForScope,
                false,
                WhyNotMatched::Stopped,
            ),
            (
                Standing::UnknownExchange,
                Nearness::Far,
                false,
                WhyNotMatched::Stopped,
            ),
            (
                Standing::On,
                Nearness::ButForScope,
                true,
                WhyNotMatched::OtherAccount,
            ),
            (
                Standing::On,
                Nearness::ButForEventWord,
                true,
                WhyNotMatched::OtherEventWord,
            ),
            (
                Standing::Formless,
                Nearness::ButForEventWord,
                false,
                WhyNotMatched::OtherEventWord,
            ),
            (
                Standing::On,
                Nearness::Far,
                true,
                WhyNotMatched::NotBoundHere,
            ),
            (Standing::On, Nearness::Far, false, WhyNotMatched::NotBound),
            (
                Standing::Formless,
                Nearness::Far,
                false,
                WhyNotMatched::NotBound,
            ),
        ] {
            let why = WhyNotMatched::of(standing, nearest, is_others);
            assert_eq!(why, expected, "{standing:?} {nearest:?} {is_others}");
        }
    }
}
