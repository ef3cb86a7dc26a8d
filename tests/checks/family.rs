//! An operator's own row of the table of binding families (`families` of the configuration).
//!
//! Input: one byte, which chooses as in the target `binding`; then the row's JSON; behind its last line end a client
//! binding.
//!
//! Invariants: a row that is refused is refused with the key's path and a reason; one that is taken is taken again
//! from what it is written as, and its client bindings, the one given and some made of its template, hold what the
//! target `binding` checks; one made of the row's own words is never refused but for its length.

use blackhole::account::Scope;
use blackhole::routing::families::{BindingError, Families, FamilyOptions, FamilySpec};
use blackhole::routing::month::ActiveMonths;

use super::binding::{Asked, DECEMBER, NEW_YEAR};

/// See the module's page.
pub fn check(data: &[u8]) -> String {
    let Some((&choice, rest)) = data.split_first() else {
        return "nothing".to_owned();
    };
    let Ok(text) = std::str::from_utf8(rest) else {
        return "not text".to_owned();
    };
    let (json, binding) = text.rsplit_once('\n').unwrap_or((text, ""));
    let Ok(row) = serde_json::from_str::<FamilySpec>(json) else {
        return "no row".to_owned();
    };
    let written = serde_json::to_string(&row).expect("a row is JSON");
    assert_eq!(row, serde_json::from_str(&written).expect("as written"));
    let families = match table_of(&row) {
        Ok(families) => families,
        Err(refusal) => {
            let (path, problem) = refusal.split_once(": ").expect("path and problem");
            assert!(path.starts_with("families[0].") && !problem.is_empty());
            return "refused".to_owned();
        }
    };
    let months = ActiveMonths::at(if choice & 4 == 0 { DECEMBER } else { NEW_YEAR });
    let rows = std::slice::from_ref(&row);
    let ask = |binding: &str, any_account, superduper| {
        let asked = Asked {
            binding,
            realm: Some("r 1.example.com"),
            any_account,
            superduper,
            months,
        };
        asked.check(&families, rows)
    };
    // What the platform's rows take before it is not the row's to answer for.
    let platforms = Families::new(&FamilyOptions::default()).expect("the platform's own");
    for (binding, is_plain) in bindings_of(&row) {
        for choice in 0..4 {
            let answer = ask(&binding, choice & 1 != 0, choice & 2 != 0);
            let is_the_rows = platforms
                .resolve(&binding, Scope::Any, Default::default())
                .is_err_and(|error| error == BindingError::NoSubscriptions);
            if is_plain && is_the_rows {
                let is_fine = matches!(answer, Ok(_) | Err(BindingError::InvalidFormat { .. }));
                assert!(is_fine, "{binding}: {answer:?}");
            }
        }
    }
    match ask(binding, choice & 1 != 0, choice & 2 != 0) {
        Ok(Scope::Any) => "a binding for every account".to_owned(),
        Ok(Scope::One(_)) => "a binding".to_owned(),
        Err(_) => "no binding".to_owned(),
    }
}

fn table_of(row: &FamilySpec) -> Result<Families, String> {
    let families = vec![row.clone()];
    Families::new(&FamilyOptions {
        families,
        ..FamilyOptions::default()
    })
    .map_err(|error| error.to_string())
}

/// Client bindings that the row's template has: with the first and with the last words of its lists, and whether they
/// hold no `*`; with `*`; and with words that must be escaped.
fn bindings_of(row: &FamilySpec) -> [(String, bool); 4] {
    let fill = |word_of: &dyn Fn(&[String]) -> String| {
        let mut words = Vec::new();
        // A rest's dots are no word ends.
        for word in row.binding.replace("...}", "}").split('.') {
            let name = word
                .strip_prefix('{')
                .and_then(|word| word.strip_suffix('}'));
            words.push(match name {
                None => word.to_owned(),
                Some(name) => word_of(row.words.get(name).map_or(&[], Vec::as_slice)),
            });
        }
        words.join(".")
    };
    let listed = |word: Option<&String>| word.map_or("x1", String::as_str).to_owned();
    let (first, last) = (
        fill(&|words| listed(words.first())),
        fill(&|words| listed(words.last())),
    );
    let is_plain = |binding: &str| !binding.split('.').any(|word| word == "*");
    [
        (first.clone(), is_plain(&first)),
        (last.clone(), is_plain(&last)),
        (fill(&|_| "*".to_owned()), false),
        (fill(&|_| "é x@1".to_owned()), false),
    ]
}
