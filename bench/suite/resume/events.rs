//! What is published while sessions come back: a steady stream, a thousand events a second for the accounts of those who come
//! and go, and some more for the neighbours whose latency is measured.
//!
//! Of the accounts some have much more to tell than others: account `n` of `N` gets its events in proportion to
//! `1 / sqrt(n / N)`, so the busiest tenth has a third of them.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::ours::{EXCHANGE, Ours};

/// Events a second for those who come and go, and for the neighbours.
pub(super) const RATE: u32 = 1_000;
pub(super) const NEIGHBOURS_RATE: u32 = 500;

/// Accounts, and sessions, of the neighbours: the first ones.
pub(super) const NEIGHBOURS: u32 = 50;

/// Most events written to the server at once: a stall of this program is not to be a burst.
const AT_ONCE_MAX: u32 = 256;

/// The publisher.
pub(super) struct Events<'a> {
    server: &'a mut Ours,
    body_bytes: usize,
    rng: fastrand::Rng,
    /// Events published for each account of those who come and go.
    pub(super) of_account: Vec<u32>,
    made: u64,
    begun: Instant,
    /// Of this run, for those who come and go and for the neighbours.
    sent: [u64; 2],
    rates: [u32; 2],
    /// How many may be sent to the neighbours in this run.
    neighbours_max: u64,
}

impl<'a> Events<'a> {
    /// Nothing is published before [`Events::run`].
    pub(super) fn new(server: &'a mut Ours, accounts: u32, body_bytes: usize) -> Self {
        Self {
            server,
            body_bytes,
            rng: fastrand::Rng::with_seed(7),
            of_account: vec![0; accounts as usize],
            made: 0,
            begun: Instant::now(),
            sent: [0; 2],
            rates: [0; 2],
            neighbours_max: 0,
        }
    }

    /// From now on both streams are published; to the neighbours so many events in all.
    pub(super) fn run(&mut self, neighbours_max: u64) {
        self.begun = Instant::now();
        self.sent = [0; 2];
        self.rates = [RATE, NEIGHBOURS_RATE];
        self.neighbours_max = neighbours_max;
    }

    /// From now on nothing is published.
    pub(super) fn pause(&mut self) {
        self.rates = [0; 2];
    }

    /// Publishes what is due; to be called every millisecond or so.
    ///
    /// # Errors
    /// The server has ended.
    pub(super) fn tick(&mut self) -> io::Result<()> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_err(io::Error::other)?;
        let mut lines = String::new();
        let due = self.rates.map(|rate| (seconds * f64::from(rate)) as u64);
        let due = [due[0], due[1].min(self.neighbours_max)];
        for _ in 0..AT_ONCE_MAX {
            let account = if self.sent[1] < due[1] {
                self.sent[1] += 1;
                (self.sent[1] % u64::from(NEIGHBOURS)) as u32 + 1
            } else if self.sent[0] < due[0] {
                self.sent[0] += 1;
                let account = self.pick();
                self.of_account[account as usize] += 1;
                NEIGHBOURS + 1 + account
            } else {
                break;
            };
            self.write(account, unix, &mut lines);
        }
        if lines.is_empty() {
            return Ok(());
        }
        self.server.write(&lines)
    }

    fn pick(&mut self) -> u32 {
        let accounts = self.of_account.len() as f64;
        let place = self.rng.f64();
        ((place * place * accounts) as u32).min(self.of_account.len() as u32 - 1)
    }

    fn write(&mut self, account: u32, unix: Duration, lines: &mut String) {
        self.made += 1;
        let (n, micros) = (self.made, unix.as_micros());
        let body = format!(
            r#"{{"Msg-ID":"{micros}","Call-ID":"bench-{n}","Custom-Channel-Vars":{{"Account-ID":"{account:032x}"}},"Event-Category":"call_event","Event-Name":"CHANNEL_CREATE","Filler":""#
        );
        let filler = "x".repeat(self.body_bytes.saturating_sub(body.len() + 2));
        lines.push_str(&format!(
            "{{\"exchange\":\"{EXCHANGE}\",\"routing_key\":\"call.CHANNEL_CREATE.bench-{n}\",\"body\":{body}{filler}\"}}}}\n"
        ));
    }
}
