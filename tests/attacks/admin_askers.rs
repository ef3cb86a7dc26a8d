//! Askers of the admin address that list all sessions, sorted by what only the kernel knows, a hundred at once and again
//! and again: clients do not wait for them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::judge::{Delays, Rounds, alone};
use support::client::{ANY_TOKEN, Client, Raw, ping_as};
use support::server::Server;

const SESSIONS: usize = 1000;
const ASKERS: usize = 100;
const ROUNDS: usize = 3;
/// Of one round.
const PINGS: usize = 300;

const REQUEST: &[u8] =
    b"GET /v2/sessions?sort=bytes&limit=1000 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// What a ping may take beside the askers, in times of what it takes in the calm, which is some 20 µs. One in a hundred may
/// meet the making of a page, or on a machine with few cores the threads of this test. A loop that did what all ask for in
/// one turn would make most of them wait some thousand times as long as in the calm.
const P50_TIMES: f64 = if cfg!(debug_assertions) { 60.0 } else { 30.0 };
const P99_TIMES: f64 = if cfg!(debug_assertions) { 800.0 } else { 400.0 };

/// Asks until it is dropped.
struct Askers {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<[usize; 2]>>,
}

impl Askers {
    fn start(admin: SocketAddr) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let ask = move || {
            let mut answered = [0; 2];
            while !over.load(Ordering::Relaxed) {
                let mut askers: Vec<Raw> = (0..ASKERS).map(|_| Raw::connect(admin)).collect();
                askers.iter_mut().for_each(|asker| asker.try_send(REQUEST));
                for asker in &mut askers {
                    // One too many is told so, or closed if its request came too late for that.
                    let is_page = asker.rest_as_bytes().starts_with(b"HTTP/1.1 200");
                    answered[usize::from(!is_page)] += 1;
                }
            }
            answered
        };
        Self {
            is_over,
            thread: Some(thread::spawn(ask)),
        }
    }

    /// How many got their page, and how many were too many.
    fn stop(mut self) -> [usize; 2] {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

#[test]
fn pings_are_answered_beside_a_hundred_askers_of_sorted_listings() {
    let _alone = alone();
    let server = Server::demo(&["--max-connections-per-ip", "0"]);
    let _idle: Vec<Raw> = (0..SESSIONS)
        .map(|_| Raw::upgraded(server.address()))
        .collect();
    let mut honest = Client::connect(server.address());
    honest.ask(&ping_as(ANY_TOKEN, "hello"));
    let mut time_pings = |delays: &mut Delays| {
        for _ in 0..PINGS {
            delays.time(|| honest.ping_pong(b"here?"));
        }
    };
    time_pings(&mut Delays::default());
    let (mut rounds, mut answered) = (Rounds::default(), [0; 2]);
    for _ in 0..ROUNDS {
        let (calm, attacked) = rounds.next();
        time_pings(calm);
        let askers = Askers::start(server.admin());
        time_pings(attacked);
        let [pages, busy] = askers.stop();
        answered = [answered[0] + pages, answered[1] + busy];
    }
    println!("{} pages, {} askers too many", answered[0], answered[1]);
    assert!(answered[0] > 0 && answered[1] > 0, "{answered:?}");
    rounds.assert_ratio("pings beside askers", 50, P50_TIMES);
    rounds.assert_ratio("pings beside askers", 99, P99_TIMES);
}
