//! Binding families: what a client binding means, and which events it means (PROTOCOL 6).
//!
//! | file | owns |
//! |---|---|
//! | `spec` | a row of the table as operators write it, its grammar, and the platform's rows |
//! | `template` | the words of a row's templates |
//! | `nearest` | what is likely meant by a client binding that is none |
//! | `compile` | a row, checked and compiled into a rule |
//! | `rule` | a compiled row: what fits it, and the keys that it renders |
//! | `available` | the forms of client bindings, for people |
//!
//! No code names a family; all of them are data. A subscription is (rule, scope, realm, client binding). Its AMQP
//! binding keys are rendered when needed and never stored.
//!
//! Invariant, *independence*: whether a subscription gets an event depends on its own AMQP keys only (and on the
//! body's account where no key holds it), never on what other subscriptions made the broker deliver.

mod available;
mod compile;
mod nearest;
mod rule;
mod spec;
mod template;

use std::sync::Arc;

pub use compile::KEYS_MAX;
pub use nearest::nearest_binding;
pub use spec::{
    AccountSource, ExchangeKind, FamilyError, FamilyOptions, FamilyProblem, FamilySpec,
};

pub(crate) use rule::{FormedEvent, Qualification, Qualifier, Rule};
pub(crate) use template::VARIABLES_MAX;

use arcstr::ArcStr;

use compile::check_words;
use rule::{KeyValues, Variables, WordError};
use spec::{FAMILIES_MAX, MODULES, family_error, platform_families};

use super::month::{ActiveMonths, FollowedMonths, Month};
use super::words::{WILDCARD, WILDCARD_REST};
use crate::account::Scope;
use crate::routing::amqp_binding::AmqpBinding;

/// Bytes that an AMQP binding key or an exchange name may have, because AMQP writes the length in one byte (AMQP rail
/// 2). A client binding that needs a longer key is refused as an invalid format.
pub const KEY_BYTES_MAX: usize = 255;

/// Bytes of a refused binding that an error text repeats; the rest is cut off.
pub const ECHO_BYTES_MAX: usize = 256;

/// An exchange that families need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Its name, at most [`KEY_BYTES_MAX`] bytes.
    pub name: Arc<str>,
    /// Its type.
    pub kind: ExchangeKind,
    /// Whether it is durable.
    pub durable: bool,
}

/// Names a row of the table, for the life of a [`Families`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub(crate) u16);

impl RuleId {
    pub(crate) fn of(index: usize) -> Self {
        Self(u16::try_from(index).expect("FAMILIES_MAX and the platform's rows fit"))
    }
}

/// What an identity may do, as far as binding families care.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rights<'a> {
    /// Whether it is a superduper admin.
    pub superduper: bool,
    /// The SIP realm of the account that the binding is for, unescaped. Some families need it.
    pub realm: Option<&'a str>,
}

/// A client binding that is understood and allowed. Only [`Families::resolve`] and the index make such a value, so its
/// keys can always be rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Resolved<'a> {
    pub(crate) rule: RuleId,
    pub(crate) scope: Scope,
    pub(crate) binding: &'a str,
    /// Only where the rule needs it, and never for scope `*`.
    pub(crate) realm: Option<&'a str>,
    /// The same text as `binding`, where it is kept already.
    pub(crate) shared: Option<&'a ArcStr>,
    /// Whether the AMQP bindings of its group are still those of the months before.
    pub(crate) is_behind: bool,
}

impl<'a> Resolved<'a> {
    /// The same client binding, which shares the text of `key` if that is equal. The AMQP key of a call often is what
    /// the client wrote, and then a subscription needs no text of its own.
    #[must_use]
    pub fn sharing(self, key: Option<&'a ArcStr>) -> Self {
        Self {
            shared: key.filter(|key| key.as_str() == self.binding),
            ..self
        }
    }

    /// The months that its AMQP bindings are of.
    #[must_use]
    pub fn held(&self, months: FollowedMonths) -> ActiveMonths {
        if self.is_behind {
            months.before()
        } else {
            months.now()
        }
    }

