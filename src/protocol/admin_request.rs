//! A request of the admin address, from its bytes to what it asks for (PROTOCOL 8, RFC 9112).
//!
//! One table ([`ROUTES`]) says which paths there are, by which method, and which query keys each takes; beside it there are
//! the fixed documents ([`documents`]). A value is checked where it is read, so what comes out is right as a whole.
//!
//! When more than one thing is wrong, the first of this list is told:
//!
//! 1. bytes that are no HTTP head: 400; a head that is too long: 431
//! 2. a body whose end cannot be found: `Transfer-Encoding` 411, no number or two that differ 400, too long 413, `Expect`
//!    417. Nobody can tell where the next request would begin, so the connection ends.
//! 3. [`super::admin_guard`]: `Host` 400 or 421, another origin 403, no token 401
//! 4. no such path 404, not by this method 405, a wrong query 400

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use log::LevelFilter;
use percent_encoding::percent_decode_str;

use super::admin::{AdminRefusal, AdminRequest, CloseOrder, SessionQuery, SortKey, TraceQuery};
use super::admin_guard::Guard;
use super::control::ModuleChange;
use super::http::{
    BODY_BYTES_MAX, ContentLength, Fields, Head, HttpError, Method, Parsed, Single, Status,
    parse_head,
};
use crate::account::AccountId;
use crate::documents::{self, Document};

/// Most sessions of one page of a listing.
pub const PAGE_SESSIONS_MAX: usize = 1000;

/// Sessions of one page of a listing when the asker does not say.
const PAGE_SESSIONS_USUAL: usize = 50;

/// Longest reason of a close frame (RFC 6455 section 5.5: 125 bytes with the code).
pub const REASON_BYTES_MAX: usize = 123;

/// A whole request: what it asks for, and how it wants to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedFor {
    /// What it asks for.
    pub request: Result<AdminRequest, AdminRefusal>,
    /// How.
    pub form: AnswerForm,
}

/// How a request wants to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerForm {
    /// By `HEAD`: without the body.
    pub head_only: bool,
    /// The connection ends with the answer.
    pub is_last: bool,
    /// Refusals are JSON in the platform's envelope; else a line of text.
    pub is_json: bool,
}

/// Reads what has come. `guard`: who may ask; `None`: anybody.
#[must_use]
pub fn parse(input: &[u8], guard: Option<&Guard>) -> Parsed<AskedFor> {
    let (head_bytes, head) = match parse_head(input) {
        Parsed::Incomplete => return Parsed::Incomplete,
        Parsed::Complete { consumed, request } => match request {
            Ok(head) => (consumed, head),
            Err(response) => {
                let form = AnswerForm {
                    head_only: response.head_only,
                    is_last: true,
                    is_json: false,
                };
                return refuse(input, response.error.into(), form);
            }
        },
    };
    let form = AnswerForm {
        head_only: head.method == Method::Head,
        is_last: !head.is_http_1_1 || head.fields.connection_close,
        is_json: head.path.starts_with("/v2/"),
    };
    let body_bytes = match body_bytes(&head.fields) {
        Ok(body_bytes) => body_bytes,
        Err(refusal) => {
            let form = AnswerForm {
                is_last: true,
                ..form
            };
            return refuse(input, refusal, form);
        }
    };
    let consumed = head_bytes + body_bytes;
    if input.len() < consumed {
        return Parsed::Incomplete;
    }
    let document = documents::find(head.path);
    let is_open = document.is_some() || matches!(head.path, "/healthz" | "/readyz");
    let allowed = guard.map_or(Ok(()), |guard| guard.check(&head, is_open));
    Parsed::Complete {
        consumed,
        request: AskedFor {
            request: allowed.and_then(|()| match document {
                Some(document) => read_document(document, &head),
                None => route(&head),
            }),
            form,
        },
    }
}

