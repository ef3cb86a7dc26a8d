//! The client binding that is likely meant by one that is refused, for a tool that speaks to people.
//!
//! Only the platform's own families are known here: a server may have others, and may have switched some off.

use super::spec::{FamilyOptions, FamilySpec, platform_families};
use crate::closest::is_near;
use crate::routing::words::{WILDCARD, WILDCARD_REST};

/// Bytes of a binding that is compared; a longer one has no suggestion.
const COMPARED_BYTES_MAX: usize = 255;

/// Returns the binding of a platform's family that is nearest to `binding`, in as many of the client's own words as fit.
/// `None`: `binding` is one already, or none is near. Cost: the product of the lengths, for each row of the table.
#[must_use]
pub fn nearest_binding(binding: &str) -> Option<String> {
    if binding.len() > COMPARED_BYTES_MAX {
        return None;
    }
    // A wildcard of AMQP that is refused stands for the one that is not.
    let lower = binding
        .to_ascii_lowercase()
        .replace(WILDCARD_REST, WILDCARD);
    let (steps, nearest) = platform_families(&FamilyOptions::default())
        .iter()
        .map(|row| {
            let candidate = fitted(row, binding);
            let steps = strsim::levenshtein(&lower, &candidate.to_ascii_lowercase());
            (steps, candidate)
        })
        .min()?;
    (nearest != binding && is_near(steps, &nearest)).then_some(nearest)
}

/// The binding of `row` that has the words of `binding` where a word may be any, and else the nearest word of its own.
fn fitted(row: &FamilySpec, binding: &str) -> String {
    let mut words = binding.split('.');
    let mut fitted = Vec::new();
    let (places, has_rest) = match row.binding.rsplit_once(".{") {
        Some((places, name)) if name.ends_with("...}") => (places, true),
        _ => (&*row.binding, false),
    };
    for place in places.split('.') {
        let name = place
            .strip_prefix('{')
            .and_then(|name| name.strip_suffix('}'));
        let word = match name {
            None => {
                words.next();
                place.to_owned()
            }
            Some(name) => {
                let word = words.next().filter(|word| is_good(word));
                match (word, row.words.get(name)) {
                    (None, _) if row.required.contains_key(name) => name.to_ascii_uppercase(),
                    (None, _) => WILDCARD.to_owned(),
                    (Some(word), None) => word.to_owned(),
                    (Some(word), Some(list)) => nearest_word(word, list),
                }
            }
        };
        fitted.push(word);
    }
    if has_rest {
        let rest: Vec<&str> = words.filter(|word| is_good(word)).collect();
        fitted.push(if rest.is_empty() {
            WILDCARD.to_owned()
        } else {
            rest.join(".")
        });
    }
    fitted.join(".")
}

/// Whether a client's word may stand in a binding.
fn is_good(word: &str) -> bool {
    !word.is_empty() && word != WILDCARD_REST
}

fn nearest_word(word: &str, list: &[String]) -> String {
    if word == WILDCARD {
        return word.to_owned();
    }
    let steps = |known: &&String| {
        strsim::levenshtein(&word.to_ascii_lowercase(), &known.to_ascii_lowercase())
    };
    list.iter()
        .filter(|known| *known != WILDCARD)
        .min_by_key(steps)
        .cloned()
        .unwrap_or_else(|| WILDCARD.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_binding_that_was_meant() {
        for (binding, meant) in [
            ("call.CHANNEL_CRATE.*", Some("call.CHANNEL_CREATE.*")),
            ("cal.CHANNEL_CREATE.*", Some("call.CHANNEL_CREATE.*")),
            ("call.channel_create.*", Some("call.CHANNEL_CREATE.*")),
            (
                "call.CHANNEL_ANSWR.id.with.dots",
                Some("call.CHANNEL_ANSWER.id.with.dots"),
            ),
            ("call.CHANNEL_CREATE", Some("call.CHANNEL_CREATE.*")),
            ("call.*", Some("call.*.*")),
            ("call.#", Some("call.*.*")),
            ("object.doc_create.user", Some("object.doc_created.user")),
            ("doc_created.*.usr.*", Some("doc_created.*.user.*")),
            ("registration.succes", Some("registration.success")),
            ("fax.object.doc_edit", Some("fax.object.doc_edited")),
            ("presense.dialog.*", Some("presence.dialog.*")),
            // These are right as they are.
            ("call.*.*", None),
            ("object.*.*", None),
            ("presence.dialog.call@host", None),
            ("conference.command.42", None),
            // And these are like nothing.
            ("weather.today", None),
            ("", None),
            (&"call.".repeat(80), None),
        ] {
            assert_eq!(nearest_binding(binding).as_deref(), meant, "{binding}");
        }
    }
}
