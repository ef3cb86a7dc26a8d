//! The HTTP client of `crossbar` (PROTOCOL 7): the platform's REST API is asked whether a token may see an account, and
//! for public keys.
//!
//! Connections are kept, one for each thread that asks. No redirect is followed, no proxy is taken from the environment,
//! and the whole exchange has one limit of time, which holds against an answer that drips. A request is sent once more
//! if the connection ended before the answer began: a kept connection may be closed by the server at any moment, and a
//! `GET` asks for nothing that would be done twice (RFC 9110, 9.2.2).
//!
//! With `https` the authorities are those that the system trusts, because a plant's own authority is installed there, and
//! kept up to date there; a list in the program would be as old as the program.
//!
//! Invariants: trouble is never a yes; a token is in `X-Auth-Token` and nowhere else: in no log line, no error, no
//! `Debug` output.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use rustls::crypto::ring;
use serde::Deserialize;
use ureq::http::{HeaderValue, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body};
use url::{Host, Url};

use super::counters::{InquiryCounters, increment};
use super::resolver::OneHost;
use super::trouble::{Cause, Subject, Trouble, TroubleLog};
use crate::account::AccountId;
use crate::auth::{AccountAnswer, KeyAnswer};
use crate::limits::{
    CROSSBAR_BODY_BYTES_MAX, CROSSBAR_HEAD_BYTES_MAX, CROSSBAR_IDLE_MAX, CROSSBAR_REALM_BYTES_MAX,
    CROSSBAR_THREADS, JWT_KID_BYTES_MAX, TOKEN_BYTES_MAX,
};

const USER_AGENT: &str = concat!("blackhole/", env!("CARGO_PKG_VERSION"));

/// Room for the head of a request, which has a token and a URL in it, and for reading; each for each connection.
const BUFFER_BYTES: usize = 16 << 10;

const _: () =
    assert!(TOKEN_BYTES_MAX + 4096 <= BUFFER_BYTES && CROSSBAR_HEAD_BYTES_MAX <= BUFFER_BYTES);

/// Where the REST API is, without the slash at the end: `https://host:8443/v2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrossbarUrl(String);

/// Why a URL is refused. No text shows what is in it, which may be a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrossbarUrlError {
    /// No URL.
    #[error("not a URL such as https://HOST:8443/v2")]
    Malformed,
    /// Another scheme.
    #[error("the scheme is neither http nor https")]
    Scheme,
    /// `user@` or `user:password@`.
    #[error("a user or password is not supported: every request has a token")]
    Userinfo,
    /// `?…` or `#…`.
    #[error("a query (behind `?`) or fragment (behind `#`) is not supported")]
    QueryOrFragment,
    /// More than 2,048 bytes.
    #[error("longer than 2,048 bytes")]
    TooLong,
}

/// Longest base URL.
const URL_BYTES_MAX: usize = 2048;

impl CrossbarUrl {
    /// Reads the URL below which `accounts` and `auth` are.
    ///
    /// # Errors
    /// [`CrossbarUrlError`]: which part is wrong.
    pub fn parse(text: &str) -> Result<Self, CrossbarUrlError> {
        let url = Url::parse(text).map_err(|_| CrossbarUrlError::Malformed)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(CrossbarUrlError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() || has_userinfo(text) {
            return Err(CrossbarUrlError::Userinfo);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(CrossbarUrlError::QueryOrFragment);
        }
        let base = url.as_str().trim_end_matches('/');
        if base.len() > URL_BYTES_MAX {
            return Err(CrossbarUrlError::TooLong);
        }
        Ok(Self(base.to_owned()))
    }

    /// As the client uses it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether tokens go there unencrypted, and leave this machine: to be warned of.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        let url = Url::parse(&self.0).ok();
        let is_local = url
            .as_ref()
            .and_then(Url::host)
            .is_some_and(|host| match host {
                Host::Domain(name) => name == "localhost",
                Host::Ipv4(ip) => ip.is_loopback(),
                Host::Ipv6(ip) => ip.is_loopback(),
            });
        !self.is_https() && !is_local
    }

