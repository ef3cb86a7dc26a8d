//! The server's side against rustls's client.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, SupportedCipherSuite};
use tempfile::TempDir;

use super::*;
use crate::handoff::LoopWaker;
use crate::limits::{TLS_HANDSHAKES_WAITING_MAX, TLS_TICKET_PERIOD};

const DAY: u64 = 24 * 60 * 60;

/// A directory with a CA, and certificates of it.
struct Plant {
    dir: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

impl Plant {
    fn new() -> Self {
        let mut of_ca = params("a CA of this test", &[]);
        of_ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let plant = Self {
            dir: tempfile::tempdir().expect("a directory"),
            ca: CertifiedIssuer::self_signed(of_ca, key).expect("a CA"),
        };
        plant.write("ca.pem", &plant.ca.pem());
        plant
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).expect("writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("an own file");
        path
    }

    /// A certificate for `names` and its key, in files.
    fn issue(&self, file: &str, names: &[&str]) -> CertificateFiles {
        self.issue_as(file, params(file, names))
    }

    fn issue_as(&self, file: &str, mut params: CertificateParams) -> CertificateFiles {
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.ca).expect("a certificate");
        CertificateFiles {
            cert: self.write(&format!("{file}.pem"), &cert.pem()),
            key: self.write(&format!("{file}.key"), &key.serialize_pem()),
        }
    }

    fn options(&self) -> TlsOptions {
        TlsOptions {
            certificates: vec![self.issue("server", &["localhost"])],
            ..TlsOptions::default()
        }
    }

    fn load(&self) -> ServerTls {
        load(&self.options())
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let ca: &rcgen::Certificate = self.ca.as_ref();
        roots.add(ca.der().clone()).expect("a CA");
        roots
    }

    /// What a client that trusts the CA is configured with.
    fn client(&self) -> ClientConfig {
        self.client_of(rustls::DEFAULT_VERSIONS, None)
    }

    fn client_of(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
        suite: Option<SupportedCipherSuite>,
    ) -> ClientConfig {
        let mut provider = ring::default_provider();
        provider
            .cipher_suites
            .retain(|one| suite.is_none_or(|suite| suite == *one));
        ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .expect("a suite of the version")
            .with_root_certificates(self.roots())
            .with_no_client_auth()
    }
}

fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

fn load(options: &TlsOptions) -> ServerTls {
    ServerTls::load(options, unix_now()).unwrap_or_else(|error| panic!("{error}"))
}

fn connect(config: &ClientConfig) -> ClientConnection {
    connect_to(config, "localhost")
}

fn connect_to(config: &ClientConfig, name: &str) -> ClientConnection {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    ClientConnection::new(Arc::new(config.clone()), name).expect("a client")
}

/// All that a client has to send.
fn sent(client: &mut ClientConnection) -> Vec<u8> {
    let mut sent = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut sent).expect("to memory");
    }
    sent
}

/// Shows a client what was sent to it.
fn show(client: &mut ClientConnection, mut bytes: &[u8]) -> Result<(), rustls::Error> {
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).expect("from memory");
        client.process_new_packets()?;
    }
    Ok(())
}

/// The data that a client has received.
fn received(client: &mut ClientConnection) -> Vec<u8> {
    let mut data = Vec::new();
    match client.reader().read_to_end(&mut data) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => data,
        result => {
            result.expect("a clean end");
            data
        }
    }
}

/// A handshake in which the client's bytes come in the pieces that `cut` makes of each of its flights.
fn shake_cut(
    tls: &ServerTls,
    client: &mut ClientConnection,
    cut: impl Fn(usize, Vec<u8>) -> Vec<Vec<u8>>,
) -> Result<Done, HandshakeFault> {
    let mut handshake = Handshake::new(tls)?;
    for flight in 0..8 {
        let mut to_client = Vec::new();
        let mut pieces = cut(flight, sent(client)).into_iter();
        while let Some(piece) = pieces.next() {
            match handshake.step(piece, &mut to_client) {
                Stepped::GoesOn(next) => {
                    assert!(next.heap_bytes() < 128 << 10);
                    handshake = next;
                }
                Stepped::Done(mut done) => {
                    done.rest.extend(pieces.flatten());
                    show(client, &to_client).expect("what a server says");
                    return Ok(*done);
                }
                Stepped::Failed(fault) => {
                    let _ = show(client, &to_client);
                    return Err(fault);
                }
            }
        }
        // A client that refuses has an alert for the server.
        let _ = show(client, &to_client);
    }
    panic!("no end in sight")
}

