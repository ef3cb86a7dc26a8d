//! Tests that no cost is quadratic in what a client sends or in how many sessions wait (DESIGN, Nobody's load is
//! another's wait, 5): twice as much takes about twice as many steps.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::id::{ConnId, Peer};
use super::{Message, Session};
use crate::config::{self, Startup, read_keys, read_tokens};
use crate::handoff::ToSource;
use crate::protocol::proxy::Preamble;
use crate::routing::amqp_binding::Asked;
use crate::routing::families::Families;
use crate::routing::month::ActiveMonths;
use crate::routing::waiters::Waiter;
use crate::session::clock::Now;
use crate::session::hub::Hub;
use crate::session::limits::SessionLimits;
use crate::steps;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const NOW: Now = Now {
    clock: Duration::from_secs(1),
    unix_ms: 1_700_000_000_000,
};
const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Sessions that share a hub, without limits, and a source that is up.
struct World {
    hub: Hub,
    sessions: Vec<Session>,
    tokens: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

impl World {
    fn new(sessions: u32) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let tokens = directory.path().join("tokens.json");
        std::fs::write(&tokens, file("one.example", sessions)).expect("writable");
        let auth = format!("tokens:{}", tokens.display());
        let line = ["blackhole", "--auth", &auth].map(Into::into);
        let Ok(Startup::Run(mut config)) = config::from_args(line.into_iter()) else {
            panic!("valid options")
        };
        config.max_subscriptions = None;
        config.max_connections_per_ip = None;
        config.max_connections_per_account = None;
        config.rate_limit_burst = 0;
        let authenticator = config.authenticator().expect("a token file");
        let families = Families::new(&config.families).expect("valid families");
        let mut hub = Hub::new(
            SessionLimits::from(&config),
            authenticator,
            families,
            NOW,
            1,
        );
        hub.subscriptions.on_up();
        let sessions = (0..sessions).map(|slot| {
            let peer = Peer::from(SocketAddr::from(([127, 0, 0, 1], 1)));
            let mut session = Session::new(Preamble::Done, peer, Duration::ZERO, &mut hub);
            let mut upgrade = UPGRADE.as_bytes().to_vec();
            assert_eq!(
                session.on_bytes(&mut upgrade, &mut hub.context(id(slot), NOW)),
                None
            );
            assert!(session.is_open());
            session
        });
        let sessions = sessions.collect();
        Self {
            hub,
            sessions,
            tokens,
            _directory: directory,
        }
    }

    fn command(&mut self, slot: u32, mut command: Value) {
        command["auth_token"] = "a".into();
        let text = command.to_string();
        let session = &mut self.sessions[slot as usize];
        session.on_command(Message::Text(&text), &mut self.hub.context(id(slot), NOW));
    }

    fn list(&mut self, action: &str, bindings: &[String]) {
        let data = json!({"account_id": A, "bindings": bindings});
        self.command(0, json!({"action": action, "data": data}));
    }

    /// The source confirms all that it is asked for.
    fn bind_all(&mut self) {
        for command in self.hub.subscriptions.end_turn(NOW) {
            let ToSource::Bind {
                binding, ticket, ..
            } = command
            else {
                continue;
            };
            let asked = Asked { binding, ticket };
            let in_force = self.hub.subscriptions.on_bound(&asked, None, NOW);
            for waiter in in_force.into_iter().flat_map(|one| one.waiters) {
                let Waiter { slot, number } = waiter;
                let session = &mut self.sessions[slot as usize];
                session.on_bound(number, &mut self.hub.context(id(slot), NOW));
            }
        }
    }

    fn subscriptions(&self) -> u32 {
        self.hub.subscriptions.index().counts().subscriptions as u32
    }
}

fn id(slot: u32) -> ConnId {
    ConnId {
        slot,
        generation: 0,
    }
}

/// A token file whose first token sees as many accounts.
fn file(realm: &str, descendants: u32) -> String {
    let descendants: Vec<String> = (0..descendants).map(|n| format!("{n:032x}")).collect();
    json!({"a": {"account_id": A, "realm": realm, "descendants": descendants}}).to_string()
}

fn distinct(family: &str, n: u32) -> Vec<String> {
    (0..n).map(|number| format!("{family}.{number}")).collect()
}

fn subscribed(n: u32, family: &str) -> World {
    let mut world = World::new(1);
    world.list("subscribe", &distinct(family, n));
    world.bind_all();
    assert_eq!(world.subscriptions(), n);
    world
}

/// A case: makes ready what `n` is the size of, and counts the steps of what is judged.
type Steps = fn(u32) -> u64;