    fn is_https(&self) -> bool {
        self.0.starts_with("https:")
    }
}

/// Whether there is an `@` before the path, as in `http://@host`, which parses to no user.
fn has_userinfo(text: &str) -> bool {
    let authority = text.split_once("//").map_or(text, |(_, rest)| rest);
    authority
        .split(['/', '?', '#', '\\'])
        .next()
        .is_some_and(|authority| authority.contains('@'))
}

/// Whose signature under the certificate of the REST API counts.
#[derive(Clone, Debug)]
pub enum Authorities {
    /// Those that the system trusts.
    System,
    /// Those in this PEM text, and no others.
    Pem(Vec<u8>),
}

/// How to ask the REST API.
#[derive(Clone)]
pub struct CrossbarOptions {
    /// Where it is.
    pub url: CrossbarUrl,
    /// Longest time of one exchange, from the look-up of the host to the last byte of the answer.
    pub timeout: Duration,
    /// The token that keys are fetched with; without it no key is known.
    pub service_token: Option<Box<str>>,
    /// For `https`.
    pub authorities: Authorities,
}

/// Why the client cannot be made. No text shows a token.
#[derive(Debug, thiserror::Error)]
pub enum CrossbarError {
    /// With it no key could ever be fetched.
    #[error(
        "the service token is empty, longer than 8 KiB, or has characters that no header takes"
    )]
    ServiceToken,
    /// Every certificate would be refused.
    #[error("no certificate of an authority could be read{0}")]
    NoAuthorities(String),
}

/// The client; used by several threads at a time.
pub struct Crossbar {
    agent: Agent,
    url: CrossbarUrl,
    timeout: Duration,
    service_token: Option<HeaderValue>,
    counters: Arc<InquiryCounters>,
    log: TroubleLog,
}

