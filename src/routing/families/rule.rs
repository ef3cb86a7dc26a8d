//! A compiled row of the table: its templates as words, and the place of each variable in them.
//!
//! [`Rule::compile`] makes sure of all invariants: every form of AMQP key holds every variable of the client binding
//! once, so a subscription's own AMQP keys decide what it gets; a form has at most one qualifier (account, database,
//! realm); the forms of a rule are qualified alike, so one lookup serves them all.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use super::template::{ClientWord, Part, VARIABLES_MAX};
use crate::account::{AccountId, Scope};
use crate::event::EventHead;
use crate::routing::month::{ActiveMonths, Month};
use crate::routing::words::{self, WILDCARD};

/// Free words that the keys of a row may have.
pub(super) const FREE_WORDS_MAX: usize = 4;

/// A place that a form does not have.
pub(super) const ABSENT: u8 = u8::MAX;

/// The words of a client binding that stand for its rule's variables; unused ones are empty.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Variables<'a>([&'a str; VARIABLES_MAX]);

impl<'a> Variables<'a> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a str> {
        self.0.iter().copied()
    }
}

#[expect(
    clippy::indexing_slicing,
    reason = "a variable's number is below the bound: a template with more is refused"
)]
impl<'a> Index<usize> for Variables<'a> {
    type Output = &'a str;

    fn index(&self, variable: usize) -> &&'a str {
        &self.0[variable]
    }
}

#[expect(
    clippy::indexing_slicing,
    reason = "a variable's number is below the bound: a template with more is refused"
)]
impl<'a> IndexMut<usize> for Variables<'a> {
    fn index_mut(&mut self, variable: usize) -> &mut &'a str {
        &mut self.0[variable]
    }
}

/// One compiled row.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(super) family: Box<str>,
    pub(crate) module: Box<str>,
    /// Whether its family is switched on. Clients do not know the bindings of one that is off.
    pub(crate) is_on: bool,
    /// The name of its exchange.
    pub(crate) exchange: Arc<str>,
    pub(crate) qualification: Qualification,
    pub(crate) forms: Vec<Form>,
    pub(crate) name_with_type: bool,
    pub(super) client: Vec<ClientWord>,
    pub(super) takes_rest: bool,
    pub(super) variables: Vec<Variable>,
    pub(super) subscription: Option<Vec<Part>>,
    pub(super) monthly: Option<Monthly>,
    /// The free word that a form may lack.
    pub(super) event_word: Option<usize>,
}

/// What tells the accounts' events of a rule apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qualification {
    Account,
    Realm,
    /// Nothing: whoever knows the id may see its events.
    None,
}

/// One template of AMQP keys.
#[derive(Debug)]
pub(crate) struct Form {
    pub(super) parts: Vec<Part>,
    pub(super) variable_at: [u8; VARIABLES_MAX],
    pub(super) free_at: [u8; FREE_WORDS_MAX],
    pub(super) qualifier: FormQualifier,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FormQualifier {
    Account(usize),
    Db(usize),
    Modb(usize),
    Realm(usize),
    Payload,
    None,
}

#[derive(Debug)]
pub(super) struct Variable {
    pub(super) name: Box<str>,
    pub(super) words: Option<WordList>,
    pub(super) required: Option<Required>,
    /// Whether publishers escape its word.
    pub(super) is_escaped: bool,
    /// Whether its word says what happened, and not to what: it has a list, or is called `event`.
    pub(super) is_event_word: bool,
}

#[derive(Debug)]
pub(super) struct WordList {
    pub(super) words: Vec<Box<str>>,
    /// Whether `*` means any word. Otherwise it means exactly the words of the list, and takes one AMQP binding for
    /// each.
    pub(super) wildcard_is_any: bool,
}

#[derive(Debug)]
pub(super) struct Required {
    pub(super) error: Box<str>,
    pub(super) superduper_may: bool,
}

#[derive(Debug)]
pub(super) struct Monthly {
    pub(super) variable: usize,
    pub(super) words: Vec<Box<str>>,
}

/// Why the words of a client binding are refused.
pub(crate) enum WordError<'a> {
    NotSupported(&'a str),
    Required(Box<str>),
}

/// What a key is rendered for: a subscription and a month.
#[derive(Clone, Copy)]
pub(crate) struct KeyValues<'a> {
    pub(crate) variables: Variables<'a>,
    pub(crate) scope: Scope,
    pub(crate) realm: Option<&'a str>,
    pub(crate) month: Month,
}

