//! Foreign text on a terminal.

use std::borrow::Cow;

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
pub(crate) fn is_harmful(character: char) -> bool {
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
}
