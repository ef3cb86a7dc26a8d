//! The AMQP client's own lines of the log. A broker chooses what is in them and how many there are, so they are written
//! without any broker's password, bounded in length, and at most one a minute after the first few.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use log::LevelFilter;

use super::url::{Endpoint, bounded, without};
use crate::limits::FAULTS_LOGGED_FREELY;
use crate::log_limit::LogLimit;
use crate::logging::GuardedLibrary;

/// The AMQP client as the log has to treat it. Below its errors it logs its login, password included (AMQP rail 9), and
/// all that it would say we say ourselves.
pub const CLIENT_LINES: GuardedLibrary = GuardedLibrary {
    target: "amiquip",
    level: LevelFilter::Error,
    line: client_line,
    without_secrets: without_passwords,
};

/// One for the process, as the log is.
static CLIENT_LOG: Mutex<Option<ClientLog>> = Mutex::new(None);

/// Keeps the passwords of these brokers out of all lines from now on.
pub(super) fn keep_secret(endpoints: &[Endpoint]) {
    with_client_log(|log| log.keep_secret(endpoints));
}

/// The line to be written in place of a line of the client; `None`: it is left out.
fn client_line(text: &str) -> Option<String> {
    with_client_log(|log| log.line(text, Instant::now()))
}

/// Returns `text`, which the client's code may have made, without the passwords of brokers.
fn without_passwords(text: &str) -> String {
    with_client_log(|log| log.without_passwords(text))
}

/// A thread that logs never waits here for long: nothing under the lock waits or logs.
fn with_client_log<T>(act: impl FnOnce(&mut ClientLog) -> T) -> T {
    let mut log = CLIENT_LOG.lock().unwrap_or_else(PoisonError::into_inner);
    act(log.get_or_insert_with(ClientLog::default))
}

struct ClientLog {
    /// The longest first, so that a password which contains another is replaced as a whole.
    passwords: Vec<String>,
    limit: LogLimit,
}

impl Default for ClientLog {
    fn default() -> Self {
        Self {
            passwords: Vec::new(),
            limit: LogLimit::with_credit(FAULTS_LOGGED_FREELY),
        }
    }
}

impl ClientLog {
    fn keep_secret(&mut self, endpoints: &[Endpoint]) {
        for endpoint in endpoints {
            if let Some(password) = endpoint.secret()
                && !self.passwords.iter().any(|known| known == password)
            {
                self.passwords.push(password.to_owned());
            }
        }
        self.passwords
            .sort_by_key(|password| std::cmp::Reverse(password.len()));
    }

    fn without_passwords(&self, text: &str) -> String {
        self.passwords
            .iter()
            .fold(text.to_owned(), |text, password| without(&text, password))
    }

    fn line(&mut self, text: &str, now: Instant) -> Option<String> {
        let left_out = self.limit.pass(now)?;
        let text = bounded(&self.without_passwords(text));
        Some(format!("{text}{left_out}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn endpoints(urls: &[&str]) -> Vec<Endpoint> {
        urls.iter()
            .map(|url| Endpoint::parse(url).expect(url))
            .collect()
    }

    #[test]
    fn no_line_of_the_client_has_a_password_in_it() {
        let mut log = ClientLog::default();
        log.keep_secret(&endpoints(&["amqp://h", "amqp://u:s3c@h"]));
        log.keep_secret(&endpoints(&[
            "amqp://u:s3cret@h",
            "amqp://u:s3c@i",
            "amqp://u:qu%22o%5Cte@h",
        ]));
        for (text, expected) in [
            ("closed", "closed"),
            ("guest is refused", "guest is refused"),
            ("u:s3cret, s3c", "u:[password], [password]"),
            ("qu\"o\\te", "[password]"),
            (
                "Secure { challenge: \"qu\\\"o\\\\te\" }",
                "Secure { challenge: \"[password]\" }",
            ),
        ] {
            assert_eq!(log.without_passwords(text), expected, "{text}");
        }
    }

    #[test]
    fn lines_of_the_client_are_bounded_in_number_and_length() {
        let (mut log, start) = (ClientLog::default(), Instant::now());
        let logged: Vec<_> = (0..120)
            .filter_map(|second| log.line("closed", start + Duration::from_secs(second)))
            .collect();
        let freely = vec!["closed"; FAULTS_LOGGED_FREELY as usize];
        assert_eq!(
            logged,
            [
                freely,
                vec!["closed; 59 more such lines were left out since the last one"]
            ]
            .concat()
        );
        let long = log.line(&"x".repeat(10_000), start + Duration::from_secs(200));
        assert!(long.is_some_and(|line| line.len() < 400));
    }
}
