//! The words of keys: splitting, and the escaping that the platform's publishers apply (PROTOCOL 6).
//!
//! Letters, digits, `-`, `~` and `_` stay, a space becomes `+`, any other byte becomes `%XX` in upper case; `*`
//! alone and `#` alone stay.
//!
//! Invariants: two words are equal exactly when their escaped forms are; an escaped word holds no dot, and a wildcard
//! only if it is one. A client's word is kept as it was sent, and escaped when a key is rendered. The words of an
//! event's key are escaped already, and stay so.

/// Stands for exactly one word, in a client binding and in an AMQP binding key.
pub const WILDCARD: &str = "*";

/// Stands for any number of words in an AMQP binding key. Refused in a client binding.
pub const WILDCARD_REST: &str = "#";

/// Words that a key of any binding family may have. An event whose key has more words matches nothing.
pub const WORDS_MAX: usize = 16;

/// Whether publishers leave this byte as it is.
#[must_use]
pub fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'~' | b'_')
}

/// The bytes of the escaped form of `word`, all of them ASCII. No allocation.
fn escaped(word: &str) -> impl Iterator<Item = u8> + '_ {
    let stays = word == WILDCARD || word == WILDCARD_REST;
    word.bytes().flat_map(move |byte| {
        let (form, len) = match byte {
            _ if stays || is_plain(byte) => ([byte, 0, 0], 1),
            b' ' => ([b'+', 0, 0], 1),
            _ => ([b'%', hex_digit(byte >> 4), hex_digit(byte & 15)], 3),
        };
        form.into_iter().take(len)
    })
}

fn hex_digit(half: u8) -> u8 {
    match half {
        0..10 => b'0' + half,
        _ => b'A' - 10 + half,
    }
}

/// Appends the escaped form of `word`.
///
/// ```
/// use blackhole::routing::words::escape_into;
///
/// let mut key = "call.CHANNEL_CREATE.".to_owned();
/// escape_into("abc@1.2.3.4", &mut key);
/// assert_eq!(key, "call.CHANNEL_CREATE.abc%401%2E2%2E3%2E4");
/// ```
pub fn escape_into(word: &str, out: &mut String) {
    out.extend(escaped(word).map(char::from));
}

/// Whether `escaped_word` is the escaped form of `word`. No allocation; linear in the shorter.
#[must_use]
pub fn is_escaped_form(word: &str, escaped_word: &str) -> bool {
    escaped(word).eq(escaped_word.bytes())
}

/// Splits `key` at its dots into `words`, and returns those; `None` when there are more than [`WORDS_MAX`]. An empty
/// key is one empty word.
pub(super) fn split<'w, 'k>(
    key: &'k str,
    words: &'w mut [&'k str; WORDS_MAX],
) -> Option<&'w [&'k str]> {
    let mut count = 0;
    for word in key.split('.') {
        *words.get_mut(count)? = word;
        count += 1;
    }
    words.get(..count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_escaped_as_the_publishers_do() {
        for (word, expected) in [
            ("", ""),
            ("abcXYZ019-~_", "abcXYZ019-~_"),
            ("abc@1.2.3.4", "abc%401%2E2%2E3%2E4"),
            ("a b", "a+b"),
            ("a+b", "a%2Bb"),
            ("*", "*"),
            ("#", "#"),
            ("**", "%2A%2A"),
            ("a*", "a%2A"),
            ("a#", "a%23"),
            ("a/b%2F", "a%2Fb%252F"),
            ("é", "%C3%A9"),
            ("\u{0}", "%00"),
        ] {
            let mut out = String::new();
            escape_into(word, &mut out);
            assert_eq!(out, expected, "{word:?}");
            assert!(is_escaped_form(word, expected), "{word:?}");
        }
    }

    #[test]
    fn a_word_equals_no_other_words_escaped_form() {
        for (word, other) in [
            ("a", ""),
            ("", "a"),
            ("a", "ab"),
            ("ab", "a"),
            ("a.b", "a.b"),
            ("a.b", "a%2eb"),
            ("a b", "a b"),
        ] {
            assert!(!is_escaped_form(word, other), "{word:?} {other:?}");
        }
    }

    #[test]
    fn a_key_splits_at_every_dot_up_to_the_bound() {
        for (key, expected) in [
            ("", vec![""]),
            ("a", vec!["a"]),
            ("a..b", vec!["a", "", "b"]),
            (".", vec!["", ""]),
        ] {
            let mut words = [""; WORDS_MAX];
            let words = split(key, &mut words).expect("few words");
            assert_eq!(words, expected, "{key:?}");
        }
        let (longest, too_long) = (["a"; WORDS_MAX].join("."), ["a"; WORDS_MAX + 1].join("."));
        let mut words = [""; WORDS_MAX];
        let words = split(&longest, &mut words).expect("no more than the bound");
        assert_eq!(words.len(), WORDS_MAX);
        assert_eq!(split(&too_long, &mut [""; WORDS_MAX]), None);
    }
}
