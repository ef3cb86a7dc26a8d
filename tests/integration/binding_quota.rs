//! How many AMQP bindings a session, an account and the process may have (PROTOCOL 3): `max_bindings_per_session`,
//! `max_bindings_per_account`, `max_bindings`.

use std::net::SocketAddr;
use std::time::Duration;

use blackhole::account::AccountId;
use blackhole::handoff::{FromSource, Return, ToSource};
use blackhole::routing::amqp_binding::Asked;
use blackhole::session::ListenerKind;
use blackhole::session::id::Peer;
use serde_json::json;

use support::client::{ANY_TOKEN, Client, errors, subscribe, subscribe_to_all, success};
use support::events::{ACCOUNT, OTHER_ACCOUNT};
use support::scripted::{Scripted, Wire, config, now, reactor};
use support::server::{Server, TokenFile};
use support::wire::{UPGRADE_REQUEST, client_text};

const OF_ONE: &str = "too many bindings (max 20)";
const OF_ACCOUNT: &str = "too many bindings of this account (max 20)";

/// One subscribe of a table: which session, as whom, for what, and what it is refused with.
type Row = (
    usize,
    &'static str,
    &'static [&'static str],
    Option<&'static str>,
);

const TABLES: [(&str, &[Row]); 3] = [
    (
        "--max-bindings-per-session=20",
        &[
            // A `*` for the event is nine, whoever has the same already; what one has is not counted twice.
            (0, "a", &["call.*.1", "call.*.2"], None),
            (0, "a", &["call.*.3"], Some(OF_ONE)),
            (
                0,
                "a",
                &[
                    "call.PARK_PARKED.3",
                    "call.PARK_PARKED.4",
                    "call.PARK_PARKED.5",
                ],
                Some(OF_ONE),
            ),
            (0, "a", &["call.PARK_PARKED.3", "call.PARK_PARKED.4"], None),
            (0, "a", &["call.PARK_PARKED.5"], Some(OF_ONE)),
            (
                0,
                "a",
                &["call.*.1", "call.*.2", "call.PARK_PARKED.3"],
                None,
            ),
            (
                1,
                "a",
                &["call.*.1", "call.*.2", "call.PARK_PARKED.3"],
                None,
            ),
            (2, "a", &["call.*.6", "call.*.7", "call.*.8"], Some(OF_ONE)),
            (2, "a", &["call.*.6"], None),
        ],
    ),
    (
        "--max-bindings-per-account=20",
        &[
            (0, "a", &["call.*.1"], None),
            (1, "a2", &["call.*.2"], None),
            (2, "a", &["call.*.3"], Some(OF_ACCOUNT)),
            // What the account has already, and its other sessions too, is no more.
            (2, "a", &["call.*.1", "call.*.2"], None),
            (
                2,
                "a",
                &[
                    "call.PARK_PARKED.3",
                    "call.PARK_PARKED.4",
                    "call.PARK_PARKED.1",
                ],
                None,
            ),
            (0, "a", &["call.PARK_PARKED.5"], Some(OF_ACCOUNT)),
            // Another account is nobody's neighbour, and does not pay for what it shares.
            (
                3,
                "b",
                &["call.*.1", "call.*.2", "call.*.8", "call.*.9"],
                None,
            ),
            (3, "b", &["call.*.10"], Some(OF_ACCOUNT)),
        ],
    ),
    (
        "--max-bindings=20",
        &[
            (0, "a", &["call.*.1"], None),
            (1, "b", &["call.*.2"], None),
            (1, "b", &["call.*.1", "call.*.3"], Some(OF_ONE)),
            (
                2,
                "b",
                &["call.*.1", "call.PARK_PARKED.3", "call.PARK_PARKED.4"],
                None,
            ),
            (0, "a", &["call.PARK_PARKED.5"], Some(OF_ONE)),
        ],
    ),
];

fn owners() -> TokenFile {
    TokenFile::new(&json!({
        "a": {"account_id": ACCOUNT}, "a2": {"account_id": ACCOUNT}, "b": {"account_id": OTHER_ACCOUNT},
    }))
}

