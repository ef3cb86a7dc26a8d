//! The TLS port: both versions, what clients of another hand make of it, tickets, certificates that are exchanged, and
//! everything that a peer may do wrong.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Error, HandshakeKind, ProtocolVersion,
    SupportedProtocolVersion,
};
use serde_json::{Value, json};

use crate::process::clients_from_another_hand;
use support::certificates::{Ca, Certified, LOCAL};
use support::client::{ANY_TOKEN, Client, Python, Raw, ping_as, upgrade_with};
use support::events::{ACCOUNT, call_event};
use support::server::{DEMO, Fed, PATIENCE, Scratch, Server, lines, wait_for};
use support::tls::{self, NAME, Peer, Spoken, Tls, VERSIONS, showing, trusting};
use support::wire::{UPGRADE_REQUEST, client_text};

const PROBE: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Types of records (RFC 8446 section 5.1).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Bytes of the largest record's body (RFC 8446 section 5.2).
const BODY_MAX: usize = (1 << 14) + 256;

/// A server with both ports, its certificate and the CA of that.
struct Scene {
    server: Server,
    ca: Ca,
    files: Certified,
    /// Clients of the harness speak TLS to it.
    _spoken: Spoken,
}

impl Scene {
    /// Without a broker, for any token.
    fn demo(args: &[&str]) -> Self {
        Self::of(|files| Server::start(&with_tls(files, &[&DEMO, args].concat())))
    }

    fn of(start: impl FnOnce(&Certified) -> Server) -> Self {
        let ca = Ca::new();
        let files = ca.certify(LOCAL, 90);
        let server = start(&files);
        let spoken = tls::speak_at(server.tls_address(), peer(&ca, &VERSIONS));
        Self {
            server,
            ca,
            files,
            _spoken: spoken,
        }
    }

    fn address(&self) -> SocketAddr {
        self.server.tls_address()
    }

    fn config(&self) -> Arc<ClientConfig> {
        trusting(&self.ca.pem(), &VERSIONS)
    }

    /// TLS that nothing was sent over yet.
    fn connect(&self, config: Arc<ClientConfig>) -> Tls {
        tls::over(config, NAME, tcp(self.address()))
    }

    /// TLS whose handshake is over.
    fn shaken(&self, version: &'static SupportedProtocolVersion) -> Tls {
        let mut tls = self.connect(trusting(&self.ca.pem(), &[version]));
        shake(&mut tls).unwrap();
        tls
    }

    /// Somebody who is new is served, and no thread has panicked over those before.
    fn is_well(&self) {
        let mut raw = Raw::connect(self.address());
        raw.send(PROBE);
        assert_eq!(raw.last_response().status, 200);
        self.has_not_panicked();
    }

    fn has_not_panicked(&self) {
        let log = self.server.log();
        assert!(!log.contains("panicked"), "{log}");
    }

    /// So many handshakes failed for these reasons, and none for another.
    fn failed_for(&self, reasons: &[(&str, u64)]) {
        for (reason, count) in reasons {
            let name = format!("tls_handshake_faults_total{{reason=\"{reason}\"}}");
            self.server.wait_for_metric(&name, *count);
        }
        let all = reasons.iter().map(|(_, count)| count).sum::<u64>();
        let failed = self
            .server
            .metric("tls_handshakes_total{result=\"failed\"}");
        assert_eq!(failed, all, "{reasons:?}");
    }

    /// Nothing is left of those who came.
    fn is_idle(&self) {
        for gauge in ["connections", "sessions", "tls_sessions", "tls_handshakes"] {
            self.server.wait_for_metric(gauge, 0);
        }
        assert_eq!(self.server.metric("tls_handshakes_waiting"), 0);
    }

    /// The certificate that a newcomer is shown.
    fn shown(&self, name: &str) -> Result<CertificateDer<'static>, String> {
        let mut tls = tls::over(self.config(), name, tcp(self.address()));
        shake(&mut tls).map_err(|error| error.to_string())?;
        Ok(tls.conn.peer_certificates().unwrap()[0]
            .clone()
            .into_owned())
    }
}

fn peer(ca: &Ca, versions: &[&'static SupportedProtocolVersion]) -> Peer {
    Peer {
        ca: ca.pem(),
        config: trusting(&ca.pem(), versions),
    }
}

/// `args` with a TLS port of this certificate, on a free port.
fn with_tls<'a>(files: &Certified, args: &[&'a str]) -> Vec<&'a str> {
    let own = tls::ssl_args(files).leak().iter().map(|arg| &**arg);
    own.chain(["--ssl-port", "0"])
        .chain(args.iter().copied())
        .collect()
}

/// A server with events of its own and several certificates.
fn demo_with(certified: &[&Certified]) -> Server {
    let options = certified.iter().flat_map(|files| tls::ssl_args(files));
    let files: Vec<String> = options.filter(|option| option != "--use-ssl").collect();
    let files: Vec<&str> = files.iter().map(|option| &**option).collect();
    Server::demo(&[&files[..], &["--use-ssl", "--ssl-port", "0"]].concat())
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// The whole handshake.
fn shake(tls: &mut Tls) -> io::Result<()> {
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock)?;
    }
    Ok(())
}

/// Opens a session, and leaves the rest of the response unread.
fn upgrade(stream: &mut (impl Read + Write), request: &str) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
}

/// Asks what a balancer asks, and returns the status line.
fn ask(tls: &mut Tls) -> io::Result<String> {
    tls.write_all(PROBE)?;
    let mut answer = String::new();
    tls.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

/// The alert that the server ends this connection with; `None` when it ends it without one.
fn alert_of(tls: &mut Tls) -> Option<AlertDescription> {
    let mut bytes = [0; 4096];
    loop {
        let error = match tls.read(&mut bytes) {
            Ok(0) => return Some(AlertDescription::CloseNotify),
            Ok(_) => continue,
            Err(error) => error,
        };
        return alert_in(&error);
    }
}

/// The alert that this error tells of; `None` for the end of the connection.
fn alert_in(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(Error::AlertReceived(alert)) => Some(*alert),
        Some(other) => panic!("the server sends what it must not: {other}"),
        None => {
            let ends = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
            assert!(ends.contains(&error.kind()), "no end: {error}");
            None
        }
    }
}

