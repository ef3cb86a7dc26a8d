//! An entry of `allowed_origins` (PROTOCOL 9).
//!
//! Invariant: an entry is kept as a browser writes the same origin in its `Origin` header (RFC 6454 section 6.2): in
//! lower case, without the default port, a host name in ASCII, an IPv6 address in its shortest form. So an entry is
//! compared with a header as it is, and an entry that no browser would send is refused.

use url::Host;

use super::values::Text;

/// An origin as a browser writes it, or `null`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin(pub(crate) String);

impl Text for Origin {
    const EXPECTED: &str = "an origin as browsers send it, scheme://host or scheme://host:port and nothing behind it, or null";

    fn read(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("null") {
            return Some(Self("null".to_owned()));
        }
        as_browsers_write(text).map(Self)
    }

    fn hint(text: &str) -> Option<&'static str> {
        (text == "*").then_some("an empty list allows every page")
    }

    fn print(&self) -> String {
        self.0.clone()
    }
}

fn as_browsers_write(text: &str) -> Option<String> {
    let (scheme, authority) = text.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    // An origin is that of the page, not of the address that the page connects to; and that of a file is null.
    if !is_scheme || matches!(&*scheme, "ws" | "wss" | "file") {
        return None;
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    };
    // The parser takes both for parts of a host, and no header contains them.
    if host.contains(['*', '%']) || text.contains(char::is_whitespace) {
        return None;
    }
    let host = Host::parse(host).ok()?;
    let port = match port {
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(port.parse::<u16>().ok().filter(|port| *port > 0)?)
        }
        Some(_) => return None,
        None => None,
    };
    Some(match (&*scheme, port) {
        ("http", Some(80)) | ("https", Some(443)) | (_, None) => format!("{scheme}://{host}"),
        (_, Some(port)) => format!("{scheme}://{host}:{port}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_kept_as_a_browser_writes_it() {
        for (entry, kept) in [
            ("null", "null"),
            ("NULL", "null"),
            ("https://ui.example.com", "https://ui.example.com"),
            ("HTTPS://UI.Example.COM", "https://ui.example.com"),
            ("https://ui.example.com:443", "https://ui.example.com"),
            ("http://ui.example.com:80", "http://ui.example.com"),
            ("http://ui.example.com:443", "http://ui.example.com:443"),
            (
                "https://ui.example.com:08443",
                "https://ui.example.com:8443",
            ),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://[::1]", "http://[::1]"),
            ("https://[2001:DB8:0:0::1]:443", "https://[2001:db8::1]"),
            ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
            ("https://bücher.example", "https://xn--bcher-kva.example"),
            (
                "https://xn--bcher-kva.example",
                "https://xn--bcher-kva.example",
            ),
            ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh"),
            ("capacitor://localhost", "capacitor://localhost"),
        ] {
            let read = Origin::read(entry).map(|origin| origin.print());
            assert_eq!(read.as_deref(), Some(kept), "{entry}");
        }
    }

    #[test]
    fn what_no_browser_sends_is_no_entry() {
        for entry in [
            "",
            "*",
            "ui.example.com",
            "ui.example.com:443",
            "//ui.example.com",
            "https:ui.example.com",
            "https://",
            "https://*",
            "https://*.example.com",
            "https://ui.example.com/",
            "https://ui.example.com/app",
            "https://ui.example.com?x",
            "https://ui.example.com#x",
            "https://me@ui.example.com",
            "https://ui.example.com:",
            "https://ui.example.com:0",
            "https://ui.example.com:65536",
            "https://ui.example.com:+443",
            "https://ui.example.com:x",
            "https://ui example.com",
            "https://ui%2Eexample.com",
            "https://::1",
            "https://[::1",
            "https://[::g]",
            "wss://ui.example.com",
            "file:///srv/ui.html",
            "file://",
            "1ttp://ui.example.com",
            "://ui.example.com",
            "https://ui.example.com, https://b.example.com",
        ] {
            assert_eq!(Origin::read(entry), None, "{entry}");
        }
    }
}
