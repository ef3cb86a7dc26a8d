//! Broker URLs: `amqp://USER:PASSWORD@HOST:PORT/VHOST`, each part percent-encoded where needed; `amqps` is with TLS.
//!
//! Invariants: an error contains no piece of the text that was given, because in a malformed URL any piece may belong
//! to the password; the `Display` of an [`Endpoint`] contains no password.

use std::fmt;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use rustls::pki_types::ServerName;

use super::tls::TlsFiles;

/// Longest user name, password and virtual host: the longest short string of AMQP.
const PART_BYTES_MAX: usize = 255;

/// User and password of a broker fresh from its package.
const DEFAULT_LOGIN: &str = "guest";

/// Longest piece of a broker's text that is logged.
const LOGGED_BYTES_MAX: usize = 300;

/// A part of a broker URL that is written percent-encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EncodedPart {
    /// Between `amqp://` or `@`, and `:` or `/`.
    Host,
    /// Before the first `:`.
    User,
    /// From there to the `@`.
    Password,
    /// Behind the `/` after the host.
    VirtualHost,
}

/// Why a broker URL is refused. Each text names the part that is wrong, and none shows what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AmqpUrlError {
    /// Not a URL, for no reason that belongs to one part.
    Malformed,
    /// Nothing that could be a scheme before a `:`.
    NoScheme,
    /// Neither `amqp` nor `amqps`.
    WrongScheme,
    /// No host.
    NoHost,
    /// Neither a name nor an address.
    WrongHost,
    /// Not what a certificate can be made out to, and TLS is asked for.
    NoHostForTls,
    /// No number from 1 to 65535. What stands there may be the beginning of a password with a `/` in it.
    WrongPort,
    /// A `@` behind the host: most likely a password with a `/` in it, whose rest must not be taken for the virtual
    /// host and logged.
    LateAt,
    /// More than one path segment.
    ExtraPath,
    /// `?…`.
    Query,
    /// `#…`.
    Fragment,
    /// It does not decode.
    NotUtf8(EncodedPart),
    /// It is longer than 255 bytes.
    TooLong(EncodedPart),
}

const _: () = assert!(PART_BYTES_MAX == 255, "said in the texts");

impl AmqpUrlError {
    /// What is wrong, for an operator.
    #[must_use]
    pub(crate) fn text(self) -> &'static str {
        use EncodedPart::{Host, Password, User, VirtualHost};
        match self {
            Self::Malformed => "not a URL",
            Self::NoScheme => "the scheme is missing",
            Self::WrongScheme => "the scheme is neither amqp nor amqps",
            Self::NoHost => "the host is missing",
            Self::WrongHost => {
                "the host is neither a name nor an address; IPv6 is written in brackets"
            }
            Self::NoHostForTls => "the host is not a name that a certificate can be made out to",
            Self::WrongPort => {
                "the port is not a number from 1 to 65535; in user and password `/`, `?`, `#` and `@` are written %2F, \
                 %3F, %23 and %40"
            }
            Self::LateAt => {
                "the virtual host has a `@`; in user and password `/` is written %2F, in a virtual host `@` is written \
                 %40"
            }
            Self::ExtraPath => "the virtual host has a `/`, which is written %2f",
            Self::Query => "a query (behind `?`) is not supported; elsewhere `?` is written %3F",
            Self::Fragment => {
                "a fragment (behind `#`) is not supported; elsewhere `#` is written %23"
            }
            Self::NotUtf8(Host) => "the host does not percent-decode to UTF-8",
            Self::NotUtf8(User) => "the user does not percent-decode to UTF-8",
            Self::NotUtf8(Password) => "the password does not percent-decode to UTF-8",
            Self::NotUtf8(VirtualHost) => "the virtual host does not percent-decode to UTF-8",
            Self::TooLong(Host) => "the host is longer than 255 bytes",
            Self::TooLong(User) => "the user is longer than 255 bytes",
            Self::TooLong(Password) => "the password is longer than 255 bytes",
            Self::TooLong(VirtualHost) => "the virtual host is longer than 255 bytes",
        }
    }
}

