//! When memory goes back to the system, on scripted sockets and a virtual clock: in the quiet after a burst, and under
//! traffic that leaves no quiet.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use blackhole::handoff::SourceEnd;
use blackhole::limits::{TRIM_AFTER, TRIM_FREED_MIN, TRIM_WITHIN};
use blackhole::reactor::{Reactor, Ready};
use blackhole::session::ListenerKind;
use blackhole::session::id::Peer;
use support::scripted::{Scripted, Wire, config, now, reactor};
use support::wire::{UPGRADE_REQUEST, client_text};

/// A second less than would be a quiet.
const NO_QUIET: Duration = Duration::from_millis(900);

/// A loop to which so many sessions came that memory is worth giving back.
struct World {
    reactor: Reactor<Scripted>,
    /// Held, so that the source is not gone.
    _source: SourceEnd,
    clock: Duration,
    talker: Rc<RefCell<Wire>>,
    turn_of_talker: Ready,
}

impl World {
    fn new() -> Self {
        let options = [
            "--auth",
            "insecure",
            "--ping-interval-ms",
            "0",
            "--auth-timeout-ms",
            "600000",
        ];
        let (source, mut reactor) = reactor(&config(&options), 16, 1);
        let mut last = None;
        for port in 1..=u16::try_from(TRIM_FREED_MIN).expect("few") {
            let wire = Wire::new(usize::MAX / 2, usize::MAX);
            wire.borrow_mut().send(UPGRADE_REQUEST.as_bytes());
            let peer = Peer::from(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
            let socket = Scripted(wire.clone());
            let id = reactor.accept(socket, peer, ListenerKind::Clients, now(Duration::ZERO));
            last = id.map(|id| (id, wire));
        }
        let (id, talker) = last.expect("there is room");
        let mut world = Self {
            reactor,
            _source: source,
            clock: Duration::ZERO,
            talker,
            turn_of_talker: Ready {
                id,
                readable: true,
                writable: false,
                read_closed: false,
            },
        };
        world.turn(&[]);
        assert_eq!(
            world.reactor.hub.metrics.sessions_opened_total,
            TRIM_FREED_MIN
        );
        world
    }

    fn turn(&mut self, ready: &[Ready]) {
        self.reactor.turn(ready, now(self.clock));
        while self.reactor.patience(now(self.clock)).is_zero() {
            self.reactor.turn(&[], now(self.clock));
        }
    }

    /// One client says something.
    fn talk(&mut self) {
        self.say("{}");
    }

    fn say(&mut self, text: &str) {
        self.talker.borrow_mut().send(&client_text(text));
        self.turn(&[self.turn_of_talker]);
    }

    fn trims(&self) -> u64 {
        self.reactor.hub.metrics.heap_trims_total
    }
}

#[test]
fn in_the_quiet_after_a_burst_memory_is_given_back_once() {
    let mut world = World::new();
    world.clock += TRIM_AFTER - Duration::from_millis(1);
    world.turn(&[]);
    assert_eq!(world.trims(), 0);
    for _ in 0..5 {
        world.clock += TRIM_AFTER;
        world.turn(&[]);
        assert_eq!(world.trims(), 1);
    }
}

#[test]
fn under_traffic_without_a_quiet_memory_is_given_back_in_time_and_once() {
    let mut world = World::new();
    while world.clock + NO_QUIET < TRIM_WITHIN {
        world.clock += NO_QUIET;
        world.talk();
        assert_eq!(world.trims(), 0, "at {:?}", world.clock);
    }
    for _ in 0..30 {
        world.clock += NO_QUIET;
        world.talk();
        assert_eq!(world.trims(), 1, "at {:?}", world.clock);
    }
}

#[test]
fn names_and_metadata_are_counted_as_long_as_their_session_is_open() {
    let mut world = World::new();
    let bytes = |world: &World| world.reactor.hub.labels.bytes();
    let mut before = 0;
    for label in [
        r#""name":"n""#,
        r#""metadata":[1,2,3]"#,
        r#""name":"longer""#,
    ] {
        world.say(&format!(
            r#"{{"action":"ping","auth_token":"any",{label}}}"#
        ));
        assert!(bytes(&world) > before, "{label}");
        before = bytes(&world);
    }
    world.talker.borrow_mut().client_closed = true;
    let ended = Ready {
        read_closed: true,
        ..world.turn_of_talker
    };
    world.turn(&[ended]);
    assert_eq!(bytes(&world), 0);
}
