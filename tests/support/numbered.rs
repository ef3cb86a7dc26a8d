//! Numbered events, published in a loop whatever becomes of the broker, and the books kept of them: each that the
//! broker took is delivered, or missing where its session was told of a gap.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::Client;
use super::events::database;
use super::publisher::Publisher;
use super::server::{BROKER_PATIENCE, wait_within};

/// Pause between two numbers: some hundred a second, so that every outage falls among many.
const PACE: Duration = Duration::from_millis(4);

/// Events that pass before they are said to flow, so that each fault has some before and some after it.
const FLOW: u64 = 100;

/// The event that ends a [`Reader`].
const LAST: &str = "CHANNEL_HOLD";

/// What a session is subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Call,
    Document,
}

impl Family {
    pub fn binding(self) -> &'static str {
        match self {
            Self::Call => "call.*.*",
            Self::Document => "object.*.user",
        }
    }

    fn publish(
        self,
        publisher: &Publisher,
        account: &str,
        body: &Value,
    ) -> Result<(), amiquip::Error> {
        let (exchange, key) = match self {
            Self::Call => ("callevt", "call.CHANNEL_CREATE.call".to_owned()),
            Self::Document => (
                "configuration",
                format!("doc_edited.{}.user.id", database(account)),
            ),
        };
        publisher.try_publish(exchange, &key, body.to_string().as_bytes())
    }
}

/// Publishes number after number to every account and family on a thread. After a failure it connects again.
pub struct Numbered {
    published: Arc<Mutex<BTreeMap<u64, Instant>>>,
    next: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    url: String,
    streams: Vec<(String, Family)>,
}

impl Numbered {
    /// Each number goes once to each of `streams`: an account and a family.
    pub fn start(url: &str, streams: &[(&str, Family)]) -> Self {
        let streams: Vec<(String, Family)> = streams
            .iter()
            .map(|(account, family)| ((*account).to_owned(), *family))
            .collect();
        let published = Arc::new(Mutex::new(BTreeMap::new()));
        let next = Arc::new(AtomicU64::new(1));
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (published, next, is_over) = (published.clone(), next.clone(), is_over.clone());
            let (url, streams) = (url.to_owned(), streams.clone());
            move || {
                let mut publisher = None;
                while !is_over.load(Ordering::SeqCst) {
                    thread::park_timeout(PACE);
                    if publisher.is_none() {
                        publisher = Publisher::try_connect(&url).ok();
                    }
                    let Some(ready) = &publisher else { continue };
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    let begun = Instant::now();
                    let sent = streams.iter().try_for_each(|(account, family)| {
                        family.publish(ready, account, &body(account, *family, number))
                    });
                    // Only what the broker has surely taken counts.
                    match sent.and_then(|()| ready.try_settle()) {
                        Ok(()) => drop(published.lock().unwrap().insert(number, begun)),
                        Err(_) => publisher = None,
                    }
                }
            }
        });
        Self {
            published,
            next,
            is_over,
            thread,
            url: url.to_owned(),
            streams,
        }
    }

    /// The highest number that may have been published.
    pub fn latest(&self) -> u64 {
        self.next.load(Ordering::SeqCst) - 1
    }

    /// Waits until every reader has one of the events published from now on, but for the first [`FLOW`].
    pub fn until_flowing(&self, readers: &[Reader]) {
        let now = self.latest() + FLOW;
        for reader in readers {
            wait_within(BROKER_PATIENCE, "a new event reaches every session", || {
                (reader.newest() > now).then_some(())
            });
        }
    }

    /// Ends it, and the readers with an event that each gets last. Closes the books of each, prints them, and returns
    /// them and the sessions in the order of the readers.
    pub fn finish(self, name: &str, readers: Vec<Reader>) -> (Vec<Client>, Vec<Books>) {
        self.is_over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        let publisher = Publisher::connect(&self.url);
        for (account, family) in &self.streams {
            family
                .publish(&publisher, account, &last(account, *family))
                .unwrap();
        }
        publisher.settle();
        let published = self.published.lock().unwrap();
        let (clients, books): (Vec<Client>, Vec<Books>) = readers
            .into_iter()
            .map(|reader| {
                let (client, got) = reader.thread.join().expect("a good stream");
                (client, Books::close(&published, &got))
            })
            .unzip();
        for books in &books {
            eprintln!("{name}: {books}");
        }
        (clients, books)
    }
}

