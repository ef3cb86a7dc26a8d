//! Which client bindings there are, for people (PROTOCOL 8): each form of binding of the families that are on, with the
//! words of its lists written out, and placeholders in the platform's spelling, `{CALL_ID}`, for what may be any word.

use super::Families;
use super::compile::KEYS_MAX;
use super::rule::{Rule, Variable};
use super::template::ClientWord;
use crate::routing::words::WILDCARD;

impl Families {
    /// The available client bindings by family, in the order of the rows. Linear in what it returns: of a row at most
    /// [`KEYS_MAX`] bindings.
    #[must_use]
    pub fn available(&self) -> Vec<(&str, Vec<String>)> {
        let mut families: Vec<(&str, Vec<String>)> = Vec::new();
        for rule in self.rules.iter().filter(|rule| rule.is_on) {
            let bindings = rule.available();
            match families.iter_mut().find(|(name, _)| **name == *rule.family) {
                Some((_, known)) => known.extend(bindings),
                None => families.push((&rule.family, bindings)),
            }
        }
        families
    }
}

impl Rule {
    fn available(&self) -> Vec<String> {
        let mut bindings = vec![String::new()];
        for word in &self.client {
            let words = match word {
                ClientWord::Literal(literal) => vec![literal.to_string()],
                ClientWord::Variable(variable) => self.variable(*variable).spellings(),
            };
            let words = if bindings.len() * words.len() > KEYS_MAX {
                match word {
                    ClientWord::Literal(_) => words,
                    ClientWord::Variable(variable) => vec![self.variable(*variable).placeholder()],
                }
            } else {
                words
            };
            bindings = (bindings.iter())
                .flat_map(|begun| words.iter().map(move |word| joined(begun, word)))
                .collect();
        }
        bindings
    }
}

fn joined(begun: &str, word: &str) -> String {
    if begun.is_empty() {
        word.to_owned()
    } else {
        format!("{begun}.{word}")
    }
}

impl Variable {
    /// The words of its list, but for the wildcard; its placeholder, if it may be any word.
    fn spellings(&self) -> Vec<String> {
        let list = self.words.as_ref().map(|list| list.words.iter());
        let named = list
            .into_iter()
            .flatten()
            .filter(|word| ***word != *WILDCARD);
        let named: Vec<String> = named.map(|word| word.to_string()).collect();
        if named.is_empty() {
            vec![self.placeholder()]
        } else {
            named
        }
    }

    fn placeholder(&self) -> String {
        let name = self.name.to_uppercase();
        match &*self.name {
            "call" | "conference" | "fax" | "user" => format!("{{{name}_ID}}"),
            _ => format!("{{{name}}}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::families::FamilyOptions;

    fn of(options: &FamilyOptions) -> Families {
        Families::new(options).expect("valid options")
    }

    #[test]
    fn the_platforms_families_are_listed_in_its_spelling() {
        let families = of(&FamilyOptions::default());
        let available = families.available();
        let names: Vec<&str> = available.iter().map(|(name, _)| *name).collect();
        let expected = [
            "call",
            "conference",
            "fax",
            "object",
            "presence",
            "registration",
        ];
        assert_eq!(names, expected);
        let of_family = |name| {
            let family = available.iter().find(|(family, _)| *family == name);
            family.map(|(_, bindings)| bindings).expect("it is on")
        };
        assert_eq!(of_family("call").len(), 9);
        assert_eq!(of_family("call")[0], "call.CHANNEL_CREATE.{CALL_ID}");
        assert_eq!(
            of_family("conference")[..],
            [
                "conference.event.{CONFERENCE_ID}.{CALL_ID}",
                "conference.event.{EVENT}.{CONFERENCE_ID}.{CALL_ID}",
                "conference.command.{CONFERENCE_ID}"
            ]
        );
        assert_eq!(of_family("fax")[0], "fax.status.{FAX_ID}");
        assert_eq!(of_family("fax")[1], "fax.object.doc_created");
        assert_eq!(of_family("object")[0], "object.doc_created.account");
        assert!(of_family("object").contains(&"doc_edited.*.user.{ID}".to_owned()));
        assert_eq!(of_family("object").len(), 60);
        assert_eq!(of_family("registration")[..], ["registration.success"]);
    }

    #[test]
    fn a_family_that_is_off_is_not_listed_and_a_long_list_is_not_written_out() {
        let options = FamilyOptions {
            extra_doc_types: (0..40).map(|number| format!("type_{number}")).collect(),
            ..FamilyOptions::default()
        };
        let mut families = of(&options);
        assert_eq!(families.switch_module("bh_fax", false), Some(true));
        let available = families.available();
        assert!(available.iter().all(|(name, _)| *name != "fax"));
        let object = available.iter().find(|(name, _)| *name == "object");
        let (_, bindings) = object.expect("it is on");
        assert_eq!(
            bindings[..3],
            [
                "object.doc_created.{TYPE}",
                "object.doc_edited.{TYPE}",
                "object.doc_deleted.{TYPE}"
            ]
        );
    }
}