fn shake(tls: &ServerTls, client: &mut ClientConnection) -> Result<Done, HandshakeFault> {
    shake_cut(tls, client, |_, flight| vec![flight])
}

/// Opens all records in `bytes`, which end with a whole one; returns their data and whether the peer ended.
fn open_all(records: &mut Records, bytes: &mut [u8]) -> Result<(Vec<u8>, bool), RecordError> {
    let (mut data, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let length = Records::record_len(&bytes[at..])?.expect("a whole header");
        let record = &mut bytes[at..at + length];
        match records.open(record)? {
            Opened::Data(range) => data.extend_from_slice(&record[range]),
            Opened::Nothing => {}
            Opened::End => return Ok((data, true)),
        }
        at += length;
    }
    Ok((data, false))
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// Data of many sizes, both ways.
fn exchange(client: &mut ClientConnection, records: &mut Records) {
    for bytes in [
        0, 1, 2, 15, 16, 17, 125, 1100, 16_383, 16_384, 16_385, 40_000,
    ] {
        let data = pattern(bytes);
        let mut out = Vec::new();
        let is_silent = bytes == 0 && !records.owes_update();
        records
            .seal(data.chunks(1000), &mut out)
            .expect("fresh keys");
        assert_eq!(out.is_empty(), is_silent);
        // The client has room for one record that nobody has read.
        let mut seen = Vec::new();
        for piece in out.chunks(4096) {
            show(client, piece).expect("our records");
            seen.extend(received(client));
        }
        assert_eq!(seen, data, "{bytes}");
        client.writer().write_all(&data).expect("room");
        let mut bytes = sent(client);
        assert_eq!(open_all(records, &mut bytes), Ok((data, false)));
    }
}

const BOTH: [&rustls::SupportedProtocolVersion; 2] =
    [&rustls::version::TLS12, &rustls::version::TLS13];

#[test]
fn data_goes_both_ways_in_every_version_and_suite() {
    let plant = Plant::new();
    let tls = plant.load();
    let mut ciphers = Vec::new();
    for version in BOTH {
        for suite in ring::DEFAULT_CIPHER_SUITES {
            let fits = |suite: &SupportedCipherSuite| {
                let is_rsa = format!("{suite:?}").contains("RSA");
                suite.version() == version && !is_rsa
            };
            if !fits(suite) {
                continue;
            }
            let mut client = connect(&plant.client_of(&[version], Some(*suite)));
            let mut done = shake(&tls, &mut client).expect("a handshake");
            let expected = match version == &rustls::version::TLS12 {
                true => Version::Tls12,
                false => Version::Tls13,
            };
            assert_eq!((done.version, done.records.version()), (expected, expected));
            assert!(!done.is_resumed && done.rest.is_empty());
            exchange(&mut client, &mut done.records);
            ciphers.push(client.negotiated_cipher_suite());
        }
    }
    assert_eq!(ciphers.len(), 6);
}

#[test]
fn a_handshake_is_the_same_wherever_its_bytes_are_cut() {
    let plant = Plant::new();
    let tls = plant.load();
    for version in BOTH {
        let config = plant.client_of(&[version], None);
        // Byte by byte.
        let mut client = connect(&config);
        let bytes = |_, flight: Vec<u8>| flight.chunks(1).map(<[u8]>::to_vec).collect();
        let mut done = shake_cut(&tls, &mut client, bytes).expect("a handshake");
        exchange(&mut client, &mut done.records);
        // In two, at every byte of one flight.
        for cut in 0..2 {
            let mut at = 0;
            loop {
                let whole = std::cell::Cell::new(0);
                let mut client = connect(&config);
                let two = |flight, bytes: Vec<u8>| {
                    if flight != cut {
                        return vec![bytes];
                    }
                    whole.set(bytes.len());
                    let (one, other) = bytes.split_at(at.min(bytes.len()));
                    vec![one.to_vec(), other.to_vec()]
                };
                let mut done = shake_cut(&tls, &mut client, two).expect("a handshake");
                let mut out = Vec::new();
                let data: [&[u8]; 1] = [b"hello"];
                done.records
                    .seal(data.into_iter(), &mut out)
                    .expect("fresh keys");
                show(&mut client, &out).expect("our record");
                assert_eq!(received(&mut client), b"hello");
                // In steps, for time's sake; every byte of the ends.
                at += if at < 48 || whole.get() - at < 48 {
                    1
                } else {
                    7
                };
                if at >= whole.get() {
                    break;
                }
            }
        }
    }
}

#[test]
fn what_comes_behind_the_handshake_stays_sealed_for_the_records() {
    let plant = Plant::new();
    let tls = plant.load();
    for version in BOTH {
        for cut in [0, 1, 3, 30] {
            let mut client = connect(&plant.client_of(&[version], None));
            let data = pattern(20_000);
            let mut is_written = false;
            let mut handshake = Handshake::new(&tls).expect("a handshake");
            let mut held = Vec::new();
            let done = loop {
                if !client.is_handshaking() && !is_written {
                    client.writer().write_all(&data).expect("room");
                    is_written = true;
                }
                let mut input = sent(&mut client);
                if is_written {
                    held = input.split_off(input.len() - cut);
                }
                let mut out = Vec::new();
                match handshake.step(input, &mut out) {
                    Stepped::GoesOn(next) => handshake = next,
                    Stepped::Done(done) => {
                        show(&mut client, &out).expect("what a server says");
                        break done;
                    }
                    Stepped::Failed(fault) => panic!("{fault}"),
                }
                show(&mut client, &out).expect("what a server says");
            };
            // TLS 1.2 without resumption: the client waits for the server's Finished before it may write.
            let Done {
                mut records,
                mut rest,
                version,
                ..
            } = *done;
            if version == Version::Tls12 {
                assert!(!is_written && rest.is_empty());
                client.writer().write_all(&data).expect("room");
                rest = sent(&mut client);
            } else {
                assert!(is_written && !rest.is_empty());
                rest.extend(held);
            }
            assert_eq!(open_all(&mut records, &mut rest), Ok((data, false)));
        }
    }
}

#[test]
fn keys_are_renewed_when_the_client_does_or_asks_for_it() {
    let plant = Plant::new();
    let tls = plant.load();
    for suite in ring::DEFAULT_CIPHER_SUITES {
        if suite.version() != &rustls::version::TLS13 {
            continue;
        }
        let mut client = connect(&plant.client_of(&[suite.version()], Some(*suite)));
        let mut done = shake(&tls, &mut client).expect("a handshake");
        for _ in 0..3 {
            client.refresh_traffic_keys().expect("after the handshake");
            let mut update = sent(&mut client);
            assert!(!done.records.owes_update());
            let opened = open_all(&mut done.records, &mut update);
            assert_eq!(opened, Ok((Vec::new(), false)));
            assert!(done.records.owes_update());
            // Ours goes before the next data, and once.
            exchange(&mut client, &mut done.records);
            assert!(!done.records.owes_update());
        }
    }
}

#[test]
fn either_end_ends_with_close_notify() {
    let plant = Plant::new();
    let tls = plant.load();
    for version in BOTH {
        let mut client = connect(&plant.client_of(&[version], None));
        let mut done = shake(&tls, &mut client).expect("a handshake");
        client.writer().write_all(b"last words").expect("room");
        client.send_close_notify();
        let mut bytes = sent(&mut client);
        let opened = open_all(&mut done.records, &mut bytes);
        assert_eq!(opened, Ok((b"last words".to_vec(), true)));
        let mut out = Vec::new();
        let data: [&[u8]; 1] = [b"farewell"];
        done.records
            .seal(data.into_iter(), &mut out)
            .expect("fresh keys");
        done.records.seal_alert(Alert::CLOSE_NOTIFY, &mut out);
        let mut end = &out[..];
        while !end.is_empty() {
            client.read_tls(&mut end).expect("from memory");
        }
        let state = client.process_new_packets().expect("our records");
        assert!(state.peer_has_closed());
        assert_eq!(received(&mut client), b"farewell");
    }
}

#[test]
fn a_client_that_sends_something_else_is_told_apart() {
    let plant = Plant::new();
    let tls = plant.load();
    let mut hello = sent(&mut connect(&plant.client()));
    // A message that claims 60,000 bytes, in records of 1,000.
    let long = (0..60).flat_map(|record| {
        let mut bytes = vec![22, 3, 3, 3, 0xe8];
        bytes.extend([1, 0, 0xea, 0x60]);
        bytes.extend(vec![0; 996]);
        if record > 0 {
            bytes[5..9].fill(0);
        }
        bytes
    });
    let rows: [(&str, Vec<u8>, HandshakeFault); 9] = [
        (
            "messages that there are not",
            [22, 3, 1, 0, 4, 99, 0, 0, 0].repeat(3),
            HandshakeFault::Malformed,
        ),
        (
            "plain HTTP",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            HandshakeFault::Malformed,
        ),
        ("one byte of it", b"G".to_vec(), HandshakeFault::Malformed),
        ("zeros", vec![0; 100], HandshakeFault::Malformed),
        ("SSL 2", vec![0x80, 46, 1, 3, 1], HandshakeFault::Malformed),
        (
            "data before the handshake",
            vec![23, 3, 3, 0, 1, 0],
            HandshakeFault::Malformed,
        ),
        (
            "an endless record",
            [&[22, 3, 1, 0x45, 0][..], &[0; 300]].concat(),
            HandshakeFault::TooLong,
        ),
        (
            "an endless message",
            long.collect(),
            HandshakeFault::TooLong,
        ),
        (
            "an alert",
            vec![21, 3, 1, 0, 2, 2, 40],
            HandshakeFault::Alerted(Alert(40)),
        ),
    ];
    for (what, input, expected) in rows {
        for piece in [1, 64, input.len()] {
            let mut handshake = Handshake::new(&tls).expect("a handshake");
            let mut out = Vec::new();
            let mut pieces = input.chunks(piece);
            let fault = loop {
                let piece = pieces.next().unwrap_or_else(|| panic!("{what}: no end"));
                match handshake.step(piece.to_vec(), &mut out) {
                    Stepped::GoesOn(next) => handshake = next,
                    Stepped::Failed(fault) => break fault,
                    Stepped::Done(_) => panic!("{what}: done"),
                }
            };
            assert_eq!(fault, expected, "{what}");
            // One alert, in the clear; nothing to whom does not speak TLS.
            match out[..] {
                [] => assert!(!matches!(input[0], 22 | 23), "{what}"),
                [21, 3, _, 0, 2, 2, _] => assert!(matches!(input[0], 22 | 23), "{what}"),
                _ => panic!("{what}: {out:?}"),
            }
        }
    }
    // Two messages in one record, the first of them wrong: rustls knows of the second when it fails, and has an alert.
    let mut out = Vec::new();
    let two = [&[22, 3, 1, 0, 8][..], &[2, 0, 0, 0], &[1, 0, 0, 0]].concat();
    let handshake = Handshake::new(&tls).expect("a handshake");
    let stepped = handshake.step(two, &mut out);
    assert!(matches!(
        stepped,
        Stepped::Failed(HandshakeFault::Malformed)
    ));
    assert_eq!(out[..6], [21, 3, 3, 0, 2, 2]);
    // A hello with a bit of each byte turned: an error, an answer or a wait, never a panic.
    for at in 0..hello.len() {
        hello[at] ^= 0x20;
        let mut out = Vec::new();
        let handshake = Handshake::new(&tls).expect("a handshake");
        let _ = handshake.step(hello.clone(), &mut out);
        hello[at] ^= 0x20;
    }
}

#[test]
fn each_fault_of_a_client_has_its_name_and_alert() {
    let plant = Plant::new();
    let tls = plant.load();
    let mut other_protocols = plant.client();
    other_protocols.alpn_protocols = vec![b"h2".to_vec()];
    let mut ours = plant.client();
    ours.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut client = connect(&ours);
    shake(&tls, &mut client).expect("a protocol in common");
    assert_eq!(client.alpn_protocol(), Some(&b"http/1.1"[..]));

    let mut client = connect(&other_protocols);
    let fault = shake(&tls, &mut client).map(|_| ());
    assert_eq!(fault, Err(HandshakeFault::NoProtocol));
    let told = client.process_new_packets().expect_err("told");
    assert!(format!("{told:?}").contains("NoApplicationProtocol"));

    let stranger = Plant::new();
    for version in BOTH {
        let mut client = connect(&stranger.client_of(&[version], None));
        let fault = shake(&tls, &mut client).map(|_| ());
        // unknown_ca; with two CAs of one name, decrypt_error.
        assert!(
            matches!(fault, Err(HandshakeFault::Alerted(Alert(48 | 51 | 42)))),
            "{fault:?}"
        );
    }
}

#[test]
fn clients_show_certificates_where_they_are_asked_to() {
    let plant = Plant::new();
    let own = plant.issue("client", &["a-client"]);
    let stranger = Plant::new();
    let strange = stranger.issue("client", &["a-client"]);
    let with = |files: &CertificateFiles, version| {
        let provider = Arc::new(ring::default_provider());
        ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(plant.roots())
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(&files.cert).expect("PEM")],
                PrivateKeyDer::from_pem_file(&files.key).expect("PEM"),
            )
            .expect("a pair")
    };
    for version in BOTH {
        for is_required in [false, true] {
            let tls = load(&TlsOptions {
                client_ca: Some(plant.dir.path().join("ca.pem")),
                client_required: is_required,
                ..plant.options()
            });
            let mut client = connect(&with(&own, version));
            let mut done = shake(&tls, &mut client).expect("of the CA");
            exchange(&mut client, &mut done.records);

            let fault = shake(&tls, &mut connect(&with(&strange, version))).map(|_| ());
            assert_eq!(fault, Err(HandshakeFault::BadCertificate));

            let none = shake(&tls, &mut connect(&plant.client_of(&[version], None)));
            match is_required {
                true => assert_eq!(none.map(|_| ()), Err(HandshakeFault::NoCertificate)),
                false => assert!(none.is_ok()),
            }
        }
    }
}