fn body(account: &str, family: Family, number: u64) -> Value {
    let event = match family {
        Family::Call => "CHANNEL_CREATE",
        Family::Document => "doc_edited",
    };
    json!({"Event-Name": event, "Type": "user", "Account-ID": account, "Number": number})
}

fn last(account: &str, family: Family) -> Value {
    let mut last = body(account, family, u64::MAX);
    last["Event-Name"] = json!(LAST);
    last
}

/// What a session got, in its order.
#[derive(Clone, Debug, PartialEq)]
enum Got {
    Number(u64),
    /// Of a gap of the event source: its length.
    Gap(f64),
}

/// A subscribed session, read all the time on a thread until the last event.
pub struct Reader {
    newest: Arc<AtomicU64>,
    gaps: Arc<AtomicU64>,
    thread: JoinHandle<(Client, Vec<Got>)>,
}

impl Reader {
    /// Subscribes `client` first. What it gets that is not for `account` fails the test.
    pub fn start(mut client: Client, account: &str, family: Family) -> Self {
        client.must_subscribe("any", account, family.binding());
        let (newest, gaps) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let thread = thread::spawn({
            let (newest, gaps) = (newest.clone(), gaps.clone());
            let account = account.to_owned();
            move || {
                let mut got = Vec::new();
                loop {
                    let message = client.pushed();
                    if message["action"] == "notice" {
                        let seconds = message["data"]["seconds"].as_f64().expect("seconds");
                        let expected = json!({"action": "notice", "name": "gap",
                            "data": {"reason": "event_source", "seconds": message["data"]["seconds"]}});
                        assert_eq!(message, expected);
                        got.push(Got::Gap(seconds));
                        gaps.fetch_add(1, Ordering::SeqCst);
                        continue;
                    }
                    let args = &message["args"];
                    assert_eq!(args["Account-ID"], *account, "{message}");
                    if args["Event-Name"] == LAST {
                        client.assert_nothing_came("any");
                        return (client, got);
                    }
                    let number = args["Number"].as_u64().expect("a number");
                    got.push(Got::Number(number));
                    newest.store(number, Ordering::SeqCst);
                }
            }
        });
        Self {
            newest,
            gaps,
            thread,
        }
    }

    /// The number of its newest event; 0 before the first.
    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::SeqCst)
    }

    /// Gap notices so far.
    pub fn gaps(&self) -> u64 {
        self.gaps.load(Ordering::SeqCst)
    }
}

/// The books of one session.
#[derive(Clone, Debug, PartialEq)]
pub struct Books {
    /// Numbers that the broker took for it.
    pub published: usize,
    /// Of these, delivered.
    pub delivered: usize,
    /// Of these, missing in a gap that was announced.
    pub announced: usize,
    /// The lengths of the announced gaps, in seconds.
    pub gaps: Vec<f64>,
}

impl Books {
    /// Panics when a number came twice or out of order, is missing where no gap was announced, or when the missing
    /// ones of a gap were published over a longer time than was told.
    fn close(published: &BTreeMap<u64, Instant>, got: &[Got]) -> Self {
        let mut books = Self {
            published: published.len(),
            delivered: 0,
            announced: 0,
            gaps: Vec::new(),
        };
        let (mut before, mut told) = (0, 0.0);
        let mut account_for = |before: u64, next: u64, told: f64| {
            assert!(before < next, "{next} came behind {before}");
            let missing: Vec<_> = published.range(before + 1..next).collect();
            let (Some((first, since)), Some((last, until))) = (missing.first(), missing.last())
            else {
                return;
            };
            assert!(
                told > 0.0,
                "{first} to {last} are missing, and no gap was announced"
            );
            // Told in tenths; and a moment passes between the publish and the loss.
            let span = (**until - **since).as_secs_f64();
            assert!(
                span <= told + 1.0,
                "{first} to {last} were published over {span} s, and {told} s were announced"
            );
            books.announced += missing.len();
        };
        for got in got {
            match got {
                Got::Gap(seconds) => {
                    told += seconds;
                    books.gaps.push(*seconds);
                }
                Got::Number(number) => {
                    account_for(before, *number, told);
                    (before, told) = (*number, 0.0);
                    books.delivered += usize::from(published.contains_key(number));
                }
            }
        }
        account_for(before, u64::MAX, told);
        assert_eq!(books.delivered + books.announced, books.published);
        books
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} published, {} delivered, {} announced as lost in gaps of {:?} s",
            self.published, self.delivered, self.announced, self.gaps
        )
    }
}
