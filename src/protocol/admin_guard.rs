//! Who may ask on the admin address (PROTOCOL 8). Three attackers are kept out:
//!
//! | attacker | guard | answer |
//! |---|---|---|
//! | anybody who reaches the address | the admin token, if one is set | 401 |
//! | a web page whose host name its owner has rebound to our address | `Host` | 421 |
//! | a web page that makes the operator's browser send what acts, which needs nobody's permission | `Origin`, `Sec-Fetch-Site` | 403 |
//!
//! What acts is `POST`, `DELETE`, and the `GET` of `/trace`, which binds keys and takes the place of another looker.
//!
//! Invariants: the token is compared in constant time, and no error, answer or `Debug` holds it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use subtle::ConstantTimeEq;

use super::admin::AdminRefusal;
use super::http::{Head, Method, Single, Status};

/// The rules for who may ask.
#[derive(Clone, Default)]
pub struct Guard {
    token: Option<Box<str>>,
    hosts: Vec<String>,
}

impl Guard {
    /// Without a token. `hosts`: the names, besides addresses and `localhost`, by which we may be called.
    #[must_use]
    pub fn new(hosts: Vec<String>) -> Self {
        Self { token: None, hosts }
    }

    /// Asks for this token from now on; `None`: for none.
    pub fn set_token(&mut self, token: Option<Box<str>>) {
        self.token = token;
    }

    /// Whether a request with this head may be answered. `is_open`: what it asks for needs no token.
    pub(super) fn check(&self, head: &Head<'_>, is_open: bool) -> Result<(), AdminRefusal> {
        let host = asked_host(head)?;
        if let Some(host) = host
            && !self.is_ours(host)
        {
            return Err(AdminRefusal::new(
                Status::MisdirectedRequest,
                "Host is neither an address nor one of admin_hosts",
            ));
        }
        if matches!(head.method, Method::Post | Method::Delete) || head.path == "/trace" {
            refuse_other_sites(head, host)?;
        }
        match &self.token {
            Some(token) if !is_open => check_token(head, token),
            Some(_) | None => Ok(()),
        }
    }

    fn is_ours(&self, authority: &str) -> bool {
        let Some(host) = host_of(authority) else {
            return false;
        };
        let bare = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let is_address = match bare {
            Some(bare) => bare.parse::<Ipv6Addr>().is_ok(),
            None => host.parse::<IpAddr>().is_ok(),
        };
        let named = |name: &str| name.eq_ignore_ascii_case(host);
        is_address || named("localhost") || self.hosts.iter().any(|name| named(name))
    }
}

impl fmt::Debug for Guard {
    /// Shows everything but the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("token", &self.token.as_ref().map(|_| "(masked)"))
            .field("hosts", &self.hosts)
            .finish()
    }
}

/// Host and port by which we are called; `None`: HTTP/1.0 need not say.
fn asked_host<'a>(head: &Head<'a>) -> Result<Option<&'a str>, AdminRefusal> {
    let malformed = |text| AdminRefusal::new(Status::BadRequest, text);
    let host = match head.fields.host {
        Single::Absent if head.is_http_1_1 => return Err(malformed("Host is missing")),
        Single::Absent => None,
        Single::Once(host) => Some(host.trim_ascii()),
        Single::Repeated => return Err(malformed("Host is repeated")),
    };
    if head.authority.is_some() {
        return Ok(head.authority);
    }
    let host = host.map(std::str::from_utf8).transpose();
    host.map_err(|_| malformed("Host must be text"))
}

/// The host of `HOST` or `HOST:PORT`; `None`: that is neither.
fn host_of(authority: &str) -> Option<&str> {
    let colon = match authority.rfind(']') {
        Some(end) => authority.get(end..)?.find(':').map(|at| end + at),
        None => authority.find(':'),
    };
    let Some(colon) = colon else {
        return Some(authority);
    };
    let (host, port) = authority.split_at(colon);
    let is_port = port.bytes().skip(1).all(|byte| byte.is_ascii_digit());
    is_port.then_some(host)
}

