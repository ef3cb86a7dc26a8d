//! The keys about who may do what, as the authenticators take them; and the reading of the files that they name.
//!
//! Invariants: no content of a file is in an error; no file is read beyond its bound.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::ConfigError;
use super::values::{AuthName, Secret, Text};
use crate::auth::jwt::{KeyText, Rules};
use crate::auth::{AuthConfig, CacheTimes, JwtConfig};
use crate::inquiry::CrossbarUrl;
use crate::limits::{
    ADMIN_TOKEN_FILE_BYTES_MAX, AUTH_FILE_BYTES_MAX, JWT_KEYS_MAX, KEY_FILE_BYTES_MAX,
    KEY_FOLDER_BYTES_MAX,
};

/// Where the platform's REST API is and how it is asked (`--auth crossbar:URL`).
#[derive(Clone, PartialEq, Eq)]
pub struct CrossbarConfig {
    /// Where it is.
    pub url: CrossbarUrl,
    /// `crossbar_token`: what keys are fetched with; a secret. Without it none is fetched.
    pub service_token: Option<String>,
    /// `crossbar_timeout_ms`: for an answer. 5,000.
    pub timeout: Duration,
}

impl fmt::Debug for CrossbarConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CrossbarConfig")
            .field("url", &self.url.as_str())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// The keys about who may do what, each checked by itself.
pub(super) struct AuthKeys {
    pub(super) kinds: Vec<AuthName>,
    pub(super) insecure_realm: String,
    pub(super) rules: Rules,
    pub(super) times: CacheTimes,
    pub(super) service_token: Option<String>,
    pub(super) timeout: Duration,
    pub(super) accounts: Option<PathBuf>,
}

impl AuthKeys {
    /// Checks them together: there is an authenticator, none twice, and `insecure` alone. `place` is the key `auth` as the
    /// operator wrote it.
    pub(super) fn read(
        self,
        place: &str,
    ) -> Result<(AuthConfig, Option<CrossbarConfig>), ConfigError> {
        if self.kinds.is_empty() {
            return Err(ConfigError::NoAuth {
                place: place.to_owned(),
            });
        }
        let wrong = |problem: String| ConfigError::Value {
            place: place.to_owned(),
            problem,
        };
        if self.kinds.len() > 1 && self.kinds.contains(&AuthName::Insecure) {
            return Err(wrong(
                "insecure takes any token, so it stands alone".to_owned(),
            ));
        }
        let mut config = AuthConfig {
            accounts: self.accounts,
            ..AuthConfig::default()
        };
        let mut crossbar = None;
        for kind in self.kinds {
            let name = kind.kind();
            let is_first = match kind {
                AuthName::Insecure => {
                    config.accounts = None;
                    config
                        .insecure
                        .replace(self.insecure_realm.clone())
                        .is_none()
                }
                AuthName::Tokens(file) => config.tokens.replace(file).is_none(),
                AuthName::Jwt(keys) => {
                    let rules = self.rules.clone();
                    config.jwt.replace(JwtConfig { keys, rules }).is_none()
                }
                AuthName::Crossbar(url) => {
                    config.platform = Some(self.times);
                    let asked = CrossbarConfig {
                        url,
                        service_token: self.service_token.clone(),
                        timeout: self.timeout,
                    };
                    crossbar.replace(asked).is_none()
                }
            };
            if !is_first {
                return Err(wrong(format!(
                    "{name} is given twice; expected each kind at most once"
                )));
            }
        }
        Ok((config, crossbar))
    }
}

/// Reads a token file or an account tree, of at most [`AUTH_FILE_BYTES_MAX`].
///
/// # Errors
/// The file cannot be read, is larger, or is not UTF-8.
pub fn read_tokens(file: &Path) -> Result<String, ConfigError> {
    read(file, AUTH_FILE_BYTES_MAX)
}

/// Reads the admin token: the first line of a file of at most [`ADMIN_TOKEN_FILE_BYTES_MAX`].
pub(super) fn read_admin_token(file: &Path) -> Result<Box<str>, ConfigError> {
    let text = read(file, ADMIN_TOKEN_FILE_BYTES_MAX)?;
    let token = Secret::read(text.lines().next().unwrap_or_default().trim());
    match token {
        Some(Secret(token)) => Ok(token.into()),
        None => Err(ConfigError::File {
            file: file.to_owned(),
            problem: format!("expected {} in the first line", Secret::EXPECTED),
        }),
    }
}