/// What qualifies an event under one form of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qualifier<'e> {
    Account(AccountId),
    /// The escaped realm.
    Realm(&'e str),
    /// No qualifier is needed.
    None,
}

impl Qualifier<'_> {
    /// Whether a subscription for `account`, by its SIP realm `realm` where accounts are told apart by that, gets events
    /// that are qualified so.
    pub(crate) fn admits<'r>(
        &self,
        account: AccountId,
        realm: impl FnOnce() -> Option<&'r str>,
    ) -> bool {
        match self {
            Self::Account(owner) => account == *owner,
            Self::Realm(word) => realm().is_some_and(|realm| words::is_escaped_form(realm, word)),
            Self::None => true,
        }
    }
}

impl Rule {
    /// Whether a client binding that begins with `word` is of this rule's family.
    pub(crate) fn begins_with(&self, word: &str) -> bool {
        match self.client.first() {
            Some(ClientWord::Literal(literal)) => **literal == *word,
            Some(ClientWord::Variable(variable)) => self.variable(*variable).accepts(word),
            None => false,
        }
    }

    /// The words of `binding` that stand for the variables, or `None` when it is not of this rule's form.
    pub(crate) fn variables<'a>(&self, binding: &'a str) -> Option<Variables<'a>> {
        let mut variables = Variables::default();
        let words_max = if self.takes_rest {
            self.client.len()
        } else {
            usize::MAX
        };
        let mut words = binding.splitn(words_max, '.');
        for part in &self.client {
            let word = words.next()?;
            match part {
                ClientWord::Literal(literal) if **literal != *word => return None,
                ClientWord::Literal(_) => {}
                ClientWord::Variable(variable) => variables[*variable] = word,
            }
        }
        words.next().is_none().then_some(variables)
    }

    /// Whether a client may use these words.
    pub(crate) fn check<'a>(
        &self,
        words: &Variables<'a>,
        superduper: bool,
    ) -> Result<(), WordError<'a>> {
        for (variable, word) in self.variables.iter().zip(words.iter()) {
            if !variable.accepts(word) {
                return Err(WordError::NotSupported(word));
            }
            if let Some(required) = &variable.required
                && word == WILDCARD
                && !(superduper && required.superduper_may)
            {
                return Err(WordError::Required(required.error.clone()));
            }
        }
        Ok(())
    }

    /// Which variables of a client binding are `*`: bit `n` for the variable `n`.
    pub(crate) fn wildcards(&self, words: &Variables<'_>) -> u8 {
        let words = words.iter().take(self.variables.len()).enumerate();
        words.fold(0, |bits, (variable, word)| {
            bits | u8::from(word == WILDCARD) << variable
        })
    }

    /// Appends the word of a key that stands for this word of a client binding.
    pub(crate) fn push_key_word(&self, variable: usize, word: &str, out: &mut String) {
        if self.variable(variable).is_escaped {
            words::escape_into(word, out);
        } else {
            out.push_str(word);
        }
    }

    /// Whether `key_word` is the word of a key that stands for this word of a client binding. No allocation.
    pub(crate) fn is_key_word(&self, variable: usize, word: &str, key_word: &str) -> bool {
        if self.variable(variable).is_escaped {
            words::is_escaped_form(word, key_word)
        } else {
            word == key_word
        }
    }

    /// Whether nothing tells the accounts' events apart, and a client need not know an id either: one that no list
    /// holds may be `*`, or there is none.
    pub(crate) fn is_open_to_all(&self) -> bool {
        let mut ids = (self.variables.iter())
            .filter(|variable| variable.words.is_none())
            .peekable();
        self.qualification == Qualification::None
            && (ids.peek().is_none() || ids.any(|id| id.required.is_none()))
    }

    pub(crate) fn variable_count(&self) -> usize {
        self.variables.len()
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "a rule's templates name its own variables"
    )]
    pub(super) fn variable(&self, variable: usize) -> &Variable {
        &self.variables[variable]
    }

    /// Whether the rule's AMQP keys change with the month.
    pub(crate) fn follows_the_month(&self) -> bool {
        self.forms
            .iter()
            .any(|form| matches!(form.qualifier, FormQualifier::Modb(_)))
    }

    /// Renders every AMQP binding key of a subscription for a month; keys that hold no month only when
    /// `with_monthless`. A key may come twice.
    pub(crate) fn amqp_keys(
        &self,
        values: &KeyValues<'_>,
        with_monthless: bool,
        mut each: impl FnMut(&str),
    ) {
        let mut key = String::new();
        for form in self.forms_for(&values.variables) {
            let has_month = form.is_monthly() && values.scope != Scope::Any;
            if has_month || with_monthless {
                self.expand(form, *values, 0, &mut key, &mut each);
            }
        }
    }

    /// The most that [`Rule::amqp_key_count`] returns for any words, in so many months.
    pub(crate) fn amqp_key_count_max(&self, months: usize) -> usize {
        let lists = self.variables.iter().filter_map(|one| one.words.as_ref());
        let of_form: usize = lists.map(|list| list.words.len().max(1)).product();
        self.forms.len() * of_form * months
    }

    /// How many AMQP binding keys a subscription with these words has in so many months, equal ones included.
    pub(crate) fn amqp_key_count(
        &self,
        words: &Variables<'_>,
        scope: Scope,
        months: usize,
    ) -> usize {
        let expanded = self
            .variables
            .iter()
            .zip(words.iter())
            .map(|(variable, word)| {
                let list = variable.words.as_ref().filter(|_| word == WILDCARD);
                list.filter(|list| !list.wildcard_is_any)
                    .map_or(1, |list| list.words.len())
            });
        let of_form: usize = expanded.product();
        self.forms_for(words)
            .map(|form| {
                let is_monthly = form.is_monthly() && scope != Scope::Any;
                of_form * if is_monthly { months } else { 1 }
            })
            .sum()
    }

    /// Whether an event's words fit the form: its literals, and the lists of variables whose `*` means exactly the
    /// list.
    pub(crate) fn fits(&self, form: &Form, event: &[&str]) -> bool {
        form.parts.len() == event.len()
            && form.parts.iter().zip(event).all(|(part, word)| match part {
                Part::Literal(literal) => **literal == **word,
                Part::Variable(variable) => self.variable(*variable).is_deliverable(word),
                Part::Account | Part::Db | Part::Modb | Part::Realm | Part::Free(_) => true,
            })
    }

    /// As [`Rule::fits`], whatever the words that stand for variables.
    pub(crate) fn is_of_form(&self, form: &Form, event: &[&str]) -> bool {
        form.parts.len() == event.len()
            && form.parts.iter().zip(event).all(|(part, word)| match part {
                Part::Literal(literal) => **literal == **word,
                Part::Variable(_)
                | Part::Account
                | Part::Db
                | Part::Modb
                | Part::Realm
                | Part::Free(_) => true,
            })
    }

    /// Whether some subscription's AMQP key can hold this word of an event.
    pub(crate) fn is_deliverable(&self, variable: usize, word: &str) -> bool {
        self.variable(variable).is_deliverable(word)
    }

    /// Whether the word of a variable says what happened, and not to what.
    pub(crate) fn is_event_word(&self, variable: usize) -> bool {
        self.variable(variable).is_event_word
    }

    /// Whether `key`, in which `*` stands for any word, is of this form: its literal words are there, listed words are on
    /// their lists, and what stands for an account can be one.
    pub(crate) fn has_key(&self, form: &Form, key: &[&str]) -> bool {
        form.parts.len() == key.len()
            && form.parts.iter().zip(key).all(|(part, word)| match part {
                Part::Literal(literal) => **literal == **word,
                _ if *word == WILDCARD => true,
                Part::Variable(variable) => self.variable(*variable).accepts(word),
                Part::Account => AccountId::parse_word(word).is_some(),
                Part::Db => AccountId::parse_db(word).is_some(),
                Part::Modb => word.rsplit_once('-').is_some_and(|(db, month)| {
                    AccountId::parse_db(db).is_some() && Month::parse(month).is_some()
                }),
                Part::Realm | Part::Free(_) => true,
            })
    }

    /// Renders the AMQP binding keys that bring all events of an account, as far as its keys can tell: where some form
    /// names the account or its realm, only such forms. None where nothing tells the accounts' events apart.
    pub(crate) fn widest_keys(
        &self,
        account: AccountId,
        realm: Option<&str>,
        month: Month,
        mut each: impl FnMut(&str),
    ) {
        match self.qualification {
            Qualification::None => return,
            Qualification::Realm if realm.is_none() => return,
            Qualification::Account | Qualification::Realm => {}
        }
        let names_it = |form: &&Form| form.qualifier_position().is_some();
        let is_named = self.forms.iter().any(|form| names_it(&form));
        let values = KeyValues {
            variables: Variables([WILDCARD; VARIABLES_MAX]),
            scope: Scope::One(account),
            realm,
            month,
        };
        let mut key = String::new();
        for form in self.forms.iter().filter(|form| !is_named || names_it(form)) {
            self.expand(form, values, 0, &mut key, &mut each);
        }
    }

    /// Renders the AMQP binding keys that bring all events of the family. A key may come twice.
    pub(crate) fn family_keys(&self, mut each: impl FnMut(&str)) {
        let values = KeyValues {
            variables: Variables([WILDCARD; VARIABLES_MAX]),
            scope: Scope::Any,
            realm: None,
            month: Month::at(0),
        };
        let mut key = String::new();
        for form in &self.forms {
            self.expand(form, values, 0, &mut key, &mut each);
        }
    }

    /// Renders the client bindings that there are, with `*` where any word can stand; for lists, one for each word.
    pub(crate) fn client_bindings(&self, mut each: impl FnMut(&str)) {
        self.expand_client(0, &mut String::new(), &mut each);
    }

    fn expand_client(&self, from: usize, text: &mut String, each: &mut impl FnMut(&str)) {
        let Some(part) = self.client.get(from) else {
            return each(text);
        };
        let length = text.len();
        if from > 0 {
            text.push('.');
        }
        let dotted = text.len();
        let mut go_on = |word: &str| {
            text.truncate(dotted);
            text.push_str(word);
            self.expand_client(from + 1, text, each);
        };
        match part {
            ClientWord::Literal(literal) => go_on(literal),
            ClientWord::Variable(variable) => match &self.variable(*variable).words {
                Some(list) => list.words.iter().for_each(|word| go_on(word)),
                None => go_on(WILDCARD),
            },
        }
        text.truncate(length);
    }

    /// The variable that decides between forms with a month and without, when the event's word for it belongs to the
    /// other kind than the event's form: only subscriptions with `*` for this variable have AMQP keys of that form.
    pub(crate) fn unprescribed(&self, event: &FormedEvent<'_>) -> Option<usize> {
        let monthly = self.monthly.as_ref()?;
        let (form, word) = (event.form, event.variable(monthly.variable));
        (monthly.has(word) != form.is_monthly()).then_some(monthly.variable)
    }

    /// Renders the event's canonical routing key.
    pub(crate) fn canonical_key(&self, event: &FormedEvent<'_>, out: &mut String) {
        let parts = self.subscription.as_ref().unwrap_or(&event.form.parts);
        join(parts, out, |part, out| match part {
            Part::Free(free) => match (event.form.free_position(*free), &event.head.event) {
                (Some(at), _) => out.push_str(event.word(at)),
                (None, Some(word)) if self.event_word == Some(*free) => {
                    words::escape_into(word, out)
                }
                (None, Some(_) | None) => out.push_str(WILDCARD),
            },
            Part::Literal(_)
            | Part::Account
            | Part::Db
            | Part::Modb
            | Part::Realm
            | Part::Variable(_) => push_event_word(part, event, out),
        });
    }

    /// Renders the subscription key that the event was found by: with `*` for the variables that have a bit in
    /// `wildcards`, and for the account when `is_any_scope`.
    pub(crate) fn matched_key(
        &self,
        event: &FormedEvent<'_>,
        wildcards: u8,
        is_any_scope: bool,
        out: &mut String,
    ) {
        let parts = self.subscription.as_ref().unwrap_or(&event.form.parts);
        join(parts, out, |part, out| match part {
            Part::Free(_) => out.push_str(WILDCARD),
            Part::Variable(variable) if wildcards & (1 << variable) != 0 => out.push_str(WILDCARD),
            Part::Account | Part::Db | Part::Modb | Part::Realm if is_any_scope => {
                out.push_str(WILDCARD)
            }
            Part::Literal(_)
            | Part::Account
            | Part::Db
            | Part::Modb
            | Part::Realm
            | Part::Variable(_) => push_event_word(part, event, out),
        });
    }

    /// The forms of the keys of a subscription with these words.
    fn forms_for<'r>(&'r self, words: &Variables<'_>) -> impl Iterator<Item = &'r Form> + use<'r> {
        let prescribed = self.monthly.as_ref().and_then(|monthly| {
            let word = words[monthly.variable];
            (word != WILDCARD).then(|| monthly.has(word))
        });
        self.forms
            .iter()
            .filter(move |form| prescribed.is_none_or(|monthly| form.is_monthly() == monthly))
    }

    fn push_value(&self, part: &Part, values: &KeyValues<'_>, out: &mut String) {
        match (part, values.scope) {
            (Part::Literal(literal), _) => out.push_str(literal),
            (Part::Variable(variable), _) => {
                self.push_key_word(*variable, values.variables[*variable], out)
            }
            (Part::Account, Scope::One(account)) => account.push_hex(out),
            (Part::Db, Scope::One(account)) => account.push_db(out),
            (Part::Modb, Scope::One(account)) => {
                account.push_db(out);
                out.push('-');
                out.push_str(&values.month.to_string());
            }
            (Part::Realm, Scope::One(_)) => {
                words::escape_into(values.realm.unwrap_or_default(), out)
            }
            (Part::Account | Part::Db | Part::Modb | Part::Realm, Scope::Any)
            | (Part::Free(_), _) => {
                out.push_str(WILDCARD);
            }
        }
    }

    /// Renders `form` once for each combination of words that `*` stands for in lists that mean exactly their words.
    fn expand(
        &self,
        form: &Form,
        values: KeyValues<'_>,
        from: usize,
        key: &mut String,
        each: &mut impl FnMut(&str),
    ) {
        for (index, variable) in self.variables.iter().enumerate().skip(from) {
            if let Some(list) = &variable.words
                && !list.wildcard_is_any
                && values.variables[index] == WILDCARD
            {
                for word in &list.words {
                    let mut expanded: KeyValues<'_> = values;
                    expanded.variables[index] = word;
                    self.expand(form, expanded, index + 1, key, each);
                }
                return;
            }
        }
        #[cfg(test)]
        crate::steps::step();
        key.clear();
        join(&form.parts, key, |part, out| {
            self.push_value(part, &values, out)
        });
        each(key);
    }
}

