//! TLS to the broker (AMQP rail 12): a real RabbitMQ, OpenSSL's own server, and certificates made here.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use blackhole::amqp::{AmqpOptions, ClientFiles, TlsFiles};
use blackhole::handoff::HANDOFF_EVENTS_MAX;

use crate::{Loop, PATIENCE, logged, options, unique};
use support::broker::{self, Broker};
use support::certificates::{Ca, Certified, LOCAL};
use support::publisher::Publisher;
use support::tcp_proxy::{Mode, TcpProxy};

/// Two heartbeats and more.
const QUIET: Duration = Duration::from_secs(12);

fn trusting(ca: &Ca, url: &str) -> AmqpOptions {
    let tls = TlsFiles {
        ca_cert: Some(ca.pem()),
        client: None,
    };
    AmqpOptions {
        tls,
        ..options(&[url])
    }
}

fn start(options: AmqpOptions) -> Loop {
    Loop::start_with(options, HANDOFF_EVENTS_MAX)
}

/// Waits for a line of the log. Nothing else is waited for, so what is said comes before anything else.
fn until_logged(piece: &str) {
    let deadline = Instant::now() + PATIENCE;
    while logged(piece) == 0 {
        assert!(Instant::now() < deadline, "never logged: {piece}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn rail_12_over_tls_large_bodies_silence_and_cuts_are_as_without() {
    if !broker::is_there() {
        return;
    }
    let ca = Ca::new();
    let certified = ca.certify(LOCAL, 9);
    let broker = Broker::start_with_tls(certified.dir(), false).unwrap();
    let proxy = TcpProxy::to_port(broker.tls_port());
    let url = format!("amqps://guest:guest@{}", proxy.address());
    let exchange = unique("tls");
    let mut bridge = start(trusting(&ca, &url));
    bridge.up();
    let binding = bridge.bind(&exchange, "#");
    bridge.bound(&binding);
    let publisher = Publisher::connect(&broker.url());

    // Bodies of every size around those of records and buffers, and a burst of them.
    let mut sent = Vec::new();
    for size in [2, 4_000, 16_380, 16_390, 65_500, 131_000, 1 << 20, 7 << 20] {
        sent.push(format!("{{}}{}", " ".repeat(size - 2)));
    }
    for body in &sent {
        publisher.publish(&exchange, "sized", body.as_bytes());
    }
    for body in &sent {
        assert_eq!(
            bridge.event("sized").trim_end(),
            "{}",
            "{} bytes",
            body.len()
        );
    }
    // No event is as large, but it comes whole and is taken for what it is.
    let huge = vec![b' '; 32 << 20];
    for _ in 0..3 {
        publisher.publish(&exchange, "huge", &huge);
    }
    for _ in 0..5_000 {
        publisher.publish(&exchange, "after", b"{}");
    }
    for _ in 0..5_000 {
        bridge.event("after");
    }
    let dropped = |counters: &blackhole::amqp::AmqpCounters| {
        counters
            .undecodable_too_large
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    assert_eq!(dropped(&bridge.counters), 3, "{:?}", bridge.counters);
    // Thousands of bindings in one go: what is written waits for the socket again and again.
    let many: Vec<_> = (0..5_000)
        .map(|number| bridge.bind(&exchange, &format!("{}.{number}", "k".repeat(200))))
        .collect();
    bridge.bound(many.last().unwrap());
    // Nothing but heartbeats for a while.
    let begun = Instant::now();
    while begun.elapsed() < QUIET {
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert_eq!(bridge.count(|counters| &counters.disconnects), 0);

    // A peer that falls silent.
    proxy.set(Mode::BlackHole);
    let since = bridge.down();
    assert!(since.elapsed() < Duration::from_secs(20));
    proxy.set(Mode::Pass);
    bridge.up();
    publisher.publish(&exchange, "back", b"{}");
    bridge.event("back");

    // Cut in the middle of a record.
    proxy.set(Mode::Trickle {
        bytes: 1_000,
        tick: Duration::from_millis(5),
    });
    let before = proxy.passed();
    publisher.publish(&exchange, "cut", &vec![b' '; 1 << 20]);
    while proxy.passed() < before + 20_500 {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    proxy.cut();
    bridge.down();
    proxy.set(Mode::Pass);
    bridge.up();
    publisher.publish(&exchange, "again", b"{}");
    bridge.event("again");
    assert_eq!(bridge.count(|counters| &counters.guard_violations), 0);

    // TLS to the port without it, and the reverse.
    let plain = format!("amqps://u:hunter2@127.0.0.1:{}", broker.port());
    let _wrong = start(trusting(&ca, &plain));
    until_logged(&format!(
        "127.0.0.1:{} vhost \"/\": cannot connect: what answers on this port speaks AMQP without TLS",
        broker.port()
    ));
    let reverse = format!("amqp://u:hunter2@127.0.0.1:{}", broker.tls_port());
    let _wrong = start(options(&[&reverse]));
    until_logged(&format!(
        "127.0.0.1:{} vhost \"/\": cannot connect: what answers on this port speaks TLS: amqps://",
        broker.tls_port()
    ));
    assert_eq!(logged("hunter2"), 0);
}

#[test]
fn rail_12_a_broker_that_wants_a_client_certificate_is_told_ours() {
    if !broker::is_there() {
        return;
    }
    let ca = Ca::new();
    let (certified, ours) = (ca.certify(LOCAL, 9), ca.certify("DNS:bridge", 9));
    let broker = Broker::start_with_tls(certified.dir(), true).unwrap();
    let url = format!("amqps://guest:guest@localhost:{}", broker.tls_port());
    let _nobody = start(trusting(&ca, &url));
    until_logged(
        "cannot connect: the broker wants a client certificate (amqp_client_cert, amqp_client_key)",
    );
    let stranger = Ca::new().certify("DNS:bridge", 9);
    let _stranger = start(showing(&ca, &stranger, &url));
    until_logged("cannot connect: the broker refuses our certificate (amqp_client_cert)");
    let mut bridge = start(showing(&ca, &ours, &url));
    bridge.up();
}

fn showing(ca: &Ca, ours: &Certified, url: &str) -> AmqpOptions {
    let client = Some(ClientFiles {
        cert: ours.cert(),
        key: ours.key(),
    });
    let mut options = trusting(ca, url);
    options.tls.client = client;
    options
}

/// OpenSSL's own server, which shakes hands and no more.
struct OpenSsl {
    child: Child,
    port: u16,
}

impl OpenSsl {
    fn start(certified: &Certified, more: &[&str]) -> Self {
        let mut child = Command::new("openssl")
            .args([
                "s_server",
                "-accept",
                "127.0.0.1:0",
                "-cert",
                "cert.pem",
                "-key",
                "key.pem",
            ])
            .args(more)
            .current_dir(certified.dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut lines = said.lines().map_while(Result::ok);
        let port = lines
            .find_map(|line| {
                line.strip_prefix("ACCEPT ")?
                    .rsplit_once(':')?
                    .1
                    .parse()
                    .ok()
            })
            .unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, port }
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self
            .child
            .stdin
            .take()
            .map(|mut stdin| stdin.write_all(b"Q\n"));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn rail_12_what_is_wrong_with_a_certificate_is_said_in_one_line_without_the_password() {
    if !broker::is_there() {
        return;
    }
    let (ca, other) = (Ca::new(), Ca::new());
    let (good, foreign) = (
        ca.certify(LOCAL, 9),
        ca.certify("DNS:mq.example,DNS:mq2.example", 9),
    );
    let expired = ca.certify(LOCAL, 0);
    let made = Instant::now();
    let rows = [
        (
            &good,
            &other,
            &[][..],
            "the broker's certificate comes from a CA that is not trusted; amqp_ca_cert names one's own; next",
        ),
        (
            &foreign,
            &ca,
            &[],
            "the broker's certificate is not for \"localhost\" but for ",
        ),
        (
            &expired,
            &ca,
            &[],
            "the broker's certificate has expired; next",
        ),
        (
            &good,
            &ca,
            &["-tls1_2", "-Verify", "1"],
            "the broker wants a client certificate (amqp_client_cert, amqp_client_key)",
        ),
        (
            &good,
            &ca,
            &["-tls1_2", "-cipher", "AES128-SHA"],
            "says HandshakeFailure",
        ),
    ];
    for (certified, trusted, more, expected) in rows {
        while std::ptr::eq(certified, &expired) && made.elapsed() < Duration::from_secs(2) {
            // Its time is over with the second in which it was made.
            std::thread::sleep(Duration::from_millis(10));
        }
        let server = OpenSsl::start(certified, more);
        let url = format!("amqps://user:hunter2@localhost:{}", server.port);
        let _bridge = start(trusting(trusted, &url));
        let at = format!("localhost:{} vhost \"/\": cannot connect: ", server.port);
        until_logged(&at);
        let line = crate::LOG
            .lock()
            .unwrap()
            .iter()
            .find(|line| line.contains(&at))
            .cloned();
        assert!(
            line.as_ref().is_some_and(|line| line.contains(expected)),
            "{expected}: {line:?}"
        );
    }
    assert_eq!(logged("hunter2"), 0);
}

#[test]
fn rail_12_a_peer_that_never_shakes_hands_is_given_up() {
    let ca = Ca::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqps://u:p@{}", listener.local_addr().unwrap());
    let begun = Instant::now();
    let mut bridge = start(trusting(&ca, &url));
    until_logged(&format!(
        "{} vhost \"/\": cannot connect: the TLS handshake did not end within 5 s",
        listener.local_addr().unwrap()
    ));
    assert!(begun.elapsed() < Duration::from_secs(20));
    // And the end does not wait for it either.
    let begun = Instant::now();
    bridge.stop();
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn rail_12_files_that_do_not_serve_are_named_and_nothing_of_them_is_shown() {
    let (ca, other) = (Ca::new(), Ca::new());
    let (ours, theirs) = (ca.certify("DNS:a", 9), other.certify("DNS:b", 9));
    let client = |cert, key| TlsFiles {
        ca_cert: Some(ca.pem()),
        client: Some(ClientFiles { cert, key }),
    };
    let of_ca = |ca_cert| TlsFiles {
        ca_cert: Some(ca_cert),
        client: None,
    };
    let long = tempfile::NamedTempFile::new().unwrap();
    long.as_file().set_len(4_194_305).unwrap();
    for (files, expected) in [
        (
            of_ca("/nowhere".into()),
            "/nowhere: cannot be read: No such file or directory (os error 2)",
        ),
        (
            of_ca(ours.key()),
            "key.pem: holds no certificate in PEM form",
        ),
        (
            of_ca(long.path().to_owned()),
            ": is longer than 4194304 bytes",
        ),
        (
            of_ca("/dev/zero".into()),
            "/dev/zero: is not a regular file",
        ),
        (
            client(ours.cert(), theirs.key()),
            "key.pem: is not the key of the certificate in ",
        ),
        (
            client(ours.cert(), ours.cert()),
            "cert.pem: holds no private key in PEM form",
        ),
    ] {
        let said = files.check().unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
    client(ours.cert(), ours.key()).check().unwrap();
}
