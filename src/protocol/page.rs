//! Pages of the admin address as JSON (PROTOCOL 8): the platform's envelope, and the sessions of `GET /v2/sessions`.
//!
//! ```json
//! {"data":[…],"page_size":2,"next_start_key":"17","status":"success"}
//! ```
//!
//! Invariant: nothing here is ever handed a token.

use std::io::Write as _;

use crate::account::AccountId;
use crate::json::write_text;

/// How a list begins.
const LIST: &str = r#"{"data":["#;

/// A page that is being written: a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    out: Vec<u8>,
    items: usize,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            out: LIST.as_bytes().to_vec(),
            items: 0,
        }
    }
}

impl Page {
    /// Appends an item, as `write` writes it.
    pub fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.items > 0 {
            self.out.push(b',');
        }
        self.items += 1;
        write(&mut self.out);
    }

    /// How many items it has.
    #[must_use]
    pub fn items(&self) -> usize {
        self.items
    }

    /// How many bytes are written.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.out.len()
    }

    /// Its only item without a list around it; `None`: it has none.
    #[must_use]
    pub fn finish_one(self) -> Option<Vec<u8>> {
        let item = self.out.strip_prefix(LIST.as_bytes())?;
        (self.items > 0).then(|| whole(|out| out.extend_from_slice(item)))
    }

    /// The whole page. `next`: where the next one begins, if there is one.
    #[must_use]
    pub fn finish(mut self, next: Option<&str>) -> Vec<u8> {
        self.out.push(b']');
        write_number(&mut self.out, "page_size", self.items as u64);
        if let Some(next) = next {
            self.out.extend_from_slice(br#","next_start_key":"#);
            write_text(&mut self.out, next);
        }
        end_well(&mut self.out);
        self.out
    }
}

/// What is no list: `data` is what `write` writes.
#[must_use]
pub fn whole(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = br#"{"data":"#.to_vec();
    write(&mut out);
    end_well(&mut out);
    out
}

fn end_well(out: &mut Vec<u8>) {
    out.extend_from_slice(br#","status":"success"}"#);
}

/// What `GET /v2/sessions` tells of one session.
#[derive(Debug)]
pub struct SessionRow<'a, B> {
    /// `IP:PORT` of its peer.
    pub id: &'a str,
    /// The account that its identity belongs to; `None`: it has no identity, or one of no account.
    pub account: Option<AccountId>,
    /// The IP of its peer.
    pub ip: &'a str,
    /// How long ago it connected.
    pub age_seconds: u64,
    /// How long ago its peer last completed a frame that was no answer to a ping.
    pub idle_seconds: u64,
    /// Its client bindings, in the order in which it subscribed.
    pub bindings: B,
    /// Frames that were queued for it.
    pub frames: u64,
    /// Bytes that its peer's system has acknowledged, the response to its handshake included; `None`: ours cannot say.
    pub bytes: Option<u64>,
    /// Bytes that wait in its outbox.
    pub outbox_bytes: u64,
    /// Events that were left out because it was slow.
    pub dropped: u64,
    /// The name that its client gave it.
    pub name: Option<&'a str>,
    /// The version of TLS that the server speaks with it; `None`: it came by the plain port.
    pub tls: Option<&'a str>,
    /// Whether permessage-deflate was agreed on.
    pub is_compressed: bool,
}

impl<'b, B: IntoIterator<Item = &'b str>> SessionRow<'_, B> {
    /// Appends the object. Linear in what it writes.
    pub fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"id":"#);
        write_text(out, self.id);
        out.extend_from_slice(br#","account_id":"#);
        match self.account {
            Some(account) => write_all(out, format_args!("\"{account}\"")),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(br#","ip":"#);
        write_text(out, self.ip);
        write_number(out, "age_seconds", self.age_seconds);
        write_number(out, "idle_seconds", self.idle_seconds);
        out.extend_from_slice(br#","bindings":"#);
        write_texts(out, self.bindings);
        write_number(out, "frames", self.frames);
        match self.bytes {
            Some(bytes) => write_number(out, "bytes", bytes),
            None => out.extend_from_slice(br#","bytes":null"#),
        }
        write_number(out, "outbox_bytes", self.outbox_bytes);
        write_number(out, "dropped", self.dropped);
        write_text_or_null(out, "name", self.name);
        write_text_or_null(out, "tls", self.tls);
        write_all(
            out,
            format_args!(",\"compression\":{}}}", self.is_compressed),
        );
    }
}

/// Appends a list of texts.
pub(super) fn write_texts<'b>(out: &mut Vec<u8>, texts: impl IntoIterator<Item = &'b str>) {
    out.push(b'[');
    for (index, text) in texts.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(out, text);
    }
    out.push(b']');
}

/// Appends the available bindings by family, in the order of `bindings`, whose families stand together.
pub fn write_bindings<'b>(
    out: &mut Vec<u8>,
    bindings: impl IntoIterator<Item = (&'b str, Vec<String>)>,
) {
    out.push(b'{');
    for (index, (family, bindings)) in bindings.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(out, family);
        out.push(b':');
        write_texts(out, bindings.iter().map(String::as_str));
    }
    out.push(b'}');
}