impl Crossbar {
    /// Makes a client, which connects when it is first asked. For `https` this reads the certificates of the authorities.
    ///
    /// # Errors
    /// [`CrossbarError`]: with these options no question would ever have an answer.
    pub fn new(
        options: CrossbarOptions,
        counters: Arc<InquiryCounters>,
    ) -> Result<Self, CrossbarError> {
        let CrossbarOptions {
            url,
            timeout,
            service_token,
            authorities,
        } = options;
        let service_token = service_token
            .map(|token| header(&token).ok_or(CrossbarError::ServiceToken))
            .transpose()?;
        let mut tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()));
        if url.is_https() {
            tls = tls.root_certs(roots(&authorities)?);
        }
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(USER_AGENT)
            .accept("application/json")
            .timeout_global(Some(timeout))
            // A half, so that a host that takes no connection leaves time for its other addresses.
            .timeout_connect(Some(timeout / 2))
            .max_response_header_size(CROSSBAR_HEAD_BYTES_MAX)
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .max_idle_connections(CROSSBAR_THREADS)
            .max_idle_connections_per_host(CROSSBAR_THREADS)
            .max_idle_age(CROSSBAR_IDLE_MAX)
            .build();
        Ok(Self {
            agent: Agent::with_parts(config, DefaultConnector::default(), OneHost::default()),
            url,
            timeout,
            service_token,
            log: TroubleLog::new(counters.clone()),
            counters,
        })
    }

    /// Asks whether `token` may see `account`. Waits for the exchange's limit of time at most.
    pub fn account(&self, token: &str, account: AccountId) -> AccountAnswer {
        let Some(token) = header(token) else {
            increment(&self.counters.tokens_unsendable);
            return AccountAnswer::TokenRefused;
        };
        let mut url = format!("{}/accounts/", self.url.as_str());
        account.push_hex(&mut url);
        let counters = &self.counters;
        let answer = self
            .get(&url, &token)
            .and_then(|(status, body)| match status {
                200 => Ok((&counters.yes, read_account(&body?, account)?)),
                401 => Ok((&counters.tokens_refused, AccountAnswer::TokenRefused)),
                403 | 404 => Ok((&counters.accounts_refused, AccountAnswer::AccountRefused)),
                status => Err(unexpected(status)),
            });
        self.counted(Subject::Account, answer)
            .unwrap_or(AccountAnswer::Trouble)
    }

    /// Asks for the public key with the id `kid`. Waits for the exchange's limit of time at most. What cannot be an id is
    /// unknown and not asked for, because the service token opens more than keys: `kid` must not lead elsewhere.
    pub fn key(&self, kid: &str) -> KeyAnswer {
        let (Some(token), true) = (&self.service_token, is_key_id(kid)) else {
            increment(&self.counters.keys_unknown);
            return KeyAnswer::Unknown;
        };
        let url = format!("{}/auth/keys/{kid}", self.url.as_str());
        let counters = &self.counters;
        let answer = self
            .get(&url, token)
            .and_then(|(status, body)| match status {
                200 => Ok((&counters.keys, KeyAnswer::Pem(read_key(&body?)?))),
                404 => Ok((&counters.keys_unknown, KeyAnswer::Unknown)),
                401 | 403 => Err(Trouble::new(
                    Cause::Status,
                    &format!("the service token may not fetch keys (status {status})"),
                )),
                status => Err(unexpected(status)),
            });
        self.counted(Subject::Key, answer)
            .unwrap_or(KeyAnswer::Trouble)
    }

    /// Notes a question that waited too long and was not asked.
    pub(super) fn note_late(&self, subject: Subject) {
        let text = "a question waited too long for a thread and was not asked";
        self.log.take(subject, &Trouble::new(Cause::Late, text));
    }

    fn counted<T>(&self, subject: Subject, answer: Result<(&AtomicU64, T), Trouble>) -> Option<T> {
        match answer {
            Ok((counter, answer)) => {
                increment(counter);
                Some(answer)
            }
            Err(trouble) => {
                self.log.take(subject, &trouble);
                None
            }
        }
    }

    /// One exchange: the status, and the body if it could be read.
    fn get(
        &self,
        url: &str,
        token: &HeaderValue,
    ) -> Result<(u16, Result<Vec<u8>, Trouble>), Trouble> {
        let deadline = Instant::now() + self.timeout;
        let request = || {
            increment(&self.counters.requests);
            self.agent.get(url).header("X-Auth-Token", token)
        };
        let response = match request().call() {
            Err(ureq::Error::Io(error)) if has_ended(&error) => {
                increment(&self.counters.requests_again);
                let left = deadline.saturating_duration_since(Instant::now());
                let on_a_new_connection = request()
                    .config()
                    .timeout_global(Some(left))
                    .max_idle_age(Duration::ZERO)
                    .build();
                on_a_new_connection.call()
            }
            answer => answer,
        };
        let mut response = response.map_err(|error| trouble(error, Cause::Connect))?;
        // Read whatever the status is, so that the connection can be kept.
        let body = read_body(&mut response);
        Ok((response.status().as_u16(), body))
    }
}

impl fmt::Debug for Crossbar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crossbar")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// The token as the value of a header. `None`: it cannot be one, or it would not arrive as it is.
fn header(token: &str) -> Option<HeaderValue> {
    if token.is_empty()
        || token.len() > TOKEN_BYTES_MAX
        || !token.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return None;
    }
    let mut value = HeaderValue::from_str(token).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether it is one segment of a path and means nothing else in a URL.
fn is_key_id(kid: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    (1..=JWT_KID_BYTES_MAX).contains(&kid.len())
        && kid.bytes().all(is_plain)
        && kid.bytes().any(|byte| byte != b'.')
}