#[test]
fn what_would_pass_a_bound_is_refused_and_counted_and_what_has_gone_makes_room() {
    for (option, rows) in TABLES {
        let tokens = owners();
        let auth = tokens.option();
        let server = Server::start(&["--source", "demo", "--auth", &auth, option]);
        let mut clients: Vec<_> = (0..4).map(|_| Client::connect(server.address())).collect();
        for round in ["at first", "once more"] {
            let mut refused = 0;
            let before = server.metrics();
            for (at, (client, token, bindings, expected)) in rows.iter().enumerate() {
                let account = if *token == "b" {
                    OTHER_ACCOUNT
                } else {
                    ACCOUNT
                };
                let answer = clients[*client].ask(&subscribe_to_all(token, account, bindings));
                let what = format!("{option}, row {at}, {round}: {answer}");
                match expected {
                    None => assert_eq!(answer["status"], "success", "{what}"),
                    Some(error) => {
                        refused += 1;
                        assert_eq!(errors(&answer), [*error], "{what}");
                    }
                }
            }
            let after = server.metrics();
            let counted: u64 = [
                r#"commands_total{result="too_many_bindings"}"#,
                r#"commands_total{result="too_many_account_bindings"}"#,
            ]
            .map(|counter| after[counter] - before[counter])
            .iter()
            .sum();
            assert_eq!(counted, refused, "{option}");
            assert!(after["amqp_bindings_wanted"] > 0);
            for client in &mut clients {
                success(&client.ask(&json!({"action": "unsubscribe", "auth_token": "a"})));
            }
            assert_eq!(server.metric("amqp_bindings_wanted"), 0);
        }
    }
}

#[test]
fn by_default_a_full_session_of_the_widest_subscriptions_is_taken_and_ninety_thousand_bindings_are_not()
 {
    let server = Server::demo(&["--rate-limit-burst=1000"]);
    let full = |session: usize| -> Vec<String> {
        (0..256)
            .map(|call| format!("call.*.{session}x{call}"))
            .collect()
    };
    let mut clients = Vec::new();
    let mut refused = 0;
    for session in 0..40 {
        let mut client = Client::connect(server.address());
        let names = full(session);
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let answer = client.ask(&subscribe_to_all(ANY_TOKEN, ACCOUNT, &names));
        if answer["status"] == "error" {
            assert_eq!(
                errors(&answer),
                ["too many bindings of this account (max 16384)"]
            );
            refused += 1;
        }
        clients.push(client);
    }
    assert_eq!(
        (refused, server.metric("amqp_bindings_wanted")),
        (33, 7 * 2304)
    );
    let honest = subscribe(ANY_TOKEN, OTHER_ACCOUNT, "fax.status.X");
    success(&clients[39].ask(&honest));
}

/// The account keeps what it has through a month's end, and the process no more than that.
#[test]
fn a_roll_over_of_months_leaves_every_binding_with_its_account() {
    let tokens = owners();
    let auth = format!("--auth={}", tokens.option());
    let (source, mut reactor) = reactor(&config(&[&auth, "--ping-interval-ms=0"]), 100, 1);
    source.send(FromSource::Up(Return::Anew)).unwrap();
    let wire = Wire::new(usize::MAX, 1 << 16);
    let socket = Scripted(wire.clone());
    let peer = Peer::from(SocketAddr::from(([10, 0, 0, 1], 1)));
    reactor.accept(socket, peer, ListenerKind::Clients, now(Duration::ZERO));
    let ask = subscribe("a", ACCOUNT, "object.*.fax").to_string();
    wire.borrow_mut().send(UPGRADE_REQUEST.as_bytes());
    let account = AccountId::parse(ACCOUNT).unwrap();
    let mut most = 0;
    for day in 0..70 {
        let midnight = 86_400 - now(Duration::ZERO).unix() % 86_400;
        let begun = Duration::from_secs(midnight + day * 86_400);
        for seconds in [0, 1, 86_399 - 30, 86_399] {
            if (day, seconds) == (0, 1) {
                wire.borrow_mut().send(&client_text(&ask));
            }
            let now = now(begun + Duration::from_secs(seconds));
            let ready: Vec<_> = (reactor.connections().iter())
                .map(|(id, _)| blackhole::reactor::Ready {
                    id,
                    readable: true,
                    writable: true,
                    read_closed: false,
                })
                .collect();
            reactor.turn(&ready, now);
            let mut bound = Vec::new();
            for command in source.commands.try_iter().flatten() {
                if let ToSource::Bind {
                    binding, ticket, ..
                } = command
                {
                    bound.push(Asked { binding, ticket });
                }
            }
            source.send(FromSource::Bound(bound)).unwrap();
            reactor.turn(&[], now);
            let wanted = reactor.hub.subscriptions.broker().counts().wanted;
            assert_eq!(reactor.hub.subscriptions.broker().load(account), wanted);
            most = most.max(wanted);
        }
    }
    assert!(
        reactor.hub.metrics.months_rolled_total >= 4,
        "twice into and out of both months"
    );
    assert!(most >= 2, "both months at once");
}
