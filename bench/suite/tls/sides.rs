//! Who takes TLS off: our server, or a proxy before it. All show the same certificate.
//!
//! The proxies are set up as `scripts/nginx.conf` and `scripts/haproxy.cfg` set them up for operators, with a port without
//! TLS beside, and share the core with the server behind them. Their figures are those of all processes of their side.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::density::CONNECT_RATE;
use crate::ours::{self, Ours};
use crate::peers::{self, BACKLOG, Nginx, await_listening, find, free_address, write_file};
use crate::running::{Load, Running, SERVER_CORE, Waiting};
use crate::subject::{Batch, Candidate, Kind, Scenario, Setup, Subject};

/// Of 20,000 descriptors, which is what a process may have where nobody raises it, a proxy takes two a session.
const SESSIONS_BEHIND_PROXY_MAX: u32 = 9_000;

/// Our server with a port for TLS.
pub(crate) const OURS: Candidate = Candidate {
    name: "ours-tls",
    kind: Kind::Ours,
    start: |setup| Ok(Box::new(Side::start(setup, Front::Ours)?)),
    ..ours::CANDIDATE
};

/// nginx, which takes TLS off, before our server.
pub(crate) const NGINX: Candidate = Candidate {
    sessions_max: Some(SESSIONS_BEHIND_PROXY_MAX),
    has_request_ids: true,
    ..peers::peer("nginx-tls", |setup| {
        Ok(Box::new(Side::start(setup, Front::Nginx)?))
    })
};

/// HAProxy, which takes TLS off, before our server.
pub(crate) const HAPROXY: Candidate = Candidate {
    sessions_max: Some(SESSIONS_BEHIND_PROXY_MAX),
    has_request_ids: true,
    ..peers::peer("haproxy-tls", |setup| {
        Ok(Box::new(Side::start(setup, Front::Haproxy)?))
    })
};

/// Who takes TLS off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Front {
    Ours,
    Nginx,
    Haproxy,
}

/// Those with TLS, ours first.
pub(super) const SIDES: [(Candidate, Front); 3] = [
    (OURS, Front::Ours),
    (NGINX, Front::Nginx),
    (HAPROXY, Front::Haproxy),
];

/// A port of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Plain,
    Tls,
}

impl Port {
    /// In tables and JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tls => "TLS",
        }
    }
}

/// A server with TLS, or a proxy and the server behind it.
pub(super) struct Side {
    // Dropped first: what is behind it must not seem to be down.
    proxy: Option<Proxy>,
    server: Ours,
    plain: String,
    tls: String,
    _certificate: Certificate,
}

/// The processes before the server.
enum Proxy {
    Nginx(Nginx),
    Haproxy {
        running: Running,
        _dir: tempfile::TempDir,
    },
}

impl Side {
    /// Starts it with a certificate of its own.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`]: the proxy is not installed, or no `openssl`. A process does not listen.
    pub(super) fn start(setup: &Setup<'_>, front: Front) -> io::Result<Self> {
        let certificate = Certificate::make()?;
        if front == Front::Ours {
            let [file, key] = [&certificate.file, &certificate.key].map(|file| display(file));
            let more = ["--use-ssl", "--ssl-port", "0", "--ssl-cert", &file];
            let more = [&more[..], &["--ssl-key", &key]].concat();
            let mut server = Ours::start_with_more(setup, &more)?;
            return Ok(Self {
                proxy: None,
                plain: server.address(),
                tls: server.tls_address()?,
                server,
                _certificate: certificate,
            });
        }
        let more: &[&str] = match front {
            Front::Haproxy => &[
                "--trusted-proxies",
                "127.0.0.1",
                "--proxy-protocol",
                "required",
            ],
            Front::Nginx | Front::Ours => &["--trusted-proxies", "127.0.0.1"],
        };
        let server = Ours::start_with_more(setup, more)?;
        let (plain, tls) = (free_address()?, free_address()?);
        let before = server.address();
        let proxy = match front {
            Front::Haproxy => haproxy(&before, plain, tls, &certificate)?,
            Front::Nginx | Front::Ours => {
                let file = nginx_configuration(&before, plain, tls, &certificate);
                Proxy::Nginx(Nginx::start(&file, tls)?)
            }
        };
        Ok(Self {
            proxy: Some(proxy),
            server,
            plain: plain.to_string(),
            tls: tls.to_string(),
            _certificate: certificate,
        })
    }

    /// Where clients of `port` connect.
    pub(super) fn address_of(&self, port: Port) -> &str {
        match port {
            Port::Plain => &self.plain,
            Port::Tls => &self.tls,
        }
    }

    /// Opens and subscribes `sessions` sessions at `port`, with the load generator `load`.
    ///
    /// # Errors
    /// As [`Load::start`].
    pub(super) fn clients(&self, load: &Path, port: Port, sessions: u32) -> io::Result<Load> {
        let mut arguments = self.arguments(port, sessions);
        arguments.extend(CONNECT_RATE.map(str::to_owned));
        Load::start(
            load,
            self.address_of(port),
            sessions,
            &arguments,
            Waiting::Sleep,
        )
    }

    /// Arguments of a load generator for `port`.
    pub(super) fn arguments(&self, port: Port, sessions: u32) -> Vec<String> {
        let mut arguments = self.server.load_arguments(Scenario::Shared, sessions);
        if port == Port::Tls {
            arguments.push("--tls".into());
        }
        arguments
    }
}

