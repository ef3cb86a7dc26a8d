//! Sessions and the ends of their tokens.

use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::SEEDS;
use crate::model::ACCOUNTS;
use crate::scenes::{token_file, world_of_readers};
use support::wire::{client_text, server_frames};

/// What a token file says of one token: its end in seconds from the beginning, if it is there.
type Ends = [Option<u64>; 5];

fn write_tokens(path: &Path, ends: &Ends) {
    let entries = ends.iter().enumerate().filter_map(|(token, end)| {
        let expires = 1_700_000_000 + (*end)?;
        Some((
            format!("t{token}"),
            json!({"account_id": ACCOUNTS[0], "expires": expires}),
        ))
    });
    let file: serde_json::Map<String, Value> = entries.collect();
    std::fs::write(path, Value::Object(file).to_string()).expect("writable");
}

/// Twenty seconds in which sessions authenticate with tokens that end, and the file is reread with others.
fn sessions_come_and_go_with_their_tokens(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let (_directory, path) = token_file();
    let ends = |rng: &mut Rng| -> Ends {
        std::array::from_fn(|_| (rng.u32(0..5) > 0).then(|| rng.u64(1..30)))
    };
    let mut on_file = ends(&mut rng);
    write_tokens(&path, &on_file);
    let mut world = world_of_readers(12, &[], &path);
    let begun = world.clock;
    // The token that each session runs as; none once it is closed.
    let mut holds: Vec<Option<Option<usize>>> = vec![Some(None); world.clients.len()];
    for second in 1..=20 {
        world.clock = begun + Duration::from_secs(second);
        let second = world.now().unix() - 1_700_000_000;
        let (before, mut asked) = (on_file, Vec::new());
        for (index, client) in world.clients.iter().enumerate() {
            if rng.u32(0..4) > 0 {
                continue;
            }
            let token = rng.usize(0..=on_file.len());
            let text = json!({"action": "ping", "auth_token": format!("t{token}")}).to_string();
            client.wire.borrow_mut().send(&client_text(&text));
            if let Some(held) = &mut holds[index] {
                let is_good = on_file.get(token).copied().flatten() > Some(second);
                asked.push((index, is_good));
                if is_good {
                    *held = Some(token);
                }
            }
        }
        for tenth in 0..10 {
            let ready = world.readable();
            let now = world.now();
            world.reactor.turn(&ready, now);
            if tenth == 4 && rng.u32(0..4) == 0 {
                on_file = ends(&mut rng);
                write_tokens(&path, &on_file);
                let reloaded = world
                    .reactor
                    .hub
                    .authenticator
                    .reload(blackhole::config::read_tokens, blackhole::config::read_keys);
                reloaded.expect("a valid token file");
                world.reactor.renew_identities();
            }
            world.clock += Duration::from_millis(90);
        }
        for (index, client) in world.clients.iter().enumerate() {
            let bytes = std::mem::take(&mut client.wire.borrow_mut().to_client);
            let (frames, used) = server_frames(&bytes);
            assert_eq!(used, bytes.len());
            // The loop asks the silent whether they are there.
            let mut frames = frames.into_iter().filter(|(opcode, _)| *opcode != 9);
            for (_, is_good) in asked.iter().filter(|(of, _)| *of == index) {
                let (_, reply) = frames.next().expect("a reply");
                let reply: Value = serde_json::from_slice(&reply).expect("JSON");
                let status = if *is_good { "success" } else { "error" };
                assert_eq!(reply["status"], status, "{reply}, second {second}");
            }
            let is_over = holds[index].is_some_and(|held| {
                let is_past =
                    |ends: Ends, token: usize| ends[token].is_none_or(|end| end <= second);
                held.is_some_and(|token| is_past(before, token) || is_past(on_file, token))
            });
            if is_over {
                holds[index] = None;
                let (opcode, payload) = frames.next().expect("a close frame");
                assert_eq!((opcode, &payload[..2]), (8, &4401_u16.to_be_bytes()[..]));
            }
            assert_eq!(frames.next(), None, "session {index}, second {second}");
        }
    }
    assert!(world.reactor.hub.metrics.authentications_failed_total > 0);
}

#[test]
fn sessions_live_as_long_as_their_latest_good_token_and_no_longer() {
    for seed in 0..SEEDS / 2 {
        println!("seed {seed}");
        sessions_come_and_go_with_their_tokens(seed);
    }
}