/// A record with this body.
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind, 3, 3], &length[..], body].concat()
}

/// The bytes with which a client begins.
fn client_hello(config: Arc<ClientConfig>) -> (ClientConnection, Vec<u8>) {
    let mut client = ClientConnection::new(config, NAME.try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    (client, hello)
}

#[test]
fn both_versions_are_served_with_events_and_http_1_1_is_agreed_on() {
    for version in VERSIONS {
        let ca = Ca::new();
        let files = ca.certify(LOCAL, 90);
        let mut fed = Fed::start(&with_tls(&files, &["--auth", "insecure"]));
        let address = fed.server.tls_address();
        let _spoken = tls::speak_at(address, peer(&ca, &[version]));
        let mut secured = Client::connect(address);
        let mut plain = fed.server.client();
        for client in [&mut secured, &mut plain] {
            client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
        }
        for number in 0..3 {
            let event = call_event(ACCOUNT, "CHANNEL_CREATE", number);
            fed.publish("callevt", "call.CHANNEL_CREATE.call", &event);
            for client in [&mut secured, &mut plain] {
                assert_eq!(client.event()["args"]["Number"], number);
            }
        }
        secured.ping_pong(b"are you there");
        secured.close();

        let config = with_alpn(&trusting(&ca.pem(), &[version]), &["h2", "http/1.1"]);
        let mut tls = tls::over(config, NAME, tcp(address));
        assert_eq!(ask(&mut tls).unwrap(), "HTTP/1.1 200 OK");
        assert_eq!(tls.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        let expected = if version.version == ProtocolVersion::TLSv1_2 {
            ProtocolVersion::TLSv1_2
        } else {
            ProtocolVersion::TLSv1_3
        };
        assert_eq!(tls.conn.protocol_version(), Some(expected));
    }
}

fn with_alpn(config: &Arc<ClientConfig>, protocols: &[&str]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::clone(config);
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().into())
        .collect();
    config.into()
}

#[test]
fn a_client_that_speaks_only_other_protocols_is_told_so() {
    let scene = Scene::demo(&[]);
    for version in VERSIONS {
        let config = with_alpn(&trusting(&scene.ca.pem(), &[version]), &["h2", "spdy/3"]);
        let error = shake(&mut scene.connect(config)).unwrap_err();
        assert_eq!(
            alert_in(&error),
            Some(AlertDescription::NoApplicationProtocol)
        );
    }
    scene.is_well();
}

#[test]
fn the_plain_port_may_be_closed() {
    let ca = Ca::new();
    let files = ca.certify(LOCAL, 90);
    let args = with_tls(&files, &[&DEMO[..], &["--port", "none"]].concat());
    let server = Server::start(&args);
    assert_eq!(server.address(), server.tls_address());
    let _spoken = tls::speak_at(server.address(), peer(&ca, &VERSIONS));
    let mut client = server.client();
    client.ask(&ping_as(ANY_TOKEN, "1"));
    client.close();
    // Of its sockets only the one with TLS and the admin's listen.
    let listening = listening_ports(server.pid());
    let mut expected = vec![server.address().port(), server.admin().port()];
    expected.sort_unstable();
    assert_eq!(listening, expected);
}

/// The ports of 127.0.0.1 on which sockets of this process listen, in order.
fn listening_ports(pid: u32) -> Vec<u16> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let own: Vec<String> = descriptors
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|link| {
            let inode = link.to_str()?.strip_prefix("socket:[")?;
            Some(inode.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let mut ports: Vec<u16> = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[3] == "0A" && own.iter().any(|inode| inode == fields[9]))
        .map(|fields| u16::from_str_radix(fields[1].split_once(':').unwrap().1, 16).unwrap())
        .collect();
    ports.sort_unstable();
    ports
}

#[test]
fn a_certificate_is_chosen_by_name_and_the_first_is_for_everybody_else() {
    let ca = Ca::new();
    let intermediate = ca.intermediate();
    let files = [
        ca.certify(LOCAL, 90),
        intermediate.certify("DNS:a.example", 90),
        ca.certify("DNS:*.b.example", 90),
    ];
    let server = demo_with(&files.each_ref());
    let address = server.tls_address();
    for version in VERSIONS {
        let config = trusting(&ca.pem(), &[version]);
        for (name, files) in [
            ("localhost", &files[0]),
            ("a.example", &files[1]),
            ("A.Example", &files[1]),
            ("x.b.example", &files[2]),
            // Sent without a name.
            ("127.0.0.1", &files[0]),
        ] {
            let mut tls = tls::over(config.clone(), name, tcp(address));
            shake(&mut tls).unwrap_or_else(|error| panic!("{name}: {error}"));
            let shown = &tls.conn.peer_certificates().unwrap()[0];
            let own = CertificateDer::from_pem_file(files.cert()).unwrap();
            assert_eq!(*shown, own, "{name}");
        }
        // Of a name that nobody has, the first is shown, which is not for it.
        let mut tls = tls::over(config.clone(), "c.example", tcp(address));
        let error = shake(&mut tls).unwrap_err().to_string();
        assert!(error.contains("localhost"), "{error}");
    }
}

/// How the next connection with this configuration begins, when it has been asked something.
fn kind_of(address: SocketAddr, config: &Arc<ClientConfig>) -> HandshakeKind {
    let mut tls = tls::over(config.clone(), NAME, tcp(address));
    assert_eq!(ask(&mut tls).unwrap(), "HTTP/1.1 200 OK");
    tls.conn.handshake_kind().unwrap()
}

fn is_resumed(kind: HandshakeKind) -> bool {
    kind == HandshakeKind::Resumed
}

#[test]
fn a_ticket_of_one_process_is_taken_by_another_with_the_same_key_file_and_by_no_other() {
    let ca = Ca::new();
    let files = ca.certify(LOCAL, 90);
    let secret = Scratch::file(
        "tickets",
        "0123456789abcdef0123456789abcdef0123456789abcdef",
    );
    let other = Scratch::file(
        "tickets",
        "fedcba9876543210fedcba9876543210fedcba9876543210",
    );
    let start = |secret: &Scratch| {
        let file = secret.path().display().to_string();
        let more = ["--tls-ticket-key-file", &file];
        Server::start(&with_tls(&files, &[&DEMO[..], &more].concat()))
    };
    let (one, two) = (start(&secret), start(&secret));
    let stranger = start(&other);
    let alone = Server::start(&with_tls(&files, &DEMO));
    for version in VERSIONS {
        let resumed = |first: &Server, second: &Server| {
            let config = trusting(&ca.pem(), &[version]);
            assert!(!is_resumed(kind_of(first.tls_address(), &config)));
            is_resumed(kind_of(second.tls_address(), &config))
        };
        assert!(resumed(&one, &one), "{version:?}");
        assert!(resumed(&one, &two), "{version:?}");
        assert!(resumed(&alone, &alone), "{version:?}");
        assert!(!resumed(&one, &stranger), "{version:?}");
        assert!(!resumed(&one, &alone), "{version:?}");
        assert!(!resumed(&alone, &one), "{version:?}");
    }
}

#[test]
fn a_ticket_outlives_the_process_that_gave_it_and_a_changed_one_is_a_full_handshake() {
    let ca = Ca::new();
    let files = ca.certify(LOCAL, 90);
    let secret = Scratch::file("tickets", "0123456789abcdef0123456789abcdef");
    let file = secret.path().display().to_string();
    let more = ["--tls-ticket-key-file", &file];
    let args = with_tls(&files, &[&DEMO[..], &more].concat());
    let server = Server::start(&args);
    let config = trusting(&ca.pem(), &VERSIONS);
    kind_of(server.tls_address(), &config);
    drop(server);
    let server = Server::start(&args);
    assert!(is_resumed(kind_of(server.tls_address(), &config)));
    drop(server);
    secret.write("another secret of at least so many bytes");
    let server = Server::start(&args);
    assert!(!is_resumed(kind_of(server.tls_address(), &config)));
}

/// What is sent before the handshake is over can be sent again by whoever heard it.
#[test]
fn early_data_is_not_offered_and_refused() {
    let scene = Scene::demo(&[]);
    let mut config = ClientConfig::clone(&trusting(&scene.ca.pem(), &VERSIONS[..1]));
    config.enable_early_data = true;
    let config = Arc::new(config);
    assert_eq!(
        ask(&mut scene.connect(config.clone())).unwrap(),
        "HTTP/1.1 200 OK"
    );
    let mut again = scene.connect(config.clone());
    assert!(again.conn.early_data().is_none(), "its ticket says so");
    assert_eq!(ask(&mut again).unwrap(), "HTTP/1.1 200 OK");
    assert!(is_resumed(again.conn.handshake_kind().unwrap()));

    // From one who does not ask.
    let (client, hello) = client_hello(config);
    let mut tls = Tls::new(client, tcp(scene.address()));
    let early = record(APPLICATION_DATA, &[7; 100]);
    tls.sock.write_all(&[hello, early].concat()).unwrap();
    let error = ask(&mut tls).unwrap_err();
    assert_ne!(alert_in(&error), Some(AlertDescription::CloseNotify));
    scene.is_well();
    assert_eq!(scene.server.metric("sessions_opened_total"), 0);
}

#[test]
fn a_new_certificate_is_taken_on_sighup_and_sessions_stay() {
    let scene = Scene::demo(&["--demo-rate", "50"]);
    let mut live = Client::connect(scene.address());
    live.must_subscribe(ANY_TOKEN, "00000000000000000000000000000001", "call.*.*");
    let before = scene.shown(NAME).unwrap();
    let certificate = || CertificateDer::from_pem_file(scene.files.cert()).unwrap();
    assert_eq!(before, certificate());
    scene.files.renew(&scene.ca, LOCAL, 60);
    assert_eq!(
        scene.shown(NAME).unwrap(),
        before,
        "nobody has asked for it"
    );
    scene.server.signal(Signal::HUP);
    wait_for("the new certificate", || {
        (scene.shown(NAME).unwrap() == certificate()).then_some(())
    });
    assert_ne!(certificate(), before);
    for _ in 0..20 {
        live.event();
    }
    live.close();
}

#[test]
fn files_that_do_not_fit_leave_the_old_ones_in_force_and_are_told() {
    let scene = Scene::demo(&[]);
    let before = scene.shown(NAME).unwrap();
    let [cert, key] = [scene.files.cert(), scene.files.key()].map(|file| fs::read(file).unwrap());
    let other = scene.ca.certify(LOCAL, 90);
    let (key_of_other, cert_of_other) = (
        fs::read(other.key()).unwrap(),
        fs::read(other.cert()).unwrap(),
    );
    let names = [scene.files.cert(), scene.files.key()].map(|file| file.display().to_string());
    for (cert, key, of) in [
        (&cert, &key_of_other, None),
        (&cert_of_other, &key, None),
        (&Vec::new(), &key, Some(0)),
        (&cert, &b"no key\n".to_vec(), Some(1)),
        (&key, &cert, None),
        (&cert[..cert.len() / 2].to_vec(), &key, Some(0)),
    ] {
        fs::write(scene.files.cert(), cert).unwrap();
        fs::write(scene.files.key(), key).unwrap();
        let told = scene.server.log().len();
        scene.server.signal(Signal::HUP);
        let line = wait_for("what is wrong with the files", || {
            let log = scene.server.log();
            let line = log[told..]
                .lines()
                .find(|line| names.iter().any(|name| line.contains(name)));
            line.map(str::to_owned)
        });
        if let Some(at) = of {
            let name: &String = &names[at];
            assert!(line.contains(name), "{line}");
        }
        assert_eq!(scene.shown(NAME).unwrap(), before, "{line}");
    }
    for secret in ["BEGIN", "no key", "PRIVATE"] {
        assert!(
            !scene.server.log().contains(secret),
            "{}",
            scene.server.log()
        );
    }
    fs::write(scene.files.cert(), &cert_of_other).unwrap();
    fs::write(scene.files.key(), &key_of_other).unwrap();
    scene.server.signal(Signal::HUP);
    wait_for("the other certificate", || {
        (scene.shown(NAME).unwrap() != before).then_some(())
    });
}

#[test]
fn a_wrong_client_certificate_is_refused_and_a_missing_one_only_where_it_is_required() {
    let (clients, strangers) = (Ca::new(), Ca::new());
    let pem = clients.pem().display().to_string();
    let right = clients.certify("DNS:client.example", 9);
    let wrong = strangers.certify("DNS:client.example", 9);
    let late = clients.certify("DNS:client.example", 0);
    for is_required in [false, true] {
        let mut args = vec!["--ssl-ca-cert", &pem];
        args.extend(is_required.then_some("--ssl-client-required"));
        let scene = Scene::demo(&args);
        // Their CA is another than the server's, which they trust.
        let with = |files: &Certified, version| {
            fs::copy(scene.ca.pem(), files.dir().join("ca.pem")).unwrap();
            ask(&mut scene.connect(showing(files, &[version])))
        };
        for version in VERSIONS {
            assert_eq!(with(&right, version).unwrap(), "HTTP/1.1 200 OK");
            for files in [&wrong, &late] {
                let error = with(files, version).unwrap_err();
                let alert = alert_in(&error).expect("an alert");
                assert_ne!(alert, AlertDescription::CloseNotify);
            }
            let without = ask(&mut scene.connect(trusting(&scene.ca.pem(), &[version])));
            if is_required {
                let alert = alert_in(&without.unwrap_err()).expect("an alert");
                // TLS 1.2 has no word of its own for it.
                let expected = [
                    AlertDescription::CertificateRequired,
                    AlertDescription::HandshakeFailure,
                ];
                assert!(expected.contains(&alert), "{version:?}: {alert:?}");
            } else {
                assert_eq!(without.unwrap(), "HTTP/1.1 200 OK");
            }
        }
        let missing = if is_required { 2 } else { 0 };
        scene.failed_for(&[("bad_certificate", 4), ("no_certificate", missing)]);
        scene.has_not_panicked();
        scene.is_idle();
    }
}

#[test]
fn the_header_of_a_proxy_stands_before_tls() {
    let scene = Scene::demo(&[
        "--log-level",
        "debug",
        "--proxy-protocol",
        "required",
        "--trusted-proxies",
        "127.0.0.1",
    ]);
    const V1: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n";
    const V2: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xCB\0\x71\x08\xC0\0\x02\x01\x12\x67\x01\xBB";
    for (header, id) in [(V1, "203.0.113.7:4711"), (V2, "203.0.113.8:4711")] {
        let mut raw = Raw::connect(scene.address());
        raw.try_send_behind(header, UPGRADE_REQUEST.as_bytes());
        assert_eq!(raw.head().status, 101);
        raw.send_text(&ping_as(ANY_TOKEN, "1").to_string());
        assert_eq!(raw.json()["data"]["response"], "pong");
        drop(raw);
        scene.server.wait_for_log(&format!("session {id} ended"));

        // In one segment with the client's first bytes, and byte by byte.
        for piece in [usize::MAX, 1] {
            let (client, hello) = client_hello(scene.config());
            let mut tls = Tls::new(client, tcp(scene.address()));
            for bytes in [header, &hello].concat().chunks(piece.min(1 << 20)) {
                tls.sock.write_all(bytes).unwrap();
            }
            assert_eq!(ask(&mut tls).unwrap(), "HTTP/1.1 200 OK");
        }
    }
    // Without one, and with one where it belongs to the client.
    let mut tls = scene.connect(scene.config());
    assert!(shake(&mut tls).is_err());
    let mut raw = Raw::connect(scene.address());
    raw.try_send_behind(V1, &[V1, UPGRADE_REQUEST.as_bytes()].concat());
    assert_eq!(raw.last_response().status, 400);
}

#[test]
fn plain_http_on_the_tls_port_is_answered_once_in_plain_text() {
    let scene = Scene::demo(&[]);
    let post = [
        &b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 9000\r\n\r\n"[..],
        &[b'x'; 9000],
    ];
    for request in [
        PROBE,
        UPGRADE_REQUEST.as_bytes(),
        b"HEAD / HTTP/1.0\r\n\r\n",
        // Not whole yet.
        b"GET /a/long/pa",
        &post.concat(),
        &PROBE.repeat(10),
    ] {
        let mut raw = Raw::connect_plainly(scene.address());
        raw.try_send(request);
        let text = raw.rest();
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text:?}");
        assert!(text.starts_with("HTTP/1.1 400 "), "{text:?}");
        assert!(text.contains("\r\nConnection: close\r\n"), "{text:?}");
        assert!(text.contains("TLS"), "{text:?}");
    }
    assert_eq!(scene.server.metric("tls_clear_http_total"), 6);
    scene.is_well();
    scene.is_idle();
}

