//! Broker URLs: `amqp://USER:PASSWORD@HOST:PORT/VHOST`, each part percent-encoded where needed.
//!
//! Invariant: neither an error nor the `Display` of an [`Endpoint`] contains the password, or any other piece of
//! the text that was given: where the text is malformed, any piece may be the password's.

use std::fmt;

use percent_encoding::percent_decode_str;

/// Longest user name, password and virtual host; AMQP's short strings end there, and 4 octets are plenty for the
/// rest of a login.
const PART_BYTES_MAX: usize = 255;

/// User and password of a broker fresh from its package.
const DEFAULT_LOGIN: &str = "guest";

/// Longest piece of a broker's text that reaches a log.
const LOGGED_BYTES_MAX: usize = 300;

/// Why a broker URL is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmqpUrlError {
    /// Not a URL at all.
    #[error(
        "not a URL, expected amqp://USER:PASSWORD@HOST:PORT/VHOST with special characters percent-encoded"
    )]
    Malformed,
    /// `amqps`.
    #[error("amqps (TLS to the broker) is not supported yet, expected amqp://")]
    TlsNotSupported,
    /// Another scheme.
    #[error("expected a URL that begins with amqp://")]
    WrongScheme,
    /// No host.
    #[error("the host is missing, expected amqp://USER:PASSWORD@HOST:PORT/VHOST")]
    NoHost,
    /// A `@` behind the host: most likely the end of a password with a `/` in it, which must not be taken for the
    /// virtual host and logged.
    #[error(
        "a `@` after the host; in user and password `/` is written %2F, in a virtual host `@` is written %40"
    )]
    LateAt,
    /// More than one path segment.
    #[error("more than one `/` after the host, a virtual host's own `/` is written %2f")]
    ExtraPath,
    /// `?…` or `#…`.
    #[error("parameters after `?` or `#` are not supported")]
    Parameters,
    /// User, password or virtual host do not decode to UTF-8.
    #[error("user, password or virtual host do not percent-decode to UTF-8")]
    NotUtf8,
    /// User, password or virtual host longer than 255 bytes.
    #[error("user, password or virtual host are longer than {PART_BYTES_MAX} bytes")]
    TooLong,
}

/// Checks one broker URL, for the configuration (PROTOCOL 9: an impossible value ends the process with 2).
///
/// # Errors
/// [`AmqpUrlError`], whose text never contains any piece of the URL.
pub fn validate_url(url: &str) -> Result<(), AmqpUrlError> {
    Endpoint::parse(url).map(|_| ())
}

/// One broker, as read from its URL. Its `Display` is `HOST:PORT vhost VHOST`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Name or address, without the brackets of an IPv6 address.
    pub(super) host: String,
    /// 5672 when the URL has none.
    pub(super) port: u16,
    /// `guest` when the URL has none.
    pub(super) user: String,
    /// `guest` when the URL has none.
    pub(super) password: String,
    /// `/` when the URL has none.
    pub(super) vhost: String,
}

impl Endpoint {
    pub(super) fn parse(text: &str) -> Result<Self, AmqpUrlError> {
        let url = url::Url::parse(text).map_err(|_| AmqpUrlError::Malformed)?;
        match url.scheme() {
            "amqp" => {}
            "amqps" => return Err(AmqpUrlError::TlsNotSupported),
            _ => return Err(AmqpUrlError::WrongScheme),
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(AmqpUrlError::Parameters);
        }
        let host = match url.host() {
            Some(url::Host::Domain(name)) if !name.is_empty() => decode(name)?,
            Some(url::Host::Ipv4(address)) => address.to_string(),
            Some(url::Host::Ipv6(address)) => address.to_string(),
            Some(url::Host::Domain(_)) | None => return Err(AmqpUrlError::NoHost),
        };
        let vhost = url.path().strip_prefix('/').unwrap_or_default();
        if vhost.contains('@') {
            return Err(AmqpUrlError::LateAt);
        }
        if vhost.contains('/') {
            return Err(AmqpUrlError::ExtraPath);
        }
        let or = |part: &str, default: &str| decode(if part.is_empty() { default } else { part });
        Ok(Self {
            host,
            port: url.port().unwrap_or(5672),
            user: or(url.username(), DEFAULT_LOGIN)?,
            password: or(url.password().unwrap_or_default(), DEFAULT_LOGIN)?,
            vhost: or(vhost, "/")?,
        })
    }

    /// `text`, which came from the broker or its client library, made fit for a log: without the password
    /// unless that is every broker's, without control characters, at most 300 bytes.
    pub(super) fn redact(&self, text: &str) -> String {
        if self.password == DEFAULT_LOGIN {
            return bounded(text);
        }
        bounded(&text.replace(&self.password, "[password]"))
    }
}

/// `text` with control characters escaped and cut to 300 bytes.
pub(super) fn bounded(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars() {
        if shown.len() >= LOGGED_BYTES_MAX {
            shown.push('…');
            break;
        }
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

fn decode(part: &str) -> Result<String, AmqpUrlError> {
    let decoded = percent_decode_str(part)
        .decode_utf8()
        .map_err(|_| AmqpUrlError::NotUtf8)?;
    if decoded.len() > PART_BYTES_MAX {
        return Err(AmqpUrlError::TooLong);
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
    fn a_refused_url_says_what_was_expected_and_shows_nothing_of_itself() {
        let long = format!("amqp://u:{}@h", "s3cret".repeat(50));
        let rows = [
            ("s3cret", AmqpUrlError::Malformed),
            ("amqp://u:s3cret/x@h", AmqpUrlError::Malformed),
            ("amqps://u:s3cret@h", AmqpUrlError::TlsNotSupported),
            ("http://u:s3cret@h", AmqpUrlError::WrongScheme),
            ("amqp:///s3cret", AmqpUrlError::NoHost),
            ("amqp://u:p@h/a/s3cret", AmqpUrlError::ExtraPath),
            ("amqp://u:47/s3cret@h", AmqpUrlError::LateAt),
            ("amqp://h/v?s3cret=1", AmqpUrlError::Parameters),
            ("amqp://h/v#s3cret", AmqpUrlError::Parameters),
            ("amqp://u:s3cret%ff@h", AmqpUrlError::NotUtf8),
            (&long, AmqpUrlError::TooLong),
        ];
        for (text, expected) in rows {
            let error = validate_url(text).expect_err(text);
            assert_eq!(error, expected, "{text}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
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
            "refused u:[password]\\r\\nnext"
        );
        assert!(endpoint.redact(&"x".repeat(1000)).len() < 310);
        let same = Endpoint::parse("amqp://s3cret:s3cret@h").expect("a good URL");
        assert_eq!(same.redact("user 's3cret'"), "user '[password]'");
        let default = Endpoint::parse("amqp://h").expect("a good URL");
        assert_eq!(default.redact("user 'guest'"), "user 'guest'");
    }
}
