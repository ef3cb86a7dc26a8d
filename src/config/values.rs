//! The types of values and their two spellings: as text on the command line and as JSON in the file, with one wording
//! of what was expected for both.
//!
//! Invariants: a value that fits is parsed once, here, into the type that the rest uses; a value that does not fit is a
//! [`Problem`], which never repeats a value that may hold a password or a token.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cidr::{IpCidr, IpInet};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};
use serde_json::Value;

use crate::amqp::stream::NAME_BYTES_MAX as STREAM_NAME_BYTES_MAX;
use crate::auth::REALM_PLACEHOLDER;
use crate::event::Style;
use crate::inquiry::{CrossbarUrl, CrossbarUrlError};
use crate::limits::{PERIOD_MAX, TOKEN_BYTES_MAX};
use crate::logging::LogFormat;
use crate::protocol::proxy::ProxyProtocol;
use crate::session::outbox::SlowConsumerPolicy;

/// Longest part of a wrong value that an error message repeats, in characters.
const FOUND_CHARS_MAX: usize = 60;

/// Highest `demo_rate`, in events a second: beyond it the clock's steps are too coarse to mean anything.
const DEMO_RATE_MAX: f64 = 1_000_000.0;

/// Why a value does not fit: a whole clause, `expected …, found …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Problem(pub(crate) String);

impl Problem {
    /// `expected EXPECTED, found FOUND`; what may be a broker URL in the wrong place, with its password, is not
    /// repeated.
    fn new(expected: &str, found: impl fmt::Display) -> Self {
        let found = found.to_string();
        if found.contains('@') {
            return Self::silent(expected);
        }
        let end = found.char_indices().nth(FOUND_CHARS_MAX);
        let (found, more) = end.map_or((&*found, ""), |(end, _)| (&found[..end], "…"));
        Self(format!("expected {expected}, found {found}{more}"))
    }

    /// `expected EXPECTED`, for values that must not be repeated.
    fn silent(expected: &str) -> Self {
        Self(format!("expected {expected}"))
    }
}

/// A type of value: its two spellings, and what to expect.
pub(crate) trait Written: Sized {
    /// Completes the sentence "expected …".
    fn expected() -> String;
    /// Reads the command line's spelling.
    fn from_text(text: &str) -> Result<Self, Problem>;
    /// Reads the file's spelling.
    fn from_json(value: &Value) -> Result<Self, Problem>;
    /// The file's spelling, with secrets masked.
    fn to_json(&self) -> Value;
}

/// Carries a [`Written`] value through clap and serde.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Setting<T>(pub(crate) T);

impl<T: Written> FromStr for Setting<T> {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        T::from_text(text).map(Self)
    }
}

impl<'de, T: Written> Deserialize<'de> for Setting<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        T::from_json(&value).map(Self).map_err(D::Error::custom)
    }
}

impl<T: Written> Serialize for Setting<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.to_json().serialize(serializer)
    }
}

/// Reads a list, for `deserialize_with`: serde's own message names neither the item nor what it should be.
pub(crate) fn list<'de, D: Deserializer<'de>, T: Written>(
    deserializer: D,
) -> Result<Vec<Setting<T>>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let Value::Array(items) = value else {
        return Err(D::Error::custom(Problem::silent(&format!(
            "a list, each item {}",
            T::expected()
        ))));
    };
    let read = |(index, item)| {
        T::from_json(item)
            .map(Setting)
            .map_err(|Problem(problem)| Problem(format!("item {}: {problem}", index + 1)))
    };
    items
        .iter()
        .enumerate()
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(D::Error::custom)
}

/// Reads a list, or one item without brackets.
pub(crate) fn list_or_one<'de, D: Deserializer<'de>, T: Written>(
    deserializer: D,
) -> Result<Vec<Setting<T>>, D::Error> {
    match Value::deserialize(deserializer)? {
        list @ Value::Array(_) => self::list(list).map_err(D::Error::custom),
        one => Ok(vec![Setting(T::from_json(&one).map_err(D::Error::custom)?)]),
    }
}