#[test]
fn tls_on_the_plain_port_is_no_request() {
    let scene = Scene::demo(&[]);
    for version in VERSIONS {
        let config = trusting(&scene.ca.pem(), &[version]);
        let mut tls = tls::over(config, NAME, tcp(scene.server.address()));
        // The client may see the 400 of the plain port, which is no record.
        shake(&mut tls).unwrap_err();
    }
    assert_eq!(scene.server.probe(), 200);
    scene.is_idle();
}

#[test]
fn garbage_ends_the_connection_and_nothing_else() {
    let scene = Scene::demo(&[]);
    let mut live = Client::connect(scene.address());
    let (_, hello) = client_hello(scene.config());
    let mut bent = hello.clone();
    bent[5] = 2;
    let mut longer = hello.clone();
    longer[8] = longer[8].wrapping_add(40);
    let unwanted = [1, 2, 4, 8, 11, 14, 15, 16, 20, 24, 254].map(|kind| {
        let message = [&[kind, 0, 0, 4][..], &[0; 4]].concat();
        record(HANDSHAKE, &message)
    });
    let mut all: Vec<Vec<u8>> = vec![
        vec![0; 100],
        vec![0xFF; 100],
        // The hello of SSL 2, and a record of it.
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10".to_vec(),
        b"\x16\x02\x00\x00\x05hello".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        record(HANDSHAKE, &[]),
        record(APPLICATION_DATA, b"hello, world, this is no handshake"),
        record(20, &[1]),
        record(ALERT, &[2, 40]),
        record(ALERT, &[1]),
        record(99, b"what is this"),
        // A message that is longer than any may be.
        record(HANDSHAKE, &[1, 0xFF, 0xFF, 0xFF, 3, 3]),
        // Two messages in one record, of which the first is wrong.
        record(HANDSHAKE, &[&bent[5..], &[20, 0, 0, 1, 0]].concat()),
        record(HANDSHAKE, &[&[16, 0, 0, 1, 0], &hello[5..]].concat()),
        bent,
        longer.repeat(3),
        hello.repeat(2),
    ];
    all.extend(unwanted);
    for bytes in &all {
        let mut raw = Raw::connect_plainly(scene.address());
        raw.try_send(bytes);
        // What waits for more is ended by its own end.
        raw.shutdown_write();
        let answer = raw.rest_as_bytes();
        // Alerts, at most behind the beginning of a handshake; never anything in words.
        assert!(
            answer.is_empty() || [ALERT, HANDSHAKE].contains(&answer[0]) || answer[0] == b'H',
            "{}: {}",
            bytes.escape_ascii(),
            answer.escape_ascii()
        );
    }
    live.ask(&ping_as(ANY_TOKEN, "still here"));
    scene.is_well();
    live.close();
    scene.is_idle();
}