fn refuse(input: &[u8], refusal: AdminRefusal, form: AnswerForm) -> Parsed<AskedFor> {
    Parsed::Complete {
        consumed: input.len(),
        request: AskedFor {
            request: Err(refusal),
            form,
        },
    }
}

/// How long the body is (RFC 9112 section 6.3).
fn body_bytes(fields: &Fields<'_>) -> Result<usize, AdminRefusal> {
    let refused = |status, text| Err(AdminRefusal::new(status, text));
    if fields.has_transfer_encoding {
        return refused(
            Status::LengthRequired,
            "Transfer-Encoding is not taken; send Content-Length",
        );
    }
    if fields.has_expectation && fields.has_body() {
        return refused(Status::ExpectationFailed, "Expect is not taken");
    }
    match fields.content_length {
        ContentLength::Absent => Ok(0),
        ContentLength::Invalid => refused(Status::BadRequest, "Content-Length is not one number"),
        ContentLength::Bytes(bytes) => match usize::try_from(bytes) {
            Ok(bytes @ ..=BODY_BYTES_MAX) => Ok(bytes),
            Ok(_) | Err(_) => refused(Status::ContentTooLarge, "the body is too large"),
        },
    }
}

/// One thing that may be asked for.
struct Route {
    method: Method,
    /// The path, word by word; `{}` is any word, and is handed to `read`.
    path: &'static str,
    /// The query keys that it takes.
    keys: &'static [&'static str],
    read: fn(&Given<'_>) -> Result<AdminRequest, AdminRefusal>,
}

/// What a request gives to its route.
struct Given<'a> {
    /// The words of the path that stand for `{}`.
    words: Vec<Cow<'a, str>>,
    query: Vec<(&'static str, Cow<'a, str>)>,
}

/// All that may be asked for. `HEAD` is taken wherever `GET` is.
const ROUTES: &[Route] = &[
    Route {
        method: Method::Get,
        path: "/healthz",
        keys: &[],
        read: |_| Ok(AdminRequest::Health),
    },
    Route {
        method: Method::Get,
        path: "/readyz",
        keys: &[],
        read: |_| Ok(AdminRequest::Ready),
    },
    Route {
        method: Method::Get,
        path: "/metrics",
        keys: &[],
        read: |_| Ok(AdminRequest::Metrics),
    },
    Route {
        method: Method::Get,
        path: "/v2/status",
        keys: &[],
        read: |_| Ok(AdminRequest::Status),
    },
    Route {
        method: Method::Get,
        path: "/v2/websockets",
        keys: &[],
        read: |_| Ok(AdminRequest::Bindings),
    },
    Route {
        method: Method::Get,
        path: "/v2/accounts/{}/websockets",
        keys: &["limit", "start_key"],
        read: |given| {
            Ok(AdminRequest::AccountSessions {
                account: account(given.word(0))?,
                session: None,
                limit: given.limit(PAGE_SESSIONS_MAX)?,
                start_key: given.text("start_key")?,
            })
        },
    },
    Route {
        method: Method::Get,
        path: "/v2/accounts/{}/websockets/{}",
        keys: &[],
        read: |given| {
            Ok(AdminRequest::AccountSessions {
                account: account(given.word(0))?,
                session: Some(session(given.word(1))?),
                limit: 1,
                start_key: None,
            })
        },
    },
    Route {
        method: Method::Get,
        path: "/v2/sessions",
        keys: &[
            "ip",
            "account",
            "binding",
            "slow",
            "sort",
            "limit",
            "start_key",
        ],
        read: read_session_query,
    },
    Route {
        method: Method::Delete,
        path: "/v2/sessions",
        keys: &["account", "ip", "code", "reason"],
        read: |given| read_close_order(None, given),
    },
    Route {
        method: Method::Delete,
        path: "/v2/sessions/{}",
        keys: &["code", "reason"],
        read: |given| read_close_order(Some(session(given.word(0))?), given),
    },
    Route {
        method: Method::Get,
        path: "/trace",
        keys: &["session", "account", "key", "event", "limit"],
        read: read_trace_query,
    },
    Route {
        method: Method::Post,
        path: "/drain",
        keys: &[],
        read: |_| Ok(AdminRequest::Drain),
    },
    Route {
        method: Method::Post,
        path: "/log-level",
        keys: &["level"],
        read: |given| Ok(AdminRequest::LogLevel(read_level(given)?)),
    },
    Route {
        method: Method::Post,
        path: "/modules/{}",
        keys: &["action", "persist"],
        read: read_module_change,
    },
];

