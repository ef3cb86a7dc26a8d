//! A bridge in service: sessions of two accounts and two families that are read all the time, one that is not
//! subscribed, and numbered events published to all of them whatever happens.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;

use support::broker::Broker;
use support::client::{Client, Idle, subscribe};
use support::numbered::{Books, Family, Numbered, Reader};
use support::server::Server;

/// An account that no other test of this binary has, for those that share a broker.
pub(crate) fn new_account() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{:032x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) struct Scene {
    pub(crate) server: Server,
    pub(crate) numbered: Numbered,
    pub(crate) readers: Vec<Reader>,
    idle: Idle,
    /// Sessions that were refused a subscribe, and stay.
    refused: Vec<Idle>,
}

impl Scene {
    /// `url`: the way of the server to `broker`.
    pub(crate) fn open(broker: &Broker, url: &str, args: &[&str]) -> Self {
        let args = [&["--request-timeout-ms", "4000"], args].concat();
        let server = Server::bridge(url, &args);
        let (one, other) = (new_account(), new_account());
        let streams = [
            (&*one, Family::Call),
            (&*other, Family::Call),
            (&*one, Family::Document),
        ];
        let readers: Vec<Reader> = streams
            .iter()
            .map(|(account, family)| Reader::start(server.client(), account, *family))
            .collect();
        let mut idle = server.client();
        idle.assert_nothing_came("any");
        let numbered = Numbered::start(&broker.url(), &streams);
        let scene = Self {
            server,
            numbered,
            readers,
            idle: Idle::start(idle),
            refused: Vec::new(),
        };
        scene.numbered.until_flowing(&scene.readers);
        scene
    }

    /// Waits until the broker is missed: balancers are told so, and a subscribe is refused.
    pub(crate) fn until_away(&mut self) {
        self.server.until_not_ready();
        assert_eq!(self.server.probe(), 503);
        let mut session = self.server.client();
        let reply = session.ask(&subscribe("any", &new_account(), "call.*.*"));
        assert_eq!(reply["data"]["errors"], json!(["event source unavailable"]));
        self.refused.push(Idle::start(session));
    }

    /// Waits until every session was told of so many gaps in all and gets events again.
    pub(crate) fn until_back(&self, gaps: u64) {
        let readers = &self.readers;
        self.server.until("every session is told of the gap", |_| {
            readers.iter().all(|reader| reader.gaps() == gaps)
        });
        self.server.until_ready();
        assert_eq!(self.server.probe(), 200);
        self.numbered.until_flowing(readers);
    }

    /// No session was closed; each was told of so many gaps, and of every number that it missed.
    pub(crate) fn close(self, name: &str, gaps: usize) -> (Server, Vec<Books>) {
        let (_clients, books) = self.numbered.finish(name, self.readers);
        for books in &books {
            assert_eq!(books.gaps.len(), gaps, "{books}");
        }
        let idle = self.refused.into_iter().chain([self.idle]);
        let mut idle: Vec<Client> = idle.map(Idle::take_back).collect();
        for client in &mut idle {
            client.assert_nothing_came("any");
        }
        assert_eq!(self.server.metric("closes_total"), 0);
        (self.server, books)
    }
}