#[test]
fn why_handshakes_fail_is_counted() {
    let scene = Scene::demo(&[]);
    for version in VERSIONS {
        let config = with_alpn(&trusting(&scene.ca.pem(), &[version]), &["h2"]);
        shake(&mut scene.connect(config)).unwrap_err();
    }
    // It does not trust the server's certificate, and says so.
    let mut wary = scene.connect(trusting(&Ca::new().pem(), &VERSIONS));
    shake(&mut wary).unwrap_err();
    let (_, mut hello) = client_hello(scene.config());
    hello[5] = 2;
    for bytes in [&[0; 100][..], &hello] {
        let mut raw = Raw::connect_plainly(scene.address());
        raw.try_send(bytes);
        raw.rest_as_bytes();
    }
    OpenSsl::connect(&scene, &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]).rest();
    let expected = [
        ("no_protocol", 2),
        ("alerted", 1),
        ("malformed", 2),
        ("incompatible", 1),
    ];
    scene.failed_for(&expected);
}

/// Every cut and every changed byte of a good hello is taken for what it is, and no other client notices.
#[test]
fn a_hello_that_is_bent_anywhere_ends_at_most_its_own_connection() {
    let scene = Scene::demo(&[]);
    let (_, hello) = client_hello(scene.config());
    for at in (0..hello.len()).step_by(3) {
        let mut bent = hello.clone();
        bent[at] ^= 0x5A;
        for bytes in [&bent[..], &hello[..at]] {
            let mut raw = Raw::connect_plainly(scene.address());
            raw.try_send(bytes);
            raw.shutdown_write();
            raw.rest_as_bytes();
        }
    }
    scene.is_well();
    scene.is_idle();
    assert_eq!(scene.server.metric("sessions_opened_total"), 0);
}

