//! The way from a row of the table to a [`Rule`]. A row that would break a rule's invariants is refused, with the path
//! of what is wrong.

use std::sync::Arc;

use super::rule::{
    ABSENT, FREE_WORDS_MAX, Form, FormQualifier, Monthly, Qualification, Required, Rule, Variable,
    WordList,
};
use super::spec::{AccountSource, FamilyError, FamilyProblem, FamilySpec, family_error};
use super::template::{ClientTemplate, ClientWord, Part, VARIABLES_MAX, read_key};
use crate::routing::words::{self, WILDCARD};

/// AMQP bindings that one subscription may take in one month. A row or a list of words that would need more is refused.
pub const KEYS_MAX: usize = 64;

/// The free word that a key may lack: the body's `Event` takes its place.
const EVENT: &str = "event";

impl Rule {
    /// Compiles a row. `path` is its place in the configuration, `exchange` the name of its exchange.
    pub(crate) fn compile(
        spec: &FamilySpec,
        path: &str,
        exchange: Arc<str>,
    ) -> Result<Self, FamilyError> {
        let at = |key: &str| format!("{path}.{key}");
        let client = ClientTemplate::read(&spec.binding)
            .map_err(|problem| family_error(at("binding"), problem))?;
        let ClientTemplate {
            words: client,
            takes_rest,
            names,
        } = client;
        let mut variables = Vec::new();
        for name in &names {
            let words = match spec.words.get(name) {
                Some(words) => Some(WordList::read(words, &at(&format!("words.{name}")))?),
                None => None,
            };
            let required = spec.required.get(name).map(|error| Required {
                error: error.as_str().into(),
                superduper_may: spec.superduper_wildcard,
            });
            variables.push(Variable {
                is_event_word: words.is_some() || name == EVENT,
                name: name.as_str().into(),
                words,
                required,
                is_escaped: !spec.unescaped.contains(name),
            });
        }
        for (key, name) in (spec.words.keys().map(|name| ("words", name)))
            .chain(spec.required.keys().map(|name| ("required", name)))
            .chain(spec.monthly.keys().map(|name| ("monthly", name)))
            .chain(spec.unescaped.iter().map(|name| ("unescaped", name)))
        {
            if !names.contains(name) {
                return Err(family_error(
                    at(key),
                    FamilyProblem::NoSuchVariable(name.clone()),
                ));
            }
        }
        if let Some(ClientWord::Variable(last)) = client.last()
            && takes_rest
            && let Some(name) = names.get(*last)
            && spec.unescaped.contains(name)
        {
            let problem = FamilyProblem::RestUnescaped(name.clone());
            return Err(family_error(at("unescaped"), problem));
        }
        if let Some(ClientWord::Variable(first)) = client.first()
            && variables
                .get(*first)
                .is_none_or(|first| first.words.is_none())
        {
            return Err(family_error(at("binding"), FamilyProblem::OpenFirstWord));
        }

        let mut free = Vec::new();
        let mut forms = Vec::new();
        for (index, key) in spec.keys.iter().enumerate() {
            let path = at(&format!("keys[{index}]"));
            let parts =
                read_key(key, &names, &mut free).map_err(|problem| family_error(&path, problem))?;
            forms.push(
                Form::of(parts, spec.account).map_err(|problem| family_error(&path, problem))?,
            );
        }
        let subscription = match &spec.subscription_key {
            Some(key) => Some(
                read_key(key, &names, &mut free)
                    .map_err(|problem| family_error(at("subscription_key"), problem))?,
            ),
            None => None,
        };
        let rule = Self {
            family: spec.name.as_str().into(),
            module: spec.module.as_deref().unwrap_or(&spec.name).into(),
            is_on: true,
            exchange,
            qualification: qualification(&forms)
                .ok_or_else(|| family_error(at("keys"), FamilyProblem::Qualifiers))?,
            forms,
            name_with_type: spec.name_with_type,
            client,
            takes_rest,
            variables,
            subscription,
            monthly: spec.monthly.iter().next().map(|(name, words)| Monthly {
                variable: names
                    .iter()
                    .position(|known| known == name)
                    .expect("checked above"),
                words: words.iter().map(|word| word.as_str().into()).collect(),
            }),
            event_word: free.iter().position(|name| name == EVENT),
        };
        rule.check_as_a_whole(spec, &free, path)?;
        Ok(rule)
    }