    /// The account it is for.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// The client binding as the client wrote it.
    #[must_use]
    pub fn binding(&self) -> &'a str {
        self.binding
    }

    /// The SIP realm whose events it gets, unescaped; `None` where the realm does not tell accounts apart.
    #[must_use]
    pub fn realm(&self) -> Option<&'a str> {
        self.realm
    }
}

/// Why a client binding is refused. Displayed, it is the error text of PROTOCOL 3.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindingError {
    /// The family is unknown or switched off, or it needs a realm and the account has none.
    #[error("no available subscriptions to requested binding")]
    NoSubscriptions,
    /// The words are of no form that the family has, or too long for AMQP.
    #[error("invalid format for {family} subscription : {rest}")]
    InvalidFormat {
        /// The first word.
        family: String,
        /// The other words, cut to [`ECHO_BYTES_MAX`].
        rest: String,
    },
    /// A word that is not on its variable's list.
    #[error("event {0} not supported")]
    NotSupported(String),
    /// A wildcard where the family wants one thing named.
    #[error("{0}")]
    Required(Box<str>),
}

/// The table of binding families.
///
/// ```
/// use blackhole::account::{AccountId, Scope};
/// use blackhole::routing::families::{Families, FamilyOptions, Rights};
/// use blackhole::routing::month::ActiveMonths;
///
/// let families = Families::new(&FamilyOptions::default())?;
/// let account = AccountId::parse("4b8c6fec4b2597882c0390202d195419").expect("32 hex characters");
/// let resolve = |binding| families.resolve(binding, Scope::One(account), Rights::default());
///
/// // What a client binding means in AMQP.
/// let subscription = resolve("fax.status.*")?;
/// let mut bindings = Vec::new();
/// families.amqp_bindings(&subscription, ActiveMonths::at(0), &mut bindings);
/// assert_eq!(&*bindings[0].exchange, "faxes");
/// assert_eq!(&*bindings[0].key, "fax.status.4b8c6fec4b2597882c0390202d195419.*");
///
/// // Why one is refused, in the words that clients know.
/// let error = resolve("call.CHANNEL_LOST.*").expect_err("it is on no list");
/// assert_eq!(error.to_string(), "event CHANNEL_LOST not supported");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Families {
    rules: Vec<Rule>,
    exchanges: Vec<ExchangeRules>,
    open_to_all: Vec<String>,
}

#[derive(Debug)]
struct ExchangeRules {
    exchange: Exchange,
    /// The rules that are switched on and whose events come from it.
    rules: Vec<RuleId>,
}

impl Families {
    /// Makes the table from the platform's rows and the operator's.
    ///
    /// # Errors
    /// [`FamilyError`] names the key of the configuration that is wrong, and why.
    pub fn new(options: &FamilyOptions) -> Result<Self, FamilyError> {
        check_options(options)?;
        let mut families = Self {
            rules: Vec::new(),
            exchanges: Vec::new(),
            open_to_all: Vec::new(),
        };
        for spec in platform_families(options) {
            families.add(&spec, &format!("(family {})", spec.name))?;
        }
        for (index, spec) in options.families.iter().enumerate() {
            let path = format!("families[{index}]");
            families.add(spec, &path)?;
            if families.rules.last().is_some_and(Rule::is_open_to_all) {
                families.open_to_all.push(path);
            }
        }
        for (index, module) in options.autoload_modules.iter().enumerate() {
            if !families.rules.iter().any(|rule| *rule.module == **module) {
                let problem = FamilyProblem::UnknownModule(module.clone());
                return Err(family_error(
                    format_args!("autoload_modules[{index}]"),
                    problem,
                ));
            }
        }
        for rule in &mut families.rules {
            let is_platforms = MODULES.contains(&&*rule.module);
            rule.is_on = !is_platforms
                || options
                    .autoload_modules
                    .iter()
                    .any(|module| **module == *rule.module);
        }
        families.list_rules();
        Ok(families)
    }

    /// Lists the rules that are switched on by their exchanges.
    fn list_rules(&mut self) {
        for ExchangeRules { exchange, rules } in &mut self.exchanges {
            let rows = self.rules.iter().enumerate();
            let is_of_it = |rule: &Rule| rule.is_on && rule.exchange == exchange.name;
            rules.clear();
            rules.extend(
                rows.filter(|(_, rule)| is_of_it(rule))
                    .map(|(row, _)| RuleId::of(row)),
            );
        }
    }