impl fmt::Display for AmqpUrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for AmqpUrlError {}

impl From<url::ParseError> for AmqpUrlError {
    fn from(error: url::ParseError) -> Self {
        use url::ParseError::{
            EmptyHost, IdnaError, InvalidDomainCharacter, InvalidIpv4Address, InvalidIpv6Address,
            InvalidPort, RelativeUrlWithoutBase,
        };
        match error {
            RelativeUrlWithoutBase => Self::NoScheme,
            EmptyHost => Self::NoHost,
            IdnaError | InvalidDomainCharacter | InvalidIpv4Address | InvalidIpv6Address => {
                Self::WrongHost
            }
            InvalidPort => Self::WrongPort,
            _ => Self::Malformed,
        }
    }
}

/// Checks one broker URL, for the configuration (PROTOCOL 9: an impossible value ends the process with exit code 2).
///
/// # Errors
/// [`AmqpUrlError`], whose text never contains any piece of the URL.
pub(crate) fn validate_url(url: &str) -> Result<(), AmqpUrlError> {
    Endpoint::parse(url).map(|_| ())
}

/// Whether this broker URL, which was [checked](validate_url), asks for TLS.
pub(crate) fn has_tls(url: &str) -> bool {
    Endpoint::parse(url).is_ok_and(|endpoint| endpoint.wire != Wire::Plain)
}

/// What is between a broker and us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// `amqp`.
    Plain,
    /// `amqps`.
    Tls {
        /// Whom the broker's certificate must be made out to.
        name: ServerName<'static>,
        /// Those of no key, unless [`Endpoint::with_files`] was called.
        files: Arc<TlsFiles>,
    },
}

/// One broker, as read from its URL. Its `Display` is `HOST:PORT vhost VHOST`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Name or address, without the brackets of an IPv6 address.
    pub(super) host: String,
    /// 5672, or 5671 with TLS, when the URL has none.
    pub(super) port: u16,
    pub(super) wire: Wire,
    /// `guest` when the URL has none.
    pub(super) user: String,
    /// `guest` when the URL has none.
    pub(super) password: String,
    /// `/` when the URL has none.
    pub(super) vhost: String,
}

impl Endpoint {
    pub(super) fn parse(text: &str) -> Result<Self, AmqpUrlError> {
        let url = url::Url::parse(text)?;
        let is_tls = match url.scheme() {
            "amqp" => false,
            "amqps" => true,
            _ => return Err(AmqpUrlError::WrongScheme),
        };
        if url.query().is_some() {
            return Err(AmqpUrlError::Query);
        }
        if url.fragment().is_some() {
            return Err(AmqpUrlError::Fragment);
        }
        let host = match url.host() {
            Some(url::Host::Domain(name)) if !name.is_empty() => decode(name, EncodedPart::Host)?,
            Some(url::Host::Ipv4(address)) => address.to_string(),
            Some(url::Host::Ipv6(address)) => address.to_string(),
            Some(url::Host::Domain(_)) | None => return Err(AmqpUrlError::NoHost),
        };
        let wire = if is_tls {
            let name =
                ServerName::try_from(host.clone()).map_err(|_| AmqpUrlError::NoHostForTls)?;
            let files = Arc::default();
            Wire::Tls { name, files }
        } else {
            Wire::Plain
        };
        let port = url.port().unwrap_or(if is_tls { 5671 } else { 5672 });
        if port == 0 {
            return Err(AmqpUrlError::WrongPort);
        }
        let vhost = url.path().strip_prefix('/').unwrap_or_default();
        if vhost.contains('@') {
            return Err(AmqpUrlError::LateAt);
        }
        if vhost.contains('/') {
            return Err(AmqpUrlError::ExtraPath);
        }
        let or = |text: &str, default: &str, part| {
            decode(if text.is_empty() { default } else { text }, part)
        };
        let password = url.password().unwrap_or_default();
        Ok(Self {
            host,
            port,
            wire,
            user: or(url.username(), DEFAULT_LOGIN, EncodedPart::User)?,
            password: or(password, DEFAULT_LOGIN, EncodedPart::Password)?,
            vhost: or(vhost, "/", EncodedPart::VirtualHost)?,
        })
    }