/// A clock of a test, in Unix seconds.
fn clock(at: u64) -> (Arc<AtomicU64>, tickets::Clock) {
    let time = Arc::new(AtomicU64::new(at));
    let tells = time.clone();
    (time, Arc::new(move || tells.load(Ordering::Relaxed)))
}

#[test]
fn a_ticket_of_one_process_is_good_at_another_with_the_same_key_for_as_long_as_it_should() {
    let plant = Plant::new();
    let period = TLS_TICKET_PERIOD.as_secs();
    let key = plant.write("tickets.key", &"0123456789abcdef".repeat(3));
    let options = TlsOptions {
        ticket_key_file: Some(key),
        ..plant.options()
    };
    let other_key = TlsOptions {
        ticket_key_file: Some(plant.write("other.key", &"0123456789abcdeF".repeat(3))),
        ..options.clone()
    };
    let with_ca = TlsOptions {
        client_ca: Some(plant.dir.path().join("ca.pem")),
        ..options.clone()
    };
    let begun = 100_000 * period + period - 1;
    let at = |options: &TlsOptions, unix: u64| {
        let (_, clock) = clock(unix);
        ServerTls::load_at(options, unix, clock).expect("files that serve")
    };
    let rows = [
        ("the same key", &options, begun, true),
        ("the next period", &options, begun + 1, true),
        ("its end", &options, begun + period, true),
        ("the one after", &options, begun + period + 1, false),
        ("a clock behind", &options, begun - period, true),
        ("a clock far behind", &options, begun - 2 * period, false),
        ("another key", &other_key, begun, false),
        ("other CAs of clients", &with_ca, begun, false),
    ];
    for version in BOTH {
        for (what, then, unix, is_resumed) in rows {
            let mut config = plant.client_of(&[version], None);
            config.resumption = Resumption::in_memory_sessions(4);
            let mut client = connect(&config);
            let first = shake(&at(&options, begun), &mut client).expect("a handshake");
            assert!(!first.is_resumed);
            let mut client = connect(&config);
            let mut second = shake(&at(then, unix), &mut client).expect("a handshake");
            assert_eq!(second.is_resumed, is_resumed, "{what}, {version:?}");
            let expected = match is_resumed {
                true => HandshakeKind::Resumed,
                false => HandshakeKind::Full,
            };
            assert_eq!(client.handshake_kind(), Some(expected));
            exchange(&mut client, &mut second.records);
            // None allows data before the handshake's end.
            assert!(client.early_data().is_none());
        }
    }
}

