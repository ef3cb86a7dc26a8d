//! The templates of a row as words: the template of the client binding, and those of keys. `spec` has their grammar.

use super::spec::FamilyProblem;
use crate::routing::words::{WILDCARD, WILDCARD_REST, WORDS_MAX};

/// Variables that a client binding may have. An event is looked up once for each set of wildcards in use, so this
/// bounds the lookups of one key form at 2 × 2^4.
pub(crate) const VARIABLES_MAX: usize = 4;

/// Names of placeholders that no variable may have.
const RESERVED: [&str; 4] = ["account", "db", "modb", "realm"];

/// A word of the template of a client binding.
#[derive(Debug)]
pub(super) enum ClientWord {
    Literal(Box<str>),
    /// The variable's number, which counts from the first one of the client binding.
    Variable(usize),
}

/// A word of the template of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Literal(Box<str>),
    Account,
    Db,
    Modb,
    Realm,
    Variable(usize),
    Free(usize),
}

/// The template of a client binding.
pub(super) struct ClientTemplate {
    pub(super) words: Vec<ClientWord>,
    pub(super) takes_rest: bool,
    pub(super) names: Vec<String>,
}

impl ClientTemplate {
    pub(super) fn read(template: &str) -> Result<Self, FamilyProblem> {
        let mut read = Self {
            words: Vec::new(),
            takes_rest: false,
            names: Vec::new(),
        };
        for word in template_words(template)? {
            let unreadable = || FamilyProblem::NotATemplateWord(word.to_owned());
            if read.takes_rest {
                return Err(unreadable());
            }
            let Some(name) = placeholder(word) else {
                let is_literal = word == WILDCARD && !read.words.is_empty() || is_literal(word);
                read.words.push(ClientWord::Literal(
                    is_literal.then(|| word.into()).ok_or_else(unreadable)?,
                ));
                continue;
            };
            let (name, takes_rest) = match name.strip_suffix("...") {
                Some(name) => (name, true),
                None => (name, false),
            };
            if !is_name(name) || RESERVED.contains(&name) || takes_rest && read.words.is_empty() {
                return Err(unreadable());
            }
            if read.names.iter().any(|known| known == name) {
                return Err(FamilyProblem::Repeated(name.to_owned()));
            }
            read.takes_rest = takes_rest;
            read.words.push(ClientWord::Variable(read.names.len()));
            read.names.push(name.to_owned());
        }
        if read.names.len() > VARIABLES_MAX {
            return Err(FamilyProblem::TooMany {
                found: read.names.len(),
                max: VARIABLES_MAX,
            });
        }
        Ok(read)
    }
}

/// Reads the template of a key. Names that are no variable's are added to `free`.
pub(super) fn read_key(
    template: &str,
    names: &[String],
    free: &mut Vec<String>,
) -> Result<Vec<Part>, FamilyProblem> {
    let mut parts: Vec<Part> = Vec::new();
    for word in template_words(template)? {
        let part = match placeholder(word) {
            None if is_literal(word) => Part::Literal(word.into()),
            Some("account") => Part::Account,
            Some("db") => Part::Db,
            Some("modb") => Part::Modb,
            Some("realm") => Part::Realm,
            Some(name) if is_name(name) => match names.iter().position(|known| known == name) {
                Some(variable) => Part::Variable(variable),
                None => Part::Free(free.iter().position(|known| known == name).unwrap_or_else(
                    || {
                        free.push(name.to_owned());
                        free.len() - 1
                    },
                )),
            },
            Some(_) | None => return Err(FamilyProblem::NotATemplateWord(word.to_owned())),
        };
        if placeholder(word).is_some() && parts.contains(&part) {
            return Err(FamilyProblem::Repeated(
                word.trim_matches(['{', '}']).to_owned(),
            ));
        }
        parts.push(part);
    }
    let is_missing = |(variable, _): &(usize, _)| !parts.contains(&Part::Variable(*variable));
    match names.iter().enumerate().find(is_missing) {
        Some((_, name)) => Err(FamilyProblem::Lacks(name.clone())),
        None => Ok(parts),
    }
}

/// The words of a template, if it is neither empty nor too long. The dots of a `{name...}` end no word.
fn template_words(template: &str) -> Result<Vec<&str>, FamilyProblem> {
    if template.is_empty() {
        return Err(FamilyProblem::Empty);
    }
    let rest_at = template
        .strip_suffix("...}")
        .and_then(|template| template.rfind('{'));
    let (ended, rest) = template.split_at(rest_at.unwrap_or(template.len()));
    let mut words = Vec::new();
    if !ended.is_empty() {
        let ended = match rest_at {
            Some(_) => ended
                .strip_suffix('.')
                .ok_or_else(|| FamilyProblem::NotATemplateWord(template.to_owned()))?,
            None => ended,
        };
        words.extend(ended.split('.'));
    }
    words.extend(rest_at.map(|_| rest));
    if words.len() > WORDS_MAX {
        return Err(FamilyProblem::TooMany {
            found: words.len(),
            max: WORDS_MAX,
        });
    }
    Ok(words)
}

fn placeholder(word: &str) -> Option<&str> {
    word.strip_prefix('{')?.strip_suffix('}')
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A word that stands for itself, in AMQP too.
fn is_literal(word: &str) -> bool {
    !word.is_empty()
        && word != WILDCARD_REST
        && word
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'*' | b'#' | b'{' | b'}'))
}