/// Whole numbers of the types' own ranges.
macro_rules! whole {
    ($($type:ty),*) => {$(
        impl Written for $type {
            fn expected() -> String {
                format!("a whole number from {} to {}", Self::MIN, Self::MAX)
            }

            fn from_text(text: &str) -> Result<Self, Problem> {
                text.parse().map_err(|_| Problem::new(&Self::expected(), format_args!("{text:?}")))
            }

            fn from_json(value: &Value) -> Result<Self, Problem> {
                let number = value.as_number().and_then(|number| number.to_string().parse().ok());
                number.ok_or_else(|| Problem::new(&Self::expected(), value))
            }

            fn to_json(&self) -> Value {
                serde_json::json!(self)
            }
        }
    )*};
}

whole!(u16, u32, u64, NonZeroU16, NonZeroU32);

/// A port, or that there is none: `null` in the file, `none` on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortOrNone(pub(crate) Option<u16>);

impl Written for PortOrNone {
    fn expected() -> String {
        format!("{}, or null", u16::expected())
    }

    fn from_text(text: &str) -> Result<Self, Problem> {
        let expected = || format!("{}, or none", u16::expected());
        match text {
            "none" => Ok(Self(None)),
            number => number
                .parse()
                .map(|port| Self(Some(port)))
                .map_err(|_| Problem::new(&expected(), format_args!("{text:?}"))),
        }
    }

    fn from_json(value: &Value) -> Result<Self, Problem> {
        if value.is_null() {
            return Ok(Self(None));
        }
        u16::from_json(value)
            .map(|port| Self(Some(port)))
            .map_err(|_| Problem::new(&Self::expected(), value))
    }

    fn to_json(&self) -> Value {
        Value::from(self.0)
    }
}

/// Milliseconds of a keep-alive period: from `MIN` to [`PERIOD_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Period<const MIN: u32>(pub(crate) u32);

impl<const MIN: u32> Period<MIN> {
    const MAX: u32 = PERIOD_MAX.as_millis() as u32;

    fn new(milliseconds: u32) -> Option<Self> {
        (MIN..=Self::MAX)
            .contains(&milliseconds)
            .then_some(Self(milliseconds))
    }
}

impl<const MIN: u32> Written for Period<MIN> {
    fn expected() -> String {
        format!("a whole number from {MIN} to {}", Self::MAX)
    }

    fn from_text(text: &str) -> Result<Self, Problem> {
        let period = text.parse().ok().and_then(Self::new);
        period.ok_or_else(|| Problem::new(&Self::expected(), format_args!("{text:?}")))
    }

    fn from_json(value: &Value) -> Result<Self, Problem> {
        let number = value
            .as_number()
            .and_then(|number| number.to_string().parse().ok());
        number
            .and_then(Self::new)
            .ok_or_else(|| Problem::new(&Self::expected(), value))
    }

    fn to_json(&self) -> Value {
        Value::from(self.0)
    }
}

/// A bound; `None`, written `0`, is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit<T>(pub(crate) Option<T>);

/// A number that bounds something.
pub(crate) trait Bound: Copy + Default + PartialEq + FromStr + Into<u64> {
    /// Completes the sentence "expected …".
    const EXPECTED: &str;
}

impl Bound for u32 {
    const EXPECTED: &str = "a whole number up to 4294967295, 0 for no limit";
}

impl Bound for u64 {
    const EXPECTED: &str = "a whole number, 0 for no limit";
}

impl<T: Bound> Limit<T> {
    fn read(text: &str) -> Option<Self> {
        let number: T = text.parse().ok()?;
        Some(Self((number != T::default()).then_some(number)))
    }
}

impl<T: Bound> Written for Limit<T> {
    fn expected() -> String {
        T::EXPECTED.to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Problem> {
        Self::read(text).ok_or_else(|| Problem::new(&Self::expected(), format_args!("{text:?}")))
    }

    fn from_json(value: &Value) -> Result<Self, Problem> {
        let number = value
            .as_number()
            .and_then(|number| Self::read(&number.to_string()));
        number.ok_or_else(|| Problem::new(&Self::expected(), value))
    }

    fn to_json(&self) -> Value {
        Value::from(self.0.map_or(0, Into::into))
    }
}

/// Events a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate(pub(crate) f64);

impl Rate {
    fn new(rate: f64) -> Option<Self> {
        (rate > 0.0 && rate <= DEMO_RATE_MAX).then_some(Self(rate))
    }
}

impl Written for Rate {
    fn expected() -> String {
        format!("a number above 0 and at most {DEMO_RATE_MAX}")
    }