impl Route {
    /// The words of `path` that stand for `{}`; `None`: another path.
    fn matches<'a>(&self, path: &'a str) -> Option<Vec<&'a str>> {
        let mut words = Vec::new();
        let (mut ours, mut theirs) = (self.path.split('/'), path.split('/'));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return Some(words),
                (Some("{}"), Some(word)) if !word.is_empty() => words.push(word),
                (Some(our), Some(word)) if our == word && our != "{}" => {}
                (Some(_) | None, Some(_) | None) => return None,
            }
        }
    }

    fn takes(&self, method: Method) -> bool {
        self.method == method || (self.method == Method::Get && method == Method::Head)
    }

    /// Its methods, as `Allow` lists them.
    fn allows(&self) -> &'static str {
        match self.method {
            Method::Get => "GET, HEAD",
            Method::Post => "POST",
            Method::Delete => "DELETE",
            Method::Head | Method::Other => "",
        }
    }
}

fn route(head: &Head<'_>) -> Result<AdminRequest, AdminRefusal> {
    let mut allowed = Vec::new();
    for route in ROUTES {
        let Some(words) = route.matches(head.path) else {
            continue;
        };
        if !route.takes(head.method) {
            allowed.push(route.allows());
            continue;
        }
        let words = words.into_iter().map(decode);
        return (route.read)(&Given {
            words: words.collect::<Result<_, _>>()?,
            query: read_query(route.keys, head.query)?,
        });
    }
    if allowed.is_empty() {
        return Err(AdminRefusal::new(Status::NotFound, "not found"));
    }
    Err(not_by_this_method(&allowed.join(", ")))
}

/// `allowed`: the methods that are taken.
fn not_by_this_method(allowed: &str) -> AdminRefusal {
    AdminRefusal {
        headers: format!("Allow: {allowed}\r\n"),
        ..HttpError::MethodNotAllowed.into()
    }
}

fn read_document(
    document: &'static Document,
    head: &Head<'_>,
) -> Result<AdminRequest, AdminRefusal> {
    if !matches!(head.method, Method::Get | Method::Head) {
        return Err(not_by_this_method("GET, HEAD"));
    }
    read_query(&[], head.query)?;
    let is_known = match head.fields.if_none_match {
        Single::Once(tags) => {
            std::str::from_utf8(tags).is_ok_and(|tags| document.is_named_by(tags))
        }
        Single::Absent | Single::Repeated => false,
    };
    Ok(AdminRequest::Document { document, is_known })
}

fn wrong(text: impl Into<Cow<'static, str>>) -> AdminRefusal {
    AdminRefusal::new(Status::BadRequest, text)
}

/// Undoes `%XX`. A `+` stays what it is.
fn decode(text: &str) -> Result<Cow<'_, str>, AdminRefusal> {
    percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| wrong("a word of the path or query is not UTF-8"))
}

/// The pairs of a query, of which each key is one of `keys` and comes once.
fn read_query<'a>(
    keys: &[&'static str],
    query: &'a str,
) -> Result<Vec<(&'static str, Cow<'a, str>)>, AdminRefusal> {
    let mut pairs: Vec<(&'static str, Cow<'a, str>)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(key) = keys.iter().find(|key| **key == name) else {
            return Err(unknown_key(name, keys));
        };
        if pairs.iter().any(|(other, _)| other == key) {
            return Err(wrong(format!("{key} is repeated")));
        }
        pairs.push((key, decode(value)?));
    }
    Ok(pairs)
}