/// Refuses what a browser says that a page of another origin makes it send. Programs that are no browsers send neither
/// field.
fn refuse_other_sites(head: &Head<'_>, host: Option<&str>) -> Result<(), AdminRefusal> {
    let is_own_site = match head.fields.fetch_site {
        Single::Absent => true,
        Single::Once(site) => matches!(site.trim_ascii(), b"same-origin" | b"none"),
        Single::Repeated => false,
    };
    let is_own_origin = match head.fields.origin {
        Single::Absent => true,
        Single::Once(origin) => host.is_some_and(|host| is_origin_of(origin.trim_ascii(), host)),
        Single::Repeated => false,
    };
    if is_own_site && is_own_origin {
        return Ok(());
    }
    Err(AdminRefusal::new(
        Status::Forbidden,
        "a page of another origin may not ask for this",
    ))
}

/// Whether `origin` is a page of `host`, which may leave out the port that its scheme has anyway.
fn is_origin_of(origin: &[u8], host: &str) -> bool {
    let Some((scheme, origin)) = std::str::from_utf8(origin)
        .ok()
        .and_then(|origin| origin.split_once("://"))
    else {
        return false;
    };
    let usual = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let bare = |authority: &str| {
        let stripped = authority.strip_suffix(usual).unwrap_or(authority);
        stripped.to_ascii_lowercase()
    };
    bare(origin) == bare(host)
}

fn check_token(head: &Head<'_>, token: &str) -> Result<(), AdminRefusal> {
    let given = match head.fields.authorization {
        Single::Once(value) => bearer_of(value),
        Single::Absent | Single::Repeated => None,
    };
    if given.is_some_and(|given| given.ct_eq(token.as_bytes()).into()) {
        return Ok(());
    }
    Err(AdminRefusal {
        status: Status::Unauthorized,
        text: "the admin token is needed: Authorization: Bearer TOKEN".into(),
        headers: "WWW-Authenticate: Bearer\r\n".to_owned(),
    })
}