    fn from_text(text: &str) -> Result<Self, Problem> {
        let rate = text.parse().ok().and_then(Self::new);
        rate.ok_or_else(|| Problem::new(&Self::expected(), format_args!("{text:?}")))
    }

    fn from_json(value: &Value) -> Result<Self, Problem> {
        value
            .as_f64()
            .and_then(Self::new)
            .ok_or_else(|| Problem::new(&Self::expected(), value))
    }

    fn to_json(&self) -> Value {
        Value::from(self.0)
    }
}

impl Written for bool {
    fn expected() -> String {
        "true or false".to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Problem> {
        text.parse()
            .map_err(|_| Problem::new(&Self::expected(), format_args!("{text:?}")))
    }

    fn from_json(value: &Value) -> Result<Self, Problem> {
        value
            .as_bool()
            .ok_or_else(|| Problem::new(&Self::expected(), value))
    }

    fn to_json(&self) -> Value {
        Value::from(*self)
    }
}

/// One entry of the key `families`: any JSON object here; its own keys are checked where families are made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Object(pub(crate) Value);

impl Written for Object {
    fn expected() -> String {
        "a JSON object".to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Problem> {
        match serde_json::from_str(text) {
            Ok(value) => Self::from_json(&value),
            Err(_) => Err(Problem::new(&Self::expected(), format_args!("{text:?}"))),
        }
    }

    fn from_json(value: &Value) -> Result<Self, Problem> {
        if value.is_object() {
            Ok(Self(value.clone()))
        } else {
            Err(Problem::new(&Self::expected(), value))
        }
    }

    fn to_json(&self) -> Value {
        self.0.clone()
    }
}

/// A value that is a text in both spellings.
pub(super) trait Text: Sized {
    /// Completes the sentence "expected …".
    const EXPECTED: &str;
    /// Whether an error message may repeat a wrong value.
    const REPEATABLE: bool = true;
    /// `None`: the text is not what was [expected](Text::EXPECTED).
    fn read(text: &str) -> Option<Self>;
    /// Says more of text that [`Text::read`] did not take.
    fn hint(_text: &str) -> Option<&'static str> {
        None
    }
    /// The text as it is shown, with secrets masked.
    fn print(&self) -> String;
}

impl<T: Text> Written for T {
    fn expected() -> String {
        T::EXPECTED.to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Problem> {
        T::read(text).ok_or_else(|| {
            let Problem(problem) = if T::REPEATABLE {
                Problem::new(T::EXPECTED, format_args!("{text:?}"))
            } else {
                Problem::silent(T::EXPECTED)
            };
            Problem(T::hint(text).map_or(problem.clone(), |hint| format!("{hint}; {problem}")))
        })
    }

    fn from_json(value: &Value) -> Result<Self, Problem> {
        match value.as_str() {
            Some(text) => T::from_text(text),
            None if T::REPEATABLE => Err(Problem::new(T::EXPECTED, value)),
            None => Err(Problem::silent(T::EXPECTED)),
        }
    }

    fn to_json(&self) -> Value {
        Value::from(self.print())
    }
}

impl Text for IpAddr {
    const EXPECTED: &str = "an IP address such as 127.0.0.1 or ::1";

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Text for SocketAddr {
    const EXPECTED: &str = "IP:PORT such as 127.0.0.1:5559";

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Text for Style {
    const EXPECTED: &str = "piston or kazoo";

    fn read(text: &str) -> Option<Self> {
        match text {
            "piston" => Some(Self::Piston),
            "kazoo" => Some(Self::Kazoo),
            _ => None,
        }
    }

    fn print(&self) -> String {
        self.word().to_owned()
    }
}

impl Text for ProxyProtocol {
    const EXPECTED: &str = "off, accept or required";

    fn read(text: &str) -> Option<Self> {
        match text {
            "off" => Some(Self::Off),
            "accept" => Some(Self::Accept),
            "required" => Some(Self::Required),
            _ => None,
        }
    }

    fn print(&self) -> String {
        match self {
            Self::Off => "off",
            Self::Accept => "accept",
            Self::Required => "required",
        }
        .to_owned()
    }
}

/// An entry of `trusted_proxies`: a network, or one address. Peers' addresses are unwrapped before they are looked
/// up, so IPv4 within IPv6, which would match nobody, is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network(pub(crate) IpCidr);

impl Network {
    /// What an entry is, for messages.
    pub(crate) const WHAT: &str = "address or network such as 10.0.0.1 or 10.0.0.0/8";

    fn is_wrapped(network: &IpCidr) -> bool {
        network.is_ipv6() && network.first_address().to_canonical().is_ipv4()
    }
}

impl Text for Network {
    const EXPECTED: &str = "an address or network such as 10.0.0.1, 10.0.0.0/8 or 2001:db8::/32";

    fn read(text: &str) -> Option<Self> {
        let network = text.parse().ok()?;
        (!Self::is_wrapped(&network)).then_some(Self(network))
    }

    fn hint(text: &str) -> Option<&'static str> {
        let network = text.parse::<IpCidr>().ok();
        let has_host_bits = text.parse::<IpInet>().is_ok();
        match network {
            Some(network) => Self::is_wrapped(&network).then_some("IPv4 is to be written as IPv4"),
            None => {
                has_host_bits.then_some("the address has bits beyond the length of its network")
            }
        }
    }

    fn print(&self) -> String {
        self.0.to_string()
    }
}

impl Text for SlowConsumerPolicy {
    const EXPECTED: &str = "close or drop";