    fn check_as_a_whole(
        &self,
        spec: &FamilySpec,
        free: &[String],
        path: &str,
    ) -> Result<(), FamilyError> {
        let fail = |key: &str, problem| Err(family_error(format_args!("{path}.{key}"), problem));
        if spec.name.is_empty() {
            return fail("name", FamilyProblem::Empty);
        }
        if self.forms.is_empty() {
            return fail("keys", FamilyProblem::Empty);
        }
        if spec.monthly.len() > 1 {
            return fail(
                "monthly",
                FamilyProblem::TooMany {
                    found: spec.monthly.len(),
                    max: 1,
                },
            );
        }
        if free.len() > FREE_WORDS_MAX {
            return fail(
                "keys",
                FamilyProblem::TooMany {
                    found: free.len(),
                    max: FREE_WORDS_MAX,
                },
            );
        }
        if spec.account == AccountSource::None && self.qualification != Qualification::None {
            return fail("account", FamilyProblem::AccountIsThere);
        }
        if let Some(monthly) = &self.monthly {
            if !self.follows_the_month() {
                return fail("keys", FamilyProblem::Lacks("modb".to_owned()));
            }
            let is_always_monthly = self
                .variable(monthly.variable)
                .words
                .as_ref()
                .is_some_and(|list| list.words.iter().all(|word| monthly.has(word)));
            if !is_always_monthly && self.forms.iter().all(Form::is_monthly) {
                return fail("keys", FamilyProblem::OnlyMonthly);
            }
        }
        let expanded = self
            .variables
            .iter()
            .filter_map(|variable| variable.words.as_ref());
        let keys = (expanded.filter(|list| !list.wildcard_is_any))
            .fold(self.forms.len(), |keys, list| {
                keys.saturating_mul(list.words.len())
            });
        if keys > KEYS_MAX {
            return fail(
                "words",
                FamilyProblem::TooMany {
                    found: keys,
                    max: KEYS_MAX,
                },
            );
        }
        for part in self.subscription.iter().flatten() {
            match part {
                Part::Free(index) => {
                    let has_it = |form: &Form| form.free_position(*index).is_some();
                    if let Some(name) = free.get(*index)
                        && name != EVENT
                        && !self.forms.iter().all(has_it)
                    {
                        let problem = FamilyProblem::NoSuchVariable(name.clone());
                        return fail("subscription_key", problem);
                    }
                }
                Part::Account if self.qualification == Qualification::Account => {}
                Part::Account | Part::Db | Part::Modb | Part::Realm => {
                    if !self.forms.iter().all(|form| form.parts.contains(part)) {
                        return fail("subscription_key", FamilyProblem::Qualifiers);
                    }
                }
                Part::Literal(_) | Part::Variable(_) => {}
            }
        }
        Ok(())
    }
}

/// How the forms are qualified; `None` when they are not all qualified alike.
fn qualification(forms: &[Form]) -> Option<Qualification> {
    let mut found = None;
    for form in forms {
        let this = match form.qualifier {
            FormQualifier::Account(_)
            | FormQualifier::Db(_)
            | FormQualifier::Modb(_)
            | FormQualifier::Payload => Qualification::Account,
            FormQualifier::Realm(_) => Qualification::Realm,
            FormQualifier::None => Qualification::None,
        };
        if *found.get_or_insert(this) != this {
            return None;
        }
    }
    Some(found.unwrap_or(Qualification::None))
}

impl Form {
    fn of(parts: Vec<Part>, account: AccountSource) -> Result<Self, FamilyProblem> {
        let mut form = Self {
            variable_at: [ABSENT; VARIABLES_MAX],
            free_at: [ABSENT; FREE_WORDS_MAX],
            qualifier: match account {
                AccountSource::Payload => FormQualifier::Payload,
                AccountSource::None => FormQualifier::None,
            },
            parts: Vec::new(),
        };
        for (at, part) in parts.iter().enumerate() {
            let position = u8::try_from(at).expect("a key has at most WORDS_MAX words");
            let qualifier = match part {
                Part::Literal(_) => continue,
                Part::Variable(variable) => {
                    if let Some(place) = form.variable_at.get_mut(*variable) {
                        *place = position;
                    }
                    continue;
                }
                Part::Free(free) => {
                    // A free word beyond the bound is refused when all keys are read.
                    if let Some(place) = form.free_at.get_mut(*free) {
                        *place = position;
                    }
                    continue;
                }
                Part::Account => FormQualifier::Account(at),
                Part::Db => FormQualifier::Db(at),
                Part::Modb => FormQualifier::Modb(at),
                Part::Realm => FormQualifier::Realm(at),
            };
            if form.qualifier_position().is_some() {
                return Err(FamilyProblem::Qualifiers);
            }
            form.qualifier = qualifier;
        }
        form.parts = parts;
        Ok(form)
    }
}

impl WordList {
    fn read(words: &[String], path: &str) -> Result<Self, FamilyError> {
        let wildcard_is_any = words.iter().any(|word| word == WILDCARD);
        let words: Vec<Box<str>> = words
            .iter()
            .filter(|word| *word != WILDCARD)
            .map(|word| word.as_str().into())
            .collect();
        check_words(words.iter().map(AsRef::as_ref), path)?;
        Ok(Self {
            words,
            wildcard_is_any,
        })
    }
}

/// Refuses an empty list of configuration words, and a word that is not written as it is in a key.
pub(crate) fn check_words<'w>(
    words: impl ExactSizeIterator<Item = &'w str>,
    path: &str,
) -> Result<(), FamilyError> {
    if words.len() == 0 {
        return Err(family_error(path, FamilyProblem::Empty));
    }
    for (index, word) in words.enumerate() {
        if word.is_empty() || !word.bytes().all(words::is_plain) {
            return Err(family_error(
                format_args!("{path}[{index}]"),
                FamilyProblem::NotAWord(word.to_owned()),
            ));
        }
    }
    Ok(())
}