#[test]
fn twice_as_much_costs_twice_as_many_steps() {
    let cases: [(&str, Steps); 10] = [
        ("a list that waits, and its answer", |n| {
            let mut world = World::new(1);
            let list = distinct("call.CHANNEL_CREATE", n);
            let steps = steps::of(|| {
                world.list("subscribe", &list);
                world.bind_all();
            });
            assert_eq!(world.subscriptions(), n);
            steps
        }),
        ("a list that is live already", |n| {
            let mut world = subscribed(n, "call.CHANNEL_CREATE");
            let steps = steps::of(|| world.list("subscribe", &distinct("call.CHANNEL_CREATE", n)));
            assert!(!world.sessions[0].is_waiting());
            steps
        }),
        ("a list of one binding again and again", |n| {
            let mut world = subscribed(n, "call.CHANNEL_CREATE");
            let list = vec!["call.CHANNEL_CREATE.0".to_owned(); n as usize];
            steps::of(|| world.list("subscribe", &list))
        }),
        ("an unsubscribe list of what is live", |n| {
            let mut world = subscribed(n, "call.CHANNEL_CREATE");
            let mut list = distinct("call.CHANNEL_CREATE", n);
            list.reverse();
            let steps = steps::of(|| world.list("unsubscribe", &list));
            assert_eq!(world.subscriptions(), 0);
            steps
        }),
        ("an unsubscribe list of what waits", |n| {
            let mut world = World::new(1);
            world.list("subscribe", &distinct("call.CHANNEL_CREATE", n));
            let steps =
                steps::of(|| world.list("unsubscribe", &distinct("call.CHANNEL_CREATE", n)));
            assert!(!world.sessions[0].is_waiting());
            steps
        }),
        ("subscribes of one session that wait", |n| {
            let mut world = World::new(1);
            // As many as one session may hold.
            let n = n / 2;
            let steps = steps::of(|| {
                for binding in distinct("fax.status", n) {
                    world.list("subscribe", &[binding]);
                }
            });
            assert_eq!(world.hub.held.replies, n as usize);
            steps
        }),
        ("sessions that time out in one list", |n| {
            let mut world = World::new(n);
            let data = json!({"account_id": A, "binding": "call.*.*"});
            for slot in 0..n {
                world.command(slot, json!({"action": "subscribe", "data": data}));
            }
            assert_eq!(world.hub.subscriptions.broker().waiters(), 9 * n as usize);
            let later = Now {
                clock: Duration::from_secs(3600),
                ..NOW
            };
            let steps = steps::of(|| {
                // The latest first: at the end of the list.
                for (slot, session) in (0..n).zip(&mut world.sessions).rev() {
                    session.on_command_timeout(&mut world.hub.context(id(slot), later));
                }
            });
            assert_eq!(world.hub.subscriptions.broker().waiters(), 0);
            steps
        }),
        ("a wait over a change of month", |n| {
            let mut world = World::new(1);
            world.list("subscribe", &distinct("doc_created.*.fax", n));
            let later = ActiveMonths::at(NOW.unix() + 40 * 86_400);
            world.hub.subscriptions.follow(later);
            let steps = steps::of(|| {
                world.bind_all();
                world.bind_all();
            });
            assert_eq!(world.subscriptions(), n);
            steps
        }),
        ("a session whose realm moves", |n| {
            let mut world = subscribed(n, "presence.dialog");
            std::fs::write(&world.tokens, file("new.example", 1)).expect("writable");
            world
                .hub
                .authenticator
                .reload(read_tokens, read_keys)
                .expect("a token file");
            let steps = steps::of(|| {
                let checked = world.sessions[0].renew_identity(&mut world.hub.context(id(0), NOW));
                assert_eq!(checked, n as usize);
            });
            assert_eq!(world.hub.metrics.subscriptions_moved_total, u64::from(n));
            steps
        }),
        ("a session that loses many accounts", |n| {
            let mut world = World::new(1);
            std::fs::write(&world.tokens, file("one.example", n)).expect("writable");
            world
                .hub
                .authenticator
                .reload(read_tokens, read_keys)
                .expect("a token file");
            for number in 0..n {
                let data =
                    json!({"account_id": format!("{number:032x}"), "binding": "fax.status.*"});
                world.command(0, json!({"action": "subscribe", "data": data}));
                world.bind_all();
            }
            std::fs::write(&world.tokens, file("one.example", 0)).expect("writable");
            world
                .hub
                .authenticator
                .reload(read_tokens, read_keys)
                .expect("a token file");
            let steps =
                steps::of(|| world.sessions[0].renew_identity(&mut world.hub.context(id(0), NOW)));
            assert_eq!(world.subscriptions(), 0);
            steps
        }),
    ];
    for (case, steps) in cases {
        let (once, twice) = (steps(400), steps(800));
        println!("{case}: {once} steps, {twice} for twice as much");
        assert!(once >= 400, "{case}: {once} steps count nothing");
        assert!(twice * 10 < once * 25, "{case}: {once}, then {twice} steps");
    }
}

#[test]
fn a_binding_that_fits_no_key_is_refused_before_a_key_is_rendered() {
    let mut world = World::new(1);
    for (length, renderings) in [(65_000, 0), (255, 0), (254, 9)] {
        let list = [format!("call.*.{}", "x".repeat(length))];
        let steps = steps::of(|| world.list("subscribe", &list));
        assert_eq!(steps, renderings, "{length}");
        assert_eq!(world.hub.subscriptions.broker().counts().wanted, 0);
    }
}