#[test]
fn without_a_key_file_tickets_are_good_in_the_process_and_outlive_a_reread() {
    let plant = Plant::new();
    let options = plant.options();
    let (before, after) = (load(&options), load(&options));
    let config = plant.client();
    shake(&before, &mut connect(&config)).expect("a handshake");
    let again = shake(&after, &mut connect(&config)).expect("a handshake");
    assert!(again.is_resumed);
}

#[test]
fn a_ticket_that_was_tampered_with_is_none() {
    use rustls::server::ProducesTickets;
    let (_, clock) = clock(1_000_000_000);
    let tickets = tickets::Tickets::new(&[7; 32], clock);
    let session = b"a session".to_vec();
    let ticket = tickets.encrypt(&session).expect("random numbers");
    assert_eq!(tickets.decrypt(&ticket), Some(session.clone()));
    assert_ne!(tickets.encrypt(&session), Some(ticket.clone()), "salted");
    for at in 0..ticket.len() {
        let mut other = ticket.clone();
        other[at] ^= 1;
        assert_eq!(tickets.decrypt(&other), None, "byte {at}");
        assert_eq!(tickets.decrypt(&ticket[..at]), None, "cut at {at}");
    }
    assert!(!format!("{tickets:?}").contains('7'));
}

#[test]
fn a_certificate_is_chosen_by_name() {
    let plant = Plant::new();
    let certificates = vec![
        plant.issue("first", &["first.example"]),
        plant.issue("wild", &["*.example.com", "example.com"]),
        plant.issue("exact", &["Exact.Example.Com", "10.1.2.3"]),
    ];
    let tls = load(&TlsOptions {
        certificates: certificates.clone(),
        ..TlsOptions::default()
    });
    let facts = tls.certificates();
    assert_eq!(facts[1].names, ["*.example.com", "example.com"]);
    assert_eq!(facts[2].names, ["exact.example.com", "10.1.2.3"]);
    assert_eq!(facts[2].file, certificates[2].cert);
    let rows = [
        ("first.example", 0),
        ("FIRST.example", 0),
        ("example.com", 1),
        ("a.example.com", 1),
        ("exact.example.com", 2),
        ("EXACT.example.COM", 2),
        ("a.b.example.com", 0),
        ("com", 0),
        ("10.9.9.9", 0),
    ];
    for (name, expected) in rows {
        let mut client = connect_to(&plant.client(), name);
        let _ = shake(&tls, &mut client);
        // The client sees the certificate also where it then refuses it.
        let seen = client.peer_certificates();
        let file = &certificates[expected].cert;
        let der = CertificateDer::from_pem_file(file).expect("PEM");
        if let Some(seen) = seen {
            assert_eq!(seen[0], der, "{name}");
        } else {
            assert!(
                ["a.b.example.com", "com", "10.9.9.9"].contains(&name),
                "{name}"
            );
        }
    }
}