impl Variable {
    fn accepts(&self, word: &str) -> bool {
        self.words
            .as_ref()
            .is_none_or(|list| word == WILDCARD || list.has(word))
    }

    /// Whether some subscription's AMQP key can hold this word of an event.
    fn is_deliverable(&self, word: &str) -> bool {
        self.words
            .as_ref()
            .is_none_or(|list| list.wildcard_is_any || list.has(word))
    }
}

impl WordList {
    pub(super) fn has(&self, word: &str) -> bool {
        self.words.iter().any(|listed| **listed == *word)
    }
}

impl Monthly {
    pub(super) fn has(&self, word: &str) -> bool {
        self.words.iter().any(|listed| **listed == *word)
    }
}

impl Form {
    /// Where the form has a variable: every form has every one.
    #[expect(
        clippy::indexing_slicing,
        reason = "a variable's number is below the bound: a template with more is refused"
    )]
    pub(crate) fn variable_position(&self, variable: usize) -> usize {
        usize::from(self.variable_at[variable])
    }

    /// Where the form has a free word, if it has it.
    pub(super) fn free_position(&self, free: usize) -> Option<usize> {
        let at = self.free_at.get(free).filter(|at| **at != ABSENT);
        at.map(|at| usize::from(*at))
    }

    /// What qualifies the event. `None`: the event belongs to no account, and is for subscriptions of scope `*` only.
    pub(crate) fn qualifier<'e>(
        &self,
        event: &[&'e str],
        head: &EventHead,
        months: ActiveMonths,
    ) -> Option<Qualifier<'e>> {
        match self.qualifier {
            FormQualifier::Account(at) => {
                AccountId::parse_word(event.get(at)?).map(Qualifier::Account)
            }
            FormQualifier::Db(at) => AccountId::parse_db(event.get(at)?).map(Qualifier::Account),
            FormQualifier::Modb(at) => {
                let (db, month) = event.get(at)?.rsplit_once('-')?;
                let is_active = months.contains(Month::parse(month)?);
                AccountId::parse_db(db)
                    .filter(|_| is_active)
                    .map(Qualifier::Account)
            }
            FormQualifier::Realm(at) => event.get(at).copied().map(Qualifier::Realm),
            FormQualifier::Payload => head.account.map(Qualifier::Account),
            FormQualifier::None => Some(Qualifier::None),
        }
    }

    pub(super) fn is_monthly(&self) -> bool {
        matches!(self.qualifier, FormQualifier::Modb(_))
    }

    /// Whether its key names the account by a database.
    pub(crate) fn names_database(&self) -> bool {
        matches!(
            self.qualifier,
            FormQualifier::Db(_) | FormQualifier::Modb(_)
        )
    }

    pub(super) fn qualifier_position(&self) -> Option<usize> {
        match self.qualifier {
            FormQualifier::Account(at)
            | FormQualifier::Db(at)
            | FormQualifier::Modb(at)
            | FormQualifier::Realm(at) => Some(at),
            FormQualifier::Payload | FormQualifier::None => None,
        }
    }
}

