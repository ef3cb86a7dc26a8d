//! The fixed documents of the admin address: what is in the binary and the same for everybody (PROTOCOL 8). None of them
//! holds a secret, so none needs the admin token.
//!
//! Invariant: each has a path of its own, and its ETag changes with it.

use std::fmt;
use std::sync::LazyLock;

use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};

use crate::console;
use crate::schemas;

/// The policy of documents that are no pages: a browser that is made to show one does nothing with it.
const NO_PAGE: &str = "default-src 'none'; frame-ancestors 'none'; sandbox";

/// A document.
#[derive(Clone)]
pub struct Document {
    /// Where it is.
    pub path: &'static str,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// The whole of it.
    pub body: &'static str,
    /// `ETag`, with its quotes.
    pub etag: String,
    /// `Content-Security-Policy`.
    pub policy: String,
}

/// All documents, hashed by [`prepare`].
static DOCUMENTS: LazyLock<Vec<Document>> = LazyLock::new(|| {
    let page = Document::new(
        "/",
        "text/html; charset=utf-8",
        console::PAGE,
        console::policy(),
    );
    let files = schemas::FILES.into_iter();
    let files = files.map(|(path, kind, body)| Document::new(path, kind, body, NO_PAGE.to_owned()));
    [page].into_iter().chain(files).collect()
});

/// Hashes them, which takes some milliseconds: before the loop begins, so that none of its turns does.
pub fn prepare() {
    LazyLock::force(&DOCUMENTS);
}

/// The document at this path, if there is one.
#[must_use]
pub fn find(path: &str) -> Option<&'static Document> {
    DOCUMENTS.iter().find(|document| document.path == path)
}

impl Document {
    fn new(
        path: &'static str,
        content_type: &'static str,
        body: &'static str,
        policy: String,
    ) -> Self {
        let hash = digest(&SHA256, body.as_bytes());
        let etag = format!("\"{}\"", HEXLOWER.encode(hash.as_ref()));
        Self {
            path,
            content_type,
            body,
            etag,
            policy,
        }
    }

    /// Whether an asker has it already: the value of `If-None-Match` names it (RFC 9110 section 13.1.2).
    #[must_use]
    pub fn is_named_by(&self, if_none_match: &str) -> bool {
        let is_ours = |tag: &str| tag.trim().trim_start_matches("W/") == self.etag;
        if_none_match.trim() == "*" || if_none_match.split(',').any(is_ours)
    }

    /// The fields of an answer with it, complete lines.
    #[must_use]
    pub fn headers(&self) -> String {
        format!(
            "Cache-Control: no-cache\r\nETag: {}\r\nContent-Security-Policy: {}\r\nX-Content-Type-Options: nosniff\r\n\
             Referrer-Policy: no-referrer\r\nCross-Origin-Opener-Policy: same-origin\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\n",
            self.etag, self.policy,
        )
    }
}

impl fmt::Debug for Document {
    /// Shows where it is, not what it says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Document").field(&self.path).finish()
    }
}

impl PartialEq for Document {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for Document {}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_document_is_found_at_its_path_and_its_headers_are_whole_lines() {
        let paths: HashSet<_> = DOCUMENTS.iter().map(|document| document.path).collect();
        assert_eq!(paths.len(), DOCUMENTS.len());
        for document in DOCUMENTS.iter() {
            assert_eq!(find(document.path), Some(document));
            assert!(!document.body.is_empty());
            let headers = document.headers();
            assert!(headers.is_ascii() && headers.ends_with("\r\n"));
            for line in headers.trim_end().split("\r\n") {
                let (name, value) = line.split_once(": ").expect(line);
                assert!(!name.is_empty() && !value.is_empty() && !value.contains(['\r', '\n']));
            }
        }
        assert_eq!(find("/nothing"), None);
        assert_eq!(find(""), None);
    }

    #[test]
    fn an_etag_is_matched_weakly_and_in_a_list() {
        let document = find("/").expect("the console");
        let tag = document.etag.as_str();
        for (value, expected) in [
            (tag.to_owned(), true),
            (format!("W/{tag}"), true),
            (format!("\"a\", {tag}"), true),
            ("*".to_owned(), true),
            ("\"a\"".to_owned(), false),
            (tag.trim_matches('"').to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(document.is_named_by(&value), expected, "{value}");
        }
    }
}
