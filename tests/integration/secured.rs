//! The TLS port in the loop, on scripted sockets: real clients' TLS over reads and writes that are cut anywhere. The
//! threads that do handshakes are played by the test, so nothing depends on a clock.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blackhole::event::Event;
use blackhole::handoff::{FromSource, LoopWaker, Return, SourceEnd};
use blackhole::limits::SESSION_READ_BYTES_MAX;
use blackhole::reactor::{Reactor, Ready};
use blackhole::session::ListenerKind;
use blackhole::session::id::{ConnId, Peer};
use blackhole::tls::{CertificateFiles, HandshakeThreads, ServerTls, TlsOptions, channels};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::{Value, json};

use support::certificates::{Ca, LOCAL};
use support::client::{ANY_TOKEN, ping_as, subscribe};
use support::events::ACCOUNT;
use support::scripted::{Scripted, Wire, asked, config, now, reactor, under_seeds};
use support::scripted_tls::TlsClient;
use support::wire::{UPGRADE_REQUEST, client_text, server_frames};

/// One CA and one certificate for all worlds.
struct Plant {
    served: ServerTls,
    roots: RootCertStore,
}

impl Plant {
    fn new() -> Self {
        let ca = Ca::new();
        let certified = ca.certify(LOCAL, 9);
        let options = TlsOptions {
            certificates: vec![CertificateFiles {
                cert: certified.cert(),
                key: certified.key(),
            }],
            ..TlsOptions::default()
        };
        let served = ServerTls::load(&options, support::server::unix_now()).expect("good files");
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_file(ca.pem()).expect("a certificate");
        roots.add(root).expect("a CA");
        Self { served, roots }
    }

