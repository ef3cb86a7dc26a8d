//! What several modules need of JSON beside `serde_json`: the members of an object in the order in which they were
//! written, duplicates included, so that the config and the token file can refuse a duplicate and name an entry by its
//! position; and the one writer of a JSON string.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// The members of one JSON object, in order, duplicates included.
pub(crate) struct Members<T>(pub(crate) Vec<(String, T)>);

impl<T> Members<T> {
    /// The first key that stands twice, if one does, as its position from 0. Cost O(n log n).
    pub(crate) fn repeated(&self) -> Option<usize> {
        let mut order: Vec<usize> = (0..self.0.len()).collect();
        let key = |index: &usize| self.0.get(*index).map(|(key, _)| key);
        order.sort_by_key(|index| (key(index), *index));
        order
            .windows(2)
            .filter(|pair| key(&pair[0]) == key(&pair[1]))
            .map(|pair| pair[1])
            .min()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Members<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Members<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

/// What is wrong with text that is not the JSON expected, with its place and without any of its content: the text
/// may hold tokens. `expected` says what the whole should have been.
pub(crate) fn problem(error: &serde_json::Error, expected: &str) -> String {
    match error.classify() {
        serde_json::error::Category::Syntax | serde_json::error::Category::Eof => {
            format!("not JSON: {error}")
        }
        serde_json::error::Category::Data | serde_json::error::Category::Io => {
            format!(
                "line {} column {}: expected {expected}",
                error.line(),
                error.column()
            )
        }
    }
}

/// Appends `text` as a JSON string, in quotes and escaped.
pub(crate) fn write_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string is always JSON, and a Vec takes every write");
}

/// White space between JSON tokens (RFC 8259 section 2), which has no form feed.
pub(crate) fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_their_order_and_a_repeated_key_is_found() {
        let members: Members<u8> =
            serde_json::from_str(r#"{"b": 1, "a": 2, "c": 3}"#).expect("an object");
        assert_eq!(
            members.0,
            [("b".into(), 1), ("a".into(), 2), ("c".into(), 3)]
        );
        assert_eq!(members.repeated(), None);
        let members: Members<u8> =
            serde_json::from_str(r#"{"b": 1, "a": 2, "b": 3, "a": 4}"#).expect("an object");
        assert_eq!(members.repeated(), Some(2));
    }

    #[test]
    fn a_problem_names_the_place_and_never_the_content() {
        for text in [
            r#""secret""#,
            r#"["secret"]"#,
            r#"{"secret": secret}"#,
            r#"{"secret": "x" "secret": 1}"#,
            r#"{"secret"#,
        ] {
            let error = serde_json::from_str::<Members<serde_json::Value>>(text)
                .err()
                .expect(text);
            let problem = problem(&error, "a JSON object");
            assert!(problem.contains("line 1 column "), "{problem}");
            assert!(!problem.contains("secret"), "{problem}");
        }
    }
}