    fn read(text: &str) -> Option<Self> {
        match text {
            "close" => Some(Self::Close),
            "drop" => Some(Self::Drop),
            _ => None,
        }
    }

    fn print(&self) -> String {
        match self {
            Self::Close => "close",
            Self::Drop => "drop",
        }
        .to_owned()
    }
}

/// The levels on offer; finer ones are compiled out of releases, since dependencies log headers there.
impl Text for log::LevelFilter {
    const EXPECTED: &str = "error, warn, info or debug";

    fn read(text: &str) -> Option<Self> {
        match text {
            "error" => Some(Self::Error),
            "warn" => Some(Self::Warn),
            "info" => Some(Self::Info),
            "debug" => Some(Self::Debug),
            _ => None,
        }
    }

    fn print(&self) -> String {
        self.as_str().to_ascii_lowercase()
    }
}

impl Text for LogFormat {
    const EXPECTED: &str = "text or json";

    fn read(text: &str) -> Option<Self> {
        match text {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }

    fn print(&self) -> String {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
        .to_owned()
    }
}

/// The key `source`; what the demo source needs beside it has keys of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceName {
    Amqp,
    Demo,
    Replay(PathBuf),
}

impl Text for SourceName {
    const EXPECTED: &str = "amqp, demo or replay:FILE";

    fn read(text: &str) -> Option<Self> {
        match text {
            "amqp" => Some(Self::Amqp),
            "demo" => Some(Self::Demo),
            _ => file_after("replay:", text).map(Self::Replay),
        }
    }

    fn print(&self) -> String {
        match self {
            Self::Amqp => "amqp".to_owned(),
            Self::Demo => "demo".to_owned(),
            Self::Replay(file) => format!("replay:{}", file.display()),
        }
    }
}

/// An item of the key `auth`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AuthName {
    Tokens(PathBuf),
    Jwt(PathBuf),
    /// The base URL of the platform's REST API, without a `/` at its end.
    Crossbar(CrossbarUrl),
    Insecure,
}

impl AuthName {
    /// What stands before the colon.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Tokens(_) => "tokens",
            Self::Jwt(_) => "jwt",
            Self::Crossbar(_) => "crossbar",
            Self::Insecure => "insecure",
        }
    }
}

impl Text for AuthName {
    const EXPECTED: &str = "tokens:FILE, jwt:FILE_OR_FOLDER, crossbar:URL or insecure";
    /// An operator may have given the token itself.
    const REPEATABLE: bool = false;

