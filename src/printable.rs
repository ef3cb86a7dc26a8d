//! Foreign text on a terminal.

use std::borrow::Cow;
use std::fmt::Write;

/// `text` with every character that a terminal would act upon instead of showing it written as an escape: control
/// characters, and those that turn the direction of writing or have no width. Clients choose
/// names of sessions, and events hold what anybody typed. Linear, and without a copy where there is nothing to escape.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_harmful(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    Cow::Owned(out)
}

/// Whether a terminal would act upon the character instead of showing it.
fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// A JSON document, which escapes only what JSON must, with the rest of the control characters escaped too. Line ends
/// stay: they stand between its members.
pub(crate) fn printable_json(document: &str) -> Cow<'_, str> {
    let is_harmful = |character| character != '\n' && is_harmful(character);
    if !document.contains(is_harmful) {
        return Cow::Borrowed(document);
    }
    let mut out = String::with_capacity(document.len() + 16);
    for character in document.chars() {
        if is_harmful(character) {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(character);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_would_act_upon_is_left() {
        for (text, expected) in [
            ("Anna's phone", "Anna's phone"),
            ("Zoë 電話", "Zoë 電話"),
            ("\x1b[2J\x1b]0;owned\x07", "\\u{1b}[2J\\u{1b}]0;owned\\u{7}"),
            ("a\r\nb\tc", "a\\r\\nb\\tc"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("abc\u{202e}txt.exe", "abc\\u{202e}txt.exe"),
            ("\u{7f}", "\\u{7f}"),
        ] {
            assert_eq!(printable(text), expected);
        }
    }

    #[test]
    fn a_document_says_the_same_without_control_characters() {
        let value = serde_json::json!({"name": "\u{9b}2J\u{7f}\u{202e}\u{e0041}\n é"});
        let written = serde_json::to_string_pretty(&value).expect("a document");
        let printable = printable_json(&written);
        assert!(
            !printable.contains(|character| character != '\n' && is_harmful(character)),
            "{printable}"
        );
        let read: serde_json::Value = serde_json::from_str(&printable).expect("a document");
        assert_eq!(read, value);
    }
}