#[test]
fn records_of_every_wrong_length_end_a_session_with_an_alert() {
    let scene = Scene::demo(&[]);
    for version in VERSIONS {
        let upgraded = || {
            let mut tls = scene.shaken(version);
            upgrade(&mut tls, UPGRADE_REQUEST);
            tls
        };
        // Whole records that are no ciphertext, of all lengths that are too short for one, and of some others.
        let whole = (0..=40).chain([255, 256, 1000, 1 << 14, BODY_MAX]);
        let mut alerts = Vec::new();
        for length in whole {
            let mut tls = upgraded();
            let _ = tls
                .sock
                .write_all(&record(APPLICATION_DATA, &vec![0xA5; length]));
            let alert = alert_of(&mut tls);
            let alert = alert.unwrap_or_else(|| panic!("{length}: no alert"));
            assert_ne!(alert, AlertDescription::CloseNotify, "{length}");
            alerts.push(alert);
        }
        assert!(
            alerts.contains(&AlertDescription::BadRecordMac),
            "{alerts:?}"
        );
        // Of those that are too long the header suffices.
        for length in [BODY_MAX + 1, BODY_MAX + 2, 20_000, 40_000, 65_535] {
            // TLS 1.2 allows 2048 bytes more than the text, where 1.3 allows 256 (RFC 5246 section 6.2.3).
            if version.version == ProtocolVersion::TLSv1_2 && length <= (1 << 14) + 2048 {
                continue;
            }
            let mut tls = upgraded();
            let bytes = u16::try_from(length).unwrap().to_be_bytes();
            tls.sock
                .write_all(&[&[APPLICATION_DATA, 3, 3], &bytes[..]].concat())
                .unwrap();
            let alert = alert_of(&mut tls);
            assert_eq!(alert, Some(AlertDescription::RecordOverflow), "{length}");
        }
        // Of the wrong kind or version.
        for header in [
            [0, 3, 3],
            [HANDSHAKE, 3, 3],
            [99, 3, 3],
            [20, 3, 3],
            [APPLICATION_DATA, 9, 9],
        ] {
            let mut tls = upgraded();
            let _ = tls
                .sock
                .write_all(&[&header[..], &[0, 30], &[0xA5; 30]].concat());
            let alert = alert_of(&mut tls).expect("an alert");
            assert_ne!(alert, AlertDescription::CloseNotify, "{header:?}");
        }
    }
    scene.is_well();
    scene.is_idle();
}