/// The token of a `Bearer` value (RFC 6750 section 2.1).
fn bearer_of(value: &[u8]) -> Option<&[u8]> {
    let value = value.trim_ascii();
    let at = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, token) = value.split_at(at);
    scheme
        .eq_ignore_ascii_case(b"bearer")
        .then_some(token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::super::http::{Parsed, parse_head};
    use super::*;

    fn guard(token: Option<&str>) -> Guard {
        let mut guard = Guard::new(vec!["Admin.Example".to_owned()]);
        guard.set_token(token.map(Box::from));
        guard
    }

    /// The status of the refusal of a request with these lines; 0: none.
    fn status(guard: &Guard, lines: &[&str], is_open: bool) -> u16 {
        let text = lines.join("\r\n") + "\r\n\r\n";
        let Parsed::Complete {
            request: Ok(head), ..
        } = parse_head(text.as_bytes())
        else {
            panic!("{text}")
        };
        let refused = guard.check(&head, is_open).err();
        refused.map_or(0, |refusal| refusal.status.code())
    }

    #[test]
    fn only_addresses_localhost_and_named_hosts_are_ours() {
        for (host, expected) in [
            ("127.0.0.1", 0),
            ("127.0.0.1:5559", 0),
            ("192.0.2.7:1", 0),
            ("[::1]", 0),
            ("[::1]:5559", 0),
            ("localhost", 0),
            ("LocalHost:5559", 0),
            ("admin.example", 0),
            ("ADMIN.example:80", 0),
            ("evil.example", 421),
            ("evil.example:5559", 421),
            ("admin.example.evil.example", 421),
            ("evil.localhost", 421),
            ("127.0.0.1.evil.example", 421),
            ("127.0.0.1@evil.example", 421),
            ("127.0.0.1:x", 421),
            ("[::1].evil.example", 421),
            ("[evil.example]", 421),
            ("[::1", 421),
            ("2130706433", 421),
            ("", 421),
        ] {
            let lines = ["GET / HTTP/1.1", &format!("Host: {host}")];
            assert_eq!(status(&guard(None), &lines, false), expected, "{host}");
        }
        for (lines, expected) in [
            (&["GET / HTTP/1.1"][..], 400),
            (&["GET / HTTP/1.0"], 0),
            (&["GET / HTTP/1.0", "Host: evil.example"], 421),
            (&["GET / HTTP/1.1", "Host: ::1", "Host: ::1"], 400),
            (&["GET http://evil.example/ HTTP/1.1", "Host: [::1]"], 421),
            (&["GET http://[::1]:1/ HTTP/1.1", "Host: evil.example"], 0),
            (&["GET http://u@[::1]:1/ HTTP/1.1", "Host: [::1]"], 421),
        ] {
            assert_eq!(status(&guard(None), lines, true), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_page_of_another_origin_changes_nothing() {
        let host = "Host: 127.0.0.1:5559";
        for (line, expected) in [
            ("Accept: */*", 0),
            ("Origin: http://127.0.0.1:5559", 0),
            ("Origin: http://127.0.0.1", 403),
            ("Origin: http://127.0.0.1:8080", 403),
            ("Origin: https://evil.example", 403),
            ("Origin: null", 403),
            ("Origin: file://", 403),
            ("Origin:", 403),
            ("Sec-Fetch-Site: none", 0),
            ("Sec-Fetch-Site: same-origin", 0),
            ("Sec-Fetch-Site: same-site", 403),
            ("Sec-Fetch-Site: cross-site", 403),
            ("Sec-Fetch-Site: nonsense", 403),
        ] {
            for (asked, expected) in [
                ("POST /", expected),
                ("DELETE /", expected),
                ("GET /trace?key=a", expected),
                ("GET /", 0),
            ] {
                let lines = [&format!("{asked} HTTP/1.1"), host, line];
                assert_eq!(status(&guard(None), &lines, true), expected, "{lines:?}");
            }
        }
        for (host, origin, expected) in [
            ("localhost", "http://localhost:80", 0),
            ("localhost:80", "http://localhost", 0),
            ("Admin.example", "https://admin.example", 0),
            ("admin.example:443", "https://admin.example", 0),
            ("admin.example:443", "http://admin.example", 403),
        ] {
            let lines = [
                "POST / HTTP/1.1",
                &format!("Host: {host}"),
                &format!("Origin: {origin}"),
            ];
            assert_eq!(status(&guard(None), &lines, true), expected, "{lines:?}");
        }
        let twice = ["POST / HTTP/1.1", host, "Origin: a", "Origin: a"];
        assert_eq!(status(&guard(None), &twice, true), 403);
    }

    #[test]
    fn without_the_token_only_what_is_open_is_answered() {
        let guard = guard(Some("secret"));
        for (line, expected) in [
            ("Authorization: Bearer secret", 0),
            ("authorization: bEARER   secret ", 0),
            ("Authorization: Bearer secre", 401),
            ("Authorization: Bearer secret2", 401),
            ("Authorization: Bearer", 401),
            ("Authorization: Basic secret", 401),
            ("Authorization: secret", 401),
            ("Accept: */*", 401),
        ] {
            let lines = ["GET / HTTP/1.1", "Host: localhost", line];
            assert_eq!(status(&guard, &lines, false), expected, "{line}");
            assert_eq!(status(&guard, &lines, true), 0, "{line}");
        }
        let good = "Authorization: Bearer secret";
        let twice = ["GET / HTTP/1.1", "Host: localhost", good, good];
        assert_eq!(status(&guard, &twice, false), 401);
        assert!(!format!("{guard:?}").contains("secret"));
    }
}