/// An event whose words fit a form of key.
pub(crate) struct FormedEvent<'e> {
    pub(crate) form: &'e Form,
    pub(crate) words: &'e [&'e str],
    pub(crate) head: &'e EventHead,
    /// What [`Form::qualifier`] returns for it.
    pub(crate) qualifier: Option<Qualifier<'e>>,
}

impl<'e> FormedEvent<'e> {
    #[expect(
        clippy::indexing_slicing,
        reason = "the event fits the form, so it has as many words"
    )]
    fn word(&self, at: usize) -> &'e str {
        self.words[at]
    }

    /// The event's word that stands for a variable.
    pub(crate) fn variable(&self, variable: usize) -> &'e str {
        self.word(self.form.variable_position(variable))
    }
}

fn join(parts: &[Part], out: &mut String, mut push: impl FnMut(&Part, &mut String)) {
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            out.push('.');
        }
        push(part, out);
    }
}

fn push_event_word(part: &Part, event: &FormedEvent<'_>, out: &mut String) {
    match part {
        Part::Literal(literal) => out.push_str(literal),
        Part::Variable(variable) => out.push_str(event.variable(*variable)),
        Part::Account | Part::Db | Part::Modb | Part::Realm => {
            match (event.form.qualifier_position(), event.qualifier) {
                (Some(at), _) => out.push_str(event.word(at)),
                (None, Some(Qualifier::Account(account))) => account.push_hex(out),
                (None, Some(Qualifier::Realm(_) | Qualifier::None) | None) => {
                    out.push_str(WILDCARD)
                }
            }
        }
        Part::Free(_) => out.push_str(WILDCARD),
    }
}
