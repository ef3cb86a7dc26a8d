//! Account ids (PROTOCOL 1): 32 hex characters, kept as 16 bytes, so that two spellings of one id are one value.

use std::fmt;

/// A tenant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId([u8; 16]);

impl AccountId {
    /// Reads exactly 32 hex characters of either case; anything else is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        let mut id = [0; 16];
        if text.len() != 32 {
            return None;
        }
        for (byte, pair) in id.iter_mut().zip(text.chunks_exact(2)) {
            let [high, low] = pair else { return None };
            *byte = (hex_digit(*high)? << 4) | hex_digit(*low)?;
        }
        Some(Self(id))
    }

    /// The 32 lower-case hex characters.
    #[must_use]
    pub fn to_hex(self) -> [u8; 32] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = [0; 32];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        hex
    }

    /// The 16 bytes themselves.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The account of 16 bytes that [`AccountId::bytes`] gave.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Reads an account's word of a routing key: the one spelling that AMQP bindings have, lower case.
    #[must_use]
    pub fn parse_word(word: &str) -> Option<Self> {
        Self::parse(word).filter(|_| !word.bytes().any(|byte| byte.is_ascii_uppercase()))
    }

    /// Reads the `DB` word of a routing key (PROTOCOL 6), `account%2Fab%2Fcd%2F…`, as [`AccountId::push_db`]
    /// writes it; anything else is `None`.
    #[must_use]
    pub fn parse_db(word: &str) -> Option<Self> {
        let (first, rest) = word.strip_prefix("account%2F")?.split_once("%2F")?;
        let (second, rest) = rest.split_once("%2F")?;
        if first.len() != 2 || second.len() != 2 || rest.len() != 28 {
            return None;
        }
        let mut text = [0; 32];
        text[..2].copy_from_slice(first.as_bytes());
        text[2..4].copy_from_slice(second.as_bytes());
        text[4..].copy_from_slice(rest.as_bytes());
        Self::parse_word(std::str::from_utf8(&text).ok()?)
    }

    /// Appends the account's 32 lower-case hex characters.
    pub fn push_hex(self, out: &mut String) {
        out.extend(self.to_hex().map(char::from));
    }

    /// Appends the account's database as publishers write it into keys (PROTOCOL 6, `DB`).
    pub fn push_db(self, out: &mut String) {
        let hex = self.to_hex().map(char::from);
        out.push_str("account%2F");
        out.extend(&hex[..2]);
        out.push_str("%2F");
        out.extend(&hex[2..4]);
        out.push_str("%2F");
        out.extend(&hex[4..]);
    }
}

fn hex_digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        b'A'..=b'F' => Some(character - b'A' + 10),
        _ => None,
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The account of a subscription: one, or `*`, which only a superduper admin may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Events of this account only.
    One(AccountId),
    /// Events of every account, and those that name none.
    Any,
}

impl Scope {
    /// The account, when it is one.
    #[must_use]
    pub fn account(self) -> Option<AccountId> {
        match self {
            Self::One(account) => Some(account),
            Self::Any => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_id_is_exactly_32_hex_characters_of_either_case() {
        let id = AccountId::parse("4b8c6fec4b2597882c0390202d195419").expect("32 hex characters");
        assert_eq!(id.to_string(), "4b8c6fec4b2597882c0390202d195419");
        assert_eq!(&id.to_hex(), b"4b8c6fec4b2597882c0390202d195419");
        assert_eq!(
            AccountId::parse("4B8C6FEC4B2597882C0390202D195419"),
            Some(id)
        );
        for wrong in [
            "",
            "*",
            "4b8c",
            "4b8c6fec4b2597882c0390202d19541",
            "4b8c6fec4b2597882c0390202d1954190",
            "4b8c6fec4b2597882c0390202d19541g",
            "ééééééééééééééé4",
        ] {
            assert_eq!(AccountId::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_database_word_is_read_back_and_only_in_the_spelling_of_the_keys() {
        let id = AccountId::parse("4b8c6fec4b2597882c0390202d195419").expect("32 hex characters");
        let mut db = String::new();
        id.push_db(&mut db);
        assert_eq!(db, "account%2F4b%2F8c%2F6fec4b2597882c0390202d195419");
        assert_eq!(AccountId::parse_db(&db), Some(id));
        for wrong in [
            "4b8c6fec4b2597882c0390202d195419",
            "account%2f4b%2f8c%2f6fec4b2597882c0390202d195419",
            "account%2F4B%2F8C%2F6fec4b2597882c0390202d195419",
            "account%2F4b8%2Fc%2F6fec4b2597882c0390202d195419",
            "account%2F4b%2F8c%2F6fec4b2597882c0390202d195419-202611",
            "account%2F4b%2F8c%2F6fec4b2597882c0390202d19541",
            "account%2F4b%2F8c%2F6fec4b2597882c0390202d1954é",
            "account%2F*%2F8c%2F6fec4b2597882c0390202d195419",
        ] {
            assert_eq!(AccountId::parse_db(wrong), None, "{wrong}");
        }
        assert_eq!(
            AccountId::parse_word("4b8c6fec4b2597882c0390202d195419"),
            Some(id)
        );
        assert_eq!(
            AccountId::parse_word("4B8C6FEC4B2597882C0390202D195419"),
            None
        );
    }
}