#[test]
fn a_record_may_come_in_any_pieces_and_many_in_one() {
    let scene = Scene::demo(&[]);
    for version in VERSIONS {
        let (mut client, hello) = client_hello(trusting(&scene.ca.pem(), &[version]));
        let mut socket = tcp(scene.address());
        // The handshake and the request byte by byte.
        let drip = |socket: &mut TcpStream, bytes: &[u8]| {
            for byte in bytes {
                socket.write_all(&[*byte]).unwrap();
            }
        };
        drip(&mut socket, &hello);
        let flush = |client: &mut ClientConnection, socket: &mut TcpStream| {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            drip(socket, &bytes);
        };
        while client.is_handshaking() {
            let read = client.read_tls(&mut socket);
            assert!(
                read.as_ref().is_ok_and(|read| *read > 0),
                "{version:?}: {read:?}"
            );
            client.process_new_packets().unwrap();
            flush(&mut client, &mut socket);
        }
        client
            .writer()
            .write_all(UPGRADE_REQUEST.as_bytes())
            .unwrap();
        flush(&mut client, &mut socket);
        // A record for every byte of some messages, all at once.
        let text = client_text(&ping_as(ANY_TOKEN, "a record a byte").to_string());
        let mut all = Vec::new();
        for byte in text.repeat(3) {
            client.writer().write_all(&[byte]).unwrap();
            client.write_tls(&mut all).unwrap();
        }
        socket.write_all(&all).unwrap();
        let mut tls = Tls::new(client, socket);
        let mut got = String::new();
        while got.matches("pong").count() < 3 {
            let mut bytes = [0; 4096];
            let count = tls.read(&mut bytes);
            let count = count.unwrap_or_else(|error| panic!("{version:?}: {error} behind {got:?}"));
            got.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }
}

#[test]
fn half_a_handshake_is_given_up_in_time() {
    let scene = Scene::demo(&["--request-timeout-ms", "1000"]);
    let (_, hello) = client_hello(scene.config());
    // Nothing, a part of a record, a part of a message, and a whole message with nothing behind it.
    let mut halves: Vec<Raw> = [0, 3, 40, hello.len() - 1, hello.len()]
        .iter()
        .map(|&length| {
            let mut raw = Raw::connect_plainly(scene.address());
            raw.try_send(&hello[..length]);
            raw
        })
        .collect();
    // And one that is over, but for the request.
    let mut silent = scene.shaken(VERSIONS[0]);
    for raw in &mut halves {
        raw.rest_as_bytes();
    }
    alert_of(&mut silent);
    scene.is_idle();
    let given_up = r#"connections_dropped_total{reason="handshake_timeout"}"#;
    scene.server.wait_for_metric(given_up, 6);
}

#[test]
fn a_listing_tells_the_version_of_each_session_and_whether_it_is_compressed() {
    let scene = Scene::demo(&["--compression"]);
    let offering = upgrade_with(&["Sec-WebSocket-Extensions: permessage-deflate"]);
    let [mut newer, mut older] = VERSIONS.map(|version| scene.shaken(version));
    let mut unsecured = tcp(scene.server.address());
    upgrade(&mut newer, &offering);
    upgrade(&mut older, UPGRADE_REQUEST);
    upgrade(&mut unsecured, &offering);
    for (path, sort) in [("", "in their order"), ("?sort=age", "sorted")] {
        let mut raw = Raw::connect(scene.server.admin());
        let head = format!(
            "GET /v2/sessions{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        );
        raw.send(head.as_bytes());
        let page: Value = serde_json::from_str(&raw.last_response().body).unwrap();
        let told = |of: &TcpStream| {
            let id = of.local_addr().unwrap().to_string();
            let rows = page["data"].as_array().unwrap();
            let row = rows.iter().find(|row| row["id"] == id);
            let row = row.unwrap_or_else(|| panic!("no {id}: {page}"));
            (row["tls"].clone(), row["compression"].clone())
        };
        let expected = [
            (json!("1.3"), json!(true)),
            (json!("1.2"), json!(false)),
            (Value::Null, json!(true)),
        ];
        let sockets = [&newer.sock, &older.sock, &unsecured];
        assert_eq!(sockets.map(told), expected, "{sort}");
    }
}

#[test]
fn a_connection_that_ends_without_a_word_ends_its_session() {
    let scene = Scene::demo(&["--log-level", "debug"]);
    for version in VERSIONS {
        for is_polite in [true, false] {
            let mut tls = scene.shaken(version);
            upgrade(&mut tls, UPGRADE_REQUEST);
            scene.server.wait_for_metric("sessions", 1);
            if is_polite {
                tls.conn.send_close_notify();
                tls.flush().unwrap();
                // The server ends its side too, in good order.
                assert_eq!(alert_of(&mut tls), Some(AlertDescription::CloseNotify));
            } else {
                // In the middle of a record.
                tls.sock
                    .write_all(&[APPLICATION_DATA, 3, 3, 0, 99, 1, 2])
                    .unwrap();
                tls.sock.shutdown(Shutdown::Write).unwrap();
                alert_of(&mut tls);
            }
            scene.server.wait_for_metric("sessions", 0);
        }
    }
}

#[test]
fn what_the_server_says_last_has_an_end_that_cannot_be_forged() {
    let scene = Scene::demo(&[]);
    for version in VERSIONS {
        let mut tls = scene.shaken(version);
        tls.write_all(b"GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        // Fails where TLS is not ended.
        tls.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer:?}");
    }
}

#[test]
fn pythons_websockets_speak_tls() {
    let ca = Ca::new();
    let files = ca.certify(LOCAL, 90);
    let mut fed = Fed::start(&with_tls(&files, &["--auth", "insecure"]));
    let address = fed.server.tls_address();
    let _spoken = tls::speak_at(address, peer(&ca, &VERSIONS));
    clients_from_another_hand(&mut fed, address);
}

/// What Python's `ssl`, which is OpenSSL with checks of its own, makes of the port. Prints a line of JSON.
const PYTHON_SSL: &str = r#"
import json, socket, ssl, sys
port, ca = int(sys.argv[1]), sys.argv[2]
PROBE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

def context(version):
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["http/1.1"])
    return context

def visit(context, session=None, name="localhost"):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname=name, session=session) as tls:
            tls.sendall(PROBE)
            answer = b""
            # An end without close_notify is an error here.
            while more := tls.recv(65536):
                answer += more
            facts = [tls.version(), tls.selected_alpn_protocol(), tls.session_reused, answer.split(b"\r\n")[0].decode()]
            session = tls.session
            # Its close_notify, and ours.
            tls.unwrap()
    return facts, session

