//! JWTs and their keys, made by another hand: PyJWT and OpenSSL (`tests/clients/tokens.py`).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::client::Python;
use super::left_out::leave_out;
use super::project_file;

/// Public keys in a folder, and tokens by name. All of the tokens are good when they are made, but for what their name
/// says.
pub struct Made {
    python: Python,
    folder: tempfile::TempDir,
    tokens: BTreeMap<String, String>,
}

impl Made {
    /// As of `now`, in Unix seconds. `None` where PyJWT or OpenSSL is missing, which is said.
    pub fn as_of(now: u64) -> Option<Self> {
        let python = Python::installed()?;
        let has_jwt = python.command().args(["-c", "import jwt"]).status();
        if !has_jwt.is_ok_and(|status| status.success()) {
            leave_out(&"PyJWT is missing: run scripts/setup");
            return None;
        }
        if Command::new("openssl").arg("version").output().is_err() {
            leave_out(&"openssl is missing");
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary directory");
        let now = now.to_string();
        let tokens = run(python.command(), &[folder.path().as_os_str(), now.as_ref()]);
        Some(Self {
            python,
            folder,
            tokens,
        })
    }

    /// `pkcs1.pem` and `spki.pem`, of the key `system`; `keys`, a folder of `system` and `other`; `jwks.json`, of both.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The text of a file of the folder.
    pub fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect(name)
    }

    /// The token of this name.
    pub fn token(&self, name: &str) -> &str {
        self.tokens.get(name).expect(name)
    }

    /// How many tokens there are.
    pub fn count(&self) -> usize {
        self.tokens.len()
    }

    /// More tokens, by the same keys: by name an object of `key`, `algorithm`, `kid` and of claims; what it does not have
    /// is as in a good token, but for `exp`.
    pub fn sign(&self, wanted: &Value) -> BTreeMap<String, String> {
        let file = self.path("wanted.json");
        std::fs::write(&file, wanted.to_string()).expect("written");
        let mut command = self.python.command();
        command.stdin(File::open(&file).expect("it is there"));
        run(command, &[self.folder.path().as_os_str(), "sign".as_ref()])
    }
}

fn run(mut command: Command, arguments: &[&std::ffi::OsStr]) -> BTreeMap<String, String> {
    let script: &Path = &project_file("tests/clients/tokens.py");
    let output = command.arg(script).args(arguments).output();
    let output = output.expect("Python starts");
    assert!(output.status.success(), "{:?}", output.status);
    serde_json::from_slice(&output.stdout).expect("an object of tokens")
}