fn write_number(out: &mut Vec<u8>, name: &str, number: u64) {
    write_all(out, format_args!(r#","{name}":{number}"#));
}

fn write_text_or_null(out: &mut Vec<u8>, name: &str, text: Option<&str>) {
    write_all(out, format_args!(r#","{name}":"#));
    match text {
        Some(text) => write_text(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

fn write_all(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // A vector takes all.
    let _written = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(page: &[u8]) -> Value {
        serde_json::from_slice(page).expect("JSON")
    }

    #[test]
    fn a_page_is_an_envelope_around_its_items() {
        let expected = json!({"data": [], "page_size": 0, "status": "success"});
        assert_eq!(read(&Page::default().finish(None)), expected);
        let mut page = Page::default();
        page.add(|out| out.extend_from_slice(b"1"));
        page.add(|out| out.extend_from_slice(b"{}"));
        assert_eq!((page.items(), page.bytes()), (2, r#"{"data":[1,{}"#.len()));
        let expected =
            json!({"data": [1, {}], "page_size": 2, "next_start_key": "a\"b", "status": "success"});
        assert_eq!(read(&page.finish(Some("a\"b"))), expected);
        let mut page = Page::default();
        assert_eq!(page.clone().finish_one(), None);
        page.add(|out| out.extend_from_slice(b"7"));
        let one = page.finish_one().expect("it has one");
        assert_eq!(read(&one), json!({"data": 7, "status": "success"}));
    }

    #[test]
    fn a_row_has_all_that_there_is_to_tell_and_null_for_what_is_not_known() {
        let account = AccountId::parse("4B8C6FEC4b2597882c0390202d195419").expect("an id");
        let row = |account, bytes, name, tls: Option<&str>| {
            let mut out = Vec::new();
            let row = SessionRow {
                id: "[2001:db8::1]:5",
                account,
                ip: "2001:db8::1",
                age_seconds: 1,
                idle_seconds: 2,
                bindings: ["a.*", "b\"."],
                frames: 1 << 40,
                bytes,
                outbox_bytes: 4,
                dropped: 5,
                name,
                tls,
                is_compressed: tls.is_some(),
            };
            row.write(&mut out);
            read(&out)
        };
        let expected = json!({
            "id": "[2001:db8::1]:5", "account_id": "4b8c6fec4b2597882c0390202d195419", "ip": "2001:db8::1",
            "age_seconds": 1, "idle_seconds": 2, "bindings": ["a.*", "b\"."], "frames": 1_u64 << 40, "bytes": 3,
            "outbox_bytes": 4, "dropped": 5, "name": "line\nbreak", "tls": "1.3",
            "compression": true
        });
        let full = row(Some(account), Some(3), Some("line\nbreak"), Some("1.3"));
        assert_eq!(full, expected);
        let bare = row(None, None, None, None);
        for member in ["account_id", "bytes", "name", "tls"] {
            assert_eq!(bare[member], Value::Null, "{member}");
        }
        assert_eq!(bare["compression"], false);
        assert_eq!(bare.as_object().expect("an object").len(), 13);
    }

    #[test]
    fn bindings_are_listed_by_family() {
        let mut out = Vec::new();
        let call = vec!["call.A.{CALL_ID}".to_owned(), "call.B.{CALL_ID}".to_owned()];
        write_bindings(&mut out, [("call", call), ("fax", Vec::new())]);
        let expected = json!({"call": ["call.A.{CALL_ID}", "call.B.{CALL_ID}"], "fax": []});
        assert_eq!(read(&out), expected);
    }
}