    fn read(text: &str) -> Option<Self> {
        if text == "insecure" {
            return Some(Self::Insecure);
        }
        if let Some(url) = text.strip_prefix("crossbar:") {
            return CrossbarUrl::parse(url).ok().map(Self::Crossbar);
        }
        file_after("tokens:", text)
            .map(Self::Tokens)
            .or_else(|| file_after("jwt:", text).map(Self::Jwt))
    }

    fn hint(text: &str) -> Option<&'static str> {
        let error = CrossbarUrl::parse(text.strip_prefix("crossbar:")?).err()?;
        Some(crossbar_url_problem(error))
    }

    fn print(&self) -> String {
        match self {
            Self::Tokens(file) => format!("tokens:{}", file.display()),
            Self::Jwt(path) => format!("jwt:{}", path.display()),
            Self::Crossbar(url) => format!("crossbar:{}", url.as_str()),
            Self::Insecure => "insecure".to_owned(),
        }
    }
}

/// What is wrong with the URL of `crossbar:URL`, as half a sentence.
fn crossbar_url_problem(error: CrossbarUrlError) -> &'static str {
    match error {
        CrossbarUrlError::Malformed => "the URL of crossbar is none such as https://HOST:8443/v2",
        CrossbarUrlError::Scheme => "the scheme of crossbar's URL is neither http nor https",
        CrossbarUrlError::Userinfo => {
            "crossbar's URL has a user or password, which no request would carry"
        }
        CrossbarUrlError::QueryOrFragment => {
            "crossbar's URL has a query or fragment, behind which nothing can be put"
        }
        CrossbarUrlError::TooLong => "crossbar's URL is longer than 2,048 bytes",
    }
}

/// A secret that goes into an HTTP header; printed as `***`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Text for Secret {
    const EXPECTED: &str = "a token of 1 to 8192 visible characters";
    const REPEATABLE: bool = false;

    fn read(text: &str) -> Option<Self> {
        let fits = (1..=TOKEN_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self(text.to_owned()))
    }

    fn print(&self) -> String {
        "***".to_owned()
    }
}

/// What `iss` of a token must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Issuer(pub(crate) String);

impl Text for Issuer {
    const EXPECTED: &str = "the iss of the tokens, not empty";

    fn read(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    fn print(&self) -> String {
        self.0.clone()
    }
}

fn file_after(prefix: &str, text: &str) -> Option<PathBuf> {
    text.strip_prefix(prefix)
        .filter(|file| !file.is_empty())
        .map(|file| Path::new(file).to_owned())
}

/// A key whose whole value is the name of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileName(pub(crate) PathBuf);

impl Text for FileName {
    const EXPECTED: &str = "the name of a file";
    /// An operator may have given what is in the file.
    const REPEATABLE: bool = false;

    fn read(text: &str) -> Option<Self> {
        let fits = !text.is_empty() && !text.contains(char::is_control);
        fits.then(|| Self(PathBuf::from(text)))
    }

    fn print(&self) -> String {
        self.0.display().to_string()
    }
}

/// A host's name, without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostName(pub(crate) String);

impl Text for HostName {
    const EXPECTED: &str = "a host name without a port, such as bridge.example";

    fn read(text: &str) -> Option<Self> {
        let is_of_it =
            |byte| matches!(byte, b'.' | b'-' | b'_') || u8::is_ascii_alphanumeric(&byte);
        (!text.is_empty() && text.bytes().all(is_of_it)).then(|| Self(text.to_owned()))
    }

    fn print(&self) -> String {
        self.0.clone()
    }
}

/// A template of realms: text in which every brace belongs to a [`REALM_PLACEHOLDER`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RealmTemplate(pub(crate) String);

impl Text for RealmTemplate {
    const EXPECTED: &str = "a SIP realm, with {account_id} where the account id goes";

    fn read(text: &str) -> Option<Self> {
        let rest = text.replace(REALM_PLACEHOLDER, "");
        let fits =
            !text.is_empty() && !rest.contains(|c: char| c == '{' || c == '}' || c.is_whitespace());
        fits.then(|| Self(text.to_owned()))
    }