fn unknown_key(name: &str, keys: &[&str]) -> AdminRefusal {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    // What is no word is not echoed.
    let shown = (name.len() <= 32 && name.bytes().all(is_word)).then(|| format!(" {name}"));
    let expected = match keys {
        [] => "none".to_owned(),
        keys => keys.join(", "),
    };
    wrong(format!(
        "unknown query key{}; expected {expected}",
        shown.unwrap_or_default()
    ))
}

impl Given<'_> {
    fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", |word| word)
    }

    fn value(&self, key: &str) -> Option<&str> {
        let (_, value) = self.query.iter().find(|(name, _)| *name == key)?;
        Some(value)
    }

    /// The value of a key, as `read` makes it.
    fn read<T>(
        &self,
        key: &str,
        read: impl FnOnce(&str) -> Result<T, AdminRefusal>,
    ) -> Result<Option<T>, AdminRefusal> {
        self.value(key).map(read).transpose()
    }

    /// A text that is not empty.
    fn text(&self, key: &'static str) -> Result<Option<Box<str>>, AdminRefusal> {
        self.read(key, |text| match text {
            "" => Err(wrong(format!("{key} is empty"))),
            text => Ok(Box::from(text)),
        })
    }

    fn number<N: FromStr>(
        &self,
        key: &'static str,
        expected: &str,
    ) -> Result<Option<N>, AdminRefusal> {
        self.read(key, |text| {
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse().ok().filter(|_| is_number);
            number.ok_or_else(|| wrong(format!("{key}: expected {expected}")))
        })
    }

    /// How many sessions a page may have.
    fn limit(&self, usual: usize) -> Result<usize, AdminRefusal> {
        let expected = "1 to 1000";
        let limit = self.number("limit", expected)?.unwrap_or(usual);
        if !(1..=PAGE_SESSIONS_MAX).contains(&limit) {
            return Err(wrong(format!("limit: expected {expected}")));
        }
        Ok(limit)
    }

    /// One of some words.
    fn choice<T: Copy>(
        &self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, AdminRefusal> {
        self.read(key, |text| {
            let chosen = choices.iter().find(|(word, _)| *word == text);
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            chosen
                .map(|(_, value)| *value)
                .ok_or_else(|| wrong(format!("{key}: expected one of {}", words.join(", "))))
        })
    }
}

fn account(text: &str) -> Result<AccountId, AdminRefusal> {
    AccountId::parse(text).ok_or_else(|| wrong("account: expected 32 hex characters"))
}

fn session(text: &str) -> Result<SocketAddr, AdminRefusal> {
    let address = text.parse();
    address.map_err(|_| wrong("session: expected an id IP:PORT"))
}

fn ip(text: &str) -> Result<IpAddr, AdminRefusal> {
    text.parse()
        .map_err(|_| wrong("ip: expected an IP address"))
}

const BOOLS: &[(&str, bool)] = &[("1", true), ("true", true), ("0", false), ("false", false)];

fn read_session_query(given: &Given<'_>) -> Result<AdminRequest, AdminRefusal> {
    Ok(AdminRequest::Sessions(SessionQuery {
        ip: given.read("ip", ip)?,
        account: given.read("account", account)?,
        binding: given.text("binding")?,
        slow: given.choice("slow", BOOLS)?.unwrap_or(false),
        sort: given.choice(
            "sort",
            &[
                ("age", SortKey::Age),
                ("idle", SortKey::Idle),
                ("bytes", SortKey::Bytes),
                ("frames", SortKey::Frames),
                ("outbox", SortKey::Outbox),
                ("dropped", SortKey::Dropped),
            ],
        )?,
        limit: given.limit(PAGE_SESSIONS_USUAL)?,
        start_key: given.text("start_key")?,
    }))
}

