//! Sessions that send commands without pause and read the replies: what they cost is theirs, and the events of others
//! are not late for it.

use std::thread;
use std::time::{Duration, Instant};

use crate::flood::{Flood, Script};
use crate::judge::{Delays, Rounds, alone};
use blackhole::limits::{
    DEFLATED_BYTES_PER_FRAME, DEFLATED_MESSAGE_BYTES_MAX, FRAMES_READ_PER_TURN_MAX,
    INFLATED_BYTES_PER_FRAME,
};
use miniz_oxide::deflate::core::CompressorOxide;
use miniz_oxide::deflate::stream::deflate;
use miniz_oxide::{DataFormat, MZFlush};
use support::client::{ANY_TOKEN, Client, ping, ping_as, upgrade_with};
use support::events::{ACCOUNT, call_event};
use support::server::Fed;
use support::wire::{UPGRADE_REQUEST, client_frame, client_text, deflated_tables};

/// Calm and attack take turns, so that the machine's mood falls on both alike: so often, and on to the most while its
/// mood is too bad to tell.
const ROUNDS_MIN: usize = 3;
const ROUNDS_MAX: usize = 9;
/// Of one round: whichever is met first.
const EVENTS: usize = 100;
const ROUND_MAX: Duration = Duration::from_secs(4);

/// Pause between an event's arrival and the next one, as events come on a quiet day.
const PACE: Duration = Duration::from_millis(5);

/// What an honest session may wait for an event beside the flood, in times of what it waits in the calm. A build that is
/// not optimised takes ten times as long for a command, and no longer than any other for the sockets and threads that the
/// calm waits for.
const P50_TIMES: f64 = if cfg!(debug_assertions) { 30.0 } else { 3.0 };
/// The same for the hundredth that waits longest; before the mends it was 300 times. `cargo test --release --test attacks`
/// holds the figures of the optimised build.
const P99_TIMES: f64 = if cfg!(debug_assertions) { 100.0 } else { 20.0 };

/// As [`P50_TIMES`], beside messages one of which may take the loop a millisecond, four times what the calm waits.
const P50_TIMES_DEAR: f64 = if cfg!(debug_assertions) { 30.0 } else { 8.0 };

/// A server whose events one honest session waits for.
struct Scene {
    p50_times: f64,
    fed: Fed,
    honest: Client,
}