    fn print(&self) -> String {
        self.0.clone()
    }
}

/// A word of a list: an event name, a document type, a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) String);

impl Text for Word {
    const EXPECTED: &str = "a text without white space";

    fn read(text: &str) -> Option<Self> {
        let fits = !text.is_empty() && !text.contains(char::is_whitespace);
        fits.then(|| Self(text.to_owned()))
    }

    fn print(&self) -> String {
        self.0.clone()
    }
}

/// What this process is called on the platform: `NAME@HOST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeName(pub(crate) String);

/// Longest node name: the platform's own are Erlang's, which are no longer.
const NODE_NAME_BYTES_MAX: usize = 255;

impl Text for NodeName {
    const EXPECTED: &str = "a node name such as blackhole@host, at most 255 bytes";

    fn read(text: &str) -> Option<Self> {
        let (name, host) = text.split_once('@')?;
        let fits = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        };
        (fits(name) && fits(host) && text.len() <= NODE_NAME_BYTES_MAX)
            .then(|| Self(text.to_owned()))
    }

    fn print(&self) -> String {
        self.0.clone()
    }
}

/// Where the history is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HistoryName {
    /// In this process.
    Memory,
    /// And in a stream of the broker, with this name.
    Stream(String),
}

impl Text for HistoryName {
    const EXPECTED: &str = "memory, or stream: and a name of at most 240 letters, digits and .-_ that does not begin with amq.";

    fn read(text: &str) -> Option<Self> {
        if text == "memory" {
            return Some(Self::Memory);
        }
        let name = text.strip_prefix("stream:")?;
        let is_plain =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let fits = !name.is_empty()
            && name.len() <= STREAM_NAME_BYTES_MAX
            && !name.starts_with("amq.")
            && name.bytes().all(is_plain);
        fits.then(|| Self::Stream(name.to_owned()))
    }

    fn print(&self) -> String {
        match self {
            Self::Memory => "memory".to_owned(),
            Self::Stream(name) => format!("stream:{name}"),
        }
    }
}

/// An age as RabbitMQ writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MaxAge(pub(crate) String);

impl Text for MaxAge {
    const EXPECTED: &str = "an age such as 90s, 30m, 12h or 7D: a whole number up to 999999 and one of s, m, h, D, M, Y";

    fn read(text: &str) -> Option<Self> {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let fits = (1..=6).contains(&number.len())
            && number.bytes().all(|byte| byte.is_ascii_digit())
            && !number.starts_with('0')
            && matches!(unit, "s" | "m" | "h" | "D" | "M" | "Y");
        fits.then(|| Self(text.to_owned()))
    }

    fn print(&self) -> String {
        self.0.clone()
    }
}

/// A broker's URL, with its password; printed with the password masked.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct BrokerUrl(pub(crate) String);

impl BrokerUrl {
    /// What RabbitMQ ships with: no secret, so not masked, and the default stays readable.
    const PUBLIC_PASSWORD: &str = "guest";
}

impl Text for BrokerUrl {
    const EXPECTED: &str = "a broker URL such as amqp://user:password@127.0.0.1:5672/%2f";
    const REPEATABLE: bool = false;

    fn read(text: &str) -> Option<Self> {
        crate::amqp::validate_url(text)
            .is_ok()
            .then(|| Self(text.to_owned()))
    }