fn read_close_order(
    session: Option<SocketAddr>,
    given: &Given<'_>,
) -> Result<AdminRequest, AdminRefusal> {
    let expected = "1008 or 4000 to 4999";
    let code = given.number("code", expected)?.unwrap_or(1008);
    if !matches!(code, 1008 | 4000..=4999) {
        return Err(wrong(format!("code: expected {expected}")));
    }
    let reason = given.value("reason").unwrap_or("closed by the operator");
    if reason.len() > REASON_BYTES_MAX || reason.contains(char::is_control) {
        return Err(wrong(format!(
            "reason: expected at most {REASON_BYTES_MAX} bytes on one line"
        )));
    }
    let order = CloseOrder {
        session,
        account: given.read("account", account)?,
        ip: given.read("ip", ip)?,
        code,
        reason: reason.into(),
    };
    if order.session.is_none() && order.account.is_none() && order.ip.is_none() {
        return Err(wrong("expected account, ip or both, or /v2/sessions/{ID}"));
    }
    Ok(AdminRequest::CloseSessions(order))
}

fn read_trace_query(given: &Given<'_>) -> Result<AdminRequest, AdminRefusal> {
    let expected = "a number of lines above 0";
    let limit = given.number("limit", expected)?;
    if limit == Some(0) {
        return Err(wrong(format!("limit: expected {expected}")));
    }
    Ok(AdminRequest::Trace(TraceQuery {
        session: given.read("session", session)?,
        account: given.read("account", account)?,
        key: given.text("key")?,
        event: given.text("event")?,
        limit,
    }))
}

fn read_level(given: &Given<'_>) -> Result<LevelFilter, AdminRefusal> {
    let level = given.choice(
        "level",
        &[
            ("error", LevelFilter::Error),
            ("warn", LevelFilter::Warn),
            ("info", LevelFilter::Info),
            ("debug", LevelFilter::Debug),
        ],
    )?;
    level.ok_or_else(|| wrong("level is missing"))
}

