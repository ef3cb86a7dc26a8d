//! A CA of one's own and the certificates that it gives out, for one test or one run. Keys are ECDSA P-256, where a
//! test brings no other.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;

/// Which names a certificate has, in OpenSSL's spelling.
pub const LOCAL: &str = "DNS:localhost,IP:127.0.0.1";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A CA in a directory of its own, which goes with it. The CA's certificate is `ca.pem`.
pub struct Ca {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// What certificates that it signs need behind them: nothing, or its own, when another CA has signed that.
    link: String,
    root: String,
}

/// A directory with `ca.pem`, `cert.pem` (with what links it to the CA behind it) and `key.pem`.
pub struct Certified {
    dir: TempDir,
}

impl Ca {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(ca_params("CA of a test"), key).unwrap();
        let root = issuer.pem();
        Self::with(issuer, String::new(), root)
    }

    /// A CA that this one has signed.
    pub fn intermediate(&self) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params("intermediate CA of a test");
        let issuer = CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap();
        let link = issuer.pem();
        Self::with(issuer, link, self.root.clone())
    }

    fn with(issuer: CertifiedIssuer<'static, KeyPair>, link: String, root: String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), &root).unwrap();
        Self {
            dir,
            issuer,
            link,
            root,
        }
    }

    /// The certificate of the root.
    pub fn pem(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate for these names, good from yesterday on for so many days from now. 0: until a second before.
    pub fn certify(&self, names: &str, days: u32) -> Certified {
        self.certify_key(names, days, &KeyPair::generate().unwrap())
    }

    /// The same for a key as PKCS#8 in PEM, of any kind.
    pub fn certify_pem(&self, names: &str, days: u32, key: &str) -> Certified {
        self.certify_key(names, days, &KeyPair::from_pem(key).unwrap())
    }

    fn certify_key(&self, names: &str, days: u32, key: &KeyPair) -> Certified {
        let certified = Certified {
            dir: tempfile::tempdir().unwrap(),
        };
        certified.write(self, names, days, key);
        certified
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

    /// Replaces the files by those of another certificate, with another key.
    pub fn renew(&self, ca: &Ca, names: &str, days: u32) {
        self.write(ca, names, days, &KeyPair::generate().unwrap());
    }

    fn write(&self, ca: &Ca, names: &str, days: u32, key: &KeyPair) {
        let names: Vec<String> = names
            .split(',')
            .map(|name| name.split_once(':').expect("KIND:NAME").1.to_owned())
            .collect();
        let mut params = CertificateParams::new(names).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "somebody");
        let now = SystemTime::now();
        params.not_before = (now - DAY).into();
        // Of whole seconds.
        params.not_after = (now + DAY * days - Duration::from_secs(1)).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &ca.issuer).unwrap();
        let chain = certificate.pem() + &ca.link;
        for (file, text) in [
            ("ca.pem", &ca.root),
            ("cert.pem", &chain),
            ("key.pem", &key.serialize_pem()),
        ] {
            fs::write(self.dir().join(file), text).unwrap();
        }
        fs::set_permissions(self.key(), Permissions::from_mode(0o600)).unwrap();
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * 99).into();
    params
}