#[test]
fn files_that_do_not_serve_are_told_of_by_name() {
    let plant = Plant::new();
    let good = plant.issue("good", &["localhost"]);
    let other = plant.issue("other", &["localhost"]);
    let text = |path: &Path| fs::read_to_string(path).expect("readable");
    let (cert, ca) = (text(&good.cert), plant.ca.pem());
    let with_cert = |name: &str, content: &str| CertificateFiles {
        cert: plant.write(name, content),
        key: good.key.clone(),
    };
    let with_key = |name: &str, content: &str| CertificateFiles {
        cert: good.cert.clone(),
        key: plant.write(name, content),
    };
    let broken = cert.replacen("MII", "AAA", 1);
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let rows = [
        (
            "c1.pem",
            with_cert("c1.pem", &format!("{ca}{cert}")),
            "certificate 2 in it did not sign certificate 1: the server's own comes first",
        ),
        (
            "c2.pem",
            with_cert("c2.pem", &format!("{cert}{}", text(&other.cert))),
            "certificate 2 in it did not sign certificate 1",
        ),
        (
            "c2b.pem",
            with_cert("c2b.pem", &format!("{cert}{}", Plant::new().ca.pem())),
            "certificate 2 in it did not sign certificate 1",
        ),
        (
            "c3.pem",
            with_cert("c3.pem", ""),
            "holds no certificate in PEM form",
        ),
        (
            "c4.pem",
            with_cert("c4.pem", &text(&good.key)),
            "holds no certificate in PEM form",
        ),
        (
            "c5.pem",
            with_cert("c5.pem", "-----BEGIN CERTIFICATE-----\nA"),
            "is broken PEM",
        ),
        (
            "c6.pem",
            with_cert("c6.pem", &broken),
            "certificate 1 in it cannot be read",
        ),
        (
            "c7.pem",
            with_cert("c7.pem", &format!("{cert}{}", ca.repeat(10))),
            "holds more than 10 certificates",
        ),
        (
            "k1.key",
            with_key("k1.key", &text(&other.key)),
            "is not the key of the certificate in",
        ),
        (
            "k2.key",
            with_key("k2.key", &cert),
            "holds no private key in PEM form",
        ),
        (
            "k3.key",
            with_key("k3.key", encrypted),
            "holds an encrypted private key",
        ),
        (
            "k4.key",
            with_key(
                "k4.key",
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            ),
            "holds a key that cannot be used",
        ),
    ];
    for (file, files, expected) in rows {
        let options = TlsOptions {
            certificates: vec![good.clone(), files],
            ..TlsOptions::default()
        };
        let error = ServerTls::load(&options, unix_now())
            .map(|_| ())
            .expect_err(file);
        assert_eq!(error.file.file_name().expect("a name"), file, "{error}");
        assert!(error.problem.starts_with(expected), "{error}");
    }
    let missing = plant.dir.path().join("missing");
    let empty = plant.write("empty", "");
    let short = plant.write("short", &"x".repeat(31));
    let rows = [
        (TlsOptions::default(), "TLS: no certificate is configured"),
        (
            TlsOptions {
                client_ca: Some(missing.clone()),
                ..plant.options()
            },
            "missing: cannot be read: ",
        ),
        (
            TlsOptions {
                client_ca: Some(empty),
                ..plant.options()
            },
            "empty: holds no certificate in PEM form",
        ),
        (
            TlsOptions {
                ticket_key_file: Some(short),
                ..plant.options()
            },
            "short: is shorter than 32 bytes",
        ),
        (
            TlsOptions {
                ticket_key_file: Some(missing),
                ..plant.options()
            },
            "missing: cannot be read: ",
        ),
    ];
    for (options, expected) in rows {
        let error = ServerTls::load(&options, unix_now())
            .map(|_| ())
            .expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
    // The root may be there, and every link may be.
    let chain = with_cert("c8.pem", &format!("{cert}{ca}"));
    load(&TlsOptions {
        certificates: vec![chain],
        ..TlsOptions::default()
    });
}

#[test]
fn the_end_of_a_certificate_is_told_and_warned_of_and_it_serves_on() {
    let plant = Plant::new();
    let valid = |file: &str, names: &[&str], from: (i32, u8, u8), to: (i32, u8, u8)| {
        let mut params = params(file, names);
        params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        params.not_after = rcgen::date_time_ymd(to.0, to.1, to.2);
        plant.issue_as(file, params)
    };
    let old = valid("old", &["localhost"], (2019, 1, 1), (2020, 1, 31));
    let new = valid("new", &["localhost"], (2020, 1, 1), (2021, 1, 1));
    let nameless = valid("nameless", &[], (2020, 1, 1), (2021, 1, 1));
    let tls = |certificates: Vec<CertificateFiles>, unix| {
        let options = TlsOptions {
            certificates,
            ..TlsOptions::default()
        };
        ServerTls::load(&options, unix).expect("files that serve")
    };
    let end = 1_580_428_800; // 2020-01-31
    let both = tls(vec![new.clone(), old.clone()], end);
    assert_eq!(both.expires(), end);
    assert_eq!(both.certificates()[1].not_after, end);
    assert_eq!(both.certificates()[0].not_before, 1_577_836_800);
    let warnings = |unix| tls(vec![old.clone()], unix).warnings(unix);
    let old_file = old.cert.display();
    assert_eq!(warnings(end - 31 * DAY), Vec::<String>::new());
    assert_eq!(
        warnings(end - 30 * DAY),
        [format!(
            "{old_file}: the certificate expires on 2020-01-31, in 30 days"
        )]
    );
    assert_eq!(
        warnings(end),
        [format!(
            "{old_file}: the certificate expires on 2020-01-31, in 0 days"
        )]
    );
    assert_eq!(
        warnings(end + 1),
        [format!(
            "{old_file}: the certificate has expired on 2020-01-31"
        )]
    );
    assert_eq!(
        tls(vec![new.clone()], end).warnings(1_577_836_799),
        [format!(
            "{}: the certificate is not valid before 2020-01-01",
            new.cert.display()
        )]
    );
    assert_eq!(
        tls(vec![nameless.clone()], end).warnings(end),
        [format!(
            "{}: the certificate names nobody (no subjectAltName), so browsers refuse it",
            nameless.cert.display()
        )]
    );
    // Of two for one name the valid one is shown, whatever their order; an expired one alone serves.
    let shown = |tls: &ServerTls| {
        let mut handshake = Handshake::new(tls).expect("a handshake");
        let mut client = connect(&plant.client_of(&[&rustls::version::TLS12], None));
        let mut out = Vec::new();
        let Stepped::GoesOn(next) = handshake.step(sent(&mut client), &mut out) else {
            panic!("no answer");
        };
        handshake = next;
        drop(handshake);
        out
    };
    let holds = |flight: &[u8], files: &CertificateFiles| {
        let der = CertificateDer::from_pem_file(&files.cert).expect("PEM");
        flight.windows(der.len()).any(|window| *window == *der)
    };
    let flight = shown(&tls(vec![old.clone(), new.clone()], end + 1));
    assert!(holds(&flight, &new) && !holds(&flight, &old));
    assert!(holds(&shown(&tls(vec![old.clone()], end + 1)), &old));
}

#[test]
fn a_secret_that_all_may_read_is_warned_of() {
    let plant = Plant::new();
    let options = TlsOptions {
        ticket_key_file: Some(plant.write("tickets.key", &"0123456789abcdef".repeat(3))),
        ..plant.options()
    };
    assert_eq!(load(&options).warnings(unix_now()), Vec::<String>::new());
    let secrets = [
        options.certificates[0].key.clone(),
        options.ticket_key_file.clone().expect("one"),
    ];
    for file in &secrets {
        fs::set_permissions(file, fs::Permissions::from_mode(0o644)).expect("an own file");
    }
    let expected = secrets.map(|file| {
        format!(
            "{}: holds a secret and can be read by all users",
            file.display()
        )
    });
    assert_eq!(load(&options).warnings(unix_now()), expected);
}

#[test]
fn handshakes_go_through_the_lane_and_come_back() {
    let plant = Plant::new();
    let tls = plant.load();
    let (wake, woken) = crossbeam_channel::unbounded();
    let waker = LoopWaker::new(move || wake.send(()).map_err(std::io::Error::other));
    let (lane, threads) = channels(waker);
    let threads = threads.start().expect("threads");
    let config = plant.client();
    let mut clients: Vec<_> = (0..20).map(|_| connect(&config)).collect();
    for (word, client) in clients.iter_mut().enumerate() {
        let work = Work {
            word,
            handshake: None,
            input: sent(client),
        };
        assert!(lane.has_room_to_begin() && lane.has_room_to_go_on());
        assert!(lane.give(work, &tls).is_ok());
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut done = 0;
    while done < clients.len() {
        let Some(Worked { word, out, stepped }) = lane.take() else {
            woken.recv_deadline(deadline).expect("a wake");
            continue;
        };
        let client = &mut clients[word];
        show(client, &out).expect("what a server says");
        match stepped {
            Stepped::GoesOn(handshake) => {
                let work = Work {
                    word,
                    handshake: Some(handshake),
                    input: sent(client),
                };
                assert!(lane.give(work, &tls).is_ok());
            }
            Stepped::Done(mut finished) => {
                exchange(client, &mut finished.records);
                done += 1;
            }
            Stepped::Failed(fault) => panic!("{fault}"),
        }
    }
    assert_eq!(lane.waiting(), 0);
    drop(lane);
    for thread in threads {
        thread.join().expect("it ends with the loop's end");
    }
}

#[test]
fn a_full_lane_gives_work_back_and_one_under_way_goes_first() {
    let plant = Plant::new();
    let tls = plant.load();
    let (lane, threads) = channels(LoopWaker::new(|| Ok(())));
    let mut client = connect(&plant.client());
    let new = |word, input| Work {
        word,
        handshake: None,
        input,
    };
    assert!(lane.give(new(0, sent(&mut client)), &tls).is_ok());
    assert!(threads.try_work());
    let Some(Worked {
        out,
        stepped: Stepped::GoesOn(handshake),
        ..
    }) = lane.take()
    else {
        panic!("no answer");
    };
    show(&mut client, &out).expect("what a server says");
    for word in 1..=TLS_HANDSHAKES_WAITING_MAX {
        assert!(lane.has_room_to_begin());
        assert!(lane.give(new(word, b"G".to_vec()), &tls).is_ok());
    }
    assert!(!lane.has_room_to_begin() && lane.has_room_to_go_on());
    let back = lane
        .give(new(9999, b"abc".to_vec()), &tls)
        .expect_err("full");
    assert_eq!((back.word, &back.input[..]), (9999, &b"abc"[..]));
    assert!(back.handshake.is_none());
    let work = Work {
        word: 0,
        handshake: Some(handshake),
        input: sent(&mut client),
    };
    assert!(lane.give(work, &tls).is_ok());
    assert_eq!(lane.waiting(), TLS_HANDSHAKES_WAITING_MAX + 1);
    assert!(threads.try_work());
    let first = lane.take().expect("a result");
    assert!(matches!(first.stepped, Stepped::Done(_)) && first.word == 0);
    while threads.try_work() {}
    for word in 1..=TLS_HANDSHAKES_WAITING_MAX {
        let worked = lane.take().expect("a result");
        assert_eq!(worked.word, word);
        assert!(matches!(worked.stepped, Stepped::Failed(_)));
    }
    assert!(lane.take().is_none());
}