    /// The names of all modules, those that are off too; some may come twice.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| &*rule.module)
    }

    /// Whether the families of a module are on; `None`: there is none of this name. Linear in the rules.
    #[must_use]
    pub fn is_module_on(&self, module: &str) -> Option<bool> {
        let rule = self.rules.iter().find(|rule| *rule.module == *module)?;
        Some(rule.is_on)
    }

    /// Starts or stops the families of a module (PROTOCOL 6 and 8): bindings of a family that is off are refused, and its
    /// events are nobody's, both from now on. Subscriptions that there are stay until their sessions end them
    /// ([`Families::is_on`]). Returns whether that changed anything; `None`: there is no such module. Linear in the rules.
    pub fn switch_module(&mut self, module: &str, is_on: bool) -> Option<bool> {
        let was_on = self.is_module_on(module)?;
        for rule in self.rules.iter_mut().filter(|one| *one.module == *module) {
            rule.is_on = is_on;
        }
        self.list_rules();
        Some(was_on != is_on)
    }

    /// Whether the family of a subscription is on.
    #[must_use]
    pub fn is_on(&self, resolved: &Resolved<'_>) -> bool {
        self.rule(resolved.rule).is_on
    }

    /// The operator's families that every account can have all events of, as paths in the configuration: they need no
    /// account and allow a wildcard in place of the unguessable id. The operator is to be warned of these.
    #[must_use]
    pub fn open_to_all(&self) -> &[String] {
        &self.open_to_all
    }

    /// The exchanges of all families, each once; of those that are off too, because they may be started.
    pub fn exchanges(&self) -> impl Iterator<Item = &Exchange> {
        self.exchanges.iter().map(|known| &known.exchange)
    }

    /// What `binding` means for an account. The caller must know that the identity may ask for that account. Linear in
    /// the binding and its AMQP keys.
    ///
    /// # Errors
    /// [`BindingError`], which has the texts of PROTOCOL 3.
    pub fn resolve<'a>(
        &self,
        binding: &'a str,
        scope: Scope,
        rights: Rights<'a>,
    ) -> Result<Resolved<'a>, BindingError> {
        self.resolve_among(binding, scope, rights, |rule| rule.is_on)
    }

    /// As [`Families::resolve`], with the families that are off, too: for those who look at what happens, never for a
    /// subscription.
    ///
    /// # Errors
    /// [`BindingError`].
    pub(crate) fn resolve_for_a_look<'a>(
        &self,
        binding: &'a str,
        scope: Scope,
        realm: Option<&'a str>,
    ) -> Result<Resolved<'a>, BindingError> {
        let superduper = true;
        self.resolve_among(binding, scope, Rights { superduper, realm }, |_| true)
    }

    fn resolve_among<'a>(
        &self,
        binding: &'a str,
        scope: Scope,
        rights: Rights<'a>,
        is_meant: impl Fn(&Rule) -> bool,
    ) -> Result<Resolved<'a>, BindingError> {
        let (first, rest) = binding.split_once('.').unwrap_or((binding, ""));
        let invalid_format = || BindingError::InvalidFormat {
            family: echo(first).to_owned(),
            rest: echo(rest).to_owned(),
        };
        let mut of_family = self
            .rules
            .iter()
            .enumerate()
            .filter(|(_, rule)| is_meant(rule) && rule.begins_with(first))
            .peekable();
        if of_family.peek().is_none() {
            return Err(BindingError::NoSubscriptions);
        }
        if binding
            .split('.')
            .any(|word| word.is_empty() || word == WILDCARD_REST)
        {
            return Err(invalid_format());
        }
        let (index, rule, variables) = of_family
            .find_map(|(index, rule)| {
                rule.variables(binding)
                    .map(|variables| (index, rule, variables))
            })
            .ok_or_else(invalid_format)?;
        rule.check(&variables, rights.superduper)
            .map_err(|error| match error {
                WordError::NotSupported(word) => BindingError::NotSupported(echo(word).to_owned()),
                WordError::Required(error) => BindingError::Required(error),
            })?;
        // Every key holds each of these words, and escaping makes no word shorter. So most keys that are too long are
        // never rendered.
        if variables.iter().map(|word| word.len()).sum::<usize>() > KEY_BYTES_MAX {
            return Err(invalid_format());
        }
        let realm = match (rule.qualification, scope) {
            // A realm that AMQP takes for a wildcard would get the events of other accounts.
            (Qualification::Realm, Scope::One(_)) => Some(
                rights
                    .realm
                    .filter(|realm| !matches!(*realm, "" | WILDCARD | WILDCARD_REST))
                    .ok_or(BindingError::NoSubscriptions)?,
            ),
            (Qualification::Account | Qualification::None, _) | (_, Scope::Any) => None,
        };
        let resolved = Resolved {
            rule: RuleId::of(index),
            scope,
            binding,
            realm,
            shared: None,
            is_behind: false,
        };
        let mut is_too_long = false;
        let values = KeyValues {
            variables,
            scope,
            realm,
            month: Month::at(0),
        };
        rule.amqp_keys(&values, true, |key| {
            is_too_long |= key.len() > KEY_BYTES_MAX
        });
        if is_too_long {
            Err(invalid_format())
        } else {
            Ok(resolved)
        }
    }

    /// Whether what `binding` means depends on the account's realm. As costly as [`Families::resolve`].
    #[must_use]
    pub fn needs_realm(&self, binding: &str, scope: Scope) -> bool {
        let rights = Rights {
            superduper: false,
            realm: Some("realm"),
        };
        let resolved = self.resolve(binding, scope, rights);
        resolved.is_ok_and(|resolved| resolved.realm().is_some())
    }

    /// The exchange of a subscription's AMQP bindings.
    #[must_use]
    pub fn exchange(&self, resolved: &Resolved<'_>) -> &str {
        &self.rule(resolved.rule).exchange
    }

    /// Appends the AMQP bindings of a subscription, each once; where its keys hold a month, one for each of `months`.
    pub fn amqp_bindings(
        &self,
        resolved: &Resolved<'_>,
        months: ActiveMonths,
        out: &mut Vec<AmqpBinding>,
    ) {
        self.append_bindings(resolved, months.iter(), true, out);
    }

    /// Appends the AMQP bindings that bring all events of a family, whoever they are of and whatever a client chooses: each
    /// of its keys with `*` there. So many, whatever clients do. Linear in its keys.
    pub(crate) fn family_bindings(&self, rule: RuleId, out: &mut Vec<AmqpBinding>) {
        let rule = self.rule(rule);
        rule.family_keys(|key| {
            let binding = AmqpBinding {
                exchange: rule.exchange.clone(),
                key: key.into(),
            };
            if !out.contains(&binding) {
                out.push(binding);
            }
        });
    }

    /// The most AMQP bindings that one subscription can have, the months of an overlap included. Linear in the rules.
    #[must_use]
    pub fn amqp_binding_count_max(&self) -> usize {
        let most = self.rules.iter().map(|rule| rule.amqp_key_count_max(2));
        most.max().unwrap_or(0)
    }

    /// How many AMQP bindings a subscription has, equal ones included. No key is rendered.
    #[must_use]
    pub fn amqp_binding_count(&self, resolved: &Resolved<'_>, months: ActiveMonths) -> usize {
        let rule = self.rule(resolved.rule);
        let words = self.variables(resolved);
        rule.amqp_key_count(&words, resolved.scope, months.iter().count())
    }

    /// Appends those AMQP bindings of a subscription whose keys hold a month, for these months: what a roll-over
    /// acquires and releases ([`ActiveMonths::without`]). The keys of scope `*` hold no month.
    pub fn monthly_bindings(
        &self,
        resolved: &Resolved<'_>,
        months: impl Iterator<Item = Month>,
        out: &mut Vec<AmqpBinding>,
    ) {
        self.append_bindings(resolved, months, false, out);
    }

    /// Whether the AMQP bindings of a subscription change with the month.
    #[must_use]
    pub(super) fn follows_the_month(&self, resolved: &Resolved<'_>) -> bool {
        resolved.scope != Scope::Any && self.rule(resolved.rule).follows_the_month()
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "an id is of the table that gave it, which never shrinks"
    )]
    pub(crate) fn rule(&self, id: RuleId) -> &Rule {
        &self.rules[usize::from(id.0)]
    }

    /// The rules that are switched on and whose events come from this exchange.
    pub(crate) fn rules_on(&self, exchange: &str) -> &[RuleId] {
        let is_it = |known: &&ExchangeRules| *known.exchange.name == *exchange;
        self.exchanges
            .iter()
            .find(is_it)
            .map_or(&[], |known| &known.rules)
    }

    /// All rules, those that are switched off included.
    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The words of a subscription's binding that stand for its rule's variables.
    pub(crate) fn variables<'a>(&self, resolved: &Resolved<'a>) -> Variables<'a> {
        self.rule(resolved.rule)
            .variables(resolved.binding)
            .expect("it was resolved under this rule")
    }

    fn key_values<'a>(&self, resolved: &Resolved<'a>, month: Month) -> KeyValues<'a> {
        let Resolved { scope, realm, .. } = *resolved;
        KeyValues {
            variables: self.variables(resolved),
            scope,
            realm,
            month,
        }
    }

    fn append_bindings(
        &self,
        resolved: &Resolved<'_>,
        months: impl Iterator<Item = Month>,
        with_monthless: bool,
        out: &mut Vec<AmqpBinding>,
    ) {
        let rule = self.rule(resolved.rule);
        let from = out.len();
        for (turn, month) in months.enumerate() {
            let values = self.key_values(resolved, month);
            rule.amqp_keys(&values, with_monthless && turn == 0, |key| {
                if !out.iter().skip(from).any(|known| *known.key == *key) {
                    out.push(AmqpBinding {
                        exchange: rule.exchange.clone(),
                        key: key.into(),
                    });
                }
            });
        }
    }

    fn add(&mut self, spec: &FamilySpec, path: &str) -> Result<(), FamilyError> {
        let at = |key: &str| format!("{path}.{key}");
        let FamilySpec {
            exchange: name,
            exchange_type: kind,
            exchange_durable: durable,
            ..
        } = spec;
        if name.is_empty() {
            return Err(family_error(at("exchange"), FamilyProblem::Empty));
        }
        if name.len() > KEY_BYTES_MAX {
            let problem = FamilyProblem::TooMany {
                found: name.len(),
                max: KEY_BYTES_MAX,
            };
            return Err(family_error(at("exchange"), problem));
        }
        let is_it = |known: &&ExchangeRules| *known.exchange.name == **name;
        let exchange = match self.exchanges.iter().find(is_it) {
            Some(ExchangeRules { exchange, .. }) => {
                if exchange.kind != *kind || exchange.durable != *durable {
                    let problem = FamilyProblem::ExchangeConflict(name.clone());
                    return Err(family_error(at("exchange"), problem));
                }
                exchange.name.clone()
            }
            None => {
                let name: Arc<str> = name.as_str().into();
                self.exchanges.push(ExchangeRules {
                    exchange: Exchange {
                        name: name.clone(),
                        kind: *kind,
                        durable: *durable,
                    },
                    rules: Vec::new(),
                });
                name
            }
        };
        self.rules.push(Rule::compile(spec, path, exchange)?);
        Ok(())
    }
}

fn check_options(options: &FamilyOptions) -> Result<(), FamilyError> {
    let FamilyOptions {
        channel_events,
        extra_doc_types,
        families,
        ..
    } = options;
    check_words(channel_events.iter().map(String::as_str), "channel_events")?;
    if channel_events.len() > KEYS_MAX {
        let problem = FamilyProblem::TooMany {
            found: channel_events.len(),
            max: KEYS_MAX,
        };
        return Err(family_error("channel_events", problem));
    }
    if !extra_doc_types.is_empty() {
        check_words(
            extra_doc_types.iter().map(String::as_str),
            "extra_doc_types",
        )?;
    }
    if families.len() > FAMILIES_MAX {
        let problem = FamilyProblem::TooMany {
            found: families.len(),
            max: FAMILIES_MAX,
        };
        return Err(family_error("families", problem));
    }
    Ok(())
}

/// The part of a client's text that an error text repeats.
fn echo(text: &str) -> &str {
    &text[..text.floor_char_boundary(ECHO_BYTES_MAX)]
}

#[cfg(test)]
mod tests;