    fn client(&self, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version");
        let mut config = builder
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

struct World {
    reactor: Reactor<Scripted>,
    source: SourceEnd,
    threads: HandshakeThreads,
    next_port: u16,
}

struct One {
    id: ConnId,
    client: TlsClient,
}

impl World {
    fn new(plant: &Plant, options: &[&str]) -> Self {
        let (source, mut reactor) = reactor(&config(options), 4096, 1);
        source.send(FromSource::Up(Return::Anew)).expect("a loop");
        let (lane, threads) = channels(LoopWaker::new(|| Ok(())));
        reactor.take_tls(lane, plant.served.clone());
        Self {
            reactor,
            source,
            threads,
            next_port: 1000,
        }
    }

    fn accept(&mut self, wire: Rc<RefCell<Wire>>, ip: [u8; 4]) -> Option<ConnId> {
        self.next_port += 1;
        let peer = Peer::from(SocketAddr::from((ip, self.next_port)));
        let socket = Scripted(wire);
        let at = now(Duration::ZERO);
        self.reactor
            .accept(socket, peer, ListenerKind::TlsClients, at)
    }

    fn connect(&mut self, config: &Arc<ClientConfig>, room: usize, grain: usize) -> One {
        let client = TlsClient::new(Wire::new(room, grain), config.clone());
        let id = self.accept(client.wire().clone(), [203, 0, 113, 1]);
        let id = id.expect("there is room");
        One { id, client }
    }

    /// A turn, in which the loop is told of all sockets that have news; and the work of the threads.
    fn turn(&mut self, all: &mut [One]) {
        while self.threads.try_work() {}
        let ready: Vec<Ready> = all
            .iter()
            .filter_map(|one| {
                let mut wire = one.client.wire().borrow_mut();
                let readable = std::mem::take(&mut wire.edge_readable);
                let writable = std::mem::take(&mut wire.edge_writable);
                (readable || writable).then_some(Ready {
                    id: one.id,
                    readable,
                    writable,
                    read_closed: wire.client_closed,
                })
            })
            .collect();
        self.reactor.turn(&ready, now(Duration::ZERO));
        let asked = asked(&self.source);
        if !asked.is_empty() {
            self.source.send(FromSource::Bound(asked)).expect("a loop");
        }
        all.iter_mut().for_each(|one| one.client.pump());
    }

    /// Turns until nothing moves.
    fn settle(&mut self, all: &mut [One]) {
        let mut quiet = 0;
        for _ in 0..100_000 {
            let before: (u64, u64) = all.iter().fold((0, 0), |sum, one| {
                let wire = one.client.wire().borrow();
                (sum.0 + wire.read, sum.1 + wire.written)
            });
            self.turn(all);
            let after: (u64, u64) = all.iter().fold((0, 0), |sum, one| {
                let wire = one.client.wire().borrow();
                (sum.0 + wire.read, sum.1 + wire.written)
            });
            quiet = if before == after { quiet + 1 } else { 0 };
            if quiet > 5 {
                return;
            }
        }
        panic!("it never settles");
    }

    fn publish(&self, number: u64, padding: usize) {
        let body = json!({"Event-Name": "CHANNEL_CREATE", "Account-ID": ACCOUNT, "Number": number,
            "Padding": "x".repeat(padding)});
        let event = Event::decode(
            "callevt".into(),
            "call.CHANNEL_CREATE.x".into(),
            body.to_string().into_bytes(),
            None,
        );
        let event = FromSource::Event(Arc::new(event.expect("an event")));
        self.source
            .send_timeout(event, Duration::ZERO)
            .expect("room");
    }

    fn page(&mut self, name: &str) -> u64 {
        let wire = Wire::new(usize::MAX / 2, usize::MAX);
        wire.borrow_mut()
            .send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let peer = Peer::from(SocketAddr::from(([127, 0, 0, 1], 1)));
        let at = now(Duration::ZERO);
        let socket = Scripted(wire.clone());
        self.reactor.accept(socket, peer, ListenerKind::Admin, at);
        while !wire.borrow().server_shut {
            self.reactor.turn(&[], at);
        }
        wire.borrow_mut().is_reset = true;
        let page = String::from_utf8(wire.borrow().to_client.clone()).expect("text");
        let line = format!("\nblackhole_{name} ");
        let value = page.split_once(&line).expect(name).1;
        let value = value.lines().next().expect("a value");
        value.parse().expect(name)
    }
}

impl One {
    /// What came behind the answer to the upgrade, taken.
    fn texts(&mut self) -> Vec<Value> {
        let received = std::mem::take(&mut self.client.received);
        let bytes = match received.starts_with(b"HTTP/1.1") {
            false => &received[..],
            true => {
                assert!(received.starts_with(b"HTTP/1.1 101 "));
                let end = received.windows(4).position(|four| four == b"\r\n\r\n");
                &received[end.expect("a whole head") + 4..]
            }
        };
        let rest = bytes.len();
        let (frames, used) = server_frames(bytes);
        // A frame in part is for the next look.
        self.client.received = received[received.len() - (rest - used)..].to_vec();
        frames
            .iter()
            .filter(|(opcode, _)| *opcode == 1)
            .map(|(_, payload)| serde_json::from_slice(payload).expect("JSON"))
            .collect()
    }
}

#[test]
fn every_session_gets_its_events_however_its_reads_and_writes_are_cut() {
    let plant = Plant::new();
    let totals = under_seeds(40, |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let options = [
            "--auth=insecure",
            "--max-outbox-bytes=100000000",
            "--max-outboxes-bytes=1000000000",
            "--rate-limit-burst=1000000",
            "--rate-limit-per-second=1000000",
        ];
        let mut world = World::new(&plant, &options);
        let mut all = Vec::new();
        for index in 0..6 {
            let version = if rng.bool() { &TLS12 } else { &TLS13 };
            let grain = if rng.bool() {
                usize::MAX
            } else {
                rng.usize(1..60)
            };
            let room = if rng.bool() { usize::MAX / 2 } else { 20_000 };
            let mut one = world.connect(&plant.client(version), room, grain);
            one.client
                .send_in(UPGRADE_REQUEST.as_bytes(), rng.usize(1..300));
            let mut command = subscribe(ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
            if index % 2 == 0 {
                command["request_id"] = json!(format!("id-{index}"));
            }
            one.client
                .send_in(&client_text(&command.to_string()), rng.usize(1..300));
            all.push(one);
        }
        world.settle(&mut all);
        let mut replies = Vec::new();
        for one in &mut all {
            let wire = one.client.wire().clone();
            wire.borrow_mut().make_room(1 << 20);
            world.turn(std::slice::from_mut(one));
            replies.push(one.texts());
        }
        for (one, replies) in all.iter().zip(&replies) {
            assert!(!one.client.is_handshaking());
            assert_eq!(replies.len(), 1, "{replies:?}");
            assert_eq!(replies[0]["status"], "success");
        }
        let (mut published, mut asked_for) = (0, vec![0; all.len()]);
        for _ in 0..150 {
            match rng.u32(..10) {
                0..4 => {
                    for _ in 0..rng.u32(1..5) {
                        let padding = match rng.u32(..20) {
                            0 => rng.usize(..200_000),
                            _ => rng.usize(..3_000),
                        };
                        world.publish(published, padding);
                        published += 1;
                    }
                }
                4 => {
                    let index = rng.usize(..all.len());
                    let room = rng.usize(..5_000);
                    all[index].client.wire().borrow_mut().room = room;
                }
                5 | 6 => {
                    let index = rng.usize(..all.len());
                    all[index]
                        .client
                        .wire()
                        .borrow_mut()
                        .make_room(rng.usize(..100_000));
                }
                7 => {
                    let index = rng.usize(..all.len());
                    let count = rng.usize(1..40);
                    let pings = client_text(&ping_as(ANY_TOKEN, "p").to_string()).repeat(count);
                    asked_for[index] += count;
                    all[index].client.send_in(&pings, rng.usize(1..20_000));
                }
                8 => {
                    let index = rng.usize(..all.len());
                    all[index].client.change_keys();
                }
                _ => {}
            }
            world.turn(&mut all);
        }
        for one in &all {
            one.client.wire().borrow_mut().make_room(usize::MAX / 4);
        }
        world.settle(&mut all);
        for (index, one) in all.iter_mut().enumerate() {
            let texts = one.texts();
            let events = texts.iter().filter(|text| text["action"] == "event");
            let numbers: Vec<u64> = events
                .clone()
                .filter_map(|text| text["args"]["Number"].as_u64())
                .collect();
            assert_eq!(
                numbers,
                (0..published).collect::<Vec<_>>(),
                "session {index}"
            );
            let ids: Vec<&Value> = events.map(|text| &text["request_id"]).collect();
            let expected = match index % 2 {
                0 => json!(format!("id-{index}")),
                _ => Value::Null,
            };
            assert!(ids.iter().all(|id| **id == expected));
            let pongs = texts
                .iter()
                .filter(|text| text["request_id"] == "p")
                .count();
            assert_eq!(pongs, asked_for[index], "session {index}");
        }
        assert_eq!(world.page("tls_sessions"), 6);
        assert_eq!(world.page("tls_handshakes"), 0);
        assert_eq!(world.page("tls_records_refused_total"), 0);
        for one in &mut all {
            one.client.end();
        }
        world.settle(&mut all);
        assert_eq!(world.page("connections"), 0);
        for gauge in [
            "tls_sessions",
            "tls_handshakes_bytes",
            "outboxes_blocked",
            "partial_messages_bytes",
        ] {
            assert_eq!(world.page(gauge), 0, "{gauge}");
        }
        published
    });
    assert!(totals.iter().sum::<u64>() > 2_000);
}

#[test]
fn a_full_record_of_commands_is_given_to_the_session_as_a_plain_peer_s_bytes_are() {
    let plant = Plant::new();
    let options = [
        "--auth=insecure",
        "--rate-limit-burst=1000000",
        "--rate-limit-per-second=1000000",
    ];
    let mut world = World::new(&plant, &options);
    let mut all = [world.connect(&plant.client(&TLS13), usize::MAX / 2, usize::MAX)];
    all[0].client.send(UPGRADE_REQUEST.as_bytes());
    world.settle(&mut all);
    let count = 500;
    let command = client_text("{}");
    let burst = command.repeat(count);
    all[0].client.send(&burst);
    let mut turns = 0;
    let mut answers = 0;
    while answers < count {
        world.turn(&mut all);
        let read = world.reactor.hub.work.frames_read;
        assert!(read <= 4 + SESSION_READ_BYTES_MAX / command.len(), "{read}");
        answers += all[0].texts().len();
        turns += 1;
        assert!(turns < 1_000, "{answers}");
    }
    assert!(turns >= burst.len() / SESSION_READ_BYTES_MAX, "{turns}");
    assert_eq!(world.page("partial_messages_bytes"), 0);
}

#[test]
fn a_network_that_begins_many_handshakes_waits_for_its_own() {
    let plant = Plant::new();
    let mut world = World::new(&plant, &["--auth=insecure"]);
    let config = plant.client(&TLS13);
    let mut all: Vec<One> = (0..300)
        .map(|_| world.connect(&config, usize::MAX / 2, usize::MAX))
        .collect();
    // All of them have been read, and wait for the threads.
    world.reactor.turn(&[], now(Duration::ZERO));
    let client = TlsClient::new(Wire::new(usize::MAX / 2, usize::MAX), config.clone());
    let id = world.accept(client.wire().clone(), [203, 0, 113, 9]);
    let id = id.expect("there is room");
    all.push(One { id, client });
    world.reactor.turn(&[], now(Duration::ZERO));
    let mut steps = 0;
    while all.last().expect("one").client.is_handshaking() {
        // One step of one handshake.
        assert!(world.threads.try_work(), "nobody waits");
        steps += 1;
        assert!(steps < 100, "it waits behind the others");
        world.reactor.turn(&[], now(Duration::ZERO));
        all.last_mut().expect("one").client.pump();
    }
    let done = all
        .iter()
        .filter(|one| !one.client.is_handshaking())
        .count();
    assert_eq!(done, 1, "the others have not been read yet");
    assert!(world.page("tls_handshakes_waiting") > 150);
    world.settle(&mut all);
    assert_eq!(world.page("tls_sessions"), 301);
}