fn read_module_change(given: &Given<'_>) -> Result<AdminRequest, AdminRefusal> {
    let module = given.word(0);
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !module.starts_with("bh_") || !module.bytes().all(is_word) {
        return Err(wrong("module: expected bh_NAME"));
    }
    let is_start = given.choice("action", &[("start", true), ("stop", false)])?;
    Ok(AdminRequest::Module(ModuleChange {
        module: module.into(),
        is_start: is_start.ok_or_else(|| wrong("action is missing"))?,
        persist: given.choice("persist", BOOLS)?.unwrap_or(true),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::http::HEAD_BYTES_MAX;
    use super::*;

    const ACCOUNT: &str = "4b8c6fec4b2597882c0390202d195419";

    fn asked(text: &str) -> (usize, AskedFor) {
        match parse(text.as_bytes(), Some(&Guard::default())) {
            Parsed::Complete { consumed, request } => (consumed, request),
            Parsed::Incomplete => panic!("incomplete: {text}"),
        }
    }

    fn ask(method: &str, target: &str) -> Result<AdminRequest, AdminRefusal> {
        let text = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        asked(&text).1.request
    }

    fn query() -> SessionQuery {
        SessionQuery {
            ip: None,
            account: None,
            binding: None,
            slow: false,
            sort: None,
            limit: 50,
            start_key: None,
        }
    }

    #[test]
    fn every_request_of_the_table_is_understood() {
        let account_id = AccountId::parse(ACCOUNT).expect("an id");
        let one: SocketAddr = "192.0.2.1:4711".parse().expect("an address");
        let other: SocketAddr = "[2001:db8::1]:4711".parse().expect("an address");
        let order = CloseOrder {
            session: Some(one),
            account: None,
            ip: None,
            code: 1008,
            reason: "closed by the operator".into(),
        };
        let looked = TraceQuery {
            session: None,
            account: None,
            key: None,
            event: None,
            limit: None,
        };
        let module = ModuleChange {
            module: "bh_call".into(),
            is_start: true,
            persist: true,
        };
        let of_account = |session: Option<SocketAddr>| AdminRequest::AccountSessions {
            account: account_id,
            limit: if session.is_some() { 1 } else { 1000 },
            session,
            start_key: None,
        };
        for (method, target, expected) in [
            ("GET", "/healthz", AdminRequest::Health),
            ("HEAD", "/healthz", AdminRequest::Health),
            ("GET", "/readyz?", AdminRequest::Ready),
            ("GET", "/metrics?&", AdminRequest::Metrics),
            ("GET", "http://127.0.0.1/metrics", AdminRequest::Metrics),
            ("GET", "/v2/websockets", AdminRequest::Bindings),
            (
                "GET",
                &format!("/v2/accounts/{ACCOUNT}/websockets"),
                of_account(None),
            ),
            (
                "GET",
                &format!("/v2/accounts/{ACCOUNT}/websockets/192.0.2.1:4711"),
                of_account(Some(one)),
            ),
            (
                "GET",
                &format!("/v2/accounts/{ACCOUNT}/websockets/%5B2001:db8::1%5d:4711"),
                of_account(Some(other)),
            ),
            ("GET", "/v2/sessions", AdminRequest::Sessions(query())),
            (
                "GET",
                &format!(
                    "/v2/sessions?ip=2001:db8::1&account={ACCOUNT}&binding=call.%2A.a+b%20c&slow=1\
                     &sort=outbox&limit=1000&start_key=x%3d"
                ),
                AdminRequest::Sessions(SessionQuery {
                    ip: Some("2001:db8::1".parse().expect("an address")),
                    account: Some(account_id),
                    binding: Some("call.*.a+b c".into()),
                    slow: true,
                    sort: Some(SortKey::Outbox),
                    limit: 1000,
                    start_key: Some("x=".into()),
                }),
            ),
            (
                "DELETE",
                "/v2/sessions/192.0.2.1:4711",
                AdminRequest::CloseSessions(order.clone()),
            ),
            (
                "DELETE",
                "/v2/sessions?ip=192.0.2.1&code=4999&reason=bye%20now",
                AdminRequest::CloseSessions(CloseOrder {
                    session: None,
                    ip: Some(one.ip()),
                    code: 4999,
                    reason: "bye now".into(),
                    ..order
                }),
            ),
            ("GET", "/trace", AdminRequest::Trace(looked.clone())),
            (
                "GET",
                "/trace?session=192.0.2.1:4711&key=call.x&event=CHANNEL_CREATE&limit=7",
                AdminRequest::Trace(TraceQuery {
                    session: Some(one),
                    key: Some("call.x".into()),
                    event: Some("CHANNEL_CREATE".into()),
                    limit: Some(7),
                    ..looked
                }),
            ),
            ("POST", "/drain", AdminRequest::Drain),
            (
                "POST",
                "/log-level?level=debug",
                AdminRequest::LogLevel(LevelFilter::Debug),
            ),
            (
                "POST",
                "/modules/bh_call?action=start",
                AdminRequest::Module(module.clone()),
            ),
            (
                "POST",
                "/modules/bh_call?persist=false&action=stop",
                AdminRequest::Module(ModuleChange {
                    is_start: false,
                    persist: false,
                    ..module
                }),
            ),
        ] {
            assert_eq!(ask(method, target), Ok(expected), "{method} {target}");
        }
    }

    #[test]
    fn every_wrong_request_is_refused_with_a_line_that_names_what_is_wrong() {
        for (method, target, status, text) in [
            ("GET", "/?x=1", 400, "unknown query key x; expected none"),
            ("POST", "/", 405, "method is not allowed"),
            ("GET", "//", 404, "not found"),
            ("GET", "*", 404, "not found"),
            ("GET", "/healthz/", 404, "not found"),
            ("GET", "//healthz", 404, "not found"),
            ("GET", "/health%7a", 404, "not found"),
            ("GET", "/v2/sessions/", 404, "not found"),
            ("GET", "/v2/accounts//websockets", 404, "not found"),
            ("GET", "/v2/accounts/{}/websockets/{}/{}", 404, "not found"),
            (
                "GET",
                "/healthz?x=1",
                400,
                "unknown query key x; expected none",
            ),
            (
                "GET",
                "/healthz?a%20b",
                400,
                "unknown query key; expected none",
            ),
            (
                "GET",
                "/trace?keys=1",
                400,
                "unknown query key keys; expected session, account, key, event, limit",
            ),
            ("GET", "/trace?key=1&key=1", 400, "key is repeated"),
            ("GET", "/trace?key=", 400, "key is empty"),
            ("GET", "/trace?key=%ff", 400, "not UTF-8"),
            ("GET", "/trace?limit=0", 400, "limit: expected a number"),
            (
                "GET",
                "/trace?session=192.0.2.1",
                400,
                "session: expected an id IP:PORT",
            ),
            (
                "GET",
                "/v2/accounts/x/websockets",
                400,
                "account: expected 32 hex",
            ),
            (
                "GET",
                "/v2/sessions?limit=1001",
                400,
                "limit: expected 1 to 1000",
            ),
            (
                "GET",
                "/v2/sessions?limit=0",
                400,
                "limit: expected 1 to 1000",
            ),
            (
                "GET",
                "/v2/sessions?limit=+1",
                400,
                "limit: expected 1 to 1000",
            ),
            (
                "GET",
                "/v2/sessions?limit=-1",
                400,
                "limit: expected 1 to 1000",
            ),
            (
                "GET",
                "/v2/sessions?limit=",
                400,
                "limit: expected 1 to 1000",
            ),
            (
                "GET",
                "/v2/sessions?limit=99999999999999999999",
                400,
                "limit: expected 1 to 1000",
            ),
            (
                "GET",
                "/v2/sessions?sort=name",
                400,
                "sort: expected one of age, idle,",
            ),
            (
                "GET",
                "/v2/sessions?slow=yes",
                400,
                "slow: expected one of 1,",
            ),
            (
                "GET",
                "/v2/sessions?ip=localhost",
                400,
                "ip: expected an IP",
            ),
            (
                "DELETE",
                "/v2/sessions",
                400,
                "expected account, ip or both",
            ),
            (
                "DELETE",
                "/v2/sessions?code=4000",
                400,
                "expected account, ip or both",
            ),
            (
                "DELETE",
                "/v2/sessions/1.2.3.4:5?code=1000",
                400,
                "code: expected 1008",
            ),
            (
                "DELETE",
                "/v2/sessions/1.2.3.4:5?code=65537008",
                400,
                "code: expected 1008",
            ),
            (
                "DELETE",
                "/v2/sessions/1.2.3.4:5?reason=a%0ab",
                400,
                "reason: expected",
            ),
            (
                "DELETE",
                "/v2/sessions/1.2.3.4:5?ip=1.2.3.4",
                400,
                "unknown query key ip",
            ),
            ("POST", "/log-level", 400, "level is missing"),
            (
                "POST",
                "/log-level?level=trace",
                400,
                "level: expected one of error,",
            ),
            (
                "POST",
                "/modules/call?action=stop",
                400,
                "module: expected bh_NAME",
            ),
            ("POST", "/modules/bh_call", 400, "action is missing"),
            ("POST", "/metrics", 405, "method is not allowed"),
            ("BREW", "/metrics", 405, "method is not allowed"),
        ] {
            let refusal = ask(method, target).expect_err(target);
            assert_eq!(refusal.status.code(), status, "{method} {target}");
            assert!(
                refusal.text.contains(text),
                "{method} {target}: {refusal:?}"
            );
        }
        let long = format!("/v2/sessions/1.2.3.4:5?reason={}", "x".repeat(124));
        assert!(ask("DELETE", &long).is_err());
        for (method, path, allow) in [
            ("POST", "/metrics", "GET, HEAD"),
            ("PUT", "/v2/sessions", "GET, HEAD, DELETE"),
            ("GET", "/v2/sessions/x", "DELETE"),
            ("GET", "/drain", "POST"),
        ] {
            let refusal = ask(method, path).expect_err(path);
            assert_eq!(refusal.headers, format!("Allow: {allow}\r\n"), "{path}");
        }
    }

    #[test]
    fn a_body_is_read_to_its_end_or_the_connection_ends() {
        let with = |lines: &str, body: &str| {
            format!("POST /drain HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n{body}")
        };
        for (lines, status) in [
            ("Transfer-Encoding: chunked\r\n", 411),
            ("Transfer-Encoding: identity\r\nContent-Length: 1\r\n", 411),
            ("Content-Length: 1\r\nContent-Length: 2\r\n", 400),
            ("Content-Length: 1, 1\r\n", 400),
            ("Content-Length: -1\r\n", 400),
            ("Content-Length: 8193\r\n", 413),
            ("Content-Length: 99999999999999999999999999\r\n", 413),
            ("Content-Length: 1\r\nExpect: 100-continue\r\n", 417),
        ] {
            let text = with(lines, "GET /smuggled HTTP/1.1\r\n\r\n");
            let (consumed, asked) = asked(&text);
            let refusal = asked.request.expect_err(lines);
            assert_eq!(refusal.status.code(), status, "{lines}");
            assert!(asked.form.is_last, "{lines}");
            assert_eq!(consumed, text.len(), "nothing behind it is a request");
        }
        for (lines, body) in [
            ("", ""),
            ("Content-Length: 0\r\n", ""),
            ("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"),
            ("Expect: 100-continue\r\n", ""),
            ("Content-Length: 8192\r\n", &*"x".repeat(BODY_BYTES_MAX)),
        ] {
            let text = with(lines, body);
            let (consumed, asked) = asked(&(text.clone() + "GET /healthz"));
            assert_eq!(asked.request, Ok(AdminRequest::Drain), "{lines}");
            assert_eq!(consumed, text.len(), "{lines}");
            assert!(!asked.form.is_last);
            let part = &text.as_bytes()[..text.len() - 1];
            assert_eq!(parse(part, None), Parsed::Incomplete, "{lines}");
        }
    }

    #[test]
    fn the_answer_takes_the_form_that_the_request_asks_for() {
        for (text, head_only, is_last, is_json) in [
            (
                "GET /metrics HTTP/1.1\r\nHost: [::1]\r\n\r\n",
                false,
                false,
                false,
            ),
            (
                "HEAD /v2/sessions HTTP/1.1\r\nHost: [::1]\r\n\r\n",
                true,
                false,
                true,
            ),
            ("GET /metrics HTTP/1.0\r\n\r\n", false, true, false),
            (
                "GET /metrics HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
                false,
                true,
                false,
            ),
            (
                "GET /v2/x HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n",
                false,
                true,
                true,
            ),
        ] {
            let expected = AnswerForm {
                head_only,
                is_last,
                is_json,
            };
            assert_eq!(asked(text).1.form, expected, "{text}");
        }
        for (bytes, status) in [
            (&b"\0"[..], 400),
            (b"\x16\x03\x01", 400),
            (b"GET /\r\n\r\n", 400),
            (&[b'x'; HEAD_BYTES_MAX], 431),
        ] {
            let Parsed::Complete { request, .. } = parse(bytes, None) else {
                panic!("incomplete")
            };
            assert!(request.form.is_last);
            let refusal = request.request.expect_err("no request");
            assert_eq!(refusal.status.code(), status);
        }
    }
}
