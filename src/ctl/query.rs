//! Paths and queries of requests.

use std::fmt::Write;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All but what is nowhere special in a path or a query (RFC 3986 section 2.3), and the colon of session ids.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b':');

/// One segment of a path.
pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// A path and its query, which grows.
#[derive(Clone, Debug)]
pub(super) struct Query {
    text: String,
    mark: char,
}

impl Query {
    pub(super) fn new(path: impl Into<String>) -> Self {
        Self {
            text: path.into(),
            mark: '?',
        }
    }

    /// Adds a value, if there is one.
    pub(super) fn with(mut self, name: &str, value: Option<impl ToString>) -> Self {
        if let Some(value) = value {
            let value = segment(&value.to_string());
            // Writing to a String cannot fail.
            let _ = write!(self.text, "{}{name}={value}", self.mark);
            self.mark = '&';
        }
        self
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded_and_what_is_missing_is_left_out() {
        let none: Option<u8> = None;
        let query = Query::new("/v2/sessions").with("ip", none);
        assert_eq!(query.as_str(), "/v2/sessions");
        let query = query
            .with("binding", Some("call.*.a+b&c=d#é"))
            .with("limit", Some(7));
        let expected = "/v2/sessions?binding=call.%2A.a%2Bb%26c%3Dd%23%C3%A9&limit=7";
        assert_eq!(query.as_str(), expected);
        assert_eq!(segment("[::1]:5"), "%5B::1%5D:5");
        assert_eq!(segment("../x"), "..%2Fx");
    }
}
