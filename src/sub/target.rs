//! Where a session goes to, and as whom. Pure.

use std::fmt;

use url::{Host, Url};

/// A token; printed as `***`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token(pub(super) String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The address of a server: `ws://HOST:PORT/PATH?QUERY`, or `wss` for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    url: Url,
}

/// Why a URL is refused. The URL is not repeated: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TargetError {
    #[error("expected a URL such as ws://HOST:PORT or wss://HOST:PORT")]
    Malformed,
    #[error("expected ws:// or wss://, the schemes of websockets")]
    Scheme,
    #[error("a user or password in the URL is not supported: use --token or --token-file")]
    Userinfo,
}

impl Target {
    /// Reads a URL; `style` is asked for in its query, unless that has one.
    pub(super) fn parse(text: &str, style: Option<&str>) -> Result<Self, TargetError> {
        let mut url = Url::parse(text).map_err(|_| TargetError::Malformed)?;
        match url.scheme() {
            "ws" | "wss" => {}
            "http" | "https" => return Err(TargetError::Scheme),
            _ if text.contains("://") => return Err(TargetError::Scheme),
            _ => return Err(TargetError::Malformed),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(TargetError::Userinfo);
        }
        url.set_fragment(None);
        if let Some(style) = style
            && !url.query_pairs().any(|(name, _)| name == "style")
        {
            url.query_pairs_mut().append_pair("style", style);
        }
        Ok(Self { url })
    }

    pub(super) fn as_str(&self) -> &str {
        self.url.as_str()
    }

    pub(super) fn has_tls(&self) -> bool {
        self.url.scheme() == "wss"
    }

    /// The host as it is looked up, and as a certificate names it.
    pub(super) fn host(&self) -> String {
        match self.url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(ip)) => ip.to_string(),
            Some(Host::Ipv6(ip)) => ip.to_string(),
            None => String::new(),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.url.port_or_known_default().unwrap_or_default()
    }

    /// `HOST:PORT`, for people.
    pub(super) fn name(&self) -> String {
        match self.url.host() {
            Some(host) => format!("{host}:{}", self.port()),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_websockets_are_taken_and_others_refused() {
        for (text, name, has_tls) in [
            ("ws://127.0.0.1:5555", "127.0.0.1:5555", false),
            ("wss://example.com/path#x", "example.com:443", true),
            ("ws://[::1]:80/?style=kazoo", "[::1]:80", false),
        ] {
            let target = Target::parse(text, Some("piston")).expect(text);
            assert_eq!((&*target.name(), target.has_tls()), (name, has_tls));
        }
        for (text, error) in [
            ("", TargetError::Malformed),
            ("127.0.0.1:5555", TargetError::Malformed),
            ("localhost:5555", TargetError::Malformed),
            ("ws://", TargetError::Malformed),
            ("ws://host:99999", TargetError::Malformed),
            ("http://host:5555", TargetError::Scheme),
            ("amqp://host", TargetError::Scheme),
            ("ws://user:hunter2@host", TargetError::Userinfo),
        ] {
            assert_eq!(Target::parse(text, None), Err(error), "{text}");
        }
        assert_eq!(format!("{:?}", Token("hunter2".into())), "***");
    }

    #[test]
    fn a_style_is_asked_for_once() {
        let query = |text, style| Target::parse(text, style).expect(text).as_str().to_owned();
        assert_eq!(query("ws://h", None), "ws://h/");
        assert_eq!(query("ws://h", Some("kazoo")), "ws://h/?style=kazoo");
        assert_eq!(
            query("ws://h/?a=b", Some("kazoo")),
            "ws://h/?a=b&style=kazoo"
        );
        assert_eq!(
            query("ws://h/?style=piston", Some("kazoo")),
            "ws://h/?style=piston"
        );
    }
}