all = []
for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    own = context(version)
    facts, session = visit(own)
    again, _ = visit(own, session)
    all += [facts, again]
try:
    visit(context(ssl.TLSVersion.TLSv1_3), name="elsewhere.example")
except ssl.SSLCertVerificationError as error:
    all.append(error.verify_message)
print(json.dumps(all))
"#;

#[test]
fn pythons_ssl_finds_versions_names_tickets_and_the_end_as_they_should_be() {
    let Some(python) = Python::installed() else {
        return;
    };
    let scene = Scene::demo(&[]);
    let port = scene.address().port().to_string();
    let mut command = python.command();
    command.args(["-c", PYTHON_SSL, &port]).arg(scene.ca.pem());
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        told,
        json!([
            ["TLSv1.2", "http/1.1", false, "HTTP/1.1 200 OK"],
            ["TLSv1.2", "http/1.1", true, "HTTP/1.1 200 OK"],
            ["TLSv1.3", "http/1.1", false, "HTTP/1.1 200 OK"],
            ["TLSv1.3", "http/1.1", true, "HTTP/1.1 200 OK"],
            "Hostname mismatch, certificate is not valid for 'elsewhere.example'."
        ])
    );
}

#[test]
fn new_keys_are_taken_and_not_without_end() {
    let scene = Scene::demo(&[]);
    let mut tls = scene.shaken(&rustls::version::TLS13);
    tls.write_all(UPGRADE_REQUEST.as_bytes()).unwrap();
    tls.read_exact(&mut [0; 12]).unwrap();
    let text = client_text(&ping_as(ANY_TOKEN, "new keys").to_string());
    let expect = |tls: &mut Tls, needle: &str| {
        let mut got = String::new();
        while !got.contains(needle) {
            let mut bytes = [0; 4096];
            let count = tls.read(&mut bytes).unwrap();
            got.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    };
    for _ in 0..20 {
        tls.conn.refresh_traffic_keys().unwrap();
        tls.write_all(&text).unwrap();
        expect(&mut tls, "pong");
    }
    // A flood of them.
    let mut flood = Vec::new();
    for _ in 0..2000 {
        tls.conn.refresh_traffic_keys().unwrap();
        while tls.conn.wants_write() {
            tls.conn.write_tls(&mut flood).unwrap();
        }
    }
    let _ = tls.sock.write_all(&flood);
    let alert = alert_of(&mut tls);
    assert_ne!(alert, Some(AlertDescription::CloseNotify));
    scene.server.wait_for_metric("sessions", 0);
    scene.is_well();
}

/// `openssl s_client` to an address, which it is told by its stdin what to do.
struct OpenSsl {
    child: Child,
    stdin: Option<ChildStdin>,
    said: Receiver<String>,
    errors: Receiver<String>,
}

impl OpenSsl {
    fn connect(scene: &Scene, args: &[&str]) -> Self {
        Self::connect_to(scene.address(), &scene.ca, args)
    }

    fn connect_to(address: SocketAddr, ca: &Ca, args: &[&str]) -> Self {
        let mut child = Command::new("openssl")
            .args(["s_client", "-connect", &address.to_string()])
            .args(["-servername", NAME, "-verify_return_error", "-CAfile"])
            .arg(ca.pem())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl is installed: scripts/setup");
        Self {
            stdin: child.stdin.take(),
            said: lines(child.stdout.take().unwrap()),
            errors: lines(child.stderr.take().unwrap()),
            child,
        }
    }

    fn write(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Waits for a line that has `needle`.
    fn hears(&mut self, needle: &str) -> String {
        let mut before = Vec::new();
        loop {
            match self.said.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(needle) => return line,
                Ok(line) => before.push(line),
                Err(error) => {
                    let errors: Vec<_> = self.errors.try_iter().collect();
                    panic!("{error}: no {needle:?} in {before:#?}, {errors:#?}")
                }
            }
        }
    }

    /// Asks for the probes' page.
    fn is_answered(&mut self) {
        self.write("GET / HTTP/1.1\nHost: localhost\n\n");
        self.hears("HTTP/1.1 200 OK");
    }

    /// All that it says until it ends by itself.
    fn rest(mut self) -> String {
        drop(self.stdin.take());
        wait_for("the end of openssl", || self.child.try_wait().unwrap());
        let lines: Vec<_> = self.said.iter().chain(self.errors.iter()).collect();
        lines.join("\n")
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn openssl_changes_its_keys_and_asks_the_server_for_new_ones() {
    let scene = Scene::demo(&[]);
    let mut client = OpenSsl::connect(&scene, &["-tls1_3", "-crlf", "-alpn", "http/1.1"]);
    client.hears("ALPN protocol: http/1.1");
    client.hears("Verify return code: 0 (ok)");
    // Its own keys, then both, each before bytes that the server can read only with the new ones.
    for letter in ["k", "K", "K"] {
        client.write(&format!("{letter}\n"));
        let said = wait_for("the update of the keys", || {
            client
                .errors
                .try_iter()
                .find(|line| line.contains("KEYUPDATE"))
        });
        assert!(said.contains("KEYUPDATE"));
    }
    client.is_answered();
}

#[test]
fn openssl_may_not_begin_a_second_handshake() {
    let scene = Scene::demo(&[]);
    let mut client = OpenSsl::connect(&scene, &["-tls1_2", "-crlf"]);
    client.hears("Secure Renegotiation IS supported");
    client.hears("Verify return code: 0 (ok)");
    client.write("R\n");
    let all = client.rest();
    assert!(all.contains("RENEGOTIATING"), "{all}");
    assert!(
        all.contains("no renegotiation") || all.contains("unexpected message"),
        "{all}"
    );
    scene.is_well();
}

#[test]
fn openssl_finds_the_old_versions_and_the_weak_suites_refused() {
    let scene = Scene::demo(&[]);
    let weak = ["-cipher", "ALL:@SECLEVEL=0"];
    for version in ["-tls1", "-tls1_1"] {
        let all = OpenSsl::connect(&scene, &[&[version][..], &weak].concat()).rest();
        assert!(all.contains("Cipher is (NONE)"), "{version}: {all}");
    }
    for suites in [
        "AES128-GCM-SHA256:AES256-SHA",
        "ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA:DHE-RSA-AES128-GCM-SHA256",
        "aNULL:eNULL:PSK:@SECLEVEL=0",
    ] {
        let all = OpenSsl::connect(&scene, &["-tls1_2", "-cipher", suites]).rest();
        assert!(all.contains("Cipher is (NONE)"), "{suites}: {all}");
    }
    for (version, suite) in [
        ("-tls1_3", "TLS_AES_128_GCM_SHA256"),
        ("-tls1_3", "TLS_AES_256_GCM_SHA384"),
        ("-tls1_3", "TLS_CHACHA20_POLY1305_SHA256"),
        ("-tls1_2", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        ("-tls1_2", "ECDHE-ECDSA-AES256-GCM-SHA384"),
        ("-tls1_2", "ECDHE-ECDSA-CHACHA20-POLY1305"),
    ] {
        let option = if version == "-tls1_3" {
            "-ciphersuites"
        } else {
            "-cipher"
        };
        let mut client = OpenSsl::connect(&scene, &[version, option, suite, "-crlf"]);
        client.hears(&format!("Cipher is {suite}"));
        client.hears("Verify return code: 0 (ok)");
        client.is_answered();
    }
}

#[test]
fn a_certificate_with_an_rsa_key_serves_alone_and_beside_one_of_ecdsa() {
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA"])
        .args(["-pkeyopt", "rsa_keygen_bits:2048"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let ca = Ca::new();
    let ecdsa = ca.certify(LOCAL, 90);
    let rsa = ca.certify_pem(LOCAL, 90, &String::from_utf8(made.stdout).unwrap());
    let by_rsa = [
        ("-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256"),
        ("-tls1_3", "-sigalgs", "rsa_pss_rsae_sha512"),
        ("-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"),
        ("-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"),
        ("-tls1_2", "-cipher", "ECDHE-RSA-CHACHA20-POLY1305"),
    ];
    let by_ecdsa = [
        ("-tls1_3", "-sigalgs", "ecdsa_secp256r1_sha256"),
        ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"),
    ];
    for certified in [&[&rsa][..], &[&ecdsa, &rsa], &[&rsa, &ecdsa]] {
        let server = demo_with(certified);
        let connect = |(version, option, value): (&str, &str, &str)| {
            OpenSsl::connect_to(
                server.tls_address(),
                &ca,
                &[version, option, value, "-crlf"],
            )
        };
        for options in by_rsa {
            let mut client = connect(options);
            client.hears("Peer signature type: RSA");
            client.hears("Verify return code: 0 (ok)");
            client.is_answered();
        }
        for options in by_ecdsa {
            let mut client = connect(options);
            if certified.len() == 1 {
                let all = client.rest();
                assert!(
                    all.contains("alert handshake failure"),
                    "{options:?}: {all}"
                );
                continue;
            }
            client.hears("Peer signature type: ECDSA");
            client.is_answered();
        }
    }
}

#[test]
fn openssl_resumes_by_ticket() {
    let scene = Scene::demo(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("session").display().to_string();
    for version in ["-tls1_3", "-tls1_2"] {
        for (option, expected) in [("-sess_out", "New, "), ("-sess_in", "Reused, ")] {
            let mut client = OpenSsl::connect(&scene, &[version, "-crlf", option, &file]);
            client.hears(expected);
            // Its ticket has come before the answer.
            client.is_answered();
            client.rest();
        }
    }
}
