//! Commands and paths that are numbered by session.
//!
//! | in the template | becomes |
//! |---|---|
//! | `{n}` | the session's number, from 1 |
//! | `{hex}` | the same as 12 hex digits: the end of a GUID |
//! | `{account}` | 32 hex digits of `(n - 1) % accounts + 1`: the ids of the demo source's accounts |
//! | `{token}` | the auth token |
//!
//! Any other brace stays, so JSON needs no escaping.

/// A text with places for the session's number, account and auth token.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    text: String,
    accounts: u32,
}

impl Template {
    /// `text` as above with the auth token filled in; `accounts`: at least 1.
    #[must_use]
    pub(crate) fn new(text: &str, accounts: u32, auth_token: &str) -> Self {
        Self {
            text: text.replace("{token}", auth_token),
            accounts: accounts.max(1),
        }
    }

    /// The text of session number `n`, from 1. Linear in the text.
    #[must_use]
    pub(crate) fn fill(&self, n: usize) -> String {
        let account = n.saturating_sub(1) % self.accounts as usize + 1;
        self.text
            .replace("{account}", &format!("{account:032x}"))
            .replace("{n}", &n.to_string())
            .replace("{hex}", &format!("{n:012x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled_and_json_braces_stay() {
        let template = Template::new(
            r#"{"a":{"n":"{n}","t":"{token}","id":"{account}","g":"0-{hex}"}}"#,
            10,
            "secret",
        );
        for (n, account) in [(1, "1"), (10, "a"), (11, "1"), (12, "2")] {
            let expected = format!(
                r#"{{"a":{{"n":"{n}","t":"secret","id":"{account:0>32}","g":"0-{n:012x}"}}}}"#
            );
            assert_eq!(template.fill(n), expected);
        }
    }
}
