//! TLS handshakes begun without pause from one address: each costs the server a signature and the attacker a few hundred
//! bytes that it has made once.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Socket, Type};

use crate::judge::{Delays, Rounds, alone};
use support::certificates::{Ca, LOCAL};
use support::client::{ANY_TOKEN, Client, Raw};
use support::events::{ACCOUNT, call_event};
use support::server::{Fed, PATIENCE, Server, wait_for};
use support::tls::{self, NAME, Peer, VERSIONS, trusting};
use support::wire::UPGRADE_REQUEST;

/// Calm and attack take turns, as in [`crate::flooders`].
const ROUNDS_MIN: usize = 3;
const ROUNDS_MAX: usize = 9;
/// Of one round: whichever is met first.
const STEPS: usize = 60;
const ROUND_MAX: Duration = Duration::from_secs(4);
const PACE: Duration = Duration::from_millis(5);

/// What an honest event may wait beside the flood, in times of the calm: at the half and at the hundredth.
const EVENT_TIMES: [f64; 2] = [30.0, 100.0];
/// The same of a newcomer, whose own handshake is done by threads that stand back for all others on the machine. Behind all
/// that the flood has begun it would wait for some thousand times as long.
const NEWCOMER_TIMES: [f64; 2] = [200.0, 400.0];

/// Connections that a thread of the flood has open.
const OPEN: usize = 1500;
const THREADS: usize = 2;
/// What a flood is over after, whatever the test does meanwhile.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Threads that begin handshakes from an address; they end on drop.
struct Flood {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    begun: AtomicU64,
}

impl Flood {
    /// Returns once it is on its way.
    fn start(from: [u8; 4], address: SocketAddr, hello: &[u8]) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = (0..THREADS)
            .map(|_| {
                let (shared, hello) = (shared.clone(), hello.to_vec());
                thread::spawn(move || flood(from, address, &hello, &shared))
            })
            .collect();
        let flood = Self { shared, threads };
        wait_for("the flood is on its way", || {
            (flood.begun() >= 2 * OPEN as u64).then_some(())
        });
        flood
    }

    fn begun(&self) -> u64 {
        self.shared.begun.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            if !thread::panicking() {
                ended.expect("the flood has met nothing unforeseen");
            }
        }
    }
}

fn flood(from: [u8; 4], address: SocketAddr, hello: &[u8], shared: &Shared) {
    let started = Instant::now();
    let mut open: Vec<Option<TcpStream>> = (0..OPEN).map(|_| None).collect();
    let mut next = 0;
    while !shared.is_over.load(Ordering::Relaxed) && started.elapsed() < TIME_MAX {
        // The oldest goes with a reset, so that its port is free at once.
        drop(open[next].take());
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        // Refused when it has too many: so much the better for the others.
        if socket.connect_timeout(&address.into(), PATIENCE).is_ok() {
            let mut stream = TcpStream::from(socket);
            if stream.write_all(hello).is_ok() {
                shared.begun.fetch_add(1, Ordering::Relaxed);
            }
            open[next] = Some(stream);
        }
        next = (next + 1) % OPEN;
    }
}

/// A server with TLS, beside whose flood honest ones are measured.
fn judge(
    what: &str,
    [p50_times, p99_times]: [f64; 2],
    mut step: impl FnMut(&mut Fed, SocketAddr, &mut Delays, usize),
) {
    let _alone = alone();
    let ca = Ca::new();
    let files = ca.certify(LOCAL, 9);
    let args = tls::ssl_args(&files);
    let args: Vec<&str> = args.iter().map(|arg| &**arg).collect();
    let more = ["--auth", "insecure", "--ssl-port", "0"];
    let mut fed = Fed::start(&[&args[..], &more].concat());
    let address = fed.server.tls_address();
    let mut config = ClientConfig::clone(&trusting(&ca.pem(), &VERSIONS));
    // The honest have whole handshakes, too.
    config.resumption = Resumption::disabled();
    let peer = Peer {
        ca: ca.pem(),
        config: config.into(),
    };
    let mut hello = Vec::new();
    ClientConnection::new(peer.config.clone(), NAME.try_into().unwrap())
        .unwrap()
        .write_tls(&mut hello)
        .unwrap();
    let _spoken = tls::speak_at(address, peer);
    let mut all = |fed: &mut Fed, delays: &mut Delays| {
        let begun = Instant::now();
        for number in 0..STEPS {
            step(fed, address, delays, number);
            thread::park_timeout(PACE);
            if begun.elapsed() > ROUND_MAX {
                return;
            }
        }
    };
    all(&mut fed, &mut Delays::default());
    let (mut rounds, mut begun) = (Rounds::default(), 0);
    for round in 1..=ROUNDS_MAX {
        let (calm, attacked) = rounds.next();
        all(&mut fed, calm);
        let flood = Flood::start([127, 0, 66, 1], address, &hello);
        all(&mut fed, attacked);
        begun += flood.begun();
        drop(flood);
        // What the flood has left is not the calm's.
        until_gone(&fed.server);
        let is_met = rounds.ratio(50) <= p50_times && rounds.ratio(99) <= p99_times;
        let is_out_of_reach = rounds.ratio(50) > 3.0 * p50_times;
        if round >= ROUNDS_MIN && (is_met || is_out_of_reach) {
            break;
        }
    }
    println!("{what}: {begun} handshakes begun");
    rounds.assert_ratio(what, 50, p50_times);
    rounds.assert_ratio(what, 99, p99_times);
}

/// Waits until nobody is connected but sessions.
fn until_gone(server: &Server) {
    server.until("only sessions are left", |server| {
        server.metric("connections") == server.metric("sessions")
    });
}

#[test]
fn handshakes_begun_from_one_address_make_no_event_late() {
    let mut honest = None;
    judge(
        "events beside handshakes begun",
        EVENT_TIMES,
        |fed, address, delays, number| {
            let honest = honest.get_or_insert_with(|| {
                let mut client = Client::connect(address);
                client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
                client
            });
            let event = call_event(ACCOUNT, "CHANNEL_CREATE", number);
            let came = delays.time(|| {
                fed.publish("callevt", "call.CHANNEL_CREATE.call", &event);
                honest.event()
            });
            assert_eq!(came["args"]["Number"], number);
        },
    );
}

#[test]
fn handshakes_begun_from_one_address_keep_nobody_else_out() {
    judge(
        "newcomers beside handshakes begun",
        NEWCOMER_TIMES,
        |_, address, delays, number| {
            let ip = [127, 0, 100, u8::try_from(number).unwrap()];
            delays.time(|| {
                let mut raw = Raw::connect_from(ip, address);
                raw.send(UPGRADE_REQUEST.as_bytes());
                assert_eq!(raw.head().status, 101);
            });
        },
    );
}