impl Scene {
    fn open(args: &[&str]) -> Self {
        let fed = Fed::insecure(args);
        let mut honest = fed.server.client();
        honest.must_subscribe(ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
        Self {
            p50_times: P50_TIMES,
            fed,
            honest,
        }
    }

    fn wait_for_events(&mut self, delays: &mut Delays) {
        let begun = Instant::now();
        for number in 0..EVENTS {
            let event = call_event(ACCOUNT, "CHANNEL_CREATE", number);
            let came = delays.time(|| {
                self.fed
                    .publish("callevt", "call.CHANNEL_CREATE.call", &event);
                self.honest.event()
            });
            assert_eq!(came["args"]["Number"], number);
            thread::park_timeout(PACE);
            if begun.elapsed() > ROUND_MAX {
                return;
            }
        }
    }

    fn judge(self, what: &str, sessions: usize, script: &Script) {
        self.judge_bytes(what, sessions, &script.bytes());
    }

    /// `bytes`: what each session of the flood sends.
    fn judge_bytes(self, what: &str, sessions: usize, bytes: &[u8]) {
        self.judge_upgraded(what, UPGRADE_REQUEST, sessions, bytes);
    }

    /// `request`: by which it is upgraded. Returns the server.
    fn judge_upgraded(mut self, what: &str, request: &str, sessions: usize, bytes: &[u8]) -> Fed {
        let (mut rounds, mut sent) = (Rounds::default(), 0);
        self.wait_for_events(&mut Delays::default());
        for round in 1..=ROUNDS_MAX {
            let (calm, attacked) = rounds.next();
            self.wait_for_events(calm);
            let address = self.fed.server.address();
            let flood = Flood::start_as(request, address, sessions, bytes);
            self.wait_for_events(attacked);
            sent += flood.sent();
            drop(flood);
            // The replies to what the flood sent last are not the calm's.
            self.fed.server.wait_for_metric("sessions", 1);
            let is_met = rounds.ratio(50) <= self.p50_times && rounds.ratio(99) <= P99_TIMES;
            let is_out_of_reach = rounds.ratio(50) > 3.0 * self.p50_times;
            if round >= ROUNDS_MIN && (is_met || is_out_of_reach) {
                break;
            }
        }
        println!("{what}: {} MB sent", sent >> 20);
        rounds.assert_ratio(what, 50, self.p50_times);
        rounds.assert_ratio(what, 99, P99_TIMES);
        self.fed
    }
}

#[test]
fn pipelined_pings_of_ten_sessions_make_no_event_late() {
    let _alone = alone();
    Scene::open(&[]).judge(
        "events beside pipelined pings",
        10,
        &Script {
            greeting: Some(ping_as(ANY_TOKEN, "hello").to_string()),
            message: ping("flood").to_string(),
            // As many over the rate limit as do not yet close the session.
            repeats: 1000,
        },
    );
}

#[test]
fn empty_commands_of_ten_sessions_that_never_authenticate_make_no_event_late() {
    let _alone = alone();
    Scene::open(&[]).judge(
        "events beside empty commands",
        10,
        &Script {
            greeting: None,
            message: "{}".into(),
            repeats: 1000,
        },
    );
}

#[test]
fn one_session_that_may_send_as_much_as_it_likes_makes_no_event_late() {
    let _alone = alone();
    Scene::open(&["--rate-limit-burst", "1000000000"]).judge(
        "events beside one session without a rate limit",
        1,
        &Script {
            greeting: Some(ping_as(ANY_TOKEN, "hello").to_string()),
            message: ping("flood").to_string(),
            repeats: 500_000,
        },
    );
}

#[test]
fn sessions_that_come_and_go_without_pause_make_no_event_late() {
    let _alone = alone();
    Scene::open(&[]).judge(
        "events beside sessions that come and go",
        10,
        &Script {
            greeting: None,
            message: String::new(),
            repeats: 0,
        },
    );
}

#[test]
fn protocol_pings_without_pause_make_no_event_late() {
    let _alone = alone();
    Scene::open(&[]).judge_bytes(
        "events beside protocol pings",
        10,
        &client_frame(0x89, b"flood").repeat(200_000),
    );
}

#[test]
fn fragments_without_pause_make_no_event_late() {
    let _alone = alone();
    let mut bytes = client_frame(0x01, b"");
    bytes.extend(client_frame(0x00, b"").repeat(300_000));
    Scene::open(&[]).judge_bytes("events beside fragments", 10, &bytes);
}

#[test]
fn messages_of_seventy_bytes_that_inflate_to_a_thousand_times_as_much_make_no_event_late() {
    let _alone = alone();
    let text = format!("{{{}}}", " ".repeat((64 << 10) - 2));
    let mut compressor = CompressorOxide::default();
    compressor.set_format_and_level(DataFormat::Raw, 9);
    let mut payload = vec![0; text.len()];
    let done = deflate(
        &mut compressor,
        text.as_bytes(),
        &mut payload,
        MZFlush::Sync,
    );
    payload.truncate(done.bytes_written - 4);
    assert!(payload.len() < 100, "{}", payload.len());
    let fed = judge_deflated("events beside deflated messages", &payload, P50_TIMES);
    let inflated = fed.server.metric("inflated_bytes_after_total");
    assert!(inflated > 100 << 20, "{inflated} bytes came of it");
}

#[test]
fn deflated_messages_that_are_all_tables_of_codes_make_no_event_late() {
    let _alone = alone();
    let payload = deflated_tables(DEFLATED_MESSAGE_BYTES_MAX);
    let fed = judge_deflated("events beside tables of codes", &payload, P50_TIMES_DEAR);
    let metrics = fed.server.metrics();
    let inflated = metrics["inflated_bytes_before_total"];
    assert!(inflated > 10 << 20, "{inflated} bytes were inflated");
    assert_eq!(metrics["inflated_bytes_after_total"], 0);
}

/// Ten sessions send a deflated message without pause. Whatever time the machine takes, the turns had no more of them than their
/// shares.
fn judge_deflated(what: &str, payload: &[u8], p50_times: f64) -> Fed {
    // Plain ones first: what is read with the request may not be deflated.
    let mut bytes = client_text("{}").repeat(1000);
    bytes.extend(client_frame(0xC1, payload).repeat(900));
    let request = upgrade_with(&["Sec-WebSocket-Extensions: permessage-deflate"]);
    let args = ["--compression", "--rate-limit-burst", "1000000000"];
    let mut scene = Scene::open(&args);
    scene.p50_times = p50_times;
    let fed = scene.judge_upgraded(what, &request, 10, &bytes);
    let metrics = fed.server.metrics();
    let shares = metrics["inflated_bytes_before_total"] / DEFLATED_BYTES_PER_FRAME as u64
        + metrics["inflated_bytes_after_total"] / INFLATED_BYTES_PER_FRAME as u64;
    // A share, and what the last read of a turn has beyond it.
    let of_a_read = DEFLATED_MESSAGE_BYTES_MAX / DEFLATED_BYTES_PER_FRAME;
    let of_a_turn = (FRAMES_READ_PER_TURN_MAX + of_a_read) as u64;
    let turns = metrics["turn_seconds_count"];
    println!("{what}: {} frames' worth inflated a turn", shares / turns);
    assert!(
        shares <= turns * of_a_turn,
        "{what}: {shares} frames' worth inflated in {turns} turns, {of_a_turn} a turn at most"
    );
    fed
}