    fn hint(text: &str) -> Option<&'static str> {
        crate::amqp::validate_url(text)
            .err()
            .map(crate::amqp::AmqpUrlError::text)
    }

    fn print(&self) -> String {
        let Ok(mut url) = url::Url::parse(&self.0) else {
            return "***".to_owned();
        };
        let is_secret = url
            .password()
            .is_some_and(|password| password != Self::PUBLIC_PASSWORD);
        let is_user_too = is_secret && url.password() == Some(url.username());
        if is_user_too && url.set_username("***").is_err()
            || is_secret && url.set_password(Some("***")).is_err()
        {
            return "***".to_owned();
        }
        url.to_string()
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.print())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What the two spellings of a value give, problems included.
    fn problems<T: Written>(text: &str, value: &Value) -> (String, String) {
        let problem =
            |result: Result<T, Problem>| result.err().map(|problem| problem.0).unwrap_or_default();
        (problem(T::from_text(text)), problem(T::from_json(value)))
    }

    #[test]
    fn a_value_that_does_not_fit_is_told_what_was_expected_in_both_spellings() {
        let port = "expected a whole number from 0 to 65535, found";
        assert_eq!(
            problems::<u16>("abc", &json!("abc")),
            (format!("{port} \"abc\""), format!("{port} \"abc\""))
        );
        assert_eq!(
            problems::<u16>("65536", &json!(65536)),
            (format!("{port} \"65536\""), format!("{port} 65536"))
        );
        assert_eq!(
            problems::<u16>("-1", &json!(-1)),
            (format!("{port} \"-1\""), format!("{port} -1"))
        );
        assert_eq!(
            problems::<u16>("1.5", &json!(1.5)),
            (format!("{port} \"1.5\""), format!("{port} 1.5"))
        );
        assert_eq!(
            problems::<u16>("", &json!(null)),
            (format!("{port} \"\""), format!("{port} null"))
        );
        let port = "expected a whole number from 0 to 65535, or";
        assert_eq!(
            problems::<PortOrNone>("null", &json!("none")),
            (
                format!("{port} none, found \"null\""),
                format!("{port} null, found \"none\"")
            )
        );
        assert_eq!(
            problems::<NonZeroU16>("0", &json!(0)).1,
            "expected a whole number from 1 to 65535, found 0"
        );
        assert_eq!(
            problems::<bool>("yes", &json!(1)).1,
            "expected true or false, found 1"
        );
        assert_eq!(
            problems::<Limit<u64>>("-1", &json!("5")).1,
            "expected a whole number, 0 for no limit, found \"5\""
        );
        assert_eq!(
            problems::<Limit<u32>>("4294967296", &json!(5_000_000_000_u64)).1,
            "expected a whole number up to 4294967295, 0 for no limit, found 5000000000"
        );
        assert_eq!(
            problems::<Rate>("0", &json!(0)).0,
            "expected a number above 0 and at most 1000000, found \"0\""
        );
        for wrong in ["NaN", "inf", "-1", "1e9"] {
            assert!(Rate::from_text(wrong).is_err(), "{wrong}");
        }
        for wrong in ["{x}.localhost", "", "{account_id", "a b"] {
            assert!(RealmTemplate::from_text(wrong).is_err(), "{wrong}");
        }
        assert!(
            problems::<Word>("a b", &json!([1]))
                .1
                .starts_with("expected a text")
        );
        let long = problems::<IpAddr>(&"x".repeat(500), &json!(["x".repeat(500)]));
        assert!(
            long.0.ends_with('…') && long.0.len() < 140 && long.1.len() < 140,
            "{long:?}"
        );
    }

    #[test]
    fn a_value_survives_being_printed_and_read_again() {
        fn survives<T: Written>(text: &str, value: Value) {
            let read = T::from_text(text)
                .map_err(|problem| format!("{text}: {problem}"))
                .expect("a good value");
            assert_eq!(read.to_json(), value, "{text}");
            let again = T::from_json(&value)
                .map_err(|problem| format!("{value}: {problem}"))
                .expect("a good value");
            assert_eq!(again.to_json(), value);
        }
        survives::<u16>("0", json!(0));
        survives::<PortOrNone>("none", json!(null));
        survives::<PortOrNone>("5555", json!(5555));
        survives::<NonZeroU32>("4294967295", json!(4_294_967_295_u32));
        survives::<Limit<u64>>("0", json!(0));
        survives::<Limit<u32>>("7", json!(7));
        survives::<Rate>("0.5", json!(0.5));
        survives::<bool>("true", json!(true));
        survives::<IpAddr>("::1", json!("::1"));
        survives::<SocketAddr>("[::1]:80", json!("[::1]:80"));
        survives::<Style>("kazoo", json!("kazoo"));
        survives::<SlowConsumerPolicy>("drop", json!("drop"));
        survives::<log::LevelFilter>("debug", json!("debug"));
        survives::<LogFormat>("json", json!("json"));
        survives::<SourceName>("replay:a b.jsonl", json!("replay:a b.jsonl"));
        survives::<AuthName>("tokens:/etc/tokens.json", json!("tokens:/etc/tokens.json"));
        survives::<AuthName>("jwt:/etc/keys", json!("jwt:/etc/keys"));
        survives::<AuthName>(
            "crossbar:http://127.0.0.1:8000/v2/",
            json!("crossbar:http://127.0.0.1:8000/v2"),
        );
        survives::<FileName>("a b.json", json!("a b.json"));
        survives::<Issuer>("kazoo", json!("kazoo"));
        survives::<RealmTemplate>(
            "{account_id}.sip.example",
            json!("{account_id}.sip.example"),
        );
        survives::<Object>(r#"{"name": "x"}"#, json!({"name": "x"}));
        survives::<FileName>("ca.pem", json!("ca.pem"));
        survives::<BrokerUrl>("amqps://broker", json!("amqps://broker"));
        survives::<BrokerUrl>(
            "amqp://guest:guest@127.0.0.1:5672/%2f",
            json!("amqp://guest:guest@127.0.0.1:5672/%2f"),
        );
    }

    #[test]
    fn passwords_and_tokens_are_in_no_message_and_no_print() {
        let url = BrokerUrl::from_text("amqp://user:hunter2@broker/x").expect("a good URL");
        assert_eq!(url.to_json(), json!("amqp://user:***@broker/x"));
        assert_eq!(format!("{url:?}"), "amqp://user:***@broker/x");
        let same = BrokerUrl::from_text("amqp://hunter2:hunter2@broker").expect("a good URL");
        assert_eq!(same.to_json(), json!("amqp://***:***@broker"));
        for wrong in [
            "amqpz://user:hunter2@broker",
            "http://user:hunter2@broker",
            "hunter2",
            "amqp://user:hunter2@h/a/b",
        ] {
            let (problem, _) = problems::<BrokerUrl>(wrong, &json!({"x": "hunter2"}));
            assert!(
                problem.contains("expected a broker URL") && !problem.contains("hunter2"),
                "{problem}"
            );
        }
        assert!(
            problems::<BrokerUrl>("amqpz://broker", &json!(1))
                .0
                .starts_with("the scheme is neither amqp nor amqps")
        );
        let (problem, json) = problems::<AuthName>("hunter2", &json!({"tokens": "hunter2"}));
        assert_eq!(
            (&*problem, &*json),
            (
                "expected tokens:FILE, jwt:FILE_OR_FOLDER, crossbar:URL or insecure",
                "expected tokens:FILE, jwt:FILE_OR_FOLDER, crossbar:URL or insecure"
            )
        );
        let pem = "-----BEGIN PRIVATE KEY-----\nhunter2";
        let (problem, json) = problems::<FileName>(pem, &json!(["hunter2"]));
        assert_eq!(
            (&*problem, &*json),
            ("expected the name of a file", "expected the name of a file")
        );
        for (url, hint) in [
            (
                "hunter2",
                "the URL of crossbar is none such as https://HOST:8443/v2",
            ),
            (
                "hunter2://host",
                "the scheme of crossbar's URL is neither http nor https",
            ),
            (
                "http://user:hunter2@host",
                "crossbar's URL has a user or password",
            ),
            (
                "http://host/v2?hunter2",
                "crossbar's URL has a query or fragment",
            ),
            (
                "http://host/v2#hunter2",
                "crossbar's URL has a query or fragment",
            ),
        ] {
            let (problem, _) = problems::<AuthName>(&format!("crossbar:{url}"), &json!(1));
            assert!(
                problem.starts_with(hint) && !problem.contains("hunter2"),
                "{problem}"
            );
        }
        let secret = Secret::from_text("hunter2").expect("a good secret");
        assert_eq!(secret.to_json(), json!("***"));
        assert_eq!(format!("{secret:?}"), "***");
        for wrong in [
            "",
            "hunter2 ",
            "hunter2\n",
            "hunter2ü",
            &"hunter2".repeat(2000),
        ] {
            let (problem, _) = problems::<Secret>(wrong, &json!(["hunter2"]));
            assert_eq!(problem, "expected a token of 1 to 8192 visible characters");
        }
    }
}