/// What its clients do is TLS.
impl Subject for Side {
    /// The server, then the proxy's.
    fn pids(&self) -> Vec<u32> {
        let mut pids = self.server.pids();
        match &self.proxy {
            None => {}
            Some(Proxy::Nginx(nginx)) => pids.extend(nginx.pids()),
            Some(Proxy::Haproxy { running, .. }) => pids.push(running.pid()),
        }
        pids
    }

    fn address(&self) -> String {
        self.tls.clone()
    }

    fn load_arguments(&self, _: Scenario, sessions: u32) -> Vec<String> {
        self.arguments(Port::Tls, sessions)
    }

    fn publish(&mut self, batch: Batch) -> io::Result<()> {
        self.server.publish(batch)
    }
}

/// Connections of a worker of nginx, at two a session, all of which one worker may get.
const NGINX_CONNECTIONS: u32 = 2 * SESSIONS_BEHIND_PROXY_MAX + 1_000;

/// Sessions of HAProxy. It asks for two descriptors each.
const HAPROXY_SESSIONS: u32 = SESSIONS_BEHIND_PROXY_MAX + 500;

/// What both of them take, as the files for operators say.
const CIPHERS: &str = "ECDHE+AESGCM:ECDHE+CHACHA20";

fn nginx_configuration(
    before: &str,
    plain: SocketAddr,
    tls: SocketAddr,
    certificate: &Certificate,
) -> String {
    let (head, http) = (Nginx::HEAD, Nginx::HTTP_HEAD);
    let [file, key] = [&certificate.file, &certificate.key].map(|file| display(file));
    format!(
        "{head}
         worker_processes 2;
         worker_rlimit_nofile {NGINX_CONNECTIONS};
         events {{ worker_connections {NGINX_CONNECTIONS}; }}
         http {{
           {http}
           upstream processes {{ server {before} max_fails=3 fail_timeout=1s; zone processes 64k; least_conn; }}
           server {{
             listen {tls} ssl backlog={BACKLOG};
             listen {plain} backlog={BACKLOG};
             ssl_certificate {file};
             ssl_certificate_key {key};
             location / {{ proxy_pass http://processes; }}
           }}
           map $http_upgrade $connection_upgrade {{ default upgrade; \"\" close; }}
           proxy_http_version 1.1;
           proxy_set_header Upgrade $http_upgrade;
           proxy_set_header Connection $connection_upgrade;
           proxy_set_header Host $http_host;
           proxy_set_header X-Forwarded-For $remote_addr:$remote_port;
           proxy_set_header Forwarded \"\";
           proxy_next_upstream error timeout http_503;
           proxy_connect_timeout 2s;
           proxy_read_timeout 90s;
           send_timeout 10s;
           reset_timedout_connection on;
           client_header_timeout 10s;
           keepalive_timeout 10s;
           ssl_protocols TLSv1.2 TLSv1.3;
           ssl_ciphers {CIPHERS};
           ssl_session_cache shared:tls:16m;
           ssl_buffer_size 4k;
           server_tokens off;
         }}\n"
    )
}

fn haproxy(
    before: &str,
    plain: SocketAddr,
    tls: SocketAddr,
    certificate: &Certificate,
) -> io::Result<Proxy> {
    let program = find("haproxy", "haproxy")?;
    let dir = tempfile::tempdir()?;
    let certificate = display(&certificate.both);
    let configuration = format!(
        "global
             maxconn {HAPROXY_SESSIONS}
             ssl-default-bind-options ssl-min-ver TLSv1.2 prefer-client-ciphers
             ssl-default-bind-ciphers {CIPHERS}
         defaults
             mode http
             maxconn {HAPROXY_SESSIONS}
             retries 3
             option redispatch 1
             retry-on conn-failure empty-response 503
             timeout connect 2s
             timeout server 15s
             timeout tunnel 1h
             timeout server-fin 10s
             timeout client 10s
             timeout http-request 10s
             timeout client-fin 10s
         backend processes
             balance leastconn
             server one {before} send-proxy-v2 tcp-ut 30s
         frontend clients
             bind {tls} ssl crt {certificate} alpn http/1.1 tcp-ut 30s backlog {BACKLOG}
             bind {plain} tcp-ut 30s backlog {BACKLOG}
             http-request del-header X-Forwarded-For
             http-request del-header Forwarded
             default_backend processes\n"
    );
    let file = write_file(dir.path(), "haproxy.cfg", &configuration)?;
    let arguments = ["-db".to_owned(), "-f".to_owned(), file];
    let mut running = Running::start_silent(SERVER_CORE, &program, &arguments)?;
    await_listening(&mut running, tls)?;
    Ok(Proxy::Haproxy { running, _dir: dir })
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

/// A certificate of an ECDSA key on P-256, signed by itself, in a directory that goes with it.
struct Certificate {
    file: PathBuf,
    key: PathBuf,
    /// Certificate and key, as HAProxy wants them.
    both: PathBuf,
    _dir: tempfile::TempDir,
}

impl Certificate {
    fn make() -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let file = |name: &str| dir.path().join(name);
        let (certificate, key, both) = (file("cert.pem"), file("key.pem"), file("both.pem"));
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "365"])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-subj", "/CN=localhost"])
            .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .map_err(|error| io::Error::new(error.kind(), format!("openssl: {error}")))?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("openssl req: {complaint}")));
        }
        let texts = [&certificate, &key].map(fs::read_to_string);
        let texts = texts.into_iter().collect::<io::Result<String>>()?;
        fs::write(&both, texts)?;
        Ok(Self {
            file: certificate,
            key,
            both,
            _dir: dir,
        })
    }
}