    /// With these files for its TLS, where it has any.
    pub(super) fn with_files(mut self, of_key: &Arc<TlsFiles>) -> Self {
        if let Wire::Tls { files, .. } = &mut self.wire {
            *files = of_key.clone();
        }
        self
    }

    /// The password, unless it is the default one of every broker.
    pub(super) fn secret(&self) -> Option<&str> {
        Some(&*self.password).filter(|password| *password != DEFAULT_LOGIN)
    }

    /// Returns `text`, which came from the broker or its client library, for the log: without the password, unless that
    /// is the default one of every broker, and at most 300 bytes of it.
    pub(super) fn redact(&self, text: &str) -> String {
        match self.secret() {
            Some(password) => bounded(&without(text, password)),
            None => bounded(text),
        }
    }
}

/// Returns `text` with `[password]` in place of `password`, also where the password is quoted as a string literal.
pub(super) fn without(text: &str, password: &str) -> String {
    let quoted = password.escape_debug().to_string();
    let text = text.replace(&quoted, "[password]");
    text.replace(password, "[password]")
}

/// Returns `text` cut to 300 bytes. The log itself escapes what is not printable.
pub(super) fn bounded(text: &str) -> String {
    let mut ends = text.char_indices().map(|(at, _)| at);
    let end = ends
        .find(|at| *at >= LOGGED_BYTES_MAX)
        .unwrap_or(text.len());
    let mark = if end < text.len() { "…" } else { "" };
    format!("{}{mark}", &text[..end])
}