/// Reads the keys of `jwt:`: a file of at most [`KEY_FILE_BYTES_MAX`], or of a folder the files whose names end in `.pem`
/// and do not begin with a dot, at most [`JWT_KEYS_MAX`] with [`KEY_FOLDER_BYTES_MAX`] together. They are read in the
/// order of their names.
///
/// # Errors
/// The file or folder cannot be read, is larger, or is not UTF-8.
pub fn read_keys(path: &Path) -> Result<KeyText, ConfigError> {
    let wrong = |error: io::Error| unreadable(path, &error);
    if !fs::metadata(path).map_err(wrong)?.is_dir() {
        return read(path, KEY_FILE_BYTES_MAX).map(KeyText::File);
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(wrong)? {
        let name = entry.map_err(wrong)?.file_name();
        // A name that is not UTF-8 is no key id of a token.
        let name = name.into_string().unwrap_or_default();
        if name.ends_with(".pem") && !name.starts_with('.') {
            names.push(name);
        }
        if names.len() > JWT_KEYS_MAX {
            return Err(ConfigError::File {
                file: path.to_owned(),
                problem: format!("more than {JWT_KEYS_MAX} keys"),
            });
        }
    }
    names.sort_unstable();
    let mut left = KEY_FOLDER_BYTES_MAX;
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let text = read(&path.join(&name), KEY_FILE_BYTES_MAX.min(left))?;
        left = left.saturating_sub(text.len() as u64);
        files.push((name, text));
    }
    Ok(KeyText::Folder(files))
}

fn read(file: &Path, bytes_max: u64) -> Result<String, ConfigError> {
    let mut text = String::new();
    File::open(file)
        .and_then(|opened| opened.take(bytes_max + 1).read_to_string(&mut text))
        .map_err(|error| unreadable(file, &error))?;
    if text.len() as u64 > bytes_max {
        return Err(ConfigError::File {
            file: file.to_owned(),
            problem: format!("larger than {bytes_max} bytes"),
        });
    }
    Ok(text)
}

fn unreadable(file: &Path, error: &io::Error) -> ConfigError {
    ConfigError::File {
        file: file.to_owned(),
        problem: format!("cannot be read: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem<T>(read: Result<T, ConfigError>) -> String {
        read.err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn a_folder_of_keys_is_read_by_the_names_of_its_files_and_within_bounds() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path();
        for name in ["b.pem", "a.pem", "README", ".hidden.pem"] {
            fs::write(path.join(name), name).expect("writable");
        }
        let KeyText::Folder(files) = read_keys(path).expect("readable") else {
            panic!("a folder");
        };
        let both = ["a.pem", "b.pem"].map(|name| (name.to_owned(), name.to_owned()));
        assert_eq!(files, both);

        let file = path.join("b.pem");
        assert!(matches!(read_keys(&file), Ok(KeyText::File(text)) if text == "b.pem"));
        let size = usize::try_from(KEY_FILE_BYTES_MAX).expect("small");
        fs::write(&file, "x".repeat(size)).expect("writable");
        assert!(read_keys(&file).is_ok());
        fs::write(&file, "x".repeat(size + 1)).expect("writable");
        let larger = format!("{}: larger than {size} bytes", file.display());
        assert_eq!(problem(read_keys(&file)), larger);
        assert_eq!(problem(read_keys(path)), larger);
        fs::write(&file, [0xff]).expect("writable");
        assert!(problem(read_keys(&file)).contains("b.pem: cannot be read: "));

        fs::remove_file(&file).expect("there");
        for number in 0..JWT_KEYS_MAX {
            fs::write(path.join(format!("{number}.pem")), "").expect("writable");
        }
        assert!(problem(read_keys(path)).ends_with(": more than 1000 keys"));
        let gone = path.join("gone");
        assert!(problem(read_keys(&gone)).contains("gone: cannot be read: "));
    }
}