fn roots(authorities: &Authorities) -> Result<RootCerts, CrossbarError> {
    let (certificates, why) = match authorities {
        Authorities::System => {
            let found = rustls_native_certs::load_native_certs();
            let why = found.errors.first().map(|error| format!(": {error}"));
            let owned = |der: &_| Certificate::from_der(AsRef::<[u8]>::as_ref(der)).to_owned();
            (found.certs.iter().map(owned).collect::<Vec<_>>(), why)
        }
        Authorities::Pem(text) => {
            let certificate = |item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            };
            (parse_pem(text).filter_map(certificate).collect(), None)
        }
    };
    let of_use = certificates
        .iter()
        .map(|certificate| certificate.der().into());
    if RootCertStore::empty().add_parsable_certificates(of_use).0 == 0 {
        return Err(CrossbarError::NoAuthorities(why.unwrap_or_default()));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// Whether the connection ended before the answer began.
fn has_ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

fn read_body(response: &mut Response<Body>) -> Result<Vec<u8>, Trouble> {
    let mut body = Vec::new();
    let one_too_many = CROSSBAR_BODY_BYTES_MAX as u64 + 1;
    let mut reader = response.body_mut().as_reader().take(one_too_many);
    reader
        .read_to_end(&mut body)
        .map_err(|error| trouble(error.into(), Cause::Body))?;
    if body.len() > CROSSBAR_BODY_BYTES_MAX {
        return Err(Trouble::new(
            Cause::Body,
            "the answer's body is above 64 KiB",
        ));
    }
    Ok(body)
}

/// The trouble behind an error of the client; `broken`: what it means that the connection broke.
fn trouble(error: ureq::Error, broken: Cause) -> Trouble {
    use ureq::Error;
    let (cause, text) = match error {
        Error::Timeout(phase) => (Cause::Timeout, format!("not within the time: {phase}")),
        Error::Rustls(error) => (Cause::Tls, format!("TLS: {error}")),
        Error::Tls(_) | Error::Pem(_) | Error::TlsRequired => (Cause::Tls, format!("TLS: {error}")),
        Error::Io(error) => {
            let is_tls = error
                .get_ref()
                .is_some_and(|inner| inner.is::<rustls::Error>());
            let cause = match error.kind() {
                _ if is_tls => Cause::Tls,
                io::ErrorKind::TimedOut => Cause::Timeout,
                _ => broken,
            };
            (cause, format!("the connection failed: {error}"))
        }
        Error::HostNotFound => (Cause::Connect, "the host was not found".to_owned()),
        Error::ConnectionFailed => (Cause::Connect, "no connection".to_owned()),
        Error::LargeResponseHeader(..) => {
            (Cause::Body, "the answer's head is above 16 KiB".to_owned())
        }
        // Its text may show what the server sent.
        _ => (Cause::Body, "the answer is not HTTP".to_owned()),
    };
    Trouble::new(cause, &text)
}

fn unexpected(status: u16) -> Trouble {
    let text = format!("status {status}, which is neither a yes nor a no");
    Trouble::new(Cause::Status, &text)
}

/// The platform's envelope; what else is in it means nothing here.
#[derive(Deserialize)]
struct Envelope<T> {
    status: String,
    data: T,
}

#[derive(Deserialize)]
struct Account {
    id: Option<String>,
    realm: Option<String>,
    superduper_admin: Option<bool>,
}

#[derive(Deserialize)]
struct Key {
    public_key_pem: String,
}

fn read_account(body: &[u8], account: AccountId) -> Result<AccountAnswer, Trouble> {
    let data: Account = read_envelope(body)?;
    if data
        .id
        .is_some_and(|id| AccountId::parse(&id) != Some(account))
    {
        return Err(Trouble::new(
            Cause::Body,
            "the answer is about another account",
        ));
    }
    let realm = data.realm.filter(|realm| !realm.is_empty());
    if realm.as_ref().is_some_and(|realm| {
        realm.len() > CROSSBAR_REALM_BYTES_MAX || realm.contains(char::is_whitespace)
    }) {
        return Err(Trouble::new(
            Cause::Body,
            "the answer's realm is no SIP realm",
        ));
    }
    Ok(AccountAnswer::Yes {
        realm: realm.map(Arc::from),
        superduper: data.superduper_admin.unwrap_or_default(),
    })
}

fn read_key(body: &[u8]) -> Result<String, Trouble> {
    let data: Key = read_envelope(body)?;
    Ok(data.public_key_pem)
}

/// The `data` of an answer whose `status` is `success`.
fn read_envelope<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, Trouble> {
    // The error's own text may show what is in the answer.
    let envelope: Envelope<T> = serde_json::from_slice(body).map_err(|error| {
        let place = (error.line(), error.column());
        let text = format!("the answer is not the JSON that it should be (line, column {place:?})");
        Trouble::new(Cause::Body, &text)
    })?;
    if envelope.status != "success" {
        return Err(Trouble::new(
            Cause::Body,
            "the answer's status is not `success`",
        ));
    }
    Ok(envelope.data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_whole_or_refused_without_showing_it() {
        for (text, expected) in [
            ("http://10.0.0.1:8000/v2", Ok("http://10.0.0.1:8000/v2")),
            ("https://Host.example/", Ok("https://host.example")),
            ("https://[::1]:8443/a/b//", Ok("https://[::1]:8443/a/b")),
            ("https://host:443/v2/@x", Ok("https://host/v2/@x")),
            ("host:8000/v2", Err(CrossbarUrlError::Scheme)),
            ("/v2", Err(CrossbarUrlError::Malformed)),
            ("", Err(CrossbarUrlError::Malformed)),
            ("http://", Err(CrossbarUrlError::Malformed)),
            ("ftp://host", Err(CrossbarUrlError::Scheme)),
            ("http://user@host", Err(CrossbarUrlError::Userinfo)),
            ("http://user:secret@host/", Err(CrossbarUrlError::Userinfo)),
            ("http://:secret@host/", Err(CrossbarUrlError::Userinfo)),
            ("http://@host/", Err(CrossbarUrlError::Userinfo)),
            (
                "http://host/?secret",
                Err(CrossbarUrlError::QueryOrFragment),
            ),
            (
                "http://host/#secret",
                Err(CrossbarUrlError::QueryOrFragment),
            ),
        ] {
            let parsed = CrossbarUrl::parse(text);
            let found = parsed.as_ref().map(CrossbarUrl::as_str);
            assert_eq!(found, expected.as_ref().copied(), "{text}");
            if let Err(error) = parsed {
                assert!(!error.to_string().contains("secret"), "{text}");
            }
        }
        let long = format!("http://host/{}", "a".repeat(2048));
        assert_eq!(CrossbarUrl::parse(&long), Err(CrossbarUrlError::TooLong));
    }

    #[test]
    fn tokens_that_leave_the_machine_unencrypted_are_to_be_warned_of() {
        for (url, expected) in [
            ("http://localhost:8000/v2", false),
            ("http://127.0.0.9/v2", false),
            ("http://[::1]/v2", false),
            ("https://api.example/v2", false),
            ("http://api.example/v2", true),
            ("http://10.0.0.1/v2", true),
        ] {
            let parsed = CrossbarUrl::parse(url).expect(url);
            assert_eq!(parsed.is_exposed(), expected, "{url}");
        }
    }

    #[test]
    fn without_a_certificate_of_an_authority_there_is_no_https() {
        let with = |url: &str, pem: &[u8]| {
            let options = CrossbarOptions {
                url: CrossbarUrl::parse(url).expect("a URL"),
                timeout: Duration::from_secs(1),
                service_token: Some("a-secret-of-ours".into()),
                authorities: Authorities::Pem(pem.to_vec()),
            };
            Crossbar::new(options, Arc::default())
        };
        let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for pem in [&b""[..], b"no PEM", broken] {
            let error = with("https://host", pem).expect_err("no authority");
            assert!(error.to_string().contains("authority"), "{error}");
        }
        let crossbar = with("http://host", b"").expect("no certificate is needed");
        assert!(!format!("{crossbar:?}").contains("secret"));
    }
}
