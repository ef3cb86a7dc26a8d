//! How near a subscription comes to an event, and whose an event is: for those who ask why an event did not arrive.
//!
//! Invariant: a subscription *fits* an event exactly when [`SubscriptionIndex::match_event`] finds it, because both ask the
//! same rules in the same words (`Rule`, `Form::qualifier`, `Qualifier::admits`). A test compares the two.
//!
//! [`SubscriptionIndex::match_event`]: super::index::SubscriptionIndex::match_event

use super::families::{Families, FormedEvent, Qualifier, Resolved, Rule};
use super::month::ActiveMonths;
use super::words::{self, WILDCARD, WORDS_MAX};
use crate::account::{AccountId, Scope};
use crate::event::EventHead;

/// How near a subscription comes to an event, from far to near.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// It is another family, or another id.
    Far,
    /// All but the event word fits: the same family, account and ids, and something else that happened.
    ButForEventWord,
    /// All but the account, or the realm that stands for it, fits.
    ButForScope,
    /// The subscription gets the event.
    Fits,
}

/// What an event is matched by, split into words once.
#[derive(Clone, Copy, Debug)]
pub struct EventKey<'e> {
    exchange: &'e str,
    routing_key: &'e str,
    words: [&'e str; WORDS_MAX],
    count: usize,
    head: &'e EventHead,
}

/// Whose an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'e> {
    /// This account's, by its key or its body (PROTOCOL 4).
    Account(AccountId),
    /// That of the account with this SIP realm, escaped.
    Realm(&'e str),
    /// The event names no account and no realm.
    Nobody,
}

/// Whether there is a family whose events are of this form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing<'f> {
    /// One that is switched on.
    On,
    /// Only families that are switched off: this is the module of one.
    Off(&'f str),
    /// The exchange is a family's, and the key is of no form that any family has there.
    Formless,
    /// No family knows the exchange.
    UnknownExchange,
}

impl<'e> EventKey<'e> {
    /// `None`: the routing key has more words than any family's, so it matches nothing.
    #[must_use]
    pub fn new(exchange: &'e str, routing_key: &'e str, head: &'e EventHead) -> Option<Self> {
        let mut words = [""; WORDS_MAX];
        let count = words::split(routing_key, &mut words)?.len();
        Some(Self {
            exchange,
            routing_key,
            words,
            count,
            head,
        })
    }

    /// The exchange that it was published to.
    #[must_use]
    pub fn exchange(&self) -> &'e str {
        self.exchange
    }

    /// The routing key as published.
    #[must_use]
    pub fn routing_key(&self) -> &'e str {
        self.routing_key
    }

    /// The members of its body that matching needs.
    #[must_use]
    pub fn head(&self) -> &'e EventHead {
        self.head
    }

    /// The words of the routing key.
    #[must_use]
    pub fn words(&self) -> &[&'e str] {
        self.words.get(..self.count).unwrap_or_default()
    }
}

impl Families {
    /// How near a subscription comes to an event. Linear in the forms of its rule.
    #[must_use]
    pub fn nearness(
        &self,
        subscription: &Resolved<'_>,
        event: &EventKey<'_>,
        months: ActiveMonths,
    ) -> Nearness {
        match self.is_on(subscription) {
            true => self.nearness_on_or_off(subscription, event, months),
            false => Nearness::Far,
        }
    }

    /// As [`Families::nearness`], as if the family were on.
    #[must_use]
    pub fn nearness_on_or_off(
        &self,
        subscription: &Resolved<'_>,
        event: &EventKey<'_>,
        months: ActiveMonths,
    ) -> Nearness {
        let rule = self.rule(subscription.rule);
        if *rule.exchange != *event.exchange {
            return Nearness::Far;
        }
        let words = event.words();
        let forms = rule.forms.iter();
        let forms = forms.filter(|form| rule.is_of_form(form, words));
        let formed = forms.map(|form| FormedEvent {
            form,
            words,
            head: event.head,
            qualifier: form.qualifier(words, event.head, months),
        });
        let near = formed.map(|formed| self.near(rule, subscription, &formed));
        near.max().unwrap_or(Nearness::Far)
    }

    fn near(&self, rule: &Rule, subscription: &Resolved<'_>, event: &FormedEvent<'_>) -> Nearness {
        let variables = self.variables(subscription);
        let mut is_same_word = true;
        for (variable, word) in variables.iter().enumerate().take(rule.variable_count()) {
            let key_word = event.variable(variable);
            let is_it = word == WILDCARD || rule.is_key_word(variable, word, key_word);
            if is_it && rule.is_deliverable(variable, key_word) {
                continue;
            }
            if !rule.is_event_word(variable) {
                return Nearness::Far;
            }
            is_same_word = false;
        }
        // No AMQP key of the subscription is of this form.
        if let Some(variable) = rule.unprescribed(event)
            && variables[variable] != WILDCARD
        {
            return Nearness::Far;
        }
        let is_in_scope = match (subscription.scope, event.qualifier) {
            (Scope::Any, _) => true,
            (Scope::One(account), Some(qualifier)) => {
                qualifier.admits(account, || subscription.realm)
            }
            // A database of no account, or of a month that is not in force, is another thing, and no matter of accounts.
            (Scope::One(_), None) if event.form.names_database() => return Nearness::Far,
            (Scope::One(_), None) => false,
        };
        match (is_in_scope, is_same_word) {
            (true, true) => Nearness::Fits,
            (false, true) => Nearness::ButForScope,
            (true, false) => Nearness::ButForEventWord,
            (false, false) => Nearness::Far,
        }
    }

    /// Whose an event is. Linear in the rules of its exchange.
    #[must_use]
    pub fn owner<'e>(&self, event: &EventKey<'e>, months: ActiveMonths) -> Owner<'e> {
        let words = event.words();
        for rule in self.rules_of(event) {
            for form in rule
                .forms
                .iter()
                .filter(|form| rule.is_of_form(form, words))
            {
                match form.qualifier(words, event.head, months) {
                    Some(Qualifier::Account(account)) => return Owner::Account(account),
                    Some(Qualifier::Realm(word)) => return Owner::Realm(word),
                    Some(Qualifier::None) | None => {}
                }
            }
        }
        event.head.account.map_or(Owner::Nobody, Owner::Account)
    }

    /// Whether there is a family whose events are of this form. Linear in the rules of its exchange.
    #[must_use]
    pub fn standing(&self, event: &EventKey<'_>) -> Standing<'_> {
        let words = event.words();
        let fits = |rule: &&Rule| rule.forms.iter().any(|form| rule.fits(form, words));
        let mut off = None;
        for rule in self.rules_of(event).filter(fits) {
            match rule.is_on {
                true => return Standing::On,
                false => off = off.or(Some(&*rule.module)),
            }
        }
        match off {
            Some(module) => Standing::Off(module),
            None if self.rules_of(event).next().is_some() => Standing::Formless,
            None => Standing::UnknownExchange,
        }
    }

    fn rules_of(&self, event: &EventKey<'_>) -> impl Iterator<Item = &Rule> {
        let exchange = event.exchange;
        self.rules()
            .iter()
            .filter(move |rule| *rule.exchange == *exchange)
    }
}