fn decode(text: &str, part: EncodedPart) -> Result<String, AmqpUrlError> {
    let decoded = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| AmqpUrlError::NotUtf8(part))?;
    if decoded.len() > PART_BYTES_MAX {
        return Err(AmqpUrlError::TooLong(part));
    }
    Ok(decoded.into_owned())
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host, port, vhost, ..
        } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port} vhost {vhost:?}")
        } else {
            write!(f, "{host}:{port} vhost {vhost:?}")
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_url_is_read_with_the_platforms_defaults() {
        let rows = [
            ("amqp://broker", ("broker", 5672, "guest", "guest", "/")),
            ("amqps://broker", ("broker", 5671, "guest", "guest", "/")),
            ("amqps://u:p@[::1]:1/", ("::1", 1, "u", "p", "/")),
            ("amqp://broker/", ("broker", 5672, "guest", "guest", "/")),
            (
                "amqp://guest:guest@127.0.0.1:5672/%2f",
                ("127.0.0.1", 5672, "guest", "guest", "/"),
            ),
            (
                "amqp://u%40x:p%2Fw%3a@h:1/v%20h",
                ("h", 1, "u@x", "p/w:", "v h"),
            ),
            (
                "amqp://u:p@[::1]:5673/kazoo",
                ("::1", 5673, "u", "p", "kazoo"),
            ),
        ];
        for (text, (host, port, user, password, vhost)) in rows {
            let read = Endpoint::parse(text).expect(text);
            assert_eq!(read.wire != Wire::Plain, has_tls(text));
            assert_eq!(has_tls(text), text.starts_with("amqps"));
            assert_eq!(
                (
                    &*read.host,
                    read.port,
                    &*read.user,
                    &*read.password,
                    &*read.vhost
                ),
                (host, port, user, password, vhost),
                "{text}"
            );
        }
    }

    #[test]
    fn a_refused_url_says_which_part_is_wrong_and_shows_nothing_of_itself() {
        use AmqpUrlError as E;
        use EncodedPart as Part;
        let long = "s3cret".repeat(50);
        let rows = [
            // Text, error, and the part that its text names.
            ("s3cret".to_owned(), E::NoScheme, "scheme"),
            ("//u:s3cret@h".to_owned(), E::NoScheme, "scheme"),
            ("amqp//u:s3cret@h".to_owned(), E::NoScheme, "scheme"),
            ("amqpz://u:s3cret@h".to_owned(), E::WrongScheme, "scheme"),
            ("http://u:s3cret@h".to_owned(), E::WrongScheme, "scheme"),
            ("u:s3cret@h".to_owned(), E::WrongScheme, "scheme"),
            ("amqp:///s3cret".to_owned(), E::NoHost, "host"),
            ("amqp:s3cret".to_owned(), E::NoHost, "host"),
            ("amqp://u:s3cret@".to_owned(), E::NoHost, "host"),
            ("amqp://u:s3cret@/v".to_owned(), E::NoHost, "host"),
            ("amqp://u:s3cret@a b/v".to_owned(), E::WrongHost, "host"),
            (
                "amqp://u:s3cret@[::s3cret]".to_owned(),
                E::WrongHost,
                "host",
            ),
            (
                "amqp://u:s3cret@h%ff".to_owned(),
                E::NotUtf8(Part::Host),
                "host",
            ),
            (format!("amqp://{long}"), E::TooLong(Part::Host), "host"),
            (
                "amqps://u:s3cret@h_".to_owned() + &"x".repeat(64),
                E::NoHostForTls,
                "host",
            ),
            ("amqp://u:s3cret@h:x".to_owned(), E::WrongPort, "port"),
            ("amqp://u:s3cret@h:0".to_owned(), E::WrongPort, "port"),
            ("amqp://u:s3cret@h:65536".to_owned(), E::WrongPort, "port"),
            ("amqp://u:s3cret/x@h".to_owned(), E::WrongPort, "port"),
            ("amqp://u:s3cret?x@h".to_owned(), E::WrongPort, "port"),
            ("amqp://u:s3cret#x@h".to_owned(), E::WrongPort, "port"),
            (
                "amqp://s3cret%ff:p@h".to_owned(),
                E::NotUtf8(Part::User),
                "user",
            ),
            (format!("amqp://{long}:p@h"), E::TooLong(Part::User), "user"),
            (
                "amqp://u:s3cret%ff@h".to_owned(),
                E::NotUtf8(Part::Password),
                "password",
            ),
            (
                format!("amqp://u:{long}@h"),
                E::TooLong(Part::Password),
                "password",
            ),
            ("amqp://u:47/s3cret@h".to_owned(), E::LateAt, "virtual host"),
            (
                "amqp://u:p@h/a/s3cret".to_owned(),
                E::ExtraPath,
                "virtual host",
            ),
            (
                "amqp://u:p@h/s3cret%ff".to_owned(),
                E::NotUtf8(Part::VirtualHost),
                "virtual host",
            ),
            (
                format!("amqp://u:p@h/{long}"),
                E::TooLong(Part::VirtualHost),
                "virtual host",
            ),
            ("amqp://h/v?s3cret=1".to_owned(), E::Query, "query"),
            ("amqp://u:47?s3cret@h".to_owned(), E::Query, "query"),
            ("amqp://h/v#s3cret".to_owned(), E::Fragment, "fragment"),
        ];
        for (text, expected, part) in rows {
            let error = validate_url(&text).expect_err(&text);
            assert_eq!(error, expected, "{text}");
            let said = error.to_string();
            let named = said.split([',', ';']).next().unwrap_or_default();
            assert!(named.contains(part), "{text}: {said}");
            assert!(!said.contains("s3cret"), "{said}");
        }
    }

    #[test]
    fn neither_display_nor_a_brokers_text_shows_the_password() {
        let endpoint = Endpoint::parse("amqp://u:s3cret@h/v").expect("a good URL");
        assert_eq!(
            format!("{endpoint} {endpoint:?}"),
            "h:5672 vhost \"v\" h:5672 vhost \"v\""
        );
        assert_eq!(
            endpoint.redact("refused u:s3cret\r\nnext"),
            "refused u:[password]\r\nnext"
        );
        assert!(endpoint.redact(&"x".repeat(1000)).len() < 310);
        let same = Endpoint::parse("amqp://s3cret:s3cret@h").expect("a good URL");
        assert_eq!(same.redact("user 's3cret'"), "user '[password]'");
        let default = Endpoint::parse("amqp://h").expect("a good URL");
        assert_eq!(default.redact("user 'guest'"), "user 'guest'");
    }
}
