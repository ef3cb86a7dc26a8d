//! A CA of one's own and the certificates that it gives out, made with `openssl` for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Which names a certificate has, in OpenSSL's spelling.
pub const LOCAL: &str = "DNS:localhost,IP:127.0.0.1";

/// A CA in a directory of its own, which goes with it. The CA's certificate is `ca.pem`.
pub struct Ca {
    dir: TempDir,
}

/// A directory with `ca.pem`, `cert.pem` and `key.pem`.
pub struct Certified {
    dir: TempDir,
}

impl Ca {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ];
        let request = [
            "req", "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-days", "9",
        ];
        let subject = ["-subj", "/CN=CA of a test"];
        openssl(dir.path(), &[&request[..], &key, &subject].concat());
        Self { dir }
    }

    pub fn pem(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate for these names, good for so many days. 0: until it was made.
    pub fn certify(&self, names: &str, days: u32) -> Certified {
        let dir = tempfile::tempdir().unwrap();
        let names = format!("subjectAltName={names}");
        let request = ["req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem"];
        let rest = [
            "-out",
            "request.pem",
            "-subj",
            "/CN=somebody",
            "-addext",
            &names,
        ];
        openssl(dir.path(), &[&request[..], &rest].concat());
        fs::copy(self.pem(), dir.path().join("ca.pem")).unwrap();
        let (ca, key) = (self.pem(), self.dir.path().join("ca.key"));
        let signed = [
            "x509",
            "-req",
            "-in",
            "request.pem",
            "-out",
            "cert.pem",
            "-CAcreateserial",
        ];
        let by = ["-CA", ca.to_str().unwrap(), "-CAkey", key.to_str().unwrap()];
        let days = days.to_string();
        let rest = ["-copy_extensions", "copy", "-days", &days];
        openssl(dir.path(), &[&signed[..], &by, &rest].concat());
        Certified { dir }
    }
}

impl Default for Ca {
    fn default() -> Self {
        Self::new()
    }
}

impl Certified {
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn cert(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    pub fn key(&self) -> PathBuf {
        self.dir.path().join("key.pem")
    }
}

fn openssl(dir: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .expect("openssl is installed: scripts/setup");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {said}");
}
