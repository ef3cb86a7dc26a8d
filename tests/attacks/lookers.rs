//! Lookers (`GET /trace`) that look at what is dearest to judge, under a flood of events, and read nothing: what they are
//! told is theirs to lose, and nobody waits for them.

use std::time::Duration;

use crate::judge::{Delays, Rounds, alone};
use support::client::{ANY_TOKEN, Client, ping};
use support::events::{ACCOUNT, OTHER_ACCOUNT, call_event};
use support::looker::Looker;
use support::server::Fed;

/// Rounds of pings in the calm, and beside the lookers, in turns.
const ROUNDS: usize = 5;
const PINGS: usize = 60;
/// Events before each ping.
const BURST: usize = 100;

/// What a ping may take beside the lookers, in times of what it takes beside the same events while nobody looks, when they
/// cost next to nothing; and what never happens. A build that is not optimised takes ten times as long to judge.
const P50_TIMES: f64 = if cfg!(debug_assertions) { 150.0 } else { 20.0 };
const NEVER: Duration = Duration::from_secs(2);

fn round(fed: &mut Fed, honest: &mut Client, delays: &mut Delays) {
    for number in 0..PINGS {
        for _ in 0..BURST {
            let body = call_event(OTHER_ACCOUNT, "CHANNEL_ANSWER", number);
            fed.publish("callevt", "call.CHANNEL_ANSWER.c", &body);
        }
        let id = number.to_string();
        let pong = delays.time(|| honest.ask(&ping(&id)));
        assert_eq!(pong["request_id"], id);
    }
}

#[test]
fn lookers_that_do_not_read_keep_nobody_waiting_under_a_flood_of_events() {
    let _alone = alone();
    let mut fed = Fed::insecure(&["--rate-limit-burst", "1000000"]);
    let mut honest = fed.server.client();
    honest.must_subscribe(ANY_TOKEN, ACCOUNT, "fax.status.*");
    // Each event is compared with all of these.
    let mut looked_at = fed.server.client();
    let bindings: Vec<String> = (0..200)
        .map(|number| format!("call.CHANNEL_CREATE.{number}"))
        .collect();
    for some in bindings.chunks(100) {
        let some: Vec<&str> = some.iter().map(String::as_str).collect();
        looked_at.must_subscribe_to_all(ANY_TOKEN, ACCOUNT, &some);
    }
    let session = format!("session={}", looked_at.session_id());
    let queries = [
        format!("{session}&key=call.CHANNEL_ANSWER.*"),
        format!("account={OTHER_ACCOUNT}"),
        "key=call.*.*".to_owned(),
    ];
    let mut rounds = Rounds::default();
    round(&mut fed, &mut honest, &mut Delays::default());
    for _ in 0..ROUNDS {
        let (calm, attacked) = rounds.next();
        round(&mut fed, &mut honest, calm);
        let mut lookers = Vec::new();
        while fed.server.metric("trace_looks") < blackhole::limits::TRACE_LOOKS_MAX as u64 {
            let query = &queries[lookers.len() % queries.len()];
            lookers.push(Looker::look_narrowly(fed.server.admin(), query));
        }
        round(&mut fed, &mut honest, attacked);
        println!("calm {calm}; beside lookers {attacked}");
        assert!(attacked.longest() < NEVER, "{attacked}");
        drop(lookers);
        fed.server.wait_for_metric("trace_looks", 0);
    }
    let left_out = fed.server.metric("trace_left_out_total");
    println!("{left_out} lines and events were told to be left out");
    rounds.assert_ratio("pings beside lookers", 50, P50_TIMES);
}
